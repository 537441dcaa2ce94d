"""Publishing through Redis: events into calls, calls into outcomes.

1. What waits together goes into one call of the script; its answer gives each event its position.
2. Three outcomes. *Accepted* has a position. *Refused* is certain to have changed nothing.
   *Unknown* was sent, and no reply came in time: it may have been taken.
3. A call whose link was lost is sent again under the same number, before all later ones; the script
   knows the numbers that it has answered. Never to a Redis that has lost something: it may have
   forgotten that it took the call, whose events were passed on by then.
4. Events that wait are bounded in bytes; what finds no room in time is refused.
5. A publish that names its patience goes call by call, each when the one before it is settled, so
   that nothing of it is taken behind what was refused; and to no Redis that has lost something
   since it was asked for, which may be what came before. Others go one behind the other.
"""

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import hiredis
import msgspec
import trio

from gateway.bus import wire
from gateway.bus.commands import UNUSABLE, Call, Commands
from gateway.bus.resp import LinkLost, code
from gateway.bus.scripts import DIGESTS
from gateway.config import ChannelRule, Config
from gateway.errors import ChannelEnded, GatewayError, Unavailable
from gateway.event import Event
from gateway.position import Position

FORMAT = 1

CALL_TARGETS = 256
CALL_BYTES = 256 * 1024
"""Of events and their channels in one call: a few milliseconds of Redis at most."""

QUEUED_BYTES = 16 * 1024 * 1024
"""Of events that wait to be sent: as much as frames wait for the fan-out."""

EVENT_OVERHEAD = 256
"""Bytes that an event takes in a call beside its data, by the most."""

RESEND_SECONDS = 300.0
"""After which a call is not sent again: half the time for which the script remembers it. Whoever
has more patience is told "unknown" then, of what may have been taken."""

_REFUSED, _UNKNOWN = "refused", "unknown"


class Batch:
    """The events of one publish; ``done`` is set when each has its result. They are for Redis as
    it is in its ``epoch``, if that is not None."""

    __slots__ = ("done", "epoch", "left", "results")

    def __init__(self, size: int, epoch: int | None = None) -> None:
        self.epoch = epoch
        self.results: list[Position | GatewayError | None] = [None] * size
        self.left = size
        self.done = trio.Event()

    def give(self, index: int, result: Position | GatewayError) -> None:
        if self.results[index] is None:
            self.results[index] = result
            self.left -= 1
            if not self.left:
                self.done.set()


class Item:
    """An event on its way. ``packet`` is the one that it was last sent with."""

    __slots__ = ("batch", "event", "index", "packet", "size", "targets", "wire")

    def __init__(
        self, batch: Batch, index: int, event: Event, packed: list[object], size: int
    ) -> None:
        self.batch = batch
        self.index = index
        self.event = event
        self.wire = packed
        self.size = size
        self.targets = len(event.channels)
        self.packet: Packet | None = None

    @property
    def is_over(self) -> bool:
        """Whether its publisher has been told already."""
        return self.batch.results[self.index] is not None


class Packet:
    """Events that go in one call, whatever number of times that is sent."""

    __slots__ = ("call", "epoch", "items", "maybe_taken", "number", "sent_at")

    def __init__(self, number: int, items: list[Item], epoch: int) -> None:
        self.number = number
        self.items = items
        self.epoch = epoch
        self.maybe_taken = False
        self.sent_at = trio.current_time()
        """For the first time."""
        self.call: Call | None = None


