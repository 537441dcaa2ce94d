"""What the bus has delivered and no pass has taken yet: the hub's one queue, bounded in bytes.

At the bound whoever delivers waits (`room`), and is refused after a while. Frames are taken in the
order in which they came, as many at a time as one write to a socket should hold.
"""

from collections import deque

import trio

from gateway.config import Config
from gateway.errors import Unavailable
from gateway.event import Frame
from gateway.position import ZERO, Position

JOIN_FRACTION = 4
"""A join is at most this part of a socket's send buffer, or one makes everybody a partial write."""


class Pending:
    """A `gateway.bus.Sink`."""

    def __init__(self, config: Config) -> None:
        self._max_bytes = config.pending_bytes
        self._patience = config.publish_wait
        self._join_bytes = config.send_buffer_bytes // JOIN_FRACTION
        self._frames: deque[Frame] = deque()
        self._arrived = trio.Event()
        self._left = trio.Event()
        self.bytes = 0
        self.received = 0
        """Frames, since the start."""
        self.taken: Position = ZERO
        """The last position that a pass has taken; live clients are given everything up to it."""

    def __len__(self) -> int:
        return len(self._frames)

    def has_room(self, size: int) -> bool:
        return not self._frames or self.bytes + size <= self._max_bytes

    async def room(self, size: int, patience: float | None = None) -> None:
        with trio.move_on_after(self._patience if patience is None else patience):
            while not self.has_room(size):
                await self._left.wait()
            return
        raise Unavailable(
            f"The node is fanning out all it can ({self._max_bytes} bytes are pending). "
            "The event was not taken; publish it again later.",
            outcome="refused",
        )

    def deliver(self, frame: Frame) -> None:
        self._frames.append(frame)
        self.bytes += len(frame.chunk)
        self.received += 1
        self._arrived.set()

    async def arrived(self) -> None:
        """Return when something is pending."""
        while not self._frames:
            self._arrived = trio.Event()
            await self._arrived.wait()

    async def passed_on(self) -> None:
        """Return when passes have taken all that is pending now."""
        last = self._frames[-1].position if self._frames else ZERO
        while self.taken < last:
            await self._left.wait()

    def take(self) -> list[Frame]:
        """The oldest frames, joined no longer than a socket's buffer likes; there must be one."""
        frames = [self._frames.popleft()]
        size = len(frames[0].chunk)
        while self._frames and size + len(self._frames[0].chunk) <= self._join_bytes:
            frames.append(self._frames.popleft())
            size += len(frames[-1].chunk)
        self.bytes -= size
        self.taken = frames[-1].position
        self._left.set()
        self._left = trio.Event()
        return frames
