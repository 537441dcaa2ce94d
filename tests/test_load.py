"""The load itself, on a node with its history in memory: no fault is found where there is none,
whatever the connections do, and what is lost is found."""

import trio
from load import FLAGS, Load, load_on, ordinary
from process import node
from proxy import proxy_to
from verdict import Outcome


async def test_connections_that_are_cut_cost_nothing() -> None:
    async with node(*FLAGS) as n, proxy_to(n) as proxy, trio.open_nursery() as nursery:
        load = Load([proxy.port, n.port], nursery)
        ordinary(load)
        await load.connected()
        for _ in range(10):
            await load.more(100)
            proxy.cut()
            proxy.let_through()
        await load.finish()
        nursery.cancel_scope.cancel()
    assert load.defects() == []
    assert not load.gaps
    assert max(subscriber.connections for subscriber in load.subscribers) >= 3


async def test_what_history_does_not_hold_is_under_a_gap() -> None:
    async with node(*FLAGS, "--history-events", "5") as n, load_on([n]) as load:
        ordinary(load)
        await load.more(1000)
        await load.finish()
    assert load.defects() == []
    assert {gap.reason for gap in load.gaps} == {"trimmed"}


async def test_a_node_that_is_gone_refuses_and_its_clients_find_another() -> None:
    async with node(*FLAGS) as n, trio.open_nursery() as nursery:
        async with node(*FLAGS) as gone:
            pass
        load = Load([gone.port, n.port], nursery)
        ordinary(load)
        await load.more(100)
        await load.finish()
        nursery.cancel_scope.cancel()
    assert load.defects() == []
    assert load.count(Outcome.UNKNOWN) == 0


async def test_nodes_that_are_not_linked_lose_events_and_the_verdict_says_so() -> None:
    async with node(*FLAGS) as n, node(*FLAGS) as other, load_on([n, other]) as load:
        load.subscribe("a")
        load.publish("a")
        load.publish("a")
        await load.connected()
        await load.more(100)
        await load.finish()
    assert any("never received" in sentence for sentence in load.defects())
