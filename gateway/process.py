"""What a worker's process costs, and what stops it: its collector, and a loop that is busy.

1. Reading is cheap whatever the process holds: nothing is listed or walked through for it. Where
   no descriptor is left to read with, what was read last counts: nobody's stream ends for it.
2. How late trio's loop is, is measured where it hurts: by a task that wants its turn at a time.
"""

import gc
import os
import resource
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from gateway.histogram import LATENCIES, PAUSES, Distribution, Histogram

COUNT_SECONDS = 15.0
"""Between two counts of the descriptors, where they have to be counted: as often as is scraped."""

COUNT_SLICE = 256
"""Descriptors counted between two checkpoints: a quarter of a millisecond."""

LOOK_SECONDS = 0.25
"""Between two looks at how late the loop is: a stall of a tenth of a second seldom escapes it, and
a process that idles still idles."""

_PAGE_BYTES = resource.getpagesize()

_STATM = Path("/proc/self/statm")
_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class ProcessStatistics:
    """A snapshot of one worker's process. ``tasks`` are trio's."""

    cpu_seconds: float
    resident_bytes: int
    open_fds: int
    max_fds: int
    tasks: int


@dataclass(frozen=True, slots=True)
class LoopStatistics:
    """What kept workers from working, in seconds; ``gc_pauses`` by generation."""

    lag: Distribution
    gc_pauses: dict[str, Distribution]


class Process:
    def __init__(self) -> None:
        self._lag = Histogram(LATENCIES)
        self._pauses = {str(each): Histogram(PAUSES) for each in range(len(gc.get_threshold()))}
        self._collecting_since = 0.0
        self._counted_fds = self._resident_bytes = 0

    async def run(self) -> None:
        """Watch the collector and the loop, until cancelled."""
        gc.callbacks.append(self._collected)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_loop)
                nursery.start_soon(self._count_descriptors)
        finally:
            gc.callbacks.remove(self._collected)

    async def _watch_loop(self) -> None:
        while True:
            due = trio.current_time() + LOOK_SECONDS
            await trio.sleep_until(due)
            self._lag.observe(trio.current_time() - due)

    async def _count_descriptors(self) -> None:
        """Now and then, where the kernel does not tell their number, as Linux before 6.2."""
        while not _told_fds():
            count = 0
            with suppress(OSError), os.scandir(_DESCRIPTORS) as entries:
                for count, _ in enumerate(entries, 1):
                    if not count % COUNT_SLICE:
                        await trio.lowlevel.checkpoint()
                self._counted_fds = count
            await trio.sleep(COUNT_SECONDS)

    def _collected(self, phase: str, about: Mapping[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.perf_counter()
        else:
            pause = time.perf_counter() - self._collecting_since
            self._pauses[str(about["generation"])].observe(pause)

    def statistics(self) -> ProcessStatistics:
        with suppress(OSError):
            self._resident_bytes = int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES
        return ProcessStatistics(
            cpu_seconds=time.process_time(),
            resident_bytes=self._resident_bytes,
            open_fds=_told_fds() or self._counted_fds,
            max_fds=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            tasks=trio.lowlevel.current_statistics().tasks_living,
        )

    def loop_statistics(self) -> LoopStatistics:
        return LoopStatistics(
            lag=self._lag.snapshot(),
            gc_pauses={name: each.snapshot() for name, each in self._pauses.items()},
        )


def _told_fds() -> int:
    """How many descriptors are open; 0 where the kernel does not tell."""
    return _DESCRIPTORS.stat().st_size
