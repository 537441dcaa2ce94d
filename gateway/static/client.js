export const VERSION = "0.1.0";

const MAX_EVENT = 2 ** 20;
const MAX_TIMER = 2 ** 31 - 1;
const LIVED = 5_000;
const PATIENCE = 8_000;

export const { compare } = new Intl.Collator("en", { numeric: true });

export class Parser {
  lastEventId = "";
  #decoder = new TextDecoder();
  #afterCR;
  #line = "";
  #block = {};

  constructor(onEvent, past) {
    Object.assign(this, past, { onEvent });
  }

  push(piece) {
    const text = typeof piece === "string" ? piece : this.#decoder.decode(piece, { stream: true });
    if (!text) return;
    const lines = text.split(/\r\n|\r|\n/);
    if (this.#afterCR && text[0] === "\n") lines.shift();
    this.#afterCR = text.endsWith("\r");
    lines.forEach((line, index) => {
      if (index) this.#end();
      this.#line += line;
      const { data = "" } = this.#block;
      if (this.#line.length + data.length > MAX_EVENT) throw new Failure("An event is over 1 MiB.");
    });
  }

  #end() {
    const block = this.#block;
    const [line, name, value] = /^([^:]*):? ?(.*)$/s.exec(this.#line);
    this.#line = "";
    if (!line) {
      const { event, data, id = this.lastEventId, channel = "", at = "" } = block;
      this.#block = {};
      this.lastEventId = id;
      if (data != null) this.onEvent({ type: event || "message", data, id, channel, at });
    } else if (name === "data") {
      block.data = block.data == null ? value : `${block.data}\n${value}`;
    } else if (/^(event|channel|at)$/.test(name) || (name === "id" && !value.includes("\0"))) {
      block[name] = value;
    } else if (name === "retry" && /^\d+$/.test(value)) {
      this.retry = Math.min(value, MAX_TIMER);
    }
  }
}

const TOLD = {
  onOpen: "open",
  onGap: "gap",
  onDropped: "dropped",
  onReconnecting: "reconnecting",
  onEnd: "end",
  onError: "error",
  onState: "state",
};

const OPTIONS = {
  string: ["url", "user", "token", "lastEventId", "credentials", "share"],
  object: ["url", "channels", "headers", "request", "signal", "on"],
  number: ["replay", "attempts", "minDelay", "maxDelay"],
  function: ["token", "fetch", ...Object.keys(TOLD)],
  boolean: ["share"],
};

const callable = (value) => typeof value === "function";
const isName = (value) => typeof value === "string" && value !== "";

export class Failure extends Error {}

function check(holds, sentence) {
  if (!holds) throw new TypeError(sentence);
}

export function connect(options) {
  for (const [name, value] of Object.entries(options)) {
    const isRight = OPTIONS[typeof value]?.includes(name) && !(value < 0);
    check(isRight || value == null, `connect() takes no ${name}: ${JSON.stringify(value)}.`);
  }
  const { url, channels, user, token, request, share, signal } = options;
  check(url && new Request(url), "connect() needs a url.");
  check(channels?.length || user || token || request, "connect() needs channels, or a user.");
  check([...(channels ?? [])].every(isName), "channels are an array of names.");
  check(!share || !request, "share allows no request.");
  const stream = new Stream(options);
  signal?.addEventListener("abort", stream.close);
  const open = (...driven) => new Link(...driven);
  const alone = () => open(stream, options);
  stream._source = share
    ? import("./shared.js").then((shared) => shared.share(options, open, stream)).catch(alone)
    : alone();
  if (signal?.aborted) stream.close();
  return stream;
}

export class Stream {
  clientId = "";
  #listeners = new Set();

  close = () => this._end("close() was called");

  constructor(options) {
    this.options = options;
    this.lastEventId = options.lastEventId ?? "";
    this.channels = [...new Set(options.channels)];
    for (const type in options.on) this.on(type, options.on[type]);
    for (const name in TOLD) if (options[name]) this.when(TOLD[name], options[name]);
    this._set({ status: "connecting", transport: "stream" });
  }

  on(type, listener) {
    return this.#add(`on ${type}`, listener);
  }

  when(name, listener) {
    check(Object.values(TOLD).includes(name), `when() does not know ${name}.`);
    return this.#add(name, listener);
  }

  #add(...entry) {
    check(callable(entry[1]), "A listener is a function.");
    this.#listeners.add(entry);
    return () => void this.#listeners.delete(entry);
  }

  subscribe(channel, { since } = {}) {
    return this.#change("subscribe", channel, since);
  }

  unsubscribe(channel) {
    return this.#change("unsubscribe", channel);
  }

  async #change(how, ...asked) {
    check(isName(asked[0]), "A channel is a name.");
    const source = await this._source;
    if (this.state.status === "closed") throw new Failure("The stream is closed.");
    return source[how](...asked);
  }

