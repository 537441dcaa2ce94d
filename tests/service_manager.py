"""systemd's end of the socket that a service speaks to: sd_notify(3), without systemd."""

import socket
import struct

import trio
from process import PATIENCE

Message = dict[str, str]


class ServiceManager:
    """What is said, and by which process. ``address`` is what NOTIFY_SOCKET names."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.speakers: set[int] = set()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(address.replace("@", "\0", 1))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.setblocking(False)

    async def hears(self) -> Message:
        """The next message."""
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(self._sock)
        data, ancillary, _, _ = self._sock.recvmsg(4096, socket.CMSG_SPACE(struct.calcsize("3i")))
        [(_, _, credentials)] = ancillary
        self.speakers.add(struct.unpack("3i", credentials)[0])
        return dict(line.split("=", 1) for line in data.decode().split("\n"))

    async def hears_of(self, name: str) -> Message:
        """The next message with ``name``, and not of the watchdog's."""
        while name not in (message := await self.hears()):
            assert set(message) == {"WATCHDOG"}, message
        return message

    def has_heard(self) -> int:
        """How many messages wait; they are thrown away."""
        count = 0
        while True:
            try:
                self._sock.recv(4096)
            except BlockingIOError:
                return count
            count += 1

    def close(self) -> None:
        self._sock.close()
