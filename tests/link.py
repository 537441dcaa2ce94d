"""A TCP link to a Redis server that fails in the ways in which links fail: cut, held, half-dead."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from process import READ_BYTES
from redis_server import RedisServer

COMMAND_OF_SUBSCRIBERS = b"subscribe"

PUSHED = (b"*3\r\n$7\r\nmessage\r\n", b">3\r\n$7\r\nmessage\r\n")
"""How a message of pub/sub begins in RESP2 and in RESP3."""


def end_of_reply(data: bytes | bytearray, at: int = 0) -> int | None:
    """Where the RESP reply that begins at ``at`` ends; None if it is not complete yet."""
    awaited = 1
    while awaited:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return None
        kind, rest = data[at : at + 1], data[at + 1 : line_end]
        at = line_end + 2
        awaited -= 1
        if kind in b"*>~":
            awaited += max(0, int(rest))
        elif kind == b"%":
            awaited += 2 * int(rest)
        elif kind in b"$=!" and int(rest) >= 0:
            at += int(rest) + 2
    return at if at <= len(data) else None


class Connection:
    """What the link knows of one connection that goes through it."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.subscribes = False
        self.muted = False


class Link:
    """Passes everything on until it is told otherwise."""

    def __init__(self, listener: trio.SocketListener, port: int) -> None:
        self.port: int = listener.socket.getsockname()[1]
        self.connections: set[Connection] = set()
        self.accepted = 0
        self._server = port
        self._flows = trio.Event()
        self._flows.set()
        self._is_cut = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        """Close all connections, and every new one at once, until `resume`."""
        self._is_cut = True
        for connection in self.connections:
            connection.scope.cancel()

    def hold(self) -> None:
        """Accept connections and carry nothing any more, neither way, until `resume`."""
        self._flows = trio.Event()

    def mute(self) -> int:
        """Swallow the messages for those that have subscribed until now, and answer all else.

        Nothing heals these connections; new ones are well. How many they are.
        """
        for connection in self.connections:
            connection.muted = connection.subscribes
        return sum(connection.muted for connection in self.connections)

    def resume(self) -> None:
        self._is_cut = False
        self._flows.set()

    async def serve(self, outer: trio.SocketStream) -> None:
        self.accepted += 1
        connection = Connection()
        self.connections.add(connection)
        try:
            async with outer:
                await self._flows.wait()
                if not self._is_cut:
                    async with await trio.open_tcp_stream("127.0.0.1", self._server) as inner:
                        await self._join(connection, outer, inner)
        except OSError:
            pass  # the server is down: closing the connection says so
        finally:
            self.connections.remove(connection)

    async def _join(
        self, connection: Connection, outer: trio.SocketStream, inner: trio.SocketStream
    ) -> None:
        with connection.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry_commands, connection, outer, inner)
                nursery.start_soon(self._carry_replies, connection, inner, outer)

    async def _carry_commands(
        self, connection: Connection, outer: trio.SocketStream, inner: trio.SocketStream
    ) -> None:
        try:
            async for data in outer:
                if COMMAND_OF_SUBSCRIBERS in data.lower():
                    connection.subscribes = True
                await self._flows.wait()
                await inner.send_all(data)
        except trio.BrokenResourceError:
            pass
        connection.scope.cancel()

    async def _carry_replies(
        self, connection: Connection, inner: trio.SocketStream, outer: trio.SocketStream
    ) -> None:
        """Reply by reply, so that single ones can be left out."""
        replies = bytearray()
        try:
            while data := await inner.receive_some(READ_BYTES):
                replies += data
                await self._flows.wait()
                at = 0
                passed = []
                while (end := end_of_reply(replies, at)) is not None:
                    reply = bytes(replies[at:end])
                    if not (connection.muted and reply.startswith(PUSHED)):
                        passed.append(reply)
                    at = end
                del replies[:at]
                await outer.send_all(b"".join(passed))
        except trio.BrokenResourceError:
            pass
        connection.scope.cancel()


@asynccontextmanager
async def link_to(redis: RedisServer) -> AsyncIterator[Link]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    link = Link(listener, redis.port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, link.serve, [listener])
        yield link
        nursery.cancel_scope.cancel()
