"""The description is OpenAPI 3.1, is served as it should be, and says what the code and the README
say: it can neither lack a route, a limit or a member, nor have one too many."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from running import request, running

from gateway import control
from gateway.api import streams
from gateway.api.asked import Body
from gateway.api.csrf import SAFE_METHODS
from gateway.api.poll import PATH as POLL
from gateway.api.publish import PATH as PUBLISH
from gateway.api.publish import Document
from gateway.api.relay import PATH as RELAY
from gateway.api.subscribe import PATH as EVENTS
from gateway.config import Config
from gateway.edge.app import make_app
from gateway.edge.pages import is_asset
from gateway.errors import BadRequest, GatewayError, MethodNotAllowed
from gateway.messages import Refusal
from gateway.names import check_channel, check_subscribable, is_reserved, user_channel
from gateway.node import Node
from gateway.openapi import PATH, describe
from gateway.openapi.schemas import CHANNEL, PUBLISHABLE, SUBSCRIBABLE, USER, Schema
from gateway.relay.events import Normal
from gateway.relay.story import Story, snapshot_json, story_json

README = Path(__file__).parent.parent / "README.md"

KEY = "k" * 32

CONFIGS = {
    "without keys": Config(),
    "without pages": Config(demo=False, ops=False),
    "with keys": Config(jwt_key=KEY),
    "with keys and anonymous subscribers": Config(jwt_key=KEY, anonymous=True),
    "with keys and no cookie": Config(jwt_key=KEY, token_cookie=""),
}

METHODS = ("get", "put", "post", "delete", "patch")

Operation = dict[str, Any]


def described(config: Config) -> dict[str, Any]:
    """The document as it is read by others."""
    document: dict[str, Any] = json.loads(msgspec.json.encode(describe(config)))
    return document


def operations(config: Config) -> dict[tuple[str, str], Operation]:
    """Every operation by its method and path."""
    return {
        (method.upper(), path): item[method]
        for path, item in described(config)["paths"].items()
        for method in METHODS
        if method in item
    }


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_description_is_openapi_3_1(config: Config) -> None:
    assert list(OpenAPIV31SpecValidator(described(config)).iter_errors()) == []


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_route_and_method_of_the_edge_is_described_and_no_other(config: Config) -> None:
    app = make_app(Node(config, max_clients=1))
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        if not is_asset(rule.rule)  # no part of the interface
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert set(operations(config)) == served


def test_every_route_of_the_front_is_described() -> None:
    for method, path in (("GET", EVENTS), ("GET", POLL), ("POST", PUBLISH)):
        assert {(method, path), (method, f"{path}/{{channel}}")} <= set(operations(Config()))


def test_the_readme_lists_the_routes_that_are_described() -> None:
    table = README.read_text("utf-8").partition("\n## The interface\n")[2].partition("\n\n**")[0]
    listed = set()
    for row in table.splitlines():
        methods: list[str] = []
        for span in re.findall(r"`([^`]+)`", row.partition(" | ")[0]):
            found = re.fullmatch(r"([A-Z]+)? ?(/[^?]*)?(?:\?.*)?", span)
            method, path = found.groups() if found is not None else (None, None)
            if method is not None:
                methods = [*methods, method] if methods and path else [method]
            if path is not None and not is_asset(path):  # no part of the interface
                listed |= {(name, re.sub("<.*?>", "{}", path)) for name in methods}
    bare = Config(demo=False, ops=False)
    shapes = {(name, re.sub("{.*?}", "{}", path)) for name, path in operations(bare)}
    assert listed == shapes


NAMES = st.text("ab.:/@~%+- é\n", max_size=8) | st.sampled_from(
    ["global", "globals", "user:", "user:7", "users", "a" * 200, "a" * 201, "a\n", ""]
)


@given(NAMES)
def test_a_channel_name_is_described_as_it_is_judged(name: str) -> None:
    assert fits(name, CHANNEL) == is_taken(check_channel, name)
    assert fits(name, SUBSCRIBABLE) == is_taken(check_subscribable, name)
    publishable = is_taken(check_channel, name) and not is_reserved(name)
    assert fits(name, PUBLISHABLE) == publishable


@given(st.text(max_size=80) | st.sampled_from(["a" * 195, "a" * 196]))
def test_a_user_that_is_taken_is_one_that_is_described(user: str) -> None:
    if is_taken(user_channel, user):
        assert fits(user, USER)


def fits(text: str, schema: Schema) -> bool:
    """Whether JSON Schema would have ``text`` so; ``$`` is only the end there (ECMA-262)."""
    pattern = str(schema.get("pattern", "")).replace("$", r"\Z")
    least, most = schema.get("minLength", 0), schema["maxLength"]
    assert isinstance(least, int)
    assert isinstance(most, int)
    return least <= len(text) <= most and re.search(pattern, text) is not None


def is_taken(check: Callable[[str], str], text: str) -> bool:
    try:
        check(text)
    except BadRequest:
        return False
    return True


def test_an_event_a_stream_asked_for_and_a_problem_have_the_members_that_the_code_knows() -> None:
    schemas = described(Config())["components"]["schemas"]
    assert tuple(schemas["Event"]["properties"]) == Document.__struct_fields__
    assert tuple(schemas["StreamAsked"]["properties"]) == Body.__struct_fields__
    beside = {"title", "status", "line", "next", "state"}  # of what is pushed
    assert set(schemas["Problem"]["properties"]) - beside == set(Refusal.__struct_fields__)


def test_a_token_stream_is_described_as_it_is_begun_and_told() -> None:
    schemas = described(Config())["components"]["schemas"]
    asked = schemas["TokenStreamAsked"]["properties"]
    assert tuple(asked) == streams.Document.__struct_encode_fields__
    assert set(schemas["TokenStream"]["properties"]) >= set(story_json(Story()))
    events = {each["title"]: each for each in schemas["TokenStreamEvent"]["oneOf"]}
    assert set(events) == {each.type for each in Normal.__subclasses__()} | {"snapshot"}
    for each in Normal.__subclasses__():
        members = events[each.type]["properties"]["data"]["contentSchema"]["properties"]
        assert tuple(members) == each.__struct_encode_fields__
    shown = events["snapshot"]["properties"]["data"]["contentSchema"]["properties"]
    assert list(shown) == list(snapshot_json(Story()))


def test_every_control_event_is_described() -> None:
    kinds = described(Config())["components"]["schemas"]["StreamEvent"]["oneOf"]
    assert {kind["title"] for kind in kinds} == control.TYPES | {"published"}


def test_every_error_that_has_a_status_is_described_but_that_of_the_method() -> None:
    """Of a route that takes another method, 405 is no answer of an operation."""
    responses = described(Config())["components"]["responses"].values()
    known: list[type[GatewayError]] = [GatewayError, *GatewayError.__subclasses__()]
    titles = {error.title for error in known if error.__module__ == GatewayError.__module__}
    told = {response["description"] for response in responses}
    assert told == titles - {MethodNotAllowed.title}


def test_limits_are_those_of_the_node() -> None:
    document = described(Config(max_channels_per_client=7, token_cookie="mine", jwt_key=KEY))
    components = document["components"]
    for name in ("Event", "StreamAsked"):
        assert components["schemas"][name]["properties"]["channels"]["maxItems"] == 7
    assert components["securitySchemes"]["cookie"]["name"] == "mine"


def test_without_keys_nobody_is_asked_who_he_is() -> None:
    document = described(Config())
    assert document["components"]["securitySchemes"] == {}
    for (method, path), operation in operations(Config()).items():
        assert operation["security"] == []
        assert "401" not in operation["responses"]
        is_listed = path.startswith(RELAY)  # what is not listed is forbidden to all
        assert ("403" in operation["responses"]) == (method not in SAFE_METHODS or is_listed)


def test_with_keys_a_token_is_asked_for_but_where_it_is_not() -> None:
    config = CONFIGS["with keys"]
    for (_, path), operation in operations(config).items():
        is_open = path in ("/", "/chat", "/ops", "/healthz", "/readyz", PATH)
        schemes = [] if is_open else ["bearer", "cookie", "query"]
        assert operation["security"] == [{name: []} for name in schemes], path
        assert ({"401", "403"} <= set(operation["responses"])) != is_open, path


def test_anonymous_subscribers_may_do_without_a_token() -> None:
    config = CONFIGS["with keys and anonymous subscribers"]
    may_go_without = {
        path for (_, path), operation in operations(config).items() if {} in operation["security"]
    }
    of_streams = {"/events", "/events/{channel}", "/poll", "/poll/{channel}"}
    assert may_go_without == {*of_streams, "/streams/{id}"}


async def test_the_description_is_served_once_to_whoever_has_it_already() -> None:
    async with running(max_channels_per_client=7) as gateway:
        whole = await gateway.ask(request("GET", PATH))
        assert whole.status == 200
        assert whole.header("content-type") == "application/json"
        assert whole.header("cache-control") == "no-cache"
        assert whole.json == described(gateway.node.config)
        tag = whole.header("etag")
        for known in (tag, f'"other", W/{tag}', "*"):
            same = await gateway.ask(request("GET", PATH, f"If-None-Match: {known}\r\n".encode()))
            assert (same.status, same.body) == (304, b"")
            assert same.header("etag") == tag
            assert same.header("cache-control") == "no-cache"
        other = await gateway.ask(request("GET", PATH, b'If-None-Match: "other"\r\n'))
        assert other.body == whole.body


async def test_the_description_is_another_when_the_node_is_set_otherwise() -> None:
    tags = set()
    for settings in ({}, {}, {"demo": False}):
        async with running(**settings) as gateway:
            tags.add((await gateway.ask(request("GET", PATH))).header("etag"))
    assert len(tags) == 2
