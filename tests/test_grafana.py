"""Every query of the dashboard and the rules, asked of a real Prometheus that scrapes real nodes.

The nodes are given what there is to be seen: publishers, readers, some that stall or come back,
polls, mistakes, and a Redis that is killed and comes back empty. Prometheus runs with the
configuration and the rules of grafana/, only faster. A query is answered when it has returned a
number; what is empty while all is well, as is the comparison of an alert, must have returned one
for each of its sides.
"""

import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from socket import SO_RCVBUF, SOL_SOCKET

import certificates
import httpx
import promql_parser as promql
import pytest
import trio
import yaml
from process import PATIENCE, Child, NodeProcess, Stream, child, eventually, node
from prometheus_client.parser import text_string_to_metric_families
from redis_server import RedisServer, free_port, redis_server
from running import request
from upstreams import Script, chat, fake_upstream
from watching import (
    CHOICES,
    DURATIONS,
    GRAFANA,
    Query,
    of_dashboard,
    of_rules,
    operands,
    put,
    read_yaml,
    selectors,
)

CONFIGURATION = """
outbox_frames = 10
send_buffer_bytes = 8192
publish_wait = 0.2
redis_timeout = 2.0
[[channel]]
match = "short.*"
history_events = 3
[[channel]]
match = "ticker.*"
policy = "latest"
[[upstream]]
name = "model"
url = "http://127.0.0.1:%d/v1"
format = "openai"
"""

ALL_AT_WORK = "count(count by (instance) (gateway_delivered_total > 50)) == 3"
"""Of Prometheus, when it has seen each node before anything is broken."""

QUERIES = [*of_dashboard(), *of_rules()]

FIRING = {
    "GatewayBusLostHistory",
    "GatewayCertificateExpiry",
    "GatewayHistoryTooShort",
    "GatewayTokenStreamsBroken",
}
"""Redis has lost what it had, token streams too, the certificate is of two days, a history is of
three events."""

BUSY = {"GatewayBusUnstable", "GatewayOverrun"}
"""What may fire besides where the machine has much else to do."""


def asked(query: Query) -> list[str]:
    """What is asked of Prometheus for it."""
    parsed = promql.parse(put(DURATIONS | CHOICES, query.expression))
    return [each.prettify() for each in operands(parsed)]


@dataclass
class Seen:
    """What nodes and Prometheus have said until every query was answered, or too late."""

    unanswered: set[str]
    exported: dict[str, set[str]] = field(default_factory=dict)
    """The names of all samples that nodes export, and the labels that each has."""
    firing: list[dict[str, dict[str, str]]] = field(default_factory=list)
    """Alerts that fired at the end, as Prometheus's API tells of them."""

    @property
    def alerts(self) -> set[str]:
        return {each["labels"]["alertname"] for each in self.firing}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, certificate: certificates.Files) -> Seen:
    return trio.run(_watch, tmp_path_factory.mktemp("grafana"), certificate)


async def _watch(directory: Path, certificate: certificates.Files) -> Seen:
    file = directory / "gateway.toml"
    ports = [free_port() for _ in range(3)]
    flags = [("--config", str(file), "--admin-bind", f"127.0.0.1:{port}") for port in ports]
    over = trio.Event()
    model = free_port()
    file.write_text(CONFIGURATION % model)
    async with (
        fake_upstream(port=model),
        redis_server() as redis,
        node(*flags[0], "--redis", redis.url) as plain,
        node(
            *(*flags[1], "--redis", redis.url, "--workers", "2", *certificate.flags),
            tls=certificate.client(),
        ) as secure,
        node(*flags[2]) as alone,
        prometheus(directory, ports) as ask,
        trio.open_nursery() as nursery,
    ):
        for each in (plain, secure, alone):
            nursery.start_soon(_load, each, over)
        await eventually(lambda: ask.has_a_number(ALL_AT_WORK))
        await _lose_redis(redis, plain)
        seen = Seen({text for query in QUERIES for text in asked(query)})
        with trio.move_on_after(3 * PATIENCE):
            while seen.unanswered or not seen.alerts >= FIRING:
                for text in sorted(seen.unanswered):
                    if await ask.has_a_number(text):
                        seen.unanswered.remove(text)
                seen.firing = await ask.firing()
                await trio.sleep(0.1)
        for port in ports:
            _read_names(await _metrics(port), seen.exported)
        over.set()
    return seen


