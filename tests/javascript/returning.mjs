// When client.js returns, how often, and when it does not: against an injected fetch, in no time.
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import {
  Answer,
  START,
  Server,
  beginTime,
  connected,
  endTime,
  follow,
  page,
  pass,
  problem,
  silent,
  unreachable,
} from "./harness.mjs";

let server;
let followed;

beforeEach(() => {
  beginTime();
  server = new Server();
});

afterEach(() => {
  followed?.stream.close();
  endTime();
});

function begin(options) {
  followed = follow(server, options);
  return followed;
}

test("each attempt that fails doubles what the next delay is drawn from, up to the ceiling", async () => {
  server.answer(/./, unreachable);
  const { of } = begin({ minDelay: 100, maxDelay: 1_000 });
  await pass(3_000);
  const delays = of("reconnecting").map(({ delay }) => delay);
  assert.deepEqual(delays.slice(0, 6), [50, 100, 200, 400, 500, 500]); // half of what it is drawn from
  const attempts = of("reconnecting").map(({ attempt }) => attempt);
  assert.deepEqual(attempts.slice(0, 4), [1, 2, 3, 4]);
});

for (const [random, least, most] of [
  [0, 0, 0],
  [0.999999, 499, 500],
]) {
  test(`the delay is drawn from all of its range: ${random}`, async () => {
    endTime();
    beginTime(random);
    server.answer(/./, unreachable);
    const { of } = begin();
    await pass(1);
    const [{ delay }] = of("reconnecting");
    assert.ok(delay >= least && delay <= most, delay);
  });
}

test("after so many attempts it gives up, with an error and no more requests", async () => {
  server.answer(/./, unreachable);
  const { stream, of } = begin({ attempts: 3, minDelay: 10 });
  await pass(10_000);
  assert.equal(server.requests.length, 4);
  assert.match(of("error")[0].message, /Given up/);
  assert.equal(of("error").length, 1);
  assert.equal(stream.state.status, "closed");
});

test("a stream that has lived makes the next loss a first one, and one that has not does not", async () => {
  const short = [1, 2, 3].map(() => new Answer(() => connected("1-0")));
  const long = new Answer(() => connected("1-0"));
  server.answer(/./, ...short, long, unreachable);
  const { of } = begin({ minDelay: 100 });
  for (const answer of short) {
    await pass(1_000);
    answer.cut();
    await pass(2_000);
  }
  assert.deepEqual(of("reconnecting").map(({ attempt }) => attempt), [1, 2, 3]);
  await pass(10_000);
  long.cut();
  await pass(1);
  assert.equal(of("reconnecting").at(-1).attempt, 1);
});

test("retry is what the delays are drawn from, instead of minDelay where it is longer", async () => {
  const answer = new Answer("retry: 4000\n", () => connected("1-0"));
  server.answer(/./, answer, unreachable);
  const { of } = begin({ minDelay: 100 });
  await pass(10);
  answer.end();
  await pass(7_000);
  assert.deepEqual(of("reconnecting").map(({ delay }) => delay).slice(0, 2), [2_000, 4_000]);
});

test("who is told to reconnect comes back after retry and not before, as it was told", async () => {
  const told = new Answer(
    "retry: 3000\nevent: reconnect\ndata: {\"reason\": \"draining\"}\n\n",
  );
  const next = new Answer(() => connected("1-0"));
  server.answer(/./, told, next);
  const { of } = begin({ minDelay: 100 });
  await pass(10);
  told.end();
  await pass(3_000);
  assert.equal(server.requests.length, 1);
  await pass(200);
  assert.equal(server.requests.length, 2);
  assert.deepEqual(of("reconnecting"), [{ attempt: 1, delay: 3_050, reason: "draining" }]);
});

