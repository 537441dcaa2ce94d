"""The links to one Redis: logging in, and knowing which Redis it is that answers.

1. Each new command connection attaches: scripts loaded, clock found or made, and what this node has
   seen compared with what this Redis still has.
2. Both connections go to the same primary, by its run id; either is given up where they differ.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import hiredis
import msgspec
import trio

from gateway.bus.address import Address
from gateway.bus.commands import Commands
from gateway.bus.epoch import Epoch, Server, fields, inspect, parse_epoch
from gateway.bus.resp import Argument, Connection, LinkLost, Reply
from gateway.bus.scripts import DIGESTS, SCRIPTS
from gateway.bus.wire import position_of
from gateway.config import Config
from gateway.position import Position

_log = logging.getLogger(__name__)


class Link:
    def __init__(
        self,
        config: Config,
        address: Address,
        worker: str,
        seen: Callable[[], Position],
        now_ms: Callable[[], int],
    ) -> None:
        """``seen`` is the last position that this worker has seen of the bus."""
        self._config = config
        self._address = address
        self._worker = worker
        self._seen = seen
        self._now_ms = now_ms
        self._clock = f"{config.redis_prefix}clock"
        self.run_id = ""
        self.epoch = Epoch()
        self.breaks = 0
        self._was_attached = False
        self.evicted = 0
        self.commands = Commands(self.dial, self._attach, timeout=config.redis_timeout)

    async def dial(self) -> Connection:
        """A connection that is logged in. Raises one of LINK_ERRORS."""
        connection = Connection(await self._address.dial(self._config.redis_timeout))
        ready = False
        try:
            with trio.fail_after(self._config.redis_timeout):
                await self._log_in(connection)
            ready = True
            return connection
        finally:
            if not ready:
                with trio.CancelScope(shield=True):
                    await connection.aclose()

    async def _log_in(self, connection: Connection) -> None:
        address = self._address
        if address.password is not None:
            user = (address.username,) if address.username else ()
            await _must(connection, "AUTH", *user, address.password)
        if address.database:
            await _must(connection, "SELECT", address.database)
        await connection.call("CLIENT", "SETNAME", f"gateway-{self._worker}")  # for people

    async def check(self, connection: Connection) -> None:
        """Raise LinkLost unless a new connection leads to where the commands go."""
        await self.commands.wait_connected()
        if (await inspect(connection)).run_id != self.run_id:
            self.commands.convict("the two links lead to two servers")
            raise LinkLost("this is not the Redis that the commands go to")

    async def script(self, name: str, *arguments: Argument) -> Reply:
        """Run a script. Raises LinkLost, also where Redis refuses."""
        reply = await self.commands.call("EVALSHA", DIGESTS[name], 1, self._clock, *arguments)
        if isinstance(reply, hiredis.ReplyError):
            raise LinkLost(f"Redis refuses: {reply}")
        return reply

    async def _attach(self, connection: Connection) -> None:
        server = await inspect(connection)
        self._warn_of(server)
        for text in SCRIPTS.values():
            await _must(connection, "SCRIPT", "LOAD", text)
        seen = self._seen()
        _, *epoch = await _must(
            connection,
            "EVALSHA",
            DIGESTS["attach"],
            1,
            self._clock,
            server.run_id,
            int(server.is_complete),
            str(seen),
            self.run_id,
            _rules(self._config),
            self._now_ms(),
            DIGESTS["publish"],
        )
        if server.run_id != self.run_id:
            self.evicted = 0
        self.run_id = server.run_id
        self.learn(parse_epoch([part.decode() for part in epoch]))
        self._was_attached = True
        _log.info("linked to Redis", {"address": str(self._address), "run_id": server.run_id})

    def learn(self, epoch: Epoch) -> None:
        """Take note of what Redis, or another node, knows of it."""
        if epoch.broken > self.epoch.broken and self._was_attached:
            self.breaks += 1
            _log.warning("this Redis has lost what another one, or an earlier start, had taken")
        lossy = max(epoch.lossy, self.epoch.lossy)  # a Redis without memory could not note it
        self.epoch = replace(epoch, lossy=lossy)

    async def watch_evicted(self, stats: Reply) -> None:
        """Redis's INFO stats: if it has evicted keys, what history lacks may have been there."""
        count = int(fields(stats).get(b"evicted_keys", 0))
        if count > self.evicted:
            lossy = await self.script("evicted", count, self._now_ms())
            self.evicted = count
            self.epoch = replace(self.epoch, lossy=max(self.epoch.lossy, position_of(lossy)))
            _log.error("Redis evicts keys: set maxmemory-policy noeviction", {"evicted": count})

    def _warn_of(self, server: Server) -> None:
        """Say once what in its configuration can lose something."""
        if server.evicts and server.run_id != self.run_id:
            _log.warning(
                "Redis may evict our keys: history can be lost, and clients are then told of gaps;"
                " set maxmemory-policy to noeviction",
                {"maxmemory_policy": server.evicts},
            )
        if not server.has_log and server.run_id != self.run_id:
            _log.warning(
                "Redis keeps no append-only file: what it has confirmed is lost when it restarts,"
                " and clients are then told of gaps; set appendonly to yes"
            )


async def _must(connection: Connection, command: str, *arguments: Argument) -> Reply:
    reply = await connection.call(command, *arguments)
    if isinstance(reply, hiredis.ReplyError):
        raise LinkLost(f"Redis refuses {command}: {reply}")
    return reply


def _rules(config: Config) -> bytes:
    """For those who publish without a node."""
    rules = (*config.channels, config.general_rule())
    return msgspec.json.encode(
        {
            "channels": [
                [
                    rule.match,
                    rule.history_events,
                    rule.history_bytes,
                    int(rule.history_seconds * 1000),
                ]
                for rule in rules
            ],
            "dedupe_ms": int(config.dedupe_seconds * 1000),
            "max_channels": config.max_channels_per_client,
            "max_event_bytes": config.max_event_bytes,
        }
    )
