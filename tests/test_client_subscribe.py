"""Following channels by the client: at real nodes that go away, and in virtual time."""

import math
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
import trio
from loops import BACKENDS, on
from near import Near, near
from process import PATIENCE, eventually, node
from proxy import proxy_to
from tokens import SECRET
from tokens import token as make_token
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.client import (
    Closed,
    Connected,
    ConnectionLost,
    Ended,
    Event,
    EventsMissing,
    Gap,
    Item,
    Publisher,
    Reconnecting,
    StreamRefused,
    Subscription,
    subscribe,
    subscribe_sync,
)
from gateway.client.http import MAX_ANSWER_BYTES
from gateway.client.returning import LONGEST_TOLD, Backoff, retry_after
from gateway.client.session import LIVED_SECONDS, SILENT_KEEPALIVES, Session
from gateway.client.tokens import expires_at

URL = "http://gateway.test"

QUICK = ("--retry", "0.1")
QUICK_HERE = {"retry": 0.1}
BRISK_HERE = QUICK_HERE | {"keepalive": 0.2}
"""Three of which a busy machine may miss: only where that does not matter."""


@asynccontextmanager
async def subscribed(url: str, *channels: str, **options: Any) -> AsyncIterator[Subscription]:
    options = {"min_delay": 0.05, "max_delay": 0.2} | options
    with anyio.fail_after(PATIENCE):
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            subscribe(url, channels, client=client, **options) as subscription,
        ):
            yield subscription


async def until(subscription: Subscription, kind: type[Item]) -> Any:
    """The next item of that kind; events before it would be lost to the test, so there are none."""
    async for item in subscription.items:
        if isinstance(item, kind):
            return item
        assert not isinstance(item, Event), item
    raise AssertionError(f"no {kind}")


# --- real nodes -----------------------------------------------------------------------------------


@BACKENDS
async def test_every_event_comes_once_in_order_though_the_link_is_cut(backend: str) -> None:
    count = 400
    async with near(**QUICK_HERE) as n, proxy_to(n) as proxy, trio.open_nursery() as nursery:
        seen: list[str] = []
        connected = trio.Event()
        token = trio.lowlevel.current_trio_token()

        async def publish() -> None:
            await connected.wait()
            for number in range(0, count, 50):
                names = [str(each) for each in range(number, number + 50)]
                await n.publish("a", *names[:25])
                proxy.cut()
                await n.publish("a", *names[25:])
                proxy.let_through()

                async def has_come() -> bool:
                    return len(seen) >= number + 50  # noqa: B023  # awaited right here

                await eventually(has_come)

        async def read() -> None:
            async with subscribed(proxy.url, "a") as subscription:
                async for item in subscription.items:
                    token.run_sync_soon(connected.set)
                    assert not isinstance(item, Gap)
                    if isinstance(item, Event):
                        assert item.channels == ("a",)
                        seen.append(item.data)
                    if len(seen) == count:
                        break

        nursery.start_soon(publish)
        await on(backend, read)
    assert seen == [str(number) for number in range(count)]


async def test_a_node_that_drains_hands_its_subscriber_on(redis_port: int) -> None:
    shared = ("--redis", f"redis://127.0.0.1:{redis_port}/0", "--drain-seconds", "0.2", *QUICK)
    async with (
        node(*shared) as first,
        node(*shared) as second,
        proxy_to(first) as proxy,
        subscribed(proxy.url, "d") as subscription,
    ):
        await until(subscription, Connected)
        await first.publish("d", "one")
        assert (await anext(subscription)).data == "one"
        proxy.lead_to(second)
        first.signal(signal.SIGTERM)
        told = await until(subscription, Reconnecting)
        assert (told.attempt, told.reason) == (1, "the gateway says: draining")
        await second.publish("d", "meanwhile")
        assert (await anext(subscription)).data == "meanwhile"
        assert await first.wait() == 0
        await second.publish("d", "two")
        assert (await anext(subscription)).data == "two"


async def test_a_node_that_is_killed_costs_no_event(redis_port: int) -> None:
    shared = ("--redis", f"redis://127.0.0.1:{redis_port}/0", *QUICK)
    async with (
        node(*shared) as first,
        node(*shared) as second,
        proxy_to(first) as proxy,
        subscribed(proxy.url, "k2") as subscription,
    ):
        await until(subscription, Connected)
        first.process.kill()
        proxy.lead_to(second)
        await second.publish("k2", *map(str, range(20)))
        assert [(await anext(subscription)).data for _ in range(20)] == list(map(str, range(20)))


