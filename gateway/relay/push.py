"""What an application pushes: NDJSON, each line one event of the normal view. Pure.

    {"text": "Hel"}                                     a token
    {"event": "token", "data": {"text": "Hel"}}         the same
    {"event": "tool_use", "data": {"id", "name", "input"}}
    {"event": "complete", "data": {"reason", "usage"}}  the end; data may be left out
    {"event": "error", "data": {"code", "message"}}     an end as well
    {"event": "progress", "data": ...}                  whatever the application likes to tell

1. Lines are numbered from 0, over all bodies of a stream; blank ones are none.
2. Each line is one event of the channel, and its `Mark` goes with that, so that whoever takes a
   stream over knows what has been published by looking at the last events alone.
3. What is wrong with a line is said with its number, and nothing of it is taken.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway import control
from gateway.errors import BadRequest, ContentTooLarge, GatewayError
from gateway.event import MAX_LABEL, Event, Frame
from gateway.relay.events import Complete, Error, Token, ToolUse, Usage, render
from gateway.relay.sizes import data_bytes, kept_bytes

LINE_FRAMING = 1024
"""What a line may have beyond the largest event: the JSON around its data."""

NOT_PUSHED = frozenset({"start", "snapshot"})
"""Types of the normal view that are the gateway's to tell."""


MARKED = "\0"
"""Begins the key of a pushed event, and no publisher's own."""


class Mark(NamedTuple):
    """How many lines a stream had with an event, and how many bytes of history."""

    lines: int = 0
    bytes: int = 0

    def text(self) -> str:
        return f"{MARKED}{self.lines}-{self.bytes}"


class Taken(NamedTuple):
    """A line that was understood."""

    event: Event
    last: Complete | Error | None = None
    """Of a line that ends the stream."""
    is_token: bool = False
    mark: Mark = Mark()
    """After it."""


class _Line(Struct, forbid_unknown_fields=True):
    text: str | UnsetType = UNSET
    event: str | UnsetType = UNSET
    data: Raw | UnsetType = UNSET


class _Token(Struct, forbid_unknown_fields=True):
    text: str


class _ToolUse(Struct, forbid_unknown_fields=True):
    id: str
    name: str
    input: Raw


class _Usage(Struct, forbid_unknown_fields=True, rename="camel"):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Complete(Struct, forbid_unknown_fields=True):
    reason: str = "end"
    usage: _Usage | None = None


class _Error(Struct, forbid_unknown_fields=True):
    code: str
    message: str
    retryable: bool = False
    status: int | None = None


_decode = msgspec.json.Decoder(_Line).decode
_decode_token = msgspec.json.Decoder(_Token).decode
_decode_tool_use = msgspec.json.Decoder(_ToolUse).decode
_decode_complete = msgspec.json.Decoder(_Complete).decode
_decode_error = msgspec.json.Decoder(_Error).decode
_decode_string = msgspec.json.Decoder(str).decode


class Lines:
    """Divides a body into lines, however it comes. At most one unfinished line is held."""

    def __init__(self, max_event_bytes: int) -> None:
        self._most = max_event_bytes + LINE_FRAMING
        self._begun = bytearray()

    @property
    def held(self) -> int:
        """Bytes of a line that has begun."""
        return len(self._begun)

    def receive(self, piece: bytes) -> Iterator[bytes]:
        """The lines that ``piece`` completes. Raises ContentTooLarge at one that is too long, and
        as soon as one is; what comes after that is not to be asked for."""
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            self._check(end - start)
            line = piece[start:end]
            if self._begun:
                line = bytes(self._begun) + line
                self._begun.clear()
            start = end + 1
            if line and not line.isspace():
                yield line
        self._check(len(piece) - start)
        self._begun += piece[start:]

    def end(self) -> Iterator[bytes]:
        """The last line, where the body ends without a line break."""
        if self._begun and not self._begun.isspace():
            yield bytes(self._begun)
        self._begun.clear()

    def _check(self, more: int) -> None:
        if len(self._begun) + more > self._most:
            raise ContentTooLarge(f"A line has at most {self._most} bytes (max_event_bytes).")


