"""Upstreams in the configuration, who may use them, and that nothing shows their secrets."""

import time
import tomllib
from pathlib import Path

import jwt
import msgspec
import pytest
from click.testing import CliRunner, Result

from gateway.auth import Authenticator
from gateway.cli import main
from gateway.config import ApiKey, Config, Format, Upstream
from gateway.control_socket import MAX_MESSAGE_BYTES, Start
from gateway.errors import ConfigError, Unauthorized
from gateway.identity import ANYBODY, Identity
from gateway.mint import make_token
from gateway.relay.upstream import headers_of
from gateway.server import left_by_calls
from gateway.settings import (
    MAX_HEADER_VALUE,
    MAX_HEADERS,
    MAX_LISTED,
    MAX_LISTED_ENTRY,
    MAX_UPSTREAMS,
    load,
)

DIGEST = "0" * 64
KEY = "a key of a node, which is long enough for HS256"
PLAIN = "sk-literal-secret"
SECRET = "sk-secret-of-the-environment"

OPENAI = """
[[upstream]]
name = "openai"
url = "https://api.openai.com/v1"
format = "openai"
"""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GATEWAY_CONFIG", "GATEWAY_JWT_KEY"):
        monkeypatch.delenv(name, raising=False)


def loaded(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "x.toml"
    file.write_text(text, "utf-8")
    return load({}, {}, file).config


def upstream(**members: object) -> Upstream:
    known = {"name": "openai", "url": "https://host/v1", "format": Format.OPENAI}
    return Upstream(**(known | members))  # type: ignore[arg-type]


def test_an_upstream_needs_a_name_a_url_and_a_format(tmp_path: Path) -> None:
    config = loaded(tmp_path, OPENAI)
    assert config.upstreams == (Upstream("openai", "https://api.openai.com/v1", Format.OPENAI),)
    assert "POST chat/completions" in config.upstreams[0].callable_paths


def test_an_upstream_has_headers_limits_and_those_who_may_use_it(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        f"""
        [[api_key]]
        name = "app"
        sha256 = "{DIGEST}"
        [[upstream]]
        name = "local_1"
        url = "http://127.0.0.1:8000/v1/"
        format = "sse"
        headers = {{ Authorization = "Bearer env:KEY", X-Team = "red" }}
        allow = ["users", "key:app", "user:7"]
        paths = ["POST generate", "GET models/*"]
        max_streams = 3
        silence = 1.5
        stop_with_client = true
        """,
    )
    assert config.upstreams == (
        Upstream(
            "local_1",
            "http://127.0.0.1:8000/v1",
            Format.SSE,
            headers={"Authorization": "Bearer env:KEY", "X-Team": "red"},
            allow=("users", "key:app", "user:7"),
            paths=("POST generate", "GET models/*"),
            max_streams=3,
            silence=1.5,
            stop_with_client=True,
        ),
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("retrys = 3", "did you mean retries?"),
        ("max_streams = 0", "a whole number of streams from 1 to 100000"),
        ("max_streams = 1.5", "a whole number of streams"),
        ("silence = 0", "a number of seconds from 0.1 to 3600"),
        ("max_bytes = 1000", "bytes from 1024"),
        ("retries = 11", "a whole number of tries from 0 to 10"),
        ("max_event_bytes = 20000000", "at most max_bytes, which is 16777216"),
        ("stop_with_client = 1", "true or false"),
        ("allow = ['everybody']", "made of users, user:<id>, keys or key:<name>"),
        ("allow = ['key:nobody']", "no [[api_key]] has that name"),
        (f"allow = ['user:{'7' * 200}']", "made of users, user:<id>"),
        ("allow = [" + "'users'," * 201 + "]", "allow has 201 entries"),
        (f"paths = ['GET {'x' * 200}']", "made of a method and a path"),
        ("allow = 'users'", "allow is 'users'"),
        ("paths = ['chat/completions']", "made of a method and a path"),
        ("paths = ['POST /chat']", "made of a method and a path"),
        ("paths = ['POST a/../b']", "made of a method and a path"),
        ("paths = ['POST a//b']", "made of a method and a path"),
        ("paths = ['TRACE a']", "made of a method and a path"),
        ("headers = 'x'", "headers is '***'"),
        ("headers = { Authorization = 7 }", "headers is '***'"),
        ("headers = { Host = 'x' }", "none that the gateway sets itself"),
        ("headers = { Transfer-Encoding = 'x' }", "none that the gateway sets itself"),
        ("headers = { content-length = '1' }", "none that the gateway sets itself"),
        ("headers = { Connection = 'close' }", "none that the gateway sets itself"),
        ("headers = { 'X Y' = 'x' }", "none that the gateway sets itself"),
        ("headers = { X = 'a', x = 'b' }", "each of them once"),
        (f"headers = {{ X = '{PLAIN} ' }}", "the value of X must be printable ASCII"),
        (f'headers = {{ X = "{PLAIN}\\r\\nY: 1" }}', "the value of X must be printable ASCII"),
        (f"headers = {{ X = '{PLAIN}é' }}", "the value of X must be printable ASCII"),
        (f"headers = {{ X = '{'x' * 4097}' }}", "at most 4096 bytes"),
        ("headers = { " + ", ".join(f"X{n} = 'x'" for n in range(17)) + " }", "are at most 16"),
        ("headers = { X = '' }", "the value of X must be printable ASCII"),
        ("headers = { X = 'Bearer env:A B' }", "must name a variable"),
        ("headers = { X = 'env:' }", "must name a variable"),
        ("headers = { X = 'file:' }", "must name a variable"),
        ("headers = { X = 7 }", "but must be a table of texts"),
        ("headers = 'X'", "but must be a table of texts"),
        ("allow = 'users'", "but must be a list of texts"),
        ("paths = [7]", "but must be a list of texts"),
        (OPENAI, "Two [[upstream]] tables have the name 'openai'"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_an_upstream_cannot_have_stops_the_start(more: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"{OPENAI}\n{more}")
    assert says in str(caught.value)
    assert PLAIN not in str(caught.value)


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("name", "push", "none of demo, push"),
        ("name", "demo", "none of demo, push"),
        ("name", "open ai", "1 to 64 of A-Z a-z 0-9 _ -"),
        ("name", "a" * 65, "1 to 64 of A-Z a-z 0-9 _ -"),
        ("name", "", "1 to 64 of A-Z a-z 0-9 _ -"),
        ("format", "push", "one of openai, anthropic, sse."),
        ("format", "gemini", "one of openai, anthropic, sse."),
        ("url", "ftp://host/v1", "must be an http or https URL"),
        ("url", "https:///v1", "must be an http or https URL"),
        ("url", "https://user:hunter2@host/v1", "must be an http or https URL"),
        ("url", "https://host/v1?key=hunter2", "must be an http or https URL"),
        ("url", "https://host/v1#hunter2", "must be an http or https URL"),
        ("url", "https://host/a/../b", "must be an http or https URL"),
        ("url", "https://a..b/v1", "must be an http or https URL"),
        ("url", "https://.b/v1", "must be an http or https URL"),
        ("url", "https://[::g]/v1", "must be an http or https URL"),
        ("url", f"https://{'a' * 64}.b/v1", "must be an http or https URL"),
        ("url", "https://host//v1", "must be an http or https URL"),
        ("url", "https://host/a b", "must be an http or https URL"),
        ("url", "https://host:99999/v1", "must be an http or https URL"),
        ("url", "http://models.internal:8000/v1", "plain HTTP to another host"),
        ("url", "http://10.0.0.7/v1", "plain HTTP to another host"),
    ],
)
def test_a_name_a_url_and_a_format_are_checked(
    member: str, value: str, says: str, tmp_path: Path
) -> None:
    known = {"name": "openai", "url": "https://host/v1", "format": "openai", member: value}
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "[[upstream]]\n" + "\n".join(f"{n} = '{v}'" for n, v in known.items()))
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("member", ["name", "url", "format"])
def test_what_every_upstream_has_cannot_be_left_out(member: str, tmp_path: Path) -> None:
    text = "\n".join(line for line in OPENAI.splitlines() if not line.startswith(member))
    with pytest.raises(ConfigError, match=rf"{member} is missing"):
        loaded(tmp_path, text)