for (const [what, header, ms] of [
  ["seconds", () => "7", 7_000],
  ["a date", () => new Date(Date.now() + 7_000).toUTCString(), 7_000],
  ["what is no time", () => "soon", 0],
]) {
  for (const status of [429, 503]) {
    test(`${status} is waited out as Retry-After says: ${what}`, async () => {
      const refused = (request) => problem(status, "Later.", { "Retry-After": header() })(request);
      server.answer(/./, refused, new Answer(() => connected("1-0")));
      const { stream } = begin({ minDelay: 100, maxDelay: 100 });
      await pass(10);
      if (ms) await pass(ms - 1_000);
      if (ms) assert.equal(server.requests.length, 1);
      await pass(1_500);
      assert.equal(stream.state.status, "open");
      assert.equal(server.requests.length, 2);
    });
  }
}

test("a longer wait than a timer holds is one that the timer holds", async () => {
  server.answer(/./, problem(503, "Later.", { "Retry-After": "99999999999" }));
  begin();
  await pass(60_000);
  assert.equal(server.requests.length, 1);
});

for (const status of [400, 401, 403, 404, 409, 414]) {
  test(`${status} is the end, in the words of the gateway`, async () => {
    server.answer(/./, problem(status, "It says so."));
    const { stream, of } = begin();
    await pass(60_000);
    assert.equal(server.requests.length, 1);
    assert.equal(of("error")[0].message, "It says so.");
    assert.equal(of("error")[0].status, status);
    assert.deepEqual(of("end"), []);
    assert.deepEqual(
      [stream.state.status, stream.state.reason],
      ["closed", "It says so."],
    );
  });
}

for (const status of [500, 502, 503, 504]) {
  test(`${status} is none, be it the gateway's or not`, async () => {
    server.answer(/poll/, unreachable).answer(/events/, page(status), problem(status, "Sorry."), page(status));
    const { of } = begin({ minDelay: 10 });
    await pass(300_000);
    assert.ok(server.like(/events/).length > 5);
    assert.deepEqual(of("error"), []);
  });
}

test("204 is the end, and no error", async () => {
  server.answer(/./, page(204));
  const { stream, of } = begin();
  await pass(60_000);
  assert.equal(server.requests.length, 1);
  assert.deepEqual([of("end"), of("error")], [[{ reason: "closed" }], []]);
  assert.equal(stream.state.status, "closed");
});

test("closed is the end, behind the last event", async () => {
  const closed = 'id: 2-0.closed\nevent: closed\ndata: {"reason":"ended"}\n\n';
  server.answer(/./, new Answer(() => connected("1-0"), `id: 2-0\ndata: last\n\n${closed}`));
  const { stream, of, data } = begin();
  await pass(60_000);
  assert.equal(server.requests.length, 1);
  assert.deepEqual(data(), ["last"]);
  assert.deepEqual(of("end"), [{ reason: "ended" }]);
  assert.equal(stream.state.status, "closed");
});

test("the last id is sent on each return, in the header; an event that was cut counts for nothing", async () => {
  const first = new Answer(() => connected("1-0"), "id: 2-0\ndata: b\n\nid: 3-0\nda");
  server.answer(/./, first, unreachable, new Answer(() => connected("2-0"), "id: 3-0\ndata: c\n\n"));
  const { data } = begin({ minDelay: 10 });
  await pass(10);
  first.cut();
  await pass(1_000);
  const sent = server.requests.map(({ headers }) => headers.get("Last-Event-ID"));
  assert.deepEqual(sent, [null, "2-0", "2-0"]);
  assert.deepEqual(data(), ["b", "c"]);
});

test("silence of three keepalives is the end of a link, and a byte now and then is none", async () => {
  const stalled = new Answer(() => connected("1-0", { keepalive: 1_000 }));
  server.answer(/./, stalled, new Answer(() => connected("1-0")));
  const { stream, of } = begin({ minDelay: 10 });
  await pass(10);
  for (let n = 0; n < 5; n += 1) {
    stalled.write(": still here\n");
    await pass(2_500);
  }
  assert.equal(stream.state.status, "open");
  assert.equal(server.requests.length, 1);
  await pass(700);
  assert.equal(server.requests.length, 2);
  assert.equal(of("reconnecting")[0].reason, "silence");
  assert.ok(stalled.controller.desiredSize === null); // it was let go of
});

