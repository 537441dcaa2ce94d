"""What every registry of token streams promises, held against each of them; see
`gateway.relay.registry`."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
import redis
import trio
from buses import Wall
from redis_buses import QUICK, Cluster, Node, cluster
from redis_scripts import configured
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config import Config
from gateway.errors import Conflict, Unavailable
from gateway.names import RAW_SUFFIX, stream_channel
from gateway.relay import redis_registry as redis_module
from gateway.relay.record import Format, Record, new_id
from gateway.relay.redis_registry import GRACE_SECONDS, RedisRegistry
from gateway.relay.registry import (
    LEASE_SECONDS,
    MAX_OVERDUE,
    SWEEP_SECONDS,
    Found,
    MemoryRegistry,
    Registry,
    RegistryStatistics,
)

LEASE_MS = int(LEASE_SECONDS * 1000)

CONFIG = Config(redis_timeout=20.0)


async def until(holds: Callable[[], bool]) -> None:
    """Return once ``holds``, of what nobody tells."""
    with trio.fail_after(15):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.005)


def record(channel: str | None = None, **more: Any) -> Record:
    id = new_id()
    name = channel or stream_channel(id)
    return Record(id, name, name + RAW_SUFFIX, Format.OPENAI, 1, "up", "model", **more)


@dataclass
class Worker:
    """A registry that runs unless it is paused, and what it has lost."""

    registry: Registry
    nursery: trio.Nursery
    node: Node | None = None
    lost: list[str] = field(default_factory=list)
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self) -> None:
        with trio.CancelScope() as self._scope:
            await self.registry.run()

    async def start(self) -> "Worker":
        """Return when its leases have been renewed."""
        self.nursery.start_soon(self.run)
        if isinstance(self.registry, RedisRegistry):
            renewed = self.registry._renewed_at
            registry = self.registry
            await until(lambda: registry._renewed_at > renewed)
        return self

    def pause(self) -> None:
        self._scope.cancel()

    def lose(self, one: Record) -> Callable[[], None]:
        return lambda: self.lost.append(one.id)

    async def open(self, one: Record, request: bytes = b"") -> Record:
        await self.registry.open(one, self.lose(one), request)
        return one

    async def claim(self, one: Record) -> bool:
        return await self.registry.claim(one.id, self.lose(one))

    async def restart(self, one: Record) -> bytes | None:
        return await self.registry.restart(one.id, self.lose(one))

    async def owner(self, one: Record) -> str | None:
        found = await self.registry.find(one.id)
        assert found is not None
        assert found.record == one
        return found.owner


class Workers:
    """Of one cluster, each with a link of its own. Their leases run out by the cluster's wall."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.wall = cluster.wall

    async def start(self, config: Config = CONFIG) -> Worker:
        node = await self.cluster.node(config=config)
        registry = RedisRegistry(
            node.bus._config,
            node.bus.commands,
            worker=node.bus._worker,
            now_ms=lambda: self.cluster.wall(),
        )
        return await Worker(registry, self.cluster.nursery, node).start()

    async def several(self, count: int, config: Config = CONFIG) -> list[Worker]:
        return [await self.start(config) for _ in range(count)]


@pytest.fixture
async def workers(
    redis_port: int, new_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Workers]:
    """Who take the dead for dead at once."""
    monkeypatch.setattr(redis_module, "GRACE_SECONDS", 0.0)
    async with cluster(redis_port, new_prefix) as nodes:
        with trio.fail_after(20):
            yield Workers(nodes)


Make: TypeAlias = Callable[..., Awaitable[Worker]]


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture(params=["memory", "redis"])
async def make(
    request: pytest.FixtureRequest,
    redis_port: int,
    new_prefix: str,
    nursery: trio.Nursery,
    wall: Wall,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Make]:
    async def in_memory(config: Config = CONFIG) -> Worker:
        return await Worker(MemoryRegistry(config, "worker1", wall), nursery).start()

    if request.param == "memory":
        yield in_memory
        return
    monkeypatch.setattr(redis_module, "GRACE_SECONDS", 0.0)
    async with cluster(redis_port, new_prefix) as nodes:
        nodes.wall = wall
        with trio.fail_after(20):
            yield Workers(nodes).start


@pytest.fixture
async def worker(make: Make) -> Worker:
    return await make()


async def overdue(one: Worker, wall: Wall, *records: Record) -> None:
    """Have streams found overdue that were released before."""
    assert {*await one.registry.overdue()} == {each.id for each in records}


# -- records


