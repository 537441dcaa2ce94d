"""What a publisher sends, and the frame it becomes.

An `Event` is what was asked for; a `Frame` is that event rendered once, with its position, and
shared by all of its receivers and by history. Frames never change. Both are kept out of the garbage
collector's sight, positions apart (they hold no cycles): a node keeps hundreds of thousands.
"""

from collections.abc import Collection

import msgspec

from gateway import sse
from gateway.position import Position

MAX_LABEL = 200
"""Characters in an event type, a conflation key or a publisher's id: as long as a channel name."""

FRAME_OVERHEAD = 256
"""Bytes that a frame takes in memory beside its chunk: measured over 300,000 of them."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event before it has a position. ``channels`` are legal names, without repeats."""

    channels: tuple[str, ...]
    data: str
    type: str | None = None
    retry: int | None = None
    key: str | None = None
    """Conflation key: under the policy ``latest`` only the newest of a key waits."""
    id: str | None = None
    """The publisher's own id: a repeat within the window is not delivered again."""
    end: bool = False
    """The last event of its channels."""
    trace: str | None = None
    """What a publisher that traces is known by, where it is wanted: see `gateway.trace_context`."""


class Frame(msgspec.Struct, frozen=True, gc=False, eq=False):
    """An event as HTTP/1.1 chunk: size, CRLF, SSE block, CRLF; and what the fan-out must know.

    Each frame is a chunk of its own, so that a partial write cuts one frame and not a whole pass.
    """

    position: Position
    channels: tuple[str, ...]
    chunk: bytes
    prefix: int
    """Bytes of chunk framing before the SSE block."""
    id_line: int
    """Bytes of the ``id:`` line, with which the SSE block begins."""
    key: str | None = None
    end: bool = False
    trace: str | None = None

    @property
    def block(self) -> bytes:
        """The SSE block alone, for a writer that does its own framing."""
        return self.chunk[self.prefix : -2]

    def without_id(self) -> bytes:
        """The SSE block without its ``id:`` line, for events older than where the stream stands."""
        return self.chunk[self.prefix + self.id_line : -2]

    def with_at(self) -> bytes:
        """The SSE block with ``at:`` in the place of ``id:``, for the same in annotated streams."""
        return b"at" + self.chunk[self.prefix + len("id") : -2]

    def annotated(self, channels: Collection[str]) -> "Frame":
        """The same with a line ``channel:`` behind its id, which names those of its channels that
        are among ``channels``; without one where none is."""
        named = ",".join([name for name in self.channels if name in channels])
        if not named:
            return self
        start = self.prefix + self.id_line
        block = b"%bchannel: %b\n%b" % (
            self.chunk[self.prefix : start],
            named.encode(),
            self.chunk[start:-2],
        )
        framing = b"%x\r\n" % len(block)
        return Frame(
            self.position,
            self.channels,
            b"%b%b\r\n" % (framing, block),
            len(framing),
            self.id_line,
            self.key,
            self.end,
            self.trace,
        )


def render(event: Event, position: Position) -> Frame:
    """The frame of an event. Raises BadRequest when its type cannot be written as SSE."""
    identifier = f"{position[0]}-{position[1]}"
    block = sse.encode(event.data, event=event.type, id=identifier, retry=event.retry)
    framing = b"%x\r\n" % len(block)
    return Frame(
        position,
        event.channels,
        b"%b%b\r\n" % (framing, block),
        len(framing),
        len(identifier) + 5,
        event.key,
        event.end,
        event.trace,
    )
