"""What systemd is told of the node: sd_notify(3), spoken here and not by its library.

1. Only the process that the manager has started speaks. What it finds in its environment is not
   for its workers: they are started without it (`environment_of_children`).
2. The node does not depend on being heard: what cannot be said within SEND_SECONDS is a warning.
3. That the loop turns is said by a task of the loop, so one that hangs says nothing.
"""

import logging
import os
import time

import trio

SEND_SECONDS = 5.0
"""For a manager whose queue is full."""

_SOCKET = "NOTIFY_SOCKET"
"""A path, or @ and the name of an abstract socket; unset where nobody asks."""
_WATCHDOG = "WATCHDOG_USEC"
"""Microseconds of silence after which the manager holds the process to hang."""
_WATCHDOG_PID = "WATCHDOG_PID"
"""Whom that is asked of."""

_log = logging.getLogger("gateway")


async def report(stopping: trio.Event, stop_seconds: float) -> None:
    """Say that the node is ready, that its loop turns, and, at ``stopping``, that it ends, for
    which it may need ``stop_seconds``; until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch)
        await ready()
        await stopping.wait()
        await _notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round(stop_seconds * 1e6)}")


async def ready() -> None:
    """Say that the node serves, or has reloaded."""
    await _notify("READY=1")


async def reloading() -> None:
    """Say that a reload has begun; `ready` ends it."""
    await _notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def environment_of_children() -> dict[str, str]:
    """This process's, without what the manager says to it alone."""
    ours = (_SOCKET, _WATCHDOG, _WATCHDOG_PID)
    return {name: value for name, value in os.environ.items() if name not in ours}


async def _watch() -> None:
    """Return at once where the manager does not watch this process."""
    told, own = os.environ.get(_WATCHDOG, ""), str(os.getpid())
    allowed = int(told) if told.isdecimal() else 0
    if not allowed or os.environ.get(_WATCHDOG_PID, own) != own:
        return
    while True:
        await _notify("WATCHDOG=1")
        await trio.sleep(allowed / 2 / 1e6)


async def _notify(*assignments: str) -> None:
    """Send one message."""
    path = os.environ.get(_SOCKET)
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with (
            trio.fail_after(SEND_SECONDS),
            trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as sock,
        ):
            await sock.connect(address)
            await sock.send("\n".join(assignments).encode())
    except (OSError, trio.TooSlowError) as error:
        why = getattr(error, "strerror", None) or "it does not read"
        _log.warning("the service manager was not told %s: %s", assignments[0], why)
