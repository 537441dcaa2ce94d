"""HTTP/1 written: a request for the server behind the front, responses, chunks. Pure.

A request is written from its parsed form and never copied from the wire. Its framing is ours: one
Host, a Content-Length of the body in hand, ``Connection: close``; whatever spoke of one connection
only stays behind (RFC 9110 7.6.1). So the reader behind cannot see another message than the front.
"""

from collections.abc import Sequence
from http import HTTPStatus

from gateway.http1_head import Parsed, connection_options

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

STRICT_HEADERS = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Of every response, but for a page with a policy of its own: what is data is never taken for a
page, runs nothing, stands in no frame, and tells nobody a URL with a token in it."""

_DROPPED = {
    b"connection",
    b"content-length",
    b"expect",
    b"host",
    b"http2-settings",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}

_STRICT = b"".join(b"%b: %b\r\n" % pair for pair in STRICT_HEADERS)

_BEGINNINGS = {
    status.value: b"HTTP/1.1 %d %b\r\n%b" % (status, status.phrase.encode(), _STRICT)
    for status in HTTPStatus
}
"""Status line and strict headers."""

_WITHOUT_CONTENT = {204, 304}
"""Statuses whose responses have no content and here no Content-Length (RFC 9110 8.6)."""

_WITH_CONTENT = {"POST", "PUT", "PATCH"}
"""Methods that define content, so that its absence is said too (RFC 9110 8.6)."""


def render_request(parsed: Parsed) -> bytes:
    """The request as the only one of a connection of its own."""
    dropped = _DROPPED
    if parsed.header(b"connection") is not None:
        dropped = dropped | connection_options(parsed.headers)
    lines = [b"%b %b HTTP/%b" % (parsed.method.encode(), parsed.target, parsed.version.encode())]
    host = parsed.header(b"host")
    if host is not None:  # HTTP/1.0 may go without
        lines.append(b"host: " + host)
    lines += [b"%b: %b" % pair for pair in parsed.headers if pair[0] not in dropped]
    if parsed.body or parsed.method in _WITH_CONTENT:
        lines.append(b"content-length: %d" % len(parsed.body))
    lines.append(b"connection: close\r\n\r\n")
    return b"\r\n".join(lines) + parsed.body


def render_response(
    status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, *, keep_alive: bool
) -> bytes:
    """A whole response of HTTP/1.1, with the strict headers. ``headers`` must not hold those,
    Content-Length or Connection, and no line ends; for 204 and 304 the body must be empty."""
    parts = [_BEGINNINGS[status]]
    parts += [b"%b: %b\r\n" % pair for pair in headers]
    if status not in _WITHOUT_CONTENT:
        parts.append(b"content-length: %d\r\n" % len(body))
    parts.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    parts.append(body)
    return b"".join(parts)


def render_stream_head(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The head of a 200 of HTTP/1.1 whose content comes in chunks, and is the connection's last."""
    fields = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    return b"%b%bConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" % (
        _BEGINNINGS[200],
        fields,
    )


def render_head(
    status: int, headers: Sequence[tuple[bytes, bytes]], *, chunked: bool, keep_alive: bool
) -> bytes:
    """The head of a response of HTTP/1.1, with the strict headers, whose content is written by
    itself: in chunks, or as long as ``headers`` say. They must not hold those, Transfer-Encoding or
    Connection. The status may be one that no standard knows."""
    parts = [_BEGINNINGS.get(status) or b"HTTP/1.1 %d \r\n%b" % (status, _STRICT)]
    parts += [b"%b: %b\r\n" % pair for pair in headers]
    if chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    parts.append(b"\r\n" if keep_alive else b"Connection: close\r\n\r\n")
    return b"".join(parts)


def chunk(data: bytes) -> bytes:
    """``data`` as one chunk (RFC 9112 7.1). Empty data would end the body: LAST_CHUNK does that."""
    return b"%x\r\n%b\r\n" % (len(data), data)
