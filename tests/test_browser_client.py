"""The client for browsers, in a real one, against real nodes and the proxies between them.

What takes time is told to the page's clock (playwright's), or is configured to be short.
"""

import json
import signal
from pathlib import Path
from typing import Any

from bad_proxies import bad_proxy_to
from chromium import Chromium, Tab, chromium
from process import child, eventually, node
from proxy import proxy_to
from redis_server import free_port
from test_pages import pages
from tokens import SECRET, seconds, token

FOLLOW = """async ([url, options]) => {
  const { connect } = await import(new URL("/client.js", url));
  const followed = { heard: [], told: [] };
  const tokens = options.tokens;
  if (tokens) options.token = async () => (tokens.length > 1 ? tokens.shift() : tokens[0]);
  delete options.tokens;
  const common = { url: new URL("/events", url), channels: ["a"], minDelay: 20, maxDelay: 200 };
  const stream = connect({ ...common, ...options });
  for (const name of ["open", "gap", "dropped", "reconnecting", "end"]) {
    stream.when(name, (told) => followed.told.push([name, told]));
  }
  stream.when("error", (error) => followed.told.push(["error", error.message]));
  stream.on("*", (event) => followed.heard.push(event.data));
  Object.assign(window, followed, { stream });
}"""


class Followed:
    """A tab whose page follows a stream; and what it has heard and was told."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab

    async def heard(self, count: int) -> list[str]:
        """All data so far, once there is so much."""
        await self.tab.until_true("(count) => heard.length >= count", count)
        return list(await self.tab.run("() => heard"))

    async def told(self, name: str, count: int = 1) -> list[Any]:
        """All that was told by that name, once there is so much."""
        script = "([name, count]) => told.filter(([which]) => which === name).length >= count"
        await self.tab.until_true(script, [name, count])
        told = await self.tab.run("() => told")
        return [detail for which, detail in told if which == name]

    async def until(self, status: str, transport: str = "stream") -> None:
        script = "(is) => [stream.state.status, stream.state.transport].join() === is"
        await self.tab.until_true(script, f"{status},{transport}")


async def follow(browser: Chromium, url: str, page: str = "", **options: Any) -> Followed:
    """A stream of ``url``, in a page of it or of another one."""
    tab = await browser.tab(page or url)
    await tab.run(FOLLOW, [url, options])
    return Followed(tab)


def numbers(start: int, stop: int) -> list[str]:
    return [str(number) for number in range(start, stop)]


async def test_nothing_is_lost_or_doubled_however_often_the_link_is_cut() -> None:
    async with (
        node("--retry", "0.1", "--keepalive", "0.7") as n,
        proxy_to(n) as proxy,
        chromium() as browser,
    ):
        page = await follow(browser, proxy.url, channels=["a", "b"])
        for turn in range(6):
            await page.told("open", turn + 1)
            await n.publish("ab"[turn % 2], *numbers(100 * turn, 100 * turn + 50))
            proxy.cut()
            await n.publish("ab"[turn % 2], *numbers(100 * turn + 50, 100 * turn + 100))
            proxy.let_through()
        assert await page.heard(600) == numbers(0, 600)
        assert len(await page.told("reconnecting")) >= 6
        # A channel is added and cut off in the midst of what it had missed.
        await n.publish("c", *numbers(0, 900))
        script = "() => { stream.subscribe('c', { since: 'earliest' }); heard.length = 0; }"
        await page.tab.run(script)
        await page.heard(1)
        for turn in range(3):
            proxy.cut()
            proxy.let_through()
            await n.publish("c", f"live {turn}")
            await page.heard(900 * (turn == 0) + turn)
        await n.publish("a", "last")
        await page.tab.until_true("() => heard.includes('last')")
        lives = [f"live {turn}" for turn in range(3)]
        heard = await page.heard(904)
        assert heard.count("last") == 1  # of another channel: what was missed may come later
        assert [data for data in heard if data != "last"] == [*numbers(0, 900), *lives]
        assert await page.told("gap", 0) == []
        await page.tab.run("() => stream.unsubscribe('c')")
        await n.publish("c", "to nobody")
        await n.publish("a", "the end")
        assert (await page.heard(905))[-1] == "the end"


async def test_a_proxy_that_holds_streams_back_or_forbids_them_is_got_around_without_a_loss() -> (
    None
):
    async with (
        node("--keepalive", "0.5", "--retry", "0.1") as n,
        bad_proxy_to(n) as proxy,
        chromium() as browser,
    ):
        proxy.treats_streams = "buffer"
        tab = await browser.tab(proxy.url)
        await tab.do(lambda page: page.clock.install())
        await tab.run(FOLLOW, [proxy.url, {}])
        page = Followed(tab)

        async def streams_are_asked_for() -> bool:
            return proxy.streams > 0

        await eventually(streams_are_asked_for)
        await tab.do(lambda page: page.clock.fast_forward(8_000))
        await page.until("open", "poll")
        await n.publish("a", *numbers(0, 300))
        assert await page.heard(300) == numbers(0, 300)
        proxy.treats_streams = "pass"
        await n.publish("a", *numbers(300, 400))
        await tab.do(lambda page: page.clock.fast_forward(300_000))
        await page.until("open", "stream")
        await n.publish("a", *numbers(400, 500))
        assert await page.heard(500) == numbers(0, 500)
        # The stream that is open goes silent: the watchdog replaces it.
        proxy.treats_streams = "buffer"
        await n.publish("a", *numbers(500, 510))
        proxy.streams = 0
        await eventually(streams_are_asked_for)
        proxy.treats_streams = "forbid"
        await n.publish("a", *numbers(510, 600))
        assert await page.heard(600) == numbers(0, 600)
        assert "silence" in [told["reason"] for told in await page.told("reconnecting")]
        await page.until("open", "poll")
        assert await page.told("error", 0) == []


NGINX = """
daemon off;
error_log stderr;
pid {folder}/pid;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  gzip on;
  gzip_proxied any;
  gzip_types text/event-stream;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{node};
      proxy_http_version 1.1;
      proxy_buffering on;
      proxy_ignore_headers X-Accel-Buffering;
    }}
  }}
}}
"""


async def test_an_nginx_that_packs_streams_and_so_holds_them_back_is_got_around(
    tmp_path: Path,
) -> None:
    async with node("--keepalive", "0.5") as n, chromium() as browser:
        port = free_port()
        config = tmp_path / "nginx.conf"
        config.write_text(NGINX.format(folder=tmp_path, port=port, node=n.port), "utf-8")
        async with child("nginx", "-c", str(config)) as nginx:
            await nginx.until_listening(port)
            url = f"http://127.0.0.1:{port}"
            tab = await browser.tab(url)
            await tab.do(lambda page: page.clock.install())
            await tab.run(FOLLOW, [url, {}])
            page = Followed(tab)
            await n.until_clients(1)
            await tab.do(lambda page: page.clock.fast_forward(8_000))
            await page.until("open", "poll")
            await n.publish("a", *numbers(0, 100))
            assert await page.heard(100) == numbers(0, 100)


async def test_tokens_are_asked_for_again_and_renewed_without_a_break() -> None:
    variables = {"GATEWAY_JWT_KEY": SECRET}
    async with pages() as port:
        origin = f"http://app.localhost:{port}"
        async with node("--cors-origins", origin, variables=variables) as n, chromium() as browser:
            expires = seconds() + 4
            tokens = [
                token("7", subscribe=["*"], exp=1_000),
                token("7", subscribe=["*"], exp=expires, iat=seconds() - 1),
                token("7", subscribe=["*"], publish=["*"]),
            ]
            url = f"http://gw.localhost:{n.port}"
            page = await follow(browser, url, f"{origin}/", tokens=tokens)
            await page.until("open")
            client = await page.tab.run("() => stream.clientId")
            await page.tab.run("() => stream.subscribe('b/c')")

            async def is_past() -> bool:
                return seconds() > expires + 1

            await eventually(is_past)
            async with n.client() as publisher:
                headers = {"Authorization": f"Bearer {tokens[-1]}"}
                for channel in ("a", "b/c"):
                    answer = await publisher.post(
                        f"{n.url}/publish/{channel}", content=channel, headers=headers
                    )
                    assert answer.status_code == 202, answer.text
            assert await page.heard(2) == ["a", "b/c"]
            assert await page.tab.run("() => stream.clientId") == client
            assert await page.told("open") == [
                {"clientId": client, "channels": ["a", "global", "user:7"]}
            ]
            [again] = await page.told("reconnecting")
            assert (again["reason"], again["delay"]) == ("status 401", 0)
            # A channel that is not granted is refused with the sentence.
            script = "() => stream.subscribe('x.y').catch((error) => error.message)"
            assert "not among those granted" in await page.tab.run(script)


async def test_a_draining_node_is_left_for_another_and_an_end_is_the_end() -> None:
    leaving = ("--drain-grace", "0", "--drain-seconds", "0.1", "--retry", "0.1")
    async with (
        node(*leaving) as first,
        node() as second,
        chromium() as browser,
        bad_proxy_to(first) as proxy,
    ):
        page = await follow(browser, proxy.url)
        await page.until("open")
        proxy.port = second.port
        first.signal(signal.SIGTERM)
        await page.told("open", 2)
        assert [told["reason"] for told in await page.told("reconnecting")] == ["draining"]
        async with second.client() as operator:
            client = await page.tab.run("() => stream.clientId")
            await operator.delete(f"{second.url}/clients/{client}")
        assert await page.told("end") == [{"reason": "closed"}]
        position = await page.tab.run("() => stream.lastEventId")
        assert position.endswith(".closed")
        late = await follow(browser, proxy.url, lastEventId=position)
        assert await late.told("end") == [{"reason": "closed"}]
        # The last event of a channel ends the streams that have no other one.
        last = await follow(browser, proxy.url)
        await last.until("open")
        async with second.client() as publisher:
            event = {"channel": "a", "data": "the last", "end": True}
            await publisher.post(f"{second.url}/publish", json=event)
        assert await last.heard(1) == ["the last"]
        assert await last.told("end") == [{"reason": "ended"}]
        refused = await follow(browser, proxy.url, channels=["no such name"])
        [sentence] = await refused.told("error")
        assert "contains ' '" in sentence


VISIBLE = """(hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange", { bubbles: true }));
}"""


async def test_who_is_online_or_seen_again_catches_up_and_a_healthy_stream_is_left_alone() -> None:
    async with node() as n, proxy_to(n) as proxy, chromium() as browser:
        hour = 3_600_000  # ms, unless it is cut short
        page = await follow(browser, proxy.url, minDelay=hour, maxDelay=hour)
        await page.until("open")
        await browser.set_offline(True)
        proxy.cut()
        await page.until("reconnecting")
        await n.publish("a", "0", "1")
        proxy.let_through()
        await browser.set_offline(False)
        assert await page.heard(2) == ["0", "1"]
        await page.tab.run(VISIBLE, True)
        proxy.cut()
        await page.told("reconnecting", 2)
        await n.publish("a", "2")
        proxy.let_through()
        await page.tab.run(VISIBLE, False)
        assert await page.heard(3) == numbers(0, 3)
        client = await page.tab.run("() => stream.clientId")
        for hidden in (True, False, True, False):
            await page.tab.run(VISIBLE, hidden)
        await n.publish("a", "3")
        assert await page.heard(4) == numbers(0, 4)
        assert await page.tab.run("() => stream.clientId") == client


async def test_a_stream_that_is_opened_by_post_is_resumed_by_get() -> None:
    async with node("--retry", "0.1") as n, proxy_to(n) as proxy, chromium() as browser:
        names = ["a", *(f"channel-{number}" for number in range(60))]
        request = {
            "body": json.dumps({"channels": names, "annotate": True}),
            "headers": {"Content-Type": "application/json"},
        }
        page = await follow(browser, proxy.url, channels=[], request=request)
        await page.until("open")
        await n.publish("a", *numbers(0, 50))
        proxy.cut()
        await n.publish("channel-59", *numbers(50, 100))
        proxy.let_through()
        assert await page.heard(100) == numbers(0, 100)
        assert await page.tab.run("() => stream.channels") == names
