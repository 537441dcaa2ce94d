"""What README.md says of other people's clients is what they do."""

import re

import compatibility
import httpx
import pytest
from aiohttp.client import DEFAULT_TIMEOUT
from compatibility import ALL, RESUME, Nodes, Outcome, compared
from documents import README
from process import NodeProcess

from gateway.config import Config

CHAPTER = README.partition("\n## Clients\n")[2].partition("\n## ")[0]


def shown() -> list[str]:
    """The lines of the table, and of the versions below it."""
    inside = CHAPTER.partition("<!-- compatibility -->\n")[2].partition("<!-- /compatibility -->")[
        0
    ]
    return [line for line in inside.splitlines() if line]


async def test_the_table_of_clients_is_what_they_do() -> None:
    *table, versions = shown()
    *now, _ = (line for line in (await compatibility.run()).table().splitlines() if line)
    assert table == now
    assert all(client.name.split("'")[0] in versions for client in ALL)


def test_every_client_has_its_footnote() -> None:
    marks = {client.footnote for client in ALL if client.footnote}
    assert set(re.findall(r"(?m)^\[\^(k\d+)\]: ", CHAPTER)) == marks


NODE_JS = tuple(client for client in ALL if client.where == "node" and not client.footnote)


async def test_an_event_that_is_lost_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Nodes.publish

    async def losing(
        self: Nodes, n: NodeProcess, channel: str, *data: str, **more: str
    ) -> list[str]:
        return await publish(self, n, channel, *(d for d in data if d != "missed 3"), **more)

    monkeypatch.setattr(Nodes, "publish", losing)
    report = await compatibility.run(NODE_JS, ["steady"])
    assert report.plain[NODE_JS[0]][RESUME] is Outcome.LOSES


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
