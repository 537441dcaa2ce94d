"""What the users of one process share."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gevent.event import Event
from locust.env import Environment

from stress.book import Book
from stress.event_source import EventSource
from stress.http import Target
from stress.settlement import Settlement

DEFAULT_HOST = "http://127.0.0.1:8080"


class Scene:
    """What the users of this process share: the book of the run, targets and tokens."""

    def __init__(self, environment: Environment, settlement: Settlement) -> None:
        self.settlement = settlement
        self.streams: set[EventSource] = set()
        """Of all subscribers that are there, open or not."""
        self._environment = environment
        self._targets: list[Target] = []
        self._tokens: list[str] = []
        self._users = 0

    def begin(self, **_: object) -> None:
        """A run starts, and options may have been changed in the web UI. Raises ValueError and
        OSError where they cannot be used."""
        options: Any = self._environment.parsed_options
        hosts = (self._environment.host or DEFAULT_HOST).split(",")
        self._targets = [Target.parse(host.strip()) for host in hosts]
        self._tokens = [options.token]
        if options.tokens:
            self._tokens = Path(options.tokens).read_text("utf-8").split()
        self._users = 0

    @property
    def book(self) -> Book:
        assert self.settlement.book is not None, "there are no users but in a run"
        return self.settlement.book

    @property
    def index(self) -> int:
        """Of this process among the workers."""
        runner: Any = self._environment.runner
        return int(runner.worker_index)

    def seat(self) -> tuple[Iterator[Target], str]:
        """For one more user: the targets, again and again, and a token. Users take turns in both,
        over all workers."""
        options: Any = self._environment.parsed_options
        turn = self._users * max(1, options.expect_workers) + self.index
        self._users += 1
        first = turn % len(self._targets)
        targets = itertools.cycle(self._targets[first:] + self._targets[:first])
        return targets, self._tokens[turn % len(self._tokens)]

    def cut(self, **_: object) -> None:
        """All subscribers lose their streams."""
        for stream in self.streams:
            stream.cut()


_scene: Scene | None = None
_is_set = Event()


def set_scene(scene: Scene) -> None:
    """Once for a process."""
    global _scene
    _scene = scene
    _is_set.set()


def the_scene() -> Scene:
    """Once it is set: users of a worker that joins a run may be there before it."""
    _is_set.wait()
    assert _scene is not None
    return _scene
