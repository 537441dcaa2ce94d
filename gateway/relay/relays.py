"""The token streams of a worker: begun, stopped, watched, and those of the dead buried.

1. Each has a task of its own, owned here; nobody's request, connection or cancellation ends one.
2. What is asked of a stream is asked of the worker that makes it, and where that cannot be, its
   channel is ended from here: the bus then refuses what its worker would still publish.
3. How many there are at a time is bounded, by upstream and user.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import trio

from gateway.bus import Bus
from gateway.cluster import COMMAND_SECONDS, READ_SECONDS, Cluster
from gateway.config import Config, Format
from gateway.errors import ChannelEnded, Conflict, GatewayError, NotFound, Unavailable
from gateway.event import Event
from gateway.histogram import Distribution, Histogram
from gateway.messages import Command
from gateway.names import RAW_SUFFIX, stream_channel
from gateway.position import ZERO, Position
from gateway.relay.copies import Copies
from gateway.relay.events import FAILURES, REASONS, Complete, Error, Failure, Start, render
from gateway.relay.outlet import Outlet
from gateway.relay.record import MAX_MODEL, Record, new_id
from gateway.relay.registry import LEASE_SECONDS, MAX_OVERDUE, Registry, RegistryStatistics
from gateway.relay.running import Running
from gateway.relay.sizes import RESERVE_BYTES, RESERVE_EVENTS
from gateway.relay.stories import Stories
from gateway.relay.story import STOPPED, Story
from gateway.streams import Beginning

MAX_RUNNING = 10_000
"""Token streams that a worker makes at a time, over all upstreams."""

LOOK_SECONDS = 1.0
"""Between two looks for streams whose workers have died, and for who watches."""

MAX_ASKED = 500
"""Streams whose viewers other workers are asked for at a time."""

SURE_SECONDS = 1.0
"""For which a lease must hold, at the least, that something is published by."""

STOP_SECONDS = 2.0
"""For which a stop is waited for; the upstream's connection is closed at its beginning."""

FIRST_TOKENS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
"""Seconds."""

OTHER = "other"
"""Stands for reasons and codes that are an upstream's or an application's own words."""

ENDS: dict[str, tuple[str, ...]] = {
    "complete": (*(reason for reason in REASONS if reason not in STOPPED), OTHER),
    "stopped": STOPPED,
    "error": (*FAILURES, OTHER),
}
"""By what state, and for which reason or code, a stream ends, as it is counted."""

REFUSALS = ("draining", "running", "upstream", "user")
"""Why none is begun."""

_log = logging.getLogger("gateway")

K = TypeVar("K")

Produce = Callable[[Running], Awaitable[Complete]]
"""Feeds a token stream until it is complete. Raises Failure."""

