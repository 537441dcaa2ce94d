// The cluster as its workers report it. Pure: no page, no clock of its own.
//
// 1. A report has a time of its own in its position, which is one clock for all nodes: `ms`. What is
//    late, silent or gone is decided by it; how long ago the newest came, by the clock of the page.
// 2. A rate is a difference of two reports of one worker. Counters that went down, or stood still in
//    time, belong to no rate: a worker that starts anew has another tag, and begins anew here.
// 3. Everything kept is bounded, however many workers, clients and channels there are.

export const SECONDS = 300;  // of the totals' graphs
export const SHORT_SECONDS = 60;  // of the other graphs, and of what is counted by reason
export const SILENT_MS = 3500;  // three reports and some jitter
export const LEFT_MS = 10_000;  // after which a worker that said that it drains is no longer shown
export const GONE_MS = 60_000;  // and any other
export const MAX_WORKERS = 1024;
export const MAX_HAPPENINGS = 200;  // of each kind
export const MAX_GRAPHS = 600;  // of channels, and of clients

export const KINDS = ["dropped", "gap", "opened", "closed"];
const COUNTERS = ["published", "received", "delivered", "replayed", "cpuSeconds"];
const BY_REASON = ["dropped", "gaps", "opened", "closed", "refused"];
const NOTHING = {
  slow: [], busy: [], happenings: [], omitted: 0,
  ...Object.fromEntries(COUNTERS.map(name => [name, 0])), ...Object.fromEntries(BY_REASON.map(name => [name, {}])),
};  // of what a worker of another version may not tell
const TOTALS = ["clients", "channels", "published", "delivered", "lag", "dropped", "gaps"];

const sum = (things, value) => things.reduce((total, thing) => total + value(thing), 0);
const summed = counts => sum(Object.values(counts), n => n);

/** Values of the last seconds, of things by their names; the longest unheard of are forgotten. */
class Graphs {
  #of = new Map();

  note(name, second, value) {
    const graph = this.#of.get(name) ?? {values: [], second: second - 1};
    for (let missed = Math.min(second - graph.second - 1, SHORT_SECONDS); missed > 0; missed--) graph.values.push(null);
    if (second === graph.second) graph.values.pop();
    graph.values.push(value);
    if (graph.values.length > SHORT_SECONDS) graph.values.splice(0, graph.values.length - SHORT_SECONDS);
    graph.second = second;
    this.#of.delete(name);
    this.#of.set(name, graph);
    if (this.#of.size > MAX_GRAPHS) this.#of.delete(this.#of.keys().next().value);
  }

  get(name) {
    return this.#of.get(name)?.values ?? [];
  }

  get size() {
    return this.#of.size;
  }
}

export class Cluster {
  #workers = new Map();
  #newest = 0;  // the time of the newest report
  #arrived = 0;  // when it came, by the page's clock
  #second = 0;  // the one that is being counted
  #counted = {};  // in it, by "kind reason"
  #minute = [];  // what was counted in each of the last seconds
  #happened = Object.fromEntries(KINDS.map(kind => [kind, []]));
  #number = 0;
  totals = Object.fromEntries(TOTALS.map(name => [name, []]));
  channels = new Graphs();
  clients = new Graphs();
  nodesGraphs = new Graphs();

  /** Take a report in; `ms` is the time of its position, `now` that of the page. */
  take(told, ms, now) {
    const report = {...NOTHING, ...told};
    if (ms >= this.#newest) {
      this.#newest = ms;
      this.#arrived = now;
    }
    this.#turn(Math.floor(ms / 1000));
    const before = this.#workers.get(report.worker);
    if (before && report.at <= before.report.at) return;
    const leaves = report.draining || before?.leaves;
    const worker = {report, ms, leaves, rates: {}, busy: new Map(report.busy.map(({name, events}) => [name, events]))};
    if (before && isLater(report, before.report)) this.#compare(worker, before);
    this.#workers.set(report.worker, worker);
    for (const client of report.slow) this.clients.note(client.id, this.#second, client.queuedBytes);
    for (const happening of report.happenings) this.#keep({...happening, node: report.node, number: ++this.#number});
    if (report.omitted) this.#count("omitted", "", report.omitted);
    this.#forget();
  }

  /** The workers of a node were told to drain: they may be gone before they say so. */
  expectToLeave(node) {
    for (const worker of this.#workers.values()) if (worker.report.node === node) worker.leaves = true;
  }

  #compare(worker, before) {
    const {report} = worker;
    const seconds = (report.at - before.report.at) / 1000;
    for (const name of COUNTERS) worker.rates[name] = (report[name] - before.report[name]) / seconds;
    for (const kind of BY_REASON) {
      let all = 0;
      for (const [reason, n] of Object.entries(report[kind])) {
        const more = n - (before.report[kind][reason] ?? 0);
        if (more > 0) this.#count(kind, reason, more);
        all += Math.max(0, more);
      }
      worker.rates[kind] = all / seconds;
    }
    worker.rates.channels = new Map();
    for (const [name, events] of worker.busy) {
      const earlier = before.busy.get(name);
      if (earlier <= events) worker.rates.channels.set(name, (events - earlier) / seconds);
    }
  }

  #count(kind, reason, n) {
    const name = `${kind} ${reason}`;
    this.#counted[name] = (this.#counted[name] ?? 0) + n;
  }

