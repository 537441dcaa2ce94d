"""Keys at a URL: fetched, kept, looked for anew; in virtual time, and once over real TLS."""

import json
import logging
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from tokens import jwk, private_key, token
from trio.testing import MockClock

from gateway import jwks
from gateway.auth import Authenticator
from gateway.config import Config, Issuer
from gateway.errors import ConfigError, GatewayError, Unauthorized, Unavailable
from gateway.jwks import BACK_OFF_MOST, COOLDOWN, PATIENCE, REFRESH_SECONDS
from gateway.keys import MAX_KEY_FILE_BYTES
from gateway.server import start_logging

NOW_MS = 1_700_000_000_000


def key_set(*keys: dict[str, object]) -> bytes:
    return json.dumps({"keys": keys}).encode()


OLD, NEW = jwk("RSA", kid="old"), jwk("RSA 2", kid="new")


def signed(kind: str, kid: str, user: str = "u") -> str:
    return token(user, key=private_key(kind), algorithm="RS256", headers={"kid": kid})


class Site:
    """What is at the URL, and how often it was asked for."""

    def __init__(self) -> None:
        self.content: bytes | Exception = key_set(OLD)
        self.asked_at: list[float] = []
        self.seconds = 0.0

    async def get(self, url: str) -> bytes:
        assert url == "https://id.test/keys"
        self.asked_at.append(trio.current_time())
        await trio.sleep(self.seconds)
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    """In the place of the thread that fetches: virtual time knows none."""
    site = Site()

    async def run_sync(get: object, url: str, *, abandon_on_cancel: bool) -> bytes:
        assert get is jwks._get
        assert abandon_on_cancel
        return await site.get(url)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    return site


@asynccontextmanager
async def authenticator() -> AsyncIterator[Authenticator]:
    config = Config(issuers=(Issuer(jwks_url="https://id.test/keys"),))
    async with trio.open_nursery() as nursery:
        auth = Authenticator(config, now_ms=lambda: NOW_MS)
        nursery.start_soon(auth.run)
        yield auth
        nursery.cancel_scope.cancel()


async def test_keys_are_fetched_at_the_start_and_now_and_then(
    site: Site, autojump_clock: MockClock
) -> None:
    async with authenticator() as auth:
        await trio.lowlevel.checkpoint()
        assert (await auth.identify(signed("RSA", "old"))).user == "u"
        await trio.sleep(2.5 * REFRESH_SECONDS)
        assert site.asked_at == pytest.approx([0, REFRESH_SECONDS, 2 * REFRESH_SECONDS])


async def test_who_comes_before_the_keys_waits_and_is_then_told_to_come_back(
    site: Site, autojump_clock: MockClock
) -> None:
    site.seconds = 1.0
    async with authenticator() as auth:
        assert (await auth.identify(signed("RSA", "old"))).user == "u"
        assert trio.current_time() == pytest.approx(1.0)
    site.seconds = 100.0
    async with authenticator() as auth:
        before = trio.current_time()
        with pytest.raises(Unavailable) as caught:
            await auth.identify(signed("RSA", "old"))
        assert caught.value.extra["reason"] == "keys"
        assert trio.current_time() - before == pytest.approx(PATIENCE)


async def test_a_new_key_is_found_by_its_id_and_an_old_one_forgotten(
    site: Site, autojump_clock: MockClock
) -> None:
    async with authenticator() as auth:
        old = signed("RSA", "old")
        await auth.identify(old)
        site.content = key_set(NEW)
        await trio.sleep(COOLDOWN + 1)
        assert (await auth.identify(signed("RSA 2", "new"))).user == "u"
        with pytest.raises(Unauthorized):
            await auth.identify(old)
        assert len(site.asked_at) == 2


async def test_invented_ids_cannot_have_keys_fetched_all_the_time(
    site: Site, autojump_clock: MockClock
) -> None:
    async with authenticator() as auth:
        await auth.identify(signed("RSA", "old"))
        for number in range(100):
            with pytest.raises(Unauthorized):
                await auth.identify(signed("RSA 2", f"invented {number}"))
            await trio.sleep(1.0)
        assert len(site.asked_at) <= 1 + 100 / COOLDOWN


