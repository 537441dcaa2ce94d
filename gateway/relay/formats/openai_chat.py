"""OpenAI's chat completions, and the older completions: chunks without a type, and ``[DONE]``.

https://platform.openai.com/docs/api-reference/chat-streaming, and .../completions, whose choices
have text in the place of a delta. The normal view is that of the first choice; others (``n`` above
1) are in the raw view only.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from gateway.relay.events import Complete, Failure, Normal, Token, Usage
from gateway.relay.formats.normalizer import ANYTHING, Tools, decode, failure, reason_of
from gateway.sse import ServerSentEvent

DONE = "[DONE]"

REASONS = {
    "stop": "end",
    "length": "length",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "content_filter",
}


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct, gc=False):
    index: int | None = None
    """Some who speak the format leave it out, and send calls whole."""
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def told(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens)


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: object = None
    kind: object = msgspec.field(default=None, name="object")
    """Where an error stands in no member of its own, it says so."""


_CHUNK = msgspec.json.Decoder(_Chunk)

_OPEN = 0
"""The key of the one call that is open."""


class OpenAiChat:
    def __init__(self) -> None:
        self.is_done = False
        self._tools = Tools()
        self._index: int | None = None  # of the call that is open
        self._id: str | None = None
        self._reason: str | None = None
        self._usage: Usage | None = None

    def feed(self, event: ServerSentEvent) -> Sequence[Normal]:
        if self.is_done:
            return ()
        if event.data.startswith(DONE):
            self.is_done = True
            return self._tools.close_all()
        if event.event == "error":
            raise failure(decode(ANYTHING, event.data))
        chunk = decode(_CHUNK, event.data)
        if chunk.error or chunk.kind == "error":
            raise failure(decode(ANYTHING, event.data))
        if chunk.usage is not None:
            self._usage = chunk.usage.told()
        told: list[Normal] = []
        for choice in chunk.choices or ():
            if choice.index == 0:
                self._take(choice, told)
        return told

    def _take(self, choice: _Choice, told: list[Normal]) -> None:
        delta = choice.delta
        if delta is not None:
            if delta.content:
                told.append(Token(delta.content))
            if delta.refusal:
                told.append(Token(delta.refusal))
            for call in delta.tool_calls or ():
                self._take_call(call, told)
        elif choice.text:
            told.append(Token(choice.text))
        if choice.finish_reason:  # some write an empty one until the last
            self._reason = choice.finish_reason
            told += self._tools.close_all()

    def _take_call(self, call: _ToolCall, told: list[Normal]) -> None:
        """One call is open at a time: it is complete when the next one begins, as the vendor's own
        SDK has it."""
        function = call.function or _Function()
        if self._begins(call, function):
            told += self._tools.close_all()
            self._index, self._id = call.index, call.id
            self._tools.open(_OPEN, call.id or "", function.name or "")
        if function.arguments:
            if _OPEN not in self._tools or self._is_other(call):
                raise Failure("malformed")  # of a call that has been told
            self._tools.extend(_OPEN, function.arguments)

    def _begins(self, call: _ToolCall, function: _Function) -> bool:
        """Whether it is the first fragment of a call. Some who speak the format say 0 for the index
        of every call; some repeat id and name in every fragment; some have no ids."""
        if _OPEN not in self._tools:
            return bool(call.id or function.name)
        if call.id and call.id != self._id:
            return True
        return bool(call.id or function.name) and self._is_other(call)

    def _is_other(self, call: _ToolCall) -> bool:
        return call.index is not None and call.index != self._index

    def finish(self) -> Complete:
        if not self.is_done:
            raise Failure("interrupted")
        reason = reason_of(self._reason or "stop", REASONS)
        if reason == "end" and self._tools.count:
            reason = "tool_use"  # a tool that the request itself names is answered with "stop"
        return Complete(reason, self._usage)
