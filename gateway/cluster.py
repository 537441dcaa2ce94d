"""What one worker asks of others and does for them, over a link that may lose, delay and repeat.

1. Nobody hangs. An asker waits for a bounded time and then says what it knows. `receive` never
   waits: requests stand in a bounded queue, and a bounded number of them are under way at a time,
   each for no longer than its asker has patience.
2. The link tells to how many workers a request was passed: absence (none: there is no such worker)
   is never taken for silence (somebody is missing).
3. A request is carried out once, however often it comes; of a worker's answers the first counts.
4. Without a link this worker is all there is. What it is asked for itself needs no link.

It knows neither clients nor HTTP: what can be asked is given to `serve`.
"""

import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Protocol

import trio

from gateway import messages
from gateway.errors import GatewayError, Unavailable
from gateway.messages import Answer, Asked, Command, Head, Request, Told

READ_SECONDS = 1.0
"""For what only counts: who asks would rather have a part of it soon."""

COMMAND_SECONDS = 2.0
"""For what changes something at once."""

JOIN_SECONDS = 15.0
"""For what may have to wait for the bus, which gives up by itself after 10 with its defaults; also
the most that anything asked here may take."""

MAX_WAITING = 1024
"""Requests of this worker that others are answering."""

MAX_QUEUED = 1024
"""Requests of others that have not begun: a burst of a few milliseconds. Each is read from at most
MAX_REQUEST_BYTES and keeps them, and again as much of text at worst: together with those that are
carried out 1,089 of 128 KiB, 136 MiB of what nobody sends, and less than 1 MiB of what is sent."""

MAX_IN_FLIGHT = 64
"""Requests of others that are carried out at a time; few take long, those that await the bus."""

REMEMBERED = 4 * MAX_QUEUED
"""Requests of others of which a repetition is known: a tag of eight characters and a number each,
with what Python adds 300 bytes, 1.2 MiB in all."""

ID_BITS = 62
"""A worker's first request has a random id of so many: nobody can answer what he was not asked, and
numbers up from there still are whole numbers to MessagePack."""

Handler = Callable[[Asked], Awaitable[Told]]
"""Carries a command out on this worker. Raises GatewayError where it is refused."""


_log = logging.getLogger("gateway")


class Link(Protocol):
    """How messages pass between the workers of all nodes."""

    async def send(self, worker: str | None, message: bytes) -> int:
        """Pass ``message`` to one worker by its tag, or (None) to all, this one included.

        To how many it was passed; 0 says that there is no such worker. Raises Unavailable while the
        link is lost, with the ``outcome`` "refused" if it is certain that nothing was passed. May
        be cancelled at any time.
        """


@dataclass(frozen=True, slots=True)
class Gathered(Generic[Told]):
    """What the workers of all nodes told, and how many of them told nothing of use in time."""

    told: Sequence[Told]
    missing: int


@dataclass(frozen=True, slots=True)
class ClusterStatistics:
    """A snapshot; all but ``waiting`` and ``queued`` count since the start.

    ``waiting``, ``sent``, ``answered``, ``timed_out`` and ``late`` are of this worker's requests:
    those being answered, those passed on, and answers that came, that did not come in time, and
    that nobody waited for any more. The others are of requests to this worker: ``queued`` have not
    begun; ``served`` were answered, ``unanswered`` begun without that, and ``dropped`` not begun,
    because the queue was full or their time over; ``repeated`` came again. ``malformed`` messages
    are none, or answers of a worker that was not asked; of an ``unknown_version`` they may be some.
    """

    waiting: int
    queued: int
    sent: int
    answered: int
    timed_out: int
    late: int
    served: int
    unanswered: int
    dropped: int
    repeated: int
    malformed: int
    unknown_version: int


@dataclass(slots=True)
class _Waiting:
    """The answers to one request so far, by the tag of who gave them."""

    worker: str | None
    """The one that was asked; None for all."""
    answers: dict[str, Answer] = field(default_factory=dict)
    expected: int | None = None
    """None until the link has said it; an answer may come before that."""
    complete: trio.Event = field(default_factory=trio.Event)

    def check(self) -> None:
        if self.expected is not None and len(self.answers) >= self.expected:
            self.complete.set()


