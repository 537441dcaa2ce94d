"""What waits to be published, and what an answer means for it: pure, no I/O, no clock of its own.

1. One request is under way at a time, and what waits meanwhile is the next: no timer is needed, and
   what is refused for now goes before whatever came later.
2. Each event has an id, so sending it again is harmless (`id` in the reference). What is unknown is
   sent again under it; what is refused for now, too; until ``give_up_after`` is over.
3. An event that was ever sent without an answer ends as accepted or `Unknown`, never as `Refused`.
4. What waits is bounded, in events and in bytes. Whoever puts asks `has_room` first.
"""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import httpx

from gateway.client.errors import PublishError, Refused, Unknown
from gateway.client.http import NOT_SENT, describe, detail
from gateway.client.returning import AGAIN, Backoff, retry_after
from gateway.errors import BadRequest

MAX_BATCH_EVENTS = 1000
"""In one request. Twice as many are hardly faster, and whoever waits would wait for more."""

MAX_BATCH_BYTES = 1024 * 1024
"""Of one request's body: the gateway's default of ``max_body_bytes``. Halved at each 413."""

MAX_WAITING_EVENTS = 10_000
MAX_WAITING_BYTES = 16 * 1024 * 1024

GIVE_UP_AFTER = 60.0
"""Seconds. With the one request that may be under way by then (REQUEST_SECONDS) it stays well
inside the 300 s in which a gateway knows an id again (``dedupe_seconds``)."""

LONGEST_GIVE_UP = 240.0

REQUEST_SECONDS = 30.0
"""A publish may first wait for room in the node, by default 5 of them."""

LONGEST_RETRY_AFTER = 60.0
"""Seconds, of a Retry-After that is kept to: an hour would refuse, unasked, all that comes."""

ID_BYTES = 16
"""Of randomness in an id that is made up: as much as a UUID has, at half the cost."""

SHORTEST_DELAY = 0.1
LONGEST_DELAY = 5.0
"""Seconds between two tries."""

Document: TypeAlias = Mapping[str, Any]
"""An event as ``POST /publish`` takes it: ``channel`` or ``channels`` or ``user`` or ``broadcast``,
``data``, and ``event``, ``key``, ``id``, ``retry``, ``end`` where they are wanted."""


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class _NoData:
    def __repr__(self) -> str:
        return "NO_DATA"


NO_DATA: Final = _NoData()
"""Left out, which an event with ``end`` may do. None is data: JSON's null."""


def document(
    channel: str | None,
    data: object,
    *,
    channels: Iterable[str] | None,
    user: str | None,
    broadcast: bool,
    event: str | None,
    key: str | None,
    id: str | None,
    retry: int | None,
    end: bool,
) -> Document:
    """The members that were given, and no others."""
    members = {
        "channel": channel,
        "channels": None if channels is None else list(channels),
        "user": user,
        "broadcast": broadcast or None,
        "event": event,
        "key": key,
        "id": id,
        "retry": retry,
        "end": end or None,
    }
    given = {name: value for name, value in members.items() if value is not None}
    return given if data is NO_DATA else given | {"data": data}


class Draft:
    """An event that has not been settled yet; ``settled`` is called once it has.

    Then either ``position`` or ``error`` says how.
    """

    __slots__ = ("deadline", "error", "id", "line", "may_be_taken", "position", "settled", "why")

    def __init__(self, event: Document, deadline: float, settled: Callable[[], None]) -> None:
        """Raises BadRequest where the event is no JSON."""
        self.id = str(event.get("id") or os.urandom(ID_BYTES).hex())
        try:
            self.line = _encode({**event, "id": self.id}).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRequest(f"The event is no JSON: {error}.") from error
        self.deadline = deadline
        self.settled = settled
        self.position = ""
        self.error: PublishError | None = None
        self.may_be_taken = False
        self.why = ""

    @property
    def is_settled(self) -> bool:
        return bool(self.position) or self.error is not None


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """A snapshot. ``accepted``, ``refused`` and ``unknown`` are what events ended as."""

    waiting: int
    waiting_bytes: int
    requests: int
    sent: int
    """Events in all requests: those that were sent again count again."""
    repeated: int
    accepted: int
    refused: int
    unknown: int


