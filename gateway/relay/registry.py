"""Which token streams there are, and which worker makes each: as all nodes know it.

`Registry` is what a node relies on, wherever it is kept. Its guarantees:

1. *A record* is there from before its stream's first event until ``stream_seconds`` after its last.
2. *A lease* says that a worker makes the stream. It is renewed by the worker while the stream is
   `held` there, and runs out LEASE_SECONDS after the last renewal, as when the worker has died.
   Nobody is found `overdue` whose worker has merely not been able to reach what keeps the leases.
3. *Overdue* streams are given to one worker at a time, and again if that one has died over it.
4. *The fence.* Of a stream that is idempotent `begin` is true for one worker alone, and for none
   after another one has had it restarted.
5. Where it cannot be reached, that is Unavailable with the reason "bus" after a bounded wait.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.relay.record import Record

LEASE_SECONDS = 5.0
RENEWALS = 5
"""Within that time."""

MAX_OVERDUE = 100
"""Streams that are given out at a time."""


@dataclass(frozen=True, slots=True)
class Found:
    record: Record
    owner: str | None
    """The tag of the worker that makes it; None once it has ended, or while nobody does."""


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
        has begun. Raises Conflict where another stream has its channel.
        """

    async def find(self, id: str) -> Found | None: ...

    async def begin(self, id: str) -> bool:
        """The first event that came of the call is about to be published; whether it may be."""

    async def release(self, id: str, seconds: float) -> None:
        """It is held here no more; nobody need miss it for so long (its producer may come back)."""

    async def claim(self, id: str, lost: Callable[[], None]) -> bool:
        """Hold a stream that nobody holds: released, or overdue. False where somebody does, or
        where it has ended."""

    async def finish(self, id: str) -> None:
        """Its last event has been published. To repeat it changes nothing."""

    async def overdue(self) -> Sequence[str]:
        """Streams whose leases have run out; they are this worker's to deal with for
        LEASE_SECONDS, and then anybody's again unless they are finished or claimed."""

    async def restart(self, id: str, lost: Callable[[], None]) -> bytes | None:
        """The request of an overdue stream that is idempotent and has not begun, held here from now
        on; None where it must not be made again."""

    def statistics(self) -> RegistryStatistics: ...
