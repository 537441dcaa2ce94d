"""How a token is shown, on a node that has keys."""

from gateway.api.credentials import QUERY_FIELD
from gateway.config import Config
from gateway.openapi.schemas import Schema

_BEARER, _COOKIE, _QUERY = "bearer", "cookie", "query"


def schemes(config: Config) -> Schema:
    """``components.securitySchemes``, in the order in which they are looked at."""
    if not config.has_keys:
        return {}
    found: Schema = {
        _BEARER: {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "A JSON Web Token; or an API key, which goes nowhere else.",
        }
    }
    if config.token_cookie:
        found[_COOKIE] = {"type": "apiKey", "in": "cookie", "name": config.token_cookie}
    found[_QUERY] = {
        "type": "apiKey",
        "in": "query",
        "name": QUERY_FIELD,
        "description": "For an EventSource of another origin.",
    }
    return found


def required(config: Config) -> list[Schema]:
    """Any one of them."""
    return [{name: []} for name in schemes(config)]


def to_subscribe(config: Config) -> list[Schema]:
    """Any one of them, or none where public channels are open to anybody."""
    found = required(config)
    return [*found, {}] if found and config.anonymous else found
