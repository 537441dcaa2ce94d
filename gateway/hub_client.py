"""One open stream, seen from the node: its counters, what waits for it, and how that gets written.

Nothing here awaits, and nothing here knows history or the other clients. Rules:

1. At every moment ``offered == written + dropped + queued``. A frame is written when its last byte
   was accepted by the socket, and queued while any of it still waits here.
2. Once a frame is started its rest is kept, whatever the policy: ``staged`` is written in order,
   before the outbox, and is never dropped.
3. ``position`` is the last position that was written or staged. While the client is live the hub
   knows better: everything up to its last pass.
4. A client without a socket is served by a task that awaits its outbox (the response lane).
5. What is queued is charged to the node's budget, from when it is taken to when it is written or
   dropped, and so are the copies of frames that are staged.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from socket import socket

import trio

from gateway import control
from gateway.config import ChannelRule
from gateway.event import Frame
from gateway.http1_render import chunk
from gateway.identity import ANYBODY, Identity
from gateway.outbox import Outbox
from gateway.policy import Policy
from gateway.position import ZERO, Position
from gateway.stream_state import Reason, State
from gateway.tallies import Dropped, Tally, Totals, batch_of_several

FLUSH_BYTES = 32 * 1024
"""Joined for one call, and staged from the outbox at a time: few calls, most stays droppable."""

REQUEST_ID_LENGTH = 16
"""Of a client's id: its worker's tag, and 42 bits of what is its own; 54 stay unknown."""


class Channel:
    """Who wants a channel. ``members`` maps each client to the position after which it does."""

    __slots__ = ("annotated", "events", "members", "name", "rule", "tally")

    def __init__(self, name: str, rule: ChannelRule, tally: Tally) -> None:
        self.name = name
        self.rule = rule
        self.tally = tally
        self.members: dict[Client, Position] = {}
        self.annotated = 0
        """How many of them have annotated streams."""
        self.events = 0
        """That the passes have had for it."""


class Client:
    __slots__ = (
        "address",
        "annotated",
        "behind_since",
        "channels",
        "dropped",
        "due",
        "ended",
        "farewell",
        "from_history",
        "gaps",
        "given",
        "id",
        "identity",
        "is_poll",
        "joined",
        "last_write",
        "offered",
        "opened_at",
        "outbox",
        "position",
        "reason",
        "replayed",
        "request",
        "sock",
        "staged",
        "state",
        "stray_bytes",
        "totals",
        "user",
        "writable",
        "written",
    )

    def __init__(
        self,
        id: str,
        user: str | None,
        sock: socket | None,
        position: Position,
        totals: Totals,
        *,
        identity: Identity = ANYBODY,
        address: str = "",
        request: str = "",
        is_poll: bool = False,
        annotated: bool = False,
    ) -> None:
        """``sock`` is non-blocking and becomes the client's own; None for the response lane.
        ``request`` is the id that the request for it has named, if it has. The frames of an
        ``annotated`` stream say through which of its channels they come.
        """
        self.id = id
        self.identity = identity
        self.address = address
        self.user = user
        self.sock = sock
        self.position = position
        self.given = position
        """Up to here everything came out of history; the passes give what is later."""
        self.joined = position
        """No membership began after this: a later frame of its channels is the client's."""
        self.replayed = ZERO
        """The last position that was staged out of history: what is later, was live."""
        self.totals = totals
        self.state = State.REPLAYING
        self.channels: tuple[Channel, ...] = ()
        self.request = request
        self.is_poll = is_poll
        self.annotated = annotated
        self.offered = self.written = self.dropped = 0
        self.from_history = self.gaps = 0
        """Frames that were staged out of history, and the gaps that were told."""
        self.opened_at = self.last_write = self.behind_since = trio.current_time()
        self.outbox: Outbox | None = None
        self.staged: deque[tuple[bytes | memoryview, Frame | None]] | None = None
        self.farewell = b""
        self.ended: tuple[str, ...] = ()
        """Channels that have had their last event, while that still waits here."""
        self.reason: Reason | None = None
        self.writable: trio.Event | None = None
        """What whoever replays to this client waits for: its socket accepts, or it has ended."""
        self.stray_bytes = 0
        self.due = 0
        """The slot of the clock in which it is looked at next."""

    @property
    def request_id(self) -> str:
        """What the request for it is known by: the beginning of its id unless it has named one.
        Not all of it: whoever knows that may change its channels."""
        return self.request or self.id[:REQUEST_ID_LENGTH]

    @property
    def queued(self) -> int:
        """Frames that wait, a started one included."""
        staged = sum(frame is not None for _, frame in self.staged) if self.staged else 0
        return staged + (self.outbox.frames if self.outbox else 0)

    @property
    def waits(self) -> bool:
        """Whether anything waits to be written, if only the notice of a hole."""
        outbox = self.outbox
        return bool(self.staged or (outbox and (outbox.frames or outbox.hole)))

    def has(self, name: str) -> bool:
        return any(channel.name == name for channel in self.channels)

    def fall_behind(self, outbox: Outbox) -> None:
        """Turn from live to behind, with what was started staged already."""
        self.state = State.BEHIND
        self.behind_since = trio.current_time()
        self.outbox = outbox

    def stage_started(self, frames: Sequence[Frame], sent: int) -> int:
        """Account for ``sent`` bytes of ``frames``, keep the rest of the one that was cut.

        Returns how many frames are thereby dealt with; the later ones are still to be offered.
        """
        done = whole = 0
        for frame in frames:
            if sent <= 0:
                break
            self.offered += 1
            self.position = frame.position
            size = len(frame.chunk)
            if sent >= size:
                whole += 1
            else:
                self.totals.charge.hold(frame)
                self.stage(memoryview(frame.chunk)[sent:], frame)
            sent -= size
            done += 1
        self._count_written(frames[:whole])
        return done

    def offer(self, frame: Frame, policy: Policy) -> bool:
        """Queue a frame behind what waits; False when its policy forbids to drop and it is full."""
        assert self.outbox is not None
        if self.sock is None and not (self.outbox.frames or self.outbox.hole):
            self.behind_since = trio.current_time()  # this lane always has an outbox
        dropped = self.outbox.offer(frame, policy)
        if dropped is None:
            return False
        self.offered += 1
        if dropped:
            self.dropped += dropped
            full = int(self.outbox.dropped_to == frame.position)
            counts = self._tally(frame.channels).dropped
            counts[Dropped.FULL] += full
            counts[Dropped.REPLACED] += dropped - full
            if (watched := self.totals.happenings) is not None:
                watched.dropped(self, Dropped.FULL, full)
                watched.dropped(self, Dropped.REPLACED, dropped - full)
        return True

    def stage(self, data: bytes | memoryview, frame: Frame | None = None) -> None:
        """Have ``data`` written before anything else that waits; ``frame`` if it completes one,
        which is held already.
        """
        if self.staged is None:
            self.staged = deque()
        if frame is not None:
            self.totals.charge.add(_copied(data, frame))
        self.staged.append((data, frame))

    def stage_control(self, block: bytes) -> None:
        """Have a control event written before anything else that waits."""
        self.stage(chunk(block) if self.sock is not None else block)

    def stage_frame(self, frame: Frame) -> None:
        self.position = frame.position
        self.stage(frame.chunk if self.sock is not None else frame.block, frame)

    def stage_replayed(self, frame: Frame, *, with_id: bool) -> None:
        """Stage a frame out of history, without its id if the stream stands later already."""
        self.offered += 1
        self.from_history += 1
        self.totals.replayed += 1
        self.replayed = max(self.replayed, frame.position)
        self.totals.charge.hold(frame)
        if with_id:
            self.stage_frame(frame)
        else:
            block = frame.with_at() if self.annotated else frame.without_id()
            self.stage(chunk(block) if self.sock is not None else block, frame)

    def stage_taken(self, hole: int, frame: Frame | None) -> None:
        """Stage what came out of the outbox, the notice of a hole where the hole is."""
        if hole:
            self.stage_control(control.dropped(hole))
        if frame is not None:
            self.stage_frame(frame)
        elif self.outbox is not None:  # the last hole, now told: nothing of it is owed any more
            self.position = max(self.position, self.outbox.dropped_to)

    def flush(self) -> bool:
        """Write what waits, as far as the socket accepts; True when nothing waits any more.

        Raises OSError when the connection is broken.
        """
        assert self.sock is not None
        while data := self.next_bytes():
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                return False
            self.credit(sent)
            if sent < len(data):
                return False
        return True

    def next_bytes(self) -> bytes | memoryview:
        """What is to be written next, staged until `credit` says that it was; empty if nothing."""
        if not self.staged and not self._stage_waiting():
            self.staged = None
            return b""
        assert self.staged is not None
        if len(self.staged) == 1:
            return self.staged[0][0]
        parts: list[bytes | memoryview] = []
        size = 0
        for data, _ in self.staged:
            parts.append(data)
            size += len(data)
            if size >= FLUSH_BYTES:
                break
        return b"".join(parts)

    def credit(self, sent: int) -> None:
        """``sent`` of the bytes that `next_bytes` gave have been accepted."""
        self.last_write = trio.current_time()
        written: list[Frame] = []
        while sent and self.staged:
            data, frame = self.staged.popleft()
            if sent < len(data):
                self.staged.appendleft((memoryview(data)[sent:], frame))
                break
            sent -= len(data)
            if frame is not None:
                self.totals.charge.add(-_copied(data, frame))
                self.totals.charge.release(frame)
                written.append(frame)
        self._count_written(written)

    def _count_written(self, frames: Sequence[Frame]) -> None:
        """The last bytes of ``frames`` were accepted just now."""
        self.written += len(frames)
        live = [frame for frame in frames if frame.id_line and frame.position > self.replayed]
        if live:
            self.totals.wrote(batch_of_several(live, self._tally))
        if len(live) < len(frames):
            for frame in frames:
                if not frame.id_line or frame.position <= self.replayed:
                    self._tally(frame.channels).delivered += 1

    def _tally(self, channels: Sequence[str]) -> Tally:
        """Of an event of ``channels``: that of the first one through which the client has it."""
        for name in channels:
            for channel in self.channels:
                if channel.name == name:
                    return channel.tally
        return self.totals.tally_of(channels[0])  # it has left them, or its stream is ending

    def _stage_waiting(self) -> bool:
        size = 0
        while self.outbox and size < FLUSH_BYTES and (taken := self.outbox.take()):
            self.stage_taken(*taken)
            size += len(taken[1].chunk) if taken[1] else 0
        if not self.staged and self.farewell:
            self.stage(self.farewell)
            self.farewell = b""
        return bool(self.staged)

    def release(self) -> None:
        """The client is closed: what still waits was never given, and is not kept."""
        self.offered -= self.queued
        if self.staged:
            self.totals.charge.throw_away(self._staged_frames(self.staged))
        self.staged = None
        if self.outbox is not None:
            self.outbox.throw_away()
            self.outbox = None

    def _staged_frames(
        self, staged: deque[tuple[bytes | memoryview, Frame | None]]
    ) -> Iterator[Frame]:
        while staged:
            data, frame = staged.popleft()
            if frame is not None:
                self.totals.charge.add(-_copied(data, frame))
                yield frame

    def drop_outbox(self, fresh: Outbox) -> int:
        """Drop all that waits in the outbox, and have the hole told where it is; how many frames
        that was. The place of the outbox takes ``fresh``.
        """
        assert self.outbox is not None
        old, self.outbox = self.outbox, fresh
        dropped = old.frames
        fresh.hole = fresh.untold = dropped + old.untold
        fresh.dropped_to = max(old.dropped_to, old.last.position if old.last else ZERO)
        if self.state is State.ENDING:
            fresh.close()
        self.dropped += dropped
        if (watched := self.totals.happenings) is not None:
            watched.dropped(self, Dropped.MEMORY, dropped)
        old.throw_away(self._count_thrown_away)
        return dropped

    def _count_thrown_away(self, frame: Frame) -> None:
        self._tally(frame.channels).dropped[Dropped.MEMORY] += 1

    def abandon_outbox(self) -> None:
        """Throw the outbox away. What waits in it will be replayed, and so will its holes."""
        if self.outbox is None:
            return
        self.offered -= self.outbox.frames + self.outbox.untold
        self.dropped -= self.outbox.untold  # while `totals` never go down
        self.outbox.throw_away()
        self.outbox = None


def _copied(data: bytes | memoryview, frame: Frame) -> int:
    """Bytes in memory of what is staged of a frame, unless they are the frame's own."""
    whole = data.obj if isinstance(data, memoryview) else data
    if whole is frame.chunk:
        return 0
    assert isinstance(whole, bytes)
    return len(whole)
