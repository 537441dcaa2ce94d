"""Coverage-guided fuzzing of the targets: python tests/fuzz.py [TARGET] [--seconds N] [--runs N].

Without a target all of them, one after the other. What breaks one is written to ``--into``, with a
traceback, and the program ends with a code other than 0. ``--corpus DIR`` keeps what was found to
reach new code, a directory for each target, and begins with it the next time.

Each target is fuzzed in a process of its own, this program again with ``--`` and what libFuzzer is
to be told: libFuzzer ends the process that it runs in.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

MOST_BYTES = 4096
"""Of one input."""

SLOW_SECONDS = 10
"""An input that takes longer counts as broken."""

MEMORY_MIB = 1024
"""More counts as broken too."""


def main() -> None:
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="for a target, at most")
    parser.add_argument("--runs", type=int, default=-1, help="inputs for a target, at most")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of inputs")
    parser.add_argument("--corpus", type=Path, help="directory of what is kept")
    parser.add_argument("--into", type=Path, default=Path(), help="directory for what breaks")
    arguments = parser.parse_args()
    names = [arguments.target] if arguments.target else list(TARGETS)
    broken = []
    for name in names:
        with TemporaryDirectory() as directory:
            seeds, words = Path(directory, "seeds"), Path(directory, "words")
            seeds.mkdir()
            for number, seed in enumerate(TARGETS[name].seeds):
                (seeds / str(number)).write_bytes(seed)
            words.write_text("".join(f"{_quoted(word)}\n" for word in TARGETS[name].words))
            corpus = arguments.corpus / name if arguments.corpus else Path(directory, "corpus")
            corpus.mkdir(parents=True, exist_ok=True)
            flags = (
                f"-dict={words}",
                f"-max_len={MOST_BYTES}",
                f"-timeout={SLOW_SECONDS}",
                f"-rss_limit_mb={MEMORY_MIB}",
                f"-artifact_prefix={arguments.into / f'{name}-'}",
                f"-seed={arguments.seed}",
                f"-runs={arguments.runs}",
                f"-max_total_time={arguments.seconds}",
                "-print_final_stats=1",
            )
            command = [sys.executable, __file__, name, "--", *flags, str(corpus), str(seeds)]
            if subprocess.run(command).returncode:
                broken.append(name)
    if broken:
        sys.exit(f"broken: {', '.join(broken)}")


def _quoted(word: bytes) -> str:
    """As an entry of libFuzzer's dictionaries."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'


def fuzz(name: str, flags: list[str]) -> None:
    """Never returns."""
    import atheris

    with atheris.instrument_imports(include=["gateway"]):
        from fuzz_targets import TARGETS
    atheris.Setup([name, *flags], TARGETS[name].check)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[2:3] == ["--"]:
        fuzz(sys.argv[1], sys.argv[3:])
    main()
