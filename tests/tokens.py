"""Tokens, and the keys to make them with: one of each kind, made once."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SECRET = "a secret of more than thirty-two bytes, for tests alone"

FAR = 4_000_000_000
"""Seconds since 1970: in the year 2096."""


def token(
    user: str | None = "u",
    *,
    subscribe: Sequence[str] = (),
    publish: Sequence[str] = (),
    admin: bool = False,
    exp: float = FAR,
    key: Any = SECRET,
    algorithm: str = "HS256",
    headers: dict[str, Any] | None = None,
    **claims: object,
) -> str:
    """A token of ``user`` (None: it names none) with that grant; other claims over these."""
    payload: dict[str, object] = {
        "exp": exp,
        "gateway": {"subscribe": list(subscribe), "publish": list(publish), "admin": admin},
    }
    if user is not None:
        payload["sub"] = user
    return jwt.encode({**payload, **claims}, key, algorithm=algorithm, headers=headers)


def bearer(credential: str) -> bytes:
    """The header line that carries it."""
    return f"Authorization: Bearer {credential}\r\n".encode()


@cache
def private_key(kind: str) -> Any:
    """RSA, P-256, P-384, P-521, Ed25519 or Ed448, the same one each time; "RSA 2" is another."""
    match kind:
        case "RSA" | "RSA 2":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "RSA 1024":
            return rsa.generate_private_key(public_exponent=65537, key_size=1024)
        case "P-256":
            return ec.generate_private_key(ec.SECP256R1())
        case "P-384":
            return ec.generate_private_key(ec.SECP384R1())
        case "P-521":
            return ec.generate_private_key(ec.SECP521R1())
        case "secp256k1":
            return ec.generate_private_key(ec.SECP256K1())
        case "Ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "Ed448":
            return ed448.Ed448PrivateKey.generate()
    raise ValueError(kind)


def public_pem(kind: str) -> bytes:
    pem: bytes = (
        private_key(kind).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return pem


def jwk(kind: str, **members: object) -> dict[str, object]:
    """The public key as a JSON Web Key."""
    public = private_key(kind).public_key()
    algorithm = {"RSA": "RS256", "P-25": "ES256", "P-38": "ES384", "P-52": "ES512"}.get(
        kind[:4].strip(), "EdDSA"
    )
    made: Any = jwt.get_algorithm_by_name(algorithm)
    described: dict[str, object] = made.to_jwk(public, as_dict=True)
    return described | members


def seconds() -> int:
    return int(time.time())
