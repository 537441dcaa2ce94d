"""The verdict finds every defect that it is there to find, and nothing in a good history."""

import re
from dataclasses import replace

import pytest
from verdict import EXAMPLES, Dropped, Gap, Outcome, Received, Recording, Sent, defects

from gateway.position import Position


def at(ms: int) -> Position:
    return Position(ms, 0)


def acknowledged(ms: int, *channels: str) -> Sent:
    """The event "e<ms>" at that position, sent and answered about then."""
    return Sent(f"e{ms}", channels or ("a",), Outcome.ACKNOWLEDGED, at(ms), ms, ms + 0.5)


def unanswered(ms: int, outcome: Outcome = Outcome.UNKNOWN) -> Sent:
    return replace(acknowledged(ms), outcome=outcome, position=None)


def received(*places: int) -> list[Received]:
    return [Received(at(ms), f"e{ms}") for ms in places]


def recording(*records: Received | Gap | Dropped, channels: str = "a", start: int = 0) -> Recording:
    return Recording("c", frozenset(channels), at(start), list(records))


def gap(channels: str = "a", reason: str = "restarted", told: float = 0.0) -> Gap:
    return Gap(frozenset(channels), reason, told)


FIVE = [acknowledged(ms) for ms in range(1, 6)]
SEVERAL = [acknowledged(1, "a", "b"), acknowledged(2, "b"), acknowledged(3, "a")]

GOOD = {
    "everything": (FIVE, recording(*received(1, 2, 3, 4, 5))),
    "everything after the start": (FIVE, recording(*received(3, 4, 5), start=2)),
    "a gap where something is missing": (FIVE, recording(*received(1, 2), gap(), *received(5))),
    "a gap before everything": (FIVE, recording(gap(), *received(4, 5))),
    "a gap after everything": (FIVE, recording(*received(1, 2), gap())),
    "a gap without need": (FIVE, recording(*received(1, 2), gap(), *received(3, 4, 5))),
    "a restart told before what is still held of the time before it": (
        FIVE,
        recording(*received(1), gap(told=4.5), *received(2, 3), *received(5)),
    ),
    "an unknown one received": ([*FIVE, unanswered(6)], recording(*received(1, 2, 3, 4, 5, 6))),
    "an unknown one not received": ([*FIVE, unanswered(6)], recording(*received(1, 2, 3, 4, 5))),
    "a refused one not received": (
        [*FIVE, unanswered(6, Outcome.REFUSED)],
        recording(*received(1, 2, 3, 4, 5)),
    ),
    "an event of two channels": (SEVERAL, recording(*received(1, 2, 3), channels="ab")),
    "a gap of one channel beside the events of another": (
        SEVERAL,
        recording(*received(1), gap("a"), *received(2), channels="ab"),
    ),
    "channels that it has not": (SEVERAL, recording(*received(1, 3))),
}


@pytest.mark.parametrize("case", GOOD)
def test_nothing_is_found_in(case: str) -> None:
    sent, told = GOOD[case]
    assert defects(sent, [told]) == []


