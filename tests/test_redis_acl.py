"""The rights that the documents give to Redis users: enough for all that they do, and no more."""

import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import trio
from documents import DEPLOYING, REFERENCE
from process import NodeProcess, Stream, environment, eventually, node
from redis.exceptions import NoPermissionError
from redis_buses import QUICK, cluster
from redis_server import RedisServer, redis_server
from tokens import SECRET, token

from gateway.bus.scripts import DIGESTS

PASSWORD = "a-password"

ADMIN = token("root", admin=True, subscribe=["**"], publish=["**"])
USER = token("u", subscribe=["**"], jti="of u")


def acl(of: str) -> list[str]:
    """The command that the documents print for them."""
    found = re.search(
        rf"<!-- acl {of} -->\n```\n(.*?)```\n<!-- /acl -->", DEPLOYING + REFERENCE, re.DOTALL
    )
    assert found is not None
    return found[1].replace("PASSWORD", PASSWORD).split()


def allowed(of: str) -> set[str]:
    return {word[1:] for word in acl(of) if word.startswith("+")}


@asynccontextmanager
async def server_with(of: str) -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        await server.call(*acl(of))
        yield server


def as_gateway(server: RedisServer, database: int = 1) -> str:
    return f"redis://gateway:{PASSWORD}@127.0.0.1:{server.port}/{database}"


async def denied(server: RedisServer) -> list[str]:
    """What was refused for want of a right."""
    log = await server.call("ACL", "LOG")
    return [str(dict(zip(entry[::2], entry[1::2], strict=True))) for entry in log]


