"""What the shipped balancers do for clients, publishers and operators, with nodes behind them.

Both are meant where a test does not name one.
"""

import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import balancers
import certificates
import pytest
import trio
from balancers import HAPROXY, NGINX, README, SILENCE, Absent, Backend, Balancer, Start, in_one_file
from chromium import chromium
from load import cluster, load_on
from process import PATIENCE, NodeProcess, child, eventually
from redis_server import free_port
from running import ACCEPT, Wire, request, running

from gateway.api.poll import MAX_WAIT
from gateway.config import Config, Format, Upstream
from gateway.http1_render import chunk

JSON = b"Content-Type: application/json\r\n"

of_both = pytest.mark.parametrize("start", [balancers.haproxy, balancers.nginx])


@pytest.fixture
def redis_url(redis_port: int) -> str:
    return f"redis://127.0.0.1:{redis_port}"


@asynccontextmanager
async def three_nodes(url: str, prefix: str, *flags: str) -> AsyncIterator[list[NodeProcess]]:
    probes = ("--admin-bind", "127.0.0.1:0", "--trusted-proxies", "127.0.0.1")
    async with cluster(*[url] * 3, flags=("--redis-prefix", prefix, *probes, *flags)) as nodes:
        yield nodes


@asynccontextmanager
async def both(
    nodes: Sequence[Backend], certificate: certificates.Files, *, silence: float = SILENCE
) -> AsyncIterator[list[Balancer]]:
    async with (
        balancers.haproxy(nodes, certificate, silence=silence) as haproxy,
        balancers.nginx(nodes, certificate, silence=silence) as nginx,
    ):
        yield [haproxy, nginx]


@dataclass
class Visit:
    """An open stream, and what its client has been told at its beginning."""

    wire: Wire
    node: str
    """The tag of the node that serves it."""
    cookie: bytes
    """As the header in which the client sends it from now on."""


async def visit(balancer: Balancer, cookie: bytes = b"") -> Visit:
    wire = await balancer.open("/events/a", cookie)
    response = await wire.response()
    assert response.status == 200, response.body
    connected = await wire.event()
    assert connected.event == "connected", connected
    if told := response.header("set-cookie"):
        assert {"httponly", "secure"} <= {part.strip().lower() for part in told.split(";")}
        cookie = f"Cookie: {told.partition(';')[0]}\r\n".encode()
    return Visit(wire, str(connected.json["clientId"]).partition(".")[0], cookie)


async def visit_at(balancer: Balancer, node: str) -> Visit:
    """A visit that leads to that node."""
    for _ in range(50):
        visited = await visit(balancer)
        if visited.node == node:
            return visited
    raise AssertionError(f"nobody comes to {node}")


async def test_a_client_stays_with_its_node_by_a_cookie(
    redis_url: str, new_prefix: str, certificate: certificates.Files
) -> None:
    """And those without one go to all nodes."""
    async with (
        three_nodes(redis_url, new_prefix) as nodes,
        both(nodes, certificate) as started,
    ):
        for balancer in started:
            met = set()
            for _ in range(30):
                first = await visit(balancer)
                again = [await visit(balancer, first.cookie) for _ in range(2)]
                assert {each.node for each in again} == {first.node}
                met.add(first.node)
            assert len(met) == 3, balancer.process.output


async def publish(balancer: Balancer, data: str) -> None:
    answer = await balancer.ask(request("POST", "/publish/a", body=data.encode()))
    assert answer.status == 202


