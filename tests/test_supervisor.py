"""Several workers: who dies is replaced, what is counted is of all, and all leave together.

The workers here have a memory bus each, so an event reaches the clients of one of them. Which
worker gets a connection is the kernel's choice: where it matters there are so many that each gets
some.
"""

import errno
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h11
import pytest
import trio
from process import (
    PATIENCE,
    NodeProcess,
    Stream,
    _start,
    child,
    eventually,
    in_parallel,
    lint,
    number,
)
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config import Config
from gateway.server import LAST_WORDS_SECONDS, listen_together
from gateway.supervisor import HUNG_ROUNDS, HUNG_SECONDS, OVERDUE_SECONDS, Supervisor
from gateway.worker import ORPHAN_SECONDS

SCRIPT = str(Path(__file__).with_name("supervised.py"))

MANY = 32
"""Connections of which each of two workers gets some, but for one time in two thousand million."""

ASK_SECONDS = 1.0
"""For which a worker that does not answer is waited for."""

HANGING = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
"""A command of a worker that is never ready."""

SLACK = 2.0
"""Seconds that a busy machine may add."""

FAREWELL = rb'(?:\A|\n\n)retry: \d+\nevent: reconnect\ndata: {"reason":"draining"}\n\n\Z'

PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
EVENT_SOURCE = b"GET /events/a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"


def status(pid: int) -> str:
    """What Linux says of a process; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/status").read_text("utf-8")
    except FileNotFoundError:
        return ""


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that has only not been waited for is none."""
    return bool(status(pid)) and "State:\tZ" not in status(pid)


