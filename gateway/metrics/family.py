"""What a metric is: its name, its type, its help, its labels, and how it is read.

1. Names are Prometheus's: base units, and ``_total`` for counters and nothing else.
2. A help says in one sentence what is counted or measured, in which unit, and what is not.
3. The values of labels are ours or the configuration's, and never a stranger's.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from gateway.histogram import Distribution
from gateway.node import NodeStatistics

Samples: TypeAlias = Iterator[tuple[tuple[str, ...], float]]
Distributions: TypeAlias = Iterator[tuple[tuple[str, ...], Distribution]]
"""Each with the values of its labels."""


@dataclass(frozen=True, slots=True)
class Family:
    """``read`` tells the samples, each with the values of ``labels``."""

    name: str
    type: type[GaugeMetricFamily] | type[CounterMetricFamily] | type[HistogramMetricFamily]
    about: str
    labels: tuple[str, ...]
    read: Callable[[NodeStatistics], Iterator[tuple[tuple[str, ...], Any]]]

    def of(self, now: NodeStatistics) -> Metric:
        metric = self.type(f"gateway_{self.name}", self.about, labels=self.labels)
        for labels, value in self.read(now):
            if isinstance(metric, HistogramMetricFamily):
                metric.add_metric(labels, _buckets(value), value.sum)
            else:
                metric.add_metric(labels, value)
        return metric


def gauge(name: str, about: str, read: Callable[[NodeStatistics], float]) -> Family:
    return Family(name, GaugeMetricFamily, about, (), lambda now: iter([((), read(now))]))


def gauges(
    name: str, about: str, labels: tuple[str, ...], read: Callable[[NodeStatistics], Samples]
) -> Family:
    return Family(name, GaugeMetricFamily, about, labels, read)


def counter(name: str, about: str, read: Callable[[NodeStatistics], float]) -> Family:
    """``name`` is without ``_total``."""
    return Family(name, CounterMetricFamily, about, (), lambda now: iter([((), read(now))]))


def counters(
    name: str, about: str, labels: tuple[str, ...], read: Callable[[NodeStatistics], Samples]
) -> Family:
    return Family(name, CounterMetricFamily, about, labels, read)


def histogram(name: str, about: str, read: Callable[[NodeStatistics], Distribution]) -> Family:
    return Family(name, HistogramMetricFamily, about, (), lambda now: iter([((), read(now))]))


def histograms(
    name: str, about: str, labels: tuple[str, ...], read: Callable[[NodeStatistics], Distributions]
) -> Family:
    return Family(name, HistogramMetricFamily, about, labels, read)


def by_key(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The samples of a table with one label."""
    for key, value in values.items():
        yield (str(key),), value


def _buckets(of: Distribution) -> list[tuple[str, float]]:
    """Cumulative, as the exposition has them."""
    bounds = map(floatToGoString, (*of.bounds, math.inf))
    return list(zip(bounds, map(float, accumulate(of.counts)), strict=True))
