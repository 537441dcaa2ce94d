"""The demo page in a real browser: what it shows, and what it keeps out."""

import re
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from chromium import Tab, chromium
from process import child, node
from proxy import proxy_to

from gateway.edge.pages import STATIC

ROWS = """() => [...document.querySelectorAll("#events > li")].reverse().map(row =>
    [".type", ".data", ".id"].map(part => row.querySelector(part).textContent))"""


async def events(tab: Tab) -> list[tuple[str, str, str]]:
    """Type, data and id of the events that the page shows, the oldest first."""
    return [(kind, data, id) for kind, data, id in await tab.run(ROWS)]


@asynccontextmanager
async def page(url: str, **options: Any) -> AsyncIterator[Tab]:
    """The demo page; ``options`` are those of `chromium`."""
    async with chromium(**options) as browser:
        yield await browser.tab(f"{url}/")


async def connect(tab: Tab) -> None:
    await tab.click("#connect")
    await tab.until("#state[data-state=open]")
    await tab.until('#events > [data-type="connected"]')


@asynccontextmanager
async def connected_page(url: str, **options: Any) -> AsyncIterator[Tab]:
    """The demo page, connected to the channel that it proposes."""
    async with page(url, **options) as tab:
        await connect(tab)
        yield tab


async def test_what_the_form_publishes_arrives_in_the_list() -> None:
    async with node() as n, connected_page(n.url) as tab:
        await tab.fill("#publish-event", "tick")
        await tab.fill("#publish-data", "caf\u00e9 <b>\n two")
        await tab.click("#publish-send")
        told = await tab.until("#result[data-outcome=accepted]", "^Accepted as ")
        await tab.until('#events > [data-type="tick"]')
        assert (await events(tab))[1:] == [
            ("tick", "caf\u00e9 <b>\n two", told.removeprefix("Accepted as "))
        ]
        await tab.until("#stat-clients", "^1$")
        await tab.until("#stat-delivered-rate", r"^\d")
        assert await tab.until("#stat-dropped") == "0"
        assert tab.errors == []


async def test_what_others_publish_arrives_and_keepalives_do_not_show() -> None:
    async with node("--keepalive", "0.7") as n, connected_page(n.url) as tab:
        ids = await n.publish("demo", "first")
        await n.until_metric("keepalives_total", await n.metric("keepalives_total") + 2)
        async with child("curl", "-sS", "--data-binary", "second", f"{n.url}/publish/demo") as curl:
            ids.append((await curl.until(r'{"id":"(.+)"}'))[1])
        await tab.until(".data", "^second$")
        assert (await events(tab))[1:] == [
            ("message", "first", ids[0]),
            ("message", "second", ids[1]),
        ]
        assert tab.errors == []


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
SHAPE = """() => ["script", "img", "svg", "iframe", "a", "style", "base", "meta", "b", "i"].map(
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
    "*",
    "x y",
]


async def test_what_strangers_publish_is_shown_as_text_and_nothing_of_it_runs() -> None:
    """As data, as types, and as the name of a channel and of a user in the page's own form."""
    async with node() as n, connected_page(n.url) as tab:
        before = await tab.run(SHAPE)
        for data in HOSTILE:
            await n.publish_raw("demo", data)
        for kind in TYPES:
            await n.publish_raw("demo", f"<b>{kind}</b>", event=kind, id=f"<i>{kind}</i>")
        await n.publish_raw("demo", "last")
        await tab.until(".data", "^last$")
        shown = [(kind, data) for kind, data, _ in await events(tab) if kind != "connected"]
        assert shown == [
            *(("message", data) for data in HOSTILE),
            *((kind, f"<b>{kind}</b>") for kind in TYPES),
            ("message", "last"),
        ]
        assert await tab.run(SHAPE) == before
        for field in ("#channel", "#user", "#publish-channel", "#publish-event", "#publish-data"):
            await tab.fill(field, HOSTILE[1])
        await tab.click("#publish-send")
        await tab.until("#result[data-outcome=refused]", "^400: ")
        await tab.click("#add")
        await tab.until("#channel-note", "contains '<'")
        await tab.click("#disconnect")
        await tab.fill("#channel", HOSTILE[1])
        await tab.click("#connect")
        await tab.until("#state[data-state=ended]", "^ended: 400: .*contains '<'")
        assert HOSTILE[1][:40] in await tab.until("#lines", "Ended: 400")
        await tab.fill("#publish-data", HOSTILE[9])
        assert HOSTILE[9] in shlex.split(await tab.until("#curl-publish"))
        assert await tab.run(SHAPE) == before
        assert await tab.run("() => document.documentElement.dataset.pwned ?? null") is None
        assert await tab.run("() => location.pathname") == "/"
        assert [error for error in tab.errors if "status of 400" not in error] == []


async def test_a_refused_publish_says_why() -> None:
    async with node() as n, connected_page(n.url) as tab:
        await tab.fill("#publish-channel", "global")
        await tab.click("#publish-send")
        assert "reserved" in await tab.until("#result[data-outcome=refused]", "^400: ")


