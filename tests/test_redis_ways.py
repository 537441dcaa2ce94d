"""A real node reaches a real Redis in each way that a URL can say."""

import subprocess
from pathlib import Path

import trio
from process import environment, eventually, node
from redis_server import free_port, redis_server

ACL = (
    "~gateway:* &gateway:* -@all +@read +@write +@pubsub +@scripting +@connection +info +role +time"
)
"""By kinds of commands; `test_redis_acl` has those that are written down, one by one."""


async def reaches(url: str) -> None:
    """One node publishes, another one has it in history and for its client."""
    async with node("--redis", url) as one, node("--redis", url) as other:
        stream = await other.open_stream("/events/a")
        (identifier,) = await one.publish("a", "hello")
        await stream.until(b"id: %s\ndata: hello\n" % identifier.encode())
        answer = await one.get("/poll/a?lastEventId=earliest&wait=0")
        assert answer.json()["lastEventId"] == identifier


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    async with redis_server(unixsocket=str(path)):
        await reaches(f"unix://{path}?db=2")


async def test_with_a_database_and_a_user_who_may_not_do_everything() -> None:
    async with redis_server() as server:
        await server.call("ACL", "SETUSER", "gw", "on", ">p@ss", *ACL.split())
        await reaches(f"redis://gw:p%40ss@127.0.0.1:{server.port}/3")


async def test_over_tls_and_only_if_the_certificate_is_right(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    await trio.run_process(
        [
            *("openssl", *made.split(), "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    port = free_port()
    async with redis_server(
        tls_port=port, tls_cert_file=str(certificate), tls_key_file=str(key), tls_auth_clients="no"
    ):
        await reaches(f"rediss://localhost:{port}?ssl_ca_certs={certificate}")
        async with node("--redis", f"rediss://localhost:{port}") as stranger:

            async def has_said_why() -> bool:
                return "certificate verify failed" in stranger.output

            await eventually(has_said_why)  # perhaps before where it listens
            assert (await stranger.get("/readyz")).status_code == 503