  _set(changes) {
    this.state = Object.freeze({ ...this.state, attempt: 0, delay: 0, reason: "", ...changes });
    this._tell("state", this.state);
  }

  _tell(name, told) {
    for (const entry of [...this.#listeners]) {
      try {
        if (entry[0] === name && this.#listeners.has(entry)) entry[1](told);
      } catch (error) {
        (globalThis.reportError ?? console.error)(error);
      }
    }
  }

  _event({ type, data, id, channels }) {
    const json = () => JSON.parse(data);
    const event = { type, data, id, channel: channels[0] ?? "", channels, json };
    for (const wanted of new Set([type, "*"])) this._tell(`on ${wanted}`, event);
  }

  async _end(reason, name, told) {
    if (this.state.status === "closed") return;
    this._set({ status: "closed", reason });
    if (name) this._tell(name, told);
    this.#listeners.clear();
    this.options.signal?.removeEventListener("abort", this.close);
    (await this._source).close();
  }
}

class Link {
  wake = () => {};
  keepalive = 15_000;
  attempt = 0;
  #closing = new AbortController();

  constructor(stream, options) {
    Object.assign(this, { stream, options });
    this.url = new Request(options.url).url;
    const { signal } = this.#closing;
    for (const type of ["visibilitychange", "online", "offline"]) {
      globalThis.addEventListener?.(type, () => this.#look(type), { signal });
    }
    this.#run();
  }

  get over() {
    return this.stream.state.status === "closed";
  }

  subscribe(...asked) {
    return this.change("subscribe", ...asked);
  }

  unsubscribe(channel) {
    return this.change("unsubscribe", channel);
  }

  async change(how, ...asked) {
    const { Changes } = await import("./changes.js");
    this.changes ??= new Changes(this);
    return this.changes[how](...asked);
  }

  closed(told = { reason: "closed" }) {
    this.stream._end("ended by the gateway", "end", told);
  }

  close() {
    this.#closing.abort();
    this.drop();
    clearTimeout(this.pause);
    this.wake();
    this.changes?.close();
  }

  drop(reason, now) {
    this.why ??= { reason, now };
    this.abort?.abort();
    clearTimeout(this.timer);
    clearTimeout(this.impatience);
  }

  #look(type) {
    if (type === "offline") this.offline = Date.now();
    else if (type === "online" || !document.hidden) {
      if (this.heard < this.offline || this.#left() < 0) this.drop("silence", true);
      if (Date.now() >= this.earliest) this.wake();
    }
  }

  #left() {
    const now = Date.now();
    this.heard = Math.min(this.heard, now); // clocks go back
    return this.heard + 3 * this.keepalive - now;
  }

  #watch() {
    clearTimeout(this.timer);
    if (this.#left() < 0) this.drop("silence");
    else this.timer = setTimeout(() => this.#watch(), this.#left() + 1);
  }

  async #run() {
    try {
      while (!this.over) {
        this.abort = new AbortController();
        this.why = this.opened = undefined;
        this.heard = Date.now();
        this.#watch();
        await (this.poll?.() ?? this.#open()).catch((error) => {
          if (error instanceof Failure) throw error;
        });
        this.drop("network");
        this.stream.clientId = "";
        if (!this.over) await this.#pause(this.why);
      }
    } catch (error) {
      this.stream._end(error.message, "error", error);
    }
  }

  async #pause({ reason, least = 0, now }) {
    const { minDelay = 500, maxDelay = 30_000, attempts = Infinity } = this.options;
    if (Date.now() - this.opened > LIVED) this.attempt = 0;
    if (this.attempt >= attempts) throw new Failure(`Given up: ${reason}.`);
    const first = Math.max(minDelay, least ? 0 : this.parser?.retry ?? 0);
    const most = Math.max(first, Math.min(maxDelay, first * 2 ** this.attempt++));
    const delay = now ? 0 : least + Math.random() * most;
    const told = { attempt: this.attempt, delay, reason };
    this.stream._set({ status: "reconnecting", ...told });
    this.stream._tell("reconnecting", told);
    this.earliest = Date.now() + least;
    await new Promise((wake) => {
      this.wake = wake;
      this.pause = setTimeout(wake, Math.min(delay, MAX_TIMER));
    });
  }

