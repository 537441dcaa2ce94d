// What the client did, by time: a picture, and the same as a list.
//
// 1. Everything is bounded: what is older than SPAN is forgotten, and of what is younger the oldest
//    beyond MARKS; events are counted by the second.
// 2. An item owns its element, which stays where it was drawn: time moves the drawing as a whole.
// 3. What others have chosen is only ever set as text.

import { counted, element } from "./demo-page.js";

export const SPAN = 300_000;  // ms
export const MARKS = 300;  // in each lane, and lines of the list

const SVG = "http://www.w3.org/2000/svg";
const GUTTER = 52;  // px, for the names of the lanes
const LETTER = 6.4;  // px, of a label
const GROWN = 4;  // letters that a label may come to have
const LANES = {
  deeds: {name: "You", y: 4, height: 32, rows: 2},
  link: {name: "Link", y: 42, height: 22},
  events: {name: "Events", y: 70, height: 34},
  told: {name: "Client", y: 110, height: 36, rows: 2},
};
const AXIS = 150;
const HEIGHT = 168;
const SHAPES = {
  gap: "M0-6 6 0 0 6-6 0Z",
  dropped: "M-6-5H6L0 6Z",
  resumed: "M-6 5H6L0-6Z",
  told: "M-4-4H4V4H-4Z",
};
const seconds = new Intl.DateTimeFormat("en-GB", {hour: "2-digit", minute: "2-digit", second: "2-digit"});
const minutes = new Intl.DateTimeFormat("en-GB", {hour: "2-digit", minute: "2-digit"});

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  set(element, attributes);
  element.append(...children);
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

// From one moment to another, or until now: what the link is. Of its labels the first that fits is shown.
class Phase {
  constructor(kind, labels, sentence) {
    Object.assign(this, {start: Date.now(), end: null, labels});
    const {y, height} = LANES.link;
    this.rect = draw("rect", {y, height, rx: 3});
    this.text = draw("text", {y: y + height / 2});
    this.element = draw("g", {class: `phase ${kind}`}, titled(sentence), this.rect, this.text);
  }

  get until() { return this.end ?? Infinity; }

  place(x, now) {
    const left = x(this.start);
    const width = Math.max(x(this.end ?? now) - left - 1, 2);
    set(this.rect, {x: left, width});
    set(this.text, {x: left + 6});
    this.text.textContent = this.labels.find(label => label.length * LETTER + 10 < width) ?? "";
  }
}

// What the user does, from one moment to another. Its label stands before it, in a row that has room.
class Deed {
  constructor(label, sentence) {
    Object.assign(this, {start: Date.now(), end: null, label});
    this.rect = draw("rect", {height: 12, rx: 2});
    this.text = draw("text", {class: "before"});
    this.element = draw("g", {class: "deed"}, titled(sentence), this.rect, this.text);
  }

  get until() { return this.end ?? Infinity; }

  arrange(rows, x) {
    this.row = firstFree(rows, x(this.start) - 8 - this.label.length * LETTER);
    rows[this.row ?? 0] = x(this.until) + 4;
  }

  place(x, now) {
    const left = x(this.start);
    const y = LANES.deeds.y + 2 + 16 * (this.row ?? 0);
    set(this.rect, {x: left, y, width: Math.max(x(this.end ?? now) - left, 3)});
    set(this.text, {x: left - 5, y: y + 6});
    this.text.textContent = this.row === null ? "" : this.label;
  }
}

// What the client tells at one moment, labelled likewise.
class Mark {
  constructor(kind, label, sentence) {
    Object.assign(this, {at: Date.now(), label});
    this.text = draw("text", {x: -9, class: "before"});
    this.title = titled(sentence);
    this.element = draw("g", {class: `mark ${kind}`}, this.title, draw("path", {d: SHAPES[kind]}), this.text);
  }

  get until() { return this.at; }

  say(label, sentence) {
    this.label = label;
    this.title.textContent = sentence;
    this.text.textContent = this.row === null ? "" : label;
  }

  arrange(rows, x) {
    this.row = firstFree(rows, x(this.at) - 16 - Math.max(this.label.length, GROWN) * LETTER);
    rows[this.row ?? 0] = x(this.at) + 8;
  }

  place(x) {
    set(this.element, {transform: `translate(${x(this.at)} ${LANES.told.y + 9 + 18 * (this.row ?? 0)})`});
    this.text.textContent = this.row === null ? "" : this.label;
  }
}

function titled(sentence) {
  const title = draw("title");
  title.textContent = sentence;
  return title;
}

// The first row that is taken up to `left` at most; null: none is.
function firstFree(rows, left) {
  const row = rows.findIndex(taken => taken <= left);
  return row < 0 ? null : row;
}

// How many events came in a second: live, and by replay. The height is that of their logarithm.
class Second {
  constructor(start) {
    Object.assign(this, {start, live: 0, replayed: 0});
    this.parts = ["replayed", "live"].map(kind => draw("rect", {class: kind}));
    this.title = titled("");
    this.element = draw("g", {class: "second"}, this.title, ...this.parts);
  }

  get until() { return this.start + 1000; }

