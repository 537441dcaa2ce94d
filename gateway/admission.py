"""Who may open a stream, by where it comes from, and at what pace: the line of those who wait.

1. What an address has open is counted when its opening begins and given back when that fails or the
   stream ends: the count is exact, and an address without streams is not remembered.
2. Openings that come faster than the node's pace stand in one line, first come, first served, by
   the batch. Who would have to stand there for too long is turned away at once, before it costs
   anything.
3. One task serves the line, and waiting costs a place in it and no timer. Whoever leaves takes no
   turn from those behind: the cancelled are gone at once, and whose peer has hung up, which is seen
   when its turn comes, gives the turn back.
4. A limit that is not set costs nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import NamedTuple

import trio

from gateway.config import Config
from gateway.errors import TooManyRequests
from gateway.limits import Bucket, Buckets, Tally, network

ADDRESS_BURST_SECONDS = 10.0
"""Openings that one address may have at once, in seconds of its rate."""

BURST_SECONDS = 2.0
"""Openings that the node takes at once, in seconds of its rate. Who stands in line costs 8 KiB that
Python keeps for the next ones: ten thousand that come once, after a deployment, need no line."""

MAX_ADDRESSES = 16_384
"""Whose rate is remembered at a time, about 5 MiB: whoever has so many addresses at hand that one
is forgotten within the ten seconds of its burst gains little by that."""

ADDRESSES_REMEMBERED = 1024
"""What they are counted as: it is asked for several times in one opening."""

MAX_LINE = 8192
"""Openings that wait at a time: two seconds of the default rate, and 64 MiB with all that belongs
to their connections, at 8 KiB each (a poll takes 13)."""

TICK = 0.004
"""Seconds between two batches of the line: 16 openings at the default rate, as many connections as
are accepted at a time, about two milliseconds of work."""

LATE_SECONDS = 0.25
"""By which a busy node may be late with a turn until nobody waits for it any more."""

STREAMS_SENTENCE = (
    "This address has as many streams open as one may have (max_streams_per_address)."
)


class Refusal(NamedTuple):
    """Why somebody is turned away, in one word, and the seconds after which there may be room."""

    reason: str
    retry_after: float = 0.0


class Turn(Enum):
    """When somebody who is not turned away may open a stream."""

    NOW = auto()
    LATER = auto()


@dataclass(frozen=True, slots=True)
class AdmissionStatistics:
    """A snapshot. ``addresses`` have streams, ``paced`` are those whose rate is remembered."""

    waiting: int
    addresses: int
    paced: int
    paced_evicted: int
    waited: int
    """Openings that have stood in line, whatever became of them."""
    waited_seconds: float
    longest_wait: float


class Admission:
    def __init__(self, config: Config, is_exempt: Callable[[str], bool]) -> None:
        """``is_exempt`` says of an address that its limits do not bind, always the same of one."""
        self._config = config
        self._is_exempt = is_exempt
        self._key = lru_cache(ADDRESSES_REMEMBERED)(self._key_of)
        self._streams: Tally | None = None
        if config.max_streams_per_address:
            self._streams = Tally(config.max_streams_per_address)
        self._rates: Buckets | None = None
        if rate := config.address_open_rate:
            self._rates = Buckets(rate, max(1, rate * ADDRESS_BURST_SECONDS), most=MAX_ADDRESSES)
        self._pace: Bucket | None = None
        if rate := config.open_rate:
            self._pace = Bucket(rate, max(1, rate * BURST_SECONDS))
        self._batch = math.ceil(2 * config.open_rate * TICK)
        """Turns in one tick: twice the rate, so that a late node catches up, and not at once."""
        self._line = trio.lowlevel.ParkingLot()
        self._formed = trio.Event()
        self._dissolved = False
        self._waited = 0
        self._waited_seconds = self._longest_wait = 0.0

    # -- streams of an address

    def enter(self, address: str) -> None:
        """A stream of ``address`` is being opened. Raises TooManyRequests where it has as many as
        it may have; else `leave` is to be called once."""
        if self._streams is None or (key := self._key(address)) is None:
            return
        if not self._streams.add(key):
            raise TooManyRequests(
                STREAMS_SENTENCE, retry_after=self._config.retry, reason="address"
            )

    def leave(self, address: str) -> None:
        """A stream of ``address`` has ended, or its opening has failed."""
        if self._streams is not None and (key := self._key(address)) is not None:
            self._streams.remove(key)

    def _key_of(self, address: str) -> str | None:
        """What an address is counted as; None where its limits do not bind."""
        return None if self._is_exempt(address) else network(address)

    # -- at the door

    def arrive(self, address: str) -> Refusal | Turn:
        """An opening is turned away at once, by its address or by a line that is too long; or it
        has its turn now, or is to `wait_turn`.

        One that is not turned away takes a token of its address, and if it hangs up in the line
        that is lost: it has cost as much as another.
        """
        if (refusal := self.no_room(address)) is not None:
            return refusal
        now = trio.current_time()
        rate = self._rate(address, now)
        if rate is not None and not rate.take(now):
            return Refusal("address-rate", rate.promise(now))
        pace, ahead = self._pace, len(self._line)
        if pace is None or (not ahead and pace.take(now)):
            return Turn.NOW
        if ahead < MAX_LINE and pace.wait(now, ahead) <= self._config.open_wait:
            return Turn.LATER
        if rate is not None:
            rate.give_back()
        return Refusal("pace", pace.promise(now, ahead))

    def no_room(self, address: str) -> Refusal | None:
        """Whether an address has as many streams as it may have."""
        if self._streams is None or (key := self._key(address)) is None:
            return None
        if self._streams.has_room(key):
            return None
        now = trio.current_time()
        rate = self._rate(address, now)
        return Refusal("address", rate.promise(now) if rate is not None else 0.0)

    def _rate(self, address: str, now: float) -> Bucket | None:
        if self._rates is None or (key := self._key(address)) is None:
            return None
        return self._rates.of(key, now)

    async def wait_turn(self, is_gone: Callable[[], bool]) -> Refusal | None:
        """Stand in line; why that was for nothing, if it was. ``is_gone`` says, when its turn has
        come, whether nobody waits for the opening any more."""
        assert self._pace is not None
        since = trio.current_time()
        self._formed.set()
        await self._line.park()
        waited = trio.current_time() - since
        self._waited += 1
        self._waited_seconds += waited
        self._longest_wait = max(self._longest_wait, waited)
        if self._dissolved:
            return Refusal("draining")
        if is_gone():
            self.return_turn()
            return Refusal("gone")
        if waited > self._config.open_wait + LATE_SECONDS:
            self.return_turn()
            return Refusal("pace", self._pace.promise(trio.current_time(), len(self._line)))
        return None

    def return_turn(self) -> None:
        """A turn that has come is not used: the next one in the line has it, now."""
        if self._line:
            self._line.unpark()
        elif self._pace is not None:
            self._pace.give_back()

    def dissolve(self) -> None:
        """Turn away whoever waits: the node is leaving."""
        self._dissolved = True
        self._line.unpark_all()

    async def run(self) -> None:
        """Serve the line, until cancelled; returns at once if there is no pace."""
        pace = self._pace
        while pace is not None:
            await self._formed.wait()
            while self._line:
                await trio.sleep(max(pace.wait(trio.current_time()), TICK))
                self._serve(pace, trio.current_time())
            self._formed = trio.Event()

    def _serve(self, pace: Bucket, now: float) -> None:
        for _ in range(self._batch):
            if not self._line or not pace.take(now):
                return
            self._line.unpark()

    def statistics(self) -> AdmissionStatistics:
        return AdmissionStatistics(
            waiting=len(self._line),
            addresses=len(self._streams) if self._streams is not None else 0,
            paced=len(self._rates) if self._rates is not None else 0,
            paced_evicted=self._rates.evicted if self._rates is not None else 0,
            waited=self._waited,
            waited_seconds=self._waited_seconds,
            longest_wait=self._longest_wait,
        )
