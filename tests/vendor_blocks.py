"""The vendors' answers, to the byte, as the fake upstream sends them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

CREATED = 1_767_225_600


def _data(value: object) -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()


def _typed(value: dict[str, Any]) -> bytes:
    return f"event: {value['type']}\n".encode() + _data(value)


class Vendor:
    """Any upstream of events; also the base of the others."""

    content_type = "text/event-stream"
    streams_always = True

    def stream(self, asked: dict[str, Any], words: Sequence[str]) -> Iterator[bytes]:
        for word in words:
            yield _data({"text": word})

    def whole(self, asked: dict[str, Any], text: str) -> bytes:
        return json.dumps({"text": text}).encode()

    def error_event(self) -> bytes:
        return b"event: error\n" + _data({"message": "SECRET-ANSWER the upstream is in trouble"})

    def refusal(self, status: int) -> bytes:
        told = {"error": {"message": f"SECRET-ANSWER {status}", "type": "fake", "code": None}}
        return json.dumps(told).encode()


class Chat(Vendor):
    content_type = "text/event-stream; charset=utf-8"
    streams_always = False

    def _chunk(self, asked: dict[str, Any], choices: list[object], usage: object) -> bytes:
        chunk = {
            "id": "chatcmpl-fake",
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": asked.get("model"),
            "service_tier": "default",
            "system_fingerprint": "fp_fake",
            "choices": choices,
        }
        if (asked.get("stream_options") or {}).get("include_usage"):
            chunk["usage"] = usage
        return _data(chunk)

    def _delta(self, asked: dict[str, Any], delta: object, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._chunk(asked, [choice], None)

    def stream(self, asked: dict[str, Any], words: Sequence[str]) -> Iterator[bytes]:
        yield self._delta(asked, {"role": "assistant", "content": "", "refusal": None})
        for word in words:
            yield self._delta(asked, {"content": word})
        yield self._delta(asked, {}, "stop")
        if (asked.get("stream_options") or {}).get("include_usage"):
            yield self._chunk(asked, [], _openai_usage(len(words)))
        yield b"data: [DONE]\n\n"

    def whole(self, asked: dict[str, Any], text: str) -> bytes:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "annotations": [],
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        told = {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": CREATED,
            "model": asked.get("model"),
            "choices": [choice],
            "usage": _openai_usage(len(text.split())),
        }
        return json.dumps(told).encode()

    def error_event(self) -> bytes:
        return _data({"error": {"message": "SECRET-ANSWER", "type": "server_error", "code": None}})


def _openai_usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}


class Responses(Vendor):
    content_type = "text/event-stream; charset=utf-8"
    streams_always = False

    def _response(
        self, asked: dict[str, Any], status: str, output: list[object], usage: object
    ) -> dict[str, Any]:
        return {
            "id": "resp_fake",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": asked.get("model"),
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage,
        }

    def _message(self, status: str, *texts: str) -> dict[str, Any]:
        content = [self._part(text) for text in texts]
        message = {"id": "msg_fake", "type": "message", "status": status, "role": "assistant"}
        return {**message, "content": content}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}

    def stream(self, asked: dict[str, Any], words: Sequence[str]) -> Iterator[bytes]:
        text = "".join(words)
        usage = {
            "input_tokens": 9,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": len(words),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 9 + len(words),
        }
        at = {"item_id": "msg_fake", "output_index": 0, "content_index": 0}
        events: list[dict[str, Any]] = [
            {
                "type": "response.created",
                "response": self._response(asked, "in_progress", [], None),
            },
            {
                "type": "response.in_progress",
                "response": self._response(asked, "in_progress", [], None),
            },
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": self._message("in_progress"),
            },
            {"type": "response.content_part.added", **at, "part": self._part("")},
            *(
                {"type": "response.output_text.delta", **at, "delta": word, "logprobs": []}
                for word in words
            ),
            {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **at, "part": self._part(text)},
            {
                "type": "response.output_item.done",
                "output_index": 0,
                "item": self._message("completed", text),
            },
            {
                "type": "response.completed",
                "response": self._response(
                    asked, "completed", [self._message("completed", text)], usage
                ),
            },
        ]
        for number, event in enumerate(events):
            yield _typed({"type": event["type"], "sequence_number": number, **event})

    def whole(self, asked: dict[str, Any], text: str) -> bytes:
        usage = {"input_tokens": 9, "output_tokens": 1, "total_tokens": 10}
        message = self._message("completed", text)
        return json.dumps(self._response(asked, "completed", [message], usage)).encode()

    def error_event(self) -> bytes:
        told = {"type": "error", "sequence_number": 9, "code": "server_error", "param": None}
        return _typed(told | {"message": "SECRET-ANSWER"})


class Messages(Vendor):
    content_type = "text/event-stream; charset=utf-8"
    streams_always = False

    def _message(self, asked: dict[str, Any], content: list[object]) -> dict[str, Any]:
        return {
            "id": "msg_fake",
            "type": "message",
            "role": "assistant",
            "model": asked.get("model"),
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 9, "output_tokens": 1},
        }

    def stream(self, asked: dict[str, Any], words: Sequence[str]) -> Iterator[bytes]:
        yield _typed({"type": "message_start", "message": self._message(asked, [])})
        block = {"type": "text", "text": ""}
        yield _typed({"type": "content_block_start", "index": 0, "content_block": block})
        yield _typed({"type": "ping"})
        for word in words:
            delta = {"type": "text_delta", "text": word}
            yield _typed({"type": "content_block_delta", "index": 0, "delta": delta})
        yield _typed({"type": "content_block_stop", "index": 0})
        ended = {"stop_reason": "end_turn", "stop_sequence": None}
        usage = {"output_tokens": len(words)}
        yield _typed({"type": "message_delta", "delta": ended, "usage": usage})
        yield _typed({"type": "message_stop"})

    def whole(self, asked: dict[str, Any], text: str) -> bytes:
        message = self._message(asked, [{"type": "text", "text": text}])
        return json.dumps(message | {"stop_reason": "end_turn"}).encode()

    def error_event(self) -> bytes:
        told = {"type": "overloaded_error", "message": "SECRET-ANSWER"}
        return _typed({"type": "error", "error": told})

    def refusal(self, status: int) -> bytes:
        told = {"type": "invalid_request_error", "message": f"SECRET-ANSWER {status}"}
        return json.dumps({"type": "error", "error": told, "request_id": "req_fake"}).encode()


def of(target: str) -> Vendor:
    """Whose format a path stands for."""
    path = target.partition("?")[0]
    if path.endswith("/chat/completions"):
        return Chat()
    if path.endswith("/responses"):
        return Responses()
    return Messages() if path.endswith("/messages") else Vendor()
