"""What strangers choose stays data: in a frame, a metric, a key of Redis, a line of the log.

The demo page is in test_demo_page, a head of HTTP in test_smuggling.
"""

import io
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from itertools import chain, product
from urllib.parse import quote

import pytest
import redis
import trio
from buses import event, published
from prometheus_client.parser import text_string_to_metric_families
from redis_buses import Cluster, cluster
from redis_scripts import AGE, RULES, Scripts, packed
from running import ACCEPT, HOST, Gateway, request, running

from gateway import __version__
from gateway.api import admin
from gateway.bus import Source
from gateway.config import Format, Upstream
from gateway.control import Gap
from gateway.edge.app import ROUTES
from gateway.histogram import CROWDS, PAUSES, WAITS
from gateway.hub import Opening
from gateway.log_lines import JsonFormatter, LogfmtFormatter
from gateway.names import user_channel
from gateway.relay.events import UPSTREAM_FAILURES
from gateway.relay.relays import ENDS as STREAM_ENDS
from gateway.relay.relays import FIRST_TOKENS, REFUSALS
from gateway.requests import OTHER
from gateway.stream_state import Reason
from gateway.tallies import DEFAULT, Dropped

# --- frames ---------------------------------------------------------------------------------------

CONTENTS = {
    "a blank line": "x\n\ndata: forged",
    "a blank line of CR": "x\r\rdata: forged",
    "a blank line of CRLF": "x\r\n\r\ndata: forged",
    "CR and LF in turn": "x\n\r\n\rid: 9-9\ndata: forged",
    "an id": "x\nid: 9-9\n",
    "a type": "x\nevent: reconnect\ndata: {}\n",
    "a retry": "x\nretry: 0\n",
    "the end of a chunk": "x\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "line ends that are none": "x\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029id: 9-9",
    "NUL": "x\0\nid: \0",
    "a BOM": "\ufeffdata: x\n\ufeff",
    "only line ends": "\n\r\n\r",
    "colons and spaces": ":\n: x\n  \n:",
    "nothing": "",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
async def test_no_content_breaks_out_of_its_event(content: str) -> None:
    """On both lanes, annotated or not, and in a poll, however it was published."""
    as_lines = content.replace("\r\n", "\n").replace("\r", "\n")
    async with running() as gateway:
        streams = {
            await gateway.open(f"/events/a{query}", version=version): fields
            for version in ("1.1", "1.0")
            for query, fields in (("", {"id"}), ("?annotate=true", {"id", "channel"}))
        }
        for stream in streams:
            await stream.opened()
        begin = (await gateway.ask(request("GET", "/poll/a?wait=0"))).json["lastEventId"]
        document = json.dumps({"channel": "a", "data": content}).encode()
        for target, kind, body in (
            ("/publish", "application/json", document),
            ("/publish", "application/x-ndjson", document),
            ("/publish/a", "text/plain", content.encode()),
        ):
            header = f"Content-Type: {kind}\r\n".encode()
            await gateway.ask(request("POST", target, header, body=body))
        canary = await gateway.publish("a", "canary")
        for stream, fields in streams.items():
            blocks = [await stream.event() for _ in range(4)]
            assert [block.data for block in blocks] == [*[as_lines] * 3, "canary"]
            assert {block.event for block in blocks} == {"message"}
            assert all(set(block.fields) == fields for block in blocks)
            assert {block.fields.get("channel", "a") for block in blocks} == {"a"}
            assert blocks[-1].id == canary
        polled = await gateway.ask(request("GET", f"/poll/a?wait=0&lastEventId={begin}"))
        events = polled.json["events"]
        assert isinstance(events, list)
        assert [event["data"] for event in events] == [*[as_lines] * 3, "canary"]


LABELS = [
    "x\ndata: forged",
    "x\rid: 9-9",
    "x\r\n\r\n",
    "x\0",
    "\n",
    "reconnect\n",
    "gap",
    "connected",
]


@pytest.mark.parametrize("member", ["event", "id", "key"])
@pytest.mark.parametrize("label", LABELS)
async def test_no_label_of_an_event_has_a_line_of_its_own(member: str, label: str) -> None:
    async with running() as gateway:
        stream = await gateway.open("/events/a")
        await stream.opened()
        document = json.dumps({"channel": "a", "data": "x", member: label}).encode()
        raw = request("POST", f"/publish/a?{member}={quote(label)}", body=b"x")
        whole = request("POST", "/publish", JSON, body=document)
        statuses = {(await gateway.ask(each)).status for each in (raw, whole)}
        legal = label.isalpha() and member != "event"
        assert statuses == ({202} if legal else {400})
        position = await gateway.publish("a", "canary")
        blocks = [await stream.event() for _ in range(1 + 2 * legal - (member == "id" and legal))]
        assert (blocks[-1].data, blocks[-1].id) == ("canary", position)


JSON = b"Content-Type: application/json\r\n"

# --- metrics --------------------------------------------------------------------------------------

STATUSES = {str(status.value) for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST}

WORDS = (
    *("full", "draining", "connections", "no-descriptor", "bodies", "bus", "write-timeout", "idle"),
    *("address", "address-rate", "pace", "gone", "silent", "untrusted-proxy", "user", "keys"),
    *("channels", "revocations", "supervisor"),
)

REASONS_OF: dict[str, set[str]] = {
    "gateway_closed_total": set(Reason),
    "gateway_dropped_total": set(Dropped),
    "gateway_gaps_total": set(Gap),
    "gateway_opened_total": set(Opening),
    "gateway_refused_total": {*WORDS, *STATUSES},
    "gateway_token_streams_ended_total": set(chain(*STREAM_ENDS.values())),
    "gateway_token_streams_refused_total": set(REFUSALS),
}
"""All values that there may be of the label ``reason``."""

OTHER_LABELS: dict[str, set[str]] = {
    "class": {DEFAULT},
    "code": {*(str(status.value) for status in HTTPStatus), *UPSTREAM_FAILURES},
    "format": set(Format),
    "generation": {"0", "1", "2"},
    "le": {*(str(float(bound)) for bound in (*WAITS, *PAUSES, *CROWDS, *FIRST_TOKENS)), "+Inf"},
    "route": {*ROUTES.values(), OTHER},
    "source": set(Source),
    "state": set(STREAM_ENDS),
    "upstream": {"configured", "demo"},
    "version": {__version__},
    "worker": {"1"},
}
"""And of every other label."""

NAMES = [
    'x"} 1\ngateway_forged_total{reason="x',
    "x\\",
    "x\ny",
    "x\r\n# TYPE forged gauge\nforged 1",
    "\x1b[31mx\x07",
    "x y",
    "{x}",
    "*",
    "x,y",
    "../../x",
    "%",
    "\u202ex",
    "\U0001f600",
    "x" * 500,
]


async def drive(gateway: Gateway, name: str) -> None:
    """``name`` wherever a stranger may put one."""
    at = quote(name, safe="")
    word = re.sub(r"[^A-Za-z0-9]", "", name).upper()[:20] or "X"
    header = name.encode("unicode_escape").replace(b"\\", b"/")[:200]
    for raw in (
        request("GET", f"/{at}"),
        request("GET", f"/events/{at}", ACCEPT),
        request("GET", f"/events/a?user={at}&lastEventId={at}&replay={at}&{at}={at}", ACCEPT),
        request("GET", f"/poll?channel={at}&wait={at}"),
        request("POST", f"/publish/{at}?event={at}&id={at}&key={at}", body=b"x"),
        request("POST", "/publish", JSON, body=json.dumps({"user": name, "data": name}).encode()),
        request("POST", "/publish", JSON, body=json.dumps({name: name}).encode()),
        request("POST", "/publish", b"Content-Type: " + header + b"\r\n", body=b"x"),
        request("POST", "/streams", JSON, body=_token_stream(name, {"messages": []})),
        request("POST", "/streams", JSON, body=_token_stream("configured", {"model": name})),
        request("POST", "/streams", JSON, body=_token_stream("configured", {"messages": [name]})),
        request("DELETE", f"/streams/{at}"),
        request("PUT", f"/clients/{at}/channels/{at}?since={at}"),
        request("DELETE", f"/users/{at}"),
        request("GET", f"/channels/{at}"),
        request(word, f"/channels/{at}"),
        request("GET", "/stats", b"X-" + word.encode() + b": " + header + b"\r\n"),
        request("GET", "/events/a", b"Last-Event-ID: " + header + b"\r\n"),
        b"GET /events/a HTTP/1.1\r\nHost: " + header + b"\r\n\r\n",
        b"GET /" + header + b" HTTP/3." + word.encode() + b"\r\n" + HOST + b"\r\n",
    ):
        wire = await gateway.connect()
        await wire.send(raw)
        await wire._more()
        await wire.aclose()


def _token_stream(upstream: str, asked: dict[str, object]) -> bytes:
    return json.dumps({"upstream": upstream, "request": asked}).encode()


async def labels(gateway: Gateway) -> set[tuple[str, str, str]]:
    """Every label of every metric: the metric, its name and its value."""
    text = (await gateway.ask(request("GET", "/metrics"))).body.decode()
    return {
        (sample.name, *label)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for label in sample.labels.items()
    }


async def test_no_metric_has_a_label_that_a_stranger_can_choose() -> None:
    upstream = Upstream("configured", "http://127.0.0.1:9/v1", Format.OPENAI, retries=0)
    async with running(upstreams=(upstream,)) as gateway:
        for name in NAMES:
            await drive(gateway, name)
        await labels(gateway)  # which is a request as well
        found = await labels(gateway)
        for name in NAMES:
            await drive(gateway, f"{name}2")
        assert await labels(gateway) == found
        assert {"gateway_refused_total"} < {metric for metric, *_ in found}
        for metric, name, value in found:
            assert value in (REASONS_OF[metric] if name == "reason" else OTHER_LABELS[name])


# --- keys of Redis --------------------------------------------------------------------------------

STRANGE = [
    "a b",
    "a\nb",
    "a\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "{a}",
    "a{b}c",
    "*",
    "a*",
    "?",
    "[ab]",
    "\\a",
    "a\0b",
    "\u00e9",
    "",
]
LEGAL = ["m:a", "s:a", "c:a", "d:a", "clock", "epoch", "a:b", "user", "%2A", "-", "~7-2", "a/../b"]


@pytest.fixture
async def nodes(redis_port: int, new_prefix: str) -> AsyncIterator[Cluster]:
    with trio.fail_after(20):
        async with cluster(redis_port, new_prefix) as nodes:
            yield nodes


@pytest.fixture
def scripts(client: redis.Redis, new_prefix: str) -> Scripts:
    made = Scripts(client, new_prefix)
    made.now = 0
    return made


def touched(before: dict[bytes, object], after: dict[bytes, object], prefix: str) -> set[str]:
    """The keys that have changed, without their prefix and without what counts calls."""
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    names = {key.decode().removeprefix(prefix) for key in changed}
    return {name for name in names if not name.startswith(("w:", "workers"))}


@pytest.mark.parametrize("name", [*LEGAL, *filter(None, STRANGE)])
async def test_a_channel_has_its_own_keys_and_touches_no_others(
    nodes: Cluster, scripts: Scripts, name: str
) -> None:
    """Strange names do not get as far as the bus, and yet would do no harm there."""
    node = await nodes.node("a", name)
    await published(node.bus, *(event(each) for each in ("a", "b", "m:b", "x")))
    await node.sink.until(1)
    before = scripts.dump()
    (position,) = await published(node.bus, event(name, data="own"))
    assert touched(before, scripts.dump(), nodes.prefix) == {f"m:{name}", f"s:{name}"}
    await node.sink.until(2)
    assert [frame.channels for frame in node.sink.frames] == [("a",), (name,)]
    assert node.sink.positions[1] == position
    history = await node.bus.history(name, node.sink.positions[0], position, 9)
    assert [frame.position for frame in history.frames] == [position]


@pytest.mark.parametrize("name", STRANGE)
def test_who_publishes_through_redis_gets_no_strange_name_into_a_key(
    scripts: Scripts, name: str
) -> None:
    scripts.attach(rules=RULES)
    scripts.direct({"channel": "a", "data": "x"})
    before = scripts.dump()
    for document in ({"channel": name}, {"channels": ["a", name]}):
        with pytest.raises(redis.ResponseError, match="BADEVENT"):
            scripts.direct({**document, "data": "x"})
    assert touched(before, scripts.dump(), scripts.prefix) == set()


@pytest.mark.parametrize("name", [*filter(None, STRANGE)])
def test_a_strange_user_or_id_has_a_key_that_is_no_other(scripts: Scripts, name: str) -> None:
    scripts.attach(rules=RULES)
    scripts.direct({"channel": "a", "data": "x"})
    before = scripts.dump()
    scripts.direct({"user": name, "data": "x", "id": "1"})
    own = user_channel(name)
    keys = touched(before, scripts.dump(), scripts.prefix)
    assert {f"m:{own}", f"s:{own}"} < keys
    (token,) = keys - {f"m:{own}", f"s:{own}"}
    assert re.fullmatch("d:j[0-9a-f]{40}", token)
    before = scripts.dump()
    if not set(name) & set("\r\n\0"):
        scripts.direct({"channel": "c", "data": "x", "id": name, "key": name})
        keys = touched(before, scripts.dump(), scripts.prefix)
        assert sum(key.startswith("d:j") for key in keys) == 1
        assert len(keys) == 3


@pytest.mark.parametrize("name", STRANGE)
async def test_over_http_a_strange_name_does_not_reach_redis(
    redis_port: int, scripts: Scripts, name: str
) -> None:
    redis_url = f"redis://127.0.0.1:{redis_port}"
    async with running(redis=redis_url, redis_prefix=scripts.prefix) as gateway:
        await gateway.publish("a", "x")
        before = scripts.dump()
        at = quote(name, safe="")
        document = json.dumps({"channel": name, "data": "x"}).encode()
        for raw in (
            request("POST", f"/publish/{at}", body=b"x"),
            request("POST", "/publish", JSON, body=document),
            request("GET", f"/events/{at}", ACCEPT),
            request("GET", f"/poll/{at}?wait=0"),
        ):
            assert (await gateway.ask(raw)).status == 400
        assert touched(before, scripts.dump(), scripts.prefix) <= {"epoch"}


def test_the_numbers_of_a_rule_are_no_part_of_a_key(scripts: Scripts) -> None:
    """What is asked in one call touches what it names, in all orders of the names."""
    scripts.attach(rules=RULES)
    for first, second in product(("a", "m:a", "s:a"), repeat=2):
        if first != second:
            before = scripts.dump()
            scripts.publish(packed(first, second, age=AGE))
            keys = touched(before, scripts.dump(), scripts.prefix)
            assert keys == {f"{kind}:{name}" for kind in "ms" for name in (first, second)}


# --- lines of the log -----------------------------------------------------------------------------

Formatter = type[LogfmtFormatter] | type[JsonFormatter]


@contextmanager
def logged(formatter: Formatter = LogfmtFormatter) -> Iterator[io.StringIO]:
    """What a node writes to its log."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(formatter())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield text
    finally:
        root.removeHandler(handler)


FORGED = "ts=2026-01-01T00:00:00.000Z level=warning logger=gateway msg=forged"

ENDS = [
    "\n",
    "\r",
    "\r\n",
    "\x0b",
    "\x0c",
    "\x85",
    "\u2028",
    "\0",
    "\x1b[2K",
    '" ',
    '\\" ',
    "=",
    "\ud800",
]


def fields(line: str) -> dict[str, str]:
    """A line of logfmt, read by its grammar and nothing else."""
    found = {}
    rest = line
    while rest:
        match = re.match(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |$)', rest)
        assert match is not None, rest
        name, value = match[1], match[2]
        assert name not in found, line
        found[name] = json.loads(value) if value.startswith('"') else value
        rest = rest[match.end() :]
    return found


@pytest.mark.parametrize("end", ENDS)
def test_a_record_is_one_line_whatever_is_in_it(end: str) -> None:
    hostile = f"x{end}{FORGED}"
    with logged() as text, logged(JsonFormatter) as as_json:
        logging.getLogger("gateway").warning("no %(what)s here", {"what": hostile, "n": 1})
        logging.getLogger("hypercorn.error").warning("no %s here", hostile)
        logging.getLogger("hypercorn.error").warning("no %(x)s here", {"x": "y", hostile: "z"})
    for written in (text.getvalue(), as_json.getvalue()):
        lines = written[:-1].split("\n")
        assert len(lines) == 3
        assert all(line.isprintable() and not line.startswith(FORGED) for line in lines)
    first, second, third = map(fields, text.getvalue()[:-1].split("\n"))
    assert (first["what"], first["msg"], first["n"]) == (hostile, f"no {hostile} here", "1")
    assert set(second) == set(third) == {"ts", "level", "logger", "msg"}
    assert second["msg"] == f"no {hostile} here"
    for line, read in zip(as_json.getvalue()[:-1].split("\n"), (first, second, third), strict=True):
        parsed = json.loads(line)
        assert {name: str(value) for name, value in parsed.items()} == read


@pytest.mark.parametrize("formatter", [LogfmtFormatter, JsonFormatter])
def test_a_traceback_is_told_from_lines_and_so_is_what_its_error_says(formatter: Formatter) -> None:
    with logged(formatter) as text:
        try:
            raise ValueError(f"x\n{FORGED}\r{FORGED}\ud800")
        except ValueError:
            logging.getLogger("gateway").exception("failed", stack_info=True)
    first, *others = text.getvalue()[:-1].split("\n")
    if formatter is JsonFormatter:
        assert not others
        assert f"x\n{FORGED}" in json.loads(first)["traceback"]
        return
    assert fields(first)["msg"] == "failed"
    assert len(others) > 4
    assert all(line.startswith("    ") and line.isprintable() for line in others)
    assert any(FORGED in line for line in others)


async def test_a_fault_that_a_stranger_finds_is_logged_in_lines_of_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError(f"x\n{FORGED}")

    monkeypatch.setattr(admin, "channel", fail)
    with logged() as text:
        async with running() as gateway:
            asked = quote(f"a\n{FORGED}\x1b[2K")
            response = await gateway.ask(request("GET", f"/channels/{asked}?token=secret"))
            assert response.status == 500
    lines = text.getvalue()[:-1].split("\n")
    [told] = [fields(line) for line in lines if not line.startswith("    ")]
    assert told["path"] == f"/channels/a\n{FORGED}\x1b[2K"
    assert (told["level"], told["method"]) == ("error", "GET")
    assert told["request"] == response.header("x-request-id")
    assert not any(line.startswith(FORGED) or "secret" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    assert caplog.records
