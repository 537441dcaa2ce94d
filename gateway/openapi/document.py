"""The document: its parts put together."""

from gateway import __version__
from gateway.config import Config
from gateway.openapi import security, token_streams
from gateway.openapi.responses import described_errors
from gateway.openapi.routes import TAGS, Routes
from gateway.openapi.schemas import Schema, schemas
from gateway.openapi.stream import BLOCK

_DESCRIPTION = """\
Events over Server-Sent Events, in the one order of all, with what was missed.

A channel in a path may hold slashes as they are. `HEAD` goes wherever `GET` does, but for streams
and polls. A refusal is a problem document whose `detail` says what would be right; 405 names in
`Allow` the methods of a route."""


def describe(config: Config) -> Schema:
    """What a node with this configuration serves."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sse-gateway",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": said} for name, said in TAGS.items()],
        "paths": Routes(config).all(),
        "components": {
            "schemas": schemas(config)
            | {"StreamEvent": BLOCK}
            | token_streams.SCHEMAS
            | {"TokenStreamEvent": token_streams.EVENT},
            "responses": described_errors(),
            "securitySchemes": security.schemes(config),
        },
    }
