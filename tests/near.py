"""A node in this process, asked over its real port: quick to start."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from process import PATIENCE
from running import joined, running


class Near:
    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(trust_env=False, timeout=PATIENCE)

    async def publish(self, channel: str, *data: str) -> list[str]:
        """Publish an event with each of ``data``; their ids."""
        lines = joined({"channel": channel, "data": text} for text in data)
        headers = {"Content-Type": "application/x-ndjson"}
        async with self.client() as client:
            answer = await client.post(f"{self.url}/publish", content=lines, headers=headers)
        told = httpx.Response(200, text=f"[{','.join(answer.text.split())}]").json()
        return [line["id"] for line in told]


@asynccontextmanager
async def near(**settings: object) -> AsyncIterator[Near]:
    """A node with these settings (fields of Config), until the block is left."""
    async with running(**settings) as gateway:  # type: ignore[arg-type]
        yield Near(gateway.port)
