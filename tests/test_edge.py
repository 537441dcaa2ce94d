"""The edge: hypercorn and quart-trio behave on one request's connection, and what makes them.

Each test of a defect says which release lets its workaround go: remove that, and if the test still
passes, the release has mended it.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, cast

import certificates
import pytest
import trio
from running import (
    ACCEPT,
    PATIENCE,
    Block,
    Gateway,
    Wire,
    descriptors,
    request,
    running,
    running_over_tls,
    tasks,
    until,
)

from gateway import server, streams
from gateway.bus import Bus
from gateway.config import Config
from gateway.edge.app import make_app
from gateway.event import Event
from gateway.node import Node
from gateway.position import Position
from gateway.server import _end_streams
from gateway.stream_state import Reason

PROMPT = 2.0
"""Seconds in which a server that closes has closed; hypercorn's keep-alive alone would be 5."""

NDJSON = b"Content-Type: application/x-ndjson\r\n"
LONG_BODY = b'{"channel":"b c","data":1}\n' * 30_000
"""Its answer, a refusal for each line, is larger than all buffers on the way."""


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR] == []


Serving = Callable[..., AbstractAsyncContextManager[Gateway]]
"""`running`, plain or over TLS."""


@pytest.fixture(params=["plain", "TLS"])
def serving(request: pytest.FixtureRequest, certificate: certificates.Files) -> Serving:
    return partial(running_over_tls, certificate) if request.param == "TLS" else running


async def released(gateway: Gateway, before: tuple[int, int]) -> None:
    """Wait until the node is quiet and holds no more tasks and descriptors than ``before``."""
    await gateway.quiet()
    await until(lambda: (tasks(), descriptors()) == before)


async def held(gateway: Gateway) -> tuple[int, int]:
    """Tasks and descriptors of an idle node that has served something already."""
    await gateway.ask(request("GET", "/healthz"))
    await gateway.quiet()
    return tasks(), descriptors()


# --- A: extra input ------------------------------------------------------------------------------

EXTRA = {
    "a CRLF": b"\r\n",
    "another request": request("GET", "/healthz"),
    "half of one": b"GET /hea",
    "garbage": b"\0\xff" * 100,
}


@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
async def test_defect_a_a_disconnect_is_seen_after_extra_input_on_a_stream(
    serving: Serving, extra: bytes
) -> None:
    """Needed until hypercorn goes on reading while h11 is paused, and tells the app when the peer
    ends: then `OneRequest.receive_some` may hand out what comes."""
    async with serving() as gateway:
        before = await held(gateway)
        wires = [await gateway.open("/events/a", version="1.0") for _ in range(10)]
        for wire in wires:
            await wire.opened()
            await wire.send(extra)
        await gateway.publish("a", "x")
        for wire in wires:
            assert (await wire.event()).data == "x"
            await wire.aclose()
        await released(gateway, before)
        assert gateway.node.hub.statistics().closed[Reason.GONE] == len(wires)


@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
async def test_defect_a_extra_input_does_not_keep_an_answer_open(
    serving: Serving, extra: bytes
) -> None:
    async with serving() as gateway:
        before = await held(gateway)
        for version in ("1.0", "1.1"):
            wire = await gateway.connect()
            await wire.send(request("GET", "/healthz", version=version) + extra)
            assert (await wire.response()).status == 200
            await wire.send(extra)
            with trio.fail_after(PROMPT):
                await wire.ended()
            await wire.aclose()
        await released(gateway, before)


# --- B: peers that stop reading ------------------------------------------------------------------


async def stalled_stream(gateway: Gateway) -> Wire:
    """A stream over HTTP/1.0 whose reader has stopped, with the node waiting to write to it."""
    wire = await gateway.connect(receive_buffer=4096)
    await wire.send(request("GET", "/events/a", ACCEPT, version="1.0"))
    await wire.opened()
    for _ in range(40):
        await gateway.publish("a", "x" * 50_000)
    return wire


async def stalled_answer(gateway: Gateway) -> Wire:
    """A long answer over HTTP/1.0 that its asker does not read."""
    wire = await gateway.connect(receive_buffer=4096)
    await wire.send(request("POST", "/publish", NDJSON, body=LONG_BODY, version="1.0"))
    assert await wire._some()
    return wire


