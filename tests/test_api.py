"""What each request means on the wire: one table through the front (HTTP/1.1) and the edge (1.0).

The front hands every HTTP/1.0 request to hypercorn and Quart, so the same bytes with another
version take the other way.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest
import trio
from running import (
    ACCEPT,
    HOST,
    Gateway,
    Response,
    Wire,
    is_position,
    joined,
    request,
    running,
)

from gateway.config import ChannelRule
from gateway.http1_head import MAX_FIELDS
from gateway.node import Node
from gateway.policy import Policy
from gateway.sse import MAX_RETRY_MS

VERSIONS = ("1.1", "1.0")

SMALL = {"max_event_bytes": 200, "max_body_bytes": 2048, "max_channels_per_client": 3}
"""Settings whose bounds a short request can break."""

NDJSON = b"Content-Type: application/x-ndjson\r\n"
JSON = b"Content-Type: application/json\r\n"
TEXT = b"Content-Type: text/plain\r\n"


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is asked, nothing fails inside."""
    yield
    assert [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR] == []


@dataclass
class Case:
    """A request that is refused: with which status, and what its sentence must say."""

    raw: bytes
    status: int
    says: str


def get(target: str, *headers: bytes) -> bytes:
    return request("GET", target, *headers)


def post(target: str, kind: bytes, body: bytes) -> bytes:
    return request("POST", target, kind, body=body)


def event(body: bytes) -> bytes:
    return post("/publish", JSON, body)


def described(**members: object) -> bytes:
    return event(msgspec.json.encode(members))


def as_version(raw: bytes, version: str) -> bytes:
    return raw.replace(b" HTTP/1.1\r\n", b" HTTP/%b\r\n" % version.encode(), 1)


def trace(node: Node) -> tuple[object, ...]:
    """All that a refused request must leave as it was."""
    bus, hub = node.bus.statistics(), node.hub.statistics()
    return bus.published, bus.channels, bus.history_bytes, bus.dedupe_entries, hub.opened


def assert_is_problem(response: Response, status: int, says: str) -> None:
    assert response.status == status, response
    assert response.header("content-type") == "application/problem+json"
    document = response.json
    assert document["status"] == status
    assert document["title"]
    assert says in str(document["detail"])
    assert "Traceback" not in str(document)
    if status == 503:
        assert response.header("retry-after") == "2"
    if status == 405:
        assert response.header("allow")


# --- what is refused ------------------------------------------------------------------------------

LONG = "n" * 201

