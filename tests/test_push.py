"""Pushing: an application feeds a token stream line by line, breaks off, and goes on."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from socket import IPPROTO_TCP, SO_KEEPALIVE, SOL_SOCKET, TCP_USER_TIMEOUT
from typing import Any

import msgspec
import pytest
import trio
from certificates import Files
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Block, Gateway, Response, Wire, request, running, running_over_tls, until
from tokens import SECRET, bearer, token

from gateway.bus.memory import MemoryBus
from gateway.config import ChannelRule
from gateway.errors import BadRequest, ContentTooLarge, GatewayError, Unavailable
from gateway.event import Event
from gateway.http1_render import chunk
from gateway.policy import Policy
from gateway.position import Position
from gateway.relay import outlet, pushes
from gateway.relay.push import LINE_FRAMING, Lines, Mark, mark_of, read_line

JSON = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is sent, nothing fails inside."""
    yield
    assert [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR] == []


async def opened(gateway: Gateway, *headers: bytes, **document: object) -> str:
    """A new token stream; its id."""
    body = msgspec.json.encode(document)
    answer = await gateway.ask(request("POST", "/streams", JSON, *headers, body=body))
    assert answer.status == 201, answer.body
    return str(answer.json["id"])


def text(*tokens: str) -> bytes:
    return b"".join(msgspec.json.encode({"text": each}) + b"\n" for each in tokens)


async def pushed(
    gateway: Gateway, id: str, body: bytes, query: str = "", *headers: bytes, version: str = "1.1"
) -> Response:
    """The answer to a body that is there as a whole."""
    target = f"/streams/{id}/events{query}"
    return await gateway.ask(request("POST", target, *headers, body=body, version=version))


