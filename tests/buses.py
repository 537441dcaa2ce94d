"""What tests of a bus share: a sink that remembers, a clock in the test's hands, short words."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import trio

from gateway.bus import Bus
from gateway.control import Gap
from gateway.errors import GatewayError, Unavailable
from gateway.event import Event, Frame
from gateway.position import ZERO, Position

MANY = 10_000


class Wall:
    """The wall clock, in ms. It begins at the real time, by which Redis lets its keys expire."""

    def __init__(self) -> None:
        self.ms = time.time_ns() // 1_000_000

    def __call__(self) -> int:
        return self.ms


@dataclass
class FakeSink:
    """A hub that takes everything while there is room, or nothing."""

    full: bool = False
    frames: list[Frame] = field(default_factory=list)
    gaps: list[tuple[Collection[str] | None, Position, Gap]] = field(default_factory=list)
    _more: trio.Event = field(default_factory=trio.Event)
    _emptied: trio.Event = field(default_factory=trio.Event)

    def make_room(self) -> None:
        self.full = False
        self._emptied.set()

    async def room(self, size: int, patience: float | None = None) -> None:
        with trio.move_on_after(patience or 0):
            await trio.lowlevel.checkpoint()
            while self.full:
                self._emptied = trio.Event()
                await self._emptied.wait()
            return
        raise Unavailable("There is no room.")

    def has_room(self, size: int) -> bool:
        return not self.full

    def deliver(self, frame: Frame) -> None:
        self.frames.append(frame)
        self._more.set()

    async def tell_gap(
        self, channels: Collection[str] | None, position: Position, reason: Gap
    ) -> None:
        await trio.lowlevel.checkpoint()
        self.gaps.append((channels, position, reason))

    async def until(self, count: int) -> None:
        """Return when ``count`` frames have come, from the first one on."""
        with trio.fail_after(1000):
            while len(self.frames) < count:
                self._more = trio.Event()
                await self._more.wait()

    @property
    def positions(self) -> list[Position]:
        return [frame.position for frame in self.frames]


async def up_to_date(bus: Bus) -> Position:
    """Its head, which is not before its latest event."""
    return await bus.subscribe(())


def event(*channels: str, data: str = "x", **more: Any) -> Event:
    return Event(channels or ("a",), data, **more)


async def published(bus: Bus, *events: Event) -> list[Position]:
    """The positions of events that must all be accepted."""
    results = await bus.publish(events)
    positions = [result for result in results if isinstance(result, Position)]
    assert len(positions) == len(events)
    return positions


async def refused(bus: Bus, refused: Event) -> GatewayError:
    (result,) = await bus.publish([refused])
    assert isinstance(result, GatewayError)
    return result


async def held(bus: Bus, channel: str) -> list[Position]:
    _, positions = await read_pages(bus, channel, ZERO, await up_to_date(bus), MANY)
    return positions


async def read_pages(
    bus: Bus, name: str, after: Position, until: Position, limit: int
) -> tuple[bool, list[Position]]:
    """All of history, page by page, and whether a gap was said."""
    gap = False
    pages: list[Position] = []
    while True:
        history = await bus.history(name, after, until, limit)
        assert len(history.frames) <= limit
        gap = gap or history.previous > after
        pages += [frame.position for frame in history.frames]
        if history.complete:
            return gap, pages
        after = pages[-1]
