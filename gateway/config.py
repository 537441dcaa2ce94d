"""One frozen Config: every setting with its unit, its bounds and the reason of its default.

Pure data: a Config made by hand is believed, `gateway.settings` checks what people write. Flags,
variables, the listing of ``gateway config`` and the README's table are generated from the fields
below, so a setting is complete when its field is.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Annotated

from gateway.names import OPS_CHANNEL, STREAM_PREFIX, compile_pattern
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
MAX_PORT = 65_535


class UserLimit(StrEnum):
    """What one stream too many of a user does."""

    END_OLDEST = "end-oldest"
    REFUSE = "refuse"


class Format(StrEnum):
    """What a token stream's producer speaks."""

    OPENAI = "openai"
    """Chat completions and responses."""
    ANTHROPIC = "anthropic"
    SSE = "sse"
    """Anything; passed through."""
    PUSH = "push"
    """There is no upstream: an application sends normal events."""


class LogLevel(StrEnum):
    """The least severe log line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a log line is written."""

    LOGFMT = "logfmt"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Between:
    """The unit of a number and its bounds, which are legal themselves."""

    low: float
    high: float
    unit: str


@dataclass(frozen=True, slots=True)
class ChannelRule:
    """How the channels that ``match`` are kept and delivered; every member is resolved."""

    match: str
    policy: Policy
    history_events: int
    history_bytes: int
    history_seconds: float
    channel_publish_rate: float = 0.0
    public: bool = False

    @property
    def has_history(self) -> bool:
        return self.history_events > 0 and self.history_bytes > 0


OPS_RULE = ChannelRule(
    match=OPS_CHANNEL,
    policy=Policy.LATEST,
    history_events=MAX_WORKERS,
    history_bytes=4 * MIB,
    history_seconds=10.0,
)
"""Of the reports, which are no setting: the last one of each worker is to be had, so that a page
that opens has something to show, and none that is older than anybody would act on."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """An ``[[issuer]]`` table: whose tokens are taken, and how they are signed.

    Exactly one of the last five names the key: a secret is for HS256 to HS512; a public key is PEM,
    or a JSON Web Key Set in a file or at an https URL. ``algorithms`` narrows what the kind of the
    key allows.
    """

    issuer: str = ""
    """What ``iss`` must be; empty: it is not looked at."""
    audience: str = ""
    """What ``aud`` must be or hold; empty: it is not looked at."""
    algorithms: tuple[str, ...] = ()
    secret: str = field(default="", repr=False)
    secret_file: str = ""
    public_key_file: str = ""
    jwks_file: str = ""
    jwks_url: str = ""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An ``[[api_key]]`` table: a publisher that needs no token."""

    name: str
    sha256: str
    """Hexadecimal digest of the key, which is nowhere kept."""
    publish: tuple[str, ...] = ()
    """Patterns of channels."""
    publish_rate: float | None = None
    """Events per second; None: the general setting."""
    admin: bool = False
    """It may administer, and publish to users and to everybody."""


