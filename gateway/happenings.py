"""What has just happened to streams, for those who watch: openings, ends, drops and gaps. Pure.

1. It is kept while somebody watches and not otherwise: who notes something looks first.
2. The latest MOST are kept until they are taken; ``omitted`` counts the others.
3. What one stream drops for one reason is one happening, however many events that are; of those
   there are MOST_DROPPING at most, so that a crowd that drops leaves room for what else happens.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count, islice
from typing import Protocol

import msgspec

from gateway.names import comes_unasked

MOST = 50
"""Of one worker between two reports: as many lines as a page has, and a few KiB."""

MOST_DROPPING = MOST // 2
"""Of those, drops: where thousands are behind, the others cost a look each and no more."""

MOST_NAMES = 3
"""Channels of a stream that are named, as in a line of the log."""

NAME_LENGTH = 100
"""Characters of a channel's name that are shown among others."""

OPENED, CLOSED, DROPPED, GAP = "opened", "closed", "dropped", "gap"


class Named(Protocol):
    @property
    def name(self) -> str: ...


class Subject(Protocol):
    """Whom something happens to."""

    @property
    def id(self) -> str: ...

    @property
    def user(self) -> str | None: ...

    @property
    def address(self) -> str: ...

    @property
    def channels(self) -> Sequence[Named]: ...


class Happening(msgspec.Struct):
    """``reason`` is the word that counts it in metrics; ``seconds`` is how long a stream that is
    closed was open, and None of all others. ``count`` is of events dropped, else 1."""

    at: int
    kind: str
    client: str
    user: str | None
    address: str
    reason: str
    count: int
    seconds: float | None
    channels: list[str]


def first_names(channels: Sequence[Named]) -> list[str]:
    """Of a few of the channels that were asked for."""
    asked = (channel.name for channel in channels if not comes_unasked(channel.name))
    return [shortened(name) for name in islice(asked, MOST_NAMES)]


def shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 3]}..."


class Happenings:
    def __init__(self, now_ms: Callable[[], int]) -> None:
        """``now_ms`` is the wall clock."""
        self._now_ms = now_ms
        self._serial = count()
        self._kept: OrderedDict[object, Happening] = OrderedDict()
        self._omitted = self._dropping = 0

    def add(
        self,
        kind: str,
        client: Subject,
        reason: str,
        *,
        seconds: float | None = None,
        channels: Sequence[str] | None = None,
    ) -> None:
        """``channels`` are those that it is about, unless that are the client's."""
        self._keep(next(self._serial), kind, client, reason, 1, seconds, channels)

    def dropped(self, client: Subject, reason: str, events: int) -> None:
        """The client was not given so many events that it was owed."""
        if not events:
            return
        known = self._kept.get((client.id, reason))
        if known is not None:
            known.count += events
        elif self._dropping < MOST_DROPPING:
            self._dropping += 1
            self._keep((client.id, reason), DROPPED, client, reason, events)
        else:
            self._omitted += 1

    def _keep(
        self,
        key: object,
        kind: str,
        client: Subject,
        reason: str,
        events: int,
        seconds: float | None = None,
        channels: Sequence[str] | None = None,
    ) -> None:
        if len(self._kept) >= MOST:
            self._kept.popitem(last=False)
            self._omitted += 1
        if channels is None:
            names = first_names(client.channels)
        else:
            names = [shortened(name) for name in channels[:MOST_NAMES]]
        self._kept[key] = Happening(
            self._now_ms(),
            kind,
            client.id,
            client.user,
            client.address,
            reason,
            events,
            None if seconds is None else round(seconds, 3),
            names,
        )

    def take(self) -> tuple[list[Happening], int]:
        """What has happened since this was asked last, in order, and how much more that was."""
        taken, omitted = list(self._kept.values()), self._omitted
        self._kept.clear()
        self._omitted = self._dropping = 0
        return taken, omitted
