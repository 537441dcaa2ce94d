// eventsource, version 4: the interface of the standard, for Node.

import { EventSource } from "eventsource";

import { listen } from "./listening.mjs";

export function start(url, tell) {
  listen(new EventSource(url), tell);
}
