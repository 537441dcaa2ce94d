"""The program as it is started: what it says, what stops it, and how many clients it takes."""

import re
import resource
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import httpx
import pytest
import trio
from process import GATEWAY, PATIENCE, NodeProcess, Stream, child, in_parallel, node

from gateway.server import RESERVED_DESCRIPTORS

CROWD = 5000


async def test_a_node_says_where_it_listens_and_answers_there() -> None:
    async with node("--node-id", "n1") as n:
        assert "node n1, on http://127.0.0.1:" in n.output
        assert (await n.get("/healthz")).json() == {"status": "ok"}
        assert (await n.get("/readyz")).status_code == 200


async def test_without_the_demo_there_is_nothing_at_the_root() -> None:
    async with node("--no-demo") as n:
        answer = await n.get("/")
        assert answer.status_code == 404
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["detail"] == "There is nothing at /."


async def ends_with(sentence: str, *flags: str, **variables: str) -> None:
    """``gateway serve`` ends with exit code 2 and this one line."""
    async with child(GATEWAY, "serve", *flags, **variables) as gateway:
        code = await gateway.wait()
    assert re.fullmatch(f"gateway: {sentence}\n", gateway.output), gateway.output
    assert code == 2


async def test_an_address_in_use_stops_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:{1}".format(*taken.getsockname())
        await ends_with(
            f"bind: cannot listen on {address}: Address already in use.", "--bind", address
        )


async def test_listening_beyond_loopback_has_to_be_asked_for() -> None:
    await ends_with(r"bind is '0.0.0.0:0' \(flag --bind\), but .* --insecure.", "--bind=0.0.0.0:0")


async def test_an_unknown_key_in_the_file_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("keepalife = 3\n", "utf-8")
    await ends_with(
        f"keepalife \\(file {file}\\) is not a setting; did you mean keepalive\\?",
        f"--config={file}",
    )


async def test_an_unknown_variable_stops_the_start() -> None:
    await ends_with(
        r"keepalife \(variable GATEWAY_KEEPALIFE\) is not a setting; did you mean keepalive\?",
        GATEWAY_KEEPALIFE="3",
    )


# -- a crowd

CONNECTED, EVENT = b"event: connected\n", b"data: to all\n"


@contextmanager
def crowd(port: int, channel: str) -> Iterator[list[socket.socket]]:
    """Connections that have all asked for a stream of ``channel``, none waiting for another."""
    request = f"GET /events/{channel} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(CROWD)]
        for sock in sockets:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        ask_all(sockets, request)
        yield sockets


def ask_all(sockets: list[socket.socket], request: bytes) -> None:
    waiting = {sock.fileno(): sock for sock in sockets}
    with select.epoll() as epoll:
        for descriptor in waiting:
            epoll.register(descriptor, select.EPOLLOUT)
        while waiting:
            ready = epoll.poll(PATIENCE)
            assert ready, f"{len(waiting)} connections were not accepted"
            for descriptor, _ in ready:
                epoll.unregister(descriptor)
                assert waiting.pop(descriptor).send(request) == len(request)


def read_until(sockets: list[socket.socket], text: bytes) -> None:
    """Read from each of ``sockets`` until it has given ``text``."""
    waiting = {sock.fileno(): (sock, b"") for sock in sockets}
    with select.epoll() as epoll:
        for descriptor in waiting:
            epoll.register(descriptor, select.EPOLLIN)
        while waiting:
            ready = epoll.poll(PATIENCE)
            assert ready, f"{len(waiting)} clients did not get {text!r}"
            for descriptor, _ in ready:
                sock, before = waiting[descriptor]
                data = sock.recv(4096)
                assert data, f"a stream ended after {before!r}"
                waiting[descriptor] = sock, before + data
                if text in before + data:
                    del waiting[descriptor]
                    epoll.unregister(descriptor)


async def test_clients_are_told_to_return_before_descriptors_run_out() -> None:
    """As many as the system's limit leaves room for, exactly; and the node goes on answering."""
    descriptors = 200
    most = descriptors - RESERVED_DESCRIPTORS
    async with node(descriptors=descriptors) as n:
        assert await n.metric("clients_max") == most
        streams = [await n.open_stream("/events/a") for _ in range(most)]
        one_more = Stream(await n.connect())
        await one_more.request("/events/a", ("Accept", "text/event-stream"))
        await one_more.until(b'event: reconnect\ndata: {"reason":"full"}\n\n')
        assert (await n.get("/healthz")).status_code == 200
        assert (await n.get("/readyz")).status_code == 503
        assert await n.metric('refused_total{reason="full"}') == 1
        assert "no-descriptor" not in (await n.get("/metrics")).text
        await n.publish("a", "still served")
        await in_parallel(partial(stream.until, b"data: still served\n") for stream in streams)
        streams[0].transport.socket.close()
        await n.until_clients(most - 1)
        await n.open_stream("/events/a")


@pytest.fixture
def _descriptors() -> Iterator[None]:
    """As many as the system allows, for the time of a test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_descriptors")
async def test_a_crowd_that_comes_at_once_is_served_and_costs_the_others_nothing() -> None:
    """5,000 clients: each gets the event, and who was there before misses none meanwhile."""
    async with node() as n:
        established = [await n.open_stream("/events/steady") for _ in range(20)]
        before = n.resident_bytes()
        published = await publish_while(n, partial(be_a_crowd, n))
        assert published > 10, "hardly anything was published meanwhile: the test proves nothing"
        expected = [str(number).encode() for number in range(published)]

        async def check(stream: Stream) -> None:
            await stream.until(b"data: end\n")
            assert re.findall(rb"data: (\d+)\n", stream.body) == expected

        await n.publish("steady", "end")
        await in_parallel(partial(check, stream) for stream in established)
        growth = n.resident_bytes() - before
        assert growth / CROWD < 8 * 1024


def be_a_crowd(n: NodeProcess) -> None:
    """Come, get one event, and leave."""
    with crowd(n.port, "all") as sockets:
        read_until(sockets, CONNECTED)
        answer = httpx.post(f"{n.url}/publish/all", content=b"to all", trust_env=False)
        assert answer.status_code == 202
        read_until(sockets, EVENT)
        stats = httpx.get(f"{n.url}/stats", trust_env=False).json()
        assert stats["clients"] > CROWD


async def publish_while(n: NodeProcess, work: Callable[[], None]) -> int:
    """Publish 0, 1, 2 and so on on ``steady`` until ``work``, in a thread, is done; how many."""
    done = trio.Event()

    async def work_in_thread() -> None:
        await trio.to_thread.run_sync(work)
        done.set()

    async with (
        trio.open_nursery() as nursery,
        httpx.AsyncClient(base_url=n.url, trust_env=False, timeout=PATIENCE) as client,
    ):
        nursery.start_soon(work_in_thread)
        for published in count():
            answer = await client.post("/publish/steady", content=str(published))
            assert answer.status_code == 202
            if done.is_set():
                break
    return published + 1
