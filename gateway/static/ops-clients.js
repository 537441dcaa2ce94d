// Clients: the slowest ones, and those that were looked for.

import {SHORT_SECONDS} from "./ops-cluster.js";
import {$, Rows, cell, element, explain, mark, row, walk, write} from "./ops-dom.js";
import {graph} from "./ops-graph.js";
import {has, said} from "./ops-search.js";
import {NOTHING, bytes, count, duration, several} from "./ops-words.js";

const MOST = 20;  // of the slowest

const CLIENT_TONES = {__proto__: null, live: "good", behind: "warn", replaying: "note", ending: "note"};

function clientRow(actions) {
  const who = element("bdi", "name");
  const inspect = element("button", "link", who);
  inspect.type = "button";
  const where = element("span", "muted about mono");
  const names = element("span", "muted about name mono");
  const state = element("span", "state");
  const waiting = element("span"), drawn = graph(SHORT_SECONDS, {least: 1024});
  const behind = element("span"), delivered = element("span"), dropped = element("span");
  const node = element("bdi", "name mono muted");
  const made = row("client",
    cell("", "who", inspect, where, names),
    cell("State", "", state),
    cell("Waiting", "drawn", waiting, drawn.element),
    cell("Behind for", "figure", behind),
    cell("Delivered", "figure", delivered),
    cell("Dropped", "figure", dropped),
    cell("Node", "", node));
  inspect.addEventListener("click", () => actions.inspect(made.dataset.client));
  return {
    element: made,
    show(client) {
      mark(made, "client", client.id);
      write(who, client.user || client.address || client.id);
      explain(who, client.id);
      inspect.setAttribute("aria-label", `Inspect ${client.user ? `user ${client.user}` : client.address}, client ${client.id}`);
      const own = client.id === actions.self() && "(this page)";
      write(where, [client.user && client.address, client.id, own].filter(Boolean).join(" "));
      write(names, named(client.names, client.channels));
      write(state, client.state);
      mark(state, "tone", CLIENT_TONES[client.state] ?? "");
      write(waiting, client.queuedFrames ? `${bytes(client.queuedBytes)} in ${several(client.queuedFrames, "frame")}` : NOTHING);
      drawn.show(client.graph);
      write(behind, client.behindSeconds ? duration(client.behindSeconds) : NOTHING);
      write(delivered, count(client.delivered));
      write(dropped, count(client.dropped));
      mark(dropped, "tone", client.dropped ? "warn" : "");
      write(node, client.node);
      explain(node, client.node);
    },
  };
}

const named = (names, all) => `${names.join(", ")}${all > names.length ? ` and ${count(all - names.length)} more` : ""}`;

function clientPanel(id, actions) {
  const rows = new Rows($(id).tBodies[0], client => client.id, () => clientRow(actions), {held: true});
  walk($(id));
  return (clients, graphs) => rows.show(clients.map(client => ({...client, graph: graphs.get(client.id)})));
}

export function slowPanel(actions) {
  const show = clientPanel("slow", actions);
  return (view, graphs, wanted) => {
    const found = view.slow.filter(({user, address, id, node, state, names}) =>
      has(wanted, user, address, id, node, state, ...names));
    const isHeld = show(found.slice(0, MOST), graphs);
    const more = found.length - MOST;
    write($("slow-note"), [
      isHeld && "in place while you are here",
      more > 0 && `and ${count(more)} more`,
      said(wanted),
    ].filter(Boolean).join(", "));
    $("slow").classList.toggle("stale", view.stale);
  };
}

export function foundPanel(actions) {
  const show = clientPanel("found", actions);
  return (found, graphs) => {
    $("found-card").hidden = !found;
    if (!found) return show([], graphs);
    show(found.clients ?? [], graphs);
    const {clients, more, missing, error} = found;
    write($("found-note"), error ?? [
      !clients ? "Looking…" : clients.length ? several(clients.length, "client") : "Nobody is like that",
      more ? `and ${count(more)} more: say more of whom you look for` : "",
      missing ? `${several(missing, "worker")} did not answer` : "",
    ].filter(Boolean).join(", "));
  };
}
