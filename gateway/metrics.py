"""Prometheus text, made from `NodeStatistics` alone."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.node import NodeStatistics

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Snapshot(Collector):
    def __init__(self, now: NodeStatistics) -> None:
        self._now = now

    def collect(self) -> Iterable[Metric]:
        hub, bus = self._now.hub, self._now.bus
        for name, about, value in (
            ("clients", "Open streams.", hub.clients),
            ("clients_max", "Open streams that the node can hold.", self._now.max_clients),
            ("channels", "Channels that somebody is subscribed to.", hub.channels),
            ("clients_behind", "Clients for which something waits.", hub.behind),
            ("clients_replaying", "Clients that are reading history.", hub.replaying),
            ("outbox_frames", "Frames that wait for clients that are behind.", hub.queued_frames),
            ("outbox_bytes", "Bytes that wait for clients that are behind.", hub.queued_bytes),
            ("pending_frames", "Frames that wait for the fan-out.", hub.pending_frames),
            ("pending_bytes", "Bytes that wait for the fan-out.", hub.pending_bytes),
            ("history_channels", "Channels that the bus remembers.", bus.channels),
            ("history_bytes", "Bytes of events kept for replay.", bus.history_bytes),
            ("dedupe_entries", "Publishers' ids remembered.", bus.dedupe_entries),
            ("draining", "1 while the node is leaving.", int(self._now.draining)),
            ("uptime_seconds", "Since the start of the node.", self._now.uptime_seconds),
        ):
            yield GaugeMetricFamily(f"gateway_{name}", about, value)
        for name, about, value in (
            ("published", "Events accepted from publishers.", bus.published),
            ("publish_repeated", "Publishes that repeated an id and were not taken.", bus.repeated),
            ("publish_refused", "Events that the bus refused.", bus.refused),
            ("delivered", "Events written to clients.", hub.delivered),
            ("replayed", "Events given to clients out of history.", hub.replayed),
            ("dropped", "Events dropped because a client was too slow.", hub.dropped),
            ("passes", "Passes of the fan-out.", hub.passes),
            ("keepalives", "Keepalives written.", hub.keepalives),
            ("opened", "Streams opened.", hub.opened),
            (
                "history_evicted",
                "Channel histories dropped at the node's bound.",
                bus.history_evicted,
            ),
            ("dedupe_evicted", "Publishers' ids forgotten before their time.", bus.dedupe_evicted),
        ):
            yield CounterMetricFamily(f"gateway_{name}", about, value)
        for name, about, values in (
            ("gaps", "Gaps told to clients.", hub.gaps),
            ("closed", "Streams that ended.", hub.closed),
            ("refused", "Requests turned away.", self._now.refused),
        ):
            family = CounterMetricFamily(f"gateway_{name}", about, labels=("reason",))
            for reason, value in values.items():
                family.add_metric((str(reason),), value)
            yield family


def render(now: NodeStatistics) -> bytes:
    """The exposition of one snapshot, in the text format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(now))
    return generate_latest(registry)
