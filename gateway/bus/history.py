"""Reading history from Redis: pages of channels, each read once for all who want it at a time.

1. A read asks for the channel's record first and its events after: what is published in between is
   among the events, so a record that shows more than the events do means that some are gone.
2. Age counts whether Redis has forgotten the events yet or not.
3. Evicted keys are noticed with each read. What they may have taken is told as a gap.
4. Reads are bounded: so many at a time, of so many events, fewer where those are large.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import hiredis
import trio

from gateway.bus import History, Source, wire
from gateway.bus.commands import Commands
from gateway.bus.resp import Argument, LinkLost, Reply
from gateway.config import ChannelRule
from gateway.errors import Unavailable
from gateway.event import Frame
from gateway.position import ZERO, Position

READS = 8
"""Pages that are read at the same time."""

FIRST_FRAMES = 32
MOST_FRAMES = 256
READ_BYTES = 1024 * 1024
"""Of a page, by the size of the events seen before; the first one is short."""

SLICE = 128
"""Channels asked about in one go."""

RETRY_SECONDS = 0.05
"""Until the next try, where a read failed."""

ENTRY_PARTS = 2


class Record(NamedTuple):
    """What Redis remembers of a channel."""

    last: Position
    ended: bool


@dataclass(slots=True)
class _Read:
    """A page under way, and what came of it; without a result whoever waited reads for himself, as
    does who wants more than was there when it was asked for."""

    until: Position
    done: trio.Event = field(default_factory=trio.Event)
    result: History | None = None
    refusal: Unavailable | None = None
    """Why there is none: with the patience of the first, that of all who wait is over."""


class HistoryReader:
    def __init__(
        self,
        commands: Commands,
        prefix: str,
        rule: Callable[[str], ChannelRule],
        now_ms: Callable[[], int],
        head: Callable[[], Position],
        watch_evicted: Callable[[Reply], Awaitable[None]],
        lossy: Callable[[], Position],
        patience: float,
    ) -> None:
        """``head`` is not later than Redis's clock. ``watch_evicted`` is shown INFO stats, by which
        it may put ``lossy`` later: before that position something may be gone. ``patience`` is in
        seconds, for the link to come back."""
        self._commands = commands
        self._prefix = prefix
        self._rule = rule
        self._now_ms = now_ms
        self._head = head
        self._watch_evicted = watch_evicted
        self._lossy = lossy
        self._patience = patience
        self._reading: dict[tuple[str, Position, int], _Read] = {}
        self._turns = trio.Semaphore(READS)
        self._usual_frames = FIRST_FRAMES
        self.reads = 0

    async def read(self, channel: str, after: Position, until: Position, limit: int) -> History:
        """As `gateway.bus.Bus.history`. Raises Unavailable when the link is away for too long."""
        limit = min(limit, self._usual_frames)
        key = (channel, after, limit)
        while (reading := self._reading.get(key)) is not None:
            await reading.done.wait()
            if reading.refusal is not None:
                raise Unavailable(reading.refusal.detail, **reading.refusal.extra)
            if reading.result is not None and until <= reading.until:
                return cut(reading.result, until)
        reading = self._reading[key] = _Read(until)
        try:
            async with self._turns:
                reading.until = max(until, self._head())
                reading.result = await self._page(channel, after, limit)
            return cut(reading.result, until)
        except Unavailable as error:
            reading.refusal = error
            raise
        finally:
            del self._reading[key]
            reading.done.set()

    async def _page(self, channel: str, after: Position, limit: int) -> History:
        (page,) = await self.patiently((channel,), after, limit)
        while not page.frames and not page.complete:  # all of it was unreadable
            (more,) = await self.patiently((channel,), page.previous, limit)
            previous = max(page.previous, more.previous)
            page = replace(more, previous=previous)
        return page

    async def patiently(
        self, channels: Sequence[str], after: Position, limit: int
    ) -> list[History]:
        """`read_many`, again when the link comes back. Raises Unavailable."""
        with trio.move_on_after(self._patience):
            while True:
                await self._commands.wait_connected()
                try:
                    return await self.read_many(channels, after, limit)
                except LinkLost:
                    await trio.sleep(RETRY_SECONDS)
        raise Unavailable(
            "The link to Redis is lost; history cannot be read.", reason="bus", outcome="refused"
        )

    async def records(self, channels: Sequence[str]) -> list[Record | None]:
        """What Redis remembers of each channel. Raises LinkLost."""
        found: list[Record | None] = []
        for start in range(0, len(channels), SLICE):
            some = channels[start : start + SLICE]
            replies = await self._commands.ask(
                *[("GET", f"{self._prefix}m:{name}") for name in some]
            )
            found += map(parse_record, replies)
        return found

    async def read_many(
        self, channels: Sequence[str], after: Position, limit: int
    ) -> list[History]:
        """The oldest ``limit`` events after a position, of each channel. Raises LinkLost."""
        found: list[History] = []
        for start in range(0, len(channels), SLICE):
            some = channels[start : start + SLICE]
            commands: list[tuple[Argument, ...]] = []
            rules = [self._rule(name) for name in some]
            now = self._head().ms
            for name, rule in zip(some, rules, strict=True):
                first = max(after, _ago(now, rule))
                commands += [
                    ("GET", f"{self._prefix}m:{name}"),
                    ("XRANGE", f"{self._prefix}s:{name}", f"({first}", "+", "COUNT", limit),
                ]
            *replies, stats, time = await self._commands.ask(
                *commands, ("INFO", "stats"), ("TIME",)
            )
            await self._watch_evicted(stats)
            now = self._now(time)
            for index, (name, rule) in enumerate(zip(some, rules, strict=True)):
                record = parse_record(replies[2 * index])
                if record is not None and record.last < _ago(now, rule):
                    record = None  # too old, whether Redis has noticed or not
                entries = replies[2 * index + 1]
                found.append(self._history(name, entries, record, after, _ago(now, rule), limit))
            self.reads += len(some)
        return found

    def _history(
        self,
        name: str,
        reply: Reply,
        record: Record | None,
        after: Position,
        vouched: Position,
        limit: int,
    ) -> History:
        entries = [] if isinstance(reply, hiredis.ReplyError) or reply is None else reply
        frames: list[Frame] = []
        previous: Position | None = None
        complete = len(entries) < limit
        own = (name,)
        for identifier, fields in entries:
            try:
                frame, before = _entry(identifier, fields, own)
            except wire.Unreadable:
                if frames:  # up to here; the next page begins with it
                    complete = False
                    break
                previous = Position.parse(identifier.decode()) or vouched
                continue
            if previous is None:
                previous = before
            frames.append(frame)
        if previous is None:
            previous = vouched if record is None else record.last
        if after < (lossy := self._lossy()):
            first = frames[0].position.before() if frames else lossy
            previous = max(previous, min(lossy, first))
        if frames:
            usual = sum(len(frame.chunk) for frame in frames) // len(frames)
            self._usual_frames = max(1, min(MOST_FRAMES, READ_BYTES // max(1, usual)))
        return History(frames, previous, complete, Source.REDIS)

    async def newest(self, channel: str, limit: int) -> list[Frame]:
        """Raises LinkLost."""
        if limit < 1:
            return []
        time, entries = await self._commands.ask(
            ("TIME",), ("XREVRANGE", f"{self._prefix}s:{channel}", "+", "-", "COUNT", limit)
        )
        oldest = _ago(self._now(time), self._rule(channel))
        frames: list[Frame] = []
        for identifier, fields in entries if isinstance(entries, list) else ():
            try:
                frame, _ = _entry(identifier, fields, (channel,))
            except wire.Unreadable:
                break
            if frame.position < oldest:
                break
            frames.append(frame)
        return frames[::-1]

    def _now(self, time: Reply) -> int:
        """Redis's time in ms, by its reply to TIME."""
        return self._now_ms() or int(time[0]) * 1000 + int(time[1]) // 1000

    async def record(self, channel: str) -> Record | None:
        """Raises LinkLost."""
        time, reply = await self._commands.ask(("TIME",), ("GET", f"{self._prefix}m:{channel}"))
        record = parse_record(reply)
        if record is not None and record.last < _ago(self._now(time), self._rule(channel)):
            return None
        return record


