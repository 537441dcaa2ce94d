"""One message, one meaning: nothing that a client sends behind a request gets to be another one.

Every case sends a publish where only a reader that divides the bytes otherwise than the node would
find one. It must never be carried out, whoever reads the first request: the front itself (hot), or
the server behind it (cold), or nobody any more (a stream). What the parser says of each head is in
test_http1; here are whole nodes and real sockets.
"""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
import trio
from running import ACCEPT, HOST, Gateway, Response, Wire, request, running

SMUGGLED = request("POST", "/publish/x", body=b"smuggled")

CHUNKED = b"Transfer-Encoding: chunked\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is sent, nothing fails inside."""
    yield
    assert [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR] == []


@asynccontextmanager
async def nothing_smuggled() -> AsyncIterator[Gateway]:
    """A node on which nothing is published to ``x``, and that serves others as before."""
    async with running() as gateway:
        witness = await gateway.open("/events/x")
        await witness.opened()
        yield gateway
        canary = await gateway.publish("x", "canary")
        block = await witness.event()
        assert (block.data, block.id) == ("canary", canary)


async def answers(wire: Wire) -> list[Response]:
    """All that comes until the node ends the connection."""
    found = []
    try:
        while True:
            found.append(await wire.response())
    except EOFError:
        assert not wire._input, "half an answer"
        return found
    except trio.BrokenResourceError:
        return found


HEADS = {
    "hot": b"POST /publish/a HTTP/1.1\r\n",
    "hot, in absolute form": b"POST http://gateway.test/publish/a HTTP/1.1\r\n",
    "hot and spelled otherwise": b"POST /%70ublish/a HTTP/1.1\r\n",
    "cold": b"GET /stats HTTP/1.1\r\n",
    "cold, in HTTP/1.0": b"POST /publish/a HTTP/1.0\r\n",
    "a stream": b"GET /events/a HTTP/1.1\r\nAccept: text/event-stream\r\n",
    "a stream, in HTTP/1.0": b"GET /events/a HTTP/1.0\r\nAccept: text/event-stream\r\n",
    "a poll": b"GET /poll/a?wait=0 HTTP/1.1\r\n",
    "nothing": b"PUT /nothing HTTP/1.1\r\n",
}

LENGTH = b"Content-Length: 5\r\n"
LENGTHS = b"Content-Length: %d\r\n" % len(SMUGGLED)

AMBIGUOUS = {
    "two lengths": HOST + LENGTH + LENGTHS + b"\r\nhello",
    "the same length twice": HOST + LENGTH + LENGTH + b"\r\nhello",
    "a length of two": HOST + b"Content-Length: 5, 5\r\n\r\nhello",
    "a length with a sign": HOST + b"Content-Length: +5\r\n\r\nhello",
    "a length with a tail": HOST + b"Content-Length: 5 0\r\n\r\nhello",
    "a length in hexadecimal": HOST + b"Content-Length: 0x5\r\n\r\nhello",
    "a length of nothing": HOST + b"Content-Length: \r\n\r\n",
    "a length below nothing": HOST + b"Content-Length: -1\r\n\r\n",
    "a length that wraps around": HOST + b"Content-Length: 18446744073709551621\r\n\r\nhello",
    "a length and chunks": HOST + LENGTHS + CHUNKED + b"\r\n0\r\n\r\n",
    "chunks and a length": HOST + CHUNKED + LENGTHS + b"\r\n0\r\n\r\n",
    "a length of 0 and chunks": HOST + b"Content-Length: 0\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunks twice": HOST + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "chunks and something else": HOST + CHUNKED + b"Transfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "another coding": HOST + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\nhello",
    "a coding in quotes": HOST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a coding with a vertical tab": HOST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "a coding with a parameter": HOST + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n",
    "a coding that only looks like one": HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding of 8 bits": HOST + b"Transfer-Encoding: chunk\xe9d\r\n\r\n0\r\n\r\n",
    "a coding behind NUL": HOST + b"Transfer-Encoding: \0chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": HOST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a length with a space before the colon": HOST + b"Content-Length : 5\r\n\r\nhello",
    "a folded coding": HOST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a folded length": HOST + b"A: b\r\n Content-Length: 5\r\n\r\nhello",
    "a folded first line": b" " + HOST + b"\r\n",
    "a coding behind a bare LF": HOST + b"A: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding behind a bare CR": HOST + b"A: b\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a head that ends with bare LFs": HOST + b"A: b\n\n",
    "a head that ends with LF": HOST + b"A: b\r\n\n",
    "NUL in a value": HOST + b"A: b\0c\r\n\r\n",
    "NUL in a name": HOST + b"A\0: b\r\n\r\n",
    "8 bits in a name": HOST + b"Content-L\xe9ngth: 5\r\n\r\nhello",
    "no name": HOST + b": chunked\r\n\r\n",
    "no colon": HOST + b"Transfer-Encoding chunked\r\n\r\n0\r\n\r\n",
    "two hosts": HOST + b"Host: other.test\r\n\r\n",
    "a host that is a request": b"Host: x/ HTTP/1.1\r\n\r\n",
    "a host of 8 bits": b"Host: \xe9\r\n\r\n",
    "an upgrade with a body": HOST + LENGTH + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\nhello",
    "a chunk size that is none": HOST + CHUNKED + b"\r\nzz\r\n",
    "a chunk size with a sign": HOST + CHUNKED + b"\r\n+5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a prefix": HOST + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with an underscore": HOST + CHUNKED + b"\r\n0_5\r\nhello\r\n0\r\n\r\n",
    "a chunk size that wraps around": HOST + CHUNKED + b"\r\n10000000000000005\r\nhello\r\n",
    "a chunk size with a space": HOST + CHUNKED + b"\r\n5 \r\nhello\r\n0\r\n\r\n",
    "a chunk size that ends with LF": HOST + CHUNKED + b"\r\n5\nhello\r\n0\r\n\r\n",
    "a chunk extension with LF": HOST + CHUNKED + b"\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a chunk extension with CR": HOST + CHUNKED + b"\r\n5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a chunk that is longer": HOST + CHUNKED + b"\r\n4\r\nhello\r\n0\r\n\r\n",
    "a chunk that ends with LF": HOST + CHUNKED + b"\r\n5\r\nhello\n0\r\n\r\n",
    "a last chunk that ends with LF": HOST + CHUNKED + b"\r\n0\n\r\n",
    "a trailer that ends with LF": HOST + CHUNKED + b"\r\n0\r\nA: b\n\r\n",
    "a folded trailer": HOST + CHUNKED + b"\r\n0\r\nA: b\r\n c\r\n\r\n",
}  # fmt: skip
"""The rest of a request's head, and its body."""


