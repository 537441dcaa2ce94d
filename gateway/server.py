"""One worker: its listeners, its tasks, its signals, and how it leaves.

Leaving (SIGTERM, SIGINT, or a request for it): say so on /readyz and go on for ``drain_grace``;
empty the accept queue and close the listener; end the streams one after another over
``drain_seconds``, each flushed, told and closed; cut who has not read by then; exit 0. A second
signal exits at once; requests count for none. A worker among several leaves in the same way when
its supervisor says so, and without the grace when that is gone.
The listener of ``admin_bind`` answers until the very end, so that probes see all this.

SIGHUP has the certificate read again.
"""

import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import trio

from gateway import __version__, control, logs, notify, tracing
from gateway.config import Config, LogFormat, is_loopback, split_address
from gateway.connection import Connection
from gateway.errors import ConfigError
from gateway.front import Begin, Front
from gateway.hub_client import Client
from gateway.node import Node, name_of
from gateway.reception import Reception
from gateway.stream_state import Reason
from gateway.tls import Certificate

RESERVED_DESCRIPTORS = 128
"""Kept from clients: listener, epolls, logs, and requests that are no streams."""

MOST_FOR_CALLS = 0.25
"""Of the other descriptors, kept for the calls of upstreams, however many of those there may be."""

DRAIN_TICK = 0.05
"""Seconds between two batches of streams that are ended."""

CLOSES_PER_TURN = 64
"""Streams ended between two checkpoints: about a millisecond."""

DRAIN_RETRY_SHARE = 0.5
"""Of the reconnect delay, jittered as ever, that is told to those who are sent away: they come back
as they were ended, one after another, so that a short one makes no crowd, and with the default of
``retry`` nobody is away for two seconds."""

LAST_WORDS_SECONDS = 1.0
"""Beyond ``drain_seconds``, for answers under way and farewells that are still being read."""

STOP_SECONDS = 11.0
"""Beyond the drain that is set, until a service manager may kill a node that has not ended."""

GC_THRESHOLDS = (20_000, 3, 1000)
"""Of a young collection in allocations, of a middle one in young, of a full one in middle ones. The
first two look at so few objects that they take a few milliseconds; a full one, which stops the pass
for longer the more history there is, is rare."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""That end a process in order."""

HANDLED = (*SIGNALS, signal.SIGHUP)

NOTHING_TO_RELOAD = "SIGHUP: there is no certificate, and so nothing to read again"

_log = logging.getLogger("gateway")


class Leave:
    """That a worker is to leave, and how far it is."""

    def __init__(self) -> None:
        self.wanted = trio.Event()
        self.hurried = trio.Event()
        """Without the grace."""
        self.closed = trio.Event()
        """The accept queue is empty and the listener closed."""


Attend = Callable[[Node, Leave], Awaitable[None]]
"""What a worker's master does while it serves, begun when it is ready and cancelled at its end."""


def run(config: Config) -> None:
    """Serve until a signal. Raises ConfigError when the address cannot be listened on."""
    start_logging(config)
    hold_hangups()
    certificate = Certificate(config) if config.tls_cert else None
    listener = listen(config)
    [admin] = listen_for_admin(config, 1)
    attend = partial(_attend, config, listener, admin)
    try:
        trio.run(serve, config, listener, attend, admin, certificate)
    finally:
        logs.flush()  # or a traceback would stand amid its lines


