// One stream for all tabs of an origin: browsers open six connections to a host over HTTP/1.1, and
// each stream of each tab would be one of them. Loaded by client.js for `share`.
//
// One tab of a group leads: it holds the lock with the group's name (Web Locks), has the stream of
// the channels that any of the tabs wants, and hands what comes to all of them (BroadcastChannel).
// When it is closed or crashes the lock falls to another one. Rules:
//
// 1. A tab believes positions, not who sent what when. It keeps its own (Cursor), and what it is
//    handed names the position before it in the leader's stream: what the tab has is skipped, and a
//    hole is filled by the tab itself, by polling, while what is live waits.
// 2. A tab says all that it wants each time (`join`), with a number that the answer repeats; so
//    messages may be lost, repeated and late, and a new leader needs to be told nothing by the old.
// 3. A new leader resumes where the tab stands that has had least. So nothing is lost with a leader.
// 4. A tab that cannot run (frozen, or kept for "back") has left the group, and comes back later.
// 5. Everything that waits is bounded, by the constants below.
//
// Messages. To the leader: `join`, `leave`. To all: `call` (who wants what? I lead now), `event`,
// `at` (the stream stands there), `note` (a gap, or dropped), `state`, `error`, `reset` (positions
// begin anew), `end`. To one: `welcome` (what you wanted comes from here on), `refuse`.
import { compare } from "./client.js";

export const FORMAT = 1; // of the messages; tabs of another one are another group

export const TABS = 100; // that a leader serves
export const CHANNELS = 1_000; // in one message; the gateway's own limit is max_channels_per_client
export const HELD_EVENTS = 1_000; // live ones that wait for a hole to be filled,
export const HELD_CHARS = 1024 * 1024; // and of their data; the oldest are polled for again

const ROLL_CALL = 1_000; // ms that a new leader waits for tabs that do not answer
const SILENCE = 45_000; // ms without a word of the leader, after which it is asked for one; keepalives
// come every 15 s, and at most once a minute does a hidden tab's timer run
const ANSWER = 5_000; // ms for that, after which another tab takes the lead
const POLL = 30_000; // ms for the answer of a poll, which waits for nothing

const POSITION = /^\d{1,20}-\d{1,20}$/;
const later = (a, b) => (compare(a, b) < 0 ? b : a);
const size = ({ data = "" }) => data.length;
const isReserved = (channel) => channel === "global" || channel.startsWith("user:");

/**
 * What a tab has had of the stream of its group: pure bookkeeping.
 *
 * Everything of its channels up to `position` was given out, of each channel from its join on. While
 * the cursor is `behind`, what is live is held. An item of the live flow is `{prev, id}`, with an
 * event's `{type, data, channels}`, with a note's `{name, detail}`, or with neither.
 */
export class Cursor {
  position = "";
  joins = new Map(); // of each channel of the tab: where its events begin, behind that position
  common = new Set(); // channels that every tab of the group has, besides the reserved ones
  behind = false;
  #target = ""; // where what is held begins
  #held = [];
  #chars = 0;

