"""What a subscription gives out: events, and notices of what became of the stream itself."""

import json
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Event:
    """An event as it was published.

    ``id`` is its position; ``last_event_id`` is what to come back with after it, and differs for
    missed events of a channel that was added to an open stream. ``channels`` are those of the
    stream's that it was sent to; empty unless the stream is annotated.
    """

    type: str
    data: str
    id: str
    last_event_id: str
    channels: tuple[str, ...] = ()

    def json(self) -> Any:
        """The data, parsed. Raises ValueError where it is no JSON."""
        return json.loads(self.data)


@dataclass(frozen=True, slots=True)
class Connected:
    """The stream stands at ``position``: what is published from here on comes."""

    client_id: str
    channels: tuple[str, ...]
    position: str
    data: str
    """As the gateway told it, which is true of every notice that has it."""


@dataclass(frozen=True, slots=True)
class Gap:
    """History does not hold all that was missed of ``channels``."""

    channels: tuple[str, ...]
    reason: str
    data: str

    @property
    def sentence(self) -> str:
        return f"Events of {', '.join(self.channels)} are missing: history is {self.reason}."


@dataclass(frozen=True, slots=True)
class Dropped:
    """The reader was too slow: ``count`` events are missing right here."""

    count: int
    data: str

    @property
    def sentence(self) -> str:
        return f"{self.count} events are missing: the reader was too slow for them."


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """A connection has ended or failed; the next one comes after ``delay`` seconds.

    ``attempt`` is 1 for the first since a stream has last lived.
    """

    attempt: int
    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream is over for good, as the gateway has said; the last item."""

    reason: str


Notice: TypeAlias = Connected | Gap | Dropped | Reconnecting | Ended
Item: TypeAlias = Event | Notice
