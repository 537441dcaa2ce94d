"""Which token streams there are, and which worker makes each: as all nodes know it.

`Registry` is what a node relies on, wherever it is kept. Its guarantees:

1. *A record* is there from before its stream's first event until ``stream_seconds`` after its last.
2. *A lease* says that a worker makes the stream. It is renewed by the worker while the stream is
   `held` there, and runs out LEASE_SECONDS after the last renewal, as when the worker has died.
   Nobody is found `overdue` whose worker has not been able to reach what keeps the leases because
   nobody was.
3. *Overdue* streams are given to one worker at a time, and again if that one has died over it.
   One that is pushed counts as released when its worker has died, for ``push_lease``.
4. *The fence.* Of a stream that is idempotent `begin` is true for one worker alone, and for none
   after another one has had it restarted. It is restarted once at the most: a request that ends
   workers does not go from one to the next.
5. Where it cannot be reached, that is Unavailable with the reason "bus" after a bounded wait.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Protocol

import trio

from gateway.config import Config
from gateway.errors import Conflict, Unavailable
from gateway.relay.record import Record

LEASE_SECONDS = 5.0
RENEWALS = 5
"""Within that time."""

MAX_OVERDUE = 100
"""Streams that are given out at a time."""

SWEEP_SECONDS = 10.0
"""Between two looks for records that are over, in memory."""


@dataclass(frozen=True, slots=True)
class Found:
    record: Record
    owner: str | None
    """The tag of the worker that makes it; None once it has ended, or while nobody does."""
    is_over: bool = False
    """Whether its last event has been published."""


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    records: int = 0
    """In this worker's memory; 0 where they are kept elsewhere."""
    evicted: int = 0
    held: int = 0
    renewal_failures: int = 0


class Registry(Protocol):
    async def run(self) -> None:
        """Renew leases, and forget what is over, until cancelled."""

    async def open(self, record: Record, lost: Callable[[], None], request: bytes = b"") -> None:
        """Enter a stream, held here. ``lost`` is called if the lease turns out to be another's.

        ``request`` is what a restart needs, of one that is idempotent; it is kept until the stream
        has begun, unless it is longer than a body may be. Raises Conflict where another stream has
        one of its channels, until that one's record is gone.
        """

    def forget(self, id: str) -> None:
        """Have a stream that is held here, and of which nobody has been told, as if it had never
        been opened: as soon as that can be."""

    async def find(self, id: str) -> Found | None: ...

    async def find_by_channel(self, name: str) -> Found | None:
        """The stream one of whose channels that is."""

    async def begin(self, id: str) -> bool:
        """The first event that came of the call is about to be published; whether it may be."""

    async def release(self, id: str, seconds: float) -> None:
        """It is held here no more; nobody need miss it for so long (its producer may come back)."""

    async def claim(self, id: str, lost: Callable[[], None]) -> bool:
        """Hold a stream that nobody holds: released, or overdue. False where somebody does or
        deals with it, or where it has ended."""

    async def finish(self, id: str) -> None:
        """Its last event has been published, by whomever. To repeat it changes nothing."""

    async def overdue(self) -> Sequence[str]:
        """Streams whose leases have run out; they are this worker's to deal with for
        LEASE_SECONDS, and then anybody's again unless they are finished or claimed."""

    async def restart(self, id: str, lost: Callable[[], None]) -> bytes | None:
        """The request of an overdue stream that is idempotent and has not begun, held here from now
        on; None where it must not be made again. Behind it `begin` is true here."""

    def sure_for(self) -> float:
        """Seconds for which what is held here certainly is nobody else's."""

    def statistics(self) -> RegistryStatistics: ...


def taken(record: Record) -> Conflict:
    """Another token stream has its channel."""
    return Conflict(
        f"The channel {record.channel} is another token stream's; take another one, or wait until"
        " that is forgotten."
    )


class _Entry:
    __slots__ = ("begun", "is_due", "lost", "record", "request", "until_ms")

    def __init__(self, record: Record, lost: Callable[[], None], request: bytes | None) -> None:
        self.record = record
        self.lost: Callable[[], None] | None = lost
        """None while nobody holds the stream."""
        self.request = request
        self.begun = False
        self.is_due = False
        """It has been found overdue, and nobody has claimed it since."""
        self.until_ms = 0
        """When a stream that nobody holds is overdue, or the record of one that has ended gone."""


