"""Traces: from a publisher's ``traceparent`` to spans of deliveries, and nothing where none is
wanted. The SDK is the real one; between nodes there are a real Redis and a real OTLP receiver."""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import patch

import pytest
import trio
from buses import event, published
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from process import child, eventually, node
from redis_buses import cluster
from redis_server import redis_server
from running import Gateway, request, running, until

from gateway import fanout, tracing
from gateway.bus import wire
from gateway.event import Event, render
from gateway.position import ZERO
from gateway.trace_context import MAX_STATE, TraceContext, parse, read
from gateway.tracing import Tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
HEADER = f"traceparent: {PARENT}\r\n".encode()
JSON = b"Content-Type: application/json\r\n"
NDJSON = b"Content-Type: application/x-ndjson\r\n"

# --- the headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parent", "flags"),
    [
        (PARENT, 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"00-{TRACE}-{SPAN}-ff", 255),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", 1),
    ],
)
def test_a_valid_parent(parent: str, flags: int) -> None:
    assert parse(parent) == TraceContext(int(TRACE, 16), int(SPAN, 16), flags, "")


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}-01\n",
        f"{PARENT}, {PARENT}",
        f"00_{TRACE}_{SPAN}_01",
    ],
)
def test_an_invalid_parent_is_none(parent: str) -> None:
    assert parse(parent) is None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("a=1,b=x y", "a=1,b=x y"),
        ("a=" + "x" * (MAX_STATE - 2), "a=" + "x" * (MAX_STATE - 2)),
        ("a=" + "x" * (MAX_STATE - 1), ""),
        ("a=\u00e9", ""),
        ("a=1\x07", ""),
        ("a=100%25;2", "a=100%25;2"),
    ],
)
def test_what_is_carried_is_read_again(state: str, kept: str) -> None:
    context = parse(PARENT, state)
    assert context is not None
    assert context.state == kept
    assert read(str(context)) == context


# --- between nodes --------------------------------------------------------------------------------


def message(event: Event) -> bytes:
    """As the script completes it."""
    return b"1 1795197408843-7 1795197408843-6 99 " + wire.encode(event)


@pytest.mark.parametrize("state", ["", ";a=1,b=x y%20;2"])
@pytest.mark.parametrize("key", [None, "k", "a k"])
@pytest.mark.parametrize("channels", [("a",), ("a", "b")])
def test_a_message_carries_a_trace(state: str, key: str | None, channels: tuple[str, ...]) -> None:
    plain = Event(channels, "x\ny", "t", key=key)
    traced = Event(channels, "x\ny", "t", key=key, trace=PARENT + state)
    frame, *_ = wire.decode(message(traced), channels[:1])
    assert frame.trace == PARENT + state
    assert (frame.channels, frame.key, frame.end) == (channels, key, False)
    other, *_ = wire.decode(message(plain), channels[:1])
    assert other.trace is None
    rendered = [render(each, frame.position).chunk for each in (traced, plain)]
    assert [frame.chunk, other.chunk] == rendered == [frame.chunk] * 2


def test_a_message_without_a_trace_is_the_same_bytes_as_before() -> None:
    assert wire.encode(Event(("a",), "x")) == b"0 - \ndata: x\n\n"
    assert wire.encode(Event(("a", "b"), "x", key="k", end=True)) == b"1 a,b k\ndata: x\n\n"


@pytest.mark.parametrize("end", [True, False])
def test_a_node_from_before_reads_a_traced_message_as_any_other(end: bool) -> None:
    """It looks at five fields, of which the fifth is ``1`` or is not."""
    traced = Event(("a",), "x", key="a k", end=end, trace=f"{PARENT};a=x y")
    head, _, body = message(traced).partition(b"\n")
    version, _, _, _, ended, channels, key = head.split(b" ", 6)
    assert (version, channels, key, body) == (b"1", b"-", b"a k", b"data: x\n\n")
    assert (ended == b"1") is end


@pytest.mark.parametrize("behind", [b"0;", b"0;x", b"0;%ff", b"0x", b"0;%00\xff"])
def test_what_is_no_trace_does_no_harm(behind: bytes) -> None:
    raw = b"1 1795197408843-7 1795197408843-6 99 " + behind + b" - k\ndata: x\n\n"
    frame, *_ = wire.decode(raw, ("a",))
    assert (frame.end, frame.key) == (False, "k")
    assert frame.trace is None or read(frame.trace) is None


