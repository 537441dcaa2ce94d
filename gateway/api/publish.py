"""Publishing: one event as JSON, many as NDJSON, or a raw body for the channel in the path.

What is wrong with an event is said before anything is changed; in NDJSON each line stands for
itself.
"""

import msgspec
import trio
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway import control
from gateway.api.credentials import identify
from gateway.api.csrf import check_page
from gateway.api.meter import Meter, meter_of
from gateway.api.request import JSON, NDJSON, Answer, Request, problem, sentence
from gateway.auth import NEEDED, NOBODY
from gateway.errors import (
    BadRequest,
    ContentTooLarge,
    Forbidden,
    GatewayError,
    MethodNotAllowed,
    Unauthorized,
    UnsupportedMediaType,
)
from gateway.event import MAX_LABEL, Event
from gateway.identity import ANYBODY, Identity
from gateway.names import (
    GLOBAL,
    OPS_CHANNEL,
    STREAM_PREFIX,
    check_channel,
    is_reserved,
    shown,
    user_channel,
)
from gateway.node import Node
from gateway.position import Position
from gateway.sse import MAX_RETRY_MS

PATH = "/publish"

SLICE = 64
"""Lines of NDJSON decoded between two checkpoints: under a millisecond."""

MAX_LINES = 50_000
"""In one body: more than events fit into the default of 1 MiB, but not more blank or bad lines."""

LINE_OVERHEAD = len("data: \n")
EVENT_OVERHEAD = 2 * MAX_LABEL + 200
"""More than id, type, retry and framing can take, in characters."""

MAX_UTF8 = 4


class Document(Struct, forbid_unknown_fields=True):
    """An event as publishers write it in JSON."""

    channel: str | UnsetType = UNSET
    channels: list[str] | UnsetType = UNSET
    user: str | UnsetType = UNSET
    broadcast: bool = False
    event: str | None = None
    data: Raw | UnsetType = UNSET
    retry: int | float | None = None
    key: str | None = None
    id: str | None = None
    end: bool = False


_decode_document = msgspec.json.Decoder(Document).decode
_decode_string = msgspec.json.Decoder(str).decode


async def publish(node: Node, request: Request) -> Answer:
    """POST /publish and /publish/<channel>."""
    try:
        identity = await _publisher(node, request)
    except GatewayError as error:
        return problem(error)
    if node.tracing is None or (span := node.tracing.publishing(request.header)) is None:
        return await _publish(node, request, identity)
    with span:
        answer = await _publish(node, request, identity, span.carried)
        span.tell(request.path[len(PATH) + 1 :][:MAX_LABEL], answer.status)
    return answer


async def _publisher(node: Node, request: Request) -> Identity:
    """Who publishes; what a stranger asks for leaves no trace (`tracing`)."""
    if request.method != "POST":
        raise MethodNotAllowed("Events are published with POST.", allow="POST")
    if node.auth.is_open:
        check_page(node, request.method, request.header)
        return ANYBODY
    identity = await identify(node, request)
    if identity is NOBODY:
        raise Unauthorized(f"Nobody publishes without saying who: {NEEDED}.", bad_token=False)
    return identity


async def _publish(
    node: Node, request: Request, identity: Identity, trace: str | None = None
) -> Answer:
    """What is published carries ``trace``."""
    try:
        meter = meter_of(node, request, identity) if node.counts_events else None
        if request.path != PATH:
            return await _publish_one(node, identity, meter, _raw_event(node, request), trace)
        media_type = request.media_type
        if media_type == JSON:
            return await _publish_one(node, identity, meter, _event(node, request.body), trace)
        if media_type == NDJSON:
            return await _publish_lines(node, identity, meter, request.body, trace)
        raise UnsupportedMediaType(
            f"POST {PATH} takes {JSON} (one event) or {NDJSON} (one a line); any other type goes "
            f"to {PATH}/<channel>, where the body is the data."
        )
    except GatewayError as error:
        return problem(error)


async def _publish_one(
    node: Node, identity: Identity, meter: Meter | None, event: Event, trace: str | None
) -> Answer:
    if trace is not None:
        event = msgspec.structs.replace(event, trace=trace)
    if not identity.is_open:
        _check_granted(identity, event)
    if meter is not None and not meter.take(event):
        await meter.wait_for(event)
    (result,) = await node.bus.publish((event,))
    if isinstance(result, GatewayError):
        raise result
    return Answer(202, b'{"id":"%d-%d"}\n' % result)


async def _publish_lines(
    node: Node, identity: Identity, meter: Meter | None, body: bytes, trace: str | None
) -> Answer:
    count = body.count(b"\n") + 1
    if count > MAX_LINES:
        raise ContentTooLarge(f"The body has {count} lines; one request has at most {MAX_LINES}.")
    lines = body.split(b"\n")
    answers: list[bytes] = []
    outcomes: list[tuple[int, GatewayError | None]] = []
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        if line and not line.isspace():
            try:
                event = _event(node, line)
                if trace is not None:
                    event = msgspec.structs.replace(event, trace=trace)
                if not identity.is_open:
                    _check_granted(identity, event)
                if meter is not None and not meter.take(event):
                    await meter.wait_for(event)
                events.append(event)
                outcomes.append((number, None))
            except GatewayError as error:
                outcomes.append((number, error))
        if len(events) == node.bus.batch or number == len(lines):
            results = iter(await node.bus.publish(events))
            answers += [_line_answer(node, at, said or next(results)) for at, said in outcomes]
            outcomes, events = [], []
            await node.hub.pending.passed_on()
        if not number % SLICE:
            await trio.lowlevel.checkpoint()
    return Answer(200, b"".join(answers), NDJSON)


