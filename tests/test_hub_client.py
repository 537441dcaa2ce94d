"""One client alone: what is staged, what is counted, and how it gets to the socket."""

import socket
import sys
from collections.abc import AsyncIterator

import pytest
from rig import SMALLEST_BUFFER, Dechunker, Reader

from gateway import control
from gateway.charge import Charge
from gateway.config import Config
from gateway.event import Event, Frame, render
from gateway.http1_render import chunk
from gateway.hub_client import FLUSH_BYTES, Client
from gateway.outbox import Outbox
from gateway.policy import Policy
from gateway.position import ZERO, Position
from gateway.stream_state import State
from gateway.tallies import Totals


def frame(number: int, size: int = 1) -> Frame:
    return render(Event(("a",), "x" * size), Position(1, number))


class Pair(Reader):
    """A client and the far end of its socket."""

    def __init__(self) -> None:
        super().__init__()
        near, self.far = socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALLEST_BUFFER)
        near.setblocking(False)
        self.far.setblocking(False)
        self.near = near
        self.client = Client("id", None, near, ZERO, Totals(Charge(sys.maxsize), Config(), int))
        self.client.state = State.LIVE
        self._chunks = Dechunker()

    def read(self) -> None:
        """All that is there."""
        try:
            while data := self.far.recv(64 * 1024):
                self.receive_data(self._chunks.receive_data(data))
        except BlockingIOError:
            pass

    def check_counters(self) -> None:
        client = self.client
        assert client.offered == client.written + client.dropped + client.queued

    @property
    def positions(self) -> list[str]:
        return [event.last_event_id for event in self.events if event.event == "message"]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:  # a trio fixture, as clients know the time
    pair = Pair()
    yield pair
    pair.near.close()
    pair.far.close()


def fall_behind(client: Client, frames: int = 3) -> Outbox:
    outbox = Outbox(max_frames=frames, max_bytes=1024 * 1024, charge=client.totals.charge)
    client.fall_behind(outbox)
    return outbox


async def test_a_whole_write_is_written_and_leaves_nothing(pair: Pair) -> None:
    frames = [frame(1), frame(2)]
    size = sum(len(f.chunk) for f in frames)
    assert pair.client.stage_started(frames, size) == 2
    assert (pair.client.offered, pair.client.written, pair.client.queued) == (2, 2, 0)
    assert pair.client.position == frames[1].position
    assert pair.client.staged is None


@pytest.mark.parametrize("cut", [-1, 0, 1])
async def test_of_a_partial_write_the_rest_of_the_started_frame_is_kept(
    pair: Pair, cut: int
) -> None:
    frames = [frame(1), frame(2), frame(3)]
    sent = len(frames[0].chunk) + cut
    started = pair.client.stage_started(frames, sent)
    assert started == (2 if cut > 0 else 1)
    assert pair.client.written == (0 if cut < 0 else 1)
    assert pair.client.queued == (0 if cut == 0 else 1)
    pair.check_counters()
    pair.near.send(b"".join(f.chunk for f in frames)[:sent])
    assert pair.client.flush()
    pair.read()
    assert pair.positions == ["1-1", "1-2"][:started]
    pair.check_counters()


async def test_nothing_started_means_nothing_kept(pair: Pair) -> None:
    assert pair.client.stage_started([frame(1)], 0) == 0
    assert pair.client.offered == 0
    assert not pair.client.waits


async def test_what_is_staged_goes_before_what_is_queued(pair: Pair) -> None:
    fall_behind(pair.client)
    pair.client.offer(frame(2), Policy.DROP)
    pair.client.stage_replayed(frame(1), with_id=True)
    pair.check_counters()
    assert pair.client.queued == 2
    assert pair.client.flush()
    pair.read()
    assert pair.positions == ["1-1", "1-2"]
    assert pair.client.written == 2


async def test_a_hole_is_told_where_it_is(pair: Pair) -> None:
    fall_behind(pair.client, frames=1)
    for number in range(1, 5):
        assert pair.client.offer(frame(number), Policy.DROP)
    pair.check_counters()
    assert pair.client.dropped == 3
    assert pair.client.flush()
    pair.read()
    assert pair.types == ["message", "dropped"]
    assert pair.dropped == 3


async def test_a_frame_counts_as_written_with_its_last_byte(pair: Pair) -> None:
    fall_behind(pair.client)
    pair.client.offer(frame(1), Policy.DROP)
    data = pair.client.next_bytes()
    pair.client.credit(len(data) - 1)
    assert (pair.client.written, pair.client.queued) == (0, 1)
    pair.client.credit(1)
    assert (pair.client.written, pair.client.queued) == (1, 0)


async def test_only_a_portion_is_staged_so_that_most_stays_droppable(pair: Pair) -> None:
    outbox = fall_behind(pair.client, frames=100)
    for number in range(100):
        pair.client.offer(frame(number, 1024), Policy.DROP)
    pair.client.next_bytes()
    assert 100 - outbox.frames <= FLUSH_BYTES // 1024 + 1
    pair.check_counters()


async def test_a_refusal_to_drop_changes_nothing(pair: Pair) -> None:
    fall_behind(pair.client, frames=1)
    assert pair.client.offer(frame(1), Policy.DISCONNECT)
    assert not pair.client.offer(frame(2), Policy.DISCONNECT)
    assert (pair.client.offered, pair.client.queued, pair.client.dropped) == (1, 1, 0)


async def test_an_abandoned_outbox_was_never_offered(pair: Pair) -> None:
    """Its frames and its holes are replayed, so that nothing is told missing that comes."""
    fall_behind(pair.client, frames=1)
    for number in range(1, 5):
        pair.client.offer(frame(number), Policy.DROP)
    pair.client.abandon_outbox()
    pair.check_counters()
    assert (pair.client.offered, pair.client.dropped, pair.client.queued) == (0, 0, 0)
    assert pair.client.flush()
    pair.read()
    assert pair.events == []


async def test_an_old_event_is_written_without_its_id(pair: Pair) -> None:
    pair.client.position = Position(5, 0)
    pair.client.stage_replayed(frame(1), with_id=False)
    assert pair.client.position == Position(5, 0)
    assert pair.client.flush()
    pair.read()
    assert pair.positions == [""]
    assert pair.client.totals.replayed == pair.client.written == 1


async def test_the_farewell_is_the_last_to_be_written(pair: Pair) -> None:
    fall_behind(pair.client)
    pair.client.offer(frame(1), Policy.DROP)
    pair.client.farewell = chunk(control.reconnect("draining"))
    assert pair.client.flush()
    pair.read()
    assert pair.types == ["message", "reconnect"]
    assert pair.client.farewell == b""


async def test_a_broken_connection_is_an_oserror(pair: Pair) -> None:
    pair.far.close()
    pair.client.stage_replayed(frame(1), with_id=True)
    with pytest.raises(OSError, match="Broken pipe"):
        pair.client.flush()


async def test_bytes_arrive_whole_however_slowly_they_are_read(pair: Pair) -> None:
    fall_behind(pair.client, frames=200)
    for number in range(200):
        pair.client.offer(frame(number, 300), Policy.DROP)
    rounds = 0
    while not pair.client.flush():
        rounds += 1
        pair.check_counters()
        pair.read()
    pair.read()
    assert rounds > 3
    assert pair.positions == [f"1-{number}" for number in range(200)]
