"""A worker's process as its supervisor sees it: from its start to its exit code."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress

import trio

from gateway import notify
from gateway.control_socket import ControlSocket, ToSupervisor, ToWorker
from gateway.node import NodeStatistics
from gateway.server import HANDLED

COMMAND = (sys.executable, "-P", "-m", "gateway", "worker")
"""With the descriptors of control socket and listeners. -P: the gateway that is installed, and not
one that happens to be in the working directory."""

EXIT_SECONDS = 10.0
"""Between the end of its control socket and that of the process, which Python tidies up; at the
bound it is killed."""


class Worker:
    """``started`` is by trio's clock."""

    def __init__(
        self,
        number: int,
        process: subprocess.Popen[bytes],
        control: ControlSocket[ToSupervisor],
    ) -> None:
        """Raises OSError when the process cannot be watched; it has been ended then."""
        self.number = number
        self.control = control
        self.started = trio.current_time()
        self.tag = ""
        """By which other workers know it, once it is ready."""
        self.ready = False
        self.left = False
        """It accepts no more, of its own accord."""
        self.over = trio.Event()
        """It has left or ended: another one may accept from its listener."""
        self.last: NodeStatistics | None = None
        """What it told last."""
        self.silent = False
        """It has been asked and has not answered yet."""
        self.missed = 0
        """Rounds in a row that passed without an answer, or before it was ready."""
        self.answered = trio.Event()
        self._process = process
        try:
            self._descriptor = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()  # no longer than a kill takes
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def end(self) -> str:
        """How it ended, to be read after "it"."""
        if self.code is not None and self.code < 0:
            return f"was ended by {_name(-self.code)}"
        return f"ended with exit code {self.code}"

    def tell(self, message: ToWorker) -> None:
        """Send ``message``; a worker that reads none is killed."""
        try:
            self.control.send_nowait(message)
        except trio.WouldBlock:
            self.kill()

    def mention(self, message: ToWorker) -> None:
        """Send ``message`` if there is room for it."""
        with suppress(trio.WouldBlock):
            self.control.send_nowait(message)

    def hear(self, statistics: NodeStatistics) -> None:
        self.last = statistics
        self.silent = False
        self.answered.set()

    def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> None:
        """Return when the process has ended, and nothing is left of it."""
        with trio.move_on_after(EXIT_SECONDS) as scope:
            await self._ended()
        if scope.cancelled_caught:
            self.kill()
            await self._ended()
        self._process.wait()
        os.close(self._descriptor)
        await self.control.aclose()
        self.answered.set()

    async def _ended(self) -> None:
        await trio.lowlevel.wait_readable(self._descriptor)


def start_worker(
    number: int, listener: socket.socket, admin: socket.socket | None = None
) -> Worker:
    """A new process that holds its listeners and the other end of a control socket.

    Raises OSError when there can be none; nothing is left of it then.
    """
    ours, theirs = socket.socketpair()
    with theirs, ExitStack() as undo:
        undo.callback(ours.close)
        held = (theirs, listener) if admin is None else (theirs, listener, admin)
        descriptors = tuple(sock.fileno() for sock in held)
        # Blocked until the worker can obey them: one that came before would kill it, and reset
        # what waits at its listener.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            process = subprocess.Popen(
                (*COMMAND, *map(str, descriptors)),
                pass_fds=descriptors,
                env=notify.environment_of_children(),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        worker = Worker(number, process, ControlSocket(ours, ToSupervisor))
        undo.pop_all()
    return worker


def _name(number: int) -> str:
    """A signal's name; real-time ones have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