class Pushing:
    """A body that is sent bit by bit."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    async def send(self, lines: bytes) -> None:
        await self.wire.send(chunk(lines))

    async def end(self) -> Response:
        await self.wire.send(b"0\r\n\r\n")
        return await self.wire.response()


async def pushing(gateway: Gateway, id: str, query: str = "", *headers: bytes) -> Pushing:
    wire = await gateway.connect()
    await wire.send(request("POST", f"/streams/{id}/events{query}", CHUNKED, *headers))
    return Pushing(wire)


async def watching(gateway: Gateway, id: str, *headers: bytes) -> Wire:
    wire = await gateway.open(f"/events/stream:{id}?lastEventId=earliest", *headers)
    await wire.opened()
    start = await wire.event()
    assert (start.event, start.json["id"]) == ("start", id)
    return wire


def told(blocks: Sequence[Block]) -> list[str]:
    """What a stream has told, with its end: tokens as their text, all else as type and data."""
    assert blocks[-1].event == "closed"
    return [
        str(block.json["text"]) if block.event == "token" else f"{block.event} {block.data}"
        for block in blocks[:-1]
        if block.event != "keepalive"
    ]


END = 'complete {"reason":"end","usage":null}'
LOST = (
    'error {"code":"producer-lost","message":"Whoever produced the stream is gone.",'
    '"retryable":false,"status":null}'
)


# --- lines --------------------------------------------------------------------------------------


def one(line: str) -> tuple[str | None, str]:
    event = read_line(line.encode(), "c", Mark(), 1000).event
    return event.type, event.data


UNDERSTOOD = {
    '{"text":"a"}': ("token", '{"text":"a"}'),
    '{"text":""}': ("token", '{"text":""}'),
    ' {"event": "token", "data": {"text": "\\u00e9\\n"}} ': ("token", '{"text":"é\\n"}'),
    '{"event":"tool_use","data":{"id":"1","name":"n","input":{"b":[1,2.50]}}}': (
        "tool_use",
        '{"id":"1","name":"n","input":{"b":[1,2.50]}}',
    ),
    '{"event":"complete"}': ("complete", '{"reason":"end","usage":null}'),
    '{"event":"complete","data":{"reason":"length","usage":{"outputTokens":3}}}': (
        "complete",
        '{"reason":"length","usage":{"inputTokens":null,"outputTokens":3}}',
    ),
    '{"event":"error","data":{"code":"ours","message":"No."}}': (
        "error",
        '{"code":"ours","message":"No.","retryable":false,"status":null}',
    ),
    '{"event":"progress","data":{"step": 1}}': ("progress", '{"step": 1}'),
    '{"event":"progress","data":"a\\nb"}': ("progress", "a\nb"),
    '{"event":"progress","data":null}': ("progress", "null"),
}


@pytest.mark.parametrize(("line", "event"), UNDERSTOOD.items(), ids=range(len(UNDERSTOOD)))
def test_a_line_is_an_event(line: str, event: tuple[str, str]) -> None:
    assert one(line) == event


REFUSED = {
    "{": "This is no JSON in UTF-8: Input data was truncated.",
    "[]": "This is no event of a token stream: Expected `object`, got `array`.",
    "{}": 'A line is {"text": ...}, or {"event": ..., "data": ...}.',
    '{"text":1}': "This is no event of a token stream: Expected `str`, got `int` - at `$.text`.",
    '{"text":"a","data":1}': "A line has text alone, or event and data.",
    '{"txt":"a"}': "This is no event of a token stream: Object contains unknown field `txt`.",
    '{"event":"progress"}': "An event has data; this one has none.",
    '{"event":"token","data":"a"}': (
        "This is no event of a token stream: Expected `object`, got `str`."
    ),
    '{"event":"start","data":1}': (
        "The event type start is the gateway's own, as are closed, connected, dropped, gap,"
        " keepalive, reconnect, snapshot; take another."
    ),
    '{"event":"a\\nid: 1","data":1}': "event must not contain a line break or a NUL character.",
    '{"event":"","data":1}': "event has 1 to 200 characters, this one 0.",
    '{"event":"complete","data":{"reason":"\\n"}}': (
        "reason must not contain a line break or a NUL character."
    ),
    '{"event":"error","data":{"code":"x"}}': (
        "This is no event of a token stream: Object missing required field `message`."
    ),
    '{"text":"\\ud800"}': "This is no JSON in UTF-8: ",
    '{"event":"a","data":' + "[" * 5000: "The JSON is nested too deeply.",
}


@pytest.mark.parametrize(("line", "why"), REFUSED.items(), ids=range(len(REFUSED)))
def test_a_line_that_is_no_event_is_refused_with_a_sentence(line: str, why: str) -> None:
    with pytest.raises(BadRequest) as refused:
        one(line)
    assert refused.value.detail.startswith(why)


def test_an_event_that_is_too_large_as_it_would_be_sent_is_refused() -> None:
    assert one('{"text":"%s"}' % ("a" * 982))
    with pytest.raises(ContentTooLarge):
        one('{"text":"%s"}' % ("a" * 983))
    with pytest.raises(ContentTooLarge):
        one('{"event":"a","data":"%s"}' % ("\\n" * 150))


def in_lines(pieces: Sequence[bytes], most: int = 100) -> list[bytes] | str:
    lines = Lines(most)
    found: list[bytes] = []
    try:
        for piece in pieces:
            found += lines.receive(piece)
        found += lines.end()
    except ContentTooLarge as error:
        return error.detail
    return found


@given(
    st.binary(max_size=40) | st.lists(st.sampled_from([b"a", b"\n", b" ", b"\r\n"])).map(b"".join)
)
@settings(deadline=None)
def test_lines_are_the_same_however_they_come(raw: bytes) -> None:
    expected = [line for line in raw.split(b"\n") if line and not line.isspace()]
    assert in_lines([raw]) == expected
    assert in_lines([raw[i : i + 1] for i in range(len(raw))]) == expected
    for cut in range(len(raw)):
        assert in_lines([raw[:cut], raw[cut:]]) == expected


def test_a_line_is_bounded_however_it_comes() -> None:
    most = 100 + LINE_FRAMING
    for end in (b"\n", b""):
        longest = b"a" * most
        assert in_lines([longest + end]) == [longest]
        assert in_lines([longest[:50], longest[50:], end]) == [longest]
        for pieces in ([longest + b"a" + end], [longest, b"a" + end], [b"b\n" + longest + b"a"]):
            assert in_lines(pieces) == f"A line has at most {most} bytes (max_event_bytes)."


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_no_line_raises_anything_else(line: bytes) -> None:
    try:
        taken = read_line(line, "c", Mark(3, 100), 50)
    except (BadRequest, ContentTooLarge):
        return
    assert taken.mark.lines == 4
    assert taken.mark.bytes > 100


async def test_how_far_a_stream_is_stands_in_its_last_events() -> None:
    async with running() as gateway:
        mark = Mark()
        assert mark_of(await gateway.node.bus.newest("c", 9)) == mark
        for each in range(3):
            taken = read_line(text(str(each)), "c", mark, 100)
            mark = taken.mark
            await gateway.node.bus.publish([taken.event, Event(("c",), "x", key="9-x")])
        assert mark_of(await gateway.node.bus.newest("c", 9)) == mark
        assert mark.lines == 3


# --- bodies -------------------------------------------------------------------------------------


async def test_lines_are_published_as_they_come_and_the_end_of_the_body_completes() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        body = await pushing(gateway, id)
        for each in ("Hel", "lo", " world"):
            await body.send(text(each))
            assert (await viewer.event()).json == {"text": each}
        answer = await body.end()
        assert (answer.status, answer.json) == (200, {"id": id, "next": 3, "state": "complete"})
        assert answer.header("cache-control") == "no-store"
        assert told(await viewer.blocks()) == [END]
        assert gateway.node.relays.statistics().ended["complete"]["end"] == 1


WAYS = {
    "with a length": ("", (), "1.1"),
    "spelled otherwise": ("/%73treams", (), "1.1"),
    "over HTTP/1.0": ("", (), "1.0"),
}


@pytest.mark.parametrize(("path", "headers", "version"), WAYS.values(), ids=WAYS)
async def test_a_whole_body_is_taken_whichever_way_it_comes(
    path: str, headers: tuple[bytes, ...], version: str
) -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        target = f"{path or '/streams'}/{id}/events"
        lines = text("a", "b") + b"\n \r\n" + text("c").rstrip()
        answer = await gateway.ask(request("POST", target, *headers, body=lines, version=version))
        assert (answer.status, answer.json["next"]) == (200, 3)
        assert told(await viewer.blocks()) == ["a", "b", "c", END]


async def test_a_connection_is_kept_after_a_body_that_was_read_to_its_end() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        wire = await gateway.connect()
        first = request("POST", f"/streams/{id}/events?end=false", CHUNKED)
        second = request("POST", f"/streams/{id}/events?seq=1", body=text("b"))
        await wire.send(first + chunk(text("a")) + b"0\r\n\r\n" + second)
        await wire.send(request("GET", "/healthz"))
        answers = [await wire.response() for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 200]
        assert [answer.json.get("next") for answer in answers[:2]] == [1, 2]


async def test_a_stream_goes_on_in_further_bodies_and_is_completed_by_one_that_is_empty() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        for seq in range(3):
            answer = await pushed(gateway, id, text(str(seq)), f"?end=false&seq={seq}")
            assert answer.json == {"id": id, "next": seq + 1, "state": "streaming"}
        answer = await gateway.ask(request("POST", f"/streams/{id}/events?seq=3"))
        assert answer.json == {"id": id, "next": 3, "state": "complete"}
        assert told(await viewer.blocks()) == ["0", "1", "2", END]
        assert gateway.node.relays.statistics().resumed == 3


async def test_lines_that_were_taken_already_are_skipped() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        lines = [text(str(each)) for each in range(6)]
        for first, count in ((0, 2), (0, 3), (1, 4), (2, 2)):
            body = b"".join(lines[first : first + count])
            answer = await pushed(gateway, id, body, f"?seq={first}&end=false")
            assert answer.status == 200
        assert answer.json["next"] == 5
        assert (await pushed(gateway, id, b"".join(lines))).json["next"] == 6
        assert told(await viewer.blocks()) == [*"012345", END]


async def test_a_hole_is_refused_with_the_number_that_is_expected() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        await pushed(gateway, id, text("a"), "?end=false")
        answer = await pushed(gateway, id, text("c"), "?seq=2")
        assert (answer.status, answer.json["next"], answer.json["state"]) == (409, 1, "streaming")
        assert answer.detail == "Line 2 would leave a hole behind line 1."
        assert (await pushed(gateway, id, text("b"), "?seq=1")).json["next"] == 2
        assert told(await viewer.blocks()) == ["a", "b", END]


async def test_a_body_that_ends_before_what_was_taken_completes_nothing() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        await pushed(gateway, id, text("a", "b"), "?end=false")
        answer = await pushed(gateway, id, text("c"))
        assert (answer.status, answer.json["next"], answer.json["state"]) == (409, 2, "streaming")
        assert "seq" in answer.detail
        assert (await pushed(gateway, id, text("c"), "?seq=2")).json["state"] == "complete"


async def test_a_broken_body_may_be_gone_on_with() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        expected: list[str] = []
        sent = itertools.count()
        for ending in (b"", b'{"te', b'{"text":"x"}'):
            first = len(expected)
            body = await pushing(gateway, id, f"?seq={first}")
            for _ in range(100):
                each = str(next(sent))
                expected.append(each)
                await body.send(text(each))
            await body.wire.send(b"5000\r\n" + ending)
            assert [(await viewer.event()).json["text"] for _ in range(100)] == expected[first:]
            await body.wire.aclose()
        await until(lambda: not gateway.node.relays.running)
        answer = await pushed(gateway, id, b"", f"?seq={len(expected)}")
        assert answer.json == {"id": id, "next": 300, "state": "complete"}
        assert told(await viewer.blocks()) == [END]


async def test_whoever_ends_his_side_within_a_body_is_told_where_to_go_on() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        body = await pushing(gateway, id)
        await body.send(text("a", "b"))
        await body.wire.socket_stream.send_eof()
        answer = await body.wire.response()
        assert (answer.status, answer.json["next"]) == (400, 2)
        assert answer.header("connection") == "close"


@pytest.mark.parametrize("taken", [0, 2])
async def test_viewers_are_told_when_nobody_comes_back_in_time(taken: int) -> None:
    async with running(push_lease=0.2) as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        if taken:
            body = await pushing(gateway, id)
            await body.send(text("a") * taken)
            for _ in range(taken):
                await viewer.event()
            await body.wire.aclose()
        assert told(await viewer.blocks()) == [LOST]
        answer = await pushed(gateway, id, text("a"), f"?seq={taken}")
        assert (answer.status, answer.json["next"], answer.json["state"]) == (409, taken, "error")


BROKEN = {
    "no JSON": (b"{\n", 400),
    "no event": (b"{}\n", 400),
    "a line that is too long": (b'{"text":"' + b"a" * 5000 + b'"}\n', 413),
    "a line without end": (b'{"text":"' + b"a" * 5000, 413),
    "an event that is too large": (b'{"text":"' + b"a" * 2040 + b'"}\n', 413),
}


@pytest.mark.parametrize(("broken", "status"), BROKEN.values(), ids=BROKEN)
async def test_a_malformed_line_is_named_and_nothing_behind_it_is_taken(
    broken: bytes, status: int
) -> None:
    async with running(max_event_bytes=2048) as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        body = await pushing(gateway, id)
        await body.send(text("a", "b") + broken + text("c"))
        answer = await body.wire.response()
        assert (answer.status, answer.json["line"], answer.json["next"]) == (status, 2, 2)
        assert answer.json["state"] == "streaming"
        assert answer.detail.startswith("Line 2: ")
        assert answer.header("connection") == "close"
        assert await body.wire.ended()
        assert (await pushed(gateway, id, text("c"), "?seq=2")).json["next"] == 3
        assert told(await viewer.blocks()) == ["a", "b", "c", END]


async def test_a_chunk_that_breaks_the_framing_ends_the_body_and_not_the_stream() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        body = await pushing(gateway, id)
        await body.wire.send(chunk(text("a")) + b"zz\r\n")
        answer = await body.wire.response()
        assert (answer.status, answer.json["next"], answer.json["state"]) == (400, 1, "streaming")
        assert (await pushed(gateway, id, text("a", "b"))).json["next"] == 2
        assert told(await viewer.blocks()) == ["a", "b", END]


LAST = {
    "complete": ('{"event":"complete","data":{"reason":"length"}}', "complete"),
    "error": ('{"event":"error","data":{"code":"ours","message":"No."}}', "error"),
}


@pytest.mark.parametrize(("line", "state"), LAST.values(), ids=LAST)
async def test_a_line_may_end_the_stream_before_its_body_does(line: str, state: str) -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        body = await pushing(gateway, id)
        await body.send(text("a") + line.encode() + b"\n")
        first, last = told(await viewer.blocks())
        assert (first, last.partition(" ")[0]) == ("a", state)
        answer = await body.end()
        assert (answer.status, answer.json) == (200, {"id": id, "next": 2, "state": state})


async def test_ends_that_an_application_has_words_for_count_as_one() -> None:
    async with running() as gateway:
        for each in range(3):
            for line in (
                '{"event":"error","data":{"code":"ours-%d","message":"No."}}',
                '{"event":"complete","data":{"reason":"ours-%d"}}',
            ):
                await pushed(gateway, await opened(gateway), (line % each).encode())
        ended = gateway.node.relays.statistics().ended
        assert [ended[state]["other"] for state in ("error", "complete")] == [3, 3]


async def test_a_line_behind_the_end_is_refused() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        answer = await pushed(gateway, id, text("a") + b'{"event":"complete"}\n' + text("b"))
        assert (answer.status, answer.json["next"], answer.json["state"]) == (409, 2, "complete")
        assert told(await viewer.blocks()) == ["a", END]


@pytest.mark.parametrize("last", [b"", b'{"event":"complete"}\n'])
async def test_what_is_sent_again_after_the_end_is_answered_as_before(last: bytes) -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        answers = [await pushed(gateway, id, text("a", "b") + last) for _ in range(3)]
        assert {answer.status for answer in answers} == {200}
        assert {answer.body for answer in answers} == {answers[0].body}
        for more in (text("a", "b", "c") + last, text("a")):
            answer = await pushed(gateway, id, more)
            assert (answer.status, answer.json["state"]) == (409, "complete")
        assert told(await viewer.blocks()) == ["a", "b", END]


# --- who feeds it, and until when ---------------------------------------------------------------


async def test_a_second_producer_takes_over_from_the_first() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        first = await pushing(gateway, id)
        await first.send(text("a", "b"))
        assert [(await viewer.event()).json["text"] for _ in range(2)] == ["a", "b"]
        second = await pushing(gateway, id, "?seq=1")
        await second.send(text("b", "c"))
        answer = await first.wire.response()
        assert (answer.status, answer.json["next"], answer.json["state"]) == (409, 2, "streaming")
        assert answer.detail == "Another request feeds the stream by now."
        assert await first.wire.ended()
        assert (await second.end()).json["next"] == 3
        assert told(await viewer.blocks()) == ["c", END]


async def test_many_producers_of_the_same_lines_publish_each_once() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        lines = text(*map(str, range(500)))
        statuses: list[int] = []

        async def push_all() -> None:
            statuses.append((await pushed(gateway, id, lines)).status)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(push_all)
        assert set(statuses) <= {200, 409}
        assert 200 in statuses
        assert told(await viewer.blocks()) == [*map(str, range(500)), END]


async def test_a_stop_is_told_to_the_producer_at_once() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        body = await pushing(gateway, id)
        await body.send(text("a"))
        await viewer.event()
        stopped = await gateway.ask(request("DELETE", f"/streams/{id}"))
        assert (stopped.status, stopped.json["state"]) == (200, "stopped")
        answer = await body.wire.response()
        assert (answer.status, answer.json["next"], answer.json["state"]) == (409, 1, "stopped")
        assert told(await viewer.blocks()) == ['complete {"reason":"stopped","usage":null}']
        late = await pushed(gateway, id, text("b"), "?seq=1")
        assert (late.status, late.json["state"]) == (409, "stopped")


async def test_a_node_that_leaves_sends_producers_on() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        body = await pushing(gateway, id)
        await body.send(text("a"))
        assert (await viewer.event()).json == {"text": "a"}
        await gateway.node.pushes.leave()
        answer = await body.wire.response()
        assert (answer.status, answer.json["next"], answer.json["state"]) == (503, 1, "streaming")
        assert answer.json["reason"] == "draining"
        assert answer.header("connection") == "close"
        assert answer.header("retry-after") is not None
        found = await gateway.node.relays.registry.find(id)
        assert found is not None
        assert found.owner is None
        assert (await pushed(gateway, id, text("b"), "?seq=1")).json["reason"] == "draining"
        gateway.node.pushes.leaving = False
        assert (await pushed(gateway, id, text("b"), "?seq=1")).status == 200
        assert told(await viewer.blocks()) == ["b", END]


LIMITS = {
    "tokens": ({"stream_events": 6}, 4, "limit-tokens"),
    "bytes": ({"stream_bytes": 8192 + 1000}, 2, "limit-bytes"),
}


@pytest.mark.parametrize(("settings", "taken", "code"), LIMITS.values(), ids=LIMITS)
async def test_what_history_cannot_hold_ends_the_stream_with_an_error(
    settings: dict[str, Any], taken: int, code: str
) -> None:
    async with running(**settings) as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        answer = await pushed(gateway, id, text("a"), "?end=false")
        answer = await pushed(gateway, id, text("a") * 10)
        assert (answer.status, answer.json["next"], answer.json["state"]) == (409, taken, "error")
        *tokens, last = told(await viewer.blocks())
        assert tokens == ["a"] * taken
        assert f'"code":"{code}"' in last


async def test_a_stream_ends_with_its_time_though_its_producer_be_silent() -> None:
    async with running(push_seconds=0.3) as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        body = await pushing(gateway, id)
        await body.send(text("a"))
        answer = await body.wire.response()
        assert (answer.status, answer.json["next"], answer.json["state"]) == (409, 1, "error")
        first, last = told(await viewer.blocks())
        assert (first, '"code":"limit-duration"' in last) == ("a", True)


class Held(MemoryBus):
    """It takes nothing while it is held, and says of so many calls that it does not know."""

    held: trio.Event | None = None
    waits = False
    uncertain = 0

    async def publish(
        self, events: Sequence[Event], patience: float | None = None
    ) -> Sequence[Position | GatewayError]:
        if self.held is not None:
            self.waits = True
            await self.held.wait()
        results = await super().publish(events, patience)
        if self.uncertain:
            self.uncertain -= 1
            return [Unavailable("Not known.", outcome="unknown") for _ in results]
        return results


async def test_while_much_waits_for_the_bus_the_body_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.node.MemoryBus", Held)
    monkeypatch.setattr(outlet, "WAITING_EVENTS", 10)
    async with running(policy="catch-up", history_events=1000) as gateway:
        bus = gateway.node.bus
        assert isinstance(bus, Held)
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        body = await pushing(gateway, id)
        bus.held = trio.Event()
        large = "a" * 10_000
        sent = 0
        with trio.move_on_after(0.3):
            while sent < 2000:
                await body.wire.stream.send_all(chunk(text(large)))
                sent += 1
        assert sent < 2000
        assert 10 <= gateway.node.relays.statistics().waiting_events <= 11
        bus.held.set()
        bus.held = None
        for _ in range(sent):
            assert len(str((await viewer.event()).json["text"])) == 10_000
        await body.wire.aclose()


@pytest.mark.parametrize("last", [b"", b'{"event":"complete"}\n'])
async def test_where_it_is_not_known_what_was_published_the_producer_is_told_to_go_on(
    monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    monkeypatch.setattr("gateway.node.MemoryBus", Held)
    async with running() as gateway:
        bus = gateway.node.bus
        assert isinstance(bus, Held)
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        bus.uncertain = 1
        body = await pushing(gateway, id)
        await body.send(text("a", "b"))
        answer = await body.wire.response()
        assert (answer.status, answer.json["next"], answer.json["state"]) == (503, 2, "streaming")
        assert answer.json["reason"] == "bus"
        bus.uncertain = 1
        lines = text("a", "b", "c") + last
        answer = await pushed(gateway, id, lines)
        assert answer.status in (409, 503)
        answer = await pushed(gateway, id, lines)
        assert (answer.status, answer.json["state"]) == (200, "complete")
        assert told(await viewer.blocks()) == ["a", "b", "c", END]


async def test_what_was_taken_and_is_not_known_to_be_published_is_not_said_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.node.MemoryBus", Held)
    async with running() as gateway:
        bus = gateway.node.bus
        assert isinstance(bus, Held)
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        bus.held = trio.Event()
        body = await pushing(gateway, id)
        await body.send(text("a"))
        await until(lambda: bus.waits)
        await body.send(text("b", "c"))
        await until(lambda: gateway.node.relays.statistics().waiting_events == 3)
        await body.wire.send(b"0\r\n\r\n")
        bus.uncertain = 1
        bus.held.set()
        answer = await body.wire.response()
        assert (answer.status, answer.json["next"]) == (503, 1)
        answer = await pushed(gateway, id, text("b", "c", "d"), "?seq=1")
        assert (answer.status, answer.json["next"]) == (200, 4)
        assert told(await viewer.blocks()) == ["a", "b", "c", "d", END]


async def test_nothing_is_published_while_the_stream_may_be_somebody_elses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as gateway:
        relays = gateway.node.relays
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        body = await pushing(gateway, id)
        await body.send(text("a"))
        assert (await viewer.event()).json == {"text": "a"}
        monkeypatch.setattr(relays.registry, "sure_for", lambda: 0.5)
        await body.send(text("b"))
        await until(lambda: relays.statistics().waiting_events == 1)
        assert len(await gateway.node.bus.newest(f"stream:{id}", 9)) == 2
        monkeypatch.setattr(relays.registry, "sure_for", lambda: 4.0)
        assert (await viewer.event()).json == {"text": "b"}
        await body.send(text("c"))
        relays.running[id].lose()
        answer = await body.wire.response()
        assert (answer.status, answer.json["state"]) == (503, "streaming")


async def test_what_the_bus_has_lost_while_the_stream_may_be_somebody_elses_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the rest, with its end, is to be published at once behind that."""
    async with running() as gateway:
        relays = gateway.node.relays
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        body = await pushing(gateway, id)
        await body.send(text("a"))
        assert (await viewer.event()).json == {"text": "a"}
        monkeypatch.setattr(relays.registry, "sure_for", lambda: 0.5)
        await body.send(text("b"))
        await until(lambda: relays.statistics().waiting_events == 1)
        monkeypatch.setattr(relays.running[id].outlet, "_vouches", lambda after: False)
        monkeypatch.setattr(relays.registry, "sure_for", lambda: 4.0)
        ended = await body.end()
        assert (ended.status, ended.json["state"]) == (409, "error")
        assert [(await viewer.event()).event for _ in range(2)] == ["error", "closed"]


