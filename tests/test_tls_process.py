"""TLS with the real program and other people's clients; certificates renewed under open streams."""

import os
import re
import signal
import ssl
import subprocess
from pathlib import Path

import certificates
import pytest
import trio
from process import GATEWAY, PATIENCE, NodeProcess, child, environment, in_parallel, node

MANY = 32
"""Connections of which each of two workers gets some, but for one time in two thousand million."""

RELOADED = "the certificate has been read again"


@pytest.fixture
def files(tmp_path: Path) -> certificates.Files:
    return certificates.make(tmp_path, "used")


@pytest.fixture
def renewed(tmp_path: Path) -> certificates.Files:
    return certificates.make(tmp_path, "renewed")


def der(files: certificates.Files) -> bytes:
    return ssl.PEM_cert_to_DER_cert(files.cert.read_text())


async def shown(n: NodeProcess) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with await trio.open_tcp_stream("127.0.0.1", n.port) as connection:
        stream = trio.SSLStream(connection, context)
        await stream.do_handshake()
        found: bytes = stream.getpeercert(binary_form=True)
    return found


async def run(*command: str) -> "subprocess.CompletedProcess[bytes]":
    """What a program says that is not waited for in vain, on stdout and stderr as one."""
    return await trio.run_process(
        command,
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
        env=environment(),
    )


async def test_curl_is_served_over_1_2_and_1_3_and_refused_below(files: certificates.Files) -> None:
    async with node(*files.flags, tls=files.client()) as n:
        curl = ("curl", "-sS", "--max-time", "10", "--cacert", str(files.cert), f"{n.url}/healthz")
        for options in (("--tlsv1.2", "--tls-max", "1.2"), ("--tlsv1.3",), ("--http2",)):
            answered = await run(*curl, *options)
            assert (answered.returncode, answered.stdout) == (0, b'{"status":"ok"}\n'), options
        refused = await run(*curl, "--tls-max", "1.1", "--ciphers", "ALL:@SECLEVEL=0")
        assert refused.returncode == 35, refused  # no TLS connection
        assert b"alert protocol version" in refused.stdout
        assert (await n.get("/healthz")).status_code == 200
        plain = await run("curl", "-sS", "--max-time", "10", f"http://127.0.0.1:{n.port}/healthz")
        assert plain.returncode != 0
        assert "Traceback" not in n.output
        assert "level=error" not in n.output


async def test_openssl_agrees_on_http_1_1_and_is_told_the_end(files: certificates.Files) -> None:
    async with node(*files.flags, tls=files.client()) as n:
        asked = (
            "printf 'GET /healthz HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' | openssl s_client -ign_eof"
        )
        told = await run("sh", "-c", f"{asked} -alpn h2,http/1.1 -connect 127.0.0.1:{n.port}")
        assert b"ALPN protocol: http/1.1" in told.stdout
        assert b'{"status":"ok"}' in told.stdout
        assert b"closed" in told.stdout.splitlines()[-1]  # and not "unexpected eof"
        none = await run("sh", "-c", f"{asked} -alpn h2 -connect 127.0.0.1:{n.port}")
        assert b"No ALPN negotiated" in none.stdout


async def test_the_certificate_is_renewed_under_an_open_stream(
    files: certificates.Files, renewed: certificates.Files
) -> None:
    async with node(*files.flags, tls=files.client()) as n:
        stream = await n.open_stream("/events/a")
        await n.publish("a", "before")
        await stream.until(b"data: before\n")
        assert await shown(n) == der(files)
        files.replace_by(renewed)
        n.signal(signal.SIGHUP)
        await n.until(RELOADED)
        assert await shown(n) == der(renewed)
        n.tls = files.client()
        await n.publish("a", "after")
        await stream.until(b"data: after\n")
        files.key.unlink()
        n.signal(signal.SIGHUP)
        await n.until(
            'level=error logger=gateway msg="the certificate was not read again, .* No such file'
        )
        assert await shown(n) == der(renewed)
        await n.publish("a", "still")
        await stream.until(b"data: still\n")
        n.signal(signal.SIGTERM)
        await stream.until_end()
        assert re.search(rb'event: reconnect\ndata: {"reason":"draining"}\n\n\Z', stream.body)
        assert await n.wait() == 0


