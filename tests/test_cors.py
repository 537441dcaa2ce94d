"""What is in every answer for the sake of browsers: strict headers and, where origins are named,
what their pages may read. One table over all routes, through front and edge."""

import pytest
from running import ACCEPT, Gateway, Response, request, running
from tokens import SECRET

from gateway.api.cors import ALLOWED_HEADERS, EXPOSED_HEADERS
from gateway.errors import Unavailable

VERSIONS = ("1.1", "1.0")

APP = "https://app.example"
ALLOWED = f"Origin: {APP}\r\n".encode()
FOREIGN = b"Origin: https://evil.example\r\n"
JSON = b"Content-Type: application/json\r\n"
NDJSON = b"Content-Type: application/x-ndjson\r\n"
STREAM = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

ROUTES = {
    "a stream": request("GET", "/events/a", ACCEPT),
    "a stream that is refused": request("GET", "/events"),
    "a stream that has ended": request("GET", "/events/a", b"Last-Event-ID: 1-1.closed\r\n"),
    "a stream of a broken target": request("GET", "/events/%FF"),
    "HEAD of a stream": request("HEAD", "/events/a"),
    "a stream by POST": request("POST", "/events", ACCEPT, JSON, body=b'{"channels": ["a"]}'),
    "a stream by POST that is refused": request("POST", "/events", body=b"{}"),
    "a poll": request("GET", "/poll/a?wait=0"),
    "a poll that is refused": request("GET", "/poll/a?wait=x"),
    "publishing": request("POST", "/publish/a", body=b"x"),
    "publishing lines": request("POST", "/publish", NDJSON, body=b""),
    "a publish that is refused": request("POST", "/publish", body=b"x"),
    "a publish with the wrong method": request("GET", "/publish"),
    "adding a channel": request("PUT", "/clients/x/channels/a"),
    "removing a channel": request("DELETE", "/clients/x/channels/a"),
    "ending a stream": request("DELETE", "/clients/x"),
    "ending a user's streams": request("DELETE", "/users/u"),
    "a channel": request("GET", "/channels/a"),
    "an illegal channel": request("GET", "/channels/a..b"),
    "counts": request("GET", "/stats"),
    "metrics": request("GET", "/metrics"),
    "health": request("GET", "/healthz"),
    "readiness": request("GET", "/readyz"),
    "the demo page": request("GET", "/"),
    "HEAD of the demo page": request("HEAD", "/"),
    "the chat page": request("GET", "/chat"),
    "the page for operators": request("GET", "/ops"),
    "what is not there": request("GET", "/nothing"),
    "a path of two slashes": request("GET", "//events"),
    "a method that is not there": request("PATCH", "/stats"),
    "a large body": request("PUT", "/stats", body=b"x" * 3000),
    "OPTIONS": request("OPTIONS", "/publish"),
    "what cannot be read": b"GET /events/a HTTP/1.1\r\nHost: x\r\nBad Name: x\r\n\r\n",
}

OPEN = ("health", "readiness", "OPTIONS")
"""Beside pages, what needs no token anywhere."""


def with_header(raw: bytes, header: bytes, version: str = "1.1") -> bytes:
    line, rest = raw.split(b" HTTP/1.1\r\n", 1)
    return b"%b HTTP/%b\r\n%b%b" % (line, version.encode(), header, rest)


async def ask(gateway: Gateway, raw: bytes) -> Response:
    return await gateway.ask(raw, head_only=raw.startswith(b"HEAD"))