async def test_a_node_that_drains_gets_no_new_streams_and_keeps_those_it_has(
    redis_url: str, new_prefix: str, certificate: certificates.Files
) -> None:
    """HAProxy learns of it by /readyz, within drain_grace; nginx at the refused connection."""
    flags = ("--drain-grace", "1.5", "--drain-seconds", "2")
    async with (
        three_nodes(redis_url, new_prefix, *flags) as nodes,
        both(nodes, certificate) as (haproxy, nginx),
    ):
        tags = [await tag_of(n) for n in nodes]
        by_haproxy = await visit(haproxy)
        by_nginx = await visit_at(nginx, by_haproxy.node)
        number = tags.index(by_haproxy.node)
        leaving = nodes[number]

        leaving.signal(signal.SIGTERM)
        await haproxy.process.until(f"Server streams/node{number + 1} is DOWN")
        assert not await refuses(leaving)
        moved = [await visit(haproxy, by_haproxy.cookie) for _ in range(6)]
        assert by_haproxy.node not in {each.node for each in moved}
        assert by_haproxy.cookie not in {each.cookie for each in moved}
        await publish(haproxy, "in its grace")
        for stays in (by_haproxy, by_nginx):
            assert (await stays.wire.event()).data == "in its grace"

        await eventually(partial(refuses, leaving))
        moved = [await visit(nginx, by_nginx.cookie) for _ in range(6)]
        assert by_nginx.node not in {each.node for each in moved}

        await publish(nginx, "as it drains")
        assert (await by_nginx.wire.event()).data == "as it drains"
        assert (await by_nginx.wire.event()).event == "reconnect"
        assert "reconnect" in {block.event for block in await by_haproxy.wire.blocks()}
        assert await leaving.wait() == 0


async def tag_of(n: NodeProcess) -> str:
    """The tag of its one worker, which has a stream more from now on."""
    stream = await n.open_stream("/events/a")
    return stream.body.decode().partition('"clientId":"')[2].partition(".")[0]


async def refuses(n: NodeProcess) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", n.port)).aclose()
    except OSError:
        return True
    return False


async def test_clients_of_a_node_that_is_killed_lose_nothing(
    redis_url: str, new_prefix: str, certificate: certificates.Files
) -> None:
    """Whether they are sticky, or at another node each time; counted to the last event."""
    async with (
        three_nodes(redis_url, new_prefix) as nodes,
        both(nodes, certificate) as started,
        load_on(started) as load,
    ):
        for balancer in started:
            for _ in range(9):
                load.subscribe("a", "b", ports=[balancer.port])
                load.subscribe("b", "c", ports=[balancer.port], keeps_cookies=False)
                load.subscribe("a", "c", ports=[balancer.port], stay=0.2, keeps_cookies=False)
        load.publish("a", "b", ("a", "c"))
        load.publish("c", "b", "a", batch=1)
        load.publish("c", batch=1, retries=False)
        await load.connected()
        await load.more(200)
        had = int(await nodes[0].metric("clients"))
        before = sum(s.connections for s in load.subscribers)
        nodes[0].signal(signal.SIGKILL)
        await load.more(400)
        await load.finish()
        assert had > 0
        assert sum(s.connections for s in load.subscribers) >= before + had
        assert load.defects() == []
        assert not load.gaps


FACTOR = 50
"""By which the times of the next test are divided, and with them five minutes."""


async def test_a_stream_outlives_five_minutes_of_silence(
    redis_url: str, new_prefix: str, certificate: certificates.Files
) -> None:
    """Since a keepalive comes long before a balancer's patience is at its end."""
    keepalive = str(Config().keepalive / FACTOR)
    async with (
        three_nodes(redis_url, new_prefix, "--keepalive", keepalive) as nodes,
        both(nodes, certificate, silence=SILENCE / FACTOR) as started,
    ):
        streams = [await visit(balancer) for balancer in started]
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stays_open, stream.wire, begun + 300 / FACTOR)
        await publish(started[0], "at last")
        for stream in streams:
            assert (await stream.wire.event()).data == "at last"


async def stays_open(wire: Wire, until: float) -> None:
    while trio.current_time() < until:
        assert (await wire.block()).event == "keepalive"


