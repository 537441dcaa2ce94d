// The live counts of all nodes, for whoever may ask for them.

import { $, authorization, sleep, value } from "./demo-page.js";

const number = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const compact = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});
const count = n => (n < 100_000 ? number : compact).format(n);

const DENIED = {
  401: "No counts: /stats wants a token",
  403: "No counts: /stats is for administrators",
};

// Asks each second; `told` is given what /stats says, and null while it does not.
export async function watchStats(told) {
  let denied = null;  // the token that /stats did not take; it is not asked again with the same
  for (let before = null; ; await sleep(1000)) {
    const token = value("token");
    if (document.visibilityState === "hidden" || token === denied) { before = null; continue; }
    let note = "No counts: /stats does not answer";
    let now = null;
    try {
      const signal = AbortSignal.timeout(5000);
      const response = await fetch("/stats", {headers: authorization(), cache: "no-store", signal});
      if (response.status in DENIED) [denied, note] = [token, DENIED[response.status]];
      if (!response.ok) throw new Error(response.status);
      now = {...await response.json(), at: performance.now()};
      show(now, before);
      note = "Live counts of all nodes";
    } catch {
      now = null;
    }
    before = now;
    told(now);
    $("stats").classList.toggle("stale", !now);
    if ($("stats-note").textContent !== note) $("stats-note").textContent = note;  // said aloud once
  }
}

function show(now, before) {
  for (const name of ["clients", "channels", "dropped"]) $(`stat-${name}`).textContent = count(now[name]);
  $("stat-nodes").textContent = count(now.nodes.length);
  for (const name of ["delivered", "published"]) {
    const rate = before && (now[name] - before[name]) / (now.at - before.at) * 1000;
    $(`stat-${name}-rate`).textContent = rate >= 0 && before ? count(rate) : "–";  // a restarted node counts from 0
  }
}
