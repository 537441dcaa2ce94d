"""How much is too much: token buckets, and what is counted by address. Pure: the time is given.

1. A table has no entry that says nothing: an address without streams is forgotten, and so is a full
   bucket.
2. Whoever is refused is told when to come back, each a little later than the one before: those who
   came together do not return together, and not faster than they can be taken.
"""

from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network

MAX_RETRY_SECONDS = 30.0
"""The latest that somebody is told to come back, before it is jittered: beyond it a browser's user
would rather reload the page."""

_FORGOTTEN_AT_ONCE = 2
"""Full buckets, with each one that is asked for: more than can be added meanwhile."""

_NETWORK_BITS = 64

_ADDRESSES_REMEMBERED = 1024


@lru_cache(_ADDRESSES_REMEMBERED)
def network(address: str) -> str:
    """What an address is counted as: an IPv6 address as its /64, which one customer has whole
    (RFC 6177), and one that maps an IPv4 address as that. What is no address counts as it is."""
    if ":" not in address:
        return address
    try:
        parsed = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((parsed, _NETWORK_BITS), strict=False))


class Tally:
    """How many there are of each key, at most ``most`` of one; a key without any is forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        """Of how many keys there are any."""
        return len(self._counts)

    def has_room(self, key: str) -> bool:
        return self._counts.get(key, 0) < self._most

    def add(self, key: str) -> bool:
        """One more of ``key``; False, and nothing is added, where there are as many as may be."""
        count = self._counts.get(key, 0)
        if count >= self._most:
            return False
        self._counts[key] = count + 1
        return True

    def remove(self, key: str) -> None:
        """One less of ``key``, of which there is one."""
        count = self._counts.pop(key)
        if count > 1:
            self._counts[key] = count - 1


class Bucket:
    """A bucket of ``burst`` tokens, full at first, into which ``rate`` come a second.

    It is kept as the time at which it is full again (in tokens: seconds times rate), so there is
    nothing to refill, and the whole tokens of a burst are counted exactly.
    """

    __slots__ = ("_burst", "_full_at", "_promised", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._full_at = 0.0
        self._promised = 0.0

    def tokens(self, now: float) -> float:
        """How many there are, parts of one included."""
        return self._burst - max(self._full_at - now * self._rate, 0.0)

    def is_full(self, now: float) -> bool:
        return self._full_at <= now * self._rate

    def take(self, now: float) -> bool:
        """Take a token, if there is a whole one."""
        passed = now * self._rate
        full_at = max(self._full_at, passed) + 1
        if full_at - passed > self._burst:
            return False
        self._full_at = full_at
        return True

    def give_back(self) -> None:
        """Put back a token that was taken for nothing."""
        self._full_at -= 1

    def wait(self, now: float, ahead: int = 0) -> float:
        """Seconds until there is a token for whoever comes behind ``ahead`` others."""
        return max(1 + ahead - self.tokens(now), 0.0) / self._rate

    def promise(self, now: float, ahead: int = 0) -> float:
        """Seconds after which one who is refused may find a token, although everybody who was told
        so before comes back as he was told; MAX_RETRY_SECONDS at most."""
        at = max(now + self.wait(now, ahead), self._promised + 1 / self._rate)
        self._promised = min(at, now + MAX_RETRY_SECONDS)
        return self._promised - now


class Buckets:
    """A bucket for each key, ``most`` at most: at the bound the one that was asked for least
    recently is forgotten, which gives its key a full one."""

    def __init__(self, rate: float, burst: float, *, most: int) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self.evicted = 0
        """Forgotten before they were full."""

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: str, now: float) -> Bucket:
        self._forget_full(now)
        bucket = self._buckets.get(key)
        if bucket is not None:
            self._buckets.move_to_end(key)
            return bucket
        if len(self._buckets) >= self._most:
            self._buckets.popitem(last=False)
            self.evicted += 1
        bucket = self._buckets[key] = Bucket(self._rate, self._burst)
        return bucket

    def _forget_full(self, now: float) -> None:
        for _ in range(_FORGOTTEN_AT_ONCE):
            oldest = next(iter(self._buckets), None)
            if oldest is None or not self._buckets[oldest].is_full(now):
                return
            del self._buckets[oldest]