def test_plain_http_to_another_host_has_to_be_asked_for(tmp_path: Path) -> None:
    text = "[[upstream]]\nname = 'a'\nformat = 'openai'\nurl = 'http://models.internal:8000/v1'\n"
    config = loaded(tmp_path, f"{text}insecure_http = true")
    assert config.upstreams[0].url == "http://models.internal:8000/v1"


@pytest.mark.parametrize(
    ("member", "setting"), [("max_bytes", "stream_bytes"), ("max_tokens", "stream_events")]
)
def test_a_streams_channel_has_room_for_all_of_it(
    member: str, setting: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"{member} = .* {setting}, .* must hold all"):
        loaded(tmp_path, f"{setting} = 10000\n{OPENAI}{member} = 10001\nmax_event_bytes = 1024")


def test_there_are_no_more_upstreams_than_are_bearable(tmp_path: Path) -> None:
    def tables(count: int) -> str:
        return "".join(OPENAI.replace('"openai"', f'"n{n}"', 1) for n in range(count))

    assert len(loaded(tmp_path, tables(MAX_UPSTREAMS)).upstreams) == MAX_UPSTREAMS
    with pytest.raises(ConfigError, match=f"the most is {MAX_UPSTREAMS}"):
        loaded(tmp_path, tables(MAX_UPSTREAMS + 1))


