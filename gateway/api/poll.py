"""GET /poll: what a stream would bring, for those that can hold none open.

An answer is 200 whenever the request was understood and let in, also when nothing came and when
nothing can come any more: a client asks again with the ``lastEventId`` that it was given, until
that ends in ``.closed``. A refusal for now is 503, or 429 where it is the address's own: whoever
polls reads statuses.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import trio

from gateway.api.asked import in_query
from gateway.api.credentials import identify
from gateway.api.request import NOT_STORED, Answer, Request, answer, problem
from gateway.api.subscribe import (
    refuse,
    requested,
    where_it_ended,
    why_not,
    why_not_opened,
)
from gateway.api.views import viewed
from gateway.errors import (
    BadRequest,
    GatewayError,
    MethodNotAllowed,
    TooManyRequests,
    Unavailable,
)
from gateway.node import Node
from gateway.poll import poll as poll_stream

PATH = "/poll"

DEFAULT_WAIT = 25.0
"""Seconds; under the 30 after which many proxies and clients give up on an answer."""

MAX_WAIT = 60
"""Seconds; nginx gives up on an answer (proxy_read_timeout) after as many."""

_WAIT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,30})?([eE]-[0-9]{1,3})?")
"""As programs write a number: 0.1 + 0.2 has 17 decimals, and a millionth is 1e-06."""


async def poll(node: Node, request: Request, patience: trio.CancelScope) -> Answer:
    """Wait for events under ``patience``, whose deadline is set here; to cancel it ends the wait,
    and the answer is what there is."""
    try:
        return await _poll(node, request, patience)
    except Unavailable as error:
        node.refuse(why_not_opened(error))
        return problem(error)
    except TooManyRequests as error:  # others have come before it since it was let in
        return refuse(node, why_not_opened(error))
    except GatewayError as error:
        return problem(error)


async def _poll(node: Node, request: Request, patience: trio.CancelScope) -> Answer:
    if request.method != "GET":
        raise MethodNotAllowed("A poll is asked for with GET.", allow="GET")
    wait = _wait(request)
    identity = await identify(node, request)
    asked = in_query(request, PATH)
    stream = requested(node, request, PATH, identity, asked)
    stream = await viewed(node, request, identity, stream, asked.view)
    if (ended := await where_it_ended(node, stream)) is not None:
        return _answer((), str(ended))
    refusal = await why_not(node, stream, lambda: patience.cancel_called)
    if refusal is not None:
        return refuse(node, *refusal)
    patience.deadline = trio.current_time() + wait
    polled = await poll_stream(node.streams, node.hub, stream, patience)
    return _answer(polled.events, polled.last_event_id)


def _answer(events: Sequence[msgspec.Raw], last_event_id: str) -> Answer:
    found = answer(200, {"events": events, "lastEventId": last_event_id})
    return replace(found, headers=(NOT_STORED,))


def _wait(request: Request) -> float:
    """Seconds to wait for an event."""
    text = request.first("wait")
    if text is None:
        return DEFAULT_WAIT
    if _WAIT.fullmatch(text) is None or float(text) > MAX_WAIT:
        raise BadRequest(f"wait is a number of seconds from 0 to {MAX_WAIT}, as in wait=0.5.")
    return float(text)
