"""Whose pages may act: a table of requests, and both ways to publish and administer on the wire."""

from dataclasses import dataclass

import pytest
from running import Gateway, request, running
from tokens import SECRET, bearer, token

from gateway.api.csrf import check_origin
from gateway.errors import Forbidden
from gateway.origins import parse_origins

ORIGINS = parse_origins(["https://app.example", "https://*.app.example", "*"])

OWN = b"http://127.0.0.1:8080"
FOREIGN = b"https://evil.example"
ALLOWED = b"https://app.example"


@dataclass
class Case:
    """One request; ``says`` is part of the refusal, None where there is none."""

    says: str | None
    origin: bytes | None = None
    host: bytes | None = b"127.0.0.1:8080"
    site: bytes | None = None
    method: str = "POST"


OPEN = {
    "a program": Case(None),
    "a program without Host": Case(None, host=None),
    "a page of another origin": Case("cors_origins does not name", FOREIGN),
    "a page of another origin that deletes": Case("cors_origins", FOREIGN, method="DELETE"),
    "a page of another origin that puts": Case("cors_origins", FOREIGN, method="PUT"),
    "a method that nobody knows": Case("cors_origins", FOREIGN, method="PATCH"),
    "a page of another origin that reads": Case(None, FOREIGN, method="GET"),
    "a preflight": Case(None, FOREIGN, method="OPTIONS"),
    "a sandboxed page": Case("Pages of null", b"null"),
    "no origin at all": Case("cors_origins does not name", b""),
    "a page of an allowed origin": Case(None, ALLOWED, site=b"cross-site"),
    "a page below it": Case(None, b"https://a.b.app.example", site=b"same-site"),
    "a page that only ends like it": Case("cors_origins", b"https://evil.example/.app.example"),
    "the demo page": Case(None, OWN, site=b"same-origin"),
    "the demo page in an old browser": Case(None, OWN),
    "the demo page by name": Case(None, b"http://localhost:8080", b"localhost:8080"),
    "the demo page by IPv6": Case(None, b"http://[::1]:8080", b"[::1]:8080"),
    "a page of another port": Case("cors_origins", b"http://127.0.0.1:3000"),
    "a page of the same port elsewhere": Case("cors_origins", b"http://localhost:8080"),
    "a name that was pointed at this machine": Case(
        "the name in Host proves nothing", b"http://evil.example:8080", b"evil.example:8080"
    ),
    "a name that begins like this machine's": Case(
        "proves nothing", b"http://localhost.evil.example", b"localhost.evil.example"
    ),
    "an address that another network had too": Case(
        "proves nothing", b"http://192.168.1.5:8080", b"192.168.1.5:8080"
    ),
    "a page whose Host is missing": Case("cors_origins", OWN, None),
    "another site without Origin": Case("Pages of other sites", site=b"cross-site"),
    "a sibling site without Origin": Case("Pages of other sites", site=b"same-site"),
    "what a person typed": Case(None, site=b"none"),
    "an own origin that the browser refutes": Case("cors_origins", OWN, site=b"cross-site"),
    "a witness that is nobody": Case("Pages of other sites", site=b"x"),
}

COOKIE = {
    "a program": Case("Authorization: Bearer", host=b"gw.example"),
    "a program that reads": Case(None, host=b"gw.example", method="GET"),
    "the own origin": Case(None, b"https://gw.example", b"gw.example", b"same-origin"),
    "the own origin behind a balancer": Case(None, b"https://gw.example", b"gw.example:443"),
    "the own origin by Sec-Fetch-Site alone": Case(
        "Authorization: Bearer", host=b"gw.example", site=b"same-origin"
    ),
    "the own name without TLS": Case(
        "cors_origins", b"http://gw.example", b"gw.example", b"cross-site"
    ),
    "an allowed origin": Case(None, ALLOWED, b"gw.example", b"cross-site"),
    "an allowed origin that reads": Case(None, ALLOWED, b"gw.example", b"cross-site", "GET"),
    "another origin": Case("cors_origins", FOREIGN, b"gw.example"),
    "another origin that reads": Case("cors_origins", FOREIGN, b"gw.example", method="GET"),
    "a sandboxed page that reads": Case("cors_origins", b"null", b"gw.example", method="GET"),
    "an image of another site": Case(
        "Pages of other sites", host=b"gw.example", site=b"cross-site", method="GET"
    ),
    "a link that was typed": Case(None, host=b"gw.example", site=b"none", method="GET"),
}


