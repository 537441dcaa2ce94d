"""Prometheus text, made from `NodeStatistics` alone.

What there is stands in tables, one for each part of the node. grafana/METRICS.md says which
question each metric answers.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway.metrics import bus, clients, process, service
from gateway.node import NodeStatistics

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FAMILIES = (*service.FAMILIES, *clients.FAMILIES, *bus.FAMILIES, *process.FAMILIES)


class _Snapshot(Collector):
    def __init__(self, now: NodeStatistics) -> None:
        self._now = now

    def collect(self) -> Iterable[Metric]:
        for family in FAMILIES:
            metric = family.of(self._now)
            if metric.samples or family.labels:
                yield metric


def render(now: NodeStatistics) -> bytes:
    """The exposition of one snapshot, in the text format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(now))
    return generate_latest(registry)