def hold_hangups() -> None:
    """Have SIGHUP end nothing: one that comes before it can be obeyed waits until then, and one
    that comes when nobody obeys any more is lost."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # first, as it drops what waits already
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def start_logging(config: Config, process: str = "") -> None:
    """Log to stderr; ``process`` tells the lines of one of several apart."""
    logs.start(
        config.log_level,
        as_json=config.log_format is LogFormat.JSON,
        rate=config.log_rate,
        process=process,
    )


def listen(config: Config) -> socket.socket:
    """A listener on ``config.bind``, as `listen_together` makes them."""
    return listen_together(config, 1)[0]


def listen_together(config: Config, count: int) -> list[socket.socket]:
    """Listeners on ``config.bind``, whose connections inherit the bounded send buffer.

    The kernel divides connections among them. All have the port that the first one gets, and that
    one is bound before it may share: an address that somebody else has is refused.
    """
    return _listen_together(config, "bind", count)


def listen_for_admin(config: Config, count: int) -> Sequence[socket.socket | None]:
    """As many listeners on ``config.admin_bind``, or Nones where there is none."""
    return _listen_together(config, "admin_bind", count) if config.admin_bind else [None] * count


def _listen_together(config: Config, setting: str, count: int) -> list[socket.socket]:
    told = getattr(config, setting)
    host, port = split_address(told)
    listeners: list[socket.socket] = []
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        for _ in range(count):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.send_buffer_bytes)
            if listeners:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            if count > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            address = listener.getsockname()
            listeners.append(listener)
        for listener in listeners:
            listener.listen(config.backlog)
    except OSError as error:
        raise ConfigError(f"{setting}: cannot listen on {told}: {error.strerror}.") from None
    return listeners


async def serve(
    config: Config,
    listener: socket.socket,
    attend: Attend,
    admin: socket.socket | None = None,
    certificate: Certificate | None = None,
    number: int = 1,
) -> None:
    """Serve on ``listener`` until told to leave, by a signal or by what ``attend`` hears.

    ``admin`` is the listener of ``admin_bind``, ``number`` that of the worker.
    """
    descriptors = left_by_calls(config, raise_descriptor_limit())
    config = replace(config, node_id=name_of(config))
    node = Node(
        config,
        max_clients=config.max_clients or descriptors - RESERVED_DESCRIPTORS,
        certificate=certificate,
        number=number,
        tracing=tracing.start(config.node_id),
    )
    reception = Reception(
        node, certificate, max_connections=descriptors - RESERVED_DESCRIPTORS // 2
    )
    front, begin = reception.front, reception.begin
    leave = Leave()
    with (
        trio.open_signal_receiver(*SIGNALS) as signals,
        trio.open_signal_receiver(signal.SIGHUP) as hangups,
    ):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)  # a supervisor has blocked them
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            await nursery.start(reception.run)
            accepting, accepting_admin = trio.CancelScope(), trio.CancelScope()
            nursery.start_soon(_accept, front, listener, nursery, begin, accepting)
            if admin is not None:
                begin_admin = reception.begin_admin
                nursery.start_soon(_accept, front, admin, nursery, begin_admin, accepting_admin)
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            nursery.start_soon(_obey, signals, leave)
            nursery.start_soon(_reload, hangups, certificate)
            nursery.start_soon(attend, node, leave)
            await leave.wanted.wait()
            await _drain(config, node, front, listener, nursery, accepting, leave, begin)
            if admin is not None:
                accepting_admin.cancel()
                await front.empty_queue(admin, nursery, reception.begin_admin)
                await _answered(front)
            for client in list(node.hub.holders()):
                node.hub.close(client, Reason.DRAINING)  # who has not read; the log tells of each
            reception.abort()
            nursery.cancel_scope.cancel()
    if node.tracing is not None:
        await node.tracing.stop()
    _log.info("node %(node)s has drained", {"node": node.id})


def left_by_calls(config: Config, descriptors: int) -> int:
    """How many are left for others when as many upstreams are called as may be."""
    calls = sum(upstream.max_streams for upstream in config.upstreams)
    return descriptors - min(calls, int((descriptors - RESERVED_DESCRIPTORS) * MOST_FOR_CALLS))


def raise_descriptor_limit() -> int:
    """Allow as many descriptors as the system does; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def _accept(
    front: Front,
    listener: socket.socket,
    nursery: trio.Nursery,
    begin: Begin,
    scope: trio.CancelScope,
) -> None:
    with scope:
        await front.accept(listener, nursery, begin)


async def _obey(signals: AsyncIterator[int], leave: Leave) -> None:
    await anext(signals)
    leave.wanted.set()
    async for _ in signals:
        _log.warning("second signal: leaving at once")
        logs.flush()
        os._exit(1)


