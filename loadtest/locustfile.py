"""Users of the gateway for locust: subscribers, slow readers and publishers; and a verdict.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --headless -u 100 -r 50 -t 30s

Publishers stamp each event, and subscribers hold what they get against the stamps. In the end
publishers stop first, then every subscriber has the time to get the rest. What is missing then and
was not announced is lost, whichever process of locust it happened in, and the exit code is not 0.
README.md says what the figures mean; the parts are in ``stress/``.
"""

import signal
from typing import Any

import gevent
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner
from stress.options import add_options
from stress.page import show
from stress.publisher import Publisher
from stress.scene import Scene, set_scene
from stress.settlement import Settlement
from stress.shape import CUT, Shape
from stress.subscriber import SlowReader, Subscriber

__all__ = ("Publisher", "Shape", "SlowReader", "Subscriber")

SLOW_WEIGHT = 0.25
"""Slow readers for each other subscriber, with the shape `slow` and without --slow-weight."""


events.init_command_line_parser.add_listener(add_options)


@events.init.add_listener
def begin(environment: Environment, **_: object) -> None:
    """This process is ready; what cannot be used on its command line ends it."""
    runner: Any = environment.runner
    scene = Scene(environment, Settlement(environment))
    scene.begin()
    environment.events.test_start.add_listener(scene.begin)
    environment.events.test_start.add_listener(weigh)
    if not isinstance(runner, MasterRunner):
        runner.register_message(CUT, scene.cut)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    if environment.web_ui is not None:
        show(environment.web_ui, scene.settlement)
    set_scene(scene)


def weigh(environment: Environment, **_: object) -> None:
    """A run starts, for which the web UI may have changed the options."""
    options: Any = environment.parsed_options
    Subscriber.weight = options.subscriber_weight
    SlowReader.weight = options.slow_weight
    if options.shape == "slow" and not options.slow_weight:
        SlowReader.weight = SLOW_WEIGHT * options.subscriber_weight
    Publisher.weight = options.publisher_weight
    Publisher.fixed_count = options.publishers


def interrupt(*_: object) -> None:
    """End the run with its verdict: in the main greenlet, where locust expects a Ctrl-C, and when
    no other runs. Python would raise it in any that runs, in the middle of what a subscriber has
    just received; and while a shape runs, locust leaves SIGTERM at its default."""
    hub = gevent.get_hub()
    hub.loop.run_callback_threadsafe(hub.parent.throw, KeyboardInterrupt())
