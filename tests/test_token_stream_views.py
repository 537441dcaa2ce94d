"""How token streams are viewed: raw, from a snapshot on, whole, and by whom."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_server import redis_server
from rig import rule
from running import ACCEPT, Block, Gateway, Response, Wire, request, running
from test_auth import KEYS
from token_streams import begin
from tokens import SECRET, bearer, token
from trio.testing import wait_all_tasks_blocked

from gateway.bus import History
from gateway.bus.memory import MemoryBus
from gateway.config import Config, Format
from gateway.errors import Unavailable
from gateway.pending import Pending
from gateway.policy import Policy
from gateway.position import Position
from gateway.relay import stories
from gateway.relay.events import Complete, Failure, ToolUse, Usage
from gateway.relay.record import Record
from gateway.sse import ServerSentEvent

JSON = b"Content-Type: application/json\r\n"

CHATS: dict[str, Any] = {"channels": (rule("chat.**", Policy.CATCH_UP, history=1000),)}
"""Where applications name channels of token streams themselves."""

NEVER = "stream:never-was"


@pytest.fixture(params=["memory", "redis"])
def bus_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of a node on each bus."""
    if request.param == "memory":
        return {}
    port = request.getfixturevalue("redis_port")
    prefix = request.getfixturevalue("new_prefix")
    return {"redis": f"redis://127.0.0.1:{port}", "redis_prefix": prefix}


@asynccontextmanager
async def keyed(**settings: Any) -> AsyncIterator[Gateway]:
    async with running(jwt_key=SECRET, api_keys=KEYS, **settings) as gateway:
        yield gateway


async def opened(gateway: Gateway, target: str, *headers: bytes) -> tuple[Wire, list[str], str]:
    """A stream, the channels that it names, and the id of its ``connected``."""
    wire = await gateway.open(target, *headers)
    told = await wire.opened()
    names = told["channels"]
    assert isinstance(names, list)
    return wire, [name for name in names if name != "global"], str(told["id"])


async def snapshot(wire: Wire) -> Block:
    block = await wire.event()
    assert block.event == "snapshot", block
    return block


async def ask(
    gateway: Gateway, method: str, target: str, *headers: bytes, body: bytes | None = None
) -> Response:
    return await gateway.ask(request(method, target, *headers, body=body))


def texts(blocks: list[Block]) -> str:
    """What a viewer of the normal view would show of these events."""
    text = ""
    for block in blocks:
        if block.event == "snapshot":
            text = str(block.json["text"])
        elif block.event == "token":
            text += str(block.json["text"])
    return text


# -- a snapshot, and what comes behind it


async def test_who_joins_late_gets_all_so_far_as_one_event_and_then_each_token_once(
    bus_settings: dict[str, Any],
) -> None:
    async with running(**bus_settings) as gateway:
        stream = await begin(gateway, model="m")
        await stream.say("Hel", "lo")
        wire, names, connected = await opened(gateway, f"/events/{stream.name}?view=snapshot")
        first = await snapshot(wire)
        assert names == [stream.name]
        assert (first.id, connected) == (str(stream.running.outlet.position), "None")
        assert first.json == {
            "state": "streaming",
            "text": "Hello",
            "toolUses": [],
            "tokens": 2,
            "whole": True,
        }
        await stream.say(",", " you")
        assert [(await wire.event()).json for _ in range(2)] == [{"text": ","}, {"text": " you"}]
        await stream.end(Complete("end", Usage(3, 4)))
        complete, closed = await wire.event(), await wire.event()
        assert complete.json == {"reason": "end", "usage": {"inputTokens": 3, "outputTokens": 4}}
        assert (complete.event, closed.event) == ("complete", "closed")
        with pytest.raises(EOFError):
            await wire.block()
        assert gateway.node.relays.statistics().joined_late == 1


async def test_it_is_viewed_stopped_and_shown_at_any_node(redis_port: int, new_prefix: str) -> None:
    settings: Any = {"redis": f"redis://127.0.0.1:{redis_port}", "redis_prefix": new_prefix}
    async with running(**settings) as maker, running(**settings) as other:
        stream = await begin(maker)
        await stream.say("Hel", "lo")
        wire, _, _ = await opened(other, f"/events/{stream.name}?view=snapshot")
        assert (await snapshot(wire)).json["text"] == "Hello"
        await stream.say("!")
        assert (await wire.event()).json == {"text": "!"}
        target = f"/streams/{stream.record.id}"
        assert (await ask(other, "GET", target)).json["text"] == "Hello!"
        stopped = await ask(other, "DELETE", target)
        assert stopped.json == {"id": stream.record.id, "state": "stopped"}
        assert [block.event for block in await wire.blocks()] == ["complete", "closed"]
        for gateway in (maker, other):
            assert (await ask(gateway, "GET", target)).json["state"] == "stopped"


