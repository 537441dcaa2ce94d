// One question and its answer, as the page shows them.

import { amount, counted, element } from "./demo-page.js";
import { Text } from "./chat-text.js";

export class Turn {
  #text;
  #shown = {text: null, isOver: null};

  // `again` is called when it is to be tried again; `explained` makes a sentence of a problem.
  constructor(question, answer, again, explained) {
    Object.assign(this, {question, answer, explained});
    this.element = element("article", "turn", "");
    this.#text = element("div", "text", "");
    this.note = element("p", "note muted", "");
    this.problem = element("p", "problem", "");
    this.words = element("span", "", "");
    this.button = element("button", "", "Try again");
    this.button.type = "button";
    this.button.addEventListener("click", () => again(this));
    this.problem.append(this.words, this.button);
    const reply = element("div", "answer", "");
    reply.append(this.#text, this.problem, this.note);
    this.element.append(element("p", "question", question), reply);
    this.text = new Text(this.#text);
  }

  draw() {
    const {state, text, problem, isOver} = this.answer;
    this.element.dataset.state = state;
    this.element.ariaBusy = String(!isOver);
    if (this.#shown.text !== text || this.#shown.isOver !== isOver) {
      this.text.show(text, !isOver);
      this.#shown = {text, isOver};
    }
    this.problem.hidden = !problem;
    this.words.textContent = problem ? this.explained(problem) : "";
    this.button.hidden = !problem?.again;
    const note = this.#note();
    if (this.note.textContent !== note) this.note.textContent = note;
  }

  // The smallest print: what it does now, and in the end what it took.
  #note() {
    const {state, link, tokens, isStopping, isWhole, figures} = this.answer;
    const beginning = isWhole ? [] : ["its beginning is no longer kept"];
    switch (state) {
      case "opening": return "asking …";
      case "joining": return "joining …";
      case "streaming":
        if (link === "reconnecting") return "The connection is lost and comes back by itself; the answer goes on meanwhile.";
        if (isStopping) return "stopping …";
        return tokens ? ["writing", counted(tokens, "token"), ...beginning].join(" · ") : "waiting for the first token …";
      case "complete": case "stopped": case "error": return [ENDS[state], ...measured(figures, tokens), ...beginning].join(" · ");
      default: return "";
    }
  }
}

const ENDS = {complete: "complete", stopped: "stopped", error: "ended by an error"};

function measured(figures, tokens) {
  const {startedAt, firstTokenAt, endedAt} = figures ?? {};
  const told = tokens ? [counted(tokens, "token")] : [];
  if (startedAt && firstTokenAt) told.push(`the first after ${((firstTokenAt - startedAt) / 1000).toFixed(2)} s`);
  if (tokens > 1 && endedAt > firstTokenAt) {
    const rate = (tokens - 1) / (endedAt - firstTokenAt) * 1000;
    told.push(`${amount(Number(rate.toFixed(1)))} tokens/s`);
  }
  return told;
}
