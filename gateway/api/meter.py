"""How many events a second a publisher may have, and a channel: what a request's are counted by.

A publisher is who it says it is with a token or a key, else its address; of IPv6 the network, since
whoever has one address there has 2^64.
"""

import hashlib
from collections.abc import Sequence

from gateway.api.request import Request
from gateway.errors import TooManyRequests
from gateway.event import Event
from gateway.identity import Identity
from gateway.limits import network
from gateway.node import Node
from gateway.rates import Bucket

MAX_NAME = 200
"""Characters of a publisher's name that are a key as they are; of longer ones it is a digest."""


class Meter:
    """The buckets of one request's events."""

    __slots__ = ("_channels", "_node", "_own", "_rates")

    def __init__(self, node: Node, own: tuple[Bucket, ...]) -> None:
        """``own`` is the publisher's, if that is limited."""
        self._node = node
        self._rates = node.ledger.rates
        self._channels = node.channel_rates
        self._own = own

    def take(self, event: Event) -> bool:
        """Take a token of each bucket of an event; False, with none taken, unless they are here."""
        return self._rates.take(self._own if self._channels is None else self._buckets(event))

    async def wait_for(self, event: Event) -> None:
        """Take the tokens of an event once it is known if there are some.

        Raises TooManyRequests, with none taken, if there are none.
        """
        buckets = self._buckets(event)
        seconds = await self._rates.take_or_wait(buckets)
        if not seconds:
            return
        empty = next(bucket for bucket in buckets if bucket.credit < 1)
        if empty in self._own:
            reason, what = "publish-rate", "This publisher has"
            setting = "publish_rate"
        else:
            reason, what = "channel-rate", f"The channel {empty.name[2:]} has"
            setting = "channel_publish_rate"
        self._node.refuse(reason)
        raise TooManyRequests(
            f"{what} {empty.rate:g} events a second, and this is more ({setting}). It was not"
            " taken; publish it again later.",
            retry_after=seconds,
        )

    def _buckets(self, event: Event) -> Sequence[Bucket]:
        if self._channels is None:
            return self._own
        buckets = [*self._own]
        for name in event.channels:
            if rate := self._channels.of(name):
                buckets.append(self._rates.bucket(f"c:{name}", rate))
        return buckets


def meter_of(node: Node, request: Request, identity: Identity) -> Meter | None:
    """What counts the events of a request; None if nothing does."""
    own: tuple[Bucket, ...] = ()
    rate = identity.publish_rate
    if rate is None:
        rate = node.config.publish_rate
    if rate > 0:
        address = node.address_of(request.peer, request.header)
        if not node.is_exempt(address):
            own = (node.ledger.rates.bucket(_name(identity.publisher, address), rate),)
    return Meter(node, own) if own or node.channel_rates is not None else None


def _name(publisher: str, address: str) -> str:
    if not publisher:
        return f"a:{network(address)}"
    if len(publisher) <= MAX_NAME and publisher.isascii():
        return f"p:{publisher}"
    return f"h:{hashlib.sha256(publisher.encode(errors='surrogatepass')).hexdigest()}"
