"""Polls: what a stream would have brought, in answers that come one after another."""

import logging
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
import trio
from process import PATIENCE, node
from rig import EPOCH, AwaitingBus, Peer, Rig, rule, running
from running import ACCEPT, Gateway, Response, Wire, is_position, request, until
from running import running as serving
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import control, fanout, poll, replay
from gateway.api.poll import MAX_WAIT
from gateway.api.poll import poll as answer_poll
from gateway.api.request import Request, parse_target
from gateway.bus import History
from gateway.bus.memory import MemoryBus
from gateway.config import Config
from gateway.errors import Unavailable
from gateway.event import Frame
from gateway.policy import Policy
from gateway.position import ZERO, Closed, Position, Resume, Start, parse_resume
from gateway.stream_state import Reason
from gateway.streams import EventStream

BUSES = pytest.mark.parametrize("bus", [MemoryBus, AwaitingBus])
VERSIONS = pytest.mark.parametrize("version", ["1.1", "1.0"])


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is asked, nothing fails inside."""
    yield
    assert [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR] == []


class Given(msgspec.Struct):
    """An event of an answer."""

    id: str | None
    event: str
    data: str
    channel: str | None
    channels: list[str]

    @property
    def position(self) -> Position:
        position = Position.parse(self.id or "")
        assert position is not None
        return position


@dataclass
class Answer:
    events: list[Given]
    last_event_id: str

    @property
    def data(self) -> list[str]:
        """That of the events but for notices."""
        return [event.data for event in self.events if event.id is not None]

    @property
    def types(self) -> list[str]:
        return [event.event for event in self.events]

    @property
    def resume(self) -> Resume:
        return parse_resume(self.last_event_id)

    @property
    def gaps(self) -> list[tuple[list[str], str]]:
        """Each with its channels and its reason."""
        told = [msgspec.json.decode(e.data) for e in self.events if e.event == "gap"]
        return [(document["channels"], document["reason"]) for document in told]


def read(document: dict[str, Any]) -> Answer:
    assert list(document) == ["events", "lastEventId"]
    return Answer(msgspec.convert(document["events"], list[Given]), document["lastEventId"])


@asynccontextmanager
async def rig_with(bus: type[MemoryBus] = MemoryBus, **settings: Any) -> AsyncIterator[Rig]:
    async with running(Config(**settings), bus) as rig:
        yield rig
        await wait_all_tasks_blocked()
        assert len(rig.node.streams.replays) == 0


async def ask(
    rig: Rig,
    *channels: str,
    resume: Resume | int = Start.NOW,
    wait: float = 0.0,
    user: str | None = None,
    patience: trio.CancelScope | None = None,
) -> Answer:
    patience = patience or trio.CancelScope(deadline=trio.current_time() + wait)
    stream = EventStream(channels, user, resume)
    polled = await poll.poll(rig.node.streams, rig.hub, stream, patience)
    events = [msgspec.json.decode(event, type=Given) for event in polled.events]
    return Answer(events, polled.last_event_id)


class Asking:
    """A poll that is under way, as a task of its own."""

    def __init__(self, rig: Rig, *channels: str, **options: Any) -> None:
        self.answer: Answer | None = None
        self.patience = trio.CancelScope()
        self.scope = trio.CancelScope()

        async def run() -> None:
            with self.scope:
                self.answer = await ask(rig, *channels, patience=self.patience, **options)

        rig.nursery.start_soon(run)

    async def answered(self) -> Answer:
        await wait_all_tasks_blocked()
        assert self.answer is not None
        return self.answer


async def asking(rig: Rig, *channels: str, **options: Any) -> Asking:
    """A poll that waits."""
    found = Asking(rig, *channels, **options)
    await wait_all_tasks_blocked()
    assert found.answer is None
    return found


# -- when it answers


@BUSES
async def test_a_first_poll_hands_out_a_position_after_which_nothing_is_lost(
    bus: type[MemoryBus], autojump_clock: MockClock
) -> None:
    async with rig_with(bus) as rig:
        await rig.publish("a", "before")
        first = await ask(rig, "a", "b", wait=5)
        assert first.events == []
        assert first.resume == rig.bus.head()
        for number in range(3):
            await rig.publish("ab"[number % 2], str(number))
            rig.wall += number
        second = await ask(rig, "a", "b", resume=first.resume, wait=5)
        assert second.data == ["0", "1", "2"]
        assert second.last_event_id == second.events[-1].id


@BUSES
async def test_a_poll_returns_with_the_first_event(bus: type[MemoryBus]) -> None:
    async with rig_with(bus) as rig:
        waiting = await asking(rig, "a", "global")
        position = await rig.publish("a", "x\ny")
        answer = await waiting.answered()
        assert answer.events == [Given(str(position), "message", "x\ny", "a", ["a"])]
        assert answer.last_event_id == str(position)


@pytest.mark.parametrize("wait", [0.0, 0.5, 25.0])
async def test_without_events_a_poll_takes_the_wait_and_no_longer(
    wait: float, autojump_clock: MockClock
) -> None:
    async with rig_with() as rig:
        start = trio.current_time()
        answer = await ask(rig, "a", wait=wait)
        assert trio.current_time() == pytest.approx(start + wait)
        assert answer.events == []
        assert rig.hub.statistics().keepalives == 0


async def test_a_poll_is_not_taken_for_stalled(autojump_clock: MockClock) -> None:
    async with rig_with(max_behind_seconds=1.0, keepalive=1.0) as rig:
        start = trio.current_time()
        await ask(rig, "a", wait=25)
        assert trio.current_time() == pytest.approx(start + 25)


async def test_the_position_of_an_empty_answer_moves_on(autojump_clock: MockClock) -> None:
    """A quiet channel's position must not grow older than its history."""
    async with rig_with() as rig:
        first = await ask(rig, "a")
        rig.wall += 1000
        second = await ask(rig, "a", resume=first.resume, wait=5)
        assert second.resume == Position(EPOCH + 1000, 0)


