"""Subscribers: each holds a stream open, and accounts for every event of its channels."""

import json
import random
import time
from collections.abc import Sequence
from urllib.parse import urlencode

import gevent
from locust import task
from locust.exception import StopUser

from gateway.sse import ServerSentEvent
from stress.account import Fate
from stress.event_source import Ended, EventSource, TurnedAway
from stress.stamp import Stamp, place
from stress.user import GatewayUser

SOAK_STAY = 60.0
"""Seconds for which streams are held, on the average, with the shape `soak` and without --stay."""

SLOW_BUFFER = 4096
"""Bytes of a slow reader's receive buffer (SO_RCVBUF; Linux doubles it)."""

SLOW_READ = 1024
"""Bytes that a slow reader takes at a time."""


class Subscriber(GatewayUser):
    """Holds a stream open as a browser does, and accounts for each event of its channels."""

    weight = 1
    kind = "subscriber"
    receive_buffer = 0

    def on_start(self) -> None:
        super().on_start()
        options = self.options
        chance = random.Random(f"{options.seed} {self.scene.index} {self.book.subscribers}")
        each = min(options.channels, options.channels_each)
        numbers = chance.sample(range(options.channels), each)
        self._channels = {f"{options.channel_prefix}{number}": number for number in numbers}
        self._account = self.book.open_account(numbers)
        self._stay = options.stay or (SOAK_STAY if options.shape == "soak" else 0.0)
        self._chance = chance
        self._lost_at = 0.0
        self._began = 0.0
        self._open_ns = 0
        self.is_open = False
        targets, token = self.scene.seat()
        path = "/events?" + urlencode({"channels": ",".join(self._channels)})
        self.source = EventSource(targets, path, token, receive_buffer=self.receive_buffer)
        self.scene.streams.add(self.source)

    def on_stop(self) -> None:
        self.scene.streams.discard(self.source)
        self.source.close()
        self.book.leave(self._account, self.source.last_event_id)

    def stop(self, force: bool = False) -> bool:
        """A stream has no end for which --stop-timeout could wait."""
        return bool(super().stop(force=True))

    @task
    def listen(self) -> None:
        """Until the gateway says that nothing more will come."""
        while True:
            self._began = time.perf_counter()
            self.is_open = False
            failure = "ended before it was connected"
            try:
                self.source.open()
                failure = self._follow() or failure
            except (TurnedAway, OSError) as error:
                failure = str(error)
            except Ended as ended:
                self._end(str(ended))
            finally:
                self.source.close()
            if self.is_open:
                self._lost_at = time.perf_counter()
            elif not self.source.is_cut:
                self.book.tally.turned_away += 1
                self.tell("OPEN", time.perf_counter() - self._began, failure=failure)
            gevent.sleep(self.source.wait)

    def _end(self, why: str) -> None:
        self.book.tally.ended += 1
        if why.startswith("status"):
            self.tell("OPEN", time.perf_counter() - self._began, failure=why)
        raise StopUser

    def _follow(self) -> str:
        """One stream, to its end; the reason that it gave for it, if any."""
        reason, cutter = "", None
        if self._stay:
            seconds = self._stay * self._chance.uniform(0.5, 1.5)
            cutter = gevent.spawn_later(seconds, self.source.cut)
        try:
            while (came := self.receive()) is not None:
                for event in came:
                    reason = self._take(event) or reason
        finally:
            if cutter is not None:
                cutter.kill(block=False)
        return reason

    def receive(self) -> Sequence[ServerSentEvent] | None:
        return self.source.receive()

    def _take(self, event: ServerSentEvent) -> str:
        match event.event:
            case "connected":
                self._connected(place(event.last_event_id))
            case "dropped":
                self._account.drop(json.loads(event.data)["count"])
            case "gap":
                gap = json.loads(event.data)
                mine = self._channels.keys() & set(gap["channels"])
                restarted_ns = time.time_ns() if gap["reason"] == "restarted" else 0
                self._account.gap(frozenset(map(self._channels.__getitem__, mine)), restarted_ns)
            case "reconnect":
                return f"reconnect: {json.loads(event.data)['reason']}"
            case "closed":
                pass  # `receive` raises next
            case _:
                self._deliver(event)
        return ""

    def _connected(self, at: int) -> None:
        now = time.perf_counter()
        self._open_ns = time.time_ns()
        self.is_open = True
        self.source.live()
        self.tell("OPEN", now - self._began)
        if self._account.start:
            self.book.tally.resumed += 1
            self.tell("RESUME", now - self._lost_at)
        else:
            self.book.tally.opened += 1
        self._account.begin(at)

    def _deliver(self, event: ServerSentEvent) -> None:
        stamp = Stamp.read(event.data, self.book.run)
        if stamp is None:
            self.book.tally.foreign += 1
            return
        now_ns = time.time_ns()
        fate = self.book.receive(self._account, stamp, event.last_event_id, now_ns)
        failure = "" if fate is Fate.DELIVERED else fate.name.lower()
        what = "DELIVERY" if stamp.sent_ns > self._open_ns else "REPLAY"
        self.tell(what, (now_ns - stamp.sent_ns) / 1e9, len(event.data), failure)


class SlowReader(Subscriber):
    """Reads less than it is sent, from a small buffer, until the run is settled."""

    kind = "slow reader"
    receive_buffer = SLOW_BUFFER

    def receive(self) -> Sequence[ServerSentEvent] | None:
        if not self.is_open or self.book.settling:
            return self.source.receive()
        most = min(SLOW_READ, self.options.slow_bytes)
        gevent.sleep(most / self.options.slow_bytes)
        return self.source.receive(most)
