"""The judgement of a run, of what all processes have told. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stress.account import Final, Hole
from stress.ledger import Ledger
from stress.tally import Tally

EXIT_WRONG = 3
"""Where the verdict is not right. locust itself ends with 1 where requests failed, which
``--exit-code-on-error 0`` forgives, and with 2 for a wrong command line."""

EXAMPLES = 10
"""Subscribers whose losses are spelled out; the others are counted."""


@dataclass
class Verdict:
    tally: Tally = field(default_factory=Tally)
    lost: int = 0
    unjudged: int = 0
    """Subscribers of whom not everything is known."""
    silent: list[str] = field(default_factory=list)
    """Processes that have told nothing."""
    losses: list[str] = field(default_factory=list)
    """Sentences, of the first `EXAMPLES` subscribers that have lost something."""

    @property
    def defects(self) -> list[str]:
        """What is wrong, each in a sentence; empty if all is right."""
        tally = self.tally
        found = list(self.losses)
        if not tally.delivered:
            found.append("Nothing was delivered, so that nothing is shown.")
        if self.lost:
            found.append(f"{self.lost} events were lost in all.")
        if tally.duplicates:
            found.append(f"{tally.duplicates} events came twice.")
        if tally.disordered:
            found.append(f"{tally.disordered} events came behind a later one.")
        if self.silent:
            found.append(f"Nothing was told by {', '.join(self.silent)}.")
        if self.unjudged:
            found.append(f"Of {self.unjudged} subscribers not everything is known.")
        return found

    def summary(self) -> str:
        """All counts in one line, each as name=value."""
        counts = self.tally.counts() | {"lost": self.lost, "unjudged": self.unjudged}
        return " ".join(f"{name}={count}" for name, count in counts.items())


class Ledgers:
    """What all publishers have told."""

    def __init__(self, packed: Iterable[Sequence[Any]]) -> None:
        ledgers = [Ledger.unpack(*each) for each in packed]
        self._by_pair = {(ledger.publisher, ledger.channel): ledger for ledger in ledgers}

    def finals(self) -> list[Final]:
        return [
            Final(ledger.publisher, ledger.channel, ledger.acknowledged, ledger.place)
            for ledger in self._by_pair.values()
        ]

    def missing(self, hole: Hole) -> tuple[int, int, int]:
        """The first and the last number of a hole, and how many of them are owed and were not
        announced where they are missing."""
        ledger = self._by_pair.get((hole.publisher, hole.channel))
        if ledger is None:  # its process has told nothing: what is between two events is owed
            return hole.first, hole.last, hole.size if hole.first and hole.last else 0
        first = hole.first or ledger.first_after(hole.after)
        last = hole.last or ledger.last_until(hole.until)
        return first, last, max(0, ledger.owed(first, last) - hole.excused)


def judge(
    ledgers: Ledgers, reports: Iterable[Mapping[str, Any]], silent: Iterable[str] = ()
) -> Verdict:
    """``reports`` are those of `Book.settle`; ``silent`` names the processes that gave none."""
    verdict = Verdict(silent=list(silent))
    for report in reports:
        verdict.tally.add(report["tally"])
        verdict.unjudged += report["unjudged"]
        for name, spare, holes in report["accounts"]:
            _judge_account(verdict, ledgers, name, spare, [Hole(*packed) for packed in holes])
    verdict.tally.missing = verdict.lost
    return verdict


def _judge_account(
    verdict: Verdict, ledgers: Ledgers, name: str, spare: int, holes: Iterable[Hole]
) -> None:
    losses = []
    for hole in holes:
        first, last, count = ledgers.missing(hole)
        if not (hole.first and hole.last):  # its size was not known where notices were counted
            taken = min(spare, count)
            spare -= taken
            count -= taken
            verdict.tally.dropped_missing += taken
        if count:
            verdict.lost += count
            losses.append(
                f"{count} of channel {hole.channel} by publisher {hole.publisher}, "
                + (f"number {first}" if first == last else f"among numbers {first} to {last}")
            )
    if losses and len(verdict.losses) < EXAMPLES:
        verdict.losses.append(f"Subscriber {name} has lost {'; '.join(losses[:EXAMPLES])}.")
