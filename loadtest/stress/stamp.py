"""What a publisher writes into each event, so that whoever gets it knows what he should have got.

A *place* is a position as one integer: positions are compared for every delivery, and kept for
every event.
"""

from typing import NamedTuple

SEQ_BITS = 22
"""Events in one millisecond that are told apart: four million."""

FIELDS = 7


def place(position: str) -> int:
    """The place of ``<ms>-<seq>``, with ``.closed`` behind it or not; 0 for any other text."""
    ms, _, seq = position.removesuffix(".closed").partition("-")
    try:
        return int(ms) << SEQ_BITS | int(seq)
    except ValueError:
        return 0


class Stamp(NamedTuple):
    """The event is the ``number``-th of its publisher in its channel, from 1 on without a hole, and
    was written at ``sent_ns`` (since 1970, by the publisher's clock). ``previous`` is the place of
    the last one before it that was acknowledged, 0 if there is none."""

    run: str
    publisher: str
    channel: int
    number: int
    sent_ns: int
    previous: int

    def data(self, size: int) -> str:
        """The event's data: ``size`` bytes, or as many as the stamp takes."""
        text = " ".join(map(str, self)) + " "
        return text.ljust(size, "x")

    @classmethod
    def read(cls, data: str, run: str) -> "Stamp | None":
        """What `data` has written; None for an event of others or of another run."""
        fields = data.split(" ", FIELDS - 1)
        if len(fields) != FIELDS or fields[0] != run:
            return None
        _, publisher, channel, number, sent_ns, previous, _ = fields
        return cls(run, publisher, int(channel), int(number), int(sent_ns), int(previous))