def cut(history: History, until: Position) -> History:
    """What of ``history``, which may know of later events, lies up to ``until``."""
    frames = history.frames
    if not frames:
        later = history.previous > until
        previous = until if later else history.previous
        return History((), previous, complete=True, source=history.source)
    if frames[-1].position <= until:
        return history
    return History(
        [frame for frame in frames if frame.position <= until],
        history.previous,
        complete=True,
        source=history.source,
    )


def _entry(
    identifier: bytes, fields: Sequence[bytes], own: tuple[str, ...]
) -> tuple[Frame, Position]:
    """The frame of an entry, and the position before it. Raises Unreadable, also of an entry that
    claims to stand elsewhere than it does."""
    if len(fields) != ENTRY_PARTS:
        raise wire.Unreadable(None, None)
    frame, told, before = wire.decode(fields[1], own)
    if told != identifier:
        raise wire.Unreadable(None, None)
    return frame, wire.position_of(before)


def parse_record(reply: Reply) -> Record | None:
    """What the script keeps of a channel; None where there is nothing, or nothing of ours."""
    try:
        last, _, _, _, ended = reply.split(b" ")
        return Record(wire.position_of(last), ended == b"1")
    except (AttributeError, ValueError):
        return None


def _ago(now_ms: int, rule: ChannelRule) -> Position:
    return Position(max(ZERO.ms, now_ms - int(rule.history_seconds * 1000)), 0)
