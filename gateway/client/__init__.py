"""The client of a gateway, for Python programs: publishing, and following channels.

Needs httpx and anyio, runs on trio and asyncio, and has a face for programs that do not await.

    async with Publisher("http://127.0.0.1:8080") as publisher:
        position = await publisher.publish("news", "Hello")

    async with subscribe("http://127.0.0.1:8080", ["news"]) as subscription:
        async for event in subscription:
            print(event.id, event.data)

What is decided is decided once, without I/O: `outgoing` (what waits to be published, and what an
answer means), `session` (where a stream stands, and what comes next), `returning` (when to come
back). `publisher`, `subscription` and `sync` only carry it out. What is raised: `errors`.
"""

from gateway.client.errors import (
    ClientError,
    Closed,
    ConnectionLost,
    EventsMissing,
    PublishError,
    Refused,
    StreamRefused,
    TokenUnavailable,
    Unknown,
)
from gateway.client.items import (
    Connected,
    Dropped,
    Ended,
    Event,
    Gap,
    Item,
    Notice,
    Reconnecting,
)
from gateway.client.outgoing import Document, PublisherStatistics
from gateway.client.publisher import Publisher, Result
from gateway.client.subscription import Subscription, subscribe
from gateway.client.sync import SyncPublisher, subscribe_sync
from gateway.client.tokens import SyncTokenSource, TokenSource

__all__ = [
    "ClientError",
    "Closed",
    "Connected",
    "ConnectionLost",
    "Document",
    "Dropped",
    "Ended",
    "Event",
    "EventsMissing",
    "Gap",
    "Item",
    "Notice",
    "PublishError",
    "Publisher",
    "PublisherStatistics",
    "Reconnecting",
    "Refused",
    "Result",
    "StreamRefused",
    "Subscription",
    "SyncPublisher",
    "SyncTokenSource",
    "TokenSource",
    "TokenUnavailable",
    "Unknown",
    "subscribe",
    "subscribe_sync",
]
