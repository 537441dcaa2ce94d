"""Publishing straight through Redis, without a node: as POST /publish takes it, in one call."""

import json
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
import trio
from documents import REFERENCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from process import environment
from redis_buses import Cluster, cluster
from redis_scripts import AGE, RULES, Scripts

from gateway import sse
from gateway.control import TYPES
from gateway.names import compile_pattern, user_channel


@pytest.fixture
def scripts(client: redis.Redis, new_prefix: str) -> Scripts:
    made = Scripts(client, new_prefix)
    made.now = 0
    made.attach()
    return made


@pytest.fixture
async def nodes(redis_port: int, new_prefix: str) -> AsyncIterator[Cluster]:
    with trio.fail_after(20):
        async with cluster(redis_port, new_prefix) as nodes:
            yield nodes


async def test_the_example_reaches_the_clients_of_a_node(nodes: Cluster) -> None:
    nodes.prefix = "gateway:"
    node = await nodes.node("news")
    found = re.search(r"<!-- direct -->\n```python\n(.*?)```", REFERENCE, re.DOTALL)
    assert found is not None
    program = found[1].replace("redis.Redis()", f"redis.Redis(port={nodes.port})")
    ran = await trio.run_process(
        [sys.executable, "-c", program], capture_stdout=True, env=environment()
    )
    await node.sink.until(1)
    (frame,) = node.sink.frames
    assert ran.stdout.decode() == f"{frame.position}\n"
    assert frame.without_id() == b"event: greeting\ndata: Hello\n\n"


def block(scripts: Scripts, channel: str = "a") -> bytes:
    """The SSE block of the last entry, without id."""
    return scripts.entries(channel)[-1].partition(b"\n")[2]


def test_every_member_is_passed_on(scripts: Scripts) -> None:
    document = {
        "v": 1,
        "channels": ["a", "b", "a"],
        "data": "one\r\ntwo\rthree\n",
        "event": "news",
        "retry": 1500,
        "key": "a key",
        "id": "1",
        "end": True,
    }
    told = scripts.direct(document)
    head, _, body = scripts.entries("a")[0].partition(b"\n")
    version, at, _, _, ended, channels, key = head.decode().split(" ", 6)
    assert (version, at, ended, channels, key) == ("1", told, "1", "a,b", "a key")
    assert body == sse.encode("one\ntwo\nthree\n", event="news", retry=1500)
    assert scripts.entries("b")[0].partition(b"\n")[2] == body


LABELS = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=40
).filter(lambda text: text not in TYPES)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.text(st.characters(codec="utf-8"), max_size=60),
    event=st.none() | LABELS,
    retry=st.none() | st.integers(0, sse.MAX_RETRY_MS),
)
def test_a_block_is_written_as_a_node_writes_it(
    scripts: Scripts, data: str, event: str | None, retry: int | None
) -> None:
    scripts.direct({"channel": "a", "data": data, "event": event, "retry": retry})
    assert block(scripts) == sse.encode(data, event=event, retry=retry)


@pytest.mark.parametrize("data", [1, 1.5, True, None, [1, "a"], {"a": {"b": 1}}])
def test_data_that_is_no_string_is_refused(scripts: Scripts, data: object) -> None:
    """What Lua would make of it is not what was written: ``[]`` would become ``{}``."""
    with pytest.raises(redis.ResponseError, match="data is a string here"):
        scripts.direct({"channel": "a", "data": data})


def test_the_end_of_a_channel_needs_no_data(scripts: Scripts) -> None:
    scripts.direct({"channel": "a", "end": True})
    assert block(scripts) == sse.encode("")
    with pytest.raises(redis.ResponseError, match="ENDED"):
        scripts.direct({"channel": "a", "data": "x"})


def test_a_repeated_id_has_the_first_position(scripts: Scripts) -> None:
    first = scripts.direct({"channels": ["a", "b"], "data": "x", "id": "1"})
    assert scripts.direct({"channels": ["b", "a"], "data": "y", "id": "1"}) == first
    assert scripts.direct({"channel": "a", "data": "y", "id": "1"}) != first
    assert len(scripts.entries("b")) == 1


@pytest.mark.parametrize("user", ["ann", "a b", "a..b", ".", "ü/%", "user:x", "a*b", "*", "日本"])
def test_a_users_channel_is_the_one_that_nodes_know(scripts: Scripts, user: str) -> None:
    scripts.direct({"user": user, "data": "x"})
    assert len(scripts.entries(user_channel(user))) == 1


def test_a_broadcast_goes_to_everybody(scripts: Scripts) -> None:
    scripts.direct({"broadcast": True, "data": "x"})
    assert len(scripts.entries("global")) == 1
    scripts.direct({"broadcast": False, "channel": "a", "data": "x"})
    assert len(scripts.entries("a")) == 1


SEGMENTS = ["a", "b-c", "a%b", "x+y", "~", "a_", "1", "/@:"]
NAMES = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=4).map(".".join)
PATTERNS = st.builds(
    lambda segments, open_ended: ".".join([*segments, "**"] if open_ended else segments) or "**",
    st.lists(st.sampled_from([*SEGMENTS, "*"]), max_size=3),
    st.booleans(),
)


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pattern=PATTERNS | st.just("user:*"), name=NAMES)
def test_rules_match_as_they_do_on_a_node(scripts: Scripts, pattern: str, name: str) -> None:
    no_history: list[Any] = [[pattern, 0, 0, AGE], ["**", 9, 9999, AGE]]
    scripts.attach(rules=RULES | {"channels": no_history})
    scripts.client.delete(scripts.key(f"s:{name}"))
    scripts.direct({"channel": name, "data": "x"})
    assert (scripts.entries(name) == []) == compile_pattern(pattern).matches(name)


