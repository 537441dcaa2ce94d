"""What became of the events that clients were owed, by class of channels. Pure.

1. A class is a ``[[channel]]`` table of the configuration, named by its pattern; channels of none
   are DEFAULT. So whoever names channels names no class.
2. MAX_CLASSES tables are counted apart, in their order, and all further ones as OTHER.
3. What the gateway reports of itself is not counted: it is of no class.
4. What is written together is counted together: whoever writes one batch to a thousand clients
   counts once (`Batch`), and never for each delivery.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from gateway.charge import Charge
from gateway.config import OPS_RULE, ChannelRule, Config
from gateway.event import Frame
from gateway.happenings import Happenings
from gateway.histogram import LATENCIES, Distribution, Histogram, added

DEFAULT = "default"
OTHER = "other"

MAX_CLASSES = 32
"""Each is twenty time series of every node, and a line of every panel."""


class Dropped(StrEnum):
    """Why an event was not given to a client that was owed it."""

    FULL = "full"
    """Its outbox was full."""
    REPLACED = "replaced"
    """A newer one of its key came, under the policy ``latest``."""
    MEMORY = "memory"
    """The node's memory was used up."""


@dataclass(frozen=True, slots=True)
class ClassStatistics:
    """A snapshot of one class, counted since the start; ``dropped`` by reason.

    ``lag`` is in seconds, of what was live when it was written.
    """

    delivered: int
    dropped: dict[str, int]
    lag: Distribution


class Tally:
    """The counters of one class."""

    __slots__ = ("delivered", "dropped", "lag")

    def __init__(self) -> None:
        self.delivered = 0
        self.dropped: dict[str, int] = dict.fromkeys(Dropped, 0)
        self.lag = Histogram(LATENCIES)

    def statistics(self) -> ClassStatistics:
        return ClassStatistics(self.delivered, dict(self.dropped), self.lag.snapshot())


Batch: TypeAlias = "Sequence[tuple[Tally, Collection[tuple[int, int]]]]"
"""Frames that are written together: of each class, how many there are of each millisecond."""


def batch_of_several(frames: Sequence[Frame], tally_of: Callable[[Sequence[str]], Tally]) -> Batch:
    """What will be counted when ``frames`` are written to whom ``tally_of`` their channels is."""
    if len(frames) == 1:
        return batch_of(tally_of(frames[0].channels), frames)
    parts: dict[tuple[str, ...], list[Frame]] = {}
    for frame in frames:
        parts.setdefault(frame.channels, []).append(frame)
    return [each for channels, some in parts.items() for each in batch_of(tally_of(channels), some)]


def batch_of(tally: Tally, frames: Sequence[Frame]) -> Batch:
    """The same of ``frames`` of one class, which are in the order of their positions."""
    first = frames[0].position[0]
    if first == frames[-1].position[0]:
        return ((tally, ((first, len(frames)),)),)
    times: dict[int, int] = {}  # no Counter, which takes a microsecond to be made
    for frame in frames:
        ms = frame.position[0]
        times[ms] = times.get(ms, 0) + 1
    return ((tally, times.items()),)


class Totals:
    """Counters over all clients of a hub, past ones included, and what is charged for them."""

    __slots__ = (
        "_config",
        "_now_ms",
        "_of_reports",
        "_tallies",
        "charge",
        "happenings",
        "replayed",
    )

    def __init__(self, charge: Charge, config: Config, now_ms: Callable[[], int]) -> None:
        """``now_ms`` is the clock by which events have their positions."""
        self.charge = charge
        self.replayed = 0
        self.happenings: Happenings | None = None
        """Where what happens to clients is noted while somebody watches."""
        self._of_reports = Tally()
        self._config = config
        self._now_ms = now_ms
        patterns = dict.fromkeys(rule.match for rule in config.channels)
        self._tallies = {name: Tally() for name in (DEFAULT, *tuple(patterns)[:MAX_CLASSES])}
        if len(patterns) > MAX_CLASSES:
            self._tallies[OTHER] = Tally()

    @property
    def delivered(self) -> int:
        return sum(tally.delivered for tally in self._tallies.values())

    @property
    def dropped(self) -> int:
        return sum(sum(tally.dropped.values()) for tally in self._tallies.values())

    def dropped_by_reason(self) -> dict[str, int]:
        tallies = self._tallies.values()
        return {reason: sum(tally.dropped[reason] for tally in tallies) for reason in Dropped}

    def lag(self) -> Distribution:
        """Of all classes together."""
        return added([tally.lag.snapshot() for tally in self._tallies.values()])

    def tally(self, rule: ChannelRule) -> Tally:
        """The counters of the channels that have this rule."""
        if rule is OPS_RULE:
            return self._of_reports
        if not any(rule is configured for configured in self._config.channels):
            return self._tallies[DEFAULT]
        return self._tallies.get(rule.match) or self._tallies[OTHER]

    def tally_of(self, channel: str) -> Tally:
        """The same of a channel of which the rule has to be found, which takes its time."""
        return self.tally(self._config.rule(channel))

    def wrote(self, batch: Batch, clients: int = 1) -> None:
        """Count that ``batch``, which was live, was just written to so many clients."""
        if not clients:
            return
        now_ms = self._now_ms()
        for tally, times in batch:
            for ms, count in times:
                deliveries = count * clients
                tally.delivered += deliveries
                tally.lag.observe(max(now_ms - ms, 0) / 1000, deliveries)

    def statistics(self) -> dict[str, ClassStatistics]:
        return {name: tally.statistics() for name, tally in self._tallies.items()}