async def test_a_stream_is_found_with_its_record_and_who_makes_it(worker: Worker) -> None:
    one = await worker.open(
        record(user="u\N{SNOWMAN}", publisher="key:a", idempotent=True), b"\x00\xff"
    )
    assert await worker.registry.find(one.id) == Found(one, "worker1")
    await worker.registry.finish(one.id)
    assert await worker.registry.find(one.id) == Found(one, None, is_over=True)
    assert await worker.registry.find(new_id()) is None


async def test_a_stream_is_found_by_either_of_its_channels(worker: Worker) -> None:
    one = await worker.open(record("chat.1"))
    for name in ("chat.1", "chat.1.raw"):
        assert await worker.registry.find_by_channel(name) == Found(one, "worker1")
    for name in ("chat", one.id, "chat.1.raw.raw"):
        assert await worker.registry.find_by_channel(name) is None


async def test_two_streams_never_have_one_channel(worker: Worker) -> None:
    one = await worker.open(record("chat.1"))
    for channel in ("chat.1", "chat.1.raw"):
        with pytest.raises(Conflict, match="another token stream's"):
            await worker.open(record(channel))
    await worker.open(record("chat"))
    await worker.registry.finish(one.id)
    with pytest.raises(Conflict):  # its events are read there
        await worker.open(record("chat.1"))
    assert worker.registry.statistics().held == 1


async def test_what_was_refused_has_changed_nothing(worker: Worker) -> None:
    await worker.open(record("a.raw"))
    refused = record("a")  # its raw one is taken
    with pytest.raises(Conflict):
        await worker.open(refused)
    assert await worker.registry.find(refused.id) is None
    await worker.open(Record(new_id(), "a", "a", Format.SSE, 1))


async def test_a_record_is_forgotten_some_time_after_the_end_and_its_channel_free(
    make: Make, wall: Wall
) -> None:
    worker = await make(Config(stream_seconds=0.2))
    one = await worker.open(record("chat.1"))
    other = await worker.open(record("chat.2"))
    await worker.registry.finish(one.id)
    with trio.fail_after(10):
        while await worker.registry.find(one.id) is not None:
            wall.ms += 10
            await trio.sleep(0.01)
    await worker.open(record("chat.1"))
    assert await worker.owner(other) == "worker1"


async def test_what_is_forgotten_was_never_opened(worker: Worker) -> None:
    one = await worker.open(record("chat.1"))
    released, ended = await worker.open(record("a")), await worker.open(record("b"))
    await worker.registry.release(released.id, 60.0)
    await worker.registry.finish(ended.id)
    for id in (one.id, one.id, released.id, ended.id, new_id()):
        worker.registry.forget(id)
    with trio.fail_after(5):
        while await worker.registry.find(one.id) is not None:  # noqa: ASYNC110
            await trio.sleep(0.005)
    await worker.open(record("chat.1"))
    for kept in (released, ended):  # which somebody may have been told of
        assert await worker.owner(kept) is None
    assert (worker.lost, worker.registry.statistics().held) == ([], 1)


# -- leases


async def test_what_is_released_is_overdue_when_its_time_is_over(
    worker: Worker, wall: Wall
) -> None:
    one, held = await worker.open(record()), await worker.open(record())
    await worker.registry.release(one.id, 60.0)
    assert (await worker.owner(one), await worker.owner(held)) == (None, "worker1")
    wall.ms += 59_999
    assert list(await worker.registry.overdue()) == []
    wall.ms += 1
    await overdue(worker, wall, one)
    assert worker.registry.statistics().held == 1
    assert worker.lost == []


async def test_what_nobody_deals_with_is_overdue_again_after_a_lease(
    worker: Worker, wall: Wall
) -> None:
    one = await worker.open(record())
    await worker.registry.release(one.id, 0.0)
    for _ in range(3):
        await overdue(worker, wall, one)
        assert list(await worker.registry.overdue()) == []
        wall.ms += LEASE_MS - 1
        assert list(await worker.registry.overdue()) == []
        wall.ms += 1
    await worker.registry.finish(one.id)
    assert list(await worker.registry.overdue()) == []


async def test_so_many_are_overdue_at_a_time_and_each_once(worker: Worker, wall: Wall) -> None:
    ids = set()
    for _ in range(2 * MAX_OVERDUE + 1):
        one = await worker.open(record())
        await worker.registry.release(one.id, 0.0)
        ids.add(one.id)
    found = [list(await worker.registry.overdue()) for _ in range(4)]
    assert [len(each) for each in found] == [MAX_OVERDUE, MAX_OVERDUE, 1, 0]
    assert {id for each in found for id in each} == ids


