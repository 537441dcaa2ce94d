// A tab's bookkeeping (gateway/static/shared.js) against a stream that is made up, in many ways.
import assert from "node:assert/strict";
import { test } from "node:test";
import { compare } from "../../gateway/static/client.js";
import { Cursor, HELD_CHARS, HELD_EVENTS } from "../../gateway/static/shared_cursor.js";
import { groupOf, isMessage } from "../../gateway/static/shared_messages.js";

const at = (n) => (n === "" ? "" : `1000-${n}`);
const item = (prev, id, channel = "a", data = `${id}`) => ({
  prev: at(prev),
  id: at(id),
  type: "message",
  data,
  channels: [channel],
});
const ids = (items) => items.map(({ id, name }) => name ?? Number(id.split("-")[1]));

function cursorAt(position, ...channels) {
  const cursor = new Cursor();
  cursor.position = at(position);
  for (const channel of channels) cursor.join(channel, at(position));
  return cursor;
}

const cases = {
  "what comes next is told, and what was told is not told again"() {
    const cursor = cursorAt(1, "a");
    assert.deepEqual(ids(cursor.offer(item(1, 2))), [2]);
    assert.deepEqual(ids(cursor.offer(item(1, 2))), []);
    assert.deepEqual(ids(cursor.offer(item(0, 3))), [3]);
    assert.equal(cursor.position, at(3));
  },
  "positions are compared as numbers, not as text"() {
    const cursor = cursorAt(9, "a");
    assert.deepEqual(ids(cursor.offer(item(9, 10))), [10]);
    assert.deepEqual(ids(cursor.offer({ ...item(10, 0), id: "10000-0" })), [0]);
  },
  "an event of a channel that is another tab's moves the position and is not told"() {
    const cursor = cursorAt(1, "a");
    cursor.common.add("global");
    assert.deepEqual(ids(cursor.offer(item(1, 2, "b"))), []);
    assert.deepEqual(ids(cursor.offer(item(2, 3, "global"))), [3]);
    assert.deepEqual(ids(cursor.offer({ ...item(3, 4), channels: [] })), [4]);
  },
  "a channel's events are told from its join on"() {
    const cursor = cursorAt(1, "a");
    assert.equal(cursor.join("b", at(5)), at(5));
    assert.deepEqual(ids(cursor.offer(item(1, 5, "b"))), []);
    assert.deepEqual(ids(cursor.offer(item(5, 6, "b"))), [6]);
    assert.equal(cursor.join("c", at(2)), at(6), "no earlier than the tab stands");
  },
  "what is live waits while a hole is filled, and a notice with it"() {
    const cursor = cursorAt(1, "a");
    assert.deepEqual(ids(cursor.offer(item(3, 4))), []);
    const dropped = { prev: at(4), id: at(4), name: "dropped", detail: {} };
    assert.deepEqual(ids(cursor.offer(dropped)), []);
    assert.deepEqual(ids(cursor.offer(item(4, 5))), []);
    assert.deepEqual(cursor.next(), ["a"]);
    assert.ok(!cursor.isWhole);
    const answer = { events: [item("", 2), item("", 3)], lastEventId: at(3) };
    assert.deepEqual(ids(cursor.fill(answer, ["a"])), [2, 3]);
    assert.ok(cursor.isWhole);
    assert.deepEqual(ids(cursor.resume()), [4, "dropped", 5]);
    assert.ok(!cursor.behind);
  },
  "what was polled for is not told again when it comes live"() {
    const cursor = cursorAt(1, "a");
    cursor.offer(item(2, 3));
    cursor.fill({ events: [item("", 2), item("", 3), item("", 4)], lastEventId: at(4) }, ["a"]);
    assert.deepEqual(ids(cursor.resume()), []);
    assert.deepEqual(ids(cursor.offer(item(3, 4))), []);
    assert.deepEqual(ids(cursor.offer(item(4, 5))), [5]);
  },
  "an answer counts until where a channel was joined that was not asked for"() {
    const cursor = cursorAt(1, "a");
    cursor.offer(item(8, 9));
    const asked = cursor.next();
    cursor.join("b", at(4));
    const answer = { events: [item("", 2), item("", 5)], lastEventId: at(8) };
    assert.deepEqual(ids(cursor.fill(answer, asked)), [2]);
    assert.equal(cursor.position, at(4));
    assert.deepEqual(cursor.next(), ["a", "b"]);
  },
  "with no channel joined yet, one is asked for up to its join"() {
    const cursor = new Cursor();
    cursor.position = at(1);
    cursor.common.add("global");
    cursor.join("b", at(6));
    cursor.join("a", at(4));
    cursor.reach(at(9));
    assert.deepEqual(cursor.next(), ["a"]);
    const answer = { events: [item("", 2, "a"), item("", 3, "global")], lastEventId: at(9) };
    assert.deepEqual(ids(cursor.fill(answer, ["a"])), [3]);
    assert.equal(cursor.position, at(4));
  },
  "no more is held than is allowed: the oldest is polled for again"() {
    for (const [count, data] of [
      [HELD_EVENTS, ""],
      [4, "x".repeat(HELD_CHARS / 4)],
    ]) {
      const cursor = cursorAt(1, "a");
      cursor.offer(item(2, 3, "a", data));
      for (let id = 4; id < 3 + 2 * count; id += 1) cursor.offer(item(id - 1, id, "a", data));
      cursor.fill({ events: [], lastEventId: at(1 + count) }, ["a"]);
      assert.ok(!cursor.isWhole);
      cursor.fill({ events: [], lastEventId: at(2 + count) }, ["a"]);
      assert.ok(cursor.isWhole);
      assert.equal(cursor.resume().length, count);
    }
  },
  "one event that is over the limit by itself is polled for"() {
    const cursor = cursorAt(1, "a");
    cursor.offer(item(2, 3, "a", "x".repeat(HELD_CHARS + 1)));
    cursor.fill({ events: [item("", 3)], lastEventId: at(3) }, ["a"]);
    assert.ok(cursor.isWhole);
    assert.deepEqual(cursor.resume(), []);
  },
  "a hole among what is held is filled as well"() {
    const cursor = cursorAt(1, "a");
    cursor.offer(item(2, 3));
    cursor.offer(item(5, 6));
    cursor.fill({ events: [], lastEventId: at(2) }, ["a"]);
    assert.deepEqual(ids(cursor.resume()), [3]);
    assert.ok(!cursor.isWhole);
    assert.deepEqual(ids(cursor.fill({ events: [item("", 4)], lastEventId: at(5) }, ["a"])), [4]);
    assert.deepEqual(ids(cursor.resume()), [6]);
  },
  "positions that begin anew are believed"() {
    const cursor = cursorAt(50, "a");
    cursor.reset(at(3));
    assert.deepEqual(ids(cursor.offer(item(3, 4))), [4]);
  },
  "messages are checked for their shape"() {
    const event = { prev: "", id: "1-0", type: "t", data: "", channels: ["a"] };
    const good = { kind: "event", from: "x", ...event };
    assert.ok(isMessage(good));
    for (const wrong of [
      { prev: 1 },
      { id: "" },
      { id: "1-0.closed" },
      { data: undefined },
      { channels: "a" },
      { channels: [""] },
      { channels: new Array(1_001).fill("a") },
      { kind: "toString" },
      { kind: "__proto__" },
      { from: null },
    ]) {
      assert.ok(!isMessage({ ...good, ...wrong }), JSON.stringify(wrong));
    }
    for (const wrong of [null, undefined, "event", 1, []]) assert.ok(!isMessage(wrong));
  },
  "a group is of one address, user and name; the query, where a token may stand, is not in it"() {
    const group = (options) => groupOf({ share: true, ...options }, "https://x.example/page");
    const one = group({ url: "/events" });
    assert.equal(one, group({ url: "https://x.example/events?token=secret" }));
    const others = [
      group({ url: "/other/events" }),
      group({ url: "https://y.example/events" }),
      group({ url: "/events", user: "7" }),
      group({ url: "/events", share: "7" }),
    ];
    assert.equal(new Set([one, ...others]).size, 5);
  },
};

