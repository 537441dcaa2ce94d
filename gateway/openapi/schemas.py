"""The shapes of what is taken and given, as JSON Schema (2020-12, which OpenAPI 3.1 uses)."""

from collections.abc import Mapping

import msgspec

from gateway import control
from gateway.api.asked import MAX_REPLAY_DIGITS, View
from gateway.api.commands import Channels, ClosedStreams, NodeStatus, Renewed
from gateway.api.listing import ClientDetail
from gateway.api.subscribe import REFUSALS
from gateway.client_summary import ClientSummary, Standing
from gateway.config import Config
from gateway.event import MAX_LABEL
from gateway.names import GLOBAL, MAX_CHANNEL_NAME, OPS_CHANNEL, STREAM_PREFIX, USER_PREFIX
from gateway.policy import Policy
from gateway.sse import MAX_RETRY_MS

Schema = dict[str, object]

_SEGMENTS = r"[A-Za-z0-9_:/@~%+-]+(\.[A-Za-z0-9_:/@~%+-]+)*"
_MAX_USER = MAX_CHANNEL_NAME - len(USER_PREFIX)

CHANNEL: Schema = {
    "type": "string",
    "maxLength": MAX_CHANNEL_NAME,
    "pattern": f"^{_SEGMENTS}$",
    "description": "Segments divided by `.`.",
    "examples": ["news"],
}
SUBSCRIBABLE: Schema = CHANNEL | {
    "pattern": f"^(?!{USER_PREFIX}){_SEGMENTS}$",
    "description": f"Segments divided by `.`; `{USER_PREFIX}` is reserved, and `{OPS_CHANNEL}` for "
    "administrators.",
}
PUBLISHABLE: Schema = CHANNEL | {
    "pattern": f"^(?!{USER_PREFIX}|{STREAM_PREFIX}|{GLOBAL}$|{OPS_CHANNEL}$){_SEGMENTS}$",
    "description": f"Segments divided by `.`; `{GLOBAL}`, `{OPS_CHANNEL}`, `{USER_PREFIX}` and "
    f"`{STREAM_PREFIX}` are reserved.",
}
USER: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": _MAX_USER,
    "format": "user-id",
    "description": f"At most {_MAX_USER} bytes, of which a character beyond the alphabet of "
    "channel names takes three for each of its bytes in UTF-8.",
}
LABEL: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_LABEL,
    "pattern": "^[^\\r\\n\\u0000]*$",
}
EVENT_TYPE: Schema = LABEL | {"not": {"enum": sorted(control.TYPES)}}
RETRY: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_RETRY_MS}
COUNT: Schema = {"type": "integer", "minimum": 0}
POSITION: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 127,
    "description": "Opaque; ASCII.",
    "examples": ["1795197409144-0"],
}
RESUME: Schema = {
    "type": "string",
    "description": "A position, `earliest` or `now`; a `gap` is told of anything else.",
}
NEWEST: Schema = {"type": "integer", "minimum": 0, "maximum": 10**MAX_REPLAY_DIGITS - 1}
VIEW: Schema = {"type": "string", "enum": [str(view) for view in View], "default": "normal"}
_CLIENTS: Schema = {"id": {"type": "string"}, "clients": COUNT}