async def test_what_is_there_already_is_taken_with_the_first_event() -> None:
    async with rig_with() as rig:
        waiting = await asking(rig, "a", "b")
        for number in range(5):
            await rig.publish("ab"[number % 2], str(number))
        answer = await waiting.answered()
        assert answer.data == ["0", "1", "2", "3", "4"]


@BUSES
async def test_what_is_pending_is_found_without_any_wait(bus: type[MemoryBus]) -> None:
    async with rig_with(bus) as rig:
        start = rig.bus.head()
        await rig.publish("a", "x")
        answer = await ask(rig, "a", resume=start)
        assert answer.data == ["x"]


@pytest.mark.parametrize("steps", range(24))
async def test_a_wait_that_ends_at_any_await_loses_nothing(steps: int) -> None:
    async with rig_with(AwaitingBus, outbox_frames=2, policy=Policy.CATCH_UP) as rig:
        start = rig.bus.head()
        waiting = Asking(rig, "a", resume=start)
        for number in range(steps):
            await rig.publish("a", str(number))
            await trio.lowlevel.checkpoint()
        waiting.patience.cancel()
        seen = await waiting.answered()
        rest = await ask(rig, "a", resume=seen.resume)
        assert seen.data + rest.data == [str(number) for number in range(steps)]
        assert seen.gaps == rest.gaps == []


@pytest.mark.parametrize("steps", range(24))
async def test_a_poll_cancelled_at_any_await_leaves_no_client_behind(steps: int) -> None:
    async with rig_with(AwaitingBus) as rig:
        positions = [await rig.publish("a", str(number)) for number in range(3)]
        waiting = Asking(rig, "b" if steps % 2 else "a", resume=positions[0])
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        waiting.scope.cancel()
        await wait_all_tasks_blocked()
        assert rig.hub.members.clients == {}
        assert rig.hub.members.channels == {}
        assert rig.hub.open_streams == 0


# -- what it answers


async def test_events_have_their_type_and_the_channel_that_was_asked_for() -> None:
    async with rig_with() as rig:
        start = rig.bus.head()
        await rig.publish(("z", "b", "a"), "three")
        await rig.publish("global", "all")
        await rig.publish("user:7", "mine")
        answer = await ask(rig, "a", "b", "global", "user:7", resume=start, user="7")
        assert [(e.channel, e.channels, e.data) for e in answer.events] == [
            ("b", ["b", "a"], "three"),
            ("global", ["global"], "all"),
            ("user:7", ["user:7"], "mine"),
        ]