async def test_a_body_is_asked_for_once_it_is_wanted_and_not_otherwise() -> None:
    expect = b"Expect: 100-continue\r\n"
    async with running() as gateway:
        id = await opened(gateway)
        body = await pushing(gateway, id, "", expect)
        assert (await body.wire.response()).status == 100
        await body.send(text("a"))
        assert (await body.end()).json["next"] == 1
        id = await opened(gateway)
        for target, status in ((id, 409), ("nothing", 404)):
            body = await pushing(gateway, target, "?seq=7", expect)
            answer = await body.wire.response()
            assert (answer.status, answer.header("connection")) == (status, "close")


async def test_an_application_may_call_its_own_end_a_stop() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        answer = await pushed(
            gateway, id, text("a") + b'{"event":"complete","data":{"reason":"stopped"}}\n'
        )
        assert (answer.status, answer.json["next"], answer.json["state"]) == (200, 2, "stopped")


async def test_a_silent_producer_is_waited_for_longer_than_other_bodies_are() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        body = await pushing(gateway, id)
        await body.send(text("a"))
        await until(lambda: gateway.node.relays.statistics().tokens == 1)
        for late in (1e6, 2e6):
            for connection in gateway.front._connections:
                connection.look(trio.current_time() + late)
        await body.send(text("b"))
        assert (await body.end()).json["next"] == 2


