"""What has become of an attempt to publish, by its answer. Pure."""

import json
from enum import Enum, auto
from typing import NamedTuple

from stress.http import seconds
from stress.stamp import place


class Outcome(Enum):
    """Of one attempt to publish."""

    TAKEN = auto()
    REFUSED = auto()
    """It was not taken, and never will be."""
    UNKNOWN = auto()


class Attempt(NamedTuple):
    outcome: Outcome
    place: int = 0
    why: str = ""
    retry_after: float = 0.0


def meaning(status: int, body: bytes, retry_after: str | None) -> Attempt:
    """Of an answer, and its Retry-After: what is below 500 was refused, and so is what the gateway
    says that it has refused; what a balancer says in its place may have been taken."""
    try:
        told = json.loads(body)
    except ValueError:
        told = {}
    if not isinstance(told, dict):
        told = {}
    if status == 202 and (at := place(str(told.get("id")))):
        return Attempt(Outcome.TAKEN, at)
    why = f"status {status} {told.get('detail', '')}".strip()
    if status == 202 or (status >= 500 and told.get("outcome") != "refused"):
        return Attempt(Outcome.UNKNOWN, why=why)
    return Attempt(Outcome.REFUSED, why=why, retry_after=seconds(retry_after))
