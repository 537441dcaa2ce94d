"""What a node tells of itself to those who watch, and who that is."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
import trio
from rig import Peer, Rig, read_body, rule
from rig import running as rigged
from running import Gateway, Wire, is_position, joined, request, running
from test_auth import KEYS
from test_cluster import document, nodes, put
from tokens import FAR, SECRET, bearer, token
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import reports
from gateway.api import admin, clients
from gateway.api.listing import LIST_CLIENTS, LOOKS_PER_TURN, Filter, serve_listing
from gateway.bus import Bus, BusStatistics, LinkStatistics
from gateway.client_summary import ClientSummary, summary
from gateway.config import OPS_RULE, Config
from gateway.happenings import MOST, MOST_DROPPING, Happenings
from gateway.histogram import Histogram, quantile, since
from gateway.hub import Opening
from gateway.hub_client import Channel, Client
from gateway.identity import ANYBODY, Identity
from gateway.names import OPS_CHANNEL, compile_pattern
from gateway.policy import Policy
from gateway.position import ZERO, Start
from gateway.reports import (
    CHANNELS_PER_TURN,
    CLIENTS_PER_TURN,
    MOST_BYTES,
    MOST_LISTED,
    WATCH,
    Busy,
    Report,
    Watch,
    fitted,
)
from gateway.server import Leave
from gateway.stream_state import Reason

ADMIN = token("root", subscribe=["**"], admin=True)
USER = token("u", subscribe=["**"], publish=["**"])

EVERYTHING = compile_pattern("**")


@asynccontextmanager
async def keyed(**settings: Any) -> AsyncIterator[Gateway]:
    async with running(**{"jwt_key": SECRET, "api_keys": KEYS, **settings}) as gateway:
        yield gateway


async def ask(
    gateway: Gateway, method: str, target: str, credential: str = "", body: str | None = None
) -> Any:
    headers = [bearer(credential)] if credential else []
    raw = request(method, target, *headers, body=None if body is None else body.encode())
    return await gateway.ask(raw)


async def opened(gateway: Gateway, target: str, credential: str = "") -> tuple[Wire, str]:
    """A stream whose ``connected`` has been read, and its client's id."""
    wire = await gateway.open(target, *([bearer(credential)] if credential else []))
    response = await wire.response()
    assert response.status == 200, response
    block = await next_of(wire, "connected")
    return wire, str(block["clientId"])


async def next_of(wire: Wire, event: str) -> dict[str, Any]:
    """The data of the next event of that type."""
    while True:
        block = await wire.block()
        if block.event == event:
            return block.json


# -- who has the channel


def test_who_may_administer_may_watch_and_no_pattern_gives_that_to_anybody_else() -> None:
    assert ANYBODY.may_subscribe(OPS_CHANNEL)
    assert Identity(admin=True).may_subscribe(OPS_CHANNEL)
    assert not Identity(subscribe=(EVERYTHING, compile_pattern(OPS_CHANNEL))).may_subscribe(
        OPS_CHANNEL
    )


def test_nobody_may_publish_to_it() -> None:
    for identity in (ANYBODY, Identity(admin=True), Identity(publish=(EVERYTHING,))):
        assert not identity.may_publish(OPS_CHANNEL)


@pytest.mark.parametrize("path", ["/events", "/poll"])
async def test_a_stream_of_it_is_for_administrators(path: str) -> None:
    public = {"anonymous": True, "public_channels": "**"}
    async with keyed(channels=(rule("**"),), **public) as gateway:
        target = f"{path}/{OPS_CHANNEL}?wait=0"
        refused = await ask(gateway, "GET", target, USER)
        assert (refused.status, "for administrators" in refused.detail) == (403, True)
        assert (await ask(gateway, "GET", target)).status == 401
        assert (await ask(gateway, "GET", f"{path}?channels=news,{OPS_CHANNEL}")).status == 401
        if path == "/poll":
            assert (await ask(gateway, "GET", target, ADMIN)).status == 200
        else:
            wire, _ = await opened(gateway, target, ADMIN)
            assert (await next_of(wire, "report"))["node"] == "test"


async def test_a_node_without_keys_shows_it_only_on_loopback() -> None:
    target = f"/poll/{OPS_CHANNEL}?wait=0"
    async with running() as gateway:
        assert (await ask(gateway, "GET", target)).status == 200
    async with running(bind="0.0.0.0:0") as gateway:
        refused = await ask(gateway, "GET", target)
        assert (refused.status, "only on loopback" in refused.detail) == (403, True)
        _, client = await opened(gateway, "/events/news")
        refused = await ask(gateway, "PUT", f"/clients/{client}/channels/{OPS_CHANNEL}")
        assert (refused.status, "only on loopback" in refused.detail) == (403, True)


