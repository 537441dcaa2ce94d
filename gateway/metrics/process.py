"""The workers as processes: processor, memory, descriptors, collector, trio's loop."""

from collections.abc import Callable

from gateway.metrics.family import (
    Samples,
    by_key,
    counter,
    counters,
    gauges,
    histogram,
    histograms,
)
from gateway.node import NodeStatistics
from gateway.process import ProcessStatistics


def _of_each(
    read: Callable[[ProcessStatistics], float],
) -> Callable[[NodeStatistics], Samples]:
    """By the worker's number."""
    return lambda now: by_key({number: read(each) for number, each in now.processes.items()})


FAMILIES = (
    histogram(
        "run_loop_lag_seconds",
        "Seconds by which trio's loop woke a task too late that had slept.",
        lambda now: now.loop.lag,
    ),
    histograms(
        "gc_pause_seconds",
        "Seconds that a collection of garbage took, during which nothing else ran.",
        ("generation",),
        lambda now: by_key(now.loop.gc_pauses),
    ),
    counters(
        "worker_cpu_seconds",
        "Seconds of processor time that the worker has used.",
        ("worker",),
        _of_each(lambda worker: worker.cpu_seconds),
    ),
    gauges(
        "worker_resident_memory_bytes",
        "Bytes of the worker's process that are in memory.",
        ("worker",),
        _of_each(lambda worker: worker.resident_bytes),
    ),
    gauges(
        "worker_open_fds",
        "Descriptors that the worker has open.",
        ("worker",),
        _of_each(lambda worker: worker.open_fds),
    ),
    gauges(
        "worker_max_fds",
        "Descriptors that the worker may have open.",
        ("worker",),
        _of_each(lambda worker: worker.max_fds),
    ),
    gauges(
        "worker_tasks",
        "Tasks of trio's that are living in the worker.",
        ("worker",),
        _of_each(lambda worker: worker.tasks),
    ),
    counter(
        "log_lines_dropped",
        "Log lines dropped since nobody read standard error.",
        lambda now: now.log.dropped,
    ),
    counter(
        "log_lines_suppressed",
        "Log lines of one kind beyond log_rate; a line a second sums them up.",
        lambda now: now.log.suppressed,
    ),
    counter("trace_spans", "Spans made of traced events.", lambda now: now.trace.spans),
    counter(
        "trace_spans_dropped",
        "Publishes and deliveries that had no span, as there were too many.",
        lambda now: now.trace.dropped,
    ),
)