Again = Callable[[Record, bytes], "tuple[Limits, Produce] | None"]
"""How a stream of another worker is begun again here, by its record and request; None where it
cannot be."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one token stream. ``unwatched_seconds`` is after how long without viewers it is stopped;
    0: never."""

    max_tokens: int
    max_seconds: float
    max_event_bytes: int
    batch_seconds: float = 0.0
    batch_bytes: int = 0
    unwatched_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A token stream that is to be."""

    produce: Produce | None
    """None where its producer is still to come, within ``away_seconds``."""
    limits: Limits
    format: Format
    upstream: str | None = None
    model: str | None = None
    channel: str | None = None
    """None for its own, ``stream:<id>``."""
    user: str | None = None
    publisher: str = ""
    idempotent: bool = False
    request: bytes = b""
    """What another worker needs to begin it again, of one that is idempotent."""
    away_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """A snapshot; all but ``running`` (by format), ``waiting_events`` and what the registry holds
    are counted since the start. ``opened`` is by format, ``ended`` as ENDS has it."""

    running: dict[str, int]
    opened: dict[str, int]
    ended: dict[str, dict[str, int]]
    tokens: int
    first_token: dict[str, Distribution]
    """Seconds that it took, by upstream."""
    restarted: int
    lost: int
    """Streams of other workers that had died."""
    resumed: int
    """Producers that came back."""
    joined_late: int
    """Viewers that began with a snapshot."""
    cut_clients: int
    """Clients of the drop-in that were given no more, since they had fallen too far behind."""
    copied_bytes: int
    """That wait for clients of the drop-in at the moment."""
    refused: dict[str, int]
    waiting_events: int
    """Taken in and not yet published."""
    registry: RegistryStatistics


class OfTokenStream(msgspec.Struct):
    id: str


class Stopped(msgspec.Struct):
    """Whether the worker that was asked made the stream."""

    was_here: bool


class OfViewers(msgspec.Struct):
    channels: list[str]


class Viewers(msgspec.Struct):
    """How many clients have each channel or its raw one, as they were asked for."""

    counts: list[int]


STOP_TOKEN_STREAM = Command("stop-token-stream", OfTokenStream, Stopped, COMMAND_SECONDS)
COUNT_VIEWERS = Command("count-viewers", OfViewers, Viewers, READ_SECONDS)


class Relays:
    def __init__(
        self,
        config: Config,
        bus: Bus,
        cluster: Cluster,
        registry: Registry,
        *,
        viewers: Callable[[str], int],
        now_ms: Callable[[], int],
    ) -> None:
        """``viewers`` says how many clients of this worker have a channel."""
        self._config = config
        self._bus = bus
        self._cluster = cluster
        self.registry = registry
        self.stories = Stories(bus, config.publish_wait + config.redis_timeout)
        self._viewers = viewers
        self._now_ms = now_ms
        self._nursery: trio.Nursery | None = None
        self.running: dict[str, Running] = {}
        self._unwatched: dict[Running, float] = {}
        """Those that are to stop without viewers, and after how many seconds."""
        self._left = trio.Event()
        """One of the running has gone."""
        self._of_upstream: Counter[str | None] = Counter()
        self._of_user: Counter[tuple[str | None, str]] = Counter()
        self.leaving = False
        """No new ones are begun here."""
        self.again: Again = lambda record, request: None
        self._opened: Counter[str] = Counter(dict.fromkeys(Format, 0))
        self._ended = {state: Counter(dict.fromkeys(words, 0)) for state, words in ENDS.items()}
        self.refused: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))
        self._first_tokens = {each.name: Histogram(FIRST_TOKENS) for each in config.upstreams}
        self._tokens = self._restarted = self._lost = 0
        self.resumed = self.joined_late = 0
        self.copies = Copies()
        cluster.serve(STOP_TOKEN_STREAM, self._stop_here)
        cluster.serve(COUNT_VIEWERS, self._count_viewers)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make what is begun, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            nursery.start_soon(self.registry.run)
            nursery.start_soon(self._bury)
            nursery.start_soon(self._watch)

    # -- beginning

    def count(self, upstream: str | None, user: str | None = None) -> int:
        """How many of an upstream's (None: pushed ones) this worker makes, or of one user's."""
        return self._of_upstream[upstream] if user is None else self._of_user[upstream, user]

    @contextmanager
    def holding(self, upstream: str, user: str | None) -> Iterator[None]:
        """Count a call of an upstream that is no token stream, or not yet."""
        self._count_in(upstream, user)
        try:
            yield
        finally:
            self._count_out(upstream, user)

    async def begin(self, plan: Plan) -> Running:
        """A token stream, whose ``start`` has been published when this returns.

        Raises Unavailable where there is no room or no link, and Conflict where its channel is
        another stream's or has ended.
        """
        if self.leaving:
            self.refused["draining"] += 1
            raise Unavailable("The node is draining; begin at another.", reason="draining")
        if len(self.running) >= MAX_RUNNING:
            self.refused["running"] += 1
            raise Unavailable("The worker makes all the token streams that it can.")
        id = new_id()
        channel = plan.channel or stream_channel(id)
        views_differ = plan.format in (Format.OPENAI, Format.ANTHROPIC)
        record = Record(
            id=id,
            channel=channel,
            raw=channel + RAW_SUFFIX if views_differ else channel,
            format=plan.format,
            created_ms=self._now_ms(),
            upstream=plan.upstream,
            model=plan.model[:MAX_MODEL] if plan.model is not None else None,
            user=plan.user,
            publisher=plan.publisher,
            idempotent=plan.idempotent,
            unwatched_seconds=plan.limits.unwatched_seconds,
        )
        running = self._running(record, plan.limits)
        self._enter(running, plan.limits)
        begun = entered = refused = False
        try:
            await self.registry.open(record, running.lose, plan.request)
            entered = True
            start = render(Start(id, plan.upstream, record.model), channel)
            (began,) = await self._bus.publish((start,))
            if isinstance(began, ChannelEnded):
                refused = True
                raise Conflict(f"The channel {channel} has ended; take another one.")
            if isinstance(began, GatewayError):
                refused = began.extra.get("outcome") != "unknown"
                raise began
            running.outlet.began = running.outlet.position = began
            begun = True
        finally:
            if not begun:
                self._leave(running)
                if refused or not entered:
                    self.registry.forget(id)
                else:  # its start may have been taken, or be taken yet
                    assert self._nursery is not None
                    self._nursery.start_soon(self._undo, record)
        self._opened[plan.format] += 1
        if plan.produce is not None:
            self._start(running, plan.produce)
        else:
            self._leave(running)
            await self.registry.release(id, plan.away_seconds)
        return running

    async def _undo(self, record: Record) -> None:
        """End what nobody was told of, in case that somebody watches its channel."""
        with suppress(Unavailable):
            try:
                await self._publish_end(record, Failure("internal").told())
            except GatewayError:
                await self.registry.release(record.id, 0.0)  # whoever finds it overdue ends it
            else:
                self.registry.forget(record.id)

    def adopt(self, record: Record, limits: Limits, began: Position, produce: Produce) -> Running:
        """Make on a stream whose lease is this worker's already, and whose ``start`` stands at
        ``began``."""
        running = self._running(record, limits)
        running.outlet.began = running.outlet.position = began
        self._enter(running, limits)
        self._start(running, produce)
        return running

    def _running(self, record: Record, limits: Limits) -> Running:
        async def begin() -> bool:
            return await self.registry.begin(record.id)

        is_pushed = record.format is Format.PUSH
        kept = self._config.rule(record.channel)
        return Running(
            record,
            Outlet(self._publish_own if is_pushed else self._publish, self._bus.vouches),
            max_tokens=min(limits.max_tokens, max(kept.history_events - RESERVE_EVENTS, 0)),
            max_seconds=limits.max_seconds,
            max_event_bytes=limits.max_event_bytes,
            max_kept_bytes=max(kept.history_bytes - RESERVE_BYTES, 0),
            batch_seconds=limits.batch_seconds,
            batch_bytes=limits.batch_bytes,
            away_seconds=self._config.push_lease if is_pushed else 0.0,
            begin=begin if record.idempotent else None,
            count_tokens=self._count_tokens,
            first_token=lambda seconds: self._time_first_token(record, seconds),
        )

    async def _publish(
        self, events: Sequence[Event], patience: float
    ) -> Sequence[Position | GatewayError]:
        return await self._bus.publish(events, patience)

    async def _publish_own(
        self, events: Sequence[Event], patience: float
    ) -> Sequence[Position | GatewayError]:
        """The same while nobody else can have taken the stream over, who would go on with it: that
        needs no end, which would fence it off. Refused where it had to wait for that: whoever asks
        again looks first at what the bus may have lost meanwhile."""
        sure = self.registry.sure_for()
        if sure >= SURE_SECONDS:
            return await self._bus.publish(events, min(patience, sure))
        with trio.move_on_after(patience):
            while self.registry.sure_for() < SURE_SECONDS:  # noqa: ASYNC110  # it is the clock's
                await trio.sleep(SURE_SECONDS / 10)
        away = Unavailable("The registry of token streams was away.", outcome="refused")
        return [away] * len(events)

    def _count_tokens(self, count: int) -> None:
        self._tokens += count

    def _time_first_token(self, record: Record, seconds: float) -> None:
        if record.upstream is not None:  # of what is pushed the application knows
            times = self._first_tokens.setdefault(record.upstream, Histogram(FIRST_TOKENS))
            times.observe(seconds)

    def _enter(self, running: Running, limits: Limits) -> None:
        record = running.record
        self.running[record.id] = running
        self._count_in(record.upstream, record.user)
        if limits.unwatched_seconds:
            self._unwatched[running] = limits.unwatched_seconds

    def _leave(self, running: Running) -> None:
        record = running.record
        if self.running.get(record.id) is running:
            del self.running[record.id]
        self._left.set()
        self._left = trio.Event()
        self._unwatched.pop(running, None)
        self._count_out(record.upstream, record.user)

    def _count_in(self, upstream: str | None, user: str | None) -> None:
        self._of_upstream[upstream] += 1
        if user is not None:
            self._of_user[upstream, user] += 1

    def _count_out(self, upstream: str | None, user: str | None) -> None:
        _uncount(self._of_upstream, upstream)
        if user is not None:
            _uncount(self._of_user, (upstream, user))

    def _start(self, running: Running, produce: Produce) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._make, running, produce)

    async def _make(self, running: Running, produce: Produce) -> None:
        record = running.record
        try:
            try:
                await running.run(produce)
            except Exception:  # noqa: BLE001  # a fault of ours must not end everybody's streams
                running.last = None  # whoever finds it overdue ends it
                _log.exception("a token stream was lost", {"stream": record.id})
            if running.last is not None:
                self._count_end(record, running.last)
            with suppress(Unavailable):  # its lease runs out by itself, and nobody ends it twice
                if running.last is not None:
                    await self.registry.finish(record.id)
                else:
                    await self.registry.release(record.id, running.away)
        finally:
            self._leave(running)

    def _count_end(self, record: Record, last: Complete | Error) -> None:
        if isinstance(last, Error):
            state, word = "error", last.code
        else:
            word = last.reason
            state = "stopped" if word in STOPPED else "complete"
        counts = self._ended[state]
        counts[word if word in counts else OTHER] += 1
        _log.info(
            "token stream %(stream)s has ended: %(end)s",
            {"stream": record.id, "upstream": record.upstream, "end": word},
        )

    # -- stopping

    async def stop(self, id: str) -> Record:
        """Have a token stream ended as ``stopped``, wherever it is made; nothing if it has ended.

        Raises NotFound where there is none, and Unavailable.
        """
        found = await self.registry.find(id)
        if found is None:
            raise no_stream()
        if found.owner is not None:
            try:
                told = await self._cluster.ask(found.owner, STOP_TOKEN_STREAM, OfTokenStream(id))
            except Unavailable:
                told = None
            if told is not None and told.was_here:
                return found.record
        await self._end(found.record, Complete("stopped"))
        return found.record

    async def _stop_here(self, asked: OfTokenStream) -> Stopped:
        running = self.running.get(asked.id)
        if running is None:
            return Stopped(was_here=False)
        running.stop(Complete("stopped"))
        with trio.move_on_after(STOP_SECONDS / 2):
            await running.ended.wait()
            return Stopped(was_here=running.last is not None)
        return Stopped(was_here=True)  # its end waits for the bus

    async def _end(self, record: Record, last: Complete | Error) -> bool:
        """End a stream that is not made here; whether this was its end."""
        was_its_end = await self._publish_end(record, last)
        if was_its_end:
            self._count_end(record, last)
        await self.registry.finish(record.id)
        return was_its_end

    async def _publish_end(self, record: Record, last: Complete | Error) -> bool:
        """Whether nobody else had told one."""
        channels = tuple(dict.fromkeys((record.channel, record.raw)))
        (result,) = await self._bus.publish((render(last, *channels, end=True),))
        if isinstance(result, GatewayError) and not isinstance(result, ChannelEnded):
            raise result
        return not isinstance(result, ChannelEnded)

    # -- what has become of one

    async def story(self, record: Record) -> Story:
        """All that its channel has had of it. Raises Unavailable."""
        return await self.stories.story(record)

    async def snapshot(
        self, record: Record, head: Position, *, annotated: bool
    ) -> Beginning | None:
        """As `Stories.snapshot`, for a viewer who joins late."""
        beginning = await self.stories.snapshot(record, head, annotated=annotated)
        if beginning is not None:
            self.joined_late += 1
        return beginning

    async def leave(self, seconds: float) -> None:
        """Begin no more, let those that run go on for so long, and end what is left by an error."""
        self.leaving = True
        with trio.move_on_after(seconds):
            await self._all_left()
        for running in tuple(self.running.values()):
            running.stop(lost(running.record))
        with trio.move_on_after(STOP_SECONDS):
            await self._all_left()

    async def _all_left(self) -> None:
        while self.running:
            await self._left.wait()

    # -- looking

    async def _bury(self) -> None:
        """End the streams of workers that have died, or begin them again."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            if self.leaving and self._cluster.link is not None:
                continue  # the others look as well, and can begin again what this one cannot
            try:
                while await self._bury_some():
                    await trio.lowlevel.checkpoint()
            except GatewayError as error:
                _log.debug("streams of the dead cannot be looked at", {"why": error.detail})

    async def _bury_some(self) -> bool:
        """Whether there may be more at once: a worker makes thousands."""
        until = trio.current_time() + LEASE_SECONDS
        ids = await self.registry.overdue()
        for id in ids:
            if trio.current_time() >= until:
                return False  # they are anybody's again, and another may make them by now
            await self._bury_one_or_leave_it(id)
        return len(ids) >= MAX_OVERDUE

    async def _bury_one_or_leave_it(self, id: str) -> None:
        """Nothing that is wrong with one stream is to keep others from their end."""
        try:
            await self._bury_one(id)
        except Unavailable as error:
            if error.extra.get("reason") == "bus":
                raise  # of no other anything is known either
            _log.debug("a stream of the dead is left", {"stream": id, "why": error.detail})
        except Exception:  # noqa: BLE001  # it is overdue again later, as for nodes of another version
            _log.exception("a stream of the dead could not be ended", {"stream": id})

    async def _bury_one(self, id: str) -> None:
        found = await self.registry.find(id)
        if found is None:
            await self.registry.finish(id)
            return
        record = found.record
        if record.idempotent and not self.leaving and await self._begin_again(record):
            return
        if await self._end(record, lost(record)):
            self._lost += 1

    async def _begin_again(self, record: Record) -> bool:
        running: Running | None = None

        def lose() -> None:
            if running is not None:
                running.lose()

        if len(self.running) >= MAX_RUNNING:
            return False
        request = await self.registry.restart(record.id, lose)
        if request is None:
            return False
        settled = False
        try:
            again = self.again(record, request)
            frames = (await self._bus.history(record.channel, ZERO, self._bus.head(), 1)).frames
            if again is not None and frames:
                limits, produce = again
                # The fence was passed by `restart` already.
                running = self.adopt(_without_fence(record), limits, frames[0].position, produce)
                self._restarted += 1
            settled = True
        finally:
            if not settled:  # or it would be held, and nobody would make it
                with trio.move_on_after(STOP_SECONDS, shield=True), suppress(Unavailable):
                    await self.registry.release(record.id, 0.0)
        return running is not None

    async def _watch(self) -> None:
        """Stop what nobody watches, where that is wanted."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            watched = list(self._unwatched)
            for start in range(0, len(watched), MAX_ASKED):
                await self._look_for_viewers(watched[start : start + MAX_ASKED])

    async def _look_for_viewers(self, some: Sequence[Running]) -> None:
        now = trio.current_time()
        counts = await self._viewers_everywhere([running.record for running in some])
        for running, count in zip(some, counts, strict=True):
            if count or running.companions:
                running.watched_at = now
            elif now - running.watched_at >= self._unwatched.get(running, now):
                running.stop(Complete("unwatched"))

    async def _viewers_everywhere(self, records: Sequence[Record]) -> Sequence[int]:
        """How many watch each stream; 1 where that is not known."""
        asked = OfViewers([record.channel for record in records])
        try:
            gathered = await self._cluster.ask_all(COUNT_VIEWERS, asked)
        except GatewayError:
            return [1] * len(records)
        if gathered.missing or any(len(told.counts) != len(records) for told in gathered.told):
            return [1] * len(records)
        return [sum(each) for each in zip(*(told.counts for told in gathered.told), strict=True)]

    async def _count_viewers(self, asked: OfViewers) -> Viewers:
        return Viewers(
            [self._viewers(name) + self._viewers(name + RAW_SUFFIX) for name in asked.channels]
        )

    def statistics(self) -> RelayStatistics:
        running: dict[str, int] = dict.fromkeys(Format, 0)
        waiting = 0
        for each in self.running.values():
            running[each.record.format] += 1
            waiting += each.outlet.waits
        return RelayStatistics(
            running={str(format): count for format, count in running.items()},
            opened={str(format): count for format, count in self._opened.items()},
            ended={state: dict(words) for state, words in self._ended.items()},
            tokens=self._tokens,
            first_token={name: times.snapshot() for name, times in self._first_tokens.items()},
            restarted=self._restarted,
            lost=self._lost,
            resumed=self.resumed,
            joined_late=self.joined_late,
            cut_clients=self.copies.cut,
            copied_bytes=self.copies.bytes,
            refused=dict(self.refused),
            waiting_events=waiting,
            registry=self.registry.statistics(),
        )


def lost(record: Record) -> Error:
    """The end of a stream whose producer is gone. Only what was marked as idempotent is told to be
    worth another try: a call that was made may have been paid for, and may have done something."""
    return msgspec.structs.replace(Failure("producer-lost").told(), retryable=record.idempotent)


def no_stream() -> NotFound:
    return NotFound("There is no token stream of this id; it may have expired (stream_seconds).")


def _without_fence(record: Record) -> Record:
    return msgspec.structs.replace(record, idempotent=False)


def _uncount(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
