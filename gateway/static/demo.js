const ROWS = 200;  // enough to read back, few enough to lay out in every animation frame
const $ = id => document.getElementById(id);
const value = id => $(id).value.trim();
const names = id => value(id).split(",").map(name => name.trim()).filter(Boolean);
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

function parse(json) {
  try { return JSON.parse(json); } catch { return null; }
}

// ---- the stream

const GAPS = {
  trimmed: "history no longer reaches back that far",
  unknown: "this event id is not known here",
  restarted: "the bus was restarted",
};
const CONTROL = {
  __proto__: null,  // publishers choose event types: "constructor" is not one of ours
  connected: ({clientId, channels}) => `Client ${clientId} on ${channels.join(", ")}`,
  gap: ({channels, reason}) => `Events may be missing on ${channels.join(", ")}: ${GAPS[reason] ?? reason}`,
  dropped: ({count}) => `${count} events left out here: this reader was too slow`,
  reconnect: ({reason}) => `The node asks to connect again: ${reason}`,
  closed: ({reason}) => `The node has ended the stream for good: ${reason}`,
};
const clock = new Intl.DateTimeFormat("en-GB", {hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3});
const STATES = ["reconnecting", "open", "ended"];  // by EventSource.readyState

let source = null;
let received = 0;
let lastEventId = "";
let arrived = [];  // since the last animation frame, at most ROWS

function authorization() {
  return value("token") ? {Authorization: `Bearer ${value("token")}`} : {};
}

function streamQuery() {
  const query = new URLSearchParams(names("channels").map(channel => ["channel", channel]));
  if (value("user")) query.set("user", value("user"));
  switch (value("from")) {
    case "earliest": query.set("lastEventId", "earliest"); break;
    case "last": query.set("replay", value("from-count")); break;
    case "id": query.set("lastEventId", value("from-id")); break;
  }
  return query;
}

function connect() {
  source?.close();
  const query = streamQuery();
  if (value("token")) query.set("token", value("token"));
  source = new EventSource(`/events?${query}`);
  showState("connecting");
  listen();
}

function disconnect() {
  source.close();
  showState("disconnected");
}

// Adding the same listener twice is a no-op, so this may run whenever a field changes.
function listen() {
  if (!source) return;
  for (const type of ["open", "error", "message", ...Object.keys(CONTROL), value("publish-event"), ...names("types")])
    if (type) source.addEventListener(type, receive);
}

// A publisher may call an event "open" or "error" too: only a MessageEvent came from the stream.
function receive(event) {
  if (!(event instanceof MessageEvent)) {
    if (event.target !== source) return;
    showState(STATES[source.readyState]);
    if (source.readyState === EventSource.CLOSED) showWhyEnded(source);
    return;
  }
  lastEventId = event.lastEventId;
  if (!arrived.length) requestAnimationFrame(showArrived);
  arrived.push({event, number: ++received, time: new Date()});
  if (arrived.length > ROWS) arrived.shift();
}

function showState(state) {
  $("state").dataset.state = state;
  $("state").textContent = state;
  $("disconnect").disabled = state === "ended" || state === "disconnected";
}

// An EventSource tells no status, so the same is asked for as a poll, which does.
async function showWhyEnded(ended) {
  const query = streamQuery();
  query.set("wait", "0");
  let why = "the node closed it for good";
  try {
    const response = await fetch(`/poll?${query}`, {headers: authorization(), cache: "no-store"});
    if (!response.ok) why = await refusal(response);
  } catch {
    why = "the node does not answer";
  }
  if (source === ended && $("state").dataset.state === "ended") $("state").textContent = `ended: ${why}`;
}

async function refusal(response) {
  const problem = parse(await response.text());
  const help = response.status === 401 ? ` Put ${value("token") ? "another" : "a"} token into the field Token.` : "";
  return `${response.status}: ${problem?.detail ?? problem?.title ?? response.statusText}${help}`;
}

function showArrived() {
  const connected = arrived.findLast(({event}) => event.type === "connected");
  if (connected) $("client-id").textContent = parse(connected.event.data)?.clientId ?? "–";
  $("last-event-id").textContent = lastEventId || "–";
  $("received").textContent = received.toLocaleString("en");
  $("events").prepend(...arrived.map(row).reverse());
  while ($("events").childElementCount > ROWS) $("events").lastChild.remove();
  arrived = [];
}

function row({event, number, time}) {
  const control = event.type in CONTROL;
  const item = document.createElement("li");
  item.className = control ? `control ${event.type}` : "event";
  item.dataset.type = event.type;
  item.append(
    cell("span", "number", `#${number}`),
    cell("time", "time", clock.format(time)),
    cell("span", "type", event.type),
    cell("pre", "data", control ? sentence(event) : event.data),
    // Of the control events only `connected` has an id of its own; the others repeat the last one.
    cell("span", "id", control && event.type !== "connected" ? "" : event.lastEventId),
  );
  return item;
}

function cell(tag, name, text) {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
}

function sentence({type, data}) {
  try { return CONTROL[type](JSON.parse(data)); } catch { return data; }
}

