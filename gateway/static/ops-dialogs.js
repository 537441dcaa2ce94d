// Looking at one client, ending it, and draining a node: what is asked before it is done.

import {SHORT_SECONDS} from "./ops-cluster.js";
import {ask, clientPath} from "./ops-ask.js";
import {$, element, mark, write} from "./ops-dom.js";
import {graph} from "./ops-graph.js";
import {bytes, count, date, duration, several} from "./ops-words.js";

const AGAIN_MS = 1000;
const MOST_NAMES = 200;
const TONES = {__proto__: null, live: "good", behind: "warn", replaying: "note", ending: "note"};

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));
const yes = value => (value ? "yes" : "no");

// ---- a client

const FACTS = [
  ["User", ({user}) => user || "none"],
  ["Address", ({address}) => address],
  ["Node", ({node}) => node],
  ["Opened", ({openedAt}, now) => `${date(openedAt)}, ${duration(Math.max(0, now - openedAt) / 1000)} ago`],
  ["Waiting", ({queuedFrames, queuedBytes}) => `${several(queuedFrames, "frame")}, ${bytes(queuedBytes)}`],
  ["Behind for", ({behindSeconds}) => behindSeconds ? duration(behindSeconds) : "not behind"],
  ["Delivered", ({delivered}) => several(delivered, "event")],
  ["Dropped", ({dropped}) => count(dropped)],
  ["Replayed", ({replayed}) => count(replayed)],
  ["Gaps", ({gaps}) => count(gaps)],
  ["Position", ({position}) => position || "none"],
  ["Lane", ({lane}) => lane],
  ["Request", ({request}) => request],
  ["Token expires", ({expires}) => expires ? date(expires) : "never, or there is none"],
  ["Anonymous", ({anonymous}) => yes(anonymous)],
  ["Annotated", ({annotated}) => yes(annotated)],
  ["A poll", ({poll}) => yes(poll)],
  ["Channels", ({channelNames}) => several(channelNames.length, "channel")],
].map(([title, value]) => {
  const shown = element("dd", "name");
  return {value, shown, made: element("div", "", element("dt", "", title), shown)};
});
const names = element("dd", "names mono name");
const drawn = graph(SHORT_SECONDS, {least: 1024});
$("inspect-facts").append(...FACTS.map(({made}) => made), element("div", "wide", names));
$("inspect-graph").append(drawn.element);

let inspected = null;  // the id, and what ends the looking

/** `now` returns what time it is for the nodes. */
export function inspect(id, now) {
  close();
  const looking = new AbortController();
  inspected = {id, looking};
  write($("inspect-title"), id);
  write($("inspect-state"), "looking…");
  mark($("inspect-state"), "tone", "");
  $("inspect-facts").hidden = true;
  $("end").disabled = false;
  question(false);
  note("");
  drawn.show([]);
  $("inspect").showModal();
  $("inspect-close").focus();
  watch(id, now, looking.signal);
}

async function watch(id, now, signal) {
  for (const queue = []; !signal.aborted; await sleep(AGAIN_MS)) {
    if (document.visibilityState === "hidden") continue;
    try {
      const client = await ask("GET", clientPath(id), signal);
      if (signal.aborted) return;
      queue.push(client.queuedBytes);
      if (queue.length > SHORT_SECONDS) queue.shift();
      show(client, queue, now());
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 404) return gone("This client is gone.");
      note(error.message);
      if (error.status === 401 || error.status === 403) return;
    }
  }
}

function show(client, queue, now) {
  $("inspect-facts").hidden = false;
  write($("inspect-state"), client.state);
  mark($("inspect-state"), "tone", TONES[client.state] ?? "");
  for (const {value, shown} of FACTS) write(shown, value(client, now));
  const {channelNames} = client;
  const more = channelNames.length - MOST_NAMES;
  write(names, channelNames.slice(0, MOST_NAMES).join(", ") + (more > 0 ? ` and ${count(more)} more` : ""));
  drawn.show(queue);
  note("");
}

function gone(sentence) {
  write($("inspect-state"), "gone");
  mark($("inspect-state"), "tone", "note");
  question(false);
  if ($("end") === document.activeElement) $("inspect-close").focus();
  $("end").disabled = true;
  note(sentence);
}

const note = sentence => write($("inspect-note"), sentence);

function question(isAsked) {
  $("end-question").hidden = !isAsked;
  $("inspect-buttons").hidden = isAsked;
}

async function end() {
  const {id, looking} = inspected;
  $("end-yes").disabled = true;
  try {
    await ask("DELETE", clientPath(id), looking.signal);
    looking.abort();
    gone("Ended, for good.");
  } catch (error) {
    if (looking.signal.aborted) return;
    if (error.status === 404) gone("This client was gone already.");
    else note(`Not ended: ${error.message}`);
  } finally {
    $("end-yes").disabled = false;
    question(false);
    if ($("inspect").open) $("inspect-close").focus();
  }
}

function close() {
  inspected?.looking.abort();
  inspected = null;
  if ($("inspect").open) $("inspect").close();
}

$("end").addEventListener("click", () => { question(true); $("end-no").focus(); });
$("end-no").addEventListener("click", () => { question(false); $("end").focus(); });
$("end-yes").addEventListener("click", end);
$("inspect-close").addEventListener("click", close);
$("inspect").addEventListener("close", close);
$("inspect").addEventListener("cancel", event => {
  if ($("end-question").hidden) return;
  event.preventDefault();  // Escape leaves the question first
  $("end-no").click();
});

// ---- a node

let draining = null;  // the id of the node, and what to tell when it drains

/** Ask whether a node is to drain; `others` take its clients. `drained(id)` is called when it does. */
export function askToDrain({id, clients, workers, others}, drained) {
  draining = {id, drained};
  write($("drain-title"), `Drain ${id}`);
  write($("drain-name"), id);
  write($("drain-clients"), several(clients, "client"));
  write($("drain-workers"), workers === 1 ? "process ends with status 0" : `${workers} workers end with status 0`);
  $("drain-last").hidden = others > 0;
  $("drain-sure").checked = false;
  $("drain-yes").disabled = true;
  write($("drain-yes"), `Drain ${id}`);
  write($("drain-note"), "");
  $("drain").showModal();
  $("drain-sure").focus();
}

async function drain() {
  const {id, drained} = draining;
  $("drain-yes").disabled = true;
  try {
    await ask("POST", `/nodes/${encodeURIComponent(id)}/drain`);
    drained(id);
    $("drain").close();
  } catch (error) {
    write($("drain-note"), `Not drained: ${error.message}`);
    $("drain-yes").disabled = !$("drain-sure").checked;
  }
}

$("drain-sure").addEventListener("input", () => { $("drain-yes").disabled = !$("drain-sure").checked; });
$("drain-form").addEventListener("submit", event => { event.preventDefault(); drain(); });
$("drain-no").addEventListener("click", () => $("drain").close());
