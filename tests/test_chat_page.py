"""The chat page in a real browser: an answer is whole, whatever happens while it is written."""

import itertools
import json
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from chromium import Chromium, Profiles, Tab, profiles
from node_js import run_module
from playwright.async_api import Page
from proxy import proxy_to
from running import Gateway, request, running
from test_demo_page import HOSTILE, SHAPE
from token_streams import TokenStream, begin
from tokens import SECRET, token
from upstreams import FakeUpstream, Fault, Script, fake_upstream, text_of

from gateway.config import Format, Upstream
from gateway.event import Event
from gateway.relay import demo
from gateway.relay.events import Complete

PICTURE = Path(__file__).parent.parent / ".github" / "chat.png"
"""For the README. Taken anew with GATEWAY_PICTURES=1."""

DESK = {"width": 1280, "height": 800}
MAX_PICTURE_BYTES = 200 * 1024

JSON = b"Content-Type: application/json\r\n"

QUESTION = "What is left of it?"

TEXTS = "() => [...document.querySelectorAll('.text')].map(text => text.textContent)"
EVENTS = """() => [...document.querySelectorAll("#wire > li")].map(row =>
    `${row.querySelector(".type").textContent} ${row.querySelector(".note").textContent}`.trim())"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Profiles]:
    with profiles() as made:
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo speaks faster than anybody reads."""
    monkeypatch.setattr(demo, "TOKENS_PER_SECOND", 1000.0)
    monkeypatch.setattr(demo, "FIRST_TOKEN_SECONDS", 0.05)


def url_of(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.port}/chat"


def conversation(*turns: tuple[str, str]) -> str:
    """What stands behind the # in the address, of questions and the ids of their answers."""
    return "#" + "&".join(urlencode({"q": asked, "stream": id}) for asked, id in turns)


@asynccontextmanager
async def page(chromium: Profiles, **settings: Any) -> AsyncIterator[tuple[Gateway, Tab]]:
    """The page on a node of its own."""
    async with running(**settings) as gateway, chromium() as browser:
        yield gateway, await browser.tab(url_of(gateway))


@asynccontextmanager
async def watched(browser: Chromium, gateway: Gateway) -> AsyncIterator[tuple[TokenStream, Tab]]:
    """A token stream in the test's hands, and a page that looks at it."""
    stream = await begin(gateway)
    address = url_of(gateway) + conversation((QUESTION, stream.record.id))
    yield stream, await browser.tab(address)
    await stream.end()


@asynccontextmanager
async def fake_page(chromium: Profiles, **settings: Any) -> AsyncIterator[tuple[FakeUpstream, Tab]]:
    """The page for an upstream that says what the test wants."""
    async with fake_upstream() as fake:
        upstream = Upstream("fake", fake.url, Format.OPENAI, allow=("users",), retries=0)
        async with page(chromium, upstreams=(upstream,), **settings) as (gateway, tab):
            await tab.open(f"{url_of(gateway)}?upstream=fake&model=fake-1")
            yield fake, tab


async def ask(tab: Tab, question: str) -> None:
    await tab.fill("#question", question)
    await tab.do(lambda page: page.keyboard.press("Enter"))


async def move(tab: Tab, url: str) -> None:
    """To another conversation at the same page, which loads itself anew."""

    async def moved(page: Page) -> None:
        async with page.expect_event("load"):
            await page.evaluate("url => { location.href = url; }", url)

    await tab.do(moved)


async def until_text(tab: Tab, text: str) -> None:
    await tab.until_true(
        "text => [...document.querySelectorAll('.text')].at(-1)?.textContent === text", text
    )


