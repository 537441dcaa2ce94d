"""The stress test with locust for real: its processes, its verdict, and its page."""

import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from process import READ_BYTES, Child, NodeProcess, child, eventually, node
from redis_server import free_port
from stress.tally import Tally
from stress.verdict import EXIT_WRONG
from subscriber import Dechunker

LOCUST = str(Path(sys.executable).with_name("locust"))
LOADTEST = Path(__file__).parent.parent / "loadtest"


def locust(*options: str) -> AbstractAsyncContextManager[Child]:
    return child(
        LOCUST,
        "-f",
        str(LOADTEST / "locustfile.py"),
        "--only-summary",
        "--spawn-rate",
        "100",
        *options,
    )


async def verdict(process: Child, exit_code: int = 0) -> dict[str, int]:
    """The counts of the next verdict, once the process has ended with that code."""
    assert await process.wait() == exit_code, process.output
    assert "Traceback" not in process.output, process.output
    line = await process.until(r"verdict: (right|wrong)(?: \w+=\d+)+")
    assert (line[1] == "wrong") == (exit_code == EXIT_WRONG)
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line[0])}


async def counted(nodes: list[NodeProcess], name: str) -> float:
    """A counter of all nodes together, whatever its labels."""
    pages = [(await n.get("/metrics")).text for n in nodes]
    values = re.findall(rf"(?m)^gateway_{name}(?:\{{.*\}})? (\S+)$", "".join(pages))
    assert values, name
    return sum(map(float, values))


@asynccontextmanager
async def two_nodes(
    redis_port: int, prefix: str, *flags: str
) -> AsyncIterator[tuple[list[NodeProcess], str]]:
    """On one Redis; and what locust is told of them."""
    flags = ("--redis", f"redis://127.0.0.1:{redis_port}", "--redis-prefix", prefix, *flags)
    async with node(*flags) as a, node(*flags) as b:
        yield [a, b], f"{a.url},{b.url}"


async def test_locust_counts_what_the_nodes_count_and_dropped_is_not_lost(
    redis_port: int, new_prefix: str
) -> None:
    """Slow readers are told of what they miss, to the last event; the others miss nothing."""
    small = ("--outbox-frames", "5", "--send-buffer-bytes", "4096")
    async with two_nodes(redis_port, new_prefix, *small) as (nodes, hosts):
        load = ("--users", "10", "--channels", "1", "--rate", "40", "--size", "2000")
        slow = ("--shape", "slow", "--slow-bytes", "1000")
        time = ("--run-time", "2s", "--settle", "15")
        async with locust("--headless", "--host", hosts, *load, *slow, *time) as process:
            found = await verdict(process)
        assert found["opened"] == 8
        assert found["lost"] == found["unknown"] == found["duplicates"] == found["foreign"] == 0
        assert found["dropped"] == found["dropped_missing"] > 0
        for name in ("published", "delivered", "dropped"):
            assert found[name] == await counted(nodes, f"{name}_total") > 0, name
        rows = re.findall(r"(?m)^ *([A-Z]+) +(publisher|subscriber|slow reader) ", process.output)
        assert set(rows) >= {
            *(("PUBLISH", "publisher"), ("OPEN", "subscriber"), ("OPEN", "slow reader")),
            *(("DELIVERY", "subscriber"), ("DELIVERY", "slow reader")),
        }


