"""The command connection: calls go out pipelined, replies come back in their order.

1. A call is sent once. When the link is lost before its reply came, it is told so (`Call.lost`); to
   send it again, or not, is for whoever made it.
2. Calls that have no reply yet are bounded in number and bytes; `room` is where their makers wait.
3. A connection that does not answer for the timeout, or answers that it cannot be used (a replica,
   loading, without our scripts), is closed, and another one made after a jittered back-off.
"""

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable

import hiredis
import trio

from gateway.bus.resp import LINK_ERRORS, Argument, Connection, LinkLost, Reply, code, pack

_log = logging.getLogger(__name__)

MAX_CALLS = 256
MAX_BYTES = 16 * 1024 * 1024
"""Of calls without a reply. A single larger one may go when there is no other."""

BACK_OFF_FIRST, BACK_OFF_MOST = 0.05, 2.0
"""Seconds before a new connection is tried, doubled from try to try, jittered by half."""

WATCHES = 5
"""Looks at the oldest call without a reply, in the time after which the link counts as dead."""

UNUSABLE = frozenset(
    {"NOSCRIPT", "NOCLOCK", "READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "CLUSTERDOWN"}
)
"""Error replies that concern the connection and not the call, which has changed nothing."""


class Call:
    """A command under way. ``reply`` stands once it is finished, unless it was lost."""

    __slots__ = ("data", "finish", "lost", "reply", "sent_at")

    def __init__(self, *arguments: Argument, finish: Callable[[], None]) -> None:
        """``finish`` is called when the reply has come, or was lost."""
        self.data = pack(*arguments)
        self.finish = finish
        self.reply: Reply = None
        self.lost = False
        self.sent_at = 0.0


class Backoff:
    def __init__(self) -> None:
        self._tries = 0

    def reset(self) -> None:
        self._tries = 0

    async def wait(self) -> None:
        delay = min(BACK_OFF_FIRST * 2**self._tries, BACK_OFF_MOST)
        self._tries = min(self._tries + 1, 16)
        await trio.sleep(delay * random.uniform(0.5, 1.5))


class Commands:
    def __init__(
        self,
        dial: Callable[[], Awaitable[Connection]],
        attach: Callable[[Connection], Awaitable[None]],
        *,
        timeout: float,
    ) -> None:
        """``dial`` makes connections that are logged in; ``attach`` prepares each for our calls."""
        self._dial = dial
        self._attach = attach
        self._timeout = timeout
        self._unanswered: deque[Call] = deque()
        self._bytes = 0
        self._outgoing: list[bytes] = []
        self._more = trio.Event()
        self._freed = trio.Event()
        self._up = trio.Event()
        self._lost = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._unusable = ""
        """What says that the connection cannot be used: nothing more is sent over it."""
        self.losses = self.reconnects = 0

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    async def wait_connected(self) -> None:
        while not self.connected:
            await self._up.wait()

    async def wait_lost(self, losses: int) -> None:
        """Return once ``self.losses`` is another number: that link is no longer there."""
        while self.losses == losses:
            await self._lost.wait()

    def convict(self, why: str) -> None:
        """Close the connection, if there is one: it is not what it seems."""
        if self._scope is not None:
            _log.warning("the command link to Redis is given up", {"why": why})
            self._scope.cancel()

    async def room(self) -> None:
        """Return when another call may be submitted; raises LinkLost when the link is lost."""
        while len(self._unanswered) >= MAX_CALLS or self._bytes > MAX_BYTES:
            await self._freed.wait()
        if not self.connected:
            raise LinkLost("the link to Redis is lost")

    def submit(self, call: Call) -> None:
        """Send a call; its reply comes later. Never waits: see `room`."""
        call.sent_at = trio.current_time()
        self._unanswered.append(call)
        self._bytes += len(call.data)
        self._outgoing.append(call.data)
        self._more.set()

    async def call(self, *arguments: Argument) -> Reply:
        """The reply, error replies too. Raises LinkLost; it may have been carried out then."""
        return (await self.calls(arguments))[0]

    async def calls(self, *commands: tuple[Argument, ...]) -> list[Reply]:
        """The replies of commands that are sent one behind the other."""
        sent: list[Call] = []
        for command in commands:
            await self.room()
            answered = trio.Event()  # of the last one in the end: replies come in order
            call = Call(*command, finish=answered.set)
            self.submit(call)
            sent.append(call)
        await answered.wait()
        if any(call.lost for call in sent):
            raise LinkLost("the link to Redis was lost")
        return [call.reply for call in sent]

    async def ask(self, *commands: tuple[Argument, ...]) -> list[Reply]:
        """As `calls`, for what must be known: an error reply raises LinkLost as well.

        But for WRONGTYPE, which tells that somebody else's key is in the place of ours.
        """
        replies = await self.calls(*commands)
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError) and code(reply) != "WRONGTYPE":
                raise LinkLost(f"Redis refuses: {reply}")
        return replies

    async def run(self) -> None:
        """Keep a connection, until cancelled."""
        backoff = Backoff()
        told = ""
        while True:
            try:
                with trio.CancelScope() as self._scope:
                    await self._serve(backoff)
            except* LINK_ERRORS as group:
                if (why := reason(group)) != told:
                    _log.warning("the command link to Redis is lost", {"why": why})
                    told = why
            if self.connected or self._unusable:
                self.losses += 1
                told = ""
            self._lose()
            await backoff.wait()

    async def _serve(self, backoff: Backoff) -> None:
        connection = await self._dial()
        try:
            with trio.fail_after(self._timeout):
                await self._attach(connection)
            backoff.reset()
            self._up.set()
            self.reconnects = self.losses
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, connection)
                nursery.start_soon(self._watch)
                await self._read(connection)
        finally:
            with trio.CancelScope(shield=True):
                await connection.aclose()

    def _lose(self) -> None:
        self._scope = None
        self._unusable = ""
        if self.connected:
            self._up = trio.Event()
        self._lost.set()
        self._lost = trio.Event()
        self._outgoing.clear()
        self._bytes = 0
        lost, self._unanswered = self._unanswered, deque()
        for call in lost:
            call.lost = True
            call.finish()
        self._free()

    async def _write(self, connection: Connection) -> None:
        while True:
            while not self._outgoing:
                self._more = trio.Event()
                await self._more.wait()
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            await connection.send(data)

    async def _read(self, connection: Connection) -> None:
        while True:
            for reply in await connection.receive():
                if not self._unanswered:
                    raise LinkLost("Redis answers what was not asked")
                call = self._unanswered.popleft()
                self._bytes -= len(call.data)
                call.reply = reply
                if isinstance(reply, hiredis.ReplyError) and code(reply) in UNUSABLE:
                    self._unusable = str(reply)
                    if self.connected:  # before anybody sends again what is refused here
                        self._up = trio.Event()
                call.finish()
            if self._unusable:
                raise LinkLost(self._unusable)
            self._free()

    async def _watch(self) -> None:
        while True:
            await trio.sleep(self._timeout / WATCHES)
            now = trio.current_time()
            if self._unanswered and self._unanswered[0].sent_at < now - self._timeout:
                raise LinkLost(f"no answer for {self._timeout:g} s")

    def _free(self) -> None:
        self._freed.set()
        self._freed = trio.Event()


def reason(group: BaseExceptionGroup[BaseException]) -> str:
    """The first of the errors of a group, in words."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or str(error.__cause__ or "") or type(error).__name__
