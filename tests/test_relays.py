"""The token streams of a worker: begun, stopped and left, over both buses and over HTTP."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from process import eventually
from rig import rule
from running import ACCEPT, Block, Gateway, Response, Wire, request, running, until
from tokens import SECRET, bearer, token
from trio.testing import wait_all_tasks_blocked
from upstreams import Call, FakeUpstream, Fault, Script, chat, fake_upstream, text_of

from gateway.cluster import Gathered
from gateway.config import Format, Upstream
from gateway.errors import GatewayError, Unavailable
from gateway.messages import Command
from gateway.policy import Policy
from gateway.relay import relays as relays_module
from gateway.relay.events import Complete, Token
from gateway.relay.relays import COUNT_VIEWERS, Limits, OfViewers, Plan, Viewers
from gateway.relay.running import Running
from gateway.relay.story import Story

JSON = b"Content-Type: application/json\r\n"

LIMITS = Limits(max_tokens=1000, max_seconds=600.0, max_event_bytes=100_000)

SLOW = Script(words=10_000, rate=50.0)
FAST = Script(words=20)
CONTROL = ("connected", "closed")

NEVER = Script(fault=Fault.NO_ANSWER)


@pytest.fixture(params=["memory", "redis"])
def bus(request: pytest.FixtureRequest, redis_port: int, new_prefix: str) -> dict[str, Any]:
    """The settings of a node's bus."""
    if request.param == "memory":
        return {}
    return on_redis(redis_port, new_prefix)


def on_redis(port: int, prefix: str) -> dict[str, Any]:
    return {"redis": f"redis://127.0.0.1:{port}/0", "redis_prefix": prefix}


def configured(fake: FakeUpstream, **more: Any) -> Upstream:
    return Upstream("fake", fake.url, Format.OPENAI, **more)


@asynccontextmanager
async def relaying(
    bus: dict[str, Any], *, nodes: int = 1, upstream: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[FakeUpstream, Sequence[Gateway]]]:
    """Nodes with the fake upstream, whose name is ``fake``."""
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(fake_upstream())
        given = {"upstreams": (configured(fake, **upstream or {}),), **bus, **settings}
        gateways = [await stack.enter_async_context(running(**given)) for _ in range(nodes)]
        await until(lambda: all(each.node.ledger.loaded for each in gateways))
        yield fake, gateways


async def post(gateway: Gateway, script: Script = SLOW, *headers: bytes, **more: Any) -> Response:
    """What POST /streams answers."""
    body = msgspec.json.encode({"upstream": "fake", "request": chat(script), **more})
    return await gateway.ask(request("POST", "/streams", JSON, *headers, body=body))


async def begun(gateway: Gateway, script: Script = SLOW, *headers: bytes, **more: Any) -> str:
    """The id of a new one."""
    answer = await post(gateway, script, *headers, **more)
    assert answer.status == 201, answer.body
    return str(answer.json["id"])


async def stopped(gateway: Gateway, id: str, *headers: bytes) -> Response:
    return await gateway.ask(request("DELETE", f"/streams/{id}", *headers))


async def view(gateway: Gateway, id: str, *headers: bytes) -> Wire:
    """A viewer of it from its beginning."""
    wire = await gateway.open(f"/events/stream:{id}?lastEventId=earliest", *headers)
    await wire.opened()
    return wire


async def told(wire: Wire) -> list[Block]:
    """All of the channel's events, to its end."""
    blocks = await wire.blocks()
    await wire.aclose()
    return events_of(blocks)


def events_of(blocks: Sequence[Block]) -> list[Block]:
    """Those of a channel."""
    return [block for block in blocks if block.data is not None and block.event not in CONTROL]


def text(blocks: Sequence[Block]) -> str:
    return "".join(str(block.json["text"]) for block in blocks if block.event == "token")


async def story(gateway: Gateway, id: str) -> Story:
    relays = gateway.node.relays
    found = await relays.registry.find(id)
    assert found is not None
    return await relays.story(found.record)


async def until_closed(call: Call) -> float:
    """When the gateway has closed its connection to the upstream."""
    with trio.fail_after(5):
        await call.closed.wait()
    assert call.closed_at is not None
    return call.closed_at


def nothing_runs(gateway: Gateway) -> bool:
    relays = gateway.node.relays
    return not (relays.running or relays._of_user or relays._of_upstream or relays._unwatched)


def held(gateway: Gateway) -> int:
    return gateway.node.relays.registry.statistics().held


