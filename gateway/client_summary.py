"""An open stream in a few words, as operators are told of it.

What tells of thousands of clients looks at each for a microsecond: only those that are told of are
summed up.
"""

from collections.abc import Callable
from enum import StrEnum

import msgspec
import trio

from gateway.happenings import first_names
from gateway.hub_client import Client
from gateway.names import comes_unasked
from gateway.stream_state import State


class Standing(StrEnum):
    """How a stream stands, to those who look at it."""

    LIVE = "live"
    BEHIND = "behind"
    """Something waits for it."""
    REPLAYING = "replaying"
    ENDING = "ending"


class ClientSummary(msgspec.Struct, rename="camel"):
    """``channels`` counts those that were asked for, of which ``names`` has a few; ``delivered``,
    ``dropped``, ``replayed`` and ``gaps`` are counted since ``opened_at``, in ms."""

    id: str
    node: str
    user: str | None
    address: str
    state: str
    lane: str
    channels: int
    names: list[str]
    opened_at: int
    position: str
    delivered: int
    dropped: int
    replayed: int
    gaps: int
    queued_frames: int
    queued_bytes: int
    behind_seconds: float


def standing(client: Client) -> Standing:
    """A client of the response lane always has an outbox, and is behind when that holds something.
    One that is closed was ending a moment ago."""
    match client.state:
        case State.LIVE:
            return Standing.LIVE
        case State.BEHIND:
            return Standing.BEHIND if client.waits else Standing.LIVE
        case State.REPLAYING:
            return Standing.REPLAYING
    return Standing.ENDING


def queued_bytes(client: Client) -> int:
    """What waits to be written, in bytes."""
    waiting = client.outbox.bytes if client.outbox is not None else 0
    if client.staged:
        waiting += sum(len(data) for data, _ in client.staged)
    return waiting


def behind_seconds(client: Client) -> float:
    """For how long something has waited for a client that is not replaying."""
    if client.state not in (State.BEHIND, State.ENDING) or not client.waits:
        return 0.0
    return trio.current_time() - client.behind_since


def summary(
    client: Client, node: str, now_ms: int, stands: Callable[[Client], object]
) -> ClientSummary:
    """``node`` holds it; ``stands`` says up to where a live client has been given all."""
    state = standing(client)
    return ClientSummary(
        id=client.id,
        node=node,
        user=client.user,
        address=client.address,
        state=state,
        lane="direct" if client.sock is not None else "response",
        channels=sum(not comes_unasked(channel.name) for channel in client.channels),
        names=first_names(client.channels),
        opened_at=now_ms - int((trio.current_time() - client.opened_at) * 1000),
        position=str(stands(client) if state is Standing.LIVE else client.position),
        delivered=client.written,
        dropped=client.dropped,
        replayed=client.from_history,
        gaps=client.gaps,
        queued_frames=client.queued,
        queued_bytes=queued_bytes(client),
        behind_seconds=round(behind_seconds(client), 3),
    )
