"""What was missed on many channels, merged into the one order, in rounds of bounded size.

A round reads a page of each channel and gives out what all pages reach. Where that is too much to
hold, it looks less far: `Round.until` comes down until what is held is little enough.
"""

from collections.abc import Sequence

from gateway.bus import History
from gateway.event import Frame
from gateway.position import Position

ROUND_FRAMES = 10_000
"""Read in one round, divided among the channels; one of each at least."""

ROUND_BYTES = 16 * 1024 * 1024


class Round:
    def __init__(self, until: Position) -> None:
        self.until = until
        """Everything that is held up to here, and everything there is, is in ``frames``."""
        self._frames: dict[Position, Frame] = {}
        self._bytes = 0

    def add(self, page: History) -> None:
        """The page of one channel."""
        if not page.complete:
            last = page.frames[-1].position if page.frames else page.previous
            self.until = min(self.until, last)
        for frame in page.frames:
            if frame.position <= self.until and frame.position not in self._frames:
                self._frames[frame.position] = frame
                self._bytes += len(frame.chunk)
        while self._bytes > ROUND_BYTES and len(self._frames) > 1:
            self._halve()

    def frames(self) -> Sequence[Frame]:
        """In position order."""
        return [self._frames[at] for at in sorted(self._frames) if at <= self.until]

    def _halve(self) -> None:
        order = sorted(self._frames)
        self.until = min(self.until, order[(len(order) - 1) // 2])
        self._frames = {at: self._frames[at] for at in order if at <= self.until}
        self._bytes = sum(len(frame.chunk) for frame in self._frames.values())
