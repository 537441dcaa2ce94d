"""The primary fails under load and Sentinel promotes its replica; what is lost is told."""

import trio
from load import cluster, load_on, ordinary
from sentinels import sentinel_group


async def test_publishing_resumes_on_the_promoted_replica() -> None:
    async with (
        sentinel_group() as group,
        cluster(group.url, group.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load, retries=False)
        await load.connected()
        await load.more(300)
        await group.primary.kill()
        await group.until_promoted()
        await load.more(300)
        await load.finish()
        assert load.defects() == []


async def test_what_a_replica_that_had_fallen_behind_never_got_is_told() -> None:
    async with (
        sentinel_group() as group,
        cluster(group.url, group.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load, retries=False)
        await load.connected()
        await load.more(300)
        await group.detach_replica()
        await load.more(300)
        await group.primary.kill()
        await group.until_promoted()
        await load.more(300)
        await load.finish()
        assert load.defects() == []
        for subscriber in load.subscribers:
            assert {gap.reason for gap in subscriber.recording.gaps} == {"restarted"}


async def test_a_primary_that_wakes_up_demoted_is_not_believed() -> None:
    """It was frozen during the failover, and takes itself for the primary for some seconds."""
    async with (
        sentinel_group() as group,
        cluster(group.url, group.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load, retries=False)
        await load.connected()
        await load.more(300)
        group.primary.stop()
        await group.until_promoted()
        group.primary.cont()
        await load.more(300)
        await group.until_demoted()
        await load.more(300)
        await load.finish()
        assert load.defects() == []


async def test_nodes_that_stay_connected_to_a_demoted_primary_leave_it() -> None:
    """Only the sentinels and the replica had lost it: it served the nodes all the time."""
    async with (
        sentinel_group() as group,
        cluster(group.url, group.url) as nodes,
        load_on(nodes) as load,
    ):
        ordinary(load, retries=False)
        await load.connected()
        await load.more(300)
        await group.isolate_primary()
        await group.until_promoted()
        await load.more(100)
        await group.rejoin_primary()
        await group.until_demoted()
        with trio.fail_after(30):
            await load.more(300)
        await load.finish()
        assert load.defects() == []
        assert "restarted" in {gap.reason for gap in load.gaps}
