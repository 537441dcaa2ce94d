"""From what upstreams speak to the normal view."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from vendors import (
    DONE,
    OPENAI_STATUSES,
    PING,
    Answer,
    Call,
    anthropic_block,
    anthropic_blocks,
    anthropic_error_block,
    chat_blocks,
    chat_choice,
    chat_chunk,
    chat_error_block,
    completion_blocks,
    response_blocks,
    response_error_block,
    response_failed_block,
)

from gateway.relay.events import FAILURES, Complete, Failure, Normal, Token, ToolUse, Usage
from gateway.relay.formats import Normalizer, normalizer
from gateway.relay.formats.normalizer import MAX_REASON, MAX_TOOL_BYTES, MAX_TOOLS
from gateway.relay.formats.passthrough import Passthrough
from gateway.relay.record import Format
from gateway.sse import Parser, ServerSentEvent


def chat() -> Normalizer:
    return normalizer(Format.OPENAI, "chat/completions")


def completions() -> Normalizer:
    return normalizer(Format.OPENAI, "completions")


def responses() -> Normalizer:
    return normalizer(Format.OPENAI, "responses")


def messages() -> Normalizer:
    return normalizer(Format.ANTHROPIC, "messages")


Make = Callable[[], Normalizer]

VENDORS: dict[str, tuple[Make, Callable[[Answer], list[bytes]]]] = {
    "chat": (chat, chat_blocks),
    "responses": (responses, response_blocks),
    "messages": (messages, anthropic_blocks),
}
"""All that speak of tools."""

EVERY = {**VENDORS, "completions": (completions, completion_blocks)}

vendors = pytest.mark.parametrize(("make", "write"), VENDORS.values(), ids=VENDORS)
every = pytest.mark.parametrize(("make", "write"), EVERY.values(), ids=EVERY)


def feed(reader: Normalizer, *blocks: bytes) -> list[Normal]:
    """What it tells of ``blocks``, and of nothing but what each of them completes."""
    parser = Parser()
    return [
        told
        for block in blocks
        for event in parser.receive_data(block)
        for told in reader.feed(event)
    ]


def text(told: Sequence[Normal]) -> str:
    return "".join(event.text for event in told if isinstance(event, Token))


def uses(told: Sequence[Normal]) -> list[tuple[str, str, Any]]:
    return [
        (event.id, event.name, json.loads(bytes(event.input)))
        for event in told
        if isinstance(event, ToolUse)
    ]


def data(value: object, event: str = "message") -> ServerSentEvent:
    return ServerSentEvent(event, value if isinstance(value, str) else json.dumps(value), "")


def fails(reader: Normalizer, *blocks: bytes) -> Failure:
    with pytest.raises(Failure) as raised:
        feed(reader, *blocks)
    assert raised.value.told().message == FAILURES[raised.value.code].message
    return raised.value


# One view of all


@every
def test_each_piece_of_text_is_a_token(make: Make, write: Callable[[Answer], list[bytes]]) -> None:
    reader = make()
    told = feed(reader, *write(Answer(("Grüß", " dich", " 👋\n"))))
    assert told == [Token("Grüß"), Token(" dich"), Token(" 👋\n")]
    assert reader.is_done
    assert reader.finish() == Complete("end", Usage(19, 10))


@vendors
def test_a_call_of_a_tool_is_told_when_it_is_complete(
    make: Make, write: Callable[[Answer], list[bytes]]
) -> None:
    reader = make()
    calls = (Call(), Call("get_time", ("",), "call_2"), Call("broken", ('{"a', "..."), "call_3"))
    blocks = write(Answer(("Wait.",), calls[:2]))
    told = feed(reader, *blocks)
    assert told[0] == Token("Wait.")
    location = {"location": "Paris, France"}
    assert uses(told) == [(calls[0].id, "get_weather", location), ("call_2", "get_time", {})]
    assert len(told) == 3
    assert reader.finish() == Complete("tool_use", Usage(19, 10))
    again = make()
    assert uses(feed(again, *write(Answer((), calls[2:])))) == [("call_3", "broken", '{"a...')]


@every
@pytest.mark.parametrize("stop", ["end", "length"])
def test_a_reason_to_stop_has_one_name(
    make: Make, write: Callable[[Answer], list[bytes]], stop: str
) -> None:
    reader = make()
    feed(reader, *write(Answer(stop=stop)))
    assert reader.finish().reason == stop


@every
def test_what_the_vendor_filtered_is_told_so(
    make: Make, write: Callable[[Answer], list[bytes]]
) -> None:
    reader = make()
    feed(reader, *write(Answer(stop="content_filter")))
    assert reader.finish().reason == "content_filter"


def test_a_sequence_that_stopped_it_is_a_reason_where_the_vendor_says_so() -> None:
    reader = messages()
    feed(reader, *anthropic_blocks(Answer(stop="stop_sequence")))
    assert reader.finish().reason == "stop_sequence"


@pytest.mark.parametrize(
    ("make", "write"), [VENDORS["chat"], VENDORS["responses"]], ids=["chat", "responses"]
)
def test_a_refusal_is_text(make: Make, write: Callable[[Answer], list[bytes]]) -> None:
    assert text(feed(make(), *write(Answer(("I can", "not."), refusal=True)))) == "I cannot."


@every
def test_the_terminator_is_required(make: Make, write: Callable[[Answer], list[bytes]]) -> None:
    blocks = write(Answer())
    for end in range(len(blocks)):
        reader = make()
        feed(reader, *blocks[:end])
        assert not reader.is_done
        with pytest.raises(Failure, match="interrupted"):
            reader.finish()


@every
def test_nothing_is_told_after_the_terminator(
    make: Make, write: Callable[[Answer], list[bytes]]
) -> None:
    reader = make()
    feed(reader, *write(Answer()))
    assert feed(reader, *write(Answer()), b"data: {\n\n") == []


@every
def test_events_of_other_types_are_ignored(
    make: Make, write: Callable[[Answer], list[bytes]]
) -> None:
    reader = make()
    first, *rest = write(Answer())
    other = b'event: vendor.new\ndata: {"type": "vendor.new", "delta": []}\n\n'
    untyped = b'data: {"type": "vendor.new", "delta": []}\n\n'
    assert text(feed(reader, first, PING, other, untyped, *rest)) == "Hello world!"
    assert reader.finish().reason == "end"


@pytest.mark.parametrize(
    ("make", "write"), [VENDORS["responses"], VENDORS["messages"]], ids=["responses", "messages"]
)
def test_the_type_in_the_data_will_do(make: Make, write: Callable[[Answer], list[bytes]]) -> None:
    blocks = [block.partition(b"\n")[2] for block in write(Answer(calls=(Call(),)))]
    assert all(block.startswith(b"data: ") for block in blocks)
    reader = make()
    told = feed(reader, *blocks, *([DONE] if make is responses else []))
    assert (text(told), len(uses(told))) == ("Hello world!", 1)
    assert reader.finish().reason == "tool_use"


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("chat/completions", chat()),
        ("/v1/chat/completions?api-version=1", chat()),
        ("completions", completions()),
        ("engines/x/completions/", completions()),
        ("responses", responses()),
        ("audio/transcriptions", Passthrough()),
        ("", Passthrough()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_path_says_what_openai_streams(path: str, made: Normalizer) -> None:
    assert type(normalizer(Format.OPENAI, path)) is type(made)


def test_what_is_passed_through_has_no_normal_events_and_ends_with_its_body() -> None:
    for format in (Format.SSE, Format.PUSH):
        reader = normalizer(format, "")
        assert feed(reader, DONE, b"data: {\n\n", b"event: error\ndata: x\n\n") == []
        assert not reader.is_done
        assert reader.finish() == Complete("end")
    assert isinstance(normalizer(Format.ANTHROPIC, "complete"), Passthrough)


# Chat


def test_other_choices_are_not_in_the_normal_view() -> None:
    choices = [chat_choice({"content": "no"}, index=1), chat_choice({"content": "yes"})]
    assert feed(chat(), chat_chunk(Answer(), choices)) == [Token("yes")]
    stop = chat_choice({}, "length", index=1)
    reader = chat()
    feed(reader, chat_chunk(Answer(), [stop]), DONE)
    assert reader.finish().reason == "end"


def test_a_tool_that_the_request_names_stops_with_tool_use_as_any_other() -> None:
    reader = chat()
    *blocks, stop, usage, done = chat_blocks(Answer((), (Call(),)))
    feed(reader, *blocks, stop.replace(b'"tool_calls"', b'"stop"'), usage, done)
    assert reader.finish().reason == "tool_use"


def test_a_call_of_chat_is_complete_when_the_next_one_begins() -> None:
    reader = chat()
    blocks = chat_blocks(Answer((), (Call(), Call(id="call_2"))))
    begins = next(i for i, block in enumerate(blocks) if b"call_2" in block)
    assert feed(reader, *blocks[:begins]) == []
    assert len(feed(reader, blocks[begins])) == 1
    (stop,) = (i for i, block in enumerate(blocks) if b'"finish_reason":"tool_calls"' in block)
    assert feed(reader, *blocks[begins + 1 : stop]) == []
    assert len(feed(reader, blocks[stop])) == 1


def test_a_reason_to_stop_that_is_empty_is_none() -> None:
    """So write some who speak the format, in every chunk but the last."""
    blocks = [
        block.replace(b'"finish_reason":null', b'"finish_reason":""')
        for block in chat_blocks(Answer(("Hi",), (Call(), Call(id="call_2"))))
    ]
    assert b'"finish_reason":""' in b"".join(blocks)
    reader = chat()
    assert len(uses(feed(reader, *blocks))) == 2
    assert reader.finish().reason == "tool_use"


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_an_error_that_is_a_chunk_is_no_end(path: str) -> None:
    """As vLLM has written them, with the terminator behind."""
    reader = normalizer(Format.OPENAI, path)
    error = b'data: {"object":"error","message":"m","type":"BadRequestError","code":400}\n\n'
    with pytest.raises(Failure) as caught:
        feed(reader, error, DONE)
    assert caught.value.code == "rejected"


def fragment(**members: object) -> bytes:
    function = {key: members.pop(key) for key in ("name", "arguments") if key in members}
    call = {**members, "function": function}
    return chat_chunk(Answer(), [chat_choice({"tool_calls": [call]})])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"id": "a"}, {}),
        ({"index": 0, "id": "a"}, {"index": 0}),
        ({"index": 0, "id": "a"}, {"index": 0, "id": "a", "name": "f"}),
        ({"id": "a"}, {"id": "a"}),
        ({"index": 0, "id": "a"}, {"index": 0, "id": "", "name": ""}),
    ],
    ids=["no index", "index", "all again", "id again", "empty"],
)
def test_fragments_of_a_call_are_joined_however_they_are_named(
    first: dict[str, object], second: dict[str, object]
) -> None:
    begins = fragment(**first, name="f", arguments='{"x":')
    reader = chat()
    told = feed(reader, begins, fragment(**second, arguments="1"), fragment(arguments="}"), DONE)
    assert uses(told) == [("a", "f", {"x": 1})]
    assert reader.finish().reason == "tool_use"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"index": 0, "id": "a"}, {"index": 1, "id": "b"}),
        ({"index": 0, "id": "a"}, {"index": 0, "id": "b"}),
        ({"id": "a"}, {"id": "b"}),
        ({"index": 0, "id": "a"}, {"index": 1, "id": "a"}),
        ({"index": 0}, {"index": 1}),
        ({"index": 1, "id": "a"}, {"index": 0, "id": "b"}),
    ],
    ids=["documented", "one index", "no index", "one id", "no id", "backwards"],
)
def test_calls_are_told_apart_however_they_are_named(
    first: dict[str, object], second: dict[str, object]
) -> None:
    told = feed(
        chat(),
        fragment(**first, name="f", arguments='{"x":'),
        fragment(arguments="1}"),
        fragment(**second, name="g", arguments="{}"),
        DONE,
    )
    assert [use[1:] for use in uses(told)] == [("f", {"x": 1}), ("g", {})]
    assert [use[0] for use in uses(told)] == [first.get("id", ""), second.get("id", "")]


def test_arguments_of_no_call_that_is_open_are_malformed() -> None:
    first = fragment(index=0, id="a", name="f", arguments="{")
    second = fragment(index=1, id="b", name="g", arguments="{}")
    late = fragment(index=0, arguments="}")
    assert fails(chat(), late).code == "malformed"
    assert fails(chat(), first, second, late).code == "malformed"
    assert len(uses(feed(chat(), first, second, fragment(index=0, arguments=""), DONE))) == 2


def test_a_reason_that_is_not_known_is_told_in_the_vendors_word() -> None:
    reader = chat()
    feed(reader, chat_chunk(Answer(), [chat_choice({}, "w" * 1000)]), DONE)
    assert reader.finish() == Complete("w" * MAX_REASON)
    again = messages()
    *blocks, delta, stop = anthropic_blocks(Answer())
    feed(again, *blocks, delta.replace(b"end_turn", b"pause_turn"), stop)
    assert again.finish().reason == "pause_turn"


def test_usage_that_stands_beside_the_choices_is_taken_too() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    reader = chat()
    feed(reader, chat_chunk(Answer(), [chat_choice({"content": "a"})], usage=usage), DONE)
    assert reader.finish().usage == Usage(1, 2)
    silent = chat()
    feed(silent, *chat_blocks(Answer(), include_usage=False))
    assert silent.finish().usage is None


# Responses


def test_a_custom_tool_takes_text_of_any_kind() -> None:
    item = {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "{}\nselect"}
    event = data({"type": "response.output_item.done", "item": item}, "response.output_item.done")
    (told,) = responses().feed(event)
    assert uses([told]) == [("c", "sql", "{}\nselect")]


def test_items_of_other_types_are_no_calls() -> None:
    for item in ({"type": "reasoning", "summary": []}, {"type": "shell_call", "arguments": 7}):
        event = {"type": "response.output_item.done", "item": item}
        assert responses().feed(data(event, "response.output_item.done")) == ()


def test_a_response_that_failed_says_why() -> None:
    begun = response_blocks(Answer())[:5]
    limited = response_failed_block(Answer(), "rate_limit_exceeded", 5)
    assert fails(responses(), *begun, limited).code == "rate-limited"
    failed = response_failed_block(Answer(), "server_error", 5)
    assert fails(responses(), *begun, failed).code == "upstream-error"
    silent = data({"response": {"error": None}}, "response.failed")
    with pytest.raises(Failure, match="upstream-error"):
        responses().feed(silent)


def test_a_response_is_incomplete_for_a_reason() -> None:
    def incomplete(details: object) -> str:
        reader = responses()
        event = {"type": "response.incomplete", "response": {"incomplete_details": details}}
        reader.feed(data(event, "response.incomplete"))
        return reader.finish().reason

    assert incomplete({"reason": "max_output_tokens"}) == "length"
    assert incomplete({"reason": "lunch"}) == "lunch"
    assert incomplete(None) == incomplete({}) == "incomplete"


# Messages


def test_what_the_model_thinks_is_not_in_the_normal_view() -> None:
    told = feed(messages(), *anthropic_blocks(Answer(thinking=("Let me", " see"))))
    assert text(told) == "Hello world!"
    assert len(told) == 3


def test_tools_that_the_vendor_runs_itself_are_not_in_the_normal_view() -> None:
    reader = messages()
    block = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    delta = {"type": "input_json_delta", "partial_json": "{}"}
    result = {"type": "web_search_tool_result", "tool_use_id": "s", "content": [], "text": 7}
    told = feed(
        reader,
        anthropic_block({"type": "content_block_start", "index": 0, "content_block": block}),
        anthropic_block({"type": "content_block_delta", "index": 0, "delta": delta}),
        anthropic_block({"type": "content_block_stop", "index": 0}),
        anthropic_block({"type": "content_block_start", "index": 1, "content_block": result}),
        anthropic_block({"type": "content_block_stop", "index": 1}),
    )
    assert told == []


def test_a_block_may_begin_with_what_it_holds() -> None:
    reader = messages()
    begun = {"type": "text", "text": "Well"}
    used = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1.50]}}
    told = feed(
        reader,
        anthropic_block({"type": "content_block_start", "index": 0, "content_block": begun}),
        anthropic_block({"type": "content_block_start", "index": 1, "content_block": used}),
        anthropic_block({"type": "content_block_stop", "index": 1}),
    )
    assert (text(told), uses(told)) == ("Well", [("t", "f", {"a": [1.5]})])


def test_a_call_whose_block_is_not_ended_is_told_all_the_same() -> None:
    def begin(id: str) -> bytes:
        block = {"type": "tool_use", "id": id, "name": "f", "input": {}}
        return anthropic_block({"type": "content_block_start", "index": 0, "content_block": block})

    reader = messages()
    assert feed(reader, begin("a")) == []
    assert uses(feed(reader, begin("b"))) == [("a", "f", {})]
    assert uses(feed(reader, anthropic_block({"type": "message_stop"}))) == [("b", "f", {})]


def test_usage_is_what_the_last_event_says_of_each_count() -> None:
    reader = messages()
    *blocks, delta, stop = anthropic_blocks(Answer(input_tokens=25, output_tokens=15))
    feed(reader, *blocks, delta.replace(b'"input_tokens":25,', b""), stop)
    assert reader.finish().usage == Usage(25, 15)
    silent = messages()
    feed(silent, stop)
    assert silent.finish().usage is None


# Errors in the middle


STATUS_CODES = {
    400: "rejected",
    401: "unauthorized",
    403: "rejected",
    404: "rejected",
    429: "rate-limited",
    500: "upstream-error",
    503: "upstream-error",
}


@pytest.mark.parametrize("status", OPENAI_STATUSES)
def test_openai_says_in_the_middle_what_it_failed_at(status: int) -> None:
    code = STATUS_CODES[status]
    assert fails(chat(), *chat_blocks(Answer())[:3], chat_error_block(status)).code == code
    assert fails(completions(), chat_error_block(status)).code == code
    assert fails(responses(), response_error_block(status, 0)).code == code


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "rejected"),
        (401, "unauthorized"),
        (403, "unauthorized"),
        (404, "rejected"),
        (413, "rejected"),
        (429, "rate-limited"),
        (500, "upstream-error"),
        (529, "overloaded"),
    ],
)
def test_anthropic_says_in_the_middle_what_it_failed_at(status: int, code: str) -> None:
    blocks = anthropic_blocks(Answer())[:4]
    assert fails(messages(), *blocks, anthropic_error_block(status)).code == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"error": {"code": 429, "message": "x"}}, "rate-limited"),
        ({"error": {"code": "insufficient_quota", "type": "insufficient_quota"}}, "rejected"),
        ({"error": {"code": 502, "type": "overloaded_error"}}, "overloaded"),
        ({"error": {"code": None, "type": ["x"]}}, "upstream-error"),
        ({"error": {"code": {"a": 1}, "type": True}}, "upstream-error"),
        ({"error": {"code": "invalid_function_parameters", "type": "x"}}, "rejected"),
        ({"error": {"code": "image_too_large"}}, "rejected"),
        ({"error": "it broke"}, "upstream-error"),
        ({"error": ["it broke"]}, "upstream-error"),
    ],
    ids=str,
)
def test_errors_of_others_are_understood_as_far_as_they_go(error: object, code: str) -> None:
    with pytest.raises(Failure, match=f"^{code}$"):
        chat().feed(data(error))
    for make in (chat, completions, responses, messages):
        with pytest.raises(Failure, match=f"^{code}$"):
            make().feed(data(error, "error"))


def test_an_error_that_is_null_is_none() -> None:
    assert chat().feed(data({"error": None, "choices": []})) == []


@every
def test_nothing_of_the_vendors_message_is_told(
    make: Make, write: Callable[[Answer], list[bytes]]
) -> None:
    with pytest.raises(Failure) as raised:
        make().feed(data({"error": {"message": "sk-secret", "code": "sk-secret"}}, "error"))
    assert "secret" not in repr(raised.value) + repr(raised.value.told())


# What cannot be read, and limits


KNOWN = {
    "chat": (chat, "message"),
    "completions": (completions, "message"),
    "responses delta": (responses, "response.output_text.delta"),
    "responses item": (responses, "response.output_item.done"),
    "responses end": (responses, "response.completed"),
    "responses untyped": (responses, "message"),
    "messages start": (messages, "message_start"),
    "messages block": (messages, "content_block_start"),
    "messages delta": (messages, "content_block_delta"),
    "messages change": (messages, "message_delta"),
    "messages untyped": (messages, "message"),
}

BROKEN = (
    "",
    "{",
    "null",
    "7",
    "[]",
    "{}}",
    '{"choices": [',
    '{"choices": 7, "delta": 7, "item": 7, "response": 7, "message": 7, "index": [], "type": 7}',
    '{"choices": [{"delta": {"content": "\\ud800"}}], "delta": "\\ud800", "type": "\\ud800",'
    ' "item": "\\ud800", "response": "\\ud800", "message": "\\ud800", "index": "\\ud800"}',
    '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "nul\0l",
)


@pytest.mark.parametrize(("make", "kind"), KNOWN.values(), ids=KNOWN)
def test_what_cannot_be_read_is_malformed(make: Make, kind: str) -> None:
    for broken in BROKEN:
        with pytest.raises(Failure, match="malformed"):
            make().feed(data(broken, kind))


@vendors
def test_no_more_calls_than_the_limit_are_taken(
    make: Make, write: Callable[[Answer], list[bytes]]
) -> None:
    calls = [Call("f", ("{}",), f"call_{i}") for i in range(MAX_TOOLS + 1)]
    assert len(uses(feed(make(), *write(Answer((), calls[1:]))))) == MAX_TOOLS
    assert fails(make(), *write(Answer((), calls))).code == "too-large"


@pytest.mark.parametrize(
    ("make", "write"), [VENDORS["chat"], VENDORS["messages"]], ids=["chat", "messages"]
)
def test_no_more_arguments_than_the_limit_are_held(
    make: Make, write: Callable[[Answer], list[bytes]]
) -> None:
    def arguments(size: int) -> Call:
        fragment = "x" * 65536
        return Call("f", (*(fragment,) * (size // 65536), "x" * (size % 65536)), "c")

    most = MAX_TOOL_BYTES - len("f") - len("c")
    (use,) = uses(feed(make(), *write(_unread((arguments(most),) * 1))))
    assert len(use[2]) == most
    assert len(uses(feed(make(), *write(_unread((arguments(most),) * 3))))) == 3
    assert fails(make(), *write(_unread((arguments(most + 1),)))).code == "too-large"


def test_a_call_of_responses_is_within_the_limit_too() -> None:
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "x" * MAX_TOOL_BYTES}
    with pytest.raises(Failure, match="too-large"):
        responses().feed(data({"item": item}, "response.output_item.done"))


def _unread(calls: Sequence[Call]) -> Answer:
    """Whose calls are not as a model's are: no JSON."""
    return Answer((), calls)


