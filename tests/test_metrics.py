"""What /metrics says: true to what happened, in names and labels that nobody outside can choose."""

import re
import ssl
import subprocess
import time
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import certificates
import pytest
import trio
from certificates import Files
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from running import request, running, running_over_tls, until
from scraped import Samples, samples, scrape, value

from gateway.api import admin
from gateway.bus import Source
from gateway.config import DAY, Config
from gateway.control import Gap
from gateway.edge.app import ROUTES, make_admin_app, make_app
from gateway.edge.pages import is_asset
from gateway.hub import Opening
from gateway.metrics import FAMILIES, parts, render
from gateway.node import Node
from gateway.relay.relays import ENDS, REFUSALS
from gateway.stream_state import Reason
from gateway.tallies import Dropped
from gateway.tls import Certificate

NDJSON = b"Content-Type: application/x-ndjson\r\n"
JSON = b"Content-Type: application/json\r\n"


def labels(of: Samples, label: str, name: str = "") -> set[str]:
    """The values of a label, of all metrics or of one."""
    return {
        dict(has)[label]
        for each, has in of
        if label in dict(has) and each.startswith(f"gateway_{name}")
    }


LABELS = {
    *("class", "code", "format", "generation", "le", "reason", "route", "source", "state"),
    *("upstream", "version", "worker"),
}


async def test_names_and_labels_follow_the_rules() -> None:
    """All begin with gateway_; counters and only they end in _total; the one label is ours."""
    async with running(max_clients=1) as gateway:
        await gateway.publish("a", "x")
        first = await gateway.open("/events/a?user=x%22y")
        await first.opened()
        await gateway.ask(request("GET", "/events/b"))
        text = (await gateway.ask(request("GET", "/metrics"))).body.decode()
        families = list(text_string_to_metric_families(text))
        assert len(families) > 20
        for family in families:
            assert family.name.startswith("gateway_")
            assert family.documentation.endswith(".")
            assert family.type in ("gauge", "counter", "histogram")
            for sample in family.samples:
                assert sample.name.endswith("_total") == (family.type == "counter"), sample
                assert set(sample.labels) <= LABELS
        assert re.search(r"^# TYPE gateway_clients gauge$", text, re.MULTILINE)
        ours = {*Reason, *Gap, *Dropped, *Opening, "full", *REFUSALS, *chain(*ENDS.values())}
        assert labels(samples(text), "reason") <= ours


async def test_no_text_of_a_stranger_is_in_the_metrics() -> None:
    mark = "stranger"
    async with running() as gateway:
        wire = await gateway.open(f"/events/{mark}?user={mark}&lastEventId={mark}")
        client = str((await wire.opened())["clientId"])
        await gateway.publish(mark, mark, f"?event={mark}&id={mark}&key={mark}")
        for raw in (
            request("GET", f"/{mark}"),
            request(mark.upper(), "/events/a"),
            request("GET", f"/events/{mark}%20"),
            request("GET", "/events/a", f"Host: {mark}\r\nUser-Agent: {mark}\r\n".encode()),
        ):
            await gateway.ask(raw)
        text = (await gateway.ask(request("GET", "/metrics"))).body.decode()
        assert mark not in text.lower()
        assert client not in text


ONES = ("workers", "bus_up", "ready", "build_info")
"""What is 1 at the beginning."""

NEVER_ZERO = ("clients_max", "memory_max_bytes", "uptime_seconds", "worker_", "run_loop_", "gc_")
"""What is told of the settings and of the process."""


