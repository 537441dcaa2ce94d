"""The routes, each a thin caller of the api. Streams take the response lane here."""

import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace
from typing import Any

import msgspec
import trio
from quart import Request as QuartRequest
from quart import Response, g, request
from quart.globals import request_ctx
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, InternalServerError
from werkzeug.routing import BaseConverter

from gateway import openapi
from gateway.api import admin, clients, streams, tokens
from gateway.api.commands import serve_cluster
from gateway.api.cors import cors_headers, options
from gateway.api.csrf import check_page
from gateway.api.listing import serve_listing
from gateway.api.poll import poll
from gateway.api.publish import publish
from gateway.api.push import ROUTE as PUSH
from gateway.api.push import Whole, push
from gateway.api.refusals import is_refusal, told
from gateway.api.relay import METHODS as RELAYED
from gateway.api.relay import PATH as RELAY
from gateway.api.relay import ROUTE as RELAY_TO
from gateway.api.relay import forward, headers_of, may_be_sent
from gateway.api.request import NOT_STORED, Answer, Request, parse_target, problem
from gateway.api.subscribe import STREAM_HEADERS, head_of, subscribe
from gateway.edge.pages import PUBLIC, add_pages, is_asset
from gateway.edge.serve import ANSWERED, Connection
from gateway.errors import GatewayError, MethodNotAllowed, NotFound
from gateway.http1_render import STRICT_HEADERS
from gateway.node import Node
from gateway.relay.events import Failure
from gateway.relay.proxy import Passage
from gateway.request_id import HEADER as REQUEST_ID
from gateway.request_id import NAME
from gateway.requests import ASSETS, OTHER, PUBLISH_TO
from gateway.streams import EventStream

ROUTES = {
    "/": "/",
    "/chat": "/chat",
    "/ops": "/ops",
    "/events": "/events",
    "/events/<rest:channel>": "/events",
    "/poll": "/poll",
    "/poll/<rest:channel>": "/poll",
    "/publish": "/publish",
    "/publish/<rest:channel>": PUBLISH_TO,
    "/clients": "/clients",
    "/clients/<client>": "/clients/<id>",
    "/clients/<client>/channels/<rest:channel>": "/clients/<id>/channels/<channel>",
    "/clients/<client>/token": "/clients/<id>/token",
    "/tokens/<rest:token_id>": "/tokens/<jti>",
    "/users/<rest:user>": "/users/<id>",
    "/channels/<rest:channel>": "/channels/<channel>",
    "/nodes/<rest:id>/drain": "/nodes/<id>/drain",
    "/relay/<upstream>": RELAY_TO,
    "/relay/<upstream>/<rest:path>": RELAY_TO,
    "/streams": "/streams",
    "/streams/<id>": "/streams/<id>",
    PUSH: PUSH,
    "/stats": "/stats",
    "/metrics": "/metrics",
    "/healthz": "/healthz",
    "/readyz": "/readyz",
    openapi.PATH: openapi.PATH,
}
"""As what requests count whose route has that rule."""

_PASSED_ON = "passed_on"
"""In ``g``: the answer is not the node's own, whatever its status."""

_log = logging.getLogger(__name__)


class _Rest(BaseConverter):
    """Whatever is left of the path: channel names may hold slashes anywhere."""

    regex = "(?s:.*)"  # empty names and line breaks too: the api says what is wrong with them
    part_isolating = False


class App(QuartTrio):
    """With one line of ours for a fault of ours, which quart would have a sentence for that no two
    paths share."""

    def __init__(self, node: Node) -> None:
        super().__init__("gateway", static_folder=None)
        self._node = node

    def log_exception(self, exception_info: Any) -> None:
        g.request_id = self._node.request_ids.of(_header(NAME)).encode()
        told = _about() | {"request": g.request_id.decode()}
        _log.error("a request failed", told, exc_info=exception_info)


def make_app(node: Node) -> QuartTrio:
    """The edge of ``node``."""
    app = _bare_app(node)
    _add_hot_routes(app, node)
    _add_admin_routes(app, node)
    _add_probes(app, node)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return _response(await admin.metrics(node, await _request()))

    _add_description(app, node)
    serve_cluster(node)
    serve_listing(node)
    add_pages(app, node)
    return app


def make_admin_app(node: Node) -> QuartTrio:
    """What the listener of ``admin_bind`` serves, to everybody who reaches it."""
    app = _bare_app(node)
    _add_probes(app, node)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return _response(await admin.open_metrics(node))

    return app


