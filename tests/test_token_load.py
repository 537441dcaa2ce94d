"""Token streams while nodes die: a small one of what `loadtest/token-streams` does at full size."""

from collections.abc import Sequence
from pathlib import Path

from token_load import Load, trial

STREAMS, VIEWERS, RATE, SECONDS = 20, 3, 20.0, 5.0


async def test_no_viewer_is_left_without_all_the_text_or_a_reason(tmp_path: Path) -> None:
    """A node is killed, one drained, and Redis killed, while viewers cut, reload, stall, and come
    late."""

    def load_on(ports: Sequence[int]) -> Load:
        return Load(
            ports,
            streams=STREAMS,
            viewers=VIEWERS,
            rate=RATE,
            seconds=SECONDS,
            spread=1.0,
            patience=1.0,
        )

    outcome = await trial(tmp_path, load_on, step=0.7, most_seconds=60.0)
    assert outcome.defects == []
    assert len(outcome.happened) == 7
    counts = outcome.load.counts
    assert (counts.streams, counts.viewers) == (STREAMS, STREAMS * VIEWERS)
    assert min(counts.cut, counts.stalled, counts.reloaded, counts.late, counts.pushed) > 0
    assert counts.proxied > 0
    reasons = {reason for _, reason in outcome.load.ends()}
    assert {"end", "producer-lost"} <= reasons
