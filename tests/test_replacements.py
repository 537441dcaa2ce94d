"""Streams that end for younger ones: those of other workers are asked for, within bounds."""

from collections.abc import AsyncIterator

import pytest
import trio
from rig import Rig, running
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway import messages, replacements
from gateway.cluster import COMMAND_SECONDS
from gateway.config import Config
from gateway.errors import Unavailable
from gateway.replacements import AGAIN_SECONDS, TRIES
from gateway.stream_state import Reason

THERE = "0000beef"
"""Another worker's tag."""


class Link:
    """To workers that say nothing."""

    def __init__(self) -> None:
        self.sent: list[tuple[str | None, bytes]] = []
        self.fails = False
        self.there = 1

    async def send(self, worker: str | None, message: bytes) -> int:
        await trio.lowlevel.checkpoint()
        self.sent.append((worker, message))
        if self.fails:
            raise Unavailable("The link is lost.", outcome="refused")
        return self.there


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running(Config()) as rig:
        yield rig


@pytest.fixture
def link(rig: Rig) -> Link:
    rig.node.cluster.link = link = Link()
    return link


async def test_a_stream_of_this_worker_ends_without_being_asked_for(rig: Rig, link: Link) -> None:
    peer = await rig.open_live("a", user="u")
    rig.node.replacements.end([peer.client.id, f"{rig.node.tag}.unknown"])
    await peer.read_all()
    assert peer.ended
    assert peer.last_event_id.endswith(".closed")
    assert peer.client.reason is Reason.REPLACED
    assert link.sent == []


async def test_another_worker_is_asked_and_does_it(rig: Rig, link: Link) -> None:
    peer = await rig.open_live("a", user="u")
    rig.node.replacements.end([f"{THERE}.x"])
    await wait_all_tasks_blocked()
    [(worker, message)] = link.sent
    assert worker == THERE
    asked = messages.decode(message)
    assert isinstance(asked, messages.Request)
    assert asked.command == "replace-client"
    command = replacements.REPLACE_CLIENT
    request = messages.request(THERE, 1, command, replacements.Replaced(peer.client.id))
    rig.node.cluster.receive(request)
    await peer.read_all()
    assert peer.client.reason is Reason.REPLACED


@pytest.mark.parametrize("fails", [True, False])
async def test_who_does_not_answer_is_asked_a_few_times_and_then_given_up(
    autojump_clock: MockClock,
    rig: Rig,
    link: Link,
    fails: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    link.fails = fails
    rig.node.replacements.end([f"{THERE}.x"])
    await trio.sleep(TRIES * (COMMAND_SECONDS + AGAIN_SECONDS) + 1)
    assert len(link.sent) == TRIES
    assert rig.node.statistics().ledger.unreached == 1
    assert "may still be open" in caplog.text


async def test_a_worker_that_is_gone_needs_no_asking_again(
    autojump_clock: MockClock, rig: Rig, link: Link
) -> None:
    link.there = 0
    rig.node.replacements.end([f"{THERE}.x"])
    await trio.sleep(60)
    assert len(link.sent) == 1
    assert rig.node.statistics().ledger.unreached == 0


async def test_those_who_wait_to_be_told_are_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacements, "MAX_WAITING", 5)
    async with running(Config()) as rig:
        rig.node.cluster.link = Link()
        await wait_all_tasks_blocked()  # until those who ask wait for something to do
        rig.node.replacements.end([f"{THERE}.{number}" for number in range(30)])
        assert rig.node.replacements.unreached == 30 - 5 - replacements.ASKERS
