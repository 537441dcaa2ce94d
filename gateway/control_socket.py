"""The control socket between the supervisor and a worker: whole messages, both ways.

1. A message is its length in four bytes and MessagePack. One that is too long or none of ours is an
   error, after which nothing more can be read.
2. Sending never waits: messages queue for `write`, at most MAX_WAITING of them. Who sends keeps to
   one of a kind under way, so that a full queue means a peer that breaks the rules.
3. The Config travels here and never in arguments or the environment, which others can read.
"""

import socket
from contextlib import suppress
from typing import Generic, TypeVar

import msgspec
import trio

from gateway.config import Config
from gateway.node import NodeStatistics

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Far beyond a Config with thousands of channel rules, the longest message there is."""

MAX_WAITING = 8
"""Messages that wait to be written; more than the kinds that either side sends."""

READ_BYTES = 64 * 1024

_LENGTH_BYTES = 4


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker: which it is, and all that it is told."""

    number: int
    config: Config


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Leave as on SIGTERM. No signal: a worker may get that too, and a second one ends it."""


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Send an `Own`."""


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The statistics of the whole node, to the one `Question` that is open.

    None as long as no worker has told any.
    """

    node: NodeStatistics | None


class Gone(msgspec.Struct, frozen=True, tag=True):
    """The process of the worker with the tag ``worker`` has ended: no other node need wait for it.

    One of these may be lost; then the bus finds out by itself, later.
    """

    worker: str


class Reload(msgspec.Struct, frozen=True, tag=True):
    """Do as on SIGHUP."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker serves; ``worker`` is its tag."""

    worker: str


class Left(msgspec.Struct, frozen=True, tag=True):
    """The worker has emptied its accept queue and accepts no more: another one can."""


class Leave(msgspec.Struct, frozen=True, tag=True):
    """Drain the whole node: a worker was asked for that. It says so once."""


class Own(msgspec.Struct, frozen=True, tag=True):
    """The worker's own statistics: an answer to `Ask`, and its last words."""

    statistics: NodeStatistics


class Question(msgspec.Struct, frozen=True, tag=True):
    """Send an `Answer` that is no older than this. A worker has one question open at a time."""


ToWorker = Start | Drain | Ask | Answer | Gone | Reload
ToSupervisor = Ready | Left | Leave | Own | Question

Received = TypeVar("Received", ToWorker, ToSupervisor)

_ENCODER = msgspec.msgpack.Encoder()


class ControlError(Exception):
    """The peer sent what is no message."""


class ControlSocket(Generic[Received]):
    """One end, which receives messages of one direction, in an ``async for``.

    The loop ends when the peer has closed its end or is gone; it raises ControlError.
    """

    def __init__(self, sock: socket.socket, received: object) -> None:
        """``received`` is ToWorker or ToSupervisor."""
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(received)
        self._outgoing, self._waiting = trio.open_memory_channel[bytes](MAX_WAITING)
        self._input = bytearray()

    def send_nowait(self, message: ToWorker | ToSupervisor) -> None:
        """Queue ``message`` for `write`; to a peer that is gone it is nothing.

        Raises trio.WouldBlock when MAX_WAITING messages wait.
        """
        data = _ENCODER.encode(message)
        with suppress(trio.BrokenResourceError):  # the loop over what is received ends as well
            self._outgoing.send_nowait(len(data).to_bytes(_LENGTH_BYTES, "big") + data)

    def finish(self) -> None:
        """Nothing more is sent: `write` returns when all has been written."""
        self._outgoing.close()

    async def write(self) -> None:
        """Write what is sent, until `finish` or until the peer is gone."""
        async with self._waiting:
            try:
                async for data in self._waiting:
                    await self._stream.send_all(data)
            except trio.BrokenResourceError:
                pass

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> "ControlSocket[Received]":
        return self

    async def __anext__(self) -> Received:
        head = await self._exactly(_LENGTH_BYTES)
        length = int.from_bytes(head, "big")
        if length > MAX_MESSAGE_BYTES:
            raise ControlError(f"a message of {length} bytes")
        try:
            return self._decoder.decode(await self._exactly(length))
        except msgspec.DecodeError as error:
            raise ControlError(str(error)) from error

    async def _exactly(self, size: int) -> bytes:
        """The next ``size`` bytes; a message that is cut short counts for nothing."""
        while len(self._input) < size:
            try:
                data = await self._stream.receive_some(READ_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise StopAsyncIteration
            self._input += data
        found = bytes(self._input[:size])
        del self._input[:size]
        return found
