"""What has come of token streams, kept for those who join late: read once for all of them.

1. A story is read on from where it stands, by one at a time, and whoever waits for that need not
   read it himself. A stream that has ended is not read any more.
2. A thousand who join at one position are given the same frame: it is made once, and is in memory
   once, however slowly they take it.
3. What is kept is bounded in streams and bytes, and so is what is read at a time. What nobody has
   asked for the longest goes first.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import trio

from gateway import sse
from gateway.bus import Bus
from gateway.errors import Unavailable
from gateway.event import FRAME_OVERHEAD, Frame
from gateway.position import ZERO, Position
from gateway.relay.record import Record
from gateway.relay.story import Story, snapshot_json
from gateway.streams import MAX_POSITION, Beginning

MAX_STORIES = 1000
"""Streams of which a worker keeps what has come of them."""

MAX_STORIES_BYTES = 32 * 1024 * 1024
"""Of these together; a hundred answers of 10,000 tokens are a quarter of it."""

MAX_SNAPSHOT_BYTES = 1024 * 1024 - 1024
"""Of a snapshot: clients take events of 1 MiB. In the place of a longer one all is replayed."""

READS = 8
"""Stories that are read at the same time."""

PAGE_FRAMES = 256
"""Read of a channel between two checkpoints."""

STREAMING = "streaming"


class _Entry:
    __slots__ = ("begun", "done", "frames", "lock", "proven", "size", "story", "too_long")

    def __init__(self) -> None:
        self.story = Story()
        self.proven = ZERO
        """Up to here it is complete."""
        self.begun = self.done = 0
        """Reads of all there is: the number of the last one, and of the last that succeeded."""
        self.lock = trio.Lock()
        self.frames: dict[bool, Frame] = {}
        """Snapshots at the story's position, by whether they are annotated."""
        self.size = 0
        self.too_long = MAX_SNAPSHOT_BYTES
        """Characters of text with which a snapshot is too long."""

    def reaches(self, head: Position) -> bool:
        return self.proven >= head or self.story.state != STREAMING


class Stories:
    def __init__(self, bus: Bus, patience: float) -> None:
        """``patience`` is in seconds, for all waits of one who asks: for his turn, and the bus."""
        self._bus = bus
        self._patience = patience
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """By id; those asked for last at the end."""
        self._turns = trio.CapacityLimiter(READS)
        self.bytes = 0
        """Of what is kept."""
        self.reads = 0
        """Since the start."""

    def __len__(self) -> int:
        return len(self._entries)

    async def story(self, record: Record) -> Story:
        """All that has come of a stream up to now; not to be changed. Raises Unavailable."""
        entry = self._entry(record)
        begun = entry.begun
        async with self._in_time(), entry.lock:
            if entry.done <= begun:  # no other has begun since and succeeded
                entry.begun += 1
                await self._read(record, entry, MAX_POSITION)
                entry.done = entry.begun
        return entry.story

    async def snapshot(
        self, record: Record, head: Position, *, annotated: bool
    ) -> Beginning | None:
        """One event of all that has come of a stream up to ``head`` at the least, the H of a join;
        None where that is too long for one event. Raises Unavailable."""
        entry = self._entry(record)
        if not entry.reaches(head):
            async with self._in_time(), entry.lock:
                if not entry.reaches(head):
                    # Where there is something to go on from, the ring of the channel has the rest.
                    is_begun = entry.story.position > ZERO
                    until = max(head, self._bus.head()) if is_begun else MAX_POSITION
                    await self._read(record, entry, until)
        frame = entry.frames.get(annotated)
        if frame is None:
            if len(entry.story.text) >= entry.too_long:
                return None
            frame = _snapshot(record, entry.story, annotated=annotated)
            if frame is None:
                entry.too_long = len(entry.story.text)
                return None
            entry.frames[annotated] = frame
            self._measure(record, entry)
        return Beginning(frame, max(head, entry.story.position))

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        with trio.move_on_after(self._patience) as waiting:
            yield
        if waiting.cancelled_caught:
            raise Unavailable(
                "Too many token streams are being read from history; come back later.", reason="bus"
            )

    async def _read(self, record: Record, entry: _Entry, until: Position) -> None:
        story = entry.story
        if story.state != STREAMING:
            return
        async with self._turns:
            proven, before = min(until, self._bus.head()), story.position
            self.reads += 1
            try:
                await read_on(self._bus, record, story, until)
                entry.proven = max(entry.proven, proven, story.position)
            finally:
                if story.position > before:
                    entry.frames.clear()
                self._measure(record, entry)

    # -- what is kept

    def _entry(self, record: Record) -> _Entry:
        entry = self._entries.get(record.id)
        if entry is None:
            entry = self._entries[record.id] = _Entry()
        self._entries.move_to_end(record.id)
        self._evict()
        return entry

    def _measure(self, record: Record, entry: _Entry) -> None:
        if self._entries.get(record.id) is not entry:  # it has been forgotten meanwhile
            return
        frames = entry.frames.values()
        size = entry.story.size + sum(len(frame.chunk) + FRAME_OVERHEAD for frame in frames)
        self.bytes += size - entry.size
        entry.size = size
        self._evict()

    def _evict(self) -> None:
        while len(self._entries) > MAX_STORIES or self.bytes > MAX_STORIES_BYTES:
            _, entry = self._entries.popitem(last=False)
            self.bytes -= entry.size


async def read_on(bus: Bus, record: Record, story: Story, until: Position = MAX_POSITION) -> None:
    """Add what came behind the last position of a ``story``. Raises Unavailable."""
    while True:
        page = await bus.history(record.channel, story.position, until, PAGE_FRAMES)
        if page.frames and page.previous > story.position > ZERO:
            story.forget()
        for frame in page.frames:
            story.add(frame)
        if page.complete or not page.frames:
            return
        await trio.lowlevel.checkpoint()


def _snapshot(record: Record, story: Story, *, annotated: bool) -> Frame | None:
    """The event at the story's position; None where it is too long."""
    data = msgspec.json.encode(snapshot_json(story)).decode()
    position = str(story.position)
    block = sse.encode(data, event="snapshot", id=position)
    if len(block) > MAX_SNAPSHOT_BYTES:
        return None
    framing = b"%x\r\n" % len(block)
    channels = (record.channel,)
    chunk = b"%b%b\r\n" % (framing, block)
    frame = Frame(story.position, channels, chunk, len(framing), len(f"id: {position}\n"))
    return frame.annotated(channels) if annotated else frame
