"""The drop-in, by its bytes: what an upstream answers arrives as it was, or is seen to be cut.

Each request goes over a raw connection to a node, and where it matters over another one straight
to the fake upstream, whose answer is the measure.
"""

import gc
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import certificates
import pytest
import trio
import vendors
from running import (
    PATIENCE,
    Block,
    Gateway,
    Response,
    Wire,
    request,
    running,
    running_over_tls,
    until,
)
from tokens import SECRET, bearer, token
from upstreams import HUGE_BYTES, FakeUpstream, Fault, Script, chat, fake_upstream, prompt, text_of

from gateway.config import ApiKey, Format, Upstream
from gateway.errors import Unavailable
from gateway.relay.copies import COPY_BYTES, FAIR_BYTES, Copies, Copy
from gateway.relay.events import Failure
from gateway.relay.story import Story

KEY = "sk-of-the-upstream-alone"

JSON = b"Content-Type: application/json\r\n"

CHAT_PATH = "/relay/fake/chat/completions"

BROKEN = (EOFError, trio.BrokenResourceError)
"""A connection that has ended before the answer has, in order or not."""


def configured(fake: FakeUpstream, **members: Any) -> Upstream:
    known: dict[str, Any] = {"name": "fake", "url": fake.url, "format": Format.OPENAI}
    headers = {"Authorization": f"Bearer {KEY}"}
    return Upstream(**(known | {"silence": 5.0, "headers": headers} | members))


@dataclass
class Pair:
    gateway: Gateway
    fake: FakeUpstream

    async def ask(self, raw: bytes) -> "Asked":
        """At the gateway; the head of the answer has come."""
        wire = await self.gateway.connect()
        await wire.send(raw)
        return Asked(wire, await wire.head())

    async def ask_directly(self, raw: bytes) -> "Asked":
        wire = Wire(await trio.open_tcp_stream("127.0.0.1", self.fake.port))
        self.gateway._wires.append(wire)
        await wire.send(raw)
        return Asked(wire, await wire.head())

    async def story(self, asked: "Asked") -> Story:
        """Of the token stream, once that has ended."""
        relays = self.gateway.node.relays
        found = await relays.registry.find(str(asked.head.header("stream-id")))
        assert found is not None
        if (made := relays.running.get(found.record.id)) is not None:
            with trio.fail_after(PATIENCE):
                await made.ended.wait()
        return await relays.story(found.record)


@dataclass
class Asked:
    wire: Wire
    head: Response

    async def body(self, pieces: list[bytes] | None = None) -> bytes:
        """All of it, by ``pieces``. One of `BROKEN` where it has no end."""
        pieces = pieces if pieces is not None else []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def piece(self) -> bytes:
        length = self.head.header("content-length")
        if length is None:
            return await self.wire.piece()
        body = await self.wire._exactly(int(length))
        self.head.headers.append(("content-length", "0"))
        return body


@asynccontextmanager
async def pair(*, settings: dict[str, Any] | None = None, **members: Any) -> AsyncIterator[Pair]:
    async with fake_upstream() as fake:
        upstreams = (configured(fake, **members),)
        async with running(upstreams=upstreams, **(settings or {})) as gateway:
            yield Pair(gateway, fake)
            await gateway.close_wires()
            await gateway.quiet()


def post(target: str, value: object, *headers: bytes, version: str = "1.1") -> bytes:
    body = json.dumps(value).encode()
    return request("POST", target, JSON, *headers, body=body, version=version)


def streamed(script: Script | None = None) -> bytes:
    return post(CHAT_PATH, chat(script, stream=True))


VENDORS: dict[str, tuple[Format, str, str, Callable[[Script], dict[str, Any]]]] = {
    "chat": (Format.OPENAI, "chat/completions", "", lambda s: chat(s, stream=True)),
    "responses": (
        Format.OPENAI,
        "responses",
        "",
        lambda s: {"model": "fake-1", "input": prompt(s), "stream": True},
    ),
    "messages": (Format.ANTHROPIC, "messages", "v1/", lambda s: chat(s, stream=True)),
    "plain": (Format.SSE, "", "", lambda s: {"prompt": prompt(s)}),
}


# --- what goes well -------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("cut", [0, 7])
async def test_a_stream_arrives_to_the_byte_and_is_recorded(vendor: str, cut: int) -> None:
    format, path, doubled, body = VENDORS[vendor]
    asked = body(Script(words=9, cut=cut))
    async with pair(format=format, paths=(f"POST {path}".strip(),)) as both:
        ours = await both.ask(post(f"/relay/fake/{doubled}{path}", asked))
        directly = await both.ask_directly(post(f"/v1/{path}", asked))
        assert await ours.body() == await directly.body()
        story = await both.story(ours)
    assert ours.head.status == 200
    record_id = ours.head.header("stream-id")
    assert ours.head.header("location") == f"/events/stream:{record_id}"
    assert story.state == "complete"
    if format is not Format.SSE:
        assert story.text == text_of(9)
        assert story.model == "fake-1"


