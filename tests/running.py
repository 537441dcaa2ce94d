"""A node on a real loopback listener inside the test's own trio run, and the wire to it.

What is awaited here ends when data or the end of the connection has come; every wait is bounded
generously, so that a failure is a TooSlowError and never a hang.
"""

import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

import msgspec
import trio
from certificates import Files

from gateway.config import Config
from gateway.node import Node
from gateway.reception import Reception
from gateway.server import listen, listen_for_admin
from gateway.stream_state import Reason
from gateway.tls import Certificate

PATIENCE = 10.0
"""Seconds for one wait; all of them end in milliseconds unless something is broken."""

HOST = b"Host: gateway.test\r\n"
ACCEPT = b"Accept: text/event-stream\r\n"

READ_BYTES = 64 * 1024


@dataclass
class Response:
    """One whole response as it came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    @property
    def json(self) -> dict[str, object]:
        document: dict[str, object] = msgspec.json.decode(self.body, type=dict[str, object])
        return document

    @property
    def detail(self) -> str:
        return str(self.json["detail"])


@dataclass
class Block:
    """One SSE block: fields by name, and its data lines joined."""

    fields: dict[str, str] = field(default_factory=dict)
    data: str | None = None

    @property
    def event(self) -> str:
        return self.fields.get("event", "message")

    @property
    def id(self) -> str | None:
        return self.fields.get("id")

    @property
    def json(self) -> dict[str, object]:
        document: dict[str, object] = msgspec.json.decode(self.data or "")
        return document


class Wire:
    """One client connection: raw bytes out, responses and SSE blocks in."""

    def __init__(
        self, socket_stream: trio.SocketStream, tls: trio.SSLStream[trio.SocketStream] | None = None
    ) -> None:
        self.socket_stream = socket_stream
        self.stream = tls or socket_stream
        self._input = b""
        self._chunked = False
        self._text = b""  # of an event stream, out of its chunks

    async def send(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def head(self) -> Response:
        """The next response without its body, whose pieces are still to come."""
        head = await self._until(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        return Response(status, [(name.lower(), value) for name, value in pairs], b"")

    async def piece(self) -> bytes:
        """The next chunk of a body; none at its end. EOFError where the connection ends before."""
        return await self._chunk()

    async def response(self, *, head_only: bool = False) -> Response:
        """The next response; ``head_only`` where it answers HEAD."""
        response = await self.head()
        status = response.status
        if response.header("content-type") == "text/event-stream" and status == 200:
            self._chunked = response.header("transfer-encoding") == "chunked"
            if response.header("content-length") is None:
                return response  # blocks() has the rest
        if head_only or status in (100, 204):
            return response
        length = response.header("content-length")
        if length is not None:
            response.body = await self._exactly(int(length))
        elif response.header("transfer-encoding") == "chunked":
            while piece := await self._chunk():
                response.body += piece
        else:
            response.body = await self.to_end()
        return response

    async def to_end(self) -> bytes:
        """All that comes until the peer ends the connection."""
        with trio.fail_after(PATIENCE):
            while data := await self.stream.receive_some(READ_BYTES):
                self._input += data
        data, self._input = self._input, b""
        return data

    async def ended(self) -> bool:
        """Wait for the end of the connection, in order or not, discarding what comes before."""
        with trio.fail_after(PATIENCE):
            try:
                while await self.stream.receive_some(READ_BYTES):
                    pass
            except trio.BrokenResourceError:
                pass
        return True

    async def opened(self) -> dict[str, object]:
        """What ``connected`` says, after the head of the stream, and that it sets ``retry:``."""
        response = await self.response()
        assert response.status == 200, response.body
        connected = await self.block()
        assert connected.event == "connected"
        assert "retry" in connected.fields
        return {**connected.json, "id": connected.id}

    async def block(self) -> Block:
        """The next block of the stream; EOFError at its end."""
        while b"\n\n" not in self._text:
            piece = await (self._chunk() if self._chunked else self._some())
            if not piece:
                assert not self._text, "the stream ended within a block"
                raise EOFError
            self._text += piece
        text, _, self._text = self._text.partition(b"\n\n")
        block = Block()
        for line in text.decode().split("\n"):
            name, _, value = line.partition(": ")
            if name == "data":
                block.data = value if block.data is None else f"{block.data}\n{value}"
            else:
                block.fields[name] = value
        return block

    async def event(self, *skipped: str) -> Block:
        """The next block but for keepalives and those named."""
        while (block := await self.block()).event in ("keepalive", *skipped):
            pass
        return block

    async def blocks(self) -> list[Block]:
        """All blocks up to the end of the stream."""
        found = []
        try:
            while True:
                found.append(await self.block())
        except EOFError:
            return found

    async def aclose(self) -> None:
        await self.socket_stream.aclose()

    async def _some(self) -> bytes:
        if self._input:
            data, self._input = self._input, b""
            return data
        with trio.fail_after(PATIENCE):
            return bytes(await self.stream.receive_some(READ_BYTES))

    async def _more(self) -> None:
        with trio.fail_after(PATIENCE):
            data = await self.stream.receive_some(READ_BYTES)
        if not data:
            raise EOFError
        self._input += data

    async def _until(self, marker: bytes) -> bytes:
        while marker not in self._input:
            await self._more()
        found, _, self._input = self._input.partition(marker)
        return found

    async def _exactly(self, size: int) -> bytes:
        while len(self._input) < size:
            await self._more()
        data, self._input = self._input[:size], self._input[size:]
        return data

    async def _chunk(self) -> bytes:
        size = int(await self._until(b"\r\n"), 16)
        data = await self._exactly(size)
        assert await self._exactly(2) == b"\r\n"
        return data


class Gateway:
    """A running node, and clients for it."""

    def __init__(
        self, node: Node, reception: Reception, certificate: Certificate | None, port: int
    ) -> None:
        self.node = node
        self.edge = reception.edge
        self.admin_edge = reception.admin_edge
        self.front = reception.front
        self.certificate = certificate
        self.port = port
        self.admin_port = 0
        self.tls: ssl.SSLContext | None = None
        """What new connections speak; nothing: plain HTTP."""
        self.preamble = b""
        """What new connections begin with."""
        self._wires: list[Wire] = []

    async def connect(self, *, receive_buffer: int | None = None, admin: bool = False) -> Wire:
        """A new connection; with a receive buffer of that many bytes it is one that stalls."""
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(SOL_SOCKET, SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", self.admin_port if admin else self.port))
        stream, tls = trio.SocketStream(sock), None
        if self.preamble and not admin:
            await stream.send_all(self.preamble)
        if self.tls is not None and not admin:
            # Its close_notify is asked for: an answer must not end where somebody has cut it.
            tls = trio.SSLStream(stream, self.tls, server_hostname="localhost")
        wire = Wire(stream, tls)
        self._wires.append(wire)
        if tls is not None:
            with trio.fail_after(PATIENCE):
                await tls.do_handshake()
        return wire

    async def ask(self, raw: bytes, *, head_only: bool = False, admin: bool = False) -> Response:
        """The one response to ``raw`` on a connection of its own."""
        wire = await self.connect(admin=admin)
        await wire.send(raw)
        response = await wire.response(head_only=head_only)
        await wire.aclose()
        return response

    async def open(self, target: str, *headers: bytes, version: str = "1.1") -> Wire:
        """An event stream whose head has not been read yet."""
        wire = await self.connect()
        await wire.send(request("GET", target, ACCEPT, *headers, version=version))
        return wire

    async def publish(self, channel: str, data: str, query: str = "") -> str:
        """The position of a new event."""
        answer = await self.ask(request("POST", f"/publish/{channel}{query}", body=data.encode()))
        assert answer.status == 202, answer.body
        return str(answer.json["id"])

    async def publish_as(self, channel: str, data: str, token: str) -> str:
        """The position of a new event that the bearer of ``token`` publishes."""
        header = f"Authorization: Bearer {token}\r\n".encode()
        answer = await self.ask(request("POST", f"/publish/{channel}", header, body=data.encode()))
        assert answer.status == 202, answer.body
        return str(answer.json["id"])

    async def quiet(self) -> None:
        """Wait until no connection, no request and no stream is left on the node."""
        await until(
            lambda: (
                not (self.front._connections or self.node.hub.open_streams)
                and not (self.edge._open or self.admin_edge._open)
            )
        )

    async def clients(self, count: int) -> None:
        """Wait until ``count`` streams are open."""
        await until(lambda: self.node.hub.statistics().clients == count)

    async def close_wires(self) -> None:
        for wire in self._wires:
            await wire.aclose()


def request(
    method: str, target: str, *headers: bytes, body: bytes | None = None, version: str = "1.1"
) -> bytes:
    """One request as bytes; header lines with their CRLF."""
    start = f"{method} {target} HTTP/{version}\r\n".encode()
    if body is not None:
        headers = (*headers, b"Content-Length: %d\r\n" % len(body))
    return start + HOST + b"".join(headers) + b"\r\n" + (body or b"")


async def until(true: Callable[[], bool]) -> None:
    """Wait for what the node does by itself and tells nobody of."""
    with trio.fail_after(PATIENCE):
        while not true():  # noqa: ASYNC110  # there is no event for it
            await trio.sleep(0.002)


@asynccontextmanager
async def running(
    *,
    max_clients: int = 1000,
    max_connections: int = 2000,
    tracing: Any = None,
    **settings: object,
) -> AsyncIterator[Gateway]:
    """A node with these settings (fields of Config), until the block is left."""
    config = replace(Config(bind="127.0.0.1:0", node_id="test"), **settings)  # type: ignore[arg-type]
    served = Certificate(config) if config.tls_cert else None
    listener = listen(config)
    [admin] = listen_for_admin(config, 1)
    try:
        node = Node(config, max_clients=max_clients, certificate=served, tracing=tracing)
        reception = Reception(node, served, max_connections=max_connections)
        front = reception.front
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            await nursery.start(reception.run)
            nursery.start_soon(front.accept, listener, nursery, reception.begin)
            gateway = Gateway(node, reception, served, listener.getsockname()[1])
            if admin is not None:
                gateway.admin_port = admin.getsockname()[1]
                nursery.start_soon(front.accept, admin, nursery, reception.begin_admin)
            try:
                yield gateway
            finally:
                for client in (*node.hub.members.clients.values(), *node.hub._behind):
                    node.hub.close(client, Reason.DRAINING)
                reception.abort()
                nursery.cancel_scope.cancel()
        await gateway.close_wires()  # not before: it would release who waits for them
    finally:
        for each in (listener, admin):
            if each is not None:
                trio.lowlevel.notify_closing(each)
                each.close()


@asynccontextmanager
async def running_over_tls(certificate: Files, **settings: Any) -> AsyncIterator[Gateway]:
    """As `running`, with that certificate, which all clients believe."""
    async with running(**certificate.settings, **settings) as gateway:
        gateway.tls = certificate.client()
        yield gateway


def descriptors() -> int:
    """How many descriptors the process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def tasks() -> int:
    """How many tasks the trio run has."""
    return trio.lowlevel.current_statistics().tasks_living


def is_position(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[0-9]+-[0-9]+", text) is not None


def joined(lines: Iterable[object]) -> bytes:
    """NDJSON of ``lines``."""
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
