"""The bounded queue of a client that is behind.

A trio memory channel, as Go would have it: ``send_nowait``, and WouldBlock means that the policy
decides. It is made when a client falls behind and gone when it has caught up.

1. Frames and bytes are both bounded; nothing here ever waits for the consumer.
2. A hole is told where it is: each entry carries how many frames are missing just before it, and
   ``hole`` counts those missing after the last one.
3. What goes in comes out, was replaced, or was never taken: ``frames`` counts what still waits.
4. A frame is charged from when it is taken in. Whoever takes it out has it to release.
"""

from collections.abc import Callable, Iterator

import trio

from gateway.charge import KEY_BYTES, Charge
from gateway.event import Frame
from gateway.policy import Policy
from gateway.position import ZERO, Position

LATEST_SLACK = 2
"""Slots per frame, so that clearing out replaced entries costs each frame one move on average."""

REPLACED = 64
"""Replaced entries that are left where they are, however few frames wait: 4 KiB."""


class Entry:
    """A frame that waits, and the hole before it. A replaced frame leaves only its hole."""

    __slots__ = ("frame", "hole")

    def __init__(self, frame: Frame) -> None:
        self.hole = 0
        self.frame: Frame | None = frame


class Outbox:
    __slots__ = (
        "_charge",
        "_give",
        "_is_thrown_away",
        "_newest",
        "_replaced",
        "_see",
        "_take",
        "bytes",
        "dropped_to",
        "frames",
        "hole",
        "last",
        "max_bytes",
        "max_frames",
        "untold",
    )

    def __init__(self, *, max_frames: int, max_bytes: int, charge: Charge) -> None:
        self.max_frames = max_frames
        self.max_bytes = max_bytes
        self.frames = 0
        self.bytes = 0
        self.hole = 0
        self.untold = 0
        """Frames in all holes that have not been taken out yet."""
        self.dropped_to: Position = ZERO
        """The position of the last frame that was not taken."""
        self.last: Frame | None = None
        """The last frame that was taken in, if it still waits."""
        self._charge = charge
        self._is_thrown_away = False
        self._see: Callable[[Frame], None] | None = None
        self._replaced = 0  # entries in the channel that have no frame
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
        if self._replaced > REPLACED and self._replaced > self.frames:
            self._compact()
        entry = Entry(frame)
        try:
            self._give.send_nowait(entry)
        except trio.WouldBlock:  # only entries whose frame was replaced are in the way
            self._compact()
            self._give.send_nowait(entry)
        entry.hole, self.hole = self.hole, 0
        self.frames += 1
        self.bytes += size
        self.last = frame
        self._charge.hold(frame)
        if policy is Policy.LATEST:
            self._newest[frame.channels, frame.key] = entry
            self._charge.add(KEY_BYTES)
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
            self._replaced -= 1
        hole += self.hole
        self.hole = 0
        self.untold -= hole
        return (hole, None) if hole else None

    async def wait(self) -> tuple[int, Frame | None] | None:
        """As `take`, but waits for a frame; None once the outbox is closed and empty, or thrown
        away.

        Cancelled while waiting, it has taken nothing.
        """
        while (taken := self.take()) is None:
            try:
                entry = await self._take.receive()
            except trio.EndOfChannel:
                return None
            if self._is_thrown_away:  # while it was handed over
                if entry.frame is not None:
                    self._charge.release(self._seen(self._taken(entry.frame)))
                return None
            self.untold -= entry.hole
            if entry.frame is not None:
                return entry.hole, self._taken(entry.frame)
            self._replaced -= 1
            hole, frame = self.take() or (0, None)  # replaced while it was handed over
            return entry.hole + hole, frame
        return taken

    def close(self) -> None:
        """No frame will follow: `wait` ends once it has given out what is queued."""
        self._give.close()

    def throw_away(self, see: Callable[[Frame], None] | None = None) -> None:
        """Nothing of it is wanted any more. What waits is freed soon, and charged until then; each
        frame is shown to ``see`` when it is.
        """
        self._give.close()
        self._is_thrown_away = True
        self._see = see
        if self.frames:
            self._charge.throw_away(self._rest())

    def _rest(self) -> Iterator[Frame]:
        while (taken := self.take()) is not None:
            if taken[1] is not None:
                yield self._seen(taken[1])

    def _seen(self, frame: Frame) -> Frame:
        if self._see is not None:
            self._see(frame)
        return frame

    def _taken(self, frame: Frame) -> Frame:
        self.frames -= 1
        self.bytes -= len(frame.chunk)
        if not self.frames:
            self.last = None
        newest = self._newest.get((frame.channels, frame.key))
        if newest is not None and newest.frame is frame:
            del self._newest[frame.channels, frame.key]
            self._charge.add(-KEY_BYTES)
        return frame

    def _replace(self, frame: Frame) -> bool:
        """Drop the frame that waits under the same key, leaving its hole in its place."""
        entry = self._newest.pop((frame.channels, frame.key), None)
        if entry is None or entry.frame is None:
            return False
        self.frames -= 1
        self.bytes -= len(entry.frame.chunk)
        self._charge.add(-KEY_BYTES)
        self._charge.release(entry.frame)
        self._replaced += 1
        if entry.frame is self.last:
            self.last = None
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
            else:
                self._replaced -= 1
        for entry in kept:
            self._give.send_nowait(entry)
        self.hole += hole
