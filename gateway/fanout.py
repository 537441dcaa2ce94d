"""The pass: what is pending goes to every client that is owed it, straight to sockets.

A pass joins the frames of each channel once and gives every live client the joined bytes in one
call. What arrives meanwhile is the next pass: the busier the hub, the fewer calls per event. There
is no timer, so an idle hub delivers at once.

1. Nothing in a pass awaits a client. It yields to trio every YIELD_EVERY clients, or when it has
   had as much time as all others together took in their last turn, and that is all.
2. Whether a client gets a frame is decided by comparing positions: a frame goes to those whose
   membership of its channel began before it.
3. Frames come in position order and leave in position order, whatever the channels.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import trio

from gateway import control
from gateway.control import Gap
from gateway.event import Frame
from gateway.hub import Hub
from gateway.hub_client import Channel, Client
from gateway.position import Position
from gateway.stream_state import Reason, State
from gateway.tallies import Batch, Tally, batch_of, batch_of_several
from gateway.tracing import Tracing

YIELD_EVERY = 256
"""Clients written to, or frames queued, between two checkpoints: about half a millisecond."""

MOST_SECONDS = 0.01
"""That a pass goes on in one turn, however long the others take in theirs: without that share, ten
thousand that knock or drip make everybody else's events late; more, and health would be."""

GROUP_EVERY = 4096
"""Memberships sorted into groups between two checkpoints: about a millisecond."""