async def test_an_idle_node_has_every_metric_at_its_beginning() -> None:
    """A counter that only appears with its first increment hides that from ``rate()``."""
    async with running(max_clients=7) as gateway:
        found = await scrape(gateway)
        assert value(found, "clients_max") == 7
        assert value(found, "memory_max_bytes") == Config().memory_bytes
        assert value(found, "uptime_seconds") > 0
        other = tuple(f"gateway_{name}" for name in (*ONES, *NEVER_ZERO))
        for (name, has), number in found.items():
            if not name.startswith(other):
                assert number == 0, (name, has)
        assert {value(found, name) for name in ONES} == {1}
        assert labels(found, "reason", "closed") == set(Reason)
        assert labels(found, "reason", "gaps") == set(Gap)
        assert labels(found, "reason", "dropped") == set(Dropped)
        assert labels(found, "reason", "opened") == set(Opening)
        assert labels(found, "source") == set(Source)
        assert labels(found, "route") == {"/events", "/poll", "/publish", "/publish/<channel>"}


async def test_the_numbers_are_true_to_what_happened() -> None:
    async with running(max_clients=3) as gateway:
        direct = await gateway.open("/events?channels=a,b&user=u")
        response = await gateway.open("/events/a", version="1.0")
        for wire in (direct, response):
            await wire.opened()
        first = await gateway.publish("a", "to both")
        await gateway.publish("b", "to one")
        await gateway.publish("c", "to nobody", "?end=true")
        for _ in range(2):
            body = b'{"broadcast":true,"data":"to both, once","id":"1"}'
            await gateway.ask(request("POST", "/publish", JSON, body=body))
        bad = b'{"channel":"c","data":1}\n{"channel":"c d","data":1}\n{"channel":"a","data":2}\n'
        await gateway.ask(request("POST", "/publish", NDJSON, body=bad))
        for wire, count in ((direct, 4), (response, 3)):
            for _ in range(count):
                await wire.event()
        back = await gateway.open(f"/events/a?lastEventId={first}")
        await back.opened()
        assert [(await back.event()).data for _ in range(2)] == ["to both, once", "2"]
        await gateway.ask(request("GET", "/events/a"))  # one too many
        found = await scrape(gateway)
        for name, number in {
            "clients": 3,
            "channels": 4,
            "clients_behind": 0,
            "clients_replaying": 0,
            "history_channels": 4,
            "dedupe_entries": 1,
            "pending_frames": 0,
            "outbox_bytes": 0,
            "draining": 0,
            "opened_total": 3,
            "published_total": 5,
            "publish_repeated_total": 1,
            "publish_refused_total": 1,
            "delivered_total": 9,
            "replayed_total": 2,
            "dropped_total": 0,
            "keepalives_total": 0,
        }.items():
            assert value(found, name) == number, name
        assert value(found, "refused_total", reason="full") == 1
        assert value(found, "history_bytes") > 0
        assert 1 <= value(found, "passes_total") <= 5

        await gateway.ask(request("DELETE", "/users/u"))
        await direct.blocks()
        await response.aclose()
        await gateway.clients(1)
        gone = await gateway.open("/events/a?lastEventId=what")
        await gone.opened()
        gateway.node.draining = True
        found = await scrape(gateway)
        for name, reason, number in (
            ("closed_total", "closed", 1),
            ("closed_total", "gone", 1),
            ("closed_total", "draining", 0),
            ("gaps_total", "unknown", 1),
            ("gaps_total", "trimmed", 0),
            ("opened_total", "new", 2),
            ("opened_total", "resumed", 2),
            ("opened_total", "replay", 0),
        ):
            assert value(found, name, reason=reason) == number, (name, reason)
        assert [value(found, name) for name in ("clients", "draining", "ready")] == [2, 1, 0]


async def test_what_a_stalled_reader_costs_is_seen() -> None:
    """Behind, with a full outbox and drops, and at zero again when it has gone."""
    async with running(outbox_frames=5, send_buffer_bytes=8192, keepalive=3600) as gateway:
        wire = await gateway.connect(receive_buffer=4096)
        await wire.send(request("GET", "/events/a"))
        await wire.opened()
        for _ in range(40):
            await gateway.publish("a", "x" * 20_000)
        await until(lambda: not gateway.node.hub.statistics().pending_frames)
        found = await scrape(gateway)
        assert value(found, "clients_behind") == 1
        queued = value(found, "outbox_frames")
        assert 5 <= queued <= 7  # and those that were taken out of it, to be written together
        assert (
            value(found, "outbox_bytes") >= 3 * 20_000
        )  # two may have been taken out to be written
        assert value(found, "dropped_total") > 0
        delivered = value(found, "delivered_total")
        assert delivered + queued + value(found, "dropped_total") == 40
        await wire.aclose()
        await gateway.quiet()
        found = await scrape(gateway)
        for name in ("clients", "clients_behind", "outbox_frames", "outbox_bytes"):
            assert value(found, name) == 0


