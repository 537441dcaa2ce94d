"""What all users have in common: locust is told what they do, and how long it took."""

from typing import Any

from locust import User, constant

from stress.scene import the_scene


class Failure(Exception):
    """What locust counts as a failure, in a few words."""


class GatewayUser(User):
    """Tells locust what it has done."""

    abstract = True
    wait_time = constant(0)
    kind = ""

    def on_start(self) -> None:
        self.scene = the_scene()
        self.book = self.scene.book
        self.options: Any = self.environment.parsed_options

    def tell(self, what: str, seconds: float, size: int = 0, failure: str = "") -> None:
        self.environment.events.request.fire(
            request_type=what,
            name=self.kind,
            response_time=max(0.0, seconds) * 1000,
            response_length=size,
            exception=Failure(failure) if failure else None,
            context={},
        )
