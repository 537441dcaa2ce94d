"""Nodes fail, and crowds and long histories come upon them, under load; every event is counted."""

import os
import signal

from load import FLAGS, cluster, load_on, ordinary
from process import eventually, node
from redis_server import RedisServer, redis_server
from verdict import Dropped

MIB = 1024 * 1024


async def test_clients_of_a_node_that_is_killed_go_on_elsewhere() -> None:
    async with (
        redis_server() as redis,
        cluster(redis.url, redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load)
        await load.connected()
        for n in nodes[:2]:
            await load.more(300)
            n.signal(signal.SIGKILL)
        await load.more(300)
        await load.finish()
        assert load.defects() == []
        assert not load.gaps


async def test_clients_of_a_worker_that_is_killed_go_on_at_its_siblings() -> None:
    """And another takes its place."""
    async with (
        redis_server() as redis,
        node(*FLAGS, "--redis", redis.url, "--workers", "2") as n,
        load_on([n]) as load,
    ):
        ordinary(load)
        await load.connected()
        for _ in range(3):
            await load.more(300)
            victim, sibling = n.workers()
            os.kill(victim, signal.SIGKILL)

            async def is_replaced(victim: int = victim, sibling: int = sibling) -> bool:
                return len(n.workers()) == 2 and {victim, sibling} & {*n.workers()} == {sibling}

            await eventually(is_replaced)
        await load.more(300)
        await load.finish()
        assert load.defects() == []
        assert not load.gaps


CROWD, MISSED = 500, 500


async def calls(redis: RedisServer, *commands: str) -> int:
    """How often these were executed so far."""
    stats = await redis.info("commandstats")
    found = [stats.get(f"cmdstat_{name}", "calls=0").split(",")[0] for name in commands]
    return sum(int(text.removeprefix("calls=")) for text in found)


async def test_a_crowd_that_comes_back_at_once_costs_redis_a_handful_of_reads() -> None:
    async with (
        redis_server() as redis,
        cluster(redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        for _ in range(4):
            load.subscribe("other")
        load.publish("other")
        await load.publish_at_once("old", ["crowd"], MISSED + 1)
        position = next(sent.position for sent in load.ledger if sent.data == "old/0")
        before = await calls(redis, "xrange", "xrevrange", "xread")
        for _ in range(CROWD):
            load.subscribe("crowd", last_event_id=str(position), ports=[nodes[1].port])
        await load.connected()
        await load.finish()
        reads = await calls(redis, "xrange", "xrevrange", "xread") - before
        assert load.defects() == []
        assert not load.gaps
        assert sum(len(s.received) == MISSED + 1 for s in load.subscribers) == CROWD
        assert reads < CROWD / 10


async def test_a_long_history_is_read_whole_in_little_memory_while_more_is_published() -> None:
    events = 20_000
    async with (
        redis_server() as redis,
        cluster(redis.url) as [n],
        load_on([n]) as load,
    ):
        await load.publish_at_once("old", ["long"], events)
        before = n.resident_bytes()
        load.publish("long")
        reader = load.subscribe("long", last_event_id="earliest")
        await load.more(500)
        await load.finish()
        growth = n.resident_bytes() - before
        assert load.defects() == []
        assert not load.gaps
        assert not any(isinstance(record, Dropped) for record in reader.recording.records)
        assert len(reader.received) > events + 500
        assert growth < 32 * MIB


async def test_a_client_of_twenty_channels_that_comes_and_goes_gets_each_event_once() -> None:
    channels = [f"channel.{number}" for number in range(20)]
    pairs = list(zip(channels[::2], channels[1::2], strict=True))
    async with (
        redis_server() as redis,
        cluster(redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        restless = load.subscribe(*channels, stay=0.1)
        load.publish(*channels)
        load.publish(*pairs, batch=1, pause=0.005)

        async def has_come_often() -> bool:
            return restless.connections >= 50

        await eventually(has_come_often)
        await load.finish()
        assert load.defects() == []
        assert not load.gaps
