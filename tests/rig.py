"""A node without HTTP: real socket pairs, a wall clock in the test's hands, and readers.

A socket pair hands over what is written at once, so `settled` (all tasks blocked) means that
nothing more will come until the test does something. Nothing here waits for time to pass.
"""

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from unittest.mock import patch

import msgspec
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.bus import History
from gateway.bus.memory import MemoryBus
from gateway.config import ChannelRule, Config
from gateway.event import Event, Frame
from gateway.hub_client import Client
from gateway.identity import ANYBODY, Identity
from gateway.node import Node
from gateway.policy import Policy
from gateway.position import ZERO, Position, Resume, Start
from gateway.sse import Parser, ServerSentEvent
from gateway.streams import EventStream

EPOCH = 1_000_000_000
"""Where the wall clock of a rig begins, in ms: far enough from 0 for all ages."""

CONTROL = {"closed", "connected", "gap", "dropped", "reconnect"}

SMALLEST_BUFFER = 1
"""The kernel makes of it the smallest socket buffer that it has."""


class AwaitingBus(MemoryBus):
    """A MemoryBus that takes its time to answer, as one with a network does."""

    async def subscribe(self, channels: Collection[str], after: Position = ZERO) -> Position:
        await trio.lowlevel.checkpoint()
        head = await super().subscribe(channels, after)
        await trio.lowlevel.checkpoint()
        return head

    async def history(self, channel: str, after: Position, until: Position, limit: int) -> History:
        await trio.lowlevel.checkpoint()
        history = await super().history(channel, after, until, limit)
        await trio.lowlevel.checkpoint()
        return history

    async def newest(self, channel: str, limit: int) -> Sequence[Frame]:
        await trio.lowlevel.checkpoint()
        newest = await super().newest(channel, limit)
        await trio.lowlevel.checkpoint()
        return newest

    async def ended(self, channel: str) -> Position | None:
        await trio.lowlevel.checkpoint()
        ended = await super().ended(channel)
        await trio.lowlevel.checkpoint()
        return ended


def rule(match: str, policy: Policy = Policy.DROP, *, history: int = 1000) -> ChannelRule:
    return ChannelRule(match, policy, history, 1024 * 1024, 300.0)


class Dechunker:
    """The data of a chunked body, however it is cut; `ended` once the last chunk has come."""

    def __init__(self) -> None:
        self.ended = False
        self._buffer = b""

    def receive_data(self, data: bytes) -> bytes:
        """Whole chunks only, so that what is cut counts for nothing, as it does for a browser."""
        self._buffer += data
        parts = []
        while not self.ended:
            size, found, rest = self._buffer.partition(b"\r\n")
            length = int(size, 16) if found else 0
            if not found or len(rest) < length + 2:
                break
            assert rest[length : length + 2] == b"\r\n"
            parts.append(rest[:length])
            self.ended = length == 0
            self._buffer = rest[length + 2 :]
        return b"".join(parts)


class Reader:
    """The events of a stream, told apart as data and control, and the id to resume from."""

    def __init__(self) -> None:
        self.events: list[ServerSentEvent] = []
        self.ids: list[str] = []
        self.received = bytearray()
        self._parser = Parser()

    def receive_data(self, data: bytes) -> None:
        """Fed line by line, to see the id after each block."""
        self.received += data
        for line in data.splitlines(keepends=True):
            self.events += self._parser.receive_data(line)
            if self._parser.last_event_id not in ("", *self.ids[-1:]):
                self.ids.append(self._parser.last_event_id)

    @property
    def last_event_id(self) -> str:
        return self._parser.last_event_id

    @property
    def data(self) -> list[str]:
        """The data of all events but control events."""
        return [event.data for event in self.events if event.event not in CONTROL]

    @property
    def types(self) -> list[str]:
        return [event.event for event in self.events]

    def told(self, name: str) -> list[dict[str, object]]:
        """The documents of a control event."""
        return [
            msgspec.json.decode(event.data, type=dict[str, object])
            for event in self.events
            if event.event == name
        ]

    @property
    def dropped(self) -> int:
        """Of how many events the absence was told."""
        return sum(int(str(document["count"])) for document in self.told("dropped"))

    @property
    def gaps(self) -> list[tuple[list[str], str]]:
        return [
            (msgspec.convert(document["channels"], list[str]), str(document["reason"]))
            for document in self.told("gap")
        ]


