"""A token stream that is being made: what goes to its channel, and how it ends."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
from scripted_bus import ScriptedBus
from trio.testing import wait_all_tasks_blocked

from gateway.config import Format
from gateway.errors import Unavailable
from gateway.event import Event
from gateway.relay.events import Complete, Failure, Token
from gateway.relay.outlet import PATIENCE_SECONDS, Outlet
from gateway.relay.record import Record
from gateway.relay.running import LAST_WORDS_SECONDS, Away, Running
from gateway.relay.sizes import kept_bytes
from gateway.sse import ServerSentEvent

Produce = Callable[[Running], Awaitable[Complete]]

RECORD = Record("i", "stream:i", "stream:i.raw", Format.OPENAI, 0, "openai")
END = Complete("end")


def make(bus: ScriptedBus, record: Record = RECORD, **limits: Any) -> Running:
    usual = {"max_tokens": 1000, "max_seconds": 600.0, "max_event_bytes": 1000}
    usual["max_kept_bytes"] = 1_000_000
    return Running(record, Outlet(bus.publish, bus.vouches), **(usual | limits))


def told(event: Event) -> tuple[str | None, Any]:
    return event.type, msgspec.json.decode(event.data)


def says(*texts: str) -> Produce:
    async def produce(running: Running) -> Complete:
        for text in texts:
            running.tell(Token(text))
            await trio.lowlevel.checkpoint()
        return END

    return produce


def text_of(bus: ScriptedBus) -> str:
    return "".join(told(event)[1]["text"] for event in bus.events if event.type == "token")


async def test_tokens_and_then_the_end_for_both_channels() -> None:
    bus = ScriptedBus()
    running = make(bus)
    await running.run(says("Hel", "lo"))
    assert [told(event) for event in bus.events] == [
        ("token", {"text": "Hel"}),
        ("token", {"text": "lo"}),
        ("complete", {"reason": "end", "usage": None}),
    ]
    assert bus.events[-1].channels == ("stream:i", "stream:i.raw")
    assert [event.end for event in bus.events] == [False, False, True]
    assert running.last == END
    assert running.ended.is_set()


async def test_raw_events_go_to_their_own_channel_as_they_were() -> None:
    bus = ScriptedBus()
    running = make(bus)

    async def produce(running: Running) -> Complete:
        running.tell_raw(ServerSentEvent("message", "[DONE]", ""))
        running.tell_raw(ServerSentEvent("ping", "{}", "7"))
        running.tell_raw(ServerSentEvent("gap", "{}", ""))
        return END

    await running.run(produce)
    assert [(event.channels, event.type, event.data) for event in bus.events[:-1]] == [
        (("stream:i.raw",), None, "[DONE]"),
        (("stream:i.raw",), "ping", "{}"),
        (("stream:i.raw",), "upstream:gap", "{}"),
    ]


@pytest.mark.parametrize("kind", ["a\0b", "x" * 201])
async def test_a_type_that_cannot_be_told_is_malformed(kind: str) -> None:
    bus = ScriptedBus()

    async def produce(running: Running) -> Complete:
        running.tell_raw(ServerSentEvent(kind, "x", ""))
        return END

    await make(bus).run(produce)
    (end,) = bus.events
    assert told(end)[1]["code"] == "malformed"


@pytest.mark.parametrize("data", ["x" * 993, "\n" * 124, "\U0001f600" * 248])
async def test_an_event_is_told_or_too_large_by_its_bytes_as_they_are_sent(data: str) -> None:
    for more, kinds in (("", [None, "complete"]), ("\n", ["error"])):
        bus = ScriptedBus()

        async def produce(running: Running, data: str = data + more) -> Complete:
            running.tell_raw(ServerSentEvent("message", data, ""))
            return END

        await make(bus).run(produce)
        assert [event.type for event in bus.events] == kinds


async def test_where_both_views_are_one_the_end_is_told_once() -> None:
    bus = ScriptedBus()
    record = msgspec.structs.replace(RECORD, raw=RECORD.channel)
    await make(bus, record).run(says())
    assert [event.channels for event in bus.events] == [("stream:i",)]


async def test_a_failure_is_told_without_internals() -> None:
    bus = ScriptedBus()

    async def produce(running: Running) -> Complete:
        raise Failure("upstream-error", status=502)

    await make(bus).run(produce)
    assert [told(event) for event in bus.events] == [
        (
            "error",
            {
                "code": "upstream-error",
                "message": "The upstream failed.",
                "retryable": True,
                "status": 502,
            },
        )
    ]


async def test_a_fault_of_ours_ends_the_stream_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = ScriptedBus()

    async def produce(running: Running) -> Complete:
        raise ZeroDivisionError

    await make(bus).run(produce)
    assert told(bus.events[-1])[1]["code"] == "internal"
    assert "a token stream failed" in caplog.text


async def test_it_lasts_no_longer_than_it_may(autojump_clock: trio.abc.Clock) -> None:
    bus = ScriptedBus()

    async def produce(running: Running) -> Complete:
        running.tell(Token("a"))
        await trio.sleep_forever()

    await make(bus, max_seconds=30.0).run(produce)
    assert [event.type for event in bus.events] == ["token", "error"]
    assert told(bus.events[-1])[1]["code"] == "limit-duration"
    assert trio.current_time() == pytest.approx(30.0, abs=1)


async def test_it_has_no_more_tokens_than_it_may() -> None:
    bus = ScriptedBus()
    await make(bus, max_tokens=3).run(says(*"abcdef"))
    assert text_of(bus) == "abc"
    assert told(bus.events[-1])[1]["code"] == "limit-tokens"


@pytest.mark.parametrize("batch_bytes", [0, 100])
async def test_it_has_no_more_than_its_history_holds(batch_bytes: int) -> None:
    bus = ScriptedBus()
    running = make(bus, max_kept_bytes=3 * kept_bytes('{"text":"a"}'), batch_bytes=batch_bytes)
    await running.run(says(*"abcdef"))
    assert text_of(bus) == "abc"
    assert told(bus.events[-1])[1]["code"] == "limit-bytes"


async def test_a_stop_closes_what_it_comes_from_and_is_told_behind_what_came() -> None:
    bus = ScriptedBus()
    running = make(bus)
    closed = trio.Event()

    async def produce(running: Running) -> Complete:
        try:
            running.tell(Token("a"))
            await trio.sleep_forever()
        finally:
            closed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run, produce)
        await wait_all_tasks_blocked()
        running.stop(Complete("stopped"))
        running.stop(Complete("unwatched"))  # the first counts
        await running.ended.wait()
    assert closed.is_set()
    assert [told(event) for event in bus.events] == [
        ("token", {"text": "a"}),
        ("complete", {"reason": "stopped", "usage": None}),
    ]


async def test_who_finds_the_channel_ended_closes_and_says_nothing() -> None:
    bus = ScriptedBus()
    bus.answers = [["taken"], ["ended"]]
    running = make(bus)

    async def produce(running: Running) -> Complete:
        running.tell(Token("a"))
        await wait_all_tasks_blocked()
        running.tell(Token("b"))
        await trio.sleep_forever()

    await running.run(produce)
    assert [event.type for event in bus.events] == ["token"]
    assert running.last is None
    assert running.ended.is_set()


async def test_a_short_outage_leaves_no_hole(autojump_clock: trio.abc.Clock) -> None:
    bus = ScriptedBus()
    bus.up = trio.Event()
    texts = [str(number) for number in range(500)]
    running = make(bus)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run, says(*texts))
        await trio.sleep(PATIENCE_SECONDS / 2)
        bus.up.set()
    assert text_of(bus) == "".join(texts)
    assert running.last == END


async def test_a_long_outage_is_told_once_the_bus_is_back(autojump_clock: trio.abc.Clock) -> None:
    bus = ScriptedBus()
    bus.up = trio.Event()
    running = make(bus)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run, says("a", "b"))
        await trio.sleep(PATIENCE_SECONDS + 5)
        bus.up.set()
    assert [told(event)[1]["code"] for event in bus.events] == ["bus-lost"]


async def test_an_outage_without_end_is_left_to_others(autojump_clock: trio.abc.Clock) -> None:
    bus = ScriptedBus()
    bus.up = trio.Event()
    running = make(bus)
    await running.run(says("a"))
    assert running.last is None
    assert trio.current_time() <= 2 * PATIENCE_SECONDS + LAST_WORDS_SECONDS
    assert not bus.events


async def test_a_producer_that_went_away_leaves_all_it_sent_and_no_end() -> None:
    bus = ScriptedBus()
    running = make(bus)

    async def produce(running: Running) -> Complete:
        running.tell(Token("a"))
        raise Away(15.0)

    await running.run(produce)
    assert [event.type for event in bus.events] == ["token"]
    assert (running.last, running.away) == (None, 15.0)


@pytest.mark.parametrize("may", [True, False])
async def test_nothing_is_told_before_it_is_known_that_nobody_else_does(may: bool) -> None:
    bus = ScriptedBus()
    asked = 0

    async def begin() -> bool:
        nonlocal asked
        asked += 1
        return may

    async def produce(running: Running) -> Complete:
        for text in "abc":
            await running.begin()
            running.tell(Token(text))
        return END

    running = make(bus, begin=begin)
    await running.run(produce)
    assert asked == 1
    assert text_of(bus) == ("abc" if may else "")
    assert running.last == (END if may else None)


async def test_tokens_are_batched_by_size(autojump_clock: trio.abc.Clock) -> None:
    bus = ScriptedBus()
    running = make(bus, batch_bytes=4)
    await running.run(says(*"abcdefghij"))
    assert [told(e)[1]["text"] for e in bus.events[:-1]] == ["abcd", "efgh", "ij"]
    assert running.tokens == 10


async def test_tokens_are_batched_by_time(autojump_clock: trio.abc.Clock) -> None:
    bus = ScriptedBus()

    async def produce(running: Running) -> Complete:
        for text in "abcdef":
            running.tell(Token(text))
            await trio.sleep(0.4)
        return END

    running = make(bus, batch_seconds=1.0)
    await running.run(produce)
    assert [told(e)[1]["text"] for e in bus.events[:-1]] == ["abc", "def"]


async def test_a_batch_is_no_larger_than_an_event_may_be() -> None:
    bus = ScriptedBus()
    await make(bus, batch_seconds=1.0, max_event_bytes=1000).run(says(*['"\n' * 100] * 20))
    assert text_of(bus) == '"\n' * 2000
    assert max(len(event.data) for event in bus.events) <= 1000


async def test_where_it_cannot_be_known_whether_it_may_begin_that_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def begin() -> bool:
        raise Unavailable("The registry is away.", reason="bus")

    async def produce(running: Running) -> Complete:
        await running.begin()
        raise AssertionError

    bus = ScriptedBus()
    await make(bus, begin=begin).run(produce)
    assert told(bus.events[-1])[1]["code"] == "bus-lost"
    assert "failed" not in caplog.text


async def test_a_hole_is_told_though_another_end_was_asked_for() -> None:
    """When its producer has not let go yet."""
    bus = ScriptedBus()
    bus.answers = [["unknown"]]

    async def produce(running: Running) -> Complete:
        running.tell(Token("a"))
        running.stop(END)
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        await trio.sleep_forever()
        raise AssertionError

    await make(bus).run(produce)
    assert [told(event)[1].get("code") for event in bus.events] == ["bus-lost"]


async def test_what_is_batched_keeps_its_place() -> None:
    bus = ScriptedBus()

    async def produce(running: Running) -> Complete:
        running.tell(Token("a"))
        running.tell(Token("b"))
        running.tell(Complete("tool"))  # any other event
        running.tell(Token("c"))
        return END

    await make(bus, batch_bytes=1000).run(produce)
    assert [event.type for event in bus.events] == ["token", "complete", "token", "complete"]
    assert text_of(bus) == "abc"


async def test_the_first_token_is_timed(autojump_clock: trio.abc.Clock) -> None:
    bus = ScriptedBus()
    seconds: list[float] = []

    async def produce(running: Running) -> Complete:
        await trio.sleep(2)
        running.tell(Token("a"))
        await trio.sleep(2)
        running.tell(Token("b"))
        return END

    await make(bus, first_token=seconds.append).run(produce)
    assert seconds == [pytest.approx(2.0)]
