"""Who may do what, on the wire: one table of credentials and routes through front and edge."""

import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from running import ACCEPT, Gateway, Response, Wire, joined, request, running
from test_auth import API_KEY, KEYS
from tokens import SECRET, bearer, seconds, token

from gateway.api import admin
from gateway.api.request import Request
from gateway.config import Config
from gateway.identity import Identity
from gateway.log_lines import LogfmtFormatter
from gateway.node import Node
from gateway.position import ZERO, Position

VERSIONS = ("1.1", "1.0")

JSON = b"Content-Type: application/json\r\n"
NDJSON = b"Content-Type: application/x-ndjson\r\n"

USER = token("u", subscribe=["news", "room.*"], publish=["news", "room.*"], jti="of u")
OTHER = token("v", subscribe=["**"], publish=["**"])
NAMELESS = token(None, subscribe=["**"])
ADMIN = token("root", admin=True)
EXPIRED = token("u", exp=1)
FORGED = token("u", key="another secret of more than thirty-two bytes")


@asynccontextmanager
async def keyed(**settings: object) -> AsyncIterator[Gateway]:
    async with running(**({"jwt_key": SECRET, "api_keys": KEYS} | settings)) as gateway:  # type: ignore[arg-type]
        yield gateway


def raw(method: str, target: str, credential: str, version: str = "1.1", body: str = "") -> bytes:
    headers = [bearer(credential)] if credential else []
    content = body.encode() if body or method in ("POST", "PUT") else None
    return request(method, target, *headers, body=content, version=version)


def assert_refused(response: Response, status: int, says: str) -> None:
    assert response.status == status, response
    assert response.header("content-type") == "application/problem+json"
    assert says in response.detail
    challenge = response.header("www-authenticate")
    assert (challenge is not None) == (status == 401)


@dataclass
class Case:
    method: str
    target: str
    credential: str
    status: int
    says: str = ""


ACCESS = {
    # streams
    "a granted channel": Case("GET", "/events/news", USER, 200),
    "granted channels": Case("GET", "/events?channels=news,room.1", USER, 200),
    "nothing but the user's own": Case("GET", "/events/global", USER, 200),
    "a channel that is not granted": Case("GET", "/events/x", USER, 403, "The channel x is not"),
    "one of several": Case("GET", "/events?channels=news,x,room.1", USER, 403, "The channel x"),
    "somebody's user channel": Case("GET", "/events/user:v", OTHER, 400, "reserved"),
    "his own name said twice": Case("GET", "/events/news?user=u", USER, 200),
    "another user's name": Case("GET", "/events/news?user=v", USER, 403, "leave it out"),
    "no credentials": Case("GET", "/events/news", "", 401, "a token is needed"),
    "an expired token": Case("GET", "/events/news", EXPIRED, 401, "expired"),
    "a forged token": Case("GET", "/events/news", FORGED, 401, "no key that is known"),
    "garbage": Case("GET", "/events/news", "abc", 401, "no JSON Web Token"),
    "an API key cannot subscribe": Case("GET", "/events/news.a", API_KEY, 403, "news.a"),
    "an unknown API key": Case("GET", "/events/news.a", "sgk_x", 401, "not known"),
    # polls
    "a granted poll": Case("GET", "/poll/news?wait=0", USER, 200),
    "a poll that is not granted": Case("GET", "/poll/x?wait=0", USER, 403, "The channel x is not"),
    "a poll of nobody": Case("GET", "/poll/news?wait=0", "", 401, "a token is needed"),
    # publishing
    "a granted publish": Case("POST", "/publish/news", USER, 202),
    "a granted publish by key": Case("POST", "/publish/news.a", API_KEY, 202),
    "a publish that is not granted": Case("POST", "/publish/x", USER, 403, "Publishing to x is"),
    "a key's publish that is not": Case("POST", "/publish/x", API_KEY, 403, "Publishing to x is"),
    "a publish of nobody": Case("POST", "/publish/news", "", 401, "a token is needed"),
    "an expired publish": Case("POST", "/publish/news", EXPIRED, 401, "expired"),
    # administration
    "stats of an admin": Case("GET", "/stats", ADMIN, 200),
    "stats by an admin's key": Case("GET", "/stats", "sgk_ops", 200),
    "stats of a user": Case("GET", "/stats", USER, 403, "gateway.admin"),
    "stats of a key": Case("GET", "/stats", API_KEY, 403, "gateway.admin"),
    "stats of nobody": Case("GET", "/stats", "", 401, "a token is needed"),
    "metrics of an admin": Case("GET", "/metrics", ADMIN, 200),
    "metrics of a user": Case("GET", "/metrics", USER, 403, "gateway.admin"),
    "metrics of nobody": Case("GET", "/metrics", "", 401, "a token is needed"),
    "a channel's count": Case("GET", "/channels/news", ADMIN, 200),
    "a channel's count for a user": Case("GET", "/channels/news", USER, 403, "gateway.admin"),
    "a user's end": Case("DELETE", "/users/x", ADMIN, 200),
    "a user's end by himself": Case("DELETE", "/users/u", USER, 403, "gateway.admin"),
    "a user's end by nobody": Case("DELETE", "/users/u", "", 401, "a token is needed"),
    "a revocation": Case("DELETE", "/tokens/1", ADMIN, 200),
    "a revocation by a user": Case("DELETE", "/tokens/1", USER, 403, "gateway.admin"),
    "a revocation by nobody": Case("DELETE", "/tokens/1", "", 401, "a token is needed"),
    "a client of nobody's": Case("DELETE", "/clients/x", "", 401, "a token is needed"),
    "a client that is not there": Case("DELETE", "/clients/x", USER, 404, "no client"),
    "a client by a nameless token": Case("DELETE", "/clients/x", NAMELESS, 403, "admin"),
    "a client by a key": Case("DELETE", "/clients/x", API_KEY, 403, "admin"),
    "a token of nobody's": Case("PUT", "/clients/x/token", "", 401, "a token is needed"),
    "an API key as token": Case("PUT", "/clients/x/token", API_KEY, 400, "a request with that"),
    "a nameless one": Case("PUT", "/clients/x/token", NAMELESS, 400, "a request with that"),
    # what is open
    "health": Case("GET", "/healthz", "", 200),
    "readiness": Case("GET", "/readyz", "", 200),
    "health with garbage": Case("GET", "/healthz", "abc", 200),
}