async def test_it_is_added_by_an_administrator_to_a_stream_that_is_an_administrators() -> None:
    async with keyed() as gateway:
        own, client = await opened(gateway, "/events/news", ADMIN)
        _, theirs = await opened(gateway, "/events/news", USER)
        path = f"/channels/{OPS_CHANNEL}"
        refused = await ask(gateway, "PUT", f"/clients/{theirs}{path}", USER)
        assert (refused.status, "for administrators" in refused.detail) == (403, True)
        refused = await ask(gateway, "PUT", f"/clients/{theirs}{path}", ADMIN)
        assert (refused.status, "own token is an administrator's" in refused.detail) == (403, True)
        added = await ask(gateway, "PUT", f"/clients/{client}{path}", ADMIN)
        assert (added.status, OPS_CHANNEL in added.json["channels"]) == (200, True)
        assert (await next_of(own, "report"))["clients"] == 2
        removed = await ask(gateway, "DELETE", f"/clients/{client}{path}", ADMIN)
        assert (removed.status, OPS_CHANNEL in removed.json["channels"]) == (200, False)


async def test_a_stream_whose_new_token_is_no_administrators_loses_it() -> None:
    async with keyed() as gateway:
        _, client = await opened(gateway, f"/events?channels=news,{OPS_CHANNEL}", ADMIN)
        lesser = token("root", subscribe=["**"])
        renewed = await ask(gateway, "PUT", f"/clients/{client}/token", lesser)
        assert renewed.json["channels"] == ["news", "global", "user:root"]
        assert OPS_CHANNEL not in gateway.node.hub.members.channels


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (f"/publish/{OPS_CHANNEL}", "x"),
        ("/publish", f'{{"channel": "{OPS_CHANNEL}", "data": ""}}'),
        ("/publish", f'{{"channels": ["news", "{OPS_CHANNEL}"], "data": ""}}'),
    ],
    ids=["raw", "one of", "one of several"],
)
async def test_publishing_to_it_is_refused_for_everybody(target: str, body: str) -> None:
    json = b"Content-Type: application/json\r\n"
    async with running() as gateway:
        answer = await gateway.ask(request("POST", target, json, body=body.encode()))
        assert (answer.status, "Nobody publishes to gateway:ops" in answer.detail) == (403, True)
    async with keyed() as gateway:
        raw = request("POST", target, json, bearer(ADMIN), body=body.encode())
        assert (await gateway.ask(raw)).status == 403


async def test_in_ndjson_its_line_alone_is_refused() -> None:
    ndjson = b"Content-Type: application/x-ndjson\r\n"
    body = joined([{"channel": name, "data": ""} for name in (OPS_CHANNEL, "news")])
    async with running() as gateway:
        answer = await gateway.ask(request("POST", "/publish", ndjson, body=body))
        refused, taken = map(msgspec.json.decode, answer.body.splitlines())
        assert (refused["line"], refused["status"], "id" in taken) == (1, 403, True)


# -- what it is to a stream


@asynccontextmanager
async def rig_with(**settings: Any) -> AsyncIterator[Rig]:
    async with rigged(Config(keepalive=3600.0, node_id="n", **settings)) as rig:
        yield rig


def test_its_rule_is_built_in_whatever_is_configured() -> None:
    config = Config(channels=(rule("**", Policy.CATCH_UP), rule("gateway:*")), history_events=0)
    assert config.rule(OPS_CHANNEL) is OPS_RULE
    assert (OPS_RULE.policy, OPS_RULE.has_history, OPS_RULE.public) == (Policy.LATEST, True, False)


async def test_it_may_be_the_one_channel_that_is_asked_for() -> None:
    async with running() as gateway:
        wire, _ = await opened(gateway, f"/events/{OPS_CHANNEL}")
        assert (await next_of(wire, "report"))["subscriptions"] == 2


async def test_it_counts_among_the_channels_that_a_stream_may_have() -> None:
    async with running(max_channels_per_client=1) as gateway:
        refused = await ask(gateway, "GET", f"/events?channels=news,{OPS_CHANNEL}")
        assert refused.status == 400
        _, client = await opened(gateway, "/events/news")
        refused = await ask(gateway, "PUT", f"/clients/{client}/channels/{OPS_CHANNEL}")
        assert (refused.status, "max_channels_per_client" in refused.detail) == (400, True)