async def test_an_answer_has_the_headers_of_the_upstream_and_no_second_ones() -> None:
    script = Script(
        headers={
            "x-request-id": "req_theirs",
            "openai-processing-ms": "7",
            "set-cookie": "a=b",
            "server": "theirs",
            "x-content-type-options": "whatever",
            "access-control-allow-origin": "*",
            "stream-id": "forged",
        }
    )
    async with pair() as both:
        asked = await both.ask(streamed(script))
        await asked.body()
    names = [name for name, _ in asked.head.headers]
    assert len(names) == len(set(names))
    assert asked.head.header("x-request-id") == "req_theirs"
    assert asked.head.header("openai-processing-ms") == "7"
    assert asked.head.header("content-type") == "text/event-stream; charset=utf-8"
    assert asked.head.header("x-content-type-options") == "nosniff"
    assert asked.head.header("x-accel-buffering") == "no"
    assert asked.head.header("stream-id") != "forged"
    assert not {"set-cookie", "server", "access-control-allow-origin"} & set(names)


async def test_what_is_no_stream_passes_with_its_length_and_is_not_recorded() -> None:
    async with pair() as both:
        ours = await both.ask(post(CHAT_PATH, chat()))
        directly = await both.ask_directly(post("/v1/chat/completions", chat()))
        assert await ours.body() == await directly.body()
        models = await both.ask(request("GET", "/relay/fake/models?limit=2&after=x%20y"))
        assert await models.body() == vendors.openai_models()
        assert both.gateway.node.relays.statistics().opened["openai"] == 0
        await until(lambda: both.gateway.node.relays.count("fake") == 0)
    assert ours.head.header("content-length") == directly.head.header("content-length")
    assert ours.head.header("location") is None
    assert both.fake.calls[-1].target == "/v1/models?limit=2&after=x%20y"


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with pair() as both:
        wire = await both.gateway.connect()
        for _ in range(3):
            await wire.send(streamed(Script(words=3)))
            assert await Asked(wire, await wire.head()).body() != b""
            await wire.send(post(CHAT_PATH, chat()))
            assert await Asked(wire, await wire.head()).body() != b""
        await wire.send(post(CHAT_PATH, chat(), b"Connection: close\r\n"))
        last = Asked(wire, await wire.head())
        assert last.head.header("connection") == "close"
        await last.body()
        assert await wire.to_end() == b""


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_a_connection_that_is_to_be_closed_ends_in_order(
    tls: bool, certificate: certificates.Files, caplog: pytest.LogCaptureFixture
) -> None:
    """And is waited for, without anything to be said about it in the log."""
    async with fake_upstream() as fake, AsyncExitStack() as held:
        upstreams = (configured(fake),)
        made = running_over_tls(certificate, upstreams=upstreams) if tls else None
        gateway = await held.enter_async_context(made or running(upstreams=upstreams))
        asked = await Pair(gateway, fake).ask(post(CHAT_PATH, chat(), b"Connection: close\r\n"))
        assert asked.head.header("connection") == "close"
        await asked.body()
        assert await asked.wire.ended()
        await gateway.close_wires()
        await gateway.quiet()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_stream_that_is_no_event_stream_or_is_encoded_passes_unrecorded() -> None:
    async with pair() as both:
        squeezed = Script(words=4, gzip=True)
        asked = await both.ask(streamed(squeezed))
        assert (await asked.body())[:2] == b"\x1f\x8b"
        assert asked.head.header("content-encoding") == "gzip"
        page = await both.ask(streamed(Script(fault=Fault.HTML)))
        assert await page.body() == b"<html>Sorry.</html>"
        assert both.gateway.node.relays.statistics().opened["openai"] == 0


async def test_an_answer_without_content_has_none() -> None:
    async with pair() as both:
        both.fake.script(Script(status=204))
        wire = await both.gateway.connect()
        await wire.send(post(CHAT_PATH, chat()))
        head = await wire.head()
        assert head.status == 204
        assert head.header("transfer-encoding") is None
        await wire.send(request("GET", "/relay/fake/models"))
        assert (await wire.head()).status == 200


async def test_viewers_who_join_by_the_location_get_the_same_text_and_the_same_events() -> None:
    async with pair() as both:
        asked = await both.ask(streamed(Script(words=30, rate=200)))
        first = await asked.piece()
        location = asked.head.header("location")
        told: dict[str, list[Block]] = {}

        async def view(name: str) -> None:
            viewer = await both.gateway.open(f"{location}?view={name}&lastEventId=earliest")
            await viewer.opened()
            told[name] = await viewer.blocks()

        async with trio.open_nursery() as nursery:
            for name in ("normal", "raw"):
                nursery.start_soon(view, name)
        body = first + await asked.body()
    normal = [block for block in told["normal"] if block.event == "token"]
    assert told["normal"][0].event == "start"
    assert "".join(str(block.json["text"]) for block in normal) == text_of(30)
    assert "complete" in [block.event for block in told["normal"]]
    raw = [block.data for block in told["raw"] if block.event == "message"]
    assert "".join(f"data: {data}\n\n" for data in raw).encode() == body


