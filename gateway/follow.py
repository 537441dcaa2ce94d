"""A stream followed as an EventSource does it (WHATWG HTML, section 9.2), for programs.

It resumes after the last event, waits as long as it was told between connections, and stops
where an EventSource stops: at 204, and at any other answer that is no event stream.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import httpx
import trio

from gateway.errors import GatewayError
from gateway.sse import Parser, ServerSentEvent

DEFAULT_RETRY = 3.0
"""Seconds between connections until ``retry:`` tells; Chromium's."""

_TIMEOUT = httpx.Timeout(10, read=60)
"""Seconds. Reading: four keepalives of a gateway by default, so that a dead link is noticed."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A connection failed or ended; the next one comes after ``retry`` seconds."""

    reason: str
    retry: float


async def follow(
    client: httpx.AsyncClient,
    url: httpx.URL | str,
    *,
    last_event_id: str = "",
    retry: float = DEFAULT_RETRY,
) -> AsyncGenerator[ServerSentEvent | Lost, None]:
    """The events of ``url`` over as many connections as it takes, and Lost between two of them.

    Ends at 204. Raises GatewayError where the answer is no event stream, ParseLimit where it is
    one with an event too large, and httpx.RequestError for what another try cannot mend. Whoever
    may leave early closes it (``contextlib.aclosing``).
    """
    while True:
        parser = Parser()
        reason = "the stream ended"
        try:
            async with client.stream(
                "GET", url, headers=_headers(last_event_id), timeout=_TIMEOUT, follow_redirects=True
            ) as response:
                if response.status_code == httpx.codes.NO_CONTENT:
                    return
                await _check(response)
                async with _body(response) as chunks:
                    async for chunk in chunks:
                        for event in parser.receive_data(chunk):
                            # The id buffer outlives the connection, as the parser does not.
                            yield replace(event, last_event_id=event.last_event_id or last_event_id)
        except httpx.TransportError as error:
            reason = describe(error)
        last_event_id = parser.last_event_id or last_event_id
        retry = retry if parser.retry is None else parser.retry / 1000
        yield Lost(reason, retry)
        await trio.sleep(retry)


def describe(error: httpx.RequestError) -> str:
    """What went wrong with which node. Some of httpx's errors carry no text of their own."""
    return f"{error.request.url.netloc.decode()}: {str(error) or type(error).__name__}"


def authorization(token: str) -> dict[str, str]:
    """The header that a token or an API key is sent in; none for an empty one."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def refusal(response: httpx.Response) -> GatewayError:
    """Why a request failed: the detail of its problem document, or else the bare status."""
    with suppress(ValueError, KeyError, TypeError):
        return GatewayError(str(response.json()["detail"]))
    return GatewayError(f"{response.url} answered {response.status_code} {response.reason_phrase}.")


def _headers(last_event_id: str) -> dict[bytes, bytes]:
    headers = {b"Accept": b"text/event-stream", b"Cache-Control": b"no-store"}
    if last_event_id:
        headers[b"Last-Event-ID"] = last_event_id.encode()
    return headers


@asynccontextmanager
async def _body(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The chunks of the body; the connection is closed when they are left early.

    httpx nests async generators, and trio warns of each that is left suspended. Reading on after
    the close ends them all, without waiting for the peer.
    """
    chunks = response.aiter_bytes()
    try:
        yield chunks
    finally:
        try:
            await response.aclose()
        finally:
            with suppress(httpx.TransportError):
                async for _ in chunks:
                    pass


async def _check(response: httpx.Response) -> None:
    if response.status_code != httpx.codes.OK:
        await response.aread()
        raise refusal(response)
    content_type = response.headers.get("Content-Type", "")
    if content_type.partition(";")[0].strip().lower() != "text/event-stream":
        raise GatewayError(f"{response.url} is {content_type or 'untyped'}, not text/event-stream.")
