"""A subscription over lost connections, against scripted bytes on real sockets, on both loops."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
import anyio.lowlevel
import httpx
import pytest
import scripted
import trio
from loops import BACKENDS, on
from scripted import STREAM, Script, ScriptedServer
from trio.testing import wait_all_tasks_blocked

from gateway.client import (
    Connected,
    ConnectionLost,
    Dropped,
    Ended,
    Event,
    EventsMissing,
    Gap,
    Item,
    Reconnecting,
    StreamRefused,
    Subscription,
    subscribe,
)
from gateway.client.session import LONGEST_DELAY
from gateway.client.subscription import BUFFERED_CHUNKS
from gateway.sse import MAX_LINE_BYTES, ParseLimit

QUICK = 0.001
"""Seconds: the longest delay between two connections."""

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)

NO_CONTENT = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def following(
    server: ScriptedServer, last_event_id: str = "", attempts: int | None = None
) -> AsyncIterator[Subscription]:
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        subscribe(
            server.url,
            ["a"],
            last_event_id=last_event_id,
            attempts=attempts,
            annotate=False,
            min_delay=QUICK,
            max_delay=QUICK,
            client=client,
        ) as subscription,
    ):
        yield subscription


async def all_of(server: ScriptedServer, last_event_id: str = "") -> list[Item]:
    async with following(server, last_event_id) as subscription:
        return [item async for item in subscription.items]


def events_of(items: list[Item]) -> list[Event]:
    return [item for item in items if isinstance(item, Event)]


def message(data: str, id: str = "") -> Event:
    return Event("message", data, id, id)


async def test_events_come_whole_however_they_were_cut(nursery: trio.Nursery) -> None:
    pieces = [b"id: 1-0\neve", b"nt: tick\nda", b"ta: a\n", b"data: \xc3", b"\xa9\n\n: only this"]
    server = await scripted.start(nursery, [STREAM, *pieces], [NO_CONTENT])
    event, again, ended = await all_of(server)
    assert event == Event("tick", "a\n\u00e9", "1-0", "1-0")
    assert isinstance(again, Reconnecting)
    assert (again.attempt, again.reason) == (1, "the stream ended")
    assert 0 <= again.delay <= QUICK
    assert isinstance(ended, Ended)


async def test_a_request_is_an_event_sources(nursery: trio.Nursery) -> None:
    server = await scripted.start(nursery, [NO_CONTENT])
    await all_of(server)
    assert server.requests[0].startswith(b"GET /events?channel=a HTTP/1.1\r\n")
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
    assert events_of(await all_of(server, "0-9")) == [message("a", "1-0"), message("b", "1-0")]
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
    first, lost, second, *_ = await all_of(server)
    assert (first, second) == (message("a"), message("b"))
    assert isinstance(lost, Reconnecting)
    assert lost.reason.startswith(server.url.removeprefix("http://") + ": ")


async def refused_server() -> ScriptedServer:
    """Where nobody listens any more."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = ScriptedServer(listener, iter(()))
    await listener.aclose()
    return server


async def test_a_refused_connection_is_tried_again_as_often_as_is_allowed() -> None:
    async with following(await refused_server(), attempts=3) as subscription:
        for attempt in (1, 2, 3):
            item = await anext(subscription.items)
            assert isinstance(item, Reconnecting)
            assert item.attempt == attempt
        with pytest.raises(ConnectionLost, match=r"^3 attempts in a row have failed: 127"):
            await anext(subscription)


async def test_the_first_delay_is_what_the_stream_last_told(nursery: trio.Nursery) -> None:
    server = await scripted.start(nursery, [STREAM, b"retry: 2\n\n"], [NO_CONTENT])
    lost, _ = await all_of(server)
    assert lost == Reconnecting(1, 0.002, "the stream ended")


