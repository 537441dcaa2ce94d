"""Pushing to real nodes: as it is documented, and over nodes that break, drain and die."""

import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import trio
from documents import REFERENCE
from near import near
from process import PATIENCE, READ_BYTES, NodeProcess, Stream, environment, eventually, node
from proxy import proxy_to
from redis_server import redis_server

from gateway.http1_render import chunk

COUNT = 300


def documented(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", REFERENCE, re.DOTALL)
    assert found is not None
    return found[1]


async def opened(n: NodeProcess) -> str:
    async with n.client() as client:
        answer = await client.post(f"{n.url}/streams", json={})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


async def pushed(n: NodeProcess, id: str, first: int, size: int, **query: str) -> httpx.Response:
    lines = "".join(f'{{"text":"{each}"}}\n' for each in range(first, first + size))
    async with n.client() as client:
        return await client.post(
            f"{n.url}/streams/{id}/events", params={"seq": str(first), **query}, content=lines
        )


async def watching(n: NodeProcess, id: str) -> Stream:
    return await n.open_stream(f"/events/stream:{id}?lastEventId=earliest")


async def texts(viewer: Stream) -> list[str]:
    """All tokens up to the end, which is a completion."""
    await viewer.until_end()
    assert viewer.body.count(b"event: complete\n") == 1
    assert b"event: error\n" not in viewer.body
    assert b"event: gap\n" not in viewer.body
    return re.findall(r'data: \{"text":"(\d+) ?"\}', viewer.body.decode())


@asynccontextmanager
async def two_nodes(*flags: str) -> AsyncIterator[tuple[NodeProcess, NodeProcess]]:
    async with (
        redis_server() as redis,
        node("--redis", redis.url, "--node-id", "a", *flags) as a,
        node("--redis", redis.url, "--node-id", "b", *flags) as b,
    ):
        yield a, b


class Producer:
    """A body of ten lines, and without an end; and what it is told nevertheless."""

    def __init__(self, connection: trio.SocketStream) -> None:
        self._connection = connection

    async def told(self) -> tuple[int, dict[str, object]]:
        said = b""
        with trio.fail_after(PATIENCE):
            while data := await self._connection.receive_some(READ_BYTES):
                said += data
        head, _, body = said.partition(b"\r\n\r\n")
        assert b"\r\nconnection: close" in head.lower()
        return int(head.split(b" ")[1]), msgspec.json.decode(body)


async def producing(n: NodeProcess, id: str) -> Producer:
    connection = await n.connect()
    await connection.send_all(
        b"POST /streams/%b/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        % id.encode()
    )
    for each in range(10):
        await connection.send_all(chunk(b'{"text":"%d"}\n' % each))
    return Producer(connection)


async def test_the_example_with_curl_is_what_it_says() -> None:
    async with near() as n:
        ran = await trio.run_process(
            ["sh", "-c", documented("push with curl")],
            capture_stdout=True,
            env=environment(GATEWAY_URL=n.url),
        )
        answer = msgspec.json.decode(ran.stdout, type=dict[str, object])
        assert (answer["next"], answer["state"]) == (2, "complete")


async def test_the_example_of_a_relay_shows_all_of_it() -> None:
    async with near() as n:
        ran = await trio.run_process(
            ["sh", "-c", documented("relay with curl")],
            capture_stdout=True,
            env=environment(GATEWAY_URL=n.url),
        )
    first, told, stopped, snapshot = re.split(rb"(?m)^(?=\{|retry: )", ran.stdout.strip())[1:]
    assert first.count(b"event: token\n") > 3
    assert b'"state":"streaming"' in told
    assert b'"state":"stopped"' in stopped
    assert b'event: snapshot\ndata: {"state":"stopped","text":"' in snapshot


async def test_the_example_in_python_gets_over_every_break() -> None:
    program = documented("push with python").replace("range(1000)", f"slowly({COUNT})")
    slowly = (
        "import time\n\ndef slowly(count):\n    for n in range(count):\n"
        "        time.sleep(0.001)\n        yield n\n\n"
    )
    async with node() as n, proxy_to(n) as proxy, trio.open_nursery() as nursery:
        ran: list[bytes] = []

        async def run() -> None:
            command = [sys.executable, "-W", "error", "-c", slowly + program]
            env = environment(GATEWAY_URL=proxy.url)
            done = await trio.run_process(command, capture_stdout=True, env=env)
            ran.append(done.stdout)

        nursery.start_soon(run)

        async def has_an_id() -> bool:
            return b'"id":"' in proxy.answered

        await eventually(has_an_id)
        id = re.findall(rb'"id":"([^"]+)"', proxy.answered)[0].decode()
        viewer = await watching(n, id)
        for number in (50, 150, 250):
            await viewer.until(b'data: {"text":"%d "}\n' % number)
            proxy.cut()
            proxy.let_through()
        assert await texts(viewer) == [str(each) for each in range(COUNT)]
    assert b"'next': 300, 'state': 'complete'" in ran[0]


async def test_curl_sends_lines_as_they_come() -> None:
    async with node() as n:
        id = await opened(n)
        viewer = await watching(n, id)
        command = ["curl", "-s", "-X", "POST", "-T", "-", f"{n.url}/streams/{id}/events"]
        curl = await trio.lowlevel.open_process(command, stdin=-1, stdout=-1, env=environment())
        assert curl.stdin is not None
        assert curl.stdout is not None
        for each in range(20):
            await curl.stdin.send_all(b'{"text":"%d"}\n' % each)
            await viewer.until(b'data: {"text":"%d"}\n' % each)
        await curl.stdin.aclose()
        answer = await curl.stdout.receive_some()
        await curl.wait()
        assert b'"next":20,"state":"complete"' in answer
        await curl.stdout.aclose()
        assert await texts(viewer) == [str(each) for each in range(20)]


async def test_the_other_node_takes_over_from_a_producer_and_stops_one() -> None:
    async with two_nodes() as (a, b):
        id = await opened(a)
        viewer = await watching(b, id)
        producer = await producing(a, id)
        await viewer.until(b'data: {"text":"9"}\n')
        hole = await pushed(b, id, 20, 10)
        assert (hole.status_code, hole.json()["next"]) == (409, 10)
        answer = await pushed(b, id, 5, COUNT - 5)
        assert (answer.status_code, answer.json()["next"]) == (200, COUNT)
        assert await texts(viewer) == [str(each) for each in range(COUNT)]
        status, told = await producer.told()
        assert (status, told["next"], told["state"]) == (409, 10, "streaming")

        id = await opened(a)
        viewer = await watching(b, id)
        producer = await producing(a, id)
        await viewer.until(b'data: {"text":"9"}\n')
        async with b.client() as client:
            stopped = await client.delete(f"{b.url}/streams/{id}")
        assert (stopped.status_code, stopped.json()["state"]) == (200, "stopped")
        status, told = await producer.told()
        assert (status, told["next"], told["state"]) == (409, 10, "stopped")
        await viewer.until_end()


async def test_a_node_that_drains_sends_the_producer_to_another() -> None:
    flags = ("--drain-grace", "0", "--drain-seconds", "0.2")
    async with two_nodes(*flags) as (a, b):
        id = await opened(a)
        viewer = await watching(b, id)
        producer = await producing(a, id)
        await viewer.until(b'data: {"text":"9"}\n')
        a.signal(signal.SIGTERM)
        status, told = await producer.told()
        assert (status, told["next"], told["reason"]) == (503, 10, "draining")
        rest = await pushed(b, id, 10, 20)
        assert (rest.status_code, rest.json()["next"]) == (200, 30)
        assert await texts(viewer) == [str(each) for each in range(30)]
        assert await a.wait() == 0


async def test_a_producer_whose_node_has_died_goes_on_at_another() -> None:
    async with two_nodes() as (a, b):
        id = await opened(a)
        viewer = await watching(b, id)
        await producing(a, id)
        await viewer.until(b'data: {"text":"9"}\n')
        os.killpg(a.process.pid, signal.SIGKILL)
        answer = await pushed(b, id, 0, 40)
        assert (answer.status_code, answer.json()["next"]) == (200, 40)
        assert await texts(viewer) == [str(each) for each in range(40)]