async def test_a_stream_that_has_ended_is_a_snapshot_and_the_end_of_the_response(
    bus_settings: dict[str, Any],
) -> None:
    async with running(**bus_settings) as gateway:
        stream = await begin(gateway)
        await stream.say("all of it")
        await stream.tell(ToolUse("t1", "look", msgspec.Raw(b'{"at":1}')))
        await stream.end()
        for target in (f"/events/{stream.name}", f"/events?channel={stream.name}"):
            query = "&view=snapshot" if "?" in target else "?view=snapshot"
            wire, _, _ = await opened(gateway, target + query)
            first, closed = await wire.blocks()
            assert first.json["state"] == "complete"
            assert first.json["text"] == "all of it"
            assert first.json["toolUses"] == [{"id": "t1", "name": "look", "input": {"at": 1}}]
            assert (closed.event, closed.json) == ("closed", {"reason": "ended"})
            for came_with in (first.id, closed.id):
                header = f"Last-Event-ID: {came_with}\r\n".encode()
                again = await ask(gateway, "GET", target + query, ACCEPT, header)
                assert again.status == 204


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (Complete("length"), "complete"),
        (Complete("stopped"), "stopped"),
        (Failure("silent"), "error"),
    ],
)
async def test_a_snapshot_says_how_the_stream_ended(end: Complete | Failure, state: str) -> None:
    async with running() as gateway:
        stream = await begin(gateway)
        await stream.end(end)
        wire, _, _ = await opened(gateway, f"/events/{stream.name}?view=snapshot")
        assert (await snapshot(wire)).json["state"] == state


async def test_an_annotated_snapshot_names_its_channel() -> None:
    async with running() as gateway:
        stream = await begin(gateway)
        await stream.say("x")
        target = f"/events/{stream.name}?view=snapshot&annotate=true"
        for _ in range(2):
            wire, _, _ = await opened(gateway, target)
            first = await snapshot(wire)
            assert first.fields["channel"] == stream.name
            assert list(first.fields) == ["id", "channel", "event"]


async def test_a_body_asks_for_a_view_as_a_query_does() -> None:
    async with running() as gateway:
        stream = await begin(gateway)
        await stream.say("x")
        body = msgspec.json.encode({"channels": [stream.name], "view": "snapshot"})
        wire = await gateway.connect()
        await wire.send(request("POST", "/events", ACCEPT, JSON, body=body))
        response = await wire.response()
        assert (await wire.block()).event == "connected"
        assert (await snapshot(wire)).json["text"] == "x"
        location = response.header("content-location")
        assert location == f"?channels={stream.name}&view=snapshot"
        again, _, _ = await opened(gateway, f"/events{location}")
        assert (await snapshot(again)).json["text"] == "x"


async def test_who_comes_back_goes_on_from_his_position_without_a_snapshot(
    bus_settings: dict[str, Any],
) -> None:
    async with running(**bus_settings) as gateway:
        stream = await begin(gateway)
        await stream.say("a")
        at = stream.running.outlet.position
        await stream.say("b", "c")
        target = f"/events/{stream.name}?view=snapshot"
        for query, headers in (
            ("", (f"Last-Event-ID: {at}\r\n".encode(),)),
            (f"&lastEventId={at}", ()),
        ):
            wire, _, _ = await opened(gateway, target + query, *headers)
            assert [(await wire.event()).json["text"] for _ in range(2)] == ["b", "c"]
        wire, _, _ = await opened(gateway, f"{target}&lastEventId=earliest")
        kinds = [(await wire.event()).event for _ in range(4)]
        assert kinds == ["start", "token", "token", "token"]
        assert gateway.node.relays.statistics().joined_late == 0


