"""What the log has of streams and of refused requests, and the id by which both are known."""

import itertools
import logging
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest
import trio
from certificates import Files
from rig import running as rig_running
from running import ACCEPT, Wire, request, running, running_over_tls, until

from gateway import logs, stream_log
from gateway.api.refusals import REFUSED
from gateway.config import Config
from gateway.hub_client import REQUEST_ID_LENGTH
from gateway.log_lines import LogfmtFormatter, fields_of
from gateway.request_id import MAX_LENGTH, RequestIds, named_id
from gateway.stream_state import Reason

VERSIONS = ["1.1", "1.0"]

Lines = Callable[[str], list[dict[str, object]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """The fields of all lines with a sentence, and their level; none is too many."""
    monkeypatch.setattr(logs, "_started", [])
    caplog.set_level(logging.DEBUG, "gateway")

    def found(sentence: str) -> list[dict[str, object]]:
        return [
            {**fields_of(record), "level": record.levelname.lower()}
            for record in caplog.records
            if record.msg == sentence
        ]

    return found


# --- the id ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [b"a", b"x" * MAX_LENGTH, b"4bf92f35-77b3-4da6-a3ce-929d0e0e4736", b"Root=1-67891233-abc/+~:@"],
)
def test_a_legal_id_is_taken(value: bytes) -> None:
    assert named_id(value) == value.decode()


@pytest.mark.parametrize(
    "value",
    [None, b"", b"x" * (MAX_LENGTH + 1), b"a b", b'a"', b"a\n", b"a\r\nX: y", b"\xc3\xa9", b"a,b"],
)
def test_any_other_is_as_if_it_were_not_there(value: bytes | None) -> None:
    assert named_id(value) == ""
    made = RequestIds("f7e385b3")
    assert [made.of(value), made.of(value)] == ["f7e385b3-1", "f7e385b3-2"]


REFUSED_REQUESTS = [
    ("GET", "/events", 400),
    ("GET", "/poll/a..b", 400),
    ("POST", "/publish/a..b", 400),
    ("GET", "/nowhere", 404),
    ("PUT", "/events/a", 405),
    ("DELETE", "/clients/none", 404),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("method", "target", "status"), REFUSED_REQUESTS)
async def test_a_refusal_has_the_id_of_its_request_as_its_line_has(
    version: str, method: str, target: str, status: int, lines: Lines
) -> None:
    async with running() as gateway:
        for named, known in ((b"X-Request-Id: abc.1\r\n", "abc.1"), (b'X-Request-Id: a"b\r\n', "")):
            body = b"x" if method == "POST" else None
            raw = request(method, f"{target}?token=secret", named, body=body, version=version)
            answer = await gateway.ask(raw)
            assert answer.status == status
            [line] = lines(REFUSED)[-1:]
            told = answer.header("x-request-id")
            assert told == line["request"]
            assert re.fullmatch(known or rf"{gateway.node.tag}-[0-9a-f]+", str(told))
            assert line == {
                "level": "debug",
                "method": method,
                "path": target,
                "peer": "127.0.0.1",
                "request": told,
                "status": status,
                "why": answer.detail,
            }


async def test_what_cannot_be_read_is_refused_with_an_id_too(lines: Lines) -> None:
    async with running() as gateway:
        answer = await gateway.ask(b"GET / HTTP/1.1\r\nX-Request-Id: early\r\nHost: a\x00b\r\n\r\n")
        assert (answer.status, answer.header("x-request-id")) == (400, "early")
        [line] = lines(REFUSED)
        assert (line["request"], line["peer"], "path" in line) == ("early", "127.0.0.1", False)


@pytest.mark.parametrize("accept", [b"", ACCEPT])
@pytest.mark.parametrize("version", VERSIONS)
async def test_who_is_turned_away_is_a_warning_unless_the_node_is_leaving(
    version: str, accept: bytes, lines: Lines
) -> None:
    async with running(max_clients=0) as gateway:
        raw = request("GET", "/events/a", accept, b"X-Request-Id: r\r\n", version=version)
        first = await gateway.ask(raw)
        gateway.node.leaving = True
        await gateway.ask(raw)
    assert first.status == (200 if accept else 503)
    assert first.header("x-request-id") == "r"
    told = [(line["level"], line["why"], line["request"]) for line in lines(REFUSED)]
    assert told == [("warning", "full", "r"), ("info", "draining", "r")]


async def test_a_probe_that_finds_the_node_not_ready_is_no_warning(lines: Lines) -> None:
    async with running(max_clients=0) as gateway:
        answer = await gateway.ask(request("GET", "/readyz"))
    assert answer.status == 503
    assert [line["level"] for line in lines(REFUSED)] == ["debug"]


async def test_what_is_taken_has_no_id_and_no_line(lines: Lines) -> None:
    async with running() as gateway:
        header = b"X-Request-Id: abc\r\n"
        for raw in (
            request("POST", "/publish/a", header, body=b"x"),
            request("GET", "/poll/a?wait=0", header),
            request("GET", "/stats", header),
        ):
            assert (await gateway.ask(raw)).header("x-request-id") is None
    assert lines(REFUSED) == []


# --- streams --------------------------------------------------------------------------------------


async def connected(wire: Wire) -> tuple[str, str]:
    """The request's id, and the client's."""
    response = await wire.response()
    told = response.header("x-request-id")
    assert told is not None
    return told, str((await wire.block()).json["clientId"])


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_has_a_line_when_it_opens_and_one_when_it_closes(
    version: str, lines: Lines
) -> None:
    async with running() as gateway:
        target = "/events?channels=a,b,c,d&user=u&replay=5"
        missed = [await gateway.publish("a", "before") for _ in range(2)]
        wire = await gateway.open(target, b"X-Request-Id: mine\r\n", version=version)
        told, client = await connected(wire)
        for _ in missed:
            await wire.event()
        await gateway.publish("a", "x")
        await wire.event()
        await gateway.ask(request("DELETE", f"/clients/{client}"))
        await wire.ended()
        await until(lambda: len(lines(stream_log.CLOSED)) == 1)
    who = {"client": client, "request": "mine", "user": "u", "address": "127.0.0.1"}
    assert told == "mine"
    [opened], [closed] = lines(stream_log.OPENED), lines(stream_log.CLOSED)
    assert opened == {
        "level": "info",
        **who,
        "lane": "direct" if version == "1.1" else "response",
        "channels": 4,
        "names": ["a", "b", "c"],
        "resumed": "newest 5",
    }
    seconds = closed.pop("seconds")
    assert isinstance(seconds, float)
    assert 0 <= seconds < 10
    assert closed == {
        "level": "info",
        **who,
        "reason": "closed",
        "delivered": 3,
        "replayed": 2,
        "dropped": 0,
        "gaps": 0,
        "unsent": 0,
    }


async def test_over_tls_too(certificate: Files, lines: Lines) -> None:
    async with running_over_tls(certificate) as gateway:
        wire = await gateway.open("/events/a")
        told, client = await connected(wire)
        await wire.aclose()
        await until(lambda: len(lines(stream_log.CLOSED)) == 1)
    [opened], [closed] = lines(stream_log.OPENED), lines(stream_log.CLOSED)
    assert (opened["lane"], opened["request"], closed["request"]) == ("response", told, told)
    assert (closed["reason"], closed["client"]) == ("gone", client)


async def test_a_made_id_is_no_more_than_the_beginning_of_the_clients(lines: Lines) -> None:
    """Whoever has the whole may change the client's channels, and heads are for everybody."""
    async with running() as gateway:
        told, client = await connected(await gateway.open("/events/a"))
    assert told == client[:REQUEST_ID_LENGTH]
    assert len(client) >= len(told) + 9
    assert lines(stream_log.OPENED)[0]["request"] == told


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("lastEventId=earliest", "earliest"),
        ("lastEventId=now", None),
        ("lastEventId=nonsense", "unknown"),
        ("lastEventId=1795197408843-0", "1795197408843-0"),
    ],
)
async def test_a_line_says_where_a_stream_begins(asked: str, told: str, lines: Lines) -> None:
    async with running() as gateway:
        await connected(await gateway.open(f"/events/a?{asked}"))
        [opened] = lines(stream_log.OPENED)
        assert opened["resumed"] == told
        gateway.node.hub.close(next(iter(gateway.node.hub.members.clients.values())), Reason.GONE)
        [closed] = lines(stream_log.CLOSED)
        assert closed["gaps"] == (told not in ("earliest", None))


