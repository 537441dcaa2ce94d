"""Who asked, where proxies stand in between: addresses out of headers that anybody can write. Pure.

1. A header is believed only as far as trusted proxies wrote it: it is read from its right end, and
   each entry was written by the one to its right, the last by the peer of the connection.
2. The first address that is no trusted proxy is whoever asked.
3. What cannot be read, or names nobody (``unknown``, ``_hidden``), ends the walk: the last address
   before it is the answer, which a client cannot choose.
4. A proxy writes Forwarded or X-Forwarded-For and may pass the other one on as the client sent it.
   So where there are both they must agree; if they do not, neither is believed.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

MAX_ENTRIES = 32
"""Entries of a header that are looked at; chains of proxies have two or three."""

MAX_ENTRY_BYTES = 512
"""Of one entry: an address, and what else a Forwarded element says."""

_ADDRESSES_REMEMBERED = 1024
"""Whether they are trusted: proxies are few, and one asks many times."""

_V4_MAPPED = "::ffff:"

# RFC 7239 section 4, whose values are tokens or quoted strings (RFC 9110 5.6.2 and 5.6.4).
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PAIR = rf"(?:({_TOKEN})=({_TOKEN}|{_QUOTED}))?"
_PAIRS = re.compile(rf"[ \t]*{_PAIR}[ \t]*(?:;|\Z)")
_ESCAPED = re.compile(r"\\(.)")

# An address with a port or without; of IPv6 ones only those in brackets may have one.
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")


def plain_address(text: str) -> str:
    """An address as one is always written here: IPv6 in its short form, and an IPv4 address that is
    mapped into IPv6 as itself. Raises ValueError."""
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def peer_address(text: str) -> str:
    """The plain address of a socket's peer, which most often is plain already."""
    return plain_address(text) if text.startswith(_V4_MAPPED) else text


def parse_networks(parts: tuple[str, ...]) -> tuple[Network, ...]:
    """Networks, an address being one of itself. Raises ValueError that quotes what is neither."""
    networks = []
    for part in parts:
        try:
            networks.append(ip_network(part))
        except ValueError:
            raise ValueError(repr(part)) from None
    return tuple(networks)


class TrustedProxies:
    """Those whose word on where a connection or a request comes from is taken."""

    def __init__(self, networks: tuple[Network, ...]) -> None:
        def trusts(address: str) -> bool:
            try:
                found = ip_address(address)
            except ValueError:  # a peer without an address, as on a socket in the file system
                return False
            return any(found in network for network in networks)

        self.trusts: Callable[[str], bool] = lru_cache(_ADDRESSES_REMEMBERED)(trusts)

    def origin(self, peer: str, header: Callable[[bytes], bytes | None]) -> str:
        """Whose request it is that came from ``peer``, a plain address. ``header`` has the lines of
        a field joined by commas."""
        if not self.trusts(peer):
            return peer
        forwarded, listed = header(b"forwarded"), header(b"x-forwarded-for")
        found = {
            self._walk(peer, _entries(value), read)
            for value, read in ((forwarded, _read_element), (listed, _read_node))
            if value is not None
        }
        return found.pop() if len(found) == 1 else peer

    def _walk(self, peer: str, entries: Iterator[str], read: Callable[[str], str | None]) -> str:
        believed = peer
        for entry in entries:
            address = read(entry)
            if address is None:
                break
            believed = address
            if not self.trusts(address):
                break
        return believed


def _entries(value: bytes) -> Iterator[str]:
    """The last entries of a list, the last one first.

    A comma divides also within quotes: no address has one, and what is quoted by mistake or malice
    must not swallow what a proxy has added to it.
    """
    rest = value
    for _ in range(MAX_ENTRIES):
        rest, comma, entry = rest.rpartition(b",")
        yield entry[: MAX_ENTRY_BYTES + 1].decode("latin-1").strip(" \t")
        if not comma:
            return


def _read_element(text: str) -> str | None:
    """The address that a Forwarded element is for."""
    if len(text) > MAX_ENTRY_BYTES:
        return None
    node, at = None, 0
    while at < len(text):
        pair = _PAIRS.match(text, at)
        if pair is None:
            return None
        at = pair.end()
        if pair[1] is not None and pair[1].lower() == "for":
            if node is not None:  # RFC 7239 section 4: each parameter once
                return None
            node = pair[2]
    if node is None:
        return None
    return _read_node(_ESCAPED.sub(r"\1", node[1:-1]) if node.startswith('"') else node)


def _read_node(text: str) -> str | None:
    """The address in ``text``, with a port or without."""
    if "%" in text:  # a zone, which means nothing on another machine and may be any text
        return None
    node = _NODE.fullmatch(text)
    try:
        return plain_address((node[1] or node[2]) if node is not None else text)
    except ValueError:
        return None
