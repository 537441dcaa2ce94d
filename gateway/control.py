"""The control events: what the gateway itself tells a client, as SSE blocks.

Only ``connected``, ``keepalive`` and ``closed`` carry an id. A keepalive has no data, so that an
EventSource dispatches nothing for it and still remembers where the stream stands.
"""

import random
import time
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from gateway import sse
from gateway.position import Closed, Position

TYPES = frozenset({"closed", "connected", "dropped", "gap", "keepalive", "reconnect"})
"""Event types that only the gateway uses: a publisher's ``gap`` would be believed."""

RETRY_JITTER = 0.5
"""Of the configured delay, either way: clients that were cut together do not return together."""


class Gap(StrEnum):
    """Why history no longer holds all that a client missed."""

    TRIMMED = "trimmed"
    UNKNOWN = "unknown"
    RESTARTED = "restarted"


def jittered(seconds: float) -> float:
    """``seconds``, more or less."""
    return seconds * random.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER)


def retry(seconds: float) -> bytes:
    """A jittered ``retry:`` around ``seconds``, to stand before the lines of another block: alone
    some parsers would hand it out as an event."""
    return b"retry: %d\n" % (jittered(seconds) * 1000)


def connected(
    client: str, position: Position | None, channels: Iterable[str], keepalive: float
) -> bytes:
    """``keepalive`` are the seconds of silence after which a keepalive comes. Without a position
    whoever is cut off at once begins anew."""
    data = {
        "clientId": client,
        "serverTime": time.time_ns() // 1_000_000,
        "keepalive": round(keepalive * 1000),
        "channels": list(channels),
    }
    return _block("connected", data, id=str(position) if position is not None else None)


def dropped(count: int) -> bytes:
    return b'event: dropped\ndata: {"count":%d}\n\n' % count


def gap(channels: Iterable[str], reason: Gap) -> bytes:
    return _block("gap", {"channels": list(channels), "reason": reason})


def reconnect(reason: str) -> bytes:
    return _block("reconnect", {"reason": reason})


def keepalive(position: Position) -> bytes:
    return sse.encode(None, event="keepalive", id=str(position))


def closed(position: Position, reason: str) -> bytes:
    """The last block of a stream that must not be resumed: its id is answered with 204.

    It has data, as clients that are built on eventsource-parser know no other ids.
    """
    return _block("closed", {"reason": reason}, id=str(Closed(position)))


def _block(event: str, data: object, id: str | None = None) -> bytes:
    return sse.encode(msgspec.json.encode(data).decode(), event=event, id=id)
