"""The hub's clients over real sockets: every state, every policy, and what a pass may not do."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import call, patch

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import Peer, Rig, rule, running
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import control, fanout
from gateway.config import Config
from gateway.lanes import MAX_STRAY_BYTES
from gateway.policy import Policy
from gateway.position import Position
from gateway.stream_state import Reason, State

BIG = "x" * 3000
"""Data of which two events fill the smallest socket buffer."""


def config(policy: Policy = Policy.DROP, *, frames: int = 5, **settings: Any) -> Config:
    return Config(policy=policy, outbox_frames=frames, **settings)


@asynccontextmanager
async def rig_with(policy: Policy = Policy.DROP, **settings: Any) -> AsyncIterator[Rig]:
    async with running(config(policy, **settings)) as rig:
        yield rig


async def stall(rig: Rig, peer: Peer, channel: str = "a") -> list[Position]:
    """Publish to a client that does not read until it is behind; what was published."""
    positions = []
    while peer.client.state is State.LIVE:
        positions.append(await rig.publish(channel, BIG))
        await wait_all_tasks_blocked()
        peer.check_counters()
    return positions


def state_of(peer: Peer) -> State:
    """As a call, since a state that was compared once is taken for granted by the type checker."""
    return peer.client.state


def ids_of(peer: Peer) -> list[str]:
    return [event.last_event_id for event in peer.events if event.event == "message"]


# -- live and behind


async def test_a_live_client_is_written_to_at_once_and_has_no_outbox() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        position = await rig.publish("a", "hello")
        await wait_all_tasks_blocked()
        assert peer.client.written == peer.client.offered == 1
        assert state_of(peer) is State.LIVE
        assert peer.client.outbox is None
        await peer.read_all()
        assert peer.data == ["hello"]
        assert peer.last_event_id == str(position)


async def test_a_partial_write_keeps_the_rest_of_its_frame_and_queues_later_ones() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        positions = [await rig.publish("a", "x" * 100_000)]
        await wait_all_tasks_blocked()
        assert peer.client.staged
        assert (peer.client.offered, peer.client.written, peer.client.queued) == (1, 0, 1)
        positions.append(await rig.publish("a", "later"))
        await wait_all_tasks_blocked()
        assert state_of(peer) is State.BEHIND
        assert peer.client.outbox is not None
        assert peer.client.outbox.frames == 1
        peer.check_counters()
        await peer.read_all()
        assert ids_of(peer) == [str(position) for position in positions]


async def test_a_client_that_has_caught_up_is_live_again_without_an_outbox() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        await stall(rig, peer)
        await peer.read_all()
        assert state_of(peer) is State.LIVE
        assert peer.client.outbox is None
        assert rig.hub.statistics().behind == 0
        await rig.publish("a", "live")
        await wait_all_tasks_blocked()
        assert peer.client.queued == 0
        await peer.read_all()
        assert peer.data[-1] == "live"


async def test_a_stalled_reader_does_not_change_what_others_get() -> None:
    async with rig_with(frames=2) as rig:
        stalled, reading = await rig.open_live("a"), await rig.open_live("a")
        for number in range(50):
            await rig.publish("a", f"{number} {BIG}")
            await reading.read_all()
            rig.check_counters()
        assert [data.split()[0] for data in reading.data] == [str(n) for n in range(50)]
        assert reading.client.dropped == 0
        assert stalled.client.dropped > 40


async def test_a_client_of_several_channels_gets_its_frames_in_order_in_one_call() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a", "b", "c")
        passes = rig.hub.passes
        positions = [await rig.publish(name, "x") for name in ("c", "a", ("a", "b"), "c", "b")]
        await wait_all_tasks_blocked()
        assert rig.hub.passes == passes + 1
        await peer.read_all()
        assert ids_of(peer) == [str(position) for position in positions]


async def test_a_join_is_no_longer_than_a_part_of_the_send_buffer() -> None:
    async with rig_with(frames=1000, send_buffer_bytes=16 * 1024) as rig:
        await rig.open_live("a")
        passes = rig.hub.passes
        for _ in range(10):
            await rig.publish("a", BIG)
        await wait_all_tasks_blocked()
        assert rig.hub.passes == passes + 10
        for _ in range(20):
            await rig.publish("a", "x" * 100)
        await wait_all_tasks_blocked()
        assert rig.hub.passes == passes + 11


async def test_publishers_wait_while_pending_is_full_and_are_then_refused(
    mock_clock: MockClock,
) -> None:
    async with rig_with(pending_bytes=5000, publish_wait=2.0) as rig:
        async with rig.hub.turn:  # no pass can begin
            await rig.publish("a", BIG)
            last = await rig.bus.last("a")
            results: list[object] = []

            async def publish_more() -> None:
                try:
                    results.append(await rig.publish("a", BIG))
                except AssertionError:
                    results.append("refused")

            rig.nursery.start_soon(publish_more)
            await wait_all_tasks_blocked()
            assert results == []
            mock_clock.jump(2.5)
            await wait_all_tasks_blocked()
            assert results == ["refused"]
            assert await rig.bus.last("a") == last
            rig.nursery.start_soon(publish_more)
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert len(results) == 2
        assert results[1] == await rig.bus.last("a")
        assert rig.hub.statistics().pending_bytes == 0


# -- memberships


async def test_a_pass_never_gives_a_frame_at_or_before_the_membership() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        async with rig.hub.turn:
            await rig.publish("a", "for a")
            await rig.publish("b", "too early")
            head = await rig.node.streams.add_channel(peer.client, "b", None)
            await rig.publish("b", "late enough")
        assert await rig.bus.last("b") > head  # type: ignore[operator]  # it has one
        await peer.read_all()
        assert peer.data == ["for a", "late enough"]
        peer.check_counters()


async def test_a_client_that_turned_live_on_history_gets_nothing_pending_again() -> None:
    async with rig_with() as rig:
        other = await rig.open_live("a")
        start = rig.bus.head()
        async with rig.hub.turn:
            await rig.publish("a", "pending")
            peer = await rig.open("a", resume=start)
            await peer.read_all()
            assert state_of(peer) is State.LIVE
            assert peer.data == ["pending"]
        await peer.read_all()
        await other.read_all()
        assert peer.data == other.data == ["pending"]


async def turns_in_a_pass(clock: MockClock, seconds: float) -> int:
    """How many turns another task has while twenty clients are written to, each of ``seconds``."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            clock.jump(seconds)
            await trio.lowlevel.checkpoint()

    with patch.object(fanout, "YIELD_EVERY", 1):
        async with rig_with() as rig, trio.open_nursery() as nursery:
            peers = [await rig.open_live("a") for _ in range(20)]
            nursery.start_soon(take_turns)
            await rig.publish(("a",), "x")
            while not any(peer.client.written for peer in peers):
                await trio.lowlevel.checkpoint()
            before = turns
            while not all(peer.client.written for peer in peers):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    return turns - before


