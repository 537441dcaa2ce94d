"""Publishing from a program that awaits, on trio or asyncio. What is decided, `outgoing` decides.

    async with Publisher("http://127.0.0.1:8080", token=token) as publisher:
        position = await publisher.publish("news", "Hello", event="greeting")

1. Events of all tasks share requests: what waits while one is under way goes into the next.
2. Whoever awaits is told of his own event alone, and cancelling him changes nothing for others.
3. Order: what one task publishes one after the other is taken in that order. Within a request the
   gateway takes each event by itself; one that it refuses for now comes after the others of it.
"""

import math
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import anyio
import anyio.abc
import anyio.lowlevel
import httpx

from gateway.client.errors import Closed, PublishError, Refused, TokenUnavailable
from gateway.client.http import (
    CONNECT_SECONDS,
    authorization,
    base_url,
    chunks_of,
    prepare,
    route,
    whole,
)
from gateway.client.outgoing import (
    GIVE_UP_AFTER,
    LONGEST_DELAY,
    LONGEST_GIVE_UP,
    MAX_BATCH_BYTES,
    MAX_BATCH_EVENTS,
    MAX_WAITING_BYTES,
    MAX_WAITING_EVENTS,
    NO_DATA,
    REQUEST_SECONDS,
    SHORTEST_DELAY,
    Document,
    Draft,
    Outgoing,
    PublisherStatistics,
    document,
)
from gateway.client.returning import Backoff
from gateway.client.signal import Signal
from gateway.client.tokens import Tokens, TokenSource
from gateway.errors import BadRequest

FLUSH_SECONDS = 10.0
"""For which the end of the ``async with`` block waits for what was accepted before it."""

TIMEOUT = httpx.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS)
TAKEN_PER_TURN = 64
"""Events that `publish_many` takes from its source between two checkpoints: half a millisecond."""

