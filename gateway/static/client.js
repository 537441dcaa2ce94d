// The gateway's client for browsers, without dependencies. What it promises stands in client.d.ts.
//
// A Stream is what its user holds: listeners, a state, and no connection. A source drives it:
// Link below, over fetch, or share() of shared.js, over the one Link of a group of tabs.
//
// The seam between them, for these modules alone:
//   share(options, connect, stream) -> source    options as given to connect, already checked
//   source: {subscribe(channel, since), unsubscribe(channel), close()}, the first two async
//   stream._set({status, transport, attempt, delay, reason})   any of them: a new state, told
//   stream._tell(name, detail)                   to the listeners of when()
//   stream._event({type, data, id, channels})    to the listeners of on()
//   stream._end(reason, name, detail)            closed; tells "end" or "error" before, if named
//   stream.lastEventId, .clientId, .channels     are the source's to set
export const VERSION = "0.1.0";

const MAX_EVENT = 1024 * 1024; // characters of one event, with those of its line that has not ended
const KEEPALIVE = 15_000; // ms, of a gateway that does not tell
const PATIENCE = 8_000; // ms without a byte, after which a proxy may be buffering: open_wait is 5 s
const LIVED = 5_000; // ms open, after which the next loss is a first one
const MAX_TIMER = 2 ** 31 - 1;

const padded = (position) => position.replace(/\d+/g, (digits) => digits.padStart(20, "0"));

export function compare(a, b) {
  const [left, right] = [padded(a), padded(b)];
  return left < right ? -1 : +(left > right);
}

export class Parser {
  lastEventId = "";
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #onEvent;
  #begun;
  #afterCR;
  #line = "";
  #block = {};

  constructor(onEvent) {
    this.#onEvent = onEvent;
  }

  push(piece) {
    let text = typeof piece === "string" ? piece : this.#decoder.decode(piece, { stream: true });
    if (!text) return;
    if (!this.#begun) text = text.replace(/^\ufeff/, "");
    this.#begun = true;
    if (this.#afterCR) text = text.replace(/^\n/, "");
    this.#afterCR = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    lines.forEach((line, index) => {
      this.#line += line;
      if (this.#line.length + (this.#block.data?.length ?? 0) > MAX_EVENT) {
        throw new RangeError(`An event of the stream is over ${MAX_EVENT} characters.`);
      }
      if (index < lines.length - 1) this.#end();
    });
  }

  #end() {
    const block = this.#block;
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(this.#line);
    if (!this.#line) {
      this.#block = {};
      this.lastEventId = block.id ?? this.lastEventId;
      if (block.data !== undefined) {
        const { event, data, id = "", channel = "", at = "" } = block;
        const { lastEventId } = this;
        this.#onEvent({ type: event || "message", data, id, lastEventId, channel, at });
      }
    } else if (name === "data") {
      block.data = block.data === undefined ? value : `${block.data}\n${value}`;
    } else if (name === "retry") {
      if (/^\d+$/.test(value)) this.retry = Math.min(value, MAX_TIMER);
    } else if (/^(event|channel|at)$/.test(name) || (name === "id" && !value.includes("\0"))) {
      block[name] = value;
    }
    this.#line = "";
  }
}

const text = (value) => typeof value === "string";
const filled = (value) => text(value) && value !== "";
const callable = (value) => typeof value === "function";
const object = (value) => typeof value === "object" && value !== null;
const amount = (value) => typeof value === "number" && value >= 0;
const NAMES = ["open", "gap", "dropped", "reconnecting", "end", "error", "state"];
const named = (name) => `on${name[0].toUpperCase()}${name.slice(1)}`;

const OPTIONS = {
  url: [(value) => filled(value) || value instanceof URL, "the address of the event stream"],
  channels: [(value) => Array.isArray(value) && value.every(filled), "an array of names"],
  user: [filled, "a name"],
  token: [(value) => text(value) || callable(value), "a string, or a function that returns one"],
  lastEventId: [text, "a position"],
  replay: [(value) => amount(value) && Number.isInteger(value), "a whole number of events"],
  request: [(value) => object(value) && "body" in value, "an object with a body"],
  headers: [object, "an object of headers"],
  credentials: [filled, "as fetch takes it"],
  share: [(value) => typeof value === "boolean" || filled(value), "true, or the name of a group"],
  attempts: [amount, "a number that is not negative"],
  minDelay: [amount, "a number of milliseconds"],
  maxDelay: [amount, "a number of milliseconds"],
  signal: [(value) => value instanceof AbortSignal, "an AbortSignal"],
  fetch: [callable, "a function"],
  on: [(value) => object(value) && Object.values(value).every(callable), "an object of listeners"],
  ...Object.fromEntries(NAMES.map((name) => [named(name), [callable, "a function"]])),
};

function check(condition, sentence) {
  if (!condition) throw new TypeError(sentence);
}

