// What changes on an open stream: its channels, and its token.
//
// A channel that was added is *pending* until the stream has an id later than the position that
// the answer named: only then all that came of it before has been given, and its place is that of
// the stream. Whoever returns sooner leaves it out, and adds it again from its own place.
import { compare, Failure } from "./client.js";
import { channelsOf, pollTarget } from "./poll.js";
import { isFinal, refusal } from "./refused.js";

const MAX_TRIES = 5; // polls that bring nothing of what was missed
const MAX_SEEN = 1_000; // ids of a channel that come before the answer does
const RENEWED_BEFORE = 30_000; // ms before a token expires, or half of its time
const SOONEST = 1_000;
const MAX_TIMER = 2 ** 31 - 1;

export class Changes {
  #link;
  #entries = new Map(); // in the order in which they are asked for
  #turn = Promise.resolve();
  #asked; // the AbortController of the stream whose channels have been asked for, in their order
  #renewal;
  #skew = 0; // ms that the gateway's clock is ahead

  constructor(link) {
    this.#link = link;
    if (link.stream.clientId) this.#asked = link.abort;
  }

  // -- what the link asks

  // The channels to ask for. No stream begins with none, but one that had some may be left without.
  named() {
    const { channels } = this.#link.stream;
    const named = channels.filter((name) => !this.#leavesOut(name));
    return named.length ? named : ["global"];
  }

  #leavesOut(name) {
    const entry = this.#entries.get(name);
    if (entry && this.#isPending(entry)) {
      entry.until = "";
      return true;
    }
    entry?.seen.clear();
    return false;
  }