  #keep(happening) {
    const kept = this.#happened[happening.kind];
    if (!kept) return;
    kept.push(happening);
    if (kept.length > MAX_HAPPENINGS) kept.shift();
  }

  /** Close each second until this one; those in which nothing came are holes in the graphs. */
  #turn(second) {
    if (!this.#second) this.#second = second;
    let missing = second - this.#second;
    if (missing > SECONDS) {
      this.#second = second - SECONDS;
      missing = SECONDS;
    }
    for (; missing > 0; missing--) {
      this.#close();
      this.#second++;
    }
  }

  #close() {
    const live = [...this.#workers.values()].filter(worker => this.#second * 1000 + 1000 - worker.ms < SILENT_MS);
    const now = live.length ? {...this.#sums(live)} : null;
    for (const kind of ["dropped", "gaps"]) if (now) now[kind] = this.#sumOf(this.#counted, kind);
    for (const name of TOTALS) push(this.totals[name], now && now[name], SECONDS);
    push(this.#minute, this.#counted, SHORT_SECONDS);
    this.#counted = {};
    const nodes = Map.groupBy(live, worker => worker.report.node);
    for (const [node, workers] of nodes) this.nodesGraphs.note(node, this.#second, this.#sums(workers).delivered ?? 0);
    for (const {name, rate} of this.#channels(live)) this.channels.note(name, this.#second, rate ?? 0);
  }

  #sumOf(counted, kind) {
    return sum(Object.entries(counted).filter(([name]) => name.startsWith(`${kind} `)), ([, n]) => n);
  }

  #sums(workers) {
    const sums = {};
    for (const name of ["clients", "maxClients", "channels", "subscriptions", "behind", "replaying", "opening",
      "queuedFrames", "queuedBytes", "memoryBytes", "memoryMaxBytes", "residentBytes"])
      sums[name] = sum(workers, ({report}) => report[name] ?? 0);
    for (const name of [...COUNTERS, ...BY_REASON]) {
      const known = workers.filter(({rates}) => rates[name] !== undefined);
      sums[name] = known.length ? sum(known, ({rates}) => rates[name]) : null;
    }
    for (const [name, at] of [["lag", "p99"], ["median", "p50"]]) {
      const known = workers.map(({report}) => report.lag?.[at]).filter(seconds => seconds != null);
      sums[name] = known.length ? Math.max(...known) : null;
    }
    return sums;
  }

  #forget() {
    for (const [tag, worker] of this.#workers) {
      const silent = this.#newest - worker.ms;
      if (silent > (worker.leaves ? LEFT_MS : GONE_MS)) this.#workers.delete(tag);
    }
    while (this.#workers.size > MAX_WORKERS) {
      const [oldest] = [...this.#workers].reduce((a, b) => (a[1].ms <= b[1].ms ? a : b));
      this.#workers.delete(oldest);
    }
  }

  /** What time it is by the reports, where there are any. */
  time(now) {
    return this.#arrived ? this.#newest + this.age(now) : now;
  }

  /** Milliseconds since the newest report came; null: none has. */
  age(now) {
    return this.#arrived ? Math.max(0, now - this.#arrived) : null;
  }

  /** What it is like now, by the page's clock. */
  view(now) {
    const age = this.age(now) ?? 0;
    const workers = [...this.#workers.values()].map(worker => {
      const silentMs = this.#newest - worker.ms;
      return {...worker, silentMs: silentMs + age, silent: silentMs > SILENT_MS};
    });
    const live = workers.filter(worker => !worker.silent);
    return {
      age,
      any: workers.length > 0,
      stale: age > SILENT_MS,
      totals: this.#sums(live),
      nodes: this.#nodes(workers),
      slow: live.flatMap(({report}) => report.slow.filter(isSlow)).sort(slowest),
      busy: this.#channels(live),
      minute: this.#lastMinute(),
      sinceStart: Object.fromEntries(BY_REASON.map(kind => [kind, sum(live, ({report}) => summed(report[kind]))])),
    };
  }

  #nodes(workers) {
    const nodes = Map.groupBy(workers, worker => worker.report.node);
    return [...nodes].map(([id, of]) => {
      const live = of.filter(worker => !worker.silent);
      const shown = live.length ? live : of;
      return {
        id,
        workers: of.sort((a, b) => (a.report.worker < b.report.worker ? -1 : 1))
          .map(worker => ({...worker, sums: this.#sums([worker]), state: stateOf([worker], worker.silent ? [] : [worker])})),
        sums: this.#sums(shown),
        versions: [...new Set(shown.map(({report}) => report.version))].sort(),
        uptimeSeconds: Math.max(...shown.map(({report}) => report.uptimeSeconds)),
        silentMs: Math.min(...of.map(worker => worker.silentMs)),
        silentWorkers: of.filter(worker => worker.silent && !worker.leaves).length,
        state: stateOf(of, live),
      };
    }).sort((a, b) => RANKS.indexOf(a.state) - RANKS.indexOf(b.state) || (a.id < b.id ? -1 : 1));
  }

  /** By their clients. An event goes to each worker once, so the fastest tells a channel's rate. */
  #channels(workers) {
    const channels = new Map();
    for (const {report, rates} of workers) for (const {name, clients} of report.busy) {
      const channel = channels.get(name) ?? {name, clients: 0, rate: null};
      channel.clients += clients;
      const rate = rates.channels?.get(name);
      if (rate !== undefined) channel.rate = Math.max(channel.rate ?? 0, rate);
      channels.set(name, channel);
    }
    return [...channels.values()].sort((a, b) => b.clients - a.clients || (b.rate ?? 0) - (a.rate ?? 0) || (a.name < b.name ? -1 : 1));
  }

  #lastMinute() {
    const all = {};
    for (const counted of [...this.#minute, this.#counted])
      for (const [name, n] of Object.entries(counted)) all[name] = (all[name] ?? 0) + n;
    const minute = {omitted: all["omitted "] ?? 0};
    for (const kind of BY_REASON)
      minute[kind] = Object.entries(all).filter(([name]) => name.startsWith(`${kind} `))
        .map(([name, n]) => [name.slice(kind.length + 1), n]).sort((a, b) => b[1] - a[1]);
    return minute;
  }

  /** The newest first, of these kinds. */
  happenings(kinds) {
    return kinds.flatMap(kind => this.#happened[kind]).sort((a, b) => b.number - a.number);
  }

  /** How much is kept, to hold it to its bounds. */
  get sizes() {
    return {
      workers: this.#workers.size,
      happenings: Math.max(...KINDS.map(kind => this.#happened[kind].length)),
      seconds: this.totals.clients.length,
      minute: this.#minute.length,
      graphs: Math.max(this.channels.size, this.clients.size, this.nodesGraphs.size),
    };
  }
}

function push(values, value, most) {
  values.push(value);
  if (values.length > most) values.shift();
}

/** Whether the counters of a report go on from those of one before it. */
function isLater(report, before) {
  return report.at > before.at && COUNTERS.every(name => report[name] >= before[name]) &&
    BY_REASON.every(kind => summed(report[kind]) >= summed(before[kind]));
}

const isSlow = ({queuedBytes, queuedFrames, state}) => queuedBytes > 0 || queuedFrames > 0 || state === "behind";

const slowest = (a, b) =>
  b.queuedBytes - a.queuedBytes || (b.behindSeconds ?? 0) - (a.behindSeconds ?? 0) || (a.id < b.id ? -1 : 1);

const RANKS = ["silent", "no link", "full", "draining", "ready", "left"];  // what needs a look comes first

function stateOf(workers, live) {
  if (workers.every(({leaves}) => leaves)) return live.length ? "draining" : "left";
  if (!live.length) return "silent";
  if (live.some(({report}) => !report.busUp)) return "no link";
  if (live.some(({leaves}) => leaves)) return "draining";
  if (live.some(({report}) => report.full)) return "full";
  return "ready";
}