# -- begun


async def test_one_is_begun_and_told_whole_to_viewers_at_any_node(bus: dict[str, Any]) -> None:
    async with relaying(bus, nodes=2 if bus else 1) as (fake, gateways):
        answer = await post(gateways[0], FAST)
        id = str(answer.json["id"])
        assert answer.json == {
            "id": id,
            "channel": f"stream:{id}",
            "url": f"/events/stream:{id}",
        }
        assert answer.header("location") == f"/events/stream:{id}"
        for gateway in gateways:
            blocks = await told(await view(gateway, id))
            assert [blocks[0].event, blocks[-1].event] == ["start", "complete"]
            assert blocks[0].json == {"id": id, "upstream": "fake", "model": "fake-1"}
            assert blocks[-1].json["reason"] == "end"
            assert text(blocks) == text_of(20)
            assert (await story(gateway, id)).text == text_of(20)
        await until(lambda: nothing_runs(gateways[0]) and not held(gateways[0]))
        assert len(fake.calls) == 1


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_who_accepts_an_event_stream_is_given_it_from_its_start(
    version: str, bus: dict[str, Any]
) -> None:
    async with relaying(bus) as (_, [gateway]):
        wire = await gateway.connect()
        body = msgspec.json.encode({"upstream": "fake", "request": chat(FAST)})
        await wire.send(request("POST", "/streams", JSON, ACCEPT, body=body, version=version))
        head = await wire.response()
        id, channel = head.header("stream-id"), head.header("stream-channel")
        assert (head.status, head.header("content-type")) == (200, "text/event-stream")
        assert channel == f"stream:{id}"
        assert head.header("content-location") == f"events/stream:{id}"
        assert (head.header("cache-control"), head.header("x-accel-buffering")) == (
            "no-cache",
            "no",
        )
        blocks = await wire.blocks()
        assert [block.event for block in blocks[:2]] == ["connected", "start"]
        assert blocks[1].json["id"] == id
        assert text(blocks) == text_of(20)
        await wire.aclose()
        last = events_of(blocks)[-1]
        assert last.event == "complete"
        assert str(blocks[-1].id).endswith(".closed")
        again = await gateway.ask(
            request("GET", f"/events/{channel}", ACCEPT, f"Last-Event-ID: {last.id}\r\n".encode())
        )
        assert again.status == 204


async def test_whose_connection_breaks_ends_nothing(bus: dict[str, Any]) -> None:
    async with relaying(bus) as (fake, [gateway]):
        wire = await gateway.connect()
        body = msgspec.json.encode(
            {"upstream": "fake", "request": chat(Script(words=20, rate=100.0))}
        )
        await wire.send(request("POST", "/streams", JSON, ACCEPT, body=body))
        id = str((await wire.response()).header("stream-id"))
        await wire.block()
        await wire.aclose()
        assert text(await told(await view(gateway, id))) == text_of(20)
        assert (await fake.call()).is_complete


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"upstream": "none"}, 400, "There is no upstream of that name; they are [[upstream]] tables."),
    ({"request": ...}, 400, "request is what the upstream is asked"),
    ({"channel": "a b"}, 400, "Channel name 'a b' contains ' '"),
    ({"channel": "global"}, 400, "The channel global is reserved"),
    ({"channel": "user:u"}, 400, "The channel user:u is reserved"),
    ({"channel": "stream:x"}, 400, "leave it out and the stream has its own, stream:<id>."),
    ({"channel": "kept." + "x" * 195}, 400, "The channel of a token stream has at most 196"),
    ({"channel": "dropping"}, 400, "The channel dropping has the policy drop, by which viewers"),
    ({"channel": "half"}, 400, "The channel half.raw has the policy drop"),
    ({"stopWhenUnwatched": -1}, 400, "stopWhenUnwatched is a number of seconds from 0 to 86400."),
    ({"user": ""}, 400, ""),
    ({"path": "../admin"}, 400, ""),
    ({"more": 1}, 400, "This begins no token stream: "),
    ({"upstream": ...}, 400, "request, path and idempotent are of an upstream"),
]


