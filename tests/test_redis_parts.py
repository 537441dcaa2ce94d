"""Parts of the Redis bus that need no Redis: the merge, and what an epoch vouches for."""

import sys
from contextlib import suppress
from typing import cast

import hiredis
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from gateway.bus import History, merge, wire
from gateway.bus.epoch import Epoch, inspect, parse_epoch
from gateway.bus.history import cut
from gateway.bus.merge import Round
from gateway.bus.resp import Connection, LinkLost
from gateway.bus.subscriptions import LINGER_SECONDS, Subscriptions
from gateway.charge import Charge
from gateway.event import Event, Frame, render
from gateway.position import ZERO, Position

HEAD = Position(1000, 0)


def frame(ms: int, size: int = 1) -> Frame:
    return render(Event(("a",), "x" * size), Position(ms, 0))


CHANNELS = st.lists(st.sets(st.integers(1, 60), max_size=25).map(sorted), min_size=1, max_size=6)


@settings(deadline=None)
@given(CHANNELS, st.integers(1, 5), st.integers(1, 300), st.integers(1, 100))
def test_rounds_give_everything_once_in_order_and_little_at_a_time(
    channels: list[list[int]], share: int, size: int, bound: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "ROUND_BYTES", bound)
        given_out: list[Position] = []
        after = ZERO
        while after < HEAD:
            part = Round(HEAD)
            for positions in channels:
                later = [ms for ms in positions if Position(ms, 0) > after]
                page = [frame(ms, size) for ms in later[:share]]
                part.add(cut(History(page, after, len(later) <= share), part.until))
            frames = part.frames()
            assert sum(len(each.chunk) for each in frames) <= bound or len(frames) == 1
            given_out += [each.position for each in frames]
            assert part.until > after
            after = part.until
    assert given_out == [Position(ms, 0) for ms in sorted(set().union(*channels))]


def test_an_epoch_vouches_for_what_is_neither_before_a_break_nor_was_never_given_out() -> None:
    epoch = Epoch(Position(20, 0), Position(30, 0), Position(10, 0), ZERO)
    vouched = [ms for ms in range(5, 40) if epoch.vouches(Position(ms, 0))]
    assert vouched == [*range(10, 21), *range(30, 40)]


class Telling:
    """A connection to a Redis that says such things of itself."""

    def __init__(self, persistence: bytes) -> None:
        self._persistence = persistence

    async def call(self, *command: str) -> object:
        await trio.lowlevel.checkpoint()
        if command == ("ROLE",):
            return [b"master", 0, []]
        return {
            "server": b"# Server\r\nrun_id:abc\r\n",
            "persistence": self._persistence,
            "replication": b"role:master\r\n",
            "memory": b"maxmemory_policy:noeviction\r\n",
        }[command[1]]


async def test_a_redis_that_still_loads_is_not_believed_to_keep_no_log() -> None:
    """As it says while it reads what it has logged."""
    with pytest.raises(LinkLost, match="loading"):
        await inspect(cast("Connection", Telling(b"loading:1\r\naof_enabled:0\r\n")))
    server = await inspect(cast("Connection", Telling(b"loading:0\r\naof_enabled:1\r\n")))
    assert server.is_complete


def test_an_epoch_is_read_from_what_redis_knows() -> None:
    assert parse_epoch(["1-2", "3-4", "-", "-"]) == Epoch(
        Position(1, 2), Position(3, 4), ZERO, ZERO
    )


def test_what_is_cut_away_is_not_forgotten() -> None:
    page = History([frame(1), frame(2), frame(3)], ZERO, complete=False)
    assert cut(page, Position(3, 0)) is page
    short = cut(page, Position(2, 5))
    assert [each.position.ms for each in short.frames] == [1, 2]
    assert short.complete
    assert cut(History((), Position(9, 0), complete=True), HEAD).previous == Position(9, 0)


@pytest.mark.parametrize("key", [None, "k", "two words", "~"])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("channels", [("a",), ("~a", "b")])
def test_a_message_is_read_as_the_frame_that_a_node_renders(
    key: str | None, end: bool, channels: tuple[str, ...]
) -> None:
    event = Event(channels, "~ some\ndata", key=key, end=end, type="t", retry=5)
    read, at, before = wire.decode(b"1 7-3 7-2 99 " + wire.encode(event), channels[:1])
    rendered = render(event, Position(7, 3))
    for name in Frame.__struct_fields__:
        assert getattr(read, name) == getattr(rendered, name)
    assert (at, before) == (b"7-3", b"7-2")
    assert not wire.is_known_empty(before)
    assert wire.is_known_empty(b"~7-2")


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: b"1 5-0 4-0 " + tail))
def test_what_is_no_message_is_unreadable_and_nothing_else(payload: bytes) -> None:
    with suppress(wire.Unreadable):
        wire.decode(payload, ("a",))


class Replies:
    """A reader of replies that has one and then fails."""

    def __init__(self, error: Exception) -> None:
        self._replies: list[object] = [b"whole", error]

    def feed(self, data: bytes) -> None:
        pass

    def gets(self) -> object:
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


@pytest.mark.parametrize("error", [hiredis.ProtocolError("no"), MemoryError(), TypeError("no")])
async def test_what_is_not_of_redis_ends_the_link_behind_what_was_whole(error: Exception) -> None:
    ours, theirs = memory_stream_pair()
    connection = Connection(ours)
    connection._reader = Replies(error)  # type: ignore[assignment]
    await theirs.send_all(b"x")
    assert await connection.receive() == [b"whole"]
    for _ in range(2):
        with pytest.raises(LinkLost, match="not of Redis"):
            await connection.receive()


async def test_the_longest_unclaimed_go_first(autojump_clock: MockClock) -> None:
    subscriptions = Subscriptions("p:", Charge(sys.maxsize))
    subscriptions.claim(["a", "b"])
    subscriptions.release(["a"])
    autojump_clock.jump(LINGER_SECONDS / 2)
    subscriptions.release(["b"])
    autojump_clock.jump(LINGER_SECONDS / 2)
    assert [each.name for each in subscriptions.overdue()] == ["a"]
    subscriptions.claim(["b"])
    autojump_clock.jump(LINGER_SECONDS * 2)
    assert subscriptions.overdue() == []