async def test_whoever_reads_the_drop_in_counts_as_a_viewer_while_it_does() -> None:
    async with pair() as both:
        asked = await both.ask(streamed(Script(words=3, fault=Fault.SILENCE, after=2)))
        [made] = both.gateway.node.relays.running.values()
        assert made.companions == 1
        await asked.wire.aclose()
        await until(lambda: made.companions == 0)
        assert made.last is None
        made.lose()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_body_takes_room_only_until_the_answer_begins(version: str) -> None:
    filler = {"metadata": {"x": "y" * 200_000}}
    async with pair() as both:
        script = Script(words=3, fault=Fault.SILENCE, after=2)
        body = chat(script, stream=True, **filler)
        asked = await both.ask(post(CHAT_PATH, body, version=version))
        assert both.gateway.front._service.held_bytes == 0
        await asked.wire.aclose()
        [made] = both.gateway.node.relays.running.values()
        made.lose()


# --- behind the end of the format -----------------------------------------------------------------


async def test_bytes_behind_the_formats_end_arrive_and_are_not_waited_for_by_viewers() -> None:
    known = vendors.chat_blocks(vendors.Answer(("a", "b"), output_tokens=2))
    blocks = (*known, b": behind\n\n", b": never\n\n")
    script = Script(blocks=blocks, fault=Fault.SILENCE, after=len(known) + 1)
    async with pair() as both:
        both.fake.script(script)
        asked = await both.ask(streamed())
        had = b""
        while not had.endswith(b": behind\n\n"):
            had += await asked.piece()
        assert had == b"".join(blocks[:-1])
        assert (await both.story(asked)).state == "complete"
        call = await both.fake.call()
        assert not call.closed.is_set()
        relays = both.gateway.node.relays
        await until(lambda: not relays.running)
        assert relays.count("fake") == 1
        await asked.wire.aclose()
        with trio.fail_after(PATIENCE):
            await call.closed.wait()
        await until(lambda: relays.count("fake") == 0)


async def test_behind_the_formats_end_a_client_that_is_gone_ends_the_call() -> None:
    known = vendors.chat_blocks(vendors.Answer(("a", "b"), output_tokens=2))
    script = Script(blocks=(*known, b": never\n\n"), rate=20, fault=Fault.SILENCE, after=len(known))
    async with pair() as both:
        both.fake.script(script)
        asked = await both.ask(streamed())
        await asked.wire.aclose()
        assert (await both.story(asked)).state == "complete"
        with trio.fail_after(PATIENCE):
            await (await both.fake.call()).closed.wait()


# --- errors of the upstream -----------------------------------------------------------------------


CODES = {
    401: "unauthorized",
    403: "unauthorized",
    429: "rate-limited",
    500: "upstream-error",
    503: "overloaded",
    529: "overloaded",
}


@pytest.mark.parametrize("vendor", ["chat", "messages"])
async def test_an_error_of_the_upstream_arrives_to_the_byte(vendor: str) -> None:
    format, path, doubled, body = VENDORS[vendor]
    statuses = (400, 401, 403, 404, 413, 429, 500, 503, 529)
    async with pair(format=format) as both:
        for status in statuses:
            script = Script(status=status, retry_after="7" if status == 429 else "")
            ours = await both.ask(post(f"/relay/fake/{doubled}{path}", body(script)))
            directly = await both.ask_directly(post(f"/v1/{path}", body(script)))
            assert await ours.body() == await directly.body()
            assert ours.head.status == directly.head.status == status
            kept = [pair for pair in directly.head.headers if pair[0] != "connection"]
            assert set(kept) <= set(ours.head.headers)
            assert [name for name, _ in ours.head.headers].count("x-request-id") == 1
        node = both.gateway.node
        assert node.refused == {}
        await until(lambda: node.relays.count("fake") == 0)
        failures = node.upstreams.statistics()["fake"].failures
        assert +Counter(failures) == Counter(CODES.get(status, "rejected") for status in statuses)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.ERROR, "upstream-error"),
        (Fault.JSON, "malformed"),
        (Fault.UTF8, "malformed"),
        (Fault.UNTERMINATED, "interrupted"),
    ],
)
async def test_what_the_upstream_says_wrong_arrives_as_it_says_it(fault: Fault, code: str) -> None:
    script = Script(fault=fault)
    async with pair() as both:
        ours = await both.ask(streamed(script))
        directly = await both.ask_directly(post("/v1/chat/completions", chat(script, stream=True)))
        assert await ours.body() == await directly.body()
        story = await both.story(ours)
    assert story.error is not None
    assert story.error.code == code


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Fault.FIN, "interrupted"), (Fault.RESET, "interrupted"), (Fault.SILENCE, "silent")],
)
async def test_an_answer_that_breaks_off_breaks_off(fault: Fault, code: str) -> None:
    async with pair(silence=0.2) as both:
        asked = await both.ask(streamed(Script(fault=fault)))
        with pytest.raises(BROKEN):
            await asked.body()
        story = await both.story(asked)
        assert both.gateway.node.upstreams.statistics()["fake"].failures[code] == 1
    assert story.error is not None
    assert story.error.code == code


