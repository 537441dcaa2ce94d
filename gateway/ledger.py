"""What the workers of a cluster keep together beside events: who has how many streams, who has
published how much, and whose tokens are revoked.

`Ledger` is what a node relies on, wherever it is kept. Its guarantees:

1. *Leases.* A user has ``max_streams_per_user`` streams at the most, over all workers. A stream has
   a lease from before it opens until its end; a lease whose worker is no longer there is void, so
   what a dead one has left locks nobody out.
2. *Rates* are those of `gateway.rates`: exact over time, and at once within a tenth of a second's
   worth for each worker.
3. *Revocations* are kept until they are over, MAX_REVOCATIONS at the most; a `revoke` that returned
   is in every later `load`, by any worker, for as long as what keeps them lasts.
4. Where it cannot be reached, that is Unavailable with the reason "bus" after a bounded wait, and
   never silence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from gateway.config import Config, UserLimit
from gateway.errors import Unavailable
from gateway.rates import Bucket, Rates
from gateway.revocation import (
    MAX_REVOCATIONS,
    Kind,
    Revocation,
    RevocationsFile,
    check,
    too_many,
)

READ_AGAIN_SECONDS = 60.0
"""After which revocations are read again: what is over is forgotten by that, and whoever was not
told of one has it then at the latest."""

Hear = Callable[[Sequence[Revocation]], None]


@dataclass(frozen=True, slots=True)
class LedgerStatistics:
    """A snapshot of one worker's part."""

    leases: int = 0
    """Streams of users that are open here, or about to."""
    releases: int = 0
    """Streams that have ended, which Redis has not been told yet."""
    replaced: int = 0
    """Streams that had to end for another one of their user, wherever they were."""
    unreached: int = 0
    """Of those, whose worker could not be told."""
    buckets: int = 0
    buckets_evicted: int = 0
    revocations: int = 0
    """As of the last `load` or `revoke` of this worker."""


class Ledger(Protocol):
    rates: Rates
    """Of publishers and channels."""
    hear: list[Hear]
    """Called with all revocations, whenever they have been read: at the start, every
    READ_AGAIN_SECONDS, and after each time that a link was lost. What is over is among them no
    more; what was revoked while they were read need not be yet."""

    @property
    def durable(self) -> bool:
        """Whether revocations outlive a restart of this node."""

    @property
    def loaded(self) -> bool:
        """Whether revocations have been read; until then it is not known what is revoked."""

    async def run(self) -> None:
        """Do what there is to do by itself, until cancelled."""

    async def claim(self, user: str, client_id: str) -> Sequence[str]:
        """Have a lease for a stream that is to be opened; the ids of those that are to end for it.

        Raises Unavailable, with the reason "user" if the user has all the streams that one may
        have; then, and when cancelled, there is no lease. Claimed again, the same one is had.
        """

    def release(self, user: str, client_id: str) -> None:
        """A stream that had a lease has ended, or was not opened."""

    async def revoke(self, revocation: Revocation) -> None:
        """Keep a revocation, in the place of an earlier one of the same kind and id.

        Raises Unavailable where it cannot be kept, with the reason "revocations" where there are
        too many, and BadRequest for an id that is too long. Who is connected is not looked at.
        """

    async def load(self) -> Sequence[Revocation]:
        """All revocations that are in force, read anew. Raises Unavailable."""

    def statistics(self) -> LedgerStatistics: ...


def refused(config: Config) -> Unavailable:
    """One stream too many."""
    return Unavailable(
        f"The user has {config.max_streams_per_user} streams, and that is the most"
        " (max_streams_per_user).",
        reason="user",
    )


class MemoryLedger:
    """A `Ledger` of one process. Nothing here waits, but for a file of revocations."""

    def __init__(self, config: Config, now_ms: Callable[[], int]) -> None:
        """Raises ConfigError for a ``revocations_file`` that cannot be used. Blocks for it."""
        self._config = config
        self._now_ms = now_ms
        self._file = RevocationsFile(config.revocations_file) if config.revocations_file else None
        self._writing = trio.Lock()
        read = self._file.read() if self._file is not None else ()
        self._revocations = {(each.kind, each.id): each for each in read}
        self._users: dict[str, dict[str, None]] = {}
        self._leases = self._replaced = 0
        self.rates = Rates(_look)
        self.hear: list[Hear] = []
        self.loaded = False

    @property
    def durable(self) -> bool:
        return self._file is not None

    async def run(self) -> None:
        while True:
            revocations = await self.load()
            for hear in self.hear:
                hear(revocations)
            self.loaded = True
            await trio.sleep(READ_AGAIN_SECONDS)

    # -- streams

    async def claim(self, user: str, client_id: str) -> Sequence[str]:
        held = self._users.setdefault(user, {})
        most = self._config.max_streams_per_user
        if client_id in held:
            return ()
        if len(held) >= most and self._config.user_limit is UserLimit.REFUSE:
            raise refused(self._config)
        ended = tuple(held)[: max(0, len(held) + 1 - most)]
        for each in ended:
            del held[each]
        held[client_id] = None
        self._leases += 1 - len(ended)
        self._replaced += len(ended)
        return ended

    def release(self, user: str, client_id: str) -> None:
        held = self._users.get(user, {})
        if client_id in held:
            del held[client_id]
            self._leases -= 1
            if not held:
                del self._users[user]

    # -- revocations

    async def revoke(self, revocation: Revocation) -> None:
        key = (check(revocation).kind, revocation.id)
        async with self._writing:
            if key not in self._revocations and len(self._revocations) >= MAX_REVOCATIONS:
                await self.load()
                if len(self._revocations) >= MAX_REVOCATIONS:
                    raise too_many()
            if self._file is not None:
                await self._write({**self._revocations, key: revocation})
            self._revocations[key] = revocation

    async def _write(self, revocations: Mapping[tuple[Kind, str], Revocation]) -> None:
        assert self._file is not None
        try:
            await trio.to_thread.run_sync(self._file.write, revocations.values())
        except OSError as error:
            raise Unavailable(
                f"The revocation could not be written to revocations_file: {error.strerror}."
                " It does not hold.",
                reason="revocations",
                outcome="refused",
            ) from error

    async def load(self) -> Sequence[Revocation]:
        now = self._now_ms()
        kept = {key: each for key, each in self._revocations.items() if not each.is_over(now)}
        self._revocations = kept
        return tuple(kept.values())

    def statistics(self) -> LedgerStatistics:
        return LedgerStatistics(
            leases=self._leases,
            replaced=self._replaced,
            buckets=len(self.rates),
            buckets_evicted=self.rates.evicted,
            revocations=len(self._revocations),
        )


async def _look(buckets: Sequence[Bucket]) -> None:
    now = trio.current_time()
    for bucket in buckets:
        bucket.refill(now)
