"""One accepted connection: its requests, one after the other, until it ends or is somebody else's.

It reads a request, hands what it means to the api, answers, and reads the next; a stream takes the
connection for good, and so does a request for the edge. Rules:

1. Every wait on a peer has a deadline: idle, head, body, answer. A poll waits for events, not for
   its peer, and brings its own.
2. Nothing that is sent after a stream's request is ever a request.
3. A peer that is quick, or sends many requests together, takes turns with everybody else.

What is here is for plain sockets; connections of other kinds are subclasses of it.
"""

import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import trio

from gateway.api.cors import cors_headers
from gateway.api.poll import PATH as POLL
from gateway.api.poll import poll
from gateway.api.publish import PATH as PUBLISH
from gateway.api.publish import publish
from gateway.api.push import BELOW as STREAMS_BELOW
from gateway.api.push import ROUTE as PUSH
from gateway.api.push import is_push, push
from gateway.api.refusals import is_refusal, told
from gateway.api.relay import METHODS as RELAYED
from gateway.api.relay import PATH as RELAY
from gateway.api.relay import ROUTE as RELAY_TO
from gateway.api.relay import as_clients_read, forward, headers_of
from gateway.api.request import Answer, Request, parse_target, problem
from gateway.api.streams import PATH as STREAMS
from gateway.api.streams import create
from gateway.api.subscribe import PATH as EVENTS
from gateway.api.subscribe import (
    STREAM_HEADERS,
    head_of,
    refuse,
    subscribe,
    turn_away,
    why_not_opened,
)
from gateway.errors import GatewayError, RequestTimeout, TooManyRequests, Unavailable
from gateway.http1 import Parsed, Phase, RequestReader
from gateway.http1_render import (
    CONTINUE,
    LAST_CHUNK,
    chunk,
    render_head,
    render_response,
    render_stream_head,
)
from gateway.hub_client import Client
from gateway.node import Node
from gateway.relay.events import Failure
from gateway.relay.proxy import Passage
from gateway.request_id import HEADER as REQUEST_ID
from gateway.request_id import NAME, named_id
from gateway.requests import OTHER, PUBLISH_TO
from gateway.streams import EventStream
from gateway.transport import READ_BYTES, Transport, plain_stream

BODIES_BYTES = 64 * 1024 * 1024
"""Of request bodies that take more than one read, until they are answered, over all connections:
64 of the largest by default. A chunked one counts as the largest."""

CROWD = 32
"""Connections beyond the bound that are still told so; any others are closed at once."""

LINGER_SECONDS = 1.0
LINGER_BYTES = 1024 * 1024
"""How long and how much is still read after a last answer: closing a socket with unread input
resets the connection, and the peer may then lose the answer (RFC 9112 9.6)."""

PROBE_SECONDS = 10
"""Between two probes of a producer that is silent, as those are whose models think."""

STREAM_HEAD = render_stream_head(STREAM_HEADERS)

_EVENTS, _POLL, _PUBLISH = EVENTS.encode(), POLL.encode(), PUBLISH.encode()
_STREAMS, _RELAY = STREAMS.encode(), RELAY.encode()


ServeCold = Callable[[Parsed, Transport, str, Callable[[], None]], Awaitable[None]]
"""Serves a request that is not hot on its connection, for the peer of that address, and closes
that. What it calls lets go of the request's body, where the answer takes longer than that."""


class Service:
    """What all connections of a worker share."""

    def __init__(self, node: Node, edge: ServeCold) -> None:
        self.node = node
        self.edge = edge
        self.held_bytes = 0
        """Of request bodies that are being read or worked on."""
        self.released = trio.Event()
        self.streams = 0
        """Connections that are open streams as well, and counted there."""


