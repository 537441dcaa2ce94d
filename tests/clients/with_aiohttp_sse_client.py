"""aiohttp-sse-client, as its documentation shows it; and with what its user adds."""

import asyncio

import aiohttp
from aiohttp_sse_client.client import EventSource, MessageEvent
from telling import Tell, drive


def tell_of(event: MessageEvent, tell: Tell) -> None:
    tell("event", type=event.type or "message", id=event.last_event_id, data=event.data)


async def as_documented(url: str, tell: Tell) -> None:
    async with EventSource(url) as source:
        try:
            async for event in source:
                tell_of(event, tell)
        except ConnectionError:
            pass


async def with_a_loop(url: str, tell: Tell) -> None:
    last = ""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=45)
    while True:
        headers = {"Last-Event-Id": last} if last else {}
        try:
            async with EventSource(
                url, headers=headers, timeout=timeout, read_bufsize=2**20
            ) as source:
                async for event in source:
                    last = event.last_event_id
                    tell_of(event, tell)
        except ConnectionAbortedError:
            return  # 204 among others: the stream is over
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            pass
        await asyncio.sleep(1)


def plain(url: str, tell: Tell) -> None:
    asyncio.run(as_documented(url, tell))


def mended(url: str, tell: Tell) -> None:
    asyncio.run(with_a_loop(url, tell))


drive(plain, mended)
