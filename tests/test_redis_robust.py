"""What Redis, its operator or a stranger may do at the worst moment: nothing ends, nothing is lost
silently, and nothing comes twice."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import redis
import trio
from buses import event, published, read_pages, refused, up_to_date
from process import GATEWAY, child
from redis_buses import QUICK, Cluster, Node, cluster
from redis_scripts import Scripts
from redis_server import RedisServer, redis_server
from rig import Dechunker, Reader, rule
from rig import running as rig_running
from running import request, running
from scripted_link import scripted_link
from trio.testing import wait_all_tasks_blocked

from gateway.bus import commands, publisher
from gateway.config import Config
from gateway.control import Gap
from gateway.errors import GatewayError, Unavailable
from gateway.event import Event
from gateway.hub_client import Client
from gateway.node import Node as WholeNode
from gateway.policy import Policy
from gateway.position import ZERO, Position, Resume, Start
from gateway.stream_state import State
from gateway.streams import EventStream

FAR_AHEAD = ("400000000000000-0", "9999999999999-0", f"{10**30}-0")


@pytest.fixture
async def nodes(redis_port: int, new_prefix: str) -> AsyncIterator[Cluster]:
    async with cluster(redis_port, new_prefix) as nodes:
        with trio.fail_after(15):
            yield nodes


@pytest.fixture
def scripts(client: redis.Redis, new_prefix: str) -> Scripts:
    """The same prefix as that of the nodes."""
    return Scripts(client, new_prefix)


@asynccontextmanager
async def own_redis(**options: Any) -> AsyncIterator[tuple[RedisServer, Cluster]]:
    """A server that a test may treat badly, and the nodes on it."""
    async with redis_server(**options) as server, cluster(server.port, "own:") as nodes:
        with trio.fail_after(15):
            yield server, nodes


async def until(holds: Callable[[], bool]) -> None:
    """Return once ``holds``, of what nobody tells."""
    while not holds():  # noqa: ASYNC110
        await trio.sleep(0.005)


async def outcome(node: Node, sent: Event) -> str:
    (result,) = await node.bus.publish([sent])
    assert isinstance(result, GatewayError)
    return str(result.extra["outcome"])


async def come_back(node: Node, *, of_subscriber: bool) -> None:
    """Have one of the links lost, and return when it stands again."""
    lost = node.bus.statistics().link.lost
    node.link.cut_one(of_subscriber=of_subscriber)
    await until(lambda: node.bus.statistics().link.lost > lost)
    await until(lambda: node.bus.statistics().link.up == 1)


def gone(node: Node) -> list[tuple[set[str], Position, Gap]]:
    return [(set(names or ()), at, reason) for names, at, reason in node.sink.gaps]


# -- positions that nobody gave out


@pytest.mark.parametrize("position", FAR_AHEAD)
@pytest.mark.parametrize("version", [1, 2])
async def test_a_message_from_far_ahead_moves_nothing(
    nodes: Cluster, client: redis.Redis, version: int, position: str
) -> None:
    node = await nodes.node("a")
    (first,) = await published(node.bus, event())
    await node.sink.until(1)
    client.publish(nodes.key("c:a"), f"{version} {position} {first} 0 0 - \ndata: forged\n\n")
    await come_back(node, of_subscriber=False)
    await come_back(node, of_subscriber=True)
    (second,) = await published(node.bus, event())
    await node.sink.until(2)
    new = await nodes.node("a")
    (third,) = await published(new.bus, event())
    await new.sink.until(1)
    await node.sink.until(3)
    assert node.sink.positions == [first, second, third]
    assert node.sink.gaps == []
    assert third.ms < nodes.wall.ms + 60_000
    assert await read_pages(node.bus, "a", first, await up_to_date(node.bus), 9) == (
        False,
        [second, third],
    )


@pytest.mark.parametrize("clock", ["garbage", "-", "400000000000000-0", f"{10**30}-0"])
async def test_a_clock_that_is_no_position_is_put_right(
    nodes: Cluster, client: redis.Redis, clock: str
) -> None:
    node = await nodes.node("a")
    (first,) = await published(node.bus, event())
    client.set(nodes.key("clock"), clock)
    await come_back(node, of_subscriber=False)
    (second,) = await published(node.bus, event())
    await node.sink.until(2)
    assert node.sink.positions == [first, second]
    assert first < second < Position(nodes.wall.ms + 60_000, 0)


async def test_an_epoch_that_is_gone_is_made_anew_and_told(
    nodes: Cluster, client: redis.Redis
) -> None:
    node = await nodes.node("a")
    (first,) = await published(node.bus, event())
    await node.sink.until(1)
    client.delete(nodes.key("epoch"))
    await node.bus.subscribe(["b"])
    (second,) = await published(node.bus, event("b"))
    await node.sink.until(2)
    assert node.sink.positions == [first, second]
    ((names, broken, reason),) = node.sink.gaps
    assert (names, reason) == (None, Gap.RESTARTED)
    assert first < broken < second
    assert client.exists(nodes.key("epoch"))


# -- garbage

GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "no line": b"hello",
    "no head": b"\ndata: x\n\n",
    "bytes": b"\xff\x00\xfe",
    "no number before": b"1 %(near)b x 0 0 - \ndata: x\n\n",
    "only the mark of a quiet channel": b"1 %(near)b ~ 0 0 - \ndata: x\n\n",
    "many marks": b"1 %(near)b ~~1-0 0 0 - \ndata: x\n\n",
    "a sign": b"1 +1-0 -1-0 0 0 - \ndata: x\n\n",
    "a position with another text": b"1 0%(near)b %(last)b 0 0 - \ndata: x\n\n",
    "too many digits to read": b"1 " + b"9" * 5000 + b"-0 0-0 0 0 - \ndata: x\n\n",
    "too many digits before": b"1 %(near)b " + b"9" * 5000 + b"-0 0 0 - \ndata: x\n\n",
    "a key that is no text": b"1 %(near)b %(last)b 0 0 - \xff\xfe\ndata: x\n\n",
    "channels that are no text": b"1 %(near)b %(last)b 0 0 \xff,b \ndata: x\n\n",
    "channels of nobody": b"1 %(near)b %(last)b 0 0 x,y \ndata: x\n\n",
    "an event without its blank line": b"1 %(near)b %(last)b 0 0 - \ndata: x",
    "an event without any line": b"1 %(near)b %(last)b 0 0 - \n",
    "two events in one": b"1 %(near)b %(last)b 0 0 - \ndata: x\n\ndata: y\n\n",
    "a later version with a bad head": b"2 x y\nz",
    "a proof of nothing": b"1-0 zz a b",
    "a proof without end": b"9" * 5000 + b"-0 1 run 1-0 1-0 1-0 1-0",
    "a proof of another number": b"%(near)b 99999 run - - - -",
}


def garbage(kind: str, last: Position, near: Position) -> bytes:
    payload = GARBAGE[kind]
    for name, position in (("last", last), ("near", near)):
        payload = payload.replace(b"%%(%b)b" % name.encode(), str(position).encode())
    return payload


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_on_any_channel_ends_nothing(
    nodes: Cluster, client: redis.Redis, kind: str
) -> None:
    node = await nodes.node("a")
    (first,) = await published(node.bus, event())
    await node.sink.until(1)
    payload = garbage(kind, first, Position(first.ms + 5, 0))
    for channel in ("c:a", "p:worker1", "all", "w:worker1"):
        assert client.publish(nodes.key(channel), payload) == 1
    nodes.wall.ms += 1000
    (last,) = await published(node.bus, event(data="after"))
    with trio.fail_after(5):
        await until(lambda: last in node.sink.positions)
        await up_to_date(node.bus)
    assert node.sink.positions[0] == first
    assert node.sink.positions == sorted(set(node.sink.positions))
    assert node.bus.statistics().link.up == 1


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_in_what_was_missed_ends_nothing(
    nodes: Cluster, client: redis.Redis, kind: str
) -> None:
    node, other = await nodes.node("a"), await nodes.node()
    (first,) = await published(other.bus, event())
    await node.sink.until(1)
    node.link.hold_replies(of_subscriber=True)
    near = Position(first.ms + 5, 0)
    client.xadd(nodes.key("s:a"), {"e": garbage(kind, first, near)}, str(near))
    nodes.wall.ms += 1000
    (last,) = await published(other.bus, event(data="after"))
    node.link.cut_one(of_subscriber=True)
    node.link.release()
    with trio.fail_after(5):
        await until(lambda: last in node.sink.positions)
        assert await node.bus.newest("a", 1)
        gap, pages = await read_pages(other.bus, "a", first, await up_to_date(other.bus), 9)
    assert pages[-1] == last
    assert gap == (near not in pages)
    assert node.sink.positions == sorted(set(node.sink.positions))


@pytest.mark.parametrize("fields", [{"x": "y"}, {"e": "1", "f": "2"}])
async def test_an_entry_of_other_fields_is_a_gap(
    nodes: Cluster, client: redis.Redis, fields: dict[str | bytes, str | bytes | float | int]
) -> None:
    node = await nodes.node()
    start = await up_to_date(node.bus)
    nodes.wall.ms += 1
    (first,) = await published(node.bus, event())
    client.xadd(nodes.key("s:a"), fields, f"{first.ms}-{first.seq + 1}")  # type: ignore[arg-type]
    nodes.wall.ms += 1
    (last,) = await published(node.bus, event())
    assert await read_pages(node.bus, "a", start, await up_to_date(node.bus), 10) == (
        True,
        [first, last],
    )


async def test_an_entry_that_names_another_place_ends_no_paging_and_is_a_gap(
    nodes: Cluster, client: redis.Redis
) -> None:
    node = await nodes.node()
    start = await up_to_date(node.bus)
    (first,) = await published(node.bus, event("b"))
    forged = f"1 {first} {start} 0 0 - \ndata: x\n\n"
    for seq in range(40):
        client.xadd(nodes.key("s:b"), {"e": forged}, f"{first.ms}-{first.seq + 1 + seq}")
    nodes.wall.ms += 1
    (real,) = await published(node.bus, event("b"))
    with trio.fail_after(2):
        head = await up_to_date(node.bus)
        assert await read_pages(node.bus, "b", start, head, 10) == (True, [first, real])


@pytest.mark.parametrize("value", ["9" * 30 + "-0", ["a", "list"]])
async def test_something_else_under_the_id_of_an_event_refuses_that_event(
    nodes: Cluster, client: redis.Redis, value: str | list[str]
) -> None:
    node = await nodes.node("a")
    (first,) = await published(node.bus, event(id="order 1"))
    listed = client.keys(nodes.key("d:*"))
    assert isinstance(listed, list)
    (token,) = listed
    client.delete(token)
    if isinstance(value, str):
        client.set(token, value)
    else:
        client.rpush(token, *value)
    refusal = await refused(node.bus, event(id="order 1"))
    assert refusal.extra["outcome"] == "refused"
    (second,) = await published(node.bus, event(id="order 2"))
    await node.sink.until(2)
    assert node.sink.positions == [first, second]


# -- replies of a Redis that is busy, or tightened


async def test_a_busy_redis_ends_nothing() -> None:
    async with own_redis(busy_reply_threshold=20) as (server, nodes):
        node = await nodes.node("a", config=QUICK)
        spin = (
            "local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end"
            " local over = now() + 400 repeat until now() > over"
        )
        await server.call("EVAL", spin, 0)
        assert "errorstat_BUSY" in await server.info("errorstats")
        (position,) = await published(node.bus, event())
        await node.sink.until(1)
        assert node.sink.positions == [position]


@pytest.mark.parametrize(
    ("forbid", "allow", "is_needed"),
    [
        (["-role"], "+role", False),
        (["-info"], "+info", False),
        (["-evalsha"], "+evalsha", True),
        (["resetkeys", "~own:clock", "~own:epoch", "~own:workers"], "allkeys", True),
    ],
)
async def test_what_is_no_longer_allowed_ends_nothing(
    forbid: list[str], allow: str, is_needed: bool
) -> None:
    async with own_redis() as (server, nodes):
        node = await nodes.node("a", config=QUICK)
        await server.call("ACL", "SETUSER", "operator", "on", ">secret", "~*", "&*", "+@all")
        with redis.Redis(port=server.port, username="operator", password="secret") as operator:

            def refusals() -> int:
                stats = operator.info("errorstats")
                assert isinstance(stats, dict)
                return int(stats.get("errorstat_NOPERM", {}).get("count", 0))

            operator.execute_command("ACL", "SETUSER", "default", *forbid)
            with trio.move_on_after(0.2) as patience:
                await node.bus.subscribe(["b"])
            assert patience.cancelled_caught or not is_needed
            await until(lambda: refusals() > 0)
            operator.execute_command("ACL", "SETUSER", "default", allow)
        await node.bus.subscribe(["c"])
        (position,) = await published(node.bus, event())
        await node.sink.until(1)
        assert node.sink.positions == [position]


async def test_history_can_be_read_while_memory_is_full_and_tells_what_was_evicted() -> None:
    async with own_redis(maxmemory_policy="volatile-lru") as (server, nodes):
        node = await nodes.node(config=QUICK)
        start = await up_to_date(node.bus)
        nodes.wall.ms += 1
        names = [f"q{number}" for number in range(50)]
        await published(node.bus, *[event(name, data="x" * 1000) for name in names])
        await server.call("CONFIG", "SET", "maxmemory", 1)
        with redis.Redis(port=server.port) as stranger:
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                stranger.set("foreign", "x")
            await until(lambda: not stranger.exists("own:m:q0", "own:s:q0"))
        for _ in range(2):  # also behind the next proof, which knows less
            head = await up_to_date(node.bus)
            gap, pages = await read_pages(node.bus, "q0", start, head, 10)
            assert (gap, pages) == (True, [])
            await node.bus.subscribe(["new"])
        assert node.bus.statistics().link.evicted > 0


# -- what is sent again


async def test_a_call_is_not_sent_again_when_the_script_may_have_forgotten_it(
    nodes: Cluster, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = await nodes.node(), await nodes.node("a")
    node.link.hold_replies(of_subscriber=False)
    async with trio.open_nursery() as nursery:

        async def publish() -> None:
            assert await outcome(node, event(data="once")) == "unknown"

        nursery.start_soon(publish)
        await other.sink.until(1)
        client.delete(*client.keys(nodes.key("w:*")))
        monkeypatch.setattr(publisher, "RESEND_SECONDS", 0.0)
        node.link.cut_one(of_subscriber=False)
        node.link.release()
    (after,) = await published(node.bus, event(data="after"))
    await other.sink.until(2)
    assert other.sink.positions[1:] == [after]
    assert node.bus.statistics().link.resent == 0


async def test_a_call_is_not_sent_again_when_its_publishers_have_been_told(
    nodes: Cluster, client: redis.Redis
) -> None:
    node, other = await nodes.node(config=QUICK), await nodes.node("a")
    node.link.hold_replies(of_subscriber=False)
    assert await outcome(node, event(data="once")) == "unknown"
    client.delete(*client.keys(nodes.key("w:*")))
    node.link.cut_one(of_subscriber=False)
    node.link.release()
    await until(lambda: node.bus.statistics().link.up == 1)
    (after,) = await published(node.bus, event(data="after"))
    await other.sink.until(2)
    assert other.sink.positions[1:] == [after]
    assert node.bus.statistics().link.resent == 0


async def test_an_event_told_refused_is_left_out_of_what_is_sent_again(
    nodes: Cluster, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis had taken nothing of the call, since it did not know the script."""
    monkeypatch.setattr(commands, "BACK_OFF_FIRST", 0.2)
    node, other = await nodes.node(config=QUICK), await nodes.node("a")
    client.script_flush()
    async with trio.open_nursery() as nursery:

        async def publish() -> None:
            assert await outcome(node, event(data="refused")) == "refused"

        nursery.start_soon(publish)
        await until(lambda: node.bus.statistics().link.lost > 0)
        node.link.cut()
    node.link.resume()
    await until(lambda: node.bus.statistics().link.up == 1)
    (after,) = await published(node.bus, event(data="after"))
    await other.sink.until(1)
    assert other.sink.positions == [after]


