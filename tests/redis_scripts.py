"""The bus's scripts as a test calls them: on a real Redis, with the time in the test's hands."""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import redis

from gateway.bus.scripts import DIGESTS, SCRIPTS

MINUTE = 60_000
EVENTS, BYTES, AGE = 1000, 1 << 20, 5 * MINUTE
"""The history rule that holds where a test gives no other."""

RULES: dict[str, Any] = {
    "channels": [["**", EVENTS, BYTES, AGE]],
    "dedupe_ms": AGE,
    "max_channels": 3,
    "max_event_bytes": 1000,
}


def packed(
    *channels: str,
    token: str = "",
    end: bool = False,
    data: str = "x",
    events: int = EVENTS,
    size: int = BYTES,
    age: int = AGE,
) -> list[object]:
    """An event as a call of the script has it."""
    names = channels or ("a",)
    told = "-" if len(names) == 1 else ",".join(names)
    rules: list[object] = []
    for name in names:
        rules += [name, events, size, age]
    return [token, f"{int(end)} {told} \ndata: {data}\n\n", str(int(end)), *rules]


@contextmanager
def configured(client: redis.Redis, **settings: Any) -> Iterator[None]:
    """A setting of the server, and then what it was before."""
    before: dict[str, Any] = {name: client.config_get(name)[name] for name in settings}
    for name, value in settings.items():
        client.config_set(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            client.config_set(name, value)


class Scripts:
    """One prefix of a Redis. ``now`` is what the scripts take for the time; 0 is Redis's own."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        self.now = time.time_ns() // 1_000_000
        self._numbers = itertools.count(1)
        for text in SCRIPTS.values():
            client.script_load(text)

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def run(self, script: str, *arguments: Any) -> Any:
        return self.client.evalsha(DIGESTS[script], 1, self.key("clock"), *arguments)

    def attach(
        self,
        run: str = "run1",
        *,
        complete: bool = False,
        floor: str = "0-0",
        seen: str = "",
        rules: dict[str, Any] = RULES,
    ) -> list[str]:
        """Clock, restored, lifted, broken, lossy."""
        told = self.run(
            "attach", run, int(complete), floor, seen, msgspec.json.encode(rules), self.now
        )
        return [each.decode() for each in told]

    def publish(
        self, *events: list[object], worker: str = "w", number: int | None = None
    ) -> list[str]:
        number = next(self._numbers) if number is None else number
        request = [1, self.now, worker, number, AGE, events or [packed()]]
        results: Sequence[bytes] = self.run("publish", msgspec.msgpack.encode(request))
        return [result.decode() for result in results]

    def head(self) -> str:
        told: bytes = self.run("head", "w", 1, self.now, MINUTE)
        return told.decode()

    def direct(self, document: object) -> str:
        told: bytes = self.run("publish", msgspec.json.encode(document))
        return told.decode()

    def entries(self, channel: str = "a") -> list[bytes]:
        listed: Any = self.client.xrange(self.key(f"s:{channel}"))
        return [fields[b"e"] for _, fields in listed]

    def chain(self, channel: str = "a") -> list[tuple[str, str]]:
        """Position and previous of each entry."""
        heads = [entry.decode().split(" ", 3) for entry in self.entries(channel)]
        return [(head[1], head[2]) for head in heads]

    def dump(self) -> dict[bytes, Any]:
        """All that is stored, but the clock."""
        keys: Any = self.client.keys(f"{self.prefix}*")
        return {key: self.client.dump(key) for key in keys if key != self.key("clock").encode()}
