// An answer: one token stream, from the request that opens it to its last event. It knows no page.
//
// 1. Whoever looks at it is a viewer like any other, also the tab that asked: it opens the stream by
//    its id, begins with a snapshot of all text so far, and goes on with the tokens behind it.
// 2. What the client does about a lost link is the client's affair; here it is only told.
// 3. An answer ends once: by the last event of its stream, or because the gateway has it no more.

import { connect } from "/client.js";
import { parse } from "./demo-page.js";

const MAX_DELAY = 2000;  // ms between two attempts: somebody is watching
const ANSWER_WITHIN = 30_000;  // ms, for each request
const STOPPED = ["stopped", "unwatched"];  // reasons of an end that the upstream did not make

export class Answer {
  text = "";
  state = "unsent";  // "opening", "joining", "streaming"; "complete", "stopped", "error"; "gone"
  link = "";  // of the client: "connecting", "open", "reconnecting", "closed"
  tokens = 0;
  problem = null;  // {message, status, again}: again is "ask", "join" or ""
  isWhole = true;  // false where the beginning of the text is no longer kept
  figures = null;  // what GET /streams/<id> says at last
  isStopping = false;
  #stream = null;
  #isTorn = false;  // something of the text did not come

  // `wire` is told what goes over it; `changed` is called after each change.
  constructor(id, {token, wire, changed}) {
    Object.assign(this, {id, token, wire, changed});
  }

  get isOver() { return !["opening", "joining", "streaming"].includes(this.state); }

  // Open it: one request, answered at once; the answer does not depend on who asked any more.
  async open(upstream, request) {
    this.close();
    this.#isTorn = false;
    this.#set({id: "", state: "opening", problem: null, text: "", tokens: 0, isWhole: true, figures: null, isStopping: false});
    try {
      const {id} = await this.#ask("POST", "/streams", {upstream, request});
      this.id = id;
    } catch ({problem}) {
      return this.#set({state: "unsent", problem: {...problem, again: problem.isPassing ? "ask" : ""}, isStopping: false});
    }
    if (this.isStopping) this.#stop();
    this.#follow();
  }

  // Come to one that was opened before, by whomever.
  async join() {
    this.close();
    this.#set({state: "joining", problem: null});
    const found = await this.#look();
    if (found?.state === "streaming") this.#follow();
    else if (found) this.#found(found);
  }

  // Ask for its end, as soon as it has an id. That it has ended is told by the stream, to all who watch it.
  stop() {
    if (this.isOver || this.isStopping) return;
    this.#set({isStopping: true, problem: null});
    if (this.id) this.#stop();
  }

  async #stop() {
    const {id} = this;
    try {
      await this.#ask("DELETE", `/streams/${id}`);
    } catch ({problem}) {
      if (id === this.id && !this.isOver) this.#set({isStopping: false, problem: {...problem, again: ""}});
    }
  }

  close() {
    this.#stream?.close();
    this.#stream = null;
  }

  #set(changes) {
    Object.assign(this, changes);
    this.changed();
  }

  #follow() {
    const channel = `stream:${this.id}`;
    this.wire.begin();
    this.#set({state: "streaming", link: "connecting"});
    this.#stream = connect({
      url: "/events?view=snapshot", channels: [channel], token: this.token, maxDelay: MAX_DELAY,
      on: {"*": event => { if (event.channels.includes(channel) || !event.channel) this.#take(event); }},
      onState: ({status, reason, delay}) => {
        this.wire.link(status, reason, delay);
        if (status !== "closed") this.#set({link: status});
      },
      onGap: ({reason}) => this.#tear("gap", reason),
      onDropped: ({count}) => this.#tear("dropped", `${count} events`),
      onEnd: () => this.#finish(),
      onError: ({status, message}) => this.#lost({status, message}),
    });
  }

  #take(event) {
    this.wire.event(event);
    const told = parse(event.data) ?? {};
    switch (event.type) {
      case "start": return this.#set({text: "", tokens: 0});  // also instead of a snapshot that would be too long
      case "snapshot":
        this.#isTorn = false;
        return this.#set({text: told.text, tokens: told.tokens, isWhole: told.whole});
      case "token": return this.#set({text: this.text + (told.text ?? ""), tokens: this.tokens + 1});
      case "complete": return this.#ended({state: STOPPED.includes(told.reason) ? "stopped" : "complete"});
      case "error": return this.#ended({state: "error", problem: problemOf(told)});
    }
  }

  // Not all of the text has come. At the end that is put right, if the stream is still there at all.
  #tear(name, reason) {
    this.#isTorn = true;
    this.wire.told(name, reason);
    this.#ask("GET", `/streams/${this.id}`).catch(({problem}) => { if (problem.status === 404) this.#lost(problem); });
  }

  // By its last event. What else the gateway knows of it comes after, and may as well not come.
  async #ended(changes) {
    this.close();
    this.#set({problem: null, ...changes, link: "", isStopping: false});
    const {id} = this;
    const figures = await this.#ask("GET", `/streams/${id}`).catch(() => null);
    if (figures && id === this.id) this.#set({figures, ...this.#isTorn && {text: figures.text}});
  }

  // The stream is over for whoever comes now: all is asked for at once.
  async #finish() {
    this.close();
    const found = await this.#look();
    if (found?.state === "streaming") this.#lost({message: "The stream has ended before its end."});
    else if (found) this.#found(found);
  }

  #found(figures) {
    const {state, text, tokens, error, whole} = figures;
    const problem = error ? problemOf(error) : null;
    this.#set({state, text, tokens, isWhole: whole, figures, problem, link: "", isStopping: false});
  }

  // What the gateway knows of it; null where it does not say, and then the problem is told.
  async #look() {
    try {
      return await this.#ask("GET", `/streams/${this.id}`);
    } catch (error) {
      this.#lost(error.problem);
      return null;
    }
  }

  #lost({status, message}) {
    this.close();
    const [state, problem] = status === 404
      ? ["gone", {message: "This answer is no longer kept.", again: "ask"}]
      : ["error", {status, message, again: "join"}];
    this.#set({state, problem, link: "", isStopping: false});
  }

  // What the gateway answers; an Error with a `problem` where it refuses or cannot be reached.
  async #ask(method, path, body) {
    const token = this.token();
    const headers = {...token && {Authorization: `Bearer ${token}`}, ...body && {"Content-Type": "application/json"}};
    const signal = AbortSignal.timeout(ANSWER_WITHIN);
    const sent = {method, headers, signal, cache: "no-store", body: body && JSON.stringify(body)};
    let response;
    try {
      response = await fetch(path, sent);
    } catch {
      this.wire.request(method, path, "no answer", sent.body);
      throw refusal(0, "The gateway cannot be reached.");
    }
    this.wire.request(method, path, response.status, sent.body);
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    throw refusal(response.status, answer.detail ?? answer.title ?? `The answer was ${response.status}.`);
  }
}

const problemOf = ({code, message, retryable}) => ({message: `${message} (${code})`, again: retryable ? "ask" : ""});

function refusal(status, message) {
  const isPassing = [0, 401, 429].includes(status) || status >= 500;
  return Object.assign(new Error(message), {problem: {status, message, isPassing}});
}
