"""The listener of ``admin_bind``: probes and metrics, nothing else, and until the very end."""

import os
import re
import signal

import certificates
import httpx
import pytest
import trio
from process import GATEWAY, NodeProcess, child, eventually, node
from running import Gateway, request, running, running_over_tls, until

from gateway.admin_connection import PROBES
from gateway.connection import CROWD
from gateway.errors import ConfigError
from gateway.metrics import MEDIA_TYPE
from gateway.settings import load

ADMIN = "127.0.0.1:0"
MANY = 16
PUBLISH = request("POST", "/publish/a", body=b"x")


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_it_serves_probes_and_metrics(version: str) -> None:
    async with running(admin_bind=ADMIN) as gateway:
        for path, kind in (
            ("/healthz", "application/json"),
            ("/readyz", "application/json"),
            ("/metrics", MEDIA_TYPE),
        ):
            for method in ("GET", "HEAD"):
                raw = request(method, path, version=version)
                answer = await gateway.ask(raw, head_only=method == "HEAD", admin=True)
                assert (answer.status, answer.header("content-type")) == (200, kind)
        await gateway.quiet()


NOTHING = [
    ("GET", "/events/a"),
    ("GET", "/events?channel=a"),
    ("GET", "/poll/a"),
    ("POST", "/publish/a"),
    ("POST", "/publish"),
    ("GET", "/stats"),
    ("GET", "/channels/a"),
    ("DELETE", "/users/a"),
    ("PUT", "/clients/a/channels/b"),
    ("GET", "/"),
    ("GET", "/metrics/"),
    ("GET", "//metrics"),
]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_nothing_else_is_there(version: str) -> None:
    async with running(admin_bind=ADMIN) as gateway:
        for method, target in NOTHING:
            body = b"x" if method == "POST" else None
            raw = request(method, target, body=body, version=version)
            answer = await gateway.ask(raw, admin=True)
            assert answer.status == 404, (method, target)
            assert answer.header("content-type") == "application/problem+json"
            assert answer.detail
        answer = await gateway.ask(request("POST", "/metrics", body=b""), admin=True)
        assert (answer.status, answer.header("allow")) == (405, "GET, HEAD, OPTIONS")
        assert gateway.node.bus.statistics().published == 0


async def test_it_is_plain_whatever_the_other_listener_speaks(
    certificate: certificates.Files,
) -> None:
    async with running_over_tls(
        certificate, admin_bind=ADMIN, proxy_protocol=True, trusted_proxies="127.0.0.1"
    ) as gateway:
        assert (await gateway.ask(request("GET", "/healthz"), admin=True)).status == 200


async def test_its_connections_have_the_same_deadlines() -> None:
    async with running(admin_bind=ADMIN, head_timeout=0.3) as gateway:
        silent, slow = [await gateway.connect(admin=True) for _ in range(2)]
        await slow.send(b"GET /healthz")
        assert (await slow.response()).status == 408
        assert await silent.ended()
        assert gateway.node.refused == {"silent": 1, "408": 1}


async def in_use(gateway: Gateway, count: int) -> None:
    await until(lambda: len(gateway.front._connections) == count)


async def test_a_node_whose_connections_are_all_taken_still_shows_that_it_is_alive() -> None:
    async with running(admin_bind=ADMIN, max_connections=1) as gateway:
        for _ in range(1 + CROWD):
            await gateway.connect()
        await in_use(gateway, 1 + CROWD)
        assert await (await gateway.connect()).ended()
        assert (await gateway.ask(request("GET", "/healthz"), admin=True)).status == 200
        await in_use(gateway, 1 + CROWD)
        for _ in range(PROBES):
            await gateway.connect(admin=True)
        await in_use(gateway, 1 + CROWD + PROBES)
        assert await (await gateway.connect(admin=True)).ended()
        assert gateway.node.refused["connections"] == 2


@pytest.mark.parametrize("address", ["9090", "127.0.0.1", "127.0.0.1:99999", "::1:9090"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^admin_bind is .* must be host:port"):
        load({"admin_bind": address}, {}, None)


# --- as a process ---------------------------------------------------------------------------------


def admin_url(n: NodeProcess) -> str:
    found = re.findall(r"metrics and probes on (http://127\.0\.0\.1:\d+)/\"", n.output)
    assert len(found) == 1, n.output
    return str(found[0])


async def ask(url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        return await client.get(url)


async def test_an_address_in_use_stops_the_start() -> None:
    async with node("--admin-bind", ADMIN) as n:
        address = admin_url(n).removeprefix("http://")
        flags = ("--bind", "127.0.0.1:0", "--admin-bind", address)
        async with child(GATEWAY, "serve", *flags) as other:
            assert await other.wait() == 2
        told = f"gateway: admin_bind: cannot listen on {address}: Address already in use.\n"
        assert other.output == told


async def test_it_answers_until_the_end_of_the_drain() -> None:
    async with node("--admin-bind", ADMIN, "--drain-seconds", "2") as n:
        url = admin_url(n)
        streams = [await n.open_stream("/events/a") for _ in range(2)]
        n.signal(signal.SIGTERM)
        await n.until("is draining")

        async def main_is_closed() -> bool:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", n.port)).aclose()
            except OSError:
                return True
            return False

        await eventually(main_is_closed)
        answer = await ask(f"{url}/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (503, "draining")
        assert (await ask(f"{url}/healthz")).status_code == 200
        text = (await ask(f"{url}/metrics")).text
        assert "gateway_draining 1.0" in text
        for stream in streams:
            await stream.until_end()
        assert await n.wait() == 0
        assert "Traceback" not in n.output


async def test_several_workers_have_one_each_and_it_outlives_them(
    redis_port: int, new_prefix: str
) -> None:
    redis = ("--redis", f"redis://127.0.0.1:{redis_port}", "--redis-prefix", new_prefix)
    async with node("--admin-bind", ADMIN, *redis, "--workers", "2", "--drain-seconds", "2") as n:
        url = admin_url(n)

        async def all_answer() -> None:
            for _ in range(MANY):  # new connections: each worker gets some of them
                assert "gateway_workers 2.0" in (await ask(f"{url}/metrics")).text

        await all_answer()
        os.kill(n.workers()[0], signal.SIGKILL)
        await n.until(r"worker \d \(process \d+\) was ended by SIGKILL")
        await n.until(r"worker \d is ready")
        await all_answer()
        stream = await n.open_stream("/events/a")
        n.signal(signal.SIGTERM)
        await n.until("is draining")
        assert (await ask(f"{url}/readyz")).json()["reason"] == "draining"
        await stream.until_end()
        assert await n.wait() == 0
        assert "Traceback" not in n.output