@pytest.mark.parametrize("fault", [Fault.FIN, Fault.RESET, Fault.SILENCE])
async def test_what_is_not_recorded_breaks_off_too(fault: Fault) -> None:
    async with pair(silence=0.2) as both:
        script = Script(fault=fault, headers={"content-type": "application/json"})
        asked = await both.ask(streamed(script))
        assert asked.head.header("location") is None
        with pytest.raises(BROKEN):
            await asked.body()
        failures = both.gateway.node.upstreams.statistics()["fake"].failures
        assert sum(failures.values()) == 1


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"max_tokens": 3}, "limit-tokens"),
        ({"max_bytes": 1024}, "limit-bytes"),
        ({"max_event_bytes": 1024}, "too-large"),
        ({"max_duration": 1.0}, "limit-duration"),
    ],
)
async def test_beyond_a_limit_the_stream_ends_and_the_client_sees_no_end(
    members: dict[str, Any], code: str
) -> None:
    blocks = tuple(vendors.chat_blocks(vendors.Answer(("a",) * 9)))
    if code == "too-large":
        blocks = (b"data: " + b"y" * 2000 + b"\n\n",)
    script = Script(blocks=blocks)
    if code == "limit-duration":
        script = Script(fault=Fault.SILENCE)
    async with pair(**members) as both:
        both.fake.script(script)
        asked = await both.ask(streamed())
        with pytest.raises(BROKEN):
            await asked.body()
        story = await both.story(asked)
        call = await both.fake.call()
        with trio.fail_after(PATIENCE):
            await call.over.wait()
    assert story.error is not None
    assert story.error.code == code


async def test_a_huge_event_is_neither_kept_nor_passed_on() -> None:
    async with pair() as both:
        asked = await both.ask(streamed(Script(fault=Fault.HUGE)))
        had: list[bytes] = []
        with pytest.raises(BROKEN):
            await asked.body(had)
        story = await both.story(asked)
    assert story.error is not None
    assert story.error.code == "too-large"
    assert sum(map(len, had)) < 3 * COPY_BYTES < HUGE_BYTES


async def test_an_answer_that_is_not_recorded_is_bounded_in_time() -> None:
    async with pair(max_duration=1.0, silence=60.0) as both:
        asked = await both.ask(streamed(Script(gzip=True, fault=Fault.SILENCE)))
        with pytest.raises(BROKEN):
            await asked.body()
        with trio.fail_after(PATIENCE):
            await (await both.fake.call()).closed.wait()


# --- no answer ------------------------------------------------------------------------------------


async def refused(both: Pair, raw: bytes | None = None) -> Response:
    """What the gateway itself says."""
    asked = await both.ask(raw or streamed())
    asked.head.body = await asked.body()
    assert asked.head.header("content-type") == "application/problem+json"
    assert KEY.encode() not in asked.head.body
    assert str(both.fake.port).encode() not in asked.head.body
    error = asked.head.json["error"]
    assert isinstance(error, dict)
    assert error["message"] == asked.head.detail
    return asked.head


async def test_an_upstream_that_refuses_is_502() -> None:
    async with (
        fake_upstream(listening=False) as fake,
        running(upstreams=(configured(fake),)) as gateway,
    ):
        answer = await refused(Pair(gateway, fake))
    assert answer.status == 502
    assert answer.json["reason"] == "refused"
    assert answer.header("x-should-retry") is None


async def test_an_upstream_that_does_not_answer_is_504() -> None:
    async with pair(silence=0.2) as both:
        answer = await refused(both, streamed(Script(fault=Fault.NO_ANSWER)))
    assert answer.status == 504
    assert answer.json["reason"] == "timeout"


async def test_an_answer_that_never_begins_is_504_however_busily_it_does_not() -> None:
    """Each of its bytes comes within ``silence``."""

    async def drip(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.05)

    async with trio.open_nursery() as nursery, fake_upstream(listening=False) as fake:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, drip, [listener])
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1"
        upstream = configured(fake, url=url, silence=60.0, max_duration=0.3)
        async with running(upstreams=(upstream,)) as gateway:
            answer = await refused(Pair(gateway, fake))
            relays = gateway.node.relays
            await until(lambda: relays.count("fake") == 0)
        nursery.cancel_scope.cancel()
    assert answer.status == 504
    assert answer.json["reason"] == "timeout"


async def test_redirects_are_not_followed_and_not_told() -> None:
    async with pair() as both:
        headers = {"location": "http://169.254.169.254/latest"}
        answer = await refused(both, streamed(Script(status=307, headers=headers)))
        assert len(both.fake.calls) == 1
    assert answer.status == 502
    assert answer.json["reason"] == "redirected"
    assert answer.header("x-should-retry") == "false"
    assert b"169.254" not in answer.body


async def test_a_certificate_that_nobody_knows_is_502(certificate: certificates.Files) -> None:
    async with fake_upstream(certificate=certificate) as fake:
        url = f"https://localhost:{fake.port}/v1"
        async with running(upstreams=(configured(fake, url=url),)) as gateway:
            answer = await refused(Pair(gateway, fake))
    assert answer.status == 502
    assert answer.json["reason"] == "tls"
    assert answer.header("x-should-retry") == "false"


# --- the client's connection ----------------------------------------------------------------------


async def test_a_client_that_breaks_off_ends_nothing() -> None:
    async with pair() as both:
        asked = await both.ask(streamed(Script(words=40, rate=200)))
        await asked.piece()
        await asked.wire.aclose()
        story = await both.story(asked)
        assert (await both.fake.call()).is_complete
    assert story.state == "complete"
    assert story.text == text_of(40)


