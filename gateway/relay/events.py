"""What viewers of a token stream are told, the same for every vendor: the normal view.

``start``, then any number of ``token`` and ``tool_use``, then ``complete`` or ``error``, which is
the last event of the channel. Data is JSON in camelCase. A ``snapshot`` is no event of the channel:
it is made for whoever joins late.
"""

from dataclasses import dataclass
from typing import ClassVar

import msgspec
from msgspec import Struct

from gateway.event import Event


class Normal(Struct, frozen=True, rename="camel"):
    """Base of the normal events; ``type`` is that of the SSE event."""

    type: ClassVar[str]


class Start(Normal, frozen=True):
    type = "start"
    id: str
    """Of the token stream."""
    upstream: str | None = None
    """Its name; None where an application pushes."""
    model: str | None = None
    """As it was asked for."""


class Token(Normal, frozen=True):
    type = "token"
    text: str


class ToolUse(Normal, frozen=True):
    """A call of a tool that the model wants, when all of it is there."""

    type = "tool_use"
    id: str
    name: str
    input: msgspec.Raw
    """JSON: an object, or a string of what was sent where that is no JSON."""


class Usage(Struct, frozen=True, rename="camel"):
    """In tokens as the vendor counts them; None where it does not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None


REASONS = ("end", "length", "tool_use", "stop_sequence", "content_filter", "stopped", "unwatched")


class Complete(Normal, frozen=True):
    """``reason`` is one of REASONS, or as the vendor or the application calls what is none of
    them. ``stopped``: somebody asked for it."""

    type = "complete"
    reason: str
    usage: Usage | None = None


class Error(Normal, frozen=True):
    type = "error"
    code: str
    """One of `FAILURES`."""
    message: str
    """Ours; nothing of the upstream's address, headers or answer is in it."""
    retryable: bool
    """Whether the same request may well succeed later."""
    status: int | None = None
    """That the upstream answered with, where it did."""


@dataclass(frozen=True, slots=True)
class Kind:
    message: str
    retryable: bool


FAILURES = {
    "refused": Kind("The upstream could not be connected to.", retryable=True),
    "tls": Kind("The upstream has no certificate that can be trusted.", retryable=False),
    "timeout": Kind("The upstream did not answer in time.", retryable=True),
    "unauthorized": Kind(
        "The upstream does not accept the gateway's credentials.", retryable=False
    ),
    "rejected": Kind("The upstream does not accept the request.", retryable=False),
    "rate-limited": Kind("The upstream has had too many requests.", retryable=True),
    "upstream-error": Kind("The upstream failed.", retryable=True),
    "overloaded": Kind("The upstream is overloaded.", retryable=True),
    "redirected": Kind("The upstream sends elsewhere, where nobody follows.", retryable=False),
    "interrupted": Kind("The upstream's stream ended before its end.", retryable=True),
    "silent": Kind("The upstream has been silent for too long.", retryable=True),
    "malformed": Kind("The upstream sent what cannot be read.", retryable=False),
    "too-large": Kind("The upstream sent an event that is too large.", retryable=False),
    "limit-duration": Kind("The stream has lasted for as long as one may.", retryable=False),
    "limit-tokens": Kind("The stream has had as many tokens as one may.", retryable=False),
    "limit-bytes": Kind("The stream has had as many bytes as one may.", retryable=False),
    "producer-lost": Kind("Whoever produced the stream is gone.", retryable=True),
    "bus-lost": Kind("The link between the nodes was lost for too long.", retryable=True),
    "internal": Kind("The gateway failed at this stream.", retryable=True),
}
"""Why a stream ends before its end, by code: the sentence for viewers, and whether to try again."""

UPSTREAM_FAILURES = frozenset(FAILURES) - {
    *("limit-duration", "limit-tokens", "limit-bytes", "producer-lost", "bus-lost", "internal")
}
"""Those that are an upstream's doing."""


class Failure(Exception):
    """A stream is to end with an error, by its code."""

    def __init__(self, code: str, *, status: int | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.status = status

    def told(self) -> Error:
        kind = FAILURES[self.code]
        return Error(self.code, kind.message, kind.retryable, self.status)


def render(event: Normal, *channels: str, end: bool = False) -> Event:
    """The event of a channel."""
    return Event(channels, msgspec.json.encode(event).decode(), event.type, end=end)
