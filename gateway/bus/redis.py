"""The bus of many nodes: Redis, on two connections of our own.

Publishing and reading go through `Commands`, everything that is live comes through `Listener`.

1. Position, history and message of an event are made by one script call, so history and live flow
   have one order. What comes is passed on in that order, and each message names the one before it.
2. H is proven by a message that comes behind all that was published up to it: whoever joins at H
   has everything up to there in rings or history, and everything later comes.
3. After a lost link nothing is passed on until what was missed has been, merged by position; where
   history no longer has it, the clients are told.
4. Each link is watched by what must come through it: replies, and a proof every few seconds. Only
   the one that fails is closed.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import trio

from gateway.bus import BusStatistics, History, LinkStatistics, Sink, Source, TellGap
from gateway.bus.address import Address
from gateway.bus.history import RETRY_SECONDS, HistoryReader
from gateway.bus.inflow import Inflow
from gateway.bus.link import Link
from gateway.bus.publisher import Publisher
from gateway.bus.resp import LinkLost
from gateway.bus.ring import Ring
from gateway.bus.subscriptions import Subscription, Subscriptions
from gateway.charge import Charge
from gateway.config import ChannelRule, Config
from gateway.errors import GatewayError, Unavailable
from gateway.event import Event, Frame
from gateway.position import ZERO, Position

SWEEP_SECONDS = 5.0

RINGS_SLICE = 1000
"""Rings looked at between two checkpoints."""

RULES_REMEMBERED = 16_384
"""Rules of channels that are remembered; they are asked for with every event."""

BATCH = 1024
"""Events of one request: several calls of the script, one behind the other and not each after the
reply to the last. Half as much again in events per second as 64."""

FILL_FRAMES = 256
"""Of a page that is read into a ring."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class RedisBus:
    """A `gateway.bus.Bus`. ``now_ms`` stands for Redis's clock in tests; 0 is that clock."""

    def __init__(
        self,
        config: Config,
        address: Address,
        sink: Sink,
        *,
        worker: str,
        tell_gap: TellGap,
        receive: Callable[[bytes], None] = lambda message: None,
        resumed: Callable[[], None] = lambda: None,
        charge: Charge | None = None,
        now_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """``worker`` is a tag of this process alone; ``receive`` is given what others `send`, and
        ``resumed`` is called when some of that may have been missed; ``charge`` is the node's, if
        there is more than the bus in it.
        """
        self._config = config
        self._charge = charge or Charge(config.memory_bytes)
        self._prefix = config.redis_prefix
        self._worker = worker
        self._patience = config.publish_wait + config.redis_timeout
        self._rules: dict[str, ChannelRule] = {}
        self._subscriptions = Subscriptions(self._prefix, self._charge)
        self._link = Link(config, address, worker, self._seen, now_ms)
        self.commands = self._link.commands
        self._publisher = Publisher(
            config,
            self.commands,
            worker=worker,
            rule=self.rule,
            epoch=lambda: self._link.breaks,
            now_ms=now_ms,
        )
        self._reader = HistoryReader(
            self.commands,
            self._prefix,
            rule=self.rule,
            now_ms=now_ms,
            head=self.head,
            watch_evicted=self._link.watch_evicted,
            lossy=lambda: self._link.epoch.lossy,
            patience=self._patience,
        )
        self._inflow = Inflow(
            config,
            self._link,
            self._subscriptions,
            self._reader,
            sink,
            worker=worker,
            rule=self.rule,
            tell_gap=tell_gap,
            receive=receive,
            resumed=resumed,
            now_ms=now_ms,
        )

    def rule(self, channel: str) -> ChannelRule:
        rule = self._rules.get(channel)
        if rule is None:
            if len(self._rules) >= RULES_REMEMBERED:
                self._rules.clear()
            rule = self._rules[channel] = self._config.rule(channel)
        return rule

    def _seen(self) -> Position:
        return max(self._inflow.proven, self._publisher.latest)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.commands.run)
            nursery.start_soon(self._publisher.run)
            nursery.start_soon(self._inflow.run)
            nursery.start_soon(self._sweep)

    # -- the promises

    @property
    def batch(self) -> int:
        return BATCH

    @property
    def source(self) -> Source:
        return Source.REDIS

    @property
    def ahead_ms(self) -> int:
        """Milliseconds by which the clock of positions is ahead of the node's."""
        return round(self._inflow.clock_skew * 1000)

    @property
    def ready(self) -> bool:
        return self._inflow.ready

    def vouches(self, after: Position) -> bool:
        return self._link.epoch.vouches(after)

    def head(self) -> Position:
        return self._inflow.proven

    async def subscribe(self, channels: Collection[str], after: Position = ZERO) -> Position:
        waiting = self._subscriptions.claim(channels)
        done = False
        try:
            with trio.move_on_after(self._patience):
                self._inflow.subscribe_wanted()
                for subscription in waiting:
                    await subscription.ready.wait()
                if max(after, self._publisher.latest, Position(0, 1)) > self.head():
                    await self._inflow.prove()
                done = True
                return self.head()
            raise Unavailable("The link to Redis is lost; come back later.", reason="bus")
        finally:
            if not done:
                self._subscriptions.release(channels)

    def unsubscribe(self, channels: Collection[str]) -> None:
        self._subscriptions.release(channels)

    async def publish(
        self, events: Sequence[Event], patience: float | None = None
    ) -> Sequence[Position | GatewayError]:
        return await self._publisher.publish(events, patience)

    async def history(self, channel: str, after: Position, until: Position, limit: int) -> History:
        subscription = self._subscriptions.get(channel)
        if subscription is not None and subscription.begun and until <= self.head():
            subscription.ring.expire(self._oldest(channel), RINGS_SLICE)
            reaches = after >= subscription.ring.reaches
            if reaches or await self._fill(subscription, after):
                found = subscription.ring.history(after, until, limit)
                return replace(found, source=Source.RING if reaches else Source.REDIS)
        return await self._reader.read(channel, after, until, limit)

    async def newest(self, channel: str, limit: int) -> Sequence[Frame]:
        return await self._patiently(lambda: self._reader.newest(channel, limit))

    async def last(self, channel: str) -> Position | None:
        record = await self._patiently(lambda: self._reader.record(channel))
        return record.last if record is not None else None

    async def ended(self, channel: str) -> Position | None:
        subscription = self._subscriptions.get(channel)
        if subscription is not None and subscription.ready.is_set():
            ended = subscription.ended
            return ended if ended is not None and ended >= self._oldest(channel) else None
        record = await self._patiently(lambda: self._reader.record(channel))
        return record.last if record is not None and record.ended else None

    def rings(self) -> Iterator[Ring]:
        return (subscription.ring for subscription in tuple(self._subscriptions))

    def statistics(self) -> BusStatistics:
        publisher, inflow = self._publisher, self._inflow
        return BusStatistics(
            published=publisher.accepted - publisher.repeated,
            repeated=publisher.repeated,
            refused=publisher.refused,
            channels=len(self._subscriptions),
            history_bytes=self._charge.histories,
            history_evicted=0,
            dedupe_entries=0,
            dedupe_evicted=0,
            link=LinkStatistics(
                up=int(self.commands.connected and inflow.is_live),
                lost=self.commands.losses + inflow.losses,
                resent=publisher.resent,
                unknown=publisher.unknown,
                holes=inflow.holes,
                unreadable=inflow.unreadable,
                breaks=self._link.breaks,
                evicted=self._link.evicted,
                overruns=inflow.overruns,
                subscriptions=len(self._subscriptions),
                history_reads=self._reader.reads,
                reconnects=self.commands.reconnects + inflow.reconnects,
                probes=inflow.probes,
                proof_age=inflow.proof_age,
                clock_skew=inflow.clock_skew,
            ),
        )

    # -- workers among themselves

    async def send(self, worker: str | None, message: bytes) -> int:
        """Pass a message to a worker, or to all; how many there are. Raises Unavailable.

        A worker that is there, but does not listen just now, is not taken for gone.
        """
        workers = f"{self._prefix}workers"
        present = ("ZCARD", workers) if worker is None else ("ZSCORE", workers, worker)
        channel = f"{self._prefix}all" if worker is None else f"{self._prefix}w:{worker}"
        try:
            await self.commands.room()
        except LinkLost:
            raise Unavailable(
                "The link to Redis is lost; other workers cannot be asked.",
                reason="bus",
                outcome="refused",
            ) from None
        try:
            reached, there = await self.commands.calls(("PUBLISH", channel, message), present)
            if worker is None:
                return max(int(reached), int(there))
            if reached or there is None:
                return int(reached)
        except (LinkLost, TypeError):
            raise Unavailable(
                "The link to Redis was lost; other workers may not have heard.",
                reason="bus",
                outcome="unknown",
            ) from None
        raise Unavailable(
            "The worker of that client has lost its link to Redis for the moment; try again.",
            reason="bus",
            outcome="refused",
        )

    async def leave(self, worker: str | None = None) -> None:
        """This worker ends, or ``worker`` has ended: nobody need wait for it."""
        tag = self._worker if worker is None else worker
        with suppress(LinkLost):
            await self.commands.call("ZREM", f"{self._prefix}workers", tag)

    # -- within

    def _oldest(self, channel: str) -> Position:
        """What is before that has been forgotten by its age."""
        return Position(max(0, self.head().ms - int(self.rule(channel).history_seconds * 1000)), 0)

    async def _fill(self, subscription: Subscription, after: Position) -> bool:
        """Have the ring reach back to ``after``, by reading history once for all who want that.

        False if it cannot hold as much.
        """
        while subscription.filling is not None:
            await subscription.filling.wait()
        ring = subscription.ring
        if after >= ring.reaches or after <= subscription.too_deep:
            return after >= ring.reaches
        subscription.filling = trio.Event()
        try:
            until, at, previous = ring.previous, after, None
            frames: list[Frame] = []
            size, room = 0, ring.max_bytes - ring.bytes
            while True:
                page = await self._reader.read(subscription.name, at, until, FILL_FRAMES)
                if previous is None:
                    previous = page.previous
                elif page.previous > at:  # forgotten meanwhile
                    return False
                frames += page.frames
                size += sum(len(frame.chunk) for frame in page.frames)
                if size > room or len(frames) + len(ring) > ring.max_frames:
                    subscription.too_deep = max(subscription.too_deep, after)
                    return False
                if page.complete:
                    break
                at = page.frames[-1].position
            if subscription.ring is ring and ring.previous == until:
                ring.prepend(frames, previous, after)
            return subscription.ring is ring and after >= ring.reaches
        finally:
            subscription.filling.set()
            subscription.filling = None

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        with trio.move_on_after(self._patience):
            while True:
                await self.commands.wait_connected()
                try:
                    return await ask()
                except LinkLost:
                    await trio.sleep(RETRY_SECONDS)
        raise Unavailable("The link to Redis is lost; come back later.", reason="bus")

    async def _sweep(self) -> None:
        """Let go of subscriptions that nobody has wanted for a while; keep rings in bounds."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self._inflow.unsubscribe_overdue()
            for turn, subscription in enumerate(list(self._subscriptions), 1):
                if self._charge.histories > self._config.history_total_bytes:
                    subscription.ring.clear()
                if not turn % RINGS_SLICE:
                    await trio.lowlevel.checkpoint()
