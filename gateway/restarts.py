"""When a worker that has died is started again, and when no more. Pure: the time is told.

Back-off doubles with each death and begins anew after a worker that lived for long. One worker's
deaths say nothing of another's, so each number has its own count: killing all of a node's workers
once is one death for each.
"""

from collections import deque

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds before a start, after the first death and at most."""

LONG_LIFE = 60.0
"""Seconds after which a death is a first one again."""

MAX_DEATHS = 5
DEATHS_WITHIN = 60.0
"""So many deaths within so many seconds, and the fault is not the worker's: systemd's
StartLimitBurst is 5 too."""

MAX_FAILED_STARTS = 3
"""Deaths in a row before the worker was ready: what it needs is not there."""


class Restarts:
    """Of the workers that have one number, one after another."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self._failed_starts = 0

    def died(self, now: float, *, lived: float, was_ready: bool) -> float:
        """Count a death at ``now``; the seconds until the next start."""
        if lived >= LONG_LIFE:
            self._pause = FIRST_PAUSE
        self._deaths.append(now)
        self._failed_starts = 0 if was_ready else self._failed_starts + 1
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause

    @property
    def hopeless(self) -> str:
        """Why there is no point in another start; empty if there is."""
        if self._failed_starts >= MAX_FAILED_STARTS:
            return f"died {self._failed_starts} times before it was ready"
        deaths = self._deaths
        if len(deaths) == MAX_DEATHS and deaths[-1] - deaths[0] <= DEATHS_WITHIN:
            return f"died {MAX_DEATHS} times within {deaths[-1] - deaths[0]:.0f} seconds"
        return ""
