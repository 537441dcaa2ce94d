"""What an application pushes into a token stream: POST /streams/<id>/events, a line an event.

The body is taken as it comes, however long that takes; the answer says up to which line all has
been published. Whoever opened the stream pushes, or an administrator.
"""

from collections.abc import Iterator
from typing import Protocol

import trio

from gateway.api.credentials import identify
from gateway.api.csrf import check_page
from gateway.api.refusals import refused
from gateway.api.request import NOT_STORED, Answer, Request, answer
from gateway.api.streams import PATH as STREAMS
from gateway.api.views import is_opener
from gateway.auth import NEEDED, NOBODY
from gateway.errors import (
    BadRequest,
    Conflict,
    ContentTooLarge,
    Forbidden,
    GatewayError,
    Unauthorized,
    Unavailable,
)
from gateway.identity import Identity
from gateway.node import Node
from gateway.relay.events import Complete
from gateway.relay.push import Lines, Mark, at_line, read_line
from gateway.relay.pushes import DRAINING, REPLACED, Now, Producer
from gateway.relay.record import Format, Record
from gateway.relay.relays import no_stream
from gateway.relay.story import STOPPED

ROUTE = f"{STREAMS}/<id>/events"

SLICE = 64
"""Lines taken between two checkpoints."""

MAX_NUMBER_DIGITS = 15

BELOW = STREAMS.encode() + b"/"
"""With which the targets of such requests begin."""

_SUFFIX = b"/events"


class Body(Protocol):
    async def piece(self) -> bytes | None:
        """More of it: nothing (``b""``) at its end, None where it breaks off before that.

        Raises GatewayError where it is broken or too large.
        """


class Whole:
    """A body that has come already."""

    def __init__(self, body: bytes) -> None:
        self._left = body

    async def piece(self) -> bytes | None:
        piece, self._left = self._left, b""
        return piece


def is_push(method: str, target: bytes) -> bool:
    """Whether the body of such a request is to be taken as it comes."""
    path = target.partition(b"?")[0]
    return method == "POST" and path.startswith(BELOW) and path.endswith(_SUFFIX)


async def push(node: Node, request: Request, body: Body) -> Answer:
    """POST /streams/<id>/events."""
    try:
        if node.auth.is_open:
            check_page(node, request.method, request.header)
        identity = await identify(node, request)
        if identity is NOBODY:
            raise Unauthorized(f"Nobody pushes without saying who: {NEEDED}.", bad_token=False)
        id = request.path[len(BELOW) : -len(_SUFFIX)]
        first, ends = _first(request), _ends(request)
        found = await node.relays.registry.find(id)
        if found is None:
            raise no_stream()
        _check_may_push(identity, found.record)
        lines = _Lines(node, body, first)
        try:
            return await _push(node, found.record, lines, ends=ends)
        finally:
            lines.close()
    except GatewayError as error:
        return refused(node, error, "token-streams")


def _first(request: Request) -> int:
    seq = request.first("seq") or "0"
    if not (seq.isascii() and seq.isdigit() and len(seq) <= MAX_NUMBER_DIGITS):
        raise BadRequest("seq is the number of the body's first line, from 0.")
    return int(seq)


def _ends(request: Request) -> bool:
    end = request.first("end")
    if end not in (None, "true", "false"):
        raise BadRequest("end is true or false.")
    return end != "false"


def _check_may_push(identity: Identity, record: Record) -> None:
    if record.format is not Format.PUSH:
        raise Conflict("The gateway makes this token stream itself, and nobody pushes to it.")
    if not (is_opener(identity, record) or identity.may_administer()):
        raise Forbidden("Only whoever opened a token stream pushes to it, or an administrator.")


class _Lines:
    """The lines of a body, as they come."""

    def __init__(self, node: Node, body: Body, first: int) -> None:
        self.number = first
        """Of the line that comes next."""
        self.max_event_bytes = node.config.max_event_bytes
        self._pushes = node.pushes
        self._held = 0
        self._body = body
        self._lines = Lines(self.max_event_bytes)
        self._ready: Iterator[bytes] = iter(())
        self._ended = False

    async def next(self) -> bytes | None:
        """The next one; None at the end. Raises GatewayError."""
        while (line := self._take()) is None and not self._ended:
            self._hold(self._lines.held)
            piece = await self._body.piece()
            if piece is None:
                raise BadRequest("The body breaks off; send what is missing from `next` on.")
            self._ended = not piece
            self._ready = self._lines.receive(piece) if piece else self._lines.end()
        self.number += line is not None
        return line

    def close(self) -> None:
        """Nothing of it is held any more."""
        self._hold(0)

    def _hold(self, size: int) -> None:
        if size != self._held:
            self._pushes.hold(size - self._held)
            self._held = size

    def _take(self) -> bytes | None:
        try:
            return next(self._ready, None)
        except ContentTooLarge as error:
            raise at_line(error, self.number) from None


