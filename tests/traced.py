"""What a crowd of EventSources was told, and when: its trace, as `loadtest/crowd.c` writes it.

Pure: lines in, recordings for `verdict` and times out. Times are in seconds since 1970.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from verdict import Dropped, Gap, Received, Recording, Sent

from gateway.position import Position


@dataclass(slots=True)
class Connection:
    """One try of a client to get its stream, from when it was opened."""

    opened: float
    connected: float | None = None
    """When it was told ``connected``."""
    told: float | None = None
    """When it was told to come back."""
    ended: float | None = None


@dataclass(slots=True)
class Traced:
    """One client."""

    recording: Recording
    connections: list[Connection] = field(default_factory=list)
    slowest: float = 0.0
    """Its delivery gap: the most seconds that any event took from its acknowledgement until it was
    here. For an event of a time when the client was away, that is how long it was late."""

    @property
    def absences(self) -> Iterator["Absence"]:
        """The times without a stream, but for the one before the first and one that never ended."""
        last: Connection | None = None
        tried: float | None = None
        for connection in self.connections:
            if last is not None and last.ended is not None and tried is None:
                tried = connection.opened
            if connection.connected is None:
                continue
            if last is not None and last.ended is not None and tried is not None:
                yield Absence(last.ended, tried, connection.connected, last.told is not None)
            last, tried = connection, None


class Absence(NamedTuple):
    ended: float
    tried: float
    """When the client first tried to come back."""
    connected: float
    told: bool
    """Whether it had been told to come back, and not just been cut."""


def read(
    lines: Iterable[str],
    channels: Sequence[frozenset[str]],
    sent: Iterable[Sent],
    *,
    clock: float,
) -> list[Traced]:
    """What each client was told. Client i is of ``channels[i % len(channels)]``; ``clock`` is when
    that of ``sent`` was 0."""
    due = {each.data: each.answered + clock for each in sent if each.position is not None}
    clients: dict[int, Traced] = {}
    received: dict[str, Received] = {}
    for line in lines:
        microseconds, number, what, *rest = line.rstrip("\n").split(" ", 3)
        at, detail = int(microseconds) / 1e6, rest[0] if rest else ""
        if (client := clients.get(int(number))) is None:
            own = channels[int(number) % len(channels)]
            client = clients[int(number)] = Traced(Recording(f"client {number}", own))
        match what:
            case "event":
                if (event := received.get(detail)) is None:
                    event = received[detail] = _received(detail)
                client.recording.records.append(event)
                client.slowest = max(client.slowest, at - due.get(event.data, at))
            case "open":
                client.connections.append(Connection(at))
            case "connected":
                client.connections[-1].connected = at
                recording = client.recording
                recording.start = recording.start or Position.parse(detail)
            case "reconnect":
                client.connections[-1].told = at
            case "ended":
                client.connections[-1].ended = at
            case "gap":
                told = json.loads(detail)
                gap = Gap(frozenset(told["channels"]), told["reason"], at - clock)
                client.recording.records.append(gap)
            case "dropped":
                client.recording.records.append(Dropped(json.loads(detail)["count"]))
            case _:
                raise AssertionError(f"not a line of a trace: {line!r}")
    return [clients[number] for number in sorted(clients)]


def _received(detail: str) -> Received:
    position, _, data = detail.partition(" ")
    return Received(Position.parse(position), data)


def owed(sent: Iterable[Sent], client: Recording) -> set[str]:
    """The data of all that was acknowledged and should have come to a client."""
    return {
        event.data
        for event in sent
        if event.position is not None
        and client.start is not None
        and event.position > client.start
        and not client.channels.isdisjoint(event.channels)
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def tenths(times: Sequence[float]) -> list[float]:
    """The share of ``times`` in each tenth of the time from the first to the last of them."""
    first, last = min(times), max(times)
    counts = [0] * 10
    for at in times:
        counts[min(9, int((at - first) / (last - first or 1) * 10))] += 1
    return [count / len(times) for count in counts]


def most_within(times: Sequence[float], seconds: float) -> float:
    """The largest share of ``times`` in any stretch of ``seconds``."""
    ordered = sorted(times)
    most = begin = 0
    for end, at in enumerate(ordered):
        while at - ordered[begin] > seconds:
            begin += 1
        most = max(most, end - begin + 1)
    return most / len(ordered)
