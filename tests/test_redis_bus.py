"""What the Redis bus does when links fail: what was missed comes in order, or its gap is told."""

from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
import redis
import trio
from buses import FakeSink, event, held, published, read_pages, up_to_date
from redis_buses import QUICK, Cluster, Node, calls, cluster, subscribers
from redis_scripts import Scripts, configured
from redis_server import free_port
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.bus import History, Source
from gateway.bus import publisher as publisher_module
from gateway.bus.address import parse_address
from gateway.bus.inflow import OVERRUNS
from gateway.bus.prover import CLOCK_LOOKS, Skew
from gateway.bus.redis import RedisBus
from gateway.bus.subscriptions import LINGER_SECONDS
from gateway.config import Config
from gateway.control import Gap
from gateway.errors import GatewayError, Unavailable
from gateway.event import Event
from gateway.position import ZERO, Position


@pytest.fixture
async def nodes(
    redis_port: int, new_prefix: str, request: pytest.FixtureRequest
) -> AsyncIterator[Cluster]:
    patience = 600 if "autojump_clock" in request.fixturenames else 15  # seconds of its clock
    async with cluster(redis_port, new_prefix) as nodes:
        with trio.fail_after(patience):
            yield nodes


@pytest.fixture
def scripts(client: redis.Redis, new_prefix: str) -> Scripts:
    """The same prefix as that of the nodes."""
    return Scripts(client, new_prefix)


async def outcome(node: Node, sent: Event) -> str:
    """How a publish that is refused or unknown ends."""
    (result,) = await node.bus.publish([sent])
    assert isinstance(result, GatewayError)
    return str(result.extra["outcome"])


async def until(holds: Callable[[], bool]) -> None:
    """Return once ``holds``, of what nobody tells."""
    while not holds():  # noqa: ASYNC110
        await trio.sleep(0.005)


async def missed(node: Node, publisher: Node, *events: Event) -> list[Position]:
    """Events that are published while the subscriber's link of ``node`` is away."""
    node.link.hold_replies(of_subscriber=True)
    node.link.cut_one(of_subscriber=True)
    return await published(publisher.bus, *events)


# -- publishing over a link that is lost


async def test_an_event_whose_reply_was_lost_is_sent_again_and_taken_once(nodes: Cluster) -> None:
    node = await nodes.node("a")
    node.link.hold_replies(of_subscriber=False)
    positions: list[Position] = []

    async def publish(sent: Event) -> None:
        positions.extend(await published(node.bus, sent))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(publish, event(data=str(number)))
            await node.sink.until(number + 1)
        node.link.cut_one(of_subscriber=False)
        node.link.release()
    await up_to_date(node.bus)
    assert node.sink.positions == sorted(positions)
    assert node.bus.statistics().link.resent == 3
    assert node.bus.statistics().link.unknown == 0


async def test_an_event_that_was_told_refused_never_appears(nodes: Cluster) -> None:
    node = await nodes.node("a", config=QUICK)
    node.link.cut()
    await until(lambda: not node.bus.statistics().link.up)
    assert await outcome(node, event(data="refused")) == "refused"
    node.link.resume()
    await until(lambda: node.bus.statistics().link.up == 1)
    await published(node.bus, event(data="taken"))
    await node.sink.until(1)
    assert b"data: taken" in node.sink.frames[0].block
    assert len(await node.bus.newest("a", 9)) == 1


async def test_with_patience_an_outage_is_survived_and_each_event_is_taken_once(
    nodes: Cluster,
) -> None:
    """Those that Redis had taken before, and those that waited."""
    node = await nodes.node("a", config=QUICK)
    other = await nodes.node("a")
    results: list[Position | GatewayError] = []

    async def publish(*sent: str) -> None:
        results.extend(await node.bus.publish([event(data=data) for data in sent], 60.0))

    async with trio.open_nursery() as nursery:
        node.link.hold_replies(of_subscriber=False)
        nursery.start_soon(publish, "0", "1")
        await other.sink.until(2)  # their replies are lost
        node.link.cut()
        node.link.release()
        nursery.start_soon(publish, "2", "3")
        await until(lambda: not node.bus.statistics().link.up)
        assert await outcome(node, event(data="impatient")) == "refused"
        assert results == []
        node.link.resume()
    assert [type(each) for each in results] == [Position] * 4
    await other.sink.until(4)
    told = [frame.block.partition(b"data: ")[2].strip() for frame in other.sink.frames]
    assert told == [b"0", b"1", b"2", b"3"]
    assert node.bus.statistics().link.unknown == 0