def _bare_app(node: Node) -> QuartTrio:
    """Without routes; what it refuses it refuses as the api does."""
    app = App(node)
    app.asgi_http_class = Connection
    app.url_map.converters["rest"] = _Rest
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = node.config.max_body_bytes
    app.register_error_handler(HTTPException, _http_error)

    @app.before_request
    async def look() -> Response | None:
        if request.scope["path"].startswith("//"):  # also as /%2F: the router would take it for one
            raise NotFound(f"There is nothing at {request.path}.")
        if request.method == "OPTIONS":
            assert request_ctx.url_adapter is not None  # as there is a request
            methods = _methods(request_ctx.url_adapter.allowed_methods())
            if not methods:
                raise NotFound(f"There is nothing at {request.path}.")
            max_age = node.config.cors_max_age
            more = may_be_sent if request.path.startswith(f"{RELAY}/") else None
            return _response(options(node.origins, max_age, methods, _header, more))
        check_page(node, request.method, _header)
        return None

    @app.after_request
    async def complete(response: Response) -> Response:
        if g.get(_PASSED_ON):
            return _completed(node, response)
        if response.status_code >= 400:
            node.count_refusal(response.status_code)
        answer = Answer(response.status_code, why=g.get("why", ""))
        if is_refusal(answer):
            for name, value in told(node, answer, _request_id_header, _about).headers:
                response.headers[name.decode()] = value.decode()
        response.headers.setdefault(NOT_STORED[0].decode(), NOT_STORED[1].decode())
        return _completed(node, response)

    app.register_error_handler(GatewayError, _refused)

    def count(asked: QuartRequest, status: int, seconds: float) -> None:
        rule = asked.url_rule.rule if asked.url_rule is not None else ""
        otherwise = ASSETS if is_asset(rule) else OTHER
        node.requests.observe(ROUTES.get(rule, otherwise), status, seconds)

    app.extensions[ANSWERED] = count
    return app


def _add_hot_routes(app: QuartTrio, node: Node) -> None:
    """The front serves these over HTTP/1.1; here they are for HTTP/1.0."""

    @app.get("/events")
    @app.post("/events")
    @app.get("/events/<rest:channel>")
    async def events(channel: str = "") -> Response:
        let_go_of_body = request.scope["state"]["let_go_of_body"]
        return _streamed(
            node, await subscribe(node, await _request(), let_go_of_body=let_go_of_body)
        )

    @app.post("/streams")
    async def create_token_stream() -> Response:
        return _streamed(node, await streams.create(node, await _request()))

    @app.post("/relay/<upstream>")
    @app.route("/relay/<upstream>/<rest:path>", methods=RELAYED)
    async def relay(upstream: str, path: str = "") -> Response:
        query = request.query_string.decode("latin-1")
        headers = [(name.lower(), value) for name, value in request.headers.items()]
        answered = await forward(node, await _request(), query, headers)
        return _response(answered) if isinstance(answered, Answer) else _passed_on(answered)

    @app.get("/poll")
    @app.get("/poll/<rest:channel>")
    async def poll_events(channel: str = "") -> Response:
        return _response(await poll(node, await _request(), trio.CancelScope()))

    @app.post("/publish")
    @app.post("/publish/<rest:channel>")
    async def publish_events(channel: str = "") -> Response:
        return _response(await publish(node, await _request()))

    @app.post(PUSH)
    async def push_events(id: str) -> Response:
        asked = await _request()
        return _response(await push(node, asked, Whole(asked.body)))


def _add_admin_routes(app: QuartTrio, node: Node) -> None:
    @app.put("/clients/<client>/channels/<rest:channel>")
    async def add_channel(client: str, channel: str) -> Response:
        return _response(await clients.add_channel(node, await _request(), client, channel))

    @app.delete("/clients/<client>/channels/<rest:channel>")
    async def remove_channel(client: str, channel: str) -> Response:
        return _response(await clients.remove_channel(node, await _request(), client, channel))

    @app.put("/clients/<client>/token")
    async def renew_token(client: str) -> Response:
        return _response(await clients.renew_token(node, await _request(), client))

    @app.delete("/tokens/<rest:token_id>")
    async def revoke_token(token_id: str) -> Response:
        return _response(await tokens.revoke_token(node, await _request(), token_id))

    @app.get("/clients")
    async def list_clients() -> Response:
        return _response(await clients.list_clients(node, await _request()))

    @app.get("/clients/<client>")
    async def show_client(client: str) -> Response:
        return _response(await clients.show_client(node, await _request(), client))

    @app.delete("/clients/<client>")
    async def close_client(client: str) -> Response:
        return _response(await clients.close_client(node, await _request(), client))

    @app.delete("/users/<rest:user>")
    async def close_user(user: str) -> Response:
        return _response(await clients.close_user(node, await _request(), user))

    @app.get("/channels/<rest:channel>")
    async def channel(channel: str) -> Response:
        return _response(await admin.channel(node, await _request(), channel))

    @app.post("/nodes/<rest:id>/drain")
    async def drain(id: str) -> Response:
        return _response(await admin.drain(node, await _request(), id))

    @app.get("/streams/<id>")
    async def show_token_stream(id: str) -> Response:
        return _response(await streams.show(node, await _request(), id))

    @app.delete("/streams/<id>")
    async def stop_token_stream(id: str) -> Response:
        return _response(await streams.stop(node, await _request(), id))

    @app.get("/stats")
    async def stats() -> Response:
        return _response(await admin.stats(node, await _request()))