async def test_where_a_position_cannot_be_resumed_the_snapshot_comes_instead_of_the_gap(
    bus_settings: dict[str, Any],
) -> None:
    few: dict[str, Any] = {"channels": (rule("chat.**", Policy.CATCH_UP, history=40),)}
    async with running(**bus_settings, **few) as gateway:
        stream = await begin(gateway, channel="chat.7")
        old = stream.running.outlet.position
        await stream.say(*"abcd")
        for _ in range(35):  # of somebody else's, since a stream ends before it trims itself
            await gateway.publish("chat.7", "x")
        await stream.say(*"efg")
        far = Position(stream.running.outlet.position.ms + 10**9, 0)
        for position, reason in ((old, "trimmed"), ("garbage", "unknown"), (far, "unknown")):
            target = f"/events/chat.7?view=snapshot&user=7&lastEventId={position}"
            wire, _, _ = await opened(gateway, target)
            gap = await wire.event()
            assert gap.event == "gap"  # of what is not in the snapshot
            assert gap.json == {"channels": ["global", "user:7"], "reason": reason}
            first = await snapshot(wire)
            held = str(first.json["text"])
            assert held.endswith("efg")
            assert stream.text.endswith(held)  # without a hole
            assert first.json["whole"] is False
            await stream.say("!")
            assert (await wire.event()).json == {"text": "!"}
            await wire.aclose()
            await stream.say(*"efg")


async def test_another_process_of_one_node_sends_a_snapshot_for_its_predecessors_position() -> None:
    async with running() as gateway:
        stream = await begin(gateway)
        await stream.say("x")
        wire, _, _ = await opened(gateway, f"/events/{stream.name}?view=snapshot&lastEventId=7-0")
        assert (await wire.event()).json == {"channels": ["global"], "reason": "restarted"}
        assert (await snapshot(wire)).json["text"] == "x"


async def test_broadcasts_of_before_do_not_come_with_a_snapshot(
    bus_settings: dict[str, Any],
) -> None:
    async with running(**bus_settings) as gateway:
        stream = await begin(gateway)
        await stream.say("x")
        await broadcast(gateway, "before")
        wire, _, _ = await opened(gateway, f"/events/{stream.name}?view=snapshot&user=7")
        await snapshot(wire)
        await broadcast(gateway, "behind")
        assert (await wire.event()).data == "behind"


async def broadcast(gateway: Gateway, data: str) -> None:
    body = msgspec.json.encode({"broadcast": True, "data": data})
    assert (await ask(gateway, "POST", "/publish", JSON, body=body)).status == 202


async def test_what_is_too_long_for_one_event_is_replayed_from_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stories, "MAX_SNAPSHOT_BYTES", 300)
    async with running() as gateway:
        stream = await begin(gateway)
        await stream.say("x" * 100)
        target = f"/events/{stream.name}?view=snapshot"
        wire, _, _ = await opened(gateway, target)
        assert len(str((await snapshot(wire)).json["text"])) == 100
        await stream.say("y" * 200)
        again, _, _ = await opened(gateway, target)
        await stream.end()
        blocks = await again.blocks()
        assert [block.event for block in blocks] == [
            "start",
            "token",
            "token",
            "complete",
            "closed",
        ]
        assert texts(blocks) == stream.text
        assert gateway.node.relays.statistics().joined_late == 1
        monkeypatch.setattr(stories, "_snapshot", None)  # that it is too long is known by now
        last, _, _ = await opened(gateway, target)
        assert texts(await last.blocks()) == stream.text


async def test_over_http_1_0_and_over_a_slow_connection_a_snapshot_comes_whole() -> None:
    async with running() as gateway:
        stream = await begin(gateway)
        await stream.say(*("x" * 10_000 for _ in range(60)))
        target = f"/events/{stream.name}?view=snapshot"
        old = await gateway.open(target, version="1.0")
        slow = await gateway.connect(receive_buffer=4096)
        await slow.send(request("GET", target, ACCEPT))
        await gateway.clients(2)
        await stream.say("!")
        await stream.end()
        for wire in (old, slow):
            await wire.opened()
            assert texts(await wire.blocks()) == stream.text
        statistics = gateway.node.hub.statistics()
        assert statistics.dropped == 0
        await gateway.quiet()
        assert gateway.node.charge.clients == 0


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sampled_from(["a", "bc", "ü\n", "\u2028", "🙂", " "]), min_size=1, max_size=30),
    st.integers(0, 30),
    st.lists(st.integers(0, 6), max_size=6),
    st.booleans(),
)
async def test_wherever_somebody_joins_and_is_cut_he_shows_the_whole_text(
    bus_settings: dict[str, Any],
    said: list[str],
    join: int,
    cuts: list[int],
    annotate: bool,
) -> None:
    """``cuts``: after how many events each connection of the viewer ends."""
    async with running(**bus_settings) as gateway:
        stream = await begin(gateway)
        await stream.say(*said[:join])
        target = f"/events/{stream.name}?view=snapshot&annotate={str(annotate).lower()}"
        blocks: list[Block] = []
        ids: list[str] = []

        async def view(most: int | None) -> None:
            headers = (f"Last-Event-ID: {ids[-1]}\r\n".encode(),) if ids else ()
            wire, _, _ = await opened(gateway, target, *headers)
            while most is None or len(blocks) < most:
                try:
                    block = await wire.event()
                except EOFError:
                    return
                blocks.append(block)
                assert block.id is not None
                ids.append(block.id)
            await wire.aclose()

        told = join
        for cut in cuts:
            some = said[told : told + cut]
            await stream.say(*some)
            told += len(some)
            if not blocks:
                in_snapshot = told
            await view(min(len(blocks) + cut, 1 + told - in_snapshot))
        await stream.say(*said[told:])
        await stream.end()
        await view(None)
        kinds = [block.event for block in blocks]
        assert kinds.count("snapshot") == 1
        assert kinds[0] == "snapshot"
        assert kinds[-2:] in (["complete", "closed"], ["snapshot", "closed"])
        assert texts(blocks) == "".join(said)
        positions = [Position.parse(id.removesuffix(".closed")) for id in ids]
        assert positions == sorted(positions, key=lambda each: each or Position(0, 0))


