"""What comes in from Redis, and what that proves.

`Listener` brings messages; here they become frames for the sink, in position order, each once. Up
to ``proven`` everything of the subscriptions that have begun was passed on: the last message, or
the last proof.

1. A message that names a later event before it than the last that came shows a hole: the link is
   given up, and what is missing is read from history like after any other lost link.
2. What a proof brings is proven by its place behind everything that came before it.
3. A break that Redis has recorded is told to the clients between what came before and after it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import trio

from gateway.bus import Sink, TellGap, wire
from gateway.bus.history import MOST_FRAMES, SLICE, HistoryReader, cut
from gateway.bus.link import Link
from gateway.bus.listener import Listener, Message
from gateway.bus.merge import ROUND_FRAMES, Round
from gateway.bus.prover import Prover, Told, parse_told
from gateway.bus.resp import Connection, LinkLost
from gateway.bus.subscriptions import Subscription, Subscriptions
from gateway.config import ChannelRule, Config
from gateway.control import Gap
from gateway.errors import Unavailable
from gateway.event import Frame
from gateway.histogram import Distribution
from gateway.position import ZERO, Position

_log = logging.getLogger(__name__)

MESSAGES_PER_TURN = 128
"""Between two checkpoints: about half a millisecond."""

MOST_AHEAD_MS = 24 * 3600 * 1000
"""Beyond what has been proven, no position is believed: a proof is a second old at most."""

EXPIRY_SLACK_MS = 10_000
"""By which a channel is taken to have expired too early rather than too late."""

OVERRUN_SECONDS = 60.0
OVERRUNS = 3
"""Links lost while the fan-out made Redis wait, in that time, after which the node is not ready."""


class Inflow:
    """The owner of a `Listener`."""

    def __init__(
        self,
        config: Config,
        link: Link,
        subscriptions: Subscriptions,
        reader: HistoryReader,
        sink: Sink,
        *,
        worker: str,
        rule: Callable[[str], ChannelRule],
        tell_gap: TellGap,
        receive: Callable[[bytes], None],
        resumed: Callable[[], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._link = link
        self._subscriptions = subscriptions
        self._reader = reader
        self._sink = sink
        self._tell_gap = tell_gap
        self._receive = receive
        self._resumed = resumed
        self._rule = rule
        own = [f"{config.redis_prefix}{name}" for name in (f"p:{worker}", f"w:{worker}", "all")]
        self._proof_channel, *self._own_channels = (each.encode() for each in own)
        self._listener = Listener(link.dial, self, subscriptions, own, timeout=config.redis_timeout)
        self._prover = Prover(
            link,
            self._listener,
            worker=worker,
            prefix=config.redis_prefix,
            timeout=config.redis_timeout,
            is_paused=lambda: self._paused,
            now_ms=now_ms,
        )
        self._told_broken: Position | None = None
        self._delivered = ZERO
        self._multi: tuple[Position, int] | None = None
        """An event of several channels, and for how many of them it has yet to come."""
        self._holes: dict[str, Position] = {}
        """Channels of which something is missing that is older than what was passed on since, and
        up to where."""
        self._turns = 0
        self._paused = False
        self._is_late = False
        """It has paused since the last proof: what is read was sent a while ago."""
        self._overrun_at: list[float] = []
        self.proven = ZERO
        self._proven_at = trio.current_time()
        """When the newest proof came, by trio's clock."""
        self.holes = self.unreadable = self.overruns = 0

    @property
    def is_live(self) -> bool:
        return self._listener.is_live

    @property
    def losses(self) -> int:
        return self._listener.losses

    @property
    def reconnects(self) -> int:
        return self._listener.reconnects

    @property
    def probes(self) -> Distribution:
        """Seconds until a proof came."""
        return self._prover.probes.snapshot()

    @property
    def proof_age(self) -> float:
        """Seconds since the newest proof came, or since the start."""
        return trio.current_time() - self._proven_at

    @property
    def clock_skew(self) -> float:
        """Seconds by which Redis's clock is ahead of ours."""
        return self._prover.skew.seconds

    @property
    def ready(self) -> bool:
        """Whether it has been linked, and keeps up with what comes."""
        since = trio.current_time() - OVERRUN_SECONDS
        self._overrun_at = [at for at in self._overrun_at if at > since]
        return self.proven != ZERO and len(self._overrun_at) < OVERRUNS

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listener.run)
            nursery.start_soon(self._prover.run)

    def subscribe_wanted(self) -> None:
        """Have SUBSCRIBE sent for what is newly wanted."""
        if wanted := self._subscriptions.wanted:
            self._subscriptions.wanted = []
            self._listener.subscribe(wanted)

    async def prove(self) -> None:
        """Return when a position has been proven that was read from now on."""
        await self._prover.prove()

    def unsubscribe_overdue(self) -> None:
        if self._multi is None:  # else one of them may be counted on
            self._listener.unsubscribe(self._subscriptions.overdue())

    # -- as the listener's owner

    async def check(self, connection: Connection) -> None:
        await self._link.check(connection)

    async def resume(self) -> None:
        await self._prover.resume()

    def is_proof(self, channel: bytes, payload: bytes) -> bool:
        return channel == self._proof_channel and self._prover.is_resumed_by(payload)

    def confirmed(self, subscription: Subscription) -> None:
        if not subscription.ready.is_set():
            self._prover.begin_soon(subscription)

    def lost(self) -> None:
        if self._is_late:
            self._overrun_at.append(trio.current_time())
            self.overruns += 1
        self._paused = self._is_late = False
        self._prover.lost()
        for subscription in self._subscriptions:
            if not subscription.ready.is_set():
                subscription.forget()

    async def catch_up(self, payload: bytes) -> None:
        """The barrier: everything that was missed, before anything later."""
        told = parse_told(payload)
        assert told is not None  # it is the proof that was waited for
        self._learn(told)
        self._resumed()
        await self._tell_break()
        if self.proven != ZERO:
            await self._merge(told.head)
        self.proven = max(self.proven, told.head)
        self._proven_at = trio.current_time()
        self._multi = None

    async def _merge(self, head: Position) -> None:
        """Pass on everything in (proven, head], in rounds, of all channels that have begun."""
        begun = {each.name: each for each in self._subscriptions if each.begun}
        await self._tell_gone(begun, {n: at for n, at in self._holes.items() if n in begun})
        self._holes.clear()
        names = await self._that_went_on(list(begun), head)
        while names and self.proven < head:
            part = Round(head)
            later: list[str] = []
            gone: dict[str, Position] = {}
            share = max(1, min(MOST_FRAMES, ROUND_FRAMES // len(names)))
            ends: dict[str, Position] = {}
            for start in range(0, len(names), SLICE):
                some = names[start : start + SLICE]
                pages = await self._reader.read_many(some, self.proven, share)
                for name, page in zip(some, pages, strict=True):
                    page = cut(page, head)
                    part.add(page)
                    if page.previous > max(begun[name].last, self.proven):
                        gone[name] = page.previous
                    if not page.complete:
                        later.append(name)
                    elif page.frames:
                        ends[name] = page.frames[-1].position
            await self._tell_gone(begun, {n: at for n, at in gone.items() if at <= part.until})
            for frame in part.frames():
                for name in frame.channels:
                    if (subscription := begun.get(name)) and frame.position > subscription.last:
                        subscription.take(frame)
                await self._pass_on(frame)
                self.proven = max(self.proven, frame.position)
                await self._turn()
            self.proven = part.until
            later += [name for name, at in ends.items() if at > part.until]
            later += [name for name, at in gone.items() if at > part.until and name not in ends]
            names = list(dict.fromkeys(later))
        for subscription in begun.values():
            subscription.last = max(subscription.last, head)
            await self._turn()

    async def _that_went_on(self, names: Sequence[str], head: Position) -> list[str]:
        """Those of ``names`` of which something may have been missed."""
        records = await self._reader.records(names)
        return [
            name
            for name, record in zip(names, records, strict=True)
            if (self._may_have_expired(name, head) if record is None else record.last > self.proven)
        ]

    def _may_have_expired(self, name: str, head: Position) -> bool:
        """Whether a channel of which nothing is known may have had an event since."""
        lifetime = int(self._rule(name).history_seconds * 1000)
        return self.proven.ms + lifetime < head.ms + EXPIRY_SLACK_MS

    async def _tell_gone(
        self, begun: Mapping[str, Subscription], gone: Mapping[str, Position]
    ) -> None:
        for name, previous in gone.items():
            begun[name].start(previous)
        if gone:
            await self._tell_gap(gone, max(gone.values()), Gap.TRIMMED)

    async def take(self, messages: Sequence[Message]) -> None:
        by_channel, sink = self._subscriptions.by_channel, self._sink
        for turn, (_, channel, payload) in enumerate(messages, 1):
            if not turn % MESSAGES_PER_TURN:
                await trio.lowlevel.checkpoint()
            subscription = by_channel.get(channel)
            if subscription is None or not subscription.confirmed:
                await self._take_other(channel, payload)
                continue
            try:
                frame, identifier, before = wire.decode(payload, subscription.names)
                if frame.position.ms > self.proven.ms + MOST_AHEAD_MS:
                    raise wire.Unreadable(None, None)  # no script of ours gave it out
                if before == subscription.last_text or self._follows(subscription, frame, before):
                    subscription.take(frame, identifier)
            except wire.Unreadable as error:
                await self._skip(subscription, error)
                continue
            position = frame.position
            if self._multi is not None or len(frame.channels) > 1:
                if position > self.proven and not self._is_whole(frame):
                    continue
                wanted = any(map(self._is_wanted, frame.channels))
            else:
                wanted = subscription.claims > 0
            if wanted and position > self._delivered:
                if sink.has_room(len(frame.chunk)):
                    sink.deliver(frame)
                    self._delivered = position
                else:
                    await self._pass_on(frame)
            if position > self.proven:
                self.proven = position

    def _follows(self, subscription: Subscription, frame: Frame, before: bytes) -> bool:
        """Whether a message is new, and nothing is missing before it; raises LinkLost if it is, and
        Unreadable."""
        last = subscription.last
        if frame.position <= last:
            return False
        previous = wire.position_of(before)
        if not subscription.begun and last == ZERO:
            subscription.start(previous)
            return True
        if previous <= last or (previous <= self.proven and wire.is_known_empty(before)):
            return True
        if last < self.proven:  # what was passed on since is later than what is missing may be
            self._holes[subscription.name] = previous
        raise self._hole(subscription.name)

    def _is_whole(self, frame: Frame) -> bool:
        """Whether an event of several channels has come for all that are subscribed to: only then
        do their rings hold it, and it counts as come."""
        if self._multi is None:
            subscribed = map(self._subscriptions.get, frame.channels)
            left = sum(each is not None and each.confirmed for each in subscribed)
            self._multi = frame.position, left
        position, left = self._multi
        if position != frame.position:
            raise self._hole(frame.channels[0])
        self._multi = (position, left - 1) if left > 1 else None
        return self._multi is None

    def _is_wanted(self, name: str) -> bool:
        subscription = self._subscriptions.get(name)
        return subscription is not None and subscription.claims > 0

    def _hole(self, name: str) -> LinkLost:
        self.holes += 1
        return LinkLost(f"a message to {name} is missing")

    async def _take_other(self, channel: bytes, payload: bytes) -> None:
        """A proof, a word from another worker, or an event that nobody wants any more."""
        if channel == self._proof_channel:
            told = parse_told(payload)
            if told is None:
                self.unreadable += 1
                return
            self._learn(told)
            self._is_late = False
            await self._tell_break()
            if self._multi is not None:
                raise self._hole("one of an event's channels")
            self.proven = max(self.proven, told.head)
            self._proven_at = trio.current_time()
            self._prover.take(told)
        elif channel in self._own_channels:
            self._receive(payload)

    async def _skip(self, subscription: Subscription, error: wire.Unreadable) -> None:
        """A message of a later version of this program: what it says is missed, and told."""
        self.unreadable += 1
        if error.position is None or error.position.ms > self.proven.ms + MOST_AHEAD_MS:
            return
        if error.position > subscription.last:
            subscription.start(error.position)
            await self._tell_gap((subscription.name,), error.position, Gap.UNKNOWN)
            self.proven = max(self.proven, error.position)

    async def _pass_on(self, frame: Frame) -> None:
        """Give a frame to the sink, when that has room, unless it has it."""
        if frame.position <= self._delivered:
            return
        size = len(frame.chunk)
        while not self._sink.has_room(size):
            self._paused = self._is_late = True
            with suppress(Unavailable):  # a publisher is refused then; what is live waits
                await self._sink.room(size)
        self._paused = False
        self._sink.deliver(frame)
        self._delivered = frame.position

    async def _turn(self) -> None:
        """Let everybody else have a turn now and then."""
        self._turns += 1
        if not self._turns % MESSAGES_PER_TURN:
            await trio.lowlevel.checkpoint()

    def _learn(self, told: Told) -> None:
        """What a proof says of the Redis that it comes from."""
        if told.run_id != self._link.run_id:
            self._link.commands.convict("another Redis answers")
            raise LinkLost("the proof is of another Redis")
        self._link.learn(told.epoch)

    async def _tell_break(self) -> None:
        broken = self._link.epoch.broken
        if self._told_broken is not None and broken > self._told_broken:
            await self._tell_gap(None, broken, Gap.RESTARTED)
        self._told_broken = broken
