"""The command line, in this process and, where signals and pipes matter, in one of its own."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import scripted
import trio
from click.testing import CliRunner, Result
from near import Near, near
from scripted import NO_CONTENT, STREAM

from gateway.cli import MAX_LINE_BYTES, READ_BYTES, main
from gateway.config import Config
from gateway.settings import SETTINGS, load

TAKEN = scripted.answer("200 OK", "application/x-ndjson", b'{"id":"5-0"}\n')


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test sets; a proxy of the machine's would be asked for 127.0.0.1 as well."""
    for name in os.environ:
        if name.startswith("GATEWAY_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def run(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, arguments, input=stdin)


async def run_beside(*arguments: str, stdin: bytes = b"") -> Result:
    """The same in a thread, while this one serves."""
    return await trio.to_thread.run_sync(partial(run, *arguments, stdin=stdin))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """What ``gateway serve`` hands to the server."""
    configs: list[Config] = []
    monkeypatch.setitem(sys.modules, "gateway.server", SimpleNamespace(run=configs.append))
    return configs


def test_serve_runs_the_server_with_flags_over_variables(
    served: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_KEEPALIVE", "3")
    monkeypatch.setenv("GATEWAY_RETRY", "3")
    result = run("serve", "--keepalive", "4", "--no-demo", "--bind", "[::1]:0")
    assert result.exit_code == 0
    assert served == [Config(bind="[::1]:0", keepalive=4.0, retry=3.0, demo=False)]


@pytest.mark.parametrize("command", ["serve", "config"])
def test_a_setting_that_cannot_be_used_is_one_line_on_stderr_and_exit_code_2(
    command: str, served: list[Config]
) -> None:
    result = run(command, "--retry", "soon")
    assert (result.exit_code, result.stdout, served) == (2, "", [])
    assert result.stderr == (
        "gateway: retry is 'soon' (flag --retry), but must be a number of seconds"
        " from 0.1 to 3600.\n"
    )


def test_every_setting_has_a_flag_and_the_help_says_why() -> None:
    words = run("serve", "--help").output.split()
    for setting in SETTINGS.values():
        assert setting.flag in words or setting.is_secret
    assert "--jwt-key" not in words
    assert "the HTML standard's advice" in " ".join(words)


def test_config_shows_each_value_with_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_BACKLOG", "7")
    lines = run("config", "--policy", "latest").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(SETTINGS)
    assert len({line.index("#") for line in lines}) == 1, "the sources stand below each other"
    told = [" ".join(line.split()) for line in lines]
    assert 'policy = "latest" # flag --policy' in told
    assert "backlog = 7 # variable GATEWAY_BACKLOG" in told
    assert "demo = true # default" in told


def test_what_config_prints_is_a_file_that_gives_the_same_config(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        'node_id = "caf\u00e9 \\"1\\""\n[[channel]]\nmatch = "a.*"\npolicy = "catch-up"\n'
        '[[channel]]\nmatch = "b"\npublic = true\n',
        encoding="utf-8",
    )
    printed = tmp_path / "printed.toml"
    printed.write_text(run("config", "--config", str(file)).stdout, encoding="utf-8")
    config = load({}, {}, file).config
    assert len(config.channels) == 2
    assert load({}, {}, printed).config == config


def document(request: bytes) -> dict[str, str]:
    """The one event that a request publishes."""
    assert request.startswith(b"POST /publish HTTP/1.1\r\n")
    event: dict[str, str] = json.loads(request.partition(b"\r\n\r\n")[2])
    return event


async def test_publish_posts_the_data_and_prints_the_id(nursery: trio.Nursery) -> None:
    server = await scripted.start(nursery, [TAKEN])
    result = await run_beside(
        *("publish", "org/7:a%b", "caf\u00e9", "--event", "t&t", "--url", server.url + "/")
    )
    assert (result.exit_code, result.output) == (0, "5-0\n")
    [request] = server.requests
    event = document(request)
    assert event.pop("id") != ""
    assert event == {"channel": "org/7:a%b", "data": "caf\u00e9", "event": "t&t"}


@pytest.mark.parametrize("arguments", [(), ("-",)])
async def test_publish_reads_stdin_as_it_is(
    arguments: tuple[str, ...], nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await scripted.start(nursery, [TAKEN])
    monkeypatch.setenv("GATEWAY_URL", server.url)
    result = await run_beside("publish", "a", *arguments, stdin=b"one\r\ntwo\n\xc3\xa9")
    assert result.exit_code == 0
    assert document(server.requests[0])["data"] == "one\r\ntwo\n\u00e9"
    result = await run_beside("publish", "a", *arguments, stdin=b"one\xff")
    assert (result.exit_code, len(server.requests)) == (1, 1)
    assert result.stderr == "gateway: The data of an event is text in UTF-8, and this is none.\n"


async def test_publish_tries_again_with_the_same_id_where_the_answer_is_lost(
    nursery: trio.Nursery,
) -> None:
    server = await scripted.start(nursery, [b""], [TAKEN])
    result = await run_beside("publish", "a", "x", "--url", server.url)
    assert (result.exit_code, result.output) == (0, "5-0\n")
    first, second = map(document, server.requests)
    assert first == second


REFUSED = b'{"line": 1, "status": 409, "detail": "Channel a has ended."}\n'


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (scripted.answer("200 OK", "application/x-ndjson", REFUSED), "Channel a has ended"),
        (scripted.answer("502 Bad Gateway", "text/html", b"<p>"), "502"),
        (b"", "Server disconnected"),
    ],
    ids=["an event that is refused", "a balancer that finds no node", "a connection that is lost"],
)
async def test_a_refused_publish_is_one_line_on_stderr_and_exit_code_1(
    answer: bytes, sentence: str, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cli.PUBLISH_SECONDS", 0.01)
    server = await scripted.start(nursery, *([answer] for _ in range(100)))
    result = await run_beside("publish", "a", "x", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("gateway: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


async def published(n: Near, channel: str) -> list[dict[str, str]]:
    async with n.client() as client:
        answer = await client.get(f"{n.url}/poll?channel={channel}&lastEventId=earliest&wait=0")
    events: list[dict[str, str]] = answer.json()["events"]
    return events


async def test_publish_takes_each_line_of_stdin_for_the_data_of_an_event() -> None:
    async with near() as n:
        result = await run_beside(
            *("publish", "a", "--lines", "--event", "t", "--url", n.url),
            stdin="one\n\ncaf\u00e9".encode(),
        )
        events = await published(n, "a")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.split() == [event["id"] for event in events]
    assert [(event["event"], event["data"]) for event in events] == [
        ("t", "one"),
        ("t", "caf\u00e9"),
    ]


async def test_publish_holds_no_line_without_end() -> None:
    async with near() as n:
        lines = b"x\n" + b"y" * (MAX_LINE_BYTES + READ_BYTES)
        result = await run_beside("publish", "a", "--lines", "--url", n.url, stdin=lines)
        [event] = await published(n, "a")
    assert (result.exit_code, event["data"]) == (1, "x")
    assert result.stderr == f"gateway: Line 2 is over {MAX_LINE_BYTES} bytes.\n"


async def test_publish_tells_of_each_event_that_is_refused_and_ends_with_1() -> None:
    async with near() as n:
        result = await run_beside(
            *("publish", "--ndjson", "--url", n.url),
            stdin=b'{"channel":"a","data":{"x":1}}\nno json\n[1]\n{"channel":"b","retry":-1}\n',
        )
        [event] = await published(n, "a")
    assert (result.exit_code, result.stdout) == (1, f"{event['id']}\n")
    assert event["data"] == '{"x": 1}'
    assert sorted(result.stderr.splitlines()) == [
        "gateway: Not all events were taken.",
        "line 2: Expecting value: line 1 column 1 (char 0)",
        "line 3: an event is a JSON object",
        "line 4: An event has data; this one has none.",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("a", "x", "--lines"),
        ("--lines",),
        ("a", "--ndjson"),
        ("--ndjson", "--lines"),
        ("--ndjson", "--event", "t"),
        (),
    ],
)
def test_publish_refuses_what_contradicts_itself(arguments: tuple[str, ...]) -> None:
    assert run("publish", *arguments).exit_code == 2


async def test_publish_does_not_wait_for_the_end_of_stdin() -> None:
    """As behind `tail -f`: what comes is published, and its id printed."""
    async with near() as n:
        command = (sys.executable, "-m", "gateway", "publish", "a", "--lines", "--url", n.url)
        pipe = subprocess.PIPE
        process = await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe)
        assert process.stdin
        assert process.stdout
        with trio.fail_after(20):
            for line in (b"one\n", b"two\n"):
                await process.stdin.send_all(line)
                assert (await process.stdout.receive_some()).count(b"\n") == 1
            await process.stdin.aclose()
            assert await process.wait() == 0
        await process.stdout.aclose()


async def test_subscribe_begins_with_the_newest_and_hears_for_a_user(
    nursery: trio.Nursery,
) -> None:
    server = await scripted.start(nursery, [NO_CONTENT])
    await run_beside("subscribe", "--user", "7", "--replay", "3", "--url", server.url)
    assert server.requests[0].startswith(b"GET /events?user=7&replay=3 HTTP/1.1\r\n")
    assert run("subscribe").exit_code == 2


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x:y"])
def test_a_url_that_is_none_is_refused_before_anything_is_sent(url: str) -> None:
    result = run("subscribe", "a", "--url", url)
    assert result.exit_code == 2
    assert "Invalid value for '--url'" in result.stderr


TALK = (
    b'retry: 1\n\nid: 1-0\nevent: connected\ndata: {"clientId":"c"}\n\n'
    b"id: 2-0\nevent: tick\ndata: a\\b\tc\ndata: \x1b[2Jd\n\n"
    b'event: dropped\ndata: {"count":3}\n\n'
    b"event: keepalive\nid: 3-0\n\n"
)


async def test_subscribe_prints_events_to_stdout_and_what_the_gateway_tells_to_stderr(
    nursery: trio.Nursery,
) -> None:
    server = await scripted.start(
        nursery, [STREAM, TALK + b"data: e\n\n"], [scripted.answer("204 No Content", "", b"")]
    )
    result = await run_beside(
        *("subscribe", "a", "b:c", "--last-event-id", "0-9", "--url", server.url)
    )
    assert result.exit_code == 0
    assert result.stdout == "2-0\ttick\ta\\\\b\\tc\\n\\x1b[2Jd\n3-0\tmessage\te\n"
    assert result.stderr == (
        'connected: {"clientId":"c"}\ndropped: {"count":3}\n'
        "lost: the stream ended, again in 0.001 s\n"
    )
    assert server.requests[0].startswith(b"GET /events?channel=a&channel=b%3Ac HTTP/1.1\r\n")
    assert scripted.header(server.requests[0], b"Last-Event-ID") == b"0-9"


async def test_subscribe_prints_an_object_per_line(nursery: trio.Nursery) -> None:
    server = await scripted.start(nursery, [STREAM, TALK], [NO_CONTENT])
    result = await run_beside("subscribe", "a", "--json", "--url", server.url)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"id": "2-0", "event": "tick", "data": "a\\b\tc\n\x1b[2Jd"}
    ]


