"""Token streams over HTTP: begun with POST /streams, looked at and stopped by their ids.

Who opened one may look at it, feed it and stop it, as may an administrator; its user may look and
stop; others need a grant for its channel: to subscribe, and for stopping to publish.
"""

from dataclasses import replace
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway.api.credentials import identify
from gateway.api.csrf import check_page
from gateway.api.meter import meter_of
from gateway.api.refusals import refused
from gateway.api.request import JSON, NOT_STORED, Answer, Request, answer, sentence
from gateway.api.subscribe import PATH as EVENTS
from gateway.api.views import is_forgotten, is_owner, may_view_stream
from gateway.auth import NEEDED, NOBODY
from gateway.config import Format, Upstream
from gateway.errors import (
    BadRequest,
    Forbidden,
    GatewayError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from gateway.event import Event
from gateway.identity import Identity
from gateway.names import (
    GLOBAL,
    MAX_CHANNEL_NAME,
    RAW_SUFFIX,
    STREAM_PREFIX,
    check_channel,
    is_reserved,
    stream_channel,
    user_channel,
)
from gateway.node import Node
from gateway.policy import Policy
from gateway.relay.record import Record
from gateway.relay.registry import Found
from gateway.relay.relays import Plan, no_stream
from gateway.relay.running import Running
from gateway.relay.story import Story, story_json
from gateway.request_id import NAME, named_id
from gateway.streams import EventStream

PATH = "/streams"

STREAM_ID = b"Stream-Id"
STREAM_CHANNEL = b"Stream-Channel"

MAX_UNWATCHED_SECONDS = 86_400.0

_BEGUN = Event((), "")
"""What to begin a stream counts as; rates of channels do not hold for its events."""

_EXAMPLE = '{"upstream": "openai", "request": {"model": "...", "messages": [...]}}'


class Document(Struct, forbid_unknown_fields=True, rename="camel"):
    """What is to be begun, as it is written in JSON."""

    upstream: str | UnsetType = UNSET
    """Without one an application pushes."""
    request: Raw | UnsetType = UNSET
    path: str | None = None
    channel: str | None = None
    user: str | None = None
    idempotent: bool = False
    stop_when_unwatched: float | None = None


_decode = msgspec.json.Decoder(Document).decode


async def create(node: Node, request: Request) -> Answer | EventStream:
    """POST /streams: begin one. 201, or the stream itself for whoever accepts an event stream."""
    try:
        if node.auth.is_open:
            check_page(node, request.method, request.header)
        identity = await identify(node, request)
        document = _document(request)
        meter = meter_of(node, request, identity) if node.counts_events else None
        if meter is not None:
            await meter.wait_for(_BEGUN)
        plan = _plan(node, identity, document)
        running = await node.relays.begin(plan)
    except GatewayError as error:
        return refused(node, error, "token-streams")
    record = running.record
    url = url_of(record)
    named = ((STREAM_ID, record.id.encode()), (STREAM_CHANNEL, record.channel.encode()))
    if not request.accepts_event_stream:
        made = answer(201, {"id": record.id, "channel": record.channel, "url": url})
        return Answer(201, made.body, headers=((b"Location", url.encode()), NOT_STORED, *named))
    return _its_stream(node, request, identity, running, named)


def _its_stream(
    node: Node,
    request: Request,
    identity: Identity,
    running: Running,
    named: tuple[tuple[bytes, bytes], ...],
) -> EventStream:
    """The stream of what has just been begun, from its first event on."""
    record = running.record
    user = record.user if identity.is_open else identity.user
    own = (user_channel(user),) if user is not None else ()
    return EventStream(
        (record.channel, GLOBAL, *own),
        user,
        running.outlet.began.before(),
        identity,
        node.address_of(request.peer, request.header),
        named_id(request.header(NAME)),
        location=url_of(record).removeprefix("/"),  # a proxy may have moved the path
        headers=named,
    )


def url_of(record: Record) -> str:
    """Where its viewers open it."""
    return f"{EVENTS}/{quote(record.channel, safe='/:@~')}"


def _document(request: Request) -> Document:
    if request.media_type != JSON:
        raise UnsupportedMediaType(f"POST {PATH} takes {JSON}, as in {_EXAMPLE}.")
    try:
        return _decode(request.body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"This begins no token stream: {sentence(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"This is no JSON in UTF-8: {sentence(error)}") from None
    except RecursionError:
        raise BadRequest("The JSON is nested too deeply.") from None


def _plan(node: Node, identity: Identity, document: Document) -> Plan:
    """What is to be made. Raises GatewayError where it is not to be."""
    user = _user(identity, document.user)
    if document.channel is not None:
        _check_channel(node, identity, document.channel)
    unwatched = document.stop_when_unwatched
    if unwatched is not None and not 0 <= unwatched <= MAX_UNWATCHED_SECONDS:
        raise BadRequest(
            f"stopWhenUnwatched is a number of seconds from 0 to {MAX_UNWATCHED_SECONDS:g}."
        )
    if document.upstream is UNSET:
        if document.request is not UNSET or document.path is not None or document.idempotent:
            raise BadRequest(
                "request, path and idempotent are of an upstream, and none is named, as in"
                f" {_EXAMPLE}."
            )
        check_may_push(identity)
        return node.pushes.plan(
            channel=document.channel,
            user=user,
            publisher=identity.publisher,
            unwatched_seconds=unwatched,
        )
    upstream = upstream_for(node, identity, document.upstream)
    check_room(node, upstream, user)
    if document.request is UNSET:
        raise BadRequest(f"request is what the upstream is asked, as in {_EXAMPLE}.")
    return node.upstreams.plan(
        upstream,
        bytes(document.request),
        path=document.path,
        channel=document.channel,
        user=user,
        publisher=identity.publisher,
        idempotent=document.idempotent,
        unwatched_seconds=unwatched,
    )


def _user(identity: Identity, named: str | None) -> str | None:
    """Whose it is to be. A service, which is no user itself, may name one."""
    if named is None:
        return identity.user
    user_channel(named)
    if named == identity.user or identity.may_administer() or identity.user is None:
        return named
    raise Forbidden("The user of a token stream is the one that its token names; leave it out.")


def _check_channel(node: Node, identity: Identity, name: str) -> None:
    check_channel(name)
    if is_reserved(name) or name.startswith(STREAM_PREFIX):
        raise BadRequest(
            f"The channel {name} is reserved; take another one, or leave it out and the stream has"
            f" its own, {STREAM_PREFIX}<id>."
        )
    if len(name) + len(RAW_SUFFIX) > MAX_CHANNEL_NAME:
        most = MAX_CHANNEL_NAME - len(RAW_SUFFIX)
        raise BadRequest(f"The channel of a token stream has at most {most} characters.")
    if not identity.may_publish(name):
        raise Forbidden(f"Publishing to {name} is not granted (gateway.publish).")
    for each in (name, name + RAW_SUFFIX):
        rule = node.config.rule(each)
        if rule.policy is not Policy.CATCH_UP:
            raise BadRequest(
                f"The channel {each} has the policy {rule.policy}, by which viewers may miss some"
                " of the text; give it a [[channel]] table with catch-up and history enough, or"
                " leave the channel out."
            )


def check_may_push(identity: Identity) -> None:
    """Raises Forbidden, or Unauthorized, unless ``identity`` may begin what is pushed: whoever may
    publish anything."""
    if identity.is_open or identity.admin or identity.publish:
        return
    if identity is NOBODY:
        raise Unauthorized(f"Nobody pushes without saying who: {NEEDED}.", bad_token=False)
    raise Forbidden("Pushing is for those who may publish (gateway.publish).")


def upstream_for(node: Node, identity: Identity, name: str) -> Upstream:
    """The upstream of that name, if ``identity`` may use it; whoever may not is not told which
    there are."""
    upstream = node.upstreams.find(name)
    if upstream is not None and identity.may_relay(upstream):
        return upstream
    if identity is NOBODY:
        raise Unauthorized(
            f"Nobody uses an upstream without saying who: {NEEDED}.", bad_token=False
        )
    if identity.is_open or identity.admin:
        raise BadRequest("There is no upstream of that name; they are [[upstream]] tables.")
    raise Forbidden("This upstream is not granted (gateway.relay, or allow in its table).")


def check_room(node: Node, upstream: Upstream, user: str | None) -> None:
    """Raises where as many token streams are being made already as may be."""
    relays = node.relays
    if user is not None and relays.count(upstream.name, user) >= upstream.max_streams_per_user:
        relays.refused["user"] += 1
        raise TooManyRequests(
            "The user has all the token streams of this upstream that one may have"
            " (max_streams_per_user).",
            retry_after=1,
            reason="token-streams-user",
        )
    if relays.count(upstream.name) >= upstream.max_streams:
        relays.refused["upstream"] += 1
        raise Unavailable(
            "The worker makes all the token streams of this upstream that it may (max_streams).",
            reason="token-streams",
        )


async def show(node: Node, request: Request, id: str) -> Answer:
    """GET /streams/<id>: what has come of it so far."""
    try:
        identity = await identify(node, request)
        found = await _found(node, identity, id)
        if not may_view_stream(node, identity, found.record):
            raise Forbidden("This token stream is somebody else's (gateway.subscribe).")
        record = found.record
        told = _told(node, record, await node.relays.story(record))
        if record.format is Format.PUSH:
            told["next"] = (await node.pushes.now(record)).next
    except GatewayError as error:
        return refused(node, error, "token-streams")
    return replace(answer(200, told), headers=(NOT_STORED,))


async def _found(node: Node, identity: Identity, id: str) -> Found:
    """A token stream that is still there, for anybody who might be let at it."""
    if identity is NOBODY and not node.auth.may_subscribe(identity, stream_channel(id)):
        raise Unauthorized(f"This is not open to everybody: {NEEDED}.", bad_token=False)
    found = await node.relays.registry.find(id)
    if found is None or await is_forgotten(node, found):
        raise no_stream()
    return found


def _told(node: Node, record: Record, story: Story) -> dict[str, object]:
    expires_ms: int | None = None
    if story.ended_ms is not None:
        kept = node.config.rule(record.channel).history_seconds
        expires_ms = story.ended_ms + int(min(kept, node.config.stream_seconds) * 1000)
    return {
        "id": record.id,
        "channel": record.channel,
        "url": url_of(record),
        "upstream": record.upstream,
        "model": record.model,
        "user": record.user,
        "format": record.format,
        **story_json(story),
        "expiresAt": expires_ms,
    }


async def stop(node: Node, request: Request, id: str) -> Answer:
    """DELETE /streams/<id>."""
    try:
        identity = await identify(node, request)
        found = await _found(node, identity, id)
        _check_may_stop(identity, found.record)
        await node.relays.stop(id)
        story = await node.relays.story(found.record)
    except GatewayError as error:
        return refused(node, error, "token-streams")
    return answer(200, {"id": id, "state": story.state})


def _check_may_stop(identity: Identity, record: Record) -> None:
    if is_owner(identity, record) or identity.may_publish(record.channel):
        return
    if identity is NOBODY:
        raise Unauthorized(f"Nobody stops this without saying who: {NEEDED}.", bad_token=False)
    raise Forbidden(
        "This token stream is somebody else's: who opened it, its user, administrators and who may"
        " publish to its channel (gateway.publish) stop it."
    )
