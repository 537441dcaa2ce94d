"""The shipped HAProxy and nginx, in front of the nodes of a test.

The files are those of deploy/. What is other than there is what their first rule allows: addresses,
files, the user, numbers of connections, and the times that a test divides.
"""

import grp
import os
import pwd
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol, TypeAlias

import certificates
import httpx
import trio
from process import Child, child, eventually
from redis_server import free_port
from running import ACCEPT, Response, Wire, request

Start: TypeAlias = Callable[..., AbstractAsyncContextManager["Balancer"]]
"""`haproxy` or `nginx`."""

DEPLOY = Path(__file__).parent.parent / "deploy"
HAPROXY = DEPLOY / "haproxy" / "haproxy.cfg"
NGINX = DEPLOY / "nginx" / "nginx.conf"

README = DEPLOY / "README.md"

NODES = 3
"""That the files are written for."""

SILENCE = 90.0
"""Seconds for which a stream may be silent, as shipped."""

CHECK_INTERVAL = 0.1
"""Seconds between two of HAProxy's checks."""

DESCRIPTORS = 20_000
CONNECTIONS = 4_000
"""What any machine allows; nobody here needs more."""

MARK = "# SITE"
"""Of the lines of nginx.conf that differ from site to site."""


class Backend(Protocol):
    """A node, as a balancer sees it."""

    @property
    def port(self) -> int: ...

    @property
    def admin_port(self) -> int: ...


class Absent(NamedTuple):
    """A node that is not there."""

    port: int
    admin_port: int


class Ports:
    """What a balancer listens on."""

    def __init__(self) -> None:
        self.redirect, self.https, self.inside, self.statistics = (free_port() for _ in range(4))


class Balancer:
    """A running one, and clients for it. Their connections are closed when it is done with."""

    def __init__(
        self,
        process: Child,
        ports: Ports,
        certificate: certificates.Files,
        counted: tuple[str, str],
    ) -> None:
        """``counted`` is at which path, and behind what, it counts its connections."""
        self.process = process
        self.port = ports.inside
        """Of plain HTTP, for applications and operators."""
        self.https_port = ports.https
        self.redirect_port = ports.redirect
        self._certificate = certificate
        self._statistics = f"http://127.0.0.1:{ports.statistics}{counted[0]}"
        self._counted = re.compile(re.escape(counted[1]) + r" (\d+)")
        self._wires: list[Wire] = []

    async def connect_from(self, address: str) -> Wire:
        """As passed on by another balancer, which says by the PROXY protocol from whom."""
        family = "TCP6 %s ::1" if ":" in address else "TCP4 %s 127.0.0.1"
        return await self.connect(header=f"PROXY {family % address} 1 443\r\n".encode())

    async def connect(self, *, tls: bool = True, header: bytes = b"") -> Wire:
        stream = await trio.open_tcp_stream("127.0.0.1", self.https_port if tls else self.port)
        await stream.send_all(header)
        ssl = None
        if tls:
            context = self._certificate.client()
            ssl = trio.SSLStream(stream, context, server_hostname="localhost")
        wire = Wire(stream, ssl)
        self._wires.append(wire)
        return wire

    async def open(self, target: str, *headers: bytes, tls: bool = True) -> Wire:
        """An event stream whose head has not been read yet."""
        wire = await self.connect(tls=tls)
        await wire.send(request("GET", target, ACCEPT, *headers))
        return wire

    async def ask(self, raw: bytes, *, tls: bool = False) -> Response:
        """The one response to ``raw``."""
        wire = await self.connect(tls=tls)
        await wire.send(raw)
        return await wire.response()

    async def connections(self) -> int:
        """How many it counts: HAProxy those of browsers, nginx that of this question as well."""
        async with httpx.AsyncClient(trust_env=False) as client:
            found = self._counted.search((await client.get(self._statistics)).text)
        assert found is not None
        return int(found[1])

    async def has_up(self, number: int) -> bool:
        """Whether HAProxy gives new streams to that node."""
        node = f'proxy="streams",server="node{number}"'
        return await self._says(f'haproxy_server_status{{{node},state="UP"}} 1')

    async def has_requests(self, number: int) -> bool:
        """Whether that many requests, streams and polls apart, are at nodes of HAProxy's."""
        return await self._says(f'haproxy_backend_current_sessions{{proxy="requests"}} {number}\n')

    async def _says(self, metric: str) -> bool:
        async with httpx.AsyncClient(trust_env=False) as client:
            return metric in (await client.get(self._statistics)).text

    def close(self) -> None:
        for wire in self._wires:
            wire.socket_stream.socket.close()


