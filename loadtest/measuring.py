"""What the load tests on Redis are made of: servers of their own, `fanout`, and tables of medians.

Importing this has the program run in the repository's virtual environment, which is made the first
time, with the harness of the tests to import.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV = ROOT / ".venv"


def enter_venv() -> None:
    if Path(sys.prefix).resolve() != VENV.resolve():
        if not (VENV / "bin" / "gateway").exists():
            setup = f'. "{ROOT}/deploy/setup.sh" && setup_venv "{ROOT}" ""'
            subprocess.run(["bash", "-ec", setup], check=True)
        python = str(VENV / "bin" / "python")
        os.execv(python, [python, *sys.argv])
    sys.path.append(str(ROOT / "tests"))


enter_venv()

import trio  # noqa: E402
from process import NodeProcess, environment, node  # noqa: E402
from redis_server import redis_server  # noqa: E402

Figures = dict[str, float]


def require(parser: argparse.ArgumentParser, *programs: str) -> None:
    """End with a sentence unless all of these are installed."""
    path = environment()["PATH"]
    if missing := [program for program in programs if not shutil.which(program, path=path)]:
        parser.error(f"not installed: {', '.join(missing)}; see loadtest/README.md")


def cpu_seconds(pid: int) -> float:
    """User and kernel time of a process so far, in steps of 10 ms: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pids_of(node: NodeProcess) -> list[int]:
    return [node.process.pid, *node.workers()]


def resident_mib(node: NodeProcess) -> float:
    """RSS of a node's processes together."""
    statuses = [Path(f"/proc/{pid}/status").read_text("utf-8") for pid in pids_of(node)]
    lines = [line for status in statuses for line in status.splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@dataclass
class Site:
    """What a load is put on: where to subscribe and publish, and whose CPU that costs."""

    port: int
    pub_port: int
    processes: dict[str, list[int]] = field(default_factory=dict)
    redis_port: int = 0

    @property
    def pids(self) -> list[int]:
        return sorted({pid for pids in self.processes.values() for pid in pids})


@asynccontextmanager
async def on_memory(*flags: str) -> AsyncIterator[Site]:
    async with node(*flags) as n:
        yield Site(n.port, n.port, {"node": pids_of(n)})


@asynccontextmanager
async def on_redis(*flags: str, nodes: int = 1) -> AsyncIterator[Site]:
    """One node, or two: subscribers at the second and publishers at the first."""
    async with redis_server() as redis, node("--redis", redis.url, *flags) as a:
        server = [int((await redis.info("server"))["process_id"])]
        if nodes == 1:
            yield Site(a.port, a.port, {"redis": server, "node": pids_of(a)}, redis.port)
            return
        async with node("--redis", redis.url, *flags) as b:
            processes = {"redis": server, "node A": pids_of(a), "node B": pids_of(b)}
            yield Site(b.port, a.port, processes, redis.port)


class Fanout:
    """The load generator, built. ``failed`` says whether any run lost deliveries or had errors."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.failed = False

    async def __call__(self, site: Site, *load: str, of: Sequence[str] = ()) -> Figures:
        """What it says of a load on ``site``; CPU and memory are of the processes named ``of``.

        Beside the words that fanout prints there are "<process> cores", over the time from the
        first publish to the last delivery, and "<process> us", of CPU for each event published.
        """
        pids = [pid for name in of for pid in site.processes[name]] or site.pids
        command = (
            *(self.program, "--port", str(site.port), "--pub-port", str(site.pub_port)),
            *("--pids", ",".join(map(str, pids)), *load),
        )
        done = await trio.run_process(command, capture_stdout=True, check=False)
        self.failed = self.failed or done.returncode != 0
        words = dict(word.split("=") for word in done.stdout.decode().split())
        figures = {name: float(value) for name, value in words.items()}
        return figures | _shares(figures, site)


def _shares(figures: Mapping[str, float], site: Site) -> Figures:
    seconds, events = figures.get("duration_s", 0), figures.get("published", 0)
    if not seconds or not events:
        return {}
    used = {
        name: sum(figures.get(f"cpu_s_{pid}", 0) for pid in pids)
        for name, pids in site.processes.items()
    }
    used["load generator"] = figures["load_cpu_s"]
    shares: Figures = {"all us": sum(used.values()) * 1e6 / events}
    for name, cpu in used.items():
        shares[f"{name} cores"] = cpu / seconds
        shares[f"{name} us"] = cpu * 1e6 / events
    cores = os.cpu_count() or 1
    shares["idle cores"] = figures["idle_s"] / seconds
    shares["other cores"] = max(0.0, cores - shares["idle cores"] - sum(used.values()) / seconds)
    nodes = sum(cpu for name, cpu in used.items() if name.startswith("node"))
    shares["nodes us/delivery"] = nodes * 1e6 / max(1, figures["delivered"])
    return shares


@asynccontextmanager
async def built_fanout() -> AsyncIterator[Fanout]:
    async with built("fanout") as program:
        yield Fanout(program)


@asynccontextmanager
async def built(name: str) -> AsyncIterator[str]:
    """The program made of ``<name>.c``; whatever is started may open as much as is allowed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with TemporaryDirectory(prefix=f"{name}-") as directory:
        program = f"{directory}/{name}"
        source = str(HERE / f"{name}.c")
        await trio.run_process(["cc", "-O2", "-pthread", "-o", program, source])
        yield program


def table(title: str, names: Sequence[str], runs: Mapping[str, Sequence[Figures]]) -> str:
    """For each figure a line for each that was measured: the median of the ratios of neighbouring
    runs to the first of ``runs``, the median, the lowest and the highest."""
    first = next(iter(runs))
    width = max(map(len, names))
    beside = max(map(len, runs))
    heads = "".join(f"{head:>12}" for head in ("median", "lowest", "highest"))
    lines = [title, f"{'':{width}}  {'':{beside}}  {'ratio':>8}{heads}"]
    for name in names:
        for site, figures in runs.items():
            if not any(name in run for run in figures):
                continue
            values = [run.get(name, 0) for run in figures]
            ratios = [
                value / base[name]
                for value, base in zip(values, runs[first], strict=True)
                if base.get(name)
            ]
            ratio = f"{median(ratios):8.3g}" if ratios else " " * 8
            low, middle, high = (_shown(v) for v in (min(values), median(values), max(values)))
            lines.append(f"{name:{width}}  {site:{beside}}  {ratio}{middle:>12}{low:>12}{high:>12}")
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
