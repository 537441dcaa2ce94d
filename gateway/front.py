"""The front: accepts connections, and has a task for each that is not a live stream.

1. A connection contains its own errors: whatever it sends costs nobody else anything.
2. Connections are counted; over the bound they are told so, and far over it closed (`room`).
3. Accepting is paced, so that a storm of connections takes turns with the fan-out.
"""

import logging
import socket
from collections.abc import Callable

import trio

from gateway.addresses import peer_address
from gateway.connection import Connection, ServeCold, Service
from gateway.http1 import Phase
from gateway.node import Node

ACCEPTS_PER_TICK = 16
"""Connections accepted between two checkpoints: a storm of them takes turns with the fan-out."""

ACCEPT_PAUSE = 0.1
"""Seconds until the next try after the system had no descriptor or memory for a connection."""

WATCH_SECONDS = 0.25
"""Between two looks at the connections: one may be ended as much as two looks late."""

Begin = Callable[[Service, socket.socket, str], Connection]
"""What a listener's connections are, by their socket and the address of their peer."""

_log = logging.getLogger(__name__)


class Front:
    def __init__(self, node: Node, edge: ServeCold, *, max_connections: int) -> None:
        self.node = node
        self._service = Service(node, edge)
        self._max_connections = max_connections
        self._connections: set[Connection] = set()

    @property
    def serving(self) -> bool:
        """Whether a request is under way: half read, being answered, or not yet a live stream."""
        return any(connection.phase is not Phase.IDLE for connection in self._connections)

    async def accept(
        self, listener: socket.socket, nursery: trio.Nursery, begin: Begin = Connection
    ) -> None:
        """Accept from ``listener``, which is non-blocking, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(ACCEPTS_PER_TICK):
                if not await self._accept_one(listener, nursery, begin):
                    break
            await trio.lowlevel.checkpoint()

    async def empty_queue(
        self, listener: socket.socket, nursery: trio.Nursery, begin: Begin = Connection
    ) -> None:
        """Accept what the kernel has queued already, and close ``listener``."""
        for _ in range(self.node.config.backlog):
            if not await self._accept_one(listener, nursery, begin):
                break
            await trio.lowlevel.checkpoint()
        trio.lowlevel.notify_closing(listener)
        listener.close()

    async def _accept_one(
        self, listener: socket.socket, nursery: trio.Nursery, begin: Begin
    ) -> bool:
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        except OSError:  # no descriptor or no memory left: the queue keeps the others meanwhile
            self.node.refuse("no-descriptor")
            await trio.sleep(ACCEPT_PAUSE)
            return True
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        patience = int(self.node.config.max_behind_seconds * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
        connection = begin(self._service, sock, peer_address(str(address[0])))
        nursery.start_soon(self._serve, connection)
        return True

    async def watch(self) -> None:
        """End the waits on peers that are overdue, until cancelled.

        One task looks at all connections now and then: a scope with a deadline around each wait
        would cost more than the rest of a small request.
        """
        while True:
            await trio.sleep(WATCH_SECONDS)
            now = trio.current_time()
            for connection in self._connections:
                connection.look(now)

    async def _serve(self, connection: Connection) -> None:
        self._connections.add(connection)
        crowd = len(self._connections) - self._service.streams - self._max_connections
        crowd += len(self.node.hub.members.clients)
        try:
            if crowd > connection.room:
                self.node.refuse("connections")
            else:
                await connection.run(crowded=crowd > 0)
        except OSError:
            pass  # the peer is gone, and with it whoever could be told
        except Exception:  # noqa: BLE001  # a fault of ours here must not end everybody's streams
            _log.exception("a connection failed")
        finally:
            self._connections.discard(connection)
            connection.close()
