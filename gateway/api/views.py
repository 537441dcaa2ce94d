"""Token streams as channels of a stream or a poll: by which names, in which view, and for whom.

1. A name ``stream:<id>`` stands for the token stream of that id, whatever its channel is called; a
   name of an application's own is looked up only where its view or its owner matters.
2. What has no record is not there: nobody waits for what never comes.
3. Whoever shows no token and may not view is told 401 without a look. Others learn of an id whether
   there is such a stream; ids cannot be guessed. Of a name that an application has chosen they
   learn nothing: it is forbidden, whatever there is.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from gateway.api.asked import View
from gateway.api.credentials import check_overseer
from gateway.api.request import Request
from gateway.auth import NEEDED, NOBODY
from gateway.errors import BadRequest, Forbidden, NotFound, Unauthorized
from gateway.identity import KEY_PREFIX, Identity
from gateway.names import (
    OPS_CHANNEL,
    RAW_SUFFIX,
    comes_unasked,
    is_reserved,
    stream_channel,
    stream_of,
)
from gateway.node import Node
from gateway.position import Start
from gateway.relay.record import Record
from gateway.relay.registry import Found
from gateway.relay.relays import no_stream
from gateway.streams import EventStream


class Seen(NamedTuple):
    """A channel as it really is, and the token stream whose it is, where that had to be known."""

    name: str
    record: Record | None = None


async def viewed(
    node: Node,
    request: Request,
    identity: Identity,
    stream: EventStream,
    view: View,
) -> EventStream:
    """``stream`` with its channels as they really are, all of which ``identity`` may have.

    Raises Unauthorized, Forbidden, NotFound for a token stream that is not there, BadRequest for a
    view that cannot be, and Unavailable where it cannot be known.
    """
    asked = [name for name in stream.channels if not comes_unasked(name)]
    snapshot = None
    if view is View.SNAPSHOT:
        _check_snapshot(asked, stream)
        if len(asked) != 1:
            view = View.NORMAL
    found = [await seen(node, request, identity, name, view) for name in asked]
    if view is View.SNAPSHOT:
        record = found[0].record
        assert record is not None
        snapshot = partial(node.relays.snapshot, record, annotated=stream.annotated)
    names = dict.fromkeys(each.name for each in found)
    if list(names) == asked and snapshot is None:
        return stream
    unasked = [name for name in stream.channels if comes_unasked(name)]
    return replace(stream, channels=(*names, *unasked), snapshot=snapshot)


def _check_snapshot(asked: Sequence[str], stream: EventStream) -> None:
    """Who comes back may have other channels by now, and goes on as in the normal view."""
    if len(asked) != 1 and stream.resume is Start.NOW:
        raise BadRequest(f"A snapshot is of one token stream; {len(asked)} channels are named.")
    if isinstance(stream.resume, int):
        raise BadRequest("A snapshot holds all that came before; leave replay out.")


async def seen(
    node: Node, request: Request, identity: Identity, name: str, view: View = View.NORMAL
) -> Seen:
    """The channel that ``name`` stands for. Raises as `viewed`."""
    if name == OPS_CHANNEL:
        check_overseer(node, request, identity)
        if view is View.SNAPSHOT:
            raise _no_snapshot(name)
        return Seen(name)
    id = stream_of(name)
    is_granted = identity.is_open or node.auth.may_subscribe(identity, name)
    if is_granted and id is None and view is View.NORMAL:
        return Seen(name)
    if not is_granted and identity is NOBODY and not _is_public(node, name):
        raise Unauthorized(f"The channel {name} is not public: {NEEDED}.", bad_token=False)
    record = await _record(node, name)
    if record is None:
        if id is not None:
            raise no_stream()
        if not is_granted:
            raise _not_granted(name)
        if view is View.SNAPSHOT:
            raise _no_snapshot(name)
        return Seen(name)
    if not is_granted and not may_view_stream(node, identity, record):
        raise _not_granted(name)
    is_raw = name == record.raw != record.channel if id is None else name.endswith(RAW_SUFFIX)
    if is_raw and view is View.SNAPSHOT:
        raise BadRequest(f"A snapshot is of the normal view; name it without {RAW_SUFFIX}.")
    return Seen(record.raw if is_raw or view is View.RAW else record.channel, record)


async def may_view(node: Node, identity: Identity, name: str) -> bool:
    """Whether a channel as it really is is open to ``identity``. Raises Unavailable."""
    if node.auth.may_subscribe(identity, name):
        return True
    if identity is NOBODY or is_reserved(name):
        return False
    record = await _record(node, name)
    return record is not None and may_view_stream(node, identity, record)


def may_view_stream(node: Node, identity: Identity, record: Record) -> bool:
    """Whether a token stream is open to ``identity``, in both views."""
    return is_owner(identity, record) or any(
        node.auth.may_subscribe(identity, name)
        for name in (record.channel, stream_channel(record.id))
    )


def is_owner(identity: Identity, record: Record) -> bool:
    """Whether a token stream is of ``identity``'s, by its user or by who opened it."""
    if identity.may_administer():
        return True
    if identity.user is not None and identity.user == record.user:
        return True
    return is_opener(identity, record)


def is_opener(identity: Identity, record: Record) -> bool:
    """Whether ``identity`` has opened a token stream. Of a token that names neither a user nor
    itself that cannot be said: others may have the same."""
    named = identity.user is not None or identity.token_id is not None
    tells = named or identity.publisher.startswith(KEY_PREFIX)
    return tells and identity.publisher == record.publisher


def _is_public(node: Node, name: str) -> bool:
    """Whether a channel of raw events is open to all because its normal one is."""
    base = name.removesuffix(RAW_SUFFIX)
    return base != name and node.auth.may_subscribe(NOBODY, base)


async def _record(node: Node, name: str) -> Record | None:
    """Of the token stream that a name stands for, if that is still there."""
    registry = node.relays.registry
    id = stream_of(name)
    found = await (registry.find_by_channel(name) if id is None else registry.find(id))
    if found is None or await is_forgotten(node, found):
        return None
    if name.endswith(RAW_SUFFIX) and found.record.raw == found.record.channel and id is not None:
        return None
    return found.record


async def is_forgotten(node: Node, found: Found) -> bool:
    """Whether the events of a token stream that has ended are gone before its record is."""
    if not found.is_over:
        return False
    newest = await node.bus.newest(found.record.channel, 1)
    return not (newest and newest[-1].end)


def _no_snapshot(name: str) -> NotFound:
    return NotFound(f"The channel {name} is no token stream's; it has no snapshot.")


def _not_granted(name: str) -> Forbidden:
    return Forbidden(f"The channel {name} is not among those granted (gateway.subscribe).")
