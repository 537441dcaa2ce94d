"""The bounded queue of a client that is behind, and what each policy does when it is full."""

import sys
from collections.abc import Iterator

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from gateway.charge import Charge
from gateway.event import Event, Frame, render
from gateway.outbox import LATEST_SLACK, Outbox
from gateway.policy import Policy
from gateway.position import Position

KIB = 1024


def frames(count: int, *, channel: str = "a", size: int = 1, key: str | None = None) -> list[Frame]:
    return [
        render(Event((channel,), "x" * size, key=key), Position(1, number))
        for number in range(count)
    ]


def outbox(max_frames: int = 3, max_bytes: int = 100 * KIB) -> Outbox:
    return Outbox(max_frames=max_frames, max_bytes=max_bytes, charge=Charge(sys.maxsize))


def taken(box: Outbox) -> Iterator[tuple[int, Frame | None]]:
    while (pair := box.take()) is not None:
        yield pair


def test_frames_come_out_in_the_order_in_which_they_went_in() -> None:
    box = outbox()
    offered = frames(3)
    assert [box.offer(frame, Policy.DROP) for frame in offered] == [0, 0, 0]
    assert list(taken(box)) == [(0, frame) for frame in offered]
    assert (box.frames, box.bytes, box.hole) == (0, 0, 0)


def test_drop_refuses_the_newest_and_tells_the_hole_before_the_next_accepted() -> None:
    box = outbox()
    first, second, third, lost, also_lost, last = frames(6)
    for frame in (first, second, third):
        box.offer(frame, Policy.DROP)
    assert box.offer(lost, Policy.DROP) == 1
    assert box.offer(also_lost, Policy.DROP) == 1
    assert box.take() == (0, first)
    assert box.offer(last, Policy.DROP) == 0
    assert list(taken(box)) == [(0, second), (0, third), (2, last)]


def test_a_last_hole_comes_without_a_frame_and_once() -> None:
    box = outbox(1)
    kept, lost = frames(2)
    box.offer(kept, Policy.DROP)
    box.offer(lost, Policy.DROP)
    assert list(taken(box)) == [(0, kept), (1, None)]
    assert box.take() is None


@pytest.mark.parametrize("policy", [Policy.DISCONNECT, Policy.CATCH_UP])
def test_a_policy_that_must_not_drop_takes_nothing_when_it_is_full(policy: Policy) -> None:
    box = outbox(1)
    kept, refused = frames(2)
    assert box.offer(kept, policy) == 0
    assert box.offer(refused, policy) is None
    assert list(taken(box)) == [(0, kept)]


@pytest.mark.parametrize("policy", list(Policy))
def test_bytes_are_bounded_as_well(policy: Policy) -> None:
    box = outbox(100, max_bytes=3 * KIB)
    for number, frame in enumerate(frames(10, size=KIB)):
        box.offer(frame, Policy.DROP if policy is Policy.LATEST and number else policy)
    assert box.frames == 2
    assert box.bytes <= 3 * KIB


@pytest.mark.parametrize("policy", list(Policy))
def test_one_frame_alone_is_taken_however_large(policy: Policy) -> None:
    box = outbox(max_bytes=100)
    (large,) = frames(1, size=KIB)
    assert box.offer(large, policy) == 0
    assert list(taken(box)) == [(0, large)]


def test_a_frame_larger_than_the_outbox_is_a_hole_behind_another() -> None:
    box = outbox(max_bytes=100)
    small, large, last = *frames(1), *frames(1, size=KIB), *frames(1)
    assert box.offer(small, Policy.DROP) == 0
    assert box.offer(large, Policy.DROP) == 1
    assert box.take() == (0, small)
    assert box.offer(last, Policy.DROP) == 0
    assert list(taken(box)) == [(1, last)]


def test_latest_keeps_the_newest_of_a_channel_at_the_tail() -> None:
    box = outbox()
    old, new = frames(2)
    (between,) = frames(1, channel="b")
    assert box.offer(old, Policy.LATEST) == 0
    assert box.offer(between, Policy.LATEST) == 0
    assert box.offer(new, Policy.LATEST) == 1
    assert box.frames == 2
    assert list(taken(box)) == [(1, between), (0, new)]


def test_latest_keeps_the_newest_of_each_key() -> None:
    box = outbox(5)
    old_a, new_a = frames(2, key="a")
    (b,) = frames(1, key="b")
    for frame in (old_a, b, new_a):
        box.offer(frame, Policy.LATEST)
    assert list(taken(box)) == [(1, b), (0, new_a)]


def test_latest_leaves_a_frame_alone_that_was_taken_already() -> None:
    box = outbox()
    old, new = frames(2)
    box.offer(old, Policy.LATEST)
    box.take()
    assert box.offer(new, Policy.LATEST) == 0
    assert list(taken(box)) == [(0, new)]


