"""The page for operators in a real browser: on real nodes, and on a stream that a test plays."""

import itertools
import json
import os
import re
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

import pytest
import trio
from chromium import Tab, chromium
from playwright.async_api import Page, Route, ViewportSize
from process import NodeProcess, node
from redis_server import redis_server
from running import Gateway, Wire, request, running
from test_demo_page import HOSTILE
from tokens import SECRET, token

PICTURE = Path(__file__).parent.parent / ".github" / "ops.png"
MAX_PICTURE_BYTES = 200 * 1024

PICTURE_SECONDS = 45
"""For which the nodes have traffic before the picture is taken that is kept."""

DESK = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}

ADMIN = token("root", admin=True)
USER = token("u", subscribe=["**"])

PLAYED = """
export function connect(options) {
  const heard = {};
  const stream = {
    state: {status: "open", attempt: 0, delay: 0, reason: ""}, clientId: "", close() {},
    on(type, listener) { heard[type] = listener; },
    when(name, listener) { heard[name] = listener; },
  };
  window.played = {
    options,
    report(...reports) {
      for (const each of reports) heard.report({id: `${each.at}-0`, json: () => each});
    },
    turn(state) { heard.state(stream.state = state); },
  };
  return stream;
}
"""
"""In place of client.js."""

AT = 1_800_000_000_000


def report(node: str = "a", worker: str = "1", second: float = 0, **more: Any) -> dict[str, Any]:
    """What a worker says ``second`` seconds after AT."""
    counts = ("dropped", "gaps", "opened", "closed", "refused")
    figures = ("published", "received", "delivered", "replayed", "cpuSeconds", "behind", "channels")
    queues = ("queuedFrames", "queuedBytes", "memoryBytes", "memoryMaxBytes", "residentBytes")
    return {
        "at": AT + int(second * 1000),
        "node": node,
        "worker": worker,
        "version": "1",
        "uptimeSeconds": second,
        "draining": False,
        "full": False,
        "busUp": True,
        "clients": 1,
        "maxClients": 10,
        "lag": None,
        "omitted": 0,
        "slow": [],
        "busy": [],
        "happenings": [],
        **dict.fromkeys(figures + queues, 0),
        **{name: {} for name in counts},
        **more,
    }


def slow(id: str, waiting: int, **more: Any) -> dict[str, Any]:
    return {
        "id": id,
        "node": "a",
        "user": id,
        "address": "10.0.0.1",
        "state": "behind",
        "lane": "direct",
        "channels": 1,
        "names": ["x"],
        "openedAt": AT,
        "position": "1-0",
        **dict.fromkeys(("delivered", "dropped", "replayed", "gaps"), 0),
        "queuedFrames": 1,
        "queuedBytes": waiting,
        "behindSeconds": 1,
        **more,
    }


def happening(kind: str, reason: str, **more: Any) -> dict[str, Any]:
    return {
        "at": AT,
        "kind": kind,
        "client": "c",
        "user": None,
        "address": "10.0.0.1",
        "reason": reason,
        "count": 1,
        "seconds": None,
        "channels": [],
        **more,
    }


@asynccontextmanager
async def played(*, clock: bool = False, **options: Any) -> AsyncIterator[Tab]:
    """The page, whose stream is the test's, and its clock, too, if that is asked for."""

    async def play(route: Route) -> None:
        await route.fulfill(body=PLAYED, content_type="text/javascript")

    async with running() as gateway, chromium(**options) as browser:
        tab = await browser.tab()
        await tab.do(lambda page: page.route("**/client.js", play))
        if clock:
            await tab.do(lambda page: page.clock.install(time=AT / 1000))
        await tab.open(f"http://127.0.0.1:{gateway.port}/ops")
        await tab.until_true("() => 'played' in window")
        if clock:
            await tab.do(lambda page: page.clock.pause_at(AT / 1000 + 60))
        yield tab
        assert tab.errors == []


async def tell(tab: Tab, *reports: dict[str, Any]) -> None:
    await tab.run("reports => played.report(...reports)", list(reports))


async def texts(tab: Tab, selector: str) -> list[str]:
    found: list[str] = await tab.do(lambda page: page.locator(selector).all_text_contents())
    return found


