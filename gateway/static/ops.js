// The page for operators: one stream of reports, what it says of the cluster, and what may be done about it.
//
// 1. All that is shown comes from the reports; only clients that are looked for are asked for.
// 2. Reports are taken in as they come, and drawn twice a second at most, however many workers there are; less often
//    where drawing takes its time: never for more than a tenth of it.
// 3. What strangers chose (users, addresses, channels, ids) is text, wherever it is shown.

import {connect} from "/client.js";
import {ask, clientPath, currentToken, useToken} from "./ops-ask.js";
import {channelPanel} from "./ops-channels.js";
import {foundPanel, slowPanel} from "./ops-clients.js";
import {Cluster} from "./ops-cluster.js";
import {askToDrain, inspect} from "./ops-dialogs.js";
import {$, mark, write} from "./ops-dom.js";
import {happeningPanel, showReasons} from "./ops-happenings.js";
import {nodePanel} from "./ops-nodes.js";
import {merge, parse} from "./ops-search.js";
import {showTotals, showVerdict} from "./ops-verdict.js";
import {duration} from "./ops-words.js";

const CHANNEL = "gateway:ops";
const REPLAY = 256;  // what the gateway keeps of it
const DRAW_MS = 500;
const IDLE = 9;  // times as long as drawing took, until it is due again
const TYPING_MS = 250;
const SEARCH_AGAIN_MS = 3000;
const MIN_DELAY_MS = 500, MAX_DELAY_MS = 10_000;  // an operator does not want to wait for longer

let cluster = new Cluster();

// ---- the stream

let stream = null;
let state = {status: "connecting"};
let since = Date.now();  // it has been like that
let failed = null;  // the last error, by which an end is explained

function watch() {
  stream?.close();
  cluster = new Cluster();
  failed = null;
  $("token-panel").hidden = true;
  $("forget").hidden = !currentToken();
  const opened = stream = connect({
    url: "/events", channels: [CHANNEL], replay: REPLAY, minDelay: MIN_DELAY_MS, maxDelay: MAX_DELAY_MS,
    ...(currentToken() && {token: currentToken()}),
  });
  const heard = listener => told => { if (stream === opened) listener(told); };
  stream.on("report", heard(take));
  stream.when("state", heard(turn));
  stream.when("error", heard(fail));
  turn(stream.state);
}

function take(event) {
  let report;
  try { report = event.json(); } catch { return; }
  cluster.take(report, Number(event.id.split("-")[0]), Date.now());
  draw();
}

function turn(now) {
  if (now.status !== state.status || now.attempt !== state.attempt) since = Date.now();
  state = now;
  draw();
}

function fail(error) {
  failed = error;
  if (state.status === "closed" && NEEDS_TOKEN.includes(error.status)) askForToken(error);
  draw();
}

const NEEDS_TOKEN = [401, 403];

function askForToken({status, message}) {
  const refused = currentToken() ? "Not with this token" : "Not without a token";
  write($("token-why"), status === 401 && !currentToken() ? "An administrator's token is needed" : refused);
  write($("token-detail"), message);
  $("token-panel").hidden = false;
  if (!document.querySelector("dialog[open]")) $("token").focus();
}

/** What the stream is like, as a tone and a sentence. */
function streamState() {
  switch (state.status) {
    case "open": return {tone: "good", text: "live"};
    case "reconnecting": {
      const left = (state.delay - (Date.now() - since)) / 1000;
      return {tone: "warn", text: left > 0.5 ? `coming back in ${duration(Math.round(left))}` : "coming back"};
    }
    case "closed":
      if (!$("token-panel").hidden) return {tone: "bad", text: "token needed"};
      return {tone: "bad", text: ["ended", failed?.message ?? state.reason].filter(Boolean).join(": ")};
    default: return {tone: "wait", text: "connecting"};
  }
}

// ---- drawing

let due = null;
let next = 0;