async def test_a_client_that_breaks_off_ends_its_stream_where_that_is_wanted() -> None:
    async with pair(stop_with_client=True) as both:
        asked = await both.ask(streamed(Script(fault=Fault.SILENCE)))
        await asked.piece()
        await asked.wire.aclose()
        with trio.fail_after(1):
            await (await both.fake.call()).closed.wait()
        story = await both.story(asked)
    assert story.state == "stopped"


async def test_a_client_that_is_gone_before_the_answer_begins_ends_the_call() -> None:
    async with pair() as both:
        wire = await both.gateway.connect()
        await wire.send(streamed(Script(fault=Fault.NO_ANSWER)))
        call = await both.fake.call()
        assert both.gateway.node.relays.count("fake") == 1
        await wire.aclose()
        with trio.fail_after(PATIENCE):
            await call.closed.wait()
        await until(lambda: both.gateway.node.relays.count("fake") == 0)
        assert both.gateway.node.relays.statistics().opened["openai"] == 0


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("stops", [False, True])
async def test_whenever_clients_leave_nothing_of_them_is_left(stops: bool, version: str) -> None:
    streaming = chat(Script(words=8, rate=400, delay=0.005), stream=True)
    whole = chat(Script(delay=0.01))

    async def leave(both: Pair, number: int) -> None:
        wire = await both.gateway.connect()
        asked = whole if number % 4 == 3 else streaming
        await wire.send(post(CHAT_PATH, asked, version=version))
        await trio.sleep(number / 1000)
        await wire.aclose()

    async with pair(stop_with_client=stops) as both:
        relays = both.gateway.node.relays
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(leave, both, number)
        await until(lambda: relays.count("fake") == 0 and not relays.running)
        await until(lambda: relays.copies.bytes == 0)
        await until(lambda: all(call.over.is_set() for call in both.fake.calls))
        statistics = relays.statistics()
        ended = Counter(
            {word: count for words in statistics.ended.values() for word, count in words.items()}
        )
        assert set(+ended) <= ({"end", "stopped"} if stops else {"end"})
        assert ended.total() == statistics.opened["openai"]
        gc.collect()  # what is left of generators would warn now


@pytest.mark.parametrize("stops", [False, True])
async def test_a_client_that_does_not_read_is_cut_and_slows_nothing(stops: bool) -> None:
    block = b"data: " + b"x" * 16_000 + b"\n\n"
    script = Script(blocks=(block,) * 250)
    async with pair(format=Format.SSE, paths=("POST any",), stop_with_client=stops) as both:
        both.fake.script(script)
        wire = await both.gateway.connect(receive_buffer=4096)
        await wire.send(post("/relay/fake/any", {}))
        head = await wire.head()
        story = await both.story(Asked(wire, head))
        assert both.gateway.node.relays.statistics().cut_clients == 1
        with pytest.raises(BROKEN):
            await Asked(wire, head).body()
        assert both.gateway.node.relays.copies.bytes == 0
        call = await both.fake.call()
        assert call.is_complete is not stops
    assert story.state == ("stopped" if stops else "complete")
    assert (story.events == 251) is not stops  # the end is one


async def test_a_copy_that_was_cut_holds_nothing() -> None:
    copies = Copies()
    copy = Copy(copies)
    assert copy.put(b"x" * COPY_BYTES)
    assert copies.bytes == COPY_BYTES
    assert not copy.put(b"x")
    assert (copies.bytes, copies.cut) == (0, 1)
    with pytest.raises(Failure):
        await copy.take()
    assert copy.put(b"x")  # nobody is there to miss it
    assert copies.bytes == 0


async def test_beyond_the_bound_for_all_those_are_cut_who_are_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.relay.copies.COPIES_BYTES", 3 * FAIR_BYTES)
    copies = Copies()
    slow, quick = Copy(copies), Copy(copies)
    assert slow.put(b"x" * 3 * FAIR_BYTES)
    assert quick.put(b"y" * FAIR_BYTES)
    assert not slow.put(b"x")
    assert copies.bytes == FAIR_BYTES
    assert await quick.take() == b"y" * FAIR_BYTES
    assert copies.bytes == 0


async def test_a_copy_gives_what_it_has_before_its_end_and_before_a_cut() -> None:
    for state in (Copy.State.OVER, Copy.State.CUT):
        copy = Copy(Copies())
        for _ in range(3):
            copy.put(b"abc")
        copy.end(state)
        assert await copy.take() == b"abcabcabc"
        if state is Copy.State.OVER:
            assert await copy.take() == b""
        else:
            with pytest.raises(Failure):
                await copy.take()


async def test_a_copy_gives_as_much_at_a_time_as_goes_out_in_time() -> None:
    copies = Copies()
    copy = Copy(copies)
    for _ in range(9):
        copy.put(b"x" * 10_000)
    copy.put(b"y" * 100_000)
    copy.end(Copy.State.OVER)
    sizes = [len(await copy.take()) for _ in range(4)]
    assert sizes == [60_000, 30_000, 100_000, 0]
    assert copies.bytes == 0


