"""Proofs: that everything up to a position has come through the pub/sub connection.

A proof is a message to this worker alone with the clock of Redis: all that was published up to
there came before it. One is asked for on the command connection, for all who wait at the time.

1. A subscription begins with a proof asked for after its confirmation.
2. One is asked for now and then in any case, to watch the links: no reply convicts the command
   connection, a reply without a proof the other one, and another Redis, or a demoted one, both.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from gateway.bus.epoch import PRIMARY, Epoch, fields, parse_epoch
from gateway.bus.history import RETRY_SECONDS, parse_record
from gateway.bus.link import Link
from gateway.bus.listener import Listener
from gateway.bus.resp import LinkLost, Reply
from gateway.bus.subscriptions import Subscription
from gateway.bus.wire import position_of
from gateway.histogram import LATENCIES, Histogram
from gateway.position import Position

PROOFS = 5
"""Asked for within the time after which a link counts as dead."""

PRESENCE = 2
"""Times the time after which a link counts as dead, for which a worker counts as being there after
its last proof."""

RECORDS_SLICE = 500
"""Channels asked about in one go."""

CLOCK_LOOKS = 8
"""Looks at Redis's clock of which the one counts that took the least time, as in NTP."""


class Skew:
    """By how much another clock is ahead of ours, out of several looks at it."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, float]] = deque(maxlen=CLOCK_LOOKS)
        self.seconds = 0.0

    def see(self, theirs: float, asked: float, answered: float) -> None:
        """It said ``theirs`` at some time between the two, by our clock."""
        self._looks.append((answered - asked, theirs - (asked + answered) / 2))
        _, self.seconds = min(self._looks)


@dataclass(frozen=True, slots=True)
class Told:
    """What the message says."""

    head: Position
    number: int
    run_id: str
    epoch: Epoch


def parse_told(payload: bytes) -> Told | None:
    """None if it is no proof of ours."""
    try:
        head, number, run_id, *epoch = payload.decode("ascii").split(" ")
        return Told(position_of(head.encode()), int(number), run_id, parse_epoch(epoch))
    except (ValueError, TypeError):
        return None


@dataclass(slots=True)
class _Proof:
    """One that was asked for, the subscriptions that begin with it, and whether it has come."""

    subscriptions: Sequence[Subscription]
    decided: trio.Event = field(default_factory=trio.Event)
    came: bool = False
    came_at: float = 0.0
    """By trio's clock."""


class Prover:
    def __init__(
        self,
        link: Link,
        listener: Listener,
        *,
        worker: str,
        prefix: str,
        timeout: float,
        is_paused: Callable[[], bool],
        now_ms: Callable[[], int],
    ) -> None:
        """While ``is_paused`` nothing can come, and no link is to blame."""
        self._link = link
        self._listener = listener
        self._worker = worker
        self._prefix = prefix
        self._timeout = timeout
        self._is_paused = is_paused
        self._now_ms = now_ms
        self._proofs: dict[int, _Proof] = {}
        self._resuming = self._numbers = 0
        self._confirmed: list[Subscription] = []
        self.probes = Histogram(LATENCIES)
        """Of seconds until a proof came."""
        self.skew = Skew()
        """Of Redis's clock."""
        self._asked = trio.Event()
        """Set by the next proof that is asked for from now on."""
        self._wake = trio.Event()

    async def prove(self) -> None:
        """Return when a position has been proven that was read from now on."""
        self._wake.set()
        await self._asked.wait()

    def begin_soon(self, subscription: Subscription) -> None:
        """A subscription has been confirmed."""
        self._confirmed.append(subscription)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        watch_at = trio.current_time() + self._timeout / PROOFS
        owed: list[trio.Event] = []
        while True:
            with trio.move_on_at(watch_at):
                await self._wake.wait()
            self._wake = trio.Event()
            await self._listener.wait_live()
            if self._asked.statistics().tasks_waiting:
                owed.append(self._asked)
                self._asked = trio.Event()
            confirmed = [each for each in self._confirmed if each.confirmed]
            self._confirmed = []
            try:
                if trio.current_time() >= watch_at:
                    watch_at = trio.current_time() + self._timeout / PROOFS
                    await self._watch()
                await self._prove(confirmed)
            except LinkLost:
                self._confirmed += [each for each in confirmed if not each.ready.is_set()]
                self._wake.set()
                await trio.sleep(RETRY_SECONDS)
                await self._link.commands.wait_connected()
            else:
                for came in owed:
                    came.set()
                owed.clear()

    async def _watch(self) -> None:
        """Give the links up where they lead to another Redis by now, or one that was demoted."""
        asked = time.time()
        role, server, stats, now = await self._link.commands.ask(
            ("ROLE",), ("INFO", "server"), ("INFO", "stats"), ("TIME",)
        )
        self.skew.see(int(now[0]) + int(now[1]) / 1e6, asked, time.time())
        run_id = fields(server).get(b"run_id", b"").decode()
        if role[0] != PRIMARY or run_id != self._link.run_id:
            self._link.commands.convict("it no longer leads to the primary")
            self._listener.convict("it no longer leads to the primary")
            raise LinkLost("this is no longer the primary")
        await self._link.watch_evicted(stats)

    async def _prove(self, subscriptions: Sequence[Subscription]) -> None:
        """Have a position proven that is read from now on, and ``subscriptions`` begin with it."""
        number, proof = self._new_proof(subscriptions)
        began = trio.current_time()
        try:
            await self._ask(number)
            records: list[Reply] = []
            for start in range(0, len(subscriptions), RECORDS_SLICE):
                some = subscriptions[start : start + RECORDS_SLICE]
                keys = [("GET", f"{self._prefix}m:{each.name}") for each in some]
                records += await self._link.commands.ask(*keys)
            with trio.move_on_after(self._timeout):
                await proof.decided.wait()
            if not proof.came:
                if not proof.decided.is_set() and not self._is_paused():
                    self._listener.convict(f"no proof for {self._timeout:g} s")
                raise LinkLost("the proof did not come")
            self.probes.observe(proof.came_at - began)
        finally:
            self._proofs.pop(number, None)
        for subscription, reply in zip(subscriptions, records, strict=True):
            record = parse_record(reply)
            if record is not None and record.ended:
                subscription.ended = record.last
            if subscription.begun:
                subscription.ready.set()

    def _new_proof(self, subscriptions: Sequence[Subscription]) -> tuple[int, _Proof]:
        self._numbers += 1
        proof = self._proofs[self._numbers] = _Proof(subscriptions)
        return self._numbers, proof

    async def _ask(self, number: int) -> None:
        present = int(PRESENCE * self._timeout * 1000)
        await self._link.script("head", self._worker, number, self._now_ms(), present)

    # -- what comes

    async def resume(self) -> None:
        """Ask for the proof up to which a new connection has to catch up."""
        self._resuming, _ = self._new_proof(())
        await self._ask(self._resuming)

    def is_resumed_by(self, payload: bytes) -> bool:
        told = parse_told(payload)
        return told is not None and told.number == self._resuming

    def take(self, told: Told) -> None:
        """A proof has come. Raises LinkLost if something before it has not."""
        proof = self._proofs.pop(told.number, None)
        if proof is None:
            return
        for subscription in proof.subscriptions:
            if not subscription.begin(told.head):
                raise LinkLost(f"a message to {subscription.name} is missing")
        proof.came, proof.came_at = True, trio.current_time()
        proof.decided.set()

    def lost(self) -> None:
        """The connection is gone, and what was to come through it."""
        self._confirmed.clear()
        for proof in self._proofs.values():
            proof.decided.set()
        self._proofs.clear()
