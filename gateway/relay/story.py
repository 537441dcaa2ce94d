"""What has come of a token stream so far: a fold of the frames of its channel.

1. A frame is folded once, and frames in order: one at or before `Story.position` changes nothing.
2. Only the frame that ends the channel ends the story: an upstream whose events are passed through
   may have a ``complete`` or an ``error`` of its own.
3. No data raises: what is not as the normal view has it counts as an event, and says nothing.
4. It holds no more than the channel's history does.
"""

import sys
from typing import Any, TypeVar

import msgspec

from gateway.event import Frame
from gateway.position import ZERO
from gateway.relay.events import Error, Start, ToolUse, Usage

STOPPED = ("stopped", "unwatched")
"""Reasons of an end that somebody else than the producer made."""

T = TypeVar("T")


class _Text(msgspec.Struct, gc=False):
    text: str


class _End(msgspec.Struct, gc=False):
    reason: str | None = None
    usage: Usage | None = None


_TEXT = msgspec.json.Decoder(_Text)
_START = msgspec.json.Decoder(Start)
_TOOL_USE = msgspec.json.Decoder(ToolUse)
_COMPLETE = msgspec.json.Decoder(_End)
_ERROR = msgspec.json.Decoder(Error)


class Story:
    def __init__(self) -> None:
        self.state = "streaming"
        """Or ``complete``, ``stopped``, ``error``."""
        self.tool_uses: list[ToolUse] = []
        self.reason: str | None = None
        """Of `Complete`."""
        self.usage: Usage | None = None
        self.error: Error | None = None
        self.tokens = 0
        """Events of the type ``token``."""
        self.events = 0
        """All events after ``start``."""
        self.model: str | None = None
        self.upstream: str | None = None
        self.started_ms: int | None = None
        self.first_token_ms: int | None = None
        self.ended_ms: int | None = None
        self.position = ZERO
        """Of the last frame."""
        self.whole = False
        """Whether ``start`` is among the frames; otherwise the beginning of the text is gone."""
        self._text: list[str] = []
        self._used = 0

    @property
    def size(self) -> int:
        """Bytes that what it holds takes in memory."""
        return sys.getsizeof(self.text) + self._used

    @property
    def text(self) -> str:
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        return self._text[0] if self._text else ""

    def forget(self) -> None:
        """What comes next does not follow on what has come so far."""
        self.whole = False
        self._text.clear()
        self.tool_uses.clear()
        self._used = 0

    def add(self, frame: Frame) -> None:
        if frame.position <= self.position:
            return
        self.position = frame.position
        kind, data = _read(frame)
        if kind != b"start" or not self._start(data):
            self.events += 1
        if kind == b"token":
            self._token(data)
        elif kind == b"tool_use":
            used = _decode(_TOOL_USE, data)
            if used is not None:
                self.tool_uses.append(used)
                self._used += len(data)
        if frame.end:
            self._end(kind, data)

    def _start(self, data: bytes) -> bool:
        """Whether this is the start; an upstream whose events are passed through may have its
        own."""
        start = _decode(_START, data) if self.started_ms is None else None
        if start is None:
            return False
        self.forget()  # what an application has published before is not of it
        self.tokens = self.events = 0
        self.first_token_ms = None
        self.whole = True
        self.started_ms = self.position.ms
        self.model = start.model
        self.upstream = start.upstream
        return True

    def _token(self, data: bytes) -> None:
        self.tokens += 1
        if self.first_token_ms is None:
            self.first_token_ms = self.position.ms
        token = _decode(_TEXT, data)
        if token is not None:
            self._text.append(token.text)

    def _end(self, kind: bytes, data: bytes) -> None:
        self.ended_ms = self.position.ms
        if kind == b"error":
            self.state = "error"
            self.error = _decode(_ERROR, data)
            return
        self.state = "complete"
        end = _decode(_COMPLETE, data) if kind == b"complete" else None
        if end is not None:
            self.reason = end.reason
            self.usage = end.usage
            if end.reason in STOPPED:
                self.state = "stopped"


def _decode(decoder: "msgspec.json.Decoder[T]", data: bytes) -> T | None:
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def _read(frame: Frame) -> tuple[bytes, bytes]:
    """The type and the data of a frame, whose lines are as `gateway.sse.encode` writes them."""
    lines = frame.without_id().split(b"\n")
    if len(lines) == 4 and lines[0][:7] == b"event: " and lines[1][:6] == b"data: ":
        return lines[0][7:], lines[1][6:]  # as nearly all are; measured: half the time
    kind = b"message"
    data: list[bytes] = []
    for line in lines:
        if line.startswith(b"data: "):
            data.append(line[6:])
        elif line.startswith(b"event: "):
            kind = line[7:]
    return kind, b"\n".join(data)


def story_json(story: Story) -> dict[str, Any]:
    """What has become of it, as ``GET /streams/<id>`` shows it; to be encoded by msgspec."""
    return {
        **snapshot_json(story),
        "reason": story.reason,
        "usage": story.usage,
        "error": story.error,
        "startedAt": story.started_ms,
        "firstTokenAt": story.first_token_ms,
        "endedAt": story.ended_ms,
        "lastEventId": str(story.position),
    }


def snapshot_json(story: Story) -> dict[str, Any]:
    """The data of a ``snapshot``; to be encoded by msgspec."""
    return {
        "state": story.state,
        "text": story.text,
        "toolUses": story.tool_uses,
        "tokens": story.tokens,
        "whole": story.whole,
    }
