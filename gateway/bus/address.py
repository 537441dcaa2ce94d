"""Where Redis is: the URL of the setting, and a connection to what it names.

redis-py reads the URLs and asks the Sentinels, in a thread, as that is rare; the connection itself
is a trio stream. Queries that redis-py understands for TLS (``ssl_ca_certs``, ``ssl_certfile``,
``ssl_keyfile``, ``ssl_cert_reqs``, ``ssl_check_hostname``) mean what they mean there.
"""

import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
import trio
from redis.connection import SSLConnection, parse_url
from redis.sentinel import Sentinel

from gateway.errors import ConfigError

SENTINEL_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
SENTINEL_PORT = 26379
REDIS_PORT = 6379

SHAPES = (
    "redis://, rediss:// or unix:// as redis-py reads them, or"
    " redis+sentinel://host:port,host:port/service"
)


class NoPrimary(OSError):
    """The Sentinels name no primary, or none of them answers."""


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL says. ``sentinels`` are asked for ``service`` where there are any."""

    host: str
    port: int
    path: str | None
    database: int
    username: str | None
    password: str | None
    tls: ssl.SSLContext | None
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""

    def __str__(self) -> str:
        """For people: without what is secret."""
        if self.sentinels:
            listed = ",".join(f"{host}:{port}" for host, port in self.sentinels)
            return f"redis+sentinel://{listed}/{self.service}"
        if self.path is not None:
            return f"unix://{self.path}"
        return f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}"

    async def dial(self, patience: float) -> trio.abc.Stream:
        """A connection to the primary. Raises OSError, and trio.TooSlowError after ``patience``."""
        with trio.fail_after(patience):
            host, port = self.host, self.port
            if self.sentinels:
                host, port = await trio.to_thread.run_sync(
                    self._ask_sentinels, patience, abandon_on_cancel=True
                )
            if self.path is not None:
                return await trio.open_unix_socket(self.path)
            stream = await trio.open_tcp_stream(host, port)
            if self.tls is None:
                return stream
            secure = trio.SSLStream(stream, self.tls, server_hostname=host)
            ready = False
            try:
                await secure.do_handshake()
                ready = True
                return secure
            finally:
                if not ready:
                    stream.socket.close()

    def _ask_sentinels(self, patience: float) -> tuple[str, int]:
        each = patience / (len(self.sentinels) + 1)
        group = Sentinel(  # type: ignore[no-untyped-call]
            list(self.sentinels), socket_timeout=each, socket_connect_timeout=each
        )
        try:
            host, port = group.discover_master(self.service)  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            raise NoPrimary(f"no Sentinel knows a primary of {self.service}: {error}") from None
        finally:
            for asked in group.sentinels:
                asked.close()
        return str(host), int(port)


def parse_address(url: str) -> Address:
    """What ``url`` names. Raises ConfigError with a sentence that shows no password."""
    try:
        scheme = urlsplit(url).scheme
        if scheme in SENTINEL_SCHEMES:
            return _sentinel_address(url, SENTINEL_SCHEMES[scheme])
        return _address(parse_url(url))  # type: ignore[no-untyped-call]
    except (ValueError, OSError, ssl.SSLError) as error:
        told = str(error) if "@" not in str(error) else "it cannot be read"
        raise ConfigError(f"redis is not a URL of Redis ({told}); it must be {SHAPES}.") from None


def _sentinel_address(url: str, scheme: str) -> Address:
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    sentinels = tuple(map(_host_and_port, filter(None, hosts.split(","))))
    service, _, database = parts.path.strip("/").partition("/")
    if not sentinels or not service:
        raise ValueError("it names no Sentinel, or no service")
    if database and not database.isdecimal():
        raise ValueError("a database is a number")
    of_primary = urlunsplit((scheme, f"{user}{at}primary", database or "0", parts.query, ""))
    found = _address(parse_url(of_primary))  # type: ignore[no-untyped-call]
    return Address(
        "",
        0,
        None,
        found.database,
        found.username,
        found.password,
        found.tls,
        sentinels,
        service,
    )


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a Sentinel has no host")
    return parts.hostname, parts.port or SENTINEL_PORT


def _address(options: dict[str, Any]) -> Address:
    is_secure = options.get("connection_class") is SSLConnection
    return Address(
        options.get("host", "localhost"),
        int(options.get("port", REDIS_PORT)),
        options.get("path"),
        int(options.get("db", 0)),
        options.get("username"),
        options.get("password"),
        _tls(options) if is_secure else None,
    )


def _tls(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path")
    )
    if certificate := options.get("ssl_certfile"):
        context.load_cert_chain(
            certificate, options.get("ssl_keyfile"), options.get("ssl_password")
        )
    if str(options.get("ssl_check_hostname", True)).lower() in ("false", "0", "no"):
        context.check_hostname = False
    required = str(options.get("ssl_cert_reqs", "required")).lower()
    if required == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif required == "optional":
        context.verify_mode = ssl.CERT_OPTIONAL
    elif required != "required":
        raise ValueError("ssl_cert_reqs is required, optional or none")
    return context
