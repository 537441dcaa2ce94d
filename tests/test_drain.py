"""How a node leaves: everybody is told, nothing hangs, and it is gone in the time that was set."""

import re
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial

import h11
import pytest
import trio
from process import PATIENCE, NodeProcess, eventually, in_parallel, node

LAST_WORDS = 1.0
"""Seconds beyond ``drain_seconds`` that a node gives to those that hold it up."""

SLACK = 2.0
"""Seconds that a busy machine may add."""

FAREWELL = rb'(?:\A|\n\n)retry: (\d+)\nevent: reconnect\ndata: {"reason":"draining"}\n\n\Z'


async def terminate(n: NodeProcess, number: signal.Signals = signal.SIGTERM) -> float:
    """Send the signal and wait until the node has ended well; how long it took."""
    start = time.monotonic()
    n.signal(number)
    assert await n.wait() == 0, n.output
    assert "Traceback" not in n.output
    return time.monotonic() - start


async def test_all_streams_are_told_and_ended_one_after_another() -> None:
    seconds = 2.0
    async with node("--drain-seconds", str(seconds)) as n:
        streams = [await n.open_stream(f"/events/a{i % 7}") for i in range(300)]
        for i in range(7):
            await n.publish(f"a{i}", "last")
        start = time.monotonic()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.until_end)
            took = await terminate(n)
    assert took < seconds + SLACK
    for stream in streams:
        assert re.search(FAREWELL, stream.body)
        assert b"data: last\n" in stream.body
    ended = sorted(stream.ended_at - start for stream in streams)
    for share in (0.1, 0.25, 0.5, 0.75, 1):
        at = ended[int(share * len(ended)) - 1]
        assert abs(at - share * seconds) < 0.5, ended


async def test_who_is_sent_away_is_back_soon() -> None:
    """After half of the delay that is set, jittered: sooner than `retry` tells at other times, and
    not together."""
    async with node("--retry", "2", "--drain-seconds", "0.2") as n:
        streams = [await n.open_stream("/events/a") for _ in range(50)]
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.until_end)
            await terminate(n)
    found = [re.search(FAREWELL, stream.body) for stream in streams]
    told = [int(match[1]) for match in found if match is not None]
    assert len(told) == 50
    assert 500 <= min(told) < 800
    assert 1200 < max(told) <= 1500


async def test_a_stream_over_http_1_0_is_told_and_closed() -> None:
    async with node("--drain-seconds", "0.2") as n:
        connection = await n.connect()
        await connection.send_all(b"GET /events/a HTTP/1.0\r\n\r\n")
        await n.until_clients(1)
        await terminate(n)
        received = b"".join([data async for data in connection])
    assert re.search(FAREWELL, received)


MORE_THAN_THE_KERNEL_TAKES = ("x" * 10_000,) * 60


