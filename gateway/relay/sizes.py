"""How large events are: as they are sent, and as a channel's history counts them."""

from gateway.event import FRAME_OVERHEAD

LINE_OVERHEAD = len("data: \n")

MOST_GROWTH = LINE_OVERHEAD + 4
"""Bytes that a character may take as it is sent."""

HEAD_BYTES = 128
"""Of an event's id, type and framing, as history counts it: more than most have."""

RESERVE_BYTES, RESERVE_EVENTS = 8192, 2
"""Of a token stream's history, for its first event and its last."""


def data_bytes(data: str) -> int:
    """Bytes of an event's data as it is sent."""
    size = len(data) if data.isascii() else len(data.encode())
    return size + (data.count("\n") + data.count("\r") + 1) * LINE_OVERHEAD


def kept_bytes(data: str) -> int:
    """Bytes that an event with that data takes of a history, by the most."""
    return data_bytes(data) + FRAME_OVERHEAD + HEAD_BYTES