async def test_a_stop_breaks_the_clients_connection_and_closes_the_upstreams() -> None:
    async with pair() as both:
        asked = await both.ask(streamed(Script(fault=Fault.SILENCE)))
        await asked.piece()
        answer = await both.gateway.ask(
            request("DELETE", f"/streams/{asked.head.header('stream-id')}")
        )
        assert answer.status == 200
        assert answer.json["state"] == "stopped"
        with trio.fail_after(1):
            await (await both.fake.call()).closed.wait()
        with pytest.raises(BROKEN):
            await asked.body()
        assert (await both.story(asked)).state == "stopped"


async def test_a_channel_that_somebody_else_has_ended_breaks_the_clients_connection() -> None:
    async with pair() as both:
        asked = await both.ask(streamed(Script(words=500, rate=100)))
        await asked.piece()
        [made] = both.gateway.node.relays.running.values()
        made.lose()
        with pytest.raises(BROKEN):
            await asked.body()


async def test_a_stream_of_the_drop_in_is_viewed_and_stopped_at_another_node(
    redis_port: int, new_prefix: str
) -> None:
    shared: dict[str, Any] = {
        "redis": f"redis://127.0.0.1:{redis_port}",
        "redis_prefix": new_prefix,
    }
    async with fake_upstream() as fake:
        upstreams = (configured(fake),)
        async with (
            running(upstreams=upstreams, **shared) as near,
            running(upstreams=upstreams, **shared) as far,
        ):
            await until(lambda: near.node.bus.ready and far.node.bus.ready)
            both = Pair(near, fake)
            asked = await both.ask(streamed(Script(words=3, fault=Fault.SILENCE, after=3)))
            viewer = await far.open(f"{asked.head.header('location')}?lastEventId=earliest")
            await viewer.opened()
            while (await viewer.event()).event != "token":
                pass
            id = asked.head.header("stream-id")
            answer = await far.ask(request("DELETE", f"/streams/{id}"))
            assert answer.json == {"id": id, "state": "stopped"}
            with pytest.raises(BROKEN):
                await asked.body()
            last = await viewer.event("token")
            assert (last.event, last.json["reason"]) == ("complete", "stopped")


# --- the node -------------------------------------------------------------------------------------


async def test_a_node_that_leaves_begins_no_more_and_ends_what_is_left_at_the_end() -> None:
    async with pair() as both:
        node = both.gateway.node
        asked = await both.ask(streamed(Script(fault=Fault.SILENCE)))
        await asked.piece()
        node.leaving = True
        answer = await refused(both)
        assert answer.status == 503
        assert answer.json["reason"] == "draining"
        assert answer.header("retry-after") is not None
        await node.relays.leave(0.05)
        with pytest.raises(BROKEN):
            await asked.body()
        story = await both.story(asked)
        assert len(both.fake.calls) == 1
    assert story.error is not None
    assert story.error.code == "producer-lost"


async def test_what_cannot_be_recorded_is_refused_before_its_first_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def open(*_: object) -> None:
        raise Unavailable("The registry cannot be reached.")

    async with pair() as both:
        monkeypatch.setattr(both.gateway.node.relays.registry, "open", open)
        answer = await refused(both, streamed(Script(fault=Fault.SILENCE)))
        assert answer.status == 503
        with trio.fail_after(PATIENCE):
            await (await both.fake.call()).closed.wait()
        assert both.gateway.node.relays.count("fake") == 0


async def test_a_node_that_is_cut_off_spends_nothing_on_what_it_cannot_record() -> None:
    async with pair(settings={"redis": "redis://127.0.0.1:1"}) as both:
        answer = await refused(both)
        assert answer.status == 503
        plain = await both.ask(post(CHAT_PATH, chat()))
        assert plain.head.status == 200
        await plain.body()
        assert len(both.fake.calls) == 1


async def test_a_body_that_is_too_large_is_told_by_which_setting() -> None:
    async with pair(settings={"max_body_bytes": 1024}) as both:
        answer = await refused(both, post(CHAT_PATH, {"x": "y" * 2000}))
        assert answer.status == 413
        assert "max_body_bytes" in answer.detail
        error = answer.json["error"]
        assert isinstance(error, dict)
        assert error["type"] == "request_too_large"
        assert both.fake.calls == []


async def test_a_node_that_is_full_says_so_as_the_vendors_clients_read_it() -> None:
    async with pair(settings={"max_connections": 1}) as both:
        other = await both.gateway.connect()
        await other.send(request("POST", "/publish/a", body=b"x"))
        assert (await other.response()).status == 202  # and so it is counted
        answer = await refused(both)
        assert answer.status == 503
        assert both.fake.calls == []
        await other.aclose()


# --- who may, and what ----------------------------------------------------------------------------

