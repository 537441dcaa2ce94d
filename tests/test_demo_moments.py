"""The bad moments of the demo page: each button does what it says, and nothing is lost by it."""

import os
import struct
from pathlib import Path

from chromium import Tab
from process import NodeProcess, eventually, node
from running import running
from test_demo_page import connect, connected_page, events, page
from tokens import SECRET, token

PICTURE = Path(__file__).parent.parent / ".github" / "playground.png"
"""For the README. Taken anew with GATEWAY_PICTURES=1."""

WIDTH, HEIGHT = 1280, 768
MAX_PICTURE_BYTES = 200 * 1024


def number(text: str) -> int:
    return int(text.replace(",", ""))


async def received(tab: Tab) -> int:
    return number(await tab.until("#received"))


async def phases(tab: Tab) -> list[str]:
    """What the link of the client was, one after the other, as the picture shows it."""
    shown = "() => [...document.querySelectorAll('#picture .phase')].map(e => e.classList[1])"
    return [str(kind) for kind in await tab.run(shown)]


async def test_events_published_while_the_link_is_cut_all_come_by_replay() -> None:
    async with node("--retry", "0.1") as n, connected_page(n.url) as tab:
        await n.publish("demo", "before")
        await tab.until(".data", "^before$")
        await tab.click("#cut")
        await n.until_clients(0)
        await tab.until("#state[data-state=reconnecting]")
        await n.publish("demo", *(f"missed {number}" for number in range(10)))
        await tab.until("#lines", "Resumed: 10 events came by replay")
        await tab.until(".data", "^missed 9$")
        shown = [data for kind, data, _ in await events(tab) if kind == "message"]
        assert shown == ["before", *(f"missed {number}" for number in range(10))]
        assert await tab.until("#picture .mark.resumed text") == "+10"
        assert await tab.until("#picture .deed text") == "cut"
        kinds = await phases(tab)
        assert kinds[:3] == ["connecting", "open", "reconnecting"]
        assert kinds[-1] == "open"
        await tab.until("#cut-note", "is there again")
        assert tab.errors == []


async def test_a_stalled_reader_is_told_of_each_event_that_found_no_room(tmp_path: Path) -> None:
    picture = tmp_path / "playground.png"
    async with (
        node("--retry", "0.1") as n,
        connected_page(n.url, viewport={"width": WIDTH, "height": HEIGHT}) as tab,
    ):
        if "GATEWAY_PICTURES" in os.environ:
            await play(n, tab)
        seen = await received(tab)
        await tab.until("#policies", "demo.* drop: ")
        await tab.click("#stall")
        await tab.click("#publish-burst")
        accepted = await tab.until("#result[data-outcome=accepted]", "of 112 KiB each")
        sent = number(accepted.split()[0])
        await tab.until("#stall-note", r"^The node says: .* [1-9]\d* dropped")
        before = await received(tab)
        await tab.click("#stall")

        async def each_is_told_of() -> bool:
            marks = await tab.run(
                "() => [...document.querySelectorAll('#picture .mark.dropped title')]"
                ".map(title => title.textContent)"
            )
            left_out = sum(number(mark.split()[0]) for mark in marks)
            return await received(tab) + left_out == seen + sent

        await eventually(each_is_told_of)
        assert before < await received(tab)
        assert await n.metric("dropped_total") > 0
        await tab.until("#events > .dropped .data", "this reader was too slow")
        await tab.until("#stall-note", "^It reads on")
        await tab.do(lambda page: page.screenshot(path=picture))
        await tab.click("#stall")
        await tab.until("#stall", "^Read on$")
        await tab.click("#disconnect")
        await tab.until("#stall:disabled", "^Stall the reader$")
        assert tab.errors == []
    taken = picture.read_bytes()
    assert struct.unpack(">II", taken[16:24]) == (WIDTH, HEIGHT)
    assert len(taken) < MAX_PICTURE_BYTES
    if "GATEWAY_PICTURES" in os.environ:
        PICTURE.write_bytes(taken)
    assert struct.unpack(">II", PICTURE.read_bytes()[16:24]) == (WIDTH, HEIGHT)


async def play(n: NodeProcess, tab: Tab) -> None:
    """What makes the picture worth looking at."""
    await tab.fill("#channel", "news")
    await tab.click("#add")
    await tab.click("#publish-hundred")
    await tab.click("#cut")
    await tab.until("#state[data-state=reconnecting]")
    await n.publish("demo", *(f"missed {number}" for number in range(12)))
    await tab.until("#lines", "Resumed: 12 events")
    await tab.click("#expire")
    await tab.until("#expire-note", "keys")
    await tab.until("#stall:enabled")
    await tab.until_true("() => { window.begun ??= Date.now(); return Date.now() > begun + 6000; }")


