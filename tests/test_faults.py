"""Redis and the links to it fail under load, and nothing is lost silently.

Real servers, real nodes; every event is counted, to the last one.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
from link import link_to
from load import Load, cluster, load_on, ordinary
from process import eventually
from redis_server import RedisServer, redis_server
from verdict import Gap

SILENCE = 2.5
"""Seconds for which Redis says nothing: more than twice what a node waits for it."""


def reasons(load: Load) -> set[str]:
    return {gap.reason for gap in load.gaps}


def all_told(load: Load, reason: str) -> bool:
    """Whether each client that stayed or came back was told so."""
    return all(
        any(gap.reason == reason for gap in subscriber.recording.gaps)
        for subscriber in load.subscribers
    )


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
async def test_connections_that_redis_kills_again_and_again_cost_nothing(kind: str) -> None:
    killed = 0
    async with (
        redis_server() as redis,
        cluster(redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load)
        await load.connected()
        for _ in range(10):
            await load.more(100)
            killed += await redis.call("CLIENT", "KILL", "TYPE", kind)
        await load.finish()
        assert load.defects() == []
        assert not load.gaps
        assert killed >= 10


async def test_a_redis_that_is_silent_for_too_long_costs_nothing() -> None:
    async with (
        redis_server() as redis,
        cluster(redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load)
        await load.connected()
        for _ in range(2):
            await load.more(200)
            redis.stop()
            await trio.sleep(SILENCE)
            redis.cont()
        await load.more(200)
        await load.finish()
        assert load.defects() == []
        assert not load.gaps


async def test_a_redis_that_is_killed_and_has_written_everything_down_costs_nothing() -> None:
    async with (
        redis_server(aof=True) as redis,
        cluster(redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load)
        await load.connected()
        for _ in range(3):
            await load.more(200)
            await redis.restart()
        await load.more(200)
        await load.finish()
        assert load.defects() == []
        assert not load.gaps


async def test_a_redis_that_may_have_lost_a_second_is_not_believed_blindly() -> None:
    """With appendfsync everysec a write may wait for two seconds beside a slow fsync."""
    async with (
        redis_server(aof=True, appendfsync="everysec") as redis,
        cluster(redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load, retries=False)
        await load.connected()
        for _ in range(2):
            await load.more(200)
            await redis.restart()
        await load.more(200)
        await load.finish()
        assert load.defects() == []
        assert reasons(load) <= {"restarted"}


LOSSES: dict[str, Callable[[RedisServer], Coroutine[Any, Any, None]]] = {
    "empty": RedisServer.restart_empty,
    "as it was some time ago": RedisServer.restore_snapshot,
}


@pytest.mark.parametrize("loss", LOSSES)
async def test_everybody_is_told_when_redis_comes_back(loss: str) -> None:
    """And life goes on: no position is issued twice, and what is published then arrives."""
    async with (
        redis_server() as redis,
        cluster(redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load, retries=False)
        await load.connected()
        await load.more(300)
        await redis.save_snapshot()
        await load.more(300)
        await LOSSES[loss](redis)
        await load.more(300)
        await load.finish()
        assert load.defects() == []
        assert reasons(load) == {"restarted"}
        assert all_told(load, "restarted")


async def test_a_client_that_was_away_is_told_that_redis_has_lost_what_it_missed() -> None:
    async with (
        redis_server() as redis,
        cluster(redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        await load.publish_at_once("kept", ["a"], 10)
        await redis.save_snapshot()
        await load.publish_at_once("lost", ["a"], 10)
        await redis.restore_snapshot()
        late = load.subscribe("a", last_event_id=str(load.ledger[4].position))
        await load.connected()
        await load.finish()
        assert load.defects() == []
        first = late.recording.records[0]
        assert isinstance(first, Gap)
        assert first.reason == "restarted"
        assert "a" in first.channels
        assert [record.data for record in late.recording.received] == [
            *(f"kept/{number}" for number in range(5, 10)),
            "last/0",
        ]


async def test_a_link_that_accepts_and_never_answers_costs_nothing_once_it_does() -> None:
    async with (
        redis_server() as redis,
        link_to(redis) as link,
        cluster(link.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load)
        await load.connected()
        await load.more(200)
        link.hold()
        before = link.accepted

        async def is_tried_again() -> bool:
            return link.accepted >= before + 3

        await eventually(is_tried_again)
        await load.more(100)
        link.resume()
        await load.more(200)
        await load.finish()
        assert load.defects() == []
        assert not load.gaps


async def test_a_link_that_is_cut_again_and_again_costs_nothing() -> None:
    async with (
        redis_server() as redis,
        link_to(redis) as link,
        cluster(link.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load)
        await load.connected()
        for _ in range(10):
            await load.more(100)
            link.cut()
            await load.more(20)
            link.resume()
        await load.finish()
        assert load.defects() == []
        assert not load.gaps


async def test_a_link_that_answers_and_carries_no_messages_is_found_out() -> None:
    """And only that connection is closed."""
    async with (
        redis_server() as redis,
        link_to(redis) as link,
        cluster(link.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load)
        await load.connected()
        await load.more(200)
        assert link.mute() == 1
        muted = {connection for connection in link.connections if connection.muted}
        others = link.connections - muted

        async def is_found_out() -> bool:
            return muted.isdisjoint(link.connections)

        await eventually(is_found_out)
        assert others <= link.connections
        await load.more(200)
        await load.finish()
        assert load.defects() == []
        assert not load.gaps


async def test_a_redis_that_evicts_is_warned_of_and_loses_nothing_silently() -> None:
    channels = [f"channel.{number}" for number in range(20)]
    async with (
        redis_server(maxmemory="6mb", maxmemory_policy="allkeys-lru") as redis,
        cluster(redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        for number in range(10):
            load.subscribe(*channels[number : number + 10])
            load.subscribe(*channels[number : number + 10], stay=0.5)
        await load.connected()
        for _ in range(2):
            load.publish(*channels, padding=1000, retries=False)

        async def has_evicted() -> bool:
            return int((await redis.info("stats"))["evicted_keys"]) > 1000

        await eventually(has_evicted)
        await load.more(1000)
        await load.finish()
        for n in nodes:
            assert "allkeys-lru" in n.output
            assert await n.metric("bus_evicted_keys_total") > 1000
        assert load.defects() == []


@pytest.mark.parametrize("key", ["clock", "epoch", "rules"])
async def test_life_goes_on_when_redis_evicts_what_the_nodes_keep_for_themselves(key: str) -> None:
    async with (
        redis_server() as redis,
        cluster(redis.url, redis.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load, retries=False)
        await load.connected()
        await load.more(200)
        assert await redis.call("DEL", f"gateway:{key}") == 1
        await load.more(500)
        await load.finish()
        assert load.defects() == []
