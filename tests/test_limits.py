"""Token buckets and what is counted by address: exact at their bounds, and never beyond them."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import MAX_RETRY_SECONDS, Bucket, Buckets, Tally, network

NOW = 12_345.678

NETWORKS = {
    "192.0.2.7": "192.0.2.7",
    "::ffff:192.0.2.7": "192.0.2.7",
    "::ffff:c000:207": "192.0.2.7",
    "2001:db8:1:2::1": "2001:db8:1:2::/64",
    "2001:0DB8:0001:0002:ffff:ffff:ffff:ffff": "2001:db8:1:2::/64",
    "2001:db8:1:3::1": "2001:db8:1:3::/64",
    "fe80::1%eth0": "fe80::/64",
    "::1": "::/64",
    "": "",
    "no:address": "no:address",
}


@pytest.mark.parametrize(("address", "counted"), NETWORKS.items())
def test_an_ipv6_address_counts_by_its_64_and_a_mapped_one_as_ipv4(
    address: str, counted: str
) -> None:
    assert network(address) == counted


@given(st.integers(1, 3), st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_a_tally_has_as_many_as_were_added_and_forgets_who_has_none(
    most: int, steps: Sequence[tuple[bool, str]]
) -> None:
    tally, model = Tally(most), Counter[str]()
    for adds, key in steps:
        if adds:
            assert tally.has_room(key) == (model[key] < most)
            assert tally.add(key) == (model[key] < most)
            model[key] = min(model[key] + 1, most)
        elif model[key]:
            tally.remove(key)
            model[key] -= 1
        assert len(tally) == len(+model)


@pytest.mark.parametrize("now", [0.0, NOW, 1e6 + 1 / 3])
@pytest.mark.parametrize("rate", [0.5, 200, 4000])
def test_a_full_bucket_gives_exactly_its_burst_at_once(rate: float, now: float) -> None:
    bucket = Bucket(rate, 40)
    assert [bucket.take(now) for _ in range(41)] == [True] * 40 + [False]


@given(
    st.floats(0.1, 10_000),
    st.integers(1, 100),
    st.lists(st.floats(0, 2), min_size=1, max_size=300),
)
def test_no_stretch_of_time_gives_more_than_a_burst_and_what_came_in_it(
    rate: float, burst: int, pauses: Sequence[float]
) -> None:
    bucket, now = Bucket(rate, burst), NOW
    taken: list[float] = []
    for pause in pauses:
        now += pause / rate
        if bucket.take(now):
            taken.append(now)
    for first, begun in enumerate(taken):
        for last in range(first, len(taken)):
            allowed = burst + rate * (taken[last] - begun) + 0.001
            assert last - first + 1 <= allowed


@given(st.floats(0.1, 10_000), st.integers(1, 100), st.integers(1, 200), st.integers(0, 20))
def test_whoever_waits_as_long_as_a_bucket_says_finds_a_token(
    rate: float, burst: int, taken: int, ahead: int
) -> None:
    bucket = Bucket(rate, burst)
    for _ in range(taken):
        bucket.take(NOW)
    wait = bucket.wait(NOW, ahead)
    later = NOW + wait + 1e-6
    assert all(bucket.take(later) for _ in range(min(ahead + 1, burst)))
    assert wait == pytest.approx(max(0.0, ahead + 1 - (burst - min(taken, burst))) / rate)


def test_a_token_that_is_given_back_can_be_taken_again() -> None:
    bucket = Bucket(1.0, 2)
    assert bucket.take(NOW)
    assert bucket.take(NOW)
    assert not bucket.take(NOW)
    bucket.give_back()
    assert bucket.take(NOW)
    assert not bucket.take(NOW)


def test_those_who_are_refused_together_are_told_to_return_one_after_the_other() -> None:
    """At the rate of the bucket, behind whoever waits, and within a bound."""
    bucket = Bucket(10.0, 5)
    for _ in range(5):
        assert bucket.take(NOW)
    told = [bucket.promise(NOW, ahead=20) for _ in range(1000)]
    assert told[0] == pytest.approx(2.1)
    steps = [later - before for before, later in pairwise(told)]
    assert steps[:100] == pytest.approx([0.1] * 100)
    assert max(told) == told[-1] == pytest.approx(MAX_RETRY_SECONDS)
    assert bucket.promise(NOW + MAX_RETRY_SECONDS + 10) == 0.0  # all of them may have come


def test_full_buckets_are_forgotten_as_others_ask() -> None:
    buckets = Buckets(1.0, 10, most=100)
    for number in range(50):
        assert buckets.of(f"a{number}", NOW).take(NOW)
    assert len(buckets) == 50
    for number in range(30):
        assert buckets.of(f"b{number}", NOW + 2).take(NOW + 2)
    assert len(buckets) == 30
    assert buckets.evicted == 0


def test_at_the_bound_the_bucket_that_was_asked_for_least_recently_is_forgotten() -> None:
    buckets = Buckets(1.0, 1, most=3)
    for key in "abc":
        assert buckets.of(key, NOW).take(NOW)
    assert not buckets.of("a", NOW).take(NOW)
    assert buckets.of("d", NOW).take(NOW)
    assert (len(buckets), buckets.evicted) == (3, 1)
    assert not buckets.of("a", NOW).take(NOW)
    assert buckets.of("b", NOW).take(NOW)  # which was forgotten, and so it has a full one


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 1)), max_size=200))
def test_the_table_of_buckets_is_bounded_and_never_lets_a_remembered_key_have_more(
    steps: Sequence[tuple[int, float]],
) -> None:
    buckets, now = Buckets(1.0, 3, most=5), NOW
    alone: dict[str, Bucket] = {}
    for number, pause in steps:
        now += pause
        evicted = buckets.evicted
        taken = buckets.of(str(number), now).take(now)
        assert len(buckets) <= 5
        if buckets.evicted == evicted == 0:
            expected = alone.setdefault(str(number), Bucket(1.0, 3))
            assert taken == expected.take(now)