@asynccontextmanager
async def prometheus(directory: Path, nodes: list[int]) -> AsyncIterator["Prometheus"]:
    """One that scrapes those ports, as grafana/prometheus.yml has it, but faster."""
    configuration = read_yaml("prometheus.yml")
    assert configuration["rule_files"] == ["rules.yml"]
    fast = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"}
    configuration["global"] |= fast
    configuration["rule_files"] = [str(GRAFANA / "rules.yml")]
    (scraped,) = configuration["scrape_configs"]
    scraped["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in nodes]}]
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    port = free_port()
    async with (
        child(
            "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ) as server,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE
        ) as client,
    ):
        ask = Prometheus(server, client)
        await eventually(ask.is_ready)
        yield ask


class Prometheus:
    """One that runs, and its API."""

    def __init__(self, server: Child, client: httpx.AsyncClient) -> None:
        self._server = server
        self._client = client

    async def is_ready(self) -> bool:
        assert self._server.process.returncode is None, self._server.output
        try:
            return (await self._client.get("/-/ready")).is_success
        except httpx.TransportError:
            return False

    async def has_a_number(self, expression: str) -> bool:
        answer = await self._client.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, (expression, answer.text)
        data = answer.json()["data"]
        if data["resultType"] == "scalar":
            return True
        return any(isfinite(float(each["value"][1])) for each in data["result"])

    async def firing(self) -> list[dict[str, dict[str, str]]]:
        alerts = (await self._client.get("/api/v1/alerts")).json()["data"]["alerts"]
        return [each for each in alerts if each["state"] == "firing"]


async def _metrics(port: int) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}/metrics")).text


def _read_names(text: str, into: dict[str, set[str]]) -> None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            into.setdefault(sample.name, set()).update(sample.labels)


# --- the load -------------------------------------------------------------------------------------

CHANNELS = "channels=room.a,short.a,ticker.a"


async def _load(to: NodeProcess, over: trio.Event) -> None:
    async with trio.open_nursery() as readers:
        readers.start_soon(_read, to)
        if to.tls is None:
            readers.start_soon(_stall, to)
        async with trio.open_nursery() as others:
            for each in (_publish, _come_back, _ask, _relay):
                others.start_soon(each, to, over)
        readers.cancel_scope.cancel()


async def _publish(to: NodeProcess, over: trio.Event) -> None:
    async with to.client() as client:
        while not over.is_set():
            for channel in ("room.a", "short.a", "ticker.a"):
                await client.post(f"{to.url}/publish/{channel}", content=b"x" * 2000)
            await trio.sleep(0.02)


async def _read(to: NodeProcess) -> None:
    while True:
        stream = await _opened(to, "")
        with trio.move_on_after(5):
            await stream.until(b"what nobody publishes")
        await stream.transport.aclose()


async def _come_back(to: NodeProcess, over: trio.Event) -> None:
    """Again and again, to a history that begins later, and until what is published then comes."""
    after = ""
    async with to.client() as client:
        for number in itertools.takewhile(lambda _: not over.is_set(), itertools.count()):
            stream = await _opened(to, after)
            mark = f"number {number}\n".encode()
            answer = await client.post(f"{to.url}/publish/room.a", content=mark.strip())
            if answer.is_success:  # not while Redis is away
                with trio.move_on_after(5):  # what it had taken just before that never comes
                    await stream.until(mark)
            position = re.findall(rb"(?m)^id: (.+)$", stream.body)[-1].decode()
            after = f"&lastEventId={position}"
            await stream.transport.aclose()
            await trio.sleep(0.3)


