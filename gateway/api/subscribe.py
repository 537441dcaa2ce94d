"""Opening a stream: which channels, for whom, from where; and how a stream is refused. A poll asks
for the same in the same way.

What is asked for stands in the query or in a body (`asked`); all else is the same for both.

Any status but 200 ends an EventSource for good, so a refusal that is worth a retry is, for whoever
accepts ``text/event-stream``, a stream that says ``reconnect`` and ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from gateway import control
from gateway.admission import STREAMS_SENTENCE, Refusal, Turn
from gateway.api.asked import Asked, in_body, in_query, is_annotated
from gateway.api.credentials import identify
from gateway.api.csrf import check_page
from gateway.api.request import EVENT_STREAM, NOT_STORED, Answer, Request, problem
from gateway.api.views import viewed
from gateway.errors import (
    RETRY_AFTER_SECONDS,
    BadRequest,
    Forbidden,
    GatewayError,
    MethodNotAllowed,
    TooManyRequests,
    Unavailable,
)
from gateway.identity import Identity
from gateway.names import GLOBAL, check_subscribable, comes_unasked, user_channel
from gateway.node import Node
from gateway.position import Closed, Position, Resume, Start, parse_resume
from gateway.request_id import NAME, named_id
from gateway.streams import EventStream

PATH = "/events"

REFUSALS = {
    "draining": "The node is draining; come back to another.",
    "full": "The node has all the clients that it can hold (max_clients).",
    "channels": "The node has all the channels that it can hold (max_channels).",
    "bus": "The link to Redis is lost; come back later.",
    "keys": "The keys that verify tokens are not known yet; come back later.",
    "connections": "The node has all the connections that it can hold.",
    "user": "The user has all the streams that one may have (max_streams_per_user).",
    "address": STREAMS_SENTENCE,
    "address-rate": "This address opens streams faster than one may (address_open_rate).",
    "pace": "More streams are being opened than the node can open in time.",
    "gone": "The connection was given up before its turn came.",
}
"""Why somebody is turned away for now: one word for the wire and for metrics, and a sentence."""

OF_ADDRESS = frozenset({"address", "address-rate"})
"""What is nobody's fault but the address's own: 429 for whoever reads statuses."""

STREAM_HEADERS = (
    (b"Content-Type", EVENT_STREAM.encode()),
    (b"Cache-Control", b"no-cache"),
    (b"X-Accel-Buffering", b"no"),
)


def never() -> bool:
    """A peer whose end cancels what is done for it need not be asked for."""
    return False


async def subscribe(
    node: Node,
    request: Request,
    is_gone: Callable[[], bool] = never,
    let_go_of_body: Callable[[], None] = lambda: None,
) -> Answer | EventStream:
    """GET and POST /events: a stream to be opened, or why not. ``is_gone`` says whether the peer
    has ended, while the opening had to wait for its turn, for which no body is kept."""
    try:
        stream = await _asked_for(node, request)
        request = request._replace(body=b"")
        let_go_of_body()
        if await where_it_ended(node, stream) is not None:
            return Answer(204, headers=(NOT_STORED,))
        if (refusal := await why_not(node, stream, is_gone)) is None:
            return stream
        return turn_away(node, request, *refusal, headers=head_of(stream))
    except Unavailable as error:
        return turn_away(node, request, why_not_opened(error))
    except GatewayError as error:
        return problem(error)


async def _asked_for(node: Node, request: Request) -> EventStream:
    if request.method == "GET":
        identity = await identify(node, request)
        asked = in_query(request, PATH)._replace(annotate=is_annotated(request))
        stream = requested(node, request, PATH, identity, asked)
        return await viewed(node, request, identity, stream, asked.view)
    if request.method != "POST" or request.path != PATH:
        allow = "GET, POST" if request.path == PATH else "GET"
        raise MethodNotAllowed(f"A stream is opened with {allow}.", allow=allow)
    if node.auth.is_open:
        check_page(node, request.method, request.header)
    identity = await identify(node, request)
    asked = in_body(request)
    stream = requested(node, request, PATH, identity, asked)
    stream = await viewed(node, request, identity, stream, asked.view)
    url = asked.url(PATH, node.config.max_url_bytes)
    return replace(stream, location=url.removeprefix(PATH))  # a proxy may have moved the path


def turn_away(
    node: Node,
    request: Request,
    reason: str,
    retry_after: float = 0.0,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Answer:
    """Refuse a stream for now. ``reason`` is one of `REFUSALS`, ``retry_after`` the seconds after
    which there may be room, where that is known; ``headers`` are the stream's (`head_of`)."""
    if not request.accepts_event_stream:
        return refuse(node, reason, retry_after)
    node.refuse(reason)
    body = control.retry(max(node.config.retry, retry_after)) + control.reconnect(reason)
    return Answer(200, body, EVENT_STREAM, (*STREAM_HEADERS[1:], *headers), reason)


