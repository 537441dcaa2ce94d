"""What pages of other origins may do with an answer: the CORS headers and preflights (Fetch
standard, section 3.2). Pure: front and edge add to their answers what is decided here.

1. An origin that ``cors_origins`` names is told so by itself and with credentials. ``*`` tells all
   others ``*``: they may read what anybody may, and never with somebody's cookies.
2. An answer depends on Origin wherever ``cors_origins`` names anything, so each of such a node says
   so (``Vary``), also to who sent none: what a cache keeps for one page must not reach another.
3. Here is only said what a page may read. What it may do is in ``csrf``: a browser sends a simple
   request first, and looks at these headers when it is done.
"""

import re
from collections.abc import Callable, Iterable

from gateway.api.request import Answer
from gateway.errors import Forbidden
from gateway.origins import Origins, shown

Headers = tuple[tuple[bytes, bytes], ...]

ALLOWED_HEADERS = (
    b"Authorization, Cache-Control, Content-Type, Last-Event-ID, traceparent, tracestate,"
    b" X-Request-Id"
)
"""Of requests. Named one by one, since ``*`` would leave out Authorization."""

EXPOSED_HEADERS = (
    b"Allow, Content-Location, Location, Request-Id, Retry-After, Retry-After-Ms, Stream-Channel,"
    b" Stream-Id, WWW-Authenticate, X-Request-Id, X-Should-Retry"
)
"""Of answers, what the vendors' clients go by included; those that a script may always read are not
among them."""

_NAME = re.compile(r"[a-z0-9-]{1,100}", re.ASCII)

_VARY = ((b"Vary", b"Origin"),)
_EXPOSED = (b"Access-Control-Expose-Headers", EXPOSED_HEADERS)
_CREDENTIALS = (b"Access-Control-Allow-Credentials", b"true")


def cors_headers(origins: Origins, origin: bytes | None) -> Headers:
    """What is added to an answer to a request with this Origin, where ``origins`` names any."""
    allowed = _allowed(origins, origin)
    return (*_VARY, *allowed, _EXPOSED) if allowed else _VARY


def options(
    origins: Origins,
    max_age: float,
    methods: Iterable[str],
    header: Callable[[bytes], bytes | None],
    more: Callable[[str], bool] | None = None,
) -> Answer:
    """The answer to OPTIONS, for a path that has ``methods``, without what `cors_headers` adds.
    ``more`` says which headers a request may have there beside ALLOWED_HEADERS, by lower-case name.

    Raises Forbidden on a preflight of an origin that is not allowed. A browser would see the same
    in a 204 without headers; a person who looks for the reason sees it only here.
    """
    allow = ", ".join(sorted(methods)).encode()
    origin, wanted = header(b"origin"), header(b"access-control-request-method")
    if origin is None or wanted is None:
        return Answer(204, headers=((b"Allow", allow),))
    if not _allowed(origins, origin):
        raise Forbidden(
            f"Pages of {shown(origin)} may not use this gateway: cors_origins does not name their"
            " origin."
        )
    also: list[bytes] = []
    if more is not None:
        asked = (header(b"access-control-request-headers") or b"").decode("latin-1").lower()
        names = (name.strip() for name in asked.split(","))
        also = [name.encode() for name in names if _NAME.fullmatch(name) and more(name)]
    return Answer(
        204,
        headers=(
            (b"Allow", allow),
            (b"Access-Control-Allow-Methods", allow),
            (b"Access-Control-Allow-Headers", b", ".join((ALLOWED_HEADERS, *also))),
            (b"Access-Control-Max-Age", b"%d" % max_age),
        ),
    )


def _allowed(origins: Origins, origin: bytes | None) -> Headers:
    if origin is not None and origins.names(origin):
        return ((b"Access-Control-Allow-Origin", origin), _CREDENTIALS)
    return ((b"Access-Control-Allow-Origin", b"*"),) if origins.everybody else ()
