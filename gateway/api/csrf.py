"""Whose pages may act on a gateway that asks them nothing, or takes a cookie for an answer.

A browser sends requests for any page, with the user's cookies, from the user's own machine; what
tells them apart is what it says of the page, and no script can forge that. Rules:

1. What a cookie proves counts for pages of the gateway's own origin and of those that
   ``cors_origins`` names: for anything, since a stream that is opened may end another. To change
   anything, a request must have an Origin: browsers send one with all that is not safe.
2. On a node without keys the same holds for whatever changes something, if there is an Origin or
   the browser says that the request crosses sites. Without either it was no page that sent it.
3. The own origin is that of Host. On a node without keys Host must moreover be a loopback one: any
   page has a name that it can point at this machine (DNS rebinding), and another network may have
   had the same private address.
4. ``Sec-Fetch-Site`` is a second witness, and only ever against a page: it stands in for an Origin
   that is missing, and refutes an own origin that is not the gateway's after all, such as a page
   without TLS at the same name. It allows nothing: few browsers send it to an address without TLS.
5. ``*`` is no permission here: it lets pages of anybody read, and not act.
"""

from collections.abc import Callable

from gateway.config import is_loopback
from gateway.errors import Forbidden
from gateway.node import Node
from gateway.origins import Origins, is_of_host, shown

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_OF_NO_OTHER_SITE = (None, b"same-origin", b"none")
"""What Sec-Fetch-Site may say; ``none`` is what a person has typed."""


def check_origin(
    origins: Origins,
    *,
    method: str,
    origin: bytes | None,
    host: bytes | None,
    site: bytes | None,
    by_cookie: bool,
    is_open: bool,
) -> None:
    """Raises Forbidden unless the page that may have sent the request may do so.

    ``origin``, ``host`` and ``site`` are the headers Origin, Host and Sec-Fetch-Site; ``by_cookie``
    says that a cookie is all that proves who asks, ``is_open`` that the node has no keys.
    """
    is_safe = method in SAFE_METHODS
    if not by_cookie and (is_safe or not is_open):
        return
    is_from_here = site in _OF_NO_OTHER_SITE
    if origin is None:
        if not is_from_here:
            raise Forbidden(
                "Pages of other sites may not do this here; a page whose origin cors_origins names"
                " may, if its requests say so in Origin."
            )
        if by_cookie and not is_safe:
            raise Forbidden(
                "A cookie lets a page publish and administer only if the request says in Origin"
                " which one it is; programs send the token as Authorization: Bearer."
            )
        return
    if origins.names(origin):
        return
    if not (is_from_here and host is not None and is_of_host(origin, host)):
        raise Forbidden(
            f"Pages of {shown(origin)} may not do this here: cors_origins does not name their"
            " origin."
        )
    if is_open and not is_loopback(_name(host)):
        raise Forbidden(
            f"Pages of {shown(origin)} may not do this here: on a node without keys the name in"
            " Host proves nothing, and cors_origins does not name their origin."
        )


def check_page(
    node: Node,
    method: str,
    header: Callable[[bytes], bytes | None],
    *,
    by_cookie: bool = False,
) -> None:
    """`check_origin` of a request to ``node``, by its headers. Raises Forbidden."""
    origin, site = header(b"origin"), header(b"sec-fetch-site")
    if origin is None and site is None and not by_cookie:
        return
    check_origin(
        node.origins,
        method=method,
        origin=origin,
        host=header(b"host"),
        site=site,
        by_cookie=by_cookie,
        is_open=node.auth.is_open,
    )


def _name(host: bytes) -> str:
    """The host in a Host header, without port and brackets."""
    text = host.decode("latin-1")
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
