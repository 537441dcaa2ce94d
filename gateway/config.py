"""One frozen Config: every setting with its unit, its bounds and the reason of its default.

Pure data: a Config made by hand is believed, `gateway.settings` checks what people write. Flags,
variables, the listing of ``gateway config`` and the README's table are generated from the fields
below, so a setting is complete when its field is.
"""

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, ip_address
from typing import Annotated

from gateway.names import compile_pattern
from gateway.policy import Policy

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
HOUR = 3600.0
DAY = 24 * HOUR
WEEK = 7 * DAY

AUTO = "auto"
"""As many workers as there are cores to run on."""
MAX_WORKERS = 256

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s\[\]:/]+)):([0-9]{1,5})", re.ASCII)
_MAX_PORT = 65_535


class LogLevel(StrEnum):
    """The least severe log line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class ChannelRule:
    """How the channels that ``match`` are kept and delivered; every member is resolved."""

    match: str
    policy: Policy
    history_events: int
    history_bytes: int
    history_seconds: float
    public: bool = False

    @property
    def has_history(self) -> bool:
        return self.history_events > 0 and self.history_bytes > 0


@dataclass(frozen=True, slots=True)
class Between:
    """The unit of a number and its bounds, which are legal themselves."""

    low: float
    high: float
    unit: str


@dataclass(frozen=True, slots=True)
class Config:
    """All that a node can be told. ``Config()`` is the defaults.

    Each type is annotated with what the setting does and why its default is what it is.
    """

    bind: Annotated[
        str,
        "host:port or [IPv6]:port to listen on, port 0 for any free one;"
        " loopback, since the node is open to whoever reaches it",
    ] = "127.0.0.1:8080"
    insecure: Annotated[
        bool, "listen beyond loopback although anyone may then publish and subscribe"
    ] = False
    demo: Annotated[bool, "serve the demo page at /; a first try needs nothing else"] = True
    node_id: Annotated[
        str, "name of the node in /stats and logs; empty: the host name and a random suffix"
    ] = ""
    workers: Annotated[
        str,
        "processes of the node, or auto: one a core; more than one need Redis as their bus;"
        " 1 since one core carries most sites",
    ] = "1"
    redis: Annotated[
        str,
        "URL of the Redis that links the nodes: redis://, rediss://, unix:// or"
        " redis+sentinel://host:port,host:port/service; empty: one process and its memory",
    ] = ""
    redis_prefix: Annotated[
        str, "what every Redis key and channel begins with; nodes of one prefix are one cluster"
    ] = "gateway:"
    redis_timeout: Annotated[
        float,
        Between(0.1, 600, "seconds"),
        "silence of Redis after which a connection to it counts as dead; a probe a fifth of that",
    ] = 5.0
    log_level: Annotated[LogLevel, "the least severe log line that is written"] = LogLevel.INFO

    keepalive: Annotated[
        float,
        Between(0.05, HOUR, "seconds"),
        "silence after which a live client gets a keepalive, at the latest;"
        " the HTML standard's advice, against proxies that drop idle connections",
    ] = 15.0
    retry: Annotated[
        float,
        Between(0.1, HOUR, "seconds"),
        "reconnect delay told to clients, jittered by half;"
        " browsers wait 3 (Chromium) to 5 (Firefox) when told nothing",
    ] = 2.0

    history_events: Annotated[
        int,
        Between(0, 1_000_000, "events"),
        "events kept per channel; what an outbox holds, so that catch-up can take over from it",
    ] = 1000
    history_bytes: Annotated[
        int, Between(0, GIB, "bytes"), "bytes kept per channel, 1 MiB; the same as an outbox holds"
    ] = MIB
    history_seconds: Annotated[
        float,
        Between(1, WEEK, "seconds"),
        "age at which an event is forgotten; five minutes cover a reload, a tunnel, a deployment",
    ] = 300.0
    history_total_bytes: Annotated[
        int,
        Between(0, TIB, "bytes"),
        "bytes kept over all channels of the node, 256 MiB; fits the smallest usual container",
    ] = 256 * MIB
    max_channels: Annotated[
        int,
        Between(1, 10_000_000, "channels"),
        "channels that the memory bus remembers; a bound on what invented names can cost",
    ] = 100_000

    policy: Annotated[
        Policy,
        "what a full outbox does to the next frame;"
        " drop costs least, and the client is told of every hole",
    ] = Policy.DROP
    outbox_frames: Annotated[
        int,
        Between(1, 1_000_000, "frames"),
        "frames that wait for a slow client before the policy applies;"
        " ten seconds of a channel with 100 events/s",
    ] = 1000
    outbox_bytes: Annotated[
        int,
        Between(KIB, GIB, "bytes"),
        "bytes that wait for a slow client, 1 MiB; Centrifugo's client queue has the same bound",
    ] = MIB
    max_behind_seconds: Annotated[
        float,
        Between(0.1, DAY, "seconds"),
        "a client behind for longer is closed; what it would still get is stale,"
        " and coming back it replays",
    ] = 60.0
    send_buffer_bytes: Annotated[
        int,
        Between(4 * KIB, 16 * MIB, "bytes"),
        "SO_SNDBUF of stream sockets, 128 KiB;"
        " left alone, Linux hides up to 4 MiB for each stalled reader",
    ] = 128 * KIB
    pending_bytes: Annotated[
        int,
        Between(KIB, GIB, "bytes"),
        "frames that wait for the fan-out pass, 16 MiB; at the bound publishers wait",
    ] = 16 * MIB
    publish_wait: Annotated[
        float,
        Between(0, 60, "seconds"),
        "how long a publish waits for room in pending before it is refused;"
        " a 503 is better news than the publisher's own timeout",
    ] = 5.0

    max_clients: Annotated[
        int,
        Between(0, 10_000_000, "clients"),
        "open streams, divided among the workers, more are told to come back;"
        " 0: as many as the descriptor limit allows",
    ] = 0
    max_channels_per_client: Annotated[
        int, Between(1, 10_000, "channels"), "channels of one stream; Centrifugo allows 128"
    ] = 100
    max_event_bytes: Annotated[
        int,
        Between(1, GIB, "bytes"),
        "one rendered event, 256 KiB; the default of Amazon SNS",
    ] = 256 * KIB
    max_body_bytes: Annotated[
        int, Between(1, GIB, "bytes"), "one request body, 1 MiB; nginx's client_max_body_size"
    ] = MIB
    max_head_bytes: Annotated[
        int,
        Between(KIB, MIB, "bytes"),
        "request line and headers, 16 KiB; Node.js has the same bound",
    ] = 16 * KIB
    head_timeout: Annotated[
        float,
        Between(0.1, HOUR, "seconds"),
        "from the first byte of a request to the end of its headers; against slow-loris clients",
    ] = 10.0
    body_timeout: Annotated[
        float,
        Between(0.1, HOUR, "seconds"),
        "for a whole request body; a full one of 1 MiB then needs 35 KiB/s",
    ] = 30.0
    idle_timeout: Annotated[
        float,
        Between(1, DAY, "seconds"),
        "a kept-alive connection between requests; nginx's keepalive_timeout",
    ] = 75.0
    write_timeout: Annotated[
        float,
        Between(0.1, HOUR, "seconds"),
        "an answer that the peer does not read; answers are small, so a live peer needs one trip",
    ] = 30.0
    backlog: Annotated[
        int,
        Between(1, 65_535, "connections"),
        "connections that wait to be accepted; Linux's net.core.somaxconn since 5.4",
    ] = 4096

    dedupe_seconds: Annotated[
        float,
        Between(1, DAY, "seconds"),
        "how long a publisher's id is remembered; five minutes, as in Amazon SQS FIFO queues",
    ] = 300.0
    dedupe_entries: Annotated[
        int,
        Between(0, 10_000_000, "ids"),
        "publisher's ids remembered by the memory bus; 333 a second over the whole window",
    ] = 100_000

    drain_grace: Annotated[
        float,
        Between(0, 600, "seconds"),
        "after SIGTERM, go on accepting while /readyz says 503, so that the balancer can notice;"
        " 0 since a balancer without health checks never does",
    ] = 0.0
    drain_seconds: Annotated[
        float,
        Between(0, 600, "seconds"),
        "over which a draining node ends its streams one after another;"
        " well inside the 30 after which Kubernetes kills",
    ] = 5.0

    channels: tuple[ChannelRule, ...] = ()
    """The ``[[channel]]`` tables of the file, in their order."""

    @property
    def worker_count(self) -> int:
        """How many processes serve. Raises ValueError where ``workers`` is neither."""
        if self.workers == AUTO:
            return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        return int(self.workers)

    def rule(self, channel: str) -> ChannelRule:
        """The first rule that matches, else the general settings as a rule for ``**``.

        Compiles every pattern it passes: whoever asks per event keeps the answer.
        """
        for rule in self.channels:
            if compile_pattern(rule.match).matches(channel):
                return rule
        return self.general_rule()

    def general_rule(self) -> ChannelRule:
        return ChannelRule(
            match="**",
            policy=self.policy,
            history_events=self.history_events,
            history_bytes=self.history_bytes,
            history_seconds=self.history_seconds,
        )


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port; raises ValueError where the text is not such a pair."""
    found = _ADDRESS.fullmatch(address)
    if not found or int(found[3]) > _MAX_PORT:
        raise ValueError(f"{address!r} is not host:port")
    if found[1]:
        IPv6Address(found[1])
    return found[1] or found[2], int(found[3])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``.

    Names are not resolved: all but ``localhost`` count as public, as their address may change.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
