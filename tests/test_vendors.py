"""The fake vendors write what the vendors' own SDKs take: their types hold of every block, and
their clients read the whole of it."""

import json
from collections.abc import Iterator, Sequence

import anthropic
import httpx
import openai
import pytest
from anthropic.types import Message, ModelInfo, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFailedEvent,
    ResponseIncompleteEvent,
    ResponseStreamEvent,
)
from pydantic import TypeAdapter
from vendors import (
    ANTHROPIC_STATUSES,
    DONE,
    OPENAI_STATUSES,
    PING,
    REQUEST_ID,
    Answer,
    Call,
    anthropic_blocks,
    anthropic_body,
    anthropic_error,
    anthropic_error_block,
    anthropic_models,
    chat_blocks,
    chat_body,
    chat_error_block,
    completion_blocks,
    openai_error,
    openai_models,
    response_blocks,
    response_body,
    response_error_block,
    response_failed_block,
)

from gateway.sse import Parser, ServerSentEvent

ANSWERS = {
    "text": Answer(),
    "nothing": Answer(pieces=()),
    "unicode": Answer(pieces=("Grüß", " dich 👋", "\n\r\n", "\u2028")),
    "refusal": Answer(refusal=True),
    "length": Answer(stop="length"),
    "stop sequence": Answer(stop="stop_sequence"),
    "filtered": Answer(stop="content_filter"),
    "a tool": Answer(pieces=(), calls=(Call(),)),
    "text and tools": Answer(calls=(Call(), Call("get_time", ("{", "}"), "call_2"))),
    "thinking": Answer(thinking=("Let me", " see")),
}
answers = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)


def events_of(blocks: Sequence[bytes]) -> Iterator[ServerSentEvent]:
    """Of blocks that are each one whole event."""
    parser = Parser()
    for block in blocks:
        (event,) = parser.receive_data(block)
        yield event


def serving(body: bytes, status: int = 200, kind: str = "application/json") -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=body, headers={"content-type": kind})

    return httpx.Client(transport=httpx.MockTransport(answer))


def streaming(blocks: Sequence[bytes]) -> httpx.Client:
    return serving(b"".join(blocks), kind="text/event-stream; charset=utf-8")


def openai_sdk(client: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="sk-1", base_url="http://fake/v1", http_client=client, max_retries=0
    )


def anthropic_sdk(client: httpx.Client) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="sk-1", base_url="http://fake", http_client=client, max_retries=0
    )


@answers
def test_the_types_of_the_sdks_hold_of_every_block(answer: Answer) -> None:
    *chunks, done = events_of(chat_blocks(answer))
    assert done.data == "[DONE]"
    for chunk in chunks:
        assert chunk.event == "message"
        ChatCompletionChunk.model_validate_json(chunk.data, strict=True)
    *chunks, done = events_of(completion_blocks(Answer(answer.pieces)))
    for chunk in chunks:
        # Its stop is None until the last one, which the type of a whole completion does not have.
        data = json.loads(chunk.data)
        for choice in data["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        Completion.model_validate(data, strict=True)
    responses: TypeAdapter[object] = TypeAdapter(ResponseStreamEvent)
    for number, event in enumerate(events_of(response_blocks(answer))):
        made = responses.validate_json(event.data)
        assert getattr(made, "type", None) == event.event
        assert getattr(made, "sequence_number", None) == number
    messages: TypeAdapter[object] = TypeAdapter(RawMessageStreamEvent)
    for event in events_of([b for b in anthropic_blocks(answer) if b != PING]):
        made = messages.validate_json(event.data)
        assert getattr(made, "type", None) == event.event


@answers
def test_the_types_of_the_sdks_hold_of_whole_bodies(answer: Answer) -> None:
    (choice,) = ChatCompletion.model_validate_json(chat_body(answer)).choices
    said = choice.message.refusal if answer.refusal else choice.message.content
    assert (said or "") == answer.text
    assert len(choice.message.tool_calls or ()) == len(answer.calls)
    response = Response.model_validate_json(response_body(answer))
    assert response.output_text == ("" if answer.refusal else answer.text)
    message = Message.model_validate_json(anthropic_body(answer))
    assert message.usage.output_tokens == answer.output_tokens


@answers
def test_the_sdks_read_a_stream_as_they_read_the_whole(answer: Answer) -> None:
    chat = openai_sdk(streaming(chat_blocks(answer)))
    *chunks, stop, usage = chat.chat.completions.create(model="m", messages=[], stream=True)
    whole = ChatCompletion.model_validate_json(chat_body(answer))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or delta.refusal or "" for delta in deltas) == answer.text
    fragments = [call for delta in deltas for call in delta.tool_calls or ()]
    arguments = [call.function.arguments or "" for call in fragments if call.function]
    assert "".join(arguments) == "".join(call.whole for call in answer.calls)
    assert stop.choices[0].finish_reason == whole.choices[0].finish_reason
    assert (usage.choices, usage.usage) == ([], whole.usage)
    responses = openai_sdk(streaming(response_blocks(answer)))
    *_, last = responses.responses.create(model="m", input="", stream=True)
    assert isinstance(last, ResponseCompletedEvent | ResponseIncompleteEvent)
    assert last.response == Response.model_validate_json(response_body(answer))
    messages = anthropic_sdk(streaming(anthropic_blocks(answer)))
    with messages.messages.stream(model="m", max_tokens=1, messages=[]) as told:
        message = told.get_final_message()
    again = Message.model_validate_json(anthropic_body(answer))
    assert [block.model_dump(exclude_none=True) for block in message.content] == [
        block.model_dump(exclude_none=True) for block in again.content
    ]
    assert (message.stop_reason, message.usage) == (again.stop_reason, again.usage)