  place(x) {
    const {y, height} = LANES.events;
    const total = this.live + this.replayed || 1;
    const high = Math.min(height, 5 + (height - 5) * Math.log10(total) / 4);
    const split = high * this.replayed / total;
    const left = x(this.start);
    const width = Math.max(x(this.start + 1000) - left - 1, 1);
    this.changed = false;
    set(this.parts[0], {x: left, width, y: y + height - split, height: split});
    set(this.parts[1], {x: left, width, y: y + height - high, height: high - split});
    this.title.textContent = counted(total, "event") + (this.replayed ? `, ${this.replayed} of them by replay` : "");
  }
}

export class Timeline {
  #origin = Date.now();
  #window = 60_000;
  #width = 0;
  #tick = 0;
  #lanes = {deeds: [], link: [], events: [], told: []};
  #rows = {};
  #moving = draw("g");
  #ticks = draw("g", {class: "ticks"});
  #plot = draw("svg", {x: GUTTER, height: HEIGHT}, this.#moving);

  constructor(picture, list) {
    this.picture = picture;
    this.list = list;
    for (const {name, y, height} of Object.values(LANES)) {
      const text = draw("text", {x: 0, y: y + height / 2, class: "lane"});
      text.textContent = name;
      picture.append(text, draw("rect", {class: "ground", x: GUTTER, y, height, width: "100%", rx: 3}));
    }
    picture.append(this.#plot);
    this.#moving.append(this.#ticks);
    this.#resize();
    new ResizeObserver(() => this.#resize()).observe(picture);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    setInterval(() => document.hidden || this.draw(), calm ? 1000 : 100);
  }

  // How many ms the picture shows.
  set window(ms) {
    this.#window = ms;
    this.#resize();
  }

  // The client's link is this from now on; no kind: there is none.
  link(kind, labels, sentence) {
    this.#end(this.#lanes.link.at(-1));
    if (kind) this.#add("link", new Phase(kind, labels, sentence));
    this.#line(kind || "ended", sentence);
  }

  // What the user does; the function that is returned ends it.
  deed(label, sentence) {
    const deed = this.#add("deeds", new Deed(label, sentence));
    this.#line("deed", sentence);
    return () => {
      this.#end(deed);
      this.#rows.deeds[deed.row ?? 0] = this.#x(deed.end) + 4;
    };
  }

  // What the client tells; the function that is returned says it otherwise.
  told(kind, label, sentence) {
    const mark = this.#add("told", new Mark(kind, label, sentence));
    const line = this.#line(kind, sentence);
    return (label, sentence) => {
      mark.say(label, sentence);
      line.textContent = sentence;
    };
  }

  event(replayed) {
    const start = Math.floor(Date.now() / 1000) * 1000;
    let second = this.#lanes.events.at(-1);
    if (second?.start !== start) second = this.#add("events", new Second(start));
    second[replayed ? "replayed" : "live"] += 1;
    second.changed = true;
  }

  draw() {
    const now = Date.now();
    for (const items of Object.values(this.#lanes)) {
      while (items.length && items[0].until < now - SPAN) items.shift().element.remove();
      for (const item of items) if (item.end === null || item.changed) item.place(this.#x, now);
    }
    if (Math.floor(now / this.#step) !== this.#tick) this.#drawTicks(now);
    set(this.#moving, {transform: `translate(${this.#plotWidth - this.#x(now)} 0)`});
  }

  #x = at => (at - this.#origin) / this.#window * this.#plotWidth;

  get #plotWidth() { return Math.max(this.#width - GUTTER, 1); }

  get #step() { return this.#window / 6 * (this.#plotWidth < 360 ? 2 : 1); }

  #add(lane, item) {
    const items = this.#lanes[lane];
    items.push(item);
    if (items.length > MARKS) items.shift().element.remove();
    item.arrange?.(this.#rows[lane], this.#x);
    item.place(this.#x, Date.now());
    this.#moving.append(item.element);
    return item;
  }

  #end(item) {
    if (!item || item.end !== null) return;
    item.end = Date.now();
    item.place(this.#x, item.end);
  }

  #line(kind, sentence) {
    const line = element("li", "", "");
    const text = element("span", "", sentence);
    line.dataset.kind = kind;
    line.append(element("time", "", seconds.format()), " ", text);
    this.list.prepend(line);
    if (this.list.childElementCount > MARKS) this.list.lastChild.remove();
    return text;
  }

  #resize() {
    this.#width = this.picture.clientWidth;
    set(this.picture, {viewBox: `0 0 ${this.#width} ${HEIGHT}`});
    set(this.#plot, {width: this.#plotWidth});
    const now = Date.now();
    for (const [lane, {rows = 0}] of Object.entries(LANES)) {
      this.#rows[lane] = Array(rows).fill(-Infinity);
      for (const item of this.#lanes[lane]) {
        item.arrange?.(this.#rows[lane], this.#x);
        item.place(this.#x, now);
      }
    }
    this.#tick = 0;
    this.draw();
  }

  #drawTicks(now) {
    this.#tick = Math.floor(now / this.#step);
    const clock = this.#window > 60_000 ? minutes : seconds;
    const ticks = [];
    for (let at = this.#tick * this.#step; at > now - this.#window; at -= this.#step) {
      const text = draw("text", {x: this.#x(at), y: AXIS + 10});
      text.textContent = clock.format(at);
      ticks.push(draw("line", {x1: this.#x(at), x2: this.#x(at), y1: 0, y2: AXIS}), text);
    }
    this.#ticks.replaceChildren(...ticks);
  }
}
