"""A bus that answers as it is told, for what publishes in order."""

from collections.abc import Sequence

import trio

from gateway.errors import ChannelEnded, GatewayError, Unavailable
from gateway.event import Event
from gateway.position import Position


class ScriptedBus:
    """Takes what it is given, but for what it is told to answer next."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        """Which it has taken."""
        self.calls: list[int] = []
        self.answers: list[Sequence[str]] = []
        """Each of a call: "taken", "refused", "unknown" or "ended", the last one for all others."""
        self.up = trio.Event()
        self.up.set()
        self.lossless = True

    @property
    def taken(self) -> list[str]:
        """The data of what it has taken."""
        return [event.data for event in self.events]

    async def publish(
        self, events: Sequence[Event], patience: float
    ) -> Sequence[Position | GatewayError]:
        self.calls.append(len(events))
        with trio.move_on_after(patience):
            await self.up.wait()
        told = self.answers.pop(0) if self.answers else ["taken" if self.up.is_set() else "refused"]
        return [self._one(event, told[min(i, len(told) - 1)]) for i, event in enumerate(events)]

    def _one(self, event: Event, answer: str) -> Position | GatewayError:
        if answer == "ended":
            return ChannelEnded("The channel has ended.")
        if answer != "taken":
            return Unavailable("Not now.", outcome=answer)
        self.events.append(event)
        return Position(1, len(self.events))

    def vouches(self, after: Position) -> bool:
        return self.lossless
