"""What the drivers of clients have in common: ``python with_X.py <plain|mended> <visit>=<url>...``
has the client at each of the URLs, and a line of JSON for whatever it tells."""

import json
import sys
from collections.abc import Callable
from threading import Lock, Thread
from typing import Protocol


class Tell(Protocol):
    def __call__(self, told: str, **more: object) -> None: ...


Start = Callable[[str, Tell], None]
"""A client at one URL, until it gives up."""

_writing = Lock()


def teller(visit: str) -> Tell:
    def tell(told: str, **more: object) -> None:
        line = json.dumps({"visit": visit, "told": told, **more})
        with _writing:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    return tell


def drive(plain: Start, mended: Start) -> None:
    """All visits at once; each tells its end, whatever it came from."""
    start = {"plain": plain, "mended": mended}[sys.argv[1]]

    def visit(url: str, tell: Tell) -> None:
        try:
            start(url, tell)
        except Exception as failure:  # noqa: BLE001  # as the user's program would end
            tell("end", text=repr(failure))
        else:
            tell("end")

    for argument in sys.argv[2:]:
        key, _, url = argument.partition("=")
        Thread(target=visit, args=(url, teller(key)), daemon=False).start()