@pytest.mark.usefixtures("quick")
async def test_an_answer_is_written_and_says_what_it_took_and_what_went_over_the_wire(
    chromium: Profiles,
) -> None:
    async with page(chromium) as (_, tab):
        await tab.click("#proposals button:has-text('code')")
        note = await tab.until(".note", r"^complete · \d+ tokens · the first after 0\.\d+ s · \d")
        story = demo.answer_to("Show me some code")
        assert note.split()[2] == str(len(demo.tokens_of(story)))
        [text] = await tab.run(TEXTS)
        assert text.startswith("You said “Show me some code”. An application changes one line")
        assert text.endswith("you have missed the best part. Ask me again!")
        assert await tab.run("() => document.querySelectorAll('.text pre code').length") == 2
        assert await tab.run("() => document.querySelectorAll('.text hr').length") == 1
        assert await tab.until("#state") == "complete"
        assert await tab.until("#aloud", "Ask me again!$")
        id = (await tab.run("() => location.hash")).rpartition("=")[2]
        assert f"/events/stream:{id}?view=snapshot'" in await tab.until("#command")
        await tab.click("[data-command=stop]")
        assert (await tab.until("#command", "DELETE")).endswith(f"/streams/{id}'")
        told = await tab.run(EVENTS)
        assert told[0] == "POST /streams 201"
        assert [row.split()[0] for row in told] == [
            *("POST", "connected", "snapshot", "token", "complete", "GET"),
        ]
        await tab.do(lambda page: page.reload())
        await tab.until(".note", "^complete")
        assert await tab.run(TEXTS) == [text]
        assert tab.errors == []


async def test_what_was_said_is_sent_along_with_the_next_question(chromium: Profiles) -> None:
    async with fake_page(chromium) as (fake, tab):
        fake.script(Script(words=12), Script(words=3))
        await ask(tab, "One?")
        await until_text(tab, text_of(12).strip())
        await tab.until("#send:visible")
        await tab.do(lambda page: page.keyboard.type("Two"))
        await tab.do(lambda page: page.keyboard.press("Shift+Enter"))
        await tab.do(lambda page: page.keyboard.type("lines?"))
        await tab.do(lambda page: page.keyboard.press("Enter"))
        await until_text(tab, text_of(3).strip())
        assert (await fake.call(1)).json["messages"] == [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": text_of(12)},
            {"role": "user", "content": "Two\nlines?"},
        ]
        assert (await fake.call(1)).json["model"] == "fake-1"
        assert tab.errors == []


@pytest.mark.usefixtures("quick")
async def test_a_page_that_is_reloaded_in_the_middle_and_a_second_tab_have_the_whole_text(
    chromium: Profiles,
) -> None:
    async with running() as gateway, chromium() as browser, watched(browser, gateway) as (s, tab):
        await s.say("One", " **two", "** three")
        await until_text(tab, "One two three")
        await tab.do(lambda page: page.reload())
        await until_text(tab, "One two three")
        assert await tab.until(".question") == QUESTION
        await s.say(" fo", "ur")
        await until_text(tab, "One two three four")
        second = await browser.tab(await tab.run("() => document.getElementById('second').href"))
        await until_text(second, "One two three four")
        assert (await second.run(EVENTS))[1:] == ["connected", "snapshot 22 characters"]
        await s.say("\n\n- five\n", "- six")
        await s.end()
        for each in (tab, second):
            await each.until(".note", r"^complete · 7 tokens")
            assert await each.run(TEXTS) == ["One two three fourfivesix"]
            assert await each.until("#state") == "complete"
        await ask(second, "And some code?")  # and the other tab has it too
        for each in (tab, second):
            await each.until(".turn:nth-child(2) .note", "^complete")
            assert (await each.run(TEXTS))[1].startswith("You said “And some code?”. ")
        assert await tab.run("() => location.hash") == await second.run("() => location.hash")
        assert tab.errors == second.errors == []


async def test_what_history_has_of_an_answer_is_shown_and_what_it_has_not_is_said(
    chromium: Profiles,
) -> None:
    async with running(stream_events=12) as gateway, chromium() as browser:
        stream = await begin(gateway)
        await stream.say("One ")
        # As no stream does by itself, which ends before.
        await gateway.node.bus.publish([Event((stream.record.channel,), "x", "progress")] * 9)
        await stream.say("two ", "three ", "four ")
        address = url_of(gateway) + conversation((QUESTION, stream.record.id))
        tab = await browser.tab(address)
        await until_text(tab, "two three four")
        await tab.until(".note", "^writing .* its beginning is no longer kept$")
        await stream.say("five")
        await until_text(tab, "two three four five")
        await stream.end()
        await tab.until(".note", "^complete .* its beginning is no longer kept$")
        assert await tab.run(TEXTS) == ["two three four five"]
        assert tab.errors == []