def head_of(stream: EventStream) -> tuple[tuple[bytes, bytes], ...]:
    """What is said in the head of a stream beside `STREAM_HEADERS`: above all where GET opens the
    same one, if that is to be said."""
    if not stream.location:
        return stream.headers
    return ((b"Content-Location", stream.location.encode()), *stream.headers)


def refuse(node: Node, reason: str, retry_after: float = 0.0) -> Answer:
    """Refuse for now whoever reads statuses, as `turn_away` does."""
    node.refuse(reason)
    seconds = max(RETRY_AFTER_SECONDS, control.jittered(retry_after))
    if reason in OF_ADDRESS:
        return problem(TooManyRequests(REFUSALS[reason], retry_after=seconds, reason=reason))
    error = Unavailable(REFUSALS[reason], reason=reason)
    error.retry_after = seconds
    return problem(error)


def why_not_opened(error: Unavailable | TooManyRequests) -> str:
    """Which one of `REFUSALS` kept a stream from being opened."""
    reason = str(error.extra.get("reason"))
    return reason if reason in REFUSALS else "bus"


def requested(
    node: Node, request: Request, path: str, identity: Identity, asked: Asked
) -> EventStream:
    """The stream that ``identity`` asks for at ``path`` or below it, whose channels are still to be
    looked at (`gateway.api.views.viewed`).

    Raises BadRequest, and Forbidden for another user's.
    """
    user = _user(asked.user, identity)
    named = tuple(dict.fromkeys(asked.channels))
    channels = tuple(name for name in named if name != GLOBAL)
    if not named and user is None:
        raise BadRequest(
            f"No channel is named. Name one or more, as in {path}?channel=a&channel=b or "
            f"{path}/a, or a user, as in {path}?user=u."
        )
    most = node.config.max_channels_per_client
    if len(channels) > most:
        raise BadRequest(
            f"{len(channels)} channels are named; a stream has at most {most}"
            " (max_channels_per_client)."
        )
    for name in channels:
        check_subscribable(name)
    own = (user_channel(user),) if user is not None else ()
    return EventStream(
        (*channels, GLOBAL, *own),
        user,
        _resume(request, asked),
        identity,
        node.address_of(request.peer, request.header),
        named_id(request.header(NAME)),
        is_poll=path != PATH,
        annotated=asked.annotate,
    )


def _user(named: str | None, identity: Identity) -> str | None:
    """Whose stream it is: whoever a token names; without keys, whoever the request does."""
    if identity.is_open or named is None:
        return named if identity.is_open else identity.user
    if named != identity.user:
        raise Forbidden("The user of a stream is the one that its token names (sub); leave it out.")
    return named


async def where_it_ended(node: Node, stream: EventStream) -> Closed | None:
    """Where the stream was closed for good, or all of its channels had ended when it got there;
    None if something may still come."""
    channels, resume = _asked(stream), stream.resume
    if isinstance(resume, Closed):
        return resume
    if not channels or not isinstance(resume, Position):
        return None
    for name in channels:
        ended = await node.bus.ended(name)
        if ended is None or resume < ended:
            return None
    return Closed(resume)


async def why_not(node: Node, stream: EventStream, is_gone: Callable[[], bool]) -> Refusal | None:
    """Why the stream is not to be opened, if it is not: found out at once, or when its turn has
    come, for which it may stand in line. Whoever is refused has taken no turn from others."""
    door = node.admission
    if (why := why_not_now(node, stream)) is not None:
        return Refusal(why)
    turn = door.arrive(stream.address)
    if isinstance(turn, Refusal):
        return turn
    if turn is Turn.NOW:
        return None
    if (refusal := await door.wait_turn(is_gone)) is not None:
        return refusal
    why = why_not_now(node, stream)
    refusal = Refusal(why) if why is not None else door.no_room(stream.address)
    if refusal is not None:
        door.return_turn()
    return refusal


def why_not_now(node: Node, stream: EventStream) -> str | None:
    """Which one of `REFUSALS` keeps the stream from being opened now, if any does."""
    members = node.hub.members
    if node.leaving:
        return "draining"
    if len(members.clients) + node.streams.opening >= node.max_clients:
        return "full"
    if len(members.channels) + len(_asked(stream)) > node.config.max_channels:
        return "channels"
    return None


def _asked(stream: EventStream) -> tuple[str, ...]:
    """The channels that were asked for, and not those that come with every client."""
    return tuple(name for name in stream.channels if not comes_unasked(name))


def _resume(request: Request, asked: Asked) -> Resume | int:
    """Where to begin; the header comes first, since an EventSource repeats its URL on return."""
    header = request.header(b"last-event-id")
    text = header.decode("utf-8", "replace") if header else None
    text = text or asked.last_event_id
    if text is not None:
        return parse_resume(text)
    return asked.replay if asked.replay is not None else Start.NOW
