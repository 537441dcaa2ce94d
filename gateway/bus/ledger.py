"""The ledger of many nodes, in the Redis that links them.

1. A lease is entered, and what it replaces is found, in one call of a script, together with all
   others that wait. What has ended is told before, again until Redis has heard it. Each worker
   renews its own leases now and then, and whenever the link was lost: Redis may have lost them, or
   taken the worker for gone; what a call has replaced whose reply was lost is found then.
2. Of a rate a worker spends on credit and tells soon after. Where Redis cannot be told, nobody is
   refused for his rate: then nothing is published either.
3. Revocations are read whole when the link is made, and each time that it is made again.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import hiredis
import trio

from gateway.bus.commands import Commands
from gateway.bus.history import RETRY_SECONDS
from gateway.bus.resp import Argument, LinkLost, Reply, code
from gateway.bus.scripts import DIGESTS
from gateway.config import Config, UserLimit
from gateway.errors import Unavailable
from gateway.ledger import Hear, LedgerStatistics, refused
from gateway.names import user_channel
from gateway.rates import MAX_BUCKETS, Bucket, Rates
from gateway.revocation import MAX_REVOCATIONS, Kind, Revocation, check, too_many

LEASE_SECONDS = 300.0
"""That a lease lasts unless it is renewed. No short time: what a dead worker has left is void much
sooner, and to renew 50,000 leases takes Redis a quarter of a second."""

RENEWALS = 3
"""Within that time."""

RENEW_AGAIN_SECONDS = 1.0
"""Until the next try, where Redis refused."""

BATCH = 100
"""Leases claimed or renewed, ends told or buckets looked at in one go: under a millisecond."""

MAX_RELEASES = 100_000
"""Streams that have ended and of which Redis has not been told; with more no lease is had."""

TELL_SECONDS = 0.05
"""After which Redis is told what was spent."""

PAGE = 1000
"""Revocations read, and forgotten, in one go."""


REFUSED, FOREIGN = 0, -1
"""Answered to a claim: one too many; and something that is none of ours is in the user's place."""