# -- catching up


async def test_catching_up_reads_only_what_went_on(nodes: Cluster) -> None:
    node, other = await nodes.node(), await nodes.node()
    await node.bus.subscribe([f"quiet{number}" for number in range(5000)])
    await node.bus.subscribe(["a"])
    before = await published(other.bus, event())
    await node.sink.until(1)
    reads = node.bus.statistics().link.history_reads
    node.link.hold_replies(of_subscriber=True)
    before += await published(other.bus, *[event()] * 100)
    node.link.cut_one(of_subscriber=True)
    node.link.release()
    await node.sink.until(101)
    assert node.sink.positions == before
    assert node.sink.gaps == []
    assert node.bus.statistics().link.history_reads - reads < 50


async def test_a_hole_older_than_what_was_passed_on_since_is_told_as_a_gap(
    nodes: Cluster,
) -> None:
    node = await nodes.node("a", "b")
    node.link.drop = lambda reply: b"data: lost" in reply
    sent = event("a"), event("a", data="lost"), event("b"), event("a")
    first, lost, other, last = await published(node.bus, *sent)
    await node.sink.until(3)
    assert node.sink.positions == [first, other, last]
    assert gone(node) == [({"a"}, lost, Gap.TRIMMED)]
    head = await up_to_date(node.bus)
    assert await read_pages(node.bus, "a", first, head, 9) == (False, [lost, last])


