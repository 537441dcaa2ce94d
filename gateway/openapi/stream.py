"""What comes on a stream: the fields of a block, and what the control events say.

OpenAPI 3.1 has no word for the items of a stream; as tools have it, the schema of
``text/event-stream`` is that of one event.
"""

from gateway import control
from gateway.api.request import JSON
from gateway.openapi.schemas import CHANNEL, COUNT, POSITION, RETRY, Schema, record

_CHANNELS: Schema = {"type": "array", "items": CHANNEL}

_TOLD: dict[str, Schema] = {
    "connected": {
        "clientId": {"type": "string"},
        "serverTime": COUNT | {"description": "Milliseconds since 1970."},
        "channels": _CHANNELS,
    },
    "dropped": {"count": COUNT},
    "gap": {"channels": _CHANNELS, "reason": {"enum": [str(reason) for reason in control.Gap]}},
    "reconnect": {"reason": {"type": "string"}},
}
"""The members of the data of each control event, but for ``keepalive``, which has none."""

BLOCK: Schema = {
    "description": "One event of the stream, by its fields. The events "
    f"{', '.join(sorted(control.TYPES))} are the gateway's own.",
    "type": "object",
    "properties": {
        "id": POSITION,
        "event": {"type": "string"},
        "data": {"type": "string"},
        "retry": RETRY,
    },
    "allOf": [
        {
            "if": {"properties": {"event": {"const": event}}, "required": ["event"]},
            "then": {
                "properties": {
                    "data": {"contentMediaType": JSON, "contentSchema": record(members)}
                },
                "required": ["data"],
            },
        }
        for event, members in _TOLD.items()
    ],
}
