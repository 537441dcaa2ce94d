"""From flags, variables and a file to one checked Config, or one sentence that says what is wrong.

Flags go over ``GATEWAY_*`` variables, over the TOML file, over the defaults. Every value that is
given is checked, those that another one overrides as well.
"""

import dataclasses
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from gateway.addresses import parse_networks
from gateway.config import (
    AUTO,
    MAX_PORT,
    MAX_WORKERS,
    ApiKey,
    Between,
    ChannelRule,
    Config,
    Format,
    Issuer,
    Upstream,
    is_loopback,
    split_address,
    split_list,
)
from gateway.errors import BadRequest, ConfigError
from gateway.names import compile_pattern
from gateway.origins import parse_origins
from gateway.policy import Policy

PREFIX = "GATEWAY_"
FILE_VARIABLE = "GATEWAY_CONFIG"
URL_VARIABLE = "GATEWAY_URL"
TOKEN_VARIABLE = "GATEWAY_TOKEN"
"""Where the commands that talk to a node find it, and what they show it. No settings of a node."""

NO_SETTINGS = frozenset({FILE_VARIABLE, URL_VARIABLE, TOKEN_VARIABLE})

DEFAULT = "default"

NUMBER_TOO = frozenset({"workers"})
"""Settings of text that is a number most of the time, and that a file may write as one."""

LISTS = frozenset({"cors_origins", "public_channels", "trusted_proxies"})
"""Settings of text that a file may write as a list."""

SECRETS = frozenset({"jwt_key", "secret", "headers"})
"""Never shown; and without a flag, since a command line is seen by everybody on the machine."""

TABLES = ("channel", "issuer", "api_key", "upstream")
"""What a file has as tables, any number of each."""

MAX_ISSUERS = 16
MAX_API_KEYS = 10_000
MAX_UPSTREAMS = 100

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
"""Of an API key."""

_UPSTREAM_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

NAMES_TAKEN = frozenset({"push", "demo"})
"""No upstream's: streams without one, and the one that is built in."""

_LABEL = "[A-Za-z0-9_-]{1,63}"
_URL = re.compile(
    rf"https?://(\[[0-9A-Fa-f:.]+\]|{_LABEL}(?:\.{_LABEL})*\.?)(:[0-9]{{1,5}})?"
    r"(/[A-Za-z0-9_.~:@+-]+)*/?",
    re.ASCII,
)
"""Of an upstream: neither user nor query, and nothing that would have to be escaped."""

_PATH = re.compile(r"(GET|POST|PUT|PATCH|DELETE)( [\w.~:@+*-]+(/[\w.~:@+*-]+)*)?", re.ASCII)
_ALLOWED = re.compile(r"users|keys|user:.+|key:[A-Za-z0-9_.-]{1,64}")

_HEADER = re.compile(r"[!#$%&'*+.^_`|~A-Za-z0-9-]{1,100}", re.ASCII)
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?", re.ASCII)

MAX_HEADERS = 16
MAX_HEADER_VALUE = 4 * 1024
MAX_LISTED = 200
"""Entries of ``allow``, and of ``paths``. All upstreams together fit a message to a worker."""
MAX_LISTED_ENTRY = 200

REFERENCE = re.compile(
    r"(?:(?P<word>[A-Za-z][A-Za-z0-9-]*) )?"
    r"(?:env:(?P<variable>[A-Za-z_][A-Za-z0-9_]*)|file:(?P<file>\S.*))",
    re.ASCII,
)
"""A header's value that stands elsewhere."""
_LIKE_REFERENCE = re.compile(r"([A-Za-z][A-Za-z0-9-]* )?(env|file):")

OUR_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-encoding", "content-length"}
    | {"content-type", "expect", "host", "http2-settings", "keep-alive", "proxy-authenticate"}
    | {"proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""What a request to an upstream is made of, or goes no further than one hop (RFC 9110, 7.6.1)."""

_COOKIE = re.compile(r"[!#$%&'*+.^_`|~A-Za-z0-9-]*", re.ASCII)
"""RFC 6265, section 4.1.1; empty where no cookie may carry the token."""

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)

