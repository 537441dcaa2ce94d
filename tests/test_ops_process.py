"""Real nodes on one Redis that are watched, and one of which is told to leave through another."""

import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

import httpx
import msgspec
import trio
from process import NodeProcess, Stream, eventually, node
from redis_server import redis_server
from tokens import SECRET, token

WATCH = "/events/gateway:ops"

LEAVING = ("--drain-grace", "0.2", "--drain-seconds", "0.5")


@asynccontextmanager
async def two_nodes(*flags: str) -> AsyncIterator[tuple[NodeProcess, NodeProcess]]:
    """One of a single process, and one of two workers."""
    async with (
        redis_server() as redis,
        node("--redis", redis.url, "--node-id", "a", *flags) as a,
        node("--redis", redis.url, "--node-id", "b", "--workers", "2", *flags) as b,
    ):
        yield a, b


async def ask(n: NodeProcess, method: str, path: str, credential: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    async with n.client() as client:
        return await client.request(method, n.url + path, headers=headers)


def reports_in(stream: Stream) -> list[dict[str, Any]]:
    found = re.findall(rb"event: report\ndata: (.*)\n", stream.body)
    return [msgspec.json.decode(text) for text in found]


async def until_report(stream: Stream, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The first report that ``holds``."""
    seen = 0
    while True:
        fresh = reports_in(stream)[seen:]
        for report in fresh:
            if holds(report):
                return report
        seen += len(fresh)
        await stream.more()


def data_of(stream: Stream) -> list[str]:
    """Of the events without a type."""
    return [text.decode() for text in re.findall(rb"(?m)^id: \S+\ndata: (.*)$", stream.body)]


def last_id(stream: Stream) -> str:
    return str(re.findall(rb"(?m)^id: (\S+)$", stream.body)[-1].decode())


async def test_all_workers_report_to_a_watcher_at_any_node_until_he_has_gone() -> None:
    async with two_nodes() as (a, b):
        await b.open_stream("/events/news")
        watcher = await a.open_stream(WATCH)
        workers: dict[str, dict[str, Any]] = {}

        def are_all_seen(report: dict[str, Any]) -> bool:
            workers[report["worker"]] = report
            return len(workers) == 3

        await until_report(watcher, are_all_seen)
        assert sorted(report["node"] for report in workers.values()) == ["a", "b", "b"]
        assert sum(report["clients"] for report in workers.values()) == 2
        watching = await b.open_stream(f"{WATCH}?replay=10")
        opened_at = int(re.findall(rb'"serverTime":(\d+)', watching.body)[0])
        await until_report(watching, lambda report: report["at"] < opened_at)
        for stream in (watcher, watching):
            await stream.transport.aclose()

        async def is_silent() -> bool:
            last = (await a.get("/channels/gateway:ops")).json()["lastEventId"]
            return bool(time.time() * 1000 - int(last.partition("-")[0]) > 2500)

        await eventually(is_silent)
        for n in (a, b):
            assert await n.metric("reports_total") >= 1
            assert await n.metric("published_total") == 0


async def test_a_node_leaves_through_another_and_nobody_loses_anything() -> None:
    async with two_nodes(*LEAVING) as (a, b):
        streams = [await b.open_stream("/events/news") for _ in range(6)]
        sent = await a.publish("news", *map(str, range(5)))
        for stream in streams:
            await stream.until(b"data: 4\n")
        for _ in range(2):
            answer = await ask(a, "POST", "/nodes/b/drain")
            assert (answer.status_code, answer.json()) == (202, {"node": "b", "workers": 2})
        sent += await a.publish("news", *map(str, range(5, 10)))
        for stream in streams:
            await stream.until_end()
            assert b'event: reconnect\ndata: {"reason":"draining"}' in stream.body
        sent += await a.publish("news", *map(str, range(10, 15)))
        for stream in streams:
            back = await a.ask_for_stream("/events/news", ("Last-Event-ID", last_id(stream)))
            await back.until(b"data: 14\n")
            assert data_of(stream) + data_of(back) == [str(number) for number in range(15)]
        assert await b.wait() == 0
        stats = await a.stats()
        assert [each["id"] for each in stats["nodes"]] == ["a"]
        assert (await ask(a, "POST", "/nodes/b/drain")).status_code == 404


async def test_who_watches_is_told_that_a_node_leaves_and_that_it_has_left() -> None:
    async with two_nodes("--drain-grace", "0", "--drain-seconds", "0") as (a, b):
        for _ in range(6):
            await b.open_stream("/events/news")
        watcher = await a.open_stream(WATCH)
        first: dict[str, dict[str, Any]] = {}

        def are_both_seen(report: dict[str, Any]) -> bool:
            if report["node"] == "b":
                first[report["worker"]] = report
            return len(first) == 2

        await until_report(watcher, are_both_seen)
        assert (await ask(a, "POST", "/nodes/b/drain")).status_code == 202
        assert await b.wait() == 0
        left: dict[str, dict[str, Any]] = {}

        def have_both_left(report: dict[str, Any]) -> bool:
            if report["draining"] and not report["clients"]:
                left[report["worker"]] = report
            return len(left) == 2

        await until_report(watcher, have_both_left)
        assert left.keys() == first.keys()
        assert sum(report["closed"]["draining"] for report in left.values()) == 6


async def test_a_node_of_one_process_leaves_when_it_is_asked_itself() -> None:
    async with node("--node-id", "a", *LEAVING) as n:
        stream = await n.open_stream("/events/news")
        assert (await ask(n, "POST", "/nodes/a/drain")).json() == {"node": "a", "workers": 1}
        await stream.until_end()
        assert await n.wait() == 0


async def test_a_request_to_leave_is_no_first_signal() -> None:
    """Whoever then stops the node in order does not cut it short; who insists does."""
    async with redis_server() as redis:
        flags = ("--redis", redis.url, "--node-id", "b", "--workers", "2", "--drain-grace", "60")
        async with node(*flags) as b:
            assert (await ask(b, "POST", "/nodes/b/drain")).status_code == 202
            await b.until("node b is draining its workers")
            b.signal(signal.SIGTERM)
            await b.until("node b is draining its workers")
            assert (await ask(b, "GET", "/readyz")).status_code == 503
            b.signal(signal.SIGTERM)
            await b.until("second signal: leaving at once")
            assert await b.wait() == 1
            assert b.output.count("node b is draining its workers") == 2  # one of them by signal


async def stalled_reader(n: NodeProcess) -> trio.SocketStream:
    """A stream of ``news`` of which nothing is read."""
    sock = trio.socket.socket()
    sock.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", n.port))
    connection = trio.SocketStream(sock)
    n.connections.append(connection)
    await connection.send_all(b"GET /events/news?user=slow HTTP/1.1\r\nHost: x\r\n\r\n")
    return connection


async def test_a_slow_client_is_seen_from_the_other_node_and_ended_there() -> None:
    async with two_nodes() as (a, b):
        watcher = await a.open_stream(WATCH)
        await stalled_reader(b)

        async def is_open() -> bool:
            return bool((await ask(a, "GET", "/clients?user=slow")).json()["matched"] == 1)

        await eventually(is_open)
        for _ in range(4):
            await a.publish_raw("news", "x" * 200_000)
        report = await until_report(watcher, lambda report: report["slow"])
        (slow,) = report["slow"]
        assert (slow["user"], slow["node"], slow["names"]) == ("slow", "b", ["news"])
        assert slow["queuedBytes"] > 100_000
        found = (await ask(a, "GET", "/clients?state=behind")).json()
        assert ([each["id"] for each in found["clients"]], found["missing"]) == ([slow["id"]], 0)
        shown = (await ask(a, "GET", f"/clients/{slow['id']}")).json()
        assert shown["channelNames"] == ["news", "global", "user:slow"]
        assert (await ask(a, "DELETE", f"/clients/{slow['id']}")).json() == {"closed": 1}
        report = await until_report(
            watcher, lambda report: any(each["kind"] == "closed" for each in report["happenings"])
        )
        (closed,) = [each for each in report["happenings"] if each["kind"] == "closed"]
        assert (closed["client"], closed["reason"]) == (slow["id"], "closed")
        (ending,) = (await ask(a, "GET", "/clients?user=slow")).json()["clients"]
        assert ending["state"] == "ending"


async def test_with_keys_it_is_all_for_administrators() -> None:
    async with node("--node-id", "a", variables={"GATEWAY_JWT_KEY": SECRET}) as n:
        for method, path in (
            ("GET", "/poll/gateway:ops?wait=0"),
            ("GET", "/clients"),
            ("POST", "/nodes/x/drain"),
        ):
            assert (await ask(n, method, path)).status_code == 401
            assert (await ask(n, method, path, token(subscribe=["**"]))).status_code == 403
            allowed = await ask(n, method, path, token(admin=True))
            assert allowed.status_code == (404 if method == "POST" else 200)


async def test_while_redis_is_away_nothing_is_reported_and_nothing_of_it_later() -> None:
    async with redis_server() as redis, node("--redis", redis.url, "--node-id", "a") as n:
        watcher = await n.open_stream(WATCH)
        first = await until_report(watcher, lambda report: True)
        await redis.kill()

        async def is_noticed() -> bool:
            return await n.metric("bus_up") == 0

        await eventually(is_noticed)
        gone_at = time.time() * 1000
        await redis.start()
        back_at = time.time() * 1000
        await until_report(watcher, lambda report: report["at"] > back_at)
        assert first["at"] < gone_at
        assert [each for each in reports_in(watcher) if gone_at < each["at"] < back_at] == []
