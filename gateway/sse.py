"""The wire format of Server-Sent Events: encode and parse (WHATWG HTML, section 9.2).

Both directions are pure. Rules:

1. ``id:`` is always the first line of what ``encode`` returns, so a frame encoded without an id
   gets one by writing the id line before it.
2. Line ends are CR, LF and CRLF, and nothing else that Unicode or ``str.splitlines`` takes for one.
3. The parser follows the standard's steps to the letter, gives the same events however its input
   is cut, takes time linear in its input, and holds no more than its limits.
"""

from dataclasses import dataclass

from gateway.errors import BadRequest, GatewayError

MAX_LINE_BYTES = 1024 * 1024
"""Default bound of one line. Large enough for a base64 image sent as one data line."""

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Default bound of the data lines of one event, as they came."""

MAX_RETRY_MS = 2**31 - 1
"""The longest JavaScript timer, 24.8 days. Node takes a longer one as 1 ms: a storm."""

_BOM = b"\xef\xbb\xbf"


def encode(
    data: str | None, *, event: str | None = None, id: str | None = None, retry: int | None = None
) -> bytes:
    """One block, ready to send: ``id:``, ``event:``, ``retry:``, ``data:`` lines, a blank one.

    Line ends in ``data`` become new ``data:`` lines, so a receiver sees each of them as LF. With
    data None there is no ``data:`` line: an EventSource then takes note of ``id`` and ``retry`` (in
    ms) and dispatches nothing; with data "" it dispatches an event.

    Raises BadRequest where ``event`` or ``id`` holds CR, LF or NUL (an id with NUL is ignored by
    receivers), ``retry`` is not in 0..MAX_RETRY_MS, or text has no UTF-8 form.
    """
    block = "" if id is None else f"id: {_one_line('id', id)}\n"
    if event is not None:
        block += f"event: {_one_line('type', event)}\n"
    if retry is not None:
        if not 0 <= retry <= MAX_RETRY_MS:
            raise BadRequest(f"retry is a number of milliseconds from 0 to {MAX_RETRY_MS}.")
        block += f"retry: {retry}\n"
    if data is not None:
        block += _lines("data: ", data)
    return _utf8(f"{block}\n")


def comment(text: str) -> bytes:
    """A block of comment lines, which receivers ignore. Raises BadRequest as ``encode`` does."""
    return _utf8(f"{_lines(': ', text)}\n")


def _one_line(what: str, text: str) -> str:
    if "\n" in text or "\r" in text or "\0" in text:
        raise BadRequest(f"An event {what} must not contain a line break or a NUL character.")
    return text


def _lines(prefix: str, text: str) -> str:
    if "\n" in text or "\r" in text:  # measured: 0.15 us of 0.4 saved for the usual single line
        text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", f"\n{prefix}")
    return f"{prefix}{text}\n"


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadRequest(
            "An event must not contain lone surrogates: they have no UTF-8 form."
        ) from None


class ParseLimit(GatewayError):
    """A stream whose line or event is larger than the parser was told to hold."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """An event as an EventSource dispatches it; ``last_event_id`` may be an earlier block's.

    The lines ``channel:`` and ``at:``, which the standard has receivers ignore, are those of an
    annotated stream; without them both are empty.
    """

    event: str
    data: str
    last_event_id: str
    channel: str = ""
    at: str = ""


class Parser:
    """Bytes in, events out: the standard's "interpreting an event stream" (section 9.2.6).

    ``last_event_id`` is the id to resume from: that of the last complete block, with data or not.
    ``retry`` is the reconnection time asked for, in ms and at most MAX_RETRY_MS, or None. An event
    without its blank line is never given out, so the end of the input needs no call.
    """

    def __init__(
        self, *, max_line_bytes: int = MAX_LINE_BYTES, max_event_bytes: int = MAX_EVENT_BYTES
    ) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self._max_line_bytes = max_line_bytes
        self._max_event_bytes = max_event_bytes
        self._exceeded: str | None = None
        self._partial = bytearray()
        self._after_cr = False
        self._bom = _BOM
        self._id = ""
        self._type = self._channel = self._at = ""
        self._data: list[str] = []
        self._data_bytes = 0

    def receive_data(self, data: bytes) -> list[ServerSentEvent]:
        """The events that ``data`` completes, in order; often none.

        Raises ParseLimit where a line or an event is over its bound, and ever after. Events that
        were complete before are returned first, so that none depends on how the input is cut.
        """
        events: list[ServerSentEvent] = []
        if self._exceeded is None:
            try:
                self._receive(data, events)
            except ParseLimit as limit:
                self._exceeded = limit.detail
        if self._exceeded is not None and not events:
            raise ParseLimit(self._exceeded)
        return events

    def _receive(self, data: bytes, events: list[ServerSentEvent]) -> None:
        if not data:
            return
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        *lines, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if not self._partial and not self._bom and len(line) <= self._max_line_bytes:
                self._end_line(line, events)  # as nearly all are: whole
                continue
            self._extend(line)
            whole = bytes(self._partial)
            self._partial.clear()
            self._end_line(whole.removeprefix(self._bom), events)
            self._bom = b""  # only one, and only at the very beginning
        self._extend(rest)

    def _extend(self, piece: bytes) -> None:
        self._partial += piece
        if len(self._partial) > self._max_line_bytes:
            raise ParseLimit(f"A line of the event stream is over {self._max_line_bytes} bytes.")

    def _end_line(self, line: bytes, events: list[ServerSentEvent]) -> None:
        if not line:
            self._end_block(events)
            return
        # No byte of a multi-byte character is CR or LF, so decoding by line changes nothing.
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data_bytes += len(line) + 1
                if self._data_bytes > self._max_event_bytes:
                    raise ParseLimit(f"The data of an event is over {self._max_event_bytes} bytes.")
                self._data.append(value)
            case "event":
                self._type = value
            case "id" if "\0" not in value:
                self._id = value
            case "channel":
                self._channel = value
            case "at":
                self._at = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry = _bounded_retry(value)
            case _:  # a comment, whose name is empty, or a field to be ignored
                pass

    def _end_block(self, events: list[ServerSentEvent]) -> None:
        self.last_event_id = self._id
        if self._data:
            event = (self._type or "message", "\n".join(self._data), self.last_event_id)
            events.append(ServerSentEvent(*event, self._channel, self._at))
        self._type = self._channel = self._at = ""
        self._data = []
        self._data_bytes = 0


def _bounded_retry(digits: str) -> int:
    """Only a few digits ever reach ``int``: its time is quadratic, and it refuses thousands."""
    significant = digits.lstrip("0")
    if len(significant) > len(str(MAX_RETRY_MS)):
        return MAX_RETRY_MS
    return min(int(significant or "0"), MAX_RETRY_MS)
