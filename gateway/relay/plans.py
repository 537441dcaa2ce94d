"""What a token stream is to be made of: the call of an upstream, or what an application pushes."""

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import msgspec
import trio

from gateway.config import Config, Upstream
from gateway.relay import demo
from gateway.relay.events import Complete
from gateway.relay.formats import normalizer
from gateway.relay.reading import Reader
from gateway.relay.record import Record
from gateway.relay.relays import Limits, Plan, Produce
from gateway.relay.running import Running
from gateway.relay.upstream import Asked, Caller, CallerStatistics, ask

Receive = Callable[[], Awaitable[bytes]]
"""The next bytes of a body; none at its end. Raises Failure."""


class Kept(msgspec.Struct):
    """What another worker needs to make a call again; nobody else is shown it."""

    path: str
    body: bytes
    unwatched_seconds: float


class Upstreams:
    """All that are configured, and the demo's where that is offered, by name."""

    def __init__(self, config: Config, environ: Mapping[str, str] = os.environ) -> None:
        """Raises ConfigError where a header of an upstream has no value."""
        self._config = config
        most = config.max_event_bytes
        self._callers: dict[str, Caller] = {}
        for upstream in config.upstreams:
            bounded = replace(upstream, max_event_bytes=min(most, upstream.max_event_bytes))
            self._callers[upstream.name] = Caller(bounded, environ=environ)
        if demo.is_offered(config):
            self._callers[demo.NAME] = demo.caller()

    async def run(self) -> None:
        """Keep their connections, until cancelled."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for caller in self._callers.values():
                    await caller.aclose()

    def find(self, name: str) -> Upstream | None:
        caller = self._callers.get(name)
        return caller.upstream if caller is not None else None

    def caller(self, upstream: Upstream) -> Caller:
        return self._callers[upstream.name]

    def statistics(self) -> dict[str, CallerStatistics]:
        """By the upstream's name."""
        return {name: caller.statistics() for name, caller in self._callers.items()}

    def limits(self, upstream: Upstream, unwatched_seconds: float | None = None) -> Limits:
        """Of its streams; ``unwatched_seconds`` where a request says so itself."""
        if unwatched_seconds is None:
            unwatched_seconds = upstream.stop_when_unwatched
        return Limits(
            max_tokens=upstream.max_tokens,
            max_seconds=upstream.max_duration,
            max_event_bytes=upstream.max_event_bytes,
            batch_seconds=upstream.batch_seconds,
            batch_bytes=upstream.batch_bytes,
            unwatched_seconds=unwatched_seconds,
        )

    def plan(
        self,
        upstream: Upstream,
        request: bytes,
        *,
        path: str | None = None,
        channel: str | None = None,
        user: str | None = None,
        publisher: str = "",
        idempotent: bool = False,
        unwatched_seconds: float | None = None,
    ) -> Plan:
        """A call with the JSON that POST /streams names. Raises BadRequest and Forbidden."""
        asked = ask(upstream, request, path)
        limits = self.limits(upstream, unwatched_seconds)
        kept = b""
        if idempotent:
            kept = msgspec.msgpack.encode(Kept(asked.path, asked.body, limits.unwatched_seconds))
        return Plan(
            self._call(upstream, asked, idempotent=idempotent),
            limits,
            upstream.format,
            upstream.name,
            asked.model,
            channel,
            user,
            publisher,
            idempotent,
            kept,
        )

    def again(self, record: Record, request: bytes) -> tuple[Limits, Produce] | None:
        """How the call of another worker is made again here; None where that cannot be."""
        upstream = self.find(record.upstream or "")
        if upstream is None or upstream.format is not record.format:
            return None
        kept = msgspec.msgpack.decode(request, type=Kept)
        asked = Asked(kept.path, kept.body, record.model)
        limits = self.limits(upstream, kept.unwatched_seconds)
        return limits, self._call(upstream, asked, idempotent=True)

    def _call(self, upstream: Upstream, asked: Asked, *, idempotent: bool) -> Produce:
        async def produce(running: Running) -> Complete:
            caller = self.caller(upstream)
            async with caller.call(asked, idempotent=idempotent) as answer:
                return await relay(running, answer.receive, upstream, asked.path)

        return produce


async def relay(
    running: Running,
    receive: Receive,
    upstream: Upstream,
    path: str,
) -> Complete:
    """Feed a token stream with an upstream's answer. Raises Failure.

    Nothing is read that comes behind the format's own end.
    """
    events, normal = Reader(receive, upstream), normalizer(upstream.format, path)
    while (some := await events.events()) is not None:
        await running.begin()
        for event in some:
            running.tell_raw(event)
            for told in normal.feed(event):
                running.tell(told)
            if normal.is_done:
                return normal.finish()
        await running.room()
    return normal.finish()