@pytest.mark.parametrize("version", VERSIONS)
async def test_who_may_do_what(version: str) -> None:
    async with keyed() as gateway:
        for name, case in ACCESS.items():
            before = gateway.node.bus.statistics().published, gateway.node.hub.statistics().opened
            sent = raw(case.method, case.target, case.credential, version)
            response = await gateway.ask(sent)
            assert response.status == case.status, (name, response)
            if case.status >= 400:
                assert_refused(response, case.status, case.says)
                now = gateway.node.bus.statistics().published, gateway.node.hub.statistics().opened
                assert now == before, name
                assert gateway.node.refused[str(case.status)] > 0


async def test_health_and_readiness_carry_no_counts() -> None:
    async with keyed() as gateway:
        await (await gateway.open("/events/news", bearer(USER))).opened()
        for target in ("/healthz", "/readyz"):
            assert set((await gateway.ask(request("GET", target))).json) == {"status"}


async def test_no_credentials_are_told_from_bad_ones() -> None:
    """RFC 6750 section 3.1: without any, the challenge names no error."""
    async with keyed() as gateway:
        for credential, challenge in (
            ("", 'Bearer realm="gateway"'),
            ("abc", 'Bearer realm="gateway", error="invalid_token"'),
        ):
            response = await gateway.ask(raw("GET", "/events/news", credential))
            assert response.header("www-authenticate") == challenge


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_refusal_of_who_somebody_is_ends_an_event_source(version: str) -> None:
    """It is not to be retried, so it has no 200."""
    async with keyed() as gateway:
        for credential, status in (("", 401), (EXPIRED, 401)):
            headers = (ACCEPT, *([bearer(credential)] if credential else []))
            sent = request("GET", "/events/news", *headers, version=version)
            assert (await gateway.ask(sent)).status == status


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_event_is_allowed_or_not_by_itself(version: str) -> None:
    events = [
        {"channel": "news", "data": "1"},
        {"channel": "x", "data": "2"},
        {"channels": ["room.1", "x"], "data": "3"},
        {"channels": ["room.1", "news"], "data": "4"},
        {"user": "u", "data": "5"},
        {"broadcast": True, "data": "6"},
    ]
    async with keyed() as gateway:
        for credential, allowed in ((USER, [1, 4]), (OTHER, [1, 2, 3, 4]), (ADMIN, [5, 6])):
            sent = request(
                "POST",
                "/publish",
                *(NDJSON, bearer(credential)),
                body=joined(events),
                version=version,
            )
            answers = (await gateway.ask(sent)).body.splitlines()
            taken = [n for n, line in enumerate(answers, 1) if b'"id"' in line]
            assert taken == allowed
            assert all(b'"status":403' in line for line in answers if b'"id"' not in line)
        assert gateway.node.bus.statistics().published == 2 + 4 + 2
        sent = request("POST", "/publish", JSON, bearer(USER), body=b'{"user":"u","data":"x"}')
        assert_refused(await gateway.ask(sent), 403, "Publishing to user:u is not granted")


