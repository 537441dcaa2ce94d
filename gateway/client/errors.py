"""What a client of the gateway is told, beside what it passes on.

    GatewayError
    '-- ClientError
        |-- PublishError       one event
        |   |-- Refused        it was not taken, and will not be
        |   '-- Unknown        it may have been taken; under the same id it may be sent again
        |-- EventsMissing      a hole in what a subscription gives out; it goes on behind it
        |-- StreamRefused      the gateway does not open the stream, or not with that channel
        |-- ConnectionLost     all attempts to come back have failed
        |-- TokenUnavailable   the function that gives tokens has failed
        '-- Closed             used before it was begun, or after its end

``status`` is that of the answer, where there was one, else 0.
"""

from typing import TYPE_CHECKING

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.client.items import Dropped, Gap


class ClientError(GatewayError):
    """Base of what this package raises; ``str(error)`` is one sentence."""


class PublishError(ClientError):
    """An event was not acknowledged. ``id`` is the one that it was sent under."""

    def __init__(self, detail: str, *, id: str = "", status: int = 0) -> None:
        super().__init__(detail)
        self.id = id
        self.status = status  # type: ignore[misc]  # of this answer, not of the class


class Refused(PublishError):
    """It was not taken, and will not be unless it is published again."""


class Unknown(PublishError):
    """It was sent, and may have been taken. Publish it again with this ``id`` to be sure, within
    the gateway's ``dedupe_seconds``: it is then delivered once."""


class EventsMissing(ClientError):
    """History did not hold all that was missed, or the reader was too slow: ``notice`` says which.

    The subscription is open: iterate again and it goes on behind the hole.
    """

    def __init__(self, notice: "Gap | Dropped") -> None:
        super().__init__(notice.sentence)
        self.notice = notice


class StreamRefused(ClientError):
    """Another try would not mend it."""

    def __init__(self, detail: str, *, status: int = 0) -> None:
        super().__init__(detail)
        self.status = status  # type: ignore[misc]


class ConnectionLost(ClientError):
    """As many attempts as were allowed have failed in a row; the sentence has the last reason."""


class TokenUnavailable(ClientError):
    """``__cause__`` is what the function raised."""


class Closed(ClientError):
    """A publisher or subscription outside of its ``with`` block, or one that has ended."""