@of_both
async def test_a_silent_stream_is_cut_without_keepalives(
    start: Start, certificate: certificates.Files
) -> None:
    """So it is they that the test above has seen."""
    async with (
        running(admin_bind="127.0.0.1:0", keepalive=1000) as gateway,
        start([gateway], certificate, silence=1.0) as balancer,
    ):
        stream = await visit(balancer)
        assert await stream.wire.ended()


OPEN = """() => {
  const opened = window.opened = [];
  window.sources = Array.from({length: 12}, (_, number) => {
    const source = new EventSource("/events/a" + number);
    source.onopen = () => opened.push(number);
    return source;
  });
}"""


async def test_a_dozen_streams_of_a_page_are_one_connection(
    certificate: certificates.Files,
) -> None:
    """By HTTP/2; by HTTP/1.1 a browser opens six."""
    async with (
        running(admin_bind="127.0.0.1:0") as gateway,
        both([gateway], certificate) as started,
        chromium("--ignore-certificate-errors") as browser,
    ):
        page = await browser.tab()
        for balancer in started:
            before = await balancer.connections()
            await page.open(f"https://127.0.0.1:{balancer.https_port}/")
            await page.run(OPEN)
            await gateway.clients(12)
            await page.until_true("() => window.opened.length == 12")

            async def is_one(balancer: Balancer = balancer, others: int = before) -> bool:
                return await balancer.connections() - others == 1

            await eventually(is_one)
            await page.run("() => window.sources.forEach(source => source.close())")
            await gateway.clients(0)
        await page.open(f"http://127.0.0.1:{started[0].port}/")
        await page.run(OPEN)
        await gateway.clients(6)
        assert await page.run("() => window.opened.length") <= 6


@of_both
async def test_a_client_that_leaves_has_left_the_node(
    start: Start, certificate: certificates.Files
) -> None:
    """And not at the next keepalive: until then it would count among the streams of its user."""
    async with (
        running(admin_bind="127.0.0.1:0", keepalive=1000) as gateway,
        start([gateway], certificate) as balancer,
    ):
        for tls in (False, True):
            wire = await balancer.open("/events/a", tls=tls)
            await wire.opened()
            await wire.aclose()
            await gateway.clients(0)
        poll = await balancer.connect(tls=False)
        await poll.send(request("GET", "/poll/a?wait=60"))
        await gateway.clients(1)
        await poll.aclose()
        await gateway.clients(0)


@of_both
async def test_a_publisher_that_has_ended_his_side_is_answered(
    start: Start, certificate: certificates.Files
) -> None:
    async with (
        running(admin_bind="127.0.0.1:0") as gateway,
        start([gateway], certificate) as balancer,
    ):
        for _ in range(5):
            wire = await balancer.connect(tls=False)
            await wire.send(request("POST", "/publish/a", body=b"x"))
            await wire.socket_stream.send_eof()
            assert (await wire.response()).status == 202


SECRET = "not-for-the-log"


@of_both
async def test_where_no_node_is_there_everybody_is_told_to_come_back(
    start: Start, certificate: certificates.Files
) -> None:
    """In the words of the nodes: a status other than 200 would end an EventSource. Pages of other
    origins may read that much. And no token gets into the log."""
    async with start([], certificate) as balancer:
        origin = b"Origin: https://page.example\r\n"
        wire = await balancer.open(f"/events/a?token={SECRET}", origin)
        response = await wire.response()
        assert response.status == 200, response.body
        assert response.header("content-type") == "text/event-stream"
        assert response.header("cache-control") == "no-cache"
        assert response.header("access-control-allow-origin") == "https://page.example"
        assert re.fullmatch(
            rb'retry: \d{4}\nevent: reconnect\ndata: {"reason":"unavailable"}\n\n', response.body
        )
        wire = await balancer.open("/%65vents/a")  # which is the same to a node
        assert (await wire.response()).header("content-type") == "text/event-stream"
        for path in ("/events/a", "/poll/a"):
            answer = await balancer.ask(request("GET", f"{path}?token={SECRET}"))
            assert answer.status == 503
        answer = await balancer.ask(request("POST", f"/publish/a?token={SECRET}", body=b"x"))
        assert answer.status == 503
        assert answer.header("content-type") == "application/problem+json"
        assert answer.header("retry-after") == "1"
        outcome = "refused" if start is balancers.haproxy else "unknown"
        assert answer.json["outcome"] == outcome
        await balancer.process.until(r"POST /publish/a\s")
    assert SECRET not in balancer.process.output


