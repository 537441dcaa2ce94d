"""What it costs to be asked who one is: openings and publishes with tokens, keys and without.

Whoever imports this has imported `measuring` before.
"""

import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import jwt
import trio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from measuring import Fanout, Figures, Site, on_memory

ISSUER, AUDIENCE = "https://issuer.example", "gateway"

UNLIMITED = (
    *("--max-streams-per-user", "0", "--max-streams-per-address", "0"),
    *("--open-rate", "0", "--address-open-rate", "0", "--publish-rate", "0"),
)
"""The limits are measured elsewhere."""

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_MADE: dict[str, Callable[[], PrivateKey]] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


class Signer:
    """A key of one algorithm, with its ``[[issuer]]`` table, and tokens signed with it."""

    def __init__(self, algorithm: str, directory: Path) -> None:
        self._algorithm = algorithm
        self._key: PrivateKey | bytes
        issuer = f'[[issuer]]\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n'
        if algorithm == "HS256":
            secret = secrets.token_hex(32)
            self._key = secret.encode()
            issuer += f'secret = "{secret}"\n'
        else:
            self._key = private = _MADE[algorithm]()
            public = directory / f"{algorithm}.pem"
            public.write_bytes(
                private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            )
            issuer += f'public_key_file = "{public}"\n'
        self.config = directory / f"{algorithm}.toml"
        self.config.write_text(issuer)
        self.own = directory / f"{algorithm}.own"
        """A file with a token for each stream, one a line."""
        self.same = directory / f"{algorithm}.same"
        """One with a token for all of them."""

    def sign(self, count: int) -> None:
        tokens = [self._token(f"user{number}") for number in range(count)]
        self.own.write_text("\n".join(tokens))
        self.same.write_text(tokens[0])

    def _token(self, user: str) -> str:
        claims = {
            "sub": user,
            "exp": time.time() + 3600,
            "iss": ISSUER,
            "aud": AUDIENCE,
            "gateway": {"subscribe": ["**"], "publish": ["**"]},
        }
        return jwt.encode(claims, self._key, algorithm=self._algorithm)


class Keys:
    """A signer for each algorithm, and an API key."""

    def __init__(self, directory: Path, algorithms: Sequence[str], tokens: int) -> None:
        self.signers = {algorithm: Signer(algorithm, directory) for algorithm in algorithms}
        for signer in self.signers.values():
            signer.sign(tokens)
        self.api_key = f"sgk_{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(self.api_key.encode()).hexdigest()
        self.config = directory / "api_key.toml"
        self.config.write_text(
            'anonymous = true\npublic_channels = "bench"\n'
            f'[[api_key]]\nname = "publisher"\nsha256 = "{digest}"\npublish = ["**"]\n'
        )


@asynccontextmanager
async def _with(config: Path | None) -> AsyncIterator[Site]:
    flags = ("--config", str(config)) if config is not None else ()
    async with on_memory(*UNLIMITED, *flags) as site:
        yield site


async def openings(fanout: Fanout, keys: Keys, streams: int) -> Mapping[str, Figures]:
    """CPU for an opening, by what it brings along."""
    ways: dict[str, tuple[Path | None, Sequence[str]]] = {"no keys": (None, ())}
    for algorithm, signer in keys.signers.items():
        ways[algorithm] = (signer.config, ("--tokens", str(signer.own)))
        ways[f"{algorithm}, one for all"] = (signer.config, ("--tokens", str(signer.same)))
    found = {}
    for way, (config, options) in ways.items():
        async with _with(config) as site:
            found[way] = await fanout(
                site, "--clients", str(streams), "--count", "0", "--src-ips", "4", *options
            )
        await trio.sleep(0.2)
    return found


async def publishes(fanout: Fanout, keys: Keys, events: int) -> Mapping[str, Figures]:
    """CPU for a publish, without and with an API key."""
    ways: dict[str, tuple[Path | None, Sequence[str]]] = {
        "no keys": (None, ()),
        "API key": (keys.config, ("--header", f"Authorization: Bearer {keys.api_key}")),
    }
    load = ("--clients", "1", "--pubs", "8", "--count", str(events))
    found = {}
    for way, (config, options) in ways.items():
        async with _with(config) as site:
            found[way] = await fanout(site, *load, *options)
    return found
