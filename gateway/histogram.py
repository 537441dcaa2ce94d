"""Distributions: how many values of each size there were. Pure.

A `Histogram` counts, a `Distribution` is its frozen snapshot. Bounds are fixed, so that those of
several workers, and of the same worker before it was replaced, add up bucket by bucket.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LATENCIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds, from what a healthy node needs to what a reader has long called broken."""

PAUSES = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Seconds, of what stops everything else meanwhile."""

WAITS = (*LATENCIES, 30.0, 60.0)
"""Seconds, of what may take as long as a peer likes."""

GRAIN = 2.0**-24
"""Seconds, a sixteenth of a microsecond: what is added up of workers is a multiple of it."""

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
CROWDS = (*SIZES, 20_000, 50_000, 100_000)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A snapshot: ``counts`` of the values up to each of ``bounds`` and above the one before it,
    and last of those above all; and the sum of all values."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        return sum(self.counts)


class Histogram:
    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds`` grow; each belongs to the values below it."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``, as often as it was seen."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def snapshot(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._sum)


def empty(bounds: Sequence[float]) -> Distribution:
    """That of no values at all."""
    return Histogram(bounds).snapshot()


def added(parts: Sequence[Distribution]) -> Distribution:
    """The values of all ``parts``, which have the same bounds; at least one part."""
    return Distribution(
        parts[0].bounds,
        tuple(map(sum, zip(*(part.counts for part in parts), strict=True))),
        total(part.sum for part in parts),
    )


def total(values: Iterable[float]) -> float:
    """Their sum, to the GRAIN, and so the same in whatever order they are added up: one that is
    less by a rounding, once a worker has ended, is to Prometheus a counter that began anew.
    """
    return sum(round(value / GRAIN) for value in values) * GRAIN


def since(now: Distribution, then: Distribution) -> Distribution:
    """The values that came after ``then``, an earlier snapshot of the same histogram."""
    counts = tuple(later - earlier for later, earlier in zip(now.counts, then.counts, strict=True))
    return Distribution(now.bounds, counts, now.sum - then.sum)


def quantile(of: Distribution, share: float) -> float | None:
    """The value up to which that share of all are, as even as they may lie within a bucket; what is
    above all bounds counts as the last of them. None of no values."""
    wanted = of.count * share
    if not of.count:
        return None
    below = 0
    for lower, upper, count in zip((0.0, *of.bounds), of.bounds, of.counts, strict=False):
        if count and below + count >= wanted:
            return lower + (upper - lower) * (wanted - below) / count
        below += count
    return of.bounds[-1]