async def test_history_and_the_live_flow_carry_it(redis_port: int, new_prefix: str) -> None:
    with trio.fail_after(20):
        async with cluster(redis_port, new_prefix) as nodes:
            a, b = await nodes.node("a"), await nodes.node("a")
            traced = Event(("a",), "x", trace=PARENT)
            first, second = await published(a.bus, traced, event("a", data="y"))
            await b.sink.until(2)
            assert [frame.trace for frame in b.sink.frames] == [PARENT, None]
            late = await nodes.node()
            history = await late.bus.history("a", ZERO, second, 9)
            assert [(f.position, f.trace) for f in history.frames] == [
                (first, PARENT),
                (second, None),
            ]


# --- spans ----------------------------------------------------------------------------------------


class Spans:
    """The SDK, and what it would send."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


async def opened(gateway: Gateway, *targets: str, version: str = "1.1") -> list[Any]:
    wires = [await gateway.open(target, version=version) for target in targets]
    for wire_ in wires:
        await wire_.opened()
    return wires


def parent_of(span: ReadableSpan) -> tuple[str, str]:
    assert span.parent is not None
    return f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}"


def context_of(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_publish_and_its_delivery_are_spans_of_the_publishers_trace(version: str) -> None:
    """One delivery for three clients, on both lanes."""
    spans = Spans()
    async with running(tracing=spans.tracing) as gateway:
        wires = await opened(gateway, *["/events/a"] * 2)
        wires += await opened(gateway, "/events/a", version="1.0")
        raw = request("POST", "/publish/a", HEADER, body=b"x", version=version)
        answer = await gateway.ask(raw)
        for each in wires:
            assert (await each.event()).data == "x"
        await until(lambda: len(spans.named("deliver")) == 1)
        await gateway.publish("a", "not traced")
        for each in wires:
            assert (await each.event()).data == "not traced"
        assert gateway.node.statistics().trace == tracing.TraceStatistics(spans=2)
    [sent], [given] = spans.named("publish"), spans.named("deliver")
    assert parent_of(sent) == (TRACE, SPAN)
    assert parent_of(given) == context_of(sent)
    assert sent.kind.name == "PRODUCER"
    assert given.kind.name == "CONSUMER"
    assert sent.attributes is not None
    assert dict(sent.attributes) == {
        "messaging.system": "sse-gateway",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "a",
        "http.response.status_code": 202,
    }
    assert given.attributes is not None
    assert dict(given.attributes) == {
        "messaging.system": "sse-gateway",
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "process",
        "messaging.destination.name": "a",
        "messaging.message.id": answer.json["id"],
        "messaging.message.envelope.size": given.attributes["messaging.message.envelope.size"],
        "gateway.receivers": 3,
    }
    assert given.start_time is not None
    assert given.end_time is not None
    assert sent.start_time is not None
    assert sent.start_time <= given.start_time <= given.end_time


async def test_every_line_has_the_trace_of_its_request_and_a_delivery_of_its_own() -> None:
    spans = Spans()
    lines = [{"channel": "a", "data": 1}, {"channels": ["a", "b"], "data": 2}, {"channel": "c"}]
    lines.append({"channel": "nobody", "data": 3})
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    async with running(tracing=spans.tracing) as gateway:
        await opened(gateway, "/events/a", "/events?channel=a&channel=b", "/events/b", "/events/c")
        state = b"tracestate: rojo=00f067aa0ba902b7\r\n"
        await gateway.ask(request("POST", "/publish", NDJSON, HEADER, state, body=body))
        await until(lambda: len(spans.named("deliver")) == 2)
        one = json.dumps(lines[0]).encode()
        await gateway.ask(request("POST", "/publish", JSON, HEADER, body=one))
        await until(lambda: len(spans.named("deliver")) == 3)
    many, _ = spans.named("publish")
    first, second, _ = spans.named("deliver")
    for span, receivers in ((first, 2), (second, 3)):
        assert parent_of(span) == context_of(many)
        assert span.attributes is not None
        assert span.attributes["gateway.receivers"] == receivers
        context = span.get_span_context()
        assert context is not None
        assert context.trace_state.to_header() == "rojo=00f067aa0ba902b7"
    assert second.attributes is not None
    assert second.attributes["gateway.channels"] == ("a", "b")


async def test_the_receivers_of_several_channels_are_counted_once_in_a_pass() -> None:
    """However many events go to them: with many clients that takes milliseconds."""
    spans = Spans()
    lines = [{"channels": ["a", "b", "c"], "data": number} for number in range(10)]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    async with running(tracing=spans.tracing) as gateway:
        await opened(gateway, "/events/a", "/events?channel=a&channel=b", "/events/c")
        with patch.object(fanout, "_receivers", wraps=fanout._receivers) as counted:
            await gateway.ask(request("POST", "/publish", NDJSON, HEADER, body=body))
            await until(lambda: len(spans.named("deliver")) == len(lines))
        assert counted.call_count <= gateway.node.hub.passes
    for span in spans.named("deliver"):
        assert span.attributes is not None
        assert span.attributes["gateway.receivers"] == 3


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"traceparent: 00-x\r\n",
        f"traceparent: 00-{TRACE}-{SPAN}-00\r\n".encode(),  # not sampled by its sender
    ],
)
async def test_what_is_not_traced_or_not_sampled_carries_nothing(header: bytes) -> None:
    spans = Spans()
    async with running(tracing=spans.tracing) as gateway:
        [stream] = await opened(gateway, "/events/a")
        headers = [header] if header else []
        await gateway.ask(request("POST", "/publish/a", *headers, body=b"x"))
        assert (await stream.event()).data == "x"
        history = await gateway.node.bus.newest("a", 1)
        assert [frame.trace for frame in history] == [None]
    assert spans.exporter.get_finished_spans() == ()


async def test_a_refusal_is_told_of_its_span() -> None:
    spans = Spans()
    async with running(tracing=spans.tracing) as gateway:
        answer = await gateway.ask(request("POST", "/publish/a..b", HEADER, body=b"x"))
        assert answer.status == 400
    [sent] = spans.named("publish")
    assert sent.attributes is not None
    assert sent.attributes["http.response.status_code"] == 400
    assert sent.status.is_unset


async def test_who_may_not_publish_has_no_span() -> None:
    """Else strangers could fill the queue, and whatever trace they name."""
    spans = Spans()
    async with running(tracing=spans.tracing, jwt_key="k" * 32) as gateway:
        for credential in (b"", b"Authorization: Bearer x\r\n"):
            raw = request("POST", "/publish/a", HEADER, credential, body=b"x")
            assert (await gateway.ask(raw)).status == 401
    assert spans.named("publish") == []


async def test_there_are_only_so_many_spans_a_second_and_the_others_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing, "SPANS_PER_SECOND", 3)
    monkeypatch.setattr(time, "monotonic", lambda: 7.5)
    spans = Spans()
    body = b'{"channel":"a","data":"x"}\n' * 100
    async with running(tracing=spans.tracing) as gateway:
        [stream] = await opened(gateway, "/events/a")
        await gateway.ask(request("POST", "/publish", NDJSON, HEADER, body=body))
        for _ in range(100):
            assert (await stream.event()).data == "x"
        await until(lambda: gateway.node.statistics().trace.dropped == 97)
        text = (await gateway.ask(request("GET", "/metrics"))).body.decode()
        assert "\ngateway_trace_spans_dropped_total 97.0\n" in text
        assert "\ngateway_trace_spans_total 4.0\n" in text
    assert len(spans.named("deliver")) == 3


async def test_publishes_beyond_that_have_no_span_and_their_events_are_of_who_sent_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing, "SPANS_PER_SECOND", 2)
    monkeypatch.setattr(time, "monotonic", lambda: 7.5)
    spans = Spans()
    async with running(tracing=spans.tracing) as gateway:
        for _ in range(5):
            raw = request("POST", "/publish/a", HEADER, body=b"x")
            assert (await gateway.ask(raw)).status == 202
        assert gateway.node.statistics().trace.dropped == 3
    assert len(spans.named("publish")) == 2
    publishing = spans.tracing.publishing({b"traceparent": PARENT.encode()}.get)
    assert publishing is not None
    with publishing:
        assert publishing.carried == PARENT


async def test_leaving_does_not_wait_for_a_collector_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing, "STOP_SECONDS", 0.05)
    spans, released = Spans(), threading.Event()
    monkeypatch.setattr(spans.exporter, "shutdown", lambda: released.wait(20))
    try:
        with trio.fail_after(10):
            await spans.tracing.stop()
    finally:
        released.set()


# --- whether anything is wanted -------------------------------------------------------------------

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, ()),
        (ENDPOINT, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ("console", "otlp")),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ()),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, ()),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, ()),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ()),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ("otlp",)),
    ],
)
def test_the_environment_says_what_is_wanted(
    environ: dict[str, str], wanted: tuple[str, ...]
) -> None:
    assert tracing._wanted(environ) == wanted


async def test_what_cannot_be_had_is_logged_and_the_node_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "opentelemetry.sdk.trace", None)
        assert tracing.start("n", ENDPOINT) is None
    assert "the extra otel" in caplog.text
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    assert tracing.start("n", ENDPOINT) is None
    [*_, failed] = caplog.records
    assert failed.levelno == logging.WARNING
    assert "cannot be sent" in failed.getMessage()


PROGRAM = """
import sys
asked = []
class Absent:
    def find_spec(self, name, *_):
        if name.startswith("opentelemetry"):
            asked.append(name)
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import redis, trio
asked.clear()  # of which redis-py does
sys.path.insert(0, sys.argv[1])
from running import request, running
from gateway import fanout, tracing
async def main():
    assert tracing.start("n") is None
    async with running(tracing=tracing.start("n")) as gateway:
        stream = await gateway.open("/events/a")
        await stream.opened()
        header = b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\\r\\n"
        await gateway.ask(request("POST", "/publish/a", header, body=b"x"))
        assert (await stream.event()).data == "x"
        [frame] = await gateway.node.bus.newest("a", 1)
        assert frame.trace is None