async def _reload(hangups: AsyncIterator[int], certificate: Certificate | None) -> None:
    async for _ in hangups:
        await notify.reloading()
        if certificate is None:
            _log.info(NOTHING_TO_RELOAD)
        else:
            await certificate.reload()
        await notify.ready()


async def _attend(
    config: Config, listener: socket.socket, admin: socket.socket | None, node: Node, leave: Leave
) -> None:
    """Of a worker whose master is the service manager, if there is any."""
    node.ask_to_leave = leave.wanted.set
    announce(config, listener, admin, node.id)
    await notify.report(leave.wanted, stop_seconds(config))


def stop_seconds(config: Config) -> float:
    """Within which a node ends that is told to."""
    drain = config.drain_grace + config.drain_seconds + config.drain_relay_seconds
    return drain + STOP_SECONDS


def announce(
    config: Config,
    listener: socket.socket,
    admin: socket.socket | None,
    node_id: str,
    workers: int = 1,
) -> None:
    """Log that the node is ready, and where."""
    if admin is not None:
        _log.info("metrics and probes on %(url)s", {"url": f"http://{_shown(admin)}/"})
    scheme, shown = "https" if config.tls_cert else "http", _shown(listener)
    sentence = "gateway %(version)s, node %(node)s, on %(url)s"
    told = {"version": __version__, "node": node_id, "url": f"{scheme}://{shown}/"}
    if workers > 1:
        sentence += ", %(workers)d workers"
    _log.info(sentence, told | {"workers": workers})
    if not is_loopback(listener.getsockname()[0]) and not config.has_keys:
        _log.warning("this node is open to anyone who can reach %(address)s", {"address": shown})


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _drain(
    config: Config,
    node: Node,
    front: Front,
    listener: socket.socket,
    nursery: trio.Nursery,
    accepting: trio.CancelScope,
    leave: Leave | None = None,
    begin: Begin = Connection,
) -> None:
    leave = leave or Leave()
    node.draining = True
    told = {"node": node.id, "clients": len(node.hub.members.clients)}
    _log.info("node %(node)s is draining %(clients)d clients", told)
    nursery.start_soon(node.reports.report_now)
    with trio.move_on_after(config.drain_grace):
        await leave.hurried.wait()
    node.leaving = True
    node.admission.dissolve()
    accepting.cancel()
    await front.empty_queue(listener, nursery, begin)
    leave.closed.set()
    await trio.sleep(DRAIN_TICK)  # the requests of the last ones may be just behind them
    if not config.redis:  # whoever watches will find nothing of it elsewhere, and is told here
        await node.relays.leave(config.drain_relay_seconds)
    async with trio.open_nursery() as token_streams:
        if config.redis:
            seconds = config.drain_seconds + config.drain_relay_seconds
            token_streams.start_soon(node.relays.leave, seconds)
            token_streams.start_soon(node.pushes.leave)
        with trio.move_on_after(config.drain_seconds + LAST_WORDS_SECONDS):
            await _end_streams(config, node)
            while node.hub.open_streams or front.serving:
                await trio.sleep(DRAIN_TICK)
                # those that were let in at the last
                await _tell(config, node, list(node.hub.members.clients.values()))
    with trio.move_on_after(LAST_WORDS_SECONDS):
        await node.reports.report_now()
    with trio.move_on_after(LAST_WORDS_SECONDS):
        await node.bus.leave()


async def _answered(front: Front) -> None:
    """Wait until no request is under way, for a little while."""
    with trio.move_on_after(LAST_WORDS_SECONDS):
        while front.serving:  # noqa: ASYNC110  # each connection would have to tell
            await trio.sleep(DRAIN_TICK)


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
    retry = config.retry * DRAIN_RETRY_SHARE
    await node.hub.pending.passed_on()
    async with node.hub.turn:
        for turn, client in enumerate(clients, 1):
            if not turn % CLOSES_PER_TURN:
                await trio.lowlevel.checkpoint()
            farewell = control.retry(retry) + control.reconnect(Reason.DRAINING)
            node.hub.finish(client, Reason.DRAINING, farewell)
