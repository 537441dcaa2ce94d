"""Who is let in: streams of an address, their rate, and the line of those who come too fast.

All but the last part runs in virtual time. The last part is the wire, through front and edge.
"""

import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from unittest.mock import patch

import msgspec
import process
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import AwaitingBus, Rig
from rig import running as rig_running
from running import ACCEPT, Gateway, Wire, request, running, tasks, until
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import admission
from gateway.admission import ADDRESS_BURST_SECONDS, BURST_SECONDS, LATE_SECONDS, TICK, Turn
from gateway.api.poll import poll
from gateway.api.request import Answer, Request
from gateway.api.subscribe import never, subscribe
from gateway.config import Config
from gateway.errors import TooManyRequests, Unavailable
from gateway.hub_client import Client
from gateway.limits import MAX_RETRY_SECONDS, network
from gateway.node import Node
from gateway.position import ZERO, Position
from gateway.stream_state import Reason
from gateway.streams import EventStream
from gateway.supervisor import share

PEER = "192.0.2.1"
EVENT_STREAM = b"text/event-stream"


@pytest.fixture(autouse=True)
def _short_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node takes one second's worth at once, so that its rate is what the tests count with."""
    monkeypatch.setattr(admission, "BURST_SECONDS", 1.0)


def opening(peer: str = PEER, accept: bytes = EVENT_STREAM, path: str = "/events/a") -> Request:
    def header(name: bytes) -> bytes | None:
        return accept if name == b"accept" else None

    return Request("GET", path, (), header, b"", peer)


async def ask(node: Node, peer: str = PEER) -> Answer | EventStream:
    return await subscribe(node, opening(peer))


async def came_in(node: Node, peer: str = PEER) -> bool:
    """Whether an opening of ``peer`` is let in; it opens nothing."""
    return isinstance(await ask(node, peer), EventStream)


