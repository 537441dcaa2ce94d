"""What an operation takes beside its body."""

from gateway.api.listing import DEFAULT_LIMIT, MAX_LIMIT
from gateway.api.poll import DEFAULT_WAIT, MAX_WAIT
from gateway.api.push import MAX_NUMBER_DIGITS
from gateway.api.tokens import MAX_SECONDS_DIGITS
from gateway.client_summary import Standing
from gateway.config import Config
from gateway.openapi.schemas import (
    CHANNEL,
    EVENT_TYPE,
    LABEL,
    NEWEST,
    PUBLISHABLE,
    RESUME,
    RETRY,
    SUBSCRIBABLE,
    USER,
    VIEW,
    Schema,
)
from gateway.replay import MAX_NEWEST
from gateway.request_id import MAX_LENGTH
from gateway.revocation import MAX_ID_BYTES


def in_path(name: str, schema: Schema, description: str) -> Schema:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": schema,
        "description": description,
    }


def in_query(name: str, schema: Schema, description: str, **more: object) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description, **more}


def _in_header(name: str, description: str) -> Schema:
    return {"name": name, "in": "header", "schema": {"type": "string"}, "description": description}


def where(config: Config) -> list[Schema]:
    """Which channels a stream or a poll has, for whom, and where it begins."""
    names: Schema = {"type": "array", "items": SUBSCRIBABLE, "minItems": 1}
    most = f"All named together are at most {config.max_channels_per_client}."
    found = [
        in_query("channel", names, f"A channel, as often as wanted. {most}"),
        in_query("channels", names, "Channels, divided by commas.", style="form", explode=False),
    ]
    if not config.has_keys:
        found.append(in_query("user", USER, "Who asks, which nothing proves.", **_EMPTY))
    return [
        *found,
        LAST_EVENT_ID,
        in_query("lastEventId", RESUME, "The position to begin after.", **_EMPTY),
        in_query("last_event_id", RESUME, "The same.", **_EMPTY),
        in_query("replay", NEWEST, _WHERE_NO_POSITION, **_EMPTY),
    ]


_EMPTY = {"allowEmptyValue": True}
"""An empty value counts as none."""

_WHERE_NO_POSITION = (
    f"Where no position is given: with how many of the last events to begin, {MAX_NEWEST} at most."
)

LAST_EVENT_ID = _in_header(
    "Last-Event-ID", "The position to begin after; before any other that is given."
)

ANNOTATE = in_query(
    "annotate",
    {"type": "boolean", "default": False},
    "Whether each event has a line `channel:` that names those of the stream's channels through "
    "which it comes.",
    **_EMPTY,
)

VIEW_OF_STREAMS = in_query(
    "view",
    VIEW,
    "As what token streams are shown: by the events that are the same for every vendor, by the "
    "upstream's as they were, or as the former with all so far as one event, `snapshot`, which is "
    "of one channel.",
    **_EMPTY,
)

WAIT = in_query(
    "wait",
    {"type": "number", "minimum": 0, "maximum": MAX_WAIT, "default": DEFAULT_WAIT},
    "Seconds to wait for an event.",
    **_EMPTY,
)

OF_EVENT = [
    in_query("event", EVENT_TYPE, "The type of the event.", **_EMPTY),
    in_query("retry", RETRY, "Milliseconds.", **_EMPTY),
    in_query("key", LABEL, "For the policy `latest`.", **_EMPTY),
    in_query("id", LABEL, "A repeat gets the first one's position.", **_EMPTY),
    in_query("end", {"type": "boolean"}, "Whether it is the channel's last event.", **_EMPTY),
]
"""The members of an event whose data is the body."""

CHANNEL_TO_READ = in_path("channel", SUBSCRIBABLE, "One more channel.")
CHANNEL_TO_WRITE = in_path("channel", PUBLISHABLE, "Where the event goes.")
CHANNEL_TO_COUNT = in_path("channel", CHANNEL, "The channel.")
CHANNEL_OF_CLIENT = in_path("channel", SUBSCRIBABLE, "The channel to add or to take away.")
CLIENT = in_path("client", {"type": "string", "minLength": 1}, "`clientId` of `connected`.")
WHICH_CLIENTS = [
    in_query("channel", CHANNEL, "Those that have it.", **_EMPTY),
    in_query("user", {"type": "string"}, "Those of the user.", **_EMPTY),
    in_query("address", {"type": "string"}, "Those from there.", **_EMPTY),
    in_query("state", {"type": "string", "enum": list(Standing)}, "Those that stand so.", **_EMPTY),
    in_query("node", {"type": "string"}, "Those at the node of this id.", **_EMPTY),
    in_query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        "How many to tell of, the slowest first.",
        **_EMPTY,
    ),
]
NODE = in_path("id", {"type": "string", "minLength": 1}, "`id` of `/stats`.")
OF_USER = in_path("user", USER, "Whose streams.")
TOKEN_ID = in_path(
    "token_id",
    {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES, "format": "token-id"},
    f"`jti` of a token, at most {MAX_ID_BYTES} bytes.",
)
EXPIRES = in_query(
    "exp",
    {"type": "integer", "minimum": 0, "maximum": 10**MAX_SECONDS_DIGITS - 1},
    "Seconds since 1970, as in the token or the last of them, and not past; then it is forgotten.",
    **_EMPTY,
)
REVOKE = in_query(
    "revoke",
    {"type": "boolean", "default": False},
    "Whether to revoke the tokens that the user has so far, too.",
    **_EMPTY,
)
SINCE = in_query(
    "since", RESUME, "The position after which the channel's events are given.", **_EMPTY
)
REQUEST_ID = _in_header(
    "X-Request-Id",
    f"What the request is to be known by, in the log too: 1 to {MAX_LENGTH} of `A-Z a-z 0-9 . _ :"
    " / @ + = ~ -`. Anything else counts as none, and one is made.",
)
TRACE = [
    _in_header(
        "traceparent",
        "The span that publishes (W3C Trace Context). On a node that traces, the deliveries are"
        " spans of the same trace. What is invalid counts as none.",
    ),
    _in_header("tracestate", "What goes with it."),
]
IF_NONE_MATCH = _in_header("If-None-Match", "The `ETag` of the description that is known.")

TOKEN_STREAM = in_path("id", {"type": "string"}, "Of a token stream.")
OF_LINES = (
    in_query(
        "seq",
        {"type": "integer", "minimum": 0, "maximum": 10**MAX_NUMBER_DIGITS - 1},
        "The number of the body's first line, from 0; those that were taken already are skipped.",
        **_EMPTY,
    ),
    in_query(
        "end",
        {"type": "string", "enum": ["true", "false"]},
        "`false`: the end of the body is not that of the stream.",
        **_EMPTY,
    ),
)
