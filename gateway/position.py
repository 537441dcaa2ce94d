"""Positions: places in the one order of all events of a bus.

A position is what ``id:`` and ``Last-Event-ID`` carry. Rules that hold everywhere:

1. Positions strictly increase over all channels of a bus and compare as pairs of integers.
2. Each position has exactly one text, ``<ms>-<seq>``: ASCII, URL-safe, at most 41 bytes of the
   fewer than 128 that clients are promised. They are opaque to clients.
3. Text of any other shape is not an error: it is reserved, and reads as "unknown".
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

MAX_PART = 2**64 - 1
"""The greatest ``ms`` and ``seq``: positions are also Redis stream ids, two unsigned 64 bits."""

_GRAMMAR = re.compile(r"(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})")
_CLOSED = ".closed"


class Position(NamedTuple):
    """One place: milliseconds of the bus's clock, and the order within that millisecond."""

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """The position that ``str()`` writes as ``text``; None where there is none."""
        match = _GRAMMAR.fullmatch(text)
        if match is None:
            return None
        position = cls(int(match[1]), int(match[2]))
        return position if max(position) <= MAX_PART else None

    def before(self) -> "Position":
        """The greatest position smaller than this one; ZERO for ZERO."""
        if self.seq > 0:
            return Position(self.ms, self.seq - 1)
        if self.ms > 0:
            return Position(self.ms - 1, MAX_PART)
        return self


ZERO = Position(0, 0)
"""Before every event."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A client that was told at ``position`` to go for good, and came back all the same."""

    position: Position

    def __str__(self) -> str:
        """The event id that tells a client to go."""
        return f"{self.position}{_CLOSED}"


class Start(Enum):
    """Where a client wants to begin when it names no position."""

    EARLIEST = "earliest"
    NOW = "now"
    UNKNOWN = "unknown"
    """It named something, but nothing that we understand: tell it of a gap, go on from now."""


Resume: TypeAlias = Position | Closed | Start


def parse_resume(text: str) -> Resume:
    """The meaning of a ``Last-Event-ID`` or of its query value. Takes any text; never raises."""
    if text == Start.EARLIEST.value:
        return Start.EARLIEST
    if text == Start.NOW.value:
        return Start.NOW
    position = Position.parse(text.removesuffix(_CLOSED))
    if position is None:
        return Start.UNKNOWN
    return Closed(position) if text.endswith(_CLOSED) else position