# -- the raw view


async def test_the_raw_view_is_the_upstreams_events_as_they_were_and_names_its_channel(
    bus_settings: dict[str, Any],
) -> None:
    async with running(**bus_settings) as gateway:
        stream = await begin(gateway, format=Format.ANTHROPIC)
        raw = stream.record.raw
        assert raw == f"{stream.name}.raw"
        targets = (
            f"/events/{stream.name}?view=raw",
            f"/events?channel={stream.name}&view=raw",
            f"/events/{raw}",
            f"/events?channels={raw},{stream.name}&view=raw",
        )
        wires = [await opened(gateway, target) for target in targets]
        await stream.say("not this")
        await stream.tell(ServerSentEvent("ping", '{"type": "ping"}', ""))
        await stream.end()
        for wire, names, _ in wires:
            assert names == [raw]
            blocks = await wire.blocks()
            assert [block.event for block in blocks] == ["ping", "complete", "closed"]
            assert blocks[0].data == '{"type": "ping"}'
        polled = await ask(gateway, "GET", f"/poll/{stream.name}?view=raw&lastEventId=earliest")
        assert [event["event"] for event in events_of(polled)] == ["ping", "complete"]
        assert {event["channel"] for event in events_of(polled)} == {raw}


def events_of(answer: Response) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    events = answer.json["events"]
    assert isinstance(events, list)
    return events


async def test_where_both_views_are_one_channel_the_raw_view_is_that() -> None:
    async with running() as gateway:
        stream = await begin(gateway, format=Format.SSE)
        _, names, _ = await opened(gateway, f"/events/{stream.name}?view=raw")
        assert names == [stream.name]
        answer = await ask(gateway, "GET", f"/events/{stream.name}.raw")
        assert answer.status == 404  # nothing would ever come


async def test_a_channel_of_an_applications_own_name_is_viewed_by_that_and_by_the_id(
    bus_settings: dict[str, Any],
) -> None:
    async with running(**bus_settings, **CHATS) as gateway:
        stream = await begin(gateway, channel="chat.7")
        await stream.say("x")
        by_id = f"stream:{stream.record.id}"
        for name in ("chat.7", by_id):
            wire, names, _ = await opened(gateway, f"/events/{name}?view=snapshot")
            assert names == ["chat.7"]
            assert (await snapshot(wire)).json["text"] == "x"
            _, names, _ = await opened(gateway, f"/events/{name}?view=raw")
            assert names == ["chat.7.raw"]
            _, names, _ = await opened(gateway, f"/events/{name}")
            assert names == ["chat.7"]
        _, names, _ = await opened(gateway, f"/events?channels=chat.7,{by_id}.raw,news&view=raw")
        assert names == ["chat.7.raw", "news"]  # no token stream is called news
        _, names, _ = await opened(gateway, f"/events/{by_id}.raw")
        assert names == ["chat.7.raw"]
        for name in ("chat.8", "gateway:ops"):
            other = await ask(gateway, "GET", f"/events/{name}?view=snapshot")
            assert (other.status, "no token stream" in other.detail) == (404, True)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("{name}?view=all", "view is one of normal, raw, snapshot."),
        ("{name}?view=snapshot&channel=news", "2 channels are named"),
        ("?view=snapshot&user=7", "0 channels are named"),
        ("{name}?view=snapshot&replay=3", "leave replay out"),
        ("{name}.raw?view=snapshot", "of the normal view"),
    ],
)
async def test_a_view_that_cannot_be_is_refused_with_a_sentence(query: str, says: str) -> None:
    async with running() as gateway:
        stream = await begin(gateway)
        target = query.format(name=f"/{stream.name}")
        answer = await ask(gateway, "GET", f"/events{target}")
        assert (answer.status, says in answer.detail) == (400, True), answer.detail


