"""A link to Redis whose two connections fail one by one, reply by reply."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import trio
from link import PUSHED, Connection, Link, end_of_reply
from process import READ_BYTES


class ScriptedLink(Link):
    """A `Link`; what is done to replies here is done to those of one kind of connection alone."""

    def __init__(self, listener: trio.SocketListener, port: int) -> None:
        super().__init__(listener, port)
        self._reply_flows = {False: trio.Event(), True: trio.Event()}
        self.drop: Callable[[bytes], bool] = lambda reply: False
        """Messages of pub/sub for which that is true never arrive."""
        self.release()

    def hold_replies(self, *, of_subscriber: bool) -> None:
        """Commands go on arriving; what is said to them waits until `release`."""
        self._reply_flows[of_subscriber] = trio.Event()

    def release(self) -> None:
        for flow in self._reply_flows.values():
            flow.set()

    def cut_one(self, *, of_subscriber: bool) -> None:
        """Close connections, with all replies that are held; new ones are well."""
        for connection in self.connections:
            if connection.subscribes == of_subscriber:
                connection.scope.cancel()

    async def _carry_replies(
        self, connection: Connection, inner: trio.SocketStream, outer: trio.SocketStream
    ) -> None:
        """What was held arrives at once, so that it is read at once."""
        replies = bytearray()
        more, ready = trio.open_memory_channel[None](1)

        async def receive() -> None:
            while data := await inner.receive_some(READ_BYTES):
                replies.extend(data)
                with suppress(trio.WouldBlock):
                    more.send_nowait(None)
            connection.scope.cancel()

        async def send() -> None:
            async for _ in ready:
                await self._reply_flows[connection.subscribes].wait()
                passed, at = [], 0
                while (end := end_of_reply(replies, at)) is not None:
                    reply = bytes(replies[at:end])
                    is_swallowed = connection.muted and reply.startswith(PUSHED)
                    if not (is_swallowed or (connection.subscribes and self.drop(reply))):
                        passed.append(reply)
                    at = end
                del replies[:at]
                await outer.send_all(b"".join(passed))

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                nursery.start_soon(send)
        except* trio.BrokenResourceError:
            pass
        connection.scope.cancel()


@asynccontextmanager
async def scripted_link(port: int) -> AsyncIterator[ScriptedLink]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    link = ScriptedLink(listener, port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, link.serve, [listener])
        yield link
        nursery.cancel_scope.cancel()
