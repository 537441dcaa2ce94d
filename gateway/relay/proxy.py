"""The drop-in: what an upstream answers a client's own request, passed on to the byte.

1. The client gets the upstream's status, bytes, and headers but for a list. Where these end before
   their end, for whatever reason, the client is not told that they are complete.
2. A POST that is answered with an event stream is a token stream. That is read by the stream's own
   task, at its own pace, and the client is given a copy of bounded size: one that falls further
   behind gets no more, and its connection may break, without the stream taking notice.
3. Behind the format's own end, or an error by which the upstream itself has ended it, nothing is
   recorded any more. The client reads on by itself, to the last byte.
4. What is no token stream is read as fast as the client takes it, and nothing of it is kept.
"""

from collections.abc import Iterable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass

import msgspec
import trio

from gateway.http1_render import STRICT_HEADERS
from gateway.relay.copies import Copy
from gateway.relay.events import Complete, Failure
from gateway.relay.plans import relay
from gateway.relay.record import Record
from gateway.relay.relays import Limits, Plan, Relays
from gateway.relay.running import Running
from gateway.relay.upstream import Answer, Caller, Headers, passed_back

OURS = frozenset(name.lower() for name, _ in STRICT_HEADERS) | {b"stream-channel", b"stream-id"}
"""Headers that are the gateway's to say."""
OURS_PREFIX = b"access-control-"

NO_CONTENT = 204

_LENGTH = b"content-length"

CUTTING = frozenset({"interrupted", "limit-bytes", "limit-tokens", "silent", "too-large"})
"""Failures behind which there is nothing to read, or nothing that is to be read."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A client's own request. ``path`` is below the upstream's URL, ``headers`` are all that it
    has, names in lower case."""

    method: str
    path: str
    query: str
    headers: Iterable[tuple[str, str]]
    body: bytes


class _Asked(msgspec.Struct):
    """What is looked at of a request's body."""

    model: object = None
    stream: object = None


class Passage:
    """An upstream's answer on its way to the client. ``receive`` is one task's at a time, and
    ``aclose`` must be called."""

    def __init__(
        self, call: AsyncExitStack, answer: Answer, relays: Relays, caller: Caller, until: float
    ) -> None:
        """``call`` ends the call of the upstream; ``until`` is when that must have ended."""
        self._call = call
        self._answer = answer
        self._relays = relays
        self._caller = caller
        self._upstream = caller.upstream
        self._until = until
        self._bytes = 0
        self._running: Running | None = None
        self._copy: Copy | None = None
        self.status = answer.status
        dropped = OURS if answer.status != NO_CONTENT else OURS | {_LENGTH}
        self.headers: Headers = [
            (name, value)
            for name, value in passed_back(answer.headers)
            if name.lower() not in dropped and not name.lower().startswith(OURS_PREFIX)
        ]
        self.behind = trio.CancelScope()
        """For whoever writes what was received: cancelled when the client is too far behind."""

    @property
    def has_length(self) -> bool:
        """Whether the headers say how long the body is."""
        return self.status == NO_CONTENT or any(n.lower() == _LENGTH for n, _ in self.headers)

    @property
    def record(self) -> Record | None:
        """Of the token stream, where it is one."""
        return self._running.record if self._running is not None else None

    async def receive(self) -> bytes:
        """The next bytes; none at the end. Raises Failure where that is not the answer's own."""
        if self._copy is not None and (data := await self._copy.take()):
            return data
        try:
            with trio.move_on_at(self._until):
                data = await self._answer.receive()
                self._count(data)
                return data
        except Failure as failure:
            self._caller.count(failure)
            raise
        raise Failure("limit-duration")

    async def aclose(self) -> None:
        """The client has all, or is gone."""
        copy, running = self._copy, self._running
        if copy is not None and running is not None:
            copy.end(Copy.State.LEFT)
            copy.clear()
            running.companions -= 1
            if copy.state is not Copy.State.OVER:  # the call is not the client's to end
                if self._upstream.stop_with_client:
                    running.stop(Complete("stopped"))
                return
        await self._end_call()

    async def _end_call(self) -> None:
        with trio.CancelScope(shield=True):
            await self._call.aclose()

    def _count(self, data: bytes) -> None:
        """Raises Failure beyond the limit of what is recorded, the rest behind that included."""
        self._bytes += len(data)
        if self._copy is not None and self._bytes > self._upstream.max_bytes:
            raise Failure("limit-bytes")

    # -- the token stream

    async def record_as(self, plan: Plan) -> None:
        """Have a token stream made of it, by a task of its own. Raises as `Relays.begin`."""
        self._running = await self._relays.begin(plan)
        # Nothing else has run since its task was started.
        self._running.companions += 1
        self._copy = Copy(self._relays.copies)

    async def produce(self, running: Running, path: str) -> Complete:
        copy = self._copy
        assert copy is not None
        ends = Copy.State.CUT
        try:
            complete = await relay(running, self._receive_for_both, self._upstream, path)
            ends = Copy.State.OVER
            return complete
        except Failure as failure:
            self._caller.count(failure)
            if self._answer.is_over or failure.code not in CUTTING:
                ends = Copy.State.OVER
            raise
        finally:
            copy.end(ends)
            if copy.state is not Copy.State.OVER:
                await self._end_call()
            else:  # however slowly the client reads on, it counts
                held = self._relays.holding(self._upstream.name, running.record.user)
                self._call.enter_context(held)

    async def _receive_for_both(self) -> bytes:
        data = await self._answer.receive()
        self._bytes += len(data)
        copy = self._copy
        assert copy is not None
        if not copy.put(data):
            self.behind.cancel()
        return data


