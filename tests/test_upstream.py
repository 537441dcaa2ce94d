"""Calls of upstreams: where they go, what of them fails and how, and that nothing leaks.

All but the demo is called over real connections, at the fake upstream of `upstreams`.
"""

import gc
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import certificates
import httpx
import pytest
import trio
import vendors
from hypothesis import given, settings
from hypothesis import strategies as st
from process import child
from trio.testing import MockClock
from upstreams import CHAT, HUGE_BYTES, FakeUpstream, Fault, Script, chat, fake_upstream, text_of

from gateway import logs
from gateway.config import Config, Format, Upstream
from gateway.errors import BadRequest, Forbidden
from gateway.relay import demo, upstream
from gateway.relay.events import FAILURES, Failure
from gateway.relay.reading import Reader, Reading
from gateway.relay.transport import READ_BYTES
from gateway.relay.upstream import Asked, Caller, ask, below, check_path, passed_back
from gateway.sse import ServerSentEvent

SECRET = "sk-do-not-show-this"
PROMPT = "what nobody else is to read"

SILENCE = 0.25
"""Seconds; of tests that wait for it."""


def configured(url: str, **members: Any) -> Upstream:
    known: dict[str, Any] = {"name": "fake", "url": url, "format": Format.OPENAI, "silence": 5.0}
    return Upstream(**(known | members))


@asynccontextmanager
async def calling(fake: FakeUpstream, **members: Any) -> AsyncIterator[Caller]:
    headers = {"Authorization": f"Bearer {SECRET}"}
    caller = Caller(configured(fake.url, **({"headers": headers} | members)))
    try:
        yield caller
    finally:
        await caller.aclose()
        gc.collect()  # what is left of generators would warn now


def asking(caller: Caller, script: Script | None = None) -> Asked:
    return ask(caller.upstream, json.dumps(chat(script)).encode())


async def events_of(
    caller: Caller, script: Script | None = None, *, idempotent: bool = False
) -> list[ServerSentEvent]:
    found: list[ServerSentEvent] = []
    with trio.fail_after(10):
        async with caller.call(asking(caller, script), idempotent=idempotent) as answer:
            reader = Reader(answer.receive, caller.upstream)
            while (some := await reader.events()) is not None:
                found += some
    return found


async def failure_of(
    caller: Caller, script: Script | None = None, *, idempotent: bool = False
) -> Failure:
    with pytest.raises(Failure) as caught:
        await events_of(caller, script, idempotent=idempotent)
    return caught.value


# --- what goes well -------------------------------------------------------------------------------


async def test_a_call_asks_for_a_stream_and_gets_the_events_as_they_were() -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        events = await events_of(caller, Script(words=7))
        [call] = fake.calls
    answer = vendors.Answer(tuple(vendor_words(7)), output_tokens=7, model="fake-1")
    blocks = vendors.chat_blocks(answer)
    assert [f"data: {event.data}\n\n".encode() for event in events] == blocks
    assert call.method == "POST"
    assert call.target == "/v1/chat/completions"
    assert call.json["stream"] is True
    assert call.json["stream_options"] == {"include_usage": True}
    assert call.headers["authorization"] == f"Bearer {SECRET}"
    assert call.headers["accept"] == "text/event-stream"
    assert call.headers["accept-encoding"] == "identity"
    assert call.headers["content-type"] == "application/json"
    assert call.headers["host"] == f"127.0.0.1:{fake.port}"


def vendor_words(count: int) -> list[str]:
    return [text_of(n + 1)[len(text_of(n)) :] for n in range(count)]


@pytest.mark.parametrize("cut", [1, 7, 1000])
async def test_events_are_the_same_however_their_bytes_come(cut: int) -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        whole = await events_of(caller, Script(words=4))
        assert await events_of(caller, Script(words=4, cut=cut)) == whole


async def test_a_connection_is_used_again_after_a_whole_answer() -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        for _ in range(3):
            await events_of(caller)
    assert [call.connection for call in fake.calls] == [1, 1, 1]


async def test_a_call_that_is_left_closes_its_connection_at_once() -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        with trio.fail_after(5):
            async with caller.call(asking(caller, Script(words=1000, rate=100))) as answer:
                assert await answer.receive()
            await fake.calls[0].closed.wait()
        assert not fake.calls[0].is_complete


