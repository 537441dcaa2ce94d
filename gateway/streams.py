"""How a stream begins and is served: history first, then the hub, with nothing lost in between.

1. The join: the bus confirms the subscription and names H; (P, H] comes from history; live is
   exactly what is later. ``connected`` is written after the confirmation, so whoever publishes on
   seeing it gets the event.
2. A replaying client reads pages at the pace of its own connection. When it has reached what the
   passes have taken it turns live in the same step, without an await.
3. Direct lane: this module's task ends when the client is live; from then on it has none. Response
   lane: the task that is `responding` serves the client for as long as that lasts.
"""

import logging
import math
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from socket import socket
from typing import NamedTuple

import trio

from gateway import control, stream_log
from gateway.admission import Admission
from gateway.bus import Bus
from gateway.clock import Clock
from gateway.config import Config
from gateway.errors import BadRequest, ChannelEnded, NotFound, TooManyRequests, Unavailable
from gateway.event import Frame
from gateway.hub import Hub, Opening
from gateway.hub_client import Client
from gateway.identity import ANYBODY, Identity
from gateway.names import comes_unasked
from gateway.position import ZERO, Position, Resume, Start
from gateway.replacements import Replacements
from gateway.replay import Replay, before_earliest, before_newest
from gateway.replays import Replays
from gateway.stream_state import Reason, State

_log = logging.getLogger(__name__)

CLIENT_ID_BYTES = 12
"""Of randomness: a client's id lets whoever knows it change that client's channels."""

LOOKS_PER_TURN = 64
"""Clients looked at, or ended, between two checkpoints: about a millisecond."""

MAX_POSITION = Position(2**64, 0)
"""Later than any event: a channel that is not yet delivered, as its missed events come first."""


class Beginning(NamedTuple):
    """An event in the place of all that a channel has had."""

    frame: Frame
    reached: Position
    """All of the channel up to here is in it; not before its own position, nor that which was asked
    for."""


class _Begun(NamedTuple):
    replay: Replay
    gap: control.Gap | None = None
    """Why that may not be all that history shows."""
    snapshot: Frame | None = None
    """What comes first, in the place of what is not replayed."""
    is_whole: bool = False
    """Whether all of the first channel comes, by the one or by the other; the gap is of the others
    alone, and of them comes only what is new."""


@dataclass(frozen=True, slots=True)
class EventStream:
    """A stream to be opened: what a request for one means, checked."""

    channels: tuple[str, ...]
    """All of them, reserved ones included."""
    user: str | None
    resume: Resume | int
    """Where to begin; a number is that of the newest events to begin with."""
    identity: Identity = ANYBODY
    address: str = ""
    request: str = ""
    """The id of the request for it, where that has named one."""
    is_poll: bool = False
    annotated: bool = False
    """Whether each event is to say through which channels it comes."""
    location: str = ""
    """The URL at which GET opens the same stream, relative to that of the request; empty where that
    is not to be said."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """More of the answer's head."""
    snapshot: Callable[[Position], Awaitable[Beginning | None]] | None = None
    """Makes what the stream begins with in the place of all that its first channel has had, up to a
    position at the least; None where it is all to be replayed."""


