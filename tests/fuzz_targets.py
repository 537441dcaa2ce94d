"""What must hold of whatever comes from outside, as functions of bytes: the targets of fuzzing.

1. A target takes any bytes, raises nothing but AssertionError, and keeps nothing between two calls.
2. Input that is a stream of bytes is given whole, byte by byte, and in pieces that the input itself
   decides: the same input always fails in the same way.
3. ``seeds`` are inputs from which others are made, ``words`` what such input is made of. Hypothesis
   (test_fuzz) and atheris (fuzz.py) are both driven by them, and what has been found is among them.
"""

import json
import re
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, cast
from urllib.parse import unquote

import h11
import hiredis
import msgspec
import trio
import vendors

from gateway import messages, sse
from gateway.api import commands
from gateway.api.asked import in_body, in_query, is_annotated
from gateway.api.publish import PATH as PUBLISH
from gateway.api.publish import publish
from gateway.api.request import JSON, NDJSON, Answer, Request, parse_target
from gateway.api.subscribe import PATH as EVENTS
from gateway.api.subscribe import requested
from gateway.bus import wire
from gateway.bus.history import Record, _entry, parse_record
from gateway.bus.listener import Listener
from gateway.bus.prover import parse_told
from gateway.bus.resp import Connection, LinkLost, Reply
from gateway.bus.subscriptions import Subscription, Subscriptions
from gateway.charge import Charge
from gateway.config import Config
from gateway.errors import BadRequest, ContentTooLarge, GatewayError
from gateway.event import MAX_LABEL, Event, Frame, render
from gateway.http1 import Parsed, RequestReader
from gateway.http1_render import render_request
from gateway.identity import ANYBODY
from gateway.names import (
    MAX_CHANNEL_NAME,
    USER_PATTERN,
    USER_PREFIX,
    check_channel,
    check_subscribable,
    compile_pattern,
    is_reserved,
    user_channel,
)
from gateway.node import Node
from gateway.position import ZERO, Closed, Position, Start, parse_resume
from gateway.relay import events as normal
from gateway.relay.formats import normalizer
from gateway.relay.push import Lines, Mark, mark_of, read_line
from gateway.relay.reading import Reading
from gateway.relay.record import Format
from gateway.relay.sizes import data_bytes
from gateway.relay.story import Story

BYTE_BY_BYTE = 512
"""Input up to this long is also given byte by byte."""

MOST_CUTS = 6

DIVIDER = b"\n--\n"
"""Between the parts of an input that has several."""


@dataclass(frozen=True, slots=True)
class Target:
    check: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[bytes]


