"""HTTP/1.1 to one origin, as httpx's transport has it, for bodies that come in very many pieces.

httpx stays the interface: requests, responses and errors are its own. What it would go through for
each piece (four generators, h11 in Python, a timeout made of three context managers) is nine tenths
of what an event of an upstream costs; here a piece is one wait, one call of the kernel, and llhttp.

1. There are at most ``max_connections``, in use and idle together; one that is idle is used again
   for a while, the youngest first, unless its server has closed it or said what nobody asked for.
2. A connection is used again only after an answer that was read to its end, and said so.
3. Whatever ends a request early, its cancellation included, closes its connection at once.
4. How long an answer may be silent is one time for all, and so watched by one task for all: a trio
   scope for each read is a quarter of what a token costs.
5. llhttp bounds nothing: heads, trailers and what frames a body are bounded here.
"""

import re
import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httptools
import httpx
import trio

READ_BYTES = 16 * 1024
"""Read at a time, and then others have their turn: as many as there can be of chunks of a byte each
are half a millisecond of the parser."""

MAX_HEAD_BYTES = 128 * 1024
"""Of the head of an answer, and of framing without any of the body in between. h11 has 100 KiB."""

_NO_TARGET = re.compile(rb"[\x00-\x20\x7f]")


class Transport(httpx.AsyncBaseTransport):
    def __init__(
        self,
        url: httpx.URL,
        trusted: ssl.SSLContext | None,
        *,
        max_connections: int,
        keepalive_seconds: float,
        silence: float,
    ) -> None:
        """``trusted`` is what an upstream that speaks TLS is held to; None: it does not.
        ``silence`` is for how long a read may take; the other times are each request's."""
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = trusted
        if trusted is not None:
            trusted.set_alpn_protocols(["http/1.1"])
        self._places = trio.Semaphore(max_connections)
        self._keepalive_seconds = keepalive_seconds
        self._silence = _Silence(silence)
        self._idle: list[_Connection] = []
        self._is_closed = False

    async def aclose(self) -> None:
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        times = request.extensions["timeout"]
        with _in_time(times["pool"], httpx.PoolTimeout):
            await self._places.acquire()
        connection = None
        try:
            connection = self._idle_one() or await self._connect(times["connect"])
            head = await connection.ask(request, times["write"])
        except BaseException:  # Cancelled above all: nothing stays open or counted, and it goes on
            if connection is not None:
                connection.close()
            self._places.release()
            raise
        return httpx.Response(
            head.status,
            headers=head.headers,
            stream=_Body(self, connection),
            extensions={"http_version": b"HTTP/" + head.version.encode()},
        )

    def _idle_one(self) -> "_Connection | None":
        """The youngest of those that can be used again; the others are closed."""
        now = trio.current_time()
        found = None
        while self._idle and found is None:
            connection = self._idle.pop()
            if now < connection.idle_until and connection.is_quiet():
                found = connection
            else:
                connection.close()
        while self._idle and self._idle[0].idle_until <= now:
            self._idle.pop(0).close()
        return found

    async def _connect(self, seconds: float) -> "_Connection":
        with _in_time(seconds, httpx.ConnectTimeout):
            try:
                stream = await trio.open_tcp_stream(self._host, self._port)
            except OSError as error:
                raise httpx.ConnectError("There is no connection.") from error
            sock = socket.socket(fileno=stream.socket.detach())
            connection = _Connection(sock, self._silence)
            if self._tls is not None:
                try:
                    await connection.secure(self._tls, self._host)
                except OSError as error:  # those of TLS are too
                    connection.close()
                    raise httpx.ConnectError("There is no TLS.") from error
                except BaseException:  # Cancelled above all: the socket is closed, and it goes on
                    connection.close()
                    raise
            return connection

    def give_back(self, connection: "_Connection") -> None:
        """Its answer is over, or nobody wants the rest of it."""
        if connection.may_be_used_again and not self._is_closed:
            connection.idle_until = trio.current_time() + self._keepalive_seconds
            self._idle.append(connection)
        else:
            connection.close()
        self._places.release()


class _Body(httpx.AsyncByteStream):
    """Of an answer. An iterator, and no generator, which nobody closes when it is left."""

    def __init__(self, transport: Transport, connection: "_Connection") -> None:
        self._transport = transport
        self._connection: _Connection | None = connection

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        connection = self._connection
        if connection is None:
            raise StopAsyncIteration
        piece = await connection.receive_body()
        if piece:
            return piece
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.give_back(connection)


class _Head:
    """Of an answer, as llhttp tells it; and the body that came with what was read last."""

    def __init__(self) -> None:
        self.version = "1.1"
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.is_whole = False
        """All of the head is here, and it is not that of an interim answer."""
        self.is_over = False
        self.is_broken = False
        """What comes next is not HTTP."""
        self.keeps_alive = False
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        if self.is_over:
            self.keeps_alive = False  # nobody has asked for another one
        else:
            self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_whole:  # a trailer is nobody's
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if not self.is_over and (status >= 200 or status == 101):
            self.status = status
            self.version = self.parser.get_http_version()
            self.is_whole = True

    def on_body(self, data: bytes) -> None:
        if not self.is_over:
            self.body.append(data)

    def on_message_complete(self) -> None:
        if self.is_whole and not self.is_over:
            self.is_over = True
            self.keeps_alive = self.parser.should_keep_alive()

    @property
    def ends_with_connection(self) -> bool:
        """RFC 9112, section 6.3: neither a length nor chunks say where the body ends."""
        names = {name.lower() for name, _ in self.headers}
        return not names & {b"content-length", b"transfer-encoding"}

    @property
    def is_unreadable(self) -> bool:
        """It is in a coding that nobody asked for."""
        return any(
            name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked"
            for name, value in self.headers
        )


