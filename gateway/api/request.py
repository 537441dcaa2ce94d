"""A request as the api sees it, and the answer that it gives: no sockets, no framework.

Front and edge make the same `Request` of the same bytes: paths and queries are decoded here, once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from gateway.errors import (
    BadRequest,
    GatewayError,
    MethodNotAllowed,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)

JSON = "application/json"
NDJSON = "application/x-ndjson"
PROBLEM = "application/problem+json"
EVENT_STREAM = "text/event-stream"

NOT_STORED = (b"Cache-Control", b"no-store")
"""Of what is true for one asker and one moment."""

MAX_QUERY_FIELDS = 1000
"""Ten times the default of channels a stream may have."""

_SAID = 200
"""Characters of what is said of a body."""

_TARGETS_REMEMBERED = 1024
_TARGET_REMEMBERED_BYTES = 512
"""Longer targets are parsed anew each time: what is remembered stays under a few MiB."""


class Target(NamedTuple):
    """A request target in origin form, decoded."""

    path: str
    query: tuple[tuple[str, str], ...]


def parse_target(target: bytes) -> Target:
    """Path and query of ``target``, percent-decoded once. Raises BadRequest unless it is UTF-8."""
    if len(target) <= _TARGET_REMEMBERED_BYTES:
        return _remembered_target(target)
    return _parse_target(target)


def _parse_target(target: bytes) -> Target:
    path, _, query = target.partition(b"?")
    try:
        return Target(
            unquote_to_bytes(path).decode(),
            tuple(
                parse_qsl(
                    query.decode(),
                    keep_blank_values=True,
                    errors="strict",
                    max_num_fields=MAX_QUERY_FIELDS,
                )
            ),
        )
    except UnicodeDecodeError:
        raise BadRequest("The request target is not UTF-8; percent-encode it from UTF-8.") from None
    except ValueError:
        raise BadRequest(f"The query has more than {MAX_QUERY_FIELDS} fields.") from None


_remembered_target = lru_cache(_TARGETS_REMEMBERED)(_parse_target)


class Request(NamedTuple):
    """What was asked. ``header`` looks a field up by its lower-case name."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    header: Callable[[bytes], bytes | None]
    body: bytes
    peer: str
    """The address at the other end of the connection, or that a PROXY header has named."""

    def all(self, name: str) -> list[str]:
        """Every value of a query field."""
        return [value for key, value in self.query if key == name]

    def first(self, *names: str) -> str | None:
        """The value of the first query field that has one of ``names`` and is not empty."""
        for key, value in self.query:
            if key in names and value:
                return value
        return None

    @property
    def media_type(self) -> str:
        """Of the body, without parameters, in lower case; empty where none is named."""
        value = self.header(b"content-type") or b""
        return value.partition(b";")[0].strip().lower().decode("latin-1")

    @property
    def accepts_event_stream(self) -> bool:
        return EVENT_STREAM.encode() in (self.header(b"accept") or b"").lower()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    body: bytes = b""
    media_type: str = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    why: str = ""
    """Of a refusal: its reason in one word where it has one, else in a sentence; for the log."""


def sentence(error: Exception) -> str:
    """What msgspec says is wrong; a stranger may have chosen a part of it, so on one line and with
    an end."""
    said = str(error).rstrip(".").encode("unicode_escape").decode()
    return f"{said[:_SAID]}." if len(said) <= _SAID else f"{said[:_SAID]}..."


def answer(status: int, value: object) -> Answer:
    """``value`` as JSON, with the line end that a terminal likes."""
    return Answer(status, msgspec.json.encode(value) + b"\n")


def problem(error: GatewayError) -> Answer:
    """The problem document of an error (RFC 9457)."""
    headers: tuple[tuple[bytes, bytes], ...] = (NOT_STORED,)
    if isinstance(error, TooManyRequests | Unavailable):
        headers += ((b"Retry-After", b"%d" % max(1, math.ceil(error.retry_after))),)
    elif isinstance(error, MethodNotAllowed):
        headers += ((b"Allow", error.allow.encode()),)
    elif isinstance(error, Unauthorized):
        challenge = b', error="invalid_token"' if error.bad_token else b""
        headers += ((b"WWW-Authenticate", b'Bearer realm="gateway"' + challenge),)
    why = str(error.extra.get("reason", error.detail))
    return Answer(error.status, msgspec.json.encode(error.problem()) + b"\n", PROBLEM, headers, why)