async def test_a_pass_goes_on_for_as_long_as_the_others_took(
    mock_clock: MockClock,
) -> None:
    """Each write takes no time on this clock: after one turn of others that is long, all of the
    pass is done; where their turns are short, it yields each time."""
    assert await turns_in_a_pass(mock_clock, 0.005) <= 5
    assert await turns_in_a_pass(mock_clock, 0.0) >= 15


async def test_a_client_that_leaves_in_the_middle_of_a_pass_is_passed_over() -> None:
    with patch.object(fanout, "YIELD_EVERY", 1), patch.object(fanout, "MOST_SECONDS", 0):
        async with rig_with() as rig:
            peers = [await rig.open_live("a", "b") for _ in range(6)]
            await rig.publish(("a", "b"), "x")
            while not any(peer.client.written for peer in peers):
                await trio.lowlevel.checkpoint()
            late = [peer for peer in peers if not peer.client.written]
            assert len(late) > 2
            rig.hub.close(late[-1].client, Reason.CLOSED)
            rig.hub.members.leave(late[-2].client, "a")
            rig.hub.members.leave(late[-2].client, "b")
            for peer in peers:
                await peer.read_all()
                peer.check_counters()
            assert late[-1].data == []
            assert late[-1].eof
            assert all(peer.data == ["x"] for peer in peers if peer not in late[-2:])