class Fanout:
    def __init__(self, hub: Hub, tracing: Tracing | None = None) -> None:
        self._hub = hub
        self._tracing = tracing
        self._work = 0
        self._deliveries = 0
        """Of the pass so far."""
        self._since = self._others = 0.0
        """When the pass had its turn back, and for how long the others had had theirs."""

    async def run(self) -> None:
        """One pass after the other, until cancelled."""
        hub = self._hub
        while True:
            await hub.pending.arrived()
            async with hub.turn:
                before = hub.pending.taken
                await self._pass(hub.pending.take(), before)

    async def tell_gap(
        self, channels: Collection[str] | None, position: Position, reason: Gap
    ) -> None:
        """A `gateway.bus.TellGap`: behind all that is pending now, to those who were before it."""
        hub = self._hub
        await hub.pending.passed_on()
        async with hub.turn:
            for turn, client in enumerate(tuple(hub.members.clients.values()), 1):
                if not turn % YIELD_EVERY:
                    await trio.lowlevel.checkpoint()
                names = [
                    channel.name
                    for channel in client.channels
                    if (channels is None or channel.name in channels)
                    and (channel.members[client] < position or client.state is State.REPLAYING)
                ]
                if names and client.given < position:
                    self._tell_gap_to(client, names, reason)

    def _tell_gap_to(self, client: Client, names: list[str], reason: Gap) -> None:
        hub = self._hub
        block = control.gap(names, reason)
        framing = b"%x\r\n" % len(block)
        notice = Frame(
            max(hub.pending.taken, client.given),
            tuple(names),
            b"%b%b\r\n" % (framing, block),
            prefix=len(framing),
            id_line=0,
        )
        match client.state:
            case State.LIVE:
                self._send_now(client, [notice], hub.pending.taken)
            case State.BEHIND:
                hub.offer(client, [notice])
            case State.REPLAYING:
                client.stage_control(block)
            case _:
                return
        hub.count_gap(client, names, reason)

    async def _pass(self, frames: list[Frame], before: Position) -> None:
        hub, began = self._hub, time.perf_counter()
        channels = hub.members.channels
        hub.passes += 1
        self._deliveries = 0
        wanted: dict[str, list[Frame]] = {}
        for frame in frames:
            for name in frame.channels:
                if name in channels:
                    wanted.setdefault(name, []).append(frame)
        for name, batch in wanted.items():
            channels[name].events += len(batch)
        traced = self._traced(wanted) if self._tracing is not None else {}
        started_ns = time.time_ns() if traced else 0
        if len(wanted) == 1:
            ((name, batch),) = wanted.items()
            channel = channels[name]
            counted = batch_of(channel.tally, batch)
            if channel.annotated:
                await self._send_apart(batch, list(channel.members), before, counted, (name,), {})
            else:
                await self._send(batch, list(channel.members), before, counted)
        elif wanted:
            await self._send_merged(wanted, before)
        for frame in frames:
            if frame.end:
                await self._end_channels(frame)
        hub.pass_duration.observe(time.perf_counter() - began)
        hub.pass_events.observe(len(frames))
        hub.pass_deliveries.observe(self._deliveries)
        if traced and self._tracing is not None:
            await self._tracing.delivered(traced, started_ns, time.time_ns())

    def _traced(self, wanted: dict[str, list[Frame]]) -> dict[Frame, int]:
        """The frames whose publisher is traced, and how many clients want them; which takes long to
        find out where these are of several channels."""
        known = self._hub.members.channels
        counts: dict[tuple[str, ...], int] = {}
        traced: dict[Frame, int] = {}
        for frame in (frame for frames in wanted.values() for frame in frames if frame.trace):
            if frame.channels not in counts:
                counts[frame.channels] = _receivers(frame.channels, known)
            traced[frame] = counts[frame.channels]
        return traced

    async def _send_merged(self, wanted: dict[str, list[Frame]], before: Position) -> None:
        """A pass over several channels: clients of the same of them share one join."""
        names_of: dict[Client, tuple[str, ...]] = {}
        tallies: dict[str, Tally] = {}
        annotated = False
        made: dict[tuple[Frame, Sequence[str]], Frame] = {}
        turn = 0
        for name in wanted:
            channel = self._hub.members.channels.get(name)
            if channel is None:
                continue
            tallies[name] = channel.tally
            annotated = annotated or channel.annotated > 0
            for client in tuple(channel.members):
                names_of[client] = (*names_of.get(client, ()), name)
                turn += 1
                if not turn % GROUP_EVERY:
                    await trio.lowlevel.checkpoint()
        groups: dict[tuple[str, ...], list[Client]] = {}
        for client, names in names_of.items():
            groups.setdefault(names, []).append(client)
            turn += 1
            if not turn % GROUP_EVERY:
                await trio.lowlevel.checkpoint()
        for names, clients in groups.items():
            batch = wanted[names[0]]
            if len(names) == 1:
                counted = batch_of(tallies[names[0]], batch)
            else:
                merged = {frame.position: frame for name in names for frame in wanted[name]}
                batch = [merged[position] for position in sorted(merged)]
                counted = batch_of_several(batch, partial(_first, names, tallies))
            if annotated:
                await self._send_apart(batch, clients, before, counted, names, made)
            else:
                await self._send(batch, clients, before, counted)

    async def _send_apart(
        self,
        frames: list[Frame],
        clients: list[Client],
        before: Position,
        counted: Batch,
        names: tuple[str, ...],
        made: dict[tuple[Frame, Sequence[str]], Frame],
    ) -> None:
        """`_send` to clients of the channels ``names``, some of which may have annotated streams:
        they get frames of their own, which all of them share. ``made`` has those of this pass.
        """
        plain = [client for client in clients if not client.annotated]
        if plain:
            await self._send(frames, plain, before, counted)
            clients = [client for client in clients if client.annotated]
        if not clients:
            return
        annotated, among = [], frozenset(names)
        for frame in frames:
            named = tuple([name for name in frame.channels if name in among])
            if (frame, named) not in made:
                made[frame, named] = frame.annotated(named)
            annotated.append(made[frame, named])
        await self._send(annotated, clients, before, counted)

    async def _end_channels(self, frame: Frame) -> None:
        """Tell the clients of channels that a frame has ended; those who replay find it out."""
        for name in frame.channels:
            channel = self._hub.members.channels.get(name)
            members = tuple(channel.members) if channel is not None else ()
            for turn, client in enumerate(members, 1):
                if client.state in (State.LIVE, State.BEHIND):
                    self._hub.end_channel(client, name)
                if not turn % YIELD_EVERY:
                    await trio.lowlevel.checkpoint()

    async def _send(
        self, frames: list[Frame], clients: list[Client], before: Position, counted: Batch
    ) -> None:
        """Give ``frames``, which count as ``counted``, to each of ``clients``, which want all of
        their channels.

        This loop is where the time goes: one system call per client, and as little else as can be.
        """
        data = b"".join([frame.chunk for frame in frames])
        size, count, first, live = len(data), len(frames), frames[0].position, State.LIVE
        hub, now, work, whole = self._hub, trio.current_time(), self._work + count, 0
        for client in clients:
            if work >= YIELD_EVERY:
                hub.totals.wrote(counted, whole)
                self._deliveries += whole * count
                work = whole = 0
                now = trio.current_time()
                if now - self._since >= self._others:
                    await trio.lowlevel.checkpoint()
                    self._since = trio.current_time()
                    self._others = min(self._since - now, MOST_SECONDS)
                    now = self._since
            work += 1
            if client.state is not live or client.joined >= first:
                self._send_owed(client, frames, before)
                work += count
                continue
            try:
                sent = client.sock.send(data)  # type: ignore[union-attr]  # live: direct lane
            except BlockingIOError:
                sent = 0
            except OSError:
                hub.close(client, Reason.GONE)
                continue
            if sent == size:
                client.offered += count
                client.written += count
                client.last_write = now
                whole += 1
            else:
                self._fall_behind(client, frames, sent, before)
                work += count
        hub.totals.wrote(counted, whole)
        self._deliveries += whole * count
        self._work = work

    def _send_owed(self, client: Client, frames: list[Frame], before: Position) -> None:
        """The careful way: only the frames that this client is owed, whatever its state."""
        if client.state is not State.LIVE and client.state is not State.BEHIND:
            return
        first, owed = frames[0].position, frames
        if client.joined >= first or client.given >= first:
            owed = [frame for frame in frames if _is_owed(client, frame)]
            if not owed:
                return
        if client.state is State.BEHIND:
            self._hub.offer(client, owed)
        else:
            self._send_now(client, owed, before)

    def _send_now(self, client: Client, frames: list[Frame], before: Position) -> None:
        """Write to a live client, which may fall behind by that."""
        assert client.sock is not None
        try:
            sent = client.sock.send(b"".join([frame.chunk for frame in frames]))
        except BlockingIOError:
            sent = 0
        except OSError:
            self._hub.close(client, Reason.GONE)
            return
        client.last_write = trio.current_time()
        self._fall_behind(client, frames, sent, before)

    def _fall_behind(
        self, client: Client, frames: list[Frame], sent: int, before: Position
    ) -> None:
        """As `Hub.fall_behind`; what was written whole is this pass's."""
        written = client.written
        self._hub.fall_behind(client, frames, sent, before)
        self._deliveries += client.written - written


def _first(names: Sequence[str], tallies: Mapping[str, Tally], channels: Sequence[str]) -> Tally:
    """That of the first of an event's ``channels`` that is among ``names``."""
    return next(tallies[name] for name in channels if name in names)


def _receivers(names: Sequence[str], channels: Mapping[str, Channel]) -> int:
    members = [channels[name].members for name in names if name in channels]
    return len(members[0] if len(members) == 1 else set().union(*members))


def _is_owed(client: Client, frame: Frame) -> bool:
    return client.given < frame.position and any(
        channel.name in frame.channels and channel.members[client] < frame.position
        for channel in client.channels
    )
