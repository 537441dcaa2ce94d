"""HTTP/1.1 over a blocking socket: a request, and its response as it comes.

A socket and llhttp (httptools) and nothing between them, since Python is what limits a load
generator: a stream costs its greenlet and one read for all that has come.
"""

import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

READ_BYTES = 64 * 1024

MAX_BODY_BYTES = 64 * 1024
"""Of an answer that is read as a whole; those of the gateway are a few hundred bytes."""


class Target(NamedTuple):
    """A node, or what stands before it."""

    scheme: str
    host: str
    port: int
    path: str
    """Before each path of the gateway; most often empty."""

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Raises ValueError where that is no URL of http or https."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of http or https")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


class BrokenConnection(OSError):
    """The peer ended the connection where it should not, or sent what is no HTTP."""


@cache
def _tls() -> ssl.SSLContext:
    """Certificates are verified; `SSL_CERT_FILE` names an authority of one's own."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Response:
    """What llhttp has read of one response."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.has_head = self.is_complete = False
        self.body: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.is_complete = True


class Connection:
    """To one target. Raises OSError for all that goes wrong; is to be closed then."""

    def __init__(self, target: Target, *, timeout: float, receive_buffer: int = 0) -> None:
        """``receive_buffer`` is the size of the kernel's (SO_RCVBUF), 0: its own choice."""
        self.target = target
        self._response = _Response()
        self._parser = httptools.HttpResponseParser(self._response)
        self._socket = _connect(target, timeout, receive_buffer)

    def set_timeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def request(
        self, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> int:
        """Send a request, and return its response's status as soon as its head has come."""
        lines = [f"{method} {self.target.path}{path} HTTP/1.1", f"Host: {self.target.authority}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self._response = _Response()
        self._parser = httptools.HttpResponseParser(self._response)
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        while not self._response.has_head:
            if not self._read(READ_BYTES):
                raise BrokenConnection("the connection ended before the response")
        return self._parser.get_status_code()

    def header(self, name: str) -> str | None:
        """Of the response, by its name in lower case."""
        return self._response.headers.get(name)

    def receive(self, most: int = READ_BYTES) -> bytes:
        """Some of the body, of at most ``most`` bytes read now; none when it has ended, in order or
        not."""
        response = self._response
        while not response.body and not response.is_complete:
            if not self._read(most):
                return b""
        body = b"".join(response.body)
        response.body.clear()
        return body

    def receive_all(self) -> bytes:
        """The whole body, bounded. Raises BrokenConnection where it is cut short."""
        body = b""
        while (piece := self.receive()) and len(body) < MAX_BODY_BYTES:
            body += piece
        if not self._response.is_complete:
            raise BrokenConnection("the response was cut short")
        return body

    def _read(self, most: int) -> bool:
        data = self._socket.recv(most)
        if data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise BrokenConnection(f"no HTTP: {error}") from None
        return bool(data)

    def cut(self) -> None:
        """End it from another greenlet: who reads finds its end."""
        with suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


def _connect(target: Target, timeout: float, receive_buffer: int) -> socket.socket:
    """Raises the error of the last address that was tried."""
    failure: OSError = BrokenConnection(f"{target.host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        target.host, target.port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
            if target.scheme == "https":
                return _tls().wrap_socket(sock, server_hostname=target.host)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def seconds(retry_after: str | None) -> float:
    """Of a Retry-After; 0 without it, and for a date."""
    return float(retry_after) if retry_after and retry_after.isdigit() else 0.0