STALLED = {"an endless response": stalled_stream, "a large response": stalled_answer}


@pytest.mark.parametrize("stall", STALLED.values(), ids=STALLED)
async def test_defect_b_abort_releases_who_waits_for_a_peer_that_does_not_read(
    serving: Serving,
    stall: Callable[[Gateway], Awaitable[Wire]],
) -> None:
    """Needed until hypercorn's `TCPServer.protocol_send` no longer shields its ``send_all`` from
    cancellation: then `Edge.abort` can go, since the nursery's end is enough."""
    async with serving(write_timeout=3600, max_body_bytes=len(LONG_BODY)) as gateway:
        before = await held(gateway)
        wire = await stall(gateway)
        assert len(gateway.edge._open) == 1
        gateway.edge.abort()
        await gateway.quiet()  # although nothing was read and the peer is still there
        await wire.aclose()
        await released(gateway, before)


@pytest.mark.parametrize("stall", STALLED.values(), ids=STALLED)
async def test_defect_b_a_peer_that_does_not_read_is_cut_after_the_write_timeout(
    serving: Serving,
    stall: Callable[[Gateway], Awaitable[Wire]],
) -> None:
    """Needed until hypercorn has a write timeout of its own: then `OneRequest.send_all` can go."""
    async with serving(write_timeout=0.3, max_body_bytes=len(LONG_BODY)) as gateway:
        before = await held(gateway)
        wire = await stall(gateway)
        await gateway.quiet()
        await wire.ended()
        await wire.aclose()
        await released(gateway, before)


async def test_defect_b_a_stalled_peer_does_not_hold_up_the_end_of_the_node(
    serving: Serving,
) -> None:
    with trio.fail_after(PATIENCE):
        async with serving(write_timeout=3600, max_body_bytes=len(LONG_BODY)) as gateway:
            await stalled_stream(gateway)
            await stalled_answer(gateway)
            assert len(gateway.edge._open) == 2


# --- C: ends of answers ---------------------------------------------------------------------------

ASKED = {
    "HTTP/1.0": request("GET", "/healthz", version="1.0"),
    "HTTP/1.0 with keep-alive": request(
        "GET", "/healthz", b"Connection: keep-alive\r\n", version="1.0"
    ),
    "HTTP/1.1": request("GET", "/healthz"),
    "HTTP/1.1 with close": request("GET", "/healthz", b"Connection: close\r\n"),
    "a publish": request("POST", "/publish/a", body=b"x", version="1.0"),
    "no content": request("GET", "/events/a?lastEventId=1-0.closed", version="1.0"),
    "a refusal": request("GET", "/nothing"),
    "a refused stream": request("GET", "/events", version="1.0"),
    "HEAD": request("HEAD", "/healthz"),
}


@pytest.mark.parametrize("raw", ASKED.values(), ids=ASKED)
async def test_defect_c_an_answer_is_followed_by_the_end_of_the_connection(
    serving: Serving, raw: bytes
) -> None:
    """Needed until quart-trio lets the last ``send`` of a response finish before it cancels the
    handler: then `Connection` can go, and `app.asgi_http_class` with it."""
    async with serving() as gateway:
        before = await held(gateway)
        wire = await gateway.connect()
        await wire.send(raw)
        with trio.fail_after(PROMPT):
            response = await wire.response(head_only=raw.startswith(b"HEAD"))
            assert await wire.to_end() == b""
        assert response.header("connection") == "close"
        await released(gateway, (before[0], before[1] + 1))  # the one is the asker's


async def test_an_answer_is_whole_when_its_asker_says_no_more() -> None:
    """A half-closed connection is how ``nc -N`` and some health checks ask."""
    async with running() as gateway:
        for version in ("1.0", "1.1"):
            for _ in range(20):
                wire = await gateway.connect()
                await wire.send(request("GET", "/healthz", version=version))
                await wire.stream.send_eof()
                assert (await wire.response()).status == 200


# --- F: the end of the node -----------------------------------------------------------------------