async def read_nothing(n: NodeProcess, request: bytes) -> None:
    """Open a stream and leave it unread."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", n.port))
    connection = trio.SocketStream(sock)
    n.connections.append(connection)
    await connection.send_all(request)
    await n.until_clients(1)


async def stalled(n: NodeProcess, version: bytes) -> None:
    await read_nothing(n, b"GET /events/a HTTP/%b\r\nHost: x\r\n\r\n" % version)
    await n.publish("a", *MORE_THAN_THE_KERNEL_TAKES)
    await n.until_metric("clients_behind", 1)


async def stalled_in_history(n: NodeProcess) -> None:
    await n.publish("a", *MORE_THAN_THE_KERNEL_TAKES)
    await read_nothing(n, b"GET /events/a?replay=60 HTTP/1.1\r\nHost: x\r\n\r\n")
    await n.until_metric("clients_replaying", 1)


async def unfinished(n: NodeProcess, request: bytes) -> None:
    connection = await n.connect()
    await connection.send_all(request)
    await n.get("/healthz")  # by when it has been read


HINDRANCES: dict[str, Callable[[NodeProcess], Awaitable[None]]] = {
    "a stalled reader": partial(stalled, version=b"1.1"),
    "a stalled reader over HTTP/1.0": partial(stalled, version=b"1.0"),
    "a stalled reader of history": stalled_in_history,
    "half a head": partial(unfinished, request=b"GET /events/a HTTP/1.1\r\nHos"),
    "half a publish": partial(
        unfinished,
        request=b"POST /publish/a HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nhalf",
    ),
    "an idle connection": partial(unfinished, request=b""),
    "an idle connection that was used": partial(
        unfinished,
        request=b"POST /publish/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
    ),
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
async def test_a_drain_is_not_held_up_by(hindrance: str) -> None:
    seconds = 0.5
    async with node("--drain-seconds", str(seconds)) as n:
        await HINDRANCES[hindrance](n)
        streams = [await n.open_stream("/events/b") for _ in range(10)]
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.until_end)
            assert await terminate(n) < seconds + LAST_WORDS + SLACK
    assert all(re.search(FAREWELL, stream.body) for stream in streams)


async def test_a_publish_that_is_still_being_sent_is_taken_while_the_node_drains() -> None:
    async with node("--drain-seconds", "1") as n:
        connection = await n.connect()
        await connection.send_all(
            b"POST /publish/a HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf"
        )
        await n.get("/healthz")
        n.signal(signal.SIGTERM)
        await n.until("is draining")
        await refused(n)
        await connection.send_all(b"half")
        assert (await connection.receive_some()).startswith(b"HTTP/1.1 202 ")
        assert await n.wait() == 0


async def refused(n: NodeProcess) -> None:
    """Return once the node does not listen any more."""

    async def is_refused() -> bool:
        try:
            await (await trio.open_tcp_stream("127.0.0.1", n.port)).aclose()
        except OSError:
            return True
        return False

    await eventually(is_refused)


async def test_during_the_grace_the_node_is_not_ready_but_serves() -> None:
    async with node("--drain-grace", "1.5", "--drain-seconds", "0.2") as n:
        n.signal(signal.SIGTERM)
        await n.until("is draining")
        answer = await n.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reason"] == "draining"
        stream = await n.open_stream("/events/a")
        await n.publish("a", "in the grace")
        await stream.until(b"data: in the grace\n")
        await stream.until_end()
        assert re.search(FAREWELL, stream.body)
        assert await n.wait() == 0


async def test_ctrl_c_without_clients_ends_at_once() -> None:
    async with node() as n:
        assert await terminate(n, signal.SIGINT) < 1


async def test_a_second_signal_ends_at_once() -> None:
    async with node("--drain-seconds", "60") as n:
        for _ in range(3):
            await n.open_stream("/events/a")
        n.signal(signal.SIGTERM)
        await n.until("is draining")
        start = time.monotonic()
        n.signal(signal.SIGTERM)
        assert await n.wait() == 1
        assert time.monotonic() - start < 1


def parse(response: bytes) -> tuple[int, bytes]:
    """Status and body of ``response``, which must be one whole response."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    http.receive_data(response)
    head = http.next_event()
    assert isinstance(head, h11.Response), response
    body = b""
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data), response
        body += event.data
    return head.status_code, body


STREAM, EVENT_SOURCE = (
    b"GET /events/a HTTP/1.1\r\nHost: x\r\nAccept: %b\r\n\r\n" % accept
    for accept in (b"*/*", b"text/event-stream")
)
PUBLISH = b"POST /publish/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "answers"),
    [
        (STREAM, [(503, rb'"reason":"draining"'), (200, FAREWELL)]),
        (EVENT_SOURCE, [(200, FAREWELL)]),
        (PUBLISH, [(202, rb'^{"id":')]),
        (PROBE, [(200, b'"ok"')]),
    ],
    ids=["a stream", "an EventSource", "a publish", "a probe"],
)
async def test_what_waits_in_the_accept_queue_is_answered(
    request_: bytes, answers: list[tuple[int, bytes]]
) -> None:
    """It waits there because the node is stopped while it is told to leave."""
    async with node("--drain-seconds", "1") as n:
        await n.stop()
        connections = [await n.connect() for _ in range(200)]
        for connection in connections:
            await connection.send_all(request_)
        n.signal(signal.SIGTERM)
        n.signal(signal.SIGCONT)

        async def check(connection: trio.SocketStream) -> None:
            with trio.fail_after(PATIENCE):
                status, body = parse(b"".join([data async for data in connection]))
            assert any(status == told and re.search(why, body) for told, why in answers), body

        await in_parallel(partial(check, connection) for connection in connections)
        assert await n.wait() == 0
