"""What a process says of itself: true, cheap, and gone when nobody watches any more."""

import gc
import os
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from running import descriptors, until
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import process
from gateway.process import COUNT_SLICE, LOOK_SECONDS, Process


@asynccontextmanager
async def watching() -> AsyncIterator[Process]:
    watched = Process()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.run)
        yield watched
        nursery.cancel_scope.cancel()


async def test_an_idle_loop_is_on_time(autojump_clock: MockClock) -> None:
    async with watching() as watched:
        await trio.sleep(10)
        lag = watched.loop_statistics().lag
        assert lag.counts[0] == lag.count
        assert abs(lag.count - 10 / LOOK_SECONDS) <= 1


async def test_a_loop_that_is_kept_busy_is_late() -> None:
    async with watching() as watched:
        await wait_all_tasks_blocked()
        time.sleep(LOOK_SECONDS + 0.1)  # noqa: ASYNC251  # that is the point
        await until(lambda: watched.loop_statistics().lag.count > 0)
        lag = watched.loop_statistics().lag
        assert lag.sum >= 0.09
        assert not sum(lag.counts[: lag.bounds.index(0.05) + 1])


async def test_collections_are_timed_by_generation_and_only_while_it_runs() -> None:
    def counts(of: Process) -> list[int]:
        return [each.count for each in of.loop_statistics().gc_pauses.values()]

    before = list(gc.callbacks)
    async with watching() as watched:
        await wait_all_tasks_blocked()
        gc.disable()
        try:
            young, middle, full = counts(watched)
            gc.collect(0)
            gc.collect(2)
            assert counts(watched) == [young + 1, middle, full + 1]
        finally:
            gc.enable()
        assert watched.loop_statistics().gc_pauses["2"].sum > 0
    assert gc.callbacks == before


async def test_the_process_is_told_as_it_is(tmp_path: Path) -> None:
    watched = Process()
    before = watched.statistics()
    assert before.tasks == trio.lowlevel.current_statistics().tasks_living
    assert 2**22 < before.resident_bytes < 2**33
    assert before.open_fds < before.max_fds
    held = bytearray(os.urandom(2**20) * 16)
    with (tmp_path / "file").open("w"), (tmp_path / "other").open("w"):
        now = watched.statistics()
        assert now.open_fds == before.open_fds + 2
    assert now.resident_bytes > before.resident_bytes + len(held) // 2
    assert before.cpu_seconds < now.cpu_seconds <= time.process_time()


async def test_an_older_kernel_has_the_descriptors_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In slices, as there may be a hundred thousand of them."""
    for number in range(2 * COUNT_SLICE):
        (tmp_path / str(number)).touch()
    monkeypatch.setattr(process, "_told_fds", lambda: 0)
    async with watching() as watched:
        await until(lambda: watched.statistics().open_fds > 0)
        assert abs(watched.statistics().open_fds - descriptors()) <= 3
    monkeypatch.setattr(process, "_DESCRIPTORS", tmp_path)
    async with watching() as watched:
        turns = 0
        while not watched.statistics().open_fds:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert watched.statistics().open_fds == 2 * COUNT_SLICE
        assert turns >= 2


async def test_a_process_without_a_descriptor_left_tells_what_it_told_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And goes on: its streams need none."""
    async with watching() as watched:
        before = watched.statistics()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            assert watched.statistics().resident_bytes == before.resident_bytes
            monkeypatch.setattr(process, "_told_fds", lambda: 0)
            async with watching() as counting:
                await wait_all_tasks_blocked()
                assert counting.statistics().open_fds == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