async def test_a_token_that_expires_is_asked_for_again() -> None:
    """Without keys there is none, and the page plays the node's part."""
    async with node("--retry", "0.1") as n, connected_page(n.url) as tab:
        client = await tab.until("#client-id", r"\.")
        await n.publish("demo", "before")
        await tab.until(".data", "^before$")
        await tab.click("#expire")
        await n.until_clients(0)
        await n.publish("demo", "meanwhile")
        await tab.until("#lines", "token-expired")
        await tab.until("#expire-note", "^This node has no keys")
        await tab.until("#lines", "Resumed: 1 event came by replay")
        await tab.until(".data", "^meanwhile$")
        await tab.until("#lines", "The client asked for a token again")
        await tab.until("#picture .mark.told text", "^token$")
        assert await tab.until("#client-id", r"\.") != client
        assert [data for kind, data, _ in await events(tab) if kind == "message"] == [
            *("before", "meanwhile"),
        ]
        assert tab.errors == []


async def test_a_node_with_keys_refuses_the_token_itself_and_takes_the_next() -> None:
    first = token("first", subscribe=["demo"])
    second = token("second", subscribe=["demo"])
    async with (
        running(jwt_key=SECRET, retry=0.1) as gateway,
        page(f"http://127.0.0.1:{gateway.port}") as tab,
    ):
        await tab.fill("#token", first)
        await connect(tab)
        await tab.until("#events > .connected .data", "user:first")
        refused = gateway.node.refused["401"]
        await tab.fill("#token", second)
        await tab.click("#expire")
        await tab.until("#expire-note", "^The node refused a spoiled token")
        await tab.until("#events > .connected .data", "user:second")
        await tab.until("#lines", "The client asked for a token again")
        assert gateway.node.refused["401"] > refused


async def test_a_drained_node_is_gone_until_somebody_starts_it_again() -> None:
    async with (
        node("--retry", "0.1", "--drain-seconds", "0.2") as n,
        connected_page(n.url) as tab,
    ):
        await n.publish("demo", "before")
        await tab.until(".data", "^before$")
        await tab.click("#drain:enabled")
        assert "There is no other one" in await tab.until("#drain-what", "1 client,")
        await tab.click("#drain-no")
        assert (await n.stats())["nodes"][0]["draining"] is False
        await tab.click("#drain")
        await tab.click("#drain-yes")
        await tab.until("#drain-note", "Start it again: .bash deploy/start.sh")
        assert await n.wait() == 0
        await tab.until("#state[data-state=reconnecting]")
        async with node("--retry", "0.1", bind=f"127.0.0.1:{n.port}") as again:
            await again.publish("demo", "after")
            await tab.until("#picture .mark.gap text", "^gap$")
            await tab.until(".data", "^after$")
            assert (await phases(tab))[-1] == "open"
            kinds = [kind for kind, *_ in await events(tab)]
            assert kinds == [
                *("connected", "message", "reconnecting"),
                *("connected", "gap", "message"),
            ]


MANY = """async () => {
  const {MARKS, SPAN, Timeline} = await import("/demo-timeline.js");
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const list = document.createElement("ol");
  const timeline = new Timeline(picture, list);
  for (let number = 0; number < 2 * MARKS; number++) {
    timeline.link("open", ["open"], "Open");
    timeline.deed("deed", "A deed")();
    timeline.told("gap", "gap", "A gap");
    timeline.event(false);
  }
  const count = () => [".phase", ".deed", ".mark", ".second"].map(
    kind => picture.querySelectorAll(kind).length);
  const many = [...count().slice(0, 3), list.childElementCount];
  timeline.link("", [], "Ended");
  const now = Date.now();
  Date.now = () => now + SPAN + 2000;
  timeline.draw();
  return [many.every(number => number === MARKS), count()];
}"""


async def test_the_timeline_forgets_what_is_too_much_and_too_old() -> None:
    async with node() as n, page(n.url) as tab:
        assert await tab.run(MANY) == [True, [0, 0, 0, 0]]


async def test_the_page_fits_a_phone() -> None:
    async with node() as n, connected_page(n.url, viewport={"width": 360, "height": 740}) as tab:
        await n.publish("demo", "x" * 500)
        await tab.until(".data", "xxx")
        assert await tab.run("() => document.documentElement.scrollWidth") == 360
        small = """() => [...document.querySelectorAll("button, input, select, summary")]
            .filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 24)
            .map(e => e.id)"""
        assert await tab.run(small) == ["share"]