@of_both
async def test_a_publish_goes_on_to_another_node_where_a_connection_is_refused(
    start: Start, certificate: certificates.Files
) -> None:
    """Although that node is held to be ready."""
    async with running(admin_bind="127.0.0.1:0") as gateway:
        refusing = Absent(free_port(), gateway.admin_port)
        async with start([refusing, gateway, gateway], certificate) as balancer:
            for _ in range(12):
                await publish(balancer, "x")


async def test_haproxy_leaves_a_node_that_refuses_connections_before_its_next_check(
    certificate: certificates.Files,
) -> None:
    async with running(admin_bind="127.0.0.1:0") as gateway:
        refusing = Absent(free_port(), gateway.admin_port)
        async with balancers.haproxy([refusing, gateway, gateway], certificate) as balancer:
            with trio.fail_after(PATIENCE):
                while "node1 is DOWN, reason: Health analyze" not in balancer.process.output:
                    await publish(balancer, "x")


@dataclass
class Silent:
    """A node that is ready, and ends each connection once it has read a request."""

    port: int
    heads: list[str]

    @property
    def admin_port(self) -> int:
        return self.port

    async def serve(self, stream: trio.SocketStream) -> None:
        wire = Wire(stream)
        async with stream:
            head = (await wire._until(b"\r\n\r\n")).decode()
            if head.startswith("GET /readyz "):
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                self.heads.append(head)

    def asked(self, method: str) -> int:
        return sum(head.startswith(method) for head in self.heads)


@asynccontextmanager
async def silent_nodes() -> AsyncIterator[list[Silent]]:
    async with trio.open_nursery() as nursery:
        nodes = []
        for _ in range(balancers.NODES):
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nodes.append(Silent(listener.socket.getsockname()[1], []))
            nursery.start_soon(trio.serve_listeners, nodes[-1].serve, [listener])
        yield nodes
        nursery.cancel_scope.cancel()


@of_both
async def test_a_publish_that_was_sent_is_not_sent_again_and_an_opening_is(
    start: Start, certificate: certificates.Files
) -> None:
    async with silent_nodes() as nodes, start(nodes, certificate) as balancer:
        answer = await balancer.ask(request("POST", "/publish/a", body=b"x"))
        assert answer.status == 503
        assert answer.json["outcome"] == "unknown"
        assert sum(n.asked("POST") for n in nodes) == 1

        wire = await balancer.open("/events/a")
        assert b"event: reconnect" in (await wire.response()).body
        assert sum(n.asked("GET") > 0 for n in nodes) > 1


@of_both
async def test_an_opening_by_post_is_sent_again(
    start: Start, certificate: certificates.Files
) -> None:
    async with silent_nodes() as nodes, start(nodes, certificate) as balancer:
        opening = request(
            "POST",
            "/events",
            ACCEPT,
            JSON,
            body=b'{"channels": ["a"]}',
        )
        assert b"event: reconnect" in (await balancer.ask(opening, tls=True)).body
        assert sum(n.asked("POST /events") > 0 for n in nodes) > 1