export function connect(options) {
  check(object(options), "connect() takes an object of options, with a url and channels.");
  for (const [name, value] of Object.entries({ url: "", ...options })) {
    check(Object.hasOwn(OPTIONS, name), `connect() has no option ${name}.`);
    if (value !== undefined) check(OPTIONS[name][0](value), `${name} is ${OPTIONS[name][1]}.`);
  }
  const { channels, user, token, request, share, signal } = options;
  check(channels?.length || user || token || request, "Name channels, or a user.");
  check(!share || !request, "A stream that is opened by a request of its own cannot be shared.");
  const stream = new Stream(options);
  const alone = () => new Link(stream, options);
  stream._source =
    share && globalThis.navigator?.locks && globalThis.BroadcastChannel
      ? import("./shared.js").then((module) => module.share(options, connect, stream)).catch(alone)
      : alone();
  if (signal?.aborted) stream.close();
  signal?.addEventListener("abort", () => stream.close());
  return stream;
}

function add(listeners, name, listener) {
  check(callable(listener), "A listener is a function.");
  const entry = [name, listener];
  listeners.add(entry);
  return () => listeners.delete(entry);
}

function call(listeners, name, ...told) {
  for (const [wanted, listener] of [...listeners]) {
    if (wanted !== name && wanted !== "*") continue;
    try {
      listener(...told);
    } catch (error) {
      (globalThis.reportError ?? console.error)(error);
    }
  }
}

export class Stream {
  state = {};
  lastEventId;
  clientId = "";
  channels;
  #published = new Set();
  #told = new Set();

  constructor({ lastEventId = "", channels = [], on = {}, ...options }) {
    this.lastEventId = lastEventId;
    this.channels = [...channels];
    for (const type of Object.keys(on)) this.on(type, on[type]);
    for (const name of NAMES) if (options[named(name)]) this.when(name, options[named(name)]);
    this._set({ status: "connecting", transport: "stream", attempt: 0, delay: 0, reason: "" });
  }

