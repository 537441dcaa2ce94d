"""OpenAI's older completions: chunks with text, and ``[DONE]``.

https://platform.openai.com/docs/api-reference/completions. The first choice only, as in chat.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from gateway.relay.events import Complete, Failure, Normal, Token, Usage
from gateway.relay.formats.normalizer import ANYTHING, decode, failure, reason_of
from gateway.relay.formats.openai_chat import DONE, REASONS, ChatUsage
from gateway.sse import ServerSentEvent


class _Choice(Struct, gc=False):
    index: int = 0
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: ChatUsage | None = None
    error: object = None
    kind: object = msgspec.field(default=None, name="object")
    """Where an error stands in no member of its own, it says so."""


_CHUNK = msgspec.json.Decoder(_Chunk)


class OpenAiCompletions:
    def __init__(self) -> None:
        self.is_done = False
        self._reason = "stop"
        self._usage: Usage | None = None

    def feed(self, event: ServerSentEvent) -> Sequence[Normal]:
        if self.is_done:
            return ()
        if event.data.startswith(DONE):
            self.is_done = True
            return ()
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
                if choice.text:
                    told.append(Token(choice.text))
                self._reason = choice.finish_reason or self._reason
        return told

    def finish(self) -> Complete:
        if not self.is_done:
            raise Failure("interrupted")
        return Complete(reason_of(self._reason, REASONS), self._usage)