DEFAULT_PATHS = {
    Format.OPENAI: (
        "POST chat/completions",
        "POST responses",
        "POST embeddings",
        "GET models",
        "GET models/*",
    ),
    Format.ANTHROPIC: (
        "POST messages",
        "POST messages/count_tokens",
        "GET models",
        "GET models/*",
    ),
    Format.SSE: ("POST",),
}
"""What of an upstream may be called: nothing that one user left there and another one could read,
since all of them are the same one to it."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """An ``[[upstream]]`` table: who makes token streams, and who may have it do so."""

    name: str
    url: str = field(repr=False)
    """The base of what is called, as ``https://host/v1``; for the format ``sse`` all of it."""
    format: Format
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of each request. A value is literal, or ``env:NAME`` or ``file:PATH`` with one word before it
    or none, as ``Bearer env:OPENAI_API_KEY``."""
    allow: tuple[str, ...] = ()
    """Who may use it, beside administrators and tokens that name it in ``gateway.relay``: ``users``
    (all tokens with a subject), ``user:<id>``, ``keys`` (all API keys), ``key:<name>``."""
    paths: tuple[str, ...] = ()
    """What may be called below ``url``, as ``POST chat/completions``; ``*`` is any one segment.
    None: as DEFAULT_PATHS has them."""
    insecure_http: bool = False
    """Speak plain HTTP to a host that is not this one, where all can read the credentials."""

    max_streams: Annotated[int, Between(1, 100_000, "streams")] = 500
    """Calls at a time, of each worker."""
    max_streams_per_user: Annotated[int, Between(1, 100_000, "streams")] = 10
    max_duration: Annotated[float, Between(1, DAY, "seconds")] = 600.0
    """Of a stream, retries included; the vendors' own clients give up as late."""
    max_tokens: Annotated[int, Between(1, 10_000_000, "events")] = 50_000
    """Events of one answer."""
    max_bytes: Annotated[int, Between(KIB, GIB, "bytes")] = 16 * MIB
    """Of one answer, as the upstream sends it."""
    max_event_bytes: Annotated[int, Between(KIB, 64 * MIB, "bytes")] = MIB
    silence: Annotated[float, Between(0.1, HOUR, "seconds")] = 60.0
    """Without a byte, before the head of the answer or in the middle."""
    connect_timeout: Annotated[float, Between(0.1, 600, "seconds")] = 10.0
    """TLS included."""
    retries: Annotated[int, Between(0, 10, "tries")] = 2
    """After the first one, before the first token; as the vendors' own clients do."""
    retry_wait: Annotated[float, Between(0, HOUR, "seconds")] = 30.0
    """For all of them."""
    batch_seconds: Annotated[float, Between(0, 10, "seconds")] = 0.0
    """That tokens may be held back, to be sent as one; 0: each by itself."""
    batch_bytes: Annotated[int, Between(0, MIB, "bytes")] = 0
    """Of text that is sent at once, however soon; 0: any."""
    stop_when_unwatched: Annotated[float, Between(0, DAY, "seconds")] = 0.0
    """Without a viewer, after which it is stopped; 0: never."""
    stop_with_client: bool = False
    """Whether a stream of the drop-in ends with the connection of who asked for it."""

    @property
    def callable_paths(self) -> tuple[str, ...]:
        return self.paths or DEFAULT_PATHS[self.format]


