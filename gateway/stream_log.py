"""The two lines that the log has of each stream: opened, and closed with what became of it.

Those of polls are for debugging, as they come every few seconds from each of their askers. A line
that is not to be written costs a look: of a storm a few are written, and the rest is summed up.
"""

import logging

import trio

from gateway import logs
from gateway.hub_client import Client
from gateway.names import comes_unasked
from gateway.position import Position, Resume, Start
from gateway.stream_state import Reason

MAX_NAMES = 3
"""Channels of a stream that a line names; it has the number of all."""

OPENED, CLOSED = "stream opened", "stream closed"
POLLING, POLLED = "poll begun", "poll over"

_log = logging.getLogger("gateway.streams")


def opened(client: Client, resume: Resume | int) -> None:
    """``client`` is open, and begins where ``resume`` says."""
    sentence = POLLING if client.is_poll else OPENED
    level = logging.DEBUG if client.is_poll else logging.INFO
    if not _is_wanted(sentence, level):
        return
    names = [channel.name for channel in client.channels if not comes_unasked(channel.name)]
    told = _who(client) | {
        "lane": "direct" if client.sock is not None else "response",
        "channels": len(names),
        "names": names[:MAX_NAMES],
        "resumed": _resumed(resume),
    }
    _log.log(level, sentence, told, extra=logs.ALLOWED)


def closed(client: Client, reason: Reason) -> None:
    """``client`` is about to be closed; what still waits for it is not given any more."""
    sentence = POLLED if client.is_poll else CLOSED
    level = logging.DEBUG if client.is_poll else logging.INFO
    if not _is_wanted(sentence, level):
        return
    told = _who(client) | {
        "reason": str(reason),
        "seconds": trio.current_time() - client.opened_at,
        "delivered": client.written,
        "replayed": client.from_history,
        "dropped": client.dropped,
        "gaps": client.gaps,
        "unsent": client.queued,
    }
    _log.log(level, sentence, told, extra=logs.ALLOWED)


def _is_wanted(sentence: str, level: int) -> bool:
    return _log.isEnabledFor(level) and logs.allows(_log.name, sentence, level)


def _who(client: Client) -> dict[str, object]:
    return {
        "client": client.id,
        "request": client.request_id,
        "user": client.user,
        "address": client.address or None,
    }


def _resumed(resume: Resume | int) -> str | None:
    """Where a stream begins, unless that is now."""
    match resume:
        case int(count):
            return f"newest {count}"
        case Position():
            return str(resume)
        case Start.NOW:
            return None
        case Start():
            return str(resume.value)
    return str(resume)