async def test_keepalives_of_both_lanes_are_counted() -> None:
    async with running(keepalive=0.05) as gateway:
        wires = [await gateway.open("/events/a", version=version) for version in ("1.1", "1.0")]
        for wire in wires:
            await wire.opened()
            assert (await wire.block()).event == "keepalive"
        await until(lambda: gateway.node.hub.statistics().keepalives >= 2)  # may follow the bytes
        assert value(await scrape(gateway), "keepalives_total") >= 2
        before = gateway.node.hub.statistics().keepalives
        await wires[0].aclose()
        await gateway.clients(1)
        for _ in range(3):
            assert (await wires[1].block()).event == "keepalive"
        assert gateway.node.hub.statistics().keepalives > before


async def test_requests_are_timed_by_route_and_status() -> None:
    """Whatever they are answered with, and whoever answers them."""
    async with running(max_clients=2) as gateway:
        wires = [await gateway.open(target, version=version) for target, version in OPENED]
        for wire in wires:
            await wire.opened()
        for raw in (
            request("POST", "/publish/a", body=b"x"),
            request("POST", "/publish/a/b", body=b"x", version="1.0"),
            request("POST", "/publish", JSON, body=b'{"channel":"a","data":1}'),
            request("POST", "/publish", JSON, body=b"{}"),
            request("POST", "/publish", NDJSON, body=b'{"channel":"a","data":1}\n'),
            request("POST", "/publish?%FF=x", JSON, body=b"{}"),
            request("GET", "/events/a"),
            request("GET", "/poll/a?wait=0"),
            request("PUT", "/clients/x/channels/a.b/c"),
            request("DELETE", "/clients/x/channels/a"),
            request("DELETE", "/clients/x"),
            request("PUT", "/clients/x/token"),
            request("DELETE", "/tokens/x"),
            request("DELETE", "/users/x"),
            request("GET", "/channels/a"),
            request("GET", "/stats"),
            request("GET", "/healthz"),
            request("GET", "/readyz"),
            request("GET", "/openapi.json"),
            request("GET", "/"),
            request("GET", "/clients"),
            request("GET", "/clients/x"),
            request("POST", "/nodes/x/drain"),
            request("GET", "/users"),
            request("PATCH", "/stats"),
            b"nonsense\r\n\r\n",
        ):
            await gateway.ask(raw)
        await wires[0].aclose()
        await gateway.clients(1)
        start = time.perf_counter()
        await gateway.ask(request("GET", "/poll?channel=a&wait=0.2"))
        longest = time.perf_counter() - start
        found = await scrape(gateway)
        counts = {
            (dict(has)["route"], int(dict(has)["code"])): number
            for (name, has), number in found.items()
            if name == "gateway_request_duration_seconds_count" and number
        }
        assert counts == {
            ("/events", 200): 2,
            ("/events", 503): 1,
            ("/publish/<channel>", 202): 2,
            ("/publish", 202): 1,
            ("/publish", 200): 1,
            ("/publish", 400): 2,
            ("/poll", 503): 1,
            ("/poll", 200): 1,
            ("/clients/<id>/channels/<channel>", 404): 2,
            ("/clients", 200): 1,
            ("/clients/<id>", 404): 2,
            ("/nodes/<id>/drain", 404): 1,
            ("/clients/<id>/token", 400): 1,
            ("/tokens/<jti>", 400): 1,
            ("/users/<id>", 200): 1,
            ("/channels/<channel>", 200): 1,
            ("/stats", 200): 1,
            ("/healthz", 200): 1,
            ("/readyz", 503): 1,
            ("/openapi.json", 200): 1,
            ("/", 200): 1,
            ("other", 404): 1,
            ("other", 405): 1,
            ("other", 400): 1,
        }
        polled = value(found, "request_duration_seconds_sum", route="/poll", code="200")
        assert 0.19 <= polled <= longest
        assert 0 < value(found, "request_duration_seconds_sum", route="/events", code="200") < 5


