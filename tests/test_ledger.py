"""What every ledger promises, held against each of them; see the module `gateway.ledger`."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest
import redis
import trio
from buses import Wall
from redis_buses import QUICK, Cluster, Node, calls, cluster
from redis_scripts import Scripts
from redis_server import redis_server
from trio.testing import wait_all_tasks_blocked

from gateway import ledger as ledger_module
from gateway.bus import leases as leases_module
from gateway.bus import ledger as redis_module
from gateway.bus import spending as spending_module
from gateway.bus.leases import LEASE_SECONDS, RENEWALS
from gateway.bus.ledger import RedisLedger
from gateway.config import Config, UserLimit
from gateway.errors import BadRequest, ConfigError, Unavailable
from gateway.ledger import Ledger, MemoryLedger
from gateway.rates import Bucket
from gateway.revocation import MAX_ID_BYTES, MAX_REVOCATIONS, Kind, Revocation

ENDS_OLDEST = Config(max_streams_per_user=3)
REFUSES = Config(max_streams_per_user=3, user_limit=UserLimit.REFUSE)
HOUR = 3_600_000

_numbers = itertools.count()


def new_id(worker: str = "worker1") -> str:
    return f"{worker}.{next(_numbers)}"


async def until(holds: Callable[[], bool]) -> None:
    """Return once ``holds``, of what nobody tells."""
    with trio.fail_after(15):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.005)


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


class Workers:
    """Ledgers of one cluster, each of a worker with a link of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.replaced: list[str] = []
        """What a worker was told to end without having claimed anything."""

    async def start(self, config: Config = ENDS_OLDEST) -> tuple[RedisLedger, Node]:
        started: list[RedisLedger] = []

        def resumed() -> None:
            for each in started:
                each.read_again()

        node = await self.cluster.node(config=config, resumed=resumed)
        ledger = RedisLedger(
            node.bus._config,
            node.bus.commands,
            worker=node.bus._worker,
            replace=self.replaced.extend,
            now_ms=self.cluster.wall,
        )
        started.append(ledger)
        self.cluster.nursery.start_soon(ledger.run)
        await until(lambda: ledger.loaded)
        return ledger, node


@pytest.fixture
async def workers(redis_port: int, new_prefix: str) -> AsyncIterator[Workers]:
    async with cluster(redis_port, new_prefix) as nodes:
        with trio.fail_after(20):
            yield Workers(nodes)


Make: TypeAlias = Callable[[Config], Awaitable[Ledger]]


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
) -> AsyncIterator[Make]:
    async def in_memory(config: Config) -> Ledger:
        ledger = MemoryLedger(config, wall)
        nursery.start_soon(ledger.run)
        await until(lambda: ledger.loaded)
        return ledger

    if request.param == "memory":
        yield in_memory
        return
    async with cluster(redis_port, new_prefix) as nodes:
        nodes.wall = wall
        workers = Workers(nodes)

        async def in_redis(config: Config) -> Ledger:
            return (await workers.start(config))[0]

        with trio.fail_after(20):
            yield in_redis


async def claimed(ledger: Ledger, count: int, user: str = "u") -> list[str]:
    """The ids of so many new streams, none of which replaces another one."""
    ids = [new_id() for _ in range(count)]
    for client_id in ids:
        assert list(await ledger.claim(user, client_id)) == []
    return ids


# -- streams of a user


async def test_one_stream_too_many_ends_the_oldest(make: Make) -> None:
    ledger = await make(ENDS_OLDEST)
    ids = await claimed(ledger, 3)
    for oldest in ids:
        assert list(await ledger.claim("u", new_id())) == [oldest]
    assert ledger.statistics().leases == 3
    assert ledger.statistics().replaced == 3


async def test_one_stream_too_many_is_refused_where_that_is_the_policy(make: Make) -> None:
    ledger = await make(REFUSES)
    ids = await claimed(ledger, 3)
    for _ in range(2):
        with pytest.raises(Unavailable, match="has 3 streams") as refusal:
            await ledger.claim("u", new_id())
        assert refusal.value.extra["reason"] == "user"
    ledger.release("u", ids[1])
    await claimed(ledger, 1)
    assert ledger.statistics().leases == 3


async def test_users_do_not_count_for_each_other(make: Make) -> None:
    ledger = await make(REFUSES)
    for user in ("u", "v", "a user/with: odd.characters..*", "\N{SNOWMAN}"):
        await claimed(ledger, 3, user)
    assert ledger.statistics().leases == 12


