"""Whose token it is: keys, algorithms, claims, and what is remembered."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import quote, unquote

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokens import FAR, SECRET, jwk, private_key, public_pem, token

from gateway import auth as auth_module
from gateway import jws
from gateway.auth import MAX_PATTERNS, MAX_TOKEN_BYTES, MAX_TRIES, NOBODY, Authenticator
from gateway.config import ApiKey, ChannelRule, Config, Issuer
from gateway.errors import ConfigError, Unauthorized
from gateway.identity import Identity
from gateway.keys import MAX_KEY_FILE_BYTES, MAX_KEYS, parse_key_set
from gateway.names import USER_PREFIX, user_channel
from gateway.policy import Policy

NOW_MS = 1_700_000_000_000
NOW = NOW_MS // 1000

Write = Callable[[str, bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def authenticator(*issuers: Issuer, now_ms: Callable[[], int] = lambda: NOW_MS, **more: Any) -> Any:
    """For tokens signed with SECRET, unless other issuers are named."""
    settings = {"issuers": issuers} if issuers else {"jwt_key": SECRET}
    return Authenticator(Config(**(settings | more)), now_ms=now_ms)


async def refused(auth: Authenticator, credential: str) -> str:
    with pytest.raises(Unauthorized) as caught:
        await auth.identify(credential)
    assert credential not in str(caught.value)
    return str(caught.value)


async def taken(auth: Authenticator, credential: str) -> Identity:
    return await auth.identify(credential)


# --- what a token says ----------------------------------------------------------------------------


async def test_a_token_names_its_user_and_what_is_granted() -> None:
    identity = await taken(
        authenticator(),
        token("u", subscribe=["news", "room.*"], publish=["org.7.**"], jti="1", iat=NOW),
    )
    assert (identity.user, identity.token_id, identity.admin) == ("u", "1", False)
    assert (identity.expires_ms, identity.issued_ms) == (FAR * 1000, NOW_MS)
    assert [identity.may_subscribe(n) for n in ("news", "room.1", "room.1.2", "org.7")] == [
        *(True, True, False, False)
    ]
    assert [identity.may_publish(n) for n in ("org.7", "org.7.a.b", "org.8", "news")] == [
        *(True, True, False, False)
    ]
    assert not identity.may_administer()


async def test_a_token_without_the_claim_gateway_grants_nothing_but_the_users_own() -> None:
    identity = await taken(authenticator(), jwt.encode({"sub": "u", "exp": FAR}, SECRET))
    assert identity.user == "u"
    assert (identity.subscribe, identity.publish, identity.admin) == ((), (), False)


@pytest.mark.parametrize("name", ["global", "user:u", "user:someone", "user:a.b"])
@pytest.mark.parametrize("pattern", ["**", "*", "user:*", "global"])
async def test_no_pattern_reaches_the_channel_of_everybody_or_of_a_user(
    pattern: str, name: str
) -> None:
    identity = await taken(authenticator(), token(subscribe=[pattern], publish=[pattern]))
    assert not identity.may_subscribe(name)
    assert not identity.may_publish(name)


async def test_only_an_administrator_publishes_to_users_and_to_everybody() -> None:
    identity = await taken(authenticator(), token(admin=True))
    assert identity.may_publish("global")
    assert identity.may_publish("user:u")
    assert not identity.may_publish("news"), "for that he needs a pattern like all others"
    assert not identity.may_subscribe("user:u")


def bent(**claims: object) -> str:
    return token(None, **{"exp": FAR, **claims})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"exp": NOW}, "has expired"),
        ({"exp": NOW - 1}, "has expired"),
        ({"exp": "tomorrow"}, "$.exp"),
        ({"exp": None}, "$.exp"),
        ({"exp": True}, "$.exp"),
        ({"exp": -1}, "$.exp"),
        ({"exp": 2**60}, "$.exp"),
        ({"nbf": NOW + 6}, "not valid yet (nbf)"),
        ({"iat": NOW + 6}, "not valid yet (iat)"),
        ({"iat": NOW + 6, "nbf": NOW}, "not valid yet (iat)"),
        ({"sub": ""}, "at least one character"),
        ({"sub": "x" * 200}, "too long"),
        ({"sub": "\ud800"}, "cannot be used"),
        ({"jti": 1}, "$.jti"),
        ({"gateway": []}, "$.gateway"),
        ({"gateway": {"subscribe": "news"}}, "$.gateway.subscribe"),
        ({"gateway": {"subscribe": ["a b"]}}, "contains ' '"),
        ({"gateway": {"publish": ["a.**.b"]}}, "before its end"),
        ({"gateway": {"publish": ["a"] * (MAX_PATTERNS + 1)}}, f"at most {MAX_PATTERNS}"),
        ({"gateway": {"admin": "yes"}}, "$.gateway.admin"),
    ],
    ids=str,
)
async def test_a_token_whose_claims_cannot_be_used_is_refused(
    claims: dict[str, object], says: str
) -> None:
    assert says in await refused(authenticator(), bent(**claims))


async def test_a_token_needs_an_end() -> None:
    assert "`exp`" in await refused(authenticator(), jwt.encode({"sub": "u"}, SECRET))


async def test_the_leeway_is_for_what_begins_and_not_for_what_ends() -> None:
    auth = authenticator(jwt_leeway=5.0)
    assert await taken(auth, bent(nbf=NOW + 5, iat=NOW + 5, exp=NOW + 1))
    assert "expired" in await refused(auth, bent(exp=NOW))
    strict = authenticator(jwt_leeway=0.0)
    assert "not valid yet" in await refused(strict, bent(nbf=NOW + 1))
    assert await taken(strict, bent(nbf=NOW, iat=NOW))


async def test_a_token_may_end_far_ahead_and_within_a_second() -> None:
    identity = await taken(authenticator(), bent(exp=2**53))
    assert identity.expires_ms == 2**53 * 1000
    assert (await taken(authenticator(), bent(exp=NOW + 0.25))).expires_ms == NOW_MS + 250


@given(st.text(min_size=1, max_size=40))
async def test_every_user_has_one_channel_or_is_refused(user: str) -> None:
    """Whatever ``sub`` is, nobody gets somebody else's channel by it."""
    if len(quote(user, safe="")) > 190 or not user.isprintable():
        await _is_refused_or_itself(user)
        return
    identity = await taken(authenticator(), token(user))
    assert identity.user == user == unquote(user_channel(user).removeprefix(USER_PREFIX))