async def test_lines_without_end_are_bounded_over_all_bodies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pushes, "LINES_BYTES", 10_000)
    async with running() as gateway:
        bodies = [await pushing(gateway, await opened(gateway)) for _ in range(3)]
        for body in bodies[:2]:
            await body.send(b'{"text":"' + b"a" * 4000)
        await until(lambda: gateway.node.pushes.held_bytes == 2 * 4009)
        await bodies[2].send(text("a") + b'{"text":"' + b"a" * 4000)
        answer = await bodies[2].wire.response()
        assert (answer.status, answer.json["next"], answer.json["state"]) == (503, 1, "streaming")
        assert gateway.node.pushes.held_bytes == 2 * 4009
        await bodies[0].send(b'"}\n')
        assert (await bodies[0].end()).json["next"] == 1
        await bodies[1].wire.aclose()
        await until(lambda: not gateway.node.pushes.held_bytes)


async def test_a_peer_that_is_silent_is_probed() -> None:
    async with running() as gateway:
        body = await pushing(gateway, await opened(gateway))
        await body.send(text("a"))
        await until(lambda: gateway.node.relays.statistics().tokens == 1)
        [connection] = gateway.front._connections
        assert connection._sock is not None
        assert connection._sock.getsockopt(SOL_SOCKET, SO_KEEPALIVE)
        assert connection._sock.getsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT) == 60_000


