"""Publishing by the client: nothing lost, nothing doubled, and each is told of his own event."""

import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
import trio
from loops import BACKENDS, on
from near import Near, near
from process import NodeProcess, eventually, node
from proxy import Proxy, proxy_to
from tokens import SECRET
from tokens import token as make_token
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.client import (
    Closed,
    Publisher,
    PublishError,
    Refused,
    Result,
    SyncPublisher,
    Unknown,
    subscribe,
)
from gateway.client.http import MAX_ANSWER_BYTES
from gateway.client.outgoing import MAX_BATCH_BYTES, REQUEST_SECONDS
from gateway.errors import BadRequest

URL = "http://gateway.test"

Line = dict[str, Any]
Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Gateway:
    """Takes what is published, unless ``answers`` has something else to say; one for each request.

    An answer is a response, an exception, seconds of silence, or what is said of each line.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[list[Line]] = []
        self.tokens: list[str | None] = []
        self.at: list[float] = []
        self.taken: dict[str, str] = {}

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        lines = [json.loads(line) for line in (await request.aread()).splitlines()]
        self.requests.append(lines)
        self.tokens.append(request.headers.get("Authorization"))
        self.at.append(trio.current_time())
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, trio.Event):
            await answer.wait()
        if isinstance(answer, float):
            await trio.sleep(answer)
        if isinstance(answer, httpx.Response):
            return answer
        said = [self.take(line) for line in lines]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            said = [answer(line) or told for line, told in zip(lines, said, strict=True)]
        return httpx.Response(200, text="".join(json.dumps(told) + "\n" for told in said))

    def take(self, line: Line) -> Line:
        return {"id": self.taken.setdefault(line["id"], f"{len(self.taken) + 1}-0")}

    @property
    def data(self) -> list[list[Any]]:
        """Of each request."""
        return [[line["data"] for line in lines] for lines in self.requests]


@asynccontextmanager
async def publishing(gateway: Gateway, **options: Any) -> AsyncIterator[Publisher]:
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(gateway)) as client,
        Publisher(URL, client=client, **options) as publisher,
    ):
        yield publisher


def problem(status: int, detail: str = "So.", **extra: object) -> httpx.Response:
    headers = {"Retry-After": str(extra.pop("retry_after"))} if "retry_after" in extra else {}
    return httpx.Response(
        status, json={"detail": detail, "status": status} | extra, headers=headers
    )


def refuse(data: str, status: int, **extra: object) -> Callable[[Line], Line | None]:
    """Of the lines with that data."""

    def say(line: Line) -> Line | None:
        told = {"line": 1, "status": status, "detail": f"No {data}."} | extra
        return told if line["data"] == data else None

    return say


async def test_an_event_is_sent_as_it_was_given_and_its_position_returned() -> None:
    gateway = Gateway()
    async with publishing(gateway, token="t") as publisher:
        assert await publisher.publish("news", "Hello") == "1-0"
        assert await publisher.publish(channels=("a", "b"), data={"x": 1}, key="k", id="7") == "2-0"
        assert await publisher.publish(user="u", data=None, event="e", retry=5) == "3-0"
        assert await publisher.publish("done", end=True) == "4-0"
        assert await publisher.publish(broadcast=True, data="caf\u00e9") == "5-0"
    sent = [line for lines in gateway.requests for line in lines]
    ids = [line.pop("id") for line in sent]
    assert len(set(ids)) == 5
    assert ids[1] == "7"
    assert sent == [
        {"channel": "news", "data": "Hello"},
        {"channels": ["a", "b"], "data": {"x": 1}, "key": "k"},
        {"user": "u", "data": None, "event": "e", "retry": 5},
        {"channel": "done", "end": True},
        {"broadcast": True, "data": "caf\u00e9"},
    ]
    assert gateway.tokens == ["Bearer t"] * 5


async def test_what_waits_while_a_request_is_under_way_is_the_next_one(
    autojump_clock: MockClock,
) -> None:
    gateway = Gateway(1.0)
    async with publishing(gateway, batch_events=3) as publisher, trio.open_nursery() as nursery:
        nursery.start_soon(publisher.publish, "a", "first")
        await wait_all_tasks_blocked()
        for number in range(5):
            nursery.start_soon(publisher.publish, "a", number)
        await wait_all_tasks_blocked()
        assert publisher.statistics.waiting == 6
    assert list(map(len, gateway.data)) == [1, 3, 2]
    assert publisher.statistics.accepted == 6
    assert publisher.statistics.waiting == publisher.statistics.waiting_bytes == 0


async def test_a_request_is_bounded_in_bytes() -> None:
    gateway = Gateway()
    events = [{"channel": "a", "data": "x" * (MAX_BATCH_BYTES // 3)} for _ in range(5)]
    async with publishing(gateway) as publisher:
        assert [result.error async for result in publisher.publish_many(events)] == [None] * 5
    assert sum(map(len, gateway.data)) == 5
    assert max(map(len, gateway.data)) == 2


REQUEST = httpx.Request("POST", URL)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.ReadError("reset", request=REQUEST),
        httpx.RemoteProtocolError("ended", request=REQUEST),
        problem(503, outcome="unknown"),
        problem(503, outcome="refused"),
        httpx.Response(502, text="<p>"),
        httpx.Response(200, text="<p>"),
        httpx.Response(200, text='{"no": "id"}'),
        problem(429, retry_after=2),
        refuse("x", 503, outcome="unknown"),
        refuse("x", 429),
        REQUEST_SECONDS + 1,
    ],
    ids=[
        *("reset", "ended", "unknown", "refused", "balancer", "no gateway", "strange", "paced"),
        *("unknown line", "paced line", "silence"),
    ],
)
async def test_what_is_not_known_to_be_taken_is_sent_again_under_its_id(
    answer: Any, autojump_clock: MockClock
) -> None:
    gateway = Gateway(answer)
    async with publishing(gateway) as publisher:
        assert await publisher.publish("a", "x") == "1-0"
    first, second = gateway.requests
    assert first == second
    assert publisher.statistics.repeated == 1


@pytest.mark.parametrize(
    "answer",
    [
        (200, b'{"id": ""}'),
        (200, b'{"id": 5}'),
        (200, b'{"status": [503], "detail": "x"}'),
        (200, b"[" * 100_000),
        (503, b"[" * 100_000),
        (200, bytes(MAX_ANSWER_BYTES + 1)),
        (503, bytes(MAX_ANSWER_BYTES + 1)),
    ],
    ids=["empty", "number", "list", "nested", "nested refusal", "too much", "too much refusal"],
)
@pytest.mark.parametrize("awaits", [True, False])
async def test_no_answer_breaks_a_publisher_whatever_it_is(
    answer: tuple[int, bytes], awaits: bool, autojump_clock: MockClock
) -> None:
    status, content = answer
    strange = httpx.Response(status, content=content)
    if awaits:
        gateway = Gateway(strange)
        async with publishing(gateway) as publisher:
            [result] = [
                each async for each in publisher.publish_many([{"channel": "a", "data": "x"}])
            ]
        assert result.position == "1-0"
        return
    answers = [strange, httpx.Response(200, text='{"id": "1-0"}')]
    transport = httpx.MockTransport(lambda _: answers.pop(0))
    with httpx.Client(transport=transport) as client:
        assert SyncPublisher(URL, client=client).publish("a", "x") == "1-0"


async def test_order_is_kept_over_repeats(autojump_clock: MockClock) -> None:
    gateway = Gateway(1.0, problem(503, outcome="refused"), problem(502))
    async with publishing(gateway, batch_events=2) as publisher:
        events = ({"channel": "a", "data": number} for number in range(5))
        assert [r.position async for r in publisher.publish_many(events)] == [
            f"{number}-0" for number in range(1, 6)
        ]
    assert gateway.data == [[0, 1], [2, 3], [2, 3], [2, 3], [4]]


@pytest.mark.parametrize("status", [400, 403, 409, 413])
async def test_a_refusal_is_told_at_once_and_to_its_own_caller_alone(
    status: int, autojump_clock: MockClock
) -> None:
    gateway = Gateway(1.0, refuse("bad", status))
    outcomes: dict[str, str | PublishError] = {}

    async def publish(publisher: Publisher, data: str) -> None:
        try:
            outcomes[data] = await publisher.publish("a", data)
        except PublishError as error:
            outcomes[data] = error

    async with publishing(gateway) as publisher, trio.open_nursery() as nursery:
        for data in ("first", "good", "bad", "fine"):
            nursery.start_soon(publish, publisher, data)
            await wait_all_tasks_blocked()
    error = outcomes.pop("bad")
    assert isinstance(error, Refused)
    assert (str(error), error.status) == ("No bad.", status)
    assert all(isinstance(position, str) for position in outcomes.values())
    assert len(gateway.requests) == 2


async def test_retry_after_is_kept_to(autojump_clock: MockClock) -> None:
    gateway = Gateway(problem(429, retry_after=7), problem(503, retry_after=3))
    async with publishing(gateway) as publisher:
        await publisher.publish("a", "x")
    first, second, third = gateway.at
    assert 7 <= second - first < 8
    assert 3 <= third - second < 4


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (problem(503, "Draining.", outcome="refused", retry_after=4), Refused, "Draining."),
        (problem(429, "Too fast.", retry_after=4), Refused, "Too fast."),
        (problem(503, "Lost.", outcome="unknown"), Unknown, "Lost."),
        (httpx.ReadError("reset", request=REQUEST), Unknown, "reset"),
        (httpx.ConnectError("refused", request=REQUEST), Refused, "refused"),
        (problem(429, "A minute.", retry_after=60), Refused, "A minute."),
    ],
)
async def test_after_its_time_a_caller_is_told_what_is_known(
    answer: Any, kind: type[PublishError], sentence: str, autojump_clock: MockClock
) -> None:
    gateway = Gateway(*[answer] * 1000)
    began = trio.current_time()
    async with publishing(gateway, give_up_after=20) as publisher:
        with pytest.raises(kind, match=sentence) as raised:
            await publisher.publish("a", "x", id="mine")
        assert raised.value.id == "mine"
        assert 19 <= trio.current_time() - began <= 20 + 5
        assert 2 < len(gateway.requests) < 200 or "minute" in sentence


async def test_what_may_have_been_taken_once_is_never_called_refused(
    autojump_clock: MockClock,
) -> None:
    gateway = Gateway(httpx.ReadError("reset", request=REQUEST), problem(403, "Not granted."))
    async with publishing(gateway) as publisher:
        with pytest.raises(Unknown, match="may have been taken or not: Not granted"):
            await publisher.publish("a", "x")


async def test_waiting_is_bounded_and_first_come_first_served(autojump_clock: MockClock) -> None:
    go_on = trio.Event()
    gateway = Gateway(go_on)
    async with (
        publishing(gateway, waiting_events=3, batch_events=1) as publisher,
        trio.open_nursery() as nursery,
    ):
        for number in range(10):
            nursery.start_soon(publisher.publish, "a", number)
            await wait_all_tasks_blocked()
        assert publisher.statistics.waiting == 3
        go_on.set()
    assert gateway.data == [[number] for number in range(10)]


async def test_waiting_is_bounded_in_bytes() -> None:
    go_on = trio.Event()
    gateway = Gateway(go_on)
    async with (
        publishing(gateway, waiting_bytes=10_000) as publisher,
        trio.open_nursery() as nursery,
    ):
        for _ in range(10):
            nursery.start_soon(publisher.publish, "a", "x" * 2000)
        await wait_all_tasks_blocked()
        assert publisher.statistics.waiting_bytes <= 10_000
        go_on.set()
    assert publisher.statistics.accepted == 10


async def test_who_waits_for_room_in_vain_is_refused(autojump_clock: MockClock) -> None:
    gateway = Gateway(trio.Event())
    async with (
        publishing(gateway, waiting_events=1, give_up_after=5) as publisher,
        trio.open_nursery() as nursery,
    ):

        async def first() -> None:
            with pytest.raises(Unknown):
                await publisher.publish("a", "first")

        nursery.start_soon(first)
        await wait_all_tasks_blocked()
        with pytest.raises(Refused, match="too many others wait"):
            await publisher.publish("a", "second")


async def test_who_is_cancelled_takes_nothing_from_others(autojump_clock: MockClock) -> None:
    gateway = Gateway(2.0)
    async with publishing(gateway) as publisher, trio.open_nursery() as nursery:
        results: list[str] = []

        async def publish(data: str) -> None:
            results.append(await publisher.publish("a", data))

        async def cancelled(data: str) -> None:
            with trio.move_on_after(1):
                await publisher.publish("a", data)

        nursery.start_soon(publish, "first")
        nursery.start_soon(cancelled, "sent")
        await wait_all_tasks_blocked()
        nursery.start_soon(cancelled, "not sent")
        nursery.start_soon(publish, "second")
    assert len(results) == 2
    assert "not sent" not in [data for request in gateway.data for data in request]


async def test_a_refused_token_is_asked_for_again_and_one_that_stays_refused_is_told() -> None:
    gateway = Gateway(problem(401), None, problem(401), problem(401, "Who are you?"))
    numbers = iter(range(10))
    async with publishing(gateway, token=lambda: f"t{next(numbers)}") as publisher:
        await publisher.publish("a", "x")
        with pytest.raises(Refused, match=r"Who are you\?"):
            await publisher.publish("a", "y")
    assert gateway.tokens == ["Bearer t0", "Bearer t1", "Bearer t1", "Bearer t2"]


async def test_a_token_is_asked_for_again_before_it_is_over(autojump_clock: MockClock) -> None:
    gateway = Gateway()
    asked = 0

    async def token() -> str:
        nonlocal asked
        asked += 1
        return make_token(exp=time.time() + 100, number=asked)

    async with publishing(gateway, token=token) as publisher:
        for _ in range(10):
            await publisher.publish("a", "x")
            await trio.sleep(20)
    assert asked == 3, "after 70 s each"


async def test_a_token_that_cannot_be_had_refuses_after_its_time(autojump_clock: MockClock) -> None:
    def token() -> str:
        raise OSError("no route")

    async with publishing(Gateway(), token=token, give_up_after=10) as publisher:
        with pytest.raises(Refused, match="There is no token: no route"):
            await publisher.publish("a", "x")


async def test_a_body_that_is_too_large_for_this_gateway_is_divided() -> None:
    go_on = trio.Event()
    gateway = Gateway(go_on, problem(413), problem(413))
    async with publishing(gateway) as publisher, trio.open_nursery() as nursery:
        nursery.start_soon(publisher.publish, "a", "first")
        await wait_all_tasks_blocked()
        for number in range(8):
            nursery.start_soon(publisher.publish, "a", number)
        await wait_all_tasks_blocked()
        go_on.set()
    assert list(map(len, gateway.data))[:4] == [1, 8, 4, 2]
    assert publisher.statistics.accepted == 9


async def test_the_end_of_the_block_flushes_what_was_accepted(autojump_clock: MockClock) -> None:
    gateway = Gateway(problem(503, outcome="refused"), 3.0)
    async with trio.open_nursery() as nursery, publishing(gateway) as publisher:
        nursery.start_soon(publisher.publish, "a", "x")
        await wait_all_tasks_blocked()
    assert publisher.statistics.accepted == 1
    with pytest.raises(Closed):
        await publisher.publish("a", "y")


async def test_the_flush_is_bounded_and_everybody_is_told(autojump_clock: MockClock) -> None:
    gateway = Gateway(trio.Event())
    outcomes: list[PublishError] = []

    async def publish(publisher: Publisher) -> None:
        try:
            await publisher.publish("a", "x")
        except PublishError as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        async with publishing(gateway, flush_seconds=5) as publisher:
            nursery.start_soon(publish, publisher)
            await wait_all_tasks_blocked()
            nursery.start_soon(publish, publisher)
            await wait_all_tasks_blocked()
            began = trio.current_time()
        assert trio.current_time() - began == 5
    assert {type(error) for error in outcomes} == {Unknown, Refused}


async def test_an_hour_of_retry_after_does_not_refuse_what_comes_meanwhile(
    autojump_clock: MockClock,
) -> None:
    gateway = Gateway(problem(429, retry_after=3600))
    async with publishing(gateway) as publisher:
        with pytest.raises(Refused):
            await publisher.publish("a", "x")
        assert await publisher.publish("a", "y") == "1-0"


@BACKENDS
async def test_cancelled_from_outside_it_ends_at_once_and_what_others_wait_for_is_told(
    backend: str,
) -> None:
    async with near() as n, proxy_to(n) as proxy:
        proxy.is_silent = True
        outcomes: list[PublishError] = []

        async def publish(publisher: Publisher) -> None:
            with pytest.raises(Unknown) as raised:
                await publisher.publish("a", "x")
            outcomes.append(raised.value)

        async def run() -> None:
            async with anyio.create_task_group() as outer:
                with anyio.CancelScope() as scope:
                    async with (
                        httpx.AsyncClient(trust_env=False) as client,
                        Publisher(proxy.url, client=client) as publisher,
                    ):
                        outer.start_soon(publish, publisher)
                        while not publisher.statistics.sent:  # noqa: ASYNC110  # it tells nobody
                            await anyio.sleep(0.01)
                        scope.cancel()
                        await anyio.sleep_forever()

        await on(backend, run)
        assert len(outcomes) == 1


async def test_what_is_no_json_is_refused_before_it_is_sent() -> None:
    gateway = Gateway()
    async with publishing(gateway) as publisher:
        for data in (object(), math.nan, "\ud800"):
            with pytest.raises(BadRequest, match="no JSON"):
                await publisher.publish("a", data)
    assert gateway.requests == []


async def test_many_results_come_in_order_and_the_source_is_read_in_bounds() -> None:
    gateway = Gateway(refuse("3", 400))
    read = 0

    def events() -> Iterator[Line]:
        nonlocal read
        for number in range(100):
            read = number
            yield {"channel": "a", "data": f"{number}" if number != 50 else object()}

    async with publishing(gateway, batch_events=10) as publisher:
        results: list[Result] = []
        async for result in publisher.publish_many(events()):
            results.append(result)
            assert read <= len(results) + 20
    assert [result.event["data"] for result in results[:50]] == [str(n) for n in range(50)]
    assert len(results) == 100
    failed = {n: type(result.error) for n, result in enumerate(results) if result.error}
    assert failed == {3: Refused, 50: BadRequest}


async def test_results_do_not_wait_for_their_source_and_its_errors_come_last() -> None:
    more = trio.Event()

    async def events() -> AsyncIterator[Line]:
        yield {"channel": "a", "data": "x"}
        await more.wait()
        yield {"channel": "a", "data": "y"}
        raise ZeroDivisionError

    async with publishing(Gateway()) as publisher:
        results = publisher.publish_many(events())
        assert (await anext(results)).position == "1-0"
        more.set()
        assert (await anext(results)).position == "2-0"
        with pytest.raises(ZeroDivisionError):
            await anext(results)


def test_limits_that_cannot_be_kept_are_refused_at_once() -> None:
    for wrong in ({"give_up_after": 300}, {"batch_events": 0}, {"waiting_events": 0}):
        with pytest.raises(ValueError, match=r"give_up_after|limit"):
            Publisher(URL, **wrong)  # type: ignore[arg-type]


# --- real nodes -----------------------------------------------------------------------------------


async def all_data(n: NodeProcess | Near, count: int) -> list[str]:
    """Of the events of channel a, from the first one on, until there are ``count`` of them and a
    last one that says so."""
    await n.publish("a", "the last")
    async with (
        n.client() as client,
        subscribe(n.url, ["a"], last_event_id="earliest", client=client) as subscription,
    ):
        seen: list[str] = []
        async for event in subscription:
            if event.data == "the last":
                return seen
            seen.append(event.data)
    raise AssertionError(f"ended after {len(seen)} of {count}")


async def cut_again_and_again(proxy: Proxy, settled: Callable[[], int], each: int) -> None:
    """With the progress of ``each`` events in between: lose an answer, or cut at any moment."""
    for turn in range(1, 7):

        async def goes_on() -> bool:
            return settled() >= turn * each  # noqa: B023  # awaited right here

        await eventually(goes_on)
        if turn % 2:
            proxy.losing = 1
        else:
            proxy.cut()
            proxy.let_through()


HISTORY = ("--history-events", "20000", "--publish-rate", "0")


@BACKENDS
async def test_every_event_comes_once_though_the_link_is_cut_and_answers_are_lost(
    backend: str,
) -> None:
    tasks, each = 20, 15
    async with node(*HISTORY) as n, proxy_to(n) as proxy, trio.open_nursery() as nursery:
        positions: dict[str, str] = {}
        nursery.start_soon(cut_again_and_again, proxy, lambda: len(positions), 40)
        statistics: list[Any] = []

        async def publish(publisher: Publisher, task: int) -> None:
            for number in range(each):
                name = f"{task}/{number}"
                positions[name] = await publisher.publish("a", name)

        async def run() -> None:
            async with (
                httpx.AsyncClient(trust_env=False) as client,
                Publisher(proxy.url, client=client) as publisher,
                anyio.create_task_group() as group,
            ):
                for task in range(tasks):
                    group.start_soon(publish, publisher, task)
            statistics.append(publisher.statistics)

        await on(backend, run)
        data = await all_data(n, tasks * each)
    [told] = statistics
    assert told.repeated > 0, "the cuts have hit"
    assert told.accepted == tasks * each == len(positions)
    assert [name for name, count in Counter(data).items() if count > 1] == []
    assert set(data) == set(positions)
    for task in range(tasks):
        own = [name for name in data if name.startswith(f"{task}/")]
        assert own == [f"{task}/{number}" for number in range(each)], "in their order"


async def test_many_come_once_though_every_other_answer_is_lost() -> None:
    async with near(history_events=20_000) as n, proxy_to(n) as proxy:
        proxy.losing = 3
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            Publisher(proxy.url, client=client, batch_events=100) as publisher,
        ):
            events = ({"channel": "a", "data": str(number)} for number in range(1000))
            async for result in publisher.publish_many(events):
                assert result.error is None
                if result.event["data"].endswith("50"):
                    proxy.losing = 1
        assert publisher.statistics.repeated >= 300
        assert await all_data(n, 1000) == [str(number) for number in range(1000)]


async def test_a_program_that_does_not_await_publishes_once_as_well() -> None:
    async with near(history_events=20_000) as n, proxy_to(n) as proxy:
        proxy.losing = 2

        def publish() -> list[Result]:
            with (
                httpx.Client(trust_env=False) as client,
                SyncPublisher(proxy.url, client=client, batch_events=50) as publisher,
            ):
                assert publisher.publish("a", "first")
                with pytest.raises(Refused, match="legal are") as raised:
                    publisher.publish("not legal", "x")
                assert raised.value.status == 400
                proxy.losing = 1
                events = [{"channel": "a", "data": str(number)} for number in range(120)]
                results = list(publisher.publish_many(events))
                assert publisher.statistics.repeated == 52
                return results

        results = await trio.to_thread.run_sync(publish)
        assert [result.error for result in results] == [None] * 120
        positions = [result.position for result in results]
        assert positions == sorted(positions, key=lambda p: tuple(map(int, p.split("-"))))
        assert await all_data(n, 121) == ["first", *map(str, range(120))]


async def test_a_node_that_is_replaced_meanwhile_costs_no_event(redis_port: int) -> None:
    """By two nodes on one Redis: the first one is killed with SIGKILL, with a request under way."""
    shared = ("--redis", f"redis://127.0.0.1:{redis_port}/0", *HISTORY)
    async with node(*shared) as first, node(*shared) as second, proxy_to(first) as proxy:
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            Publisher(proxy.url, client=client, batch_events=50) as publisher,
        ):
            events = ({"channel": "k", "data": str(number)} for number in range(500))
            results = 0
            async for result in publisher.publish_many(events):
                assert result.error is None
                results += 1
                if results == 100:
                    proxy.losing = 1

                    async def is_lost() -> bool:
                        return not proxy.losing

                    await eventually(is_lost)
                    first.process.kill()
                    proxy.lead_to(second)
        assert results == 500
        assert publisher.statistics.repeated >= 50
        async with (
            second.client() as client,
            subscribe(second.url, ["k"], last_event_id="earliest", client=client) as subscription,
        ):
            seen = [(await anext(subscription)).data for _ in range(500)]
        assert seen == [str(number) for number in range(500)]


async def test_a_token_of_a_real_node_is_refused_and_asked_for_again() -> None:
    tokens = iter([make_token(publish=["a"], exp=1.0), make_token(publish=["a"])])
    async with (
        near(jwt_key=SECRET) as n,
        n.client() as client,
        Publisher(n.url, token=partial(next, tokens), client=client) as publisher,
    ):
        assert await publisher.publish("a", "x")
        with pytest.raises(Refused, match="not granted"):
            await publisher.publish("b", "x")
