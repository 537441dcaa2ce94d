"""What is counted while a node is abused: those who were there, those who come, health and memory.

Whoever imports this has imported `measuring` before.
"""

import subprocess
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from signal import SIGUSR1, SIGUSR2

import trio
from measuring import Figures, resident_mib
from process import NodeProcess

from gateway.position import Position

HEALTH_EVERY = 0.1
HEALTH_SECONDS = 1.0
"""For an answer on ``admin_bind``: Kubernetes gives a probe as much by default."""

LINE_SECONDS = 30.0
"""For one where the clients come in: while the accept queue is full, Linux drops those who knock,
who knock again after 1, 3, 7 and 15 seconds."""

LOOK_SECONDS = 0.02

READ_BYTES = 64 * 1024


def _figures(line: str) -> Figures:
    return {name: float(value) for name, value in (word.split("=") for word in line.split())}


class _Program:
    """A program that prints lines of key=value; killed unless it has ended by itself."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.figures: Figures = defaultdict(float)
        """What was printed last of each."""
        self.ended = trio.Event()

    async def read(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line.decode())
        self.ended.set()

    def _take(self, line: str) -> None:
        if line.startswith("client "):
            self.lines.append(line)
        elif line:
            self.figures.update(_figures(line))


@asynccontextmanager
async def _running(*command: str) -> AsyncIterator[_Program]:
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        async with trio.open_nursery() as nursery:
            program = _Program(process)
            nursery.start_soon(program.read)
            yield program
            nursery.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def until(holds: Callable[[], bool], patience: float) -> bool:
    """Whether ``holds`` came true in time."""
    with trio.move_on_after(patience):
        while not holds():  # noqa: ASYNC110  # what it looks at is told by other processes
            await trio.sleep(LOOK_SECONDS)
    return holds()


class Established:
    """Clients that were there before, and are given events at an even rate."""

    def __init__(self, program: _Program) -> None:
        self._program = program

    def mark(self) -> None:
        """The events sent from now on are those of "during"; the second time, until now."""
        self._program.process.send_signal(SIGUSR1)

    async def finish(self) -> Figures:
        """Publish no more; what was measured, once all of it has arrived or is lost."""
        self._program.process.send_signal(SIGUSR2)
        await self._program.ended.wait()
        return dict(self._program.figures)


@asynccontextmanager
async def established(
    fanout: str, node: NodeProcess, clients: int, rate: int
) -> AsyncIterator[Established]:
    """``clients`` of the channel ``bench``, all connected. ``fanout`` is the program."""
    async with _running(
        *(fanout, "--port", str(node.port), "--clients", str(clients), "--pubs", "4"),
        *("--rate", str(rate), "--count", str(rate * 500), "--deadline", "500", "--settle", "30"),
    ) as program:
        assert await until(lambda: "connected" in program.figures, 60)
        yield Established(program)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of one source, as the crowd saw it."""

    channel: int
    is_open: bool
    start: Position
    last: Position
    received: int
    disordered: int
    dropped: int
    gaps: int

    @classmethod
    def parse(cls, line: str) -> "Recorded":
        _, channel, state, *numbers = line.split()
        start, last, *counts = map(int, numbers)
        return cls(int(channel), state == "open", _position(start), _position(last), *counts)

    def owed(self, positions: Sequence[Position]) -> int:
        """How many of the events at ``positions``, which are sorted, were to come to it."""
        end = len(positions) if self.is_open else bisect_right(positions, self.last)
        return max(0, end - bisect_right(positions, self.start))


def _position(number: int) -> Position:
    return Position(number >> 20, number & (2**20 - 1))


class Crowds:
    """Several processes of `crowd`, which share out the clients."""

    def __init__(self, programs: Sequence[_Program]) -> None:
        self._programs = programs

    def sum(self, *names: str) -> float:
        return sum(program.figures[name] for program in self._programs for name in names)

    def largest(self, name: str) -> float:
        return max(program.figures[name] for program in self._programs)

    async def tell(self, command: str, *, each: Sequence[str] = ()) -> None:
        """``command`` to every process, with its own one of ``each`` behind it."""
        for number, program in enumerate(self._programs):
            assert program.process.stdin is not None
            line = f"{command} {each[number]}" if each else command
            await program.process.stdin.send_all(f"{line}\n".encode())

    async def close(self, count: int) -> int:
        """Close so many of the streams that are open, or all; how many."""
        shares = []
        for program in self._programs:
            shares.append(min(count, int(program.figures["open"])))
            count -= shares[-1]
        before = self.sum("closed")
        await self.tell("close", each=[str(share) for share in shares])
        await until(lambda: self.sum("closed") >= before + sum(shares), 5)
        return sum(shares)

    async def finish(self) -> list[Recorded]:
        """End all; what each of those that were let in has got."""
        await self.tell("finish")
        for program in self._programs:
            await program.ended.wait()
        return [Recorded.parse(line) for program in self._programs for line in program.lines]