async def test_a_master_and_two_workers_come_to_one_verdict_after_storms(
    redis_port: int, new_prefix: str
) -> None:
    """Everybody comes back to the other node, with the id of the last event; and users move to a
    third worker that comes in the middle."""
    async with two_nodes(redis_port, new_prefix, "--retry", "0.1") as (nodes, hosts):
        port = str(free_port())
        load = ("--users", "22", "--publishers", "2", "--rate", "50", "--channels-each", "3")
        shape = ("--shape", "storm", "--storm-every", "1")
        master = ("--master", "--master-bind-port", port, "--expect-workers", "2", "--headless")
        worker = ("--worker", "--master-port", port)

        async def there_were_storms() -> bool:
            return await counted(nodes, "opened_total") >= 50

        async with (
            locust(*master, "--host", hosts, *load, *shape) as process,
            locust(*worker) as first,
            locust(*worker) as second,
        ):
            await process.until("All users spawned")
            async with locust(*worker) as third:
                await process.until("3 workers connected")
                await eventually(there_were_storms)
                process.signal(signal.SIGINT)
                found = await verdict(process)
                assert [await each.wait() for each in (first, second, third)] == [0, 0, 0]
        assert found["lost"] == found["dropped"] == found["gaps"] == 0
        assert found["opened"] > 20
        assert found["resumed"] >= 20
        may_be = await counted(nodes, "published_total") - found["published"]
        assert 0 <= may_be <= found["unknown"]  # of publishers that had to move
        assert found["delivered"] > 2 * found["published"]


Edit = Callable[[int, bytes], list[bytes]]
"""What becomes of the n-th stamped block of a stream."""


class Editor:
    """A proxy that sees to it that streams are not what the node has sent: each connection for a
    stream gets the next edit."""

    def __init__(self, port: int, edits: list[Edit]) -> None:
        self._port = port
        self._edits = iter(edits)

    async def serve(self, outer: trio.SocketStream) -> None:
        async with outer, await trio.open_tcp_stream("127.0.0.1", self._port) as inner:
            request = await outer.receive_some(READ_BYTES)
            await inner.send_all(request)
            async with trio.open_nursery() as nursery:
                if request.startswith(b"GET /events"):
                    nursery.start_soon(self._edit, inner, outer, next(self._edits))
                else:
                    nursery.start_soon(_pass, inner, outer)
                await _pass(outer, inner)
                nursery.cancel_scope.cancel()

    async def _edit(self, inner: trio.SocketStream, outer: trio.SocketStream, edit: Edit) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await inner.receive_some(READ_BYTES)
        head, _, data = data.partition(b"\r\n\r\n")
        await outer.send_all(head + b"\r\n\r\n")
        chunks, body, stamped = Dechunker(), b"", 0
        while data:
            *blocks, body = (body + chunks.receive_data(data)).split(b"\n\n")
            for block in blocks:
                stamped += b"xxx" in block
                for each in edit(stamped, block) if b"xxx" in block else [block]:
                    await outer.send_all(b"%x\r\n%b\n\n\r\n" % (len(each) + 2, each))
            data = await inner.receive_some(READ_BYTES)


async def _pass(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    while data := await source.receive_some(READ_BYTES):
        await sink.send_all(data)


class Edits:
    """What it takes away, by the number that its stamp says."""

    def __init__(self) -> None:
        self.swallowed: list[int] = []
        self._held = b""

    def swallow(self, block: bytes) -> list[bytes]:
        self.swallowed.append(int(re.findall(rb"data: \w+ 0\.0 0 (\d+) ", block)[0]))
        return []

    def third(self, number: int, block: bytes) -> list[bytes]:
        return self.swallow(block) if number == 3 else [block]

    def first_two(self, number: int, block: bytes) -> list[bytes]:
        return self.swallow(block) if number <= 2 else [block]

    def from_tenth(self, number: int, block: bytes) -> list[bytes]:
        return self.swallow(block) if number >= 10 else [block]

    def repeated(self, number: int, block: bytes) -> list[bytes]:
        return [block, block] if number == 3 else [block]

    def exchanged(self, number: int, block: bytes) -> list[bytes]:
        if number == 3:
            self._held = block
            return []
        return [block, self._held] if number == 4 else [block]


async def test_what_is_lost_doubled_and_out_of_order_is_found_and_named() -> None:
    edits = Edits()
    a, b, c = edits.third, edits.first_two, edits.from_tenth
    async with node() as n, trio.open_nursery() as nursery:
        editor = Editor(n.port, [a, b, c, edits.repeated, edits.exchanged])
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, editor.serve, [listener])
        host = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        load = ("--users", "6", "--publishers", "1", "--channels", "1", "--size", "200")
        time = ("--rate", "20", "--run-time", "2s", "--settle", "1")
        async with locust("--headless", "--host", host, *load, *time) as process:
            found = await verdict(process, EXIT_WRONG)
        nursery.cancel_scope.cancel()
    assert found["lost"] == len(edits.swallowed) > 10
    assert (found["duplicates"], found["disordered"]) == (1, 1)
    ranges = re.findall(r"lost (\d+) of channel 0 by publisher 0\.0, (.+)\.", process.output)
    named: list[int] = []
    for count, numbers in ranges:
        first, *last = map(int, re.findall(r"\d+", numbers))
        assert len(range(first, (*last, first)[0] + 1)) == int(count)
        named += range(first, (*last, first)[0] + 1)
    assert sorted(named) == sorted(edits.swallowed)


