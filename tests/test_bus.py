"""What every bus promises, held against each of them; see the module `gateway.bus`."""

import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest
import trio
from buses import FakeSink, Wall, event, held, published, read_pages, refused, up_to_date
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import rule
from trio.testing import MockClock

from gateway.bus import Bus
from gateway.bus import memory as memory_module
from gateway.bus import redis as redis_module
from gateway.bus.address import parse_address
from gateway.bus.memory import MemoryBus
from gateway.bus.redis import RedisBus
from gateway.config import Config
from gateway.errors import BadRequest, ChannelEnded, GatewayError, Unavailable
from gateway.event import render
from gateway.position import ZERO, Position

CONFIG = Config(redis_timeout=20.0)
MANY = 10_000

CHANNELS = ("a", "b", "c", "d", "e", "new", "never", "over")
"""Subscribed to from the start: a bus with a network delivers only what is."""

ANSWER_SECONDS = 0.05
"""Real time that a Redis beside us takes for any answer, at the most; then virtual time goes on."""


_numbers = itertools.count()


@dataclass(frozen=True)
class Kind:
    """A kind of bus, and what its tests must know of it."""

    port: int | None
    """Of Redis, if that is what it needs."""

    @property
    def clock(self) -> MockClock:
        return MockClock(autojump_threshold=ANSWER_SECONDS if self.port else 0)

    def examples(self, of_memory: int) -> int:
        """How many examples of a property it is tested with."""
        return of_memory // 5 if self.port else of_memory

    def make(self, config: Config, sink: FakeSink, wall: Wall) -> Bus:
        if self.port is None:
            return MemoryBus(config, sink, now_ms=wall)
        return RedisBus(
            replace(config, redis_prefix=f"bus{next(_numbers)}:"),
            parse_address(f"redis://127.0.0.1:{self.port}/0"),
            sink,
            worker="worker",
            tell_gap=sink.tell_gap,
            now_ms=wall,
        )

    @property
    def sweep_seconds(self) -> float:
        return redis_module.SWEEP_SECONDS if self.port else memory_module.SWEEP_SECONDS

    async def swept(self) -> None:
        """Return when a running bus has done what it does now and then."""
        await trio.sleep(self.sweep_seconds * 1.5)


BUSES = ["memory", "redis"]

MakeBus: TypeAlias = Callable[..., Awaitable[Bus]]


@pytest.fixture(params=BUSES)
def kind(request: pytest.FixtureRequest) -> Kind:
    return Kind(request.getfixturevalue("redis_port") if request.param == "redis" else None)


memory_alone = pytest.mark.parametrize("kind", ["memory"], indirect=True)
"""What it refuses, forgets and counts as a matter of its own memory."""


@pytest.fixture
def clock(kind: Kind) -> MockClock:
    """Virtual time: only for a test that asks for it by itself."""
    return kind.clock


@pytest.fixture
def make_bus(kind: Kind, nursery: trio.Nursery) -> MakeBus:
    async def make(config: Config, sink: FakeSink, wall: Wall) -> Bus:
        return await running(kind.make(config, sink, wall), nursery)

    return make


@pytest.fixture
def sink() -> FakeSink:
    return FakeSink()


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def bus(make_bus: MakeBus, sink: FakeSink, wall: Wall) -> Bus:
    return await make_bus(CONFIG, sink, wall)


async def running(bus: Bus, nursery: trio.Nursery, channels: Collection[str] = CHANNELS) -> Bus:
    nursery.start_soon(bus.run)
    await bus.subscribe(channels)
    return bus


# -- one order


async def test_positions_grow_strictly_over_all_channels(bus: Bus, wall: Wall) -> None:
    positions = []
    for step in range(40):
        wall.ms += step % 3
        positions += await published(bus, event("a"), event("b"), event("a", "c"))
    assert positions == sorted(set(positions))


async def test_positions_grow_when_the_clock_steps_back(bus: Bus, wall: Wall) -> None:
    positions = await published(bus, event())
    for step in (-3_600_000, 1, 0, 5_000, -1, 3_600_000):
        wall.ms += step
        head = await up_to_date(bus)
        positions += [head] if head > positions[-1] else []
        positions += await published(bus, event("b"), event())
    assert positions == sorted(set(positions))


