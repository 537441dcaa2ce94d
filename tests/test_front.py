"""The front on the wire: whatever a connection sends, it costs nobody else anything.

What each request means is in test_api, what the parser does with bytes in test_http1; here is what
a peer sees of both, on real sockets against a whole node.
"""

import logging
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from running import (
    ACCEPT,
    HOST,
    Gateway,
    Wire,
    descriptors,
    request,
    running,
    tasks,
    until,
)

from gateway import connection
from gateway.connection import CROWD
from gateway.front import BEGUN_PER_TURN
from gateway.http1_render import CONTINUE
from gateway.server import listen
from gateway.stream_state import Reason

PUBLISH = request("POST", "/publish/a", body=b"x")
STATS = request("GET", "/stats")


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is sent, nothing fails inside."""
    yield
    assert [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR] == []


@asynccontextmanager
async def nothing_left(gateway: Gateway) -> AsyncIterator[None]:
    """What is done here leaves neither a task nor a descriptor on the node."""
    await gateway.ask(STATS)  # whatever is made once has been made
    await gateway.quiet()
    before = tasks(), descriptors()
    yield
    await gateway.close_wires()
    await gateway.quiet()
    await until(lambda: (tasks(), descriptors()) == before)


async def flood(wire: Wire, piece: bytes, times: int) -> None:
    """Send for as long as the peer takes it."""
    try:
        for _ in range(times):
            await wire.send(piece)
    except trio.BrokenResourceError:
        pass


async def test_what_has_no_end_is_refused_long_before_it_would() -> None:
    """Each would have filled the memory of a parser that bounds nothing."""
    endless = {
        "a header": (b"GET /events/a HTTP/1.1\r\n" + HOST + b"A: ", b"a" * 65_536, 320, 431),
        "headers": (b"GET /events/a HTTP/1.1\r\n" + HOST, b"A: b\r\n" * 10_000, 320, 431),
        "a target": (b"GET /events/", b"a" * 65_536, 320, 431),
        "a method": (b"", b"A" * 65_536, 320, 400),
        "a chunk extension": (
            b"POST /publish/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5;",
            b"a" * 65_536,
            320,
            431,
        ),
        "trailers": (
            b"POST /publish/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
            b"A: b\r\n" * 10_000,
            320,
            431,
        ),
        "blank lines": (b"", b"\r\n" * 32_768, 64, 400),
    }
    async with running() as gateway, nothing_left(gateway):
        for name, (beginning, piece, times, status) in endless.items():
            wire = await gateway.connect()
            async with trio.open_nursery() as nursery:
                await wire.send(beginning)
                nursery.start_soon(flood, wire, piece, times)
                response = await wire.response()
                assert response.status == status, (name, response)
                assert response.header("content-type") == "application/problem+json"
                await wire.ended()
        assert gateway.node.bus.statistics().published == 0


REFUSED = {
    "no version": (b"GET /events/a\r\n\r\n", 505),
    "HTTP/0.9": (b"GET /events/a HTTP/0.9\r\n" + HOST + b"\r\n", 505),
    "HTTP/2.0": (b"GET /events/a HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "HTTP/2 outright": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "CONNECT": (b"CONNECT gateway.test:443 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "an upgrade with a body": (
        request("POST", "/publish/a", b"Connection: upgrade\r\nUpgrade: h2c\r\n", body=b"x"),
        400,
    ),
    "two lengths": (request("POST", "/publish/a", b"Content-Length: 1\r\n", body=b"x"), 400),
    "two other lengths": (request("POST", "/publish/a", b"Content-Length: 2\r\n", body=b"x"), 400),
    "two hosts": (request("GET", "/events/a", HOST), 400),
    "two other hosts": (request("GET", "/events/a", b"Host: b\r\n"), 400),
    "a length and a coding": (
        request("POST", "/publish/a", b"Transfer-Encoding: chunked\r\n", body=b"0\r\n\r\n"),
        400,
    ),
    "a coding before chunked": (
        request("POST", "/publish/a", b"Transfer-Encoding: gzip, chunked\r\n"),
        501,
    ),
    "a coding over HTTP/1.0": (
        request("POST", "/publish/a", b"Transfer-Encoding: chunked\r\n", version="1.0"),
        400,
    ),
    "a folded header": (request("GET", "/events/a", b"A: b\r\n c\r\n"), 400),
    "a space before the colon": (request("GET", "/events/a", b"A : b\r\n"), 400),
    "a bare line feed": (b"GET /events/a HTTP/1.1\n" + HOST + b"\r\n", 400),
    "a length that is a sum": (request("POST", "/publish/a", b"Content-Length: +1\r\n"), 400),
    "a user in the target": (request("GET", "http://u@b/events/a"), 400),
    "an expectation": (request("POST", "/publish/a", b"Expect: a\r\n", body=b"x"), 417),
    "a chunk that is no number": (
        request("POST", "/publish/a", b"Transfer-Encoding: chunked\r\n") + b"x\r\n\r\n",
        400,
    ),
}  # fmt: skip


async def test_what_another_reader_could_take_otherwise_is_refused_and_nothing_after_is_read() -> (
    None
):
    async with running() as gateway, nothing_left(gateway):
        for name, (raw, status) in REFUSED.items():
            wire = await gateway.connect()
            await wire.send(raw + PUBLISH)
            response = await wire.response()
            assert response.status == status, (name, response)
            assert response.header("connection") == "close"
            assert response.json["detail"]
            assert await wire.to_end() == b"", name
        assert gateway.node.bus.statistics().published == 0


async def test_requests_may_come_byte_by_byte() -> None:
    async with running() as gateway, nothing_left(gateway):
        chunked = request("POST", "/publish/a", b"Transfer-Encoding: chunked\r\n")
        chunked += b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n"
        stream = await gateway.open("/events/a")
        await stream.opened()
        wire = await gateway.connect()
        for raw in (PUBLISH, chunked, STATS):
            for byte in raw:
                await wire.send(bytes((byte,)))
            response = await wire.response()
            assert response.status == (202 if raw is not STATS else 200)
        assert [(await stream.event()).data for _ in range(2)] == ["x", "abcde"]
        opening = await gateway.connect()
        for byte in request("GET", "/events/a", ACCEPT):
            await opening.send(bytes((byte,)))
        await opening.opened()


async def test_thousands_of_requests_in_one_write_are_answered_in_order() -> None:
    count = 3000
    async with running() as gateway, nothing_left(gateway):
        stream = await gateway.open("/events/a")
        await stream.opened()
        wire = await gateway.connect()
        ids: list[object] = []

        async def read() -> None:
            for _ in range(count):
                response = await wire.response()
                assert response.status == 202
                ids.append(response.json["id"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            bodies = [str(number).encode() for number in range(count)]
            raw = b"".join(request("POST", "/publish/a", body=body) for body in bodies)
            await wire.send(raw)
        blocks = [await stream.event() for _ in range(count)]
        assert [block.data for block in blocks] == [body.decode() for body in bodies]
        assert [block.id for block in blocks] == ids


async def test_hot_requests_keep_their_connection_and_a_cold_one_ends_it() -> None:
    async with running() as gateway, nothing_left(gateway):
        wire = await gateway.connect()
        for _ in range(3):
            await wire.send(PUBLISH)
            response = await wire.response()
            assert (response.status, response.header("connection")) == (202, None)
        await wire.send(b"\r\n" + request("POST", "/publish/a%20b", body=b"x"))
        assert (await wire.response()).status == 400  # a refusal of the api keeps it as well
        await wire.send(PUBLISH + STATS + PUBLISH)
        assert (await wire.response()).status == 202
        cold = await wire.response()
        assert (cold.status, cold.json["published"]) == (200, 4)
        assert cold.header("connection") == "close"
        assert await wire.to_end() == b""
        assert gateway.node.bus.statistics().published == 4


@pytest.mark.parametrize("first", [PUBLISH, STATS], ids=["hot", "cold"])
async def test_what_comes_after_connection_close_is_not_read(first: bytes) -> None:
    async with running() as gateway, nothing_left(gateway):
        wire = await gateway.connect()
        closing = first.replace(HOST, HOST + b"Connection: close\r\n")
        await wire.send(closing + PUBLISH + b"garbage \0")
        response = await wire.response()
        assert response.status in (200, 202)
        assert response.header("connection") == "close"
        assert await wire.to_end() == b""
        assert gateway.node.bus.statistics().published == (first is PUBLISH)


async def test_an_answer_arrives_although_more_was_sent_than_is_read() -> None:
    """Closing a socket with unread input resets the connection, and the answer would be lost."""
    async with running() as gateway, nothing_left(gateway):
        wire = await gateway.connect()
        await wire.send(request("POST", "/publish/a", b"Content-Length: 9999999\r\n"))
        for _ in range(8):
            await wire.send(b"x" * 65_536)
        assert (await wire.response()).status == 413
        assert await wire.to_end() == b""


async def test_trailers_are_no_headers_of_this_or_the_next_request() -> None:
    async with running() as gateway, nothing_left(gateway):
        await gateway.publish("a", "one")
        trailers = b"0\r\nAuthorization: Bearer x\r\nLast-Event-ID: earliest\r\nHost: b\r\n\r\n"
        chunked = request("POST", "/publish/a", b"Transfer-Encoding: chunked\r\n")
        wire = await gateway.connect()
        await wire.send(chunked + b"3\r\ntwo\r\n" + trailers + request("GET", "/events/a", ACCEPT))
        assert (await wire.response()).status == 202
        await wire.opened()
        await gateway.publish("a", "three")
        assert (await wire.event()).data == "three"


async def test_a_target_in_absolute_form_is_served() -> None:
    async with running() as gateway, nothing_left(gateway):
        for target, status in (
            ("http://gateway.test/publish/a", 202),
            ("HTTPS://other.test:1/publish/a?event=t", 202),
            ("http://gateway.test", 405),
        ):
            response = await gateway.ask(request("POST", target, body=b"x"))
            assert response.status == status, target
        response = await gateway.ask(request("GET", "http://gateway.test/healthz"))
        assert response.status == 200


async def test_who_asks_may_hold_the_body_back_until_told_to_continue() -> None:
    async with running() as gateway, nothing_left(gateway):
        for target in ("/publish/a", "http://b/%70ublish/a"):  # served here, and behind
            wire = await gateway.connect()
            await wire.send(request("POST", target, b"Expect: 100-continue\r\n", body=b"x")[:-1])
            assert (await wire.response()).status == 100
            await wire.send(b"x")
            assert (await wire.response()).status == 202
        wire = await gateway.connect()
        await wire.send(request("POST", "/publish/a", b"Expect: 100-continue\r\n", body=b"x"))
        assert (await wire.response()).status == 202  # who did not wait is not told
        wire = await gateway.connect()
        await wire.send(
            request("POST", "/publish/a", b"Expect: 100-continue\r\nContent-Length: 9999999\r\n")
        )
        assert (await wire.response()).status == 413  # and an unwanted body is not asked for
        assert CONTINUE not in await wire.to_end()


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


async def test_an_upgrade_is_ignored_and_the_connection_closed_after() -> None:
    """These headers are the ones of ``curl --http2``."""
    async with running() as gateway, nothing_left(gateway):
        for raw, status in (
            (request("GET", "/healthz", UPGRADE), 200),
            (request("GET", "/healthz", *UPGRADE.splitlines(keepends=True)[1:]), 200),
            (request("GET", "/events", UPGRADE), 400),
            (request("POST", "/publish/a", UPGRADE, body=b""), 202),
        ):
            wire = await gateway.connect()
            await wire.send(raw + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            response = await wire.response()
            assert response.status == status
            assert response.header("connection") == "close"
            assert response.header("upgrade") is None
            assert await wire.to_end() == b""
        wire = await gateway.open("/events/a", UPGRADE)
        await wire.opened()
        await gateway.publish("a", "y")
        assert (await wire.event()).data == "y"


# --- streams --------------------------------------------------------------------------------------

STRAY = [b"\r\n", PUBLISH, STATS, b"\0\xff garbage"]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("stray", STRAY, ids=["CRLF", "hot", "cold", "garbage"])
async def test_nothing_after_a_streams_request_is_a_request(
    stray: bytes, at_once: bool, version: str
) -> None:
    async with running() as gateway, nothing_left(gateway):
        wire = await gateway.connect()
        opening = request("GET", "/events/a", ACCEPT, version=version)
        await wire.send(opening + stray if at_once else opening)
        await wire.opened()
        if not at_once:
            await wire.send(stray)
        await gateway.publish("a", "still here")
        assert (await wire.event()).data == "still here"
        assert gateway.node.bus.statistics().published == 1


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_too_much_stray_input_closes_a_stream(version: str) -> None:
    async with running() as gateway, nothing_left(gateway):
        wire = await gateway.open("/events/a", version=version)
        await wire.opened()
        await wire.send(b"x" * 4096)
        await gateway.publish("a", "at the bound")
        assert (await wire.event()).data == "at the bound"
        await wire.send(b"x")
        assert await wire.ended()
        await gateway.quiet()
        if version == "1.1":
            assert gateway.node.hub.statistics().closed[Reason.UNEXPECTED_INPUT] == 1


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_streams_that_their_peers_leave_in_any_way_are_gone(version: str) -> None:
    async with running() as gateway, nothing_left(gateway):
        wires = [await gateway.open("/events/a", version=version) for _ in range(30)]
        for wire in wires:
            await wire.opened()
        for number, wire in enumerate(wires):
            if number % 3 == 0:
                await wire.stream.send_eof()
            elif number % 3 == 1:
                wire.socket_stream.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                await wire.aclose()
            else:
                await wire.aclose()
        await gateway.quiet()
        assert gateway.node.hub.statistics().closed[Reason.GONE] == 30


# --- what a connection costs others ---------------------------------------------------------------


async def test_connections_that_break_off_cost_nobody_else_anything() -> None:
    """Cut at any byte and in any way, while a publisher and a reader go on."""
    chunked = request("POST", "/publish/b", b"Transfer-Encoding: chunked\r\n") + b"5\r\nabcde\r\n0"
    async with running() as gateway, nothing_left(gateway):
        stream = await gateway.open("/events/a")
        await stream.opened()
        publisher = await gateway.connect()
        for number, raw in enumerate((chunked, STATS, request("GET", "/events/b", ACCEPT))):
            for cut in range(0, len(raw) + 1, 5):
                wire = await gateway.connect()
                await wire.send(raw[:cut])
                if cut % 2:
                    linger = struct.pack("ii", 1, 0)  # a reset instead of an end
                    wire.socket_stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                await wire.aclose()
            await publisher.send(request("POST", "/publish/a", body=b"%d" % number))
            assert (await publisher.response()).status == 202
            assert (await stream.event()).data == str(number)


async def test_a_peer_that_resets_while_a_long_answer_is_written_costs_nobody_anything() -> None:
    """The answer is larger than all buffers on the way, so the node waits to write it."""
    lines = b'{"channel":"b c","data":1}\n' * 30_000
    body = b"Content-Type: application/x-ndjson\r\n"
    async with running(max_body_bytes=len(lines)) as gateway, nothing_left(gateway):
        stream = await gateway.open("/events/a")
        await stream.opened()
        wire = await gateway.connect(receive_buffer=4096)
        await wire.send(request("POST", "/publish", body, body=lines))
        assert await wire._some()
        wire.socket_stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await wire.aclose()
        await gateway.publish("a", "x")
        assert (await stream.event()).data == "x"


async def test_a_peer_that_does_not_read_its_answer_is_cut() -> None:
    lines = b'{"channel":"b c","data":1}\n' * 30_000
    kind = b"Content-Type: application/x-ndjson\r\n"
    async with (
        running(max_body_bytes=len(lines), write_timeout=0.2) as gateway,
        nothing_left(gateway),
    ):
        wire = await gateway.connect(receive_buffer=4096)
        await wire.send(request("POST", "/publish", kind, body=lines))
        assert await wire._some()
        await gateway.quiet()


async def test_bodies_wait_for_room_and_are_refused_when_none_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "BODIES_BYTES", 100)
    head = b"POST /publish/a HTTP/1.1\r\nHost: x\r\nContent-Length: 80\r\n\r\n"
    async with running(publish_wait=0.3) as gateway, nothing_left(gateway):
        first, second = await gateway.connect(), await gateway.connect()
        await first.send(head)
        await until(lambda: gateway.front._service.held_bytes == 80)
        await second.send(head)
        assert (await second.response()).status == 503
        third = await gateway.connect()
        await third.send(head + b"x" * 80)
        assert (await third.response()).status == 202  # in one piece with its head it is not held
        fourth = await gateway.connect()
        await fourth.send(head)
        await first.send(b"x" * 80)
        assert (await first.response()).status == 202
        await fourth.send(b"x" * 80)
        assert (await fourth.response()).status == 202
        assert gateway.node.refused["bodies"] == 1
        assert gateway.front._service.held_bytes == 0


async def test_over_the_bound_of_connections_they_are_told_so() -> None:
    """An EventSource in a way that does not end it; everybody else by 503."""
    async with running(max_connections=3) as gateway, nothing_left(gateway):
        stream = await gateway.open("/events/a")
        await stream.opened()
        idle = [await gateway.connect(), await gateway.connect()]
        for wire in idle:
            await wire.send(PUBLISH)
            assert (await wire.response()).status == 202
        response = await gateway.ask(PUBLISH)
        assert (response.status, response.header("retry-after")) == (503, "2")
        response = await gateway.ask(request("GET", "/events/a", b"Accept: text/event-stream\r\n"))
        assert response.status == 200
        assert b'event: reconnect\ndata: {"reason":"connections"}\n\n' in response.body
        assert gateway.node.refused["connections"] == 2
        assert gateway.node.bus.statistics().published == 2
        await idle[0].aclose()
        await until(lambda: len(gateway.front._connections) == 1)
        assert (await gateway.ask(PUBLISH)).status == 202


async def test_far_over_the_bound_of_connections_they_are_closed_at_once() -> None:
    async with running(max_connections=1) as gateway, nothing_left(gateway):
        crowd = [await gateway.connect() for _ in range(1 + CROWD)]
        await until(lambda: len(gateway.front._connections) == len(crowd))
        assert await (await gateway.connect()).ended()
        assert gateway.node.refused["connections"] == 1


def storm(port: int, count: int) -> list[socket.socket]:
    """So many connections, each with a publish, before the node has had a turn."""
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for each in crowd:
        each.sendall(PUBLISH)
        each.setblocking(False)
    return crowd


async def answers(crowd: list[socket.socket]) -> list[bytes]:
    """The first line of what each is answered."""
    with trio.fail_after(10):
        for each in crowd:
            await trio.lowlevel.wait_readable(each)
    lines = [each.recv(65_536).partition(b"\r\n")[0] for each in crowd]
    for each in crowd:
        each.close()
    return lines


async def until_some_wait(gateway: Gateway) -> None:
    with trio.fail_after(10):
        while not gateway.front._waiting:
            await trio.lowlevel.checkpoint()


async def test_a_storm_is_taken_from_the_kernel_at_once_and_begun_in_turns() -> None:
    """What the kernel's queue does not hold would be forgotten."""
    async with running() as gateway, nothing_left(gateway):
        crowd = storm(gateway.port, 100)
        await until_some_wait(gateway)
        begun = 100 - gateway.front._waiting
        assert begun in (BEGUN_PER_TURN, 2 * BEGUN_PER_TURN)  # of one turn, or of the next one too
        assert gateway.front.serving
        assert set(await answers(crowd)) == {b"HTTP/1.1 202 Accepted"}