async def test_where_a_poll_begins() -> None:
    async with rig_with(history_events=3) as rig:
        positions = [await rig.publish("a", str(number)) for number in range(5)]
        for resume, data, gaps in (
            (positions[1], ["2", "3", "4"], []),
            (positions[0], ["2", "3", "4"], [(["a"], "trimmed")]),
            (Position(EPOCH - 1, 0), ["2", "3", "4"], [(["a"], "restarted")]),
            (Start.EARLIEST, ["2", "3", "4"], []),
            (Start.UNKNOWN, [], [(["a"], "unknown")]),
            (Position(EPOCH + 99, 0), [], [(["a"], "unknown")]),
            (2, ["3", "4"], []),
            (0, [], []),
            (positions[4], [], []),
        ):
            answer = await ask(rig, "a", resume=resume)
            assert answer.data == data, resume
            assert answer.gaps == gaps, resume
            assert answer.types == ["gap"] * len(gaps) + ["message"] * len(data)
            assert answer.resume == (positions[4] if data else rig.bus.head())
            again = await ask(rig, "a", resume=answer.resume)
            assert again.events == []


async def test_a_gap_is_an_answer_by_itself_and_is_told_once() -> None:
    async with rig_with(history_events=0) as rig:
        start = rig.bus.head()
        await rig.publish("a", "gone")
        answer = await ask(rig, "a", resume=start, patience=trio.CancelScope())
        assert answer.types == ["gap"]
        assert answer.events[0].channel is None
        assert (await ask(rig, "a", resume=answer.resume)).events == []


async def test_a_gap_that_is_told_meanwhile_ends_a_poll() -> None:
    async with rig_with() as rig:
        waiting = await asking(rig, "a", "b")
        rig.wall += 1
        await rig.node._fanout.tell_gap(("b", "c"), rig.bus.head(), control.Gap.TRIMMED)
        answer = await waiting.answered()
        data = '{"channels":["b"],"reason":"trimmed"}'
        assert answer.events == [Given(None, "gap", data, None, [])]
        later = await rig.publish("a", "x")
        assert (await ask(rig, "a", "b", resume=answer.resume)).resume == later


async def ask_all(rig: Rig, *channels: str, resume: Resume) -> list[Answer]:
    """Every answer until there is nothing."""
    answers = []
    while (answer := await ask(rig, *channels, resume=resume)).events:
        assert parse_resume(answer.last_event_id) == answer.events[-1].position
        resume = answer.resume
        answers.append(answer)
    return answers


@BUSES
@pytest.mark.parametrize(
    ("size", "frames", "pages"), [(1, 256, 4), (3000, 42, 24), (200_000, 1, 9)]
)
async def test_a_page_is_bounded_in_events_and_bytes(
    bus: type[MemoryBus], size: int, frames: int, pages: int
) -> None:
    async with rig_with(bus, history_bytes=4_000_000) as rig:
        start = rig.bus.head()
        count = frames * (pages - 1) + (frames + 1) // 2
        for number in range(count):
            await rig.publish("ab"[number % 2], f"{number:{size}}")
        answers = await ask_all(rig, "a", "b", resume=start)
        assert [data.strip() for answer in answers for data in answer.data] == [
            str(number) for number in range(count)
        ]
        assert [len(answer.events) for answer in answers[:-1]] == [frames] * (pages - 1)


async def test_what_a_page_has_no_room_for_comes_next() -> None:
    """Queued events too: only what is in an answer has been given."""
    async with rig_with() as rig:
        waiting = await asking(rig, "a")
        (client,) = rig.hub.members.clients.values()
        with patch.object(poll, "PAGE_FRAMES", 3):
            for number in range(8):
                await rig.publish("a", str(number))
            answer = await waiting.answered()
        assert client.offered == client.written == 3
        assert answer.data == ["0", "1", "2"]
        rest = await ask(rig, "a", resume=answer.resume)
        assert rest.data == ["3", "4", "5", "6", "7"]
        assert rig.hub.totals.delivered == 8


async def test_a_notice_goes_with_the_event_that_it_stands_before() -> None:
    """What a page has no room for is replayed, and so is what was dropped before it."""
    async with rig_with(channels=(rule("a", Policy.LATEST),)) as rig:
        waiting = await asking(rig, "a")
        (client,) = rig.hub.members.clients.values()
        for number in range(5):
            await rig.publish("a", f"{number}{'x' * 900}", key="k" if number else "l")
        with patch.object(poll, "PAGE_BYTES", 1000):
            answer = await waiting.answered()
        assert client.dropped == 3
        assert answer.types == ["message"]
        rest = await ask(rig, "a", resume=answer.resume)
        assert rest.types == ["message"] * 4


