"""When a worker that has died is started again."""

from gateway.restarts import (
    DEATHS_WITHIN,
    FIRST_PAUSE,
    LONG_LIFE,
    LONGEST_PAUSE,
    MAX_DEATHS,
    MAX_FAILED_STARTS,
    Restarts,
)


def test_pauses_double_up_to_the_longest() -> None:
    restarts = Restarts()
    pauses = [restarts.died(100.0 * i, lived=1, was_ready=True) for i in range(9)]
    assert pauses == [min(FIRST_PAUSE * 2**i, LONGEST_PAUSE) for i in range(9)]
    assert pauses[-1] == LONGEST_PAUSE


def test_after_a_long_life_the_first_pause_comes_again() -> None:
    restarts = Restarts()
    for i in range(4):
        restarts.died(100.0 * i, lived=1, was_ready=True)
    assert restarts.died(500, lived=LONG_LIFE, was_ready=True) == FIRST_PAUSE
    assert restarts.died(600, lived=1, was_ready=True) == 2 * FIRST_PAUSE


def test_many_deaths_within_a_minute_are_hopeless() -> None:
    restarts = Restarts()
    for i in range(MAX_DEATHS):
        assert not restarts.hopeless
        restarts.died(10.0 * i, lived=10, was_ready=True)
    assert restarts.hopeless == "died 5 times within 40 seconds"


def test_as_many_deaths_over_a_longer_time_are_not() -> None:
    restarts = Restarts()
    apart = DEATHS_WITHIN / (MAX_DEATHS - 1) + 1
    for i in range(10 * MAX_DEATHS):
        restarts.died(apart * i, lived=apart, was_ready=True)
        assert not restarts.hopeless


def test_failed_starts_in_a_row_are_hopeless_however_long_they_take() -> None:
    restarts = Restarts()
    for i in range(MAX_FAILED_STARTS):
        assert not restarts.hopeless
        restarts.died(1000.0 * i, lived=1000, was_ready=False)
    assert restarts.hopeless == "died 3 times before it was ready"


def test_a_worker_that_was_ready_ends_the_row_of_failed_starts() -> None:
    restarts = Restarts()
    for i in range(4 * MAX_FAILED_STARTS):
        restarts.died(100.0 * i, lived=1, was_ready=i % MAX_FAILED_STARTS == 0)
        assert not restarts.hopeless
