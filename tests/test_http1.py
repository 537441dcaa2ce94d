"""Reading and writing HTTP/1: whatever arrives, in whatever pieces, is understood in one way."""

import itertools
import tracemalloc
from collections.abc import Callable, Iterable
from unittest.mock import Mock

import h11
import pytest
from fuzz_targets import HOP_BY_HOP, assert_rendered_is_the_same_request
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import BadRequest, GatewayError
from gateway.http1 import FRAMING_ALLOWANCE, MAX_BLANK_BYTES, Parsed, Phase, RequestReader
from gateway.http1_head import MAX_FIELDS, judge_head
from gateway.http1_render import (
    CONTINUE,
    LAST_CHUNK,
    STRICT_HEADERS,
    chunk,
    render_request,
    render_response,
)

MAX_HEAD_BYTES = 8 * 1024
MAX_URL_BYTES = 4 * 1024
MAX_BODY_BYTES = 16 * 1024

POST = b"POST /p HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /after HTTP/1.1\r\nHost: x\r\n\r\n"


def make_reader(*, streamed: bool = False) -> RequestReader:
    """``streamed`` is what has a body, of whichever request, in HTTP/1.1."""
    return RequestReader(
        max_head_bytes=MAX_HEAD_BYTES,
        max_url_bytes=MAX_URL_BYTES,
        max_body_bytes=MAX_BODY_BYTES,
        is_streamed=(lambda method, target: True) if streamed else None,
        max_streamed_bytes=MAX_BODY_BYTES,
    )


def read(*pieces: bytes) -> tuple[list[Parsed], int | None]:
    """The requests in ``pieces`` and the status of the error at their end, if there is one."""
    reader = make_reader()
    requests = []
    try:
        for piece in pieces:
            reader.receive_data(piece)
            while (request := reader.next_request()) is not None:
                requests.append(request)
    except GatewayError as error:
        return requests, error.status
    return requests, None


