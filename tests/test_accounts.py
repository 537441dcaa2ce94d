"""Stamps, accounts, ledgers and the verdict of the stress test with locust, without locust."""

from collections.abc import Sequence

import pytest
from stress import account as accounts
from stress import book as books
from stress.account import Account, Fate, Final
from stress.book import Book
from stress.ledger import Ledger
from stress.stamp import Stamp, place
from stress.tally import MEANINGS, Tally
from stress.verdict import Ledgers, judge

from gateway.position import Position

RUN = "r"


def at(number: int) -> int:
    """The place of what was published as the ``number``-th of all."""
    return place(f"{1_000_000 + number}-0")


class Run:
    """A run of one process, in which publishers publish one event after the other."""

    def __init__(self) -> None:
        self.book = Book(RUN, 0)
        self.published = 0

    def subscriber(self, *channels: int) -> Account:
        """One that is connected now."""
        account = self.book.open_account(channels or (0,))
        account.begin(at(self.published))
        return account

    def publish(self, publisher: str = "p", channel: int = 0) -> tuple[Stamp, int]:
        """An event, and its place."""
        ledger = self.book.ledger(publisher, channel)
        self.published += 1
        stamp = Stamp(RUN, publisher, channel, ledger.number + 1, self.published, ledger.place)
        ledger.acknowledge(at(self.published))
        return stamp, at(self.published)

    def lose_track(self, publisher: str = "p") -> tuple[Stamp, int]:
        """An event of which nobody knows whether it was taken."""
        ledger = self.book.ledger(publisher, 0)
        self.published += 1
        stamp = Stamp(RUN, publisher, 0, ledger.number + 1, self.published, ledger.place)
        ledger.leave_unknown()
        return stamp, at(self.published)

    def judge(self, patience: float = 0.0) -> tuple[int, list[str]]:
        """How many events were lost, and all that is wrong."""
        ledgers = Ledgers(self.book.stop_publishing(patience))
        verdict = judge(ledgers, [self.book.settle(ledgers.finals(), patience)])
        return verdict.lost, verdict.defects


@pytest.fixture
def run() -> Run:
    return Run()


def take(account: Account, events: Sequence[tuple[Stamp, int]]) -> list[Fate]:
    return [account.receive(*event) for event in events]


def test_a_stamp_is_read_as_it_was_written_at_any_size() -> None:
    stamp = Stamp("run", "0.1", 3, 17, 1_795_197_409_144_000_000, at(9))
    for size in (1, 500):
        data = stamp.data(size)
        assert Stamp.read(data, "run") == stamp
        assert len(data) == max(size, len(stamp.data(1)))
    assert Stamp.read(stamp.data(100), "another run") is None
    assert Stamp.read("Hello", "run") is None


def test_places_are_ordered_as_positions_are() -> None:
    positions = [Position(1, 0), Position(1, 1), Position(1, 9000), Position(2, 0)]
    places = [place(str(position)) for position in positions]
    assert places == sorted(set(places))
    assert place("5-1.closed") == place("5-1")
    assert place("") == place("earliest") == 0


def test_nothing_is_lost_where_all_came(run: Run) -> None:
    run.publish()  # before anybody was there
    account = run.subscriber()
    assert take(account, [run.publish() for _ in range(5)]) == [Fate.DELIVERED] * 5
    assert run.judge() == (0, [])


def test_what_is_missing_between_two_events_is_lost(run: Run) -> None:
    account = run.subscriber()
    events = [run.publish() for _ in range(5)]
    take(account, [events[0], events[4]])
    lost, defects = run.judge()
    assert lost == 3
    assert defects[0].endswith("lost 3 of channel 0 by publisher p, among numbers 2 to 4.")


def test_what_is_missing_before_the_first_event_is_lost(run: Run) -> None:
    run.publish()
    account = run.subscriber()
    events = [run.publish() for _ in range(4)]
    take(account, events[2:])
    assert run.judge()[0] == 2


