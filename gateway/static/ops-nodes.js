// The nodes, their workers folded below them.

import {SHORT_SECONDS} from "./ops-cluster.js";
import {$, Rows, bar, cell, element, explain, mark, row, walk, write} from "./ops-dom.js";
import {graph} from "./ops-graph.js";
import {FULL, LAG_SECONDS} from "./ops-verdict.js";
import {NOTHING, bytes, count, duration, lag, percent, rate, several} from "./ops-words.js";

const shut = new Set();
const open = new Set();
const MANY_WORKERS = 8;  // of one node: they are folded until asked for, and with several nodes always
const STATES = {
  __proto__: null, ready: "good", full: "warn", draining: "note", left: "note", silent: "bad", "no link": "bad",
};

function nodeRow({node, worker}, actions) {
  const state = element("span", "state");
  const name = element("bdi", "name mono");
  const more = element("span", "muted about");
  const fold = element("button", "fold", name);
  fold.type = "button";
  const clients = element("span"), clientBar = bar();
  const published = element("span"), delivered = element("span"), drawn = graph(SHORT_SECONDS);
  const late = element("span"), median = element("span", "muted below");
  const behind = element("span"), waiting = element("span", "muted below");
  const cpu = element("span");
  const memory = element("span"), memoryBar = bar();
  const drain = element("button", "small", "Drain…");
  drain.type = "button";
  const made = row(worker ? "worker" : "node",
    cell("", "who", worker ? name : fold, state, more),
    cell("Clients", "metered", clients, clientBar.element),
    cell("Published/s", "figure", published),
    cell("Delivered/s", "figure drawn", delivered, ...(worker ? [] : [drawn.element])),
    cell("Lag, p99", "figure", late, median),
    cell("Behind", "figure", behind, waiting),
    cell("Memory", "metered", memory, memoryBar.element),
    cell("CPU", "figure", cpu),
    cell("", "act", ...(worker ? [] : [drain])));
  if (!worker) {
    fold.addEventListener("click", () => {
      const id = made.dataset.node;
      const isOpen = fold.getAttribute("aria-expanded") === "true";
      for (const [set, has] of [[open, !isOpen], [shut, isOpen]]) has ? set.add(id) : set.delete(id);
      actions.redraw();
    });
    drain.addEventListener("click", () => actions.drain(made.dataset.node));
  }
  return {
    element: made,
    show({node, worker, isOpen}) {
      const shown = worker ?? node;
      const {sums} = shown;
      const gone = shown.state === "silent" || shown.state === "left";
      made.classList.toggle("gone", gone);
      mark(made, "node", node.id);
      write(name, worker ? worker.report.worker : node.id);
      explain(name, worker ? `A worker of ${node.id}` : node.id);
      write(state, gone && shown.state === "silent" ? `silent for ${duration(shown.silentMs / 1000)}` : shown.state);
      mark(state, "tone", STATES[shown.state] ?? "");
      write(more, worker ? `up ${duration(worker.report.uptimeSeconds)}` : about(node));
      const {maxClients, memoryMaxBytes} = sums;
      const part = maxClients ? sums.clients / maxClients : 0;
      write(clients, count(sums.clients));
      explain(clients, maxClients ? `${count(sums.clients)} of at most ${count(maxClients)}` : "");
      clientBar.show(part, part > FULL ? "warn" : "");
      write(published, rate(sums.published));
      write(delivered, rate(sums.delivered));
      write(late, lag(sums.lag));
      write(median, sums.median == null ? "" : `p50 ${lag(sums.median)}`);
      mark(late, "tone", sums.lag > LAG_SECONDS ? "warn" : "");
      write(behind, count(sums.behind));
      write(waiting, sums.queuedBytes ? bytes(sums.queuedBytes) : "");
      mark(behind, "tone", sums.behind ? "warn" : "");
      const used = memoryMaxBytes ? sums.memoryBytes / memoryMaxBytes : 0;
      write(memory, bytes(sums.residentBytes || sums.memoryBytes));
      const bound = memoryMaxBytes ? ` of at most ${bytes(memoryMaxBytes)}` : "";
      explain(memory, `${bytes(sums.memoryBytes)}${bound} of histories and outboxes; ${bytes(sums.residentBytes)} resident`);
      memoryBar.show(used, used > FULL ? "warn" : "");
      write(cpu, sums.cpuSeconds == null ? NOTHING : percent(sums.cpuSeconds));
      if (worker) return;
      drawn.show(node.graph);
      fold.setAttribute("aria-expanded", String(isOpen));
      fold.setAttribute("aria-label", `${node.id}: ${several(node.workers.length, "worker")}`);
      const leaves = node.state === "draining" || gone;
      drain.disabled = leaves;
      write(drain, gone ? NOTHING : leaves ? "Draining" : "Drain…");
      drain.setAttribute("aria-label", leaves ? `${node.id} is draining` : `Drain ${node.id}`);
    },
  };
}

const about = ({versions, uptimeSeconds, workers}) =>
  `${versions.join(", ")} · up ${duration(uptimeSeconds)}${workers.length > 1 ? ` · ${workers.length} workers` : ""}`;

export function nodePanel(actions) {
  const name = ({node, worker}) => (worker ? `worker ${worker.report.worker}` : `node ${node.id}`);
  const rows = new Rows($("nodes").tBodies[0], name, item => nodeRow(item, actions));
  walk($("nodes"));
  return view => {
    const ids = new Set(view.nodes.map(({id}) => id));
    for (const set of [open, shut]) for (const id of set) if (!ids.has(id)) set.delete(id);
    rows.show(view.nodes.flatMap(node => {
      const {workers} = node;
      const usual = view.nodes.length === 1 && workers.length > 1 && workers.length <= MANY_WORKERS;
      const isOpen = open.has(node.id) || usual && !shut.has(node.id);
      return [{node, isOpen}, ...(isOpen ? workers.map(worker => ({node, worker})) : [])];
    }));
    const workers = view.nodes.reduce((all, node) => all + node.workers.length, 0);
    write($("nodes-note"), view.any ? `${several(view.nodes.length, "node")}, ${several(workers, "worker")}` : "");
    $("nodes").classList.toggle("stale", view.stale);
  };
}
