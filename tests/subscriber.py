"""A client that comes back for as long as it is asked to, and writes down all that it was told."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import cycle

import trio
from process import READ_BYTES
from verdict import Dropped, Gap, Received, Record, Recording

from gateway.position import Position
from gateway.sse import Parser, ServerSentEvent

RECONNECT_AFTER = 0.05
"""Seconds between two connections: short, so that a test has many, and not a busy loop."""

_COOKIE = re.compile(r"(?i)\r\nset-cookie: *([^;\r]+)")


class Dechunker:
    """The data of the whole chunks of a body; what is cut counts for nothing, as in a browser."""

    def __init__(self) -> None:
        self._buffer = b""

    def receive_data(self, data: bytes) -> bytes:
        self._buffer += data
        parts, at = [], 0
        while (line_end := self._buffer.find(b"\r\n", at)) >= 0:
            begin = line_end + 2
            end = begin + int(self._buffer[at:line_end], 16)
            if len(self._buffer) < end + 2:
                break
            parts.append(self._buffer[begin:end])
            at = end + 2
        self._buffer = self._buffer[at:]
        return b"".join(parts)


class Subscriber:
    """Connects to ``ports`` in turn, each time with the last id that it has seen, and with a cookie
    that has been set by then."""

    def __init__(
        self,
        name: str,
        channels: Sequence[str],
        ports: Sequence[int],
        *,
        stay: float = math.inf,
        last_event_id: str = "",
        keeps_cookies: bool = True,
    ) -> None:
        """``stay`` is for how many seconds it keeps a connection."""
        self.recording = Recording(name, frozenset((*channels, "global")))
        self.stay = stay
        self.connections = 0
        self.received: set[str] = set()
        self._path = "/events?channels=" + ",".join(channels)
        self._last_event_id = last_event_id
        self._keeps_cookies = keeps_cookies
        self._cookie = ""
        self._ports: Iterator[int] = cycle(ports)

    async def run(self) -> None:
        """Until cancelled."""
        for port in self._ports:
            try:
                with trio.move_on_after(self.stay):
                    await self._follow(port)
            except (OSError, trio.BrokenResourceError):
                pass  # the node is gone, or was never there
            await trio.sleep(RECONNECT_AFTER)

    async def _follow(self, port: int) -> None:
        """One connection, from the request to its end."""
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(self._request())
            data = b""
            while b"\r\n\r\n" not in data:
                if not (more := await stream.receive_some(READ_BYTES)):
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                return
            self.connections += 1
            if self._keeps_cookies and (found := _COOKIE.search(head.decode("latin-1"))):
                self._cookie = found[1]
            chunks, parser = Dechunker(), Parser()
            while True:
                for event in parser.receive_data(chunks.receive_data(data)):
                    self._take(event)
                self._last_event_id = parser.last_event_id or self._last_event_id
                if not (data := await stream.receive_some(READ_BYTES)):
                    return

    def _request(self) -> bytes:
        lines = [f"GET {self._path} HTTP/1.1", "Host: x", "Accept: text/event-stream"]
        if self._last_event_id:
            lines.append(f"Last-Event-ID: {self._last_event_id}")
        if self._cookie:
            lines.append(f"Cookie: {self._cookie}")
        return "\r\n".join([*lines, "", ""]).encode()

    def _take(self, event: ServerSentEvent) -> None:
        recording = self.recording
        if event.event == "connected":
            recording.start = recording.start or Position.parse(event.last_event_id)
        elif event.event not in ("closed", "reconnect"):
            recording.records.append(_record(event))
            self.received.add(event.data)


def _record(event: ServerSentEvent) -> Record:
    if event.event == "gap":
        told = json.loads(event.data)
        return Gap(frozenset(told["channels"]), told["reason"], trio.current_time())
    if event.event == "dropped":
        return Dropped(json.loads(event.data)["count"])
    return Received(Position.parse(event.last_event_id), event.data)