def says(case: Case, *, by_cookie: bool, is_open: bool) -> str | None:
    try:
        check_origin(
            ORIGINS,
            method=case.method,
            origin=case.origin,
            host=case.host,
            site=case.site,
            by_cookie=by_cookie,
            is_open=is_open,
        )
    except Forbidden as error:
        return error.detail
    return None


def agrees(said: str | None, case: Case) -> bool:
    return said is None if case.says is None else said is not None and case.says in said


@pytest.mark.parametrize("case", OPEN.values(), ids=OPEN)
def test_who_may_change_something_on_a_node_without_keys(case: Case) -> None:
    assert agrees(said := says(case, by_cookie=False, is_open=True), case), said


@pytest.mark.parametrize("case", COOKIE.values(), ids=COOKIE)
def test_what_a_cookie_proves(case: Case) -> None:
    assert agrees(said := says(case, by_cookie=True, is_open=False), case), said


@pytest.mark.parametrize("case", [*OPEN.values(), *COOKIE.values()], ids=[*OPEN, *COOKIE])
def test_a_token_or_key_that_was_sent_on_purpose_is_asked_nothing(case: Case) -> None:
    assert says(case, by_cookie=False, is_open=False) is None


def test_a_refusal_shows_only_the_beginning_of_an_origin() -> None:
    said = says(Case(None, b"https://" + b"a" * 10_000), by_cookie=False, is_open=True)
    assert said is not None
    assert len(said) < 300


# --- on the wire ---------------------------------------------------------------------------------

TEXT = b"Content-Type: text/plain\r\n"
JSON = b"Content-Type: application/json\r\n"
ACTS = {
    "publishing": ("POST", "/publish/a"),
    "publishing JSON": ("POST", "/publish"),
    "adding a channel": ("PUT", "/clients/{client}/channels/b"),
    "removing a channel": ("DELETE", "/clients/{client}/channels/a"),
    "ending a stream": ("DELETE", "/clients/{client}"),
    "ending a user's streams": ("DELETE", "/users/u"),
    "beginning a token stream": ("POST", "/streams"),
    "feeding one": ("POST", "/streams/x/events"),
    "stopping one": ("DELETE", "/streams/x"),
    "calling a model": ("POST", "/relay/demo/chat/completions"),
    "what is not there": ("DELETE", "/nothing"),
}


async def opened(gateway: Gateway) -> str:
    """The id of a client of ``a``, whose user is ``u``."""
    wire = await gateway.open("/events/a?user=u")
    return str((await wire.opened())["clientId"])


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
async def test_a_page_of_another_origin_changes_nothing(act: tuple[str, str], version: str) -> None:
    method, target = act
    async with running(cors_origins="*, https://app.example") as gateway:
        target = target.format(client=await opened(gateway))
        before = gateway.node.bus.statistics().published, gateway.node.hub.statistics()
        for witness in (b"Origin: https://evil.example\r\n", b"Sec-Fetch-Site: cross-site\r\n"):
            raw = request(method, target, TEXT, witness, body=b"x", version=version)
            response = await gateway.ask(raw)
            assert response.status == 403
            assert "cors_origins" in response.detail
        after = gateway.node.bus.statistics().published, gateway.node.hub.statistics()
        assert after == before
        assert gateway.node.refused == {"403": 2}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_pages_of_allowed_origins_and_programs_publish_and_administer(version: str) -> None:
    async with running(cors_origins="https://*.app.example") as gateway:
        here = f"Host: localhost:{gateway.port}\r\nOrigin: http://localhost:{gateway.port}\r\n"
        for headers in (b"", b"Origin: https://a.app.example\r\n", here.encode()):
            client = await opened(gateway)
            for method, target, status in (
                ("POST", "/publish/a", 202),
                ("PUT", f"/clients/{client}/channels/b", 200),
                ("DELETE", f"/clients/{client}", 200),
            ):
                raw = request(method, target, TEXT, headers, body=b"x", version=version)
                if headers.startswith(b"Host:"):
                    raw = raw.replace(b"Host: gateway.test\r\n", b"")
                assert (await gateway.ask(raw)).status == status, raw


