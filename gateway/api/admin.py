"""Clients, users, channels and the node itself: what may be asked and done beside streaming.

Any worker answers for all nodes: it asks the one that holds the client, or all of them.
"""

import re

from gateway.api.commands import (
    ADD_CHANNEL,
    CLOSE_CLIENT,
    CLOSE_USER,
    COUNT_CHANNEL,
    REMOVE_CHANNEL,
    STATUS,
    NodeStatus,
    OfAll,
    OfChannel,
    OfClient,
    OfUser,
    no_client,
)
from gateway.api.request import Answer, Request, answer, problem
from gateway.errors import GatewayError, Unavailable
from gateway.messages import Command, Told
from gateway.names import check_channel
from gateway.node import TAG_BYTES, Node

_CLIENT_ID = re.compile(rf"([0-9a-f]{{{2 * TAG_BYTES}}})\..+", re.DOTALL)
"""A client's id begins with the tag of the worker that holds it."""


async def add_channel(node: Node, request: Request, client_id: str, channel: str) -> Answer:
    """PUT /clients/<id>/channels/<channel>, with ``?since=P`` for what was missed before."""
    asked = OfClient(client_id, channel, request.first("since"))
    return await _ask_holder(node, ADD_CHANNEL, asked, refusal="channels")


async def remove_channel(node: Node, client_id: str, channel: str) -> Answer:
    """DELETE /clients/<id>/channels/<channel>; what waits for the client may still come."""
    return await _ask_holder(node, REMOVE_CHANNEL, OfClient(client_id, channel))


async def close_client(node: Node, client_id: str) -> Answer:
    """DELETE /clients/<id>: end its stream for good."""
    return await _ask_holder(node, CLOSE_CLIENT, OfClient(client_id))


async def close_user(node: Node, user: str) -> Answer:
    """DELETE /users/<id>: end all of a user's streams for good; none is no error."""
    try:
        gathered = await node.cluster.ask_all(CLOSE_USER, OfUser(user))
        closed = sum(told.closed for told in gathered.told)
        if gathered.missing:
            raise Unavailable(
                f"{gathered.missing} workers have not answered; their streams may still be open.",
                outcome="unknown",
                closed=closed,
                missing=gathered.missing,
            )
    except GatewayError as error:
        return _refused(node, error)
    return answer(200, {"closed": closed})


async def channel(node: Node, name: str) -> Answer:
    """GET /channels/<channel>; nobody there is 0 and not an error."""
    try:
        gathered = await node.cluster.ask_all(COUNT_CHANNEL, OfChannel(check_channel(name)))
        last = await node.bus.last(name)
    except GatewayError as error:
        return _refused(node, error)
    clients: dict[str, int] = {}
    for told in gathered.told:
        clients[told.id] = clients.get(told.id, 0) + told.clients
    return answer(
        200,
        {
            "channel": name,
            "clients": sum(clients.values()),
            "lastEventId": str(last) if last is not None else None,
            "missing": gathered.missing,
            "nodes": [{"id": id, "clients": n} for id, n in sorted(clients.items()) if n],
        },
    )


async def stats(node: Node) -> Answer:
    """GET /stats: all nodes that answer, each the sum of its workers."""
    try:
        gathered = await node.cluster.ask_all(STATUS, OfAll())
    except GatewayError as error:
        return _refused(node, error)
    nodes: dict[str, NodeStatus] = {}
    for told in gathered.told:
        known = nodes.get(told.id)
        nodes[told.id] = told if known is None else _sum(known, told)
    counts = ("clients", "channels", "published", "delivered", "dropped")
    total = {name: sum(getattr(status, name) for status in nodes.values()) for name in counts}
    described = [nodes[id] for id in sorted(nodes)]
    return answer(200, {**total, "missing": gathered.missing, "nodes": described})


async def health(node: Node) -> Answer:
    """GET /healthz: the process answers."""
    return answer(200, {"status": "ok"})


async def readiness(node: Node) -> Answer:
    """GET /readyz: whether a balancer should send new clients here."""
    try:
        now = await node.node_statistics()
    except GatewayError as error:
        return problem(error)
    for holds, reason, why in (
        (now.draining, "draining", "it is draining"),
        (now.full, "full", "it is full"),
        (now.cut_off, "bus", "it has not reached its Redis yet, or cannot keep up with it"),
    ):
        if holds:
            told = f"The node takes no new clients: {why}."
            return problem(Unavailable(told, reason=reason))
    return answer(200, {"status": "ready"})


async def _ask_holder(
    node: Node, command: Command[OfClient, Told], asked: OfClient, *, refusal: str = "cluster"
) -> Answer:
    """Have the worker that holds the client carry ``command`` out; ``refusal`` counts a 503."""
    try:
        match = _CLIENT_ID.fullmatch(asked.client)
        told = await node.cluster.ask(match[1], command, asked) if match is not None else None
        if told is None:
            raise no_client()
    except GatewayError as error:
        return _refused(node, error, refusal)
    return answer(200, told)


def _refused(node: Node, error: GatewayError, reason: str = "cluster") -> Answer:
    if isinstance(error, Unavailable):
        node.refuse(reason)
    return problem(error)


def _sum(one: NodeStatus, other: NodeStatus) -> NodeStatus:
    """Two workers of a node as one."""
    return NodeStatus(
        id=one.id,
        uptime_seconds=max(one.uptime_seconds, other.uptime_seconds),
        draining=one.draining and other.draining,
        behind=one.behind + other.behind,
        clients=one.clients + other.clients,
        channels=one.channels + other.channels,
        published=one.published + other.published,
        delivered=one.delivered + other.delivered,
        dropped=one.dropped + other.dropped,
        workers=one.workers + other.workers,
    )
