"""A node as a process of its own, and other programs beside it; none of them is left behind.

Everything is waited for: output by `Child.until`, what a node knows by `eventually`.
"""

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import h11
import httpx
import trio

GATEWAY = str(Path(sys.executable).with_name("gateway"))

PATIENCE = 20.0
"""Seconds until what must happen is held not to: only a failing test ever waits for so long."""

READ_BYTES = 64 * 1024


def environment(**variables: str) -> dict[str, str]:
    """This process's, without settings of a gateway or of OpenTelemetry and without proxies, and
    ``variables``. Programs are also found where Debian keeps HAProxy and nginx, and where only
    root's shell looks."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GATEWAY_", "OTEL_")) and not name.lower().endswith("_proxy")
    }
    return kept | {"PATH": f"{kept['PATH']}:/usr/sbin"} | variables


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return once ``holds``, which is asked again and again."""
    with trio.fail_after(PATIENCE):
        while not await holds():  # noqa: ASYNC110  # it happens in another process
            await trio.sleep(0.02)


class Child:
    """A running program and its output, stdout and stderr as one text."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.output = ""
        self._at = 0
        self._more = trio.Event()
        self._ended = False

    async def until(self, pattern: str) -> re.Match[str]:
        """The next match of ``pattern`` in the output, behind the one that was returned last."""
        with trio.move_on_after(PATIENCE):
            while (found := re.compile(pattern).search(self.output, self._at)) is None:
                if self._ended:
                    break
                await self._more.wait()
        assert found is not None, f"no {pattern!r} in {self.output[self._at :]!r}"
        self._at = found.end()
        return found

    async def lines(self) -> AsyncIterator[str]:
        """Its output line by line, behind what `until` has returned, to its end."""
        while True:
            text, end, _ = self.output[self._at :].partition("\n")
            if end:
                self._at += len(text) + 1
                yield text
            elif self._ended:
                return
            else:
                await self._more.wait()

    def status(self) -> str:
        """What Linux says of it: proc(5), /proc/pid/status."""
        return Path(f"/proc/{self.process.pid}/status").read_text("utf-8")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def stop(self) -> None:
        """Send SIGSTOP, and return when the program has stopped."""
        self.signal(signal.SIGSTOP)

        async def is_stopped() -> bool:
            return "State:\tT" in self.status()

        await eventually(is_stopped)

    async def until_listening(self, port: int) -> None:
        """Return once somebody, who is this program, accepts connections there."""

        async def listens() -> bool:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            except OSError:
                assert self.process.returncode is None, self.output
                return False
            return True

        await eventually(listens)

    async def wait(self) -> int:
        """The exit code, once the program has ended and all its output is here."""
        with trio.fail_after(PATIENCE):
            while not self._ended:
                await self._more.wait()
            return await self.process.wait()

    async def read_output(self) -> None:
        assert self.process.stdout is not None
        async with self.process.stdout as stdout:
            async for data in stdout:
                self._tell(data.decode())
        self._ended = True
        self._tell("")

    def _tell(self, text: str) -> None:
        self.output += text
        self._more.set()
        self._more = trio.Event()


def child(*command: str, **variables: str) -> AbstractAsyncContextManager[Child]:
    """``command`` as a child process; killed unless it has ended by itself."""
    return _start(Child, command, variables)


Kind = TypeVar("Kind", bound=Child)


@asynccontextmanager
async def _start(
    kind: type[Kind], command: tuple[str, ...], variables: dict[str, str]
) -> AsyncIterator[Kind]:
    """``command`` in a process group of its own, all of which is killed in the end."""
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(**variables),
        start_new_session=True,
    )
    started = kind(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(started.read_output)
            yield started
            nursery.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()


async def lint(text: str) -> str:
    """What Prometheus's own tool has to say against the text of /metrics."""
    command = ("promtool", "check", "metrics")
    done = await trio.run_process(
        command, stdin=text.encode(), capture_stdout=True, capture_stderr=True, check=False
    )
    said = (done.stdout + done.stderr).decode()
    return said or ("" if not done.returncode else f"exit status {done.returncode}")


def number(text: str, name: str) -> float:
    """The sum of a metric over its labels, or the one sample that ``name`` has labels of."""
    found = re.findall(rf"(?m)^gateway_{re.escape(name)}(?:\{{.*\}})? (\S+)$", text)
    assert found, name
    return sum(map(float, found))


