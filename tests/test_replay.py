"""History of several channels merged into the one order, in pages."""

from collections.abc import Sequence
from unittest.mock import patch

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import EPOCH

from gateway import replay
from gateway.bus import History, Source
from gateway.bus.memory import MemoryBus
from gateway.config import Config
from gateway.event import Event, Frame, render
from gateway.pending import Pending
from gateway.position import ZERO, Position
from gateway.replay import Replay, before_earliest, before_newest, merge

NAMES = "abc"

EVENTS = st.lists(st.sets(st.sampled_from(NAMES), min_size=1), max_size=30)
"""Each event by its channels."""


def frames_of(events: Sequence[set[str]]) -> list[Frame]:
    return [
        render(Event(tuple(sorted(channels)), str(number)), Position(1, number))
        for number, channels in enumerate(events, 1)
    ]


@given(
    EVENTS,
    st.integers(0, 31),
    st.integers(0, 31),
    st.dictionaries(st.sampled_from(NAMES), st.integers(1, 10), min_size=1),
)
def test_merge_gives_all_up_to_where_the_shortest_part_ends(
    events: list[set[str]], after: int, until: int, limits: dict[str, int]
) -> None:
    """``limits``: how many frames of each channel were read."""
    low, high = Position(1, after), Position(1, until)
    parts, cut_at = [], [high]
    wanted: list[Frame] = []
    for name, limit in limits.items():
        frames = [f for f in frames_of(events) if name in f.channels and low < f.position <= high]
        parts.append(History(frames[:limit], low, complete=len(frames) <= limit))
        cut_at += [frames[limit - 1].position] if len(frames) > limit else []
        wanted += frames
    merged, reached = merge(parts, high)
    assert reached == min(cut_at)
    assert [f.position for f in merged] == sorted(
        {f.position for f in wanted if f.position <= reached}
    )


def test_merge_leaves_its_parts_as_they_were() -> None:
    parts = [History(frames_of([{"a"}] * 3), ZERO, complete=True)] * 2
    assert merge(parts, Position(1, 2)) == merge(parts, Position(1, 2))
    assert len(parts[0].frames) == 3


def test_merge_of_nothing_reaches_the_end() -> None:
    assert merge([], Position(1, 2)) == ([], Position(1, 2))


BEGAN = Position(EPOCH, 0)
"""Where the bus begins."""


async def bus_with(events: Sequence[set[str]], *, held: int) -> tuple[MemoryBus, list[Position]]:
    config = Config(history_events=held)
    bus = MemoryBus(config, Pending(config), now_ms=lambda: EPOCH)
    results = await bus.publish([Event(tuple(sorted(names)), "x") for names in events])
    return bus, [result for result in results if isinstance(result, Position)]


@settings(deadline=None)
@given(EVENTS, st.integers(1, 6), st.integers(1, 4), st.sets(st.sampled_from(NAMES)), st.data())
def test_pages_give_each_held_event_once_in_order_and_tell_each_gap_once(
    events: list[set[str]], held: int, page_frames: int, names: set[str], data: st.DataObject
) -> None:
    async def check() -> None:
        bus, positions = await bus_with(events, held=held)
        after = data.draw(st.sampled_from([BEGAN, *positions]))
        floors = {name: data.draw(st.sampled_from([ZERO, *positions])) for name in sorted(names)}
        missed = Replay(after)
        got: list[Position] = []
        gaps: list[str] = []
        while missed.reached < bus.head() or not missed.begun:
            before = missed.reached
            page = await missed.page(bus, floors, bus.head())
            assert all(before < frame.position <= page.reached for frame in page.frames)
            assert missed.reached == page.reached
            got += [frame.position for frame in page.frames]
            gaps += page.gaps
        wanted: set[Position] = set()
        gone = set()
        for name, floor in floors.items():
            mine = [p for p, e in zip(positions, events, strict=True) if name in e]
            wanted |= {p for p in mine[-held:] if p > max(after, floor)}
            gone |= {name for p in mine[:-held] if p > max(after, floor)}
        assert got == sorted(wanted)
        assert sorted(gaps) == sorted(gone)

    with patch.object(replay, "PAGE_FRAMES", page_frames):
        trio.run(check)


@settings(deadline=None)
@given(EVENTS, st.integers(1, 6), st.integers(0, 40))
def test_the_newest_are_counted_over_the_merged_channels(
    events: list[set[str]], held: int, count: int
) -> None:
    async def check() -> None:
        bus, positions = await bus_with(events, held=held)
        after = await before_newest(bus, "ab", count, bus.head())
        kept: set[Position] = set()
        for name in "ab":
            kept |= set([p for p, e in zip(positions, events, strict=True) if name in e][-held:])
        later = [p for p in sorted(kept) if p > after]
        assert later == (sorted(kept)[-count:] if count else [])

    trio.run(check)


@settings(deadline=None)
@given(EVENTS, st.integers(1, 6))
def test_the_earliest_is_before_all_that_is_held_and_after_nothing_else(
    events: list[set[str]], held: int
) -> None:
    async def check() -> None:
        bus, positions = await bus_with(events, held=held)
        after, source = await before_earliest(bus, "ab", bus.head())
        assert source is Source.MEMORY
        kept: set[Position] = set()
        for name in "ab":
            kept |= set([p for p, e in zip(positions, events, strict=True) if name in e][-held:])
        assert after < min(kept) if kept else after == bus.head()
        assert not kept or after == min(kept).before()

    trio.run(check)
