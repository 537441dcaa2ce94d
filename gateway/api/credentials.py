"""What a request carries to say who asks: a bearer token, else a cookie, else a query field.

1. The first that is there counts, and none of the others is looked at.
2. An API key is a bearer token alone: it has no place in a URL, which others see and log.
"""

from typing import NamedTuple

from gateway.api.csrf import check_page
from gateway.api.request import Request
from gateway.auth import API_KEY_PREFIX, NEEDED, NOBODY
from gateway.errors import Forbidden, Unauthorized, Unavailable
from gateway.identity import ANYBODY, Identity
from gateway.node import Node

QUERY_FIELD = "token"

_BEARER = b"bearer "


class Credential(NamedTuple):
    text: str
    by_cookie: bool = False
    """The browser sent it by itself, whichever page had it do so."""


async def identify(node: Node, request: Request) -> Identity:
    """Who asks. Raises Unauthorized, Forbidden for a page that may not use its user's cookie, and
    Unavailable while it cannot be known."""
    auth = node.auth
    if auth.is_open:
        return ANYBODY
    credential = credential_of(request, node.config.token_cookie)
    if credential is None:
        return auth.anonymous()
    if credential.by_cookie:
        check_page(node, request.method, request.header, by_cookie=True)
    if not node.ledger.loaded:
        raise Unavailable("It is not known yet what is revoked.", reason="bus", outcome="refused")
    identity = await auth.identify(credential.text)
    if node.revoked.has(identity):
        raise Unauthorized("The token has been revoked.")
    return identity


def check_admin(identity: Identity) -> None:
    """Raises Unauthorized, or Forbidden, unless ``identity`` may administer."""
    if identity.may_administer():
        return
    if identity is NOBODY:
        raise Unauthorized(f"This is for administrators: {NEEDED}.", bad_token=False)
    raise Forbidden("This is for administrators (gateway.admin).")


def check_overseer(node: Node, request: Request, identity: Identity) -> None:
    """The same of what shows or stops a whole node, which one without keys does not let everybody
    do who reaches it, be it through a proxy beside it."""
    if identity.is_open and not (
        node.is_local and node.is_exempt(node.address_of(request.peer, request.header))
    ):
        raise Forbidden(
            "A node without keys shows itself only on loopback; this one listens wider, or the"
            " request comes from another machine."
        )
    check_admin(identity)


def credential_of(request: Request, cookie: str) -> Credential | None:
    """What the request carries; raises Unauthorized for what cannot be one."""
    header = request.header(b"authorization")
    if header is not None:
        if header[: len(_BEARER)].lower() != _BEARER:
            raise Unauthorized("The only scheme of Authorization is Bearer.")
        return Credential(header[len(_BEARER) :].strip().decode("latin-1"))
    found = cookie and _cookie(request.header(b"cookie") or b"", cookie.encode())
    if found:
        return Credential(_no_api_key(found), by_cookie=True)
    token = request.first(QUERY_FIELD)
    return Credential(_no_api_key(token)) if token is not None else None


def _cookie(header: bytes, name: bytes) -> str:
    """The value of the first cookie of that name (RFC 6265 4.2.1); empty if there is none."""
    for pair in header.split(b";"):
        key, _, value = pair.partition(b"=")
        if key.strip() == name:
            return value.strip().removeprefix(b'"').removesuffix(b'"').decode("latin-1")
    return ""


def _no_api_key(text: str) -> str:
    if text.startswith(API_KEY_PREFIX):
        raise Unauthorized("An API key is sent as `Authorization: Bearer`, and in no other way.")
    return text
