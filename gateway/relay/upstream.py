"""An upstream that is called: by token streams, and by the drop-in for who asks it.

1. Where a call goes is decided by the configuration; what a client says of it is a path below the
   upstream's URL, of those that are listed. Redirects are not followed.
2. Of a client's headers those of a list go on, none of which can be a credential; of the upstream's
   answer neither cookies nor what belongs to the connection comes back.
3. Nothing that an upstream answers, and no address or secret of it, is in an error or a log line.
4. A call is made again only where the upstream has done nothing yet: it could not be connected to,
   or has said that it is too busy. A failure that may have cost something is repeated for requests
   that are idempotent alone.
5. A call ends with its block, whatever has come by then: its connection is closed unless the answer
   has been read to its end.
"""

import os
import random
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import unquote_plus

import httpx
import msgspec
import trio

from gateway.config import Format, Upstream
from gateway.errors import BadRequest, ConfigError, Forbidden
from gateway.relay.events import UPSTREAM_FAILURES, Failure
from gateway.relay.transport import Transport
from gateway.settings import REFERENCE, is_header_value

KEEPALIVE_SECONDS = 5.0
"""That a connection is kept for the next call: shorter than servers keep it, who would otherwise
close it under a request. httpx's own default."""

BACK_OFF_FIRST, BACK_OFF_MOST = 0.5, 8.0
"""Seconds before a call is made again, where the upstream does not say: doubled from try to try,
and a quarter shorter or longer. As the vendors' own clients have it."""

MAX_PATH = 512
MAX_QUERY = 4096
MAX_SECRET_FILE_BYTES = 64 * 1024

EVENT_STREAM = "text/event-stream"

TOKEN_PARAMETER = "token"
"""The gateway's own credential in a query, which goes no further."""

PASSED_ON = frozenset(
    {"accept", "anthropic-beta", "anthropic-version", "content-type", "idempotency-key"}
    | {"openai-beta", "user-agent", "x-client-request-id"}
)
"""Headers of a client that its upstream gets; and all that begin with PASSED_ON_PREFIX."""
PASSED_ON_PREFIX = "x-stainless-"

