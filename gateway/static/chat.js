// The chat: what is asked, and the answers as they are written.

import { hashOf, chosen, MAX_TURNS, messages, turnsOf } from "./chat-address.js";
import { Answer } from "./chat-answer.js";
import { Tail } from "./chat-tail.js";
import { Turn } from "./chat-turn.js";
import { Voice } from "./chat-voice.js";
import { Wire } from "./chat-wire.js";
import { $, help, value } from "./demo-page.js";

const {upstream, request} = chosen(location.search);
const wire = new Wire();
const voice = new Voice($("aloud"));
const changed = new Set();  // turns that the next animation frame draws
const tail = new Tail($("talk"), () => { $("latest").hidden = tail.isFollowing; });
const turns = [];
let spoken = null;  // the turn that is said aloud

const last = () => turns.at(-1);
const isBusy = () => Boolean(last() && !last().answer.isOver);

// ---- what is asked

function add(question, id) {
  const answer = new Answer(id, {token: () => value("token"), wire, changed: () => draw(turn)});
  const turn = new Turn(question, answer, again);
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
  turn.answer.close();
  turn.answer.id = "";
  remember();
  voice.begin(0);
  spoken = turn;
  await turn.answer.open(upstream, {...request, messages: messages(said, turn.question)});
  remember();
  needToken(turn);
}

async function join(turn) {
  await turn.answer.join();
  needToken(turn);
  if (turn !== last() || turn.answer.isOver) return;
  voice.begin(null);
  spoken = turn;
}

const again = turn => turn.answer.problem?.again === "join" ? join(turn) : open(turn);

function needToken({answer}) {
  if (answer.problem?.status !== 401) return;
  answer.problem = {...answer.problem, message: `${answer.problem.message}${help(401)}`, again: answer.id ? "join" : "ask"};
  answer.changed();
  $("token-field").hidden = false;
  $("token").focus();
}

function remember() {
  const hash = hashOf(turns.map(({question, answer}) => ({question, id: answer.id})));
  history.replaceState(null, "", `${location.pathname}${location.search}${hash}`);
  $("second").href = location.href;
  $("new").href = location.pathname + location.search;
  wire.show(last()?.answer.id);
}

// ---- what is shown

function draw(turn) {
  if (!changed.size) requestAnimationFrame(drawChanged);
  changed.add(turn);
}

function drawChanged() {
  for (const turn of changed) turn.draw();
  changed.clear();
  const {state, text, link, isOver} = last()?.answer ?? {};
  $("welcome").hidden = turns.length > 0;
  $("second").hidden = $("new").hidden = !turns.length;
  if (!isBusy() && document.activeElement === $("stop")) $("question").focus();
  $("stop").hidden = !isBusy();
  $("send").hidden = isBusy();
  showState(state, link);
  if (spoken === last() && text && isOver) voice.end(text, state === "stopped" ? "Stopped." : "");
  else if (spoken === last() && text) voice.follow(text);
  if (isOver) spoken = null;
  tail.grown();
}

const STATES = {
  opening: ["connecting", "asking"], joining: ["connecting", "joining"],
  complete: ["disconnected", "complete"], stopped: ["disconnected", "stopped"],
  error: ["ended", "an error"], gone: ["ended", "gone"], unsent: ["ended", "not answered"],
};

function showState(state, link) {
  const isLost = link === "reconnecting";
  const [kind, text] = state === "streaming" ? (isLost ? [link, "coming back"] : ["open", "live"]) : STATES[state] ?? ["disconnected", "nothing asked yet"];
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
$("stop").addEventListener("click", () => last().answer.stop());
document.addEventListener("keydown", event => { if (event.key === "Escape" && isBusy()) last().answer.stop(); });
$("proposals").addEventListener("click", ({target}) => { if (target.localName === "button") ask(target.textContent); });
addEventListener("hashchange", () => location.reload());  // another conversation
$("fold").addEventListener("click", () => {
  const isOpen = $("fold").ariaExpanded !== "true";
  $("fold").ariaExpanded = String(isOpen);
  $("fold").textContent = isOpen ? "Hide" : "Show";
});

// ---- the conversation of the address

if (upstream !== "demo") $("token-field").hidden = false;
for (const {question, id} of turnsOf(location.hash)) add(question, id);
for (const turn of [...turns]) {
  if (turn.answer.id) join(turn);
  else Object.assign(turn.answer, {problem: {message: "This was not sent.", again: "ask"}});
}
remember();
drawChanged();