  /** A live item. Returns those that are to be told now, in order. */
  offer(item) {
    if (!this.behind && (item.name || compare(item.prev, this.position) <= 0)) return this.#take(item);
    if (!this.behind) this.reach(item.prev);
    this.#held.push(item);
    this.#chars += size(item);
    let [count, chars] = [0, this.#chars];
    for (; this.#held.length - count > HELD_EVENTS || chars > HELD_CHARS; count += 1) {
      chars -= size(this.#held[count]);
    }
    if (count) this.#forget(count, this.#held[count - 1].id);
    return [];
  }

  /** The live flow is whole behind `position`: if that is not reached, there is a hole before it. */
  reach(position) {
    if (compare(position, this.position) <= 0) return;
    this.behind = true;
    this.#target = later(this.#target, position);
  }

  /** Nothing is missing between what was given out and what is held. */
  get isWhole() {
    return compare(this.#target, this.position) <= 0;
  }

  /** No longer behind, unless there is a hole in what was held. Returns what is to be told now. */
  resume() {
    const held = this.#held;
    this.forget();
    return held.flatMap((item) => this.offer(item));
  }

  /** Give up what is held; the flow goes on with `reach`. */
  forget() {
    this.behind = false;
    this.#target = "";
    this.#held = [];
    this.#chars = 0;
  }

  /** Positions have begun anew. */
  reset(position) {
    this.forget();
    this.position = position;
    for (const channel of this.joins.keys()) this.joins.set(channel, "");
  }

  /** From now on the channel's events behind `join` are the tab's. Returns from where on they are. */
  join(channel, join) {
    const from = later(join, this.position);
    this.joins.set(channel, from);
    return from;
  }

  /** The channels to poll for: those that are joined by now. */
  next() {
    const channels = [...this.joins.keys()];
    const joined = channels.filter((channel) => compare(this.joins.get(channel), this.position) <= 0);
    if (joined.length || !channels.length) return joined;
    const isFirst = (first, other) => compare(this.joins.get(first), this.joins.get(other)) < 0;
    return [channels.reduce((first, other) => (isFirst(first, other) ? first : other))];
  }

  /** The answer to a poll for `asked`. Returns what of it is to be told. */
  fill({ events, lastEventId }, asked) {
    const until = this.#until(asked, lastEventId);
    const told = [];
    for (const item of events) {
      if (item.id && compare(item.id, until) > 0) break;
      told.push(...this.#take(item));
    }
    this.position = later(this.position, until);
    return told;
  }

  /** The tab begins at `position`, the answer to a poll for `asked` behind what is there by now. */
  begin(position, asked) {
    for (const channel of asked) if (this.joins.has(channel)) this.joins.set(channel, position);
    this.position = this.#until(asked, position);
  }

  /** Polling for `asked` fills no more of the hole: go on behind it. */
  skip(asked) {
    this.position = later(this.position, this.#until(asked, this.#target));
  }

  #take(item) {
    if (item.name) return [item];
    if (compare(item.id, this.position) <= 0) return [];
    this.position = item.id;
    return item.channels && this.#isWanted(item) ? [item] : [];
  }

  #isWanted({ id, channels }) {
    if (!channels.length) return true; // of a gateway that does not say
    return channels.some((name) =>
      this.joins.has(name)
        ? compare(this.joins.get(name), id) < 0
        : this.common.has(name) || isReserved(name),
    );
  }

  /** Until where an answer for `asked` counts: other channels may have been joined before its end. */
  #until(asked, end) {
    let until = end;
    for (const [channel, join] of this.joins) {
      const isMissing = !asked.includes(channel) || compare(join, this.position) > 0;
      if (isMissing && compare(join, until) < 0) until = join;
    }
    return until;
  }

  #forget(count, target) {
    for (const item of this.#held.splice(0, count)) this.#chars -= size(item);
    this.#target = later(this.#target, target);
  }
}

// -- what tabs say to each other, as it is checked on arrival

const text = (value) => typeof value === "string";
const name = (value) => text(value) && value.length > 0 && value.length <= 200;
const number = (value) => typeof value === "number";
const flag = (value) => typeof value === "boolean";
const object = (value) => typeof value === "object" && value !== null;
const position = (value) => text(value) && POSITION.test(value);
const place = (value) => value === "" || position(value);
const list = (of) => (value) => Array.isArray(value) && value.length <= CHANNELS && value.every(of);
const row = (...of) => (value) =>
  Array.isArray(value) && value.length === of.length && of.every((is, index) => is(value[index]));

const SHAPES = {
  join: { seq: number, position: place, channels: list(row(name, flag)) },
  leave: {},
  call: {},
  welcome: {
    to: text,
    seq: number,
    position,
    isLive: flag,
    clientId: text,
    joins: list(row(name, position)),
    refused: list(row(name, text, number)),
    common: list(name),
  },
  refuse: { to: text, sentence: text },
  event: { prev: place, id: position, type: text, data: text, channels: list(name) },
  at: { prev: place, id: position },
  note: { prev: place, id: place, name: (value) => NOTES.includes(value), detail: object },
  state: { state: (value) => object(value) && text(value.status) && text(value.reason) },
  reconnecting: { detail: (value) => object(value) && number(value.delay) },
  error: { sentence: text, status: number },
  reset: { position },
  end: { reason: text, detail: object },
};
const NOTES = ["gap", "dropped"];

/** Whether `message` is one of FORMAT. */
export function isMessage(message) {
  if (!object(message) || !text(message.from) || !Object.hasOwn(SHAPES, message.kind)) return false;
  return Object.entries(SHAPES[message.kind]).every(([field, is]) => is(message[field]));
}

/** The name of the group: of its lock and of its channel. */
export function groupOf({ url, user = "", share: named }, base) {
  const { origin, pathname } = new URL(url, base);
  return `gateway ${FORMAT} ${JSON.stringify([origin + pathname, user, named])}`;
}

const tabLock = (group, tab) => `${group} tab ${tab}`;
const aborted = (signal) =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", resolve, { once: true });
  });
