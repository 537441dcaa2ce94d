"""The channels of token streams: how they are kept, and who may do what with them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from rig import rule
from running import Gateway, joined, request, running
from test_auth import KEYS
from tokens import SECRET, bearer, token

from gateway.config import Config
from gateway.names import stream_channel
from gateway.policy import Policy

NAME = stream_channel("x")

ADMIN = token("root", subscribe=["**"], publish=["**"], admin=True)
GRANTED = token("u", subscribe=["**"], publish=["**", NAME])

JSON = b"Content-Type: application/json\r\n"
NDJSON = b"Content-Type: application/x-ndjson\r\n"


@asynccontextmanager
async def keyed(**settings: Any) -> AsyncIterator[Gateway]:
    async with running(**{"jwt_key": SECRET, "api_keys": KEYS, **settings}) as gateway:
        yield gateway


@pytest.mark.parametrize("name", [NAME, f"{NAME}.raw", "stream:", "stream:a.b.c"])
def test_the_rule_of_a_token_stream_is_built_in_whatever_is_configured(name: str) -> None:
    config = Config(
        channels=(rule(name, history=0), rule("**", Policy.LATEST)),
        history_events=0,
        channel_publish_rate=1.0,
        stream_events=7,
        stream_bytes=70_000,
        stream_seconds=700.0,
    )
    built_in = config.rule(name)
    assert (built_in.policy, built_in.public) == (Policy.CATCH_UP, False)
    assert (built_in.history_events, built_in.history_bytes) == (7, 70_000)
    assert (built_in.history_seconds, built_in.channel_publish_rate) == (700.0, 0.0)


@pytest.mark.parametrize("name", ["stream", "streams:x", "a.stream:x", "STREAM:x"])
def test_other_names_have_the_rules_that_are_configured(name: str) -> None:
    config = Config(channels=(rule("**", Policy.LATEST),))
    assert config.rule(name) is config.channels[0]


def test_a_token_stream_is_kept_for_a_day() -> None:
    kept = Config().rule(NAME)
    assert (kept.history_seconds, kept.history_events) == (86_400.0, 100_000)
    assert kept.history_bytes == 64 * 1024 * 1024


@pytest.mark.parametrize("credential", [ADMIN, GRANTED, None], ids=["admin", "granted", "open"])
@pytest.mark.parametrize(
    ("target", "body"),
    [
        (f"/publish/{NAME}", "x"),
        (f"/publish/{NAME}.raw?end=true", ""),
        ("/publish", f'{{"channel": "{NAME}", "data": ""}}'),
        ("/publish", f'{{"channels": ["news", "{NAME}"], "data": ""}}'),
        ("/publish", f'{{"channel": "{NAME}", "end": true}}'),
    ],
    ids=["raw", "the end of the raw view", "one", "one of several", "the end"],
)
async def test_publishing_to_it_is_refused_for_everybody(
    target: str, body: str, credential: str | None
) -> None:
    async with keyed() if credential else running() as gateway:
        headers = (JSON, bearer(credential)) if credential else (JSON,)
        answer = await gateway.ask(request("POST", target, *headers, body=body.encode()))
        assert answer.status == 403
        assert "Nobody publishes to 'stream:x" in answer.detail
        assert "POST /streams/<id>/events" in answer.detail
        assert await gateway.node.bus.last(NAME) is None
        assert await gateway.node.bus.last("news") is None


async def test_in_ndjson_its_line_alone_is_refused() -> None:
    body = joined([{"channel": name, "data": ""} for name in (NAME, "news")])
    async with running() as gateway:
        answer = await gateway.ask(request("POST", "/publish", NDJSON, body=body))
        refused, taken = map(msgspec.json.decode, answer.body.splitlines())
        assert (refused["line"], refused["status"], "id" in taken) == (1, 403, True)