async def test_no_more_wait_than_there_are_descriptors_for() -> None:
    """The others wait in the kernel; it is when those have their turn that they may be too many."""
    async with running(max_connections=40) as gateway, nothing_left(gateway):
        crowd = storm(gateway.port, 100)
        await until_some_wait(gateway)
        assert gateway.front._waiting + len(gateway.front._connections) <= 40
        for each in crowd:
            each.close()


async def test_whoever_waits_when_accepting_ends_is_served() -> None:
    async with running() as gateway, nothing_left(gateway), trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        with listen(gateway.node.config) as listener:

            async def accept() -> None:
                with scope:
                    await gateway.front.accept(listener, nursery)

            nursery.start_soon(accept)
            crowd = storm(listener.getsockname()[1], 100)
            await until_some_wait(gateway)
            scope.cancel()
            assert set(await answers(crowd)) == {b"HTTP/1.1 202 Accepted"}


async def test_hundreds_of_connections_leave_nothing_behind() -> None:
    async with running() as gateway, nothing_left(gateway):

        async def visit(number: int) -> None:
            match number % 4:
                case 0:
                    wire = await gateway.open(f"/events/{number}")
                    await wire.opened()
                case 1:
                    wire = await gateway.open(f"/events/{number}", version="1.0")
                    await wire.opened()
                case 2:
                    wire = await gateway.connect()
                    await wire.send(PUBLISH * 3)
                    for _ in range(3):
                        assert (await wire.response()).status == 202
                case _:
                    assert (await gateway.ask(STATS)).status == 200

        async with trio.open_nursery() as nursery:
            for number in range(400):
                nursery.start_soon(visit, number)
        assert gateway.node.hub.statistics().clients == 200
        assert gateway.node.bus.statistics().published == 300
