// The stream of the page: its channels, and what the client does, shown as it happens.

import { connect } from "/client.js";
import { addEvent, addNotice, last } from "./demo-events.js";
import { Link } from "./demo-link.js";
import { Moments } from "./demo-moments.js";
import { $, amount, counted, element, help, value } from "./demo-page.js";
import { publishing } from "./demo-publish.js";
import { watchStats } from "./demo-stats.js";
import { Timeline } from "./demo-timeline.js";

const GAPS = {
  trimmed: "history no longer reaches back that far",
  unknown: "this event id is not known here",
  restarted: "the bus was restarted",
};

const MAX_DELAY = 2000;  // ms between two attempts: somebody is watching
const HOLES = 1000;  // ms between two holes that are one mark

const link = new Link();
const timeline = new Timeline($("picture"), $("lines"));
const moments = new Moments(link, timeline, showChips);

let stream = null;
let chosen = ["demo"];  // the channels, while there is no stream
let shownChips = "";
let wasLost = false;

function open() {
  if (isLive()) leave();
  if (value("channel")) add();
  const options = {
    url: "/events", channels: chosen, user: value("user") || undefined, share: $("share").checked, ...beginning(),
    fetch: link.fetch, maxDelay: MAX_DELAY, token: () => { moments.tokenAsked(); return value("token"); },
  };
  try {
    stream = connect(options);
  } catch (error) {
    return showEnded(error.message);
  }
  follow(stream);
}

function beginning() {
  switch (value("from")) {
    case "earliest": return {lastEventId: "earliest"};
    case "last": return {replay: Number(value("from-count"))};
    case "id": return {lastEventId: value("from-id")};
    default: return {};
  }
}

function streamQuery() {
  const query = new URLSearchParams(channels().map(channel => ["channel", channel]));
  if (value("user")) query.set("user", value("user"));
  for (const [name, text] of Object.entries(beginning())) query.set(name, text);
  return query;
}

// Shows what becomes of this stream until there is another one.
function follow(current) {
  let opened = 0;
  let replayed = 0;
  let resumed = null;
  let hole = {at: -Infinity};
  const whenCurrent = show => told => { if (current === stream) show(told); };

  current.on("*", whenCurrent(event => {
    const late = Number(event.id.split("-")[0]) < link.openedAt;  // by the node's own clock
    addEvent(event);
    timeline.event(late);
    if (!late) return;
    replayed += 1;
    const came = counted(replayed, "event");
    const said = [`+${amount(replayed)}`, opened > 1 ? `Resumed: ${came} came by replay` : `Begun with ${came} of history`];
    if (resumed) resumed(...said);
    else resumed = timeline.told("resumed", ...said);
  }));
  current.when("open", whenCurrent(({clientId, channels}) => {
    addNotice("connected", `Client ${clientId} on ${channels.join(", ")}`, current.lastEventId);
    $("client-id").textContent = clientId;
    const nothing = current.state.transport === "stream" ? ["+0", "Resumed: nothing came by replay"] : ["resumed", "Resumed"];
    resumed = opened++ ? timeline.told("resumed", ...nothing) : null;
    replayed = 0;
    showChips();
  }));
  current.when("gap", whenCurrent(({channels, reason}) => {
    const sentence = `Events may be missing on ${channels.join(", ")}: ${GAPS[reason] ?? reason}`;
    addNotice("gap", sentence);
    timeline.told("gap", "gap", sentence);
  }));
  current.when("dropped", whenCurrent(({count}) => {
    addNotice("dropped", `${counted(count, "event")} left out here: this reader was too slow`);
    if (performance.now() - hole.at > HOLES) hole = {count: 0, say: null};
    hole.count += count;
    hole.at = performance.now();
    const said = [`−${amount(hole.count)}`, `${counted(hole.count, "event")} left out: this reader was too slow`];
    if (hole.say) hole.say(...said);
    else hole.say = timeline.told("dropped", ...said);
  }));
  current.when("end", whenCurrent(() => showEnded(current.state.reason)));
  current.when("error", whenCurrent(({status, message}) =>
    showEnded(`${status ? `${status}: ` : ""}${message}${help(status)}`)));
  current.when("state", whenCurrent(showStateOf));
  showStateOf(current.state);
}

