// What a tab has missed is polled for.
import { NOTES, failure } from "./shared_messages.js";

const POLL = 30_000; // ms for an answer, which waits for nothing, and for the turn
const LONGEST = 3_600_000; // ms that a Retry-After is kept to

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
    const { user } = this.#options;
    const all = { channels: channels.join(), user, ...query, wait: 0 };
    for (const [key, value] of Object.entries(all)) {
      if (value || value === 0) url.searchParams.set(key, value);
    }
    const poll = () => within(signal, async (limit) => answered(await this.#ask(url, limit)));
    let isTurn = false;
    const turn = () => {
      isTurn = true;
      return poll();
    };
    try {
      const { locks } = navigator;
      return await within(signal, (limit) => locks.request(this.#lock, { signal: limit }, turn));
    } catch (error) {
      if (isTurn || signal.aborted) throw error;
      return navigator.locks.request(this.#lock, { steal: true }, poll); // from a tab that hangs
    }
  }

  async #ask(url, signal, again = false) {
    const { token, headers, credentials, fetch = globalThis.fetch } = this.#options;
    if (typeof token === "string") this.#token = token;
    else if (token && (again || !this.#token)) {
      const aborted = new Promise((_, reject) => signal.addEventListener("abort", reject));
      this.#token = await Promise.race([token(), aborted]);
    }
    const response = await fetch(url, {
      cache: "no-store",
      credentials,
      signal,
      headers: { ...headers, ...(this.#token && { Authorization: `Bearer ${this.#token}` }) },
    });
    const renewable = response.status === 401 && !again && typeof token === "function";
    return renewable ? this.#ask(url, signal, true) : response;
  }
}

/** The result of `act`, whose own signal is aborted with `signal`, and after POLL. */
async function within(signal, act) {
  const limit = new AbortController();
  const stop = () => limit.abort();
  const timer = setTimeout(stop, POLL);
  signal.addEventListener("abort", stop);
  if (signal.aborted) stop();
  try {
    return await act(limit.signal);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
  }
}

async function answered(response) {
  const { status } = response;
  if (status !== 200) {
    const { detail } = await response.json().catch(() => ({}));
    const error = failure(detail ?? `The answer was ${status}.`, status);
    error.isFinal = status < 500 && status !== 429 && status !== 408;
    error.least = Math.min(LONGEST, response.headers.get("Retry-After") * 1000 || 0);
    throw error;
  }
  const { events, lastEventId } = await response.json();
  const isEnd = lastEventId.endsWith(".closed");
  return {
    events: events.flatMap(({ id, event, data, channel, channels = channel ? [channel] : [] }) => {
      if (id) return [{ id, type: event, data, channels }];
      return NOTES.includes(event) ? [{ name: event, detail: JSON.parse(data) }] : [];
    }),
    lastEventId: isEnd ? lastEventId.slice(0, -".closed".length) : lastEventId,
    isEnd,
  };
}
