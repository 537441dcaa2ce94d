"""Tokens and API keys: from what a request carries to who asks.

1. A token is a JSON Web Token signed by a configured key. ``exp`` is required and holds to the
   millisecond; the leeway is for ``nbf`` and ``iat``, which say that a token is not valid yet.
2. What has been verified is remembered under a digest of the token, so that a storm of returning
   clients costs no signatures. Keys that change make all that forgotten.
3. An API key is looked up by its SHA-256, which is all that is known of it.
4. No error shows any of a token but what its claims are.
"""

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import msgspec
import trio

from gateway import jws
from gateway.config import ApiKey, Config, Issuer, split_list
from gateway.errors import BadRequest, Unauthorized
from gateway.identity import ANYBODY, KEY_PREFIX, Identity
from gateway.jwks import RemoteKeys
from gateway.keys import Key, general_key, read_keys
from gateway.names import Pattern, compile_pattern, is_reserved, user_channel

MAX_TOKEN_BYTES = 8 * 1024
"""As long as a URL may be that carries it."""

MAX_TRIES = 8
"""Signatures that are tried for one token, which names no key."""

MAX_PATTERNS = 200
"""In one claim: linear work for each channel of a stream."""

MAX_UPSTREAMS = 200
"""In one claim; twice as many as a node may have."""

REMEMBERED = 8192
"""Tokens known to be good; 10 MB at the usual size, and a stream that is open needs none."""

NAMES_REMEMBERED = 16_384
"""Channels known to be public, or not."""

API_KEY_PREFIX = "sgk_"
"""What an API key begins with: scanners for leaked secrets can find it."""

MOST_SECONDS = 2**53
"""Beyond it a time is no number in JSON."""

_bounds = msgspec.Meta(ge=0, le=MOST_SECONDS)
Time = Annotated[int, _bounds] | Annotated[float, _bounds]


class Grant(msgspec.Struct):
    """The claim ``gateway``."""

    subscribe: list[str] = []
    publish: list[str] = []
    admin: bool = False
    relay: list[str] | str = []
    """Names of upstreams; one of them, or ``*`` for all, may stand alone."""


class Claims(msgspec.Struct):
    """What is looked at of a token; others may have more."""

    exp: Time
    sub: str | None = None
    nbf: Time | None = None
    iat: Time | None = None
    iss: str | None = None
    aud: str | list[str] | None = None
    jti: str | None = None
    gateway: Grant | None = None


_decode_claims = msgspec.json.Decoder(Claims).decode


NEEDED = (
    "a token is needed, as `Authorization: Bearer <token>`, as a cookie, or in the query as"
    " token=<token>"
)


@dataclass(frozen=True, slots=True)
class AuthStatistics:
    """A snapshot."""

    tokens_remembered: int = 0
    key_fetch_failures: int = 0
    """Since the start."""


class Signer:
    """An issuer and its keys as they are now."""

    def __init__(self, issuer: Issuer, keys: Sequence[Key], changed: Callable[[], None]) -> None:
        self.issuer = issuer
        self._keys = keys
        self.remote = (
            RemoteKeys(issuer.jwks_url, changed, allowed=issuer.algorithms)
            if issuer.jwks_url
            else None
        )

    def keys(self, algorithm: str, kid: str | None) -> Iterator[Key]:
        """Those that may have signed a token with that header."""
        known = self.remote.keys if self.remote is not None else self._keys
        return (key for key in known if key.fits(algorithm, kid))


@dataclass(frozen=True, slots=True)
class _Known:
    """An API key and what it may."""

    digest: bytes
    identity: Identity