class Publisher:
    def __init__(
        self,
        config: Config,
        commands: Commands,
        *,
        worker: str,
        rule: Callable[[str], ChannelRule],
        epoch: Callable[[], int],
        now_ms: Callable[[], int],
    ) -> None:
        """``epoch`` counts how often Redis turned out to have lost something; ``now_ms`` is 0 but
        in tests."""
        self._config = config
        self._commands = commands
        self._session = f"{worker}-{secrets.token_hex(8)}"  # no other has ever counted its calls
        self._rule = rule
        self._epoch = epoch
        self._now_ms = now_ms
        self._queue: deque[Item] = deque()
        self._queued = 0
        self._again: list[Packet] = []
        self._numbers = 0
        self._more = trio.Event()
        self._left = trio.Event()
        self.accepted = self.repeated = self.refused = self.unknown = self.resent = 0
        self.latest = Position(0, 0)
        """The last position that a publish of this worker was given."""

    # -- what publishers call

    async def publish(
        self, events: Sequence[Event], patience: float | None = None
    ) -> Sequence[Position | GatewayError]:
        if patience is None:
            general = self._config.publish_wait + self._config.redis_timeout
            return await self._publish(events, general)
        until = trio.current_time() + patience
        results: list[Position | GatewayError] = []
        for group in _calls(events):
            left = max(0.0, until - trio.current_time())
            results += await self._publish(group, left, as_one=self._epoch())
            if any(isinstance(result, Unavailable) for result in results[-len(group) :]):
                behind = [_refusal() for _ in range(len(events) - len(results))]
                self._count(behind)
                results += behind
                break
        return results

    async def _publish(
        self, events: Sequence[Event], patience: float, *, as_one: int | None = None
    ) -> Sequence[Position | GatewayError]:
        """``as_one``: in a single call of the script, and in that epoch."""
        batch = Batch(len(events), as_one)
        items: list[Item] = []
        for index, event in enumerate(events):
            try:
                items.append(self._item(batch, index, event))
            except GatewayError as error:
                batch.give(index, error)
        if as_one is not None:
            _tie(items)
        with trio.move_on_after(patience):
            for item in items:
                while item.size and self._queued and self._queued + item.size > QUEUED_BYTES:
                    await self._left.wait()
                self._queue.append(item)
                self._queued += item.size
                self._more.set()
            if batch.left:
                await batch.done.wait()
        if batch.left:
            for item in items:
                self._give_up(item)
        results = [result for result in batch.results if result is not None]
        self._count(results)
        return results

    def _count(self, results: Sequence[Position | GatewayError]) -> None:
        for result in results:
            if isinstance(result, Position):
                self.accepted += 1
                self.latest = max(self.latest, result)
            elif result.extra.get("outcome") == _UNKNOWN:
                self.unknown += 1
            else:
                self.refused += 1

    def _item(self, batch: Batch, index: int, event: Event) -> Item:
        body = wire.encode(event)
        packed: list[object] = [_token(event), _text(body), str(int(event.end))]
        for channel in event.channels:
            rule = self._rule(channel)
            seconds = int(rule.history_seconds * 1000)
            packed += [channel, rule.history_events, rule.history_bytes, seconds]
        return Item(batch, index, event, packed, len(body) + EVENT_OVERHEAD)

    def _give_up(self, item: Item) -> None:
        """Tell a publisher that has waited long enough what is certain."""
        if item.is_over:
            return
        packet = item.packet
        is_away = packet is not None and packet.call is not None
        if packet is not None and (is_away or packet.maybe_taken):
            error = Unavailable(
                "Redis has not answered in time: the event may have been taken or not. Publish it "
                "again with the same id to be sure.",
                outcome=_UNKNOWN,
            )
        else:
            error = _refusal()
        item.batch.give(item.index, error)

    # -- the link

    async def run(self) -> None:
        """Send what waits, until cancelled."""
        while True:
            await self._commands.wait_connected()
            try:
                await self._commands.room()
            except LinkLost:
                continue
            packet = self._next_packet()
            if packet is not None:
                self._send(packet)
            else:
                self._more = trio.Event()
                await self._more.wait()

    def _next_packet(self) -> Packet | None:
        while self._again:
            packet = self._again.pop(0)
            if packet.maybe_taken:
                is_young = packet.sent_at > trio.current_time() - RESEND_SECONDS
                is_wanted = any(not item.is_over for item in packet.items)
                if packet.epoch == self._epoch() and is_young and is_wanted:
                    self.resent += 1
                    return packet
                for item in packet.items:
                    self._give_up(item)
                continue
            packet.items = [item for item in packet.items if self._is_wanted(item)]
            packet.epoch = self._epoch()
            if packet.items:
                return packet
        items: list[Item] = []
        size = targets = 0
        while self._queue:
            item = self._queue[0]
            size += item.size
            targets += item.targets
            if items and item.targets and (size > CALL_BYTES or targets > CALL_TARGETS):
                break
            self._queue.popleft()
            self._queued -= item.size
            if self._is_wanted(item):
                items.append(item)
        self._left.set()
        self._left = trio.Event()
        if not items:
            return None
        self._numbers += 1
        return Packet(self._numbers, items, self._epoch())

    def _is_wanted(self, item: Item) -> bool:
        """Whether it is to be taken still; otherwise its publisher has been told."""
        if item.batch.epoch not in (None, self._epoch()):
            self._give_up(item)
        return not item.is_over

    def _send(self, packet: Packet) -> None:
        request = [
            FORMAT,
            self._now_ms(),
            self._session,
            packet.number,
            int(self._config.dedupe_seconds * 1000),
            [item.wire for item in packet.items],
        ]
        for item in packet.items:
            item.packet = packet
        packet.call = Call(
            "EVALSHA",
            DIGESTS["publish"],
            1,
            f"{self._config.redis_prefix}clock",
            msgspec.msgpack.encode(request),
            finish=partial(self._settle, packet),
        )
        self._commands.submit(packet.call)

    def _settle(self, packet: Packet) -> None:
        """Give a packet's events their outcomes, or have it sent again."""
        call, packet.call = packet.call, None
        assert call is not None
        error = call.reply if isinstance(call.reply, hiredis.ReplyError) else None
        if call.lost or (error is not None and code(error) in UNUSABLE):
            packet.maybe_taken = packet.maybe_taken or call.lost
            self._again.append(packet)
            self._again.sort(key=lambda each: each.number)
            self._more.set()
            return
        if error is not None:
            outcome = _UNKNOWN if packet.maybe_taken else _REFUSED
            refusal = Unavailable(f"Redis refuses: {str(error)[:200]}", outcome=outcome)
            for item in packet.items:
                item.batch.give(item.index, refusal)
            return
        for item, result in zip(packet.items, call.reply, strict=True):
            item.batch.give(item.index, self._result(item, result.decode()))

    def _result(self, item: Item, result: str) -> Position | GatewayError:
        if result == "E":
            seconds = max(self._rule(name).history_seconds for name in item.event.channels)
            return ChannelEnded(
                "The channel has ended; publish to another one, or wait until its history has "
                f"expired ({seconds:g} s)."
            )
        if result.startswith("X"):
            return Unavailable(f"Redis refuses: {result[1:201]}", outcome=_REFUSED)
        self.repeated += result.startswith("=")
        position = Position.parse(result.removeprefix("="))
        if position is None:
            return Unavailable("Redis holds something else under the id.", outcome=_REFUSED)
        return position