async def test_a_gap_before_an_event_larger_than_a_page_does_not_repeat() -> None:
    async with rig_with(history_events=2) as rig:
        start = rig.bus.head()
        for _ in range(4):
            await rig.publish("a", "x" * 900)
        with patch.object(poll, "PAGE_BYTES", 100):
            first = await ask(rig, "a", resume=start)
            second = await ask(rig, "a", resume=first.resume)
        assert first.types == ["gap", "message"]
        assert second.types == ["message"]


@pytest.mark.parametrize(
    ("block", "data"),
    [(b"data: x\n\ndata: y\n\n", ["x", "y"]), (b"event: t\n\n", []), (b"\n\n", [])],
)
def test_a_frame_that_is_not_one_event_is_given_as_what_it_is(
    block: bytes, data: list[str]
) -> None:
    """No node makes one; who may write into Redis can."""
    page = poll.Page(("a",), ZERO)
    frame = Frame(Position(1, 0), ("a",), b"", 0, 0)
    assert page._take_frame(block, frame)
    assert [msgspec.json.decode(given)["data"] for given in page.events] == data
    assert page.reached == frame.position


async def test_dropped_events_are_told_where_they_are_missing() -> None:
    async with rig_with(outbox_frames=2) as rig:
        waiting = await asking(rig, "a")
        (client,) = rig.hub.members.clients.values()
        for number in range(5):
            await rig.publish("a", str(number))
        answer = await waiting.answered()
        assert (client.offered, client.written, client.dropped) == (5, 2, 3)
        assert answer.types == ["message", "message", "dropped"]
        assert answer.events[-1] == Given(None, "dropped", '{"count":3}', None, [])
        rig.wall += 1
        last = await rig.publish("a", "after")
        second = await ask(rig, "a", resume=answer.resume)
        assert second.types == ["message"]
        assert second.resume == last
        assert rig.hub.totals.dropped == 3


async def test_under_latest_what_was_replaced_is_told_as_dropped() -> None:
    async with rig_with(channels=(rule("a", Policy.LATEST),)) as rig:
        waiting = await asking(rig, "a")
        for number in range(4):
            await rig.publish("a", str(number), key="k")
        last = await rig.publish("a", "other", key="l")
        answer = await waiting.answered()
        assert answer.data[-2:] == ["3", "other"]
        told = sum(msgspec.json.decode(e.data)["count"] for e in answer.events if not e.id)
        assert told + len(answer.data) == 5
        assert answer.resume == last


@BUSES
@pytest.mark.parametrize("policy", [Policy.CATCH_UP, Policy.DISCONNECT])
async def test_policies_that_lose_nothing_lose_nothing(
    policy: Policy, bus: type[MemoryBus]
) -> None:
    async with rig_with(bus, outbox_frames=2, policy=policy) as rig:
        waiting = await asking(rig, "a")
        (client,) = rig.hub.members.clients.values()
        start = client.position
        for number in range(9):
            await rig.publish("a", str(number))
        first = await waiting.answered()
        second = await ask(rig, "a", resume=first.resume)
        assert first.data + second.data == [str(number) for number in range(9)]
        assert [e.event for e in (*first.events, *second.events)] == ["message"] * 9
        assert isinstance(first.resume, Position)
        assert first.resume >= start


# -- how it ends


@BUSES
async def test_a_poll_ends_for_good_with_its_channel(bus: type[MemoryBus]) -> None:
    async with rig_with(bus) as rig:
        waiting = await asking(rig, "a", "global")
        end = await rig.publish("a", "the end", end=True)
        answer = await waiting.answered()
        assert answer.data == ["the end"]
        assert answer.resume == Closed(end)
        fresh = await ask(rig, "a", "global", patience=trio.CancelScope())
        assert fresh.events == []
        assert isinstance(fresh.resume, Closed)


async def test_a_poll_whose_channel_ends_without_a_page_for_it_gets_the_rest_first() -> None:
    async with rig_with() as rig:
        start = rig.bus.head()
        await rig.publish("a", "first")
        await rig.publish("a", "the end", end=True)
        with patch.object(poll, "PAGE_FRAMES", 1):
            first = await ask(rig, "a", resume=start)
            second = await ask(rig, "a", resume=first.resume)
        assert (first.data, second.data) == (["first"], ["the end"])
        assert isinstance(first.resume, Position)
        assert isinstance(second.resume, Closed)