BAD = {
    "an event is missing": (
        FIVE,
        recording(*received(1, 2, 4, 5)),
        "c: never received 'e3' at 3-0 (acknowledged), and no gap of 'a' is told after 2-0 and "
        "before 4-0",
    ),
    "the first event is missing": (FIVE, recording(*received(2, 3, 4, 5)), "since its start 0-0"),
    "the last event is missing": (FIVE, recording(*received(1, 2, 3, 4)), "after 4-0 and to the"),
    "the gap stands too early": (
        FIVE,
        recording(*received(1), gap(), *received(2, 4, 5)),
        "never received 'e3'",
    ),
    "the gap stands too late": (
        FIVE,
        recording(*received(1, 2, 4), gap(), *received(5)),
        "never received 'e3'",
    ),
    "a restart is told before what it cannot know of": (
        FIVE,
        recording(*received(1), gap(told=2.5), *received(2, 4, 5)),
        "never received 'e3'",
    ),
    "a restart is told, and newer events came before the hole": (
        FIVE,
        recording(*received(1), gap(told=3.5), *received(2), *received(4)),
        "never received 'e5'",
    ),
    "another gap is told before what is still held": (
        FIVE,
        recording(*received(1), gap(reason="trimmed", told=9), *received(2, 4, 5)),
        "never received 'e3'",
    ),
    "the gap is of another channel": (
        SEVERAL,
        recording(*received(1, 2), gap("b"), channels="ab"),
        "never received 'e3' at 3-0 (acknowledged), and no gap of 'a'",
    ),
    "only one of its two channels has the gap": (
        SEVERAL,
        recording(gap("a"), *received(2, 3), channels="ab"),
        "never received 'e1' at 1-0 (acknowledged), and no gap of 'b'",
    ),
    "dropped is told instead": (
        FIVE,
        recording(*received(1, 2, 3), Dropped(2)),
        "c: was told that 2 events were dropped",
    ),
    "an event comes twice": (
        FIVE,
        recording(*received(1, 2, 3), *received(3), *received(4, 5)),
        "c: received 'e3' 2 times",
    ),
    "an event comes twice at two positions": (
        FIVE,
        recording(*received(1, 2, 3, 4, 5), Received(at(6), "e3")),
        "the clients: 'e3' came at 6-0 to c, but its acknowledgement says 3-0",
    ),
    "the order is wrong": (
        FIVE,
        recording(*received(1, 3, 2, 4, 5)),
        "c: received 'e2' at 2-0 after 'e3' at 3-0",
    ),
    "an event comes from before the start": (
        FIVE,
        recording(*received(2, 3, 4, 5), start=2),
        "c: received 'e2' at 2-0, although it began at 2-0",
    ),
    "a refused one comes": (
        [*FIVE, unanswered(6, Outcome.REFUSED)],
        recording(*received(1, 2, 3, 4, 5, 6)),
        "c: received 'e6' at 6-0, which was refused",
    ),
    "an unknown one comes twice": (
        [unanswered(6)],
        recording(*received(6), Received(at(7), "e6")),
        "c: received 'e6' 2 times",
    ),
    "an event comes from nowhere": (
        FIVE,
        recording(*received(1, 2, 3, 4, 5, 6)),
        "c: received 'e6', which nobody published",
    ),
    "an event has no position": (
        [unanswered(1)],
        recording(Received(None, "e1")),
        "c: received 'e1' without a position",
    ),
    "an event of another channel comes": (
        SEVERAL,
        recording(*received(1, 2, 3)),
        "c: received 'e2' of ('b',), not its own",
    ),
    "a gap of another channel is told": (
        FIVE,
        recording(*received(1, 2, 3, 4, 5), gap("b")),
        "c: was told of a gap (restarted) in ['b'], not its own",
    ),
    "a position is given to two": (
        [*FIVE, replace(acknowledged(6), position=at(5))],
        recording(*received(1, 2, 3, 4, 5)),
        "the publishers: position 5-0 was given to 'e5' and to 'e6'",
    ),
    "positions go backwards": (
        [*FIVE, replace(acknowledged(6), position=Position(4, 1))],
        recording(*received(1, 2, 3, 4), Received(Position(4, 1), "e6"), *received(5)),
        "the publishers: 'e6' was sent after 'e5' had been acknowledged with 5-0, and got the "
        "earlier position 4-1",
    ),
    "it never came in": (FIVE, Recording("c", frozenset("a")), "c: was never connected"),
}


@pytest.mark.parametrize("case", BAD)
def test_it_is_found_that(case: str) -> None:
    sent, told, sentence = BAD[case]
    assert re.search(re.escape(sentence), "\n".join(defects(sent, [told])))


SEVERAL_DEFECTS = {
    "an event comes twice",
    "an event comes twice at two positions",
    "an unknown one comes twice",
    "dropped is told instead",
    "a position is given to two",
}


@pytest.mark.parametrize("case", sorted(BAD.keys() - SEVERAL_DEFECTS))
def test_nothing_else_is_found_when(case: str) -> None:
    sent, told, _ = BAD[case]
    assert len(defects(sent, [told])) == 1


def test_what_one_client_received_is_owed_to_the_others_too() -> None:
    sent = [*FIVE, unanswered(6)]
    lucky = recording(*received(1, 2, 3, 4, 5, 6))
    other = replace(recording(*received(1, 2, 3, 4, 5)), client="d")
    assert defects(sent, [lucky, other]) == [
        "d: never received 'e6' at 6-0 (others received it), and no gap of 'a' is told after 5-0 "
        "and to the end"
    ]
    other.records.append(gap())
    assert defects(sent, [lucky, other]) == []


def test_events_sent_at_the_same_time_may_have_any_order() -> None:
    first, second = acknowledged(1), replace(acknowledged(2), began=1.2)
    swapped = [replace(first, position=at(2)), replace(second, position=at(1))]
    told = recording(Received(at(1), "e2"), Received(at(2), "e1"))
    assert defects(swapped, [told]) == []


def test_many_defects_are_counted_and_a_few_spelled_out() -> None:
    sent = [acknowledged(ms) for ms in range(1, 101)]
    told = defects(sent, [recording(*received(100))])
    assert len(told) == EXAMPLES + 1
    assert told[-1].endswith("in all 99")
