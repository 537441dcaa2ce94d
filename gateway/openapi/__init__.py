"""The OpenAPI 3.1 description of the interface: what may be asked, how, and what is answered.

It is made once, at the start of a worker, as plain data: from the constants, limits, shapes and
errors that the code itself goes by. Rules:

1. A limit or a list that the code knows is taken from it and not written a second time.
2. What depends on the configuration (limits, keys, the demo page) is described as this node has it.
3. Nothing in it is secret: whoever reaches the node may read it.
"""

from gateway.openapi.document import describe
from gateway.openapi.routes import PATH

__all__ = ["PATH", "describe"]