async def test_a_refused_subscribe_is_one_line_on_stderr_and_exit_code_1(
    nursery: trio.Nursery,
) -> None:
    server = await scripted.start(nursery, [scripted.answer("200 OK", "text/html", b"<p>")])
    result = await run_beside("subscribe", "a", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"gateway: {server.url}/events?channel=a is text/html, not text/event-stream.\n"
    )


async def start_subscribe(nursery: trio.Nursery, url: str) -> trio.Process:
    obeying = ["env", "--default-signal=INT"]  # what a shell starts in the background ignores it
    command = [*obeying, sys.executable, "-m", "gateway", "subscribe", "a", "--url", url]
    pipe = subprocess.PIPE
    process: trio.Process = await nursery.start(
        partial(trio.run_process, command, stdout=pipe, stderr=pipe, check=False)
    )
    return process


async def test_subscribe_prints_at_once_and_ctrl_c_ends_it_quietly(nursery: trio.Nursery) -> None:
    server = await scripted.start(nursery, [STREAM, b"data: a\n\n", None])
    process = await start_subscribe(nursery, server.url)
    assert process.stdout
    assert process.stderr
    assert await process.stdout.receive_some() == b"\tmessage\ta\n"
    process.send_signal(signal.SIGINT)
    assert await process.stderr.receive_some() == b""
    assert await process.wait() == 130


