"""Anthropic's messages: a message of blocks, each begun, filled and ended by events of their own.

https://docs.anthropic.com/en/docs/build-with-claude/streaming. Text and calls of tools are in the
normal view; what the model thinks, and tools that the vendor runs itself, are in the raw view only.
"""

from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from gateway.relay.events import Complete, Failure, Normal, Token, ToolUse, Usage
from gateway.relay.formats.normalizer import ANYTHING, Tools, decode, failure, reason_of
from gateway.sse import ServerSentEvent

REASONS = {
    "end_turn": "end",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "stop_sequence": "stop_sequence",
    "tool_use": "tool_use",
    "refusal": "content_filter",
}


class _Typed(Struct, gc=False):
    type: str = ""


class _Usage(Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Message(Struct, gc=False):
    usage: _Usage | None = None


class _MessageStart(Struct, gc=False):
    message: _Message


class _Block(Struct, gc=False):
    type: str = ""
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, msgspec.Raw] | None = None


class _BlockStart(Struct, gc=False):
    index: int
    content_block: msgspec.Raw


class _Delta(Struct, gc=False):
    type: str = ""
    text: str = ""
    partial_json: str = ""


class _BlockDelta(Struct, gc=False):
    index: int
    delta: _Delta


class _BlockStop(Struct, gc=False):
    index: int


class _Stop(Struct, gc=False):
    stop_reason: str | None = None


class _MessageDelta(Struct, gc=False):
    delta: _Stop
    usage: _Usage | None = None


_TYPED = msgspec.json.Decoder(_Typed)
_MESSAGE_START = msgspec.json.Decoder(_MessageStart)
_BLOCK_START = msgspec.json.Decoder(_BlockStart)
_BLOCK = msgspec.json.Decoder(_Block)
_BLOCK_DELTA = msgspec.json.Decoder(_BlockDelta)
_BLOCK_STOP = msgspec.json.Decoder(_BlockStop)
_MESSAGE_DELTA = msgspec.json.Decoder(_MessageDelta)


class Anthropic:
    def __init__(self) -> None:
        self.is_done = False
        self._tools = Tools()
        self._reason = "end_turn"
        self._input: int | None = None
        self._output: int | None = None

    def feed(self, event: ServerSentEvent) -> Sequence[Normal]:
        if self.is_done:
            return ()
        kind = event.event
        if kind == "message":  # some who speak the format write no types but those in the data
            kind = decode(_TYPED, event.data).type
        take = _TAKES.get(kind)
        return take(self, event.data) if take is not None else ()

    def _message_start(self, data: str) -> Sequence[Normal]:
        self._count(decode(_MESSAGE_START, data).message.usage)
        return ()

    def _block_start(self, data: str) -> Sequence[Normal]:
        start = decode(_BLOCK_START, data)
        kind = decode(_TYPED, start.content_block).type
        if kind not in ("text", "tool_use"):
            return ()
        block = decode(_BLOCK, start.content_block)
        if kind == "text":
            return (Token(block.text),) if block.text else ()
        told = [self._tools.close(start.index)] if start.index in self._tools else []
        self._tools.open(start.index, block.id, block.name)
        if block.input:  # all of it, and no fragments follow
            self._tools.extend(start.index, msgspec.json.encode(block.input).decode())
        return told

    def _block_delta(self, data: str) -> Sequence[Normal]:
        piece = decode(_BLOCK_DELTA, data)
        delta = piece.delta
        if delta.type == "text_delta":
            return (Token(delta.text),) if delta.text else ()
        if delta.type == "input_json_delta" and piece.index in self._tools:
            self._tools.extend(piece.index, delta.partial_json)
        return ()

    def _block_stop(self, data: str) -> Sequence[ToolUse]:
        index = decode(_BLOCK_STOP, data).index
        return (self._tools.close(index),) if index in self._tools else ()

    def _message_delta(self, data: str) -> Sequence[Normal]:
        change = decode(_MESSAGE_DELTA, data)
        self._reason = change.delta.stop_reason or self._reason
        self._count(change.usage)
        return ()

    def _message_stop(self, data: str) -> Sequence[ToolUse]:
        self.is_done = True
        return self._tools.close_all()

    def _error(self, data: str) -> Sequence[Normal]:
        raise failure(decode(ANYTHING, data))

    def _count(self, usage: _Usage | None) -> None:
        """The counts of each event are those of the whole message so far."""
        if usage is not None:
            self._input = self._input if usage.input_tokens is None else usage.input_tokens
            self._output = self._output if usage.output_tokens is None else usage.output_tokens

    def finish(self) -> Complete:
        if not self.is_done:
            raise Failure("interrupted")
        known = self._input is not None or self._output is not None
        usage = Usage(self._input, self._output) if known else None
        return Complete(reason_of(self._reason, REASONS), usage)


_TAKES: dict[str, Callable[[Anthropic, str], Sequence[Normal]]] = {
    "message_start": Anthropic._message_start,
    "content_block_start": Anthropic._block_start,
    "content_block_delta": Anthropic._block_delta,
    "content_block_stop": Anthropic._block_stop,
    "message_delta": Anthropic._message_delta,
    "message_stop": Anthropic._message_stop,
    "error": Anthropic._error,
}
"""By type; all others are ignored, unread."""
