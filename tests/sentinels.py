"""A primary, its replica and the sentinels that watch them; and how the three can be at odds."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from process import eventually
from redis_server import RedisServer, free_port, redis_server

SERVICE = "service"

WATCHER = "watcher"
"""The user as whom the sentinels come, so that they can be shut out and nobody else."""

CONFIGURATION = """\
port {port}
bind 127.0.0.1
logfile log
sentinel monitor {service} 127.0.0.1 {primary} {quorum}
sentinel auth-user {service} {watcher}
sentinel auth-pass {service} {watcher}
sentinel down-after-milliseconds {service} 500
sentinel failover-timeout {service} 3000
"""


class SentinelGroup:
    def __init__(
        self, primary: RedisServer, replica: RedisServer, sentinels: list[RedisServer]
    ) -> None:
        self.primary = primary
        self.replica = replica
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    async def until_ready(self) -> None:
        """Return once every sentinel knows the replica and the other sentinels."""
        for sentinel in self.sentinels:

            async def knows_all(sentinel: RedisServer = sentinel) -> bool:
                replicas = await sentinel.call("SENTINEL", "REPLICAS", SERVICE)
                others = await sentinel.call("SENTINEL", "SENTINELS", SERVICE)
                return len(replicas) == 1 and len(others) == len(self.sentinels) - 1

            await eventually(knows_all)

    async def until_promoted(self) -> None:
        """Return once the replica is the primary, and every sentinel says so."""

        await _until_role(self.replica, "master")
        for sentinel in self.sentinels:

            async def says_so(sentinel: RedisServer = sentinel) -> bool:
                address = await sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                return bool(address[1] == str(self.replica.port))

            await eventually(says_so)

    async def until_in_step(self) -> None:
        """Return once the replica has all that the primary has."""

        async def is_in_step() -> bool:
            [mine, its] = [await server.info("replication") for server in self._pair]
            return mine["master_repl_offset"] == its["slave_repl_offset"]

        await eventually(is_in_step)

    @property
    def _pair(self) -> tuple[RedisServer, RedisServer]:
        return self.primary, self.replica

    async def detach_replica(self) -> None:
        """From now on the replica falls behind. It stays fit for promotion for five seconds, ten
        times ``down-after``."""
        await self.primary.call("ACL", "SETUSER", "default", "-psync", "-sync")
        await self.primary.call("CLIENT", "KILL", "TYPE", "replica")

    async def isolate_primary(self) -> None:
        """Sentinels and replica lose the primary, nobody else does: it goes on as if nothing had
        happened, and the replica is promoted."""
        await self.detach_replica()
        await self.primary.call("ACL", "SETUSER", WATCHER, "-@all")

    async def rejoin_primary(self) -> None:
        """The sentinels reach the isolated primary again, and after some seconds demote it."""
        await self.primary.call("ACL", "SETUSER", WATCHER, "+@all")

    async def until_demoted(self) -> None:
        await _until_role(self.primary, "slave")


async def _until_role(server: RedisServer, role: str) -> None:
    async def has_role() -> bool:
        with suppress(trio.BrokenResourceError):  # a sentinel that changes it cuts all connections
            return (await server.info("replication"))["role"] == role
        return False

    await eventually(has_role)


@asynccontextmanager
async def sentinel_group(sentinels: int = 1) -> AsyncIterator[SentinelGroup]:
    """Ready for a failover, which takes two to three seconds."""
    async with (
        redis_server(repl_diskless_sync_delay=0) as primary,
        redis_server(repl_diskless_sync_delay=0, replicaof=f"127.0.0.1 {primary.port}") as replica,
        AsyncExitStack() as stack,
    ):
        for server in (primary, replica):
            await server.call("ACL", "SETUSER", WATCHER, "on", f">{WATCHER}", "~*", "&*", "+@all")
        group = SentinelGroup(primary, replica, [])
        await group.until_in_step()
        for _ in range(sentinels):
            quorum = sentinels // 2 + 1
            group.sentinels.append(await stack.enter_async_context(_sentinel(primary, quorum)))
        await group.until_ready()
        yield group


@asynccontextmanager
async def _sentinel(primary: RedisServer, quorum: int) -> AsyncIterator[RedisServer]:
    with TemporaryDirectory(prefix="sentinel-") as directory:
        port = free_port()
        configuration = CONFIGURATION.format(
            port=port, service=SERVICE, primary=primary.port, quorum=quorum, watcher=WATCHER
        )
        (Path(directory) / "sentinel.conf").write_text(configuration, "utf-8")
        sentinel = RedisServer(Path(directory), port, "sentinel.conf", "--sentinel")
        try:
            await sentinel.start()
            yield sentinel
        finally:
            await sentinel.kill()
