"""Room for a user's stream: others that must end for it do so, wherever they are.

1. One of this worker ends at once; another worker is asked to end one of its own, by a task, so
   that nobody who opens a stream waits for that.
2. Who waits to be told is bounded, and a worker that does not answer is asked again a few times.
   What is given up is counted; the stream's worker finds it out when it renews its leases.
3. A stream may be replaced before it is open: then it ends as soon as it is.
"""

import logging
from collections.abc import Sequence

import msgspec
import trio

from gateway.cluster import COMMAND_SECONDS, Cluster
from gateway.errors import GatewayError
from gateway.hub import Hub
from gateway.hub_client import Client
from gateway.ledger import Ledger
from gateway.messages import Command
from gateway.stream_state import Reason

MAX_WAITING = 10_000
"""Streams of other workers that are still to be ended."""

ASKERS = 8
"""Workers asked at a time."""

TRIES = 3
AGAIN_SECONDS = 1.0
"""Until the next of them."""

_log = logging.getLogger(__name__)


class Replaced(msgspec.Struct):
    client: str


class Done(msgspec.Struct):
    pass


REPLACE_CLIENT = Command("replace-client", Replaced, Done, COMMAND_SECONDS)


class Replacements:
    def __init__(self, hub: Hub, cluster: Cluster, ledger: Ledger) -> None:
        self._ledger = ledger
        self._hub = hub
        self._cluster = cluster
        self._put, self._queue = trio.open_memory_channel[str](MAX_WAITING)
        self._opening: dict[str, bool] = {}
        """Whether it has been replaced, by client id."""
        self.unreached = 0
        cluster.serve(REPLACE_CLIENT, self._replace_here)

    async def run(self) -> None:
        """Ask other workers, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(ASKERS):
                nursery.start_soon(self._ask)

    async def claim(self, user: str, client_id: str) -> None:
        """Have a lease for a stream that is to be opened; those end that it replaces.

        Raises Unavailable as `Ledger.claim` does. However that ends, either `opened` or `abandon`
        is to be called.
        """
        self._opening[client_id] = False
        self.end(await self._ledger.claim(user, client_id))

    def opened(self, client: Client) -> None:
        """The stream is open."""
        if self._opening.pop(client.id):
            self._end(client)

    def abandon(self, user: str, client_id: str) -> None:
        """The stream will not be opened."""
        del self._opening[client_id]
        self._ledger.release(user, client_id)

    def end(self, ids: Sequence[str]) -> None:
        """End streams for good. Never waits."""
        for client_id in ids:
            if client_id.partition(".")[0] == self._cluster.tag:
                self._end_here(client_id)
                continue
            try:
                self._put.send_nowait(client_id)
            except trio.WouldBlock:
                self.unreached += 1

    def _end_here(self, client_id: str) -> None:
        client = self._hub.members.clients.get(client_id)
        if client is not None:
            self._end(client)
        elif client_id in self._opening:
            self._opening[client_id] = True

    def _end(self, client: Client) -> None:
        self._hub.end_for_good(client, Reason.REPLACED)

    async def _replace_here(self, asked: Replaced) -> Done:
        self._end_here(asked.client)
        return Done()

    async def _ask(self) -> None:
        async for client_id in self._queue:
            worker = client_id.partition(".")[0]
            for _ in range(TRIES):
                try:
                    await self._cluster.ask(worker, REPLACE_CLIENT, Replaced(client_id))
                    break
                except GatewayError as error:
                    refusal = error
                    await trio.sleep(AGAIN_SECONDS)
            else:
                self.unreached += 1
                _log.warning("a stream that was replaced may still be open", {"why": str(refusal)})
