"""How a stream stands, and why one ended."""

from enum import Enum, StrEnum, auto


class State(Enum):
    """What the pass may do with a client."""

    LIVE = auto()
    """Write straight to its socket."""
    BEHIND = auto()
    """Offer to its outbox."""
    REPLAYING = auto()
    """Nothing: it reads history at its own pace, and turns live where that meets the pass."""
    ENDING = auto()
    """Nothing: what waits is still written, then its farewell, then it is closed."""
    CLOSED = auto()


class Reason(StrEnum):
    """Why a stream ended: one word for log line, metric label and wire alike."""

    GONE = "gone"
    """The peer closed it, or its connection broke."""
    DRAINING = "draining"
    TOKEN_EXPIRED = "token-expired"
    REVOKED = "revoked"
    """Its token, or all tokens of its user so far."""
    CLOSED = "closed"
    """By request, for good."""
    POLLED = "polled"
    """A poll that has been answered."""
    REPLACED = "replaced"
    """For good, as its user has opened another one too many."""
    ENDED = "ended"
    """All of its channels have had their last event."""
    SLOW = "slow"
    """Its outbox was full and the policy is to disconnect."""
    BUS = "bus"
    """History could not be read, as the link to Redis was lost for too long."""
    STALLED = "stalled"
    """Behind for longer than ``max_behind_seconds``."""
    MEMORY = "memory"
    """The node's memory was used up, and what waited for it was of the largest."""
    UNEXPECTED_INPUT = "unexpected-input"
