"""What a message costs the bus that receives it: `RedisBus` by itself, with a sink that counts.

    received.py URL RATE SECONDS

Another process publishes RATE events a second (0: as many as Redis takes) of 100 bytes, 64 in a
call, to 1,000 channels in turn; all of them are subscribed to here. Prints what was received, per
second and in CPU microseconds of this process for each, and what was lost. Nothing is given to any
client, and nothing is parsed but what Redis sends.
"""

import logging
import sys
import time
from collections.abc import Collection
from itertools import cycle, islice

import trio

from gateway.bus.address import parse_address
from gateway.bus.redis import RedisBus
from gateway.config import Config
from gateway.control import Gap
from gateway.errors import GatewayError
from gateway.event import Event, Frame
from gateway.position import Position

CHANNELS = [f"c{number}" for number in range(1000)]
CALL_EVENTS = 64
IN_FLIGHT = 4
"""Calls that wait for their answer at a time."""

WARM_SECONDS = SETTLE_SECONDS = 0.5


class Counter:
    """A `gateway.bus.Sink`."""

    def __init__(self) -> None:
        self.received = 0

    async def room(self, size: int) -> None:
        """There is always room."""

    def has_room(self, size: int) -> bool:
        return True

    def deliver(self, frame: Frame) -> None:
        self.received += 1


async def _tell_gap(channels: Collection[str] | None, position: Position, reason: Gap) -> None:
    raise AssertionError(f"a gap was told: {reason}")


def _bus(url: str, sink: Counter, worker: str) -> RedisBus:
    config = Config(redis=url)
    return RedisBus(config, parse_address(url), sink, worker=worker, tell_gap=_tell_gap)


async def receive(url: str, rate: float, seconds: float) -> None:
    sink = Counter()
    bus = _bus(url, sink, "receiver")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus.run)
        await bus.subscribe(CHANNELS)
        until = seconds + 2 * WARM_SECONDS
        command = [sys.executable, __file__, "send", url, str(rate), str(until)]
        sender = await nursery.start(_run, command)
        while not sink.received:  # noqa: ASYNC110  # it is counted, and nothing else
            await trio.sleep(0.01)
        await trio.sleep(WARM_SECONDS)
        cpu, began, before = time.process_time(), time.monotonic(), sink.received
        await trio.sleep(seconds)
        cpu, took = time.process_time() - cpu, time.monotonic() - began
        received = sink.received - before
        sent = int(await sender.receive())
        await trio.sleep(SETTLE_SECONDS)
        nursery.cancel_scope.cancel()
    lost = sent - sink.received
    print(f"per_s={received / took:.0f} cpu_us={cpu * 1e6 / received:.3f} lost={lost}")  # noqa: T201


async def _run(
    command: list[str], *, task_status: trio.TaskStatus["trio.MemoryReceiveChannel[bytes]"]
) -> None:
    give, take = trio.open_memory_channel[bytes](1)
    task_status.started(take)
    give.send_nowait((await trio.run_process(command, capture_stdout=True)).stdout)


async def send(url: str, rate: float, seconds: float) -> None:
    """Print how many events were taken."""
    bus = _bus(url, Counter(), "sender")
    channels = cycle(CHANNELS)
    until = trio.current_time() + seconds
    sent = 0

    async def keep_sending(first: float) -> None:
        nonlocal sent
        at = first
        while trio.current_time() < until:
            if rate:
                await trio.sleep_until(at)
                at += IN_FLIGHT * CALL_EVENTS / rate
            events = [Event((name,), "x" * 100) for name in islice(channels, CALL_EVENTS)]
            results = await bus.publish(events)
            sent += sum(not isinstance(result, GatewayError) for result in results)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bus.run)
        async with trio.open_nursery() as senders:
            for number in range(IN_FLIGHT):
                first = trio.current_time() + (number * CALL_EVENTS / rate if rate else 0)
                senders.start_soon(keep_sending, first)
        nursery.cancel_scope.cancel()
    print(sent)  # noqa: T201


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # this Redis keeps nothing, as it should
    role = send if sys.argv[1] == "send" else receive
    trio.run(role, sys.argv[-3], float(sys.argv[-2]), float(sys.argv[-1]))
