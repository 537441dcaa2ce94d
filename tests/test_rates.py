"""Token buckets: exact over time, and at once within a tenth of a second's worth each worker."""

from collections.abc import Callable, Sequence

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from gateway import rates as rates_module
from gateway.config import ChannelRule, Config
from gateway.policy import Policy
from gateway.rates import CREDIT_SECONDS, MAX_BUCKETS, Bucket, ChannelRates, Rates

INSTANT = 1e-6


async def refill(buckets: Sequence[Bucket]) -> None:
    """As where nobody shares them."""
    for bucket in buckets:
        bucket.refill(trio.current_time())


def alone() -> Rates:
    return Rates(refill)


async def taken(rates: Rates, tries: int, *buckets: Bucket) -> int:
    """How many of so many tries at one moment had their tokens."""
    return [await rates.take_or_wait(buckets) for _ in range(tries)].count(0.0)


async def test_a_seconds_worth_is_there_at_once_and_then_the_rate(
    autojump_clock: MockClock,
) -> None:
    rates = alone()
    bucket = rates.bucket("a", 100)
    assert await taken(rates, 500, bucket) == 100
    for _ in range(20):
        await trio.sleep(0.5)
        assert await taken(rates, 500, bucket) in (49, 50, 51)
    await trio.sleep(3600)
    assert await taken(rates, 500, bucket) == 100  # no more gathers than a second's worth


async def test_whoever_is_refused_is_told_when_there_is_a_token_again(
    autojump_clock: MockClock,
) -> None:
    rates = alone()
    bucket = rates.bucket("a", 0.5)
    assert await rates.take_or_wait([bucket]) == 0  # one is there, however low the rate
    wait = await rates.take_or_wait([bucket])
    assert wait == pytest.approx(2)
    await trio.sleep(wait / 2)
    assert await rates.take_or_wait([bucket]) == pytest.approx(1)
    await trio.sleep(1 + INSTANT)
    assert await rates.take_or_wait([bucket]) == 0


async def test_an_event_takes_a_token_of_each_of_its_buckets_or_none(
    autojump_clock: MockClock,
) -> None:
    rates = alone()
    plenty, few = rates.bucket("plenty", 10), rates.bucket("few", 2)
    assert await taken(rates, 10, plenty, few) == 2
    assert await taken(rates, 20, plenty) == 8  # the refused have taken nothing


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0.3, 1, 7.5, 100, 5000]),
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 300)), min_size=1, max_size=30),
)
def test_no_stretch_of_time_has_more_than_its_rate_and_a_seconds_worth(
    rate: float, bursts: list[tuple[float, int]]
) -> None:
    admitted: list[tuple[float, int]] = []

    async def main() -> None:
        rates = alone()
        bucket = rates.bucket("a", rate)
        for pause, tries in bursts:
            await trio.sleep(pause)
            admitted.append((trio.current_time(), await taken(rates, tries, bucket)))

    trio.run(main, clock=MockClock(autojump_threshold=0))
    for first in range(len(admitted)):
        total = 0
        for at, count in admitted[first:]:
            total += count
            assert total <= max(1, rate) + rate * (at - admitted[first][0]) + INSTANT


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 10, 100, 5000]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 200)), min_size=1, max_size=30),
)
def test_whoever_keeps_to_the_rate_is_never_refused(
    rate: float, bursts: list[tuple[float, int]]
) -> None:
    """And has what is left of a second's worth, but for the tenth that was lent meanwhile."""

    async def main() -> None:
        rates = alone()
        bucket = rates.bucket("a", rate)
        level, at = rate, trio.current_time()
        for pause, most in bursts:
            await trio.sleep(pause)
            level, at = min(rate, level + (trio.current_time() - at) * rate), trio.current_time()
            some = min(most, max(0, int(level - rate * CREDIT_SECONDS - INSTANT)))
            assert await taken(rates, some, bucket) == some
            level -= some

    trio.run(main, clock=MockClock(autojump_threshold=0))


class Looks:
    """A look that counts, and that tells of a bucket what the test wants."""

    def __init__(self, level: Callable[[], float] = lambda: 1e9) -> None:
        self.count = 0
        self._level = level

    async def __call__(self, buckets: Sequence[Bucket]) -> None:
        self.count += 1
        await trio.lowlevel.checkpoint()
        for bucket in buckets:
            bucket.spent = 0
            bucket.know(self._level(), trio.current_time())


async def test_tokens_are_there_without_a_look_for_a_tenth_of_a_second(
    autojump_clock: MockClock,
) -> None:
    look = Looks()
    rates = Rates(look)
    bucket = rates.bucket("a", 1000)
    assert all(rates.take([bucket]) for _ in range(100))
    assert not rates.take([bucket])
    assert look.count == 0
    assert await taken(rates, 1000, bucket) == 1000
    assert look.count == 10


async def test_a_flood_of_refusals_costs_few_looks(autojump_clock: MockClock) -> None:
    look = Looks(lambda: 0.0)
    rates = Rates(look)
    bucket = rates.bucket("a", 50_000)
    await taken(rates, 5000, bucket)  # on credit
    assert await taken(rates, 10_000, bucket) == 0
    assert look.count == 1


async def test_what_is_spent_during_a_look_counts(autojump_clock: MockClock) -> None:
    bucket = Bucket("a", 10)
    bucket.spent = 3
    bucket.know(4.0, trio.current_time())
    assert bucket.credit == 1


async def test_a_bucket_that_owes_is_noted_once_until_it_has_told(
    autojump_clock: MockClock,
) -> None:
    noted: list[Bucket] = []
    rates = Rates(Looks(), noted.append)
    bucket = rates.bucket("a", 1000)
    for _ in range(5):
        rates.take([bucket])
    assert noted == [bucket]
    bucket.spent = 0
    rates.take([bucket])
    assert noted == [bucket, bucket]


async def test_the_bucket_that_was_used_least_recently_goes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates_module, "MAX_BUCKETS", 3)
    rates = alone()
    kept = [rates.bucket(name, 1) for name in "abc"]
    assert rates.bucket("a", 1) is kept[0]
    rates.bucket("d", 1)
    assert (len(rates), rates.evicted) == (3, 1)
    assert rates.bucket("a", 1) is kept[0]
    assert rates.bucket("c", 1) is kept[2]
    assert rates.bucket("b", 1) is not kept[1]
    assert MAX_BUCKETS >= 1000


async def test_a_rate_that_has_changed_holds_from_the_next_use(autojump_clock: MockClock) -> None:
    rates = alone()
    bucket = rates.bucket("a", 100)
    await taken(rates, 500, bucket)
    rates.bucket("a", 10)
    await trio.sleep(100)
    assert await taken(rates, 500, bucket) == 10


def test_a_channels_rate_is_that_of_its_rule_or_the_general_one() -> None:
    rule = ChannelRule("ticker.*", Policy.DROP, 0, 0, 1.0, channel_publish_rate=5.0)
    rates = ChannelRates(Config(channels=(rule,), channel_publish_rate=2.0))
    assert (rates.of("ticker.a"), rates.of("b"), rates.of("b")) == (5.0, 2.0, 2.0)


def test_rates_are_remembered_for_so_many_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates_module, "CHANNELS_REMEMBERED", 10)
    rates = ChannelRates(Config(channel_publish_rate=2.0))
    assert {rates.of(f"c{number}") for number in range(100)} == {2.0}
    assert len(rates._rates) <= 10
