// eventsource, version 4: the interface of the standard, for Node.

import { EventSource } from "eventsource";

import { listen } from "./listening.mjs";

export function start(url, tell) {
  listen(new EventSource(url), tell);
}

export function startMended(url, tell) {
  const source = new EventSource(url);
  listen(source, tell);
  source.addEventListener("bye", () => {
    source.close(); // the end that the gateway tells has no data, and is not seen
    tell("end");
  });
}
