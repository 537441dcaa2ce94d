"""Origins: what a setting may name, and what is one of them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.origins import MAX_ORIGINS, Origins, is_of_host, parse_origins

LABELS = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,4}[a-z0-9_])?", fullmatch=True)
HOSTS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
PORTS = st.sampled_from(["", ":1", ":8080", ":65535"])

PATTERN = "https://*.app.example"


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://app.example", "https://app.example"),
        ("HTTPS://App.Example", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("https://app.example:0443", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("https://app.example:8443", "https://app.example:8443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://[0:0::1]", "http://[::1]"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("https://a_b.example", "https://a_b.example"),
        ("capacitor://localhost", "capacitor://localhost"),
        (PATTERN, "https://a.app.example"),
        (PATTERN, "https://a.b.c.app.example"),
        (PATTERN + ":443", "https://a.app.example"),
        (PATTERN + ":8443", "https://a.app.example:8443"),
        ("http://*.localhost:3000", "http://a.localhost:3000"),
    ],
)
def test_an_origin_is_known_as_a_browser_sends_it(written: str, origin: str) -> None:
    assert parse_origins([written]).names(origin.encode())


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example",
        "https://.app.example",
        "https://a..app.example",
        "https://-.app.example",
        "https://xapp.example",
        "https://a.app.example.",
        "https://a.app.example.evil",
        "https://a.app.example:8443",
        "https://a:1.app.example",
        "https://evil.example/.app.example",
        "https://evil.example/a.app.example",
        "https://evil.example#.app.example",
        "https://evil.example?.app.example",
        "https://evil.example@a.app.example",
        "https://a.app.example/",
        "https://a.app.example\n",
        "https://a\n.app.example",
        "https://A.app.example",
        "http://a.app.example",
        "https://a.app.example https://evil.example",
        "https://*.app.example",
        "https://",
        "https://\xfc.app.example",
        "*",
        "null",
        "",
    ],
)
def test_a_pattern_does_not_match_what_only_looks_like_it(origin: str) -> None:
    assert not parse_origins([PATTERN, "https://other.example"]).names(origin.encode("latin-1"))


@pytest.mark.parametrize(
    "written",
    [
        "null",
        "NULL",
        "app.example",
        "https://",
        "https://app.example/",
        "https://app.example/path",
        "https://app.example?x",
        "https://user@app.example",
        "https://app.example:",
        "https://app.example:65536",
        "https://app.example:x",
        "https://app.example:123456",
        "https://app..example",
        "https://app.example.",
        "https://b\xfccher.example",
        "https://*",
        "https://*.",
        "https://a.*.example",
        "https://*.*.example",
        "https://a*.example",
        "https://**.example",
        "https://app.example:*",
        "*://app.example",
        "*.app.example",
        "https://*.[::1]",
        "https://[::1",
        "https://[1:2]",
        "https://app.example\n",
        "https://app.example https://b.example",
        "\u212aelvin://app.example",
        "",
    ],
)
def test_what_is_no_origin_is_refused_with_a_sentence_that_shows_it(written: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_origins(["https://ok.example", written])
    assert repr(written) in caught.value.detail
    assert caught.value.detail.endswith(".")


def test_more_origins_than_are_looked_through_are_refused() -> None:
    written = [f"https://a{number}.example" for number in range(MAX_ORIGINS)]
    assert parse_origins(written).names(b"https://a0.example")
    assert parse_origins([*written, written[0], "*"])  # neither is one more
    with pytest.raises(BadRequest, match=f"the most is {MAX_ORIGINS}"):
        parse_origins([*written, "https://*.b.example"])


def test_everybody_is_nobody_in_particular() -> None:
    origins = parse_origins(["*"])
    assert origins
    assert origins.everybody
    assert not origins.names(b"https://app.example")
    assert not origins.names(b"*")
    assert not parse_origins([])


@given(HOSTS, PORTS)
def test_an_exact_origin_is_itself_and_no_other(host: str, port: str) -> None:
    origin = f"https://{host}{port}"
    origins = parse_origins([origin])
    assert origins.names(origin.encode())
    for other in (f"http://{host}{port}", f"{origin}/", f"https://x.{host}{port}", f"{origin}.x"):
        assert not origins.names(other.encode())


@given(HOSTS, HOSTS, PORTS)
def test_a_star_stands_for_labels_before_the_rest(before: str, rest: str, port: str) -> None:
    origins = parse_origins([f"https://*.{rest}{port}"])
    assert origins.names(f"https://{before}.{rest}{port}".encode())
    assert not origins.names(f"https://{rest}{port}".encode())
    assert not origins.names(f"https://{before}.{rest}.evil{port}".encode())


@given(st.text("a.:/-@*h\n", max_size=12), HOSTS)
def test_what_a_pattern_matches_is_an_origin_below_its_host(middle: str, rest: str) -> None:
    origin = f"https://{middle}.{rest}"
    if parse_origins([f"https://*.{rest}"]).names(origin.encode()):
        labels = middle.split(".")
        assert all(label and set(label) <= set("ah-") for label in labels)
        assert parse_origins([origin]).exact == {origin.encode()}


@given(st.binary(max_size=60))
def test_whatever_a_header_holds_the_answer_is_yes_or_no(origin: bytes) -> None:
    origins = parse_origins([PATTERN, "https://app.example"])
    assert origins.names(origin) in (True, False)
    assert is_of_host(origin, origin) in (True, False)


@given(st.text(max_size=40))
def test_a_setting_is_read_or_refused_and_nothing_else(written: str) -> None:
    with suppress(BadRequest):
        assert parse_origins([written])


def test_a_long_origin_is_matched_in_linear_time() -> None:
    """A host of many labels that does not match in the end: the regular expression never goes back
    over them."""
    origins = parse_origins([PATTERN])
    assert not origins.names(b"https://" + b"a." * 200_000 + b"-.app.example")
    assert origins.names(b"https://" + b"a." * 200_000 + b"a.app.example")


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        (b"https://gw.example", b"gw.example", True),
        (b"https://gw.example", b"GW.Example", True),
        (b"https://gw.example", b"gw.example:443", True),
        (b"http://gw.example", b"gw.example:80", True),
        (b"http://gw.example", b"gw.example:443", False),
        (b"https://gw.example:8443", b"gw.example:8443", True),
        (b"https://gw.example:8443", b"gw.example", False),
        (b"http://[::1]:8080", b"[::1]:8080", True),
        (b"https://x.gw.example", b"gw.example", False),
        (b"https://gw.example.evil", b"gw.example", False),
        (b"https://gw.example/", b"gw.example", False),
        (b"gw.example", b"gw.example", False),
        (b"null", b"null", False),
        (b"", b"", False),
    ],
)
def test_an_origin_is_of_the_host_with_the_same_name_and_port(
    origin: bytes, host: bytes, same: bool
) -> None:
    assert is_of_host(origin, host) is same


def test_no_origins_are_false() -> None:
    assert not Origins()