async def test_what_comes_while_a_link_is_joined_is_held_once(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = await nodes.node("a"), await nodes.node()
    positions = await published(other.bus, *[event()] * 20)
    await node.sink.until(20)
    resume = node.bus._inflow.resume

    async def published_meanwhile() -> None:
        positions.extend(await published(other.bus, *[event()] * 6))
        await resume()

    monkeypatch.setattr(node.bus._inflow, "resume", published_meanwhile)
    node.link.cut_one(of_subscriber=True)
    await node.sink.until(26)
    head = await up_to_date(node.bus)
    assert node.sink.positions == positions
    for number, after in enumerate(positions):
        assert await read_pages(node.bus, "a", after, head, 4) == (False, positions[number + 1 :])


async def test_all_who_wait_for_one_read_are_refused_at_the_same_time(nodes: Cluster) -> None:
    node = await nodes.node("a", config=QUICK)
    node.link.cut()
    await until(lambda: not node.bus.statistics().link.up)
    told: list[float] = []

    async def read() -> None:
        with pytest.raises(Unavailable):
            await node.bus.history("other", ZERO, node.bus.head(), 10)
        told.append(trio.current_time())

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(read)
    assert len(told) == 10
    patience = QUICK.publish_wait + QUICK.redis_timeout
    assert max(told) - began < 2 * patience


# -- whole nodes


async def stream(
    nursery: trio.Nursery, node: WholeNode, channel: str, resume: Resume | int = Start.NOW
) -> tuple[Client, Reader]:
    """A live stream, and what it gives."""
    near, far = socket.socketpair()
    near.setblocking(False)
    client = await node.streams.open(EventStream((channel,), None, resume), near)
    nursery.start_soon(node.streams.serve, client)
    reader, chunks = Reader(), Dechunker()

    async def read() -> None:
        with near, trio.socket.from_stdlib_socket(far) as sock:
            while data := await sock.recv(65536):
                reader.receive_data(chunks.receive_data(data))

    nursery.start_soon(read)
    await until(lambda: client.state is State.LIVE)
    return client, reader


async def test_a_channel_added_in_the_middle_of_catching_up_misses_nothing_after_its_h(
    nodes: Cluster,
) -> None:
    other = await nodes.node()
    async with scripted_link(nodes.port) as link, trio.open_nursery() as nursery:
        config = Config(redis=link.url, redis_prefix=nodes.prefix, pending_bytes=100_000)
        node = WholeNode(replace(config, history_bytes=16 * 1024 * 1024), max_clients=100)
        await nursery.start(node.run)
        await stream(nursery, node, "b")
        client, reader = await stream(nursery, node, "a")
        (first, _) = await published(other.bus, event("b"), event("a"))
        await until(lambda: reader.data == ["x"])
        link.hold_replies(of_subscriber=True)
        sent: list[Position] = []
        for _ in range(5):
            sent += await published(other.bus, *[event("b", data="y" * 10_000)] * 60)

        async def slow_down_passes() -> None:
            while True:
                async with node.hub.turn:
                    await trio.sleep(0.02)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(slow_down_passes)
        link.cut_one(of_subscriber=True)
        link.release()
        await until(lambda: node.hub.pending.taken >= sent[10])
        assert node.bus.head() < sent[-1]
        head = await node.streams.add_channel(client, "b", None)
        owed = [str(position) for position in sent if position > head]
        assert owed
        (last,) = await published(other.bus, event("b", data="last"))
        await until(lambda: reader.data[-1] == "last")
        got = [e.last_event_id for e in reader.events if e.data.startswith("y")]
        assert got[-len(owed) :] == owed
        assert len(got) == len(set(got))
        assert reader.gaps == []
        assert first < head < last
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_first", [True, False])
async def test_the_notice_of_a_gap_replaces_no_value_and_no_value_replaces_it(
    is_first: bool,
) -> None:
    config = Config(outbox_frames=9, channels=(rule("a", Policy.LATEST),))
    async with rig_running(config) as rig:
        peer = await rig.open_live("a")
        while peer.client.state is State.LIVE:
            await rig.publish("a", "z" * 20_000, key="filler")
            await wait_all_tasks_blocked()
        if not is_first:
            await rig.publish("a", "value")
            await wait_all_tasks_blocked()
        await rig.node._fanout.tell_gap(("a",), Position(rig.bus.head().ms + 1, 0), Gap.TRIMMED)
        if is_first:
            await rig.publish("a", "value")
        await peer.read_all()
        assert "value" in peer.data
        assert peer.gaps == [(["a"], "trimmed")]
        peer.check_counters()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_event_source_that_returns_while_redis_is_away_is_told_to_come_back(
    nodes: Cluster, version: str
) -> None:
    async with scripted_link(nodes.port) as link:
        settings: dict[str, Any] = {
            "publish_wait": 0.1,
            "redis_timeout": 0.2,
            "redis_prefix": nodes.prefix,
        }
        async with running(redis=link.url, **settings) as gateway:
            position = await gateway.publish("away", "x")
            link.cut()
            await until(lambda: not gateway.node.bus.statistics().link.up)
            header = f"Last-Event-ID: {position}\r\n".encode()
            wire = await gateway.open("/events/away", header, version=version)
            response = await wire.response()
            assert (response.status, response.header("content-type")) == (
                200,
                "text/event-stream",
            )
            assert b"event: reconnect\n" in response.body
            assert b'"reason":"bus"' in response.body
            assert gateway.node.statistics().refused == {"bus": 1}
            refusal = await gateway.ask(request("GET", "/events/away", header, version=version))
            assert refusal.status == 503
            assert refusal.header("retry-after")
            assert refusal.json["reason"] == "bus"
            assert gateway.node.statistics().refused == {"bus": 2}


BAD_URLS = ("redis://user:hunter2@host:port/0", "redis+sentinel://:hunter2@/service")


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_bad_url_stops_the_start_with_one_sentence_and_no_password(url: str) -> None:
    async with child(GATEWAY, "serve", "--bind", "127.0.0.1:0", "--redis", url) as serving:
        assert await serving.wait() == 2
    assert serving.output.startswith("gateway: redis is not a URL of Redis")
    assert serving.output.count("\n") == 1
    assert "hunter2" not in serving.output


@pytest.mark.parametrize("url", [*BAD_URLS, "rediss://user:hunter2@host/0"])
async def test_the_listing_of_settings_shows_stars_for_the_password(url: str) -> None:
    async with child(GATEWAY, "config", "--redis", url) as listing:
        assert await listing.wait() == 0
    assert "hunter2" not in listing.output
    assert ":***@" in listing.output


async def test_replays_are_timed_by_what_had_to_be_read(nodes: Cluster) -> None:
    other = await nodes.node()
    await published(other.bus, event("a"), event("a"))
    async with trio.open_nursery() as nursery:
        redis_url = f"redis://127.0.0.1:{nodes.port}"
        config = Config(redis=redis_url, redis_prefix=nodes.prefix)
        node = WholeNode(config, max_clients=100)
        await nursery.start(node.run)

        def counts() -> dict[str, int]:
            return {name: each.count for name, each in node.statistics().replays.items()}

        client, reader = await stream(nursery, node, "a")
        assert counts() == {"memory": 0, "ring": 0, "redis": 0}
        (third,) = await published(other.bus, event("a", data="third"))
        await until(lambda: reader.data == ["third"])
        await stream(nursery, node, "a", third.before())
        assert counts() == {"memory": 0, "ring": 1, "redis": 0}
        await stream(nursery, node, "a", 2)
        assert counts() == {"memory": 0, "ring": 1, "redis": 1}
        await stream(nursery, node, "a", Start.EARLIEST)
        assert counts() == {"memory": 0, "ring": 1, "redis": 2}
        await node.streams.add_channel(client, "b", third)
        await until(lambda: client.state is State.LIVE)
        assert counts() == {"memory": 0, "ring": 1, "redis": 3}
        nursery.cancel_scope.cancel()
