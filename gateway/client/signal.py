"""Something has changed: whoever waits looks again."""

import anyio


class Signal:
    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def fire(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Until it is fired next."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()
