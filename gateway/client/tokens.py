"""The token that requests carry: a text, or what a function gives, asked again in time.

A token that is a JWT says when it expires; it is decoded and not verified, which is the gateway's
part. What cannot be read has no end that is known: it is asked for again after a 401 alone.
"""

import base64
import inspect
import json
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias, cast

import anyio

from gateway.client.errors import TokenUnavailable

RENEW_BEFORE = 30.0
"""Seconds before its end at which a token is asked for anew."""

RENEW_FRACTION = 3
"""Of what a token had left when it came: the part before its end, where that is shorter."""

SyncTokenSource: TypeAlias = str | Callable[[], str]
TokenSource: TypeAlias = str | Callable[[], str | Awaitable[str]]


def expires_at(token: str) -> float | None:
    """The ``exp`` of a JWT, in seconds since 1970; None for all else. Never raises."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


class Tokens:
    """Holds the newest token. ``now`` is the caller's clock, in seconds."""

    def __init__(self, source: TokenSource, now: Callable[[], float]) -> None:
        self._ask = source if callable(source) else None
        self._text = None if callable(source) else source
        self._now = now
        self._due = float("inf")
        self._asking: anyio.Lock | None = None

    @property
    def can_renew(self) -> bool:
        return self._ask is not None

    @property
    def due(self) -> float:
        """When a new one is wanted, by the caller's clock."""
        return self._due

    def forget(self) -> None:
        """The gateway has refused it: ask again, if there is somebody to ask."""
        if self._ask is not None:
            self._text = None

    def get_now(self) -> str:
        """The token, of a function that does not await. Raises TokenUnavailable."""
        if self._text is None or self._now() >= self._due:
            told = self._call()
            if inspect.isawaitable(told):
                raise TokenUnavailable("A function that awaits serves the async clients alone.")
            self._take(told)
        return cast("str", self._text)

    async def get(self) -> str:
        """The token; one question at a time. Raises TokenUnavailable."""
        if self._text is not None and self._now() < self._due:
            return self._text
        if self._asking is None:
            self._asking = anyio.Lock()
        async with self._asking:
            if self._text is None or self._now() >= self._due:
                told = self._call()
                if inspect.isawaitable(told):
                    try:
                        told = await told
                    except Exception as error:  # it is somebody else's function
                        raise _unavailable(error) from error
                self._take(told)
        return cast("str", self._text)

    def _call(self) -> str | Awaitable[str]:
        assert self._ask is not None
        try:
            return self._ask()
        except Exception as error:  # it is somebody else's function
            raise _unavailable(error) from error

    def _take(self, text: str) -> None:
        if not isinstance(text, str):
            raise TokenUnavailable(f"A token is a str, and not {type(text).__name__}.")
        self._text = text
        ends = expires_at(text)
        if ends is None:
            self._due = float("inf")
            return
        left = max(0.0, ends - time.time())
        self._due = self._now() + left - min(RENEW_BEFORE, left / RENEW_FRACTION)


def _unavailable(error: Exception) -> TokenUnavailable:
    return TokenUnavailable(f"There is no token: {str(error) or type(error).__name__}.")
