"""A node of the real program against its own description: schemathesis asks what that allows, and
what it does not, and holds each answer to it.

It goes through the front, over HTTP/1.1. A stream is read up to its first event with data, which is
``connected``; a poll waits for some milliseconds; every other request about a client is about one
that is there. What is found this way becomes a case in test_api.py. To look further:

    OPENAPI_EXAMPLES=2000 OPENAPI_SEED=7 .venv/bin/pytest tests/test_schemathesis.py
"""

import itertools
import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema_rs
import msgspec
import pytest
import requests
import schemathesis
import tokens
from hypothesis import assume
from hypothesis import strategies as st
from process import GATEWAY, PATIENCE, environment
from schemathesis import Case, Response
from schemathesis.checks import CheckContext, load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from gateway.api.poll import MAX_WAIT
from gateway.config import Config
from gateway.errors import BadRequest
from gateway.names import check_channel, user_channel
from gateway.openapi import PATH, describe

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "10"))
"""For each operation, beside those of its bounds."""

SEED = int(os.environ.get("OPENAPI_SEED", "1"))

LONGEST_WAIT = 0.01
"""Seconds that a poll waits."""

CHECKS = {"negative_data_rejection": {"expected-statuses": ["4xx"]}}

Check = Callable[[CheckContext, Response, Case[Any]], bool | None]

_turn = itertools.count()


def is_user(text: str) -> bool:
    try:
        user_channel(text)
    except BadRequest:
        return False
    return True


def is_channel(text: str) -> bool:
    try:
        check_channel(text)
    except BadRequest:
        return False
    return True


_EVENTS = st.fixed_dictionaries(
    {"channel": st.sampled_from(["a", "b.c", "b c"]), "data": st.none() | st.text() | st.integers()}
)
_LINES = st.lists(_EVENTS.map(json.dumps) | st.text(max_size=20), max_size=5)

schemathesis.openapi.format("user-id", st.text(min_size=1, max_size=195).filter(is_user))
schemathesis.openapi.format("token-id", st.text(min_size=1, max_size=200))
schemathesis.openapi.media_type("application/x-ndjson", _LINES.map("\n".join).map(str.encode))
load_all_checks()


def described(config: Config) -> OpenApiSchema:
    """What a node with this configuration is held to."""
    document = json.loads(msgspec.json.encode(describe(config)))
    settings = {
        "seed": SEED,
        "max-stream-events": 1,
        "checks": CHECKS,
        "generation": {"max-examples": EXAMPLES, "database": "none"},
    }
    return schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_dict(settings))


_ADMIN = tokens.token("admin", subscribe=["**"], publish=["**"], admin=True)
ADMIN = {"Authorization": f"Bearer {_ADMIN}"}

OPEN = described(Config())
KEYED = described(Config(jwt_key=tokens.SECRET))


