"""What is published, what history holds, and the links to Redis and to the other workers."""

from gateway.metrics.family import counter, gauge, histogram

FAMILIES = (
    counter("published", "Events accepted from publishers.", lambda now: now.bus.published),
    counter(
        "publish_repeated",
        "Publishes that repeated an id and were not taken.",
        lambda now: now.bus.repeated,
    ),
    counter("publish_refused", "Events that the bus refused.", lambda now: now.bus.refused),
    counter(
        "publish_unknown",
        "Events of which it is unknown if they were taken.",
        lambda now: now.bus.link.unknown,
    ),
    gauge("history_channels", "Channels that the bus remembers.", lambda now: now.bus.channels),
    gauge("history_bytes", "Bytes of events kept for replay.", lambda now: now.bus.history_bytes),
    counter(
        "history_evicted",
        "Channel histories dropped at the node's bound.",
        lambda now: now.bus.history_evicted,
    ),
    gauge("dedupe_entries", "Publishers' ids remembered.", lambda now: now.bus.dedupe_entries),
    counter(
        "dedupe_evicted",
        "Publishers' ids forgotten before their time.",
        lambda now: now.bus.dedupe_evicted,
    ),
    gauge(
        "bus_up", "1 while every worker is linked to the other nodes.", lambda now: now.bus.link.up
    ),
    gauge(
        "bus_subscriptions",
        "Channels subscribed to on the bus.",
        lambda now: now.bus.link.subscriptions,
    ),
    histogram(
        "bus_probe_seconds",
        "Seconds from asking Redis for a probe to its coming back through pub/sub.",
        lambda now: now.bus.link.probes,
    ),
    gauge(
        "bus_lag_seconds",
        "Seconds since a probe last came back: everything older than that has come.",
        lambda now: now.bus.link.proof_age,
    ),
    gauge(
        "bus_clock_skew_seconds",
        "Seconds by which Redis's clock is ahead of the node's.",
        lambda now: now.bus.link.clock_skew,
    ),
    counter("bus_links_lost", "Links to the bus that were lost.", lambda now: now.bus.link.lost),
    counter(
        "bus_reconnects",
        "Links to the bus that were made again after a loss.",
        lambda now: now.bus.link.reconnects,
    ),
    counter(
        "bus_resent",
        "Calls to the bus sent again after a lost link.",
        lambda now: now.bus.link.resent,
    ),
    counter("bus_holes", "Messages of the bus found missing.", lambda now: now.bus.link.holes),
    counter(
        "bus_unreadable",
        "Messages of the bus in an unknown format.",
        lambda now: now.bus.link.unreadable,
    ),
    counter(
        "bus_breaks",
        "Times that the bus turned out to have lost something.",
        lambda now: now.bus.link.breaks,
    ),
    counter(
        "bus_evicted_keys",
        "Keys that Redis has evicted since its start.",
        lambda now: now.bus.link.evicted,
    ),
    counter(
        "bus_overruns",
        "Links lost while the fan-out made the bus wait.",
        lambda now: now.bus.link.overruns,
    ),
    counter(
        "bus_history_reads",
        "Channels read from the bus's history.",
        lambda now: now.bus.link.history_reads,
    ),
    gauge(
        "cluster_waiting",
        "Requests that other workers are answering.",
        lambda now: now.cluster.waiting,
    ),
    gauge(
        "cluster_queued",
        "Requests of other workers that wait here.",
        lambda now: now.cluster.queued,
    ),
    counter("cluster_sent", "Requests passed on to other workers.", lambda now: now.cluster.sent),
    counter("cluster_answered", "Answers of other workers.", lambda now: now.cluster.answered),
    counter(
        "cluster_timed_out",
        "Answers that did not come in time.",
        lambda now: now.cluster.timed_out,
    ),
    counter(
        "cluster_late",
        "Answers that nobody waited for any more.",
        lambda now: now.cluster.late,
    ),
    counter(
        "cluster_served", "Requests of other workers answered.", lambda now: now.cluster.served
    ),
    counter(
        "cluster_unanswered",
        "Requests of other workers whose answer could not be sent.",
        lambda now: now.cluster.unanswered,
    ),
    counter(
        "cluster_dropped",
        "Requests of other workers dropped at a bound.",
        lambda now: now.cluster.dropped,
    ),
    counter(
        "cluster_repeated",
        "Requests of other workers that came again.",
        lambda now: now.cluster.repeated,
    ),
    counter(
        "cluster_malformed", "Messages that could not be read.", lambda now: now.cluster.malformed
    ),
    counter(
        "cluster_unknown_version",
        "Messages of workers of another version.",
        lambda now: now.cluster.unknown_version,
    ),
)
