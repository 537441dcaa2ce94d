"""One worker: its listener, its tasks, its signals, and how it leaves.

Leaving (SIGTERM or SIGINT): say so on /readyz and go on for ``drain_grace``; empty the accept queue
and close the listener; end the streams one after another over ``drain_seconds``, each flushed, told
and closed; cut who has not read by then; exit 0. A second signal exits at once.
"""

import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator

import trio

from gateway import __version__, control
from gateway.client import Client, Reason
from gateway.config import Config, is_loopback, split_address
from gateway.edge.app import make_app
from gateway.edge.serve import Edge
from gateway.errors import ConfigError
from gateway.front import Front
from gateway.node import Node

RESERVED_DESCRIPTORS = 128
"""Kept from clients: listener, epolls, logs, and requests that are no streams."""

DRAIN_TICK = 0.05
"""Seconds between two batches of streams that are ended."""

CLOSES_PER_TURN = 64
"""Streams ended between two checkpoints: about a millisecond."""

LAST_WORDS_SECONDS = 1.0
"""Beyond ``drain_seconds``, for answers under way and farewells that are still being read."""

GC_THRESHOLDS = (20_000, 3, 1000)
"""Of a young collection in allocations, of a middle one in young, of a full one in middle ones. The
first two look at so few objects that they take a few milliseconds; a full one, which stops the pass
for longer the more history there is, is rare."""

_log = logging.getLogger("gateway")


def run(config: Config) -> None:
    """Serve until a signal. Raises ConfigError when the address cannot be listened on."""
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    listener = listen(config)
    trio.run(serve, config, listener)


def listen(config: Config) -> socket.socket:
    """A listener on ``config.bind``, whose connections inherit the bounded send buffer."""
    host, port = split_address(config.bind)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.send_buffer_bytes)
        listener.bind(address)
        listener.listen(config.backlog)
    except OSError as error:
        raise ConfigError(f"bind: cannot listen on {config.bind}: {error.strerror}.") from None
    listener.setblocking(False)
    return listener


async def serve(config: Config, listener: socket.socket) -> None:
    """Serve on ``listener`` until a signal has been obeyed."""
    descriptors = raise_descriptor_limit()
    node = Node(config, max_clients=config.max_clients or descriptors - RESERVED_DESCRIPTORS)
    edge = Edge(make_app(node), write_timeout=config.write_timeout)
    front = Front(node, edge.serve, max_connections=descriptors - RESERVED_DESCRIPTORS // 2)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            await nursery.start(edge.run)
            nursery.start_soon(front.watch)
            accepting = trio.CancelScope()
            nursery.start_soon(_accept, front, listener, nursery, accepting)
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            _announce(config, listener, node)
            await anext(signals)
            nursery.start_soon(_exit_on, signals)
            await _drain(config, node, front, listener, nursery, accepting)
            edge.abort()
            nursery.cancel_scope.cancel()
    _log.info("node %s has drained", node.id)


def raise_descriptor_limit() -> int:
    """Allow as many descriptors as the system does; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def _accept(
    front: Front, listener: socket.socket, nursery: trio.Nursery, scope: trio.CancelScope
) -> None:
    with scope:
        await front.accept(listener, nursery)


async def _exit_on(signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        _log.warning("second signal: leaving at once")
        os._exit(1)


def _announce(config: Config, listener: socket.socket, node: Node) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    _log.info("gateway %s, node %s, on http://%s:%d/", __version__, node.id, shown, port)
    if not is_loopback(host):
        _log.warning("this node is open to anyone who can reach %s:%d", shown, port)


async def _drain(
    config: Config,
    node: Node,
    front: Front,
    listener: socket.socket,
    nursery: trio.Nursery,
    accepting: trio.CancelScope,
) -> None:
    node.draining = True
    _log.info("node %s is draining %d clients", node.id, len(node.hub.members.clients))
    await trio.sleep(config.drain_grace)
    node.leaving = True
    accepting.cancel()
    await front.empty_queue(listener, nursery)
    await trio.sleep(DRAIN_TICK)  # the requests of the last ones may be just behind them
    with trio.move_on_after(config.drain_seconds + LAST_WORDS_SECONDS):
        await _end_streams(config, node)
        while node.hub.open_streams or front.serving:
            await trio.sleep(DRAIN_TICK)
            await _tell(config, node, list(node.hub.members.clients.values()))  # let in at the last


async def _end_streams(config: Config, node: Node) -> None:
    """End all streams, evenly over ``drain_seconds``; those opened meanwhile are refused."""
    clients: list[Client] = list(node.hub.members.clients.values())
    start = trio.current_time()
    ended = 0
    while ended < len(clients):
        passed = trio.current_time() - start + DRAIN_TICK
        share = passed / config.drain_seconds if config.drain_seconds else 1
        due = min(len(clients), max(1, int(share * len(clients))))
        await _tell(config, node, clients[ended:due])
        ended = due
        await trio.sleep(DRAIN_TICK)


async def _tell(config: Config, node: Node, clients: list[Client]) -> None:
    """End the streams of ``clients``, which have been given what was published until now."""
    await node.hub.pending.passed_on()
    async with node.hub.turn:
        for turn, client in enumerate(clients, 1):
            if not turn % CLOSES_PER_TURN:
                await trio.lowlevel.checkpoint()
            farewell = control.retry(config.retry) + control.reconnect(Reason.DRAINING)
            node.hub.finish(client, Reason.DRAINING, farewell)