async def _is_refused_or_itself(user: str) -> None:
    with suppress(Unauthorized):
        assert (await taken(authenticator(), token(user))).user == user


# --- keys and algorithms --------------------------------------------------------------------------

KINDS = {
    "RSA": ("RS256", "RS384", "RS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA",),
    "Ed448": ("EdDSA",),
}


@pytest.mark.parametrize(
    ("kind", "algorithm"), [(kind, name) for kind, names in KINDS.items() for name in names]
)
async def test_public_keys_verify_what_their_kind_signs(
    kind: str, algorithm: str, write: Write
) -> None:
    signed = token(key=private_key(kind), algorithm=algorithm)
    as_pem = authenticator(Issuer(public_key_file=write("key.pem", public_pem(kind))))
    key_set = json.dumps({"keys": [jwk(kind, kid="1")]}).encode()
    as_set = authenticator(Issuer(jwks_file=write("keys.json", key_set)))
    for auth in (as_pem, as_set):
        assert (await taken(auth, signed)).user == "u"
        assert "no key" in await refused(auth, signed[:-8] + "AAAAAAAA")


@pytest.mark.parametrize(("algorithm", "length"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
async def test_a_secret_signs_what_it_is_long_enough_for(algorithm: str, length: int) -> None:
    signed = token(key="s" * length, algorithm=algorithm)
    assert await taken(authenticator(Issuer(secret="s" * length)), signed)
    with pytest.raises(ConfigError, match=f"at least {length}"):
        authenticator(Issuer(secret="s" * (length - 1), algorithms=(algorithm,)))


async def test_the_general_key_is_for_hs256_alone() -> None:
    auth = authenticator(jwt_key="s" * 64)
    assert await taken(auth, token(key="s" * 64))
    assert "no key" in await refused(auth, token(key="s" * 64, algorithm="HS512"))


async def test_a_public_key_is_no_secret(write: Write) -> None:
    """The oldest trick: sign with HS256 and the text of the public key."""
    pem = public_pem("RSA")
    auth = authenticator(Issuer(public_key_file=write("key.pem", pem)))
    body = token(key="s" * 64).split(".")[1]
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    mac = hmac.digest(pem, f"{header}.{body}".encode(), "sha256")
    forged = f"{header}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    assert "no key" in await refused(auth, forged)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "HS1", "RS256", "PS256"])
async def test_a_token_does_not_choose_how_it_is_verified(algorithm: str) -> None:
    header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm}).encode()).rstrip(b"=").decode()
    body = token().split(".")[1]
    for signature in ("", token().split(".")[2]):
        await refused(authenticator(), f"{header}.{body}.{signature}")


