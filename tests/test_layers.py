"""Imports inside the package point only downwards."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway

ROOT = Path(gateway.__file__).parent

LAYERS = (
    ("__main__",),
    ("cli",),
    ("client", "mint", "supervisor", "worker"),
    ("census",),
    ("worker_process",),
    ("restarts", "server"),
    ("reception",),
    ("front", "tls_connection"),
    ("admin_connection", "arriving"),
    ("connection", "edge"),
    ("openapi",),
    ("api", "control_socket", "merged"),
    ("metrics",),
    ("node",),
    ("poll", "relay", "reports"),
    ("streams",),
    ("replacements",),
    ("budget", "clock", "cluster", "fanout", "replays"),
    ("hub",),
    ("admission", "lanes", "members", "pending", "replay", "tracing"),
    ("client_summary", "stream_log"),
    ("hub_client",),
    ("outbox", "bus"),
    ("ledger", "tallies"),
    ("happenings", "rates", "revoked"),
    ("revocation",),
    ("charge",),
    ("control", "event", "http1", "http1_render", "proxy_protocol", "tls"),
    ("http1_head", "messages", "process", "requests", "sse", "position", "transport"),
    ("histogram",),
    ("auth", "settings"),
    ("jwks", "jws"),
    ("keys",),
    ("config",),
    ("identity",),
    ("addresses", "limits", "names", "origins", "policy", "stream_state"),
    ("errors", "logs", "notify", "request_id"),
    ("log_lines", "threads"),
    ("trace_context",),
    ("__init__",),
)
"""From top to bottom. Modules of one layer know nothing of each other."""

LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}


def room(path: Path) -> str:
    """The module of the package, or its subpackage, that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """The rooms that a file imports, wherever in the file that is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == "gateway":
                inside = bool(parts) and parts[0] in LEVEL
                yield parts[0] if inside else "__init__"


SOURCES = sorted(ROOT.rglob("*.py"))


def test_every_module_has_its_layer() -> None:
    assert {room(path) for path in SOURCES} == set(LEVEL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_below(path: Path) -> None:
    own = room(path)
    for name in imported(path):
        assert name == own or LEVEL[name] > LEVEL[own], f"{own} imports {name}"


def test_the_client_needs_nothing_of_the_node() -> None:
    sources = sorted((ROOT / "client").glob("*.py"))
    assert {name for path in sources for name in imported(path)} == {"client", "errors", "sse"}


def test_the_client_loads_httpx_and_anyio_and_nothing_of_the_stack() -> None:
    program = "import sys, gateway.client; print(*{n.partition('.')[0] for n in sys.modules})"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    loaded = set(ran.stdout.decode().split())
    assert {"anyio", "httpx"} <= loaded
    assert not loaded & {"hiredis", "httptools", "hypercorn", "jwt", "msgspec", "quart", "redis"}
