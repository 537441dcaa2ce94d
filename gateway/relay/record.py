"""What is remembered of a token stream beside its events: who may see it, and where it is made."""

import secrets

from msgspec import Struct

from gateway.config import Format as Format

ID_BYTES = 16
"""Of randomness: who knows an id still needs a grant, but nobody finds one by guessing."""

MAX_MODEL = 200
"""Characters of a model's name that are kept."""


class Record(Struct, frozen=True):
    """It never changes. ``raw`` is the channel of the upstream's events as they were; the same as
    ``channel`` where these are what viewers are told anyway."""

    id: str
    channel: str
    raw: str
    format: Format
    created_ms: int
    upstream: str | None = None
    model: str | None = None
    user: str | None = None
    """Who may view and stop it, beside those with a grant."""
    publisher: str = ""
    """`gateway.identity.Identity.publisher` of who opened it, who may do so as well."""
    idempotent: bool = False
    """The call may be made again by another worker, if nothing has come of it yet."""
    unwatched_seconds: float = 0.0
    """After how long without viewers it is stopped; 0: never."""


def new_id() -> str:
    return secrets.token_urlsafe(ID_BYTES)