class Outgoing:
    def __init__(
        self,
        *,
        backoff: Backoff,
        can_renew: bool,
        batch_events: int = MAX_BATCH_EVENTS,
        batch_bytes: int = MAX_BATCH_BYTES,
        waiting_events: int = MAX_WAITING_EVENTS,
        waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """``can_renew``: after a 401 there may be another token."""
        if min(batch_events, batch_bytes, waiting_events, waiting_bytes) < 1:
            raise ValueError("Each limit is 1 at the least.")
        self._backoff = backoff
        self._can_renew = can_renew
        self._has_renewed = False
        self._batch_events = batch_events
        self._batch_bytes = batch_bytes
        self._waiting_events = waiting_events
        self._waiting_bytes = waiting_bytes
        self._queue: deque[Draft] = deque()
        self._batch: list[Draft] = []
        self._bytes = 0
        self._not_before = -math.inf
        self._requests = self._sent = self._repeated = 0
        self._accepted = self._refused = self._unknown = 0

    @property
    def is_empty(self) -> bool:
        return not self._queue and not self._batch

    def has_room(self, draft: Draft) -> bool:
        """An event larger than all that may wait has room where nothing does."""
        count = len(self._queue) + len(self._batch)
        fits = self._bytes + len(draft.line) <= self._waiting_bytes
        return not count or (count < self._waiting_events and fits)

    def put(self, draft: Draft) -> None:
        self._bytes += len(draft.line)
        self._queue.append(draft)

    def withdraw(self, draft: Draft) -> None:
        """Nobody waits for it any more: it is not sent, or not again."""
        if not draft.is_settled:
            draft.settled = _nothing
            draft.may_be_taken |= draft in self._batch
            self._fail(draft, "it was withdrawn")

    # -- requests

    def next_batch(self, now: float) -> list[Draft]:
        """What to send now, if anything; it is to be followed by `answered` or `lost`."""
        self._drop_overdue(now)
        if now < self._not_before:
            return []
        size = 0
        while self._queue and len(self._batch) < self._batch_events:
            draft = self._queue[0]
            size += len(draft.line)
            if self._batch and size > self._batch_bytes:
                break
            self._batch.append(self._queue.popleft())
            self._drop_overdue(now)
        if self._batch:
            self._requests += 1
            self._sent += len(self._batch)
        return self._batch

    def _drop_overdue(self, now: float) -> None:
        """So that what is next, if anything, is to be sent."""
        while self._queue and (self._queue[0].is_settled or self._is_over(self._queue[0], now)):
            self._forget(self._queue.popleft())

    def wait(self, now: float) -> float:
        """Seconds until `next_batch` may have something; infinite if only `put` can help."""
        if not self._queue:
            return math.inf
        return max(0.0, min(self._not_before, self._queue[0].deadline) - now)

    def answered(self, response: httpx.Response, now: float) -> None:
        """The answer to the batch has come, whole."""
        if response.status_code == httpx.codes.OK:
            self._has_renewed = False
            self._take_lines(response, now)
            return
        why = detail(response)
        match response.status_code:
            case 401 if self._can_renew and not self._has_renewed:
                self._has_renewed = True
                self._again(self._batch, why, now, 0.0)
            case 413 if len(self._batch) > 1:
                self._batch_bytes = max(1, sum(len(draft.line) for draft in self._batch) // 2)
                self._again(self._batch, why, now, 0.0)
            case status if status in AGAIN:
                # Of those that are a balancer's nobody knows what has become of the request.
                may_be_taken = status not in (408, 425, 429) and _outcome(response) != "refused"
                told = min(retry_after(response.headers), LONGEST_RETRY_AFTER)
                delay = self._backoff.next(at_least=told)
                self._again(self._batch, why, now, delay, may_be_taken=may_be_taken)
            case status:
                for draft in self._batch:
                    self._fail(draft, why, status)
        self._end_batch()

    def lost(self, error: httpx.RequestError, now: float) -> None:
        """There was no answer, or none that can be read."""
        if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
            for draft in self._batch:  # a token that is no header, say: nothing was sent
                self._fail(draft, describe(error))
            self._end_batch()
        else:
            self.failed(describe(error), now, may_be_taken=not isinstance(error, NOT_SENT))

    def failed(self, why: str, now: float, *, may_be_taken: bool) -> None:
        """The request did not get its answer, or, with no token to make it with, was not made."""
        delay = self._backoff.next()
        self._again(self._batch, why, now, delay, may_be_taken=may_be_taken)
        self._end_batch()

    def close(self, why: str) -> None:
        """Settle whatever has not been."""
        for draft in self._batch:
            draft.may_be_taken = True  # nobody awaits the answer any more
        for draft in (*self._batch, *self._queue):
            self._fail(draft, why)
        self._batch = []
        self._queue.clear()
        self._bytes = 0

    def statistics(self) -> PublisherStatistics:
        return PublisherStatistics(
            waiting=len(self._queue) + len(self._batch),
            waiting_bytes=self._bytes,
            requests=self._requests,
            sent=self._sent,
            repeated=self._repeated,
            accepted=self._accepted,
            refused=self._refused,
            unknown=self._unknown,
        )

    # -- answers

    def _take_lines(self, response: httpx.Response, now: float) -> None:
        answers = _answers(response)
        if len(answers) != len(self._batch):
            self.failed("the answer is not a gateway's", now, may_be_taken=True)
            return
        again: list[Draft] = []
        for draft, said in zip(self._batch, answers, strict=True):
            if "id" in said:
                self._accept(draft, said["id"])
                continue
            draft.why = said["detail"]
            draft.may_be_taken |= said.get("outcome") == "unknown"
            if said["status"] in AGAIN:
                again.append(draft)
            else:
                self._fail(draft, draft.why, said["status"])
        if len(again) < len(self._batch):
            self._backoff.reset()
        if again:
            self._again(again, "", now, self._backoff.next())
        self._end_batch()

    def _again(
        self,
        drafts: list[Draft],
        why: str,
        now: float,
        delay: float,
        *,
        may_be_taken: bool = False,
    ) -> None:
        """Put them back where they came from, in their order, for after ``delay`` seconds."""
        self._not_before = now + delay
        for draft in reversed(drafts):
            draft.why = why or draft.why
            draft.may_be_taken |= may_be_taken
            if not draft.is_settled and not self._is_over(draft, now):
                self._repeated += 1
                self._queue.appendleft(draft)
                self._bytes += len(draft.line)

    def _end_batch(self) -> None:
        for draft in self._batch:
            self._forget(draft)
        self._batch = []

    def _forget(self, draft: Draft) -> None:
        self._bytes -= len(draft.line)

    def _is_over(self, draft: Draft, now: float) -> bool:
        if now < draft.deadline:
            return False
        self._fail(draft, draft.why or "its turn did not come in time")
        return True

    def _accept(self, draft: Draft, position: str) -> None:
        if not draft.is_settled:
            draft.position = position
            self._accepted += 1
            draft.settled()

    def _fail(self, draft: Draft, why: str, status: int = 0) -> None:
        if draft.is_settled:
            return
        if draft.may_be_taken:
            sentence = f"The event may have been taken or not: {why}"
            draft.error = Unknown(sentence, id=draft.id, status=status)
            self._unknown += 1
        else:
            sentence = why if status else f"The event was not taken: {why}"
            draft.error = Refused(sentence, id=draft.id, status=status)
            self._refused += 1
        draft.settled()


def _answers(response: httpx.Response) -> list[dict[str, Any]]:
    """A line for each event; none at all where anything is not a gateway's."""
    try:
        answers = [json.loads(line) for line in response.content.splitlines()]
    except (ValueError, RecursionError):
        return []
    return answers if all(map(_is_answer, answers)) else []


def _is_answer(said: object) -> bool:
    match said:
        case {"id": position}:
            return isinstance(position, str) and position != ""
        case {"status": int(), "detail": str()}:
            return True
        case _:
            return False


def _outcome(response: httpx.Response) -> str:
    try:
        return str(response.json()["outcome"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _nothing() -> None:
    pass
