"""Redis buses over links that fail when a test says so; all of them nodes of one cluster."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import redis
import trio
from buses import FakeSink, Wall
from scripted_link import ScriptedLink, scripted_link

from gateway.bus.address import parse_address
from gateway.bus.redis import RedisBus
from gateway.config import Config

QUICK = Config(publish_wait=0.2, redis_timeout=0.5)
"""For tests that wait until patience ends, in real time."""


@dataclass
class Node:
    """A bus of its own link, and what it has delivered."""

    bus: RedisBus
    link: ScriptedLink
    sink: FakeSink


@dataclass
class Cluster:
    """Nodes that share a prefix of one Redis."""

    port: int
    prefix: str
    nursery: trio.Nursery
    wall: Wall = field(default_factory=Wall)
    _workers: int = 0

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"

    async def node(self, *channels: str, config: Config = Config(), **more: Any) -> Node:  # noqa: B008
        """A new one that has subscribed to ``channels``, under a link that is well."""
        self._workers += 1
        link = await self.nursery.start(_serve, self.port)
        sink = FakeSink()
        bus = RedisBus(
            replace(config, redis_prefix=self.prefix),
            parse_address(link.url),
            sink,
            worker=f"worker{self._workers}",
            tell_gap=sink.tell_gap,
            now_ms=self.wall,
            **more,
        )
        self.nursery.start_soon(bus.run)
        await bus.subscribe(channels)
        return Node(bus, link, sink)


async def _serve(
    port: int, task_status: trio.TaskStatus[ScriptedLink] = trio.TASK_STATUS_IGNORED
) -> None:
    async with scripted_link(port) as link:
        task_status.started(link)
        await trio.sleep_forever()


@asynccontextmanager
async def cluster(port: int, prefix: str) -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        yield Cluster(port, prefix, nursery)
        nursery.cancel_scope.cancel()


def calls(client: redis.Redis, command: str) -> int:
    """How often the server has been given a command."""
    stats: Any = client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


def subscribers(client: redis.Redis, names: Collection[str]) -> list[int]:
    listed: Any = client.pubsub_numsub(*names)
    return [count for _, count in listed]
