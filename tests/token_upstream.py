"""A fake upstream for load: chat completions at a given pace, hundreds at a time, on a few percent
of a core. It knows no faults (`upstreams` does); it counts calls.

A request's last message is what `prompt` makes; the answer's tokens are those of `token`, so that
any text says whose it is, and whether something is missing. ``GET /_calls`` tells of each key how
often it was called for and how many answers were sent whole. As a program it prints its URL.
"""

import json
import select
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

TICK_SECONDS = 0.01
READ_BYTES = 64 * 1024
MARK = "tell:"

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LAST = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"fake","choices":'
    b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)


def prompt(key: str, count: int, rate: float, delay: float = 0.0) -> str:
    """So many tokens, so many a second, the first one after ``delay`` seconds. A key is of letters
    and digits."""
    return f"{MARK}{key}:{count}:{rate}:{delay}"


def token(key: str, number: int) -> str:
    return f"{key}.{number} "


def text(key: str, count: int) -> str:
    return "".join(token(key, number) for number in range(count))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _block(key: str, number: int) -> bytes:
    content = json.dumps(token(key, number)).encode()
    return (
        b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"fake","choices":'
        b'[{"index":0,"delta":{"content":%b},"finish_reason":null}]}\n\n' % content
    )


@dataclass
class Telling:
    """An answer that is being sent."""

    key: str
    count: int
    rate: float
    began: float
    sent: int = 0

    def next_bytes(self, now: float) -> bytes:
        """What is due by now."""
        due = min(self.count, int((now - self.began) * self.rate))
        data = b"".join(_chunk(_block(self.key, number)) for number in range(self.sent, due))
        self.sent = max(self.sent, due)
        if self.sent == self.count:
            data += _chunk(LAST) + b"0\r\n\r\n"
        return data


@dataclass
class Connection:
    socket: socket.socket
    received: bytes = b""
    unsent: bytes = b""
    telling: Telling | None = None


@dataclass
class Upstream:
    listener: socket.socket
    connections: dict[int, Connection] = field(default_factory=dict)
    telling: set[int] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    complete: Counter[str] = field(default_factory=Counter)

    def serve(self) -> None:
        self.poll = select.epoll()
        self.poll.register(self.listener, select.EPOLLIN)
        due = time.monotonic()
        while True:
            due = max(due + TICK_SECONDS, time.monotonic())
            while (left := due - time.monotonic()) > 0:
                for descriptor, _ in self.poll.poll(left):
                    self._readable(descriptor)
            self._tick()

    def _readable(self, descriptor: int) -> None:
        if descriptor == self.listener.fileno():
            with suppress(BlockingIOError):
                while True:
                    accepted, _ = self.listener.accept()
                    accepted.setblocking(False)
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.connections[accepted.fileno()] = Connection(accepted)
                    self.poll.register(accepted, select.EPOLLIN)
            return
        connection = self.connections[descriptor]
        try:
            data = connection.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(descriptor)
            return
        connection.received += data
        head, found, body = connection.received.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
        if found and len(body) >= sum(lengths):
            connection.received = b""
            self._answer(descriptor, connection, head.split(b" ")[1], body)

    def _answer(self, descriptor: int, connection: Connection, path: bytes, body: bytes) -> None:
        if path == b"/_calls":
            told = {key: [calls, self.complete[key]] for key, calls in self.calls.items()}
            document = json.dumps(told).encode()
            head = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            connection.socket.setblocking(True)
            connection.socket.sendall(head % len(document) + document)
            connection.socket.setblocking(False)
            return
        content = json.loads(body)["messages"][-1]["content"]
        key, count, rate, delay = content.removeprefix(MARK).split(":")
        self.calls[key] += 1
        connection.unsent = HEAD
        began = time.monotonic() + float(delay)
        connection.telling = Telling(key, int(count), float(rate), began)
        self.telling.add(descriptor)

    def _tick(self) -> None:
        now = time.monotonic()
        for descriptor in tuple(self.telling):
            connection = self.connections[descriptor]
            telling = connection.telling
            assert telling is not None
            if not connection.unsent:
                connection.unsent = telling.next_bytes(now)
            if connection.unsent:
                try:
                    sent = connection.socket.send(connection.unsent)
                except BlockingIOError:
                    continue
                except OSError:
                    self._close(descriptor)
                    continue
                connection.unsent = connection.unsent[sent:]
                if not connection.unsent and telling.sent == telling.count:
                    self.complete[telling.key] += 1
                    connection.telling = None
                    self.telling.discard(descriptor)

    def _close(self, descriptor: int) -> None:
        connection = self.connections.pop(descriptor)
        self.telling.discard(descriptor)
        self.poll.unregister(descriptor)
        connection.socket.close()


def _main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}/v1\n")
    sys.stdout.flush()
    Upstream(listener).serve()


if __name__ == "__main__":
    _main()