async def press(tab: Tab, *keys: str) -> None:
    async def pressed(page: Page) -> None:
        for key in keys:
            await page.keyboard.press(key)

    await tab.do(pressed)


async def has_focus(tab: Tab, selector: str) -> bool:
    return bool(await tab.run("it => document.activeElement.matches(it)", selector))


def wide(picture: bytes) -> tuple[int, int]:
    """Width and height of a PNG (its section 11.2.2)."""
    width, height = struct.unpack(">II", picture[16:24])
    return width, height


def is_blank(picture: bytes) -> bool:
    """Whether a PNG is of hardly more than one colour: its pixels deflate to nearly nothing."""
    return len(picture) < 8 * 1024


# -- real nodes


@pytest.mark.parametrize("served", [True, False])
async def test_the_page_is_there_unless_it_is_not_wanted(served: bool) -> None:
    async with running(ops=served) as gateway:
        for path in ("/ops", "/ops.js", "/ops.css", "/ops-cluster.js"):
            answered = await gateway.ask(request("GET", path))
            assert answered.status == (200 if served else 404), path


async def traffic(at: NodeProcess) -> None:
    """Events of some channels, now more, now fewer; until cancelled."""
    async with at.client() as client:
        for turn in itertools.count():
            events = (
                {"channel": f"room.{number % 5}", "data": "x" * 200}
                for number in range(turn * turn % 13)
            )
            await client.post(
                f"{at.url}/publish",
                content="".join(f"{json.dumps(event)}\n" for event in events),
                headers={"Content-Type": "application/x-ndjson"},
            )
            await trio.sleep(0.05)


async def test_two_nodes_are_shown_live_and_one_is_drained_when_that_is_confirmed(
    tmp_path: Path,
) -> None:
    async with (
        redis_server() as redis,
        node("--redis", redis.url, "--node-id", "fra-1") as one,
        node("--redis", redis.url, "--node-id", "fra-2", "--drain-seconds", "1.5") as two,
        chromium(viewport=DESK, color_scheme="dark") as browser,
        trio.open_nursery() as nursery,
    ):
        for number, holder in enumerate((one, two, two)):
            await holder.open_stream(f"/events?channel=room.{number}&user=u{number}")
        tab = await browser.tab(f"{one.url}/ops")
        nursery.start_soon(traffic, one)
        await tab.until("#total-clients .value", "^4$")  # this page's own is one of them
        await two.open_stream("/events?channel=room.0&user=late")
        await tab.until("#happenings .whom", "^lateroom.0$")
        await tab.until("#stream[data-state=open]", "^live$")
        assert await texts(tab, "#nodes .fold") == ["fra-1", "fra-2"]
        await tab.until("#nodes [data-node=fra-2] .state", "^ready$")
        await tab.until("#nodes [data-node=fra-2] [data-title=Clients]", "^3$")
        for total in ("published", "delivered"):
            await tab.until(f"#total-{total} .value", "^[1-9]")
        await tab.until("#busy .name", "^room.0$")
        await tab.until("#verdict-head", "^All is well$")
        if os.environ.get("GATEWAY_PICTURES"):
            await set_the_scene(one, two)
        await take_picture(tab, tmp_path / "ops.png")

        await tab.click("#nodes [data-node=fra-2] .act button")
        assert await tab.do(lambda page: page.is_disabled("#drain-yes"))
        assert re.search(r"tells \d+ clients to come back", await tab.until("#drain p"))
        assert await tab.do(lambda page: page.is_hidden("#drain-last"))
        await press(tab, "Escape")
        await tab.click("#nodes [data-node=fra-2] .act button")
        assert await tab.do(lambda page: page.is_disabled("#drain-yes"))
        await press(tab, "Enter")
        assert two.process.poll() is None
        await press(tab, "Space", "Enter")
        await tab.until("#nodes [data-node=fra-2] .act button:disabled", "^Draining$")
        await tab.until("#nodes [data-node=fra-2] .state", "^draining$")
        await tab.until("#problems li", r"^fra-2 drains, \d+ clients? left$")
        await tab.until("#reasons .name", "^its node drains$")
        await tab.until("#happenings .closed .what", "^its node drains, after")
        assert await two.wait() == 0
        await tab.click("#nodes [data-node=fra-1] .act button")
        assert await tab.do(lambda page: page.is_visible("#drain-last"))
        await tab.click("#drain-no")
        await tab.click("#filter")
        assert one.process.poll() is None
        assert tab.errors == []
        nursery.cancel_scope.cancel()


