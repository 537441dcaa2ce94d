"""Token streams under load, whose every viewer is held to what the upstream has said.

What must hold, whatever happens to nodes, links and viewers:

1. A viewer's text is the upstream's, whole behind ``complete``, or its beginning, behind an end
   that says that there is more: an ``error``, or a ``complete`` because somebody stopped it.
2. All viewers of a stream are told the same end, once, and nobody is left without one.
3. An upstream is called once for a stream; twice where it was marked as idempotent and its worker
   died before the first token.
"""

import json
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import httpx
import token_upstream
import trio
from process import NodeProcess, child, node
from redis_server import RedisServer, free_port, redis_server

READ_BYTES = 64 * 1024
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 30.0
SILENT_SECONDS = 40.0
"""Without even a keepalive: the connection is given up."""

AGAIN_SECONDS = 0.2

STOPPED = ("complete", "stopped")
WHOLE = ("complete", "end")

PUSH_LINES = 25

PROXIED = 0.2
"""Share of those that are begun by the drop-in, and not by POST /streams."""

NODES = 3
LEASES_SECONDS = 20.0

ENDS = {"complete": WHOLE, "stopped": STOPPED, "error": ("error", "error")}
"""By the state of a snapshot, which does not say what the error was."""

End = tuple[str, str]
"""The type of the last event, and its reason or code."""


@dataclass
class Told:
    """A stream that was begun, and all that its viewers may say of it."""

    key: str
    count: int
    id: str
    idempotent: bool
    pushed: bool
    stopped: bool = False
    ends: Counter[End] = field(default_factory=Counter)

    def text(self) -> str:
        return token_upstream.text(self.key, self.count)


@dataclass
class Counts:
    streams: int = 0
    attempts: int = 0
    """To begin one, all together."""
    viewers: int = 0
    connections: int = 0
    cut: int = 0
    stalled: int = 0
    reloaded: int = 0
    snapshots: int = 0
    late: int = 0
    events: int = 0
    gone: int = 0
    """Openings that were answered by 204: the end is known."""
    gaps: int = 0
    proxied: int = 0
    stops: int = 0
    pushed: int = 0
    sent_away: Counter[str] = field(default_factory=Counter)
    """By the reason that the node gave; "cut" for none."""
    resumed: int = 0
    """Bodies that were sent to go on with what had been pushed."""


class Broken(Exception):
    """The connection, in whatever way."""


