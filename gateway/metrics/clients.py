"""Streams and their events: what is delivered, how late, what is lost, and who is slow."""

from gateway.metrics.family import (
    Distributions,
    Samples,
    by_key,
    counter,
    counters,
    gauge,
    histogram,
    histograms,
)
from gateway.node import NodeStatistics


def _delivered(now: NodeStatistics) -> Samples:
    for name, each in now.hub.classes.items():
        yield (name,), each.delivered


def _dropped(now: NodeStatistics) -> Samples:
    for name, each in now.hub.classes.items():
        for reason, count in each.dropped.items():
            yield (name, reason), count


def _lag(now: NodeStatistics) -> Distributions:
    for name, each in now.hub.classes.items():
        yield (name,), each.lag


FAMILIES = (
    gauge("clients", "Open streams.", lambda now: now.hub.clients),
    gauge("clients_max", "Open streams that the node can hold.", lambda now: now.max_clients),
    gauge("channels", "Channels that somebody is subscribed to.", lambda now: now.hub.channels),
    gauge("subscriptions", "Open streams times their channels.", lambda now: now.hub.subscriptions),
    counters(
        "opened",
        "Streams opened: new ones, resumed ones with a position, and replays of what was before.",
        ("reason",),
        lambda now: by_key(now.hub.openings),
    ),
    counters("closed", "Streams that ended.", ("reason",), lambda now: by_key(now.hub.closed)),
    counter("keepalives", "Keepalives written.", lambda now: now.hub.keepalives),
    counter(
        "received",
        "Events that came from the bus to the fan-out, each once however many want it.",
        lambda now: now.hub.received,
    ),
    counters(
        "delivered",
        "Events written to clients, live or replayed, each once for each client.",
        ("class",),
        _delivered,
    ),
    histograms(
        "delivery_lag_seconds",
        "Seconds from publish, by the bus's clock, to the write to a client's socket, of events "
        "that were not replayed; in whole milliseconds, so up to one too many or too few.",
        ("class",),
        _lag,
    ),
    counters(
        "dropped",
        "Events not given to a client that was too slow: its outbox was full, a newer event of "
        "the key replaced it, or memory was used up.",
        ("class", "reason"),
        _dropped,
    ),
    counters(
        "gaps",
        "Times that a client was told of events that history no longer has.",
        ("reason",),
        lambda now: by_key(now.hub.gaps),
    ),
    gauge("clients_behind", "Clients for which something waits.", lambda now: now.hub.behind),
    gauge(
        "behind_longest_seconds",
        "Seconds for which the client that is behind for longest has been.",
        lambda now: now.hub.behind_longest,
    ),
    gauge(
        "outbox_frames",
        "Frames that wait for clients that are behind.",
        lambda now: now.hub.queued_frames,
    ),
    gauge(
        "outbox_bytes",
        "Bytes that wait for clients that are behind.",
        lambda now: now.hub.queued_bytes,
    ),
    gauge(
        "outbox_deepest_frames",
        "Frames that wait for the client for which the most do.",
        lambda now: now.hub.deepest_frames,
    ),
    gauge(
        "pending_frames", "Frames that wait for the fan-out.", lambda now: now.hub.pending_frames
    ),
    gauge("pending_bytes", "Bytes that wait for the fan-out.", lambda now: now.hub.pending_bytes),
    counter("passes", "Passes of the fan-out.", lambda now: now.hub.passes),
    histogram(
        "pass_duration_seconds",
        "Seconds that a pass of the fan-out took, others' turns meanwhile included.",
        lambda now: now.hub.pass_duration,
    ),
    histogram(
        "pass_events", "Events that a pass of the fan-out took.", lambda now: now.hub.pass_events
    ),
    histogram(
        "pass_deliveries",
        "Events that a pass of the fan-out wrote at once, each once for each client.",
        lambda now: now.hub.pass_deliveries,
    ),
    gauge("clients_replaying", "Clients that are reading history.", lambda now: now.hub.replaying),
    counter("replayed", "Events given to clients out of history.", lambda now: now.hub.replayed),
    histograms(
        "replay_duration_seconds",
        "Seconds from the beginning of a replay until its stream was live, at the pace of its "
        "client, by the furthest place that had to be read.",
        ("source",),
        lambda now: by_key(now.replays),
    ),
    gauge(
        "memory_bytes",
        "Bytes that outboxes and histories are charged.",
        lambda now: now.memory.bytes,
    ),
    gauge("memory_max_bytes", "Bytes that they may be charged.", lambda now: now.memory.max_bytes),
    counter(
        "memory_outboxes_dropped",
        "Outboxes thrown away at the memory budget.",
        lambda now: now.memory.outboxes_dropped,
    ),
    counter(
        "memory_frames_dropped",
        "Events dropped with them; they are among gateway_dropped_total.",
        lambda now: now.memory.frames_dropped,
    ),
    counter(
        "memory_histories_cut",
        "Times that a history was cut at the memory budget.",
        lambda now: now.memory.histories_cut,
    ),
)
