"""Messages between supervisor and worker: whole, bounded, and never in anybody's way."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config import ChannelRule, Config
from gateway.control_socket import (
    MAX_MESSAGE_BYTES,
    MAX_WAITING,
    Answer,
    Ask,
    ControlError,
    ControlSocket,
    Drain,
    Gone,
    Left,
    Own,
    Question,
    Ready,
    Start,
    ToSupervisor,
    ToWorker,
)
from gateway.control_socket import Leave as LeaveNode
from gateway.errors import Unavailable
from gateway.node import Node
from gateway.policy import Policy
from gateway.server import Leave
from gateway.worker import ANSWER_SECONDS, Link

CONFIG = Config(
    node_id="n", channels=(ChannelRule("a.*", Policy.LATEST, 1, 2, 3.0, public=True),) * 1000
)
LENGTH = 4


@contextmanager
def pair() -> Iterator[tuple[ControlSocket[ToSupervisor], ControlSocket[ToWorker]]]:
    """Supervisor's end and worker's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ControlSocket(ours, ToSupervisor), ControlSocket(theirs, ToWorker)


async def everything(end: ControlSocket[ToWorker]) -> list[ToWorker]:
    return [message async for message in end]


async def test_every_message_comes_as_it_was_sent(nursery: trio.Nursery) -> None:
    own = Node(CONFIG, max_clients=1).statistics()
    down: list[ToWorker] = [Start(3, CONFIG), Ask(), Answer(own), Answer(None), Gone("a"), Drain()]
    up: list[ToSupervisor] = [Ready("a"), Own(own), Question(), Left(), LeaveNode()]
    with pair() as (supervisor, worker):
        for message in down:
            supervisor.send_nowait(message)
        for told in up:
            worker.send_nowait(told)
        nursery.start_soon(supervisor.write)
        nursery.start_soon(worker.write)
        assert [await anext(worker) for _ in down] == down
        assert [await anext(supervisor) for _ in up] == up


async def test_messages_may_come_byte_by_byte() -> None:
    texts = [msgspec.msgpack.encode(message) for message in (Ask(), Drain())]
    data = b"".join(len(text).to_bytes(LENGTH, "big") + text for text in texts)
    near, far = socket.socketpair()
    with near, far:
        end: ControlSocket[ToWorker] = ControlSocket(far, ToWorker)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for byte in data:
                    near.send(bytes([byte]))
                    await wait_all_tasks_blocked()
                near.close()

            nursery.start_soon(send)
            assert await everything(end) == [Ask(), Drain()]


@pytest.mark.parametrize("cut", range(1, LENGTH + 2))
async def test_a_message_that_is_cut_short_is_none(cut: int) -> None:
    text = msgspec.msgpack.encode(Drain())
    near, far = socket.socketpair()
    with far:
        near.send((len(text).to_bytes(LENGTH, "big") + text)[:cut])
        near.close()
        assert await everything(ControlSocket(far, ToWorker)) == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "Launch"}),
        msgspec.msgpack.encode(Ready("a")),
        msgspec.msgpack.encode({"type": "Start", "number": "one", "config": {}}),
    ],
    ids=["nothing", "no MessagePack", "unknown", "of the other direction", "of other types"],
)
async def test_what_is_no_message_is_an_error(text: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.send(len(text).to_bytes(LENGTH, "big") + text)
        with pytest.raises(ControlError):
            await everything(ControlSocket(far, ToWorker))


async def test_a_message_that_is_too_long_is_refused_before_it_is_read() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.send((MAX_MESSAGE_BYTES + 1).to_bytes(LENGTH, "big"))
        with pytest.raises(ControlError, match=f"{MAX_MESSAGE_BYTES + 1} bytes"):
            await everything(ControlSocket(far, ToWorker))


async def test_what_waits_to_be_written_is_bounded() -> None:
    with pair() as (supervisor, _):
        for _ in range(MAX_WAITING):
            supervisor.send_nowait(Ask())
        with pytest.raises(trio.WouldBlock):
            supervisor.send_nowait(Ask())


async def test_sending_to_a_peer_that_is_gone_is_nothing() -> None:
    with pair() as (supervisor, worker):
        await worker.aclose()
        supervisor.send_nowait(Ask())
        await supervisor.write()
        supervisor.send_nowait(Ask())
        assert [message async for message in supervisor] == []


# -- the worker's side


async def test_questions_are_asked_one_at_a_time_and_each_gets_an_answer_of_its_own(
    nursery: trio.Nursery,
) -> None:
    """None of them one that was under way when it was asked: that may know of less."""
    node = Node(CONFIG, max_clients=1)
    uptimes: list[float] = []
    with pair() as (supervisor, worker):
        link = Link(CONFIG, worker)

        async def ask() -> None:
            uptimes.append((await link.node_statistics()).uptime_seconds)

        for task in (worker.write, supervisor.write):
            nursery.start_soon(task)
        nursery.start_soon(link.attend, node, Leave())
        assert await anext(supervisor) == Ready(node.tag)
        for _ in range(3):
            nursery.start_soon(ask)
        for answered in range(3):
            assert await anext(supervisor) == Question()
            await wait_all_tasks_blocked()
            assert len(uptimes) == answered
            told = node.statistics()
            supervisor.send_nowait(Answer(told))
            await wait_all_tasks_blocked(0.01)
            assert uptimes[-1] == told.uptime_seconds
        nursery.cancel_scope.cancel()


async def test_the_supervisor_is_told_once_that_the_node_is_to_leave_and_the_worker_waits_for_it(
    nursery: trio.Nursery,
) -> None:
    node, leave = Node(CONFIG, max_clients=1), Leave()
    with pair() as (supervisor, worker):
        link = Link(CONFIG, worker)
        for task in (worker.write, supervisor.write):
            nursery.start_soon(task)
        nursery.start_soon(link.attend, node, leave)
        assert await anext(supervisor) == Ready(node.tag)
        assert node.ask_to_leave is not None
        for _ in range(2 * MAX_WAITING):
            node.ask_to_leave()
        assert await anext(supervisor) == LeaveNode()
        assert not leave.wanted.is_set()
        supervisor.send_nowait(Drain())
        await leave.wanted.wait()
        nursery.cancel_scope.cancel()


async def test_a_supervisor_that_does_not_answer_is_waited_for_so_long(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """And asked nothing more meanwhile: what waits for it cannot grow."""
    with pair() as (supervisor, worker):
        link = Link(CONFIG, worker)
        for _ in range(2 * MAX_WAITING):
            start = trio.current_time()
            with pytest.raises(Unavailable, match="supervisor does not answer"):
                await link.node_statistics()
            assert trio.current_time() - start == pytest.approx(ANSWER_SECONDS)
        nursery.start_soon(worker.write)
        worker.finish()
        assert await anext(supervisor) == Question()
        await worker.aclose()
        assert [message async for message in supervisor] == []
