// @microsoft/fetch-event-source: events over fetch, in browsers.

import { EventStreamContentType, fetchEventSource } from "@microsoft/fetch-event-source";

class FatalError extends Error {}
class RetriableError extends Error {}

function toldAs({ event, id, data }) {
  return { type: event || "message", id, data };
}

// The longer example of its documentation.
export async function start(url, tell) {
  const ended = fetchEventSource(url, {
    async onopen(response) {
      if (response.ok && response.headers.get("content-type") === EventStreamContentType) {
        tell("open");
      } else if (response.status >= 400 && response.status < 500 && response.status !== 429) {
        throw new FatalError();
      } else {
        throw new RetriableError();
      }
    },
    onmessage(message) {
      tell("event", toldAs(message));
    },
    onclose() {
      throw new RetriableError();
    },
    onerror(error) {
      tell("error", { text: String(error) });
      if (error instanceof FatalError) throw error;
    },
  });
  await ended.catch(() => tell("end"));
}

export async function startMended(url, tell) {
  let seen = ""; // the id of the last whole event: its own may be that of half a one
  const ended = fetchEventSource(url, {
    openWhenHidden: true,
    fetch(input, { headers: { "last-event-id": _, ...headers }, ...init }) {
      if (seen) headers["last-event-id"] = seen;
      return fetch(input, { ...init, headers });
    },
    async onopen(response) {
      if (response.status === 204) throw new FatalError("the stream is over");
      if (response.status !== 200) throw new RetriableError();
      tell("open");
    },
    onmessage(message) {
      if (message.id) seen = message.id;
      if (message.event === "closed") throw new FatalError("the stream is over");
      if (message.event !== "keepalive") tell("event", toldAs(message));
    },
    onclose() {
      throw new RetriableError();
    },
    onerror(error) {
      tell("error", { text: String(error) });
      if (error instanceof FatalError) throw error;
    },
  });
  await ended.catch(() => tell("end"));
}