@of_both
async def test_a_request_is_known_by_one_id_to_balancer_and_node(
    start: Start, certificate: certificates.Files
) -> None:
    """Which an application may choose, and a stranger may not."""
    async with silent_nodes() as nodes, start(nodes, certificate) as balancer:
        for chosen, tls in ((b"chosen", False), (b"chosen", True), (b"or a\x1b[31m lie", False)):
            header = b"X-Request-Id: %b\r\n" % chosen
            await balancer.ask(request("POST", "/publish/a", header, body=b"x"), tls=tls)
        heads = [head for n in nodes for head in n.heads]
        ids = [re.findall(r"(?im)^x-request-id: (.+?)\r?$", head) for head in heads]
        made = [found for [found] in ids if found != "chosen"]
        assert len(ids) == 3
        assert len(made) == 2
        for _ in ids:
            told = await balancer.process.until(r"POST /publish/a .+")
            assert any(told[0].endswith(known) for known in ("chosen", *made)), told[0]
    assert "lie" not in balancer.process.output


@of_both
async def test_a_path_forges_no_field_of_the_log(
    start: Start, certificate: certificates.Files
) -> None:
    async with start([], certificate) as balancer:
        await balancer.ask(request("GET", "/a%20b%0ac"))
        await balancer.process.until(r"GET /a%20b%0ac\s")


@of_both
async def test_an_event_waits_for_nothing_in_between(
    start: Start, certificate: certificates.Files
) -> None:
    """Not for more of its kind (200 ms), as HAProxy does by default with a chunked answer."""
    async with (
        running(admin_bind="127.0.0.1:0") as gateway,
        start([gateway], certificate) as balancer,
    ):
        stream = await balancer.connect(tls=False)
        await stream.send(request("GET", "/events/a"))  # as curl: it accepts anything
        await stream.opened()
        took = []
        for number in range(9):
            begun = trio.current_time()
            await gateway.publish("a", str(number))
            assert (await stream.event()).data == str(number)
            took.append(trio.current_time() - begun)
        assert median(took) < 0.1, took


@of_both
@pytest.mark.parametrize("tls", [True, False])
async def test_what_is_pushed_is_published_as_it_comes(
    start: Start, certificate: certificates.Files, tls: bool
) -> None:
    chunked = b"Transfer-Encoding: chunked\r\n"
    async with (
        running(admin_bind="127.0.0.1:0") as gateway,
        start([gateway], certificate) as balancer,
    ):
        opening = request("POST", "/streams", ACCEPT, JSON, body=b"{}")
        viewer = await balancer.connect(tls=tls)
        await viewer.send(opening)
        await viewer.opened()
        id = (await viewer.event()).json["id"]
        producer = await balancer.connect(tls=tls)
        await producer.send(request("POST", f"/streams/{id}/events", chunked))
        took = []
        for number in range(9):
            begun = trio.current_time()
            await producer.send(chunk(b'{"text": "%d"}\n' % number))
            assert (await viewer.event()).json == {"text": str(number)}
            took.append(trio.current_time() - begun)
        assert median(took) < 0.1, took
        await producer.send(b"0\r\n\r\n")
        assert (await producer.response()).json["state"] == "complete"
        assert [block.event for block in await viewer.blocks()] == ["complete", "closed"]


@of_both
async def test_a_token_stream_is_never_begun_twice(
    start: Start, certificate: certificates.Files
) -> None:
    async with silent_nodes() as nodes, start(nodes, certificate) as balancer:
        for target in ("/streams", "/relay/openai/chat/completions"):
            answer = await balancer.ask(request("POST", target, ACCEPT, JSON, body=b"{}"), tls=True)
            assert (answer.status, answer.json["outcome"]) == (503, "unknown")
            assert sum(n.asked(f"POST {target}") for n in nodes) == 1


@of_both
async def test_a_node_says_itself_that_a_model_gives_no_answer(
    start: Start, certificate: certificates.Files
) -> None:
    gone = Upstream("fake", f"http://127.0.0.1:{free_port()}/v1", Format.OPENAI)
    async with (
        running(admin_bind="127.0.0.1:0", upstreams=(gone,)) as gateway,
        start([gateway], certificate) as balancer,
    ):
        asked = request("POST", "/relay/fake/chat/completions", JSON, body=b"{}")
        for tls in (True, False):
            answer = await balancer.ask(asked, tls=tls)
            assert (answer.status, answer.json["reason"]) == (502, "refused")


