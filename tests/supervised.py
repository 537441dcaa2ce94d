"""A node of several workers on the memory bus, each with a hub of its own: what ``gateway serve``
refuses, and all that a supervisor can be tested with.

Arguments: settings as JSON, with constants of the supervisor among them, and the command of a
worker if that is to be another one.
"""

import json
import sys

from gateway import supervisor, worker_process
from gateway.config import Config
from gateway.errors import GatewayError

if __name__ == "__main__":
    settings, *command = sys.argv[1:]
    told = json.loads(settings)
    for name in filter(str.isupper, list(told)):
        setattr(supervisor, name, told.pop(name))
    if command:
        worker_process.COMMAND = tuple(command)  # type: ignore[assignment]
    try:
        supervisor.run(Config(**told))
    except GatewayError as error:
        sys.exit(f"gateway: {error}")
