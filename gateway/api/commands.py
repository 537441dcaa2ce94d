"""What a worker does when a worker asks it, itself included: the commands of a cluster.

Each has a name and two shapes. Older and newer workers run side by side during a roll, so a shape
may only grow, by members that have a default.
"""

import logging
from functools import partial
from typing import Annotated

import msgspec
import trio

from gateway.api.views import may_view
from gateway.auth import patterns
from gateway.cluster import COMMAND_SECONDS, JOIN_SECONDS, READ_SECONDS
from gateway.errors import BadRequest, Forbidden, NotFound, Unavailable
from gateway.hub_client import Client
from gateway.identity import Identity
from gateway.messages import Command
from gateway.names import OPS_CHANNEL, check_subscribable, comes_unasked
from gateway.node import Node
from gateway.position import Closed, Position, Start, parse_resume
from gateway.revocation import Kind, Revocation
from gateway.stream_state import Reason

_log = logging.getLogger("gateway")

CLOSES_PER_TURN = 64
"""Streams ended between two checkpoints: about a millisecond."""


Number = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
"""So that no sum of what workers tell is beyond JSON."""


class OfClient(msgspec.Struct):
    client: str
    channel: str = ""
    since: str | None = None
    subject: str | None = None
    """The user who asks, whose client it must be; None for an administrator."""


class OfToken(msgspec.Struct):
    """What a verified token of ``user`` says, for his open stream."""

    client: str
    user: str
    subscribe: list[str]
    publish: list[str]
    admin: bool
    expires_ms: int
    issued_ms: int
    token_id: str | None


class OfUser(msgspec.Struct):
    user: str


class OfRevocation(msgspec.Struct):
    kind: Kind
    id: str
    at_ms: int
    until_ms: int | None = None


class OfChannel(msgspec.Struct):
    channel: str


class OfAll(msgspec.Struct):
    pass


class OfNode(msgspec.Struct):
    """All workers of the node that has this id."""

    node: str


class Channels(msgspec.Struct):
    """A client's channels, and the position from which that holds."""

    id: str
    channels: list[str]


class Renewed(msgspec.Struct):
    """The same, and when its token is over, in seconds since 1970."""

    id: str
    channels: list[str]
    expires: float


class ClosedStreams(msgspec.Struct):
    closed: Number


class Subscribers(msgspec.Struct):
    """How many clients of the node ``id`` a channel has."""

    id: str
    clients: Number


class Leaving(msgspec.Struct):
    """Whether the worker is one that was to leave, and does."""

    leaves: bool


class NodeStatus(msgspec.Struct, rename="camel"):
    """One worker, or the sum of a node's: ``channels`` counts one for each worker that has it."""

    id: str
    uptime_seconds: float = 0.0
    draining: bool = False
    behind: Number = 0
    clients: Number = 0
    channels: Number = 0
    published: Number = 0
    delivered: Number = 0
    dropped: Number = 0
    workers: Number = 1


ADD_CHANNEL = Command("add-channel", OfClient, Channels, JOIN_SECONDS)
REMOVE_CHANNEL = Command("remove-channel", OfClient, Channels, COMMAND_SECONDS)
CLOSE_CLIENT = Command("close-client", OfClient, ClosedStreams, COMMAND_SECONDS)
RENEW_TOKEN = Command("renew-token", OfToken, Renewed, COMMAND_SECONDS)
REVOKE = Command("revoke", OfRevocation, ClosedStreams, COMMAND_SECONDS)
CLOSE_USER = Command("close-user", OfUser, ClosedStreams, COMMAND_SECONDS)
COUNT_CHANNEL = Command("count-channel", OfChannel, Subscribers, READ_SECONDS)
DRAIN = Command("drain", OfNode, Leaving, COMMAND_SECONDS)
STATUS = Command("status", OfAll, NodeStatus, READ_SECONDS)


def serve_cluster(node: Node) -> None:
    """Have ``node`` do what it is asked here and elsewhere."""
    node.cluster.serve(ADD_CHANNEL, partial(_add_channel, node))
    node.cluster.serve(REMOVE_CHANNEL, partial(_remove_channel, node))
    node.cluster.serve(CLOSE_CLIENT, partial(_close_client, node))
    node.cluster.serve(RENEW_TOKEN, partial(_renew_token, node))
    node.cluster.serve(REVOKE, partial(_revoke, node))
    node.cluster.serve(CLOSE_USER, partial(_close_user, node))
    node.cluster.serve(COUNT_CHANNEL, partial(_count_channel, node))
    node.cluster.serve(STATUS, partial(_status, node))
    node.cluster.serve(DRAIN, partial(_drain, node))


async def _add_channel(node: Node, asked: OfClient) -> Channels:
    client = held(node, asked.client, asked.subject)
    name = check_subscribable(asked.channel)
    resume = parse_resume(asked.since) if asked.since is not None else None
    if isinstance(resume, Closed):
        resume = Start.UNKNOWN
    await _check_granted(node, asked, client, name)
    position = await node.streams.add_channel(client, name, resume)
    may_stay = False
    try:
        # Another token may have come while the channel was being subscribed to.
        await _check_granted(node, asked, client, name)
        may_stay = True
    finally:
        if not may_stay:
            node.streams.remove_channel(client, name)
    return _channels(client, position)


