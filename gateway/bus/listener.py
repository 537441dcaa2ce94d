"""The pub/sub connection: what it carries, in the order in which it comes.

1. After each connecting everything wanted is subscribed to, and nothing that comes is passed on
   until what was missed has been (its owner is to `resume`): the barrier.
2. Whoever takes the messages may wait; meanwhile nothing is read, and Redis holds the rest, up to
   its own limit. A connection that is lost while we made it wait was probably cut for that.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import Protocol, TypeAlias

import trio

from gateway.bus.commands import Backoff, reason
from gateway.bus.resp import LINK_ERRORS, SHOWN, Connection, LinkLost, Reply, pack
from gateway.bus.subscriptions import Subscription, Subscriptions

_log = logging.getLogger(__name__)

SUBSCRIBE_SLICE = 1000
"""Channels in one SUBSCRIBE: 100,000 would hold Redis up for a tenth of a second."""

HELD_BYTES = 32 * 1024 * 1024
"""Of messages that come while channels are still being subscribed to again."""

MESSAGE, MESSAGE_PARTS = b"message", 3

Message: TypeAlias = list[bytes]
"""Its kind, the Redis channel and the payload, as Redis sends them."""


class Owner(Protocol):
    """Who takes what the connection carries."""

    async def check(self, connection: Connection) -> None:
        """Raise LinkLost if that is another Redis than the commands go to."""

    async def resume(self) -> None:
        """All is subscribed to: have a proof sent."""

    async def take(self, messages: Sequence[Message]) -> None:
        """Messages in their order. Raises LinkLost where some are missing."""

    def is_proof(self, channel: bytes, payload: bytes) -> bool:
        """Whether that is what `resume` had sent."""

    async def catch_up(self, payload: bytes) -> None:
        """The proof has come: pass on what was missed up to there."""

    def confirmed(self, subscription: Subscription) -> None:
        """A new subscription stands."""

    def lost(self) -> None:
        """The connection is gone."""


class Listener:
    def __init__(
        self,
        dial: Callable[[], Awaitable[Connection]],
        owner: Owner,
        subscriptions: Subscriptions,
        own_channels: Sequence[str],
        *,
        timeout: float,
    ) -> None:
        self._dial = dial
        self._owner = owner
        self._subscriptions = subscriptions
        self._own_channels = own_channels
        self._timeout = timeout
        self._outgoing: list[bytes] = []
        self._more = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._live = trio.Event()
        self._unconfirmed: set[bytes] = set()
        self._waiting: set[Subscription] = set()
        """Of the subscriptions that a new connection has to confirm."""
        self.losses = self.reconnects = 0

    @property
    def is_live(self) -> bool:
        return self._live.is_set()

    async def wait_live(self) -> None:
        while not self.is_live:
            await self._live.wait()

    def convict(self, why: str) -> None:
        """Close the connection, if there is one: it is not what it seems."""
        if self._scope is not None:
            _log.warning("the pub/sub link to Redis is given up", {"why": why})
            self._scope.cancel()

    def subscribe(self, subscriptions: Sequence[Subscription]) -> None:
        """Have SUBSCRIBE sent; nothing while there is no connection, which then asks for all."""
        self._send_for(b"SUBSCRIBE", subscriptions)

    def unsubscribe(self, subscriptions: Sequence[Subscription]) -> None:
        self._waiting.difference_update(subscriptions)
        self._send_for(b"UNSUBSCRIBE", subscriptions)

    def _send_for(self, command: bytes, subscriptions: Sequence[Subscription]) -> None:
        if self._scope is None:
            return
        for start in range(0, len(subscriptions), SUBSCRIBE_SLICE):
            some = subscriptions[start : start + SUBSCRIBE_SLICE]
            self._outgoing.append(pack(command, *map(self._subscriptions.channel, some)))
        self._more.set()

    async def run(self) -> None:
        """Keep a connection, until cancelled."""
        backoff = Backoff()
        told = ""
        while True:
            try:
                with trio.CancelScope() as scope:
                    await self._serve(scope, backoff)
            except* LINK_ERRORS as group:
                if (why := reason(group)) != told:
                    _log.warning("the pub/sub link to Redis is lost", {"why": why})
                    told = why
            if self.is_live:
                self.losses += 1
                told = ""
                self._live = trio.Event()
            self._scope = None
            self._outgoing.clear()
            self._owner.lost()
            await backoff.wait()

    async def _serve(self, scope: trio.CancelScope, backoff: Backoff) -> None:
        connection = await self._dial()
        try:
            with trio.fail_after(self._timeout):
                await self._owner.check(connection)
            self._scope = scope
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, connection)
                await self._join(connection)
                backoff.reset()
                self._live.set()
                self.reconnects = self.losses
                while True:
                    replies = await connection.receive()
                    for are_messages, some in groupby(replies, _is_message):
                        replies = list(some)  # what a confirmation begins with comes behind it
                        await self._owner.take(replies if are_messages else self._sorted(replies))
                    await trio.lowlevel.checkpoint()
        finally:
            with trio.CancelScope(shield=True):
                await connection.aclose()

    async def _join(self, connection: Connection) -> None:
        """Subscribe to all that is wanted, have what was missed passed on, then what came since."""
        wanted = list(self._subscriptions)
        self._subscriptions.wanted.clear()
        for subscription in wanted:
            subscription.confirmed = False
        self._unconfirmed = {channel.encode() for channel in self._own_channels}
        self._outgoing.append(pack(b"SUBSCRIBE", *self._own_channels))
        self.subscribe(wanted)
        held: list[Message] = []
        size = 0
        self._waiting = set(wanted)
        asked = False
        proof: bytes | None = None
        held_after: Sequence[Message] = ()
        while proof is None:
            if not asked and not self._waiting and not self._unconfirmed:
                asked = True
                await self._owner.resume()
            with trio.fail_after(self._timeout):
                messages = self._sorted(await connection.receive())
            for at, message in enumerate(messages):
                _, channel, payload = message
                if self._owner.is_proof(channel, payload):
                    proof = payload
                    held_after = messages[at + 1 :]
                    break
                held.append(message)
                size += len(payload)
            if size > HELD_BYTES:
                raise LinkLost("too much came while channels were subscribed to again")
        await self._owner.catch_up(proof)
        await self._owner.take([*held, *held_after])

    async def _write(self, connection: Connection) -> None:
        while True:
            while not self._outgoing:
                self._more = trio.Event()
                await self._more.wait()
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            await connection.send(data)

    def _sorted(self, replies: Sequence[Reply]) -> Sequence[Message]:
        """The messages among ``replies``; the others are dealt with."""
        messages: list[Message] = []
        by_channel = self._subscriptions.by_channel
        for reply in replies:
            match reply:
                case [b"message", bytes(), bytes()]:
                    messages.append(reply)
                case [b"subscribe", bytes(channel), *_]:
                    self._unconfirmed.discard(channel)
                    if subscription := by_channel.get(channel):
                        subscription.confirmed = True
                        self._waiting.discard(subscription)
                        self._owner.confirmed(subscription)
                case [b"unsubscribe", bytes(), *_]:
                    pass
                case _:
                    raise LinkLost(f"Redis says: {str(reply)[:SHOWN]}")
        return messages


def _is_message(reply: Reply) -> bool:
    if type(reply) is not list or len(reply) != MESSAGE_PARTS:
        return False
    kind, channel, payload = reply
    return kind == MESSAGE and type(channel) is type(payload) is bytes
