"""What a token stream is to be made of: the call of an upstream, or what an application pushes."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

import msgspec
import trio

from gateway.config import Config, Upstream
from gateway.relay.events import Complete
from gateway.relay.formats import normalizer
from gateway.relay.record import Format, Record
from gateway.relay.relays import Limits, Plan
from gateway.relay.running import Running


class Kept(msgspec.Struct):
    """What another worker needs to make a call again."""

    path: str
    body: bytes
    unwatched_seconds: float