trio.run(main)
print(asked)
"""


async def test_where_nothing_is_wanted_nothing_is_imported_and_nothing_carried() -> None:
    here = __file__.rpartition("/")[0]
    async with child(sys.executable, "-c", PROGRAM, here) as ended:
        assert await ended.wait() == 0, ended.output
    assert ended.output == "[]\n"


# --- over two nodes -------------------------------------------------------------------------------


class Receiver(ThreadingHTTPServer):
    """What an OTLP collector is to its clients."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Export)
        self.spans: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Export(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:  # http.server's name
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/traces"
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {a.key: a.value.string_value for a in of_resource.resource.attributes}
            for scope in of_resource.scope_spans:
                self.server.spans += [
                    {
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "span": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "service": resource["service.name"],
                        "node": resource["gateway.node"],
                    }
                    for span in scope.spans
                ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


async def test_a_trace_goes_from_the_publisher_over_one_node_to_another() -> None:
    """The second node's spans are sent when it leaves, at the latest."""
    with receiver() as collector:
        otel = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=push",
        }
        async with (
            redis_server() as redis,
            node("--redis", redis.url, "--node-id", "a", variables=otel) as a,
            node("--redis", redis.url, "--node-id", "b", variables=otel) as b,
        ):
            stream = await b.open_stream("/events/news")
            async with a.client() as client:
                answer = await client.post(
                    f"{a.url}/publish/news", content=b"hello", headers={"traceparent": PARENT}
                )
            assert answer.status_code == 202
            await stream.until(b"data: hello\n")

            async def all_came() -> bool:
                return len(collector.spans) == 2

            await eventually(all_came)
            assert "traces are sent" in a.output
    sent, given = sorted(collector.spans, key=lambda span: span["name"] == "deliver")
    assert sent == {
        "name": "publish",
        "trace": TRACE,
        "span": sent["span"],
        "parent": SPAN,
        "service": "push",
        "node": "a",
    }
    assert given == {
        "name": "deliver",
        "trace": TRACE,
        "span": given["span"],
        "parent": sent["span"],
        "service": "push",
        "node": "b",
    }
