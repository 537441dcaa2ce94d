"""What a normalizer promises, and what all of them are made of."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from gateway.relay.events import Complete, Failure, Normal, ToolUse
from gateway.sse import ServerSentEvent

MAX_REASON = 60
"""Characters of a reason to stop that is told in the vendor's own word."""

MAX_TOOLS = 128
"""Calls of tools in one stream: as many tools as OpenAI takes in one request."""

MAX_TOOL_BYTES = 1024 * 1024
"""Of the arguments of all calls that are not complete yet, and of each one: the default for one
event of an upstream."""

T = TypeVar("T")


class Normalizer(Protocol):
    def feed(self, event: ServerSentEvent) -> Sequence[Normal]:
        """The normal events, `Token` and `ToolUse`, that ``event`` completes, in order.

        Raises Failure("malformed") where it is of a type that is known and cannot be read,
        Failure("too-large") beyond MAX_TOOLS or MAX_TOOL_BYTES, and what the upstream says that it
        failed at. After that, as after the end, there is nothing more to be fed.
        """

    @property
    def is_done(self) -> bool:
        """Whether the format's own terminator has come; never, where the end of the body is it."""

    def finish(self) -> Complete:
        """The body has ended. Raises Failure("interrupted") where its terminator has not come."""


def decode(decoder: "msgspec.json.Decoder[T]", data: "str | msgspec.Raw") -> T:
    """Raises Failure("malformed"), also for JSON that is nested too deeply."""
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        raise Failure("malformed") from None


def tool_input(text: str) -> msgspec.Raw:
    """The JSON that viewers are given of a call's arguments: no arguments are an empty object."""
    if not text or text.isspace():
        return msgspec.Raw(b"{}")
    try:
        _OBJECT.decode(text)
    except (ValueError, RecursionError):
        return msgspec.Raw(msgspec.json.encode(text))
    return msgspec.Raw(text.encode())


_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
ANYTHING: "msgspec.json.Decoder[Any]" = msgspec.json.Decoder()


def reason_of(word: str, known: dict[str, str]) -> str:
    """``word`` as ``known`` translates it, or else as it is, within MAX_REASON."""
    return known.get(word) or word[:MAX_REASON]


class Tools:
    """Calls of tools whose arguments come in fragments: open by a key, and complete in turn."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, str, list[str]]] = {}
        self._bytes = 0
        self.count = 0
        """Calls that were ever opened."""

    def __contains__(self, key: int) -> bool:
        return key in self._open

    def open(self, key: int, id: str, name: str) -> None:
        """Raises Failure("too-large") beyond MAX_TOOLS."""
        self.count += 1
        if self.count > MAX_TOOLS:
            raise Failure("too-large")
        self._add(len(id) + len(name))
        self._open[key] = (id, name, [])

    def extend(self, key: int, fragment: str) -> None:
        """More arguments of an open call. Raises Failure("too-large") beyond MAX_TOOL_BYTES."""
        if fragment:
            self._add(len(fragment.encode()))
            self._open[key][2].append(fragment)

    def _add(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MAX_TOOL_BYTES:
            raise Failure("too-large")

    def close(self, key: int) -> ToolUse:
        id, name, fragments = self._open.pop(key)
        arguments = "".join(fragments)
        self._bytes -= len(id) + len(name) + len(arguments.encode())
        return ToolUse(id, name, tool_input(arguments))

    def close_all(self) -> Sequence[ToolUse]:
        return [self.close(key) for key in tuple(self._open)]


# What an upstream says that it failed at


_CODES = {
    "rate-limited": (
        "rate_limit_error",
        "rate_limit_exceeded",
        "too_many_requests",
        "requests",
        "tokens",
        "429",
    ),
    "overloaded": (
        "overloaded_error",
        "overloaded",
        "server_overloaded",
        "engine_overloaded",
        "slow_down",
        "service_unavailable",
        "503",
        "529",
    ),
    "unauthorized": (
        "authentication_error",
        "permission_error",
        "invalid_api_key",
        "invalid_authentication",
        "401",
        "403",
    ),
    "rejected": (
        "not_found_error",
        "request_too_large",
        "billing_error",
        "insufficient_quota",
        "model_not_found",
        "context_length_exceeded",
        "content_policy_violation",
        "content_filter",
        "data_residency_mismatch",
        "bio_policy",
        "400",
        "402",
        "404",
        "413",
        "422",
    ),
    "timeout": ("timeout_error", "timeout", "408", "504"),
}
"""An upstream's words by our codes. OpenAI's `type` of a rate limit names what there was too much
of, and others put the status that there would have been into `code`."""

_CODE_OF = {word: code for code, words in _CODES.items() for word in words}

_REJECTED = ("invalid_", "image_", "unsupported_")
"""Begin the many words for what is wrong with a request."""


def failure(error: object) -> Failure:
    """What ``error``, as a vendor writes it, is told as: by its code, or else its type.

    It stands there itself or as the member ``error``. Its message is never told to anybody.
    """
    if isinstance(error, dict) and error.get("error"):
        error = error["error"]
    if isinstance(error, dict):
        for word in (error.get("code"), error.get("type")):
            text = str(word) if isinstance(word, str | int) else ""
            if text in _CODE_OF:
                return Failure(_CODE_OF[text])
            if text.startswith(_REJECTED):
                return Failure("rejected")
    return Failure("upstream-error")
