"""A connection that has something to show before its first request: a PROXY header, a handshake.

1. All of it has `head_timeout`, each part anew, and so has the first byte of each.
2. Who shows nothing, or the wrong thing, is closed without an answer, counted, and no error: on an
   open port that is everyday.
3. Nothing is read beyond the header, so whoever reads next begins where it ends.
"""

import socket

import trio

from gateway.addresses import TrustedProxies
from gateway.connection import Connection, Service
from gateway.http1 import Phase
from gateway.proxy_protocol import MAX_V2_BYTES, HeaderReader, ProxyHeaderError


class ArrivingConnection(Connection):
    def __init__(
        self, service: Service, sock: socket.socket, peer: str, *, proxies: TrustedProxies | None
    ) -> None:
        """With ``proxies`` there must be a PROXY header, of one of them."""
        super().__init__(service, sock, peer)
        self._proxies = proxies
        self._failing = ""
        """As what it counts if the part that is being read fails."""

    async def run(self, *, crowded: bool) -> None:
        if await self._has_arrived():
            self.scope = trio.CancelScope()
            await super().run(crowded=crowded)

    async def _has_arrived(self) -> bool:
        """Whether all has been shown that there must be; counted if not."""
        with self.scope:
            try:
                arrived = await self._arrive()
            except (ProxyHeaderError, OSError, trio.BrokenResourceError):
                self._node.refuse(self._failing)
                return False
            self.phase = None
            return arrived
        self._node.refuse("silent" if self.phase is Phase.IDLE else self._failing)
        return False

    async def _arrive(self) -> bool:
        """Read all that comes before the first request; False if the peer has ended before it.

        Raises ProxyHeaderError, OSError, trio.BrokenResourceError.
        """
        return self._proxies is None or await self._read_proxy_header(self._proxies)

    async def _begins(self, part: str) -> bool:
        """Wait for the first byte of a part that counts as ``part`` if it fails; False when the
        peer ends instead, as those do who only try whether somebody listens."""
        self._failing = part
        self.phase, self._deadline = Phase.IDLE, None
        begins = bool(await self._peek(1))
        self.phase, self._deadline = Phase.HEAD, None
        return begins

    async def _read_proxy_header(self, proxies: TrustedProxies) -> bool:
        if not proxies.trusts(self._peer):
            self._node.refuse("untrusted-proxy")
            return False
        if not await self._begins("proxy-protocol"):
            return False
        assert self._sock is not None
        reader = HeaderReader()
        while not reader.finished:
            data = await self._peek(MAX_V2_BYTES)
            if not data:
                raise ProxyHeaderError
            self._sock.recv(reader.receive_data(data))
        self._peer = reader.source or self._peer
        return True

    async def _peek(self, size: int) -> bytes:
        """What the peer has sent, and left to be read; nothing when it has ended."""
        assert self._sock is not None
        while True:
            try:
                return self._sock.recv(size, socket.MSG_PEEK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