def ways(data: bytes) -> Iterator[list[bytes]]:
    """The ways in which ``data`` may arrive, the first one whole."""
    yield [data]
    if len(data) <= BYTE_BY_BYTE:
        yield [data[at : at + 1] for at in range(len(data))]
    random = Random(zlib.crc32(data))
    cuts = sorted(random.randint(0, len(data)) for _ in range(MOST_CUTS))
    yield [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def same_however_it_comes(data: bytes, read: Callable[[list[bytes]], object]) -> None:
    whole, *others = [read(pieces) for pieces in ways(data)]
    for other in others:
        assert other == whole


def check_sentence(error: GatewayError) -> None:
    """A refusal can stand in an answer, a log line and a terminal, and is no flood."""
    assert 400 <= error.status <= 505
    assert error.detail.isprintable()
    assert error.detail.endswith(".")
    assert len(error.detail) < 2000


# --- the SSE parser, and what is written for one --------------------------------------------------

MAX_LINE, MAX_EVENT = 64, 160


def parse_stream(data: bytes) -> None:
    same_however_it_comes(data, _parsed_stream)
    parser = sse.Parser()
    events = parser.receive_data(data)
    assert events == interpret(data)
    assert parser.retry is None or 0 <= parser.retry <= sse.MAX_RETRY_MS
    for event in events:
        with suppress(BadRequest):  # a type may hold NUL, which we do not write
            again = sse.encode(event.data, event=event.event, id=event.last_event_id)
            assert sse.Parser().receive_data(again) == [event]


def _parsed_stream(pieces: list[bytes]) -> object:
    parser = sse.Parser(max_line_bytes=MAX_LINE, max_event_bytes=MAX_EVENT)
    events: list[sse.ServerSentEvent] = []
    limited = False
    for piece in [*pieces, b""]:
        try:
            events += parser.receive_data(piece)
        except sse.ParseLimit:
            limited = True
    assert all(len(event.data) <= MAX_EVENT for event in events)
    return events, limited, parser.last_event_id, parser.retry


def interpret(stream: bytes) -> list[sse.ServerSentEvent]:
    """WHATWG HTML 9.2.6 as it is written, over a whole stream: decode, divide, interpret."""
    *lines, _ = re.split(
        "\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    )
    data = event_type = event_id = ""
    events = []
    for line in lines:
        if line == "":
            if data != "":
                events.append(sse.ServerSentEvent(event_type or "message", data[:-1], event_id))
            data = event_type = ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value[1:] if value[:1] == " " else value
            if field == "event":
                event_type = value
            elif field == "data":
                data += value + "\n"
            elif field == "id" and "\0" not in value:
                event_id = value
    return events


def write_event(data: bytes) -> None:
    """Whatever an event holds, it arrives as one event that holds that, here and over Redis."""
    texts = [part.decode("utf-8", "surrogatepass") for part in _decodable(data).split(DIVIDER)]
    content, kind, key, retry, *_ = [*texts, "", "", "", ""]
    event = Event(
        ("a", "b") if len(texts) % 2 else ("a",),
        content,
        kind or None,
        int(retry) if re.fullmatch("[0-9]{1,12}", retry, re.ASCII) else None,
        None if not key or set(key) & set("\r\n\0") else key,
        end=len(data) % 3 == 0,
    )
    try:
        frame = render(event, Position(7, 3))
    except BadRequest as error:
        check_sentence(error)
        return
    assert_arrives(event, frame)
    try:
        sent = wire.encode(event)
    except UnicodeEncodeError:
        assert key.encode("utf-8", "replace") != key.encode("utf-8", "surrogatepass")
        return
    read, identifier, before = wire.decode(b"1 7-3 7-2 99 " + sent, event.channels)
    assert (identifier, before) == (b"7-3", b"7-2")
    for name in Frame.__struct_fields__:
        assert getattr(read, name) == getattr(frame, name), name
    assert sse.Parser().receive_data(sse.comment(content)) == []


def _decodable(data: bytes) -> bytes:
    """``data`` as UTF-8 that may hold lone surrogates, which JSON can spell."""
    return data.decode("utf-8", "surrogateescape").encode("utf-8", "surrogatepass")


def assert_arrives(event: Event, frame: Frame) -> None:
    """One chunk, in it one block, in it the event as it was published, and nothing else."""
    size, _, rest = frame.chunk.partition(b"\r\n")
    assert int(size, 16) == len(rest) - 2
    assert rest == frame.block + b"\r\n"
    parser = sse.Parser(max_line_bytes=2**30, max_event_bytes=2**30)
    content = event.data.replace("\r\n", "\n").replace("\r", "\n")
    told = sse.ServerSentEvent(event.type or "message", content, str(frame.position))
    assert parser.receive_data(frame.block) == [told]
    assert parser.retry == event.retry
    assert frame.block.endswith(b"\n\n")
    assert frame.block.count(b"\n\n") == 1
    assert frame.without_id() == frame.block.partition(b"\n")[2]


# --- names, patterns, positions -------------------------------------------------------------------


def match_pattern(data: bytes) -> None:
    """A pattern, a line break, a name: only BadRequest, and a match by the definition."""
    pattern, _, name = data.decode("utf-8", "surrogateescape").partition("\n")
    for check in (check_channel, check_subscribable, compile_pattern, user_channel):
        for text in (pattern, name):
            try:
                check(text)
            except BadRequest as error:
                check_sentence(error)
    with suppress(BadRequest):
        assert check_channel(name) == name
        assert re.fullmatch(r"[\w\-.:/@~%+]{1,200}", name, re.ASCII)
        compiled = compile_pattern(pattern)
        expected = matches(pattern.split("."), name.split("."))
        if pattern == USER_PATTERN:
            expected = len(name) > len(USER_PREFIX) and name.startswith(USER_PREFIX)
        assert compiled.matches(name) == expected
    with suppress(BadRequest):
        channel = check_channel(user_channel(name))
        assert is_reserved(channel)
        assert len(channel) <= MAX_CHANNEL_NAME
        assert unquote(channel.removeprefix(USER_PREFIX)) == name


def matches(pattern: list[str], name: list[str]) -> bool:
    """What a pattern matches, as the definition says it."""
    if not pattern or pattern == ["**"]:
        return pattern == ["**"] or not name
    return bool(name) and pattern[0] in ("*", name[0]) and matches(pattern[1:], name[1:])


def read_position(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    meaning = parse_resume(text)
    if isinstance(meaning, Start):
        assert meaning is Start.UNKNOWN or meaning.value == text
    else:
        assert str(meaning) == text
        position = meaning.position if isinstance(meaning, Closed) else meaning
        assert len(str(Closed(position))) < 128
        assert position.before() < position or position == ZERO
        assert Position.parse(str(position)) == position
    with suppress(wire.Unreadable):
        assert min(wire.position_of(data)) >= 0


# --- what comes from Redis ------------------------------------------------------------------------


_VAST = re.compile(rb"[*>~%|][0-9]{6}")
"""hiredis makes the whole list when it reads how long it is to be, with no bound that could be set:
for billions that takes it seconds. So Redis is trusted not to say that."""


def read_redis(data: bytes) -> None:
    """Replies, or a lost link; and of those on the pub/sub connection only whole messages."""
    if _VAST.search(data):
        return
    same_however_it_comes(data, _replies)
    subscriptions = Subscriptions("p:", Charge(sys.maxsize))
    subscriptions.claim(["a"])
    owner = cast(Any, _Owner())
    listener = Listener(cast(Any, None), owner, subscriptions, ("p:p:w",), timeout=1)
    replies, _ = _replies([data])
    with suppress(LinkLost):
        for kind, channel, payload in listener._sorted(replies):
            assert kind == b"message"
            assert type(channel) is type(payload) is bytes
            with suppress(wire.Unreadable):
                wire.decode(payload, ("a",))
            parse_told(payload)


class _Owner:
    def confirmed(self, subscription: Subscription) -> None:
        assert subscription.confirmed


@dataclass
class _Pieces:
    """A stream that has these and then ends."""

    pieces: list[bytes]

    async def receive_some(self, max_bytes: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def _replies(pieces: list[bytes]) -> tuple[list[Reply], str]:
    connection = Connection(cast(Any, _Pieces([piece for piece in pieces if piece])))
    replies: list[Reply] = []
    while True:
        try:
            replies += _finish(connection.receive())
        except LinkLost as lost:
            return [_comparable(reply) for reply in replies], str(lost)


def _comparable(reply: Reply) -> Reply:
    """Errors are values, but not equal by themselves; nan is not even equal to itself."""
    if isinstance(reply, list):
        return [_comparable(part) for part in reply]
    if isinstance(reply, hiredis.ReplyError | float | dict | set):
        return repr(reply)
    return reply


def _finish(waiting: Awaitable[Any]) -> Any:
    """The result of what never really waits."""
    try:
        waiting.__await__().send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("this waits")


def read_message(data: bytes) -> None:
    """A message, an entry of history, a record, a proof: all as bytes under somebody's key."""
    with suppress(wire.Unreadable):
        frame, identifier, before = wire.decode(data, ("a",))
        assert str(frame.position).encode() == identifier
        assert frame.block.startswith(b"id: %b\n" % identifier)
        assert frame.block.endswith(b"\n\n")
        size, _, rest = frame.chunk.partition(b"\r\n")
        assert int(size, 16) == len(rest) - 2
        with suppress(wire.Unreadable):
            wire.position_of(before)
        assert _entry(identifier, [b"e", data], ("a",))[0].position == frame.position
    with suppress(wire.Unreadable):
        _entry(b"1-1", data.split(b"\0"), ("a",))
    record = parse_record(data)
    assert record is None or isinstance(record, Record)
    told = parse_told(data)
    assert told is None or told.head >= ZERO


COMMANDS = (
    commands.ADD_CHANNEL,
    commands.REMOVE_CHANNEL,
    commands.CLOSE_CLIENT,
    commands.CLOSE_USER,
    commands.COUNT_CHANNEL,
    commands.STATUS,
)


def read_word(data: bytes) -> None:
    """What another worker says: a message or none, and in it what fits or an error of ours."""
    head = messages.decode(data)
    for command in cast("tuple[messages.Command[Any, Any], ...]", COMMANDS):
        if isinstance(head, messages.Request):
            asked = head.read(command)
            assert asked is None or isinstance(asked, command.asked)
        elif isinstance(head, messages.Answer):
            with suppress(GatewayError):
                assert isinstance(head.read(command), command.told)
    if isinstance(head, messages.Answer):
        again = messages.decode(messages.encode(head))
        assert isinstance(again, messages.Answer)
        assert messages.encode(again) == messages.encode(head)


# --- what publishers send -------------------------------------------------------------------------


@dataclass
class _Bus:
    """Takes everything, and remembers it."""

    batch: int = 4
    events: list[Event] = field(default_factory=list)

    async def publish(self, events: Sequence[Event]) -> list[Position]:
        assert len(events) <= self.batch
        self.events += events
        first = len(self.events) - len(events)
        return [Position(1, first + number) for number in range(len(events))]


NODE = Node(replace(Config(), max_event_bytes=400, max_channels_per_client=3), max_clients=1)
"""Its bus is another one for each input."""


def _published(path: str, query: Any, media_type: str, body: bytes) -> tuple[Answer, list[Event]]:
    """What is answered and what the bus is given, each event seen to be one that it may have."""
    bus = _Bus()
    NODE.bus = cast(Any, bus)
    headers = {b"content-type": media_type.encode()}
    answer = trio.run(publish, NODE, Request("POST", path, query, headers.get, body, "::1"))
    assert answer.status in (200, 202, 400, 413)
    if answer.status >= 400:
        problem = msgspec.json.decode(answer.body)
        assert problem["status"] == answer.status
        assert problem["detail"].endswith(".")
        assert len(problem["detail"]) < 2000
    for number, event in enumerate(bus.events):
        frame = render(event, Position(1, number))
        assert_arrives(event, frame)
        assert len(frame.block) <= NODE.config.max_event_bytes + len(
            f"id: {frame.position}\n\n"
        ) + (2 * MAX_LABEL * 4 + 100)
        assert wire.decode(b"1 1-%d 0-0 9 " % number + wire.encode(event), event.channels)
        assert all(map(check_channel, event.channels))
        for label in (event.type, event.key, event.id):
            assert label is None or len(label) <= MAX_LABEL
    return answer, bus.events


def publish_json(data: bytes) -> None:
    answer, events = _published(PUBLISH, (), JSON, data)
    assert (answer.status == 202) == bool(events)
    assert len(events) <= 1
    if events:
        with suppress(RecursionError):  # the bound of json is not that of msgspec
            # Of members of one name the last counts; what is in the others is not looked at.
            told = json.loads(data.decode(errors="replace")).get("data", "")
            if isinstance(told, str):
                assert events[0].data == told
            else:
                assert repr(json.loads(events[0].data)) == repr(told)  # nan is not equal to itself


def publish_lines(data: bytes) -> None:
    """A line stands for itself: the same alone as among others."""
    answer, events = _published(PUBLISH, (), NDJSON, data)
    assert answer.status == 200
    lines = [line for line in data.split(b"\n") if line and not line.isspace()]
    answers = [msgspec.json.decode(line) for line in answer.body.splitlines()]
    assert len(answers) == len(lines)
    assert len(events) == sum("id" in answer for answer in answers)
    for line, told in list(zip(lines, answers, strict=True))[:3]:
        alone, _ = _published(PUBLISH, (), JSON, line)
        assert alone.status == told.get("status", 202)


def publish_raw(data: bytes) -> None:
    """A target in its line, then the body."""
    target, _, body = data.partition(b"\n")
    try:
        path, query = parse_target(b"%b/%b" % (PUBLISH.encode(), target))
    except BadRequest as error:
        check_sentence(error)
        return
    answer, events = _published(path, query, "text/plain", body)
    assert (answer.status == 202) == bool(events)
    for event in events:
        assert event.data.encode() == body
        assert event.channels == (path.removeprefix(f"{PUBLISH}/"),)


# --- requests as the node sees them on the wire ---------------------------------------------------

MAX_HEAD_BYTES, MAX_BODY_BYTES, MAX_URL_BYTES = 2048, 1024, 512

HOP_BY_HOP = {
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"http2-settings",
    b"expect",
}


def read_requests(data: bytes) -> None:
    """Only errors of ours, within bounds; and whoever is given a request reads the same one."""
    same_however_it_comes(data, lambda pieces: _seen(*_requests(pieces)))
    same_however_it_comes(data, lambda pieces: _seen(*_streamed_requests(pieces)))
    assert _seen(*_streamed_requests([data])) == _seen(*_requests([data]))
    for parsed in _requests([data])[0]:
        assert len(parsed.body) <= MAX_BODY_BYTES
        assert len(parsed.target) <= MAX_URL_BYTES + 1  # a path of "/" where a URL had none
        assert_rendered_is_the_same_request(parsed)


def _requests(pieces: list[bytes]) -> tuple[list[Parsed], GatewayError | None]:
    reader = RequestReader(
        max_head_bytes=MAX_HEAD_BYTES, max_body_bytes=MAX_BODY_BYTES, max_url_bytes=MAX_URL_BYTES
    )
    requests: list[Parsed] = []
    try:
        for piece in pieces:
            reader.receive_data(piece)
            while (request := reader.next_request()) is not None:
                requests.append(request)
    except GatewayError as error:
        check_sentence(error)
        return requests, error
    return requests, None


def _streamed_requests(pieces: list[bytes]) -> tuple[list[Parsed], GatewayError | None]:
    """The same by a reader that streams all bodies, each joined again when it is complete."""
    reader = RequestReader(
        max_head_bytes=MAX_HEAD_BYTES,
        max_body_bytes=MAX_BODY_BYTES,
        max_url_bytes=MAX_URL_BYTES,
        is_streamed=lambda method, target: True,
        max_streamed_bytes=MAX_BODY_BYTES,
    )
    requests: list[Parsed] = []
    under_way: Parsed | None = None
    try:
        for piece in pieces:
            reader.receive_data(piece)
            while True:
                if under_way is None:
                    under_way = reader.next_request()
                    if under_way is None:
                        break
                content = reader.next_piece() if under_way.streamed else b""
                if content is None:
                    break
                under_way.body += content
                if not content:
                    requests.append(under_way)
                    under_way = None
    except GatewayError as error:
        check_sentence(error)
        return requests, error
    return requests, None


def _seen(requests: list[Parsed], error: GatewayError | None) -> object:
    fields = [(r.method, r.target, r.version, r.headers, r.body, r.keep_alive) for r in requests]
    return fields, error and error.status


def assert_rendered_is_the_same_request(parsed: Parsed) -> None:
    """h11, which reads it behind, sees this one request; so do we, and would write it so again."""
    rendered = render_request(parsed)
    request, body, rest = reread(rendered)
    assert (request.method.decode(), request.target, body) == (
        parsed.method,
        parsed.target,
        parsed.body,
    )
    assert request.http_version.decode() == parsed.version
    assert rest == b""
    names = [name for name, _ in request.headers]
    assert not HOP_BY_HOP & set(names)
    assert [value for name, value in request.headers if name == b"connection"] == [b"close"]
    assert [value for name, value in request.headers if name == b"host"] == [
        value for name, value in parsed.headers if name == b"host"
    ]
    assert names.count(b"content-length") <= 1
    most = 2 * len(rendered)
    reader = RequestReader(max_head_bytes=most, max_body_bytes=most, max_url_bytes=most)
    reader.receive_data(rendered + b"GET / HTTP/1.1\r\n\r\n")
    again = reader.next_request()
    assert again is not None
    assert not again.keep_alive
    assert not reader.buffered
    assert (again.method, again.target, again.version, again.body) == (
        parsed.method,
        parsed.target,
        parsed.version,
        parsed.body,
    )
    assert render_request(again) == rendered


def reread(raw: bytes) -> tuple[h11.Request, bytes, bytes]:
    """What h11 reads in ``raw``: the request, its body, and what is left over."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(raw) + 1)
    connection.receive_data(raw)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    return request, body, connection.trailing_data[0]


# --- what is pushed -------------------------------------------------------------------------------


MAX_PUSHED_BYTES = 200


def push(data: bytes) -> None:
    """Lines are the same however they come, and each is an event or refused with a sentence."""
    same_however_it_comes(data, _pushed_lines)
    lines = _pushed_lines([data])
    mark = Mark()
    for line in lines or ():
        try:
            taken = read_line(line, "stream:a", mark, MAX_PUSHED_BYTES)
        except (BadRequest, ContentTooLarge) as error:
            check_sentence(error)
            continue
        assert taken.mark.lines == mark.lines + 1
        mark = taken.mark
        assert data_bytes(taken.event.data) <= MAX_PUSHED_BYTES
        assert taken.event.end == (taken.last is not None)
        assert mark_of([render(taken.event, Position(1, 0))]) == mark


def _pushed_lines(pieces: list[bytes]) -> list[bytes] | None:
    """None where one is too long."""
    lines = Lines(MAX_PUSHED_BYTES)
    found: list[bytes] = []
    try:
        for piece in pieces:
            found += lines.receive(piece)
        return [*found, *lines.end()]
    except ContentTooLarge as error:
        check_sentence(error)
        return None


# --- all of them ----------------------------------------------------------------------------------


def _words(text: bytes) -> list[bytes]:
    return text.split(b"|")


def _word(command: messages.Command[Any, Any], asked: msgspec.Struct) -> bytes:
    return messages.request("0123abcd", 7, command, asked)


_SENT = wire.encode(Event(("a", "b"), "some\ndata", "t", 5, "key", end=True))
_GET = b"GET /events/a?b HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
_POST = b"POST http://y:1/publish/a HTTP/1.1\r\nHost: x\r\n"
_TOLD = b"7-3 1 " + b"f" * 40 + b" 1-0 2-0 - -"

# --- what a stream is asked for with --------------------------------------------------------------


def ask_for_stream(data: bytes) -> None:
    """What is asked for in a body is asked for by the URL that is made of it, too."""
    headers = {b"content-type": JSON.encode()}
    posted = Request("POST", EVENTS, (), headers.get, data, "::1")
    try:
        asked = in_body(posted)
        stream = requested(NODE, posted, EVENTS, ANYBODY, asked)
    except GatewayError as error:
        check_sentence(error)
        return
    url = asked.url(EVENTS, 10_000).encode("ascii")
    assert re.fullmatch(rb"[!-~]+", url)
    again = Request("GET", *parse_target(url), {}.get, b"", "::1")  # type: ignore[arg-type]
    found = in_query(again, EVENTS)._replace(annotate=is_annotated(again))
    same = requested(NODE, again, EVENTS, ANYBODY, found)
    assert (same.channels, same.user) == (stream.channels, stream.user)
    assert same.annotated is stream.annotated


# --- what upstreams send --------------------------------------------------------------------------

FORMATS = (
    (Format.OPENAI, "chat/completions"),
    (Format.OPENAI, "responses"),
    (Format.OPENAI, "completions"),
    (Format.ANTHROPIC, "messages"),
)


def normalize(data: bytes) -> None:
    """The first byte says which format the others are read as."""
    format, path = FORMATS[data[0] % len(FORMATS) if data else 0]
    same_however_it_comes(data[1:], lambda pieces: _normalized(format, path, pieces))


def _normalized(format: Format, path: str, pieces: list[bytes]) -> object:
    reading = Reading(max_event_bytes=4096, max_bytes=65536)
    reader = normalizer(format, path)
    told: list[normal.Normal] = []
    end: normal.Complete | normal.Error
    try:
        for event in (e for piece in [*pieces, b""] for e in reading.receive_data(piece)):
            told += reader.feed(event)
            if reader.is_done:
                break
        end = reader.finish()
    except normal.Failure as failure:
        end = failure.told()
    story = Story()
    frames: list[Event] = [normal.render(event, "stream:a") for event in told]
    frames.append(normal.render(end, "stream:a", end=True))
    for ms, frame in enumerate(frames, start=1):
        story.add(render(frame, Position(ms, 0)))
    assert story.text == "".join(e.text for e in told if isinstance(e, normal.Token))
    assert story.error == (end if isinstance(end, normal.Error) else None)
    assert story.events == len(told) + 1
    return frames


TARGETS = {
    "sse-parser": Target(
        parse_stream,
        [
            b"\xef\xbb\xbfid: 1\nevent: t\nretry: 10\ndata: a\ndata:b\n\n: c\r\rdata\r\n\r\n",
            "data: \u20ac\U0001f600\n\nid: \0\ndata:  x\n\n".encode(),
            b"data: " + b"x" * MAX_LINE + b"\n\n",
            b"data: 12345678901234567890\n" * 7 + b"\n",
        ],
        _words(
            b"data|event|id|retry|:|: |\r|\n|\r\n|\0|7|\xef\xbb\xbf|\xe2\x82|\xac|99999999999|\n\n"
        ),
    ),
    "event": Target(
        write_event,
        [
            DIVIDER.join([b"a\r\nb\rc\n\ndata: d\n\nid: 1", b"type", b"key", b"100"]),
            DIVIDER.join([b"\xed\xa0\x80", b"a\nid: 1"]),
            DIVIDER.join(["\u2028\x85\x0b\ufeff".encode(), b" t", b" two words ", b"0"]),
        ],
        _words(
            b"\n--\n|\r|\n|\r\n|\n\n|data: |id: 1\n|\0|\xed\xa0\x80|event: |retry: 0\n|"
            b"\xef\xbb\xbf|0\r\n\r\n|99999999999"
        ),
    ),
    "pattern": Target(
        match_pattern,
        [b"org.*.b\norg.7.b", b"**\nuser:1", b"user:*\nuser:a.b", b"a.**\na", b"\na%20.b"],
        [*_words(b"*|**|.|..|user:|user:*|global|\n|a|%2E|\xc3\xa9|/|\xff"), b"x" * 199],
    ),
    "position": Target(
        read_position,
        [
            b"1700000000000-12",
            b"0-0.closed",
            b"earliest",
            b"now",
            b"18446744073709551615-0",
            b"~7-2",
        ],
        [
            *_words(b"-|.closed|0|1|18446744073709551615|earliest|now|~| |\xd9\xa1|\xc2\xb2"),
            b"1" * 5000,
        ],
    ),
    "redis-replies": Target(
        read_redis,
        [
            b"*3\r\n$7\r\nmessage\r\n$5\r\np:c:a\r\n$"
            + b"%d\r\n" % (len(_SENT) + 13)
            + b"1 7-3 7-2 99 "
            + _SENT
            + b"\r\n",
            b"*3\r\n$9\r\nsubscribe\r\n$5\r\np:c:a\r\n:1\r\n+OK\r\n-ERR no\r\n$-1\r\n*-1\r\n",
            b"*0\r\n\0",
            b"%1\r\n%1\r\n+a\r\n:1\r\n:1\r\n",
            b"#f\r\n:1\r\n",
            b"*0\r\n",
            b"*3\r\n*0\r\n*0\r\n*0\r\n",
            b"*1\r\n$9\r\nsubscribe\r\n",
            b"%1\r\n+a\r\n:1\r\n,1.5\r\n#t\r\n_\r\n(12345\r\n~1\r\n+a\r\n>1\r\n+x\r\n",
        ],
        _words(
            b"*3\r\n|*0\r\n|*-1\r\n|$-1\r\n|$7\r\nmessage\r\n|$5\r\np:c:a\r\n|"
            b"$9\r\nsubscribe\r\n|:1\r\n|+OK\r\n|-ERR a\r\n|\r\n|*|$|%1\r\n|~1\r\n|,nan\r\n|"
            b"_\r\n|9999999999|$0\r\n\r\n|>3\r\n"
        ),
    ),
    "redis-messages": Target(
        read_message,
        [
            b"1 7-3 ~7-2 99 " + _SENT,
            b"1 7-3 7-2 99 0 - \ndata: x\n\n",
            b"2 7-3 7-2 something else\n\n",
            b"1 7-3 7-2 99 0 - \ndata: x\n\nid: 1\ndata: y\n\n",
            b"1 7-3 7-2 99 0 - \ndata: x",
            b"1 7-03 7-2 99 0 - \ndata: x\n\n",
            b"7-3 10 0 5 1",
            _TOLD,
        ],
        [
            *_words(b"1 |2 |7-3 |~7-2 |0 - |1 a,b k|\n|data: x\n\n|id: 1\n|\r|-|\xff|\x00"),
            b"9" * 30,
            b"f" * 40,
        ],
    ),
    "workers": Target(
        read_word,
        [
            _word(commands.ADD_CHANNEL, commands.OfClient("c", "a", "now")),
            _word(commands.STATUS, commands.OfAll()),
            messages.encode(messages.told("0123abcd", 7, commands.ClosedStreams(3))),
            messages.encode(messages.told("0123abcd", 7, commands.NodeStatus("n"))),
            messages.encode(messages.refused("0123abcd", 7, BadRequest("No.", missing=3))),
            messages.encode(messages.not_understood("0123abcd", 7)),
        ],
        [
            *_words(
                b"\x81\xa1v\x01|\xa4kind\xa7request|\xa4kind\xa6answer|\xa2id\x07|\xc0|\xff|"
                b"\xa6worker\xa80123abcd|\xa6status|\xcc\xc8|\xa5asked\x80|\x80"
            ),
            b"\x91" * 99,
        ],
    ),
    "publish-json": Target(
        publish_json,
        [
            b'{"channel":"a","data":"x","event":"t","retry":1,"key":"k","id":"1"}',
            b'{"channels":["a","b","a"],"data":{"b":[1,2.50,null]}}',
            b'{"user":"\\u00e9 x","data":"\\ud83d\\ude00"}',
            b'{"broadcast":true,"data":""}',
            b'{"channel":"a","end":true}',
            b'{"channel":"a","data":[21e999]}',
            b'{"channel":"a","data":"\\ud800"}',
            b'{"channel":"a","data":"' + b"\\r" * 60 + b'"}',
        ],
        _words(
            b'{"channel":"a",|"data":|"x"|}|"channels":[|"a",|"user":"u",|'
            b'"broadcast":true,|"event":"gap",|"event":"|\\n|\\u0000|\\ud800|[|null|'
            b'1e999|"end":true|"retry":-1|"id":"1",|"key":"| |,|\xff'
        ),
    ),
    "publish-lines": Target(
        publish_lines,
        [
            b'{"channel":"a","data":1}\n\n{"channel":"b c","data":1}\n' * 2,
            b'{"channel":"b","data":"2"}\r\n\x0b\n{}\n\xff\n' * 3,
        ],
        _words(b'{"channel":"a","data":"x"}|\n|\r|\n\n| |{|}|"data":|\x0b|\xff'),
    ),
    "publish-raw": Target(
        publish_raw,
        [
            b"a?event=t&retry=5&id=1&key=k&end=true\nx\r\ny",
            b"a%2fb\n\xe2\x82\xac",
            b"%0a?event=%0d\nx",
            b"a\n\xff",
        ],
        _words(
            b"a|?|&|event=|retry=|end=|id=|key=|%00|%0a|%e2%82%ac|%ff|\n|\r|gap|true|+|=|"
            b"global|user:1"
        ),
    ),
    "stream-asked": Target(
        ask_for_stream,
        [
            b'{"channels":["a","a//b%+"],"user":"\\u00e9 &","lastEventId":"1-1","annotate":true}',
            b'{"channels":["global"],"replay":2.0}',
            b'{"user":"\\ud800"}',
            b'{"user":"\\u0000\\r\\n","channels":["b","b"]}',
            b'{"a\\r\\nb":1}',
            b'{"' + b"x" * 5000 + b'":1}',
            b'{"channels":["user:7"],"replay":1e999}',
        ],
        _words(
            b'{"channels":[|"a",|"a"]|,|"user":"u"|}|"annotate":true|"lastEventId":"|"|"replay":1|'
            b"null|%2b|+|&|#|\\n|\\ud800|\xc3\xa9|\xff|-|.|["
        ),
    ),
    "push": Target(
        push,
        [
            b'{"text":"a"}\n{"event":"token","data":{"text":"\\u00e9\\n"}}\n',
            b'{"event":"tool_use","data":{"id":"1","name":"n","input":{"a":[1,2.50]}}}\r\n',
            b'\n{"event":"complete","data":{"reason":"r","usage":{"inputTokens":1}}}',
            b'{"event":"error","data":{"code":"c","message":"m","retryable":true,"status":1}}',
            b'{"event":"x y","data":"a\\r\\nb"}\n{"event":"gap","data":1}\n' + b"x" * 1300,
        ],
        _words(
            b'{"text":"|"}|{"event":"|","data":|{|}|\n|\r\n|token|tool_use|complete|error|start|'
            b'"reason":"|"code":"|"message":"|\\n|\\u0000|\\ud800|\xff|\xc3\xa9|[|null| |,|1e999'
        ),
    ),
    "requests": Target(
        read_requests,
        [
            _GET * 2,
            _POST + b"Content-Length: 5\r\nConnection: x-a\r\nX-A: b\r\n\r\nhello" + _GET,
            _POST + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n" + _GET,
            b"\r\nPUT / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
            _POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nExpect: 100-continue\r\n\r\n",
            _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ],
        _words(
            b"GET |POST |/|http://x| HTTP/1.1\r\n| HTTP/1.0\r\n|Host: x\r\n|\r\n|"
            b"Content-Length: |5\r\n|Transfer-Encoding: chunked\r\n|0\r\n\r\n|\n|\r|\0|"
            b"Connection: close\r\n|Upgrade: h2c\r\n|Connection: upgrade\r\n| x|\t|\x85|"
            b"Expect: 100-continue\r\n|5\r\nhello\r\n|;a=b|Connection: host\r\n|:|,"
        ),
    ),
    "upstream": Target(
        normalize,
        [
            b"\0" + b"".join(vendors.chat_blocks(vendors.Answer(calls=(vendors.Call(),)))),
            b"\1" + b"".join(vendors.response_blocks(vendors.Answer(calls=(vendors.Call(),)))),
            b"\2" + b"".join(vendors.completion_blocks(vendors.Answer())),
            b"\3" + b"".join(vendors.anthropic_blocks(vendors.Answer(calls=(vendors.Call(),)))),
            b"\0" + vendors.chat_error_block(429) + vendors.DONE,
            b"\1" + vendors.response_failed_block(vendors.Answer(), "server_error", 1),
            b"\3" + vendors.anthropic_error_block(529),
            b'\0data: {"choices":[{"delta":{"tool_calls":[{"id":"a"}]}}]}\n\n',
            b'\1event: response.output_item.done\ndata: {"item":{"type":"custom_tool_call"}}\n\n',
            b'\3event: content_block_stop\ndata: {"index":0}\n\n',
            b'\0data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n',
            b"\0data: " + b"[" * 2000 + b"\n\n",
        ],
        _words(
            b'\0|\1|\2|\3|data: |event: |\n\n|\n|\r|[DONE]|{"choices":[{"delta":{|"content":"a"|'
            b'"tool_calls":[{"index":0,|"id":"a"|"function":{"name":"f","arguments":"{}"}|}}]}|'
            b'"finish_reason":"stop"|{"error":{"code":|"usage":{|message_stop|error|'
            b'content_block_start|content_block_delta|{"index":0,"delta":{"type":"text_delta",'
            b'"text":"a"}}|"content_block":{"type":"tool_use"}|response.completed|'
            b'{"response":{"usage":null}}|response.output_text.delta|{"delta":"a"}|null|1e999|\xff'
        ),
    ),
}
