"""POST /events: a stream of more channels than a URL can name, opened as GET opens one, by
the front and the edge; and the URL that it names, at which GET opens the same."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from certificates import Files
from hypothesis import given
from hypothesis import strategies as st
from process import eventually
from running import ACCEPT, HOST, Gateway, Response, Wire, request, running, running_over_tls
from tokens import SECRET, bearer, token

from gateway.admission import Turn
from gateway.api.asked import Asked, in_query, is_annotated
from gateway.api.request import Request, parse_target
from gateway.api.subscribe import PATH

VERSIONS = ("1.1", "1.0")

JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is asked, nothing fails inside."""
    yield
    assert [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR] == []


def post(
    body: object, *headers: bytes, target: str = "/events", kind: bytes = JSON, version: str = "1.1"
) -> bytes:
    """``body`` as it is if it is bytes, else as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", target, kind, *headers, body=raw, version=version)


async def opened(gateway: Gateway, raw: bytes) -> tuple[Wire, Response]:
    """A connection on which a stream begins, and its head."""
    wire = await gateway.connect()
    await wire.send(raw)
    response = await wire.response()
    assert response.status == 200, response
    return wire, response


async def channels_of(wire: Wire) -> object:
    connected = await wire.block()
    assert connected.event == "connected"
    return connected.json["channels"]


OPENED: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "channels": ({"channels": ["a", "b"]}, ["a", "b", "global"], "channels=a,b"),
    "repeats": ({"channels": ["b", "a", "b"]}, ["b", "a", "global"], "channels=b,a"),
    "global": ({"channels": ["global"]}, ["global"], "channels=global"),
    "all that is legal": (
        {"channels": ["Az09_-.:/@~%+", "a//b"]},
        ["Az09_-.:/@~%+", "a//b", "global"],
        "channels=Az09_-.:/@~%25%2B,a//b",
    ),
    "a user alone": ({"user": "4/2"}, ["global", "user:4/2"], "user=4/2"),
    "a user that is no name": (
        {"channels": ["a"], "user": "é &=\n"},
        ["a", "global", "user:%C3%A9%20%26%3D%0A"],
        "channels=a&user=%C3%A9%20%26%3D%0A",
    ),
    "annotated": (
        {"channels": ["a"], "annotate": True},
        ["a", "global"],
        "channels=a&annotate=true",
    ),
    "all members": (
        {"channels": ["a"], "user": None, "lastEventId": "", "replay": 0.0, "annotate": False},
        ["a", "global"],
        "channels=a",
    ),
    "where it begins": (
        {"channels": ["a"], "lastEventId": "earliest", "replay": 3},
        ["a", "global"],
        "channels=a",
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_is_opened_and_its_url_opens_the_same(version: str) -> None:
    async with running() as gateway:
        for name, (body, channels, query) in OPENED.items():
            wire, response = await opened(gateway, post(body, version=version))
            assert response.header("content-type") == "text/event-stream"
            assert response.header("cache-control") == "no-cache"
            assert response.header("content-location") == f"?{query}", name
            assert await channels_of(wire) == channels, name
            back = await gateway.open(f"/events?{query}", version=version)
            assert (await back.opened())["channels"] == channels, name
            await wire.aclose()
            await back.aclose()
        await gateway.quiet()


@pytest.mark.parametrize("version", VERSIONS)
async def test_events_come_as_they_do_by_get(version: str) -> None:
    async with running() as gateway:
        body = {"channels": ["a", "b"], "annotate": True}
        wire, response = await opened(gateway, post(body, version=version))
        target = f"{PATH}{response.header('content-location')}"
        await wire.block()
        first = await gateway.publish("b", "1")
        block = await wire.event()
        assert (block.fields, block.data) == ({"id": first, "channel": "b"}, "1")
        await wire.aclose()
        second = await gateway.publish("a", "2")
        back = await gateway.open(f"{target}&lastEventId={first}", version=version)
        await back.opened()
        block = await back.event()
        assert (block.fields, block.data) == ({"id": second, "channel": "a"}, "2")


BEGINNINGS: dict[str, tuple[dict[str, Any], bytes, list[str]]] = {
    "the header": ({}, b"Last-Event-ID: {1}\r\n", ["2", "3"]),
    "the body": ({"lastEventId": "{1}"}, b"", ["2", "3"]),
    "the header first": (
        {"lastEventId": "{2}", "replay": 4},
        b"Last-Event-ID: {1}\r\n",
        ["2", "3"],
    ),
    "an empty header": ({"lastEventId": "{2}"}, b"Last-Event-ID:\r\n", ["3"]),
    "a position before replay": ({"lastEventId": "{2}", "replay": 3}, b"", ["3"]),
    "an empty position": ({"lastEventId": "", "replay": 1}, b"", ["3"]),
    "the newest": ({"replay": 2}, b"", ["2", "3"]),
    "a whole number, however it is written": ({"replay": 2.0}, b"", ["2", "3"]),
    "the earliest": ({"lastEventId": "earliest"}, b"", ["0", "1", "2", "3"]),
    "nothing": ({}, b"", []),
}


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_begins_where_it_is_asked_to(version: str) -> None:
    async with running() as gateway:
        ids = [await gateway.publish("a", str(number)) for number in range(4)]
        for name, (begin, header, expected) in BEGINNINGS.items():
            if "lastEventId" in begin:
                begin = begin | {"lastEventId": begin["lastEventId"].format(*ids)}
            raw = post(
                {"channels": ["a"]} | begin, header.decode().format(*ids).encode(), version=version
            )
            wire, _ = await opened(gateway, raw)
            await wire.block()
            assert [(await wire.event()).data for _ in expected] == expected, name
            await wire.aclose()


# --- what is refused ------------------------------------------------------------------------------

SHAPE = "channels, user, lastEventId, replay, annotate"

REFUSED: dict[str, tuple[bytes, int, str]] = {
    "no JSON": (post(b"{"), 400, "This is no JSON in UTF-8"),
    "no UTF-8": (post(b'{"channels": ["\xff"]}'), 400, "This is no JSON in UTF-8"),
    "no body": (post(b""), 400, "This is no JSON in UTF-8"),
    "a deep nest": (post(b'{"channels":' + b"[" * 1900), 400, SHAPE),
    "a list": (post(["a"]), 400, SHAPE),
    "an unknown member": (post({"channels": ["a"], "chanel": "b"}), 400, "`chanel`"),
    "a member of another case": (post({"channels": ["a"], "lasteventid": "x"}), 400, SHAPE),
    "one channel as text": (post({"channels": "a"}), 400, SHAPE),
    "a number for a channel": (post({"channels": [1]}), 400, SHAPE),
    "no list": (post({"channels": None, "user": "u"}), 400, SHAPE),
    "a number for a user": (post({"user": 7}), 400, SHAPE),
    "a number for a position": (post({"channels": ["a"], "lastEventId": 7}), 400, SHAPE),
    "text for a number": (post({"channels": ["a"], "replay": "3"}), 400, SHAPE),
    "a part of an event": (post({"channels": ["a"], "replay": 1.5}), 400, "a whole number"),
    "less than nothing": (post({"channels": ["a"], "replay": -1}), 400, "a whole number"),
    "too many events": (post({"channels": ["a"], "replay": 10**9}), 400, "a whole number"),
    "beyond all numbers": (post(b'{"channels": ["a"], "replay": 1e999}'), 400, "Number"),
    "text for a truth": (post({"channels": ["a"], "annotate": "true"}), 400, SHAPE),
    "no channel and no user": (post({}), 400, "No channel is named"),
    "no channel in the list": (post({"channels": []}), 400, "No channel is named"),
    "an empty channel": (post({"channels": [""]}), 400, "is empty"),
    "a comma in a name": (post({"channels": ["a,b"]}), 400, "contains ','"),
    "a line break in a name": (post({"channels": ["a\r\nX: y"]}), 400, "contains '\\r'"),
    "a user's channel": (post({"channels": ["user:7"]}), 400, "is reserved"),
    "an empty user": (post({"user": ""}), 400, "at least one character"),
    "too many channels": (
        post({"channels": ["1", "2", "3", "4"]}), 400, "a stream has at most 3"
    ),
    "a channel in the query too": (
        post({"channels": ["a"]}, target="/events?channel=b"), 400, "leave channel out of the query"
    ),
    "everything in the query": (
        post({}, target="/events?replay=1&channels=b"), 400, "leave channels and replay out"
    ),
    "an annotation in the query": (
        post({"channels": ["a"]}, target="/events?annotate=true"), 400, "leave annotate out"
    ),
    "text": (
        post({"channels": ["a"]}, kind=b"Content-Type: text/plain\r\n"), 415, "application/json"
    ),
    "a form": (
        post(b"channel=a", kind=b"Content-Type: application/x-www-form-urlencoded\r\n"),
        415,
        "or with GET, in the query",
    ),
    "of no type": (post({"channels": ["a"]}, kind=b""), 415, "application/json"),
    "a large body": (post({"channels": ["a" * 3000]}), 413, "2000"),
    "a channel in the path": (post({"channels": ["a"]}, target="/events/b"), 405, "use GET"),
    "PUT": (request("PUT", "/events", JSON, body=b"{}"), 405, "use GET, OPTIONS, POST"),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_wrong_is_said_and_nothing_is_opened(version: str) -> None:
    async with running(
        max_channels_per_client=3, max_body_bytes=2000, max_event_bytes=2000
    ) as gateway:
        for name, (raw, status, says) in REFUSED.items():
            response = await gateway.ask(raw.replace(b"HTTP/1.1", b"HTTP/%b" % version.encode()))
            assert response.status == status, (name, response)
            assert says in response.detail, (name, response.detail)
            assert response.header("content-location") is None
        assert gateway.node.hub.statistics().opened == 0
        assert gateway.node.streams.opening == 0


async def test_after_a_refusal_the_connection_goes_on() -> None:
    async with running() as gateway:
        wire = await gateway.connect()
        for _ in range(3):
            await wire.send(post({}))
            assert (await wire.response()).status == 400
        await wire.send(post({"channels": ["a"]}))
        assert (await wire.response()).status == 200
        assert await channels_of(wire) == ["a", "global"]


async def test_a_body_in_chunks_and_unknown_query_fields_are_taken() -> None:
    async with running() as gateway:
        head = b"POST /events?_=1 HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"
        kind = b"Content-Type: Application/JSON; charset=utf-8\r\n\r\n"
        body = b'4\r\n{"ch\r\n10\r\nannels": ["a"] }\r\n0\r\n\r\n'
        wire, _ = await opened(gateway, head + kind + body)
        assert await channels_of(wire) == ["a", "global"]


# --- how it is turned away ------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_whoever_is_turned_away_for_now_is_told_where_to_come_back(version: str) -> None:
    async with running() as gateway:
        gateway.node.draining = gateway.node.leaving = True
        response = await gateway.ask(post({"channels": ["a"]}, ACCEPT, version=version))
        assert (response.status, response.header("content-type")) == (200, "text/event-stream")
        assert b'event: reconnect\ndata: {"reason":"draining"}\n\n' in response.body
        assert response.header("content-location") == "?channels=a"
        response = await gateway.ask(post({"channels": ["a"]}, version=version))
        assert (response.status, response.json["reason"]) == (503, "draining")


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_that_has_ended_for_good_stays_ended(version: str) -> None:
    async with running() as gateway:
        body = {"channels": ["a"], "lastEventId": "1-1.closed"}
        response = await gateway.ask(post(body, version=version))
        assert (response.status, response.body) == (204, b"")


async def test_a_crowded_node_turns_a_post_away_as_a_stream() -> None:
    async with running(max_connections=0) as gateway:
        response = await gateway.ask(post({"channels": ["a"]}, ACCEPT))
        assert response.status == 200
        assert b'{"reason":"connections"}' in response.body


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_the_body_took_is_free_while_the_stream_is_open(version: str) -> None:
    async with running() as gateway:
        body = {"channels": ["a"], "user": None, "lastEventId": "x" * 500_000}
        raw = post(body, version=version)
        wire = await gateway.connect()
        await wire.send(raw[:100_000])
        await wire.send(raw[100_000:])
        assert (await wire.response()).status == 200
        await wire.block()
        assert gateway.front._service.held_bytes == 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_the_body_took_is_free_while_the_stream_waits_for_its_turn(version: str) -> None:
    async with running(open_rate=1.0, open_wait=60.0) as gateway:
        door = gateway.node.admission
        while door.arrive("192.0.2.1") is not Turn.LATER:
            pass
        wire = await gateway.connect()
        await wire.send(post({"channels": ["a"], "lastEventId": "x" * 500_000}, version=version))

        async def waits() -> bool:
            return door.statistics().waiting == 1

        await eventually(waits)
        assert gateway.front._service.held_bytes == 0


# --- the URL for coming back ----------------------------------------------------------------------

NAMES = st.text("Az09_-:/@~%+", min_size=1, max_size=20)


@given(st.lists(NAMES, max_size=5), st.none() | st.text(min_size=1, max_size=20), st.booleans())
def test_the_url_asks_for_the_same(names: list[str], user: str | None, annotate: bool) -> None:
    asked = Asked(names, user, "1-1", 3, annotate)
    if user is not None:
        try:
            user.encode()
        except UnicodeEncodeError:
            return
    url = asked.url(PATH, 10_000).encode("ascii")
    assert not set(url) & set(b' "<>\\^`{|}#\r\n\0')
    found = Request("GET", *parse_target(url), lambda name: None, b"", "")
    again = in_query(found, PATH)._replace(annotate=is_annotated(found))
    channels = list(dict.fromkeys(names)) or [""] * url.count(b"channels=")
    assert again == Asked(channels, user, None, None, annotate)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_url_that_would_be_too_long_is_not_named(version: str) -> None:
    names = [f"{number:0200}" for number in range(40)]
    beside = len("/events?channels=")
    async with running() as gateway:
        limit = gateway.node.config.max_url_bytes
        last = "x" * (limit - beside - 40 * 201)
        for named, is_named in ((last, True), (last + "x", False)):
            body = {"channels": [*names, named]}
            wire, response = await opened(gateway, post(body, version=version))
            assert await channels_of(wire) == [*names, named, "global"]
            location = response.header("content-location")
            assert (location is not None) is is_named
            if location is not None:
                assert len(PATH + location) == limit
                again, _ = await opened(gateway, request("GET", PATH + location, version=version))
                assert await channels_of(again) == [*names, named, "global"]


# --- who may --------------------------------------------------------------------------------------

FOREIGN = b"Origin: https://evil.example\r\n"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_token_grants_what_it_grants_by_get(version: str) -> None:
    granted = token("u", subscribe=["a"])
    async with running(jwt_key=SECRET) as gateway:
        for headers, body, status in (
            ((), {"channels": ["a"]}, 401),
            ((bearer(granted),), {"channels": ["a", "b"]}, 403),
            ((bearer(granted),), {"channels": ["a"], "user": "v"}, 403),
            ((bearer(granted), FOREIGN), {"channels": ["a"]}, 200),
            ((bearer(granted),), {"channels": ["a"], "user": "u"}, 200),
        ):
            wire = await gateway.connect()
            await wire.send(post(body, *headers, version=version))
            response = await wire.response()
            assert response.status == status, response
        assert await channels_of(wire) == ["a", "global", "user:u"]
        assert response.header("content-location") == "?channels=a&user=u"
        wire, response = await opened(
            gateway, post({"channels": ["a"]}, target=f"/events?token={granted}", version=version)
        )
        assert response.header("content-location") == "?channels=a"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_cookie_opens_a_stream_by_post_for_pages_that_may_act(version: str) -> None:
    cookie = f"Cookie: gateway_token={token('u', subscribe=['a'])}\r\n".encode()
    app = b"Origin: https://app.example\r\n"
    async with running(cors_origins="*, https://app.example", jwt_key=SECRET) as gateway:
        for origin in (FOREIGN, b"Origin: null\r\n", b""):
            response = await gateway.ask(post({"channels": ["a"]}, cookie, origin, version=version))
            assert response.status == 403, response
        assert gateway.node.hub.statistics().opened == 0
        for origin in (app, b"Origin: https://gateway.test\r\n"):
            _, response = await opened(
                gateway, post({"channels": ["a"]}, cookie, origin, version=version)
            )
            exposed = response.header("access-control-expose-headers")
            assert "Content-Location" in str(exposed)


@pytest.mark.parametrize("version", VERSIONS)
async def test_pages_of_other_origins_post_nothing_to_an_open_node(version: str) -> None:
    async with running() as gateway:
        for witness in (FOREIGN, b"Sec-Fetch-Site: cross-site\r\n"):
            response = await gateway.ask(post({"channels": ["a"]}, witness, version=version))
            assert response.status == 403
        assert gateway.node.hub.statistics().opened == 0


# --- over TLS -------------------------------------------------------------------------------------


async def test_a_stream_over_tls_is_opened_likewise(certificate: Files) -> None:
    async with running_over_tls(certificate) as gateway:
        body = {"channels": ["a"], "annotate": True}
        wire, response = await opened(gateway, post(body))
        assert response.header("content-location") == "?channels=a&annotate=true"
        await wire.block()
        position = await gateway.publish("a", "x")
        assert (await wire.event()).fields == {"id": position, "channel": "a"}
