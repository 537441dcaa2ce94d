"""One stream for all tabs of an origin, in a real Chromium against real nodes."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import balancers
import certificates
import pytest
import trio
from chromium import Chromium, Tab, chromium, chromium_of_a_user
from node_js import run_module
from playwright.async_api import Error, Page, Route
from process import NodeProcess, eventually, in_parallel, node
from proxy import proxy_to

CONNECT = """async (options) => {
    const { connect } = await import("/client.js");
    window.heard = [];
    window.told = [];
    window.from = "";
    window.stream = connect({ url: "/events", share: true, minDelay: 50, ...options });
    for (const name of ["open", "gap", "dropped", "reconnecting", "end", "error"]) {
        stream.when(name, (detail) => told.push([name, detail.message ?? detail]));
    }
    stream.when("open", () => window.from ||= stream.lastEventId);
    stream.on("*", ({ id, channel, data }) => heard.push([id, channel, data]));
}"""

IMPATIENT = """() => {
    const { setTimeout } = window;
    window.setTimeout = (act, delay) => setTimeout(act, delay < 5_000 ? delay : delay / 100);
}"""

FORGE = """() => {
    const group = JSON.stringify([`${location.origin}/events`, "", true]);
    window.forged = new BroadcastChannel(`gateway 1 ${group}`);
    const from = "x";
    for (const data of [
        null, "end", { kind: "end" }, { kind: "constructor", from }, { kind: "event", from, id: 1 },
        { kind: "welcome", from, to: "y", seq: "1" }, { kind: "join", from, seq: 1, channels: [1] },
    ]) forged.postMessage(data);
}"""

OPEN = "() => stream.state.status === 'open'"
CLOSED = "() => stream.state.status === 'closed'"
LEADS = "() => stream.state.transport !== 'shared'"


class Member:
    """A tab with a stream that it shares."""

    def __init__(self, tab: Tab, channels: list[str]) -> None:
        self.tab = tab
        self.channels = channels

    async def told(self, name: str) -> list[Any]:
        told = await self.tab.run("() => told")
        return [detail for told_name, detail in told if told_name == name]

    async def heard(self, count: int) -> list[str]:
        """The data of all events, once there are ``count``."""
        await self.tab.until_true("(count) => heard.length >= count", count)
        return [data for _, _, data in await self.tab.run("() => heard")]

    async def until_open(self) -> None:
        await self.tab.until_true(OPEN)

    async def until_back(self) -> None:
        """Return once the page is there again, which was kept."""

        async def is_back() -> bool:
            try:
                return bool(await self.tab.run("() => 'heard' in window"))
            except Error:  # as it is just being left
                return False

        await eventually(is_back)


async def connect(browser: Chromium, url: str, *channels: str, **options: Any) -> Member:
    tab = await browser.tab(url)
    await tab.run(CONNECT, {"channels": list(channels)} | options)
    return Member(tab, list(channels))


async def connected(browser: Chromium, url: str, *channels: str, **options: Any) -> Member:
    member = await connect(browser, url, *channels, **options)
    await member.until_open()
    return member


async def leader_of(members: list[Member]) -> Member:
    """The one that leads, once there is one and all streams are open."""
    leaders: list[Member] = []

    async def there_is_one() -> bool:
        leaders.clear()
        for member in members:
            if not await member.tab.run(OPEN):
                return False
            if await member.tab.run(LEADS):
                leaders.append(member)
        return len(leaders) == 1

    await eventually(there_is_one)
    return leaders[0]


def place(position: str) -> tuple[int, int]:
    milliseconds, sequence = position.split("-")
    return int(milliseconds), int(sequence)


class Publisher:
    """Publishes to channels all the time, and remembers what."""

    def __init__(self, channels: list[str], random: Random) -> None:
        self.published: list[tuple[str, str, str]] = []
        self.enough = False
        self._channels = channels
        self._random = random

    async def publish(self, n: NodeProcess) -> None:
        async with n.client() as client:
            while not self.enough:
                batch = [
                    (self._random.choice(self._channels), str(len(self.published) + index))
                    for index in range(self._random.randrange(1, 6))
                ]
                body = "".join(
                    json.dumps({"channel": channel, "data": data}) + "\n" for channel, data in batch
                )
                headers = {"Content-Type": "application/x-ndjson"}
                answer = await client.post(f"{n.url}/publish", content=body, headers=headers)
                for (channel, data), line in zip(batch, answer.text.splitlines(), strict=True):
                    self.published.append((json.loads(line)["id"], channel, data))
                await trio.sleep(0.01)  # a pace, and no wait for anything

    async def check(self, member: Member) -> None:
        """The tab has every event of its channels since it joined, once and in order."""
        joined = await member.tab.run("() => window.from")
        expected = [
            list(event)
            for event in self.published
            if event[1] in member.channels and place(event[0]) > place(joined)
        ]
        heard: list[list[str]] = []

        async def has_all() -> bool:
            heard[:] = await member.tab.run("() => heard")
            return len(heard) >= len(expected) and heard[-1:] == expected[-1:]

        try:
            await eventually(has_all)
        finally:
            assert heard == expected
        assert await member.told("gap") == await member.told("error") == []


@asynccontextmanager
async def publishing(publisher: Publisher, n: NodeProcess) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher.publish, n)
        yield
        publisher.enough = True


async def test_tabs_come_and_go_and_crash_and_the_link_is_cut_and_nobody_misses_anything() -> None:
    random = Random(65)
    channels = [f"c{number}" for number in range(6)]
    publisher = Publisher(["all", *channels], random)
    async with node("--demo", "--retry", "0.1") as n, proxy_to(n) as proxy, chromium() as browser:
        members: list[Member] = []

        async def come() -> None:
            wanted = ["all", *random.sample(channels, random.randrange(3))]
            members.append(await connected(browser, proxy.url, *wanted))

        async with publishing(publisher, n):
            await in_parallel([come] * 10)
            assert (await n.stats())["clients"] == 1
            for _ in range(3):
                for act in random.sample(("close", "crash", "cut", "close another"), 4):
                    if act == "cut":
                        proxy.cut()
                        proxy.let_through()
                        continue
                    leader = await leader_of(members)
                    if act == "close another":
                        leader = random.choice([member for member in members if member != leader])
                    members.remove(leader)
                    await (leader.tab.crash() if act == "crash" else leader.tab.close())
                await come()
            await leader_of(members)
        assert len(members) == 4
        assert (await n.stats())["clients"] == 1
        for member in members:
            await publisher.check(member)


async def test_a_node_is_drained_behind_a_balancer_and_nobody_misses_anything(
    redis_port: int, new_prefix: str, certificate: certificates.Files
) -> None:
    redis = ("--redis", f"redis://127.0.0.1:{redis_port}", "--redis-prefix", new_prefix)
    balanced = ("--admin-bind", "127.0.0.1:0", "--trusted-proxies", "127.0.0.1")
    drained = ("--drain-grace", "0.5", "--drain-seconds", "0.1", "--retry", "0.1")
    flags = (*redis, *balanced, *drained, "--demo")
    publisher = Publisher(["a", "b"], Random(7))
    async with (
        node(*flags) as first,
        node(*flags) as second,
        balancers.haproxy([first, second], certificate) as balancer,
        chromium(ignore_https_errors=True) as browser,
    ):
        url = f"https://localhost:{balancer.https_port}"
        members = [await connected(browser, url, "a"), await connected(browser, url, "a", "b")]
        leaving, staying = first, second
        if not await leaving.metric("clients"):
            leaving, staying = second, first
        async with publishing(publisher, staying):
            leaving.signal(signal.SIGTERM)
            assert await leaving.wait() == 0
            await leader_of(members)
            await staying.until_clients(1)
        for member in members:
            await publisher.check(member)
            assert [told["reason"] for told in await member.told("reconnecting")] == ["draining"]


async def set_lifecycle(tab: Tab, state: str) -> None:
    async def set_it(page: Page) -> None:
        session = await page.context.new_cdp_session(page)
        await session.send("Page.setWebLifecycleState", {"state": state})

    await tab.do(set_it)


async def test_a_frozen_tab_and_one_that_is_gone_back_to_catch_up(tmp_path: Path) -> None:
    async with node("--demo") as n, chromium_of_a_user(tmp_path) as browser:
        first = await connected(browser, n.url, "a")
        second = await connected(browser, n.url, "a", "b")
        await n.publish("a", "1")
        for member in (first, second):
            await member.heard(1)

        await set_lifecycle(first.tab, "frozen")
        await leader_of([second])
        await n.publish("b", "2")
        await n.publish("a", *map(str, range(3, 600)))
        await second.heard(599)
        await set_lifecycle(first.tab, "active")
        await n.publish("a", "600")
        assert await first.heard(599) == ["1", *map(str, range(3, 601))]

        assert await leader_of([first, second]) is second
        await second.tab.open(f"{n.url}/stats")
        await leader_of([first])
        await n.publish("b", "601")
        await n.publish("a", "602")
        await first.heard(600)
        await second.tab.run("() => { setTimeout(() => history.back()); }")
        await second.until_back()
        assert await second.heard(602) == [*map(str, range(1, 603))]
        assert (await n.stats())["clients"] == 1
        for member in (first, second):
            assert await member.told("gap") == await member.told("error") == []


async def test_a_leader_that_hangs_is_replaced_and_follows_when_it_is_back() -> None:
    async with node("--demo") as n, chromium() as browser:
        first = await connected(browser, n.url, "a")
        tab = await browser.tab(n.url)
        await tab.run(IMPATIENT)
        await tab.run(CONNECT, {"channels": ["a"]})
        second = Member(tab, ["a"])
        await second.until_open()

        debugger = await first.tab.do(lambda page: page.context.new_cdp_session(page))
        await first.tab.do(lambda _: debugger.send("Debugger.enable"))
        paused = trio.Event()
        token = trio.lowlevel.current_trio_token()
        debugger.on("Debugger.paused", lambda _: token.run_sync_soon(paused.set))
        await first.tab.do(lambda _: debugger.send("Debugger.pause"))
        await n.publish("a", "1")
        await paused.wait()
        await n.publish("a", "2")
        assert await second.heard(2) == ["1", "2"]
        await first.tab.do(lambda _: debugger.send("Debugger.disable"))
        assert await leader_of([first, second]) is second
        await n.publish("a", "3")
        for member in (first, second):
            assert await member.heard(3) == ["1", "2", "3"]
        await n.until_clients(1)


async def test_what_a_tab_wants_from_before_is_for_that_tab_alone() -> None:
    async with node("--demo", "--max-streams-per-user", "2") as n, chromium() as browser:
        [begin, *_] = await n.publish("a", "1", "2", "3")
        first = await connected(browser, n.url, "a", user="7")
        others = [
            (await connect(browser, n.url, "a", user="7", lastEventId=begin), ["2", "3"]),
            (await connect(browser, n.url, "a", user="7", lastEventId="earliest"), ["1", "2", "3"]),
            (await connect(browser, n.url, "a", user="7", replay=2), ["2", "3"]),
            (await connect(browser, n.url, "a", user="7"), []),
        ]
        for member, missed in others:
            await member.until_open()
            assert await member.heard(len(missed)) == missed
        await n.publish("a", "4")
        await n.publish("b", "5", "6")
        asked = await first.tab.run(f"() => stream.subscribe('b', {{ since: '{begin}' }})")
        assert place(asked) > place(begin)
        await n.publish("b", "7")
        assert await first.heard(4) == ["4", "5", "6", "7"]
        for member, missed in others:
            assert await member.heard(len(missed) + 1) == [*missed, "4"]
        latest = others[-1][0]
        await latest.tab.run("() => stream.subscribe('b')")
        await latest.tab.run("() => stream.unsubscribe('a')")
        await n.publish("a", "8")
        await n.publish("b", "9")
        assert await latest.heard(2) == ["4", "9"]
        assert await latest.tab.run("() => stream.channels") == ["b", "global", "user:7"]
        assert (await n.stats())["clients"] == 1
        assert await n.metric('closed_total{reason="replaced"}') == 0


async def test_a_tab_is_told_why_its_channel_is_refused() -> None:
    async with node("--demo", "--max-channels-per-client", "2") as n, chromium() as browser:
        first = await connected(browser, n.url, "a")
        second = await connected(browser, n.url, "b", "a")
        refused = await second.tab.run(
            "() => stream.subscribe('c').catch((e) => [e.status, e.message])"
        )
        assert refused[0] == 400
        assert "2 channels" in refused[1]
        third = await connected(browser, n.url, "a", "c")
        assert await third.told("error") == [refused[1]]
        assert await third.tab.run("() => stream.channels") == ["a", "global"]
        await second.tab.close()

        async def there_is_room() -> bool:
            return bool(
                await third.tab.run("() => stream.subscribe('c').then(() => true, () => false)")
            )

        await eventually(there_is_room)
        await n.publish("c", "1")
        assert await third.heard(1) == ["1"]
        assert await first.tab.run("() => heard") == []


async def test_the_end_is_the_end_for_all_and_who_is_last_closes_the_connection() -> None:
    async with node("--demo") as n, chromium() as browser:
        members = [await connected(browser, n.url, channel) for channel in ("a", "a", "b")]
        await members[0].tab.run("() => stream.close()")
        await leader_of(members[1:])
        async with n.client() as client:
            ids = [(await client.get(f"{n.url}/channels/a")).json()["clients"]]
            event = {"channels": ["a", "b"], "data": "the last", "end": True}
            await client.post(f"{n.url}/publish", json=event)
        assert ids == [1]
        for member in members[1:]:
            await member.tab.until_true(CLOSED)
            assert await member.heard(1) == ["the last"]
            assert await member.told("end") == [{"reason": "ended"}]
        await n.until_clients(0)
        last = [await connected(browser, n.url, "c") for _ in range(2)]
        for member in last:
            await member.tab.run("() => stream.close()")
        await n.until_clients(0)


async def test_tabs_with_other_modules_or_names_or_without_locks_do_not_meet() -> None:
    async with node("--demo") as n, chromium() as browser:
        first = await connected(browser, n.url, "a")
        await connected(browser, n.url, "a", share="another")
        tab = await browser.tab(n.url)

        async def serve_another_version(route: Route) -> None:
            text = await (await route.fetch()).text()
            assert "FORMAT = 1;" in text
            text = text.replace("FORMAT = 1;", "FORMAT = 2;")
            await route.fulfill(content_type="text/javascript", body=text)

        await tab.do(lambda page: page.route("**/shared_messages.js", serve_another_version))
        await tab.run(CONNECT, {"channels": ["a"]})
        await tab.until_true(OPEN)
        insecure = await browser.tab(n.url)
        await insecure.run("() => Object.defineProperty(navigator, 'locks', { value: undefined })")
        await insecure.run(CONNECT, {"channels": ["a"]})
        await insecure.until_true(OPEN)
        assert (await n.stats())["clients"] == 4
        await first.tab.run(FORGE)
        second = await connected(browser, n.url, "a")
        await n.publish("a", "1")
        assert await first.heard(1) == await second.heard(1) == ["1"]
        assert first.tab.errors == second.tab.errors == []


@pytest.mark.parametrize("module", ["cursor.mjs", "sharing.mjs"])
def test_without_a_browser(module: str) -> None:
    run_module(module)