const failure = (sentence, status) => Object.assign(new Error(sentence), { status });

/**
 * The source of `stream`, as connect() would open it with `open(stream, options)`, which the leader does
 * for all. Throws where that cannot be: such a tab has a stream of its own.
 */
export function share(options, open, stream) {
  if (!navigator.locks || !globalThis.BroadcastChannel) throw new Error("A page of http: has no locks.");
  if (stream.channels.length > CHANNELS) throw new RangeError(`${CHANNELS} channels at most.`);
  return new Tab(options, open, stream);
}

/** A tab of the group, be it the one that leads or not. */
class Tab {
  #options;
  #open;
  #stream;
  #group;
  #polls;
  #own; // channels that it wants
  #waiting = new Map(); // of subscribe, for the leader: channel -> {since, promise, resolve, reject}
  #cursor = new Cursor();
  #begin; // the query of the first poll, when the tab does not begin with what is live
  #begun = false;
  #added = []; // channels whose missed events are still to come: {channel, since, until}

  #id; // another one each time that it enters the group
  #away; // AbortController: until it leaves
  #bus;
  #seq = 0;
  #leaderId = "";
  #leader; // if it is this tab
  #joined = false; // what the leader hands out is whole for this tab
  #opened; // the client that it has told of
  #heard = 0;
  #watchdog;
  #nudging;
  #standing;
  #filling; // the #away during which it is polling
  #closed = new AbortController();

