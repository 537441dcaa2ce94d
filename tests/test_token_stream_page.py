"""Token streams as those see them who watch: pages in a real Chromium, and the Python client,
against nodes of the real program."""

import re
from typing import Any

import httpx
import msgspec
import pytest
from chromium import Tab, chromium
from documents import ROOT
from playwright.async_api import Page, Route
from process import NodeProcess, eventually, node
from proxy import proxy_to
from test_shared_stream import CLOSED, CONNECT, OPEN

from gateway.client import Ended, Event, StreamRefused, subscribe

CLIENT_README = (ROOT / "gateway/static/README.md").read_text("utf-8")


class Pushed:
    """A token stream that the test pushes, over many bodies."""

    def __init__(self, client: httpx.AsyncClient, url: str, id: str) -> None:
        self._client = client
        self._url = url
        self.id = id
        self.name = f"stream:{id}"
        self.text = ""
        self._lines = 0

    async def say(self, *texts: str, end: bool = False) -> None:
        lines = b"".join(msgspec.json.encode({"text": text}) + b"\n" for text in texts)
        query = {"seq": str(self._lines), "end": str(end).lower()}
        url = f"{self._url}/streams/{self.id}/events"
        answer = await self._client.post(url, params=query, content=lines)
        assert answer.status_code == 200, answer.text
        self.text += "".join(texts)
        self._lines += len(texts)


async def push(client: httpx.AsyncClient, n: NodeProcess) -> Pushed:
    answer = await client.post(f"{n.url}/streams", json={})
    assert answer.status_code == 201, answer.text
    return Pushed(client, n.url, answer.json()["id"])


async def shown(tab: Tab) -> str:
    return str(await tab.run("() => document.querySelector('output').textContent"))


async def test_the_page_of_the_readme_asks_and_goes_on_after_a_reload_to_the_end() -> None:
    found = re.search(r"<!-- chat -->\n```html\n(.*?)```", CLIENT_README, re.DOTALL)
    assert found is not None
    html = "<!doctype html>" + found[1]

    async def serve(route: Route) -> None:
        await route.fulfill(content_type="text/html", body=html)

    async def serve_it(page: Page) -> None:
        await page.route("**/chat*", serve)

    async with node() as n, chromium() as browser, n.client() as client:
        tab = await browser.tab()
        await tab.do(serve_it)
        await tab.open(f"{n.url}/chat")
        await tab.fill("[name=question]", "stop")
        await tab.click("button")
        await tab.until("output", r"\w{2}.*\w{2}")
        first = await tab.run("() => location.hash")
        await tab.fill("[name=question]", "resume")
        await tab.click("button")
        await tab.until_true("(first) => location.hash !== first", first)
        await n.until_clients(1)  # the first answer is not written among the second
        await tab.until("output", r"\w{2}.*\w{2}")
        await tab.do(lambda page: page.reload())
        before = await tab.until("output", r"\w{2}.*\w{2}")
        id = str(await tab.run("() => location.hash.slice(1)"))
        await tab.until_true(
            "(before) => document.querySelector('output').textContent.length > before",
            len(before),
        )
        stopped = await client.delete(f"{n.url}/streams/{id}")
        assert stopped.json() == {"id": id, "state": "stopped"}
        whole = (await client.get(f"{n.url}/streams/{id}")).json()

        async def has_all() -> bool:
            return await shown(tab) == str(whole["text"])

        await eventually(has_all)
        await n.until_clients(0)
        await tab.do(lambda page: page.reload())
        await eventually(has_all)  # of a stream that has ended
        await n.until_clients(0)
        assert tab.errors == []


ASK = """async () => {
    const { connect } = await import("/client.js");
    const messages = [{ role: "user", content: "resume" }];
    const body = JSON.stringify({ upstream: "demo", request: { model: "demo", messages } });
    const request = { body, headers: { "Content-Type": "application/json" } };
    window.heard = [];
    window.stream = connect({ url: "/streams", request, minDelay: 50 });
    stream.on("*", (event) => heard.push([event.type, event.json()]));
}"""