KEPT_BACK = frozenset(
    {"alt-svc", "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "nel"}
    | {"proxy-connection", "report-to", "server", "set-cookie", "set-cookie2", "te", "trailer"}
    | {"strict-transport-security", "transfer-encoding", "upgrade", "location", "via"}
    | {"clear-site-data", "refresh", "www-authenticate", "x-sendfile"}
)
"""Headers of an answer that are of its connection, of the upstream's own site, or orders to a
browser or a proxy; and all that begin with KEPT_BACK_PREFIX, which nginx takes for its own."""
KEPT_BACK_PREFIX = "x-accel-"

_SEGMENT = re.compile(r"[A-Za-z0-9_.~:@+-]+", re.ASCII)
"""Nothing is escaped, so that no two ways to write a path mean the same one."""

_QUERY = re.compile(r"[!$%&'()*+,./0-9:;=?@A-Z_a-z~\[\]-]*", re.ASCII)

_STATUSES = {401: "unauthorized", 403: "unauthorized", 408: "timeout", 429: "rate-limited"} | {
    503: "overloaded",
    529: "overloaded",
}
_BUSY = frozenset({429, 503, 529})
"""Statuses that say that nothing was done: worth another try."""

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a token stream, ready to be sent."""

    path: str
    body: bytes
    model: str | None


@dataclass(frozen=True, slots=True)
class CallerStatistics:
    """A snapshot; counted since the start."""

    calls: int
    retries: int
    failures: dict[str, int]
    """By code; of each call, those that were made again as well, and of what its answer brought."""


def headers_of(upstream: Upstream, environ: Mapping[str, str] = os.environ) -> Headers:
    """Its configured headers, what stands elsewhere put in. Raises ConfigError for what does not,
    which shows nothing of any value."""
    return [
        (name.encode(), _resolved(upstream.name, name, value, environ).encode())
        for name, value in upstream.headers.items()
    ]


def _resolved(upstream: str, name: str, value: str, environ: Mapping[str, str]) -> str:
    reference = REFERENCE.fullmatch(value)
    if reference is None:
        return value
    about = f"The upstream {upstream} has no value for its header {name}"
    if (variable := reference["variable"]) is not None:
        secret = environ.get(variable, "")
        where = f"the variable {variable}"
    else:
        where = f"the file {reference['file']}"
        try:
            with Path(reference["file"]).open("rb") as file:
                secret = file.read(MAX_SECRET_FILE_BYTES).decode("latin-1")
        except OSError as error:
            raise ConfigError(f"{about}: {where} cannot be read: {error.strerror}.") from None
    secret = secret.strip()
    if not secret:
        raise ConfigError(f"{about}: {where} is empty or missing.")
    word = reference["word"]
    text = f"{word} {secret}" if word else secret
    if not is_header_value(text):
        raise ConfigError(f"{about}: {where} holds what no header can have.")
    return text


def ask(upstream: Upstream, request: bytes, path: str | None = None) -> Asked:
    """What a request for a token stream, which is JSON, is sent as.

    Raises BadRequest for one that cannot be streamed, Forbidden for a path that is not listed.
    """
    try:
        body = msgspec.json.decode(request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("request is not JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("request is a JSON object: what the upstream is to be sent.")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest("The model of a request is text.")
    if path is None:
        path = _path_of(upstream.format, body)
    elif upstream.format is not Format.SSE and path not in _STREAMING[upstream.format]:
        known = " and ".join(_STREAMING[upstream.format])
        raise BadRequest(f"The paths that stream are {known}.")
    check_path(upstream, "POST", path)
    if upstream.format is not Format.SSE:
        request = msgspec.json.encode(_streaming(body, path))
    return Asked(path, request, model)


_STREAMING = {
    Format.OPENAI: ("chat/completions", "responses"),
    Format.ANTHROPIC: ("messages",),
}


def _path_of(format: Format, body: Mapping[str, Any]) -> str:
    if format is Format.SSE:
        return ""
    if format is Format.ANTHROPIC:
        return "messages"
    is_chat, is_response = "messages" in body, "input" in body
    if is_chat == is_response:
        raise BadRequest(
            "A request has either messages, as chat completions do, or input, as responses do."
        )
    return "chat/completions" if is_chat else "responses"


def _streaming(body: dict[str, Any], path: str) -> dict[str, Any]:
    if not body.get("stream", True):
        raise BadRequest("stream is true, or left out.")
    if body.get("background"):
        raise BadRequest("background is left out: the upstream would go on when the stream stops.")
    if path == "chat/completions":
        if body.get("n", 1) != 1:
            raise BadRequest("n is 1: a token stream is one answer.")
        options = body.get("stream_options") or {}
        if not isinstance(options, dict):
            raise BadRequest("stream_options is an object.")
        body = body | {"stream_options": {"include_usage": True} | options}
    return body | {"stream": True}


def below(upstream: Upstream, path: str) -> str:
    """The path below an upstream's URL of what a client asked for below the drop-in's, which may
    repeat the URL's last segment, as Anthropic's clients do with v1."""
    last = upstream.url.rpartition("/")[2]
    return path.removeprefix(f"{last}/") if upstream.format is Format.ANTHROPIC else path


def check_path(upstream: Upstream, method: str, path: str) -> None:
    """Raises BadRequest for what is no path, and Forbidden for what may not be called."""
    segments = path.split("/") if path else []
    if len(path) > MAX_PATH or not all(map(_is_segment, segments)):
        raise BadRequest(
            f"The path of an upstream is at most {MAX_PATH} characters: segments of A-Z a-z 0-9"
            " _ . ~ : @ + - divided by single slashes, none of them . or .."
        )
    asked = [method, *segments]
    if not any(_matches(allowed, asked) for allowed in upstream.callable_paths):
        raise Forbidden(
            f"The upstream {upstream.name} may not be asked for {method} {path or '(its url)'}; its"
            f" paths are {', '.join(upstream.callable_paths) or 'none'}."
        )


def _matches(allowed: str, asked: Sequence[str]) -> bool:
    wanted = re.split("[ /]", allowed)
    return len(wanted) == len(asked) and all(
        want in ("*", have) for want, have in zip(wanted, asked, strict=True)
    )


def _is_segment(segment: str) -> bool:
    return segment not in (".", "..") and _SEGMENT.fullmatch(segment) is not None


def goes_on(name: str) -> bool:
    """Whether an upstream gets a client's header of that name, in lower case."""
    return name in PASSED_ON or name.startswith(PASSED_ON_PREFIX)


def passed_on(headers: Iterable[tuple[str, str]]) -> Headers:
    """Those of a client's headers, with names in lower case, that its upstream gets."""
    return [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in headers
        if goes_on(name)
    ]


def passed_back(headers: Headers) -> Headers:
    """Those of an upstream's headers that a client gets."""
    named = {
        name.strip().lower()
        for header, value in headers
        if header.lower() == b"connection"
        for name in value.split(b",")
    }
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in named and not _is_kept_back(name.lower().decode("latin-1"))
    ]


