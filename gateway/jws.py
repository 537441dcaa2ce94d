"""A signed token in its parts, and whether a key has signed it (RFC 7515, compact form). Pure.

The cryptography is PyJWT's; its parser is not used, since it reads a token anew for every key that
is tried, character by character: a forged one of 8 KiB would cost milliseconds. Rules:

1. A token is three parts of the URL-safe alphabet, without padding, and nothing else.
2. The algorithm of the header only chooses among those that the key allows (`Key.fits`).
3. What a header says is critical must be understood, and nothing here is.
"""

import re
from base64 import urlsafe_b64decode
from dataclasses import dataclass

import jwt
import msgspec

from gateway.errors import Unauthorized
from gateway.keys import ALGORITHMS, Key

_PARTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_PADDING = "=="  # more than is needed does no harm

_VERIFIERS = {name: jwt.get_algorithm_by_name(name) for name in ALGORITHMS}


class Header(msgspec.Struct):
    """What a token says of how it is signed."""

    alg: str
    kid: str | None = None
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_header = msgspec.json.Decoder(Header).decode


@dataclass(frozen=True, slots=True)
class Signed:
    """A token, read and not yet believed."""

    header: Header
    payload: bytes
    signed: bytes
    """What the signature is of."""
    signature: bytes


def read_token(token: str) -> Signed:
    """Raises Unauthorized for what is none. Takes time linear in its length."""
    found = _PARTS.fullmatch(token)
    try:
        if found is None:
            raise ValueError
        header, payload, signature = (urlsafe_b64decode(part + _PADDING) for part in found.groups())
        read = _decode_header(header)
        if read.crit is not msgspec.UNSET:
            raise ValueError
    except (ValueError, msgspec.DecodeError, RecursionError):
        raise Unauthorized("This is no JSON Web Token that is signed as it says.") from None
    return Signed(read, payload, token.rpartition(".")[0].encode(), signature)


def is_signed_by(token: Signed, key: Key) -> bool:
    """Whether ``key``, which fits the header, has signed the token."""
    return _VERIFIERS[token.header.alg].verify(token.signed, key.material, token.signature)
