"""Hypercorn's protocol over one request that the front has read: its pieces, not its server.

The defects of hypercorn 0.18.0 and quart-trio 0.12.0 that can be met on this path are worked around
here and nowhere else:

A. Extra input during a response stops hypercorn's reader, and the disconnect is never seen. It is
   given the one request, and after that only the end of the connection (`OneRequest.receive_some`).
B. Its shielded ``send_all`` waits for ever for a peer that stops reading. Ours has a deadline, and
   `Edge.abort` closes the sockets, which is the only thing that releases it at once.
C. quart-trio cancels the handler inside hypercorn's recycle step, so a connection is neither kept
   nor closed. The last ``send`` of a response is shielded from that (`Connection`).

Delete each with the release that mends it; the tests of each say when.
"""

import logging
import socket
import struct
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, cast

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGISendCallable, ASGISendEvent, ConnectionState
from hypercorn.utils import wrap_app
from quart import Request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

from gateway.config import MIB
from gateway.http1 import Parsed
from gateway.http1_render import render_request
from gateway.lanes import MAX_STRAY_BYTES
from gateway.transport import TlsStream, Transport, close_now

READ_BYTES = 4096

HALF_CLOSED_SECONDS = 0.5
"""How long an answer may still take when its asker has ended its side: some end it to say that this
was all (``nc -N``), and hypercorn would drop the answer."""

ANSWERED = "gateway.answered"
"""The extension of an app that is told of each request its status and after how many seconds the
first bytes of its body were written."""

_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: the connection is reset when it is closed."""

_log = logging.getLogger(__name__)


class Connection(TrioASGIHTTPConnection):
    """Defect C: the last message of a response is sent whole before the handler is cancelled."""

    async def handle_request(  # type: ignore[override]  # as quart-trio overrides quart
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        status = 0
        begun = False

        async def send_whole(message: ASGISendEvent) -> None:
            nonlocal status, begun
            last = message["type"] == "http.response.body" and not message.get("more_body")
            with trio.CancelScope(shield=last):
                await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body" and not begun:
                begun = True
                seconds = time.perf_counter() - self.scope["state"]["asked_at"]
                self.app.extensions[ANSWERED](request, status, seconds)

        await super().handle_request(nursery, request, send_whole)


class OneRequest:
    """The part of a stream that TCPServer uses, holding one request and then only the answer."""

    def __init__(self, request: bytes, stream: Transport, write_timeout: float) -> None:
        self._request = memoryview(request)
        self._stray_bytes = 0
        self._write_timeout = write_timeout
        self._stream = stream
        self.socket = stream.socket
        self._closed = trio.Event()

    async def receive_some(self, max_bytes: int) -> bytes:
        """The request, then nothing until the peer ends, breaks or sends too much."""
        if self._request:
            await trio.lowlevel.checkpoint()
            part, self._request = bytes(self._request[:max_bytes]), self._request[max_bytes:]
            if not self._request:
                self._request = memoryview(b"")  # the old one would keep all of it
            return part
        while data := await self._stream.receive_some(READ_BYTES):
            self._stray_bytes += len(data)
            if self._stray_bytes > MAX_STRAY_BYTES:
                return b""
        with trio.move_on_after(HALF_CLOSED_SECONDS):
            await self._closed.wait()
            raise trio.ClosedResourceError
        return b""

    async def send_all(self, data: bytes) -> None:
        """Defect B: raises BrokenResourceError when the peer has not taken it in time."""
        with trio.move_on_after(self._write_timeout) as patience:
            await self._stream.send_all(data)
        if patience.cancelled_caught:
            self.abort()
            raise trio.BrokenResourceError

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._closed.set()
        await self._stream.aclose()

    def abort(self) -> None:
        self._closed.set()
        close_now(self._stream)

    def reset(self) -> None:
        """End the connection so that nobody takes what was sent for all."""
        if not self._closed.is_set():
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.abort()


class OneRequestOverTls(OneRequest):
    """With what TCPServer asks of a TLS stream; the handshake has been made."""

    async def do_handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    def selected_alpn_protocol(self) -> str:
        return "http/1.1"

    @property
    def transport_stream(self) -> OneRequest:
        """Which is looked at for its socket."""
        return self


class Edge:
    """Serves the app. `serve` may be called once `run` has started."""

    def __init__(self, app: QuartTrio, *, write_timeout: float) -> None:
        self._app = wrap_app(cast(Any, app), 0, "asgi")
        self._write_timeout = write_timeout
        self._config = HypercornConfig()
        self._config.include_server_header = False
        self._config.errorlog = _log  # else it writes to stderr itself, and not line by line
        self._config.h11_max_incomplete_size = 2 * MIB  # heads are bounded in front already
        self._context = WorkerContext(None)
        self._open: set[OneRequest] = set()
        self._lifespan = Lifespan(self._app, self._config, {})

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The app's lifespan, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._lifespan.handle_lifespan)
            await self._lifespan.wait_for_startup()
            task_status.started()

    async def serve(
        self, parsed: Parsed, transport: Transport, peer: str, let_go_of_body: Callable[[], None]
    ) -> None:
        """Answer one request of ``peer`` on its connection, and close that.

        The app finds the peer in its scope's ``state``: a PROXY header may have named another than
        the socket has; and there ``let_go_of_body``, which frees the room that the body has taken,
        ``held``, which is closed when the connection is, and ``reset``, which breaks it.
        """
        kind = OneRequestOverTls if isinstance(transport, TlsStream) else OneRequest
        stream = kind(render_request(parsed), transport, self._write_timeout)
        self._open.add(stream)
        asked_at = time.perf_counter()
        async with AsyncExitStack() as held:
            state = ConnectionState(
                {"peer": peer, "asked_at": asked_at, "let_go_of_body": let_go_of_body}
                | {"held": held, "reset": stream.reset}
            )
            try:
                await TCPServer(self._app, self._config, self._context, state, cast(Any, stream))
            finally:
                self._open.discard(stream)
                stream.abort()

    def abort(self) -> None:
        """Close every connection; whatever waits for a peer comes back at once."""
        for stream in self._open:
            stream.abort()