class MemoryRegistry:
    """A `Registry` of one process. Nothing here waits; ``now_ms`` is its clock.

    There are at most ``max_channels`` records. More take the place of the oldest that have ended,
    then of the oldest.
    """

    def __init__(self, config: Config, worker: str, now_ms: Callable[[], int]) -> None:
        self._config = config
        self._worker = worker
        self._now_ms = now_ms
        self._open: OrderedDict[str, _Entry] = OrderedDict()
        """By id; in the order of their opening."""
        self._left: dict[str, _Entry] = {}
        """Those of them that nobody holds."""
        self._over: OrderedDict[str, _Entry] = OrderedDict()
        """In the order of their end."""
        self._channels: dict[str, str] = {}
        self._evicted = 0

    async def run(self) -> None:
        while True:
            self._sweep()
            await trio.sleep(SWEEP_SECONDS)

    async def open(self, record: Record, lost: Callable[[], None], request: bytes = b"") -> None:
        self._sweep()
        names = {record.channel, record.raw}
        if record.id in self._open or record.id in self._over or names & self._channels.keys():
            raise taken(record)
        while len(self._open) + len(self._over) >= self._config.max_channels:
            if not self._over:
                raise Unavailable(
                    "As many token streams are being made as can be remembered (max_channels)."
                )
            self._evict()
        is_kept = record.idempotent and len(request) <= self._config.max_body_bytes
        self._open[record.id] = _Entry(record, lost, request if is_kept else None)
        self._channels |= dict.fromkeys(names, record.id)

    def forget(self, id: str) -> None:
        entry = self._open.get(id)
        if entry is not None and entry.lost is not None:
            del self._open[id]
            self._free(entry)

    async def find(self, id: str) -> Found | None:
        self._sweep()
        entry = self._open.get(id) or self._over.get(id)
        if entry is None:
            return None
        owner = self._worker if entry.lost is not None else None
        return Found(entry.record, owner, is_over=id in self._over)

    async def find_by_channel(self, name: str) -> Found | None:
        id = self._channels.get(name)
        return await self.find(id) if id is not None else None

    async def begin(self, id: str) -> bool:
        entry = self._open.get(id)
        if entry is None or entry.lost is None:
            return False
        entry.begun, entry.request = True, None
        return True

    async def release(self, id: str, seconds: float) -> None:
        entry = self._open.get(id)
        if entry is not None and entry.lost is not None:
            entry.lost = None
            entry.until_ms = self._now_ms() + int(seconds * 1000)
            self._left[id] = entry

    async def claim(self, id: str, lost: Callable[[], None]) -> bool:
        entry = self._left.pop(id, None)
        if entry is None:
            return False
        entry.lost = lost
        entry.is_due = False
        return True

    async def finish(self, id: str) -> None:
        entry = self._open.pop(id, None)
        if entry is not None:
            self._left.pop(id, None)
            entry.lost = entry.request = None
            entry.until_ms = self._now_ms() + int(self._config.stream_seconds * 1000)
            self._over[id] = entry

    async def overdue(self) -> Sequence[str]:
        now = self._now_ms()
        due = (id for id, entry in self._left.items() if entry.until_ms <= now)
        ids = list(islice(due, MAX_OVERDUE))
        for id in ids:
            entry = self._left[id] = self._left.pop(id)  # behind those that have not been given out
            entry.until_ms = now + int(LEASE_SECONDS * 1000)
            entry.is_due = True
        return ids

    async def restart(self, id: str, lost: Callable[[], None]) -> bytes | None:
        entry = self._left.get(id)
        if entry is None or entry.begun or entry.request is None:
            return None
        if not entry.is_due and entry.until_ms > self._now_ms():
            return None
        request = entry.request
        entry.begun, entry.request = True, None
        await self.claim(id, lost)
        return request

    def sure_for(self) -> float:
        return inf

    def statistics(self) -> RegistryStatistics:
        return RegistryStatistics(
            records=len(self._open) + len(self._over),
            evicted=self._evicted,
            held=len(self._open) - len(self._left),
        )

    # -- forgetting

    def _sweep(self) -> None:
        now = self._now_ms()
        while self._over and next(iter(self._over.values())).until_ms <= now:
            self._free(self._over.popitem(last=False)[1])

    def _evict(self) -> None:
        """Forget the one that has ended first."""
        self._free(self._over.popitem(last=False)[1])
        self._evicted += 1

    def _free(self, entry: _Entry) -> None:
        for name in (entry.record.channel, entry.record.raw):
            self._channels.pop(name, None)