async def test_who_stops_an_answer_stops_it_in_all_tabs(chromium: Profiles) -> None:
    async with running() as gateway, chromium() as browser, watched(browser, gateway) as (s, tab):
        await s.say("So far")
        second = await browser.tab(await tab.run("() => location.href"))
        for each in (tab, second):
            await until_text(each, "So far")
        await second.do(lambda page: page.keyboard.press("Escape"))
        for each in (tab, second):
            await each.until(".note", "^stopped · 1 token")
            assert await each.until("#state") == "stopped"
            assert await each.run(TEXTS) == ["So far"]
            await each.until("#send:visible")
            assert each.errors == []
        await tab.do(lambda page: page.reload())
        await tab.until(".note", "^stopped · 1 token")
        assert await tab.run(TEXTS) == ["So far"]


async def test_what_is_stopped_before_it_has_an_id_is_stopped_when_it_has_one(
    chromium: Profiles,
) -> None:
    async with fake_page(chromium) as (fake, tab):
        fake.script(Script(fault=Fault.SILENCE, after=3))
        await tab.run("""() => {
            const { fetch } = window;
            window.fetch = async (...asked) => {
              const held = resolve => { window.send = resolve; };
              if (asked[1].method === "POST") await new Promise(held);
              return fetch(...asked);
            };
        }""")
        await ask(tab, QUESTION)
        await tab.until(".note", "^asking")
        await tab.click("#stop")
        assert fake.calls == []
        await tab.run("() => send()")
        await tab.until(".note", "^stopped")
        await (await fake.call()).closed.wait()
        assert tab.errors == []


async def test_an_answer_goes_on_while_the_link_is_cut_and_is_whole_when_it_is_back(
    chromium: Profiles,
) -> None:
    async with (
        running(retry=0.1) as gateway,
        proxy_to(gateway.port) as proxy,
        chromium() as browser,
    ):
        stream = await begin(gateway)
        tab = await browser.tab(f"{proxy.url}/chat{conversation((QUESTION, stream.record.id))}")
        await stream.say("One ", "two ")
        await until_text(tab, "One two ".strip())
        proxy.cut()
        await tab.until(".note", "^The connection is lost and comes back by itself")
        assert await tab.until("#state[data-state=reconnecting]") == "coming back"
        await stream.say("three ", "four ")
        proxy.let_through()
        await until_text(tab, "One two three four")
        proxy.cut()
        await tab.until("#state[data-state=reconnecting]")
        await stream.say("five")
        await stream.end()
        proxy.let_through()
        await tab.until(".note", "^complete · 5 tokens")
        assert await tab.run(TEXTS) == ["One two three four five"]
        assert "connected" in await tab.run(EVENTS)
        assert [error for error in tab.errors if "ERR_" not in error] == []


async def test_an_answer_that_is_gone_or_was_never_sent_is_asked_for_again(
    chromium: Profiles,
) -> None:
    async with fake_page(chromium) as (fake, tab):
        origin = await tab.run("() => location.origin + location.pathname + location.search")
        await move(tab, f"{origin}{conversation((QUESTION, 'never-was'))}&stream=no%20id")
        await tab.until(".problem", "^This answer is no longer kept.Try again$")
        assert await tab.until("#state") == "gone"
        await tab.click(".problem button")
        await until_text(tab, text_of(5).strip())
        assert not await tab.run("() => location.hash.includes('never-was')")
        await move(tab, f"{origin}#q={'x' * 2500}")
        await tab.until(".problem", "^The page was left before this answer had begun")
        assert await tab.until(".question") == "x" * 2000
        await tab.click(".problem button")
        await until_text(tab, text_of(5).strip())
        assert (await fake.call(1)).json["messages"] == [{"role": "user", "content": "x" * 2000}]
        assert [error for error in tab.errors if "status of 404" not in error] == []


