"""A token stream that is made by this worker, from its start to its end."""

import logging
from collections.abc import Awaitable, Callable

import trio

from gateway import control
from gateway.errors import ChannelEnded, Unavailable
from gateway.event import MAX_LABEL, Event
from gateway.relay.events import Complete, Error, Failure, Normal, Token, render
from gateway.relay.outlet import PATIENCE_SECONDS, Outlet, Uncertain
from gateway.relay.record import Record
from gateway.relay.sizes import MOST_GROWTH, data_bytes, kept_bytes
from gateway.sse import ServerSentEvent

UPSTREAM_PREFIX = "upstream:"
"""Begins the type of an upstream's event that is one of the gateway's own."""

LAST_WORDS_SECONDS = 3 * PATIENCE_SECONDS
"""In which the last event of a stream must be published; after that its lease runs out."""

_log = logging.getLogger("gateway")


class Away(Exception):
    """The producer is gone for now, and may come back within ``seconds``, wherever that is."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class Running:
    """Fed by its producer: `tell`, `tell_raw`, and `room` before taking more."""

    def __init__(
        self,
        record: Record,
        outlet: Outlet,
        *,
        max_tokens: int,
        max_seconds: float,
        max_event_bytes: int,
        max_kept_bytes: int,
        batch_seconds: float = 0.0,
        batch_bytes: int = 0,
        away_seconds: float = 0.0,
        begin: Callable[[], Awaitable[bool]] | None = None,
        count_tokens: Callable[[int], None] = lambda count: None,
        first_token: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """``max_kept_bytes`` are those that its channel's history holds; the raw view may lose its
        beginning before, and its viewers are told. ``away_seconds`` are those that a producer has
        who sends again what has not been published. ``begin`` says whether the first event may be
        published, of a stream that may have been begun elsewhere; ``first_token`` is told after how
        many seconds it came."""
        self.record = record
        self.outlet = outlet
        self.ended = trio.Event()
        """It has ended, whoever told the end, or this worker does not make it any more."""
        self.last: Complete | Error | None = None
        """The end that was published; None where somebody else has told one."""
        self.away = 0.0
        """Seconds that its producer has to come back in, where it was left without an end."""
        self.opened_at = trio.current_time()
        self.watched_at = self.opened_at
        """When somebody was last seen to watch."""
        self.companions = 0
        """Who is given it beside its channel, and counts as watching."""
        self.tokens = 0
        self._max_tokens = max_tokens
        self._max_seconds = max_seconds
        self._max_event_bytes = max_event_bytes
        self._left_bytes = max_kept_bytes
        self._batch_seconds = batch_seconds
        self._batch_bytes = batch_bytes
        self._away_seconds = away_seconds
        self._begin = begin
        self._count_tokens = count_tokens
        self._first_token = first_token
        self._text: list[str] = []  # of tokens that wait for a batch to be complete
        self._text_bytes = 0
        self._has_text = trio.Event()
        self._producing = trio.CancelScope()
        self._asked: Complete | Error | None = None
        self._fenced = False

    @property
    def asked(self) -> Complete | Error | None:
        """The end that was asked for, by `stop`."""
        return self._asked

    @property
    def is_lost(self) -> bool:
        """It may be made elsewhere, or it is not known how much of it has been published."""
        return self._fenced

    # -- what its producer calls

    async def begin(self) -> None:
        """Before the first event that came of a call. Does not return where it is made elsewhere
        by now. Raises Failure("bus-lost") where that cannot be known."""
        if self._begin is not None:
            begin, self._begin = self._begin, None
            try:
                may_begin = await begin()
            except Unavailable:
                raise Failure("bus-lost") from None
            if not may_begin:
                self.lose()
                await trio.lowlevel.checkpoint()  # which raises Cancelled

    async def room(self) -> None:
        """Wait until more may be told."""
        if not self.outlet.has_room:
            await self.outlet.room()

    def tell(self, event: Normal) -> None:
        """An event of the normal view. Raises Failure: "limit-tokens", "limit-bytes",
        "too-large"."""
        if isinstance(event, Token):
            self._tell_token(event)
        else:
            self._flush()
            made = render(event, self.record.channel)
            self._check_size(made.data)
            self._keep(made.data)
            self.outlet.put(made)

    def tell_raw(self, event: ServerSentEvent) -> None:
        """An event as the upstream sent it. Raises Failure, as `tell` and for one that cannot be
        told."""
        self._check_size(event.data)
        if self.record.raw == self.record.channel:
            self._count_token()
            self._keep(event.data)
        self.outlet.put(Event((self.record.raw,), event.data, _type_of(event)))

    def put(self, event: Event, *, is_token: bool) -> None:
        """An event that is rendered already. Raises Failure("limit-tokens")."""
        if is_token:
            self._count_token()
        self.outlet.put(event)

    def _check_size(self, data: str) -> None:
        """Raise Failure where it is larger, as it would be sent, than an event may be."""
        most = self._max_event_bytes
        if len(data) * MOST_GROWTH > most and data_bytes(data) > most:
            raise Failure("too-large")

    def _keep(self, data: str) -> None:
        """Raise Failure where the channel's history would not hold all of the stream any more."""
        self._left_bytes -= kept_bytes(data)
        if self._left_bytes < 0:
            raise Failure("limit-bytes")

    def _tell_token(self, token: Token) -> None:
        self._count_token()
        if not (self._batch_seconds or self._batch_bytes):
            made = render(token, self.record.channel)
            self._keep(made.data)
            self.outlet.put(made)
            return
        self._keep(token.text)
        size = len(token.text.encode())
        if (self._text_bytes + size) * MOST_GROWTH > self._max_event_bytes:
            self._flush()
        self._text.append(token.text)
        self._text_bytes += size
        if self._batch_bytes and self._text_bytes >= self._batch_bytes:
            self._flush()
        else:
            self._has_text.set()

    def _count_token(self) -> None:
        if not self.tokens:
            self._first_token(trio.current_time() - self.opened_at)
        self.tokens += 1
        self._count_tokens(1)
        if self.tokens > self._max_tokens:
            raise Failure("limit-tokens")

    def _flush(self) -> None:
        if self._text:
            self.outlet.put(render(Token("".join(self._text)), self.record.channel))
            self._text.clear()
            self._text_bytes = 0

    async def _flush_in_time(self) -> None:
        """Have no text wait for longer than ``batch_seconds``."""
        while True:
            await self._has_text.wait()
            await trio.sleep(self._batch_seconds)
            self._flush()
            self._has_text = trio.Event()

    # -- what others call

    def stop(self, last: Complete | Error) -> None:
        """End it with ``last``, unless it is about to end anyway."""
        if self._asked is None and self.last is None:
            self._asked = last
            self._producing.cancel()

    def lose(self) -> None:
        """Somebody else makes it, or has ended it."""
        self._fenced = True
        self._producing.cancel()

    async def run(self, produce: Callable[["Running"], Awaitable[Complete]]) -> None:
        """Publish what ``produce`` tells, and then its end. It may raise Failure, and Away."""
        try:
            async with trio.open_nursery() as nursery:
                publishing = trio.CancelScope()
                nursery.start_soon(self._publish, publishing)
                if self._batch_seconds:
                    nursery.start_soon(self._flush_in_time)
                last = await self._produce(produce)
                if last is None:
                    publishing.cancel()
                else:
                    self._flush()
                    self._end(last)
                    with trio.move_on_after(LAST_WORDS_SECONDS) as patience:
                        await self.ended.wait()
                    if patience.cancelled_caught:
                        self.last = None
                        self.lose()
                nursery.cancel_scope.cancel()
        finally:
            self.ended.set()

    async def _produce(
        self, produce: Callable[["Running"], Awaitable[Complete]]
    ) -> Complete | Error | None:
        """How it ends; None where that is not for this worker to tell."""
        last: Complete | Error = Failure("limit-duration").told()
        self._producing.deadline = self.opened_at + self._max_seconds
        try:
            with self._producing:
                try:
                    last = await produce(self)
                except Failure as failure:
                    last = failure.told()
                except Away as away:
                    self._flush()
                    await self.outlet.flushed()
                    self.away = away.seconds
                    return None
        except Exception:  # noqa: BLE001  # a fault of ours must not end everybody's streams
            _log.exception("a token stream failed", _about(self.record))
            last = Failure("internal").told()
        if self._fenced:
            return None
        return self._asked or last

    def _end(self, last: Complete | Error) -> None:
        self.last = last
        channels = dict.fromkeys((self.record.channel, self.record.raw))
        self.outlet.put(render(last, *channels, end=True))

    async def _publish(self, scope: trio.CancelScope) -> None:
        """Have the outlet run, and once more for the end, if that is all that can be told."""
        with scope:
            try:
                try:
                    await self.outlet.run()
                except Failure as failure:
                    self.outlet.clear()
                    if self._away_seconds and isinstance(failure, Uncertain):
                        self.last, self.away = None, self._away_seconds
                        self.lose()
                    else:
                        self._asked = failure.told()  # whatever was asked for before
                        self._producing.cancel()
                        if self.last is not None:  # it was on its way, and went with the rest
                            self._end(self._asked)
                        await self.outlet.run()
            except ChannelEnded:
                self.last = None
                self.lose()
            except Failure:
                self.last = None
                self.lose()
                _log.warning("the end of a token stream could not be told", _about(self.record))
            self.ended.set()


def _type_of(event: ServerSentEvent) -> str | None:
    if event.event == "message":
        return None
    kind = event.event
    if kind in control.TYPES:
        kind = UPSTREAM_PREFIX + kind
    if len(kind) > MAX_LABEL or "\0" in kind:
        raise Failure("malformed")
    return kind


def _about(record: Record) -> dict[str, object]:
    return {"stream": record.id, "upstream": record.upstream}