async def test_the_last_to_leave_a_channel_takes_it_along() -> None:
    async with rig_with() as rig:
        one, two = await rig.open_live("a"), await rig.open_live("a", "b", user="u")
        assert rig.hub.statistics().channels == 2
        with patch.object(rig.bus, "unsubscribe") as unsubscribe:
            rig.hub.close(one.client, Reason.CLOSED)
            assert set(rig.hub.members.channels) == {"a", "b"}
            assert unsubscribe.mock_calls == [call(("a",))]
            rig.hub.close(two.client, Reason.CLOSED)
        assert unsubscribe.mock_calls == [call(("a",)), call(("a",)), call(("b",))]
        assert rig.hub.members.channels == {}
        assert rig.hub.members.clients == {}
        assert rig.hub.members.of_user("u") == ()


# -- policies


async def test_disconnect_ends_the_stream_of_a_full_outbox() -> None:
    async with rig_with(Policy.DISCONNECT, frames=2) as rig:
        peer = await rig.open_live("a")
        await stall(rig, peer)
        for _ in range(3):
            await rig.publish("a", BIG)
            await wait_all_tasks_blocked()
        assert state_of(peer) is State.CLOSED
        assert peer.client.reason is Reason.SLOW
        peer.check_counters()
        assert rig.hub.members.clients == {}
        await peer.read_all()
        assert peer.eof
        assert not peer.ended
        assert rig.hub.statistics().closed[Reason.SLOW] == 1


async def test_catch_up_loses_nothing_at_the_pace_of_the_reader() -> None:
    async with rig_with(Policy.CATCH_UP, frames=2) as rig:
        peer = await rig.open_live("a")
        for number in range(100):
            await rig.publish("a", f"{number} {BIG}")
            await wait_all_tasks_blocked()
            peer.check_counters()
        assert state_of(peer) is State.REPLAYING
        assert peer.client.outbox is None
        await peer.read_all()
        assert [data.split()[0] for data in peer.data] == [str(n) for n in range(100)]
        assert peer.client.dropped == 0
        assert state_of(peer) is State.LIVE


async def test_latest_gives_the_newest_of_each_key_after_a_stall() -> None:
    async with rig_with(Policy.LATEST, frames=3) as rig:
        peer = await rig.open_live("a")
        await stall(rig, peer)
        for number in range(20):
            await rig.publish("a", f"one {number}", key="1")
            await rig.publish("a", f"two {number}", key="2")
            await wait_all_tasks_blocked()
            peer.check_counters()
        await peer.read_all()
        assert peer.data[-2:] == ["one 19", "two 19"]
        assert peer.dropped == 38


async def test_of_two_policies_the_one_that_preserves_more_counts() -> None:
    rules = (rule("a", Policy.DROP), rule("b", Policy.CATCH_UP))
    async with running(Config(outbox_frames=1, channels=rules)) as rig:
        peer = await rig.open_live("a", "b")
        positions = await stall(rig, peer)
        positions += [await rig.publish(("a", "b"), str(number)) for number in range(10)]
        await peer.read_all()
        assert ids_of(peer) == [str(position) for position in positions]
        assert peer.dropped == 0


async def test_a_hole_that_catch_up_fills_is_not_told() -> None:
    rules = (rule("a", Policy.DROP), rule("b", Policy.CATCH_UP))
    async with running(Config(outbox_frames=1, channels=rules)) as rig:
        peer = await rig.open_live("a", "b")
        positions = await stall(rig, peer)
        for name in ("a", "a", "a", "b"):
            positions.append(await rig.publish(name, name))
            await wait_all_tasks_blocked()
            peer.check_counters()
        await peer.read_all()
        assert ids_of(peer) == [str(position) for position in positions]
        assert peer.dropped == 0
        assert peer.gaps == []
        peer.check_counters()


POLICIES = st.sampled_from(list(Policy))

STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("publish"),
            st.tuples(
                st.sets(st.sampled_from("ab"), min_size=1),
                st.integers(1, 4000),
                st.sampled_from([None, "k"]),
            ),
        ),
        st.tuples(st.just("read"), st.tuples(st.integers(0, 2), st.integers(1, 6000))),
        st.tuples(st.just("settle"), st.just(())),
        st.tuples(st.just("yield"), st.just(())),
    ),
    min_size=10,
    max_size=100,
)


