"""A TCP proxy in front of a node, which cuts connections when a test says so, also in the middle of
what the node says, loses or holds that, and knows what clients have asked for."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

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
        self.asked: list[str] = []
        """The heads of all requests, none of which has a body, in their order."""
        self.answered = b""
        """All that has been passed on to clients, of all connections."""
        self.losing = 0
        """So many times more, what the node says is lost, and the connection with it."""
        self.is_silent = False
        """What the node says is held back, and with it all that the client says."""
        self._server = port
        self._last_words: bytes | None = None
        self._connected_ahead: list[trio.SocketStream] = []
        self._through = trio.Event()
        self._through.set()
        self._passing: set[trio.CancelScope] = set()

    def lead_to(self, n: Server) -> None:
        """New connections go there from now on."""
        self._server = n.port

    async def connect_ahead(self, n: Server) -> None:
        """The next connection goes there, over one that is made now."""
        self._connected_ahead.append(await trio.open_tcp_stream("127.0.0.1", n.port))

    def positions(self) -> list[str]:
        """What the requests for streams named as the last that their client had, "" for nothing."""
        found = []
        for head in self.asked:
            target = urlsplit(head.split(" ")[1])
            if target.path.startswith("/events"):
                header = re.search(r"(?im)^last-event-id: *(.*?)\r$", head)
                query = parse_qs(target.query).get("lastEventId", [""])[-1]
                found.append(header[1] if header else query)
        return found

    def hold(self) -> None:
        """Leave those connections that there are, and hold new ones."""
        self._through = trio.Event()

    def cut(self) -> None:
        self.hold()
        for scope in self._passing:
            scope.cancel()
        self._passing.clear()

    def cut_behind(self, text: bytes) -> None:
        """Cut as soon as ``text`` has been passed on to a client, and nothing behind it."""
        self._last_words = text

    @property
    def is_cut(self) -> bool:
        return not self._through.is_set()

    def let_through(self) -> None:
        self._through.set()

    async def run(self, listener: trio.SocketListener) -> None:
        try:
            await trio.serve_listeners(self._serve, [listener])
        finally:
            for connection in self._connected_ahead:
                connection.socket.close()

    async def _serve(self, outer: trio.SocketStream) -> None:
        async with outer:
            await self._through.wait()
            async with await self._connection() as inner:
                with trio.CancelScope() as scope:
                    self._passing.add(scope)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._ask, outer, inner, nursery)
                        nursery.start_soon(self._answer, inner, outer, nursery)
                self._passing.discard(scope)

    async def _connection(self) -> trio.SocketStream:
        if self._connected_ahead:
            return self._connected_ahead.pop(0)
        return await trio.open_tcp_stream("127.0.0.1", self._server)

    async def _ask(
        self, client: trio.SocketStream, n: trio.SocketStream, pair: trio.Nursery
    ) -> None:
        head = b""
        with suppress(trio.BrokenResourceError):
            while data := await client.receive_some(READ_BYTES):
                *heads, head = (head + data).split(b"\r\n\r\n")
                self.asked += [f"{each.decode('latin-1')}\r\n" for each in heads]
                if self.is_silent:
                    await trio.sleep_forever()
                await n.send_all(data)
        pair.cancel_scope.cancel()

    async def _answer(
        self, n: trio.SocketStream, client: trio.SocketStream, pair: trio.Nursery
    ) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await n.receive_some(READ_BYTES):
                if self.is_silent:
                    await trio.sleep_forever()
                if self.losing:
                    self.losing -= 1
                    break
                before = len(self.answered)
                self.answered += data
                last, words = -1, self._last_words
                if words is not None and (last := self.answered.find(words)) >= 0:
                    self.answered = self.answered[: last + len(words)]
                await client.send_all(self.answered[before:])
                if last >= 0:
                    self._last_words = None
                    self.cut()
        pair.cancel_scope.cancel()


async def start_proxy(port: int, nursery: trio.Nursery) -> Proxy:
    """One that serves until the nursery is cancelled."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = Proxy(listener, port)
    nursery.start_soon(proxy.run, listener)
    return proxy


@asynccontextmanager
async def proxy_to(n: Server | int) -> AsyncIterator[Proxy]:
    """In front of a node, or of whatever listens at a port."""
    async with trio.open_nursery() as nursery:
        yield await start_proxy(n if isinstance(n, int) else n.port, nursery)
        nursery.cancel_scope.cancel()
