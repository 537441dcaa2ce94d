"""What comes on a stream: the fields of a block, and what the control events say.

OpenAPI 3.1 has no word for the items of a stream; as tools have it, the schema of
``text/event-stream`` is that of one event.
"""

from gateway import control
from gateway.api.request import JSON
from gateway.openapi.schemas import CHANNEL, COUNT, POSITION, RETRY, Schema, only, record

_CHANNELS: Schema = {"type": "array", "items": CHANNEL}

_TOLD: dict[str, Schema | None] = {
    "closed": {"reason": {"type": "string"}},
    "connected": {
        "clientId": {"type": "string"},
        "serverTime": COUNT | {"description": "Milliseconds since 1970."},
        "keepalive": COUNT
        | {"description": "Milliseconds of silence after which a `keepalive` comes."},
        "channels": _CHANNELS,
    },
    "dropped": {"count": COUNT},
    "gap": {"channels": _CHANNELS, "reason": {"enum": [str(reason) for reason in control.Gap]}},
    "keepalive": None,
    "reconnect": {"reason": {"type": "string"}},
}
"""The members of the data of each control event; None where there is no data."""


_OF_ANNOTATED: Schema = {
    "channel": {
        "type": "string",
        "description": "On an annotated stream: those of its channels through which the event "
        "comes, divided by commas.",
    },
    "at": POSITION
    | {"description": "On an annotated stream: the position of an event that has no `id`."},
}


def block(title: str, event: Schema, data: Schema, *required: str, **more: object) -> Schema:
    properties: Schema = {"id": POSITION, "event": event, "data": data, "retry": RETRY}
    return {
        "title": title,
        "type": "object",
        "properties": properties | more,
        "required": list(required),
    }


def _control(name: str, members: Schema | None) -> Schema:
    if members is None:
        return block(name, only(name), {"type": "string", "maxLength": 0}, "id", "event")
    data: Schema = {"type": "string", "contentMediaType": JSON, "contentSchema": record(members)}
    return block(name, only(name), data, "event", "data")


BLOCK: Schema = {
    "description": "One event of the stream, by its fields.",
    "oneOf": [
        block(
            "published",
            {"type": "string", "not": {"enum": sorted(control.TYPES)}},
            {"type": "string"},
            **_OF_ANNOTATED,
        ),
        *(_control(name, members) for name, members in _TOLD.items()),
    ],
}
