"""What README.md says of clients, ours and other people's, is what they do."""

import re

import compatibility
import httpx
import pytest
import trio
from aiohttp.client import DEFAULT_TIMEOUT
from chromium import chromium
from compatibility import (
    ALL,
    FLAGS,
    JAVASCRIPT,
    NODE_JS,
    RESUME,
    TEN,
    Nodes,
    Outcome,
    Visit,
    come_to,
    compared,
    drive_chromium,
    drive_node,
    steady,
    told_since,
)
from documents import README
from process import NodeProcess, node
from proxy import proxy_to

from gateway.config import Config

CHAPTER = README.partition("\n## Clients\n")[2].partition("\n## ")[0]


def shown() -> list[str]:
    """The lines of the table, and of the versions below it."""
    inside = CHAPTER.partition("<!-- compatibility -->\n")[2]
    inside = inside.partition("<!-- /compatibility -->")[0]
    return [line for line in inside.splitlines() if line]


async def test_the_table_of_clients_is_what_they_do() -> None:
    *table, versions = shown()
    *now, _ = (line for line in (await compatibility.run()).table().splitlines() if line)
    assert table == now
    assert all(client.name.split("'")[0] in versions for client in ALL)


def test_every_client_has_its_footnote() -> None:
    marks = {client.footnote for client in ALL if client.footnote}
    assert set(re.findall(r"(?m)^\[\^(k\d+)\]: ", CHAPTER)) == marks


async def test_an_event_that_is_lost_would_be_seen() -> None:
    class Losing(Nodes):
        async def publish(
            self, n: NodeProcess, channel: str, *data: object, event: str = "tick"
        ) -> list[str]:
            kept = (text for text in data if text != TEN[3])
            return await super().publish(n, channel, *kept, event=event)

    client = next(client for client in ALL if client.where == "node")
    async with (
        node(*FLAGS) as n,
        proxy_to(n) as proxy,
        httpx.AsyncClient(trust_env=False) as publisher,
        trio.open_nursery() as nursery,
    ):
        visit = Visit(client, False, "steady", proxy)
        visit.url = f"{proxy.url}/events/{visit.channel}"
        nursery.start_soon(drive_node, [visit])
        found = await steady(visit, Losing(n, n, n, n, publisher))
        nursery.cancel_scope.cancel()
    assert found[RESUME] is Outcome.LOSES


HIDDEN = """hidden => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_fetch_event_source_leaves_when_its_tab_is_hidden_and_misses_nothing() -> None:
    """As its footnote says."""
    client = next(client for client in ALL if client.driver == "fetch_event_source")
    async with (
        node(*FLAGS) as n,
        proxy_to(n) as proxy,
        httpx.AsyncClient(trust_env=False) as publisher,
        chromium(bypass_csp=True) as browser,
    ):
        visit, nodes = Visit(client, False, "hidden", proxy), Nodes(n, n, n, n, publisher)
        visit.url = f"{proxy.url}/events/{visit.channel}"
        [tab] = await drive_chromium([visit], browser)
        await come_to([visit], nodes, n)
        await tab.run(HIDDEN, True)
        await n.until_clients(0)
        await nodes.publish(n, visit.channel, *TEN)
        await tab.run(HIDDEN, False)
        assert await told_since(visit, nodes, n, 2) == list(TEN)


GIVEN_UP = """
import ReconnectingEventSource from "reconnecting-eventsource";

const opened = [];

class GivingUp extends EventTarget {
  constructor(url) {
    super();
    opened.push(url);
    this.readyState = 1;
    setTimeout(() => {
      const event = new MessageEvent("message", { data: "x", lastEventId: "1-0" });
      this.dispatchEvent(event);
      this.onmessage(event);
      this.readyState = 2;
      this.onerror(new Event("error"));
    });
    if (opened.length === 2) {
      console.log(url);
      process.exit();
    }
  }
  close() {}
}
const source = new ReconnectingEventSource("/a", { eventSourceClass: GivingUp, max_retry_time: 1 });
LISTEN
"""


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ('source.addEventListener("message", () => {});', "/a?lastEventId=1-0"),
        ("source.onmessage = () => {};", "/a"),
    ],
    ids=["addEventListener", "onmessage"],
)
async def test_reconnecting_eventsource_notes_positions_of_its_listeners_alone(
    listen: str, url: str
) -> None:
    """As its footnote says."""
    script = ("--input-type=module", "-e", GIVEN_UP.replace("LISTEN", listen))
    done = await trio.run_process((NODE_JS, *script), cwd=JAVASCRIPT, capture_stdout=True)
    assert done.stdout.decode() == f"{url}\n"


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        (["one", "two"], Outcome.YES),
        (["one"], Outcome.LOSES),
        ([], Outcome.LOSES),
        (["one", "one", "two"], Outcome.DOUBLES),
        (["two", "one"], Outcome.REORDERS),
        (["one", "tw"], Outcome.HALF),
        (["tw", "one", "two"], Outcome.HALF),
        (["one", "three", "two"], Outcome.ALTERS),
    ],
)
def test_what_became_of_two_events(told: list[str], outcome: Outcome) -> None:
    assert compared(told, ["one", "two"]) is outcome


def test_why_httpx_and_aiohttp_need_other_timeouts() -> None:
    """As the footnotes say: the one gives up before a keepalive comes, the other one anyway."""
    read = httpx.Client().timeout.read
    assert read == 5 < Config().keepalive < 45
    assert DEFAULT_TIMEOUT.total == 300