class _Connection:
    """Its socket is non-blocking; with TLS OpenSSL is on it itself, as in `gateway.transport`."""

    def __init__(self, sock: socket.socket, silence: "_Silence") -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._tls: ssl.SSLSocket | None = None
        self._silence = silence
        self._head = _Head()
        self._without_body = 0
        """Bytes that have come since the last ones of a body."""
        self.idle_until = 0.0

    async def secure(self, trusted: ssl.SSLContext, host: str) -> None:
        """Raises OSError."""
        self._socket = self._tls = trusted.wrap_socket(
            self._socket, server_hostname=host, do_handshake_on_connect=False
        )
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._socket)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._socket)

    @property
    def may_be_used_again(self) -> bool:
        return self._head.is_over and self._head.keeps_alive

    def is_quiet(self) -> bool:
        """Nothing has come: neither an end nor what nobody asked for."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Without TLS's own farewell, which nobody waits for (RFC 2818, section 2.2.2)."""
        self._socket.close()

    async def ask(self, request: httpx.Request, write: float) -> _Head:
        """Send a request; the head of what is answered. Raises as httpx's transport does."""
        head = self._head = _Head()
        self._without_body = 0
        assert isinstance(request.stream, httpx.AsyncByteStream)
        body = b"".join([piece async for piece in request.stream])
        with _in_time(write, httpx.WriteTimeout), suppress(OSError):
            await self._send(_rendered(request) + body)  # unless it is answered before it is read
        while not head.is_whole:
            if not await self._receive():
                raise httpx.RemoteProtocolError("There is no answer.")
        if head.is_unreadable or head.status == 101:
            raise httpx.RemoteProtocolError("The answer cannot be read.")
        if request.method == "HEAD":
            head.is_over = True
        return head

    async def receive_body(self) -> bytes:
        """The next bytes of it; none at its end."""
        head = self._head
        while not head.body and not head.is_over:
            if not await self._receive():
                if not head.ends_with_connection:
                    raise httpx.RemoteProtocolError("The answer has ended before its end.")
                head.is_over = True
        body = head.body[0] if len(head.body) == 1 else b"".join(head.body)
        head.body.clear()
        return body

    async def _receive(self) -> bool:
        """Read on; whether there was anything."""
        if self._head.is_broken:
            raise httpx.RemoteProtocolError("The answer is not HTTP.")
        data = await self._read()
        head = self._head
        before = len(head.body)
        if data:
            try:
                head.parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                head.keeps_alive = False
                head.is_broken = not head.is_over  # else it is behind the end of the answer
        self._without_body = 0 if len(head.body) > before else self._without_body + len(data)
        if self._without_body > MAX_HEAD_BYTES:
            raise httpx.RemoteProtocolError("The answer has no end of framing.")
        return bool(data)

    async def _send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._socket)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await trio.lowlevel.wait_writable(self._socket)

    async def _read(self) -> bytes:
        """Always lets others have their turn."""
        self._silence.begin(self._socket)
        try:
            while True:
                try:
                    if self._tls is not None and self._tls.pending():
                        await trio.lowlevel.checkpoint()
                    else:
                        await trio.lowlevel.wait_readable(self._socket)
                    return self._socket.recv(READ_BYTES)
                except (BlockingIOError, ssl.SSLWantReadError):
                    continue
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(self._socket)
        except trio.ClosedResourceError:
            raise httpx.ReadTimeout("There was nothing to be read in time.") from None
        except OSError:
            raise httpx.ReadError("The connection is broken.") from None
        finally:
            self._silence.end(self._socket)


class _Silence:
    """Who waits for what does not come is woken, by a ClosedResourceError, after ``seconds``.

    Its task lives while somebody waits, and for that long after.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: dict[socket.socket, float] = {}
        """In order, since all wait for equally long."""
        self._is_watched = False

    def begin(self, sock: socket.socket) -> None:
        self._until[sock] = trio.current_time() + self._seconds
        if not self._is_watched:
            self._is_watched = True
            trio.lowlevel.spawn_system_task(self._watch)

    def end(self, sock: socket.socket) -> None:
        self._until.pop(sock, None)

    async def _watch(self) -> None:
        try:
            while self._until:
                sock, until = next(iter(self._until.items()))
                if until <= trio.current_time():
                    del self._until[sock]
                    trio.lowlevel.notify_closing(sock)
                else:
                    await trio.sleep_until(until)
        finally:
            self._is_watched = False


def _rendered(request: httpx.Request) -> bytes:
    """The head of a request. Raises LocalProtocolError for what would not be one."""
    target = request.url.raw_path
    if _NO_TARGET.search(target):
        raise httpx.LocalProtocolError("That is no target of a request.")
    parts = [request.method.encode(), b" ", target, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        if b"\r" in value or b"\n" in value or b"\0" in value:
            raise httpx.LocalProtocolError("A header has a value that none can have.")
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


@contextmanager
def _in_time(seconds: float, error: type[httpx.TimeoutException]) -> Iterator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise error("It took too long.")
