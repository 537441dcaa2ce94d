// The form that publishes, and the same commands for a shell.

import { $, amount, answered, ask, authorization, copied, quote, value } from "./demo-page.js";

const BURST_BYTES = 112 * 1024;  // of data in each event of a burst
const BATCH = 9;  // of them in a request: a body of 1 MiB
const BURST = 4 * BATCH;  // events, for a reader that keeps up
const MOST = 128 * BATCH;  // events, for one that is stalled: Chromium alone takes 50 MiB unread

function members() {
  return {event: value("publish-event") || undefined, key: value("publish-key") || undefined};
}

function path() {
  const query = new URLSearchParams(Object.entries(members()).filter(([, text]) => text)).toString();
  return `/publish/${encodeURIComponent(value("publish-channel"))}${query && `?${query}`}`;
}

async function one() {
  const headers = {"Content-Type": "text/plain"};
  const {id} = JSON.parse(await ask(path(), {method: "POST", headers, body: $("publish-data").value}));
  return `Accepted as ${id}`;
}

// Events with these data, in one request; the id of the last.
async function many(data) {
  const lines = data.map(data => JSON.stringify({channel: value("publish-channel"), ...members(), data}) + "\n");
  const headers = {"Content-Type": "application/x-ndjson"};
  const text = await ask("/publish", {method: "POST", headers, body: new Blob(lines)});
  const answers = text.trim().split("\n").map(line => JSON.parse(line));
  const refused = answers.filter(answer => !answer.id);
  if (refused.length)
    throw new Error(`${refused.length} of ${lines.length} refused, the first in line ${refused[0].line}: ${refused[0].detail}`);
  return answers.at(-1).id;
}

async function hundred() {
  return `100 accepted, the last as ${await many(Array.from({length: 100}, (_, i) => `${i + 1} of 100`))}`;
}

// Large events: a few, or, for a reader that is stalled, until the node can keep no more for it.
async function burst(timeline, moments) {
  const end = timeline.deed("burst", `A burst of events to ${value("publish-channel")}`);
  let sent = 0;
  try {
    const isOver = await moments.overflow();
    const round = async () => {
      for (const until = sent + BURST; sent < until;)
        await many(Array.from({length: BATCH}, () => `${++sent} of a burst `.padEnd(BURST_BYTES)));
    };
    await round();
    if (!await isOver()) {
      while (sent < MOST && !await isOver()) await round();
      await round();  // of which the policy has all
    }
    return `${amount(sent)} accepted, of ${BURST_BYTES / 1024} KiB each`;
  } finally {
    end();
  }
}

// The token itself is never shown: the shell is to know it as TOKEN.
function showCommands(streamQuery) {
  const token = authorization().Authorization ? ' -H "Authorization: Bearer $TOKEN"' : "";
  $("curl-subscribe").textContent = `curl -N${token} ${quote(`${location.origin}/events?${streamQuery()}`)}`;
  $("curl-publish").textContent =
    `curl${token} -H 'Content-Type: text/plain' --data-raw ${quote($("publish-data").value)} ${quote(location.origin + path())}`;
}

// Returns what shows the commands anew, when something has changed that is no field.
export function publishing(timeline, moments, streamQuery) {
  const report = asking => answered($("result"), asking);
  $("publish").addEventListener("submit", event => { event.preventDefault(); report(one()); });
  $("publish-hundred").addEventListener("click", () => report(hundred()));
  $("publish-burst").addEventListener("click", () => report(burst(timeline, moments)));
  $("publish-data").addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("publish").requestSubmit();
  });
  for (const command of ["subscribe", "publish"])
    $(`copy-${command}`).addEventListener("click", event => copied(event.currentTarget, $(`curl-${command}`)));
  const show = () => showCommands(streamQuery);
  document.addEventListener("input", show);
  show();
  return show;
}
