"""What a token stream is to be made of: the call of an upstream, or what an application pushes."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

import msgspec
import trio

from gateway.config import Config, Upstream
from gateway.relay.events import Complete
from gateway.relay.formats import normalizer
from gateway.relay.reading import read
from gateway.relay.record import Format, Record
from gateway.relay.relays import Limits, Plan, Produce
from gateway.relay.running import Running
from gateway.relay.upstream import Call, UpstreamClient


class Kept(msgspec.Struct):
    """What another worker needs to make a call again. It is not shown to anybody."""

    path: str
    body: bytes
    unwatched_seconds: float
    model: str | None


class Upstreams:
    """All that are configured, by name."""

    def __init__(self, config: Config, clients: Mapping[str, UpstreamClient]) -> None:
        self._config = config
        self._clients = clients

    async def run(self) -> None:
        """Keep their connections, until cancelled."""
        async with AsyncExitStack() as stack:
            for client in self._clients.values():
                await stack.enter_async_context(client)
            await trio.sleep_forever()

    def find(self, name: str) -> Upstream | None:
        client = self._clients.get(name)
        return client.upstream if client is not None else None

    def plan(
        self,
        upstream: Upstream,
        request: bytes,
        *,
        path: str | None,
        channel: str | None,
        user: str | None,
        publisher: str,
        idempotent: bool,
        unwatched_seconds: float | None,
    ) -> Plan:
        """A call with what POST /streams names. Raises BadRequest."""