def test_a_worker_is_told_all_of_the_largest_upstreams() -> None:
    largest = upstream(
        headers={f"X-{n:098}": "x" * MAX_HEADER_VALUE for n in range(MAX_HEADERS)},
        allow=("user:" + "7" * (MAX_LISTED_ENTRY - 5),) * MAX_LISTED,
        paths=("GET " + "x" * (MAX_LISTED_ENTRY - 4),) * MAX_LISTED,
    )
    start = Start(0, Config(upstreams=(largest,) * MAX_UPSTREAMS))
    sent = msgspec.json.encode(start)
    assert len(sent) < MAX_MESSAGE_BYTES
    assert msgspec.json.decode(sent, type=Start) == start


# --- secrets --------------------------------------------------------------------------------------


def test_a_header_is_literal_or_stands_in_a_variable_or_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a key"
    file.write_text("sk-of-the-file\n", "utf-8")
    headers = {
        "X-Literal": "Bearer of news",
        "Authorization": "Bearer env:KEY",
        "X-Api-Key": "env:KEY",
        "X-File": f"file:{file}",
        "X-Both": f"Token file:{file}",
    }
    assert headers_of(upstream(headers=headers), {"KEY": SECRET}) == [
        (b"X-Literal", b"Bearer of news"),
        (b"Authorization", f"Bearer {SECRET}".encode()),
        (b"X-Api-Key", SECRET.encode()),
        (b"X-File", b"sk-of-the-file"),
        (b"X-Both", b"Token sk-of-the-file"),
    ]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("Bearer env:ABSENT", "the variable ABSENT is empty or missing"),
        ("env:EMPTY", "the variable EMPTY is empty or missing"),
        ("env:BROKEN", "the variable BROKEN holds what no header can have"),
        ("file:/nowhere/key", "the file /nowhere/key cannot be read: No such file"),
        ("file:/dev/null", "the file /dev/null is empty or missing"),
    ],
)
def test_a_secret_that_is_missing_stops_the_start(value: str, says: str) -> None:
    environ = {"EMPTY": " ", "BROKEN": f"{SECRET}\r\nX: y"}
    with pytest.raises(ConfigError) as caught:
        headers_of(upstream(headers={"X-Key": value}), environ)
    assert str(caught.value).startswith("The upstream openai has no value for its header X-Key: ")
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner(env=variables).invoke(main, arguments)