async def test_who_has_patience_waits_for_room_behind_what_was_given_up(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "QUEUED_BYTES", 2000)
    node = await nodes.node("a", config=QUICK)
    node.link.cut()
    await until(lambda: not node.bus.statistics().link.up)
    results: list[Position | GatewayError] = []

    async def publish() -> None:
        sent = [event(data=str(n) * 500) for n in range(9)]
        results.extend(await node.bus.publish(sent, 60.0))

    assert await outcome(node, event(data="x" * 1500)) == "refused"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await wait_all_tasks_blocked()
        assert node.bus._publisher._queued < 2000
        node.link.resume()
    assert [type(each) for each in results] == [Position] * 9
    await node.sink.until(9)
    assert node.sink.positions == results


async def test_a_patient_call_is_never_divided_for_what_stands_before_it(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that is refused could otherwise be followed by one that is taken."""
    monkeypatch.setattr(publisher_module, "CALL_TARGETS", 3)
    node = await nodes.node("a")
    node.link.cut()
    await until(lambda: not node.bus.statistics().link.up)
    sent: list[list[str]] = []
    send = node.bus._publisher._send

    def note(packet: publisher_module.Packet) -> None:
        sent.append([item.event.data for item in packet.items])
        send(packet)

    monkeypatch.setattr(node.bus._publisher, "_send", note)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.bus.publish, [event(data=text) for text in "ab"])
        await wait_all_tasks_blocked()
        nursery.start_soon(node.bus.publish, [event(data=text) for text in "01234"], 60.0)
        await wait_all_tasks_blocked()
        node.link.resume()
    assert sent == [["a", "b"], ["0", "1", "2"], ["3", "4"]]


async def test_a_patient_call_is_one_in_any_language(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "CALL_BYTES", 2000)
    node = await nodes.node("a")
    numbers = node.bus._publisher._numbers
    results = await node.bus.publish([event(data="\u8a9e" * 500) for _ in range(2)], 60.0)
    assert [type(each) for each in results] == [Position] * 2
    assert node.bus._publisher._numbers == numbers + 1


async def test_behind_what_redis_refused_nothing_of_a_patient_call_is_sent(
    nodes: Cluster, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "CALL_TARGETS", 2)
    node = await nodes.node("a")
    sent = [event(data=str(n)) for n in range(5)]
    [first] = await published(node.bus, event(data="before"))
    with configured(scripts.client, maxmemory=1, **{"maxmemory-policy": "noeviction"}):
        results = await node.bus.publish(sent, 60.0)
    assert [each.extra["outcome"] for each in results if isinstance(each, Unavailable)] == (
        ["refused"] * 5
    )
    assert node.bus.statistics().refused == 5
    assert await held(node.bus, "a") == [first]
    assert node.bus._publisher._numbers == 2  # calls


async def test_a_patient_call_is_not_taken_by_a_redis_that_has_lost_something_meanwhile(
    nodes: Cluster, scripts: Scripts
) -> None:
    """It might stand behind a hole. Who has no patience has nothing before it, and is taken."""
    node = await nodes.node("a")
    told: dict[str, str] = {}

    async def publish(data: str, patience: float | None) -> None:
        [result] = await node.bus.publish([event(data=data)], patience)
        told[data] = str(getattr(result, "extra", {}).get("outcome", "taken"))

    node.link.cut()
    await until(lambda: not node.bus.statistics().link.up)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish, "patient", 60.0)
        nursery.start_soon(publish, "other", None)
        await wait_all_tasks_blocked()
        scripts.client.delete(*scripts.client.keys(scripts.key("*")))
        node.link.resume()
    assert told == {"patient": "refused", "other": "taken"}
    assert node.bus.statistics().link.breaks == 1
    assert len(scripts.entries()) == 1


async def test_of_a_patient_call_that_may_have_been_taken_the_rest_is_refused(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "CALL_TARGETS", 2)
    node = await nodes.node("a", config=QUICK)
    other = await nodes.node("a")
    node.link.hold_replies(of_subscriber=False)
    results = await node.bus.publish([event(data=str(n)) for n in range(5)], 0.2)
    told = [each.extra["outcome"] for each in results if isinstance(each, Unavailable)]
    assert told == ["unknown"] * 2 + ["refused"] * 3
    node.link.release()
    await published(node.bus, event(data="later"))
    await other.sink.until(3)
    assert b"data: later" in other.sink.frames[2].block


async def test_an_event_that_may_have_been_taken_is_told_unknown(nodes: Cluster) -> None:
    node = await nodes.node("a", config=QUICK)
    other = await nodes.node("a")
    node.link.hold_replies(of_subscriber=False)
    assert await outcome(node, event()) == "unknown"
    await other.sink.until(1)
    node.link.release()
    assert node.bus.statistics().link.unknown == 1


async def test_nothing_is_sent_again_to_a_redis_that_has_lost_something(
    nodes: Cluster, scripts: Scripts
) -> None:
    node = await nodes.node("a")
    node.link.hold_replies(of_subscriber=False)
    async with trio.open_nursery() as nursery:

        async def publish() -> None:
            assert await outcome(node, event()) == "unknown"

        nursery.start_soon(publish)
        await node.sink.until(1)
        keys = scripts.client.keys(scripts.key("*"))
        scripts.client.delete(*keys)
        node.link.cut_one(of_subscriber=False)
        node.link.release()
    assert scripts.entries() == []
    assert node.bus.statistics().link.breaks == 1
    await node.bus.subscribe(["b"])
    assert [(names, reason) for names, _, reason in node.sink.gaps] == [(None, Gap.RESTARTED)]


async def test_without_its_scripts_redis_is_given_them_again(
    nodes: Cluster, scripts: Scripts
) -> None:
    node = await nodes.node("a")
    (first,) = await published(node.bus, event())
    scripts.client.script_flush()
    later = await published(node.bus, *[event()] * 3)
    await node.sink.until(4)
    assert node.sink.positions == [first, *later]
    assert node.bus.statistics().refused == 0


# -- what is missed


async def test_a_message_that_is_missing_is_read_from_history(nodes: Cluster) -> None:
    node = await nodes.node("a")
    node.link.drop = lambda reply: b"data: lost" in reply
    positions = await published(node.bus, event(), event(data="lost"), event(), event())
    await node.sink.until(4)
    assert node.sink.positions == positions
    assert node.bus.statistics().link.holes == 1
    assert node.sink.gaps == []


async def test_what_was_missed_comes_in_order_and_before_what_is_later(nodes: Cluster) -> None:
    node, other = await nodes.node(*"abc"), await nodes.node()
    before = await published(other.bus, event("a"))
    await node.sink.until(1)
    sent = [event(*names) for names in ("a", "b", "ca", "ab", "c", "x", "b")] * 30
    away = await missed(node, other, *sent)
    node.link.release()
    later = await published(other.bus, event("b"), event(*"abc"))
    expected = [
        *before,
        *(at for at, what in zip(away, sent, strict=True) if what.channels != ("x",)),
        *later,
    ]
    await node.sink.until(len(expected))
    assert node.sink.positions == expected
    assert node.bus.statistics().link.holes == 0
    assert node.sink.gaps == []


async def test_what_history_has_forgotten_is_told_before_what_it_has(nodes: Cluster) -> None:
    config = Config(history_events=2)
    node, other = await nodes.node("a", "b"), await nodes.node(config=config)
    await published(other.bus, event("a"), event("b"))
    await node.sink.until(2)
    away = await missed(node, other, *[event("a")] * 5)
    node.link.release()
    await node.sink.until(4)
    assert node.sink.positions[2:] == away[-2:]
    ((names, position, reason),) = node.sink.gaps
    assert (set(names or ()), position, reason) == ({"a"}, away[-3], Gap.TRIMMED)


async def test_a_copy_from_between_two_slices_shows_no_hole(
    nodes: Cluster, scripts: Scripts
) -> None:
    """A channel of an event was subscribed to again before it, and another one behind it."""
    node, other = await nodes.node("a", "b"), await nodes.node()
    (first,) = await missed(node, other, event("a", "b"))
    await until(lambda: subscribers(scripts.client, [scripts.key("c:b")]) == [1])
    scripts.client.publish(scripts.key("c:a"), scripts.entries("a")[0])
    node.link.release()
    (second,) = await published(other.bus, event("a", "b"))
    await node.sink.until(2)
    await up_to_date(node.bus)
    assert node.sink.positions == [first, second]
    assert node.bus.statistics().link.holes == 0


async def test_a_version_that_is_unknown_is_a_gap_and_later_events_go_on(
    nodes: Cluster, scripts: Scripts
) -> None:
    node = await nodes.node("a")
    (first,) = await published(node.bus, event())
    (second,) = await published(node.bus, event())
    unreadable = Position(second.ms, second.seq + 1)
    message = f"9 {unreadable} {second} 0 whatever\nmore"
    scripts.client.xadd(scripts.key("s:a"), {"e": message}, str(unreadable))
    scripts.client.publish(scripts.key("c:a"), message)
    (third,) = await published(node.bus, event(data="after"))
    scripts.now = 0
    await node.sink.until(2)
    await up_to_date(node.bus)
    assert node.bus.statistics().link.unreadable == 1
    assert node.sink.gaps == [(("a",), unreadable, Gap.UNKNOWN)]
    assert node.sink.positions[:2] == [first, second]
    gap, pages = await read_pages(node.bus, "a", ZERO, await up_to_date(node.bus), 2)
    assert gap
    assert pages == [first, second, third]
    assert node.sink.positions[-1] == third


async def test_a_subscription_confirmed_behind_an_event_of_its_channel_shows_no_hole(
    nodes: Cluster,
) -> None:
    node, other = await nodes.node("a"), await nodes.node()
    node.link.hold_replies(of_subscriber=True)
    (position,) = await published(other.bus, event("a", "b"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.bus.subscribe, ["b"])
        await trio.sleep(0.05)
        node.link.release()
    (later,) = await published(other.bus, event("a", "b"))
    await node.sink.until(2)
    assert node.sink.positions == [position, later]
    assert node.bus.statistics().link.holes == 0


async def test_garbage_in_history_is_a_gap(nodes: Cluster, client: redis.Redis) -> None:
    node = await nodes.node()
    start = await up_to_date(node.bus)
    (first,) = await published(node.bus, event())
    for seq in range(100):
        client.xadd(nodes.key("s:a"), {"e": b"garbage"}, f"{first.ms}-{first.seq + 1 + seq}")
    (last,) = await published(node.bus, event())
    with trio.fail_after(3):
        gap, pages = await read_pages(node.bus, "a", start, await up_to_date(node.bus), 10)
    assert pages == [first, last]
    assert gap


async def test_who_joins_a_read_under_way_misses_nothing_that_came_since(nodes: Cluster) -> None:
    node, other = await nodes.node("a"), await nodes.node()
    (first,) = await published(other.bus, event("a", "kept"))
    await node.sink.until(1)
    node.link.hold_replies(of_subscriber=False)
    found: list[History] = []

    async def read(until: Position) -> None:
        found.append(await node.bus.history("kept", ZERO, until, 100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, first)
        await trio.sleep(0.05)
        (second,) = await published(other.bus, event("a", "kept"))
        await node.sink.until(2)
        nursery.start_soon(read, second)
        await wait_all_tasks_blocked()
        node.link.release()
    assert [frame.position for frame in found[1].frames] == [first, second]


async def test_a_quiet_channel_has_no_gap_after_a_lost_link(nodes: Cluster) -> None:
    node = await nodes.node("a")
    nodes.wall.ms += 301_000
    other = await nodes.node()
    await node.bus.subscribe((), await up_to_date(other.bus))
    node.link.cut_one(of_subscriber=True)
    await trio.sleep(0.02)
    await published(other.bus, event())
    await node.sink.until(1)
    assert node.sink.gaps == []


async def test_links_are_watched_while_channels_are_subscribed_to(
    nodes: Cluster, client: redis.Redis
) -> None:
    node = await nodes.node(config=QUICK)
    before = calls(client, "role")
    until = trio.current_time() + 0.5
    number = 0
    while trio.current_time() < until:
        number += 1
        await node.bus.subscribe([f"c{number}"])
    assert calls(client, "role") > before


# -- links that are half dead


async def test_only_the_link_that_swallows_messages_is_given_up(nodes: Cluster) -> None:
    node, other = await nodes.node("a", config=QUICK), await nodes.node()
    assert node.link.mute() == 1
    connections = node.link.accepted
    (position,) = await published(other.bus, event())
    await node.sink.until(1)
    assert node.sink.positions == [position]
    assert node.link.accepted == connections + 1
    assert node.bus.statistics().link.lost == 1


async def test_a_command_link_that_does_not_answer_is_given_up(nodes: Cluster) -> None:
    node = await nodes.node("a", config=QUICK)
    node.link.hold_replies(of_subscriber=False)
    await until(lambda: node.bus.statistics().link.lost > 0)
    node.link.release()
    await published(node.bus, event())
    await node.sink.until(1)


# -- subscriptions


async def test_what_is_subscribed_to_lingers_and_then_goes(
    nodes: Cluster, scripts: Scripts, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    node = await nodes.node("a")
    name = [scripts.key("c:a")]
    before = calls(scripts.client, "subscribe")
    node.bus.unsubscribe(["a"])
    await trio.sleep(LINGER_SECONDS / 2)
    assert subscribers(scripts.client, name) == [1]
    await node.bus.subscribe(["a"])
    await trio.sleep(LINGER_SECONDS * 1.5)
    assert subscribers(scripts.client, name) == [1]
    assert calls(scripts.client, "subscribe") == before
    node.bus.unsubscribe(["a"])
    await trio.sleep(LINGER_SECONDS * 1.5)
    await up_to_date(node.bus)
    assert subscribers(scripts.client, name) == [0]


async def test_a_channel_that_comes_back_knows_what_it_missed(
    nodes: Cluster, autojump_clock: MockClock
) -> None:
    """Its ring is that of the new subscription alone; what came in between is in history."""
    autojump_clock.autojump_threshold = 0.05
    node, other = await nodes.node("a"), await nodes.node()
    positions = await published(other.bus, event(), event())
    await node.sink.until(2)
    node.bus.unsubscribe(["a"])
    await trio.sleep(LINGER_SECONDS * 1.5)
    positions += await published(other.bus, event())
    head = await node.bus.subscribe(["a"], positions[-1])
    assert positions[-1] <= head
    positions += await published(other.bus, event())
    await node.sink.until(3)
    head = await up_to_date(node.bus)
    assert await read_pages(node.bus, "a", positions[0], head, 100) == (False, positions[1:])


async def test_a_ring_that_is_cut_loses_nothing_and_is_not_charged(nodes: Cluster) -> None:
    node = await nodes.node("a")
    positions = await published(node.bus, *[event("a", data=str(number)) for number in range(20)])
    await node.sink.until(20)
    (ring,) = node.bus.rings()
    full = ring.bytes
    assert node.bus.statistics().history_bytes == full > 0
    assert ring.cut(full // 2, 3) == 3
    assert ring.cut(full // 2, 100) in (7, 8)  # as positions are long
    assert node.bus.statistics().history_bytes == ring.bytes <= full // 2
    head = await up_to_date(node.bus)
    found = await read_pages(node.bus, "a", positions[0], head, 100)
    assert found == (False, positions[1:])
    (ring,) = node.bus.rings()
    assert node.bus.statistics().history_bytes == ring.bytes


async def test_a_ring_that_nobody_wants_any_more_is_not_charged(
    nodes: Cluster, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    node = await nodes.node("a")
    await published(node.bus, event("a"))
    await node.sink.until(1)
    assert node.bus.statistics().history_bytes > 0
    node.bus.unsubscribe(["a"])
    await trio.sleep(LINGER_SECONDS * 1.5)
    assert not list(node.bus.rings())
    assert node.bus.statistics().history_bytes == 0


async def test_a_subscribe_that_is_given_up_leaves_no_claim(nodes: Cluster) -> None:
    node = await nodes.node("a", config=QUICK)
    node.link.hold_replies(of_subscriber=True)
    with trio.move_on_after(0.05):
        await node.bus.subscribe(["a", "b"])
    with pytest.raises(Unavailable):
        await node.bus.subscribe(["b"])
    claims = {name: node.bus._subscriptions.get(name) for name in "ab"}  # no statistics say it
    assert {name: each and each.claims for name, each in claims.items()} == {"a": 1, "b": 0}


async def test_a_node_that_makes_redis_wait_too_often_is_not_ready(nodes: Cluster) -> None:
    node, other = await nodes.node("a"), await nodes.node()
    assert node.bus.ready

    def has_overruns(count: int) -> bool:
        return node.bus.statistics().link.overruns == count

    for lost in range(1, OVERRUNS + 1):
        node.sink.full = True
        await published(other.bus, event())
        await until(lambda: node.bus._inflow._paused)  # statistics tell when the link is lost
        node.link.cut_one(of_subscriber=True)
        node.sink.full = False
        await until(partial(has_overruns, lost))
        await published(other.bus, event())
        await node.sink.until(2 * lost)
        assert node.bus.ready == (lost < OVERRUNS)
    assert node.sink.positions == sorted(set(node.sink.positions))


# -- history


async def test_many_readers_of_one_place_are_one(nodes: Cluster, scripts: Scripts) -> None:
    node = await nodes.node("a")
    positions = await published(node.bus, *[event()] * 20)
    await published(node.bus, *[event("kept")] * 20)
    new = await nodes.node("a")
    before = calls(scripts.client, "xrange")
    for name in ("a", "kept"):
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(new.bus.history, name, positions[0], new.bus.head(), 100)
    assert calls(scripts.client, "xrange") - before <= 4
    assert await read_pages(new.bus, "a", positions[0], new.bus.head(), 9) == (
        False,
        positions[1:],
    )


@pytest.mark.parametrize("channel", ["a", "kept"])
async def test_readers_go_on_without_the_one_that_asked_for_them(
    nodes: Cluster, channel: str
) -> None:
    node = await nodes.node()
    (position,) = await published(node.bus, event("a", "kept"))
    head = await node.bus.subscribe(["a"], position)
    node.link.hold_replies(of_subscriber=False)
    found: list[History] = []

    async def read() -> None:
        found.append(await node.bus.history(channel, ZERO, head, 100))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as leader:
            async with trio.open_nursery() as first:
                first.start_soon(read)
                await wait_all_tasks_blocked()
                nursery.start_soon(read)
                nursery.start_soon(read)
                await wait_all_tasks_blocked()
                leader.cancel()
        node.link.release()
    assert [[frame.position for frame in each.frames] for each in found] == [[position]] * 2


async def test_pages_are_bounded(nodes: Cluster) -> None:
    node = await nodes.node(config=Config(history_bytes=8 * 1024 * 1024))
    positions = await published(node.bus, *[event(data="x" * 100_000)] * 40)
    head = await up_to_date(node.bus)
    await node.bus.history("a", ZERO, head, 100)  # by which it knows how large they are
    page = await node.bus.history("a", ZERO, head, 100)
    assert sum(len(frame.chunk) for frame in page.frames) < 2 * 1024 * 1024
    assert (await read_pages(node.bus, "a", ZERO, head, 100))[1] == positions


async def test_what_redis_may_have_evicted_is_told_as_a_gap(
    nodes: Cluster, scripts: Scripts
) -> None:
    node = await nodes.node()
    start = await up_to_date(node.bus)
    nodes.wall.ms += 1
    (position,) = await published(node.bus, event())
    nodes.wall.ms += 1
    scripts.run("evicted", 1, nodes.wall.ms)
    other = await nodes.node()
    head = await other.bus.subscribe((), position)
    page = await other.bus.history("a", start, head, 100)
    assert [frame.position for frame in page.frames] == [position]
    assert page.previous > start
    nodes.wall.ms += 1
    (later,) = await published(node.bus, event())
    page = await other.bus.history("a", head, await other.bus.subscribe((), later), 100)
    assert page.previous <= head


# -- what it says of its links


async def test_each_link_that_is_made_again_counts_and_no_first_one(nodes: Cluster) -> None:
    node = await nodes.node("a")
    assert node.bus.statistics().link.reconnects == 0
    for count, of_subscriber in enumerate((True, False, True), 1):
        node.link.cut_one(of_subscriber=of_subscriber)
        await until(lambda: node.bus.statistics().link.reconnects == count)  # noqa: B023
        link = node.bus.statistics().link
        assert (link.lost, link.up) == (count, 1)


async def test_probes_are_timed_and_the_newest_has_an_age(nodes: Cluster) -> None:
    began = trio.current_time()
    node = await nodes.node("a", config=Config(redis_timeout=2.0))
    await until(lambda: node.bus.statistics().link.probes.count >= 2)
    link = node.bus.statistics().link
    assert 0 < link.probes.sum < trio.current_time() - began
    node.link.hold_replies(of_subscriber=True)
    count = node.bus.statistics().link.probes.count
    await until(lambda: node.bus.statistics().link.proof_age > 0.6)  # one came each 0.4 s
    assert node.bus.statistics().link.probes.count <= count + 1
    node.link.release()
    await until(lambda: node.bus.statistics().link.proof_age < 0.3)
    assert node.bus.statistics().link.probes.count > count


async def test_an_unlinked_bus_has_had_no_proof_since_its_start(nodes: Cluster) -> None:
    address = parse_address(f"redis://127.0.0.1:{free_port()}")
    bus = RedisBus(Config(), address, FakeSink(), worker="w", tell_gap=FakeSink().tell_gap)
    await trio.sleep(0.05)
    assert 0.05 <= bus.statistics().link.proof_age < 10


async def test_redis_on_this_machine_has_the_clock_of_this_machine(nodes: Cluster) -> None:
    node = await nodes.node("a", config=QUICK)
    await until(lambda: node.bus.statistics().link.clock_skew != 0)
    assert abs(node.bus.statistics().link.clock_skew) < 0.5
    assert abs(node.bus.ahead_ms - node.bus.statistics().link.clock_skew * 1000) <= 0.5


def test_of_the_last_looks_at_a_clock_the_shortest_counts() -> None:
    skew = Skew()
    skew.see(105.0, 100.0, 102.0)
    assert skew.seconds == 4.0
    skew.see(213.1, 210.0, 210.2)
    assert skew.seconds == pytest.approx(3.0)
    skew.see(350.0, 340.0, 341.0)
    assert skew.seconds == pytest.approx(3.0)
    for _ in range(CLOCK_LOOKS):  # somebody has set a clock
        skew.see(409.5, 400.0, 401.0)
    assert skew.seconds == 9.0


async def test_history_says_where_it_was_read(nodes: Cluster) -> None:
    other, node = await nodes.node(), await nodes.node("a")
    early, before = Position(1, 0), await up_to_date(node.bus)
    await published(other.bus, event(), event(), event())
    await node.sink.until(3)
    head = await up_to_date(node.bus)
    assert (await node.bus.history("a", before, head, 10)).source is Source.RING
    assert (await node.bus.history("a", early, head, 10)).source is Source.REDIS
    assert (await node.bus.history("a", early, head, 10)).source is Source.RING  # it was kept
    assert (await other.bus.history("a", early, head, 10)).source is Source.REDIS
    assert (await other.bus.history("a", head, head, 10)).source is Source.REDIS