test("a request that nobody answers is given up after 45 s, as the default is", async () => {
  server.answer(/./, silent);
  begin({ minDelay: 10 });
  await pass(44_000);
  assert.equal(server.like(/events/).length, 1);
  await pass(1_200);
  assert.equal(server.like(/events/).length, 2);
});

test("close() lets go of everything at once, whatever the stream does, and can be repeated", async () => {
  for (const answer of [unreachable, silent, new Answer(() => connected("1-0"))]) {
    const there = new Server().answer(/./, answer);
    const { stream, told } = follow(there);
    await pass(10);
    stream.close();
    stream.close();
    const count = there.requests.length;
    const before = told.length;
    await pass(120_000);
    assert.equal(there.requests.length, count);
    assert.equal(told.length, before);
    assert.ok(there.requests.at(-1).signal.aborted);
    assert.equal(stream.state.status, "closed");
    await assert.rejects(stream.subscribe("b"), /closed/);
  }
});

test("a signal closes the stream, before and after it is open", async () => {
  server.answer(/./, new Answer(() => connected("1-0")));
  const closing = new AbortController();
  const { stream } = begin({ signal: closing.signal });
  await pass(10);
  assert.equal(stream.state.status, "open");
  closing.abort();
  assert.equal(stream.state.status, "closed");
  assert.equal(follow(server, { signal: closing.signal }).stream.state.status, "closed");
});

test("a stream that is closed has no more of an event's neighbours", async () => {
  server.answer(/./, new Answer(() => connected("1-0"), "id: 2-0\ndata: b\n\nid: 3-0\ndata: c\n\n"));
  const { stream, data } = begin();
  stream.on("*", () => stream.close());
  await pass(10);
  assert.deepEqual(data(), ["b"]);
  assert.equal(stream.lastEventId, "2-0");
});

test("whoever was taken off, or closed, by a listener before is told nothing more", async () => {
  server.answer(/./, new Answer(() => connected("1-0"), "id: 2-0\ndata: b\n\n"));
  const told = [];
  const { stream, of } = begin({ on: { message: () => (off(), told.push("message")) } });
  const off = stream.on("message", () => told.push("taken off"));
  await pass(10);
  assert.deepEqual(told, ["message"]);
  const states = [];
  const another = follow(server, { onState: ({ status }) => status === "open" && another.stream.close() });
  another.stream.when("state", ({ status }) => states.push(status));
  await pass(10);
  assert.deepEqual(states, ["closed"]);
  assert.deepEqual(of("error"), []);
});

test("a stream that cannot be shared after all, and is closed by then, is closed in silence", async () => {
  const rejections = [];
  const note = (error) => rejections.push(error);
  mock.property(globalThis, "BroadcastChannel", undefined);
  process.on("unhandledRejection", note);
  follow(server, { share: true }).stream.close();
  await pass(100);
  process.off("unhandledRejection", note);
  assert.deepEqual(rejections, []);
  assert.equal(server.requests.length, 0);
});

test("a clock that is set back does not make a dead link live longer", async () => {
  server.answer(/./, new Answer(() => connected("1-0")), new Answer(() => connected("1-0")));
  const { of } = begin();
  await pass(10);
  const { now } = Date;
  mock.method(Date, "now", () => now() - START / 2);
  await pass(100_000, 1_000);
  assert.ok(of("reconnecting").some(({ reason }) => reason === "silence"));
});

test("a Retry-After beyond an hour is taken for an hour", async () => {
  server.answer(/./, problem(503, "Later.", { "Retry-After": "99999999999" }));
  const { of } = begin();
  await pass(10);
  assert.equal(of("reconnecting")[0].delay, 3_600_250);
});