async def test_a_stream_goes_on_for_it_when_its_other_channels_have_ended() -> None:
    async with rig_with() as rig:
        watcher = await rig.open_live("news", OPS_CHANNEL, "global")
        reader = await rig.open_live("news", "global")
        last = await rig.publish("news", "last", end=True)
        for peer in (watcher, reader):
            await peer.read_all()
        assert (watcher.ended, reader.ended) == (False, True)
        back = await rig.open("news", OPS_CHANNEL, "global", resume=last)
        await back.read_all()
        assert not back.ended


async def test_no_event_ends_it(autojump_clock: MockClock) -> None:
    """As one could that somebody writes into Redis."""
    async with rig_with() as rig:
        watcher = await rig.open_live(OPS_CHANNEL, "global")
        await rig.publish(OPS_CHANNEL, "forged", end=True)
        await watcher.read_all()
        assert not watcher.ended
        assert watcher.client.has(OPS_CHANNEL)


async def test_the_log_names_it_as_what_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gateway.streams"):
        async with rig_with() as rig:
            await rig.open_live(OPS_CHANNEL, "global")
    (record,) = [record for record in caplog.records if record.msg == "stream opened"]
    assert isinstance(record.args, dict)
    assert record.args["names"] == [OPS_CHANNEL]


# -- reports


def reports_of(peer: Peer) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.data) for event in peer.events if event.event == "report"]


async def test_a_report_comes_at_once_and_then_each_second(autojump_clock: MockClock) -> None:
    async with rig_with() as rig:
        watcher = await rig.open_live(OPS_CHANNEL, "global")
        assert len(reports_of(watcher)) == 1
        await trio.sleep(3.5)
        await watcher.read_all()
        assert len(reports_of(watcher)) == 4
        (report, *_) = reports_of(watcher)
        assert (report["node"], report["worker"]) == ("n", rig.node.tag)
        assert (report["clients"], report["channels"], report["subscriptions"]) == (1, 2, 2)
        assert set(report) == {field.encode_name for field in msgspec.structs.fields(Report)}


async def test_what_is_to_be_known_at_once_is_reported_besides(autojump_clock: MockClock) -> None:
    async with rig_with() as rig:
        await rig.node.reports.report_now()
        assert rig.node.reports.published == 0  # as nobody watches
        watcher = await rig.open_live(OPS_CHANNEL, "global")
        await trio.sleep(1.5)
        rig.node.draining = True
        await rig.node.reports.report_now()
        await watcher.read_all()
        assert [each["draining"] for each in reports_of(watcher)] == [False, False, True]
        await trio.sleep(1)
        await watcher.read_all()
        assert len(reports_of(watcher)) == 4


async def test_nobody_watches_and_nothing_is_reported(autojump_clock: MockClock) -> None:
    async with rig_with() as rig:
        reader = await rig.open_live("news", "global")
        await trio.sleep(10)
        assert rig.node.reports.published == 0
        assert await rig.bus.last(OPS_CHANNEL) is None
        assert rig.hub.totals.happenings is None
        await reader.read_all()


async def test_reports_end_some_seconds_after_the_last_one_has_gone(
    autojump_clock: MockClock,
) -> None:
    async with rig_with() as rig:
        watcher = await rig.open_live(OPS_CHANNEL, "global")
        await trio.sleep(2.5)
        rig.hub.close(watcher.client, Reason.GONE)
        await trio.sleep(reports.LEASE_SECONDS)
        published = rig.node.reports.published
        assert 3 <= published <= 2.5 + reports.LEASE_SECONDS
        assert rig.hub.totals.happenings is None
        await trio.sleep(10)
        assert rig.node.reports.published == published
        again = await rig.open_live(OPS_CHANNEL, "global")
        assert len(reports_of(again)) == 1


async def test_who_was_asked_to_report_just_now_asks_nobody(autojump_clock: MockClock) -> None:
    async with rig_with() as rig:
        asked = 0

        async def ask_all(*_: object) -> None:
            nonlocal asked
            asked += 1

        await rig.node.cluster.ask_all(WATCH, Watch(1e9))
        with patch.object(rig.node.cluster, "ask_all", ask_all):
            watcher = await rig.open_live(OPS_CHANNEL, "global")
            await trio.sleep(reports.RENEW_SECONDS - 0.5)
            assert asked == 0
            await trio.sleep(1)
            assert asked == 1
            await trio.sleep(reports.RENEW_SECONDS)
            assert asked == 2
            await trio.sleep(10)
        await watcher.read_all()
        assert rig.node.reports.published == reports.LEASE_SECONDS


