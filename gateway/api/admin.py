"""Clients, users, channels and the node itself: what may be asked and done beside streaming.

Any worker answers for all nodes: it asks the one that holds the client, or all of them.
"""

import re
from dataclasses import replace
from typing import TypeVar

import trio

from gateway import metrics as prometheus
from gateway.api.commands import (
    ADD_CHANNEL,
    CLOSE_CLIENT,
    CLOSE_USER,
    COUNT_CHANNEL,
    REMOVE_CHANNEL,
    RENEW_TOKEN,
    REVOKE,
    STATUS,
    ClosedStreams,
    NodeStatus,
    OfAll,
    OfChannel,
    OfClient,
    OfRevocation,
    OfToken,
    OfUser,
    no_client,
)
from gateway.api.credentials import identify
from gateway.api.request import Answer, Request, answer, problem
from gateway.api.subscribe import check_granted
from gateway.auth import NEEDED, NOBODY
from gateway.cluster import Gathered
from gateway.errors import BadRequest, Forbidden, GatewayError, Unauthorized, Unavailable
from gateway.identity import Identity
from gateway.messages import Command, Told
from gateway.names import (
    OPS_CHANNEL,
    check_channel,
    check_subscribable,
    comes_unasked,
    user_channel,
)
from gateway.node import TAG_BYTES, Node, NodeStatistics
from gateway.revocation import Kind, Revocation

LINES_PER_TURN = 200
"""Of /metrics, between two checkpoints: a millisecond."""

MAX_SECONDS_DIGITS = 12

_SECONDS = re.compile(f"[0-9]{{1,{MAX_SECONDS_DIGITS}}}")

Asked = TypeVar("Asked", OfClient, OfToken)

_CLIENT_ID = re.compile(rf"([0-9a-f]{{{2 * TAG_BYTES}}})\..+", re.DOTALL)
"""A client's id begins with the tag of the worker that holds it."""


async def add_channel(node: Node, request: Request, client_id: str, channel: str) -> Answer:
    """PUT /clients/<id>/channels/<channel>, with ``?since=P`` for what was missed before."""
    try:
        identity = await identify(node, request)
        subject = _subject(identity)
        name = check_subscribable(channel)
        if name == OPS_CHANNEL or (subject is not None and not comes_unasked(name)):
            check_granted(node, identity, name)
    except GatewayError as error:
        return _refused(node, error)
    asked = OfClient(client_id, name, request.first("since"), subject)
    return await _ask_holder(node, ADD_CHANNEL, asked, refusal="channels")


async def remove_channel(node: Node, request: Request, client_id: str, channel: str) -> Answer:
    """DELETE /clients/<id>/channels/<channel>; what waits for the client may still come."""
    try:
        subject = _subject(await identify(node, request))
    except GatewayError as error:
        return _refused(node, error)
    return await _ask_holder(node, REMOVE_CHANNEL, OfClient(client_id, channel, subject=subject))


async def close_client(node: Node, request: Request, client_id: str) -> Answer:
    """DELETE /clients/<id>: end its stream for good."""
    try:
        subject = _subject(await identify(node, request))
    except GatewayError as error:
        return _refused(node, error)
    return await _ask_holder(node, CLOSE_CLIENT, OfClient(client_id, subject=subject))


async def renew_token(node: Node, request: Request, client_id: str) -> Answer:
    """PUT /clients/<id>/token: the token that the request is made with is the stream's from now on.

    Only for a stream of the same user.
    """
    try:
        identity = await identify(node, request)
        if identity.is_open:
            raise BadRequest("This node has no keys, so no stream has a token.")
        if identity is NOBODY:
            raise Unauthorized(
                f"A stream is given a token by who has one: {NEEDED}.", bad_token=False
            )
        if identity.user is None or identity.expires_ms is None:
            raise BadRequest("A stream is given another token by a request with that token.")
        asked = OfToken(
            client_id,
            identity.user,
            [pattern.text for pattern in identity.subscribe],
            [pattern.text for pattern in identity.publish],
            identity.admin,
            identity.expires_ms,
            identity.issued_ms,
            identity.token_id,
        )
    except GatewayError as error:
        return _refused(node, error)
    return await _ask_holder(node, RENEW_TOKEN, asked)


