"""The bus of a single process: a ring per channel, and the hub right behind it.

1. A position is taken, kept and delivered without an await in between, so history and live flow
   cannot disagree.
2. Room in the sink is awaited before a position is taken: what is refused has left no trace.
3. What is forgotten (a channel unused beyond its time, a history over the node's bound) raises the
   position from which an unknown channel is vouched for; it never lowers what a client is told.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice

import trio

from gateway.bus import BusStatistics, History, Sink, Source
from gateway.bus.ring import Ring
from gateway.charge import Charge
from gateway.config import ChannelRule, Config
from gateway.errors import ChannelEnded, GatewayError, Unavailable
from gateway.event import Event, Frame, render
from gateway.position import ZERO, Position

SWEEP_SECONDS = 10.0
"""Between two looks for what has grown too old, to free it; whoever reads a channel looks first."""

SWEEP_FRAMES = 1000
"""Frames forgotten, or channels looked at, between two checkpoints: about a millisecond."""

PUBLISH_WORK = 64
"""Appends to histories between two checkpoints, and events after which a pass is waited for: under
a millisecond."""


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _before(position: Position, seconds: float) -> Position:
    return Position(max(0, position.ms - int(seconds * 1000)), 0)


def _token(id: str, channels: tuple[str, ...]) -> bytes:
    """What tells a repeat: sixteen bytes, however long the names are."""
    text = "\n".join((id, *sorted(channels)))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Record:
    """What the bus remembers of one channel."""

    __slots__ = ("ended", "ring", "rule")

    def __init__(self, rule: ChannelRule, previous: Position, charge: Charge) -> None:
        self.rule = rule
        self.ring = Ring(
            previous,
            max_frames=rule.history_events,
            max_bytes=rule.history_bytes,
            charge=charge,
        )
        self.ended = False


class MemoryBus:
    """A `gateway.bus.Bus` for one process. ``now_ms`` is the wall clock in milliseconds."""

    def __init__(
        self,
        config: Config,
        sink: Sink,
        *,
        charge: Charge | None = None,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        """``charge`` is the node's, if there is more than the bus in it."""
        self._config = config
        self._charge = charge or Charge(config.memory_bytes)
        self._sink = sink
        self._now_ms = now_ms
        self._records: OrderedDict[str, Record] = OrderedDict()  # least recently published first
        self._clock = ZERO
        self._origin = self.head()
        self._forgotten = self._origin  # no channel without a record had a later event than this
        self._repeats: OrderedDict[bytes, Position] = OrderedDict()
        self._published = self._repeated = self._refused = 0
        self._evicted = self._dedupe_evicted = 0

    async def leave(self, worker: str | None = None) -> None:
        """There is nobody to tell."""

    @property
    def batch(self) -> int:
        return PUBLISH_WORK

    @property
    def source(self) -> Source:
        return Source.MEMORY

    @property
    def ready(self) -> bool:
        return True

    # -- positions

    def head(self) -> Position:
        self._clock = max(self._clock, Position(self._now_ms(), 0))
        return self._clock

    def _next(self) -> Position:
        ms, seq = self._clock
        now = self._now_ms()
        self._clock = Position(now, 0) if now > ms else Position(ms, seq + 1)
        return self._clock

    def _ago(self, seconds: float) -> Position:
        """By the positions' clock: what age has vouched for stays so if the wall's steps back."""
        return _before(self.head(), seconds)

    # -- publish

    async def publish(
        self, events: Sequence[Event], patience: float | None = None
    ) -> Sequence[Position | GatewayError]:
        results: list[Position | GatewayError] = []
        until = None if patience is None else trio.current_time() + patience
        refusal = None
        work = 0
        for event in events:
            work += len(event.channels)
            if work > PUBLISH_WORK:
                work = 0
                await trio.lowlevel.checkpoint()
            try:
                if refusal is not None:
                    raise refusal
                results.append(await self._publish(event, until))
            except GatewayError as error:
                if until is not None and isinstance(error, Unavailable):
                    refusal = error
                self._refused += 1
                results.append(error)
        return results

    async def _publish(self, event: Event, until: float | None) -> Position:
        size = len(event.data)
        if not self._sink.has_room(size):
            left = None if until is None else max(0.0, until - trio.current_time())
            await self._sink.room(size, left)
        token = None
        if event.id is not None:
            token = _token(event.id, event.channels)
            known = self._repeats.get(token)
            if known is not None and known >= self._ago(self._config.dedupe_seconds):
                self._repeated += 1
                return known
        for name in event.channels:
            record = self._records.get(name)
            if record is not None and record.ended:
                raise ChannelEnded(
                    "The channel has ended; publish to another one, or wait until its history has "
                    f"expired ({record.rule.history_seconds:g} s)."
                )
        frame = render(event, self._next())
        for name in event.channels:
            record = self._record(name)
            record.ring.append(frame)
            record.ended = event.end
        if token is not None:
            self._remember(token, frame.position)
        self._published += 1
        if self._charge.histories > self._config.history_total_bytes:
            self._evict()
        self._sink.deliver(frame)
        return frame.position

    def _record(self, name: str) -> Record:
        record = self._records.get(name)
        if record is None:
            if len(self._records) >= self._config.max_channels:
                self._forget(next(iter(self._records)))
                self._evicted += 1
            rule = self._config.rule(name)
            record = self._records[name] = Record(rule, self._vouched(rule), self._charge)
        else:
            self._records.move_to_end(name)
        return record

    def _remember(self, token: bytes, position: Position) -> None:
        self._repeats[token] = position
        self._repeats.move_to_end(token)
        if len(self._repeats) > self._config.dedupe_entries:
            _, oldest = self._repeats.popitem(last=False)
            self._dedupe_evicted += oldest >= self._ago(self._config.dedupe_seconds)

    # -- forgetting

    def _vouched(self, rule: ChannelRule) -> Position:
        """A channel without a record has had no event after this."""
        return max(self._forgotten, self._ago(rule.history_seconds))

    def _forget(self, name: str) -> None:
        record = self._records.pop(name)
        record.ring.let_go()
        self._forgotten = max(self._forgotten, record.ring.last)

    def _evict(self) -> None:
        """Forget whole channels, the longest unused first, until the node's bound holds."""
        while self._charge.histories > self._config.history_total_bytes:
            name, record = next(iter(self._records.items()))
            self._evicted += 1
            if len(self._records) == 1:
                record.ring.clear()
            else:
                self._forget(name)

    async def run(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            await self._sweep()

    async def _sweep(self) -> None:
        now, work = self.head(), 0
        for name in list(self._records):
            record = self._records.get(name)
            if record is None:
                continue
            oldest = _before(now, record.rule.history_seconds)
            while record.ring.has_before(oldest) or work >= SWEEP_FRAMES:
                record.ring.expire(oldest, SWEEP_FRAMES)
                work = 0
                await trio.lowlevel.checkpoint()
            work += 1
            if record.ring.last < oldest and self._records.get(name) is record:
                record.ring.let_go()
                del self._records[name]  # its age alone vouches for it from here on
        too_old = _before(now, self._config.dedupe_seconds)
        while self._repeats and next(iter(self._repeats.values())) < too_old:
            for token in list(islice(self._repeats, SWEEP_FRAMES)):
                if self._repeats[token] < too_old:
                    del self._repeats[token]
            await trio.lowlevel.checkpoint()

    def _found(self, channel: str) -> Record | None:
        """The record of a channel, without what has grown too old."""
        record = self._records.get(channel)
        if record is not None:
            oldest = self._ago(record.rule.history_seconds)
            if record.ring.has_before(oldest):
                record.ring.expire(oldest, len(record.ring))
        return record

    # -- reading

    def vouches(self, after: Position) -> bool:
        return after >= self._origin

    async def subscribe(self, channels: Collection[str], after: Position = ZERO) -> Position:
        return self.head()

    def unsubscribe(self, channels: Collection[str]) -> None:
        """Nothing to undo: every frame is delivered to the one hub there is."""

    async def history(self, channel: str, after: Position, until: Position, limit: int) -> History:
        record = self._found(channel)
        if record is None:
            return History((), self._vouched(self._config.rule(channel)), complete=True)
        return record.ring.history(after, until, limit)

    async def newest(self, channel: str, limit: int) -> Sequence[Frame]:
        record = self._found(channel)
        return record.ring.newest(limit) if record is not None else ()

    async def last(self, channel: str) -> Position | None:
        record = self._found(channel)
        return record.ring.last if record is not None else None

    async def ended(self, channel: str) -> Position | None:
        record = self._found(channel)
        return record.ring.last if record is not None and record.ended else None

    def rings(self) -> Iterator[Ring]:
        return (record.ring for record in tuple(self._records.values()))

    def statistics(self) -> BusStatistics:
        return BusStatistics(
            published=self._published,
            repeated=self._repeated,
            refused=self._refused,
            channels=len(self._records),
            history_bytes=self._charge.histories,
            history_evicted=self._evicted,
            dedupe_entries=len(self._repeats),
            dedupe_evicted=self._dedupe_evicted,
        )
