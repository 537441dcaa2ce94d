"""What this worker is subscribed to in Redis, or wants to be.

1. A subscription is held by claims, one for each membership; without any it lingers, since those
   who left in a storm come back in one.
2. It has begun when a position H is proven behind its confirmation; from there on each message
   names the one before it, and nothing is missed unnoticed. Ring and beginning belong together:
   what did not begin, begins anew with the next connection.
"""

from collections.abc import Collection, Iterator

import trio

from gateway.bus.ring import Ring
from gateway.charge import Charge
from gateway.event import Frame
from gateway.position import ZERO, Position

LINGER_SECONDS = 30.0
LINGERING = 10_000
"""Subscriptions without a claim that are kept; the oldest go first."""

RING_FRAMES = 1000
RING_BYTES = 1024 * 1024
"""Of one channel, kept in memory for those who come back: as many events as an outbox holds."""


class Subscription:
    __slots__ = (
        "_charge",
        "begun",
        "claims",
        "confirmed",
        "ended",
        "filling",
        "last",
        "last_text",
        "name",
        "names",
        "ready",
        "ring",
        "too_deep",
        "unclaimed_at",
    )

    def __init__(self, name: str, charge: Charge) -> None:
        self._charge = charge
        self.name = name
        self.names = (name,)
        self.claims = 0
        self.unclaimed_at = 0.0
        self.confirmed = False
        """By this connection; what comes before is of an earlier subscription."""
        self.ready = trio.Event()
        """It has begun, and whether the channel has ended is known."""
        self.ended: Position | None = None
        self.ring = self._empty(ZERO)
        self.forget()

    def forget(self) -> None:
        """Nothing is known of what has been."""
        self.begun = False
        self.last = ZERO
        """Up to here nothing of the channel is missing; ZERO before anything came."""
        self.last_text = b""
        """The position of its last message, as that had it."""
        self.filling: trio.Event | None = None
        """Set when whoever reads history into the ring is done."""
        self.too_deep = ZERO
        """What is missed after here does not fit into the ring."""
        self._begin_anew(ZERO)

    def start(self, previous: Position) -> None:
        """The first message came, or H is proven: nothing is known before."""
        self.last = previous
        self.last_text = b""
        self._begin_anew(previous)

    def _begin_anew(self, previous: Position) -> None:
        self.ring.let_go()
        self.ring = self._empty(previous)

    def _empty(self, previous: Position) -> Ring:
        return Ring(previous, max_frames=RING_FRAMES, max_bytes=RING_BYTES, charge=self._charge)

    def begin(self, head: Position) -> bool:
        """H is proven; False if a message between the confirmation and H is missing."""
        if self.last == ZERO:
            self.start(head)
        self.begun = True
        return self.ring.previous <= head

    def take(self, frame: Frame, text: bytes = b"") -> None:
        """The next event; ``text`` is its position, if a message brought it."""
        self.ring.append(frame)
        self.last = frame.position
        self.last_text = text
        self.ended = frame.position if frame.end else None


class Subscriptions:
    def __init__(self, prefix: str, charge: Charge) -> None:
        self._charge = charge
        self._prefix = f"{prefix}c:".encode()
        self._by_name: dict[str, Subscription] = {}
        self.by_channel: dict[bytes, Subscription] = {}
        """By the Redis channel."""
        self._lingering: dict[Subscription, None] = {}
        self.wanted: list[Subscription] = []
        """New ones, for which SUBSCRIBE is to be sent."""

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Subscription | None:
        return self._by_name.get(name)

    def channel(self, subscription: Subscription) -> bytes:
        return self._prefix + subscription.name.encode()

    def claim(self, names: Collection[str]) -> list[Subscription]:
        """Want ``names`` once more; those of them that are not ready."""
        waiting = []
        for name in names:
            subscription = self._by_name.get(name)
            if subscription is None:
                subscription = self._by_name[name] = Subscription(name, self._charge)
                self.by_channel[self.channel(subscription)] = subscription
                self.wanted.append(subscription)
            if not subscription.claims:
                self._lingering.pop(subscription, None)
            subscription.claims += 1
            if not subscription.ready.is_set():
                waiting.append(subscription)
        return waiting

    def release(self, names: Collection[str]) -> None:
        for name in names:
            subscription = self._by_name[name]
            subscription.claims -= 1
            if not subscription.claims:
                subscription.unclaimed_at = trio.current_time()
                self._lingering[subscription] = None

    def overdue(self) -> list[Subscription]:
        """Those that have lingered long enough; they are forgotten here."""
        due = trio.current_time() - LINGER_SECONDS
        gone: list[Subscription] = []
        excess = len(self._lingering) - LINGERING
        for subscription in self._lingering:
            if subscription.unclaimed_at > due and len(gone) >= excess:
                break
            gone.append(subscription)
        for subscription in gone:
            del self._lingering[subscription]
            del self._by_name[subscription.name]
            del self.by_channel[self.channel(subscription)]
            subscription.ring.let_go()
        return gone
