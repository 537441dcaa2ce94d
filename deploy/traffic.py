"""Traffic to look at: publishers and readers such as applications have, at a node or a balancer.

    python deploy/traffic.py --url http://127.0.0.1:8080 --seconds 60

Channels are of four classes, which compose/gateway.toml gives a policy each:

- ``ticker.*``: prices, several times a second; a burst of them now and then;
- ``room.*``: talk that comes in waves, with pauses between;
- ``answer.*``: token streams, each followed from its beginning and ended for good;
- ``user:*``: notices to users, who have a token each; and now and then one to everybody.

Readers leave and come back for what they missed, and some read more slowly than is published, so
that there is something to replay and to drop.

1. Tasks and connections are as many as the options say; a reader has one connection at a time.
2. What fails is counted and tried again later: nodes may come and go meanwhile.
"""

import logging
import os
import random
import signal
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpx
import trio

from gateway.client import Document, Event, Publisher, Reconnecting, TokenSource, subscribe
from gateway.errors import GatewayError
from gateway.mint import make_token
from gateway.settings import load

TICKERS = [f"ticker.{name}" for name in ("ada", "bell", "curie", "dirac", "euler", "fermi")]
ROOMS = [f"room.{name}" for name in ("atrium", "cellar", "garden", "library", "tower")]

GIVE_UP_AFTER = 30.0
"""Seconds, of a publish: longer than a node takes to be replaced."""

RETRY_SECONDS = 5.0
"""After a refusal that coming back at once would not mend."""

SLOW_BYTES_PER_SECOND = 1500
"""That a slow reader reads: a fraction of what tickers and rooms say."""

REPORT_SECONDS = 10.0

_log = logging.getLogger("traffic")


@dataclass
class Reader:
    channels: list[str]
    position: str = ""
    """Of the last event, to come back with."""


class Traffic:
    def __init__(self, url: str, slow_url: str, publisher: Publisher) -> None:
        self._url = url
        self._slow_url = slow_url
        self._publisher = publisher
        self._tls = httpx.create_ssl_context()  # once: it takes as long as a hundred events
        self.counts = Counter[str]()

    # --- publishers -------------------------------------------------------------------------------

    async def publish(self, *events: Document) -> None:
        async for result in self._publisher.publish_many(events):
            if result.error is None:
                self.counts["published"] += 1
            else:
                self.counts["publishes refused"] += 1
                _log.warning("publish: %s", result.error)

    async def tick(self) -> None:
        """Five prices of each ticker a second."""
        prices = dict.fromkeys(TICKERS, 100.0)
        while True:
            for ticker in TICKERS:
                prices[ticker] *= random.gauss(1, 0.001)
            await self.publish(*(_price(ticker, prices[ticker]) for ticker in TICKERS))
            await trio.sleep(0.2)

    async def burst(self) -> None:
        """2,000 prices as fast as they are taken, once a minute or so."""
        while True:
            await trio.sleep(random.uniform(30, 90))
            for _ in range(20):
                await self.publish(*(_price(random.choice(TICKERS), 100.0) for _ in range(100)))

    async def talk(self, room: str) -> None:
        """A wave of talk, then silence."""
        while True:
            await trio.sleep(random.expovariate(1 / 8))
            for number in range(random.randint(5, 60)):
                said = "lorem ipsum " * random.randint(1, 20)
                await self.publish({"channel": room, "event": "said", "data": f"{number}: {said}"})
                await trio.sleep(random.expovariate(20))

    async def answer(self) -> None:
        """One token stream after the other, each with a reader from its beginning."""
        while True:
            channel = f"answer.{uuid.uuid4().hex[:12]}"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, Reader([channel]))
                for _ in range(random.randint(20, 200)):
                    await self.publish({"channel": channel, "event": "token", "data": "word "})
                    await trio.sleep(0.03)
                await self.publish({"channel": channel, "event": "done", "data": "", "end": True})
            await trio.sleep(random.expovariate(1 / 3))

    async def notify(self, users: list[str]) -> None:
        """One of the users hears something twice a second, and everybody once a minute."""
        while True:
            for _ in range(120):
                await self.publish({"user": random.choice(users), "event": "notice", "data": "!"})
                await trio.sleep(0.5)
            await self.publish({"broadcast": True, "event": "notice", "data": "to everybody"})

    # --- readers ----------------------------------------------------------------------------------

    async def read(self) -> None:
        """Some channels for a while, and again after a pause, from where it was."""
        reader = Reader(random.sample(TICKERS + ROOMS, random.randint(1, 3)))
        while True:
            with trio.move_on_after(random.expovariate(1 / 60)):
                await self._read(reader)
            await trio.sleep(random.uniform(0, 15))

    async def read_as(self, make_token: Callable[[], str]) -> None:
        """What a user hears, and a room; with a new token when the last one has expired."""
        reader = Reader(ROOMS[:1])
        while True:
            await self._read(reader, make_token)

    async def read_slowly(self) -> None:
        """All tickers and rooms, more slowly than they speak: as a phone in a lift."""
        parts = urlsplit(self._slow_url)
        host, port = parts.hostname or "", parts.port or 80
        query = "&".join(f"channel={name}" for name in TICKERS + ROOMS)
        request = (
            f"GET /events?{query} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n"
        )
        while True:
            try:
                with trio.socket.socket() as sock:
                    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
                    [(_, _, _, _, address), *_] = await trio.socket.getaddrinfo(
                        host, port, trio.socket.AF_INET
                    )
                    await sock.connect(address)
                    await sock.send(request.encode())
                    while data := await sock.recv(SLOW_BYTES_PER_SECOND):
                        self.counts["bytes read slowly"] += len(data)
                        await trio.sleep(1)
            except OSError as error:
                _log.info("slow reader: %r", error)
            self.counts["slow readers cut"] += 1
            await trio.sleep(RETRY_SECONDS)

    async def _read(self, reader: Reader, token: TokenSource = "") -> None:
        """Read until the stream has ended for good, or was refused."""
        async with httpx.AsyncClient(trust_env=False, verify=self._tls) as client:
            stream = subscribe(
                self._url,
                reader.channels,
                token=token,
                last_event_id=reader.position,
                annotate=False,
                client=client,
            )
            try:
                async with stream:
                    async for item in stream.items:
                        match item:
                            case Event():
                                self.counts["received"] += 1
                            case Reconnecting():
                                self.counts["connections ended"] += 1
                            case _:
                                self.counts[type(item).__name__.lower()] += 1
            except (GatewayError, httpx.RequestError) as error:
                self.counts["streams refused"] += 1
                _log.warning("stream: %s", error)
                await trio.sleep(RETRY_SECONDS)
            finally:
                reader.position = stream.last_event_id

    async def report(self) -> None:
        while True:
            await trio.sleep(REPORT_SECONDS)
            self.tell()

    def tell(self) -> None:
        """All counts, as one line of the log."""
        told = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        _log.info("%s", told)


