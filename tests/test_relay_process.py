"""Token streams of real nodes on a real Redis, which are killed, frozen, cut off and drained."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from process import NodeProcess, Stream, node
from proxy import proxy_to
from redis_server import redis_server
from upstreams import FakeUpstream, Fault, Script, chat, fake_upstream, text_of

DEATH_SECONDS = 12.0
"""From a worker's death until its viewers have been told."""

FAST = Script(words=20)
SLOW = Script(words=3_000, rate=50.0)
NEVER = Script(fault=Fault.NO_ANSWER)

QUICK = ("--drain-grace", "0", "--drain-seconds", "0.2", "--drain-relay-seconds", "0.8")


class Site:
    """A fake upstream, and nodes that may call it."""

    def __init__(self, fake: FakeUpstream, directory: Path) -> None:
        self.fake = fake
        self.file = directory / "gateway.toml"
        self.file.write_text(
            f'[[upstream]]\nname = "fake"\nurl = "{fake.url}"\nformat = "openai"\n', "utf-8"
        )

    @asynccontextmanager
    async def nodes(
        self, *urls: str, flags: Sequence[str] = ()
    ) -> AsyncIterator[list[NodeProcess]]:
        """A node on each of these Redis URLs; the last one with ``flags``."""
        common = ("--config", str(self.file))
        started: list[NodeProcess] = []

        async def one(
            url: str,
            flags: Sequence[str],
            *,
            task_status: trio.TaskStatus[NodeProcess] = trio.TASK_STATUS_IGNORED,
        ) -> None:
            async with node(*common, "--redis", url, *flags) as n:
                task_status.started(n)
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for at, url in enumerate(urls):
                started.append(await nursery.start(one, url, flags if at == len(urls) - 1 else ()))
            yield started
            nursery.cancel_scope.cancel()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with fake_upstream() as fake:
        yield Site(fake, tmp_path)