async def test_algorithms_narrow_what_the_kind_of_a_key_allows(write: Write) -> None:
    file = write("key.pem", public_pem("RSA"))
    auth = authenticator(Issuer(public_key_file=file, algorithms=("RS512",)))
    assert await taken(auth, token(key=private_key("RSA"), algorithm="RS512"))
    assert "no key" in await refused(auth, token(key=private_key("RSA"), algorithm="RS256"))


def headed(header: bytes) -> str:
    """A token with that header, signed with SECRET."""
    text = base64.urlsafe_b64encode(header).rstrip(b"=") + b"." + token().split(".")[1].encode()
    mac = base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), text, "sha256")).rstrip(b"=")
    return (text + b"." + mac).decode()


async def test_a_token_that_is_critical_of_something_is_refused() -> None:
    auth = authenticator()
    assert await taken(auth, headed(b'{"alg":"HS256","typ":"JWT","more":1}'))
    for header in (
        b'{"alg":"HS256","crit":["exp"]}',
        b'{"alg":"HS256","crit":null}',
        b'{"alg":"HS256","crit":["b64"],"b64":false}',
        b'{"alg":"HS256","kid":1}',
        b'{"alg":["HS256"]}',
        b'{"typ":"JWT"}',
        b'["HS256"]',
        b'{"alg":"HS256"',
    ):
        assert "no JSON Web Token" in await refused(auth, headed(header))


async def test_a_token_has_three_parts_of_its_alphabet_and_no_padding() -> None:
    auth, good = authenticator(), token()
    head, body, signature = good.split(".")
    for bent in (
        *(f"{good}=", f"{good}.", f".{good}", f"{head}=.{body}.{signature}", f"{good}\n"),
        *(f"{head}.{body}", f"{head}.{body}.", f"{head}..{signature}", f" {good}", f"{good}~"),
    ):
        assert "no JSON Web Token" in await refused(auth, bent)


GARBAGE = [
    *("", ".", "..", "...", "a.b.c", "\x00", "\u20ac", "Bearer x", "e30.e30.", "e30"),
    base64.urlsafe_b64encode(b"[" * 4000).decode() + ".e30.e30",
    base64.urlsafe_b64encode(b'{"alg":"HS256","kid":1}').decode().rstrip("=") + ".e30.e30",
    base64.urlsafe_b64encode(b'{"alg":["HS256"]}').decode().rstrip("=") + ".e30.e30",
    base64.urlsafe_b64encode(b'{"alg":"HS256","crit":["x"]}').decode().rstrip("=") + ".e30.e30",
    "x" * (MAX_TOKEN_BYTES + 1),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda text: repr(text[:20]))
async def test_what_is_no_token_is_refused(garbage: str) -> None:
    with pytest.raises(Unauthorized):
        await authenticator().identify(garbage)


@given(st.text(alphabet="abcXYZ019-_.=\x00\u20ac", max_size=60) | st.binary(max_size=60).map(str))
async def test_nothing_invented_is_taken(text: str) -> None:
    with pytest.raises(Unauthorized):
        await authenticator().identify(text)