class NodeProcess(Child):
    """A ``gateway serve`` that is ready. ``connections`` are closed when it is done with."""

    port = 0
    tls: ssl.SSLContext | None = None
    """What its clients speak; nothing: plain HTTP."""

    def __init__(self, process: trio.Process) -> None:
        super().__init__(process)
        self.connections: list[trio.SocketStream] = []

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def admin_port(self) -> int:
        """Of a node with ``--admin-bind``."""
        return int(re.findall(r"probes on http://127\.0\.0\.1:(\d+)/", self.output)[0])

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(trust_env=False, timeout=PATIENCE, verify=self.tls or True)

    async def get(self, path: str) -> httpx.Response:
        async with self.client() as client:
            return await client.get(self.url + path)

    async def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = (await self.get("/stats")).json()
        return stats

    async def metric(self, name: str) -> float:
        return number((await self.get("/metrics")).text, name)

    async def until_metric(self, name: str, least: float) -> None:
        async def is_reached() -> bool:
            return await self.metric(name) >= least

        await eventually(is_reached)

    async def until_clients(self, count: int) -> None:
        async def has_them() -> bool:
            return await self.metric("clients") == count

        await eventually(has_them)

    async def publish(self, channel: str, *data: str) -> list[str]:
        """Publish an event with each of ``data``; their ids."""
        lines = "".join(f'{{"channel":"{channel}","data":"{text}"}}\n' for text in data)
        async with self.client() as client:
            answer = await client.post(
                f"{self.url}/publish",
                content=lines,
                headers={"Content-Type": "application/x-ndjson"},
            )
        ids = re.findall(r'(?m)^{"id":"(.+)"}$', answer.text)
        assert len(ids) == len(data), answer.text
        return ids

    async def publish_raw(self, channel: str, data: str, **query: str) -> None:
        """Publish ``data`` as it is."""
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
            url = f"{self.url}/publish/{channel}"
            answer = await client.post(url, content=data.encode(), params=query)
        assert answer.status_code == 202, answer.text

    def resident_bytes(self) -> int:
        return int(re.findall(r"VmRSS:\s+(\d+) kB", self.status())[0]) * 1024

    def workers(self) -> list[int]:
        """The processes that it has started, by their ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text("ascii").split()]

    async def connect(self) -> trio.SocketStream:
        connection = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.connections.append(connection)
        return connection

    async def ask_for_stream(self, target: str, *headers: tuple[str, str]) -> "Stream":
        """What answers a request for a stream, of which nothing has been read."""
        connection = await self.connect()
        if self.tls is not None:
            tls = trio.SSLStream(connection, self.tls, server_hostname="localhost")
            stream = Stream(connection, tls)
        else:
            stream = Stream(connection)
        await stream.request(target, *headers)
        return stream

    async def open_stream(self, target: str) -> "Stream":
        """A stream whose ``connected`` has been read."""
        stream = await self.ask_for_stream(target)
        await stream.until(b"event: connected\n")
        return stream


@asynccontextmanager
async def node(
    *flags: str,
    bind: str = "127.0.0.1:0",
    tls: ssl.SSLContext | None = None,
    descriptors: int | None = None,
    variables: Mapping[str, str] = {},  # which nobody changes
) -> AsyncIterator[NodeProcess]:
    """A node of the real program, listening; killed unless it has ended by itself.

    ``tls`` is what its clients speak. It may have as many ``descriptors`` as this process may, or
    as are given.
    """
    command: tuple[str, ...] = (GATEWAY, "serve", "--bind", bind, *flags)
    if descriptors is not None:
        command = ("sh", "-c", 'ulimit -n "$0"; exec "$@"', str(descriptors), *command)
    async with node_of(*command, tls=tls, **variables) as started:
        yield started


@asynccontextmanager
async def node_of(
    *command: str, tls: ssl.SSLContext | None = None, **variables: str
) -> AsyncIterator[NodeProcess]:
    """The node that ``command`` starts, listening; killed unless it has ended by itself."""
    async with _start(NodeProcess, command, variables) as started:
        scheme = "https" if tls else "http"
        started.port = int((await started.until(rf", on {scheme}://127\.0\.0\.1:(\d+)/"))[1])
        started.tls = tls
        try:
            yield started
        finally:
            for connection in started.connections:
                connection.socket.close()


class Stream:
    """An event stream read from a socket by h11, which knows nothing of the gateway."""

    def __init__(
        self,
        transport: trio.SocketStream,
        tls: trio.SSLStream[trio.SocketStream] | None = None,
    ) -> None:
        self.transport = transport
        self._stream = tls or transport
        self._http = h11.Connection(h11.CLIENT)
        self.body = b""
        self.ended_at = 0.0

    async def request(self, target: str, *headers: tuple[str, str]) -> None:
        request = h11.Request(method="GET", target=target, headers=[("Host", "x"), *headers])
        await self._stream.send_all(self._http.send(request) or b"")

    async def until(self, text: bytes) -> None:
        """Read on until ``text`` is in the body."""
        with trio.fail_after(PATIENCE):
            while text not in self.body:
                assert await self._read(), f"{text!r} is not in {self.body!r}"

    async def more(self) -> None:
        """Read on until anything has come."""
        with trio.fail_after(PATIENCE):
            assert await self._read(), "the stream has ended"

    async def until_end(self) -> None:
        """Read until the response has ended, with its last chunk, and then the connection.

        Raises when either is cut short.
        """
        with trio.fail_after(PATIENCE):
            while await self._read():
                pass
            assert await self._stream.receive_some() == b""
        self.ended_at = time.monotonic()

    async def _read(self) -> bool:
        event = self._http.next_event()
        while event is h11.NEED_DATA:
            self._http.receive_data(bytes(await self._stream.receive_some(READ_BYTES)))
            event = self._http.next_event()
        if isinstance(event, h11.Data):
            self.body += event.data
        return not isinstance(event, h11.EndOfMessage)


async def in_parallel(calls: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """All of ``calls`` at once; returns when all have."""
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(call)
