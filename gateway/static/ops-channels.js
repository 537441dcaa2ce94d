// The channels with the most clients.

import {SHORT_SECONDS} from "./ops-cluster.js";
import {$, Rows, cell, element, explain, row, write} from "./ops-dom.js";
import {graph} from "./ops-graph.js";
import {has, said} from "./ops-search.js";
import {count, rate} from "./ops-words.js";

const MOST = 12;
const OWN = "gateway:ops";  // that this page has: it tells of nobody else

function channelRow() {
  const name = element("bdi", "name mono");
  const clients = element("span"), events = element("span"), drawn = graph(SHORT_SECONDS);
  const made = row("channel",
    cell("", "who", name),
    cell("Clients", "figure", clients),
    cell("Events/s", "figure", events),
    cell("", "drawn", drawn.element));
  return {
    element: made,
    show(channel) {
      write(name, channel.name);
      explain(name, channel.name);
      write(clients, count(channel.clients));
      write(events, rate(channel.rate));
      drawn.show(channel.graph);
    },
  };
}

export function channelPanel() {
  const rows = new Rows($("busy").tBodies[0], ({name}) => name, channelRow, {held: true});
  return (view, graphs, wanted) => {
    const found = view.busy.filter(({name}) => name !== OWN && has(wanted, name));
    rows.show(found.slice(0, MOST).map(channel => ({...channel, graph: graphs.get(channel.name)})));
    const more = found.length - MOST;
    write($("busy-note"), [more > 0 ? `and ${count(more)} more` : "", said(wanted)].filter(Boolean).join(", "));
    $("busy").classList.toggle("stale", view.stale);
  };
}