NDJSON = {b"Content-Type": b"application/x-ndjson"}


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an event: it has a ``position``, or ``error`` says why not."""

    event: Document
    position: str
    error: PublishError | BadRequest | None


class Publisher:
    def __init__(
        self,
        url: httpx.URL | str,
        *,
        token: TokenSource = "",
        client: httpx.AsyncClient | None = None,
        give_up_after: float = GIVE_UP_AFTER,
        flush_seconds: float = FLUSH_SECONDS,
        batch_events: int = MAX_BATCH_EVENTS,
        batch_bytes: int = MAX_BATCH_BYTES,
        waiting_events: int = MAX_WAITING_EVENTS,
        waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """``url`` is a node's or the balancer's. ``token`` is a token or API key, or a function,
        async or not, that is asked for one: at first, after a 401, and before the last one expires.

        ``client`` is used as it is and not closed; without it there is one of httpx's own defaults.
        """
        self._url = route(base_url(url), "/publish")
        self._give_up_after = checked_give_up(give_up_after)
        self._flush_seconds = flush_seconds
        self._tokens = Tokens(token, anyio.current_time)
        self._client = client
        self._owns_client = client is None
        self._outgoing = Outgoing(
            backoff=Backoff(SHORTEST_DELAY, LONGEST_DELAY),
            can_renew=self._tokens.can_renew,
            batch_events=batch_events,
            batch_bytes=batch_bytes,
            waiting_events=waiting_events,
            waiting_bytes=waiting_bytes,
        )
        self._window = 2 * batch_events
        self._tasks: anyio.abc.TaskGroup | None = None
        self._is_open = False
        self._door: anyio.Lock | None = None
        self._waiting_for_room = 0
        self._wake = Signal()
        self._progress = Signal()

    # -- publishing

    async def publish(
        self,
        channel: str | None = None,
        data: object = NO_DATA,
        *,
        channels: Iterable[str] | None = None,
        user: str | None = None,
        broadcast: bool = False,
        event: str | None = None,
        key: str | None = None,
        id: str | None = None,
        retry: int | None = None,
        end: bool = False,
    ) -> str:
        """Publish an event and return its position, once the gateway has acknowledged it.

        It goes to one of ``channel``, ``channels``, ``user`` and everybody (``broadcast``). A str
        as ``data`` goes as it is, anything else as JSON.

        Raises `Refused`, at once where the event cannot be taken as it is (``status`` says why) and
        after ``give_up_after`` seconds where it was refused for now all the time; `Unknown` by then
        if it may have been taken. Both waits include the one for room, where as many events wait as
        may. Cancelled, it withdraws an event that has not been sent; one that has may be taken.
        """
        members = document(
            channel,
            data,
            channels=channels,
            user=user,
            broadcast=broadcast,
            event=event,
            key=key,
            id=id,
            retry=retry,
            end=end,
        )
        done = anyio.Event()
        draft = self.draft(members, done.set)
        await self.put(draft)
        try:
            await done.wait()
        finally:
            self._outgoing.withdraw(draft)
        if draft.error is not None:
            raise draft.error
        return draft.position

    def publish_many(
        self, events: Iterable[Document] | AsyncIterable[Document]
    ) -> AsyncIterator[Result]:
        """Publish ``events`` as they are taken from their source, and tell what became of each, in
        their order: ``async for result in publisher.publish_many(rows): ...``.

        Two requests' worth of them are under way at a time, whatever the source holds. Nothing is
        raised for an event that is refused; look at ``result.error``. A task of the publisher reads
        the source; what that raises is raised here, behind the results of what it gave before.
        """
        return _Results(self, events, self._window)

    @property
    def statistics(self) -> PublisherStatistics:
        return self._outgoing.statistics()

    def draft(self, event: Document, settled: Callable[[], None]) -> Draft:
        return Draft(event, anyio.current_time() + self._give_up_after, settled)

    async def put(self, draft: Draft) -> None:
        """Hand it over once there is room, first come, first served. Raises Refused when that took
        too long, and Closed."""
        self._check_open()
        if self._waiting_for_room or not self._outgoing.has_room(draft):
            await self._wait_for_room(draft)
        self._outgoing.put(draft)
        self._wake.fire()

    async def _wait_for_room(self, draft: Draft) -> None:
        assert self._door is not None
        self._waiting_for_room += 1
        try:
            with anyio.move_on_after(draft.deadline - anyio.current_time()) as patience:
                async with self._door:
                    while self._is_open and not self._outgoing.has_room(draft):
                        await self._progress.wait()
            self._check_open()
            if patience.cancelled_caught:
                raise Refused("The event was not taken: too many others wait.", id=draft.id)
        finally:
            self._waiting_for_room -= 1

    def _check_open(self) -> None:
        if not self._is_open:
            raise Closed("A publisher publishes within its `async with` block.")

    def start_soon(self, task: Callable[[], Coroutine[None, None, None]]) -> None:
        """Have a task run for as long as the publisher is open."""
        self._check_open()
        assert self._tasks is not None
        self._tasks.start_soon(task)

    # -- its life

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise Closed("A publisher is entered once.")
        self._client = self._client or httpx.AsyncClient()
        self._door = anyio.Lock()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._send)
        self._is_open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Take no more events, send those that were taken, for ``flush_seconds`` at most, and
        settle the others as what they are. Cancelled, it sends nothing more."""
        if self._tasks is None:
            return
        tasks, self._is_open = self._tasks, False
        self._progress.fire()
        self._wake.fire()
        try:
            with anyio.move_on_after(self._flush_seconds):
                while not self._outgoing.is_empty:
                    await self._progress.wait()
        finally:
            tasks.cancel_scope.cancel()
            try:
                # Without the exception of the block, which would come out in a group.
                await tasks.__aexit__(None, None, None)
            finally:
                if self._owns_client:
                    assert self._client is not None
                    with anyio.CancelScope(shield=True):
                        await self._client.aclose()

    async def _send(self) -> None:
        """Until cancelled."""
        try:
            while True:
                batch = self._outgoing.next_batch(anyio.current_time())
                self._progress.fire()
                if batch:
                    await self._post(batch)
                    continue
                seconds = self._outgoing.wait(anyio.current_time())
                with anyio.move_on_after(None if math.isinf(seconds) else seconds):
                    await self._wake.wait()
        finally:
            self._outgoing.close("the publisher was closed.")
            self._progress.fire()

    async def _post(self, batch: list[Draft]) -> None:
        assert self._client is not None
        may_be_taken = False
        try:
            with anyio.fail_after(REQUEST_SECONDS):
                headers = NDJSON | authorization(await self._tokens.get())
                may_be_taken = True
                content = b"".join([draft.line for draft in batch])
                request = prepare(
                    self._client,
                    "POST",
                    self._url,
                    headers=headers,
                    content=content,
                    timeout=TIMEOUT,
                )
                response = await self._client.send(request, stream=True)
                async with chunks_of(response) as chunks:
                    response = await whole(response, chunks)
        except httpx.RequestError as error:
            self._outgoing.lost(error, anyio.current_time())
        except TokenUnavailable as error:
            self._outgoing.failed(str(error), anyio.current_time(), may_be_taken=False)
        except TimeoutError:
            why = f"{self._url.netloc.decode()}: no answer in {REQUEST_SECONDS:g} s"
            self._outgoing.failed(why, anyio.current_time(), may_be_taken=may_be_taken)
        else:
            if response.status_code == httpx.codes.UNAUTHORIZED:
                self._tokens.forget()
            self._outgoing.answered(response, anyio.current_time())