async def test_what_a_post_begins_is_resumed_by_get_and_ends_by_itself() -> None:
    async with (
        node("--retry", "0.1") as n,
        proxy_to(n) as proxy,
        chromium() as browser,
        n.client() as client,
    ):
        tab = await browser.tab(proxy.url)
        await tab.run(ASK)
        for count in (3, 8, 16):
            await tab.until_true("(count) => heard.length >= count", count)
            proxy.cut()
            await tab.until_true("() => stream.state.status === 'reconnecting'")
            proxy.let_through()
            await tab.until_true(OPEN)
        [[kind, start], *_] = await tab.run("() => heard")
        assert kind == "start"
        url = f"{n.url}/streams/{start['id']}"
        assert (await client.delete(url)).status_code == 200
        await tab.until_true(CLOSED)
        heard = await tab.run("() => heard")
        kinds = [kind for kind, _ in heard]
        assert (kinds.count("start"), kinds.count("complete")) == (1, 1)
        assert heard[-1] == ["complete", {"reason": "stopped", "usage": None}]
        whole = (await client.get(url)).json()
        assert "".join(data["text"] for kind, data in heard if kind == "token") == whole["text"]
        asked = [head.partition(" HTTP/")[0] for head in proxy.asked]
        assert asked.count("POST /streams") == 1
        name = f"stream:{start['id']}"
        assert sum(target.startswith(f"GET /events/{name}?") for target in asked) >= 3
        await n.until_clients(0)


async def test_tabs_that_share_a_stream_get_each_its_own_token_streams_whole() -> None:
    async with node() as n, chromium() as browser, n.client() as client:
        first, second = await push(client, n), await push(client, n)
        await first.say("a", "b")
        tabs: list[Tab] = []
        for stream in (first, second):
            tab = await browser.tab(n.url)
            await tab.run(CONNECT, {"channels": [stream.name], "lastEventId": "earliest"})
            await tab.until_true(OPEN)
            tabs.append(tab)
        late = await browser.tab(n.url)
        await second.say("x", "y")
        await late.run(CONNECT, {"channels": [second.name], "lastEventId": "earliest"})
        await late.until_true(OPEN)
        assert (await n.stats())["clients"] == 1
        await first.say("c", end=True)
        await second.say("z", end=True)
        for tab, stream in ((tabs[0], first), (tabs[1], second), (late, second)):
            await tab.until_true(CLOSED)
            heard = await tab.run("() => heard")
            told = [msgspec.json.decode(data) for _, _, data in heard]
            assert {channel for _, channel, _ in heard} == {stream.name}
            assert "".join(each.get("text", "") for each in told) == stream.text
            assert told[-1] == {"reason": "end", "usage": None}
            assert await tab.run("() => told.filter(([name]) => name === 'end').length") == 1
        await n.until_clients(0)


async def test_the_python_client_reads_from_a_snapshot_to_the_end() -> None:
    async with node() as n, n.client() as client:
        stream = await push(client, n)
        await stream.say("Hel", "lo")
        items: list[Any] = []
        async with subscribe(n.url, [stream.name], view="snapshot") as subscription:
            async for item in subscription.items:
                items.append(item)
                if isinstance(item, Event) and item.type == "snapshot":
                    await stream.say(", you", end=True)
        events = [item for item in items if isinstance(item, Event)]
        assert [event.type for event in events] == ["snapshot", "token", "complete"]
        assert events[0].json()["text"] + events[1].json()["text"] == stream.text
        assert {event.channels for event in events} == {(stream.name,)}
        assert isinstance(items[-1], Ended)


async def test_who_adds_a_token_stream_that_is_not_there_is_told_and_goes_on() -> None:
    async with node() as n, n.client() as client:
        stream = await push(client, n)
        async with subscribe(n.url, [stream.name]) as subscription:
            with pytest.raises(StreamRefused, match="There is no token stream of this id") as told:
                await subscription.add("stream:never-was")
            assert told.value.status == 409  # by 404 it would look for its own stream
            await stream.say("x", end=True)
            assert [event.type async for event in subscription] == ["token", "complete"]


async def test_who_has_a_snapshot_and_adds_another_channel_goes_on_with_both_over_a_cut_link() -> (
    None
):
    async with node("--retry", "0.1") as n, proxy_to(n) as proxy, n.client() as client:
        stream = await push(client, n)
        async with subscribe(
            proxy.url, [stream.name], view="snapshot", min_delay=0.05
        ) as subscription:
            assert (await anext(subscription)).type == "snapshot"
            await subscription.add("news")
            await stream.say("x")
            assert (await anext(subscription)).json() == {"text": "x"}
            proxy.cut()
            await stream.say("y")
            await client.post(f"{n.url}/publish/news", content=b"new")
            proxy.let_through()
            assert (await anext(subscription)).json() == {"text": "y"}
            assert (await anext(subscription)).data == "new"
