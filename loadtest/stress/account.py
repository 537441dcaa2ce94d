"""What one subscriber was told, over all its connections, held against the stamps of the events.

A subscriber is owed all events of its channels behind the place where it began. Rules:

1. Numbers of a publisher in a channel have no holes. So each event shows what is missing before it:
   since the last one of the pair (publisher, channel), or, with the first one, since the beginning,
   where ``Stamp.previous`` says whether there was another one in between.
2. What is missing after the last event of a pair is known at the end alone, from what publishers
   say: `settle`. Of who has left before, only what stands before his last position is owed.
3. A notice excuses what is missing at the very place where it stands: between two events of a pair.
   ``dropped`` excuses as many events as it counts, of all pairs together, and ``gap`` all events of
   its channels. A gap for a restart may stand before what history still holds of the time before
   it: it excuses holes up to the first event that was sent after it was told.
4. What is missing and not excused is a `Hole`, which an event that comes late makes smaller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from stress.stamp import Stamp
from stress.tally import Tally

MAX_NOTICES = 1000
"""Of one subscriber that are told apart; older ones are joined, so that they excuse the same number
of events, at any of their places."""

Pair: TypeAlias = tuple[str, int]


class Fate(Enum):
    """What an event is to the one who gets it."""

    DELIVERED = auto()
    DUPLICATE = auto()
    DISORDERED = auto()


class Final(NamedTuple):
    """The last event of a publisher in a channel that was acknowledged, at the end."""

    publisher: str
    channel: int
    number: int
    place: int


@dataclass(slots=True)
class Hole:
    """Events of one publisher in one channel that are missing: the numbers from ``first``, or from
    behind the place ``after``, to ``last``, or up to the place ``until``. ``excused`` of them were
    announced."""

    publisher: str
    channel: int
    first: int = 0
    after: int = 0
    last: int = 0
    until: int = 0
    excused: int = 0

    @property
    def size(self) -> int:
        """Of those that were not announced; 1 where only publishers know how many there are."""
        return self.last - self.first + 1 - self.excused if self.first and self.last else 1

    def pack(self) -> list[object]:
        return [
            *(self.publisher, self.channel, self.first, self.after),
            *(self.last, self.until, self.excused),
        ]


@dataclass(slots=True)
class _Notice:
    dropped: int = 0
    """Events that it may still excuse."""
    channels: frozenset[int] = frozenset()
    restarted_ns: int = 0

    def join(self, later: "_Notice") -> None:
        self.dropped += later.dropped
        self.channels |= later.channels
        self.restarted_ns = max(self.restarted_ns, later.restarted_ns)


@dataclass(slots=True)
class _Seen:
    """The last event of a pair, and how many notices had been told before it."""

    number: int
    place: int
    sent_ns: int
    told: int


@dataclass(eq=False)
class Account:
    name: str
    channels: frozenset[int]
    tally: Tally
    start: int = 0
    """The place of its first `connected`: it is owed what is later. 0 before that."""
    place: int = 0
    """Of the last event."""
    until: int = 0
    """Where it has left; 0 while it has not."""
    holes: list[Hole] = field(default_factory=list)
    _seen: dict[Pair, _Seen] = field(default_factory=dict)
    _notices: list[_Notice] = field(default_factory=list)
    _joined: int = 0
    """Notices that are no more told apart."""

    def begin(self, place: int) -> None:
        """It is connected, for the first time or again."""
        self.start = self.start or place

    def drop(self, count: int) -> None:
        """It was told that so many events are missing here."""
        self.tally.dropped += count
        self._notice(_Notice(dropped=count))

    def gap(self, channels: frozenset[int], restarted_ns: int = 0) -> None:
        """It was told that events of these channels are missing here, because of a restart if the
        time is given."""
        self.tally.gaps += 1
        self._notice(_Notice(channels=channels, restarted_ns=restarted_ns))

    def _notice(self, notice: _Notice) -> None:
        self._notices.append(notice)
        if len(self._notices) > MAX_NOTICES:
            self._notices[0].join(self._notices.pop(1))
            self._joined += 1

    def receive(self, stamp: Stamp, place: int) -> Fate:
        """An event has come, with the id of that place."""
        pair = (stamp.publisher, stamp.channel)
        seen = self._seen.get(pair)
        if seen is None:
            if stamp.previous > self.start:
                self._miss(Hole(*pair, after=self.start, last=stamp.number - 1), 0, 0)
            seen = self._seen[pair] = _Seen(stamp.number - 1, 0, 0, 0)
        if stamp.number <= seen.number:
            return self._receive_late(stamp)
        if stamp.number > seen.number + 1:
            hole = Hole(*pair, first=seen.number + 1, last=stamp.number - 1)
            self._miss(hole, seen.told, seen.sent_ns)
        seen.number, seen.place, seen.sent_ns = stamp.number, place, stamp.sent_ns
        seen.told = self._told
        self.tally.delivered += 1
        if place <= max(self.place, self.start):
            self.tally.disordered += 1
            return Fate.DISORDERED
        self.place = place
        return Fate.DELIVERED

    def _receive_late(self, stamp: Stamp) -> Fate:
        for hole in self.holes:
            if (
                hole.publisher == stamp.publisher
                and hole.channel == stamp.channel
                and (hole.first or 1) <= stamp.number <= hole.last
            ):
                self._fill(hole, stamp.number)
                self.tally.delivered += 1
                self.tally.disordered += 1
                return Fate.DISORDERED
        self.tally.duplicates += 1
        return Fate.DUPLICATE

    def _fill(self, hole: Hole, number: int) -> None:
        """That number of a hole has come after all: two smaller holes are left, or one, or none."""
        self.holes.remove(hole)
        self.tally.missing -= hole.size
        before = Hole(*_pair(hole), first=hole.first, after=hole.after, last=number - 1)
        behind = Hole(*_pair(hole), first=number + 1, last=hole.last)
        for part in (before, behind):
            if part.last >= (part.first or 1):
                part.excused = min(hole.excused, part.last - part.first + 1)
                hole.excused -= part.excused
                self.tally.missing += part.size
                self.holes.append(part)

    @property
    def _told(self) -> int:
        return self._joined + len(self._notices)

    def _since(self, told: int) -> Sequence[_Notice]:
        return self._notices[max(0, told - self._joined) :]

    def _miss(self, hole: Hole, told: int, sent_ns: int) -> None:
        """Something is missing since ``told`` notices had been told, and behind an event that was
        sent at ``sent_ns``. What no notice excuses is noted as a hole."""
        count = hole.last - hole.first + 1 if hole.first and hole.last else 0
        if self._has_gap(hole.channel, told, sent_ns):
            self.tally.gap_missing += count
            return
        for notice in self._since(told) if count else ():
            taken = min(notice.dropped, count - hole.excused)
            notice.dropped -= taken
            hole.excused += taken
        self.tally.dropped_missing += hole.excused
        if hole.size:
            self.tally.missing += hole.size
            self.holes.append(hole)

    def _has_gap(self, channel: int, told: int, sent_ns: int) -> bool:
        if any(channel in notice.channels for notice in self._since(told)):
            return True
        return any(
            channel in notice.channels and sent_ns <= notice.restarted_ns
            for notice in self._notices
        )

    # -- the end

    def lacks(self, finals: Mapping[int, Sequence[Final]]) -> bool:
        """Whether something is still to come, as far as is known; ``finals`` by channel."""
        return bool(self._tails(finals))

    def is_told(self, finals: Mapping[int, Sequence[Final]]) -> bool:
        """Whether notices may be all that there is to say of what it `lacks`."""
        room = self.spare
        for hole in self._tails(finals):
            seen = self._seen.get(_pair(hole))
            if not self._has_gap(hole.channel, *((seen.told, seen.sent_ns) if seen else (0, 0))):
                room -= hole.last - hole.first + 1 if hole.first else 1
        return room >= 0

    @property
    def spare(self) -> int:
        """Events announced as dropped that are not known to be missing."""
        return sum(notice.dropped for notice in self._notices)

    def settle(self, finals: Mapping[int, Sequence[Final]]) -> None:
        """Note what is missing at the end. To be called once."""
        for hole in self._tails(finals):
            seen = self._seen.get(_pair(hole))
            self._miss(hole, *((seen.told, seen.sent_ns) if seen else (0, 0)))

    def _tails(self, finals: Mapping[int, Sequence[Final]]) -> list[Hole]:
        """What is missing behind the last event of each pair."""
        if not self.start:
            return []
        tails = []
        for channel in self.channels:
            for final in finals.get(channel, ()):
                hole = Hole(final.publisher, channel, last=final.number)
                if self.until:
                    hole.last, hole.until = 0, self.until
                seen = self._seen.get((final.publisher, channel))
                if seen is None:
                    hole.after = self.start
                    is_owed = final.place > self.start and self.until != self.start
                else:
                    hole.first = seen.number + 1
                    is_owed = final.number > seen.number and seen.place != self.until
                if is_owed:
                    tails.append(hole)
        return tails


def _pair(hole: Hole) -> Pair:
    return (hole.publisher, hole.channel)