async def test_what_nobody_holds_can_be_claimed_once(worker: Worker, wall: Wall) -> None:
    one = await worker.open(record())
    assert not await worker.claim(one)
    for seconds in (60.0, 0.0):
        await worker.registry.release(one.id, seconds)
        assert await worker.claim(one)
        assert not await worker.claim(one)
        assert await worker.owner(one) == "worker1"
    await worker.registry.release(one.id, 0.0)
    await overdue(worker, wall, one)
    assert await worker.claim(one)
    wall.ms += 60_000
    await until(lambda: worker.registry.statistics().held == 1)
    await worker.registry.finish(one.id)
    assert not await worker.claim(one)
    assert not await worker.claim(record())
    assert worker.lost == []


async def test_to_finish_or_release_again_changes_nothing(worker: Worker, wall: Wall) -> None:
    one, other = await worker.open(record()), await worker.open(record())
    for _ in range(2):
        await worker.registry.finish(one.id)
        await worker.registry.release(one.id, 0.0)
        await worker.registry.finish(new_id())
        await worker.registry.release(new_id(), 0.0)
    assert await worker.owner(one) is None
    assert list(await worker.registry.overdue()) == []
    assert worker.registry.statistics().held == 1
    assert await worker.owner(other) == "worker1"


# -- the fence


async def test_who_holds_a_stream_may_begin(worker: Worker, wall: Wall) -> None:
    for idempotent in (False, True):
        one = await worker.open(record(idempotent=idempotent), b"request")
        assert await worker.registry.begin(one.id)
        assert await worker.registry.begin(one.id)
        await worker.registry.release(one.id, 0.0)
        assert not await worker.registry.begin(one.id)
        assert await worker.claim(one)
        assert await worker.registry.begin(one.id)
        await worker.registry.finish(one.id)
        assert not await worker.registry.begin(one.id)
    assert not await worker.registry.begin(new_id())


async def test_an_overdue_stream_that_has_not_begun_is_restarted_once(
    worker: Worker, wall: Wall
) -> None:
    request = bytes(range(256))
    one = await worker.open(record(idempotent=True), request)
    assert await worker.restart(one) is None  # it is held
    await worker.registry.release(one.id, 60.0)
    assert await worker.restart(one) is None  # its producer may come back
    wall.ms += 60_000
    await overdue(worker, wall, one)
    assert await worker.restart(one) == request
    assert await worker.owner(one) == "worker1"
    assert worker.registry.statistics().held == 1
    assert await worker.registry.begin(one.id)
    await worker.registry.release(one.id, 0.0)
    await overdue(worker, wall, one)
    assert await worker.restart(one) is None


async def test_a_stream_that_was_restarted_is_not_again_though_it_has_not_begun(
    worker: Worker, wall: Wall
) -> None:
    one = await worker.open(record(idempotent=True), b"request")
    for expected in (b"request", None):
        await worker.registry.release(one.id, 0.0)
        await overdue(worker, wall, one)
        assert await worker.restart(one) == expected


async def test_what_has_begun_or_is_not_idempotent_or_is_too_long_is_not_restarted(
    make: Make, wall: Wall
) -> None:
    worker = await make(Config(max_body_bytes=100))
    begun = await worker.open(record(idempotent=True), b"request")
    assert await worker.registry.begin(begun.id)
    plain = await worker.open(record(), b"request")
    long = await worker.open(record(idempotent=True), b"x" * 101)
    fits = await worker.open(record(idempotent=True), b"x" * 100)
    ended = await worker.open(record(idempotent=True), b"request")
    for one in (begun, plain, long, fits):
        await worker.registry.release(one.id, 0.0)
    await worker.registry.finish(ended.id)
    await overdue(worker, wall, begun, plain, long, fits)
    told = [await worker.restart(one) for one in (begun, plain, long, fits, ended)]
    assert told == [None, None, None, b"x" * 100, None]


