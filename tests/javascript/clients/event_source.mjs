// The EventSource of the standard: Chromium's own, and Node's with --experimental-eventsource.

import { listen } from "./listening.mjs";

export function start(url, tell) {
  listen(new EventSource(url), tell);
}
