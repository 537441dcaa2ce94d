"""The recent frames of one channel.

Bounded in frames, bytes and age; the oldest go first. Reading is a binary search by position, so a
long replay costs the same per page wherever it stands.

1. ``previous`` is always the position before the oldest frame held: what proves a gap, or none.
2. A ring of no frames still knows its last position: ``previous`` is then equal to ``last``.
3. ``reaches`` is the earliest position after which the ring can tell what there is, or was.
4. ``bytes`` is charged at any time, until the ring is let go.
"""

import sys
from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter

from gateway.bus import History
from gateway.charge import Charge
from gateway.event import FRAME_OVERHEAD, Frame
from gateway.position import Position

_UNCHARGED = Charge(sys.maxsize)

_position = attrgetter("position")


class Ring:
    __slots__ = (
        "_charge",
        "_frames",
        "_start",
        "bytes",
        "last",
        "max_bytes",
        "max_frames",
        "previous",
        "reaches",
    )

    def __init__(
        self, previous: Position, *, max_frames: int, max_bytes: int, charge: Charge
    ) -> None:
        """``previous`` is the latest position that an event forgotten by now could have had."""
        self._frames: list[Frame] = []
        self._start = 0
        self.bytes = 0
        self.previous = self.reaches = previous
        self.last = previous
        self.max_frames = max_frames
        self.max_bytes = max_bytes
        self._charge = charge

    def __len__(self) -> int:
        return len(self._frames) - self._start

    def append(self, frame: Frame) -> None:
        """Keep ``frame``, which is later than all held."""
        before = self.bytes
        self._frames.append(frame)
        self.bytes += len(frame.chunk) + FRAME_OVERHEAD
        self.last = frame.position
        if len(self._frames) - self._start > self.max_frames or self.bytes > self.max_bytes:
            self._keep_bounds()
        self._charge.keep(self.bytes - before)

    def has_before(self, oldest: Position) -> bool:
        """Whether any frame is older than that."""
        return bool(len(self)) and self._frames[self._start].position < oldest

    def expire(self, oldest: Position, limit: int) -> None:
        """Forget frames before ``oldest``, at most ``limit`` of them."""
        before = self.bytes
        for _ in range(limit):
            if not self.has_before(oldest):
                break
            self._drop_oldest()
        self._charge.keep(self.bytes - before)

    def cut(self, keep: int, limit: int) -> int:
        """Forget the oldest frames until no more than ``keep`` bytes are held, at most ``limit`` of
        them; how many that were.
        """
        before, count = self.bytes, 0
        while self.bytes > keep and count < limit:
            self._drop_oldest()
            count += 1
        self._charge.keep(self.bytes - before)
        return count

    def clear(self) -> None:
        """Forget all frames."""
        self._charge.keep(-self.bytes)
        self._frames.clear()
        self._start = self.bytes = 0
        self.previous = self.reaches = self.last

    def let_go(self) -> None:
        """Nobody will read it any more: nothing of it is charged from here on, whatever comes."""
        self.clear()
        self._charge = _UNCHARGED

    def prepend(self, frames: Sequence[Frame], previous: Position, reaches: Position) -> None:
        """Put what came before the oldest frame in front, as far as there is room.

        ``frames`` are all that history holds in (reaches, what the ring knew before].
        """
        before = self.bytes
        self._frames = [*frames, *self._frames[self._start :]]
        self._start = 0
        self.bytes += sum(len(frame.chunk) + FRAME_OVERHEAD for frame in frames)
        self.previous, self.reaches = previous, reaches
        self._keep_bounds()
        self._charge.keep(self.bytes - before)

    def history(self, after: Position, until: Position, limit: int) -> History:
        """The oldest frames in (after, until], at most ``limit``."""
        frames = self._frames
        low = bisect_right(frames, after, lo=self._start, key=_position)
        end = bisect_right(frames, until, lo=low, key=_position)
        high = min(low + limit, end)
        previous = self.previous if low == self._start else frames[low - 1].position
        return History(frames[low:high], previous, complete=high == end)

    def newest(self, limit: int) -> Sequence[Frame]:
        """The last ``limit`` frames, oldest first."""
        return self._frames[max(self._start, len(self._frames) - limit) :]

    def _keep_bounds(self) -> None:
        while len(self) > self.max_frames or self.bytes > self.max_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        frame = self._frames[self._start]
        self.previous = self.reaches = frame.position
        self.bytes -= len(frame.chunk) + FRAME_OVERHEAD
        self._start += 1
        if self._start * 8 > len(self._frames):  # keeps at most an eighth beyond the bound
            del self._frames[: self._start]
            self._start = 0
