"""What becomes of a frame when a client is too slow for it."""

from enum import StrEnum


class Policy(StrEnum):
    """How a full outbox is dealt with; each member preserves more than the one before it.

    DROP: the frame is not queued; a ``dropped`` notice stands where the hole is.
    LATEST: of each channel, or of each key, only the newest frame waits; the replaced ones count
        as dropped.
    DISCONNECT: the stream ends; the client comes back with its position and replays.
    CATCH_UP: the outbox is thrown away and the client replays from the last position written, at
        its own pace; only for channels with history.
    """

    DROP = "drop"
    LATEST = "latest"
    DISCONNECT = "disconnect"
    CATCH_UP = "catch-up"
