"""The direct lane's poller: who went away, who sent what he should not, who can be written to.

All sockets of the lane are in one epoll of its own, and trio waits for that epoll's descriptor: an
idle client is an entry in the kernel and no task. A socket is registered for reading as long as its
client is open, and for writing while something waits.

1. A descriptor number is only used while its client is registered here, and a client is taken out
   before its socket is closed: the number may be somebody else's the moment after.
2. Handling one batch of notifications never awaits.
"""

import select
from collections.abc import Callable

import trio

from gateway.hub_client import Client
from gateway.stream_state import Reason, State

MAX_STRAY_BYTES = 4096
"""What a client may send on its stream (a stray CRLF, a pipelined request) before it is closed."""

BATCH = 8
"""Notifications handled between two checkpoints: each may fill a whole send buffer, or write a
thousand small frames, in half a millisecond."""

_READ = select.EPOLLIN | select.EPOLLRDHUP
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Poller:
    def __init__(
        self, flushed: Callable[[Client], None], end: Callable[[Client, Reason], None]
    ) -> None:
        """``flushed`` is told that nothing waits for a client any more, ``end`` to close it."""
        self._flushed = flushed
        self._end = end
        self._epoll = select.epoll()
        self._clients: dict[int, Client] = {}

    def add(self, client: Client) -> None:
        assert client.sock is not None
        descriptor = client.sock.fileno()
        self._epoll.register(descriptor, _READ)  # raises OSError where there is no room for it
        self._clients[descriptor] = client

    def arm(self, client: Client) -> None:
        """Write to ``client`` as soon as its socket accepts."""
        assert client.sock is not None
        self._epoll.modify(client.sock.fileno(), _READ | select.EPOLLOUT)

    def disarm(self, client: Client) -> None:
        assert client.sock is not None
        self._epoll.modify(client.sock.fileno(), _READ)

    def remove(self, client: Client) -> None:
        """Forget ``client`` and close its socket."""
        assert client.sock is not None
        descriptor = client.sock.fileno()
        if self._clients.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
        trio.lowlevel.notify_closing(client.sock)
        client.sock.close()

    async def run(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for descriptor, events in self._epoll.poll(0, BATCH):
                    client = self._clients.get(descriptor)
                    if client is not None:
                        self._handle(client, events)
        finally:
            self._clients.clear()  # what is removed after this is only closed
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()

    def _handle(self, client: Client, events: int) -> None:
        if events & (select.EPOLLIN | _GONE) and not self._discard_input(client, events):
            return
        if not events & select.EPOLLOUT:
            return
        if client.writable is not None:
            client.writable.set()
            self.disarm(client)
            return
        try:
            flushed = client.flush()
        except OSError:
            self._end(client, Reason.GONE)
            return
        if flushed:
            self.disarm(client)
            self._flushed(client)

    def _discard_input(self, client: Client, events: int) -> bool:
        """Whether the client is still open after what it sent."""
        assert client.sock is not None
        try:
            data = client.sock.recv(MAX_STRAY_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        client.stray_bytes += len(data)
        if client.stray_bytes > MAX_STRAY_BYTES:
            self._end(client, Reason.UNEXPECTED_INPUT)
        elif not data or events & select.EPOLLHUP:
            self._end(client, Reason.GONE)
        return client.state is not State.CLOSED
