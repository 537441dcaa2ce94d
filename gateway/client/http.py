"""What both halves of the client say and hear over HTTP."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Self

import anyio
import httpx

CONNECT_SECONDS = 10.0

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Of an answer that is no stream: many times what a gateway says about a request's events."""

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
"""After these nobody has seen the request."""


def base_url(url: httpx.URL | str) -> httpx.URL:
    """The address of a node or balancer, to be completed by a route.

    Raises ValueError where it is none, or carries a query.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query:
        raise ValueError(f"{url!r} is not the address of a gateway, as http://127.0.0.1:8080 is.")
    return parsed


def route(base: httpx.URL, path: str) -> httpx.URL:
    """``path``, which is quoted already, below ``base``."""
    prefix = base.raw_path.partition(b"?")[0].rstrip(b"/")
    return base.copy_with(raw_path=prefix + path.encode("ascii"))


def authorization(token: str) -> dict[bytes, bytes]:
    """The header that a token or an API key is sent in; none for an empty one."""
    return {b"Authorization": b"Bearer %b" % token.encode()} if token else {}


def describe(error: httpx.RequestError) -> str:
    """What went wrong with which node. Some of httpx's errors carry no text of their own."""
    return f"{error.request.url.netloc.decode()}: {str(error) or type(error).__name__}"


def detail(response: httpx.Response) -> str:
    """Why a request failed: the detail of its problem document, or else the bare status."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return str(response.json()["detail"])
    return f"{response.url} answered {response.status_code} {response.reason_phrase}."


def prepare(
    client: httpx.AsyncClient,
    method: str,
    url: httpx.URL,
    *,
    headers: Mapping[bytes, bytes],
    content: bytes = b"",
    timeout: httpx.Timeout,
) -> httpx.Request:
    """A request of ``client``'s whose body is no async generator, as httpx's own would be: trio
    warns of each that is left suspended, which a connection lost meanwhile does."""
    length = {b"Content-Length": b"%d" % len(content)} if content else {}
    made = client.build_request(method, url, headers={**headers, **length}, timeout=timeout)
    return httpx.Request(
        method, made.url, headers=made.headers, stream=_Body(content), extensions=made.extensions
    )


async def whole(response: httpx.Response, chunks: AsyncIterator[bytes]) -> httpx.Response:
    """The response with all of its body. Raises httpx.ReadError where that is too much."""
    content = bytearray()
    async for chunk in chunks:
        _add(content, chunk, response)
    return _with_content(response, content)


def whole_now(response: httpx.Response) -> httpx.Response:
    """The same for programs that do not await."""
    content = bytearray()
    for chunk in response.iter_bytes():
        _add(content, chunk, response)
    return _with_content(response, content)


def _add(content: bytearray, chunk: bytes, response: httpx.Response) -> None:
    content += chunk
    if len(content) > MAX_ANSWER_BYTES:
        why = f"the answer is over {MAX_ANSWER_BYTES} bytes"
        raise httpx.ReadError(why, request=response.request)


def _with_content(response: httpx.Response, content: bytearray) -> httpx.Response:
    packed = ("content-encoding", "content-length", "transfer-encoding")
    return httpx.Response(
        response.status_code,
        headers=[(name, value) for name, value in response.headers.items() if name not in packed],
        content=bytes(content),
        request=response.request,
        extensions=response.extensions,
    )


@asynccontextmanager
async def chunks_of(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The chunks of the body; the connection is closed when they are left early.

    httpx nests async generators, and trio warns of each that is left suspended. Reading on ends
    them all: after the close, or by being cancelled.
    """
    chunks = response.aiter_bytes()
    try:
        yield chunks
    finally:
        try:
            await response.aclose()
        finally:
            with suppress(httpx.StreamError, httpx.TransportError), anyio.CancelScope() as scope:
                scope.cancel()
                async for _ in chunks:
                    pass


class _Body(httpx.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._content)


class _Once:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, b""
        if not content:
            raise StopAsyncIteration
        return content
