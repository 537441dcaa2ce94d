"""Hostile bytes at every reader of bytes: by hypothesis, and by atheris from what they reach."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, Target
from hypothesis import given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).with_name("fuzz.py")

RUNS = 1000
"""Inputs for each target: a second of work, after a second to begin."""

SECONDS = 20
"""On a machine that is too slow for that many."""


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_what_is_known_to_be_difficult_is_taken(target: Target) -> None:
    for data in (b"", *target.seeds, *target.words):
        target.check(data)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@settings(deadline=None, max_examples=100)
@given(st.data())
def test_whatever_is_made_of_the_words_of_a_format_is_taken(
    target: Target, data: st.DataObject
) -> None:
    word = st.sampled_from([*target.words, *target.seeds])
    target.check(b"".join(data.draw(st.lists(word | st.binary(max_size=8), max_size=12))))


if find_spec("atheris"):  # it has wheels for some machines only; see pyproject.toml

    @pytest.mark.parametrize("name", TARGETS)
    def test_a_fuzzer_that_sees_what_its_input_reaches_breaks_nothing(
        name: str, tmp_path: Path
    ) -> None:
        bounds = ("--runs", str(RUNS), "--seconds", str(SECONDS), "--corpus", str(tmp_path))
        run = subprocess.run(
            [sys.executable, FUZZ, name, *bounds],
            capture_output=True,
            text=True,
            timeout=5 * SECONDS,
        )
        assert run.returncode == 0, run.stderr[-4000:]
        assert re.search(r"(?m)^Done [1-9][0-9]* runs", run.stderr)