HOSTILE = [
    "/relay/fake/../../etc/passwd",
    "/relay/fake/..%2f..%2fetc",
    "/relay/fake/%2e%2e/chat/completions",
    "/relay/fake/chat/completions/../../models",
    "/relay/fake//chat/completions",
    "/relay/fake/@evil.test/chat/completions",
    "/relay/fake/http://evil.test/chat/completions",
    "/relay/fake/chat%0d%0aX-Evil:%20yes/completions",
    "/relay/fake/chat/completions%3fx",
    "/relay/fake/files",
    "/relay/http:%2f%2fevil.test/chat/completions",
    "/relay/169.254.169.254/chat/completions",
    "/relay/",
    "/relay",
    "/relay//fake/chat/completions",
]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_nobody_chooses_where_a_call_goes(version: str) -> None:
    async with pair() as both:
        for target in HOSTILE:
            asked = await both.gateway.ask(post(target, chat(), version=version))
            assert asked.status in (400, 403, 404), target
            assert both.fake.calls == []


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_host_of_the_clients_choice_is_none_of_the_upstreams(version: str) -> None:
    async with pair() as both:
        target = "http://evil.test/relay/fake/chat/completions"
        headers = (b"X-Forwarded-Host: evil.test\r\n", b"Forwarded: host=evil.test\r\n")
        asked = await both.gateway.ask(post(target, chat(), *headers, version=version))
        assert asked.status == 200
        [call] = both.fake.calls
    assert call.target == "/v1/chat/completions"
    assert call.headers["host"] == f"127.0.0.1:{both.fake.port}"
    assert "evil" not in str(call.headers)


