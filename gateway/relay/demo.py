"""The upstream ``demo``: a scripted model inside the worker, for a page to look at without keys.

It is there with ``demo`` on nodes that have no keys, in OpenAI's format to the byte, and is called
through the same code as any other upstream. What it says is about the gateway, chosen by words of
the last message; of that message no more than MAX_QUOTED characters come back.
"""

import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import httpx
import msgspec
import trio

from gateway.config import Config, Format, Upstream
from gateway.relay.upstream import Caller

NAME = "demo"
MODEL = "demo"

TOKENS_PER_SECOND = 25.0
"""As fast as most people read along."""

FIRST_TOKEN_SECONDS = 0.4
"""So that a page has a moment in which nothing has come yet, as with a model."""

MAX_QUOTED = 80
"""Characters."""

UPSTREAM = Upstream(
    NAME,
    "http://demo.invalid/v1",
    Format.OPENAI,
    paths=("POST chat/completions", "GET models"),
    max_streams=100,
    max_streams_per_user=5,
    max_duration=120.0,
    max_tokens=2000,
)

_RESUME = """\
Try it now, while I am still talking: **reload this page**. The text so far is back at once, and \
goes on in the middle of the word where it was, because nothing of it lives in your tab.

What happened: a task of the gateway reads the upstream, and each token is published to a channel \
that keeps all of them. Your browser was told a position with every event. When it comes back it \
shows that position, and gets exactly what it missed, in order, with no gap and nothing twice.

Switch off the network for a while, close the laptop, or restart the proxy in between: it is the \
same."""

_TABS = """\
Open this page in **a second tab**, or on your telephone, while I am writing. The other one \
begins with all the text so far, as one event, and then both of them get every token at the same \
moment.

Any number of viewers may join at any time. The model is asked once, and pays no attention to \
them: a viewer that is slow catches up at its own pace, and holds up neither the model nor \
anybody else.

To let a colleague watch, give him the address of the stream and a token that is granted its \
channel."""

_STOP = """\
Press **stop**, if you have heard enough. That is a request of its own, so it works from any tab, \
any device, and any node of the gateway. The upstream's connection is closed within a second, so \
nobody pays for words that nobody reads, and all viewers are told the same end, with the reason \
`stopped`.

Closing the tab, on the other hand, stops nothing: a lost connection is no wish. Whoever wants it \
otherwise sets `stop_when_unwatched`, and a stream ends that many seconds after its last viewer \
left.

I shall go on for a little, so that there is something to stop. One, two, three, four, five, six, \
seven, eight, nine, ten. You have not pressed it yet? Eleven, twelve, thirteen, fourteen, \
fifteen, sixteen, seventeen, eighteen, nineteen, twenty. Well, then: this was the whole answer."""

_CODE = """\
An application changes one line, the address that its SDK talks to:

```python
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8080/relay/demo", api_key="none")
stream = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "Hello"}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="")
```

It gets the very bytes of the upstream, and beside them a `Location`: the stream that browsers can \
join and come back to. Or let the gateway make the whole call:

```sh
curl http://127.0.0.1:8080/streams -H 'Content-Type: application/json' -d \\
  '{"upstream": "demo", "request": {"messages": [{"role": "user", "content": "Hello"}]}}'
```

The answer names an `url`. Open it as often as you like: `curl -N` shows the events as they come."""

_FAILURE = """\
Things break, and here is who is told what:

- **Your connection**: nobody is told. You come back, and get what you missed.
- **The upstream**: too many requests, and the call is made again within limits, before the first \
token. Anything later ends the stream with one `error` event: a code, a sentence, and whether it \
is worth another try. Neither keys nor addresses nor the upstream's own words are in it.
- **The node**: its lease runs out within seconds, and another node tells all viewers, once, that \
the producer is lost. Nothing is ever left "streaming" for good.

The text is whole up to its end, or it ends with an error that says so. There is no third way."""

_WELCOME = """\
Welcome! I am no model: I am a script inside the gateway, and I take my time on purpose, about \
twenty-five tokens a second, so that there is something to watch. While I am talking, you can

1. **reload the page**: the text is back at once, and goes on where it was;
2. open **a second tab**: it joins in the middle, with everything so far, and both go on \
together;
3. press **stop**, in either of them: both end, with the same last event;
4. pull the plug: switch the network off and on again, and nothing is missing.

All of this works the same with a real upstream, since the gateway does not know that I am none. \
What you see comes through a channel that keeps every token of this answer until tomorrow; the \
page only looks at it.

Ask me about *reload*, *tabs*, *stop*, *errors* or *code*, and I shall tell you more."""

