"""Who asks, and what that lets them do. Pure: how it is found out is elsewhere.

No pattern reaches ``global`` or a user's channel: every client has the one, a client with a user
its own of the other, and only an administrator publishes to either. Nor does one reach the channel
of reports: who may administer has it, and nobody publishes to it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.names import OPS_CHANNEL, Pattern, is_reserved

EVERY_UPSTREAM = "*"

KEY_PREFIX = "key:"
"""Begins the ``publisher`` of an API key; no token's begins so."""


class Relayed(Protocol):
    """What of a `gateway.config.Upstream` says who may use it."""

    @property
    def name(self) -> str: ...

    @property
    def allow(self) -> Collection[str]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """One token, one API key, or nobody in particular; shared by all of its streams."""

    user: str | None = None
    """Whose ``user:`` channel a stream gets; the subject of a token."""
    subscribe: tuple[Pattern, ...] = ()
    publish: tuple[Pattern, ...] = ()
    admin: bool = False
    relay: tuple[str, ...] = ()
    """Upstreams that a token names, or ``*``."""
    publisher: str = ""
    """What a publisher's rate is counted by; empty: by its address."""
    publish_rate: float | None = None
    """Events per second; None: the general setting, 0: no limit."""
    expires_ms: int | None = None
    """By the wall clock; None: never."""
    issued_ms: int = 0
    """What is revoked by user is what was issued before; 0: unknown, and before everything."""
    token_id: str | None = None
    """``jti``, by which it can be revoked."""
    is_open: bool = False
    """The node has no keys: everybody may do everything."""

    def may_subscribe(self, name: str) -> bool:
        if name == OPS_CHANNEL:
            return self.may_administer()
        return self.is_open or _is_granted(self.subscribe, name)

    def may_publish(self, name: str) -> bool:
        if name == OPS_CHANNEL:
            return False
        if self.is_open or (self.admin and is_reserved(name)):
            return True
        return _is_granted(self.publish, name)

    def may_relay(self, upstream: Relayed) -> bool:
        if self.may_administer() or {upstream.name, EVERY_UPSTREAM} & set(self.relay):
            return True
        allow = upstream.allow
        if self.publisher.startswith(KEY_PREFIX):
            return "keys" in allow or self.publisher in allow
        return self.user is not None and ("users" in allow or f"user:{self.user}" in allow)

    def may_administer(self) -> bool:
        return self.is_open or self.admin

    def named(self, user: str | None) -> "Identity":
        """Of an open node: as ``user``, whom nothing proves."""
        return self if user is None else replace(self, user=user)


ANYBODY = Identity(is_open=True)
"""Whoever asks a node without keys."""


def _is_granted(patterns: Iterable[Pattern], name: str) -> bool:
    return not is_reserved(name) and any(pattern.matches(name) for pattern in patterns)