async def set_the_scene(*nodes: NodeProcess) -> None:
    """Clients that come and go, and at last one that does not read what is sent to it."""
    users = itertools.cycle(("ada", "grace", "barbara", "edsger", "tony", "leslie", "frances"))
    at = itertools.cycle(nodes)
    for number in range(48):
        await next(at).open_stream(f"/events?channel=room.{number % 5}&user={next(users)}")
    for turn in range(PICTURE_SECONDS):
        stream = await next(at).open_stream(f"/events?channel=room.{turn % 5}&user={next(users)}")
        await trio.sleep(1)
        if turn % 3:
            stream.transport.socket.close()
        if turn == PICTURE_SECONDS - 15:
            slow = await nodes[0].ask_for_stream("/events?channel=tower&user=margaret")
            slow.transport.socket.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        for _ in range(10 * (turn > PICTURE_SECONDS - 15)):
            await nodes[1].publish("tower", "x" * 30_000)


async def take_picture(tab: Tab, path: Path) -> None:
    """It goes beside the README if GATEWAY_PICTURES is set."""
    picture = await tab.do(lambda page: page.screenshot(path=path))
    for each in (picture, PICTURE.read_bytes()):
        assert wide(each) == (DESK["width"], DESK["height"])
        assert not is_blank(each)
        assert len(each) <= MAX_PICTURE_BYTES
    if os.environ.get("GATEWAY_PICTURES"):
        PICTURE.write_bytes(picture)


async def stalled(gateway: Gateway, target: str) -> Wire:
    """A stream of which only the beginning is read."""
    wire = await gateway.connect(receive_buffer=4096)
    await wire.send(request("GET", target, b"Accept: text/event-stream\r\n"))
    await wire.opened()
    return wire


async def test_who_is_slow_is_seen_found_looked_at_and_ended_with_the_keyboard_alone() -> None:
    async with (
        running(outbox_frames=10) as gateway,
        chromium(viewport=DESK) as browser,
    ):
        tab = await browser.tab(f"http://127.0.0.1:{gateway.port}/ops")
        await tab.until("#total-clients .value", "^1$")
        await stalled(gateway, "/events?channel=x&user=sloth")
        await gateway.open("/events?channel=z&user=hare&lastEventId=1-0")
        for _ in range(60):
            await gateway.publish("x", "y" * 100_000)
        assert await tab.until("#slow .link", "sloth")
        await tab.until("#slow [data-title=Dropped]", "^[1-9]")
        await tab.until("#happenings .dropped .what", "events?: outbox full$")
        await tab.until("#happenings .gap .whom", "^harez, global")
        assert await tab.until("#total-dropped .muted", "^[1-9].* in ")
        await tab.until("#verdict[data-tone=bad] #problems li", "^1 gap in the last minute")
        await tab.until("#problems li", "^1 client behind$")

        await press(tab, "/")
        await tab.do(lambda page: page.keyboard.type("user:sloth"))
        await tab.until("#found-note", "^1 client$")
        assert await texts(tab, "#found .who bdi") == ["sloth"]
        assert "sloth" in (await texts(tab, "#happenings .whom"))[0]
        assert not any("hare" in each for each in await texts(tab, "#happenings .whom"))
        while not await has_focus(tab, "#found .link"):
            await press(tab, "Tab")
        await press(tab, "Enter")
        await tab.until("#inspect-state", "^behind$")
        assert "x, global, user:sloth" in await tab.until("#inspect-facts .names", "global")
        while not await has_focus(tab, "#end"):
            await press(tab, "Tab")
        await press(tab, "Enter")
        assert await has_focus(tab, "#end-no")
        await press(tab, "Escape")
        assert await has_focus(tab, "#end")
        assert gateway.node.hub.statistics().closed.get("closed", 0) == 0
        await press(tab, "Enter", "Shift+Tab", "Enter")
        await tab.until("#inspect-note", "^Ended, for good.$")
        assert gateway.node.hub.statistics().closed["closed"] == 1
        await press(tab, "Escape")
        assert await tab.do(lambda page: page.is_hidden("#inspect"))
        await tab.until("#happenings .closed .what", "^ended by request, after")
        await press(tab, "/", "Escape")
        assert await tab.do(lambda page: page.is_hidden("#found-card"))
        assert tab.errors == []


