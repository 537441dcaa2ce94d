"""What comes in from Redis, and what that proves.

`Listener` brings messages; here they become frames for the sink, in position order, each once. Up
to ``proven`` everything of the subscriptions that have begun was passed on: the last message, or
the last proof.

1. A message that names a later event before it than the last that came shows a hole: the link is
   given up, and what is missing is read from history like after any other lost link.
2. A proof is a message to this worker alone with the clock of Redis: all that was published up to
   there came before it. A subscription begins with a proof asked for after its confirmation.
3. A break that Redis has recorded is told to the clients between what came before and after it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from gateway.bus import Sink, TellGap, wire
from gateway.bus.epoch import fields, parse_epoch
from gateway.bus.history import MOST_FRAMES, SLICE, HistoryReader, cut, parse_record
from gateway.bus.link import Link
from gateway.bus.listener import Listener, Message
from gateway.bus.merge import ROUND_FRAMES, Round
from gateway.bus.resp import Connection, LinkLost, Reply
from gateway.bus.subscriptions import Subscription, Subscriptions
from gateway.config import Config
from gateway.control import Gap
from gateway.errors import Unavailable
from gateway.event import Frame
from gateway.position import ZERO, Position

_log = logging.getLogger(__name__)

PROOFS = 5
"""Proofs asked for within the time after which a link counts as dead."""

RETRY_SECONDS = 0.05
"""Until the next try, where no proof could be had."""

MESSAGES_PER_TURN = 128
"""Between two checkpoints: about half a millisecond."""

PRESENCE = 2
"""Times the time after which a link counts as dead, for which a worker counts as being there after
its last proof."""

RECORDS_SLICE = 500
"""Channels asked about in one go."""

OVERRUN_SECONDS = 60.0
OVERRUNS = 3
"""Links lost while the fan-out made Redis wait, in that time, after which the node is not ready."""


@dataclass(slots=True)
class Proof:
    """One that was asked for, the subscriptions that begin with it, and whether it has come."""

    subscriptions: Sequence[Subscription]
    decided: trio.Event = field(default_factory=trio.Event)
    came: bool = False


class Inflow:
    """The owner of a `Listener`."""

    def __init__(
        self,
        config: Config,
        link: Link,
        subscriptions: Subscriptions,
        reader: HistoryReader,
        sink: Sink,
        *,
        worker: str,
        tell_gap: TellGap,
        receive: Callable[[bytes], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._link = link
        self._subscriptions = subscriptions
        self._reader = reader
        self._sink = sink
        self._worker = worker
        self._tell_gap = tell_gap
        self._receive = receive
        self._now_ms = now_ms
        self._timeout = config.redis_timeout
        self._prefix = config.redis_prefix
        own = [f"{config.redis_prefix}{name}" for name in (f"p:{worker}", f"w:{worker}", "all")]
        self._proof_channel, *self._own_channels = (each.encode() for each in own)
        self._listener = Listener(link.dial, self, subscriptions, own, timeout=self._timeout)
        self._proofs: dict[int, Proof] = {}
        self._resuming = 0
        self._numbers = 0
        self._confirmed: list[Subscription] = []
        self._asked: list[trio.Event] = []
        self._wake = trio.Event()
        self._told_broken: Position | None = None
        self._delivered = ZERO
        self._multi: tuple[Position, int] | None = None
        """An event of several channels, and for how many of them it has yet to come."""
        self._turns = 0
        self._paused = False
        self._is_late = False
        """It has paused since the last proof: what is read was sent a while ago."""
        self._overrun_at: list[float] = []
        self.proven = ZERO
        self.holes = self.unreadable = self.overruns = 0

    @property
    def is_live(self) -> bool:
        return self._listener.is_live

    @property
    def losses(self) -> int:
        return self._listener.losses

    @property
    def ready(self) -> bool:
        """Whether it has been linked, and keeps up with what comes."""
        since = trio.current_time() - OVERRUN_SECONDS
        self._overrun_at = [at for at in self._overrun_at if at > since]
        return self.proven != ZERO and len(self._overrun_at) < OVERRUNS

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listener.run)
            nursery.start_soon(self._keep_proving)

    def subscribe_wanted(self) -> None:
        """Have SUBSCRIBE sent for what is newly wanted."""
        if wanted := self._subscriptions.wanted:
            self._subscriptions.wanted = []
            self._listener.subscribe(wanted)

    def unsubscribe_overdue(self) -> None:
        if self._multi is None:  # else one of them may be counted on
            self._listener.unsubscribe(self._subscriptions.overdue())

    # -- proofs

    async def prove(self) -> None:
        """Return when a position has been proven that was read from now on."""
        came = trio.Event()
        self._asked.append(came)
        self._wake.set()
        await came.wait()

    async def _keep_proving(self) -> None:
        """A proof whenever somebody waits for one, and now and then to watch the links."""
        watch_at = trio.current_time() + self._timeout / PROOFS
        while True:
            with trio.move_on_at(watch_at):
                await self._wake.wait()
            self._wake = trio.Event()
            await self._listener.wait_live()
            asked, self._asked = self._asked, []
            confirmed = [each for each in self._confirmed if each.confirmed]
            self._confirmed = []
            try:
                if trio.current_time() >= watch_at:
                    watch_at = trio.current_time() + self._timeout / PROOFS
                    await self._watch()
                await self._prove(confirmed)
            except LinkLost:
                self._asked += asked
                self._confirmed += [each for each in confirmed if not each.ready.is_set()]
                self._wake.set()
                await trio.sleep(RETRY_SECONDS)
                await self._link.commands.wait_connected()
            else:
                for came in asked:
                    came.set()

    async def _watch(self) -> None:
        """Give the links up where they lead to another Redis by now, or one that was demoted."""
        role, server, stats = await self._link.commands.calls(
            ("ROLE",), ("INFO", "server"), ("INFO", "stats")
        )
        run_id = fields(server)[b"run_id"].decode()
        if role[0] != b"master" or run_id != self._link.run_id:
            self._link.commands.convict("it no longer leads to the primary")
            self._listener.convict("it no longer leads to the primary")
            raise LinkLost("this is no longer the primary")
        await self._link.watch_evicted(stats)

    async def _prove(self, subscriptions: Sequence[Subscription]) -> None:
        """Have a position proven that is read from now on, and ``subscriptions`` begin with it."""
        number, proof = self._new_proof(subscriptions)
        try:
            await self._ask_for_proof(number)
            records: list[Reply] = []
            for start in range(0, len(subscriptions), RECORDS_SLICE):
                some = subscriptions[start : start + RECORDS_SLICE]
                keys = [("GET", f"{self._prefix}m:{each.name}") for each in some]
                records += await self._link.commands.calls(*keys)
            with trio.move_on_after(self._timeout):
                await proof.decided.wait()
            if not proof.came:
                if not proof.decided.is_set() and not self._paused:
                    self._listener.convict(f"no proof for {self._timeout:g} s")
                raise LinkLost("the proof did not come")
        finally:
            self._proofs.pop(number, None)
        for subscription, reply in zip(subscriptions, records, strict=True):
            record = parse_record(reply)
            if record is not None and record.ended:
                subscription.ended = record.last
            if subscription.begun:
                subscription.ready.set()

    def _new_proof(self, subscriptions: Sequence[Subscription]) -> tuple[int, Proof]:
        self._numbers += 1
        proof = self._proofs[self._numbers] = Proof(subscriptions)
        return self._numbers, proof

    async def _ask_for_proof(self, number: int) -> None:
        present = int(PRESENCE * self._timeout * 1000)
        await self._link.script("head", self._worker, number, self._now_ms(), present)

    # -- as the listener's owner

    async def check(self, connection: Connection) -> None:
        await self._link.check(connection)

    async def resume(self) -> None:
        self._resuming, _ = self._new_proof(())
        await self._ask_for_proof(self._resuming)

    def is_proof(self, channel: bytes, payload: bytes) -> bool:
        return channel == self._proof_channel and _number(payload) == self._resuming

    def confirmed(self, subscription: Subscription) -> None:
        if not subscription.ready.is_set():
            self._confirmed.append(subscription)
            self._wake.set()

    def lost(self) -> None:
        if self._is_late:
            self._overrun_at.append(trio.current_time())
            self.overruns += 1
        self._paused = self._is_late = False
        self._confirmed.clear()
        for proof in self._proofs.values():
            proof.decided.set()
        self._proofs.clear()
        for subscription in self._subscriptions:
            if not subscription.ready.is_set():
                subscription.forget()

    async def catch_up(self, payload: bytes) -> None:
        """The barrier: everything that was missed, before anything later."""
        head = self._learn(payload)
        await self._tell_break()
        if self.proven != ZERO:
            await self._merge(head)
        self.proven = max(self.proven, head)
        self._multi = None

    async def _merge(self, head: Position) -> None:
        begun = {each.name: each for each in self._subscriptions if each.begun}
        names = list(begun)
        share = max(1, min(MOST_FRAMES, ROUND_FRAMES // max(1, len(names))))
        while names and self.proven < head:
            part = Round(head)
            gone: dict[str, Position] = {}
            for start in range(0, len(names), SLICE):
                some = names[start : start + SLICE]
                pages = await self._reader.read_many(some, self.proven, share)
                for name, page in zip(some, pages, strict=True):
                    page = cut(page, part.until)
                    part.add(page)
                    if page.previous > max(begun[name].last, self.proven):
                        gone[name] = page.previous
            await self._tell_gone(begun, {n: at for n, at in gone.items() if at <= part.until})
            for frame in part.frames():
                for name in frame.channels:
                    if (subscription := begun.get(name)) and frame.position > subscription.last:
                        subscription.take(frame)
                await self._pass_on(frame)
                await self._turn()
            for subscription in begun.values():
                subscription.last = max(subscription.last, part.until)
            self.proven = part.until

    async def _tell_gone(
        self, begun: Mapping[str, Subscription], gone: Mapping[str, Position]
    ) -> None:
        for name, previous in gone.items():
            begun[name].start(previous)
        if gone:
            await self._tell_gap(gone, max(gone.values()), Gap.TRIMMED)

    async def take(self, messages: Sequence[Message]) -> None:
        by_channel, sink = self._subscriptions.by_channel, self._sink
        for turn, (_, channel, payload) in enumerate(messages, 1):
            if not turn % MESSAGES_PER_TURN:
                await trio.lowlevel.checkpoint()
            subscription = by_channel.get(channel)
            if subscription is None or not subscription.confirmed:
                await self._take_other(channel, payload)
                continue
            try:
                frame, identifier, before = wire.decode(payload, subscription.names)
            except wire.Unreadable as error:
                await self._skip(subscription, error)
                continue
            position = frame.position
            if before == subscription.last_text or self._follows(subscription, position, before):
                subscription.take(frame)
                subscription.last_text = identifier
            if self._multi is not None or len(frame.channels) > 1:
                if position > self.proven and not self._is_whole(frame):
                    continue
                wanted = any(map(self._is_wanted, frame.channels))
            else:
                wanted = subscription.claims > 0
            if wanted and position > self._delivered:
                if sink.has_room(len(frame.chunk)):
                    sink.deliver(frame)
                    self._delivered = position
                else:
                    await self._pass_on(frame)
            if position > self.proven:
                self.proven = position

    def _follows(self, subscription: Subscription, position: Position, before: bytes) -> bool:
        """Whether a message is new, and nothing is missing before it; raises LinkLost if it is."""
        last = subscription.last
        if position <= last:
            return False
        previous = wire.position_of(before)
        if not subscription.begun and last == ZERO:
            subscription.start(previous)
            return True
        if previous <= last or (previous <= self.proven and wire.is_known_empty(before)):
            return True
        raise self._hole(subscription.name)

    def _is_whole(self, frame: Frame) -> bool:
        """Whether an event of several channels has come for all that are subscribed to: only then
        do their rings hold it, and it counts as come."""
        if self._multi is None:
            subscribed = map(self._subscriptions.get, frame.channels)
            left = sum(each is not None and each.confirmed for each in subscribed)
            self._multi = frame.position, left
        position, left = self._multi
        if position != frame.position:
            raise self._hole(frame.channels[0])
        self._multi = (position, left - 1) if left > 1 else None
        return self._multi is None

    def _is_wanted(self, name: str) -> bool:
        subscription = self._subscriptions.get(name)
        return subscription is not None and subscription.claims > 0

    def _hole(self, name: str) -> LinkLost:
        self.holes += 1
        return LinkLost(f"a message to {name} is missing")

    async def _take_other(self, channel: bytes, payload: bytes) -> None:
        """A proof, a word from another worker, or an event that nobody wants any more."""
        if channel == self._proof_channel:
            head = self._learn(payload)
            self._is_late = False
            await self._tell_break()
            if self._multi is not None:
                raise self._hole("one of an event's channels")
            self.proven = max(self.proven, head)
            proof = self._proofs.pop(_number(payload), None)
            if proof is not None:
                for subscription in proof.subscriptions:
                    if not subscription.begin(head):
                        raise self._hole(subscription.name)
                proof.came = True
                proof.decided.set()
        elif channel in self._own_channels:
            self._receive(payload)

    async def _skip(self, subscription: Subscription, error: wire.Unreadable) -> None:
        """A message of a later version of this program: what it says is missed, and told."""
        self.unreadable += 1
        if error.position is not None and error.position > subscription.last:
            subscription.start(error.position)
            await self._tell_gap((subscription.name,), error.position, Gap.UNKNOWN)
            self.proven = max(self.proven, error.position)

    async def _pass_on(self, frame: Frame) -> None:
        """Give a frame to the sink, when that has room, unless it has it."""
        if frame.position <= self._delivered:
            return
        size = len(frame.chunk)
        while not self._sink.has_room(size):
            self._paused = self._is_late = True
            with suppress(Unavailable):  # a publisher is refused then; what is live waits
                await self._sink.room(size)
        self._paused = False
        self._sink.deliver(frame)
        self._delivered = frame.position

    async def _turn(self) -> None:
        """Let everybody else have a turn now and then."""
        self._turns += 1
        if not self._turns % MESSAGES_PER_TURN:
            await trio.lowlevel.checkpoint()

    def _learn(self, payload: bytes) -> Position:
        """H of a proof; what it says of the epoch is noted."""
        head, _, run, *epoch = payload.split(b" ")
        if run.decode() != self._link.run_id:
            self._link.commands.convict("another Redis answers")
            raise LinkLost("the proof is of another Redis")
        self._link.learn(parse_epoch(epoch))
        return wire.position_of(head)

    async def _tell_break(self) -> None:
        broken = self._link.epoch.broken
        if self._told_broken is not None and broken > self._told_broken:
            await self._tell_gap(None, broken, Gap.RESTARTED)
        self._told_broken = broken


def _number(payload: bytes) -> int:
    return int(payload.split(b" ", 2)[1])