async def test_an_older_answer_that_is_asked_for_again_is_stopped_as_the_latest_is(
    chromium: Profiles,
) -> None:
    async with fake_page(chromium) as (fake, tab):
        origin = await tab.run("() => location.origin + location.pathname + location.search")
        turns = conversation((QUESTION, "never-was"), ("And then?", "nor-was"))
        await move(tab, f"{origin}{turns}")
        await tab.until(".turn[data-state=gone] + .turn[data-state=gone]")
        fake.script(Script(words=4, fault=Fault.SILENCE, after=3))
        await tab.click(".turn:first-child .problem button")
        await tab.until(".turn:first-child .text", r"\w")
        assert await tab.until("#state") == "live"
        await tab.do(lambda page: page.keyboard.press("Escape"))
        await tab.until(".turn:first-child .note", "^stopped")
        await tab.until("#aloud", r"Stopped\.$")
        assert await tab.until("#state") == "gone"


async def test_what_goes_wrong_is_said_in_words_and_tried_again_where_that_may_help(
    chromium: Profiles,
) -> None:
    async with fake_page(chromium) as (fake, tab):
        fake.script(Script(status=400), Script(status=500), Script(words=4))
        await ask(tab, QUESTION)
        await tab.until(".problem", r"^The upstream does not accept the request\. \(rejected\)")
        assert not await tab.run(
            "() => document.querySelector('.problem button').checkVisibility()"
        )
        await tab.until(".note", "^ended by an error")
        await ask(tab, QUESTION)
        await tab.until(".turn:last-child .problem", r"^The upstream failed\. \(upstream-error\)")
        await tab.click(".turn:last-child .problem button")
        await until_text(tab, text_of(4).strip())
        assert await tab.until(".turn:last-child .note", "^complete")
        assert await tab.run("() => document.querySelectorAll('.turn').length") == 2
        fake.script(Script(fault=Fault.FIN, after=4))
        await ask(tab, QUESTION)
        left = r"^The upstream's stream ended before its end\. \(interrupted\)Try again$"
        await tab.until(".problem", left)
        assert (await tab.run(TEXTS))[-1] == text_of(3).strip()
        await tab.do(lambda page: page.reload())
        await tab.until(".problem", left)
        assert (await tab.run(TEXTS))[-1] == text_of(3).strip()
        await tab.open((await tab.run("() => location.origin")) + "/chat?upstream=none")
        await ask(tab, QUESTION)
        await tab.until(".problem", "^There is no upstream of that name")
        assert await tab.until("#state") == "not answered"
        assert [error for error in tab.errors if "status of 400" not in error] == []


async def test_where_there_are_keys_a_token_is_asked_for_and_kept_nowhere(
    chromium: Profiles,
) -> None:
    key = token("u")
    async with fake_page(chromium, jwt_key=SECRET) as (fake, tab):
        await ask(tab, QUESTION)
        await tab.until(".problem", r"Put a token into the field Token\.")
        await tab.fill("#token", key)
        await tab.do(lambda page: page.keyboard.press("Enter"))
        await until_text(tab, text_of(5).strip())
        await tab.until(".note", "^complete · 5 tokens")
        assert '"Authorization: Bearer $TOKEN"' in await tab.until("#command")
        assert key not in await tab.run("() => document.documentElement.outerHTML + location")
        kept = "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        assert await tab.run(kept) == '[{},{},""]'
        await tab.do(lambda page: page.reload())
        await tab.until(".problem", r"Put a token into the field Token\.")
        await tab.fill("#token", key)
        await tab.do(lambda page: page.keyboard.press("Enter"))
        await tab.until(".note", "^complete · 5 tokens")
        assert await tab.run(TEXTS) == [text_of(5).strip()]
        assert len(fake.calls) == 1


MARKUP = """# Heading
Two *lines*
of **one** paragraph, `code` and ** no bold **, 2 * 3 * 4

- first
- second
  goes on
3. third
4) fourth
---
```python
if x:

    y = "**no**"
```
after
***
```
open **end
"""