async def test_the_head_is_never_before_an_event_and_always_before_the_next(
    bus: Bus, wall: Wall
) -> None:
    for step in (0, 1, -1000, 0, 1001):
        wall.ms += step
        head = await up_to_date(bus)
        (position,) = await published(bus, event())
        assert head < position <= await up_to_date(bus)


async def test_frames_reach_the_sink_in_position_order(bus: Bus, sink: FakeSink) -> None:
    positions = await published(bus, *(event("ab"[n % 2]) for n in range(20)))
    await sink.until(20)
    assert sink.positions == positions


async def test_an_event_of_several_channels_has_one_position_in_each_and_is_sent_once(
    bus: Bus, sink: FakeSink
) -> None:
    (position,) = await published(bus, event("a", "b", "c"))
    assert [await held(bus, name) for name in "abc"] == [[position]] * 3
    await up_to_date(bus)
    assert sink.positions == [position]


# -- published means kept


async def test_what_publish_returned_is_in_history_and_delivered(bus: Bus, sink: FakeSink) -> None:
    (position,) = await published(bus, event(data="hello"))
    assert await held(bus, "a") == [position]
    await sink.until(1)
    assert b"data: hello\n" in sink.frames[0].block
    assert await bus.last("a") == position


@memory_alone
async def test_without_room_nothing_is_taken(bus: Bus, sink: FakeSink, wall: Wall) -> None:
    await published(bus, event(end=False))
    before = await held(bus, "a")
    sink.full = True
    assert isinstance(await refused(bus, event("a", "new", id="1")), Unavailable)
    sink.full = False
    assert await held(bus, "a") == before
    assert await bus.last("new") is None
    assert len(sink.frames) == 1
    assert (await published(bus, event("a", "new", id="1")))[0] > before[0]


@memory_alone
async def test_whoever_has_patience_waits_for_room(
    bus: Bus, sink: FakeSink, clock: MockClock, nursery: trio.Nursery
) -> None:
    sink.full = True
    results: list[Position | GatewayError] = []

    async def publish() -> None:
        results.extend(await bus.publish([event(data=str(n)) for n in range(3)], 300.0))

    nursery.start_soon(publish)
    await trio.sleep(299)
    assert results == []
    sink.make_room()
    await sink.until(3)
    assert [type(each) for each in results] == [Position] * 3
    assert sink.positions == results


@memory_alone
async def test_behind_what_found_no_room_in_time_nothing_of_the_call_is_taken(
    bus: Bus, sink: FakeSink, clock: MockClock
) -> None:
    """Though there is room again for what comes behind."""
    sink.full = True
    asked, room = 0, sink.room

    async def no_room_once(size: int, patience: float | None = None) -> None:
        nonlocal asked
        asked += 1
        try:
            await room(size, patience)
        finally:
            sink.make_room()

    sink.room = no_room_once  # type: ignore[method-assign]
    began = trio.current_time()
    results = await bus.publish([event(data=str(n)) for n in range(3)], 30.0)
    assert trio.current_time() - began == 30
    assert [type(each) for each in results] == [Unavailable] * 3
    assert (asked, sink.frames) == (1, [])
    assert bus.statistics().refused == 3


async def test_patience_is_for_any_number_of_events(bus: Bus, sink: FakeSink) -> None:
    assert list(await bus.publish([], 1.0)) == []
    sent = [event("a", "b", data=str(n)) for n in range(400)]
    results = [each for each in await bus.publish(sent, 20.0) if isinstance(each, Position)]
    await sink.until(400)
    assert sink.positions == results == sorted(set(results))
    assert [frame.block.count(b"data: %d\n" % n) for n, frame in enumerate(sink.frames)] == [
        1
    ] * 400


async def test_behind_what_is_refused_for_itself_the_call_goes_on(bus: Bus, wall: Wall) -> None:
    await published(bus, event("over", end=True))
    results = await bus.publish([event(), event("over"), event()], 20.0)
    assert [type(each) for each in results] == [Position, ChannelEnded, Position]


