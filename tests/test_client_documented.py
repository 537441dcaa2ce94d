"""The example of the reference does what is said of it, on both loops."""

import re
import sys

import pytest
import trio
from documents import REFERENCE
from near import near
from process import environment


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_the_example_publishes_and_follows(backend: str) -> None:
    found = re.search(r"<!-- python client -->\n```python\n(.*?)```", REFERENCE, re.DOTALL)
    assert found is not None
    program = found[1].replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})")
    async with near() as n:
        ran = await trio.run_process(
            [sys.executable, "-W", "error", "-c", program],
            capture_stdout=True,
            env=environment(GATEWAY_URL=n.url),
        )
    assert ran.stdout.decode() == "greeting Hello ('news',) True\n"
