"""The command line: ``gateway serve``, ``config``, ``publish`` and ``subscribe``.

Exit codes: 0 done, 1 refused or failed, 2 a setting or an argument that cannot be used, 130
interrupted. What went wrong is one line on stderr; stdout carries only what was asked for.
"""

import io
import json
import os
import re
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
import httpx
import trio

from gateway import client
from gateway.client import (
    Connected,
    Document,
    Dropped,
    Event,
    Gap,
    Publisher,
    Reconnecting,
    Subscription,
    SyncPublisher,
)
from gateway.client.http import describe
from gateway.config import Config
from gateway.errors import ConfigError, GatewayError
from gateway.settings import (
    REFERENCE,
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

PUBLISH_SECONDS = 10.0
"""For which one event is tried: a node that restarts is back by then, and somebody waits."""
DEFAULT_URL = f"http://{Config().bind}"
READ_BYTES = 64 * 1024
"""Of stdin, at a time."""
MAX_LINE_BYTES = 1024 * 1024
"""Of one that is an event: what a request holds by default (``max_body_bytes``)."""

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
    if config.upstreams:
        from gateway.relay.upstream import headers_of

        for upstream in config.upstreams:
            headers_of(upstream)  # and so do secrets that are missing
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
        ("upstream", config.upstreams),
    ):
        for table in tables:
            lines += ["", f"[[{kind}]]"]
            values = {name: getattr(table, name) for name in table.__dataclass_fields__}
            lines += [f"{name} = {_shown(name, v)}" for name, v in values.items() if v is not None]
    return "\n".join(lines) + "\n"


def _shown(name: str, value: object) -> str:
    """A value as the file would have it, but for what is secret in it."""
    if isinstance(value, Mapping):  # the headers of an upstream
        told = {n: text if REFERENCE.fullmatch(text) else "***" for n, text in value.items()}
        return f"{{{', '.join(f'{as_toml(n)} = {as_toml(text)}' for n, text in told.items())}}}"
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
@click.argument("channel", required=False)
@click.argument("data", required=False)
@click.option("--event", metavar="TYPE", help="the event's type; without, it is a message")
@click.option("--lines", is_flag=True, help="each line of stdin is the data of an event")
@click.option(
    "--ndjson", is_flag=True, help="each line of stdin is an event as POST /publish has it"
)
@_token
@_url
def publish(
    channel: str | None,
    data: str | None,
    event: str | None,
    lines: bool,
    ndjson: bool,
    token: str,
    url: str,
) -> None:
    """Publish one event to CHANNEL and print its id.

    DATA is sent as it is; without it, or with -, all of stdin is. It is tried again for ten
    seconds, and delivered once, where it cannot be taken or the answer is lost.

    With --lines or --ndjson there are many: as they come, in their order, each again until it is
    taken. Each has its id as a line of stdout, or why it was refused as one of stderr; then the
    exit code is 1.
    """
    if ndjson and (lines or channel is not None or event):
        raise click.UsageError("With --ndjson all stands in the lines.")
    if lines and data is not None:
        raise click.UsageError("With --lines the data is on stdin.")
    if ndjson:
        _publish_stdin(url, token, _event_of_json)
        return
    if channel is None:
        raise click.UsageError("Missing argument 'CHANNEL'.")
    if lines:
        _publish_stdin(url, token, partial(_event_of_line, channel, event))
        return
    content = sys.stdin.buffer.read() if data in (None, "-") else os.fsencode(data)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise GatewayError("The data of an event is text in UTF-8, and this is none.") from None
    with SyncPublisher(url, token=token, give_up_after=PUBLISH_SECONDS) as publisher:
        click.echo(publisher.publish(channel, text, event=event))


def _event_of_line(channel: str, event: str | None, line: bytes) -> Document:
    type = {"event": event} if event else {}
    return {"channel": channel, "data": line.decode(errors="replace")} | type


def _event_of_json(line: bytes) -> Document:
    """Raises ValueError."""
    event = json.loads(line)
    if not isinstance(event, dict):
        raise ValueError("an event is a JSON object")
    return event