OPENED = (("/events/a", "1.1"), ("/events?channel=b", "1.0"))


async def test_streams_and_polls_over_tls_are_timed_too(certificate: Files) -> None:
    async with running_over_tls(certificate) as gateway:
        await (await gateway.open("/events/a")).opened()
        await gateway.ask(request("GET", "/poll/a?wait=0"))
        found = samples(render(gateway.node.statistics()).decode())
        for route in ("/events", "/poll"):
            assert value(found, "request_duration_seconds_count", route=route, code="200") == 1


def test_every_route_has_its_name() -> None:
    node = Node(Config(), max_clients=1)
    for app in (make_app(node), make_admin_app(node)):
        rules = {rule.rule for rule in app.url_map.iter_rules() if not is_asset(rule.rule)}
        assert rules <= set(ROUTES)


def expiry(certificate: Files) -> float:
    """As openssl has it."""
    command = ("openssl", "x509", "-noout", "-enddate", "-in", str(certificate.cert))
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return ssl.cert_time_to_seconds(told.strip().removeprefix("notAfter="))


async def test_the_certificate_says_when_it_expires(certificate: Files) -> None:
    async with running_over_tls(certificate) as gateway:
        found = samples(render(gateway.node.statistics()).decode())
    assert value(found, "tls_certificate_expiry_timestamp_seconds") == expiry(certificate)
    async with running() as gateway:
        text = render(gateway.node.statistics()).decode()
    assert "gateway_tls_certificate" not in text