async def ask(
    at: NodeProcess, method: str, path: str, credential: str = ADMIN, **more: Any
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {credential}"} | more.pop("headers", {})
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        return await client.request(method, at.url + path, headers=headers, **more)


async def published(at: NodeProcess, channel: str, data: str, status: int = 202) -> str:
    answer = await ask(at, "POST", f"/publish/{channel}", content=data)
    assert answer.status_code == status, answer.text
    return str(answer.json().get("id"))


async def opened(at: NodeProcess, target: str, *headers: tuple[str, str]) -> Stream:
    stream = Stream(await at.connect())
    await stream.request(target, ("Authorization", f"Bearer {USER}"), *headers)
    await stream.until(b"event: connected\n")
    return stream


def client_of(stream: Stream) -> str:
    connected = stream.body.partition(b"event: connected\ndata: ")[2].partition(b"\n")[0]
    return str(json.loads(connected)["clientId"])


async def live_through_it_all(a: NodeProcess, b: NodeProcess, server: RedisServer) -> None:
    """All that two nodes do with Redis."""

    async def both_are_there() -> bool:
        stats = await ask(a, "GET", "/stats")
        return stats.status_code == 200 and len(stats.json()["nodes"]) == 2

    await eventually(both_are_there)
    # publishing, live flow, and channels of an open stream
    stream = await opened(a, "/events/news")
    first = await published(b, "news", "one")
    await published(a, "news", "two")
    await stream.until(b"data: two\n")
    await published(a, "more", "missed")
    added = await ask(b, "PUT", f"/clients/{client_of(stream)}/channels/more?since=earliest")
    assert added.status_code == 200, added.text
    await stream.until(b"data: missed\n")
    removed = await ask(b, "DELETE", f"/clients/{client_of(stream)}/channels/more")
    assert removed.status_code == 200
    # history: resumed, from the newest, from the beginning; trimmed by bytes and by age
    back = await opened(b, "/events/news", ("Last-Event-ID", first))
    await back.until(b"data: two\n")
    newest = await opened(b, "/events/news?replay=1")
    await newest.until(b"data: two\n")
    for _ in range(2):
        await published(a, "trimmed", "x" * 400)
        await published(a, "trimmed", "x" * 400)
        await trio.sleep(0.3)  # more than a quarter of the history's second
    again = [
        await ask(a, "POST", "/publish", json={"channel": "news", "data": "x", "id": "1"})
        for _ in range(2)
    ]
    assert again[0].json() == again[1].json()
    assert (await ask(a, "GET", "/channels/news")).json()["clients"] == 3
    # streams of a user, over both nodes: the fourth ends the first
    await opened(a, "/events/news")
    await stream.until_end()
    assert stream.body.endswith(b'.closed\nevent: closed\ndata: {"reason":"replaced"}\n\n')
    # rates
    assert [await published(a, "slow", "x", status) for status in (202, 429)]
    # what is left when the links are lost
    killed = await server.call("CLIENT", "KILL", "USER", "gateway")
    assert int(killed) >= 4
    await eventually(both_are_there)
    await published(a, "news", "after")
    await back.until(b"data: after\n")
    # revocations
    assert (await ask(a, "DELETE", "/users/u?revoke=true")).status_code == 200
    await back.until_end()
    assert (await ask(b, "GET", "/poll/news?wait=0", USER)).status_code == 401


def flags(server: RedisServer, key: Path, config: Path) -> list[str]:
    return [
        "--redis",
        as_gateway(server),
        "--jwt-key-file",
        str(key),
        "--config",
        str(config),
        "--max-streams-per-user",
        "3",
        "--history-seconds",
        "1.2",
        "--history-bytes",
        "1000",
    ]


CONFIG = """
[[channel]]
match = "slow"
channel_publish_rate = 0.01

[[channel]]
match = "news"
history_seconds = 60.0
"""


async def test_nodes_do_all_that_they_do_with_the_rights_that_the_readme_gives(
    tmp_path: Path,
) -> None:
    """And with no fewer: each of the commands is used."""
    key, config = tmp_path / "key", tmp_path / "config.toml"
    key.write_text(SECRET)
    config.write_text(CONFIG)
    async with server_with("nodes") as server:
        await server.call("CONFIG", "RESETSTAT")
        options = flags(server, key, config)
        async with (
            node(*options, "--node-id", "a") as a,
            node(*options, "--node-id", "b") as b,
        ):
            await live_through_it_all(a, b, server)
            for each in (a, b):
                each.process.terminate()
                assert await each.wait() == 0
            assert "Redis refuses" not in a.output + b.output
        assert await denied(server) == []
        used = {name.removeprefix("cmdstat_") for name in await server.info("commandstats")}
        assert allowed("nodes") - used == {"unsubscribe"}  # from channels unwanted for a while


@pytest.mark.parametrize("missing", ["evalsha", "xadd", "zadd", "role", "hgetall"])
async def test_with_one_right_fewer_something_is_refused_and_said(missing: str) -> None:
    words = [word for word in acl("nodes") if word != f"+{missing}"]
    async with redis_server() as server:
        await server.call(*words)
        quick = ("--redis-timeout", "0.5", "--publish-wait", "0.2")
        async with node("--redis", as_gateway(server), *quick) as one:
            answers = [
                await ask(one, "POST", "/publish/a", content="x"),
                await ask(one, "GET", "/poll/a?user=u&wait=0"),
                await ask(one, "GET", "/readyz"),
            ]
            assert 503 in [answer.status_code for answer in answers]
        assert any(missing in entry for entry in await denied(server))


# -- who publishes without a node


@asynccontextmanager
async def served(of: str = "publishers") -> AsyncIterator[tuple[RedisServer, Any]]:
    """A server where a node has been, and a bus of a node that is there."""
    async with server_with(of) as server, cluster(server.port, "gateway:") as nodes:
        yield server, await nodes.node("news", config=QUICK)


def publisher(server: RedisServer) -> redis.Redis:
    return redis.Redis(port=server.port, username="publisher", password=PASSWORD)


async def test_the_example_of_direct_publishing_runs_with_the_rights_that_the_readme_gives() -> (
    None
):
    found = re.search(r"<!-- direct -->\n```python\n(.*?)```", REFERENCE, re.DOTALL)
    assert found is not None
    async with served() as (server, here):
        login = f"redis.Redis(port={server.port}, username='publisher', password='{PASSWORD}')"
        program = found[1].replace("redis.Redis()", login)
        ran = await trio.run_process(
            [sys.executable, "-c", program], capture_stdout=True, env=environment()
        )
        await here.sink.until(1)
        assert ran.stdout.decode() == f"{here.sink.frames[0].position}\n"


async def test_a_direct_publisher_needs_no_more_and_no_fewer_rights() -> None:
    rules = {"channels": [["**", 10, 300, 1000]], "dedupe_ms": 1000, "max_channels": 9}
    async with served() as (server, _):
        await server.call("SET", "gateway:rules", json.dumps(rules | {"max_event_bytes": 1000}))
        await server.call("CONFIG", "RESETSTAT")
        await server.call("ACL", "LOG", "RESET")
        with publisher(server) as client:
            digest = client.get("gateway:publish")
            assert isinstance(digest, bytes)
            for number in range(12):
                document = {"channels": ["a", "b"], "data": "x" * 100, "id": str(number // 2)}
                client.evalsha(digest.decode(), 1, "gateway:clock", json.dumps(document))
            await trio.sleep(0.3)
            client.evalsha(
                digest.decode(), 1, "gateway:clock", '{"user": "u", "data": "x", "end": false}'
            )
            client.evalsha(
                digest.decode(), 1, "gateway:clock", '{"channel": "a", "data": "x", "end": true}'
            )
        assert [each for each in await denied(server) if "publisher" in each] == []
        used = {name.removeprefix("cmdstat_") for name in await server.info("commandstats")}
        assert allowed("publishers") - used == set()


BEYOND = {
    "somebody else's key": ("GET", "theirs"),
    "a key of theirs in its place": ("SET", "theirs", "x"),
    "streams of users": ("HGETALL", "gateway:u:user:u"),
    "a rate": ("GET", "gateway:r:c:a"),
    "a rate of its own making": ("SET", "gateway:r:c:a", "1000 0"),
    "revocations": ("HGETALL", "gateway:revoked"),
    "a token stream": ("HGETALL", "gateway:t:x"),
    "whose a channel is": ("SET", "gateway:o:news", "x"),
    "a lease": ("ZADD", "gateway:streams", 1, "x"),
    "no revocations": ("UNLINK", "gateway:revoked"),
    "who is there": ("ZCARD", "gateway:workers"),
    "the epoch": ("UNLINK", "gateway:epoch"),
    "the rules": ("SET", "gateway:rules", "{}"),
    "another script in the place": ("SET", "gateway:publish", "0" * 40),
    "a command to all workers": ("PUBLISH", "gateway:all", "x"),
    "a command to one": ("PUBLISH", "gateway:w:worker1", "x"),
    "a proof": ("PUBLISH", "gateway:p:worker1", "x"),
    "to listen": ("SUBSCRIBE", "gateway:c:news"),
    "to listen to all": ("PSUBSCRIBE", "*"),
    "a script of its own": ("EVAL", "return 1", 0),
    "to load one": ("SCRIPT", "LOAD", "return 1"),
    "to flush them": ("SCRIPT", "FLUSH"),
    "all keys": ("KEYS", "*"),
    "to empty it": ("FLUSHALL",),
    "the configuration": ("CONFIG", "GET", "*"),
    "other users": ("ACL", "LIST"),
    "what others do": ("MONITOR",),
}


async def snapshot(server: RedisServer) -> dict[str, Any]:
    """What is kept beside the channels; the clock goes on by itself."""
    kept: dict[str, Any] = {}
    with redis.Redis(port=server.port) as client:
        for key in client.scan_iter("*"):
            name = key.decode()
            if not re.match(r"gateway:(clock|workers|[msd]:)", name):
                kept[name] = client.dump(key)
    return kept


async def test_a_direct_publisher_can_do_nothing_else() -> None:
    async with served() as (server, _):
        await server.call("SET", "theirs", "x")
        await server.call("HSET", "gateway:u:user:u", "worker1.a", "1 99999999999999")
        await server.call("SET", "gateway:r:c:a", "1 1")
        await server.call("HSET", "gateway:revoked", "token:a", "1 -")
        before = await snapshot(server)
        with publisher(server) as client:
            for command in BEYOND.values():
                with pytest.raises(NoPermissionError):
                    client.execute_command(*command)
        assert await snapshot(server) == before


OTHER_SCRIPTS = {
    "attach": ("run", 0, "0-0", "", "{}", 0, "0" * 40),
    "head": ("worker1", 1, 0, 1000),
    "evicted": (1, 0),
    "leases": (0, 1000, 1, 0, "worker1", "user:u", "worker1.b", 0),
    "rates": (0, "c:a", 10, 1000),
    "revoke": (0, 100, "token:a", 1, "-"),
    "streams": ("renew", 0, "worker1", 1000, 1000, 0),
}


@pytest.mark.parametrize("script", OTHER_SCRIPTS)
async def test_other_scripts_of_the_gateway_fail_for_a_direct_publisher(script: str) -> None:
    """They may be called; the first key that is not the caller's ends them."""
    assert {*OTHER_SCRIPTS, "publish"} == set(DIGESTS)
    async with served() as (server, _):
        before = await snapshot(server)
        with (
            publisher(server) as client,
            pytest.raises(redis.ResponseError, match="The user executing"),
        ):
            client.evalsha(DIGESTS[script], 1, "gateway:clock", *map(str, OTHER_SCRIPTS[script]))
        assert await snapshot(server) == before


async def test_a_direct_publisher_is_trusted_with_the_channels() -> None:
    """What Redis cannot forbid: the commands of the script, without the script."""
    async with served() as (server, _):
        with publisher(server) as client:
            client.xadd("gateway:s:news", {"e": "x"}, id="1-1")
            assert client.xrange("gateway:s:news")
            with pytest.raises(NoPermissionError):
                client.get("gateway:w:worker1")