async def test_the_page_starts_runs_shows_their_figures_and_an_interrupt_is_judged() -> None:
    async with node() as n, httpx.AsyncClient(trust_env=False) as client:
        page = f"http://127.0.0.1:{free_port()}"
        web = ("--web-host", "127.0.0.1", "--web-port", page.rpartition(":")[2])
        async with locust(*web, "--settle", "5") as process:
            await process.until("Starting web interface")

            async def is_there() -> bool:
                try:
                    return (await client.get(page)).status_code == 200
                except httpx.ConnectError:
                    return False

            async def is_delivering() -> bool:
                return bool((await figures())["delivered"] > 20)

            async def figures() -> dict[str, Any]:
                told: dict[str, Any] = (await client.get(f"{page}/gateway")).json()
                return told

            await eventually(is_there)
            assert '"key": "gateway"' in (text := (await client.get(page)).text)
            for option in ("shape", "slow_weight", "channels_each", "token"):
                assert f'"{option}"' in text
            form = {"user_count": "6", "spawn_rate": "100", "host": n.url, "channels": "1"}
            form["rate"] = "50"
            assert (await client.post(f"{page}/swarm", data=form)).json()["success"]
            await eventually(is_delivering)
            shown = (await client.get(f"{page}/stats/requests")).json()["extended_stats"]
            [rows] = [tab["data"] for tab in shown if tab["key"] == "gateway"]
            assert {row["name"]: row["count"] for row in rows}["opened"] == 4
            await client.get(f"{page}/stop")
            await client.post(f"{page}/stop")
            told = await figures()
            assert told["verdict"] == {"right": True, "lost": 0, "unjudged": 0, "defects": []}
            assert told["published"] == await n.metric("published_total")
            form |= {"user_count": "52", "rate": "100"}  # whom an interrupt may find at work
            assert (await client.post(f"{page}/swarm", data=form)).json()["success"]
            await eventually(is_delivering)
            process.signal(signal.SIGINT)
            first = await process.until(r"verdict: right .*")
            assert int(re.findall(r"published=(\d+)", first[0])[0]) == told["published"]
            second = await verdict(process)
            assert second["lost"] == 0
            assert second["delivered"] > 20


def test_each_option_and_each_count_is_in_the_readme() -> None:
    readme = (LOADTEST / "README.md").read_text("utf-8")
    chapter = readme.partition("## Stress with locust")[2].partition("\n## ")[0]
    source = (LOADTEST / "stress" / "options.py").read_text("utf-8")
    options = re.findall(r'"(--[a-z-]+)"', source)
    assert len(options) > 10
    for name in (
        *options,
        *re.findall(r'"(\w+)"', source.partition("SHAPES = ")[2].split("\n")[0]),
    ):
        assert f"`{name}`" in chapter, name
    for name in (*Tally().counts(), "lost", "unjudged"):
        assert f"`{name}`" in chapter, name
