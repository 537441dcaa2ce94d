"""What a run can be told on the command line, and in the form of the web UI.

``--host`` (several divided by commas), ``--users``, ``--spawn-rate`` and ``--run-time`` are
locust's own.
"""

import argparse
from collections.abc import Callable

from locust.argument_parser import LocustArgumentParser

SHAPES = ("steady", "ramp", "spike", "soak", "storm", "slow")


def _number(kind: Callable[[str], float], *, above: float) -> Callable[[str], float]:
    """For an option: a number greater than that."""

    def number(text: str) -> float:
        if not (value := kind(text)) > above:
            raise argparse.ArgumentTypeError(f"{text} is not greater than {above}")
        return value

    return number


def add_options(parser: LocustArgumentParser) -> None:
    add = parser.add_argument
    more, some = _number(float, above=0), _number(int, above=0)
    add("--shape", choices=SHAPES, default="steady", help="how the number of users develops")
    add("--channels", type=some, default=10, metavar="N", help="channels that are published to")
    add("--channel-prefix", default="load.", metavar="NAME", help="what their names begin with")
    add("--channels-each", type=some, default=1, metavar="N", help="channels of one subscriber")
    add("--publishers", type=int, default=2, metavar="N", help="publishers, among the users")
    add("--rate", type=more, default=10.0, help="events per second of each publisher")
    add("--size", type=some, default=100, metavar="BYTES", help="data of an event")
    add("--subscriber-weight", type=float, default=1.0, help="of the other users: subscribers")
    add("--slow-weight", type=float, default=0.0, help="of the other users: slow readers")
    add("--publisher-weight", type=float, default=0.0, help="more publishers, if --publishers is 0")
    add("--slow-bytes", type=some, default=2000, help="bytes per second that a slow reader reads")
    add("--stay", type=float, default=0.0, help="seconds for which a stream is held; 0: for ever")
    add("--storm-every", type=more, default=15.0, help="seconds between storms (shape storm)")
    add(
        "--token",
        env_var="GATEWAY_TOKEN",
        default="",
        is_secret=True,
        help="token or API key of publishers, and without --tokens of subscribers",
    )
    add("--tokens", default="", metavar="FILE", help="tokens of subscribers, one a line")
    add("--seed", type=int, default=1, help="of what is chosen by chance")
    add("--settle", type=float, default=30.0, help="seconds to wait for the last events")
