// Long polls, where a proxy forbids streams or holds their events back.
import { refused } from "./refused.js";

const LONGEST = 25; // seconds to wait for an event
const TRY_STREAM = 300_000; // ms after which streaming is tried again,
const TRY_STREAM_SOONER = 60_000; // and once the network has changed or the page was looked at

export function pollTarget(link, seconds, lastEventId = link.stream.lastEventId) {
  const url = link.target("/poll");
  url.searchParams.set("wait", seconds);
  if (lastEventId) url.searchParams.set("lastEventId", lastEventId);
  return url;
}

// Have the link poll, if that is answered while no stream is.
export async function find(link) {
  const { abort, heard } = link;
  if (link.posted && !link.isLocated) return;
  try {
    const response = await link.ask(pollTarget(link, 0), {});
    const { lastEventId } = await response.json();
    if (!response.ok || typeof lastEventId !== "string") return;
  } catch {
    return;
  }
  if (link.abort !== abort || link.heard !== heard) return;
  const until = { began: Date.now(), looked: link.looked };
  link.poll = () => poll(link, until);
  link.drop("no streaming", true);
}

async function poll(link, { began, looked }) {
  const { stream, abort } = link;
  let turn;
  link.nextPoll = () => turn?.abort();
  abort.signal.addEventListener("abort", () => turn?.abort());
  while (!abort.signal.aborted) {
    const patience = link.looked === looked ? TRY_STREAM : TRY_STREAM_SOONER;
    if (Date.now() - began > patience) {
      link.poll = undefined;
      link.drop("streaming is tried again", true);
      return;
    }
    const refusal = link.opened && (await link.changes?.catchUp());
    if (refusal) {
      link.poll = undefined;
      return refused(link, refusal);
    }
    if (link.over || abort.signal.aborted) return;
    turn = new AbortController();
    const seconds = link.opened ? Math.min(LONGEST, (2 * link.keepalive) / 1000) : 0;
    let response;
    let answer;
    try {
      response = await link.ask(pollTarget(link, seconds), { signal: turn.signal });
      if (response.ok) answer = await response.json();
    } catch (error) {
      if (turn.signal.aborted && !abort.signal.aborted) continue;
      throw error;
    }
    if (link.over || abort.signal.aborted) return;
    if (!answer) {
      link.poll = undefined;
      return refused(link, response);
    }
    const { events, lastEventId } = answer;
    link.heard = Date.now();
    if (!link.opened) opened(link, events, lastEventId);
    deliver(link, events);
    if (link.over) return;
    stream.lastEventId = lastEventId;
    if (lastEventId.endsWith("closed")) link.closed();
  }
}

function opened(link, events, position) {
  const { stream } = link;
  link.opened = Date.now();
  link.began ??= before(stream.lastEventId, events) ?? position;
  stream._set({ status: "open", transport: "poll" });
  stream._tell("open", { clientId: "", channels: stream.channels });
}

// The position behind which the first answer begins, where it is not empty.
function before(asked, events) {
  if (asked) return asked === "earliest" ? "0-0" : asked;
  return events.find(({ id }) => id)?.id.split("-")[0]; // which is before all of that millisecond
}

// Those of the stream through which a polled event comes; older gateways name but the first.
export function channelsOf({ channel, channels }) {
  return channels ?? (channel ? [channel] : []);
}

function deliver(link, events) {
  const { stream } = link;
  for (const polled of events) {
    const { id, event, data } = polled;
    if (link.over) return;
    if (id === null) {
      stream._tell(event, JSON.parse(data));
    } else {
      stream.lastEventId = id;
      stream._event({ type: event, data, id, channels: channelsOf(polled) });
    }
  }
}