async def test_a_page_that_opens_has_the_last_report_at_once(autojump_clock: MockClock) -> None:
    async with rig_with() as rig:
        first = await rig.open_live(OPS_CHANNEL, "global")
        await first.read_all()
        second = await rig.open(OPS_CHANNEL, "global", resume=5)
        await second.read_all()
        assert reports_of(second) == reports_of(first)


async def test_reports_count_neither_as_published_nor_as_delivered(
    autojump_clock: MockClock,
) -> None:
    async with rig_with() as rig:
        watcher = await rig.open_live(OPS_CHANNEL, "news", "global")
        await rig.publish("news", "x")
        await trio.sleep(3.5)
        await watcher.read_all()
        now = rig.node.statistics()
        assert (now.bus.published, now.hub.delivered, now.reports) == (1, 1, 4)
        last = reports_of(watcher)[-1]
        assert (last["published"], last["delivered"], last["lag"]) == (1, 1, None)
        assert reports_of(watcher)[1]["lag"] == {"p50": 0.0005, "p99": 0.00099}
        assert watcher.client.written == 5


async def test_a_watcher_that_stalls_has_the_latest_report_and_costs_no_more(
    autojump_clock: MockClock,
) -> None:
    async with rig_with() as rig:
        watcher = await rig.open(OPS_CHANNEL, "global")
        await trio.sleep(60)
        assert rig.hub.totals.dropped_by_reason() == {"full": 0, "replaced": 0, "memory": 0}
        assert watcher.client.queued <= 3
        await watcher.read_all()
        ats = [report["uptimeSeconds"] for report in reports_of(watcher)]
        assert len(ats) < 60