GATEWAYS_KEY = "sgk_for-tests-of-the-drop-in"
KEYED: dict[str, Any] = {
    "jwt_key": SECRET,
    "token_cookie": "session",
    "api_keys": (
        ApiKey(
            name="service",
            sha256=hashlib.sha256(GATEWAYS_KEY.encode()).hexdigest(),
        ),
    ),
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("way", ["bearer", "x-api-key", "api key", "query", "cookie"])
async def test_the_gateways_credential_opens_it_and_goes_no_further(way: str, version: str) -> None:
    mine = token("ann")
    target, line = CHAT_PATH, bearer(mine) + b"Cookie: other=1\r\n"
    match way:
        case "x-api-key":
            line = f"x-api-key: {mine}\r\n".encode()
        case "api key":
            line = f"x-api-key: {GATEWAYS_KEY}\r\n".encode()
        case "query":
            target, line = f"{CHAT_PATH}?a=b&token={mine}", b"X: y\r\n"
        case "cookie":
            line = b"Origin: http://gateway.test\r\nCookie: session=%b\r\n" % mine.encode()
    settings = KEYED
    async with pair(settings=settings, allow=("users", "keys")) as both:
        raw = post(
            target,
            chat(),
            line,
            b"Cookie: other=1\r\n" if way != "cookie" else b"",
            version=version,
        )
        asked = await both.gateway.ask(raw)
        assert asked.status == 200, asked.body
        [call] = both.fake.calls
    assert call.headers["authorization"] == f"Bearer {KEY}"
    seen = f"{call.target} {call.headers}"
    assert mine not in seen
    assert GATEWAYS_KEY not in seen
    assert not {"cookie", "x-api-key", "origin"} & set(call.headers)


@pytest.mark.parametrize(
    ("credential", "name", "status", "kind"),
    [
        ("", "fake", 401, "authentication_error"),
        ("nonsense", "fake", 401, "authentication_error"),
        (token("bob"), "fake", 403, "permission_error"),
        (token("bob"), "other", 403, "permission_error"),
        (token("boss", admin=True), "other", 404, "not_found_error"),
    ],
)
async def test_whoever_may_not_is_told_as_the_vendors_clients_read_it(
    credential: str, name: str, status: int, kind: str
) -> None:
    async with pair(settings=KEYED, allow=("user:ann",)) as both:
        line = bearer(credential) if credential else b""
        answer = await refused(both, post(f"/relay/{name}/chat/completions", chat(), line))
        assert both.fake.calls == []
    assert answer.status == status
    assert answer.json["error"]["type"] == kind  # type: ignore[index]
    assert (answer.header("www-authenticate") is not None) == (status == 401)


async def test_a_user_has_only_so_many_calls_at_a_time_streams_or_not() -> None:
    async with pair(settings=KEYED, allow=("users",), max_streams_per_user=2) as both:
        ann, bob = bearer(token("ann")), bearer(token("bob"))
        silent = Script(fault=Fault.SILENCE)
        stream = await both.ask(post(CHAT_PATH, chat(silent, stream=True), ann))
        plain = await both.gateway.connect()
        await plain.send(post(CHAT_PATH, chat(Script(fault=Fault.NO_ANSWER)), ann))
        await both.fake.call(1)
        answer = await refused(both, post(CHAT_PATH, chat(), ann))
        assert answer.status == 429
        assert answer.header("retry-after") == "1"
        other = await both.ask(post(CHAT_PATH, chat(), bob))
        assert other.head.status == 200
        await other.body()
        await plain.aclose()
        node = both.gateway.node
        await until(lambda: node.relays.count("fake", "ann") == 1)
        again = await both.ask(post(CHAT_PATH, chat(), ann))
        assert again.head.status == 200
        await again.body()
        await node.relays.stop(str(stream.head.header("stream-id")))


async def test_an_upstream_has_only_so_many_calls_at_a_time() -> None:
    async with pair(max_streams=1) as both:
        asked = await both.ask(streamed(Script(fault=Fault.SILENCE)))
        answer = await refused(both)
        assert answer.status == 503
        await both.gateway.node.relays.stop(str(asked.head.header("stream-id")))


# --- other ways in --------------------------------------------------------------------------------


async def test_http_1_0_gets_the_same_bytes_and_a_reset_where_they_have_no_end() -> None:
    async with pair(silence=0.2) as both:
        whole = Script(words=9)
        wire = await both.gateway.connect()
        await wire.send(post(CHAT_PATH, chat(whole, stream=True), version="1.0"))
        head = await wire.head()
        directly = await both.ask_directly(post("/v1/chat/completions", chat(whole, stream=True)))
        assert head.header("transfer-encoding") is None
        assert head.header("x-request-id") == "req_fake"
        assert await wire.to_end() == await directly.body()
        assert (await both.story(Asked(wire, head))).text == text_of(9)
        cut = await both.gateway.connect()
        broken = Script(fault=Fault.FIN)
        await cut.send(post(CHAT_PATH, chat(broken, stream=True), version="1.0"))
        assert (await cut.head()).status == 200
        with pytest.raises(trio.BrokenResourceError):
            await cut.to_end()


async def test_http_1_0_gets_errors_to_the_byte_and_leaves_as_it_likes() -> None:
    async with pair() as both:
        answer = await both.gateway.ask(post(CHAT_PATH, chat(Script(status=529)), version="1.0"))
        assert answer.status == 529
        assert answer.body == b'{"error": {"message": "Something else."}}'
        assert answer.header("x-request-id") == "req_fake"
        assert both.gateway.node.refused == {}
        wire = await both.gateway.connect()
        await wire.send(
            post(CHAT_PATH, chat(Script(words=40, rate=200), stream=True), version="1.0")
        )
        head = await wire.head()
        await wire.aclose()
        assert (await both.story(Asked(wire, head))).text == text_of(40)
        [relays] = [both.gateway.node.relays]
        await until(lambda: relays.count("fake") == 0)


async def test_a_path_that_is_escaped_is_the_same_path() -> None:
    async with pair() as both:
        answer = await both.gateway.ask(post("/%72elay/fake/ch%61t/completions", chat()))
        assert answer.status == 200
        [call] = both.fake.calls
    assert call.target == "/v1/chat/completions"


async def test_over_tls_it_is_the_same(certificate: certificates.Files) -> None:
    async with fake_upstream() as fake:
        upstreams = (configured(fake, silence=0.2),)
        async with running_over_tls(certificate, upstreams=upstreams) as gateway:
            both = Pair(gateway, fake)
            script = Script(words=9)
            asked = await both.ask(streamed(script))
            directly = await both.ask_directly(
                post("/v1/chat/completions", chat(script, stream=True))
            )
            assert await asked.body() == await directly.body()
            await asked.wire.send(streamed(Script(fault=Fault.FIN)))
            cut = Asked(asked.wire, await asked.wire.head())
            with pytest.raises(BROKEN):
                await cut.body()
            left = await both.ask(streamed(Script(words=40, rate=200)))
            await left.wire.aclose()
            assert (await both.story(left)).text == text_of(40)


async def test_pages_of_named_origins_may_use_the_vendors_clients() -> None:
    page = b"Origin: https://app.example\r\n"
    wanted = (
        b"Access-Control-Request-Method: POST\r\n"
        b"Access-Control-Request-Headers: authorization,content-type,x-api-key,x-stainless-lang,"
        b"anthropic-version,anthropic-dangerous-direct-browser-access,x-evil\r\n"
    )
    async with pair(settings={"cors_origins": "https://app.example"}) as both:
        asked = await both.gateway.ask(request("OPTIONS", CHAT_PATH, page, wanted))
        elsewhere = await both.gateway.ask(request("OPTIONS", "/events/a", page, wanted))
        answer = await both.ask(post(CHAT_PATH, chat(stream=True), page))
        await answer.body()
    allowed = str(asked.header("access-control-allow-headers")).lower().split(", ")
    assert {"authorization", "x-api-key", "x-stainless-lang", "anthropic-version"} < set(allowed)
    assert "anthropic-dangerous-direct-browser-access" in allowed
    assert "x-evil" not in allowed
    assert "x-api-key" not in str(elsewhere.header("access-control-allow-headers"))
    assert answer.head.header("access-control-allow-origin") == "https://app.example"
    exposed = str(answer.head.header("access-control-expose-headers"))
    assert {"Location", "Stream-Id", "X-Request-Id"} < set(exposed.split(", "))
    assert {"Retry-After", "Retry-After-Ms", "X-Should-Retry"} < set(exposed.split(", "))


async def test_other_methods_are_not_passed_on() -> None:
    async with pair() as both:
        for method in ("HEAD", "GET", "DELETE"):
            answer = await both.gateway.ask(
                request(method, "/relay/fake/chat/completions"), head_only=method == "HEAD"
            )
            assert answer.status == 403
        assert (await both.gateway.ask(request("GET", "/relay/fake"))).status == 405
        allowed = await both.gateway.ask(request("OPTIONS", CHAT_PATH))
        assert allowed.status == 204
        assert both.fake.calls == []
