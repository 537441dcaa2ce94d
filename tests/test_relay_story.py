"""What has come of a token stream, as a fold of its channel's frames."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.bus import wire
from gateway.event import Event, Frame, render
from gateway.position import ZERO, Position
from gateway.relay import events
from gateway.relay.events import Complete, Error, Failure, Normal, Start, Token, ToolUse, Usage
from gateway.relay.story import Story, snapshot_json, story_json

CHANNEL = "stream:a"

START = Start("a", "openai", "gpt")
USE = ToolUse("c", "f", msgspec.Raw(b'{"a": 1.50}'))
TOLD = [START, Token("Hel"), Token("lo\n"), USE, Complete("end", Usage(3, 4))]


def frames(told: Sequence[Normal | Event], first: int = 1000) -> list[Frame]:
    """Of a channel, a second apart."""
    return [
        render(
            event
            if isinstance(event, Event)
            else events.render(event, CHANNEL, end=isinstance(event, Complete | Error)),
            Position(first + n * 1000, 0),
        )
        for n, event in enumerate(told)
    ]


def fold(told: Sequence[Frame]) -> Story:
    story = Story()
    for frame in told:
        story.add(frame)
    return story


def shown(story: Story) -> Any:
    return json.loads(msgspec.json.encode(story_json(story)))


def test_a_story_is_all_that_was_told() -> None:
    story = fold(frames(TOLD))
    assert (story.state, story.reason, story.usage) == ("complete", "end", Usage(3, 4))
    assert (story.text, story.tokens, story.events) == ("Hello\n", 2, 4)
    assert [(use.id, use.name, bytes(use.input)) for use in story.tool_uses] == [
        ("c", "f", b'{"a": 1.50}')
    ]
    assert (story.upstream, story.model) == ("openai", "gpt")
    assert (story.started_ms, story.first_token_ms, story.ended_ms) == (1000, 2000, 5000)
    assert story.position == Position(5000, 0)
    assert story.whole
    assert story.error is None


def test_it_is_shown_in_camel_case() -> None:
    assert shown(fold(frames(TOLD))) == {
        "state": "complete",
        "text": "Hello\n",
        "toolUses": [{"id": "c", "name": "f", "input": {"a": 1.5}}],
        "reason": "end",
        "usage": {"inputTokens": 3, "outputTokens": 4},
        "error": None,
        "tokens": 2,
        "startedAt": 1000,
        "firstTokenAt": 2000,
        "endedAt": 5000,
        "lastEventId": "5000-0",
        "whole": True,
    }


def test_a_snapshot_is_what_viewers_need_who_join_late() -> None:
    snapshot = json.loads(msgspec.json.encode(snapshot_json(fold(frames(TOLD[:3])))))
    assert snapshot == {
        "state": "streaming",
        "text": "Hello\n",
        "toolUses": [],
        "tokens": 2,
        "whole": True,
    }


def test_nothing_is_known_before_the_first_frame() -> None:
    assert shown(Story()) == {
        "state": "streaming",
        "text": "",
        "toolUses": [],
        "reason": None,
        "usage": None,
        "error": None,
        "tokens": 0,
        "startedAt": None,
        "firstTokenAt": None,
        "endedAt": None,
        "lastEventId": str(ZERO),
        "whole": False,
    }


@pytest.mark.parametrize("reason", ["stopped", "unwatched"])
def test_what_somebody_stopped_is_stopped(reason: str) -> None:
    story = fold(frames([START, Token("a"), Complete(reason)]))
    assert (story.state, story.reason, story.text) == ("stopped", reason, "a")


def test_an_error_is_shown_with_what_came_before_it() -> None:
    error = Failure("rate-limited", status=429).told()
    story = shown(fold(frames([START, Token("a"), error])))
    assert (story["state"], story["text"], story["reason"]) == ("error", "a", None)
    assert story["error"] == {
        "code": "rate-limited",
        "message": error.message,
        "retryable": True,
        "status": 429,
    }
    assert story["endedAt"] == 3000


def test_where_the_beginning_is_gone_the_story_is_not_whole() -> None:
    story = fold(frames(TOLD)[2:])
    assert not story.whole
    assert (story.text, story.started_ms, story.first_token_ms) == ("lo\n", None, 3000)
    assert (story.state, story.events) == ("complete", 3)


def test_what_was_published_before_the_start_is_not_of_it() -> None:
    before: list[Normal | Event] = [Token("before"), USE, Event((CHANNEL,), "hello", "message")]
    story, alone = fold(frames([*before, *TOLD])), fold(frames(TOLD, 4000))
    assert shown(story) == shown(alone)
    assert story.events == alone.events


def test_a_story_that_has_lost_its_middle_does_not_begin_anew() -> None:
    story = fold(frames(TOLD[:2]))
    story.whole = False
    story.add(frames([START], 9000)[0])
    assert (story.started_ms, story.events, story.whole) == (1000, 2, False)


def test_a_frame_that_comes_again_changes_nothing() -> None:
    once = frames(TOLD)
    twice = fold([*once[:3], *once[1:], *once])
    assert shown(twice) == shown(fold(once))
    assert twice.events == 4


def test_an_upstream_may_have_events_of_these_types_of_its_own() -> None:
    own = [
        Event((CHANNEL,), '{"reason": "lunch"}', "complete"),
        Event((CHANNEL,), '{"code": "own"}', "error"),
        Event((CHANNEL,), "{}", "start"),
        Event((CHANNEL,), "no", "tool_use"),
        Event((CHANNEL,), "plain"),
    ]
    story = fold(frames([START, *own, Token("a")]))
    assert (story.state, story.text, story.events, story.tokens) == ("streaming", "a", 6, 1)
    assert (story.reason, story.error, story.tool_uses, story.upstream) == (
        None,
        None,
        [],
        "openai",
    )
    done = fold(frames([START, *own, Complete("end")]))
    assert (done.state, done.reason) == ("complete", "end")


@pytest.mark.parametrize(
    "data",
    [
        *("", "[DONE]", "{", "7", "null", '"text"', '["text"]', "{}", '{"text": 7}', "a\nb"),
        *('{"text": "\\ud800"}', '{"x": ' + "[" * 5000 + "]" * 5000 + "}"),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_a_token_that_is_none_of_ours_counts_and_says_nothing(data: str) -> None:
    ended = Event((CHANNEL,), data, "complete", end=True)
    story = fold(frames([START, Event((CHANNEL,), data, "token"), Token("a"), ended]))
    assert (story.text, story.tokens, story.events) == ("a", 2, 3)
    assert (story.state, story.reason, story.usage) == ("complete", None, None)
    assert fold(frames([Event((CHANNEL,), data, "error", end=True)])).error is None


def test_data_of_several_lines_is_read() -> None:
    pretty = Event((CHANNEL,), '{\n  "text": "a",\n  "logprob": -1\n}', "token")
    story = fold(frames([START, pretty, Event((CHANNEL,), '{"text":\r"b"}', "token")]))
    assert story.text == "ab"


def test_an_end_of_another_type_is_an_end() -> None:
    story = fold(frames([START, Event((CHANNEL,), '{"reason": "x"}', "bye", end=True)]))
    assert (story.state, story.reason, story.ended_ms) == ("complete", None, 2000)


def test_a_story_can_go_on_after_it_was_read() -> None:
    story = Story()
    seen = ""
    for frame in frames([START, *(Token(str(n)) for n in range(100))]):
        story.add(frame)
        assert story.text.startswith(seen)
        seen = story.text
    assert seen == "".join(map(str, range(100)))


def test_frames_that_came_through_redis_are_read_alike() -> None:
    story = Story()
    for n, told in enumerate(TOLD):
        sent = wire.encode(events.render(told, CHANNEL, end=isinstance(told, Complete)))
        frame, _, _ = wire.decode(b"1 %d-0 0-0 99 %b" % (1000 + n * 1000, sent), (CHANNEL,))
        story.add(frame)
    assert shown(story) == shown(fold(frames(TOLD)))


@given(
    pieces=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=20),
    read=st.sets(st.integers(0, 20)),
)
@settings(deadline=None)
def test_however_the_text_is_cut_it_is_whole(pieces: list[str], read: set[int]) -> None:
    story = Story()
    for n, frame in enumerate(frames([START, *map(Token, pieces)])):
        story.add(frame)
        if n in read:
            assert story.text == "".join(pieces[:n])
    assert story.text == "".join(pieces)
    assert story.tokens == story.events == len(pieces)


likely = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "text", "name", "input", "reason", "usage", "code"]), inner
        )
    ),
    max_leaves=8,
)


@given(
    told=st.lists(
        st.tuples(
            st.sampled_from([*("start", "token", "tool_use", "complete", "error", "x"), None]),
            likely.map(json.dumps) | st.text(st.characters(exclude_categories=["Cs"])),
            st.booleans(),
        ),
        max_size=8,
    )
)
@settings(deadline=None)
def test_no_data_raises(told: list[tuple[str | None, str, bool]]) -> None:
    channel = [Event((CHANNEL,), data, kind, end=end) for kind, data, end in told]
    story = fold(frames(channel))
    assert shown(story)["lastEventId"] == str(story.position)
    if not story.whole:
        assert story.events == len(told)
    assert (story.state == "streaming") == (not any(end for _, _, end in told))
