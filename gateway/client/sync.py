"""The same for programs that do not await: no threads, no loop. `outgoing` and `session` decide.

    with SyncPublisher("http://127.0.0.1:8080", token=token) as publisher:
        position = publisher.publish("news", "Hello", event="greeting")

    with closing(subscribe_sync("http://127.0.0.1:8080", ["news"], token=token)) as items:
        for item in items:
            ...

1. Whoever calls does the work, and what waits between two tries is the caller.
2. Threads may share a publisher; they take turns, a request each.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from threading import Lock
from types import TracebackType
from typing import Self

import httpx

from gateway.client.errors import TokenUnavailable
from gateway.client.http import (
    CONNECT_SECONDS,
    authorization,
    base_url,
    describe,
    detail,
    route,
    whole_now,
)
from gateway.client.items import Item
from gateway.client.outgoing import (
    GIVE_UP_AFTER,
    LONGEST_DELAY,
    MAX_BATCH_BYTES,
    MAX_BATCH_EVENTS,
    NO_DATA,
    SHORTEST_DELAY,
    Document,
    Draft,
    Outgoing,
    PublisherStatistics,
    document,
)
from gateway.client.publisher import NDJSON, TIMEOUT, Result, checked_give_up
from gateway.client.returning import Backoff
from gateway.client.session import LONGEST_DELAY as LONGEST_RETURN
from gateway.client.session import SHORTEST_DELAY as SHORTEST_RETURN
from gateway.client.session import Session
from gateway.client.tokens import SyncTokenSource, Tokens
from gateway.errors import BadRequest


class SyncPublisher:
    def __init__(
        self,
        url: httpx.URL | str,
        *,
        token: SyncTokenSource = "",
        client: httpx.Client | None = None,
        give_up_after: float = GIVE_UP_AFTER,
        batch_events: int = MAX_BATCH_EVENTS,
        batch_bytes: int = MAX_BATCH_BYTES,
    ) -> None:
        """As `Publisher`. Without a ``client`` there is one, which the ``with`` block closes."""
        self._url = route(base_url(url), "/publish")
        self._give_up_after = checked_give_up(give_up_after)
        self._tokens = Tokens(token, time.monotonic)
        self._client = client or httpx.Client()
        self._owns_client = client is None
        self._batch_events = batch_events
        self._outgoing = Outgoing(
            backoff=Backoff(SHORTEST_DELAY, LONGEST_DELAY),
            can_renew=self._tokens.can_renew,
            batch_events=batch_events,
            batch_bytes=batch_bytes,
        )
        self._turn = Lock()

    def publish(
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
        """Publish an event and return its position, as `Publisher.publish` does. The time for which
        it is tried begins with its turn."""
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
        [result] = self._publish([members])
        if result.error is not None:
            raise result.error
        return result.position

    def publish_many(self, events: Iterable[Document]) -> Iterator[Result]:
        """Publish ``events``, a request's worth at a time, and tell what became of each, in their
        order. Nothing is sent that is not asked for: use it up. Nothing is raised for an event that
        is refused; look at ``result.error``."""
        source = iter(events)
        while batch := list(islice(source, self._batch_events)):
            yield from self._publish(batch)

    @property
    def statistics(self) -> PublisherStatistics:
        return self._outgoing.statistics()

    def _publish(self, events: list[Document]) -> list[Result]:
        outcomes: list[Draft | BadRequest] = []
        with self._turn:
            deadline = time.monotonic() + self._give_up_after
            for event in events:
                try:
                    outcomes.append(Draft(event, deadline, _nobody_waits))
                except BadRequest as error:
                    outcomes.append(error)
            try:
                for draft in outcomes:
                    if isinstance(draft, Draft):
                        self._outgoing.put(draft)
                self._send()
            finally:
                self._outgoing.close("the publisher was interrupted.")
        return [
            Result(event, outcome.position, outcome.error)
            if isinstance(outcome, Draft)
            else Result(event, "", outcome)
            for event, outcome in zip(events, outcomes, strict=True)
        ]

    def _send(self) -> None:
        """Until all is settled."""
        while True:
            if batch := self._outgoing.next_batch(time.monotonic()):
                self._post(batch)
            elif self._outgoing.is_empty:
                return
            else:
                time.sleep(self._outgoing.wait(time.monotonic()))

    def _post(self, batch: list[Draft]) -> None:
        try:
            with self._client.stream(
                "POST",
                self._url,
                content=b"".join([draft.line for draft in batch]),
                headers=NDJSON | authorization(self._tokens.get_now()),
                timeout=TIMEOUT,
            ) as answer:
                response = whole_now(answer)
        except httpx.RequestError as error:
            self._outgoing.lost(error, time.monotonic())
        except TokenUnavailable as error:
            self._outgoing.failed(str(error), time.monotonic(), may_be_taken=False)
        else:
            if response.status_code == httpx.codes.UNAUTHORIZED:
                self._tokens.forget()
            self._outgoing.answered(response, time.monotonic())

    def close(self) -> None:
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def subscribe_sync(
    url: httpx.URL | str,
    channels: Iterable[str] = (),
    *,
    token: SyncTokenSource = "",
    user: str | None = None,
    last_event_id: str = "",
    replay: int | None = None,
    annotate: bool = True,
    view: str | None = None,
    attempts: int | None = None,
    min_delay: float = SHORTEST_RETURN,
    max_delay: float = LONGEST_RETURN,
    client: httpx.Client | None = None,
) -> Generator[Item, None, None]:
    """Events and notices of ``channels`` in their order, as `Subscription.items` has them, and by
    the same rules. Look at `Gap` and `Dropped`: events are missing there.

    Nothing is done while nobody asks for the next item, so an open stream is not given a new token:
    it ends with the old one, and the next connection, which misses nothing, has the new one. Close
    it when it is left early (``contextlib.closing``).
    """
    tokens = Tokens(token, time.monotonic)
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
    return _follow(session, tokens, client)


def _follow(
    session: Session, tokens: Tokens, client: httpx.Client | None
) -> Generator[Item, None, None]:
    http = client or httpx.Client()
    try:
        while True:
            reason, refusal = yield from _connection(session, tokens, http)
            if session.ended is not None:
                yield session.ended
                return
            again = session.lost(reason, time.monotonic(), refusal)
            yield again
            time.sleep(again.delay)
    finally:
        if client is None:
            http.close()


def _connection(
    session: Session, tokens: Tokens, http: httpx.Client
) -> Generator[Item, None, tuple[str, httpx.Response | None]]:
    """Why it ended, and the answer that refused it, if that is why."""
    try:
        opening = session.opening(tokens.get_now())
        with http.stream(
            opening.method,
            opening.url,
            headers=opening.headers,
            content=opening.content,
            timeout=httpx.Timeout(session.silence, connect=CONNECT_SECONDS),
            follow_redirects=True,
        ) as response:
            if response.status_code != httpx.codes.OK:
                response = whole_now(response)
                if response.status_code == httpx.codes.UNAUTHORIZED:
                    tokens.forget()
            if not session.answered(response, time.monotonic()):
                return detail(response), response
            for chunk in response.iter_bytes():
                yield from session.receive(chunk)
                if session.is_left or session.ended is not None:
                    return "", None
            return "the stream ended", None
    except TokenUnavailable as error:
        if not isinstance(error.__cause__, OSError | httpx.TransportError):
            raise
        return str(error), None
    except httpx.ReadTimeout:
        return f"nothing has come for {session.silence:g} s", None
    except httpx.RequestError as error:
        return describe(error), None


def _nobody_waits() -> None:
    pass
