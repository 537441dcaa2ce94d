// One stream for all tabs of an origin: browsers open six connections to a host over HTTP/1.1, and
// each stream of each tab would be one of them. Loaded by client.js for `share`.
//
// One tab of a group leads: it holds the lock with the group's name (Web Locks), has the stream of
// the channels that any of the tabs wants, and hands what comes to all of them (BroadcastChannel).
// When it is closed or crashes the lock falls to another one. Rules:
//
// 1. A tab believes positions, not who sent what when. It keeps its own (shared_cursor.js), and
//    what it is handed names the position before it in the leader's stream: what the tab has is
//    skipped, and a hole is filled by the tab itself, by polling, while what is live waits.
// 2. A tab says all that it wants each time (`join`), with a number that the answer repeats; so
//    messages may be lost, repeated and late, and a new leader needs to be told nothing by the old.
// 3. A new leader resumes where the tab stands that has had least: nothing is lost with a leader.
// 4. A tab that cannot run (frozen, or kept for "back") has left the group, and comes back later.
// 5. Everything that waits is bounded, by named limits.
import { compare } from "./client.js";
import { Cursor, isReserved, later } from "./shared_cursor.js";
import { Leader } from "./shared_leader.js";
import { CHANNELS, POSITION, failure, groupOf, isMessage, tabLock } from "./shared_messages.js";
import { Polls } from "./shared_polls.js";

const SILENCE = 45_000; // ms without a word of the leader, after which it is asked for one; it has
// one at each keepalive, every 15 s
const ANSWER = 5_000; // ms for that, and as much again by chance, until another tab takes the lead

const aborted = (signal) =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", resolve, { once: true });
  });

const pause = (delay, signal) =>
  new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, delay);
    signal.addEventListener("abort", done);
  });

/**
 * The source of `stream`, as connect() would open it with `open(stream, options)`, which the leader
 * does for all. Throws where that cannot be: such a tab has a stream of its own.
 */
export function share(options, open, stream) {
  if (!navigator.locks || !globalThis.BroadcastChannel) throw new Error("There are no locks.");
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
  #waiting = new Map(); // of subscribe: channel -> {since, promise, resolve, reject}
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
  #opened; // the stream that it has told of
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
    let waiting = this.#waiting.get(channel);
    if (!waiting) {
      if (this.#own.has(channel)) return this.#stream.lastEventId;
      if (this.#own.size >= CHANNELS) throw new RangeError(`${CHANNELS} channels at most.`);
      waiting = { since };
      const decided = (resolve, reject) => Object.assign(waiting, { resolve, reject });
      waiting.promise = new Promise(decided);
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
    const error = failure("The stream is closed.");
    for (const channel of this.#waiting.keys()) this.#drop(channel, error);
  }

  // -- in the group, and out of it

  #enter() {
    if (this.#away || this.#closed.signal.aborted) return;
    this.#id = crypto.randomUUID();
    this.#away = new AbortController();
    const { signal } = this.#away;
    this.#bus = new BroadcastChannel(this.#group);
    this.#bus.onmessage = ({ data }) => {
      if (!signal.aborted && isMessage(data)) this.#receive(data);
    };
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
    const leader = new Leader(this.#group, this.#id, this.#options, this.#open, tell, fail);
    this.#leader = leader;
    leader.start().catch((error) => this.#leader === leader && fail(error.message, error));
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
    if (this.#leader || !this.#away) return;
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
    else if (this.#leaderId && from !== this.#leaderId) this.#lose(""); // who leads will answer
    else {
      this.#leaderId = from;
      this.#take(message);
    }
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
        this.#follows(message.state);
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

  #follows({ status, attempt, delay, reason }) {
    if (status !== "open" || this.#isOpen) this.#set({ status, attempt, delay, reason });
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
        const { since } = waiting;
        const from = since === "earliest" ? "0-0" : since;
        this.#added.push({ channel, since, from, until: cursor.joins.get(channel) });
        cursor.behind = true;
      }
      waiting.resolve(cursor.joins.get(channel) || join);
    }
    const whole = first ? joins.map(([, join]) => join).reduce(later, at) : at;
    if (first && !fromBefore) cursor.position = whole;
    if (!this.#joined) cursor.reach(whole);
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
    const opened = `${this.#leaderId} ${clientId}`;
    if (opened === this.#opened) return;
    this.#opened = opened;
    stream._tell("open", { clientId, channels });
  }

  #tell(items) {
    for (const { name: note, detail, id, type, data, channels, isMissed } of items) {
      if (this.#closed.signal.aborted) return;
      const own = this.#ownOf(channels ?? []);
      if (note) this.#note(note, detail);
      else if (own.length || !channels.length) {
        if (!isMissed) this.#stream.lastEventId = id;
        this.#stream._event({ type, data, id, channels: own });
      }
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
      if (wait) await pause(wait, signal);
      if (signal.aborted) return;
    }
    this.#filling = undefined;
  }

  /** The next poll, or nothing. */
  #missing() {
    const [added] = this.#added;
    if (added) {
      const names = [added.channel, ...this.#cursor.joins.keys()]; // for what came through others
      return { added, channels: [...new Set(names)], query: { lastEventId: added.since } };
    }
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
      const { channel } = added;
      const isHad = (name, id) => name !== channel && compare(cursor.joins.get(name) ?? id, id) < 0;
      const isMissed = ({ name: note, detail, id, channels }) =>
        note
          ? detail.channels?.includes(channel) ?? true
          : channels.includes(channel) &&
            compare(id, added.until) <= 0 &&
            !channels.some((name) => isHad(name, id));
      const only = ({ detail, ...item }) => ({
        ...item,
        detail: detail?.channels ? { ...detail, channels: [channel] } : detail,
        isMissed: true,
      });
      const isOver = isEnd || compare(lastEventId, added.until) >= 0;
      added.since = lastEventId;
      if (isOver) {
        this.#added.shift();
        cursor.joins.set(channel, added.from);
      }
      this.#tell(events.filter(isMissed).map(only));
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
    this.#note("gap", { channels: added ? [added.channel] : channels, reason: "unknown" });
    if (added) this.#added = this.#added.filter((other) => other !== added);
    else {
      this.#begin = undefined;
      this.#cursor.skip(channels);
      if (this.#isOpen) this.#opens();
    }
  }
}
