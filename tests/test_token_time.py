"""Tokens in time: streams end with them, whatever the clocks do, and newer ones extend them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from rig import EPOCH, Peer, Rig, running
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config import DAY, Config
from gateway.identity import Identity
from gateway.position import Start
from gateway.stream_state import Reason, State
from gateway.streams import EventStream

LATE = 1.0
"""Seconds by which a stream may end after its token."""


@asynccontextmanager
async def keeping_time(config: Config | None = None) -> AsyncIterator[Rig]:
    """A rig whose wall clock goes with the virtual one."""
    async with running(config or Config()) as rig:
        begun = trio.current_time()
        rig.node.now_ms = rig.node._clock._now_ms = lambda: (
            rig.wall + int((trio.current_time() - begun) * 1000)
        )
        yield rig


def until(seconds: float, user: str = "u", token_id: str = "1") -> Identity:
    """What a token says that ends so many seconds after EPOCH."""
    return Identity(user=user, expires_ms=EPOCH + int(seconds * 1000), token_id=token_id)


async def opened(rig: Rig, identity: Identity) -> Peer:
    peer = await rig.open_live("a", identity=identity)
    assert peer.client.state is State.LIVE
    return peer


@pytest.mark.parametrize("seconds", [0.1, 1, 14.9, 15, 16, 100, 1000])
async def test_a_stream_ends_when_its_token_does(seconds: float, autojump_clock: MockClock) -> None:
    async with keeping_time(Config(keepalive=3600.0)) as rig:
        peer = await opened(rig, until(seconds))
        await trio.sleep(seconds - 0.01)
        assert peer.client.state is State.LIVE
        await trio.sleep(0.01 + LATE)
        assert peer.client.reason is Reason.TOKEN_EXPIRED
        await peer.read_all()
        assert peer.told("reconnect") == [{"reason": "token-expired"}]
        assert peer.ended
        assert rig.hub.statistics().closed["token-expired"] == 1


async def test_a_stream_without_a_token_goes_on(autojump_clock: MockClock) -> None:
    async with keeping_time() as rig:
        peer = await rig.open_live("a")
        rig.wall += int(DAY * 1000)
        await trio.sleep(100)
        assert peer.client.state is State.LIVE


async def test_a_stream_of_the_response_lane_ends_too(autojump_clock: MockClock) -> None:
    async with keeping_time() as rig:
        stream = EventStream(("a", "global"), "u", Start.NOW, until(20.0))
        async with rig.node.streams.responding(stream) as client:
            await trio.sleep(19.9)
            assert client.state is State.BEHIND
            await trio.sleep(0.1 + LATE)
            assert client.reason is Reason.TOKEN_EXPIRED
            data = b""
            while piece := bytes(client.next_bytes()):
                client.credit(len(piece))
                data += piece
            assert b'event: reconnect\ndata: {"reason":"token-expired"}' in data


async def test_a_client_that_is_behind_gets_what_waits_and_is_told(
    autojump_clock: MockClock,
) -> None:
    async with keeping_time() as rig:
        peer = await opened(rig, until(5.0))
        for number in range(300):
            await rig.publish("a", f"{number:1000}")
        await wait_all_tasks_blocked()
        assert peer.client.waits
        await trio.sleep(5 + LATE)
        await peer.read_all()
        assert len(peer.data) == 300
        assert peer.types[-1] == "reconnect"
        assert peer.ended
        peer.check_counters()


async def test_a_newer_token_extends_a_stream(autojump_clock: MockClock) -> None:
    async with keeping_time() as rig:
        peer = await opened(rig, until(5.0))
        await trio.sleep(4)
        rig.node.streams.renew(peer.client, until(50.0))
        await trio.sleep(45.9)
        assert peer.client.state is State.LIVE
        await trio.sleep(0.1 + LATE)
        assert peer.client.reason is Reason.TOKEN_EXPIRED


async def test_a_token_that_ends_sooner_shortens_a_stream(autojump_clock: MockClock) -> None:
    async with keeping_time() as rig:
        peer = await opened(rig, until(500.0))
        rig.node.streams.renew(peer.client, until(2.0))
        await trio.sleep(2 + LATE)
        assert peer.client.reason is Reason.TOKEN_EXPIRED


async def test_renewing_without_end_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    """Each client is looked at once a round, however often it was scheduled."""
    async with keeping_time() as rig:
        peer = await opened(rig, until(5.0))
        for number in range(1000):
            rig.node.streams.renew(peer.client, until(1000.0 + number))
        await trio.sleep(40)
        assert sum(len(each) for each in rig.node._clock._wheel.values()) == 1
        assert peer.client.state is State.LIVE


@pytest.mark.parametrize("by", [1.0, 3600.0, 10 * 365 * DAY])
async def test_when_the_wall_clock_is_set_forward_tokens_end(
    by: float, autojump_clock: MockClock
) -> None:
    async with keeping_time(Config(keepalive=3600.0)) as rig:
        peers = [await opened(rig, until(by + n)) for n in range(3)]
        other = await opened(rig, until(by + 100))
        await trio.sleep(2)
        rig.wall += int(by * 1000)
        await trio.sleep(LATE)
        assert all(peer.client.reason is Reason.TOKEN_EXPIRED for peer in peers)
        assert other.client.state is State.LIVE


async def test_when_the_wall_clock_is_set_back_tokens_go_on(autojump_clock: MockClock) -> None:
    async with keeping_time() as rig:
        peer = await opened(rig, until(10.0))
        rig.wall -= 5_000
        await trio.sleep(14.9)
        assert peer.client.state is State.LIVE
        await trio.sleep(0.1 + LATE)
        assert peer.client.reason is Reason.TOKEN_EXPIRED


async def test_a_token_that_ends_while_its_stream_opens_ends_it(
    autojump_clock: MockClock,
) -> None:
    async with keeping_time() as rig:
        peer = await rig.open("a", identity=until(-1.0))
        await trio.sleep(LATE)
        await peer.read_all()
        assert peer.told("reconnect") == [{"reason": "token-expired"}]


async def test_a_token_revoked_while_its_stream_opens_lets_nobody_in() -> None:
    """The revocation has looked for streams before this one was there."""
    async with running(Config()) as rig:
        revoked = until(100.0)
        rig.node.streams._is_revoked = lambda identity: identity is revoked
        peer = await rig.open("a", identity=revoked)
        await rig.publish("a", "not for him")
        await peer.read_all()
        assert peer.ended
        assert peer.data == []
        assert peer.last_event_id.endswith(".closed")
