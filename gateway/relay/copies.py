"""What clients of the drop-in are to be given of token streams, until they have taken it.

A stream is read at its own pace, and whoever takes it more slowly has it wait here, within bounds
for each client and for all of a worker. Beyond them a client is cut off: it loses its connection
and nothing else, since all of the stream is in its channel.
"""

from collections import deque
from enum import Enum, auto

import trio

from gateway.relay.events import Failure

COPY_BYTES = 1024 * 1024
"""For one client: a sixteenth of the longest answer, and over a minute of a model's tokens, each of
which takes some 200 bytes on the wire."""

COPIES_BYTES = 64 * 1024 * 1024
"""For all of a worker's; beyond it those are cut off for whom more than FAIR_BYTES wait."""

FAIR_BYTES = 64 * 1024

PIECE_BYTES = 64 * 1024
"""Given to a client at a time, unless the upstream's own piece was larger: so much goes out within
``write_timeout`` on any connection that is alive."""


class Copies:
    """Of a worker."""

    def __init__(self) -> None:
        self.bytes = 0
        """That wait."""
        self.cut = 0
        """Clients that were cut off, since the start."""


class Copy:
    """Of one stream, for one client: one task puts, and one takes."""

    class State(Enum):
        OPEN = auto()
        OVER = auto()
        """There is no more in it, and the client reads on by itself."""
        CUT = auto()
        """There is no more, and that is not the end."""
        LEFT = auto()
        """The client is gone."""

    def __init__(self, copies: Copies) -> None:
        self.state = Copy.State.OPEN
        self._copies = copies
        self._pieces: deque[bytes] = deque()
        self._bytes = 0
        self._changed = trio.Event()

    def put(self, data: bytes) -> bool:
        """Whether there was room, or need. If not, it is cut, and what waits is forgotten."""
        if self.state is not Copy.State.OPEN:
            return True
        copies = self._copies
        size = self._bytes + len(data)
        all_of_them = copies.bytes + len(data)
        if size > COPY_BYTES or (all_of_them > COPIES_BYTES and size > FAIR_BYTES):
            copies.cut += 1
            self.end(Copy.State.CUT)
            self.clear()
            return False
        self._pieces.append(data)
        self._bytes, copies.bytes = size, all_of_them
        self._changed.set()
        return True

    def end(self, state: State) -> None:
        if self.state is Copy.State.OPEN:
            self.state = state
            self._changed.set()

    def clear(self) -> None:
        """Nobody takes what waits."""
        self._pieces.clear()
        self._copies.bytes -= self._bytes
        self._bytes = 0

    async def take(self) -> bytes:
        """What is next; none once it is over. Raises Failure where it was cut."""
        while not self._pieces:
            if self.state is Copy.State.OVER:
                return b""
            if self.state is not Copy.State.OPEN:
                raise Failure("interrupted")
            self._changed = trio.Event()
            await self._changed.wait()
        taken = [self._pieces.popleft()]
        size = len(taken[0])
        while self._pieces and size + len(self._pieces[0]) <= PIECE_BYTES:
            taken.append(self._pieces.popleft())
            size += len(taken[-1])
        self._bytes -= size
        self._copies.bytes -= size
        return b"".join(taken)