class Connection:
    room = CROWD
    """How far beyond the bound of connections one like this is still served."""

    def __init__(self, service: Service, sock: socket.socket, peer: str) -> None:
        """``sock`` is non-blocking and becomes the connection's own."""
        config = service.node.config
        self._service = service
        self._node = service.node
        self._sock: socket.socket | None = sock
        self._peer = peer
        self._reader = RequestReader(
            max_head_bytes=config.max_head_bytes,
            max_url_bytes=config.max_url_bytes,
            max_body_bytes=config.max_body_bytes,
            is_streamed=is_push,
            streamed_below=STREAMS_BELOW,
            max_streamed_bytes=config.stream_bytes,
        )
        self._is_new = True
        """No request has come yet."""
        self.phase: Phase | None = None
        """What the peer is waited for; None while it is not."""
        self._serving: Parsed | None = None
        self._crowded = False
        self._has_received = False
        self._held = 0
        self._route = OTHER
        self._asked_at = 0.0
        """Of the last request that came: its route, and when it was whole, in seconds."""
        self.scope = trio.CancelScope()
        self._deadline: float | None = None
        """When ``scope`` is to be cancelled; None from a new phase until it is next looked at."""

    def close(self) -> None:
        """Close the connection, unless it has been handed over."""
        self._release()
        if self._sock is not None:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def run(self, *, crowded: bool) -> None:
        """Serve requests until the connection ends, is handed over, or is too slow.

        On a crowded node streams and publishes are told to come back.
        """
        self._crowded = crowded
        with self.scope:
            try:
                while (request := await self._next_request()) is not None:
                    self._serving = request
                    if not await self._serve(request):
                        break
                    self._serving = None
                    self._release()
            except GatewayError as error:
                self.phase = None
                await self._end_with(self._unread(error))
        if not self.scope.cancel_called:
            return
        if self.phase is Phase.IDLE:
            self._node.refuse("silent" if self._is_new else "idle")
        elif self.phase in (Phase.HEAD, Phase.BODY):
            part, setting = "head", "head_timeout"
            if self.phase is Phase.BODY:
                part, setting = "body", "body_timeout"
            late = RequestTimeout(f"The request's {part} came too slowly ({setting}).")
            await self._end_with(self._unread(late))

    def _unread(self, error: GatewayError) -> Answer:
        """The answer to a request that could not be read."""
        answer = problem(error)
        return as_clients_read(answer) if _is_under(self._reader.target, _RELAY) else answer

    async def _next_request(self) -> Parsed | None:
        """The next request; None when the peer has ended."""
        reader = self._reader
        while (request := reader.next_request()) is None:
            if reader.phase is not self.phase:
                self.phase, self._deadline = reader.phase, None
                if self.phase is Phase.BODY:
                    await self._hold(reader.body_bound)
            if reader.expects_continue:
                await self._send(CONTINUE)
                reader.continue_sent()
            data = await self._receive()
            if not data:
                return None
            reader.receive_data(data)
        if self.scope.cancel_called:  # it came at the very last, and no answer could be awaited
            return None
        self.phase = None
        self._is_new = False
        return request

    async def _hold(self, size: int) -> None:
        """Have room for a body until it is answered; raises Unavailable after a bounded wait."""
        service = self._service
        with trio.move_on_after(self._node.config.publish_wait):
            while service.held_bytes and service.held_bytes + size > BODIES_BYTES:
                await service.released.wait()
            self._held = size
            service.held_bytes += size
            return
        self._node.refuse("bodies")
        raise Unavailable("The node is working on as many request bodies as it can hold.")

    def _release(self) -> None:
        if self._held:
            self._service.held_bytes -= self._held
            self._held = 0
            self._service.released.set()
            self._service.released = trio.Event()

    def _let_go_of_body(self) -> None:
        """The body of the request that is served is not needed any more, and others have room."""
        if self._serving is not None:
            self._serving.body = b""
        self._release()

    def look(self, now: float) -> None:
        """End the connection if its peer has been waited for too long in one phase."""
        config = self._node.config
        if self.phase is None:
            return
        if self._deadline is None:
            if self.phase is Phase.BODY:
                patience = config.body_timeout
            elif self.phase is Phase.IDLE and not self._is_new:
                patience = config.idle_timeout
            else:
                patience = config.head_timeout
            self._deadline = now + patience
        elif self._deadline < now:
            self.scope.cancel()

    async def _serve(self, parsed: Parsed) -> bool:
        """Answer one request; whether another one may follow on the connection."""
        self._asked_at = time.perf_counter()
        if parsed.streamed:
            return await self._push(parsed)
        target = parsed.target
        gets, posts = parsed.method == "GET", parsed.method == "POST"
        polls = gets and _is_under(target, _POLL)
        publishes = posts and _is_under(target, _PUBLISH)
        opens = _is_under(target, _EVENTS) and (gets or (posts and _is_at(target, _EVENTS)))
        creates = posts and _is_at(target, _STREAMS)
        is_hot = polls or publishes or opens or creates
        relays = not is_hot and parsed.method in RELAYED and _is_under(target, _RELAY)
        if gets:
            self._let_go_of_body()  # it means nothing, and would take the room of others for long
        if parsed.version != "1.1" or not (is_hot or relays):
            transport = self._hand_over()
            await self._service.edge(parsed, transport, self._peer, self._let_go_of_body)
            return False
        if publishes:
            self._route = PUBLISH_TO if target.startswith(b"/", len(_PUBLISH)) else PUBLISH
        elif creates:
            self._route = STREAMS
        elif relays:
            self._route = RELAY_TO
        else:
            self._route = POLL if polls else EVENTS
        try:
            request = Request(
                parsed.method, *parse_target(target), parsed.header, parsed.body, self._peer
            )
        except GatewayError as error:
            await self._end_with(problem(error), parsed)
            return False
        result: Answer | EventStream
        if self._crowded and not opens:
            result = refuse(self._node, "connections")
            if relays:
                result = as_clients_read(result)
        elif self._crowded:
            result = turn_away(self._node, request, "connections")
        elif polls:
            result = await self._poll(request)
        elif publishes:
            result = await publish(self._node, request)
        elif creates:
            result = await create(self._node, request)
        elif relays:
            relaying = self._relay(parsed, request)
            del request
            relayed = await relaying
            if isinstance(relayed, bool):
                return relayed
            result = relayed
        else:
            opening = subscribe(self._node, request, self._has_ended, self._let_go_of_body)
            request = request._replace(body=b"")
            result = await opening
        if isinstance(result, EventStream):
            more = head_of(result)
            try:
                await self._stream(result, partial(self._stream_head, parsed, more))
                return False
            except (TooManyRequests, Unavailable) as error:
                why = why_not_opened(error)
                result = turn_away(self._node, request, why, headers=more)
        if not parsed.keep_alive or self._node.draining:
            await self._end_with(result, parsed)
            return False
        if is_refusal(result):
            result = self._refuse(result, parsed)
        await self._send(self._rendered(result, parsed, keep_alive=True))
        self._observe(result.status)
        if self._reader.buffered:
            await trio.lowlevel.checkpoint()  # as in _receive, for requests that came together
        return True

    async def _relay(self, parsed: Parsed, request: Request) -> Answer | bool:
        """Pass on what an upstream answers, and say whether another request may follow; or why it
        is not asked. A peer that ends before the answer begins ends the call."""
        query = parsed.target.partition(b"?")[2].decode("latin-1")
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in parsed.headers]
        result: Answer | bool = False
        keep_alive = parsed.keep_alive
        peer = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with_peer, peer)
            with peer:
                asking = forward(self._node, request, query, headers)
                del request  # or its body would be held until the end of the answer
                answered = await asking
                if isinstance(answered, Passage):
                    self._let_go_of_body()
                    keep_alive = keep_alive and not self._node.draining
                    result = await self._pass_on(parsed, answered, keep_alive=keep_alive)
                else:
                    result = answered
            nursery.cancel_scope.cancel()
        if result is True and not keep_alive:
            await self._linger()
            return False
        return result

    async def _pass_on(self, parsed: Parsed, passage: Passage, *, keep_alive: bool) -> bool:
        """Send an upstream's answer as it comes, and say whether the peer has all of it; else the
        connection must end."""
        chunked = not passage.has_length
        headers = headers_of(passage)
        if self._node.origins:
            headers = (*headers, *cors_headers(self._node.origins, parsed.header(b"origin")))
        head = render_head(passage.status, headers, chunked=chunked, keep_alive=keep_alive)
        is_whole = False
        try:
            with passage.behind:
                await self._send(head)
                self._observe(passage.status)
                while data := await passage.receive():
                    await self._send(chunk(data) if chunked else data)
                if chunked:
                    await self._send(LAST_CHUNK)
                is_whole = True
        except (Failure, OSError):
            pass  # what the peer has is not complete, and it sees that
        finally:
            await passage.aclose()
        return is_whole

    async def _push(self, parsed: Parsed) -> bool:
        """Serve a request whose body is taken as it comes; whether another one may follow."""
        self._route = PUSH
        self._probe_peer()
        body = _Body(self._reader, self._receive, self._send)
        try:
            target = parse_target(parsed.target)
            request = Request(parsed.method, *target, parsed.header, b"", self._peer)
        except GatewayError as error:
            answer = problem(error)
        else:
            if self._crowded:
                answer = refuse(self._node, "connections")
            else:
                answer = await push(self._node, request, body)
        if not (body.ended and parsed.keep_alive) or self._node.draining:
            await self._end_with(answer, parsed)
            return False
        if is_refusal(answer):
            answer = self._refuse(answer, parsed)
        await self._send(self._rendered(answer, parsed, keep_alive=True))
        self._observe(answer.status)
        return True

    def _probe_peer(self) -> None:
        """Have the system find out whether a silent peer is still there, since nothing is sent to
        it meanwhile; it is gone after ``max_behind_seconds`` (TCP_USER_TIMEOUT)."""
        assert self._sock is not None
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_SECONDS)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)

    def _stream_head(
        self, parsed: Parsed, more: Sequence[tuple[bytes, bytes]], client: Client
    ) -> bytes:
        head = STREAM_HEAD
        if self._node.origins or more:
            if self._node.origins:
                more = (*more, *cors_headers(self._node.origins, parsed.header(b"origin")))
            head = render_stream_head((*STREAM_HEADERS, *more))
        return b"%b%b: %b\r\n\r\n" % (head[:-2], REQUEST_ID, client.request_id.encode())

    async def _stream(self, stream: EventStream, head: Callable[[Client], bytes]) -> None:
        """Serve a stream, behind ``head``, for as long as it takes a task. Raises Unavailable."""
        client = await self._node.streams.open(stream, self._sock, preamble=head)
        self._sock = None
        self._observe(200)  # as the first thing that is done now is to write
        await self._node.streams.serve(client)

    def _hand_over(self) -> Transport:
        """The connection, which is somebody else's from now on."""
        sock, self._sock = self._sock, None
        assert sock is not None
        return plain_stream(sock)

    async def _poll(self, request: Request) -> Answer:
        """The answer to a poll; no later than its peer is seen to have ended."""
        patience = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with_peer, patience)
            answer = await poll(self._node, request, patience)
            nursery.cancel_scope.cancel()
        return answer

    async def _end_with_peer(self, patience: trio.CancelScope) -> None:
        """End a wait when the peer has ended its side; behind a next request that is not seen."""
        assert self._sock is not None
        await trio.lowlevel.wait_readable(self._sock)
        if self._has_ended():
            patience.cancel()

    def _has_ended(self) -> bool:
        """Whether the peer has ended its side; unseen behind a next request."""
        assert self._sock is not None
        try:
            # Of a TLS socket too: what is looked at is not read by anybody.
            return not socket.socket.recv(self._sock, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    async def _end_with(self, answer: Answer, parsed: Parsed | None = None) -> None:
        """Send a last answer so that it arrives, and end the connection."""
        if parsed is None:
            self._route, self._asked_at = OTHER, time.perf_counter()
        if is_refusal(answer):
            answer = self._refuse(answer, parsed)
        await self._send(self._rendered(answer, parsed, keep_alive=False))
        self._observe(answer.status)
        self._release()
        await self._linger()

    async def _linger(self) -> None:
        """End the connection so that what was sent arrives."""
        await self._send_eof()
        left = LINGER_BYTES
        with trio.move_on_after(LINGER_SECONDS):
            while left > 0 and (data := await self._receive()):
                left -= len(data)

    async def _send_eof(self) -> None:
        assert self._sock is not None
        self._sock.shutdown(socket.SHUT_WR)

    def _refuse(self, answer: Answer, parsed: Parsed | None) -> Answer:
        """Count and log a refusal, and name its request in it."""
        if answer.status >= 400:
            self._node.count_refusal(answer.status)
        header = parsed.header if parsed is not None else self._reader.header
        return told(self._node, answer, header, self.about)

    def about(self) -> dict[str, object]:
        """What a line of the log says of the connection and the request that is being served,
        without its query, in which a token may be."""
        parsed = self._serving
        if parsed is None:
            return {"peer": self._peer}
        path = parsed.target.partition(b"?")[0].decode("latin-1")
        request_id = named_id(parsed.header(NAME)) or None
        return {
            "method": parsed.method,
            "path": path,
            "peer": self._peer,
            "request": request_id,
        }

    def _observe(self, status: int) -> None:
        """The answer to the last request has been written, or a stream begun."""
        self._node.requests.observe(self._route, status, time.perf_counter() - self._asked_at)

    def _rendered(self, answer: Answer, parsed: Parsed | None, *, keep_alive: bool) -> bytes:
        """The answer to ``parsed``, or to what could not be parsed."""
        headers = answer.headers
        if answer.status != 204:
            headers = ((b"Content-Type", answer.media_type.encode()), *headers)
        if self._node.origins:
            origin = (
                parsed.header(b"origin") if parsed is not None else self._reader.header(b"origin")
            )
            headers = (*headers, *cors_headers(self._node.origins, origin))
        return render_response(answer.status, headers, answer.body, keep_alive=keep_alive)

    async def _receive(self) -> bytes:
        """What the peer has sent. But for the first time it lets everybody else have a turn before:
        a busy peer's next request is there by then, and to find it so is cheaper than to wait."""
        assert self._sock is not None
        if self._has_received:
            await trio.lowlevel.checkpoint()
        self._has_received = True
        while True:
            try:
                return self._sock.recv(READ_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)

    async def _send(self, data: bytes) -> None:
        """Raises BrokenPipeError when the peer does not read it all within ``write_timeout``."""
        assert self._sock is not None
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return
        with trio.move_on_after(self._node.config.write_timeout):
            while True:
                await trio.lowlevel.wait_writable(self._sock)
                with suppress(BlockingIOError):
                    sent += self._sock.send(memoryview(data)[sent:])
                if sent == len(data):
                    return
        self._node.refuse("write-timeout")
        raise BrokenPipeError


class _Body:
    """The body of a request that is streamed, read as it is wanted."""

    def __init__(
        self,
        reader: RequestReader,
        receive: Callable[[], Awaitable[bytes]],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._reader = reader
        self._receive = receive
        self._send = send
        self.ended = False
        """All of it has been read."""

    async def piece(self) -> bytes | None:
        reader = self._reader
        while (piece := reader.next_piece()) is None:
            try:
                if reader.expects_continue:
                    await self._send(CONTINUE)
                    reader.continue_sent()
                data = await self._receive()
            except OSError:
                return None
            if not data:
                return None
            reader.receive_data(data)
        self.ended = not piece
        return piece


def _is_at(target: bytes, path: bytes) -> bool:
    """Whether a target in origin form names ``path`` itself."""
    return target.partition(b"?")[0] == path


def _is_under(target: bytes, path: bytes) -> bool:
    """Whether a target in origin form names ``path`` or something below it."""
    return target.startswith(path) and target[len(path) : len(path) + 1] in (b"", b"/", b"?")
