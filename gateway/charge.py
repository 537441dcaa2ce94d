"""What clients and histories hold in memory, in bytes, as the node charges it to its budget.

Frames are shared: a thousand readers that have stalled on one channel hold the same ones.

1. A frame that waits for clients is charged once, however many they are, and each place that it has
   in a queue besides; so is a copy that is one client's alone.
2. Histories are charged by themselves, a frame with each that keeps it: what is in a history and
   waits for clients as well counts twice, though it is in memory once.
3. What is thrown away is charged until it has been let go, which is done in slices.

Not charged is what each client costs whatever it holds, its queue itself (2 KiB) included.
"""

from collections import deque
from collections.abc import Iterator

import trio

from gateway.event import FRAME_OVERHEAD, Frame

PLACE_BYTES = 64
"""What a frame's place in a queue takes: measured in outboxes of 1,000."""

KEY_BYTES = 96
"""What it takes besides to find a frame again that a later one will replace: measured likewise."""

LET_GO_EVERY = 400
"""Frames let go between two checkpoints: about a third of a millisecond."""


class Charge:
    __slots__ = ("_called", "_holders", "_thrown", "clients", "histories", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.clients = 0
        """What waits for clients."""
        self.histories = 0
        self._holders: dict[Frame, int] = {}  # empty while nobody is behind
        self._thrown: deque[Iterator[Frame]] = deque()
        self._called = trio.Event()

    @property
    def bytes(self) -> int:
        return self.clients + self.histories

    def hold(self, frame: Frame) -> None:
        """A client's queue has taken a frame."""
        count = self._holders.get(frame, 0)
        self._holders[frame] = count + 1
        self.clients += PLACE_BYTES if count else PLACE_BYTES + FRAME_OVERHEAD + len(frame.chunk)
        if self.clients + self.histories > self.limit:
            self._called.set()

    def release(self, frame: Frame) -> None:
        """It has none any more: each `hold` is given back once."""
        count = self._holders[frame]
        if count > 1:
            self._holders[frame] = count - 1
            self.clients -= PLACE_BYTES
            return
        del self._holders[frame]
        self.clients -= PLACE_BYTES + FRAME_OVERHEAD + len(frame.chunk)
        if not self._holders:
            self._holders.clear()  # and with it the room that it once needed

    def add(self, size: int) -> None:
        """A client's queue takes ``size`` bytes more beside its frames, or less if negative."""
        self.clients += size
        if size > 0 and self.clients + self.histories > self.limit:
            self._called.set()

    def holders(self, frame: Frame) -> int:
        """How many queues have a frame."""
        return self._holders.get(frame, 0)

    def keep(self, size: int) -> None:
        """The histories hold ``size`` bytes more, or less if that is negative."""
        self.histories += size
        if size > 0 and self.clients + self.histories > self.limit:
            self._called.set()

    def throw_away(self, frames: Iterator[Frame]) -> None:
        """Have all of ``frames`` released soon; taking them out of the iterator frees them."""
        self._thrown.append(frames)
        self._called.set()

    async def called(self) -> None:
        """Return when something was thrown away, or more is held than the limit."""
        while not self._thrown and self.bytes <= self.limit:
            self._called = trio.Event()
            await self._called.wait()

    async def let_go(self) -> None:
        """Release what was thrown away, all of it."""
        turn = 0
        while self._thrown:
            for frame in self._thrown[0]:
                self.release(frame)
                turn += 1
                if not turn % LET_GO_EVERY:
                    await trio.lowlevel.checkpoint()
            self._thrown.popleft()