@pytest.mark.parametrize(("changes", "status", "sentence"), REFUSED, ids=range(len(REFUSED)))
async def test_what_cannot_be_begun_is_said(
    changes: dict[str, Any], status: int, sentence: str
) -> None:
    channels = (rule("kept.**", Policy.CATCH_UP), rule("half", Policy.CATCH_UP))
    async with relaying({}, channels=channels) as (fake, [gateway]):
        document = {"upstream": "fake", "request": chat(FAST)} | changes
        given = {name: value for name, value in document.items() if value is not ...}
        body = msgspec.json.encode(given)
        answer = await gateway.ask(request("POST", "/streams", JSON, body=body))
        assert answer.status == status, answer.body
        assert sentence in answer.detail
        assert (nothing_runs(gateway), held(gateway), fake.calls) == (True, 0, [])


async def test_a_user_and_an_upstream_have_so_many_at_a_time(bus: dict[str, Any]) -> None:
    limits = {"max_streams": 3, "max_streams_per_user": 2, "allow": ("users",)}
    mine, other = (bearer(token(name, subscribe=["**"])) for name in ("u", "v"))
    async with relaying(bus, upstream=limits, jwt_key=SECRET) as (_, [gateway]):
        ids = [await begun(gateway, SLOW, mine) for _ in range(2)]
        answer = await post(gateway, SLOW, mine)
        assert (answer.status, answer.header("retry-after")) == (429, "1")
        assert "max_streams_per_user" in answer.detail
        ids.append(await begun(gateway, SLOW, other))
        answer = await post(gateway, SLOW, other)
        assert answer.status == 503
        assert "max_streams" in answer.detail
        refused = gateway.node.relays.refused
        assert (refused["user"], refused["upstream"]) == (1, 1)
        assert (await stopped(gateway, ids[0], other)).status == 403
        assert (await stopped(gateway, ids[0], mine)).json == {"id": ids[0], "state": "stopped"}
        await until(lambda: gateway.node.relays.count("fake") == 2)
        await begun(gateway, SLOW, mine)


async def test_a_worker_makes_so_many_in_all(
    bus: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays_module, "MAX_RUNNING", 2)
    async with relaying(bus) as (_, [gateway]):
        ids = [await begun(gateway) for _ in range(2)]
        answer = await post(gateway)
        assert (answer.status, answer.detail) == (
            503,
            "The worker makes all the token streams that it can.",
        )
        await stopped(gateway, ids[0])
        await until(lambda: len(gateway.node.relays.running) == 1)
        await begun(gateway)


async def test_a_channel_of_ones_own_is_one_streams_alone(bus: dict[str, Any]) -> None:
    channels = (rule("kept.**", Policy.CATCH_UP),)
    async with relaying(bus, channels=channels) as (fake, [gateway]):
        await gateway.publish("kept.a", "before")
        id = await begun(gateway, FAST, channel="kept.a")
        wire = await gateway.open("/events/kept.a?lastEventId=earliest")
        await wire.opened()
        blocks = await told(wire)
        assert [block.event for block in blocks[:2]] == ["message", "start"]
        assert text(blocks) == text_of(20)
        assert (await story(gateway, id)).state == "complete"
        for channel in ("kept.a", "kept.a.raw"):
            answer = await post(gateway, FAST, channel=channel)
            assert answer.status == 409
            assert f"The channel {channel} is another token stream's" in answer.detail
        end = request("POST", "/publish/kept.b?end=true", body=b"the end")
        assert (await gateway.ask(end)).status == 202
        answer = await post(gateway, FAST, channel="kept.b")
        assert answer.status == 409
        assert "The channel kept.b has ended" in answer.detail

        async def is_nobodys() -> bool:
            answer = await post(gateway, FAST, channel="kept.b")
            return "The channel kept.b has ended" in answer.detail

        await eventually(is_nobodys)
        assert (len(fake.calls), held(gateway)) == (1, 0)


# -- stopped


async def test_a_stop_from_any_node_closes_the_call_and_is_told_once(
    bus: dict[str, Any],
) -> None:
    async with relaying(bus, nodes=2 if bus else 1) as (fake, gateways):
        id = await begun(gateways[0])
        wires = [await view(gateway, id) for gateway in gateways for _ in range(2)]
        call = await fake.call()
        await until(lambda: call.blocks > 3)
        asked = trio.current_time()
        answers: list[Response] = []

        async def stop(gateway: Gateway) -> None:
            answers.append(await stopped(gateway, id))

        async with trio.open_nursery() as nursery:
            for gateway in [*gateways, *gateways]:
                nursery.start_soon(stop, gateway)
        assert [answer.json for answer in answers] == [{"id": id, "state": "stopped"}] * len(
            answers
        )
        assert await until_closed(call) - asked < 1.0
        for wire in wires:
            blocks = await told(wire)
            ends = [block for block in blocks if block.event in ("complete", "error")]
            assert [end.json["reason"] for end in ends] == ["stopped"]
            assert text_of(10_000).startswith(text(blocks))
        again = await stopped(gateways[-1], id)
        assert (again.status, again.json["state"]) == (200, "stopped")
        await until(lambda: nothing_runs(gateways[0]))


