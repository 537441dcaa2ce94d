// The chat: what is asked, and the answers as they are written.

import { hashOf, chosen, MAX_TURNS, messages, turnsOf } from "./chat-address.js";
import { Answer } from "./chat-answer.js";
import { Tail } from "./chat-tail.js";
import { Turn } from "./chat-turn.js";
import { Voice } from "./chat-voice.js";
import { Wire } from "./chat-wire.js";
import { $, help, value } from "./demo-page.js";

const NO_DEMO = "The upstream demo is there where a node has no keys. Another one is named in the address: /chat?upstream=NAME&model=MODEL.";

const {upstream, request} = chosen(location.search);
const wire = new Wire();
const others = new BroadcastChannel("chat");
const voice = new Voice($("aloud"));
const changed = new Set();  // turns that the next animation frame draws
const tail = new Tail($("talk"), () => { $("latest").hidden = tail.isFollowing; });
const turns = [];
let spoken = null;  // the turn that is said aloud

const last = () => turns.at(-1);
const busy = () => turns.findLast(({answer}) => !answer.isOver);  // the latest that is being answered
const isBusy = () => Boolean(busy());

// ---- what is asked

function add(question, id) {
  const answer = new Answer(id, {token: () => value("token"), wire, changed: () => draw(turn)});
  const turn = new Turn(question, answer, again, explained);
  turns.push(turn);
  $("turns").append(turn.element);
  for (const old of turns.splice(0, turns.length - MAX_TURNS)) {
    old.answer.close();
    old.element.remove();
  }
  draw(turn);
  return turn;
}

function ask(question) {
  if (!question || isBusy()) return;
  $("question").value = "";
  if (matchMedia("(pointer: fine)").matches) $("question").focus();
  open(add(question, ""));
  tail.toEnd();
}

// The question is in the address before there is an answer, and so survives a reload just then.
async function open(turn) {
  const said = turns.slice(0, turns.indexOf(turn)).map(({question, answer}) => ({question, text: answer.text}));
  voice.begin(0);
  spoken = turn;
  const opened = turn.answer.open(upstream, {...request, messages: messages(said, turn.question)});
  remember();
  await opened;
  remember();
}

async function join(turn) {
  await turn.answer.join();
  if (turn !== last() || turn.answer.isOver) return;
  voice.begin(null);
  spoken = turn;
}

const again = turn => turn.answer.problem?.again === "join" ? join(turn) : open(turn);

function explained({status, message}) {
  if (status === 401) return `${message}${help(401)}`;
  return upstream === "demo" && [400, 403].includes(status) ? `${message} ${NO_DEMO}` : message;
}

function remember() {
  const kept = turns.map(({question, answer}) => ({question, id: answer.id}));
  history.replaceState(null, "", `${location.pathname}${location.search}${hashOf(kept)}`);
  $("second").href = location.href;
  $("new").href = location.pathname + location.search;
  wire.show(last()?.answer.id);
  if (last()?.answer.id) others.postMessage(kept);
}

// What another tab of this browser has asked in the same conversation.
others.addEventListener("message", ({data}) => {
  const isSame = turns.length > 0 && turns.every(({answer}, at) => answer.id && answer.id === data[at]?.id);
  if (!isSame || data.length === turns.length) return;
  for (const {question, id} of data.slice(turns.length)) join(add(question, id));
  remember();
});

// ---- what is shown

function draw(turn) {
  if (!changed.size) requestAnimationFrame(drawChanged);
  changed.add(turn);
}

function drawChanged() {
  for (const turn of changed) turn.draw();
  changed.clear();
  const {state, link, problem} = (busy() ?? last())?.answer ?? {};
  $("welcome").hidden = turns.length > 0;
  $("second").hidden = $("new").hidden = !turns.length;
  if (!isBusy() && document.activeElement === $("stop")) $("question").focus();
  $("stop").hidden = !isBusy();
  $("send").hidden = isBusy();
  showState(state, link);
  if (problem?.status === 401) showToken();
  if (spoken) say(spoken.answer);
  tail.grown();
}

function say({text, state, isOver}) {
  if (text && isOver) voice.end(text, state === "stopped" ? "Stopped." : "");
  else if (text) voice.follow(text);
  if (isOver) spoken = null;
}

function showToken() {
  if (!$("token-field").hidden) return;
  $("token-field").hidden = false;
  $("token").focus();
}

const STATES = {
  opening: ["connecting", "asking"], joining: ["connecting", "joining"],
  complete: ["disconnected", "complete"], stopped: ["disconnected", "stopped"],
  error: ["ended", "an error"], gone: ["ended", "gone"], unsent: ["ended", "not answered"],
};

function showState(state, link) {
  const streaming = link === "reconnecting" ? [link, "coming back"] : ["open", "live"];
  const [kind, text] = {...STATES, streaming}[state] ?? ["disconnected", "nothing asked yet"];
  $("state").dataset.state = kind;
  if ($("state").textContent !== text) $("state").textContent = text;
}

$("latest").addEventListener("click", () => tail.toEnd());

// ---- hands

$("ask").addEventListener("submit", event => {
  event.preventDefault();
  if (value("question")) ask(value("question"));
  else if (value("token") && last()?.answer.problem?.again) again(last());
});
$("question").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("stop").addEventListener("click", () => busy()?.answer.stop());
document.addEventListener("keydown", event => { if (event.key === "Escape") busy()?.answer.stop(); });
$("proposals").addEventListener("click", ({target}) => { if (target.localName === "button") ask(target.textContent); });
addEventListener("hashchange", () => location.reload());  // another conversation
$("fold").addEventListener("click", () => {
  const isOpen = $("fold").ariaExpanded !== "true";
  $("fold").ariaExpanded = String(isOpen);
  $("fold").textContent = isOpen ? "Hide" : "Show";
});

// ---- the conversation of the address

$("token-field").hidden = upstream === "demo";
$("proposals").hidden = upstream !== "demo";
for (const {question, id} of turnsOf(location.hash)) add(question, id);
for (const turn of [...turns]) {
  if (turn.answer.id) join(turn);
  else Object.assign(turn.answer, {problem: {message: "The page was left before this answer had begun.", again: "ask"}});
}
remember();
drawChanged();
if (turns.length) tail.toEnd();
