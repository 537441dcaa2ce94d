"""What the shipped balancers do for clients, publishers and operators, with nodes behind them.

Both are meant where a test does not name one.
"""

import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import balancers
import certificates
import pytest
import trio
from balancers import SILENCE, Backend, Balancer
from load import cluster, load_on
from process import NodeProcess, eventually
from running import Wire, request, running
from test_demo_page import browser

from gateway.config import Config

Start: TypeAlias = Callable[..., AbstractAsyncContextManager[Balancer]]

of_both = pytest.mark.parametrize("start", [balancers.haproxy, balancers.nginx])


@pytest.fixture
def redis_url(redis_port: int) -> str:
    return f"redis://127.0.0.1:{redis_port}"


@asynccontextmanager
async def three_nodes(url: str, prefix: str, *flags: str) -> AsyncIterator[list[NodeProcess]]:
    probes = ("--admin-bind", "127.0.0.1:0", "--trusted-proxies", "127.0.0.1")
    async with cluster(*[url] * 3, flags=("--redis-prefix", prefix, *probes, *flags)) as nodes:
        yield nodes


@asynccontextmanager
async def both(
    nodes: Sequence[Backend], certificate: certificates.Files, *, silence: float = SILENCE
) -> AsyncIterator[list[Balancer]]:
    async with (
        balancers.haproxy(nodes, certificate, silence=silence) as haproxy,
        balancers.nginx(nodes, certificate, silence=silence) as nginx,
    ):
        yield [haproxy, nginx]


@dataclass
class Visit:
    """An open stream, and what its client has been told at its beginning."""

    wire: Wire
    node: str
    """The tag of the node that serves it."""
    cookie: bytes
    """As the header in which the client sends it from now on."""


async def visit(balancer: Balancer, cookie: bytes = b"") -> Visit:
    wire = await balancer.open("/events/a", cookie)
    response = await wire.response()
    assert response.status == 200, response.body
    connected = await wire.event()
    assert connected.event == "connected", connected
    if told := response.header("set-cookie"):
        assert {"httponly", "secure"} <= {part.strip().lower() for part in told.split(";")}
        cookie = f"Cookie: {told.partition(';')[0]}\r\n".encode()
    return Visit(wire, str(connected.json["clientId"]).partition(".")[0], cookie)


async def test_a_client_stays_with_its_node_by_a_cookie(
    redis_url: str, new_prefix: str, certificate: certificates.Files
) -> None:
    """And those without one go to all nodes."""
    async with (
        three_nodes(redis_url, new_prefix) as nodes,
        both(nodes, certificate) as started,
    ):
        for balancer in started:
            met = set()
            for _ in range(20):
                first = await visit(balancer)
                again = [await visit(balancer, first.cookie) for _ in range(3)]
                assert {each.node for each in again} == {first.node}
                met.add(first.node)
            assert len(met) == 3, balancer.process.output


async def publish(balancer: Balancer, data: str) -> None:
    answer = await balancer.ask(request("POST", "/publish/a", body=data.encode()))
    assert answer.status == 202


async def test_a_node_that_drains_gets_no_new_streams_and_keeps_those_it_has(
    redis_url: str, new_prefix: str, certificate: certificates.Files
) -> None:
    """HAProxy learns of it by /readyz, within drain_grace; nginx at the refused connection."""
    flags = ("--drain-grace", "2", "--drain-seconds", "2")
    async with (
        three_nodes(redis_url, new_prefix, *flags) as nodes,
        both(nodes, certificate) as (haproxy, nginx),
    ):
        tags = [await tag_of(n) for n in nodes]
        stays = await visit(haproxy)
        number = tags.index(stays.node)
        nodes[number].signal(signal.SIGTERM)
        await haproxy.process.until(f"Server streams/node{number + 1} is DOWN")
        await (await nodes[number].connect()).aclose()  # it still accepts, but nobody comes
        moved = [await visit(haproxy, stays.cookie) for _ in range(6)]
        assert stays.node not in {each.node for each in moved}
        assert {each.cookie for each in moved} != {stays.cookie}
        await publish(haproxy, "while it drains")
        assert (await stays.wire.event()).data == "while it drains"
        assert (await stays.wire.event()).event == "reconnect"
        assert await nodes[number].wait() == 0

        stays = await visit(nginx)
        number = tags.index(stays.node)
        nodes[number].signal(signal.SIGTERM)
        await eventually(partial(refuses, nodes[number]))
        moved = [await visit(nginx, stays.cookie) for _ in range(6)]
        assert stays.node not in {each.node for each in moved}
        await publish(nginx, "while it drains")
        assert (await stays.wire.event()).data == "while it drains"
        assert (await stays.wire.event()).event == "reconnect"
        assert await nodes[number].wait() == 0