async def test_silence_of_three_keepalives_is_a_dead_link() -> None:
    async with (
        near(**BRISK_HERE) as n,
        proxy_to(n) as proxy,
        subscribed(proxy.url, "a") as subscription,
    ):
        await until(subscription, Connected)
        proxy.is_silent = True
        told = await until(subscription, Reconnecting)
        assert told.reason == f"nothing has come for {0.2 * SILENT_KEEPALIVES:g} s"
        proxy.is_silent = False
        await n.publish("a", "meanwhile")
        assert (await anext(subscription)).data == "meanwhile"


async def test_keepalives_keep_a_silent_stream_alive_and_move_its_position() -> None:
    async with near(**BRISK_HERE) as n, subscribed(n.url, "a", attempts=1) as subscription:
        connected = await until(subscription, Connected)
        with trio.move_on_after(1):
            await anext(subscription)
        assert subscription.last_event_id > connected.position


async def test_a_stream_that_is_closed_for_good_ends_and_coming_back_to_it_too() -> None:
    async with near(**QUICK_HERE) as n:
        async with subscribed(n.url, "a") as subscription:
            connected = await until(subscription, Connected)
            async with n.client() as client:
                await client.delete(f"{n.url}/clients/{connected.client_id}")
            assert [event async for event in subscription] == []
            position = subscription.last_event_id
        assert position.endswith(".closed")
        async with subscribed(n.url, "a", last_event_id=position) as subscription:
            assert [type(item) async for item in subscription.items] == [Ended]


async def test_a_gap_cannot_be_overlooked() -> None:
    async with near(**QUICK_HERE, history_events=10) as n:
        first, *_ = await n.publish("a", *map(str, range(300)))
        async with subscribed(n.url, "a", last_event_id=first) as subscription:
            with pytest.raises(EventsMissing, match="Events of a are missing: history is trimmed"):
                await anext(subscription)
            held = [(await anext(subscription)).data]
            while held[-1] != "299":
                held.append((await anext(subscription)).data)
            assert held == [str(number) for number in range(300 - len(held), 300)]


async def test_a_replay_begins_with_the_newest() -> None:
    async with near(**QUICK_HERE) as n:
        await n.publish("a", *map(str, range(20)))
        async with subscribed(n.url, "a", replay=3) as subscription:
            assert [(await anext(subscription)).data for _ in range(3)] == ["17", "18", "19"]


async def test_a_user_hears_what_is_for_him() -> None:
    async with (
        node(*QUICK) as n,
        n.client() as client,
        subscribed(n.url, user="7") as subscription,
        Publisher(n.url, client=client) as publisher,
    ):
        await until(subscription, Connected)
        await publisher.publish(user="7", data="yours")
        event = await anext(subscription)
        assert (event.data, event.channels) == ("yours", ("user:7",))


async def test_as_many_channels_as_no_url_holds() -> None:
    names = [f"channel.{number:0100}" for number in range(90)]
    async with (
        near(**QUICK_HERE) as n,
        proxy_to(n) as proxy,
        subscribed(proxy.url, *names) as subscription,
    ):
        connected = await until(subscription, Connected)
        assert set(names) < set(connected.channels)
        proxy.cut()
        await n.publish(names[-1], "meanwhile")
        proxy.let_through()
        event = await anext(subscription)
        assert (event.data, event.channels) == ("meanwhile", (names[-1],))


# --- channels -------------------------------------------------------------------------------------


@BACKENDS
async def test_channels_are_added_and_removed_while_the_stream_is_open(backend: str) -> None:
    async with near(**QUICK_HERE) as n:

        async def run() -> None:
            async with (
                httpx.AsyncClient(trust_env=False) as client,
                Publisher(n.url, client=client) as publisher,
                subscribed(n.url, "a") as subscription,
            ):
                before = await publisher.publish("b", "before")
                await publisher.publish("b", "missed")
                await subscription.add("b", since=before)
                await publisher.publish("b", "live")
                assert [(await anext(subscription)).data for _ in range(2)] == ["missed", "live"]
                assert list(subscription.channels) == ["a", "b"]
                await subscription.remove("b")
                assert list(subscription.channels) == ["a"]
                await publisher.publish("b", "unheard")
                await publisher.publish("a", "heard")
                assert (await anext(subscription)).data == "heard"
                with pytest.raises(StreamRefused, match="legal are") as raised:
                    await subscription.add("not legal")
                assert raised.value.status == 400

        await on(backend, run)


