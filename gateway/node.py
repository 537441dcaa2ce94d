"""One node (so far one worker): bus, hub and streams put together, and what it says of itself."""

import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import trio

from gateway import logs
from gateway.addresses import TrustedProxies, parse_networks
from gateway.admission import Admission, AdmissionStatistics
from gateway.auth import Authenticator, AuthStatistics
from gateway.budget import Budget, MemoryStatistics
from gateway.bus import Bus, BusStatistics
from gateway.bus.address import parse_address
from gateway.bus.ledger import RedisLedger
from gateway.bus.memory import MemoryBus, wall_clock_ms
from gateway.bus.redis import RedisBus
from gateway.charge import Charge
from gateway.clock import Clock
from gateway.cluster import Cluster, ClusterStatistics
from gateway.config import Config, is_loopback, split_address, split_list
from gateway.fanout import Fanout
from gateway.histogram import Distribution
from gateway.hub import Hub, HubStatistics
from gateway.hub_client import Client
from gateway.ledger import Ledger, LedgerStatistics, MemoryLedger
from gateway.logs import LogStatistics
from gateway.origins import parse_origins
from gateway.process import LoopStatistics, Process, ProcessStatistics
from gateway.rates import ChannelRates
from gateway.relay.plans import Upstreams
from gateway.relay.pushes import Pushes
from gateway.relay.redis_registry import RedisRegistry
from gateway.relay.registry import MemoryRegistry, Registry
from gateway.relay.relays import Relays, RelayStatistics
from gateway.relay.upstream import CallerStatistics
from gateway.replacements import Replacements
from gateway.reports import About, Reports
from gateway.request_id import RequestIds
from gateway.requests import RequestDurations
from gateway.revocation import Revocation
from gateway.revoked import Revoked
from gateway.streams import Streams
from gateway.tls import Certificate
from gateway.tracing import TraceStatistics, Tracing

TAG_BYTES = 4
"""Of randomness: tells the workers of a cluster apart, each start of one anew."""


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """A snapshot of a worker, or of all of a node's. ``refused`` are requests turned away, by
    reason; ``replays`` and ``requests`` how long those took, in seconds, by what they were read
    from, and by route and status; ``processes`` is by the worker's number."""

    id: str
    uptime_seconds: float
    draining: bool
    full: bool
    cut_off: bool
    """The bus has not been reached yet, or cannot be kept up with."""
    max_clients: int
    hub: HubStatistics
    bus: BusStatistics
    cluster: ClusterStatistics
    ledger: LedgerStatistics
    auth: AuthStatistics
    admission: AdmissionStatistics
    memory: MemoryStatistics
    refused: dict[str, int]
    log: LogStatistics
    trace: TraceStatistics
    replays: dict[str, Distribution]
    requests: dict[str, dict[str, Distribution]]
    processes: dict[str, ProcessStatistics]
    loop: LoopStatistics
    relay: RelayStatistics
    upstreams: dict[str, CallerStatistics]
    certificate_expires: float = 0.0
    """In seconds since 1970; 0 without TLS."""
    workers: int = 1
    worker_restarts: int = 0
    reports: int = 0
    """Which its workers have published while somebody watched; ``bus.published`` has none of them.
    """

    @property
    def ready(self) -> bool:
        """Whether a balancer should send new clients here."""
        return not (self.draining or self.full or self.cut_off)


def name_of(config: Config) -> str:
    """The node's id: what is set, else one that no other start of a node has."""
    return config.node_id or f"{socket.gethostname()}-{secrets.token_hex(3)}"