@asynccontextmanager
async def haproxy(
    nodes: Sequence[Backend],
    certificate: certificates.Files,
    *,
    silence: float = SILENCE,
    node_connections: int = CONNECTIONS,
    address_connections: int = CONNECTIONS,
    check_interval: float = CHECK_INTERVAL,
) -> AsyncIterator[Balancer]:
    """``silence`` is for how many seconds a stream may be silent; no node gets more than
    ``node_connections``, and nobody has more than ``address_connections``."""
    ports = Ports()
    with TemporaryDirectory() as directory, ExitStack() as held:
        variables = {
            "LISTEN_HTTP": f"127.0.0.1:{ports.redirect}",
            "LISTEN_HTTPS": f"127.0.0.1:{ports.https}",
            "LISTEN_INSIDE": f"127.0.0.1:{ports.inside}",
            "LISTEN_STATISTICS": f"127.0.0.1:{ports.statistics}",
            "ADMIN_SOCKET": f"{directory}/socket",
            "CERTIFICATE": in_one_file(certificate, directory),
            "MAXCONN": str(CONNECTIONS),
            "DESCRIPTORS": str(DESCRIPTORS),
            "NODE_MAXCONN": str(node_connections),
            "ADDRESS_CONNECTIONS": str(address_connections),
            "SILENCE": _milliseconds(silence),
            "CHECK_INTERVAL": _milliseconds(check_interval),
        }
        if os.geteuid() != 0:
            variables["RUN_AS"] = pwd.getpwuid(os.geteuid()).pw_name
            variables["RUN_AS_GROUP"] = grp.getgrgid(os.getegid()).gr_name
        for number, node in enumerate(_all(nodes, held), 1):
            variables[f"NODE_{number}"] = f"127.0.0.1:{node.port}"
            variables[f"NODE_{number}_ADMIN"] = str(node.admin_port)
        counted = "/metrics", 'haproxy_frontend_current_sessions{proxy="browsers"}'
        command = child("haproxy", "-db", "-f", str(HAPROXY), **variables)
        async with _started(command, ports, certificate, counted) as balancer:
            absent = [f"streams/node{number + 1} is DOWN" for number in range(len(nodes), NODES)]

            async def has_seen_who_is_absent() -> bool:
                return all(told in process.output for told in absent)

            process = balancer.process
            await eventually(has_seen_who_is_absent)
            yield balancer


@asynccontextmanager
async def nginx(
    nodes: Sequence[Backend],
    certificate: certificates.Files,
    *,
    silence: float = SILENCE,
    node_connections: int = CONNECTIONS,
    address_connections: int = CONNECTIONS,
    connections: int = CONNECTIONS,
) -> AsyncIterator[Balancer]:
    """As `haproxy`; each worker has ``connections``, to browsers and to nodes."""
    ports = Ports()
    with TemporaryDirectory() as directory, ExitStack() as held:
        values = {
            "/run/nginx.pid": f"{directory}/pid",
            "/var/log/nginx/error.log": "stderr",
            "/var/log/nginx/access.log": "/dev/stdout",
            "nofile 100000": f"nofile {DESCRIPTORS}",
            "connections 50000": f"connections {connections}",
            "max_conns=25000": f"max_conns={node_connections}",
            "addresses 2000": f"addresses {address_connections}",
            "timeout 90s": f"timeout {_milliseconds(silence)}",
            "listen 80;": f"listen 127.0.0.1:{ports.redirect};",
            "listen 443 ": f"listen 127.0.0.1:{ports.https} ",
            "127.0.0.1:8081": f"127.0.0.1:{ports.inside}",
            "127.0.0.1:8404": f"127.0.0.1:{ports.statistics}",
            "/etc/nginx/certs/fullchain.pem": str(certificate.cert),
            "/etc/nginx/certs/privkey.pem": str(certificate.key),
        }
        for number, node in enumerate(_all(nodes, held), 1):
            values[f"10.0.0.1{number}:8080"] = f"127.0.0.1:{node.port}"
        file = _written_for_this_site(values, directory)
        counted = "/status", "Active connections:"
        command = child("nginx", "-g", "daemon off;", "-c", file)
        async with _started(command, ports, certificate, counted) as balancer:
            yield balancer


@asynccontextmanager
async def _started(
    command: AbstractAsyncContextManager[Child],
    ports: Ports,
    certificate: certificates.Files,
    counted: tuple[str, str],
) -> AsyncIterator[Balancer]:
    async with command as process:
        await process.until_listening(ports.inside)
        balancer = Balancer(process, ports, certificate, counted)
        try:
            yield balancer
        except Exception as failure:
            failure.add_note(f"The balancer said:\n{process.output}")
            raise
        finally:
            balancer.close()


def _all(nodes: Sequence[Backend], held: ExitStack) -> list[Backend]:
    """As many as the files are written for; those that ``nodes`` has not are not there."""
    absent = (Absent(_refused(held), _refused(held)) for _ in range(NODES - len(nodes)))
    return [*nodes, *absent]


def _refused(held: ExitStack) -> int:
    """A port at which nobody will listen as long as it is held."""
    taken = held.enter_context(socket.socket())
    taken.bind(("127.0.0.1", 0))
    port: int = taken.getsockname()[1]
    return port


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def in_one_file(certificate: certificates.Files, directory: str) -> str:
    """The name of a file in ``directory`` with the certificate and its key, as HAProxy takes it."""
    pem = Path(directory, "certificate.pem")
    pem.write_bytes(certificate.cert.read_bytes() + certificate.key.read_bytes())
    return str(pem)


def _written_for_this_site(values: dict[str, str], directory: str) -> str:
    """The name of a copy of NGINX that has ``values`` in its marked lines, each at least once, and
    keeps its temporary files in ``directory``."""
    lines = []
    used: set[str] = set()
    for line in NGINX.read_text("utf-8").split("\n"):
        here = line
        if MARK in line:
            used.update(value for value in values if value in line)
            for shipped, value in values.items():
                here = here.replace(shipped, value)
        elif line == "http {":
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
                here += f" {kind}_temp_path {directory}/{kind};"
        lines.append(here)
    assert used == values.keys(), values.keys() - used
    file = Path(directory, "nginx.conf")
    file.write_text("\n".join(lines), "utf-8")
    file.parent.chmod(0o711)  # its workers are another user, if it is started by root
    return str(file)
