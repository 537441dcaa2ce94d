"""Annotated streams: each event says through which of its channels it comes, and nothing else is
otherwise than on a plain stream.

Every state of a client is gone through with a plain one beside it: what a standard parser makes of
both is the same.
"""

from collections.abc import Sequence
from unittest.mock import patch

import pytest
import trio
from redis_server import redis_server
from rig import Peer, Reader, Rig, read_body, rule, running
from running import request
from running import running as serving
from trio.testing import wait_all_tasks_blocked

from gateway import control, replay
from gateway.config import Config
from gateway.event import Event, Frame, render
from gateway.hub_client import Client
from gateway.policy import Policy
from gateway.position import Position
from gateway.sse import Parser, ServerSentEvent
from gateway.stream_state import State

JSON = b"Content-Type: application/json\r\n"

BIG = "x" * 3000
"""Data of which two events fill the smallest socket buffer."""

RULES = (
    rule("drop", Policy.DROP),
    rule("latest", Policy.LATEST),
    rule("disconnect", Policy.DISCONNECT),
    rule("catch-up", Policy.CATCH_UP),
)


def blocks(reader: Reader) -> list[list[str]]:
    """The lines of each whole block that has data."""
    whole = bytes(reader.received).decode().split("\n\n")[:-1]
    return [lines for block in whole if "data" in str(lines := block.split("\n"))]


def published(reader: Reader) -> list[tuple[str, str, str]]:
    """Of each published event the name of its first line, its channels and its data."""
    found = []
    for lines in blocks(reader):
        fields = dict(line.split(": ", 1) for line in lines)
        if fields.get("event") not in control.TYPES:
            found.append((next(iter(fields)), fields.get("channel", ""), fields["data"]))
    return found


def as_ever(events: Sequence[ServerSentEvent]) -> list[tuple[str, str, str]]:
    """What a parser makes of events that knows what the standard has, and nothing else."""
    return [(event.event, event.data, event.last_event_id) for event in events]


def named(reader: Reader) -> list[tuple[str, str]]:
    """Of each published event its channels and its data."""
    return [(channel, data) for _, channel, data in published(reader)]


def state_of(client: Client) -> State:
    """As a call, since a state that was compared once is taken for granted by the type checker."""
    return client.state


async def check_nothing_is_charged(rig: Rig) -> None:
    await wait_all_tasks_blocked()
    assert rig.node.charge.clients == 0
    rig.check_counters()


async def stalled(rig: Rig, *peers: Peer, channel: str = "drop") -> None:
    """Publish to clients that do not read until all of them are behind."""
    while not all(peer.client.state is State.BEHIND for peer in peers):
        await rig.publish(channel, BIG)
        await wait_all_tasks_blocked()


# -- one frame


def test_the_line_stands_behind_the_id_and_the_rest_is_as_it_was() -> None:
    plain = render(Event(("a", "b"), "x\ny", type="t", retry=5, key="k", end=True), Position(1, 2))
    frame = plain.annotated({"b", "a", "c"})
    assert frame.block == b"id: 1-2\nchannel: a,b\nevent: t\nretry: 5\ndata: x\ndata: y\n\n"
    assert frame.without_id() == b"channel: a,b\nevent: t\nretry: 5\ndata: x\ndata: y\n\n"
    assert frame.with_at() == b"at: 1-2\nchannel: a,b\nevent: t\nretry: 5\ndata: x\ndata: y\n\n"
    assert frame.chunk == b"%x\r\n%b\r\n" % (len(frame.block), frame.block)
    assert (frame.position, frame.channels) == (plain.position, plain.channels)
    assert (frame.key, frame.end) == ("k", True)
    annotated = Parser().receive_data(frame.block)
    assert as_ever(annotated) == as_ever(Parser().receive_data(plain.block))


def test_a_frame_of_none_of_the_channels_names_none() -> None:
    frame = render(Event(("a", "b"), "x"), Position(1, 2))
    assert frame.annotated({"c"}).block == b"id: 1-2\ndata: x\n\n"


# -- live


async def test_only_channels_that_the_stream_has_are_named() -> None:
    async with running(Config()) as rig:
        peer = await rig.open_live("a", annotated=True)
        both = await rig.open_live("b", "a", annotated=True)
        await rig.publish("a", "1")
        await rig.publish(("a", "secret"), "2")
        await rig.publish(("secret", "b", "a"), "3")
        for each in (peer, both):
            await each.read_all()
        assert named(peer) == [("a", "1"), ("a", "2"), ("a", "3")]
        assert named(both) == [("a", "1"), ("a", "2"), ("b,a", "3")]