async def test_a_call_that_is_cancelled_closes_its_connection_at_once() -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(events_of, caller, Script(words=1000, rate=100))
            await fake.call()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await fake.calls[0].closed.wait()


async def test_no_call_that_is_cancelled_takes_a_place_with_it() -> None:
    """There is room for one call at a time; each is left at another moment."""
    async with fake_upstream() as fake, calling(fake, max_streams=1) as caller:
        for script in (
            Script(fault=Fault.NO_ANSWER),
            Script(words=1000, rate=1000),
            Script(fault=Fault.SILENCE),
            Script(words=1000, cut=1),
        ):
            for delay in (0, 0.001, 0.01):
                with trio.move_on_after(delay):
                    await events_of(caller, script)
        assert len(await events_of(caller)) == 9
    async with fake_upstream() as fake, calling(fake, max_streams=1) as caller:
        for turns in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(events_of, caller, Script(words=20))
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert len(await events_of(caller)) == 9


async def test_others_have_their_turn_while_much_is_there_at_once() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    chunks = 4 * READ_BYTES // len(b"1\r\nx\r\n")
    block = b": " + b"x" * chunks + b"\n\ndata: x\n\n"
    async with fake_upstream() as fake, calling(fake) as caller:
        fake.script(Script(blocks=(block,), cut=1))
        async with caller.call(asking(caller)) as answer:
            with trio.fail_after(5):
                await fake.calls[0].over.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(others)
                assert await Reader(answer.receive, caller.upstream).events()
                nursery.cancel_scope.cancel()
    assert turns >= 2


async def test_an_upstream_may_speak_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = certificates.make(tmp_path, "trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.cert))
    async with fake_upstream(certificate=certificate) as fake, calling(fake) as caller:
        assert len(await events_of(caller, Script(words=3))) == 7
        async with caller.call(asking(caller, Script(words=1000, rate=100))) as answer:
            assert await answer.receive()
        with trio.fail_after(5):
            await fake.calls[1].closed.wait()


# --- what fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "status"),
    [
        (Script(fault=Fault.NO_ANSWER), "timeout", None),
        (Script(fault=Fault.SILENCE), "silent", None),
        (Script(fault=Fault.FIN), "interrupted", None),
        (Script(fault=Fault.RESET), "interrupted", None),
        (Script(fault=Fault.UTF8), "malformed", None),
        (Script(fault=Fault.HUGE), "too-large", None),
        (Script(fault=Fault.HTML), "malformed", 200),
        (Script(gzip=True), "malformed", 200),
        (Script(status=204), "malformed", 204),
        (Script(status=302, headers={"location": "http://elsewhere/"}), "redirected", 302),
        (Script(status=307, headers={"location": "/v1/other"}), "redirected", 307),
        (Script(status=400), "rejected", 400),
        (Script(status=401), "unauthorized", 401),
        (Script(status=403), "unauthorized", 403),
        (Script(status=404), "rejected", 404),
        (Script(status=408), "timeout", 408),
        (Script(status=413), "rejected", 413),
        (Script(status=429), "rate-limited", 429),
        (Script(status=500), "upstream-error", 500),
        (Script(status=502), "upstream-error", 502),
        (Script(status=503), "overloaded", 503),
        (Script(status=529), "overloaded", 529),
    ],
    ids=lambda value: f"{value.fault}-{value.status}" if isinstance(value, Script) else None,
)
async def test_what_an_upstream_does_wrong_has_a_code(
    script: Script, code: str, status: int | None
) -> None:
    async with fake_upstream() as fake, calling(fake, silence=SILENCE, retries=0) as caller:
        failure = await failure_of(caller, script)
        assert (failure.code, failure.status) == (code, status)
        assert len(fake.calls) == 1
        assert len(await events_of(caller)) == 9, "the next call is none the worse for it"


async def test_events_before_a_fault_are_given_out_first() -> None:
    faults = (Fault.FIN, Fault.UTF8, Fault.HUGE, Fault.SILENCE)
    async with fake_upstream() as fake, calling(fake, silence=SILENCE) as caller:
        for fault in faults:
            script = Script(words=9, fault=fault, after=4)
            async with caller.call(asking(caller, script)) as answer:
                reader = Reader(answer.receive, caller.upstream)
                found = await _until_failure(reader)
                assert found == 4, fault