async def tag_of(n: NodeProcess) -> str:
    """The tag of its one worker."""
    stream = await n.open_stream("/events/a")
    text = stream.body.decode()
    await stream.transport.aclose()
    return text.partition('"clientId":"')[2].partition(".")[0]


async def refuses(n: NodeProcess) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", n.port)).aclose()
    except OSError:
        return True
    return False


async def test_clients_of_a_node_that_is_killed_lose_nothing(
    redis_url: str, new_prefix: str, certificate: certificates.Files
) -> None:
    """Whether they are sticky, or at another node each time; counted to the last event."""
    async with (
        three_nodes(redis_url, new_prefix) as nodes,
        both(nodes, certificate) as started,
        load_on(started) as load,
    ):
        for balancer in started:
            for _ in range(9):
                load.subscribe("a", "b", ports=[balancer.port])
                load.subscribe("b", "c", ports=[balancer.port], keeps_cookies=False)
                load.subscribe("a", "c", ports=[balancer.port], stay=0.2, keeps_cookies=False)
        load.publish("a", "b", ("a", "c"))
        load.publish("c", "b", "a", batch=1)
        load.publish("c", batch=1, retries=False)
        await load.connected()
        await load.more(200)
        had = int(await nodes[0].metric("clients"))
        before = sum(s.connections for s in load.subscribers)
        nodes[0].signal(signal.SIGKILL)
        await load.more(400)
        await load.finish()
        assert had > 0
        assert sum(s.connections for s in load.subscribers) >= before + had
        assert load.defects() == []
        assert not load.gaps


FACTOR = 50
"""By which the times of the next test are divided, and with them five minutes."""


async def test_a_stream_outlives_five_minutes_of_silence(
    redis_url: str, new_prefix: str, certificate: certificates.Files
) -> None:
    """Since a keepalive comes long before a balancer's patience is at its end."""
    keepalive = str(Config().keepalive / FACTOR)
    async with (
        three_nodes(redis_url, new_prefix, "--keepalive", keepalive) as nodes,
        both(nodes, certificate, silence=SILENCE / FACTOR) as started,
    ):
        streams = [await visit(balancer) for balancer in started]
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stays_open, stream.wire, begun + 300 / FACTOR)
        await publish(started[0], "at last")
        for stream in streams:
            assert (await stream.wire.event()).data == "at last"


async def stays_open(wire: Wire, until: float) -> None:
    while trio.current_time() < until:
        assert (await wire.block()).event == "keepalive"


@of_both
async def test_a_silent_stream_is_cut_without_keepalives(
    start: Start, certificate: certificates.Files
) -> None:
    """So it is they that the test above has seen."""
    async with (
        running(admin_bind="127.0.0.1:0", keepalive=1000) as gateway,
        start([gateway], certificate, silence=0.3) as balancer,
    ):
        stream = await visit(balancer)
        assert await stream.wire.ended()


OPEN = """
const opened = window.opened = [];
window.sources = Array.from({length: 12}, (_, number) => {
  const source = new EventSource("/events/a" + number);
  source.onopen = () => opened.push(number);
  return source;
});
"""


async def test_a_dozen_streams_of_a_page_are_one_connection(
    certificate: certificates.Files,
) -> None:
    """By HTTP/2; by HTTP/1.1 a browser opens six."""
    async with (
        running(admin_bind="127.0.0.1:0") as gateway,
        both([gateway], certificate) as started,
        browser("--ignore-certificate-errors") as page,
    ):
        for balancer in started:
            before = await balancer.connections()
            await page.open(f"https://127.0.0.1:{balancer.https_port}/")
            await page.run(OPEN)
            await gateway.clients(12)

            async def all_are_open() -> bool:
                return bool(await page.run("return window.opened.length == 12"))

            await eventually(all_are_open)

            async def is_one(balancer: Balancer = balancer, others: int = before) -> bool:
                return await balancer.connections() - others == 1

            await eventually(is_one)
            await page.run("window.sources.forEach(source => source.close())")
            await gateway.clients(0)
        await page.open(f"http://127.0.0.1:{started[0].port}/")
        await page.run(OPEN)
        await gateway.clients(6)
        assert await page.run("return window.opened.length") <= 6
