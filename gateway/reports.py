"""What a worker reports of itself, once a second and as it begins and ends to drain, while anybody
in the cluster watches.

1. Nobody watches, nothing is gathered. A worker that has a client of OPS_CHANNEL renews a lease by
   a command to all workers; each of them reports until its lease is over.
2. Reports go by the bus as events do, so that they come from any node to any other. One at a time
   is under way, and none while the link is lost: what cannot be told now is not told later.
3. Gathering stops nobody: it looks at each client for which something may wait and at each channel
   once, some hundred at a time. A report is bounded whatever there is to tell.
4. Reports are nobody's events: neither `published` nor `delivered` counts them.
"""

import heapq
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import trio

from gateway import __version__
from gateway.bus import Bus
from gateway.client_summary import ClientSummary, queued_bytes, summary
from gateway.cluster import READ_SECONDS, Cluster
from gateway.config import KIB, Config
from gateway.errors import GatewayError
from gateway.event import Event
from gateway.happenings import Happening, Happenings
from gateway.histogram import quantile, since
from gateway.hub import Hub
from gateway.hub_client import Channel, Client
from gateway.messages import Command
from gateway.names import OPS_CHANNEL
from gateway.position import Position
from gateway.streams import Streams

REPORT_TYPE = "report"

REPORT_SECONDS = 1.0

RENEW_SECONDS = 2.0
LEASE_SECONDS = 5.0
"""A renewal may be lost; and a page that polls is away for no longer between two polls."""

JUST_NOW_SECONDS = 1.0
"""For which a renewal by whichever worker stands for all others."""

MOST_LISTED = 20
"""Clients, and channels, that a report lists."""

CLIENTS_PER_TURN = 500
"""Clients looked at between two checkpoints, or as many of their frames: half a millisecond."""

CHANNELS_PER_TURN = 2000
"""Channels looked at between two checkpoints: a fifth of a millisecond. 100,000 take 10 ms."""

MOST_BYTES = 64 * KIB
"""Of a report: with every name as long as may be it has 60 KiB."""

_log = logging.getLogger(__name__)


class Watch(msgspec.Struct):
    """Report for ``seconds`` from now."""

    seconds: float = LEASE_SECONDS


class Watched(msgspec.Struct):
    pass


WATCH = Command("watch", Watch, Watched, READ_SECONDS)


class Lag(msgspec.Struct):
    """Seconds from an event's publishing to its writing, up to which half of the deliveries since
    the last report took, and all but a hundredth; by the buckets of the histogram."""

    p50: float
    p99: float


class Busy(msgspec.Struct):
    """A channel; ``events`` since its first subscriber came."""

    name: str
    clients: int
    events: int


class Report(msgspec.Struct, rename="camel"):
    """Of one worker. What counts does so since its start; what is of clients and queues is of this
    moment."""

    at: int
    node: str
    worker: str
    version: str
    uptime_seconds: float
    draining: bool
    full: bool
    bus_up: bool
    clients: int
    max_clients: int
    channels: int
    subscriptions: int
    behind: int
    replaying: int
    opening: int
    queued_frames: int
    queued_bytes: int
    memory_bytes: int
    memory_max_bytes: int
    resident_bytes: int
    cpu_seconds: float
    published: int
    received: int
    delivered: int
    replayed: int
    dropped: dict[str, int]
    gaps: dict[str, int]
    opened: dict[str, int]
    closed: dict[str, int]
    refused: dict[str, int]
    lag: Lag | None
    slow: list[ClientSummary]
    busy: list[Busy]
    happenings: list[Happening]
    omitted: int


@dataclass(frozen=True, slots=True)
class About:
    """What the node says of the worker as a whole."""

    node: str
    uptime_seconds: float
    draining: bool
    full: bool
    max_clients: int
    refused: dict[str, int]
    resident_bytes: int
    cpu_seconds: float