async def _until_failure(reader: Reader) -> int:
    """How many events came before it."""
    found = 0
    try:
        while some := await reader.events():
            found += len(some)
    except Failure:
        return found
    raise AssertionError("nothing failed")


async def test_an_answer_without_its_terminator_just_ends() -> None:
    """It is for who knows the format to say that this is no end."""
    async with fake_upstream() as fake, calling(fake) as caller:
        assert len(await events_of(caller, Script(fault=Fault.UNTERMINATED))) == 3


async def test_nobody_listens() -> None:
    async with fake_upstream(listening=False) as fake, calling(fake, retries=0) as caller:
        assert (await failure_of(caller)).code == "refused"


async def test_a_host_that_nobody_knows_is_refused() -> None:
    caller = Caller(configured("https://upstream.invalid/v1", retries=0))
    assert (await failure_of(caller)).code == "refused"
    await caller.aclose()


async def test_a_certificate_that_nobody_trusts(tmp_path: Path) -> None:
    certificate = certificates.make(tmp_path, "stranger")
    async with fake_upstream(certificate=certificate) as fake, calling(fake) as caller:
        assert (await failure_of(caller)).code == "tls"
        assert not fake.calls
    assert caller.statistics().calls == 1


@pytest.mark.parametrize("hosts", ["DNS:other.test", "DNS:127.0.0.1", "IP:127.0.0.2"])
async def test_a_certificate_of_another_host(
    hosts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certificates.make(tmp_path, "trusted", hosts)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.cert))
    async with fake_upstream(certificate=certificate) as fake, calling(fake) as caller:
        assert (await failure_of(caller)).code == "tls"
        assert not fake.calls


@pytest.mark.parametrize(
    ("answer", "code"), [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "tls"), (b"", "refused")], ids=ascii
)
async def test_a_server_that_speaks_no_tls_or_hangs_up_in_the_handshake(
    answer: bytes, code: str
) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, hang_up, [listener])
        port = listener.socket.getsockname()[1]
        caller = Caller(configured(f"https://127.0.0.1:{port}/v1", retries=0))
        assert (await failure_of(caller)).code == code
        await caller.aclose()
        nursery.cancel_scope.cancel()


async def test_a_server_that_never_shakes_hands_is_out_of_time() -> None:
    async with fake_upstream() as fake:
        sock = trio.socket.socket()
        await sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        url = f"https://127.0.0.1:{sock.getsockname()[1]}/v1"
        caller = Caller(configured(url, retries=0, connect_timeout=SILENCE))
        assert (await failure_of(caller)).code == "timeout"
        await caller.aclose()
        sock.close()
        assert not fake.calls


def test_every_code_has_its_sentence() -> None:
    for status in range(201, 600):
        failure = upstream._failure_of(answering(status))
        assert failure is not None
        assert failure.code in FAILURES


def answering(status: int, **headers: str) -> upstream.Answer:
    return upstream.Answer(httpx.Response(status, headers=headers, stream=httpx.ByteStream(b"")))


# --- another try ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_busy_upstream_is_asked_again_when_it_says(status: int) -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        fake.script(*[Script(status=status, retry_after="0")] * 2)
        assert len(await events_of(caller)) == 9
        assert len(fake.calls) == 3
        assert len({call.body for call in fake.calls}) == 1
        statistics = caller.statistics()
        assert (statistics.calls, statistics.retries) == (3, 2)
        assert sum(statistics.failures.values()) == 2


async def test_no_more_often_than_configured() -> None:
    async with fake_upstream() as fake, calling(fake, retries=2) as caller:
        fake.script(*[Script(status=429, retry_after="0")] * 5)
        assert (await failure_of(caller)).code == "rate-limited"
        assert len(fake.calls) == 3