@of_both
async def test_what_is_for_operators_cannot_be_reached_from_outside(
    start: Start, certificate: certificates.Files
) -> None:
    """However it is spelled."""
    async with (
        running(admin_bind="127.0.0.1:0") as gateway,
        start([gateway], certificate) as balancer,
    ):
        for method, target in FOR_OPERATORS:
            raw = request(method, target)
            assert (await balancer.ask(raw)).status in (200, 400, 404), target
            assert (await balancer.ask(raw, tls=True)).status == 403, target
            path = target.removeprefix("/")
            for spelled in (
                f"/%{ord(path[0]):x}{path[1:]}",
                f"http://gateway.test/{path}",
                f"{target}?x",
            ):
                answer = await balancer.ask(request(method, spelled), tls=True)
                assert answer.status == 403, spelled
            for spelled in (f"//{path}", f"/./{path}", f"/x/../{path}", f"/%2f{path}"):
                answer = await balancer.ask(request(method, spelled), tls=True)
                assert answer.status in (400, 403, 404), spelled
        for path in (
            "/users%2f7",
            "/users/%zz",
            "/users/7%",
            "/users/7/../../x",
            "/users/7%2F%2e./..",
        ):
            answer = await balancer.ask(request("DELETE", path), tls=True)
            assert answer.status in (400, 403, 404), path


