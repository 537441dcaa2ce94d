// What a tab has had of the stream that it shares: no connection, no time, no other tab.
import { compare } from "./client.js";

export const HELD_EVENTS = 1_000; // live ones that wait for a hole to be filled,
export const HELD_CHARS = 1024 * 1024; // and of their data; the oldest are polled for again

export const later = (a, b) => (compare(a, b) < 0 ? b : a);
export const isReserved = (channel) => channel === "global" || channel.startsWith("user:");
const size = ({ data = "" }) => data.length;

/**
 * Everything of the tab's channels up to `position` was given out, of each channel from its join
 * on. While the cursor is `behind`, what is live is held. An item of the live flow is `{prev, id}`,
 * with an event's `{type, data, channels}`, with a note's `{name, detail}`, or with neither.
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
    const isNext = item.name || compare(item.prev, this.position) <= 0;
    if (isNext && !this.behind) return this.#take(item);
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

  /** The live flow is whole behind `position`; if that is not reached, there is a hole. */
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

  /** The channel's events behind `join` are the tab's. Returns from where on they are. */
  join(channel, join) {
    const from = later(join, this.position);
    this.joins.set(channel, from);
    return from;
  }

  /** The channels to poll for: those that are joined by now. */
  next() {
    const channels = [...this.joins.keys()];
    const isJoined = (channel) => compare(this.joins.get(channel), this.position) <= 0;
    const joined = channels.filter(isJoined);
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

  /** Until where an answer for `asked` counts: others may have been joined before its end. */
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
