"""Positions and the meaning of a Last-Event-ID."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.position import (
    MAX_PART,
    ZERO,
    Closed,
    Position,
    Resume,
    Start,
    parse_resume,
)

DIGITS = st.text("0123456789", min_size=1, max_size=21)
PARTS = st.integers(0, MAX_PART)
POSITIONS = st.builds(Position, PARTS, PARTS)

NOT_POSITIONS = [
    "",
    "-",
    "1",
    "1-",
    "-1",
    "1-2-3",
    "1--2",
    "+1-2",
    "1-+2",
    " 1-2",
    "1-2 ",
    "1-2\n",
    "1 - 2",
    "1_0-2",
    "01-2",
    "1-02",
    "00-0",
    "1.0-2",
    "0x1-2",
    "\u0661-\u0662",  # digits, but not ASCII
    "\u00b2-1",
    "1\u20112",  # a hyphen, but not ASCII
    f"{2**64}-0",
    f"0-{2**64}",
    "1-2\0",
    "1" * 5000 + "-0",
]


@settings(deadline=None)
@given(POSITIONS)
def test_a_position_survives_the_round_trip_through_its_text(position: Position) -> None:
    assert Position.parse(str(position)) == position


@settings(deadline=None)
@given(DIGITS, DIGITS)
def test_a_position_has_exactly_one_text(ms: str, seq: str) -> None:
    text = f"{ms}-{seq}"
    position = Position.parse(text)
    assert position is None or str(position) == text


@pytest.mark.parametrize("text", NOT_POSITIONS)
def test_other_grammars_are_no_position(text: str) -> None:
    assert Position.parse(text) is None


@settings(deadline=None)
@given(st.text())
def test_parsing_never_raises(text: str) -> None:
    Position.parse(text)
    parse_resume(text)


def test_the_longest_position_keeps_the_promise_to_clients() -> None:
    longest = str(Closed(Position(MAX_PART, MAX_PART)))
    assert longest.isascii()
    assert len(longest) < 128


@settings(deadline=None)
@given(POSITIONS, POSITIONS)
def test_positions_compare_as_pairs_and_not_as_text(one: Position, other: Position) -> None:
    assert (one < other) == ((one.ms, one.seq) < (other.ms, other.seq))


def test_nine_is_before_ten() -> None:
    assert Position(9, 0) < Position(10, 0)
    assert Position(1, 9) < Position(1, 10)


@pytest.mark.parametrize(
    ("position", "before"),
    [
        (Position(7, 3), Position(7, 2)),
        (Position(7, 0), Position(6, MAX_PART)),
        (Position(0, 1), ZERO),
        (ZERO, ZERO),
    ],
)
def test_before_is_the_greatest_smaller_position(position: Position, before: Position) -> None:
    assert position.before() == before


@settings(deadline=None)
@given(POSITIONS, POSITIONS)
def test_nothing_lies_between_a_position_and_the_one_before(
    position: Position, other: Position
) -> None:
    assert not position.before() < other < position


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("earliest", Start.EARLIEST),
        ("now", Start.NOW),
        ("12-3", Position(12, 3)),
        ("0-0", ZERO),
        ("12-3.closed", Closed(Position(12, 3))),
        ("unknown", Start.UNKNOWN),
        ("Earliest", Start.UNKNOWN),
        ("now ", Start.UNKNOWN),
        ("now.closed", Start.UNKNOWN),
        (".closed", Start.UNKNOWN),
        ("12-3.closed.closed", Start.UNKNOWN),
        ("12-3.Closed", Start.UNKNOWN),
        ("12-3.", Start.UNKNOWN),
        ("0" * 129, Start.UNKNOWN),
        ("1-2" + ".closed" * 1000, Start.UNKNOWN),
        *((text, Start.UNKNOWN) for text in NOT_POSITIONS),
    ],
)
def test_a_resume_means(text: str, meaning: Resume) -> None:
    assert parse_resume(text) == meaning


@settings(deadline=None)
@given(POSITIONS)
def test_a_closed_client_is_known_by_the_id_it_was_given(position: Position) -> None:
    assert parse_resume(str(Closed(position))) == Closed(position)