@pytest.mark.parametrize("said", ["31", "999999999999", "date"])
async def test_nobody_waits_longer_than_configured(said: str) -> None:
    if said == "date":
        at = datetime.now(UTC) + timedelta(minutes=5)
        said = at.strftime("%a, %d %b %Y %H:%M:%S GMT")
    async with fake_upstream() as fake, calling(fake, retry_wait=30.0) as caller:
        fake.script(Script(status=429, retry_after=said))
        assert (await failure_of(caller)).code == "rate-limited"
        assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("7", 7.0), ("0", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), ("-1", None)],
)
def test_retry_after_is_seconds_or_a_date(said: str, seconds: float | None) -> None:
    assert upstream._seconds(said) == seconds


def test_without_it_the_wait_doubles_up_to_a_bound() -> None:
    waits = [upstream._wait_of(answering(429), attempt) for attempt in range(10)]
    for attempt, wait in enumerate(waits):
        assert 0.75 <= wait / min(0.5 * 2**attempt, 8.0) <= 1.25


async def test_a_connection_that_was_refused_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstream, "BACK_OFF_FIRST", 0.02)
    async with fake_upstream(listening=False) as fake, calling(fake, retries=10) as caller:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(events_of, caller)
            while not caller.statistics().retries:  # noqa: ASYNC110  # nobody tells of it
                await trio.sleep(0.001)
            fake.listen()
        assert len(fake.calls) == 1
        assert fake.calls[0].is_complete


@pytest.mark.parametrize("status", [500, 502, 408])
async def test_a_failure_that_may_have_cost_something_is_not_repeated(status: int) -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        fake.script(Script(status=status, retry_after="0"))
        assert (await failure_of(caller)).status == status
        assert len(fake.calls) == 1


@pytest.mark.parametrize("status", [500, 502, 408])
async def test_unless_the_request_is_idempotent(status: int) -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        fake.script(Script(status=status, retry_after="0"))
        assert len(await events_of(caller, idempotent=True)) == 9
        assert len(fake.calls) == 2


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 422])
async def test_what_would_fail_again_is_never_repeated(status: int) -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        fake.script(Script(status=status, retry_after="0"))
        assert (await failure_of(caller, idempotent=True)).status == status
        assert len(fake.calls) == 1


@pytest.mark.parametrize("fault", [Fault.FIN, Fault.RESET, Fault.UTF8])
async def test_nothing_is_repeated_once_an_answer_has_begun(fault: Fault) -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        await failure_of(caller, Script(fault=fault, after=1), idempotent=True)
        assert len(fake.calls) == 1


# --- secrets, and what of a client goes on --------------------------------------------------------


async def test_nothing_of_an_upstream_is_in_the_log_or_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logs.quieten()
    scripts = [Script(status=status) for status in (401, 429, 500, 302)]
    scripts += [Script(fault=fault) for fault in (Fault.FIN, Fault.RESET, Fault.HTML, Fault.UTF8)]
    with caplog.at_level(logging.DEBUG):
        async with fake_upstream() as fake, calling(fake, retries=0) as caller:
            url = fake.url
            for script in scripts:
                fake.script(script)
                with pytest.raises(Failure) as caught:
                    await events_of(caller)
                told = f"{caught.value!r} {caught.value} {caught.value.told()!r}"
                for hidden in (SECRET, str(fake.port), "Incorrect API key", "127.0.0.1"):
                    assert hidden not in told
                assert caught.value.__suppress_context__ or caught.value.__context__ is None
            await events_of(caller)
    for hidden in (SECRET, url, "café", "Incorrect API key"):
        assert hidden not in caplog.text


