"""The command line: ``gateway serve``, ``config``, ``publish`` and ``subscribe``.

Exit codes: 0 done, 1 refused or failed, 2 a setting or an argument that cannot be used, 130
interrupted. What went wrong is one line on stderr; stdout carries only what was asked for.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx
import trio

from gateway.config import Config
from gateway.errors import ConfigError, GatewayError
from gateway.follow import Lost, authorization, describe, follow, refusal
from gateway.settings import (
    SECRETS,
    SETTINGS,
    TOKEN_VARIABLE,
    URL_VARIABLE,
    Loaded,
    Setting,
    as_toml,
    check_api_key,
    load,
)
from gateway.sse import ServerSentEvent

DEFAULT_URL = f"http://{Config().bind}"
PUBLISH_TIMEOUT = 30.0
"""Seconds of silence: a publish may first wait for room, by default 5 of them."""
CONTROL_EVENTS = frozenset({"closed", "connected", "dropped", "gap", "reconnect"})
"""What the gateway itself tells a client."""

INTERRUPTED = 128 + 2
"""What shells report of a command that SIGINT ended."""

_PASSWORD = re.compile(r"(://[^:@/]*:).*@")
"""In a URL, which a listing shows to whoever looks over the shoulder."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_ESCAPES = str.maketrans(_CONTROLS | {ord("\\"): r"\\", ord("\n"): r"\n", ord("\t"): r"\t"})
"""One event stays one line of three fields, and no publisher drives the reader's terminal."""


