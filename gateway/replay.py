"""What a returning client missed, in pages: history of several channels merged into the one order.

`Replay` decides what is in a page and which channels have a gap; it reads through the bus and never
sees a socket. Rules:

1. Frames of a page are in position order, each once, and none is later than ``reached``; all of
   the client's channels have been read up to there.
2. A channel has a gap if, and only if, the bus names a position before its first frame that is
   later than where the client stands. It is told once.
3. A page is bounded in frames and bytes, whatever the history holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import trio

from gateway.bus import Bus, History, Source
from gateway.event import Frame
from gateway.position import ZERO, Position

PAGE_FRAMES = 256
"""Frames read at a time, divided among the client's channels."""

MIN_PART = 8
"""Frames read of each channel at least, however many there are."""

MAX_NEWEST = 1000
"""Events that ``replay=N`` begins with at most: what a channel keeps by default."""

PAGE_BYTES = 64 * 1024
"""Bytes that a page holds on to while a slow client reads it, but for a single larger frame."""


_DISTANCE = {source: distance for distance, source in enumerate(Source)}


@dataclass(frozen=True, slots=True)
class Page:
    """Frames in position order; the channels with a gap before them; how far this page reaches."""

    frames: Sequence[Frame]
    gaps: Sequence[str]
    reached: Position


class Replay:
    """The merged history of one client's channels after a position.

    With ``fresh`` nothing was missed: the position is where the bus stands. With ``forgiving`` the
    client wants to begin where history does: it is no gap that something was trimmed before.
    """

    def __init__(
        self,
        after: Position,
        *,
        fresh: bool = False,
        forgiving: bool = False,
        source: Source = Source.MEMORY,
    ) -> None:
        """``source`` is where ``after`` was found, if it was looked for in history."""
        self.fresh = fresh
        self.source = source
        """The furthest from where anything was read so far."""
        self.reached = after
        self.begun = fresh
        """Whether history has been looked at, as it must be at least once to know of a gap."""
        self._forgiving = forgiving
        self._proven: dict[str, Position] = {}  # beyond `reached`, after a gap that has been told

    async def page(self, bus: Bus, channels: Mapping[str, Position], until: Position) -> Page:
        """What comes next up to ``until``, of each channel after its own position at least."""
        after = {
            name: max(self.reached, floor, self._proven.get(name, ZERO))
            for name, floor in channels.items()
        }
        found: dict[str, History] = {}
        share = max(MIN_PART, PAGE_FRAMES // max(1, len(channels)))
        for name, position in after.items():
            part = found[name] = await bus.history(name, position, until, share)
            self.source = furthest(self.source, part.source)
        gaps = [name for name, part in found.items() if part.previous > after[name]]
        for name in gaps:
            self._proven[name] = found[name].previous
        frames, reached = cut(*merge(found.values(), until))
        page = Page(frames, () if self._forgiving else gaps, reached)
        self._forgiving = False
        self.begun = True
        self.reached = page.reached
        return page


def merge(parts: Iterable[History], until: Position) -> tuple[Sequence[Frame], Position]:
    """The frames of all ``parts`` in one order, and how far they are complete.

    A part that is cut short bounds the others: nothing later than its last frame is given out.
    An event of several channels stands in several parts, and once in the result.
    """
    parts = tuple(parts)
    reached = min((p.frames[-1].position for p in parts if not p.complete), default=until)
    frames = {f.position: f for p in parts for f in p.frames if f.position <= reached}
    return [frames[position] for position in sorted(frames)], reached


def cut(frames: Sequence[Frame], reached: Position) -> tuple[Sequence[Frame], Position]:
    """As many of ``frames`` as a page may hold, at least one; and how far these reach."""
    size = 0
    for count, frame in enumerate(frames):
        size += len(frame.chunk)
        if size > PAGE_BYTES and count:
            return frames[:count], frames[count - 1].position
    return frames, reached


def furthest(*sources: Source) -> Source:
    """Of several sources the one that costs the most to read."""
    return max(sources, key=_DISTANCE.__getitem__)


async def before_newest(bus: Bus, channels: Iterable[str], count: int, head: Position) -> Position:
    """The position after which the last ``count`` events of the merged channels come.

    Of more than MAX_NEWEST only so many; ``head``, the H of the join, if there are none.
    """
    count = min(count, MAX_NEWEST)
    newest: list[Position] = []
    for name in channels if count else ():
        found = {frame.position for frame in await bus.newest(name, count)}
        newest = sorted(found.union(newest))[-count:]
        await trio.lowlevel.checkpoint()
    return newest[0].before() if newest else head


async def before_earliest(
    bus: Bus, channels: Iterable[str], head: Position
) -> tuple[Position, Source]:
    """The position after which everything comes that the merged channels still hold up to H; and
    the furthest from where it was read.
    """
    found = [await bus.history(name, ZERO, head, 1) for name in channels]
    firsts = (part.frames[0].position.before() for part in found if part.frames)
    return min(firsts, default=head), furthest(*(part.source for part in found))
