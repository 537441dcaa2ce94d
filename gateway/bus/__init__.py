"""The link between nodes, and what it promises.

Every bus keeps these promises, and one set of tests holds each of them to that:

1. *One order.* Positions grow strictly over all channels. Frames reach the sink in position order.
2. *Published means kept.* `publish` returns once the event is in history and on its way to the
   sink. What it refuses has changed nothing.
3. *The join.* `subscribe` returns H: whatever is published on those channels after it returns has
   a position greater than H and reaches the sink; `history` up to H holds what came before. A frame
   up to H may still reach the sink too. H is never before the position that the caller names.
4. *Gaps are decided.* `history` names the position before its first frame. If that is greater than
   the position asked for, something in between is gone; otherwise nothing is.
5. *A bus that began anew* (a process, a Redis that has lost something) cannot show what it does
   not know: `vouches` says of a position whether history after it tells of every gap.
6. *A lost link is never silent.* While it is lost nothing is delivered; then everything that was
   missed is, before anything later, or the sink is told of a gap where it is.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gateway.control import Gap
from gateway.errors import GatewayError
from gateway.event import Event, Frame
from gateway.histogram import LATENCIES, Distribution, empty
from gateway.position import ZERO, Position


class Source(StrEnum):
    """Where history was found. The further away it is, the later it stands here."""

    MEMORY = "memory"
    """In the memory of the one node that there is."""
    RING = "ring"
    """In that of this node, as one of several."""
    REDIS = "redis"


@dataclass(frozen=True, slots=True)
class History:
    """A stretch of one channel, oldest first.

    ``previous`` is the position before ``frames[0]``; without frames, the last position that the
    channel is known to have had. ``complete`` says that nothing follows within what was asked for.
    """

    frames: Sequence[Frame]
    previous: Position
    complete: bool
    source: Source = Source.MEMORY


_NO_PROBES = empty(LATENCIES)


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """A snapshot of the links to other nodes; nothing happens to those of a bus that has none."""

    up: int = 1
    """1 while both links stand, as those that are not needed do."""
    lost: int = 0
    """Links that were lost after they stood."""
    resent: int = 0
    """Calls that were sent again, as no reply had come before the link was lost."""
    unknown: int = 0
    """Events of which it is not known whether they were taken."""
    holes: int = 0
    """Messages found missing on a link that seemed to stand."""
    unreadable: int = 0
    """Messages of a version that this node does not know."""
    breaks: int = 0
    """Times that Redis turned out to have lost something."""
    evicted: int = 0
    """Keys that Redis has evicted, ours among them perhaps."""
    overruns: int = 0
    """Links lost while the fan-out made Redis wait."""
    subscriptions: int = 0
    history_reads: int = 0
    """Channels read from history; what rings gave is not among them."""
    reconnects: int = 0
    """Links that were made again after they had been lost."""
    probes: Distribution = _NO_PROBES
    """Seconds from asking for a proof to its coming."""
    proof_age: float = 0.0
    """Seconds since the newest proof came, or since the start where none has."""
    clock_skew: float = 0.0
    """Seconds by which Redis's clock is ahead of the node's."""


@dataclass(frozen=True, slots=True)
class BusStatistics:
    """A snapshot. Bytes are those of frames in history, as far as it is in memory here."""

    published: int
    repeated: int
    refused: int
    channels: int
    history_bytes: int
    history_evicted: int
    dedupe_entries: int
    dedupe_evicted: int
    link: LinkStatistics = LinkStatistics()


class Sink(Protocol):
    """Where a bus delivers: the hub."""

    async def room(self, size: int, patience: float | None = None) -> None:
        """Return once ``size`` more bytes may be delivered; Unavailable after so many seconds, or
        as long as publishers wait by the settings."""

    def has_room(self, size: int) -> bool:
        """Whether ``room(size)`` would return at once."""

    def deliver(self, frame: Frame) -> None:
        """Take a frame. Never waits; frames come in position order."""


class TellGap(Protocol):
    """How a bus has clients told that something is gone; the hub's part."""

    async def __call__(
        self, channels: Collection[str] | None, position: Position, reason: Gap
    ) -> None:
        """Tell the clients of ``channels`` (None: all) that events up to ``position`` are gone.

        Returns when they have been told, behind everything that was delivered before.
        """


class Recent(Protocol):
    """The recent events of one channel in the memory of this node, charged to its budget."""

    @property
    def bytes(self) -> int: ...

    def cut(self, keep: int, limit: int) -> int:
        """Forget the oldest until no more than ``keep`` bytes are held, at most ``limit`` of them;
        how many that were. Where nothing else holds them, whoever misses them is told of a gap.
        """


class Bus(Protocol):
    """See the module for what is promised."""

    @property
    def batch(self) -> int:
        """Events of one request that are best published together."""

    @property
    def source(self) -> Source:
        """Where `newest` looks."""

    def vouches(self, after: Position) -> bool:
        """False if something later than ``after`` may be gone without history showing a gap."""

    def head(self) -> Position:
        """A position up to which everything of the subscribed channels has reached the sink."""

    async def subscribe(self, channels: Collection[str], after: Position = ZERO) -> Position:
        """Have the events of ``channels`` delivered from now on; the H of the join.

        A position ``after`` that was given out by any node is at most H. Each call is given back by
        one of `unsubscribe`, unless it raises: Unavailable after a bounded wait.
        """

    def unsubscribe(self, channels: Collection[str]) -> None:
        """Give one `subscribe` of each of ``channels`` back."""

    async def publish(
        self, events: Sequence[Event], patience: float | None = None
    ) -> Sequence[Position | GatewayError]:
        """Give each event its position, keep and send it, in order; or say why not, each.

        ``patience`` is in seconds, how long the call may wait for room or a link in all; None: as
        the settings have it. With it, nothing is taken behind an event of the same call that is
        Unavailable.
        """

    async def history(self, channel: str, after: Position, until: Position, limit: int) -> History:
        """The oldest events of ``channel`` in (after, until], at most ``limit`` of them."""

    async def newest(self, channel: str, limit: int) -> Sequence[Frame]:
        """The last ``limit`` events of ``channel`` that are still held, oldest first."""

    async def last(self, channel: str) -> Position | None:
        """The position of the last event of ``channel``; None if none is remembered."""

    async def ended(self, channel: str) -> Position | None:
        """The position of the channel's last event for good, if it has ended."""

    def rings(self) -> Iterable[Recent]:
        """All that is in memory here, of the channels of this moment."""

    async def run(self) -> None:
        """What the bus must do meanwhile, until cancelled."""

    async def leave(self, worker: str | None = None) -> None:
        """This worker is about to end, or the one with the tag ``worker`` has; may be cancelled at
        any time."""

    @property
    def ready(self) -> bool:
        """Whether new clients are well served here."""

    def statistics(self) -> BusStatistics: ...
