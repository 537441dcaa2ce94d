"""The ledger of many nodes, in the Redis that links them: leases, rates, and revocations.

Revocations are read whole when a link is made, each time that it is made again, and now and then:
whoever had no link to hear through has not been told.
"""

from collections.abc import Callable, Sequence

import hiredis
import trio

from gateway.bus.commands import Commands
from gateway.bus.history import RETRY_SECONDS
from gateway.bus.leases import Leases
from gateway.bus.resp import Argument, LinkLost, Reply, code, must
from gateway.bus.scripts import evalsha
from gateway.bus.spending import Spending
from gateway.config import Config
from gateway.errors import Unavailable
from gateway.ledger import READ_AGAIN_SECONDS, Hear, LedgerStatistics
from gateway.revocation import MAX_REVOCATIONS, Kind, Revocation, check, too_many

PAGE = 1000
"""Revocations read, and forgotten, in one go."""


class RedisLedger:
    """A `gateway.ledger.Ledger`. ``now_ms`` stands for Redis's clock in tests; 0 is that clock."""

    def __init__(
        self,
        config: Config,
        commands: Commands,
        *,
        worker: str,
        replace: Callable[[Sequence[str]], None],
        now_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """``replace``: see `Leases`."""
        self._commands = commands
        self._prefix = config.redis_prefix
        self._now_ms = now_ms
        self._patience = config.publish_wait + config.redis_timeout
        self._leases = Leases(config, commands, worker=worker, replace=replace, now_ms=now_ms)
        self._spending = Spending(config, commands, now_ms)
        self._revocations = 0
        self._rest = trio.CancelScope()
        """Until revocations are read again; cancelled, that is at once."""
        self.claim = self._leases.claim
        self.release = self._leases.release
        self.rates = self._spending.rates
        self.hear: list[Hear] = []
        self.loaded = False

    @property
    def durable(self) -> bool:
        return True

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leases.run)
            nursery.start_soon(self._spending.run)
            nursery.start_soon(self._tell_revocations)

    async def _tell_revocations(self) -> None:
        while True:
            await self._commands.wait_connected()
            losses = self._commands.losses
            self._rest = trio.CancelScope()
            try:
                revocations = await self._read()
            except LinkLost:
                await trio.sleep(RETRY_SECONDS)
                continue
            for hear in self.hear:
                hear(revocations)
            self.loaded = True
            self._rest.deadline = trio.current_time() + READ_AGAIN_SECONDS
            with self._rest:
                await self._commands.wait_lost(losses)

    def read_again(self) -> None:
        """Something that was told to this worker may not have come."""
        self._rest.cancel()

    async def revoke(self, revocation: Revocation) -> None:
        until = "-" if check(revocation).until_ms is None else revocation.until_ms
        field = f"{revocation.kind}:{revocation.id}"
        with trio.move_on_after(self._patience):
            while True:
                await self._commands.wait_connected()
                try:
                    await self._forget(field, revocation.at_ms, until or 0)
                except LinkLost:
                    await trio.sleep(RETRY_SECONDS)
                else:
                    self._revocations += 1
                    return
        raise Unavailable(
            "The link to Redis is lost: the revocation may have been kept or not. Repeat it.",
            reason="bus",
            outcome="unknown",
        )

    async def load(self) -> Sequence[Revocation]:
        with trio.move_on_after(self._patience):
            while True:
                await self._commands.wait_connected()
                try:
                    return await self._read()
                except LinkLost:
                    await trio.sleep(RETRY_SECONDS)
        raise Unavailable("The link to Redis is lost; come back later.", reason="bus")

    async def _forget(self, *kept: Argument) -> int:
        """Forget some of what is over, and keep one more; how many were forgotten."""
        reply = await self._commands.call(
            *evalsha("revoke", self._prefix), self._now_ms(), MAX_REVOCATIONS, *kept
        )
        if isinstance(reply, hiredis.ReplyError) and code(reply) == "FULL":
            raise too_many()
        return int(must(reply))

    async def _read(self) -> Sequence[Revocation]:
        while await self._forget() == PAGE:
            pass
        found: dict[bytes, Revocation] = {}
        cursor: Reply = b"0"
        while True:
            key = f"{self._prefix}revoked"
            (reply,) = await self._commands.ask(("HSCAN", key, cursor, "COUNT", PAGE))
            cursor, pairs = must(reply)
            for field, value in zip(pairs[::2], pairs[1::2], strict=True):
                found[field] = _revocation(field, value)  # page by page: all at once take long
            if int(cursor) == 0:
                break
        self._revocations = len(found)
        return list(found.values())

    def statistics(self) -> LedgerStatistics:
        return LedgerStatistics(
            leases=len(self._leases.held),
            releases=len(self._leases.ended),
            replaced=self._leases.replaced,
            buckets=len(self.rates),
            buckets_evicted=self._spending.evicted,
            revocations=self._revocations,
        )


def _revocation(field: bytes, value: bytes) -> Revocation:
    kind, _, id = field.decode().partition(":")
    at, until = value.decode().split(" ")
    return Revocation(Kind(kind), id, int(at), None if until == "-" else int(until))
