"""The client for browsers, in a real one, against real nodes and the proxies between them.

What takes time is told to the page's clock (playwright's), or is configured to be short.
"""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import certificates
import httpx
import pytest
import trio
from bad_proxies import bad_proxy_to
from balancers import free_port
from chromium import Chromium, Tab, chromium
from process import NodeProcess, child, eventually, node
from proxy import proxy_to
from test_pages import pages
from tokens import SECRET, seconds, token

FOLLOW = """async ([url, options]) => {
  const { connect } = await import(new URL("/client.js", url));
  const followed = { heard: [], told: [] };
  const tokens = options.tokens;
  if (tokens) options.token = async () => (tokens.length > 1 ? tokens.shift() : tokens[0]);
  delete options.tokens;
  const stream = connect({ url: new URL("/events", url), channels: ["a"], minDelay: 20, maxDelay: 200, ...options });
  for (const name of ["open", "gap", "dropped", "reconnecting", "end"]) {
    stream.when(name, (told) => followed.told.push([name, told]));
  }
  stream.when("error", (error) => followed.told.push(["error", error.message]));
  stream.on("*", (event) => followed.heard.push(event.data));
  Object.assign(window, followed, { stream });
}"""


class Followed:
    """A tab whose page follows a stream; and what it has heard and was told."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab

    async def heard(self, count: int) -> list[str]:
        """All data so far, once there is so much."""
        await self.tab.until_true("(count) => heard.length >= count", count)
        return list(await self.tab.run("() => heard"))

    async def told(self, name: str, count: int = 1) -> list[Any]:
        """All that was told by that name, once there is so much."""
        script = "([name, count]) => told.filter(([which]) => which === name).length >= count"
        await self.tab.until_true(script, [name, count])
        told = await self.tab.run("() => told")
        return [detail for which, detail in told if which == name]

    async def until(self, status: str, transport: str = "stream") -> None:
        script = "(is) => [stream.state.status, stream.state.transport].join() === is"
        await self.tab.until_true(script, f"{status},{transport}")


async def follow(browser: Chromium, url: str, page: str = "", **options: Any) -> Followed:
    """A stream of ``url``, in a page of it or of another one."""
    tab = await browser.tab(page or url)
    await tab.run(FOLLOW, [url, options])
    return Followed(tab)


def numbers(start: int, stop: int) -> list[str]:
    return [str(number) for number in range(start, stop)]


async def test_nothing_is_lost_or_doubled_however_often_the_link_is_cut() -> None:
    async with (
        node("--retry", "0.1", "--keepalive", "0.3") as n,
        proxy_to(n) as proxy,
        chromium() as browser,
    ):
        page = await follow(browser, proxy.url, channels=["a", "b"])
        await page.until("open")
        for turn in range(6):
            await n.publish("ab"[turn % 2], *numbers(100 * turn, 100 * turn + 50))
            proxy.cut()
            await n.publish("ab"[turn % 2], *numbers(100 * turn + 50, 100 * turn + 100))
            proxy.let_through()
        assert await page.heard(600) == numbers(0, 600)
        assert len(await page.told("reconnecting")) >= 3
        # A channel is added and cut off in the midst of what it had missed.
        await n.publish("c", *numbers(0, 900))
        script = "() => { stream.subscribe('c', { since: 'earliest' }); heard.length = 0; }"
        await page.tab.run(script)
        await page.heard(1)
        for turn in range(3):
            proxy.cut()
            proxy.let_through()
            await n.publish("c", f"live {turn}")
            await page.heard(900 * (turn == 0) + turn)
        await n.publish("a", "last")
        await page.tab.until_true("() => heard.includes('last')")
        lives = [f"live {turn}" for turn in range(3)]
        heard = await page.heard(904)
        assert heard.count("last") == 1  # of another channel: what was missed may come later
        assert [data for data in heard if data != "last"] == [*numbers(0, 900), *lives]
        assert await page.told("gap", 0) == []
        await page.tab.run("() => stream.unsubscribe('c')")
        await n.publish("c", "to nobody")
        await n.publish("a", "the end")
        assert (await page.heard(905))[-1] == "the end"


async def test_a_proxy_that_holds_streams_back_or_forbids_them_is_got_around_without_a_loss() -> (
    None
):
    async with (
        node("--keepalive", "0.5", "--retry", "0.1") as n,
        bad_proxy_to(n) as proxy,
        chromium() as browser,
    ):
        proxy.treats_streams = "buffer"
        tab = await browser.tab(proxy.url)
        await tab.do(lambda page: page.clock.install())
        await tab.run(FOLLOW, [proxy.url, {}])
        page = Followed(tab)

        async def streams_are_asked_for() -> bool:
            return proxy.streams > 0

        await eventually(streams_are_asked_for)
        await tab.do(lambda page: page.clock.fast_forward(8_000))
        await page.until("open", "poll")
        await n.publish("a", *numbers(0, 300))
        assert await page.heard(300) == numbers(0, 300)
        proxy.treats_streams = "pass"
        await n.publish("a", *numbers(300, 400))
        await tab.do(lambda page: page.clock.fast_forward(300_000))
        await page.until("open", "stream")
        await n.publish("a", *numbers(400, 500))
        assert await page.heard(500) == numbers(0, 500)
        # The stream that is open goes silent: the watchdog replaces it.
        proxy.treats_streams = "stall"
        await n.publish("a", *numbers(500, 510))
        proxy.streams = 0
        await eventually(streams_are_asked_for)
        proxy.treats_streams = "forbid"
        await n.publish("a", *numbers(510, 600))
        assert await page.heard(600) == numbers(0, 600)
        assert "silence" in [told["reason"] for told in await page.told("reconnecting")]
        await page.until("open", "poll")
        assert await page.told("error", 0) == []