REFUSED = {
    # streams
    "no channel and no user": Case(get("/events"), 400, "No channel is named"),
    "an empty channel": Case(get("/events?channel="), 400, "is empty"),
    "an empty path segment": Case(get("/events/"), 400, "is empty"),
    "an empty name in a list": Case(get("/events?channels=a,,b"), 400, "is empty"),
    "an illegal character": Case(get("/events?channel=a%20b"), 400, "contains ' '"),
    "a plus that is a space": Case(get("/events?channel=a+b"), 400, "contains ' '"),
    "a line break in a name": Case(get("/events/a%0Ab"), 400, "contains '\\n'"),
    "a NUL in a name": Case(get("/events/a%00b"), 400, "contains '\\x00'"),
    "a star": Case(get("/events/a.*"), 400, "contains '*'"),
    "an empty segment": Case(get("/events/a..b"), 400, "empty segment"),
    "a name that is too long": Case(get(f"/events/{LONG}"), 400, "the most is 200"),
    "a path that is not UTF-8": Case(get("/events/%FF"), 400, "not UTF-8"),
    "a query that is not UTF-8": Case(get("/events?channel=%FF"), 400, "not UTF-8"),
    "a surrogate in a query": Case(get("/events?channel=%ED%A0%80"), 400, "not UTF-8"),
    "too many channels": Case(get("/events?channels=a,b,c,d"), 400, "at most 3"),
    "too many query fields": Case(get("/events?" + "a&" * 1001), 400, "more than 1000 fields"),
    "somebody's user channel": Case(get("/events/user:42"), 400, "reserved"),
    "a user that is too long": Case(get(f"/events?user={LONG}"), 400, "too long"),
    "replay that is no number": Case(get("/events/a?replay=-1"), 400, "replay is a whole number"),
    "a broken replay beside a position": Case(
        get("/events/a?replay=x&lastEventId=now"), 400, "replay is a whole number"
    ),
    "replay in other digits": Case(get("/events/a?replay=%D9%A1"), 400, "replay is a whole number"),
    # polls
    "a poll of no channel": Case(get("/poll"), 400, "as in /poll?channel=a"),
    "a poll of an empty path segment": Case(get("/poll/"), 400, "is empty"),
    "a poll of an illegal name": Case(get("/poll/a%20b"), 400, "contains ' '"),
    "a poll of too many channels": Case(get("/poll?channels=a,b,c,d"), 400, "at most 3"),
    "a poll with a broken replay": Case(get("/poll/a?replay=x"), 400, "replay is a whole number"),
    "a wait that is no number": Case(get("/poll/a?wait=soon"), 400, "from 0 to 60"),
    "a wait that is too long": Case(get("/poll/a?wait=61"), 400, "from 0 to 60"),
    "a wait with a large exponent": Case(get("/poll/a?wait=1e9"), 400, "from 0 to 60"),
    "polling with POST": Case(post("/poll/a", TEXT, b""), 405, "use GET"),
    "a path below a poll's": Case(get("/pollx"), 404, "nothing at /pollx"),
    # publishing one event
    "no JSON at all": Case(event(b""), 400, "no JSON in UTF-8"),
    "broken JSON": Case(event(b'{"channel": "a", "data": '), 400, "no JSON in UTF-8"),
    "JSON and more": Case(event(b'{"channel":"a","data":1} x'), 400, "no JSON in UTF-8"),
    "JSON of another shape": Case(event(b"[1]"), 400, "Expected `object`, got `array`"),
    "a nested value that is broken": Case(
        event(b'{"channel":"a","data":{"a":nul}}'), 400, "no JSON in UTF-8"
    ),
    "a nested control character": Case(
        event(b'{"channel":"a","data":{"a":"x\ny"}}'), 400, "no JSON in UTF-8"
    ),
    "JSON nested without end": Case(event(b'{"channel":"a","data":' + b"[" * 2000), 400, "JSON"),
    "a member of another type": Case(described(channel=1, data="x"), 400, "$.channel"),
    "an unknown member": Case(described(channel="a", data="x", dta=1), 400, "`dta`"),
    "no target": Case(described(data="x"), 400, "exactly one of channel, channels, user"),
    "two targets": Case(described(channel="a", user="u", data="x"), 400, "this one has 2"),
    "no broadcast": Case(described(broadcast=False, data="x"), 400, "this one has none"),
    "no channels": Case(described(channels=[], data="x"), 400, "1 to 3 channels, this one to 0"),
    "too many targets": Case(described(channels=list("abcd"), data="x"), 400, "this one to 4"),
    "no data": Case(described(channel="a"), 400, "this one has none"),
    "an illegal target": Case(described(channel="a b", data="x"), 400, "contains ' '"),
    "an illegal one of the targets": Case(described(channels=["a", ""], data="x"), 400, "is empty"),
    "a target that is too long": Case(described(channel=LONG, data="x"), 400, "the most is 200"),
    "global by name": Case(described(channel="global", data="x"), 400, '{"broadcast": true}'),
    "a user by channel": Case(described(channel="user:1", data="x"), 400, '{"user": ...}'),
    "no user id": Case(described(user="", data="x"), 400, "at least one character"),
    "a user id that is too long": Case(described(user=LONG, data="x"), 400, "too long"),
    "an event that is too large": Case(described(channel="a", data="x" * 200), 413, "at most 200"),
    "an event of many lines": Case(described(channel="a", data="\n" * 40), 413, "at most 200"),
    "an event of wide characters": Case(described(channel="a", data="€" * 70), 413, "at most 200"),
    "a line feed in the type": Case(
        described(channel="a", data="x", event="a\nb"), 400, "event must not contain a line break"
    ),
    "a carriage return in the type": Case(
        described(channel="a", data="x", event="a\rb"), 400, "event must not contain a line break"
    ),
    "a NUL in the type": Case(
        described(channel="a", data="x", event="a\0b"), 400, "event must not contain"
    ),
    "a line feed in the id": Case(
        described(channel="a", data="x", id="a\nb"), 400, "id must not contain"
    ),
    "a NUL in the id": Case(described(channel="a", data="x", id="\0"), 400, "id must not contain"),
    "a line feed in the key": Case(described(channel="a", data="x", key="\n"), 400, "key must not"),
    "an empty type": Case(described(channel="a", data="x", event=""), 400, "event has 1 to 200"),
    "an id that is too long": Case(described(channel="a", data="x", id=LONG), 400, "id has 1 to"),
    "the gateway's own event type": Case(
        described(channel="a", data="x", event="gap"), 400, "the gateway's own"
    ),
    "raw data of the gateway's own type": Case(
        post("/publish/a?event=connected", TEXT, b"x"), 400, "the gateway's own"
    ),
    "a negative retry": Case(described(channel="a", data="x", retry=-1), 400, "from 0 to"),
    "too long a retry": Case(
        described(channel="a", data="x", retry=MAX_RETRY_MS + 1), 400, str(MAX_RETRY_MS)
    ),
    "half a millisecond": Case(described(channel="a", data="x", retry=0.5), 400, "whole number"),
    "a retry beyond integers": Case(
        event(b'{"channel":"a","data":1,"retry":1e300}'), 400, "from 0 to"
    ),
    "a retry beyond numbers": Case(
        event(b'{"channel":"a","data":1,"retry":1e999}'), 400, "out of range"
    ),
    "an endless retry": Case(described(channel="a", data="x", retry=2**64 - 1), 400, "from 0 to"),
    "a retry that is no number": Case(described(channel="a", data="x", retry="1"), 400, "$.retry"),
    "a string that is not UTF-8": Case(event(b'{"channel":"a","data":"\xff"}'), 400, "UTF-8"),
    "a nested string that is not UTF-8": Case(
        event(b'{"channel":"a","data":{"a":["\xff"]}}'), 400, "UTF-8"
    ),
    "a nested surrogate in bytes": Case(
        event(b'{"channel":"a","data":["\xed\xa0\x80"]}'), 400, "UTF-8"
    ),
    "a name that is not UTF-8": Case(event(b'{"channel":"a\xff","data":1}'), 400, "UTF-8"),
    "a member that is not UTF-8": Case(event(b'{"chan\xff":"a","data":1}'), 400, "UTF-8"),
    "a lone surrogate as data": Case(event(b'{"channel":"a","data":"\\ud800"}'), 400, "UTF-8"),
    "a lone surrogate amid data": Case(
        event(b'{"channel":"a","data":"x\\ud800yyyyyyyyyy"}'), 400, "UTF-8"
    ),
    "a lone low surrogate": Case(event(b'{"channel":"a","data":"\\udc00yyyyyy"}'), 400, "UTF-8"),
    "a lone surrogate in the type": Case(
        event(b'{"channel":"a","data":1,"event":"\\ud800xxxxxx"}'), 400, "UTF-8"
    ),
    "another type of body": Case(post("/publish", TEXT, b"x"), 415, "application/x-ndjson"),
    "no type of body": Case(request("POST", "/publish", body=b"{}"), 415, "application/json"),
    # publishing a raw body
    "raw data that is not UTF-8": Case(post("/publish/a", TEXT, b"a\xffb"), 400, "not UTF-8"),
    "raw data to no channel": Case(post("/publish/", TEXT, b"x"), 400, "is empty"),
    "raw data to an illegal channel": Case(post("/publish/a%2Cb", TEXT, b"x"), 400, "contains ','"),
    "raw data to global": Case(post("/publish/global", TEXT, b"x"), 400, "reserved"),
    "raw data to a user": Case(post("/publish/user:1", TEXT, b"x"), 400, "reserved"),
    "raw data to a user that is no name": Case(
        post("/publish/user:%0A%1B", TEXT, b"x"), 400, r"'user:\n\x1b' is reserved"
    ),
    "raw data that is too large": Case(post("/publish/a", TEXT, b"x" * 195), 413, "at most 200"),
    "raw data with a broken type": Case(
        post("/publish/a?event=a%0Ab", TEXT, b"x"), 400, "event must not contain"
    ),
    "raw data with a broken id": Case(
        post("/publish/a?id=a%00", TEXT, b"x"), 400, "id must not contain"
    ),
    "raw data with a broken retry": Case(post("/publish/a?retry=1.5", TEXT, b"x"), 400, "retry"),
    "raw data with too long a retry": Case(
        post("/publish/a?retry=2147483648", TEXT, b"x"), 400, "from 0 to 2147483647"
    ),
    "raw data with a broken end": Case(post("/publish/a?end=1", TEXT, b"x"), 400, "true or false"),
    # users
    "a user that nobody can be": Case(request("DELETE", f"/users/{LONG}"), 400, "too long"),
    "no user": Case(request("DELETE", "/users/"), 400, "at least one character"),
    # either
    "a body that is too large": Case(post("/publish/a", TEXT, b"x" * 2049), 413, "at most 2048"),
    "an unknown path": Case(get("/nothing"), 404, "nothing at /nothing"),
    "a path below another": Case(get("/eventsx"), 404, "nothing at /eventsx"),
    "two slashes": Case(get("//events/a"), 404, "nothing at"),
    "two slashes, one of them encoded": Case(get("/%2fevents/a"), 404, "nothing at"),
    "publishing with GET": Case(get("/publish/a"), 405, "use OPTIONS, POST"),
    "streaming with POST": Case(post("/events/a", TEXT, b""), 405, "use GET"),
    "deleting a stream's path": Case(request("DELETE", "/events/a"), 405, "use GET"),
    "too many headers": Case(get("/events/a", *[b"A: b\r\n"] * MAX_FIELDS), 431, "100 header"),
    "too large a header": Case(get("/events/a", b"A: %b\r\n" % (b"b" * 16_384)), 431, "16384"),
    "too long a path": Case(get("/events/" + "a" * 16_384), 431, "16384"),
}