async def test_a_plain_stream_beside_an_annotated_one_stays_plain() -> None:
    async with running(Config()) as rig:
        peers = [await rig.open_live("a", "b", annotated=number % 2 == 1) for number in range(6)]
        for channels in ("a", ("a", "b"), "b"):
            await rig.publish(channels, "x")
        for number, peer in enumerate(peers):
            await peer.read_all()
            assert peer.client.state is State.LIVE
            lines = ["a", "a,b", "b"] if number % 2 else [""] * 3
            assert named(peer) == [(line, "x") for line in lines]
            assert as_ever(peer.events[1:]) == as_ever(peers[0].events[1:])
        await check_nothing_is_charged(rig)


async def test_a_pass_over_several_channels_annotates_each_event_once_for_all() -> None:
    async with running(Config()) as rig:
        made: list[Frame] = []
        annotated = Frame.annotated

        def counted(frame: Frame, channels: Sequence[str]) -> Frame:
            made.append(annotated(frame, channels))
            return made[-1]

        names = [("a",), ("b",), ("a", "b"), ("a", "b"), ("a", "c"), ("a", "b", "c")]
        peers = [await rig.open_live(*each, annotated=True) for each in names]
        plain = [await rig.open_live(*each) for each in names]
        with patch.object(Frame, "annotated", counted):
            sent = [Event(("a",), "1"), Event(("b", "c"), "2"), Event(("a", "c"), "3")]
            await rig.bus.publish(sent)
            for peer in peers + plain:
                await peer.read_all()
        assert rig.hub.statistics().passes == 1
        assert named(peers[0]) == [("a", "1"), ("a", "3")]
        assert named(peers[1]) == [("b", "2")]
        assert named(peers[2]) == named(peers[3]) == [("a", "1"), ("b", "2"), ("a", "3")]
        assert named(peers[4]) == [("a", "1"), ("c", "2"), ("a,c", "3")]
        assert named(peers[5]) == [("a", "1"), ("b,c", "2"), ("a,c", "3")]
        assert len(made) == 6
        for peer, other in zip(peers, plain, strict=True):
            assert as_ever(peer.events[1:]) == as_ever(other.events[1:])
            assert {channel for channel, _ in named(other)} == {""}
        await check_nothing_is_charged(rig)


async def test_a_channel_that_is_added_and_taken_away_again_is_named_meanwhile() -> None:
    async with running(Config()) as rig:
        peer = await rig.open_live("a", annotated=True)
        other = await rig.open_live("b")
        for number in range(3):
            if number == 1:
                await rig.node.streams.add_channel(peer.client, "b", None)
            elif number == 2:
                rig.node.streams.remove_channel(peer.client, "b")
            await rig.publish(("a", "b"), str(number))
            await peer.read_all()
        assert named(peer) == [("a", "0"), ("a,b", "1"), ("a", "2")]
        await other.read_all()
        assert named(other) == [("", "0"), ("", "1"), ("", "2")]
        assert rig.hub.members.channels["b"].annotated == 0
        assert rig.hub.members.channels["a"].annotated == 1


async def test_a_notice_of_the_gateway_is_not_annotated() -> None:
    async with running(Config()) as rig:
        peer = await rig.open_live("a", annotated=True)
        await rig.publish("a", "x")
        await rig.node._fanout.tell_gap(None, Position(2**40, 0), control.Gap.RESTARTED)
        await peer.read_all()
        assert blocks(peer)[2:] == [["event: gap", 'data: {"channels":["a"],"reason":"restarted"}']]


# -- behind


@pytest.mark.parametrize("channel", [each.match for each in RULES])
async def test_what_waits_is_annotated_and_charged_whatever_the_policy(channel: str) -> None:
    async with running(Config(channels=RULES, outbox_frames=3)) as rig:
        peers = [await rig.open_live(channel, "b", annotated=each) for each in (False, True)]
        await stalled(rig, *peers, channel=channel)
        for _ in range(6):
            await rig.publish((channel, "b"), BIG)
            await wait_all_tasks_blocked()
            rig.check_counters()
        assert rig.node.charge.clients > 0 or channel == "disconnect"
        for peer in peers:
            await peer.read_all()
        plain, annotated = peers
        assert annotated.types == plain.types
        assert annotated.ids[1:] == plain.ids[1:]
        assert annotated.dropped == plain.dropped
        assert {line for line, _ in named(annotated)} <= {channel, f"{channel},b"}
        assert ("", BIG) not in named(annotated)
        if channel != "disconnect":
            assert named(annotated)[-1] == (f"{channel},b", BIG)
            assert state_of(annotated.client) is State.LIVE
        await check_nothing_is_charged(rig)