def reason_of(answer: Answer | EventStream) -> str:
    """For what an opening that accepts an event stream was refused."""
    assert isinstance(answer, Answer)
    assert (answer.status, answer.media_type) == (200, "text/event-stream")
    (line,) = [line for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
    assert b"event: reconnect\n" in answer.body
    return str(msgspec.json.decode(line[6:])["reason"])


def retry_of(answer: Answer | EventStream) -> float:
    """The seconds that an opening was told to wait."""
    assert isinstance(answer, Answer)
    return int(answer.body.split(b"\n")[0].removeprefix(b"retry: ")) / 1000


@asynccontextmanager
async def node_with(**options: Any) -> AsyncIterator[Node]:
    """A node that runs, without HTTP."""
    async with rig_running(Config(keepalive=3600.0, **options)) as rig:
        yield rig.node


class Crowd:
    """Openings that wait, and when each was let in or turned away, in that order."""

    def __init__(self, node: Node, nursery: trio.Nursery) -> None:
        self.node = node
        self.nursery = nursery
        self.since = trio.current_time()
        self.let_in: list[tuple[str, float]] = []
        self.turned_away: list[tuple[str, float]] = []

    async def come(
        self, name: str, is_gone: Callable[[], bool] = never, peer: str = PEER
    ) -> trio.CancelScope:
        """One more; whatever can be done about it at once has been done."""
        scope = trio.CancelScope()
        self.nursery.start_soon(self._ask, name, is_gone, peer, scope)
        await wait_all_tasks_blocked()
        return scope

    async def _ask(
        self, name: str, is_gone: Callable[[], bool], peer: str, scope: trio.CancelScope
    ) -> None:
        with scope:
            answer = await subscribe(self.node, opening(peer), is_gone)
            after = round(trio.current_time() - self.since, 6)
            if isinstance(answer, EventStream):
                self.let_in.append((name, after))
            else:
                self.turned_away.append((reason_of(answer), after))


# --- streams of an address ------------------------------------------------------------------------


async def test_an_address_has_as_many_streams_as_one_may_and_no_more() -> None:
    async with node_with(max_streams_per_address=3) as node:
        clients = [
            await node.streams.open(EventStream(("a",), None, ZERO, address=PEER)) for _ in range(3)
        ]
        assert reason_of(await ask(node)) == "address"
        assert await came_in(node, "192.0.2.2")
        node.hub.close(clients[0], Reason.GONE)
        assert await came_in(node)
        assert node.refused == {"address": 1}


async def test_those_who_read_statuses_are_told_429_and_when_to_return() -> None:
    async with node_with(max_streams_per_address=1, address_open_rate=100.0) as node:
        await node.streams.open(EventStream(("a",), None, ZERO, address=PEER))
        for answer in (
            await subscribe(node, opening(accept=b"*/*")),
            await poll(node, opening(path="/poll/a"), trio.CancelScope()),
        ):
            assert isinstance(answer, Answer)
            assert answer.status == 429
            assert dict(answer.headers)[b"Retry-After"] == b"2"
            document = msgspec.json.decode(answer.body)
            assert document["reason"] == "address"
            assert "as many streams" in document["detail"]
        assert node.refused == {"address": 2}


async def test_the_addresses_of_one_64_share_their_streams() -> None:
    async with node_with(max_streams_per_address=1) as node:
        stream = EventStream(("a",), None, ZERO, address="2001:db8:1:2::1")
        client = await node.streams.open(stream)
        assert reason_of(await ask(node, "2001:db8:1:2:ffff::9")) == "address"
        assert await came_in(node, "2001:db8:1:3::1")
        node.hub.close(client, Reason.GONE)
        assert await came_in(node, "2001:db8:1:2:ffff::9")
        await node.streams.open(EventStream(("a",), None, ZERO, address="::ffff:192.0.2.1"))
        assert reason_of(await ask(node, "192.0.2.1")) == "address"


async def test_this_machine_is_exempt_while_there_are_no_keys() -> None:
    for key, exempt in (("", True), ("k" * 32, False)):
        limits = {"max_streams_per_address": 1, "address_open_rate": 0.1}
        async with node_with(jwt_key=key, **limits) as node:
            for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
                node.admission.enter(address)
                arrived = [node.admission.arrive(address) for _ in range(3)]
                assert (Turn.NOW in arrived[1:]) == exempt, address
                if exempt:
                    node.admission.enter(address)
                    node.admission.leave(address)
                node.admission.leave(address)
            assert node.statistics().admission.addresses == 0


async def test_a_limit_that_is_not_set_limits_nothing_and_counts_nothing() -> None:
    limits = {"max_streams_per_address": 0, "address_open_rate": 0.0, "open_rate": 0.0}
    async with node_with(**limits) as node:
        for _ in range(10_000):
            assert node.admission.arrive(PEER) is Turn.NOW
            node.admission.enter(PEER)
        now = node.statistics().admission
        assert (now.addresses, now.paced, now.waiting) == (0, 0, 0)


async def test_who_is_let_in_together_and_is_one_too_many_is_told_so_in_the_response_lane() -> None:
    """Nothing is counted between the answer's head and the opening, so that may be found late."""
    async with node_with(max_streams_per_address=1) as node:
        both = [await ask(node) for _ in range(2)]
        bodies = []
        for stream in both:
            assert isinstance(stream, EventStream)
            bodies.append(node.streams.body(stream))
        assert b"event: connected" in await anext(bodies[0])
        told = [part async for part in bodies[1]]
        assert len(told) == 1
        assert b'event: reconnect\ndata: {"reason":"address"}\n\n' in told[0]
        await bodies[0].aclose()
        assert node.statistics().admission.addresses == 0


class UncertainBus(AwaitingBus):
    """A bus that fails when it is told to, or hangs until the opening is cancelled."""

    fate = ""

    async def subscribe(self, channels: Collection[str], after: Position = ZERO) -> Position:
        if self.fate == "fails":
            raise Unavailable("The link is lost.")
        if self.fate == "hangs":
            await trio.sleep_forever()
        return await super().subscribe(channels, after)

    async def newest(self, channel: str, limit: int) -> Sequence[Any]:
        if self.fate == "fails late":
            raise Unavailable("The link is lost.")
        return await super().newest(channel, limit)


ADDRESSES = ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2", "127.0.0.1", "")

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "respond", "fails", "fails late", "hangs", "close", "end"]),
        st.sampled_from(ADDRESSES),
        st.integers(0, 9),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_the_count_of_an_address_is_that_of_its_streams_however_they_begin_and_end(
    steps: Sequence[tuple[str, str, int]],
) -> None:
    async def check() -> None:
        config = Config(max_streams_per_address=3, keepalive=3600.0)
        async with rig_running(config, UncertainBus) as rig:
            for step, address, number in steps:
                await _step(rig, step, address, number)
                await wait_all_tasks_blocked()
                open_streams = Counter(
                    network(client.address)
                    for client in rig.hub.members.clients.values()
                    if not rig.node.is_exempt(client.address)
                )
                assert max(open_streams.values(), default=0) <= 3
                assert rig.node.admission._streams is not None
                assert rig.node.admission._streams._counts == open_streams

    trio.run(check, clock=MockClock(autojump_threshold=0))


