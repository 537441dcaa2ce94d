// What goes over the wire: requests, the events of the stream as they come, what the client tells of
// its link; and the commands that do the same in a shell.
//
// Tokens in a row are one row with a count, and there are never more than ROWS.

import { $, amount, authorization, copied, element, quote } from "./demo-page.js";
import { Tail } from "./chat-tail.js";

const ROWS = 100;
const LETTERS = 160;  // of what is shown of an event's data

const PAGE = `import { connect } from "ORIGIN/client.js";

connect({
  url: "ORIGIN/events?view=snapshot",
  channels: ["stream:ID"],
  on: {
    snapshot: event => show(event.json().text),
    token: event => add(event.json().text),
  },
});`;

const clock = new Intl.DateTimeFormat("en-GB", {hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3});

export class Wire {
  #tokens = null;  // the row of the tokens that come now
  #waiting = [];  // rows that the next animation frame shows
  #isDrawing = false;
  #id = "";  // of the stream whose commands are shown
  #command = "watch";
  #isOpen = false;
  #tail = new Tail($("wire"));

  constructor() {
    this.#tail.toEnd();
    $("commands-of").addEventListener("click", ({target}) => {
      this.#command = target.dataset.command ?? this.#command;
      this.show(this.#id);
    });
    $("copy").addEventListener("click", () => copied($("copy"), $("command")));
  }

  request(method, path, status, body = "") {
    const short = path.replace(/([\w-]{8})[\w-]{8,}$/, "$1…");
    this.#add("request", `${method} ${short}`, `${status}`, body);
  }

  event({type, data, id}) {
    if (type !== "token") return this.#add(`event ${type}`, type, type === "snapshot" ? told(data) : "", data, id);
    this.#tokens ??= this.#add("event token", type, "", data, id, true);
    this.#tokens.count += 1;
    Object.assign(this.#tokens, {data, id});
    this.#draw();
  }

  told(name, text) {
    this.#add(`control ${name}`, name, "", text);
  }

  // What the client does about its link.
  link(status, reason, delay) {
    if (status === "reconnecting") {
      this.told(status, `${reason}: again ${delay ? `in ${(delay / 1000).toFixed(1)} s` : "at once"}`);
    } else if (status === "open") {
      this.told("connected", this.#isOpen ? "again, behind the last event that came" : "as a viewer, with a snapshot of the text so far");
      this.#isOpen = true;
    }
  }

  // A stream that is opened anew: that it stands is no news.
  begin() {
    this.#isOpen = false;
  }

  // The commands for a stream. The token itself is never shown: the shell is to know it as TOKEN.
  show(id) {
    this.#id = id;
    $("commands").hidden = !id;
    const {origin} = location;
    const token = authorization().Authorization ? ' -H "Authorization: Bearer $TOKEN"' : "";
    const lines = {
      watch: `curl -N${token} ${quote(`${origin}/events/stream:${id}?view=snapshot`)}`,
      raw: `curl -N${token} ${quote(`${origin}/events/stream:${id}?view=raw&lastEventId=earliest`)}`,
      whole: `curl${token} ${quote(`${origin}/streams/${id}`)}`,
      stop: `curl${token} -X DELETE ${quote(`${origin}/streams/${id}`)}`,
      page: PAGE.replaceAll("ORIGIN", origin).replace("ID", id),
    };
    for (const button of $("commands-of").children) button.ariaPressed = String(button.dataset.command === this.#command);
    $("command").textContent = lines[this.#command];
  }

  #add(kind, type, note, data = "", id = "", isCounted = false) {
    const row = {item: element("li", kind, ""), type, note, data, id, count: 0, time: new Date()};
    this.#tokens = isCounted ? row : null;
    this.#waiting.push(row);
    if (this.#waiting.length > ROWS) this.#waiting.shift();
    this.#draw();
    return row;
  }

  #draw() {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      const list = this.#tail.element;
      for (const row of this.#waiting) list.append(row.item);
      for (const row of new Set([...this.#waiting, this.#tokens].filter(Boolean))) show(row);
      this.#waiting = [];
      while (list.childElementCount > ROWS) list.firstChild.remove();
      this.#tail.grown();
    });
  }
}

function told(data) {
  try { return `${amount(JSON.parse(data).text.length)} characters`; } catch { return ""; }
}

function show({item, type, note, data, id, count, time}) {
  if (!item.firstChild) item.append(
    element("time", "time", clock.format(time)), element("span", "type", type), element("span", "note", ""),
    element("span", "data", ""), element("span", "id", ""),
  );
  const [, , shownNote, shownData, shownId] = item.children;
  const text = data.length > LETTERS ? `${data.slice(0, LETTERS)}…` : data;
  shownNote.textContent = count ? `×${amount(count)}` : note;
  shownData.textContent = text;
  shownId.textContent = id;
}
