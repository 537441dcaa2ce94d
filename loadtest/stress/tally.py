"""Counts of one process, which add up over processes; each is a row in locust's web UI."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

MEANINGS = {
    "published": "events that were acknowledged",
    "refused": "publishes that were refused: not an event, and tried again under the same number",
    "unknown": "events of which nobody knows whether they were taken",
    "delivered": "events that subscribers received, without duplicates",
    "missing": "not received so far, and not announced as missing; the verdict says what was lost",
    "duplicates": "events received again by the same subscriber",
    "disordered": "events received behind a later one",
    "early": "events received before they were sent: the clocks of the load generators differ",
    "foreign": "events of others, or of another run, in the channels of this one",
    "opened": "streams opened for the first time",
    "resumed": "streams opened again, with Last-Event-ID",
    "turned_away": "openings that failed, or were told to come back",
    "ended": "streams ended for good by the gateway (204, or an id with .closed)",
    "dropped": "events announced as dropped, by their count",
    "dropped_missing": "events that are missing where they were announced as dropped",
    "gaps": "gaps announced",
    "gap_missing": "events that are missing where a gap was announced",
}


@dataclass
class Tally:
    published: int = 0
    refused: int = 0
    unknown: int = 0
    delivered: int = 0
    missing: int = 0
    duplicates: int = 0
    disordered: int = 0
    early: int = 0
    foreign: int = 0
    opened: int = 0
    resumed: int = 0
    turned_away: int = 0
    ended: int = 0
    dropped: int = 0
    dropped_missing: int = 0
    gaps: int = 0
    gap_missing: int = 0

    def add(self, counts: Mapping[str, int]) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + counts[field.name])

    def counts(self) -> dict[str, int]:
        return asdict(self)
