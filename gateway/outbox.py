"""The bounded queue of a client that is behind.

A trio memory channel, as Go would have it: ``send_nowait``, and WouldBlock means that the policy
decides. It is made when a client falls behind and gone when it has caught up.

1. Frames and bytes are both bounded; nothing here ever waits for the consumer.
2. A hole is told where it is: each entry carries how many frames are missing just before it, and
   ``hole`` counts those missing after the last one.
3. What goes in comes out, was replaced, or was never taken: ``frames`` counts what still waits.
"""

import trio

from gateway.event import Frame
from gateway.policy import Policy
from gateway.position import ZERO, Position

LATEST_SLACK = 2
"""Slots per frame, so that clearing out replaced entries costs each frame one move on average."""


class Entry:
    """A frame that waits, and the hole before it. A replaced frame leaves only its hole."""

    __slots__ = ("frame", "hole")

    def __init__(self, frame: Frame) -> None:
        self.hole = 0
        self.frame: Frame | None = frame


class Outbox:
    __slots__ = (
        "_give",
        "_newest",
        "_take",
        "bytes",
        "dropped_to",
        "frames",
        "hole",
        "max_bytes",
        "max_frames",
        "untold",
    )

    def __init__(self, *, max_frames: int, max_bytes: int) -> None:
        self.max_frames = max_frames
        self.max_bytes = max_bytes
        self.frames = 0
        self.bytes = 0
        self.hole = 0
        self.untold = 0
        """Frames in all holes that have not been taken out yet."""
        self.dropped_to: Position = ZERO
        """The position of the last frame that was not taken."""
        self._give, self._take = trio.open_memory_channel[Entry](max_frames * LATEST_SLACK)
        self._newest: dict[tuple[tuple[str, ...], str | None], Entry] = {}

    def offer(self, frame: Frame, policy: Policy) -> int | None:
        """Queue ``frame`` if there is room, as there is for any one frame alone; if there is none,
        do as ``policy`` says.

        Returns how many frames, this one included, were dropped for it, and None when it was not
        taken because its policy is not to drop: then the stream must end or catch up.
        """
        size = len(frame.chunk)
        dropped = int(policy is Policy.LATEST and self._replace(frame))
        self.untold += dropped
        if self.frames >= self.max_frames or (self.frames and self.bytes + size > self.max_bytes):
            if policy is Policy.DISCONNECT or policy is Policy.CATCH_UP:
                return None
            self.hole += 1
            self.untold += 1
            self.dropped_to = frame.position
            return dropped + 1
        entry = Entry(frame)
        try:
            self._give.send_nowait(entry)
        except trio.WouldBlock:  # only entries whose frame was replaced are in the way
            self._compact()
            self._give.send_nowait(entry)
        entry.hole, self.hole = self.hole, 0
        self.frames += 1
        self.bytes += size
        if policy is Policy.LATEST:
            self._newest[frame.channels, frame.key] = entry
        return dropped

    def take(self) -> tuple[int, Frame | None] | None:
        """The next frame and the number missing just before it; None when nothing waits.

        The last hole comes with no frame.
        """
        hole = 0
        while True:
            try:
                entry = self._take.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            hole += entry.hole
            if entry.frame is not None:
                self.untold -= hole
                return hole, self._taken(entry.frame)
        hole += self.hole
        self.hole = 0
        self.untold -= hole
        return (hole, None) if hole else None

    async def wait(self) -> tuple[int, Frame | None] | None:
        """As `take`, but waits for a frame; None once the outbox is closed and empty.

        Cancelled while waiting, it has taken nothing.
        """
        while (taken := self.take()) is None:
            try:
                entry = await self._take.receive()
            except trio.EndOfChannel:
                return None
            self.untold -= entry.hole
            if entry.frame is not None:
                return entry.hole, self._taken(entry.frame)
            hole, frame = self.take() or (0, None)  # replaced while it was handed over
            return entry.hole + hole, frame
        return taken

    def close(self) -> None:
        """No frame will follow: `wait` ends once it has given out what is queued."""
        self._give.close()

    def _taken(self, frame: Frame) -> Frame:
        self.frames -= 1
        self.bytes -= len(frame.chunk)
        newest = self._newest.get((frame.channels, frame.key))
        if newest is not None and newest.frame is frame:
            del self._newest[frame.channels, frame.key]
        return frame

    def _replace(self, frame: Frame) -> bool:
        """Drop the frame that waits under the same key, leaving its hole in its place."""
        entry = self._newest.pop((frame.channels, frame.key), None)
        if entry is None or entry.frame is None:
            return False
        self.frames -= 1
        self.bytes -= len(entry.frame.chunk)
        entry.frame = None
        entry.hole += 1
        return True

    def _compact(self) -> None:
        """Take out the replaced entries; their holes move to the entry after them."""
        hole = 0
        kept = []
        for _ in range(self._take.statistics().current_buffer_used):
            entry = self._take.receive_nowait()
            entry.hole += hole
            hole = entry.hole if entry.frame is None else 0
            if entry.frame is not None:
                kept.append(entry)
        for entry in kept:
            self._give.send_nowait(entry)
        self.hole += hole