async def _step(rig: Rig, step: str, address: str, number: int) -> None:
    clients: list[Client] = list(rig.hub.members.clients.values())
    streams, bus = rig.node.streams, rig.bus
    assert isinstance(bus, UncertainBus)
    stream = EventStream(("a",), None, number, address=address)
    match step:
        case "open":
            with suppress(TooManyRequests):
                await streams.open(stream)
        case "respond":

            async def respond() -> None:
                with trio.move_on_after(0.5), suppress(TooManyRequests):
                    async with streams.responding(stream):
                        await trio.sleep(0.1 * number)

            rig.nursery.start_soon(respond)
        case "fails" | "fails late" | "hangs":
            bus.fate = step
            with suppress(Unavailable, TooManyRequests), trio.move_on_after(1):
                await streams.open(stream)
            bus.fate = ""
            for client in rig.hub.members.clients.values():
                if client not in clients and step != "fails late":
                    pytest.fail(f"an opening that {step} has left a client")
        case "close" if clients:
            rig.hub.close(clients[number % len(clients)], Reason.GONE)
        case "end" if clients:
            client = clients[number % len(clients)]
            rig.hub.finish(client, Reason.CLOSED, b"")
            rig.hub.close(client, Reason.GONE)


# --- the rate of an address -----------------------------------------------------------------------


async def test_an_address_may_open_ten_seconds_worth_at_once_and_then_at_its_rate(
    autojump_clock: MockClock,
) -> None:
    async with node_with(address_open_rate=2.0) as node:
        burst = int(2 * ADDRESS_BURST_SECONDS)
        assert [await came_in(node) for _ in range(burst + 1)] == [True] * burst + [False]
        assert node.refused == {"address-rate": 1}
        assert await came_in(node, "192.0.2.2")  # is another one
        assert not await came_in(node, "::ffff:192.0.2.1")  # is the same one
        await trio.sleep(0.49)
        assert not await came_in(node)
        await trio.sleep(0.02)
        assert await came_in(node)
        assert not await came_in(node)
        await trio.sleep(ADDRESS_BURST_SECONDS + 1)
        assert [await came_in(node) for _ in range(burst + 1)] == [True] * burst + [False]


async def test_those_beyond_the_rate_are_told_to_return_at_the_rate(
    autojump_clock: MockClock,
) -> None:
    async with node_with(address_open_rate=10.0) as node:
        for _ in range(100):
            assert await came_in(node)
        refused = [await ask(node) for _ in range(200)]
        assert {reason_of(answer) for answer in refused} == {"address-rate"}
        told = [retry_of(answer) for answer in refused]
        assert all(1.0 <= seconds <= 3.0 for seconds in told[:10])
        assert all(5.0 <= seconds <= 30.0 for seconds in told[100:])
        answer = await subscribe(node, opening(accept=b"*/*"))
        assert isinstance(answer, Answer)
        assert answer.status == 429
        assert 10 <= int(dict(answer.headers)[b"Retry-After"]) <= 31


