"""The vendors' own clients, with nothing changed but where they ask and by which key.

What each is given straight by the fake upstream and what through the gateway must be equal: its
results, its exceptions, and each byte of the bodies, which a raw connection has as well.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
import openai
import pytest
import trio
from documents import REFERENCE
from node_js import JAVASCRIPT, NODE_JS
from process import environment
from running import Gateway, Wire, request, running
from tokens import SECRET, token
from upstreams import FakeUpstream, Fault, Script, fake_upstream, prompt, text_of

from gateway.config import Format, Upstream

KEY = "sk-of-the-upstream-alone"
"""Which the clients do not have."""

WEATHER = {"city": {"type": "string"}}
STATUSES = (400, 401, 403, 404, 429, 500, 529)

TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": WEATHER}},
}


@dataclass
class Place:
    """Where a client asks: straight, or through the gateway."""

    openai: str
    anthropic: str
    key: str


@dataclass
class Sides:
    gateway: Gateway
    fake: FakeUpstream

    @property
    def straight(self) -> Place:
        return Place(self.fake.url, self.fake.origin, "any")

    @property
    def through(self) -> Place:
        base = f"http://127.0.0.1:{self.gateway.port}/relay"
        return Place(f"{base}/openai", f"{base}/anthropic", token("ann"))


@asynccontextmanager
async def sides(**members: Any) -> AsyncIterator[Sides]:
    async with fake_upstream() as fake:
        known: dict[str, Any] = {"url": fake.url, "silence": 5.0, "allow": ("users",)} | members
        upstreams = (
            Upstream(
                "openai", format=Format.OPENAI, headers={"Authorization": f"Bearer {KEY}"}, **known
            ),
            Upstream("anthropic", format=Format.ANTHROPIC, headers={"x-api-key": KEY}, **known),
        )
        async with running(upstreams=upstreams, jwt_key=SECRET) as gateway:
            yield Sides(gateway, fake)


@dataclass
class Recorder:
    """What came over the connections of a client, byte by byte."""

    sent: list[tuple[str, str, bytes]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def begin(self, asked: httpx.Request) -> int:
        self.sent.append((asked.method, asked.url.path, asked.content))
        self.bodies.append(b"")
        return len(self.bodies) - 1


class _Body(httpx.SyncByteStream):
    def __init__(self, recorder: Recorder, number: int, stream: httpx.SyncByteStream) -> None:
        self._recorder, self._number, self._stream = recorder, number, stream

    def __iter__(self) -> Iterator[bytes]:
        for data in self._stream:
            self._recorder.bodies[self._number] += data
            yield data

    def close(self) -> None:
        self._stream.close()


class Recording(httpx.HTTPTransport):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__(trust_env=False, verify=False)  # no TLS, and its roots take time
        self._recorder = recorder

    def handle_request(self, asked: httpx.Request) -> httpx.Response:
        number = self._recorder.begin(asked)
        answer = super().handle_request(asked)
        assert isinstance(answer.stream, httpx.SyncByteStream)
        answer.stream = _Body(self._recorder, number, answer.stream)
        return answer


def with_openai(place: Place, recorder: Recorder, case: Callable[[Any], Any]) -> Any:
    with (
        httpx.Client(transport=Recording(recorder)) as http,
        openai.OpenAI(
            api_key=place.key, base_url=place.openai, http_client=http, max_retries=0
        ) as client,
    ):
        return outcome(case, client)


def with_anthropic(place: Place, recorder: Recorder, case: Callable[[Any], Any]) -> Any:
    with (
        httpx.Client(transport=Recording(recorder)) as http,
        anthropic.Anthropic(
            api_key=place.key, base_url=place.anthropic, http_client=http, max_retries=0
        ) as client,
    ):
        return outcome(case, client)


def outcome(case: Callable[[Any], Any], client: Any) -> Any:
    """What a case returns, or all that its exception says."""
    try:
        return case(client)
    except (openai.APIError, anthropic.APIError, httpx.HTTPError) as error:
        return said(error)


def said(error: Exception) -> dict[str, Any]:
    told: dict[str, Any] = {"type": type(error).__name__, "text": str(error)}
    for name in ("status_code", "body", "code", "request_id"):
        told[name] = getattr(error, name, None)
    if isinstance(error, openai.APIStatusError | anthropic.APIStatusError):
        told["retry after"] = error.response.headers.get("retry-after")
    return told


def user(script: Script | None = None) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt(script) if script else "When does it open?"}]


def dumped(values: Any) -> list[Any]:
    return [value.model_dump() for value in values]


# --- OpenAI ---------------------------------------------------------------------------------------


def chat_streamed(script: Script | None = None, **more: Any) -> Callable[[Any], Any]:
    def case(client: openai.OpenAI) -> Any:
        messages: Any = user(script)
        return dumped(
            client.chat.completions.create(model="m", messages=messages, stream=True, **more)
        )

    return case


def chat_whole(script: Script | None = None, **more: Any) -> Callable[[Any], Any]:
    def case(client: openai.OpenAI) -> Any:
        messages: Any = user(script)
        return client.chat.completions.create(model="m", messages=messages, **more).model_dump()

    return case


def chat_helper(client: openai.OpenAI) -> Any:
    messages: Any = user(Script(words=12))
    with client.chat.completions.stream(model="m", messages=messages) as stream:
        kinds = [event.type for event in stream]
        return kinds, stream.get_final_completion().model_dump()


def responses_streamed(script: Script) -> Callable[[Any], Any]:
    return lambda client: dumped(
        client.responses.create(model="m", input=prompt(script), stream=True)
    )


def responses_helper(client: openai.OpenAI) -> Any:
    with client.responses.stream(model="m", input=prompt(Script(words=6))) as stream:
        kinds = [event.type for event in stream]
        return kinds, stream.get_final_response().output_text


def raw_headers(client: openai.OpenAI) -> Any:
    messages: Any = user(Script(headers={"x-request-id": "req_theirs", "x-ratelimit-limit": "9"}))
    raw = client.chat.completions.with_raw_response.create(model="m", messages=messages)
    names = ("x-request-id", "x-ratelimit-limit", "content-type")
    return raw.request_id, [raw.headers[name] for name in names], raw.parse().model_dump()


def raw_headers_of_a_stream(client: openai.OpenAI) -> Any:
    messages: Any = user(Script(headers={"x-request-id": "req_theirs"}))
    with client.chat.completions.with_streaming_response.create(
        model="m", messages=messages, stream=True
    ) as raw:
        return raw.request_id, raw.headers["content-type"], list(raw.iter_lines())


OPENAI: dict[str, Callable[[Any], Any]] = {
    "chat": chat_whole(),
    "chat, streamed": chat_streamed(Script(words=20, cut=5)),
    "chat, streamed with usage": chat_streamed(stream_options={"include_usage": True}),
    "chat, streamed by the helper": chat_helper,
    "tools": chat_whole(Script(tool=True), tools=[TOOL]),
    "tools, streamed": chat_streamed(Script(tool=True), tools=[TOOL]),
    "responses": lambda client: client.responses.create(model="m", input="Hi").model_dump(),
    "responses, streamed": responses_streamed(Script(words=20)),
    "responses with a tool, streamed": responses_streamed(Script(tool=True)),
    "responses, streamed by the helper": responses_helper,
    "models": lambda client: dumped(client.models.list()),
    "raw headers": raw_headers,
    "raw headers of a stream": raw_headers_of_a_stream,
    "an error in the middle": chat_streamed(Script(fault=Fault.ERROR)),
    "an error in the middle of a response": responses_streamed(Script(fault=Fault.ERROR)),
    "broken JSON": lambda client: _decode_error(chat_streamed(Script(fault=Fault.JSON)), client),
    "a cut": chat_streamed(Script(fault=Fault.FIN)),
    "no terminator": chat_streamed(Script(fault=Fault.UNTERMINATED)),
    **{
        f"{status}{', streamed' * streams}": (chat_streamed if streams else chat_whole)(
            Script(status=status, retry_after="3" if status == 429 else "")
        )
        for status in STATUSES
        for streams in (False, True)
    },
}


def _decode_error(case: Callable[[Any], Any], client: Any) -> Any:
    with pytest.raises(json.JSONDecodeError) as caught:
        case(client)
    return str(caught.value)


# --- Anthropic ------------------------------------------------------------------------------------


def messages_whole(script: Script | None = None, **more: Any) -> Callable[[Any], Any]:
    def case(client: anthropic.Anthropic) -> Any:
        messages: Any = user(script)
        made = client.messages.create(model="m", max_tokens=9, messages=messages, **more)
        return made.model_dump(), made._request_id

    return case


def messages_streamed(script: Script | None = None, **more: Any) -> Callable[[Any], Any]:
    def case(client: anthropic.Anthropic) -> Any:
        messages: Any = user(script)
        return dumped(
            client.messages.create(model="m", max_tokens=9, messages=messages, stream=True, **more)
        )

    return case


def messages_helper(script: Script) -> Callable[[Any], Any]:
    def case(client: anthropic.Anthropic) -> Any:
        messages: Any = user(script)
        with client.messages.stream(model="m", max_tokens=9, messages=messages) as stream:
            texts = list(stream.text_stream)
            return texts, stream.get_final_message().model_dump(), stream.request_id

    return case


def count_tokens(client: anthropic.Anthropic) -> Any:
    messages: Any = user(Script(body='{"input_tokens": 12}'))
    return client.messages.count_tokens(model="m", messages=messages).input_tokens


def raw_message(client: anthropic.Anthropic) -> Any:
    messages: Any = user(Script(headers={"request-id": "req_theirs"}))
    raw = client.messages.with_raw_response.create(model="m", max_tokens=9, messages=messages)
    return raw.headers["request-id"], raw.request_id, raw.parse().model_dump()


ANTHROPIC_TOOL = {"name": "get_weather", "input_schema": {"type": "object", "properties": WEATHER}}

ANTHROPIC: dict[str, Callable[[Any], Any]] = {
    "messages": messages_whole(Script(headers={"request-id": "req_theirs"})),
    "messages, streamed": messages_streamed(Script(words=20, cut=5)),
    "messages, streamed by the helper": messages_helper(Script(words=20)),
    "a tool": messages_whole(Script(tool=True), tools=[ANTHROPIC_TOOL]),
    "a tool, streamed": messages_streamed(Script(tool=True), tools=[ANTHROPIC_TOOL]),
    "a tool, streamed by the helper": messages_helper(Script(tool=True)),
    "count tokens": count_tokens,
    "raw headers": raw_message,
    "an error in the middle": messages_streamed(Script(fault=Fault.ERROR)),
    "an error in the middle of the helper": messages_helper(Script(fault=Fault.ERROR)),
    "a cut": messages_streamed(Script(fault=Fault.FIN)),
    **{
        f"{status}{', streamed' * streams}": (messages_streamed if streams else messages_whole)(
            Script(status=status, retry_after="3" if status == 429 else "")
        )
        for status in STATUSES
        for streams in (False, True)
    },
}

KEY_IN = {"openai": "authorization", "anthropic": "x-api-key"}
KEY_AS = {"openai": f"Bearer {KEY}", "anthropic": KEY}


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
async def test_python_clients_get_what_they_get_directly(vendor: str) -> None:
    run = with_openai if vendor == "openai" else with_anthropic
    cases = OPENAI if vendor == "openai" else ANTHROPIC
    async with sides() as both:
        for name, case in cases.items():
            straight, through = Recorder(), Recorder()
            expected = await trio.to_thread.run_sync(run, both.straight, straight, case)
            got = await trio.to_thread.run_sync(run, both.through, through, case)
            assert got == expected, name
            assert through.bodies == straight.bodies, name
            await same_as_raw(both, straight, name)
        keys = [call.headers.get(KEY_IN[vendor]) for call in both.fake.calls]
        assert keys[1::3] == [KEY_AS[vendor]] * len(cases)
        assert both.through.key not in str([call.headers for call in both.fake.calls])


async def same_as_raw(both: Sides, recorder: Recorder, name: str) -> None:
    """A raw connection to the upstream has the bytes that the recorder says."""
    for (method, path, content), body in zip(recorder.sent, recorder.bodies, strict=True):
        wire = Wire(await trio.open_tcp_stream("127.0.0.1", both.fake.port))
        kind = b"Content-Type: application/json\r\n"
        raw = request(method, path, kind, body=content if method == "POST" else None)
        await wire.send(raw)
        had = b""
        head = await wire.head()
        try:
            if (length := head.header("content-length")) is not None:
                had = await wire._exactly(int(length))
            else:
                while piece := await wire.piece():
                    had += piece
        except EOFError:
            assert "a cut" in name
            # Of the block that was begun last all that came is there.
            had += wire._input
        assert had == body, name
        await wire.aclose()


# --- on an event loop -----------------------------------------------------------------------------


async def chat_on_a_loop(place: Place) -> Any:
    messages: Any = user(Script(words=20, cut=5))
    async with openai.AsyncOpenAI(
        api_key=place.key, base_url=place.openai, max_retries=0
    ) as client:
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
        chunks = [chunk.model_dump() async for chunk in stream]
        whole = await client.responses.create(model="m", input="Hi")
        refused: Any = user(Script(status=429, retry_after="3"))
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="m", messages=refused, stream=True)
        faulty: Any = user(Script(fault=Fault.ERROR))
        broken = await client.chat.completions.create(model="m", messages=faulty, stream=True)
        with pytest.raises(openai.APIError) as middle:
            await _all_of(broken)
    return chunks, whole.model_dump(), said(caught.value), said(middle.value)


async def messages_on_a_loop(place: Place) -> Any:
    messages: Any = user(Script(words=20, cut=5))
    async with anthropic.AsyncAnthropic(
        api_key=place.key, base_url=place.anthropic, max_retries=0
    ) as client:
        async with client.messages.stream(model="m", max_tokens=9, messages=messages) as stream:
            texts = [text async for text in stream.text_stream]
            final = (await stream.get_final_message()).model_dump()
        refused: Any = user(Script(status=529))
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(model="m", max_tokens=9, messages=refused)
    return texts, final, said(caught.value)


async def _all_of(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("case", [chat_on_a_loop, messages_on_a_loop], ids=["openai", "anthropic"])
async def test_clients_on_an_event_loop_get_what_they_get_directly(
    case: Callable[[Place], Any],
) -> None:
    async with sides() as both:
        expected = await trio.to_thread.run_sync(asyncio.run, case(both.straight))
        assert await trio.to_thread.run_sync(asyncio.run, case(both.through)) == expected


# --- refusals of the gateway ----------------------------------------------------------------------


def refusal(place: Place, base: str = "", **more: Any) -> Any:
    """What both clients raise: they must agree."""
    wanted: Any = user()
    told = []
    with openai.OpenAI(
        api_key=place.key, base_url=place.openai + base, max_retries=0, **more
    ) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="m", messages=wanted)
        told.append((type(caught.value).__name__, caught.value.message))
    with anthropic.Anthropic(
        api_key=place.key, base_url=place.anthropic + base, max_retries=0, **more
    ) as other:
        with pytest.raises(anthropic.APIStatusError) as thrown:
            other.messages.create(model="m", max_tokens=9, messages=wanted)
        told.append((type(thrown.value).__name__, thrown.value.message))
    assert told[0][0] == told[1][0]
    return caught.value


async def refused(both: Sides, key: str = "", base: str = "") -> openai.APIStatusError:
    place = both.through
    place = Place(place.openai, place.anthropic, key or place.key)
    error: openai.APIStatusError = await trio.to_thread.run_sync(refusal, place, base)
    return error


async def test_refusals_of_the_gateway_are_the_exceptions_that_clients_know() -> None:
    async with sides() as both:
        nobody = await refused(both, "nonsense")
        assert isinstance(nobody, openai.AuthenticationError)
        assert "This is no JSON Web Token" in nobody.message
        boss = token("boss", admin=True)
        assert isinstance(await refused(both, boss, "-not"), openai.NotFoundError)
        both.gateway.node.leaving = True
        gone = await refused(both)
        assert isinstance(gone, openai.InternalServerError)
        assert gone.status_code == 503
        assert gone.response.headers["retry-after"] == "2"
        assert both.fake.calls == []


async def test_who_is_not_granted_an_upstream_is_denied_permission() -> None:
    async with sides(allow=()) as both:
        assert isinstance(await refused(both), openai.PermissionDeniedError)
        assert both.fake.calls == []


async def test_who_has_too_many_streams_is_told_when_to_come_back() -> None:
    async with sides(max_streams_per_user=1) as both:
        with (
            both.gateway.node.relays.holding("openai", "ann"),
            both.gateway.node.relays.holding("anthropic", "ann"),
        ):
            error = await refused(both)
        assert isinstance(error, openai.RateLimitError)
        assert error.response.headers["retry-after"] == "1"


async def test_clients_come_back_when_the_upstream_says_so() -> None:
    def again(place: Place) -> tuple[float, str | None]:
        wanted: Any = user()
        with openai.OpenAI(api_key=place.key, base_url=place.openai, max_retries=1) as client:
            start = time.monotonic()
            made = client.chat.completions.create(model="m", messages=wanted)
            return time.monotonic() - start, made.choices[0].message.content

    async with sides() as both:
        both.fake.script(Script(status=429, retry_after="0.6"), Script(words=5))
        seconds, text = await trio.to_thread.run_sync(again, both.through)
    assert text == text_of(5)
    assert seconds >= 0.6  # of its own accord it would have waited for half a second, at most


# --- JavaScript -----------------------------------------------------------------------------------


async def node_js(place: Place) -> Any:
    scripts = {
        "long": Script(words=20, cut=5),
        "tool": Script(tool=True),
        "error": Script(fault=Fault.ERROR),
        "cut": Script(fault=Fault.FIN),
        "named": Script(headers={"x-request-id": "req_theirs", "request-id": "req_theirs"}),
        "tokens": Script(body='{"input_tokens": 12}'),
        **{str(n): Script(status=n, retry_after="3" * (n == 429)) for n in STATUSES},
    }
    given = {
        "openai": place.openai,
        "anthropic": place.anthropic,
        "key": place.key,
        "scripts": {name: prompt(script) for name, script in scripts.items()},
    }
    done = await trio.run_process(
        [NODE_JS, str(JAVASCRIPT / "sdks.mjs")],
        stdin=json.dumps(given).encode(),
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    return json.loads(done.stdout)


async def test_javascript_clients_get_what_they_get_directly() -> None:
    async with sides() as both:
        expected = await node_js(both.straight)
        got = await node_js(both.through)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == value, name
    assert expected["openai chat, streamed"]["value"][0]["object"] == "chat.completion.chunk"
    assert expected["openai 400"]["bytes"] != expected["openai 401"]["bytes"]
    assert expected["anthropic 429"]["error"]["type"] == "RateLimitError"


async def test_javascript_clients_say_what_the_gateway_refuses() -> None:
    async with sides() as both:
        place = both.through
        told = await node_js(Place(place.openai, place.anthropic, "nonsense"))
        assert both.fake.calls == []
    for name in ("openai chat", "openai chat, streamed", "anthropic message, streamed"):
        assert told[name]["error"]["type"] == "AuthenticationError"
        assert "This is no JSON Web Token" in told[name]["error"]["message"]


# --- as documented --------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
@pytest.mark.parametrize("language", ["python", "javascript"])
async def test_what_is_documented_runs_as_it_stands_there(vendor: str, language: str) -> None:
    mark = f"drop-in for {vendor} in {language}"
    kind = "python" if language == "python" else "js"
    found = re.search(rf"<!-- {mark} -->\n```{kind}\n(.*?)```\n<!-- /{mark} -->", REFERENCE, re.S)
    assert found is not None
    command = [sys.executable, "-W", "error", "-c", found[1]]
    if language == "javascript":
        command = [NODE_JS, "--input-type=module", "-e", found[1]]
    async with sides() as both:
        both.fake.default = Script(words=40)
        where = {"GATEWAY_URL": f"http://127.0.0.1:{both.gateway.port}"}
        done = await trio.run_process(
            command,
            capture_stdout=True,
            capture_stderr=True,
            cwd=JAVASCRIPT,  # where the packages are
            env=environment(**where, GATEWAY_TOKEN=both.through.key, PYTHONIOENCODING="utf-8"),
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.decode() == text_of(40)
        assert both.gateway.node.relays.statistics().opened[vendor] == 1