def test_the_sdks_read_the_models() -> None:
    listed = openai_sdk(serving(openai_models())).models.list()
    assert all(Model.model_validate(model.model_dump()) for model in listed)
    models = anthropic_sdk(serving(anthropic_models())).models.list()
    assert all(ModelInfo.model_validate(model.model_dump()) for model in models)


@pytest.mark.parametrize("status", OPENAI_STATUSES)
def test_openai_fails_with_its_status_and_words(status: int) -> None:
    sdk = openai_sdk(serving(openai_error(status), status))
    with pytest.raises(openai.APIStatusError) as raised:
        sdk.models.list()
    assert raised.value.status_code == status
    error = json.loads(openai_error(status))["error"]
    assert (raised.value.type, raised.value.code) == (error["type"], error["code"])


@pytest.mark.parametrize("status", ANTHROPIC_STATUSES)
def test_anthropic_fails_with_its_status_and_words(status: int) -> None:
    sdk = anthropic_sdk(serving(anthropic_error(status), status))
    with pytest.raises(anthropic.APIStatusError) as raised:
        sdk.models.list()
    assert raised.value.status_code == status
    assert raised.value.body == json.loads(anthropic_error(status))
    if status != 413:  # the one that the SDK has no type for
        assert ErrorResponse.model_validate_json(anthropic_error(status)).request_id == REQUEST_ID


def test_the_sdks_raise_an_error_in_the_middle_of_a_stream() -> None:
    chat = openai_sdk(streaming([*chat_blocks(Answer())[:3], chat_error_block(429), DONE]))
    with pytest.raises(openai.APIError) as raised:
        list(chat.chat.completions.create(model="m", messages=[], stream=True))
    assert raised.value.code == "rate_limit_exceeded"
    blocks = response_blocks(Answer())[:5]
    error = response_error_block(500, 5)
    failed = response_failed_block(Answer(), "server_error", 6)
    responses = openai_sdk(streaming([*blocks, error, failed]))
    *_, first, last = responses.responses.create(model="m", input="", stream=True)
    assert first.type == "error"
    assert isinstance(last, ResponseFailedEvent)
    assert last.response.error is not None
    assert last.response.error.code == "server_error"
    messages = anthropic_sdk(
        streaming([*anthropic_blocks(Answer())[:4], anthropic_error_block(529)])
    )
    with pytest.raises(anthropic.APIStatusError) as refused:
        list(messages.messages.create(model="m", max_tokens=1, messages=[], stream=True))
    assert refused.value.body == json.loads(anthropic_error(529))
