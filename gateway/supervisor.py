"""A node of several workers: it holds their listeners, replaces who dies, and adds up.

1. The listeners are the supervisor's, one a worker. Whoever replaces a worker gets its listener,
   and with it the connections that wait there: a death costs no more than those being served.
2. From the drain on only the workers hold the listeners, so that closing one there closes it.
3. The first signal drains all workers at once, by a message each; a second one kills them. What is
   overdue is killed too. A worker that is asked to has it drain as well, which no signal is counted
   for.
4. A worker that leaves by itself, because it got a signal, is replaced as soon as it accepts no
   more. One that dies is replaced after a pause, and not for ever: then the node ends.
5. One that hangs would keep its share of the connections for ever: after HUNG_ROUNDS without an
   answer it is killed, or START_ROUNDS if it was never ready. A round counts only if the supervisor
   itself was on time: when the whole machine stood still, that was no fault of a worker.
6. Whatever a worker does, nobody waits for it without a bound; every process is waited for.
"""

import logging
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import trio

from gateway import logs, notify
from gateway.census import Census
from gateway.config import Config
from gateway.control_socket import (
    ControlError,
    Drain,
    Gone,
    Leave,
    Left,
    Own,
    Question,
    Ready,
    Reload,
    Start,
)
from gateway.errors import GatewayError
from gateway.node import name_of
from gateway.restarts import Restarts
from gateway.server import (
    HANDLED,
    LAST_WORDS_SECONDS,
    NOTHING_TO_RELOAD,
    SIGNALS,
    announce,
    hold_hangups,
    listen_for_admin,
    listen_together,
    start_logging,
    stop_seconds,
)
from gateway.tls import load as load_certificate
from gateway.worker_process import Worker, start_worker

OVERDUE_SECONDS = 8.0
"""Beyond the drain that is set, until a worker that has not ended is killed: it may have been about
to start, or have much to put in order. With LAST_WORDS_SECONDS it is 2 s less than the STOP_SECONDS
of a service manager, so that the supervisor is gone before it would be killed."""

HUNG_SECONDS = 30.0
"""Until a worker that does not answer is killed, and a round more at most: longer than a machine
that swaps makes it wait."""

HUNG_ROUNDS = 6
"""In which it is asked meanwhile."""

START_ROUNDS = 3 * HUNG_ROUNDS
"""In which a worker must have become ready: 90 s, which is systemd's DefaultTimeoutStartSec too."""

_log = logging.getLogger("gateway")


def run(config: Config) -> None:
    """Run ``config.worker_count`` workers until a signal.

    Raises ConfigError when the address cannot be listened on, GatewayError when the node or one of
    its workers did not end well.
    """
    start_logging(config, "supervisor")
    hold_hangups()
    if config.tls_cert:
        load_certificate(config)  # what cannot be used stops the start, and not each worker
    listeners = listen_together(config, config.worker_count)
    admin_listeners = listen_for_admin(config, config.worker_count)
    try:
        failure = trio.run(Supervisor(config, listeners, admin_listeners).run)
    finally:
        logs.flush()  # or what is told of the end would stand amid its lines
    if failure:
        raise GatewayError(failure)


