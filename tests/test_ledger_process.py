"""Limits that two nodes keep together, over a real Redis."""

import os
import signal
import time

import httpx
from process import NodeProcess, eventually, in_parallel, node
from redis_server import redis_server

from gateway.bus.leases import LEASE_SECONDS

LINES = 500


async def status(at: NodeProcess, target: str) -> int:
    return (await at.get(target)).status_code


async def test_one_stream_too_many_ends_the_oldest_at_whichever_node_it_is() -> None:
    async with redis_server() as redis:
        options = ("--redis", redis.url, "--max-streams-per-user", "2")
        async with node(*options) as a, node(*options) as b:
            first = await a.open_stream("/events/x?user=u")
            second = await b.open_stream("/events/x?user=u")
            third = await b.open_stream("/events/x?user=u")
            await first.until_end()
            assert first.body.endswith(b'.closed\nevent: closed\ndata: {"reason":"replaced"}\n\n')
            await a.open_stream("/events/x?user=u")
            await second.until_end()
            await b.publish("x", "still here")
            await third.until(b"data: still here\n")
            assert await a.metric('closed_total{reason="replaced"}') == 1
            assert await b.metric("replaced_total") == 1
            assert await a.metric("leases") == await b.metric("leases") == 1


async def test_what_a_killed_node_has_left_locks_nobody_out_for_long() -> None:
    async with redis_server() as redis:
        options = ("--redis", redis.url, "--redis-timeout", "0.5")
        limits = ("--max-streams-per-user", "1", "--user-limit", "refuse")
        async with node(*options, *limits) as a, node(*options, *limits) as b:
            await b.open_stream("/events/x?user=u")
            assert await status(a, "/poll/x?user=u&wait=0") == 503
            b.signal(signal.SIGKILL)
            killed = time.monotonic()

            async def is_let_in() -> bool:
                return await status(a, "/poll/x?user=u&wait=0") == 200

            await eventually(is_let_in)
            assert time.monotonic() - killed < LEASE_SECONDS / 10

            async def is_given_back() -> bool:
                return bool(await redis.call("HLEN", "gateway:u:user:u") == 0)

            await eventually(is_given_back)  # which is told behind the answer


async def test_streams_of_a_worker_that_was_killed_make_room_at_once() -> None:
    async with redis_server() as redis:
        limits = ("--max-streams-per-user", "1", "--user-limit", "refuse")
        async with node("--redis", redis.url, "--workers", "2", *limits) as one:

            async def both_serve() -> bool:
                return await one.metric("workers") == 2

            await eventually(both_serve)
            await one.open_stream("/events/x?user=u")
            assert await status(one, "/poll/x?user=u&wait=0") == 503
            for pid in one.workers():
                os.kill(pid, signal.SIGKILL)

            async def is_let_in() -> bool:
                try:
                    return await status(one, "/poll/x?user=u&wait=0") == 200
                except httpx.TransportError:
                    return False

            await eventually(is_let_in)


async def flood(at: NodeProcess, seconds: float) -> int:
    """How many events are taken of as many as can be sent."""
    taken = 0
    body = '{"channel":"a","data":"x"}\n' * LINES
    headers = {"Content-Type": "application/x-ndjson"}
    until = time.monotonic() + seconds
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        while time.monotonic() < until:
            answer = await client.post(f"{at.url}/publish", content=body, headers=headers)
            taken += answer.text.count('"id"')
    return taken


async def test_a_channels_rate_is_that_of_all_nodes_together() -> None:
    rate = 200
    async with redis_server() as redis:
        options = ("--redis", redis.url, "--channel-publish-rate", str(rate))
        async with node(*options) as a, node(*options) as b:
            taken: list[int] = []

            async def count(at: NodeProcess) -> None:
                taken.append(await flood(at, 2.0))

            begun = time.monotonic()
            await in_parallel([lambda: count(a), lambda: count(b)])
            passed = time.monotonic() - begun
            most = rate + rate * passed + 2 * rate / 10
            assert rate < sum(taken) <= most
            assert await a.metric('refused_total{reason="channel-rate"}') > 0
            assert await b.metric("rate_buckets") == 1