async def test_a_stop_of_what_has_ended_or_never_was_changes_nothing(bus: dict[str, Any]) -> None:
    async with relaying(bus) as (_, [gateway]):
        id = await begun(gateway, FAST)
        await told(await view(gateway, id))
        assert (await stopped(gateway, id)).json == {"id": id, "state": "complete"}
        assert (await story(gateway, id)).reason == "end"
        answer = await stopped(gateway, "none")
        assert answer.status == 404
        assert "There is no token stream of this id" in answer.detail


async def test_stopped_as_it_ends_it_has_one_end(bus: dict[str, Any]) -> None:
    async with relaying(bus) as (_, [gateway]):
        relays = gateway.node.relays
        for turn in range(10):
            go = trio.Event()

            async def produce(running: Running, go: trio.Event = go) -> Complete:
                await go.wait()
                return Complete("end")

            running = await relays.begin(Plan(produce, LIMITS, Format.SSE))
            id = running.record.id
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relays.stop, id)
                for _ in range(turn):
                    await trio.lowlevel.checkpoint()
                go.set()
            found = await story(gateway, id)
            assert (found.state, found.events) in {("complete", 1), ("stopped", 1)}
        await until(lambda: nothing_runs(gateway))


async def test_stopped_before_its_upstream_has_answered(bus: dict[str, Any]) -> None:
    async with relaying(bus) as (fake, [gateway]):
        id = await begun(gateway, NEVER)
        call = await fake.call()
        assert (await stopped(gateway, id)).json["state"] == "stopped"
        await until_closed(call)


async def test_it_can_be_stopped_while_it_begins(bus: dict[str, Any]) -> None:
    """Nobody has its id yet, but for the node itself, as it drains."""
    async with relaying(bus) as (fake, [gateway]):
        relays = gateway.node.relays
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relays.begin, Plan(quiet, LIMITS, Format.SSE))
            await until(lambda: bool(relays.running))
            [running] = relays.running.values()
            running.stop(Complete("stopped"))
        await running.ended.wait()
        assert (await story(gateway, running.record.id)).reason == "stopped"
        assert fake.calls == []


async def quiet(running: Running) -> Complete:
    await trio.sleep_forever()
    raise AssertionError


