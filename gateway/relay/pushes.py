"""Token streams that applications push: who feeds each, wherever that is, and when nobody does.

1. A worker holds a pushed stream only while a producer feeds it there. Between two bodies it is
   released for ``push_lease`` seconds, in which the producer may come back at any node.
2. Whoever comes last feeds it: the one before is told so, what was taken of him is published, and
   only then does the next begin, behind the last line that was. So no line is told twice or left
   out, if only the producer numbers them.
3. What has been taken is known by what the channel holds (`gateway.relay.push.Mark`), and by
   nothing else; where its worker has died, that is what was published until then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from gateway.bus import Bus
from gateway.cluster import COMMAND_SECONDS, Cluster
from gateway.config import Config
from gateway.errors import GatewayError, Unavailable
from gateway.event import Frame
from gateway.messages import Command
from gateway.names import STREAM_PREFIX
from gateway.position import ZERO
from gateway.relay.events import Complete, Error, Failure
from gateway.relay.push import Mark, at_line, mark_of, read_line
from gateway.relay.record import Format, Record
from gateway.relay.registry import LEASE_SECONDS
from gateway.relay.relays import (
    Limits,
    OfTokenStream,
    Plan,
    Relays,
    Stopped,
    no_stream,
)
from gateway.relay.running import Away, Running
from gateway.relay.sizes import RESERVE_BYTES, RESERVE_EVENTS
from gateway.relay.stories import PAGE_FRAMES
from gateway.relay.story import Story
from gateway.streams import MAX_POSITION

TAKE_OVER_SECONDS = 2 * LEASE_SECONDS
"""In which whoever feeds a stream lets go of it, or its worker has turned out to be dead."""

AGAIN_SECONDS = 0.05
"""Until the next look whether a stream is free."""

LOOKED_AT = 64
"""Of the last events of a channel: others may publish to one that has a name of its own."""

REPLACED = "replaced"
DRAINING = "draining"

LINES_BYTES = 64 * 1024 * 1024
"""Of lines that have begun and not ended, over all bodies: 64 of the largest by default."""

LEAVE_SECONDS = 5.0
"""In which what was taken is published, on a node that leaves."""

LET_GO = Command("let-go-of-token-stream", OfTokenStream, Stopped, COMMAND_SECONDS)


@dataclass(frozen=True, slots=True)
class Now:
    """Of a stream that nobody feeds here: how it stands, and how many lines it has had."""

    state: str
    next: int


class Producer:
    """One request that feeds a stream, which is this worker's meanwhile."""

    def __init__(self, record: Record, mark: Mark, most: Mark, max_event_bytes: int) -> None:
        """``mark`` is what the stream has had, ``most`` what it may have."""
        self.record = record
        self.running: Running
        self.reading = trio.CancelScope()
        """To be around all waits for the application; cancelled as soon as it is not to be heard
        any more."""
        self.why = ""
        """REPLACED or DRAINING, where it was told to go."""
        self.last: Complete | Error | None = None
        """The end, once it has told that itself."""
        self._mark = mark
        self._most = most
        self._max_event_bytes = max_event_bytes
        self._over = trio.Event()
        self._outcome: Exception = Away(0)

    @property
    def is_over(self) -> bool:
        """Whether nothing more may be taken."""
        return self._over.is_set()

    @property
    def completed(self) -> bool:
        """It has told the end itself."""
        return self.last is not None

    @property
    def is_done(self) -> bool:
        """The stream has ended, and as it has told."""
        return self.last is not None and self.running.last is self.last

    @property
    def next(self) -> int:
        """The number of the line that is expected."""
        return self._mark.lines

    def take(self, line: bytes) -> None:
        """Have the next line published. Afterwards it is `completed` if that has ended the stream,
        and `is_over` if it was one too many. Raises BadRequest and ContentTooLarge, which name it.
        """
        try:
            taken = read_line(line, self.record.channel, self._mark, self._max_event_bytes)
        except GatewayError as error:
            raise at_line(error, self.next) from None
        if taken.mark.lines > self._most.lines:
            self._finish(Failure("limit-tokens"))
        elif taken.mark.bytes > self._most.bytes:
            self._finish(Failure("limit-bytes"))
        else:
            self._mark = taken.mark
            if taken.last is None:
                self.running.put(taken.event, is_token=taken.is_token)
            else:
                self._end(taken.last)

    async def room(self) -> None:
        """Wait until more may be taken."""
        if not self.running.outlet.has_room:
            await self.running.room()

    def complete(self) -> None:
        """The body has ended, and with it the stream."""
        self._end(Complete("end"))

    def _end(self, last: Complete | Error) -> None:
        self.last = last
        self.running.stop(last)

    def leave(self, seconds: float, why: str = "") -> None:
        """It is not fed any more, and may be again within ``seconds``; what was taken goes out."""
        if not (self.is_over or self.completed):
            self.why = why
            self._finish(Away(seconds))

    def _finish(self, outcome: Exception) -> None:
        if not self._over.is_set():
            self._outcome = outcome
            self._over.set()
            self.reading.cancel()

    async def produce(self, running: Running) -> Complete:
        """What `Running.run` runs."""
        try:
            await self._over.wait()
        finally:
            self._over.set()
            self.reading.cancel()  # it has been stopped, or is somebody else's
        raise self._outcome


