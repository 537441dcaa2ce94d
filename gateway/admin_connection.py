"""A connection to the listener of ``admin_bind``: plain HTTP, and nothing on it is hot."""

import socket

from gateway.connection import CROWD, Connection, ServeCold, Service
from gateway.http1 import Parsed

PROBES = 8
"""Connections of operators that are served when those of everybody else have taken all the room:
a node at its limit is not dead, and has to show it. They fit into what is kept of descriptors."""


class AdminConnection(Connection):
    room = CROWD + PROBES

    def __init__(
        self, service: Service, sock: socket.socket, peer: str, *, edge: ServeCold
    ) -> None:
        super().__init__(service, sock, peer)
        self._edge = edge

    async def _serve(self, parsed: Parsed) -> bool:
        await self._edge(parsed, self._hand_over(), self._peer, self._let_go_of_body)
        return False