async def _opened(to: NodeProcess, after: str) -> Stream:
    """A stream, asked for as an EventSource does until it is not told to come back."""
    while True:
        target = f"/events?{CHANNELS}{after}"
        stream = await to.ask_for_stream(target, ("Accept", "text/event-stream"))
        await stream.until(b"data: ")
        if b"event: connected" in stream.body:
            return stream
        await stream.transport.aclose()
        await trio.sleep(0.05)


async def _ask(to: NodeProcess, over: trio.Event) -> None:
    """Polls, mistakes, and what other workers have to be asked for."""
    async with to.client() as client:
        while not over.is_set():
            await client.get(f"{to.url}/poll/room.a?wait=0")
            await client.get(f"{to.url}/nowhere")
            await client.delete(f"{to.url}/users/nobody")
            await trio.sleep(0.1)


async def _relay(to: NodeProcess, over: trio.Event) -> None:
    """A token stream for longer than all of this takes, and others that come to an end: well, and
    at the second try."""
    scripts = (Script(words=9), Script(words=3, rate=50), Script(status=429, retry_after="0"))
    async with to.client() as client:
        for script in itertools.chain([Script(words=10_000, rate=20)], itertools.cycle(scripts)):
            if over.is_set():
                return
            asked = {"upstream": "model", "request": chat(script)}
            await client.post(f"{to.url}/streams", json=asked)
            await trio.sleep(0.1)


async def _stall(to: NodeProcess) -> None:
    """Readers that never read: of a channel that drops events, and of one that replaces them."""
    with socket_of_little_room() as one, socket_of_little_room() as other:
        for sock, channel in ((one, "room.a"), (other, "ticker.a")):
            await sock.connect(("127.0.0.1", to.port))
            await sock.send(request("GET", f"/events/{channel}"))
        await trio.sleep_forever()


def socket_of_little_room() -> trio.socket.SocketType:
    sock = trio.socket.socket()
    sock.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
    return sock


async def _lose_redis(redis: RedisServer, of: NodeProcess) -> None:
    """It comes back empty, when a publisher has been told that it was away."""
    await redis.kill()

    async def is_refused() -> bool:
        async with of.client() as client:
            return (await client.post(f"{of.url}/publish/room.a", content=b"x")).status_code == 503

    await eventually(is_refused)
    await redis.restart_empty()
    await of.until_metric("bus_up", 1)


# --- what is seen ---------------------------------------------------------------------------------


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_each_query_returns_data(seen: Seen, query: Query) -> None:
    for text in asked(query):
        assert text not in seen.unanswered


def test_no_metric_is_named_that_no_node_exports(seen: Seen) -> None:
    known = {re.sub("_(bucket|sum|count)$", "", name) for name in seen.exported} | set(
        seen.exported
    )
    for file in ("README.md", "RUNBOOK.md", "rules.yml", "rules_test.yml", "dashboard.json"):
        text = (GRAFANA / file).read_text("utf-8")
        named = set(re.findall(r"(?<![:\w])gateway_[a-z_]+(?!:)\b", text))
        assert named <= known, file


def test_no_label_is_asked_for_that_no_node_exports(seen: Seen) -> None:
    """Nor do the tests of the rules make any up."""
    series = [
        each["series"]
        for test in read_yaml("rules_test.yml")["tests"]
        for each in test["input_series"]
    ]
    for text in (*(query.expression for query in QUERIES), *series):
        for selector in selectors(put(DURATIONS, text)):
            if selector.name in seen.exported:
                labels = {one.name for one in selector.matchers.matchers}
                assert labels <= seen.exported[str(selector.name)] | {"job", "instance"}, text


def test_what_fires_is_what_was_done_and_says_so(seen: Seen) -> None:
    assert seen.alerts - BUSY == FIRING
    for each in seen.firing:
        assert not re.search(r"<|%!|{{", " ".join(each["annotations"].values()))