async def test_a_stream_that_claims_again_has_one_lease(make: Make) -> None:
    ledger = await make(REFUSES)
    (client_id,) = await claimed(ledger, 1)
    assert list(await ledger.claim("u", client_id)) == []
    await claimed(ledger, 2)


async def test_to_release_what_has_no_lease_any_more_is_harmless(make: Make) -> None:
    ledger = await make(ENDS_OLDEST)
    ids = await claimed(ledger, 3)
    await ledger.claim("u", new_id())
    for client_id in (ids[0], ids[0], new_id()):
        ledger.release("u", client_id)
    assert ledger.statistics().leases == 3
    assert list(await ledger.claim("u", new_id())) == [ids[1]]


async def test_a_user_whose_streams_have_ended_costs_nothing(make: Make) -> None:
    ledger = await make(ENDS_OLDEST)
    for number in range(20):
        for client_id in await claimed(ledger, 2, f"u{number}"):
            ledger.release(f"u{number}", client_id)
    await until(lambda: ledger.statistics().releases == 0)
    assert ledger.statistics().leases == 0
    if isinstance(ledger, MemoryLedger):
        assert not ledger._users


# -- revocations


def token(id: str, *, at: int = 1, until: int | None = None) -> Revocation:
    return Revocation(Kind.TOKEN, id, at, until)


def user(id: str, *, at: int = 1, until: int | None = None) -> Revocation:
    return Revocation(Kind.USER, id, at, until)


async def test_what_was_revoked_is_read_again(make: Make, wall: Wall) -> None:
    ledger = await make(Config())
    kept = {token("a"), user("a"), token("b: c\n\N{SNOWMAN}", until=wall.ms + HOUR), user("- 1")}
    for revocation in kept:
        await ledger.revoke(revocation)
    assert set(await ledger.load()) == kept
    assert ledger.statistics().revocations == 4


async def test_a_later_revocation_takes_the_place_of_the_earlier_one(
    make: Make, wall: Wall
) -> None:
    ledger = await make(Config())
    await ledger.revoke(user("a", at=1, until=wall.ms + HOUR))
    await ledger.revoke(user("a", at=2))
    assert list(await ledger.load()) == [user("a", at=2)]
    wall.ms += 2 * HOUR  # nothing is left of the time of the first
    assert list(await ledger.load()) == [user("a", at=2)]


async def test_what_is_over_goes(make: Make, wall: Wall) -> None:
    ledger = await make(Config())
    await ledger.revoke(token("short", until=wall.ms + HOUR))
    await ledger.revoke(token("long", until=wall.ms + 2 * HOUR))
    wall.ms += HOUR
    assert len(await ledger.load()) == 2  # in its last moment
    wall.ms += 1
    assert [each.id for each in await ledger.load()] == ["long"]


async def test_at_the_bound_a_revocation_is_refused_and_says_so(
    make: Make, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ledger_module, redis_module):
        monkeypatch.setattr(module, "MAX_REVOCATIONS", 3)
    ledger = await make(Config())
    for name in "abc":
        await ledger.revoke(token(name, until=wall.ms + HOUR))
    with pytest.raises(Unavailable, match="no more are kept") as refusal:
        await ledger.revoke(token("d"))
    assert refusal.value.extra == {"reason": "revocations", "outcome": "refused"}
    await ledger.revoke(token("a", at=2, until=wall.ms + 2 * HOUR))  # which is there already
    wall.ms += HOUR + 1
    await ledger.revoke(token("d"))  # as what is over makes room
    assert {each.id for each in await ledger.load()} == {"a", "d"}


async def test_an_id_that_is_too_long_is_refused(make: Make) -> None:
    ledger = await make(Config())
    await ledger.revoke(token("x" * MAX_ID_BYTES))
    for wrong in ("", "x" * (MAX_ID_BYTES + 1), "\udc80"):
        with pytest.raises(BadRequest):
            await ledger.revoke(token(wrong))
    assert len(await ledger.load()) == 1


async def test_thousands_of_revocations_are_read(make: Make) -> None:
    ledger = await make(Config())
    turns = trio.CapacityLimiter(100)

    async def revoke(number: int) -> None:
        async with turns:
            await ledger.revoke(token(f"t{number}", at=number))

    async with trio.open_nursery() as nursery:
        for number in range(5_000):
            nursery.start_soon(revoke, number)
    assert {each.id for each in await ledger.load()} == {f"t{number}" for number in range(5_000)}