@asynccontextmanager
async def crowds(
    crowd: str,
    port: int,
    clients: int,
    *options: str,
    processes: int = 1,
    network: int = 10,
) -> AsyncIterator[Crowds]:
    """``clients`` that wait for "go"; each process has source addresses of its own."""
    shares = [clients * n // processes for n in range(processes + 1)]
    programs: list[_Program] = []
    async with trio.open_nursery() as nursery:

        async def run(
            number: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        ) -> None:
            async with _running(
                *(crowd, "--port", str(port), "--network", str(network + number)),
                *("--clients", str(shares[number + 1] - shares[number]), *options),
            ) as program:
                programs.append(program)
                task_status.started()
                await trio.sleep_forever()

        for number in range(processes):
            await nursery.start(run, number)
        yield Crowds(programs)
        nursery.cancel_scope.cancel()


class Watch:
    """Asks a node for its health ten times a second, each time over a new connection, and looks at
    its memory. Who asks where the clients come in too stands in line with them."""

    def __init__(self, node: NodeProcess, admin_port: int) -> None:
        self._node = node
        self._admin_port = admin_port
        self.worst: dict[str, float] = defaultdict(float)
        """Seconds until the answer, by what was asked."""
        self.wrong: list[str] = []
        self.most_mib = 0.0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self.most_mib = max(self.most_mib, resident_mib(self._node))
                nursery.start_soon(self._ask, "/healthz", self._admin_port, HEALTH_SECONDS)
                nursery.start_soon(self._ask, "/readyz", self._admin_port, HEALTH_SECONDS)
                nursery.start_soon(self._ask, "/healthz", self._node.port, LINE_SECONDS)
                await trio.sleep(HEALTH_EVERY)

    async def _ask(self, path: str, port: int, within: float) -> None:
        began, answer = trio.current_time(), b""
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        try:
            with trio.move_on_after(within):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(request.encode())
                    async for data in stream:
                        answer += data
        except (OSError, trio.BrokenResourceError) as error:
            answer = str(error).encode()
        took = trio.current_time() - began
        name = path if port == self._admin_port else f"{path} in line"
        self.worst[name] = max(self.worst[name], took)
        status = answer[9:12]
        is_full = path == "/readyz" and status == b"503" and b'"full"' in answer
        if status != b"200" and not is_full:
            self.wrong.append(f"{name} was answered with {answer[:80]!r} after {took:.2f} s")


@dataclass(slots=True)
class Ledger:
    """The positions of all events of each channel, in their order."""

    positions: dict[int, list[Position]] = field(default_factory=lambda: defaultdict(list))
    failed: list[str] = field(default_factory=list)
    """Publishes that were not accepted."""

    async def publish(self, node: NodeProcess, name: str, channels: int, rate: float) -> None:
        """An event to one of the channels after another, until cancelled."""
        body, number, at = b"x" * 100, 0, trio.current_time()
        async with await trio.open_tcp_stream("127.0.0.1", node.port) as stream:
            answers = _answers(stream)
            async with aclosing(answers):
                while True:
                    channel = number % channels
                    head = f"POST /publish/{name}{channel} HTTP/1.1\r\nHost: localhost\r\n"
                    head += f"Content-Length: {len(body)}\r\n\r\n"
                    with trio.CancelScope(shield=True):  # what was sent may have been taken
                        await stream.send_all(head.encode() + body)
                        answer = await anext(answers)
                    _, found, id = answer.partition('{"id":"')
                    position = Position.parse(id.partition('"')[0]) if found else None
                    if position is None:
                        self.failed.append(answer[:120])
                    else:
                        self.positions[channel].append(position)
                    number += 1
                    at += 1 / rate
                    await trio.sleep_until(at)

    async def witness(
        self,
        node: NodeProcess,
        name: str,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take down as channel 0 what comes on ``name``, until cancelled."""
        stream = await node.open_stream(f"/events?channel={name}")
        task_status.started()
        rest = stream.body.rpartition(b"\n\n")[2]
        while data := await stream.transport.receive_some(READ_BYTES):
            *blocks, rest = (rest + data).split(b"\n\n")
            for block in blocks:
                text = block[block.find(b"id: ") + 4 :].partition(b"\n")[0]
                position = Position.parse(text.decode().strip())
                if position is not None and b"\ndata:" in block:
                    self.positions[0].append(position)


async def _answers(stream: trio.SocketStream) -> AsyncGenerator[str, None]:
    """Whole answers, one for each request."""
    have = b""
    while True:
        head, found, rest = have.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if found and len(rest) >= length:
            yield (head + found + rest[:length]).decode()
            have = rest[length:]
            continue
        data = await stream.receive_some(READ_BYTES)
        if not data:
            raise trio.BrokenResourceError
        have += data
