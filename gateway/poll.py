"""A poll: a stream that lasts until it has something to say, and says it in one page.

It is a client of the response lane like any other, so positions, notices and policies are those of
a stream, and a client can change between the two at any event. Rules:

1. Everything up to ``lastEventId`` has been given, and nothing later: what the page did not take
   comes with the next poll. Only where that says ``.closed`` nothing more is owed.
2. Only ``patience`` is a wait for events. What is there already, in history or queued, is taken
   before and after it, and never waited for.
3. A notice goes with the event that it stands before: a page that has no room for the event ends
   before both.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec
import trio

from gateway.event import Frame
from gateway.hub import Hub
from gateway.hub_client import Client
from gateway.position import Closed, Position, parse_resume
from gateway.sse import Parser, ServerSentEvent
from gateway.stream_state import Reason, State
from gateway.streams import EventStream, Streams

PAGE_FRAMES = 256
"""Events in one answer: as many as are read of history at a time."""

PAGE_BYTES = 128 * 1024
"""Of JSON in one answer, unless one event and the notices before it are longer: what asking again
costs is little beside it, and so is what an answer holds that is read slowly."""

_NOTICES = frozenset({"dropped", "gap"})
"""The control events that a poll hands on; the others are about the stream that it is not."""


@dataclass(frozen=True, slots=True)
class Polled:
    """``events`` are JSON objects; everything up to ``last_event_id`` has been given."""

    events: Sequence[msgspec.Raw]
    last_event_id: str


async def poll(
    streams: Streams, hub: Hub, stream: EventStream, patience: trio.CancelScope
) -> Polled:
    """What comes on ``stream``, once anything does.

    ``patience`` is entered when there is nothing yet; when it is over, by its deadline or because
    it was cancelled, the answer is what there is. Raises Unavailable as `Streams.open` does.
    """
    async with streams.responding(stream) as client:
        page = Page(stream.channels, client.position)
        await _take_what_is_there(page, streams, hub, client)
        if not page.begun:
            with patience:
                while not client.waits and _is_open(client):
                    await streams.stage_next(client)
            await _take_what_is_there(page, streams, hub, client)
        polled = Polled(page.events, _last_event_id(page, hub, client))
        hub.close(client, Reason.POLLED)
    return polled


async def _take_what_is_there(page: "Page", streams: Streams, hub: Hub, client: Client) -> None:
    while client.state is not State.CLOSED and not page.full:
        if client.next_bytes():
            page.take(client)
            hub.end_given_channels(client)
        elif client.state is State.REPLAYING:
            await streams.stage_next(client)
        else:
            return


def _is_open(client: Client) -> bool:
    return client.state not in (State.ENDING, State.CLOSED)


def _last_event_id(page: "Page", hub: Hub, client: Client) -> str:
    if page.farewell is not None:
        return page.farewell
    if client.reason in (
        Reason.CLOSED,
        Reason.REPLACED,
    ):  # what the page had no room for is not owed any more
        return str(Closed(page.reached))
    if page.full or client.state is State.CLOSED or page.ends_with_event:
        return str(page.reached)
    return str(client.position if client.state is State.ENDING else hub.proven(client))


class Page:
    """What a poll is answered with, as it fills."""

    def __init__(self, channels: Collection[str], position: Position) -> None:
        """Of a client of ``channels`` that has been given everything up to ``position``."""
        self._channels = frozenset(channels)
        self._given: list[bytes] = []
        self._notices: list[bytes] = []  # which stand before the next event
        self._frames = self._bytes = 0
        self.reached = position
        """That of the last event."""
        self.full = False
        self.farewell: str | None = None
        """The last id of a client that is to go for good."""

    @property
    def begun(self) -> bool:
        """Whether there is anything to answer with."""
        return bool(self._given or self._notices or self.farewell)

    @property
    def ends_with_event(self) -> bool:
        return bool(self._given and not self._notices)

    @property
    def events(self) -> Sequence[msgspec.Raw]:
        return [*map(msgspec.Raw, self._given if self.full else self._given + self._notices)]

    def take(self, client: Client) -> None:
        """Take what is staged for ``client``, in order, until that is all or the page is full."""
        while client.staged and not self.full:
            data, frame = client.staged[0]
            if frame is None:
                self._take_control(bytes(data))
            elif not self._take_frame(bytes(data), frame):
                return
            client.credit(len(data))

    def _take_control(self, block: bytes) -> None:
        parser = Parser()
        for event in parser.receive_data(block):
            if event.event in _NOTICES:
                self._notices.append(_json(event, ()))
        if isinstance(parse_resume(parser.last_event_id), Closed):
            self.farewell = parser.last_event_id

    def _take_frame(self, block: bytes, frame: Frame) -> bool:
        """Take an event with the notices before it, if there is room for them."""
        parser = Parser(max_line_bytes=len(block), max_event_bytes=len(block))
        through = [name for name in frame.channels if name in self._channels]
        more = list(self._notices)
        for event in parser.receive_data(block):  # one, unless somebody else writes into Redis
            # A gap that came as a frame is of no channel.
            more.append(_json(event, through if event.event not in _NOTICES else ()))
        size = self._bytes + sum(len(text) + 1 for text in more)
        if self._frames and (self._frames == PAGE_FRAMES or size > PAGE_BYTES):
            self.full = True
            return False
        self._given += more
        self._notices.clear()
        self._frames += 1
        self._bytes = size
        self.reached = frame.position
        return True


def _json(event: ServerSentEvent, channels: Sequence[str]) -> bytes:
    return msgspec.json.encode(
        {
            "id": event.last_event_id or None,
            "event": event.event,
            "data": event.data,
            "channel": channels[0] if channels else None,
            "channels": channels,
        }
    )
