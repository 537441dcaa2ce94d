"""The demo page in a real browser, driven over chromedriver's own HTTP interface."""

import json
import re
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from process import PATIENCE, child, eventually, node
from proxy import proxy_to

FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1280,900",
)

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's reference (W3C WebDriver, section 12)."""


class Browser:
    """A WebDriver session. Selectors are CSS."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ask(self, method: str, path: str, value: object = None) -> Any:
        body = json.dumps(value or {}) if method == "POST" else None
        answer = (await self._client.request(method, path, content=body)).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    async def open(self, url: str) -> None:
        await self.ask("POST", "url", {"url": url})

    async def run(self, script: str, *arguments: object) -> Any:
        """What the body of a function in the page returns."""
        return await self.ask("POST", "execute/sync", {"script": script, "args": arguments})

    async def click(self, selector: str) -> None:
        await self.ask("POST", f"element/{await self._find(selector)}/click")

    async def fill(self, selector: str, text: str) -> None:
        element = await self._find(selector)
        await self.ask("POST", f"element/{element}/clear")
        if text:
            await self.ask("POST", f"element/{element}/value", {"text": text})

    async def _find(self, selector: str) -> str:
        found = await self.ask("POST", "element", {"using": "css selector", "value": selector})
        element: str = found[ELEMENT]
        return element

    async def until(self, selector: str, pattern: str = "") -> str:
        """The text of the first element that is like this, once there is one."""
        texts: list[str] = []

        async def is_there() -> bool:
            script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
            found = await self.run(script, selector)
            texts[:] = (text for text in found if re.search(pattern, text))
            return bool(texts)

        await eventually(is_there)
        return texts[0]

    async def events(self) -> list[tuple[str, str, str]]:
        """Type, data and id of the events that the page shows, the oldest first."""
        script = """return [...document.querySelectorAll("#events > li")].reverse().map(row =>
            [".type", ".data", ".id"].map(part => row.querySelector(part).textContent))"""
        return [(kind, data, id) for kind, data, id in await self.run(script)]

    async def errors(self) -> list[str]:
        """What the console has shown since the last time, violations of the page's CSP included."""
        entries = await self.ask("POST", "se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]


@asynccontextmanager
async def scratch() -> AsyncIterator[str]:
    """A directory, its path short enough for Chromium's sockets."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as path:
        yield path


@asynccontextmanager
async def browser(*flags: str) -> AsyncIterator[Browser]:
    """A headless Chromium with a fresh profile; it is gone afterwards, come what may."""
    async with (
        scratch() as profile,
        child("chromedriver", "--port=0", TMPDIR=profile) as driver,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client,
    ):
        port = (await driver.until(r"started successfully on port (\d+)"))[1]
        url = f"http://127.0.0.1:{port}/session"
        options = {"args": [*FLAGS, *flags, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = await client.post(url, json={"capabilities": {"alwaysMatch": wanted}})
        assert session.status_code == 200, session.text
        client.base_url = httpx.URL(f"{url}/{session.json()['value']['sessionId']}/")
        try:
            yield Browser(client)
        finally:
            await client.delete("")


@asynccontextmanager
async def connected_page(url: str) -> AsyncIterator[Browser]:
    """The demo page, connected to the channels that it proposes."""
    async with browser() as page:
        await page.open(f"{url}/")
        await page.click("#connect")
        await page.until("#state[data-state=open]")
        await page.until('#events > [data-type="connected"]')
        yield page


async def test_what_the_form_publishes_arrives_in_the_list() -> None:
    async with node() as n, connected_page(n.url) as page:
        await page.fill("#publish-event", "tick")
        await page.fill("#publish-data", "caf\u00e9 <b>\n two")
        await page.click("#publish-send")
        told = await page.until("#result[data-outcome=accepted]", "^Accepted as ")
        await page.until('#events > [data-type="tick"]')
        assert (await page.events())[1:] == [
            ("tick", "caf\u00e9 <b>\n two", told.removeprefix("Accepted as "))
        ]
        await page.until("#stat-clients", "^1$")
        await page.until("#stat-delivered-rate", r"^\d")
        assert await page.until("#stat-dropped") == "0"
        assert await page.errors() == []


async def test_what_others_publish_arrives_and_keepalives_do_not_show() -> None:
    async with node("--keepalive", "0.1") as n, connected_page(n.url) as page:
        ids = await n.publish("demo", "first")
        await n.until_metric("keepalives_total", await n.metric("keepalives_total") + 3)
        async with child("curl", "-sS", "--data-binary", "second", f"{n.url}/publish/demo") as curl:
            ids.append((await curl.until(r'{"id":"(.+)"}'))[1])
        await page.until(".data", "^second$")
        assert (await page.events())[1:] == [
            ("message", "first", ids[0]),
            ("message", "second", ids[1]),
        ]
        assert await page.errors() == []


SCRIPT = "document.documentElement.dataset.pwned = 1"

HOSTILE = [
    f"<script>{SCRIPT}</script>",
    f'<img src="x" onerror="{SCRIPT}">',
    f"<svg onload={SCRIPT.replace(' ', '')}>",
    f"<iframe srcdoc='<script>top.{SCRIPT}</script>'></iframe>",
    f'<a href="javascript:{SCRIPT}">x</a>',
    f"</pre></li></ol><script>{SCRIPT}</script>",
    f"</script><script>{SCRIPT}</script>",
    "<style>*{display:none}</style><base href='//x.test/'><meta http-equiv=refresh content=0>",
    f"javascript:{SCRIPT}",
    f"`${{{SCRIPT}}}` '; {SCRIPT}; // \" $(touch x)",
    "&lt;b&gt; &amp; <b>\u202ereversed\u202c</b> \u2028",
]
SHAPE = """return ["script", "img", "svg", "iframe", "a", "style", "base", "meta", "b", "i"].map(
    tag => document.querySelectorAll(tag).length)"""
"""How many elements there are of each kind."""

TYPES = [
    HOSTILE[0][:200],
    HOSTILE[1],
    "constructor",
    "__proto__",
    "toString",
    "error",
    "open",
    "x y",
]


async def test_what_strangers_publish_is_shown_as_text_and_nothing_of_it_runs() -> None:
    """As data, as types, and as the name of a channel and of a user in the page's own form."""
    async with node() as n, browser() as page:
        await page.open(f"{n.url}/")
        await page.fill("#types", ",".join(kind for kind in TYPES if "," not in kind))
        await page.click("#connect")
        await page.until('#events > [data-type="connected"]')
        before = await page.run(SHAPE)
        for data in HOSTILE:
            await n.publish_raw("demo", data)
        for kind in TYPES:
            await n.publish_raw("demo", f"<b>{kind}</b>", event=kind, id=f"<i>{kind}</i>")
        await n.publish_raw("demo", "last")
        await page.until(".data", "^last$")
        shown = [(kind, data) for kind, data, _ in await page.events() if kind != "connected"]
        assert shown == [
            *(("message", data) for data in HOSTILE),
            *((kind, f"<b>{kind}</b>") for kind in TYPES),
            ("message", "last"),
        ]
        assert await page.run(SHAPE) == before
        for field in ("#channels", "#user", "#publish-channel", "#publish-event", "#publish-data"):
            await page.fill(field, HOSTILE[1])
        await page.click("#publish-send")
        assert await page.until("#result[data-outcome=refused]", "^400: ") != ""
        await page.fill("#publish-data", HOSTILE[9])
        assert HOSTILE[9] in shlex.split(await page.until("#curl-publish"))
        assert await page.run(SHAPE) == before
        assert await page.run("return document.documentElement.dataset.pwned ?? null") is None
        assert await page.run("return location.pathname") == "/"
        refused = [message for message in await page.errors() if "400 (Bad Request)" not in message]
        assert refused == []


async def test_a_refused_publish_says_why() -> None:
    async with node() as n, connected_page(n.url) as page:
        await page.fill("#publish-channel", "global")
        await page.click("#publish-send")
        assert "reserved" in await page.until("#result[data-outcome=refused]", "^400: ")


async def test_the_page_comes_back_by_itself_after_a_restart_and_shows_the_gap() -> None:
    async with node("--retry", "0.2", "--drain-seconds", "0.2") as n:
        address = f"127.0.0.1:{n.port}"
        async with connected_page(n.url) as page:
            await n.publish("demo", "before")
            await page.until(".data", "^before$")
            n.signal(signal.SIGTERM)
            assert await n.wait() == 0
            await page.until("#state[data-state=reconnecting]")
            async with node("--retry", "0.2", bind=address) as again:
                await again.publish("demo", "missed")
                await page.until("#state[data-state=open]")
                await page.until(".data", "^missed$")
                await again.publish("demo", "after")
                await page.until(".data", "^after$")
                shown = [(kind, data) for kind, data, _ in await page.events()]
                assert [kind for kind, _ in shown] == [
                    *("connected", "message", "reconnect"),
                    *("connected", "gap", "message", "message"),
                ]
                assert "the bus was restarted" in shown[4][1]
                assert [data for _, data in shown[-2:]] == ["missed", "after"]


async def test_the_page_gets_what_it_missed_while_its_connection_was_cut() -> None:
    async with (
        node("--retry", "0.2") as n,
        proxy_to(n) as proxy,
        connected_page(proxy.url) as page,
    ):
        await n.publish("demo", "before")
        await page.until(".data", "^before$")
        proxy.cut()
        await page.until("#state[data-state=reconnecting]")
        await n.publish("demo", *(f"missed {number}" for number in range(10)))
        proxy.let_through()
        await page.until("#state[data-state=open]")
        await page.until(".data", "^missed 9$")
        shown = [data for kind, data, _ in await page.events() if kind != "connected"]
        assert shown == ["before", *(f"missed {number}" for number in range(10))]
