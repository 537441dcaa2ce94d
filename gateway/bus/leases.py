"""Leases of users' streams, in Redis, as one worker has them.

1. A lease is entered, and what it replaces is found, in one call of a script, together with all
   others that wait. What has ended is told before, again until Redis has heard it.
2. Each worker renews its own now and then, and whenever the link was lost: Redis may have lost
   them, or taken the worker for gone. What a call has replaced whose reply was lost is found then.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import trio

from gateway.bus.commands import Commands
from gateway.bus.history import RETRY_SECONDS
from gateway.bus.resp import Argument, LinkLost, Reply, must
from gateway.bus.scripts import evalsha
from gateway.config import Config, UserLimit
from gateway.errors import Unavailable
from gateway.ledger import refused
from gateway.names import user_channel

LEASE_SECONDS = 300.0
"""That a lease lasts unless it is renewed. No short time: what a dead worker has left is void much
sooner, and to renew 50,000 leases takes Redis half a second."""

RENEWALS = 3
"""Within that time."""

RENEW_AGAIN_SECONDS = 1.0
"""Until the next try, where Redis refused."""

BATCH = 100
"""Leases claimed or renewed, or ends told, in one go: about a millisecond of Redis."""

MAX_ENDED = 100_000
"""Streams that have ended and of which Redis has not been told; with more no lease is had."""

REFUSED, FOREIGN = 0, -1
"""Answered to a claim: one too many; and something that is none of ours is in the user's place."""


class _Claim:
    __slots__ = ("answer", "answered", "channel", "client_id")

    def __init__(self, channel: str, client_id: str) -> None:
        self.channel = channel
        self.client_id = client_id
        self.answer: list[Reply] | None = None
        self.answered = trio.Event()


class Leases:
    def __init__(
        self,
        config: Config,
        commands: Commands,
        *,
        worker: str,
        replace: Callable[[Sequence[str]], None],
        now_ms: Callable[[], int],
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
        self.held: dict[str, tuple[str, int]] = {}
        """Channel of the user and ms of the opening, by client id."""
        self.ended: dict[str, str] = {}
        """Channel of the user by client id."""
        self._claims: dict[_Claim, None] = {}
        self._has_news = trio.Event()
        self.replaced = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            nursery.start_soon(self._keep)

    async def claim(self, user: str, client_id: str) -> Sequence[str]:
        claim = _Claim(user_channel(user), client_id)
        if len(self.ended) < MAX_ENDED:
            self._claims[claim] = None
            self._has_news.set()
            is_taken = False
            try:
                with trio.move_on_after(self._patience):
                    await claim.answered.wait()
                is_taken = claim.answer is not None
            finally:
                self._claims.pop(claim, None)
                if not is_taken:  # whoever was cancelled may have been answered all the same
                    self._end(claim.channel, client_id)
        if claim.answer is None or claim.answer[0] == FOREIGN:
            raise Unavailable("The link to Redis is lost; come back later.", reason="bus")
        opened, *replaced = claim.answer
        if opened == REFUSED:
            raise refused(self._config)
        self.held[client_id] = (claim.channel, opened)
        return self._replaced_by(replaced)

    def release(self, user: str, client_id: str) -> None:
        held = self.held.pop(client_id, None)
        if held is not None:
            self._end(held[0], client_id)

    def _end(self, channel: str, client_id: str) -> None:
        self.ended[client_id] = channel
        self._has_news.set()

    async def _tell(self) -> None:
        """Pass on what has ended, and behind that what is claimed, together."""
        while True:
            await self._has_news.wait()
            await self._commands.wait_connected()
            ended = dict(islice(self.ended.items(), BATCH))
            claims = list(islice(self._claims, BATCH))
            commands: list[tuple[Argument, ...]] = [
                ("HDEL", f"{self._prefix}u:{channel}", client_id)
                for client_id, channel in ended.items()
            ]
            try:
                if claims:
                    commands.append(self._entering([(c.channel, c.client_id, 0) for c in claims]))
                replies = await self._commands.ask(*commands) if commands else []
                answers = must(replies[-1]) if claims else []
            except LinkLost:
                await trio.sleep(RETRY_SECONDS)
                continue
            for client_id in ended:
                del self.ended[client_id]
            for claim, answer in zip(claims, answers, strict=True):
                claim.answer = answer
                claim.answered.set()
                self._claims.pop(claim, None)
            if not self.ended and not self._claims:
                self._has_news = trio.Event()

    def _entering(self, leases: Iterable[tuple[str, str, int]]) -> tuple[Argument, ...]:
        """The command that enters or renews leases. For each it answers when the stream was opened,
        or REFUSED or FOREIGN, and the ids of those that it replaces."""
        return (
            *evalsha("leases", self._prefix),
            self._now_ms(),
            int(LEASE_SECONDS * 1000),
            self._config.max_streams_per_user,
            int(self._config.user_limit is UserLimit.REFUSE),
            self._worker,
            *(part for lease in leases for part in lease),
        )

    def _replaced_by(self, ended: Sequence[bytes]) -> Sequence[str]:
        ids = [each.decode() for each in ended]
        for client_id in ids:
            self.held.pop(client_id, None)
        self.replaced += len(ids)
        return ids

    async def _keep(self) -> None:
        while True:
            await self._commands.wait_connected()
            losses = self._commands.losses
            due = LEASE_SECONDS / RENEWALS
            try:
                await self.renew()
            except LinkLost:  # or Redis takes no writes just now
                due = RENEW_AGAIN_SECONDS
            with trio.move_on_after(due):
                await self._commands.wait_lost(losses)

    async def renew(self) -> None:
        due = list(self.held)
        for start in range(0, len(due), BATCH):
            await self._commands.room()  # what has a lease now has one when the call is sent
            some = [
                (channel, client_id, opened)
                for client_id in due[start : start + BATCH]
                for channel, opened in [self.held.get(client_id, ("", 0))]
                if channel
            ]
            if some:
                answers = must(await self._commands.call(*self._entering(some)))
                if replaced := [each for _, *ids in answers for each in ids]:
                    self._replace(self._replaced_by(replaced))
