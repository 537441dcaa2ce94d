"""The parser of the client for browsers: the cases of the gateway's own, and streams of a node."""

import json
from typing import Any

from node_js import run_module
from process import node
from test_sse import CASES, STANDARD_EXAMPLES

from gateway.sse import MAX_RETRY_MS, Parser

RETRIES = [
    (b"retry: 1500", 1500),
    (b"retry:0", 0),
    (b"retry: 007", 7),
    (b"retry", None),
    (b"retry: 1.5", None),
    (b"retry: -1", None),
    (b"retry: 1\nretry: x", 1),
    (b"retry: " + b"9" * 400, MAX_RETRY_MS),
]


ONLY_ONE = "only one BOM"
"""A case for browsers alone: Node's own decoder of UTF-8 takes away both."""


def case(name: str, stream: bytes) -> dict[str, Any]:
    """What the gateway's own parser makes of it."""
    parser = Parser()
    events = [
        [event.event, event.data, event.last_event_id, event.channel, event.at]
        for event in parser.receive_data(stream)
    ]
    last, retry = parser.last_event_id, parser.retry
    return {"name": name, "hex": stream.hex(), "events": events, "id": last, "retry": retry}


def case_of(param: Any) -> dict[str, Any]:
    return case(str(param.id), param.values[0])


def test_it_follows_the_standard_as_the_gateways_own_parser_does() -> None:
    cases = [
        made for made in map(case_of, (*STANDARD_EXAMPLES, *CASES)) if made["name"] != ONLY_ONE
    ]
    cases += [case(line.decode()[:30], line + b"\n\n") for line, _ in RETRIES]
    assert [case["retry"] for case in cases[-len(RETRIES) :]] == [retry for _, retry in RETRIES]
    run_module("parser.mjs", json.dumps(cases))


async def test_streams_of_a_node_are_parsed_however_they_are_cut() -> None:
    async with node("--keepalive", "0.05") as n:
        stream = await n.open_stream("/events?channel=a")
        await n.publish_raw("a", "one\r\ntwo\rthree\n\n \u20ac \U0001f600", event="tick")
        await n.publish_raw("a", "")
        await n.publish_raw("a", "last", retry="70")
        await stream.until(b"data: last\n\n")
        await stream.until(b"event: keepalive\n")
    body = stream.body[: stream.body.rindex(b"\n\n") + 2]
    made = case("a node's", body)
    assert [event[0] for event in made["events"]] == ["connected", "tick", "message", "message"]
    run_module("parser.mjs", json.dumps([made]))
