"""What is answered: the refusals, one response for each error, and how an operation lists its own.

An error's status and title are its class's. So are the headers that come with it: see
`gateway.api.request.problem`.
"""

from gateway.api.request import EVENT_STREAM, JSON, PROBLEM
from gateway.errors import (
    BadGateway,
    BadRequest,
    ChannelEnded,
    ContentTooLarge,
    ExpectationFailed,
    Forbidden,
    GatewayError,
    GatewayTimeout,
    HeadTooLarge,
    NotFound,
    NotImplementedCoding,
    RequestTimeout,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    UriTooLong,
    VersionNotSupported,
)
from gateway.openapi.schemas import Schema, only, ref
from gateway.request_id import MAX_LENGTH

Error = type[GatewayError]

ANYWHERE: tuple[Error, ...] = (
    BadRequest,
    RequestTimeout,
    ContentTooLarge,
    UriTooLong,
    ExpectationFailed,
    HeadTooLarge,
    GatewayError,
    NotImplementedCoding,
    Unavailable,
    VersionNotSupported,
)
"""What the head, the body or the state of the node can bring about whatever is asked."""

ACCESS: tuple[Error, ...] = (Unauthorized, Forbidden)
"""What comes beside of what is guarded, on a node that has keys. Pages of other origins are
forbidden to change anything on one that has none, too."""

TEXT: Schema = {"schema": {"type": "string"}}

_ELSEWHERE: tuple[Error, ...] = (
    NotFound,
    ChannelEnded,
    UnsupportedMediaType,
    TooManyRequests,
    BadGateway,
    GatewayTimeout,
)


def described_errors() -> Schema:
    """``components.responses``."""
    return {
        _name(error): {
            "description": error.title,
            "content": {PROBLEM: {"schema": ref("Problem"), "example": _example(error)}},
            "headers": REQUEST_ID | _HEADERS.get(error, {}),
        }
        for error in (*ANYWHERE, *ACCESS, *_ELSEWHERE)
    }


def responses(given: dict[int, Schema], *errors: Error, guarded: bool) -> Schema:
    """All responses of an operation: those ``given``, ``errors``, what can come anywhere, and, of
    a guarded one, why somebody has no access."""
    refused = (*ANYWHERE, *errors, *(ACCESS if guarded else ()))
    found = given | {
        error.status: {"$ref": f"#/components/responses/{_name(error)}"} for error in refused
    }
    return {str(status): found[status] for status in sorted(found)}


def told(description: str, *names: str) -> Schema:
    """A response in JSON, of one of the schemas with these names."""
    schemas = [ref(name) for name in names]
    schema: Schema = {"anyOf": schemas} if len(schemas) > 1 else schemas[0]
    return {"description": description, "content": {JSON: {"schema": schema}}}


def text(description: str, media_type: str) -> Schema:
    return {"description": description, "content": {media_type: TEXT}}


def stream(description: str, more: Schema | None = None) -> Schema:
    """A response that is a stream, with ``more`` headers."""
    headers = header("Cache-Control", only("no-cache")) | header("X-Accel-Buffering", only("no"))
    return {
        "description": description,
        "content": {EVENT_STREAM: {"schema": ref("StreamEvent")}},
        "headers": headers | REQUEST_ID | (more or {}),
    }


def header(name: str, schema: Schema) -> Schema:
    """A header that always comes."""
    return {name: {"required": True, "schema": schema}}


def _example(error: Error) -> Schema:
    return {"title": error.title, "status": error.status, "detail": _DETAIL}


def _name(error: Error) -> str:
    return error.title.replace(" ", "")


_DETAIL = "What is wrong, and what would be right."

REQUEST_ID = header(
    "X-Request-Id",
    {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_LENGTH,
        "description": "What the log knows the request by.",
    },
)

_RETRY_AFTER = header("Retry-After", {"type": "integer", "minimum": 1, "description": "Seconds."})

_HEADERS: dict[Error, Schema] = {
    Unauthorized: header("WWW-Authenticate", {"type": "string", "pattern": "^Bearer "}),
    TooManyRequests: _RETRY_AFTER,
    Unavailable: _RETRY_AFTER,
}
