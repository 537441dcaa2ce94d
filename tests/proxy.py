"""A TCP proxy in front of a node, which cuts connections when a test says so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from process import READ_BYTES, NodeProcess


class Proxy:
    """Passes connections on to a node until they are cut; holds new ones until `let_through`."""

    def __init__(self, listener: trio.SocketListener, port: int) -> None:
        self.port: int = listener.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = port
        self._through = trio.Event()
        self._through.set()
        self._passing: set[trio.CancelScope] = set()

    def cut(self) -> None:
        self._through = trio.Event()
        for scope in self._passing:
            scope.cancel()
        self._passing.clear()

    def let_through(self) -> None:
        self._through.set()

    async def serve(self, outer: trio.SocketStream) -> None:
        async with outer:
            await self._through.wait()
            async with await trio.open_tcp_stream("127.0.0.1", self._server) as inner:
                with trio.CancelScope() as scope:
                    self._passing.add(scope)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_pump, outer, inner, nursery)
                        nursery.start_soon(_pump, inner, outer, nursery)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, pair: trio.Nursery) -> None:
    try:
        while data := await source.receive_some(READ_BYTES):
            await sink.send_all(data)
    except trio.BrokenResourceError:
        pass
    pair.cancel_scope.cancel()


@asynccontextmanager
async def proxy_to(n: NodeProcess) -> AsyncIterator[Proxy]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = Proxy(listener, n.port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
