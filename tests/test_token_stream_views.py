"""How token streams are viewed: raw, from a snapshot on, whole, and by whom."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig import rule
from running import ACCEPT, Block, Gateway, Response, Wire, request, running
from test_auth import KEYS
from token_streams import begin
from tokens import SECRET

from gateway.policy import Policy
from gateway.position import Position
from gateway.relay import stories
from gateway.relay.events import Complete, Failure, ToolUse, Usage

JSON = b"Content-Type: application/json\r\n"

CHATS = {"channels": (rule("chat.**", Policy.CATCH_UP, history=1000),)}
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
    async with running(**bus_settings, **CHATS | {"channels": (CHAT_OF_3,)}) as gateway:
        stream = await begin(gateway, channel="chat.7")
        old = stream.running.outlet.position
        await stream.say(*"abcdefg")
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


CHAT_OF_3 = rule("chat.**", Policy.CATCH_UP, history=3)


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