// ---- publishing

async function post(path, type, body) {
  const response = await fetch(path, {method: "POST", headers: {"Content-Type": type, ...authorization()}, body});
  if (response.ok) return response.text();
  throw new Error(await refusal(response));
}

function publishPath() {
  const query = value("publish-event") && `?${new URLSearchParams({event: value("publish-event")})}`;
  return `/publish/${encodeURIComponent(value("publish-channel"))}${query}`;
}

async function publishOne() {
  const {id} = JSON.parse(await post(publishPath(), "text/plain", $("publish-data").value));
  return `Accepted as ${id}`;
}

async function publishHundred() {
  const event = value("publish-event") || undefined;
  const lines = Array.from({length: 100}, (_, i) =>
    JSON.stringify({channel: value("publish-channel"), event, data: `${i + 1} of 100`}) + "\n");
  const text = await post("/publish", "application/x-ndjson", lines.join(""));
  const answers = text.trim().split("\n").map(line => JSON.parse(line));
  const refused = answers.filter(answer => !answer.id);
  if (refused.length) throw new Error(`${refused.length} of 100 refused, the first in line ${refused[0].line}: ${refused[0].detail}`);
  return `100 accepted, the last as ${answers.at(-1).id}`;
}

async function report(publishing) {
  const result = $("result");
  try {
    result.textContent = await publishing;
    result.dataset.outcome = "accepted";
  } catch (error) {
    result.textContent = error.message;
    result.dataset.outcome = "refused";
  }
}

// ---- live counts

const number = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const compact = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});
const count = n => (n < 100_000 ? number : compact).format(n);

const DENIED = {
  401: "No counts: /stats wants a token",
  403: "No counts: /stats is for administrators",
};

async function watchStats() {
  let denied = null;  // the token that /stats did not take; it is not asked again with the same
  for (let before = null; ; await sleep(1000)) {
    const token = value("token");
    if (document.visibilityState === "hidden" || token === denied) { before = null; continue; }
    let note = "No counts: /stats does not answer";
    try {
      const signal = AbortSignal.timeout(5000);
      const response = await fetch("/stats", {headers: authorization(), cache: "no-store", signal});
      if (response.status in DENIED) [denied, note] = [token, DENIED[response.status]];
      if (!response.ok) throw new Error(response.status);
      const now = {...await response.json(), at: performance.now()};
      showStats(now, before);
      before = now;
      note = "Live counts of all nodes";
    } catch {
      before = null;
    }
    $("stats").classList.toggle("stale", !before);
    if ($("stats-note").textContent !== note) $("stats-note").textContent = note;  // said aloud once
  }
}

function showStats(now, before) {
  for (const name of ["clients", "channels", "dropped"]) $(`stat-${name}`).textContent = count(now[name]);
  $("stat-nodes").textContent = count(now.nodes.length);
  for (const name of ["delivered", "published"]) {
    const rate = before && (now[name] - before[name]) / (now.at - before.at) * 1000;
    $(`stat-${name}-rate`).textContent = rate >= 0 && before ? count(rate) : "–";  // a restarted node counts from 0
  }
}

// ---- the same from a shell

const quote = text => `'${text.replaceAll("'", `'\\''`)}'`;

// The token itself is never shown: the shell is to know it as TOKEN.
function showCommands() {
  const token = value("token") ? ' -H "Authorization: Bearer $TOKEN"' : "";
  $("curl-subscribe").textContent = `curl -N${token} ${quote(`${location.origin}/events?${streamQuery()}`)}`;
  $("curl-publish").textContent =
    `curl${token} -H 'Content-Type: text/plain' --data-raw ${quote($("publish-data").value)} ${quote(location.origin + publishPath())}`;
}

// The clipboard exists on https and localhost only; elsewhere the selected line is left to Ctrl+C.
async function copy(button, line) {
  getSelection().selectAllChildren(line);
  const copied = await navigator.clipboard?.writeText(line.textContent).then(() => true, () => false);
  button.textContent = copied ? "Copied" : "Selected";
  await sleep(1500);
  button.textContent = "Copy";
}

function showFrom() {
  const from = value("from");
  $("from-last").hidden = $("from-count").disabled = from !== "last";
  $("from-event").hidden = $("from-id").disabled = from !== "id";
  if (from === "id") $("from-id").value ||= lastEventId;
}

$("subscribe").addEventListener("submit", event => { event.preventDefault(); connect(); });
$("disconnect").addEventListener("click", disconnect);
$("from").addEventListener("input", showFrom);
$("publish").addEventListener("submit", event => { event.preventDefault(); report(publishOne()); });
$("publish-hundred").addEventListener("click", () => report(publishHundred()));
$("publish-data").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("publish").requestSubmit();
});
for (const command of ["subscribe", "publish"])
  $(`copy-${command}`).addEventListener("click", event => copy(event.currentTarget, $(`curl-${command}`)));
document.addEventListener("input", showCommands);
document.addEventListener("change", listen);
showFrom();
showCommands();
watchStats();