@pytest.mark.parametrize("version", VERSIONS)
async def test_bad_input_is_named_and_changes_nothing(version: str) -> None:
    """Every case on one node, which stands at the end as it did at the beginning."""
    async with running(**SMALL) as gateway:
        await gateway.publish("before", "x")
        before = trace(gateway.node)
        for name, case in REFUSED.items():
            response = await gateway.ask(as_version(case.raw, version))
            assert response.status == case.status, (name, response)
            assert_is_problem(response, case.status, case.says)
            assert trace(gateway.node) == before, name
        await gateway.publish("after", "x")


@pytest.mark.parametrize("version", VERSIONS)
async def test_head_of_a_stream_is_not_a_stream(version: str) -> None:
    async with running() as gateway:
        raw = as_version(request("HEAD", "/events/a"), version)
        response = await gateway.ask(raw, head_only=True)
        assert response.status == 405
        assert response.header("allow") == "GET"
        assert gateway.node.hub.statistics().opened == 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_publishing_to_a_channel_that_has_ended_changes_nothing(version: str) -> None:
    async with running() as gateway:
        await gateway.publish("over", "x", "?end=true")
        before = trace(gateway.node)
        raw = described(channels=["new", "over"], data="x", id="1")
        assert_is_problem(await gateway.ask(as_version(raw, version)), 409, "has ended")
        assert trace(gateway.node) == before


