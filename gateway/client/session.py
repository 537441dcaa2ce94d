"""A subscription without its connections: what to ask for, what was told, what comes next. Pure.

1. Where the stream stands is what the last whole block said (``id:``), over all connections.
2. A channel that was added while the stream stood before the position H from which it is live is
   not part of the request for the next connection until the stream has reached H: it is added
   again with ``?since=`` H, or what of it has come, so that nothing before that comes and nothing
   after it is missed.
3. Commands (a channel is added or removed, the token renewed) go one at a time, in their order, to
   the stream that is open then.
4. It ends where an EventSource does, at 204, and at an id that ends in ``.closed``.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import httpx

from gateway.client.errors import ConnectionLost, StreamRefused
from gateway.client.http import authorization, base_url, detail, route
from gateway.client.items import Connected, Dropped, Ended, Event, Gap, Item, Reconnecting
from gateway.client.returning import AGAIN, Backoff, retry_after
from gateway.sse import Parser, ServerSentEvent

KEEPALIVE_SECONDS = 15.0
"""Of a gateway that does not say it in ``connected``: its default."""

LONGEST_KEEPALIVE = 3600.0
"""Seconds; no gateway is set to more."""

SILENT_KEEPALIVES = 3
"""Missing in a row, a link is dead: one may be late, and one lost by a slow balancer."""

LIVED_SECONDS = 5.0
"""A stream that was open for as long has lived: the next attempt is the first again."""

SHORTEST_DELAY = 0.5
LONGEST_DELAY = 30.0
"""Seconds between two connections, before what the gateway asks for."""

MAX_QUERY_BYTES = 4096
"""More channels than fit go into a POST: half of what a gateway or balancer takes as a URL."""

CLOSED = ".closed"

EVERYBODY = "global"
"""The channel that each stream has, named by one that begins with no other."""


@dataclass(slots=True)
class Added:
    """A channel that is not part of the request yet. ``since`` is where it goes on if it has to be
    added again, ``until`` where it is live: once the stream is there, it is one as the others."""

    name: str
    since: str | None
    until: str = ""
    is_joined: bool = False
    """To the stream that is open."""
    error: StreamRefused | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A request about the open stream; ``channel`` is empty for its token."""

    method: str
    url: httpx.URL
    client_id: str
    channel: str = ""
    added: Added | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """A request for the stream."""

    method: str
    url: httpx.URL
    headers: dict[bytes, bytes]
    content: bytes = b""


