"""An EventSource: connections one after another, each with the id that the last one left.

As a browser's it waits as long as `retry` says before it comes back, and stays away after 204. It
differs where a browser gives up for good: 503 and 429 have it come back, after Retry-After.
"""

import random
from collections.abc import Iterator, Sequence

from gateway.sse import ParseLimit, Parser, ServerSentEvent
from stress.http import READ_BYTES, Connection, Target, seconds

RETRY_SECONDS = 3.0
"""Before a stream has said otherwise; as in Firefox and Chrome."""

OPEN_SECONDS = 30.0
"""For connecting, and until `connected` has come: a node may hold an opening for 5 s (`open_wait`),
and for 10 while Redis is away."""

CLOSED = ".closed"


class TurnedAway(Exception):
    """No stream now: come back after `EventSource.wait` seconds."""


class Ended(Exception):
    """No stream any more; stay away."""


class EventSource:
    def __init__(
        self, targets: Iterator[Target], path: str, token: str, *, receive_buffer: int = 0
    ) -> None:
        """Each connection is to the next of ``targets``."""
        self.last_event_id = ""
        self.is_cut = False
        """Whether the connection was ended by `cut`."""
        self._targets = targets
        self._path = path
        self._headers = [("Accept", "text/event-stream")]
        if token:
            self._headers.append(("Authorization", f"Bearer {token}"))
        self._receive_buffer = receive_buffer
        self._retry = RETRY_SECONDS
        self._retry_after = 0.0
        self._connection: Connection | None = None
        self._parser = Parser()

    def open(self) -> None:
        """Connect, instead of the connection before. Raises TurnedAway, Ended, and OSError."""
        self.close()
        self.is_cut = False
        self._parser = Parser()
        self._retry_after = 0.0
        connection = Connection(
            next(self._targets), timeout=OPEN_SECONDS, receive_buffer=self._receive_buffer
        )
        self._connection = connection
        headers = list(self._headers)
        if self.last_event_id:
            headers.append(("Last-Event-ID", self.last_event_id))
        status = connection.request("GET", self._path, headers)
        if status == 200:
            return
        if status == 204:
            raise Ended("204")
        if status in (429, 500, 502, 503, 504):
            self._retry_after = seconds(connection.header("retry-after"))
            raise TurnedAway(f"status {status}")
        body = connection.receive_all().decode(errors="replace")
        raise Ended(f"status {status}: {body.strip()[:200]}")

    def live(self) -> None:
        """From now on silence is no failure."""
        if self._connection is not None:
            self._connection.set_timeout(None)

    def receive(self, most: int = READ_BYTES) -> Sequence[ServerSentEvent] | None:
        """The events of the next bytes, often none; None when the stream has ended. Raises OSError,
        and Ended behind the last event of a stream that has said that it is the last one."""
        if self.last_event_id.endswith(CLOSED):
            raise Ended(CLOSED)
        if self._connection is None or not (data := self._connection.receive(most)):
            return None
        try:
            events = self._parser.receive_data(data)
        except ParseLimit as limit:
            raise OSError(limit.detail) from None
        self.last_event_id = self._parser.last_event_id or self.last_event_id
        if self._parser.retry is not None:
            self._retry = self._parser.retry / 1000
        return events

    @property
    def wait(self) -> float:
        """Seconds before the next `open`. The gateway has jittered its own ``retry``; a Retry-After
        is one for all who get it, so that a tenth of it, at random, is added."""
        return self._retry_after * random.uniform(1.0, 1.1) or self._retry

    def cut(self) -> None:
        """As if the link had broken."""
        if self._connection is not None:
            self.is_cut = True
            self._connection.cut()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
