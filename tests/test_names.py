"""Channel names, user channels and patterns."""

import string
from contextlib import suppress
from urllib.parse import unquote

import pytest
from fuzz_targets import matches
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.names import (
    GLOBAL,
    MAX_CHANNEL_NAME,
    check_channel,
    check_subscribable,
    compile_pattern,
    is_reserved,
    user_channel,
)

LEGAL = string.ascii_letters + string.digits + "_-.:/@~%+"
LONGEST = "x" * MAX_CHANNEL_NAME

# Few letters, so that names and patterns meet often.
SEGMENTS = st.text("ab", min_size=1, max_size=2)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=6).map(".".join)
PATTERNS = st.tuples(
    st.lists(st.one_of(SEGMENTS, st.just("*")), max_size=5), st.sampled_from([[], ["**"]])
).map(lambda parts: ".".join([*parts[0], *parts[1]]))
# At most 16 characters: a name holds them even where each is encoded as four bytes.
USERS = st.one_of(st.text(min_size=1, max_size=16), st.text("ab.%25E", min_size=1, max_size=8))


@pytest.mark.parametrize(
    "name", ["a", "0", "ticker.btc", "org/7:x@y~z%20+1_-", LEGAL, LONGEST, "global", "user:42"]
)
def test_a_legal_name_is_given_back(name: str) -> None:
    assert check_channel(name) == name


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "empty"),
        (LONGEST + "x", "201 characters"),
        ("a b", "contains ' '"),
        ("a\n", r"contains '\n'"),
        ("a,b", "contains ','"),
        ("a*", "contains '*'"),
        ("caf\u00e9", "contains '\u00e9'"),
        ("\u0661", "contains"),
        ("\ud800", r"contains '\ud800'"),
        ("a..b", "empty segment"),
        (".a", "empty segment"),
        ("a.", "empty segment"),
        (".", "empty segment"),
    ],
)
def test_an_illegal_name_is_refused_with_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_channel(name)
    assert sentence in refused.value.detail


@settings(deadline=None)
@given(st.text())
def test_a_name_is_legal_exactly_by_the_grammar(name: str) -> None:
    legal = 1 <= len(name) <= MAX_CHANNEL_NAME and set(name) <= set(LEGAL) and all(name.split("."))
    try:
        assert check_channel(name) == name
        assert legal
    except BadRequest:
        assert not legal


