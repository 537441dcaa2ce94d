"""When to come back: exponential back-off with full jitter, and what the gateway asks for.

Pure, and the same for streams and publishes, for programs that wait and for those that await.
"""

import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx

LONGEST_TOLD = 3600.0
"""Seconds. A ``retry:`` or Retry-After beyond is taken for this: nobody means a client to sleep
for 24 days, which is what the wire format allows."""

MAX_DOUBLINGS = 32
"""Beyond every ceiling, and within what a float holds."""

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that another try may mend: a gateway's, and those of a balancer whose node is gone."""


class Backoff:
    """Delays between attempts. Whoever is cut off together does not come back together."""

    def __init__(
        self,
        shortest: float,
        longest: float,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Seconds: the first delay is up to the shortest; none is longer, unless asked for."""
        if not 0 < shortest <= longest:
            raise ValueError(f"Delays are from {shortest} to {longest} s, which is no range.")
        self.attempt = 0
        self._shortest = shortest
        self._longest = longest
        self._uniform = uniform

    def next(self, told: float | None = None, at_least: float = 0.0) -> float:
        """Seconds until the next attempt.

        ``told`` is the delay that a stream asked for (``retry:``), jittered already: the first
        attempt keeps to it, and later ones wait for no less. ``at_least`` is a Retry-After.
        """
        self.attempt += 1
        floor = min(max(told or 0.0, at_least), LONGEST_TOLD)
        if told is not None and self.attempt == 1:
            return floor
        base = max(self._shortest, min(told or 0.0, LONGEST_TOLD))
        span = min(self._longest, base * 2.0 ** min(self.attempt - 1, MAX_DOUBLINGS))
        return max(floor, self._uniform(0.0, span))

    def reset(self) -> None:
        self.attempt = 0


def retry_after(headers: httpx.Headers) -> float:
    """Seconds, of either form (RFC 9110 10.2.3); 0 where there is none that can be read."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:10]), LONGEST_TOLD)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
