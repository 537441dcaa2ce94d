"""The node's clients in all their states, and how each stream ends. It knows no HTTP and no Redis.

1. A client is live, behind, replaying, ending or closed, and only this module moves it from one to
   another; what it is offered meanwhile is written, queued, or dropped and told.
2. Nothing here awaits a client but `writable`, which those call who replay to it.
3. What must see a client between two passes, never in the middle of one, holds ``turn``.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import trio

from gateway import control, happenings, stream_log
from gateway.charge import Charge
from gateway.config import Config
from gateway.event import Frame
from gateway.histogram import CROWDS, PAUSES, SIZES, Distribution, Histogram
from gateway.http1_render import LAST_CHUNK, chunk
from gateway.hub_client import Client
from gateway.lanes import Poller
from gateway.members import Members
from gateway.names import comes_unasked, is_reserved
from gateway.outbox import Outbox
from gateway.pending import Pending
from gateway.policy import Policy
from gateway.position import ZERO, Position
from gateway.stream_state import Reason, State
from gateway.tallies import ClassStatistics, Totals

CLOSES_PER_TICK = 256
"""Stalled clients closed at a time; the others with the next tick."""

_RANK = {policy: rank for rank, policy in enumerate(Policy)}


class Opening(StrEnum):
    """Where a stream begins, and so why it was opened."""

    NEW = "new"
    """Now."""
    RESUMED = "resumed"
    """After a position that it names: its client comes back."""
    REPLAY = "replay"
    """With events of before, as many as it asks for, or all there are."""


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """A snapshot. ``openings`` and ``closed`` count streams since the start, by their reasons;
    ``classes`` is by class of channels; ``behind_longest`` and ``pass_duration`` are in seconds.
    """

    clients: int
    channels: int
    subscriptions: int
    behind: int
    behind_longest: float
    replaying: int
    replayed: int
    received: int
    queued_frames: int
    queued_bytes: int
    deepest_frames: int
    """What waits for the client for which the most does."""
    pending_frames: int
    pending_bytes: int
    passes: int
    pass_duration: Distribution
    pass_events: Distribution
    pass_deliveries: Distribution
    keepalives: int
    gaps: dict[str, int]
    openings: dict[str, int]
    closed: dict[str, int]
    classes: dict[str, ClassStatistics]

    @property
    def delivered(self) -> int:
        return sum(each.delivered for each in self.classes.values())

    @property
    def dropped(self) -> int:
        return sum(sum(each.dropped.values()) for each in self.classes.values())

    @property
    def opened(self) -> int:
        return sum(self.openings.values())


class Hub:
    def __init__(
        self,
        config: Config,
        *,
        charge: Charge,
        unsubscribe: Callable[[Collection[str]], None],
        catch_up: Callable[[Client], None],
        watermark: Callable[[], Position],
        now_ms: Callable[[], int],
    ) -> None:
        """``charge`` is told what waits for clients, ``unsubscribe`` of each membership that ends,
        ``catch_up`` of clients that must replay from their position; ``watermark`` is the position
        that an idle bus proves, and ``now_ms`` the clock of its positions.
        """
        self._config = config
        self._catch_up = catch_up
        self._watermark = watermark
        self._poller = Poller(self._caught_up, self.close)
        self.totals = Totals(charge, config, now_ms)
        self.members = Members(config.rule, self.totals.tally, unsubscribe)
        self._behind: dict[Client, None] = {}
        self.pending = Pending(config)
        self.turn = trio.Lock()
        self._charge = charge
        self._proven = ZERO
        self.passes = 0
        self.pass_duration = Histogram(PAUSES)
        self.pass_events = Histogram(SIZES)
        self.pass_deliveries = Histogram(CROWDS)
        self.keepalives = 0
        self.openings: dict[str, int] = dict.fromkeys(Opening, 0)
        self.gaps: dict[str, int] = dict.fromkeys(control.Gap, 0)
        self.closed: dict[str, int] = dict.fromkeys(Reason, 0)
        self.parting: list[Callable[[Client], None]] = []
        """Called with each client whose stream ends, for whom nothing is counted from then on."""

    async def run(self) -> None:
        """Watch the sockets of the direct lane, until cancelled."""
        await self._poller.run()

    def proven(self, client: Client) -> Position:
        """The latest position up to which a client, for which nothing waits, has been given all."""
        if self.pending or self.turn.locked():
            return client.position
        return max(client.position, self._watermark())

    # -- members

    def add(
        self, client: Client, channels: Iterable[str], after: Position, opening: Opening
    ) -> None:
        """A new client; it is replaying until `go_live`."""
        if client.sock is not None:
            self._poller.add(client)  # raises OSError where the system has no room for one more
        self.openings[opening] += 1
        self.members.add(client, channels, after)
        if (watched := self.totals.happenings) is not None and not client.is_poll:
            watched.add(happenings.OPENED, client, opening)

    @property
    def open_streams(self) -> int:
        """Streams that are open, those that are being ended included."""
        return len(self.members.clients) + sum(c.state is State.ENDING for c in self._behind)

    def go_live(self, client: Client, position: Position) -> None:
        """The client has been given everything up to ``position``, and no pass is beyond that."""
        client.position = position
        self.members.advance(client, position)
        if client.sock is None:
            client.outbox = self._outbox()
            client.state = State.BEHIND
            self._behind[client] = None
        else:
            client.state = State.LIVE

    def start_replaying(self, client: Client) -> None:
        """Turn a live or behind client to replaying from ``client.position``; hold ``turn``."""
        if client.state is State.LIVE:
            client.position = max(client.position, self.pending.taken)
        client.abandon_outbox()
        client.ended = ()  # the replay finds it out
        self._behind.pop(client, None)
        client.state = State.REPLAYING

    # -- ending a stream

    def finish(self, client: Client, reason: Reason, farewell: bytes) -> None:
        """End a stream well: what waits is written, then ``farewell`` (an SSE block), then EOF."""
        if client.state in (State.ENDING, State.CLOSED):
            return
        if client.state is not State.BEHIND or not client.waits:
            client.behind_since = trio.current_time()
        self._forget(client, reason)
        client.state = State.ENDING
        self._behind[client] = None
        if client.sock is None:
            client.farewell = farewell
            if client.outbox is not None:
                client.outbox.close()
            return
        client.farewell = chunk(farewell) + LAST_CHUNK
        if client.writable is not None:
            client.writable.set()
            client.writable = None
        self.write_waiting(client)

    def end_for_good(
        self, client: Client, reason: Reason, position: Position | None = None
    ) -> None:
        """End a stream well, which is told not to come back, at ``position`` or where it stands."""
        self.finish(client, reason, control.closed(position or self.stands(client), reason))

    def close(self, client: Client, reason: Reason) -> None:
        """End a stream now; what waits for it is not written."""
        if client.state is State.CLOSED:
            return
        if client.state is not State.ENDING:
            self._forget(client, reason)
        stream_log.closed(client, client.reason or reason)
        client.state = State.CLOSED
        self._behind.pop(client, None)
        client.release()
        if client.sock is not None:
            self._poller.remove(client)
        if client.writable is not None:
            client.writable.set()

    def write_waiting(self, client: Client) -> None:
        """Write what waits for a direct client, now and whenever its socket accepts."""
        try:
            if client.flush():
                self._caught_up(client)
            else:
                self._poller.arm(client)
        except OSError:
            self.close(client, Reason.GONE)

    async def writable(self, client: Client) -> None:
        """Wait until the socket of a replaying client accepts more, or the client has ended."""
        client.writable = trio.Event()
        self._poller.arm(client)
        with trio.move_on_after(self._config.max_behind_seconds) as patience:
            await client.writable.wait()
        client.writable = None
        if patience.cancelled_caught:
            self.close(client, Reason.STALLED)

    def _forget(self, client: Client, reason: Reason) -> None:
        if (watched := self.totals.happenings) is not None and not client.is_poll:
            seconds = trio.current_time() - client.opened_at
            watched.add(happenings.CLOSED, client, reason, seconds=seconds)
        self.members.remove(client)
        client.reason = reason
        self.closed[reason] += 1
        for part in self.parting:
            part(client)

    def count_gap(self, client: Client, channels: Sequence[str], reason: control.Gap) -> None:
        """The client has been told of a gap in ``channels``."""
        self.gaps[reason] += 1
        client.gaps += 1
        if (watched := self.totals.happenings) is not None:
            watched.add(happenings.GAP, client, reason, channels=channels)

    # -- clients that are behind

    def behind(self) -> tuple[Client, ...]:
        """Those of this moment for which something may wait, but for those that replay."""
        return tuple(self._behind)

    def fall_behind(self, client: Client, frames: list[Frame], sent: int, before: Position) -> None:
        """The socket of a live client took only ``sent`` bytes of ``frames``, perhaps all."""
        client.position = max(client.position, before)
        started = client.stage_started(frames, sent)
        if client.staged is None and started == len(frames):
            return
        client.fall_behind(self._outbox())
        self._behind[client] = None
        self._poller.arm(client)
        self.offer(client, frames[started:])

    def offer(self, client: Client, frames: Iterable[Frame]) -> None:
        names: tuple[str, ...] = ()
        policy = Policy.DROP
        for frame in frames:
            if frame.channels != names or policy is Policy.LATEST:  # it costs as much as the rest
                names, policy = frame.channels, self._policy(client, frame)
            if client.offer(frame, policy):
                continue
            if policy is Policy.DISCONNECT:
                self.close(client, Reason.SLOW)
            else:
                self.start_replaying(client)
                self._catch_up(client)
            return

    @staticmethod
    def _policy(client: Client, frame: Frame) -> Policy:
        """Of the channels through which the client gets the frame, the most preserving policy."""
        policy = Policy.DROP
        for channel in client.channels:
            if channel.name in frame.channels and _RANK[channel.rule.policy] > _RANK[policy]:
                policy = channel.rule.policy
        if policy is Policy.LATEST and not frame.id_line:  # the notice of a gap replaces nothing
            return Policy.DROP
        return policy

    def _caught_up(self, client: Client) -> None:
        """Nothing waits for a direct client any more."""
        if client.state is State.ENDING:
            self.close(client, client.reason or Reason.CLOSED)
        elif client.state is State.BEHIND:
            client.abandon_outbox()
            self._behind.pop(client, None)
            client.state = State.LIVE
            self.end_given_channels(client)

    def _outbox(self) -> Outbox:
        return Outbox(
            max_frames=self._config.outbox_frames,
            max_bytes=self._config.outbox_bytes,
            charge=self._charge,
        )

    # -- when memory is used up

    def holders(self) -> Iterator[Client]:
        """The clients of this moment for which anything may wait."""
        yield from tuple(self.members.clients.values())
        yield from [client for client in self._behind if client.state is State.ENDING]

    def throw_out(self, client: Client) -> int:
        """Free what waits for a client, as the most preserving policy of its channels has it; how
        many frames were dropped. What is staged, a started frame with it, only goes with the
        client.
        """
        policy = max((c.rule.policy for c in client.channels), key=_RANK.__getitem__, default=None)
        if not client.outbox or not client.outbox.frames or policy is Policy.DISCONNECT:
            self.close(client, Reason.MEMORY)
        elif policy is Policy.CATCH_UP:
            self.start_replaying(client)
            self._catch_up(client)
        else:
            return client.drop_outbox(self._outbox())
        return 0

    # -- channels that end

    def stands(self, client: Client) -> Position:
        """A position for a stream's last id: none that it has been given is later."""
        return max(client.position, self.pending.taken)

    def end_channel(self, client: Client, name: str) -> None:
        """A client has been given a channel's last event; without another one its stream ends."""
        if is_reserved(name):
            return
        if client.state is State.BEHIND and client.waits:
            client.ended = (*client.ended, name)  # what waits of it is given first
            return
        self.members.leave(client, name)
        if all(comes_unasked(channel.name) for channel in client.channels):
            self.end_for_good(client, Reason.ENDED)

    def end_given_channels(self, client: Client) -> None:
        """End the channels whose last event waited, once nothing waits any more."""
        if client.ended and not client.waits:
            ended, client.ended = client.ended, ()
            for name in ended:
                if client.has(name):
                    self.end_channel(client, name)

    # -- what the clock brings

    def send_keepalive(self, client: Client, data: bytes, position: Position) -> None:
        """Write a keepalive with that id to a live client; hold ``turn``."""
        if position < client.joined:  # it joined later than all that has been passed so far
            return
        assert client.sock is not None
        try:
            sent = client.sock.send(data)
        except BlockingIOError:
            return
        except OSError:
            self.close(client, Reason.GONE)
            return
        self.keepalives += 1
        client.last_write = trio.current_time()
        client.position = position
        if sent < len(data):
            client.stage(memoryview(data)[sent:])
            client.fall_behind(self._outbox())
            self._behind[client] = None
            self._poller.arm(client)

    def proven_live(self) -> Position:
        """The latest position that every live client stands at; hold ``turn``."""
        if not self.pending:
            self._proven = self._watermark()
        return max(self._proven, self.pending.taken)  # else a keepalive's id could go backwards

    def close_stalled(self) -> None:
        """Close clients that have been behind for too long."""
        since = trio.current_time() - self._config.max_behind_seconds
        stalled = [c for c in self._behind if c.waits and c.behind_since < since]
        for client in stalled[:CLOSES_PER_TICK]:
            self.close(client, Reason.STALLED)

    def statistics(self) -> HubStatistics:
        behind = [client for client in self._behind if client.waits]
        queued = [client.queued for client in behind]
        now = trio.current_time()
        return HubStatistics(
            clients=len(self.members.clients),
            channels=len(self.members.channels),
            subscriptions=self.members.subscriptions,
            behind=len(behind),
            behind_longest=max((now - client.behind_since for client in behind), default=0.0),
            replaying=sum(c.state is State.REPLAYING for c in self.members.clients.values()),
            replayed=self.totals.replayed,
            received=self.pending.received,
            queued_frames=sum(queued),
            queued_bytes=sum(c.outbox.bytes for c in behind if c.outbox),
            deepest_frames=max(queued, default=0),
            pending_frames=len(self.pending),
            pending_bytes=self.pending.bytes,
            passes=self.passes,
            pass_duration=self.pass_duration.snapshot(),
            pass_events=self.pass_events.snapshot(),
            pass_deliveries=self.pass_deliveries.snapshot(),
            keepalives=self.keepalives,
            gaps=dict(self.gaps),
            openings=dict(self.openings),
            closed=dict(self.closed),
            classes=self.totals.statistics(),
        )