async def test_of_a_frozen_worker_the_channel_is_ended_from_elsewhere(
    redis_port: int, new_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relaying(on_redis(redis_port, new_prefix), nodes=2) as (fake, [owner, other]):
        id = await begun(owner)
        wire = await view(other, id)
        call = await fake.call()

        async def refuse(worker: str, command: Command[Any, Any], asked: object) -> Any:
            raise Unavailable("It does not answer.", outcome="unknown")

        monkeypatch.setattr(other.node.cluster, "ask", refuse)
        assert (await stopped(other, id)).json["state"] == "stopped"
        await until_closed(call)  # as its next tokens were refused
        assert [block.event for block in await told(wire)][-1] == "complete"
        await until(lambda: nothing_runs(owner) and not held(owner))


# -- nobody watches


async def test_it_goes_on_while_somebody_watches_and_stops_behind_that(
    bus: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays_module, "LOOK_SECONDS", 0.05)
    async with relaying(bus, nodes=2 if bus else 1) as (fake, gateways):
        id = await begun(gateways[0], stopWhenUnwatched=0.2)
        other = await begun(gateways[0])  # which goes on
        wire = await view(gateways[-1], id)
        await trio.sleep(0.5)
        relays = gateways[0].node.relays
        assert id in relays.running
        await wire.aclose()
        await until_closed(await fake.call())
        await until(lambda: id not in relays.running)
        found = await story(gateways[0], id)
        assert (found.state, found.reason) == ("stopped", "unwatched")
        assert other in relays.running


@pytest.mark.parametrize("why", ["missing", "unavailable", "other"])
async def test_where_a_worker_does_not_answer_somebody_counts_as_watching(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays_module, "LOOK_SECONDS", 0.02)
    async with relaying({}, upstream={"stop_when_unwatched": 0.1}) as (_, [gateway]):
        cluster, asked = gateway.node.cluster, 0

        async def ask_all(command: Command[OfViewers, Viewers], of: OfViewers) -> Any:
            nonlocal asked
            asked += 1
            assert command is COUNT_VIEWERS
            if why == "unavailable":
                raise Unavailable("Nobody hears.")
            counts = [Viewers([0, 0])] if why == "other" else [Viewers([0])]
            return Gathered(counts, missing=int(why == "missing"))

        monkeypatch.setattr(cluster, "ask_all", ask_all)
        id = await begun(gateway)
        await until(lambda: asked > 15)
        assert id in gateway.node.relays.running


# -- batched


async def test_tokens_come_in_batches_where_that_is_wanted(bus: dict[str, Any]) -> None:
    async with relaying(bus, upstream={"batch_bytes": 30}) as (_, [gateway]):
        blocks = await told(await view(gateway, await begun(gateway, FAST)))
        assert text(blocks) == text_of(20)
        sizes = [len(text([block]).encode()) for block in blocks if block.event == "token"]
        assert len(sizes) < 10
        assert all(size >= 30 for size in sizes[:-1])


# -- drained


async def test_who_leaves_lets_them_end_and_begins_no_more(bus: dict[str, Any]) -> None:
    async with relaying(bus) as (fake, [gateway]):
        relays = gateway.node.relays
        id = await begun(gateway, Script(words=20, rate=100.0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relays.leave, 60.0)
            await wait_all_tasks_blocked()
            answer = await post(gateway)
            assert (answer.status, "draining" in answer.detail) == (503, True)
        assert (await story(gateway, id)).text == text_of(20)
        assert nothing_runs(gateway)
        assert not held(gateway)
        assert len(fake.calls) == 1


async def test_what_is_left_when_a_worker_leaves_is_told_to_be_lost(bus: dict[str, Any]) -> None:
    async with relaying(bus, nodes=2 if bus else 1) as (fake, gateways):
        ids = [await begun(gateways[0], idempotent=idempotent) for idempotent in (False, True)]
        await fake.call(1)
        wires = [await view(gateways[-1], id) for id in ids]
        await gateways[0].node.relays.leave(0.1)
        for call in fake.calls:
            await until_closed(call)
        for wire, retryable in zip(wires, (False, True), strict=True):
            blocks = await told(wire)
            assert blocks[-1].event == "error"
            assert blocks[-1].json["code"] == "producer-lost"
            assert blocks[-1].json["retryable"] is retryable
            assert text_of(10_000).startswith(text(blocks))
        assert nothing_runs(gateways[0])
        assert not held(gateways[0])


async def test_leaving_waits_for_no_stream_that_did_not_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of one whose channel has ended by then."""
    async with relaying({}) as (_, [gateway]):
        relays, go = gateway.node.relays, trio.Event()

        async def publish(events: object) -> Sequence[GatewayError]:
            await go.wait()
            return [Unavailable("No.", outcome="refused")]

        monkeypatch.setattr(gateway.node.bus, "publish", publish)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refusal, relays.begin, Plan(quiet, LIMITS, Format.SSE))
            await until(lambda: bool(relays.running))
            nursery.start_soon(relays.leave, 60.0)
            await wait_all_tasks_blocked()
            go.set()
        assert nothing_runs(gateway)
        assert not held(gateway)


async def refusal(begin: Callable[[Plan], Awaitable[Running]], plan: Plan) -> None:
    with pytest.raises(Unavailable):
        await begin(plan)


async def test_while_the_end_waits_to_be_noted_leaving_waits_without_haste(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with relaying({}) as (_, [gateway]):
        relays, finish, go = gateway.node.relays, gateway.node.relays.registry.finish, trio.Event()

        async def slowly(id: str) -> None:
            await go.wait()
            await finish(id)

        monkeypatch.setattr(relays.registry, "finish", slowly)
        id = await begun(gateway, FAST)
        await told(await view(gateway, id))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relays.leave, 60.0)
            await wait_all_tasks_blocked()  # which it never is where somebody is busy
            go.set()
        assert nothing_runs(gateway)


# -- cancelled, and failing


@pytest.mark.parametrize("what", ["open", "publish"])
async def test_of_a_creator_who_goes_while_it_begins_nothing_stays(
    what: str, bus: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it goes before or behind what it asked for is done."""
    channels = (rule("kept.**", Policy.CATCH_UP),)
    async with relaying(bus, channels=channels) as (fake, [gateway]):
        node = gateway.node
        relays, registry = node.relays, node.relays.registry
        ids: list[str] = []
        for late in (False, True):
            owner: Any = registry if what == "open" else node.bus
            original = getattr(owner, what)
            waits = trio.Event()

            async def wait(
                *given: Any,
                original: Any = original,
                late: bool = late,
                waits: trio.Event = waits,
            ) -> None:
                if late:
                    await original(*given)
                waits.set()
                await trio.sleep_forever()

            monkeypatch.setattr(owner, what, wait)
            plan = Plan(quiet, LIMITS, Format.SSE, "fake", channel=f"kept.{late}", user="u")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relays.begin, plan)
                await waits.wait()
                ids += relays.running
                monkeypatch.setattr(owner, what, original)
                nursery.cancel_scope.cancel()
            assert nothing_runs(gateway)
            await until(lambda: not held(gateway))
        assert not any(gateway.node.relays._opened.values())

        for id, late in zip(ids, (False, True), strict=True):

            async def is_gone(id: str = id) -> bool:
                return await registry.find(id) is None

            await eventually(is_gone)
            wire = await gateway.open(f"/events/kept.{late}?lastEventId=earliest")
            if late and what == "publish":  # who watches is told
                await wire.opened()
                blocks = await told(wire)
                assert [block.event for block in blocks] == ["start", "error"]
                assert blocks[-1].json["code"] == "internal"
            elif what == "open":
                await relays.begin(Plan(quiet, LIMITS, Format.SSE, channel=f"kept.{late}"))
        assert held(gateway) == (2 if what == "open" else 0)
        assert fake.calls == []


async def test_a_start_of_which_nobody_knows_is_followed_by_an_end(
    bus: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relaying(bus) as (_, [gateway]):
        relays, publish = gateway.node.relays, gateway.node.bus.publish

        async def lose_the_answer(events: Any) -> Any:
            await publish(events)
            monkeypatch.setattr(gateway.node.bus, "publish", publish)
            return [Unavailable("Who knows?", outcome="unknown")]

        monkeypatch.setattr(gateway.node.bus, "publish", lose_the_answer)
        answer = await post(gateway)
        assert answer.status == 503
        await until(lambda: not held(gateway))
        assert nothing_runs(gateway)
        assert relays._opened[Format.OPENAI] == 0


async def test_where_not_even_that_can_be_told_it_is_left_to_whoever_finds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relays_module, "LOOK_SECONDS", 0.02)
    async with relaying({}) as (_, [gateway]):
        relays, publish = gateway.node.relays, gateway.node.bus.publish
        ids: list[str] = []

        async def lose(events: Any) -> Any:
            if not ids:
                ids.extend(relays.running)
                await publish(events)
            else:
                monkeypatch.setattr(gateway.node.bus, "publish", publish)
            return [Unavailable("Who knows?", outcome="unknown")]

        monkeypatch.setattr(gateway.node.bus, "publish", lose)
        assert (await post(gateway)).status == 503
        blocks = await told(await view(gateway, ids[0]))
        assert [block.event for block in blocks] == ["start", "error"]
        assert blocks[-1].json["code"] == "producer-lost"
        await until(lambda: not held(gateway))


async def test_where_the_registry_cannot_be_told_of_the_end_no_other_stream_suffers(
    bus: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relaying(bus) as (_, [gateway]):
        registry = gateway.node.relays.registry
        finish, tries = registry.finish, 0

        async def fail(id: str) -> None:
            nonlocal tries
            tries += 1
            raise Unavailable("Not now.", reason="bus") if tries == 1 else ZeroDivisionError

        other = await begun(gateway)
        monkeypatch.setattr(registry, "finish", fail)
        blocks = await told(await view(gateway, await begun(gateway, FAST)))
        assert blocks[-1].event == "complete"
        await until(lambda: len(gateway.node.relays.running) == 1)
        monkeypatch.setattr(registry, "finish", finish)
        assert other in gateway.node.relays.running
        assert (await stopped(gateway, other)).json["state"] == "stopped"


async def test_a_fault_in_what_cleans_up_is_no_other_streams(
    bus: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ZeroDivisionError

    async def produce(running: Running) -> Complete:
        running.tell(Token("a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            nursery.start_soon(trio.sleep_forever)
        raise AssertionError

    async with relaying(bus) as (_, [gateway]):
        other = await begun(gateway)
        running = await gateway.node.relays.begin(Plan(produce, LIMITS, Format.SSE))
        await wait_all_tasks_blocked()
        assert (await stopped(gateway, running.record.id)).json["state"] == "stopped"
        assert "a token stream failed" in caplog.text
        assert other in gateway.node.relays.running


async def test_a_fault_at_its_channel_is_no_other_streams(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its lease is given back, and whoever finds it tells its viewers."""
    monkeypatch.setattr(relays_module, "LOOK_SECONDS", 0.02)
    async with relaying({}) as (fake, [gateway]):
        publish = gateway.node.bus.publish
        other = await begun(gateway)
        go = trio.Event()

        async def produce(running: Running) -> Complete:
            await go.wait()
            running.tell(Token("a"))
            await trio.sleep_forever()
            raise AssertionError

        async def fail(events: Any, patience: float | None = None) -> Any:
            if events[0].channels[0] == made.record.channel and patience is not None:
                monkeypatch.setattr(gateway.node.bus, "publish", publish)
                raise ZeroDivisionError
            return await publish(events, patience)

        made = await gateway.node.relays.begin(Plan(produce, LIMITS, Format.SSE))
        wire = await view(gateway, made.record.id)
        monkeypatch.setattr(gateway.node.bus, "publish", fail)
        go.set()
        blocks = await told(wire)
        assert [block.event for block in blocks] == ["start", "error"]
        assert blocks[-1].json["code"] == "producer-lost"
        assert "a token stream was lost" in caplog.text
        assert other in gateway.node.relays.running
        assert len(fake.calls) == 1


async def test_behind_a_hole_nothing_comes_but_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its producer still tells before it hears of it."""
    async with relaying({}) as (_, [gateway]):
        publish = gateway.node.bus.publish
        heard = trio.Event()

        async def produce(running: Running) -> Complete:
            running.tell(Token("a"))
            try:
                await trio.sleep_forever()
            finally:
                running.tell(Token("b"))
            raise AssertionError

        async def lose(events: Any, patience: float | None = None) -> Any:
            if patience is None or heard.is_set():
                return await publish(events, patience)
            heard.set()
            return [Unavailable("Who knows?", outcome="unknown")]

        monkeypatch.setattr(gateway.node.bus, "publish", lose)
        running = await gateway.node.relays.begin(Plan(produce, LIMITS, Format.SSE))
        await running.ended.wait()
        found = await story(gateway, running.record.id)
        assert (found.text, found.error and found.error.code) == ("", "bus-lost")


# -- those of the dead


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(msgspec.ValidationError("of a later version"), id="fault"),
        pytest.param(Unavailable("Of a later version.", reason="version"), id="version"),
    ],
)
async def test_nothing_wrong_with_one_keeps_others_from_their_end(
    wrong: Exception,
    bus: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(relays_module, "LOOK_SECONDS", 0.02)
    async with relaying(bus) as (_, [gateway]):
        relays = gateway.node.relays
        find = relays.registry.find
        ids = [
            (await relays.begin(Plan(None, LIMITS, Format.PUSH, away_seconds=60.0))).record.id
            for _ in range(2)
        ]

        async def fail(id: str) -> Any:
            if id == ids[0]:
                raise wrong
            return await find(id)

        monkeypatch.setattr(relays.registry, "find", fail)
        monkeypatch.setattr(relays.registry, "overdue", Given(ids))
        assert [b.event for b in await told(await view(gateway, ids[1]))] == ["start", "error"]
        assert ("could not be ended" in caplog.text) == (not isinstance(wrong, Unavailable))
        await until(lambda: relays.statistics().lost == 1)


async def test_where_there_are_many_dead_they_are_dealt_with_in_one_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relays_module, "MAX_OVERDUE", 2)
    monkeypatch.setattr(relays_module, "LOOK_SECONDS", 0.02)
    async with relaying({}) as (_, [gateway]):
        relays = gateway.node.relays
        plan = Plan(None, LIMITS, Format.PUSH, away_seconds=60.0)
        ids = [(await relays.begin(plan)).record.id for _ in range(5)]
        given = Given(ids[:2], ids[2:4], ids[4:])

        async def overdue() -> Sequence[str]:
            monkeypatch.setattr(relays_module, "LOOK_SECONDS", 3600.0)
            return await given()

        monkeypatch.setattr(relays.registry, "overdue", overdue)
        await until(lambda: relays.statistics().lost == 5)


async def test_who_comes_too_late_to_the_dead_leaves_them_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another worker may have begun them again by then."""
    monkeypatch.setattr(relays_module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(relays_module, "LEASE_SECONDS", 0.0)
    async with relaying({}) as (_, [gateway]):
        relays = gateway.node.relays
        plan = Plan(None, LIMITS, Format.PUSH, away_seconds=60.0)
        ids = [(await relays.begin(plan)).record.id for _ in range(2)]
        given = Given(ids, ids)
        monkeypatch.setattr(relays.registry, "overdue", given)
        await until(lambda: given.is_empty)
        assert [(await story(gateway, id)).state for id in ids] == ["streaming"] * 2


class Given:
    """What is found overdue, one time after the other."""

    def __init__(self, *given: Sequence[str]) -> None:
        self._given = list(given)

    @property
    def is_empty(self) -> bool:
        return not self._given

    async def __call__(self) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return self._given.pop(0) if self._given else ()


@pytest.mark.parametrize("why", ["no upstream", "no history", "full", "ok"])
async def test_what_is_begun_again_is_made_or_given_back(
    why: str, bus: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays_module, "LOOK_SECONDS", 0.02)
    async with relaying(bus) as (_, [gateway]):
        relays, registry = gateway.node.relays, gateway.node.relays.registry
        produced = 0

        async def produce(running: Running) -> Complete:
            nonlocal produced
            produced += 1
            running.tell(Token("again"))
            return Complete("end")

        overdue = registry.overdue
        monkeypatch.setattr(registry, "overdue", Given())  # until all is ready
        plan = Plan(None, LIMITS, Format.SSE, idempotent=True, request=b"x", away_seconds=0.0)
        id = (await relays.begin(plan)).record.id
        wire = await view(gateway, id)
        assert (await wire.event()).event == "start"
        if why == "full":
            monkeypatch.setattr(relays_module, "MAX_RUNNING", 0)
        if why == "no history":
            history = gateway.node.bus.history

            async def fail(*given: Any) -> Any:
                monkeypatch.setattr(gateway.node.bus, "history", history)
                raise Unavailable("Not now.")

            monkeypatch.setattr(gateway.node.bus, "history", fail)
        relays.again = lambda record, request: None if why == "no upstream" else (LIMITS, produce)
        monkeypatch.setattr(registry, "overdue", Given([id], [id] if why == "no history" else []))
        blocks = await told(wire)
        assert produced == (why == "ok")
        assert blocks[-1].event == ("complete" if why == "ok" else "error")
        assert text(blocks) == ("again" if why == "ok" else "")
        assert relays.statistics().restarted == (why == "ok")
        await until(lambda: nothing_runs(gateway) and not held(gateway))
        assert not await overdue()


async def test_who_leaves_buries_nobody_whom_others_could_begin_again(
    redis_port: int, new_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays_module, "LOOK_SECONDS", 0.02)
    async with relaying(on_redis(redis_port, new_prefix)) as (_, [gateway]):
        looks = 0

        async def overdue() -> Sequence[str]:
            nonlocal looks
            looks += 1
            return ()

        monkeypatch.setattr(gateway.node.relays.registry, "overdue", overdue)
        await until(lambda: looks > 0)
        await gateway.node.relays.leave(0.0)
        seen = looks
        await trio.sleep(0.1)
        assert looks == seen


async def test_a_stream_that_lasts_longer_than_it_is_kept_ends_in_order(
    bus: dict[str, Any],
) -> None:
    """Who joins late is told that its beginning is gone."""
    async with relaying(bus, stream_seconds=1.0) as (_, [gateway]):
        wait, go = trio.Event(), trio.Event()

        async def produce(running: Running) -> Complete:
            for number in range(30):
                running.tell(Token(str(number)))
                await trio.sleep(0.05)
            wait.set()
            await go.wait()
            return Complete("end")

        running = await gateway.node.relays.begin(Plan(produce, LIMITS, Format.SSE))
        id = running.record.id
        viewer = await view(gateway, id)
        await wait.wait()
        found = await story(gateway, id)
        assert (found.state, found.whole) == ("streaming", False)
        go.set()
        assert text(await told(viewer)) == "".join(map(str, range(30)))
        assert (await stopped(gateway, id)).json["state"] == "complete"