class Connection:
    """An event stream over a plain socket, which costs little: there are hundreds of them."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._data = b""
        self._text = b""
        self._is_over = False
        self.status = 0

    async def ask(self, target: str, position: str | None) -> None:
        lines = [f"GET {target} HTTP/1.1", "Host: gateway", "Accept: text/event-stream"]
        if position is not None:
            lines.append(f"Last-Event-ID: {position}")
        await self._stream.send_all("\r\n".join((*lines, "", "")).encode())
        while b"\r\n\r\n" not in self._data:
            await self._more()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        self.status = int(head.split(b" ", 2)[1])

    async def _more(self) -> None:
        data = b""
        with trio.move_on_after(SILENT_SECONDS):
            data = bytes(await self._stream.receive_some(READ_BYTES))
        if not data:
            raise Broken
        self._data += data

    async def blocks(self) -> list[bytes]:
        """Those that come next, of the chunked body; Broken where it has ended."""
        while True:
            while (at := self._data.find(b"\r\n")) > 0:
                size = int(self._data[:at], 16)
                behind = at + 2 + size
                if len(self._data) < behind + 2:
                    break
                if not size:
                    self._is_over = True
                    break
                self._text += self._data[at + 2 : behind]
                self._data = self._data[behind + 2 :]
            *blocks, self._text = self._text.split(b"\n\n")
            if blocks:
                return blocks
            if self._is_over:
                raise Broken
            await self._more()


class Viewer:
    """Watches one stream until it has ended, over as many connections as that takes."""

    def __init__(self, load: "Load", told: Told, number: int) -> None:
        self.told = told
        self.name = f"viewer {number} of {told.key}"
        self.end: End | None = None
        self.wrong: list[str] = []
        self._load = load
        self._random = random.Random(f"{load.seed} {told.key} {number}")
        self._parts: list[str] = []
        self._position: str | None = None
        self._retry = AGAIN_SECONDS
        self._why = "cut"

    @property
    def text(self) -> str:
        return "".join(self._parts)

    async def run(self) -> None:
        counts = self._load.counts
        if self._random.random() < self._load.late:
            counts.late += 1
            await trio.sleep(self._random.uniform(0, self._load.seconds * 1.2))
        while self.end is None:
            try:
                await self._watch(self._load.port())
            except (OSError, trio.BrokenResourceError, trio.TooSlowError, Broken):
                counts.sent_away[self._why] += 1
                await trio.sleep(self._retry * self._random.uniform(0.9, 1.1))
        self.told.ends[self.end] += 1

    async def _watch(self, port: int) -> None:
        counts, self._why = self._load.counts, "no connection"
        with trio.fail_after(CONNECT_SECONDS):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        self._why = "cut"
        async with stream:
            counts.connections += 1
            connection = Connection(stream)
            with trio.move_on_after(ANSWER_SECONDS):
                await connection.ask(self._target(), self._position)
            if connection.status == 204:
                counts.gone += 1
                self.wrong.append("was told that it has ended, and not how")
                self.end = ("204", "")
            if connection.status != 200:
                self._why = f"status {connection.status}"
                raise Broken
            until = trio.current_time() + self._random.expovariate(1 / self._load.patience)
            while self.end is None:
                with trio.move_on_at(until) as scope:
                    for block in await connection.blocks():
                        self._read(block)
                if scope.cancelled_caught:
                    if self._random.random() < 0.3:
                        counts.stalled += 1
                        await trio.sleep(self._random.uniform(0.5, 3.0))
                        until = trio.current_time() + self._load.patience
                        continue
                    counts.cut += 1
                    if self._random.random() < 0.3:
                        counts.reloaded += 1
                        self._parts.clear()
                        self._position = None
                    return

    def _target(self) -> str:
        target = f"/events/stream:{self.told.id}"
        if self._position is not None:
            return target
        if self._load.snapshots and self._random.random() < 0.7:
            return f"{target}?view=snapshot"
        return f"{target}?lastEventId=earliest"

    def _read(self, block: bytes) -> None:
        kind, id, data = "", None, b""
        for line in block.split(b"\n"):
            if line.startswith(b"data: "):
                data = line[6:]
            elif line.startswith(b"event: "):
                kind = line[7:].decode()
            elif line.startswith(b"id: "):
                id = line[4:].decode()
            elif line.startswith(b"retry: "):
                self._retry = int(line[7:]) / 1000
        self._load.counts.events += 1
        if kind == "token":
            self._parts.append(json.loads(data)["text"])
        elif kind in ("complete", "error"):
            document = json.loads(data)
            self.end = (kind, document.get("code") or document["reason"])
        elif kind == "snapshot":
            self._load.counts.snapshots += 1
            document = json.loads(data)
            self._parts[:] = [document["text"]]
            if not document["whole"]:
                self.wrong.append("had a snapshot without its beginning")
            self.end = ENDS.get(document["state"])
        elif kind == "reconnect":
            self._why = json.loads(data)["reason"]
        elif kind == "gap" and self._load.forgetful:
            self._load.counts.gaps += 1
        elif kind in ("gap", "dropped") or (kind == "closed" and self.end is None):
            self.wrong.append(f"was told of {kind}: {data.decode()}")
        if id is not None:
            self._position = id

    def defects(self) -> list[str]:
        whole, text = self.told.text(), self.text
        wrong = list(self.wrong)
        if self.end is None:
            wrong.append("is left without an end")
        elif self.end == WHOLE and text != whole:
            wrong.append(f"was told that it is complete, behind {len(text)} of {len(whole)}")
        elif self.end[0] == "complete" and self.end not in (WHOLE, STOPPED):
            wrong.append(f"was told of an end for no reason: {self.end[1]}")
        elif self.end == STOPPED and not self.told.stopped:
            wrong.append("was told that it has been stopped")
        if not whole.startswith(text):
            at = next(n for n, c in enumerate(text) if whole[n : n + 1] != c)
            wrong.append(
                f"has text that is none of its own at {at}: {text[max(at - 20, 0) : at + 20]!r}"
            )
        return [f"{self.name} {each}" for each in wrong]


class Load:
    """So many streams, begun over ``spread`` seconds, each of ``seconds`` and with viewers."""

    def __init__(
        self,
        ports: Sequence[int],
        *,
        seed: int = 1,
        streams: int,
        viewers: int,
        rate: float,
        seconds: float,
        spread: float,
        pushed: float = 0.1,
        stopped: float = 0.05,
        idempotent: float = 0.2,
        late: float = 0.3,
        patience: float = 4.0,
        snapshots: bool = False,
        forgetful: bool = False,
    ) -> None:
        """``pushed``, ``stopped``, ``idempotent`` and ``late`` are shares; ``patience`` is for how
        long, about, a viewer reads before something happens to its connection. A Redis that is
        ``forgetful`` may lose what it has confirmed: viewers are told of that by gaps."""
        self.ports = list(ports)
        self.seed = seed
        self.seconds = seconds
        self.late = late
        self.patience = patience
        self.snapshots = snapshots
        self.forgetful = forgetful
        self.counts = Counts()
        self.told: list[Told] = []
        self.viewers: list[Viewer] = []
        self.unbegun = 0
        self._streams, self._viewers, self._spread = streams, viewers, spread
        self._tokens, self._rate = int(rate * seconds), rate
        self._shares = (pushed, stopped, idempotent)
        self._random = random.Random(seed)

    def port(self) -> int:
        """Of any node."""
        return self._random.choice(self.ports)

    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port()}"

    async def run(self) -> None:
        """Return when all viewers have been told an end."""
        async with (
            httpx.AsyncClient(
                trust_env=False,
                verify=False,  # nobody speaks TLS, and it costs 30 ms to prepare for it
                timeout=ANSWER_SECONDS,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            ) as client,
            trio.open_nursery() as nursery,
        ):
            for number in range(self._streams):
                nursery.start_soon(self._stream, client, number, nursery)

    async def _stream(self, client: httpx.AsyncClient, number: int, nursery: trio.Nursery) -> None:
        dice = random.Random(f"{self.seed} {number}")
        pushed, stopped, idempotent = (dice.random() < share for share in self._shares)
        await trio.sleep(dice.uniform(0, self._spread))
        told = await self._begin(client, number, pushed, idempotent and not pushed, dice)
        self.told.append(told)
        self.counts.streams += 1
        for each in range(self._viewers):
            viewer = Viewer(self, told, each)
            self.viewers.append(viewer)
            self.counts.viewers += 1
            nursery.start_soon(viewer.run)
        if pushed:
            self.counts.pushed += 1
            await self._push(client, told)
        elif stopped:
            await trio.sleep(dice.uniform(0, self.seconds))
            await self._stop(client, told)

    async def _begin(
        self,
        client: httpx.AsyncClient,
        number: int,
        pushed: bool,
        idempotent: bool,
        dice: random.Random,
    ) -> Told:
        attempt = 0
        while True:
            attempt += 1
            self.counts.attempts += 1
            key = f"s{number}a{attempt}"
            body: dict[str, object] = {}
            if not pushed:
                delay = dice.uniform(0, 3.0) if idempotent else 0.0
                content = token_upstream.prompt(key, self._tokens, self._rate, delay)
                request = {"model": "fake", "messages": [{"role": "user", "content": content}]}
                body = {"upstream": "fake", "request": request, "idempotent": idempotent}
            is_proxied = not (pushed or idempotent) and dice.random() < PROXIED
            answer = None
            with suppress(httpx.TransportError):
                if is_proxied:
                    answer = await self._proxied(client, body["request"])
                else:
                    answer = await _post(client, f"{self.origin()}/streams", json.dumps(body))
            id = answer.headers.get("stream-id") if answer is not None else None
            if id is not None:
                self.counts.proxied += is_proxied
                return Told(key, self._tokens, id, idempotent, pushed)
            self.unbegun += not pushed and answer is None  # it may have been begun
            await trio.sleep(AGAIN_SECONDS)

    async def _proxied(self, client: httpx.AsyncClient, request: object) -> httpx.Response:
        """As a vendor's client begins one that is gone as soon as it knows where viewers join."""
        asked = json.dumps({**cast("dict[str, object]", request), "stream": True})
        url = f"{self.origin()}/relay/fake/chat/completions"
        answer = await _post(client, url, asked, stream=True)
        await answer.aclose()
        return answer

    async def _stop(self, client: httpx.AsyncClient, told: Told) -> None:
        told.stopped = True
        while True:
            try:
                answer = await client.delete(f"{self.origin()}/streams/{told.id}")
                if answer.status_code == 200:
                    self.counts.stops += 1
                    return
            except httpx.TransportError:
                pass
            await trio.sleep(AGAIN_SECONDS)

    async def _push(self, client: httpx.AsyncClient, told: Told) -> None:
        """As an application does: numbered, and again from where the gateway says."""
        at, began = 0, trio.current_time()
        while True:
            await trio.sleep_until(began + at / self._rate)
            numbers = range(at, min(at + PUSH_LINES, told.count))
            lines = [json.dumps({"text": token_upstream.token(told.key, n)}) for n in numbers]
            is_last = not numbers or numbers[-1] == told.count - 1
            query = f"seq={at}" if is_last else f"seq={at}&end=false"
            try:
                url = f"{self.origin()}/streams/{told.id}/events?{query}"
                answer = await _post(client, url, "".join(f"{line}\n" for line in lines))
                document = answer.json()
            except (httpx.TransportError, ValueError):
                document = {}
            if document.get("state", "streaming") != "streaming":
                return
            if "next" in document:
                self.counts.resumed += document["next"] != at + len(lines)
                at = document["next"]
            else:
                await trio.sleep(AGAIN_SECONDS)

    def defects(self, calls: dict[str, list[int]]) -> list[str]:
        """All that is wrong; ``calls`` is what the upstream says."""
        wrong = [defect for viewer in self.viewers for defect in viewer.defects()]
        begun = {told.key: told for told in self.told}
        for told in self.told:
            kinds = {kind for kind, _ in told.ends}
            if len(kinds) > 1 or len(told.ends.keys() - {ENDS["error"]}) > 1:
                wrong.append(f"{told.key} has several ends: {dict(told.ends)}")
            if not told.pushed and told.key not in calls and WHOLE in told.ends:
                wrong.append(f"{told.key} is complete, and its upstream was never called")
        for key, (count, _) in calls.items():
            told_of = begun.get(key)
            if count > 1 + (told_of is not None and told_of.idempotent):
                wrong.append(f"{key} was called for {count} times")
        missing = self._streams - len(self.told)
        if missing:
            wrong.append(f"{missing} streams could not be begun")
        return wrong

    def ends(self) -> Counter[End]:
        """Of streams, by what most of their viewers were told."""
        return Counter(told.ends.most_common(1)[0][0] for told in self.told if told.ends)


