// The list of events, and of what the client tells between them, the newest first.

import { $, amount, element } from "./demo-page.js";

const ROWS = 200;  // enough to read back, few enough to lay out in every animation frame
const LETTERS = 300;  // of an event's data that are shown

const clock = new Intl.DateTimeFormat("en-GB", {hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3});

let received = 0;
let lastEventId = "";
let arrived = [];  // since the last animation frame, at most ROWS

// An event of the stream.
export function addEvent({type, data, id, channel}) {
  lastEventId = id || lastEventId;
  const shown = data.length > LETTERS ? `${data.slice(0, LETTERS).trimEnd()} … ${amount(data.length)} letters` : data;
  add({name: "event", number: ++received, type, data: shown, id, channel});
}

// What the client tells about its stream.
export function addNotice(type, data, id = "") {
  lastEventId = id || lastEventId;
  add({name: `control ${type}`, type, data, id, channel: ""});
}

export const last = () => lastEventId;

function add(row) {
  if (!arrived.length) requestAnimationFrame(show);
  arrived.push({...row, time: new Date()});
  if (arrived.length > ROWS) arrived.shift();
}

function show() {
  $("last-event-id").textContent = lastEventId || "–";
  $("received").textContent = amount(received);
  $("events").prepend(...arrived.map(row).reverse());
  while ($("events").childElementCount > ROWS) $("events").lastChild.remove();
  arrived = [];
}

function row({name, number, time, type, data, id, channel}) {
  const item = document.createElement("li");
  item.className = name;
  item.dataset.type = type;
  item.append(
    element("span", "number", number ? `#${number}` : ""),
    element("time", "time", clock.format(time)),
    element("span", "type", type),
    element("span", "channel", channel),
    element("pre", "data", data),
    element("span", "id", id),
  );
  return item;
}
