"""Nodes on one Redis under load, and the verdict on it once the load has ended.

A test starts a `Load`, lets things go wrong, and calls `finish`: publishers stop, each channel gets
one last event, and all subscribers read up to it. Then `defects` must be empty.
"""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Protocol

import trio
from process import PATIENCE, NodeProcess, eventually, node
from publisher import Publisher
from subscriber import Subscriber
from verdict import Gap, Outcome, Sent, defects

FLAGS = (
    *("--redis-timeout", "1"),
    *("--retry", "0.1"),
    *("--history-events", "100000"),
    *("--history-bytes", "100000000"),
    *("--drain-seconds", "0.1"),
)
"""Faults are found soon, and history is long enough for none of it to be trimmed."""

LOG_SHOWN = 3000
"""Characters of each node's log, from its end."""

BATCH = 100
"""Events in a request of those that are published at once."""


@asynccontextmanager
async def cluster(*urls: str, flags: Sequence[str] = ()) -> AsyncIterator[list[NodeProcess]]:
    """A node for each of ``urls``, by which it reaches Redis. A failure shows their logs."""
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(node(*FLAGS, "--redis", url, *flags)) for url in urls
        ]
        try:
            yield nodes
        except Exception as failure:
            for n in nodes:
                failure.add_note(f"{n.url} said:\n{n.output[-LOG_SHOWN:]}")
            raise


class Load:
    """Publishers and subscribers of nodes; each begins with another of ``ports``."""

    def __init__(self, ports: Sequence[int], nursery: trio.Nursery) -> None:
        self.ledger: list[Sent] = []
        self.subscribers: list[Subscriber] = []
        self._ports = list(ports)
        self._nursery = nursery
        self._publishers: list[Publisher] = []
        self._publishing = 0

    def subscribe(
        self,
        *channels: str,
        stay: float = math.inf,
        last_event_id: str = "",
        ports: Sequence[int] = (),
        keeps_cookies: bool = True,
    ) -> Subscriber:
        """A subscriber from now on, of ``ports`` only if they are given; see `Subscriber`."""
        number = len(self.subscribers)
        subscriber = Subscriber(
            f"client {number}",
            channels,
            ports or _rotated(self._ports, number),
            stay=stay,
            last_event_id=last_event_id,
            keeps_cookies=keeps_cookies,
        )
        self.subscribers.append(subscriber)
        self._nursery.start_soon(subscriber.run)
        return subscriber

    def publish(
        self,
        *targets: str | tuple[str, ...],
        batch: int = 10,
        pause: float = 0.02,
        retries: bool = True,
        padding: int = 0,
    ) -> None:
        """Publish to each of ``targets`` in turn, until `finish`; see `Publisher`."""
        number = len(self._publishers)
        publisher = Publisher(
            f"p{number}",
            [(target,) if isinstance(target, str) else target for target in targets],
            _rotated(self._ports, number),
            self.ledger,
            batch=batch,
            pause=pause,
            retries=retries,
            padding=padding,
        )
        self._publishers.append(publisher)
        self._publishing += 1
        self._nursery.start_soon(self._run, publisher)

    async def _run(self, publisher: Publisher) -> None:
        await publisher.run()
        self._publishing -= 1

    async def publish_at_once(self, name: str, targets: Sequence[str], events: int) -> None:
        """Have ``events`` acknowledged, as "<name>/0" and so on, to each of ``targets`` in turn."""
        publisher = Publisher(name, [(target,) for target in targets], self._ports, self.ledger)
        with trio.fail_after(PATIENCE):
            for start in range(0, events, BATCH):
                await publisher.publish(min(BATCH, events - start))
        await publisher.hang_up()

    def count(self, outcome: Outcome = Outcome.ACKNOWLEDGED) -> int:
        """How many events have come to that so far."""
        return sum(event.outcome is outcome for event in self.ledger)

    @property
    def repeats(self) -> int:
        """How often publishers had to send an event once more."""
        return sum(publisher.repeats for publisher in self._publishers)

    @property
    def gaps(self) -> list[Gap]:
        """All that were told, to whomever."""
        return [gap for subscriber in self.subscribers for gap in subscriber.recording.gaps]

    async def connected(self) -> None:
        """Return once all subscribers have been connected."""

        async def all_are() -> bool:
            return all(subscriber.recording.start for subscriber in self.subscribers)

        await eventually(all_are)

    async def more(self, events: int, outcome: Outcome = Outcome.ACKNOWLEDGED) -> None:
        """Return once so many more events have come to ``outcome``."""
        enough = self.count(outcome) + events

        async def are_enough() -> bool:
            return self.count(outcome) >= enough

        await eventually(are_enough)

    async def finish(self) -> None:
        """Stop publishing, and return when all subscribers have read up to the last event, or
        have had their time: `defects` tells the two apart."""
        for publisher in self._publishers:
            publisher.stopping = True

        async def nobody_publishes() -> bool:
            return not self._publishing

        await eventually(nobody_publishes)
        assert self.count(), "nothing was acknowledged: the test proves nothing"
        channels = sorted({name for sent in self.ledger for name in sent.channels})
        await self.publish_at_once("last", channels, len(channels))
        last = {name: f"last/{number}" for number, name in enumerate(channels)}
        for subscriber in self.subscribers:
            subscriber.stay = math.inf

        async def all_have_read() -> bool:
            return all(
                subscriber.received.issuperset(
                    last[name] for name in subscriber.recording.channels & last.keys()
                )
                for subscriber in self.subscribers
            )

        with suppress(trio.TooSlowError):
            await eventually(all_have_read)

    def defects(self) -> list[str]:
        return defects(self.ledger, [subscriber.recording for subscriber in self.subscribers])


def ordinary(load: Load, *, retries: bool = True) -> None:
    """Subscribers that stay and subscribers that come and go; events of one channel and of two;
    publishers that retry, and one that does not.

    Without ``retries`` none does: a Redis that has lost events no longer knows which are repeats.
    """
    for _ in range(6):
        load.subscribe("a", "b")
        load.subscribe("b", "c", stay=0.3)
    load.publish("a", "b", ("a", "c"), ("b", "c"), retries=retries)
    load.publish("c", "b", "a", retries=retries)
    load.publish("c", batch=1, retries=False)


def _rotated(ports: list[int], by: int) -> list[int]:
    by %= len(ports)
    return ports[by:] + ports[:by]


class Listening(Protocol):
    """A node, or a balancer in front of some."""

    @property
    def port(self) -> int: ...


@asynccontextmanager
async def load_on(servers: Sequence[Listening]) -> AsyncIterator[Load]:
    """A `Load` that ends with the block. A failure shows how far it came."""
    async with trio.open_nursery() as nursery:
        load = Load([server.port for server in servers], nursery)
        try:
            yield load
        except Exception as failure:
            counts = {outcome.name.lower(): load.count(outcome) for outcome in Outcome}
            failure.add_note(f"events: {counts}")
            raise
        nursery.cancel_scope.cancel()