def close(rig: Rig) -> Reason:
    (client,) = rig.hub.members.clients.values()
    rig.hub.end_for_good(client, Reason.CLOSED)
    return Reason.CLOSED


def drain(rig: Rig) -> Reason:
    (client,) = rig.hub.members.clients.values()
    rig.hub.finish(client, Reason.DRAINING, control.retry(2) + control.reconnect("draining"))
    return Reason.DRAINING


@pytest.mark.parametrize("end", [close, drain])
@pytest.mark.parametrize("queued", range(5))
async def test_a_poll_that_is_ended_answers_with_what_there_is(
    end: Callable[[Rig], Reason], queued: int
) -> None:
    async with rig_with() as rig:
        start = rig.bus.head()
        waiting = await asking(rig, "a")
        with patch.object(poll, "PAGE_FRAMES", 3):
            positions = [await rig.publish("a", str(number)) for number in range(queued)]
            if queued:
                await rig.hub.pending.passed_on()
                await trio.lowlevel.checkpoint()
            reason = end(rig) if rig.hub.members.clients else None
            answer = await waiting.answered()
        assert answer.types == ["message"] * min(queued, 3)
        at = positions[min(queued, 3) - 1] if queued else start
        if reason is Reason.CLOSED:
            assert isinstance(answer.resume, Closed)
            assert answer.resume.position == at
        else:
            assert answer.resume == at
        if reason is not None:
            assert rig.hub.statistics().closed[reason] == 1


async def test_polls_are_counted_as_streams_of_their_own_kind(autojump_clock: MockClock) -> None:
    async with rig_with() as rig:
        start = rig.bus.head()
        await rig.publish("a", "x")
        await ask(rig, "a", resume=start)
        waiting = await asking(rig, "a")
        (client,) = rig.hub.members.clients.values()
        assert rig.hub.open_streams == 1
        await rig.publish("a", "y")
        await waiting.answered()
        assert client.offered == client.written == 1
        said = rig.hub.statistics()
        assert (said.opened, said.closed["polled"], said.clients) == (2, 2, 0)
        assert (said.delivered, said.replayed, said.dropped) == (2, 1, 0)


# -- between poll and stream


class Wanderer:
    """A client that changes between stream and poll as it likes, after any event."""

    def __init__(self, rig: Rig, chance: random.Random, *channels: str) -> None:
        self.rig = rig
        self.chance = chance
        self.channels = channels
        self.last_event_id = ""
        self.start = ZERO
        self.seen: list[Position] = []
        self.gaps: list[tuple[str, int]] = []

    @property
    def resume(self) -> Resume:
        return parse_resume(self.last_event_id) if self.last_event_id else Start.NOW

    async def step(self) -> None:
        begin = not self.last_event_id
        await (self.poll() if self.chance.random() < 0.5 else self.stream())
        if begin and self.seen:
            self.start = self.seen[0].before()
        elif begin and self.last_event_id:
            self.start = Position.parse(self.last_event_id) or ZERO

    async def poll(self) -> None:
        wait = self.chance.choice([0.0, 0.01, 1.0])
        answer = await ask(self.rig, *self.channels, resume=self.resume, wait=wait)
        count = len(answer.events)
        if self.chance.random() < 0.3:
            count = self.chance.randint(0, count)
        last = ""
        for event in answer.events[:count]:
            last = self.take(event.event, event.data, event.id or last)
        self.last_event_id = (
            answer.last_event_id if count == len(answer.events) else last or self.last_event_id
        )

    async def stream(self) -> None:
        peer: Peer = await self.rig.open(*self.channels, resume=self.resume)
        for _ in range(self.chance.randint(0, 6)):
            peer.read(self.chance.randint(1, 3000))
            await trio.lowlevel.checkpoint()
        await peer.read_all()
        peer.sock.close()
        count = self.chance.randint(1, len(peer.events))
        for event in peer.events[:count]:
            self.last_event_id = self.take(event.event, event.data, event.last_event_id)

    def take(self, kind: str, data: str, id: str) -> str:
        if kind == "gap":
            document = msgspec.json.decode(data)
            assert document["reason"] == "trimmed"
            self.gaps += [(name, len(self.seen)) for name in document["channels"]]
        elif kind == "message":
            position = Position.parse(id)
            assert position is not None
            self.seen.append(position)
        return id

    def check(self, published: Sequence[tuple[Position, set[str]]], *, whole: bool) -> None:
        assert self.seen == sorted(set(self.seen))
        wanted = [(p, c) for p, c in published if p > self.start and c & {*self.channels}]
        assert {*self.seen} <= {position for position, _ in wanted}
        missing = [pair for pair in wanted if pair[0] not in self.seen]
        assert not (whole and missing)
        for position, channels in missing:
            assert any(
                name in channels and all(seen < position for seen in self.seen[:told])
                for name, told in self.gaps
            ), f"{position} of {channels} is gone, and nothing said so"


