"""The registry of many nodes, in the Redis that links them.

1. What one worker asks is one call of a script, so that two never have the same stream. A call
   whose reply was lost is made again, and answered the same.
2. Each worker renews all that it holds several times within a lease, and at once when its link has
   come back; what turns out to be another's by then is lost. What Redis has lost is entered anew:
   whoever makes the stream is to find out what became of its events, and to tell its viewers.
3. After a break of its link a worker takes nobody for dead for GRACE_SECONDS: others had the same
   break, and must be able to renew first. It counts as a break when Redis takes no writes, or the
   worker itself stood still.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import msgspec
import trio

from gateway.bus.commands import Commands
from gateway.bus.history import RETRY_SECONDS
from gateway.bus.resp import Argument, LinkLost, Reply, must
from gateway.bus.scripts import evalsha
from gateway.config import HOUR, Config
from gateway.errors import Unavailable
from gateway.relay.record import Record
from gateway.relay.registry import (
    LEASE_SECONDS,
    MAX_OVERDUE,
    RENEWALS,
    Found,
    RegistryStatistics,
    taken,
)

GRACE_SECONDS = 2 * LEASE_SECONDS

BATCH = 200
"""Leases renewed in one go: about a millisecond of Redis."""

KEPT_SECONDS = HOUR
"""That a record outlives the last worker that might have dealt with it, at the least."""

TOUCHES = 6
"""Times that a record is kept for longer, within the time for which it is."""

RENEWED, UNKNOWN = 1, -1
"""Answered of a lease; UNKNOWN where there is no record."""

MAX_FORGOTTEN = 1000
"""Streams that have come to nothing, of which Redis may hold a record, and is to be told. More are
left to whoever finds their leases overdue."""


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    record: bytes
    """As Redis has it."""
    lost: Callable[[], None]


_decoder = msgspec.json.Decoder(Record)


def _decode(record: bytes) -> Record:
    try:
        return _decoder.decode(record)
    except msgspec.DecodeError:
        raise Unavailable(
            "The record of the token stream is of another version of the gateway.", reason="version"
        ) from None


class RedisRegistry:
    """A `gateway.relay.registry.Registry`. ``now_ms`` stands for Redis's clock in tests; 0 is that
    clock."""

    def __init__(
        self,
        config: Config,
        commands: Commands,
        *,
        worker: str,
        now_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """``worker`` is a tag of this process alone."""
        self._config = config
        self._commands = commands
        self._prefix = config.redis_prefix
        self._worker = worker
        self._now_ms = now_ms
        self._patience = config.publish_wait + config.redis_timeout
        self._kept = max(config.stream_seconds, KEPT_SECONDS)
        self._held: dict[str, _Held] = {}
        self._releasing: dict[str, trio.Event] = {}
        self._to_forget: dict[str, None] = {}
        self._touched_at = self._renewed_at = -inf
        self._unbroken_since: float | None = None
        self._renewal_failures = 0
        self._rest = trio.CancelScope()
        """Until leases are renewed again; cancelled, that is at once."""

    # -- leases

    async def run(self) -> None:
        while True:
            self._unbroken_since = None
            await self._commands.wait_connected()
            losses = self._commands.losses
            while self._commands.losses == losses:
                try:
                    await self._renew()
                except LinkLost:
                    self._unbroken_since = None
                    self._renewal_failures += 1
                with trio.move_on_after(LEASE_SECONDS / RENEWALS) as self._rest:
                    await self._commands.wait_lost(losses)

    async def _renew(self) -> None:
        began = trio.current_time()
        touches = began >= self._touched_at + self._kept / TOUCHES
        ids = list(self._held)
        for start in range(0, max(len(ids), 1), BATCH):
            await self._commands.room()  # what is held now is when the call is sent
            some = {id: self._held[id] for id in ids[start : start + BATCH] if id in self._held}
            answers = await self._ask("renew", int(touches), *some)
            for (id, held), answer in zip(some.items(), answers, strict=True):
                is_ours = answer == RENEWED or (
                    answer == UNKNOWN and self._may_enter_anew(began) and await self._enter(held)
                )
                if not is_ours and self._held.get(id) is held:
                    del self._held[id]
                    held.lost()
        if touches:
            self._touched_at = began
        now = trio.current_time()
        if self._unbroken_since is None or self._stood_still(now):
            self._unbroken_since = now
        self._renewed_at = began
        for id in tuple(self._to_forget):
            await self._ask("forget", id)
            self._to_forget.pop(id, None)

    def _may_enter_anew(self, now: float) -> bool:
        """Whether a record that is not there cannot have ended at another worker and expired."""
        return now - self._renewed_at < self._config.stream_seconds

    async def _enter(self, held: _Held) -> bool:
        try:
            record = _decode(held.record)
        except Unavailable:
            return False
        if self._held.get(record.id) is not held:  # it has ended meanwhile
            return False
        names = (record.channel, record.raw)
        return bool(await self._ask("open", record.id, held.record, *names, 0, b""))

    def _stood_still(self, now: float) -> bool:
        """For so long that others may have taken what is held here, or may not have renewed."""
        return now - self._renewed_at > LEASE_SECONDS

    async def overdue(self) -> Sequence[str]:
        now = trio.current_time()
        since = self._unbroken_since
        if since is None or now - since < GRACE_SECONDS or self._stood_still(now):
            return ()
        patience = int(self._config.push_lease * 1000)
        given = await self._patiently("overdue", MAX_OVERDUE, patience)
        return [id for each in given if (id := each.decode()) not in self._held]

    # -- one stream

    async def open(self, record: Record, lost: Callable[[], None], request: bytes = b"") -> None:
        encoded = msgspec.json.encode(record)
        is_kept = record.idempotent and len(request) <= self._config.max_body_bytes
        known = False
        try:
            is_opened = await self._patiently(
                "open",
                record.id,
                encoded,
                record.channel,
                record.raw,
                int(is_kept),
                request if is_kept else b"",
            )
            known = True
        finally:
            if not known:
                self.forget(record.id)
        if not is_opened:
            raise taken(record)
        self._held[record.id] = _Held(encoded, lost)

    def forget(self, id: str) -> None:
        self._held.pop(id, None)
        if len(self._to_forget) < MAX_FORGOTTEN:
            self._to_forget[id] = None
            self._rest.cancel()

    async def find(self, id: str) -> Found | None:
        fields = ("record", "owner", "over")
        found = await self._try_until_answered("HMGET", f"{self._prefix}t:{id}", *fields)
        record, owner, over = found
        if record is None:
            return None
        tag = owner.decode() if owner is not None else None
        return Found(_decode(record), tag, is_over=over is not None)

    async def find_by_channel(self, name: str) -> Found | None:
        id = await self._try_until_answered("GET", f"{self._prefix}o:{name}")
        return await self.find(id.decode()) if id is not None else None

    async def begin(self, id: str) -> bool:
        return bool(await self._patiently("begin", id))

    async def release(self, id: str, seconds: float) -> None:
        self._held.pop(id, None)
        released = self._releasing[id] = trio.Event()
        try:
            await self._patiently("release", id, int(seconds * 1000))
        finally:
            if self._releasing.get(id) is released:
                del self._releasing[id]
            released.set()

    async def _released(self, id: str) -> None:
        """Return when no call is under way that would release what is held behind it."""
        while (released := self._releasing.get(id)) is not None:
            await released.wait()

    async def claim(self, id: str, lost: Callable[[], None]) -> bool:
        await self._released(id)
        if id in self._held:
            return False
        record = await self._patiently("claim", id)
        if record is None or id in self._held:
            return False
        self._held[id] = _Held(record, lost)
        return True

    async def finish(self, id: str) -> None:
        self._held.pop(id, None)
        await self._patiently("finish", id, int(self._config.stream_seconds * 1000))

    async def restart(self, id: str, lost: Callable[[], None]) -> bytes | None:
        await self._released(id)
        if id in self._held:
            return None
        told: list[bytes] | None = await self._patiently("restart", id)
        if told is None or id in self._held:
            return None
        record, request = told
        self._held[id] = _Held(record, lost)
        return request

    def sure_for(self) -> float:
        return self._renewed_at + LEASE_SECONDS - trio.current_time()

    def statistics(self) -> RegistryStatistics:
        return RegistryStatistics(held=len(self._held), renewal_failures=self._renewal_failures)

    # -- the link

    def _call(self, what: str, *arguments: Argument) -> tuple[Argument, ...]:
        return (
            *evalsha("streams", self._prefix),
            what,
            self._now_ms(),
            self._worker,
            int(LEASE_SECONDS * 1000),
            int(self._kept * 1000),
            *arguments,
        )

    async def _ask(self, what: str, *arguments: Argument) -> Reply:
        return must(await self._commands.call(*self._call(what, *arguments)))

    async def _patiently(self, what: str, *arguments: Argument) -> Reply:
        return await self._try_until_answered(*self._call(what, *arguments))

    async def _try_until_answered(self, *command: Argument) -> Reply:
        why = "the link is lost"
        with trio.move_on_after(self._patience):
            while True:
                await self._commands.wait_connected()
                try:
                    return must(await self._commands.call(*command))
                except LinkLost as error:
                    why = str(error)
                    await trio.sleep(RETRY_SECONDS)
        raise Unavailable(
            f"What is known of token streams cannot be had from Redis: {why[:200]}.", reason="bus"
        )
