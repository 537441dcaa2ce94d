"""Following channels from a program that awaits, on trio or asyncio. `session` decides.

    async with subscribe("http://127.0.0.1:8080", ["news"], token=token) as subscription:
        async for event in subscription:
            print(event.id, event.type, event.data)

1. One task reads; another one sends what is asked about the open stream (channels, tokens). What
   has been read waits in BUFFERED_CHUNKS at the most; then the socket fills, and the gateway's
   policy for slow readers is what counts.
2. Iterating raises `EventsMissing` where events are missing. Whoever iterates over `items` gets the
   notices instead, and looks at them. There is no third way to read.
3. Waiting for an event can be cancelled at any time, and loses none.
"""

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self

import anyio
import anyio.abc
import anyio.lowlevel
import httpx

from gateway.client.errors import Closed, EventsMissing, StreamRefused, TokenUnavailable
from gateway.client.http import (
    CONNECT_SECONDS,
    authorization,
    chunks_of,
    describe,
    detail,
    prepare,
    whole,
)
from gateway.client.items import Dropped, Event, Gap, Item
from gateway.client.returning import Backoff, retry_after
from gateway.client.session import LONGEST_DELAY, SHORTEST_DELAY, Command, Session
from gateway.client.signal import Signal
from gateway.client.tokens import Tokens, TokenSource
from gateway.errors import GatewayError

OPEN_SECONDS = 30.0
"""For which an answer is waited for: a node may have an opening stand in line, by default for 5."""

BUFFERED_CHUNKS = 16
"""That were read and not given out yet, of 64 KiB at most."""

COMMAND_SECONDS = 10.0
"""For which the answer about an open stream is waited for."""

TOKEN_SECONDS = 1.0
"""At the least between two renewals, whatever the tokens say."""

TIMEOUT = httpx.Timeout(None, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS)
"""The rest is the watchdog's."""

_log = logging.getLogger("gateway.client")


def subscribe(
    url: httpx.URL | str,
    channels: Iterable[str] = (),
    *,
    token: TokenSource = "",
    user: str | None = None,
    last_event_id: str = "",
    replay: int | None = None,
    annotate: bool = True,
    view: str | None = None,
    attempts: int | None = None,
    min_delay: float = SHORTEST_DELAY,
    max_delay: float = LONGEST_DELAY,
    client: httpx.AsyncClient | None = None,
) -> "Subscription":
    """The events of ``channels`` and of ``user``, over as many connections as it takes.

    ``url`` is a node's or the balancer's. ``token`` is one, or a function, async or not, that is
    asked at first, after a 401, and before the last one expires; the open stream is then given the
    new one. ``user`` is for gateways without keys: elsewhere the token names him. It begins after
    ``last_event_id``, else with the newest ``replay`` events, else now.

    ``annotate``: events name their channels. ``view`` is for token streams: with ``snapshot`` that
    of the one channel begins with an event of that type, of all its text so far, and ``raw`` shows
    the upstream's own events. Iterating ends behind the last event of a token stream.

    ``attempts`` that fail in a row end it with `ConnectionLost`; without a number there is no end
    to them. The delay before each is random, up to ``min_delay`` seconds, doubled each time, and
    ``max_delay`` at the most, but never less than the gateway asks for. Raises ValueError for what
    cannot be asked for.

    ``client`` is used as it is and not closed; without it there is one of httpx's own defaults.
    """
    tokens = Tokens(token, anyio.current_time)
    session = Session(
        url,
        channels,
        user=user,
        last_event_id=last_event_id,
        replay=replay,
        annotate=annotate,
        view=view,
        attempts=attempts,
        backoff=Backoff(min_delay, max_delay),
        can_renew=tokens.can_renew,
    )
    return Subscription(session, tokens, client)