async def test_a_body_has_no_view_that_there_is_not_and_a_query_none_beside_it() -> None:
    async with running() as gateway:
        body = msgspec.json.encode({"channels": ["a"], "view": "all"})
        answer = await ask(gateway, "POST", "/events", JSON, body=body)
        assert (answer.status, "view" in answer.detail) == (400, True)
        both = await ask(gateway, "POST", "/events?view=raw", JSON, body=b'{"channels": ["a"]}')
        assert (both.status, "leave view out" in both.detail) == (400, True)


async def test_polls_begin_with_a_snapshot_and_go_on_behind_it(
    bus_settings: dict[str, Any],
) -> None:
    """As a client does for which no stream comes through."""
    async with running(**bus_settings) as gateway:
        stream = await begin(gateway)
        await stream.say(*["x" * 1000] * 200)
        target = f"/poll/{stream.name}?view=snapshot&wait=0"
        polled = await ask(gateway, "GET", target)
        (first,) = events_of(polled)
        assert (first["event"], first["channel"]) == ("snapshot", stream.name)
        assert msgspec.json.decode(first["data"])["text"] == stream.text
        assert polled.json["lastEventId"] == first["id"] == str(stream.running.outlet.position)
        await stream.say("y")
        polled = await ask(gateway, "GET", f"{target}&lastEventId={first['id']}")
        assert [event["data"] for event in events_of(polled)] == ['{"text":"y"}']
        await stream.end()
        polled = await ask(gateway, "GET", target)
        (first,) = events_of(polled)
        assert msgspec.json.decode(first["data"])["state"] == "complete"
        assert str(polled.json["lastEventId"]).endswith(".closed")


# -- what is not there


@pytest.mark.parametrize("name", [NEVER, f"{NEVER}.raw", "stream:", "stream:a.b"])
async def test_nobody_waits_for_a_stream_that_never_was(
    bus_settings: dict[str, Any], name: str
) -> None:
    async with running(**bus_settings) as gateway:
        await opened(gateway, "/events/news")
        client = gateway.node.hub.members.clients
        (client_id,) = client
        body = msgspec.json.encode({"channels": ["news", name]})
        for answer in (
            await ask(gateway, "GET", f"/events/{name}", ACCEPT),
            await ask(gateway, "GET", f"/events?channels=news,{name}&view=raw"),
            await ask(gateway, "GET", f"/events/{name}?lastEventId=7-0"),
            await ask(gateway, "POST", "/events", ACCEPT, JSON, body=body),
            await ask(gateway, "GET", f"/poll/{name}?wait=0"),
            await ask(gateway, "PUT", f"/clients/{client_id}/channels/{name}", body=b""),
            await ask(gateway, "GET", "/streams/never-was"),
        ):
            assert answer.status == 404, answer
            assert answer.detail.startswith("There is no token stream of this id")
        assert len(client) == 1


@pytest.mark.parametrize("bound", [{"max_channels": 4}, {"history_total_bytes": 65_536}])
async def test_a_stream_whose_events_are_gone_is_gone_before_its_record_is(
    bound: dict[str, Any],
) -> None:
    async with running(**bound) as gateway:
        stream = await begin(gateway)
        if "max_channels" not in bound:
            await stream.say(*["x" * 1000] * 100)
        await stream.end()
        for number in range(4):
            await gateway.publish(f"other.{number}", "x" * 20_000)
        assert await gateway.node.relays.registry.find(stream.record.id) is not None
        for target in (f"/events/{stream.name}?view=snapshot", f"/streams/{stream.record.id}"):
            assert (await ask(gateway, "GET", target)).status == 404


async def test_what_has_expired_is_gone(bus_settings: dict[str, Any]) -> None:
    async with running(**bus_settings, stream_seconds=0.2) as gateway:
        stream = await begin(gateway)
        await stream.end()

        async def is_gone() -> bool:
            target = f"/events/{stream.name}?lastEventId=earliest"
            return (await ask(gateway, "GET", target)).status == 404

        with trio.fail_after(5):
            while not await is_gone():
                pass


