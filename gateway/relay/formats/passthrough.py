"""Events of any kind, of which viewers are told as they are: there is nothing to normalize."""

from collections.abc import Sequence

from gateway.relay.events import Complete, Normal
from gateway.sse import ServerSentEvent


class Passthrough:
    is_done = False
    """The end of the body is the end."""

    def feed(self, event: ServerSentEvent) -> Sequence[Normal]:
        return ()

    def finish(self) -> Complete:
        return Complete("end")
