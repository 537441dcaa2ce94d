"""Opening a stream: which channels, for whom, from where; and how a stream is refused.

Any status but 200 ends an EventSource for good, so a refusal that is worth a retry is, for whoever
accepts ``text/event-stream``, a stream that says ``reconnect`` and ends.
"""

from gateway import control
from gateway.api.request import EVENT_STREAM, Answer, Request, problem
from gateway.errors import BadRequest, GatewayError, MethodNotAllowed, Unavailable
from gateway.names import GLOBAL, check_subscribable, user_channel
from gateway.node import Node
from gateway.position import Closed, Position, Resume, Start, parse_resume
from gateway.streams import EventStream

PATH = "/events"

REFUSALS = {
    "draining": "The node is draining; come back to another.",
    "full": "The node has all the clients that it can hold.",
    "channels": "The node has all the channels that it can hold.",
    "connections": "The node has all the connections that it can hold.",
}
"""Why somebody is turned away for now: one word for the wire and for metrics, and a sentence."""

STREAM_HEADERS = (
    (b"Content-Type", EVENT_STREAM.encode()),
    (b"Cache-Control", b"no-cache"),
    (b"X-Accel-Buffering", b"no"),
)


async def subscribe(node: Node, request: Request) -> Answer | EventStream:
    """GET /events: a stream to be opened, or why not."""
    try:
        return await _stream(node, request)
    except GatewayError as error:
        return problem(error)


def turn_away(node: Node, request: Request, reason: str) -> Answer:
    """Refuse a stream or a publish for now. ``reason`` is one of `REFUSALS`."""
    node.refuse(reason)
    if request.accepts_event_stream:
        body = control.retry(node.config.retry) + control.reconnect(reason)
        return Answer(200, body, EVENT_STREAM, STREAM_HEADERS[1:])
    return problem(Unavailable(REFUSALS[reason], reason=reason))


async def _stream(node: Node, request: Request) -> Answer | EventStream:
    if request.method != "GET":
        raise MethodNotAllowed("A stream is opened with GET.", allow="GET")
    user = request.first("user")
    named = tuple(dict.fromkeys(check_subscribable(name) for name in _named(request)))
    channels = tuple(name for name in named if name != GLOBAL)
    if not named and user is None:
        raise BadRequest(
            "No channel is named. Name one or more, as in /events?channel=a&channel=b or "
            "/events/a, or a user, as in /events?user=u."
        )
    most = node.config.max_channels_per_client
    if len(channels) > most:
        raise BadRequest(f"{len(channels)} channels are named; a stream has at most {most}.")
    resume = _resume(request)
    if isinstance(resume, Closed) or await _is_over(node, channels, resume):
        return Answer(204)
    if node.leaving:
        return turn_away(node, request, "draining")
    members = node.hub.members
    if len(members.clients) + node.streams.opening >= node.max_clients:
        return turn_away(node, request, "full")
    if len(members.channels) + len(channels) > node.config.max_channels:
        return turn_away(node, request, "channels")
    own = (user_channel(user),) if user is not None else ()
    return EventStream((*channels, GLOBAL, *own), user, resume)


def _named(request: Request) -> list[str]:
    names = request.all("channel")
    for listed in request.all("channels"):
        names += listed.split(",")
    if request.path != PATH:
        names.append(request.path[len(PATH) + 1 :])
    return names


def _resume(request: Request) -> Resume | int:
    """Where to begin; the header comes first, since an EventSource repeats its URL on return."""
    header = request.header(b"last-event-id")
    text = header.decode("utf-8", "replace") if header else None
    text = text or request.first("lastEventId", "last_event_id")
    if text is not None:
        return parse_resume(text)
    newest = request.first("replay")
    if newest is None:
        return Start.NOW
    if not (newest.isascii() and newest.isdigit() and len(newest) <= 9):
        raise BadRequest("replay is a whole number of events to begin with, as in replay=10.")
    return int(newest)


async def _is_over(node: Node, channels: tuple[str, ...], resume: Resume | int) -> bool:
    """Whether all the channels ended at or before the position from which to resume."""
    if not channels or not isinstance(resume, Position):
        return False
    for name in channels:
        ended = await node.bus.ended(name)
        if ended is None or resume < ended:
            return False
    return True
