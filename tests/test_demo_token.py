"""The demo page on a node that wants a token, in a real browser."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import pytest
from running import Gateway, running
from test_demo_page import Browser, browser

from gateway import connection
from gateway.api import admin
from gateway.api.request import Answer, Request, problem
from gateway.edge import app
from gateway.errors import Forbidden, GatewayError, Unauthorized
from gateway.node import Node

TOKEN = "a-token-that-nobody-guesses"


def refused(request: Request) -> GatewayError | None:
    """What a node with keys would say: by header or query, for channels that are not secret."""
    header = request.header(b"authorization")
    given = header.removeprefix(b"Bearer ").decode() if header else request.first("token")
    if given is None:
        return Unauthorized("This node wants a token.", bad_token=False)
    if given != TOKEN:
        return Unauthorized("The token is none of this node's.")
    if "secret" in (*request.all("channel"), request.path.rpartition("/")[2]):
        return Forbidden("The token does not grant the channel secret.")
    return None


@pytest.fixture(autouse=True)
def _wants_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("subscribe", "publish", "poll"):
        unguarded = getattr(connection, name)

        def guarded(unguarded: Any = unguarded) -> Any:
            @wraps(unguarded)
            async def guard(node: Node, request: Request, *more: object) -> object:
                error = refused(request)
                return problem(error) if error else await unguarded(node, request, *more)

            return guard

        monkeypatch.setattr(connection, name, guarded())

    async def stats(node: Node) -> Answer:
        error = refused(await app._request())
        return problem(error or Forbidden("The token is not an administrator's."))

    monkeypatch.setattr(admin, "stats", stats)


@asynccontextmanager
async def page(gateway: Gateway) -> AsyncIterator[Browser]:
    async with browser() as page:
        await page.open(f"http://127.0.0.1:{gateway.port}/")
        yield page


async def test_without_a_token_the_page_says_what_is_missing_and_where_it_goes() -> None:
    async with running() as gateway, page(gateway) as opened:
        await opened.click("#connect")
        said = await opened.until("#state[data-state=ended]", "401")
        assert said == ("ended: 401: This node wants a token. Put a token into the field Token.")
        await opened.click("#publish-send")
        said = await opened.until("#result[data-outcome=refused]", "^401: ")
        assert said.endswith("Put a token into the field Token.")
        await opened.until("#stats-note", "/stats wants a token")
        asked = gateway.node.refused["401"]
        await opened.fill("#token", "wrong")
        await opened.click("#connect")
        await opened.until("#state[data-state=ended]", "none of this node's. Put another token")
        assert gateway.node.refused["401"] > asked


async def test_with_a_token_the_page_streams_and_publishes_and_never_shows_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    async with running() as gateway, page(gateway) as opened:
        await opened.fill("#token", TOKEN)
        await opened.click("#connect")
        await opened.until("#state[data-state=open]", "^open$")
        await opened.click("#publish-send")
        await opened.until("#result[data-outcome=accepted]", "^Accepted as ")
        await opened.until(".data", "^Hello from the browser$")
        await opened.click("#publish-hundred")
        await opened.until(".data", "^100 of 100$")
        assert '"Authorization: Bearer $TOKEN"' in await opened.until("#curl-subscribe")
        assert '"Authorization: Bearer $TOKEN"' in await opened.until("#curl-publish")
        assert TOKEN not in await opened.run("return document.documentElement.outerHTML")
        assert await opened.run("return location.href + document.title") == (
            f"http://127.0.0.1:{gateway.port}/SSE gateway"
        )
        kept = "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        assert await opened.run(kept) == '[{},{},""]'
        assert await opened.run("return getComputedStyle(token).webkitTextSecurity") == "disc"
        assert TOKEN not in caplog.text


async def test_what_the_token_does_not_grant_is_said_by_name() -> None:
    async with running() as gateway, page(gateway) as opened:
        await opened.fill("#token", TOKEN)
        await opened.fill("#channels", "secret")
        await opened.click("#connect")
        await opened.until("#state[data-state=ended]", "403: .*does not grant the channel secret")
        await opened.fill("#publish-channel", "secret")
        await opened.click("#publish-send")
        await opened.until("#result[data-outcome=refused]", "^403: .*the channel secret")
        await opened.until("#stats-note", "/stats is for administrators")
