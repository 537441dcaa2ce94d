"""Requests that are refused: their answers, and what the log has of them: a line each, with the id
that the answer has.

What its asker has to mend is for debugging; that the node cannot serve, for now, is a warning, but
for a node that is leaving, as it was told to.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

from gateway import logs
from gateway.api.request import Answer, problem
from gateway.errors import GatewayError, Unavailable
from gateway.node import Node
from gateway.request_id import HEADER, NAME
from gateway.stream_state import Reason

REFUSED = "request refused"

_log = logging.getLogger("gateway.requests")


def refused(node: Node, error: GatewayError, reason: str = "cluster") -> Answer:
    """The answer of ``error``; ``reason`` counts a 503."""
    if isinstance(error, Unavailable):
        node.refuse(reason)
    return problem(error)


def is_refusal(answer: Answer) -> bool:
    """Whether it has to be named and told; of a stream that is turned away the status is 200."""
    return answer.status >= 400 or bool(answer.why)


def told(
    node: Node,
    answer: Answer,
    header: Callable[[bytes], bytes | None],
    about: Callable[[], dict[str, object]],
) -> Answer:
    """A refusal with the id of its request, ``header`` of which is the request's; it is logged,
    with what is known ``about`` the request where the line is written."""
    request_id = node.request_ids.of(header(NAME))
    level = _level(answer)
    if _log.isEnabledFor(level) and logs.allows(_log.name, REFUSED, level):
        what = {"request": request_id, "status": answer.status, "why": answer.why or None}
        _log.log(level, REFUSED, about() | what, extra=logs.ALLOWED)
    return replace(answer, headers=(*answer.headers, (HEADER, request_id.encode())))


def _level(answer: Answer) -> int:
    if answer.why and (answer.status == Unavailable.status or answer.status < 400):
        return logging.INFO if answer.why == Reason.DRAINING else logging.WARNING
    return logging.DEBUG
