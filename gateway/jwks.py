"""A key set at a URL: fetched by a task, kept while it cannot be fetched, looked for anew when a
token names a key that it lacks.

1. A fetch is bounded in time and size, follows no redirect, and one is under way at a time.
2. Strangers can make it happen no more often than every COOLDOWN: they may invent key ids.
"""

import logging
import random
import ssl
from collections.abc import Callable, Collection, Sequence
from time import monotonic

import httpx
import trio

from gateway.errors import ConfigError, Unavailable
from gateway.keys import ALGORITHMS, MAX_KEY_FILE_BYTES, Key, parse_key_set

REFRESH_SECONDS = 300.0
"""Between two fetches that nothing has asked for: a revoked key is out after as long."""

COOLDOWN = 10.0
"""Seconds between two fetches that tokens ask for."""

BACK_OFF_FIRST, BACK_OFF_MOST = 1.0, 60.0
"""Seconds until the next try after a failure, doubled from try to try, jittered by half."""

TIMEOUT = 10.0
"""Seconds for a fetch, or one silence longer."""

PATIENCE = 3.0
"""Seconds that a request waits for one: a stream would rather come back."""

_log = logging.getLogger(__name__)


class RemoteKeys:
    """The keys at ``url``. ``changed`` is called when they are others than before."""

    def __init__(
        self,
        url: str,
        changed: Callable[[], None],
        *,
        allowed: Collection[str] = ALGORITHMS,
    ) -> None:
        """Raises ConfigError for a ``url`` that is none."""
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"jwks_url {url!r} is no URL: {error}") from None
        self._url = url
        self._allowed = allowed or ALGORITHMS
        self._changed = changed
        self._text: bytes | None = None
        self._fetched_at = -COOLDOWN
        self._wanted = trio.Event()
        self._tried = trio.Event()
        """Set when the next fetch is over, whether it worked or not."""
        self.keys: Sequence[Key] = ()
        self.failures = 0

    async def refreshed(self) -> bool:
        """Look for new keys, unless that was done a moment ago; whether they are of now.

        Raises Unavailable where there never were any.
        """
        before = self._fetched_at
        if trio.current_time() - before < COOLDOWN:
            return True
        self._wanted.set()
        with trio.move_on_after(PATIENCE):
            await self._tried.wait()
        if self._text is None:
            raise Unavailable(
                "The keys that verify tokens are not known yet.", reason="keys", outcome="refused"
            )
        return self._fetched_at > before

    async def run(self) -> None:
        """Fetch now and then, until cancelled."""
        back_off = BACK_OFF_FIRST
        while True:
            worked = await self._fetch()
            self._tried.set()
            self._tried = trio.Event()
            if worked:
                back_off = BACK_OFF_FIRST
                self._wanted = trio.Event()
                with trio.move_on_after(REFRESH_SECONDS):
                    await self._wanted.wait()
            else:
                await trio.sleep(back_off * random.uniform(0.5, 1.5))
                back_off = min(2 * back_off, BACK_OFF_MOST)

    async def _fetch(self) -> bool:
        try:
            text = await trio.to_thread.run_sync(_get, self._url, abandon_on_cancel=True)
            keys = parse_key_set(text, self._allowed)
            if not keys:
                raise ConfigError("It holds no key that can be used.")
        except (httpx.HTTPError, OSError, UnicodeError, ConfigError) as error:
            self.failures += 1
            _log.warning(
                "the keys at %(url)s could not be fetched: %(why)s",
                {
                    "url": self._url,
                    "why": str(error) or type(error).__name__,
                    "keys_kept": len(self.keys),
                },
            )
            return False
        self._fetched_at = trio.current_time()
        if text != self._text:
            self._text, self.keys = text, keys
            self._changed()
            _log.info("%(keys)d keys from %(url)s", {"url": self._url, "keys": len(keys)})
        return True


def _get(url: str) -> bytes:
    """What is at ``url``; in a thread, since httpx's streams do not like to be cancelled.

    Raises httpx.HTTPError or OSError, ConfigError for what is too large or too slow, and
    UnicodeError for a name that no resolver takes.
    """
    until = monotonic() + TIMEOUT
    with (
        httpx.Client(verify=ssl.create_default_context(), timeout=TIMEOUT / 2) as client,
        client.stream("GET", url, headers={"Accept": "application/json"}) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise ConfigError(f"It is answered with {response.status_code}.")
        text = b""
        for piece in response.iter_bytes():
            text += piece
            if len(text) > MAX_KEY_FILE_BYTES:
                raise ConfigError(f"It has more than {MAX_KEY_FILE_BYTES} bytes.")
            if monotonic() > until:
                raise ConfigError(f"It has not come whole in {TIMEOUT:g} seconds.")
        return text