@pytest.mark.parametrize("channels", [("a",), ("a", "new"), ("new", "a")])
async def test_an_ended_channel_takes_no_event_and_no_trace_is_left(
    bus: Bus, sink: FakeSink, channels: tuple[str, ...]
) -> None:
    (end,) = await published(bus, event(end=True))
    error = await refused(bus, event(*channels, id="1"))
    assert isinstance(error, ChannelEnded)
    assert error.status == 409
    assert await held(bus, "a") == [end]
    assert await bus.last("new") is None
    await up_to_date(bus)
    assert sink.positions == [end]


async def test_an_event_that_cannot_be_written_leaves_no_trace(bus: Bus, sink: FakeSink) -> None:
    assert isinstance(await refused(bus, event(type="two\nlines")), BadRequest)
    assert await bus.last("a") is None
    await up_to_date(bus)
    assert sink.frames == []


async def test_a_refused_event_does_not_keep_others_of_its_batch_out(
    bus: Bus, sink: FakeSink
) -> None:
    await published(bus, event("over", end=True))
    first, error, last = await bus.publish([event(), event("over"), event()])
    assert isinstance(error, ChannelEnded)
    assert await held(bus, "a") == [first, last]
    assert bus.statistics().refused == 1


async def test_the_end_of_a_channel_is_known_by_its_position(bus: Bus) -> None:
    await published(bus, event())
    assert await bus.ended("a") is None
    (end,) = await published(bus, event("a", "b", end=True))
    await up_to_date(bus)
    assert await bus.ended("a") == end
    assert await bus.ended("b") == end
    assert await bus.ended("never") is None


# -- the join


async def test_what_is_published_after_subscribing_is_later_than_h(
    bus: Bus, sink: FakeSink, wall: Wall
) -> None:
    for step in (0, 1, -5, 0):
        wall.ms += step
        before = await published(bus, event())
        head = await bus.subscribe(["a"])
        after = await published(bus, event())
        assert before[0] <= head < after[0]
        await up_to_date(bus)
        assert sink.positions[-1] == after[0]
        history = await bus.history("a", ZERO, head, MANY)
        assert history.frames[-1].position == before[0]


# -- history


async def test_history_is_open_at_its_start_and_closed_at_its_end(bus: Bus) -> None:
    positions = await published(bus, *[event()] * 5)
    history = await bus.history("a", positions[0], positions[3], MANY)
    assert [frame.position for frame in history.frames] == positions[1:4]
    assert history.previous == positions[0]
    assert history.complete


async def test_a_short_page_says_that_more_follows(bus: Bus) -> None:
    positions = await published(bus, *[event()] * 5)
    history = await bus.history("a", positions[0], positions[4], 2)
    assert [frame.position for frame in history.frames] == positions[1:3]
    assert not history.complete
    assert (await bus.history("a", positions[2], positions[4], 2)).complete


async def test_newest_are_the_last_held_oldest_first(bus: Bus) -> None:
    positions = await published(bus, *[event()] * 5)
    assert [frame.position for frame in await bus.newest("a", 3)] == positions[2:]
    assert len(await bus.newest("a", 9)) == 5
    assert list(await bus.newest("a", 0)) == []
    assert list(await bus.newest("never", 3)) == []


async def test_history_is_bounded_in_events(make_bus: MakeBus, sink: FakeSink, wall: Wall) -> None:
    bus = await make_bus(replace(CONFIG, history_events=3), sink, wall)
    positions = await published(bus, *[event("kept")] * 10)
    history = await bus.history("kept", positions[0], await up_to_date(bus), MANY)
    assert [frame.position for frame in history.frames] == positions[-3:]
    assert history.previous == positions[-4]


async def test_history_is_bounded_in_bytes(make_bus: MakeBus, sink: FakeSink, wall: Wall) -> None:
    bus = await make_bus(replace(CONFIG, history_bytes=3000), sink, wall)
    positions = await published(bus, *[event("kept", data="x" * 300)] * 20)
    history = await bus.history("kept", positions[0], await up_to_date(bus), MANY)
    kept = [frame.position for frame in history.frames]
    assert 1 < len(kept) < 10
    assert kept == positions[-len(kept) :]
    assert history.previous == positions[-len(kept) - 1]
    assert sum(len(frame.chunk) for frame in history.frames) <= 3000