def is_told(pid: int, text: str) -> bool:
    """Whether ``text`` is in the arguments or the environment of a process."""
    return any(text in Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ"))


class Supervised(NodeProcess):
    """A supervisor and its workers."""

    @property
    def ready(self) -> dict[int, int]:
        """The process that was ready last, of each worker number."""
        found = re.findall(r"worker (\d+) is ready, process (\d+)", self.output)
        return {int(number): int(pid) for number, pid in found}

    async def stop_worker(self, number: int) -> None:
        """Send SIGSTOP, and return when it has stopped."""
        self.signal_worker(number, signal.SIGSTOP)

        async def is_stopped() -> bool:
            return "State:\tT" in status(self.ready[number])

        await eventually(is_stopped)

    def signal_worker(self, number: int, what: int) -> None:
        os.kill(self.ready[number], what)

    async def kill_worker(self, number: int) -> None:
        """Send SIGKILL, and return when the supervisor knows."""
        self.signal_worker(number, signal.SIGKILL)
        await self.until(rf"worker {number} \(process \d+\) was ended by SIGKILL")

    async def counters(self) -> dict[tuple[str, str], float]:
        text = (await self.get("/metrics")).text
        return {
            (sample.name, ",".join(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if family.type in ("counter", "histogram")
        }

    async def streams(self, count: int = MANY) -> list[Stream]:
        return [await self.open_stream("/events/a") for _ in range(count)]

    async def ask_many(self, request: bytes) -> list[trio.SocketStream]:
        """Connections that have all sent ``request``."""
        connections = [await self.connect() for _ in range(MANY)]
        for connection in connections:
            await connection.send_all(request)
        return connections

    async def none_is_left(self) -> None:
        for pid in self.ready.values():

            async def is_gone(pid: int = pid) -> bool:
                return not is_running(pid)

            await eventually(is_gone)


@asynccontextmanager
async def supervised(*command: str, **settings: object) -> AsyncIterator[Supervised]:
    """Two workers that are ready; ``command`` is that of a worker instead of the gateway's."""
    told = {"bind": "127.0.0.1:0", "workers": "2", **settings}
    program = (sys.executable, SCRIPT, json.dumps(told), *command)
    async with _start(Supervised, program, {}) as started:
        started.port = int((await started.until(r"on http://127\.0\.0\.1:(\d+)/, 2 workers"))[1])
        try:
            yield started
        finally:
            for connection in started.connections:
                connection.socket.close()


def is_cut(stream: Stream) -> bool:
    """Whether the peer has ended the connection, in order or not; nothing is read."""
    poll = select.poll()
    poll.register(stream.transport.socket.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


async def answer_of(connection: trio.SocketStream) -> bytes:
    """All that comes; raises when the connection is reset."""
    with trio.fail_after(PATIENCE):
        return b"".join([data async for data in connection])


def body_of(answer: bytes) -> bytes:
    """The body of one whole response of status 200."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    http.receive_data(answer)
    head = http.next_event()
    assert isinstance(head, h11.Response), answer
    assert head.status_code == 200, answer
    body = b""
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data), answer
        body += event.data
    return body


# -- one node


async def test_the_node_says_when_all_workers_are_ready() -> None:
    async with supervised(node_id="n1") as n:
        line = (
            r'process=supervisor logger=gateway msg="gateway \S+, node n1, on'
            r' http://127\.0\.0\.1:\d+/, 2 workers" version=\S+ node=n1 url=\S+ workers=2\n'
        )
        assert re.search(line, n.output)
        assert sorted(n.workers()) == sorted(n.ready.values())
        assert sorted(n.ready) == [1, 2]


async def test_whichever_worker_answers_tells_of_the_whole_node() -> None:
    async with supervised(max_clients=1000, node_id="n1") as n:
        await n.streams()
        for _ in range(8):
            await n.publish("a", "x")
        for name, value in {
            "clients": MANY,
            "opened_total": MANY,
            "published_total": 8,
            "workers": 2,
            "worker_restarts_total": 0,
            "clients_max": 1000,
        }.items():
            assert await n.metric(name) == value, name
        for _ in range(20):
            assert await n.metric("clients") == MANY
        ids = {(await n.stats())["nodes"][0]["id"] for _ in range(20)}
        assert ids == {"n1"}
        text = (await n.get("/metrics")).text
        assert set(re.findall(r'worker="(.+?)"', text)) == {"1", "2"}
        for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "tasks"):
            assert number(text, f'worker_{name}{{worker="1"}}') > 0
        assert number(text, "ready") == 1
        assert not await lint(text)


async def test_all_workers_serve() -> None:
    async with supervised() as n:
        streams = await n.streams()
        n.signal_worker(1, signal.SIGKILL)
        await n.until("worker 1 is ready")
        cut = sum(map(is_cut, streams))
        assert 0 < cut < MANY


async def test_the_settings_are_neither_in_arguments_nor_in_the_environment() -> None:
    async with supervised(node_id="secret") as n:
        for pid in n.ready.values():
            assert is_told(pid, "gateway")
            assert not is_told(pid, "secret")


async def test_an_address_in_use_is_refused_even_where_it_could_be_shared() -> None:
    async with supervised() as n:
        told = json.dumps({"bind": f"127.0.0.1:{n.port}", "workers": "2"})
        async with child(sys.executable, SCRIPT, told) as second:
            assert await second.wait() == 1
        assert second.output.endswith(f"{n.port}: Address already in use.\n")


# -- deaths


async def test_connections_that_wait_while_their_worker_is_dead_are_answered() -> None:
    """None is reset: its listener is the supervisor's, and the next worker has it."""
    async with supervised() as n:
        for number in (1, 2):
            await n.stop_worker(number)
        connections = await n.ask_many(PROBE)
        n.signal_worker(2, signal.SIGCONT)
        await n.kill_worker(1)

        async def check(connection: trio.SocketStream) -> None:
            assert body_of(await answer_of(connection)) == b'{"status":"ok"}\n'

        await in_parallel(partial(check, connection) for connection in connections)


async def test_a_worker_that_a_real_time_signal_ends_is_replaced_too() -> None:
    """These signals have a number and no name."""
    async with supervised() as n:
        n.signal_worker(1, signal.SIGRTMIN + 3)
        await n.until(rf"worker 1 \(process \d+\) was ended by signal {signal.SIGRTMIN + 3}")
        await n.until("worker 1 is ready")
        assert "Traceback" not in n.output


def descriptors() -> set[Path]:
    """Those of this process."""
    return set(Path("/proc/self/fd").iterdir())


def refuse_to_watch(pid: int, flags: int = 0) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_a_process_that_cannot_be_watched_is_ended_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is left of it, and that is a death."""
    started: list[subprocess.Popen[bytes]] = []

    class Process(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            started.append(self)

    config = Config(bind="127.0.0.1:0", workers="1")
    monkeypatch.setattr("gateway.worker_process.subprocess.Popen", Process)
    monkeypatch.setattr(os, "pidfd_open", refuse_to_watch)
    before = descriptors()
    told = await Supervisor(config, listen_together(config, 1)).run()
    assert descriptors() == before
    assert told == (
        "Worker 1 died 3 times before it was ready, the last time it could not be started"
        " (Too many open files): the node has ended."
    )
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 3


async def test_no_counter_goes_down_and_no_gauge_counts_the_dead() -> None:
    async with supervised() as n:
        streams = await n.streams()
        for _ in range(8):
            await n.publish("a", "x")
        before = await n.counters()
        await n.kill_worker(1)
        left = MANY - sum(map(is_cut, streams))
        assert await n.metric("clients") == left
        after = await n.counters()
        assert set(after) >= set(before)
        for name, number in before.items():
            assert after[name] >= number, name
        assert after["gateway_opened_total", "new"] == MANY
        await n.until("worker 1 is ready")
        assert await n.metric("workers") == 2
        assert await n.metric("worker_restarts_total") == 1
        assert await n.metric("opened_total") == MANY


async def test_no_zombie_is_left_of_the_dead() -> None:
    async with supervised() as n:
        dead = n.ready[1]
        await n.kill_worker(1)
        assert not status(dead)
        await n.until("worker 1 is ready")
        assert sorted(n.workers()) == sorted(n.ready.values())
        assert dead not in n.workers()


async def test_workers_that_never_become_ready_end_the_service() -> None:
    told = json.dumps({"bind": "127.0.0.1:0", "workers": "2"})
    broken = (sys.executable, "-S", "-c", "raise SystemExit(3)")
    async with child(sys.executable, SCRIPT, told, *broken) as n:
        assert await n.wait() == 1
    last = n.output.splitlines()[-1]
    assert re.fullmatch(
        r"gateway: Worker [12] died 3 times before it was ready, the last time it ended with exit"
        r" code 3: the node has ended\.",
        last,
    )


async def test_a_service_that_ends_since_one_worker_cannot_live_drains_the_others(
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken"
    script = f'test -e {broken} && exit 3; exec {sys.executable} -P -m gateway worker "$@"'
    async with supervised("/bin/sh", "-c", script, "sh", drain_seconds=0.2) as n:
        streams = await n.streams()
        broken.touch()
        await n.kill_worker(1)
        living = [stream for stream in streams if not is_cut(stream)]
        await in_parallel(stream.until_end for stream in living)
        assert all(re.search(FAREWELL, stream.body) for stream in living)
        assert await n.wait() == 1
        assert "gateway: Worker 1 died 3 times before it was ready" in n.output
        assert "Traceback" not in n.output


# -- a worker that does not answer


async def test_a_worker_that_hangs_holds_nobody_up() -> None:
    """It is waited for once, and then counts without what it held until it answers again."""
    async with supervised() as n:
        await n.streams()
        before = await n.counters()
        await n.stop_worker(1)
        start = time.monotonic()
        text = await first_answer(n)
        assert time.monotonic() - start < ASK_SECONDS + SLACK
        start = time.monotonic()
        text = await first_answer(n)
        assert time.monotonic() - start < ASK_SECONDS / 2
        assert 0 < number(text, "clients") < MANY
        assert number(text, "opened_total") == MANY == before["gateway_opened_total", "new"]
        assert number(text, "workers") == 1
        n.signal_worker(1, signal.SIGCONT)
        await n.until_clients(MANY)


async def test_a_worker_that_hangs_for_long_is_replaced() -> None:
    """Its share of the connections would wait for it for ever."""
    async with supervised(HUNG_SECONDS=1.2, START_ROUNDS=100) as n:
        first = n.ready
        await n.stop_worker(1)
        await n.until(rf"worker 1 \(process {first[1]}\) does not answer: killing it")
        await n.until(r"worker 1 \(process \d+\) was ended by SIGKILL")
        await n.until("worker 1 is ready")
        assert await n.metric("workers") == 2
        assert await n.metric("worker_restarts_total") == 1
        assert n.ready[2] == first[2]


async def test_a_worker_that_hangs_before_it_is_ready_is_replaced_too() -> None:
    told = {"bind": "127.0.0.1:0", "workers": "1", "HUNG_SECONDS": 0.6, "START_ROUNDS": 3}
    async with child(sys.executable, SCRIPT, json.dumps(told), *HANGING) as n:
        assert await n.wait() == 1
    assert n.output.count("does not answer: killing it") == 3
    assert "died 3 times before it was ready, the last time it was ended by SIGKILL" in n.output


async def test_rounds_for_which_the_supervisor_came_late_do_not_count(
    mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    supervisor = Supervisor(Config(), [])
    worker = Mock(ready=True, silent=True, missed=0, number=1, pid=1)
    supervisor._census.add(worker)
    nursery.start_soon(supervisor._kill_hung)

    async def pass_rounds(seconds: float) -> None:
        for _ in range(HUNG_ROUNDS):
            await wait_all_tasks_blocked()
            mock_clock.jump(seconds)
        await wait_all_tasks_blocked()

    await pass_rounds(2 * HUNG_SECONDS / HUNG_ROUNDS)
    worker.kill.assert_not_called()
    await pass_rounds(HUNG_SECONDS / HUNG_ROUNDS)
    worker.kill.assert_called_once_with()
    nursery.cancel_scope.cancel()


async def test_a_node_that_was_stopped_as_a_whole_kills_no_worker() -> None:
    """Who did not run cannot say that others were silent."""
    seconds = 1.2
    async with supervised(HUNG_SECONDS=seconds, START_ROUNDS=100) as n:
        os.killpg(n.process.pid, signal.SIGSTOP)
        await trio.sleep(1.5 * seconds)  # real time that must pass
        n.signal(signal.SIGCONT)
        await trio.sleep(seconds / 4)  # the first of them to wake finds the others silent
        os.killpg(n.process.pid, signal.SIGCONT)
        assert (await n.get("/healthz")).status_code == 200
        await trio.sleep(seconds)
        assert await n.metric("worker_restarts_total") == 0
        assert "does not answer" not in n.output


async def first_answer(n: Supervised) -> str:
    """What /metrics says at the worker that answers first."""
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def ask(connection: trio.SocketStream) -> None:
            answers.append(await answer_of(connection))
            nursery.cancel_scope.cancel()

        for connection in await n.ask_many(request):
            nursery.start_soon(ask, connection)
    return body_of(answers[0]).decode()


# -- leaving


async def terminate(n: Supervised, what: signal.Signals = signal.SIGTERM) -> float:
    """Send the signal and wait until all has ended well; how long it took."""
    start = time.monotonic()
    n.signal(what)
    assert await n.wait() == 0, n.output
    assert "Traceback" not in n.output
    return time.monotonic() - start


async def test_all_workers_drain_at_the_same_time_and_all_streams_are_told() -> None:
    seconds = 1.5
    async with supervised(drain_seconds=seconds) as n:
        streams = await n.streams()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.until_end)
            took = await terminate(n)
        assert took < 2 * seconds
        assert all(re.search(FAREWELL, stream.body) for stream in streams)
        await n.none_is_left()


async def test_a_signal_before_the_workers_are_ready_ends_them_well() -> None:
    told = json.dumps({"bind": "127.0.0.1:0", "workers": "2"})
    async with _start(Supervised, (sys.executable, SCRIPT, told), {}) as n:

        async def are_starting() -> bool:
            return len(n.workers()) == 2

        await eventually(are_starting)
        assert await terminate(n) < 5 * SLACK  # they are told when they have started
        assert "on http://" not in n.output


async def test_without_clients_it_ends_at_once() -> None:
    async with supervised() as n:
        assert await terminate(n, signal.SIGINT) < 1


async def test_a_signal_to_all_processes_is_one_signal() -> None:
    """As a terminal sends it on Ctrl-C, and systemd to all of a service."""
    async with supervised(drain_seconds=0.2) as n:
        streams = await n.streams()
        os.killpg(n.process.pid, signal.SIGINT)
        await in_parallel(stream.until_end for stream in streams)
        assert all(re.search(FAREWELL, stream.body) for stream in streams)
        assert await n.wait() == 0, n.output


async def test_during_the_grace_the_node_is_not_ready_but_serves() -> None:
    async with supervised(drain_grace=1.0, drain_seconds=0.2) as n:
        n.signal(signal.SIGTERM)
        for _ in n.ready:
            await n.until("is draining 0 clients")
        for _ in range(10):
            answer = await n.get("/readyz")
            assert (answer.status_code, answer.json()["reason"]) == (503, "draining")
        streams = await n.streams()
        await in_parallel(stream.until_end for stream in streams)
        assert await n.wait() == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", n.port))


async def test_what_waits_for_a_dead_worker_when_the_node_leaves_is_told_too() -> None:
    async with supervised(drain_seconds=0.2) as n:
        connections = await lose_a_worker(n)
        n.signal(signal.SIGTERM)
        await all_are_told(n, connections)


async def test_a_signal_to_a_worker_that_is_about_to_start_waits_until_it_can_be_obeyed() -> None:
    async with supervised(drain_seconds=0.2) as n:
        connections = await lose_a_worker(n)

        async def is_starting() -> bool:
            return len(n.workers()) == 2

        await eventually(is_starting)
        os.killpg(n.process.pid, signal.SIGTERM)
        await all_are_told(n, connections)


async def lose_a_worker(n: Supervised) -> list[trio.SocketStream]:
    """Kill a worker while requests for streams wait for it and for the other one, which hangs."""
    for worker in (1, 2):
        await n.stop_worker(worker)
    connections = await n.ask_many(EVENT_SOURCE)
    await n.kill_worker(1)
    return connections


async def all_are_told(n: Supervised, connections: list[trio.SocketStream]) -> None:
    n.signal_worker(2, signal.SIGCONT)

    async def check(connection: trio.SocketStream) -> None:
        assert re.search(FAREWELL, body_of(await answer_of(connection)))

    await in_parallel(partial(check, connection) for connection in connections)
    assert await n.wait() == 0, n.output


async def test_a_worker_that_hangs_while_the_node_drains_is_killed_in_the_end() -> None:
    async with supervised(drain_seconds=0, OVERDUE_SECONDS=0.5) as n:
        await n.stop_worker(1)
        n.signal(signal.SIGTERM)
        assert await n.wait() == 1
        assert (
            "gateway: Some workers had not ended after 1.5 seconds and were killed.\n" in n.output
        )
        await n.none_is_left()


def test_the_supervisor_is_gone_before_a_service_manager_would_kill_it() -> None:
    """Which is told to wait for 11 s beyond the drain; an orphan takes no longer either."""
    assert LAST_WORDS_SECONDS + OVERDUE_SECONDS == 9
    assert ORPHAN_SECONDS <= OVERDUE_SECONDS


async def test_a_worker_that_dies_while_the_node_drains_is_not_replaced() -> None:
    async with supervised(drain_seconds=0.5) as n:
        await n.streams()
        n.signal(signal.SIGTERM)
        await n.until("is draining")
        await n.kill_worker(1)
        assert await n.wait() == 1
        assert n.output.count("is ready, process") == 2
        assert "gateway: Worker 1 was ended by SIGKILL while the node drained.\n" in n.output


async def test_a_second_signal_ends_all_at_once() -> None:
    async with supervised(drain_seconds=60) as n:
        await n.streams(4)
        n.signal(signal.SIGTERM)
        await n.until("is draining")
        start = time.monotonic()
        n.signal(signal.SIGTERM)
        assert await n.wait() == 1
        assert time.monotonic() - start < 1
        await n.none_is_left()


async def test_without_their_supervisor_the_workers_drain_and_are_gone() -> None:
    """Without the grace: no balancer's health check can keep its word any more."""
    async with supervised(drain_grace=60, drain_seconds=0.5) as n:
        streams = await n.streams()
        start = time.monotonic()
        n.signal(signal.SIGKILL)
        await in_parallel(stream.until_end for stream in streams)
        assert all(re.search(FAREWELL, stream.body) for stream in streams)
        await n.none_is_left()
        assert time.monotonic() - start < 0.5 + SLACK
        assert await n.wait() == -signal.SIGKILL


async def test_a_grace_that_has_begun_ends_with_the_supervisor() -> None:
    async with supervised(drain_grace=60, drain_seconds=0.2) as n:
        n.signal(signal.SIGTERM)
        for _ in n.ready:
            await n.until("is draining 0 clients")
        n.signal(signal.SIGKILL)
        await n.none_is_left()


# -- one worker leaves


async def test_a_worker_that_is_told_to_leave_is_replaced_while_it_drains() -> None:
    """The node stays ready, and this is no death."""
    async with supervised(drain_seconds=60) as n:
        streams = await n.streams()
        first = n.ready[1]
        n.signal_worker(1, signal.SIGTERM)
        await n.until("worker 1 is ready")
        assert is_running(first)
        for _ in range(10):
            assert (await n.get("/readyz")).status_code == 200
        assert await n.metric("draining") == 0
        assert await n.metric("opened_total") == MANY
        assert await n.metric("workers") == 2
        assert await n.metric("worker_restarts_total") == 1
        assert len(n.workers()) == 3
        assert "begins again" not in n.output
        await n.streams()
        assert sum(map(is_cut, streams)) < MANY
        os.kill(first, signal.SIGTERM)  # its second one
        await n.until(rf"worker 1 \(process {first}\) ended with exit code 1")
        assert await n.metric("opened_total") == 2 * MANY
        assert await n.metric("workers") == 2


async def test_the_node_stays_ready_while_one_of_its_workers_leaves() -> None:
    """From the signal on, whichever worker answers: during its grace the worker still serves."""
    async with supervised(drain_grace=0.5, drain_seconds=0.2) as n:
        first = n.ready[1]
        n.signal_worker(1, signal.SIGTERM)
        while f"worker 1 (process {first}) has left" not in n.output:
            assert (await n.get("/readyz")).status_code == 200
        assert len(n.workers()) == 2


async def test_a_worker_that_has_left_leaves_its_counters() -> None:
    async with supervised(drain_seconds=0.1) as n:
        streams = await n.streams()
        for _ in range(8):
            await n.publish("a", "x")
        n.signal_worker(1, signal.SIGTERM)
        await n.until(r"worker 1 \(process \d+\) has left")
        assert await n.metric("published_total") == 8
        assert await n.metric("opened_total") == MANY
        clients = await n.metric("clients")
        assert 0 < clients < MANY
        text = (await n.get("/metrics")).text
        assert f'gateway_closed_total{{reason="draining"}} {MANY - clients}' in text
        assert len(streams) == MANY


async def test_the_node_is_full_when_all_of_its_workers_are() -> None:
    """Each has its part of ``max_clients``; a balancer need not leave a node that has room."""
    async with supervised(max_clients=2) as n:
        stream = await n.open_stream("/events/a")
        for _ in range(10):
            assert (await n.get("/readyz")).status_code == 200

        async def is_at_its_bound() -> bool:
            await (await n.connect()).send_all(EVENT_SOURCE)
            return await n.metric("clients") == 2

        await eventually(is_at_its_bound)
        for _ in range(10):
            answer = await n.get("/readyz")
            assert (answer.status_code, answer.json()["reason"]) == (503, "full")
        await stream.transport.aclose()
        await n.until_clients(1)
        assert (await n.get("/readyz")).status_code == 200
