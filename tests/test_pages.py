"""Pages of other origins in a real browser: what it lets them do, and what the node does.

A page is at a name below ``localhost``, which Chromium takes for this machine; the node is at
another one, so that it is of another origin, and of the same site where a cookie is to come along.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from chromium import Tab, chromium
from running import Gateway, running

from gateway import connection
from gateway.api.cors import options
from gateway.api.request import Request
from gateway.edge import app

PAGE = b"""HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\
Connection: close\r\n\r\n%b"""
HTML = b"<!doctype html><title>A page</title><link rel=icon href=data:,>"

REBOUND = "rebound.example"

STREAM = """([url, withCredentials]) => {
  window.heard = [];
  const source = window.source = new EventSource(url, {withCredentials});
  return new Promise(resolve => {
    source.onerror = () => resolve([source.readyState, window.heard]);
    source.onmessage = ({data}) => window.heard.push(data);
    source.addEventListener("connected", () => resolve([source.readyState, window.heard]));
  });
}"""
FETCH = """([url, options]) => fetch(url, options).then(
  async answer => [answer.type, answer.status, await answer.text()],
  error => [error.name, 0, ""])"""


@asynccontextmanager
async def pages() -> AsyncIterator[int]:
    """The port of a server that has an empty page at every name and path."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(PAGE % (len(HTML), HTML))

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def two_sites(origins: str = "http://app.localhost:{port}") -> AsyncIterator["Site"]:
    async with (
        pages() as port,
        running(cors_origins=origins.format(port=port)) as gateway,
        chromium(f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1") as browser,
    ):
        yield Site(port, gateway, await browser.tab())


class Site:
    """A port with pages, a gateway, and a tab."""

    def __init__(self, port: int, gateway: Gateway, page: Tab) -> None:
        self.port = port
        self.gateway = gateway
        self.page = page

    async def visit(self, host: str) -> None:
        await self.page.open(f"http://{host}:{self.port}/")

    def of_gateway(self, target: str, host: str = "gw.app.localhost") -> str:
        return f"http://{host}:{self.gateway.port}{target}"

    async def fetch(self, url: str, **options: object) -> tuple[str, int, str]:
        kind, status, text = await self.page.run(FETCH, [url, options])
        return kind, status, text

    @property
    def published(self) -> int:
        return self.gateway.node.bus.statistics().published


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes | None]]:
    """Method and cookie of each hot request, and of each OPTIONS, in order."""
    seen: list[tuple[str, bytes | None]] = []
    for name in ("subscribe", "publish"):
        unseen = getattr(connection, name)

        async def see(node: Any, request: Request, *more: Any, unseen: Any = unseen) -> object:
            seen.append((request.method, request.header(b"cookie")))
            return await unseen(node, request, *more)

        monkeypatch.setattr(connection, name, see)

    def see_options(
        origins: Any, max_age: float, methods: Any, header: Any, more: Any = None
    ) -> object:
        seen.append(("OPTIONS", header(b"cookie")))
        return options(origins, max_age, methods, header, more)

    monkeypatch.setattr(app, "options", see_options)
    return seen


async def test_a_page_of_an_allowed_origin_streams_with_its_cookie_and_publishes(
    asked: list[tuple[str, bytes | None]],
) -> None:
    async with two_sites() as site:
        await site.page.open(site.of_gateway("/"))
        await site.page.run("() => { document.cookie = 'gateway_token=abc; path=/'; }")
        await site.visit("app.localhost")
        state, _ = await site.page.run(STREAM, [site.of_gateway("/events/a"), True])
        assert state == 1  # open
        assert asked == [("GET", b"gateway_token=abc")]
        kind, status, text = await site.fetch(
            site.of_gateway("/publish/a"), method="POST", body="hello", credentials="include"
        )
        assert (kind, status) == ("cors", 202)
        assert '"id"' in text
        await site.page.until_true("() => window.heard.join() === 'hello'")
        assert asked[1:] == [("POST", b"gateway_token=abc")]  # a simple one, without a preflight
        assert site.page.errors == []


async def test_a_page_of_an_allowed_origin_reads_why_it_is_refused() -> None:
    async with two_sites() as site:
        await site.visit("app.localhost")
        kind, status, text = await site.fetch(site.of_gateway("/events/a%20b"))
        assert (kind, status) == ("cors", 400)
        assert "contains ' '" in text


async def test_a_preflight_is_asked_once_and_remembered(
    asked: list[tuple[str, bytes | None]],
) -> None:
    async with two_sites("http://*.localhost:{port}") as site:
        await site.visit("app.localhost")
        for number in range(3):
            kind, status, _ = await site.fetch(
                site.of_gateway("/publish"),
                method="POST",
                headers={"Content-Type": "application/json", "Authorization": "Bearer x"},
                body=f'{{"channel": "a", "data": {number}}}',
            )
            assert (kind, status) == ("cors", 202)
        assert [method for method, _ in asked] == ["OPTIONS", "POST", "POST", "POST"]


@pytest.mark.parametrize("gateway_host", ["127.0.0.1", "localhost", "gw.evil.localhost"])
async def test_a_page_of_another_origin_can_neither_read_nor_publish(gateway_host: str) -> None:
    async with two_sites() as site:
        await site.visit("evil.localhost")
        await site.gateway.publish("a", "before")
        url = site.of_gateway("/events/a?lastEventId=earliest", gateway_host)
        for with_credentials in (True, False):
            state, heard = await site.page.run(STREAM, [url, with_credentials])
            assert (state, heard) == (2, [])  # closed for good
        before = site.published
        target = site.of_gateway("/publish/a", gateway_host)
        plain = {"method": "POST", "body": "x", "headers": {"Content-Type": "text/plain"}}
        assert await site.fetch(target, **plain) == ("TypeError", 0, "")
        assert await site.fetch(target, **plain, mode="no-cors") == ("opaque", 0, "")
        assert await site.fetch(target, method="DELETE") == ("TypeError", 0, "")
        as_json = {"method": "POST", "headers": {"Content-Type": "application/json"}}
        assert await site.fetch(target, **as_json, body="{}") == ("TypeError", 0, "")
        assert site.published == before
        assert site.gateway.node.refused == {"403": 4}


async def test_a_form_of_another_origin_publishes_nothing() -> None:
    async with two_sites() as site:
        await site.visit("evil.localhost")
        form = """url => {
            document.body.innerHTML = `<form method=post enctype=text/plain action="${url}">
                <input name=a value=b></form>`;
            document.forms[0].submit();
        }"""
        await site.page.run(form, site.of_gateway("/publish/a", "127.0.0.1"))
        await site.page.do(lambda page: page.wait_for_url("**/publish/a"))
        assert "cors_origins does not name" in await site.page.until("body", "Forbidden")
        assert site.published == 0
        assert site.gateway.node.refused == {"403": 1}


async def test_a_name_that_was_pointed_at_this_machine_publishes_nothing() -> None:
    """The page is of the same origin for the browser, as its name now leads here."""
    async with two_sites() as site:
        await site.page.open(site.of_gateway("/", REBOUND))
        kind, status, text = await site.fetch("/publish/a", method="POST", body="x")
        assert (kind, status) == ("basic", 403)
        assert "name in Host proves nothing" in text
        assert site.published == 0