  constructor(options, open, stream) {
    this.#options = options;
    this.#open = open;
    this.#stream = stream;
    const base = globalThis.document?.baseURI ?? globalThis.location?.href;
    this.#group = groupOf(options, base);
    this.#polls = new Polls(options, base, `${this.#group} poll`);
    this.#own = new Set(stream.channels);
    const { lastEventId, replay } = options;
    if (lastEventId && POSITION.test(lastEventId)) this.#cursor.position = lastEventId;
    else if (lastEventId && lastEventId !== "now") this.#begin = { lastEventId };
    else if (replay) this.#begin = { replay };
    const { signal } = this.#closed;
    const on = (target, type, listener) => target?.addEventListener?.(type, listener, { signal });
    on(globalThis, "pagehide", () => this.#leave());
    on(globalThis.document, "freeze", () => this.#leave());
    on(globalThis, "pageshow", () => this.#enter());
    on(globalThis.document, "resume", () => this.#enter());
    this.#enter();
  }

  // -- the source

  async subscribe(channel, since = "") {
    if (this.#own.size >= CHANNELS) throw new RangeError(`${CHANNELS} channels at most.`);
    let waiting = this.#waiting.get(channel);
    if (!waiting) {
      waiting = { since };
      waiting.promise = new Promise((resolve, reject) => Object.assign(waiting, { resolve, reject }));
      this.#waiting.set(channel, waiting);
      this.#own.add(channel);
      this.#name();
      this.#join();
    }
    return waiting.promise;
  }

  async unsubscribe(channel) {
    this.#drop(channel, failure(`${channel} was unsubscribed.`));
    this.#join();
  }

  close() {
    this.#leave();
    this.#closed.abort();
    for (const channel of this.#waiting.keys()) this.#drop(channel, failure("The stream is closed."));
  }

  // -- in the group, and out of it

  #enter() {
    if (this.#away || this.#closed.signal.aborted) return;
    this.#id = crypto.randomUUID();
    this.#away = new AbortController();
    const { signal } = this.#away;
    this.#bus = new BroadcastChannel(this.#group);
    this.#bus.onmessage = ({ data }) => isMessage(data) && this.#receive(data);
    this.#lock(tabLock(this.#group, this.#id), { signal }, () => {
      this.#join();
      this.#stand();
      this.#hear();
    });
  }

  #leave() {
    if (!this.#away) return;
    this.#leader?.stop();
    this.#leader = undefined;
    this.#send({ kind: "leave" });
    clearTimeout(this.#watchdog);
    clearTimeout(this.#nudging);
    this.#bus.close();
    this.#away.abort();
    this.#away = undefined;
    this.#lose("");
    this.#set({ status: "reconnecting", attempt: 0, delay: 0, reason: "the page is not active" });
  }

  /** Hold a lock until this tab leaves, or another one takes it; then `lost`. */
  #lock(named, how, held, lost) {
    const away = this.#away;
    const begin = () => {
      if (away.signal.aborted) return undefined;
      held();
      return aborted(away.signal);
    };
    navigator.locks.request(named, how, begin).catch((error) => {
      if (away.signal.aborted || this.#away !== away || how.signal?.aborted) return;
      if (lost) lost();
      else this.#stream._end(error.message, "error", error);
    });
  }

  get #isOpen() {
    return this.#joined && this.#begin?.lastEventId !== "now";
  }

  /** Stand in line for the lead, or `steal` it from a tab that does not answer. */
  #stand(steal = false) {
    this.#standing?.abort();
    this.#standing = new AbortController();
    const { signal } = this.#standing;
    this.#lock(
      this.#group,
      steal ? { steal } : { signal },
      () => this.#lead(),
      () => {
        this.#leader?.stop();
        this.#leader = undefined;
        this.#follow("");
        this.#stand();
      },
    );
  }

  #lead() {
    const tell = (message) => {
      this.#send(message);
      this.#receive({ ...message, from: this.#id });
    };
    const fail = (reason, error) => {
      this.#send({ kind: "error", sentence: reason, status: error.status ?? 0 });
      this.#stream._end(reason, "error", error);
    };
    this.#leader = new Leader(this.#group, this.#id, this.#options, this.#open, tell, fail);
    this.#leader.start();
  }

  #send(message) {
    this.#bus.postMessage({ ...message, from: this.#id });
  }

  #join() {
    if (!this.#away) return;
    this.#seq += 1;
    const { behind, position: at, joins } = this.#cursor;
    const channels = [...this.#own].map((channel) => [channel, joins.has(channel)]);
    const join = { kind: "join", seq: this.#seq, position: behind ? "" : at, channels };
    this.#send(join);
    this.#leader?.receive({ ...join, from: this.#id });
  }

  // -- the leader is watched, by those that it leads

  #hear() {
    this.#heard = Date.now();
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#watch(), SILENCE);
  }

  #watch() {
    if (this.#leader) return;
    this.#join();
    const asked = Date.now();
    this.#watchdog = setTimeout(
      () => {
        if (this.#heard < asked && !this.#leader) this.#stand(true);
        this.#hear();
      },
      ANSWER * (1 + Math.random()),
    );
  }

  /** The leader's tab may be hidden, where timers are slow; what it is told is told at once. */
  #nudge(delay) {
    if (this.#leader || globalThis.document?.visibilityState !== "visible") return;
    clearTimeout(this.#nudging);
    this.#nudging = setTimeout(() => this.#join(), Math.min(delay, SILENCE));
  }

  // -- what is said

  #receive(message) {
    const { kind, from, to } = message;
    const isOwn = from === this.#id;
    if (kind === "join" || kind === "leave") this.#leader?.receive(message);
    // The lock may have come sooner than what its last holder has said in the end.
    else if (kind === "end" || kind === "error") this.#take(message);
    else if ((this.#leader && !isOwn) || (to && to !== this.#id)) return;
    else if (kind === "call") this.#follow(from);
    else if (from === this.#leaderId) this.#take(message);
    else if (!this.#leaderId && to) {
      this.#leaderId = from;
      this.#take(message);
    } else if (this.#leaderId) this.#lose(""); // who leads? who does will answer
  }

  #follow(leaderId) {
    this.#lose(leaderId);
    this.#hear();
    if (this.#begun) this.#set({ status: "reconnecting", reason: "another tab leads" });
  }

  #lose(leaderId) {
    this.#leaderId = leaderId;
    this.#joined = false;
    this.#join();
    this.#cursor.forget();
    this.#cursor.behind = this.#added.length > 0;
  }

  #take(message) {
    this.#hear();
    switch (message.kind) {
      case "welcome":
        if (message.seq === this.#seq) this.#welcome(message);
        break;
      case "event":
      case "at":
        if (this.#joined) this.#tell(this.#cursor.offer(message));
        break;
      case "note":
        if (this.#begun) this.#tell(this.#joined ? this.#cursor.offer(message) : [message]);
        break;
      case "reset":
        this.#cursor.reset(message.position);
        break;
      case "state":
        if (message.state.status !== "open" || this.#isOpen) this.#set(message.state);
        break;
      case "reconnecting":
        this.#stream._tell("reconnecting", message.detail);
        this.#nudge(message.detail.delay);
        break;
      case "error":
        this.#stream._tell("error", failure(message.sentence, message.status || undefined));
        break;
      case "refuse":
        this.#stream._end(message.sentence, "error", failure(message.sentence));
        break;
      case "end":
        this.#stream._end(message.reason, "end", message.detail);
    }
    if (this.#cursor.behind) this.#fill();
  }

  #set(changes) {
    const { state } = this.#stream;
    if (state.status === "closed") return;
    const next = { ...state, ...changes, transport: this.#leader?.transport ?? "shared" };
    if (Object.keys(next).some((key) => next[key] !== state[key])) this.#stream._set(next);
  }

  #name() {
    this.#stream.channels = [...new Set([...this.#own, ...this.#cursor.common])];
  }

  #drop(channel, error) {
    this.#own.delete(channel);
    this.#cursor.joins.delete(channel);
    this.#added = this.#added.filter((added) => added.channel !== channel);
    this.#waiting.get(channel)?.reject(error);
    this.#waiting.delete(channel);
    this.#name();
  }

  #welcome({ position: at, isLive, clientId, joins, refused, common }) {
    const cursor = this.#cursor;
    for (const [channel, sentence, status] of refused) {
      const error = failure(sentence, status || undefined);
      if (!this.#waiting.has(channel)) this.#stream._tell("error", error);
      this.#drop(channel, error);
    }
    cursor.common = new Set(common);
    this.#name();
    const first = !this.#begun;
    if (first && !cursor.position && !isLive) this.#begin ??= { lastEventId: "now" };
    const fromBefore = first && (cursor.position || this.#begin);
    for (const [channel, join] of joins) {
      if (!this.#own.has(channel)) continue;
      if (!cursor.joins.has(channel)) cursor.join(channel, fromBefore ? "" : join);
      const waiting = this.#waiting.get(channel);
      if (!waiting) continue;
      this.#waiting.delete(channel);
      if (waiting.since && !fromBefore) {
        this.#added.push({ channel, since: waiting.since, until: cursor.joins.get(channel) });
        cursor.behind = true;
      }
      waiting.resolve(cursor.joins.get(channel) || join);
    }
    if (first && !fromBefore) cursor.position = at;
    if (!this.#joined) cursor.reach(at);
    this.#joined = true;
    this.#begun = true;
    this.#stream.clientId = clientId;
    if (this.#isOpen) this.#opens();
  }

  #opens() {
    const stream = this.#stream;
    const { clientId, channels } = stream;
    if (this.#cursor.position) stream.lastEventId = this.#cursor.position;
    this.#set({ status: "open", attempt: 0, delay: 0, reason: "" });
    if (clientId === this.#opened) return;
    this.#opened = clientId;
    stream._tell("open", { clientId, channels });
  }

  #tell(items) {
    for (const { name: note, detail, id, type, data, channels, at } of items) {
      if (this.#closed.signal.aborted) return;
      if (note) this.#note(note, detail);
      else this.#stream._event({ type, data, id, channels: this.#ownOf(channels) });
    }
    if (this.#cursor.position) this.#stream.lastEventId = this.#cursor.position;
  }

  #note(note, { channels = [], ...detail }) {
    if (note === "dropped") this.#stream._tell(note, detail);
    else if (this.#ownOf(channels).length) {
      this.#stream._tell(note, { channels: this.#ownOf(channels), ...detail });
    }
  }

  #ownOf(channels) {
    const { common } = this.#cursor;
    const isOwn = (channel) => this.#own.has(channel) || common.has(channel) || isReserved(channel);
    return channels.filter(isOwn);
  }

  // -- what is missing is polled for

  async #fill() {
    const away = this.#away;
    if (!away || this.#filling === away) return;
    this.#filling = away;
    const { signal } = away;
    const { minDelay = 500, maxDelay = 30_000 } = this.#options;
    let delay = minDelay;
    while (this.#cursor.behind) {
      const missing = this.#missing();
      if (!missing) {
        this.#tell(this.#cursor.resume());
        continue;
      }
      let wait = 0;
      try {
        const answer = await this.#polls.ask(missing, signal);
        if (signal.aborted) return;
        if (!this.#fillIn(missing, answer)) wait = minDelay;
        delay = minDelay;
      } catch (error) {
        if (signal.aborted) return;
        if (error.isFinal) this.#giveUp(missing, error);
        else wait = Math.max(delay * (0.5 + Math.random()), error.least ?? 0);
        delay = Math.min(2 * delay, maxDelay);
      }
      if (wait) await Promise.race([aborted(signal), new Promise((done) => setTimeout(done, wait))]);
      if (signal.aborted) return;
    }
    this.#filling = undefined;
  }

  /** The next poll, or nothing. */
  #missing() {
    const [added] = this.#added;
    if (added) return { added, channels: [added.channel], query: { lastEventId: added.since } };
    if (this.#begin) return { begin: true, channels: [...this.#own], query: this.#begin };
    if (this.#cursor.isWhole) return undefined;
    return { channels: this.#cursor.next(), query: { lastEventId: this.#cursor.position } };
  }

  /** Returns whether it has brought anything. */
  #fillIn({ added, begin, channels: asked }, answer) {
    const cursor = this.#cursor;
    const { events, lastEventId, isEnd } = answer;
    if (added) {
      if (!this.#added.includes(added)) return true;
      const isMissed = ({ name: note, id, channels }) =>
        note || (channels.includes(added.channel) && compare(id, added.until) <= 0);
      const isOver = isEnd || compare(lastEventId, added.until) >= 0;
      added.since = lastEventId;
      if (isOver) this.#added.shift();
      this.#tell(events.filter(isMissed).map((item) => ({ ...item, isMissed: true })));
      return isOver || events.length > 0;
    }
    const { position: before } = cursor;
    const isNow = begin && this.#begin.lastEventId === "now";
    if (begin) this.#begin = undefined;
    if (isNow) cursor.begin(lastEventId, asked);
    const told = cursor.fill(answer, asked);
    if (isNow) this.#opens();
    this.#tell(told);
    if (isEnd && [...this.#own].every((channel) => asked.includes(channel))) {
      this.#stream._end("ended by the gateway", "end", { reason: "closed" });
    } else if (isEnd) cursor.skip(asked);
    return cursor.position !== before;
  }

  #giveUp({ added, channels }, error) {
    this.#stream._tell("error", error);
    this.#note("gap", { channels, reason: "unknown" });
    if (added) this.#added = this.#added.filter((other) => other !== added);
    else {
      this.#begin = undefined;
      this.#cursor.skip(channels);
    }
  }
}

/** GET /poll, for one tab of the group at a time: a user's polls count as streams of his. */
class Polls {
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
    const how = { signal };
    return navigator.locks.request(this.#lock, how, async () => answered(await this.#ask(url, signal)));
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
    events: events.flatMap(({ id, event, data, channel, channels = channel ? [channel] : [] }) => {
      if (id) return [{ id, type: event, data, channels }];
      return NOTES.includes(event) ? [{ name: event, detail: JSON.parse(data) }] : [];
    }),
    lastEventId: isEnd ? lastEventId.slice(0, -".closed".length) : lastEventId,
    isEnd,
  };
}

/** What the tab that leads does for all: the one stream, of what any of them wants. */
class Leader {
  #group;
  #id;
  #options;
  #open;
  #tell; // to all tabs, this one included
  #fail; // this tab, which is told to all, and gives the lead to another one
  #members = new Map(); // by tab: {seq, answered, position, channels, refused, gone}
  #arrived = () => {};
  #link;
  #sink; // what the link drives, as a Stream is driven
  #carried = new Map(); // channel -> the position behind which the stream has all of it
  #common = [];
  #adjusting;
  #last = ""; // the position that the tabs have been told of,
  #standing = ""; // and the stream's
  #flushing = false;
  #returns = Infinity; // when the link is to come back
  #isOpen = false;
  #isLive = false; // not in the midst of what it had missed
  #stopped = false;

  constructor(group, id, options, open, tell, fail) {
    this.#group = group;
    this.#id = id;
    const { token } = options;
    const asked = typeof token === "function" ? () => this.#ask(token) : token;
    this.#options = { ...options, token: asked, replay: undefined };
    this.#open = open;
    this.#tell = tell;
    this.#fail = fail;
  }

  async #ask(token) {
    try {
      return await token();
    } catch (error) {
      this.#tell({ kind: "error", sentence: `No token: ${error?.message}`, status: 0 });
      throw error; // the link tries again
    }
  }

  get transport() {
    return this.#sink?.state.transport ?? "stream";
  }

  /** Ask who is there, and open the stream where the one is who has had least. */
  async start() {
    this.#tell({ kind: "call" });
    const { held } = await navigator.locks.query();
    const prefix = tabLock(this.#group, "");
    const there = held.filter((lock) => lock.name.startsWith(prefix));
    const missing = new Set(there.map((lock) => lock.name.slice(prefix.length)));
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, ROLL_CALL);
      this.#arrived = () => {
        for (const tab of this.#members.keys()) missing.delete(tab);
        if (missing.size && this.#members.size < TABS && !this.#stopped) return;
        clearTimeout(timer);
        resolve();
      };
      this.#arrived();
    });
    if (this.#stopped) return;
    const members = [...this.#members.values()];
    for (const { position: at } of members) {
      if (at && (!this.#last || compare(at, this.#last) < 0)) this.#last = at;
    }
    const channels = members.flatMap((member) => [...member.channels]);
    const known = channels.filter(([, accepted]) => accepted).map(([channel]) => channel);
    const names = new Set([...known, ...this.#ownChannels()]);
    this.#connect(names.size ? [...names] : channels.map(([channel]) => channel));
  }

  stop() {
    this.#stopped = true;
    this.#arrived();
    this.#close();
    for (const { gone } of this.#members.values()) gone.abort();
  }

  receive({ kind, from, seq, position: at, channels }) {
    if (this.#stopped) return;
    if (kind === "leave") {
      this.#drop(from);
      return;
    }
    let member = this.#members.get(from);
    if (!member) {
      if (this.#members.size >= TABS) {
        this.#tell({ kind: "refuse", to: from, sentence: `${TABS} tabs share a stream at most.` });
        return;
      }
      member = { gone: new AbortController() };
      this.#members.set(from, member);
      if (from !== this.#id) this.#watch(from, member.gone);
    }
    const asked = { seq, position: at, channels: new Map(channels) };
    Object.assign(member, asked, { answered: false, refused: [] });
    if (this.#sink) this.#tell({ kind: "state", state: this.#sink.state });
    if (Date.now() >= this.#returns) this.#link.wake();
    this.#arrived();
    this.#adjust();
  }

  /** A tab holds its lock for as long as it lives. */
  #watch(tab, { signal }) {
    const gone = () => this.#drop(tab);
    navigator.locks.request(tabLock(this.#group, tab), { signal }, gone).catch(() => {});
  }

  #drop(tab) {
    this.#members.get(tab)?.gone.abort();
    this.#members.delete(tab);
    this.#arrived();
    this.#adjust();
  }

  #ownChannels() {
    return [...(this.#members.get(this.#id)?.channels.keys() ?? [])];
  }

  // -- the stream

  #connect(names) {
    this.#carried = new Map(names.map((channel) => [channel, ""]));
    this.#standing = this.#last;
    this.#isOpen = false;
    const leader = this;
    this.#sink = {
      state: { status: "connecting", transport: "stream", attempt: 0, delay: 0, reason: "" },
      clientId: "",
      channels: [...this.#carried.keys()],
      get lastEventId() {
        return leader.#standing;
      },
      set lastEventId(at) {
        leader.#standing = at;
        leader.#flushSoon();
      },
      _set(changes) {
        this.state = { ...this.state, attempt: 0, delay: 0, reason: "", ...changes };
        leader.#tell({ kind: "state", state: this.state });
      },
      _tell: (told, detail) => this.#told(told, detail),
      _event: (event) => this.#event(event),
      _end: (reason, told, detail) => this.#ended(reason, told, detail),
    };
    this.#link = this.#open(this.#sink, this.#options);
  }

  #close() {
    if (!this.#sink) return;
    this.#sink.state = { ...this.#sink.state, status: "closed" };
    this.#link.close();
  }

  #told(told, detail) {
    if (this.#stopped) return;
    if (told === "open") this.#opened(detail);
    else if (NOTES.includes(told)) {
      this.#flush();
      this.#tell({ kind: "note", prev: this.#last, id: this.#last, name: told, detail });
    } else if (told === "reconnecting") {
      this.#returns = Date.now() + detail.delay;
      this.#tell({ kind: told, detail });
    }
  }

  #opened({ channels }) {
    const at = this.#standing;
    // Only at first: later on, a channel that is just being taken away may be among them.
    if (!this.#isOpen) this.#common = channels.filter((channel) => !this.#carried.has(channel));
    this.#isOpen = true;
    this.#returns = Infinity;
    this.#isLive = at !== this.#last;
    if (this.#last && compare(at, this.#last) < 0) this.#tell({ kind: "reset", position: at });
    if (!this.#last || compare(at, this.#last) < 0) this.#last = at;
    for (const channel of this.#carried.keys()) this.#carried.set(channel, "");
    for (const member of this.#members.values()) member.answered = false;
    this.#answer();
    this.#adjust();
  }

  #event({ type, data, id, channels }) {
    if (this.#stopped || !POSITION.test(id) || compare(id, this.#last) <= 0) return;
    const prev = this.#last;
    this.#last = id;
    this.#tell({ kind: "event", prev, id, type, data, channels });
  }

  /** Tell where the stream stands once all is told that has come in the same piece. */
  #flushSoon() {
    if (this.#flushing) return;
    this.#flushing = true;
    queueMicrotask(() => {
      this.#flushing = false;
      this.#flush();
    });
  }

  #flush() {
    const [prev, id] = [this.#last, this.#standing];
    if (this.#stopped || !this.#isOpen || !POSITION.test(id) || compare(id, prev) <= 0) return;
    this.#last = id;
    this.#isLive = true;
    this.#tell({ kind: "at", prev, id });
  }

  #ended(reason, told, detail) {
    if (this.#stopped) return;
    this.#close();
    const own = this.#ownChannels();
    const forOthers = [400, 403].includes(detail?.status) && own.length < this.#carried.size;
    if (told === "end") this.#tell({ kind: "end", reason, detail });
    else if (forOthers && own.length) this.#connect(own); // each of the others is told by itself
    else this.#fail(reason, detail);
  }

  // -- its channels

  async #adjust() {
    const link = this.#link;
    if (!this.#isOpen || this.#adjusting === link) return;
    this.#adjusting = link;
    for (;;) {
      this.#answer();
      const wanted = new Set(this.#common);
      for (const { channels } of this.#members.values()) {
        for (const channel of channels.keys()) wanted.add(channel);
      }
      const isCarried = (channel) => this.#carried.has(channel) || this.#common.includes(channel);
      const more = [...wanted].filter((channel) => !isCarried(channel));
      const less = [...this.#carried.keys()].filter((channel) => !wanted.has(channel));
      if (!more.length && !less.length) break;
      const added = more.map((channel) => this.#add(link, channel));
      await Promise.all([...added, ...less.map((channel) => this.#remove(link, channel))]);
      if (this.#stopped || this.#link !== link) return;
    }
    this.#adjusting = undefined;
  }

  async #add(link, channel) {
    try {
      const joined = await link.subscribe(channel);
      if (this.#link !== link) return;
      link.changes.settle(channel); // resumed as any other: tabs know where they have joined
      this.#carried.set(channel, joined);
    } catch (error) {
      if (this.#link !== link) return;
      for (const { channels, refused } of this.#members.values()) {
        if (channels.delete(channel)) refused.push([channel, error.message, error.status ?? 0]);
      }
    }
  }

  async #remove(link, channel) {
    this.#carried.delete(channel);
    await link.unsubscribe(channel);
  }

  /** Answer the tabs all of whose channels are there, or refused. */
  #answer() {
    this.#flush();
    const last = this.#last;
    const from = ([channel]) => later(last, this.#carried.get(channel) ?? "");
    const isSettled = (channel) => this.#carried.has(channel) || this.#common.includes(channel);
    for (const [to, member] of this.#members) {
      const channels = [...member.channels];
      if (member.answered || !channels.every(([channel]) => isSettled(channel))) continue;
      member.answered = true;
      const accepted = channels.filter(([, isAccepted]) => isAccepted);
      this.#tell({
        kind: "welcome",
        to,
        seq: member.seq,
        position: accepted.map(from).reduce(later, last),
        isLive: this.#isLive,
        clientId: this.#sink.clientId,
        joins: channels.map((channel) => [channel[0], from(channel)]),
        refused: member.refused,
        common: this.#common,
      });
      for (const [channel] of channels) member.channels.set(channel, true);
    }
  }
}
