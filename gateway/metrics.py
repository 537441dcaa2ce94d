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
        link = self._now.bus.link
        hub, bus, cluster = self._now.hub, self._now.bus, self._now.cluster
        ledger = self._now.ledger
        admission = self._now.admission
        memory = self._now.memory
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
            ("memory_bytes", "Bytes that outboxes and histories are charged.", memory.bytes),
            ("memory_max_bytes", "Bytes that they may be charged.", memory.max_bytes),
            ("dedupe_entries", "Publishers' ids remembered.", bus.dedupe_entries),
            ("cluster_waiting", "Requests that other workers are answering.", cluster.waiting),
            ("cluster_queued", "Requests of other workers that wait here.", cluster.queued),
            ("openings_waiting", "Openings that stand in line.", admission.waiting),
            ("openings_longest_wait_seconds", "Of one in line.", admission.longest_wait),
            ("addresses", "Addresses that have streams open.", admission.addresses),
            ("addresses_paced", "Addresses whose rate is remembered.", admission.paced),
            ("bus_up", "1 while every worker is linked to the other nodes.", link.up),
            ("bus_subscriptions", "Channels subscribed to on the bus.", link.subscriptions),
            (
                "tokens_remembered",
                "Tokens known to be good without another look.",
                self._now.auth.tokens_remembered,
            ),
            ("leases", "Open streams that count for a user.", ledger.leases),
            ("leases_untold", "Ended ones of which Redis is to be told.", ledger.releases),
            ("rate_buckets", "Publishers and channels whose rate is counted.", ledger.buckets),
            ("revocations", "Tokens and users that are revoked.", ledger.revocations),
            ("workers", "Worker processes that serve and answer.", self._now.workers),
            ("draining", "1 while the node is leaving.", int(self._now.draining)),
            ("uptime_seconds", "Since the start of the node.", self._now.uptime_seconds),
        ):
            yield GaugeMetricFamily(f"gateway_{name}", about, value)
        for name, about, value in (
            ("worker_restarts", "Workers that replaced another one.", self._now.worker_restarts),
            ("published", "Events accepted from publishers.", bus.published),
            ("publish_repeated", "Publishes that repeated an id and were not taken.", bus.repeated),
            ("publish_refused", "Events that the bus refused.", bus.refused),
            ("delivered", "Events written to clients.", hub.delivered),
            ("replayed", "Events given to clients out of history.", hub.replayed),
            ("dropped", "Events dropped because a client was too slow.", hub.dropped),
            ("passes", "Passes of the fan-out.", hub.passes),
            (
                "log_lines_dropped",
                "Log lines dropped since nobody read standard error.",
                self._now.log.dropped,
            ),
            (
                "log_lines_suppressed",
                "Log lines of a kind beyond log_rate; a line a second sums them up.",
                self._now.log.suppressed,
            ),
            ("trace_spans", "Spans made of traced events.", self._now.trace.spans),
            (
                "trace_spans_dropped",
                "Deliveries of traced events that had no span, as there were too many.",
                self._now.trace.dropped,
            ),
            ("keepalives", "Keepalives written.", hub.keepalives),
            ("opened", "Streams opened.", hub.opened),
            ("openings_waited", "Openings that have stood in line.", admission.waited),
            ("openings_waited_seconds", "Time spent in line.", admission.waited_seconds),
            (
                "addresses_paced_evicted",
                "Addresses whose rate was forgotten before its time.",
                admission.paced_evicted,
            ),
            (
                "history_evicted",
                "Channel histories dropped at the node's bound.",
                bus.history_evicted,
            ),
            (
                "memory_outboxes_dropped",
                "Outboxes thrown away at the memory budget.",
                memory.outboxes_dropped,
            ),
            (
                "memory_frames_dropped",
                "Events dropped with them; they are among gateway_dropped_total.",
                memory.frames_dropped,
            ),
            (
                "memory_histories_cut",
                "Times that a history was cut at the memory budget.",
                memory.histories_cut,
            ),
            ("dedupe_evicted", "Publishers' ids forgotten before their time.", bus.dedupe_evicted),
            ("replaced", "Streams ended for younger ones of their user.", ledger.replaced),
            (
                "replaced_unreached",
                "Of those, whose worker could not be told.",
                ledger.unreached,
            ),
            (
                "rate_buckets_evicted",
                "Publishers and channels forgotten at the bound.",
                ledger.buckets_evicted,
            ),
            ("bus_links_lost", "Links to the bus that were lost.", link.lost),
            ("bus_resent", "Calls to the bus sent again after a lost link.", link.resent),
            ("publish_unknown", "Events of which it is unknown if they were taken.", link.unknown),
            ("bus_holes", "Messages of the bus found missing.", link.holes),
            ("bus_unreadable", "Messages of the bus in an unknown format.", link.unreadable),
            ("bus_breaks", "Times that the bus turned out to have lost something.", link.breaks),
            ("bus_evicted_keys", "Keys that Redis has evicted since its start.", link.evicted),
            ("bus_overruns", "Links lost while the fan-out made the bus wait.", link.overruns),
            ("bus_history_reads", "Channels read from the bus's history.", link.history_reads),
            (
                "key_fetch_failures",
                "Fetches of issuers' keys that failed.",
                self._now.auth.key_fetch_failures,
            ),
            ("cluster_sent", "Requests passed on to other workers.", cluster.sent),
            ("cluster_answered", "Answers of other workers.", cluster.answered),
            ("cluster_timed_out", "Answers that did not come in time.", cluster.timed_out),
            ("cluster_late", "Answers that nobody waited for any more.", cluster.late),
            ("cluster_served", "Requests of other workers answered.", cluster.served),
            (
                "cluster_unanswered",
                "Requests of other workers whose answer could not be sent.",
                cluster.unanswered,
            ),
            ("cluster_dropped", "Requests of other workers dropped at a bound.", cluster.dropped),
            ("cluster_repeated", "Requests of other workers that came again.", cluster.repeated),
            ("cluster_malformed", "Messages that could not be read.", cluster.malformed),
            (
                "cluster_unknown_version",
                "Messages of workers of another version.",
                cluster.unknown_version,
            ),
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
