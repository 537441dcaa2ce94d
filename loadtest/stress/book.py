"""All that one process knows of a run: its subscribers' accounts and its publishers' ledgers.

The end has two steps, in all processes one after the other: publishers stop and tell what was
published (`stop_publishing`); then subscribers have until they have all of it, or until nothing
more comes, and tell what is missing (`settle`). Both are bounded by the patience that is given.
"""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from stress.account import Account, Fate, Final
from stress.ledger import Ledger, Packed
from stress.stamp import Stamp, place
from stress.tally import Tally

QUIET_SECONDS = 2.0
"""Without an event, until a subscriber who was told that the rest is missing is believed."""

TICK = 0.05
"""Seconds between two looks at whether the end has come."""

MAX_LEFT = 20_000
"""Subscribers who have left and are remembered, about 1 KiB each: of those before them only what
stands before the last event of each publisher is judged, and they are counted as `unjudged`."""

MAX_HOLES = 100_000
"""That one process tells of, about 50 bytes each; the rest is counted."""


class Book:
    def __init__(self, run: str, index: int) -> None:
        """``index`` is this process's number in the run ``run``."""
        self.run = run
        self.tally = Tally()
        self.publishing = True
        """Publishers begin with no further event once this is False."""
        self.settling = False
        """Slow readers hurry once this is True."""
        self.accounts: set[Account] = set()
        self.subscribers = 0
        """How many there have been so far."""
        self.unjudged = 0
        self._index = index
        self._publishers = 0
        self._left: deque[Account] = deque()
        self._ledgers: dict[tuple[str, int], Ledger] = {}
        self._busy = 0
        self._last_event = 0.0

    # -- users

    def open_account(self, channels: Iterable[int]) -> Account:
        account = Account(f"{self._index}.{self.subscribers}", frozenset(channels), self.tally)
        self.subscribers += 1
        self.accounts.add(account)
        return account

    def leave(self, account: Account, position: str) -> None:
        """The subscriber goes for good, where it has this id."""
        self.accounts.discard(account)
        if not account.start:
            return
        account.until = max(place(position), account.place, account.start)
        self._left.append(account)
        if len(self._left) > MAX_LEFT:
            self._left.popleft()
            self.unjudged += 1

    def receive(self, account: Account, stamp: Stamp, position: str, now_ns: int) -> Fate:
        self._last_event = time.monotonic()
        if now_ns < stamp.sent_ns:
            self.tally.early += 1
        return account.receive(stamp, place(position))

    def new_publisher(self) -> str:
        """A name that no other one of the run has."""
        self._publishers += 1
        return f"{self._index}.{self._publishers - 1}"

    def ledger(self, publisher: str, channel: int) -> Ledger:
        if (ledger := self._ledgers.get((publisher, channel))) is None:
            ledger = self._ledgers[publisher, channel] = Ledger(publisher, channel)
        return ledger

    @contextmanager
    def publication(self) -> Iterator[None]:
        """An event is on its way, until it is known what became of it."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    # -- the end

    def stop_publishing(self, patience: float) -> list[Packed]:
        """The ledgers, once no event is on its way any more."""
        self.publishing = False
        until = time.monotonic() + patience
        while self._busy and time.monotonic() < until:
            time.sleep(TICK)
        return [ledger.pack() for ledger in self._ledgers.values()]

    def settle(self, finals: Iterable[Final], patience: float) -> dict[str, object]:
        """What is missing, and how many events were announced as dropped besides, for each
        subscriber of whom there is such a thing to say; and the counts."""
        by_channel: dict[int, list[Final]] = defaultdict(list)
        for final in finals:
            by_channel[final.channel].append(final)
        self.settling = True
        self._wait_for(by_channel, patience)
        told: list[object] = []
        room = MAX_HOLES
        for account in (*self._left, *self.accounts):
            account.settle(by_channel)
            if not account.holes:
                continue
            if len(account.holes) > room:
                self.unjudged += 1
                continue
            room -= len(account.holes)
            told.append([account.name, account.spare, [hole.pack() for hole in account.holes]])
        return {"tally": self.tally.counts(), "accounts": told, "unjudged": self.unjudged}

    def _wait_for(self, finals: dict[int, list[Final]], patience: float) -> None:
        began = time.monotonic()
        waiting = list(self.accounts)
        while time.monotonic() - began < patience:
            # One that lacks something is enough to wait; who has all will not lack anything again.
            while waiting and not (waiting[-1] in self.accounts and waiting[-1].lacks(finals)):
                waiting.pop()
            quiet = time.monotonic() - max(self._last_event, began)
            if not waiting or (
                quiet > QUIET_SECONDS and all(account.is_told(finals) for account in waiting)
            ):
                break
            time.sleep(TICK)
