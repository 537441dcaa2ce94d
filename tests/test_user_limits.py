"""How many streams a user has, and how many events a second are published: what is seen outside."""

from collections.abc import Collection
from dataclasses import replace

import pytest
import trio
from rig import Rig
from rig import running as rig_running
from running import Gateway, Wire, joined, request, running, until
from test_auth import API_KEY, KEYS
from tokens import SECRET, bearer, token
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.api.meter import meter_of
from gateway.api.request import Request
from gateway.bus.memory import MemoryBus
from gateway.config import ChannelRule, Config, UserLimit
from gateway.errors import Unavailable
from gateway.identity import ANYBODY, Identity
from gateway.node import Node
from gateway.policy import Policy
from gateway.position import ZERO, Position, Start
from gateway.stream_state import Reason
from gateway.streams import EventStream

JSON = b"Content-Type: application/json\r\n"
NDJSON = b"Content-Type: application/x-ndjson\r\n"


async def opened(gateway: Gateway, count: int, user: str = "u", version: str = "1.1") -> list[Wire]:
    wires = []
    for _ in range(count):
        wires.append(await gateway.open(f"/events/a?user={user}", version=version))
        await wires[-1].opened()
    return wires


async def closed_with(wire: Wire) -> str:
    """The last id of a stream that ends, which says nothing else on the way."""
    blocks = await wire.blocks()
    assert [(block.event, block.json) for block in blocks] == [("closed", {"reason": "replaced"})]
    assert blocks[0].id is not None
    return blocks[0].id


# -- streams of a user


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_sixth_stream_of_a_user_ends_the_oldest_for_good(version: str) -> None:
    async with running() as gateway:
        others = await opened(gateway, 5, "v")
        wires = await opened(gateway, 6, version=version)
        last = await closed_with(wires[0])
        assert last.endswith(".closed")
        again = await gateway.open("/events/a?user=u", b"Last-Event-ID: %b\r\n" % last.encode())
        assert (await again.response()).status == 204
        position = await gateway.publish("a", "x")
        for wire in (*wires[1:], *others):
            assert (await wire.event()).id == position
        statistics = gateway.node.statistics()
        assert statistics.hub.closed[Reason.REPLACED] == statistics.ledger.replaced == 1
        assert statistics.ledger.leases == 10


async def test_a_half_open_predecessor_locks_nobody_out() -> None:
    """Its peer is gone and has not said so: the next ones are let in."""
    async with running(max_streams_per_user=1) as gateway:
        for _ in range(5):
            await opened(gateway, 1)
        await gateway.clients(1)


async def test_a_stream_too_many_is_refused_where_that_is_the_policy() -> None:
    async with running(max_streams_per_user=2, user_limit=UserLimit.REFUSE) as gateway:
        first, second = await opened(gateway, 2)
        turned = await gateway.open("/events/a?user=u")
        response = await turned.response()
        assert (response.status, response.header("content-type")) == (200, "text/event-stream")
        assert b'event: reconnect\ndata: {"reason":"user"}\n\n' in response.body
        assert b"retry: " in response.body
        for target in ("/events/a?user=u", "/poll/a?user=u"):
            refused = await gateway.ask(request("GET", target))
            assert (refused.status, refused.header("retry-after")) == (503, "2")
            assert "has 2 streams" in refused.detail or "max_streams_per_user" in refused.detail
            assert refused.json["reason"] == "user"
        assert gateway.node.refused["user"] == 3
        old = await gateway.open("/events/a?user=u", version="1.0")
        assert (await old.response()).status == 200
        assert [block.event for block in await old.blocks()] == ["reconnect"]
        await first.aclose()
        await until(lambda: gateway.node.statistics().ledger.leases == 1)
        await opened(gateway, 1)
        await gateway.publish("a", "x")
        assert (await second.event()).data == "x"


async def test_who_has_no_user_has_no_limit_and_0_is_none() -> None:
    async with running(max_streams_per_user=1, user_limit=UserLimit.REFUSE) as gateway:
        for _ in range(5):
            await (await gateway.open("/events/a")).opened()
        assert gateway.node.statistics().ledger.leases == 0
    async with running(max_streams_per_user=0) as gateway:
        await opened(gateway, 20)
        assert gateway.node.statistics().ledger.leases == 0


async def test_the_streams_of_a_token_are_those_of_its_subject() -> None:
    credential = bearer(token("u", subscribe=["a"]))
    async with running(jwt_key=SECRET, max_streams_per_user=2) as gateway:
        wires = []
        for _ in range(3):
            wires.append(await gateway.open("/events/a", credential))
            await wires[-1].opened()
        assert (await closed_with(wires[0])).endswith(".closed")


