"""The demo page on a node that wants a token, in a real browser."""

import logging

import pytest
from running import Gateway, running
from test_demo_page import page
from tokens import SECRET, token

TOKEN = token("u", subscribe=["demo"], publish=["demo"])
ADMIN = token("root", admin=True)


def url_of(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.port}"


async def test_without_a_token_the_page_says_what_is_missing_and_where_it_goes() -> None:
    async with running(jwt_key=SECRET) as gateway, page(url_of(gateway)) as opened:
        await opened.click("#connect")
        said = await opened.until("#state[data-state=ended]", "401")
        assert said.startswith("ended: 401: This is not open to everybody: a token is needed")
        assert said.endswith("Put a token into the field Token.")
        await opened.click("#publish-send")
        said = await opened.until("#result[data-outcome=refused]", "^401: ")
        assert said.endswith("Put a token into the field Token.")
        await opened.until("#stats-note", "/stats wants a token")
        await opened.fill("#token", "wrong")
        await opened.click("#connect")
        await opened.until("#state[data-state=ended]", "no JSON Web Token.*Put another token")


async def test_with_a_token_the_page_streams_and_publishes_and_never_shows_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    async with running(jwt_key=SECRET) as gateway, page(url_of(gateway)) as opened:
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
        assert TOKEN not in await opened.run("() => document.documentElement.outerHTML")
        assert await opened.run("() => location.href + document.title") == (
            f"http://127.0.0.1:{gateway.port}/SSE gateway"
        )
        kept = "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        assert await opened.run(kept) == '[{},{},""]'
        assert await opened.run("() => getComputedStyle(token).webkitTextSecurity") == "disc"
        assert TOKEN not in caplog.text


async def test_what_the_token_does_not_grant_is_said_by_name() -> None:
    async with running(jwt_key=SECRET) as gateway, page(url_of(gateway)) as opened:
        await opened.fill("#token", TOKEN)
        await opened.fill("#channel", "secret")
        await opened.click("#connect")
        await opened.until("#state[data-state=ended]", "403: The channel secret is not among")
        await opened.fill("#publish-channel", "secret")
        await opened.click("#publish-send")
        await opened.until("#result[data-outcome=refused]", "^403: .*secret")
        await opened.until("#stats-note", "/stats is for administrators")


async def test_an_administrator_sees_the_counts() -> None:
    async with running(jwt_key=SECRET) as gateway, page(url_of(gateway)) as opened:
        await opened.until("#stats-note", "/stats wants a token")
        refused = gateway.node.refused["401"]
        await opened.fill("#token", ADMIN)
        await opened.until("#stats-note", "^Live counts of all nodes$")
        await opened.until("#stat-nodes", "^1$")
        assert gateway.node.refused["401"] == refused  # nor was it asked again meanwhile
