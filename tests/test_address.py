"""What a URL of Redis says, and that a bad one is refused without showing its password."""

import ssl
from pathlib import Path

import pytest
import trio

from gateway.bus.address import Address, parse_address
from gateway.errors import ConfigError

PLAIN = Address("host", 6379, None, 0, None, None, None)


@pytest.mark.parametrize(
    ("url", "host", "port", "database"),
    [
        ("redis://host", "host", 6379, 0),
        ("redis://host:7000", "host", 7000, 0),
        ("redis://host:7000/3", "host", 7000, 3),
        ("redis://host?db=4", "host", 6379, 4),
        ("redis://[::1]:7000/0", "::1", 7000, 0),
        ("redis://", "localhost", 6379, 0),
    ],
)
def test_a_plain_url(url: str, host: str, port: int, database: int) -> None:
    assert parse_address(url) == Address(host, port, None, database, None, None, None)


@pytest.mark.parametrize(
    ("userinfo", "user", "password"),
    [
        ("", None, None),
        (":pw@", None, "pw"),
        ("me:pw@", "me", "pw"),
        ("me:p%40%2Fw@", "me", "p@/w"),
    ],
)
@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel"])
def test_user_and_password(
    scheme: str, userinfo: str, user: str | None, password: str | None
) -> None:
    service = "/main" if "sentinel" in scheme else ""
    address = parse_address(f"{scheme}://{userinfo}host:1{service}")
    assert (address.username or None, address.password) == (user, password)
    assert "pw" not in str(address)
    assert str(address) == f"{scheme}://host:1{service}"


def test_a_socket_in_the_file_system() -> None:
    address = parse_address("unix:///run/redis.sock?db=2")
    assert (address.path, address.database) == ("/run/redis.sock", 2)
    assert str(address) == "unix:///run/redis.sock"


@pytest.mark.parametrize(
    ("query", "checks_host", "mode"),
    [
        ("", True, ssl.CERT_REQUIRED),
        ("?ssl_check_hostname=false", False, ssl.CERT_REQUIRED),
        ("?ssl_check_hostname=False", False, ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=none", False, ssl.CERT_NONE),
        ("?ssl_cert_reqs=optional&ssl_check_hostname=false", False, ssl.CERT_OPTIONAL),
        ("?ssl_cert_reqs=required", True, ssl.CERT_REQUIRED),
    ],
)
@pytest.mark.parametrize("url", ["rediss://host:1", "rediss+sentinel://host:1/main"])
def test_tls_is_checked_unless_told_not_to(
    url: str, query: str, checks_host: bool, mode: ssl.VerifyMode
) -> None:
    tls = parse_address(url + query).tls
    assert tls is not None
    assert (tls.check_hostname, tls.verify_mode) == (checks_host, mode)


@pytest.mark.parametrize(
    ("url", "sentinels", "service", "database"),
    [
        ("redis+sentinel://a/main", (("a", 26379),), "main", 0),
        ("redis+sentinel://a:1,b:2,c/main", (("a", 1), ("b", 2), ("c", 26379)), "main", 0),
        ("redis+sentinel://a,/main/3", (("a", 26379),), "main", 3),
        ("redis+sentinel://[::1]:1/main", (("::1", 1),), "main", 0),
    ],
)
def test_sentinels(
    url: str, sentinels: tuple[tuple[str, int], ...], service: str, database: int
) -> None:
    address = parse_address(url)
    assert address.sentinels == sentinels
    assert (address.service, address.database) == (service, database)


BAD = [
    "",
    "host:6379",
    "http://:secret@host",
    "redis://:secret@host:port",
    "redis://:secret@host:99999",
    "redis://:secret@host/0?db=x",
    "redis://:secret@[::1",
    "redis+sentinel://:secret@/main",
    "redis+sentinel://:secret@host",
    "redis+sentinel://:secret@host:x/main",
    "redis+sentinel://:secret@host/main/x",
    "rediss://:secret@host?ssl_ca_certs=/does/not/exist",
    "rediss://:secret@host?ssl_cert_reqs=nonsense",
]


@pytest.mark.parametrize("url", BAD)
def test_a_bad_url_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="redis is not a URL of Redis") as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)


async def test_a_socket_in_the_file_system_is_dialled(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(path)
    listener.listen()
    stream = await parse_address(f"unix://{path}").dial(1)
    await stream.aclose()
    listener.close()


async def test_sentinels_that_do_not_answer_name_no_primary() -> None:
    with pytest.raises(OSError, match="no Sentinel knows a primary of main"):
        await parse_address("redis+sentinel://127.0.0.1:1/main").dial(5)