async def test_an_added_channel_is_there_after_each_return_and_misses_nothing() -> None:
    async with (
        near(**QUICK_HERE) as n,
        proxy_to(n) as proxy,
        subscribed(proxy.url, "a") as subscription,
    ):
        await until(subscription, Connected)
        await n.publish("b", "from before it was added")
        await subscription.add("b")
        seen = []
        for turn in range(5):
            proxy.cut()
            await n.publish("b", f"{turn}")
            proxy.let_through()
            seen.append((await anext(subscription)).data)
        assert seen == list("01234")


async def test_a_channel_is_added_to_the_next_stream_where_none_is_open() -> None:
    async with (
        near(**QUICK_HERE) as n,
        proxy_to(n) as proxy,
        subscribed(proxy.url, "a") as subscription,
        trio.open_nursery() as nursery,
    ):
        await until(subscription, Connected)
        proxy.cut()
        await until(subscription, Reconnecting)
        nursery.start_soon(subscription.add, "b")
        await wait_all_tasks_blocked()
        assert subscription.channels == ("a",)
        proxy.let_through()
        await until(subscription, Connected)

        async def is_there() -> bool:
            return subscription.channels == ("a", "b")

        await eventually(is_there)
        await n.publish("b", "x")
        assert (await anext(subscription)).data == "x"


# --- tokens ---------------------------------------------------------------------------------------


@asynccontextmanager
async def guarded() -> AsyncIterator[Near]:
    async with near(**QUICK_HERE, jwt_key=SECRET) as n:
        yield n


async def test_a_refused_token_is_asked_for_again() -> None:
    tokens = iter([make_token(exp=1.0), make_token(subscribe=["a"])])
    async with (
        guarded() as n,
        subscribed(n.url, "a", token=lambda: next(tokens)) as subscription,
    ):
        assert "expired" in (await until(subscription, Reconnecting)).reason
        await until(subscription, Connected)


async def test_one_that_stays_refused_is_told() -> None:
    async with guarded() as n:
        for token in ("not a token", lambda: make_token(exp=1.0)):
            async with subscribed(n.url, "a", token=token) as subscription:
                with pytest.raises(StreamRefused) as raised:
                    await anext(subscription)
                assert raised.value.status == 401


@BACKENDS
async def test_an_open_stream_is_given_a_new_token_without_a_break(backend: str) -> None:
    """Each is good for two seconds; the stream lives on beyond the first."""
    publisher = {"Authorization": f"Bearer {make_token(publish=['a'])}"}
    async with guarded() as n:
        asked: list[float] = []

        async def token() -> str:
            asked.append(time.time())
            return make_token(subscribe=["a"], exp=time.time() + 2, iat=int(time.time()))

        async def run() -> None:
            async with subscribed(n.url, "a", token=token) as subscription:
                connected = await until(subscription, Connected)
                with anyio.move_on_after(2.7):
                    await anext(subscription)
                assert subscription.client_id == connected.client_id
                async with n.client() as client:
                    await client.post(f"{n.url}/publish/a", content="x", headers=publisher)
                assert (await anext(subscription)).data == "x"

        await on(backend, run)
        assert 2 <= len(asked) <= 5


def test_the_end_of_a_token_is_read_and_nothing_makes_that_fail() -> None:
    assert expires_at(make_token(exp=1234.0)) == 1234.0
    for other in ("", "sgk_key", "a.b.c", "a.W10.c", "a.eyJleHAiOiJ4In0.c", "..", "a.\u00e9.c"):
        assert expires_at(other) is None


# --- virtual time ---------------------------------------------------------------------------------

Say = Callable[[httpx.Request], httpx.Response | Exception]


class Body(httpx.AsyncByteStream):
    """Pieces, with seconds of silence between them."""

    def __init__(self, *pieces: bytes | float) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                await trio.sleep(piece)


