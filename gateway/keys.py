"""The keys that verify tokens, and what each of them may verify. Pure, but for reading files.

1. An algorithm is allowed by the kind of the key and never by the token: a public key is no secret
   of HS256, whatever a token's header says.
2. What is weak is no key: secrets shorter than their hash (RFC 7518 3.2), RSA below 2048 bits. Nor
   is what would cost a token's bearer nothing and the node much: RSA with absurd numbers.
3. Of a key set what cannot be used is passed over (RFC 7517 5), whatever it is, and its size is
   bounded. A private key has no place there, and is not even read: to make one of incomplete
   members takes seconds.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWK, PyJWTError

from gateway.config import KIB, Config, Issuer
from gateway.errors import ConfigError

SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The least that a secret must have for each."""

CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
RSA_ALGORITHMS = ("RS256", "RS384", "RS512")
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
MAX_RSA_EXPONENT_BITS = 64
"""OpenSSL's own bound for moduli above 3072 bits; most exponents have 17."""

ALGORITHMS = frozenset({*SECRET_BYTES, *CURVES.values(), *RSA_ALGORITHMS, "EdDSA"})

MAX_KEY_FILE_BYTES = 256 * KIB
"""Of a secret, a PEM file or a key set; the largest public ones have 10 KiB."""

MAX_KEYS = 64
"""Used of one key set. Issuers publish two or three: the old, the present and the next one."""


@dataclass(frozen=True, slots=True)
class Key:
    """What verifies signatures of ``algorithms``; without ``kid`` it is tried for every token."""

    material: Any = field(repr=False)
    algorithms: frozenset[str]
    kid: str | None = None

    def fits(self, algorithm: str, kid: str | None) -> bool:
        """Whether a token with that header may be of this key."""
        if algorithm not in self.algorithms:
            return False
        return kid is None or self.kid is None or kid == self.kid


def general_key(config: Config) -> Key | None:
    """That of ``jwt_key`` or ``jwt_key_file``. Raises ConfigError where it cannot be used."""
    if config.jwt_key_file:
        secret = read_file("jwt_key_file", config.jwt_key_file).strip()
        return secret_key(secret, f"jwt_key_file {config.jwt_key_file}", ("HS256",))
    if config.jwt_key:
        return secret_key(config.jwt_key.encode(), "jwt_key", ("HS256",))
    return None


def read_keys(issuer: Issuer) -> Sequence[Key]:
    """The keys of an issuer that are in the configuration or in a file; none for a URL.

    Raises ConfigError where there is none that can be used.
    """
    allowed = _allowed(issuer.algorithms)
    if issuer.secret:
        return (secret_key(issuer.secret.encode(), "secret", allowed),)
    if issuer.secret_file:
        secret = read_file("secret_file", issuer.secret_file).strip()
        return (secret_key(secret, f"secret_file {issuer.secret_file}", allowed),)
    if issuer.public_key_file:
        return (_pem_key(issuer.public_key_file, allowed),)
    if issuer.jwks_file:
        keys = parse_key_set(read_file("jwks_file", issuer.jwks_file), allowed)
        if not keys:
            raise ConfigError(f"jwks_file {issuer.jwks_file} holds no key that can be used.")
        return keys
    return ()


def secret_key(secret: bytes, source: str, allowed: Collection[str]) -> Key:
    """A shared secret; its length decides what it may sign. Raises ConfigError."""
    algorithms = [name for name in SECRET_BYTES if name in allowed]
    strong = frozenset(name for name in algorithms if len(secret) >= SECRET_BYTES[name])
    if not strong:
        least = min((SECRET_BYTES[name] for name in algorithms), default=0)
        raise ConfigError(
            f"{source} has {len(secret)} bytes, but must have at least {least}, as"
            " `openssl rand -base64 48` makes them."
            if algorithms
            else f"{source} is a secret, which is for {', '.join(SECRET_BYTES)} alone."
        )
    return Key(secret, strong)


def parse_key_set(text: bytes, allowed: Collection[str] = ALGORITHMS) -> Sequence[Key]:
    """The public keys of a JSON Web Key Set that can be used here. Raises ConfigError for what is
    none."""
    if len(text) > MAX_KEY_FILE_BYTES:
        raise ConfigError(f"A key set has at most {MAX_KEY_FILE_BYTES} bytes.")
    try:
        document = json.loads(text)
        listed = document["keys"]
        if not isinstance(listed, list):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError('A key set is a JSON object with the member "keys", a list.') from None
    return tuple(islice(_usable(listed, allowed), MAX_KEYS))


def read_file(name: str, path: str) -> bytes:
    """What is in a small file. Raises ConfigError; ``name`` is the setting that names it."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name} {path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_KEY_FILE_BYTES:
        raise ConfigError(f"{name} {path} has more than {MAX_KEY_FILE_BYTES} bytes.")
    return content


def _allowed(listed: Sequence[str]) -> Collection[str]:
    unknown = [name for name in listed if name not in ALGORITHMS]
    if unknown:
        raise ConfigError(
            f"algorithms has {unknown[0]!r}; legal are {', '.join(sorted(ALGORITHMS))}."
        )
    return listed or ALGORITHMS


def _usable(listed: Sequence[object], allowed: Collection[str]) -> Iterator[Key]:
    for each in listed:
        if not isinstance(each, dict) or each.get("kty") not in ("RSA", "EC", "OKP"):
            continue  # a symmetric key has no place in what is published
        if each.get("use", "sig") != "sig" or "d" in each:
            continue
        try:
            if "verify" not in each.get("key_ops", ["verify"]):
                continue
            key = PyJWK(each, "EdDSA" if each["kty"] == "OKP" else None).key
            algorithms = _algorithms(key) & set(allowed)
            if "alg" in each:
                algorithms &= {each["alg"]}
        except (PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
            continue
        kid = each.get("kid")
        if algorithms and (kid is None or isinstance(kid, str)):
            yield Key(key, algorithms, kid)


def _pem_key(path: str, allowed: Collection[str]) -> Key:
    try:
        key = load_pem_public_key(read_file("public_key_file", path))
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"public_key_file {path} is no public key in PEM.") from None
    of_its_kind = _algorithms(key)
    if not of_its_kind:
        raise ConfigError(
            f"public_key_file {path} is of no kind that is taken: RSA of {MIN_RSA_BITS} to"
            f" {MAX_RSA_BITS} bits, EC on {', '.join(CURVES)}, Ed25519 or Ed448."
        )
    algorithms = of_its_kind & set(allowed)
    if not algorithms:
        raise ConfigError(
            f"public_key_file {path} is for {', '.join(sorted(of_its_kind))}, of which"
            " algorithms allows none."
        )
    return Key(key, algorithms)


def _algorithms(key: object) -> frozenset[str]:
    """What a public key of this kind may verify."""
    match key:
        case RSAPublicKey() if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            if key.public_numbers().e.bit_length() <= MAX_RSA_EXPONENT_BITS:
                return frozenset(RSA_ALGORITHMS)
        case EllipticCurvePublicKey() if key.curve.name in CURVES:
            return frozenset({CURVES[key.curve.name]})
        case Ed25519PublicKey() | Ed448PublicKey():
            return frozenset({"EdDSA"})
    return frozenset()