@settings(deadline=None)
@given(st.text(min_size=MAX_CHANNEL_NAME + 1, max_size=2000))
def test_a_refusal_shows_the_name_short_and_printable(name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_channel(name)
    assert refused.value.detail.isprintable()
    assert len(refused.value.detail) < 1000


@pytest.mark.parametrize(
    ("name", "reserved"),
    [
        ("global", True),
        ("user:", True),
        ("user:42", True),
        ("globals", False),
        ("global.x", False),
        ("users:42", False),
        ("user.42", False),
        ("a.user:42", False),
        ("Global", False),
    ],
)
def test_global_and_user_channels_are_reserved(name: str, reserved: bool) -> None:
    assert is_reserved(name) is reserved


def test_a_client_may_ask_for_global_which_it_has_anyway() -> None:
    assert check_subscribable(GLOBAL) == GLOBAL


def test_a_client_may_not_ask_for_a_user_channel() -> None:
    with pytest.raises(BadRequest, match="reserved"):
        check_subscribable("user:42")


def test_a_client_may_not_ask_for_an_illegal_name() -> None:
    with pytest.raises(BadRequest, match="empty segment"):
        check_subscribable("a..b")


@pytest.mark.parametrize(
    ("user", "channel"),
    [
        ("42", "user:42"),
        ("a.b", "user:a.b"),
        ("ann@example.org", "user:ann@example.org"),
        ("auth0|7", "user:auth0%7C7"),
        ("a b", "user:a%20b"),
        ("a+b", "user:a+b"),
        ("50%", "user:50%25"),
        ("%2E", "user:%252E"),
        ("a..b", "user:a%2E%2Eb"),
        (".a", "user:%2Ea"),
        ("a.b.", "user:a%2Eb%2E"),
        ("*", "user:%2A"),
        ("\u00e9", "user:%C3%A9"),
        ("\0", "user:%00"),
    ],
)
def test_the_channel_of_a_user(user: str, channel: str) -> None:
    assert user_channel(user) == channel


@settings(deadline=None)
@given(USERS)
def test_the_channel_of_any_user_is_legal_and_reserved(user: str) -> None:
    channel = user_channel(user)
    assert check_channel(channel) == channel
    assert is_reserved(channel)


@settings(deadline=None)
@given(USERS)
def test_a_user_channel_decodes_to_its_user_so_no_two_users_share_one(user: str) -> None:
    assert unquote(user_channel(user).removeprefix("user:")) == user


@pytest.mark.parametrize(
    ("user", "sentence"),
    [
        ("", "at least one character"),
        ("\ud800", "lone surrogates"),
        ("x" * 196, "too long"),
        ("\u20ac" * 22, "too long"),
    ],
)
def test_a_user_without_a_channel_is_refused_with_a_sentence(user: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        user_channel(user)


def test_the_longest_user_fills_a_channel_name() -> None:
    assert len(user_channel("x" * 195)) == MAX_CHANNEL_NAME


@pytest.mark.parametrize(
    ("pattern", "matched", "unmatched"),
    [
        ("a.b", ["a.b"], ["a", "a.b.c", "a.c", "A.b", "aXb"]),
        ("*", ["a", "global"], ["a.b"]),
        ("ticker.*", ["ticker.btc"], ["ticker", "ticker.btc.eur", "tickers.btc"]),
        ("*.b", ["a.b", "b.b"], ["b", "a.a.b"]),
        ("a.*.c", ["a.b.c"], ["a.c", "a.b.b.c"]),
        ("org.7.**", ["org.7", "org.7.a", "org.7.a.b"], ["org", "org.70", "org.8.a"]),
        ("*.**", ["a", "a.b", "a.b.c"], []),
        ("**", ["a", "a.b", "global", "user:42"], []),
        (
            "user:*",
            ["user:42", "user:a.b", "user:a.b.c"],
            ["user:", "user", "users:42", "a.user:42"],
        ),
        ("user:42", ["user:42"], ["user:43", "user:42.a"]),
        ("global", ["global"], ["global.a"]),
    ],
)
def test_a_pattern_matches(pattern: str, matched: list[str], unmatched: list[str]) -> None:
    compiled = compile_pattern(pattern)
    assert [name for name in matched + unmatched if compiled.matches(name)] == matched


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("", "empty"),
        ("a..*", "empty segment"),
        (".*", "empty segment"),
        ("**.", "empty segment"),
        ("a*b", "within a segment"),
        ("a*", "within a segment"),
        ("a.***", "within a segment"),
        ("user:**", "within a segment"),
        ("user:*.a", "within a segment"),
        ("a.user:*", "within a segment"),
        ("**.a", "before its end"),
        ("**.**", "before its end"),
        ("a?", "contains '\\?'"),
        ("a.[b]", "contains '\\['"),
        ("\ud800", "contains"),
        (LONGEST + "x", "201 characters"),
    ],
)
def test_a_bad_pattern_is_refused_with_a_sentence(pattern: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        compile_pattern(pattern)


@settings(deadline=None)
@given(PATTERNS.filter(bool), NAMES)
def test_matching_agrees_with_the_recursive_definition(pattern: str, name: str) -> None:
    expected = matches(pattern.split("."), name.split("."))
    assert compile_pattern(pattern).matches(name) == expected


@settings(deadline=None)
@given(NAMES)
def test_a_name_is_a_pattern_that_matches_itself(name: str) -> None:
    assert compile_pattern(name).matches(name)


@settings(deadline=None)
@given(USERS)
def test_the_user_pattern_matches_the_channel_of_every_user(user: str) -> None:
    assert compile_pattern("user:*").matches(user_channel(user))


@settings(deadline=None)
@given(st.one_of(st.text(), st.text("ab.*:", max_size=8), st.text("user:*.", max_size=8)))
def test_any_text_compiles_or_is_a_bad_request(text: str) -> None:
    with suppress(BadRequest):
        assert compile_pattern(text).text == text
