"""One node (so far one worker): bus, hub and streams put together, and what it says of itself."""

import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from gateway.bus import Bus, BusStatistics
from gateway.bus.memory import MemoryBus, wall_clock_ms
from gateway.client import Client
from gateway.clock import Clock
from gateway.config import Config
from gateway.fanout import Fanout
from gateway.hub import Hub, HubStatistics
from gateway.streams import Streams

TAG_BYTES = 4
"""Of randomness: tells the workers of a cluster apart, each start of one anew."""


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """A snapshot of the whole node. ``refused`` counts requests turned away, by reason."""

    id: str
    uptime_seconds: float
    draining: bool
    max_clients: int
    hub: HubStatistics
    bus: BusStatistics
    refused: dict[str, int]


class Node:
    def __init__(
        self,
        config: Config,
        *,
        max_clients: int,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.config = config
        self.max_clients = max_clients
        self.now_ms = now_ms
        self.id = config.node_id or f"{socket.gethostname()}-{secrets.token_hex(3)}"
        self.draining = False
        """No new clients are wanted here: not ready, and connections are not kept."""
        self.leaving = False
        """No new clients are taken."""
        self.refused: dict[str, int] = {}
        self._started = time.monotonic()
        self.hub = Hub(
            config,
            unsubscribe=lambda names: self.bus.unsubscribe(names),
            catch_up=lambda client: self.streams.catch_up(client),
            watermark=lambda: self.bus.head(),
        )
        self.bus: Bus = MemoryBus(config, self.hub.pending, now_ms=now_ms)
        self._fanout = Fanout(self.hub)
        self._clock = Clock(config, self.hub)
        self.tag = secrets.token_hex(TAG_BYTES)
        self.streams = Streams(
            config, self.bus, self.hub, self._clock, self._serve_soon, tag=self.tag
        )
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The node's own tasks, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.bus.run)
            nursery.start_soon(self.hub.run)
            nursery.start_soon(self._fanout.run)
            nursery.start_soon(self._clock.run)
            task_status.started()

    def refuse(self, reason: str) -> None:
        """Count a request that was turned away. ``reason`` is one of ours, never the client's."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def count_refusal(self, status: int) -> None:
        """Count an answer of 400 or above; those of 503 have a reason of their own already."""
        if status != 503:
            self.refuse(str(status))

    @property
    def ready(self) -> bool:
        return not self.draining and len(self.hub.members.clients) < self.max_clients

    def statistics(self) -> NodeStatistics:
        return NodeStatistics(
            id=self.id,
            uptime_seconds=time.monotonic() - self._started,
            draining=self.draining,
            max_clients=self.max_clients,
            hub=self.hub.statistics(),
            bus=self.bus.statistics(),
            refused=dict(self.refused),
        )

    def _serve_soon(self, client: Client) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self.streams.serve, client)
