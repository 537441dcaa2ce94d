"""The clock: keepalives for silent clients, and the end of those that are behind for too long.

A wheel of ticks: each client stands in the slot of the tick in which it would have been silent for
long enough, and moves on when that comes. What was written meanwhile only costs it another look.
"""

import random

import trio

from gateway import control
from gateway.client import Client, State
from gateway.config import Config
from gateway.http1_render import chunk
from gateway.hub import Hub

SPREAD = 0.2
"""The last part of the keepalive interval, over which silent clients are spread by chance."""

TICKS = 100
"""Ticks in a keepalive interval: ten thousand idle clients get theirs in twenty portions."""

MIN_TICK, MAX_TICK = 0.01, 0.25
"""Seconds between two ticks: neither a busy loop nor a coarse clock, whatever the interval."""

LOOK_AHEAD = 15.0
"""Seconds after which a client is looked at whatever the interval, so that those who went are not
kept for longer."""

BATCH = 256
"""Keepalives written while the passes wait: about half a millisecond."""


class Clock:
    def __init__(self, config: Config, hub: Hub) -> None:
        self._hub = hub
        self._interval = config.keepalive
        self._tick = min(max(config.keepalive / TICKS, MIN_TICK), MAX_TICK)
        self._wheel: dict[int, list[Client]] = {}
        self._ticked = 0
        """The last slot that was looked at, or is being looked at."""

    def schedule(self, client: Client) -> None:
        """Look at a direct client again when it has been silent for nearly the interval."""
        silence = random.uniform(self._interval * (1 - SPREAD), self._interval - self._tick)
        now = trio.current_time()
        due = min(max(client.last_write + silence, now), now + LOOK_AHEAD)
        slot = max(int(due / self._tick), self._ticked) + 1  # rounding must not find a past one
        self._wheel.setdefault(slot, []).append(client)

    async def run(self) -> None:
        self._ticked = int(trio.current_time() / self._tick)
        while True:
            await trio.sleep_until((self._ticked + 1) * self._tick)
            self._ticked += 1
            await self._send_keepalives(self._wheel.pop(self._ticked, []))
            self._hub.close_stalled()

    async def _send_keepalives(self, clients: list[Client]) -> None:
        silent_since = trio.current_time() - self._interval * (1 - SPREAD)
        for start in range(0, len(clients), BATCH):
            async with self._hub.turn:  # between two passes all live clients stand at one position
                position = self._hub.proven_live()
                data = chunk(control.keepalive(position))
                for client in clients[start : start + BATCH]:
                    if client.state is State.LIVE and client.last_write <= silent_since:
                        self._hub.send_keepalive(client, data, position)
                    if client.state not in (State.ENDING, State.CLOSED):
                        self.schedule(client)