@dataclass(frozen=True, slots=True)
class Config:
    """All that a node can be told. ``Config()`` is the defaults.

    Each type is annotated with what the setting does and why its default is what it is.
    """

    bind: Annotated[
        str,
        "host:port or [IPv6]:port to listen on, port 0 for any free one;"
        " loopback, since without keys the node is open to whoever reaches it",
    ] = "127.0.0.1:8080"
    insecure: Annotated[
        bool, "listen beyond loopback without keys, although anyone may then publish and subscribe"
    ] = False
    admin_bind: Annotated[
        str,
        "host:port of a second listener, for /metrics, /healthz and /readyz alone, without tokens,"
        " TLS and PROXY headers; empty: none, and /metrics needs a token where there are keys",
    ] = ""
    tls_cert: Annotated[
        str,
        "file of the certificate chain, PEM, with which the node itself speaks TLS 1.2 or later;"
        " read again on SIGHUP; empty: a balancer does that",
    ] = ""
    tls_key: Annotated[str, "file of the certificate's private key, PEM, without passphrase"] = ""
    proxy_protocol: Annotated[
        bool,
        "every connection begins with a PROXY protocol header, version 1 or 2, of one of"
        " trusted_proxies; never guessed",
    ] = False
    trusted_proxies: Annotated[
        str,
        "addresses and networks, divided by commas, whose Forwarded, X-Forwarded-For and PROXY"
        " headers are believed; nobody's, since anyone can write them",
    ] = ""

    jwt_key: Annotated[
        str,
        "secret of tokens that are signed with HS256, 32 bytes at least; with it or any other key"
        " nothing is anonymous unless it says so; empty: none",
    ] = ""
    jwt_key_file: Annotated[
        str, "file that holds the secret of jwt_key, and perhaps a line end; empty: none"
    ] = ""
    jwt_leeway: Annotated[
        float,
        Between(0, 300, "seconds"),
        "by which the clocks of issuer and node may differ; machines that keep time differ by less",
    ] = 5.0
    token_cookie: Annotated[
        str,
        "cookie that may carry the token, since an EventSource can send no header;"
        " a name that is nobody else's; empty: none",
    ] = "gateway_token"
    revocations_file: Annotated[
        str,
        "file that keeps revocations over a restart where there is no Redis to keep them;"
        " empty: they are in memory alone, and whoever revokes is told so",
    ] = ""
    anonymous: Annotated[
        bool, "let those without a token subscribe to public channels; nobody, unless it is wanted"
    ] = False
    public_channels: Annotated[
        str,
        "patterns of channels, divided by commas, that are public, as are those whose [[channel]]"
        " table says so",
    ] = ""
    cors_origins: Annotated[
        str,
        "origins, divided by commas, whose pages may use the gateway: exact ones, as"
        " https://app.example, patterns, as https://*.app.example, or * for all, then without"
        " cookies; none beside the gateway's own, as browsers have it",
    ] = ""
    cors_max_age: Annotated[
        float,
        Between(0, DAY, "seconds"),
        "for which browsers remember what a preflight told; Chromium's most",
    ] = 7200.0
    demo: Annotated[bool, "serve the demo pages at / and /chat; a first try needs nothing else"] = (
        True
    )
    ops: Annotated[
        bool,
        "serve the page for operators at /ops; what it shows and does still needs a token of an"
        " administrator where there are keys",
    ] = True
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
    log_format: Annotated[
        LogFormat, "how a log line is written: logfmt, which people read as well, or json"
    ] = LogFormat.LOGFMT
    log_rate: Annotated[
        float,
        Between(0, 1_000_000, "lines/s"),
        "of one kind that a process writes, and twice as many at once; what is more is counted,"
        " and summed up once a second; 0: no limit",
    ] = 100.0

    keepalive: Annotated[
        float,
        Between(0.05, HOUR, "seconds"),
        "silence after which a live client gets a keepalive, at the latest;"
        " the HTML standard's advice, against proxies that drop idle connections",
    ] = 15.0
    retry: Annotated[
        float,
        Between(0.1, HOUR, "seconds"),
        "reconnect delay told to clients, jittered by half; half of it when a node drains, as then"
        " they are sent away one after another; browsers wait 3 (Chromium) to 5 (Firefox) when"
        " told nothing",
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

    stream_seconds: Annotated[
        float,
        Between(1, WEEK, "seconds"),
        "how long a token stream is readable after its last event; a day, so that whoever left in"
        " the evening finds the whole answer in the morning",
    ] = DAY
    stream_events: Annotated[
        int,
        Between(1, 1_000_000, "events"),
        "events kept of one token stream; twice as many tokens as an upstream may send by default",
    ] = 100_000
    stream_bytes: Annotated[
        int,
        Between(KIB, GIB, "bytes"),
        "bytes kept of one token stream, 64 MiB; four times as many as an upstream may send by"
        " default, since each event has its head",
    ] = 64 * MIB

    push_lease: Annotated[
        float,
        Between(0.1, HOUR, "seconds"),
        "how long a pushed token stream waits for its application, which opened it or broke off,"
        " until viewers are told that it is lost; a restart of the application and a few tries",
    ] = 15.0
    push_seconds: Annotated[
        float,
        Between(0.1, WEEK, "seconds"),
        "how long a pushed token stream may last in all, an hour; what is never ended, ends",
    ] = 3600.0

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
    memory_bytes: Annotated[
        int,
        Between(MIB, TIB, "bytes"),
        "of outboxes and history together in each worker, 512 MiB; beyond it the largest are"
        " dropped first, and their clients told",
    ] = 512 * MIB
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
    max_streams_per_user: Annotated[
        int,
        Between(0, 1000, "streams"),
        "of one user in the whole cluster; a few tabs and a phone; 0: no limit",
    ] = 5
    user_limit: Annotated[
        UserLimit,
        "what a stream beyond that does; ending the oldest locks out nobody who comes back before"
        " his last stream is known to be gone",
    ] = UserLimit.END_OLDEST
    max_streams_per_address: Annotated[
        int,
        Between(0, 10_000_000, "streams"),
        "of one address (IPv6: one /64), divided among the workers: a tenth of what a node holds"
        " with the usual limit of descriptors; 0: no limit",
    ] = 2000
    open_rate: Annotated[
        float,
        Between(0, 1_000_000, "streams/s"),
        "opened by the node, and twice as many at once, divided among the workers; what is faster"
        " stands in line: about half of what a core can open; 0: no limit",
    ] = 4000.0
    open_wait: Annotated[
        float,
        Between(0, 60, "seconds"),
        "that an opening stands in line before it is told to come back; longer, and browsers would"
        " wait where another node might be idle",
    ] = 5.0
    address_open_rate: Annotated[
        float,
        Between(0, 1_000_000, "streams/s"),
        "opened by one address, and ten times as many at once, divided among the workers:"
        " an office behind one address may come back at once; 0: no limit",
    ] = 200.0
    publish_rate: Annotated[
        float,
        Between(0, 10_000_000, "events/s"),
        "of one publisher in the whole cluster, and as many at once: no one takes all that a worker"
        " can; 0: no limit",
    ] = 50_000.0
    channel_publish_rate: Annotated[
        float,
        Between(0, 10_000_000, "events/s"),
        "of one channel in the whole cluster, and as many at once; 0: no limit, as what is sensible"
        " depends on the channel",
    ] = 0.0
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
    max_url_bytes: Annotated[
        int,
        Between(256, MIB, "bytes"),
        "request target, 8 KiB; what RFC 9110 asks of everybody to support",
    ] = 8 * KIB
    head_timeout: Annotated[
        float,
        Between(0.1, HOUR, "seconds"),
        "from the first byte of a request to the end of its headers, and from the connection to the"
        " first byte; against slow-loris clients",
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

    drain_relay_seconds: Annotated[
        float,
        Between(0, HOUR, "seconds"),
        "more for token streams that are being made to reach their end, which is told as an error"
        " otherwise; 0 since an answer may take minutes, and service managers do not wait so long",
    ] = 0.0

    channels: tuple[ChannelRule, ...] = ()
    """The ``[[channel]]`` tables of the file, in their order."""
    issuers: tuple[Issuer, ...] = ()
    """The ``[[issuer]]`` tables."""
    api_keys: tuple[ApiKey, ...] = ()
    """The ``[[api_key]]`` tables."""
    upstreams: tuple[Upstream, ...] = ()
    """The ``[[upstream]]`` tables."""

    @property
    def has_keys(self) -> bool:
        """Whether anybody is asked who he is; without keys the node is open."""
        return bool(self.jwt_key or self.jwt_key_file or self.issuers or self.api_keys)

    @property
    def worker_count(self) -> int:
        """How many processes serve. Raises ValueError where ``workers`` is neither."""
        if self.workers == AUTO:
            return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        return int(self.workers)

    def rule(self, channel: str) -> ChannelRule:
        """The first rule that matches, else the general settings as a rule for ``**``; what the
        gateway tells of itself, and token streams, have their own, whatever matches.

        Compiles every pattern it passes: whoever asks per event keeps the answer.
        """
        if channel == OPS_CHANNEL:
            return OPS_RULE
        if channel.startswith(STREAM_PREFIX):
            return self.stream_rule()
        for rule in self.channels:
            if compile_pattern(rule.match).matches(channel):
                return rule
        return self.general_rule()

    def stream_rule(self) -> ChannelRule:
        """Of a token stream: whoever is slow gets all of it, at his own pace."""
        return ChannelRule(
            match=f"{STREAM_PREFIX}*",
            policy=Policy.CATCH_UP,
            history_events=self.stream_events,
            history_bytes=self.stream_bytes,
            history_seconds=self.stream_seconds,
        )

    def general_rule(self) -> ChannelRule:
        return ChannelRule(
            match="**",
            policy=self.policy,
            history_events=self.history_events,
            history_bytes=self.history_bytes,
            history_seconds=self.history_seconds,
            channel_publish_rate=self.channel_publish_rate,
        )


def split_list(text: str) -> tuple[str, ...]:
    """The parts of a setting that is a list, divided by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port; raises ValueError where the text is not such a pair."""
    found = _ADDRESS.fullmatch(address)
    if not found or int(found[3]) > MAX_PORT:
        raise ValueError(f"{address!r} is not host:port")
    if found[1]:
        IPv6Address(found[1])
    return found[1] or found[2], int(found[3])


@lru_cache(1024)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``.

    Names are not resolved: all but ``localhost`` count as public, as their address may change.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback  # which looks into mapped ones only since 3.13