async def test_the_addresses_whose_rate_is_remembered_are_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_ADDRESSES", 10)
    async with node_with(address_open_rate=0.1) as node:
        for number in range(15):
            assert await came_in(node, f"192.0.2.{number}")
        now = node.statistics().admission
        assert (now.paced, now.paced_evicted) == (10, 5)
        assert not await came_in(node, "192.0.2.14")
        assert await came_in(node, "192.0.2.0")  # has been forgotten


async def test_who_is_refused_for_another_reason_takes_no_token(autojump_clock: MockClock) -> None:
    limits = {"address_open_rate": 0.1, "open_rate": 0.001, "open_wait": 0.0}
    async with node_with(**limits, max_streams_per_address=1) as node:
        client = await node.streams.open(EventStream(("a",), None, ZERO, address=PEER))
        assert reason_of(await ask(node)) == "address"
        node.hub.close(client, Reason.GONE)
        node.leaving = True
        assert reason_of(await ask(node)) == "draining"
        node.leaving = False
        assert await came_in(node, "192.0.2.2")  # has the one turn that there is
        assert reason_of(await ask(node)) == "pace"
        node.admission.return_turn()
        assert await came_in(node)  # with the one token of its address
        assert reason_of(await ask(node)) == "address-rate"


# --- the line -------------------------------------------------------------------------------------


async def test_what_comes_faster_than_the_pace_is_let_in_at_the_pace_in_the_order_of_coming(
    autojump_clock: MockClock,
) -> None:
    async with node_with(open_rate=10.0, open_wait=5.0) as node, trio.open_nursery() as nursery:
        crowd = Crowd(node, nursery)
        for number in range(30):
            await crowd.come(str(number))
        assert [name for name, _ in crowd.let_in] == [str(number) for number in range(10)]
        assert node.statistics().admission.waiting == 20
        await trio.sleep(10)
        assert [name for name, _ in crowd.let_in] == [str(number) for number in range(30)]
        for number, (_, at) in enumerate(crowd.let_in):
            due = max(0.0, (number - 9) / 10)
            assert due - 1e-6 <= at <= due + TICK + 1e-6
        now = node.statistics().admission
        assert (now.waiting, now.waited) == (0, 20)
        assert now.longest_wait == pytest.approx(2.0, abs=TICK)
        assert now.waited_seconds == pytest.approx(sum(n / 10 for n in range(1, 21)), abs=0.1)
        assert node.refused == {}


async def test_nobody_overtakes_the_line(autojump_clock: MockClock) -> None:
    """Who comes when there is a turn again is still behind those who have waited for it."""
    async with node_with(open_rate=1000.0) as node, trio.open_nursery() as nursery:
        for _ in range(1000):
            assert await came_in(node)
        crowd = Crowd(node, nursery)
        await crowd.come("first")
        await trio.sleep(TICK / 2)
        await crowd.come("second")
        assert crowd.let_in == []
        await trio.sleep(1)
        assert {name for name, _ in crowd.let_in} == {"first", "second"}  # in one batch


async def test_who_would_wait_too_long_is_turned_away_at_once_and_nobody_else(
    autojump_clock: MockClock,
) -> None:
    async with node_with(open_rate=10.0, open_wait=2.0) as node, trio.open_nursery() as nursery:
        crowd = Crowd(node, nursery)
        for number in range(35):
            await crowd.come(str(number))
        assert crowd.turned_away == [("pace", 0.0)] * 5
        await trio.sleep(10)
        assert len(crowd.let_in) == 30
        assert crowd.let_in[-1][1] == pytest.approx(2.0, abs=TICK)
        assert node.refused == {"pace": 5}


