"""How long requests take, by route and status. A route is a template of ours, and never a path."""

from gateway.histogram import WAITS, Distribution, Histogram

PUBLISH_TO = "/publish/<channel>"
ASSETS = "assets"
"""What pages load: their scripts and styles, and the modules for pages of anybody."""
OTHER = "other"
"""What has no route, and what could not even be read."""

_USUAL = (
    ("/events", 200),
    ("/poll", 200),
    ("/publish", 200),
    ("/publish", 202),
    (PUBLISH_TO, 202),
)
"""There from the beginning: a series that begins with its first request hides that from rates."""


class RequestDurations:
    def __init__(self) -> None:
        self._durations = {key: Histogram(WAITS) for key in _USUAL}

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count an answer to a request for one of our routes."""
        durations = self._durations.get((route, status))
        if durations is None:
            durations = self._durations[route, status] = Histogram(WAITS)
        durations.observe(seconds)

    def statistics(self) -> dict[str, dict[str, Distribution]]:
        """By route and, within it, status."""
        found: dict[str, dict[str, Distribution]] = {}
        for (route, status), durations in self._durations.items():
            found.setdefault(route, {})[str(status)] = durations.snapshot()
        return found