def _price(ticker: str, price: float) -> Document:
    data = {"price": round(price, 2), "volume": random.randint(1, 1000), "venue": "everywhere"}
    return {"channel": ticker, "event": "price", "data": data}


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
@click.option("--slow-url", help="a node, for slow readers: a balancer would hide them  [--url]")
@click.option("--token-file", type=click.Path(path_type=Path), help="of an administrator's API key")
@click.option("--readers", default=100, show_default=True)
@click.option("--users", default=20, show_default=True, help="who need the node's secret")
@click.option("--slow", default=5, show_default=True, help="readers that read slowly")
@click.option("--answers", default=6, show_default=True, help="token streams at a time")
@click.option("--seconds", default=float("inf"), help="for which it runs; without, until SIGTERM")
def main(
    url: str,
    slow_url: str | None,
    token_file: Path | None,
    readers: int,
    users: int,
    slow: int,
    answers: int,
    seconds: float,
) -> None:
    """Publish and read as applications do, until SIGTERM.

    Users' tokens are signed with the secret of GATEWAY_JWT_KEY or GATEWAY_JWT_KEY_FILE.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else each publish is a line
    token = token_file.read_text("ascii").strip() if token_file else ""
    trio.run(run, url, slow_url or url, token, readers, users, slow, answers, seconds)


async def run(
    url: str,
    slow_url: str,
    token: str,
    readers: int,
    users: int,
    slow: int,
    answers: int,
    seconds: float,
) -> None:
    config = load({}, os.environ, None).config
    names = [str(number) for number in range(1, users + 1)]
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        Publisher(url, token=token, client=client, give_up_after=GIVE_UP_AFTER) as publisher,
    ):
        traffic = Traffic(url, slow_url, publisher)
        tasks: list[Callable[[], Awaitable[None]]] = [
            traffic.tick,
            traffic.burst,
            *(partial(traffic.talk, room) for room in ROOMS),
            *[traffic.answer] * answers,
            *[traffic.read] * readers,
            *[traffic.read_slowly] * slow,
            traffic.report,
        ]
        if names:
            tasks.append(partial(traffic.notify, names))
        for name in names:
            sign = partial(
                make_token, config, user=name, subscribe=ROOMS, publish=(), admin=False, seconds=600
            )
            tasks.append(partial(traffic.read_as, sign))
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                for task in tasks:
                    nursery.start_soon(task)
                with trio.move_on_after(seconds):
                    await anext(signals)
                nursery.cancel_scope.cancel()
        traffic.tell()


if __name__ == "__main__":
    main()