async def test_over_tls_it_is_the_same(certificate: Files) -> None:
    async with running_over_tls(certificate) as gateway:
        id = await opened(gateway)
        viewer = await watching(gateway, id)
        first = await pushing(gateway, id)
        await first.send(text("a"))
        assert (await viewer.event()).json == {"text": "a"}
        second = await pushing(gateway, id, "?seq=1")
        await second.send(text("b"))
        answer = await first.wire.response()
        assert (answer.status, answer.json["next"]) == (409, 1)
        assert (await second.end()).json["next"] == 2
        assert told(await viewer.blocks()) == ["b", END]


@pytest.mark.parametrize("others", [3, 200])
async def test_what_others_publish_to_its_channel_counts_for_nothing(others: int) -> None:
    table = ChannelRule("chat.**", Policy.CATCH_UP, 1000, 1_000_000, 60.0)
    async with running(channels=(table,)) as gateway:
        id = await opened(gateway, channel="chat.1")
        await pushed(gateway, id, text("a", "b"), "?end=false")
        for each in range(others):
            await gateway.publish("chat.1", str(each), "?key=2026-11")
        assert (await gateway.ask(request("GET", f"/streams/{id}"))).json["next"] == 2
        answer = await pushed(gateway, id, text("a", "b", "c"))
        assert (answer.status, answer.json["next"]) == (200, 3)
        frames = await gateway.node.bus.newest("chat.1", 1000)
        assert len(frames) == 1 + 2 + others + 1 + 1


