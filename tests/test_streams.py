"""How a stream begins and is served: history joined to the live flow, on both lanes."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from socket import socket
from typing import Any, cast
from unittest.mock import patch

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import EPOCH, AwaitingBus, BodyReader, Peer, Reader, Rig, read_body, running
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import control, fanout, replay
from gateway.bus.memory import MemoryBus
from gateway.charge import Charge
from gateway.clock import Clock
from gateway.config import Config
from gateway.errors import BadRequest, ChannelEnded, NotFound
from gateway.event import Event, Frame
from gateway.hub import Hub
from gateway.hub_client import Client
from gateway.names import is_reserved
from gateway.policy import Policy
from gateway.position import ZERO, Closed, Position, Resume, Start, parse_resume
from gateway.stream_state import Reason, State
from gateway.streams import EventStream
from gateway.tallies import Totals

BIG = "x" * 3000
QUIET = 3600.0
"""A keepalive interval that no test lives to see."""

BUSES = pytest.mark.parametrize("bus", [MemoryBus, AwaitingBus])


@asynccontextmanager
async def rig_with(bus: type[MemoryBus] = MemoryBus, **settings: Any) -> AsyncIterator[Rig]:
    async with running(Config(**{"keepalive": QUIET, **settings}), bus) as rig:
        yield rig


async def opened(rig: Rig, *channels: str, resume: Resume | int = Start.NOW) -> Peer:
    peer = await rig.open(*channels, resume=resume)
    await peer.read_all()
    return peer


async def publish_many(rig: Rig, channel: str, count: int, data: str = "") -> list[Position]:
    return [await rig.publish(channel, f"{channel}{n}{data}") for n in range(count)]


def connected_id(peer: Reader) -> str:
    (event,) = [event for event in peer.events if event.event == "connected"]
    return event.last_event_id


def check_ids(peer: Reader) -> None:
    """No id ever goes backwards on a stream."""
    positions = [Position.parse(text.removesuffix(".closed")) for text in peer.ids]
    known = [position for position in positions if position is not None]
    assert len(known) == len(positions)
    assert known == sorted(known)


# -- where a stream begins


async def test_a_fresh_stream_begins_at_h_and_has_nothing_from_before() -> None:
    async with rig_with() as rig:
        await rig.publish("a", "before")
        rig.wall += 5
        head = rig.bus.head()
        peer = await opened(rig, "a", "global")
        assert connected_id(peer) == str(head)
        (told,) = peer.told("connected")
        assert told["clientId"] == peer.client.id
        assert told["channels"] == ["a", "global"]
        await rig.publish("a", "after")
        await peer.read_all()
        assert peer.data == ["after"]


async def test_who_publishes_on_connected_gets_the_event() -> None:
    async with rig_with(AwaitingBus) as rig:
        peer = await rig.open("a")
        while not peer.events:
            peer.read(65536)
            await trio.lowlevel.checkpoint()
        assert peer.types == ["connected"]
        await rig.publish("a", "mine")
        await peer.read_all()
        assert peer.data == ["mine"]


async def test_a_resume_replays_what_was_missed_and_connected_names_its_position() -> None:
    async with rig_with() as rig:
        positions = await publish_many(rig, "a", 5)
        peer = await opened(rig, "a", resume=positions[1])
        assert connected_id(peer) == str(positions[1])
        assert peer.data == ["a2", "a3", "a4"]
        assert peer.ids == [str(position) for position in positions[1:]]
        assert peer.gaps == []


async def test_earliest_is_everything_held_without_a_gap() -> None:
    async with rig_with(history_events=3) as rig:
        await publish_many(rig, "a", 5)
        await publish_many(rig, "b", 2)
        peer = await opened(rig, "a", "b", resume=Start.EARLIEST)
        assert peer.data == ["a2", "a3", "a4", "b0", "b1"]
        assert peer.gaps == []
        check_ids(peer)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9])
async def test_a_number_is_that_of_the_newest_of_the_merged_stream(count: int) -> None:
    async with rig_with() as rig:
        for number in range(5):
            await rig.publish("ab"[number % 2], str(number))
        peer = await opened(rig, "a", "b", resume=count)
        assert peer.data == ["0", "1", "2", "3", "4"][max(0, 5 - count) :]
        assert peer.gaps == []
        check_ids(peer)


@pytest.mark.parametrize("resume", [Start.UNKNOWN, Position(EPOCH + 1, 0)], ids=str)
async def test_an_unknown_position_is_a_gap_and_the_stream_goes_on_from_h(resume: Resume) -> None:
    async with rig_with() as rig:
        await rig.publish("a", "before")
        peer = await opened(rig, "a", resume=resume)
        assert peer.types == ["connected", "gap"]
        assert peer.gaps == [(["a"], "unknown")]
        assert connected_id(peer) == str(rig.bus.head())
        await rig.publish("a", "after")
        await peer.read_all()
        assert peer.data == ["after"]


async def test_a_position_from_before_the_bus_is_a_gap_then_all_that_is_held() -> None:
    async with rig_with() as rig:
        await publish_many(rig, "a", 2)
        peer = await opened(rig, "a", resume=Position(EPOCH - 1, 0))
        assert peer.types == ["connected", "gap", "message", "message"]
        assert peer.gaps == [(["a"], "restarted")]
        assert connected_id(peer) == str(Position(EPOCH - 1, 0))


async def test_what_was_trimmed_is_a_gap_that_names_the_channel_then_what_is_held() -> None:
    async with rig_with(history_events=2) as rig:
        start = rig.bus.head()
        await publish_many(rig, "a", 5)
        await publish_many(rig, "b", 2)
        peer = await opened(rig, "a", "b", "c", resume=start)
        assert peer.types == ["connected", "gap"] + ["message"] * 4
        assert peer.gaps == [(["a"], "trimmed")]
        assert peer.data == ["a3", "a4", "b0", "b1"]
        assert rig.hub.statistics().gaps["trimmed"] == 1


async def test_a_gap_without_any_event_left_is_told_as_well() -> None:
    async with rig_with(history_events=0) as rig:
        start = rig.bus.head()
        await publish_many(rig, "a", 2)
        peer = await opened(rig, "a", resume=start)
        assert peer.types == ["connected", "gap"]


async def test_a_long_replay_is_whole_while_more_is_published() -> None:
    with patch.object(replay, "PAGE_FRAMES", 7):
        async with rig_with() as rig:
            start = rig.bus.head()
            await publish_many(rig, "a", 50, BIG)
            peer = await rig.open("a", "b", resume=start)
            for number in range(200):
                await rig.publish("ab"[number % 2], f"more {number}")
                peer.read(4000)
                await trio.lowlevel.checkpoint()
                peer.check_counters()
            await peer.read_all()
            assert len(peer.data) == 250
            assert peer.data[50:] == [f"more {number}" for number in range(200)]
            assert peer.client.state is State.LIVE
            check_ids(peer)


# -- the join under stress


class Session:
    """A client over all of its connections, each resumed from the last id that it saw."""

    def __init__(self, channels: str, *, annotated: bool = False) -> None:
        self.channels = channels
        self.annotated = annotated
        self.peer: Peer | None = None
        self.start = ZERO
        self.last_event_id = ""
        self.seen: list[Position] = []
        self.gaps: list[tuple[str, int]] = []
        """Each channel with a gap, and how many events had been seen when it was told."""

    async def connect(self, rig: Rig) -> Peer:
        resume = parse_resume(self.last_event_id) if self.last_event_id else Start.NOW
        self.peer = await rig.open(*self.channels, resume=resume, annotated=self.annotated)
        if not self.last_event_id:
            self.start = self.peer.client.position
        return self.peer

    def disconnect(self) -> None:
        """What has not been read is lost, as it is when a connection breaks."""
        peer, self.peer = self.peer, None
        assert peer is not None
        peer.sock.close()
        peer.check_counters()
        check_ids(peer)
        assert peer.dropped == 0
        gaps = iter(peer.gaps)
        for event in peer.events:
            if event.event == "gap":
                channels, reason = next(gaps)
                assert reason == "trimmed"
                self.gaps += [(name, len(self.seen)) for name in channels]
            elif event.event == "message":
                position = Position.parse(event.last_event_id)
                assert position is not None
                self.seen.append(position)
        self.last_event_id = peer.last_event_id or self.last_event_id

    def check(self, published: Sequence[tuple[Position, set[str]]]) -> None:
        """Everything was seen once and in order; before what is gone, that was said."""
        assert self.seen == sorted(set(self.seen))
        wanted = [(p, c) for p, c in published if p > self.start and c & {*self.channels}]
        assert {*self.seen} <= {position for position, _ in wanted}
        for position, channels in wanted:
            if position not in self.seen:
                assert any(
                    name in channels and all(seen < position for seen in self.seen[:told])
                    for name, told in self.gaps
                ), f"{position} of {channels} is gone, and nothing said so"


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("publish"),
            st.tuples(st.sets(st.sampled_from("abc"), min_size=1), st.integers(1, 3000)),
        ),
        st.tuples(st.just("read"), st.tuples(st.integers(0, 2), st.integers(1, 9000))),
        st.tuples(st.just("reconnect"), st.integers(0, 2)),
        st.tuples(st.just("pass time"), st.integers(0, 3)),
        st.tuples(st.just("settle"), st.just(())),
        st.tuples(st.just("yield"), st.just(())),
    ),
    min_size=10,
    max_size=100,
)


@BUSES
@settings(deadline=None, max_examples=250)
@given(STEPS, st.sampled_from([1, 4, 1000]), st.sampled_from([3, 1000]))
def test_reconnecting_clients_see_every_event_once_in_order_or_a_gap(
    bus: type[MemoryBus], steps: Sequence[tuple[str, Any]], history: int, outbox: int
) -> None:
    settings = {
        "history_events": history,
        "outbox_frames": outbox,
        "policy": Policy.CATCH_UP,
    }
    sessions = [Session("a"), Session("abc", annotated=True), Session("bc")]

    async def check() -> None:
        published: list[tuple[Position, set[str]]] = []
        async with rig_with(bus, **settings) as rig:
            for session in sessions:
                await session.connect(rig)
            for step, argument in steps:
                match step:
                    case "publish":
                        channels, size = argument
                        position = await rig.publish(channels, "x" * size)
                        published.append((position, channels))
                    case "read":
                        index, size = argument
                        peer = sessions[index].peer
                        assert peer is not None
                        peer.read(size)
                    case "reconnect":
                        sessions[argument].disconnect()
                        await sessions[argument].connect(rig)
                    case "pass time":
                        rig.wall += argument
                    case "settle":
                        await wait_all_tasks_blocked()
                    case _:
                        await trio.lowlevel.checkpoint()
                rig.check_counters()
            for session in sessions:
                peer = session.peer
                assert peer is not None
                await peer.read_all()
                assert peer.client.state is State.LIVE
                session.disconnect()
                session.check(published)
            await wait_all_tasks_blocked()
            assert rig.hub.members.clients == {}
            assert len(rig.node.streams.replays) == 0

    with (
        patch.object(fanout, "YIELD_EVERY", 1),
        patch.object(fanout, "MOST_SECONDS", 0),
        patch.object(replay, "PAGE_FRAMES", 2),
    ):
        trio.run(check, clock=MockClock())


async def test_many_clients_of_many_channels_reconnect_under_load() -> None:
    names = "abcdefgh"
    sessions = [Session(names[n % 5 : n % 5 + 1 + n % 4], annotated=n % 3 == 0) for n in range(40)]
    published: list[tuple[Position, set[str]]] = []
    async with rig_with(outbox_frames=8, policy=Policy.CATCH_UP) as rig:
        for session in sessions:
            await session.connect(rig)
        for number in range(600):
            channels = {names[number % 8], names[number // 3 % 8]}
            published.append((await rig.publish(channels, "x" * (number % 700)), channels))
            session = sessions[number * 7 % 40]
            assert session.peer is not None
            session.peer.read(200 + number * 37 % 5000)
            if number % 5 == 0:
                session.disconnect()
                await session.connect(rig)
            await trio.lowlevel.checkpoint()
        for session in sessions:
            assert session.peer is not None
            await session.peer.read_all()
            session.disconnect()
            session.check(published)
            assert session.gaps == []


# -- channels of an open stream


async def live(rig: Rig, peer: Peer) -> None:
    await peer.read_all()
    assert peer.client.state is State.LIVE


async def behind(rig: Rig, peer: Peer) -> None:
    while peer.client.state is not State.BEHIND:
        await rig.publish("a", BIG)
        await wait_all_tasks_blocked()
    await rig.publish("a", "queued")
    await wait_all_tasks_blocked()


async def replaying(rig: Rig, peer: Peer) -> None:
    await behind(rig, peer)
    rig.hub.start_replaying(peer.client)
    rig.node.streams.catch_up(peer.client)
    await wait_all_tasks_blocked()
    assert peer.client.state is State.REPLAYING


STATES = pytest.mark.parametrize("state", [live, behind, replaying])


@BUSES
@STATES
async def test_a_channel_added_is_live_from_the_position_of_the_answer(
    bus: type[MemoryBus], state: Callable[[Rig, Peer], Any]
) -> None:
    async with rig_with(bus) as rig:
        peer = await opened(rig, "a")
        await rig.publish("b", "before")
        await state(rig, peer)
        at = await rig.node.streams.add_channel(peer.client, "b", None)
        positions = [await rig.publish("b", "after"), await rig.publish(("a", "b"), "both")]
        assert at < positions[0]
        await peer.read_all()
        assert peer.data[-2:] == ["after", "both"]
        assert "before" not in peer.data
        assert peer.client.state is State.LIVE
        check_ids(peer)
        peer.check_counters()


@BUSES
@STATES
async def test_missed_events_of_an_added_channel_come_first_and_without_ids(
    bus: type[MemoryBus], state: Callable[[Rig, Peer], Any]
) -> None:
    async with rig_with(bus) as rig:
        since = rig.bus.head()
        await publish_many(rig, "b", 3)
        await rig.publish("a", "first")
        peer = await opened(rig, "a")
        await state(rig, peer)
        had = len(peer.data)
        stood = peer.last_event_id
        await rig.node.streams.add_channel(peer.client, "b", since)
        await rig.publish("b", "after")
        await peer.read_all()
        added = [event for event in peer.events if event.data in ("b0", "b1", "b2")]
        assert len(added) == 3
        places = [peer.data.index(event.data) for event in added]
        assert places == sorted(places)
        if state is live:
            assert peer.data[had:] == ["b0", "b1", "b2", "after"]
            assert {event.last_event_id for event in added} == {stood}
        assert peer.data[-1] == "after"
        assert peer.data.count("queued") == (state is not live)
        assert peer.client.state is State.LIVE
        check_ids(peer)
        peer.check_counters()


@pytest.mark.parametrize(
    ("since", "data", "gaps"),
    [
        (Start.EARLIEST, ["b3", "b4"], []),
        (Start.UNKNOWN, [], [(["b"], "unknown")]),
        (Position(EPOCH + 99, 0), [], [(["b"], "unknown")]),
        (Position(EPOCH, 0), ["b3", "b4"], [(["b"], "trimmed")]),
        (Position(EPOCH - 1, 0), ["b3", "b4"], [(["b"], "restarted")]),
        (Start.NOW, [], []),
    ],
    ids=str,
)
async def test_where_an_added_channel_begins(
    since: Resume, data: list[str], gaps: list[tuple[list[str], str]]
) -> None:
    async with rig_with(history_events=2) as rig:
        await publish_many(rig, "b", 5)
        peer = await opened(rig, "a")
        await rig.node.streams.add_channel(peer.client, "b", since)
        await peer.read_all()
        await rig.publish("b", "after")
        await peer.read_all()
        assert peer.data == [*data, "after"]
        assert peer.gaps == gaps


async def test_an_event_of_two_channels_comes_once_when_the_second_is_added() -> None:
    async with rig_with() as rig:
        since = rig.bus.head()
        await rig.publish(("a", "b"), "before the stream")
        peer = await opened(rig, "a")
        await rig.publish(("a", "b"), "through a")
        await rig.publish("b", "only b")
        await rig.publish(("b", "c"), "b and c")
        await peer.read_all()
        await rig.node.streams.add_channel(peer.client, "b", since)
        await rig.node.streams.add_channel(peer.client, "c", since)
        await peer.read_all()
        assert peer.data == ["through a", "before the stream", "only b", "b and c"]


async def test_a_channel_added_twice_at_once_is_replayed_once() -> None:
    async with rig_with(AwaitingBus) as rig:
        since = rig.bus.head()
        await publish_many(rig, "b", 2)
        peer = await opened(rig, "a")
        for _ in range(3):
            rig.add(peer, "b", since)
        await peer.read_all()
        assert peer.data == ["b0", "b1"]


async def test_a_channel_removed_while_it_is_replayed_stays_away() -> None:
    async with rig_with() as rig:
        since = rig.bus.head()
        await publish_many(rig, "b", 10, BIG)
        peer = await opened(rig, "a")
        await behind(rig, peer)
        await rig.node.streams.add_channel(peer.client, "b", since)
        await wait_all_tasks_blocked()
        assert rig.node.streams.remove_channel(peer.client, "b")
        await rig.publish("b", "not wanted")
        await peer.read_all()
        await rig.publish("b", "not wanted")
        await rig.publish("a", "wanted")
        await peer.read_all()
        assert peer.data[-1] == "wanted"
        assert "not wanted" not in peer.data
        assert set(rig.hub.members.channels) == {"a"}


@pytest.mark.parametrize("steps", range(16))
async def test_a_channel_added_or_removed_at_any_await_of_a_replay_is_obeyed(steps: int) -> None:
    async with rig_with(AwaitingBus) as rig:
        since = rig.bus.head()
        await publish_many(rig, "b", 3)
        await publish_many(rig, "a", 3)
        for removed in (False, True):
            peer = await rig.open("a", resume=since)
            for _ in range(0 if removed else steps):
                await trio.lowlevel.checkpoint()
            await rig.node.streams.add_channel(peer.client, "b", since)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            if removed:
                rig.node.streams.remove_channel(peer.client, "b")
                await rig.publish("b", "unwanted")
            await peer.read_all()
            names = [channel.name for channel in peer.client.channels]
            assert names == (["a"] if removed else ["a", "b"])
            assert peer.client.state is State.LIVE
            assert "unwanted" not in peer.data
            if not removed:
                assert Counter(peer.data) == Counter(["a0", "a1", "a2", "b0", "b1", "b2"])
            peer.check_counters()


async def test_a_removed_channel_gives_nothing_more() -> None:
    async with rig_with() as rig:
        peer = await opened(rig, "a", "b")
        assert rig.node.streams.remove_channel(peer.client, "b")
        assert not rig.node.streams.remove_channel(peer.client, "b")
        await rig.publish("b", "no")
        await rig.publish(("a", "b"), "yes")
        await peer.read_all()
        assert peer.data == ["yes"]


@pytest.mark.parametrize("since", [None, Position(EPOCH, 0)], ids=["live", "since"])
async def test_no_channel_is_added_to_a_client_that_has_ended_meanwhile(
    since: Position | None,
) -> None:
    async with rig_with(AwaitingBus) as rig:
        peer = await opened(rig, "a")

        async def close() -> None:
            rig.hub.close(peer.client, Reason.CLOSED)

        rig.nursery.start_soon(close)
        with pytest.raises(NotFound):
            await rig.node.streams.add_channel(peer.client, "b", since)
        assert rig.hub.members.channels == {}


async def test_an_ended_channel_is_not_added_to_live_on() -> None:
    async with rig_with() as rig:
        await rig.publish("b", "the end", end=True)
        peer = await opened(rig, "a")
        with pytest.raises(ChannelEnded):
            await rig.node.streams.add_channel(peer.client, "b", None)
        await rig.node.streams.add_channel(peer.client, "b", Start.EARLIEST)
        await peer.read_all()
        assert peer.data == ["the end"]
        assert [channel.name for channel in peer.client.channels] == ["a"]
        assert peer.client.state is State.LIVE


@BUSES
@settings(deadline=None, max_examples=250)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("publish"), st.sets(st.sampled_from("abc"), min_size=1)),
            st.tuples(st.just("add"), st.tuples(st.sampled_from("bc"), st.integers(0, 50))),
            st.tuples(st.just("read"), st.integers(1, 9000)),
            st.tuples(st.just("settle"), st.just(())),
            st.tuples(st.just("yield"), st.just(())),
        ),
        min_size=10,
        max_size=80,
    ),
    st.sampled_from([2, 1000]),
)
def test_added_channels_give_each_missed_event_once_and_no_id_goes_back(
    bus: type[MemoryBus], steps: Sequence[tuple[str, Any]], outbox: int
) -> None:
    async def check() -> None:
        async with rig_with(bus, outbox_frames=outbox, policy=Policy.CATCH_UP) as rig:
            moments = [rig.bus.head()]
            await rig.publish(("a", "b", "c"), "before")
            published = [(await rig.publish("b", "0"), "0", {"b"})]
            rig.wall += 1
            peer = await rig.open("a")
            begun = {"a": peer.client.position}
            for step, argument in steps:
                match step:
                    case "publish":
                        data = str(len(published))
                        size = 1 + len(published) * 997 % 3000
                        position = await rig.publish(argument, data.ljust(size, "."))
                        published.append((position, data, argument))
                        moments.append(position)
                    case "add":
                        name, index = argument
                        if name not in begun:
                            begun[name] = moments[index % len(moments)]
                            rig.add(peer, name, begun[name])
                    case "read":
                        peer.read(argument)
                    case "settle":
                        await wait_all_tasks_blocked()
                    case _:
                        await trio.lowlevel.checkpoint()
                peer.check_counters()
            await peer.read_all()
            got = [data.rstrip(".") for data in peer.data if data != "before"]
            wanted = [
                data
                for position, data, channels in published
                if any(name in channels and position > after for name, after in begun.items())
            ]
            assert sorted(got) == sorted(wanted)
            assert peer.gaps == []
            assert peer.client.state is State.LIVE
            check_ids(peer)
            peer.check_counters()

    with (
        patch.object(fanout, "YIELD_EVERY", 1),
        patch.object(fanout, "MOST_SECONDS", 0),
        patch.object(replay, "PAGE_FRAMES", 2),
    ):
        trio.run(check, clock=MockClock())


# -- the end of a channel, and closing for good


async def test_a_stream_ends_for_good_after_the_last_event_of_its_channel() -> None:
    async with rig_with() as rig:
        peer = await opened(rig, "a", "global")
        end = await rig.publish("a", "the end", end=True)
        await peer.read_all()
        assert peer.data == ["the end"]
        assert peer.last_event_id == f"{end}.closed"
        assert peer.ended
        assert peer.eof
        assert peer.client.reason is Reason.ENDED


async def test_a_stream_of_several_channels_goes_on_without_the_one_that_ended() -> None:
    async with rig_with() as rig:
        peer = await opened(rig, "a", "b")
        await rig.publish("a", "the end", end=True)
        await rig.publish("b", "on")
        await peer.read_all()
        assert peer.data == ["the end", "on"]
        assert [channel.name for channel in peer.client.channels] == ["b"]
        await rig.publish("b", "over", end=True)
        await peer.read_all()
        assert peer.ended


@BUSES
async def test_a_fresh_stream_of_an_ended_channel_is_told_to_go(bus: type[MemoryBus]) -> None:
    async with rig_with(bus) as rig:
        await rig.publish("a", "the end", end=True)
        peer = await opened(rig, "a", "global")
        assert peer.data == []
        assert isinstance(parse_resume(peer.last_event_id), Closed)
        assert peer.ended


@BUSES
async def test_a_resume_from_before_the_end_gets_the_rest_and_is_told_to_go(
    bus: type[MemoryBus],
) -> None:
    async with rig_with(bus) as rig:
        start = await rig.publish("a", "first")
        await rig.publish("a", "second")
        await rig.publish("a", "the end", end=True)
        peer = await opened(rig, "a", "global", resume=start)
        assert peer.data == ["second", "the end"]
        assert isinstance(parse_resume(peer.last_event_id), Closed)
        check_ids(peer)
        assert peer.ended


async def test_a_resume_of_several_channels_goes_on_with_those_that_have_not_ended() -> None:
    async with rig_with() as rig:
        start = rig.bus.head()
        await rig.publish("a", "the end", end=True)
        peer = await opened(rig, "a", "b", resume=start)
        await rig.publish("b", "on")
        await peer.read_all()
        assert peer.data == ["the end", "on"]
        assert peer.client.state is State.LIVE


async def test_a_slow_client_gets_the_last_event_before_it_is_told_to_go() -> None:
    async with rig_with() as rig:
        peer = await opened(rig, "a")
        await behind(rig, peer)
        await rig.publish("a", "the end", end=True)
        await wait_all_tasks_blocked()
        assert peer.client.state is State.BEHIND
        await peer.read_all()
        assert peer.data[-1] == "the end"
        assert peer.ended


class PublishesMeanwhile(MemoryBus):
    """An event comes on channel ``a`` after that was looked at for the newest."""

    async def newest(self, channel: str, limit: int) -> Sequence[Frame]:
        if channel == "b":
            await self.publish((Event(("a",), "meanwhile"),))
        return await super().newest(channel, limit)


async def test_what_comes_while_the_newest_are_looked_for_is_not_passed_over() -> None:
    async with rig_with(PublishesMeanwhile) as rig:
        peer = await opened(rig, "a", "b", resume=5)
        assert peer.data == ["meanwhile"]


async def test_no_more_channels_are_added_at_once_than_a_stream_may_have() -> None:
    async with rig_with(max_channels_per_client=3) as rig:
        peer = await opened(rig, "a")
        refused = []

        async def add(name: str) -> None:
            try:
                await rig.node.streams.add_channel(peer.client, name, Start.EARLIEST)
            except BadRequest as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(add, f"b{number}")
        assert len(refused) == 8
        assert sum(not is_reserved(c.name) for c in peer.client.channels) == 3


async def test_what_waits_of_an_ended_channel_survives_a_replay() -> None:
    """A channel added with ``since`` turns a client that is behind to history, all of it."""
    async with rig_with() as rig:
        start = rig.bus.head()
        await rig.publish("c", "missed")
        peer = await opened(rig, "a", "b")
        await behind(rig, peer)
        for data in ("one", "two"):
            await rig.publish("a", data)
        await rig.publish("a", "the end", end=True)
        await wait_all_tasks_blocked()
        await rig.node.streams.add_channel(peer.client, "c", start)
        await peer.read_all()
        assert [data for data in peer.data if len(data) < 10] == [
            "missed",
            "queued",
            "one",
            "two",
            "the end",
        ]
        assert not peer.gaps
        assert peer.client.state is State.LIVE
        assert not peer.client.has("a")


async def test_a_client_that_is_closed_for_good_is_told_where_it_stood() -> None:
    async with rig_with() as rig:
        peer = await opened(rig, "a")
        position = await rig.publish("a", "x")
        await peer.read_all()
        rig.hub.end_for_good(peer.client, Reason.CLOSED, rig.hub.proven(peer.client))
        await peer.read_all()
        told = parse_resume(peer.last_event_id)
        assert isinstance(told, Closed)
        assert told.position >= position
        assert peer.ended


# -- keepalives


async def test_keepalives_come_in_time_and_evenly_spread(autojump_clock: MockClock) -> None:
    """Ten thousand idle clients over four intervals, against a hub that only notes them."""
    interval = 15.0
    written: list[float] = []

    class NotingHub:
        def __init__(self) -> None:
            self.turn = trio.Lock()

        def proven_live(self) -> Position:
            return ZERO

        def send_keepalive(self, client: Client, data: bytes, position: Position) -> None:
            now = trio.current_time()
            silence = now - client.last_write
            assert 0.8 * interval - 1e-6 <= silence <= interval + 1e-6
            written.append(now)
            client.last_write = now

        def close_stalled(self) -> None:
            pass

    def now_ms() -> int:
        return int(trio.current_time() * 1000)

    clock = Clock(Config(keepalive=interval), cast(Hub, NotingHub()), now_ms=now_ms)
    direct = cast(socket, object())  # never touched here
    totals = Totals(Charge(0), Config(), int)
    clients = [Client(str(n), None, direct, ZERO, totals) for n in range(10_000)]
    for client in clients:
        client.state = State.LIVE
        clock.schedule(client)
    with trio.move_on_after(interval * 4):
        await clock.run()
    assert all(client.last_write > interval * 3 - 1e-6 for client in clients)
    ticks = Counter(written)
    assert max(ticks.values()) <= len(clients) / 10
    assert sum(ticks.values()) >= 4 * len(clients)


@pytest.mark.parametrize("interval", [0.05, 0.3, 1.0, 5.0, 10.0, 15.0, 100.0])
async def test_no_client_is_forgotten_by_the_clock(
    interval: float, autojump_clock: MockClock
) -> None:
    async with rig_with(keepalive=interval) as rig:
        peer = await rig.open("a", buffer=64 * 1024)
        await trio.sleep(interval * 20.5)
        assert 20 <= rig.hub.statistics().keepalives <= 26
        assert peer.client.last_write >= interval * 19.4


async def test_a_keepalive_moves_the_id_on_and_dispatches_nothing(mock_clock: MockClock) -> None:
    async with rig_with(keepalive=15.0) as rig:
        peer = await opened(rig, "a")
        rig.wall += 15_000
        await rig.publish("b", "for somebody else")
        await advance(mock_clock, 15.0)
        await peer.read_all()
        assert peer.types == ["connected"]
        assert peer.last_event_id == str(rig.bus.head())
        assert rig.hub.statistics().keepalives == 1
        check_ids(peer)


async def test_a_position_out_of_a_keepalive_resumes_without_gap_or_repeat(
    mock_clock: MockClock,
) -> None:
    async with rig_with(keepalive=15.0) as rig:
        peer = await opened(rig, "a")
        await rig.publish("a", "seen")
        rig.wall += 15_000
        await advance(mock_clock, 15.0)
        await peer.read_all()
        peer.sock.close()
        await rig.publish("a", "missed")
        resume = parse_resume(peer.last_event_id)
        back = await opened(rig, "a", resume=resume)
        assert back.data == ["missed"]
        assert back.gaps == []


async def test_no_keepalive_is_sent_while_traffic_flows(mock_clock: MockClock) -> None:
    async with rig_with(keepalive=15.0) as rig:
        peer = await opened(rig, "a")
        for _ in range(20):
            await advance(mock_clock, 5.0)
            await rig.publish("a", "x")
            await peer.read_all()
        assert rig.hub.statistics().keepalives == 0


async def test_a_client_that_is_behind_gets_no_keepalive(mock_clock: MockClock) -> None:
    async with rig_with(keepalive=15.0) as rig:
        peer = await opened(rig, "a")
        await behind(rig, peer)
        await advance(mock_clock, 30.0)
        assert rig.hub.statistics().keepalives == 0
        await peer.read_all()
        await advance(mock_clock, 15.0)
        assert rig.hub.statistics().keepalives == 1


async def test_what_is_proven_does_not_go_back_when_something_is_pending() -> None:
    async with rig_with() as rig:
        await opened(rig, "a")
        await rig.publish("a", "x")
        await wait_all_tasks_blocked()
        rig.wall += 1000
        async with rig.hub.turn:
            proven = rig.hub.proven_live()
            await rig.publish("a", "x")
            assert rig.hub.pending
            assert rig.hub.proven_live() == proven


async def advance(clock: MockClock, seconds: float) -> None:
    """Let time pass in small steps, as sockets are used meanwhile."""
    for _ in range(round(seconds * 20)):
        clock.jump(0.05)
        await wait_all_tasks_blocked()


# -- the response lane


@BUSES
async def test_a_response_joins_history_to_the_live_flow(bus: type[MemoryBus]) -> None:
    async with rig_with(bus) as rig:
        positions = await publish_many(rig, "a", 3)
        reader = await read_body(rig, "a", "b", resume=positions[0])
        await rig.publish(("a", "b"), "live")
        await wait_all_tasks_blocked()
        assert reader.types == ["connected"] + ["message"] * 3
        assert connected_id(reader) == str(positions[0])
        assert reader.data == ["a1", "a2", "live"]
        reader.check_counters()
        check_ids(reader)


async def test_a_response_that_stalls_is_told_of_its_hole_where_it_is() -> None:
    async with rig_with(outbox_frames=3) as rig:
        reader = await read_body(rig, "a")
        reader.go = trio.Event()
        for number in range(10):
            await rig.publish("a", str(number))
            await wait_all_tasks_blocked()
            reader.check_counters()
        reader.go.set()
        await wait_all_tasks_blocked()
        await rig.publish("a", "last")
        await wait_all_tasks_blocked()
        assert reader.data == ["0", "1", "2", "3", "last"]
        assert reader.types[-2:] == ["dropped", "message"]
        assert reader.dropped == 6
        reader.check_counters()


async def test_a_response_catches_up_without_loss() -> None:
    async with rig_with(outbox_frames=2, policy=Policy.CATCH_UP) as rig:
        reader = await read_body(rig, "a")
        for round_ in range(5):
            reader.go = trio.Event()
            for number in range(10):
                await rig.publish("a", f"{round_}{number}")
                await trio.lowlevel.checkpoint()
                reader.check_counters()
            reader.go.set()
            await wait_all_tasks_blocked()
            reader.check_counters()
        assert reader.data == [f"{r}{n}" for r in range(5) for n in range(10)]
        assert (reader.dropped, reader.gaps) == (0, [])


async def test_a_response_ends_with_its_channel() -> None:
    async with rig_with() as rig:
        reader = await read_body(rig, "a", "global")
        end = await rig.publish("a", "the end", end=True)
        await wait_all_tasks_blocked()
        assert reader.data == ["the end"]
        assert reader.last_event_id == f"{end}.closed"
        assert reader.ended
        assert rig.hub.open_streams == 0


async def test_a_response_that_is_finished_gets_what_waits_then_its_farewell() -> None:
    async with rig_with() as rig:
        reader = await read_body(rig, "a")
        client = reader.client
        reader.go = trio.Event()
        for number in range(3):
            await rig.publish("a", str(number))
        await wait_all_tasks_blocked()
        rig.hub.finish(client, Reason.DRAINING, control.reconnect(Reason.DRAINING))
        assert rig.hub.open_streams == 1
        reader.go.set()
        await wait_all_tasks_blocked()
        assert reader.data == ["0", "1", "2"]
        assert reader.types[-1] == "reconnect"
        assert reader.ended
        assert rig.hub.open_streams == 0


async def test_a_response_that_is_never_taken_is_closed(mock_clock: MockClock) -> None:
    async with rig_with(max_behind_seconds=10.0) as rig:
        reader = await read_body(rig, "a")
        client = reader.client
        reader.go = trio.Event()
        await rig.publish("a", "taken")
        await rig.publish("a", "waits")
        await advance(mock_clock, 11.0)
        assert client.reason is Reason.STALLED
        reader.go.set()
        await wait_all_tasks_blocked()
        assert reader.ended


async def test_a_response_gets_keepalives_and_is_not_taken_for_stalled(
    mock_clock: MockClock,
) -> None:
    async with rig_with(keepalive=15.0, max_behind_seconds=10.0) as rig:
        reader = await read_body(rig, "a")
        for _ in range(3):
            rig.wall += 15_000
            reader.go = trio.Event()
            await advance(mock_clock, 15.1)
            assert reader.last_event_id == str(rig.bus.head())
            await advance(mock_clock, 2.0)  # it takes a while to be written
            reader.go.set()
            await wait_all_tasks_blocked()
        assert reader.types == ["connected"]
        assert reader.client.reason is None
        check_ids(reader)


async def test_the_id_of_a_keepalive_does_not_go_back_during_a_pass(mock_clock: MockClock) -> None:
    async with rig_with(keepalive=15.0) as rig:
        reader = await read_body(rig, "a")
        rig.wall += 15_000
        await advance(mock_clock, 15.1)
        async with rig.hub.turn:
            await advance(mock_clock, 15.1)
        assert reader.last_event_id == str(rig.bus.head())
        check_ids(reader)


@pytest.mark.parametrize("steps", range(8))
async def test_no_keepalive_overtakes_an_event_that_came_with_it(
    steps: int, mock_clock: MockClock
) -> None:
    """The silence ends while the event is on its way through the hub, in each of its steps."""
    async with rig_with(keepalive=15.0) as rig:
        readers = [BodyReader(rig, "a") for _ in range(20)]
        for reader in readers:
            rig.nursery.start_soon(reader.run)
        await wait_all_tasks_blocked()
        rig.wall += 15_000
        await rig.publish("a", "x")
        rig.wall += 1
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        mock_clock.jump(15.0)
        await wait_all_tasks_blocked()
        for reader in readers:
            assert reader.data == ["x"]
            check_ids(reader)


@pytest.mark.parametrize("steps", range(24))
async def test_a_response_cancelled_at_any_await_leaves_no_client_behind(steps: int) -> None:
    async with rig_with(AwaitingBus) as rig:
        positions = await publish_many(rig, "a", 3)
        reader = BodyReader(rig, "a", resume=positions[0])
        rig.nursery.start_soon(reader.run)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        reader.scope.cancel()
        await wait_all_tasks_blocked()
        assert rig.hub.members.clients == {}
        assert rig.hub.members.channels == {}
        assert rig.hub.open_streams == 0
        assert len(rig.node.streams.replays) == 0


async def test_a_response_closed_after_any_piece_leaves_no_client_behind() -> None:
    async with rig_with() as rig:
        positions = await publish_many(rig, "a", 3)
        for pieces in range(3):
            body = rig.node.streams.body(EventStream(("a",), None, positions[0]))
            for _ in range(min(pieces, 2)):
                await anext(body)
            await body.aclose()
            assert rig.hub.members.clients == {}
            assert len(rig.node.streams.replays) == 0


@pytest.mark.parametrize("steps", range(16))
async def test_a_direct_stream_cancelled_at_any_await_leaves_no_client_behind(steps: int) -> None:
    async with rig_with(AwaitingBus) as rig:
        start = rig.bus.head()
        await publish_many(rig, "a", 5, BIG)
        peer = await rig.open("a", resume=start)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.node.streams.serve, peer.client)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert rig.hub.members.clients == {}
        assert len(rig.node.streams.replays) == 0