def share(config: Config) -> Config:
    """What each worker is told: the node's name, and its part of what is the node's: clients and
    streams, rounded up, and rates."""
    count = config.worker_count
    return replace(
        config,
        node_id=name_of(config),
        max_clients=-(-config.max_clients // count),
        max_streams_per_address=-(-config.max_streams_per_address // count),
        open_rate=config.open_rate / count,
        address_open_rate=config.address_open_rate / count,
    )


class Supervisor:
    def __init__(
        self,
        config: Config,
        listeners: list[socket.socket],
        admin_listeners: Sequence[socket.socket | None] = (),
    ) -> None:
        """With one of ``admin_listeners`` for each of ``listeners``, if there are any."""
        self._config = share(config)
        self._listeners = listeners
        self._admin_listeners = admin_listeners or [None] * len(listeners)
        self._census = Census()
        self._draining = trio.Event()
        self._serving = trio.Event()
        self._failure = ""
        self._processes: trio.Nursery

    async def run(self) -> str:
        """Until all workers have ended; why that was not well, or nothing."""
        with (
            trio.open_signal_receiver(*SIGNALS) as signals,
            trio.open_signal_receiver(signal.SIGHUP) as hangups,
        ):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals)
                nursery.start_soon(self._reload, hangups)
                nursery.start_soon(self._report)
                nursery.start_soon(self._kill_overdue)
                nursery.start_soon(self._census.run)
                nursery.start_soon(self._kill_hung)
                async with trio.open_nursery() as self._processes:
                    pairs = zip(self._listeners, self._admin_listeners, strict=True)
                    for number, (listener, admin) in enumerate(pairs, 1):
                        self._processes.start_soon(self._keep, number, listener, admin)
                nursery.cancel_scope.cancel()
        if self._failure:
            _log.error("node %(node)s has failed", {"node": self._config.node_id})
        else:
            _log.info("node %(node)s has drained", {"node": self._config.node_id})
        return self._failure

    async def _keep(
        self, number: int, listener: socket.socket, admin: socket.socket | None
    ) -> None:
        """Have a worker of this number on its listeners until the node drains."""
        restarts = Restarts()
        with ExitStack() as held:
            held.enter_context(listener)
            if admin is not None:
                held.enter_context(admin)
            while True:
                worker, begun = None, trio.current_time()
                try:
                    worker = self._start(number, listener, admin)
                except OSError as error:
                    end = f"could not be started ({error.strerror})"
                    _log.error("worker %(worker)d %(end)s", {"worker": number, "end": end})
                else:
                    await _first_of(worker.over, self._draining)
                    if not worker.over.is_set():  # else over before the drain: its queue counts
                        break
                    end = worker.end
                if worker is None or not worker.left:
                    now = trio.current_time()
                    was_ready = worker is not None and worker.ready
                    pause = restarts.died(now, lived=now - begun, was_ready=was_ready)
                    if restarts.hopeless:
                        told = f"{restarts.hopeless}, the last time it {end}"
                        self._fail(f"Worker {number} {told}: the node has ended.")
                        return
                    _log.warning(
                        "worker %(worker)d begins again in %(seconds)g s",
                        {"worker": number, "seconds": pause},
                    )
                    with trio.move_on_after(pause):
                        await self._draining.wait()  # the next one empties the queue, and leaves
                self._census.restarts += 1
        worker.tell(Drain())

    def _start(self, number: int, listener: socket.socket, admin: socket.socket | None) -> Worker:
        worker = start_worker(number, listener, admin)
        worker.tell(Start(number, self._config))
        self._census.add(worker)
        self._processes.start_soon(self._attend, worker)
        return worker

    async def _attend(self, worker: Worker) -> None:
        """Hear a worker until it has ended, and tell so."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.control.write)
            try:
                await self._hear(worker)
            except ControlError as error:
                told = _of(worker) | {"sent": str(error)}
                _log.error("worker %(worker)d sent %(sent)s: killing it", told)
                worker.kill()
            nursery.cancel_scope.cancel()
        await worker.wait()
        self._census.remove(worker)
        worker.over.set()
        if worker.tag:
            for sibling in self._census.answering[:1]:
                sibling.mention(Gone(worker.tag))
        if worker.code == 0:
            _log.info("worker %(worker)d (process %(pid)d) has left", _of(worker))
            return
        told = _of(worker) | {"end": worker.end}
        _log.error("worker %(worker)d (process %(pid)d) %(end)s", told)
        if self._draining.is_set():
            self._fail(f"Worker {worker.number} {worker.end} while the node drained.")

    async def _hear(self, worker: Worker) -> None:
        async for message in worker.control:
            match message:
                case Ready():
                    worker.ready = True
                    worker.tag = message.worker
                    worker.missed = 0
                    _log.info("worker %(worker)d is ready, process %(pid)d", _of(worker))
                    self._announce()
                case Left():
                    worker.left = True
                    worker.over.set()
                case Leave():
                    if not self._draining.is_set():  # each of the workers says so
                        self._begin_to_drain()
                case Own():
                    worker.hear(message.statistics)
                case Question():
                    self._census.question(worker)

    def _announce(self) -> None:
        count = len(self._listeners)
        if self._serving.is_set() or self._draining.is_set():
            return
        if len(self._census.serving) < count:
            return
        self._serving.set()
        listener, admin = self._listeners[0], self._admin_listeners[0]
        announce(self._config, listener, admin, self._config.node_id, count)

    async def _report(self) -> None:
        await self._serving.wait()
        await notify.report(self._draining, stop_seconds(self._config))

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        await anext(signals)
        self._begin_to_drain()
        await anext(signals)
        _log.warning("second signal: leaving at once")
        self._fail("A second signal ended the node before it had drained.")
        self._kill()

    async def _reload(self, hangups: AsyncIterator[int]) -> None:
        async for _ in hangups:
            await self._serving.wait()
            await notify.reloading()
            if not self._config.tls_cert:
                _log.info(NOTHING_TO_RELOAD)
            else:
                for worker in self._census.workers:
                    worker.tell(Reload())
            await notify.ready()

    def _begin_to_drain(self) -> None:
        _log.info("node %(node)s is draining its workers", {"node": self._config.node_id})
        self._drain()

    def _drain(self) -> None:
        self._census.draining = True
        self._draining.set()

    def _fail(self, sentence: str) -> None:
        """End the node; the first reason is told."""
        self._failure = self._failure or sentence
        self._drain()

    async def _kill_hung(self) -> None:
        interval = HUNG_SECONDS / HUNG_ROUNDS
        while True:
            begun = trio.current_time()
            self._census.ask()
            await trio.sleep_until(begun + interval)
            if trio.current_time() - begun > 1.5 * interval:
                continue  # stopped, as the workers may have been
            for worker in self._census.missed():
                if worker.missed < (HUNG_ROUNDS if worker.ready else START_ROUNDS):
                    continue
                _log.error(
                    "worker %(worker)d (process %(pid)d) does not answer: killing it", _of(worker)
                )
                worker.kill()

    async def _kill_overdue(self) -> None:
        await self._draining.wait()
        config = self._config
        limit = config.drain_grace + config.drain_seconds + LAST_WORDS_SECONDS + OVERDUE_SECONDS
        await trio.sleep(limit)
        self._fail(f"Some workers had not ended after {limit:g} seconds and were killed.")
        self._kill()

    def _kill(self) -> None:
        for worker in self._census.workers:
            worker.kill()


def _of(worker: Worker) -> dict[str, object]:
    """The fields of a line about a worker."""
    return {"worker": worker.number, "pid": worker.pid}


async def _first_of(one: trio.Event, other: trio.Event) -> None:
    """Return when either event has happened."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait, one)
        nursery.start_soon(wait, other)