_SHOWN = 100
"""Characters of a refused value that its sentence shows."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of Config, and what its annotation says about it."""

    name: str
    type: type
    default: object = None
    reason: str = ""
    bounds: Between | None = None

    @property
    def is_secret(self) -> bool:
        return self.name in SECRETS

    @property
    def flag(self) -> str:
        """Empty for a secret."""
        return "" if self.is_secret else "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def expected(self) -> str:
        """What a value must be, to be read after "must be"."""
        if self.bounds:
            kind = "a whole number" if self.type is int else "a number"
            low, high = (f"{bound:.15g}" for bound in (self.bounds.low, self.bounds.high))
            return f"{kind} of {self.bounds.unit} from {low} to {high}"
        if issubclass(self.type, StrEnum):
            return "one of " + ", ".join(each for each in self.type if each is not Format.PUSH)
        if (of := get_origin(self.type)) is not None:
            return "a list of texts" if of is tuple else "a table of texts"
        return "true or false" if self.type is bool else "text"

    def read(self, raw: object, source: str, *, strict: bool) -> Any:
        """The value that ``raw`` stands for; text stands for a number or a bool unless strict."""
        if self.name in NUMBER_TOO and type(raw) is int:
            raw = str(raw)
        if self.name in LISTS and isinstance(raw, list) and all(type(x) is str for x in raw):
            raw = ",".join(raw)
        try:
            value: Any = msgspec.convert(raw, self.type, strict=strict)
        except msgspec.ValidationError:
            shown = "***" if self.is_secret else raw
            raise _refused(self.name, shown, source, self.expected) from None
        if self.bounds and not self.bounds.low <= value <= self.bounds.high:
            raise _refused(self.name, raw, source, self.expected)
        return value


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked Config, and where each of its settings came from."""

    config: Config
    sources: dict[str, str]


def _settings() -> Iterator[Setting]:
    hints = get_type_hints(Config, include_extras=True)
    for field in dataclasses.fields(Config):
        hint = hints[field.name]
        if get_origin(hint) is Annotated:  # all but the channel rules
            type_, *bounds, reason = get_args(hint)
            yield Setting(field.name, type_, field.default, reason, *bounds)


def _hints(table: type) -> dict[str, Any]:
    return get_type_hints(table, include_extras=True)


def _member(name: str, hint: Any) -> Setting:
    """A number of a table has its bounds beside its type."""
    if get_origin(hint) is not Annotated:
        return Setting(name, hint)
    type_, bounds = get_args(hint)
    return Setting(name, type_, bounds=bounds)


SETTINGS = {setting.name: setting for setting in _settings()}
"""Every setting by its name, in the order of Config."""

_RULE_MEMBERS = {
    name: SETTINGS.get(name) or Setting(name, type_)
    for name, type_ in get_type_hints(ChannelRule).items()
}
_ISSUER_MEMBERS = {name: Setting(name, t) for name, t in get_type_hints(Issuer).items()}
_KEY_MEMBERS = {
    name: SETTINGS["publish_rate"] if name == "publish_rate" else Setting(name, type_)
    for name, type_ in get_type_hints(ApiKey).items()
}
_UPSTREAM_MEMBERS = {name: _member(name, t) for name, t in _hints(Upstream).items()}
_KEYS_OF_ISSUER = ("secret", "secret_file", "public_key_file", "jwks_file", "jwks_url")


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> Loaded:
    """Raises ConfigError. ``flags`` are by setting; one that is None was not given.

    Without ``file``, the variable GATEWAY_CONFIG may name it.
    """
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE])
    table = _read_toml(file) if file else {}
    from_file = f"file {file}"
    tables = {kind: table.pop(kind, []) for kind in TABLES}
    values: dict[str, Any] = {name: setting.default for name, setting in SETTINGS.items()}
    sources = dict.fromkeys(SETTINGS, DEFAULT)
    for name, raw, source in _given(flags, environ, table, from_file):
        setting = _known(name, SETTINGS, source, TABLES if source == from_file else ())
        values[name] = setting.read(raw, source, strict=source == from_file)
        sources[name] = source
    config = Config(**values)
    config = dataclasses.replace(
        config,
        channels=tuple(_rule(*one, config) for one in _tables(tables, "channel", from_file)),
        issuers=tuple(_issuer(*one) for one in _tables(tables, "issuer", from_file)),
        api_keys=tuple(_api_key(*one) for one in _tables(tables, "api_key", from_file)),
        upstreams=tuple(_upstream(*one) for one in _tables(tables, "upstream", from_file)),
    )
    _check(config, sources)
    return Loaded(config, sources)


def as_toml(value: object) -> str:
    """A value as the file would have it."""
    return json.dumps(value, ensure_ascii=False)


def settings_table() -> str:
    """Every setting as a row of a Markdown table, for the README."""
    rows = ["| setting | flag and variable | unit | default | reason |", "|---|---|---|---|---|"]
    for name, setting in SETTINGS.items():
        unit = setting.bounds.unit if setting.bounds else ""
        told = " ".join(f"`{way}`" for way in (setting.flag, setting.variable) if way)
        rows.append(
            f"| `{name}` | {told} | {unit} | `{as_toml(setting.default)}` | {setting.reason} |"
        )
    return "\n".join(rows) + "\n"


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"file {file} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # no UTF-8, or no TOML
        raise ConfigError(f"file {file} is not TOML: {error}.") from error


def _given(
    flags: Mapping[str, object], environ: Mapping[str, str], table: dict[str, Any], from_file: str
) -> Iterator[tuple[str, object, str]]:
    """Name, raw value and source of all that was given, what overrides after what it overrides."""
    for name, raw in table.items():
        yield name, raw, from_file
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and variable not in NO_SETTINGS:
            yield variable.removeprefix(PREFIX).lower(), text, f"variable {variable}"
    for name, raw in flags.items():
        if raw is not None:
            yield name, raw, f"flag --{name.replace('_', '-')}"


def _known(
    name: str, settings: Mapping[str, Setting], source: str, tables: Iterable[str] = ()
) -> Setting:
    """``tables`` may stand where ``settings`` do, and be what was meant."""
    if name in settings:
        return settings[name]
    close = get_close_matches(name, [*settings, *tables], n=1)
    right = f"did you mean {close[0]}?" if close else "`gateway config` lists all there are."
    raise ConfigError(f"{name} ({source}) is not a setting; {right}")


def _refused(name: str, value: object, source: str, expected: str) -> ConfigError:
    return ConfigError(f"{name} is {repr(value)[:_SHOWN]} ({source}), but must be {expected}.")


def _tables(
    tables: Mapping[str, object], kind: str, source: str
) -> Iterator[tuple[dict[str, Any], str]]:
    """Each table of a kind, and where it stands."""
    found = tables[kind]
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise _refused(kind, found, source, f"written as [[{kind}]] tables")
    for number, table in enumerate(found, 1):
        yield table, f"{source}, [[{kind}]] {number}"


def _members(table: dict[str, Any], settings: Mapping[str, Setting], source: str) -> dict[str, Any]:
    return {
        name: _known(name, settings, source).read(raw, source, strict=True)
        for name, raw in table.items()
    }


def _issuer(table: dict[str, Any], source: str) -> Issuer:
    issuer = Issuer(**_members(table, _ISSUER_MEMBERS, source))
    named = [name for name in _KEYS_OF_ISSUER if getattr(issuer, name)]
    if len(named) != 1:
        raise ConfigError(
            f"An [[issuer]] has exactly one of {', '.join(_KEYS_OF_ISSUER)} ({source}); this one"
            f" has {' and '.join(named) or 'none'}."
        )
    if issuer.jwks_url and not issuer.jwks_url.startswith("https://"):
        raise _refused("jwks_url", issuer.jwks_url, source, "a URL that begins with https://")
    return issuer


def check_api_key(table: dict[str, Any]) -> None:
    """Raises ConfigError where the file may not have such an ``[[api_key]]`` table."""
    _api_key(table, "argument")


def _api_key(table: dict[str, Any], source: str) -> ApiKey:
    members = _members(table, _KEY_MEMBERS, source)
    for name, shape, expected in (
        ("name", _NAME, "1 to 64 of A-Z a-z 0-9 _ . -"),
        ("sha256", _DIGEST, "64 lower-case hexadecimal digits, as `gateway apikey` prints them"),
    ):
        if not shape.fullmatch(members.get(name, "")):
            raise _refused(name, members.get(name, ""), source, expected)
    for pattern in members.get("publish", ()):
        _check_pattern("publish", pattern, source)
    return ApiKey(**members)


def _upstream(table: dict[str, Any], source: str) -> Upstream:
    members = _members(table, _UPSTREAM_MEMBERS, source)
    for name in ("name", "url", "format"):
        if name not in members:
            raise ConfigError(f"{name} is missing ({source}); an [[upstream]] has one.")
    upstream = Upstream(**members)
    if not _UPSTREAM_NAME.fullmatch(upstream.name) or upstream.name in NAMES_TAKEN:
        expected = f"1 to 64 of A-Z a-z 0-9 _ -, and none of {', '.join(sorted(NAMES_TAKEN))}"
        raise _refused("name", upstream.name, source, expected)
    if upstream.format is Format.PUSH:
        raise _refused("format", "push", source, _UPSTREAM_MEMBERS["format"].expected)
    _check_upstream_url(upstream, source)
    for name, shape, expected in (
        ("allow", _ALLOWED, "users, user:<id>, keys or key:<name>"),
        ("paths", _PATH, "a method and a path, as in 'POST chat/completions' or 'GET models/*'"),
    ):
        listed = getattr(upstream, name)
        if len(listed) > MAX_LISTED:
            raise ConfigError(
                f"{name} has {len(listed)} entries ({source}); the most is {MAX_LISTED}."
            )
        for each in listed:
            is_dotted = not {".", ".."}.isdisjoint(re.split("[ /]", each))
            if not shape.fullmatch(each) or is_dotted or len(each) > MAX_LISTED_ENTRY:
                raise _refused(name, each, source, f"made of {expected}")
    _check_headers(upstream.headers, source)
    if upstream.max_event_bytes > upstream.max_bytes:
        limit = f"at most max_bytes, which is {upstream.max_bytes}"
        raise _refused("max_event_bytes", upstream.max_event_bytes, source, limit)
    return dataclasses.replace(upstream, url=upstream.url.rstrip("/"))


def _check_upstream_url(upstream: Upstream, source: str) -> None:
    """The URL is not shown: a password may be what is wrong with it."""
    url = _URL.fullmatch(upstream.url)
    if (
        not url
        or {".", ".."} & set(upstream.url.split("/"))
        or int((url[2] or ":1")[1:]) > MAX_PORT
    ):
        raise ConfigError(
            f"url ({source}) must be an http or https URL, as https://host/v1, without user, query"
            " and fragment; credentials stand in headers."
        )
    is_plain = upstream.url.startswith("http:")
    if is_plain and not is_loopback(url[1].strip("[]")) and not upstream.insecure_http:
        raise ConfigError(
            f"url ({source}) is plain HTTP to another host, where credentials and answers can be"
            " read on the way: use https, or accept it with insecure_http = true."
        )


def _check_headers(headers: Mapping[str, str], source: str) -> None:
    """What is wrong with a value is told, and never what it is."""
    if len(headers) > MAX_HEADERS or len({name.lower() for name in headers}) < len(headers):
        raise ConfigError(f"headers ({source}) are at most {MAX_HEADERS}, each of them once.")
    for name, value in headers.items():
        if not _HEADER.fullmatch(name) or name.lower() in OUR_HEADERS:
            expected = "those of an upstream, and none that the gateway sets itself"
            raise _refused("a header", name, source, expected)
        if not is_header_value(value):
            raise ConfigError(
                f"headers ({source}): the value of {name} must be printable ASCII without spaces"
                f" around it, at most {MAX_HEADER_VALUE} bytes."
            )
        if _LIKE_REFERENCE.match(value) and not REFERENCE.fullmatch(value):
            raise ConfigError(
                f"headers ({source}): the value of {name} must name a variable, as env:NAME, or a"
                " file, as file:PATH, with at most one word before it."
            )


def is_header_value(text: str) -> bool:
    return len(text) <= MAX_HEADER_VALUE and _HEADER_VALUE.fullmatch(text) is not None


def _check_pattern(name: str, pattern: str, source: str) -> None:
    try:
        compile_pattern(pattern)
    except BadRequest as error:
        raise ConfigError(f"{name} ({source}) is no pattern: {error}") from error


def _rule(table: dict[str, Any], source: str, config: Config) -> ChannelRule:
    members = _members(table, _RULE_MEMBERS, source)
    if "match" not in members:
        raise ConfigError(
            f"match is missing ({source}); it is the pattern of channels, as 'chat.*'."
        )
    _check_pattern("match", members["match"], source)
    rule = dataclasses.replace(config.general_rule(), **members)
    _check_catch_up(rule, source)
    return rule


def _check_catch_up(rule: ChannelRule, source: str) -> None:
    if rule.policy is Policy.CATCH_UP and not rule.has_history:
        raise ConfigError(
            f"policy is 'catch-up' ({source}), but must be another one where history_events or"
            " history_bytes is 0: there is nothing to catch up from."
        )


def _check_workers(config: Config, source: str) -> None:
    number = re.fullmatch("[0-9]{1,3}", config.workers, re.ASCII)
    if config.workers != AUTO and not (number and 1 <= int(number[0]) <= MAX_WORKERS):
        expected = f"a whole number from 1 to {MAX_WORKERS}, or {AUTO}"
        raise _refused("workers", config.workers, source, expected)
    if config.worker_count > 1 and not config.redis:
        count = f", {config.worker_count} here" if config.workers == AUTO else ""
        raise ConfigError(
            f"workers is {config.workers} ({source}{count}), but without Redis each process"
            " would have channels and a history of its own, and a client would miss what is"
            " published at another one: link them with --redis redis://..., or take --workers 1."
        )


def _check(config: Config, sources: Mapping[str, str]) -> None:
    """What the bounds of single settings cannot say."""
    _check_catch_up(config.general_rule(), sources["policy"])
    for bound in ("outbox_bytes", "max_body_bytes", "pending_bytes"):
        limit = getattr(config, bound)
        if config.max_event_bytes > limit:
            raise _refused(
                "max_event_bytes",
                config.max_event_bytes,
                sources["max_event_bytes"],
                f"at most {bound}, which is {limit} ({sources[bound]})",
            )
    _check_workers(config, sources["workers"])
    _check_keys(config, sources)
    _check_origins(config, sources)
    _check_proxies(config, sources)
    _check_upstreams(config, sources)
    for one, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(config, one) and not getattr(config, other):
            raise ConfigError(
                f"{one} is set ({sources[one]}), but {other} is not; TLS needs both files."
            )
    host = _host("bind", config.bind, sources)
    if config.admin_bind:
        _host("admin_bind", config.admin_bind, sources)
    if not is_loopback(host) and not config.insecure and not config.has_keys:
        raise ConfigError(
            f"bind is {config.bind!r} ({sources['bind']}), but the node has no keys, so anyone who"
            " reaches it may publish and subscribe: give it one, as in GATEWAY_JWT_KEY, or bind to"
            " 127.0.0.1 or ::1 behind a proxy that decides who may, or accept it with --insecure."
        )


def _host(name: str, address: str, sources: Mapping[str, str]) -> str:
    try:
        return split_address(address)[0]
    except ValueError:
        expected = "host:port, as 127.0.0.1:8080, or [IPv6]:port, as [::1]:8080"
        raise _refused(name, address, sources[name], expected) from None


def _check_proxies(config: Config, sources: Mapping[str, str]) -> None:
    source = sources["trusted_proxies"]
    try:
        networks = parse_networks(split_list(config.trusted_proxies))
    except ValueError as error:
        raise ConfigError(
            f"trusted_proxies ({source}) has {str(error)[:_SHOWN]}, but must be addresses and"
            " networks, divided by commas, as 10.0.0.7,192.168.0.0/16,fd00::/8."
        ) from None
    if config.proxy_protocol and not networks:
        raise ConfigError(
            f"proxy_protocol is set ({sources['proxy_protocol']}), but trusted_proxies is empty"
            f" ({source}), so that no connection could be served: name the proxies there."
        )


def _check_origins(config: Config, sources: Mapping[str, str]) -> None:
    try:
        parse_origins(split_list(config.cors_origins))
    except BadRequest as error:
        source = sources["cors_origins"]
        raise ConfigError(f"cors_origins ({source}) cannot be used: {error}") from error


def _check_upstreams(config: Config, sources: Mapping[str, str]) -> None:
    if len(config.upstreams) > MAX_UPSTREAMS:
        found = len(config.upstreams)
        raise ConfigError(f"There are {found} [[upstream]] tables; the most is {MAX_UPSTREAMS}.")
    names = [upstream.name for upstream in config.upstreams]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"Two [[upstream]] tables have the name {repeated[0]!r}; each its own.")
    keys = {f"key:{key.name}" for key in config.api_keys}
    for upstream in config.upstreams:
        for name, kept in (("max_bytes", "stream_bytes"), ("max_tokens", "stream_events")):
            most, room = getattr(upstream, name), getattr(config, kept)
            if most > room:
                raise ConfigError(
                    f"The upstream {upstream.name} has {name} = {most}, but {kept}, which is {room}"
                    f" ({sources[kept]}), must hold all of a stream."
                )
        for allowed in upstream.allow:
            if allowed.startswith("key:") and allowed not in keys:
                raise ConfigError(
                    f"The upstream {upstream.name} allows {allowed!r}, but no [[api_key]] has that"
                    " name."
                )


def _check_keys(config: Config, sources: Mapping[str, str]) -> None:
    if config.jwt_key and config.jwt_key_file:
        raise ConfigError(
            f"jwt_key ({sources['jwt_key']}) and jwt_key_file ({sources['jwt_key_file']}) are both"
            " set; one of them names the secret."
        )
    for what, most, found in (
        ("[[issuer]]", MAX_ISSUERS, len(config.issuers)),
        ("[[api_key]]", MAX_API_KEYS, len(config.api_keys)),
    ):
        if found > most:
            raise ConfigError(f"There are {found} {what} tables; the most is {most}.")
    names = [key.name for key in config.api_keys]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"Two [[api_key]] tables have the name {repeated[0]!r}; each its own.")
    if not _COOKIE.fullmatch(config.token_cookie):
        expected = "the name of a cookie: letters, digits and !#$%&'*+-.^_`|~"
        raise _refused("token_cookie", config.token_cookie, sources["token_cookie"], expected)
    for pattern in split_list(config.public_channels):
        _check_pattern("public_channels", pattern, sources["public_channels"])
