"""OpenAI's responses: events with types, the last of which holds the whole response.

https://platform.openai.com/docs/api-reference/responses-streaming. Of a call of a tool the item
that ends it is read, which has all arguments; the fragments before are in the raw view only.
"""

from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from gateway.relay.events import Complete, Failure, Normal, Token, ToolUse, Usage
from gateway.relay.formats.normalizer import (
    ANYTHING,
    MAX_TOOL_BYTES,
    MAX_TOOLS,
    decode,
    failure,
    reason_of,
    tool_input,
)
from gateway.sse import ServerSentEvent

REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}
"""Why a response is incomplete."""


class _Typed(Struct, gc=False):
    type: str = ""


class _Delta(Struct, gc=False):
    delta: str


class _Item(Struct, gc=False):
    type: str = ""
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    input: msgspec.Raw = msgspec.Raw(b"")


class _ItemDone(Struct, gc=False):
    item: msgspec.Raw


class _Details(Struct, gc=False):
    reason: str | None = None


class _Usage(Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Response(Struct, gc=False):
    incomplete_details: _Details | None = None
    usage: _Usage | None = None
    error: object = None


class _Ended(Struct, gc=False):
    response: _Response


_TYPED = msgspec.json.Decoder(_Typed)
_DELTA = msgspec.json.Decoder(_Delta)
_ITEM_DONE = msgspec.json.Decoder(_ItemDone)
_FUNCTION_CALL = msgspec.json.Decoder(_Item)
_STRING = msgspec.json.Decoder(str)
_ENDED = msgspec.json.Decoder(_Ended)


class OpenAiResponses:
    def __init__(self) -> None:
        self.is_done = False
        self._tools = 0
        self._reason = "end"
        self._usage: Usage | None = None

    def feed(self, event: ServerSentEvent) -> Sequence[Normal]:
        if self.is_done:
            return ()
        kind = event.event
        if kind == "message":  # some who speak the format write no types but those in the data
            if event.data.startswith("[DONE]"):
                return ()
            kind = decode(_TYPED, event.data).type
        take = _TAKES.get(kind)
        return take(self, event.data) if take is not None else ()

    def _text(self, data: str) -> Sequence[Normal]:
        text = decode(_DELTA, data).delta
        return (Token(text),) if text else ()

    def _item_done(self, data: str) -> Sequence[Normal]:
        raw = decode(_ITEM_DONE, data).item
        kind = decode(_TYPED, raw).type
        if kind not in ("function_call", "custom_tool_call"):
            return ()
        item = decode(_FUNCTION_CALL, raw)
        self._tools += 1
        if self._tools > MAX_TOOLS or len(data) > MAX_TOOL_BYTES:
            raise Failure("too-large")
        arguments = tool_input(item.arguments)
        if kind == "custom_tool_call":  # its input is text of any kind
            arguments = msgspec.Raw(msgspec.json.encode(decode(_STRING, item.input)))
        return (ToolUse(item.call_id, item.name, arguments),)

    def _completed(self, data: str) -> Sequence[Normal]:
        self._end(data)
        self._reason = "tool_use" if self._tools else "end"
        return ()

    def _incomplete(self, data: str) -> Sequence[Normal]:
        details = self._end(data).incomplete_details
        self._reason = reason_of((details and details.reason) or "incomplete", REASONS)
        return ()

    def _failed(self, data: str) -> Sequence[Normal]:
        raise failure(self._end(data).error)

    def _error(self, data: str) -> Sequence[Normal]:
        raise failure(decode(ANYTHING, data))

    def _end(self, data: str) -> _Response:
        response = decode(_ENDED, data).response
        self.is_done = True
        if response.usage is not None:
            self._usage = Usage(response.usage.input_tokens, response.usage.output_tokens)
        return response

    def finish(self) -> Complete:
        if not self.is_done:
            raise Failure("interrupted")
        return Complete(self._reason, self._usage)


_TAKES: dict[str, Callable[[OpenAiResponses, str], Sequence[Normal]]] = {
    "response.output_text.delta": OpenAiResponses._text,
    "response.refusal.delta": OpenAiResponses._text,
    "response.output_item.done": OpenAiResponses._item_done,
    "response.completed": OpenAiResponses._completed,
    "response.incomplete": OpenAiResponses._incomplete,
    "response.failed": OpenAiResponses._failed,
    "error": OpenAiResponses._error,
}
"""By type; all others are ignored, unread."""