async def test_while_redis_cannot_be_reached_a_viewer_is_told_to_come_back(
    new_prefix: str,
) -> None:
    async with redis_server() as server:
        settings: Any = {"redis": server.url, "redis_prefix": new_prefix, "redis_timeout": 0.2}
        async with running(**settings, publish_wait=0.1) as gateway:
            stream = await begin(gateway)
            await server.kill()
            for target in (f"/events/{stream.name}", f"/events/{stream.name}?view=snapshot"):
                wire = await gateway.open(target)
                assert (await wire.response()).body.endswith(
                    b'event: reconnect\ndata: {"reason":"bus"}\n\n'
                )
            for target in (f"/poll/{stream.name}?wait=0", f"/streams/{stream.record.id}"):
                answer = await ask(gateway, "GET", target)
                assert (answer.status, answer.json["reason"]) == (503, "bus")
                assert answer.header("retry-after") is not None
            assert gateway.node.refused["bus"] == 3


# -- who may view


OWNER = token("u", subscribe=["news"])
OPENER = token("o", subscribe=["news"])
ADMIN = token("root", admin=True)
ALL = token("a", subscribe=["**"])
OTHER = token("v", subscribe=["news"])
NAMELESS = token(None, subscribe=["news"])


def targets_of(record: Record) -> list[str]:
    name = record.channel
    return [
        f"/events/{name}",
        f"/events/{name}.raw",
        f"/events/{name}?view=raw",
        f"/events/{name}?view=snapshot",
        f"/poll/{name}?wait=0",
        f"/poll/{name}?wait=0&view=raw",
        f"/streams/{record.id}",
    ]


async def status_of(gateway: Gateway, target: str, credential: str | None) -> int:
    """Of an answer, of which a stream is not read."""
    wire = await gateway.connect()
    headers = (bearer(credential),) if credential is not None else ()
    await wire.send(request("GET", target, *headers))
    status = (await wire.response()).status
    await wire.aclose()
    return status


@pytest.mark.parametrize("channel", [None, "chat.7"])
async def test_its_own_user_who_opened_it_and_who_has_a_grant_may_view_it_and_nobody_else(
    channel: str | None, bus_settings: dict[str, Any]
) -> None:
    async with keyed(**bus_settings, **CHATS) as gateway:
        stream = await begin(gateway, channel=channel, user="u", publisher="sub:o")
        record = stream.record
        granted = token("g", subscribe=[record.channel])
        by_id = token("g", subscribe=[f"stream:{record.id}"])
        nameless = await begin(gateway, publisher="jti:None")
        for target in targets_of(record):
            for credential in (OWNER, OPENER, ADMIN, ALL, granted):
                assert await status_of(gateway, target, credential) == 200, target
            for credential in (OTHER, NAMELESS):
                assert await status_of(gateway, target, credential) == 403, target
            assert await status_of(gateway, target, None) == 401
        for target in targets_of(nameless.record):
            assert await status_of(gateway, target, NAMELESS) == 403, target
        for target in (f"/events/stream:{record.id}", f"/streams/{record.id}"):
            assert await status_of(gateway, target, by_id) == 200


async def test_whoever_may_not_view_learns_nothing_of_names_and_needs_a_token_for_ids() -> None:
    async with keyed(**CHATS) as gateway:
        await begin(gateway, channel="chat.7", user="u")
        for name in ("chat.7", "chat.7.raw", "chat.8"):
            for view in ("", "?view=raw", "?view=snapshot"):
                answers = [
                    await ask(gateway, "GET", f"/events/{name}{view}", *headers)
                    for headers in ((bearer(OTHER),), ())
                ]
                assert [answer.status for answer in answers] == [403, 401]
                assert [answer.detail.replace(name, "") for answer in answers] == [
                    "The channel  is not among those granted (gateway.subscribe).",
                    answers[1].detail.replace(name, ""),
                ]
        for target in (f"/events/{NEVER}", "/streams/never-was"):
            assert await status_of(gateway, target, OTHER) == 404
            assert await status_of(gateway, target, None) == 401


async def test_what_is_public_is_public_in_both_views() -> None:
    async with keyed(anonymous=True, public_channels="chat.*", **CHATS) as gateway:
        stream = await begin(gateway, channel="chat.7", user="u")
        for target in targets_of(stream.record)[:-1]:
            assert await status_of(gateway, target, None) == 200, target
        other = await begin(gateway, user="u")
        for target in targets_of(other.record):
            assert await status_of(gateway, target, None) == 401, target
        for id in (other.record.id, "never-was"):
            assert (await ask(gateway, "DELETE", f"/streams/{id}")).status == 401


