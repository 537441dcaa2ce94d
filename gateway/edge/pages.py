"""What browsers load: the pages, and the modules that pages of anybody may use.

1. Everything here is the same for everybody and open to everybody: what a page shows it asks the
   api for. Files are read once, when the node starts.
2. A module is found at ``/<name>`` and is asked for anew each time (ETag), or at
   ``/v<version>/<name>``, where it never changes and may be kept for ever.
3. A page runs the scripts of its own origin alone, and talks to nobody else.
"""

import hashlib
from pathlib import Path

from quart import Response, g, request
from quart_trio import QuartTrio

from gateway import __version__
from gateway.node import Node

STATIC = Path(__file__).parent.parent / "static"

PUBLIC = "public"
"""In quart's ``g``: the answer says itself that any page may read it."""

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

MODULES: tuple[str, ...] = (
    "client.js",
    "client.d.ts",
    "changes.js",
    "poll.js",
    "refused.js",
    "request.js",
    "shared.js",
    "shared_cursor.js",
    "shared_leader.js",
    "shared_messages.js",
    "shared_polls.js",
)
"""For pages of anybody."""

DEMO = (
    "demo.css",
    "demo.js",
    "demo-events.js",
    "demo-link.js",
    "demo-moments.js",
    "demo-page.js",
    "demo-publish.js",
    "demo-stats.js",
    "demo-timeline.js",
)
"""What the demo page consists of."""

CHAT = (
    "chat.css",
    "chat.js",
    *("chat-address.js", "chat-answer.js", "chat-tail.js", "chat-text.js", "chat-turn.js"),
    *("chat-voice.js", "chat-wire.js"),
)
"""What the chat page consists of, beside what it shares with the demo page."""

OPS = (
    "ops.css",
    "ops.js",
    *("ops-ask.js", "ops-channels.js", "ops-clients.js", "ops-cluster.js", "ops-dialogs.js"),
    *("ops-dom.js", "ops-graph.js", "ops-happenings.js", "ops-nodes.js", "ops-search.js"),
    *("ops-verdict.js", "ops-words.js"),
)
"""What the page for operators consists of, beside ``client.js``."""

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".ts": "text/typescript; charset=utf-8",
}

REVALIDATED = "no-cache"
IMMUTABLE = "public, max-age=31536000, immutable"


def is_asset(rule: str) -> bool:
    """Whether a route is of a file that pages load."""
    return Path(rule).suffix in MEDIA_TYPES


def add_pages(app: QuartTrio, node: Node) -> None:
    for name in MODULES:
        _add_module(app, name)
    if node.config.demo:
        _add_page(app, "/", "demo.html", DEMO)
        _add_page(app, "/chat", "chat.html", CHAT)
    if node.config.ops:
        _add_page(app, "/ops", "ops.html", OPS)


def _add_module(app: QuartTrio, name: str) -> None:
    content, headers = _read(name)
    headers |= {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}

    async def module() -> Response:
        g.public = True
        return _answer(name, content, headers)

    async def version(version: str) -> Response:
        g.public = True
        kept = IMMUTABLE if version == __version__ else REVALIDATED
        return _answer(name, content, headers | {"Cache-Control": kept})

    app.add_url_rule(f"/{name}", name, module, methods=["GET"])
    app.add_url_rule(f"/v<version>/{name}", f"{name} of a version", version, methods=["GET"])


def _add_page(app: QuartTrio, path: str, name: str, parts: tuple[str, ...]) -> None:
    for part in parts:
        _add(app, f"/{part}", part)
    _add(app, path, name)


def _add(app: QuartTrio, path: str, name: str) -> None:
    content, headers = _read(name)
    headers["Content-Security-Policy"] = POLICY

    async def get() -> Response:
        return _answer(name, content, headers)

    app.add_url_rule(path, name, get, methods=["GET"])


def _read(name: str) -> tuple[bytes, dict[str, str]]:
    """A file, and the headers that it is answered with."""
    content = (STATIC / name).read_bytes()
    tag = hashlib.sha256(content).hexdigest()
    return content, {"Cache-Control": REVALIDATED, "ETag": f'"{tag}"'}


def _answer(name: str, content: bytes, headers: dict[str, str]) -> Response:
    if request.if_none_match.contains_weak(headers["ETag"].strip('"')):
        response = Response(b"", 304)
        del response.headers["Content-Type"]
        del response.headers["Content-Length"]
    else:
        response = Response(content, content_type=MEDIA_TYPES[Path(name).suffix])
    response.headers.update(headers)
    return response
