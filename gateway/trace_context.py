"""Where in a trace something happens: the headers of W3C Trace Context, levels 1 and 2. Pure.

What is carried with an event is one text: ``traceparent``, and behind a semicolon ``tracestate``
where there is one. What is invalid is as if it were not there (section 3.2.2 of the standard), and
so is a ``tracestate`` that is too long, the ``traceparent`` beside it not.
"""

import re
from typing import NamedTuple

SAMPLED = 0x01

MAX_STATE = 512
"""Characters of ``tracestate``: what the standard has everybody pass on (section 3.3.1.5)."""

_PARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_STATE = re.compile(r"[\x20-\x7e]*")


class TraceContext(NamedTuple):
    trace_id: int
    span_id: int
    flags: int
    state: str
    """``tracestate`` as it came; empty if there is none."""

    def __str__(self) -> str:
        """What is carried."""
        parent = f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"
        return f"{parent};{self.state}" if self.state else parent


def parse(parent: str, state: str = "") -> TraceContext | None:
    """The context that the two headers name."""
    match = _PARENT.fullmatch(parent)
    if match is None or (match[1] == "00" and match[5]):
        return None  # version 00 has nothing behind the flags; a later one may
    if len(state) > MAX_STATE or not _STATE.fullmatch(state):
        state = ""
    return TraceContext(int(match[2], 16), int(match[3], 16), int(match[4], 16), state.strip())


def read(carried: str) -> TraceContext | None:
    """The context of what is carried."""
    parent, _, state = carried.partition(";")
    return parse(parent, state)