async def begun(n: NodeProcess, script: Script, *, idempotent: bool = False) -> str:
    body = {"upstream": "fake", "request": chat(script), "idempotent": idempotent}
    async with n.client() as client:
        answer = await client.post(f"{n.url}/streams", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def view(n: NodeProcess, id: str) -> Stream:
    """A viewer of all of it, whose first token has come."""
    stream = await n.ask_for_stream(f"/events/stream:{id}?lastEventId=earliest")
    await stream.until(b"event: start\n")
    return stream


def text(stream: Stream) -> str:
    found = re.findall(rb"event: token\ndata: (.*)\n", stream.body)
    return "".join(json.loads(data)["text"] for data in found)


def end(stream: Stream) -> str:
    """The one end that its viewer was told: a code, or a reason."""
    told = re.findall(rb"event: (?:complete|error)\ndata: (.*)\n", stream.body)
    assert len(told) == 1, stream.body[-1000:]
    document = json.loads(told[0])
    return str(document.get("code") or document["reason"])


async def ended(stream: Stream, expected: str, count: int | None = None) -> None:
    """Read to the end of a stream, which must be that one, behind as many words or any."""
    await stream.until_end()
    assert end(stream) == expected
    assert b"event: gap\n" not in stream.body
    if count is not None:
        assert text(stream) == text_of(count)
    else:
        assert text_of(3_000).startswith(text(stream))


async def state(n: NodeProcess, id: str) -> str:
    async with n.client() as client:
        answer = await client.delete(f"{n.url}/streams/{id}")
    return str(answer.json().get("state"))


async def test_the_streams_of_the_dead_are_ended_or_begun_again_and_no_others(site: Site) -> None:
    """One node is killed, one frozen, and of a third one worker killed."""
    fake = site.fake
    async with (
        redis_server() as redis,
        site.nodes(*[redis.url] * 4, flags=("--workers", "2")) as (killed, frozen, other, several),
    ):
        lost = await begun(killed, SLOW)
        late = await begun(killed, SLOW, idempotent=True)  # it has begun by then
        await fake.call(1)
        fake.script(NEVER)
        again = await begun(killed, FAST, idempotent=True)
        await fake.call(2)
        stuck = await begun(frozen, SLOW)
        call = await fake.call(3)
        of_workers = [await begun(several, SLOW) for _ in range(8)]
        viewers = {
            id: [await view(n, id) for n in (other, several)] for id in (lost, late, again, stuck)
        }
        watched = [await view(other, id) for id in of_workers]
        for stream in (*viewers[lost], *viewers[late], *viewers[stuck], *watched):
            await stream.until(b"event: token\n")
        calls = len(fake.calls)

        died = trio.current_time()
        killed.signal(signal.SIGKILL)
        await frozen.stop()
        os.kill(several.workers()[0], signal.SIGKILL)
        ends: dict[str, float] = {}

        async def until_ended(stream: Stream, id: str, expected: str, count: int | None) -> None:
            await ended(stream, expected, count)
            ends[id] = max(ends.get(id, 0.0), trio.current_time() - died)

        async with trio.open_nursery() as nursery:
            for id in (lost, late, stuck):
                nursery.start_soon(until_ended, viewers[id][0], id, "producer-lost", None)
            nursery.start_soon(until_ended, viewers[again][0], again, "end", 20)
        assert max(ends.values()) < DEATH_SECONDS
        assert len(fake.calls) == calls + 1  # the one that was begun again

        frozen.signal(signal.SIGCONT)
        with trio.fail_after(5):
            await call.closed.wait()
        assert await state(frozen, stuck) == "error"

        async with trio.open_nursery() as nursery:

            async def look(stream: Stream) -> None:
                with trio.move_on_after(1.0):
                    await stream.until_end()

            for stream in watched:
                nursery.start_soon(look, stream)
        gone = [stream for stream in watched if b"event: error\n" in stream.body]
        assert all(end(stream) == "producer-lost" for stream in gone)
        going = len(watched) - len(gone)
        assert (len(gone) > 0, going > 0) == (True, True)
        assert sum(not call.over.is_set() for call in fake.calls) == going


async def test_an_owner_that_is_cut_off_for_a_while_leaves_no_hole(site: Site) -> None:
    async with (
        redis_server() as redis,
        proxy_to(redis.port) as link,
        site.nodes(redis.url, f"redis://127.0.0.1:{link.port}/0") as (other, owner),
    ):
        id = await begun(owner, Script(words=150, rate=50.0))
        viewer = await view(other, id)
        for _ in range(2):
            await viewer.more()
            link.cut()
            await trio.sleep(0.6)
            link.let_through()
        await ended(viewer, "end", 150)
        assert len(site.fake.calls) == 1


async def test_a_redis_that_comes_back_with_its_log_leaves_no_hole(site: Site) -> None:
    async with redis_server(aof=True) as redis, site.nodes(*[redis.url] * 2) as (other, owner):
        id = await begun(owner, Script(words=120, rate=50.0))
        viewer = await view(other, id)
        await viewer.until(b"event: token\n")
        await redis.restart()
        await ended(viewer, "end", 120)
        assert len(site.fake.calls) == 1


async def test_a_redis_that_comes_back_empty_ends_it_by_an_error(site: Site) -> None:
    """Nothing is added behind what may be a hole, and nobody is left to wait."""
    async with redis_server() as redis, site.nodes(*[redis.url] * 2) as (other, owner):
        id = await begun(owner, SLOW)
        viewer = await view(other, id)
        await viewer.until(b"event: token\n")
        call = await site.fake.call()
        await redis.restart_empty()
        await viewer.until_end()
        assert end(viewer) == "bus-lost"
        assert text_of(3_000).startswith(text(viewer))
        await call.closed.wait()

        late = await other.ask_for_stream(f"/events/stream:{id}?lastEventId=earliest")
        await late.until_end()  # there is no more of it than its end
        assert (end(late), text(late)) == ("bus-lost", "")


async def test_who_is_told_to_leave_lets_streams_end_and_tells_of_the_others(site: Site) -> None:
    async with (
        redis_server() as redis,
        site.nodes(*[redis.url] * 2, flags=QUICK) as (other, owner),
    ):
        short = await begun(owner, Script(words=30, rate=50.0))
        long = await begun(owner, SLOW)
        viewers = [await view(other, id) for id in (short, long)]
        own = await view(owner, short)
        owner.signal(signal.SIGTERM)
        await ended(viewers[0], "end", 30)
        await ended(viewers[1], "producer-lost")
        await own.until_end()
        assert await owner.wait() == 0
        assert [call.is_complete for call in site.fake.calls] == [True, False]
        assert await state(other, long) == "error"


async def test_without_others_who_leaves_tells_its_own_viewers(site: Site) -> None:
    async with node("--config", str(site.file), *QUICK) as n:
        short = await begun(n, Script(words=30, rate=50.0))
        long = await begun(n, SLOW)
        viewers = [await view(n, id) for id in (short, long)]
        n.signal(signal.SIGTERM)
        await ended(viewers[0], "end", 30)
        await ended(viewers[1], "producer-lost")
        assert await n.wait() == 0