async def test_its_user_adds_it_to_an_open_stream_and_a_renewed_token_leaves_it_there(
    bus_settings: dict[str, Any],
) -> None:
    async with keyed(**bus_settings, **CHATS) as gateway:
        own = await begin(gateway, user="u")
        await begin(gateway, channel="chat.7", user="u")
        other = await begin(gateway, user="v")
        wire, _, _ = await opened(gateway, "/events/news", bearer(OWNER))
        (client_id,) = gateway.node.hub.members.clients

        async def change(method: str, rest: str, credential: str) -> Response:
            target = f"/clients/{client_id}/{rest}"
            return await ask(gateway, method, target, bearer(credential), body=b"")

        for name in (own.name, f"{own.name}.raw", "chat.7"):
            added = await change("PUT", f"channels/{name}?since=earliest", OWNER)
            assert added.status == 200, added
        assert (await change("PUT", f"channels/{other.name}", OWNER)).status == 403
        assert (await change("PUT", f"channels/{other.name}", ADMIN)).status == 200
        renewed = await change("PUT", "token", token("u"))
        assert renewed.status == 200, renewed
        expected = {"global", "user:u", own.name, f"{own.name}.raw", "chat.7"}
        channels = renewed.json["channels"]
        assert isinstance(channels, list)
        assert set(channels) == expected
        await own.say("x")
        assert (await wire.event("start")).json == {"text": "x"}


async def test_a_token_is_not_renewed_while_it_cannot_be_known_what_it_may_view(
    new_prefix: str,
) -> None:
    async with redis_server() as server:
        settings = {"redis": server.url, "redis_prefix": new_prefix, "redis_timeout": 0.2}
        async with keyed(**settings, publish_wait=0.1) as gateway:
            stream = await begin(gateway, user="u")
            await opened(gateway, f"/events/{stream.name}", bearer(OWNER))
            (client,) = gateway.node.hub.members.clients.values()
            before = client.identity
            await server.kill()
            target = f"/clients/{client.id}/token"
            answer = await ask(gateway, "PUT", target, bearer(token("u")), body=b"")
            assert answer.status == 503
            assert client.identity is before
            assert client.has(stream.name)


# -- as a whole


async def test_a_stream_is_shown_whole_while_it_runs_and_afterwards(
    bus_settings: dict[str, Any],
) -> None:
    async with running(**bus_settings) as gateway:
        stream = await begin(gateway, model="m-1", user="u")
        record = stream.record
        await stream.say("Hel", "lo")
        answer = await ask(gateway, "GET", f"/streams/{record.id}")
        assert answer.header("cache-control") == "no-store"
        told = answer.json
        began = stream.running.outlet.began.ms
        first = told["firstTokenAt"]
        assert isinstance(first, int)
        assert began <= first <= stream.running.outlet.position.ms
        running_now = {
            "id": record.id,
            "channel": stream.name,
            "url": f"/events/{stream.name}",
            "upstream": "openai",
            "model": "m-1",
            "user": "u",
            "format": "openai",
            "state": "streaming",
            "text": "Hello",
            "toolUses": [],
            "tokens": 2,
            "whole": True,
            "reason": None,
            "usage": None,
            "error": None,
            "startedAt": began,
            "firstTokenAt": first,
            "endedAt": None,
            "lastEventId": str(stream.running.outlet.position),
            "expiresAt": None,
        }
        assert told == running_now
        await stream.end(Complete("length", Usage(1, 2)))
        told = (await ask(gateway, "GET", f"/streams/{record.id}")).json
        ended = stream.running.outlet.position
        assert told == running_now | {
            "state": "complete",
            "reason": "length",
            "usage": {"inputTokens": 1, "outputTokens": 2},
            "endedAt": ended.ms,
            "lastEventId": str(ended),
            "expiresAt": ended.ms + 86_400_000,
        }


async def test_an_error_is_shown_with_its_code_and_a_named_channels_own_history_counts() -> None:
    kept = rule("chat.*", Policy.CATCH_UP, history=100)
    async with running(channels=(kept,)) as gateway:
        stream = await begin(gateway, channel="chat.7")
        await stream.end(Failure("overloaded", status=529))
        told = (await ask(gateway, "GET", f"/streams/{stream.record.id}")).json
        assert told["error"] == {
            "code": "overloaded",
            "message": "The upstream is overloaded.",
            "retryable": True,
            "status": 529,
        }
        assert (told["channel"], told["url"]) == ("chat.7", "/events/chat.7")
        seconds = int(kept.history_seconds * 1000)
        assert told["expiresAt"] == stream.running.outlet.position.ms + seconds


# -- what a thousand who join cost


