"""One exception tree; each error knows its HTTP status and its sentence.

    GatewayError
    |-- BadRequest            400  the request cannot be understood or contradicts itself
    |-- Unauthorized          401  no credentials, or none that are taken
    |-- Forbidden             403  known, and not allowed
    |-- NotFound              404
    |-- MethodNotAllowed      405
    |-- RequestTimeout        408  the head or the body came too slowly
    |-- ChannelEnded          409  publish to a channel after its last event
    |-- Conflict              409  something else is there already, or is not there yet
    |-- ContentTooLarge       413
    |-- UriTooLong            414
    |-- UnsupportedMediaType  415
    |-- ExpectationFailed     417
    |-- TooManyRequests       429  more than a limit of rate allows; worth a retry
    |-- HeadTooLarge          431
    |-- NotImplementedCoding  501
    |-- BadGateway            502  an upstream gives no answer that could be passed on
    |-- Unavailable           503  refused for now; nothing was changed; worth a retry
    |-- GatewayTimeout        504  an upstream does not answer in time
    |-- VersionNotSupported   505
    '-- ConfigError           (no status: it stops the start)

Every answer made from one of these is an ``application/problem+json`` (RFC 9457).
"""

from typing import ClassVar

RETRY_AFTER_SECONDS = 2
"""Told to clients that are turned away for now and are no EventSource, at the least."""


class GatewayError(Exception):
    """Base of all errors of the gateway. ``str(error)`` is one sentence for a person."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal Server Error"

    def __init__(self, detail: str, **extra: object) -> None:
        """``extra`` members are added to the problem document as they are (JSON values)."""
        super().__init__(detail)
        self.detail = detail
        self.extra = extra

    def problem(self) -> dict[str, object]:
        """The problem document, RFC 9457 section 3."""
        return {"title": self.title, "status": self.status, "detail": self.detail, **self.extra}


class BadRequest(GatewayError):
    status = 400
    title = "Bad Request"


class Unauthorized(GatewayError):
    status = 401
    title = "Unauthorized"

    def __init__(self, detail: str, *, bad_token: bool = True) -> None:
        """``bad_token`` unless there was none (RFC 6750 section 3.1)."""
        super().__init__(detail)
        self.bad_token = bad_token


class Forbidden(GatewayError):
    status = 403
    title = "Forbidden"


class NotFound(GatewayError):
    status = 404
    title = "Not Found"


class MethodNotAllowed(GatewayError):
    status = 405
    title = "Method Not Allowed"

    def __init__(self, detail: str, *, allow: str) -> None:
        """``allow`` is the answer's Allow header, which a 405 must have (RFC 9110 15.5.6)."""
        super().__init__(detail)
        self.allow = allow


class RequestTimeout(GatewayError):
    status = 408
    title = "Request Timeout"


class ChannelEnded(GatewayError):
    status = 409
    title = "Conflict"


class Conflict(GatewayError):
    status = 409
    title = "Conflict"


class ContentTooLarge(GatewayError):
    status = 413
    title = "Content Too Large"


class UriTooLong(GatewayError):
    status = 414
    title = "URI Too Long"


class UnsupportedMediaType(GatewayError):
    status = 415
    title = "Unsupported Media Type"


class ExpectationFailed(GatewayError):
    status = 417
    title = "Expectation Failed"


class TooManyRequests(GatewayError):
    status = 429
    title = "Too Many Requests"

    def __init__(self, detail: str, *, retry_after: float, **extra: object) -> None:
        """``retry_after`` is in seconds."""
        super().__init__(detail, **extra)
        self.retry_after = retry_after


class HeadTooLarge(GatewayError):
    status = 431
    title = "Request Header Fields Too Large"


class NotImplementedCoding(GatewayError):
    status = 501
    title = "Not Implemented"


class BadGateway(GatewayError):
    status = 502
    title = "Bad Gateway"


class Unavailable(GatewayError):
    status = 503
    title = "Service Unavailable"
    retry_after: float = RETRY_AFTER_SECONDS


class GatewayTimeout(GatewayError):
    status = 504
    title = "Gateway Timeout"


class VersionNotSupported(GatewayError):
    status = 505
    title = "HTTP Version Not Supported"


class ConfigError(GatewayError):
    """A setting that cannot be used. The sentence names it and where its value came from."""
