"""An HTTP server that answers with prepared bytes, for the tests of our own clients."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

import trio

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
"""The head of a stream that lasts until its connection is closed."""

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"

Script = Sequence[bytes | trio.Event | None]
"""Pieces that are sent one by one; an event is waited for, None holds the connection open."""


class ScriptedServer:
    """Answers the n-th connection with the n-th script, and closes it after.

    ``requests`` are the raw requests in their order.
    """

    def __init__(self, listener: trio.SocketListener, scripts: Iterator[Script]) -> None:
        self.url = "http://127.0.0.1:{1}".format(*listener.socket.getsockname())
        self.requests: list[bytes] = []
        self._listener = listener
        self._scripts = scripts

    async def serve(self) -> None:
        await trio.serve_listeners(self._answer, [self._listener])

    async def _answer(self, stream: trio.SocketStream) -> None:
        self.requests.append(await _read_request(stream))
        with suppress(trio.BrokenResourceError):  # the client may leave early
            for piece in next(self._scripts):
                if piece is None:
                    await trio.sleep_forever()
                elif isinstance(piece, trio.Event):
                    await piece.wait()
                else:
                    await stream.send_all(piece)


async def start(nursery: trio.Nursery, *scripts: Script) -> ScriptedServer:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = ScriptedServer(listener, iter(scripts))
    nursery.start_soon(server.serve)
    return server


def answer(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def header(request: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"\r\n%b: (.*)\r\n" % re.escape(name), request, re.IGNORECASE)
    return found and found[1]


async def _read_request(stream: trio.SocketStream) -> bytes:
    request = b""
    async for piece in stream:
        request += piece
        _, head_ended, body = request.partition(b"\r\n\r\n")
        if head_ended and len(body) >= int(header(request, b"Content-Length") or 0):
            break
    return request
