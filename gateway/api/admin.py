"""Channels, counts and the nodes themselves: what may be asked of them, and that one is to leave.

Any worker answers for all nodes, but for /metrics and the probes, which are the node's own.
"""

from dataclasses import replace

import trio

from gateway import metrics as prometheus
from gateway.api.commands import (
    COUNT_CHANNEL,
    DRAIN,
    STATUS,
    NodeStatus,
    OfAll,
    OfChannel,
    OfNode,
)
from gateway.api.credentials import check_admin, check_overseer, identify
from gateway.api.refusals import refused
from gateway.api.request import Answer, Request, answer, problem
from gateway.errors import Forbidden, GatewayError, NotFound, Unavailable
from gateway.names import check_channel
from gateway.node import Node, NodeStatistics

LINES_PER_TURN = 200
"""Of /metrics, between two checkpoints: a millisecond."""


async def channel(node: Node, request: Request, name: str) -> Answer:
    """GET /channels/<channel>; nobody there is 0 and not an error."""
    try:
        check_admin(await identify(node, request))
        gathered = await node.cluster.ask_all(COUNT_CHANNEL, OfChannel(check_channel(name)))
        last = await node.bus.last(name)
    except GatewayError as error:
        return refused(node, error)
    clients: dict[str, int] = {}
    for told in gathered.told:
        clients[told.id] = clients.get(told.id, 0) + told.clients
    return answer(
        200,
        {
            "channel": name,
            "clients": sum(clients.values()),
            "lastEventId": str(last) if last is not None else None,
            "policy": node.config.rule(name).policy,
            "missing": gathered.missing,
            "nodes": [{"id": id, "clients": n} for id, n in sorted(clients.items()) if n],
        },
    )


async def stats(node: Node, request: Request) -> Answer:
    """GET /stats: all nodes that answer, each the sum of its workers."""
    try:
        check_admin(await identify(node, request))
        gathered = await node.cluster.ask_all(STATUS, OfAll())
    except GatewayError as error:
        return refused(node, error)
    nodes: dict[str, NodeStatus] = {}
    for told in gathered.told:
        known = nodes.get(told.id)
        nodes[told.id] = told if known is None else _sum(known, told)
    counts = ("clients", "channels", "published", "delivered", "dropped")
    total = {name: sum(getattr(status, name) for status in nodes.values()) for name in counts}
    described = [nodes[id] for id in sorted(nodes)]
    return answer(200, {**total, "missing": gathered.missing, "nodes": described})


async def metrics(node: Node, request: Request) -> Answer:
    """GET /metrics: those of the node."""
    try:
        identity = await identify(node, request)
        if identity.is_open and not node.is_local:
            raise Forbidden(
                "A node without keys tells its counts only on loopback, and at admin_bind."
            )
        check_admin(identity)
    except GatewayError as error:
        return refused(node, error)
    return await open_metrics(node)


async def open_metrics(node: Node) -> Answer:
    """The same on the listener of ``admin_bind``, which asks for no token."""
    try:
        now = await node.node_statistics()
    except GatewayError as error:
        return refused(node, error)
    text = bytearray()
    turn = LINES_PER_TURN
    for part in prometheus.parts(now):
        text += part
        turn -= part.count(b"\n")
        if turn <= 0:
            turn = LINES_PER_TURN
            await trio.lowlevel.checkpoint()
    return Answer(200, bytes(text), prometheus.MEDIA_TYPE)


async def health(node: Node) -> Answer:
    """GET /healthz: the process answers."""
    return answer(200, {"status": "ok"})


async def readiness(node: Node) -> Answer:
    """GET /readyz: whether a balancer should send new clients here."""
    now: Node | NodeStatistics = node  # whose statistics cost more than may be asked all the time
    try:
        if node.ask_supervisor is not None:
            now = await node.ask_supervisor()
    except GatewayError as error:
        return problem(error)
    for holds, reason, why in (
        (now.draining, "draining", "it is draining"),
        (now.full, "full", "it is full"),
        (now.cut_off, "bus", "it has not reached its Redis yet, or cannot keep up with it"),
    ):
        if holds:
            told = f"The node takes no new clients: {why}."
            # Not for the log, which would have a line for each probe.
            return replace(problem(Unavailable(told, reason=reason)), why="")
    return answer(200, {"status": "ready"})


async def drain(node: Node, request: Request, node_id: str) -> Answer:
    """POST /nodes/<id>/drain: have a node leave as on SIGTERM; one that is leaving goes on."""
    try:
        check_overseer(node, request, await identify(node, request))
        gathered = await node.cluster.ask_all(DRAIN, OfNode(node_id))
        workers = sum(told.leaves for told in gathered.told)
        if not workers and gathered.missing:
            raise Unavailable(
                f"{gathered.missing} workers have not answered; the node may be theirs.",
                outcome="unknown",
                missing=gathered.missing,
            )
        if not workers:
            raise NotFound("There is no node of this id; /stats has those that there are.")
    except GatewayError as error:
        return refused(node, error)
    return answer(202, {"node": node_id, "workers": workers})


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