@BUSES
@pytest.mark.parametrize("seed", range(40))
async def test_a_client_changes_between_stream_and_poll_at_any_event(
    seed: int, bus: type[MemoryBus], autojump_clock: MockClock
) -> None:
    chance = random.Random(seed)
    history = (1000, 2)[seed % 2]
    settings = {
        "history_events": history,
        "outbox_frames": chance.choice([1, 3, 1000]),
        "policy": Policy.CATCH_UP,
    }
    published: list[tuple[Position, set[str]]] = []
    with (
        patch.object(fanout, "YIELD_EVERY", 1),
        patch.object(fanout, "MOST_SECONDS", 0),
        patch.object(replay, "PAGE_FRAMES", 2),
        patch.object(poll, "PAGE_FRAMES", 3),
    ):
        async with rig_with(bus, **settings) as rig:
            clients = [Wanderer(rig, chance, *names) for names in ("a", "abc", "bc")]
            async with trio.open_nursery() as nursery:

                async def publish() -> None:
                    while True:
                        channels = {*chance.choices("abcd", k=chance.randint(1, 3))}
                        data = "x" * chance.randint(1, 600)
                        published.append((await rig.publish(channels, data), channels))
                        rig.wall += chance.choice([0, 0, 1])
                        await trio.sleep(chance.choice([0, 0, 0.001, 0.5]))

                async def wander(client: Wanderer) -> None:
                    for _ in range(15):
                        await client.step()
                        await trio.sleep(chance.choice([0, 0.01, 1]))

                nursery.start_soon(publish)
                async with trio.open_nursery() as wandering:
                    for client in clients:
                        wandering.start_soon(wander, client)
                nursery.cancel_scope.cancel()
            for client in clients:
                while (found := await ask(rig, *client.channels, resume=client.resume)).events:
                    for event in found.events:
                        client.take(event.event, event.data, event.id or "")
                    client.last_event_id = found.last_event_id
                client.check(published, whole=history == 1000)
                assert client.seen


# -- a bus that is away


class LostBus(AwaitingBus):
    """A bus whose link is lost."""

    async def subscribe(self, channels: Any, after: Position = ZERO) -> Position:
        await trio.lowlevel.checkpoint()
        raise Unavailable("The bus cannot be reached.")


class ForgetfulBus(AwaitingBus):
    """A bus whose link is lost once history is asked for."""

    async def history(self, channel: str, after: Position, until: Position, limit: int) -> History:
        await trio.lowlevel.checkpoint()
        raise Unavailable("The bus cannot be reached.")


@pytest.mark.parametrize("bus", [LostBus, ForgetfulBus])
async def test_a_poll_that_the_bus_cannot_serve_is_worth_a_retry(bus: type[MemoryBus]) -> None:
    async with rig_with(bus) as rig:
        target = parse_target(f"/poll/a?lastEventId={rig.bus.head()}".encode())
        wanted = Request("GET", *target, lambda name: None, b"", "")
        answer = await answer_poll(rig.node, wanted, trio.CancelScope())
        assert answer.status == 503
        assert dict(answer.headers)[b"Retry-After"] == b"2"
        assert rig.node.refused == {"bus": 1}
        assert rig.hub.members.clients == {}
        assert rig.hub.members.channels == {}
        assert rig.node.streams.opening == 0


# -- over HTTP


def get(target: str, *headers: bytes, version: str = "1.1") -> bytes:
    return request("GET", target, *headers, version=version)


async def polled(gateway: Gateway, target: str, version: str = "1.1") -> Answer:
    response = await gateway.ask(get(target, version=version))
    return whole(response)


def whole(response: Response) -> Answer:
    assert response.status == 200, response
    assert response.header("content-type") == "application/json"
    assert response.header("cache-control") == "no-store"
    return read(response.json)


