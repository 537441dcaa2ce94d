"""The node's channels and clients, and the fan-out between them. It knows no HTTP and no Redis.

The pass takes what is pending, joins the frames of each channel once, and gives every live client
the joined bytes in one call to its socket. What arrives meanwhile is the next pass: the busier the
hub, the fewer calls per event. An idle hub delivers at once; there is no timer.

1. Nothing in a pass awaits a client. It yields to trio every YIELD_EVERY clients, and that is all.
2. Whether a client gets a frame is decided by comparing positions: a frame goes to those whose
   membership of its channel began before it.
3. Frames come in position order and leave in position order, whatever the channels.
4. Pending is bounded in bytes: `room` waits, then refuses.
5. What must see a client between two passes (never in the middle of one) holds ``turn``.
"""

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import trio

from gateway import control
from gateway.client import Client, Reason, State, Totals
from gateway.config import ChannelRule, Config
from gateway.errors import Unavailable
from gateway.event import Frame
from gateway.http1_render import LAST_CHUNK, chunk
from gateway.lanes import Poller
from gateway.names import is_reserved
from gateway.outbox import Outbox
from gateway.policy import Policy
from gateway.position import ZERO, Position

YIELD_EVERY = 256
"""Clients written to between two checkpoints: about half a millisecond."""

JOIN_FRACTION = 4
"""A join is at most this part of a socket's send buffer, or one makes everybody a partial write."""

KEEPALIVE_SPREAD = 0.2
"""The last part of the keepalive interval, over which idle clients are spread by chance."""

KEEPALIVE_TICKS = 100
"""Ticks of the clock in a keepalive interval."""

MIN_TICK, MAX_TICK = 0.01, 0.25
"""Seconds between two ticks: neither a busy loop nor a coarse clock, whatever the interval."""


class Channel:
    """Who wants a channel. ``members`` maps each client to the position after which it does."""

    __slots__ = ("members", "name", "rule")

    def __init__(self, name: str, rule: ChannelRule) -> None:
        self.name = name
        self.rule = rule
        self.members: dict[Client, Position] = {}


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """A snapshot. ``opened`` and ``closed`` count streams since the start."""

    clients: int
    channels: int
    behind: int
    replaying: int
    delivered: int
    replayed: int
    dropped: int
    queued_frames: int
    queued_bytes: int
    pending_frames: int
    pending_bytes: int
    passes: int
    keepalives: int
    gaps: dict[str, int]
    opened: int
    closed: dict[str, int]


