"""Clients as the worker that holds them tells of them: the commands behind GET /clients.

Whatever a worker holds, what it tells is bounded, and it looks at some hundred clients at a time.
"""

import heapq
from collections.abc import Iterable
from functools import partial
from typing import Annotated

import msgspec
import trio

from gateway.api.commands import Number, OfClient, held
from gateway.auth import NOBODY
from gateway.client_summary import (
    ClientSummary,
    behind_seconds,
    queued_bytes,
    standing,
    summary,
)
from gateway.cluster import READ_SECONDS
from gateway.hub_client import Client
from gateway.messages import Command
from gateway.node import Node
from gateway.stream_state import State

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
"""Clients in one answer: a page of them, and from each worker a message that is far from its
bound."""

LOOKS_PER_TURN = 500
"""Clients looked at between two checkpoints: half a millisecond."""


class Filter(msgspec.Struct):
    """What clients must be or have; None is no matter. ``limit`` is how many are told of."""

    channel: str | None = None
    user: str | None = None
    address: str | None = None
    state: str | None = None
    node: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT


class Listed(msgspec.Struct):
    """Those for which the most waits, of the ``matched`` that fit."""

    clients: list[ClientSummary]
    matched: Number


class ClientDetail(ClientSummary, rename="camel", kw_only=True):
    """``request`` is the id of the request that opened it, ``expires`` the time of its token in ms;
    ``anonymous`` is who has shown none; ``poll`` is one that is being answered."""

    request: str
    expires: int | None
    anonymous: bool
    annotated: bool
    channel_names: list[str]
    poll: bool


LIST_CLIENTS = Command("list-clients", Filter, Listed, READ_SECONDS)
SHOW_CLIENT = Command("show-client", OfClient, ClientDetail, READ_SECONDS)


def serve_listing(node: Node) -> None:
    """Have ``node`` tell of its clients, whichever worker asks."""
    node.cluster.serve(LIST_CLIENTS, partial(_list, node))
    node.cluster.serve(SHOW_CLIENT, partial(_show, node))


def order(client: ClientSummary) -> tuple[float, ...]:
    """By which the slowest come first, and of those that keep up the oldest."""
    return (-client.queued_bytes, -client.behind_seconds, client.opened_at)


async def _list(node: Node, asked: Filter) -> Listed:
    if asked.node is not None and asked.node != node.id:
        return Listed([], 0)
    slowest: list[tuple[float, float, float, int, Client]] = []
    matched = 0
    for turn, client in enumerate(_candidates(node, asked), 1):
        if _fits(client, asked):
            matched += 1
            rank = (queued_bytes(client), behind_seconds(client), -client.opened_at, -turn)
            slowest.append((*rank, client))
        if not turn % LOOKS_PER_TURN:
            slowest = heapq.nlargest(asked.limit, slowest)
            await trio.lowlevel.checkpoint()
    told: list[ClientSummary] = []
    for *_, client in heapq.nlargest(asked.limit, slowest):
        told.append(_summary(node, client))
        await trio.lowlevel.checkpoint()  # it may have thousands of channels
    return Listed(told, matched)


def _candidates(node: Node, asked: Filter) -> Iterable[Client]:
    """Those that may fit. One that is being ended has no channels any more, nor a user."""
    members = node.hub.members
    if asked.channel is not None:
        channel = members.channels.get(asked.channel)
        return tuple(channel.members) if channel is not None else ()
    return node.hub.holders()


def _fits(client: Client, asked: Filter) -> bool:
    return (
        client.state is not State.CLOSED
        and (asked.user is None or client.user == asked.user)
        and (asked.address is None or client.address == asked.address)
        and (asked.state is None or standing(client) == asked.state)
    )


def _summary(node: Node, client: Client) -> ClientSummary:
    return summary(client, node.id, node.now_ms(), node.hub.stands)


async def _show(node: Node, asked: OfClient) -> ClientDetail:
    client = held(node, asked.client, asked.subject)
    identity = client.identity
    return ClientDetail(
        **msgspec.structs.asdict(_summary(node, client)),
        request=client.request_id,
        expires=identity.expires_ms,
        anonymous=identity.is_open or identity is NOBODY,
        annotated=client.annotated,
        channel_names=[channel.name for channel in client.channels],
        poll=client.is_poll,
    )