class Reports:
    def __init__(
        self,
        config: Config,
        hub: Hub,
        bus: Bus,
        streams: Streams,
        cluster: Cluster,
        *,
        about: Callable[[], About],
        now_ms: Callable[[], int],
    ) -> None:
        """``now_ms`` is the wall clock."""
        self._most_bytes = min(MOST_BYTES, config.max_event_bytes // 2)
        self._hub = hub
        self._bus = bus
        self._streams = streams
        self._cluster = cluster
        self._about = about
        self._now_ms = now_ms
        self._until = -1.0
        """By trio's clock: when the lease is over."""
        self._leased = trio.Event()
        self._turn = trio.Lock()
        self._lag_before = hub.totals.lag()
        self.published = 0
        cluster.serve(WATCH, self._watch_here)

    async def run(self) -> None:
        """Ask for reports while they are wanted here, and report while anybody does; until
        cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew)
            nursery.start_soon(self._report)

    # -- who watches

    async def _renew(self) -> None:
        """Have all workers report while a client of this one wants it. Who was asked himself just
        now need not ask: all were, so that many watchers cost no more than a few."""
        members = self._hub.members
        while True:
            await members.watched.wait()
            while OPS_CHANNEL in members.channels:
                if self._until - trio.current_time() <= LEASE_SECONDS - JUST_NOW_SECONDS:
                    with suppress(GatewayError):  # the next time comes soon
                        await self._cluster.ask_all(WATCH, Watch())
                await trio.sleep(RENEW_SECONDS)
            members.watched = trio.Event()

    async def _watch_here(self, asked: Watch) -> Watched:
        lease = min(max(asked.seconds, 0.0), LEASE_SECONDS)
        self._until = max(self._until, trio.current_time() + lease)
        self._leased.set()
        return Watched()

    # -- reporting

    async def report_now(self) -> None:
        """One more beside those of each second, if anybody watches: something has changed that
        they want to know, or there will be no other."""
        happenings = self._hub.totals.happenings
        if happenings is not None and trio.current_time() < self._until:
            await self._report_once(happenings)

    async def _report(self) -> None:
        while True:
            await self._leased.wait()
            happenings = self._hub.totals.happenings = Happenings(self._now_ms)
            self._lag_before = self._hub.totals.lag()
            try:
                while (now := trio.current_time()) < self._until:
                    await self._report_once(happenings)
                    await trio.sleep_until(max(now + REPORT_SECONDS, trio.current_time()))
            finally:
                self._hub.totals.happenings = None
            self._leased = trio.Event()

    async def _report_once(self, happenings: Happenings) -> None:
        if not self._bus.statistics().link.up:
            return
        try:
            async with self._turn:
                report = await self.gather(happenings)
                data = fitted(report, self._most_bytes)
                event = Event((OPS_CHANNEL,), data, REPORT_TYPE, key=self._cluster.tag)
                [result] = await self._bus.publish((event,))
        except GatewayError:
            return
        except Exception:  # noqa: BLE001  # a fault of ours here must not end everybody's streams
            _log.exception("a report failed")
            return
        self.published += isinstance(result, Position)

    # -- gathering

    async def gather(self, happenings: Happenings) -> Report:
        """The report of this moment, with what ``happenings`` has."""
        slowest, behind, frames, size = await self._slowest()
        busiest = await self._busiest()
        hub, about, now_ms = self._hub, self._about(), self._now_ms()
        charge, slow = hub.totals.charge, []
        for client in slowest:
            slow.append(summary(client, about.node, now_ms, hub.stands))
            await trio.lowlevel.checkpoint()  # it may have thousands of channels
        happened, omitted = happenings.take()
        bus = self._bus.statistics()
        return Report(
            at=now_ms,
            node=about.node,
            worker=self._cluster.tag,
            version=__version__,
            uptime_seconds=round(about.uptime_seconds, 1),
            draining=about.draining,
            full=about.full,
            bus_up=bool(bus.link.up),
            clients=len(hub.members.clients),
            max_clients=about.max_clients,
            channels=len(hub.members.channels),
            subscriptions=hub.members.subscriptions,
            behind=behind,
            replaying=len(self._streams.replays),
            opening=self._streams.opening,
            queued_frames=frames,
            queued_bytes=size,
            memory_bytes=charge.bytes,
            memory_max_bytes=charge.limit,
            resident_bytes=about.resident_bytes,
            cpu_seconds=round(about.cpu_seconds, 3),
            published=bus.published - self.published,
            received=hub.pending.received,
            delivered=hub.totals.delivered,
            replayed=hub.totals.replayed,
            dropped=hub.totals.dropped_by_reason(),
            gaps=dict(hub.gaps),
            opened=dict(hub.openings),
            closed=dict(hub.closed),
            refused=dict(about.refused),
            lag=self._lag(),
            slow=slow,
            busy=[Busy(each.name, len(each.members), each.events) for each in busiest],
            happenings=happened,
            omitted=omitted,
        )

    async def _slowest(self) -> tuple[list[Client], int, int, int]:
        """The clients for which the most bytes wait; for how many any do, and all frames and bytes
        that do."""
        largest: list[tuple[int, int, Client]] = []
        behind = frames = size = work = 0
        for turn, client in enumerate(self._hub.behind()):
            work += 1
            if client.waits:
                behind += 1
                waiting = queued_bytes(client)
                size += waiting
                frames += client.queued
                work += len(client.staged or ())
                _keep_largest(largest, (waiting, turn, client))
            if work >= CLIENTS_PER_TURN:
                work = 0
                await trio.lowlevel.checkpoint()
        return [client for _, _, client in sorted(largest, reverse=True)], behind, frames, size

    async def _busiest(self) -> Iterable[Channel]:
        """The channels that have the most clients; of as many, those that had more events."""
        largest: list[tuple[tuple[int, int], int, Channel]] = []
        least = events = -1
        for turn, channel in enumerate(tuple(self._hub.members.channels.values()), 1):
            clients = len(channel.members)
            if clients > least or (clients == least and channel.events > events):
                _keep_largest(largest, ((clients, channel.events), turn, channel))
                if len(largest) == MOST_LISTED:
                    least, events = largest[0][0]
            if not turn % CHANNELS_PER_TURN:
                await trio.lowlevel.checkpoint()
        return [channel for _, _, channel in sorted(largest, reverse=True)]

    def _lag(self) -> Lag | None:
        before, self._lag_before = self._lag_before, self._hub.totals.lag()
        lately = since(self._lag_before, before)
        p50, p99 = quantile(lately, 0.5), quantile(lately, 0.99)
        return None if p50 is None or p99 is None else Lag(round(p50, 6), round(p99, 6))


Entry = TypeVar("Entry", bound=tuple[Any, ...])


def _keep_largest(largest: list[Entry], entry: Entry) -> None:
    """Keep MOST_LISTED in a heap, of which the least is the first."""
    if len(largest) < MOST_LISTED:
        heapq.heappush(largest, entry)
    elif entry > largest[0]:
        heapq.heapreplace(largest, entry)


def fitted(report: Report, most: int) -> str:
    """``report`` as JSON of ``most`` bytes, its lists halved until it fits or they are empty."""
    data = msgspec.json.encode(report)
    while len(data) > most and (report.slow or report.busy or report.happenings):
        slow, busy, happened = report.slow, report.busy, report.happenings
        keep = len(happened) // 2
        report.omitted += len(happened) - keep
        report.slow = slow[: len(slow) // 2]
        report.busy = busy[: len(busy) // 2]
        report.happenings = happened[len(happened) - keep :]
        data = msgspec.json.encode(report)
    return data.decode()