class LostBus:
    """As ``bus``, with its link lost."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def statistics(self) -> BusStatistics:
        return replace(self._bus.statistics(), link=LinkStatistics(up=0))


async def test_while_the_link_is_lost_reports_are_skipped(autojump_clock: MockClock) -> None:
    async with rig_with() as rig:
        watcher = await rig.open_live(OPS_CHANNEL, "global")
        with patch.object(rig.node.reports, "_bus", LostBus(rig.bus)):
            await trio.sleep(4.5)
        await trio.sleep(1)
        await watcher.read_all()
        assert len(reports_of(watcher)) == rig.node.reports.published == 2


async def test_a_report_that_fails_ends_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig_with() as rig:
        watcher = await rig.open_live(OPS_CHANNEL, "global")
        with patch.object(rig.node.reports, "_about", None):
            await trio.sleep(1.5)
        assert [record.message for record in caplog.records] == ["a report failed"]
        await trio.sleep(1)
        await watcher.read_all()
        assert len(reports_of(watcher)) == 2


# -- what is in them


async def test_the_slowest_clients_and_the_busiest_channels_are_listed(
    autojump_clock: MockClock,
) -> None:
    async with rig_with() as rig:
        watcher = await rig.open_live(OPS_CHANNEL, "global")
        stalled = [await rig.open("slow", user=f"u{number}") for number in range(MOST_LISTED + 5)]
        await rig.open_live("quiet")
        for peer in stalled[3:]:
            rig.add(peer, "more")
        await wait_all_tasks_blocked()
        for _ in range(3):
            await rig.publish("slow", "x" * 5000)
        await rig.publish("more", "x" * 5000)
        await trio.sleep(1)
        await watcher.read_all()
        report = reports_of(watcher)[-1]
        assert (report["behind"], len(report["slow"])) == (MOST_LISTED + 5, MOST_LISTED)
        sizes = [each["queuedBytes"] for each in report["slow"]]
        assert sizes == sorted(sizes, reverse=True)
        assert sum(peer.client.queued for peer in stalled) == report["queuedFrames"]
        slowest = report["slow"][0]
        assert (slowest["state"], slowest["lane"], slowest["node"]) == ("behind", "direct", "n")
        assert (slowest["names"], slowest["channels"]) == (["slow", "more"], 2)
        assert slowest["behindSeconds"] == 1.0
        first, second, *_ = report["busy"]
        assert first == {"name": "slow", "clients": MOST_LISTED + 5, "events": 3}
        assert second == {"name": "more", "clients": MOST_LISTED + 2, "events": 1}


async def test_of_the_response_lane_only_those_for_whom_something_waits_are_slow(
    autojump_clock: MockClock,
) -> None:
    async with rig_with() as rig:
        watcher = await rig.open_live(OPS_CHANNEL, "global")
        reader = await read_body(rig, "a")
        await trio.sleep(1)
        await watcher.read_all()
        assert (reports_of(watcher)[-1]["behind"], reports_of(watcher)[-1]["slow"]) == (0, [])
        reader.go = trio.Event()
        for _ in range(3):
            await rig.publish("a", "x")
        await trio.sleep(1)
        await watcher.read_all()
        [slow] = reports_of(watcher)[-1]["slow"]
        assert (slow["lane"], slow["state"]) == ("response", "behind")
        reader.go.set()
        await wait_all_tasks_blocked()


async def test_others_have_their_turns_while_much_is_looked_at() -> None:
    async with rig_with() as rig:
        for number in range(3 * CLIENTS_PER_TURN + 1):
            names = [f"{number}-{each}" for each in range(4)]
            client = Client(str(number), None, None, ZERO, rig.hub.totals)
            rig.hub.add(client, names, ZERO, Opening.NEW)
            rig.hub.go_live(client, ZERO)
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            report = await rig.node.reports.gather(Happenings(lambda: 0))
            nursery.cancel_scope.cancel()
        assert (report.clients, report.channels) == (1501, 6004)
        assert turns + 1 >= 3 + 6004 // CHANNELS_PER_TURN  # whose turn was first is chance


async def test_what_happens_to_streams_is_told_while_somebody_watches(
    autojump_clock: MockClock,
) -> None:
    async with rig_with(outbox_frames=1) as rig:
        await rig.open_live("unseen")
        watcher = await rig.open_live(OPS_CHANNEL, "global")
        slow = await rig.open("news", user="u")
        for _ in range(5):
            await rig.publish("news", "x" * 5000)
        await wait_all_tasks_blocked()
        back = await rig.open_live("a", "b", "c", "d")
        await rig.open("news", resume=Start.UNKNOWN)
        await trio.sleep(0.5)
        rig.hub.close(back.client, Reason.GONE)
        await trio.sleep(0.5)
        await watcher.read_all()
        told = reports_of(watcher)[-1]["happenings"]
        assert [(each["kind"], each["reason"], each["count"]) for each in told] == [
            ("opened", "new", 1),
            ("dropped", "full", slow.client.dropped),
            ("opened", "new", 1),
            ("opened", "resumed", 1),
            ("gap", "unknown", 1),
            ("closed", "gone", 1),
        ]
        assert (told[0]["client"], told[0]["user"]) == (slow.client.id, "u")
        assert told[1]["channels"] == ["news"]
        assert (told[-1]["seconds"], told[-1]["channels"]) == (0.5, ["a", "b", "c"])
        assert reports_of(watcher)[-1]["omitted"] == 0
        assert len([each for each in told if each["seconds"] is None]) == 5


@dataclass
class Somebody:
    id: str = "c"
    user: str | None = None
    address: str = ""
    channels: tuple[Channel, ...] = ()


def test_the_latest_happenings_are_kept_and_the_others_counted() -> None:
    kept = Happenings(lambda: 7)
    for number in range(MOST + 3):
        kept.add("opened", Somebody(str(number)), "new")
    taken, omitted = kept.take()
    assert (taken[0].client, taken[-1].client, len(taken), omitted) == ("3", str(MOST + 2), MOST, 3)
    assert kept.take() == ([], 0)


def test_a_crowd_that_drops_takes_no_more_room_than_others() -> None:
    kept = Happenings(lambda: 7)
    kept.add("opened", Somebody(), "new")
    for _ in range(2):
        for number in range(10 * MOST):
            kept.dropped(Somebody(str(number)), "full", 2)
    (opening, *drops), omitted = kept.take()
    assert (opening.kind, len(drops), {each.count for each in drops}) == (
        "opened",
        MOST_DROPPING,
        {4},
    )
    assert omitted == 2 * (10 * MOST - MOST_DROPPING)
    kept.dropped(Somebody(), "full", 2)
    kept.dropped(Somebody(), "replaced", 1)
    kept.dropped(Somebody(), "full", 3)
    kept.dropped(Somebody(), "memory", 0)
    assert [(each.reason, each.count) for each in kept.take()[0]] == [("full", 5), ("replaced", 1)]


async def largest_report() -> Report:
    """With all that a report may list, and every name as long as may be."""
    name = "n" * 200
    async with rig_with() as rig:
        kept = Happenings(lambda: 2**41)
        peer = await rig.open(name, f"{name[1:]}a", f"{name[1:]}b", user='"\n' * 31)
        for _ in range(MOST):
            kept.add("closed", peer.client, Reason.UNEXPECTED_INPUT, seconds=1e6)
        report = await rig.node.reports.gather(kept)
        report.slow = [summary(peer.client, "h" * 64, 2**41, rig.hub.stands)] * MOST_LISTED
        report.busy = [Busy(name, 2**40, 2**40)] * MOST_LISTED
        return report


async def test_the_largest_report_fits_whatever_is_in_it() -> None:
    report = await largest_report()
    text = fitted(report, MOST_BYTES)
    assert MOST_BYTES / 2 < len(text) <= MOST_BYTES
    assert (len(report.slow), len(report.busy), len(report.happenings)) == (20, 20, 50)


@pytest.mark.parametrize("most", [20_000, 4000, 1])
async def test_lists_are_cut_until_a_report_fits(most: int) -> None:
    report = await largest_report()
    text = fitted(report, most)
    assert len(text) <= max(most, 1600)
    assert len(report.happenings) + report.omitted == 50
    assert msgspec.json.decode(text, type=Report) == report


def test_a_quantile_is_looked_up_among_the_values_since() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    assert quantile(histogram.snapshot(), 0.5) is None
    histogram.observe(0.5, 10)
    before = histogram.snapshot()
    assert quantile(before, 0.5) == 0.5
    histogram.observe(3.0, 4)
    lately = since(histogram.snapshot(), before)
    assert (lately.count, lately.sum, quantile(lately, 0.5)) == (4, 12.0, 3.0)
    histogram.observe(100.0, 1000)
    assert quantile(histogram.snapshot(), 0.99) == 4.0


# -- clients, and one of them


async def listed(gateway: Gateway, query: str = "", credential: str = "") -> dict[str, Any]:
    answer = await ask(gateway, "GET", f"/clients{query}", credential)
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json
    return found


def ids_of(found: dict[str, Any]) -> list[str]:
    return [client["id"] for client in found["clients"]]


async def test_clients_are_listed_with_what_became_of_them() -> None:
    async with running() as gateway:
        _, client = await opened(gateway, "/events?channels=a,b,c,d&user=u")
        await gateway.publish("a", "x")
        found = await listed(gateway)
        (told,) = found["clients"]
        assert (found["matched"], found["missing"]) == (1, 0)
        assert 0 <= gateway.node.now_ms() - told["openedAt"] < 10_000
        assert is_position(told["position"])
        known = {name: told[name] for name in set(told) - {"openedAt", "position"}}
        assert known == {
            "id": client,
            "node": "test",
            "user": "u",
            "address": "127.0.0.1",
            "state": "live",
            "lane": "direct",
            "channels": 4,
            "names": ["a", "b", "c"],
            "delivered": 1,
            "dropped": 0,
            "replayed": 0,
            "gaps": 0,
            "queuedFrames": 0,
            "queuedBytes": 0,
            "behindSeconds": 0.0,
        }


async def test_each_filter_leaves_those_that_fit() -> None:
    async with running() as gateway:
        _, first = await opened(gateway, "/events/a?user=u")
        _, second = await opened(gateway, "/events?channels=a,b&user=v")
        for query, expected in {
            "?channel=a": [first, second],
            "?channel=b": [second],
            "?channel=x": [],
            "?channel=user:u": [first],
            "?user=v": [second],
            "?user=u&channel=b": [],
            "?address=127.0.0.1": [first, second],
            "?address=127.0.0.2": [],
            "?state=live": [first, second],
            "?state=behind": [],
            "?node=test": [first, second],
            "?node=other": [],
            "?channel=&user=&limit=": [first, second],
            "?unknown=1": [first, second],
        }.items():
            found = await listed(gateway, query)
            assert (ids_of(found), found["matched"]) == (expected, len(expected)), query


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("state=dead", "state is one of live, behind, replaying, ending"),
        ("limit=0", "from 1 to 200"),
        ("limit=201", "from 1 to 200"),
        ("limit=-1", "from 1 to 200"),
        ("limit=1e1", "from 1 to 200"),
        ("limit=%D9%A3", "from 1 to 200"),
        ("channel=a%20b", "legal are"),
    ],
)
async def test_a_filter_that_nothing_can_fit_is_refused(query: str, says: str) -> None:
    async with running() as gateway:
        answer = await ask(gateway, "GET", f"/clients?{query}")
        assert (answer.status, says in answer.detail) == (400, True)


async def test_the_slowest_come_first_and_all_that_fit_are_counted(
    autojump_clock: MockClock,
) -> None:
    async with rig_with() as rig:
        serve_listing(rig.node)
        quick = [await rig.open_live("quick") for _ in range(3)]
        slow = [await rig.open("slow", "global", user="u") for _ in range(3)]
        rig.add(slow[1], "more")
        await wait_all_tasks_blocked()
        for _ in range(3):
            await rig.publish("slow", "x" * 5000)
        await trio.sleep(2)
        await rig.publish("more", "x" * 5000)
        await wait_all_tasks_blocked()
        (told,) = (await rig.node.cluster.ask_all(LIST_CLIENTS, Filter(limit=4))).told
        first, second, third, fourth = told.clients
        assert told.matched == 6
        assert first.id == slow[1].client.id
        assert {second.id, third.id} == {slow[0].client.id, slow[2].client.id}
        assert fourth.id == quick[0].client.id
        assert (first.state, first.behind_seconds) == ("behind", 2.0)
        assert first.queued_bytes > second.queued_bytes > 10_000
        assert first.queued_frames == slow[1].client.queued
        rig.hub.finish(slow[0].client, Reason.CLOSED, b"")
        (told,) = (await rig.node.cluster.ask_all(LIST_CLIENTS, Filter(state="ending"))).told
        assert [each.id for each in told.clients] == [slow[0].client.id]


async def test_a_node_with_many_clients_tells_of_as_many_as_are_asked_for() -> None:
    count = 2 * LOOKS_PER_TURN + 7
    async with rig_with() as rig:
        serve_listing(rig.node)
        clients = [
            Client(f"{number:05}", None, None, ZERO, rig.hub.totals) for number in range(count)
        ]
        for client in clients:
            rig.hub.add(client, ("a",), ZERO, Opening.NEW)
        (told,) = (await rig.node.cluster.ask_all(LIST_CLIENTS, Filter(limit=200))).told
        assert (told.matched, len(told.clients)) == (count, 200)
        assert [each.id for each in told.clients] == [client.id for client in clients[:200]]


async def test_one_client_is_shown_with_all_its_channels() -> None:
    async with running() as gateway:
        _, client = await opened(gateway, "/events?channels=a,b,c,d&user=u")
        shown = (await ask(gateway, "GET", f"/clients/{client}")).json
        assert shown["channelNames"] == ["a", "b", "c", "d", "global", "user:u"]
        assert (shown["anonymous"], shown["expires"], shown["poll"]) == (True, None, False)
        assert shown["request"] == client[:16]
        (listed_so,) = (await listed(gateway))["clients"]
        assert set(listed_so) < set(shown)


async def test_a_client_is_shown_to_its_own_user_and_to_administrators() -> None:
    async with keyed() as gateway:
        _, client = await opened(gateway, "/events/news", USER)
        for credential, status in ((USER, 200), (ADMIN, 200), (token("v"), 403), ("", 401)):
            answer = await ask(gateway, "GET", f"/clients/{client}", credential)
            assert answer.status == status
        shown = (await ask(gateway, "GET", f"/clients/{client}", USER)).json
        assert (shown["anonymous"], shown["expires"]) == (False, FAR * 1000)
        for id in ("x", f"{gateway.node.tag}.x"):
            assert (await ask(gateway, "GET", f"/clients/{id}", USER)).status == 404


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/clients"), ("POST", "/nodes/test/drain")],
    ids=["list", "drain"],
)
async def test_nodes_are_shown_and_stopped_by_administrators_alone(
    method: str, target: str
) -> None:
    async with keyed(anonymous=True) as gateway:
        assert (await ask(gateway, method, target, USER)).status == 403
        assert (await ask(gateway, method, target)).status == 401
        assert (await ask(gateway, method, target, ADMIN)).status in (200, 503)
    async with running(bind="0.0.0.0:0") as gateway:
        refused = await ask(gateway, method, target)
        assert (refused.status, "only on loopback" in refused.detail) == (403, True)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/clients"),
        ("POST", "/nodes/test/drain"),
        ("GET", f"/poll/{OPS_CHANNEL}?wait=0"),
        ("PUT", f"/clients/00000000.x/channels/{OPS_CHANNEL}"),
    ],
    ids=["list", "drain", "poll", "add"],
)
async def test_without_keys_nobody_behind_a_proxy_beside_it_oversees_a_node(
    method: str, target: str
) -> None:
    async with running(trusted_proxies="127.0.0.1") as gateway:
        for origin, refused in ((b"192.0.2.1", True), (b"127.0.0.1", False)):
            raw = request(method, target, b"X-Forwarded-For: %b\r\n" % origin)
            assert ((await gateway.ask(raw)).status == 403) is refused


# -- over several workers


async def test_every_worker_reports_while_one_has_a_watcher(autojump_clock: MockClock) -> None:
    async with nodes("a", "b", "b") as (_, rigs):
        watcher = await rigs[0].open_live(OPS_CHANNEL, "global")
        await trio.sleep(2.5)
        assert [rig.node.reports.published for rig in rigs] == [3, 3, 3]
        rigs[0].hub.close(watcher.client, Reason.GONE)
        await trio.sleep(10)
        counts = [rig.node.reports.published for rig in rigs]
        await trio.sleep(10)
        assert [rig.node.reports.published for rig in rigs] == counts


async def test_the_slowest_of_all_workers_are_listed_together(autojump_clock: MockClock) -> None:
    async with nodes("a", "b", "b") as (network, rigs):
        for rig in rigs:
            serve_listing(rig.node)
        slow = [await rig.open("news") for rig in rigs]
        for count, rig in enumerate(rigs, 2):
            await rig.open_live("quick")
            for _ in range(count):
                await rig.publish("news", "x" * 5000)
        await wait_all_tasks_blocked()
        found = document(await clients.list_clients(rigs[0].node, put("/clients?limit=4")), 200)
        told = msgspec.convert(found["clients"], list[ClientSummary])
        assert [each.id for each in told[:3]] == [peer.client.id for peer in reversed(slow)]
        assert [each.node for each in told[:3]] == ["b", "b", "a"]
        assert (len(told), found["matched"], found["missing"]) == (4, 6, 0)
        network.deaf = {rigs[2].node.tag}
        found = document(await clients.list_clients(rigs[0].node, put("/clients")), 200)
        assert (found["matched"], found["missing"]) == (4, 1)


async def test_all_workers_of_a_node_are_had_to_leave_and_no_others(
    autojump_clock: MockClock,
) -> None:
    async with nodes("a", "b", "b") as (network, rigs):
        leaves = [Leave() for _ in rigs]
        for rig, leave in zip(rigs, leaves, strict=True):
            rig.node.ask_to_leave = leave.wanted.set
        told = document(await admin.drain(rigs[0].node, put("/"), "b"), 202)
        assert told == {"node": "b", "workers": 2}
        assert [leave.wanted.is_set() for leave in leaves] == [False, True, True]
        network.deaf = {rigs[1].node.tag}
        told = document(await admin.drain(rigs[0].node, put("/"), "b"), 202)
        assert told == {"node": "b", "workers": 1}
        network.deaf = {rig.node.tag for rig in rigs[1:]}
        told = document(await admin.drain(rigs[0].node, put("/"), "b"), 503)
        assert (told["outcome"], told["missing"]) == ("unknown", 2)


# -- leaving


async def test_a_node_is_had_to_leave_once_however_often_it_is_asked() -> None:
    async with running() as gateway:
        leave = Leave()
        gateway.node.ask_to_leave = leave.wanted.set
        for _ in range(2):
            answer = await ask(gateway, "POST", "/nodes/test/drain")
            assert (answer.status, answer.json) == (202, {"node": "test", "workers": 1})
            assert leave.wanted.is_set()


@pytest.mark.parametrize("id", ["other", "", "a/b", "%00", "test/"])
async def test_a_node_that_is_not_there_is_not_found(id: str) -> None:
    async with running() as gateway:
        gateway.node.ask_to_leave = trio.Event().set
        assert (await ask(gateway, "POST", f"/nodes/{id}/drain")).status == 404
        assert (await ask(gateway, "GET", f"/nodes/{id}/drain")).status == 405


async def test_a_page_of_somebody_else_stops_no_node() -> None:
    origin = b"Origin: https://evil.example\r\n"
    async with running() as gateway:
        answer = await gateway.ask(request("POST", "/nodes/test/drain", origin, body=b""))
        assert answer.status == 403


async def test_a_node_that_nobody_can_end_says_so() -> None:
    async with running() as gateway:
        answer = await ask(gateway, "POST", "/nodes/test/drain")
        assert (answer.status, answer.json["outcome"]) == (503, "refused")