@VERSIONS
async def test_polls_name_channels_and_positions_as_streams_do(version: str) -> None:
    async with serving() as gateway:
        first = await polled(gateway, "/poll?channel=a&wait=0", version)
        assert first.events == []
        assert is_position(first.last_event_id)
        ids = [await gateway.publish("a", str(number), "?event=t") for number in range(3)]
        for target, header in (
            (f"/poll?channel=a&lastEventId={ids[0]}", b""),
            (f"/poll?channels=b,a&last_event_id={ids[0]}", b""),
            (f"/poll/a?user=7&lastEventId={ids[2]}", b"Last-Event-ID: %b\r\n" % ids[0].encode()),
            ("/poll/%61?replay=2&wait=0.5", b""),
        ):
            answer = whole(await gateway.ask(get(target, header, version=version)))
            assert answer.events == [Given(ids[n], "t", str(n), "a", ["a"]) for n in (1, 2)], target
            assert answer.last_event_id == ids[2]
        await gateway.quiet()


@VERSIONS
async def test_a_poll_over_http_waits_for_an_event(version: str) -> None:
    async with serving() as gateway:
        wire = await gateway.connect()
        await wire.send(get("/poll/a", version=version))
        await gateway.clients(1)
        position = await gateway.publish("a", "é€😀\n\x01")
        answer = whole(await wire.response())
        assert answer.events == [Given(position, "message", "é€😀\n\x01", "a", ["a"])]
        await wire.aclose()
        await gateway.quiet()


@VERSIONS
async def test_a_poll_of_what_has_ended_says_so_at_once(version: str) -> None:
    async with serving() as gateway:
        end = await gateway.publish("a", "x", "?end=true")
        for resume in (end, f"{end}.closed"):
            answer = await polled(gateway, f"/poll/a?lastEventId={resume}", version)
            assert (answer.events, answer.last_event_id) == ([], f"{end}.closed")
        fresh = await polled(gateway, "/poll/a", version)
        assert fresh.events == []
        assert isinstance(fresh.resume, Closed)
        assert gateway.node.hub.statistics().clients == 0


@VERSIONS
async def test_a_poll_of_a_user_who_is_closed_ends_for_good(version: str) -> None:
    async with serving() as gateway:
        wire = await gateway.connect()
        await wire.send(get("/poll?user=7", version=version))
        await gateway.clients(1)
        assert (await gateway.ask(request("DELETE", "/users/7"))).json == {"closed": 1}
        answer = whole(await wire.response())
        assert answer.events == []
        assert isinstance(answer.resume, Closed)


@VERSIONS
async def test_a_poll_that_is_turned_away_reads_a_status(version: str) -> None:
    """Whatever it accepts: no EventSource polls."""
    async with serving(max_clients=1) as gateway:
        wire = await gateway.connect()
        await wire.send(get("/poll/a", version=version))
        await gateway.clients(1)
        for reason in ("full", "draining"):
            gateway.node.leaving = reason == "draining"
            response = await gateway.ask(get("/poll/a", ACCEPT, version=version))
            assert response.status == 503
            assert response.header("content-type") == "application/problem+json"
            assert response.header("retry-after") == "2"
            assert response.header("cache-control") == "no-store"
            assert response.json["reason"] == reason
        assert gateway.node.refused == {"full": 1, "draining": 1}
        await gateway.publish("a", "still served")
        assert whole(await wire.response()).data == ["still served"]


async def test_a_crowded_node_turns_polls_away_with_a_status() -> None:
    async with serving(max_connections=1) as gateway:
        await gateway.connect()
        await until(lambda: bool(gateway.front._connections))
        response = await gateway.ask(get("/poll/a", ACCEPT))
        assert response.status == 503
        assert response.json["reason"] == "connections"


async def test_a_crowded_node_turns_publishers_away_with_a_status() -> None:
    """Also one that accepts event streams: 200 would mean that its event was taken."""
    async with serving(max_connections=1) as gateway:
        await gateway.connect()
        await until(lambda: bool(gateway.front._connections))
        response = await gateway.ask(request("POST", "/publish/a", ACCEPT, body=b"x"))
        assert response.status == 503
        assert response.json["reason"] == "connections"


@VERSIONS
@pytest.mark.parametrize("wait", ["-1", "60.1", "1e1", "x", "1.", "%D9%A1", "9" * 30, "nan"])
async def test_a_wait_that_is_none_is_refused(wait: str, version: str) -> None:
    async with serving() as gateway:
        response = await gateway.ask(get(f"/poll/a?wait={wait}", version=version))
        assert response.status == 400
        assert response.detail == (
            f"wait is a number of seconds from 0 to {MAX_WAIT}, as in wait=0.5."
        )
        assert gateway.node.hub.statistics().opened == 0


