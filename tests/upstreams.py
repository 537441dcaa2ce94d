"""A fake upstream: a real HTTP/1.1 server that speaks the vendors' formats, and fails as told.

It runs in the test's own trio run (`fake_upstream`), and as a process of its own, which prints its
URL (`python tests/upstreams.py PORT`). What it answers is a `Script`: the next one of ``scripts``,
or else one that the request brings along as JSON behind ``script:``, in its last message, its
``input`` or a value of its ``metadata`` (`prompt` makes such a text), or else the default one.

Formats are told apart by the path: ``/chat/completions``, ``/responses``, ``/messages``; anything
else that is POSTed is answered with plain events of ``{"text"}``. The bytes are those of `vendors`.
"""

import json
import socket
import ssl
import struct
import sys
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

import h11
import msgspec
import trio
import vendors
from certificates import Files

READ_BYTES = 64 * 1024

HUGE_BYTES = 50_000_000
PIECE_BYTES = 256 * 1024

MARK = "script:"
"""Before the JSON of a script in a request."""


class Fault(StrEnum):
    """What happens after ``after`` blocks."""

    NONE = "none"
    NO_ANSWER = "no-answer"
    """Not even a head: the request is read, and that is all."""
    FIN = "fin"
    """The connection ends in order in the middle of a block."""
    RESET = "reset"
    """The connection is reset in the middle of a block."""
    SILENCE = "silence"
    """Nothing more comes."""
    UNTERMINATED = "unterminated"
    """The answer ends in order, without the events that end a stream of its format."""
    UTF8 = "utf8"
    """A block whose text is no UTF-8."""
    JSON = "json"
    """A block whose data is no JSON."""
    HUGE = "huge"
    """One event of HUGE_BYTES."""
    ERROR = "error"
    """The format's error event, and the end."""
    HTML = "html"
    """A 200 that is a web page."""