CONNECTED = b'retry: 1000\nid: 1-0\nevent: connected\ndata: {"clientId":"c","channels":["a"]}\n\n'


def stream(*pieces: bytes | float) -> httpx.Response:
    headers = {"Content-Type": "text/event-stream"}
    return httpx.Response(200, headers=headers, stream=Body(*pieces))


@asynccontextmanager
async def scripted(
    *answers: Any, **options: Any
) -> AsyncIterator[tuple[Subscription, list[float]]]:
    """A subscription at a gateway that gives these answers, and the times at which it was asked."""
    waiting = iter(answers)
    asked: list[float] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(trio.current_time())
        said = next(waiting, None) or httpx.ConnectError("refused", request=request)
        if isinstance(said, Exception):
            raise said
        assert isinstance(said, httpx.Response)
        return said

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client,
        subscribe(URL, ["a"], client=client, **options) as subscription,
    ):
        yield subscription, asked


async def test_delays_are_random_and_double_up_to_a_ceiling_and_attempts_end(
    autojump_clock: MockClock,
) -> None:
    async with scripted(min_delay=1, max_delay=8, attempts=12) as (subscription, asked):
        told = [await anext(subscription.items) for _ in range(12)]
        with pytest.raises(ConnectionLost, match="12 attempts in a row have failed"):
            await anext(subscription)
    assert len(asked) == 13, "the first connection, and twelve to come back"
    for number, item in enumerate(told):
        assert isinstance(item, Reconnecting)
        assert item.attempt == number + 1
        assert 0 <= item.delay <= min(8, 2**number)
        assert math.isclose(asked[number + 1] - asked[number], item.delay)


async def test_a_stream_that_has_lived_makes_the_next_attempt_the_first(
    autojump_clock: MockClock,
) -> None:
    lives = [stream(CONNECTED, LIVED_SECONDS + 0.1) for _ in range(5)]
    async with scripted(*lives, attempts=2) as (subscription, _):
        told = []
        with suppress(ConnectionLost):
            async for item in subscription.items:
                if isinstance(item, Reconnecting):
                    told.append(item)
    assert [item.attempt for item in told] == [1, 1, 1, 1, 1, 2]
    assert [item.delay for item in told[:5]] == [1.0] * 5, "as `retry:` has it"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.TooManyRedirects("round and round"),
        httpx.Response(503, content=bytes(MAX_ANSWER_BYTES + 1)),
        httpx.Response(503, text="[" * 100_000),
        stream(CONNECTED.replace(b'"c"', b'"c","keepalive":1' + b"0" * 400)),
    ],
    ids=["redirects", "too much", "nested", "no keepalive"],
)
async def test_no_answer_ends_a_subscription_that_may_come_back(
    answer: Any, autojump_clock: MockClock
) -> None:
    again = stream(CONNECTED, b"id: 2-0\ndata: x\n\n", 1.0)
    if isinstance(answer, Exception):
        assert isinstance(answer, httpx.TooManyRedirects)
        answer.request = httpx.Request("GET", URL)
    async with scripted(answer, again) as (subscription, _):
        assert (await anext(subscription)).data == "x"


async def test_who_is_answered_by_somebody_in_between_asks_again_for_a_channel() -> None:
    at_work = session()
    connect(at_work, "1-0")
    added = at_work.add("b", None)
    command = at_work.next_command()
    assert command is not None
    page = httpx.Response(200, text="<html>", request=httpx.Request("PUT", URL))
    assert not at_work.done(command, page)
    assert (added.until, added.is_joined) == ("", False)


async def test_one_that_dies_at_once_does_not(autojump_clock: MockClock) -> None:
    async with (
        scripted(*[stream(CONNECTED) for _ in range(9)], attempts=4) as (subscription, _),
    ):
        told = []
        with suppress(ConnectionLost):
            async for item in subscription.items:
                if isinstance(item, Reconnecting):
                    told.append(item)
    assert [item.attempt for item in told] == [1, 2, 3, 4]
    assert all(item.delay >= 1 for item in told)


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_kept_to(status: int, autojump_clock: MockClock) -> None:
    refused = httpx.Response(status, json={"detail": "Full."}, headers={"Retry-After": "9"})
    closed = stream(b"id: 1-0.closed\n\n")
    async with scripted(refused, closed) as (subscription, asked):
        lost, _ = [item async for item in subscription.items]
    assert isinstance(lost, Reconnecting)
    assert (lost.reason, lost.delay) == ("Full.", 9)
    assert asked[1] - asked[0] == 9