class Pushes:
    def __init__(
        self,
        config: Config,
        bus: Bus,
        cluster: Cluster,
        relays: Relays,
        *,
        now_ms: Callable[[], int],
    ) -> None:
        self._config = config
        self._bus = bus
        self._cluster = cluster
        self._relays = relays
        self._now_ms = now_ms
        self._producers: dict[str, Producer] = {}
        self.leaving = False
        """Nobody feeds a stream here any more."""
        self.held_bytes = 0
        """Of lines that have begun."""
        cluster.serve(LET_GO, self._let_go)

    def plan(
        self,
        *,
        channel: str | None,
        user: str | None,
        publisher: str,
        unwatched_seconds: float | None,
    ) -> Plan:
        """A stream that is to be pushed. Nobody feeds it when it begins."""
        most = self._most(channel or STREAM_PREFIX)
        return Plan(
            None,
            self._limits(most, self._config.push_seconds, unwatched_seconds or 0.0),
            Format.PUSH,
            channel=channel,
            user=user,
            publisher=publisher,
            away_seconds=self._config.push_lease,
        )

    def _limits(self, most: Mark, seconds: float, unwatched_seconds: float) -> Limits:
        return Limits(
            max_tokens=most.lines,
            max_seconds=max(seconds, 0.0),
            max_event_bytes=self._config.max_event_bytes,
            unwatched_seconds=unwatched_seconds,
        )

    def _most(self, channel: str) -> Mark:
        """What history holds of a stream whole, with its first event and its last."""
        kept = self._config.rule(channel)
        return Mark(
            max(kept.history_events - RESERVE_EVENTS, 0),
            max(kept.history_bytes - RESERVE_BYTES, 0),
        )

    async def take_over(self, record: Record) -> Producer | Now:
        """Feed a stream from now on, here; how it stands, where it has ended.

        Raises NotFound where it is forgotten, and Unavailable: where the node leaves, where it
        cannot be known who feeds it, and where that one does not let go.
        """
        if self.leaving:
            raise leaving()
        producer: Producer | None = None
        lost = False

        def lose() -> None:
            nonlocal lost
            lost = True
            if producer is not None:
                producer.running.lose()

        if not await self._claim(record, lose):
            return await self.now(record)
        registry = self._relays.registry
        adopted = False
        try:
            frames = await self._bus.newest(record.channel, LOOKED_AT)
            if frames and frames[-1].end:
                await registry.finish(record.id)
                adopted = True
                return await self.now(record)
            mark = await self._mark(record, frames)
            if self.leaving:
                raise leaving()
            if lost or not frames:
                raise Unavailable("It cannot be known what the stream has had.", reason="bus")
            most = self._most(record.channel)
            producer = Producer(record, mark, most, self._config.max_event_bytes)
            left = self._config.push_seconds - (self._now_ms() - record.created_ms) / 1000
            producer.running = self._relays.adopt(
                record,
                self._limits(most, left, record.unwatched_seconds),
                frames[-1].position,
                producer.produce,
            )
            self._producers[record.id] = producer
            self._relays.resumed += mark.lines > 0
            adopted = True
        finally:
            if not adopted:
                with trio.move_on_after(COMMAND_SECONDS, shield=True):
                    await registry.release(record.id, self._config.push_lease)
        return producer

    async def _claim(self, record: Record, lose: Callable[[], None]) -> bool:
        """Hold a stream; False where it has ended."""
        registry = self._relays.registry
        with trio.move_on_after(TAKE_OVER_SECONDS):
            while True:
                found = await registry.find(record.id)
                if found is None:
                    raise no_stream()
                if found.owner is not None:
                    await self._ask_to_let_go(found.owner, record.id)
                if await registry.claim(record.id, lose):
                    return True
                if await self._bus.ended(record.channel) is not None:
                    return False
                await trio.sleep(AGAIN_SECONDS)
        raise Unavailable(
            "Whoever feeds the stream does not let go of it; try again.", reason="token-streams"
        )

    async def _ask_to_let_go(self, owner: str, id: str) -> None:
        try:
            await self._cluster.ask(owner, LET_GO, OfTokenStream(id))
        except Unavailable:
            return  # its lease says when it is dead

    async def _let_go(self, asked: OfTokenStream) -> Stopped:
        producer = self._producers.get(asked.id)
        if producer is None:
            return Stopped(was_here=False)
        producer.leave(self._config.push_lease, REPLACED)
        with trio.move_on_after(COMMAND_SECONDS / 2):
            await producer.running.ended.wait()
        return Stopped(was_here=True)

    def hold(self, more: int) -> None:
        """Hold so many more bytes of a line, or fewer. Raises Unavailable where there is no room,
        with nothing held."""
        if more > 0 and self.held_bytes + more > LINES_BYTES:
            raise Unavailable("The node holds as much of lines as it can.", reason="token-streams")
        self.held_bytes += more

    def forget(self, producer: Producer) -> None:
        """Its request has been answered, or is about to be."""
        if self._producers.get(producer.record.id) is producer:
            del self._producers[producer.record.id]

    async def _mark(self, record: Record, newest: Sequence[Frame]) -> Mark:
        """The last one of a stream; by all of its channel, where others have published so much."""
        mark = mark_of(newest)
        after = ZERO
        while not mark.lines and len(newest) == LOOKED_AT:
            page = await self._bus.history(record.channel, after, MAX_POSITION, PAGE_FRAMES)
            mark = max(mark, mark_of(page.frames))
            if page.complete or not page.frames:
                break
            after = page.frames[-1].position
        return mark

    async def now(self, record: Record) -> Now:
        """How a stream stands. Raises Unavailable."""
        frames = await self._bus.newest(record.channel, LOOKED_AT)
        story = Story()
        for frame in frames[-1:]:
            story.add(frame)
        return Now(story.state, (await self._mark(record, frames)).lines)

    async def leave(self) -> None:
        """Have all producers go to other nodes, and let go of their streams."""
        self.leaving = True
        producers = tuple(self._producers.values())
        for producer in producers:
            producer.leave(self._config.push_lease, DRAINING)
        with trio.move_on_after(LEAVE_SECONDS):
            for producer in producers:
                await producer.running.ended.wait()


def leaving() -> Unavailable:
    return Unavailable("The node is draining; go on at another.", reason=DRAINING)
