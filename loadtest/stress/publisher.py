"""Publishers: each publishes at its rate, and keeps ledgers of what became of every event."""

import json
import random
import time

import gevent
from locust import task

from stress.attempt import Attempt, Outcome, meaning
from stress.http import Connection
from stress.stamp import Stamp
from stress.user import GatewayUser

PUBLISH_SECONDS = 20.0
"""For the answer to a publish: a node holds one for `publish_wait` + `redis_timeout`, 10 s by
default, while it has no link to Redis."""

PUBLISH_ATTEMPTS = 20
"""To publish one event, as long as it is not known what became of it."""

RETRY_PUBLISH_SECONDS = 0.5
"""Between two of them, but for the first two: most often a node has closed an idle connection."""

CATCH_UP_SECONDS = 1.0
"""A publisher that is late makes up for no more than that."""


class Publisher(GatewayUser):
    """Publishes at its rate, one event at a time; each with an ``id``, so that one of which it does
    not know whether it was taken can be published again."""

    kind = "publisher"

    def on_start(self) -> None:
        super().on_start()
        self._name = self.book.new_publisher()
        self._chance = random.Random(f"{self.options.seed} {self._name}")
        self._targets, _ = self.scene.seat()
        self._headers = [("Content-Type", "application/json")]
        if token := self.options.token:
            self._headers.append(("Authorization", f"Bearer {token}"))
        self._connection: Connection | None = None
        self._due = time.monotonic() + self._chance.random() / self.options.rate

    def on_stop(self) -> None:
        self._hang_up()

    @task
    def publish(self) -> None:
        gevent.sleep(max(0.0, self._due - time.monotonic()))
        self._due = max(self._due + 1 / self.options.rate, time.monotonic() - CATCH_UP_SECONDS)
        if not self.book.publishing:
            return
        channel = self._chance.randrange(self.options.channels)
        with self.book.publication():
            self._publish(channel)

    def _publish(self, channel: int) -> None:
        """One event, until it is known what became of it, within bounds."""
        options, book = self.options, self.book
        ledger = book.ledger(self._name, channel)
        number = ledger.number + 1
        stamp = Stamp(book.run, self._name, channel, number, time.time_ns(), ledger.place)
        event = json.dumps(
            {
                "channel": f"{options.channel_prefix}{channel}",
                "id": f"{book.run}/{self._name}/{channel}/{number}",
                "data": stamp.data(options.size),
            }
        ).encode()
        taken_at, may_be_taken = 0, False
        try:
            for attempts in range(PUBLISH_ATTEMPTS):
                gevent.sleep(RETRY_PUBLISH_SECONDS if attempts > 1 else 0)
                before, may_be_taken = may_be_taken, True  # while it is on its way
                attempt = self._attempt(event)
                may_be_taken = before or attempt.outcome is Outcome.UNKNOWN
                taken_at = attempt.place
                if taken_at or not may_be_taken:
                    break
            self._due += attempt.retry_after
        finally:
            if taken_at:
                ledger.acknowledge(taken_at)
                book.tally.published += 1
            elif may_be_taken:
                ledger.leave_unknown()
                book.tally.unknown += 1
            else:
                book.tally.refused += 1

    def _attempt(self, event: bytes) -> Attempt:
        began = time.perf_counter()
        try:
            connection = self._connection or self._connect()
        except OSError as error:
            attempt = Attempt(Outcome.REFUSED, why=str(error))
        else:
            try:
                status = connection.request("POST", "/publish", self._headers, event)
                body = connection.receive_all()
                attempt = meaning(status, body, connection.header("retry-after"))
            except OSError as error:
                attempt = Attempt(Outcome.UNKNOWN, why=str(error))
        if attempt.outcome is not Outcome.TAKEN:
            self._hang_up()
        self.tell("PUBLISH", time.perf_counter() - began, len(event), attempt.why)
        return attempt

    def _connect(self) -> Connection:
        self._connection = Connection(next(self._targets), timeout=PUBLISH_SECONDS)
        return self._connection

    def _hang_up(self) -> None:
        """The next attempt is at the next target."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
