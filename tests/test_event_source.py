"""The stress test's EventSource and its HTTP, against a server that says what a test has it say."""

import socket
import threading
from collections.abc import Callable, Iterator
from itertools import cycle

import pytest
from stress.attempt import Outcome, meaning
from stress.event_source import Ended, EventSource, TurnedAway
from stress.http import BrokenConnection, Connection, Target
from stress.stamp import place

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Open = Callable[..., EventSource]


def chunk(text: str) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text.encode())


class Server:
    """Answers each connection's first request with the next of ``answers``, and ends it."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.requests: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    if not (data := connection.recv(4096)):
                        return
                    request += data
                self.requests.append(request.decode())
                connection.sendall(self.answers.pop(0))

    def stop(self) -> None:
        """It ends at a connection without a request."""
        socket.create_connection(("127.0.0.1", self.port)).close()
        self.thread.join()
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def source(server: Server) -> Iterator[EventSource]:
    targets = cycle([Target.parse(f"http://127.0.0.1:{server.port}/base/")])
    source = EventSource(targets, "/events?channels=a", "secret")
    yield source
    source.close()


def all_data(source: EventSource) -> list[str]:
    """Of all events, to the end of the stream."""
    found = []
    while (events := source.receive()) is not None:
        found += [event.data for event in events]
    source.close()
    return found


def test_it_comes_back_with_the_last_id_and_what_was_cut_counts_for_nothing(
    server: Server, source: EventSource
) -> None:
    whole = chunk("retry: 250\nid: 1-0\ndata: a\n\n") + chunk("id: 2-0\n\nid: 3-0\nda")
    server.answers = [STREAM + whole, STREAM + chunk("id: 3-0\ndata: b\n\n") + b"0\r\n\r\n"]
    source.open()
    assert all_data(source) == ["a"]
    assert (source.last_event_id, source.wait) == ("2-0", 0.25)
    source.open()
    assert all_data(source) == ["b"]
    first, second = server.requests
    assert first.startswith("GET /base/events?channels=a HTTP/1.1\r\n")
    assert f"\r\nHost: 127.0.0.1:{server.port}\r\n" in first
    assert "\r\nAccept: text/event-stream\r\n" in first
    assert "\r\nAuthorization: Bearer secret\r\n" in first
    assert "Last-Event-ID" not in first
    assert "\r\nLast-Event-ID: 2-0\r\n" in second


def test_a_stream_that_is_closed_for_good_ends_behind_its_last_event(
    server: Server, source: EventSource
) -> None:
    server.answers = [STREAM + chunk("id: 1-0\ndata: last\n\nid: 1-0.closed\n\n")]
    source.open()
    events = source.receive()
    assert events is not None
    assert [event.data for event in events] == ["last"]
    with pytest.raises(Ended):
        source.receive()
    assert place(source.last_event_id) == place("1-0")


@pytest.mark.parametrize("status", ["204 No Content", "403 Forbidden"])
def test_it_stays_away_where_it_is_told_to(
    server: Server, source: EventSource, status: str
) -> None:
    server.answers = [f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()]
    with pytest.raises(Ended, match=status[:3]):
        source.open()


@pytest.mark.parametrize("status", ["503 Service Unavailable", "429 Too Many Requests"])
def test_it_waits_as_long_as_retry_after_says(
    server: Server, source: EventSource, status: str
) -> None:
    server.answers = [f"HTTP/1.1 {status}\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n".encode()]
    with pytest.raises(TurnedAway, match=status[:3]):
        source.open()
    assert 7 <= source.wait <= 7.7
    server.answers = [STREAM]
    source.open()
    assert source.wait == 3.0, "as before"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"SSH-2.0-OpenSSH\r\n\r\n"])
def test_what_is_no_answer_is_a_broken_connection(
    server: Server, source: EventSource, answer: bytes
) -> None:
    server.answers = [answer]
    with pytest.raises(BrokenConnection):
        source.open()


def test_an_answer_is_whole_or_broken(server: Server) -> None:
    target = Target.parse(f"127.0.0.1:{server.port}")
    for length, is_whole in ((2, True), (3, False)):
        server.answers = [b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n{}" % length]
        connection = Connection(target, timeout=5)
        assert connection.request("POST", "/publish", body=b"x") == 202
        if is_whole:
            assert connection.receive_all() == b"{}"
        else:
            with pytest.raises(BrokenConnection):
                connection.receive_all()
        connection.close()
    assert "\r\nContent-Length: 1\r\n" in server.requests[0]


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a:port"])
def test_a_target_that_is_none_is_said(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # urlsplit says some of it in its own words
        Target.parse(url)


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (202, b'{"id":"5-1"}', Outcome.TAKEN),
        (202, b"{}", Outcome.UNKNOWN),
        (503, b'{"outcome":"refused","detail":"later"}', Outcome.REFUSED),
        (503, b'{"outcome":"unknown"}', Outcome.UNKNOWN),
        (503, b"<html>no server is available</html>", Outcome.UNKNOWN),
        (502, b"[]", Outcome.UNKNOWN),
        (429, b'{"detail":"too fast"}', Outcome.REFUSED),
        (403, b"", Outcome.REFUSED),
    ],
)
def test_what_has_become_of_an_event(status: int, body: bytes, outcome: Outcome) -> None:
    attempt = meaning(status, body, "4")
    assert attempt.outcome is outcome
    assert bool(attempt.place) == (outcome is Outcome.TAKEN)
    assert bool(attempt.why) == (outcome is not Outcome.TAKEN)
    assert attempt.retry_after == (4 if outcome is Outcome.REFUSED else 0)
