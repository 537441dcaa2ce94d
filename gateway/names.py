"""Names of channels, and patterns over them.

A name is 1 to 200 characters of ``A-Z a-z 0-9 _ - . : / @ ~ % +``: segments divided by dots, none
of them empty.
Rules:

1. Everything here is about text. Who may use a name or be matched by a pattern is decided
   elsewhere: no grant reaches a reserved name, though a pattern may match one.
2. ``global``, ``user:<id>`` and ``gateway:ops`` are reserved. Different user ids never share a
   channel. ``stream:<id>`` is granted as any other, and published to by the gateway alone.
3. What is refused is a BadRequest whose sentence shows the text, shortened and escaped.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from gateway.errors import BadRequest

MAX_CHANNEL_NAME = 200
"""Characters, which are bytes as well."""

GLOBAL = "global"
"""The channel of every client: where broadcasts go."""

OPS_CHANNEL = "gateway:ops"
"""What workers report of themselves while somebody watches: for administrators alone."""

STREAM_PREFIX = "stream:"
"""Begins the channel of a token stream, unless who opened it has named another one."""

RAW_SUFFIX = ".raw"
"""Ends the channel of a token stream's events as its upstream sent them."""

USER_PREFIX = "user:"
USER_PATTERN = "user:*"

_ALPHABET = "A-Z a-z 0-9 _ - . : / @ ~ % +"
_ILLEGAL_IN_NAME = re.compile(r"[^A-Za-z0-9_\-.:/@~%+]")
_ILLEGAL_IN_PATTERN = re.compile(r"[^A-Za-z0-9_\-.:/@~%+*]")
_NAMES_REMEMBERED = 16_384  # about 5 MB at the longest; the check costs 1 us, a remembered one 0.05
_SHOWN = 60


@lru_cache(_NAMES_REMEMBERED)
def check_channel(name: str) -> str:
    """``name``, if it is a legal channel name; raises BadRequest otherwise."""
    _check_text("Channel name", name, _ILLEGAL_IN_NAME)
    return name


def check_subscribable(name: str) -> str:
    """``name``, if a client may ask for it; raises BadRequest otherwise.

    A client has its own user channel by its identity and can name none. ``global`` is let
    through: every client has it anyway.
    """
    if name.startswith(USER_PREFIX):
        raise BadRequest(
            f"Channel {shown(name)} is reserved: a client gets its user's channel by who it is."
        )
    return check_channel(name)


def stream_channel(id: str) -> str:
    """The channel of a token stream by its id."""
    return STREAM_PREFIX + id


def stream_of(name: str) -> str | None:
    """The id of the token stream whose channel, of whichever view, that is by its name alone."""
    if not name.startswith(STREAM_PREFIX):
        return None
    return name.removeprefix(STREAM_PREFIX).removesuffix(RAW_SUFFIX)


def is_reserved(name: str) -> bool:
    """Whether no grant reaches it, and no event ends it."""
    return comes_unasked(name) or name == OPS_CHANNEL


def comes_unasked(name: str) -> bool:
    """Whether a stream has the channel without having asked for it, and cannot be without it."""
    return name == GLOBAL or name.startswith(USER_PREFIX)


@lru_cache(_NAMES_REMEMBERED)
def user_channel(user: str) -> str:
    """The channel of a user: ``user:`` and the id, percent-encoded where it is no legal name.

    ``%`` itself is always encoded, so percent-decoding gives the id back and no two users collide.
    Raises BadRequest for an empty id, one with lone surrogates, and one whose channel name would
    be over MAX_CHANNEL_NAME.
    """
    if not user:
        raise BadRequest("A user id has at least one character.")
    try:
        encoded = quote(user[:MAX_CHANNEL_NAME], safe="_-.:/@~+")  # more is too long anyway
    except UnicodeEncodeError:
        raise BadRequest(f"User id {shown(user)} contains lone surrogates.") from None
    if _has_empty_segment(user):
        encoded = encoded.replace(".", "%2E")
    if len(USER_PREFIX) + len(encoded) > MAX_CHANNEL_NAME:
        raise BadRequest(
            f"User id {shown(user)} is too long: its channel, {USER_PREFIX!r} and the"
            f" percent-encoded id, is over {MAX_CHANNEL_NAME} characters."
        )
    return USER_PREFIX + encoded


@dataclass(frozen=True, slots=True)
class Pattern:
    """A set of channel names, made by ``compile_pattern``."""

    text: str
    segments: tuple[str, ...]
    open_ended: bool
    """Whether ``**`` follows the segments."""

    def matches(self, name: str) -> bool:
        """Whether the legal channel name ``name`` is in the set, in time linear in its length."""
        if self.text == USER_PATTERN:  # the only star that spans dots: user ids may contain them
            return name.startswith(USER_PREFIX) and name != USER_PREFIX
        segments = name.split(".")
        if len(segments) < len(self.segments):
            return False
        if len(segments) > len(self.segments) and not self.open_ended:
            return False
        pairs = zip(self.segments, segments, strict=False)
        return all(wanted in ("*", segment) for wanted, segment in pairs)


@lru_cache(_NAMES_REMEMBERED)
def compile_pattern(text: str) -> Pattern:
    """The pattern that ``text`` writes; raises BadRequest where it is none.

    Segments are literal, or ``*`` for exactly one segment; ``**`` at the end stands for any number
    of them, none included: ``org.7.**`` matches ``org.7``, and ``**`` everything. ``user:*`` is the
    one star within a segment, and matches the channel of every user.
    """
    _check_text("Pattern", text, _ILLEGAL_IN_PATTERN)
    segments = tuple(text.split("."))
    open_ended = segments[-1] == "**"
    if open_ended:
        segments = segments[:-1]
    if "**" in segments:
        raise BadRequest(f"Pattern {shown(text)} has '**' before its end; only the last may be it.")
    if text != USER_PATTERN and any("*" in segment and segment != "*" for segment in segments):
        raise BadRequest(
            f"Pattern {shown(text)} has a '*' within a segment; a '*' is a whole segment,"
            f" but for {USER_PATTERN!r}."
        )
    return Pattern(text, segments, open_ended)


def _check_text(what: str, text: str, illegal: re.Pattern[str]) -> None:
    if not text:
        raise BadRequest(f"{what} is empty; it has 1 to {MAX_CHANNEL_NAME} characters.")
    if len(text) > MAX_CHANNEL_NAME:
        raise BadRequest(
            f"{what} {shown(text)} has {len(text)} characters; the most is {MAX_CHANNEL_NAME}."
        )
    if found := illegal.search(text):
        raise BadRequest(f"{what} {shown(text)} contains {found[0]!r}; legal are {_ALPHABET}.")
    if _has_empty_segment(text):
        raise BadRequest(
            f"{what} {shown(text)} has an empty segment; dots stand singly, between others."
        )


def _has_empty_segment(text: str) -> bool:
    return ".." in f".{text}."


def shown(text: str) -> str:
    """What a stranger may have chosen, for a sentence: its beginning, escaped."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."
