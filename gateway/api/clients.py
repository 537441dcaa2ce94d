"""Clients: which there are, what is known of one, and what may be done with its stream.

Any worker answers for all nodes: it asks the one that holds the client, or all of them.
"""

import re
from contextlib import suppress
from typing import TypeVar

from gateway.api.commands import (
    ADD_CHANNEL,
    CLOSE_CLIENT,
    CLOSE_USER,
    REMOVE_CHANNEL,
    RENEW_TOKEN,
    OfClient,
    OfToken,
    OfUser,
    no_client,
)
from gateway.api.credentials import check_admin, check_overseer, identify
from gateway.api.listing import DEFAULT_LIMIT, LIST_CLIENTS, MAX_LIMIT, SHOW_CLIENT, Filter, order
from gateway.api.refusals import refused
from gateway.api.request import Answer, Request, answer
from gateway.api.tokens import all_closed, expiry, revoke_for_all
from gateway.api.views import seen
from gateway.auth import NEEDED, NOBODY
from gateway.client_summary import Standing
from gateway.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    GatewayError,
    NotFound,
    Unauthorized,
)
from gateway.identity import Identity
from gateway.messages import Command, Told
from gateway.names import (
    OPS_CHANNEL,
    check_channel,
    check_subscribable,
    comes_unasked,
    stream_of,
    user_channel,
)
from gateway.node import TAG_BYTES, Node
from gateway.revocation import Kind, Revocation

Asked = TypeVar("Asked", OfClient, OfToken)

_CLIENT_ID = re.compile(rf"([0-9a-f]{{{2 * TAG_BYTES}}})\..+", re.DOTALL)
"""A client's id begins with the tag of the worker that holds it."""

_LIMIT = re.compile(r"[0-9]{1,9}")


async def list_clients(node: Node, request: Request) -> Answer:
    """GET /clients: those for which the most waits, of all that fit what the query asks for."""
    try:
        check_overseer(node, request, await identify(node, request))
        asked = _filter(request)
        gathered = await node.cluster.ask_all(LIST_CLIENTS, asked)
    except GatewayError as error:
        return refused(node, error)
    found = sorted((each for told in gathered.told for each in told.clients), key=order)
    matched = sum(told.matched for told in gathered.told)
    return answer(
        200,
        {"clients": found[: asked.limit], "matched": matched, "missing": gathered.missing},
    )


def _filter(request: Request) -> Filter:
    """What is asked for; raises BadRequest for what no client can have."""
    channel, state = request.first("channel"), request.first("state")
    limit = request.first("limit")
    if channel is not None:
        check_channel(channel)
    if state is not None and state not in set(Standing):
        raise BadRequest(f"state is one of {', '.join(Standing)}.")
    if limit is not None and not (_LIMIT.fullmatch(limit) and 1 <= int(limit) <= MAX_LIMIT):
        raise BadRequest(f"limit is a whole number from 1 to {MAX_LIMIT}.")
    return Filter(
        channel=channel,
        user=request.first("user"),
        address=request.first("address"),
        state=state,
        node=request.first("node"),
        limit=int(limit) if limit is not None else DEFAULT_LIMIT,
    )


async def show_client(node: Node, request: Request, client_id: str) -> Answer:
    """GET /clients/<id>: all that is known of it, to its own user as well."""
    try:
        subject = _subject(await identify(node, request))
    except GatewayError as error:
        return refused(node, error)
    return await _ask_holder(node, SHOW_CLIENT, OfClient(client_id, subject=subject))


async def add_channel(node: Node, request: Request, client_id: str, channel: str) -> Answer:
    """PUT /clients/<id>/channels/<channel>, with ``?since=P`` for what was missed before."""
    try:
        identity = await identify(node, request)
        subject = _subject(identity)
        name = check_subscribable(channel)
        is_looked_at = name == OPS_CHANNEL or stream_of(name) is not None
        if is_looked_at or (subject is not None and not comes_unasked(name)):
            name = (await seen(node, request, identity, name)).name
    except NotFound as error:  # by 404 a client would learn that it has no stream itself
        return refused(node, Conflict(error.detail))
    except GatewayError as error:
        return refused(node, error)
    asked = OfClient(client_id, name, request.first("since"), subject)
    return await _ask_holder(node, ADD_CHANNEL, asked, refusal="channels")


async def remove_channel(node: Node, request: Request, client_id: str, channel: str) -> Answer:
    """DELETE /clients/<id>/channels/<channel>; what waits for the client may still come."""
    try:
        identity = await identify(node, request)
        subject = _subject(identity)
        name = channel
        if stream_of(name) is not None:
            with suppress(NotFound, Forbidden):  # what is over or not granted any more may go, too
                name = (await seen(node, request, identity, name)).name
    except GatewayError as error:
        return refused(node, error)
    return await _ask_holder(node, REMOVE_CHANNEL, OfClient(client_id, name, subject=subject))


async def close_client(node: Node, request: Request, client_id: str) -> Answer:
    """DELETE /clients/<id>: end its stream for good."""
    try:
        subject = _subject(await identify(node, request))
    except GatewayError as error:
        return refused(node, error)
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
        return refused(node, error)
    return await _ask_holder(node, RENEW_TOKEN, asked)


async def close_user(node: Node, request: Request, user: str) -> Answer:
    """DELETE /users/<id>: end all of a user's streams for good; none is no error.

    With ``?revoke=true`` the tokens that the user has so far are revoked, too; ``?exp=`` says when
    the last of them expires, after which that may be forgotten.
    """
    try:
        check_admin(await identify(node, request))
        user_channel(user)
        revoke = request.first("revoke") or "false"
        if revoke not in ("true", "false"):
            raise BadRequest("revoke is true or false.")
        until_ms = expiry(node, request)
        if revoke == "true":
            at_ms = node.now_ms() + int(node.config.jwt_leeway * 1000)
            return await revoke_for_all(node, Revocation(Kind.USER, user, at_ms, until_ms))
        gathered = await node.cluster.ask_all(CLOSE_USER, OfUser(user))
        return answer(200, {"closed": all_closed(gathered)})
    except GatewayError as error:
        return refused(node, error)


def _subject(identity: Identity) -> str | None:
    """Whose clients are asked about; None: anybody's, by an administrator."""
    if not identity.may_administer() and identity.user is None:
        check_admin(identity)
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
        return refused(node, error, refusal)
    return answer(200, told)