test("an event that is too large is an error and the end, not a loop", async () => {
  const large = new Answer(() => connected("1-0"), `data: ${"x".repeat(2 ** 20)}\n\n`);
  server.answer(/./, large);
  const { stream, of } = begin();
  await pass(60_000);
  assert.equal(server.requests.length, 1);
  assert.match(of("error")[0].message, /over 1 MiB/);
  assert.equal(stream.state.status, "closed");
});

test("a listener that throws breaks nothing, and is reported", async () => {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  server.answer(/./, new Answer(() => connected("1-0"), "id: 2-0\ndata: b\n\nid: 3-0\ndata: c\n\n"));
  const fault = (what) => () => {
    throw new Error(what);
  };
  const { data, stream } = begin({ on: { message: fault("message") }, onOpen: fault("open") });
  await pass(10);
  delete globalThis.reportError;
  assert.deepEqual(data(), ["b", "c"]);
  assert.deepEqual(reported, ["open", "message", "message"]);
  assert.equal(stream.state.status, "open");
});

test("each change is a new frozen state, and is told", async () => {
  const first = new Answer(() => connected("1-0"));
  server.answer(/./, first, new Answer(() => connected("1-0")));
  const { stream, of } = begin({ minDelay: 100 });
  const states = [stream.state];
  await pass(10);
  first.end();
  await pass(500);
  stream.close();
  states.push(...of("state"));
  assert.ok(states.every(Object.isFrozen));
  assert.equal(new Set(states).size, states.length);
  const common = { transport: "stream", attempt: 0, delay: 0, reason: "" };
  const reason = "end of the response";
  assert.deepEqual(states, [
    { ...common, status: "connecting" },
    { ...common, status: "open" },
    { ...common, status: "reconnecting", attempt: 1, delay: 50, reason },
    { ...common, status: "open" },
    { ...common, status: "closed", reason: "close() was called" },
  ]);
});

test("events name what they are, and parse their data", async () => {
  server.answer(
    /./,
    new Answer(
      () => connected("1-0"),
      'id: 2-0\nchannel: a,b\nevent: tick\ndata: {"n": 1}\n\nid: 3-0\ndata: plain\n\n',
    ),
  );
  const ticks = [];
  const { heard } = begin({ on: { tick: (event) => ticks.push(event.json()) } });
  await pass(10);
  assert.deepEqual(ticks, [{ n: 1 }]);
  const [tick, plain] = heard;
  assert.deepEqual(
    [tick.type, tick.id, tick.channel, tick.channels],
    ["tick", "2-0", "a", ["a", "b"]],
  );
  assert.deepEqual([plain.type, plain.channel, plain.channels], ["message", "", []]);
  assert.throws(() => plain.json(), SyntaxError);
});

test("what the gateway tells is apart from what is published, whatever that is called", async () => {
  server.answer(
    /./,
    new Answer(
      () => connected("1-0"),
      'event: gap\ndata: {"channels": ["a"], "reason": "trimmed"}\n\n',
      'event: dropped\ndata: {"count": 3}\n\n',
      "id: 2-0\nevent: open\ndata: mine\n\nid: 3-0\nevent: error\ndata: too\n\n",
    ),
  );
  const { heard, of } = begin();
  await pass(10);
  assert.deepEqual(heard.map(({ type }) => type), ["open", "error"]);
  assert.deepEqual(of("gap"), [{ channels: ["a"], reason: "trimmed" }]);
  assert.deepEqual(of("dropped"), [{ count: 3 }]);
  assert.equal(of("open").length, 1);
});

test("a listener is taken off by what on() and when() return", async () => {
  const answer = new Answer(() => connected("1-0"), "id: 2-0\ndata: b\n\n");
  server.answer(/./, answer);
  const { stream } = begin();
  const seen = [];
  const off = stream.on("message", ({ data }) => seen.push(data));
  await pass(10);
  off();
  off();
  answer.write("id: 3-0\ndata: c\n\n");
  await pass(10);
  assert.deepEqual(seen, ["b"]);
});
