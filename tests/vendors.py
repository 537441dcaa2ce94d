"""What the services of two vendors write, to the byte: streams, bodies, errors.

Made from their public documentation. A stream is a list of blocks, in order, each with its blank
line, so that a fake upstream can stop, stall or lie between any two of them. What is the same in
all answers (ids, times, fingerprints) is a constant here, so that two answers to the same request
are the same bytes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

CREATED = 1741569952
CHAT_ID = "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT"
COMPLETION_ID = "cmpl-uqkvlQyYK7bGYrRHQ0eXlWi7"
RESPONSE_ID = "resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b452d3795b"
ITEM_ID = "msg_67ccd2bf17f0819081ff3bb2cf6508e60bb6a6b452d3795b"
MESSAGE_ID = "msg_01XFDUDYJgAACzvnptvVoYEL"
REQUEST_ID = "req_011CSHoEeqs5C35K2UUqR7Fy"
FINGERPRINT = "fp_50cad350e4"

OPENAI_MODEL = "gpt-4.1-2025-04-14"
ANTHROPIC_MODEL = "claude-sonnet-4-5-20250929"

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
DONE = b"data: [DONE]\n\n"

Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """Of a tool; ``arguments`` is JSON, as the fragments in which it is streamed."""

    name: str = "get_weather"
    arguments: tuple[str, ...] = ('{"location":', ' "Paris', ', France"}')
    id: str = "call_DdmO9pD3xa9XTPNJ32zg2hcA"

    @property
    def whole(self) -> str:
        return "".join(self.arguments)


@dataclass(frozen=True)
class Answer:
    """What a model says: text in the pieces in which it is streamed, then calls of tools.

    ``stop`` is one of those of the normal view: ``end``, ``length``, ``stop_sequence``,
    ``content_filter``; an answer with calls that would stop with ``end`` stops with ``tool_use``.
    """

    pieces: Sequence[str] = ("Hello", " world", "!")
    calls: Sequence[Call] = ()
    input_tokens: int = 19
    output_tokens: int = 10
    stop: str = "end"
    model: str | None = None
    """As asked for; None is the vendor's usual."""
    refusal: bool = False
    """The text is a refusal, which OpenAI writes elsewhere."""
    thinking: Sequence[str] = field(default=())
    """Before the text; written for Anthropic only."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def reason(self) -> str:
        return "tool_use" if self.calls and self.stop == "end" else self.stop


def compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# OpenAI: chat completions


_CHAT_STOPS = {
    "end": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "tool_use": "tool_calls",
    "content_filter": "content_filter",
}


def chat_usage(answer: Answer) -> Json:
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def chat_chunk(answer: Answer, choices: list[Json], **more: object) -> bytes:
    """One block: `data:` alone, no type."""
    chunk = {
        "id": CHAT_ID,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": answer.model or OPENAI_MODEL,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        **more,
    }
    return b"data: %b\n\n" % compact(chunk)


def chat_choice(delta: Json, finish_reason: str | None = None, *, index: int = 0) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def chat_blocks(answer: Answer, *, include_usage: bool = True) -> list[bytes]:
    """Of `POST /chat/completions` with `"stream": true`."""
    usage: Json = {"usage": None} if include_usage else {}
    content = "refusal" if answer.refusal else "content"
    opening: Json = {"role": "assistant", "content": None if answer.calls else "", "refusal": None}
    deltas = [opening, *({content: piece} for piece in answer.pieces)]
    for index, call in enumerate(answer.calls):
        function = {"name": call.name, "arguments": ""}
        deltas.append(
            {
                "tool_calls": [
                    {"index": index, "id": call.id, "type": "function", "function": function}
                ]
            }
        )
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
            for fragment in call.arguments
        ]
    blocks = [chat_chunk(answer, [chat_choice(delta)], **usage) for delta in deltas]
    stop = chat_choice({}, _CHAT_STOPS[answer.reason])
    blocks.append(chat_chunk(answer, [stop], **usage))
    if include_usage:
        blocks.append(chat_chunk(answer, [], usage=chat_usage(answer)))
    return [*blocks, DONE]


def chat_body(answer: Answer) -> bytes:
    """Of the same without `stream`."""
    message: Json = {
        "role": "assistant",
        "content": None if answer.refusal or (answer.calls and not answer.text) else answer.text,
        "refusal": answer.text if answer.refusal else None,
        "annotations": [],
    }
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.whole},
            }
            for call in answer.calls
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _CHAT_STOPS[answer.reason],
    }
    body = {
        "id": CHAT_ID,
        "object": "chat.completion",
        "created": CREATED,
        "model": answer.model or OPENAI_MODEL,
        "choices": [choice],
        "usage": chat_usage(answer),
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }
    return json.dumps(body, ensure_ascii=False, indent=2).encode() + b"\n"


# OpenAI: the older completions


def completion_blocks(answer: Answer, *, include_usage: bool = True) -> list[bytes]:
    """Of `POST /completions` with `"stream": true`; no calls of tools."""

    def chunk(choices: list[Json], usage: Json | None) -> bytes:
        body: Json = {
            "id": COMPLETION_ID,
            "object": "text_completion",
            "created": CREATED,
            "choices": choices,
            "model": answer.model or "gpt-3.5-turbo-instruct",
        }
        return b"data: %b\n\n" % compact(body | ({"usage": usage} if include_usage else {}))

    def choice(text: str, stop: str | None) -> Json:
        return {"text": text, "index": 0, "logprobs": None, "finish_reason": stop}

    blocks = [chunk([choice(piece, None)], None) for piece in answer.pieces]
    blocks.append(chunk([choice("", _CHAT_STOPS[answer.reason])], None))
    if include_usage:
        blocks.append(chunk([], chat_usage(answer)))
    return [*blocks, DONE]


# OpenAI: responses


def _response(answer: Answer, status: str, output: list[Json], **more: object) -> Json:
    usage = {
        "input_tokens": answer.input_tokens,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }
    return {
        "id": RESPONSE_ID,
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "model": answer.model or OPENAI_MODEL,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "auto" if status == "in_progress" else "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage if status in ("completed", "incomplete") else None,
        "user": None,
        "metadata": {},
        **more,
    }


def _part(answer: Answer, text: str) -> Json:
    if answer.refusal:
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _message(answer: Answer, status: str, content: list[Json]) -> Json:
    return {
        "id": ITEM_ID,
        "type": "message",
        "status": status,
        "content": content,
        "role": "assistant",
    }


def _function_call(call: Call, status: str, arguments: str) -> Json:
    return {
        "id": f"fc_{call.id}",
        "type": "function_call",
        "status": status,
        "arguments": arguments,
        "call_id": call.id,
        "name": call.name,
    }


def _output(answer: Answer) -> list[Json]:
    messages = [_message(answer, "completed", [_part(answer, answer.text)])]
    calls = [_function_call(call, "completed", call.whole) for call in answer.calls]
    return (messages if answer.pieces else []) + calls


def _response_end(answer: Answer) -> Json:
    details = {"length": "max_output_tokens", "content_filter": "content_filter"}
    if answer.stop in details:
        more = {"incomplete_details": {"reason": details[answer.stop]}}
        return _response(answer, "incomplete", _output(answer), **more)
    return _response(answer, "completed", _output(answer))


def response_events(answer: Answer) -> Iterator[Json]:
    """Those of a stream, without their sequence numbers."""
    for kind in ("response.created", "response.in_progress"):
        yield {"type": kind, "response": _response(answer, "in_progress", [])}
    if answer.pieces:
        yield from _message_events(answer)
    for index, call in enumerate(answer.calls, start=1 if answer.pieces else 0):
        at = {"output_index": index}
        item = {"item_id": f"fc_{call.id}"}
        added = _function_call(call, "in_progress", "")
        yield {"type": "response.output_item.added", **at, "item": added}
        for fragment in call.arguments:
            kind = "response.function_call_arguments.delta"
            yield {"type": kind, **item, **at, "delta": fragment}
        kind = "response.function_call_arguments.done"
        yield {"type": kind, **item, **at, "arguments": call.whole, "name": call.name}
        done = _function_call(call, "completed", call.whole)
        yield {"type": "response.output_item.done", **at, "item": done}
    end = _response_end(answer)
    yield {"type": f"response.{end['status']}", "response": end}


def _message_events(answer: Answer) -> Iterator[Json]:
    kind = "response.refusal" if answer.refusal else "response.output_text"
    item: Json = {"output_index": 0, "item": _message(answer, "in_progress", [])}
    at = {"item_id": ITEM_ID, "output_index": 0, "content_index": 0}
    logprobs: Json = {} if answer.refusal else {"logprobs": []}
    yield {"type": "response.output_item.added", **item}
    yield {"type": "response.content_part.added", **at, "part": _part(answer, "")}
    for piece in answer.pieces:
        yield {"type": f"{kind}.delta", **at, "delta": piece, **logprobs}
    whole = {"refusal" if answer.refusal else "text": answer.text}
    yield {"type": f"{kind}.done", **at, **whole, **logprobs}
    yield {"type": "response.content_part.done", **at, "part": _part(answer, answer.text)}
    item["item"] = _message(answer, "completed", [_part(answer, answer.text)])
    yield {"type": "response.output_item.done", **item}


def response_block(event: Json, sequence_number: int) -> bytes:
    kind = event["type"]
    numbered = {"type": kind, "sequence_number": sequence_number} | event
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), compact(numbered))


def response_blocks(answer: Answer) -> list[bytes]:
    """Of `POST /responses` with `"stream": true`. There is no `[DONE]`."""
    return [response_block(event, n) for n, event in enumerate(response_events(answer))]


def response_body(answer: Answer) -> bytes:
    return json.dumps(_response_end(answer), ensure_ascii=False, indent=2).encode()


# Anthropic: messages


_ANTHROPIC_STOPS = {
    "end": "end_turn",
    "stop_sequence": "stop_sequence",
    "length": "max_tokens",
    "tool_use": "tool_use",
    "content_filter": "refusal",
}


def _anthropic_message(answer: Answer, content: list[Json], **more: object) -> Json:
    usage = {
        "input_tokens": answer.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 1,
        "service_tier": "standard",
    }
    return {
        "model": answer.model or ANTHROPIC_MODEL,
        "id": MESSAGE_ID,
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
        **more,
    }


def _stop(answer: Answer) -> Json:
    return {
        "stop_reason": _ANTHROPIC_STOPS[answer.reason],
        "stop_sequence": "END" if answer.reason == "stop_sequence" else None,
    }


def anthropic_block(event: Json, padding: int = 0) -> bytes:
    """The service pads its events with spaces before the last brace."""
    data = compact(event)[:-1] + b" " * padding + b"}"
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data)


def anthropic_events(answer: Answer) -> Iterator[Json]:
    """Those of a stream, without the pings."""
    yield {"type": "message_start", "message": _anthropic_message(answer, [])}
    index = 0

    def block(start: Json, deltas: list[Json]) -> Iterator[Json]:
        nonlocal index
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
        index += 1

    if answer.thinking:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in answer.thinking]
        signature = {"type": "signature_delta", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}
        yield from block(
            {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signature]
        )
    if answer.pieces:
        deltas = [{"type": "text_delta", "text": piece} for piece in answer.pieces]
        yield from block({"type": "text", "text": ""}, deltas)
    for call in answer.calls:
        start = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        fragments = ("", *call.arguments)
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in fragments]
        yield from block(start, deltas)
    usage = {
        "input_tokens": answer.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": answer.output_tokens,
    }
    yield {"type": "message_delta", "delta": _stop(answer), "usage": usage}
    yield {"type": "message_stop"}


def anthropic_blocks(answer: Answer) -> list[bytes]:
    """Of `POST /messages` with `"stream": true`: a ping comes after the first block has begun."""
    blocks = [
        anthropic_block(event, padding=n % 7) for n, event in enumerate(anthropic_events(answer))
    ]
    return [*blocks[:2], PING, *blocks[2:]]


def anthropic_body(answer: Answer) -> bytes:
    thinking = "".join(answer.thinking)
    content: list[Json] = (
        [{"type": "thinking", "thinking": thinking, "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}]
        if thinking
        else []
    )
    if answer.pieces:
        content.append({"type": "text", "text": answer.text})
    for call in answer.calls:
        used = {"id": call.id, "name": call.name, "input": json.loads(call.whole)}
        content.append({"type": "tool_use", **used})
    message = _anthropic_message(answer, content, **_stop(answer))
    message["usage"]["output_tokens"] = answer.output_tokens
    return compact(message)


# Models


def openai_models() -> bytes:
    """Of `GET /models`."""
    names = (OPENAI_MODEL, "gpt-3.5-turbo-instruct")
    data = [
        {"id": name, "object": "model", "created": CREATED, "owned_by": "system"} for name in names
    ]
    return json.dumps({"object": "list", "data": data}, indent=2).encode() + b"\n"


def anthropic_models() -> bytes:
    model = {
        "type": "model",
        "id": ANTHROPIC_MODEL,
        "display_name": "Claude Sonnet 4.5",
        "created_at": "2025-09-29T00:00:00Z",
    }
    page = {"data": [model], "has_more": False, "first_id": model["id"], "last_id": model["id"]}
    return compact(page)


# Errors


_OPENAI_ERRORS: dict[int, tuple[str, str, str | None]] = {
    400: ("Invalid type for 'messages'.", "invalid_request_error", "invalid_type"),
    401: (
        "Incorrect API key provided: sk-12**34. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        "invalid_request_error",
        "invalid_api_key",
    ),
    403: ("You have insufficient permissions for this operation.", "invalid_request_error", None),
    404: (
        "The model `gpt-9` does not exist or you do not have access to it.",
        "invalid_request_error",
        "model_not_found",
    ),
    429: (
        "Rate limit reached for gpt-4.1 in organization org-abc on requests per min (RPM): "
        "Limit 3, Used 3, Requested 1. Please try again in 20s.",
        "requests",
        "rate_limit_exceeded",
    ),
    500: ("The server had an error while processing your request.", "server_error", None),
    503: ("The server is overloaded or not ready yet.", "server_error", None),
}
"""Message, type and code by status."""

_ANTHROPIC_ERRORS = {
    400: ("invalid_request_error", "messages: Field required"),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the resource."),
    404: ("not_found_error", "model: claude-9"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    500: ("api_error", "Internal server error"),
    529: ("overloaded_error", "Overloaded"),
}

OPENAI_STATUSES = tuple(_OPENAI_ERRORS)
ANTHROPIC_STATUSES = tuple(_ANTHROPIC_ERRORS)


def openai_error(status: int) -> bytes:
    """The body of an answer with ``status``, one of OPENAI_STATUSES."""
    message, kind, code = _OPENAI_ERRORS[status]
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json.dumps({"error": error}, indent=4).encode() + b"\n"


def anthropic_error(status: int) -> bytes:
    """The body of an answer with ``status``, one of ANTHROPIC_STATUSES."""
    kind, message = _ANTHROPIC_ERRORS[status]
    error = {"type": kind, "message": message}
    return compact({"type": "error", "error": error, "request_id": REQUEST_ID})


def chat_error_block(status: int) -> bytes:
    """The error that would have been an answer with ``status``, in the middle of a stream."""
    message, kind, code = _OPENAI_ERRORS[status]
    error = {"message": message, "type": kind, "param": None, "code": code}
    return b"data: %b\n\n" % compact({"error": error})


def response_error_block(status: int, sequence_number: int) -> bytes:
    message, kind, code = _OPENAI_ERRORS[status]
    error = {"type": "error", "code": code or kind, "message": message, "param": None}
    return response_block(error, sequence_number)


def response_failed_block(answer: Answer, code: str, sequence_number: int) -> bytes:
    """``code`` as `server_error` or `rate_limit_exceeded`."""
    error = {"code": code, "message": "The model failed to generate a response."}
    failed = _response(answer, "failed", [], error=error)
    return response_block({"type": "response.failed", "response": failed}, sequence_number)


def anthropic_error_block(status: int) -> bytes:
    kind, message = _ANTHROPIC_ERRORS[status]
    error = {"type": kind, "message": message}
    return anthropic_block({"type": "error", "error": error, "request_id": REQUEST_ID})
