"""Which Redis this is, and for which positions its history cannot vouch.

A Redis that was restarted from an older state, promoted or emptied looks healthy. What tells is its
run id, kept in Redis beside what the clock stood at when it was first seen (``restored``), where it
was lifted to then (``lifted``), the last time that something was lost by it (``broken``), and the
last time that keys were found to have been evicted (``lossy``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import hiredis

from gateway.bus.resp import Connection, LinkLost, Reply
from gateway.position import ZERO, Position

NO_REPLICATION = b"0" * 40
"""A `master_replid2` of a primary that was never a replica."""

PRIMARY = b"master"


@dataclass(frozen=True, slots=True)
class Epoch:
    restored: Position = ZERO
    lifted: Position = ZERO
    broken: Position = ZERO
    lossy: Position = ZERO

    def vouches(self, after: Position) -> bool:
        """False if something after that position may be gone unseen."""
        return after >= self.broken and not self.restored < after < self.lifted


def parse_epoch(parts: Sequence[str]) -> Epoch:
    """Of restored, lifted, broken and lossy, with ``-`` for those that never were."""
    return Epoch(*(Position.parse(part) or ZERO for part in parts))


@dataclass(frozen=True, slots=True)
class Server:
    """What a Redis says of itself on connecting."""

    run_id: str
    has_log: bool
    """Whether it writes down what it confirms."""
    was_replica: bool
    evicts: str
    """The policy by which it may evict keys of ours; empty if it does not."""

    @property
    def is_complete(self) -> bool:
        """Whether it starts with all that it ever confirmed: its own log, and it was no replica."""
        return self.has_log and not self.was_replica


async def inspect(connection: Connection) -> Server:
    """Raises LinkLost unless it is a primary, says so, and has loaded what it keeps: until then it
    also says of its log that there is none."""
    role = await _ask(connection, "ROLE")
    if role[0] != PRIMARY:
        raise LinkLost(f"this Redis is no primary but a {role[0].decode()}")
    server = fields(await _ask(connection, "INFO", "server"))
    persistence = fields(await _ask(connection, "INFO", "persistence"))
    if persistence.get(b"loading", b"0") != b"0":
        raise LinkLost("this Redis is still loading")
    replication = fields(await _ask(connection, "INFO", "replication"))
    memory = fields(await _ask(connection, "INFO", "memory"))
    if b"run_id" not in server:
        raise LinkLost("this is no Redis: it tells no run id")
    policy = memory.get(b"maxmemory_policy", b"noeviction")
    return Server(
        server[b"run_id"].decode(),
        persistence.get(b"aof_enabled") == b"1",
        replication.get(b"master_replid2", NO_REPLICATION) != NO_REPLICATION,
        "" if policy == b"noeviction" else policy.decode(),
    )


def fields(info: Reply) -> dict[bytes, bytes]:
    """The reply to INFO as a table."""
    pairs = (line.partition(b":") for line in info.split(b"\r\n"))
    return {name: value for name, found, value in pairs if found}


async def _ask(connection: Connection, *command: str) -> Reply:
    reply = await connection.call(*command)
    if isinstance(reply, hiredis.ReplyError):
        raise LinkLost(f"Redis answers {' '.join(command)} with: {reply}")
    return reply