async def test_defect_f_streams_of_the_response_lane_are_told_at_shutdown() -> None:
    """quart-trio does not set ``app.shutdown_event``, and an app that waited for it would tell its
    streams nothing. The hub ends them like all others; a release that sets it changes nothing."""
    async with running(drain_seconds=0.1) as gateway:
        wires = [await gateway.open("/events/a", version="1.0") for _ in range(10)]
        for wire in wires:
            await wire.opened()
        await gateway.publish("a", "last")
        for wire in wires:
            assert (await wire.event()).data == "last"
        gateway.node.leaving = True
        await _end_streams(gateway.node.config, gateway.node)
        for wire in wires:
            (reconnect,) = await wire.blocks()
            assert "retry" in reconnect.fields
            assert (reconnect.event, reconnect.json) == ("reconnect", {"reason": "draining"})
        await gateway.quiet()
        assert gateway.node.hub.open_streams == 0
        assert gateway.node.hub.statistics().closed[Reason.DRAINING] == len(wires)


async def test_a_stream_that_was_let_in_at_the_last_is_told_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was admitted before the node was leaving, and added when all others had been ended."""
    looking, others_ended = trio.Event(), trio.Event()

    async def before_newest(
        bus: Bus, channels: Iterable[str], count: int, head: Position
    ) -> Position:
        looking.set()
        await others_ended.wait()
        return bus.head()

    async def end_streams(config: Config, node: Node) -> None:
        await _end_streams(config, node)
        others_ended.set()

    monkeypatch.setattr(streams, "before_newest", before_newest)
    monkeypatch.setattr(server, "_end_streams", end_streams)
    async with running(drain_seconds=5) as gateway, trio.open_nursery() as nursery:
        wire = await gateway.open("/events/a?replay=1")
        await looking.wait()
        node, listener = gateway.node, server.listen(gateway.node.config)
        scope = trio.CancelScope()
        await server._drain(node.config, node, gateway.front, listener, nursery, scope)
        await wire.opened()
        (reconnect,) = await wire.blocks()
        assert reconnect.event == "reconnect"


# --- G: streams that last -------------------------------------------------------------------------


async def test_defect_g_a_stream_lasts_longer_than_quarts_response_timeout(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Needed until quart does not apply RESPONSE_TIMEOUT to streaming responses: then
    ``response.timeout = None`` can go. The app is called as hypercorn calls it, in virtual time."""
    node = Node(Config(keepalive=15.0), max_clients=10)
    await nursery.start(node.run)
    app = make_app(node)
    assert app.config["RESPONSE_TIMEOUT"] == 60
    gone = trio.Event()
    asked = False
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await gone.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.1"},
        "http_version": "1.0",
        "method": "GET",
        "scheme": "http",
        "path": "/events/a",
        "raw_path": b"/events/a",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "extensions": {},
        "state": {"peer": "127.0.0.1", "asked_at": 0.0, "let_go_of_body": lambda: None},
    }
    nursery.start_soon(cast(Any, app), scope, receive, send)
    await trio.sleep(200)
    [position] = await node.bus.publish([Event(("a",), "late")])
    await trio.sleep(1)
    text = b"".join(message.get("body", b"") for message in sent).decode()
    assert text.count("event: keepalive\n") == 200 // 15
    assert text.endswith(f"id: {position}\ndata: late\n\n")
    assert node.hub.statistics().clients == 1
    gone.set()
    await trio.sleep(1)
    assert node.hub.statistics().clients == 0
    nursery.cancel_scope.cancel()


# --- the response lane is a lane like the other ---------------------------------------------------


async def test_both_lanes_carry_the_same_blocks() -> None:
    async with running(keepalive=0.1) as gateway:
        for number in range(300):
            await gateway.publish("a", str(number))
        seen: list[list[tuple[str, str | None, str | None]]] = []
        for version in ("1.1", "1.0"):
            wire = await gateway.open("/events/a?lastEventId=earliest", version=version)
            await wire.opened()
            blocks = [await wire.event() for _ in range(300)]
            seen.append([(block.event, block.id, block.data) for block in blocks])
            keepalive: Block = await wire.block()
            assert keepalive.event == "keepalive"
            assert keepalive.data is None
            assert str(keepalive.id) >= str(blocks[-1].id)
        assert seen[0] == seen[1]
        assert [data for _, _, data in seen[0]] == [str(number) for number in range(300)]
