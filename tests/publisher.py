"""A publisher that believes what it is told, and writes down what became of each of its events."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from typing import Any, TypeAlias

import trio
from process import READ_BYTES
from verdict import Outcome, Sent

from gateway.position import Position

ANSWER_WITHIN = 15.0
"""Seconds after which an unanswered request is given up: longer than any node takes to answer."""

RETRY_AFTER = 0.05

BY_A_NODE = re.compile(rb"(?i)\r\ncontent-type: *application/")

Document: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class Pending:
    """An event whose fate is not settled yet."""

    id: str
    data: str
    channels: tuple[str, ...]
    began: float
    outcome: Outcome = Outcome.REFUSED
    """What is known of it: once unknown, it is so until it is acknowledged."""
    position: Position | None = None

    def document(self) -> str:
        return json.dumps({"channels": self.channels, "data": self.data, "id": self.id})

    def take(self, answer: Document) -> None:
        """Note what a node said of it."""
        if "id" in answer:
            self.position = Position.parse(answer["id"])
            assert self.position is not None, answer
            self.outcome = Outcome.ACKNOWLEDGED
            return
        assert answer["status"] == 503, answer
        outcome = answer.get("outcome", "refused")
        assert outcome in ("refused", "unknown"), answer
        if outcome == "unknown":
            self.outcome = Outcome.UNKNOWN

    def settled(self) -> Sent:
        return Sent(
            self.data, self.channels, self.outcome, self.position, self.began, trio.current_time()
        )


class Publisher:
    """Publishes "<name>/0", "<name>/1" and so on to each of ``targets`` in turn, ``batch`` in a
    request, the next one when all of these are settled.

    Without ``retries`` each event is sent once; with them it is sent, under one ``id``, until a
    node acknowledges it. When the connection is lost the next of ``ports`` is taken.
    """

    def __init__(
        self,
        name: str,
        targets: Sequence[tuple[str, ...]],
        ports: Sequence[int],
        ledger: list[Sent],
        *,
        batch: int = 10,
        pause: float = 0.02,
        retries: bool = True,
        padding: int = 0,
    ) -> None:
        """``pause`` is in seconds, between requests; ``padding`` in bytes, of each event."""
        self.stopping = False
        self.repeats = 0
        """Events that had to be sent once more."""
        self._targets = cycle(targets)
        self._ports: Iterator[int] = cycle(ports)
        self._ledger = ledger
        self._batch = batch
        self._pause = pause
        self._retries = retries
        self._padding = "." * padding
        self._names = (f"{name}/{number}" for number in count())
        self._stream: trio.SocketStream | None = None

    async def run(self) -> None:
        """Publish until told to stop; what is not settled by then is sent once more at most."""
        try:
            while not self.stopping:
                await self.publish(self._batch)
                await trio.sleep(self._pause)
        finally:
            await self.hang_up()

    async def publish(self, events: int) -> None:
        """Publish so many in one request, and again those that need it, until all are settled."""
        now = trio.current_time()
        batch = [
            Pending(name, name + self._padding, channels, now)
            for name, channels in zip(islice(self._names, events), self._targets, strict=False)
        ]
        while batch:
            await self._send(batch)
            again = []
            for event in batch:
                is_settled = event.outcome is Outcome.ACKNOWLEDGED or not self._retries
                if is_settled or self.stopping:
                    self._ledger.append(event.settled())
                else:
                    again.append(event)
            batch = again
            self.repeats += len(again)
            if batch:
                await trio.sleep(RETRY_AFTER)

    async def _send(self, batch: list[Pending]) -> None:
        """Send all of ``batch`` once, and note what is said of each."""
        body = "".join(f"{event.document()}\n" for event in batch).encode()
        kind = "application/json" if len(batch) == 1 else "application/x-ndjson"
        try:
            stream = await self._connected()
        except OSError:
            return  # nobody was there to take it
        answers = None
        with trio.move_on_after(ANSWER_WITHIN):
            answers = await _post(stream, kind, body)
        if answers is None:
            await self.hang_up()
            for event in batch:
                event.outcome = Outcome.UNKNOWN
        elif len(answers) < len(batch):
            [whole] = answers  # the request itself was refused
            for event in batch:
                event.take(whole)
        else:
            for event, answer in zip(batch, answers, strict=True):
                event.take(answer)

    async def _connected(self) -> trio.SocketStream:
        if self._stream is None:
            self._stream = await trio.open_tcp_stream("127.0.0.1", next(self._ports))
        return self._stream

    async def hang_up(self) -> None:
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)
        self._stream = None


async def _post(stream: trio.SocketStream, kind: str, body: bytes) -> list[Document] | None:
    """What the node answers, a document for each line; None if the connection is lost, or if what
    answers is a balancer that knows no more than that."""
    head = f"POST /publish HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    answer = b""
    try:
        await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while (lines := _whole(answer)) is None:
            if not (data := await stream.receive_some(READ_BYTES)):
                return None
            answer += data
    except trio.BrokenResourceError:
        return None
    if BY_A_NODE.search(answer) is None:
        return None
    return [json.loads(line) for line in lines.splitlines()]


def _whole(answer: bytes) -> bytes | None:
    """The body of ``answer`` if all of it is there."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return None
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    assert length is not None, head
    return body if len(body) >= int(length[1]) else None
