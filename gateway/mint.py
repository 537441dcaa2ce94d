"""Tokens and API keys made, for those who have the secret: what ``gateway token`` prints."""

import hashlib
import secrets
import time
from collections.abc import Sequence

import jwt

from gateway.auth import API_KEY_PREFIX, patterns
from gateway.config import Config, Issuer
from gateway.errors import ConfigError
from gateway.keys import general_key, read_keys

API_KEY_BYTES = 32
"""Of randomness; nobody tries 2**256 keys, so a fast digest is as good as a slow one."""

TOKEN_ID_BYTES = 12


def make_token(
    config: Config,
    *,
    user: str | None,
    subscribe: Sequence[str],
    publish: Sequence[str],
    admin: bool,
    seconds: int,
    relay: Sequence[str] = (),
) -> str:
    """A token signed with the secret of ``config``: ``jwt_key``, or that of its first issuer with
    one. Raises ConfigError where there is none, BadRequest for what is no pattern.
    """
    secret, algorithm, issuer = _secret(config)
    patterns([*subscribe, *publish])
    now = int(time.time())
    claims: dict[str, object] = {
        "exp": now + seconds,
        "iat": now,
        "jti": secrets.token_urlsafe(TOKEN_ID_BYTES),
        "gateway": {"subscribe": list(subscribe), "publish": list(publish), "admin": admin}
        | ({"relay": list(relay)} if relay else {}),
    }
    named = {"sub": user, "iss": issuer.issuer, "aud": issuer.audience}
    claims |= {name: value for name, value in named.items() if value}
    return jwt.encode(claims, secret, algorithm=algorithm)


def make_api_key() -> tuple[str, str]:
    """A new key, and its digest for the configuration."""
    key = API_KEY_PREFIX + secrets.token_urlsafe(API_KEY_BYTES)
    return key, hashlib.sha256(key.encode()).hexdigest()


def _secret(config: Config) -> tuple[bytes, str, Issuer]:
    """A secret, the algorithm to sign with, and whose it is."""
    general = general_key(config)
    if general is not None:
        return general.material, "HS256", Issuer()
    for issuer in config.issuers:
        if issuer.secret or issuer.secret_file:
            (key,) = read_keys(issuer)
            return key.material, min(key.algorithms), issuer
    raise ConfigError(
        "There is no secret to sign with: set GATEWAY_JWT_KEY or --jwt-key-file. Tokens of other"
        " issuers are made where their private key is."
    )
