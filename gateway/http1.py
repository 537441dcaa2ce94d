"""Requests, read one at a time from the bytes of a connection. Pure: no socket, no waiting.

llhttp tokenizes, ``http1_head`` judges, and this module decides what llhttp gets to see, because
llhttp bounds nothing, reports late, and runs on from one message into the next. The rules:

1. llhttp is never fed past the end of a message. Heads and chunked bodies both end with a blank
   line, so input is fed up to the next one; a body of known length does not go through llhttp at
   all. Thus pipelined requests stay bytes until they are asked for, and an error in one cannot
   take another with it.
2. Every message has a parser of its own (0.2 us), so that nothing of one message, trailers and
   ``Connection: close`` above all, is left in the parser of the next.
3. Whatever is fed is counted first: heads, leading blank lines, bodies and their framing.
4. What has been read is judged only when the head is complete, so that the verdict does not
   depend on how the bytes arrived.
5. A body is read whole or piece by piece by the same rules. What came of one before it broke is
   given out before that is said.
"""

from collections.abc import Callable
from enum import Enum, auto

import httptools

from gateway.errors import BadRequest, ContentTooLarge, GatewayError, HeadTooLarge
from gateway.http1_head import CHUNKED, MAX_FIELDS, Parsed, judge_head, refusal

__all__ = ["Parsed", "Phase", "RequestReader"]

IsStreamed = Callable[[str, bytes], bool]
"""Whether the body of a request, by its method and its target in origin form, is read piece by
piece: of one in HTTP/1.1 that has a body."""

MAX_BLANK_BYTES = 64
"""Line ends before a request. RFC 9112 2.2 asks to ignore at least one CRLF, which old clients sent
after a body."""

FRAMING_ALLOWANCE = 64 * 1024
"""What a chunked body may take on the wire beyond twice its largest size, or twice of what has come
where it is streamed, for extensions, trailers and small chunks; a chunk of five bytes is half
framing."""

_BLANK_LINE = b"\r\n\r\n"


class Phase(Enum):
    """Where the reader stands once ``next_request`` has returned None; each has its deadline."""

    IDLE = auto()
    """Between requests: nothing of the next one has been read, blank lines apart."""
    HEAD = auto()
    BODY = auto()


