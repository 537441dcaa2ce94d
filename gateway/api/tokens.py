"""Revocation: tokens that count no more, on all nodes, and the streams that they opened."""

import re

from gateway.api.commands import REVOKE, ClosedStreams, OfRevocation
from gateway.api.credentials import check_admin, identify
from gateway.api.refusals import refused
from gateway.api.request import Answer, Request, answer
from gateway.cluster import Gathered
from gateway.errors import BadRequest, GatewayError, Unavailable
from gateway.node import Node
from gateway.revocation import Kind, Revocation

MAX_SECONDS_DIGITS = 12

_SECONDS = re.compile(f"[0-9]{{1,{MAX_SECONDS_DIGITS}}}")


async def revoke_token(node: Node, request: Request, token_id: str) -> Answer:
    """DELETE /tokens/<jti>; ``?exp=`` says when that may be forgotten, as the token does."""
    try:
        check_admin(await identify(node, request))
        until_ms = expiry(node, request)
        return await revoke_for_all(node, Revocation(Kind.TOKEN, token_id, node.now_ms(), until_ms))
    except GatewayError as error:
        return refused(node, error)


def expiry(node: Node, request: Request) -> int | None:
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


async def revoke_for_all(node: Node, revocation: Revocation) -> Answer:
    """Note it for all workers to come, and tell those that are there."""
    if node.auth.is_open:
        raise BadRequest("This node has no keys, so there are no tokens to revoke.")
    await node.ledger.revoke(revocation)
    asked = OfRevocation(revocation.kind, revocation.id, revocation.at_ms, revocation.until_ms)
    gathered = await node.cluster.ask_all(REVOKE, asked)
    return answer(200, {"closed": all_closed(gathered), "durable": node.ledger.durable})


def all_closed(gathered: Gathered[ClosedStreams]) -> int:
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
