"""The node as a service: whether it serves, what is asked of it, and whom it turns away."""

from gateway import __version__
from gateway.metrics.family import (
    Distributions,
    by_key,
    counter,
    counters,
    gauge,
    gauges,
    histograms,
)
from gateway.node import NodeStatistics


def _requests(now: NodeStatistics) -> Distributions:
    for route, by_status in now.requests.items():
        for status, durations in by_status.items():
            yield (route, status), durations


FAMILIES = (
    gauges(
        "build_info",
        "1, with the version of the gateway.",
        ("version",),
        lambda now: by_key({__version__: 1}),
    ),
    gauge("ready", "1 while /readyz answers 200.", lambda now: now.ready),
    gauge("draining", "1 while the node is leaving.", lambda now: now.draining),
    gauge("workers", "Worker processes that serve and answer.", lambda now: now.workers),
    counter(
        "worker_restarts", "Workers that replaced another one.", lambda now: now.worker_restarts
    ),
    counter(
        "reports",
        "Reports of themselves that workers published, as somebody watched.",
        lambda now: now.reports,
    ),
    gauge("uptime_seconds", "Seconds since the start of the node.", lambda now: now.uptime_seconds),
    gauges(
        "tls_certificate_expiry_timestamp_seconds",
        "When the first certificate of the chain in use expires, in seconds since 1970.",
        (),
        lambda now: iter([((), now.certificate_expires)] if now.certificate_expires else []),
    ),
    histograms(
        "request_duration_seconds",
        "Seconds from a whole request to its answer written, or to the first bytes of a stream; "
        "a poll takes as long as it waits.",
        ("route", "code"),
        _requests,
    ),
    counters("refused", "Requests turned away.", ("reason",), lambda now: by_key(now.refused)),
    gauge("openings_waiting", "Openings that stand in line.", lambda now: now.admission.waiting),
    gauge(
        "openings_longest_wait_seconds",
        "Seconds for which the first one in line has stood there.",
        lambda now: now.admission.longest_wait,
    ),
    counter(
        "openings_waited", "Openings that have stood in line.", lambda now: now.admission.waited
    ),
    counter(
        "openings_waited_seconds",
        "Seconds spent in line, over all openings.",
        lambda now: now.admission.waited_seconds,
    ),
    gauge("addresses", "Addresses that have streams open.", lambda now: now.admission.addresses),
    gauge(
        "addresses_paced", "Addresses whose rate is remembered.", lambda now: now.admission.paced
    ),
    counter(
        "addresses_paced_evicted",
        "Addresses whose rate was forgotten before its time.",
        lambda now: now.admission.paced_evicted,
    ),
    gauge("leases", "Open streams that count for a user.", lambda now: now.ledger.leases),
    gauge(
        "leases_untold", "Ended ones of which Redis is to be told.", lambda now: now.ledger.releases
    ),
    counter(
        "replaced", "Streams ended for younger ones of their user.", lambda now: now.ledger.replaced
    ),
    counter(
        "replaced_unreached",
        "Of those, whose worker could not be told.",
        lambda now: now.ledger.unreached,
    ),
    gauge(
        "rate_buckets",
        "Publishers and channels whose rate is counted.",
        lambda now: now.ledger.buckets,
    ),
    counter(
        "rate_buckets_evicted",
        "Publishers and channels forgotten at the bound.",
        lambda now: now.ledger.buckets_evicted,
    ),
    gauge("revocations", "Tokens and users that are revoked.", lambda now: now.ledger.revocations),
    gauge(
        "tokens_remembered",
        "Tokens known to be good without another look.",
        lambda now: now.auth.tokens_remembered,
    ),
    counter(
        "key_fetch_failures",
        "Fetches of issuers' keys that failed.",
        lambda now: now.auth.key_fetch_failures,
    ),
)