class _Commands(click.Group):
    """A group whose commands end as the module says."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            _note(f"gateway: {error}")
            ctx.exit(2)
        except GatewayError as error:
            _note(f"gateway: {error}")
            ctx.exit(1)
        except httpx.RequestError as error:
            _note(f"gateway: {describe(error)}")
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        # What trio makes of an interrupt while it connects; with anything else in it, it goes on.
        except BaseExceptionGroup as group:
            if group.split(KeyboardInterrupt)[1] is not None:
                raise
            ctx.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sse-gateway")
def main() -> None:
    """A Server-Sent Events gateway that loses nothing silently."""


def _option(setting: Setting) -> Callable[[Any], Any]:
    """The flag of a setting. It hands text on: `load` reads and refuses all values alike."""
    reason = f"{setting.reason}  [default: {as_toml(setting.default)}]"
    if setting.type is bool:
        return click.option(f"{setting.flag}/--no-{setting.flag[2:]}", default=None, help=reason)
    metavar = setting.bounds.unit.upper() if setting.bounds else "TEXT"
    return click.option(setting.flag, metavar=metavar, help=reason)


_with_file: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="a TOML file"
)


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """``--config`` and the flags of all settings."""
    for setting in reversed(SETTINGS.values()):
        if setting.flag:
            command = _option(setting)(command)
    return _with_file(command)


def _keys(command: Callable[..., None]) -> Callable[..., None]:
    """``--config`` and ``--jwt-key-file``."""
    with_flag: Callable[..., None] = _option(SETTINGS["jwt_key_file"])(command)
    return _with_file(with_flag)


@main.command()
@_settings
def serve(file: Path | None, **flags: object) -> None:
    """Run a node until SIGTERM."""
    config = load(flags, os.environ, file).config
    if config.redis:
        from gateway.bus.address import parse_address

        parse_address(config.redis)  # a URL that cannot be used stops the start
    if config.has_keys:
        from gateway.auth import Authenticator

        Authenticator(config, now_ms=lambda: 0)  # so do keys
    if config.worker_count == 1:
        from gateway.server import run  # here, since the other commands need no web stack
    else:
        from gateway.supervisor import run
    run(config)


@main.command(hidden=True)
@click.argument("control", type=int)
@click.argument("listener", type=int)
@click.argument("admin", type=int, required=False)
def worker(control: int, listener: int, admin: int | None) -> None:
    """Be a worker of the supervisor that holds the other end of the socket CONTROL."""
    from gateway.worker import run

    run(control, listener, admin)


@main.command("config", short_help="Print every setting and where it comes from.")
@_settings
def show_config(file: Path | None, **flags: object) -> None:
    """Print every setting and where it comes from, as a file that --config reads.

    A secret, and a password in a URL, is shown as ***.
    """
    click.echo(_listing(load(flags, os.environ, file)), nl=False)


def _listing(loaded: Loaded) -> str:
    width = max(map(len, SETTINGS))
    told = {name: _shown(name, getattr(loaded.config, name)) for name in SETTINGS}
    wide = max(map(len, told.values()))
    lines = [f"{name:{width}} = {told[name]:{wide}}  # {loaded.sources[name]}" for name in SETTINGS]
    config = loaded.config
    for kind, tables in (
        ("channel", config.channels),
        ("issuer", config.issuers),
        ("api_key", config.api_keys),
    ):
        for table in tables:
            lines += ["", f"[[{kind}]]"]
            values = {name: getattr(table, name) for name in table.__dataclass_fields__}
            lines += [f"{name} = {_shown(name, v)}" for name, v in values.items() if v is not None]
    return "\n".join(lines) + "\n"


def _shown(name: str, value: object) -> str:
    """A value as the file would have it, but for what is secret in it."""
    if name in SECRETS:
        return as_toml("***" if value else "")
    shown = as_toml(value)
    return _PASSWORD.sub(r"\1***@", shown) if name == "redis" else shown


def _check_url(_ctx: click.Context, _param: click.Parameter, url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise click.BadParameter(str(error)) from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise click.BadParameter(f"{url!r} is not a URL like {DEFAULT_URL}.")
    return url.rstrip("/")


_url: Callable[[Any], Any] = click.option(
    "--url",
    envvar=URL_VARIABLE,
    default=DEFAULT_URL,
    show_default=True,
    show_envvar=True,
    callback=_check_url,
    help="any node, or the balancer",
)


_token: Callable[[Any], Any] = click.option(
    "--token",
    envvar=TOKEN_VARIABLE,
    default="",
    help=f"token or API key, better given in {TOKEN_VARIABLE}",
)


@main.command()
@click.argument("channel")
@click.argument("data", default="-")
@click.option("--event", metavar="TYPE", help="the event's type; without, it is a message")
@_token
@_url
def publish(channel: str, data: str, event: str | None, token: str, url: str) -> None:
    """Publish one event to CHANNEL and print its id.

    DATA is sent as it is; without it, or with -, all of stdin is.
    """
    body = sys.stdin.buffer.read() if data == "-" else os.fsencode(data)
    answer = httpx.post(
        f"{url}/publish/{quote(channel, safe='')}",
        params={"event": event} if event else {},
        content=body,
        headers={"Content-Type": "text/plain; charset=utf-8"} | authorization(token),
        timeout=PUBLISH_TIMEOUT,
    )
    if answer.status_code != httpx.codes.ACCEPTED:
        raise refusal(answer)
    click.echo(answer.json()["id"])


@main.command(short_help="Print the events of channels as they come.")
@click.argument("channels", nargs=-1, required=True, metavar="CHANNEL...")
@click.option("--last-event-id", default="", metavar="ID", help="begin after this event")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@_token
@_url
def subscribe(
    channels: tuple[str, ...], last_event_id: str, as_json: bool, token: str, url: str
) -> None:
    """Print the events of channels as they come: id, type and data, divided by tabs.

    Newlines, tabs, backslashes and control characters are escaped. Comes back after a lost
    connection as a browser does; what the gateway itself tells goes to stderr.
    """
    stream = httpx.URL(f"{url}/events", params=[("channel", channel) for channel in channels])
    render: Callable[[ServerSentEvent], str] = _json_line if as_json else _line
    trio.run(_print_events, stream, last_event_id, token, render)


async def _print_events(
    url: httpx.URL, last_event_id: str, token: str, render: Callable[[ServerSentEvent], str]
) -> None:
    async with (
        httpx.AsyncClient(headers=authorization(token)) as client,
        aclosing(follow(client, url, last_event_id=last_event_id)) as events,
    ):
        async for event in events:
            if isinstance(event, Lost):
                _note(f"lost: {event.reason}, again in {event.retry:g} s")
            elif event.event in CONTROL_EVENTS:
                _note(f"{event.event}: {event.data.translate(_ESCAPES)}")
            else:
                click.echo(render(event))  # which flushes


@main.command("token", short_help="Print a token signed with the node's secret.")
@click.option("--user", metavar="ID", help="whose token it is (sub)")
@click.option(
    "--subscribe",
    metavar="PATTERN",
    multiple=True,
    help="channels to subscribe to; may be repeated",
)
@click.option(
    "--publish", metavar="PATTERN", multiple=True, help="channels to publish to; may be repeated"
)
@click.option("--admin", is_flag=True, help="administer; publish to users and to everybody")
@click.option(
    "--seconds",
    type=click.IntRange(1),
    default=3600,
    show_default=True,
    help="until it expires",
)
@_keys
def make_token_command(
    user: str | None,
    subscribe: tuple[str, ...],
    publish: tuple[str, ...],
    admin: bool,
    seconds: int,
    file: Path | None,
    **flags: object,
) -> None:
    """Print a token signed with the node's secret, for tries and for services.

    The secret is the one of GATEWAY_JWT_KEY, --jwt-key-file or the file of --config.
    """
    from gateway.mint import make_token

    config = load(flags, os.environ, file).config
    click.echo(
        make_token(
            config, user=user, subscribe=subscribe, publish=publish, admin=admin, seconds=seconds
        )
    )


@main.command("apikey", short_help="Make an API key for the file of --config.")
@click.argument("name")
@click.option(
    "--publish", metavar="PATTERN", multiple=True, help="channels to publish to; may be repeated"
)
@click.option("--admin", is_flag=True, help="administer; publish to users and to everybody")
def make_api_key_command(name: str, publish: tuple[str, ...], admin: bool) -> None:
    """Make an API key: its table for the file of --config on stdout, the key itself on stderr.

    The key is shown this once; the table holds only its digest.
    """
    from gateway.mint import make_api_key

    key, digest = make_api_key()
    table = {"name": name, "sha256": digest, "publish": list(publish), "admin": admin}
    lines = ["[[api_key]]", *(f"{member} = {as_toml(value)}" for member, value in table.items())]
    check_api_key(table)
    _note(key)
    click.echo("\n".join(lines))


def _line(event: ServerSentEvent) -> str:
    fields = (event.last_event_id, event.event, event.data)
    return "\t".join(field.translate(_ESCAPES) for field in fields)


def _json_line(event: ServerSentEvent) -> str:
    told = {"id": event.last_event_id, "event": event.event, "data": event.data}
    return json.dumps(told, ensure_ascii=False)


def _note(line: str) -> None:
    click.echo(line, err=True)