class Hub:
    def __init__(
        self,
        config: Config,
        *,
        unsubscribe: Callable[[Collection[str]], None],
        catch_up: Callable[[Client], None],
        watermark: Callable[[], Position],
    ) -> None:
        """``unsubscribe`` is told of channels that nobody wants any more, ``catch_up`` of clients
        that must replay from their position; ``watermark`` is the position that an idle bus proves.
        """
        self._config = config
        self._unsubscribe = unsubscribe
        self._catch_up = catch_up
        self._watermark = watermark
        self._poller = Poller(self._caught_up, self.close)
        self.clients: dict[str, Client] = {}
        self.channels: dict[str, Channel] = {}
        self._users: dict[str, dict[Client, None]] = {}
        self._behind: dict[Client, None] = {}
        self.taken: Position = ZERO
        """The last position that a pass has taken; live clients are given everything up to it."""
        self.turn = trio.Lock()
        self.totals = Totals()
        self._pending: deque[Frame] = deque()
        self._pending_bytes = 0
        self._arrived = trio.Event()
        self._taken = trio.Event()
        self._join_bytes = config.send_buffer_bytes // JOIN_FRACTION
        self._wheel: dict[int, list[Client]] = {}
        self._tick = min(max(config.keepalive / KEEPALIVE_TICKS, MIN_TICK), MAX_TICK)
        self._passes = self._keepalives = self._opened = 0
        self.gaps: dict[str, int] = dict.fromkeys(control.Gap, 0)
        self._closed: dict[str, int] = dict.fromkeys(Reason, 0)

    async def run(self) -> None:
        """The pass, the poller and the clock, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_passes)
            nursery.start_soon(self._poller.run)
            nursery.start_soon(self._run_clock)

    # -- what the bus delivers

    def has_room(self, size: int) -> bool:
        return not self._pending or self._pending_bytes + size <= self._config.pending_bytes

    async def room(self, size: int) -> None:
        with trio.move_on_after(self._config.publish_wait):
            while not self.has_room(size):
                await self._taken.wait()
            return
        raise Unavailable(
            f"The node is fanning out all it can ({self._config.pending_bytes} bytes are pending). "
            "The event was not taken; publish it again later.",
            outcome="refused",
        )

    def deliver(self, frame: Frame) -> None:
        self._pending.append(frame)
        self._pending_bytes += len(frame.chunk)
        self._arrived.set()

    async def taken_up(self) -> None:
        """Return when a pass has taken all that is pending now."""
        last = self._pending[-1].position if self._pending else ZERO
        while self.taken < last:
            await self._taken.wait()

    def proven(self, client: Client) -> Position:
        """The latest position up to which a client for which nothing waits has been given all."""
        if self._pending or self.turn.locked():
            return client.position
        return max(client.position, self._watermark())

    # -- members

    def add(self, client: Client, channels: Iterable[str], after: Position) -> None:
        """A new client; it is replaying until `go_live`."""
        self.clients[client.id] = client
        self._opened += 1
        if client.user is not None:
            self._users.setdefault(client.user, {})[client] = None
        for name in channels:
            self.join(client, name, after)
        if client.sock is not None:
            self._poller.add(client)
        self._schedule(client)

    def join(self, client: Client, name: str, after: Position) -> None:
        """Give ``client`` what comes on the channel ``name`` after that position."""
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name, self._config.rule(name))
        if client not in channel.members:
            client.channels = (*client.channels, channel)
        channel.members[client] = after
        client.joined = max(client.joined, after)

    def leave(self, client: Client, name: str) -> bool:
        """Give ``client`` nothing more of a channel; whether it was a member."""
        channel = self.channels.get(name)
        if channel is None or channel.members.pop(client, None) is None:
            return False
        client.channels = tuple(kept for kept in client.channels if kept is not channel)
        if not channel.members:
            del self.channels[name]
            self._unsubscribe((name,))
        return True

    @property
    def open_streams(self) -> int:
        """Streams that are open, those that are being ended included."""
        return len(self.clients) + sum(c.state is State.ENDING for c in self._behind)

    def of_user(self, user: str) -> Sequence[Client]:
        return tuple(self._users.get(user, ()))

    def go_live(self, client: Client, position: Position) -> None:
        """The client has been given everything up to ``position``, and no pass is beyond that."""
        client.position = client.joined = position
        for channel in client.channels:
            after = channel.members[client] = max(channel.members[client], position)
            client.joined = max(client.joined, after)
        if client.sock is None:
            client.outbox = self._outbox()
            client.state = State.BEHIND
            self._behind[client] = None
        else:
            client.state = State.LIVE

    def start_replaying(self, client: Client) -> None:
        """Turn a live or behind client to replaying from ``client.position``; hold ``turn``."""
        if client.state is State.LIVE:
            client.position = max(client.position, self.taken)
        client.abandon_outbox()
        self._behind.pop(client, None)
        client.state = State.REPLAYING

    # -- ending a stream

    def finish(self, client: Client, reason: Reason, farewell: bytes) -> None:
        """End a stream well: what waits is written, then ``farewell`` (an SSE block), then EOF."""
        if client.state in (State.ENDING, State.CLOSED):
            return
        was = client.state
        self._forget(client, reason)
        client.state = State.ENDING
        if client.sock is None:
            client.farewell = farewell
            if client.outbox is not None:
                client.outbox.close()
            return
        client.farewell = chunk(farewell) + LAST_CHUNK
        self._behind[client] = None
        if was is not State.BEHIND:
            client.behind_since = trio.current_time()
        if client.writable is not None:
            client.writable.set()
            client.writable = None
        self.write_waiting(client)

    def close(self, client: Client, reason: Reason) -> None:
        """End a stream now; what waits for it is not written."""
        if client.state is State.CLOSED:
            return
        if client.state is not State.ENDING:
            self._forget(client, reason)
        client.state = State.CLOSED
        self._behind.pop(client, None)
        if client.outbox is not None:
            client.outbox.close()
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
        del self.clients[client.id]
        for channel in client.channels:
            self.leave(client, channel.name)
        if client.user is not None:
            same = self._users[client.user]
            del same[client]
            if not same:
                del self._users[client.user]
        client.reason = reason
        self._closed[reason] += 1

    # -- the pass

    async def _run_passes(self) -> None:
        while True:
            if not self._pending:
                self._arrived = trio.Event()
                await self._arrived.wait()
            async with self.turn:
                await self._pass(self._take())

    def _take(self) -> list[Frame]:
        """The oldest pending frames, joined no longer than a socket's buffer likes."""
        frames = [self._pending.popleft()]
        size = len(frames[0].chunk)
        while self._pending and size + len(self._pending[0].chunk) <= self._join_bytes:
            frames.append(self._pending.popleft())
            size += len(frames[-1].chunk)
        self._pending_bytes -= size
        self._passes += 1
        return frames

    async def _pass(self, frames: list[Frame]) -> None:
        before, self.taken = self.taken, frames[-1].position
        self._taken.set()
        self._taken = trio.Event()
        wanted: dict[str, list[Frame]] = {}
        for frame in frames:
            for name in frame.channels:
                if name in self.channels:
                    wanted.setdefault(name, []).append(frame)
        if len(wanted) == 1:
            ((name, batch),) = wanted.items()
            await self._send(batch, list(self.channels[name].members), before)
        elif wanted:
            await self._pass_many(wanted, before)
        for frame in frames:
            if frame.end:
                self._end_channels(frame)

    async def _pass_many(self, wanted: dict[str, list[Frame]], before: Position) -> None:
        """A pass over several channels: clients of the same of them share one join."""
        names_of: dict[Client, tuple[str, ...]] = {}
        for name in wanted:
            for client in self.channels[name].members:
                names_of[client] = (*names_of.get(client, ()), name)
        groups: dict[tuple[str, ...], list[Client]] = {}
        for client, names in names_of.items():
            groups.setdefault(names, []).append(client)
        for names, clients in groups.items():
            batch = wanted[names[0]]
            if len(names) > 1:
                merged = {frame.position: frame for name in names for frame in wanted[name]}
                batch = [merged[position] for position in sorted(merged)]
            await self._send(batch, clients, before)

    async def _send(self, frames: list[Frame], clients: list[Client], before: Position) -> None:
        """Give ``frames`` to each of ``clients``, which want all of their channels.

        This loop is where the time goes: one system call per client, and as little else as can be.
        """
        data = b"".join([frame.chunk for frame in frames])
        size, count, first, live = len(data), len(frames), frames[0].position, State.LIVE
        for start in range(0, len(clients), YIELD_EVERY):
            if start:
                await trio.lowlevel.checkpoint()
            now = trio.current_time()
            delivered = 0
            for client in clients[start : start + YIELD_EVERY]:
                if client.state is not live or client.joined >= first:
                    self._send_owed(client, frames, before)
                    continue
                try:
                    sent = client.sock.send(data)  # type: ignore[union-attr]  # live: direct lane
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self.close(client, Reason.GONE)
                    continue
                if sent == size:
                    client.offered += count
                    client.written += count
                    client.last_write = now
                    delivered += count
                else:
                    self._fall_behind(client, frames, sent, before)
            self.totals.delivered += delivered

    def _send_owed(self, client: Client, frames: list[Frame], before: Position) -> None:
        """The careful way: only the frames that this client is owed, whatever its state."""
        if client.state is not State.LIVE and client.state is not State.BEHIND:
            return
        owed = [frame for frame in frames if self._owed(client, frame)]
        if not owed:
            return
        if client.state is State.LIVE:
            assert client.sock is not None
            try:
                sent = client.sock.send(b"".join([frame.chunk for frame in owed]))
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close(client, Reason.GONE)
                return
            self._fall_behind(client, owed, sent, before)
        else:
            self._offer(client, owed)

    @staticmethod
    def _owed(client: Client, frame: Frame) -> bool:
        return any(
            channel.name in frame.channels and channel.members[client] < frame.position
            for channel in client.channels
        )

    # -- clients that are behind

    def _fall_behind(
        self, client: Client, frames: list[Frame], sent: int, before: Position
    ) -> None:
        """The socket of a live client took only ``sent`` bytes of ``frames``, perhaps all."""
        client.position = max(client.position, before)
        started = client.stage_started(frames, sent)
        if client.staged is None and started == len(frames):
            return
        client.fall_behind(self._outbox())
        self._behind[client] = None
        self._poller.arm(client)
        self._offer(client, frames[started:])

    def _offer(self, client: Client, frames: Iterable[Frame]) -> None:
        for frame in frames:
            policy = self._policy(client, frame)
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
        order = tuple(Policy)
        return max(
            (channel.rule.policy for channel in client.channels if channel.name in frame.channels),
            key=order.index,
        )

    def _caught_up(self, client: Client) -> None:
        """Nothing waits for a direct client any more."""
        if client.state is State.ENDING:
            self.close(client, client.reason or Reason.CLOSED)
        elif client.state is State.BEHIND:
            client.abandon_outbox()
            self._behind.pop(client, None)
            client.state = State.LIVE

    def _outbox(self) -> Outbox:
        return Outbox(max_frames=self._config.outbox_frames, max_bytes=self._config.outbox_bytes)

    # -- channels that end

    def _end_channels(self, frame: Frame) -> None:
        for name in frame.channels:
            channel = self.channels.get(name)
            for client in tuple(channel.members) if channel is not None else ():
                if client.state in (State.LIVE, State.BEHIND):
                    self.end_channel(client, name, frame.position)

    def end_channel(self, client: Client, name: str, position: Position) -> None:
        """A client has been given a channel's last event; without another one its stream ends."""
        if is_reserved(name):
            return
        self.leave(client, name)
        if all(is_reserved(channel.name) for channel in client.channels):
            self.finish(client, Reason.ENDED, control.closed(position))

    # -- the clock

    async def _run_clock(self) -> None:
        tick = int(trio.current_time() / self._tick)
        while True:
            await trio.sleep_until((tick + 1) * self._tick)
            tick += 1
            await self._send_keepalives(self._wheel.pop(tick, []))
            now = trio.current_time()
            for client in tuple(self._behind):
                patience = self._config.max_behind_seconds
                if client.waits and now - client.behind_since > patience:
                    self.close(client, Reason.STALLED)

    def _schedule(self, client: Client) -> None:
        """Look at ``client`` again when it has been silent for nearly a keepalive interval."""
        interval = self._config.keepalive * random.uniform(1 - KEEPALIVE_SPREAD, 1)
        due = max(client.last_write + interval, trio.current_time() + self._tick)
        self._wheel.setdefault(int(due / self._tick), []).append(client)

    async def _send_keepalives(self, clients: list[Client]) -> None:
        silent_before = trio.current_time() - self._config.keepalive * (1 - KEEPALIVE_SPREAD)
        for start in range(0, len(clients), YIELD_EVERY):
            async with self.turn:  # between two passes all live clients stand at the same position
                position = self.taken if self._pending else self._watermark()
                data = chunk(control.keepalive(position))
                for client in clients[start : start + YIELD_EVERY]:
                    if client.state is State.LIVE and client.last_write <= silent_before:
                        self._send_keepalive(client, data, position)
                    if client.state is not State.CLOSED:
                        self._schedule(client)

    def _send_keepalive(self, client: Client, data: bytes, position: Position) -> None:
        if position < client.position:  # it joined later than all that has been passed so far
            return
        assert client.sock is not None
        self._keepalives += 1
        try:
            sent = client.sock.send(data)
        except BlockingIOError:
            return
        except OSError:
            self.close(client, Reason.GONE)
            return
        client.last_write = trio.current_time()
        client.position = position
        if sent < len(data):
            client.fall_behind(self._outbox())
            client.stage(memoryview(data)[sent:])
            self._behind[client] = None
            self._poller.arm(client)

    def statistics(self) -> HubStatistics:
        behind = [client for client in self._behind if client.waits]
        return HubStatistics(
            clients=len(self.clients),
            channels=len(self.channels),
            behind=len(behind),
            replaying=sum(c.state is State.REPLAYING for c in self.clients.values()),
            delivered=self.totals.delivered,
            replayed=self.totals.replayed,
            dropped=self.totals.dropped,
            queued_frames=sum(c.queued for c in behind),
            queued_bytes=sum(c.outbox.bytes for c in behind if c.outbox),
            pending_frames=len(self._pending),
            pending_bytes=self._pending_bytes,
            passes=self._passes,
            keepalives=self._keepalives,
            gaps=dict(self.gaps),
            opened=self._opened,
            closed=dict(self._closed),
        )