class _Claim:
    __slots__ = ("answer", "answered", "channel", "client_id")

    def __init__(self, channel: str, client_id: str) -> None:
        self.channel = channel
        self.client_id = client_id
        self.answer: list[Reply] | None = None
        self.answered = trio.Event()


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
        """``replace`` is told of streams that must end for younger ones, and that no `claim` told:
        workers that did not see each other had let in too many."""
        self._config = config
        self._commands = commands
        self._prefix = config.redis_prefix
        self._worker = worker
        self._replace = replace
        self._now_ms = now_ms
        self._patience = config.publish_wait + config.redis_timeout
        self._held: dict[str, tuple[str, int]] = {}
        """Channel of the user and ms of the opening, by client id."""
        self._ended: dict[str, str] = {}
        """Channel of the user by client id."""
        self._claims: dict[_Claim, None] = {}
        self._has_news = trio.Event()
        self._owing: dict[Bucket, None] = {}
        """To be looked at with the next round."""
        self._owes = trio.Event()
        self._hurry = trio.Event()
        self._looked = trio.Event()
        """Set at the end of the next round."""
        self._replaced = self._revocations = self._forgotten = 0
        self.rates = Rates(self._look, self._note)
        self.hear: list[Hear] = []
        self.loaded = False

    @property
    def durable(self) -> bool:
        return True

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_up)
            nursery.start_soon(self._tell_streams)
            nursery.start_soon(self._tell_spent)

    async def _keep_up(self) -> None:
        """Read revocations and renew leases, with each new link and now and then."""
        while True:
            await self._commands.wait_connected()
            losses = self._commands.losses
            try:
                revocations = await self._read()
            except LinkLost:
                await trio.sleep(RETRY_SECONDS)
                continue
            for hear in self.hear:
                hear(revocations)
            self.loaded = True
            while losses == self._commands.losses:
                due = LEASE_SECONDS / RENEWALS
                try:
                    await self._renew()
                except LinkLost:  # or Redis takes no writes just now
                    due = RENEW_AGAIN_SECONDS
                with trio.move_on_after(due):
                    await self._commands.wait_lost(losses)

    # -- streams

    async def claim(self, user: str, client_id: str) -> Sequence[str]:
        claim = _Claim(user_channel(user), client_id)
        if len(self._ended) < MAX_RELEASES:
            self._claims[claim] = None
            self._has_news.set()
            try:
                with trio.move_on_after(self._patience):
                    await claim.answered.wait()
            finally:
                self._claims.pop(claim, None)
                if claim.answer is None:
                    self._end(claim.channel, client_id)
        if claim.answer is None or claim.answer[0] == FOREIGN:
            raise Unavailable("The link to Redis is lost; come back later.", reason="bus")
        opened, *replaced = claim.answer
        if opened == REFUSED:
            raise refused(self._config)
        self._held[client_id] = (claim.channel, opened)
        return self._replaced_by(replaced)

    def release(self, user: str, client_id: str) -> None:
        held = self._held.pop(client_id, None)
        if held is not None:
            self._end(held[0], client_id)

    def _end(self, channel: str, client_id: str) -> None:
        self._ended[client_id] = channel
        self._has_news.set()

    async def _tell_streams(self) -> None:
        """Pass on what has ended, and behind that what is claimed, together."""
        while True:
            await self._has_news.wait()
            await self._commands.wait_connected()
            ended = dict(islice(self._ended.items(), BATCH))
            claims = list(islice(self._claims, BATCH))
            commands: list[tuple[Argument, ...]] = [
                ("HDEL", f"{self._prefix}u:{channel}", client_id)
                for client_id, channel in ended.items()
            ]
            try:
                if claims:
                    commands.append(self._entering([(c.channel, c.client_id, 0) for c in claims]))
                replies = await self._commands.calls(*commands) if commands else []
                answers = _check(replies[-1]) if claims else []
            except LinkLost:
                await trio.sleep(RETRY_SECONDS)
                continue
            for client_id in ended:
                del self._ended[client_id]
            for claim, answer in zip(claims, answers, strict=True):
                claim.answer = answer
                claim.answered.set()
                self._claims.pop(claim, None)
            if not self._ended and not self._claims:
                self._has_news = trio.Event()

    def _entering(self, leases: Iterable[tuple[str, str, int]]) -> tuple[Argument, ...]:
        """The command that enters or renews leases. For each it answers when the stream was opened,
        or REFUSED or FOREIGN, and the ids of those that it replaces."""
        return (
            *self._call("leases"),
            int(LEASE_SECONDS * 1000),
            self._config.max_streams_per_user,
            int(self._config.user_limit is UserLimit.REFUSE),
            self._worker,
            *(part for lease in leases for part in lease),
        )

    def _replaced_by(self, ended: Sequence[bytes]) -> Sequence[str]:
        ids = [each.decode() for each in ended]
        for client_id in ids:
            self._held.pop(client_id, None)
        self._replaced += len(ids)
        return ids

    async def _renew(self) -> None:
        due = list(self._held)
        for start in range(0, len(due), BATCH):
            await self._commands.room()  # what has a lease now has one when the call is sent
            some = [
                (channel, client_id, opened)
                for client_id in due[start : start + BATCH]
                for channel, opened in [self._held.get(client_id, ("", 0))]
                if channel
            ]
            if some:
                answers = _check(await self._commands.call(*self._entering(some)))
                if replaced := [each for _, *ids in answers for each in ids]:
                    self._replace(self._replaced_by(replaced))

    # -- rates

    def _note(self, bucket: Bucket) -> None:
        if len(self._owing) >= MAX_BUCKETS and bucket not in self._owing:
            self._owing.pop(next(iter(self._owing)))
            self._forgotten += 1
        self._owing[bucket] = None
        self._owes.set()

    async def _look(self, buckets: Sequence[Bucket]) -> None:
        if not self._commands.connected:
            _trust(buckets)
            return
        for bucket in buckets:
            self._note(bucket)
        self._hurry.set()
        await self._looked.wait()

    async def _tell_spent(self) -> None:
        while True:
            await self._owes.wait()
            with trio.move_on_after(TELL_SECONDS):
                await self._hurry.wait()
            self._owes, self._hurry = trio.Event(), trio.Event()
            owing, self._owing = list(self._owing), {}
            looked, self._looked = self._looked, trio.Event()
            try:
                for start in range(0, len(owing), BATCH):
                    await self._tell(owing[start : start + BATCH])
            except LinkLost:
                _trust(owing)
                for bucket in owing:
                    if bucket.spent:
                        self._note(bucket)
            finally:
                looked.set()

    async def _tell(self, buckets: Sequence[Bucket]) -> None:
        """Look at some buckets. When the link is lost within, it is not known if Redis has heard
        what was spent, and that is not told again."""
        await self._commands.room()
        arguments: list[Argument] = []
        for bucket in buckets:
            arguments += (bucket.name, bucket.rate, bucket.spent)
            bucket.spent = 0
        levels = _check(await self._commands.call(*self._call("rates"), *arguments))
        now = trio.current_time()
        for bucket, level in zip(buckets, levels, strict=True):
            bucket.know(float(level), now)

    # -- revocations

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
        reply = await self._commands.call(*self._call("revoke"), MAX_REVOCATIONS, *kept)
        if isinstance(reply, hiredis.ReplyError) and code(reply) == "FULL":
            raise too_many()
        return int(_check(reply))

    async def _read(self) -> Sequence[Revocation]:
        while await self._forget() == PAGE:
            pass
        found: dict[bytes, bytes] = {}
        cursor: Reply = b"0"
        while True:
            key = f"{self._prefix}revoked"
            (reply,) = await self._commands.ask(("HSCAN", key, cursor, "COUNT", PAGE))
            cursor, pairs = _check(reply)
            found.update(zip(pairs[::2], pairs[1::2], strict=True))
            if int(cursor) == 0:
                break
        self._revocations = len(found)
        return [_revocation(field, value) for field, value in found.items()]

    # -- within

    def _call(self, script: str) -> tuple[Argument, ...]:
        """The beginning of a call: all of our scripts take the time first."""
        return ("EVALSHA", DIGESTS[script], 1, f"{self._prefix}clock", self._now_ms())

    def statistics(self) -> LedgerStatistics:
        return LedgerStatistics(
            leases=len(self._held),
            releases=len(self._ended),
            replaced=self._replaced,
            buckets=len(self.rates),
            buckets_evicted=self.rates.evicted + self._forgotten,
            revocations=self._revocations,
        )


def _check(reply: Reply) -> Reply:
    """The reply. Raises LinkLost where Redis refuses, and has changed nothing that matters."""
    if isinstance(reply, hiredis.ReplyError):
        raise LinkLost(f"Redis refuses: {reply}")
    return reply


def _trust(buckets: Sequence[Bucket]) -> None:
    """Let pass what cannot be looked at."""
    for bucket in buckets:
        bucket.credit = max(bucket.credit, bucket.most)


def _revocation(field: bytes, value: bytes) -> Revocation:
    kind, _, id = field.decode().partition(":")
    at, until = value.decode().split(" ")
    return Revocation(Kind(kind), id, int(at), None if until == "-" else int(until))
