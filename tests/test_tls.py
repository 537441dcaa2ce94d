"""TLS on the node itself: the same requests and streams as without, and what is refused."""

import logging
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import certificates
import pytest
import trio
from quart import request as asked
from quart_trio import QuartTrio
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
from tokens import FAR, SECRET, bearer, token

from gateway.config import Config
from gateway.errors import ConfigError, Unavailable
from gateway.server import _end_streams
from gateway.stream_state import Reason
from gateway.tls import Certificate

PUBLISH = request("POST", "/publish/a", body=b"x")
STATS = request("GET", "/stats")
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""How a client's first message begins."""


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is sent, nothing fails inside."""
    yield
    assert [r for r in caplog.records if r.exc_info] == []


@asynccontextmanager
async def nothing_left(gateway: Gateway) -> AsyncIterator[None]:
    """What is done here leaves neither a task nor a descriptor on the node."""
    await gateway.ask(STATS)  # whatever is made once has been made
    await gateway.quiet()
    before = tasks(), descriptors()
    yield
    await gateway.close_wires()
    await gateway.quiet()
    await until(lambda: (tasks(), descriptors()) == before)
    assert gateway.front._service.streams == 0


# --- requests -------------------------------------------------------------------------------------


async def test_hot_requests_keep_their_connection_and_a_cold_one_ends_it(
    certificate: certificates.Files,
) -> None:
    async with running_over_tls(certificate) as gateway, nothing_left(gateway):
        wire = await gateway.connect()
        for _ in range(3):
            await wire.send(PUBLISH)
            response = await wire.response()
            assert (response.status, response.header("connection")) == (202, None)
        await wire.send(PUBLISH + STATS + PUBLISH)
        assert (await wire.response()).status == 202
        cold = await wire.response()
        assert (cold.status, cold.json["published"]) == (200, 4)
        assert cold.header("connection") == "close"
        assert await wire.to_end() == b""  # raises unless a close_notify says so


async def test_a_request_may_come_byte_by_byte_and_many_in_one_record(
    certificate: certificates.Files,
) -> None:
    async with running_over_tls(certificate) as gateway, nothing_left(gateway):
        wire = await gateway.connect()
        for byte in PUBLISH:
            await wire.send(bytes((byte,)))
        assert (await wire.response()).status == 202
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, PUBLISH * 2000)
            for _ in range(2000):
                assert (await wire.response()).status == 202


async def test_a_large_body_and_a_large_answer_are_whole(certificate: certificates.Files) -> None:
    lines = b'{"channel":"b c","data":1}\n' * 30_000
    kind = b"Content-Type: application/x-ndjson\r\n"
    async with running_over_tls(certificate, max_body_bytes=len(lines)) as gateway:
        for version in ("1.1", "1.0"):
            answer = await gateway.ask(
                request("POST", "/publish", kind, body=lines, version=version)
            )
            assert answer.status == 200
            assert answer.body.count(b"\n") == 30_000


async def test_an_error_is_answered_and_the_connection_ended_in_order(
    certificate: certificates.Files,
) -> None:
    async with running_over_tls(certificate, head_timeout=0.2) as gateway, nothing_left(gateway):
        wire = await gateway.connect()
        await wire.send(request("POST", "/publish/a", b"Content-Length: 9999999\r\n") + b"x" * 9999)
        assert (await wire.response()).status == 413
        assert await wire.to_end() == b""
        wire = await gateway.connect()
        await wire.send(b"GET /events/a HTT")
        assert (await wire.response()).status == 408
        assert await wire.to_end() == b""


async def test_what_is_served_behind_knows_that_it_is_asked_over_tls(
    certificate: certificates.Files,
) -> None:
    schemes = []
    for serving in (partial(running_over_tls, certificate), running):
        async with serving() as gateway:
            app: QuartTrio = gateway.edge._app.app  # type: ignore[attr-defined]

            async def look() -> None:
                schemes.append((asked.scheme, asked.scope["state"]["peer"]))

            app.before_request(look)
            assert (await gateway.ask(STATS)).status == 200
    assert schemes == [("https", "127.0.0.1"), ("http", "127.0.0.1")]


async def test_a_poll_ends_with_its_peer_and_keeps_what_was_sent_after_it(
    certificate: certificates.Files,
) -> None:
    poll = request("GET", "/poll/a?wait=60")
    async with running_over_tls(certificate) as gateway, nothing_left(gateway):
        wire = await gateway.connect()
        await wire.send(poll)
        await gateway.clients(1)
        await wire.aclose()
        await gateway.clients(0)
        wire = await gateway.connect()
        await wire.send(poll)
        await gateway.clients(1)
        await wire.send(PUBLISH)
        other = await gateway.connect()
        await other.send(PUBLISH)
        assert (await other.response()).status == 202
        assert len((await wire.response()).json["events"]) == 1  # type: ignore[arg-type]
        assert (await wire.response()).status == 202


# --- streams --------------------------------------------------------------------------------------


async def test_a_stream_carries_the_same_blocks_as_a_plain_one(
    certificate: certificates.Files,
) -> None:
    seen = []
    for serving in (partial(running_over_tls, certificate), running):
        async with serving(keepalive=0.1) as gateway:
            for number in range(300):
                await gateway.publish("a", f"{number}\n" + "x" * number * 20)
            wire = await gateway.open("/events/a?lastEventId=earliest")
            await wire.opened()
            seen.append([(b.event, b.data) for b in [await wire.event() for _ in range(300)]])
            keepalive = await wire.block()
            assert (keepalive.event, keepalive.data) == ("keepalive", None)
            await gateway.publish("a", "live")
            assert (await wire.event()).data == "live"
    assert seen[0] == seen[1]


@pytest.mark.parametrize("way", ["close_notify", "end", "reset"])
async def test_a_stream_that_its_peer_leaves_is_gone_although_nothing_is_written(
    certificate: certificates.Files, way: str
) -> None:
    async with (
        running_over_tls(certificate, keepalive=3600) as gateway,
        nothing_left(gateway),
    ):
        wires = [await gateway.open("/events/a") for _ in range(10)]
        for wire in wires:
            await wire.opened()
        await gateway.clients(10)
        for wire in wires:
            if way == "close_notify":
                with trio.fail_after(PATIENCE):
                    await wire.stream.aclose()
            elif way == "end":
                await wire.socket_stream.send_eof()
            else:
                linger = struct.pack("ii", 1, 0)
                wire.socket_stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                await wire.aclose()
        await gateway.quiet()
        assert gateway.node.hub.statistics().closed[Reason.GONE] == 10


async def test_too_much_stray_input_closes_a_stream(certificate: certificates.Files) -> None:
    async with running_over_tls(certificate) as gateway, nothing_left(gateway):
        wire = await gateway.open("/events/a")
        await wire.opened()
        await wire.send(PUBLISH + b"x" * (4096 - len(PUBLISH)))
        await gateway.publish("a", "at the bound")
        assert (await wire.event()).data == "at the bound"
        await wire.send(b"x")
        assert await wire.ended()
        await gateway.quiet()
        assert gateway.node.hub.statistics().closed[Reason.UNEXPECTED_INPUT] == 1
        assert gateway.node.bus.statistics().published == 1


async def test_a_reader_that_stalls_drops_what_it_must_and_is_cut_after_the_write_timeout(
    certificate: certificates.Files,
) -> None:
    async with (
        running_over_tls(certificate, write_timeout=0.5, outbox_frames=5) as gateway,
        nothing_left(gateway),
    ):
        wire = await gateway.connect(receive_buffer=4096)
        await wire.send(request("GET", "/events/a", ACCEPT))
        await wire.opened()
        reader = await gateway.open("/events/a")
        await reader.opened()
        for number in range(40):
            await gateway.publish("a", f"{number} " + "x" * 50_000)
            assert str((await reader.event()).data).startswith(f"{number} ")
        await gateway.clients(1)
        found = gateway.node.hub.statistics()
        assert found.dropped > 0
        assert found.closed[Reason.GONE] == 1
        assert gateway.node.refused["write-timeout"] == 1


async def test_streams_are_told_and_ended_well_when_the_node_leaves(
    certificate: certificates.Files,
) -> None:
    async with running_over_tls(certificate, drain_seconds=0.1) as gateway:
        wires = [await gateway.open("/events/a") for _ in range(10)]
        for wire in wires:
            await wire.opened()
        await gateway.publish("a", "last")
        gateway.node.leaving = True
        await _end_streams(gateway.node.config, gateway.node)
        for wire in wires:
            last, reconnect = await wire.blocks()  # ended by a last chunk
            assert (last.data, reconnect.json) == ("last", {"reason": "draining"})
            assert await wire.to_end() == b""
        await gateway.quiet()
        assert gateway.node.hub.statistics().closed[Reason.DRAINING] == len(wires)


@pytest.mark.parametrize("path", ["/events/a", "/events/a?lastEventId=earliest"])
async def test_a_stream_ends_with_its_token(certificate: certificates.Files, path: str) -> None:
    """When the wall clock is past it, and within a second."""
    credential = token("u", subscribe=["a"], exp=FAR)
    async with running_over_tls(certificate, jwt_key=SECRET) as gateway:
        wire = await gateway.open(path, bearer(credential))
        await wire.opened()
        gateway.node._clock._now_ms = lambda: FAR * 1000
        [reconnect] = await wire.blocks()
        assert (reconnect.event, reconnect.json) == ("reconnect", {"reason": "token-expired"})
        assert await wire.to_end() == b""
        await gateway.quiet()
        assert gateway.node.hub.statistics().closed[Reason.TOKEN_EXPIRED] == 1


async def test_a_stream_counts_once_among_connections_and_clients(
    certificate: certificates.Files,
) -> None:
    async with running_over_tls(certificate, max_connections=4) as gateway:
        wires = [await gateway.open("/events/a") for _ in range(3)]
        for wire in wires:
            await wire.opened()
        assert (await gateway.ask(PUBLISH)).status == 202
        fourth = await gateway.open("/events/a")
        await fourth.opened()
        assert (await gateway.ask(PUBLISH)).status == 503


async def test_a_stream_whose_channels_cannot_be_confirmed_is_told_to_come_back(
    certificate: certificates.Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_over_tls(certificate) as gateway, nothing_left(gateway):

        async def subscribe(*_: object) -> None:
            raise Unavailable("The link is lost.")

        monkeypatch.setattr(gateway.node.bus, "subscribe", subscribe)
        answer = await gateway.ask(request("GET", "/events/a", ACCEPT))
        assert (answer.status, gateway.node.refused["bus"]) == (200, 1)
        assert b'event: reconnect\ndata: {"reason":"bus"}\n\n' in answer.body
        assert (await gateway.ask(request("GET", "/events/a"))).status == 503


# --- handshakes -----------------------------------------------------------------------------------


def handshakes_refused(gateway: Gateway) -> int:
    return gateway.node.refused.get("handshake", 0)


async def test_tls_1_2_and_1_3_are_spoken_and_nothing_older(
    certificate: certificates.Files,
) -> None:
    async with running_over_tls(certificate) as gateway, nothing_left(gateway):
        for version, name in (
            (ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
            (ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
        ):
            gateway.tls = certificate.client(version)
            wire = await gateway.connect()
            assert isinstance(wire.stream, trio.SSLStream)
            assert wire.stream.version() == name
            await wire.send(PUBLISH)
            assert (await wire.response()).status == 202
        with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
            gateway.tls = certificate.client(ssl.TLSVersion.TLSv1_1)
        gateway.tls.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(trio.BrokenResourceError) as caught:
            await gateway.connect()
        assert "ALERT_PROTOCOL_VERSION" in str(caught.value.__cause__)
        assert handshakes_refused(gateway) == 1
        gateway.tls = certificate.client()


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), (["h2"], None), ([], None)],
)
async def test_of_protocols_only_http_1_1_is_chosen(
    certificate: certificates.Files, offered: list[str], chosen: str | None
) -> None:
    async with running_over_tls(certificate) as gateway:
        assert gateway.tls is not None
        gateway.tls.set_alpn_protocols(offered)
        wire = await gateway.connect()
        assert isinstance(wire.stream, trio.SSLStream)
        assert wire.stream.selected_alpn_protocol() == chosen


NO_HANDSHAKE = {
    "plain HTTP": PUBLISH,
    "garbage": b"\0\xff" * 100,
    "a PROXY header": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    "half a hello": HELLO,
}


@pytest.mark.parametrize("sent", NO_HANDSHAKE.values(), ids=NO_HANDSHAKE)
async def test_what_is_no_handshake_is_closed_counted_and_no_error(
    certificate: certificates.Files, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_over_tls(certificate) as gateway, nothing_left(gateway):
        tls, gateway.tls = gateway.tls, None
        wire = await gateway.connect()
        await wire.send(sent)
        if sent == HELLO:
            await wire.aclose()
        else:
            assert b"HTTP" not in await wire_end(wire)
        await until(lambda: handshakes_refused(gateway) == 1)
        gateway.tls = tls
        assert (await gateway.ask(PUBLISH)).status == 202
    assert caplog.records == []


async def wire_end(wire: Wire) -> bytes:
    """What comes until the connection ends, in order or not."""
    received = b""
    with trio.fail_after(PATIENCE):
        try:
            while data := await wire.stream.receive_some():
                received += data
        except trio.BrokenResourceError:
            pass
    return received


async def test_a_handshake_has_a_deadline_and_so_has_silence_before_and_after_it(
    certificate: certificates.Files,
) -> None:
    async with (
        running_over_tls(certificate, head_timeout=0.3) as gateway,
        nothing_left(gateway),
    ):
        shaken = await gateway.connect()
        tls, gateway.tls = gateway.tls, None
        silent, slow = await gateway.connect(), await gateway.connect()
        await slow.send(HELLO)
        for wire in (shaken, silent, slow):
            assert await wire_end(wire) == b""
        gateway.tls = tls
        assert gateway.node.refused["silent"] == 2
        assert handshakes_refused(gateway) == 1


class Ticks(trio.abc.Instrument):
    """How often trio's scheduler has gone round: each time every task that can has one turn."""

    def __init__(self) -> None:
        self.count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_a_crowd_of_handshakes_takes_turns_with_everybody_else(
    certificate: certificates.Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All hellos are there when the first one is looked at; the costly step of each is the one that
    comes first."""
    count, ticks = 30, Ticks()
    begun: dict[ssl.SSLSocket, int] = {}
    do_handshake = ssl.SSLSocket.do_handshake

    def spy(self: ssl.SSLSocket) -> None:
        begun.setdefault(self, ticks.count)
        do_handshake(self)

    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", spy)
    async with running_over_tls(certificate) as gateway:
        assert gateway.certificate is not None
        turn = gateway.certificate._turn
        trio.lowlevel.add_instrument(ticks)
        async with trio.open_nursery() as nursery, turn:  # which holds them all up
            for _ in range(count):
                nursery.start_soon(gateway.connect)
            await until(lambda: turn.statistics().tasks_waiting == count)
        trio.lowlevel.remove_instrument(ticks)
        assert len(set(begun.values())) == len(begun) == count


async def test_who_only_tries_whether_somebody_listens_is_not_counted(
    certificate: certificates.Files,
) -> None:
    async with running_over_tls(certificate) as gateway, nothing_left(gateway):
        tls, gateway.tls = gateway.tls, None
        await (await gateway.connect()).aclose()
        await gateway.quiet()
        assert gateway.node.refused == {}
        gateway.tls = tls


async def test_hundreds_of_visits_leave_nothing_behind(certificate: certificates.Files) -> None:
    async with running_over_tls(certificate) as gateway, nothing_left(gateway):

        async def visit(number: int) -> None:
            match number % 4:
                case 0:
                    await (await gateway.open(f"/events/{number}")).opened()
                case 1:
                    await (await gateway.open(f"/events/{number}", version="1.0")).opened()
                case 2:
                    wire = await gateway.connect()
                    await wire.send(PUBLISH * 3)
                    for _ in range(3):
                        assert (await wire.response()).status == 202
                case _:
                    assert (await gateway.ask(STATS)).status == 200

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(visit, number)
        assert gateway.node.hub.statistics().clients == 100
        assert gateway.node.bus.statistics().published == 150


# --- the files ------------------------------------------------------------------------------------


async def test_a_new_certificate_is_for_new_connections_and_open_streams_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    used, other = certificates.make(tmp_path, "used"), certificates.make(tmp_path, "other")
    caplog.set_level(logging.INFO)
    async with running_over_tls(used) as gateway:
        assert gateway.certificate is not None
        stream = await gateway.open("/events/a")
        await stream.opened()
        used.replace_by(other)
        await gateway.certificate.reload()
        with pytest.raises(trio.BrokenResourceError):
            await gateway.connect()  # who believes the old one alone
        gateway.tls = other.client()
        await gateway.publish("a", "after")
        assert (await stream.event()).data == "after"
        assert "has been read again" in caplog.text
        used.key.write_text("rubbish")
        await gateway.certificate.reload()
        [failed] = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert "the old one stays: tls_cert and tls_key: " in failed.getMessage()
        await gateway.publish("a", "still")
        assert (await stream.event()).data == "still"


async def test_files_that_vanish_while_they_are_read_again_cost_no_stream(
    certificate: certificates.Files,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    used = Certificate(replace(Config(), **certificate.settings))

    def load(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    before = used.context
    await used.reload()
    assert used.context is before
    assert "cannot be used: No such file or directory." in caplog.text


def refusal(files: certificates.Files) -> str:
    with pytest.raises(ConfigError) as caught:
        Certificate(replace(Config(), **files.settings))
    return str(caught.value)


def test_files_that_cannot_be_used_are_refused_with_a_sentence(tmp_path: Path) -> None:
    one, other = certificates.make(tmp_path, "one"), certificates.make(tmp_path, "other")
    missing, rubbish = tmp_path / "missing", tmp_path / "rubbish"
    rubbish.write_text("rubbish")
    told = "cannot be read: No such file or directory."
    assert refusal(replace(one, cert=missing)) == f"tls_cert: {missing} {told}"
    assert refusal(replace(one, key=missing)) == f"tls_key: {missing} {told}"
    both = f"tls_cert and tls_key: {one.cert} and {other.key} cannot be used: "
    expected = f"{both}the key does not belong to the certificate."
    assert refusal(replace(one, key=other.key)) == expected
    assert "they are no certificate and key in PEM" in refusal(replace(one, cert=rubbish))
    assert "they are no certificate and key in PEM" in refusal(replace(one, key=rubbish))
    assert "they are no certificate and key in PEM" in refusal(replace(one, cert=one.key))


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    files = certificates.make(tmp_path, "one")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", files.key, "-out", locked],
        check=True,
        capture_output=True,
    )
    assert refusal(replace(files, key=locked)) == (
        "tls_key: the key has a passphrase; save it without, for the node to read."
    )
