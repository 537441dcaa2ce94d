"""The clock: keepalives for silent clients, the end of those whose token is over, and of those that
are behind for too long.

A wheel of ticks: each client stands in the slot of the tick in which it would have been silent for
long enough, or its token is over, and moves on when that comes. What was written meanwhile only
costs it another look. Tokens end by the wall clock: when somebody sets that, all are looked at.
"""

import random
from collections.abc import Callable

import trio

from gateway import control
from gateway.config import Config
from gateway.http1_render import chunk
from gateway.hub import Hub
from gateway.hub_client import Client
from gateway.stream_state import Reason, State

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


STEP_SECONDS = 0.5
"""By which the wall clock must have left the steady one to count as set."""


class Clock:
    def __init__(self, config: Config, hub: Hub, *, now_ms: Callable[[], int]) -> None:
        """``now_ms`` is the wall clock."""
        self._hub = hub
        self._now_ms = now_ms
        self._retry = config.retry
        self._interval = config.keepalive
        self._tick = min(max(config.keepalive / TICKS, MIN_TICK), MAX_TICK)
        self._wheel: dict[int, list[Client]] = {}
        self._ticked = 0
        """The last slot that was looked at, or is being looked at."""

    def schedule(self, client: Client) -> None:
        """Look at a client again when it has been silent for nearly the interval, or its token is
        over; whatever was scheduled before is off."""
        now = trio.current_time()
        due = now + LOOK_AHEAD
        if client.sock is not None:
            silence = random.uniform(self._interval * (1 - SPREAD), self._interval - self._tick)
            due = min(max(client.last_write + silence, now), due)
        expires_ms = client.identity.expires_ms
        if expires_ms is not None:
            due = min(due, now + max(0, expires_ms - self._now_ms()) / 1000)
        slot = max(int(due / self._tick), self._ticked) + 1  # rounding must not find a past one
        client.due = slot
        self._wheel.setdefault(slot, []).append(client)

    async def run(self) -> None:
        self._ticked = int(trio.current_time() / self._tick)
        ahead = self._ahead()
        while True:
            await trio.sleep_until((self._ticked + 1) * self._tick)
            self._ticked += 1
            due = [c for c in self._wheel.pop(self._ticked, []) if c.due == self._ticked]
            before, ahead = ahead, self._ahead()
            if abs(ahead - before) > STEP_SECONDS:
                due += [c for slot, each in self._wheel.items() for c in each if c.due == slot]
                self._wheel.clear()
            await self._look(list(dict.fromkeys(due)))
            self._hub.close_stalled()

    def _ahead(self) -> float:
        """Seconds by which the wall clock is ahead of the steady one."""
        return self._now_ms() / 1000 - trio.current_time()

    async def _look(self, clients: list[Client]) -> None:
        silent_since = trio.current_time() - self._interval * (1 - SPREAD)
        for start in range(0, len(clients), BATCH):
            async with self._hub.turn:  # between two passes all live clients stand at one position
                position = self._hub.proven_live()
                data = chunk(control.keepalive(position))
                now_ms = self._now_ms()
                for client in clients[start : start + BATCH]:
                    expires_ms = client.identity.expires_ms
                    if expires_ms is not None and expires_ms <= now_ms:
                        self._expire(client)
                    elif client.state is State.LIVE and client.last_write <= silent_since:
                        self._hub.send_keepalive(client, data, position)
                    if client.state not in (State.ENDING, State.CLOSED):
                        self.schedule(client)

    def _expire(self, client: Client) -> None:
        farewell = control.retry(self._retry) + control.reconnect(Reason.TOKEN_EXPIRED)
        self._hub.finish(client, Reason.TOKEN_EXPIRED, farewell)
