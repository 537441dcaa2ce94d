"""Chromium's own EventSource behind HAProxy, over TLS and HTTP/2, while links are cut and nodes
drain and are killed: every event comes once, in order."""

import json
import signal
from collections.abc import Awaitable, Callable
from itertools import pairwise

import balancers
import certificates
import trio
from chromium import Tab, chromium
from load import cluster
from process import NodeProcess, eventually
from proxy import proxy_to
from test_balancers import tag_of

LISTEN = """url => {
  window.heard = [];
  const source = new EventSource(url);
  for (const type of ["message", "connected", "gap", "dropped"]) {
    source.addEventListener(type, ({ data, lastEventId }) => heard.push([type, data, lastEventId]));
  }
}"""
HAS_HEARD = "data => heard.some(([type, heard]) => type === 'message' && heard === data)"
HAS_OPENED = "times => heard.filter(([type]) => type === 'connected').length >= times"


class Publisher:
    """Publishes events that count from 0, without a pause."""

    def __init__(self, n: NodeProcess) -> None:
        self.published = 0
        self._node = n

    async def publish(self) -> None:
        data = [str(self.published + i) for i in range(10)]
        await self._node.publish("a", *data)
        self.published += len(data)

    async def run(self, enough: trio.Event) -> None:
        while not enough.is_set():
            await self.publish()

    async def until_more(self) -> None:
        enough = self.published + 30

        async def are_there() -> bool:
            return self.published >= enough

        await eventually(are_there)

    async def publish_until_heard(self, tab: Tab) -> None:
        await self.publish()
        await tab.until_true(HAS_HEARD, str(self.published - 1))


async def whose(tab: Tab) -> str:
    """The tag of the node of the newest stream."""
    _, data, _ = await tab.run("() => heard.findLast(([type]) => type === 'connected')")
    tag, _, _ = json.loads(data)["clientId"].partition(".")
    return str(tag)


async def test_nothing_is_lost_or_doubled_through_cuts_drains_and_kills(
    redis_port: int, new_prefix: str, certificate: certificates.Files
) -> None:
    flags = ("--redis-prefix", new_prefix, "--admin-bind", "127.0.0.1:0")
    async with (
        cluster(*[f"redis://127.0.0.1:{redis_port}"] * 4, flags=flags) as (own, *nodes),
        balancers.haproxy(nodes, certificate) as balancer,
        proxy_to(balancer.https_port) as proxy,
        chromium(bypass_csp=True, ignore_https_errors=True) as browser,
    ):
        by_tag = {await tag_of(n): n for n in nodes}
        tab = await browser.tab(f"https://127.0.0.1:{proxy.port}/")
        await tab.run(LISTEN, "/events/a")
        await tab.until_true(HAS_OPENED, 1)
        publisher = Publisher(own)

        async def cut(_: NodeProcess) -> None:
            proxy.cut()
            await publisher.until_more()
            proxy.let_through()

        async def drain(n: NodeProcess) -> None:
            n.signal(signal.SIGTERM)
            assert await n.wait() == 0

        async def kill(n: NodeProcess) -> None:
            n.signal(signal.SIGKILL)
            await n.wait()

        harms: tuple[Callable[[NodeProcess], Awaitable[None]], ...] = (cut, drain, cut, kill)
        for streams, harm in enumerate(harms, 2):
            await publisher.publish_until_heard(tab)
            enough = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publisher.run, enough)
                await harm(by_tag[await whose(tab)])
                await tab.until_true(HAS_OPENED, streams)
                enough.set()
            await publisher.publish_until_heard(tab)

        heard = await tab.run("() => heard.filter(([type]) => type !== 'connected')")
    assert [(type, data) for type, data, _ in heard] == [
        ("message", str(number)) for number in range(publisher.published)
    ]
    positions = [tuple(map(int, id.split("-"))) for _, _, id in heard]
    assert all(earlier < later for earlier, later in pairwise(positions))
    assert publisher.published > 100
