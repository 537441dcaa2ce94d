"""The peer: sse-starlette, by its own example of broadcasting: a queue for each client.

Each event is rendered once. `loadtest/peers` runs it under uvicorn with uvloop and httptools, as
one process that logs nothing.
"""

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

queues: set[asyncio.Queue[bytes]] = set()


async def stream() -> AsyncIterator[bytes]:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    queues.add(queue)
    try:
        while True:
            yield await queue.get()
    finally:
        queues.discard(queue)


async def subscribe(request: Request) -> Response:
    return EventSourceResponse(stream())


async def publish(request: Request) -> Response:
    event = ServerSentEvent((await request.body()).decode()).encode()
    for queue in queues:
        queue.put_nowait(event)
    return Response(status_code=202)


app = Starlette(
    routes=[
        Route("/events", subscribe),
        Route("/publish", publish, methods=["POST"]),
    ]
)
