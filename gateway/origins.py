"""Web origins: which ones a setting names, and whether one of them is there. Pure.

An origin is scheme, host and port (RFC 6454); a browser sends it as ``https://app.example``, in
lower case and without the scheme's own port, and only so is it compared, byte for byte. Rules:

1. ``*.`` at the beginning of a host stands for one or more labels, never for none, and for nothing
   that is not a label: no dot, colon or slash of its own. ``https://*.app.example`` is therefore
   neither ``https://app.example`` nor ``https://app.example.evil``.
2. Scheme and port are those that are written: there is no pattern for either.
3. ``*`` is everybody, which is nobody in particular: `Origins.names` never says yes for its sake.
4. ``null`` is what a sandboxed page of anybody sends. It is never named.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address

from gateway.errors import BadRequest

EVERYBODY = "*"

MAX_ORIGINS = 100
"""Patterns are tried one after the other at each request of a page."""

_SHOWN = 100
_MAX_PORT = 65_535
_DEFAULT_PORTS = {"http": "80", "https": "443"}

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_LABELS = rf"{_LABEL}(?:\.{_LABEL})*"
_WRITTEN = re.compile(
    rf"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    rf"(?:(?P<star>\*\.)?(?P<name>{_LABELS})|\[(?P<ipv6>[0-9a-f:.]+)\])"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
_SPANNED = re.compile(_LABELS.encode())
"""What ``*.`` stands for, without its last dot. No label holds a dot, so it is matched in linear
time."""


@dataclass(frozen=True, slots=True)
class Origins:
    """Those that a setting names, made by `parse_origins`; false where it names none."""

    exact: frozenset[bytes] = frozenset()
    patterns: tuple[tuple[bytes, bytes], ...] = ()
    """What stands before and behind the labels: ``https://`` and ``.app.example``."""
    everybody: bool = False

    def __bool__(self) -> bool:
        return bool(self.exact or self.patterns or self.everybody)

    def names(self, origin: bytes) -> bool:
        """Whether ``origin``, as a browser sends it, is one of them by itself or by a pattern."""
        return origin in self.exact or any(
            origin.startswith(before)
            and origin.endswith(behind)
            and _SPANNED.fullmatch(origin, len(before), len(origin) - len(behind)) is not None
            for before, behind in self.patterns
        )


def parse_origins(written: Iterable[str]) -> Origins:
    """Raises BadRequest, whose sentence shows the first that is none, or that there are too many.

    Upper case and a port that goes without saying are taken, and compared as a browser sends them.
    """
    exact: set[bytes] = set()
    patterns: dict[tuple[bytes, bytes], None] = {}
    everybody = False
    for text in written:
        if text == EVERYBODY:
            everybody = True
            continue
        scheme, host, port = _parts(text)
        if host.startswith("*."):
            patterns[f"{scheme}://".encode(), f"{host[1:]}{port}".encode()] = None
        else:
            exact.add(f"{scheme}://{host}{port}".encode())
    if len(exact) + len(patterns) > MAX_ORIGINS:
        raise BadRequest(f"There are {len(exact) + len(patterns)}; the most is {MAX_ORIGINS}.")
    return Origins(frozenset(exact), tuple(patterns), everybody)


def is_of_host(origin: bytes, host: bytes) -> bool:
    """Whether ``origin`` has the host and port that the header Host names.

    The scheme is not compared: who ends TLS in front of the gateway need not say so.
    """
    scheme, found, authority = origin.partition(b"://")
    if not found:
        return False
    default = b":" + _DEFAULT_PORTS.get(scheme.decode("latin-1"), "").encode()
    return authority.removesuffix(default) == host.lower().removesuffix(default)


def shown(origin: bytes) -> str:
    """The beginning of an Origin header, for a sentence."""
    return origin[:_SHOWN].decode("latin-1")


def _parts(text: str) -> tuple[str, str, str]:
    """Scheme, host, and port with its colon or nothing, as a browser would send them."""
    found = _WRITTEN.fullmatch(text.lower()) if text.isascii() else None
    if found is None or int(found["port"] or 0) > _MAX_PORT:
        raise _no_origin(text)
    scheme, port = found["scheme"], found["port"]
    if found["ipv6"]:
        try:
            host = f"[{IPv6Address(found['ipv6'])}]"
        except AddressValueError:
            raise _no_origin(text) from None
    else:
        host = (found["star"] or "") + found["name"]
    port = str(int(port)) if port else _DEFAULT_PORTS.get(scheme)
    return scheme, host, "" if port == _DEFAULT_PORTS.get(scheme) else f":{port}"


def _no_origin(text: str) -> BadRequest:
    given = repr(text[:_SHOWN])
    if text.lower() == "null":
        return BadRequest(f"{given} is what a sandboxed page of anybody sends; it cannot be named.")
    return BadRequest(
        f"{given} is no origin: one is scheme, host and perhaps port, without any path, as"
        " https://app.example or https://*.app.example:8443, or * for all."
    )
