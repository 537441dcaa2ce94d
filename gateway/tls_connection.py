"""A connection over TLS: the same requests, and streams in the response lane.

A stream has two tasks here. One writes what its client is given; each write has `write_timeout`.
The other reads, since nothing else would notice that the peer has ended while there is nothing to
write: what it reads means nothing, and is not to be much.
"""

import socket
from collections.abc import Callable
from contextlib import aclosing

import trio

from gateway.addresses import TrustedProxies
from gateway.arriving import ArrivingConnection
from gateway.connection import Service
from gateway.http1_render import LAST_CHUNK, chunk
from gateway.hub_client import Client
from gateway.lanes import MAX_STRAY_BYTES
from gateway.stream_state import Reason
from gateway.streams import EventStream
from gateway.tls import Certificate
from gateway.transport import READ_BYTES, TlsStream, Transport


class TlsConnection(ArrivingConnection):
    def __init__(
        self,
        service: Service,
        sock: socket.socket,
        peer: str,
        *,
        proxies: TrustedProxies | None,
        certificate: Certificate,
    ) -> None:
        super().__init__(service, sock, peer, proxies=proxies)
        self._certificate = certificate
        self._tls: TlsStream

    async def _arrive(self) -> bool:
        if not await super()._arrive() or not await self._begins("handshake"):
            return False
        assert self._sock is not None
        self._tls = TlsStream(self._sock, self._certificate.context)
        self._sock = self._tls.socket
        await self._certificate.handshake(self._tls)
        return True

    async def _stream(self, stream: EventStream, head: Callable[[Client], bytes]) -> None:
        streams = self._node.streams
        async with streams.responding(stream) as client:
            self._service.streams += 1
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._discard_input, client, nursery.cancel_scope)
                    await self._write(client, head(client))
                    nursery.cancel_scope.cancel()
            finally:
                self._service.streams -= 1

    async def _write(self, client: Client, before: bytes) -> None:
        """Write ``before`` and what ``client`` is given until it ends, or its connection does."""
        try:
            async with aclosing(self._node.streams.given(client)) as given:
                async for data in given:
                    await self._send(before + chunk(data))
                    if before:
                        self._observe(200)
                    before = b""
            await self._send(before + LAST_CHUNK)
            await self._send_eof()
        except OSError:
            pass  # as `responding` finds: the client is gone

    async def _discard_input(self, client: Client, stream: trio.CancelScope) -> None:
        """Read until the peer ends, or sends too much, and end ``stream`` then."""
        try:
            while data := await self._receive():
                client.stray_bytes += len(data)
                if client.stray_bytes > MAX_STRAY_BYTES:
                    self._node.hub.close(client, Reason.UNEXPECTED_INPUT)
                    break
        except OSError:
            pass
        stream.cancel()

    def _hand_over(self) -> Transport:
        self._sock = None
        return self._tls

    async def _end_with_peer(self, patience: trio.CancelScope) -> None:
        """A next request cannot be looked at without taking it: it is kept for later."""
        try:
            data = await self._receive()
        except OSError:
            data = b""
        if data:
            self._reader.receive_data(data)
        else:
            patience.cancel()

    async def _send_eof(self) -> None:
        await self._tls.send_eof()

    async def _receive(self) -> bytes:
        try:
            return await self._tls.receive_some(READ_BYTES)
        except trio.BrokenResourceError:
            raise ConnectionResetError from None

    async def _send(self, data: bytes) -> None:
        with trio.move_on_after(self._node.config.write_timeout):
            try:
                await self._tls.send_all(data)
                return
            except trio.BrokenResourceError:
                raise BrokenPipeError from None
        self._node.refuse("write-timeout")
        raise BrokenPipeError