class _Results:
    """A task takes events from their source, so that results wait for no source that pauses.

    No generator: one that is left early would have to be closed, and this need not be.
    """

    def __init__(
        self,
        publisher: Publisher,
        events: Iterable[Document] | AsyncIterable[Document],
        window: int,
    ) -> None:
        self._publisher = publisher
        self._events = events
        self._window = window
        self._pending: deque[tuple[Document, Draft | BadRequest | PublishError]] = deque()
        self._changed = Signal()
        self._taken = Signal()
        self._has_begun = self._is_over = False
        self._failure: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        if not self._has_begun:
            self._has_begun = True
            self._publisher.start_soon(self._feed)
        while not self._is_settled():
            if self._is_over and not self._pending:
                if self._failure is not None:
                    raise self._failure
                raise StopAsyncIteration
            await self._changed.wait()
        event, outcome = self._pending.popleft()
        self._taken.fire()
        if isinstance(outcome, Draft):
            return Result(event, outcome.position, outcome.error)
        return Result(event, "", outcome)

    def _is_settled(self) -> bool:
        """Whether it is known what became of the first one."""
        if not self._pending:
            return False
        outcome = self._pending[0][1]
        return not isinstance(outcome, Draft) or outcome.is_settled

    async def _feed(self) -> None:
        self._failure = Closed("The publisher was closed before the last event was taken.")
        try:
            if isinstance(self._events, AsyncIterable):
                async for event in self._events:
                    await self._take(event)
            else:
                for turn, event in enumerate(self._events, 1):
                    await self._take(event)
                    if not turn % TAKEN_PER_TURN:
                        await anyio.lowlevel.checkpoint()
            self._failure = None
        except Exception as error:  # noqa: BLE001  # the source's, for whoever reads the results
            self._failure = error
        finally:
            self._is_over = True
            self._changed.fire()

    async def _take(self, event: Document) -> None:
        while len(self._pending) >= self._window:
            await self._taken.wait()
        outcome: Draft | BadRequest | PublishError
        try:
            outcome = self._publisher.draft(event, self._changed.fire)
            await self._publisher.put(outcome)
        except (BadRequest, Refused) as error:
            outcome = error
        self._pending.append((event, outcome))
        self._changed.fire()


def checked_give_up(seconds: float) -> float:
    """Raises ValueError where it might be later than a gateway knows ids for."""
    if not 0 < seconds <= LONGEST_GIVE_UP:
        raise ValueError(f"give_up_after is up to {LONGEST_GIVE_UP:g} s, and not {seconds:g}.")
    return seconds