# --- how it comes ---------------------------------------------------------------------------------


def cookie(value: str, name: str = "gateway_token") -> bytes:
    return f"Cookie: a=b; {name}={value}; c=d\r\n".encode()


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_token_comes_as_bearer_or_as_cookie_or_in_the_query(version: str) -> None:
    async with keyed() as gateway:
        for target, headers, user in (
            ("/events/news", [bearer(USER)], "u"),
            ("/events/news", [cookie(USER)], "u"),
            (f"/events/news?token={USER}", [], "u"),
            ("/events/news", [bearer(OTHER), cookie(USER)], "v"),
            (f"/events/news?token={USER}", [cookie(OTHER)], "v"),
            (f"/events/news?token={USER}", [bearer(OTHER), cookie("abc")], "v"),
            ("/events/news", [b"authorization: bEARER  " + USER.encode() + b" \r\n"], "u"),
            ("/events/news", [cookie(f'"{USER}"')], "u"),
        ):
            wire = await gateway.open(target, *headers, version=version)
            assert f"user:{user}" in (await wire.opened())["channels"]  # type: ignore[operator]
            await wire.aclose()


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_first_that_is_there_counts(version: str) -> None:
    async with keyed() as gateway:
        for target, headers, says in (
            (f"/events/news?token={USER}", [bearer("abc")], "no JSON Web Token"),
            (f"/events/news?token={USER}", [cookie("abc")], "no JSON Web Token"),
            ("/events/news", [b"Authorization: Basic dTpw\r\n", cookie(USER)], "only scheme"),
            ("/events/news", [b"Authorization: Bearer\r\n"], "only scheme"),
            ("/events/news", [cookie(USER, "other")], "a token is needed"),
            ("/events/news?token=", [], "a token is needed"),
            (f"/events/news?token={API_KEY}", [], "in no other way"),
            ("/events/news", [cookie(API_KEY)], "in no other way"),
        ):
            sent = request("GET", target, *headers, version=version)
            assert_refused(await gateway.ask(sent), 401, says)


async def test_the_cookie_has_the_name_that_is_set_or_none() -> None:
    async with keyed(token_cookie="session") as gateway:
        sent = request("GET", "/poll/news?wait=0", cookie(USER, "session"))
        assert (await gateway.ask(sent)).status == 200
    async with keyed(token_cookie="") as gateway:
        sent = request("GET", "/poll/news?wait=0", cookie(USER, ""))
        assert (await gateway.ask(sent)).status == 401


