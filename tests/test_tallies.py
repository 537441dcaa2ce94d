"""What is counted of each class of channels: what was delivered, how late, and what was dropped."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from rig import Peer, Rig, read_body, rule, running
from trio.testing import wait_all_tasks_blocked

from gateway.config import Config
from gateway.control import Gap
from gateway.event import Event
from gateway.policy import Policy
from gateway.position import Position, Start
from gateway.stream_state import Reason, State
from gateway.tallies import DEFAULT, MAX_CLASSES, OTHER, ClassStatistics, Dropped

BIG = "x" * 3000
"""Data of which two events fill the smallest socket buffer."""

RULES = (rule("ticker.*", Policy.LATEST), rule("ticker.never"), rule("log.**"))


@asynccontextmanager
async def rig_with(**settings: Any) -> AsyncIterator[Rig]:
    config = replace(Config(channels=RULES, outbox_frames=5), **settings)
    async with running(config) as rig:
        yield rig


def classes(rig: Rig) -> dict[str, ClassStatistics]:
    return rig.hub.statistics().classes


def delivered(rig: Rig) -> dict[str, int]:
    """By class, where there is anything."""
    return {name: each.delivered for name, each in classes(rig).items() if each.delivered}


def lags(rig: Rig, name: str = DEFAULT) -> dict[float, int]:
    """How many lags there are up to each bound and above the one before it, where there are any."""
    lag = classes(rig)[name].lag
    return {b: n for b, n in zip((*lag.bounds, 60.0), lag.counts, strict=True) if n}


async def stall(rig: Rig, peer: Peer, channel: str) -> None:
    """Publish to a client that does not read until it is behind."""
    while peer.client.state is State.LIVE:
        await rig.publish(channel, BIG)
        await wait_all_tasks_blocked()


# -- classes


@pytest.mark.parametrize(
    ("channel", "name"),
    [
        ("ticker.acme", "ticker.*"),
        ("ticker.never", "ticker.*"),  # the first that matches
        ("ticker.a.b", DEFAULT),
        ("log", "log.**"),
        ("log.a.b", "log.**"),
        ("global", DEFAULT),
        ("user:ticker.acme", DEFAULT),
    ],
)
async def test_a_channel_is_of_the_class_of_the_table_that_applies(channel: str, name: str) -> None:
    async with rig_with() as rig:
        await rig.open_live(channel)
        await rig.publish(channel, "x")
        await wait_all_tasks_blocked()
        assert delivered(rig) == {name: 1}


async def test_every_class_is_there_from_the_beginning_and_a_table_for_all_is_one() -> None:
    async with rig_with(channels=(*RULES, rule("**"))) as rig:
        assert [*classes(rig)] == [DEFAULT, "ticker.*", "ticker.never", "log.**", "**"]
        await rig.open_live("a")
        await rig.publish("a", "x")
        await wait_all_tasks_blocked()
        assert delivered(rig) == {"**": 1}


async def test_only_so_many_classes_have_a_name_of_their_own() -> None:
    rules = tuple(rule(f"c{n}") for n in range(MAX_CLASSES + 3))
    async with rig_with(channels=rules[:MAX_CLASSES]) as rig:
        assert len(classes(rig)) == MAX_CLASSES + 1
        assert OTHER not in classes(rig)
    async with rig_with(channels=rules) as rig:
        assert [*classes(rig)][-2:] == [f"c{MAX_CLASSES - 1}", OTHER]
        assert len(classes(rig)) == MAX_CLASSES + 2
        names = [each.match for each in rules]
        await rig.open_live(*names)
        for name in names:
            await rig.publish(name, "x")
        await wait_all_tasks_blocked()
        assert delivered(rig) == {**dict.fromkeys(names[:MAX_CLASSES], 1), OTHER: 3}


async def test_an_event_of_several_channels_counts_for_the_first_that_its_client_has() -> None:
    async with rig_with() as rig:
        for names in (("ticker.a", "log.a"), ("log.a", "ticker.a"), ("log.a",)):
            await rig.open_live(*names)
        await rig.publish(("ticker.a", "log.a"), "x")
        await rig.publish(("log.b", "log.a"), "x")
        await wait_all_tasks_blocked()
        assert delivered(rig) == {"ticker.*": 2, "log.**": 4}


async def test_a_pass_over_several_channels_counts_each_for_its_own() -> None:
    async with rig_with() as rig:
        for names in (("ticker.a", "log.a"), ("ticker.a", "log.a", "a"), ("a",)):
            await rig.open_live(*names)
        passes = rig.hub.passes
        await rig.bus.publish([Event((name,), "x") for name in ("ticker.a", "log.a", "a", "log.a")])
        await wait_all_tasks_blocked()
        assert rig.hub.passes == passes + 1
        assert delivered(rig) == {"ticker.*": 2, "log.**": 4, DEFAULT: 2}
        assert sum(each.lag.count for each in classes(rig).values()) == 8


async def test_what_waited_for_a_stream_that_ends_or_has_left_counts_for_its_class() -> None:
    async with rig_with() as rig:
        ending, leaving = [await rig.open_live("log.a") for _ in range(2)]
        await stall(rig, ending, "log.a")
        rig.hub.finish(ending.client, Reason.CLOSED, b"")
        rig.node.streams.remove_channel(leaving.client, "log.a")
        for peer in (ending, leaving):
            await peer.read_all()
        written = ending.client.written + leaving.client.written
        assert delivered(rig) == {"log.**": written}
        assert written > 2


# -- lag


async def test_lag_is_from_position_to_write_for_each_client() -> None:
    async with rig_with() as rig:
        for _ in range(3):
            await rig.open_live("a")
        await rig.publish("a", "x")
        rig.wall += 70  # before the pass has its turn
        await wait_all_tasks_blocked()
        assert lags(rig) == {0.1: 3}
        assert classes(rig)[DEFAULT].lag.sum == pytest.approx(0.21)


async def test_events_of_one_pass_have_each_their_own_lag() -> None:
    async with rig_with() as rig:
        for _ in range(2):
            await rig.open_live("a")
        for later in (900, 90, 9):
            await rig.publish("a", "x")
            rig.wall += later
        await wait_all_tasks_blocked()
        assert rig.hub.passes == 1
        assert lags(rig) == {1.0: 2, 0.1: 2, 0.01: 2}


async def test_who_is_behind_has_the_lag_of_when_the_last_byte_is_accepted() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        await stall(rig, peer, "a")
        at_once = peer.client.written
        assert lags(rig) == ({0.001: at_once} if at_once else {})
        await rig.publish("a", BIG)
        rig.wall += 4000
        await peer.read_all()
        waited = peer.client.written - at_once
        assert waited >= 2
        assert lags(rig) == ({0.001: at_once} if at_once else {}) | {5.0: waited}
        assert classes(rig)[DEFAULT].lag.count == classes(rig)[DEFAULT].delivered


async def test_the_response_lane_counts_too() -> None:
    async with rig_with() as rig:
        reader = await read_body(rig, "log.a")
        reader.go = trio.Event()
        await rig.publish("log.a", "taken")
        await wait_all_tasks_blocked()  # and not given back yet
        rig.wall += 300
        reader.go.set()
        await wait_all_tasks_blocked()
        assert delivered(rig) == {"log.**": 1}
        assert lags(rig, "log.**") == {0.5: 1}


async def test_what_is_replayed_is_delivered_and_has_no_lag() -> None:
    async with rig_with() as rig:
        for _ in range(3):
            await rig.publish("log.a", "x")
        rig.wall += 20_000
        peer = await rig.open("log.a", resume=Start.EARLIEST)
        reader = await read_body(rig, "log.a", resume=2)
        await peer.read_all()
        assert (peer.data, reader.data) == (["x"] * 3, ["x"] * 2)
        assert delivered(rig) == {"log.**": 5}
        assert lags(rig, "log.**") == {}
        await rig.publish("log.a", "live")
        await peer.read_all()
        assert delivered(rig) == {"log.**": 7}
        assert lags(rig, "log.**") == {0.001: 2}


async def test_what_was_started_live_has_its_lag_although_its_client_replays_by_then() -> None:
    async with rig_with(channels=(rule("a", Policy.CATCH_UP),), outbox_frames=1) as rig:
        peer = await rig.open_live("a")
        await rig.publish("a", BIG * 2)
        await wait_all_tasks_blocked()
        assert (peer.client.written, len(peer.client.staged or ())) == (0, 1)  # it was cut
        while peer.client.state is not State.REPLAYING:
            await rig.publish("a", BIG)
            await wait_all_tasks_blocked()
        rig.wall += 700
        await peer.read_all()
        assert peer.client.written > 1
        assert delivered(rig) == {"a": peer.client.written}
        assert lags(rig, "a") == {1.0: 1}


async def test_no_lag_is_negative() -> None:
    async with rig_with() as rig:
        await rig.open_live("a")
        await rig.publish("a", "x")
        rig.wall -= 5000
        await wait_all_tasks_blocked()
        assert classes(rig)[DEFAULT].lag.sum == 0
        assert lags(rig) == {0.001: 1}


async def test_the_notice_of_a_gap_has_no_lag() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        rig.wall += 60_000
        await rig.node._fanout.tell_gap(None, Position(rig.wall, 0), Gap.RESTARTED)
        await peer.read_all()
        assert len(peer.gaps) == 1
        assert lags(rig) == {}


# -- drops


def dropped(rig: Rig, name: str = DEFAULT) -> dict[str, int]:
    """By reason, where there is anything."""
    return {reason: n for reason, n in classes(rig)[name].dropped.items() if n}


async def test_what_a_full_outbox_does_not_take_is_dropped_as_full() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("log.a")
        for _ in range(20):
            await rig.publish("log.a", BIG)
            await wait_all_tasks_blocked()
        assert peer.client.dropped > 5
        assert dropped(rig, "log.**") == {Dropped.FULL: peer.client.dropped}
        assert rig.hub.statistics().dropped == peer.client.dropped


async def test_what_a_newer_one_replaces_is_dropped_as_replaced() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("ticker.a")
        for number in range(20):
            await rig.publish("ticker.a", BIG, key=str(number % 2))
            await wait_all_tasks_blocked()
        assert peer.client.dropped > 5
        assert dropped(rig, "ticker.*") == {Dropped.REPLACED: peer.client.dropped}


async def test_under_latest_what_finds_no_room_is_dropped_as_full_all_the_same() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("ticker.a")
        for number in range(20):
            await rig.publish("ticker.a", BIG, key=str(number))
            await wait_all_tasks_blocked()
        assert dropped(rig, "ticker.*") == {Dropped.FULL: peer.client.dropped}
        before = peer.client.dropped
        await rig.publish("ticker.a", BIG * 300, key="15")  # too large, whoever goes for it
        await wait_all_tasks_blocked()
        now = dropped(rig, "ticker.*")
        assert sum(now.values()) == peer.client.dropped > before


async def test_what_is_thrown_out_for_memory_is_dropped_by_the_class_of_each_event() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("log.a", "a")
        await stall(rig, peer, "a")
        outbox = peer.client.outbox
        assert outbox is not None
        waiting = outbox.frames
        for channel in ("log.a", "log.a", "a"):
            await rig.publish(channel, "x")
        await wait_all_tasks_blocked()
        assert rig.hub.throw_out(peer.client) == waiting + 3
        await rig.node.charge.let_go()
        assert dropped(rig, "log.**") == {Dropped.MEMORY: 2}
        assert dropped(rig) == {Dropped.MEMORY: waiting + 1}
        assert rig.hub.statistics().dropped == peer.client.dropped == waiting + 3


# -- who is behind, and how far


async def test_the_deepest_outbox_and_the_longest_wait_are_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rig_with() as rig:
        first, second = await rig.open_live("a"), await rig.open_live("log.a")
        now = rig.hub.statistics()
        assert (now.deepest_frames, now.behind_longest, now.subscriptions) == (0, 0, 2)
        await stall(rig, first, "a")
        await trio.sleep(3)
        await stall(rig, second, "log.a")
        for _ in range(3):
            await rig.publish("log.a", "x")
        await wait_all_tasks_blocked()
        now = rig.hub.statistics()
        assert now.deepest_frames == second.client.queued > first.client.queued
        assert now.behind_longest == pytest.approx(3)
        await first.read_all()
        assert rig.hub.statistics().behind_longest == pytest.approx(0)


async def test_subscriptions_are_streams_times_their_channels() -> None:
    async with rig_with() as rig:
        first = await rig.open_live("a", "b", "c")
        await rig.open_live("a")
        assert rig.hub.statistics().subscriptions == 4
        rig.node.streams.remove_channel(first.client, "a")
        rig.node.streams.remove_channel(first.client, "a")
        assert rig.hub.statistics().subscriptions == 3
        await rig.node.streams.add_channel(first.client, "d", None)
        await rig.node.streams.add_channel(first.client, "d", None)
        assert rig.hub.statistics().subscriptions == 4
        rig.hub.close(first.client, Reason.CLOSED)
        assert rig.hub.statistics().subscriptions == 1
