"""Settings: where they come from, what is refused and how, what the README says of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import ChannelRule, Config, LogLevel, is_loopback, split_address
from gateway.errors import ConfigError
from gateway.policy import Policy
from gateway.settings import SETTINGS, load, settings_table

README = Path(__file__).parent.parent / "README.md"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "x.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def refusal(
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    file: Path | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags or {}, environ or {}, file)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    return sentence


def test_without_any_source_the_defaults_hold() -> None:
    loaded = load({}, {}, None)
    assert loaded.config == Config()
    assert loaded.sources == dict.fromkeys(SETTINGS, "default")


def test_flags_go_over_variables_over_the_file_over_defaults(write: Write) -> None:
    file = write("keepalive = 1\nretry = 1\nbacklog = 1")
    loaded = load(
        {"keepalive": "3", "demo": None}, {"GATEWAY_KEEPALIVE": "2", "GATEWAY_RETRY": "2"}, file
    )
    assert (loaded.config.keepalive, loaded.config.retry, loaded.config.backlog) == (3.0, 2.0, 1)
    assert loaded.sources["keepalive"] == "flag --keepalive"
    assert loaded.sources["retry"] == "variable GATEWAY_RETRY"
    assert loaded.sources["backlog"] == f"file {file}"
    assert loaded.sources["demo"] == "default"


def test_a_variable_may_name_the_file_and_a_flag_goes_over_it(tmp_path: Path) -> None:
    named, given = tmp_path / "named.toml", tmp_path / "given.toml"
    named.write_text("backlog = 1")
    given.write_text("backlog = 2")
    environ = {"GATEWAY_CONFIG": str(named)}
    assert load({}, environ, None).config.backlog == 1
    assert load({}, environ, given).config.backlog == 2


def test_text_from_variables_becomes_the_type_of_the_setting() -> None:
    environ = {
        "GATEWAY_DEMO": "false",
        "GATEWAY_INSECURE": "1",
        "GATEWAY_POLICY": "catch-up",
        "GATEWAY_LOG_LEVEL": "debug",
        "GATEWAY_NODE_ID": "7",
        "GATEWAY_RETRY": "1e1",
    }
    config = load({}, environ, None).config
    assert config == Config(
        demo=False,
        insecure=True,
        policy=Policy.CATCH_UP,
        log_level=LogLevel.DEBUG,
        node_id="7",
        retry=10.0,
    )
    assert isinstance(config.policy, Policy)


def test_a_variable_for_the_commands_that_talk_to_a_node_is_no_setting_and_no_error() -> None:
    assert load({}, {"GATEWAY_URL": "http://x", "PATH": "/"}, None).config == Config()


@pytest.mark.parametrize("raw", ["abc", "", "-1", "0", "3601", "nan", "inf", " 5"])
def test_a_refused_value_is_named_with_its_source_and_what_would_be_right(raw: str) -> None:
    expected = "but must be a number of seconds from 0.05 to 3600."
    assert refusal({"keepalive": raw}) == f"keepalive is {raw!r} (flag --keepalive), {expected}"
    assert (
        refusal(environ={"GATEWAY_KEEPALIVE": raw})
        == f"keepalive is {raw!r} (variable GATEWAY_KEEPALIVE), {expected}"
    )


def test_a_value_is_refused_even_where_another_goes_over_it() -> None:
    assert "GATEWAY_RETRY" in refusal({"retry": "1"}, {"GATEWAY_RETRY": "0"})


def test_a_sentence_shows_only_the_beginning_of_a_long_value() -> None:
    assert len(refusal({"keepalive": "x" * 10_000})) < 300


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"backlog": "1.5"}, "a whole number of connections from 1 to 65535"),
        ({"policy": "keep"}, "one of drop, latest, disconnect, catch-up"),
        ({"log_level": "INFO"}, "one of debug, info, warning, error"),
        ({"demo": "maybe"}, "true or false"),
        ({"max_event_bytes": "2000000"}, "at most outbox_bytes, which is 1048576 (default)"),
        ({"outbox_bytes": "2000"}, "at most outbox_bytes, which is 2000 (flag --outbox-bytes)"),
        ({"max_body_bytes": "2000"}, "at most max_body_bytes, which is 2000"),
        ({"pending_bytes": "2000"}, "at most pending_bytes, which is 2000"),
        ({"policy": "catch-up", "history_events": "0"}, "nothing to catch up from"),
        ({"policy": "catch-up", "history_bytes": "0"}, "nothing to catch up from"),
        (
            {"cors_origins": "https://a.example, b.example"},
            "cors_origins (flag --cors-origins) cannot be used: 'b.example' is no origin",
        ),
        ({"cors_origins": "null"}, "it cannot be named"),
        ({"kepalive": "1"}, "kepalive (flag --kepalive) is not a setting; did you mean keepalive?"),
    ],
)
def test_flags_that_cannot_be_used(flags: dict[str, object], sentence: str) -> None:
    assert sentence in refusal(flags)


@pytest.mark.parametrize(
    ("variable", "right"),
    [
        ("GATEWAY_KEPALIVE", "did you mean keepalive?"),
        ("GATEWAY_ZZZ", "`gateway config` lists all there are."),
        ("GATEWAY_CHANNELS", "is not a setting"),
    ],
)
def test_an_unknown_variable_is_refused(variable: str, right: str) -> None:
    sentence = refusal(environ={variable: "1"})
    assert f"variable {variable}" in sentence
    assert right in sentence


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("keepalive = '15'", "keepalive is '15' (file {file}), but must be a number of seconds"),
        ("keepalive = true", "keepalive is True (file {file}), but must be a number of seconds"),
        ("backlog = 5.0", "a whole number"),
        ("demo = 1", "true or false"),
        ("node_id = 7", "but must be text"),
        ("[keepalive]", "keepalive is {{}} (file {file})"),
        ("kepalive = 1", "kepalive (file {file}) is not a setting; did you mean keepalive?"),
        ("channels = []", "channels (file {file}) is not a setting"),
        ("keepalive =", "file {file} is not TOML: "),
        ("channel = 3", "channel is 3 (file {file}), but must be written as [[channel]] tables."),
        ("[channel]\nmatch = '*'", "but must be written as [[channel]] tables."),
        ("[[channel]]", "match is missing (file {file}, [[channel]] 1)"),
        ("[[channel]]\nmatch = 3", "match is 3 (file {file}, [[channel]] 1), but must be text."),
        ("[[channel]]\nmatch = 'a.**.b'", "match (file {file}, [[channel]] 1) is no pattern: "),
        ("[[channel]]\nmatch = '*'\npublic = 1", "public is 1"),
        ("[[channel]]\nmatch = '*'\npolcy = 'drop'", "did you mean policy?"),
        ("[[chanel]]\nmatch = '*'", "did you mean channel?"),
        ("[[channel]]\nmatch = '*'\nkeepalive = 1", "keepalive (file {file}, [[channel]] 1) is"),
        ("[[channel]]\nmatch = '*'\nhistory_events = -1", "from 0 to 1000000"),
        (
            "[[channel]]\nmatch = '*'\n[[channel]]\nmatch = 'a'\npolicy = 'catch-up'\n"
            "history_events = 0",
            "policy is 'catch-up' (file {file}, [[channel]] 2), but must be another one",
        ),
        ("policy = 'catch-up'\n[[channel]]\nmatch = 'a'\nhistory_bytes = 0", "catch up from"),
    ],
)
def test_a_file_that_cannot_be_used(toml: str, sentence: str, write: Write) -> None:
    file = write(toml)
    assert sentence.format(file=file) in refusal(file=file)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert refusal(file=missing) == f"file {missing} cannot be read: No such file or directory."
    assert "Is a directory" in refusal(file=tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"node_id = '\xe9'")
    assert "is not TOML" in refusal(file=latin)


def test_the_first_rule_that_matches_a_channel_wins_and_inherits_the_general_settings(
    write: Write,
) -> None:
    config = load(
        {"history_seconds": "60"},
        {},
        write("""
            policy = "disconnect"
            [[channel]]
            match = "ticker.*"
            policy = "latest"
            history_events = 100
            public = true
            [[channel]]
            match = "ticker.**"
            history_bytes = 0
        """),
    ).config
    general = ChannelRule("**", Policy.DISCONNECT, 1000, 1024 * 1024, 60.0)
    assert config.rule("ticker.btc") == config.channels[0]
    assert config.channels[0] == ChannelRule(
        "ticker.*", Policy.LATEST, 100, 1024 * 1024, 60.0, public=True
    )
    assert config.rule("ticker.btc.usd") == dataclasses.replace(
        general, match="ticker.**", history_bytes=0
    )
    assert config.rule("news") == general


def test_rules_may_name_reserved_channels(write: Write) -> None:
    config = load(
        {},
        {},
        write("""
            [[channel]]
            match = "user:*"
            history_events = 7
            [[channel]]
            match = "global"
            history_events = 8
        """),
    ).config
    assert config.rule("user:ann").history_events == 7
    assert config.rule("global").history_events == 8


@pytest.mark.parametrize(
    ("address", "pair"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_an_address_is_host_and_port(address: str, pair: tuple[str, int]) -> None:
    assert split_address(address) == pair
    assert load({"bind": address}, {}, None).config.bind == address


@pytest.mark.parametrize(
    "address",
    [
        *("", "8080", ":8080", "localhost", "localhost:", "localhost:65536", "localhost:-1"),
        *("::1:8080", "[1::2::3]:1", "[127.0.0.1]:1", "http://localhost:1", "a b:1", "a:1\n"),
        "localhost:\u0663",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    sentence = refusal({"bind": address})
    assert "must be host:port, as 127.0.0.1:8080, or [IPv6]:port, as [::1]:8080" in sentence


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", "127.1", ""]
)
def test_every_other_host_counts_as_public(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("bind", ["0.0.0.0:8080", "[::]:8080", "gateway.internal:80"])
def test_a_public_bind_needs_insecure_and_the_refusal_says_why(bind: str) -> None:
    sentence = refusal(environ={"GATEWAY_BIND": bind})
    assert "anyone who reaches it may publish and subscribe" in sentence
    assert "variable GATEWAY_BIND" in sentence
    assert "--insecure" in sentence
    assert load({"bind": bind, "insecure": True}, {}, None).config.bind == bind


def test_every_setting_says_why_and_its_default_is_within_its_bounds() -> None:
    assert set(SETTINGS) == {field.name for field in dataclasses.fields(Config)} - {
        *("channels", "issuers", "api_keys", "upstreams")
    }
    for setting in SETTINGS.values():
        assert setting.reason
        assert "|" not in setting.reason, "it would end the cell of the README's table"
        assert (setting.bounds is not None) == (setting.type in (int, float))
        assert type(setting.default) is setting.type
        assert setting.read(setting.default, "default", strict=True) == setting.default


def test_the_readme_documents_every_setting() -> None:
    """``python -c 'from gateway.settings import *; print(settings_table())'`` renders it anew."""
    _, _, rest = README.read_text(encoding="utf-8").partition("<!-- settings -->\n")
    table, _, _ = rest.partition("<!-- /settings -->")
    assert table == settings_table()


@pytest.mark.parametrize(("one", "other"), [("tls_cert", "tls_key"), ("tls_key", "tls_cert")])
def test_tls_needs_both_of_its_files(one: str, other: str) -> None:
    source = "flag --" + one.replace("_", "-")
    expected = f"{one} is set ({source}), but {other} is not; TLS needs both files."
    assert refusal({one: "x.pem"}) == expected
    load({one: "x.pem", other: "y.pem"}, {}, None)  # which are read when a node starts


@pytest.mark.parametrize("part", ["10.0.0.1/8", "proxy.example", "10.0.0.0/33", "10.0.0.1:80"])
def test_trusted_proxies_are_addresses_and_networks(part: str, write: Write) -> None:
    sentence = refusal({"trusted_proxies": f"10.0.0.7, {part}"})
    assert sentence.startswith(f"trusted_proxies (flag --trusted-proxies) has {part!r}, but must ")
    file = write('trusted_proxies = ["10.0.0.7", "192.168.0.0/16", "fd00::/8", "::1"]')
    config = load({}, {}, file).config
    assert config.trusted_proxies == "10.0.0.7,192.168.0.0/16,fd00::/8,::1"


def test_the_proxy_protocol_needs_somebody_who_may_speak_it() -> None:
    sentence = refusal({"proxy_protocol": "true"})
    assert sentence == (
        "proxy_protocol is set (flag --proxy-protocol), but trusted_proxies is empty (default), so"
        " that no connection could be served: name the proxies there."
    )
    load({"proxy_protocol": "true", "trusted_proxies": "10.0.0.7"}, {}, None)