async def test_both_registries_say_the_same_of_whatever_is_asked(
    workers: Workers, wall: Wall, nursery: trio.Nursery
) -> None:
    in_redis = await workers.start()
    workers.cluster.wall = wall
    memory = await Worker(MemoryRegistry(CONFIG, "worker1", wall), nursery).start()
    both = (in_redis, memory)
    for seed in range(100):
        chance = random.Random(seed)
        streams = [record(idempotent=bool(n)) for n in range(3)]
        streams.append(Record(new_id(), streams[0].raw, streams[0].raw, Format.SSE, 1))
        done: list[str] = []
        for _ in range(25):
            stream = chance.choice(streams)
            what, ask = chance.choice(list(QUESTIONS.items()))
            done.append(f"{what} {streams.index(stream)}")
            if what == "time":
                wall.ms += chance.choice([1, LEASE_MS - 1, LEASE_MS, 2 * LEASE_MS])
                await renew(in_redis)
            told = [await ask(one, stream) for one in both]
            assert told[0] == told[1], done
            found = [await one.registry.find(stream.id) for one in both]
            assert found[0] == found[1], done
        for one in both:
            for stream in streams:
                await one.registry.finish(stream.id)
            assert one.registry.statistics().held == 0
            assert one.lost == []


async def _open(one: Worker, stream: Record) -> object:
    if await one.registry.find(stream.id) is not None:
        return None
    try:
        return await one.open(stream, b"request")
    except Conflict:
        return Conflict


async def _overdue(one: Worker, stream: Record) -> object:
    return sorted(await one.registry.overdue())


async def _nothing(one: Worker, stream: Record) -> object:
    return None


QUESTIONS: dict[str, Callable[[Worker, Record], Awaitable[object]]] = {
    "open": _open,
    "begin": lambda one, stream: one.registry.begin(stream.id),
    "release for a while": lambda one, stream: one.registry.release(stream.id, LEASE_SECONDS),
    "release": lambda one, stream: one.registry.release(stream.id, 0.0),
    "claim": lambda one, stream: one.claim(stream),
    "finish": lambda one, stream: one.registry.finish(stream.id),
    "overdue": _overdue,
    "restart": lambda one, stream: one.restart(stream),
    "time": _nothing,
}


# -- in memory


def in_memory(wall: Wall, **settings: Any) -> MemoryRegistry:
    return MemoryRegistry(Config(**settings), "worker1", wall)


async def test_in_memory_what_has_ended_makes_room_and_what_is_made_does_not(
    wall: Wall, nursery: trio.Nursery
) -> None:
    worker = Worker(in_memory(wall, max_channels=3), nursery)
    first, second, third = [await worker.open(record()) for _ in range(3)]
    for one in (third, second):
        await worker.registry.finish(one.id)
    newer = [await worker.open(record()) for _ in range(2)]
    with pytest.raises(Unavailable, match="max_channels"):
        await worker.open(record())
    kept = [one for one in (first, second, third, *newer) if await worker.registry.find(one.id)]
    assert kept == [first, *newer]
    assert not worker.lost
    assert worker.registry.statistics() == RegistryStatistics(records=3, evicted=2, held=3)
    await worker.registry.finish(first.id)
    await worker.open(record(third.channel))  # which is free