async def begin(
    relays: Relays,
    caller: Caller,
    limits: Limits,
    wanted: Wanted,
    *,
    user: str | None,
    publisher: str,
) -> Passage:
    """The answer, when its head is there. Cancelled before that, the call ends.

    Raises BadRequest and Forbidden for what may not be called, Failure where there is no answer,
    and Unavailable where one that is a token stream cannot be recorded.
    """
    upstream = caller.upstream
    model = asked(wanted.body).model if wanted.method == "POST" else None
    until = trio.current_time() + upstream.max_duration
    async with AsyncExitStack() as call:
        held = call.enter_context(ExitStack())
        held.enter_context(relays.holding(upstream.name, user))
        forwarded = caller.forward(
            wanted.method, wanted.path, wanted.query, wanted.headers, wanted.body
        )
        answer = None
        with trio.move_on_at(until):  # a head may come byte by byte
            answer = await call.enter_async_context(forwarded)
        if answer is None:
            late = Failure("timeout")
            caller.count(late)
            raise late
        if answer.status < 200:
            raise Failure("malformed")
        passage = Passage(call.pop_all(), answer, relays, caller, until)
    if not _is_token_stream(wanted.method, answer):
        return passage
    path = wanted.path
    plan = Plan(
        lambda running: passage.produce(running, path),
        limits,
        upstream.format,
        upstream.name,
        model if isinstance(model, str) else None,
        user=user,
        publisher=publisher,
    )
    held.close()  # from here on it is counted as what it is
    try:
        await passage.record_as(plan)
    except BaseException:  # whatever it is, Cancelled above all: the call is closed, and it goes on
        await passage.aclose()
        raise
    return passage


def asked(body: bytes) -> _Asked:
    """What a request says of itself; nothing where it is not in JSON."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Asked()


_decode = msgspec.json.Decoder(_Asked).decode


def _is_token_stream(method: str, answer: Answer) -> bool:
    """One that is encoded, though nobody asked for that, cannot be read here."""
    is_plain = answer.header("content-encoding").lower() in ("", "identity")
    return method == "POST" and answer.status == 200 and answer.is_event_stream and is_plain
