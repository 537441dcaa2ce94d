"""HTTP/1.1 to an upstream: answers however they are framed, and connections that are used again."""

import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from running import descriptors, until

from gateway.relay.transport import MAX_HEAD_BYTES, READ_BYTES, Transport

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKS = (
    OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX-Trailer: t\r\n\r\n"
)


class Server:
    """Answers each request with the next of ``answers``; an empty one ends its connection."""

    def __init__(self, listener: trio.SocketListener, answers: Sequence[bytes]) -> None:
        self.port = listener.socket.getsockname()[1]
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        try:
            while data := await stream.receive_some():
                self.requests.append(bytes(data))
                answer = self.answers.pop(0)
                await stream.send_all(answer.removesuffix(CLOSE))
                if answer.endswith(CLOSE):
                    return
        except trio.BrokenResourceError:
            pass
        finally:
            self.open -= 1
            await stream.aclose()


CLOSE = b"<the server closes>"


@asynccontextmanager
async def serving(
    *answers: bytes, pool: float = 5.0, **settings: Any
) -> AsyncIterator[tuple[Server, Transport, Callable[[], httpx.Request]]]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server = Server(listener, answers)
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        url = httpx.URL(f"http://127.0.0.1:{server.port}/a?b=c")
        some = {"max_connections": 5, "keepalive_seconds": 5.0, "silence": 5.0} | settings
        transport = Transport(url, None, **some)

        def request() -> httpx.Request:
            times = {"connect": 5.0, "write": 5.0, "pool": pool}
            made = httpx.Request("POST", url, content=b"x", extensions={"timeout": times})
            made.stream = OneBody()
            return made

        with trio.fail_after(10):
            yield server, transport, request
        await transport.aclose()
        nursery.cancel_scope.cancel()


class OneBody(httpx.AsyncByteStream):
    def __init__(self) -> None:
        self._left = [b"x"]

    def __aiter__(self) -> "OneBody":
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


async def whole(response: httpx.Response) -> bytes:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        return b"".join([piece async for piece in response.stream])
    finally:
        await response.aclose()


ANSWERS = {
    "a length": (LENGTH, True),
    "chunks": (CHUNKS, True),
    "until the end": (OK + b"\r\nhello" + CLOSE, False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", False),
    "it closes": (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", False),
    "an interim answer first": (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + LENGTH, True),
    "more than was asked for": (LENGTH + LENGTH, False),
    "rubbish behind it": (LENGTH + b"rubbish\r\n\r\n", False),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_answer_is_read_and_its_connection_used_again_where_that_is_safe(
    answer: str,
) -> None:
    data, again = ANSWERS[answer]
    async with serving(data, LENGTH) as (server, transport, request):
        first = await transport.handle_async_request(request())
        assert "link" not in first.headers
        assert await whole(first) == b"hello"
        assert await whole(await transport.handle_async_request(request())) == b"hello"
        assert server.connections == (1 if again else 2)
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /a?b=c HTTP/1.1\r\n")
        assert b"content-length: 1" in head.lower()
        assert body == b"x"


BROKEN = {
    "nothing": CLOSE,
    "half a head": OK + CLOSE,
    "no HTTP": b"220 smtp ready\r\n\r\n",
    "a length that is not kept": OK + b"Content-Length: 6\r\n\r\nhello" + CLOSE,
    "chunks without an end": CHUNKS[:-30] + CLOSE,
    "a chunk of no size": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\nx\r\n",
    "a coding that nobody asked for": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "a head without an end": OK + b"X: " + b"x" * (MAX_HEAD_BYTES + READ_BYTES),
    "heads without an end": OK + b"x: y\r\n" * (MAX_HEAD_BYTES // 6 + READ_BYTES),
    "a chunk extension without an end": OK
    + b"Transfer-Encoding: chunked\r\n\r\n2;x="
    + b"x" * (MAX_HEAD_BYTES + READ_BYTES),
}


@pytest.mark.parametrize("answer", BROKEN)
async def test_what_is_no_answer_is_an_error_and_ends_its_connection(answer: str) -> None:
    async with serving(BROKEN[answer]) as (server, transport, request):
        with pytest.raises(httpx.RemoteProtocolError):
            await whole(await transport.handle_async_request(request()))
        await until(lambda: server.open == 0)


async def test_what_was_whole_before_an_error_is_given_out_first() -> None:
    broken = BROKEN["a chunk of no size"]
    async with serving(broken) as (_, transport, request):
        response = await transport.handle_async_request(request())
        assert isinstance(response.stream, httpx.AsyncByteStream)
        pieces = aiter(response.stream)
        assert await anext(pieces) == b"he"
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)
        await response.aclose()


async def test_silence_ends_a_wait_however_many_others_wait() -> None:
    begun = OK + b"Content-Length: 5\r\n\r\nhe"
    async with serving(begun, begun, LENGTH, silence=0.1) as (server, transport, request):
        silent = [await transport.handle_async_request(request()) for _ in range(2)]
        timed_out = 0

        async def read(response: httpx.Response) -> None:
            nonlocal timed_out
            with pytest.raises(httpx.ReadTimeout):
                await whole(response)
            timed_out += 1

        async with trio.open_nursery() as nursery:
            for response in silent:
                nursery.start_soon(read, response)
        assert timed_out == 2
        assert await whole(await transport.handle_async_request(request())) == b"hello"
        await until(lambda: server.open == 1)


async def test_no_more_connections_than_allowed_and_no_longer_than_allowed_for_one() -> None:
    async with serving(LENGTH, LENGTH, max_connections=1, pool=0.05) as (
        server,
        transport,
        request,
    ):
        held = await transport.handle_async_request(request())
        with pytest.raises(httpx.PoolTimeout):
            await transport.handle_async_request(request())
        assert await whole(held) == b"hello"
        assert await whole(await transport.handle_async_request(request())) == b"hello"
        assert server.connections == 1


@pytest.mark.parametrize("settings", [{"keepalive_seconds": 0.0}, {}], ids=["too old", "closed"])
async def test_a_connection_that_is_idle_for_too_long_or_was_closed_is_not_used(
    settings: dict[str, float],
) -> None:
    first = LENGTH if settings else LENGTH + CLOSE
    async with serving(first, LENGTH, **settings) as (server, transport, request):
        assert await whole(await transport.handle_async_request(request())) == b"hello"
        await until(lambda: server.open == bool(settings))
        assert await whole(await transport.handle_async_request(request())) == b"hello"
        assert server.connections == 2


async def test_cancelled_at_any_step_it_leaves_nothing_open() -> None:
    gc.collect()
    before = descriptors()
    for steps in range(12):
        async with serving(CHUNKS, CHUNKS, max_connections=1) as (_, transport, request):

            async def ask(transport: Transport, made: httpx.Request) -> None:
                response = await transport.handle_async_request(made)
                await whole(response)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, transport, request())
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert await whole(await transport.handle_async_request(request())) == b"hello"
    gc.collect()
    assert descriptors() == before


@pytest.mark.parametrize("value", ["x\r\nX-Forged: 1", "x\ny", "x\0"], ids=["CRLF", "LF", "NUL"])
async def test_no_header_begins_another_one(value: str) -> None:
    async with serving(LENGTH) as (server, transport, request):
        made = request()
        made.headers["X-Own"] = value
        with pytest.raises(httpx.LocalProtocolError):
            await transport.handle_async_request(made)
        assert server.requests == []
