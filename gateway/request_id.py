"""By what one request is known, in the log, in its answer and to whoever passed it on.

It is named by the request in ``X-Request-Id``, as balancers do, or made here. What a stranger may
choose is short and of few characters, and anything else is as if it were not there.
"""

import re
from itertools import count

NAME = b"x-request-id"
HEADER = b"X-Request-Id"

MAX_LENGTH = 128
"""Characters: a UUID has 36, and the trace ids that balancers of clouds put there under 100."""

_LEGAL = re.compile(rb"[A-Za-z0-9._:/@+=~-]{1,%d}" % MAX_LENGTH)


def named_id(value: bytes | None) -> str:
    """The id that a request's header names; empty if that is none."""
    return value.decode("ascii") if value is not None and _LEGAL.fullmatch(value) else ""


class RequestIds:
    """Makes ids that no other worker makes."""

    def __init__(self, tag: str) -> None:
        """``tag`` tells the workers of a cluster apart."""
        self._tag = tag
        self._count = count(1)

    def make(self) -> str:
        return f"{self._tag}-{next(self._count):x}"

    def of(self, value: bytes | None) -> str:
        """The id of a request with that header."""
        return named_id(value) or self.make()