class Subscription:
    """An async iterator of events; made by `subscribe`, for one ``async with`` block."""

    def __init__(self, session: Session, tokens: Tokens, client: httpx.AsyncClient | None) -> None:
        self._session = session
        self._tokens = tokens
        self._client = client
        self._owns_client = client is None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._is_open = False
        self._chunks: deque[tuple[list[Item], str]] = deque()
        self._ready: deque[Item] = deque()
        self._reached = session.last_event_id
        self._position = session.last_event_id
        self._has_ended = False
        self._failure: Exception | None = None
        self._given = Signal()
        self._taken = Signal()
        self._changed = Signal()

    # -- what comes

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises EventsMissing where some are missing, and goes on behind them when it is asked again;
        StreamRefused and ConnectionLost, which are the end, as is the end of the iteration: the
        gateway has closed the stream for good.
        """
        while True:
            item = await self._next()
            if isinstance(item, Event):
                return item
            if isinstance(item, Gap | Dropped):
                raise EventsMissing(item)

    @property
    def items(self) -> AsyncIterator[Item]:
        """Events and notices in their order. Raises as iterating does, but no EventsMissing: it is
        up to who reads to look at `Gap` and `Dropped`."""
        return _Items(self._next)

    @property
    def last_event_id(self) -> str:
        """What to begin the next subscription with, to go on after what was given out."""
        return self._position

    @property
    def channels(self) -> tuple[str, ...]:
        """Those that were asked for, as they are now."""
        return self._session.channels

    @property
    def client_id(self) -> str:
        """Of the stream that is open; empty while there is none."""
        return self._session.client_id

    async def _next(self) -> Item:
        if not self._is_open:
            raise Closed("A subscription is read within its `async with` block.")
        while not self._ready:
            await anyio.lowlevel.checkpoint()
            self._position = self._reached or self._position
            if self._chunks:
                items, self._reached = self._chunks.popleft()
                self._ready.extend(items)
                self._taken.fire()
            elif self._has_ended:
                if self._failure is not None:
                    raise self._failure
                raise StopAsyncIteration
            else:
                await self._given.wait()
        item = self._ready.popleft()
        if isinstance(item, Event):
            self._position = item.last_event_id
        return item

    async def _give(self, items: list[Item]) -> None:
        if not items and self._chunks:  # keepalives alone stop no reading
            self._chunks[-1] = (self._chunks[-1][0], self._session.last_event_id)
            return
        while len(self._chunks) >= BUFFERED_CHUNKS:
            await self._taken.wait()
        self._chunks.append((items, self._session.last_event_id))
        self._given.fire()

    # -- channels

    async def add(self, channel: str, *, since: str | None = None) -> str:
        """Add a channel to the open stream, or to the next one; the position from which it is live.

        With ``since`` its events after that position come first. Raises StreamRefused, and Closed
        when the subscription ends meanwhile. Cancelled, the channel is not added.
        """
        if channel in self._session.channels:
            return self._session.last_event_id
        added = self._session.add(channel, since)
        self._changed.fire()
        try:
            while not added.until and added.error is None:
                self._check_open()
                if not self._session.wants(added):
                    raise StreamRefused(f"The channel {channel} was removed meanwhile.")
                await self._changed.wait()
        finally:
            if not added.until and self._session.wants(added):
                self._session.remove(channel)
                self._changed.fire()
        if added.error is not None:
            raise added.error
        return added.until

    async def remove(self, channel: str) -> None:
        """Take a channel out; returns once the open stream does not have it any more. What was sent
        by then may still come."""
        self._session.remove(channel)
        self._changed.fire()
        while self._session.is_leaving(channel):
            self._check_open()
            await self._changed.wait()

    def _check_open(self) -> None:
        if not self._is_open or self._has_ended:
            raise Closed("The subscription is not open.")

    # -- its life

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise Closed("A subscription is entered once.")
        self._client = self._client or httpx.AsyncClient()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        self._is_open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._tasks is not None
        self._is_open = False
        self._changed.fire()
        self._tasks.cancel_scope.cancel()
        try:
            # Without the exception of the block, which would come out in a group.
            await self._tasks.__aexit__(None, None, None)
        finally:
            if self._owns_client:
                assert self._client is not None
                with anyio.CancelScope(shield=True):
                    await self._client.aclose()

    async def _run(self) -> None:
        """Until the stream has ended for good, or one of the tasks has failed: with what, iterating
        raises."""
        async with anyio.create_task_group() as tasks:

            async def run(task: Callable[[], Awaitable[None]]) -> None:
                try:
                    await task()
                except (GatewayError, httpx.RequestError) as error:
                    self._failure = self._failure or error
                tasks.cancel_scope.cancel()

            for task in (self._read, self._command, self._watch_token):
                tasks.start_soon(run, task)
        self._has_ended = True
        self._session.client_id = ""
        self._given.fire()
        self._changed.fire()

    # -- reading

    async def _read(self) -> None:
        """Connection after connection, until the stream has ended for good."""
        session = self._session
        while True:
            reason, refusal = await self._connection()
            if session.ended is not None:
                await self._give([session.ended])
                return
            again = session.lost(reason, anyio.current_time(), refusal)
            self._changed.fire()
            _log.info("%s; again in %.3g s (attempt %d)", again.reason, again.delay, again.attempt)
            await self._give([again])
            await anyio.sleep(again.delay)

    async def _connection(self) -> tuple[str, httpx.Response | None]:
        """Why it ended, and the answer that refused it, if that is why."""
        assert self._client is not None
        try:
            with anyio.fail_after(OPEN_SECONDS):
                opening = self._session.opening(await self._tokens.get())
                request = prepare(
                    self._client,
                    opening.method,
                    opening.url,
                    headers=opening.headers,
                    content=opening.content,
                    timeout=TIMEOUT,
                )
                response = await self._client.send(request, stream=True, follow_redirects=True)
        except TokenUnavailable as error:
            if not isinstance(error.__cause__, OSError | httpx.TransportError):
                raise
            return str(error), None
        except httpx.RequestError as error:
            return describe(error), None
        except TimeoutError:
            return f"no answer in {OPEN_SECONDS:g} s", None
        async with chunks_of(response) as chunks:
            return await self._receive(response, chunks)

    async def _receive(
        self, response: httpx.Response, chunks: AsyncIterator[bytes]
    ) -> tuple[str, httpx.Response | None]:
        session = self._session
        try:
            if response.status_code != httpx.codes.OK:
                with anyio.fail_after(OPEN_SECONDS):
                    response = await whole(response, chunks)
                if response.status_code == httpx.codes.UNAUTHORIZED:
                    self._tokens.forget()
            if not session.answered(response, anyio.current_time()):
                return detail(response), response
            while True:
                with anyio.fail_after(session.silence):
                    chunk = await anext(chunks)
                client_id, items = session.client_id, session.receive(chunk)
                if client_id != session.client_id:
                    self._changed.fire()
                await self._give(items)
                if session.is_left or session.ended is not None:
                    return "", None
        except StopAsyncIteration:
            return "the stream ended", None
        except httpx.RequestError as error:
            return describe(error), None
        except TimeoutError:
            return f"nothing has come for {session.silence:g} s", None

    # -- commands

    async def _command(self) -> None:
        """What is to be done about the open stream, one after the other."""
        backoff = Backoff(SHORTEST_DELAY, LONGEST_DELAY)
        while True:
            command = self._session.next_command()
            if command is None:
                await self._changed.wait()
                continue
            done, at_least = await self._carry_out(command)
            self._changed.fire()
            if done:
                backoff.reset()
                continue
            with anyio.move_on_after(backoff.next(at_least=at_least)):
                while self._session.client_id == command.client_id:
                    await self._changed.wait()

    async def _carry_out(self, command: Command) -> tuple[bool, float]:
        """Whether that settled it, and the seconds to wait at least if it did not."""
        assert self._client is not None
        try:
            with anyio.fail_after(COMMAND_SECONDS):
                request = prepare(
                    self._client,
                    command.method,
                    command.url,
                    headers=authorization(await self._tokens.get()),
                    timeout=TIMEOUT,
                )
                response = await self._client.send(request, stream=True)
                async with chunks_of(response) as chunks:
                    response = await whole(response, chunks)
        except (httpx.RequestError, TokenUnavailable, TimeoutError) as error:
            _log.info("%s %s: %r", command.method, command.url.path, error)
            return False, 0.0
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._tokens.forget()
        return self._session.done(command, response), retry_after(response.headers)

    async def _watch_token(self) -> None:
        """Give the open stream a new token before the old one is over."""
        while True:
            due = self._tokens.due  # infinite where there is nobody to ask
            wait = max(TOKEN_SECONDS, due - anyio.current_time())
            with anyio.move_on_after(None if math.isinf(wait) else wait):
                await self._changed.wait()
                continue
            if self._session.client_id:
                self._session.token_is_due = True
                self._changed.fire()
            await anyio.sleep(TOKEN_SECONDS)


class _Items:
    def __init__(self, next_item: Callable[[], Awaitable[Item]]) -> None:
        self._next = next_item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        return await self._next()