async def _check_granted(node: Node, asked: OfClient, client: Client, name: str) -> None:
    """Raises Forbidden, or Unavailable, unless the stream's own token grants what its user adds:
    that of his request, which does, may be over or revoked long before the stream is. What is for
    administrators goes to no stream of anybody else, whoever asks for it."""
    if name == OPS_CHANNEL and not client.identity.may_administer():
        raise Forbidden(
            f"The channel {name} is for streams whose own token is an administrator's"
            " (gateway.admin)."
        )
    if asked.subject is None or comes_unasked(name):
        return
    if not await may_view(node, client.identity, name):
        raise Forbidden(
            f"The channel {name} is not granted by the stream's own token; give it this one first"
            " (PUT /clients/<id>/token)."
        )


async def _remove_channel(node: Node, asked: OfClient) -> Channels:
    client = held(node, asked.client, asked.subject)
    name = check_subscribable(asked.channel)
    if comes_unasked(name):
        raise BadRequest(f"Every client has the channel {name}.")
    if not node.streams.remove_channel(client, name):
        raise NotFound(f"The client {client.id} does not have the channel {name}.")
    return _channels(client, node.bus.head())


async def _close_client(node: Node, asked: OfClient) -> ClosedStreams:
    _close(node, held(node, asked.client, asked.subject))
    return ClosedStreams(1)


async def _renew_token(node: Node, asked: OfToken) -> Renewed:
    """Give an open stream a newer token, and take away what that no longer grants."""
    client = held(node, asked.client, asked.user)
    identity = Identity(
        user=asked.user,
        subscribe=patterns(asked.subscribe),
        publish=patterns(asked.publish),
        admin=asked.admin,
        publisher=client.identity.publisher,
        expires_ms=asked.expires_ms,
        issued_ms=asked.issued_ms,
        token_id=asked.token_id,
    )
    own = await _own_streams(node, client, identity)
    client = held(node, asked.client, asked.user)  # it may have ended meanwhile
    if node.revoked.has(identity):
        raise Forbidden("The token has been revoked.")
    if identity.issued_ms and identity.issued_ms < client.identity.issued_ms:
        raise Forbidden("The stream has a newer token (iat) than this one.")
    node.streams.renew(client, identity)
    for name in _not_granted(node, client, identity):
        if name not in own:
            node.streams.remove_channel(client, name)
    at = _channels(client, node.bus.head())
    return Renewed(at.id, at.channels, asked.expires_ms / 1000)


def _not_granted(node: Node, client: Client, identity: Identity) -> list[str]:
    """Channels of an open stream that a token says nothing of."""
    return [
        channel.name
        for channel in client.channels
        if not comes_unasked(channel.name) and not node.auth.may_subscribe(identity, channel.name)
    ]


async def _own_streams(node: Node, client: Client, identity: Identity) -> set[str]:
    """Those of them that are token streams which ``identity`` may view. Raises Unavailable."""
    names = _not_granted(node, client, identity)
    return {name for name in names if await may_view(node, identity, name)}


async def _revoke(node: Node, asked: OfRevocation) -> ClosedStreams:
    """End the streams of what is revoked, and let none of it in again."""
    node.revoked.add(Revocation(asked.kind, asked.id, asked.at_ms, asked.until_ms))
    return ClosedStreams(await node.streams.end_revoked())


async def _close_user(node: Node, asked: OfUser) -> ClosedStreams:
    clients = node.hub.members.of_user(asked.user)
    for turn, client in enumerate(clients, 1):
        _close(node, client)
        if not turn % CLOSES_PER_TURN:
            await trio.lowlevel.checkpoint()
    return ClosedStreams(len(clients))


async def _count_channel(node: Node, asked: OfChannel) -> Subscribers:
    return Subscribers(node.id, node.hub.members.count(asked.channel))


async def _drain(node: Node, asked: OfNode) -> Leaving:
    """Leave, as on SIGTERM, with all of the node; once that has begun it is no more than said."""
    if asked.node != node.id:
        return Leaving(leaves=False)
    if node.ask_to_leave is None:
        raise Unavailable("Nobody can end this node but its own process.", outcome="refused")
    if not node.draining:
        _log.info("node %(node)s is asked to drain", {"node": node.id})
    node.ask_to_leave()
    return Leaving(leaves=True)


async def _status(node: Node, asked: OfAll) -> NodeStatus:
    now = node.statistics()
    return NodeStatus(
        id=now.id,
        uptime_seconds=round(now.uptime_seconds, 1),
        draining=now.draining,
        behind=now.hub.behind,
        clients=now.hub.clients,
        channels=now.hub.channels,
        published=now.bus.published,
        delivered=now.hub.delivered,
        dropped=now.hub.dropped,
    )


def held(node: Node, client_id: str, subject: str | None) -> Client:
    """The client of this id. Raises NotFound, and Forbidden where it is somebody else's."""
    client = node.hub.members.clients.get(client_id)
    if client is None:
        raise no_client()
    if subject is not None and client.user != subject:
        raise Forbidden("This stream is somebody else's; its own user may do that, or an admin.")
    return client


def no_client() -> NotFound:
    return NotFound("There is no client of this id; its stream may have ended.")


def _close(node: Node, client: Client) -> None:
    node.hub.end_for_good(client, Reason.CLOSED)


def _channels(client: Client, position: Position) -> Channels:
    return Channels(str(position), [channel.name for channel in client.channels])
