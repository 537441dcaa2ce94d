// The tab that leads, as all of its group see it.
import { compare } from "./client.js";
import { later } from "./shared_cursor.js";
import { NOTES, POSITION, tabLock } from "./shared_messages.js";

export const TABS = 100; // that a leader serves

const AGAIN = 500; // ms until a channel is asked for again that the gateway has not refused
const ROLL_CALL = 1_000; // ms that a new one waits for tabs that do not answer

/** What the tab that leads does for all: the one stream, of what any of them wants. */
export class Leader {
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
  #opening; // what the link has told of a stream whose position is not known yet
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

  get #isUp() {
    return this.#isOpen && this.#sink.state.status === "open";
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
    this.#answer();
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
    if (told === "open") {
      this.#opening = detail;
      this.#flushSoon(); // who polls tells his position a little later
      if (POSITION.test(this.#standing)) this.#opened();
    } else if (NOTES.includes(told)) {
      this.#flush();
      this.#tell({ kind: "note", prev: this.#last, id: this.#last, name: told, detail });
    } else if (told === "reconnecting") {
      this.#returns = Date.now() + detail.delay;
      this.#tell({ kind: told, detail });
    }
  }

  #opened() {
    const { channels } = this.#opening;
    const at = this.#standing;
    this.#opening = undefined;
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
      if (this.#stopped) return;
      if (this.#opening && POSITION.test(this.#standing)) this.#opened();
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
    const isOfChannels = [400, 403, 404, 414, 431].includes(detail?.status); // be it of their number
    if (told === "end") this.#tell({ kind: "end", reason, detail });
    else if (isOfChannels && own.length && own.length < this.#carried.size) {
      this.#connect(own); // the others are added, or refused, one by one
      this.#tell({ kind: "call" }); // and what they miss meanwhile is polled for
    } else this.#fail(reason, detail);
  }

  // -- its channels

  async #adjust() {
    const link = this.#link;
    if (!this.#isUp || this.#adjusting === link) return;
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
      if (!error.status) {
        await new Promise((done) => setTimeout(done, AGAIN)); // a module could not be loaded
        return;
      }
      for (const { channels, refused } of this.#members.values()) {
        if (channels.delete(channel)) refused.push([channel, error.message, error.status ?? 0]);
      }
    }
  }

  async #remove(link, channel) {
    this.#carried.delete(channel);
    try {
      await link.unsubscribe(channel);
    } catch {
      // it is left out at the next opening, and nobody's meanwhile
    }
  }

  /** Answer the tabs all of whose channels are there, or refused. */
  #answer() {
    if (!this.#isUp) return;
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