def _line_answer(node: Node, number: int, outcome: Position | GatewayError) -> bytes:
    if isinstance(outcome, GatewayError):
        node.count_refusal(outcome.status)
        said = {"line": number, "status": outcome.status, "detail": outcome.detail}
        return msgspec.json.encode(said | outcome.extra) + b"\n"
    return b'{"id":"%d-%d"}\n' % outcome


def _check_granted(identity: Identity, event: Event) -> None:
    """Raises Forbidden unless all of its channels are granted."""
    for name in event.channels:
        if not identity.may_publish(name):
            granted = "admin" if is_reserved(name) else "publish"
            raise Forbidden(f"Publishing to {name} is not granted (gateway.{granted}).")


def _event(node: Node, text: bytes) -> Event:
    """The event that a JSON document describes; raises BadRequest and ContentTooLarge."""
    try:
        document = _decode_document(text)
        data = _data(document)
    except msgspec.ValidationError as error:
        raise BadRequest(f"This is no event: {sentence(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"This is no JSON in UTF-8: {sentence(error)}") from None
    except RecursionError:
        raise BadRequest("The JSON is nested too deeply.") from None
    return _checked(
        node,
        Event(
            _targets(node, document),
            data,
            document.event,
            _whole(document.retry),
            document.key,
            document.id,
            document.end,
        ),
    )


def _raw_event(node: Node, request: Request) -> Event:
    """The event whose data is the body; its other members come from the query."""
    try:
        data = request.body.decode()
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8; data of other kinds must be encoded.") from None
    channels = (_publishable(request.path[len(PATH) + 1 :]),)
    if not request.query:
        return _checked(node, Event(channels, data))
    retry = request.first("retry")
    if retry is not None and not (retry.isascii() and retry.isdigit() and len(retry) <= 10):
        raise BadRequest("retry is a whole number of milliseconds.")
    end = request.first("end")
    if end not in (None, "true", "false"):
        raise BadRequest("end is true or false.")
    return _checked(
        node,
        Event(
            channels,
            data,
            request.first("event"),
            int(retry) if retry is not None else None,
            request.first("key"),
            request.first("id"),
            end == "true",
        ),
    )


def _targets(node: Node, document: Document) -> tuple[str, ...]:
    named = (
        (document.channel is not UNSET)
        + (document.channels is not UNSET)
        + (document.user is not UNSET)
        + document.broadcast
    )
    if named != 1:
        raise BadRequest(
            "An event names where it goes by exactly one of channel, channels, user and "
            f"broadcast: true; this one has {named or 'none'} of them."
        )
    if document.channel is not UNSET:
        return (_publishable(document.channel),)
    if document.channels is not UNSET:
        _check_count(node, document.channels)
        return tuple(dict.fromkeys(map(_publishable, document.channels)))
    if document.user is not UNSET:
        return (user_channel(document.user),)
    return (GLOBAL,)


def _check_count(node: Node, channels: list[str]) -> None:
    most = node.config.max_channels_per_client
    if not 1 <= len(channels) <= most:
        raise BadRequest(f"An event goes to 1 to {most} channels, this one to {len(channels)}.")


def _publishable(name: str) -> str:
    if name == OPS_CHANNEL:
        raise Forbidden(f"Nobody publishes to {name}: it is where the gateway tells of itself.")
    if name.startswith(STREAM_PREFIX):
        raise Forbidden(
            f"Nobody publishes to {shown(name)} but the gateway: the events of a token stream go to"
            " POST /streams/<id>/events."
        )
    if is_reserved(name):
        raise BadRequest(
            f"The channel {shown(name)} is reserved: publish to a user with "
            '{"user": ...}, to everybody with {"broadcast": true}.'
        )
    return check_channel(name)


def _data(document: Document) -> str:
    """A JSON string as it is, anything else as the JSON that was sent."""
    if document.data is UNSET:
        if document.end:
            return ""
        raise BadRequest("An event has data; this one has none.")
    text = bytes(document.data)
    return _decode_string(text) if text.startswith(b'"') else text.decode()


def _whole(retry: int | float | None) -> int | None:
    """A whole number is one in JSON however it is written, as 500.0 too."""
    if isinstance(retry, float):
        if not retry.is_integer():
            raise BadRequest("retry is a whole number of milliseconds.")
        return int(retry)
    return retry


def _checked(node: Node, event: Event) -> Event:
    """The event, if all its members are within their bounds."""
    if event.type in control.TYPES:
        raise BadRequest(
            f"The event type {event.type} is the gateway's own, as are "
            f"{', '.join(sorted(control.TYPES - {event.type}))}; take another."
        )
    if event.end and any(map(is_reserved, event.channels)):
        raise BadRequest("What goes to a user or to everybody has no end; leave end out.")
    for name, value in (("event", event.type), ("key", event.key), ("id", event.id)):
        if value is None:
            continue
        if not 0 < len(value) <= MAX_LABEL:
            raise BadRequest(f"{name} has 1 to {MAX_LABEL} characters, this one {len(value)}.")
        if "\n" in value or "\r" in value or "\0" in value:
            raise BadRequest(f"{name} must not contain a line break or a NUL character.")
    if event.retry is not None and not 0 <= event.retry <= MAX_RETRY_MS:
        raise BadRequest(f"retry is a number of milliseconds from 0 to {MAX_RETRY_MS}.")
    most = node.config.max_event_bytes
    at_most = len(event.data) * (MAX_UTF8 + LINE_OVERHEAD) + EVENT_OVERHEAD
    if at_most > most:  # then it is worth counting
        lines = event.data.count("\n") + event.data.count("\r") + 1
        size = len(event.data.encode()) + lines * LINE_OVERHEAD
        if size > most:
            raise ContentTooLarge(
                f"The event is {size} bytes as it would be sent; an event has at most {most} "
                "(max_event_bytes)."
            )
    return event