async def test_the_page_comes_back_by_itself_after_a_restart_and_shows_the_gap() -> None:
    async with node("--retry", "0.2", "--drain-seconds", "0.2") as n:
        address = f"127.0.0.1:{n.port}"
        async with connected_page(n.url) as tab:
            await n.publish("demo", "before")
            await tab.until(".data", "^before$")
            n.signal(signal.SIGTERM)
            assert await n.wait() == 0
            await tab.until("#state[data-state=reconnecting]")
            async with node("--retry", "0.2", bind=address) as again:
                await again.publish("demo", "missed")
                await tab.until("#state[data-state=open]")
                await tab.until(".data", "^missed$")
                await again.publish("demo", "after")
                await tab.until(".data", "^after$")
                shown = [(kind, data) for kind, data, _ in await events(tab)]
                assert [kind for kind, _ in shown] == [
                    *("connected", "message", "reconnecting"),
                    *("connected", "gap", "message", "message"),
                ]
                assert "the bus was restarted" in shown[4][1]
                assert [data for _, data in shown[-2:]] == ["missed", "after"]


async def test_the_page_gets_what_it_missed_while_its_connection_was_cut() -> None:
    async with (
        node("--retry", "0.2") as n,
        proxy_to(n) as proxy,
        connected_page(proxy.url) as tab,
    ):
        await n.publish("demo", "before")
        await tab.until(".data", "^before$")
        proxy.cut()
        await tab.until("#state[data-state=reconnecting]")
        await n.publish("demo", *(f"missed {number}" for number in range(10)))
        proxy.let_through()
        await tab.until("#state[data-state=open]")
        await tab.until(".data", "^missed 9$")
        shown = [data for kind, data, _ in await events(tab) if kind == "message"]
        assert shown == ["before", *(f"missed {number}" for number in range(10))]

        proxy.cut()  # again, and soon
        await tab.until("#state[data-state=reconnecting]", r"^reconnecting in \d\.\d s$")
        await tab.until_true(
            "() => document.querySelectorAll('#events > .reconnecting').length === 2"
        )


async def test_channels_come_and_go_while_the_stream_is_open_and_say_their_policy() -> None:
    async with node() as n, connected_page(n.url) as tab:
        client = await tab.until("#client-id", ".")
        await tab.fill("#channel", "news, sports")
        await tab.click("#add")
        await tab.until("#lines", r"\+ sports")
        await tab.until("#chips li:has-text('sports') .policy", "^drop$")
        await n.publish("sports", "one")
        await tab.until(".data", "^one$")
        assert await tab.until(".event .channel") == "sports"
        await tab.click("[aria-label='Leave news']")
        await tab.until("#lines", "\u2212 news")
        await n.publish("news", "unheard")
        await n.publish("sports", "two")
        await tab.until(".data", "^two$")
        assert [data for _, data, _ in (await events(tab))[1:]] == ["one", "two"]
        assert await tab.until("#client-id") == client
        names = "() => [...document.querySelectorAll('#chips .name')].map(e => e.textContent)"
        assert await tab.run(names) == ["demo", "sports"]
        assert re.findall(r"channel=(\w+)", await tab.until("#curl-subscribe")) == [
            *("demo", "sports"),
        ]
        assert tab.errors == []


FOCUS = "() => document.activeElement.ariaLabel"


async def test_a_channel_keeps_the_focus_until_it_is_left() -> None:
    async with node() as n, page(n.url) as tab:
        await tab.until("#chips li")
        await tab.do(lambda page: page.focus("[aria-label='Leave demo']"))
        for _ in range(2):  # with each of them the page might draw its channels anew
            await tab.do(lambda page: page.wait_for_event("requestfinished"))
        assert await tab.run(FOCUS) == "Leave demo"
        await tab.do(lambda page: page.keyboard.press("Enter"))
        assert await tab.run(FOCUS) == "Add a channel"
        assert tab.errors == []


def luminance(colour: str) -> float:
    """Of #rgb or #rrggbb, as WCAG 2.2 has it."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_what_is_written_on_the_bars_of_the_picture_can_be_read_by_day_and_by_night() -> None:
    css = (STATIC / "demo.css").read_text("utf-8")
    schemes = [dict(re.findall(r"--([\w-]+): (#\w+)", root)) for root in css.split(":root")[1:3]]
    for colours in schemes:
        for bar in ("open", "wait", "poll", "over"):
            dark, light = sorted((luminance(colours[bar]), luminance(colours["on-bar"])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, bar


async def test_tabs_that_say_so_have_one_stream_together() -> None:
    async with node() as n, chromium() as browser:
        leader, other = [await browser.tab(f"{n.url}/") for _ in range(2)]
        for tab in (leader, other):
            await tab.click("#share")
            await connect(tab)
        assert await leader.until("#state") == "open"
        assert await other.until("#state") == "open, by another tab"
        await n.until_clients(1)
        await n.publish("demo", "to both")
        for tab in (leader, other):
            await tab.until(".data", "^to both$")
            assert tab.errors == []
        await other.click("#cut")
        await other.until("#cut-note[data-outcome=refused]", "Another tab holds the stream")