class _Message:
    """The callbacks of one message's parser, and what they were told."""

    __slots__ = ("body", "complete", "fields", "head_complete", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.head_complete = False
        self.body = bytearray()
        self.complete = False

    def on_url(self, fragment: bytes) -> None:
        self.target += fragment

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come through here too, but then the headers are frozen already. The bound is for
        # memory: the four bytes of an empty field take 150 when kept.
        if len(self.fields) <= MAX_FIELDS:
            self.fields.append((name.lower(), value.strip()))

    def on_headers_complete(self) -> None:
        self.head_complete = True

    def on_body(self, fragment: bytes) -> None:
        self.body += fragment

    def on_message_complete(self) -> None:
        self.complete = True


class RequestReader:
    """Reads the requests of one connection.

    Call ``next_request`` until it returns None, then read from the socket, ``receive_data``, and so
    on. At any time the reader holds what ``receive_data`` was given last, one head of at most
    ``max_head_bytes`` and one body of at most ``max_body_bytes``, each give or take one read.

    A request that ``is_streamed`` is returned at its head. Then ``next_piece`` is called in the
    same way, and only that until the body is complete; of the body nothing is held.

    A request that is not ``keep_alive``, and an error, end the reader: what was or will be received
    after it is ignored.
    """

    phase: Phase
    expects_continue: bool
    """The client holds back a body that is wanted until it is sent ``100 Continue`` (RFC 9110
    10.1.1). Send that once, and call ``continue_sent``."""

    def __init__(
        self,
        *,
        max_head_bytes: int,
        max_url_bytes: int,
        max_body_bytes: int,
        is_streamed: IsStreamed | None = None,
        streamed_below: bytes = b"/",
        max_streamed_bytes: int = 0,
    ) -> None:
        """``is_streamed`` is asked only of targets that begin with ``streamed_below``: a call costs
        as much as a hundredth of a publish."""
        self._max_head_bytes = max_head_bytes
        self._max_url_bytes = max_url_bytes
        self._max_body_bytes = max_body_bytes
        self._is_streamed = is_streamed
        self._streamed_below = streamed_below
        self._max_streamed_bytes = max_streamed_bytes
        self._input = b""
        self._at = 0  # where in _input that begins which has not been taken
        self._ended = False
        self._error: GatewayError | None = None
        self._refused: _Message | None = None
        self._start_message()
        self._start_counting()

    def _start_message(self) -> None:
        self.phase = Phase.IDLE
        self.expects_continue = False
        self._blank_bytes = 0
        self._head = b""
        self._message = _Message()
        self._parser = httptools.HttpRequestParser(self._message)
        self._request: Parsed | None = None
        self._length = 0  # of the body; CHUNKED if it is not known
        self._body = bytearray()

    def _start_counting(self) -> None:
        """Of a body that is chunked or streamed."""
        self._content_bytes = 0
        self._raw_body_bytes = 0
        self._framing_bytes = 0  # since the last byte of content
        self._broken: GatewayError | None = None  # behind what came before that

    @property
    def buffered(self) -> bool:
        """Whether input waits behind the request that was returned last."""
        return self._at < len(self._input)

    @property
    def body_bound(self) -> int:
        """The most bytes that the body has which is being read."""
        return self._max_body_bytes if self._length == CHUNKED else self._length

    @property
    def target(self) -> bytes:
        """Of the same request as `header`, as it came."""
        return (self._refused or self._message).target

    def header(self, name: bytes) -> bytes | None:
        """A header of the request that is being read or was refused, as far as that was read: for
        whoever waits for an answer to know it by, and nothing else."""
        fields = (self._refused or self._message).fields
        return next((value for known, value in fields if known == name), None)

    def receive_data(self, data: bytes) -> None:
        """Take what was read from the socket, 64 KiB at most. Never raises."""
        if self._ended:
            return
        self._input = self._input[self._at :] + data
        self._at = 0
        if data:
            self.expects_continue = False

    def continue_sent(self) -> None:
        self.expects_continue = False

    def next_request(self) -> Parsed | None:
        """Return the next complete request, or None if that takes more input.

        Raises a GatewayError, and the same one ever after, when all that came before a broken or
        refused request has been returned.
        """
        if self._error is not None:
            raise self._error
        try:
            request = self._read_request()
        except GatewayError as error:
            self._fail(error)
            raise
        if request is not None and not request.streamed:
            self._start_message()
            if not request.keep_alive:
                self._end()
        return request

    def next_piece(self) -> bytes | None:
        """Return what more has come of the body of the request that was returned last, which is
        streamed: nothing (``b""``) once, when it is complete; None if there is no more yet.

        Raises a GatewayError, and the same one ever after, where it is broken or too large.
        """
        if self._error is not None:
            raise self._error
        request = self._request
        assert request is not None
        try:
            chunked = self._length == CHUNKED
            piece = self._read_chunked_piece() if chunked else self._read_sized_piece()
        except GatewayError as error:
            self._fail(error)
            raise
        if piece == b"":
            self._start_message()
            if not request.keep_alive:
                self._end()
        return piece

    def _fail(self, error: GatewayError) -> None:
        self._error, self._refused = error, self._message
        self._end()

    def _end(self) -> None:
        self._start_message()
        self._ended = True
        self._input = b""
        self._at = 0

    def _read_request(self) -> Parsed | None:
        if self.phase is Phase.IDLE and not self._skip_blank_lines():
            return None
        if self.phase is Phase.HEAD:
            self._read_head()
        request = self._request
        if request is None or request.streamed:
            return request
        if self._length:
            body = self._read_chunked() if self._length == CHUNKED else self._read_sized()
            if body is None:
                return None
            request.body = body
        return request

    def _skip_blank_lines(self) -> bool:
        """Return whether a request begins."""
        while self._at < len(self._input):
            if self._input[self._at] not in b"\r\n":
                self.phase = Phase.HEAD
                return True
            self._at += 1
            self._blank_bytes += 1
            if self._blank_bytes > MAX_BLANK_BYTES:
                raise BadRequest("A request must not begin with more than a few blank lines.")
        self._input = b""  # an idle connection holds nothing
        self._at = 0
        return False

    def _take_piece(self) -> bytes:
        """Take input up to the end of the next blank line; if there is none, all but what may be
        the beginning of one. Empty if that is nothing."""
        end = self._input.find(_BLANK_LINE, self._at) + len(_BLANK_LINE)
        if end < len(_BLANK_LINE):
            held = next(n for n in (3, 2, 1, 0) if self._input.endswith(_BLANK_LINE[:n]))
            end = max(self._at, len(self._input) - held)
        piece = self._input[self._at : end]
        self._at = end
        return piece

    def _feed(self, piece: bytes) -> GatewayError | None:
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # the head is judged by should_upgrade()
        except httptools.HttpParserError as error:
            return refusal(str(error))
        return None

    def _read_head(self) -> None:
        while self._request is None and (piece := self._take_piece()):
            # Up to the bound llhttp may find a fault first, however the bytes were split.
            room = self._max_head_bytes - len(self._head)
            broken = self._feed(piece[:room])
            self._head += piece
            if self._message.head_complete:
                self._finish_head()
            if broken is not None:
                raise broken
            if len(piece) > room:
                raise HeadTooLarge(
                    f"The request line and headers may have at most {self._max_head_bytes} bytes"
                    " (max_head_bytes)."
                )

    def _finish_head(self) -> None:
        request, self._length = judge_head(
            self._head,
            self._parser.get_method(),
            self._message.target,
            tuple(self._message.fields),
            upgrade=self._parser.should_upgrade(),
            max_url_bytes=self._max_url_bytes,
        )
        if self._length and (
            request.target.startswith(self._streamed_below)
            or not 0 < self._length <= self._max_body_bytes
        ):
            self._begin_body(request)
        self._request = request
        self.phase = Phase.BODY
        self.expects_continue = (
            self._length != 0
            and request.version == "1.1"
            and request.header(b"expect") is not None
            and not self.buffered
        )

    def _begin_body(self, request: Parsed) -> None:
        """Raises ContentTooLarge where it is known already."""
        may_be = request.version == "1.1" and request.target.startswith(self._streamed_below)
        if may_be and self._is_streamed is not None:
            request.streamed = self._is_streamed(request.method, request.target)
        if request.streamed or self._length == CHUNKED:
            self._start_counting()
        self._check_size(request, self._length)

    def _check_size(self, request: Parsed, size: int) -> None:
        most, setting = self._max_body_bytes, "max_body_bytes"
        if request.streamed:
            most, setting = self._max_streamed_bytes, "stream_bytes"
        if size > most:
            raise ContentTooLarge(f"A body may have at most {most} bytes ({setting}).")

    def _read_sized(self) -> bytes | None:
        piece = self._input[self._at : self._at + self._length - len(self._body)]
        self._at += len(piece)
        if len(piece) == self._length:
            return piece  # came in one read: no second copy
        self._body += piece
        return bytes(self._body) if len(self._body) == self._length else None

    def _read_sized_piece(self) -> bytes | None:
        left = self._length - self._content_bytes
        piece = self._input[self._at : self._at + left]
        self._at += len(piece)
        self._content_bytes += len(piece)
        return piece if piece or not left else None

    def _read_chunked(self) -> bytes | None:
        message = self._message
        while not message.complete and (piece := self._take_piece()):
            broken = self._read_chunks(piece)
            if broken is not None:
                raise broken
        return bytes(message.body) if message.complete else None

    def _read_chunked_piece(self) -> bytes | None:
        message = self._message
        if self._broken is not None:
            raise self._broken
        while not message.complete and not message.body and (piece := self._take_piece()):
            self._broken = self._read_chunks(piece)
            if self._broken is not None and not message.body:
                raise self._broken
        content = bytes(message.body)
        message.body.clear()
        return content if content or message.complete else None

    def _read_chunks(self, piece: bytes) -> GatewayError | None:
        """Feed and count a piece of a chunked body; what breaks it is returned."""
        request, message = self._request, self._message
        assert request is not None
        held = len(message.body)
        broken = self._feed(piece)
        grown = len(message.body) - held
        self._content_bytes += grown
        self._raw_body_bytes += len(piece)
        self._framing_bytes = 0 if grown else self._framing_bytes + len(piece)
        self._check_size(request, self._content_bytes)
        if self._framing_bytes > self._max_head_bytes:
            raise HeadTooLarge(
                "Trailers, and the extensions of a chunk, may have at most"
                f" {self._max_head_bytes} bytes."
            )
        framed = self._content_bytes if request.streamed else self._max_body_bytes
        if self._raw_body_bytes > 2 * framed + FRAMING_ALLOWANCE:
            raise ContentTooLarge("The body is in too many too small chunks; send larger ones.")
        return broken
