"""The gateway's own client for Python."""

import trio
from telling import Tell, drive

from gateway.client import Connected, Event, Gap, subscribe


def plain(url: str, tell: Tell) -> None:
    trio.run(follow, url, tell)


async def follow(url: str, tell: Tell) -> None:
    base, _, channel = url.partition("/events/")
    channel, _, position = channel.partition("?lastEventId=")
    async with subscribe(base, [channel], last_event_id=position) as subscription:
        async for item in subscription.items:
            match item:
                case Event():
                    tell("event", type=item.type, id=item.id, data=item.data)
                case Connected():
                    tell("event", type="connected", id=item.position, data=item.data)
                case Gap():
                    tell("event", type="gap", data=item.data)


drive(plain, plain)