  opened(serverTime) {
    if (this.#link.over) return;
    this.#skew = serverTime - Date.now() || 0;
    this.#asked = this.#link.abort;
    for (const [name, entry] of this.#entries) {
      if (!entry.until && entry.asked !== this.#asked) this.#add(name, entry);
    }
    this.#link.tokenRefused = false;
    this.#renewLater();
  }

  // Whether an event has been given before; an event with `at` has no id.
  isKnown(names, at, id) {
    if (!this.#entries.size) return false;
    const entries = names.map((name) => this.#entries.get(name));
    const pending = entries.filter((entry) => entry && this.#isPending(entry));
    if (!at) {
      const isKnown = pending.some((entry) => this.#covers(entry, id));
      for (const { until, seen } of pending) if (!until && seen.size < MAX_SEEN) seen.add(id);
      return isKnown;
    }
    if (entries.some((entry) => this.#covers(entry, at))) return true;
    // What was missed comes of one channel after the other, as they were asked for.
    for (const entry of this.#entries.values()) {
      if (pending.includes(entry) && compare(at, entry.at) > 0) {
        entry.at = entry.since = at;
        break;
      }
    }
    return false;
  }

  close() {
    clearTimeout(this.#renewal);
    for (const { reject } of this.#entries.values()) reject(new Failure("The stream is closed."));
  }

  // -- channels

  // For who knows by himself where a channel has begun, as the tab that leads others does.
  settle(name) {
    this.#entries.delete(name);
  }

  async subscribe(name, since = "") {
    const { stream, poll, nextPoll, abort } = this.#link;
    this.#checkOpen();
    const known = this.#entries.get(name);
    if (known) return known.promise;
    if (stream.channels.includes(name)) return stream.lastEventId;
    const from = since === "earliest" ? "0-0" : since;
    const entry = { since, from, at: from, until: "", seen: new Set() };
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    this.#entries.set(name, entry);
    stream.channels = [...stream.channels, name];
    if (poll) nextPoll?.();
    else if (abort === this.#asked) this.#add(name, entry);
    return entry.promise;
  }

  async unsubscribe(name) {
    const { stream, poll, nextPoll } = this.#link;
    const { clientId } = stream;
    this.#checkOpen();
    this.#forget(name, new Failure(`${name} was unsubscribed.`));
    if (poll) nextPoll?.();
    if (!clientId) return;
    await this.#inTurn(async () => {
      const response = await this.#ask(clientId, name, "DELETE");
      if (!response.ok) throw await refusal(response);
    }).catch(() => this.#comeBack(clientId));
  }

  // While polling: what was missed of pending channels, up to where the polls stand. Returns an answer
  // that refuses that for now.
  async catchUp() {
    const { stream } = this.#link;
    for (const [name, entry] of this.#entries) {
      const { lastEventId: until } = stream;
      const isAhead = compare(entry.at, until) > 0; // the polls get there
      if (!this.#isPending(entry) || isAhead) continue;
      for (let n = 0; n < MAX_TRIES && entry.since && compare(entry.at, until) < 0; n += 1) {
        const response = await this.#askFor(name, entry);
        if (this.#entries.get(name) !== entry) break;
        if (response.ok) {
          if (this.#take(name, entry, until, await response.json())) n = 0;
        } else if (isFinal(response)) {
          this.#failed(name, entry, await refusal(response));
          break;
        } else {
          return response;
        }
      }
      if (this.#entries.get(name) !== entry) continue;
      if (this.#link.over) return undefined;
      entry.from ||= until;
      entry.at = entry.since = until;
      entry.until = "0-0";
      entry.isDone = true;
      entry.resolve(until);
    }
    return undefined;
  }

  #askFor(name, entry) {
    const link = this.#link;
    const url = pollTarget(link, 1, entry.since); // other nodes may know a little less
    const { searchParams } = url;
    searchParams.set("channels", [searchParams.get("channels"), name].filter(Boolean).join());
    return link.ask(url, {});
  }

  // Give what of the answer has not come yet; whether there was anything.
  #take(name, entry, until, { events, lastEventId }) {
    const link = this.#link;
    for (const polled of events) {
      const { id, event: type, data } = polled;
      const channels = channelsOf(polled);
      if (link.over || this.#entries.get(name) !== entry) return false;
      if (id !== null && compare(id, until) > 0) break;
      if (id === null && type === "gap") link.stream._tell(type, JSON.parse(data));
      if (!channels.includes(name)) continue;
      const isKnown = channels.some((each) => this.#covers(this.#entries.get(each), id));
      entry.at = entry.since = id;
      if (!isKnown) link.stream._event({ type, data, id, channels });
    }
    entry.at = entry.since = lastEventId;
    return events.length > 0;
  }

  #checkOpen() {
    if (this.#link.over) throw new Failure("The stream is closed.");
  }

  #isPending({ until }) {
    return !until || compare(this.#link.stream.lastEventId, until) <= 0;
  }

  #covers(entry, at) {
    const { began, stream } = this.#link;
    if (entry?.seen.has(at)) return true;
    const from = entry ? entry.from : began;
    const to = entry && this.#isPending(entry) ? entry.at : stream.lastEventId;
    return Boolean(from) && compare(at, from) > 0 && compare(at, to) <= 0;
  }

  #forget(name, error) {
    const { stream } = this.#link;
    this.#entries.get(name)?.reject(error);
    this.#entries.delete(name);
    stream.channels = stream.channels.filter((other) => other !== name);
  }

  #inTurn(what) {
    const done = this.#turn.then(what);
    this.#turn = done.catch(() => {});
    return done;
  }

  #ask(clientId, name, method, since) {
    const url = this.#route(clientId, `channels/${encodeURIComponent(name)}`);
    if (since) url.searchParams.set("since", since);
    return this.#link.ask(url, { method });
  }

  #route(clientId, rest) {
    const url = new URL(this.#link.url);
    const path = `/clients/${clientId}/${rest}`;
    url.pathname = url.pathname.replace(/\/events(\/.*)?$|\/[^/]*$/, path);
    return url;
  }

  async #add(name, entry) {
    const { abort, stream } = this.#link;
    const { clientId } = stream;
    const isWanted = () => !abort.signal.aborted && this.#entries.get(name) === entry;
    entry.asked = abort;
    try {
      await this.#inTurn(async () => {
        if (!isWanted()) return;
        const response = await this.#ask(clientId, name, "PUT", entry.since);
        if (!response.ok) throw await refusal(response);
        const { id } = await response.json();
        if (!isWanted()) return; // that was of another stream, or another time
        for (const what of ["since", "from", "at"]) entry[what] ||= id;
        entry.until = id;
        entry.isDone = true;
        entry.resolve(id);
      });
    } catch (error) {
      if (isWanted()) this.#failed(name, entry, error);
    }
  }

  #failed(name, entry, error) {
    const { stream } = this.#link;
    const { status } = error;
    const isLost = !status || status === 401 || (status === 404 && !entry.isLost);
    entry.isLost = status === 404;
    if (isLost || (entry.isDone && (status === 404 || status === 429 || status >= 500))) {
      this.#comeBack(stream.clientId);
    } else if (entry.isDone) {
      stream._end(error.message, "error", error);
    } else {
      this.#forget(name, error);
    }
  }

  // What is open is not what was asked for, or not known to be.
  #comeBack(clientId) {
    const link = this.#link;
    if (link.stream.clientId === clientId) link.drop("a channel could not be changed");
  }

  // -- the token

  #renewLater() {
    const link = this.#link;
    const now = Date.now();
    clearTimeout(this.#renewal);
    const expiry = expiryOf(link.token);
    if (typeof link.options.token !== "function" || !expiry) return;
    const left = expiry - this.#skew - now;
    link.renewal = now + Math.max(left / 2, left - RENEWED_BEFORE);
    const wait = Math.min(MAX_TIMER, Math.max(SOONEST, link.renewal - now));
    this.#renewal = setTimeout(() => this.#renew(), wait);
  }

  async #renew() {
    const link = this.#link;
    const { clientId } = link.stream;
    if (!clientId) return;
    try {
      if (Date.now() >= link.renewal) {
        link.token = undefined;
        await link.ask(this.#route(clientId, "token"), { method: "PUT" });
      }
    } catch {
      // the stream ends with its token, and comes back with another one
    }
    if (clientId === link.stream.clientId) this.#renewLater();
  }
}

// In ms; undefined for what is no JSON Web Token.
function expiryOf(token) {
  try {
    const claims = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(atob(claims)).exp * 1000;
  } catch {
    return undefined;
  }
}
