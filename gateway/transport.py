"""A connection as a trio stream: plain, or TLS.

TLS is OpenSSL on the non-blocking socket itself, and not `trio.SSLStream`: that one keeps back the
alert by which a peer learns why it was refused, and carries everything through two more buffers.

1. One task receives and one sends, at most. Both may be at it at once.
2. Who is cancelled while sending leaves a record cut, after which nothing can be sent.
3. Receiving lets others have a turn also where nothing has to be waited for. Sending does not: a
   turn costs more than a small record, and what one has to send is bounded.
"""

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import trio

READ_BYTES = 16 * 1024
"""Read at a time: what one TLS record holds at most, and what a hostile body makes the parser do
with it stays under five milliseconds."""

Result = TypeVar("Result")


class TlsStream(trio.abc.HalfCloseableStream):
    """The server's side of a TLS connection, after `do_handshake`."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """``sock`` is non-blocking and becomes the stream's own; raises OSError."""
        self.socket = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._is_cut = False

    async def do_handshake(self) -> None:
        """Raises BrokenResourceError when the peer does not speak TLS, or none that is taken."""
        await self._retry(self.socket.do_handshake)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return await self._retry(partial(self._receive, max_bytes or READ_BYTES))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_cut:
            raise trio.BrokenResourceError
        self._is_cut = True
        sent = 0
        while sent < len(data):
            sent += await self._retry(partial(self.socket.send, memoryview(data)[sent:]))
        self._is_cut = False

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.wait_writable(self.socket)

    async def send_eof(self) -> None:
        """Tell the peer that nothing more is sent, by close_notify and by FIN. Its own close_notify
        is not waited for, as RFC 8446 6.1 allows."""
        await trio.lowlevel.checkpoint()
        with suppress(OSError, ValueError):  # told already, or there is nobody to tell
            self.socket.unwrap()
        with suppress(OSError):
            # Not SSLSocket's own, after which no TLS could be read.
            socket.socket.shutdown(self.socket, socket.SHUT_WR)

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close it now, as `close_now` does."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    def _receive(self, max_bytes: int) -> bytes:
        try:
            return self.socket.recv(max_bytes)
        except ssl.SSLZeroReturnError:  # a close_notify, after ours
            return b""

    async def _retry(self, call: Callable[[], Result]) -> Result:
        """The result of ``call``, which is tried again whenever the socket is ready for it."""
        while True:
            try:
                return call()
            except (ssl.SSLWantReadError, BlockingIOError):
                wait = trio.lowlevel.wait_readable
            except ssl.SSLWantWriteError:
                wait = trio.lowlevel.wait_writable
            except OSError as error:
                if self.socket.fileno() < 0:
                    raise trio.ClosedResourceError from error
                raise trio.BrokenResourceError from error
            try:
                await wait(self.socket)
            except trio.BusyResourceError as error:
                # Reading has to write first, for a new key, while a write waits for a peer that
                # does not read. Only who wants to be a nuisance gets there.
                raise trio.BrokenResourceError from error


Transport = trio.SocketStream | TlsStream


def plain_stream(sock: socket.socket) -> trio.SocketStream:
    """``sock`` is non-blocking and becomes the stream's own."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def close_now(transport: Transport) -> None:
    """Close it without waiting; whoever waits for the peer gets ClosedResourceError."""
    (transport if isinstance(transport, TlsStream) else transport.socket).close()
