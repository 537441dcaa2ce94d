"""Clients that replay: what each has yet to be given, staged page by page until it meets the pass.

1. A page is staged only when nothing waits for its client, so each reads at the pace of its own
   connection. When it has reached what the passes have taken it turns live without an await.
2. Pages take turns with everything else: a crowd that replays at once stalls nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from gateway import control
from gateway.bus import Bus, Source
from gateway.event import Frame
from gateway.histogram import WAITS, Distribution, Histogram
from gateway.hub import Hub
from gateway.hub_client import Client
from gateway.names import is_reserved
from gateway.position import Position
from gateway.replay import Replay, furthest
from gateway.stream_state import State

PAGES_PER_TICK = 4
"""Pages of history staged between two turns of everybody else, about a millisecond: a crowd that
comes back at once then triples the latency of others, and not more."""


@dataclass(slots=True)
class Job:
    """What a replaying client has yet to be given: missed events of channels added to the open
    stream (without ids: the stream stands later already), then everything after its position."""

    replay: Replay
    joined: Position
    """The H of its latest channel: what is live begins there at the earliest."""
    began: float
    """By trio's clock."""
    is_replay: bool
    """Whether anything can have been missed."""
    source: Source = Source.MEMORY
    """The furthest from where what was missed of added channels was read."""
    added: list[tuple[str, Position, Replay, control.Gap | None]] = field(default_factory=list)
    """Each with the position after which it was asked for."""


class Replays:
    def __init__(self, bus: Bus, hub: Hub) -> None:
        self._bus = bus
        self._hub = hub
        self._jobs: dict[Client, Job] = {}
        self._durations = {source: Histogram(WAITS) for source in Source}
        self._turnstile = trio.CapacityLimiter(PAGES_PER_TICK)

    def __len__(self) -> int:
        """Clients that are replaying, or are about to."""
        return len(self._jobs)

    def begin(self, client: Client, replay: Replay, joined: Position, began: float) -> None:
        """``client`` is replaying from here on; nothing is live for it before ``joined``. Its
        ``replay`` was asked for at that time of trio's clock.
        """
        self._jobs[client] = Job(replay, joined, began, not replay.fresh)

    def durations(self) -> dict[str, Distribution]:
        """Seconds that replays took until their streams were live, by what they were read from."""
        return {source: each.snapshot() for source, each in self._durations.items()}

    def forget(self, client: Client) -> None:
        """Nobody serves ``client`` any more."""
        self._jobs.pop(client, None)

    def add(
        self,
        client: Client,
        name: str,
        missed: Replay,
        reason: control.Gap | None,
        head: Position,
    ) -> Position:
        """Have an added channel's missed events come first; the position from which it is live."""
        job = self._jobs[client]
        job.joined = max(job.joined, head)
        job.is_replay = True
        job.added.append((name, missed.reached, missed, reason))
        return max(job.replay.reached, missed.reached)

    def remove(self, client: Client, name: str) -> None:
        """Nothing more of a channel that was added."""
        job = self._jobs.get(client)
        if job is not None:
            job.added = [entry for entry in job.added if entry[0] != name]

    async def stage_next(self, client: Client) -> None:
        """Stage a page for a replaying client for which nothing waits, or turn it live."""
        if not await self.turn_live(client):
            async with self._turnstile:  # whoever reads may take page after page
                await trio.lowlevel.checkpoint()
            await self._stage_page(client, self._jobs[client])

    async def turn_live(self, client: Client) -> bool:
        """Turn live a client for which nothing waits, if it has reached what the passes took."""
        job = self._jobs[client]
        if job.added or not job.replay.begun or not self._has_reached_live(job):
            return False
        for channel in client.channels:
            if is_reserved(channel.name):
                continue
            ended = await self._bus.ended(channel.name)
            if ended is not None and ended <= job.replay.reached:
                self._hub.end_channel(client, channel.name)
        if job.added or not self._has_reached_live(job):
            return False
        if client.state is State.REPLAYING:
            del self._jobs[client]
            self._hub.go_live(client, job.replay.reached)
            if job.is_replay:
                source = furthest(job.source, job.replay.source)
                self._durations[source].observe(trio.current_time() - job.began)
        return True

    async def _stage_page(self, client: Client, job: Job) -> None:
        """Stage what comes next of what a replaying client has missed."""
        name = None
        if job.added:
            name, since, missed, reason = job.added[0]
            floors = {name: missed.reached}
            page = await missed.page(self._bus, floors, max(job.replay.reached, missed.reached))
            job.source = furthest(job.source, missed.source)
            if not job.added or job.added[0][2] is not missed:  # it was removed meanwhile
                return
            if reason is not None:
                self.stage_gap(client, (name,), reason)
                job.added[0] = (name, since, missed, None)
            if missed.reached >= job.replay.reached:
                job.added.pop(0)
                self._hub.members.join(client, name, since)
        else:
            floors = {channel.name: channel.members[client] for channel in client.channels}
            until = max(self._bus.head(), job.joined, job.replay.reached)
            page = await job.replay.page(self._bus, floors, until)
        if client.state is not State.REPLAYING:
            return
        if page.gaps:
            self.stage_gap(client, page.gaps, control.Gap.TRIMMED)
        channels = {channel.name for channel in client.channels}
        for frame in page.frames:
            if name is None or not _has_been_given(client, frame, but=name):
                given = frame.annotated(channels) if client.annotated else frame
                client.stage_replayed(given, with_id=name is None)

    def stage_gap(self, client: Client, channels: Sequence[str], reason: control.Gap) -> None:
        self._hub.count_gap(client, channels, reason)
        client.stage_control(control.gap(channels, reason))

    def _has_reached_live(self, job: Job) -> bool:
        return job.replay.reached >= max(self._hub.pending.taken, job.joined)


def _has_been_given(client: Client, frame: Frame, *, but: str) -> bool:
    """Whether an event from before where the stream stands came through another channel of it."""
    return any(
        channel.name != but and channel.name in frame.channels
        for channel in client.channels
        if channel.members[client] < frame.position
    )