async def test_the_line_is_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_LINE", 3)
    async with node_with(open_rate=10.0) as node, trio.open_nursery() as nursery:
        crowd = Crowd(node, nursery)
        for number in range(14):
            await crowd.come(str(number))
        assert node.statistics().admission.waiting == 3
        assert crowd.turned_away == [("pace", 0.0)]
        await trio.sleep(1)
        assert len(crowd.let_in) == 13


async def test_a_node_takes_at_once_what_comes_in_a_few_seconds_otherwise(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(admission, "BURST_SECONDS", BURST_SECONDS)
    async with node_with(open_rate=3.0, open_wait=0.0) as node:
        burst = int(3 * BURST_SECONDS)
        assert [await came_in(node) for _ in range(burst + 1)] == [True] * burst + [False]


async def test_without_patience_nobody_stands_in_line(autojump_clock: MockClock) -> None:
    async with node_with(open_rate=3.0, open_wait=0.0) as node:
        assert [await came_in(node) for _ in range(4)] == [True] * 3 + [False]
        assert node.statistics().admission.waited == 0


async def test_a_storm_that_is_turned_away_is_told_to_return_at_the_pace_and_not_in_one_wave(
    autojump_clock: MockClock,
) -> None:
    async with node_with(open_rate=100.0, open_wait=0.0) as node:
        for _ in range(100):
            assert await came_in(node)
        told = [retry_of(await ask(node)) for _ in range(2500)]
        in_seconds = Counter(int(seconds) for seconds in told)
        assert min(told) >= 1.0
        assert max(told) <= MAX_RETRY_SECONDS * 1.5
        assert max(in_seconds[second] for second in range(4, 46)) < 150
        later = [retry_of(await ask(node)) for _ in range(1000)]  # beyond the bound
        assert all(MAX_RETRY_SECONDS * 0.5 - 3 <= seconds <= 45 for seconds in later)
        assert len({int(seconds) for seconds in later}) >= 25


async def test_those_who_read_statuses_are_told_503_and_when_to_return(
    autojump_clock: MockClock,
) -> None:
    async with node_with(open_rate=1.0, open_wait=0.0) as node:
        assert await came_in(node)
        for _ in range(19):
            await ask(node)
        for answer in (
            await subscribe(node, opening(accept=b"*/*")),
            await poll(node, opening(path="/poll/a"), trio.CancelScope()),
        ):
            assert isinstance(answer, Answer)
            assert answer.status == 503
            assert 10 <= int(dict(answer.headers)[b"Retry-After"]) <= 32
            assert msgspec.json.decode(answer.body)["reason"] == "pace"
        assert node.refused == {"pace": 21}


async def test_who_is_cancelled_or_has_hung_up_takes_no_turn_from_those_behind(
    autojump_clock: MockClock,
) -> None:
    async with node_with(open_rate=1.0) as node, trio.open_nursery() as nursery:
        crowd = Crowd(node, nursery)
        await crowd.come("first")
        cancelled = await crowd.come("cancelled")
        await crowd.come("gone", lambda: True)
        await crowd.come("last")
        cancelled.cancel()
        await wait_all_tasks_blocked()
        assert node.statistics().admission.waiting == 2
        await trio.sleep(5)
        assert [name for name, _ in crowd.let_in] == ["first", "last"]
        assert crowd.let_in[-1][1] == pytest.approx(1.0, abs=2 * TICK)
        assert node.refused == {"gone": 1}
        assert node.statistics().admission.waiting == 0


async def test_a_poll_whose_asker_goes_while_it_waits_takes_no_turn(
    autojump_clock: MockClock,
) -> None:
    async with node_with(open_rate=1.0) as node, trio.open_nursery() as nursery:
        assert await came_in(node)
        patience = trio.CancelScope()
        nursery.start_soon(poll, node, opening(path="/poll/a"), patience)
        await wait_all_tasks_blocked()
        assert node.statistics().admission.waiting == 1
        patience.cancel()
        await trio.sleep(2)
        assert node.refused == {"gone": 1}
        assert node.hub.statistics().opened == 0


async def test_a_drain_turns_away_whoever_waits_at_once(autojump_clock: MockClock) -> None:
    async with node_with(open_rate=1.0) as node, trio.open_nursery() as nursery:
        crowd = Crowd(node, nursery)
        for number in range(4):
            await crowd.come(str(number))
        await trio.sleep(0.5)
        node.leaving = True
        node.admission.dissolve()
        await wait_all_tasks_blocked()
        assert crowd.turned_away == [("draining", 0.5)] * 3
        await crowd.come("late")
        assert crowd.turned_away[-1] == ("draining", 0.5)


async def test_what_has_changed_meanwhile_is_looked_at_when_the_turn_comes(
    autojump_clock: MockClock,
) -> None:
    """And the turn of one that is refused then is the next one's."""
    limits = {"open_rate": 1.0, "max_streams_per_address": 1}
    async with node_with(**limits) as node, trio.open_nursery() as nursery:
        crowd = Crowd(node, nursery)
        for name, peer in (("first", PEER), ("second", PEER), ("third", "192.0.2.2")):
            await crowd.come(name, peer=peer)
        await node.streams.open(EventStream(("a",), None, ZERO, address=PEER))
        await trio.sleep(1.1)
        assert [reason for reason, _ in crowd.turned_away] == ["address"]
        assert [name for name, _ in crowd.let_in] == ["first", "third"]
        for name, peer in (("fourth", "192.0.2.3"), ("fifth", "192.0.2.4")):
            await crowd.come(name, peer=peer)
        node.max_clients = 1
        await trio.sleep(3)
        assert [reason for reason, _ in crowd.turned_away] == ["address", "full", "full"]


async def test_a_node_that_was_held_up_serves_nobody_who_has_waited_for_too_long(
    autojump_clock: MockClock,
) -> None:
    """It was told a wait that it did not get; and what was missed is not made up for at once."""
    async with node_with(open_rate=2.0, open_wait=2.0) as node, trio.open_nursery() as nursery:
        crowd = Crowd(node, nursery)
        for number in range(6):
            await crowd.come(str(number))
        with patch.object(node.admission, "_serve", lambda pace, now: None):
            await trio.sleep(2.0 + LATE_SECONDS + 0.1)
        await trio.sleep(2)
        assert len(crowd.let_in) == 2
        assert [reason for reason, _ in crowd.turned_away] == ["pace"] * 4


async def test_a_late_node_catches_up_in_batches(autojump_clock: MockClock) -> None:
    rate = 1000.0
    async with node_with(open_rate=rate) as node, trio.open_nursery() as nursery:
        for _ in range(1000):
            assert await came_in(node)
        crowd = Crowd(node, nursery)
        for number in range(500):
            nursery.start_soon(crowd._ask, str(number), never, PEER, trio.CancelScope())
        with patch.object(node.admission, "_serve", lambda pace, now: None):
            await trio.sleep(1)
        await trio.sleep(1)
        at_once = Counter(at for _, at in crowd.let_in)
        assert sum(at_once.values()) == 500
        assert max(at_once.values()) == 2 * rate * TICK


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 50),
    st.lists(
        st.tuples(
            st.sampled_from(["come", "come", "come", "cancel", "hang up", "wait"]),
            st.floats(0, 1),
        ),
        max_size=80,
    ),
)
def test_the_pace_is_kept_and_everybody_gets_an_answer_in_time(
    rate: int, steps: Sequence[tuple[str, float]]
) -> None:
    patience = 1.0

    async def check() -> None:
        config = Config(open_rate=float(rate), open_wait=patience, address_open_rate=0.0)
        async with rig_running(config) as rig, trio.open_nursery() as nursery:
            crowd = Crowd(rig.node, nursery)
            scopes: list[trio.CancelScope] = []
            gone: set[int] = set()
            came: list[float] = []
            for step, number in steps:
                if step == "come":
                    came.append(round(trio.current_time() - crowd.since, 6))
                    name = len(came) - 1
                    scopes.append(await crowd.come(str(name), partial(gone.__contains__, name)))
                elif step == "wait":
                    await trio.sleep(number)
                elif scopes and step == "cancel":
                    scopes[int(number * (len(scopes) - 1))].cancel()
                elif scopes:
                    gone.add(int(number * (len(scopes) - 1)))
            await trio.sleep(patience + 1)
            names = [int(name) for name, _ in crowd.let_in]
            assert names == sorted(names)
            assert all(at - came[int(name)] <= patience + 2 * TICK for name, at in crowd.let_in)
            times = [at for _, at in crowd.let_in]
            for first, begun in enumerate(times):
                for last in range(first, len(times)):
                    assert last - first + 1 <= rate + rate * (times[last] - begun) + 0.01
            assert rig.node.statistics().admission.waiting == 0

    trio.run(check, clock=MockClock(autojump_threshold=0))