class Node:
    # Beyond 30 attributes CPython keeps them in a table apart, and a publish takes a tenth longer.
    __slots__ = (
        "_budget",
        "_certificate",
        "_clock",
        "_fanout",
        "_number",
        "_nursery",
        "_process",
        "_started",
        "admission",
        "ask_supervisor",
        "ask_to_leave",
        "auth",
        "bus",
        "channel_rates",
        "charge",
        "cluster",
        "config",
        "counts_events",
        "draining",
        "hub",
        "id",
        "leaving",
        "ledger",
        "max_clients",
        "now_ms",
        "origins",
        "proxies",
        "pushes",
        "refused",
        "relays",
        "replacements",
        "reports",
        "request_ids",
        "requests",
        "revoked",
        "streams",
        "tag",
        "tracing",
        "upstreams",
    )

    def __init__(
        self,
        config: Config,
        *,
        max_clients: int,
        certificate: Certificate | None = None,
        number: int = 1,
        now_ms: Callable[[], int] = wall_clock_ms,
        tracing: Tracing | None = None,
    ) -> None:
        """``number`` is that of this worker among those of the node."""
        self.config = config
        self.tracing = tracing
        """Which is None where nothing is traced."""
        self._certificate = certificate
        self._number = number
        self.origins = parse_origins(split_list(config.cors_origins))
        """Whose pages may use the node beside its own; false where there are none."""
        self.max_clients = max_clients
        self.now_ms = now_ms
        self.id = name_of(config)
        self.draining = False
        """No new clients are wanted here: not ready, and connections are not kept."""
        self.leaving = False
        """No new clients are taken."""
        self.refused: dict[str, int] = {}
        self.requests = RequestDurations()
        self._process = Process()
        self.ask_supervisor: Callable[[], Awaitable[NodeStatistics]] | None = None
        """Of a worker among several: the statistics of all of them."""
        self.ask_to_leave: Callable[[], None] | None = None
        """Has the whole node leave as on SIGTERM, however often; None where nobody can."""
        self.proxies: TrustedProxies | None = None
        if trusted := parse_networks(split_list(config.trusted_proxies)):
            self.proxies = TrustedProxies(trusted)
        self._started = time.monotonic()
        self.auth = Authenticator(config, now_ms=now_ms)
        self.revoked = Revoked(now_ms)
        self.charge = charge = Charge(config.memory_bytes)
        self.hub = Hub(
            config,
            charge=charge,
            unsubscribe=lambda names: self.bus.unsubscribe(names),
            catch_up=lambda client: self.streams.catch_up(client),
            watermark=lambda: self.bus.head(),
            now_ms=(lambda: now_ms() + bus.ahead_ms) if config.redis else now_ms,
        )
        self.admission = Admission(config, self.is_exempt)
        self.hub.parting.append(lambda client: self.admission.leave(client.address))
        self._fanout = Fanout(self.hub, tracing)
        self._clock = Clock(config, self.hub, now_ms=now_ms)
        self.tag = secrets.token_hex(TAG_BYTES)
        self.request_ids = RequestIds(self.tag)
        registry: Registry
        self.bus: Bus
        self.ledger: Ledger
        if config.redis:
            self.bus = bus = RedisBus(
                config,
                parse_address(config.redis),
                self.hub.pending,
                worker=self.tag,
                tell_gap=self._fanout.tell_gap,
                receive=lambda message: self.cluster.receive(message),
                resumed=lambda: redis_ledger.read_again(),
                charge=charge,
            )
            self.cluster = Cluster(self.tag, link=bus)
            self.ledger = redis_ledger = RedisLedger(
                config,
                bus.commands,
                worker=self.tag,
                replace=lambda ids: self.replacements.end(ids),
            )
            registry = RedisRegistry(config, bus.commands, worker=self.tag)
        else:
            self.bus = MemoryBus(config, self.hub.pending, charge=charge, now_ms=now_ms)
            self.ledger = MemoryLedger(config, now_ms)
            registry = MemoryRegistry(config, self.tag, now_ms)
            self.cluster = Cluster(self.tag, link=None)  # there is nobody to ask
        self.replacements = Replacements(self.hub, self.cluster, self.ledger)
        self.streams = Streams(
            config,
            self.bus,
            self.hub,
            self._clock,
            self.admission,
            self._serve_soon,
            self.replacements,
            tag=self.tag,
            is_revoked=self.revoked.has,
        )
        self.channel_rates = ChannelRates(config) if _limits_channels(config) else None
        self.counts_events = self.channel_rates is not None or _limits_publishers(config)
        """Whether any publisher or channel may have only so many events a second."""
        if config.max_streams_per_user:
            self.hub.parting.append(self._release)
        self.reports = Reports(
            config,
            self.hub,
            self.bus,
            self.streams,
            self.cluster,
            about=self._about,
            now_ms=now_ms,
        )
        self.relays = Relays(
            config,
            self.bus,
            self.cluster,
            registry,
            viewers=self.hub.members.count,
            now_ms=now_ms,
        )
        self.pushes = Pushes(config, self.bus, self.cluster, self.relays, now_ms=now_ms)
        self.upstreams = Upstreams(config)
        self.relays.again = self.upstreams.again
        self._budget = Budget(charge, self.hub, self.bus)
        self._nursery: trio.Nursery | None = None
        self.ledger.hear.append(self._hear_revoked)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The node's own tasks, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.bus.run)
            nursery.start_soon(self.ledger.run)
            nursery.start_soon(self.hub.run)
            nursery.start_soon(self._fanout.run)
            nursery.start_soon(self._clock.run)
            nursery.start_soon(self._budget.run)
            nursery.start_soon(self.cluster.run)
            nursery.start_soon(self.auth.run)
            nursery.start_soon(self.replacements.run)
            nursery.start_soon(self.admission.run)
            nursery.start_soon(self._process.run)
            nursery.start_soon(self.reports.run)
            nursery.start_soon(self.upstreams.run)
            await nursery.start(self.relays.run)
            task_status.started()

    def refuse(self, reason: str) -> None:
        """Count a request that was turned away. ``reason`` is one of ours, never the client's."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def count_refusal(self, status: int) -> None:
        """Count an answer of 400 or above; those of 429 and 503 have a reason of their own."""
        if status not in (429, 503):
            self.refuse(str(status))

    @property
    def is_local(self) -> bool:
        """Whether the node listens where only this machine can reach it."""
        return is_loopback(split_address(self.config.bind)[0])

    def is_exempt(self, address: str) -> bool:
        """Whether limits of addresses and publishers do not bind: this machine, without keys."""
        return not self.config.has_keys and is_loopback(address)

    def address_of(self, peer: str, header: Callable[[bytes], bytes | None]) -> str:
        """Where a request comes from, by the address of its connection and its headers.

        ``header`` has all lines of a field that is a list.
        """
        return peer if self.proxies is None else self.proxies.origin(peer, header)

    async def node_statistics(self) -> NodeStatistics:
        """Those of all workers of the node. Raises Unavailable when they cannot be had."""
        return self.statistics() if self.ask_supervisor is None else await self.ask_supervisor()

    @property
    def full(self) -> bool:
        return len(self.hub.members.clients) >= self.max_clients

    @property
    def cut_off(self) -> bool:
        """The bus has not been reached yet, or cannot be kept up with."""
        return not self.bus.ready

    def _about(self) -> About:
        process = self._process.statistics()
        return About(
            node=self.id,
            uptime_seconds=time.monotonic() - self._started,
            draining=self.draining,
            full=self.full,
            max_clients=self.max_clients,
            refused=self.refused,
            resident_bytes=process.resident_bytes,
            cpu_seconds=process.cpu_seconds,
        )

    def statistics(self) -> NodeStatistics:
        """Those of this worker."""
        bus, reports = self.bus.statistics(), self.reports.published
        return NodeStatistics(
            id=self.id,
            uptime_seconds=time.monotonic() - self._started,
            draining=self.draining,
            full=self.full,
            cut_off=self.cut_off,
            max_clients=self.max_clients,
            hub=self.hub.statistics(),
            bus=replace(bus, published=bus.published - reports),
            cluster=self.cluster.statistics(),
            auth=self.auth.statistics(),
            ledger=replace(self.ledger.statistics(), unreached=self.replacements.unreached),
            admission=self.admission.statistics(),
            memory=self._budget.statistics(),
            refused=dict(self.refused),
            log=logs.statistics(),
            trace=self.tracing.statistics() if self.tracing else TraceStatistics(),
            replays=self.streams.replays.durations(),
            requests=self.requests.statistics(),
            processes={str(self._number): self._process.statistics()},
            loop=self._process.loop_statistics(),
            relay=self.relays.statistics(),
            upstreams=self.upstreams.statistics(),
            certificate_expires=self._certificate.expires if self._certificate else 0.0,
            reports=reports,
        )

    def _hear_revoked(self, revocations: Sequence[Revocation]) -> None:
        self.revoked.add(*revocations)
        assert self._nursery is not None
        if self.revoked:
            self._nursery.start_soon(self.streams.end_revoked)

    def _release(self, client: Client) -> None:
        if client.user is not None:
            self.ledger.release(client.user, client.id)

    def _serve_soon(self, client: Client) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self.streams.serve, client)


def _limits_channels(config: Config) -> bool:
    rules = (*config.channels, config.general_rule())
    return any(rule.channel_publish_rate > 0 for rule in rules)


def _limits_publishers(config: Config) -> bool:
    """With keys each may have a rate of its own; without, this machine has none (`is_exempt`)."""
    is_beyond = not is_loopback(split_address(config.bind)[0]) or bool(config.trusted_proxies)
    return config.has_keys or (config.publish_rate > 0 and is_beyond)