async def test_a_refusal_as_a_stream_is_kept_to(autojump_clock: MockClock) -> None:
    draining = stream(b'retry: 4000\nevent: reconnect\ndata: {"reason":"draining"}\n\n', 1000.0)
    async with scripted(draining, stream(b"id: 1-0.closed\n\n")) as (subscription, asked):
        lost, _ = [item async for item in subscription.items]
    assert lost == Reconnecting(1, 4.0, "the gateway says: draining")
    assert asked[1] - asked[0] == 4


@pytest.mark.parametrize(("told", "silence"), [(b"", 45.0), (b',"keepalive":2000', 6.0)])
async def test_silence_is_reckoned_by_the_keepalive_that_was_told(
    told: bytes, silence: float, autojump_clock: MockClock
) -> None:
    connected = CONNECTED.replace(b"]}", b"]" + told + b"}")
    dead = stream(connected, silence - 0.1, b": still there\n\n", 1000.0)
    async with scripted(dead, stream(b"id: 1-0.closed\n\n")) as (subscription, asked):
        _, lost, _ = [item async for item in subscription.items]
    assert isinstance(lost, Reconnecting)
    assert lost.reason == f"nothing has come for {silence:g} s"
    assert math.isclose(asked[1] - asked[0], 2 * silence - 0.1 + lost.delay)


async def test_a_reader_that_does_something_else_for_long_stands_where_the_keepalives_are(
    autojump_clock: MockClock,
) -> None:
    """However many: they take no room, so nothing after them is held up."""
    keepalives = [p for n in range(2, 102) for p in (10.0, b"event: keepalive\nid: %d-0\n\n" % n)]
    closed = b"id: 200-0.closed\n\n"
    async with scripted(stream(CONNECTED, *keepalives, b"data: x\n\n", closed)) as (
        subscription,
        _,
    ):
        await trio.sleep(999)
        assert isinstance(await anext(subscription.items), Connected)
        assert subscription.last_event_id == ""
        assert (await anext(subscription)).last_event_id == "101-0"
        assert trio.current_time() < 1000 + 2, "all but the last were read by then"