  on(type, listener) {
    return add(this.#published, type, listener);
  }

  when(name, listener) {
    check(NAMES.includes(name), `when() knows ${NAMES.join(", ")}; on() is for published events.`);
    return add(this.#told, name, listener);
  }

  subscribe(channel, { since } = {}) {
    check(filled(channel), "A channel is a name.");
    return this.#ask((source) => source.subscribe(channel, since));
  }

  unsubscribe(channel) {
    check(filled(channel), "A channel is a name.");
    return this.#ask((source) => source.unsubscribe(channel));
  }

  close() {
    this._end("closed by close()");
  }

  async #ask(what) {
    const source = await this._source;
    if (this.state.status === "closed") throw new Error(`The stream is ${this.state.reason}.`);
    return what(source);
  }

  _set(changes) {
    this.state = Object.freeze({ ...this.state, ...changes });
    this._tell("state", this.state);
  }

  _tell(name, detail) {
    call(this.#told, name, detail);
  }

  _event({ type, data, id, channels }) {
    const json = () => JSON.parse(data);
    call(this.#published, type, { type, data, id, channel: channels[0] ?? "", channels, json });
  }

  async _end(reason, name, detail) {
    if (this.state.status === "closed") return;
    this._set({ status: "closed", attempt: 0, delay: 0, reason });
    if (name) this._tell(name, detail);
    (await this._source).close();
  }
}

class Link {
  options;
  stream;
  url;
  wake = () => {};
  heard = 0;
  keepalive = KEEPALIVE;
  skew = 0;
  attempt = 0;
  added = new Map(); // channels not yet settled: name -> {from, at, until, done, failed}
  closing = new AbortController();

  constructor(stream, options) {
    this.stream = stream;
    this.options = options;
    this.url = new URL(options.url, globalThis.document?.baseURI ?? globalThis.location?.href);
    const on = (target, ...types) => {
      const { signal } = this.closing;
      for (const type of types) target?.addEventListener?.(type, () => this.look(), { signal });
    };
    on(globalThis, "online", "pageshow");
    on(globalThis.document, "visibilitychange");
    this.run();
  }

  get over() {
    return this.stream.state.status === "closed";
  }

  close() {
    this.closing.abort();
    this.abort?.abort();
    clearTimeout(this.renewal);
    clearTimeout(this.watchdog);
    this.wake();
  }

  async run() {
    try {
      await null; // for who connects to add listeners
      while (!this.over) {
        const lost = await this.open();
        clearTimeout(this.watchdog);
        clearTimeout(this.renewal);
        this.stream.clientId = "";
        if (!this.over) await this.pause(lost);
      }
    } catch (error) {
      this.stream._end(error.message, "error", error);
    }
  }

  async pause({ reason, least = 0, now }) {
    const { minDelay = 500, maxDelay = 30_000, attempts = Infinity } = this.options;
    if (this.opened && Date.now() - this.opened >= LIVED) this.attempt = 0;
    this.opened = 0;
    if (this.attempt >= attempts) throw failure(`Gave up after ${attempts} attempts: ${reason}.`);
    const first = Math.max(minDelay, least ? 0 : this.retry ?? 0);
    const most = Math.max(first, Math.min(maxDelay, first * 2 ** this.attempt));
    const delay = now ? 0 : least + Math.random() * most;
    const told = { attempt: ++this.attempt, delay, reason };
    this.stream._set({ status: "reconnecting", transport: "stream", ...told });
    this.stream._tell("reconnecting", told);
    const earliest = Date.now() + least;
    await new Promise((resolve) => {
      let timer = setTimeout(resolve, Math.min(delay, MAX_TIMER));
      this.wake = () => {
        clearTimeout(timer);
        timer = setTimeout(resolve, this.over ? 0 : Math.max(0, earliest - Date.now()));
      };
      if (this.over) this.wake();
    });
  }

  look() {
    if (globalThis.document?.hidden) return;
    if (Date.now() - this.heard > 3 * this.keepalive) this.drop("silence", true);
    this.wake();
  }

  drop(why, now) {
    this.why ??= { reason: why, now };
    this.abort?.abort();
  }

  watch() {
    const left = this.heard + 3 * this.keepalive - Date.now();
    if (left <= 0) this.drop("silence");
    else this.watchdog = setTimeout(() => this.watch(), left);
  }

  route(path) {
    const url = new URL(this.url);
    url.pathname = url.pathname.replace(/\/events(\/.*)?$|\/[^/]*$/, "") + path;
    return url;
  }

  query(url) {
    const { user, replay } = this.options;
    const { stream } = this;
    url.searchParams.delete("channel");
    for (const name of stream.channels) {
      if (!this.added.has(name)) url.searchParams.append("channel", name);
    }
    if (user) url.searchParams.set("user", user);
    if (replay !== undefined && !stream.lastEventId) url.searchParams.set("replay", replay);
    return url;
  }

  async token(again) {
    const { token } = this.options;
    if (!callable(token)) return token;
    if (again || !this.held || Date.now() >= this.renew) {
      this.held = await token();
      const left = expiry(this.held) - this.skew - Date.now();
      this.renew = Date.now() + left - Math.min(30_000, left / 2);
    }
    return this.held;
  }

  async ask(url, init, again) {
    const { headers, credentials, fetch = globalThis.fetch } = this.options;
    const token = await this.token(again);
    const authorization = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch(url, {
      cache: "no-store",
      credentials,
      signal: this.abort.signal,
      ...init,
      headers: { ...headers, ...authorization, ...init.headers },
    });
    if (response.status !== 401 || again || !callable(this.options.token)) return response;
    return this.ask(url, init, true);
  }

  async open() {
    const { stream } = this;
    const request = !this.posted && this.options.request;
    const first = this.posted && !this.located;
    if (first) throw failure("The answer to the request names no address at which to go on.");
    for (const [name, { until }] of this.added) {
      if (until && compare(stream.lastEventId, until) > 0) this.added.delete(name);
    }
    for (const entry of this.added.values()) entry.until = "";
    this.abort = new AbortController();
    this.why = undefined;
    this.heard = Date.now();
    this.watch();
    const url = request ? this.url : this.query(new URL(this.url));
    url.searchParams.set("annotate", true);
    const headers = { Accept: "text/event-stream" };
    if (stream.lastEventId) headers["Last-Event-ID"] = stream.lastEventId;
    let response;
    try {
      const init = request && { method: "POST", body: request.body };
      this.posted = request;
      response = await this.ask(url, { ...init, headers: { ...headers, ...request?.headers } });
    } catch (error) {
      if (request && !this.over) throw failure("The request failed and is not sent twice.");
      return this.why ?? { reason: "network" };
    }
    const located = response.headers.get("Content-Location") ?? response.headers.get("Location");
    if (request && located) this.url = new URL(located, response.url || this.url);
    this.located = located;
    const { status } = response;
    const type = response.headers.get("Content-Type") ?? "";
    if (status === 204) stream._end("ended by the gateway", "end", { reason: "closed" });
    else if (status === 200 && type.startsWith("text/event-stream")) await this.read(response);
    else if (status === 429 || status >= 500) {
      const after = response.headers.get("Retry-After");
      return { reason: `status ${status}`, least: Math.max(0, after * 1000 || 0) };
    } else throw await refusal(response);
    return this.why ?? { reason: "ended" };
  }

  async read(response) {
    const { stream } = this;
    const parser = new Parser((event) => this.over || this.take(event));
    parser.lastEventId = stream.lastEventId;
    const reader = response.body.getReader();
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch {
        this.why ??= { reason: "network" };
        return;
      }
      if (piece.done || this.over) return;
      this.heard = Date.now();
      try {
        parser.push(piece.value);
      } finally {
        this.retry = parser.retry ?? this.retry;
      }
      if (this.over) return;
      stream.lastEventId = parser.lastEventId;
      if (stream.lastEventId.endsWith(".closed")) {
        stream._end("ended by the gateway", "end", { reason: "closed" });
      }
    }
  }

  take({ type, data, id, lastEventId, channel, at }) {
    const { stream } = this;
    const channels = channel ? channel.split(",") : [];
    if (!at) stream.lastEventId = lastEventId;
    else if (this.isKnown(at, channels)) return;
    for (const name of channels) {
      const entry = this.added.get(name);
      if (entry) entry.at = at || id;
    }
    if (type === "connected") this.connected(JSON.parse(data));
    else if (type === "gap" || type === "dropped") stream._tell(type, JSON.parse(data));
    else if (type === "reconnect") {
      this.why = { reason: JSON.parse(data).reason, least: this.retry };
    } else if (type !== "keepalive") stream._event({ type, data, id: at || id, channels });
  }

  connected({ clientId, channels, keepalive, serverTime }) {
    const { stream } = this;
    this.keepalive = keepalive ?? KEEPALIVE;
    this.skew = serverTime - Date.now();
    this.opened = Date.now();
    stream.clientId = clientId;
    if (this.options.request && !stream.channels.length) {
      stream.channels = channels.filter((name) => name !== "global" && !name.startsWith("user:"));
    }
    stream._set({ status: "open", transport: "stream", attempt: 0, delay: 0, reason: "" });
    stream._tell("open", { clientId, channels });
    for (const name of this.added.keys()) this.add(name);
    this.renewLater();
  }

  renewLater() {
    if (!callable(this.options.token) || !Number.isFinite(this.renew)) return;
    const left = Math.min(MAX_TIMER, Math.max(1_000, this.renew - Date.now()));
    this.renewal = setTimeout(async () => {
      try {
        if (Date.now() >= this.renew) {
          await this.ask(this.route(`/clients/${this.stream.clientId}/token`), { method: "PUT" });
        }
      } catch {
        // the stream ends with its token, and comes back with another
      }
      if (this.stream.clientId) this.renewLater();
    }, left);
  }

  // -- channels of an open stream

  isKnown(at, channels) {
    return channels.some((name) => {
      const entry = this.added.get(name);
      const to = entry ? entry.at : this.stream.lastEventId;
      return entry?.from ? compare(at, entry.from) > 0 && compare(at, to) <= 0 : false;
    });
  }

  async subscribe(channel, since = "") {
    const { stream, added } = this;
    if (stream.channels.includes(channel) && !added.has(channel)) return stream.lastEventId;
    if (!added.has(channel)) {
      const entry = { from: since, at: since, until: "" };
      entry.done = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
      added.set(channel, entry);
      stream.channels = [...stream.channels, channel];
      if (stream.state.status === "open") this.add(channel);
    }
    return added.get(channel).done;
  }

  async add(name) {
    const entry = this.added.get(name);
    const { stream } = this;
    const { clientId } = stream;
    const url = this.route(`/clients/${clientId}/channels/${encodeURIComponent(name)}`);
    if (entry.at) url.searchParams.set("since", entry.at);
    try {
      const response = await this.ask(url, { method: "PUT" });
      if (response.ok) {
        const { id } = await response.json();
        entry.from ||= id;
        entry.at ||= id;
        entry.until = id;
        entry.resolve(id);
      } else throw await refusal(response);
    } catch (error) {
      if (error.status && error.status !== 404) {
        this.added.delete(name);
        stream.channels = stream.channels.filter((other) => other !== name);
        entry.reject(error);
      } else if (clientId === stream.clientId) this.drop("channels");
    }
  }

  async unsubscribe(channel) {
    const { stream } = this;
    this.added.get(channel)?.reject(new Error("Unsubscribed."));
    this.added.delete(channel);
    stream.channels = stream.channels.filter((name) => name !== channel);
    if (!stream.clientId) return;
    const url = this.route(`/clients/${stream.clientId}/channels/${encodeURIComponent(channel)}`);
    try {
      const response = await this.ask(url, { method: "DELETE" });
      if (!response.ok) throw await refusal(response);
    } catch {
      this.drop("channels");
    }
  }
}

function expiry(token) {
  try {
    const claims = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
    return JSON.parse(atob(claims)).exp * 1000 || Infinity;
  } catch {
    return Infinity;
  }
}

function failure(sentence, status) {
  return Object.assign(new Error(sentence), { status });
}

async function refusal(response) {
  const { detail } = await response.json().catch(() => ({}));
  return failure(detail ?? `The answer was ${response.status}.`, response.status);
}