def _add_probes(app: QuartTrio, node: Node) -> None:
    @app.get("/healthz")
    async def health() -> Response:
        return _response(await admin.health(node))

    @app.get("/readyz")
    async def readiness() -> Response:
        return _response(await admin.readiness(node))


def _add_description(app: QuartTrio, node: Node) -> None:
    document = msgspec.json.encode(openapi.describe(node.config)) + b"\n"
    tag = hashlib.sha256(document).hexdigest()
    headers = ((b"ETag", f'"{tag}"'.encode()), (b"Cache-Control", b"no-cache"))
    whole = Answer(200, document, headers=headers)
    same = Answer(304, headers=headers)

    @app.get(openapi.PATH)
    async def description() -> Response:
        return _response(same if request.if_none_match.contains_weak(tag) else whole)


def _streamed(node: Node, result: Answer | EventStream) -> Response:
    if isinstance(result, Answer):
        return _response(result)
    request_id = node.request_ids.of(_header(NAME))
    response = Response(node.streams.body(replace(result, request=request_id)))
    headers = (*STREAM_HEADERS, *head_of(result), (REQUEST_ID, request_id.encode()))
    for name, value in headers:
        response.headers[name.decode()] = value.decode()
    response.timeout = None  # quart ends a response after 60 s otherwise
    return response


def _completed(node: Node, response: Response) -> Response:
    for name, value in STRICT_HEADERS:
        response.headers.setdefault(name.decode(), value.decode())
    if node.origins and not g.get(PUBLIC):
        for name, value in cors_headers(node.origins, _header(b"origin")):
            response.headers.add(name.decode(), value.decode("latin-1"))
    return response


def _passed_on(passage: Passage) -> Response:
    """An upstream's answer, whose refusals are not the node's."""
    state = request.scope["state"]
    state["held"].push_async_callback(passage.aclose)
    state["let_go_of_body"]()
    setattr(g, _PASSED_ON, True)
    response = Response(_pieces(passage, state["reset"]), passage.status)
    del response.headers["Content-Type"]
    for name, value in headers_of(passage):
        response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    response.timeout = None
    return response


async def _pieces(passage: Passage, reset: Callable[[], None]) -> AsyncGenerator[bytes, None]:
    """The answer's body; where that ends before its end the connection is reset, since over
    HTTP/1.0 nothing else says so."""
    try:
        while data := await passage.receive():
            yield data
    except Failure:
        reset()


async def _request() -> Request:
    target = request.scope["raw_path"] + b"?" + request.query_string
    body: bytes = await request.get_data(  # type: ignore[assignment]  # not text
        cache=False, as_text=False
    )
    peer: str = request.scope["state"]["peer"]
    return Request(request.method, *parse_target(target), _header, body, peer)


def _request_id_header(name: bytes) -> bytes | None:
    """The id of the request, made if need be: it is asked for more than once."""
    return g.get("request_id") or _header(name)


def _about() -> dict[str, object]:
    """What a line of the log says of the request, without its query, in which a token may be."""
    peer = request.scope["state"]["peer"]
    return {"method": request.method, "path": request.path, "peer": peer}


def _header(name: bytes) -> bytes | None:
    value = request.headers.get(name.decode())
    return value.encode("latin-1") if value is not None else None


def _methods(found: Iterable[str]) -> set[str]:
    """What the path of the request really has, of what the router has found."""
    methods = set(found)
    if request.path.partition("/")[2].partition("/")[0] in ("events", "poll"):
        methods -= {"HEAD"}  # which werkzeug adds to every GET
    return methods


def _response(answer: Answer) -> Response:
    g.why = answer.why
    response = Response(answer.body, answer.status, content_type=answer.media_type)
    if answer.status in (204, 304):
        del response.headers["Content-Type"]
        del response.headers["Content-Length"]  # RFC 9110 8.6
    for name, value in answer.headers:
        response.headers[name.decode()] = value.decode()
    return response


async def _refused(error: GatewayError) -> Response:
    return _response(problem(error))


async def _http_error(error: HTTPException) -> Response:
    """Quart's own refusals, as problem documents like all others."""
    if error.code == 404:
        return _response(problem(NotFound(f"There is nothing at {request.path}.")))
    if error.code == 405:
        allowed = ", ".join(sorted(_methods(getattr(error, "valid_methods", None) or ())))
        said = f"{request.method} is not for {request.path}; use {allowed}."
        return _response(problem(MethodNotAllowed(said, allow=allowed)))
    if isinstance(error, InternalServerError):
        return _response(problem(GatewayError("The gateway failed at this; it has been logged.")))
    return _response(problem(_other(error)))


def _other(error: HTTPException) -> GatewayError:
    """Any other refusal of the framework's, with its own status."""
    known = type("HTTPError", (GatewayError,), {"status": error.code, "title": error.name})
    refusal: GatewayError = known(error.description or error.name)
    return refusal