class Script(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one request is answered."""

    words: int = 5
    """The text is so many words: `text_of`."""
    rate: float = 0.0
    """Blocks per second; 0: as fast as they go."""
    delay: float = 0.0
    """Seconds before the head."""
    fault: Fault = Fault.NONE
    after: int = 3
    """Blocks before the fault."""
    status: int = 200
    retry_after: str = ""
    headers: dict[str, str] = {}
    """More of the answer's, or others in place of those that it has."""
    body: str = ""
    """Of an answer that is no stream."""
    gzip: bool = False
    cut: int = 0
    """Bytes in each chunk, wherever that cuts; 0: a chunk for each block."""
    tool: bool = False
    """The model calls a tool behind the text."""
    blocks: tuple[bytes, ...] | None = None
    """Instead of the format's; only in the same process."""


@dataclass(frozen=True)
class Vendor:
    """A format."""

    blocks: Callable[[vendors.Answer, bool], Sequence[bytes]]
    body: Callable[[vendors.Answer], bytes]
    error_block: Callable[[], bytes]
    refusal: Callable[[int], bytes]
    statuses: Collection[int]
    models: Callable[[], bytes]
    content_type: str = "text/event-stream; charset=utf-8"
    always_streams: bool = False


@lru_cache(256)
def _chat_blocks(answer: vendors.Answer, usage: bool) -> Sequence[bytes]:
    return vendors.chat_blocks(answer, include_usage=usage)


@lru_cache(256)
def _response_blocks(answer: vendors.Answer, usage: bool) -> Sequence[bytes]:
    return vendors.response_blocks(answer)


@lru_cache(256)
def _message_blocks(answer: vendors.Answer, usage: bool) -> Sequence[bytes]:
    return vendors.anthropic_blocks(answer)


def _plain_blocks(answer: vendors.Answer, usage: bool) -> Sequence[bytes]:
    return [b"data: %b\n\n" % vendors.compact({"text": piece}) for piece in answer.pieces]


CHAT = Vendor(
    _chat_blocks,
    vendors.chat_body,
    lambda: vendors.chat_error_block(500),
    vendors.openai_error,
    vendors.OPENAI_STATUSES,
    vendors.openai_models,
)
RESPONSES = replace(
    CHAT,
    blocks=_response_blocks,
    body=vendors.response_body,
    error_block=lambda: vendors.response_error_block(500, 9),
)
MESSAGES = Vendor(
    _message_blocks,
    vendors.anthropic_body,
    lambda: vendors.anthropic_error_block(529),
    vendors.anthropic_error,
    vendors.ANTHROPIC_STATUSES,
    vendors.anthropic_models,
)
PLAIN = replace(
    CHAT,
    blocks=_plain_blocks,
    body=lambda answer: vendors.compact({"text": answer.text}),
    error_block=lambda: b'event: error\ndata: {"message": "in trouble"}\n\n',
    content_type="text/event-stream",
    always_streams=True,
)


def _vendor_of(target: str) -> Vendor:
    """Whose format a path stands for."""
    path = target.partition("?")[0]
    if path.endswith("/chat/completions"):
        return CHAT
    if path.endswith("/responses"):
        return RESPONSES
    return MESSAGES if path.endswith(("/messages", "/count_tokens")) else PLAIN


def _refusal(vendor: Vendor, status: int) -> bytes:
    known = status in vendor.statuses
    return vendor.refusal(status) if known else b'{"error": {"message": "Something else."}}'


def _answer_to(asked: dict[str, Any], script: Script) -> vendors.Answer:
    calls = (vendors.Call(),) if script.tool else ()
    return vendors.Answer(
        pieces=words_of(script.words),
        calls=calls,
        output_tokens=script.words,
        model=asked.get("model"),
    )


def _wants_usage(asked: dict[str, Any]) -> bool:
    return bool((asked.get("stream_options") or {}).get("include_usage"))


class Call:
    """One request that came, and what has become of it."""

    def __init__(self, request: h11.Request, body: bytes, connection: int) -> None:
        self.method = request.method.decode()
        self.target = request.target.decode()
        self.headers = {name.decode(): value.decode() for name, value in request.headers}
        """Names in lower case."""
        self.raw_headers = [
            (bytes(name), bytes(value)) for name, value in request.headers.raw_items()
        ]
        self.body = body
        self.connection = connection
        """Its number: equal where one was used again."""
        self.at = trio.current_time()
        self.blocks = 0
        """How many have been sent."""
        self.is_complete = False
        """All of the answer has been sent, or its last bytes are being sent."""
        self.closed = trio.Event()
        """The client has closed the connection before that."""
        self.closed_at: float | None = None
        self.over = trio.Event()
        """Complete, closed, or cut by ourselves."""

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")


class FakeUpstream:
    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.port = 0
        self.calls: list[Call] = []
        self.scripts: deque[Script] = deque()
        self.default = Script()
        self.connections = 0
        """That were ever accepted."""
        self._called = trio.Event()

    @property
    def origin(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base, as an ``[[upstream]]`` or an SDK has it."""
        return f"{self.origin}/v1"

    def script(self, *scripts: Script) -> None:
        """The next calls, one each, are answered so."""
        self.scripts.extend(scripts)

    async def call(self, number: int = 0) -> Call:
        """The call of that number, once it has come."""
        while len(self.calls) <= number:
            await self._called.wait()
        return self.calls[number]

    def statistics(self) -> dict[str, int]:
        """What ``GET /_statistics`` tells of a process."""
        return {
            "calls": len(self.calls),
            "open": sum(not call.over.is_set() for call in self.calls),
            "complete": sum(call.is_complete for call in self.calls),
            "closed": sum(call.closed.is_set() for call in self.calls),
            "connections": self.connections,
        }

    def bind(self, port: int = 0) -> None:
        """From now on connections are refused, since nobody listens."""
        self._socket.bind(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]

    def listen(self) -> None:
        """From now on connections are accepted, once `run` runs."""
        self._socket.listen(1024)

    async def run(self) -> None:
        """Accept and answer, until cancelled. `listen` may be called later."""
        self._socket.setblocking(False)
        listener = trio.socket.from_stdlib_socket(self._socket)
        with listener:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        accepted, _ = await listener.accept()
                    except OSError:  # not listening yet
                        await trio.sleep(0.005)
                        continue
                    self.connections += 1
                    stream = trio.SocketStream(accepted)
                    nursery.start_soon(self._serve, stream, self.connections)

    async def _serve(self, socket_stream: trio.SocketStream, number: int) -> None:
        stream: trio.abc.Stream = socket_stream
        if self._tls is not None:
            stream = trio.SSLStream(
                socket_stream, self._tls, server_side=True, https_compatible=True
            )
        connection = _Connection(self, stream, socket_stream, number)
        try:
            await connection.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass
        finally:
            connection.gone()
            await trio.aclose_forcefully(stream)

    def _has_come(self, call: Call) -> None:
        self.calls.append(call)
        self._called.set()
        self._called = trio.Event()

    def _script_of(self, call: Call) -> Script:
        if self.scripts:
            return self.scripts.popleft()
        if not _is_object(call.body):
            return Script(status=400)
        for text in _texts(call.body):
            _, mark, script = text.partition(MARK)
            if mark:
                # Whatever stands behind the JSON is a sentence for people.
                value, _ = json.JSONDecoder().raw_decode(script)
                return msgspec.convert(value, Script)
        return self.default


class _Ended(Exception):
    """The connection is to be closed now."""


class _Connection:
    def __init__(
        self, server: FakeUpstream, stream: trio.abc.Stream, bare: trio.SocketStream, number: int
    ) -> None:
        self._server = server
        self._stream = stream
        self._bare = bare
        self._number = number
        self._call: Call | None = None
        self._early = b""

    async def run(self) -> None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1024 * 1024)
        while True:
            request = await self._next(parser)
            if not isinstance(request, h11.Request):
                return
            body = b""
            while isinstance(data := await self._next(parser), h11.Data):
                body += data.data
            if request.target == b"/_statistics":
                told = json.dumps(self._server.statistics()).encode()
                await self._whole(200, {"content-type": "application/json"}, told)
            else:
                self._call = Call(request, body, self._number)
                self._server._has_come(self._call)
                try:
                    await self._answer_watched(self._call)
                except _Ended:
                    return
            # The answer is written by hand, to the byte; h11 learns only that there was one.
            parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            parser.send(h11.EndOfMessage())
            parser.start_next_cycle()

    def gone(self) -> None:
        if self._call is not None:
            self._call.over.set()

    async def _next(self, parser: h11.Connection) -> object:
        while (event := parser.next_event()) is h11.NEED_DATA:
            data, self._early = self._early, b""
            parser.receive_data(data or bytes(await self._stream.receive_some(READ_BYTES)))
        return event

    async def _answer_watched(self, call: Call) -> None:
        """Answer, and stop when the client closes the connection meanwhile."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, call, nursery.cancel_scope)
            with suppress(_Ended, trio.BrokenResourceError, trio.ClosedResourceError):
                await self._answer(call, self._server._script_of(call))
                call.over.set()
            nursery.cancel_scope.cancel()
        if not call.over.is_set():
            raise _Ended

    async def _watch(self, call: Call, scope: trio.CancelScope) -> None:
        data = b" "
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data:
                data = bytes(await self._stream.receive_some(READ_BYTES))
                self._early += data
        if call.is_complete:
            return
        call.closed_at = trio.current_time()
        call.closed.set()
        scope.cancel()

    async def _answer(self, call: Call, script: Script) -> None:
        await trio.sleep(script.delay)
        if script.fault is Fault.NO_ANSWER:
            await trio.sleep_forever()
        if script.fault is Fault.HTML:
            await self._whole(200, {"content-type": "text/html"}, b"<html>Sorry.</html>")
            return
        vendor = _vendor_of(call.target)
        if script.status != 200:
            headers = {"content-type": "application/json"}
            if script.retry_after:
                headers["retry-after"] = script.retry_after
            body = script.body.encode() or _refusal(vendor, script.status)
            await self._whole(script.status, headers | script.headers, body)
            return
        if call.method == "GET":
            await self._whole(200, {"content-type": "application/json"}, vendor.models())
            return
        asked = call.json
        told = _answer_to(asked, script)
        if script.body or not asked.get("stream", vendor.always_streams):
            body = script.body.encode() or vendor.body(told)
            await self._whole(200, {"content-type": "application/json"} | script.headers, body)
            return
        blocks = script.blocks or vendor.blocks(told, _wants_usage(asked))
        await self._stream_of(call, script, vendor, blocks)

    async def _whole(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if self._call is not None:
            self._call.is_complete = True
        if status != 204:
            headers |= {"content-length": str(len(body))}
        await self._head(status, headers, body if status != 204 else b"")

    async def _head(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        known = {"date": "Thu, 01 Jan 2026 00:00:00 GMT", "x-request-id": "req_fake"} | headers
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{n}: {v}" for n, v in known.items()), "", ""]
        await self._stream.send_all("\r\n".join(lines).encode() + body)

    async def _stream_of(
        self,
        call: Call,
        script: Script,
        vendor: Vendor,
        blocks: Iterable[bytes],
    ) -> None:
        squeeze = zlib.compressobj(wbits=31) if script.gzip else None
        headers = {
            "content-type": vendor.content_type,
            "cache-control": "no-cache",
            "transfer-encoding": "chunked",
        }
        if squeeze:
            headers["content-encoding"] = "gzip"
        await self._head(200, headers | script.headers)
        begin = trio.current_time()
        for number, block in enumerate(self._with_fault(script, vendor, blocks)):
            if script.rate:
                await trio.sleep_until(begin + number / script.rate)
            data = block
            if squeeze:
                data = squeeze.compress(block) + squeeze.flush(zlib.Z_SYNC_FLUSH)
            step = script.cut or PIECE_BYTES
            for at in range(0, len(data), step):
                await self._chunk(data[at : at + step])
            call.blocks += 1
        await self._fail(script)
        if squeeze:
            await self._chunk(squeeze.flush())
        call.is_complete = True  # said first: the client may close when it has the last byte
        await self._stream.send_all(b"0\r\n\r\n")

    def _with_fault(
        self, script: Script, vendor: Vendor, blocks: Iterable[bytes]
    ) -> Iterator[bytes]:
        for number, block in enumerate(blocks):
            if script.fault is Fault.NONE or number < script.after:
                yield block
                continue
            match script.fault:
                case Fault.FIN | Fault.RESET:
                    yield block[: len(block) // 2]
                case Fault.UTF8:
                    yield b'data: {"text": "\xc3\x28"}\n\n'
                case Fault.JSON:
                    yield b'data: {"text": \n\n'
                case Fault.HUGE:
                    yield b"data: "
                    for _ in range(0, HUGE_BYTES, PIECE_BYTES):
                        yield b"x" * PIECE_BYTES
                    yield b"\n\n"
                case Fault.ERROR:
                    yield vendor.error_block()
                case _:
                    pass
            return

    async def _fail(self, script: Script) -> None:
        match script.fault:
            case Fault.SILENCE:
                await trio.sleep_forever()
            case Fault.FIN:
                raise _Ended
            case Fault.RESET:
                linger = struct.pack("ii", 1, 0)
                self._bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                raise _Ended
            case _:
                pass

    async def _chunk(self, data: bytes) -> None:
        if data:
            await self._stream.send_all(b"%x\r\n%b\r\n" % (len(data), data))


def words_of(count: int) -> tuple[str, ...]:
    """The tokens of an answer, in a text that is not all ASCII."""
    known = ("The ", "café ", "opens ", "at ", "nine: ", "☕ ", "“come ", "in”, ", "said ", "Zoë. ")
    return tuple(known[n % len(known)] for n in range(count))


def text_of(count: int) -> str:
    return "".join(words_of(count))


def prompt(script: Script) -> str:
    """A prompt that is answered so."""
    return f"{MARK}{msgspec.json.encode(script).decode()}"


def chat(script: Script | None = None, **more: object) -> dict[str, object]:
    """A request of chat completions."""
    content = prompt(script) if script else "When does the café open?"
    return {"model": "fake-1", "messages": [{"role": "user", "content": content}], **more}


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body or b"{}"), dict)
    except ValueError:
        return False


def _texts(body: bytes) -> Iterator[str]:
    """Where a script may stand in a request, the last message first."""
    request = json.loads(body or b"{}")
    for message in reversed(request.get("messages") or []):
        yield from _strings(message.get("content"))
    yield from _strings(request.get("input"))
    yield from _strings(request.get("prompt"))
    yield from _strings(list((request.get("metadata") or {}).values()))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))


@asynccontextmanager
async def fake_upstream(
    *, certificate: Files | None = None, listening: bool = True, port: int = 0
) -> AsyncIterator[FakeUpstream]:
    """One on a port of loopback, until the block is left. Without ``listening`` connections to it
    are refused until its ``listen`` is called."""
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate.cert, certificate.key)
    upstream = FakeUpstream(tls)
    upstream.bind(port)
    if listening:
        upstream.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upstream.run)
        try:
            yield upstream
        finally:
            nursery.cancel_scope.cancel()


async def _main(port: int) -> None:
    async with fake_upstream(port=port) as upstream:
        sys.stdout.write(f"{upstream.url}\n")
        sys.stdout.flush()
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(_main, int(sys.argv[1]) if len(sys.argv) > 1 else 0)