@pytest.mark.parametrize("received", [0, 1, 3])
def test_what_is_missing_in_the_end_is_lost(run: Run, received: int) -> None:
    other, account = run.subscriber(), run.subscriber()
    events = [run.publish() for _ in range(4)]
    take(other, events)
    take(account, events[:received])
    assert run.judge()[0] == 4 - received


def test_who_has_left_is_owed_what_came_before_his_last_position(run: Run) -> None:
    """By the id of a keepalive or of another publisher's event: 2 of p and 1 of q are missing."""
    account = run.subscriber()
    take(account, [run.publish("p")])
    run.publish("p"), run.publish("q"), run.publish("p")
    last = run.published
    run.publish("p"), run.publish("q")
    run.book.leave(account, f"{1_000_000 + last}-0")
    other = run.subscriber()
    take(other, [run.publish()])
    assert run.judge()[0] == 3


def test_who_left_with_all_until_then_has_lost_nothing(run: Run) -> None:
    account = run.subscriber()
    take(account, [run.publish("p"), run.publish("q")])
    run.book.leave(account, f"{1_000_000 + run.published}-0")
    run.publish("p"), run.publish("q")
    assert run.judge() == (0, [])


def test_a_repeated_event_is_a_duplicate_and_is_not_counted_as_delivered(run: Run) -> None:
    account = run.subscriber()
    event = run.publish()
    assert take(account, [event, event]) == [Fate.DELIVERED, Fate.DUPLICATE]
    assert run.book.tally.delivered == 1
    assert run.judge() == (0, ["1 events came twice."])


def test_an_event_behind_a_later_one_is_out_of_order_and_not_lost(run: Run) -> None:
    account = run.subscriber()
    a, b, c, d = (run.publish() for _ in range(4))
    fates = take(account, [a, d, c, b])
    assert fates == [Fate.DELIVERED, Fate.DELIVERED, Fate.DISORDERED, Fate.DISORDERED]
    assert run.book.tally.delivered == 4
    assert run.judge() == (0, ["2 events came behind a later one."])


def test_order_holds_over_all_publishers(run: Run) -> None:
    account = run.subscriber()
    a, b = run.publish("p"), run.publish("q")
    assert take(account, [b, a]) == [Fate.DELIVERED, Fate.DISORDERED]


def test_an_unknown_event_is_owed_to_nobody_and_may_come(run: Run) -> None:
    with_it, without = run.subscriber(), run.subscriber()
    first, unknown, last = run.publish(), run.lose_track(), run.publish()
    at_the_end = run.lose_track()
    take(with_it, [first, unknown, last, at_the_end])
    take(without, [first, last])
    assert run.judge() == (0, [])


def test_dropped_excuses_as_many_as_it_counts_of_all_publishers_together(run: Run) -> None:
    account = run.subscriber()
    take(account, [run.publish("p"), run.publish("q")])
    run.publish("p"), run.publish("q"), run.publish("p")
    account.drop(2)
    take(account, [run.publish("q"), run.publish("p")])
    tally = run.book.tally
    assert (tally.dropped, tally.dropped_missing, tally.missing) == (2, 2, 1)
    assert run.judge()[0] == 1


def test_dropped_excuses_nothing_at_another_place(run: Run) -> None:
    account = run.subscriber()
    take(account, [run.publish()])
    account.drop(5)
    take(account, [run.publish()])
    run.publish()
    take(account, [run.publish()])
    assert run.judge()[0] == 1


def test_dropped_excuses_what_is_missing_before_the_first_event_and_in_the_end(run: Run) -> None:
    first, last = run.subscriber(), run.subscriber()
    events = [run.publish() for _ in range(5)]
    first.drop(3)
    take(first, events[3:])
    take(last, events[:2])
    last.drop(3)
    assert run.judge() == (0, [])
    assert run.book.tally.delivered == 4


def test_dropped_excuses_no_more_than_its_count_where_publishers_alone_know_it(run: Run) -> None:
    account = run.subscriber()
    events = [run.publish() for _ in range(5)]
    account.drop(1)
    take(account, events[3:])
    assert run.judge()[0] == 2


