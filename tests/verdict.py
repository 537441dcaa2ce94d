"""What clients must have received: the gateway's promises, held against what was recorded.

Pure: publishers and subscribers write down what happened to them, `defects` says what is wrong
with it, each defect in a sentence. The rules:

1. What was acknowledged, and what any client received, is owed to every client of its channels.
2. Each client gets what it is owed exactly once and in strictly increasing position order, or a
   `gap` of that channel stands exactly where it is missing; but `restarted` may stand before what
   history still holds of the time before it. `dropped` excuses nothing.
3. What was refused reaches nobody; what is unknown reaches everybody or, but for rule 1, nobody.
4. Each event has one position, the acknowledged one, and no position is given to two events.
5. What is sent after another event was acknowledged has the later position.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from gateway.position import Position

EXAMPLES = 3
"""Defects of one kind that are spelled out for each client; the others are counted."""


RESTARTED = "restarted"


class Outcome(Enum):
    """What a publisher knows of an event in the end."""

    ACKNOWLEDGED = auto()
    REFUSED = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class Sent:
    """An event, told from all others by its data; when it was first sent and last answered, in
    seconds of one clock; its position if it was acknowledged."""

    data: str
    channels: tuple[str, ...]
    outcome: Outcome
    position: Position | None
    began: float
    answered: float


@dataclass(frozen=True, slots=True)
class Received:
    position: Position | None
    data: str


@dataclass(frozen=True, slots=True)
class Gap:
    channels: frozenset[str]
    reason: str
    told: float = 0.0
    """When, on the clock of `Sent`."""


@dataclass(frozen=True, slots=True)
class Dropped:
    count: int


Record: TypeAlias = Received | Gap | Dropped


@dataclass(slots=True)
class Recording:
    """All that one client was told, over all its connections, in order."""

    client: str
    channels: frozenset[str]
    start: Position | None = None
    """The id of its first `connected`: it is owed what is later."""
    records: list[Record] = field(default_factory=list)

    @property
    def received(self) -> list[Received]:
        return [record for record in self.records if isinstance(record, Received)]

    @property
    def gaps(self) -> list[Gap]:
        return [record for record in self.records if isinstance(record, Gap)]


def defects(sent: Sequence[Sent], recordings: Sequence[Recording]) -> list[str]:
    """Every way in which the rules of this module are broken; empty if all of them hold."""
    ledger = {event.data: event for event in sent}
    assert len(ledger) == len(sent), "publishers sent the same data twice"
    found = list(_some("the publishers", _order_defects(sent)))
    positions, clashes = _positions(sent, recordings)
    found += _some("the clients", clashes)
    for recording in recordings:
        judged = _Judged(recording, ledger, positions)
        for kind in (judged.strange(), judged.disordered(), judged.repeated(), judged.missing()):
            found += _some(recording.client, kind)
    return found


def _some(who: str, sentences: Iterable[str]) -> Iterator[str]:
    told = list(sentences)
    for sentence in told[:EXAMPLES]:
        yield f"{who}: {sentence}"
    if len(told) > EXAMPLES:
        yield f"{who}: and {len(told) - EXAMPLES} more like the last one, in all {len(told)}"


def _order_defects(sent: Iterable[Sent]) -> Iterator[str]:
    """Rules 4 and 5 among the acknowledgements."""
    known = [(event, event.position) for event in sent if event.position is not None]
    holders: dict[Position, Sent] = {}
    for event, position in known:
        other = holders.setdefault(position, event)
        if other is not event:
            yield f"position {position} was given to {other.data!r} and to {event.data!r}"
    answered = sorted(known, key=lambda pair: pair[0].answered)
    at, latest = 0, None
    for event, position in sorted(known, key=lambda pair: pair[0].began):
        while answered[at][0].answered < event.began:
            latest = max(latest or answered[at], answered[at], key=lambda pair: pair[1])
            at += 1
        if latest is not None and position < latest[1]:
            yield (
                f"{event.data!r} was sent after {latest[0].data!r} had been acknowledged with "
                f"{latest[1]}, and got the earlier position {position}"
            )


def _positions(
    sent: Iterable[Sent], recordings: Iterable[Recording]
) -> tuple[dict[str, Position], list[str]]:
    """The position of each event that is owed, and where clients contradict it or each other."""
    positions = {event.data: event.position for event in sent if event.position is not None}
    said_by = dict.fromkeys(positions, "its acknowledgement")
    clashes = []
    for recording in recordings:
        for record in recording.received:
            if record.position is None:
                continue
            known = positions.setdefault(record.data, record.position)
            who = said_by.setdefault(record.data, recording.client)
            if known != record.position:
                clashes.append(
                    f"{record.data!r} came at {record.position} to {recording.client}, "
                    f"but {who} says {known}"
                )
    return positions, clashes


class _Judged:
    """One client's recording, laid out for the rules."""

    def __init__(
        self, recording: Recording, ledger: dict[str, Sent], positions: dict[str, Position]
    ) -> None:
        self._recording = recording
        self._ledger = ledger
        self._positions = positions
        # By channel: what came, and the gaps with the number of events that came before them.
        self._received: dict[str, list[Position]] = defaultdict(list)
        self._began: dict[str, list[float]] = defaultdict(list)
        self._gaps: dict[str, list[tuple[int, Gap]]] = defaultdict(list)
        for record in recording.records:
            match record:
                case Received(position, data) if position is not None and data in ledger:
                    for channel in ledger[data].channels:
                        self._received[channel].append(position)
                        self._began[channel].append(ledger[data].began)
                case Gap(channels):
                    for channel in channels:
                        self._gaps[channel].append((len(self._received[channel]), record))

    def strange(self) -> Iterator[str]:
        """What should not have come at all."""
        mine = self._recording.channels
        for record in self._recording.records:
            match record:
                case Gap(channels, reason) if not channels <= mine:
                    yield f"was told of a gap ({reason}) in {sorted(channels - mine)}, not its own"
                case Dropped(count):
                    yield f"was told that {count} events were dropped"
                case Received(_, data) if data not in self._ledger:
                    yield f"received {data!r}, which nobody published"
                case Received(position, data):
                    event = self._ledger[data]
                    if event.outcome is Outcome.REFUSED:
                        yield f"received {data!r} at {position}, which was refused"
                    if mine.isdisjoint(event.channels):
                        yield f"received {data!r} of {event.channels}, not its own"
                    if position is None:
                        yield f"received {data!r} without a position"

    def disordered(self) -> Iterator[str]:
        before: Received | None = None
        for record in self._recording.received:
            if record.position is None:
                continue
            if self._recording.start is not None and record.position <= self._recording.start:
                yield (
                    f"received {record.data!r} at {record.position}, "
                    f"although it began at {self._recording.start}"
                )
            if before and before.position and record.position <= before.position:
                yield (
                    f"received {record.data!r} at {record.position} "
                    f"after {before.data!r} at {before.position}"
                )
            before = record

    def repeated(self) -> Iterator[str]:
        for data, times in Counter(r.data for r in self._recording.received).items():
            if times > 1:
                yield f"received {data!r} {times} times"

    def missing(self) -> Iterator[str]:
        recording = self._recording
        if recording.start is None:
            yield "was never connected"
            return
        there = {record.data for record in recording.received}
        owed = sorted((p, d) for d, p in self._positions.items() if d in self._ledger)
        for position, data in owed:
            if position <= recording.start or data in there:
                continue
            for channel in sorted(recording.channels.intersection(self._ledger[data].channels)):
                at = bisect_left(self._received[channel], position)
                if not self._is_told(data, channel, at):
                    yield (
                        f"never received {data!r} at {position} ({self._known(data)}), and no gap "
                        f"of {channel!r} is told {self._between(channel, at)}"
                    )
                    break

    def _is_told(self, data: str, channel: str, at: int) -> bool:
        """Whether a gap says that an event is missing before the ``at``-th of ``channel``."""
        for before, gap in self._gaps[channel]:
            if before == at:
                return True
            if gap.reason == RESTARTED and before < at:
                between = (*self._began[channel][before:at], self._ledger[data].began)
                if max(between) < gap.told:
                    return True
        return False

    def _known(self, data: str) -> str:
        if self._ledger[data].outcome is Outcome.ACKNOWLEDGED:
            return "acknowledged"
        return "others received it"

    def _between(self, channel: str, at: int) -> str:
        """Where in what came of ``channel`` something is missing."""
        received = self._received[channel]
        before = f"after {received[at - 1]}" if at else f"since its start {self._recording.start}"
        return f"{before} and {f'before {received[at]}' if at < len(received) else 'to the end'}"
