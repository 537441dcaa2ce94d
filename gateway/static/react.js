// A stream for React: of many components that ask for the same, one.
//
// A Hub is the one stream of all components whose options are the same but for their channels, which
// it has the union of. A View is what one component shows: its selector's value, folded over the
// events of its channels. Views of the same channels and selector show the same value, however late
// they come. Rendering changes nothing: a stream is opened when a component is there, once all that
// came with it are, and closed when the last one is gone and none has come in its place, so that
// StrictMode, which mounts everything twice, opens it once.
import { useEffect, useMemo, useSyncExternalStore } from "react";

import { connect } from "./client.js";

const TOLD = ["onOpen", "onGap", "onDropped", "onReconnecting", "onEnd", "onError", "onState"];
const CONNECTING = Object.freeze({
  status: "connecting",
  transport: "stream",
  attempt: 0,
  delay: 0,
  reason: "",
});

const hubs = new Map();

/** The last event of a type, or of any. */
export const last = (type = "*") => ({
  key: `last ${type}`,
  initial: undefined,
  reduce: (value, event) => (isOf(event, type) ? event : value),
});

/** The last so many events of a type, or of all, the oldest first. */
export const history = (type = "*", limit = 100) => ({
  key: `history ${limit} ${type}`,
  initial: Object.freeze([]),
  reduce: (events, event) =>
    isOf(event, type) ? Object.freeze([...events, event].slice(-limit)) : events,
});

export function useEventStream(options, selector = last()) {
  const { channels = [], ...others } = options;
  const names = [...new Set(channels)].sort();
  const stream = JSON.stringify(Object.entries(others).sort());
  const wanted = JSON.stringify([names, selector.key]);
  const view = useMemo(() => new View(stream, wanted, names, selector), [stream, wanted]);
  view.options ??= others;
  useEffect(() => void Object.assign(view, { options: others, selector }));
  return useSyncExternalStore(view.attach, view.snapshot, view.initial);
}

const isOf = (event, type) => type === "*" || event.type === type;

class View {
  constructor(stream, wanted, names, selector) {
    const { initial, key } = selector;
    Object.assign(this, { stream, names, selector, wanted: key === undefined ? this : wanted });
    this.first = Object.freeze({ value: initial, state: CONNECTING });
  }

  initial = () => this.first;

  snapshot = () => hubs.get(this.stream)?.tallies.get(this.wanted)?.snapshot ?? this.first;

  attach = (changed) => {
    let hub = hubs.get(this.stream);
    if (!hub) hubs.set(this.stream, (hub = new Hub(this.stream)));
    this.changed = changed;
    hub.attach(this);
    return () => hub.detach(this);
  };
}

class Hub {
  /** By what is wanted: the snapshot that its views show. */
  tallies = new Map();
  #views = new Set();
  #channels = new Set();
  #settling;

  constructor(key) {
    this.key = key;
  }

  attach(view) {
    this.#views.add(view);
    if (!this.tallies.has(view.wanted)) {
      const stream = this.stream && { stream: this.stream, state: this.stream.state };
      this.tallies.set(view.wanted, { view, snapshot: Object.freeze({ ...view.first, ...stream }) });
    }
    this.#settle();
  }

  detach(view) {
    this.#views.delete(view);
    this.#settle();
  }

  /** Have the stream be what the components want, when all of them have come and gone. */
  #settle() {
    clearTimeout(this.#settling);
    this.#settling = setTimeout(() => {
      const wanted = new Set([...this.#views].map((view) => view.wanted));
      for (const key of this.tallies.keys()) if (!wanted.has(key)) this.tallies.delete(key);
      if (!this.#views.size) this.#close();
      else if (!this.stream) this.#open();
      else this.#change();
    });
  }

  get #names() {
    return new Set([...this.#views].flatMap((view) => view.names));
  }

  #open() {
    this.#channels = this.#names;
    const { key, ...options } = this.#newest.options;
    const tell = (name) => (told) => this.#tell((each) => each[name]?.(told));
    try {
      this.stream = connect({
        ...options,
        ...Object.fromEntries(TOLD.map((name) => [name, tell(name)])),
        token: typeof options.token === "function" ? () => this.#newest?.options.token() : options.token,
        channels: [...this.#channels],
        on: {
          "*": (event) => {
            this.#fold(event);
            this.#tell((each) => [each.on?.[event.type]?.(event), each.on?.["*"]?.(event)]);
          },
        },
        onState: (state) => {
          this.#show({ state, stream: this.stream });
          tell("onState")(state);
        },
        onError: (error) => {
          this.#show({ error });
          tell("onError")(error);
        },
      });
      this.#show({ stream: this.stream, state: this.stream.state });
    } catch (error) {
      const state = Object.freeze({ ...CONNECTING, status: "closed", reason: error.message });
      this.#show({ error, state });
      reportError(error);
    }
  }

  #close() {
    hubs.delete(this.key);
    this.stream?.close();
  }

  #change() {
    const wanted = this.#names;
    const refused = (name) => (error) =>
      this.#update(({ view, snapshot }) =>
        view.names.includes(name) ? { ...snapshot, error } : snapshot,
      );
    for (const name of this.#channels) {
      if (!wanted.has(name)) this.stream.unsubscribe(name).catch(() => {});
    }
    for (const name of wanted) {
      if (!this.#channels.has(name)) this.stream.subscribe(name).catch(refused(name));
    }
    this.#channels = wanted;
  }

  get #newest() {
    return [...this.#views].at(-1);
  }

  #tell(how) {
    for (const { options } of [...this.#views]) {
      try {
        how(options);
      } catch (error) {
        reportError(error);
      }
    }
  }

  #fold(event) {
    const { channels } = event;
    this.#update(({ view, snapshot }) => {
      if (channels.length && !channels.some((name) => isFor(name, view.names))) return snapshot;
      const value = view.selector.reduce(snapshot.value, event);
      return Object.is(value, snapshot.value) ? snapshot : { ...snapshot, value };
    });
  }

  #show(changes) {
    this.#update(({ snapshot }) => ({ ...snapshot, ...changes }));
  }

  #update(next) {
    const changed = new Set();
    for (const [key, tally] of this.tallies) {
      const before = tally.snapshot;
      try {
        tally.snapshot = Object.freeze(next(tally));
      } catch (error) {
        reportError(error);
      }
      if (tally.snapshot !== before) changed.add(key);
    }
    for (const view of [...this.#views]) if (changed.has(view.wanted)) view.changed();
  }
}

/** Broadcasts, and what is sent to the user, are everybody's. */
const isFor = (name, names) => names.includes(name) || name === "global" || name.startsWith("user:");