async def test_history_is_bounded_in_age(
    bus: Bus, wall: Wall, kind: Kind, clock: MockClock
) -> None:
    (old,) = await published(bus, event())
    wall.ms += 200_000
    (young,) = await published(bus, event())
    wall.ms += 200_000
    await kind.swept()
    history = await bus.history("a", ZERO, await up_to_date(bus), MANY)
    assert [frame.position for frame in history.frames] == [young]
    assert history.previous == old


async def test_without_history_the_last_position_is_still_known(
    make_bus: MakeBus, sink: FakeSink, wall: Wall
) -> None:
    bus = await make_bus(replace(CONFIG, history_events=0), sink, wall)
    positions = await published(bus, *[event("kept")] * 3)
    history = await bus.history("kept", positions[1], await up_to_date(bus), MANY)
    assert list(history.frames) == []
    assert history.previous == positions[2]
    assert history.complete


@pytest.mark.parametrize("channel", ["a", "kept"])
async def test_a_channel_that_was_silent_for_its_time_may_begin_anew(
    bus: Bus, wall: Wall, kind: Kind, clock: MockClock, channel: str
) -> None:
    await published(bus, event(channel, end=True))
    wall.ms += 301_000
    await kind.swept()
    assert await bus.ended(channel) is None
    assert await bus.last(channel) is None
    (position,) = await published(bus, event(channel))
    assert await held(bus, channel) == [position]


async def test_what_age_has_vouched_for_is_not_taken_back_with_the_clock(
    bus: Bus, wall: Wall, kind: Kind, clock: MockClock
) -> None:
    before = await up_to_date(bus)
    await published(bus, event())
    wall.ms += 301_000
    await kind.swept()
    wall.ms -= 301_000
    assert (await bus.history("a", before, await up_to_date(bus), MANY)).previous > before


async def test_an_unknown_channel_has_no_gap_for_a_recent_position(bus: Bus, wall: Wall) -> None:
    position = await up_to_date(bus)
    wall.ms += 299_000
    history = await bus.history("never", position, await up_to_date(bus), MANY)
    assert history.previous <= position
    assert history.complete
    assert list(history.frames) == []


async def test_a_bus_vouches_for_no_position_from_before_it_began(bus: Bus, wall: Wall) -> None:
    began = await up_to_date(bus)
    wall.ms += 5000
    (position,) = await published(bus, event())
    assert bus.vouches(began)
    assert bus.vouches(position)
    assert not bus.vouches(began.before())


@memory_alone
async def test_a_channel_over_the_most_takes_the_place_of_the_longest_unused(
    make_bus: MakeBus, sink: FakeSink, wall: Wall
) -> None:
    bus = await make_bus(replace(CONFIG, max_channels=2), sink, wall)
    a, _, _ = await published(bus, event("a"), event("b"), event("a"))
    (b2,) = await published(bus, event("b"))
    await published(bus, event("c"))
    assert bus.statistics().channels == 2
    assert len(await held(bus, "b")) == 2
    assert await held(bus, "a") == []
    history = await bus.history("a", a, await up_to_date(bus), MANY)
    assert history.previous > a
    assert (await bus.history("b", a, b2, MANY)).previous <= a


@memory_alone
async def test_an_event_of_more_channels_than_are_remembered_is_not_lost_silently(
    make_bus: MakeBus,
    sink: FakeSink,
    wall: Wall,
    kind: Kind,
    clock: MockClock,
) -> None:
    bus = await make_bus(replace(CONFIG, max_channels=2), sink, wall)
    before = await up_to_date(bus)
    await published(bus, event("a", "b", "c"))
    for name in "abc":
        history = await bus.history(name, before, await up_to_date(bus), MANY)
        assert history.previous > before or len(history.frames) == 1
    wall.ms += 301_000
    await kind.swept()
    assert bus.statistics().history_bytes == 0