EVERYTHING = token("u", subscribe=["**"], publish=["**"], admin=True)
COOKIE_LINE = f"Cookie: other=1; gateway_token={EVERYTHING}\r\n".encode()

BY_COOKIE = {
    **{name: (*act, 403, 403) for name, act in ACTS.items() if name != "what is not there"},
    "counts": ("GET", "/stats", 403, 200),
    "metrics": ("GET", "/metrics", 403, 200),
    "a channel": ("GET", "/channels/a", 403, 200),
    "a stream": ("GET", "/events/a", 403, 200),
    "a poll": ("GET", "/poll/a?wait=0", 403, 200),
    "a token stream": ("GET", "/streams/x", 403, 404),
    "models": ("GET", "/relay/demo/models", 403, 404),
    "another token": ("PUT", "/clients/{client}/token", 403, 403),
    "a revocation": ("DELETE", "/tokens/x", 403, 403),
}
"""Method, target, and status for a page of another origin and for who names none."""


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("act", BY_COOKIE.values(), ids=BY_COOKIE)
async def test_a_cookie_is_not_for_pages_of_other_origins(
    act: tuple[str, str, int, int], version: str
) -> None:
    method, target, of_foreign, of_nobody = act
    origins = "*, https://app.example"
    async with running(cors_origins=origins, jwt_key=SECRET) as gateway:
        wire = await gateway.open("/events/a", bearer(EVERYTHING))
        target = target.format(client=(await wire.opened())["clientId"])
        headers = (COOKIE_LINE, TEXT if target == "/publish/a" else JSON)
        body = b'{"channel": "a", "data": 1}' if method != "GET" else None
        statuses = []
        for origin in (b"Origin: https://evil.example\r\n", b"", b"Origin: null\r\n"):
            raw = request(method, target, *headers, origin, body=body, version=version)
            response = await gateway.ask(raw)
            statuses.append(response.status)
            if response.status == 403:
                assert "Origin" in response.detail or "cors_origins" in response.detail
        assert statuses == [of_foreign, of_nobody, of_foreign]
        assert gateway.node.bus.statistics().published == 0
        for allowed in (b"Origin: https://app.example\r\n", b"Origin: https://gateway.test\r\n"):
            raw = request(method, target, *headers, allowed, body=body, version=version)
            response = await gateway.ask(raw)
            # Its client may be gone by now, and the body is no token stream's.
            assert response.status in (200, 202, 400, 404), response


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_token_or_key_is_for_whoever_sends_it(version: str) -> None:
    """A page that has it may use it, wherever it is from; a cookie beside it changes nothing."""
    async with running(jwt_key=SECRET) as gateway:
        foreign = b"Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n"
        for target, *headers in (
            ("/publish/a", bearer(EVERYTHING)),
            ("/publish/a", bearer(EVERYTHING), COOKIE_LINE),
            (f"/publish/a?token={EVERYTHING}",),
        ):
            raw = request("POST", target, foreign, *headers, body=b"x", version=version)
            assert (await gateway.ask(raw)).status == 202
