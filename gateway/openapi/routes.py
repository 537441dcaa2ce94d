"""The operations of every route, as a node with this configuration serves them."""

from collections.abc import Sequence

from gateway import metrics
from gateway.api.poll import PATH as POLL
from gateway.api.publish import MAX_LINES
from gateway.api.publish import PATH as PUBLISH
from gateway.api.push import ROUTE as PUSH
from gateway.api.relay import METHODS as RELAYED
from gateway.api.relay import PATH as RELAY
from gateway.api.request import EVENT_STREAM, JSON, NDJSON
from gateway.api.streams import PATH as STREAMS
from gateway.api.subscribe import PATH as EVENTS
from gateway.config import Config
from gateway.errors import (
    BadGateway,
    ChannelEnded,
    Conflict,
    Forbidden,
    GatewayError,
    GatewayTimeout,
    NotFound,
    TooManyRequests,
    UnsupportedMediaType,
)
from gateway.openapi import parameters as takes
from gateway.openapi import security
from gateway.openapi.responses import TEXT, header, responses, stream, text, told
from gateway.openapi.schemas import Schema, only, ref

PATH = "/openapi.json"
"""Of the description itself."""

STREAMING, PUBLISHING, TOKEN_STREAMS = "Streaming", "Publishing", "Token streams"
ADMINISTRATION, OPERATION = "Administration", "Operation"

TAGS = {
    STREAMING: "Getting events.",
    PUBLISHING: "Sending events.",
    TOKEN_STREAMS: "What a model says, made by the gateway or pushed, for any number of viewers.",
    ADMINISTRATION: "Clients, users and channels, at whichever node they are.",
    OPERATION: "The nodes themselves.",
}

_NOT_STORED = header("Cache-Control", only("no-store"))
_EVENTS_OF_TOKEN_STREAM: Schema = {"anyOf": [ref("TokenStreamEvent"), ref("StreamEvent")]}


