"""A rolling upgrade behind HAProxy, counted: `loadtest/roll` with few clients, and its counts."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from process import environment
from traced import Traced, most_within, owed, read, tenths
from verdict import Dropped, Gap, Outcome, Sent, defects

from gateway.position import Position

ROLL = str(Path(__file__).parent.parent / "loadtest" / "roll")

SCENARIOS = ("term", "kill", "failover")

MOST_SECONDS = 300
"""For all three together: only a failing one takes more than thirty."""


Rolled: TypeAlias = dict[str, "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def rolled() -> Iterator[Rolled]:
    """The three scenarios, side by side, since each of them waits most of the time."""
    running = {
        name: subprocess.Popen(
            [ROLL, name, "--quick"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        for name in SCENARIOS
    }
    try:
        yield running
    finally:
        for process in running.values():
            process.terminate()  # on which it ends all that it has started
            process.communicate()


def told_by(process: subprocess.Popen[str]) -> str:
    """What it says, once all is right."""
    told, _ = process.communicate(timeout=MOST_SECONDS)
    assert process.returncode == 0, told
    return told


def check_counts(told: str, *, gaps: str) -> None:
    """What must hold of each scenario: that there was something to count, too."""
    found = re.search(r"clients: 90 with ([\d,]+) deliveries; (.*)", told)
    assert found is not None, told
    assert int(found[1].replace(",", "")) > 90 * 30
    assert re.fullmatch(f"missing .*, doubled 0, out of order 0; gaps told: {gaps}", found[2])
    away = re.search(r"away: (\d+) times, .*; (\d+) tries", told)
    assert away is not None, told
    assert 90 <= int(away[1]) <= int(away[2])


def test_nodes_that_leave_in_order_cost_nobody_anything(rolled: Rolled) -> None:
    told = told_by(rolled["term"])
    check_counts(told, gaps="none")
    assert "missing 0," in told
    assert re.findall(r"(\d+) of them without a word", told) == ["0"] * 3
    assert "alerts that fired: none;" in told


def test_nodes_that_are_killed_lose_nothing(rolled: Rolled) -> None:
    told = told_by(rolled["kill"])
    check_counts(told, gaps="none")
    assert "missing 0," in told
    assert "alerts that fired: none;" in told


def test_what_a_fail_over_in_the_middle_loses_is_announced(rolled: Rolled) -> None:
    """To each client: the replica lacks what its primary had acknowledged at the last."""
    told = told_by(rolled["failover"])
    check_counts(told, gaps=r"(9\d|1\d\d) restarted")
    assert "alerts that fired: GatewayBusLostHistory;" in told


# -- how it counts

CLOCK = 1_700_000_000.0
"""When that of the publishers was 0."""

CHANNELS = [frozenset({"all", "c0"}), frozenset({"all", "c1"})]

SENT = [
    Sent("p/0", ("all",), Outcome.ACKNOWLEDGED, Position(10, 0), 1.0, 1.1),
    Sent("p/1", ("c0",), Outcome.ACKNOWLEDGED, Position(20, 0), 2.0, 2.1),
    Sent("p/2", ("c1",), Outcome.ACKNOWLEDGED, Position(20, 1), 2.0, 2.1),
    Sent("p/3", ("all", "c1"), Outcome.ACKNOWLEDGED, Position(30, 0), 3.0, 3.1),
]

LINES = [
    "0.5 0 open",
    "0.6 0 connected 5-0",
    "0.5 1 open",
    "0.6 1 connected 15-0",
    "1.2 0 event 10-0 p/0",
    "1.5 0 reconnect draining",
    "1.6 0 ended 200 900",
    "2.5 0 open",
    "2.5 0 ended 0 900",
    "3.4 0 open",
    "3.5 0 connected 10-0",
    "3.5 0 event 20-0 p/1",
    "3.5 0 event 30-0 p/3",
    "2.2 1 event 20-1 p/2",
    "2.3 1 ended 200 2000",
    "4.3 1 open",
    "4.4 1 connected 20-1",
    "4.4 1 event 30-0 p/3",
]


def traced(lines: list[str]) -> list[Traced]:
    def stamped(line: str) -> str:
        at, rest = line.split(" ", 1)
        return f"{round((CLOCK + float(at)) * 1e6)} {rest}\n"

    return read(map(stamped, lines), CHANNELS, SENT, clock=CLOCK)


def test_a_trace_in_which_all_came_is_without_defect() -> None:
    clients = traced(LINES)
    assert not defects(SENT, [client.recording for client in clients])
    assert owed(SENT, clients[0].recording) == {"p/0", "p/1", "p/3"}
    assert owed(SENT, clients[1].recording) == {"p/2", "p/3"}


@pytest.mark.parametrize(
    ("line", "put", "says"),
    [
        ("3.5 0 event 20-0 p/1", [], "never received 'p/1'"),
        ("3.5 0 event 20-0 p/1", ["3.5 0 event 20-0 p/1"] * 2, "received 'p/1' 2 times"),
        (
            "3.5 0 event 20-0 p/1",
            ["3.5 0 event 30-0 p/3", "3.5 0 event 20-0 p/1"],
            "after 'p/3'",
        ),
        ("4.4 1 event 30-0 p/3", [], "never received 'p/3'"),
        ("4.4 1 event 30-0 p/3", ['4.4 1 dropped {"count":1}'], "1 events were dropped"),
        ("4.3 1 open", ["4.3 1 open", "4.3 1 event 20-0 p/1"], "not its own"),
    ],
)
def test_whatever_else_came_is_a_defect(line: str, put: list[str], says: str) -> None:
    at = LINES.index(line)
    clients = traced([*LINES[:at], *put, *LINES[at + 1 :]])
    found = defects(SENT, [client.recording for client in clients])
    assert any(says in defect for defect in found), found


def test_a_gap_and_what_was_dropped_are_taken_down_where_they_were_told() -> None:
    gap = '3.5 0 gap {"channels":["c0"],"reason":"restarted"}'
    dropped = '3.5 0 dropped {"count":2}'
    client = traced([gap, dropped, *LINES])[0]
    first, second = client.recording.records[:2]
    assert isinstance(first, Gap)
    assert (first.channels, first.reason) == (frozenset({"c0"}), "restarted")
    assert first.told == pytest.approx(3.5)
    assert second == Dropped(2)


def test_a_delivery_gap_is_the_longest_that_an_event_was_late() -> None:
    """One that it had before its publisher knew is not late at all."""
    first, second = traced(LINES)
    assert first.slowest == pytest.approx(3.5 - 2.1, abs=1e-5)
    assert second.slowest == pytest.approx(4.4 - 3.1, abs=1e-5)
    assert traced(["3.0 0 open", "3.0 0 connected 20-0", "3.0 0 event 30-0 p/3"])[0].slowest == 0


def test_an_absence_is_from_the_end_of_a_stream_until_the_next_one() -> None:
    """Whatever failed in between; one that ended with the trace is none."""
    for client, times, told in zip(
        traced([*LINES, "5.0 1 ended 200 2000"]),
        [(1.6, 2.5, 3.5), (2.3, 4.3, 4.4)],
        [True, False],
        strict=True,
    ):
        [absence] = client.absences
        assert absence.told is told
        assert absence[:3] == pytest.approx([CLOCK + at for at in times])


def test_times_are_told_by_the_tenth_and_by_the_crowd() -> None:
    times = [0.0, 0.5, 0.55, 1.0, 10.0]
    assert tenths(times) == [0.6, 0.2, *[0.0] * 7, 0.2]
    assert most_within(times, 0.1) == 0.4
    assert most_within([1.0] * 3, 0.1) == 1
    assert tenths([1.0] * 3)[0] == 1
