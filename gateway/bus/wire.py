"""Events as nodes pass them on through Redis: what a message and an entry of history look like.

``1 <position> <previous> <bytes> <ended> <channels> <key>``, a line break, and the SSE block
without its id. The version and the two positions come first in every version to come, so that an
older node can tell where it must say that something is missing. The script of the bus writes the
head.

``<ended>`` is 1 or 0, and behind that, where the publisher is traced, a semicolon and what is
carried of it. Nodes from before that know only whether it is 1, so an event that ends its channels
carries none.
"""

from urllib.parse import unquote

from gateway import sse
from gateway.event import Event, Frame
from gateway.position import Position

VERSION = b"1"

KNOWN_EMPTY = b"~"
"""Before ``previous``: no event is known there, only that none has been since."""

_END = b"\n\n"
"""Of a block: what has lost it would take the next event into its own."""

_new = tuple.__new__  # of a Position: half the price

_ZERO = ord("0")
"""With which no number of a position begins, but for a whole ``seq``."""

MOST_TEXT = 28
"""Bytes of a position: what the scripts count with has 13 digits on either side."""

OWN_CHANNEL = "-"
"""For ``channels`` of an event that has but one."""


class Unreadable(ValueError):
    """A message of a version that this node does not know, or none at all."""

    def __init__(self, position: Position | None, previous: Position | None) -> None:
        super().__init__(f"unreadable at {position}")
        self.position = position
        self.previous = previous


def encode(event: Event) -> bytes:
    """What the script puts behind position, previous and bytes.

    Raises BadRequest when the event's type cannot be written as SSE.
    """
    channels = OWN_CHANNEL if len(event.channels) == 1 else ",".join(event.channels)
    ended = int(event.end) if event.trace is None else _traced(event.trace, end=event.end)
    head = f"{ended} {channels} {event.key or ''}\n".encode()
    return head + sse.encode(event.data, event=event.type, retry=event.retry)


def decode(payload: bytes, own: tuple[str, ...]) -> tuple[Frame, bytes, bytes]:
    """The frame of a message to the channel ``own``; its position, and the one before, as text.

    Raises Unreadable. Text, since that a message follows another shows without reading numbers.
    """
    head, _, body = payload.partition(b"\n")
    try:
        version, identifier, before, _, ended, channels, key = head.split(b" ", 6)
        if version != VERSION or not body.endswith(_END):
            raise _unreadable(head)
        ms, _, seq = identifier.partition(b"-")
        if not (ms.isdigit() and seq.isdigit()) or len(identifier) > MOST_TEXT:
            raise Unreadable(None, None)
        if ms[0] == _ZERO or (seq[0] == _ZERO and len(seq) > 1):  # a position has one text
            raise Unreadable(None, None)
        position = _new(Position, (int(ms), int(seq)))
        if channels != b"-":
            own = tuple(channels.decode("ascii").split(","))
        block = b"id: %b\n%b" % (identifier, body)
        framing = b"%x\r\n" % len(block)
        trace = None
        if len(ended) > 1:
            trace, ended = _trace(ended), ended[:1]
        frame = Frame(
            position,
            own,
            b"%b%b\r\n" % (framing, block),
            len(framing),
            len(identifier) + 5,
            key.decode("utf-8", "surrogateescape") if key else None,
            ended == b"1",
            trace,
        )
    except Unreadable:
        raise
    except ValueError:
        raise _unreadable(head) from None
    return frame, identifier, before


def position_of(text: bytes) -> Position:
    """A position as it stands in messages and keys, ``~`` before it or not. Raises Unreadable."""
    ms, _, seq = text.removeprefix(KNOWN_EMPTY).partition(b"-")
    if not (ms.isdigit() and seq.isdigit()) or len(text) > MOST_TEXT:
        raise Unreadable(None, None)
    return Position(int(ms), int(seq))


def is_known_empty(before: bytes) -> bool:
    """Whether a channel had been silent for its whole time before the message that says so."""
    return before.startswith(KNOWN_EMPTY)


def _traced(trace: str, *, end: bool) -> str:
    return "1" if end else "0;" + trace.replace("%", "%25").replace(" ", "%20")


def _trace(ended: bytes) -> str | None:
    """What is carried, if that is what stands behind whether it is the end."""
    return unquote(ended[2:].decode("ascii", "replace")) if ended[1:2] == b";" else None


def _unreadable(head: bytes) -> Unreadable:
    parts = head.split(b" ", 3)
    try:
        return Unreadable(position_of(parts[1]), position_of(parts[2]))
    except (ValueError, IndexError):
        return Unreadable(None, None)
