"""Prometheus text, made from `NodeStatistics` alone.

What there is stands in tables, one for each part of the node. grafana/METRICS.md says which
question each metric answers.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway.metrics import bus, clients, process, relay, service
from gateway.node import NodeStatistics

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FAMILIES = (
    *service.FAMILIES,
    *clients.FAMILIES,
    *bus.FAMILIES,
    *relay.FAMILIES,
    *process.FAMILIES,
)


class _One(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def parts(now: NodeStatistics) -> Iterator[bytes]:
    """The exposition of one snapshot, in the text format 0.0.4, metric by metric: all of it are
    five milliseconds of work."""
    for family in FAMILIES:
        metric = family.of(now)
        if metric.samples or family.labels:
            yield generate_latest(_One(metric))


def render(now: NodeStatistics) -> bytes:
    """The whole exposition."""
    return b"".join(parts(now))
