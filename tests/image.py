"""What deploy/Dockerfile makes of a container, and the same on this machine."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from process import GATEWAY

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"

LOCAL = {
    "gateway": GATEWAY,
    "python": sys.executable,
    "/opt/gateway/healthcheck.py": str(ROOT / "deploy" / "healthcheck.py"),
}
"""Where that is here which stands there under other names."""


def instructions() -> list[tuple[str, str]]:
    """Each, and all behind it on one line."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text("utf-8")).replace("\\\n", " ")
    return [(line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line]


def _last(name: str) -> str:
    return [rest for instruction, rest in instructions() if instruction == name][-1]


def _words(name: str) -> list[str]:
    """Of an instruction in its exec form: no shell stands before the command, and gets its
    signals."""
    words = json.loads(_last(name).partition("[")[1] + _last(name).partition("[")[2])
    assert all(isinstance(word, str) for word in words)
    return list(words)


ENVIRONMENT = dict(pair.split("=", 1) for pair in shlex.split(_last("ENV")))
ENTRYPOINT = _words("ENTRYPOINT")
COMMAND = _words("CMD")
HEALTHCHECK = _words("HEALTHCHECK")
USER = _last("USER")


def variables(**other: str) -> dict[str, str]:
    """Those of a container that has ``other`` ones besides or instead; PATH is this machine's."""
    return {name: text for name, text in ENVIRONMENT.items() if name != "PATH"} | other


def here(words: Sequence[str], paths: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """A command of a container, for this machine, where ``paths`` are what is mounted there."""
    found = []
    for word in words:
        local = LOCAL.get(word, word)
        for there, path in (paths or {}).items():
            local = local.replace(there, path)
        found.append(local)
    return tuple(found)