@VERSIONS
async def test_a_wait_is_taken_as_programs_write_it(version: str) -> None:
    async with serving() as gateway:
        for wait in ("0.010000000000000002", "1e-06", "5E-324", "00.01"):
            answer = whole(await gateway.ask(get(f"/poll/a?wait={wait}", version=version)))
            assert answer.events == [], wait


@VERSIONS
async def test_only_get_polls(version: str) -> None:
    async with serving() as gateway:
        for method in ("POST", "DELETE", "HEAD"):
            raw = request(method, "/poll/a", version=version)
            response = await gateway.ask(raw, head_only=method == "HEAD")
            assert response.status == 405
            allowed = str(response.header("allow")).split(", ")
            assert "GET" in allowed
            assert "HEAD" not in allowed


async def poll_and_wait(gateway: Gateway, rest: bytes = b"") -> Wire:
    """A connection with a poll that waits, and what was sent behind that."""
    wire = await gateway.connect()
    await wire.send(get("/poll/a") + rest)
    await gateway.clients(1)
    return wire


async def test_a_connection_goes_on_after_a_poll() -> None:
    async with serving() as gateway:
        wire = await poll_and_wait(gateway)
        last = await gateway.publish("a", "0")
        for number in range(3):
            answer = whole(await wire.response())
            assert answer.data == [str(number)]
            assert answer.last_event_id == last
            await wire.send(get(f"/poll/a?lastEventId={last}"))
            last = await gateway.publish("a", str(number + 1))


@pytest.mark.parametrize("together", [True, False])
async def test_what_is_sent_behind_a_poll_is_served_after_it(together: bool) -> None:
    async with serving() as gateway:
        rest = request("POST", "/publish/b", body=b"x") * 2
        wire = await poll_and_wait(gateway, rest if together else b"")
        if not together:
            await wire.send(rest)
        await gateway.publish("a", "y")
        assert whole(await wire.response()).data == ["y"]
        assert [(await wire.response()).status for _ in range(2)] == [202, 202]


async def test_a_peer_that_has_ended_its_side_is_answered_at_once() -> None:
    async with serving() as gateway:
        wire = await poll_and_wait(gateway)
        await wire.stream.send_eof()
        answer = whole(await wire.response())
        assert answer.events == []
        assert is_position(answer.last_event_id)
        assert await wire.to_end() == b""
        await gateway.quiet()


async def test_a_peer_that_is_gone_does_not_keep_its_poll() -> None:
    async with serving() as gateway:
        for abrupt in (False, True):
            wire = await poll_and_wait(gateway)
            if abrupt:
                linger = b"\x01\0\0\0\0\0\0\0"
                wire.socket_stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await wire.aclose()
            await gateway.quiet()


async def test_a_body_of_a_poll_takes_no_room_while_it_waits() -> None:
    async with serving() as gateway:
        wire = await gateway.connect()
        await wire.send(request("GET", "/poll/a", body=b"x" * 100_000))
        await gateway.clients(1)
        assert gateway.front._service.held_bytes == 0


async def test_a_draining_node_answers_a_poll_and_closes_its_connection() -> None:
    async with serving() as gateway:
        wire = await poll_and_wait(gateway)
        gateway.node.draining = True
        (client,) = gateway.node.hub.members.clients.values()
        gateway.node.hub.finish(client, Reason.DRAINING, control.reconnect("draining"))
        response = await wire.response()
        assert whole(response).events == []
        assert response.header("connection") == "close"
        assert await wire.to_end() == b""


@VERSIONS
async def test_polls_of_a_node_that_leaves_are_answered(version: str) -> None:
    async with node("--drain-seconds", "0.5") as n:
        connections = [await n.connect() for _ in range(5)]
        for connection in connections:
            await connection.send_all(get("/poll/a?wait=60", version=version))
        await n.until_clients(5)
        n.signal(signal.SIGTERM)
        with trio.fail_after(PATIENCE):
            for connection in connections:
                said = b"".join([data async for data in connection])
                assert b" 200 " in said.partition(b"\r\n")[0]
                document = msgspec.json.decode(said.partition(b"\r\n\r\n")[2])
                assert document["events"] == []
        assert await n.wait() == 0
        assert "Traceback" not in n.output
