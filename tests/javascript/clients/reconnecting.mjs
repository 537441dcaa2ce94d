// reconnecting-eventsource: another EventSource whenever the browser's own has given up.

import ReconnectingEventSource from "reconnecting-eventsource";

import { listen } from "./listening.mjs";

const OPTIONS = { max_retry_time: 200 };

export function start(url, tell) {
  listen(new ReconnectingEventSource(url, OPTIONS), tell);
}

export function startMended(url, tell) {
  const source = new ReconnectingEventSource(url, OPTIONS);
  listen(source, tell);
  source.addEventListener("closed", () => {
    source.close();
    tell("end");
  });
}
