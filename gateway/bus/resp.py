"""One connection to Redis: hiredis packs commands and parses replies, trio moves the bytes.

1. At most READ_BYTES are fed at a time: what is held of unread replies is bounded by the largest.
2. Error replies are values (`hiredis.ReplyError`); only a broken connection raises.
3. Replies that were whole before it broke are given out first, however they arrived.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import hiredis
import trio

READ_BYTES = 64 * 1024

SHOWN = 200
"""Characters of what should not have come, where that is told."""

Reply: TypeAlias = Any
"""bytes, int, None, a list of replies, or a `hiredis.ReplyError`."""

Argument: TypeAlias = str | bytes | int | float

LINK_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)
"""What a connection that cannot be made or kept raises, LinkLost among it."""


_UNREADABLE = (hiredis.ProtocolError, TypeError, MemoryError)
"""What hiredis raises: the last two for a map whose key is a map, of a protocol that we do not ask
for, and for a length beyond all memory."""

_NOT_YET = object()
"""What hiredis gives for a reply that is not whole; its default, False, can be a reply."""


class LinkLost(ConnectionError):
    """The connection is no longer there, or not worth keeping."""


def pack(*arguments: Argument) -> bytes:
    packed: bytes = hiredis.pack_command(arguments)  # type: ignore[arg-type]  # any length
    return packed


def code(error: hiredis.ReplyError) -> str:
    """The word with which an error reply begins: MOVED, NOSCRIPT, OOM, ..."""
    return str(error).partition(" ")[0]


def must(reply: Reply) -> Reply:
    """The reply; raises LinkLost where it is that Redis refuses."""
    if isinstance(reply, hiredis.ReplyError):
        raise LinkLost(f"Redis refuses: {reply}")
    return reply


class Connection:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._read: list[Reply] = []
        self._broken: str | None = None

    async def send(self, data: bytes) -> None:
        """Raises one of LINK_ERRORS."""
        await self._stream.send_all(data)

    async def receive(self) -> Sequence[Reply]:
        """The next replies, at least one. Raises one of LINK_ERRORS."""
        if self._read:
            read, self._read = self._read, []
            return read
        replies: list[Reply] = []
        while not replies:
            if self._broken is not None:
                raise LinkLost(f"what came is not of Redis: {self._broken}")
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                raise LinkLost("Redis has closed the connection")
            try:
                self._reader.feed(bytes(data))
                while (reply := self._reader.gets()) is not _NOT_YET:
                    replies.append(reply)
            except _UNREADABLE as error:
                self._broken = str(error)[:SHOWN]
        return replies

    async def call(self, *arguments: Argument) -> Reply:
        """One command and its reply, while nothing else is under way. Error replies too."""
        await self.send(pack(*arguments))
        first, *self._read = await self.receive()
        return first

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)