async def test_a_reader_that_leaves_ends_subscribe_quietly(nursery: trio.Nursery) -> None:
    more_than_a_pipe_holds = (b"data: " + b"x" * 1000 + b"\n\n") * 1000
    server = await scripted.start(nursery, [STREAM, more_than_a_pipe_holds, None])
    process = await start_subscribe(nursery, server.url)
    assert process.stdout
    assert process.stderr
    assert await process.stdout.receive_some()
    await process.stdout.aclose()
    assert await process.stderr.receive_some() == b""
    assert await process.wait() == 1


@pytest.mark.parametrize(
    "interrupt",
    [KeyboardInterrupt(), BaseExceptionGroup("of a nursery", [KeyboardInterrupt()])],
    ids=["bare", "while trio connects"],
)
def test_an_interrupt_ends_quietly(
    interrupt: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cli.trio.run", Mock(side_effect=interrupt))
    result = run("subscribe", "a")
    assert (result.exit_code, result.output) == (130, "")


def test_an_interrupt_hides_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = BaseExceptionGroup("of a nursery", [KeyboardInterrupt(), ZeroDivisionError()])
    monkeypatch.setattr("gateway.cli.trio.run", Mock(side_effect=mixed))
    with pytest.raises(BaseExceptionGroup):
        run("subscribe", "a")
