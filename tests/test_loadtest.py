"""What measures must work: the load generator, without a warning, and the programs that use it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from process import environment

LOADTEST = Path(__file__).parent.parent / "loadtest"

PYTHON = ["ruff", "mypy"]


def test_the_load_generator_compiles_without_a_warning() -> None:
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-pthread"]
    subprocess.run([*command, str(LOADTEST / "fanout.c")], check=True)


@pytest.mark.parametrize("program", ["redis", "faults"])
def test_a_program_says_how_it_is_called(program: str) -> None:
    done = subprocess.run(
        [LOADTEST / program, "nonsense"], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: loadtest/{program} ")


def test_a_program_that_runs_elsewhere_goes_to_the_virtual_environment() -> None:
    pass
