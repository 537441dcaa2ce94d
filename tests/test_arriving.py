"""What comes before the first request: silence, PROXY headers, and whose requests they make it."""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial

import certificates
import pytest
import trio
from running import (
    ACCEPT,
    PATIENCE,
    Gateway,
    Wire,
    descriptors,
    request,
    running,
    running_over_tls,
    tasks,
    until,
)
from test_proxy_protocol import BAD, GOOD

from gateway.api.publish import publish
from gateway.api.request import Answer, Request
from gateway.node import Node

PUBLISH = request("POST", "/publish/a", body=b"x")
PROXY_LINE = b"PROXY TCP4 203.0.113.9 192.0.2.2 56324 443\r\n"

Serving = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture(autouse=True)
def _no_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is sent, it is no event worth a line."""
    yield
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.fixture(params=["plain", "TLS"])
def serving(request: pytest.FixtureRequest, certificate: certificates.Files) -> Serving:
    over = partial(running_over_tls, certificate) if request.param == "TLS" else running
    return partial(over, proxy_protocol=True, trusted_proxies="127.0.0.0/8")


@asynccontextmanager
async def nothing_left(gateway: Gateway) -> AsyncIterator[None]:
    """What is done here leaves neither a task nor a descriptor on the node."""
    await gateway.ask(request("GET", "/stats"))
    await gateway.quiet()
    before = tasks(), descriptors()
    yield
    await gateway.close_wires()
    await gateway.quiet()
    await until(lambda: (tasks(), descriptors()) == before)


async def closed_without_a_word(wire: Wire) -> None:
    with trio.fail_after(PATIENCE):
        with suppress(trio.BrokenResourceError):
            assert await wire.stream.receive_some() == b""


@pytest.fixture
def publishers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the publishes come from, as the api sees it, in front and behind."""
    found: list[str] = []

    async def spy(node: Node, asked: Request) -> Answer:
        found.append(node.address_of(asked.peer, asked.header))
        return await publish(node, asked)

    monkeypatch.setattr("gateway.connection.publish", spy)
    monkeypatch.setattr("gateway.edge.app.publish", spy)
    return found


def publish_over(version: str, *headers: bytes) -> bytes:
    return request("POST", "/publish/a", *headers, body=b"x", version=version)


async def test_a_connection_that_never_sends_anything_is_closed_and_counted() -> None:
    async with running(head_timeout=0.3) as gateway, nothing_left(gateway):
        silent, blank, begun, used = [await gateway.connect() for _ in range(4)]
        await blank.send(b"\r\n")
        await begun.send(b"GET ")
        await used.send(PUBLISH)
        assert (await used.response()).status == 202
        await closed_without_a_word(silent)
        await closed_without_a_word(blank)
        assert (await begun.response()).status == 408
        assert gateway.node.refused == {"silent": 2, "408": 1}
        await used.send(PUBLISH)  # between requests it may be silent for idle_timeout
        assert (await used.response()).status == 202


# --- PROXY headers --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_proxy_header_says_whose_requests_they_are(
    serving: Serving, version: str, publishers: list[str]
) -> None:
    async with serving() as gateway:
        for header, source in GOOD.values():
            gateway.preamble = header
            assert (await gateway.ask(publish_over(version))).status == 202
            assert publishers.pop() == (source or "127.0.0.1")
        assert gateway.node.refused == {}


async def test_a_proxy_header_may_come_byte_by_byte_and_with_what_is_behind_it(
    publishers: list[str],
) -> None:
    settings = {"proxy_protocol": True, "trusted_proxies": "127.0.0.1"}
    async with running(**settings) as gateway:  # type: ignore[arg-type]
        for header, source in GOOD.values():
            wire = await gateway.connect()
            if len(header) < 300:
                for byte in header:
                    await wire.send(bytes((byte,)))
                    await trio.testing.wait_all_tasks_blocked()
            else:
                await wire.send(header)
            await wire.send(PUBLISH)
            assert (await wire.response()).status == 202
            wire = await gateway.connect()
            await wire.send(header + PUBLISH + PUBLISH)
            for _ in range(2):
                assert (await wire.response()).status == 202
            assert publishers[-3:] == [source or "127.0.0.1"] * 3


async def test_a_stream_behind_a_proxy_header_is_a_stream(serving: Serving) -> None:
    async with serving() as gateway:
        gateway.preamble = PROXY_LINE
        async with nothing_left(gateway):
            for version in ("1.1", "1.0"):
                wire = await gateway.open("/events/a", version=version)
                await wire.opened()
                await gateway.publish("a", "x")
                assert (await wire.event()).data == "x"


async def test_what_is_no_proxy_header_is_closed_without_a_word_and_counted() -> None:
    async with running(proxy_protocol=True, trusted_proxies="127.0.0.1") as gateway:
        for number, (name, raw) in enumerate(BAD.items(), 1):
            wire = await gateway.connect()
            await wire.send(raw + PUBLISH)
            await closed_without_a_word(wire)
            assert gateway.node.refused == {"proxy-protocol": number}, name
        assert gateway.node.bus.statistics().published == 0


async def test_a_second_proxy_header_is_no_request(serving: Serving) -> None:
    async with serving() as gateway:
        gateway.preamble = PROXY_LINE
        assert (await gateway.ask(PROXY_LINE + PUBLISH)).status == 400


