"""One stream for all tabs of an origin, in a real Chromium against real nodes."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import balancers
import certificates
import pytest
import trio
from chromium import Chromium, Tab, chromium
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