def schemas(config: Config) -> Schema:
    """``components.schemas``."""
    return {
        "Event": _event(config.max_channels_per_client),
        "StreamAsked": _asked(config),
        "Published": record({"id": POSITION}),
        "Pushed": record(
            {
                "id": {"type": "string"},
                "next": COUNT | {"description": "The number of the line that would come next."},
                "state": {"enum": ["streaming", "complete", "error"]},
            }
        ),
        "Polled": record(
            {
                "events": {
                    "type": "array",
                    "items": record(
                        {
                            "id": optional(POSITION),
                            "event": {"type": "string"},
                            "data": {"type": "string"},
                            "channel": optional(CHANNEL),
                            "channels": {"type": "array", "items": CHANNEL},
                        }
                    ),
                },
                "lastEventId": POSITION,
            }
        ),
        "Channels": shape_of(Channels),
        "Renewed": shape_of(Renewed),
        "Client": _client(ClientSummary),
        "ClientDetail": _client(ClientDetail),
        "Clients": record(
            {
                "clients": {"type": "array", "items": ref("Client")},
                "matched": COUNT,
                "missing": COUNT,
            }
        ),
        "Leaving": record({"node": {"type": "string"}, "workers": COUNT}),
        "Closed": shape_of(ClosedStreams),
        "Revoked": record(
            {
                "closed": COUNT,
                "durable": {"type": "boolean", "description": "Whether a restart keeps it."},
            }
        ),
        "Channel": record(
            {
                "channel": CHANNEL,
                "clients": COUNT,
                "lastEventId": optional(POSITION),
                "policy": {"enum": [str(policy) for policy in Policy]},
                "missing": COUNT,
                "nodes": {"type": "array", "items": record(_CLIENTS)},
            }
        ),
        "Statistics": record(
            {
                "clients": COUNT,
                "channels": COUNT,
                "published": COUNT,
                "delivered": COUNT,
                "dropped": COUNT,
                "missing": COUNT,
                "nodes": {"type": "array", "items": shape_of(NodeStatus)},
            }
        ),
        "Problem": _PROBLEM,
    }


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def record(properties: Schema) -> Schema:
    """An object that has all of ``properties``, and later perhaps more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def only(value: str) -> Schema:
    return {"type": "string", "const": value}


def optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _event(most_channels: int) -> Schema:
    return {
        "type": "object",
        "properties": {
            "channel": PUBLISHABLE,
            "channels": {
                "type": "array",
                "items": PUBLISHABLE,
                "minItems": 1,
                "maxItems": most_channels,
            },
            "user": USER,
            "broadcast": {"type": "boolean", "default": False},
            "event": optional(EVENT_TYPE) | {"description": "Its type."},
            "data": {"description": "A string goes as it is, anything else as the JSON it is."},
            "retry": optional(RETRY) | {"description": "Milliseconds."},
            "key": optional(LABEL) | {"description": "For the policy `latest`."},
            "id": optional(LABEL) | {"description": "A repeat gets the first one's position."},
            "end": {
                "type": "boolean",
                "default": False,
                "description": "Whether it is the last event of its channels.",
            },
        },
        "additionalProperties": False,
        "oneOf": [
            {"required": ["channel"]},
            {"required": ["channels"]},
            {"required": ["user"]},
            _is_true("broadcast"),
        ],
        "if": _is_true("end"),
        "then": {"anyOf": [{"required": ["channel"]}, {"required": ["channels"]}]},
        "else": {"required": ["data"]},
        "examples": [
            {"channel": "news", "data": "Hello"},
            {"channels": ["news", "sports"], "event": "score", "data": {"home": 2, "away": 1}},
            {"user": "7", "data": None, "retry": 500, "id": "order-7"},
            {"broadcast": True, "data": "Good night"},
            {"channel": "news", "end": True},
        ],
    }


def _asked(config: Config) -> Schema:
    users: Schema = {} if config.has_keys else {"user": optional(USER)}
    return {
        "type": "object",
        "properties": {
            "channels": {
                "type": "array",
                "items": SUBSCRIBABLE,
                "maxItems": config.max_channels_per_client,
                "default": [],
            },
            **users,
            "lastEventId": optional(RESUME),
            "replay": optional(NEWEST)
            | {"description": "Where no position is given: with how many of the last events."},
            "annotate": {"type": "boolean", "default": False},
            "view": VIEW,
        },
        "additionalProperties": False,
        "examples": [{"channels": ["news", "sports"], "annotate": True}],
    }


def _is_true(name: str) -> Schema:
    return {"properties": {name: {"const": True}}, "required": [name]}


def _client(shape: type[ClientSummary]) -> Schema:
    told = shape_of(shape)
    properties = told["properties"]
    assert isinstance(properties, dict)
    properties |= {
        "state": {"type": "string", "enum": list(Standing)},
        "lane": {"type": "string", "enum": ["direct", "response"]},
    }
    return told


def shape_of(shape: type[msgspec.Struct]) -> Schema:
    """The shape of an answer: every member is always told, whether or not it has a default."""
    parts = msgspec.json.schema_components([shape])[1]
    properties: dict[str, Schema] = parts[shape.__name__]["properties"]
    return record(
        {name: _within(_without_default(each), parts) for name, each in properties.items()}
    )


def _within(schema: Schema, parts: Mapping[str, Schema]) -> Schema:
    """``schema`` with the shapes that it names in their places."""
    match schema:
        case {"$ref": str(name)}:
            part = parts[name.rpartition("/")[2]]
            properties = part["properties"]
            assert isinstance(properties, dict)
            return record({key: _without_default(each) for key, each in properties.items()})
        case {"anyOf": list(options)}:
            return schema | {"anyOf": [_within(each, parts) for each in options]}
    return schema


def _without_default(schema: Schema) -> Schema:
    return {name: value for name, value in schema.items() if name != "default"}


_PROBLEM: Schema = {
    "description": "RFC 9457: what is wrong, and what would be right.",
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "A sentence for a person."},
        "reason": {
            "type": "string",
            "description": "Of a 503, in one word.",
            "examples": sorted(REFUSALS),
        },
        "outcome": {
            "enum": ["refused", "unknown"],
            "description": "Of a 503: `refused`, nothing was done and never will be by this "
            "request; `unknown`, it may have been.",
        },
        "closed": COUNT | {"description": "Streams that were ended nevertheless."},
        "missing": COUNT | {"description": "Workers that did not answer."},
        "line": COUNT | {"description": "The line of a pushed body that is malformed."},
        "next": COUNT | {"description": "The line of a token stream that is expected."},
        "state": {"enum": ["streaming", "complete", "stopped", "error"]},
    },
    "required": ["title", "status", "detail"],
}
