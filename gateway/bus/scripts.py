"""The Lua scripts of the Redis bus, by name; each has what they share in front."""

import hashlib
from pathlib import Path

_FOLDER = Path(__file__).parent / "lua"


def _read(*names: str) -> str:
    return "\n".join((_FOLDER / f"{name}.lua").read_text("utf-8") for name in ("common", *names))


SCRIPTS = {
    "attach": _read("attach"),
    "head": _read("head"),
    "evicted": _read("evicted"),
    "publish": _read("publish", "direct"),
    "leases": _read("leases"),
    "rates": _read("rates"),
    "revoke": _read("revoke"),
    "streams": _read("streams"),
}

DIGESTS = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in SCRIPTS.items()}
"""What EVALSHA names them by."""


def evalsha(name: str, prefix: str) -> tuple[str, str, int, str]:
    """The beginning of a call, behind which its arguments stand."""
    return ("EVALSHA", DIGESTS[name], 1, f"{prefix}clock")