# --- several workers ------------------------------------------------------------------------------


def test_each_worker_has_its_part_of_the_nodes_limits() -> None:
    whole = Config(workers="4", max_streams_per_address=10, open_rate=100.0, address_open_rate=2.0)
    part = share(whole)
    assert part.max_streams_per_address == 3  # rounded up: nobody has less than he may have
    assert (part.open_rate, part.address_open_rate) == (25.0, 0.5)
    none = share(Config(workers="4", max_streams_per_address=0, open_rate=0, address_open_rate=0))
    assert (none.max_streams_per_address, none.open_rate, none.address_open_rate) == (0, 0, 0)


async def test_an_address_may_open_at_least_one_stream_whatever_its_part(
    autojump_clock: MockClock,
) -> None:
    async with node_with(open_rate=0.01, address_open_rate=0.01, open_wait=0.0) as node:
        assert [await came_in(node) for _ in range(2)] == [True, False]
        await trio.sleep(101)
        assert await came_in(node)


# --- on the wire ----------------------------------------------------------------------------------

VERSIONS = pytest.mark.parametrize("version", ["1.1", "1.0"], ids=["front", "edge"])


@pytest.fixture
def _nobody_is_exempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "is_exempt", lambda self, address: False)


async def refused(gateway: Gateway, version: str, reason: str, status: int) -> None:
    """An EventSource is told in a way that does not end it, everybody else by a status."""
    before = gateway.node.refused.get(reason, 0)
    response = await gateway.ask(request("GET", "/events/a", ACCEPT, version=version))
    assert response.status == 200
    assert f'event: reconnect\ndata: {{"reason":"{reason}"}}\n\n'.encode() in response.body
    assert response.body.startswith(b"retry: ")
    for target in ("/events/a", "/poll/a"):
        response = await gateway.ask(request("GET", target, version=version))
        assert response.status == status, response
        assert response.header("content-type") == "application/problem+json"
        assert int(response.header("retry-after") or 0) >= 1
        assert response.json["reason"] == reason
    assert gateway.node.refused == {**gateway.node.refused, reason: before + 3}
    assert str(status) not in gateway.node.refused  # once counted is enough