PIECES = """async ([text, cuts]) => {
  const { Text } = await import("/chat-text.js");
  const whole = document.createElement("div");
  new Text(whole).show(text, false);
  const shown = document.createElement("div");
  const growing = new Text(shown);
  const observer = new MutationObserver(() => {});
  observer.observe(shown, {childList: true, subtree: true});
  for (const cut of cuts) growing.show(text.slice(0, cut), true);
  growing.show(text, false);
  const removed = observer.takeRecords().flatMap(record => [...record.removedNodes]);
  const elements = removed.filter(node => node.nodeType === Node.ELEMENT_NODE);
  return [whole.innerHTML, shown.innerHTML, elements.length];
}"""


async def test_text_is_shown_the_same_in_whatever_pieces_it_comes_and_never_as_html(
    chromium: Profiles,
) -> None:
    async with page(chromium) as (_, tab):
        for step in (1, 2, 3, 7, 40):
            whole, shown, _ = await tab.run(PIECES, [MARKUP, [*range(0, len(MARKUP), step)]])
            assert shown == whole
        assert whole == (
            "<h3>Heading</h3><p>Two <em>lines</em>\nof <strong>one</strong> paragraph,"
            " <code>code</code> and ** no bold **, 2 * 3 * 4</p>"
            "<ul><li>first</li><li>second\ngoes on</li></ul>"
            '<ol start="3"><li>third</li><li>fourth</li></ol><hr>'
            '<pre tabindex="0" data-language="python"><code>if x:\n\n    y = "**no**"</code></pre>'
            "<p>after</p><hr>"
            '<pre tabindex="0" data-language=""><code>open **end\n</code></pre>'
        )
        story = demo.answer_to("What are errors, in code?")
        cuts = [*itertools.accumulate(map(len, demo.tokens_of(story)))]
        whole, shown, removed = await tab.run(PIECES, [story, cuts])
        assert shown == whole
        assert removed <= 2, "nothing is taken away again, but lines that turn into something else"
        for hostile in HOSTILE:
            text = (
                f"{hostile}\n\n- {hostile}\n\n`{hostile}` **{hostile}**\n\n```{hostile}\n{hostile}"
            )
            whole, shown, _ = await tab.run(PIECES, [text, [*range(len(text))]])
            assert shown == whole
            assert "<script" not in whole
            assert "<img" not in whole
        assert tab.errors == []


async def test_what_strangers_say_is_shown_as_text_and_nothing_of_it_runs(
    chromium: Profiles,
) -> None:
    async with running() as gateway, chromium() as browser:
        stream = await begin(gateway)
        turns = [(hostile, "") for hostile in HOSTILE[:10]]
        tab = await browser.tab(url_of(gateway) + conversation(*turns, ("?", stream.record.id)))
        await stream.say("First ")
        await until_text(tab, "First")
        before = await tab.run(SHAPE)
        told = {"event": "token", "broadcast": True, "data": {"text": "of somebody else"}}
        await gateway.ask(request("POST", "/publish", JSON, body=json.dumps(told).encode()))
        await stream.say("\n\n".join(HOSTILE))
        await stream.end(Complete(f"<img src=x onerror={HOSTILE[1]}>"))
        await tab.until(".turn:last-child .note", "^complete · 2 tokens")
        assert await tab.run(SHAPE) == before
        assert await tab.run("() => document.documentElement.dataset.pwned ?? null") is None
        assert "somebody else" not in (await tab.run(TEXTS))[-1]
        assert tab.errors == []