async def test_every_worker_renews_it(
    files: certificates.Files, renewed: certificates.Files, redis_port: int, new_prefix: str
) -> None:
    redis = ("--redis", f"redis://127.0.0.1:{redis_port}", "--redis-prefix", new_prefix)
    async with node(*files.flags, *redis, "--workers", "2", tls=files.client()) as n:
        streams = [await n.open_stream("/events/a") for _ in range(MANY)]

        async def all_get(text: str) -> None:
            await n.publish("a", text)
            async with trio.open_nursery() as nursery:
                for stream in streams:
                    nursery.start_soon(stream.until, f"data: {text}\n".encode())

        await all_get("before")
        files.replace_by(renewed)
        n.signal(signal.SIGHUP)
        for _ in range(2):
            await n.until(rf'level=info process=worker-\d logger=gateway msg="{RELOADED}')
        assert {await shown(n) for _ in range(MANY)} == {der(renewed)}
        n.tls = files.client()
        await all_get("after")
        os.kill(n.workers()[0], signal.SIGHUP)  # one alone may be told as well
        await n.until(rf'level=info process=worker-\d logger=gateway msg="{RELOADED}')
        await all_get("still")
        n.signal(signal.SIGTERM)
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.until_end)
        assert await n.wait() == 0
        assert "Traceback" not in n.output
        assert "has died" not in n.output


async def test_without_tls_a_hangup_is_only_told(redis_port: int, new_prefix: str) -> None:
    redis = ("--redis", f"redis://127.0.0.1:{redis_port}", "--redis-prefix", new_prefix)
    for flags in ((), (*redis, "--workers", "2")):
        async with node(*flags) as n:
            stream = await n.open_stream("/events/a")
            n.signal(signal.SIGHUP)
            await n.until("nothing to read again")
            for worker in n.workers():
                os.kill(worker, signal.SIGHUP)
                await n.until("nothing to read again")
            await n.publish("a", "after")
            await stream.until(b"data: after\n")


async def test_a_hangup_before_the_node_is_ready_does_not_end_it(
    files: certificates.Files,
) -> None:
    flags = ("--bind", "127.0.0.1:0", *files.flags)
    async with child(GATEWAY, "serve", *flags) as n:
        with trio.fail_after(PATIENCE):
            while "SigBlk:\t0000000000000001" not in n.status():  # for milliseconds
                await trio.lowlevel.checkpoint()
        n.signal(signal.SIGHUP)
        await n.until("on https://")
        await n.until(RELOADED)


async def test_hangups_while_the_node_leaves_do_not_end_it(files: certificates.Files) -> None:
    async with node(*files.flags, tls=files.client()) as n:
        n.signal(signal.SIGTERM)
        with trio.CancelScope() as hangups:
            async with trio.open_nursery() as nursery:

                async def hang_up() -> None:
                    while True:
                        n.signal(signal.SIGHUP)
                        await trio.sleep(0.0005)

                nursery.start_soon(hang_up)
                assert await n.wait() == 0
                hangups.cancel()


async def test_files_that_cannot_be_used_stop_the_start(
    files: certificates.Files, renewed: certificates.Files
) -> None:
    workers = ("--redis", "redis://127.0.0.1:1", "--workers", "2")

    async def is_refused(*flags: str) -> None:
        async with child(GATEWAY, "serve", "--bind", "127.0.0.1:0", *flags) as gateway:
            assert await gateway.wait() == 2
        assert gateway.output == (
            f"gateway: tls_cert and tls_key: {files.cert} and {renewed.key} cannot be used: the key"
            " does not belong to the certificate.\n"
        )

    wrong = ("--tls-cert", str(files.cert), "--tls-key", str(renewed.key))
    await in_parallel([lambda: is_refused(*wrong), lambda: is_refused(*wrong, *workers)])