class Reads:
    """Counts what is read of a bus's history."""

    def __init__(self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of_channels: list[str] = []
        history = gateway.node.bus.history

        async def counted(channel: str, *rest: Any) -> Any:
            self.of_channels.append(channel)
            await trio.lowlevel.checkpoint()
            return await history(channel, *rest)

        monkeypatch.setattr(gateway.node.bus, "history", counted)


async def test_a_crowd_that_joins_late_costs_one_read(
    bus_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(**bus_settings) as gateway:
        node = gateway.node
        stream = await begin(gateway)
        await stream.say("Hello")
        head = await node.bus.subscribe((stream.name,), stream.running.outlet.position)
        reads = Reads(gateway, monkeypatch)
        frames = []

        async def join() -> None:
            begun = await node.relays.snapshot(stream.record, head, annotated=True)
            assert begun is not None
            assert begun.reached >= head
            frames.append(begun.frame)

        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(join)
        assert reads.of_channels == [stream.name]
        assert len(set(map(id, frames))) == 1  # in memory once
        assert node.relays.statistics().joined_late == 1000
        node.bus.unsubscribe((stream.name,))


async def test_what_has_come_since_is_all_that_is_read_and_of_what_has_ended_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as gateway:
        stream = await begin(gateway)
        await stream.say(*["x"] * 600)
        kept = gateway.node.relays.stories
        assert len((await kept.story(stream.record)).text) == 600
        reads = Reads(gateway, monkeypatch)
        await stream.say("y")
        assert (await kept.story(stream.record)).text == stream.text
        assert len(reads.of_channels) == 1
        await stream.end()
        assert (await kept.story(stream.record)).state == "complete"
        assert len(reads.of_channels) == 2
        for _ in range(3):
            assert (await kept.story(stream.record)).state == "complete"
            begun = await kept.snapshot(stream.record, gateway.node.bus.head(), annotated=False)
            assert begun is not None
        assert len(reads.of_channels) == 2


async def test_who_asks_while_a_read_is_under_way_is_told_what_came_before_he_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as gateway:
        stream = await begin(gateway)
        kept = gateway.node.relays.stories
        history = gateway.node.bus.history
        may_read, reading = trio.Event(), trio.Event()

        async def slow(*asked: Any) -> Any:
            page = await history(*asked)
            reading.set()
            await may_read.wait()
            return page

        monkeypatch.setattr(gateway.node.bus, "history", slow)
        found = []

        async def ask_for_it() -> None:
            found.append((await kept.story(stream.record)).text)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_for_it)
            await reading.wait()
            await stream.say("late")
            nursery.start_soon(ask_for_it)
            nursery.start_soon(ask_for_it)
            await wait_all_tasks_blocked()
            may_read.set()
        assert found[1:] == ["late", "late"]
        assert kept.reads == 2


async def test_a_read_that_is_cancelled_is_another_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as gateway:
        stream = await begin(gateway)
        await stream.say("x")
        kept = gateway.node.relays.stories
        with trio.CancelScope() as scope:
            scope.cancel()
            await kept.story(stream.record)
        assert (await kept.story(stream.record)).text == "x"


async def test_what_is_kept_is_bounded_in_streams_and_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stories, "MAX_STORIES", 3)
    monkeypatch.setattr(stories, "MAX_STORIES_BYTES", 10_000)
    async with running() as gateway:
        kept = gateway.node.relays.stories
        streams = [await begin(gateway) for _ in range(5)]
        for stream in streams:
            await stream.say("short")
            await kept.story(stream.record)
        assert len(kept) == 3
        before = kept.reads
        await kept.story(streams[2].record)
        assert (await kept.story(streams[2].record)).text == "short"
        assert len(kept) == 3
        assert kept.bytes < 10_000
        await streams[2].say("x" * 10_000)
        assert len((await kept.story(streams[2].record)).text) == 10_005  # given, and not kept
        assert (len(kept), kept.bytes) == (0, 0)
        begun = await kept.snapshot(streams[2].record, gateway.node.bus.head(), annotated=False)
        assert begun is not None
        assert (len(kept), kept.bytes) == (0, 0)
        assert kept.reads == before + 4


async def test_who_waits_too_long_to_read_a_stream_is_told_to_come_back(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Stuck(MemoryBus):
        async def history(
            self, channel: str, after: Position, until: Position, limit: int
        ) -> History:
            await trio.sleep_forever()

    config = Config()
    bus = Stuck(config, Pending(config))
    read = stories.Stories(bus, 10.0)
    record = Record("i", "stream:i", "stream:i", Format.PUSH, 0)
    refused = 0

    async def ask() -> None:
        nonlocal refused
        with pytest.raises(Unavailable):
            await read.story(record)
        refused += 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert refused == 20
    assert trio.current_time() == pytest.approx(10.0, abs=1)