// A generator of numbers that are the same each time: mulberry32.
function randomOf(seed) {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

/** Events, lost broadcasts, new leaders, polls under way, channels joined: all is told once. */
function simulate(seed) {
  const random = randomOf(seed);
  const names = [..."abcdefgh"];
  const published = [];
  const told = [];
  const joined = new Map();
  const cursor = cursorAt(0, "a");
  cursor.common.add("global");
  joined.set("a", at(0));
  joined.set("global", at(0));
  let last = 0; // that the leader has told of
  let next = 1;
  let poll; // under way: what was asked
  const take = (items) => told.push(...ids(items));
  const since = (position, asked) =>
    published
      .filter(({ id }) => compare(id, position) > 0)
      .map((event) => ({ ...event, channels: event.channels.filter((c) => asked.includes(c)) }))
      .filter(({ channels }) => channels.length)
      .map((event) => ({ ...event, channels: [event.channels[0]] }));
  const finishPoll = () => {
    const { asked, from } = poll;
    poll = undefined;
    const found = since(from, [...asked, "global"]);
    const events = found.slice(0, 1 + random(4));
    const lastEventId = events.length < found.length ? events.at(-1).id : at(next - 1);
    take(cursor.fill({ events, lastEventId }, asked));
  };
  const step = {
    publish() {
      const channels = random(8) ? [names[random(8)]] : ["a", names[1 + random(7)]];
      published.push({ ...item("", next), channels: random(9) ? channels : ["global"] });
      next += 1 + random(3);
    },
    lead() {
      for (const event of published.filter(({ id }) => compare(id, at(last)) > 0).slice(0, 3)) {
        const prev = at(last);
        last = Number(event.id.split("-")[1]);
        if (random(12)) take(cursor.offer({ ...event, prev })); // or the broadcast is lost
      }
    },
    stand() {
      if (next - 1 <= last || published.some(({ id }) => compare(id, at(last)) > 0)) return;
      take(cursor.offer({ prev: at(last), id: at(next - 1) }));
      last = next - 1;
    },
    join() {
      const name = names[random(8)];
      const join = at(random(2) ? last : next - 1);
      if (!random(3) && !joined.has(name)) joined.set(name, cursor.join(name, join));
    },
    replace() {
      if (random(4)) return;
      cursor.forget();
      last = random(2) ? next - 1 : Math.max(0, last - random(9));
      cursor.reach(at(last));
    },
    ask() {
      if (poll) finishPoll();
      else if (cursor.behind && !cursor.isWhole) {
        poll = { asked: cursor.next(), from: cursor.position };
      }
    },
    resume() {
      if (cursor.behind && !poll && cursor.isWhole) take(cursor.resume());
    },
  };
  const steps = Object.values(step);
  for (let count = 0; count < 400; count += 1) steps[random(steps.length)]();
  for (let left = 5_000, shown = false; cursor.behind || last < next - 1 || !shown; left -= 1) {
    assert.ok(left, "it comes to an end");
    for (const name of ["lead", "stand", "ask", "resume"]) step[name]();
    if (shown || last < next - 1) continue;
    take(cursor.offer({ prev: at(last), id: at(next) })); // a keepalive shows what was lost
    last = next;
    next += 1;
    shown = true;
  }
  const expected = published.filter(({ id, channels }) =>
    channels.some((name) => joined.has(name) && compare(joined.get(name), id) < 0),
  );
  assert.deepEqual(told, ids(expected), `seed ${seed}`);
}

for (const [sentence, check] of Object.entries(cases)) test(sentence, check);
test("whatever is lost, repeated and polled for, each event is told once and in its order", () => {
  for (let seed = 0; seed < 300; seed += 1) simulate(seed);
});