async def metric(gateway: Gateway, name: str) -> float:
    text = (await gateway.ask(request("GET", "/metrics"))).body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"gateway_{name} ")]
    return float(line.split(" ")[1])


@VERSIONS
@pytest.mark.usefixtures("_nobody_is_exempt")
async def test_an_address_that_has_all_its_streams_gets_another_when_one_has_ended(
    version: str,
) -> None:
    async with running(max_streams_per_address=2) as gateway:
        wires = [await gateway.open("/events/a", version=version) for _ in range(2)]
        for wire in wires:
            await wire.opened()
        await refused(gateway, version, "address", 429)
        assert await metric(gateway, "addresses") == 1
        assert await metric(gateway, 'refused_total{reason="address"}') == 3
        await gateway.publish("a", "still served")
        for wire in wires:
            assert (await wire.event()).data == "still served"
        await wires[0].aclose()
        await gateway.clients(1)
        again = await gateway.open("/events/a", version=version)
        await again.opened()
        for wire in (wires[1], again):
            await wire.aclose()
        await gateway.quiet()
        assert await metric(gateway, "addresses") == 0


@VERSIONS
@pytest.mark.usefixtures("_nobody_is_exempt")
async def test_a_poll_that_is_being_answered_is_a_stream_of_its_address(version: str) -> None:
    async with running(max_streams_per_address=1) as gateway:
        wire = await gateway.connect()
        await wire.send(request("GET", "/poll/a", version=version))
        await gateway.clients(1)
        await refused(gateway, version, "address", 429)
        await gateway.publish("a", "x")
        assert (await wire.response()).status == 200
        await wire.aclose()
        await gateway.quiet()
        assert await metric(gateway, "addresses") == 0


