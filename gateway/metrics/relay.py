"""Token streams: how many are made, how they end, and what their upstreams do."""

from collections.abc import Callable

from gateway.metrics.family import Samples, by_key, counter, counters, gauge, gauges, histograms
from gateway.node import NodeStatistics
from gateway.relay.upstream import CallerStatistics


def _ended(now: NodeStatistics) -> Samples:
    for state, words in now.relay.ended.items():
        for word, count in words.items():
            yield (state, word), count


def _of_each(
    read: Callable[[CallerStatistics], int],
) -> Callable[[NodeStatistics], Samples]:
    """By the upstream's name."""
    return lambda now: by_key({name: read(each) for name, each in now.upstreams.items()})


def _failures(now: NodeStatistics) -> Samples:
    for name, each in now.upstreams.items():
        for code, count in each.failures.items():
            yield (name, code), count


FAMILIES = (
    gauges(
        "token_streams",
        "Token streams that are being made; a pushed one while its producer is connected.",
        ("format",),
        lambda now: by_key(now.relay.running),
    ),
    counters(
        "token_streams_opened",
        "Token streams that were begun.",
        ("format",),
        lambda now: by_key(now.relay.opened),
    ),
    counters(
        "token_streams_ended",
        "Token streams whose end was published, by their state and the reason or code of it.",
        ("state", "reason"),
        _ended,
    ),
    counters(
        "token_streams_refused",
        "Token streams that were not begun, for want of room.",
        ("reason",),
        lambda now: by_key(now.relay.refused),
    ),
    counter(
        "token_streams_tokens",
        "Tokens taken in, before they are batched; of the format sse, events.",
        lambda now: now.relay.tokens,
    ),
    histograms(
        "token_streams_first_token_seconds",
        "Seconds from the beginning of a token stream, its upstream yet to be called, to its first "
        "token; pushed ones are not in it.",
        ("upstream",),
        lambda now: by_key(now.relay.first_token),
    ),
    gauge(
        "token_streams_waiting_events",
        "Events of token streams that wait to be published.",
        lambda now: now.relay.waiting_events,
    ),
    counter(
        "token_streams_resumed",
        "Times that the producer of a pushed token stream came back.",
        lambda now: now.relay.resumed,
    ),
    counter(
        "token_streams_joined_late",
        "Viewers of token streams that began with a snapshot.",
        lambda now: now.relay.joined_late,
    ),
    counter(
        "token_streams_cut_clients",
        "Clients of the drop-in that were cut off, as they did not take their answer.",
        lambda now: now.relay.cut_clients,
    ),
    gauge(
        "token_streams_copied_bytes",
        "Bytes of answers that wait for clients of the drop-in.",
        lambda now: now.relay.copied_bytes,
    ),
    counter(
        "token_streams_restarted",
        "Token streams of workers that had died, begun again here.",
        lambda now: now.relay.restarted,
    ),
    counter(
        "token_streams_lost",
        "Token streams of workers that had died, ended here by an error.",
        lambda now: now.relay.lost,
    ),
    gauge(
        "token_stream_leases",
        "Token streams that the node holds the leases of.",
        lambda now: now.relay.registry.held,
    ),
    counter(
        "token_stream_renewal_failures",
        "Renewals of these leases that did not reach Redis.",
        lambda now: now.relay.registry.renewal_failures,
    ),
    gauge(
        "token_stream_records",
        "Records of token streams that the memory bus keeps.",
        lambda now: now.relay.registry.records,
    ),
    counter(
        "token_stream_records_evicted",
        "Records dropped at the node's bound.",
        lambda now: now.relay.registry.evicted,
    ),
    counters(
        "upstream_calls",
        "Requests sent to an upstream, repeated ones too.",
        ("upstream",),
        _of_each(lambda caller: caller.calls),
    ),
    counters(
        "upstream_retries",
        "Requests sent to an upstream again.",
        ("upstream",),
        _of_each(lambda caller: caller.retries),
    ),
    counters(
        "upstream_errors",
        "Requests to an upstream that failed, in the middle of the answer too.",
        ("upstream", "code"),
        _failures,
    ),
)