def test_a_gap_excuses_all_of_its_channels_where_it_stands(run: Run) -> None:
    account = run.subscriber(0, 1)
    take(account, [run.publish(channel=0), run.publish(channel=1)])
    for _ in range(3):
        run.publish(channel=0), run.publish(channel=1)
    account.gap(frozenset({0}))
    take(account, [run.publish(channel=0), run.publish(channel=1)])
    assert run.book.tally.gap_missing == 3
    assert run.judge()[0] == 3, "those of the other channel"


def test_a_gap_for_a_restart_excuses_what_was_sent_before_it_was_told(run: Run) -> None:
    account = run.subscriber()
    take(account, [run.publish()])
    lost, kept, also_lost = run.publish(), run.publish(), run.publish()
    account.gap(frozenset({0}), restarted_ns=also_lost[0].sent_ns)
    take(account, [kept, run.publish()])
    assert run.book.tally.gap_missing == 2
    run.publish()
    take(account, [run.publish()])
    assert run.judge()[0] == 1, "what was lost after the restart"
    assert lost[0].number == 2


def test_old_notices_excuse_as_many_when_they_are_joined(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "MAX_NOTICES", 2)
    account = run.subscriber()
    take(account, [run.publish("quiet")])
    run.publish("quiet"), run.publish("quiet")
    for _ in range(10):
        take(account, [run.publish()])
        run.publish()
        account.drop(1)
    account.drop(2)
    take(account, [run.publish(), run.publish("quiet")])
    assert run.judge() == (0, [])


def test_who_left_first_is_forgotten_first_and_that_is_said(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "MAX_LEFT", 1)
    for _ in range(3):
        account = run.subscriber()
        take(account, [run.publish()])
        run.book.leave(account, "")
    assert run.judge() == (0, ["Of 2 subscribers not everything is known."])


def test_holes_beyond_those_that_are_told_are_counted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "MAX_HOLES", 1)
    subscribers = [run.subscriber() for _ in range(3)]
    events = [run.publish() for _ in range(3)]
    for account in subscribers:
        take(account, [events[0], events[2]])
    lost, defects = run.judge()
    assert lost == 1
    assert "Of 2 subscribers not everything is known." in defects


def test_who_tells_nothing_is_named_and_what_lies_between_two_events_is_still_owed() -> None:
    tally = Tally(delivered=2)
    account = Account("1.0", frozenset({0}), tally)
    account.begin(at(0))
    account.receive(Stamp(RUN, "0.0", 0, 1, 1, 0), at(1))
    account.receive(Stamp(RUN, "0.0", 0, 4, 4, at(3)), at(4))
    holes = [hole.pack() for hole in account.holes]
    report = {"tally": tally.counts(), "accounts": [["1.0", 0, holes]], "unjudged": 0}
    verdict = judge(Ledgers([]), [report], ["worker 0"])
    assert verdict.lost == 2
    assert "Nothing was told by worker 0." in verdict.defects


def test_a_run_without_a_delivery_shows_nothing(run: Run) -> None:
    assert run.judge() == (0, ["Nothing was delivered, so that nothing is shown."])


def test_the_last_events_are_waited_for_and_not_longer_than_that(run: Run) -> None:
    account = run.subscriber()
    ledgers = Ledgers(run.book.stop_publishing(0))
    assert not account.lacks({})
    event = run.publish()
    ledgers = Ledgers(run.book.stop_publishing(0))
    finals = {0: ledgers.finals()}
    assert account.lacks(finals)
    assert not account.is_told(finals)
    account.drop(1)
    assert account.is_told(finals)
    take(account, [event])
    assert not account.lacks(finals)


def test_a_ledger_is_the_same_in_another_process() -> None:
    ledger = Ledger("p", 7)
    for number in range(1, 5):
        ledger.acknowledge(at(number))
    ledger.leave_unknown()
    [other] = [Ledgers([ledger.pack()])]
    assert other.finals() == [Final("p", 7, 4, at(4))]
    assert (ledger.first_after(at(2)), ledger.last_until(at(2))) == (3, 2)
    assert (ledger.owed(1, 5), ledger.owed(5, 4)) == (4, 0)


def test_each_count_has_a_meaning() -> None:
    assert MEANINGS.keys() == Tally().counts().keys()