async def test_whoever_wants_to_hear_is_told_of_all_revocations_at_the_start(
    workers: Workers,
) -> None:
    first, _ = await workers.start()
    await first.revoke(token("a"))
    heard: list[list[Revocation]] = []
    second, node = await workers.start()
    second.hear.append(lambda revocations: heard.append(list(revocations)))
    node.link.cut_one(of_subscriber=False)
    await until(lambda: len(heard) == 1)
    assert heard == [[token("a")]]
    await first.revoke(token("b"))
    node.link.cut_one(of_subscriber=False)
    await until(lambda: len(heard) == 2)
    assert set(heard[1]) == {token("a"), token("b")}
    await first.revoke(token("c"))
    node.link.cut_one(of_subscriber=True)  # through which it would have been told
    await until(lambda: len(heard) == 3)
    assert set(heard[2]) == {token("a"), token("b"), token("c")}


async def test_revocations_are_read_now_and_then(
    make: Make, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ledger_module, redis_module):
        monkeypatch.setattr(module, "READ_AGAIN_SECONDS", 0.01)
    ledger = await make(Config())
    heard: list[set[str]] = []
    ledger.hear.append(lambda revocations: heard.append({each.id for each in revocations}))
    await ledger.revoke(token("short", until=wall.ms + HOUR))
    await ledger.revoke(token("long"))
    await until(lambda: {"short", "long"} in heard)
    wall.ms += HOUR + 1
    await until(lambda: heard[-1] == {"long"})
    assert ledger.statistics().revocations == 1


# -- rates


async def test_a_rate_holds(make: Make, wall: Wall) -> None:
    ledger = await make(Config())
    bucket = ledger.rates.bucket("p:a", 10)
    waits = [await ledger.rates.take_or_wait([bucket]) for _ in range(50)]
    assert 10 <= waits.count(0.0) <= 14  # and what has come in the meantime
    assert 0 < waits[-1] <= 0.1
    other = ledger.rates.bucket("p:b", 10)
    assert await ledger.rates.take_or_wait([other]) == 0


# -- a file of revocations


async def test_revocations_in_a_file_outlive_the_node(tmp_path: Path, wall: Wall) -> None:
    path = tmp_path / "revocations"
    config = Config(revocations_file=str(path))
    first = MemoryLedger(config, wall)
    assert first.durable
    await first.revoke(user("a", at=5))
    await first.revoke(token("b", until=wall.ms + HOUR))
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["revocations"]
    second = MemoryLedger(config, wall)
    assert set(await second.load()) == {user("a", at=5), token("b", until=wall.ms + HOUR)}
    assert not MemoryLedger(Config(), wall).durable


async def test_revocations_that_come_together_are_all_in_the_file(
    tmp_path: Path, wall: Wall
) -> None:
    config = Config(revocations_file=str(tmp_path / "revocations"))
    ledger = MemoryLedger(config, wall)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ledger.revoke, token(str(number)))
    assert len(await MemoryLedger(config, wall).load()) == 20


async def test_a_revocation_that_cannot_be_written_does_not_hold(
    tmp_path: Path, wall: Wall
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    ledger = MemoryLedger(Config(revocations_file=str(folder / "revocations")), wall)
    await ledger.revoke(token("a"))
    (folder / "revocations").unlink()
    folder.rmdir()
    with pytest.raises(Unavailable, match="could not be written") as refusal:
        await ledger.revoke(token("b"))
    assert refusal.value.extra["outcome"] == "refused"
    assert list(await ledger.load()) == [token("a")]


async def test_what_a_crash_left_beside_the_file_is_no_hindrance(
    tmp_path: Path, wall: Wall
) -> None:
    (tmp_path / "revocations.new").write_text("half a fi")
    ledger = MemoryLedger(Config(revocations_file=str(tmp_path / "revocations")), wall)
    await ledger.revoke(token("a"))
    assert names(tmp_path) == ["revocations"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not what a node has written"),
        (b'{"v":1,"revocations":[{"kind":"token","id":"a"', "is not what a node has written"),
        (b'{"v":1,"revocations":[{"kind":"cat","id":"a","at_ms":1}]}', "is not what a node has"),
        (b"\xff\xfe", "is not what a node has written"),
        (b'{"v":2,"revocations":[]}', "has format 2, and this version reads 1"),
    ],
)
def test_a_file_that_cannot_be_used_stops_the_start(
    tmp_path: Path, wall: Wall, content: bytes, sentence: str
) -> None:
    path = tmp_path / "revocations"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence) as refusal:
        MemoryLedger(Config(revocations_file=str(path)), wall)
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path, wall: Wall) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        MemoryLedger(Config(revocations_file=str(tmp_path)), wall)