@given(st.data())
async def test_no_changed_token_is_taken(data: st.DataObject) -> None:
    good = token("u", subscribe=["a"], jti="1")
    # The last character of a part has bits that nobody reads.
    places = [n for n, c in enumerate(good[:-1]) if "." not in (c, good[n + 1])]
    at = data.draw(st.sampled_from(places[:-1]))
    other = data.draw(st.sampled_from([c for c in "abcdefABCDEF012345-_" if c != good[at]]))
    with pytest.raises(Unauthorized):
        await authenticator().identify(good[:at] + other + good[at + 1 :])


# --- issuers --------------------------------------------------------------------------------------


async def test_issuer_and_audience_are_checked_where_they_are_configured() -> None:
    auth = authenticator(Issuer(issuer="https://id", audience="sse", secret=SECRET))
    assert await taken(auth, bent(iss="https://id", aud="sse"))
    assert await taken(auth, bent(iss="https://id", aud=["other", "sse"]))
    for claims in (
        {"aud": "sse"},
        {"iss": "https://other", "aud": "sse"},
        {"iss": "https://id"},
        {"iss": "https://id", "aud": "other"},
        {"iss": "https://id", "aud": ["other"]},
    ):
        assert "for others" in await refused(auth, bent(**claims))
    assert await taken(authenticator(), bent(iss="anybody", aud="anything"))


async def test_each_issuer_has_its_keys(write: Write) -> None:
    """A key of one cannot speak for the other."""
    auth = authenticator(
        Issuer(issuer="a", secret=SECRET),
        Issuer(issuer="b", public_key_file=write("key.pem", public_pem("P-256"))),
    )
    assert await taken(auth, bent(iss="a"))
    assert await taken(auth, bent(iss="b", key=private_key("P-256"), algorithm="ES256"))
    assert "for others" in await refused(auth, bent(iss="b"))
    assert "for others" in await refused(
        auth, bent(iss="a", key=private_key("P-256"), algorithm="ES256")
    )


async def test_a_token_names_its_key_by_id(write: Write) -> None:
    keys = [jwk("RSA", kid="old"), jwk("RSA 2", kid="new")]
    auth = authenticator(Issuer(jwks_file=write("keys", json.dumps({"keys": keys}).encode())))
    for kind, kid in (("RSA", "old"), ("RSA 2", "new")):
        signed = token(key=private_key(kind), algorithm="RS256", headers={"kid": kid})
        assert await taken(auth, signed)
    for kid in ("new", "other"):
        signed = token(key=private_key("RSA"), algorithm="RS256", headers={"kid": kid})
        assert "no key" in await refused(auth, signed)
    assert await taken(auth, token(key=private_key("RSA 2"), algorithm="RS256"))


async def test_only_so_many_signatures_are_tried(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"keys": [jwk("RSA", kid=str(n)) for n in range(MAX_KEYS + 10)]}
    auth = authenticator(Issuer(jwks_file=write("keys", json.dumps(keys).encode())))
    tried = Mock(return_value=False)
    monkeypatch.setattr(jws, "is_signed_by", tried)
    await refused(auth, token(key=private_key("RSA 2"), algorithm="RS256"))
    assert tried.call_count == MAX_TRIES