async def test_annotated_readers_that_stall_share_what_waits_for_them() -> None:
    async with running(Config()) as rig:
        peers = [await rig.open_live("a", annotated=True) for _ in range(20)]
        await stalled(rig, *peers, channel="a")
        before = rig.node.charge.clients
        await rig.publish("a", BIG)
        await wait_all_tasks_blocked()
        assert len(BIG) < rig.node.charge.clients - before < 2 * len(BIG)
        for peer in peers:
            await peer.read_all()
        await check_nothing_is_charged(rig)


async def test_a_reader_that_is_thrown_out_of_memory_is_charged_nothing_any_more() -> None:
    async with running(Config()) as rig:
        peer = await rig.open_live("a", annotated=True)
        await stalled(rig, peer, channel="a")
        for _ in range(5):
            await rig.publish("a", BIG)
        await wait_all_tasks_blocked()
        assert rig.hub.throw_out(peer.client) > 0
        await peer.read_all()
        await check_nothing_is_charged(rig)
        assert peer.dropped == peer.client.dropped


# -- out of history


async def test_a_replay_names_the_channels_of_each_event() -> None:
    with patch.object(replay, "PAGE_FRAMES", 7):
        async with running(Config()) as rig:
            for number in range(40):
                await rig.publish(("a", ("b", "a"), "b", ("c", "b"))[number % 4], str(number))
            peers = [
                await rig.open("a", "b", resume=resume, annotated=annotated)
                for resume in (Position(1, 0), 20)
                for annotated in (False, True)
            ]
            for peer in peers:
                await peer.read_all()
            lines = ["a", "b,a", "b", "b"]
            for count, (plain, annotated) in zip((40, 20), (peers[:2], peers[2:]), strict=True):
                numbers = range(40 - count, 40)
                assert named(annotated) == [(lines[n % 4], str(n)) for n in numbers]
                assert as_ever(annotated.events[1:]) == as_ever(plain.events[1:])
                assert state_of(annotated.client) is State.LIVE
            await check_nothing_is_charged(rig)


async def test_a_stalled_replay_is_charged_what_it_holds() -> None:
    async with running(Config()) as rig:
        for _ in range(20):
            await rig.publish("a", BIG)
        peer = await rig.open("a", resume=Position(1, 0), annotated=True)
        await wait_all_tasks_blocked()
        assert rig.node.charge.clients > len(BIG)
        rig.check_counters()
        await peer.read_all()
        assert named(peer) == [("a", BIG)] * 20
        await check_nothing_is_charged(rig)


@pytest.mark.parametrize("lane", ["direct", "response"])
async def test_missed_events_of_an_added_channel_say_where_they_stand(lane: str) -> None:
    async with running(Config()) as rig:
        positions = [await rig.publish(("b", "c"), f"missed {n}") for n in range(2)]
        reader: Reader
        if lane == "direct":
            reader = peer = await rig.open_live("a", annotated=True)
            client = peer.client
        else:
            reader = body = await read_body(rig, "a", annotated=True)
            client = body.client
        await rig.publish("a", "own")
        await wait_all_tasks_blocked()
        await rig.node.streams.add_channel(client, "b", Position(*positions[0]).before())
        await wait_all_tasks_blocked()
        await rig.publish(("a", "b"), "live")
        if isinstance(reader, Peer):
            await reader.read_all()
        await wait_all_tasks_blocked()
        assert published(reader) == [
            ("id", "a", "own"),
            ("at", "b", "missed 0"),
            ("at", "b", "missed 1"),
            ("id", "a,b", "live"),
        ]
        missed = [dict(line.split(": ", 1) for line in each)["at"] for each in blocks(reader)[2:4]]
        assert missed == [str(position) for position in positions]
        await check_nothing_is_charged(rig)


async def test_missed_events_of_a_channel_added_to_a_plain_stream_say_nothing_more() -> None:
    async with running(Config()) as rig:
        await rig.publish("b", "missed")
        peer = await rig.open_live("a")
        await rig.node.streams.add_channel(peer.client, "b", Position(1, 0))
        await peer.read_all()
        assert published(peer)[-1] == ("data", "", "missed")


async def test_a_stream_catches_up_annotated() -> None:
    async with running(Config(policy=Policy.CATCH_UP, outbox_frames=3)) as rig:
        peer = await rig.open_live("a", "b", annotated=True)
        for number in range(30):
            await rig.publish(("a", "b") if number % 2 else "a", f"{number} {BIG}")
            await wait_all_tasks_blocked()
            peer.check_counters()
        assert state_of(peer.client) is State.REPLAYING
        await peer.read_all()
        assert named(peer) == [("a,b" if n % 2 else "a", f"{n} {BIG}") for n in range(30)]
        await check_nothing_is_charged(rig)


# -- the response lane