async def test_in_memory_what_is_over_goes_by_itself(
    wall: Wall, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    worker = await Worker(in_memory(wall, stream_seconds=60.0), nursery).start()
    for _ in range(5):
        one = await worker.open(record(idempotent=True), b"request")
        await worker.registry.finish(one.id)
    wall.ms += 59_999
    await trio.sleep(1.5 * SWEEP_SECONDS)
    assert worker.registry.statistics().records == 5
    wall.ms += 1
    await trio.sleep(SWEEP_SECONDS)
    assert worker.registry.statistics() == RegistryStatistics()
    registry = worker.registry
    assert isinstance(registry, MemoryRegistry)
    assert [*registry._channels, *registry._open, *registry._over, *registry._left] == []


async def test_in_memory_a_stream_that_is_held_is_never_overdue(
    wall: Wall, nursery: trio.Nursery
) -> None:
    worker = Worker(in_memory(wall), nursery)
    await worker.open(record())
    wall.ms += 86_400_000
    assert list(await worker.registry.overdue()) == []


# -- workers on one Redis


async def test_a_worker_that_stands_still_for_longer_than_its_leases_loses_its_streams(
    workers: Workers,
) -> None:
    dead, alive = await workers.several(2)
    streams = [await dead.open(record()) for _ in range(3)]
    own = await alive.open(record())
    dead.pause()
    workers.wall.ms += LEASE_MS - 1
    assert list(await alive.registry.overdue()) == []
    workers.wall.ms += 1
    await alive.start()
    found = [*await alive.registry.overdue(), *await alive.registry.overdue()]
    assert sorted(found) == sorted(one.id for one in streams)
    assert [await alive.owner(one) for one in (*streams, own)] == [None, None, None, "worker2"]
    await alive.registry.finish(streams[0].id)
    assert await alive.claim(streams[1])
    assert not await dead.claim(streams[2])  # which the other one deals with
    assert dead.lost == []
    await dead.start()
    assert sorted(dead.lost) == sorted(one.id for one in streams)
    assert dead.registry.statistics().held == 0
    assert alive.registry.statistics().held == 2
    assert [await dead.registry.begin(one.id) for one in streams] == [False] * 3
    assert alive.lost == []


async def test_a_worker_that_comes_back_before_anybody_has_looked_keeps_its_streams(
    workers: Workers,
) -> None:
    one, other = await workers.several(2)
    stream = await one.open(record())
    one.pause()
    workers.wall.ms += 10 * LEASE_MS
    await one.start()
    await other.start()
    assert list(await other.registry.overdue()) == []
    assert await one.owner(stream) == "worker1"
    assert one.lost == []


async def test_thousands_of_leases_are_renewed(workers: Workers) -> None:
    one, other = await workers.several(2)
    registry = one.registry
    assert isinstance(registry, RedisRegistry)
    turns = trio.CapacityLimiter(100)

    async def open_one() -> None:
        async with turns:
            await one.open(record())

    async with trio.open_nursery() as nursery:
        for _ in range(1001):
            nursery.start_soon(open_one)
    for _ in range(3):
        workers.wall.ms += LEASE_MS - 1
        await registry._renew()
    assert list(await other.registry.overdue()) == []
    assert (one.lost, registry.statistics().held) == ([], 1001)


async def test_of_many_workers_that_look_at_once_each_stream_is_given_to_one(
    workers: Workers,
) -> None:
    dead, *alive = await workers.several(4)
    streams = [await dead.open(record()) for _ in range(250)]
    dead.pause()
    workers.wall.ms += LEASE_MS
    found: list[str] = []

    async def look(one: Worker) -> None:
        for _ in range(3):
            found.extend(await one.registry.overdue())

    async with trio.open_nursery() as nursery:
        for one in alive:
            nursery.start_soon(look, one)
    assert sorted(found) == sorted(one.id for one in streams)


async def test_of_many_workers_that_claim_at_once_one_has_the_stream(workers: Workers) -> None:
    all_of_them = await workers.several(4)
    for turn in range(30):
        stream = await all_of_them[turn % 4].open(record())
        await all_of_them[turn % 4].registry.release(stream.id, 60.0)
        claimed: list[Worker] = []

        async def claim(one: Worker, stream: Record, claimed: list[Worker]) -> None:
            if await one.claim(stream):
                claimed.append(one)

        async with trio.open_nursery() as nursery:
            for one in all_of_them:
                nursery.start_soon(claim, one, stream, claimed)
        [owner] = claimed
        assert [await one.registry.begin(stream.id) for one in all_of_them] == [
            one is owner for one in all_of_them
        ]


@pytest.mark.parametrize("given_out", [False, True])
async def test_either_the_first_worker_begins_or_another_one_restarts(
    workers: Workers, given_out: bool
) -> None:
    first, second, third = await workers.several(3)
    outcomes = set()
    for turn in range(60):
        stream = await first.open(record(idempotent=True), b"request")
        first.pause()
        workers.wall.ms += LEASE_MS
        if given_out:
            assert stream.id in await second.registry.overdue()
        began: list[bool] = []
        restarted: list[bytes | None] = []

        async def begin(stream: Record, began: list[bool]) -> None:
            began.append(await first.registry.begin(stream.id))

        async def restart(one: Worker, stream: Record, told: list[bytes | None]) -> None:
            told.append(await one.restart(stream))

        async with trio.open_nursery() as nursery:
            if turn % 2:
                nursery.start_soon(restart, second, stream, restarted)
            nursery.start_soon(begin, stream, began)
            nursery.start_soon(restart, third, stream, restarted)
            if not turn % 2:
                nursery.start_soon(restart, second, stream, restarted)
        writers = began.count(True) + restarted.count(b"request")
        assert writers == (0 if given_out and not any(restarted) else 1)
        outcomes.add((began.count(True), restarted.count(b"request")))
        may = [await one.registry.begin(stream.id) for one in (first, second, third)]
        assert may.count(True) == writers
        for one in (first, second, third):
            await one.registry.finish(stream.id)
    assert (0, 1) in outcomes


async def renew(one: Worker) -> None:
    assert isinstance(one.registry, RedisRegistry)
    await one.registry._renew()


async def test_what_redis_has_lost_is_entered_anew_by_who_makes_it(
    workers: Workers, client: redis.Redis
) -> None:
    """But for the request: whether anything has come of it, nobody knows."""
    one, other = await workers.several(2)
    opened = await one.open(record("a", idempotent=True), b"request")
    claimed, restarted = await one.open(record()), await one.open(record(idempotent=True), b"again")
    for stream in (claimed, restarted):
        await one.registry.release(stream.id, 0.0)
    await overdue(one, workers.wall, claimed, restarted)
    assert await one.claim(claimed)
    assert await one.restart(restarted) == b"again"
    client.delete(*all_keys(workers, client))
    await renew(one)
    for stream in (opened, claimed, restarted):
        assert await other.owner(stream) == "worker1"
        assert await one.registry.begin(stream.id)
    assert one.lost == []
    with pytest.raises(Conflict):
        await other.open(record("a"))
    await one.registry.finish(claimed.id)
    one.pause()
    workers.wall.ms += LEASE_MS
    await overdue(other, workers.wall, opened, restarted)
    assert await other.restart(opened) is None


def all_keys(workers: Workers, client: redis.Redis) -> list[bytes]:
    keys: Any = client.keys(workers.cluster.key("[tos]*"))
    return [key for key in keys if b":s:" not in key]


async def test_what_redis_has_lost_and_another_stream_has_the_channel_of_is_lost(
    workers: Workers, client: redis.Redis
) -> None:
    one, other = await workers.several(2)
    stream, kept = await one.open(record("a")), await one.open(record())
    one.pause()
    client.delete(*all_keys(workers, client))
    await other.open(record("a"))
    await renew(one)
    assert one.lost == [stream.id]
    assert await other.owner(kept) == "worker1"


@pytest.mark.parametrize("told", [b"", b"{}", b"\xff", b'{"id": "x", "format": "later"}'])
async def test_a_record_of_another_version_is_said_to_be_one_and_does_no_harm(
    workers: Workers, client: redis.Redis, told: bytes
) -> None:
    one = await workers.start()
    stream, kept = await one.open(record()), await one.open(record())
    client.hset(workers.cluster.key(f"t:{stream.id}"), "record", told)
    with pytest.raises(Unavailable, match="another version") as refusal:
        await one.registry.find(stream.id)
    assert refusal.value.extra["reason"] == "version"
    await one.registry.release(stream.id, 0.0)
    assert await one.claim(stream)
    await renew(one)
    assert one.lost == []
    client.delete(*all_keys(workers, client))
    await renew(one)
    assert one.lost == [stream.id]
    assert await one.owner(kept) == "worker1"


async def test_somebody_elses_key_in_the_place_of_a_record_harms_that_stream_alone(
    workers: Workers, client: redis.Redis
) -> None:
    one, other = await workers.several(2)
    stream, kept = await one.open(record()), await one.open(record())
    key = workers.cluster.key(f"t:{stream.id}")
    client.delete(key)
    client.set(key, "theirs")
    await renew(one)
    assert one.lost == [stream.id]
    assert not await other.claim(stream)
    one.pause()
    workers.wall.ms += LEASE_MS
    await overdue(other, workers.wall, kept)
    await other.registry.finish(stream.id)
    assert client.get(key) == b"theirs"


async def test_what_may_have_ended_and_been_forgotten_is_not_entered_anew(
    workers: Workers, client: redis.Redis
) -> None:
    one = await workers.start(Config(stream_seconds=0.05))
    stream = await one.open(record())
    one.pause()
    other = await workers.start(Config(stream_seconds=0.05))
    await other.registry.finish(stream.id)
    await until(lambda: not all_keys(workers, client))
    await one.start()
    assert one.lost == [stream.id]
    assert await one.registry.find(stream.id) is None


async def test_in_redis_everything_goes_by_itself_and_later_while_it_is_made(
    workers: Workers, client: redis.Redis
) -> None:
    one = await workers.start()
    stream = await one.open(record("a", idempotent=True), b"request")
    keys = [workers.cluster.key(name) for name in (f"t:{stream.id}", "o:a", "o:a.raw")]

    def left(key: str) -> int:
        told: Any = client.pttl(key)
        return int(told)

    for key in keys:
        assert 86_000_000 < left(key) <= 86_400_000
        client.pexpire(key, 60_000)
    registry = one.registry
    assert isinstance(registry, RedisRegistry)
    registry._touched_at -= 86_400 / 6
    await registry._renew()
    assert all(left(key) > 86_000_000 for key in keys)
    assert client.hget(keys[0], "request") == b"request"
    await one.registry.finish(stream.id)
    assert not client.hexists(keys[0], "request")
    for key in keys:
        client.pexpire(key, 60_000)
    await one.registry.finish(stream.id)
    assert all(0 < left(key) <= 60_000 for key in keys)
    assert not client.exists(workers.cluster.key("streams"))


async def test_a_lease_whose_record_has_gone_goes_when_somebody_looks(
    workers: Workers, client: redis.Redis
) -> None:
    one = await workers.start()
    client.zadd(workers.cluster.key("streams"), {"x": 1})
    assert list(await one.registry.overdue()) == []
    assert not client.exists(workers.cluster.key("streams"))


# -- links that are lost


ASK: dict[str, tuple[Callable[[Worker, Record], Awaitable[object]], object]] = {
    "open": (lambda one, stream: one.open(stream, b"request"), None),
    "begin": (lambda one, stream: one.registry.begin(stream.id), True),
    "release": (lambda one, stream: one.registry.release(stream.id, 60.0), None),
    "claim": (lambda one, stream: one.claim(stream), True),
    "restart": (lambda one, stream: one.restart(stream), b"request"),
    "finish": (lambda one, stream: one.registry.finish(stream.id), None),
}


@pytest.mark.parametrize("what", ASK)
async def test_whoever_asks_again_is_answered_the_same(workers: Workers, what: str) -> None:
    one, other = await workers.several(2)
    stream = record(idempotent=True)
    if what != "open":
        await one.open(stream, b"request")
    if what in ("claim", "restart"):
        await one.registry.release(stream.id, 0.0)
        assert list(await one.registry.overdue()) == [stream.id]
    assert one.node is not None
    one.node.link.hold_replies(of_subscriber=False)
    ask, expected = ASK[what]
    told: list[object] = []

    async def asking() -> None:
        told.append(await ask(one, stream))

    def state() -> Iterable[object]:
        return workers_state(workers, stream)

    before = list(state())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking)
        await until(lambda: list(state()) != before)
        one.node.link.cut_one(of_subscriber=False)
        one.node.link.release()
    assert told == [stream] if what == "open" else [expected]
    found = await other.registry.find(stream.id)
    assert found is not None
    assert found.owner == (None if what in ("release", "finish") else "worker1")
    assert one.lost == []