class Session:
    def __init__(
        self,
        url: httpx.URL | str,
        channels: Iterable[str],
        *,
        user: str | None,
        last_event_id: str,
        replay: int | None,
        annotate: bool,
        attempts: int | None,
        backoff: Backoff,
        can_renew: bool,
        view: str | None = None,
    ) -> None:
        """Raises ValueError for what cannot be asked for."""
        self._base = base_url(url)
        self._channels = dict.fromkeys([channels] if isinstance(channels, str) else channels)
        if not self._channels and user is None:
            raise ValueError("A subscription names a channel or a user.")
        if attempts is not None and attempts < 1:
            raise ValueError("There is one attempt at the least.")
        self._user = user
        self._replay = replay
        self._annotate = annotate
        self._view = view
        self._attempts = attempts
        self._backoff = backoff
        self._can_renew = can_renew
        self._added: dict[str, Added] = {}
        self._asked: list[str] = []
        self._leaving: dict[str, None] = {}
        self._keepalive = KEEPALIVE_SECONDS
        self._parser = Parser()
        self._opened_at: float | None = None
        self._retry: float | None = None
        self._reason = self._closed = ""
        self._has_renewed = False
        self.last_event_id = last_event_id
        self.client_id = ""
        """Of the open stream; empty while there is none."""
        self.token_is_due = False
        self.ended: Ended | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        return (*self._channels, *(name for name, added in self._added.items() if added.until))

    @property
    def silence(self) -> float:
        """Seconds after which a link is dead."""
        return self._keepalive * SILENT_KEEPALIVES

    # -- a connection

    def opening(self, token: str) -> Opening:
        """What to ask for: the stream, from where it stands."""
        headers = {b"Accept": b"text/event-stream", b"Cache-Control": b"no-store"}
        headers |= authorization(token)
        if self.last_event_id:
            headers[b"Last-Event-ID"] = self.last_event_id.encode()
        # A stream of a channel that is to be added alone begins with what everybody has.
        names = list(self._channels) or ([EVERYBODY] if self._user is None else [])
        self._asked = names
        query: list[tuple[str, str | int]] = [("channel", name) for name in names]
        members: dict[str, Any] = {"channels": names}
        asked = (("user", self._user), ("replay", self._replay), ("view", self._view))
        for member, given in asked:
            if given is not None:
                query.append((member, given))
                members[member] = given
        if self._annotate:
            query.append(("annotate", "true"))
            members["annotate"] = True
        url = route(self._base, "/events")
        if len(urlencode(query)) <= MAX_QUERY_BYTES:
            return Opening("GET", url.copy_with(params=query), headers)
        headers[b"Content-Type"] = b"application/json"
        return Opening("POST", url, headers, json.dumps(members).encode())

    def answered(self, response: httpx.Response, now: float) -> bool:
        """Whether the stream is open. If it is not and has not `ended`, `lost` says what next.

        Raises StreamRefused.
        """
        self._reason = ""
        self._parser = Parser()
        status = response.status_code
        if status == httpx.codes.OK:
            content_type = response.headers.get("Content-Type", "")
            if content_type.partition(";")[0].strip().lower() != "text/event-stream":
                told = content_type or "untyped"
                raise StreamRefused(f"{response.url} is {told}, not text/event-stream.")
            self._opened_at = now
            return True
        if status == httpx.codes.NO_CONTENT:
            self.ended = Ended("the gateway has nothing more for this stream")
            return False
        if status not in AGAIN and not self._may_renew(status):
            raise StreamRefused(detail(response), status=status)
        return False

    def _may_renew(self, status: int) -> bool:
        """Whether another token may mend it: after the first 401 since the last stream."""
        if status != httpx.codes.UNAUTHORIZED or not self._can_renew or self._has_renewed:
            return False
        self._has_renewed = True
        return True

    def receive(self, data: bytes) -> list[Item]:
        """What has come, in its order. Afterwards the stream may have `ended`, or want to be left
        (`is_left`). Raises ParseLimit."""
        items = [item for event in self._parser.receive_data(data) for item in self._item(event)]
        self._stand(self._parser.last_event_id or self.last_event_id)
        if self._parser.retry is not None:
            self._retry = self._parser.retry / 1000
        if self.last_event_id.endswith(CLOSED):
            self.ended = Ended(f"the gateway has closed this stream{self._closed}")
        return items

    @property
    def is_left(self) -> bool:
        """The gateway has asked the client to come back."""
        return bool(self._reason)

    def lost(self, reason: str, now: float, response: httpx.Response | None = None) -> Reconnecting:
        """The connection has ended, or there was none. ``response`` is one that refused it.

        Raises ConnectionLost after as many attempts as are allowed.
        """
        told = self._retry
        if self._opened_at is not None and now - self._opened_at >= LIVED_SECONDS:
            self._backoff.reset()
        self._opened_at, self.client_id = None, ""
        self._asked = []
        self.token_is_due = False  # the next connection is made with a new one
        self._leaving.clear()
        for added in self._added.values():
            added.is_joined = False
        reason = self._reason or reason
        if self._attempts is not None and self._backoff.attempt >= self._attempts:
            raise ConnectionLost(f"{self._attempts} attempts in a row have failed: {reason}")
        at_least = retry_after(response.headers) if response is not None else 0.0
        delay = self._backoff.next(told, at_least)
        return Reconnecting(self._backoff.attempt, delay, reason)

    def _item(self, event: ServerSentEvent) -> Iterable[Item]:
        match event.event:
            case "connected":
                told = _members(event.data)
                self.client_id = str(told.get("clientId", ""))
                self._has_renewed = False
                keepalive = told.get("keepalive")
                if isinstance(keepalive, int | float) and keepalive > 0:
                    self._keepalive = min(keepalive, LONGEST_KEEPALIVE * 1000) / 1000
                channels = _names(told)
                yield Connected(self.client_id, channels, event.last_event_id, event.data)
            case "gap":
                told = _members(event.data)
                yield Gap(_names(told), str(told.get("reason", "")), event.data)
            case "dropped":
                count = _members(event.data).get("count")
                yield Dropped(count if isinstance(count, int) else 1, event.data)
            case "reconnect":
                self._reason = f"the gateway says: {_members(event.data).get('reason', '')}"
            case "closed":
                self._closed = f": {_members(event.data).get('reason', '')}"
            case "keepalive":
                pass
            case _:
                yield self._event(event)

    def _event(self, event: ServerSentEvent) -> Event:
        stands = event.last_event_id or self.last_event_id
        channels = tuple(event.channel.split(",")) if event.channel else ()
        position = event.at or stands
        for name in channels:
            added = self._added.get(name)
            if added is not None and (added.is_joined or added.since is not None):
                added.since = position
        return Event(event.event, event.data, position, stands, channels)

    def _stand(self, position: str) -> None:
        """The stream has come to ``position``, and maybe to where added channels are live."""
        self.last_event_id = position
        for name, added in list(self._added.items()):
            if added.until and added.is_joined and not is_before(position, added.until):
                del self._added[name]
                self._channels[name] = None

    # -- the channels of the open stream

    def add(self, name: str, since: str | None) -> Added:
        """Want a channel that is not there; once it is, it has ``until``, else an ``error``."""
        return self._added.setdefault(name, Added(name, since))

    def remove(self, name: str) -> None:
        """Want a channel no more."""
        self._channels.pop(name, None)
        self._added.pop(name, None)
        if self.client_id or name in self._asked:
            self._leaving[name] = None

    def wants(self, added: Added) -> bool:
        """Whether it was not removed meanwhile."""
        return self._added.get(added.name) is added

    def is_leaving(self, name: str) -> bool:
        """Whether the open stream may still have a channel that was removed."""
        return name in self._leaving

    def next_command(self) -> Command | None:
        """What to ask for about the open stream."""
        if not self.client_id:
            return None
        prefix = f"/clients/{quote(self.client_id, safe='')}"
        if self.token_is_due:
            return Command("PUT", route(self._base, f"{prefix}/token"), self.client_id)
        for name in self._leaving:
            return Command("DELETE", self._of_channel(prefix, name), self.client_id, name)
        for name, added in self._added.items():
            if not added.is_joined:
                url = self._of_channel(prefix, name)
                if added.since is not None:
                    url = url.copy_with(params={"since": added.since})
                return Command("PUT", url, self.client_id, name, added)
        return None

    def _of_channel(self, prefix: str, name: str) -> httpx.URL:
        return route(self._base, f"{prefix}/channels/{quote(name, safe='')}")

    def done(self, command: Command, response: httpx.Response) -> bool:
        """``command`` was answered; whether that settles it: if not, it is to be tried again, later
        or with another stream.

        Raises StreamRefused where a channel that the subscription had cannot be had again.
        """
        status = response.status_code
        if status in AGAIN or self._may_renew(status):
            return False
        if command.added is not None:
            return self._added_told(command, command.added, response)
        if not command.channel:
            self.token_is_due = False  # refused, it ends the stream in time, which then comes back
        elif command.client_id == self.client_id:
            self._leaving.pop(command.channel, None)
        return True

    def _added_told(self, command: Command, added: Added, response: httpx.Response) -> bool:
        if not self.wants(added):
            return True  # removed meanwhile, and `remove` sees to the rest
        if response.status_code == httpx.codes.OK:
            added.until = str(_members(response.text).get("id", ""))
            if not added.until:
                return False  # of somebody in between
            if added.since is None:
                added.since = added.until
            added.is_joined = command.client_id == self.client_id
            self._stand(self.last_event_id)
            return True
        if response.status_code == httpx.codes.NOT_FOUND:
            return False  # that stream is gone
        del self._added[added.name]
        error = StreamRefused(detail(response), status=response.status_code)
        if added.until:
            raise error
        added.error = error
        return True


def is_before(one: str, other: str) -> bool:
    """Whether a position is earlier than another; one that cannot be read is."""
    return _pair(one) < _pair(other)


def _pair(position: str) -> tuple[int, int]:
    ms, _, seq = position.removesuffix(CLOSED).partition("-")
    if ms.isascii() and ms.isdigit() and seq.isascii() and seq.isdigit():
        return int(ms[:20]), int(seq[:20])
    return -1, -1


def _members(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _names(told: dict[str, Any]) -> tuple[str, ...]:
    channels = told.get("channels")
    return tuple(map(str, channels)) if isinstance(channels, list) else ()