def read_line(line: bytes, channel: str, mark: Mark, max_event_bytes: int) -> Taken:
    """What a line says, as the event of ``channel`` that has ``mark`` before it.

    Raises BadRequest and ContentTooLarge.
    """
    try:
        taken = _read(_decode(line), channel)
    except msgspec.ValidationError as error:
        raise BadRequest(f"This is no event of a token stream: {_sentence(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"This is no JSON in UTF-8: {_sentence(error)}") from None
    except RecursionError:
        raise BadRequest("The JSON is nested too deeply.") from None
    event = taken.event
    size = data_bytes(event.data)
    if size > max_event_bytes:
        raise ContentTooLarge(
            f"The event is {size} bytes as it would be sent; an event has at most"
            f" {max_event_bytes} (max_event_bytes)."
        )
    after = Mark(mark.lines + 1, mark.bytes + kept_bytes(event.data))
    return taken._replace(event=msgspec.structs.replace(event, key=after.text()), mark=after)


def _read(line: _Line, channel: str) -> Taken:
    if line.text is not UNSET:
        if line.event is not UNSET or line.data is not UNSET:
            raise BadRequest("A line has text alone, or event and data.")
        return Taken(render(Token(line.text), channel), is_token=True)
    if line.event is UNSET:
        raise BadRequest('A line is {"text": ...}, or {"event": ..., "data": ...}.')
    data = None if line.data is UNSET else bytes(line.data)
    kind = line.event
    if kind == "complete":
        said = _decode_complete(data) if data is not None else _Complete()
        _check_label("reason", said.reason)
        used = said.usage
        usage = None if used is None else Usage(used.input_tokens, used.output_tokens)
        complete = Complete(said.reason, usage)
        return Taken(render(complete, channel, end=True), complete)
    if data is None:
        raise BadRequest("An event has data; this one has none.")
    if kind == "token":
        return Taken(render(Token(_decode_token(data).text), channel), is_token=True)
    if kind == "tool_use":
        tool = _decode_tool_use(data)
        return Taken(render(ToolUse(tool.id, tool.name, tool.input), channel))
    if kind == "error":
        failed = _decode_error(data)
        _check_label("code", failed.code)
        error = Error(failed.code, failed.message, failed.retryable, failed.status)
        return Taken(render(error, channel, end=True), error)
    return Taken(Event((channel,), _text(data), _own_type(kind)))


def _own_type(kind: str) -> str:
    taken = control.TYPES | NOT_PUSHED
    if kind in taken:
        raise BadRequest(
            f"The event type {kind} is the gateway's own, as are"
            f" {', '.join(sorted(taken - {kind}))}; take another."
        )
    return _check_label("event", kind)


def _check_label(name: str, value: str) -> str:
    if not 0 < len(value) <= MAX_LABEL:
        raise BadRequest(f"{name} has 1 to {MAX_LABEL} characters, this one {len(value)}.")
    if "\n" in value or "\r" in value or "\0" in value:
        raise BadRequest(f"{name} must not contain a line break or a NUL character.")
    return value


def _text(data: bytes) -> str:
    """A JSON string as it is, anything else as the JSON that was sent."""
    return _decode_string(data) if data.startswith(b'"') else data.decode()


def at_line(error: GatewayError, number: int) -> GatewayError:
    """The error of a line by its number, which is the one that is expected next as well."""
    error.extra.update(line=number, next=number)
    error.detail = f"Line {number}: {error.detail}"
    return error


def mark_of(frames: Iterable[Frame]) -> Mark:
    """The last mark in some events of a stream's channel."""
    return max(map(_mark, frames), default=Mark())


def _mark(frame: Frame) -> Mark:
    key = frame.key or ""
    lines, _, size = key.removeprefix(MARKED).partition("-")
    if not (
        key.startswith(MARKED)
        and lines.isascii()
        and lines.isdigit()
        and size.isascii()
        and size.isdigit()
    ):
        return Mark()
    return Mark(int(lines), int(size))


def _sentence(error: Exception) -> str:
    said = str(error).rstrip(".").encode("unicode_escape").decode()
    return f"{said[:MAX_LABEL]}." if len(said) <= MAX_LABEL else f"{said[:MAX_LABEL]}..."
