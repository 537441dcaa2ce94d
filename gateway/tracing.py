"""Traces, as OpenTelemetry has them: the span of a publish, and of each delivery by a worker.

1. Nothing of OpenTelemetry is imported, no header looked at and no byte sent unless the environment
   says where spans go (``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_TRACES_EXPORTER``), and it is
   installed (the extra ``otel``).
2. What its publisher does not trace is not traced: an event without ``traceparent`` costs nothing.
3. A request to publish has a span, and so has an event at each worker that gives it to anybody:
   never one for each client. What is replayed later is told by nobody.
4. Making spans takes the loop's time, so there are only so many a second; the others are counted.
   What a publish without a span has published is its sender's, as far as the trace goes. A thread
   of the SDK's sends them, from a bounded queue (``OTEL_BSP_*``).
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import trio

from gateway import __version__
from gateway.event import Frame
from gateway.threads import without_signals
from gateway.trace_context import TraceContext, parse, read

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

SYSTEM = "sse-gateway"
"""``messaging.system``, and the name of the service unless ``OTEL_SERVICE_NAME`` gives another."""

SPANS_PER_SECOND = 1000
"""Of deliveries, and as many of publishes, by each worker: a few hundredths of a core."""

SPANS_PER_TURN = 32
"""Made between two checkpoints: about a millisecond."""

STOP_SECONDS = 1.0
"""For the spans that wait at the end; a collector that is away must not hold up whoever leaves."""

EXPORTERS = frozenset({"otlp", "console"})
HTTP = "http/protobuf"

RESOURCE = "OTEL_RESOURCE_ATTRIBUTES"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
"""The variables that say where spans go, and how; the SDK reads them, and all others, itself."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """Counters. ``dropped`` had no span: publishes and deliveries, as there were too many."""

    spans: int = 0
    dropped: int = 0


class Publishing:
    """The span of one request to publish; it ends with the block."""

    def __init__(self, span: "Span | None", carried: str | None) -> None:
        """``carried`` is what its events carry; None where nobody would look at it. Without a
        ``span`` there were too many."""
        self._span = span
        self.carried = carried

    def __enter__(self) -> "Publishing":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._span is not None:
            self._span.end()

    def tell(self, channel: str, status: int) -> None:
        """What became of it; ``channel`` is empty where the path names none."""
        if self._span is None:
            return
        if channel:
            self._span.set_attribute("messaging.destination.name", channel)
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)


class Room:
    """SPANS_PER_SECOND spans in each second."""

    def __init__(self) -> None:
        self._second = self._left = 0

    def take(self) -> bool:
        """Whether one more span may be made in this second."""
        now = int(time.monotonic())
        if now != self._second:
            self._second, self._left = now, SPANS_PER_SECOND
        self._left -= 1
        return self._left >= 0


class Tracing:
    """Of one worker."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace

        self._api = trace
        self._provider = provider
        self._tracer = provider.get_tracer("gateway", __version__)
        self._publishes, self._deliveries = Room(), Room()
        self._spans = self._dropped = 0

    def statistics(self) -> TraceStatistics:
        return TraceStatistics(self._spans, self._dropped)

    async def stop(self) -> None:
        """Send the spans that wait, for STOP_SECONDS at most; none is made any more."""
        with trio.move_on_after(STOP_SECONDS):
            await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)

    def publishing(self, header: Callable[[bytes], bytes | None]) -> Publishing | None:
        """The span of a request with these headers, if its sender traces."""
        parent = header(b"traceparent")
        if parent is None:
            return None
        state = header(b"tracestate") or b""
        context = parse(parent.decode("latin-1").strip(), state.decode("latin-1"))
        if context is None:
            return None
        if not self._publishes.take():
            self._dropped += 1
            is_sampled = self._api.TraceFlags(context.flags).sampled
            return Publishing(None, str(context) if is_sampled else None)
        span = self._tracer.start_span(
            "publish",
            self._within(context),
            self._api.SpanKind.PRODUCER,
            {
                "messaging.system": SYSTEM,
                "messaging.operation.name": "publish",
                "messaging.operation.type": "send",
            },
        )
        self._spans += 1
        own = span.get_span_context()
        if not own.trace_flags.sampled:
            return Publishing(span, None)
        carried = TraceContext(own.trace_id, own.span_id, own.trace_flags, context.state)
        return Publishing(span, str(carried))

    async def delivered(
        self, receivers: Mapping[Frame, int], started_ns: int, ended_ns: int
    ) -> None:
        """A pass between these times by the wall's clock has given each of these traced frames to
        so many clients, in writing or to wait for them."""
        for turn, (frame, count) in enumerate(receivers.items(), 1):
            if self._deliveries.take():
                self._deliver(frame, count, started_ns, ended_ns)
            else:
                self._dropped += 1
            if not turn % SPANS_PER_TURN:
                await trio.lowlevel.checkpoint()

    def _deliver(self, frame: Frame, receivers: int, started_ns: int, ended_ns: int) -> None:
        context = read(frame.trace) if frame.trace is not None else None
        if context is None:
            return
        self._spans += 1
        channel = frame.channels[0]
        span = self._tracer.start_span(
            "deliver",
            self._within(context),
            self._api.SpanKind.CONSUMER,
            {
                "messaging.system": SYSTEM,
                "messaging.operation.name": "deliver",
                "messaging.operation.type": "process",
                "messaging.destination.name": channel,
                "messaging.message.id": str(frame.position),
                "messaging.message.envelope.size": len(frame.chunk),
                "gateway.receivers": receivers,
                **({"gateway.channels": frame.channels} if len(frame.channels) > 1 else {}),
            },
            start_time=started_ns,
        )
        span.end(ended_ns)

    def _within(self, context: TraceContext) -> "Context":
        """What a span begins in whose parent is elsewhere."""
        state = self._api.TraceState.from_header([context.state] if context.state else [])
        parent = self._api.SpanContext(
            context.trace_id,
            context.span_id,
            is_remote=True,
            trace_flags=self._api.TraceFlags(context.flags),
            trace_state=state,
        )
        return self._api.set_span_in_context(self._api.NonRecordingSpan(parent))


