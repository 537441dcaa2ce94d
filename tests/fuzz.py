"""Coverage-guided fuzzing of the targets: python tests/fuzz.py [TARGET] [--seconds N] [--runs N].

Without a target all of them, one after the other. What breaks one is written into ``--corpus``,
beside a traceback on stderr, and the program ends with a code other than 0. There is also, in a
directory for each target, what was found to reach new code: the next time begins with it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway"]):
    from fuzz_targets import TARGETS

CORPUS = Path(__file__).parent.parent / "build" / "fuzz"

MOST_BYTES = 4096
"""Of one input."""

SLOW_SECONDS = 20
"""An input that takes longer counts as broken."""

MEMORY_MIB = 1024
"""More counts as broken too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="for a target, at most")
    parser.add_argument("--runs", type=int, default=-1, help="inputs for a target, at most")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of inputs")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    arguments = parser.parse_args()
    if arguments.target is not None:
        fuzz(arguments)
    again = [sys.executable, __file__]
    broken = [name for name in TARGETS if subprocess.run([*again, name, *sys.argv[1:]]).returncode]
    if broken:
        sys.exit(f"broken: {', '.join(broken)}")


def fuzz(arguments: argparse.Namespace) -> None:
    """Never returns: libFuzzer ends the process."""
    name = arguments.target
    corpus = arguments.corpus / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = arguments.corpus / f"{name}.words"
    words.write_text("".join(f"{_quoted(word)}\n" for word in TARGETS[name].words), "ascii")
    flags = {
        "dict": words,
        "max_len": MOST_BYTES,
        "timeout": SLOW_SECONDS,
        "rss_limit_mb": MEMORY_MIB,
        "artifact_prefix": arguments.corpus / f"{name}-",
        "seed": arguments.seed,
        "runs": arguments.runs,
        "max_total_time": arguments.seconds,
    }
    told = [f"-{flag}={value}" for flag, value in flags.items()]
    atheris.Setup([name, *told, str(corpus)], TARGETS[name].check)
    atheris.Fuzz()


def _quoted(word: bytes) -> str:
    """As an entry of libFuzzer's dictionaries."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'


if __name__ == "__main__":
    main()
