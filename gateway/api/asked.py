"""What a request for a stream or a poll asks for: in its query, or, for a list of channels that is
too long for a URL, in the body of a POST.

Whichever it was, what is asked for is the same, and a URL can be named that asks for it with GET.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from gateway.api.request import JSON, Request, sentence
from gateway.errors import BadRequest, UnsupportedMediaType

MAX_REPLAY_DIGITS = 9

IN_QUERY = frozenset(
    {"channel", "channels", "user", "lastEventId", "last_event_id", "replay", "annotate", "view"}
)
"""What says in a query what is asked for."""

_UNESCAPED = "/:@~,"
"""Of channel names and between them, what a query may hold as it is (RFC 3986 3.4)."""

_EXAMPLE = '{"channels": ["a", "b"]}'


class View(StrEnum):
    """As what token streams are shown."""

    NORMAL = "normal"
    """By events that are the same for every vendor."""
    RAW = "raw"
    """By the upstream's events, as they were."""
    SNAPSHOT = "snapshot"
    """As the normal view, and what came before is one event."""


class Asked(NamedTuple):
    """Nothing in it has been looked at yet, but for its shape."""

    channels: Sequence[str]
    user: str | None
    last_event_id: str | None
    replay: int | None
    annotate: bool = False
    view: View = View.NORMAL

    def url(self, path: str, most: int) -> str:
        """Where GET asks for the same, but for where it begins; in ASCII. Empty where that would be
        longer than ``most`` bytes."""
        channels = ",".join(dict.fromkeys(self.channels))
        if len(channels) > most:  # to encode it all would take its time
            return ""
        fields = {"channels": channels, "user": self.user or ""}
        if self.annotate:
            fields["annotate"] = "true"
        if self.view is not View.NORMAL:
            fields["view"] = self.view
        given = {name: value for name, value in fields.items() if value}
        url = f"{path}?{urlencode(given, safe=_UNESCAPED, quote_via=quote)}"
        return url if len(url) <= most else ""


class Body(Struct, forbid_unknown_fields=True):
    """What is asked for, as it is written in JSON."""

    channels: list[str] = []
    user: str | None = None
    lastEventId: str | None = None  # noqa: N815  # as it is called on the wire
    replay: int | float | None = None
    annotate: bool = False
    view: View = View.NORMAL


_decode = msgspec.json.Decoder(Body).decode


def in_query(request: Request, path: str) -> Asked:
    """What is asked for at ``path`` or below it, whether or not it is annotated. Raises
    BadRequest."""
    replay = request.first("replay")
    if replay is not None and not (
        replay.isascii() and replay.isdigit() and len(replay) <= MAX_REPLAY_DIGITS
    ):
        raise BadRequest("replay is a whole number of events to begin with, as in replay=10.")
    return Asked(
        _named(request, path),
        request.first("user"),
        request.first("lastEventId", "last_event_id"),
        int(replay) if replay is not None else None,
        view=_view(request),
    )


def _view(request: Request) -> View:
    text = request.first("view")
    if text is None:
        return View.NORMAL
    try:
        return View(text)
    except ValueError:
        raise BadRequest(f"view is one of {', '.join(View)}.") from None


def is_annotated(request: Request) -> bool:
    """Whether the query asks for an annotated stream. Raises BadRequest."""
    text = request.first("annotate")
    if text not in (None, "true", "false"):
        raise BadRequest("annotate is true or false.")
    return text == "true"


def in_body(request: Request) -> Asked:
    """The same of a POST, whose query says nothing of it. Raises BadRequest and
    UnsupportedMediaType."""
    if request.media_type != JSON:
        raise UnsupportedMediaType(
            f"A stream is asked for in {JSON}, as in {_EXAMPLE}; or with GET, in the query."
        )
    twice = sorted(IN_QUERY.intersection(name for name, _ in request.query))
    if twice:
        raise BadRequest(
            f"What is asked for with POST stands in the body, as in {_EXAMPLE}; leave"
            f" {' and '.join(twice)} out of the query."
        )
    try:
        body = _decode(request.body)
    except msgspec.ValidationError as error:
        raise BadRequest(
            f"This asks for no stream: {sentence(error)} Its members are"
            f" {', '.join(Body.__struct_fields__)}, as in {_EXAMPLE}."
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"This is no JSON in UTF-8: {sentence(error)}") from None
    replay = body.replay
    if replay is not None and not (
        0 <= replay < 10**MAX_REPLAY_DIGITS and float(replay).is_integer()
    ):
        raise BadRequest('replay is a whole number of events to begin with, as in "replay": 10.')
    return Asked(
        body.channels,
        body.user,
        body.lastEventId or None,
        int(replay) if replay is not None else None,
        body.annotate,
        body.view,
    )


def _named(request: Request, path: str) -> list[str]:
    names = request.all("channel")
    for listed in request.all("channels"):
        names += listed.split(",")
    if request.path != path:
        names.append(request.path[len(path) + 1 :])
    return names
