"""Who is here and who wants what: the clients, channels and users of a node. Pure bookkeeping.

1. A channel exists as long as somebody wants it; whoever leaves one tells the bus.
2. A membership begins after a position, and only later frames belong to it: that, and never the
   moment of joining, decides who gets a frame.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

import trio

from gateway.config import ChannelRule
from gateway.hub_client import Channel, Client
from gateway.names import OPS_CHANNEL
from gateway.position import Position
from gateway.tallies import Tally


class Members:
    def __init__(
        self,
        rule: Callable[[str], ChannelRule],
        tally: Callable[[ChannelRule], Tally],
        unsubscribe: Callable[[Collection[str]], None],
    ) -> None:
        """``tally`` has what is counted of a rule's channels, ``unsubscribe`` is told of each
        membership that ends.
        """
        self._rule = rule
        self._tally = tally
        self._unsubscribe = unsubscribe
        self._users: dict[str, dict[Client, None]] = {}
        self.clients: dict[str, Client] = {}
        self.channels: dict[str, Channel] = {}
        self.watched = trio.Event()
        """Set when somebody wants the reports, and replaced by whoever has waited for that."""
        self.subscriptions = 0
        """Memberships: of each client as many as it has channels."""

    def add(self, client: Client, channels: Iterable[str], after: Position) -> None:
        self.clients[client.id] = client
        if client.user is not None:
            self._users.setdefault(client.user, {})[client] = None
        for name in channels:
            self.join(client, name, after)

    def remove(self, client: Client) -> None:
        del self.clients[client.id]
        for channel in client.channels:
            self.leave(client, channel.name)
        if client.user is not None:
            same = self._users[client.user]
            del same[client]
            if not same:
                del self._users[client.user]

    def join(self, client: Client, name: str, after: Position) -> None:
        """Give ``client`` what comes on the channel ``name`` after that position."""
        channel = self.channels.get(name)
        if channel is None:
            rule = self._rule(name)
            channel = self.channels[name] = Channel(name, rule, self._tally(rule))
            if name == OPS_CHANNEL:
                self.watched.set()
        if client not in channel.members:
            self.subscriptions += 1
            channel.annotated += client.annotated
            client.channels = (*client.channels, channel)
        channel.members[client] = after
        client.joined = max(client.joined, after)

    def leave(self, client: Client, name: str) -> bool:
        """Give ``client`` nothing more of a channel; whether it was a member."""
        channel = self.channels.get(name)
        if channel is None or channel.members.pop(client, None) is None:
            return False
        self.subscriptions -= 1
        channel.annotated -= client.annotated
        client.channels = tuple(kept for kept in client.channels if kept is not channel)
        if not channel.members:
            del self.channels[name]
        self._unsubscribe((name,))
        return True

    def advance(self, client: Client, position: Position) -> None:
        """The client has been given everything up to ``position``."""
        client.given = position
        client.joined = max([position, *(c.members[client] for c in client.channels)])

    def count(self, name: str) -> int:
        """How many have a channel."""
        channel = self.channels.get(name)
        return len(channel.members) if channel is not None else 0

    def of_user(self, user: str) -> Sequence[Client]:
        return tuple(self._users.get(user, ()))