async def close_user(node: Node, request: Request, user: str) -> Answer:
    """DELETE /users/<id>: end all of a user's streams for good; none is no error.

    With ``?revoke=true`` the tokens that the user has so far are revoked, too; ``?exp=`` says when
    the last of them expires, after which that may be forgotten.
    """
    try:
        _check_admin(await identify(node, request))
        user_channel(user)
        revoke = request.first("revoke") or "false"
        if revoke not in ("true", "false"):
            raise BadRequest("revoke is true or false.")
        until_ms = _until_ms(node, request)
        if revoke == "true":
            at_ms = node.now_ms() + int(node.config.jwt_leeway * 1000)
            return await _revoke(node, Revocation(Kind.USER, user, at_ms, until_ms))
        gathered = await node.cluster.ask_all(CLOSE_USER, OfUser(user))
        return answer(200, {"closed": _all_closed(gathered)})
    except GatewayError as error:
        return _refused(node, error)


async def revoke_token(node: Node, request: Request, token_id: str) -> Answer:
    """DELETE /tokens/<jti>; ``?exp=`` says when that may be forgotten, as the token does."""
    try:
        _check_admin(await identify(node, request))
        until_ms = _until_ms(node, request)
        return await _revoke(node, Revocation(Kind.TOKEN, token_id, node.now_ms(), until_ms))
    except GatewayError as error:
        return _refused(node, error)


def _until_ms(node: Node, request: Request) -> int | None:
    """When a revocation may be forgotten; None: never. What is past would be forgotten at once."""
    expires = request.first("exp")
    if expires is None:
        return None
    if not _SECONDS.fullmatch(expires):
        raise BadRequest("exp is a whole number of seconds since 1970, as in the token.")
    until_ms = int(expires) * 1000
    if until_ms <= node.now_ms():
        raise BadRequest(
            f"exp is past: {expires} is no duration, but when the token expires, in seconds since"
            " 1970, and the revocation counts until then."
        )
    return until_ms


async def _revoke(node: Node, revocation: Revocation) -> Answer:
    """Note it for all workers to come, and tell those that are there."""
    if node.auth.is_open:
        raise BadRequest("This node has no keys, so there are no tokens to revoke.")
    await node.ledger.revoke(revocation)
    asked = OfRevocation(revocation.kind, revocation.id, revocation.at_ms, revocation.until_ms)
    gathered = await node.cluster.ask_all(REVOKE, asked)
    return answer(200, {"closed": _all_closed(gathered), "durable": node.ledger.durable})


def _all_closed(gathered: Gathered[ClosedStreams]) -> int:
    """The streams that were closed; raises Unavailable unless every worker has done it."""
    closed = sum(told.closed for told in gathered.told)
    if gathered.missing:
        raise Unavailable(
            f"{gathered.missing} workers have not answered; their streams may still be open.",
            outcome="unknown",
            closed=closed,
            missing=gathered.missing,
        )
    return closed


async def channel(node: Node, request: Request, name: str) -> Answer:
    """GET /channels/<channel>; nobody there is 0 and not an error."""
    try:
        _check_admin(await identify(node, request))
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


async def stats(node: Node, request: Request) -> Answer:
    """GET /stats: all nodes that answer, each the sum of its workers."""
    try:
        _check_admin(await identify(node, request))
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


async def metrics(node: Node, request: Request) -> Answer:
    """GET /metrics: those of the node."""
    try:
        identity = await identify(node, request)
        if identity.is_open and not node.is_local:
            raise Forbidden(
                "A node without keys tells its counts only on loopback, and at admin_bind."
            )
        _check_admin(identity)
    except GatewayError as error:
        return _refused(node, error)
    return await open_metrics(node)


async def open_metrics(node: Node) -> Answer:
    """The same on the listener of ``admin_bind``, which asks for no token."""
    try:
        now = await node.node_statistics()
    except GatewayError as error:
        return _refused(node, error)
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


def _check_admin(identity: Identity) -> None:
    if identity.may_administer():
        return
    if identity is NOBODY:
        raise Unauthorized(f"This is for administrators: {NEEDED}.", bad_token=False)
    raise Forbidden("This is for administrators (gateway.admin).")


def _subject(identity: Identity) -> str | None:
    """Whose clients are asked about; None: anybody's, by an administrator."""
    if not identity.may_administer() and identity.user is None:
        _check_admin(identity)
    return None if identity.may_administer() else identity.user


async def _ask_holder(
    node: Node,
    command: Command[Asked, Told],
    asked: Asked,
    *,
    refusal: str = "cluster",
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
