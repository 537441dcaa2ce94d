"""Where a worker's connections arrive: its front, what each listener begins there, and the edges.

The listener of ``admin_bind`` shares the front's bounds and deadlines. It has an app of its own, so
that what is open there cannot be reached, nor anything else be reached there, by a mistake in a
check.
"""

from functools import partial

import trio

from gateway.admin_connection import AdminConnection
from gateway.arriving import ArrivingConnection
from gateway.connection import Connection
from gateway.edge.app import make_admin_app, make_app
from gateway.edge.serve import Edge
from gateway.front import Begin, Front
from gateway.node import Node
from gateway.tls import Certificate
from gateway.tls_connection import TlsConnection


class Reception:
    def __init__(
        self, node: Node, certificate: Certificate | None, *, max_connections: int
    ) -> None:
        """With a ``certificate``, TLS is spoken, and nothing else."""
        timeout = node.config.write_timeout
        self.edge = Edge(make_app(node), write_timeout=timeout)
        self.admin_edge = Edge(make_admin_app(node), write_timeout=timeout)
        self.front = Front(node, self.edge.serve, max_connections=max_connections)
        self.begin = _begin(node, certificate)
        self.begin_admin: Begin = partial(AdminConnection, edge=self.admin_edge.serve)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """What has to run before anything is accepted, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.edge.run)
            await nursery.start(self.admin_edge.run)
            nursery.start_soon(self.front.watch)
            task_status.started()

    def abort(self) -> None:
        """Close the connections of the edges."""
        self.edge.abort()
        self.admin_edge.abort()


def _begin(node: Node, certificate: Certificate | None) -> Begin:
    proxies = node.proxies if node.config.proxy_protocol else None
    if certificate is not None:
        return partial(TlsConnection, proxies=proxies, certificate=certificate)
    if node.config.proxy_protocol:
        return partial(ArrivingConnection, proxies=proxies)
    return Connection