@pytest.mark.parametrize("version", VERSIONS)
async def test_no_token_is_ever_logged(version: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with keyed() as gateway:
        for credential in (USER, EXPIRED, FORGED, API_KEY, "sgk_wrong"):
            for target in (
                "/events/news",
                "/publish/news",
                "/stats",
                "/nowhere",
                "/clients/x/token",
            ):
                for method in ("GET", "POST", "PUT", "DELETE"):
                    in_query = request(method, f"{target}?token={credential}", version=version)
                    in_header = raw(method, target, credential, version)
                    for sent in (in_query, in_header):
                        wire = await gateway.connect()
                        await wire.send(sent)
                        response = await wire.response()
                        assert credential.encode() not in response.body
                        await wire.aclose()
    formatter = LogfmtFormatter()
    written = "\n".join(formatter.format(record) for record in caplog.records)
    assert "/events/news" in written, "there is a line for each refusal"
    assert not any(c in written for c in (USER, EXPIRED, FORGED, API_KEY))


# --- those without a token ------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_public_is_open_without_a_token_where_that_is_allowed(version: str) -> None:
    async with keyed(anonymous=True, public_channels="open.*") as gateway:
        wire = await gateway.open("/events/open.1", version=version)
        assert (await wire.opened())["channels"] == ["open.1", "global"]
        for target, status, says in (
            ("/events/news", 401, "news is not public"),
            ("/events?channels=open.1,news", 401, "news is not public"),
            ("/events/open.1?user=u", 403, "leave it out"),
            ("/stats", 401, "administrators"),
        ):
            assert_refused(await gateway.ask(raw("GET", target, "", version)), status, says)
        assert_refused(
            await gateway.ask(raw("POST", "/publish/open.1", "", version)), 401, "Nobody"
        )
        wire = await gateway.open("/events?channels=open.1,news", bearer(USER), version=version)
        assert (await wire.opened())["channels"] == ["open.1", "news", "global", "user:u"]
        assert (await gateway.ask(raw("GET", "/events/open.1", "abc", version))).status == 401


async def test_a_node_without_keys_looks_at_no_token() -> None:
    async with running() as gateway:
        for headers in ((bearer("abc"),), (b"Authorization: Basic x\r\n",), (cookie("abc"),)):
            sent = request("GET", "/poll/news?wait=0&token=abc", *headers)
            assert (await gateway.ask(sent)).status == 200
        for method, target in (("PUT", "/clients/x/token"), ("DELETE", "/tokens/1")):
            assert (await gateway.ask(request(method, target))).status == 400
        answer = await gateway.ask(request("DELETE", "/users/u?revoke=true"))
        assert_refused(answer, 400, "has no keys")


@pytest.mark.parametrize(
    ("bind", "status"), [("127.0.0.1:80", 200), ("[::1]:80", 200), ("0.0.0.0:80", 403)]
)
async def test_an_open_node_tells_its_counts_to_this_machine_alone(bind: str, status: int) -> None:
    node = Node(Config(bind=bind, insecure=True), max_clients=1)
    asked = Request("GET", "/metrics", (), lambda name: None, b"", "192.0.2.1")
    assert (await admin.metrics(node, asked)).status == status
    assert (await admin.open_metrics(node)).status == 200


# --- an open stream -------------------------------------------------------------------------------


async def opened(gateway: Gateway, credential: str, target: str, version: str) -> tuple[Wire, str]:
    wire = await gateway.open(target, bearer(credential), version=version)
    return wire, str((await wire.opened())["clientId"])


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_streams_own_user_changes_it_within_his_grant(version: str) -> None:
    async with keyed() as gateway:
        wire, client = await opened(gateway, USER, "/events/news", version)
        channel = f"/clients/{client}/channels/"
        for method, target, credential, status, says in (
            ("PUT", channel + "room.1", USER, 200, ""),
            ("PUT", channel + "x", USER, 403, "The channel x"),
            ("PUT", channel + "user:v", USER, 400, "reserved"),
            ("PUT", channel + "room.2", OTHER, 403, "somebody else's"),
            ("PUT", channel + "room.2", NAMELESS, 403, "administrators"),
            ("PUT", channel + "room.2", "", 401, "a token is needed"),
            ("DELETE", channel + "room.1", OTHER, 403, "somebody else's"),
            ("DELETE", channel + "room.1", USER, 200, ""),
            ("PUT", channel + "x", ADMIN, 200, ""),
            ("DELETE", f"/clients/{client}", OTHER, 403, "somebody else's"),
            ("DELETE", f"/clients/{client}", USER, 200, ""),
        ):
            response = await gateway.ask(raw(method, target, credential))
            assert response.status == status, (method, target, response)
            if status >= 400:
                assert_refused(response, status, says)
        [last] = await wire.blocks()
        assert str(last.id).endswith(".closed")


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_newer_token_takes_away_what_it_does_not_grant(version: str) -> None:
    async with keyed(anonymous=True, public_channels="open") as gateway:
        first = token("u", subscribe=["news", "room.*"], jti="1")
        wire, client = await opened(
            gateway, first, "/events?channels=news,room.1,room.2,open", version
        )
        newer = token("u", subscribe=["room.1", "other"], jti="2", exp=5_000_000_000.5)
        response = await gateway.ask(raw("PUT", f"/clients/{client}/token", newer))
        assert response.status == 200, response
        assert response.json["channels"] == ["room.1", "open", "global", "user:u"]
        assert response.json["expires"] == 5_000_000_000.5
        for channel in ("news", "room.1"):
            await gateway.publish_as(channel, f"to {channel}", token("p", publish=["**"]))
        assert (await wire.event()).data == "to room.1"
        held = gateway.node.hub.members.clients[client].identity
        assert (held.token_id, held.expires_ms) == ("2", 5_000_000_000_500)
        for credential, status, says in (
            (OTHER, 403, "somebody else's"),
            (ADMIN, 403, "somebody else's"),
            (EXPIRED, 401, "expired"),
        ):
            answer = await gateway.ask(raw("PUT", f"/clients/{client}/token", credential))
            assert_refused(answer, status, says)
        assert gateway.node.hub.members.clients[client].identity is held


async def test_a_stream_gets_no_channel_that_its_own_token_does_not_grant() -> None:
    """Else it would have that for longer than any token that grants it."""
    async with keyed() as gateway:
        _, client = await opened(gateway, token("u", subscribe=["a"]), "/events/a", "1.1")
        more = token("u", subscribe=["**"], exp=seconds() + 60)
        channel = f"/clients/{client}/channels/b"
        refusal = await gateway.ask(raw("PUT", channel, more))
        assert_refused(refusal, 403, "by the stream's own token")
        assert (await gateway.ask(raw("PUT", channel, ADMIN))).status == 200
        assert (await gateway.ask(raw("DELETE", channel, more))).status == 200
        assert (await gateway.ask(raw("PUT", f"/clients/{client}/token", more))).status == 200
        assert (await gateway.ask(raw("PUT", channel, more))).status == 200


async def test_a_token_that_comes_while_a_channel_is_added_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with keyed() as gateway:
        _, client = await opened(gateway, USER, "/events/news", "1.1")
        subscribe = gateway.node.bus.subscribe
        narrower = raw("PUT", f"/clients/{client}/token", token("u", subscribe=["news"]))

        async def slowly(channels: Collection[str], after: Position = ZERO) -> Position:
            assert (await gateway.ask(narrower)).status == 200
            return await subscribe(channels, after)

        monkeypatch.setattr(gateway.node.bus, "subscribe", slowly)
        for query in ("", "?since=earliest"):
            refusal = await gateway.ask(
                raw("PUT", f"/clients/{client}/channels/room.1{query}", USER)
            )
            assert_refused(refusal, 403, "by the stream's own token")
            assert not gateway.node.hub.members.clients[client].has("room.1")
            held = gateway.node.hub.members.clients[client]
            assert (await gateway.ask(raw("PUT", f"/clients/{client}/token", USER))).status == 200
            assert held.has("news")


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_older_token_brings_nothing_back(version: str) -> None:
    async with keyed() as gateway:
        now = seconds()
        older = token("u", subscribe=["news", "room.*"], iat=now - 10)
        newer = token("u", subscribe=["news"], iat=now - 5)
        _, client = await opened(gateway, older, "/events?channels=news,room.1", version)
        target = f"/clients/{client}/token"
        for credential in (newer, newer, token("u", subscribe=["news"], iat=now)):
            assert (await gateway.ask(raw("PUT", target, credential))).status == 200
        for credential in (older, newer):
            assert_refused(await gateway.ask(raw("PUT", target, credential)), 403, "newer token")
        assert_refused(
            await gateway.ask(raw("PUT", f"/clients/{client}/channels/room.1", older)),
            403,
            "by the stream's own token",
        )
        unknown = token("u", subscribe=["news"])  # when it was issued
        assert (await gateway.ask(raw("PUT", target, unknown))).status == 200


# --- what is revoked ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_revoked_token_ends_its_streams_for_good_and_opens_no_more(version: str) -> None:
    async with keyed() as gateway:
        wire, client = await opened(gateway, USER, "/events/news", version)
        same_user = token("u", subscribe=["news"], jti="another")
        kept, _ = await opened(gateway, same_user, "/events/news", version)
        answer = await gateway.ask(raw("DELETE", "/tokens/of%20u?exp=4000000000", ADMIN))
        assert (answer.status, answer.json) == (200, {"closed": 1, "durable": False})
        [last] = await wire.blocks()
        assert str(last.id).endswith(".closed")
        for sent in (
            raw("GET", "/events/news", USER, version),
            raw("POST", "/publish/news", USER, version),
            raw("GET", "/poll/news?wait=0", USER, version),
            raw("PUT", f"/clients/{client}/token", USER),
        ):
            assert_refused(await gateway.ask(sent), 401, "revoked")
        await gateway.publish_as("news", "x", OTHER)
        assert (await kept.event()).data == "x"
        assert gateway.node.hub.statistics().closed["revoked"] == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_all_tokens_of_a_user_so_far_are_revoked_and_later_ones_are_good(
    version: str,
) -> None:
    async with keyed() as gateway:
        now = gateway.node.now_ms() // 1000
        leeway_ms = int(Config().jwt_leeway * 1000)
        without_iat = token("u", subscribe=["news"])
        earlier = token("u", subscribe=["news"], iat=now - 10)
        streams = [
            await opened(gateway, credential, "/events/news", version)
            for credential in (without_iat, earlier)
        ]
        other, _ = await opened(gateway, OTHER, "/events/news", version)
        answer = await gateway.ask(raw("DELETE", "/users/u?revoke=true", ADMIN))
        assert (answer.status, answer.json["closed"]) == (200, 2)
        for wire, _ in streams:
            [last] = await wire.blocks()
            assert str(last.id).endswith(".closed")
        for credential in (without_iat, earlier):
            refusal = await gateway.ask(raw("GET", "/events/news", credential, version))
            assert_refused(refusal, 401, "revoked")
        await gateway.publish_as("news", "x", OTHER)
        assert (await other.event()).data == "x"
        until_ms = gateway.node.now_ms() + leeway_ms
        assert gateway.node.revoked.has(Identity(user="u", expires_ms=1, issued_ms=until_ms - 5000))
        assert not gateway.node.revoked.has(
            Identity(user="u", expires_ms=1, issued_ms=until_ms + 1)
        )


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/users/u?revoke=yes", "revoke is true or false"),
        ("/users/u?exp=soon", "exp is a whole number"),
        ("/users/u?revoke=true&exp=soon", "exp is a whole number"),
        ("/users/u?exp=-58800", "exp is a whole number"),
        ("/tokens/1?exp=soon", "exp is a whole number"),
        ("/tokens/1?exp=-1", "exp is a whole number"),
        ("/tokens/1?exp=1234567890123", "exp is a whole number"),
        ("/tokens/1?exp=3600", "exp is past: 3600 is no duration"),
        ("/users/u?revoke=true&exp=3600", "exp is past: 3600 is no duration"),
        ("/tokens/" + "x" * 2000, "1 to 1024 bytes"),
        ("/tokens/", "1 to 1024 bytes"),
    ],
)
async def test_a_revocation_that_cannot_be_understood_is_400(target: str, says: str) -> None:
    async with keyed() as gateway:
        assert_refused(await gateway.ask(raw("DELETE", target, ADMIN)), 400, says)
        assert len(gateway.node.revoked) == 0


async def test_a_users_revocation_is_forgotten_when_it_is_told_to_be() -> None:
    """Else there is no room for others some day."""
    async with keyed() as gateway:
        answer = await gateway.ask(raw("DELETE", "/users/u?revoke=true&exp=4000000000", ADMIN))
        assert answer.status == 200
        [kept] = await gateway.node.ledger.load()
        assert (kept.id, kept.until_ms) == ("u", 4_000_000_000_000)


async def test_who_has_no_token_is_asked_for_one_before_a_stream_is_given_it() -> None:
    async with keyed(anonymous=True, public_channels="open") as gateway:
        refusal = await gateway.ask(raw("PUT", "/clients/x/token", ""))
        assert_refused(refusal, 401, "a token is needed")


async def test_an_api_key_and_an_administrator_are_not_touched_by_a_users_revocation() -> None:
    async with keyed() as gateway:
        await gateway.ask(raw("DELETE", "/users/u?revoke=true", ADMIN))
        assert (await gateway.ask(raw("GET", "/stats", ADMIN))).status == 200
        assert (await gateway.ask(raw("POST", "/publish/news.a", API_KEY))).status == 202
