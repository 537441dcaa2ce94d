"""A worker of several: a server whose master is the supervisor at the other end of a socket.

1. It is told everything by the first message, and leaves when it is told to, by a signal, or
   when the socket ends: without its supervisor nobody can replace or stop it. That a supervisor is
   gone is seen by nothing else. PR_SET_PDEATHSIG would be a second way that knows less: it comes
   when the thread that started the worker ends, and looks like anybody's signal.
2. What the whole node counts is asked of the supervisor, one question at a time.
3. Its last words are its own counters.
"""

import logging
import math
import signal
import socket

import trio

from gateway import logs
from gateway.config import Config
from gateway.control_socket import (
    Answer,
    Ask,
    ControlSocket,
    Drain,
    Gone,
    Left,
    Own,
    Question,
    Ready,
    Reload,
    Start,
    ToWorker,
)
from gateway.control_socket import Leave as LeaveNode
from gateway.errors import Unavailable
from gateway.node import Node, NodeStatistics
from gateway.server import LAST_WORDS_SECONDS, Leave, hold_hangups, serve, start_logging
from gateway.tls import Certificate

ANSWER_SECONDS = 3.0
"""For an answer of the supervisor: the rest of a round of its own, which may take a second, a whole
one, and a busy machine."""

LAST_WORDS_WAIT = 1.0
"""Seconds for the last words to be read."""

GONE_SECONDS = 10.0
"""For the bus to be told that a sibling is gone; later it knows by itself."""

ORPHAN_SECONDS = 8.0
"""Beyond its drain, until a worker without supervisor that has not ended is ended by the kernel: as
long as a supervisor has patience."""

_log = logging.getLogger("gateway")


def run(control: int, listener: int, admin: int | None) -> None:
    """Serve on the descriptors ``listener`` and ``admin`` what the supervisor says over
    ``control``."""
    hold_hangups()
    admin_listener = None if admin is None else socket.socket(fileno=admin)
    ends = socket.socket(fileno=control), socket.socket(fileno=listener)
    try:
        trio.run(_run, *ends, admin_listener)
    finally:
        logs.flush()  # or a traceback would stand amid its lines


async def _run(
    control_end: socket.socket, listener: socket.socket, admin: socket.socket | None
) -> None:
    control: ControlSocket[ToWorker] = ControlSocket(control_end, ToWorker)
    async for message in control:
        assert isinstance(message, Start)
        start_logging(message.config, f"worker-{message.number}")
        await _serve(message.config, message.number, listener, admin, control)
        break


async def _serve(
    config: Config,
    number: int,
    listener: socket.socket,
    admin: socket.socket | None,
    control: ControlSocket[ToWorker],
) -> None:
    certificate = Certificate(config) if config.tls_cert else None
    link = Link(config, control)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.write)
        await serve(config, listener, link.attend, admin, certificate, number)
        link.say_goodbye()
        nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS_WAIT


class Link:
    """The worker's side of its control socket."""

    def __init__(self, config: Config, control: ControlSocket[ToWorker]) -> None:
        self._config = config
        self._control = control
        self._node: Node | None = None
        self._turn = trio.Lock()
        self._answered = trio.Event()
        self._answered.set()
        """Unset while a question is open."""
        self._answer: NodeStatistics | None = None
        self._orphan = False
        self._has_asked_to_leave = False

    async def attend(self, node: Node, leave: Leave) -> None:
        """Obey and answer the supervisor, until cancelled or until it is gone."""
        self._node = node
        node.ask_supervisor = self.node_statistics
        node.ask_to_leave = self._ask_to_leave
        self._control.send_nowait(Ready(node.tag))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_left, leave)
            async for message in self._control:
                match message:
                    case Drain():
                        leave.wanted.set()
                    case Ask():
                        self._control.send_nowait(Own(node.statistics()))
                    case Answer():
                        self._answer = message.node
                        self._answered.set()
                    case Gone():
                        nursery.start_soon(self._tell_gone, node, message.worker)
                    case Reload():
                        signal.raise_signal(signal.SIGHUP)
            nursery.cancel_scope.cancel()
        self._be_orphan(leave)

    async def node_statistics(self) -> NodeStatistics:
        """Those of all workers, no older than the call.

        Raises Unavailable after ANSWER_SECONDS: the worker's own would be less than what was told
        before, and counters never go down.
        """
        with trio.move_on_after(0 if self._orphan else ANSWER_SECONDS):
            async with self._turn:
                await self._answered.wait()  # to a question that its asker has given up
                self._answered = trio.Event()
                self._control.send_nowait(Question())
                await self._answered.wait()
                if self._answer is not None:
                    return self._answer
        raise Unavailable("The node's supervisor does not answer.", reason="supervisor")

    def _ask_to_leave(self) -> None:
        if not self._has_asked_to_leave:
            self._control.send_nowait(LeaveNode())
            self._has_asked_to_leave = True

    def say_goodbye(self) -> None:
        """Send the last message."""
        if self._node is not None:
            self._control.send_nowait(Own(self._node.statistics()))
        self._control.finish()

    async def _tell_left(self, leave: Leave) -> None:
        await leave.closed.wait()
        self._control.send_nowait(Left())

    async def _tell_gone(self, node: Node, worker: str) -> None:
        with trio.move_on_after(GONE_SECONDS):
            await node.bus.leave(worker)

    def _be_orphan(self, leave: Leave) -> None:
        _log.warning("the supervisor is gone: draining")
        self._orphan = True
        limit = self._config.drain_seconds + LAST_WORDS_SECONDS + ORPHAN_SECONDS
        signal.alarm(math.ceil(limit))  # nobody else would end it if it hung
        leave.wanted.set()
        leave.hurried.set()