  target(route) {
    const { user, replay } = this.options;
    const url = new URL(this.url);
    const { searchParams } = url;
    url.pathname = url.pathname.replace(/\/events(?=\/|$)/, route);
    const channels = (this.changes?.named() ?? this.stream.channels).join();
    for (const [name, value] of Object.entries({ channels, user, replay, annotate: true })) {
      if (value || value === 0) searchParams.set(name, value);
    }
    return url;
  }

  async ask(url, init) {
    const { headers, credentials, token, fetch = globalThis.fetch } = this.options;
    const { signal } = this.abort;
    if (!this.token || Date.now() > this.renewal) {
      const aborted = new Promise((_, reject) => signal.addEventListener("abort", reject));
      this.token = await Promise.race([callable(token) ? token() : token, aborted]);
    }
    const bearer = this.token && { Authorization: `Bearer ${this.token}` };
    return fetch(url, {
      cache: "no-store",
      credentials,
      signal,
      ...init,
      headers: { ...headers, ...bearer, ...init.headers },
    });
  }

  async #open() {
    const { stream, options } = this;
    const { lastEventId } = stream;
    const headers = { Accept: "text/event-stream" };
    if (lastEventId) headers["Last-Event-ID"] = lastEventId;
    const find = () => import("./poll.js").then((poll) => poll.find(this)).catch(() => {});
    this.impatience = setTimeout(find, PATIENCE);
    const response = await (options.request && !this.posted
      ? (await import("./request.js")).post(this, headers)
      : this.ask(this.target("/events"), { headers }));
    const isStream = /^text\/event-stream/.test(response.headers.get("Content-Type"));
    if (!isStream || !response.ok) return (await import("./refused.js")).refused(this, response);
    const parser = new Parser((event) => this.over || this.#take(event), this.parser);
    this.parser = Object.assign(parser, { lastEventId });
    const reader = response.body.getReader();
    for (let read; !(read = await reader.read()).done; ) {
      clearTimeout(this.impatience);
      this.heard = Date.now();
      parser.push(read.value);
      if (this.over) break;
      stream.lastEventId = parser.lastEventId;
    }
    this.drop("end of the response");
  }

  #take({ type, data, id, channel, at }) {
    const { stream } = this;
    const channels = channel ? channel.split(",") : [];
    stream.lastEventId = id;
    if (this.changes?.isKnown(channels, at, id)) return;
    if (type === "connected") {
      const { clientId, channels, keepalive, serverTime } = JSON.parse(data);
      this.opened = Date.now();
      this.began ??= id;
      this.keepalive = keepalive ?? this.keepalive;
      this.#watch();
      stream.clientId = clientId;
      stream._set({ status: "open", transport: "stream" });
      stream._tell("open", { clientId, channels });
      if (this.changes || callable(this.options.token)) {
        this.change("opened", serverTime).catch(() => this.drop("network"));
      }
    } else if (/^(gap|dropped)$/.test(type)) stream._tell(type, JSON.parse(data));
    else if (type === "closed") this.closed(JSON.parse(data));
    else if (type === "reconnect") this.why = { ...JSON.parse(data), least: this.parser.retry };
    else stream._event({ type, data, id: at || id, channels });
  }
}