async def test_with_keys_it_asks_for_an_administrators_token_and_forgets_it_unless_told() -> None:
    async with running(jwt_key=SECRET) as gateway, chromium(viewport=DESK) as browser:
        url = f"http://127.0.0.1:{gateway.port}/ops"
        tab = await browser.tab(url)
        await tab.until("#stream", "^token needed$")
        assert await has_focus(tab, "#token")
        await tab.do(lambda page: page.keyboard.type(USER))
        await press(tab, "Enter")
        await tab.until("#token-detail", "for administrators")
        await tab.fill("#token", ADMIN)
        await press(tab, "Enter")
        await tab.until("#nodes .fold", "^test$")
        assert await tab.do(lambda page: page.is_hidden("#token-panel"))
        await tab.fill("#filter", "*")
        await tab.until("#found-note", "^1 client$")
        await tab.do(lambda page: page.reload())
        await tab.until("#stream", "^token needed$")
        await tab.fill("#token", ADMIN)
        await tab.click("#token-kept")
        await press(tab, "Enter")
        await tab.until("#nodes .fold", "^test$")
        await tab.do(lambda page: page.reload())
        await tab.until("#nodes .fold", "^test$")
        await tab.click("#forget")
        await tab.until("#stream", "^token needed$")
        assert await tab.run("() => [sessionStorage.length, localStorage.length]") == [0, 0]
        assert [said for said in tab.errors if not re.search("a status of 40[13]", said)] == []
        asked = await tab.run("() => performance.getEntriesByType('resource').map(e => e.name)")
        assert not any("ey" in url.partition("?")[2] for url in asked)


# -- a stream that is played

SHAPE = """() => ["script", "img", "svg", "iframe", "a", "style", "base", "meta", "b", "i"].map(
    tag => document.querySelectorAll(tag).length)"""


def full_of(names: list[str], second: float) -> dict[str, Any]:
    """A report in which somebody is called like that, wherever anybody is called anything."""
    counts = dict.fromkeys(names, int(second))
    return report(
        names[1],
        names[2],
        second,
        version=names[3],
        opened=counts,
        gaps=counts,
        slow=[
            slow(name, 5, user=name, address=name, names=[name], node=name, state=name)
            for name in names
        ],
        busy=[{"name": name, "clients": 1, "events": 1} for name in names],
        happenings=[
            happening(kind, name, client=name, user=name, address=name, channels=[name])
            for name in names
            for kind in ("dropped", "gap", "opened", "closed")
        ],
    )


async def test_what_strangers_chose_is_text_wherever_it_is_shown_and_fits_a_phone() -> None:
    async with played(viewport=PHONE, color_scheme="dark") as tab:
        shapes = []
        for names in ([f"plain {number}" for number in range(len(HOSTILE))], HOSTILE):
            await tell(tab, full_of(names, 0), full_of(names, 1))
            await tab.until_true(
                "name => document.querySelector('#nodes .fold')?.textContent === name", names[1]
            )
            for selector in ("#slow .who bdi", "#busy .name", "#happenings .whom bdi"):
                assert set(await texts(tab, selector)) == set(names), selector
            assert set(names) <= set(await texts(tab, "#reasons .name"))
            shapes.append(await tab.run(SHAPE))
            await no_overflow(tab)
            await tab.click("#slow .link")
            await tab.until("#inspect-note", ".")
            assert await tab.until("#inspect-title") in names
            await no_overflow(tab)
            await press(tab, "Escape")
            await tab.click("#nodes .act button")
            await tab.click("#drain-sure")
            await tab.click("#drain-yes")
            await tab.until("#drain-note", "^Not drained: .")
            assert await texts(tab, "#drain-title") == [f"Drain {names[1]}"]
            await no_overflow(tab)
            assert await tab.run("() => document.documentElement.dataset.pwned ?? null") is None
            await tab.do(lambda page: page.reload())
            await tab.until_true("() => 'played' in window")
        assert shapes[0] == shapes[1]
        assert [said for said in tab.errors if "a status of 404" not in said] == []
        tab.errors.clear()