async def test_of_a_chain_the_first_to_expire_counts_and_so_does_what_is_read_again(
    certificate: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = certificates.make(tmp_path, "used")
    monkeypatch.setattr(certificates, "MADE", certificates.MADE.replace("-days 2", "-days 9"))
    longer = certificates.make(tmp_path, "longer")
    assert expiry(longer) > expiry(used) + 6 * DAY
    served = Certificate(replace(Config(), **used.settings))
    assert served.expires == expiry(used)
    before = expiry(used)
    chain = longer.cert.read_bytes() + used.cert.read_bytes()
    used.replace_by(longer)
    await served.reload()
    assert served.expires == expiry(longer)
    used.cert.write_bytes(chain)
    await served.reload()
    assert served.expires == before
    used.cert.write_text("rubbish")
    await served.reload()
    assert served.expires == before


async def test_a_certificate_that_is_served_and_cannot_be_read_says_nothing(
    tmp_path: Path,
) -> None:
    """As one of version 2, which OpenSSL takes: neither a start nor a reload fails for it."""
    used = certificates.make(tmp_path, "used")
    served = Certificate(replace(Config(), **used.settings))
    assert served.expires
    third, second = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"
    der = ssl.PEM_cert_to_DER_cert(used.cert.read_text("ascii"))
    assert der.count(third) == 1
    used.cert.write_text(ssl.DER_cert_to_PEM_cert(der.replace(third, second)), "ascii")
    await served.reload()
    assert served.expires == Certificate(replace(Config(), **used.settings)).expires == 0


async def test_a_full_node_is_not_ready() -> None:
    async with running(max_clients=1) as gateway:
        assert value(await scrape(gateway), "ready") == 1
        await (await gateway.open("/events/a")).opened()
        assert value(await scrape(gateway), "ready") == 0
        assert (await gateway.ask(request("GET", "/readyz"))).status == 503


async def test_passes_and_replays_are_measured() -> None:
    async with running() as gateway:
        wires = [await gateway.open("/events/a") for _ in range(3)]
        for wire in wires:
            await wire.opened()
        for _ in range(2):
            await gateway.publish("a", "x")
        for wire in wires:
            for _ in range(2):
                await wire.event()
        found = await scrape(gateway)
        assert value(found, "received_total") == value(found, "pass_events_sum") == 2
        assert value(found, "pass_deliveries_sum") == value(found, "delivered_total") == 6
        passes = value(found, "passes_total")
        for name in ("duration_seconds", "events", "deliveries"):
            assert value(found, f"pass_{name}_count") == passes
        assert value(found, "subscriptions") == 6
        assert value(found, "replay_duration_seconds_count") == 0
        for target in ("/events/a?replay=1", "/events/a?lastEventId=earliest"):
            wire = await gateway.open(target)
            await wire.opened()
            await wire.event()
        await until(lambda: not gateway.node.hub.statistics().replaying)
        found = await scrape(gateway)
        assert value(found, "replay_duration_seconds_count", source="memory") == 2
        assert value(found, "replay_duration_seconds_count") == 2
        assert value(found, "opened_total", reason="replay") == 2


async def test_others_have_their_turns_while_the_text_is_made() -> None:
    node = Node(Config(), max_clients=1)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await trio.lowlevel.checkpoint()
        before = turns
        text = (await admin.open_metrics(node)).body
        nursery.cancel_scope.cancel()
    assert text.count(b"\n") > 2 * admin.LINES_PER_TURN
    assert turns > before
    for part in parts(node.statistics()):
        assert part.count(b"\n") < admin.LINES_PER_TURN


def test_the_table_of_metrics_is_complete_and_true() -> None:
    """Names, types and labels, in both directions."""
    table = (Path(__file__).parent.parent / "grafana" / "METRICS.md").read_text()
    rows = re.findall(r"^\| `(gateway_\w+)` \| (\w+) \|(.*?)\| .+ \|$", table, re.MULTILINE)
    told = {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows}
    assert len(told) == len(rows)
    kinds = {
        GaugeMetricFamily: ("gauge", ""),
        CounterMetricFamily: ("counter", "_total"),
        HistogramMetricFamily: ("histogram", ""),
    }
    assert told == {
        f"gateway_{family.name}{kinds[family.type][1]}": (
            kinds[family.type][0],
            list(family.labels),
        )
        for family in FAMILIES
    }


async def test_every_figure_of_the_statistics_is_in_the_metrics() -> None:
    """One window, nothing left out: a new statistic wants a metric."""
    async with running() as gateway:
        node: Node = gateway.node
        names = {name for name, _ in samples(render(node.statistics()).decode())}
        bus = node.statistics().bus
        now = node.statistics()
        for part in (now.hub, bus, bus.link, now.admission, now.memory):
            for field in fields(part):
                if field.name == "link":
                    continue
                known = {f"gateway_{prefix}{field.name}{suffix}"
                         for prefix in ("", "clients_", "publish_", "outbox_", "history_", "bus_",
                                         "openings_", "addresses_", "memory_")
                         for suffix in ("", "_total", "_seconds")}  # fmt: skip
                renamed = {
                    "queued_frames": "outbox_frames",
                    "queued_bytes": "outbox_bytes",
                    "deepest_frames": "outbox_deepest_frames",
                    "pass_duration": "pass_duration_seconds_bucket",
                    "pass_events": "pass_events_bucket",
                    "pass_deliveries": "pass_deliveries_bucket",
                    "openings": "opened_total",
                    "classes": "delivered_total",
                    "lost": "bus_links_lost_total",
                    "probes": "bus_probe_seconds_bucket",
                    "proof_age": "bus_lag_seconds",
                    "evicted": "bus_evicted_keys_total",
                }
                known.add(f"gateway_{renamed.get(field.name, field.name)}")
                assert known & names, field.name
