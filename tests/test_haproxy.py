"""Behind a real HAProxy, and as both balancers are shipped: they say for whom they ask."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import balancers
import certificates
import pytest
import trio
from process import child
from redis_server import free_port
from running import Wire, request, running, running_over_tls

from gateway.api.publish import publish
from gateway.api.request import Answer, Request
from gateway.node import Node

CLIENT = "127.0.0.9"
"""All of 127.0.0.0/8 is this machine: a client at another address than the proxy's."""

CONFIGURATION = """
defaults
    mode {mode}
    timeout connect 5s
    timeout client 20s
    timeout server 20s
listen gateway
    bind 127.0.0.1:{port}
    {option}
    server node 127.0.0.1:{node} {server}
"""


@pytest.fixture
def publishers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the publishes come from, as the api sees it."""
    found: list[str] = []

    async def spy(node: Node, asked: Request) -> Answer:
        found.append(node.address_of(asked.peer, asked.header))
        return await publish(node, asked)

    monkeypatch.setattr("gateway.connection.publish", spy)
    monkeypatch.setattr("gateway.edge.app.publish", spy)
    return found


@asynccontextmanager
async def haproxy(
    directory: Path, node: int, *, mode: str = "tcp", server: str = "", option: str = ""
) -> AsyncIterator[int]:
    """The port of one in front of the node at that port."""
    port = free_port()
    file = directory / "haproxy.cfg"
    file.write_text(
        CONFIGURATION.format(mode=mode, port=port, node=node, server=server, option=option)
    )
    async with child("haproxy", "-db", "-f", str(file)) as proxy:
        await proxy.until_listening(port)
        yield port


async def ask(port: int, raw: bytes) -> Wire:
    """A connection from CLIENT that has sent ``raw``."""
    sock = trio.socket.socket()
    await sock.bind((CLIENT, 0))
    await sock.connect(("127.0.0.1", port))
    wire = Wire(trio.SocketStream(sock))
    await wire.send(raw)
    return wire


async def comes_through(port: int) -> None:
    """Publishes, in front and behind, and a stream."""
    stream = await ask(port, request("GET", "/events/a"))
    await stream.opened()
    for version in ("1.1", "1.0"):
        forged = b"X-Forwarded-For: 1.1.1.1\r\n"
        wire = await ask(port, request("POST", "/publish/a", forged, body=b"x", version=version))
        assert (await wire.response()).status == 202
        await wire.aclose()
        assert (await stream.event()).data == "x"
    await stream.aclose()


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
async def test_by_a_proxy_header(tmp_path: Path, publishers: list[str], version: str) -> None:
    async with (
        running(proxy_protocol=True, trusted_proxies="127.0.0.1") as gateway,
        haproxy(tmp_path, gateway.port, server=version) as port,
    ):
        await comes_through(port)
    assert publishers == [CLIENT, CLIENT]


async def test_by_a_proxy_header_before_tls(
    tmp_path: Path, publishers: list[str], certificate: certificates.Files
) -> None:
    server = f"send-proxy-v2 ssl verify required ca-file {certificate.cert} check"
    async with (
        running_over_tls(certificate, proxy_protocol=True, trusted_proxies="127.0.0.1") as gateway,
        haproxy(tmp_path, gateway.port, server=server) as port,
    ):
        await comes_through(port)
    assert publishers == [CLIENT, CLIENT]


@pytest.mark.parametrize(
    "option",
    [
        "option forwardfor",
        "http-request set-header Forwarded for=%[src]\n    http-request del-header X-Forwarded-For",
    ],
    ids=["X-Forwarded-For", "Forwarded"],
)
async def test_by_a_header(tmp_path: Path, publishers: list[str], option: str) -> None:
    """HAProxy's X-Forwarded-For is a line of its own behind the one that the client has sent."""
    async with (
        running(trusted_proxies="127.0.0.1") as gateway,
        haproxy(tmp_path, gateway.port, mode="http", option=option) as port,
    ):
        await comes_through(port)
    assert publishers == [CLIENT, CLIENT]


@pytest.mark.parametrize("start", [balancers.haproxy, balancers.nginx])
async def test_as_shipped(
    publishers: list[str], certificate: certificates.Files, start: balancers.Start
) -> None:
    """Whatever the client says of itself."""
    async with (
        running(trusted_proxies="127.0.0.1", admin_bind="127.0.0.1:0") as gateway,
        start([gateway], certificate) as balancer,
    ):
        forged = b"X-Forwarded-For: 1.1.1.1\r\nForwarded: for=2.2.2.2\r\n"
        wire = await ask(balancer.port, request("POST", "/publish/a", forged, body=b"x"))
        assert (await wire.response()).status == 202
        await wire.aclose()
    assert publishers == [CLIENT]