@memory_alone
async def test_histories_over_the_bound_of_the_node_go_longest_unused_first(
    make_bus: MakeBus, sink: FakeSink, wall: Wall
) -> None:
    bus = await make_bus(replace(CONFIG, history_total_bytes=10_000), sink, wall)
    before = await up_to_date(bus)
    for name in "abcdef":
        await published(bus, event(name, data="x" * 2000))  # with what a frame costs beside it
    assert bus.statistics().history_bytes <= 10_000
    assert await held(bus, "a") == []
    assert (await bus.history("a", before, await up_to_date(bus), MANY)).previous > before
    assert len(await held(bus, "f")) == 1


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sets(st.sampled_from("abcde"), min_size=1, max_size=3)),
        st.tuples(st.just("pass time"), st.integers(-12_000, 120_000)),
        st.tuples(st.just("sweep"), st.just(0)),
    ),
    max_size=60,
)

BOUNDS = st.fixed_dictionaries(
    {
        "history_events": st.integers(0, 4),
        "history_bytes": st.integers(100, 1000),
        "history_total_bytes": st.integers(0, 3000),
        "max_channels": st.integers(1, 6),
        "history_seconds": st.sampled_from([30.0, 90.0, 300.0]),  # beyond what a test takes
    }
)


def test_history_never_says_no_gap_when_something_is_gone(kind: Kind) -> None:
    @settings(deadline=None, max_examples=kind.examples(150))
    @given(OPERATIONS, BOUNDS, st.sets(st.sampled_from("abcde")), st.integers(1, 5), st.data())
    def check(
        operations: Sequence[tuple[str, Any]],
        bounds: dict[str, Any],
        subscribed: set[str],
        limit: int,
        data: st.DataObject,
    ) -> None:
        async def run() -> None:
            wall = Wall()
            async with trio.open_nursery() as nursery:
                made = kind.make(replace(CONFIG, **bounds), FakeSink(), wall)
                bus = await running(made, nursery, subscribed)
                model, moments = await operate(bus, wall, kind, operations)
                after, until = data.draw(st.sampled_from(moments)), await up_to_date(bus)
                for name in "abcde":
                    gap, pages = await read_pages(bus, name, after, until, limit)
                    missed = [p for p in model[name] if p > after]
                    gone = [p for p in missed if p not in pages]
                    assert pages == [p for p in missed if p in pages]
                    assert gap or not gone, f"{gone} of {name} are gone, and nothing says so"
                nursery.cancel_scope.cancel()

        trio.run(run, clock=kind.clock)

    check()


BATCHES = st.lists(
    st.tuples(st.sets(st.sampled_from("abc"), min_size=1), st.integers(0, 20)), max_size=40
)


def test_history_says_a_gap_if_and_only_if_something_is_gone(kind: Kind) -> None:
    """Within the time that age vouches for, and while no bound of the node is reached."""

    @settings(deadline=None, max_examples=kind.examples(100))
    @given(BATCHES, st.integers(0, 6), st.integers(1, 4), st.data())
    def check(
        batches: list[tuple[set[str], int]], events: int, limit: int, data: st.DataObject
    ) -> None:
        operations: list[tuple[str, Any]] = []
        for channels, step in batches:
            operations += [("publish", channels), ("pass time", step)]

        async def run() -> None:
            wall = Wall()
            async with trio.open_nursery() as nursery:
                made = kind.make(replace(CONFIG, history_events=events), FakeSink(), wall)
                bus = await running(made, nursery, ())
                model, moments = await operate(bus, wall, kind, operations)
                after, until = data.draw(st.sampled_from(moments)), await up_to_date(bus)
                for name in "abc":
                    gap, pages = await read_pages(bus, name, after, until, limit)
                    kept = model[name][max(0, len(model[name]) - events) :]
                    assert pages == [p for p in kept if p > after]
                    assert gap == any(p > after and p not in kept for p in model[name])
                nursery.cancel_scope.cancel()

        trio.run(run, clock=kind.clock)

    check()


async def operate(
    bus: Bus, wall: Wall, kind: Kind, operations: Sequence[tuple[str, Any]]
) -> tuple[dict[str, list[Position]], list[Position]]:
    """What was published on each channel, and all positions that a client may have seen."""
    model: dict[str, list[Position]] = defaultdict(list)
    moments = [await up_to_date(bus)]
    for operation, argument in operations:
        match operation:
            case "publish":
                (position,) = await published(bus, event(*argument))
                for name in argument:
                    model[name].append(position)
                moments.append(position)
            case "pass time":
                wall.ms += argument
                moments.append(await up_to_date(bus))
            case "sweep":
                await kind.swept()
    return model, moments