@pytest.mark.parametrize("rest", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_what_can_be_divided_in_two_ways_is_refused_whoever_it_is_for(rest: bytes) -> None:
    async with nothing_smuggled() as gateway:
        for name, head in HEADS.items():
            wire = await gateway.connect()
            await wire.send(head + rest + SMUGGLED)
            responses = await answers(wire)
            assert len(responses) == 1, name
            assert 400 <= responses[0].status <= 505, name
            assert responses[0].header("connection") == "close"
            assert responses[0].header("content-type") == "application/problem+json"
            assert responses[0].detail


@pytest.mark.parametrize("rest", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_what_can_be_divided_in_two_ways_is_refused_where_a_body_is_streamed(
    rest: bytes,
) -> None:
    async with nothing_smuggled() as gateway:
        made = await gateway.ask(request("POST", "/streams", JSON, body=b"{}"))
        head = b"POST /streams/%b/events HTTP/1.1\r\n" % str(made.json["id"]).encode()
        wire = await gateway.connect()
        await wire.send(head + rest + SMUGGLED)
        (response,) = await answers(wire)
        assert 400 <= response.status <= 505
        assert response.header("connection") == "close"
        assert response.header("content-type") == "application/problem+json"


LINES = {
    "no version": b"GET /healthz\r\n" + HOST + b"\r\n",
    "no version and nothing else": b"GET /healthz\r\n",
    "HTTP/0.9": b"GET /healthz HTTP/0.9\r\n" + HOST + b"\r\n",
    "HTTP/1.2": b"GET /healthz HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/01.1": b"GET /healthz HTTP/01.1\r\n" + HOST + b"\r\n",
    "http/1.1": b"GET /healthz http/1.1\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a line that ends with LF": b"GET /healthz HTTP/1.1\n" + HOST + b"\r\n",
    "a line that ends with CR": b"GET /healthz HTTP/1.1\r" + HOST + b"\r\n",
    "two spaces": b"GET  /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tab": b"GET\t/healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space behind": b"GET /healthz HTTP/1.1 \r\n" + HOST + b"\r\n",
    "a space within": b"GET /health z HTTP/1.1\r\n" + HOST + b"\r\n",
    "a request within": b"GET /healthz HTTP/1.1 POST /publish/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL": b"GET /healthz\0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "8 bits": b"GET /h\xe9althz HTTP/1.1\r\n" + HOST + b"\r\n",
    "an unknown method": b"GETT /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "authority form": b"GET gateway.test:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT gateway.test:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel to nowhere": b"CONNECT /publish/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form with a user": b"GET http://u:p@g.test/healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form without a host": b"GET http:///healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form of another scheme": b"GET file:///etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "a relative target": b"GET healthz HTTP/1.1\r\n" + HOST + b"\r\n",
}  # fmt: skip


@pytest.mark.parametrize("raw", LINES.values(), ids=LINES)
async def test_behind_a_request_line_of_no_kind_nothing_is_read(raw: bytes) -> None:
    async with nothing_smuggled() as gateway:
        wire = await gateway.connect()
        await wire.send(raw + SMUGGLED)
        (response,) = await answers(wire)
        assert 400 <= response.status <= 505
        assert response.header("connection") == "close"


UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"

HANDED_OVER = {
    "counts": request("GET", "/stats"),
    "health, in absolute form": request("GET", "http://gateway.test/healthz"),
    "a publish spelled otherwise": request("POST", "/%70ublish/a", body=b"x"),
    "a publish in chunks, spelled otherwise": request("POST", "/%70ublish/a", CHUNKED)
    + b"1\r\nx\r\n0\r\n\r\n",
    "a publish in HTTP/1.0": request("POST", "/publish/a", body=b"x", version="1.0"),
    "HTTP/1.0 that would stay": request(
        "GET", "/stats", b"Connection: keep-alive\r\n", version="1.0"
    ),
    "a body that is for nobody": request("GET", "/stats", body=SMUGGLED),
    "chunks that are for nobody": request("DELETE", "/users/nobody", CHUNKED)
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    "HEAD": request("HEAD", "/healthz"),
    "nothing there": request("GET", "/nothing"),
    "line breaks in the path": request("GET", "/%0d%0a%0d%0aPOST%20/publish/x"),
    "an upgrade to WebSocket": request("GET", "/stats", UPGRADE),
    "an upgrade to HTTP/2": request("GET", "/stats", H2C),
    "headers of one hop": request("GET", "/stats", b"Connection: host, content-length, close\r\n"),
    "a body to be asked for": request(
        "POST", "/%70ublish/a", b"Expect: 100-continue\r\n", body=b"x"
    ),
}

BEHIND = {
    "a request": SMUGGLED,
    "a line break and a request": b"\r\n" + SMUGGLED,
    "the end of chunks and a request": b"0\r\n\r\n" + SMUGGLED,
    "the rest of a body": SMUGGLED[-8:] + SMUGGLED,
    "NUL and a request": b"\0" + SMUGGLED,
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "a frame of WebSocket": b"\x81\x05hello" + SMUGGLED,
    "many requests": SMUGGLED * 30,
}


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
async def test_behind_a_request_that_was_handed_over_nothing_is_read(
    behind: bytes, at_once: bool
) -> None:
    async with nothing_smuggled() as gateway:
        for name, raw in HANDED_OVER.items():
            wire = await gateway.connect()
            await wire.send(raw + behind if at_once else raw)
            if not at_once:
                with suppress(trio.BrokenResourceError):  # it may be closed by then
                    await wire.send(behind)
            response = await wire.response(head_only=raw.startswith(b"HEAD"))
            assert response.status in (200, 202, 204, 404), name
            assert response.header("connection") == "close", name
            assert response.header("upgrade") is None
            assert await answers(wire) == [], name


STREAMS = {
    "a stream": request("GET", "/events/a", ACCEPT),
    "a stream in HTTP/1.0": request("GET", "/events/a", ACCEPT, version="1.0"),
    "a stream spelled otherwise": request("GET", "/%65vents/a", ACCEPT),
    "a stream with a body": request("GET", "/events/a", ACCEPT, body=SMUGGLED),
    "a stream with chunks": request("GET", "/events/a", ACCEPT, CHUNKED)
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    "a stream that would be a WebSocket": request("GET", "/events/a", ACCEPT, UPGRADE),
    "a stream that would be HTTP/2": request("GET", "/events/a", ACCEPT, H2C),
}


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
async def test_behind_a_streams_request_nothing_is_read_and_the_stream_goes_on(
    behind: bytes, at_once: bool
) -> None:
    async with nothing_smuggled() as gateway:
        for name, raw in STREAMS.items():
            wire = await gateway.connect()
            await wire.send(raw + behind if at_once else raw)
            await wire.opened()
            if not at_once:
                await wire.send(behind)
            position = await gateway.publish("a", name)
            block = await wire.event()
            assert (block.data, block.id) == (name, position)


KEPT = {
    "a request as the data": request("POST", "/publish/a", body=SMUGGLED),
    "requests in a chunk": request("POST", "/publish/a", CHUNKED)
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    "a request in a trailer": request("POST", "/publish/a", CHUNKED)
    + b"1\r\nx\r\n0\r\nA: " + SMUGGLED.replace(b"\r\n", b" ") + b"\r\n\r\n",
    "a request in a chunk extension": request("POST", "/publish/a", CHUNKED)
    + b'1;a="POST /publish/x HTTP/1.1"\r\nx\r\n0\r\n\r\n',
    "a request in a header": request(
        "POST", "/publish/a", b"A: " + SMUGGLED.replace(b"\r\n", b" ") + b"\r\n", body=b"x"
    ),
    "an empty body": request("POST", "/publish/a", body=b""),
    "line breaks in the query": request(
        "POST", "/publish/a?key=%0d%0aPOST%20/publish/x", body=b"x"
    ),
    "a poll with a body": request("GET", "/poll/a?wait=0", body=SMUGGLED),
    "a refused stream with a body": request("GET", "/events/a%20b", body=SMUGGLED),
}  # fmt: skip


@pytest.mark.parametrize("raw", KEPT.values(), ids=KEPT)
async def test_the_next_request_on_a_kept_connection_gets_its_own_answer(raw: bytes) -> None:
    async with nothing_smuggled() as gateway:
        stream = await gateway.open("/events/c")
        await stream.opened()
        wire = await gateway.connect()
        canary = request("POST", "/publish/c", body=b"canary")
        await wire.send(raw + canary + raw)
        await wire.send(canary)
        told = [await wire.response() for _ in range(4)]
        assert [told[1].status, told[3].status] == [202, 202]
        assert told[0].status == told[2].status
        blocks = [await stream.event(), await stream.event()]
        assert [block.data for block in blocks] == ["canary"] * 2
        assert [block.id for block in blocks] == [told[1].json["id"], told[3].json["id"]]


IN_LINES = b'{"event":"x","data":%b}\n' % msgspec.json.encode(SMUGGLED.decode())

PUSHED = {
    "a request as data": (IN_LINES, 1, [200, 200]),
    "a request as a line": (SMUGGLED, 0, [400]),
    "requests as lines": (IN_LINES + SMUGGLED * 3, 1, [400]),
}


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize(("body", "taken", "statuses"), PUSHED.values(), ids=PUSHED)
async def test_what_is_pushed_is_never_a_request(
    body: bytes, taken: int, statuses: list[int], chunked: bool
) -> None:
    async with nothing_smuggled() as gateway:
        made = await gateway.ask(request("POST", "/streams", JSON, body=b"{}"))
        target = f"/streams/{made.json['id']}/events?end=false"
        wire = await gateway.connect()
        if chunked:
            raw = request("POST", target, CHUNKED) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        else:
            raw = request("POST", target, body=body)
        await wire.send(raw + request("GET", "/healthz"))
        told = await answers(wire)
        assert told[0].json["next"] == taken
        assert [response.status for response in told] == statuses


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
async def test_behind_a_body_that_is_refused_on_its_way_nothing_is_read(behind: bytes) -> None:
    async with nothing_smuggled() as gateway:
        for chunks in (b"3\r\n{}\n\r\n", b"3\r\n{}\n\r\n0\r\n\r\n", b""):
            wire = await gateway.connect()
            await wire.send(request("POST", "/streams/nothing/events", CHUNKED) + chunks + behind)
            (response,) = await answers(wire)
            assert response.status == 404
            assert response.header("connection") == "close"


async def test_what_is_asked_cannot_write_a_line_of_the_answer() -> None:
    """Line breaks in paths, queries and headers end up in no head."""
    evil = "%0d%0aX-Evil:%201%0d%0a%0d%0aHTTP/1.1%20200%20OK"
    targets = [
        ("GET", f"/{evil}"),
        ("PATCH", f"/channels/{evil}"),
        ("GET", f"/channels/{evil}"),
        ("DELETE", f"/users/{evil}"),
        ("DELETE", f"/clients/{evil}"),
        ("PUT", f"/clients/{evil}/channels/a?since={evil}"),
        ("GET", f"/events/{evil}"),
        ("GET", f"/poll?channel={evil}"),
        ("POST", f"/publish/{evil}?event={evil}"),
        ("PUT", f"/publish/{evil}"),
    ]
    async with nothing_smuggled() as gateway:
        for method, target in targets:
            for version in ("1.1", "1.0"):
                wire = await gateway.connect()
                closing = b"Connection: close\r\n"
                await wire.send(request(method, target, closing, body=b"", version=version))
                (response,) = await answers(wire)
                assert response.status in (200, 400, 404, 405), (target, response)
                assert response.header("x-evil") is None
                assert not {"\r", "\n"} & set("".join(map("".join, response.headers)))