@pytest.mark.parametrize(
    "content",
    [OSError("no route"), ConfigError("answered with 500."), b"<html>", b'{"keys": []}', b""],
    ids=str,
)
async def test_keys_are_kept_while_they_cannot_be_fetched(
    content: bytes | Exception, site: Site, autojump_clock: MockClock
) -> None:
    async with authenticator() as auth:
        await auth.identify(signed("RSA", "old"))
        site.content = content
        await trio.sleep(10 * REFRESH_SECONDS)
        assert (await auth.identify(signed("RSA", "old", "another"))).user == "another"
        pauses = [b - a for a, b in zip(site.asked_at[1:], site.asked_at[2:], strict=False)]
        assert max(pauses) <= 1.5 * BACK_OFF_MOST
        assert min(pauses[8:]) >= 0.5 * BACK_OFF_MOST
        assert auth.statistics().key_fetch_failures == len(site.asked_at) - 1
        site.content = key_set(NEW)
        await trio.sleep(1.5 * BACK_OFF_MOST)
        assert (await auth.identify(signed("RSA 2", "new"))).user == "u"


async def test_a_bent_key_costs_neither_the_node_nor_the_good_ones(
    site: Site, autojump_clock: MockClock
) -> None:
    site.content = key_set(OLD, NEW | {"key_ops": None}, NEW | {"alg": []})
    async with authenticator() as auth:
        assert (await auth.identify(signed("RSA", "old"))).user == "u"
        assert auth.statistics().key_fetch_failures == 0


async def test_a_name_that_no_resolver_takes_is_a_failure_like_any_other(
    site: Site, autojump_clock: MockClock
) -> None:
    site.content = UnicodeError("label too long")
    async with authenticator() as auth:
        await trio.sleep(1)
        assert auth.statistics().key_fetch_failures > 0


def test_what_is_no_url_stops_the_start() -> None:
    config = Config(issuers=(Issuer(jwks_url="https://[::1/keys"),))
    with pytest.raises(ConfigError, match=r"jwks_url .* is no URL"):
        Authenticator(config, now_ms=lambda: NOW_MS)


# --- over real TLS --------------------------------------------------------------------------------


class HttpsSite:
    def __init__(self, folder: Path) -> None:
        self.content = key_set(OLD)
        self.status = 200
        self.paths: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.paths.append(self.path)
                self.send_response(site.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(site.content)))
                self.end_headers()
                self.wfile.write(site.content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        key, certificate = folder / "key.pem", folder / "cert.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=localhost"),
                *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
            ],
            check=True,
            capture_output=True,
        )
        self.certificate = certificate
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_address[1]}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def https_site(tmp_path: Path) -> Iterator[HttpsSite]:
    site = HttpsSite(tmp_path)
    yield site
    site.close()


async def identified(auth: Authenticator, credential: str) -> str:
    try:
        return str((await auth.identify(credential)).user)
    except GatewayError as error:
        return type(error).__name__


async def test_keys_come_over_tls_from_who_is_trusted(
    https_site: HttpsSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jwks, "COOLDOWN", 0.0)
    monkeypatch.setattr(jwks, "BACK_OFF_FIRST", 0.01)
    monkeypatch.setattr(jwks, "BACK_OFF_MOST", 0.01)
    config = Config(issuers=(Issuer(jwks_url=https_site.url),))
    start_logging(config)
    caplog.set_level(logging.INFO)
    auth = Authenticator(config, now_ms=lambda: NOW_MS)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(auth.run)
            assert await identified(auth, signed("RSA", "old")) == "Unavailable"
            assert "certificate verify failed" in caplog.text
            monkeypatch.setenv("SSL_CERT_FILE", str(https_site.certificate))
            while await identified(auth, signed("RSA", "old")) != "u":  # noqa: ASYNC110
                await trio.sleep(0.01)
            https_site.content = key_set(NEW)
            assert await identified(auth, signed("RSA 2", "new")) == "u"
            for status, content, says in (
                (302, b"", "answered with 302"),
                (500, b"", "answered with 500"),
                (200, b" " * (MAX_KEY_FILE_BYTES + 1), "more than"),
            ):
                https_site.status, https_site.content = status, content
                await identified(auth, signed("RSA", "unknown"))
                while says not in caplog.text:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert await identified(auth, signed("RSA 2", "new", "v")) == "v"
            assert set(https_site.paths) == {"/keys"}, "it followed a redirect"
            assert "HTTP Request" not in caplog.text, "httpx logs what it fetches"
            nursery.cancel_scope.cancel()