class Cluster:
    def __init__(self, tag: str, *, link: Link | None = None) -> None:
        """``tag`` is that of this worker; without a ``link`` there are no others."""
        self.tag = tag
        self.link = link
        self._commands: dict[str, tuple[Command[Any, Any], Handler[Any, Any]]] = {}
        self._ids = count(secrets.randbits(ID_BITS))
        self._waiting: dict[int, _Waiting] = {}
        self._put, self._queue = trio.open_memory_channel[tuple[Head, float]](MAX_QUEUED)
        self._in_flight = trio.Semaphore(MAX_IN_FLIGHT)
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._sent = self._answered = self._timed_out = self._late = 0
        self._served = self._unanswered = self._dropped = self._repeated = 0
        self._malformed = self._unknown_version = 0

    def serve(self, command: Command[Asked, Told], handler: Handler[Asked, Told]) -> None:
        """Have this worker carry ``command`` out, whoever asks."""
        self._commands[command.name] = (command, handler)

    async def run(self) -> None:
        """Carry out what others ask, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for head, deadline in self._queue:
                await self._in_flight.acquire()
                nursery.start_soon(self._carry_out, head, deadline)

    # -- asking

    async def ask(self, worker: str, command: Command[Asked, Told], asked: Asked) -> Told | None:
        """What one worker tells; None if there is no such worker.

        Raises the error with which it refused; and Unavailable with an ``outcome``, "refused" if
        nothing was done, "unknown" if that cannot be known.
        """
        if worker == self.tag:
            return await self._ask_here(command, asked)
        if self.link is None:
            return None
        waiting = await self._ask(self.link, worker, command, asked)
        for answer in waiting.answers.values():
            return answer.read(command)
        if waiting.expected == 0:
            return None
        raise Unavailable(
            f"The worker {worker} has not answered within {command.seconds:g} seconds.",
            outcome="unknown",
        )

    async def ask_all(self, command: Command[Asked, Told], asked: Asked) -> Gathered[Told]:
        """What the workers of all nodes tell. Raises Unavailable with an ``outcome``, as `ask`."""
        if self.link is None:
            return Gathered((await self._ask_here(command, asked),), 0)
        waiting = await self._ask(self.link, None, command, asked)
        if waiting.expected is None:
            raise Unavailable("The link between the workers does not answer.", outcome="unknown")
        told = []
        for answer in waiting.answers.values():
            try:
                told.append(answer.read(command))
            except GatewayError:
                continue  # it is missing
        asked_of = max(waiting.expected, len(waiting.answers))
        if not asked_of:
            raise Unavailable("No worker hears this one, not even itself.", outcome="refused")
        return Gathered(told, asked_of - len(told))

    async def _ask_here(self, command: Command[Asked, Told], asked: Asked) -> Told:
        _, handler = self._commands[command.name]
        told: Told = await handler(asked)
        return told

    async def _ask(
        self, link: Link, worker: str | None, command: Command[Asked, Told], asked: Asked
    ) -> _Waiting:
        """The answers that came until all had, or the time was over.

        Raises Unavailable as the link does, and ContentTooLarge.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable("Too much is being asked of other workers.", outcome="refused")
        id = next(self._ids)
        message = messages.request(self.tag, id, command, asked)
        waiting = self._waiting[id] = _Waiting(worker)
        try:
            with trio.move_on_after(command.seconds):
                waiting.expected = await link.send(worker, message)
                self._sent += 1
                waiting.check()
                await waiting.complete.wait()
        except Unavailable as error:
            error.extra.setdefault("outcome", "unknown")
            raise
        finally:
            del self._waiting[id]
        expected = 1 if waiting.expected is None else waiting.expected
        self._timed_out += max(expected - len(waiting.answers), 0)
        return waiting

    # -- what comes in

    def receive(self, message: bytes) -> None:
        """Take a message from a worker, whatever it is. Never waits and never raises."""
        head = messages.decode(message)
        if head is None:
            self._malformed += 1
            return
        if head.v != messages.VERSION:
            self._unknown_version += 1
        if head.kind == messages.REQUEST:
            self._take_request(head)
        elif isinstance(head, Answer):
            self._take_answer(head)
        else:
            self._take_answer(messages.not_understood(head.worker, head.id))

    def _take_answer(self, answer: Answer) -> None:
        waiting = self._waiting.get(answer.id)
        if waiting is None or answer.worker in waiting.answers:
            self._late += 1
            return
        if waiting.worker not in (None, answer.worker):
            self._malformed += 1
            return
        self._answered += 1
        waiting.answers[answer.worker] = answer
        waiting.check()

    def _take_request(self, head: Head) -> None:
        key = (head.worker, head.id)
        if key in self._seen:
            self._repeated += 1
            return
        seconds = head.seconds if isinstance(head, Request) else COMMAND_SECONDS
        try:
            self._put.send_nowait((head, trio.current_time() + min(seconds, JOIN_SECONDS)))
        except trio.WouldBlock:
            self._dropped += 1
            return
        self._seen[key] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    # -- answering

    async def _carry_out(self, head: Head, deadline: float) -> None:
        try:
            if trio.current_time() >= deadline:
                self._dropped += 1
                return
            answered = False
            with trio.CancelScope(deadline=deadline):
                try:
                    answer = await self._answer(head)
                except Exception:  # noqa: BLE001  # a fault of ours here must not end everybody's streams
                    _log.exception("a command failed")
                    answer = messages.refused(self.tag, head.id, messages.unknown(self.tag))
                answered = await self._reply(head.worker, answer)
            self._served += answered
            self._unanswered += not answered
        finally:
            self._in_flight.release()

    async def _answer(self, head: Head) -> Answer:
        known = self._commands.get(head.command) if isinstance(head, Request) else None
        if known is None or not isinstance(head, Request):
            return messages.not_understood(self.tag, head.id)
        command, handler = known
        asked = head.read(command)
        if asked is None:
            return messages.not_understood(self.tag, head.id)
        try:
            return messages.told(self.tag, head.id, await handler(asked))
        except GatewayError as error:
            return messages.refused(self.tag, head.id, error)

    async def _reply(self, worker: str, answer: Answer) -> bool:
        """Send an answer; whether somebody was there to take it."""
        if worker == self.tag:
            self._take_answer(answer)
            return True
        if self.link is None:
            return False
        try:
            return await self.link.send(worker, messages.encode(answer)) > 0
        except Unavailable:
            return False

    def statistics(self) -> ClusterStatistics:
        return ClusterStatistics(
            waiting=len(self._waiting),
            queued=self._put.statistics().current_buffer_used,
            sent=self._sent,
            answered=self._answered,
            timed_out=self._timed_out,
            late=self._late,
            served=self._served,
            unanswered=self._unanswered,
            dropped=self._dropped,
            repeated=self._repeated,
            malformed=self._malformed,
            unknown_version=self._unknown_version,
        )