async def test_a_poll_is_a_stream_and_one_that_is_replaced_is_not_to_come_back() -> None:
    async with running(max_streams_per_user=1) as gateway:
        poll = await gateway.connect()
        await poll.send(request("GET", "/poll/a?user=u&wait=60"))
        await gateway.clients(1)
        await opened(gateway, 1)
        answer = await poll.response()
        assert (answer.status, answer.json["events"]) == (200, [])
        assert str(answer.json["lastEventId"]).endswith(".closed")
        answered = await gateway.ask(request("GET", "/poll/a?user=u&wait=0"))
        assert answered.status == 200
        await until(lambda: gateway.node.statistics().ledger.leases == 0)


async def test_a_stream_that_ends_in_any_way_makes_room() -> None:
    config = Config(max_streams_per_user=1, user_limit=UserLimit.REFUSE)
    async with rig_running(config) as rig:
        for reason in (Reason.GONE, Reason.SLOW, Reason.DRAINING):
            peer = await rig.open_live("a", user="u")
            rig.hub.close(peer.client, reason)
        peer = await rig.open_live("a", user="u")
        rig.hub.finish(peer.client, Reason.CLOSED, b"")
        await rig.open_live("a", user="u")


class FailingBus(MemoryBus):
    """One that does not subscribe, or takes as long as the test wants."""

    proceed = trio.Event()
    fails = False

    async def subscribe(self, channels: Collection[str], after: Position = ZERO) -> Position:
        if self.fails:
            raise Unavailable("There is no bus.", reason="bus")
        await self.proceed.wait()
        return await super().subscribe(channels, after)


def failing(rig: Rig) -> FailingBus:
    assert isinstance(rig.bus, FailingBus)
    rig.bus.proceed = trio.Event()
    return rig.bus


async def open_response(rig: Rig, user: str) -> None:
    """A stream of the response lane, for ever."""
    async with rig.node.streams.responding(EventStream(("a",), user, Start.NOW)):
        await trio.sleep_forever()


async def test_an_opening_that_fails_or_is_cancelled_keeps_no_lease() -> None:
    config = Config(max_streams_per_user=1, user_limit=UserLimit.REFUSE)
    async with rig_running(config, FailingBus) as rig:
        bus = failing(rig)
        bus.fails = True
        for _ in range(2):
            with pytest.raises(Unavailable, match="no bus"):
                await rig.node.streams.open(EventStream(("a",), "u", Start.NOW))
        bus.fails = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_response, rig, "u")
            await wait_all_tasks_blocked()
            assert rig.node.statistics().ledger.leases == 1
            nursery.cancel_scope.cancel()
        assert rig.node.statistics().ledger.leases == 0
        assert not rig.node.replacements._opening


async def test_a_stream_that_is_replaced_while_it_opens_ends_as_soon_as_it_is_open() -> None:
    async with rig_running(Config(max_streams_per_user=2), FailingBus) as rig:
        bus = failing(rig)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(open_response, rig, "u")
            await wait_all_tasks_blocked()
            bus.proceed.set()
            await wait_all_tasks_blocked()
            assert len(rig.hub.members.clients) == 2
            assert rig.hub.statistics().closed[Reason.REPLACED] == 3
            assert rig.node.statistics().ledger.leases == 2
            nursery.cancel_scope.cancel()
        assert not rig.node.replacements._opening


# -- publish rates: no time passes in these tests, so that no token comes back


def event(*channels: str) -> dict[str, object]:
    return {"channels": list(channels), "data": "x"}


async def test_an_event_over_its_channels_rate_is_told_when_to_come_again(
    mock_clock: MockClock,
) -> None:
    async with running(channel_publish_rate=2.0) as gateway:
        for _ in range(2):
            await gateway.publish("a", "x")
        refused = await gateway.ask(request("POST", "/publish/a", body=b"x"))
        assert refused.status == 429
        assert refused.header("content-type") == "application/problem+json"
        assert refused.header("retry-after") == "1"
        assert refused.detail == (
            "The channel a has 2 events a second, and this is more (channel_publish_rate)."
            " It was not taken; publish it again later."
        )
        await gateway.publish("b", "x")
        assert gateway.node.bus.statistics().published == 3
        assert gateway.node.refused == {"channel-rate": 1}


async def test_over_http_1_0_it_is_the_same(mock_clock: MockClock) -> None:
    async with running(channel_publish_rate=1.0) as gateway:
        raw = request("POST", "/publish/a", body=b"x", version="1.0")
        assert [(await gateway.ask(raw)).status for _ in range(2)] == [202, 429]
        assert gateway.node.refused == {"channel-rate": 1}


