"""How the number of users develops, by ``--shape``."""

import math
from typing import Any

from locust import LoadTestShape

from stress.scene import the_scene

CUT = "gateway-cut"
"""The message that has all subscribers lose their streams at once."""

SHAPE_SECONDS = 60
"""Of a ramp or a spike without --run-time."""

RAMP_STEPS = 10

SPIKE_BASE = 0.1
"""Of the users, who are there before and after the spike."""


class Shape(LoadTestShape):
    """How many users there are, by ``--shape``: up to ``--users``, for ``--run-time``."""

    use_common_options = True

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[int, float] | None = None
        self._storms = 0

    def reset_time(self) -> None:
        super().reset_time()
        self._storms = 0

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many of them come or go in a second; None at the end."""
        runner: Any = self.runner
        options = runner.environment.parsed_options
        seconds = options.run_time or (
            SHAPE_SECONDS if options.shape in ("ramp", "spike") else math.inf
        )
        now = self.get_run_time()
        if the_scene().settlement.is_settling:
            return self._last
        if now >= seconds:
            return None
        users, rate = options.num_users or 1, options.spawn_rate or 1
        if options.shape == "ramp":
            users = math.ceil(users * (math.floor(RAMP_STEPS * now / seconds) + 1) / RAMP_STEPS)
        elif options.shape == "spike":
            base = math.ceil(SPIKE_BASE * users)
            users, rate = users if 1 <= 3 * now / seconds < 2 else base, users
        elif options.shape == "storm" and now // options.storm_every > self._storms:
            self._storms += 1
            runner.send_message(CUT)
        self._last = (users, rate)
        return self._last