# However it is cut


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@st.composite
def fragments(draw: st.DrawFn, whole: str) -> tuple[str, ...]:
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    return tuple(
        whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)
    )


@st.composite
def calls(draw: st.DrawFn) -> Call:
    value = draw(st.dictionaries(st.text(max_size=4), json_values, max_size=3))
    whole = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1)))
    name = draw(st.text(min_size=1, max_size=9))
    return Call(name, draw(fragments(whole)), draw(st.text(max_size=9)))


utf8_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
anything_said = st.builds(
    Answer,
    st.lists(utf8_text, max_size=6),
    st.lists(calls(), max_size=3),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)


@vendors
@given(answer=anything_said, size=st.integers(1, 1000))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_however_it_is_cut_the_text_and_the_calls_are_whole(
    make: Make, write: Callable[[Answer], list[bytes]], answer: Answer, size: int
) -> None:
    body = b"".join(write(answer))
    reader = make()
    told = feed(reader, *(body[start : start + size] for start in range(0, len(body), size)))
    assert text(told) == answer.text
    assert uses(told) == [(call.id, call.name, json.loads(call.whole)) for call in answer.calls]
    assert all(token.text for token in told if isinstance(token, Token))
    assert reader.finish() == Complete(
        answer.reason, Usage(answer.input_tokens, answer.output_tokens)
    )
    for event in told:
        assert msgspec.json.decode(msgspec.json.encode(event))


