"""Token streams in the test's own hands: made by a node of this process, of what the test says."""

from typing import Any

import trio
from running import PATIENCE, Gateway, until

from gateway.config import Format
from gateway.node import Node
from gateway.relay.events import Complete, Failure, Normal, Token
from gateway.relay.record import Record
from gateway.relay.relays import Limits, Plan
from gateway.relay.running import Running
from gateway.sse import ServerSentEvent

LIMITS = Limits(max_tokens=100_000, max_seconds=600.0, max_event_bytes=1024 * 1024)


class TokenStream:
    """One that is made by ``node``."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._over = trio.Event()
        self._end: Complete | Failure = Complete("end")
        self.running: Running
        self.text = ""
        """What its tokens come to."""

    @property
    def record(self) -> Record:
        return self.running.record

    @property
    def name(self) -> str:
        return self.record.channel

    async def produce(self, running: Running) -> Complete:
        await self._over.wait()
        if isinstance(self._end, Failure):
            raise self._end
        return self._end

    async def say(self, *texts: str) -> None:
        """Tell a token each; return when they are published."""
        for text in texts:
            self.running.tell(Token(text))
            self.text += text
        await self.published()

    async def tell(self, *events: Normal | ServerSentEvent) -> None:
        for event in events:
            if isinstance(event, Normal):
                self.running.tell(event)
            else:
                self.running.tell_raw(event)
        await self.published()

    async def published(self) -> None:
        with trio.fail_after(PATIENCE):
            await self.running.outlet.flushed()

    async def end(self, end: Complete | Failure | None = None) -> None:
        """End it; return when that is published, and known to the registry."""
        self._end = end or self._end
        self._over.set()
        await until(lambda: self.record.id not in self._node.relays.running)


async def begin(node: Node | Gateway, **plan: Any) -> TokenStream:
    """One of these traits (fields of `gateway.relay.relays.Plan`), which has begun."""
    node = node.node if isinstance(node, Gateway) else node
    made = TokenStream(node)
    traits: dict[str, Any] = {"format": Format.OPENAI, "limits": LIMITS, "upstream": "openai"}
    made.running = await node.relays.begin(Plan(made.produce, **(traits | plan)))
    return made