async def test_a_clients_credentials_and_cookies_go_nowhere() -> None:
    sent = [
        ("host", "gateway.example"),
        ("authorization", "Bearer of-the-client"),
        ("x-api-key", "of-the-client"),
        ("cookie", "gateway_token=of-the-client"),
        ("proxy-authorization", "Basic of-the-client"),
        ("x-forwarded-for", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("openai-organization", "org-of-the-client"),
        ("openai-project", "of-the-client"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("accept-encoding", "gzip"),
        ("content-length", "999"),
        ("content-type", "application/json"),
        ("user-agent", "OpenAI/Python 1.0"),
        ("x-stainless-lang", "python"),
        ("idempotency-key", "1"),
    ]
    body = json.dumps(chat()).encode()
    query = "token=of-the-client&beta=true&%74oken=of-the-client"
    async with fake_upstream() as fake, calling(fake) as caller:
        async with caller.forward("POST", "chat/completions", query, sent, body) as answer:
            assert answer.status == 200
            while await answer.receive():
                pass
        [call] = fake.calls
    assert call.target == "/v1/chat/completions?beta=true"
    assert call.body == body
    assert call.headers == {
        "host": f"127.0.0.1:{fake.port}",
        "content-type": "application/json",
        "user-agent": "OpenAI/Python 1.0",
        "x-stainless-lang": "python",
        "idempotency-key": "1",
        "accept-encoding": "identity",
        "authorization": f"Bearer {SECRET}",
        "content-length": str(len(body)),
    }


async def test_a_header_that_is_configured_goes_over_a_clients() -> None:
    headers = {"Anthropic-Version": "2023-06-01", "User-Agent": "ours"}
    sent = [("anthropic-version", "theirs"), ("user-agent", "theirs")]
    async with fake_upstream() as fake, calling(fake, headers=headers) as caller:
        async with caller.forward("POST", "chat/completions", "", sent, b"{}") as answer:
            assert answer.status == 200
        [call] = fake.calls
    assert [v for n, v in call.raw_headers if n.lower() == b"anthropic-version"] == [b"2023-06-01"]
    assert [v for n, v in call.raw_headers if n.lower() == b"user-agent"] == [b"ours"]


async def test_cookies_of_an_upstream_are_neither_kept_nor_given_back() -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        fake.default = Script(headers={"set-cookie": "session=1; Path=/", "x-limit": "7"})
        for _ in range(2):
            async with caller.forward("GET", "models", "", [], b"") as answer:
                back = dict(passed_back(answer.headers))
                while await answer.receive():
                    pass
        await events_of(caller)
    assert b"set-cookie" not in back
    assert all("cookie" not in call.headers for call in fake.calls)


def test_headers_of_a_connection_and_orders_to_others_do_not_come_back() -> None:
    came = [
        *((b"Content-Type", b"text/event-stream"), (b"Transfer-Encoding", b"chunked")),
        *((b"Connection", b"keep-alive, X-Hop"), (b"X-Hop", b"1"), (b"Keep-Alive", b"5")),
        *((b"request-id", b"req_1"), (b"Set-Cookie", b"a=b"), (b"Location", b"http://internal")),
        *((b"Clear-Site-Data", b'"*"'), (b"Refresh", b"0; url=http://evil.test")),
        *((b"X-Accel-Redirect", b"/internal"), (b"X-Accel-Buffering", b"yes")),
        *((b"X-Sendfile", b"/etc/passwd"), (b"WWW-Authenticate", b"Basic")),
    ]
    assert passed_back(came) == [
        (b"Content-Type", b"text/event-stream"),
        (b"request-id", b"req_1"),
    ]


# --- the drop-in's calls --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_errors_are_passed_on_to_the_byte_and_never_repeated(status: int) -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        fake.script(Script(status=status, retry_after="0"))
        body = b""
        async with caller.forward("POST", "chat/completions", "", [], b"{}") as answer:
            while piece := await answer.receive():
                body += piece
        assert (answer.status, body) == (status, vendors.openai_error(status))
        assert answer.header("retry-after") == "0"
        assert answer.is_over
        assert len(fake.calls) == 1


async def test_the_bytes_of_a_stream_are_those_of_the_upstream() -> None:
    body = json.dumps(chat(Script(words=30, cut=11), stream=True)).encode()
    async with fake_upstream() as fake, calling(fake) as caller:
        got = b""
        async with caller.forward("POST", "chat/completions", "", [], body) as answer:
            assert answer.is_event_stream
            while piece := await answer.receive():
                got += piece
    answered = vendors.Answer(tuple(vendor_words(30)), output_tokens=30, model="fake-1")
    assert got == b"".join(CHAT.blocks(answered, False))


async def test_a_redirect_is_followed_by_nobody() -> None:
    async with fake_upstream() as other, fake_upstream() as fake, calling(fake) as caller:
        fake.script(Script(status=307, headers={"location": f"{other.url}/chat/completions"}))
        with pytest.raises(Failure) as caught:
            async with caller.forward("POST", "chat/completions", "", [], b"{}"):
                pass
        assert caught.value.code == "redirected"
        assert not other.calls


@pytest.mark.parametrize(
    "path",
    [
        *("/chat/completions", "chat//completions", "chat/completions/", "//elsewhere/x"),
        *("../chat/completions", "chat/../../admin", "./chat/completions", "chat/./completions"),
        *("http://elsewhere/x", "https:elsewhere", "chat%2fcompletions", "models/%2e%2e"),
        *("chat\\completions", "models/a?b=c", "models/a#b", "models/a b", "models/\x00"),
        *("models/a\r\nX-Header: y", "models/é", "models/" + "a" * 600, "@elsewhere/", "models/.."),
    ],
    ids=ascii,
)
async def test_no_path_leads_anywhere_else(path: str) -> None:
    async with fake_upstream() as fake, calling(fake) as caller:
        for method in ("GET", "POST"):
            with pytest.raises((BadRequest, Forbidden)):
                async with caller.forward(method, path, "", [], b""):
                    pass
        assert fake.connections == 0


@pytest.mark.parametrize(
    ("method", "path", "may"),
    [
        ("POST", "chat/completions", True),
        ("POST", "responses", True),
        ("GET", "models", True),
        ("GET", "models/ft:gpt-4o:org::id", True),
        ("GET", "models/a/b", False),
        ("GET", "chat/completions", False),
        ("DELETE", "models/x", False),
        ("GET", "responses/resp_1", False),
        ("GET", "files", False),
        ("POST", "", False),
        ("post", "responses", False),
        ("POST", "chat/completions/x", False),
    ],
)
def test_only_what_is_listed_may_be_called(method: str, path: str, may: bool) -> None:
    openai = configured("https://host/v1")
    if may:
        check_path(openai, method, path)
    else:
        with pytest.raises(Forbidden, match=r"its paths are POST chat/completions, "):
            check_path(openai, method, path)


def test_anthropics_clients_repeat_the_version() -> None:
    anthropic = configured("https://host/v1", format=Format.ANTHROPIC)
    assert below(anthropic, "v1/messages") == "messages"
    assert below(anthropic, "messages") == "messages"
    assert below(configured("https://host/v1"), "v1/models") == "v1/models"


@pytest.mark.parametrize("query", ["a b", "a\r\nX: y", "a#b", "é", "a" * 5000, 'a="b"'], ids=ascii)
async def test_what_is_no_query_is_refused(query: str) -> None:
    caller = Caller(configured("http://127.0.0.1:1/v1"))
    with pytest.raises(BadRequest):
        async with caller.forward("GET", "models", query, [], b""):
            pass
    await caller.aclose()


# --- requests of token streams --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "request_", "path", "body"),
    [
        (
            Format.OPENAI,
            {"model": "m", "messages": [], "stream_options": {"x": 1}},
            "chat/completions",
            {"stream": True, "stream_options": {"include_usage": True, "x": 1}},
        ),
        (Format.OPENAI, {"model": "m", "input": "Hi"}, "responses", {"stream": True}),
        (Format.ANTHROPIC, {"model": "m", "messages": []}, "messages", {"stream": True}),
        (Format.SSE, {"prompt": "Hi"}, "", {}),
    ],
)
def test_a_request_is_sent_where_its_kind_is_answered_as_a_stream(
    format: Format, request_: dict[str, object], path: str, body: dict[str, object]
) -> None:
    asked = ask(configured("https://host/v1", format=format), json.dumps(request_).encode())
    assert asked.path == path
    assert json.loads(asked.body) == request_ | body
    assert asked.model == request_.get("model")


@pytest.mark.parametrize(
    ("request_", "path", "says"),
    [
        (b"{", None, "is not JSON"),
        (b"[" * 100_000, None, "is not JSON"),
        (b'{"a": "\xff"}', None, "is not JSON"),
        (b"[]", None, "is a JSON object"),
        (b'{"model": 7, "input": ""}', None, "model of a request is text"),
        (b'{"model": "m"}', None, "either messages"),
        (b'{"messages": [], "input": ""}', None, "either messages"),
        (b'{"messages": [], "stream": false}', None, "stream is true"),
        (b'{"messages": [], "n": 2}', None, "n is 1"),
        (b'{"messages": [], "stream_options": 7}', None, "stream_options is an object"),
        (b'{"input": "", "background": true}', None, "background is left out"),
        (b'{"input": ""}', "embeddings", "paths that stream are chat/completions and responses"),
        (b'{"input": ""}', "../x", "paths that stream are"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_cannot_be_streamed_is_refused(request_: bytes, path: str | None, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        ask(configured("https://host/v1"), request_, path)


async def test_an_upstream_of_events_is_called_at_its_url_with_what_it_is_sent() -> None:
    async with fake_upstream() as fake:
        sse = configured(f"{fake.url}/generate", format=Format.SSE)
        caller = Caller(sse)
        async with caller.call(ask(sse, b'{"prompt":  "Hi"}')) as answer:
            events = await Reader(answer.receive, sse).events()
        await caller.aclose()
    assert events
    assert fake.calls[0].target == "/v1/generate"
    assert fake.calls[0].body == b'{"prompt":  "Hi"}'


# --- the fake upstream itself ---


async def test_the_fake_upstream_is_also_a_program() -> None:
    fake = str(Path(__file__).with_name("upstreams.py"))
    async with child(sys.executable, fake) as program:
        url = (await program.until(r"http://\S+"))[0]
        caller = Caller(configured(url))
        assert len(await events_of(caller, Script(words=20, rate=500))) == 24
        assert (await failure_of(caller, Script(status=401))).code == "unauthorized"
        await caller.aclose()
        async with httpx.AsyncClient(trust_env=False) as client:
            told = (await client.get(url.replace("/v1", "/_statistics"))).json()
    assert told == {"calls": 2, "open": 0, "complete": 2, "closed": 0, "connections": 2}


# --- reading --------------------------------------------------------------------------------------

BLOCKS = b"".join(
    vendors.chat_blocks(vendors.Answer(("caf\u00e9 ", "\u2615", "!"), output_tokens=3))
)


def read(pieces: list[bytes], **limits: int) -> tuple[list[ServerSentEvent], str | None]:
    """The events of ``pieces``, and the code that ended them."""
    reading = Reading(**({"max_event_bytes": 1000, "max_bytes": 100_000} | limits))
    found: list[ServerSentEvent] = []
    for piece in pieces:
        try:
            found += reading.receive_data(piece)
        except Failure as failure:
            with pytest.raises(Failure, match=failure.code):
                reading.receive_data(b"data: x\n\n")
            return found, failure.code
    try:
        reading.receive_data(b"")
    except Failure as failure:
        return found, failure.code
    return found, None


@given(st.lists(st.integers(0, len(BLOCKS)), max_size=8), st.sampled_from([b"", b"\xff", b"\xc3("]))
@settings(deadline=None)
def test_no_cut_changes_what_is_read(cuts: list[int], broken: bytes) -> None:
    text = BLOCKS[:700] + broken + BLOCKS[700:]
    at = sorted({0, *cuts, len(text)})
    pieces = [text[begin:end] for begin, end in pairwise(at)]
    assert read(pieces) == read([text])
    assert read([text])[1] == ("malformed" if broken else None)


@given(st.integers(0, 2000), st.integers(1, 50))
@settings(deadline=None)
def test_a_limit_of_bytes_holds_to_the_byte(limit: int, size: int) -> None:
    pieces = [BLOCKS[n : n + size] for n in range(0, len(BLOCKS), size)]
    events, code = read(pieces, max_bytes=limit)
    assert events == read([BLOCKS[:limit]])[0]
    assert code == ("limit-bytes" if limit < len(BLOCKS) else None)


@pytest.mark.parametrize("event", [b"data: " + b"x" * 5000 + b"\n\n", b"data: xxx\n" * 500 + b"\n"])
def test_an_event_has_a_limit(event: bytes) -> None:
    before = b"data: before\n\n"
    for pieces in ([before + event], [before, *(bytes([byte]) for byte in event)]):
        events, code = read(pieces)
        assert [each.data for each in events] == ["before"]
        assert code == "too-large"


async def test_an_endless_event_is_not_held_and_its_connection_is_closed() -> None:
    async with fake_upstream() as fake, calling(fake, max_event_bytes=64 * 1024) as caller:
        assert (await failure_of(caller, Script(fault=Fault.HUGE))).code == "too-large"
        with trio.fail_after(5):
            await fake.calls[0].closed.wait()
        assert fake.calls[0].blocks * 256 * 1024 < HUGE_BYTES


async def test_an_answer_is_no_longer_than_it_may_be() -> None:
    async with fake_upstream() as fake, calling(fake, max_bytes=2000) as caller:
        assert (await failure_of(caller, Script(words=100))).code == "limit-bytes"


# --- the demo -------------------------------------------------------------------------------------


async def _demo(message: str, clock_at: list[float]) -> str:
    caller = demo.caller()
    request = {"messages": [{"role": "user", "content": message}]}
    text = ""
    async with caller.call(ask(demo.UPSTREAM, json.dumps(request).encode())) as answer:
        reader = Reader(answer.receive, demo.UPSTREAM)
        while some := await reader.events():
            clock_at.append(trio.current_time())
            for event in some:
                if event.data != "[DONE]":
                    chunk = json.loads(event.data)
                    text += "".join(c["delta"].get("content", "") for c in chunk["choices"])
        assert event.data == "[DONE]"
        assert chunk["usage"]["completion_tokens"] == len(demo.tokens_of(text))
    return text


@pytest.mark.parametrize("message", ["Hello", "May I reload?", "tabs", "STOP!", "python", "error?"])
async def test_the_demo_talks_at_a_pace_of_what_was_asked(
    message: str, autojump_clock: MockClock
) -> None:
    at: list[float] = []
    text = await _demo(message, at)
    assert text == demo.answer_to(message)
    assert 10 < at[-1] - at[0] < 30
    assert len(at) / (at[-1] - at[0]) == pytest.approx(demo.TOKENS_PER_SECOND, rel=0.05)


def test_the_demo_quotes_no_more_than_a_little() -> None:
    long = "error " + "x" * 100_000
    assert len(demo.answer_to(long)) < 4000
    most = max(len(demo.tokens_of(demo.answer_to(m))) for m in ("", "stop", "code", long))
    assert most < demo.UPSTREAM.max_tokens


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"[]", b"{}", b'{"messages": []}', b'{"messages": 7}', b"[" * 100_000, b"\xff"),
        b'{"messages": [{"content": 7}]}',
        b'{"messages": [{"content": [{"type": "text", "text": 7}]}]}',
        b'{"messages": [{"content": "x"}], "stream_options": [7]}',
    ],
    ids=lambda value: ascii(value)[:40],
)
async def test_the_demo_refuses_what_is_no_request(body: bytes) -> None:
    caller = demo.caller()
    async with caller.forward("POST", "chat/completions", "", [], body) as answer:
        assert answer.status == 400
        assert json.loads(await answer.receive())["error"]["param"] == "messages"


async def test_the_demo_answers_at_once_where_no_stream_is_asked_for() -> None:
    caller = demo.caller()
    body = json.dumps({"messages": [{"content": [{"type": "text", "text": "tabs"}]}]}).encode()
    async with caller.forward("POST", "chat/completions", "", [], body) as answer:
        told = json.loads(await answer.receive())
    assert told["choices"][0]["message"]["content"] == demo.answer_to("tabs")


async def test_the_demo_reads_spaces_as_quickly_as_anything() -> None:
    """One body of them would else hold up everybody for hours."""
    caller = demo.caller()
    body = json.dumps({"messages": [{"content": " " * 100_000 + "tabs"}]}).encode()
    begun = time.perf_counter()
    async with caller.forward("POST", "chat/completions", "", [], body) as answer:
        told = json.loads(await answer.receive())
    assert time.perf_counter() - begun < 1
    assert told["usage"]["prompt_tokens"] == 1


async def test_the_demo_stops_when_it_is_told_to(autojump_clock: MockClock) -> None:
    at: list[float] = []
    with trio.move_on_after(3) as scope:
        await _demo("Hello", at)
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(scope.deadline)
    gc.collect()


def test_the_demo_is_there_where_everybody_may_do_everything() -> None:
    open_node = Config(demo=True)
    assert demo.is_offered(open_node)
    assert not demo.is_offered(replace(open_node, demo=False))
    assert not demo.is_offered(replace(open_node, jwt_key="k" * 32))
