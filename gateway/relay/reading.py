"""An upstream's bytes as its events, within limits; pure but for `Reader`, which fetches them.

1. What was whole before something went wrong is given out first, and then that it went wrong, so
   that neither depends on how the bytes are cut.
2. No more is held than one event of the largest allowed size, and what came with one read.
3. UTF-8 is strict: a stream with a character that is none has been broken on its way.
"""

import codecs
from collections.abc import Awaitable, Callable

from gateway.config import Upstream
from gateway.relay.events import Failure
from gateway.sse import ParseLimit, Parser, ServerSentEvent


class Reading:
    """Bytes in, events out."""

    def __init__(self, *, max_event_bytes: int, max_bytes: int) -> None:
        self._parser = Parser(max_line_bytes=max_event_bytes, max_event_bytes=max_event_bytes)
        self._check_utf8 = codecs.getincrementaldecoder("utf-8")()
        self._is_between = True
        """The last character is whole."""
        self._left = max_bytes
        self._failure: Failure | None = None

    def receive_data(self, data: bytes) -> list[ServerSentEvent]:
        """The events that ``data`` completes; often none.

        Raises Failure("malformed"), Failure("too-large") or Failure("limit-bytes"), and ever after.
        """
        if self._failure is None:
            data = self._checked(data)
            try:
                events = self._parser.receive_data(data)
            except ParseLimit:
                raise self._failed("too-large") from None
            if events or self._failure is None:
                return events
        raise self._failure

    def _checked(self, data: bytes) -> bytes:
        """As much of it as is allowed, and is text."""
        if len(data) > self._left:
            data = data[: self._left]
            self._failed("limit-bytes")
        self._left -= len(data)
        if self._is_between and data.isascii():
            return data
        pending = len(self._check_utf8.getstate()[0])
        try:
            self._check_utf8.decode(data)
        except UnicodeDecodeError as error:
            data = data[: max(0, error.start - pending)]
            self._failed("malformed")
        self._is_between = not self._check_utf8.getstate()[0]
        return data

    def _failed(self, code: str) -> Failure:
        self._failure = Failure(code)
        return self._failure


class Reader:
    """The events of one answer. ``receive`` gives its bytes as they come, and none at its end."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]], upstream: Upstream) -> None:
        self._receive = receive
        self._reading = Reading(
            max_event_bytes=upstream.max_event_bytes, max_bytes=upstream.max_bytes
        )

    async def events(self) -> list[ServerSentEvent] | None:
        """The next ones, at least one; None when the answer has ended in order. Raises Failure."""
        while data := await self._receive():
            if events := self._reading.receive_data(data):
                return events
        self._reading.receive_data(b"")  # raises what was found behind the last events
        return None