class Streams:
    def __init__(
        self,
        config: Config,
        bus: Bus,
        hub: Hub,
        clock: Clock,
        admission: Admission,
        start_soon: Callable[[Client], None],
        replacements: Replacements,
        *,
        tag: str,
        is_revoked: Callable[[Identity], bool],
    ) -> None:
        """``start_soon`` runs `serve` for a direct client that has to replay once more; ``tag``
        begins the ids of this worker's clients: others find its worker by it.
        """
        self._is_revoked = is_revoked
        self._tag = tag
        self._replacements = replacements
        self._limits_users = config.max_streams_per_user > 0
        self._config = config
        self._bus = bus
        self._hub = hub
        self._clock = clock
        self._admission = admission
        self._start_soon = start_soon
        self.replays = Replays(bus, hub)
        self.opening = 0
        """Streams whose subscription is being awaited: clients soon."""

    # -- opening

    async def open(
        self,
        stream: EventStream,
        sock: socket | None = None,
        *,
        preamble: Callable[[Client], bytes] | None = None,
    ) -> Client:
        """A client of ``stream``, its first events staged after ``preamble`` of it.

        With a socket, which is the client's once this returns, it is to be given to `serve`.
        Raises Unavailable when the bus cannot confirm its channels, and with the reason "user" when
        its user has all the streams that one may have; TooManyRequests when its address has.
        """
        self._admission.enter(stream.address)
        resume = stream.resume
        identifier = f"{self._tag}.{secrets.token_urlsafe(CLIENT_ID_BYTES)}"
        user = stream.user if self._limits_users else None
        subscribed = added = False
        self.opening += 1
        try:
            if user is not None:
                await self._replacements.claim(user, identifier)
            asked = resume if isinstance(resume, Position) else ZERO
            head = await self._bus.subscribe(stream.channels, asked)
            subscribed = True
            began = trio.current_time()
            begun = await self._begin(stream, head)
            after = begun.replay.reached
            client = Client(
                identifier,
                stream.user,
                sock,
                after,
                self._hub.totals,
                identity=stream.identity,
                address=stream.address,
                request=stream.request,
                is_poll=stream.is_poll,
                annotated=stream.annotated,
            )
            self._hub.add(client, stream.channels, after, _opening(resume, begun))
            added = True
            if begun.is_whole:
                for name in stream.channels[1:]:
                    self._hub.members.join(client, name, max(head, after))
        finally:
            self.opening -= 1
            if not added:
                self._admission.leave(stream.address)
                if subscribed:
                    self._bus.unsubscribe(stream.channels)
                if user is not None:
                    self._replacements.abandon(user, identifier)
        if sock is not None or stream.identity.expires_ms is not None:
            self._clock.schedule(client)
        stream_log.opened(client, resume)
        if preamble is not None:
            client.stage(preamble(client))
        stands = None if begun.is_whole else after  # nothing of before has been given yet
        client.stage_control(
            control.retry(self._config.retry)
            + control.connected(client.id, stands, stream.channels, self._config.keepalive)
        )
        if begun.gap is not None:
            missed = stream.channels[1:] if begun.is_whole else stream.channels
            self.replays.stage_gap(client, missed, begun.gap)
        if begun.snapshot is not None:
            client.stage_replayed(begun.snapshot, with_id=True)
        self.replays.begin(client, begun.replay, head, began)
        if self._is_revoked(stream.identity):  # while its channels were being subscribed to
            self._hub.end_for_good(client, Reason.REVOKED, after)
        if user is not None:
            self._replacements.opened(client)
        return client

    async def _begin(self, stream: EventStream, head: Position) -> _Begun:
        """With a snapshot, or all that is too long for one, only where nothing else is asked for,
        or in the place of a gap."""
        channels, resume = stream.channels, stream.resume
        if stream.snapshot is None or resume is Start.EARLIEST:
            return _Begun(*await self._replay(channels, resume, head))
        reason = await self._why_not_resumed(channels[0], resume, head)
        if reason is None and resume is not Start.NOW:
            return _Begun(*await self._replay(channels, resume, head))
        beginning = await stream.snapshot(head)
        if beginning is None:
            replay, _ = await self._replay(channels[:1], Start.EARLIEST, head)
            return _Begun(replay, reason, is_whole=True)
        replay = Replay(beginning.reached, fresh=True)
        return _Begun(replay, reason, beginning.frame, is_whole=True)

    async def _why_not_resumed(
        self, name: str, resume: Resume | int, head: Position
    ) -> control.Gap | None:
        """Why there would be a gap in a channel, as far as that can be known at once."""
        match resume:
            case Start.NOW:
                return None
            case Position() as after if after <= head:
                if not self._bus.vouches(after):
                    return control.Gap.RESTARTED
                missed = await self._bus.history(name, after, head, 1)
                return control.Gap.TRIMMED if missed.previous > after else None
            case _:
                return control.Gap.UNKNOWN

    async def _replay(
        self, channels: Sequence[str], resume: Resume | int, head: Position
    ) -> tuple[Replay, control.Gap | None]:
        """What is missed of ``channels``, and why that may not be all that history shows."""
        match resume:
            case int(count):
                after = await before_newest(self._bus, channels, count, head)
                return Replay(after, forgiving=True, source=self._bus.source), None
            case Start.EARLIEST:
                after, source = await before_earliest(self._bus, channels, head)
                return Replay(after, forgiving=True, source=source), None
            case Position() as after if after <= head:
                if self._bus.vouches(after):
                    return Replay(after), None
                return Replay(after, forgiving=True), control.Gap.RESTARTED
            case Start.NOW | None:
                return Replay(head, fresh=True), None
            case _:
                return Replay(head, fresh=True), control.Gap.UNKNOWN

    async def serve(self, client: Client) -> None:
        """Write to a replaying client of the direct lane until it is live or has ended."""
        try:
            while client.state is State.REPLAYING:
                if not client.flush():
                    await self._hub.writable(client)
                else:
                    await self.replays.stage_next(client)
        except OSError:
            self._hub.close(client, Reason.GONE)
        except Unavailable:
            self._hub.finish(client, Reason.BUS, self._come_back(Reason.BUS))
        except Exception:  # noqa: BLE001  # a fault of ours here must not end everybody's streams
            told = {"client": client.id, "request": client.request_id}
            _log.exception("a replay failed", told)
            self._hub.close(client, Reason.GONE)
        except trio.Cancelled:
            self._hub.close(client, Reason.DRAINING)
            raise
        finally:
            self.replays.forget(client)

    @asynccontextmanager
    async def responding(self, stream: EventStream) -> AsyncIterator[Client]:
        """A client of the response lane, closed at the end of the block.

        It is live if nothing was missed: whoever publishes on ``connected`` gets the event.
        """
        client = await self.open(stream)
        try:
            await self.replays.turn_live(client)
            yield client
        finally:
            self.replays.forget(client)
            self._hub.close(client, Reason.GONE)

    async def body(self, stream: EventStream) -> AsyncGenerator[bytes, None]:
        """The response lane: opens ``stream`` and yields its bytes until it ends.

        Closing the generator closes the client.
        """
        try:
            async with self.responding(stream) as client, aclosing(self.given(client)) as given:
                async for data in given:
                    yield data
        except (TooManyRequests, Unavailable) as error:
            yield self._come_back(str(error.extra.get("reason", Reason.BUS)))

    async def given(self, client: Client) -> AsyncGenerator[bytes, None]:
        """What is to be written to a client of the response lane, in whole blocks, until it ends.

        What was yielded counts as written once more is asked for.
        """
        try:
            while client.state is not State.CLOSED:
                if data := client.next_bytes():
                    yield bytes(data)
                    client.credit(len(data))
                    self._hub.end_given_channels(client)
                elif client.state is State.ENDING:
                    return
                else:
                    await self._stage_next_or_keepalive(client)
        except Unavailable:
            yield self._come_back(Reason.BUS)

    def _come_back(self, reason: str) -> bytes:
        """The last block of a stream that cannot go on, or not be opened, for now."""
        return control.retry(self._config.retry) + control.reconnect(reason)

    async def stage_next(self, client: Client) -> None:
        """Stage what comes next for an open client of the response lane for which nothing waits: a
        frame, once there is one, or a page of history.

        It may end with nothing staged, as when the client has ended. Cancelled, it loses nothing:
        what is not staged is still queued, or in history.
        """
        outbox = client.outbox
        if outbox is None:
            await self.replays.stage_next(client)
        elif (taken := await outbox.wait()) is not None and client.outbox is outbox:
            client.stage_taken(*taken)  # if it was abandoned meanwhile, all of it is replayed

    async def _stage_next_or_keepalive(self, client: Client) -> None:
        is_live = client.state is State.BEHIND
        with trio.move_on_after(self._config.keepalive if is_live else math.inf) as silence:
            await self.stage_next(client)
        if not silence.cancelled_caught or client.state is not State.BEHIND:
            return
        if not client.next_bytes():  # something may have come with the end of the silence
            client.behind_since = trio.current_time()
            client.position = self._hub.proven(client)
            client.stage_control(control.keepalive(client.position))
            self._hub.keepalives += 1

    # -- an open stream's channels

    async def add_channel(self, client: Client, name: str, since: Resume | None) -> Position:
        """Add a channel to an open stream; the position from which it is live.

        Raises ChannelEnded, and NotFound when the client ends meanwhile.
        """
        if client.has(name):
            return self._bus.head()
        head = await self._bus.subscribe((name,), since if isinstance(since, Position) else ZERO)
        joined = False
        try:
            if since is None or since is Start.NOW:
                if await self._bus.ended(name) is not None:
                    raise ChannelEnded(
                        f"The channel {name} has ended; there is nothing to come on it."
                    )
                joined = self._join(client, name, head)
                return head
            missed, reason = await self._replay((name,), since, head)
            async with self._hub.turn:
                joined = self._join(client, name, MAX_POSITION)
                if not joined:
                    return head
                if client.state is not State.REPLAYING:
                    self._hub.start_replaying(client)
                    self.catch_up(client)
                return self.replays.add(client, name, missed, reason, head)
        finally:
            if not joined:
                self._bus.unsubscribe((name,))

    def _join(self, client: Client, name: str, after: Position) -> bool:
        """Make an open stream a member; False if it is one. Raises what refuses that."""
        _check_open(client)
        if client.has(name):
            return False
        self._check_room(client, name)
        self._hub.members.join(client, name, after)
        return True

    def _check_room(self, client: Client, name: str) -> None:
        named = sum(not comes_unasked(channel.name) for channel in client.channels)
        most = self._config.max_channels_per_client
        if named >= most and not comes_unasked(name):
            raise BadRequest(
                f"The stream has {most} channels already, and that is the most"
                " (max_channels_per_client)."
            )
        channels = self._hub.members.channels
        if name not in channels and len(channels) >= self._config.max_channels:
            raise Unavailable("The node has all the channels that it can hold.", reason="channels")

    def renew(self, client: Client, identity: Identity) -> None:
        """An open stream has been given another token of its user."""
        client.identity = identity
        self._clock.schedule(client)

    async def end_revoked(self) -> int:
        """End all streams whose tokens are revoked, for good; how many."""
        ended = 0
        for turn, client in enumerate(tuple(self._hub.members.clients.values()), 1):
            if self._is_revoked(client.identity):
                ended += 1
                self._hub.end_for_good(client, Reason.REVOKED)
            if not turn % LOOKS_PER_TURN:
                await trio.lowlevel.checkpoint()
        return ended

    def remove_channel(self, client: Client, name: str) -> bool:
        """Take a channel out of an open stream; whether it was in."""
        self.replays.remove(client, name)
        return self._hub.members.leave(client, name)

    def catch_up(self, client: Client) -> None:
        """A client that has just turned to replaying begins, from its position."""
        lossless = self._bus.vouches(client.position)
        missed = Replay(client.position, forgiving=not lossless)
        self.replays.begin(client, missed, ZERO, trio.current_time())
        if not lossless:
            names = [channel.name for channel in client.channels]
            self.replays.stage_gap(client, names, control.Gap.RESTARTED)
        if client.sock is not None:
            self._start_soon(client)


def _opening(resume: Resume | int, begun: _Begun) -> Opening:
    """What of a stream is asked for by where it is to begin."""
    if isinstance(resume, int) or resume is Start.EARLIEST or begun.is_whole:
        return Opening.REPLAY
    return Opening.NEW if resume is Start.NOW else Opening.RESUMED


def _check_open(client: Client) -> None:
    if client.state in (State.ENDING, State.CLOSED):
        raise NotFound(f"There is no client {client.id} any more.")