class Streamed:
    """What a reader gives out that streams all bodies, which are joined again."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._reader = make_reader(streamed=True)
        self._under_way: Parsed | None = None
        self.requests: list[Parsed] = []
        self.status: int | None = None
        try:
            for piece in pieces:
                self._reader.receive_data(piece)
                while self._take():
                    pass
        except GatewayError as error:
            self.status = error.status

    @property
    def broken(self) -> bytes:
        """What came of a body that did not end."""
        return b"" if self._under_way is None else self._under_way.body

    def _take(self) -> bool:
        """Whether there may be more of what was received."""
        request = self._under_way
        if request is None:
            request = self._reader.next_request()
            if request is None:
                return False
            if request.streamed:
                assert not request.body
                self._under_way = request
            else:
                self.requests.append(request)
            return True
        piece = self._reader.next_piece()
        if piece is None:
            return False
        request.body += piece
        if not piece:
            self._under_way = None
            self.requests.append(request)
        return True

    @property
    def seen(self) -> tuple[list[tuple[object, ...]], int | None]:
        return _seen(self.requests), self.status


def read_one(raw: bytes) -> Parsed:
    requests, status = read(raw)
    assert status is None
    [request] = requests
    return request


def seen(pieces: Iterable[bytes]) -> tuple[list[tuple[object, ...]], int | None]:
    requests, status = read(*pieces)
    return _seen(requests), status


def _seen(requests: list[Parsed]) -> list[tuple[object, ...]]:
    return [(r.method, r.target, r.version, r.headers, r.body, r.keep_alive) for r in requests]


def in_bytes(raw: bytes) -> list[bytes]:
    return [raw[i : i + 1] for i in range(len(raw))]


def assert_same_however_split(raw: bytes) -> None:
    whole = seen([raw])
    assert seen(in_bytes(raw)) == whole
    assert Streamed([raw]).seen == whole
    assert Streamed(in_bytes(raw)).seen == whole
    broken = Streamed([raw]).broken
    for cut in range(len(raw)):
        pieces = [raw[:cut], raw[cut:]]
        assert seen(pieces) == whole
        streamed = Streamed(pieces)
        assert (streamed.seen, streamed.broken) == (whole, broken)


def with_headers(*lines: bytes, start: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([start, b"Host: x", *lines, b"", b""])


# --- what is served -----------------------------------------------------------------------------

SERVED = {
    "a plain GET": (GET, ("GET", b"/after", b"", True)),
    "a target that is not decoded": (
        b"GET /a%20b?c=%00&d=e+f HTTP/1.1\r\nHost: x\r\n\r\n",
        ("GET", b"/a%20b?c=%00&d=e+f", b"", True),
    ),
    "a body of known length": (
        POST + b"Content-Length: 5\r\n\r\nhello",
        ("POST", b"/p", b"hello", True),
    ),
    "a body full of blank lines": (
        POST + b"Content-Length: 8\r\n\r\n\r\n\r\n\r\n\r\n",
        ("POST", b"/p", b"\r\n" * 4, True),
    ),
    "an empty body": (POST + b"Content-Length: 0\r\n\r\n", ("POST", b"/p", b"", True)),
    "a length with whitespace around it": (
        POST + b"Content-Length:  5 \r\n\r\nhello",
        ("POST", b"/p", b"hello", True),
    ),
    "a chunked body": (
        CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        ("POST", b"/p", b"hello world", True),
    ),
    "a chunked body of blank lines": (
        CHUNKED + b"8\r\n" + b"\r\n" * 4 + b"\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n",
        ("POST", b"/p", b"\r\n" * 6, True),
    ),
    "chunk extensions and trailers": (
        CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;last\r\nAuthorization: Bearer t\r\nA: b\r\n\r\n',
        ("POST", b"/p", b"hello", True),
    ),
    "blank lines before the request": (
        b"\r\n\r\n\r\n" + GET,
        ("GET", b"/after", b"", True),
    ),
    "Connection: close": (
        with_headers(b"Connection: foo", b"connection: Close"),
        ("GET", b"/", b"", False),
    ),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", ("GET", b"/", b"", False)),
    "HTTP/1.0 that stays": (
        b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
        ("GET", b"/", b"", True),
    ),
    "an upgrade without a body is ignored, and the connection's last": (
        with_headers(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: A"),
        ("GET", b"/", b"", False),
    ),
    "an upgrade with an empty body": (
        POST + b"Connection: upgrade\r\nUpgrade: a\r\nContent-Length: 0\r\n\r\n",
        ("POST", b"/p", b"", False),
    ),
    "Connection: upgrade to nothing": (
        POST + b"Connection: upgrade\r\nContent-Length: 5\r\n\r\nhello",
        ("POST", b"/p", b"hello", True),
    ),
    "Upgrade that Connection does not name": (
        POST + b"Upgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
        ("POST", b"/p", b"hello", True),
    ),
}


@pytest.mark.parametrize(("raw", "expected"), SERVED.values(), ids=SERVED)
def test_a_valid_request_is_understood(
    raw: bytes, expected: tuple[str, bytes, bytes, bool]
) -> None:
    request = read_one(raw)
    assert (request.method, request.target, request.body, request.keep_alive) == expected


@pytest.mark.parametrize("raw", [raw for raw, _ in SERVED.values()], ids=SERVED)
def test_a_valid_request_is_the_same_however_it_is_split(raw: bytes) -> None:
    assert_same_however_split(raw)
    assert_same_however_split(raw + GET)


def test_headers_keep_their_order_and_lose_only_case_and_outer_whitespace() -> None:
    request = read_one(with_headers(b"X-A:\t b c ", b"x-a:d", b"Empty:", b"Obs: \xe9", b"Z: 1"))
    assert request.headers == (
        (b"host", b"x"),
        (b"x-a", b"b c"),
        (b"x-a", b"d"),
        (b"empty", b""),
        (b"obs", b"\xe9"),
        (b"z", b"1"),
    )
    assert request.header(b"x-a") == b"b c"
    assert request.header(b"absent") is None


def test_a_trailer_never_becomes_a_header_of_this_or_the_next_request() -> None:
    requests, status = read(CHUNKED + b"0\r\nAuthorization: Bearer t\r\n\r\n" + GET)
    assert status is None
    assert [r.header(b"authorization") for r in requests] == [None, None]
    assert requests[1].headers == ((b"host", b"x"),)


@pytest.mark.parametrize(
    ("target", "origin_form", "host"),
    [
        (b"http://y.example:81/a?b", b"/a?b", b"y.example:81"),
        (b"HTTPS://y.example", b"/", b"y.example"),
        (b"http://y.example?b", b"/?b", b"y.example"),
        (b"http://[::1]:8080/", b"/", b"[::1]:8080"),
    ],
)
def test_an_absolute_target_overrides_host(target: bytes, origin_form: bytes, host: bytes) -> None:
    request = read_one(with_headers(start=b"GET " + target + b" HTTP/1.1"))
    assert (request.target, request.header(b"host")) == (origin_form, host)
    assert request.headers == ((b"host", host),)


# --- what is refused ----------------------------------------------------------------------------

REFUSED = {
    # The request line
    "no HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "a Host of empty labels": (400, b"GET / HTTP/1.1\r\nHost: ..\r\n\r\n"),
    "a Host of one endless label": (400, b"GET / HTTP/1.1\r\nHost: " + b"a" * 64 + b"\r\n\r\n"),
    "unknown method": (400, b"FROB / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "CONNECT": (405, b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n"),
    "HTTP/0.9": (505, b"GET /\r\n\r\n"),
    "HTTP/0.9 with headers": (505, b"GET /\r\nHost: x\r\n\r\n"),
    "HTTP/0.9 and another request": (400, b"GET /\r\n" + GET),
    "HTTP/1.2": (505, with_headers(start=b"GET / HTTP/1.2")),
    "HTTP/2.0": (505, with_headers(start=b"GET / HTTP/2.0")),
    "HTTP/3.0": (505, with_headers(start=b"GET / HTTP/3.0")),
    "the HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01"),
    "RTSP": (505, b"DESCRIBE / RTSP/1.0\r\nHost: x\r\n\r\n"),
    "two spaces before the target": (400, with_headers(start=b"GET  / HTTP/1.1")),
    "two spaces after the target": (400, with_headers(start=b"GET /  HTTP/1.1")),
    "a space in the target": (400, with_headers(start=b"GET /a b HTTP/1.1")),
    "a tab in the target": (400, with_headers(start=b"GET /a\tb HTTP/1.1")),
    "a target that is not ASCII": (400, with_headers(start=b"GET /\xc3\xa9 HTTP/1.1")),
    "a query that is not ASCII": (400, with_headers(start=b"GET /?\xc3\xa9 HTTP/1.1")),
    "DEL in the target": (400, with_headers(start=b"GET /a\x7f HTTP/1.1")),
    "asterisk-form": (400, with_headers(start=b"OPTIONS * HTTP/1.1")),
    "authority-form": (400, with_headers(start=b"GET x:80 HTTP/1.1")),
    "a target of no form": (400, with_headers(start=b"GET events HTTP/1.1")),
    "another scheme": (400, with_headers(start=b"GET ftp://x/ HTTP/1.1")),
    "a URL with a user": (400, with_headers(start=b"GET http://u:p@x/ HTTP/1.1")),
    "a URL without a host": (400, with_headers(start=b"GET http:///a HTTP/1.1")),
    # Headers
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, with_headers(b"Host: y")),
    "the same Host twice": (400, with_headers(b"host: x")),
    "two Hosts in HTTP/1.0": (400, with_headers(b"Host: y", start=b"GET / HTTP/1.0")),
    "two Hosts and an absolute target": (
        400,
        with_headers(b"Host: y", start=b"GET http://x/ HTTP/1.1"),
    ),
    "an empty Host": (400, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    "a Host with a path": (400, b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n"),
    "a Host with a user": (400, b"GET / HTTP/1.1\r\nHost: u@x\r\n\r\n"),
    "a Host of two words": (400, b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n"),
    "a Host that is not ASCII": (400, b"GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n"),
    "a folded line": (400, with_headers(b"A: b", b" c")),
    "a folded first line": (400, b"GET / HTTP/1.1\r\n Host: x\r\n\r\n"),
    "whitespace before the colon": (400, with_headers(b"Content-Length : 5")),
    "a line without a colon": (400, with_headers(b"Content-Length")),
    "a header without a name": (400, with_headers(b": b")),
    "a name with a control byte": (400, with_headers(b"A\x01: b")),
    "NUL in a value": (400, with_headers(b"A: b\x00c")),
    "a control byte in a value": (400, with_headers(b"A: b\x1bc")),
    "DEL in a value": (400, with_headers(b"A: b\x7f")),
    "a bare CR in a value": (400, with_headers(b"A: b\rTransfer-Encoding: chunked")),
    "a bare LF in a value": (400, with_headers(b"A: b\nTransfer-Encoding: chunked")),
    "bare LFs": (400, b"GET / HTTP/1.1\nHost: x\n\n"),
    "a bare LF at the end of the head": (400, b"GET / HTTP/1.1\r\nHost: x\r\n\n"),
    # The body's length
    "Content-Length twice": (400, POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    "two lengths": (400, POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    "a list of lengths": (400, POST + b"Content-Length: 5, 5\r\n\r\nhello"),
    "a signed length": (400, POST + b"Content-Length: +5\r\n\r\nhello"),
    "a negative length": (400, POST + b"Content-Length: -5\r\n\r\nhello"),
    "a length with an underscore": (400, POST + b"Content-Length: 1_0\r\n\r\nhello"),
    "a length of two words": (400, POST + b"Content-Length: 1 0\r\n\r\nhello"),
    "a hexadecimal length": (400, POST + b"Content-Length: 0x5\r\n\r\nhello"),
    "no length": (400, POST + b"Content-Length:\r\n\r\n"),
    "a length of more than 64 bits": (400, POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n"),
    "CL.TE": (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "TE.CL": (400, POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    "chunked in HTTP/1.0": (
        400,
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "gzip": (501, POST + b"Transfer-Encoding: gzip\r\n\r\n"),
    "gzip, chunked": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunked, gzip": (501, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "chunked twice": (
        501,
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "identity and chunked": (
        501,
        POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "xchunked": (501, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "chunked with a vertical tab": (
        400,
        POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    "no coding": (400, POST + b"Transfer-Encoding:\r\n\r\n"),
    "an upgrade with a body": (
        400,
        POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
    ),
    "an upgrade with a chunked body": (
        400,
        POST
        + b"Connection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "two expectations": (
        400,
        POST + b"Expect: 100-continue\r\nExpect: tea\r\nContent-Length: 5\r\n\r\n",
    ),
    "another expectation": (417, POST + b"Expect: tea\r\nContent-Length: 5\r\n\r\n"),
    # Chunks
    "a chunk size that is no number": (400, CHUNKED + b"x\r\n"),
    "a chunk size with a prefix": (400, CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a negative chunk size": (400, CHUNKED + b"-1\r\n"),
    "a chunk size of more than 64 bits": (400, CHUNKED + b"f" * 17 + b"\r\n"),
    "whitespace after the chunk size": (400, CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n"),
    "a bare LF after the chunk size": (400, CHUNKED + b"5\nhello\r\n0\r\n\r\n"),
    "a bare LF in a chunk extension": (400, CHUNKED + b"5;a\nhello\r\n0\r\n\r\n"),
    "a bare CR in a chunk extension": (400, CHUNKED + b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "a chunk longer than its size": (400, CHUNKED + b"4\r\nhello\r\n0\r\n\r\n"),
    "a bare LF after a chunk": (400, CHUNKED + b"5\r\nhello\n0\r\n\r\n"),
    "a bare LF after the last chunk": (400, CHUNKED + b"0\n\r\n" + GET),
    "a bare LF at the end": (400, CHUNKED + b"0\r\n\n" + GET),
    "a bare LF after a trailer": (400, CHUNKED + b"0\r\nA: b\n\r\n" + GET),
    "a folded trailer": (400, CHUNKED + b"0\r\nA: b\r\n c\r\n\r\n" + GET),
}


@pytest.mark.parametrize(("status", "raw"), REFUSED.values(), ids=REFUSED)
def test_what_could_be_misunderstood_is_refused(status: int, raw: bytes) -> None:
    assert read(raw) == ([], status)


@pytest.mark.parametrize("raw", [raw for _, raw in REFUSED.values()], ids=REFUSED)
def test_a_refusal_is_the_same_however_the_request_is_split(raw: bytes) -> None:
    assert_same_however_split(raw)
    assert_same_however_split(GET + raw)


@pytest.mark.parametrize("raw", [raw for _, raw in REFUSED.values()], ids=REFUSED)
def test_a_refusal_is_a_sentence_that_stays(raw: bytes) -> None:
    reader = make_reader()
    reader.receive_data(raw)
    with pytest.raises(GatewayError) as first:
        reader.next_request()
    reader.receive_data(GET)
    with pytest.raises(GatewayError) as second:
        reader.next_request()
    assert second.value is first.value
    assert first.value.detail[0].isupper()
    assert first.value.detail.endswith(".")


@pytest.mark.parametrize(
    ("target", "headers", "inserted"),
    [
        (b"/\xe9", [], b""),
        (b"/", [], b"A: b\n"),
        (b"/", [], b"A: b\rc\r\n"),
        (b"/", [(b"a", b"b\x00")], b""),
        (b"/", [(b"a", b"b\r\n c")], b""),
        (b"/", [], b"A: b\r\n"),
        (b"/", [(b"content-length", b"5"), (b"content-length", b"5")], b""),
        (b"/", [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], b""),
    ],
)
def test_a_more_lenient_parser_would_not_open_a_hole(
    target: bytes, headers: list[tuple[bytes, bytes]], inserted: bytes
) -> None:
    headers = [(b"host", b"x"), *headers]
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    head = b"POST %b HTTP/1.1\r\n%b%b\r\n" % (target, lines, inserted)
    with pytest.raises(BadRequest):
        judge_head(head, b"POST", target, tuple(headers), upgrade=False, max_url_bytes=9)


def test_a_target_is_measured_as_it_was_sent_and_once_the_head_is_complete() -> None:
    for prefix in (b"/", b"http://x/"):
        longest = prefix + b"y" * (MAX_URL_BYTES - len(prefix))
        for target, status in ((longest, None), (longest + b"y", 414)):
            raw = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target
            assert read(raw)[1] == status
            assert read(*in_bytes(raw))[1] == status


def test_lists_that_proxies_add_to_become_one_line_and_nothing_else_does() -> None:
    lines = (
        b"X-Forwarded-For: a\r\nForwarded: for=b\r\nA: 1\r\nx-forwarded-for: c, d\r\nA: 2\r\n"
        b"Forwarded: \r\n"
    )
    request = read_one(b"GET / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
    assert request.header(b"x-forwarded-for") == b"a, c, d"
    assert request.header(b"forwarded") == b"for=b, "
    behind = render_request(request)
    assert behind.count(b"x-forwarded-for: a, c, d\r\n") == 1
    assert behind.lower().count(b"forwarded: for") == 1
    assert [value for name, value in request.headers if name == b"a"] == [b"1", b"2"]


def test_requests_before_a_broken_one_are_served_first() -> None:
    requests, status = read(GET * 3 + b"rubbish\r\n\r\n")
    assert (len(requests), status) == (3, 400)


def test_after_the_last_request_of_a_connection_input_is_ignored() -> None:
    reader = make_reader()
    reader.receive_data(with_headers(b"Connection: close") + GET)
    assert reader.next_request() is not None
    assert not reader.buffered
    reader.receive_data(b"rubbish\r\n\r\n")
    assert reader.next_request() is None
    assert reader.phase is Phase.IDLE


# --- bounds -------------------------------------------------------------------------------------


def head_of(size: int) -> bytes:
    empty = with_headers(b"A: ")
    return with_headers(b"A: " + b"a" * (size - len(empty)))


@pytest.mark.parametrize("pieces", [lambda raw: [raw], in_bytes], ids=["whole", "bytes"])
def test_the_bound_of_a_head_is_exact(pieces: Callable[[bytes], list[bytes]]) -> None:
    requests, status = read(*pieces(head_of(MAX_HEAD_BYTES)))
    assert (len(requests), status) == (1, None)
    assert read(*pieces(head_of(MAX_HEAD_BYTES + 1))) == ([], 431)


@pytest.mark.parametrize("pieces", [lambda raw: [raw], in_bytes], ids=["whole", "bytes"])
def test_what_is_wrong_beyond_the_bound_does_not_matter(
    pieces: Callable[[bytes], list[bytes]],
) -> None:
    assert read(*pieces(GET[:-2] + b"A: " + b"a" * MAX_HEAD_BYTES + b"\x00\r\n")) == ([], 431)


@pytest.mark.parametrize(
    "raw",
    [
        GET[:-2] + b"a:\r\n" * (MAX_HEAD_BYTES // 5),
        CHUNKED + b"0\r\n" + b"a:\r\n" * (MAX_HEAD_BYTES // 5),
        CHUNKED + b"2\r\nab\r\n" * (MAX_BODY_BYTES // 2),
        POST + b"Content-Length: %d\r\n\r\n" % MAX_BODY_BYTES + b"a" * (MAX_BODY_BYTES - 1),
    ],
    ids=["headers", "trailers", "chunks", "body"],
)
def test_what_is_held_of_an_unfinished_request_is_not_much_more_than_its_bytes(raw: bytes) -> None:
    pieces = [raw[i : i + 2] for i in range(0, len(raw), 2)]
    tracemalloc.start()
    try:
        reader = make_reader()
        for piece in pieces:
            reader.receive_data(piece)
            assert reader.next_request() is None
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 2 * (MAX_HEAD_BYTES + MAX_BODY_BYTES)


@pytest.mark.parametrize(
    "framed",
    [
        POST + b"Content-Length: %d\r\n\r\n" % MAX_BODY_BYTES + b"a" * MAX_BODY_BYTES,
        CHUNKED + chunk(b"a" * MAX_BODY_BYTES) + LAST_CHUNK,
    ],
    ids=["sized", "chunked"],
)
def test_an_idle_reader_does_not_hold_what_it_read_last(framed: bytes) -> None:
    tracemalloc.start()
    try:
        reader = make_reader()
        reader.receive_data(bytes(bytearray(framed)))  # a copy of which only the reader knows
        assert reader.next_request() is not None
        assert reader.next_request() is None
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < MAX_BODY_BYTES


BOMBS = {
    "a header without end": (431, GET[:-2] + b"A: ", b"a"),
    "headers without end": (431, GET[:-2], b"A: b\r\n"),
    "a target without end": (431, b"GET /", b"a"),
    "a header name without end": (431, GET[:-2], b"a"),
    "blank lines without end": (400, b"", b"\r\n"),
    "a chunk extension without end": (431, CHUNKED + b"1;a=", b"a"),
    "a trailer without end": (431, CHUNKED + b"0\r\nA: ", b"a"),
    "trailers without end": (431, CHUNKED + b"0\r\n", b"a:\r\n"),
    "zeros before a chunk size": (431, CHUNKED, b"0"),
    "chunks without end": (413, CHUNKED, b"100\r\n" + b"a" * 256 + b"\r\n"),
    "a chunk without end": (413, CHUNKED + b"ffffff\r\n", b"a"),
    "chunks of one byte": (413, CHUNKED, b"1\r\na\r\n"),
    "more extensions than content": (413, CHUNKED, b"1;" + b"e" * 1000 + b"\r\na\r\n"),
}


@pytest.mark.parametrize("read_bytes", [100, 4096, 65536])
@pytest.mark.parametrize(("status", "start", "more"), BOMBS.values(), ids=BOMBS)
def test_what_has_no_end_is_refused_soon(
    status: int, start: bytes, more: bytes, read_bytes: int
) -> None:
    reader = make_reader()
    reader.receive_data(start)
    assert reader.next_request() is None
    stream = more * (read_bytes // len(more) + 1)
    enough = 2 * MAX_BODY_BYTES + FRAMING_ALLOWANCE
    reads = enough // len(stream) + 2
    with pytest.raises(GatewayError) as refused:  # noqa: PT012
        for _ in range(reads):
            reader.receive_data(stream)
            reader.next_request()
    assert refused.value.status == status


def test_header_fields_are_counted() -> None:
    fields = [b"A: b"] * (MAX_FIELDS - 1)
    assert read_one(with_headers(*fields))
    assert read(with_headers(*fields, b"A: b")) == ([], 431)


def test_blank_lines_do_not_begin_a_request_and_are_counted_anew_before_each() -> None:
    blank = b"\r\n" * (MAX_BLANK_BYTES // 2)
    reader = make_reader()
    for _ in range(3):
        for byte in in_bytes(blank):
            reader.receive_data(byte)
            assert reader.next_request() is None
            assert reader.phase is Phase.IDLE
        reader.receive_data(GET)
        assert reader.next_request() is not None
    reader.receive_data(blank + b"\r")
    with pytest.raises(BadRequest):
        reader.next_request()


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent() -> None:
    length = b"Content-Length: %d\r\n\r\n"
    assert read(POST + length % (MAX_BODY_BYTES + 1)) == ([], 413)
    assert read_one(POST + length % MAX_BODY_BYTES + b"a" * MAX_BODY_BYTES)


def test_a_chunked_body_may_be_as_large_as_any_other() -> None:
    body = b"a" * MAX_BODY_BYTES
    assert read_one(CHUNKED + chunk(body) + LAST_CHUNK).body == body
    assert read(CHUNKED + chunk(body) + chunk(b"a") + LAST_CHUNK) == ([], 413)


# --- pipelining, phases, Expect -----------------------------------------------------------------


def test_pipelined_requests_come_back_in_order_and_are_parsed_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Mock(wraps=judge_head)
    monkeypatch.setattr("gateway.http1.judge_head", judge)
    raw = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(3000))
    reader = make_reader()
    reader.receive_data(raw)
    for i in range(3000):
        request = reader.next_request()
        assert request is not None
        assert request.target == b"/%d" % i
        assert judge.call_count == i + 1
        assert reader.buffered == (i < 2999)
    assert reader.next_request() is None


def test_all_kinds_of_bodies_can_be_pipelined() -> None:
    raws = [raw for raw, expected in SERVED.values() if expected[3]]
    requests, status = read(b"".join(raws))
    assert status is None
    assert [r.body for r in requests] == [
        expected[2] for _, expected in SERVED.values() if expected[3]
    ]


def test_the_phase_tells_which_deadline_applies() -> None:
    reader = make_reader()
    phases = []
    for byte in in_bytes(POST + b"Content-Length: 2\r\n\r\nab"):
        reader.receive_data(byte)
        done = reader.next_request()
        phases.append(reader.phase)
    assert done is not None
    assert [phase for phase, _ in itertools.groupby(phases)] == [
        Phase.HEAD,
        Phase.BODY,
        Phase.IDLE,
    ]
    assert phases[0] is Phase.HEAD
    assert phases.count(Phase.BODY) == 2


EXPECTING = POST + b"Expect: 100-Continue\r\n"


@pytest.mark.parametrize(
    ("length", "body"),
    [(b"Content-Length: 5", b"hello"), (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n")],
)
def test_a_client_that_waits_is_asked_once_to_continue(length: bytes, body: bytes) -> None:
    reader = make_reader()
    reader.receive_data(EXPECTING + length + b"\r\n\r\n")
    assert reader.next_request() is None
    told = [reader.expects_continue]
    reader.continue_sent()
    told.append(reader.expects_continue)
    reader.receive_data(body)
    request = reader.next_request()
    assert request is not None
    assert request.body == b"hello"
    assert [*told, reader.expects_continue] == [True, False, False]


@pytest.mark.parametrize(
    "raw",
    [
        EXPECTING + b"Content-Length: 5\r\n\r\nh",
        EXPECTING + b"Content-Length: 0\r\n\r\n",
        EXPECTING + b"\r\n",
        EXPECTING.replace(b"1.1", b"1.0") + b"Content-Length: 5\r\n\r\n",
        POST + b"Content-Length: 5\r\n\r\n",
    ],
    ids=["body under way", "empty body", "no body", "HTTP/1.0", "no Expect"],
)
def test_nobody_else_is_asked_to_continue(raw: bytes) -> None:
    reader = make_reader()
    reader.receive_data(raw)
    reader.next_request()
    assert not reader.expects_continue


def test_a_client_that_sends_without_waiting_is_not_asked_to_continue() -> None:
    reader = make_reader()
    reader.receive_data(EXPECTING + b"Content-Length: 5\r\n\r\n")
    reader.next_request()
    reader.receive_data(b"h")
    assert not reader.expects_continue


# --- bodies that are streamed -------------------------------------------------------------------

KINDS = {
    "sized": (POST + b"Content-Length: 11\r\n\r\n", b"hello", b" world", b""),
    "chunked": (CHUNKED, b"5\r\nhello\r\n", b"6\r\n world\r\n", LAST_CHUNK),
}


@pytest.mark.parametrize(("head", "first", "second", "end"), KINDS.values(), ids=KINDS)
def test_a_streamed_request_comes_at_its_head_and_its_body_as_that_comes(
    head: bytes, first: bytes, second: bytes, end: bytes
) -> None:
    reader = make_reader(streamed=True)
    reader.receive_data(head)
    request = reader.next_request()
    assert request is not None
    assert (request.streamed, request.body, reader.phase) == (True, b"", Phase.BODY)
    assert reader.next_piece() is None
    reader.receive_data(first)
    assert reader.next_piece() == b"hello"
    assert reader.next_piece() is None
    reader.receive_data(second)
    assert reader.next_piece() == b" world"
    reader.receive_data(end + GET)
    assert reader.next_piece() == b""
    assert reader.phase is Phase.IDLE
    after = reader.next_request()
    assert after is not None
    assert (after.target, after.streamed) == (b"/after", False)


def test_it_is_asked_of_method_and_target_in_origin_form_and_only_of_what_has_a_body() -> None:
    asked = []

    def is_streamed(method: str, target: bytes) -> bool:
        asked.append((method, target))
        return target == b"/p?q"

    reader = RequestReader(
        max_head_bytes=MAX_HEAD_BYTES,
        max_url_bytes=MAX_URL_BYTES,
        max_body_bytes=MAX_BODY_BYTES,
        is_streamed=is_streamed,
        max_streamed_bytes=2 * MAX_BODY_BYTES,
    )
    rest = b"\r\nHost: x\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n"
    reader.receive_data(
        GET
        + (b"POST /p?q HTTP/1.0" + rest + b"a")
        + (b"POST /other HTTP/1.1" + rest + b"a")
        + (b"PUT http://y/p?q HTTP/1.1" + rest + b"a")
    )
    found = [reader.next_request() for _ in range(4)]
    assert [request and (request.streamed, request.body) for request in found] == [
        (False, b""),
        (False, b"a"),
        (False, b"a"),
        (True, b""),
    ]
    assert asked == [("POST", b"/other"), ("PUT", b"/p?q")]
    assert reader.next_piece() == b"a"
    assert reader.next_piece() == b""


def test_of_a_streamed_body_nothing_is_held() -> None:
    piece = chunk(b"a" * 4096)
    reader = RequestReader(
        max_head_bytes=MAX_HEAD_BYTES,
        max_url_bytes=MAX_URL_BYTES,
        max_body_bytes=MAX_BODY_BYTES,
        is_streamed=lambda method, target: True,
        max_streamed_bytes=100 * MAX_BODY_BYTES,
    )
    reader.receive_data(CHUNKED)
    assert reader.next_request() is not None
    tracemalloc.start()
    try:
        taken = 0
        for _ in range(100 * MAX_BODY_BYTES // 4096):
            reader.receive_data(piece)
            while (content := reader.next_piece()) is not None:
                taken += len(content)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken == 100 * MAX_BODY_BYTES
    assert held < MAX_BODY_BYTES


def test_the_bound_of_a_streamed_body_is_its_own_and_exact() -> None:
    length = b"Content-Length: %d\r\n\r\n"
    assert Streamed([POST + length % (MAX_BODY_BYTES + 1)]).status == 413
    body = b"a" * MAX_BODY_BYTES
    for raw in (POST + length % MAX_BODY_BYTES + body, CHUNKED + chunk(body) + LAST_CHUNK):
        for pieces in ([raw], [raw[i : i + 1000] for i in range(0, len(raw), 1000)]):
            [request] = Streamed(pieces).requests
            assert request.body == body
    assert Streamed([CHUNKED + chunk(body) + chunk(b"a") + LAST_CHUNK]).status == 413


@pytest.mark.parametrize("read_bytes", [100, 4096, 65536])
@pytest.mark.parametrize(("status", "start", "more"), BOMBS.values(), ids=BOMBS)
def test_what_has_no_end_is_refused_as_soon_where_it_is_streamed(
    status: int, start: bytes, more: bytes, read_bytes: int
) -> None:
    stream = more * (read_bytes // len(more) + 1)
    reads = (2 * MAX_BODY_BYTES + FRAMING_ALLOWANCE) // len(stream) + 2
    assert Streamed([start, *[stream] * reads]).status == status


def test_the_framing_of_a_streamed_body_is_in_proportion_to_what_has_come() -> None:
    small = b"1;eeeeeeeeeeee\r\na\r\n"
    count = FRAMING_ALLOWANCE // (len(small) - 2)
    for chunks, status in ((count, None), (count + 1, 413)):
        assert Streamed([CHUNKED, *[small] * chunks]).status == status
    large = chunk(b"a" * (len(small) // 2))
    assert Streamed([CHUNKED, *[large, small] * count]).status == 413
    line = chunk(b'{"text":"a"}\n')
    assert Streamed([CHUNKED, *[line] * 1000]).status is None


def test_a_refusal_within_a_streamed_body_stays() -> None:
    reader = make_reader(streamed=True)
    reader.receive_data(CHUNKED + b"5\r\nhello\r\nx\r\n")
    assert reader.next_request() is not None
    assert reader.next_piece() == b"hello"
    with pytest.raises(BadRequest) as first:
        reader.next_piece()
    reader.receive_data(GET)
    for ask in (reader.next_piece, reader.next_request):
        with pytest.raises(BadRequest) as again:
            ask()
        assert again.value is first.value


def test_the_sender_of_a_streamed_body_is_asked_to_continue_as_any_other() -> None:
    reader = make_reader(streamed=True)
    reader.receive_data(EXPECTING + b"Content-Length: 5\r\n\r\n")
    assert reader.next_request() is not None
    assert reader.expects_continue
    reader.continue_sent()
    reader.receive_data(b"hello")
    assert (reader.next_piece(), reader.next_piece()) == (b"hello", b"")
    assert not reader.expects_continue


# --- properties ---------------------------------------------------------------------------------

TOKENS = [
    *(raw for raw, _ in SERVED.values()),
    *(raw for _, raw in REFUSED.values()),
    *[b"GET / HTTP/1.1\r\n", b"POST", b" ", b"/", b"HTTP/1.0", b"\r\n", b"\r", b"\n", b"\r\n\r\n"],
    *[b"Host: x\r\n", b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"5", b"0\r\n\r\n"],
    *[b"Connection: ", b"close", b"upgrade", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n"],
]

streams = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=8), max_size=8).map(b"".join)


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    ends = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [raw[a:b] for a, b in itertools.pairwise(ends)]


@given(streams, st.lists(st.integers(min_value=0), max_size=8))
def test_any_bytes_in_any_split_mean_the_same_and_raise_only_gateway_errors(
    raw: bytes, cuts: list[int]
) -> None:
    assert seen(split(raw, cuts)) == seen([raw])
    assert Streamed(split(raw, cuts)).seen == seen([raw])


fields = st.tuples(
    st.sampled_from(
        [*HOP_BY_HOP, b"connection", b"authorization", b"x-a", b"content-length", b"accept"]
    ).map(bytes.title)
    | st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,8}", fullmatch=True),
    st.sampled_from([b"close", b"x-a, te", b"upgrade", b"h2c", b"chunked", b"5", b"100-continue"])
    | st.from_regex(rb"[\t -~\x80-\xff]{0,12}", fullmatch=True),
)


@given(
    st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"PATCH"]),
    st.sampled_from([b"1.1", b"1.0"]),
    st.from_regex(rb"(https?://[a-z]{1,3}(:[0-9]{1,3})?)?/[!-~]{0,20}", fullmatch=True),
    st.lists(fields, max_size=6),
    st.none() | st.binary(max_size=40),
)
@example(b"POST", b"1.1", b"/", [(b"Connection", b"host, content-length, authorization")], b"a")
@example(b"POST", b"1.1", b"/", [], b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n")
def test_a_rendered_request_is_read_behind_as_it_was_read_here(
    method: bytes,
    version: bytes,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes | None,
) -> None:
    if body is not None:
        headers = [*headers, (b"Content-Length", b"%d" % len(body))]
    lines = [b"%b: %b\r\n" % field for field in headers]
    start = b"%b %b HTTP/%b\r\nHost: x\r\n" % (method, target, version)
    requests, _ = read(start + b"".join(lines) + b"\r\n" + (body or b""))
    for parsed in requests:
        assert_rendered_is_the_same_request(parsed)


@given(streams)
def test_whatever_is_let_through_is_read_behind_as_it_was_read_here(raw: bytes) -> None:
    for parsed in read(raw)[0]:
        assert_rendered_is_the_same_request(parsed)


# --- writing ------------------------------------------------------------------------------------


def test_a_request_is_written_again_without_what_belonged_to_its_connection() -> None:
    raw = with_headers(
        b"Connection: X-Secret, te",
        b"X-Secret: 1",
        b"TE: trailers",
        b"Keep-Alive: 5",
        b"Proxy-Connection: keep-alive",
        b"Accept: */*",
        b"Cookie: a=b",
        start=b"PUT http://y/a?b HTTP/1.1",
    )
    assert render_request(read_one(raw)) == (
        b"PUT /a?b HTTP/1.1\r\nhost: y\r\naccept: */*\r\ncookie: a=b\r\n"
        b"content-length: 0\r\nconnection: close\r\n\r\n"
    )


def test_a_chunked_request_is_written_again_with_its_length() -> None:
    parsed = read_one(CHUNKED + chunk(b"hello") + b"0\r\nAuthorization: Bearer t\r\n\r\n")
    assert render_request(parsed) == (
        b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"
    )


def test_a_response_says_its_length_and_whether_the_connection_stays() -> None:
    headers = [(b"content-type", b"text/plain")]
    strict = b"".join(b"%b: %b\r\n" % pair for pair in STRICT_HEADERS)
    assert render_response(202, headers, b"ok\n", keep_alive=True) == (
        b"HTTP/1.1 202 Accepted\r\n" + strict + b"content-type: text/plain\r\n"
        b"content-length: 3\r\n\r\nok\n"
    )
    assert render_response(400, [], b"", keep_alive=False) == (
        b"HTTP/1.1 400 Bad Request\r\n" + strict + b"content-length: 0\r\nconnection: close\r\n\r\n"
    )


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_without_content_has_no_length(status: int) -> None:
    assert b"content-length" not in render_response(status, [], b"", keep_alive=True)


@given(st.lists(st.binary(min_size=1), max_size=5))
def test_a_client_reads_what_was_written(data: list[bytes]) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    client.receive_data(CONTINUE + head + b"".join(map(chunk, data)) + LAST_CHUNK)
    assert isinstance(client.next_event(), h11.InformationalResponse)
    assert isinstance(client.next_event(), h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert body == b"".join(data)
