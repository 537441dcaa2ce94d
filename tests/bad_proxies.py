"""Proxies in front of a node that do what proxies do to streams: hold them back, forbid them, or go
silent in the midst of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from process import READ_BYTES, NodeProcess

FORBIDDEN = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nContent-Length: 11\r\n"
    b"Connection: close\r\n\r\nNot allowed"
)


class BadProxy:
    """Passes requests on, one a connection. Streams it treats as ``treats_streams`` says."""

    def __init__(self, listener: trio.SocketListener, port: int) -> None:
        self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        self.port = port
        """Of the node."""
        self.treats_streams = "pass"
        """Or "buffer": what the node sends is held back, also on streams that are open; or
        "forbid": as "buffer" for those, and new ones are refused."""
        self.streams = 0

    async def serve(self, outer: trio.SocketStream) -> None:
        async with outer:
            head = await outer.receive_some(READ_BYTES)
            is_stream = b" /events" in head.partition(b"\r\n")[0]
            self.streams += is_stream
            if is_stream and self.treats_streams == "forbid":
                await outer.send_all(FORBIDDEN)
                return
            request = head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            request = request.replace(b"Connection: keep-alive\r\n", b"")
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as inner:
                await inner.send_all(request)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_gone, outer, nursery.cancel_scope)
                    await self._answer(inner, outer, is_stream)
                    nursery.cancel_scope.cancel()

    async def _answer(
        self, inner: trio.SocketStream, outer: trio.SocketStream, is_stream: bool
    ) -> None:
        try:
            while data := await inner.receive_some(READ_BYTES):
                if is_stream and self.treats_streams != "pass":
                    await trio.sleep_forever()
                await outer.send_all(data)
        except trio.BrokenResourceError:
            pass

    async def _until_gone(self, outer: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while await outer.receive_some(READ_BYTES):
                pass
        except trio.BrokenResourceError:
            pass
        scope.cancel()


@asynccontextmanager
async def bad_proxy_to(n: NodeProcess) -> AsyncIterator[BadProxy]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = BadProxy(listener, n.port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