def test_no_delay_is_longer_than_a_limit_whatever_is_told() -> None:
    backoff = Backoff(1, 10, uniform=lambda low, high: high)
    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 8, 10]
    assert backoff.next(told=1e9) == LONGEST_TOLD
    assert backoff.next(at_least=1e9) == LONGEST_TOLD
    for _ in range(2000):
        assert backoff.next() == 10
    backoff.reset()
    assert (backoff.next(told=0.0), backoff.next(told=0.0)) == (0, 2)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", 5), ("", 0), ("soon", 0), ("-1", 0), ("9" * 400, LONGEST_TOLD), ("\u0665", 0)],
    ids=["5", "none", "soon", "negative", "endless", "digits of elsewhere"],
)
def test_retry_after_that_cannot_be_read_is_none(value: str, seconds: float) -> None:
    headers = httpx.Headers([(b"Retry-After", value.encode())])
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 97 < retry_after(httpx.Headers({"Retry-After": at})) <= 100
    past = httpx.Headers({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"})
    assert retry_after(past) == 0


# --- what a return asks for, without a connection -------------------------------------------------


def session() -> Session:
    made = Session(
        URL,
        ["a"],
        user=None,
        last_event_id="",
        replay=None,
        annotate=True,
        attempts=None,
        backoff=Backoff(1, 10),
        can_renew=False,
    )
    connect(made, "1-0")
    return made


def connect(session: Session, position: str) -> None:
    session.opening("")
    assert session.answered(stream(), 0)
    told = f'id: {position}\nevent: connected\ndata: {{"clientId":"c-{position}"}}\n\n'
    session.receive(told.encode())


def asked_channels(session: Session) -> list[str]:
    return session.opening("").url.params.get_list("channel")


def carry_out(session: Session, position: str) -> str:
    """The next command and its answer; what was asked for."""
    command = session.next_command()
    assert command is not None
    assert session.done(command, httpx.Response(200, json={"id": position}))
    return f"{command.method} {command.url.raw_path.decode()}"


def test_a_channel_joins_the_request_once_the_stream_has_come_to_where_it_is_live() -> None:
    s = session()
    added = s.add("b", None)
    assert carry_out(s, "5-0") == "PUT /clients/c-1-0/channels/b"
    assert added.until == "5-0"
    s.lost("cut", 0)
    assert asked_channels(s) == ["a"], "or events from before 5-0 would come"
    connect(s, "1-0")
    assert carry_out(s, "7-0") == "PUT /clients/c-1-0/channels/b?since=5-0"
    s.receive(b"id: 6-0\nchannel: a\ndata: x\n\n")
    s.lost("cut", 0)
    assert asked_channels(s) == ["a"]
    connect(s, "6-0")
    assert carry_out(s, "8-0") == "PUT /clients/c-6-0/channels/b?since=5-0"
    s.receive(b"at: 5-3\nchannel: b\ndata: missed\n\n")
    s.lost("cut", 0)
    connect(s, "6-0")
    assert carry_out(s, "9-0") == "PUT /clients/c-6-0/channels/b?since=5-3", (
        "what has come has come"
    )
    s.receive(b"event: keepalive\nid: 9-0\n\n")
    s.lost("cut", 0)
    assert asked_channels(s) == ["a", "b"]
    connect(s, "9-0")
    assert s.next_command() is None


def test_an_answer_about_a_stream_that_is_gone_is_made_good_at_the_next_one() -> None:
    s = session()
    s.add("b", None)
    command = s.next_command()
    assert command is not None
    s.lost("cut", 0)
    connect(s, "2-0")
    assert s.done(command, httpx.Response(200, json={"id": "5-0"}))
    assert carry_out(s, "6-0") == "PUT /clients/c-2-0/channels/b?since=5-0"


def test_a_channel_that_was_removed_is_not_asked_for_and_one_that_still_comes_is_left() -> None:
    s = session()
    s.add("b", None)
    carry_out(s, "1-0")
    s.lost("cut", 0)
    assert asked_channels(s) == ["a", "b"]
    s.remove("b")
    assert s.is_leaving("b"), "it was asked for"
    connect(s, "2-0")
    assert carry_out(s, "3-0") == "DELETE /clients/c-2-0/channels/b"
    assert s.next_command() is None
    assert asked_channels(s) == ["a"]


def test_a_channel_that_cannot_be_had_again_is_no_silence() -> None:
    s = session()
    s.add("b", None)
    carry_out(s, "5-0")
    s.lost("cut", 0)
    connect(s, "1-0")
    command = s.next_command()
    assert command is not None
    with pytest.raises(StreamRefused, match="Not granted"):
        s.done(command, httpx.Response(403, json={"detail": "Not granted."}))


# --- programs that do not await ------------------------------------------------------------------


async def test_a_program_that_does_not_await_follows_over_a_cut_link() -> None:
    async with near(**QUICK_HERE) as n, proxy_to(n) as proxy, trio.open_nursery() as nursery:
        seen: list[Item] = []

        def read() -> None:
            with httpx.Client(trust_env=False) as client:
                items: Iterator[Item] = subscribe_sync(
                    proxy.url, ["a"], client=client, min_delay=0.05, max_delay=0.2
                )
                with closing(items):  # type: ignore[type-var]
                    for item in items:
                        seen.append(item)
                        if isinstance(item, Event) and item.data == "last":
                            return

        nursery.start_soon(partial(trio.to_thread.run_sync, read))

        async def has_come(kind: type[Item]) -> bool:
            return any(isinstance(item, kind) for item in seen)

        await eventually(partial(has_come, Connected))
        await n.publish("a", "one")
        proxy.cut()
        await eventually(partial(has_come, Reconnecting))
        await n.publish("a", "two", "last")
        proxy.let_through()
    assert [item.data for item in seen if isinstance(item, Event)] == ["one", "two", "last"]


async def test_a_subscription_is_read_within_its_block_and_entered_once() -> None:
    subscription = subscribe("http://127.0.0.1:9", ["a"])
    with pytest.raises(Closed):
        await anext(subscription)
    async with subscription:
        pass
    with pytest.raises(Closed):
        await anext(subscription)
    with pytest.raises(Closed):
        await subscription.add("b")
    with pytest.raises(Closed):
        await subscription.__aenter__()
