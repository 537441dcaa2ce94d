"""The wire format, both ways. Cases are fed whole, byte by byte, and cut at every boundary."""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from fuzz_targets import interpret
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.sse import (
    MAX_RETRY_MS,
    ParseLimit,
    Parser,
    ServerSentEvent,
    comment,
    encode,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ONE_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))
STREAMS = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.sampled_from(
            [
                *(b"data", b"event", b"id", b"retry", b":", b" ", b"\r", b"\n", b"\r\n", b"\0"),
                *(b"\xef\xbb\xbf", b"\xe2\x82", b"\xac", b"7", b"x"),
            ]
        ),
        max_size=60,
    ).map(b"".join),
)


def message(data: str, last_event_id: str = "", event: str = "message") -> ServerSentEvent:
    return ServerSentEvent(event, data, last_event_id)


def feed(parser: Parser, pieces: Iterable[bytes]) -> list[ServerSentEvent]:
    return [event for piece in pieces for event in parser.receive_data(piece)]


def cuts(stream: bytes) -> Iterator[list[bytes]]:
    yield [stream]
    yield [stream[at : at + 1] for at in range(len(stream))]
    for at in range(1, len(stream)):
        yield [stream[:at], b"", stream[at:]]


def split(stream: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(edge % (len(stream) + 1) for edge in at), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


STANDARD_EXAMPLES = [
    pytest.param(
        b"data: This is the first message.\n\n"
        b"data: This is the second message, it\ndata: has two lines.\n\n"
        b"data: This is the third message.\n\n",
        [
            message("This is the first message."),
            message("This is the second message, it\nhas two lines."),
            message("This is the third message."),
        ],
        id="messages",
    ),
    pytest.param(
        b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n",
        [
            message("73857293", event="add"),
            message("2153", event="remove"),
            message("113411", event="add"),
        ],
        id="types",
    ),
    pytest.param(
        b"data: YHOO\ndata: +2\ndata: 10\n\n", [message("YHOO\n+2\n10")], id="three lines"
    ),
    pytest.param(
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event",
        [message("first event", "1"), message("second event")],
        id="a comment, an id, an id reset, an unterminated block",
    ),
    pytest.param(
        b"data\n\ndata\ndata\n\ndata:", [message(""), message("\n")], id="empty data lines"
    ),
    pytest.param(
        b"data:test\n\ndata: test\n\n", [message("test"), message("test")], id="one space"
    ),
]

CASES = [
    pytest.param(b"", [], id="nothing"),
    pytest.param(b"\n\n\r\n\r\r", [], id="only blank lines"),
    pytest.param(b"data: a\r\rdata: b\r\r", [message("a"), message("b")], id="CR"),
    pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", [message("a"), message("b")], id="CRLF"),
    pytest.param(b"data: a\n\rdata: b\r\n\n", [message("a"), message("b")], id="LF CR, CRLF LF"),
    pytest.param(b"data: a\r\ndata: b\r\n\r", [message("a\nb")], id="a last CR ends its line"),
    pytest.param(b"\xef\xbb\xbfdata: a\n\n", [message("a")], id="a BOM"),
    pytest.param(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", [], id="only one BOM"),
    pytest.param(b"\n\xef\xbb\xbfdata: a\n\n", [], id="a BOM on the second line"),
    pytest.param(b"\xef\xbbdata: a\n\n", [], id="a part of a BOM"),
    pytest.param(
        b"data: \xef\xbb\xbfa\n\n", [message("\ufeffa")], id="a BOM in the data is a character"
    ),
    pytest.param("data: \u20ac\U0001f600\n\n".encode(), [message("\u20ac\U0001f600")], id="UTF-8"),
    pytest.param(b"data: \xff\xe2\x82\n\n", [message("\ufffd\ufffd")], id="invalid UTF-8"),
    pytest.param(b"data: \xe2\x82\r\xac\n\n", [message("\ufffd")], id="a line end within UTF-8"),
    pytest.param(
        "data: a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n\n".encode(),
        [message("a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g")],
        id="no other line ends",
    ),
    pytest.param(b"data:  a \n\n", [message(" a ")], id="only the first space is removed"),
    pytest.param(b"data:\ta\n\n", [message("\ta")], id="a tab is no space"),
    pytest.param(b"data: a:b: c\n\n", [message("a:b: c")], id="the first colon divides"),
    pytest.param(b"Data: a\n data: b\ndata : c\n\n", [], id="names are exact"),
    pytest.param(b"other: x\nother\n:\n::\ndata: a\n\n", [message("a")], id="unknown fields"),
    pytest.param(b"data: a\0b\n\n", [message("a\0b")], id="NUL in data"),
    pytest.param(b"event: x\n\ndata: a\n\n", [message("a")], id="a type ends with its block"),
    pytest.param(b"event: x\nevent:\ndata: a\n\n", [message("a")], id="an empty type"),
    pytest.param(b"event: x\nevent: y\ndata: a\n\n", [message("a", event="y")], id="last type"),
    pytest.param(
        b"id: 1\ndata: a\n\ndata: b\n\n", [message("a", "1"), message("b", "1")], id="an id stays"
    ),
    pytest.param(
        b"id: 1\n\ndata: a\n\n", [message("a", "1")], id="an id of a block without data counts"
    ),
    pytest.param(b"id: 1\nid: 2\0\ndata: a\n\n", [message("a", "1")], id="an id with NUL"),
    pytest.param(b"id: 1\n\nid: \ndata: a\n\n", [message("a")], id="an empty id resets"),
    pytest.param(
        b"id: 1\nchannel: a,b\ndata: x\n\nat: 0-9\nchannel:c\ndata: y\n\nat: 5\n\ndata: z\n\n",
        [
            ServerSentEvent("message", "x", "1", "a,b"),
            ServerSentEvent("message", "y", "1", "c", "0-9"),
            message("z", "1"),
        ],
        id="what annotates a block is that block's alone",
    ),
]


@pytest.mark.parametrize(("stream", "events"), STANDARD_EXAMPLES + CASES)
def test_the_parser_follows_the_standard(stream: bytes, events: list[ServerSentEvent]) -> None:
    for pieces in cuts(stream):
        assert feed(Parser(), pieces) == events, pieces


def test_an_event_is_given_out_as_soon_as_its_blank_line_has_come() -> None:
    parser = Parser()
    assert parser.receive_data(b"data: a\r\n\r") == [message("a")]
    assert parser.receive_data(b"\n") == []


def test_the_last_event_id_is_committed_by_the_blank_line_and_not_before() -> None:
    parser = Parser()
    parser.receive_data(b"id: 1\n\nid: 2\n")
    assert parser.last_event_id == "1"
    parser.receive_data(b"\n")
    assert parser.last_event_id == "2"


@pytest.mark.parametrize(
    ("line", "retry"),
    [
        ("retry: 1500", 1500),
        ("retry:0", 0),
        ("retry: 007", 7),
        ("retry", None),
        ("retry:", None),
        ("retry: -1", None),
        ("retry: +1", None),
        ("retry: 1.5", None),
        ("retry: 1_0", None),
        ("retry:  1", None),
        ("retry: 1 ", None),
        ("retry: \u0661", None),
        ("retry: \u00b2", None),
        (f"retry: {MAX_RETRY_MS}", MAX_RETRY_MS),
        (f"retry: {MAX_RETRY_MS + 1}", MAX_RETRY_MS),
        ("retry: " + "9" * 100_000, MAX_RETRY_MS),
        ("retry: " + "0" * 100_000 + "5", 5),
    ],
)
def test_a_retry_is_of_ascii_digits_and_bounded(line: str, retry: int | None) -> None:
    parser = Parser()
    parser.receive_data(line.encode() + b"\n")
    assert parser.retry == retry


def test_a_bad_retry_leaves_the_last_good_one() -> None:
    parser = Parser()
    parser.receive_data(b"retry: 5\nretry: soon\n")
    assert parser.retry == 5


@pytest.mark.parametrize("stream", [b"data: 789", b"data: 789\n\n", b":" + b"x" * 100])
def test_a_line_over_its_bound_is_a_parse_limit(stream: bytes) -> None:
    for pieces in cuts(stream):
        with pytest.raises(ParseLimit, match="line"):
            feed(Parser(max_line_bytes=8), pieces)


def test_a_line_at_its_bound_is_parsed() -> None:
    for pieces in cuts(b"data: 78\r\n\r\n"):
        assert feed(Parser(max_line_bytes=8), pieces) == [message("78")]


@pytest.mark.parametrize("stream", [b"data: 7\ndata: 7\ndata\n", b"data\n" * 5])
def test_an_event_over_its_bound_is_a_parse_limit(stream: bytes) -> None:
    for pieces in cuts(stream):
        with pytest.raises(ParseLimit, match="event"):
            feed(Parser(max_event_bytes=20), pieces)


def test_the_bound_of_an_event_counts_each_event_anew_and_no_comments() -> None:
    stream = b": a comment that is long\ndata: 7\ndata: 7\n\n" * 3
    assert feed(Parser(max_event_bytes=20), [stream]) == [message("7\n7")] * 3


def test_events_before_a_limit_are_given_out_first() -> None:
    parser = Parser(max_line_bytes=8)
    assert parser.receive_data(b"data: a\n\ndata: 789\n\n") == [message("a")]
    with pytest.raises(ParseLimit):
        parser.receive_data(b"")


def test_after_a_parse_limit_the_parser_gives_no_more_events() -> None:
    parser = Parser(max_line_bytes=8)
    with pytest.raises(ParseLimit):
        parser.receive_data(b"data: 789")
    with pytest.raises(ParseLimit):
        parser.receive_data(b"\n\ndata: a\n\n")


@settings(deadline=None)
@given(STREAMS, st.lists(st.integers(0, 1000), max_size=8))
def test_any_bytes_in_any_split_give_the_same_and_raise_only_a_parse_limit(
    stream: bytes, at: list[int]
) -> None:
    assert outcome([stream]) == outcome(split(stream, at))


def outcome(pieces: list[bytes]) -> tuple[list[ServerSentEvent], bool, str, int | None]:
    parser = Parser(max_line_bytes=24, max_event_bytes=48)
    events: list[ServerSentEvent] = []
    limited = False
    for piece in [*pieces, b""]:
        try:
            events += parser.receive_data(piece)
        except ParseLimit:
            limited = True
    return events, limited, parser.last_event_id, parser.retry


@settings(deadline=None)
@given(STREAMS)
def test_the_parser_agrees_with_the_standards_steps_on_the_whole_text(stream: bytes) -> None:
    assert Parser().receive_data(stream) == interpret(stream)


class CountedBytes(bytearray):
    """Counts the bytes that are appended to it or read out of it."""

    moved = 0

    def __iadd__(self, piece: object) -> "CountedBytes":
        assert isinstance(piece, bytes)
        self.moved += len(piece)
        self.extend(piece)
        return self

    def __bytes__(self) -> bytes:
        self.moved += len(self)
        return bytes(memoryview(self))


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_a_long_line_fed_byte_by_byte_is_moved_twice_and_not_once_a_byte(size: int) -> None:
    parser = Parser()
    parser._partial = counted = CountedBytes()
    line = b"data: " + b"x" * size
    pieces = (bytes([byte]) for byte in line + b"\n\n")
    assert feed(parser, pieces) == [message("x" * size)]
    assert counted.moved == 2 * len(line)


@pytest.mark.parametrize(
    ("block", "wire"),
    [
        (encode("a"), b"data: a\n\n"),
        (encode(""), b"data: \n\n"),
        (encode(None), b"\n"),
        (encode(None, id="1-0", event="keepalive"), b"id: 1-0\nevent: keepalive\n\n"),
        (
            encode("a", retry=5, event="t", id="1-0"),
            b"id: 1-0\nevent: t\nretry: 5\ndata: a\n\n",
        ),
        (encode("a\nb\rc\r\nd"), b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
        (encode("a\n\r"), b"data: a\ndata: \ndata: \n\n"),
        (encode("\n"), b"data: \ndata: \n\n"),
        (encode(" a: b"), b"data:  a: b\n\n"),
        (encode("a\x0b\x85\u2028b\0"), "data: a\x0b\x85\u2028b\0\n\n".encode()),
        (encode("a", id=""), b"id: \ndata: a\n\n"),
        (encode(None, retry=0), b"retry: 0\n\n"),
        (comment("ping"), b": ping\n\n"),
        (comment("a\r\nb"), b": a\n: b\n\n"),
    ],
)
def test_the_wire_form_is(block: bytes, wire: bytes) -> None:
    assert block == wire


@pytest.mark.parametrize("character", ["\r", "\n", "\r\n", "\0"])
def test_line_breaks_and_nul_are_refused_in_type_and_id(character: str) -> None:
    with pytest.raises(BadRequest, match="event type"):
        encode("a", event=f"x{character}y")
    with pytest.raises(BadRequest, match="event id"):
        encode("a", id=f"x{character}y")


def test_lone_surrogates_are_refused_everywhere() -> None:
    with pytest.raises(BadRequest, match="surrogates"):
        encode("\ud800")
    with pytest.raises(BadRequest, match="surrogates"):
        encode("a", event="\udfff")
    with pytest.raises(BadRequest, match="surrogates"):
        encode("a", id="\ud800")
    with pytest.raises(BadRequest, match="surrogates"):
        comment("\ud800")


@pytest.mark.parametrize("retry", [-1, MAX_RETRY_MS + 1, 2**64])
def test_a_retry_that_no_timer_holds_is_refused(retry: int) -> None:
    with pytest.raises(BadRequest, match="retry"):
        encode("a", retry=retry)


@settings(deadline=None)
@given(
    TEXT,
    ONE_LINE,
    ONE_LINE,
    st.integers(0, MAX_RETRY_MS),
    st.lists(st.integers(0, 1000), max_size=8),
)
def test_what_is_encoded_is_parsed_as_the_same_event(
    data: str, event: str, event_id: str, retry: int, at: list[int]
) -> None:
    parser = Parser()
    block = encode(data, event=event, id=event_id, retry=retry)
    normalised = re.sub("\r\n|\r", "\n", data)
    assert feed(parser, split(block, at)) == [
        ServerSentEvent(event or "message", normalised, event_id)
    ]
    assert parser.last_event_id == event_id
    assert parser.retry == retry


@settings(deadline=None)
@given(TEXT)
def test_a_comment_dispatches_nothing_and_keeps_the_id(text: str) -> None:
    parser = Parser()
    parser.receive_data(b"id: 7\n\n")
    assert parser.receive_data(comment(text)) == []
    assert parser.last_event_id == "7"