# --- key files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "content", "says"),
    [
        ("secret_file", b"short\n", "has 5 bytes, but must have at least 32"),
        ("public_key_file", b"hello", "is no public key in PEM"),
        ("public_key_file", b"x" * (MAX_KEY_FILE_BYTES + 1), "has more than"),
        ("jwks_file", b"hello", 'with the member "keys"'),
        ("jwks_file", b'{"keys": 1}', 'with the member "keys"'),
        ("jwks_file", b"[" * 100_000, 'with the member "keys"'),
        ("jwks_file", b'{"keys": []}', "holds no key that can be used"),
        ("jwks_file", b'{"keys": [{"kty": "oct", "k": "AAAA"}]}', "holds no key"),
    ],
)
def test_a_file_without_a_key_stops_the_start(
    member: str, content: bytes, says: str, write: Write
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        authenticator(Issuer(**{member: write("file", content)}))  # type: ignore[arg-type]
    assert "file" in str(caught.value) or member == "jwks_file"


@pytest.mark.parametrize("kind", ["RSA 1024", "secp256k1"])
def test_a_weak_or_strange_key_is_none(kind: str, write: Write) -> None:
    with pytest.raises(ConfigError, match="of no kind that is taken"):
        authenticator(Issuer(public_key_file=write("key.pem", public_pem(kind))))


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    for member in ("secret_file", "public_key_file", "jwks_file"):
        with pytest.raises(ConfigError, match=f"{member} .* cannot be read: No such file"):
            authenticator(Issuer(**{member: str(tmp_path / "none")}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"jwt_key_file .* cannot be read"):
        authenticator(jwt_key="", jwt_key_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="jwt_key has 5 bytes"):
        authenticator(jwt_key="short")


def test_an_unknown_algorithm_and_one_of_another_kind_stop_the_start(write: Write) -> None:
    file = write("key.pem", public_pem("RSA"))
    with pytest.raises(ConfigError, match="algorithms has 'XX'; legal are"):
        authenticator(Issuer(public_key_file=file, algorithms=("XX",)))
    with pytest.raises(ConfigError, match="is for RS256, RS384, RS512, of which"):
        authenticator(Issuer(public_key_file=file, algorithms=("ES256",)))
    with pytest.raises(ConfigError, match="is a secret, which is for HS256"):
        authenticator(Issuer(secret=SECRET, algorithms=("RS256",)))


async def test_the_secret_may_be_in_a_file_with_a_line_end(write: Write) -> None:
    auth = authenticator(jwt_key="", jwt_key_file=write("key", SECRET.encode() + b"\n"))
    assert await taken(auth, token())


@pytest.mark.parametrize(
    "members",
    [
        {"kty": "oct", "k": "c2VjcmV0"},
        {"use": "enc"},
        {"key_ops": ["sign"]},
        {"alg": "ES256"},
        {"n": "AQAB"},
        {"n": 7},
        {"kid": 7},
        {"alg": ["RS256"]},
        {"alg": {}},
        {"key_ops": None},
        {"key_ops": 7},
        {"e": "A" * 8 + "BAQAAAAAAAAAAAAAAAAAB"},
        {"n": "_" * 1400},
    ],
)
def test_what_cannot_be_used_of_a_key_set_is_passed_over(members: dict[str, object]) -> None:
    keys = [jwk("RSA", kid="good"), jwk("RSA 2", kid="bent") | members, "no key", 7]
    (key,) = parse_key_set(json.dumps({"keys": keys}).encode())
    assert key.kid == "good"


@pytest.mark.parametrize("kind", ["RSA 2", "P-256", "Ed25519"])
@pytest.mark.parametrize("members", [{"alg": []}, {"alg": {}}, {"key_ops": 7}, {"key_ops": None}])
def test_a_key_of_any_kind_may_be_bent(kind: str, members: dict[str, object]) -> None:
    keys = [jwk("RSA", kid="good"), jwk(kind, kid="bent") | members]
    (key,) = parse_key_set(json.dumps({"keys": keys}).encode())
    assert key.kid == "good"


def test_a_private_key_in_a_key_set_is_not_even_read() -> None:
    """To find the primes that it leaves out would take hours, and hold everybody up."""
    number = "_" * 40_000
    keys = [jwk("RSA", kid="good"), {"kty": "RSA", "n": number, "e": "AQAB", "d": number}]
    started = time.monotonic()
    (key,) = parse_key_set(json.dumps({"keys": keys}).encode())
    assert key.kid == "good"
    assert time.monotonic() - started < 1


def test_of_a_key_set_no_more_is_looked_at_than_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def spy(*told: Any) -> jwt.PyJWK:
        read.append(told)
        return jwt.PyJWK(*told)

    monkeypatch.setattr("gateway.keys.PyJWK", spy)
    many = {"keys": [jwk("P-256", kid=str(n)) for n in range(2 * MAX_KEYS)]}
    assert len(parse_key_set(json.dumps(many).encode())) == len(read) == MAX_KEYS


def test_a_key_set_is_bounded() -> None:
    keys = {"keys": [jwk("RSA", kid=str(n)) for n in range(MAX_KEYS + 1)]}
    assert len(parse_key_set(json.dumps(keys).encode())) == MAX_KEYS
    with pytest.raises(ConfigError, match="at most"):
        parse_key_set(b" " * (MAX_KEY_FILE_BYTES + 1))


# --- what is remembered ---------------------------------------------------------------------------


async def test_a_token_is_verified_once_and_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_ms = NOW_MS
    auth = authenticator(now_ms=lambda: now_ms)
    signed = token(exp=NOW + 10)
    identity = await taken(auth, signed)
    monkeypatch.setattr(jws, "is_signed_by", lambda *_: pytest.fail("verified again"))
    assert await taken(auth, signed) is identity
    now_ms += 9_999
    assert await taken(auth, signed) is identity
    now_ms += 1
    assert "expired" in await refused(auth, signed)


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_module, "REMEMBERED", 3)
    auth = authenticator()
    first = await taken(auth, token("0"))
    for user in "123":
        await taken(auth, token(user))
    assert len(auth._remembered) == 3
    assert await taken(auth, token("0")) is not first


# --- API keys and nobody --------------------------------------------------------------------------

API_KEY = "sgk_" + "k" * 43
KEYS = (
    ApiKey("ingest", hashlib.sha256(API_KEY.encode()).hexdigest(), ("news.**",), 10.0),
    ApiKey("ops", hashlib.sha256(b"sgk_ops").hexdigest(), (), None, admin=True),
)


async def test_an_api_key_has_a_name_patterns_and_a_rate() -> None:
    auth = authenticator(jwt_key="", api_keys=KEYS)
    identity = await taken(auth, API_KEY)
    assert (identity.publisher, identity.publish_rate, identity.user) == ("key:ingest", 10.0, None)
    assert identity.may_publish("news.a")
    assert not identity.may_publish("other")
    assert not identity.may_subscribe("news.a")
    assert identity.expires_ms is None
    assert (await taken(auth, "sgk_ops")).may_administer()
    assert "not known" in await refused(auth, API_KEY + "k")
    await refused(auth, token())


def test_a_node_with_any_key_is_not_open() -> None:
    for auth in (authenticator(), authenticator(jwt_key="", api_keys=KEYS)):
        assert not auth.is_open
        with pytest.raises(Unauthorized) as caught:
            auth.anonymous()
        assert not caught.value.bad_token
    open_ = Authenticator(Config(), now_ms=lambda: NOW_MS)
    assert open_.is_open
    assert open_.anonymous().may_administer()


def test_what_is_public_is_open_to_nobody_in_particular_where_that_is_allowed() -> None:
    rules = (
        ChannelRule("open.secret", Policy.DROP, 1, 1, 1.0),
        ChannelRule("open.**", Policy.DROP, 1, 1, 1.0, public=True),
    )
    auth = authenticator(anonymous=True, public_channels="news, ticker.*", channels=rules)
    assert auth.anonymous() is NOBODY
    names = ("news", "ticker.a", "ticker.a.b", "open.a", "open.secret", "global", "user:u", "x")
    allowed = [name for name in names if auth.may_subscribe(NOBODY, name)]
    assert allowed == ["news", "ticker.a", "open.a"]
    assert not NOBODY.may_publish("news")
    shut = authenticator(public_channels="news", channels=rules)
    assert not shut.may_subscribe(NOBODY, "news")


def test_the_memory_of_public_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_module, "NAMES_REMEMBERED", 10)
    auth = authenticator(anonymous=True, public_channels="**")
    for n in range(100):
        assert auth.may_subscribe(NOBODY, f"a{n}")
    assert len(auth._is_public) <= 10