WORDS = st.sampled_from(
    [
        *("choices", "delta", "content", "tool_calls", "index", "function", "arguments", "id"),
        *("finish_reason", "usage", "error", "type", "item", "response", "text", "message"),
        *("content_block", "partial_json", "stop_reason", "code", "refusal", "input", "name"),
        *("function_call", "custom_tool_call", "tool_use", "text_delta", "input_json_delta"),
    ]
)
likely = st.recursive(
    st.none() | st.integers(-2, 2) | st.text(max_size=3) | WORDS | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=12,
)
kinds = st.sampled_from(
    [
        *("message", "error", "message_start", "content_block_start", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop", "response.output_text.delta"),
        *("response.output_item.done", "response.completed", "response.failed"),
        *("response.incomplete", "response.refusal.delta", "x"),
    ]
)


@every
@given(
    events=st.lists(
        st.builds(data, likely | st.dictionaries(WORDS, likely, max_size=6), kinds), max_size=8
    )
)
@settings(deadline=None)
def test_no_json_raises_anything_but_failure(
    make: Make, write: Callable[[Answer], list[bytes]], events: list[ServerSentEvent]
) -> None:
    _tell_all(make(), events)


@every
@given(body=st.binary(max_size=200), at=st.integers(0, 12), size=st.integers(0, 300))
@example(body=b"event: error\ndata: \xff\n\n", at=2, size=0)
@settings(deadline=None)
def test_no_bytes_raise_anything_but_failure(
    make: Make, write: Callable[[Answer], list[bytes]], body: bytes, at: int, size: int
) -> None:
    """Written over a stream, at any place."""
    blocks = write(Answer(calls=(Call(),)) if make is not completions else Answer())
    whole = b"".join(blocks)
    start = len(b"".join(blocks[:at]))
    spoilt = whole[: start + size] + body + whole[start + size + len(body) :]
    _tell_all(make(), Parser().receive_data(spoilt))


def _tell_all(reader: Normalizer, events: Sequence[ServerSentEvent]) -> None:
    failed: Failure | None = None
    reason = ""
    try:
        for event in events:
            for told in reader.feed(event):
                assert isinstance(told, Token | ToolUse)
                assert msgspec.json.decode(msgspec.json.encode(told))
        reason = reader.finish().reason
    except Failure as failure:
        failed = failure
    if failed is not None:
        assert failed.code in FAILURES
    else:
        assert reader.is_done
        assert 0 < len(reason) <= MAX_REASON