async def test_the_response_lane_annotates_live_and_out_of_history() -> None:
    async with running(Config()) as rig:
        await rig.publish(("a", "secret"), "old")
        reader = await read_body(rig, "a", "b", resume=Position(1, 0), annotated=True)
        await rig.publish(("b", "a"), "new")
        await wait_all_tasks_blocked()
        assert named(reader) == [("a", "old"), ("b,a", "new")]
        assert reader.events[-1].last_event_id == str(rig.bus.head())
        reader.check_counters()
        await check_nothing_is_charged(rig)


async def test_many_annotated_readers_lose_nothing_while_channels_come_and_go() -> None:
    """Every one sees each of its events once, in order, named as it is, or is told how many not."""
    async with running(Config(outbox_frames=4)) as rig:
        peers = [
            await rig.open_live(*("a", "b", "c")[: n % 3 + 1], annotated=n % 2 == 0)
            for n in range(24)
        ]
        sent: list[tuple[str, ...]] = []
        for number in range(300):
            channels = tuple(sorted({"abc"[number % 3], "abc"[number // 3 % 3]}))
            sent.append(channels)
            await rig.publish(channels, f"{number} {'x' * (number % 7 * 300)}")
            peers[number * 7 % 24].read(5000)
            if number % 5 == 0:
                await trio.lowlevel.checkpoint()
            rig.check_counters()
        for number, peer in enumerate(peers):
            await peer.read_all()
            mine = {"a", "b", "c"} & {channel.name for channel in peer.client.channels}
            seen = [int(data.split(" ")[0]) for _, data in named(peer)]
            wanted = [n for n, channels in enumerate(sent) if mine & set(channels)]
            assert seen == sorted(set(seen) & set(wanted))
            assert len(seen) + peer.dropped == len(wanted)
            for line, data in named(peer):
                channels = sent[int(data.split(" ")[0])]
                expected = ",".join(name for name in channels if name in mine)
                assert line == ("" if number % 2 else expected)
        await check_nothing_is_charged(rig)


# -- over the wire


ASKED = {"true": "true", "false": "", "": ""}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("text", ASKED)
async def test_whoever_asks_gets_an_annotated_stream(text: str, version: str) -> None:
    async with serving() as gateway:
        wires = [
            await gateway.open(f"{target}annotate={text}", version=version)
            for target in ("/events/a?", "/events?channel=a&")
        ]
        for wire in wires:
            await wire.opened()
        position = await gateway.publish("a", "x")
        for wire in wires:
            block = await wire.event()
            annotation = {"channel": "a"} if ASKED[text] else {}
            assert block.fields == {"id": position} | annotation
            assert block.data == "x"


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("text", ["1", "True", "yes", "true,false", "a"])
async def test_anything_else_is_refused_with_what_would_be_right(text: str, version: str) -> None:
    async with serving() as gateway:
        raw = request("GET", f"/events/a?annotate={text}", version=version)
        response = await gateway.ask(raw)
        assert (response.status, response.detail) == (400, "annotate is true or false.")


async def test_a_poll_is_as_it_is() -> None:
    async with serving() as gateway:
        await gateway.publish("a", "x")
        answers = [
            await gateway.ask(request("GET", f"/poll/a?wait=0&replay=1{more}"))
            for more in ("", "&annotate=true", "&annotate=nonsense")
        ]
        assert len({answer.body for answer in answers}) == 1
        assert answers[0].status == 200


async def test_events_of_another_node_are_annotated_on_both_lanes() -> None:
    """Live, out of history, and missed of a channel that is added through the other node."""
    async with (
        redis_server() as redis,
        serving(redis=redis.url, node_id="a") as a,
        serving(redis=redis.url, node_id="b") as b,
    ):
        first = await a.publish("b", "missed")
        wires = [
            await b.open("/events/a?annotate=true", version=version) for version in ("1.1", "1.0")
        ]
        for wire in wires:
            client = (await wire.opened())["clientId"]
            put = request("PUT", f"/clients/{client}/channels/b?since=earliest")
            assert (await a.ask(put)).status == 200
            missed = await wire.event()
            assert (missed.fields, missed.data) == ({"at": first, "channel": "b"}, "missed")
        event = b'{"channels": ["b", "c", "a"], "event": "t", "data": "live"}'
        answer = await a.ask(request("POST", "/publish", JSON, body=event))
        live = {"id": str(answer.json["id"]), "event": "t"}
        for wire in wires:
            block = await wire.event()
            assert (block.fields, block.data) == (live | {"channel": "b,a"}, "live")
        target = f"/events?channels=c,a&annotate=true&lastEventId={first}"
        for version in ("1.1", "1.0"):
            again = await b.open(target, version=version)
            await again.opened()
            block = await again.event()
            assert (block.fields, block.data) == (live | {"channel": "c,a"}, "live")