def _refusal() -> Unavailable:
    return Unavailable(
        "The link to Redis is lost, or has more to carry than it can. The event was not taken; "
        "publish it again later.",
        outcome=_REFUSED,
    )


def _calls(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """``events`` in groups of which each fits into a call, or is a single event."""
    start = size = targets = 0
    for at, event in enumerate(events):
        size += len(event.data) + EVENT_OVERHEAD
        targets += len(event.channels)
        if at > start and (size > CALL_BYTES or targets > CALL_TARGETS):
            yield events[start:at]
            start, size, targets = at, len(event.data) + EVENT_OVERHEAD, len(event.channels)
    if events:
        yield events[start:]


def _tie(items: Sequence[Item]) -> None:
    """Have the first item stand for the room of all, so that none of them is left for a later
    call: they have no targets, by which `_next_packet` knows them."""
    if items:
        items[0].size = sum(item.size for item in items)
        items[0].targets = sum(item.targets for item in items)
    for item in items[1:]:
        item.size = item.targets = 0


def _text(body: bytes) -> msgspec.Raw:
    """As msgpack's str 32: the cmsgpack of Redis knows no bin."""
    return msgspec.Raw(b"\xdb" + len(body).to_bytes(4, "big") + body)


def _token(event: Event) -> str:
    """What tells a repeat, for events with an id of their publisher's."""
    if event.id is None:
        return ""
    text = "\n".join((event.id, *sorted(event.channels)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
