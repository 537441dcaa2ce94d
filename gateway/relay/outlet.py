"""From a token stream to its channel: what waits to be published, in order and within bounds.

1. `put` never waits. Whoever puts waits for `room` before he takes more from where it comes from,
   so that what waits is bounded, and an upstream is held up by its own connection.
2. One call of the bus is under way at a time; what comes meanwhile goes into the next.
3. Either everything goes out in the order in which it came, or `run` says why not. After that
   nothing more goes out but an end.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from gateway.errors import ChannelEnded, GatewayError
from gateway.event import Event
from gateway.position import ZERO, Position
from gateway.relay.events import Failure

WAITING_EVENTS = 4096
WAITING_BYTES = 1024 * 1024
"""Beyond either nothing more is taken in: over a minute of a fast model's tokens."""

BATCH_EVENTS = 64
BATCH_BYTES = 128 * 1024
"""Of one call of the bus, unless one event is larger."""

PATIENCE_SECONDS = 60.0
"""For which an outage of the bus is waited out."""

AGAIN_SECONDS = 0.25
"""Until the next try, where the bus has refused."""

Publish = Callable[[Sequence[Event], float], Awaitable[Sequence[Position | GatewayError]]]
"""`gateway.bus.Bus.publish`, with its patience."""


class Uncertain(Failure):
    """It cannot be known whether the last events have been published."""


class Outlet:
    def __init__(self, publish: Publish, vouches: Callable[[Position], bool]) -> None:
        """``vouches`` is the bus's."""
        self._publish = publish
        self._vouches = vouches
        self._waiting: deque[Event] = deque()
        self._bytes = 0
        self._more = trio.Event()
        self._left: trio.Event | None = None
        """Set by who publishes, where anybody waits for that."""
        self.began = ZERO
        """The position of the channel's first event."""
        self.position = ZERO
        """That of the last one."""
        self.published = 0
        self._is_broken = False

    @property
    def waits(self) -> int:
        """Events that have not been published."""
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        return len(self._waiting) < WAITING_EVENTS and self._bytes < WAITING_BYTES

    async def room(self) -> None:
        """Return once more may be taken in."""
        while not self.has_room:
            await self._leaves()

    async def flushed(self) -> None:
        """Return once nothing waits."""
        while self._waiting:
            await self._leaves()

    async def _leaves(self) -> None:
        if self._left is None:
            self._left = trio.Event()
        await self._left.wait()

    def put(self, event: Event) -> None:
        """Behind a hole (`clear`) all but an end is thrown away."""
        if self._is_broken and not event.end:
            return
        self._waiting.append(event)
        self._bytes += len(event.data)
        self._more.set()

    def clear(self) -> None:
        """Forget what waits: a hole, behind which only an end that tells of it may follow."""
        self._is_broken = True
        self._waiting.clear()
        self._bytes = 0
        self._free()

    async def run(self) -> None:
        """Publish what is put, until the channel's last event has been.

        Raises ChannelEnded where somebody else has published one, and Failure("bus-lost").
        """
        while True:
            while not self._waiting:
                self._more = trio.Event()
                await self._more.wait()
            batch = self._batch()
            await self._publish_all(batch)
            for event in batch:
                self._waiting.popleft()
                self._bytes -= len(event.data)
            self._free()
            if batch[-1].end:
                return

    def _batch(self) -> list[Event]:
        if len(self._waiting) <= BATCH_EVENTS and self._bytes <= BATCH_BYTES:
            return list(self._waiting)
        batch: list[Event] = []
        size = 0
        for event in self._waiting:
            size += len(event.data)
            if batch and (size > BATCH_BYTES or len(batch) == BATCH_EVENTS):
                break
            batch.append(event)
        return batch

    async def _publish_all(self, batch: Sequence[Event]) -> None:
        until = trio.current_time() + PATIENCE_SECONDS
        left = batch
        while left:
            if not self._vouches(self.began) and not self._is_broken:
                raise Failure("bus-lost")  # what was published first may be gone
            patience = max(until - trio.current_time(), AGAIN_SECONDS)
            results = await self._publish(left, patience)
            taken = 0
            for result in results:
                if not isinstance(result, Position):
                    break
                taken += 1
                self.position = result
            self.published += taken
            refused = results[taken:]
            left = left[taken:]
            if left:
                self._check(refused)
                if trio.current_time() > until:
                    raise Failure("bus-lost")
                await trio.sleep(AGAIN_SECONDS)

    def _check(self, refused: Sequence[Position | GatewayError]) -> None:
        """Raise unless all of ``refused`` may be tried again without a hole or a repetition."""
        is_uncertain = False
        for result in refused:
            if isinstance(result, ChannelEnded):
                raise result
            if isinstance(result, Position):
                raise Failure("bus-lost")
            is_uncertain |= result.extra.get("outcome") == "unknown"
        if is_uncertain:
            raise Uncertain("bus-lost")

    def _free(self) -> None:
        if self._left is not None and self.has_room:
            self._left.set()
            self._left = None
