"""The drop-in: ``/relay/<upstream>/<path>`` is that path of the upstream, for whoever may use it.

What comes back is the upstream's, refusals included. The gateway's own are problem documents which
also have the member ``error``, where the vendors' clients look for what to tell.
"""

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from gateway.api.credentials import identify
from gateway.api.csrf import check_page
from gateway.api.refusals import refused
from gateway.api.request import Answer, Request
from gateway.api.streams import STREAM_CHANNEL, STREAM_ID, check_room, upstream_for, url_of
from gateway.errors import (
    BadGateway,
    GatewayError,
    GatewayTimeout,
    MethodNotAllowed,
    NotFound,
    Unavailable,
)
from gateway.identity import Identity
from gateway.node import Node
from gateway.relay.events import FAILURES, Failure
from gateway.relay.proxy import Passage, Wanted, asked, begin
from gateway.relay.upstream import below, goes_on

PATH = "/relay"
ROUTE = f"{PATH}/<upstream>"
"""As what requests count."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""That the ``paths`` of an upstream can list."""

NOT_BUFFERED = (b"X-Accel-Buffering", b"no")

OF_PAGES = frozenset({"x-api-key", "anthropic-dangerous-direct-browser-access"})
"""Headers that clients in pages send beside those that go on to an upstream."""

_BEARER = b"Bearer "

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""As Anthropic calls what is wrong; OpenAI's clients go by the status."""

_IN_VAIN = (b"X-Should-Retry", b"false")
"""To the vendors' clients, which else ask again after any status from 500 on."""


def may_be_sent(name: str) -> bool:
    """Whether a page's request may have the header."""
    return name in OF_PAGES or goes_on(name)


async def forward(
    node: Node, request: Request, query: str, headers: Iterable[tuple[str, str]]
) -> Answer | Passage:
    """What the upstream answers, or why it is not asked. ``query`` and ``headers`` are the
    request's as they came, names in lower case."""
    try:
        return await _forward(node, request, query, headers)
    except Failure as failure:
        return _refusal(node, _error_of(failure))
    except GatewayError as error:
        return _refusal(node, error)


async def _forward(
    node: Node, request: Request, query: str, headers: Iterable[tuple[str, str]]
) -> Passage:
    if node.auth.is_open:
        check_page(node, request.method, request.header)
    identity = await identify(node, _with_bearer(request))
    name, _, path = request.path.removeprefix(f"{PATH}/").partition("/")
    if request.method != "POST" and not path:
        raise MethodNotAllowed(f"What is at {ROUTE} itself is POSTed.", allow="POST")
    _check_exists(node, identity, name)
    upstream = upstream_for(node, identity, name)
    check_room(node, upstream, identity.user)
    if node.leaving or node.relays.leaving:
        raise Unavailable("The node is draining; ask another one.", reason="draining")
    if node.cut_off and request.method == "POST" and asked(request.body).stream is True:
        # What has been asked of the upstream may have to be paid for.
        raise Unavailable("A token stream could not be recorded now.", reason="bus")
    wanted = Wanted(request.method, below(upstream, path), query, headers, request.body)
    return await begin(
        node.relays,
        node.upstreams.caller(upstream),
        node.upstreams.limits(upstream),
        wanted,
        user=identity.user,
        publisher=identity.publisher,
    )


def _with_bearer(request: Request) -> Request:
    """With the credential of ``x-api-key``, where Anthropic's clients have it, in Authorization."""
    key = request.header(b"x-api-key")
    if key is None or request.header(b"authorization") is not None:
        return request

    def header(name: bytes) -> bytes | None:
        return _BEARER + key if name == b"authorization" else request.header(name)

    return request._replace(header=header)


def _check_exists(node: Node, identity: Identity, name: str) -> None:
    """Raises NotFound for whoever may know which upstreams there are."""
    if identity.may_administer() and node.upstreams.find(name) is None:
        raise NotFound("There is no upstream of that name; they are [[upstream]] tables.")


def headers_of(passage: Passage) -> tuple[tuple[bytes, bytes], ...]:
    """Those of the answer to the client: the upstream's, and where a token stream can be joined."""
    headers = tuple(passage.headers)
    record = passage.record
    if record is None:
        return headers
    return (
        *headers,
        NOT_BUFFERED,
        (b"Location", url_of(record).encode()),
        (STREAM_ID, record.id.encode()),
        (STREAM_CHANNEL, record.channel.encode()),
    )


def _error_of(failure: Failure) -> GatewayError:
    kind = BadGateway if failure.code != "timeout" else GatewayTimeout
    return kind(failure.told().message, reason=failure.code)


def _refusal(node: Node, error: GatewayError) -> Answer:
    answer = as_clients_read(refused(node, error, "token-streams"))
    if isinstance(error, BadGateway) and not FAILURES[str(error.extra["reason"])].retryable:
        answer = replace(answer, headers=(*answer.headers, _IN_VAIN))
    return answer


def as_clients_read(refusal: Answer) -> Answer:
    """A problem document with what the vendors' clients look for."""
    document = msgspec.json.decode(refusal.body)
    otherwise = "api_error" if refusal.status >= 500 else "invalid_request_error"
    named = {
        "message": document["detail"],
        "type": _TYPES.get(refusal.status, otherwise),
        "code": document.get("reason"),
        "param": None,
    }
    return replace(refusal, body=msgspec.json.encode({**document, "error": named}) + b"\n")
