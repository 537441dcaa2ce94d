"""The tests' own Redis servers and links fail exactly as they are told to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hiredis
import pytest
import trio
from link import Link, end_of_reply, link_to
from redis_server import command, free_port, redis_server
from sentinels import sentinel_group


async def test_a_killed_server_keeps_what_its_files_hold_and_nothing_else() -> None:
    async with redis_server() as redis:
        await redis.call("SET", "kept", 1)
        await redis.save_snapshot()
        await redis.call("SET", "lost", 1)
        await redis.restore_snapshot()
        assert await redis.call("KEYS", "*") == ["kept"]
        await redis.restart_empty()
        assert await redis.call("DBSIZE") == 0


async def test_with_an_append_only_file_nothing_is_lost() -> None:
    async with redis_server(aof=True) as redis:
        await redis.call("SET", "kept", 1)
        await redis.restart()
        assert await redis.call("GET", "kept") == "1"
        await redis.restart_empty()
        assert await redis.call("DBSIZE") == 0


async def test_a_stopped_server_is_silent_and_goes_on_where_it_was() -> None:
    async with redis_server(maxmemory="100mb") as redis:
        redis.stop()
        with trio.move_on_after(0.1) as waited:
            await redis.call("PING")
        assert waited.cancelled_caught
        redis.cont()
        assert await redis.call("CONFIG", "GET", "maxmemory") == ["maxmemory", "104857600"]


async def test_a_server_that_is_killed_refuses_connections() -> None:
    async with redis_server() as redis:
        await redis.kill()
        with pytest.raises(OSError, match="connect"):
            await redis.call("PING")


async def test_an_error_is_raised() -> None:
    async with redis_server() as redis:
        with pytest.raises(hiredis.ReplyError, match="unknown command"):
            await redis.call("NONSENSE")


def test_a_free_port_is_none_that_a_connection_is_given() -> None:
    assert 10_000 <= free_port() < 32_768


async def test_the_replica_is_promoted_when_the_primary_is_killed() -> None:
    async with sentinel_group(3) as group:
        await group.primary.call("SET", "kept", 1)
        await group.until_in_step()
        await group.detach_replica()
        await group.primary.call("SET", "lost", 1)
        await group.primary.kill()
        await group.until_promoted()
        assert await group.replica.call("KEYS", "*") == ["kept"]


async def test_an_isolated_primary_goes_on_beside_the_promoted_replica() -> None:
    async with sentinel_group() as group:
        await group.isolate_primary()
        await group.until_promoted()
        assert await group.primary.call("SET", "lost", 1) == "OK"
        assert await group.replica.call("DBSIZE") == 0


# -- the link


class Conversation:
    """A connection that sends commands and reads what comes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._reader = hiredis.Reader(encoding="utf-8")

    async def ask(self, *words: str | int) -> object:
        await self._stream.send_all(command(*words))
        return await self.hear()

    async def hear(self) -> object:
        while (reply := self._reader.gets()) is False:
            data = await self._stream.receive_some()
            if not data:
                raise trio.EndOfChannel
            self._reader.feed(data)
        return reply


@asynccontextmanager
async def converse(link: Link) -> AsyncIterator[Conversation]:
    async with await trio.open_tcp_stream("127.0.0.1", link.port) as stream:
        yield Conversation(stream)


async def is_closed(link: Link, conversation: Conversation | None = None) -> bool:
    """Whether the link has closed ``conversation``, or else closes a new one."""
    try:
        async with converse(link) as new:
            await (conversation or new).ask("PING")
    except (trio.EndOfChannel, trio.BrokenResourceError):
        return True
    return False


async def is_unanswered(conversation: Conversation, *words: str) -> bool:
    with trio.move_on_after(0.1) as waited:
        await conversation.ask(*words)
    return waited.cancelled_caught


async def test_a_link_passes_everything_on() -> None:
    async with redis_server() as redis, link_to(redis) as link, converse(link) as both:
        assert await both.ask("SET", "key", "x" * 1_000_000) == "OK"
        assert await both.ask("GET", "key") == "x" * 1_000_000
        assert link.accepted == len(link.connections) == 1


async def test_a_link_that_is_cut_closes_connections_until_it_is_resumed() -> None:
    async with redis_server() as redis, link_to(redis) as link, converse(link) as first:
        await first.ask("PING")
        link.cut()
        assert await is_closed(link, first)
        assert await is_closed(link)
        link.resume()
        assert not await is_closed(link)


async def test_a_link_that_is_held_loses_nothing() -> None:
    async with redis_server() as redis, link_to(redis) as link, converse(link) as first:
        await first.ask("PING")
        link.hold()
        async with converse(link) as second:
            assert await is_unanswered(first, "INCR", "count")
            assert await is_unanswered(second, "INCR", "count")
            assert await redis.call("GET", "count") is None
            link.resume()
            assert {await first.hear(), await second.hear()} == {1, 2}


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_muted_link_swallows_messages_and_nothing_else(protocol: int) -> None:
    async with (
        redis_server() as redis,
        link_to(redis) as link,
        converse(link) as deaf,
        converse(link) as other,
        converse(link) as well,
    ):
        await deaf.ask("HELLO", protocol)
        await deaf.ask("SUBSCRIBE", "news")
        assert await other.ask("PING") == "PONG"
        assert link.mute() == 1
        assert await other.ask("PUBLISH", "news", "swallowed") == 1
        assert await deaf.ask("SUBSCRIBE", "more") == ["subscribe", "more", 2]
        await well.ask("SUBSCRIBE", "news")
        await redis.call("PUBLISH", "news", "heard")
        assert await well.hear() == ["message", "news", "heard"]


async def test_a_connection_to_a_server_that_is_down_is_closed() -> None:
    async with redis_server() as redis, link_to(redis) as link:
        await redis.kill()
        assert await is_closed(link)


REPLIES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":12\r\n",
    b"$3\r\na\r\n\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n*1\r\n$1\r\nx\r\n:1\r\n",
    b"%1\r\n+a\r\n*2\r\n:1\r\n_\r\n",
    b">2\r\n+message\r\n#t\r\n",
    b"=5\r\ntxt:a\r\n",
]


@pytest.mark.parametrize("reply", REPLIES)
def test_the_end_of_a_reply_is_found_once_it_is_there(reply: bytes) -> None:
    for cut in range(len(reply)):
        assert end_of_reply(reply[:cut]) is None
    assert end_of_reply(reply) == len(reply)
    assert end_of_reply(b"skip" + reply + b"+rest", 4) == 4 + len(reply)