async def no_overflow(tab: Tab) -> None:
    """Nothing is wider than the window, but what scrolls in a box of its own."""
    widths = "() => [document.documentElement.scrollWidth, innerWidth]"
    whole, window = await tab.run(widths)
    assert whole <= window


CROWDED = """() => [...document.querySelectorAll("td, th, .state, .whom")]
  .filter(each => each.clientWidth && (each.scrollWidth > each.clientWidth + 1
    || (each.matches(".state") && each.clientHeight > 30)))
  .map(each => `${each.className}: ${each.textContent}`)"""
"""What does not fit where it stands, and states that are broken into letters."""

TALLEST = """() => Math.max(
  ...[...document.querySelectorAll(".client, .whom")].map(each => each.clientHeight))"""


async def test_long_names_take_no_room_from_what_stands_beside_them() -> None:
    name = "x" * 200
    async with played(viewport=DESK) as tab:
        for second in range(2):
            clients = [
                slow(f"{number}", 2**20 - 1, user=name, names=[name] * 3, queuedFrames=1000)
                for number in range(3)
            ]
            busy = [{"name": name, "clients": 1, "events": second}]
            told = [happening("closed", "gone", user=name, seconds=1, channels=[name] * 3)]
            more = {"slow": clients, "busy": busy, "happenings": told}
            await tell(tab, report("a", "1", second, **more))
        await tab.until("#slow .drawn", "^1 MiB in 1,000 frames$")
        assert await tab.run(CROWDED) == []
        assert await tab.run(TALLEST) < 120
        await tab.do(lambda page: page.set_viewport_size(ViewportSize(width=390, height=844)))
        assert await tab.run(CROWDED) == []
        await no_overflow(tab)


async def test_what_stops_being_told_is_stale_and_a_silent_node_is_said_to_be_so() -> None:
    async with played(clock=True, viewport=DESK) as tab:
        for second in range(2):
            await tell(tab, report("a", "1", second), report("b", "2", second))
        await tab.do(lambda page: page.clock.run_for(1000))
        assert await texts(tab, "#nodes .state") == ["ready", "ready"]
        assert await texts(tab, "#verdict-head") == ["All is well"]
        for second in range(2, 7):
            await tell(tab, report("a", "1", second))
            await tab.do(lambda page: page.clock.run_for(1000))
        assert (await texts(tab, "#nodes .state"))[0].startswith("silent for ")
        assert await texts(tab, "#verdict-head") == ["Needs a look"]
        told = await texts(tab, "#verdict-said")
        assert await tab.do(lambda page: page.title()) == "✖ Operations · SSE gateway"
        await tab.run(
            "() => played.turn({status: 'reconnecting', attempt: 1, delay: 3000, reason: 'x'})"
        )
        await tab.do(lambda page: page.clock.run_for(600))
        await tab.until("#stream", "^coming back in [123] s$")
        await tab.do(lambda page: page.clock.run_for(5000))
        assert await texts(tab, "#stream") == ["coming back"]
        assert await tab.run("() => document.querySelectorAll('.stale').length") > 3
        assert await texts(tab, "#verdict-said") != told
        await tab.run("() => played.turn({status: 'open', attempt: 0, delay: 0, reason: ''})")
        await tell(tab, report("a", "1", 70))
        await tab.do(lambda page: page.clock.run_for(1000))
        assert await texts(tab, "#nodes .fold") == ["a"]
        assert await tab.run("() => document.querySelectorAll('.stale').length") == 0
        await tab.run("() => played.turn({status: 'closed', attempt: 0, delay: 0, reason: 'over'})")
        await tab.do(lambda page: page.clock.run_for(1000))
        assert await texts(tab, "#stream") == ["ended: over"]
        await tab.click("#again")
        await tab.do(lambda page: page.clock.run_for(1000))
        assert await texts(tab, "#stream") == ["live"]


