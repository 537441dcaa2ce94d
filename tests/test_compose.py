"""deploy/compose.yaml: as the specification has it, in step with itself, and started here without
an engine: its keys, three nodes, HAProxy and the traffic, with the commands and variables that the
containers have."""

import json
import os
import re
import signal
import subprocess
import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import image
import pytest
import yaml
from compose_spec import PyCompose
from process import PATIENCE, Child, NodeProcess, child, environment, eventually, node_of
from redis_server import free_port

from gateway.config import MIB, Config
from gateway.server import stop_seconds
from gateway.settings import load

DEPLOY = image.ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
HAPROXY = DEPLOY / "haproxy" / "haproxy.cfg"

NODES = ("node1", "node2", "node3")

KEYS = {"/keys/nodes": "nodes", "/keys/balancer": "balancer", "/keys/grafana": "grafana"}
"""Where the volumes of the keys are in the container that makes them, and here."""

OF_A_WORKER = 128 * MIB
"""What a worker needs besides what it bounds itself, generously: 45 MiB, and its clients."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what keys.sh has made, twice: the second time it changes nothing."""
    made = tmp_path_factory.mktemp("keys")
    paths = {there: str(made / name) for there, name in KEYS.items()}
    for path in paths.values():
        Path(path).mkdir()
    paths |= mounted("keys")
    secrets = []
    programs = f"{Path(image.LOCAL['gateway']).parent}:{os.environ['PATH']}"
    variables = environment(**image.variables(), PATH=programs)
    for _ in range(2):
        command = image.here(SERVICES["keys"]["entrypoint"], paths)
        subprocess.run(command, env=variables, check=True, capture_output=True)
        secrets.append({path.name: path.read_bytes() for path in made.rglob("*") if path.is_file()})
    assert secrets[0] == secrets[1]
    assert secrets[0].keys() == {
        *("jwt.key", "api_key.toml", "gateway.toml", "traffic.key", "site.pem", "password")
    }
    return made


def mounted(service: str) -> dict[str, str]:
    """Files of the repository, by where they are in the container."""
    volumes = [volume.split(":") for volume in SERVICES[service].get("volumes", ())]
    return {there: str(DEPLOY / path) for path, there, *_ in volumes if path.startswith(".")}


def settings(keys: Path) -> Config:
    """Of a node, but for its secret."""
    variables = image.variables(GATEWAY_JWT_KEY_FILE="x")
    return load({}, variables, keys / "nodes" / "gateway.toml").config


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def test_it_is_what_the_specification_allows() -> None:
    PyCompose.from_json(json.dumps(COMPOSE))
    typo = json.loads(json.dumps(COMPOSE))
    typo["services"]["node1"]["stop_grace_periods"] = typo["services"]["node1"]["stop_grace_period"]
    with pytest.raises(ValueError, match="stop_grace_periods"):
        PyCompose.from_json(json.dumps(typo))


def test_nothing_is_published_but_on_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 5
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_no_secret_is_written_in_it() -> None:
    """What is named like one is a file."""
    named = [
        str(value)
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if re.search("KEY|PASSWORD|SECRET|TOKEN", name)
    ]
    assert named
    assert all(value.startswith("/run/") for value in named)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_can_do_no_more_than_it_must_and_has_its_files(service: str) -> None:
    told = SERVICES[service]
    assert (told["cap_drop"], told["read_only"]) == (["ALL"], True)
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert all(Path(path).is_file() or Path(path).is_dir() for path in mounted(service).values())
    assert not told.get("privileged")


def test_a_stop_waits_for_the_drain(keys: Path) -> None:
    for node in NODES:
        assert seconds(SERVICES[node]["stop_grace_period"]) == stop_seconds(settings(keys))


def test_the_balancer_notices_a_drain_within_the_grace(keys: Path) -> None:
    found = re.search(
        r'inter "\$\{CHECK_INTERVAL-(\d+)s\}".* fall (\d+)', HAPROXY.read_text("utf-8")
    )
    assert found is not None
    notices = int(found[1]) * int(found[2])
    assert notices < settings(keys).drain_grace
    unit = tomllib.loads((DEPLOY / "systemd" / "gateway.toml").read_text("utf-8"))
    assert notices < unit["drain_grace"]


def test_a_node_has_the_memory_that_it_is_told_to_use(keys: Path) -> None:
    config = settings(keys)
    worker = 1.45 * config.memory_bytes + config.pending_bytes + OF_A_WORKER
    for node in NODES:
        limit = int(SERVICES[node]["mem_limit"].removesuffix("m")) * MIB
        assert limit >= config.worker_count * worker


def test_the_balancer_is_told_of_each_node_and_trusted_by_it(keys: Path) -> None:
    haproxy = SERVICES["haproxy"]
    _, port = image.ENVIRONMENT["GATEWAY_BIND"].split(":")
    for number, node in enumerate(NODES, 1):
        assert haproxy["environment"][f"NODE_{number}"] == f"{node}:{port}"
    known = set(re.findall(r"\$\{(\w+)", HAPROXY.read_text("utf-8")))
    assert haproxy["environment"].keys() <= known
    _, admin = image.ENVIRONMENT["GATEWAY_ADMIN_BIND"].split(":")
    assert f'"${{NODE_1_ADMIN-{admin}}}"' in HAPROXY.read_text("utf-8")
    assert settings(keys).trusted_proxies == haproxy["networks"]["edge"]["ipv4_address"]
    listening = {text.rpartition(":")[2] for text in haproxy["environment"].values()}
    assert {port.rpartition(":")[2] for port in haproxy["ports"]} <= listening


