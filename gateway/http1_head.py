"""What the head of a request must be, judged once it is complete.

llhttp has already refused what breaks the grammar: whitespace before a colon, folded lines, lengths
that are no number, and the like. This module refuses what llhttp lets pass, so that whoever reads
the request next reads it the same way:

1. The request line is method, space, target, space, version; the version is HTTP/1.0 or HTTP/1.1.
2. A header is one line of the head, and no line holds a control byte.
3. Target and Host agree: afterwards the target is in origin form, and there is one Host.
4. The length of the body has one source: Content-Length, or a lone ``chunked``, or nothing.

Where a second reading would be a way past the front, the rule is held here even if llhttp holds it
too: other versions of it have been more lenient. Every sentence says what is wrong and what would
be right.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.errors import (
    BadRequest,
    ExpectationFailed,
    GatewayError,
    HeadTooLarge,
    MethodNotAllowed,
    NotImplementedCoding,
    UriTooLong,
    VersionNotSupported,
)

Headers = tuple[tuple[bytes, bytes], ...]

MAX_LENGTH_DIGITS = 20
"""As 64 bits have. llhttp lets more leading zeros pass than Python converts digits."""

MAX_FIELDS = 100
"""Header fields of one request; Apache's LimitRequestFields."""

CHUNKED = -1
"""The length of a body that says by itself where it ends."""

_VERSIONS = {b" HTTP/1.1": "1.1", b" HTTP/1.0": "1.0"}

# All that a header line may hold: printable ASCII, tab, and what RFC 9110 5.5 calls obs-text.
_LINE_BYTES = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])

# RFC 3986 3.2.2 and 3.2.3, without the userinfo that RFC 9110 4.2.4 forbids; never empty (4.2.1).
# Of names only those that a resolver takes (RFC 1123 2.1, and the underscores that people use): the
# server behind fails at others.
_AUTHORITY = re.compile(
    rb"(?=.{1,261}\Z)(?:\[[0-9A-Fa-f:.]{2,45}\]"
    rb"|[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?)(?::[0-9]{0,5})?"
)

_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE)

_ONLY_ONCE = (b"host", b"content-length", b"expect")

_JOINED = (b"forwarded", b"x-forwarded-for")
"""Lists that each proxy adds to, some of them by a line of their own: who looks at the first line
alone sees what the client has written (RFC 9110 5.3 lets them be one)."""

_VERSION_SENTENCE = "This gateway speaks HTTP/1.1 and HTTP/1.0; send the request in one of them."
_CODING_SENTENCE = "The only transfer coding understood is a lone `chunked`."

# The reasons llhttp gives for what is well-formed enough to deserve a better status than 400.
_REASONS: dict[str, tuple[type[GatewayError], str]] = {
    "Invalid HTTP version": (VersionNotSupported, _VERSION_SENTENCE),
    "Pause on PRI/Upgrade": (VersionNotSupported, _VERSION_SENTENCE),  # the HTTP/2 preface
    "Invalid `Transfer-Encoding` header value": (NotImplementedCoding, _CODING_SENTENCE),
}


@dataclass(slots=True, eq=False)
class Parsed:
    """One request as it was understood; nothing of it is left to interpretation."""

    method: str
    target: bytes
    """In origin form (RFC 9112 3.2.1), as on the wire: not decoded."""
    version: str
    """``"1.1"`` or ``"1.0"``."""
    headers: Headers
    """In order, names in lower case. Trailers are never among them."""
    keep_alive: bool
    """Whether another request may follow on the connection."""
    _first: dict[bytes, bytes] = field(repr=False)
    body: bytes = b""
    streamed: bool = False
    """The body is not here: it comes piece by piece."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of the header ``name`` (in lower case)."""
        return self._first.get(name)