@pytest.mark.parametrize(
    ("events", "size", "code"), [(12, 1_000_000, "limit-tokens"), (1000, 13_000, "limit-bytes")]
)
async def test_a_channel_of_its_own_name_holds_it_whole_too(
    events: int, size: int, code: str
) -> None:
    table = ChannelRule("chat.**", Policy.CATCH_UP, events, size, 60.0)
    async with running(channels=(table,)) as gateway:
        id = await opened(gateway, channel="chat.1")
        answers = [
            await pushed(gateway, id, text(*"abcdefgh"), f"?end=false&seq={seq}") for seq in (0, 8)
        ]
        assert [each.status for each in answers] == [200, 409]
        assert answers[1].json["state"] == "error"
        frames = await gateway.node.bus.newest("chat.1", 1000)
        assert [b"event: start" in frames[0].block, frames[-1].end] == [True, True]
        assert code.encode() in frames[-1].block
        assert answers[1].json["next"] == len(frames) - 2


# --- who may ------------------------------------------------------------------------------------


async def test_whoever_opened_a_stream_pushes_or_an_administrator_and_nobody_else() -> None:
    async with running(jwt_key=SECRET) as gateway:
        own = bearer(token("app", publish=["x"]))
        id = await opened(gateway, own)
        target = f"/streams/{id}/events"
        for headers, status in (
            ((), 401),
            ((bearer(token("other", publish=["**"])),), 403),
            ((bearer(token("other", subscribe=["**"])),), 403),
            ((own,), 200),
            ((bearer(token("root", admin=True)),), 200),
        ):
            answer = await gateway.ask(
                request("POST", f"{target}?end=false", *headers, body=text("a"))
            )
            assert answer.status == status, answer.body


