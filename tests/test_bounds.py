"""Each bound of a request at its edge: exactly as much is taken, one more is refused and counted.

Times are virtual: a connection on a socket pair, and the task that looks at connections.
"""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest
import trio
from rig import running as rig_running
from running import HOST, Gateway, request, running
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config import Config
from gateway.connection import Connection
from gateway.edge.app import make_app
from gateway.edge.serve import Edge
from gateway.front import WATCH_SECONDS, Front
from gateway.node import Node

SETTINGS: dict[str, int] = {
    "max_event_bytes": 200,
    "max_body_bytes": 2048,
    "max_head_bytes": 1500,
    "max_channels_per_client": 3,
}

JSON = b"Content-Type: application/json\r\n"


def body_of(size: int) -> bytes:
    event = msgspec.json.encode({"channel": "a", "data": "x"})
    return request("POST", "/publish", JSON, body=event + b" " * (size - len(event)))


def event_of(size: int) -> bytes:
    return request("POST", "/publish/a", body=b"x" * (size - len("data: \n")))


def head_of(size: int) -> bytes:
    head = request("POST", "/publish/a", b"A: \r\n", body=b"")
    return head.replace(b"A: ", b"A: " + b"x" * (size - len(head)))


def poll_of(channels: int) -> bytes:
    named = ",".join(f"c{number}" for number in range(channels))
    return request("GET", f"/poll?channels={named}&wait=0")


@dataclass
class Bound:
    """What asks for that much of something, and how it is answered when that is too much."""

    raw: Callable[[int], bytes]
    setting: str
    status: int


BOUNDS = {
    "a body": Bound(body_of, "max_body_bytes", 413),
    "an event": Bound(event_of, "max_event_bytes", 413),
    "a head": Bound(head_of, "max_head_bytes", 431),
    "channels": Bound(poll_of, "max_channels_per_client", 400),
}


async def counted(gateway: Gateway, reason: str) -> float:
    text = (await gateway.ask(request("GET", "/metrics"))).body.decode()
    start = f'gateway_refused_total{{reason="{reason}"}} '
    return sum(float(line[len(start) :]) for line in text.splitlines() if line.startswith(start))


@pytest.mark.parametrize("version", ["1.1", "1.0"], ids=["front", "edge"])
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
async def test_a_bound_is_exact_and_what_is_beyond_it_is_counted(
    bound: Bound, version: str
) -> None:
    most = SETTINGS[bound.setting]
    async with running(**SETTINGS) as gateway:
        for size, statuses in ((most - 1, {200, 202}), (most, {200, 202}), (most + 1, None)):
            raw = bound.raw(size).replace(b" HTTP/1.1\r\n", b" HTTP/%b\r\n" % version.encode())
            response = await gateway.ask(raw)
            assert response.status in (statuses or {bound.status}), (size, response)
            expected = 0 if statuses else 1
            assert await counted(gateway, str(bound.status)) == expected
        assert str(most) in response.detail
        assert sum(gateway.node.refused.values()) == 1


async def test_a_channel_more_than_an_open_stream_may_have_is_refused_and_counted() -> None:
    async with running(max_channels_per_client=2) as gateway:
        wire = await gateway.open("/events/a")
        client = (await wire.opened())["clientId"]
        for name, status in (("b", 200), ("c", 400)):
            response = await gateway.ask(request("PUT", f"/clients/{client}/channels/{name}"))
            assert response.status == status
        assert await counted(gateway, "400") == 1


# --- how long a peer may take ---------------------------------------------------------------------

SLACK = 2 * WATCH_SECONDS
"""By which a wait may last longer than is set: connections are looked at now and then."""

TIMES = {"head_timeout": 10.0, "body_timeout": 20.0, "idle_timeout": 40.0}


class Peer:
    """The far end of a connection whose other one the front serves."""

    def __init__(self, near: socket.socket, far: socket.socket, node: Node) -> None:
        self.near = near
        self.far = far
        self.node = node

    async def send(self, data: bytes) -> None:
        self.far.send(data)
        await wait_all_tasks_blocked()

    def read(self) -> bytes | None:
        """What has come; None for nothing, and b"" for the end."""
        try:
            return self.far.recv(65_536)
        except BlockingIOError:
            return None


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    config = Config(keepalive=3600.0, **TIMES)  # type: ignore[arg-type]  # all are floats
    async with rig_running(config) as rig:
        edge = Edge(make_app(rig.node), write_timeout=config.write_timeout)
        front = Front(rig.node, edge.serve, max_connections=10)
        rig.nursery.start_soon(front.watch)
        rig.nursery.start_soon(front._serve, Connection(front._service, near, "192.0.2.1"))
        await wait_all_tasks_blocked()
        try:
            yield Peer(near, far, rig.node)
        finally:
            far.close()


PUBLISH = request("POST", "/publish/a", body=b"x")
EMPTY = request("POST", "/publish/a", body=b"")
HEAD = b"POST /publish/a HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n"


@pytest.mark.parametrize(
    ("beginning", "setting", "rest"),
    [
        pytest.param(EMPTY[:20], "head_timeout", EMPTY[20:], id="head"),
        pytest.param(HEAD, "body_timeout", b"123456789", id="body"),
    ],
)
async def test_a_request_may_come_slowly_for_so_long_and_no_longer(
    beginning: bytes, setting: str, rest: bytes, autojump_clock: MockClock
) -> None:
    """However it trickles: what comes meanwhile wins no time."""
    for in_time in (True, False):
        async with peer() as p:
            await p.send(beginning)
            steps = len(rest) - 1
            for byte in rest[:steps]:
                await trio.sleep((TIMES[setting] - 0.01) / steps)
                await p.send(bytes((byte,)))
            assert p.read() is None
            if not in_time:
                await trio.sleep(SLACK + 0.02)
                answer = p.read() or b""
                assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
                assert setting.encode() in answer
                assert p.node.refused == {"408": 1}
                continue
            await p.send(rest[steps:])
            assert (p.read() or b"").startswith(b"HTTP/1.1 202 ")
            assert p.node.refused == {}


async def test_a_connection_may_be_idle_between_requests_for_so_long_and_no_longer(
    autojump_clock: MockClock,
) -> None:
    async with peer() as p:
        for _ in range(3):
            await p.send(PUBLISH)
            assert (p.read() or b"").startswith(b"HTTP/1.1 202 ")
            await trio.sleep(TIMES["idle_timeout"] - 0.01)
        assert p.read() is None
        assert p.node.refused == {}
        await trio.sleep(SLACK + 0.02)
        assert p.read() == b""
        assert p.node.refused == {"idle": 1}