FOR_OPERATORS = [
    ("GET", "/metrics"),
    ("GET", "/stats"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("DELETE", "/users/7"),
    ("DELETE", "/tokens/7"),
    ("GET", "/ops"),
    ("GET", "/clients"),
    ("POST", "/nodes/7/drain"),
]


@of_both
async def test_plain_http_from_outside_is_sent_to_https(
    start: Start, certificate: certificates.Files
) -> None:
    async with start([], certificate) as balancer:
        stream = Wire(await trio.open_tcp_stream("127.0.0.1", balancer.redirect_port))
        await stream.send(request("POST", "/publish/a?b=c"))
        response = await stream.response()
        await stream.aclose()
        assert response.status == 308
        assert response.header("location") == "https://gateway.test/publish/a?b=c"


async def test_nobody_has_more_connections_than_an_address_may(
    certificate: certificates.Files,
) -> None:
    """HAProxy closes those beyond, from outside; nginx tells their streams to come back."""
    async with running(admin_bind="127.0.0.1:0") as gateway:
        async with balancers.haproxy([gateway], certificate, address_connections=2) as balancer:
            for _ in range(2):
                await visit(balancer)
            with pytest.raises((OSError, trio.BrokenResourceError)):
                await visit(balancer)
            await publish(balancer, "x")
        async with balancers.nginx([gateway], certificate, address_connections=2) as balancer:
            for _ in range(2):
                await visit(balancer)
            wire = await balancer.open("/events/a")
            assert b"event: reconnect" in (await wire.response()).body


BEHIND_ANOTHER = {
    balancers.HAPROXY: {
        " tcp-ut 60s\n    # tcp-ut": " accept-proxy\n    # tcp-ut",
        "tcp-request connection": "tcp-request session",
    },
    balancers.NGINX: {
        "listen 443 ssl http2;": "listen 443 ssl http2 proxy_protocol;"
        " set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;"
    },
}
"""What the files say of a balancer before them that passes bytes on."""


@pytest.fixture(params=["haproxy", "nginx"])
def behind_another(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Start:
    """A balancer whose connections come from another one."""
    name: str = request.param
    shipped: Path = getattr(balancers, name.upper())
    text = shipped.read_text("utf-8")
    for here, there in BEHIND_ANOTHER[shipped].items():
        assert here in text
        text = text.replace(here, there)
    file = tmp_path / shipped.name
    file.write_text(text, "utf-8")
    monkeypatch.setattr(balancers, name.upper(), file)
    start: Start = getattr(balancers, name)
    return start


async def test_a_network_of_ipv6_is_one_address(
    behind_another: Start, certificate: certificates.Files
) -> None:
    """A /64, as for the nodes: who has one address of it has them all."""
    async with (
        running(admin_bind="127.0.0.1:0") as gateway,
        behind_another([gateway], certificate, address_connections=2) as balancer,
    ):

        async def is_let_in(address: str) -> bool:
            wire = await balancer.connect_from(address)
            try:
                await wire.send(request("GET", "/events/a", ACCEPT))
                return not (await wire.response()).body
            except (OSError, trio.BrokenResourceError):
                return False

        for address in ("2001:db8::a", "2001:db8::b", "2001:db8:0:1::a", "192.0.2.1"):
            assert await is_let_in(address), address
        assert not await is_let_in("2001:db8::c")


async def test_nginx_without_a_connection_to_spare_tells_streams_to_come_back(
    certificate: certificates.Files,
) -> None:
    """Its own status for that is 500. And it says no token."""
    async with (
        running(admin_bind="127.0.0.1:0") as gateway,
        balancers.nginx([gateway], certificate, connections=20) as balancer,
    ):
        body = b""
        with trio.fail_after(PATIENCE):
            while b"event: reconnect" not in body:
                wire = await balancer.open(f"/events/a?token={SECRET}", tls=False)
                response = await wire.response()
                assert response.status == 200
                body = response.body
        await balancer.process.until(r"GET /events/a\s")
    assert SECRET not in balancer.process.output


@of_both
async def test_who_sends_slowly_keeps_no_place_at_a_node(
    start: Start, certificate: certificates.Files
) -> None:
    async with silent_nodes() as nodes, start(nodes, certificate) as balancer:
        slow = await balancer.connect()
        raw = request("POST", "/publish/slow", body=b"x" * 1000)
        await slow.send(raw[:-1])
        for _ in range(2):
            await balancer.ask(request("POST", "/publish/quick", body=b"x"), tls=True)
        assert not [head for n in nodes for head in n.heads if "slow" in head]
        await slow.send(raw[-1:])
        assert (await slow.response()).status == 503
        assert [head for n in nodes for head in n.heads if "slow" in head]


async def test_who_comes_from_outside_leaves_connections_to_those_inside(
    certificate: certificates.Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy keeps a quarter of a node's; here it is two of four."""
    text = HAPROXY.read_text("utf-8")
    small = text.replace("server maxconn 2000", "server maxconn 4").replace("lt 500", "lt 2")
    assert small.count("maxconn 4\n") == small.count("lt 2\n") == 1
    file = tmp_path / "haproxy.cfg"
    file.write_text(small, "utf-8")
    monkeypatch.setattr(balancers, "HAPROXY", file)
    slowly = request("POST", "/publish/a", body=b"x" * 40_000)[:-1]
    async with (
        running(admin_bind="127.0.0.1:0") as gateway,
        balancers.haproxy([gateway], certificate) as balancer,
    ):
        quick = request("POST", "/publish/a", body=b"x")
        for taken in range(1, 4):
            assert (await balancer.ask(quick, tls=True)).status == 202
            wire = await balancer.connect()
            await wire.send(slowly)
            await eventually(partial(balancer.has_requests, taken))
        answer = await balancer.ask(quick, tls=True)
        assert answer.status == 503
        assert answer.json["outcome"] == "refused"
        await visit(balancer)
        await publish(balancer, "x")


@of_both
async def test_a_node_gets_no_more_streams_than_it_may(
    start: Start, certificate: certificates.Files
) -> None:
    """Those who are too many are told to come back."""
    async with (
        running(admin_bind="127.0.0.1:0") as gateway,
        start([gateway], certificate, node_connections=3) as balancer,
    ):
        for _ in range(3):
            await visit(balancer)
        wire = await balancer.open("/events/a")
        assert b"event: reconnect" in (await wire.response()).body
        assert gateway.node.hub.statistics().clients == 3


def shipped(file: Path, pattern: str) -> float:
    """The one number that ``pattern`` finds; in seconds where it has a unit."""
    found = {match[1] for match in re.finditer(pattern, file.read_text("utf-8"))}
    assert len(found) == 1, (pattern, found)
    return float(found.pop().removesuffix("s"))


def test_the_numbers_fit_each_other_and_the_nodes() -> None:
    """As shipped, with a gateway that is as it is by default."""
    config = Config()
    patience = [
        shipped(HAPROXY, r"timeout (?:client|server) \"\$\{SILENCE-(\d+s)\}"),
        shipped(NGINX, r"(?:proxy_read|proxy_send| send)_timeout (\d+s);"),
    ]
    assert patience == [SILENCE, SILENCE]
    assert config.keepalive * 3 < SILENCE
    assert MAX_WAIT < SILENCE
    assert config.publish_wait + config.redis_timeout < SILENCE

    assert shipped(NGINX, r"keepalive_timeout (\d+s)") < config.idle_timeout

    interval = shipped(HAPROXY, r"CHECK_INTERVAL-(\d+s)")
    noticed = shipped(HAPROXY, r" fall (\d+)") * (
        interval + shipped(HAPROXY, r"timeout check (\d+s)")
    )
    assert noticed < shipped(README, r"--drain-grace (\d+)")

    streams = [
        shipped(HAPROXY, r"NODE_MAXCONN-(\d+)"),
        shipped(NGINX, r"max_conns=(\d{5})"),
    ]
    requests = [
        shipped(HAPROXY, r"server maxconn (\d+)"),
        shipped(NGINX, r"max_conns=(\d{4}) "),
    ]
    token_streams = shipped(HAPROXY, r"NODE_TOKEN_STREAMS-(\d+)")
    assert max(streams) + max(requests) + token_streams < EPHEMERAL_PORTS
    assert shipped(NGINX, r"client_max_body_size (\d{2})m") * 1024 * 1024 == config.stream_bytes

    address = {
        shipped(HAPROXY, r"ADDRESS_CONNECTIONS-(\d+)"),
        shipped(NGINX, r"limit_conn \w+ (\d+);"),
    }
    assert address == {config.max_streams_per_address}
    assert shipped(NGINX, r"client_max_body_size (\d)m") * 1024 * 1024 == config.max_body_bytes


EPHEMERAL_PORTS = 60_999 - 32_768 + 1
"""Of Linux, as net.ipv4.ip_local_port_range is by default."""


async def test_haproxy_takes_its_file_with_a_certificate_alone(
    certificate: certificates.Files, tmp_path: Path
) -> None:
    pem = in_one_file(certificate, str(tmp_path))
    async with child("haproxy", "-c", "-f", str(HAPROXY), CERTIFICATE=pem) as check:
        assert await check.wait() == 0, check.output
        assert "WARNING" not in check.output


async def test_haproxy_is_checked_with_the_variables_that_it_is_started_with(
    certificate: certificates.Files, tmp_path: Path
) -> None:
    """The command of the README, which is typed where these are not set."""
    [command] = re.findall(r"(?m)^    (.*haproxy -c .*) && systemctl", README.read_text("utf-8"))
    variables = tmp_path / "haproxy"
    variables.write_text(f"CERTIFICATE={in_one_file(certificate, str(tmp_path))}\n")
    command = command.replace("/etc/default/haproxy", str(variables))
    command = command.replace("/etc/haproxy/haproxy.cfg", str(HAPROXY))
    async with child("sh", "-c", command) as check:
        assert await check.wait() == 0, check.output


@pytest.mark.parametrize("balancer", ["haproxy", "nginx"])
async def test_a_balancer_is_found_by_whoever_starts_it(
    balancer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    async with child(balancer, "-v") as started:
        assert await started.wait() == 0
