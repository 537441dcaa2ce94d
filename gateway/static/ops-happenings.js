// What happens, one by one and by reason.

import {KINDS} from "./ops-cluster.js";
import {$, Rows, bar, element, explain, mark, walk, write} from "./ops-dom.js";
import {has, said} from "./ops-search.js";
import {because, clock, count, duration, several} from "./ops-words.js";

const MOST = 100;

const BADGES = {dropped: "drop", gap: "gap", opened: "open", closed: "end"};

function happeningRow(happening, actions) {
  const {at, kind, client, user, address, reason, channels, node} = happening;
  const who = element("button", "link", element("bdi", "name", user || address || client));
  who.type = "button";
  who.title = `${client} at ${node}`;
  who.setAttribute("aria-label", `Inspect ${user ? `user ${user}` : address}, client ${client}`);
  who.addEventListener("click", () => actions.inspect(client));
  const made = element("li", kind,
    element("time", "muted", clock(at)),
    element("span", "badge", BADGES[kind]),
    element("span", "what", sentence(happening)),
    element("span", "whom", who, element("span", "muted mono name", channels.join(", "))));
  return {element: made, show() {}};
}

function sentence({kind, reason, count: n, seconds}) {
  const why = because(kind, reason);
  if (kind === "dropped") return `${several(n, "event")}: ${why}`;
  if (kind === "closed") return `${why}, after ${duration(seconds ?? 0)}`;
  return why;
}

export function happeningPanel(actions) {
  const rows = new Rows($("happenings"), ({number}) => String(number), happening => happeningRow(happening, actions));
  walk($("happenings"));
  let paused = null;  // what is shown meanwhile
  const show = (cluster, view, wanted) => {
    const kinds = [...$("kinds").querySelectorAll("input:checked")].map(({value}) => value);
    const all = cluster.happenings(KINDS);
    const from = paused ?? all;
    const found = from.filter(({kind, client, user, address, reason, node, channels}) =>
      kinds.includes(kind) && has(wanted, user, address, client, reason, node, because(kind, reason), ...channels));
    rows.show(found.slice(0, MOST));
    const waiting = paused ? all.filter(({number}) => number > (paused[0]?.number ?? 0)).length : 0;
    const {omitted} = view.minute;
    write($("happenings-note"), [
      waiting ? `${count(waiting)} newer wait` : "",
      found.length > MOST ? `${count(found.length - MOST)} older are not shown` : "",
      omitted ? `${count(omitted)} of the last minute were too many to be told one by one` : "",
      said(wanted),
    ].filter(Boolean).join(" · "));
  };
  return {
    show,
    pause(cluster) {
      paused = paused ? null : cluster.happenings(KINDS);
      $("pause").setAttribute("aria-pressed", String(paused !== null));
      write($("pause"), paused ? "Go on" : "Pause");
    },
  };
}

const GROUPS = [["opened", "Opened"], ["closed", "Ended"], ["dropped", "Dropped"], ["gaps", "Gaps"], ["refused", "Refused"]];
const singular = {gaps: "gap"};

function reasonRow({most}) {
  const name = element("span", "name"), n = element("span", "figure"), part = bar();
  const group = element("span", "muted group");
  const made = element("div", "reason", group, name, n, part.element);
  return {
    element: made,
    show({kind, title, reason, count: of, isFirst, most}) {
      write(group, isFirst ? title : "");
      write(name, because(singular[kind] ?? kind, reason));
      explain(name, reason);
      write(n, count(of));
      mark(made, "kind", kind);
      made.classList.toggle("first", isFirst);
      part.show(of / most);
    },
  };
}

const reasons = new Rows($("reasons"), ({kind, reason}) => `${kind} ${reason}`, reasonRow);

export function showReasons(view) {
  const items = GROUPS.flatMap(([kind, title]) => view.minute[kind]
    .map(([reason, n], at) => ({kind, title, reason, count: n, isFirst: at === 0})));
  const most = Math.max(1, ...items.map(item => item.count));
  reasons.show(items.map(item => ({...item, most})));
  const {opened, closed, dropped, gaps, refused} = view.sinceStart;
  write($("since"), view.any ? `Since these workers started: ${count(opened)} opened, ${count(closed)} ended, ` +
    `${several(dropped, "event")} dropped, ${several(gaps, "gap")}, ${count(refused)} refused.` : "");
}