async def test_to_begin_one_counts_as_an_event_of_the_publishers() -> None:
    """Else a rate would not bound how much of Redis a publisher fills."""
    async with running(jwt_key=SECRET, publish_rate=2) as gateway:
        own = bearer(token("app", publish=["x"]))
        began = [
            await gateway.ask(request("POST", "/streams", JSON, own, body=b"{}")) for _ in range(3)
        ]
        assert [each.status for each in began] == [201, 201, 429]
        assert began[2].header("retry-after") == "1"
        assert gateway.node.statistics().refused["publish-rate"] == 1


async def test_a_page_of_elsewhere_pushes_nothing_to_a_node_without_keys() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        foreign = b"Origin: https://evil.example\r\n"
        for version in ("1.0", "1.1"):
            answer = await pushed(gateway, id, text("a"), "", foreign, version=version)
            assert answer.status == 403
        assert (await pushed(gateway, id, text("a"))).json["next"] == 1


ASKED = {
    "no such stream": ("/streams/nothing/events", 404),
    "no id": ("/streams//events", 404),
    "a path below": ("/streams/a/b/events", 404),
    "seq is no number": ("/streams/a/events?seq=x", 400),
    "seq is below 0": ("/streams/a/events?seq=-1", 400),
    "seq is endless": ("/streams/a/events?seq=" + "9" * 40, 400),
    "end is neither": ("/streams/a/events?end=maybe", 400),
    "no UTF-8": ("/streams/a/events?seq=%ff", 400),
}


@pytest.mark.parametrize(("target", "status"), ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_what_is_asked_for_wrongly_is_refused(target: str, status: int, version: str) -> None:
    async with running() as gateway:
        answer = await gateway.ask(request("POST", target, body=text("a"), version=version))
        assert answer.status == status
        assert answer.header("content-type") == "application/problem+json"


async def test_other_methods_have_no_such_route() -> None:
    async with running() as gateway:
        id = await opened(gateway)
        for method in ("GET", "PUT", "DELETE"):
            answer = await gateway.ask(request(method, f"/streams/{id}/events", body=text("a")))
            assert (answer.status, answer.header("allow")) == (405, "OPTIONS, POST")