async def _push(node: Node, record: Record, lines: _Lines, *, ends: bool) -> Answer:
    producer = await node.pushes.take_over(record)
    if isinstance(producer, Now):
        return await _repeat(node, record, producer, lines, ends=ends)
    lease = node.config.push_lease
    try:
        with producer.reading:
            _check_hole(producer, lines)
            await _feed(producer, lines)
            if not (producer.completed or producer.is_over):
                _end(producer, lines, lease, ends=ends)
        if producer.completed:
            await _check_end(node, lines)
    except GatewayError as error:
        producer.leave(lease)
        await producer.running.ended.wait()
        now = await _now(node, producer)
        error.extra.update(next=now.next, state=now.state)
        raise
    finally:
        producer.leave(lease)
        node.pushes.forget(producer)
    await producer.running.ended.wait()
    return await _told(node, producer)


def _check_hole(producer: Producer, lines: _Lines) -> None:
    if lines.number > producer.next:
        raise Conflict(f"Line {lines.number} would leave a hole behind line {producer.next}.")


async def _feed(producer: Producer, lines: _Lines) -> None:
    """Have lines published until there are no more, or the stream takes no more."""
    while (line := await lines.next()) is not None and not producer.is_over:
        if lines.number > producer.next:
            producer.take(line)
            if producer.completed:
                return
        await producer.room()
        if not lines.number % SLICE:
            await trio.lowlevel.checkpoint()


def _end(producer: Producer, lines: _Lines, lease: float, *, ends: bool) -> None:
    """The body has come to its end."""
    if not ends:
        producer.leave(lease)
    elif lines.number == producer.next:
        producer.complete()
    else:
        raise Conflict(
            f"The body ends before line {lines.number}, and {producer.next} have been taken"
            " already; seq says which is its first."
        )


async def _check_end(node: Node, lines: _Lines) -> None:
    """Raises Conflict for a line behind the end, if it comes soon."""
    with trio.move_on_after(node.config.body_timeout):
        if await lines.next() is not None:
            raise Conflict("There is a line behind the one that ends the stream.")


async def _repeat(node: Node, record: Record, now: Now, lines: _Lines, *, ends: bool) -> Answer:
    """What is sent again of a stream that is complete, since its answer was lost, is answered as
    it would have been."""
    with trio.move_on_after(node.config.body_timeout):
        while now.state == "complete":
            line = await lines.next()
            if line is None and ends and lines.number < now.next:
                break
            if line is None:
                return _answer(record, max(now.next, lines.number), now.state)
            if lines.number > now.next and not (
                lines.number == now.next + 1 and _is_end(record, line, lines)
            ):
                break
    raise _over(now)


def _is_end(record: Record, line: bytes, lines: _Lines) -> bool:
    taken = read_line(line, record.channel, Mark(), lines.max_event_bytes)
    return isinstance(taken.last, Complete)


async def _told(node: Node, producer: Producer) -> Answer:
    """What became of a body that was understood."""
    record, now = producer.record, await _now(node, producer)
    if now.state != "streaming":
        if producer.is_done:
            return _answer(record, now.next, now.state)
        raise _over(now)
    if producer.running.is_lost:
        why, said = "bus", "The link between the nodes was lost; go on from `next`."
    elif producer.why == REPLACED:
        raise Conflict("Another request feeds the stream by now.", next=now.next, state=now.state)
    elif producer.why == DRAINING:
        why, said = DRAINING, "The node is draining; go on at another."
    else:
        return _answer(record, now.next, now.state)
    raise Unavailable(said, reason=why, next=now.next, state=now.state)


async def _now(node: Node, producer: Producer) -> Now:
    """How a stream stands that has been fed. Raises Unavailable where that cannot be known."""
    if producer.running.is_lost:
        return await node.pushes.now(producer.record)
    last = producer.running.last
    if last is None:
        state = "streaming"
    elif isinstance(last, Complete):
        state = "stopped" if last.reason in STOPPED else "complete"
    else:
        state = "error"
    return Now(state, producer.next)


def _over(now: Now) -> Conflict:
    return Conflict(
        f"The token stream takes no more lines: its state is {now.state}.",
        next=now.next,
        state=now.state,
    )


def _answer(record: Record, number: int, state: str) -> Answer:
    told = answer(200, {"id": record.id, "next": number, "state": state})
    return Answer(200, told.body, headers=(NOT_STORED,))