def cors(response: Response) -> dict[str, str]:
    return {
        name.removeprefix("access-control-"): value
        for name, value in response.headers
        if name.startswith("access-control-")
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("route", ROUTES)
async def test_every_answer_is_strict(route: str, version: str) -> None:
    async with running(max_body_bytes=2000, max_event_bytes=2000) as gateway:
        response = await ask(gateway, with_header(ROUTES[route], b"", version))
        names = [name for name, _ in response.headers]
        assert len(names) == len(set(names)), names
        assert "server" not in names
        assert response.header("x-content-type-options") == "nosniff"
        assert response.header("referrer-policy") == "no-referrer"
        policy = str(response.header("content-security-policy"))
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert ("script-src" in policy) is (" page" in route)
        assert "unsafe" not in policy
        if response.header("content-type") == STREAM["content-type"]:
            assert {name: response.header(name) for name in STREAM} == STREAM
        elif " page" in route:
            assert response.header("cache-control") == "no-cache"
        elif not route.startswith("publishing"):  # a POST is not stored anyway
            assert response.header("cache-control") == "no-store"
        assert cors(response) == {}
        assert response.header("vary") is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("route", ROUTES)
async def test_every_answer_tells_an_allowed_page_that_it_may_read_it(
    route: str, version: str
) -> None:
    origins = f"{APP}, https://*.b.example"
    async with running(cors_origins=origins, max_body_bytes=2000, max_event_bytes=2000) as gateway:
        told = {}
        for origin in (ALLOWED, b"Origin: https://a.b.example\r\n", FOREIGN, b""):
            response = await ask(gateway, with_header(ROUTES[route], origin, version))
            assert response.header("vary") == "Origin"
            told[origin] = cors(response)
        assert told.pop(b"") == {}
        assert told.pop(FOREIGN) == {}
        for header, found in told.items():
            assert found["allow-origin"] == header.decode().split()[1]
            assert found["allow-credentials"] == "true"
            assert found["expose-headers"] == EXPOSED_HEADERS.decode()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("route", ROUTES)
async def test_whoever_must_say_who_it_is_is_told_so_strictly_and_readably(
    route: str, version: str
) -> None:
    async with running(
        cors_origins=APP, jwt_key=SECRET, max_body_bytes=2000, max_event_bytes=2000
    ) as gateway:
        response = await ask(gateway, with_header(ROUTES[route], ALLOWED, version))
        assert response.header("x-content-type-options") == "nosniff"
        assert response.header("vary") == "Origin"
        if response.status == 401:
            assert response.header("www-authenticate")
            assert response.header("cache-control") == "no-store"
            assert cors(response)["allow-origin"] == APP
        else:
            assert not 200 <= response.status < 300 or " page" in route or route in OPEN


@pytest.mark.parametrize("version", VERSIONS)
async def test_everybody_may_read_without_credentials_and_those_named_with(version: str) -> None:
    async with running(cors_origins=f"*, {APP}") as gateway:
        for target in ("/events/a", "/poll/a?wait=0", "/stats"):
            raw = request("GET", target)
            for origin in (FOREIGN, b"Origin: null\r\n"):
                found = cors(await ask(gateway, with_header(raw, origin, version)))
                assert found["allow-origin"] == "*"
                assert "allow-credentials" not in found
            found = cors(await ask(gateway, with_header(raw, ALLOWED, version)))
            assert (found["allow-origin"], found["allow-credentials"]) == (APP, "true")


@pytest.mark.parametrize("version", VERSIONS)
async def test_who_is_turned_away_can_read_that_too(version: str) -> None:
    async with running(cors_origins=APP, max_clients=0) as gateway:
        for accept, status in ((ACCEPT, 200), (b"", 503)):
            raw = request("GET", "/events/a", accept, ALLOWED, version=version)
            response = await gateway.ask(raw)
            assert (response.status, cors(response)["allow-origin"]) == (status, APP)
            assert response.header("x-content-type-options") == "nosniff"
            assert response.header("vary") == "Origin"


async def test_a_stream_that_the_bus_refuses_is_told_so_to_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise Unavailable("The link is lost.")

    async with running(cors_origins=APP) as gateway:
        monkeypatch.setattr(gateway.node.bus, "subscribe", refuse)
        response = await gateway.ask(request("GET", "/events/a", ACCEPT, ALLOWED))
        assert b"reconnect" in response.body
        assert cors(response)["allow-origin"] == APP


async def test_a_page_is_told_that_its_body_came_too_slowly() -> None:
    async with running(cors_origins=APP, body_timeout=0.1) as gateway:
        wire = await gateway.connect()
        head = request("POST", "/publish/a", ALLOWED, b"Content-Length: 5\r\n")
        await wire.send(head + b"x")
        response = await wire.response()
        assert (response.status, cors(response)["allow-origin"]) == (408, APP)


async def test_on_one_connection_each_answer_is_for_its_own_origin() -> None:
    """A proxy sends the requests of many pages over one connection."""
    async with running(cors_origins=f"{APP}, https://b.example") as gateway:
        wire = await gateway.connect()
        seen = []
        for origin in (ALLOWED, b"", b"Origin: https://b.example\r\n", FOREIGN):
            await wire.send(request("POST", "/publish/a", origin, body=b"x"))
            seen.append(cors(await wire.response()).get("allow-origin"))
        await wire.send(request("POST", "/publish/a", ALLOWED, body=b"x") + b"broken\r\n\r\n")
        for _ in range(2):
            seen.append(cors(await wire.response()).get("allow-origin"))
        assert seen == [APP, None, "https://b.example", None, APP, None]


PATHS = {
    "/events": "GET, OPTIONS, POST",
    "/events/a": "GET, OPTIONS",
    "/poll/a": "GET, OPTIONS",
    "/publish": "OPTIONS, POST",
    "/publish/a/b": "OPTIONS, POST",
    "/clients/x/channels/a": "DELETE, OPTIONS, PUT",
    "/clients": "GET, HEAD, OPTIONS",
    "/clients/x": "DELETE, GET, HEAD, OPTIONS",
    "/nodes/x/drain": "OPTIONS, POST",
    "/clients/x/token": "OPTIONS, PUT",
    "/tokens/x": "DELETE, OPTIONS",
    "/users/x": "DELETE, OPTIONS",
    "/channels/a": "GET, HEAD, OPTIONS",
    "/stats": "GET, HEAD, OPTIONS",
    "/metrics": "GET, HEAD, OPTIONS",
    "/healthz": "GET, HEAD, OPTIONS",
}


def preflight(path: str, origin: bytes, *, method: str = "POST", version: str = "1.1") -> bytes:
    asked = (
        f"Access-Control-Request-Method: {method}\r\n"
        "Access-Control-Request-Headers: authorization,last-event-id\r\n"
    )
    return request("OPTIONS", path, origin, asked.encode(), version=version)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_preflight_is_told_what_the_path_really_has(version: str) -> None:
    async with running(cors_origins=f"{APP}, *", cors_max_age=600.0) as gateway:
        for path, methods in PATHS.items():
            for origin, allowed in ((ALLOWED, APP), (FOREIGN, "*")):
                response = await gateway.ask(preflight(path, origin, version=version))
                assert (response.status, response.body) == (204, b"")
                assert response.header("allow") == methods
                found = cors(response)
                assert found["allow-origin"] == allowed
                assert found.get("allow-credentials") == ("true" if allowed == APP else None)
                assert found["allow-methods"] == methods
                assert found["allow-headers"] == ALLOWED_HEADERS.decode()
                assert {"Authorization", "Last-Event-ID"} < set(found["allow-headers"].split(", "))
                assert found["max-age"] == "600"


@pytest.mark.parametrize("origins", ["", APP], ids=["no origins", "another"])
async def test_a_preflight_of_an_origin_that_is_not_allowed_says_which_setting_would(
    origins: str,
) -> None:
    async with running(cors_origins=origins) as gateway:
        response = await gateway.ask(preflight("/publish", FOREIGN))
        assert response.status == 403
        assert response.header("content-type") == "application/problem+json"
        assert "https://evil.example" in response.detail
        assert "cors_origins" in response.detail
        assert cors(response) == {}


@pytest.mark.parametrize("version", VERSIONS)
async def test_options_of_somebody_who_is_no_page_says_what_is_allowed(version: str) -> None:
    async with running() as gateway:
        for path, methods in PATHS.items():
            response = await gateway.ask(request("OPTIONS", path, version=version))
            assert (response.status, response.header("allow")) == (204, methods)
            assert cors(response) == {}
        for path in ("/nothing", "//events"):
            assert (await gateway.ask(request("OPTIONS", path, version=version))).status == 404