def test_a_node_does_not_start_without_its_secrets(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(f"{OPENAI}headers = {{ Authorization = 'Bearer env:ABSENT' }}", "utf-8")
    result = run("serve", "--config", str(file))
    assert result.exit_code == 2
    assert result.output == (
        "gateway: The upstream openai has no value for its header Authorization: the variable"
        " ABSENT is empty or missing.\n"
    )


def test_the_listing_of_settings_shows_where_secrets_stand_and_none(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    headers = f"{{ Authorization = 'Bearer env:KEY', X-Key = '{PLAIN}', X-File = 'file:/a b' }}"
    file.write_text(f"{OPENAI}headers = {headers}\nallow = ['users']", "utf-8")
    result = run("config", "--config", str(file), KEY=SECRET)
    assert result.exit_code == 0, result.output
    assert PLAIN not in result.output
    assert SECRET not in result.output
    [table] = tomllib.loads(result.output)["upstream"]
    assert table["headers"] == {
        "Authorization": "Bearer env:KEY",
        "X-Key": "***",
        "X-File": "file:/a b",
    }
    again = tmp_path / "again.toml"
    again.write_text(result.output, "utf-8")
    assert run("config", "--config", str(again)).exit_code == 0


def test_no_text_of_an_upstream_shows_its_secrets_or_where_it_is() -> None:
    shown = repr(upstream(headers={"X-Key": PLAIN}))
    assert PLAIN not in shown
    assert "https://host" not in shown


# --- who may --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "allow", "may"),
    [
        (ANYBODY, (), True),
        (ANYBODY.named("7"), (), True),
        (Identity(), ("users", "keys"), False),
        (Identity(user="7", publisher="sub:7"), (), False),
        (Identity(user="7", publisher="sub:7"), ("users",), True),
        (Identity(user="7", publisher="sub:7"), ("user:7",), True),
        (Identity(user="7", publisher="sub:7"), ("user:77", "keys", "key:7"), False),
        (Identity(publisher="jti:1"), ("users", "keys"), False),
        (Identity(publisher="key:app"), (), False),
        (Identity(publisher="key:app"), ("keys",), True),
        (Identity(publisher="key:app"), ("key:app",), True),
        (Identity(publisher="key:app"), ("key:application", "users"), False),
        (Identity(admin=True, publisher="key:app"), (), True),
        (Identity(user="7", publisher="sub:7", relay=("openai",)), (), True),
        (Identity(publisher="jti:1", relay=("other", "openai")), (), True),
        (Identity(publisher="jti:1", relay=("*",)), (), True),
        (Identity(publisher="jti:1", relay=("other", "open*")), ("users",), False),
        (Identity(user="key:app", publisher="sub:key:app"), ("keys", "key:app"), False),
    ],
    ids=lambda value: f"{value.publisher}-{value.admin}" if isinstance(value, Identity) else None,
)
def test_who_may_use_an_upstream(identity: Identity, allow: tuple[str, ...], may: bool) -> None:
    assert identity.may_relay(upstream(allow=allow)) is may


@pytest.mark.parametrize(
    ("claim", "relay"),
    [(["openai", "local"], ("openai", "local")), (["*"], ("*",)), ("*", ("*",)), ([], ())],
    ids=str,
)
async def test_a_token_names_the_upstreams_that_it_may_use(
    claim: object, relay: tuple[str, ...]
) -> None:
    token = jwt.encode({"exp": 2**40, "sub": "7", "gateway": {"relay": claim}}, KEY)
    identity = await Authenticator(Config(jwt_key=KEY), now_ms=lambda: 0).identify(token)
    assert identity.relay == relay


async def test_a_token_names_no_more_upstreams_than_are_bearable() -> None:
    token = jwt.encode({"exp": 2**40, "gateway": {"relay": ["x"] * 201}}, KEY)
    with pytest.raises(Unauthorized, match="at most 200 upstreams"):
        await Authenticator(Config(jwt_key=KEY), now_ms=lambda: 0).identify(token)


async def test_the_command_makes_tokens_for_upstreams() -> None:
    result = run("token", "--user", "7", "--relay", "openai", "--relay", "x", GATEWAY_JWT_KEY=KEY)
    auth = Authenticator(Config(jwt_key=KEY), now_ms=lambda: int(time.time() * 1000))
    assert (await auth.identify(result.output.strip())).relay == ("openai", "x")
    none = make_token(
        Config(jwt_key=KEY), user=None, subscribe=(), publish=(), admin=False, seconds=9
    )
    assert (await auth.identify(none)).relay == ()


async def test_an_api_key_uses_what_allows_it() -> None:
    key = ApiKey("app", DIGEST)
    auth = Authenticator(Config(api_keys=(key,)), now_ms=lambda: 0)
    [known] = auth._api_keys.values()
    assert known.identity.may_relay(upstream(allow=("key:app",)))


@pytest.mark.parametrize(
    ("max_streams", "left"), [((), 4096), ((500,), 3596), ((500, 300), 3296), ((5000,), 3104)]
)
def test_calls_have_descriptors_that_no_client_takes(
    max_streams: tuple[int, ...], left: int
) -> None:
    upstreams = tuple(
        Upstream(f"u{most}", "https://a.test/v1", Format.OPENAI, max_streams=most)
        for most in max_streams
    )
    assert left_by_calls(Config(upstreams=upstreams), 4096) == left