async def test_a_redirect_is_followed(nursery: trio.Nursery) -> None:
    found = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"
    server = await scripted.start(nursery, [found], [NO_CONTENT])
    assert [type(item) for item in await all_of(server)] == [Ended]
    assert server.requests[1].startswith(b"GET /there ")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            scripted.answer(
                "403 Forbidden", "application/problem+json", b'{"detail": "Not granted."}'
            ),
            "^Not granted.$",
        ),
        (
            scripted.answer("404 Not Found", "text/html", b"<p>"),
            "answered 404 Not Found.$",
        ),
        (scripted.answer("400 Bad Request", "application/json", b"[1]"), "answered 400"),
        (scripted.answer("200 OK", "text/html", b""), "is text/html, not text/event-stream.$"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "is untyped, not"),
    ],
)
async def test_an_answer_that_is_no_event_stream_ends_it(
    nursery: trio.Nursery, answer: bytes, sentence: str
) -> None:
    server = await scripted.start(nursery, [answer])
    with pytest.raises(StreamRefused, match=sentence):
        await all_of(server)


async def test_an_event_beyond_all_bounds_ends_it(nursery: trio.Nursery) -> None:
    line = b"data: " + b"x" * MAX_LINE_BYTES
    server = await scripted.start(nursery, [STREAM, b"data: a\n\n", line, None])
    with pytest.raises(ParseLimit):
        await all_of(server)


@BACKENDS
async def test_leaving_an_open_stream_closes_it_and_leaves_nothing_behind(
    nursery: trio.Nursery, backend: str
) -> None:
    server = await scripted.start(nursery, [CHUNKED, b"12\r\ndata: a\n\ndata: b\n\n\r\n", None])

    async def leave() -> None:
        async with following(server) as subscription:
            assert await anext(subscription) == message("a")

    await on(backend, leave)


@BACKENDS
async def test_waiting_can_be_cancelled_and_loses_nothing(
    nursery: trio.Nursery, backend: str
) -> None:
    go_on = trio.Event()
    token = trio.lowlevel.current_trio_token()
    pieces: Script = [STREAM, b"data: a\n\nda", go_on, b"ta: b\n\n", None]
    server = await scripted.start(nursery, pieces)

    async def cancel() -> None:
        async with following(server) as subscription:
            assert await anext(subscription) == message("a")
            with anyio.move_on_after(0):
                await anext(subscription)
            token.run_sync_soon(go_on.set)
            assert await anext(subscription) == message("b")

    await on(backend, cancel)
    assert len(server.requests) == 1, "the connection was kept"


@BACKENDS
async def test_what_the_block_raises_comes_out_as_it_is(
    nursery: trio.Nursery, backend: str
) -> None:
    server = await scripted.start(nursery, [STREAM, b"data: a\n\n", None])

    async def fail() -> None:
        async with following(server) as subscription:
            await anext(subscription)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await on(backend, fail)


HOLES = (
    b'id: 1-0\nevent: connected\ndata: {"clientId":"c.1","channels":["a"],"keepalive":20000}\n\n'
    b'event: gap\ndata: {"channels":["a"],"reason":"trimmed"}\n\n'
    b"id: 2-0\ndata: one\n\n"
    b'event: dropped\ndata: {"count":3}\n\n'
    b"id: 3-0\ndata: two\n\n"
    b"event: keepalive\nid: 4-0\n\n"
)


async def test_missing_events_are_raised_where_they_are_missing_and_reading_goes_on(
    nursery: trio.Nursery,
) -> None:
    server = await scripted.start(nursery, [STREAM, HOLES], [NO_CONTENT])
    seen: list[str] = []
    async with following(server) as subscription:
        while True:
            try:
                async for event in subscription:
                    seen.append(event.data)
                break
            except EventsMissing as hole:
                seen.append(f"{hole} {type(hole.notice).__name__}")
        assert subscription.last_event_id == "4-0"
    assert seen == [
        "Events of a are missing: history is trimmed. Gap",
        "one",
        "3 events are missing: the reader was too slow for them. Dropped",
        "two",
    ]