@settings(deadline=None, max_examples=250)
@given(POLICIES, POLICIES, st.integers(1, 4), STEPS)
def test_every_event_is_delivered_once_or_told_missing_where_it_is(
    policy: Policy, other: Policy, frames: int, steps: Sequence[tuple[str, Any]]
) -> None:
    rules = (rule("a", policy), rule("b", other))
    settings = Config(outbox_frames=frames, channels=rules)

    async def check() -> None:
        async with running(settings) as rig:
            peers = [await rig.open_live(*names) for names in ("a", "ab", "b")]
            published: list[tuple[Position, set[str]]] = []
            for step, argument in steps:
                match step:
                    case "publish":
                        channels, size, key = argument
                        position = await rig.publish(channels, "x" * size, key=key)
                        published.append((position, channels))
                    case "read":
                        index, size = argument
                        peers[index].read(size)
                    case "settle":
                        await wait_all_tasks_blocked()
                    case _:
                        await trio.lowlevel.checkpoint()
                rig.check_counters()
            for peer, names in zip(peers, ("a", "ab", "b"), strict=True):
                await peer.read_all()
                rig.check_counters()
                wanted = [str(p) for p, channels in published if channels & {*names}]
                check_told(peer, wanted)
            now = rig.hub.statistics()
            assert now.delivered == sum(peer.client.written for peer in peers)
            assert now.dropped >= sum(peer.client.dropped for peer in peers)
            lags = sum(each.lag.count for each in now.classes.values())
            assert now.delivered - now.replayed <= lags <= now.delivered
            assert now.pass_events.sum == now.received == len(published)

    with patch.object(fanout, "YIELD_EVERY", 1), patch.object(fanout, "MOST_SECONDS", 0):
        trio.run(check, clock=MockClock())


def check_told(peer: Peer, wanted: list[str]) -> None:
    """Every wanted event came in order, or its absence was told exactly where it is.

    A hole that grows after it was told is told in two notices, one after the other.
    """
    assert peer.gaps == []
    at = hole = 0
    for event in peer.events:
        if event.event == "dropped":
            hole += int(event.data.removeprefix('{"count":').removesuffix("}"))
        elif event.event == "message":
            place = wanted.index(event.last_event_id)
            assert place - at == hole
            at, hole = place + 1, 0
    if not peer.eof:
        assert len(wanted) - at == hole
        assert peer.client.written + peer.client.dropped == len(wanted)
        assert peer.client.state is State.LIVE


# -- the end of a stream


async def test_a_client_behind_for_too_long_is_closed(mock_clock: MockClock) -> None:
    async with rig_with(max_behind_seconds=10.0, keepalive=3600.0) as rig:
        stalled, live = await rig.open_live("a"), await rig.open_live("a")
        await stall(rig, stalled)
        await live.read_all()
        mock_clock.jump(9.5)
        await wait_all_tasks_blocked()
        assert state_of(stalled) is State.BEHIND
        mock_clock.jump(1.0)
        await wait_all_tasks_blocked()
        assert stalled.client.reason is Reason.STALLED
        assert state_of(live) is State.LIVE
        stalled.check_counters()


async def test_a_replaying_client_that_does_not_read_is_closed(mock_clock: MockClock) -> None:
    async with rig_with(Policy.CATCH_UP, frames=1, max_behind_seconds=10.0) as rig:
        start = rig.bus.head()
        for _ in range(20):
            await rig.publish("a", BIG)
        peer = await rig.open("a", resume=start)
        await wait_all_tasks_blocked()
        assert state_of(peer) is State.REPLAYING
        mock_clock.jump(10.5)
        await wait_all_tasks_blocked()
        assert peer.client.reason is Reason.STALLED
        peer.check_counters()


async def test_a_stream_that_is_finished_writes_what_waits_then_its_farewell() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        positions = await stall(rig, peer)
        positions.append(await rig.publish("a", BIG))
        await wait_all_tasks_blocked()
        rig.hub.finish(peer.client, Reason.DRAINING, control.reconnect(Reason.DRAINING))
        assert state_of(peer) is State.ENDING
        assert rig.hub.open_streams == 1
        await rig.publish("a", "not for who is leaving")
        await peer.read_all()
        assert ids_of(peer) == [str(position) for position in positions]
        assert peer.types[-1] == "reconnect"
        assert peer.ended
        assert peer.eof
        assert rig.hub.open_streams == 0
        peer.check_counters()


async def test_a_finished_stream_whose_reader_stalls_is_cut(mock_clock: MockClock) -> None:
    async with rig_with(max_behind_seconds=10.0, keepalive=3600.0) as rig:
        peer = await rig.open_live("a")
        mock_clock.jump(100)
        await stall(rig, peer)
        rig.hub.finish(peer.client, Reason.DRAINING, control.reconnect(Reason.DRAINING))
        mock_clock.jump(9)
        await wait_all_tasks_blocked()
        assert state_of(peer) is State.ENDING
        mock_clock.jump(2)
        await wait_all_tasks_blocked()
        assert state_of(peer) is State.CLOSED
        assert rig.hub.open_streams == 0


