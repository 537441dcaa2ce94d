"""The front: accepts connections, and has a task for each that is not a live stream.

1. A connection contains its own errors: whatever it sends costs nobody else anything.
2. Connections are counted; over the bound they are told so, and far over it closed (`room`).
3. A storm of connections takes turns with the fan-out: few of them are begun in one turn. The
   others are taken from the kernel all the same, as far as there are descriptors, and wait here:
   what its queue cannot hold it forgets, and who is forgotten knocks again after seconds, or
   believes for minutes that he is connected.
"""

import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import trio

from gateway.addresses import peer_address
from gateway.connection import Connection, ServeCold, Service
from gateway.http1 import Phase
from gateway.node import Node

ACCEPTS_PER_TURN = 512
"""Connections taken from the kernel between two checkpoints: four milliseconds of work, and few
such turns for any storm."""

BEGUN_PER_TURN = 16
"""Of them those that are begun to be served, which costs ten times as much for each."""

ACCEPT_PAUSE = 0.1
"""Seconds until the next try after the system had no descriptor or memory for a connection."""

WATCH_SECONDS = 0.25
"""Between two looks at the connections: one may be ended as much as two looks late."""

Begin = Callable[[Service, socket.socket, str], Connection]
"""What a listener's connections are, by their socket and the address of their peer."""

Waiting: TypeAlias = "deque[tuple[socket.socket, Any]]"
"""Accepted connections, and the addresses of their peers as the system has them."""

_log = logging.getLogger(__name__)


class Front:
    def __init__(self, node: Node, edge: ServeCold, *, max_connections: int) -> None:
        self.node = node
        self._service = Service(node, edge)
        self._max_connections = max_connections
        self._connections: set[Connection] = set()
        self._waiting = 0

    @property
    def serving(self) -> bool:
        """Whether a request is under way: not begun, half read, being answered, or not yet a live
        stream."""
        return self._waiting > 0 or any(
            connection.phase is not Phase.IDLE for connection in self._connections
        )

    async def accept(
        self, listener: socket.socket, nursery: trio.Nursery, begin: Begin = Connection
    ) -> None:
        """Accept from ``listener``, which is non-blocking, until cancelled; what waits then is
        served."""
        waiting: Waiting = deque()
        try:
            while True:
                if not waiting:
                    await trio.lowlevel.wait_readable(listener)
                for _ in range(ACCEPTS_PER_TURN):
                    if len(waiting) >= BEGUN_PER_TURN and self._crowd() >= 0:
                        break  # no descriptor is left to wait with
                    if not await self._accept_one(listener, waiting):
                        break
                for _ in range(min(BEGUN_PER_TURN, len(waiting))):
                    self._begin(waiting, nursery, begin)
                await trio.lowlevel.checkpoint()
        finally:
            while waiting:
                self._begin(waiting, nursery, begin)

    async def empty_queue(
        self, listener: socket.socket, nursery: trio.Nursery, begin: Begin = Connection
    ) -> None:
        """Accept what the kernel has queued already, and close ``listener``."""
        waiting: Waiting = deque()
        for _ in range(self.node.config.backlog):
            if not await self._accept_one(listener, waiting):
                break
            while waiting:
                self._begin(waiting, nursery, begin)
            await trio.lowlevel.checkpoint()
        trio.lowlevel.notify_closing(listener)
        listener.close()

    async def _accept_one(self, listener: socket.socket, waiting: Waiting) -> bool:
        """Add a connection to those that wait; whether there may be more."""
        try:
            waiting.append(listener.accept())
        except BlockingIOError:
            return False
        except ConnectionAbortedError:
            return True
        except OSError:  # no descriptor or no memory left: the queue keeps the others meanwhile
            self.node.refuse("no-descriptor")
            if waiting:
                return False
            await trio.sleep(ACCEPT_PAUSE)
            return True
        self._waiting += 1
        return True

    def _begin(self, waiting: Waiting, nursery: trio.Nursery, begin: Begin) -> None:
        """Serve who has waited longest."""
        sock, address = waiting.popleft()
        self._waiting -= 1
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        patience = int(self.node.config.max_behind_seconds * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
        connection = begin(self._service, sock, peer_address(str(address[0])))
        nursery.start_soon(self._serve, connection)

    def _crowd(self) -> int:
        """Connections and streams beyond the bound; negative while there is room."""
        held = self._waiting + len(self._connections) - self._service.streams
        return held + len(self.node.hub.members.clients) - self._max_connections

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
        crowd = self._crowd()
        try:
            if crowd > connection.room:
                self.node.refuse("connections")
            else:
                await connection.run(crowded=crowd > 0)
        except OSError:
            pass  # the peer is gone, and with it whoever could be told
        except Exception:  # noqa: BLE001  # a fault of ours here must not end everybody's streams
            _log.exception("a connection failed", connection.about())
        finally:
            self._connections.discard(connection)
            connection.close()
