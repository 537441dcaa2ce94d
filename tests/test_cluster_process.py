"""Two nodes and a real Redis: what is asked of one is done by the one that can."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
from process import NodeProcess, Stream, eventually, node
from redis_server import RedisServer, redis_server


@asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[NodeProcess, NodeProcess, RedisServer]]:
    async with (
        redis_server() as redis,
        node("--redis", redis.url, "--node-id", "a") as a,
        node("--redis", redis.url, "--node-id", "b") as b,
    ):
        yield a, b, redis


async def ask(n: NodeProcess, method: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        return await client.request(method, n.url + path)


def client_of(stream: Stream) -> str:
    connected = stream.body.partition(b"event: connected\ndata: ")[2].partition(b"\n")[0]
    return str(msgspec.json.decode(connected, type=dict[str, Any])["clientId"])


def nodes_of(stats: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(node["id"], node["clients"], node["workers"]) for node in stats["nodes"]]


async def test_a_stream_is_changed_and_closed_through_the_other_node() -> None:
    async with two_nodes() as (a, b, _):
        first, _ = await a.publish("news", "old", "missed")
        stream = await b.open_stream("/events/x")
        path = f"/clients/{client_of(stream)}"
        added = await ask(a, "PUT", f"{path}/channels/news?since={first}")
        assert (added.status_code, "news" in added.json()["channels"]) == (200, True)
        await stream.until(b"data: missed\n")
        await a.publish("news", "live")
        await stream.until(b"data: live\n")
        removed = await ask(a, "DELETE", f"{path}/channels/news")
        assert (removed.status_code, "news" in removed.json()["channels"]) == (200, False)
        await a.publish("news", "unwanted")
        await a.publish("x", "wanted")
        await stream.until(b"data: wanted\n")
        assert b"unwanted" not in stream.body
        assert (await ask(a, "DELETE", path)).json() == {"closed": 1}
        await stream.until_end()
        assert (await ask(a, "DELETE", path)).status_code == 404


async def test_a_users_streams_are_closed_wherever_they_are() -> None:
    async with two_nodes() as (a, b, _):
        streams = [await n.open_stream("/events/x?user=u") for n in (a, b)]
        assert (await ask(a, "DELETE", "/users/u")).json() == {"closed": 2}
        for stream in streams:
            await stream.until_end()


async def test_both_nodes_count_both_and_a_dead_one_is_gone_within_seconds() -> None:
    async with two_nodes() as (a, b, _):
        for n in (a, b, b):
            await n.open_stream("/events/x")
        for n in (a, b):
            stats = await n.stats()
            assert (stats["clients"], stats["missing"]) == (3, 0)
            assert nodes_of(stats) == [("a", 1, 1), ("b", 2, 1)]
            counted = (await n.get("/channels/x")).json()
            assert counted["nodes"] == [{"id": "a", "clients": 1}, {"id": "b", "clients": 2}]
        gone = client_of(await b.open_stream("/events/x"))
        b.signal(signal.SIGKILL)

        async def is_gone() -> bool:
            stats = await a.stats()
            return stats["missing"] == 0 and nodes_of(stats) == [("a", 1, 1)]

        await eventually(is_gone)
        assert (await ask(a, "DELETE", f"/clients/{gone}")).status_code == 404


async def test_a_worker_that_has_died_is_missed_no_longer_than_its_supervisor_needs() -> None:
    """Its sibling takes its tag off the list, on which it would stay for 30 seconds."""
    flags = ("--workers", "2", "--redis-timeout", "15")
    async with redis_server() as redis, node("--redis", redis.url, *flags) as n:

        async def are_listed() -> bool:
            return int(await redis.call("ZCARD", "gateway:workers")) == 2

        await eventually(are_listed)
        os.kill(n.workers()[0], signal.SIGKILL)
        await n.until("was ended by SIGKILL")

        async def is_done() -> bool:
            return (await ask(n, "DELETE", "/users/u")).status_code == 200

        await eventually(is_done)


async def test_a_node_that_hangs_holds_nobody_up() -> None:
    async with two_nodes() as (a, b, _):
        stream = await b.open_stream("/events/x?user=u")
        await b.stop()
        stats = await a.stats()
        assert (stats["missing"], nodes_of(stats)) == (1, [("a", 0, 1)])
        for path in (f"/clients/{client_of(stream)}", "/users/u"):
            answer = await ask(a, "DELETE", path)
            assert (answer.status_code, answer.json()["outcome"]) == (503, "unknown")
        b.signal(signal.SIGCONT)


async def test_while_redis_is_away_a_node_still_does_what_it_can_by_itself() -> None:
    async with two_nodes() as (a, b, redis):
        own, other = await a.open_stream("/events/x"), await b.open_stream("/events/x")
        await redis.kill()

        async def is_noticed() -> bool:
            return (await a.get("/stats")).status_code == 503

        await eventually(is_noticed)
        assert (await ask(a, "DELETE", f"/clients/{client_of(other)}")).status_code == 503
        assert (await ask(a, "DELETE", f"/clients/{client_of(own)}")).json() == {"closed": 1}
        await own.until_end()
