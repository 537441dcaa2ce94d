"""The statistics of several workers as one node's: sums, and counters that never go down."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.histogram import Distribution
from gateway.merged import GREATEST, LEAST, accepting_no_more, counted, merge
from gateway.metrics import render
from gateway.node import NodeStatistics

KEYS = st.sampled_from(["gone", "draining", "404"])


def instances(kind: type) -> st.SearchStrategy[Any]:
    """Any values of a statistics class, whatever its fields are."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: values(hints[field.name]) for field in fields(kind)})


COUNTING = ("counter", "histogram")
"""The types of what never goes down."""

BOUNDS = (0.1, 1.0)

DISTRIBUTIONS = st.builds(
    Distribution,
    st.just(BOUNDS),
    st.tuples(*[st.integers(0, 1000)] * (len(BOUNDS) + 1)),
    st.integers(0, 1000).map(float),
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    if hint is Distribution:
        return DISTRIBUTIONS
    if get_origin(hint) is dict:
        return st.dictionaries(KEYS, values(get_args(hint)[1]), max_size=2)
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return instances(hint)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(0, 1000),
        float: st.integers(0, 1000).map(float),
        bool: st.booleans(),
        str: st.just("node"),
    }
    return simple[hint]


STATISTICS: st.SearchStrategy[NodeStatistics] = instances(NodeStatistics)

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def samples(of: NodeStatistics, *types: str) -> Samples:
    """What /metrics says, of some types, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(render(of).decode())
        for sample in family.samples
        if family.type in types
    }


def numbers(of: Any, path: str = "") -> Mapping[str, int]:
    """All whole numbers, by where they are."""
    if type(of) is int:
        return {path: of}
    if is_dataclass(of):
        parts = {f".{field.name}": getattr(of, field.name) for field in fields(of)}
    elif isinstance(of, dict):
        parts = {f"[{key}]": part for key, part in of.items()}
    elif isinstance(of, tuple):
        parts = {f"[{place}]": part for place, part in enumerate(of)}
    else:
        return {}
    found: dict[str, int] = {}
    for name, part in parts.items():
        found |= numbers(part, path + name)
    return found


@settings(deadline=None)
@given(st.lists(STATISTICS, min_size=1, max_size=5))
def test_every_number_is_the_sum_of_the_parts(parts: list[NodeStatistics]) -> None:
    whole = numbers(merge(parts))
    told = [numbers(part) for part in parts]
    assert set(whole) == set().union(*told)
    for name, number in whole.items():
        if name.rpartition(".")[2] not in LEAST | GREATEST:
            assert number == sum(part.get(name, 0) for part in told), name


@settings(deadline=None)
@given(st.lists(STATISTICS, min_size=1, max_size=5))
def test_flags_hold_when_all_do_and_the_longest_uptime_counts(
    parts: list[NodeStatistics],
) -> None:
    whole = merge(parts)
    assert whole.id == "node"
    assert whole.uptime_seconds == max(part.uptime_seconds for part in parts)
    assert whole.draining == all(part.draining for part in parts)
    assert whole.full == all(part.full for part in parts)
    assert whole.cut_off == all(part.cut_off for part in parts)
    assert whole.bus.link.up == min(part.bus.link.up for part in parts)


@settings(deadline=None)
@given(st.lists(STATISTICS, min_size=1, max_size=4))
def test_how_the_parts_are_grouped_makes_no_difference(parts: list[NodeStatistics]) -> None:
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = merge([one_by_one, part])
    assert one_by_one == merge(parts)


@settings(deadline=None)
@given(STATISTICS, st.lists(st.floats(0, 1e6), min_size=3, max_size=4))
def test_what_is_counted_in_seconds_is_not_less_by_a_rounding(
    one: NodeStatistics, seconds: list[float]
) -> None:
    """As when the last of several workers has ended."""
    *others, last = [
        replace(one, admission=replace(one.admission, waited_seconds=each)) for each in seconds
    ]
    before = merge([*others, last]).admission
    after = merge([merge([counted(last)]), *others]).admission
    assert after.waited_seconds == before.waited_seconds


@settings(deadline=None)
@given(STATISTICS)
def test_a_dead_worker_keeps_its_counters_and_nothing_that_it_held(last: NodeStatistics) -> None:
    """By what /metrics calls a counter and a gauge, so that a new one of either is found here."""
    kept = counted(last)
    assert samples(kept, *COUNTING) == samples(last, *COUNTING)
    for (name, _), number in samples(kept, "gauge").items():
        if name != "gateway_build_info":
            assert number == 0 or name.endswith(("_up", "_draining")), name  # the least counts


@settings(deadline=None)
@given(st.lists(STATISTICS, min_size=2, max_size=5), st.data())
def test_no_counter_goes_down_when_workers_die(
    parts: list[NodeStatistics], data: st.DataObject
) -> None:
    dead = data.draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts)))
    after = [counted(part) if gone else part for part, gone in zip(parts, dead, strict=True)]
    assert samples(merge(after), *COUNTING) == samples(merge(parts), *COUNTING)


@settings(deadline=None)
@given(STATISTICS)
def test_a_dead_workers_links_do_not_count(living: NodeStatistics) -> None:
    link = replace(living.bus.link, up=1)
    living = replace(living, bus=replace(living.bus, link=link))
    assert merge([living, counted(living)]).bus.link.up == 1


@settings(deadline=None)
@given(STATISTICS, STATISTICS)
def test_who_leaves_or_is_gone_has_no_say_in_what_the_node_takes(
    serving: NodeStatistics, other: NodeStatistics
) -> None:
    for part in (accepting_no_more(other), counted(other)):
        whole = merge([serving, part])
        for name in ("draining", "full", "cut_off", "max_clients"):
            assert getattr(whole, name) == getattr(serving, name), name
    assert accepting_no_more(other).hub == other.hub
