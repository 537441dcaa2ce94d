"""From a token stream to its channel: in order, whole, or with a reason."""

import pytest
import trio
from scripted_bus import ScriptedBus
from trio.testing import wait_all_tasks_blocked

from gateway.errors import ChannelEnded
from gateway.event import Event
from gateway.position import Position
from gateway.relay.events import Failure
from gateway.relay.outlet import BATCH_EVENTS, PATIENCE_SECONDS, WAITING_EVENTS, Outlet


def event(data: str, *, end: bool = False) -> Event:
    return Event(("c",), data, end=end)


async def publish_all(bus: ScriptedBus, outlet: Outlet, count: int) -> None:
    """Put so many events and an end, and see them out."""
    for number in range(count):
        outlet.put(event(str(number)))
    outlet.put(event("end", end=True))
    await outlet.run()


def numbers(count: int) -> list[str]:
    return [*map(str, range(count)), "end"]


async def test_all_goes_out_in_order_and_in_few_calls() -> None:
    bus = ScriptedBus()
    outlet = Outlet(bus.publish, bus.vouches)
    await publish_all(bus, outlet, 1000)
    assert bus.taken == numbers(1000)
    assert max(bus.calls) == BATCH_EVENTS
    assert (outlet.waits, outlet.published, outlet.position) == (0, 1001, Position(1, 1001))


async def test_a_large_event_goes_alone() -> None:
    bus = ScriptedBus()
    outlet = Outlet(bus.publish, bus.vouches)
    for data in ("a", "b" * 1_000_000, "c"):
        outlet.put(event(data))
    outlet.put(event("end", end=True))
    await outlet.run()
    assert bus.calls == [1, 1, 2]


@pytest.mark.parametrize("taken", [0, 1, 5])
async def test_what_was_refused_is_tried_again_and_nothing_else(
    taken: int, autojump_clock: trio.abc.Clock
) -> None:
    bus = ScriptedBus()
    bus.answers = [["taken"] * taken + ["refused"], ["refused"]]
    outlet = Outlet(bus.publish, bus.vouches)
    await publish_all(bus, outlet, 10)
    assert bus.taken == numbers(10)


async def test_an_outage_is_waited_out(autojump_clock: trio.abc.Clock) -> None:
    bus = ScriptedBus()
    bus.up = trio.Event()
    outlet = Outlet(bus.publish, bus.vouches)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish_all, bus, outlet, 10)
        await trio.sleep(PATIENCE_SECONDS - 1)
        assert not bus.taken
        bus.up.set()
    assert bus.taken == numbers(10)


async def test_an_outage_that_lasts_is_said_to_be_one(autojump_clock: trio.abc.Clock) -> None:
    bus = ScriptedBus()
    bus.up = trio.Event()
    outlet = Outlet(bus.publish, bus.vouches)
    began = trio.current_time()
    with pytest.raises(Failure, match="bus-lost"):
        await publish_all(bus, outlet, 10)
    assert PATIENCE_SECONDS <= trio.current_time() - began < PATIENCE_SECONDS + 2
    assert not bus.taken


@pytest.mark.parametrize(
    "answers", [["unknown"], ["taken", "unknown"], ["taken", "refused", "taken"]]
)
async def test_what_may_leave_a_hole_or_double_something_is_not_tried_again(
    answers: list[str],
) -> None:
    bus = ScriptedBus()
    bus.answers = [answers]
    outlet = Outlet(bus.publish, bus.vouches)
    with pytest.raises(Failure, match="bus-lost"):
        await publish_all(bus, outlet, 2)
    assert bus.calls == [3]


async def test_a_channel_that_somebody_else_has_ended_takes_nothing_more() -> None:
    bus = ScriptedBus()
    bus.answers = [["taken", "ended"]]
    outlet = Outlet(bus.publish, bus.vouches)
    with pytest.raises(ChannelEnded):
        await publish_all(bus, outlet, 5)
    assert bus.taken == ["0"]


async def test_nothing_but_an_end_follows_what_the_bus_may_have_lost() -> None:
    bus = ScriptedBus()
    bus.lossless = False
    outlet = Outlet(bus.publish, bus.vouches)
    outlet.put(event("a"))
    with pytest.raises(Failure, match="bus-lost"):
        await outlet.run()
    outlet.clear()
    outlet.put(event("end", end=True))
    await outlet.run()
    assert bus.taken == ["end"]


async def test_an_end_does_not_stand_for_what_the_bus_may_have_lost() -> None:
    """It would say that the stream is complete."""
    bus = ScriptedBus()
    outlet = Outlet(bus.publish, bus.vouches)
    bus.lossless = False
    with pytest.raises(Failure, match="bus-lost"):
        await publish_all(bus, outlet, 2)
    assert bus.taken == []


async def test_what_waits_is_bounded(autojump_clock: trio.abc.Clock) -> None:
    bus = ScriptedBus()
    bus.up = trio.Event()
    outlet = Outlet(bus.publish, bus.vouches)
    put = 0

    async def producer() -> None:
        nonlocal put
        for _ in range(2 * WAITING_EVENTS):
            await outlet.room()
            outlet.put(event("a"))
            put += 1
        outlet.put(event("end", end=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(producer)
        nursery.start_soon(outlet.run)
        await wait_all_tasks_blocked()
        assert put == WAITING_EVENTS
        bus.up.set()
    assert len(bus.taken) == 2 * WAITING_EVENTS + 1


async def test_flushed_is_when_nothing_waits() -> None:
    bus = ScriptedBus()
    bus.up = trio.Event()
    outlet = Outlet(bus.publish, bus.vouches)
    outlet.put(event("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outlet.run)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0) as waited:
            await outlet.flushed()
        assert waited.cancelled_caught
        bus.up.set()
        await outlet.flushed()
        assert bus.taken == ["a"]
        nursery.cancel_scope.cancel()
