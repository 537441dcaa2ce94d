"""Channels added to a stream whose link is cut again and again, while they are published to."""

import random

import httpx
import trio
from near import near
from process import PATIENCE, eventually
from proxy import proxy_to

from gateway.client import Dropped, Event, Gap, Publisher, subscribe
from gateway.position import Position

NAMES = [f"c{number}" for number in range(4)]


def later_than(position: str, events: list[tuple[str, int]]) -> list[tuple[str, int]]:
    at = Position.parse(position)
    assert at is not None
    return [event for event in events if (Position.parse(event[0]) or at) > at]


async def test_each_gives_all_from_where_it_is_live_and_nothing_else() -> None:
    """To the last event, once, in its order."""
    randomly = random.Random(7)
    sent: dict[str, list[tuple[str, int]]] = {name: [] for name in NAMES}
    seen: dict[str, list[tuple[str, int]]] = {name: [] for name in NAMES}
    live: dict[str, str] = {}
    done = trio.Event()
    async with (
        near(retry=0.1) as n,
        proxy_to(n) as proxy,
        n.client() as client,
        httpx.AsyncClient(trust_env=False) as other,
        Publisher(n.url, client=client) as publisher,
        subscribe(proxy.url, ["base"], client=other, min_delay=0.01, max_delay=0.05) as stream,
        trio.open_nursery() as nursery,
    ):

        async def publish(name: str) -> None:
            while not done.is_set():
                number = len(sent[name])
                sent[name].append((await publisher.publish(name, str(number)), number))

        async def read() -> None:
            async for item in stream.items:
                assert not isinstance(item, Gap | Dropped)
                if isinstance(item, Event):
                    [name] = item.channels
                    seen[name].append((item.id, int(item.data)))

        async def cut() -> None:
            while not done.is_set():
                for least, most, act in ((0.05, 0.4, proxy.cut), (0, 0.03, proxy.let_through)):
                    with trio.move_on_after(randomly.uniform(least, most)):
                        await done.wait()
                    act()

        async def has_all() -> bool:
            return all(seen[name] == later_than(live[name], sent[name]) for name in NAMES)

        with trio.fail_after(PATIENCE):
            for name in NAMES:
                nursery.start_soon(publish, name)
            nursery.start_soon(read)
            nursery.start_soon(cut)
            for name in NAMES:
                live[name] = await stream.add(name)
                goal = len(sent[name]) + 40
                while len(sent[name]) < goal:
                    await trio.lowlevel.checkpoint()
            done.set()
        await eventually(has_all)
        nursery.cancel_scope.cancel()
    assert all(len(events) > 30 for events in seen.values())