async def test_a_stream_that_is_finished_while_it_replays_has_all_its_time_to_read(
    mock_clock: MockClock,
) -> None:
    async with rig_with(max_behind_seconds=10.0) as rig:
        start = rig.bus.head()
        for _ in range(20):
            await rig.publish("a", BIG)
        peer = await rig.open("a", resume=start)
        await wait_all_tasks_blocked()
        mock_clock.jump(8)
        rig.hub.finish(peer.client, Reason.DRAINING, control.reconnect(Reason.DRAINING))
        mock_clock.jump(8)
        await wait_all_tasks_blocked()
        assert state_of(peer) is State.ENDING
        await peer.read_all()
        assert peer.ended


@pytest.mark.parametrize("behind", [False, True])
async def test_eof_means_gone(behind: bool) -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        if behind:
            await stall(rig, peer)
        peer.sock.shutdown(socket.SHUT_WR)
        await wait_all_tasks_blocked()
        assert state_of(peer) is State.CLOSED
        assert peer.client.reason is Reason.GONE
        assert rig.hub.members.clients == {}


async def test_a_broken_connection_is_found_by_the_pass() -> None:
    async with rig_with() as rig:
        peer, other = await rig.open_live("a"), await rig.open_live("a")
        await rig.publish("a", "x")
        peer.sock.close()
        await other.read_all()
        assert peer.client.reason is Reason.GONE
        assert other.data == ["x"]


async def test_unexpected_input_is_discarded_up_to_a_bound_then_the_stream_is_closed() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        peer.sock.send(b"\r\n" + b"x" * (MAX_STRAY_BYTES - 2))
        await wait_all_tasks_blocked()
        assert state_of(peer) is State.LIVE
        await rig.publish("a", "still there")
        await peer.read_all()
        assert peer.data == ["still there"]
        peer.sock.send(b"x")
        await wait_all_tasks_blocked()
        assert peer.client.reason is Reason.UNEXPECTED_INPUT
        await peer.read_all()
        assert peer.eof


async def test_input_does_not_keep_a_client_behind() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        positions = await stall(rig, peer)
        peer.sock.send(b"\r\n")
        await peer.read_all()
        assert ids_of(peer) == [str(position) for position in positions]
        assert state_of(peer) is State.LIVE


async def test_a_descriptor_that_is_used_again_is_somebody_else() -> None:
    async with rig_with() as rig:
        for _ in range(20):
            old = await rig.open_live("a")
            assert old.client.sock is not None
            descriptor = old.client.sock.fileno()
            await stall(rig, old)
            old.sock.close()  # a notification for the old one stands in the epoll
            rig.hub.close(old.client, Reason.CLOSED)
            new = await rig.open("b")
            assert new.client.sock is not None
            same = new.client.sock.fileno() == descriptor
            await new.read_all()
            assert state_of(new) is State.LIVE
            await rig.publish("b", "for the new one")
            await new.read_all()
            assert new.data == ["for the new one"]
            rig.hub.close(new.client, Reason.CLOSED)
            new.sock.close()
        assert same


async def test_closing_twice_counts_once() -> None:
    async with rig_with() as rig:
        peer = await rig.open_live("a")
        rig.hub.close(peer.client, Reason.CLOSED)
        rig.hub.close(peer.client, Reason.GONE)
        rig.hub.finish(peer.client, Reason.DRAINING, b"")
        assert sum(rig.hub.statistics().closed.values()) == 1
        assert peer.client.reason is Reason.CLOSED


async def test_the_statistics_add_up() -> None:
    async with rig_with(frames=2) as rig:
        stalled, reading = await rig.open_live("a"), await rig.open_live("a")
        for _ in range(10):
            await rig.publish("a", BIG)
            await reading.read_all()
        now = rig.hub.statistics()
        assert now.delivered == stalled.client.written + reading.client.written
        assert now.dropped == stalled.client.dropped
        assert now.queued_frames == stalled.client.queued
        assert (now.clients, now.behind, now.replaying, now.opened) == (2, 1, 0, 2)
