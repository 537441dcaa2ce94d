"""The Lua scripts on a real Redis: one order, whole events, and no gap that is not told."""

from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_scripts import AGE, MINUTE, Scripts, configured, packed

from gateway.position import Position

DOCUMENT = '{"channel": "a", "data": "x"}'


@pytest.fixture
def bare(client: redis.Redis, new_prefix: str) -> Scripts:
    """Nobody has attached."""
    return Scripts(client, new_prefix)


@pytest.fixture
def scripts(bare: Scripts) -> Scripts:
    bare.attach()
    return bare


def position(text: str) -> Position:
    parsed = Position.parse(text.removeprefix("=").removeprefix("~"))
    assert parsed is not None
    return parsed


# -- the clock


@pytest.mark.parametrize("script", ["publish", "head", "evicted"])
def test_without_a_clock_nothing_is_done(bare: Scripts, script: str) -> None:
    with pytest.raises(redis.ResponseError, match="NOCLOCK"):
        bare.run(script, 1, 1, 1, 1)
    assert bare.dump() == {}


@pytest.mark.parametrize("step", [-5000, 0, 1, 5000])
def test_positions_grow_whatever_the_time_does(scripts: Scripts, step: int) -> None:
    (before,) = scripts.publish()
    scripts.now += step
    told = [before, *scripts.publish(packed("a"), packed("b")), *scripts.publish()]
    assert told == sorted(set(told), key=position)
    if step > 0:
        assert position(told[1]) == (scripts.now, 0)


def test_the_time_is_that_of_redis(scripts: Scripts) -> None:
    scripts.now = 0
    (first,) = scripts.publish()
    seconds, _ = scripts.client.time()
    assert abs(position(first).ms - seconds * 1000) < MINUTE


def test_a_head_lies_between_what_was_published_and_what_will_be(scripts: Scripts) -> None:
    for step in (0, 1, -1000, 1001, 0):
        scripts.now += step
        (before,) = scripts.publish()
        head = scripts.head()
        (after,) = scripts.publish()
        assert position(before) <= position(head) < position(after)


# -- chains


def test_each_event_names_the_one_before_it_on_its_channel(scripts: Scripts) -> None:
    first, second, third = scripts.publish(packed("a"), packed("a", "b"), packed("b"))
    empty = f"~{scripts.now - AGE}-0"
    assert scripts.chain("a") == [(first, empty), (second, first)]
    assert scripts.chain("b") == [(second, empty), (third, second)]


def test_a_message_is_the_entry(scripts: Scripts) -> None:
    with scripts.client.pubsub() as listener:  # type: ignore[no-untyped-call]
        listener.subscribe(scripts.key("c:a"))
        listener.get_message(timeout=5)
        scripts.publish()
        message = listener.get_message(timeout=5)
        assert message is not None
        assert [message["data"]] == scripts.entries()


@pytest.mark.parametrize("gone", [(), ("s:a",), ("m:a",), ("s:a", "m:a", "clock")])
def test_what_was_forgotten_by_age_is_known_to_be_empty_since(
    scripts: Scripts, gone: tuple[str, ...]
) -> None:
    (first,) = scripts.publish()
    scripts.now += AGE + 1
    if gone:
        scripts.client.delete(*map(scripts.key, gone))
        scripts.attach()
    (second,) = scripts.publish()
    assert [chain[0] for chain in scripts.chain()] == [second]
    assert position(scripts.chain()[0][1]) >= position(first)


def test_a_record_that_is_gone_hides_no_gap(scripts: Scripts) -> None:
    scripts.publish()
    (second,) = scripts.publish()
    scripts.client.delete(scripts.key("m:a"))
    (third,) = scripts.publish()
    ((told, previous),) = scripts.chain()
    assert told == third
    assert previous[0] != "~"
    assert position(previous) >= position(second)


def test_a_stream_that_is_gone_hides_no_gap(scripts: Scripts) -> None:
    (first,) = scripts.publish()
    scripts.client.delete(scripts.key("s:a"))
    (second,) = scripts.publish()
    assert scripts.chain() == [(second, first)]


