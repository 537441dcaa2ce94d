"""Token streams: how one is begun, what is told of it, and the events of its normal view."""

from gateway.api.request import JSON
from gateway.api.streams import MAX_UNWATCHED_SECONDS
from gateway.config import Format
from gateway.openapi.schemas import (
    CHANNEL,
    COUNT,
    POSITION,
    PUBLISHABLE,
    USER,
    Schema,
    only,
    optional,
    record,
    shape_of,
)
from gateway.openapi.stream import block
from gateway.relay.events import FAILURES, Complete, Error, Normal, Start, Token, ToolUse, Usage

STATES = ["streaming", "complete", "stopped", "error"]

_ID: Schema = {"type": "string", "minLength": 1}
_TEXT: Schema = {"type": "string"}
_TIME: Schema = COUNT | {"description": "Milliseconds since 1970."}

_USAGE = shape_of(Usage)
_TOOL_USE = shape_of(ToolUse)
_ERROR = shape_of(Error)
_CODES: Schema = {"description": f"`code` is one of {', '.join(sorted(FAILURES))}."}

_SNAPSHOT: Schema = {
    "state": {"enum": STATES},
    "text": _TEXT,
    "toolUses": {"type": "array", "items": _TOOL_USE},
    "tokens": COUNT,
    "whole": {
        "type": "boolean",
        "description": "Whether the text is there from its beginning.",
    },
}

ASKED: Schema = {
    "type": "object",
    "properties": {
        "upstream": {
            "type": "string",
            "description": "The name of an `[[upstream]]`; without one an application pushes.",
        },
        "request": {
            "type": "object",
            "description": "What the upstream is asked, as its vendor has it. `stream` is added.",
        },
        "path": optional(_TEXT)
        | {"description": "Below the upstream's URL, where the request does not tell it."},
        "channel": optional(PUBLISHABLE)
        | {"description": "In the place of `stream:<id>`; it needs the policy `catch-up`."},
        "user": optional(USER) | {"description": "Who may view and stop it, too."},
        "idempotent": {
            "type": "boolean",
            "default": False,
            "description": "Another worker may make the call again, if nothing has come of it.",
        },
        "stopWhenUnwatched": optional(
            {"type": "number", "minimum": 0, "maximum": MAX_UNWATCHED_SECONDS}
        )
        | {"description": "Seconds without viewers after which it is stopped; 0: never."},
    },
    "additionalProperties": False,
    "dependentRequired": {"upstream": ["request"]},
    "if": {"required": ["upstream"]},
    "else": {
        "properties": {
            "request": False,
            "path": {"type": "null"},
            "idempotent": {"const": False},
        }
    },
    "examples": [
        {
            "upstream": "openai",
            "request": {"model": "gpt-5", "messages": [{"role": "user", "content": "Hello"}]},
            "stopWhenUnwatched": 60,
        },
        {
            "upstream": "anthropic",
            "request": {
                "model": "claude-sonnet-4-5",
                "max_tokens": 1000,
                "messages": [{"role": "user", "content": "Hello"}],
            },
            "channel": "chat.42",
            "user": "7",
        },
        {},
    ],
}

SCHEMAS: Schema = {
    "TokenStreamAsked": ASKED,
    "TokenStreamBegun": record({"id": _ID, "channel": CHANNEL, "url": _TEXT}),
    "TokenStreamStopped": record({"id": _ID, "state": {"enum": STATES}}),
    "TokenStream": record(
        {
            "id": _ID,
            "channel": CHANNEL,
            "url": _TEXT | {"format": "uri-reference"},
            "upstream": optional(_TEXT),
            "model": optional(_TEXT),
            "user": optional(_TEXT),
            "format": {"enum": [str(format) for format in Format]},
            **_SNAPSHOT,
            "reason": optional(_TEXT),
            "usage": optional(_USAGE),
            "error": optional(_ERROR) | _CODES,
            "startedAt": optional(_TIME),
            "firstTokenAt": optional(_TIME),
            "endedAt": optional(_TIME),
            "lastEventId": POSITION,
            "expiresAt": optional(_TIME),
        }
    ),
}


def _block(name: str, data: Schema) -> Schema:
    content: Schema = {"type": "string", "contentMediaType": JSON, "contentSchema": data}
    return block(name, only(name), content, "event", "data")


def _normal(shape: type[Normal]) -> Schema:
    return _block(shape.type, shape_of(shape))


EVENT: Schema = {
    "description": "One event of the normal view. After `complete` or `error` nothing comes; a "
    "`snapshot` stands for all before it.",
    "oneOf": [
        _block("snapshot", record(_SNAPSHOT)),
        _normal(Start),
        _normal(Token),
        _normal(ToolUse),
        _normal(Complete),
        _normal(Error) | _CODES,
    ],
}
