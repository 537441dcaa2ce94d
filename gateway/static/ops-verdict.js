// What the first glance answers: what needs a look, and the totals with their graphs.

import {SECONDS, SHORT_SECONDS} from "./ops-cluster.js";
import {$, Rows, element, mark, write} from "./ops-dom.js";
import {graph} from "./ops-graph.js";
import {NOTHING, because, brief, count, duration, lag, percent, rate, several} from "./ops-words.js";

export const LAG_SECONDS = 1;  // from which it is worth a look
export const FULL = 0.9;  // of clients and of memory, likewise

const TONES = ["bad", "warn", "note"];

/** Each with a tone, a sentence, and a key that stays while the figures in it change. */
export function problems(view, stream, graphs) {
  const found = [];
  const say = (tone, key, text) => found.push({tone, key, text});
  if (["bad", "warn"].includes(stream.tone)) say(stream.tone, "stream", `This page is not connected: ${stream.text}`);
  if (view.stale) say("bad", "stale", `Nothing has been reported for ${duration(view.age / 1000)}`);
  for (const node of view.nodes) {
    const {id, sums} = node;
    if (node.state === "silent") say("bad", `silent ${id}`, `${id} is silent for ${duration(node.silentMs / 1000)}`);
    else if (node.silentWorkers) say("bad", `worker ${id}`, `${several(node.silentWorkers, "worker")} of ${id} silent`);
    if (node.state === "no link") say("bad", `bus ${id}`, `${id} has no link to Redis`);
    if (node.state === "draining") say("note", `draining ${id}`, `${id} drains, ${several(sums.clients, "client")} left`);
    if (node.state === "left") say("note", `left ${id}`, `${id} has left`);
    if (node.state === "full") say("warn", `full ${id}`, `${id} is full`);
    else if (sums.maxClients && sums.clients > FULL * sums.maxClients) say("warn", `nearly ${id}`, `${id} is nearly full`);
    const used = sums.memoryMaxBytes && sums.memoryBytes / sums.memoryMaxBytes;
    if (used > FULL) say("warn", `memory ${id}`, `${id} has used ${percent(used)} of its memory`);
  }
  const lost = (tone, kind, reason, what) => say(tone, `${kind} ${reason}`, `${what} in the last minute: ${because(kind, reason)}`);
  for (const [reason, n] of view.minute.gaps) lost("bad", "gap", reason, several(n, "gap"));
  for (const [reason, n] of view.minute.dropped)
    lost(reason === "replaced" ? "note" : "warn", "dropped", reason, `${several(n, "event")} dropped`);
  const behind = view.totals.behind;
  if (behind) say("warn", "behind", `${several(behind, "client")} behind`);
  const slowest = lately(graphs.lag);
  if (slowest > LAG_SECONDS) say("warn", "lag", `A delivery takes up to ${lag(slowest)}`);
  const refused = view.minute.refused.reduce((all, [, n]) => all + n, 0);
  if (refused) say("note", "refused", `${several(refused, "request")} refused in the last minute`);
  const versions = new Set(view.nodes.flatMap(node => node.versions));
  if (versions.size > 1) say("note", "versions", `Versions ${[...versions].sort().join(" and ")} side by side`);
  return found.sort((a, b) => TONES.indexOf(a.tone) - TONES.indexOf(b.tone));
}

/** The greatest of the last seconds. */
const lately = values => values.slice(-5).reduce((high, value) => Math.max(high, value ?? 0), 0);

const HEADS = {
  bad: "Needs a look", warn: "Worth a look", note: "All is well", good: "All is well", wait: "Waiting for the first report",
};

const problemRows = new Rows($("problems"), ({key}) => key, () => {
  const row = element("li");
  return {element: row, show({tone, text}) { mark(row, "tone", tone); write(row, text); }};
});

let said = "";

export function showVerdict(view, stream, graphs) {
  const found = problems(view, stream, graphs);
  const tone = found[0]?.tone ?? (view.any ? "good" : "wait");
  mark($("verdict"), "tone", tone);
  write($("verdict-head"), HEADS[tone]);
  const span = graphs.clients.length < SHORT_SECONDS ? "since this page was opened" : "in the last minute";
  const calm = tone === "good" ? [{key: "calm", tone, text: `Nothing lost ${span}, nobody is behind`}] : [];
  problemRows.show([...found, ...calm]);
  // Said aloud when something comes up or is over, not with each change of a figure.
  const keys = [tone, ...found.map(({key}) => key)].join("\n");
  if (keys !== said) write($("verdict-said"), [HEADS[tone], ...found.map(({text}) => text)].join(". "));
  said = keys;
  document.title = `${{bad: "✖ ", warn: "▲ "}[tone] ?? ""}Operations · SSE gateway`;
}

const TILES = [
  {name: "clients", title: "Clients", write: count, peak: "most"},
  {name: "channels", title: "Channels", write: count, peak: "most", hint: "A channel counts once for each worker that has it"},
  {name: "published", title: "Published/s", write: rate, peak: "peak"},
  {name: "delivered", title: "Delivered/s", write: rate, peak: "peak"},
  {name: "lag", title: "Lag, p99", write: lag, peak: "worst", least: 0.01},
  {name: "dropped", title: "Dropped/s", write: rate, sum: true, tone: "warn"},
  {name: "gaps", title: "Gaps/s", write: rate, sum: true, tone: "bad"},
].map(tile => {
  const value = element("dd", "value");
  const drawn = graph(SHORT_SECONDS, {most: SECONDS, least: tile.least});
  const note = element("dd", "muted");
  const made = element("div", "tile", element("dl", "", element("dt", "", tile.title), value, note), drawn.element);
  made.id = `total-${tile.name}`;
  made.title = tile.hint ?? "";
  $("tiles").append(made);
  return {...tile, value, drawn, note, made};
});

export function showTotals(view, graphs) {
  $("tiles").classList.toggle("stale", view.stale || !view.any);
  for (const {name, write: words, peak, sum, tone, value, drawn, note, made} of TILES) {
    const now = view.totals[name];
    const values = graphs[name];
    const over = values.reduce((all, each) => sum ? all + (each ?? 0) : Math.max(all, each ?? 0), 0);
    const highest = words === lag ? lag(over) : brief(over);
    const extent = sum ? `${highest} in ${duration(values.length)}` : `${peak} ${highest}`;
    write(value, view.any ? words(now) : NOTHING);
    write(note, values.length ? extent : "");
    mark(made, "tone", tone && over ? tone : "");
    drawn.show(values);
  }
}