def test_a_record_that_makes_no_sense_hides_no_gap(scripts: Scripts) -> None:
    (first,) = scripts.publish()
    scripts.client.set(scripts.key("m:a"), "nonsense")
    (second,) = scripts.publish()
    ((told, previous),) = scripts.chain()
    assert told == second
    assert previous == first


# -- bounds


def test_history_has_the_last_events_exactly(scripts: Scripts) -> None:
    told = scripts.publish(*[packed(events=3)] * 10)
    assert [at for at, _ in scripts.chain()] == told[-3:]


def test_history_has_as_many_bytes_as_fit_exactly(scripts: Scripts) -> None:
    scripts.publish(packed(data="x" * 100))
    size = len(scripts.entries()[0])
    for room in (0, 1):
        bound = 3 * size + 20 - room * 25
        told = scripts.publish(*[packed(data="x" * 100, size=bound)] * 6)
        held = sum(map(len, scripts.entries()))
        assert held <= bound
        assert held + size > bound
        assert [at for at, _ in scripts.chain()] == told[-len(scripts.entries()) :]


def test_an_event_beyond_all_bounds_is_passed_on_and_not_kept(scripts: Scripts) -> None:
    (first,) = scripts.publish(packed(size=50, data="x" * 100))
    assert scripts.entries() == []
    (second,) = scripts.publish(packed(size=1000))
    assert scripts.chain() == [(second, first)]


def test_without_history_nothing_is_kept(scripts: Scripts) -> None:
    scripts.publish(packed(events=0), packed("b", size=0))
    assert scripts.client.exists(scripts.key("s:a"), scripts.key("s:b")) == 0


def test_all_keys_but_four_expire(scripts: Scripts) -> None:
    scripts.publish(packed("a", "b", token="t"), packed("c", events=0))
    scripts.head()
    keys: Any = scripts.client.keys(scripts.key("*"))
    lasting = {key.decode() for key in keys if scripts.client.pttl(key) == -1}
    assert lasting == {scripts.key(name) for name in ("clock", "epoch", "rules")}


