"""What must hold on both of the loops that the client runs on."""

import gc
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest
import trio
from process import PATIENCE

BACKENDS = pytest.mark.parametrize("backend", ["trio", "asyncio"])


async def on(backend: str, function: Callable[[], Awaitable[None]]) -> None:
    """Run ``function`` on a loop of that kind, while this one goes on."""

    async def bounded() -> None:
        with anyio.fail_after(PATIENCE):
            await function()
        gc.collect()  # an async generator that was left suspended warns here, which fails the test
        await anyio.lowlevel.checkpoint()

    run = partial(anyio.run, bounded, backend=backend)
    await trio.to_thread.run_sync(run)