function draw() {
  due ??= setTimeout(() => requestAnimationFrame(() => {
    due = null;
    const began = performance.now();
    drawNow();
    const ended = performance.now();
    next = Math.max(began + DRAW_MS, ended + IDLE * (ended - began));
  }), Math.max(0, next - performance.now()));
}

const actions = {
  inspect: id => inspect(id, () => cluster.time(Date.now())),
  drain,
  redraw: () => drawNow(),
  self: () => stream?.clientId ?? "",
};
const showNodes = nodePanel(actions);
const showSlow = slowPanel(actions);
const showFound = foundPanel(actions);
const showChannels = channelPanel();
const happenings = happeningPanel(actions);

let wanted = parse("");  // what is looked for
let found = null;  // and what was found; null: nobody is looked for

function drawNow() {
  const view = cluster.view(Date.now());
  for (const node of view.nodes) node.graph = cluster.nodesGraphs.get(node.id);
  const told = streamState();
  mark(document.body, "reported", String(view.any));
  write($("stream"), told.text);
  mark($("stream"), "tone", told.tone);
  mark($("stream"), "state", state.status);
  $("again").hidden = state.status !== "closed" || !$("token-panel").hidden;
  showVerdict(view, told, cluster.totals);
  showTotals(view, cluster.totals);
  showNodes(view);
  showSlow(view, cluster.clients, wanted);
  showFound(found, cluster.clients);
  showChannels(view, cluster.channels, wanted);
  happenings.show(cluster, view, wanted);
  showReasons(view);
}

function drain(id) {
  const {nodes} = cluster.view(Date.now());
  const node = nodes.find(each => each.id === id);
  if (!node) return;
  const others = nodes.filter(each => each.id !== id && ["ready", "full"].includes(each.state)).length;
  askToDrain({id, clients: node.sums.clients, workers: node.workers.length, others}, drained => {
    cluster.expectToLeave(drained);
    drawNow();
  });
}

// ---- looking for clients

let looking = null;

/** Ask for whom the field names, and again for as long as it names them. */
async function look() {
  looking?.abort();
  wanted = parse($("filter").value);
  if (!wanted.queries.length) {
    found = looking = null;
    return drawNow();
  }
  const {signal} = looking = new AbortController();
  found = {};
  drawNow();
  for (; !signal.aborted; await new Promise(resolve => setTimeout(resolve, SEARCH_AGAIN_MS))) {
    if (document.visibilityState === "hidden") continue;
    const now = await search(wanted, signal);
    if (signal.aborted) return;
    found = now;
    drawNow();
  }
}

async function search({queries, id}, signal) {
  const asked = queries.map(query => ask("GET", `/clients?${query}`, signal));
  if (id) asked.push(ask("GET", clientPath(id), signal).then(client => ({clients: [client], matched: 1, missing: 0})));
  const all = await Promise.allSettled(asked);
  const answers = all.filter(({status}) => status === "fulfilled").map(({value}) => value);
  return answers.length ? merge(answers) : {error: all[0].reason.message};
}

let typing = null;

$("filter").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(look, TYPING_MS);
});
$("search").addEventListener("submit", event => {
  event.preventDefault();
  clearTimeout(typing);
  look();
});

// ---- keys, buttons

const isTyping = ({target}) => target.matches("input:not([type=checkbox]), textarea, select");

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && event.target === $("filter")) {
    $("filter").value = "";
    look();
    $("filter").blur();
  }
  if (isTyping(event)) return;
  if (event.key === "/") {
    event.preventDefault();
    $("filter").select();
  }
  if (event.key === "p") $("pause").click();
});

$("pause").addEventListener("click", () => { happenings.pause(cluster); drawNow(); });
$("kinds").addEventListener("input", () => drawNow());
$("again").addEventListener("click", watch);
$("token-panel").addEventListener("submit", event => {
  event.preventDefault();
  useToken($("token").value.trim(), $("token-kept").checked);
  $("token").value = "";
  watch();
});
$("forget").addEventListener("click", () => { useToken("", false); watch(); });
document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") draw(); });

setInterval(draw, 1000);  // what is silent is so by the second, though nothing comes
watch();
