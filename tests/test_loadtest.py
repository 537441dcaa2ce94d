"""What measures must build: the load generator, without a warning."""

import subprocess
from pathlib import Path

FANOUT = Path(__file__).parent.parent / "loadtest" / "fanout.c"


def test_the_load_generator_compiles_without_a_warning() -> None:
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-pthread", str(FANOUT)]
    subprocess.run(command, check=True)
