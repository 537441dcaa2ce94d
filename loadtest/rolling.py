"""Three nodes in their places behind HAProxy, as deploy/ has them, with Prometheus looking on.

Whoever imports this has imported `measuring` before.
"""

import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import certificates
import httpx
import trio
from balancers import NODES, Balancer, haproxy
from process import NodeProcess, child, eventually, node
from redis_server import free_port

RULES = Path(__file__).resolve().parent.parent / "grafana" / "rules.yml"

PROMETHEUS = """\
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: ["{rules}"]
scrape_configs:
  - job_name: gateway
    static_configs:
      - targets: {targets}
"""


class Place:
    """Where a node is, and the one that is there now."""

    def __init__(self, number: int, flags: Sequence[str], nursery: trio.Nursery) -> None:
        self.number = number
        self.port, self.admin_port = free_port(), free_port()
        self.node: NodeProcess
        self._flags = (*flags, "--admin-bind", f"127.0.0.1:{self.admin_port}")
        self._nursery = nursery
        self._over = trio.CancelScope()

    async def start(self) -> None:
        """Return when a new node listens."""
        await self._nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as self._over:
            async with node(*self._flags, bind=f"127.0.0.1:{self.port}") as self.node:
                task_status.started()
                await trio.sleep_forever()

    async def end(self, number: signal.Signals) -> int:
        """Send a signal; the exit code."""
        self.node.signal(number)
        code = await self.node.wait()
        self._over.cancel()
        return code


class Prometheus:
    """It scrapes all nodes each second, and evaluates the alerts of grafana/ as often."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    async def _ask(self, path: str, **query: str | float) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"{self._url}/{path}", params=query)
        answer.raise_for_status()
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result

    async def sees(self, count: int) -> bool:
        """Whether it has scraped so many nodes."""
        try:
            return len(await self._ask("query", query="up == 1")) == count
        except httpx.HTTPError:
            return False

    async def alerts(self, state: str, since: float | None = None) -> set[str]:
        """The names of those in ``state`` now, or at any time from ``since`` on."""
        query, now = f'ALERTS{{alertstate="{state}"}}', time.time()
        series = await self._ask("query_range", query=query, start=since or now, end=now, step=1)
        return {each["metric"]["alertname"] for each in series}


@asynccontextmanager
async def prometheus(directory: Path, places: Sequence[Place]) -> AsyncIterator[Prometheus]:
    port = free_port()
    targets = [f"127.0.0.1:{place.admin_port}" for place in places]
    configuration = directory / "prometheus.yml"
    configuration.write_text(PROMETHEUS.format(rules=RULES, targets=targets), "utf-8")
    async with child(
        *("prometheus", f"--config.file={configuration}"),
        *(f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
        "--log.level=warn",
    ) as program:
        found = Prometheus(port)

        async def sees_all() -> bool:
            assert program.process.returncode is None, program.output
            return await found.sees(len(places))

        await eventually(sees_all)
        yield found


@dataclass(frozen=True)
class Replaced:
    """A node that was replaced: when, in seconds since 1970."""

    number: int
    began: float
    ended: float
    """When its process had."""
    up: float
    """When HAProxy gave streams to the next one."""


class Site:
    def __init__(self, places: Sequence[Place], balancer: Balancer, prometheus: Prometheus) -> None:
        self.places = places
        self.balancer = balancer
        self.prometheus = prometheus
        self.wrong: list[str] = []

    async def replace(self, place: Place, number: signal.Signals) -> Replaced:
        """End the node at ``place``, start another one there, and return when it gets streams."""
        began = time.time()
        code = await place.end(number)
        ended = time.time()
        expected = 0 if number is signal.SIGTERM else -number
        if code != expected or "Traceback" in place.node.output:
            self.wrong.append(f"node {place.number} ended with {code}: {place.node.output[-1000:]}")
        await place.start()

        async def gets_streams() -> bool:
            return await self.balancer.has_up(place.number)

        await eventually(gets_streams)
        return Replaced(place.number, began, ended, time.time())


@asynccontextmanager
async def site(*flags: str, check: float) -> AsyncIterator[Site]:
    """Nodes with these flags."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="roll-")))
        nursery = await stack.enter_async_context(trio.open_nursery())
        places = [Place(number, flags, nursery) for number in range(1, NODES + 1)]
        async with trio.open_nursery() as starting:
            for place in places:
                starting.start_soon(place.start)
        certificate = certificates.make(directory, "haproxy")
        balancer = await stack.enter_async_context(
            haproxy(places, certificate, check_interval=check)
        )
        watcher = await stack.enter_async_context(prometheus(directory, places))
        yield Site(places, balancer, watcher)
        nursery.cancel_scope.cancel()
