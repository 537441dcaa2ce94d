"""Following a stream over lost connections, against scripted bytes on real sockets."""

import gc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest
import scripted
import trio
from gateway.follow import Lost, follow
from scripted import NO_CONTENT, STREAM, Script, ScriptedServer
from trio.testing import wait_all_tasks_blocked

from gateway.errors import GatewayError
from gateway.sse import MAX_LINE_BYTES, ParseLimit, ServerSentEvent

QUICK = 0.001
"""Seconds: virtual time does not pass while a socket is waited for."""

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)

Follow = AsyncGenerator[ServerSentEvent | Lost, None]


@asynccontextmanager
async def following(server: ScriptedServer, last_event_id: str = "") -> AsyncIterator[Follow]:
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        aclosing(
            follow(client, f"{server.url}/events", last_event_id=last_event_id, retry=QUICK)
        ) as events,
    ):
        yield events


async def all_of(server: ScriptedServer, last_event_id: str = "") -> list[ServerSentEvent | Lost]:
    async with following(server, last_event_id) as events:
        return [event async for event in events]


def message(data: str, id: str = "") -> ServerSentEvent:
    return ServerSentEvent("message", data, id)


async def test_events_come_whole_however_they_were_cut(nursery: trio.Nursery) -> None:
    pieces = [b"id: 1-0\neve", b"nt: tick\nda", b"ta: a\n", b"data: \xc3", b"\xa9\n\n: only this"]
    server = await scripted.start(nursery, [STREAM, *pieces], [NO_CONTENT])
    events = await all_of(server)
    assert events[0] == ServerSentEvent("tick", "a\n\u00e9", "1-0")
    assert events[1:] == [Lost("the stream ended", QUICK)]


async def test_a_request_is_an_event_sources(nursery: trio.Nursery) -> None:
    server = await scripted.start(nursery, [NO_CONTENT])
    await all_of(server)
    assert server.requests[0].startswith(b"GET /events HTTP/1.1\r\n")
    assert scripted.header(server.requests[0], b"Accept") == b"text/event-stream"
    assert scripted.header(server.requests[0], b"Cache-Control") == b"no-store"
    assert scripted.header(server.requests[0], b"Last-Event-ID") is None


async def test_after_a_clean_end_it_resumes_after_the_last_event(nursery: trio.Nursery) -> None:
    server = await scripted.start(
        nursery,
        [STREAM, b"id: 1-0\ndata: a\n\nid: 2-0\ndata: never ended"],
        [STREAM, b"data: b\n\n"],
        [STREAM, b"event: keepalive\nid: 3-0\n\n"],
        [NO_CONTENT],
    )
    lost = Lost("the stream ended", QUICK)
    assert await all_of(server, "0-9") == [
        *(message("a", "1-0"), lost),
        *(message("b", "1-0"), lost),
        lost,
    ]
    sent = [scripted.header(request, b"Last-Event-ID") for request in server.requests]
    assert sent == [b"0-9", b"1-0", b"1-0", b"3-0"]


async def test_a_position_may_be_any_text(nursery: trio.Nursery) -> None:
    server = await scripted.start(nursery, [STREAM, b"id: \xc3\xa9\n\n"], [NO_CONTENT])
    await all_of(server)
    assert scripted.header(server.requests[1], b"Last-Event-ID") == b"\xc3\xa9"


@pytest.mark.parametrize(
    "broken",
    [
        [CHUNKED, b"e\r\ndata: a\n\ndata:\r\n"],
        [CHUNKED, b"9\r\ndata: a\n\n\r\nno size\r\n"],
    ],
    ids=["cut", "malformed"],
)
async def test_a_broken_connection_is_told_and_the_next_one_resumes(
    nursery: trio.Nursery, broken: Script
) -> None:
    server = await scripted.start(nursery, broken, [STREAM, b"data: b\n\n"], [NO_CONTENT])
    first, lost, second, _ = await all_of(server)
    assert (first, second) == (message("a"), message("b"))
    assert isinstance(lost, Lost)
    assert lost.reason.startswith(server.url.removeprefix("http://") + ": ")


async def test_a_refused_connection_is_tried_again() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = ScriptedServer(listener, iter(()))
    await listener.aclose()
    async with following(server) as events:
        assert isinstance(await anext(events), Lost)
        assert isinstance(await anext(events), Lost)


async def test_the_delay_is_what_the_stream_last_told(nursery: trio.Nursery) -> None:
    server = await scripted.start(
        nursery, [STREAM, b"retry: 2\n\n"], [STREAM, b"data: a\n\n"], [NO_CONTENT]
    )
    lost = Lost("the stream ended", 0.002)
    assert await all_of(server) == [lost, message("a"), lost]


async def test_a_redirect_is_followed(nursery: trio.Nursery) -> None:
    found = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"
    server = await scripted.start(nursery, [found], [NO_CONTENT])
    assert await all_of(server) == []
    assert server.requests[1].startswith(b"GET /there ")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            scripted.answer(
                "503 Service Unavailable", "application/problem+json", b'{"detail": "Full."}'
            ),
            "^Full.$",
        ),
        (scripted.answer("404 Not Found", "text/html", b"<p>"), "/events answered 404 Not Found.$"),
        (scripted.answer("400 Bad Request", "application/json", b"[1]"), "answered 400"),
        (scripted.answer("200 OK", "text/html", b""), "is text/html, not text/event-stream.$"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "is untyped, not"),
    ],
)
async def test_an_answer_that_is_no_event_stream_ends_it(
    nursery: trio.Nursery, answer: bytes, sentence: str
) -> None:
    server = await scripted.start(nursery, [answer])
    with pytest.raises(GatewayError, match=sentence):
        await all_of(server)


async def test_an_event_beyond_all_bounds_ends_it(nursery: trio.Nursery) -> None:
    line = b"data: " + b"x" * MAX_LINE_BYTES
    server = await scripted.start(nursery, [STREAM, b"data: a\n\n", line, None])
    with pytest.raises(ParseLimit):
        await all_of(server)


async def test_leaving_an_open_stream_closes_it_and_leaves_nothing_behind(
    nursery: trio.Nursery,
) -> None:
    server = await scripted.start(nursery, [CHUNKED, b"12\r\ndata: a\n\ndata: b\n\n\r\n", None])
    async with following(server) as events:
        assert await anext(events) == message("a")
    gc.collect()  # an async generator that was left suspended warns here, which fails the test
    await wait_all_tasks_blocked()


async def test_cancelling_in_between_two_events_leaves_nothing_behind(
    nursery: trio.Nursery,
) -> None:
    server = await scripted.start(nursery, [STREAM, b"data: a\n\ndata: b\n\n", None])
    with trio.CancelScope() as scope:
        async with following(server) as events:
            async for _ in events:
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    gc.collect()
    await wait_all_tasks_blocked()