def workers_state(workers: Workers, stream: Record) -> Iterable[object]:
    with redis.Redis(port=workers.cluster.port) as client:
        yield client.hgetall(workers.cluster.key(f"t:{stream.id}"))


async def test_what_is_claimed_while_its_release_is_not_answered_stays_held(
    workers: Workers,
) -> None:
    one = await workers.start()
    assert one.node is not None
    for _ in range(5):
        stream = await one.open(record())
        one.node.link.cut()
        await until(lambda: not is_connected(one))
        claimed: list[bool] = []

        async def claim(stream: Record, claimed: list[bool]) -> None:
            claimed.append(await one.claim(stream))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.registry.release, stream.id, 60.0)
            await wait_all_tasks_blocked()
            nursery.start_soon(claim, stream, claimed)
            await wait_all_tasks_blocked()
            one.node.link.resume()
        await renew(one)
        assert (claimed, one.lost) == ([True], [])
        assert await one.owner(stream) == "worker1"


def is_connected(one: Worker) -> bool:
    assert one.node is not None
    return one.node.bus.commands.connected


async def test_without_a_link_whoever_asks_is_told_so_in_time(workers: Workers) -> None:
    one = await workers.start(QUICK)
    stream = await one.open(record())
    assert one.node is not None
    one.node.link.cut()
    asked: list[Callable[[], Awaitable[object]]] = [
        lambda: one.open(record()),
        lambda: one.registry.find(stream.id),
        lambda: one.registry.begin(stream.id),
        lambda: one.claim(record()),
        lambda: one.registry.restart(new_id(), lambda: None),
        lambda: one.registry.release(stream.id, 1.0),
        lambda: one.registry.finish(stream.id),
    ]
    refusals: list[str] = []

    async def ask(each: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(Unavailable) as refusal:
            await each()
        refusals.append(str(refusal.value.extra["reason"]))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for each in asked:
                nursery.start_soon(ask, each)
    assert refusals == ["bus"] * len(asked)
    await until(lambda: not is_connected(one))
    assert list(await one.registry.overdue()) == []


async def test_a_stream_whose_opening_was_not_answered_is_forgotten(
    workers: Workers, client: redis.Redis
) -> None:
    one = await workers.start(QUICK)
    assert one.node is not None
    one.node.link.hold_replies(of_subscriber=False)
    stream = record("chat.1")
    with pytest.raises(Unavailable):
        await one.open(stream)
    assert client.get(workers.cluster.key("o:chat.1")) == stream.id.encode()
    one.node.link.cut_one(of_subscriber=False)
    one.node.link.release()
    await until(lambda: not client.exists(workers.cluster.key("o:chat.1")))
    assert await one.registry.find(stream.id) is None
    await one.open(record("chat.1"))


async def test_while_redis_takes_no_writes_nobody_is_taken_for_dead(
    workers: Workers, client: redis.Redis
) -> None:
    one, other = await workers.several(2)
    await one.open(record())
    with configured(client, maxmemory=1, **{"maxmemory-policy": "noeviction"}):
        await until(lambda: other.registry.statistics().renewal_failures > 0)
        await until(lambda: one.registry.statistics().renewal_failures > 0)
        workers.wall.ms += LEASE_MS
        assert list(await other.registry.overdue()) == []
    await until(lambda: is_unbroken(one))
    await until(lambda: is_unbroken(other))
    assert list(await other.registry.overdue()) == []
    assert one.lost == []


def is_unbroken(one: Worker) -> bool:
    assert isinstance(one.registry, RedisRegistry)
    return one.registry._unbroken_since is not None


# -- in virtual time


class VirtualWall(Wall):
    """Goes with trio's clock."""

    def __call__(self) -> int:
        return self.ms + int(trio.current_time() * 1000)


ANSWER_SECONDS = 0.05
"""Real time that a Redis beside us takes for any answer, at the most; then virtual time goes on."""

SELDOM = Config(redis_timeout=600.0)
"""Nothing that happens by itself makes time go on in steps."""


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    monkeypatch.setattr(redis_module, "RENEWALS", 2)
    return MockClock(autojump_threshold=ANSWER_SECONDS)


async def test_after_a_break_of_all_links_nobody_is_taken_for_dead_who_is_not(
    redis_port: int, new_prefix: str, slow_clock: MockClock
) -> None:
    async with cluster(redis_port, new_prefix) as nodes:
        nodes.wall = VirtualWall()
        workers = Workers(nodes)
        one, other, dead = await workers.several(3, SELDOM)
        stream, orphan = await one.open(record()), await dead.open(record())
        dead.pause()
        assert one.node is not None
        assert other.node is not None
        for each in (one.node, other.node):
            each.link.cut()
        await trio.sleep(LEASE_SECONDS + 1)
        other.node.link.resume()
        await trio.sleep(LEASE_SECONDS)
        assert is_unbroken(other)
        assert list(await other.registry.overdue()) == []  # though both leases have run out
        one.node.link.resume()
        found: list[str] = []
        began = trio.current_time()
        while not found:
            found.extend(await other.registry.overdue())
            await trio.sleep(2.0)
        assert found == [orphan.id]
        assert trio.current_time() - began <= GRACE_SECONDS
        assert (one.lost, await one.owner(stream)) == ([], "worker1")


async def test_who_has_stood_still_himself_takes_nobody_for_dead(
    redis_port: int, new_prefix: str, slow_clock: MockClock
) -> None:
    async with cluster(redis_port, new_prefix) as nodes:
        nodes.wall = VirtualWall()
        one, other = await Workers(nodes).several(2, SELDOM)
        stream = await one.open(record())
        await trio.sleep(GRACE_SECONDS + 1)
        for each in (one, other):
            each.pause()
        await trio.sleep(2 * LEASE_SECONDS)
        assert list(await other.registry.overdue()) == []
        await other.start()
        assert list(await other.registry.overdue()) == []
        await one.start()
        assert one.lost == []
        one.pause()  # and now for good
        await trio.sleep(GRACE_SECONDS + 1)
        assert list(await other.registry.overdue()) == [stream.id]


async def test_what_was_pushed_to_a_worker_that_died_waits_for_whoever_pushes(
    workers: Workers,
) -> None:
    dead, other = await workers.several(2, Config(push_lease=15.0))
    one, claimed = (Record(new_id(), name, name, Format.PUSH, 1) for name in ("a", "b"))
    await dead.open(one)
    await dead.open(claimed)
    dead.pause()
    workers.wall.ms += LEASE_MS
    assert list(await other.registry.overdue()) == []
    assert await other.owner(one) is None
    assert await other.claim(claimed)
    workers.wall.ms += 14_999
    assert list(await other.registry.overdue()) == []
    workers.wall.ms += 1
    assert list(await other.registry.overdue()) == [one.id]