class Routes:
    """``paths``, from `all`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._guarded = security.required(config)

    def all(self) -> Schema:
        return {
            **self._streaming(),
            **self._publishing(),
            **self._token_streams(),
            **self._pushing(),
            **self._relaying(),
            **self._clients(),
            **self._node(),
            **self._pages(),
        }

    def _operation(
        self,
        name: str,
        tag: str,
        summary: str,
        given: dict[int, Schema],
        *errors: type[GatewayError],
        parameters: Sequence[Schema] = (),
        guard: list[Schema] | None = None,
        **more: object,
    ) -> Schema:
        """``given`` are the responses that are no refusal. ``guard`` is who may ask: whoever shows
        a token, unless it says otherwise."""
        guard = self._guarded if guard is None else guard
        return {
            "operationId": name,
            "tags": [tag],
            "summary": summary,
            "parameters": [*parameters, takes.REQUEST_ID],
            "security": guard,
            **more,
            "responses": responses(given, *errors, guarded=bool(guard)),
        }

    def _streaming(self) -> Schema:
        where = takes.where(self._config)
        below = [takes.CHANNEL_TO_READ, *where]
        of_stream = [takes.ANNOTATE, takes.VIEW_OF_STREAMS]
        of_poll = [takes.WAIT, takes.VIEW_OF_STREAMS]
        return {
            EVENTS: {
                "get": self._events("openStream", [*where, *of_stream]),
                "post": self._events_of_body(),
            },
            f"{EVENTS}/{{channel}}": {
                "get": self._events("openStreamOfChannel", [*below, *of_stream])
            },
            POLL: {"get": self._poll("poll", [*where, *of_poll])},
            f"{POLL}/{{channel}}": {"get": self._poll("pollChannel", [*below, *of_poll])},
        }

    def _events(self, name: str, parameters: list[Schema]) -> Schema:
        return self._operation(
            name,
            STREAMING,
            "Open a stream",
            {
                200: stream("Events as they come, without end; or such a refusal."),
                204: {"description": "The stream has ended for good; an EventSource stays away."},
            },
            NotFound,
            TooManyRequests,
            parameters=parameters,
            guard=security.to_subscribe(self._config),
            description="At least one channel or a user is named. A refusal that is worth a retry "
            "is, to whoever accepts `text/event-stream`, a stream that says `reconnect` and ends: "
            "any status but 200 ends an EventSource for good.",
        )

    def _events_of_body(self) -> Schema:
        location: Schema = {
            "Content-Location": {
                "schema": {"type": "string", "format": "uri-reference"},
                "description": "Where GET opens the same stream, relative to the URL of the "
                f"request, unless that is longer than may be: {self._config.max_url_bytes} bytes.",
            }
        }
        return self._operation(
            "openStreamOfBody",
            STREAMING,
            "Open a stream of more channels than a URL can name",
            {
                200: stream("As with GET.", location),
                204: {"description": "As with GET."},
            },
            Forbidden,
            NotFound,
            UnsupportedMediaType,
            TooManyRequests,
            parameters=[takes.LAST_EVENT_ID],
            requestBody={"required": True, "content": {JSON: {"schema": ref("StreamAsked")}}},
            guard=security.to_subscribe(self._config),
            description="Refused as with GET. To come back, ask with GET at `Content-Location`.",
        )

    def _poll(self, name: str, parameters: list[Schema]) -> Schema:
        return self._operation(
            name,
            STREAMING,
            "Wait for events",
            {
                200: told("What came within `wait`, or nothing.", "Polled")
                | {"headers": header("Cache-Control", only("no-store"))}
            },
            NotFound,
            TooManyRequests,
            parameters=parameters,
            guard=security.to_subscribe(self._config),
            description="At least one channel or a user is named. Ask again with the `lastEventId` "
            "of the answer, until that ends in `.closed`.",
        )

    def _publishing(self) -> Schema:
        taken = told("The event is taken.", "Published")
        lines = text(
            "For each line that is not blank one of the answer, with `id`; or with `line`, "
            "`status`, `detail` and what else a problem document would say.",
            NDJSON,
        )
        most = {"type": "string", "description": f"An Event a line, in at most {MAX_LINES} lines."}
        one = self._operation(
            "publish",
            PUBLISHING,
            "Publish an event, or one a line",
            {200: lines, 202: taken},
            Forbidden,
            ChannelEnded,
            UnsupportedMediaType,
            TooManyRequests,
            requestBody={
                "required": True,
                "content": {JSON: {"schema": ref("Event")}, NDJSON: {"schema": most}},
            },
            parameters=takes.TRACE,
        )
        raw = self._operation(
            "publishRaw",
            PUBLISHING,
            "Publish an event whose data is the body",
            {202: taken},
            Forbidden,
            ChannelEnded,
            TooManyRequests,
            parameters=[takes.CHANNEL_TO_WRITE, *takes.OF_EVENT, *takes.TRACE],
            requestBody={
                "description": "Text in UTF-8, of whatever media type.",
                "content": {"text/plain": TEXT, "*/*": {}},
            },
        )
        return {PUBLISH: {"post": one}, f"{PUBLISH}/{{channel}}": {"post": raw}}

    def _token_streams(self) -> Schema:
        named = {
            "Stream-Id": {"schema": {"type": "string"}, "description": "Of the token stream."},
            "Stream-Channel": {"schema": {"type": "string"}, "description": "Its channel."},
        }
        location: Schema = {
            "Content-Location": {
                "schema": {"type": "string", "format": "uri-reference"},
                "description": "Where GET resumes it, relative to the URL of the request.",
            }
        }
        begun = told("It is being made.", "TokenStreamBegun")
        begin = self._operation(
            "beginTokenStream",
            TOKEN_STREAMS,
            "Begin a token stream",
            {
                200: stream("It itself, from its first event on.", named | location)
                | {"content": {EVENT_STREAM: {"schema": _EVENTS_OF_TOKEN_STREAM}}},
                201: begun
                | {"headers": named | header("Location", {"type": "string"}) | _NOT_STORED},
            },
            Forbidden,
            Conflict,
            UnsupportedMediaType,
            TooManyRequests,
            requestBody={"required": True, "content": {JSON: {"schema": ref("TokenStreamAsked")}}},
            description="200 where the request accepts `text/event-stream`. Nobody needs to be "
            "there for it to be made: its viewers come and go.",
        )
        show = self._operation(
            "tokenStream",
            TOKEN_STREAMS,
            "What has come of a token stream",
            {
                200: told("So far, or in the end.", "TokenStream")
                | {"headers": header("Cache-Control", only("no-store"))}
            },
            NotFound,
            parameters=(takes.TOKEN_STREAM,),
            guard=security.to_subscribe(self._config),
        )
        stop = self._operation(
            "stopTokenStream",
            TOKEN_STREAMS,
            "Stop a token stream",
            {200: told("It has ended, by this or before.", "TokenStreamStopped")},
            Forbidden,
            NotFound,
            parameters=(takes.TOKEN_STREAM,),
        )
        return {STREAMS: {"post": begin}, f"{STREAMS}/{{id}}": {"get": show, "delete": stop}}

    def _pushing(self) -> Schema:
        lines: Schema = {
            "type": "string",
            "description": '`{"text": "..."}` a line, or `{"event": "...", "data": ...}`.',
        }
        post = self._operation(
            "push",
            TOKEN_STREAMS,
            "Push lines into a token stream",
            {200: told("All of the body has been published.", "Pushed")},
            Forbidden,
            NotFound,
            Conflict,
            parameters=(takes.TOKEN_STREAM, *takes.OF_LINES),
            requestBody={"required": False, "content": {NDJSON: {"schema": lines}, "*/*": {}}},
            description="The body is taken as it comes, however long that takes. A refusal says in "
            "`next` which line is expected, and a line that is malformed is named in `line`.",
        )
        return {PUSH.replace("<id>", "{id}"): {"post": post}}

    def _relaying(self) -> Schema:
        return {
            f"{RELAY}/{{upstream}}": {"post": self._relay("relay", takes.UPSTREAM)},
            f"{RELAY}/{{upstream}}/{{path}}": {
                method.lower(): self._relay(
                    f"relay{method.title()}", takes.UPSTREAM, takes.PATH_OF_UPSTREAM
                )
                for method in RELAYED
            },
        }

    def _relay(self, name: str, *parameters: Schema) -> Schema:
        where_to_join: Schema = {
            "Location": {
                "schema": {"type": "string", "format": "uri-reference"},
                "description": "Of an event stream that was POSTed for: where viewers join it.",
            },
            "Stream-Id": {"schema": {"type": "string"}, "description": "The same, its id."},
            "Stream-Channel": {"schema": {"type": "string"}, "description": "And its channel."},
        }
        passed: Schema = {
            "description": "The upstream's answer to the byte, as is any other status of its.",
            "content": {EVENT_STREAM: TEXT, "*/*": {}},
            "headers": where_to_join,
        }
        return self._operation(
            name,
            TOKEN_STREAMS,
            "Ask an upstream",
            {200: passed},
            Forbidden,
            NotFound,
            TooManyRequests,
            BadGateway,
            GatewayTimeout,
            parameters=parameters,
            description="For the vendors' own clients, with no change but of the base URL and the "
            "key, which is the gateway's and may also come as `x-api-key`. What may be asked is "
            "listed in the configuration.",
        )

    def _clients(self) -> Schema:
        channels = told("The client's channels, and from where on it has them.", "Channels")
        closed = told("How many streams were ended.", "Closed")
        of_client = (takes.CLIENT, takes.CHANNEL_OF_CLIENT)
        return {
            "/clients/{client}/channels/{channel}": {
                "put": self._operation(
                    "addChannel",
                    ADMINISTRATION,
                    "Add a channel to a stream",
                    {200: channels},
                    Forbidden,
                    NotFound,
                    ChannelEnded,
                    parameters=(*of_client, takes.SINCE),
                ),
                "delete": self._operation(
                    "removeChannel",
                    ADMINISTRATION,
                    "Take a channel from a stream",
                    {200: channels},
                    Forbidden,
                    NotFound,
                    parameters=of_client,
                    description="What waits for the client may still come.",
                ),
            },
            "/clients": {
                "get": self._operation(
                    "clients",
                    ADMINISTRATION,
                    "Clients, the slowest first",
                    {200: told("Of all nodes; `matched` counts all that fit.", "Clients")},
                    parameters=takes.WHICH_CLIENTS,
                )
            },
            "/clients/{client}": {
                "get": self._operation(
                    "client",
                    ADMINISTRATION,
                    "What is known of a stream",
                    {200: told("As its worker has it.", "ClientDetail")},
                    NotFound,
                    parameters=(takes.CLIENT,),
                    description="For its own user, too.",
                ),
                "delete": self._operation(
                    "closeClient",
                    ADMINISTRATION,
                    "End a stream for good",
                    {200: closed},
                    Forbidden,
                    NotFound,
                    parameters=(takes.CLIENT,),
                ),
            },
            "/clients/{client}/token": {
                "put": self._operation(
                    "renewToken",
                    ADMINISTRATION,
                    "Give a stream the token of this request",
                    {200: told("Until when it has that, in seconds since 1970.", "Renewed")},
                    Forbidden,
                    NotFound,
                    parameters=(takes.CLIENT,),
                    description="For its own user. Channels that the token does not grant are "
                    "taken away.",
                )
            },
            "/users/{user}": {
                "delete": self._operation(
                    "closeUser",
                    ADMINISTRATION,
                    "End all streams of a user for good",
                    {200: told("How many streams were ended.", "Closed", "Revoked")},
                    Forbidden,
                    parameters=(takes.OF_USER, takes.REVOKE, takes.EXPIRES),
                )
            },
            "/tokens/{token_id}": {
                "delete": self._operation(
                    "revokeToken",
                    ADMINISTRATION,
                    "Revoke a token, and end its streams for good",
                    {200: told("How many streams were ended.", "Revoked")},
                    Forbidden,
                    parameters=(takes.TOKEN_ID, takes.EXPIRES),
                )
            },
            "/channels/{channel}": {
                "get": self._operation(
                    "channel",
                    ADMINISTRATION,
                    "A channel's clients and last event",
                    {200: told("Nobody there is no error.", "Channel")},
                    parameters=(takes.CHANNEL_TO_COUNT,),
                )
            },
        }

    def _node(self) -> Schema:
        prometheus = text("Prometheus text.", metrics.MEDIA_TYPE)
        conditional = (takes.IF_NONE_MATCH,)
        tagged = header("ETag", {"type": "string"}) | header("Cache-Control", only("no-cache"))
        return {
            "/stats": {
                "get": self._operation(
                    "stats", OPERATION, "Counts", {200: told("Of all nodes.", "Statistics")}
                )
            },
            "/nodes/{id}/drain": {
                "post": self._operation(
                    "drain",
                    OPERATION,
                    "Have a node leave",
                    {202: told("It leaves, as on SIGTERM, or does so already.", "Leaving")},
                    Forbidden,
                    NotFound,
                    parameters=(takes.NODE,),
                )
            },
            "/metrics": {
                "get": self._operation("metrics", OPERATION, "Metrics", {200: prometheus})
            },
            "/healthz": {"get": self._open("health", "Whether the process answers", "ok")},
            "/readyz": {"get": self._open("readiness", "Whether to send clients here", "ready")},
            PATH: {
                "get": self._operation(
                    "description",
                    OPERATION,
                    "This description",
                    {
                        200: {
                            "description": "As this node serves it.",
                            "content": {JSON: {"schema": {"type": "object"}}},
                            "headers": tagged,
                        },
                        304: {"description": "It is the one that is known.", "headers": tagged},
                    },
                    parameters=conditional,
                    guard=[],
                )
            },
        }

    def _open(self, name: str, summary: str, status: str) -> Schema:
        """An operation for whoever watches the node, which says ``status`` and no counts."""
        schema = {
            "type": "object",
            "properties": {"status": only(status)},
            "required": ["status"],
        }
        told: Schema = {"description": "Yes.", "content": {JSON: {"schema": schema}}}
        return self._operation(name, OPERATION, summary, {200: told}, guard=[])

    def _pages(self) -> Schema:
        pages = {
            "/": ("demo", "The demo page", self._config.demo),
            "/chat": ("chat", "The chat page of the demo", self._config.demo),
            "/ops": ("ops", "The page for operators", self._config.ops),
        }
        html = text("HTML.", "text/html; charset=utf-8")
        return {
            path: {"get": self._operation(name, OPERATION, summary, {200: html}, guard=[])}
            for path, (name, summary, is_served) in pages.items()
            if is_served
        }
