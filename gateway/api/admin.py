"""Clients, users, channels and the node itself: what may be asked and done beside streaming."""

import trio

from gateway import control
from gateway.api.request import Answer, Request, answer, problem
from gateway.client import Client, Reason
from gateway.errors import BadRequest, GatewayError, NotFound, Unavailable
from gateway.names import check_channel, check_subscribable, is_reserved
from gateway.node import Node
from gateway.position import Closed, Start, parse_resume

CLOSES_PER_TURN = 64
"""Streams ended between two checkpoints: about a millisecond."""


async def add_channel(node: Node, request: Request, client_id: str, channel: str) -> Answer:
    """PUT /clients/<id>/channels/<channel>, with ``?since=P`` for what was missed before."""
    try:
        client = _client(node, client_id)
        name = check_subscribable(channel)
        since = request.first("since")
        resume = parse_resume(since) if since is not None else None
        if isinstance(resume, Closed):
            resume = Start.UNKNOWN
        position = await node.streams.add_channel(client, name, resume)
        return _channels_answer(client, str(position))
    except Unavailable as error:
        node.refuse("channels")
        return problem(error)
    except GatewayError as error:
        return problem(error)


async def remove_channel(node: Node, client_id: str, channel: str) -> Answer:
    """DELETE /clients/<id>/channels/<channel>; what waits for the client may still come."""
    try:
        client = _client(node, client_id)
        name = check_subscribable(channel)
        if is_reserved(name):
            raise BadRequest(f"Every client has the channel {name}.")
        if not node.streams.remove_channel(client, name):
            raise NotFound(f"The client {client.id} does not have the channel {name}.")
        return _channels_answer(client, str(node.bus.head()))
    except GatewayError as error:
        return problem(error)


async def close_client(node: Node, client_id: str) -> Answer:
    """DELETE /clients/<id>: end its stream for good."""
    try:
        _close(node, _client(node, client_id))
        return answer(200, {"closed": 1})
    except GatewayError as error:
        return problem(error)


async def close_user(node: Node, user: str) -> Answer:
    """DELETE /users/<id>: end all of a user's streams for good; none is no error."""
    clients = node.hub.members.of_user(user)
    for turn, client in enumerate(clients, 1):
        _close(node, client)
        if not turn % CLOSES_PER_TURN:
            await trio.lowlevel.checkpoint()
    return answer(200, {"closed": len(clients)})


async def channel(node: Node, name: str) -> Answer:
    """GET /channels/<channel>; nobody there is 0 and not an error."""
    try:
        found = node.hub.members.channels.get(check_channel(name))
        last = await node.bus.last(name)
        return answer(
            200,
            {
                "channel": name,
                "clients": len(found.members) if found is not None else 0,
                "lastEventId": str(last) if last is not None else None,
            },
        )
    except GatewayError as error:
        return problem(error)


async def stats(node: Node) -> Answer:
    """GET /stats: the cluster, which is this node so far."""
    now = node.statistics()
    own = {
        "clients": now.hub.clients,
        "channels": now.hub.channels,
        "published": now.bus.published,
        "delivered": now.hub.delivered,
        "dropped": now.hub.dropped,
    }
    described = {
        "id": now.id,
        "uptimeSeconds": round(now.uptime_seconds, 1),
        "draining": now.draining,
        "behind": now.hub.behind,
        **own,
    }
    return answer(200, {**own, "nodes": [described]})


async def health(node: Node) -> Answer:
    """GET /healthz: the process answers."""
    return answer(200, {"status": "ok"})


async def readiness(node: Node) -> Answer:
    """GET /readyz: whether a balancer should send new clients here."""
    if node.ready:
        return answer(200, {"status": "ready"})
    why = "draining" if node.draining else "full"
    return problem(Unavailable(f"The node takes no new clients: it is {why}.", reason=why))


def _client(node: Node, client_id: str) -> Client:
    client = node.hub.members.clients.get(client_id)
    if client is None:
        raise NotFound("There is no client of this id; its stream may have ended.")
    return client


def _close(node: Node, client: Client) -> None:
    node.hub.finish(client, Reason.CLOSED, control.closed(node.hub.stands(client)))


def _channels_answer(client: Client, position: str) -> Answer:
    names = [channel.name for channel in client.channels]
    return answer(200, {"id": position, "channels": names})