async def test_items_are_events_and_notices_in_their_order(nursery: trio.Nursery) -> None:
    server = await scripted.start(nursery, [STREAM, HOLES], [NO_CONTENT])
    items = await all_of(server)
    kinds = [Connected, Gap, Event, Dropped, Event, Reconnecting, Ended]
    assert [type(item) for item in items] == kinds
    connected = items[0]
    assert isinstance(connected, Connected)
    assert (connected.client_id, connected.channels) == ("c.1", ("a",))
    assert connected.position == "1-0"


async def test_the_position_is_that_of_what_was_given_out_and_not_of_what_was_read(
    nursery: trio.Nursery,
) -> None:
    told = b"id: 1-0\ndata: a\n\nid: 2-0\ndata: b\n\nid: 3-0\nevent: keepalive\n\n"
    server = await scripted.start(nursery, [STREAM, told], [NO_CONTENT])
    async with following(server, "0-9") as subscription:
        assert subscription.last_event_id == "0-9"
        for data, id in (("a", "1-0"), ("b", "2-0")):
            assert await anext(subscription) == message(data, id)
            assert subscription.last_event_id == id
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)
        assert subscription.last_event_id == "3-0"


async def test_a_closed_id_is_the_end(nursery: trio.Nursery) -> None:
    server = await scripted.start(nursery, [STREAM, b"data: a\n\nid: 7-0.closed\n\n", None])
    event, ended = await all_of(server)
    assert (event, type(ended)) == (message("a"), Ended)


async def test_events_of_an_annotated_stream_name_channels_and_their_own_positions(
    nursery: trio.Nursery,
) -> None:
    told = b"id: 5-0\nchannel: a,b\ndata: x\n\nat: 3-0\nchannel: c\ndata: missed\n\n"
    server = await scripted.start(nursery, [STREAM, told], [NO_CONTENT])
    assert events_of(await all_of(server)) == [
        Event("message", "x", "5-0", "5-0", ("a", "b")),
        Event("message", "missed", "3-0", "5-0", ("c",)),
    ]


async def test_a_reader_that_stops_holds_a_bounded_part_of_the_stream(
    nursery: trio.Nursery,
) -> None:
    """The rest stays in the socket, and then with the gateway."""
    block = b"data: " + b"x" * 60_000 + b"\n\n"
    sent = 0

    async def count(stream: trio.SocketStream) -> None:
        nonlocal sent
        await stream.receive_some()
        await stream.send_all(STREAM)
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(block)
                sent += 1

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, count, [listener])
    server = ScriptedServer(listener, iter(()))
    async with following(server) as subscription:
        await anext(subscription)
        await wait_all_tasks_blocked(cushion=0.05)
        assert BUFFERED_CHUNKS // 2 < sent < 400


def test_what_cannot_be_asked_for_is_refused_at_once() -> None:
    for wrong, sentence in (
        (partial(subscribe, "ftp://x", ["a"]), "not the address of a gateway"),
        (partial(subscribe, "http://x"), "names a channel or a user"),
        (partial(subscribe, "http://x", ["a"], attempts=0), "one attempt at the least"),
        (partial(subscribe, "http://x", ["a"], min_delay=LONGEST_DELAY + 1), "no range"),
    ):
        with pytest.raises(ValueError, match=sentence):
            wrong()


async def test_many_channels_are_asked_for_by_post(nursery: trio.Nursery) -> None:
    server = await scripted.start(nursery, [NO_CONTENT])
    names = [f"channel.{number}" for number in range(1000)]
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        subscribe(server.url, names, last_event_id="1-0", client=client) as subscription,
    ):
        assert [event async for event in subscription] == []
    [request] = server.requests
    assert request.startswith(b"POST /events HTTP/1.1\r\n")
    assert scripted.header(request, b"Last-Event-ID") == b"1-0"
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    assert body == {"channels": names, "annotate": True}