@VERSIONS
@pytest.mark.usefixtures("_nobody_is_exempt")
async def test_an_address_that_opens_too_fast_is_told_so(version: str) -> None:
    async with running(address_open_rate=0.01) as gateway:
        wire = await gateway.open("/events/a", version=version)
        await wire.opened()
        await refused(gateway, version, "address-rate", 429)
        assert await metric(gateway, "addresses_paced") == 1


@VERSIONS
async def test_a_node_that_is_asked_too_fast_stays_ready_and_lets_them_in_one_by_one(
    version: str,
) -> None:
    async with running(open_rate=20.0, open_wait=0.5) as gateway:
        wires: list[Wire] = [await gateway.open("/events/a", version=version) for _ in range(30)]
        await until(lambda: gateway.node.statistics().admission.waiting > 0)
        assert (await gateway.ask(request("GET", "/healthz"))).status == 200
        assert (await gateway.ask(request("GET", "/readyz"))).status == 200
        await gateway.publish("a", "meanwhile")
        for wire in wires:
            await wire.opened()
        assert gateway.node.hub.statistics().clients == 30
        assert await metric(gateway, "openings_waited_total") >= 1
        assert await metric(gateway, "openings_longest_wait_seconds") > 0
        assert gateway.node.refused == {}


@VERSIONS
async def test_a_node_that_cannot_let_them_in_in_time_turns_them_away(version: str) -> None:
    async with running(open_rate=0.01, open_wait=0.0) as gateway:
        await (await gateway.open("/events/a", version=version)).opened()
        await refused(gateway, version, "pace", 503)
        assert (await gateway.ask(request("GET", "/readyz"))).status == 200
        assert await metric(gateway, 'refused_total{reason="pace"}') == 3


@VERSIONS
async def test_peers_that_hang_up_in_the_line_leave_nothing_and_take_no_turn(version: str) -> None:
    async with running(open_rate=2.0, open_wait=60.0) as gateway:
        for _ in range(2):
            await (await gateway.open("/events/a", version=version)).opened()
        before = tasks()
        waiting = gateway.node.admission.statistics
        crowd = [await gateway.open("/events/a", version=version) for _ in range(20)]
        await until(lambda: waiting().waiting >= 19)
        for wire in crowd:
            await wire.aclose()
        last = await gateway.open("/events/a", version=version)
        await last.opened()  # long before the ten seconds of those before it
        await last.aclose()
        await until(lambda: waiting().waiting == 0 and tasks() <= before)


async def test_a_drain_does_not_wait_for_the_line() -> None:
    """Nor do those in it get no answer."""
    async with process.node("--open-rate=0.05", "--open-wait=60") as n:
        stream = await n.open_stream("/events/a")
        waits = process.Stream(await n.connect())
        await waits.request("/events/a", ("Accept", "text/event-stream"))
        await n.until_metric("openings_waiting", 1)
        n.signal(signal.SIGTERM)
        for told in (waits, stream):
            await told.until(b'event: reconnect\ndata: {"reason":"draining"}\n\n')
        assert await n.wait() == 0