_WORKINGS = """\


---

There is still time to try it, so let me tell you how it works. When you sent your message, the \
page asked the gateway to open a token stream: one POST, answered at once with an id and a \
channel. From then on the page was a viewer like any other. It may come and go; the answer does \
not depend on it.

The gateway calls the upstream, reads its events as they come, and publishes each of them twice: \
as it was, for whoever speaks the vendor's own format, and in a form that is the same for all \
vendors. That is `start`, then `token` after `token`, and in the end `complete` or `error`, which \
is the last event of the channel. After it nothing can be published there any more, whoever \
tries: so the end is told exactly once, even if two nodes believe that it is theirs to tell.

Each event has a position, and all positions of all channels are in one order. A viewer that \
returns says which position it has seen. One that joins late may have everything so far as one \
event, the `snapshot`, and live events from there on. And one that comes tomorrow gets the whole \
answer, as text or as the events that it was made of.

If you have neither reloaded nor stopped me by now, you have missed the best part. Ask me again!"""

_SCRIPTS = (
    ({"reload", "resume", "refresh", "reconnect", "offline", "network"}, _RESUME),
    ({"tab", "tabs", "viewer", "viewers", "share", "join", "watch", "phone"}, _TABS),
    ({"stop", "cancel", "abort", "quit"}, _STOP),
    ({"code", "sdk", "python", "javascript", "curl", "api", "openai"}, _CODE),
    ({"error", "errors", "fail", "failure", "crash", "break", "lost", "node"}, _FAILURE),
)
"""What is said to whom says one of these words; to others _WELCOME."""

_TOKEN = re.compile(r"\s*\S{1,7}")
"""A space and a short word, or a piece of a longer one, as models have them."""

_WORD = re.compile(r"\w+")

_numbers = count(1)


def caller() -> Caller:
    """A new one for a worker."""
    return Caller(UPSTREAM, transport=DemoTransport())


def is_offered(config: Config) -> bool:
    """Whether a node has it: it is open to everybody."""
    return config.demo and not config.has_keys


def answer_to(message: str) -> str:
    """All that is said to a message."""
    words = set(_WORD.findall(message.lower()))
    script = next((text for keys, text in _SCRIPTS if words & keys), _WELCOME)
    quoted = " ".join(message.split())
    if not quoted or script is _WELCOME:
        return script + _WORKINGS
    if len(quoted) > MAX_QUOTED:
        quoted = f"{quoted[:MAX_QUOTED]}…"
    return f"You said “{quoted}”. {script}{_WORKINGS}"


def tokens_of(text: str) -> list[str]:
    """Of what is said here: with a long run of spaces it would take the square of its length."""
    return _TOKEN.findall(text)


class DemoTransport(httpx.AsyncBaseTransport):
    """Answers in this process; time is trio's."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return _json(200, {"object": "list", "data": [_MODEL]})
        try:
            asked = msgspec.json.decode(await request.aread())
            reply = _Reply(asked, tokens_of(answer_to(_last_message(asked))))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return _json(400, {"error": _WRONG})
        if not asked.get("stream"):
            return _json(200, reply.whole())
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        return httpx.Response(200, headers=headers, stream=_Paced(reply.blocks()))


_WRONG = {
    "message": "messages must be a list of objects with content.",
    "type": "invalid_request_error",
    "param": "messages",
    "code": None,
}

_MODEL = {"id": MODEL, "object": "model", "created": 1767225600, "owned_by": "sse-gateway"}


class _Reply:
    """One answer in OpenAI's format."""

    def __init__(self, asked: Mapping[str, Any], tokens: Sequence[str]) -> None:
        self._id = f"chatcmpl-demo{next(_numbers)}"
        self._created = int(time.time())
        self._tokens = tokens
        self._wants_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        prompt = len(_last_message(asked).split())
        self._usage = {
            "prompt_tokens": prompt,
            "completion_tokens": len(tokens),
            "total_tokens": prompt + len(tokens),
        }

    def blocks(self) -> Iterator[bytes]:
        yield self._delta({"role": "assistant", "content": "", "refusal": None})
        for token in self._tokens:
            yield self._delta({"content": token})
        yield self._delta({}, "stop")
        if self._wants_usage:
            yield self._block([], self._usage)
        yield b"data: [DONE]\n\n"

    def whole(self) -> dict[str, object]:
        message = {"role": "assistant", "content": "".join(self._tokens), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage}

    def _delta(self, delta: Mapping[str, object], reason: str | None = None) -> bytes:
        return self._block(
            [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}], None
        )

    def _block(self, choices: Sequence[object], usage: object) -> bytes:
        chunk = {**self._head("chat.completion.chunk"), "choices": choices}
        if self._wants_usage:
            chunk["usage"] = usage
        return b"data: %b\n\n" % msgspec.json.encode(chunk)

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self._id, "object": kind, "created": self._created, "model": MODEL}


class _Paced(httpx.AsyncByteStream):
    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        begin = trio.current_time() + FIRST_TOKEN_SECONDS
        for number, block in enumerate(self._blocks):
            await trio.sleep_until(begin + number / TOKENS_PER_SECOND)
            yield block


def _json(status: int, body: object) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return httpx.Response(status, headers=headers, content=msgspec.json.encode(body))


def _last_message(asked: Mapping[str, Any]) -> str:
    """Its text. Raises LookupError, TypeError or AttributeError where there is none."""
    content = asked["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part.get("type") == "text")