def _is_kept_back(name: str) -> bool:
    return name in KEPT_BACK or name.startswith(KEPT_BACK_PREFIX)


class Answer:
    """An upstream's answer, whose body is still to come."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: Headers = response.headers.raw
        self._values = response.headers
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._pieces = aiter(response.stream)
        self.is_over = False
        """The body has been read to its end."""

    def header(self, name: str) -> str:
        return str(self._values.get(name, ""))

    @property
    def is_event_stream(self) -> bool:
        return self.header("content-type").partition(";")[0].strip().lower() == EVENT_STREAM

    async def receive(self) -> bytes:
        """The next bytes of the body as they came; none at its end. Raises Failure: "silent", or
        "interrupted" where the connection breaks before the end."""
        try:
            async for piece in self._pieces:
                if piece:
                    return piece
        except httpx.TimeoutException:
            raise Failure("silent") from None
        except httpx.TransportError:
            raise Failure("interrupted") from None
        self.is_over = True
        return b""

    async def unwind(self) -> None:
        """Have all that is suspended in the middle of the body come to an end.

        A body may be a generator, which nobody but the garbage collector closes when it is left;
        trio warns of that. Cancelled, it ends from within.
        """
        with trio.CancelScope(shield=True) as scope:  # whatever is cancelled around it, is caught
            scope.cancel()
            try:
                async for _ in self._pieces:
                    pass
            except httpx.TransportError:
                pass


class _Body(httpx.AsyncByteStream):
    """Of a request, let go once it has been sent: a megabyte is not to wait for the end of an
    answer that takes minutes. httpx's own is moreover a generator, which nobody closes when the
    sending of it is cancelled."""

    def __init__(self, body: bytes) -> None:
        self._pieces = [body] if body else []

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


class Caller:
    """One upstream of a worker. ``transport`` is that of tests and of the demo."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        environ: Mapping[str, str] = os.environ,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Raises ConfigError as `headers_of` does."""
        self.upstream = upstream
        self._headers = headers_of(upstream, environ)
        self._names = {name.lower() for name, _ in self._headers}
        self._base = httpx.URL(upstream.url)
        self._transport = transport or _transport(upstream)
        self._timeout = {
            "connect": upstream.connect_timeout,
            "pool": upstream.connect_timeout,
            "write": upstream.silence,
        }
        self._calls = self._retries = 0
        self._failures: Counter[str] = Counter(dict.fromkeys(sorted(UPSTREAM_FAILURES), 0))

    async def aclose(self) -> None:
        await self._transport.aclose()

    def statistics(self) -> CallerStatistics:
        return CallerStatistics(self._calls, self._retries, dict(self._failures))

    @asynccontextmanager
    async def call(self, asked: Asked, *, idempotent: bool = False) -> AsyncIterator[Answer]:
        """The answer of a token stream's request: a 200 whose body is an event stream.

        It is asked for again, within the upstream's limits, as the module says. Raises Failure.
        """
        headers = [(b"Accept", EVENT_STREAM.encode()), (b"Content-Type", b"application/json")]
        waited = 0.0
        for attempt in range(self.upstream.retries + 1):
            async with self._sent("POST", asked.path, "", headers, asked.body) as sent:
                failure = sent if isinstance(sent, Failure) else _failure_of(sent)
                if failure is None:
                    assert isinstance(sent, Answer)
                    with self._counting():
                        yield sent
                    return
                wait = _wait_of(sent, attempt)
            self._failures[failure.code] += 1
            waited += wait
            may_again = idempotent or failure.code == "refused" or failure.status in _BUSY
            if (
                not (may_again and failure.told().retryable)
                or attempt == self.upstream.retries
                or waited > self.upstream.retry_wait
            ):
                raise failure
            self._retries += 1
            await trio.sleep(wait)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count what goes wrong with an answer after its head."""
        try:
            yield
        except Failure as failure:
            self.count(failure)
            raise

    def count(self, failure: Failure) -> None:
        """Count what went wrong with an answer after its head, if the upstream's doing it was."""
        if failure.code in UPSTREAM_FAILURES:
            self._failures[failure.code] += 1

    @asynccontextmanager
    async def forward(
        self, method: str, path: str, query: str, headers: Iterable[tuple[str, str]], body: bytes
    ) -> AsyncIterator[Answer]:
        """The answer to a client's own request, whatever its status, but for redirects.

        ``path`` is below the upstream's URL (`below`), ``headers`` are all that the client sent,
        names in lower case. Raises BadRequest, Forbidden, and Failure where there is no answer.
        """
        check_path(self.upstream, method, path)
        passed = passed_on(headers)
        sending = self._sent(method, path, _query(query), passed, body)
        del body
        async with sending as sent:
            failure = sent if isinstance(sent, Failure) else _failure_of_redirect(sent)
            if failure is not None:
                self._failures[failure.code] += 1
                raise failure
            assert isinstance(sent, Answer)
            if sent.status >= 400 and (failure := _failure_of(sent)) is not None:
                self.count(failure)
            with self._counting():
                yield sent

    @asynccontextmanager
    async def _sent(
        self, method: str, path: str, query: str, headers: Headers, body: bytes
    ) -> AsyncIterator[Answer | Failure]:
        """One try. What is wrong before there is an answer is a Failure, given and not raised."""
        self._calls += 1
        own = [(b"Accept-Encoding", b"identity"), *self._headers]
        if b"user-agent" not in {name.lower() for name, _ in [*headers, *own]}:
            own.append((b"User-Agent", b"sse-gateway"))
        request = httpx.Request(
            method,
            self._url(path, query),
            headers=[*(h for h in headers if h[0].lower() not in self._names), *own],
            content=body or None,
            extensions={"timeout": self._timeout},
        )
        request.stream = _Body(body)
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.TransportError as error:
            yield Failure(_code_of(error))
            return
        del request, body
        answer = Answer(response)
        try:
            yield answer
        finally:
            await answer.unwind()
            with trio.CancelScope(shield=True):
                await response.aclose()

    def _url(self, path: str, query: str) -> httpx.URL:
        raw = self._base.raw_path.rstrip(b"/")
        raw += b"/" + path.encode() if path else b""
        if query:
            raw += b"?" + query.encode()
        return self._base.copy_with(raw_path=raw or b"/")


