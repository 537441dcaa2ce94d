"""The node's memory budget: when clients and histories hold more, the largest of them give way.

Compared are what waits for one client, each frame divided among those that it waits for, and the
history of one channel. Clients lose all that waits for them, as their policy has it, and are told;
of a history the older half is cut, which is a gap for whoever comes back for it.

1. None of this is done by the pass or by whoever publishes: they count, and one task does the rest,
   in slices of about half a millisecond.
2. It is done until TARGET of the budget is held, so that it is not done for each frame.
3. While it is done more may come: what is pending, and what the passes take meanwhile, of which
   there is one to a slice. A slice frees more than a pass brings.
"""

import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from gateway.bus import Bus, Recent
from gateway.charge import PLACE_BYTES, Charge
from gateway.event import FRAME_OVERHEAD
from gateway.hub import Hub
from gateway.hub_client import Client

TARGET = 0.9
"""Of the budget is left: then a tenth of it must come until the next time."""

LARGEST = 1024
"""Clients and histories found at a time: what is remembered of them takes little itself."""

LOOK_EVERY = 512
"""Clients and histories looked at between two checkpoints: a quarter of a millisecond."""

CUT_EVERY = 400
"""Frames cut from histories between two checkpoints: about a third of a millisecond."""

CUT_WORK = 10
"""What finding the next one costs, in frames: many small ones are done at a time as well."""

REST_SECONDS = 0.05
"""Before the next look, when nothing could be freed."""

LOG_SECONDS = 10.0
"""Between two lines in the log at least."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """A snapshot. ``bytes`` is what clients and histories hold, as it is charged."""

    bytes: int
    max_bytes: int
    outboxes_dropped: int
    """Of which those that were to be replayed, or whose stream ended, dropped no frames."""
    frames_dropped: int
    histories_cut: int


class Budget:
    def __init__(self, charge: Charge, hub: Hub, bus: Bus) -> None:
        self._charge = charge
        self._hub = hub
        self._bus = bus
        self._outboxes = self._frames = self._histories = 0
        self._work = 0
        self._next_line = 0.0

    def statistics(self) -> MemoryStatistics:
        return MemoryStatistics(
            bytes=self._charge.bytes,
            max_bytes=self._charge.limit,
            outboxes_dropped=self._outboxes,
            frames_dropped=self._frames,
            histories_cut=self._histories,
        )

    async def run(self) -> None:
        """Keep the budget, until cancelled."""
        while True:
            await self._charge.called()
            await self._charge.let_go()
            if self._charge.bytes > self._charge.limit:
                await self._reduce()

    async def _reduce(self) -> None:
        target = self._charge.limit * TARGET
        while self._charge.bytes > target:
            largest = await self._find_largest()
            if not largest:
                if self._charge.bytes > self._charge.limit:
                    await trio.sleep(REST_SECONDS)
                break
            while largest and self._charge.bytes > target:
                await self._give_way(largest)
        self._say()

    async def _find_largest(self) -> list[tuple[int, int, "Client | Recent"]]:
        """A heap of the largest of all, by their negative sizes."""
        found: list[tuple[int, int, Client | Recent]] = []
        await trio.lowlevel.checkpoint()
        for turn, holder in enumerate(self._holders(), 1):
            if (size := self._size(holder)) and (len(found) < LARGEST or size > found[0][0]):
                change = heapq.heappush if len(found) < LARGEST else heapq.heapreplace
                change(found, (size, turn, holder))
            if not turn % LOOK_EVERY:
                await trio.lowlevel.checkpoint()
        largest = [(-size, -turn, holder) for size, turn, holder in found]
        heapq.heapify(largest)
        return largest

    def _holders(self) -> Iterator["Client | Recent"]:
        yield from self._bus.rings()
        yield from self._hub.holders()

    async def _give_way(self, largest: list[tuple[int, int, "Client | Recent"]]) -> None:
        """Have the largest give way; what is left of a history is put back among the others."""
        found, turn, holder = heapq.heappop(largest)
        size = self._size(holder)
        self._work += CUT_WORK
        if size < -found:  # less than it was: others may be larger now
            if size:
                heapq.heappush(largest, (-size, turn, holder))
        elif isinstance(holder, Client):
            self._work += holder.queued
            self._outboxes += 1
            self._frames += self._hub.throw_out(holder)
            await self._charge.let_go()
        else:
            self._histories += 1
            while holder.bytes > size // 2:
                self._work += holder.cut(size // 2, CUT_EVERY)
                await self._take_turns()
            if left := holder.bytes:
                heapq.heappush(largest, (-left, turn, holder))
        await self._take_turns()

    async def _take_turns(self) -> None:
        if self._work >= CUT_EVERY:
            self._work = 0
            await trio.lowlevel.checkpoint()

    def _size(self, holder: "Client | Recent") -> int:
        """What is freed when it gives way, or would be if all whom it shares frames with did.

        By how many a frame is shared is judged by the last one that waits.
        """
        if not isinstance(holder, Client):
            return holder.bytes
        if (outbox := holder.outbox) and outbox.frames:
            last, frames, size = outbox.last, outbox.frames, outbox.bytes
        elif staged := holder.staged:
            parts = [(len(data), frame) for data, frame in staged if frame is not None]
            frames, size = len(parts), sum(length for length, _ in parts)
            last = parts[-1][1] if parts else None
        else:
            return 0
        shared = max(1, self._charge.holders(last)) if last is not None else 1
        return frames * PLACE_BYTES + (frames * FRAME_OVERHEAD + size) // shared

    def _say(self) -> None:
        now = trio.current_time()
        if now < self._next_line:
            return
        self._next_line = now + LOG_SECONDS
        _log.warning(
            "the memory budget of %(memory_bytes)d bytes was used up; so far %(outboxes)d outboxes"
            " (%(events)d events) and %(histories)d parts of histories were dropped for it, the"
            " largest first",
            {
                "memory_bytes": self._charge.limit,
                "outboxes": self._outboxes,
                "events": self._frames,
                "histories": self._histories,
            },
        )