def _publish_stdin(url: str, token: str, read: Callable[[bytes], Document]) -> None:
    if trio.run(_publish_many, url, token, read):
        raise GatewayError("Not all events were taken.")


async def _publish_many(url: str, token: str, read: Callable[[bytes], Document]) -> bool:
    """Publish what stdin has; whether anything was refused."""
    refused = False
    numbers = deque[int]()

    async def events() -> AsyncGenerator[Document, None]:
        nonlocal refused
        async for number, line in _lines():
            try:
                event = read(line)
            except (ValueError, RecursionError) as error:
                refused = True
                _note(f"line {number}: {error}")
            else:
                numbers.append(number)
                yield event

    async with Publisher(url, token=token) as publisher, aclosing(events()) as source:
        async for result in publisher.publish_many(source):
            number = numbers.popleft()
            if result.error is None:
                click.echo(result.position)
            else:
                refused = True
                _note(f"line {number}: {result.error}")
    return refused


async def _lines() -> AsyncGenerator[tuple[int, bytes], None]:
    """The lines of stdin that are not blank, by number, as they come. Raises GatewayError."""
    stdin = cast("io.BufferedReader", sys.stdin.buffer)
    rest = b""
    number = 0
    more = True
    while more:
        read = partial(stdin.read1, READ_BYTES)
        data = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
        more = bool(data)
        *lines, rest = (rest + (data or b"\n")).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise GatewayError(f"Line {number + len(lines) + 1} is over {MAX_LINE_BYTES} bytes.")
        for line in lines:
            number += 1
            if line.strip():
                yield number, line.removesuffix(b"\r")


@main.command(short_help="Print the events of channels as they come.")
@click.argument("channels", nargs=-1, metavar="CHANNEL...")
@click.option("--user", metavar="ID", help="where no token names him: a node without keys")
@click.option("--last-event-id", default="", metavar="ID", help="begin after this event")
@click.option(
    "--replay", type=click.IntRange(0), metavar="N", help="begin with the N newest events"
)
@click.option("--json", "as_json", is_flag=True, help="one JSON object per line")
@_token
@_url
def subscribe(
    channels: tuple[str, ...],
    user: str | None,
    last_event_id: str,
    replay: int | None,
    as_json: bool,
    token: str,
    url: str,
) -> None:
    """Print the events of channels as they come: id, type and data, divided by tabs.

    Newlines, tabs, backslashes and control characters are escaped. Comes back after a lost
    connection as a browser does; what the gateway itself tells goes to stderr.
    """
    if not channels and user is None:
        raise click.UsageError("Missing argument 'CHANNEL...', or --user.")
    render: Callable[[Event], str] = _json_line if as_json else _line
    subscription = client.subscribe(
        url,
        channels,
        token=token,
        user=user,
        last_event_id=last_event_id,
        replay=replay,
        annotate=False,
    )
    trio.run(_print_events, subscription, render)


async def _print_events(subscription: Subscription, render: Callable[[Event], str]) -> None:
    async with subscription:
        async for item in subscription.items:
            match item:
                case Event():
                    click.echo(render(item))  # which flushes
                case Reconnecting():
                    _note(f"lost: {item.reason}, again in {item.delay:.3g} s")
                case Connected() | Gap() | Dropped():
                    _note(f"{type(item).__name__.lower()}: {item.data.translate(_ESCAPES)}")


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
    "--relay",
    metavar="UPSTREAM",
    multiple=True,
    help="upstreams to make token streams with, * for all; may be repeated",
)
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
    relay: tuple[str, ...],
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
            config,
            user=user,
            subscribe=subscribe,
            publish=publish,
            admin=admin,
            relay=relay,
            seconds=seconds,
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


def _line(event: Event) -> str:
    fields = (event.id, event.type, event.data)
    return "\t".join(field.translate(_ESCAPES) for field in fields)


def _json_line(event: Event) -> str:
    told = {"id": event.id, "event": event.type, "data": event.data}
    return json.dumps(told, ensure_ascii=False)


def _note(line: str) -> None:
    click.echo(line, err=True)