def test_prometheus_asks_each_node_where_it_tells() -> None:
    path = mounted("prometheus")["/etc/prometheus/prometheus.yml"]
    told = yaml.safe_load(Path(path).read_text("utf-8"))
    [targets] = [
        job["static_configs"][0]["targets"]
        for job in told["scrape_configs"]
        if job["job_name"] == "gateway"
    ]
    _, admin = image.ENVIRONMENT["GATEWAY_ADMIN_BIND"].split(":")
    assert targets == [f"{node}:{admin}" for node in NODES]
    for name in told["rule_files"]:
        assert f"/etc/prometheus/{name}" in mounted("prometheus")


# --- started --------------------------------------------------------------------------------------


@asynccontextmanager
async def nodes(keys: Path, redis_port: int, prefix: str) -> AsyncIterator[list[NodeProcess]]:
    async with AsyncExitStack() as stack:
        started = []
        for name in NODES:
            told = SERVICES[name]
            variables = image.variables(
                **{
                    key: text.replace("/run/gateway", str(keys / "nodes"))
                    for key, text in told["environment"].items()
                },
                GATEWAY_BIND="127.0.0.1:0",
                GATEWAY_ADMIN_BIND="127.0.0.1:0",
                GATEWAY_REDIS=f"redis://127.0.0.1:{redis_port}",
                GATEWAY_REDIS_PREFIX=prefix,
                GATEWAY_TRUSTED_PROXIES="127.0.0.1",
                GATEWAY_DRAIN_GRACE="0",
            )
            if name != NODES[0]:
                variables["GATEWAY_WORKERS"] = "1"  # there are not so many cores here
            words = [*image.ENTRYPOINT, *told["command"]]
            command = image.here(words, {"/run/gateway": str(keys / "nodes")})
            started.append(
                await stack.enter_async_context(node_of(*command, tls=None, **variables))
            )
        yield started


@asynccontextmanager
async def haproxy(keys: Path, started: list[NodeProcess]) -> AsyncIterator[str]:
    """The URL of the balancer's plain port."""
    variables: dict[str, str] = dict(SERVICES["haproxy"]["environment"])
    ports = {name: free_port() for name in variables if name.startswith("LISTEN_")}
    variables |= {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    variables["CERTIFICATE"] = str(keys / "balancer" / "site.pem")
    variables["ADMIN_SOCKET"] = str(keys / "admin.sock")
    variables |= {"MAXCONN": "1000", "DESCRIPTORS": "4000", "NODE_MAXCONN": "900"}
    variables["CHECK_INTERVAL"] = "100ms"
    for number, node in enumerate(started, 1):
        variables[f"NODE_{number}"] = f"127.0.0.1:{node.port}"
        variables[f"NODE_{number}_ADMIN"] = str(node.admin_port)
    async with child("haproxy", "-db", "-f", str(HAPROXY), **variables) as proxy:
        await proxy.until_listening(ports["LISTEN_INSIDE"])
        yield f"http://127.0.0.1:{ports['LISTEN_INSIDE']}"


async def test_everything_starts_and_the_traffic_flows(
    keys: Path, redis_port: int, new_prefix: str
) -> None:
    async with nodes(keys, redis_port, new_prefix) as started, haproxy(keys, started) as url:
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
            refused = await client.post(f"{url}/publish/ticker.ada", content="mine")
            assert refused.status_code == 401, "who has no key publishes nothing"
            assert (await client.get(f"{url}/poll/user.1?wait=0")).status_code == 401
            assert (await client.get(f"{url}/poll/ticker.ada?wait=0")).status_code == 200
            assert "<title>" in (await client.get(url)).text, "the demo page"
        told = SERVICES["traffic"]
        paths = {"/run/gateway": str(keys / "nodes"), "http://haproxy:8080": url}
        paths |= {"http://node3:8080": started[2].url}
        words = image.here([*told["entrypoint"], *told["command"]], mounted("traffic") | paths)
        secret = told["environment"]["GATEWAY_JWT_KEY_FILE"]
        variables = {"GATEWAY_JWT_KEY_FILE": secret.replace("/run/gateway", str(keys / "nodes"))}
        few = ("--readers", "12", "--users", "3", "--slow", "1", "--answers", "2")
        async with child(*words, *few, **image.variables(**variables)) as traffic:
            for node in started:
                await eventually(partial(has_delivered, node, 20))
            traffic.signal(signal.SIGTERM)
            assert await traffic.wait() == 0
            counts = counted(traffic)
        started[0].signal(signal.SIGTERM)
        assert await started[0].wait() == 0
        assert started[0].output.count("has left") == settings(keys).worker_count
    assert counts["published"] > 40
    assert counts["received"] > counts["published"], "several read each"
    assert counts["connected"] >= 12 + 3
    assert counts["bytes read slowly"] > 0
    failures = {name for name in counts if re.search("failed|refused|gap|dropped", name)}
    assert failures == set(), traffic.output


async def has_delivered(node: NodeProcess, count: int) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{node.admin_port}/metrics")).text
    found = re.findall(r"(?m)^gateway_delivered_total(?:{.*})? (\S+)$", text)
    return sum(map(float, found)) >= count


def counted(traffic: Child) -> dict[str, int]:
    """What it has told last."""
    line = traffic.output.strip().splitlines()[-1]
    return {name: int(count) for name, count in re.findall(r"([a-z][a-z ]+) (\d+)", line)}
