"""The header of the PROXY protocol, version 1 or 2, read from the beginning of a connection. Pure.

It says for whom a proxy has connected. It is never guessed whether there is one: where it is
expected, everything else is an error. What is here is the reading; who may be believed, and for how
long the header may take, is decided by who calls.

The document is https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt; sections below are its.
"""

import re
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from gateway.addresses import plain_address

MAX_V1_BYTES = 107
"""The longest line that version 1 allows, with its line end (section 2.1)."""

MAX_V2_BYTES = 4096
"""Of a header of version 2. Addresses take 52; the rest is for extensions, of which those that
clouds and TLS proxies send take some hundreds."""

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_BYTES = 16  # of version 2: signature, command, family and length

_V1_BEGINNING = b"PROXY "

# Section 2.1: single spaces, ports without leading zeros, nothing optional.
_V1_LINE = re.compile(
    rb"PROXY (?:(TCP4) ([0-9.]{7,15}) ([0-9.]{7,15})"
    rb"|(TCP6) ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39}))"
    rb" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n"
)
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_MAX_PORT = 65_535


class _Command(IntEnum):
    LOCAL = 0
    """The proxy speaks for itself, as in a health check."""
    PROXY = 1


class _Family(IntEnum):
    """The upper half of the byte of family and protocol."""

    UNSPECIFIED = 0
    INET = 1
    INET6 = 2
    UNIX = 3


_TRANSPORTS = frozenset({0, 1, 2})
"""The lower half: unspecified, a stream, datagrams."""
_STREAM = 1

_ADDRESS_BYTES = {_Family.UNSPECIFIED: 0, _Family.INET: 12, _Family.INET6: 36, _Family.UNIX: 216}


class ProxyHeaderError(Exception):
    """What came is no header of the PROXY protocol, or too long a one."""


class HeaderReader:
    """Reads one header, however it arrives, and not a byte more than that.

    ``finished`` when it is complete; ``source`` is then for whom the connection was made, a plain
    address, or None where it stands for itself or the proxy does not know.
    """

    def __init__(self) -> None:
        self.finished = False
        self.source: str | None = None
        self._header = b""

    def receive_data(self, data: bytes) -> int:
        """Take what belongs to the header from the beginning of ``data``: how many bytes that is.

        All of them as long as the header is not finished. Raises ProxyHeaderError.
        """
        before = len(self._header)
        self._header += data
        end = self._end()
        if end is not None:
            self._header = self._header[:end]
            self.source = self._judge()
            self.finished = True
        return len(self._header) - before

    def _end(self) -> int | None:
        """How long the header is; None where that takes more of it."""
        header = self._header
        if header[: len(_V1_BEGINNING)] == _V1_BEGINNING[: len(header)]:
            end = header.find(b"\n", 0, MAX_V1_BYTES) + 1
            if not end and len(header) >= MAX_V1_BYTES:
                raise ProxyHeaderError
            return end or None
        if header[: len(SIGNATURE)] != SIGNATURE[: len(header)]:
            raise ProxyHeaderError
        if len(header) < _FIXED_BYTES:
            return None
        length = _FIXED_BYTES + int.from_bytes(header[14:16], "big")
        if length > MAX_V2_BYTES:
            raise ProxyHeaderError
        return length if len(header) >= length else None

    def _judge(self) -> str | None:
        try:
            if self._header.startswith(SIGNATURE):
                return _source_of_v2(self._header)
            return _source_of_v1(self._header)
        except ValueError:
            raise ProxyHeaderError from None


def _source_of_v1(line: bytes) -> str | None:
    if _V1_UNKNOWN.fullmatch(line):  # whatever else it says is to be ignored
        return None
    found = _V1_LINE.fullmatch(line)
    if found is None:
        raise ValueError
    kind = IPv4Address if found[1] else IPv6Address
    source, _ = (kind(part.decode()) for part in (found[2] or found[5], found[3] or found[6]))
    if max(int(found[7]), int(found[8])) > _MAX_PORT:
        raise ValueError
    return plain_address(str(source))


def _source_of_v2(header: bytes) -> str | None:
    version, command = divmod(header[12], 16)
    number, transport = divmod(header[13], 16)
    if version != 2 or transport not in _TRANSPORTS:
        raise ValueError
    family = _Family(number)
    if _Command(command) is _Command.LOCAL:
        return None
    addresses = header[_FIXED_BYTES:]
    if len(addresses) < _ADDRESS_BYTES[family]:
        raise ValueError
    if transport != _STREAM:
        return None
    match family:
        case _Family.INET:
            return str(IPv4Address(addresses[:4]))
        case _Family.INET6:
            return plain_address(str(IPv6Address(addresses[:16])))
    return None