def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path, wall: Wall) -> None:
    path = tmp_path / "missing" / "revocations"
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        MemoryLedger(Config(revocations_file=str(path)), wall)


def test_a_file_beyond_all_bounds_stops_the_start(
    tmp_path: Path, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "revocations"
    path.write_bytes(
        msgspec.json.encode({"v": 1, "revocations": [token("a")] * (MAX_REVOCATIONS + 1)})
    )
    with pytest.raises(ConfigError, match="more than 100000 revocations"):
        MemoryLedger(Config(revocations_file=str(path)), wall)
    monkeypatch.setattr("gateway.revocation.MAX_FILE_BYTES", 1000)
    with pytest.raises(ConfigError, match="is over 1000 bytes"):
        MemoryLedger(Config(revocations_file=str(path)), wall)


# -- several workers on one Redis


async def test_the_streams_of_all_workers_count(workers: Workers) -> None:
    (one, _), (two, _) = await workers.start(), await workers.start()
    first = new_id("worker1")
    assert list(await one.claim("u", first)) == []
    for _ in range(2):
        assert list(await two.claim("u", new_id("worker2"))) == []
    assert list(await two.claim("u", new_id("worker2"))) == [first]


async def test_what_a_worker_that_is_gone_has_left_locks_nobody_out(
    workers: Workers, client: redis.Redis
) -> None:
    one, here = await workers.start(REFUSES)
    two, _ = await workers.start(REFUSES)
    await claimed(one, 3)
    with pytest.raises(Unavailable):
        await two.claim("u", new_id("worker2"))
    here.link.cut()
    await two.claim("v", new_id("worker2"))
    client.zrem(workers.cluster.key("workers"), "worker1")  # as time would, or its supervisor
    for _ in range(3):
        assert list(await two.claim("u", new_id("worker2"))) == []


async def test_a_lease_that_nobody_renews_is_void(workers: Workers, client: redis.Redis) -> None:
    one, _ = await workers.start(REFUSES)
    await claimed(one, 3)
    one._leases.held.clear()  # it has forgotten them, and is there
    workers.cluster.wall.ms += int(LEASE_SECONDS * 1000)
    client.zadd(workers.cluster.key("workers"), {"worker1": workers.cluster.wall.ms})
    with pytest.raises(Unavailable):
        await one.claim("u", new_id())
    workers.cluster.wall.ms += 1
    await claimed(one, 3)


async def test_leases_are_renewed_before_they_are_over(workers: Workers) -> None:
    one, _ = await workers.start(REFUSES)
    await claimed(one, 3)
    for _ in range(2 * RENEWALS):
        workers.cluster.wall.ms += int(LEASE_SECONDS / RENEWALS * 1000)
        await one._leases.renew()
    with pytest.raises(Unavailable):
        await one.claim("u", new_id())


async def test_leases_that_redis_has_lost_are_entered_again(
    workers: Workers, client: redis.Redis
) -> None:
    one, here = await workers.start(REFUSES)
    two, _ = await workers.start(REFUSES)
    await claimed(one, 3)
    client.delete(workers.cluster.key("u:user:u"))
    here.link.cut_one(of_subscriber=False)
    await until(lambda: client.hlen(workers.cluster.key("u:user:u")) == 3)
    with pytest.raises(Unavailable):
        await two.claim("u", new_id("worker2"))


async def test_the_order_of_opening_outlives_a_loss(workers: Workers, client: redis.Redis) -> None:
    one, _ = await workers.start()
    ids = await claimed(one, 3)
    client.delete(workers.cluster.key("u:user:u"))
    await one._leases.renew()
    assert list(await one.claim("u", new_id())) == [ids[0]]


async def test_workers_that_let_in_too_many_find_it_out_when_they_renew(
    workers: Workers, client: redis.Redis
) -> None:
    """As while neither saw what the other one had let in."""
    (one, _), (two, _) = await workers.start(), await workers.start()
    ids = await claimed(one, 3)
    client.delete(workers.cluster.key("u:user:u"))
    for _ in range(2):
        workers.cluster.wall.ms += 1
        await two.claim("u", new_id("worker2"))
    await one._leases.renew()
    assert workers.replaced == ids[:2]
    assert one.statistics().leases == 1
    assert client.hlen(workers.cluster.key("u:user:u")) == 3


async def test_many_leases_are_renewed_in_batches(workers: Workers, client: redis.Redis) -> None:
    one, _ = await workers.start()
    async with trio.open_nursery() as nursery:
        for number in range(250):
            nursery.start_soon(one.claim, f"u{number}", new_id())
    before = calls(client, "evalsha")
    await one._leases.renew()
    assert calls(client, "evalsha") - before in range(3, 6)  # and perhaps a proof
    assert len(list(client.scan_iter(workers.cluster.key("u:*")))) == 250


async def test_what_ends_while_the_link_is_lost_is_told_later(
    workers: Workers, client: redis.Redis
) -> None:
    one, here = await workers.start(REFUSES)
    ids = await claimed(one, 3)
    here.link.hold_replies(of_subscriber=False)
    for client_id in ids:
        one.release("u", client_id)
    here.link.cut_one(of_subscriber=False)
    assert one.statistics().releases == 3
    here.link.release()
    await until(lambda: one.statistics().releases == 0)
    await claimed(one, 3)


async def test_what_ends_while_redis_takes_no_writes_is_told_later(new_prefix: str) -> None:
    async with redis_server() as server, cluster(server.port, new_prefix) as nodes:
        one, _ = await Workers(nodes).start(REFUSES)
        ids = await claimed(one, 3)
        await server.call("CONFIG", "SET", "min-replicas-to-write", 1)
        for client_id in ids:
            one.release("u", client_id)
        await trio.sleep(0.05)
        assert one.statistics().releases == 3
        await server.call("CONFIG", "SET", "min-replicas-to-write", 0)
        await until(lambda: one.statistics().releases == 0)
        await claimed(one, 3)


async def test_a_claim_whose_reply_was_lost_is_made_again(workers: Workers) -> None:
    one, here = await workers.start(REFUSES)
    here.link.hold_replies(of_subscriber=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.claim, "u", new_id())
        await wait_all_tasks_blocked(0.05)
        here.link.cut_one(of_subscriber=False)
        here.link.release()
    await claimed(one, 2)
    with pytest.raises(Unavailable):
        await one.claim("u", new_id())


async def test_a_claim_that_is_cancelled_leaves_no_lease(
    workers: Workers, client: redis.Redis
) -> None:
    one, here = await workers.start()
    here.link.hold_replies(of_subscriber=False)
    with trio.move_on_after(0.05) as scope:
        await one.claim("u", new_id())
    assert scope.cancelled_caught
    here.link.release()
    await until(lambda: one.statistics().releases == 0)
    assert one.statistics().leases == 0
    assert not client.exists(workers.cluster.key("u:user:u"))


async def test_a_claim_that_is_answered_as_it_is_cancelled_leaves_no_lease(
    workers: Workers,
) -> None:
    one, here = await workers.start()
    here.link.hold_replies(of_subscriber=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.claim, "u", new_id())
        await wait_all_tasks_blocked(0.05)
        [claim] = one._leases._claims
        nursery.cancel_scope.cancel()
        claim.answer = [1]
        claim.answered.set()
    assert one.statistics().releases == 1
    assert one.statistics().leases == 0


async def test_without_redis_no_stream_of_a_user_is_opened(workers: Workers) -> None:
    one, here = await workers.start(QUICK)
    here.link.cut()
    await until(lambda: not here.bus.commands.connected)
    with pytest.raises(Unavailable) as refusal:
        await one.claim("u", new_id())
    assert refusal.value.extra["reason"] == "bus"


async def test_with_too_much_untold_no_lease_is_had(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "MAX_ENDED", 3)
    one, here = await workers.start(QUICK)
    ids = await claimed(one, 3)
    here.link.hold_replies(of_subscriber=False)
    for client_id in ids:
        one.release("u", client_id)
    with pytest.raises(Unavailable) as refusal:
        await one.claim("v", new_id())
    assert refusal.value.extra["reason"] == "bus"


async def test_a_key_of_somebody_else_in_the_place_is_left_alone(
    workers: Workers, client: redis.Redis
) -> None:
    one, _ = await workers.start(QUICK)
    client.set(workers.cluster.key("u:user:u"), "mine")
    with pytest.raises(Unavailable):
        await one.claim("u", new_id())
    assert client.get(workers.cluster.key("u:user:u")) == b"mine"
    await claimed(one, 1, "v")


async def test_workers_share_a_rate_within_a_tenth_of_a_second_each(workers: Workers) -> None:
    """Over time it is exact: what was let in beyond it is made up for."""
    ledgers = [(await workers.start())[0] for _ in range(3)]
    rate = 100
    admitted = 0

    async def flood(ledger: RedisLedger) -> None:
        nonlocal admitted
        bucket = ledger.rates.bucket("p:a", rate)
        while not await ledger.rates.take_or_wait([bucket]):
            admitted += 1

    wall = workers.cluster.wall
    for second in range(4):
        async with trio.open_nursery() as nursery:
            for ledger in ledgers:
                nursery.start_soon(flood, ledger)
        most = rate + rate * second
        assert most - 1 <= admitted <= most + 3 * rate // 10
        wall.ms += 1000
        for ledger in ledgers:
            for bucket in ledger.rates._buckets.values():
                bucket.closed_until = 0.0  # as if the second had passed here as well


async def test_what_is_published_slowly_is_told_without_anybody_waiting(
    workers: Workers, client: redis.Redis
) -> None:
    one, _ = await workers.start()
    bucket = one.rates.bucket("p:a", 100)
    assert all(one.rates.take([bucket]) for _ in range(5))
    await until(lambda: bucket.spent == 0 and client.exists(workers.cluster.key("r:p:a")) == 1)
    level = client.get(workers.cluster.key("r:p:a"))
    assert level is not None
    assert float(bytes(level).split(b" ")[0]) == 95  # type: ignore[arg-type]


async def test_a_full_bucket_is_no_key(workers: Workers, client: redis.Redis) -> None:
    one, _ = await workers.start()
    bucket = one.rates.bucket("p:a", 100)
    one.rates.take([bucket])
    await until(lambda: bucket.spent == 0)
    await until(lambda: not client.exists(workers.cluster.key("r:p:a")))


async def test_without_redis_nobody_is_refused_for_his_rate(workers: Workers) -> None:
    """Nor is anything published then; what was let in is told when Redis is back."""
    one, here = await workers.start()
    here.link.cut()
    await until(lambda: not here.bus.commands.connected)
    bucket = one.rates.bucket("p:a", 10)
    assert [await one.rates.take_or_wait([bucket]) for _ in range(50)] == [0.0] * 50


async def test_what_is_still_to_be_told_is_bounded(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spending_module, "MAX_BUCKETS", 5)
    one, here = await workers.start()
    here.link.cut()
    await until(lambda: not here.bus.commands.connected)
    for number in range(20):
        one.rates.take([one.rates.bucket(f"p:{number}", 10)])
    assert len(one._spending._owing) <= 5
    assert one.statistics().buckets_evicted == 15


def test_a_clock_that_is_set_back_keeps_nobody_waiting(
    client: redis.Redis, new_prefix: str
) -> None:
    scripts = Scripts(client, new_prefix)
    scripts.attach()
    assert float(scripts.run("rates", scripts.now, "p:a", 100, 100)[0]) == 0
    back = scripts.now - HOUR
    assert float(scripts.run("rates", back, "p:a", 100, 0)[0]) == 0
    assert float(scripts.run("rates", back + 500, "p:a", 100, 0)[0]) == 50


def test_a_bucket_cannot_owe_more_than_a_seconds_worth(
    client: redis.Redis, new_prefix: str
) -> None:
    scripts = Scripts(client, new_prefix)
    assert scripts.run("rates", scripts.now, "p:a", 10, 5, "p:b", 0.5, 1) == [
        b"5.000000",
        b"0.000000",
    ]
    assert scripts.run("rates", scripts.now, "p:a", 10, 1000) == [b"-10.000000"]
    scripts.now += 1500
    assert scripts.run("rates", scripts.now, "p:a", 10, 0) == [b"5.000000"]
    scripts.now -= 60_000  # a clock that steps back takes nothing away
    assert scripts.run("rates", scripts.now, "p:a", 10, 0) == [b"5.000000"]


async def test_revoking_without_redis_says_that_it_is_unknown(workers: Workers) -> None:
    one, here = await workers.start(QUICK)
    here.link.cut()
    await until(lambda: not here.bus.commands.connected)
    with pytest.raises(Unavailable) as refusal:
        await one.revoke(token("a"))
    assert refusal.value.extra == {"reason": "bus", "outcome": "unknown"}
    with pytest.raises(Unavailable):
        await one.load()


def test_buckets_are_told_apart_by_who_they_are(autojump_clock: object) -> None:
    async def main() -> None:
        assert len({Bucket("a", 1), Bucket("a", 1)}) == 2

    trio.run(main)