async def test_rows_stay_where_the_focus_is_and_happenings_wait_while_paused() -> None:
    async with played(viewport=DESK) as tab:
        first = [slow("p", 30), slow("q", 20), slow("r", 10)]
        drop = happening("dropped", "full", count=3, user="p")
        await tell(tab, report(slow=first, happenings=[drop, happening("gap", "trimmed")]))
        await tab.until("#slow .who bdi", "^r$")
        await tab.run("() => { window.row = document.querySelector('#slow .link'); }")
        await tab.do(lambda page: page.focus("#slow .link"))
        await press(tab, "ArrowDown", "ArrowUp", "ArrowDown")
        assert await tab.run("() => document.activeElement.textContent") == "q"
        turned = [slow("r", 90), slow("s", 80), slow("q", 2), slow("p", 1)]
        await tell(tab, report(second=1, slow=turned, happenings=[{**drop, "count": 4}]))
        await tab.until("#slow .who bdi", "^s$")
        assert await texts(tab, "#slow .who bdi") == ["p", "q", "r", "s"]
        assert await texts(tab, "#slow-note") == ["in place while you are here"]
        assert await tab.run("() => document.activeElement.textContent") == "q"
        await tell(tab, report(second=2, slow=[each for each in turned if each["id"] != "q"]))
        await tab.until_true("() => document.activeElement.textContent === 'r'")
        await tab.run("() => document.activeElement.blur()")
        await tell(tab, report(second=3, slow=turned))
        await tab.until_true(
            "() => [...document.querySelectorAll('#slow .who bdi')].map(e => e.textContent)"
            ".join('') === 'rsqp'"
        )
        assert await tab.run("() => row.isConnected")

        told = ["4 events: outbox full", "history is too short", "3 events: outbox full"]
        assert await texts(tab, "#happenings .what") == told
        await press(tab, "p")
        await tell(tab, report(second=4, happenings=[{**drop, "count": 5}]))
        await tab.until("#happenings-note", "^1 newer wait$")
        assert await texts(tab, "#happenings .what") == told
        await press(tab, "p")
        await tab.until("#happenings .what", "^5 events")
        await tab.click("#kinds [value=dropped]")
        assert await texts(tab, "#happenings .what") == ["history is too short"]
        await tell(tab, report(second=5, happenings=[happening("gap", "unknown")] * 120))
        await tab.until("#happenings-note", "^21 older are not shown$")
        assert await texts(tab, "#happenings .what") == ["position is not known"] * 100


CONTRAST = """() => {
  const style = getComputedStyle(document.documentElement);
  const probe = document.createElement("i");
  document.body.append(probe);
  const light = name => {
    probe.style.color = style.getPropertyValue(name);
    const [r, g, b] = getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number)
      .map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const pairs = ["--text", "--muted", "--accent", "--good", "--warn", "--bad", "--note"]
    .flatMap(name => ["--card", "--page", "--hover"].map(ground => [name, ground]))
    .concat(["good", "warn", "bad", "note"].map(tone => [`--${tone}`, `--${tone}-tint`]));
  return pairs.filter(([a, b]) => contrast(light(a), light(b)) < 4.5);
}"""
"""Which colours are less apart than WCAG 2.2 (1.4.3, AA) asks of text."""


async def test_it_can_be_read_by_day_and_by_night() -> None:
    async with played(viewport=DESK, color_scheme="dark") as tab:
        assert max(await ground(tab)) < 64
        assert await tab.run(CONTRAST) == []
        await tab.do(lambda page: page.emulate_media(color_scheme="light"))
        assert min(await ground(tab)) > 192
        assert await tab.run(CONTRAST) == []


async def ground(tab: Tab) -> list[int]:
    """Red, green and blue of the page."""
    colour = await tab.run("() => getComputedStyle(document.body).backgroundColor")
    return [int(part) for part in colour.strip("rgb()").split(",")]
