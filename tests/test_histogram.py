"""Distributions: every value is counted once, where it belongs, and parts add up."""

from collections.abc import Sequence
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.histogram import (
    CROWDS,
    GRAIN,
    LATENCIES,
    PAUSES,
    SIZES,
    WAITS,
    Distribution,
    Histogram,
    added,
    empty,
)

VALUES = st.lists(
    st.one_of(st.sampled_from(LATENCIES), st.floats(0, 20), st.integers(0, 20).map(float))
)


def filled(values: Sequence[float]) -> Histogram:
    histogram = Histogram(LATENCIES)
    for value in values:
        histogram.observe(value)
    return histogram


@given(VALUES)
def test_each_value_counts_for_the_least_bound_that_is_not_below_it(values: list[float]) -> None:
    found = filled(values).snapshot()
    for place, bound in enumerate(LATENCIES):
        assert sum(found.counts[: place + 1]) == sum(value <= bound for value in values)
    assert found.count == len(values)
    assert found.sum == pytest.approx(sum(values))


@given(st.floats(0, 20), st.integers(0, 5))
def test_what_was_seen_often_is_counted_as_often(value: float, times: int) -> None:
    at_once = Histogram(LATENCIES)
    at_once.observe(value, times)
    one_by_one = filled([value] * times).snapshot()
    assert at_once.snapshot().counts == one_by_one.counts
    assert at_once.snapshot().sum == pytest.approx(one_by_one.sum)


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_parts_add_up_to_the_distribution_of_all_their_values(parts: list[list[float]]) -> None:
    whole = added([filled(part).snapshot() for part in parts])
    expected = filled([value for part in parts for value in part]).snapshot()
    assert (whole.bounds, whole.counts) == (expected.bounds, expected.counts)
    assert whole.sum == pytest.approx(expected.sum, abs=GRAIN * len(parts))


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=5), st.randoms())
def test_sums_are_the_same_in_whatever_order_they_are_added_up(
    sums: list[float], chance: Random
) -> None:
    parts = [Distribution((), (0,), each) for each in sums]
    whole = added(parts)
    chance.shuffle(parts)
    assert added([added(parts[:2]), *parts[2:]]) == whole
    assert whole.sum == pytest.approx(sum(sums), abs=GRAIN * len(parts))


def test_a_snapshot_does_not_change_and_travels_as_it_is() -> None:
    histogram = filled([0.5])
    before = histogram.snapshot()
    histogram.observe(0.5)
    assert before.count == 1
    sent = msgspec.msgpack.encode(before)
    assert msgspec.msgpack.decode(sent, type=Distribution) == before


@pytest.mark.parametrize("bounds", [LATENCIES, WAITS, PAUSES, SIZES, CROWDS])
def test_bounds_grow(bounds: Sequence[float]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert empty(bounds) == Distribution(tuple(bounds), (0,) * (len(bounds) + 1), 0.0)