async def test_each_line_stands_for_itself(mock_clock: MockClock) -> None:
    async with running(channel_publish_rate=3.0) as gateway:
        lines = [event("a") for _ in range(5)] + [event("b")]
        answer = await gateway.ask(request("POST", "/publish", NDJSON, body=joined(lines)))
        told = answer.body.splitlines()
        assert (answer.status, len(told)) == (200, 6)
        assert [b'"id"' in line for line in told] == [True] * 3 + [False] * 2 + [True]
        assert told[3].startswith(b'{"line":4,"status":429,"detail":"The channel a has 3 events')
        assert gateway.node.refused == {"channel-rate": 2}


async def test_an_event_of_several_channels_needs_room_in_each_or_takes_none(
    mock_clock: MockClock,
) -> None:
    async with running(channel_publish_rate=2.0) as gateway:
        lines = [event("a", "b"), event("a", "c"), event("a", "b"), event("b"), event("b")]
        answer = await gateway.ask(request("POST", "/publish", NDJSON, body=joined(lines)))
        taken = [b'"id"' in line for line in answer.body.splitlines()]
        assert taken == [True, True, False, True, False]


async def test_a_rule_gives_its_channels_a_rate_of_their_own(mock_clock: MockClock) -> None:
    rule = ChannelRule("ticker.*", Policy.DROP, 0, 0, 1.0, channel_publish_rate=1.0)
    async with running(channels=(rule,)) as gateway:
        for _ in range(20):
            await gateway.publish("a", "x")
        await gateway.publish("ticker.a", "x")
        refused = await gateway.ask(request("POST", "/publish/ticker.a", body=b"x"))
        assert refused.status == 429
        await gateway.publish("ticker.b", "x")


async def test_what_is_not_understood_or_not_allowed_costs_no_token(mock_clock: MockClock) -> None:
    credential = bearer(token("u", publish=["a"]))
    async with running(jwt_key=SECRET, publish_rate=2.0) as gateway:
        for body in (b"no json", b'{"channel": "b", "data": "x"}'):
            for _ in range(3):
                raw = request("POST", "/publish", JSON, credential, body=body)
                assert (await gateway.ask(raw)).status in (400, 403)
        raw = request("POST", "/publish/a", credential, body=b"x")
        assert [(await gateway.ask(raw)).status for _ in range(3)] == [202, 202, 429]


async def test_a_publisher_has_its_rate_wherever_it_publishes(mock_clock: MockClock) -> None:
    mine, other = (bearer(token(user, publish=["**"])) for user in "uv")
    async with running(jwt_key=SECRET, publish_rate=3.0) as gateway:
        for channel in "abc":
            raw = request("POST", f"/publish/{channel}", mine, body=b"x")
            assert (await gateway.ask(raw)).status == 202
        raw = request("POST", "/publish/d", mine, body=b"x")
        refused = await gateway.ask(raw)
        assert (refused.status, refused.header("retry-after")) == (429, "1")
        assert refused.detail.startswith("This publisher has 3 events a second")
        assert gateway.node.refused == {"publish-rate": 1}
        raw = request("POST", "/publish/d", other, body=b"x")
        assert (await gateway.ask(raw)).status == 202


async def test_an_api_key_may_have_a_rate_of_its_own(mock_clock: MockClock) -> None:
    async def statuses(rate: float) -> list[int]:
        keys = tuple(replace(key, publish_rate=rate) for key in KEYS)
        async with running(api_keys=keys, publish_rate=2.0) as gateway:
            raw = request("POST", "/publish/news.a", bearer(API_KEY), body=b"x")
            return [(await gateway.ask(raw)).status for _ in range(4)]

    assert await statuses(3.0) == [202] * 3 + [429]
    assert await statuses(0.0) == [202] * 4


async def test_this_machine_has_no_rate_without_keys() -> None:
    async with running(publish_rate=1.0) as gateway:
        assert not gateway.node.counts_events
        for _ in range(5):
            await gateway.publish("a", "x")


def asked(address: str) -> Request:
    return Request("POST", "/publish/a", (), lambda name: None, b"", address)


async def test_without_keys_others_are_counted_by_their_address() -> None:
    node = Node(Config(bind="0.0.0.0:8080", insecure=True, publish_rate=1.0), max_clients=1)
    assert node.counts_events
    assert meter_of(node, asked("127.0.0.1"), ANYBODY) is None
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"):
        assert meter_of(node, asked(address), ANYBODY) is not None
    assert len(node.ledger.rates) == 4


async def test_the_name_of_a_publisher_cannot_make_a_key_long_or_odd() -> None:
    node = Node(Config(jwt_key=SECRET), max_clients=1)
    for publisher in ("sub:" + "x" * 5000, "sub:\N{SNOWMAN}\n", "sub:\udc80"):
        assert meter_of(node, asked("192.0.2.1"), Identity(publisher=publisher)) is not None
    names = list(node.ledger.rates._buckets)
    assert len(set(names)) == 3
    assert all(len(name) == len("h:") + 64 and name.isascii() for name in names)