async def test_a_proxy_header_of_anybody_else_is_not_even_read(
    serving: Serving, publishers: list[str]
) -> None:
    async with serving(trusted_proxies="192.0.2.1, fd00::/8") as gateway:
        for preamble in (PROXY_LINE, b""):
            gateway.preamble = preamble
            with pytest.raises((trio.BrokenResourceError, EOFError)):
                await gateway.ask(PUBLISH)
        assert gateway.node.refused == {"untrusted-proxy": 2}
        assert publishers == []


async def test_a_proxy_header_has_a_deadline(serving: Serving) -> None:
    async with serving(head_timeout=0.3) as gateway:
        gateway.tls = None
        silent, slow, after = [await gateway.connect() for _ in range(3)]
        await slow.send(PROXY_LINE[:-1])
        await after.send(PROXY_LINE)
        for wire in (silent, slow, after):
            await closed_without_a_word(wire)
        assert gateway.node.refused == {"silent": 2, "proxy-protocol": 1}


async def test_who_only_tries_whether_somebody_listens_is_not_counted(serving: Serving) -> None:
    """As balancers do, with a header that says so or without."""
    local = GOOD["2, local"][0]
    async with serving() as gateway:
        gateway.tls = None
        for sent in (b"", local):
            wire = await gateway.connect()
            await wire.send(sent)
            await wire.aclose()
        await gateway.quiet()
        assert gateway.node.refused == {}


async def test_where_no_proxy_header_is_expected_none_is_read() -> None:
    async with running(trusted_proxies="127.0.0.1") as gateway:
        answer = await gateway.ask(PROXY_LINE + PUBLISH)
        assert answer.status == 400


# --- headers of proxies ---------------------------------------------------------------------------

FORWARDED = (
    (b"X-Forwarded-For: 203.0.113.9\r\n",),
    (b"X-Forwarded-For: 1.1.1.1\r\n", b"X-Forwarded-For: 203.0.113.9\r\n"),
    (b"X-Forwarded-For: 1.1.1.1\r\n", b"A: b\r\n", b"x-forwarded-for: 203.0.113.9, 127.0.0.2\r\n"),
    (b"Forwarded: for=1.1.1.1\r\n", b'Forwarded: for="203.0.113.9:1";proto=http\r\n'),
)  # fmt: skip


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_the_headers_of_a_trusted_proxy_are_believed_all_lines_of_them(
    version: str, publishers: list[str]
) -> None:
    """A proxy may add a line of its own behind the one that a client has sent."""
    async with running(trusted_proxies="127.0.0.0/8") as gateway:
        for lines in FORWARDED:
            assert (await gateway.ask(publish_over(version, *lines))).status == 202
    assert publishers == ["203.0.113.9"] * len(FORWARDED)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_the_headers_of_anybody_else_are_not(version: str, publishers: list[str]) -> None:
    for trusted in ("", "192.0.2.0/24"):
        async with running(trusted_proxies=trusted) as gateway:
            for lines in FORWARDED:
                assert (await gateway.ask(publish_over(version, *lines))).status == 202
    assert set(publishers) == {"127.0.0.1"}


async def test_behind_a_proxy_header_the_headers_are_those_of_whom_it_names(
    serving: Serving, publishers: list[str]
) -> None:
    async with serving(trusted_proxies="127.0.0.1, 203.0.113.9") as gateway:
        gateway.preamble = PROXY_LINE
        for version in ("1.1", "1.0"):
            asked = publish_over(version, b"X-Forwarded-For: 198.51.100.1\r\n")
            assert (await gateway.ask(asked)).status == 202
        gateway.preamble = PROXY_LINE.replace(b"113.9", b"113.8")
        assert (await gateway.ask(asked)).status == 202
    assert publishers == ["198.51.100.1", "198.51.100.1", "203.0.113.8"]


async def test_an_ipv4_peer_of_an_ipv6_listener_is_taken_as_ipv4(publishers: list[str]) -> None:
    async with running(bind="[::ffff:127.0.0.1]:0") as gateway:
        for version in ("1.1", "1.0"):
            assert (await gateway.ask(publish_over(version))).status == 202
    assert publishers == ["127.0.0.1"] * 2


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/events/a?x=", "/stats?x=", "http://x/events/a?x="])
async def test_a_target_may_be_as_long_as_is_set_and_no_longer(path: str) -> None:
    limit = 300
    async with running(max_url_bytes=limit) as gateway:
        wire = await gateway.connect()
        await wire.send(request("GET", path.ljust(limit, "y"), ACCEPT))
        assert (await wire.response()).status == 200
        answer = await gateway.ask(request("GET", path.ljust(limit + 1, "y"), ACCEPT))
        assert (answer.status, answer.json["title"]) == (414, "URI Too Long")
        assert answer.header("content-type") == "application/problem+json"
        assert answer.detail == "The request target may have at most 300 bytes (max_url_bytes)."
        assert gateway.node.refused == {"414": 1}


async def test_a_head_that_is_too_large_for_everything_stays_that() -> None:
    async with running(max_url_bytes=300, max_head_bytes=1024) as gateway:
        answer = await gateway.ask(request("GET", "/events/a?x=".ljust(1024, "y")))
        assert answer.status == 431