async def test_on_a_telephone_nothing_is_too_wide_and_a_reader_who_scrolls_up_is_left_there(
    chromium: Profiles,
) -> None:
    phone = {"width": 360, "height": 640}
    async with (
        running() as gateway,
        chromium(viewport=phone, color_scheme="dark", reduced_motion="reduce") as browser,
        watched(browser, gateway) as (s, tab),
    ):
        await s.say(*("A line of its own, with averyveryverylongwordthatgoesnowhere.\n\n",) * 12)
        await s.say("```\n", "x" * 300, "\n```\n\n")
        await tab.until(".note", "14 tokens|15 tokens")
        await tab.click("#fold")
        width = "() => document.documentElement.scrollWidth"
        assert await tab.run(width) == 360
        at_end = "() => talk.scrollHeight - talk.scrollTop - talk.clientHeight < 2"
        await tab.until_true(at_end)
        await tab.run("() => { talk.scrollTop = 40; }")
        await tab.until("#latest:visible")
        await s.say("More. ", "\n\nAnd more.")
        await tab.until(".note", "17 tokens")
        assert await tab.run("() => talk.scrollTop") == 40
        await tab.click("#latest")
        await tab.until_true(at_end)
        await s.say("\n\nThe last.")
        await tab.until(".text", "The last")
        await tab.until_true(at_end)
        assert await tab.run("() => latest.checkVisibility()") is False
        assert tab.errors == []


async def test_a_picture_of_it_can_be_taken(
    chromium: Profiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "chat.png"
    async with (
        running(retry=0.5) as gateway,
        proxy_to(gateway.port) as proxy,
        chromium(viewport=DESK) as browser,
    ):
        tab = await browser.tab(f"{proxy.url}/chat")
        if "GATEWAY_PICTURES" not in os.environ:
            monkeypatch.setattr(demo, "TOKENS_PER_SECOND", 100.0)
        await ask(tab, "How does stop work?")
        await tab.until(".text", "any node of the gateway")
        await tab.click("#stop")
        await tab.until(".note", "^stopped .* tokens/s")
        await ask(tab, "What if I reload, and lose the network?")
        await tab.until(".turn:last-child .text", "The text so far")
        await tab.do(lambda page: page.reload())
        await tab.until(".turn:last-child .text", "What happened")
        proxy.cut()
        await tab.until("#state[data-state=reconnecting]")
        proxy.let_through()
        await tab.until(".turn:last-child .text", "exactly what it missed")
        await tab.do(lambda page: page.screenshot(path=picture))
    taken = picture.read_bytes()
    assert struct.unpack(">II", taken[16:24]) == (DESK["width"], DESK["height"])
    assert len(taken) < MAX_PICTURE_BYTES
    if "GATEWAY_PICTURES" in os.environ:
        PICTURE.write_bytes(taken)
    assert struct.unpack(">II", PICTURE.read_bytes()[16:24]) == (DESK["width"], DESK["height"])


def test_addresses_and_what_is_said_aloud_in_node() -> None:
    run_module("chat.mjs")


ROWS = """async () => {
  const { Wire } = await import("/chat-wire.js");
  const wire = new Wire();
  for (const part of [1, 2]) {
    for (let row = 0; row < 90; row++) wire.request("GET", `/${part}/${row}`, 200);
    await new Promise(requestAnimationFrame);
  }
  const rows = [...document.querySelectorAll("#wire .type")];
  return [rows.length, rows[0].textContent, rows.at(-1).textContent];
}"""


async def test_the_page_keeps_no_more_than_it_says(chromium: Profiles) -> None:
    async with fake_page(chromium) as (fake, tab):
        assert await tab.run(ROWS) == [100, "GET /1/80", "GET /2/89"]
        questions = "&".join(f"q={number}" for number in range(20))
        await move(tab, (await tab.run("() => location.href")) + f"#{questions}")
        await tab.until(".turn:nth-child(12)")
        await ask(tab, "20")
        await until_text(tab, text_of(5).strip())
        shown = "() => [...document.querySelectorAll('.question')].map(asked => asked.textContent)"
        assert await tab.run(shown) == [str(number) for number in range(9, 21)]
        kept = "() => new URLSearchParams(location.hash.slice(1)).getAll('q').length"
        assert await tab.run(kept) == 12
        assert len((await fake.call()).json["messages"]) == 1  # what was not answered is not sent
        assert tab.errors == []


@pytest.mark.parametrize("demo", [True, False])
async def test_the_chat_is_there_where_the_demo_is(demo: bool) -> None:
    async with running(demo=demo) as gateway:
        response = await gateway.ask(request("GET", "/chat"))
        assert response.status == (200 if demo else 404)