def connection_options(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """What Connection names, over all of its lines, in lower case (RFC 9110 7.6.1)."""
    values = b",".join(value for name, value in headers if name == b"connection")
    return {option.strip(b" \t") for option in values.lower().split(b",")}


def refusal(reason: str) -> GatewayError:
    """The error for what llhttp refused with ``reason``."""
    kind, sentence = _REASONS.get(
        reason, (BadRequest, f"This is not a well-formed HTTP/1.1 request: {reason}.")
    )
    return kind(sentence)


def judge_head(
    head: bytes,
    method: bytes,
    target: bytes,
    headers: Headers,
    *,
    upgrade: bool,
    max_url_bytes: int,
) -> tuple[Parsed, int]:
    """Return the request, still without its body, and the body's length in bytes or CHUNKED.

    ``head`` is the head as it was on the wire, the rest what llhttp read in it; ``upgrade`` says
    that llhttp takes what follows for another protocol. An upgrade is not made: without a body the
    request is served as HTTP/1.1 and is the connection's last. How long a body may be, whoever
    reads it says.

    Raises the GatewayError by which the request is to be refused.
    """
    version = _judge_lines(head, method, target, headers)
    if len(target) > max_url_bytes:
        raise UriTooLong(
            f"The request target may have at most {max_url_bytes} bytes (max_url_bytes)."
        )
    if method == b"CONNECT":
        raise MethodNotAllowed(
            "This gateway is no proxy; CONNECT is not offered.", allow="DELETE, GET, POST, PUT"
        )
    first = dict(reversed(headers))
    if len(first) != len(headers):
        _judge_repeats(headers)
        headers = _join_repeats(headers)
        first = dict(reversed(headers))
    target, host = _judge_target(target, first.get(b"host"), version)
    if host != first.get(b"host"):
        headers = (*(pair for pair in headers if pair[0] != b"host"), (b"host", host or b""))
        first[b"host"] = host or b""
    length = _judge_length(first, version)
    if first.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise ExpectationFailed("The only expectation that can be met is `Expect: 100-continue`.")
    if upgrade and length:
        raise BadRequest("A request that asks for an Upgrade must not have a body here.")
    options = connection_options(headers) if b"connection" in first else set()
    persistent = version == "1.1" or b"keep-alive" in options
    keep_alive = persistent and b"close" not in options and not upgrade
    return Parsed(method.decode(), target, version, headers, keep_alive, first), length


def _judge_lines(head: bytes, method: bytes, target: bytes, headers: Headers) -> str:
    """Return the version. Raises unless the lines on the wire are just those that were read."""
    line = head.partition(b"\r\n")[0]
    version = _VERSIONS.get(line[-9:])
    if version is None:
        raise VersionNotSupported(_VERSION_SENTENCE)
    if line[:-9] != b"%b %b" % (method, target):
        raise BadRequest("A request line is method, target and version with one space between.")
    if len(headers) > MAX_FIELDS:
        raise HeadTooLarge(f"A request may have at most {MAX_FIELDS} header fields.")
    # What remains must be one line end for each line, or others may see other lines than llhttp.
    if head.translate(None, _LINE_BYTES) != b"\r\n" * (len(headers) + 2):
        raise BadRequest("A head is lines of printable characters, each ended by CRLF.")
    return version


def _judge_repeats(headers: Headers) -> None:
    names = [name for name, _ in headers]
    for name in _ONLY_ONCE:
        if names.count(name) > 1:
            raise BadRequest(f"The header {name.decode().title()} must be sent only once.")


def _join_repeats(headers: Headers) -> Headers:
    """The headers, with one line for each list of which there were several."""
    for name in _JOINED:
        values = [value for found, value in headers if found == name]
        if len(values) > 1:
            others = tuple(pair for pair in headers if pair[0] != name)
            headers = (*others, (name, b", ".join(values)))
    return headers


def _judge_target(target: bytes, host: bytes | None, version: str) -> tuple[bytes, bytes | None]:
    """Return the target in origin form and the Host it is meant for (RFC 9112 3.2 and 3.3)."""
    if host is None:
        if version == "1.1":
            raise BadRequest("An HTTP/1.1 request must have a Host header.")
    elif not _AUTHORITY.fullmatch(host):
        raise BadRequest("The Host header must be a host name or address, and a port if need be.")
    if not target.isascii():
        raise BadRequest("The request target must be ASCII; percent-encode all other characters.")
    if target.startswith(b"/"):
        return target, host
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute is None:
        raise BadRequest("The request target must be a path that begins with `/`, or an http URL.")
    host, path = absolute.groups()
    if not _AUTHORITY.fullmatch(host):
        raise BadRequest("The URL in the request line must name a host, without a user.")
    return path if path.startswith(b"/") else b"/" + path, host


def _judge_length(first: dict[bytes, bytes], version: str) -> int:
    """Return the length of the body, or CHUNKED (RFC 9112 6.3)."""
    coding = first.get(b"transfer-encoding")
    sized = first.get(b"content-length")
    if coding is None:
        if sized is None:
            return 0
        if len(sized) > MAX_LENGTH_DIGITS:
            raise BadRequest(f"Content-Length has at most {MAX_LENGTH_DIGITS} digits.")
        return int(sized)  # llhttp has let only digits pass
    if version == "1.0":
        raise BadRequest("HTTP/1.0 has no Transfer-Encoding; send a Content-Length.")
    if sized is not None:
        raise BadRequest("Send either Content-Length or Transfer-Encoding, not both.")
    if coding.lower() != b"chunked":
        raise (NotImplementedCoding if coding else BadRequest)(_CODING_SENTENCE)
    return CHUNKED