def test_nothing_expires_before_its_time(scripts: Scripts) -> None:
    scripts.publish(packed(token="t"))
    scripts.now += AGE // 2
    scripts.publish()
    for name, since in (("s:a", AGE // 2), ("m:a", AGE // 2), ("d:t", 0)):
        left = scripts.client.pttl(scripts.key(name))
        assert AGE + since - MINUTE < left < 2 * AGE + since


# -- ids, ends, calls


def test_a_repeat_has_the_first_position_within_its_window(scripts: Scripts) -> None:
    (first,) = scripts.publish(packed(token="t"))
    scripts.now += AGE
    assert scripts.publish(packed(token="t")) == [f"={first}"]
    assert len(scripts.entries()) == 1
    scripts.now += 1
    assert scripts.publish(packed(token="t")) != [f"={first}"]


def test_a_batch_is_refused_event_by_event(scripts: Scripts) -> None:
    first, second, third, fourth = scripts.publish(
        packed("a", end=True), packed("b", "a"), packed("b", token="t"), packed("b", token="t")
    )
    assert second == "E"
    assert fourth == f"={third}"
    assert [at for at, _ in scripts.chain("a")] == [first]
    assert [at for at, _ in scripts.chain("b")] == [third]


def test_an_ended_channel_begins_anew_after_its_time(scripts: Scripts) -> None:
    scripts.publish(packed(end=True))
    scripts.now += AGE
    assert scripts.publish() == ["E"]
    scripts.now += 1
    (later,) = scripts.publish()
    assert [at for at, _ in scripts.chain()] == [later]


def test_a_call_that_is_made_again_gets_its_results_again(scripts: Scripts) -> None:
    told = scripts.publish(packed("a"), packed("b", end=True), packed("b"), number=7)
    before = scripts.dump()
    scripts.now += 1000
    assert scripts.publish(packed("a"), packed("b"), packed("b"), number=7) == told
    assert scripts.dump() == before
    assert scripts.publish(packed("a"), number=7, worker="other") != told[:1]


def test_calls_are_remembered_for_as_long_as_they_can_be_under_way(scripts: Scripts) -> None:
    told = [scripts.publish(number=number) for number in range(512)]
    assert [scripts.publish(number=number) for number in range(512)] == told
    scripts.publish(number=512)
    assert scripts.publish(number=0) != told[0]


# -- what is in the way


def test_the_clock_is_lifted_beyond_what_a_stream_holds(scripts: Scripts) -> None:
    scripts.publish()
    forged = f"{scripts.now + 10 * AGE}-5"
    scripts.client.xadd(scripts.key("s:a"), {"e": "?"}, forged)
    (later,) = scripts.publish()
    assert position(later) > position(forged)
    assert position(scripts.publish(packed("b"))[0]) > position(later)


@pytest.mark.parametrize(
    "forged", ["9007199254740993-0", f"{2**64 - 1}-{2**64 - 1}", "99999999999998-0"]
)
def test_a_channel_begins_anew_behind_what_cannot_be_gone_beyond(
    scripts: Scripts, forged: str
) -> None:
    (first,) = scripts.publish()
    scripts.client.delete(scripts.key("s:a"))
    scripts.client.xadd(scripts.key("s:a"), {"e": "?"}, forged)
    (second,) = scripts.publish(packed("a", "b"))
    at, previous = scripts.chain("a")[-1]
    assert at == second == scripts.chain("b")[0][0]
    assert position(second) > position(previous) >= position(first)
    (third,) = scripts.publish()
    assert scripts.chain("a")[-1] == (third, second)
    assert position(third).ms < 10**14


@pytest.mark.parametrize("place", ["m:b", "s:b", "d:t"])
def test_what_is_no_record_of_ours_refuses_its_events_alone(scripts: Scripts, place: str) -> None:
    scripts.publish(packed("a"), packed("b"))
    key = scripts.key(place)
    scripts.client.delete(key)
    scripts.client.hset(key, "a", "b")
    kept = {name: value for name, value in scripts.dump().items() if b":w:" not in name}
    (refused,) = scripts.publish(packed("a", "b", token="t"))
    assert refused.startswith("XWRONGTYPE")
    now = {name: value for name, value in scripts.dump().items() if b":w:" not in name}
    changed = {name for name in now if now[name] != kept.get(name)}
    assert changed <= {scripts.key("s:a").encode()}  # its last id, and nothing that can be read
    assert len(scripts.entries("a")) == 1
    first, refused, last = scripts.publish(packed("a"), packed("b", token="t"), packed("a"))
    assert refused.startswith("XWRONGTYPE")
    assert [at for at, _ in scripts.chain("a")][-2:] == [first, last]


def test_out_of_memory_nothing_is_changed(scripts: Scripts) -> None:
    scripts.publish()
    before = scripts.dump()
    with configured(scripts.client, maxmemory=1, **{"maxmemory-policy": "noeviction"}):
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            scripts.publish(packed("a", "b", token="t"))
        scripts.head()
    assert scripts.dump().keys() - {scripts.key("workers").encode()} == before.keys()
    assert len(scripts.entries()) == 1


def test_a_replica_refuses_and_changes_nothing(scripts: Scripts) -> None:
    scripts.publish()
    before = scripts.dump()
    scripts.client.replicaof("127.0.0.1", "1")
    try:
        for script in ("publish", "head", "evicted"):
            with pytest.raises(redis.ResponseError, match="read only replica"):
                scripts.run(script, 1 if script == "evicted" else DOCUMENT, 1, 0, 1)
        assert scripts.dump() == before
    finally:
        scripts.client.replicaof("NO", "ONE")


# -- attaching


def test_the_first_start_vouches_for_nothing_before_it(bare: Scripts) -> None:
    clock, restored, lifted, broken, lossy = bare.attach()
    assert (restored, lossy) == ("0-0", "-")
    assert clock == lifted == broken == f"{bare.now}-0"


def test_the_same_run_goes_on(scripts: Scripts) -> None:
    told = scripts.attach()
    (last,) = scripts.publish()
    assert scripts.attach(floor=last, seen="run1")[1:] == told[1:]


def test_another_run_with_all_that_it_confirmed_has_lost_nothing(scripts: Scripts) -> None:
    broken = scripts.attach()[3]
    (last,) = scripts.publish()
    clock, restored, lifted, still, _ = scripts.attach("run2", complete=True, floor=last)
    assert still == broken
    assert restored == last
    assert position(clock) == position(lifted) > position(last)


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("beyond", [0, 1])
def test_another_run_that_may_have_lost_something_is_a_break(
    scripts: Scripts, complete: bool, beyond: int
) -> None:
    first = scripts.attach()
    (last,) = scripts.publish()
    seen = position(last)
    floor = str(Position(seen.ms, seen.seq + beyond))
    clock, _, _, broken, _ = scripts.attach("run2", complete=complete, floor=floor, seen="run1")
    assert (broken == first[3]) == (complete and not beyond)
    assert position(clock) > seen


def test_a_node_that_saw_more_than_was_restored_makes_it_known_afterwards(
    scripts: Scripts,
) -> None:
    (last,) = scripts.publish()
    before = scripts.attach("run2", complete=True)
    ms, seq = position(last)
    unharmed = scripts.attach("run2", floor=last, seen="run1")
    harmed = scripts.attach("run2", floor=f"{ms}-{seq + 1}", seen="run1")
    assert unharmed[3] == before[3]
    assert position(harmed[3]) > position(before[3])


def test_what_was_lost_with_one_run_is_one_break(scripts: Scripts) -> None:
    """Of several nodes that have seen what a promoted replica lacks, the first one makes it known,
    and no client is told of a second gap. What was seen beyond the lifted clock is news."""
    (last,) = scripts.publish()
    ms, seq = position(last)
    seen = f"{ms}-{seq + 1}"
    first = scripts.attach("run2", floor=seen, seen="run1")
    assert scripts.attach("run2", floor=f"{ms}-{seq + 2}", seen="run1") == first
    (after,) = scripts.publish()
    assert scripts.attach("run2", floor=seen, seen="run1")[1:] == first[1:]
    told = scripts.attach("run2", floor=f"{position(first[2]).ms}-1", seen="run1")
    assert position(told[3]) > position(after)


def test_an_emptied_redis_is_lifted_beyond_all_that_was_seen(scripts: Scripts) -> None:
    scripts.now += 10 * AGE
    (last,) = scripts.publish()
    scripts.now -= 10 * AGE
    scripts.client.delete(scripts.key("clock"), scripts.key("epoch"))
    clock, restored, _, broken, _ = scripts.attach(floor=last, seen="run1")
    assert restored == "0-0"
    assert position(broken) == position(clock) > position(last)


def test_evictions_are_taken_note_of_once(scripts: Scripts) -> None:
    scripts.now += 1
    first = scripts.run("evicted", 3, scripts.now)
    scripts.now += 1
    assert scripts.run("evicted", 3, scripts.now) == first
    assert scripts.run("evicted", 4, scripts.now) == f"{scripts.now}-0".encode()
    assert scripts.attach()[4] == f"{scripts.now}-0"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["publish", "head", "attach", "restart", "roll back", "empty", "pass time"]
        ),
        st.integers(-20_000, 20_000),
    ),
    max_size=25,
)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_no_position_is_given_out_twice(bare: Scripts, steps: list[tuple[str, int]]) -> None:
    """Whatever Redis loses: the node that attaches first has seen all that was given out."""
    bare.client.delete(*(bare.client.keys(bare.key("*")) or ["none"]))
    run, seen = 1, Position(0, 0)
    bare.attach(f"run{run}")
    saved: dict[Any, Any] = {}
    for step, number in steps:
        match step:
            case "publish":
                (told,) = bare.publish()
                assert position(told) > seen
                seen = position(told)
            case "head":
                assert position(bare.head()) >= seen
                seen = position(bare.head())
            case "attach":
                bare.attach(f"run{run}", floor=str(seen), seen=f"run{run}")
                saved = {key: bare.client.dump(key) for key in bare.client.keys(bare.key("*"))}
            case "pass time":
                bare.now += number
            case _:
                if step != "restart":
                    bare.client.delete(*bare.client.keys(bare.key("*")))
                if step == "roll back":
                    for key, value in saved.items():
                        bare.client.restore(key, 0, value)
                run += 1
                bare.attach(f"run{run}", floor=str(seen), seen=f"run{run - 1}")
