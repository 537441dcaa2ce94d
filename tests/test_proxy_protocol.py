"""Headers of the PROXY protocol, by the examples and rules of its document."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy_protocol import (
    MAX_V1_BYTES,
    MAX_V2_BYTES,
    SIGNATURE,
    HeaderReader,
    ProxyHeaderError,
)

BEHIND = b"GET / HTTP/1.1\r\n\r\n"


def v2(command: int, family: int, addresses: bytes, *, length: int | None = None) -> bytes:
    size = len(addresses) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, family, size) + addresses


def inet(source: str) -> bytes:
    return socket.inet_aton(source) + socket.inet_aton("192.0.2.2") + struct.pack("!HH", 1, 443)


def inet6(source: str) -> bytes:
    addresses = (socket.inet_pton(socket.AF_INET6, text) for text in (source, "2001:db8::2"))
    return b"".join(addresses) + struct.pack("!HH", 1, 443)


EXTENSION = b"\x04\x00\x03abc"

GOOD: dict[str, tuple[bytes, str | None]] = {
    "1, IPv4": (b"PROXY TCP4 203.0.113.9 192.0.2.2 56324 443\r\n", "203.0.113.9"),
    "1, highest": (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
                   "255.255.255.255"),
    "1, lowest": (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", "0.0.0.0"),
    "1, IPv6": (b"PROXY TCP6 2001:DB8::0:9 2001:db8::2 1 2\r\n", "2001:db8::9"),
    "1, mapped": (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 1 2\r\n", "203.0.113.9"),
    "1, longest": (b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535"
                   b"\r\n", "ffff:" * 7 + "ffff"),
    "1, unknown": (b"PROXY UNKNOWN\r\n", None),
    "1, unknown at length": (b"PROXY UNKNOWN " + b"x" * (MAX_V1_BYTES - 16) + b"\r\n", None),
    "2, IPv4": (v2(0x21, 0x11, inet("203.0.113.9")), "203.0.113.9"),
    "2, IPv6": (v2(0x21, 0x21, inet6("2001:db8::9")), "2001:db8::9"),
    "2, mapped": (v2(0x21, 0x21, inet6("::ffff:203.0.113.9")), "203.0.113.9"),
    "2, extensions": (v2(0x21, 0x11, inet("203.0.113.9") + EXTENSION * 9), "203.0.113.9"),
    "2, local": (v2(0x20, 0x00, b""), None),
    "2, local with addresses": (v2(0x20, 0x11, inet("203.0.113.9")), None),
    "2, unspecified": (v2(0x21, 0x00, EXTENSION), None),
    "2, a socket in the file system": (v2(0x21, 0x31, b"/run/x".ljust(216, b"\0")), None),
    "2, datagrams": (v2(0x21, 0x12, inet("203.0.113.9")), None),
    "2, longest": (v2(0x21, 0x11, inet("203.0.113.9").ljust(MAX_V2_BYTES - 16, b"\0")),
                   "203.0.113.9"),
}  # fmt: skip

BAD: dict[str, bytes] = {
    "a request": BEHIND,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "1, in lower case": b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    "1, two spaces": b"PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n",
    "1, a bare line feed": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n",
    "1, another family": b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
    "1, IPv6 as IPv4": b"PROXY TCP4 2001:db8::9 2001:db8::2 1 2\r\n",
    "1, IPv4 as IPv6": b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
    "1, no address": b"PROXY TCP4 1.1.1.999 2.2.2.2 1 2\r\n",
    "1, a destination that is none": b"PROXY TCP4 1.1.1.1 2.2.2.999 1 2\r\n",
    "1, a leading zero": b"PROXY TCP4 1.1.1.01 2.2.2.2 1 2\r\n",
    "1, a port with a leading zero": b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
    "1, a port too high": b"PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n",
    "1, without ports": b"PROXY TCP4 1.1.1.1 2.2.2.2\r\n",
    "1, more than that": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
    "1, nothing": b"PROXY \r\n",
    "1, UNKNOWNX": b"PROXY UNKNOWNX\r\n",
    "1, one byte too long": b"PROXY UNKNOWN " + b"x" * (MAX_V1_BYTES - 15) + b"\r\n",
    "1, endless": b"PROXY UNKNOWN " + b"x" * MAX_V1_BYTES,
    "2, another version": v2(0x11, 0x11, inet("203.0.113.9")),
    "2, another command": v2(0x22, 0x11, inet("203.0.113.9")),
    "2, another family": v2(0x21, 0x41, inet("203.0.113.9")),
    "2, another transport": v2(0x21, 0x13, inet("203.0.113.9")),
    "2, too short for IPv4": v2(0x21, 0x11, inet("203.0.113.9")[:-1]),
    "2, too short for IPv6": v2(0x21, 0x21, inet("203.0.113.9")),
    "2, one byte too long": v2(0x21, 0x11, b"", length=MAX_V2_BYTES - 15),
    "2, a signature that breaks off": SIGNATURE[:-1] + b"x",
}  # fmt: skip


def read(pieces: list[bytes]) -> tuple[str | None, bytes]:
    """The source, and what was left of the pieces; EOFError if they end within the header."""
    reader = HeaderReader()
    for number, piece in enumerate(pieces):
        taken = reader.receive_data(piece)
        if reader.finished:
            return reader.source, b"".join([piece[taken:], *pieces[number + 1 :]])
        assert taken == len(piece)
    raise EOFError


@pytest.mark.parametrize("name", GOOD)
def test_a_header_is_read_whole_in_bytes_and_in_any_two_pieces_and_nothing_behind_it(
    name: str,
) -> None:
    header, source = GOOD[name]
    raw = header + BEHIND
    assert read([raw]) == (source, BEHIND)
    assert read([raw[i : i + 1] for i in range(len(raw))]) == (source, BEHIND)
    for cut in range(1, min(len(header), 300)):
        assert read([raw[:cut], raw[cut:]]) == (source, BEHIND)
    with pytest.raises(EOFError):
        read([header[:-1]])


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_an_error_however_it_comes(name: str) -> None:
    raw = BAD[name]
    for pieces in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
        with pytest.raises(ProxyHeaderError):
            read(pieces)


@given(
    st.one_of(
        st.binary(),
        st.binary().map(SIGNATURE.__add__),
        st.binary().map(b"PROXY ".__add__),
        st.sampled_from([header for header, _ in GOOD.values()]),
    ),
    st.integers(0, 300),
    st.binary(max_size=3),
    st.lists(st.integers(1, 40)),
)
def test_whatever_comes_is_read_within_the_bound_or_refused(
    raw: bytes, at: int, instead: bytes, sizes: list[int]
) -> None:
    """And the verdict does not depend on the pieces."""
    raw = raw[:at] + instead + raw[at + len(instead) :]
    pieces, rest = [], raw
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]

    def verdict(pieces: list[bytes]) -> object:
        try:
            return read(pieces)
        except (ProxyHeaderError, EOFError) as error:
            return type(error)

    found = verdict([raw])
    assert verdict([*pieces, rest]) == found
    if isinstance(found, tuple):
        assert len(raw) - len(found[1]) <= MAX_V2_BYTES
