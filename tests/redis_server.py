"""Real Redis servers for a test: killed, frozen, emptied and rolled back when it says so."""

import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hiredis
import trio
from process import READ_BYTES, environment, eventually

REDIS = "/usr/bin/redis-server"

LOWEST_PORT = 10_000


def free_port() -> int:
    """A port below those that the kernel gives to connections.

    A server that is down would otherwise lose its port to any of them, or a node that tries to
    reach it there would now and then be connected to itself.
    """
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    while True:
        port = random.randrange(LOWEST_PORT, lowest_given)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def command(*words: str | int | bytes) -> bytes:
    """A command as RESP has it: an array of bulk strings."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


async def call(port: int, *words: str | int | bytes) -> Any:
    """The reply to a command, over a connection of its own.

    Raises hiredis.ReplyError where that is an error, OSError and trio.BrokenResourceError.
    """
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(command(*words))
        reader = hiredis.Reader(encoding="utf-8", errors="replace")
        while (reply := reader.gets()) is False:
            data = await stream.receive_some(READ_BYTES)
            if not data:
                raise trio.BrokenResourceError
            reader.feed(data)
    if isinstance(reply, hiredis.ReplyError):
        raise reply
    return reply


class RedisServer:
    """A server process, which can be another one from time to time: what stays is its port and
    its directory."""

    def __init__(self, directory: Path, port: int, *options: str) -> None:
        self.port = port
        self._directory = directory
        self._command = (REDIS, *options)
        self._process: trio.Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def call(self, *words: str | int | bytes) -> Any:
        return await call(self.port, *words)

    async def info(self, section: str) -> dict[str, str]:
        lines = str(await self.call("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def start(self) -> None:
        """Return once it answers, and has loaded what it found in its directory."""
        self._process = await trio.lowlevel.open_process(
            self._command,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        await eventually(self._answers)

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            return bool(await self.call("PING") == "PONG")
        except (OSError, hiredis.ReplyError, trio.BrokenResourceError):
            return False

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text("utf-8")

    async def kill(self) -> None:
        """SIGKILL: what was not written to a file is gone."""
        if self._process is None:
            return
        if self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await self._process.wait()

    async def restart(self) -> None:
        """Kill it if it runs, and start it on what its files hold."""
        await self.kill()
        await self.start()

    async def restart_empty(self) -> None:
        await self.kill()
        (self._directory / "dump.rdb").unlink(missing_ok=True)
        shutil.rmtree(self._directory / "appendonlydir", ignore_errors=True)
        await self.start()

    async def save_snapshot(self) -> None:
        """Put the data of this moment aside."""
        await self.call("SAVE")
        shutil.copy(self._directory / "dump.rdb", self._directory / "snapshot.rdb")

    async def restore_snapshot(self) -> None:
        """Kill it and start it on what `save_snapshot` put aside: it has lost all that came since,
        and does not know."""
        await self.kill()
        shutil.copy(self._directory / "snapshot.rdb", self._directory / "dump.rdb")
        await self.start()

    def stop(self) -> None:
        """SIGSTOP: its connections stay open and say nothing, until `cont`."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def cont(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


def server_options(port: int, options: dict[str, str | int]) -> Sequence[str]:
    """Of a server that writes nothing to disk unless asked to."""
    settings: dict[str, str | int] = {
        "port": port,
        "bind": "127.0.0.1",
        "save": "",
        "logfile": "log",
        **options,
    }
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


@asynccontextmanager
async def redis_server(*, aof: bool = False, **options: str | int) -> AsyncIterator[RedisServer]:
    """A server that answers. ``options`` are those of redis.conf, with "_" for "-"; with ``aof``
    each acknowledged command survives `kill`."""
    if aof:
        options = {"appendonly": "yes", "appendfsync": "always", **options}
    with TemporaryDirectory(prefix="redis-") as directory:
        port = free_port()
        server = RedisServer(Path(directory), port, *server_options(port, options))
        try:
            await server.start()
            yield server
        finally:
            await server.kill()