class Authenticator:
    """Raises ConfigError where a key of ``config`` cannot be used. ``now_ms`` is the wall clock."""

    def __init__(self, config: Config, *, now_ms: Callable[[], int]) -> None:
        self._config = config
        self._now_ms = now_ms
        self.is_open = not config.has_keys
        self._remembered: OrderedDict[bytes, Identity] = OrderedDict()
        self._signers = tuple(self._signers_of(config))
        known = map(_api_key, config.api_keys)
        self._api_keys = {each.digest: each for each in known}
        self._public = tuple(map(compile_pattern, split_list(config.public_channels)))
        self._is_public: dict[str, bool] = {}

    def _signers_of(self, config: Config) -> Iterator[Signer]:
        forget = partial(OrderedDict.clear, self._remembered)
        general = general_key(config)
        if general is not None:
            yield Signer(Issuer(), (general,), forget)
        for issuer in config.issuers:
            yield Signer(issuer, read_keys(issuer), forget)

    async def run(self) -> None:
        """Keep the keys at URLs up to date, until cancelled."""
        async with trio.open_nursery() as nursery:
            for signer in self._signers:
                if signer.remote is not None:
                    nursery.start_soon(signer.remote.run)

    def statistics(self) -> AuthStatistics:
        return AuthStatistics(
            tokens_remembered=len(self._remembered),
            key_fetch_failures=sum(s.remote.failures for s in self._signers if s.remote),
        )

    async def identify(self, credential: str) -> Identity:
        """Whose token or API key this is.

        Raises Unauthorized, and Unavailable while the keys that would say so are not known.
        """
        if credential.startswith(API_KEY_PREFIX):
            return self._identify_api_key(credential)
        if len(credential) > MAX_TOKEN_BYTES:
            raise Unauthorized(f"A token has at most {MAX_TOKEN_BYTES} bytes.")
        digest = hashlib.blake2b(credential.encode("utf-8", "replace"), digest_size=16).digest()
        known = self._remembered.get(digest)
        if known is not None:
            self._remembered.move_to_end(digest)
            check_expiry(known, self._now_ms())
            return known
        identity = await self._verify(credential)
        self._remembered[digest] = identity
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return identity

    def anonymous(self) -> Identity:
        """Who asks without credentials. Raises Unauthorized where that is nobody."""
        if self.is_open:
            return ANYBODY
        if self._config.anonymous:
            return NOBODY
        raise Unauthorized(f"This is not open to everybody: {NEEDED}.", bad_token=False)

    def may_subscribe(self, identity: Identity, name: str) -> bool:
        """Whether a channel is open to ``identity``, or to everybody."""
        if identity.may_subscribe(name):
            return True
        if is_reserved(name):  # whatever pattern makes others public
            return False
        return self._config.anonymous and self._is_open_to_all(name)

    def _is_open_to_all(self, name: str) -> bool:
        is_public = self._is_public.get(name)
        if is_public is None:
            if len(self._is_public) >= NAMES_REMEMBERED:
                self._is_public.clear()
            named = any(pattern.matches(name) for pattern in self._public)
            is_public = self._is_public[name] = named or self._config.rule(name).public
        return is_public

    def _identify_api_key(self, text: str) -> Identity:
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        known = self._api_keys.get(digest)
        # The lookup may tell by its time where a digest differs, which leads to no key.
        if known is None or not hmac.compare_digest(known.digest, digest):
            raise Unauthorized("The API key is not known.")
        return known.identity

    async def _verify(self, credential: str) -> Identity:
        token = jws.read_token(credential)
        claims = self._try_keys(token)
        if claims is None and await self._are_refreshed(token.header.kid):
            claims = self._try_keys(token)
        if claims is None:
            raise Unauthorized("The token is signed by no key that is known, or for others.")
        return self._identity(claims)

    def _try_keys(self, token: jws.Signed) -> Claims | None:
        """The claims, if a key has signed them whose issuer they name."""
        tries = 0
        for signer in self._signers:
            for key in signer.keys(token.header.alg, token.header.kid):
                tries += 1
                if tries > MAX_TRIES:
                    return None
                if not jws.is_signed_by(token, key):
                    continue
                claims = _claims(token.payload)
                if _is_for(claims, signer.issuer):
                    return claims
        return None

    async def _are_refreshed(self, kid: str | None) -> bool:
        """Have keys at URLs looked for, where one of that id may be there by now."""
        looked = False
        for signer in self._signers:
            remote = signer.remote
            if remote is not None and all(key.kid != kid for key in remote.keys):
                looked = await remote.refreshed() or looked
        return looked

    def _identity(self, claims: Claims) -> Identity:
        now_ms = self._now_ms()
        leeway_ms = self._config.jwt_leeway * 1000
        for name, begin in (("nbf", claims.nbf), ("iat", claims.iat)):
            if begin is not None and begin * 1000 > now_ms + leeway_ms:
                raise Unauthorized(f"The token is not valid yet ({name}); look at the clocks.")
        grant = claims.gateway or Grant()
        try:
            if claims.sub is not None:
                user_channel(claims.sub)
            identity = Identity(
                user=claims.sub,
                subscribe=patterns(grant.subscribe),
                publish=patterns(grant.publish),
                admin=grant.admin,
                relay=_upstreams(grant.relay),
                publisher=f"sub:{claims.sub}" if claims.sub is not None else f"jti:{claims.jti}",
                expires_ms=int(claims.exp * 1000),
                issued_ms=int((claims.iat or 0) * 1000),
                token_id=claims.jti,
            )
        except BadRequest as error:
            raise Unauthorized(f"The token's claims cannot be used: {error}") from None
        check_expiry(identity, now_ms)
        return identity


NOBODY = Identity()
"""Somebody without a token, where that is allowed: only what is public is open to him."""


def patterns(texts: Iterable[str]) -> tuple[Pattern, ...]:
    """Raises BadRequest where one is none, or there are too many."""
    compiled = tuple(map(compile_pattern, texts))
    if len(compiled) > MAX_PATTERNS:
        raise BadRequest(f"A grant has at most {MAX_PATTERNS} patterns.")
    return compiled


def _upstreams(relay: Sequence[str] | str) -> tuple[str, ...]:
    """Raises BadRequest where there are too many."""
    names = (relay,) if isinstance(relay, str) else tuple(relay)
    if len(names) > MAX_UPSTREAMS:
        raise BadRequest(f"A grant has at most {MAX_UPSTREAMS} upstreams.")
    return names


def check_expiry(identity: Identity, now_ms: int) -> None:
    """Raises Unauthorized when its token is over."""
    if identity.expires_ms is not None and now_ms >= identity.expires_ms:
        raise Unauthorized("The token has expired.")


def _claims(payload: bytes) -> Claims:
    try:
        return _decode_claims(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unauthorized(f"The token's claims cannot be used: {error}.") from None


def _is_for(claims: Claims, issuer: Issuer) -> bool:
    if issuer.issuer and claims.iss != issuer.issuer:
        return False
    audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud or []
    return not issuer.audience or issuer.audience in audience


def _api_key(key: ApiKey) -> _Known:
    identity = Identity(
        publish=patterns(key.publish),
        admin=key.admin,
        publisher=f"{KEY_PREFIX}{key.name}",
        publish_rate=key.publish_rate,
    )
    return _Known(bytes.fromhex(key.sha256), identity)