def start(node_id: str, environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """Tracing as the environment wants it; None where it wants none, or none can be had, which is
    logged. A node does not fail for it."""
    names = _wanted(environ)
    if not names:
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning("traces are wanted, but OpenTelemetry is not installed: the extra otel")
        return None
    given = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get(RESOURCE, "")
    resource = Resource.create(
        {
            **({} if given else {"service.name": SYSTEM}),
            "service.version": __version__,
            "service.instance.id": f"{node_id}/{os.getpid()}",
            "gateway.node": node_id,
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # `stop` has a bound
    try:
        with without_signals():
            for exporter in _exporters(names):
                provider.add_span_processor(BatchSpanProcessor(exporter))
    except (ImportError, ValueError) as error:
        _log.warning("traces are wanted, and cannot be sent", {"why": str(error)})
        return None
    _log.info("traces are sent", {"to": names})
    return Tracing(provider)


def _wanted(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The exporters that the environment names; those that are not known are logged."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    named = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not named:
        is_given = any(environ.get(name, "").strip() for name in ENDPOINTS)
        named = "otlp" if is_given else "none"
    names = tuple(dict.fromkeys(name.strip() for name in named.split(",")))
    if unknown := set(names) - EXPORTERS - {"none"}:
        _log.warning("OTEL_TRACES_EXPORTER names what is not known", {"names": sorted(unknown)})
    wanted = tuple(name for name in names if name in EXPORTERS)
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), HTTP)
    if "otlp" in wanted and protocol != HTTP:
        _log.warning("traces are sent with http/protobuf alone", {"protocol": protocol})
        return tuple(name for name in wanted if name != "otlp")
    return wanted


def _exporters(names: tuple[str, ...]) -> "Iterator[SpanExporter]":
    if "otlp" in names:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        yield OTLPSpanExporter()
    if "console" in names:
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        yield ConsoleSpanExporter()
