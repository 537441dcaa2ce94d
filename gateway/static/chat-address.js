// A conversation is its address: behind the # is what was asked, and the id of the token stream that
// answers it. Nothing else is kept, here or anywhere: the answers are with the gateway.
//
// What is behind the # is never sent to a server. Whoever opens the address, in another tab or on
// another device, has the conversation, and joins the answer that is being written.

export const MAX_TURNS = 12;  // in an address; the oldest leave it
export const MAX_QUESTION = 2000;  // characters

const ID = /^[\w-]{1,64}$/;

// A list of {question, id}; the id is "" where nothing was opened.
export function turnsOf(hash) {
  const turns = [];
  for (const [name, value] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (name === "q") turns.push({question: value.slice(0, MAX_QUESTION), id: ""});
    else if (name === "stream" && turns.length && ID.test(value)) turns.at(-1).id = value;
  }
  return turns.slice(-MAX_TURNS);
}

export function hashOf(turns) {
  const members = new URLSearchParams();
  for (const {question, id} of turns.slice(-MAX_TURNS)) {
    members.append("q", question);
    if (id) members.append("stream", id);
  }
  return turns.length ? `#${members}` : "";
}

// What the page is asked for in its query: /chat?upstream=NAME&model=MODEL&max_tokens=1000
export function chosen(search) {
  const query = new URLSearchParams(search);
  const upstream = query.get("upstream") || "demo";
  const limit = Number(query.get("max_tokens"));
  const request = {};
  const model = query.get("model") || (upstream === "demo" ? "demo" : "");
  if (model) request.model = model;
  if (limit > 0) request.max_tokens = limit;
  return {upstream, request};
}

const MAX_SENT = 20_000;  // characters of a conversation that are sent along with a question

// The messages of a request: the question, and before it what was said, as far back as there is room for.
export function messages(turns, question) {
  const said = [{role: "user", content: question}];
  let room = MAX_SENT - question.length;
  for (const {question, text} of [...turns].reverse()) {
    room -= question.length + text.length;
    if (room < 0) break;
    if (text) said.unshift({role: "user", content: question}, {role: "assistant", content: text});
  }
  return said;
}