def _transport(upstream: Upstream) -> Transport:
    """Bare, since a client's cookies, redirects, proxies and lines of log are none of ours."""
    secure = upstream.url.startswith("https:")
    return Transport(
        httpx.URL(upstream.url),
        ssl.create_default_context() if secure else None,
        max_connections=upstream.max_streams,
        keepalive_seconds=KEEPALIVE_SECONDS,
        silence=upstream.silence,
    )


def _query(query: str) -> str:
    if len(query) > MAX_QUERY or not _QUERY.fullmatch(query):
        raise BadRequest(f"The query is at most {MAX_QUERY} characters, escaped as in a URL.")
    return "&".join(
        part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != TOKEN_PARAMETER
    )


def _code_of(error: httpx.TransportError) -> str:
    """Why there is no answer."""
    if isinstance(error, httpx.TimeoutException):
        return "timeout"
    if not isinstance(error, httpx.ConnectError):
        return "interrupted"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return "refused" if isinstance(cause, ssl.SSLEOFError) else "tls"
        cause = cause.__cause__ or cause.__context__
    return "refused"


def _failure_of_redirect(answer: Answer | Failure) -> Failure | None:
    if isinstance(answer, Answer) and 300 <= answer.status < 400:
        return Failure("redirected", status=answer.status)
    return None


def _failure_of(answer: Answer) -> Failure | None:
    """Why an answer is no token stream."""
    status = answer.status
    if status == 200:
        is_plain = answer.header("content-encoding").lower() in ("", "identity")
        return None if answer.is_event_stream and is_plain else Failure("malformed", status=status)
    if status < 300:
        code = "malformed"
    elif status < 400:
        code = "redirected"
    else:
        code = _STATUSES.get(status, "rejected" if status < 500 else "upstream-error")
    return Failure(code, status=status)


def _wait_of(sent: Answer | Failure, attempt: int) -> float:
    """Seconds before the next try."""
    said = sent.header("retry-after") if isinstance(sent, Answer) else ""
    asked = _seconds(said)
    if asked is not None:
        return asked
    return min(BACK_OFF_FIRST * 2.0**attempt, BACK_OFF_MOST) * random.uniform(0.75, 1.25)


def _seconds(retry_after: str) -> float | None:
    """RFC 9110, section 10.2.3: seconds, or a date."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        at = parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, at - time())