async def test_a_slow_head_and_a_slow_body_are_told_so() -> None:
    async with running(head_timeout=0.1, body_timeout=0.1) as gateway:
        head, body = await gateway.connect(), await gateway.connect()
        await head.send(b"GET /events/a HTTP/1.1\r\nHo")
        await body.send(request("POST", "/publish/a", body=b"12345")[:-1])
        assert_is_problem(await head.response(), 408, "head came too slowly (head_timeout)")
        assert_is_problem(await body.response(), 408, "body came too slowly (body_timeout)")
        assert await head.to_end() == b""
        assert await body.to_end() == b""
        assert trace(gateway.node) == (0, 0, 0, 0, 0)


async def test_a_silent_connection_is_closed_without_a_word() -> None:
    async with running(head_timeout=0.1) as gateway:
        assert await (await gateway.connect()).to_end() == b""
        assert gateway.node.refused["silent"] == 1
    async with running(idle_timeout=0.1) as gateway:
        wire = await gateway.connect()
        await wire.send(request("POST", "/publish/a", body=b"x"))
        assert (await wire.response()).status == 202
        assert await wire.to_end() == b""


# --- publishing -----------------------------------------------------------------------------------

PUBLISHED = {
    "raw": (post("/publish/a", TEXT, b"x y"), None, "message", "x y"),
    "raw without a type of body": (request("POST", "/publish/a", body=b"x"), None, "message", "x"),
    "raw JSON": (post("/publish/a", JSON, b'{"a": 1}'), None, "message", '{"a": 1}'),
    "raw of several lines": (post("/publish/a", TEXT, b"x\r\ny\rz"), None, "message", "x\ny\nz"),
    "an empty raw body": (post("/publish/a", TEXT, b""), None, "message", ""),
    "raw, wide": (post("/publish/a", TEXT, "é€😀".encode()), None, "message", "é€😀"),
    "raw with type and retry": (post("/publish/a?event=t&retry=5", TEXT, b"x"), "5", "t", "x"),
    "raw, percent-encoded": (post("/publish/%61", TEXT, b"x"), None, "message", "x"),
    "a string": (described(channel="a", data="x"), None, "message", "x"),
    "a string of two lines": (described(channel="a", data="x\ny"), None, "message", "x\ny"),
    "an escaped pair": (event(b'{"channel":"a","data":"\\ud83d\\ude00"}'), None, "message", "😀"),
    "an object as it was sent": (
        event(b'{"channel":"a","data": {"b": [1.50, "\xc3\xa9"]} }'),
        None,
        "message",
        '{"b": [1.50, "é"]}',
    ),
    "null": (described(channel="a", data=None), None, "message", "null"),
    "an empty string": (described(channel="a", data=""), None, "message", ""),
    "several channels": (described(channels=["a", "b", "a"], data="x"), None, "message", "x"),
    "everybody": (described(broadcast=True, data="x"), None, "message", "x"),
    "a user": (described(user="u 1", data="x"), None, "message", "x"),
    "all members": (
        described(channel="a", data="x", event="t", retry=0, key="k", id="i", end=False),
        "0",
        "t",
        "x",
    ),
    "a retry with a point": (described(channel="a", data="x", retry=5.0), "5", "message", "x"),
    "the longest retry": (
        described(channel="a", data="x", retry=MAX_RETRY_MS),
        str(MAX_RETRY_MS),
        "message",
        "x",
    ),
    "JSON with a charset": (
        post("/publish", b"Content-Type: Application/JSON; charset=utf-8\r\n", b'{"channel":"a",'
             b'"data":"x"}'),
        None,
        "message",
        "x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_published_arrives(version: str) -> None:
    """Through either way in, on both lanes, with the position that the publisher was told."""
    async with running() as gateway:
        direct = await gateway.open("/events?channel=a&user=u%201")
        response = await gateway.open("/events?channel=a&user=u%201", version="1.0")
        for wire in (direct, response):
            await wire.opened()
        for name, (raw, retry, kind, data) in PUBLISHED.items():
            answer = await gateway.ask(as_version(raw, version))
            assert answer.status == 202, (name, answer)
            assert answer.header("content-type") == "application/json"
            assert list(answer.json) == ["id"]
            assert is_position(answer.json["id"])
            for wire in (direct, response):
                block = await wire.event()
                assert (block.event, block.data) == (kind, data), name
                assert block.id == answer.json["id"], name
                assert block.fields.get("retry") == retry, name


@pytest.mark.parametrize("version", VERSIONS)
async def test_ndjson_takes_the_good_lines_and_says_what_is_wrong_with_the_others(
    version: str,
) -> None:
    body = b"\n".join(
        [
            b'{"channel":"a","data":"one"}',
            b"",
            b'{"channel":"a","data":',
            b'{"channel":"a b","data":"x"}\r',
            b'{"channel":"a","data":{"x":"\xff"}}',
            b'{"channel":"over","data":"x"}',
            b'{"channel":"a","data":"%b"}' % (b"x" * 300),
            b'{"channel":"a","data":"two"}\r',
        ]
    )
    async with running(max_event_bytes=200) as gateway:
        await gateway.publish("over", "x", "?end=true")
        wire = await gateway.open("/events/a")
        await wire.opened()
        answer = await gateway.ask(as_version(post("/publish", NDJSON, body), version))
        assert answer.status == 200
        assert answer.header("content-type") == "application/x-ndjson"
        lines = [msgspec.json.decode(line) for line in answer.body.splitlines()]
        assert [line.get("line") for line in lines] == [None, 3, 4, 5, 6, 7, None]
        assert [line.get("status") for line in lines] == [None, 400, 400, 400, 409, 413, None]
        assert gateway.node.refused == {"400": 3, "409": 1, "413": 1}
        for line, says in zip(
            lines[1:6], ("JSON", "contains ' '", "UTF-8", "has ended", "at most 200"), strict=True
        ):
            assert says in line["detail"]
        taken = [await wire.event(), await wire.event()]
        assert [(b.data, b.id) for b in taken] == [
            ("one", lines[0]["id"]),
            ("two", lines[-1]["id"]),
        ]
        assert gateway.node.bus.statistics().published == 3


@pytest.mark.parametrize("body", [b"", b"\n\n \n"])
async def test_ndjson_of_no_lines_is_answered_with_none(body: bytes) -> None:
    async with running() as gateway:
        for version in VERSIONS:
            answer = await gateway.ask(as_version(post("/publish", NDJSON, body), version))
            assert (answer.status, answer.body) == (200, b"")
            assert answer.header("content-type") == "application/x-ndjson"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_repeated_id_gets_the_first_position_and_is_not_delivered_again(
    version: str,
) -> None:
    async with running() as gateway:
        wire = await gateway.open("/events/a")
        await wire.opened()
        raw = as_version(described(channel="a", data="once", id="7"), version)
        first, second = await gateway.ask(raw), await gateway.ask(raw)
        assert first.json == second.json
        await gateway.publish("a", "next")
        assert [(await wire.event()).data for _ in range(2)] == ["once", "next"]


@pytest.mark.parametrize("attempt", range(3))
async def test_a_reader_who_keeps_up_gets_all_of_the_largest_ndjson_body(attempt: int) -> None:
    """One body of as many events as fit goes through in slices and costs nobody an event."""
    line = b'{"channel":"a","data":1}\n'
    async with running() as gateway:
        count = gateway.node.config.max_body_bytes // len(line)
        assert count > 40_000
        wire = await gateway.open("/events/a")
        await wire.opened()
        publisher = await gateway.connect()
        ids: list[str] = []

        async def read() -> None:
            while len(ids) < count:
                block = await wire.event()
                assert block.event == "message", block
                ids.append(str(block.id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await publisher.send(post("/publish", NDJSON, line * count))
            answer = await publisher.response()
        assert [f'{{"id":"{id}"}}' for id in ids] == answer.body.decode().splitlines()
        assert gateway.node.hub.statistics().dropped == 0


# --- streams --------------------------------------------------------------------------------------

OPENED = {
    "one named": ("/events?channel=a", ["a", "global"]),
    "two named": ("/events?channel=a&channel=b", ["a", "b", "global"]),
    "a list": ("/events?channels=a,b", ["a", "b", "global"]),
    "a list whose comma is encoded": ("/events?channels=a%2Cb", ["a", "b", "global"]),
    "both, with repeats": ("/events?channels=a,b&channel=a&channel=c", ["a", "c", "b", "global"]),
    "in the path": ("/events/a", ["a", "global"]),
    "in the path and the query": ("/events/a?channel=b", ["b", "a", "global"]),
    "with slashes": ("/events/a/b//c", ["a/b//c", "global"]),
    "with encoded slashes": ("/events/a%2Fb%2f", ["a/b/", "global"]),
    "that begins with a slash": ("/events//a", ["/a", "global"]),
    "percent-encoded": ("/events/%61%2Eb", ["a.b", "global"]),
    "a percent sign": ("/events/a%2541", ["a%41", "global"]),
    "a plus in the path": ("/events/a+b", ["a+b", "global"]),
    "an encoded plus": ("/events?channel=a%2Bb", ["a+b", "global"]),
    "all that is legal": ("/events/Az09_-.:/@~%25+", ["Az09_-.:/@~%+", "global"]),
    "global by name": ("/events/global", ["global"]),
    "the longest name": (f"/events/{LONG[1:]}", [LONG[1:], "global"]),
    "a user alone": ("/events?user=42", ["global", "user:42"]),
    "a user and a channel": ("/events/a?user=4%2F2", ["a", "global", "user:4/2"]),
    "a user that is no name": ("/events?user=%C3%A9%20", ["global", "user:%C3%A9%20"]),
    "unknown query fields": ("/events/a?_=1&x", ["a", "global"]),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_begins_with_its_headers_a_retry_and_connected(version: str) -> None:
    async with running(retry=2, keepalive=0.5) as gateway:
        for name, (target, channels) in OPENED.items():
            wire = await gateway.open(target, version=version)
            response = await wire.response()
            assert response.status == 200, (name, response)
            assert response.header("content-type") == "text/event-stream"
            assert response.header("cache-control") == "no-cache"
            assert response.header("x-accel-buffering") == "no"
            assert response.header("connection") == "close"
            connected = await wire.block()
            assert 1000 <= int(connected.fields["retry"]) <= 3000
            assert connected.event == "connected"
            assert is_position(connected.id)
            said = connected.json
            assert said["channels"] == channels, name
            assert set(said) == {"clientId", "serverTime", "keepalive", "channels"}
            assert said["keepalive"] == 500
            await wire.aclose()
        await gateway.quiet()


@pytest.mark.parametrize("version", VERSIONS)
async def test_whoever_publishes_on_connected_gets_the_event(version: str) -> None:
    async with running() as gateway:
        for turn in range(20):
            wire = await gateway.open("/events/a", version=version)
            await wire.opened()
            await gateway.publish("a", str(turn))
            assert (await wire.event()).data == str(turn)
            await wire.aclose()


RESUMED = {
    "the header": ("", b"Last-Event-ID: {1}\r\n", ["2", "3"]),
    "the query": ("?lastEventId={1}", b"", ["2", "3"]),
    "the other spelling": ("?last_event_id={0}", b"", ["1", "2", "3"]),
    "the header before the query": ("?lastEventId={2}", b"Last-Event-ID: {1}\r\n", ["2", "3"]),
    "a position before replay": ("?replay=3&lastEventId={2}", b"", ["3"]),
    "an empty header is none": ("?lastEventId={2}", b"Last-Event-ID:\r\n", ["3"]),
    "the newest": ("?replay=2", b"", ["2", "3"]),
    "more than there are": ("?replay=9", b"", ["0", "1", "2", "3"]),
    "none": ("?replay=0", b"", []),
    "the earliest": ("?lastEventId=earliest", b"", ["0", "1", "2", "3"]),
    "now": ("?lastEventId=now", b"", []),
    "nothing": ("", b"", []),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_begins_where_it_is_asked_to(version: str) -> None:
    async with running() as gateway:
        ids = [await gateway.publish("a", str(number)) for number in range(4)]
        for name, (query, header, expected) in RESUMED.items():
            wire = await gateway.open(
                f"/events/a{query.format(*ids)}",
                header.decode().format(*ids).encode(),
                version=version,
            )
            await wire.opened()
            found = [await wire.event() for _ in expected]
            assert [block.data for block in found] == expected, name
            assert [block.id for block in found] == ids[4 - len(expected) :], name
            await wire.aclose()
        await gateway.quiet()
        wire = await gateway.open("/events/a?lastEventId=what", version=version)
        await wire.opened()
        gap = await wire.event()
        assert (gap.event, gap.json) == ("gap", {"channels": ["a", "global"], "reason": "unknown"})


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_ends_with_the_last_of_its_channels(version: str) -> None:
    async with running() as gateway:
        wire = await gateway.open("/events?channels=a,b", version=version)
        await wire.opened()
        raw = described(channel="a", data="last of a", end=True)
        assert (await gateway.ask(as_version(raw, version))).status == 202
        last = await gateway.publish("b", "last of b", "?end=true")
        blocks = await wire.blocks()
        assert [block.data for block in blocks] == ["last of a", "last of b", '{"reason":"ended"}']
        assert blocks[-1].fields == {"id": f"{last}.closed", "event": "closed"}
        for query in (f"?lastEventId={last}.closed", f"?lastEventId={last}"):
            raw = as_version(get(f"/events/b{query}", ACCEPT), version)
            response = await gateway.ask(raw)
            assert (response.status, response.body) == (204, b"")
            assert response.header("content-length") is None
            assert response.header("content-type") is None


# --- streams that are refused ---------------------------------------------------------------------


async def assert_told_to_return(gateway: Gateway, version: str, reason: str) -> None:
    """An EventSource is told to come back, for which it needs a 200; others get a 503."""
    before = gateway.node.refused.get(reason, 0)
    raw = as_version(get("/events/a", ACCEPT), version)
    response = await gateway.ask(raw)
    assert response.status == 200
    assert response.header("content-type") == "text/event-stream"
    assert response.header("cache-control") == "no-cache"
    assert response.header("x-accel-buffering") == "no"
    retry, reconnect = response.body.decode().split("\n", 1)
    assert 1000 <= int(retry.removeprefix("retry: ")) <= 3000
    assert reconnect == f'event: reconnect\ndata: {{"reason":"{reason}"}}\n\n'
    for accept in (b"", b"Accept: */*\r\n"):
        response = await gateway.ask(as_version(get("/events/a", accept), version))
        assert_is_problem(response, 503, "The node")
        assert response.json["reason"] == reason
    assert gateway.node.refused[reason] == before + 3


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_full_node_sends_clients_away_and_turns_unready(version: str) -> None:
    async with running(max_clients=1) as gateway:
        assert (await gateway.ask(get("/readyz"))).json == {"status": "ready"}
        wire = await gateway.open("/events/a", version=version)
        await wire.opened()
        await assert_told_to_return(gateway, version, "full")
        response = await gateway.ask(get("/readyz"))
        assert_is_problem(response, 503, "it is full")
        assert (await gateway.ask(get("/healthz"))).status == 200
        await gateway.publish("a", "still served")
        assert (await wire.event()).data == "still served"
        await wire.aclose()
        await gateway.quiet()
        assert (await gateway.ask(get("/readyz"))).status == 200
        await (await gateway.open("/events/a", version=version)).opened()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_leaving_node_sends_clients_away(version: str) -> None:
    async with running() as gateway:
        gateway.node.draining = gateway.node.leaving = True
        await assert_told_to_return(gateway, version, "draining")


async def test_a_draining_node_is_unready_and_still_serves() -> None:
    """The balancer needs its time to notice, and until then whoever comes is served."""
    async with running() as gateway:
        gateway.node.draining = True
        assert_is_problem(await gateway.ask(get("/readyz")), 503, "it is draining")
        wire = await gateway.open("/events/a")
        await wire.opened()
        publisher = await gateway.connect()
        await publisher.send(post("/publish/a", TEXT, b"x"))
        response = await publisher.response()
        assert (response.status, response.header("connection")) == (202, "close")
        assert (await wire.event()).data == "x"


# --- an open stream's channels --------------------------------------------------------------------


async def channels_of(gateway: Gateway, method: str, target: str) -> dict[str, object]:
    response = await gateway.ask(request(method, target))
    assert response.status == 200, response
    assert is_position(response.json["id"])
    return response.json


async def client_of(wire: Wire) -> str:
    return str((await wire.opened())["clientId"])


@pytest.mark.parametrize("version", VERSIONS)
async def test_channels_come_and_go_on_an_open_stream(version: str) -> None:
    async with running() as gateway:
        wire = await gateway.open("/events/a", version=version)
        client = await client_of(wire)
        added = await channels_of(gateway, "PUT", f"/clients/{client}/channels/b%2F1")
        assert added["channels"] == ["a", "global", "b/1"]
        again = await channels_of(gateway, "PUT", f"/clients/{client}/channels/b/1")
        assert again["channels"] == ["a", "global", "b/1"]
        await gateway.publish("b/1", "one")
        assert (await wire.event()).data == "one"
        left = await channels_of(gateway, "DELETE", f"/clients/{client}/channels/b/1")
        assert left["channels"] == ["a", "global"]
        await gateway.publish("b/1", "unwanted")
        await gateway.publish("a", "two")
        assert (await wire.event()).data == "two"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_channel_added_since_a_position_brings_what_was_missed_first(version: str) -> None:
    """Without ids, since an id must never go backwards on a stream."""
    async with running() as gateway:
        ids = [await gateway.publish("b", f"old {number}") for number in range(3)]
        wire = await gateway.open("/events/a", version=version)
        client = await client_of(wire)
        await gateway.publish("a", "newer")
        assert (await wire.event()).data == "newer"
        await channels_of(gateway, "PUT", f"/clients/{client}/channels/b?since={ids[0]}")
        last = await gateway.publish("b", "new")
        blocks = [await wire.event() for _ in range(3)]
        assert [(b.data, b.id) for b in blocks] == [("old 1", None), ("old 2", None), ("new", last)]
        await channels_of(gateway, "PUT", f"/clients/{client}/channels/c?since=what")
        gap = await wire.event()
        assert (gap.event, gap.json) == ("gap", {"channels": ["c"], "reason": "unknown"})


async def test_what_cannot_be_done_to_a_streams_channels_is_refused() -> None:
    async with running(max_channels_per_client=2) as gateway:
        await gateway.publish("over", "x", "?end=true")
        wire = await gateway.open("/events?channels=a,b")
        own = f"/clients/{await client_of(wire)}/channels"
        for method, target, status, says in (
            ("PUT", "/clients/nobody/channels/a", 404, "no client"),
            ("DELETE", "/clients/nobody/channels/a", 404, "no client"),
            ("DELETE", "/clients/nobody", 404, "no client"),
            ("PUT", f"{own}/c", 400, "2 channels already"),
            ("PUT", f"{own}/", 400, "is empty"),
            ("PUT", f"{own}/a%20b", 400, "contains ' '"),
            ("PUT", f"{own}/user:1", 400, "reserved"),
            ("DELETE", f"{own}/global", 400, "Every client has"),
            ("DELETE", f"{own}/user:1", 400, "reserved"),
            ("DELETE", f"{own}/c", 404, "does not have"),
            ("GET", f"{own}/a", 405, "use DELETE, OPTIONS, PUT"),
            ("GET", "/clients/x", 404, "no client"),
            ("POST", "/clients/x", 405, "use DELETE, GET"),
            ("POST", "/clients", 405, "use GET"),
            ("GET", "/nodes/x/drain", 405, "use OPTIONS, POST"),
            ("GET", "/users/x", 405, "use DELETE"),
            ("POST", "/channels/a", 405, "use GET"),
            ("GET", "/channels/a%20b", 400, "contains ' '"),
            ("GET", "/channels/%FF", 400, "not UTF-8"),
            ("DELETE", "/users/%FF", 400, "not UTF-8"),
            ("GET", "/users", 404, "nothing at"),
        ):
            assert_is_problem(await gateway.ask(request(method, target)), status, says)
        await gateway.ask(request("DELETE", f"{own}/b"))
        assert_is_problem(await gateway.ask(request("PUT", f"{own}/over")), 409, "has ended")
        assert (await gateway.ask(get("/channels/over"))).json["clients"] == 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_closed_stream_ends_for_good(version: str) -> None:
    async with running() as gateway:
        wire = await gateway.open("/events/a", version=version)
        client = await client_of(wire)
        position = await gateway.publish("a", "x")
        assert (await wire.event()).id == position
        answer = await gateway.ask(request("DELETE", f"/clients/{client}"))
        assert (answer.status, answer.json) == (200, {"closed": 1})
        [last] = await wire.blocks()
        assert (last.event, last.json) == ("closed", {"reason": "closed"})
        assert str(last.id).endswith(".closed")
        assert is_position(str(last.id).removesuffix(".closed"))
        header = b"Last-Event-ID: %b\r\n" % str(last.id).encode()
        assert (await gateway.ask(get("/events/a", ACCEPT, header))).status == 204
        assert (await gateway.ask(request("DELETE", f"/clients/{client}"))).status == 404
        assert gateway.node.hub.statistics().closed["closed"] == 1


async def test_all_streams_of_a_user_are_closed_at_once() -> None:
    async with running() as gateway:
        wires = [await gateway.open("/events/a?user=a%2F1", version=v) for v in VERSIONS]
        other = await gateway.open("/events/a?user=b")
        for wire in (*wires, other):
            await wire.opened()
        answer = await gateway.ask(request("DELETE", "/users/a%2F1"))
        assert (answer.status, answer.json) == (200, {"closed": 2})
        for wire in wires:
            [last] = await wire.blocks()
            assert str(last.id).endswith(".closed")
        assert (await gateway.ask(request("DELETE", "/users/a/1"))).json == {"closed": 0}
        await gateway.publish("a", "x")
        assert (await other.event()).data == "x"


# --- what the node says of itself -----------------------------------------------------------------


async def test_the_node_tells_of_channels_and_of_itself() -> None:
    rule = ChannelRule("newest", Policy.LATEST, 10, 1000, 60.0)
    async with running(channels=(rule,)) as gateway:
        assert (await gateway.ask(get("/channels/newest"))).json["policy"] == "latest"
        nobody = {"policy": "drop", "missing": 0, "nodes": []}
        empty = {"channel": "a/1", "clients": 0, "lastEventId": None, **nobody}
        assert (await gateway.ask(get("/channels/a/1"))).json == empty
        wires = [await gateway.open("/events/a/1?user=u", version=v) for v in VERSIONS]
        for wire in wires:
            await wire.opened()
        last = await gateway.publish("a/1", "x")
        for wire in wires:
            await wire.event()
        found = (await gateway.ask(get("/channels/a%2F1"))).json
        there = {"policy": "drop", "missing": 0, "nodes": [{"id": "test", "clients": 2}]}
        assert found == {"channel": "a/1", "clients": 2, "lastEventId": last, **there}
        assert (await gateway.ask(get("/channels/user:u"))).json["clients"] == 2
        stats = (await gateway.ask(get("/stats"))).json
        numbers = {"clients": 2, "channels": 3, "published": 1, "delivered": 2, "dropped": 0}
        assert {name: stats[name] for name in numbers} == numbers
        [node] = msgspec.convert(stats["nodes"], list[dict[str, object]])
        assert {name: node[name] for name in numbers} == numbers
        assert node["id"] == "test"
        assert (await gateway.ask(get("/healthz"))).json == {"status": "ok"}


@pytest.mark.parametrize("demo", [True, False])
async def test_the_demo_page_is_there_unless_it_is_not_wanted(demo: bool) -> None:
    async with running(demo=demo) as gateway:
        response = await gateway.ask(get("/"))
        if demo:
            assert (response.status, response.header("content-type")) == (
                200,
                "text/html; charset=utf-8",
            )
            assert "default-src 'none'" in str(response.header("content-security-policy"))
        else:
            assert_is_problem(response, 404, "nothing at /")


async def test_a_rule_without_history_says_so_in_a_gap_and_not_in_an_error() -> None:
    rule = ChannelRule("live.*", Policy.DROP, 0, 0, 60.0)
    async with running(channels=(rule,)) as gateway:
        first = await gateway.publish("live.a", "one")
        await gateway.publish("live.a", "two")
        wire = await gateway.open(f"/events/live.a?lastEventId={first}")
        await wire.opened()
        gap = await wire.event()
        assert (gap.event, gap.json) == ("gap", {"channels": ["live.a"], "reason": "trimmed"})


async def test_a_host_is_needed_over_1_1_only() -> None:
    async with running() as gateway:
        raw = get("/healthz").replace(HOST, b"")
        assert_is_problem(await gateway.ask(raw), 400, "Host header")
        assert (await gateway.ask(as_version(raw, "1.0"))).status == 200


async def test_an_ndjson_body_of_mixed_targets_reaches_each() -> None:
    async with running() as gateway:
        wire = await gateway.open("/events?channel=a&user=u")
        await wire.opened()
        body = joined(
            [
                {"channel": "a", "data": 1},
                {"channel": "b", "data": 2},
                {"user": "u", "data": 3},
                {"broadcast": True, "data": 4},
                {"channel": "a", "end": True},
            ]
        )
        assert (await gateway.ask(post("/publish", NDJSON, body))).status == 200
        blocks = await wire.blocks()
        assert [block.data for block in blocks] == ["1", "3", "4", "", '{"reason":"ended"}']


async def test_no_channel_is_added_beyond_what_the_node_can_hold() -> None:
    async with running(max_channels=2) as gateway:
        wire = await gateway.open("/events/a")  # and global
        client = (await wire.opened())["clientId"]
        response = await gateway.ask(request("PUT", f"/clients/{client}/channels/b"))
        assert_is_problem(response, 503, "all the channels")
        assert gateway.node.refused == {"channels": 1}
