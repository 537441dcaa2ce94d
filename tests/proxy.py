"""A TCP proxy in front of a node, which cuts connections, and loses or holds what the node says,
when a test says so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import trio
from process import READ_BYTES


class Server(Protocol):
    @property
    def port(self) -> int: ...


class Proxy:
    """Passes connections on to a node until they are cut; holds new ones until `let_through`."""

    def __init__(self, listener: trio.SocketListener, port: int) -> None:
        self.port: int = listener.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.losing = 0
        """So many times more, what the node says is lost, and the connection with it."""
        self.is_silent = False
        """What the node says is held back, and with it all that the client says."""
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

    def lead_to(self, n: Server) -> None:
        """From the next connection on."""
        self._server = n.port

    async def serve(self, outer: trio.SocketStream) -> None:
        async with outer:
            await self._through.wait()
            async with await trio.open_tcp_stream("127.0.0.1", self._server) as inner:
                with trio.CancelScope() as scope:
                    self._passing.add(scope)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pump, outer, inner, nursery)
                        nursery.start_soon(self._pump, inner, outer, nursery, True)

    async def _pump(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        pair: trio.Nursery,
        says: bool = False,
    ) -> None:
        """``says``: the source is the node."""
        with suppress(trio.BrokenResourceError):
            while data := await source.receive_some(READ_BYTES):
                if self.is_silent:
                    await trio.sleep_forever()
                if says and self.losing:
                    self.losing -= 1
                    break
                await sink.send_all(data)
        pair.cancel_scope.cancel()


@asynccontextmanager
async def proxy_to(n: Server) -> AsyncIterator[Proxy]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = Proxy(listener, n.port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