const showEnded = why => showState("ended", `ended: ${why}`, [], `Ended: ${why}`);

// One that is closed tells why as well, and that is shown.
function showStateOf({status, transport, attempt, delay, reason}) {
  const isLost = status === "reconnecting";
  if (isLost && !wasLost) addNotice("reconnecting", `The client comes back: ${reason}`);
  wasLost = isLost;
  const when = attempt ? `in ${(delay / 1000).toFixed(1)} s` : "at once";  // after a 401
  switch (status) {
    case "connecting":
      return showState(status, status, ["connecting"], "Connecting");
    case "open":
      if (transport === "poll") return showState("polling", "polling", ["polling", "poll"], "Polling: no stream gets through");
      return showState(status, transport === "shared" ? "open, by another tab" : "open", ["open"], "Open");
    case "reconnecting": {
      const labels = attempt ? [`attempt ${attempt} ${when}`, `${attempt}`] : [when];
      return showState(status, `reconnecting ${when}`, labels, `Reconnecting, ${labels[0]}: ${reason}`);
    }
  }
}

function showState(state, text, labels, sentence = text) {
  $("state").dataset.state = state;
  $("state").textContent = text;
  const over = state === "ended" || state === "disconnected";
  $("disconnect").disabled = over;
  timeline.link(over ? "" : state, labels, sentence);
  moments.stream(over ? null : stream);
}

function leave() {
  chosen = channels();
  const left = stream;
  stream = null;
  left.close();
  showState("disconnected", "disconnected", [], "Disconnected");
  showChips();
}

// ---- channels, which an open stream is given and loses as they are added and removed

const isLive = () => !$("disconnect").disabled;
const channels = () => isLive() ? [...stream.channels] : chosen;

// It is asked for often; who has the focus keeps it.
function showChips() {
  chosen = channels();
  showCommands();
  const now = JSON.stringify(chosen.map(name => [name, moments.policy(name)]));
  if (now === shownChips) return;
  shownChips = now;
  const held = $("chips").contains(document.activeElement) && document.activeElement.ariaLabel;
  $("chips").replaceChildren(...chosen.map(chip));
  if (!held) return;
  const again = [...$("chips").querySelectorAll("button")].find(button => button.ariaLabel === held);
  (again ?? $("channel")).focus();
}

function chip(name) {
  const item = element("li", "", "");
  const leave = element("button", "", "×");
  leave.type = "button";
  leave.ariaLabel = `Leave ${name}`;
  leave.addEventListener("click", () => remove(name));
  item.append(element("span", "name", name), element("code", "policy", moments.policy(name)), leave);
  return item;
}

async function change(changing, sentence) {
  try {
    await changing;
    timeline.deed(sentence, sentence)();
    $("channel-note").textContent = "";
  } catch (error) {
    $("channel-note").textContent = error.message;
  }
  showChips();
}

function add() {
  const named = value("channel").split(",").map(name => name.trim()).filter(Boolean);
  $("channel").value = "";
  for (const name of named) {
    if (channels().includes(name)) continue;
    if (isLive()) change(stream.subscribe(name), `+ ${name}`);
    else chosen = [...chosen, name];
  }
  showChips();
}

function remove(name) {
  if (isLive()) change(stream.unsubscribe(name), `− ${name}`);
  else chosen = chosen.filter(other => other !== name);
  showChips();
}

function showFrom() {
  const from = value("from");
  $("from-last").hidden = $("from-count").disabled = from !== "last";
  $("from-event").hidden = $("from-id").disabled = from !== "id";
  if (from === "id") $("from-id").value ||= last();
}

$("subscribe").addEventListener("submit", event => { event.preventDefault(); open(); });
$("disconnect").addEventListener("click", leave);
$("from").addEventListener("input", showFrom);
$("window").addEventListener("input", () => { timeline.window = value("window") * 1000; });
$("add").addEventListener("click", add);
$("channel").addEventListener("keydown", event => {
  if (event.key !== "Enter" || !value("channel")) return;
  event.preventDefault();
  add();
});
showFrom();
const showCommands = publishing(timeline, moments, streamQuery);
showChips();
watchStats(told => { moments.stats = told; });