async def test_what_was_dropped_and_what_was_left_is_told(
    autojump_clock: object, lines: Lines
) -> None:
    async with rig_running(Config(outbox_frames=3, max_behind_seconds=60)) as rig:
        peer = await rig.open_live("a")
        for _ in range(200):
            await rig.publish("a", "x" * 1000)
        await trio.sleep(100)
        client = peer.client
    [closed] = lines(stream_log.CLOSED)
    assert closed["reason"] == "stalled"
    assert closed["dropped"] == client.dropped > 0
    assert closed["delivered"] == client.written > 0
    assert closed["unsent"] == 200 - client.written - client.dropped > 0
    assert isinstance(closed["seconds"], float)
    assert 60 <= closed["seconds"] < 80


async def test_a_poll_has_its_lines_for_debugging_alone(lines: Lines) -> None:
    async with running() as gateway:
        await gateway.ask(request("GET", "/poll/a?wait=0", b"X-Request-Id: p\r\n"))
    assert lines(stream_log.OPENED) == lines(stream_log.CLOSED) == []
    [begun], [over] = lines(stream_log.POLLING), lines(stream_log.POLLED)
    assert (begun["level"], begun["request"], over["reason"]) == ("debug", "p", "polled")


async def test_of_a_storm_a_few_lines_are_written_and_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    """The lines that are not written are not made either."""
    pace = logs.Pace(5, lambda: 0.0)
    writer = logs.Writer(2, LogfmtFormatter(), pace)
    monkeypatch.setattr(logs, "_started", [logs.QueueHandler(writer, pace)])
    async with running() as gateway:
        for _ in range(30):
            await connected(await gateway.open("/events/a"))
        statistics = gateway.node.statistics().log
        text = (await gateway.ask(request("GET", "/metrics"))).body.decode()
    assert len(lines(stream_log.OPENED)) == len(lines(stream_log.CLOSED)) == 10
    assert statistics == logs.LogStatistics(dropped=0, suppressed=20)
    assert "\ngateway_log_lines_suppressed_total 20.0\n" in text
    assert "\ngateway_log_lines_dropped_total 0.0\n" in text
    told = sorted((kind.sentence, count) for kind, count in pace.untold())
    assert told == [(stream_log.CLOSED, 20), (stream_log.OPENED, 20)]


HOSTILE = ['x"} y=', "x\nlevel=error", "\x1b[2K", "\u202e", "a b=c", "\\"]


async def test_nothing_in_a_line_of_a_stream_is_a_strangers_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    async with running() as gateway:
        for text, where in itertools.product(HOSTILE, ("user={}", "lastEventId={}", "channel={}")):
            raw = request("GET", f"/events?channel=a&{where.format(quote(text))}", ACCEPT)
            await gateway.ask(raw)
    formatter = LogfmtFormatter()
    for record in caplog.records:
        line = formatter.format(record)
        assert line.isprintable()
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line)
        names = re.findall(r"(?:^| )([^= ]+)=", bare)
        assert names == list(dict.fromkeys(names))
        assert set(names) <= KNOWN
        assert f" level={record.levelname.lower()} " in bare


KNOWN = {"ts", "level", "logger", "msg", "client", "request", "user", "address", "lane", "channels"}
KNOWN |= {"names", "resumed", "reason", "seconds", "delivered", "replayed", "dropped", "gaps"}
KNOWN |= {"unsent", "method", "path", "peer", "status", "why"}
