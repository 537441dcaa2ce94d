"""What is spent of rates that workers share, as one worker tells it to Redis.

A worker spends on credit and tells soon after. Where Redis cannot be told nobody is refused for his
rate: then nothing is published either, and what was let in is told when Redis is back.
"""

from collections.abc import Callable, Sequence

import trio

from gateway.bus.commands import Commands
from gateway.bus.resp import Argument, LinkLost, must
from gateway.bus.scripts import evalsha
from gateway.config import Config
from gateway.rates import MAX_BUCKETS, Bucket, Rates

BATCH = 100
"""Buckets looked at in one go: under a millisecond of Redis."""

TELL_SECONDS = 0.05
"""After which Redis is told what was spent."""


class Spending:
    def __init__(self, config: Config, commands: Commands, now_ms: Callable[[], int]) -> None:
        self._commands = commands
        self._prefix = config.redis_prefix
        self._now_ms = now_ms
        self._owing: dict[Bucket, None] = {}
        """To be looked at with the next round."""
        self._owes = trio.Event()
        self._hurry = trio.Event()
        self._looked = trio.Event()
        """Set at the end of the next round."""
        self._forgotten = 0
        self.rates = Rates(self._look, self._note)

    @property
    def evicted(self) -> int:
        """Buckets that were forgotten at a bound."""
        return self.rates.evicted + self._forgotten

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

    async def run(self) -> None:
        """Until cancelled."""
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
        levels = must(
            await self._commands.call(*evalsha("rates", self._prefix), self._now_ms(), *arguments)
        )
        now = trio.current_time()
        for bucket, level in zip(buckets, levels, strict=True):
            bucket.know(float(level), now)


def _trust(buckets: Sequence[Bucket]) -> None:
    """Let pass what cannot be looked at."""
    for bucket in buckets:
        bucket.credit = max(bucket.credit, bucket.most)