@asynccontextmanager
async def upstream() -> AsyncIterator[str]:
    """The URL of a `token_upstream` of its own process."""
    program = str(Path(__file__).with_name("token_upstream.py"))
    async with child(sys.executable, program) as process:
        found = await process.until(r"(http://\S+)\n")
        yield found[1]


async def calls_of(url: str) -> dict[str, list[int]]:
    async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_SECONDS) as client:
        calls: dict[str, list[int]] = (await client.get(url.removesuffix("/v1") + "/_calls")).json()
        return calls


FLAGS = ("--drain-grace", "1", "--drain-seconds", "2", "--drain-relay-seconds", "4")


class _Body(httpx.AsyncByteStream):
    """What is sent. httpx's own is a generator, which is left hanging where a node ends while it is
    read, and trio warns of that."""

    def __init__(self, body: bytes) -> None:
        self._left = [body]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


async def _post(
    client: httpx.AsyncClient, url: str, text: str, *, stream: bool = False
) -> httpx.Response:
    body = text.encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    request = client.build_request("POST", url, headers=headers)
    request.stream = _Body(body)
    return await client.send(request, stream=stream)


class Nodes:
    """Nodes that are ended and started again, each at its own port."""

    def __init__(self, count: int, config: Path, redis: RedisServer, nursery: trio.Nursery) -> None:
        self.ports = [free_port() for _ in range(count)]
        self._flags = ("--config", str(config), "--redis", redis.url, *FLAGS)
        self._nursery = nursery
        self._running: dict[int, NodeProcess] = {}

    async def start(self, at: int) -> None:
        """Return when it listens."""
        self._running[at] = await self._nursery.start(self._run, self.ports[at])

    async def _run(
        self, port: int, *, task_status: trio.TaskStatus[NodeProcess] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with node(*self._flags, bind=f"127.0.0.1:{port}") as started:
            task_status.started(started)
            await started.process.wait()

    async def end(self, at: int, number: signal.Signals) -> int:
        """Send a signal, and return when it has ended: its exit status."""
        self._running[at].signal(number)
        return await self._running[at].process.wait()


def configuration(directory: Path, url: str) -> Path:
    """A file with the upstream at ``url``."""
    file = directory / "gateway.toml"
    file.write_text(f'[[upstream]]\nname = "fake"\nurl = "{url}"\nformat = "openai"\n', "utf-8")
    return file


class Chaos:
    """What happens to nodes and Redis under a load, and when."""

    def __init__(self, nodes: Nodes, redis: RedisServer) -> None:
        self.happened: list[str] = []
        self.wrong: list[str] = []
        self._nodes = nodes
        self._redis = redis
        self._began = trio.current_time()

    def note(self, what: str) -> None:
        self.happened.append(f"{trio.current_time() - self._began:5.1f} s  {what}")

    async def run(self, step: float) -> None:
        """A node is killed, another one drained, and Redis killed, so many seconds apart."""
        await trio.sleep(step)
        await self._nodes.end(0, signal.SIGKILL)
        self.note("a node is killed")
        await trio.sleep(step / 4)
        await self._nodes.start(0)
        self.note("and is there again")
        await trio.sleep(step)
        self.note("a node is told to leave")
        status = await self._nodes.end(1, signal.SIGTERM)
        self.note(f"and has left: {status}")
        if status:
            self.wrong.append(f"a node that was told to leave ended with {status}")
        await self._nodes.start(1)
        self.note("and is there again")
        await trio.sleep(step)
        await self._redis.kill()
        self.note("Redis is killed")
        await trio.sleep(step / 8)
        await self._redis.start()
        self.note("and is there again, with its log")


@dataclass
class Outcome:
    """What became of a load."""

    load: Load
    happened: list[str]
    calls: dict[str, list[int]]
    took: float
    defects: list[str]


async def trial(
    directory: Path,
    load_on: Callable[[Sequence[int]], Load],
    *,
    nodes: int = NODES,
    step: float | None,
    most_seconds: float,
    fsync: str = "always",
) -> Outcome:
    """A load on nodes of its own, which lasts ``most_seconds`` at the most; ``step`` is that of
    `Chaos`, None for quiet."""
    async with (
        upstream() as url,
        redis_server(aof=True, appendfsync=fsync) as redis,
        trio.open_nursery() as nursery,
    ):
        site = Nodes(nodes, configuration(directory, url), redis, nursery)
        for at in range(nodes):
            await site.start(at)
        load, chaos, began = load_on(site.ports), Chaos(site, redis), trio.current_time()
        with trio.move_on_after(most_seconds) as patience:
            async with trio.open_nursery() as both:
                both.start_soon(load.run)
                if step is not None:
                    both.start_soon(chaos.run, step)
        took = trio.current_time() - began
        calls = await calls_of(url)
        defects = [*chaos.wrong, *load.defects(calls)]
        if patience.cancelled_caught:
            defects.append(f"it was not over within {most_seconds:g} seconds")
        else:
            await _no_leases(redis, defects)
        nursery.cancel_scope.cancel()
    return Outcome(load, chaos.happened, calls, took, defects)


async def _no_leases(redis: RedisServer, defects: list[str]) -> None:
    """Add to ``defects`` if streams are being made still, behind the last one's end."""
    with trio.move_on_after(LEASES_SECONDS):
        while await redis.call("ZCARD", "gateway:streams"):  # noqa: ASYNC110  # in other processes
            await trio.sleep(AGAIN_SECONDS)
        return
    defects.append("there are leases of streams that have ended")