def test_latest_replaces_any_number_of_times_in_bounded_room() -> None:
    box = outbox(2)
    offered = frames(1000)
    other = frames(1, channel="b")[0]
    box.offer(other, Policy.LATEST)
    dropped = [box.offer(frame, Policy.LATEST) for frame in offered]
    assert dropped == [0] + [1] * 999
    assert box.frames == 2
    assert list(taken(box)) == [(0, other), (999, offered[-1])]


async def test_wait_gives_a_frame_as_soon_as_it_comes(nursery: trio.Nursery) -> None:
    box = outbox()
    got: list[tuple[int, Frame | None] | None] = []

    async def consumer() -> None:
        got.append(await box.wait())

    nursery.start_soon(consumer)
    await wait_all_tasks_blocked()
    (frame,) = frames(1)
    box.offer(frame, Policy.DROP)
    await wait_all_tasks_blocked()
    assert got == [(0, frame)]
    assert box.frames == 0


async def test_wait_ends_when_the_outbox_is_closed_and_empty() -> None:
    box = outbox()
    (frame,) = frames(1)
    box.offer(frame, Policy.DROP)
    box.close()
    assert await box.wait() == (0, frame)
    assert await box.wait() is None


async def test_a_cancelled_wait_has_taken_nothing(nursery: trio.Nursery) -> None:
    """Cancelled in every moment: before the frame, with it, and after it."""
    (frame,) = frames(1)
    for moment in range(40):
        box = outbox()
        got: list[tuple[int, Frame | None] | None] = []
        scope = trio.CancelScope()

        async def consumer(
            box: Outbox = box,
            got: list[tuple[int, Frame | None] | None] = got,
            scope: trio.CancelScope = scope,
        ) -> None:
            with scope:
                got.append(await box.wait())

        nursery.start_soon(consumer)
        await wait_all_tasks_blocked()
        if moment % 2:
            scope.cancel()
            box.offer(frame, Policy.DROP)
        else:
            box.offer(frame, Policy.DROP)
            scope.cancel()
        await wait_all_tasks_blocked()
        assert got + list(taken(box)) == [(0, frame)]


async def test_a_frame_replaced_on_its_way_to_who_waits_leaves_its_hole_in_place(
    nursery: trio.Nursery,
) -> None:
    box = outbox()
    got: list[tuple[int, Frame | None] | None] = []

    async def consumer() -> None:
        got.append(await box.wait())

    nursery.start_soon(consumer)
    await wait_all_tasks_blocked()
    old, new = frames(2)
    box.offer(old, Policy.LATEST)
    box.offer(new, Policy.LATEST)
    await wait_all_tasks_blocked()
    assert got == [(1, new)]
    assert box.take() is None


class Model:
    """The same in the plainest way: a list of what was offered, and what became of each."""

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self.max_frames = max_frames
        self.max_bytes = max_bytes
        self.waiting: list[tuple[Frame, Policy]] = []
        self.holes: list[Position] = []

    def offer(self, frame: Frame, policy: Policy) -> int | None:
        dropped = 0
        if policy is Policy.LATEST:
            for old in [*self.waiting]:
                if old[1] is policy and (old[0].channels, old[0].key) == (
                    frame.channels,
                    frame.key,
                ):
                    self.waiting.remove(old)
                    self.holes.append(old[0].position)
                    dropped += 1
        size = sum(len(waiting.chunk) for waiting, _ in self.waiting) + len(frame.chunk)
        if len(self.waiting) == self.max_frames or (self.waiting and size > self.max_bytes):
            if policy in (Policy.DISCONNECT, Policy.CATCH_UP):
                return None
            self.holes.append(frame.position)
            return dropped + 1
        self.waiting.append((frame, policy))
        return dropped

    def take(self) -> tuple[int, Frame | None] | None:
        frame = self.waiting.pop(0)[0] if self.waiting else None
        before = [hole for hole in self.holes if frame is None or hole < frame.position]
        self.holes = [hole for hole in self.holes if hole not in before]
        return (len(before), frame) if before or frame is not None else None


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.tuples(
                st.sampled_from(list(Policy)),
                st.sampled_from("ab"),
                st.sampled_from([None, "k"]),
                st.integers(1, 200),
            ),
        ),
        max_size=80,
    ),
    st.integers(1, 5),
    st.integers(100, 600),
)
def test_every_frame_is_taken_or_counted_in_one_hole_at_its_place(
    operations: list[tuple[Policy, str, str | None, int] | None], max_frames: int, max_bytes: int
) -> None:
    box, model = outbox(max_frames, max_bytes), Model(max_frames, max_bytes)
    for number, operation in enumerate([*operations, *[None] * 10]):
        if operation is None:
            assert box.take() == model.take()
        else:
            policy, channel, key, size = operation
            frame = render(Event((channel,), "x" * size, key=key), Position(1, number))
            assert box.offer(frame, policy) == model.offer(frame, policy)
        assert box.frames == len(model.waiting) <= max_frames
        assert box.bytes == sum(len(frame.chunk) for frame, _ in model.waiting)
        assert box.bytes <= max_bytes or box.frames == 1
        assert box._take.statistics().current_buffer_used <= LATEST_SLACK * max_frames
    assert box.take() is None