@contextmanager
def running(**variables: str) -> Iterator[str]:
    """The URL of a node with these settings."""
    with subprocess.Popen(
        [GATEWAY, "serve", "--bind", "127.0.0.1:0"],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            found = None
            for line in process.stdout:
                if found := re.search(r"on (http://127\.0\.0\.1:\d+)/", line):
                    break
            assert found is not None
            yield found[1]
            assert process.poll() is None
        finally:
            process.kill()


@pytest.fixture(scope="module")
def open_node() -> Iterator[str]:
    """A node without keys."""
    with running() as url:
        yield url


@pytest.fixture(scope="module")
def keyed_node() -> Iterator[str]:
    """A node that is asked by an administrator, who may subscribe and publish everywhere; but
    for limits, which would turn away one who asks so much."""
    with running(
        GATEWAY_JWT_KEY=tokens.SECRET,
        GATEWAY_MAX_STREAMS_PER_USER="0",
        GATEWAY_ADDRESS_OPEN_RATE="0",
    ) as url:
        yield url


def test_nodes_serve_the_descriptions_that_they_are_held_to(
    open_node: str, keyed_node: str
) -> None:
    for url, schema in ((open_node, OPEN), (keyed_node, KEYED)):
        assert requests.get(url + PATH, timeout=PATIENCE).json() == schema.raw_schema


@OPEN.parametrize()
def test_every_answer_of_an_open_node_is_as_it_is_described(
    case: Case[Any], open_node: str
) -> None:
    hold_to_description(case, open_node, {})


@KEYED.parametrize()
def test_every_answer_of_a_node_with_keys_is_as_it_is_described(
    case: Case[Any], keyed_node: str
) -> None:
    hold_to_description(case, keyed_node, ADMIN)


BEYOND_WORDS = {
    "No channel is named": r"/events|/poll",
    "This node has no keys": r"/users/.*|/tokens/.*|/clients/.*/token",
    "A stream is given another token": r"/clients/.*/token",
    "exp is past": r"/users/.*|/tokens/.*",
    "A snapshot": r"/events.*|/poll.*",
    "There is no upstream": r"/streams",
    "The channel ": r"/streams",
}
"""What OpenAPI has no way to ask for, by how a refusal begins and where: one of several parameters,
a token where there can be none, a time to come, and what the node has been configured with."""


def hold_to_description(case: Case[Any], url: str, headers: dict[str, str]) -> None:
    """Ask the node at ``url``, and check its answer."""
    assume(arrives_as_it_is(case))
    of_client = "client" in case.path_parameters and next(_turn) % 2 == 0
    with open_client(url, headers) if of_client else nullcontext() as client:
        if client is not None:
            case.path_parameters["client"] = client
        if case.path.startswith("/poll"):
            shorten_wait(case)
        response = case.call(base_url=url, headers=headers)
        not_said: list[Check] = (
            [negative_data_rejection] if only_meant_to_be_bad(case, response) else []
        )
        for begin, paths in BEYOND_WORDS.items():
            if response.status_code == 400 and f'"detail":"{begin}'.encode() in response.content:
                assert re.fullmatch(paths, case.path), case.path
                not_said.append(positive_data_acceptance)
        case.validate_response(response, headers=headers, excluded_checks=not_said)


def only_meant_to_be_bad(case: Case[Any], response: Response) -> bool:
    """Whether what was to be refused is, as it was sent, described: a raw body is text, whatever it
    was; so are headers, and the credentials are ours; a list of one is written as its item, an
    empty one is not written, and of a scalar that comes twice the first counts."""
    assert case.meta is not None
    negative = {place for place in ParameterLocation if case.meta.is_negative_at(place)}
    if not negative or (ParameterLocation.BODY in negative and case.path != "/publish/{channel}"):
        return False
    query = parse_qs(urlsplit(str(response.request.url)).query, keep_blank_values=True)
    path = {name: [unquote(str(value))] for name, value in case.path_parameters.items()}
    sent = {"query": query, "path": path}
    item = case.operation.schema.raw_schema["paths"][case.operation.path]
    return all(
        fits(sent[parameter["in"]].get(parameter["name"], []), parameter)
        for parameter in item[case.operation.method]["parameters"]
        if parameter["in"] in sent
    )


def fits(values: list[str], parameter: dict[str, Any]) -> bool:
    """Whether the values of a parameter are what its description says."""
    schema = parameter["schema"]
    if schema["type"] == "array":
        named = values if parameter.get("explode", True) else ",".join(values[:1]).split(",")
        return not values or all(jsonschema_rs.is_valid(schema["items"], name) for name in named)
    if values[:1] in ([], [""]):
        return True
    if schema["type"] == "string":
        return jsonschema_rs.is_valid(schema, values[0])
    try:
        return jsonschema_rs.is_valid(schema, json.loads(values[0]))
    except ValueError:
        return False


def arrives_as_it_is(case: Case[Any]) -> bool:
    """Whether a channel in the path that should be legal is: if it looks percent-encoded,
    schemathesis decodes it before it encodes it."""
    channel = case.path_parameters.get("channel")
    assert case.meta is not None
    if not case.meta.generation.mode.is_positive or not isinstance(channel, str):
        return True
    return is_channel(unquote(channel))


def shorten_wait(case: Case[Any]) -> None:
    """Have a poll wait for milliseconds where it would for seconds."""
    try:
        seconds = float(case.query.get("wait") or MAX_WAIT)
    except (TypeError, ValueError):
        return
    if LONGEST_WAIT < seconds <= MAX_WAIT:
        case.query["wait"] = math.fmod(seconds, LONGEST_WAIT)


@contextmanager
def open_client(url: str, headers: dict[str, str]) -> Iterator[str]:
    """The id of a client while its stream is open."""
    with requests.get(
        f"{url}/events/its", stream=True, timeout=PATIENCE, headers=headers
    ) as response:
        data = next(line for line in response.iter_lines() if line.startswith(b"data: "))
        yield str(json.loads(data[len("data: ") :])["clientId"])
