"""Token buckets: how many events per second a publisher or a channel may have.

1. A bucket holds a second's worth of tokens, one at least, and fills at its rate. An event takes
   one token of each of its buckets, or none of any.
2. To take is to subtract from a credit: as much of the bucket as may be spent before it is looked
   at again, a tenth of a second's worth. Only who has used that up waits for a look.
3. What a worker has spent since the last look is told with the next, and never lost to the bucket:
   where several share one it can fall below zero, and nothing is had until that has filled up.
   So over time the rate is exact, and at once a worker spends a credit too much at the most.
4. The buckets are bounded in number. The one that was used least recently goes: who comes back to
   it finds it as it was told of last, or full where nobody else keeps it.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import trio

from gateway.config import Config

MAX_BUCKETS = 10_000
"""Publishers and channels that are counted at a time, about 3 MiB; whoever else publishes meanwhile
costs no more than a look each."""

CHANNELS_REMEMBERED = 16_384
"""Channels whose rate is remembered: it is asked for with every event."""

CREDIT_SECONDS = 0.1
"""Of the rate: what may be spent between two looks."""

CLOSED_SECONDS = 0.01
"""For which an empty bucket is not looked at again, at the least: a flood costs no looks."""


class Bucket:
    """One publisher's or one channel's tokens, as this worker knows them."""

    __slots__ = ("at", "closed_until", "credit", "level", "name", "rate", "spent")

    def __init__(self, name: str, rate: float) -> None:
        """``rate`` is in tokens per second, above zero."""
        self.name = name
        self.rate = rate
        self.level = self.capacity
        """Tokens at the time ``at``, perhaps below zero."""
        self.at = trio.current_time()
        self.spent = 0
        """Tokens since then."""
        self.credit = self.most
        self.closed_until = self.at

    @property
    def capacity(self) -> float:
        return max(1.0, self.rate)

    @property
    def most(self) -> float:
        """That may be spent between two looks."""
        return max(1.0, self.rate * CREDIT_SECONDS // 1)

    def know(self, level: float, now: float) -> None:
        """The bucket has been looked at: it holds that much, all but ``spent`` taken out."""
        self.level = level
        self.at = now
        left = level - self.spent
        self.credit = min(self.most, left)
        if left < 1:
            self.closed_until = now + max((1 - left) / self.rate, CLOSED_SECONDS)

    def refill(self, now: float) -> None:
        """Look at a bucket that nobody shares."""
        filled = min(self.capacity, self.level + (now - self.at) * self.rate)
        spent, self.spent = self.spent, 0
        self.know(filled - spent, now)


class Rates:
    """The buckets that are in use."""

    def __init__(
        self,
        look: Callable[[Sequence[Bucket]], Awaitable[None]],
        note: Callable[[Bucket], None] = lambda bucket: None,
    ) -> None:
        """``look`` has buckets `know` what they hold; ``note`` is told of each that begins to owe
        what was spent."""
        self._look = look
        self._note = note
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._buckets)

    def bucket(self, name: str, rate: float) -> Bucket:
        """The bucket of that name, which from now on fills at ``rate``."""
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._buckets.popitem(last=False)
                self.evicted += 1
            bucket = self._buckets[name] = Bucket(name, rate)
        else:
            self._buckets.move_to_end(name)
            bucket.rate = rate
        return bucket

    def take(self, buckets: Sequence[Bucket]) -> bool:
        """Take a token of each at once; False, with none taken, if that needs a look."""
        for bucket in buckets:
            if bucket.credit < 1:
                return False
        for bucket in buckets:
            if not bucket.spent:
                self._note(bucket)
            bucket.credit -= 1
            bucket.spent += 1
        return True

    async def take_or_wait(self, buckets: Sequence[Bucket]) -> float:
        """Take a token of each, and return 0; or none, and the seconds until there are some."""
        while not self.take(buckets):
            now = trio.current_time()
            short = [bucket for bucket in buckets if bucket.credit < 1]
            wait = max(bucket.closed_until for bucket in short) - now
            if wait > 0:
                return wait
            await self._look(short)
        return 0.0


class ChannelRates:
    """The rates of channels, by their rules."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rates: dict[str, float] = {}

    def of(self, channel: str) -> float:
        """In events per second; 0: no limit."""
        rate = self._rates.get(channel)
        if rate is None:
            if len(self._rates) >= CHANNELS_REMEMBERED:
                self._rates.clear()
            rate = self._rates[channel] = self._config.rule(channel).channel_publish_rate
        return rate
