// What a tab has missed is polled for.
import { NOTES, failure } from "./shared_messages.js";

const POLL = 30_000; // ms for an answer, which waits for nothing, and for the turn

/** GET /poll, for one tab of the group at a time: a user's polls count as streams of his. */
export class Polls {
  #options;
  #url;
  #lock;
  #token;

  constructor(options, base, lock) {
    this.#options = options;
    this.#lock = lock;
    this.#url = new URL(options.url, base);
    this.#url.pathname = this.#url.pathname.replace(/\/events(?=\/|$)/, "/poll");
  }

  /** Raises an error that `isFinal`, or may say how many ms to wait at `least`. */
  async ask({ channels, query }, signal) {
    const url = new URL(this.#url);
    url.searchParams.delete("channel");
    for (const channel of channels) url.searchParams.append("channel", channel);
    const { user } = this.#options;
    const all = { ...(user && { user }), ...query, wait: 0 };
    for (const key of Object.keys(all)) url.searchParams.set(key, all[key]);
    const poll = async () => answered(await this.#ask(url, signal));
    const waiting = AbortSignal.any([signal, AbortSignal.timeout(POLL)]);
    let isTurn = false;
    try {
      return await navigator.locks.request(this.#lock, { signal: waiting }, () => {
        isTurn = true;
        return poll();
      });
    } catch (error) {
      if (isTurn || signal.aborted) throw error;
      return navigator.locks.request(this.#lock, { steal: true }, poll); // from a tab that hangs
    }
  }

  async #ask(url, left, again = false) {
    const { token, headers, credentials, fetch = globalThis.fetch } = this.#options;
    if (typeof token === "string") this.#token = token;
    else if (token && (again || !this.#token)) this.#token = await token();
    const signal = AbortSignal.any([left, AbortSignal.timeout(POLL)]);
    const response = await fetch(url, {
      cache: "no-store",
      credentials,
      signal,
      headers: { ...headers, ...(this.#token && { Authorization: `Bearer ${this.#token}` }) },
    });
    const renewable = response.status === 401 && !again && typeof token === "function";
    return renewable ? this.#ask(url, left, true) : response;
  }
}

async function answered(response) {
  const { status } = response;
  if (status !== 200) {
    const { detail } = await response.json().catch(() => ({}));
    const error = failure(detail ?? `The answer was ${status}.`, status);
    error.isFinal = status < 500 && status !== 429 && status !== 408;
    error.least = response.headers.get("Retry-After") * 1000 || 0;
    throw error;
  }
  const { events, lastEventId } = await response.json();
  const isEnd = lastEventId.endsWith(".closed");
  return {
    events: events.flatMap(({ id, event, data, channel }) => {
      if (id) return [{ id, type: event, data, channels: channel ? [channel] : [] }];
      return NOTES.includes(event) ? [{ name: event, detail: JSON.parse(data) }] : [];
    }),
    lastEventId: isEnd ? lastEventId.slice(0, -".closed".length) : lastEventId,
    isEnd,
  };
}
