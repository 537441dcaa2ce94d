// eventsource-client: an iterator of events, for Node and browsers.

import { createEventSource } from "eventsource-client";

export async function start(url, tell) {
  const source = createEventSource({ url, onConnect: () => tell("open") });
  for await (const { event, id, data } of source) {
    tell("event", { type: event ?? "message", id: id ?? "", data });
  }
  tell("end");
}