def test_the_rule_of_users_holds_for_all_of_them(scripts: Scripts) -> None:
    scripts.attach(rules=RULES | {"channels": [["user:*", 0, 0, AGE], ["**", 9, 9999, AGE]]})
    scripts.direct({"user": "a.b", "data": "x"})
    assert scripts.entries("user:a.b") == []


TARGETS = "exactly one of channel, channels, user and broadcast"
NAME = "A channel is 1 to 200 of"
STREAM = "Nobody publishes to stream:[^ ]* but the gateway: .* POST /streams/<id>/events"
REFUSED = [
    ({"data": "x"}, TARGETS),
    ({"channel": "a", "user": "b", "data": "x"}, TARGETS),
    ({"channel": "a", "channels": ["b"], "data": "x"}, TARGETS),
    ({"channel": "a", "broadcast": True, "data": "x"}, TARGETS),
    ({"broadcast": False, "data": "x"}, TARGETS),
    ({"channels": [], "data": "x"}, TARGETS),
    ({"channels": "a", "data": "x"}, TARGETS),
    ({"channels": {"a": 1}, "data": "x"}, TARGETS),
    ({"user": "", "data": "x"}, TARGETS),
    ({"user": 5, "data": "x"}, TARGETS),
    ({"broadcast": 1, "data": "x"}, "broadcast is true or false"),
    ({"channel": "a", "end": "yes"}, "end is true or false"),
    ({"channel": "a b", "data": "x"}, NAME),
    ({"channel": "", "data": "x"}, NAME),
    ({"channel": "a..b", "data": "x"}, NAME),
    ({"channel": "x" * 201, "data": "x"}, NAME),
    ({"channel": "global", "data": "x"}, NAME),
    ({"channel": "gateway:ops", "data": "x"}, NAME),
    ({"channels": ["a", "gateway:ops"], "data": "x"}, NAME),
    ({"channel": "stream:x", "data": "x"}, STREAM),
    ({"channel": "stream:x.raw", "data": "x"}, STREAM),
    ({"channel": "stream:", "data": "x"}, STREAM),
    ({"channels": ["a", "stream:x"], "data": "x", "end": True}, STREAM),
    ({"channel": "user:a", "data": "x"}, NAME),
    ({"channel": 5, "data": "x"}, NAME),
    ({"channels": ["a", None], "data": "x"}, NAME),
    ({"channels": ["a", "b", "c", "d"], "data": "x"}, "too many channels"),
    ({"user": "x" * 201, "data": "x"}, "user id is too long"),
    ({"user": "a", "end": True}, "has no end"),
    ({"broadcast": True, "end": True}, "has no end"),
    ({"channel": "a"}, "has data; this one has none"),
    ({"channel": "a", "data": "x", "event": ""}, "event has 1 to 200 bytes"),
    ({"channel": "a", "data": "x", "key": "a\nb"}, "key has 1 to 200 bytes"),
    ({"channel": "a", "data": "x", "id": "x" * 201}, "id has 1 to 200 bytes"),
    ({"channel": "a", "data": "x", "id": 5}, "id has 1 to 200 bytes"),
    ({"channel": "a", "data": "x", "retry": -1}, "retry is a whole number"),
    ({"channel": "a", "data": "x", "retry": 1.5}, "retry is a whole number"),
    ({"channel": "a", "data": "x", "retry": "1"}, "retry is a whole number"),
    ({"channel": "a", "data": "x", "retry": 2**31}, "retry is a whole number"),
    ({"channel": "a", "data": "x" * 1001}, "too large"),
    ({"channel": "a", "data": "x", "more": 1}, "no member more"),
    ({"channel": "a", "data": "x", "v": 2}, "The format of events is v 1"),
    ([{"channel": "a"}], "no member 1"),
    ("text", "no JSON object"),
    (5, "no JSON object"),
    *[({"channel": "a", "data": "x", "event": name}, "gateway's own") for name in sorted(TYPES)],
]


@pytest.mark.parametrize(("document", "sentence"), REFUSED)
def test_what_is_wrong_is_said_and_changes_nothing(
    scripts: Scripts, document: object, sentence: str
) -> None:
    before = scripts.dump()
    with pytest.raises(redis.ResponseError, match=f"BADEVENT.*{sentence}"):
        scripts.direct(document)
    assert scripts.dump() == before


@pytest.mark.parametrize("text", ["", " ", "{", '{"channel": "a", "data": "x"} x', "\x00"])
def test_what_is_no_json_is_refused(scripts: Scripts, text: str) -> None:
    with pytest.raises(redis.ResponseError, match="BADEVENT This is no JSON object"):
        scripts.run("publish", text)


def test_space_around_a_document_is_none_of_its_members(scripts: Scripts) -> None:
    scripts.run("publish", "\n " + json.dumps({"channel": "a", "data": "x"}) + "\n")
    assert block(scripts) == sse.encode("x")


def test_without_a_node_there_is_nowhere_to_publish_to(
    client: redis.Redis, new_prefix: str
) -> None:
    with pytest.raises(redis.ResponseError, match="NOCLOCK"):
        Scripts(client, new_prefix).direct({"channel": "a", "data": "x"})