@dataclass
class Peer(Reader):
    """A client of the direct lane, and the far end of its socket."""

    client: Client
    sock: socket.socket

    def __post_init__(self) -> None:
        super().__init__()
        self._chunks = Dechunker()
        self.eof = False

    def read(self, size: int) -> int:
        """Read at most ``size`` bytes of what is there; how many there were."""
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return 0
        except ConnectionResetError:
            data = b""
        self.eof = self.eof or not data
        self.receive_data(self._chunks.receive_data(data))
        return len(data)

    async def read_all(self) -> None:
        """Read until nothing more comes."""
        await wait_all_tasks_blocked()
        while self.read(64 * 1024):
            await wait_all_tasks_blocked()

    @property
    def ended(self) -> bool:
        """Whether the stream ended well, with its last chunk."""
        return self._chunks.ended

    def check_counters(self) -> None:
        client = self.client
        assert client.offered == client.written + client.dropped + client.queued


class Rig:
    def __init__(self, config: Config, nursery: trio.Nursery) -> None:
        self.wall = EPOCH
        self.node = Node(config, max_clients=1_000_000, now_ms=lambda: self.wall)
        self.hub = self.node.hub
        self.bus = self.node.bus
        self.nursery = nursery
        self.peers: list[Peer] = []

    async def open(
        self,
        *channels: str,
        resume: Resume | int = Start.NOW,
        user: str | None = None,
        buffer: int = SMALLEST_BUFFER,
        identity: Identity = ANYBODY,
        annotated: bool = False,
    ) -> Peer:
        """A client whose first blocks are under way; nothing has been read yet."""
        near, far = socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        near.setblocking(False)
        far.setblocking(False)
        stream = EventStream(channels, user, resume, identity, annotated=annotated)
        client = await self.node.streams.open(stream, near)
        self.nursery.start_soon(self.node.streams.serve, client)
        peer = Peer(client, far)
        self.peers.append(peer)
        return peer

    async def open_live(
        self,
        *channels: str,
        user: str | None = None,
        identity: Identity = ANYBODY,
        annotated: bool = False,
    ) -> Peer:
        """A client that is live and whose beginning has been read."""
        peer = await self.open(*channels, user=user, identity=identity, annotated=annotated)
        await peer.read_all()
        return peer

    async def publish(
        self,
        channels: str | Iterable[str],
        data: str,
        *,
        key: str | None = None,
        end: bool = False,
    ) -> Position:
        names = (channels,) if isinstance(channels, str) else tuple(channels)
        (position,) = await self.bus.publish([Event(names, data, key=key, end=end)])
        assert isinstance(position, Position)
        return position

    def add(self, peer: Peer, name: str, since: Resume | None = None) -> None:
        self.nursery.start_soon(self.node.streams.add_channel, peer.client, name, since)

    def check_counters(self) -> None:
        for peer in self.peers:
            peer.check_counters()


class BodyReader(Reader):
    """A writer of the response lane that takes what it is given while it is not stalled."""

    def __init__(
        self,
        rig: Rig,
        *channels: str,
        resume: Resume | int = Start.NOW,
        annotated: bool = False,
    ) -> None:
        super().__init__()
        self.rig = rig
        self.body: AsyncGenerator[bytes, None] = rig.node.streams.body(
            EventStream(channels, None, resume, annotated=annotated)
        )
        self.ended = False
        self.scope = trio.CancelScope()
        self.go = trio.Event()
        self.go.set()

    async def run(self) -> None:
        with self.scope:
            async with aclosing(self.body) as body:
                async for data in body:
                    self.receive_data(data)
                    await self.go.wait()
            self.ended = True

    @property
    def client(self) -> Client:
        (client,) = self.rig.hub.members.clients.values()
        return client

    def check_counters(self) -> None:
        client = self.client
        assert client.offered == client.written + client.dropped + client.queued


async def read_body(
    rig: Rig, *channels: str, resume: Resume | int = Start.NOW, annotated: bool = False
) -> BodyReader:
    reader = BodyReader(rig, *channels, resume=resume, annotated=annotated)
    rig.nursery.start_soon(reader.run)
    await wait_all_tasks_blocked()
    return reader


@asynccontextmanager
async def running(config: Config, bus: type[MemoryBus] = MemoryBus) -> AsyncIterator[Rig]:
    async with trio.open_nursery() as nursery:
        with patch("gateway.node.MemoryBus", bus):
            rig = Rig(config, nursery)
        await nursery.start(rig.node.run)
        try:
            yield rig
        finally:
            nursery.cancel_scope.cancel()
            for peer in rig.peers:
                peer.sock.close()
                assert peer.client.sock is not None
                peer.client.sock.close()