# -- dedupe


async def test_a_repeated_id_gets_the_first_position_and_is_not_delivered_again(
    bus: Bus, sink: FakeSink
) -> None:
    (first,) = await published(bus, event(id="1"))
    await published(bus, event())
    (again,) = await published(bus, event(id="1", data="other"))
    assert again == first
    assert len(await held(bus, "a")) == 2
    await up_to_date(bus)
    assert len(sink.frames) == 2
    assert bus.statistics().repeated == 1
    assert bus.statistics().published == 2


async def test_the_order_of_its_channels_makes_no_other_event(bus: Bus, sink: FakeSink) -> None:
    (first,) = await published(bus, event("a", "b", id="1"))
    assert await published(bus, event("b", "a", id="1")) == [first]
    await up_to_date(bus)
    assert len(sink.frames) == 1


async def test_ids_are_scoped_by_channels(bus: Bus, sink: FakeSink) -> None:
    positions = await published(
        bus, event("a", id="1"), event("b", id="1"), event("a", "b", id="1"), event("a", id="2")
    )
    await up_to_date(bus)
    assert sink.positions == positions


async def test_an_id_is_forgotten_after_its_window(bus: Bus, wall: Wall) -> None:
    first = await published(bus, event(id="1"))
    wall.ms += 299_000
    assert await published(bus, event(id="1")) == first
    wall.ms += 2_000
    assert await published(bus, event(id="1")) > first


@memory_alone
async def test_ids_remembered_are_bounded_and_the_oldest_go(
    make_bus: MakeBus, sink: FakeSink, wall: Wall
) -> None:
    bus = await make_bus(replace(CONFIG, dedupe_entries=2), sink, wall)
    await published(bus, event(id="1"), event(id="2"), event(id="3"))
    await published(bus, event(id="3"), event(id="2"))
    assert len(sink.frames) == 3
    await published(bus, event(id="1"))
    assert len(sink.frames) == 4
    assert bus.statistics().dedupe_entries == 2
    assert bus.statistics().dedupe_evicted == 2


async def test_a_repeat_of_the_last_event_of_a_channel_is_no_refusal(bus: Bus) -> None:
    (end,) = await published(bus, event(id="1", end=True))
    assert await published(bus, event(id="1", end=True)) == [end]


# -- rules by channel


async def test_channels_are_kept_by_their_own_rules(
    make_bus: MakeBus, sink: FakeSink, wall: Wall
) -> None:
    bus = await make_bus(replace(CONFIG, channels=(rule("kept.*", history=2),)), sink, wall)
    await published(bus, *[event("kept.x", "kept")] * 5)
    assert len(await held(bus, "kept.x")) == 2
    assert len(await held(bus, "kept")) == 5


async def test_a_token_stream_is_kept_by_the_rule_that_is_built_in(
    make_bus: MakeBus, sink: FakeSink, wall: Wall
) -> None:
    config = replace(
        CONFIG,
        channels=(rule("**", history=0),),
        stream_events=3,
        stream_seconds=50.0,
    )
    bus = await make_bus(config, sink, wall)
    for name in ("stream:x", "stream:x.raw", "a"):
        for _ in range(5):
            await published(bus, event(name))
    assert [len(await held(bus, name)) for name in ("stream:x", "stream:x.raw", "a")] == [3, 3, 0]
    wall.ms += 51_000
    await published(bus, event())  # by which a bus learns the time
    assert await held(bus, "stream:x") == []


def test_a_frame_is_a_chunk_around_a_block() -> None:
    frame = render(event(data="hi", type="t"), Position(7, 1))
    assert frame.block == b"id: 7-1\nevent: t\ndata: hi\n\n"
    assert frame.without_id() == b"event: t\ndata: hi\n\n"
    assert frame.chunk == b"%x\r\n%b\r\n" % (len(frame.block), frame.block)
