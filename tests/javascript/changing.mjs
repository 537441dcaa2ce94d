// Channels and tokens of an open stream, falling back to polls, POST, and wrong use of client.js:
// against an injected fetch, in no time.
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { compare, connect } from "../../gateway/static/client.js";
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
  polled,
  problem,
  settle,
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

const events = /^GET \/events$/;
const polls = /^GET \/poll$/;
const added = /^PUT .*channels/;
const added_at = (id) => () => Response.json({ id, channels: [] });
const wanted = ({ query }) => (query.get("channels") ?? "").split(",").filter(Boolean);
const missed = (at, channel, data = at) => `at: ${at}\nchannel: ${channel}\ndata: ${data}\n\n`;
const live = (id, channel, data = id) => `id: ${id}\nchannel: ${channel}\ndata: ${data}\n\n`;

// -- channels

test("a channel that was added is live from a position, and in the URL once the stream is behind it", async () => {
  const first = new Answer(() => connected("10-0"));
  const second = new Answer(() => connected("12-0"));
  server.answer(events, first, second).answer(added, added_at("11-0"));
  const { stream } = begin({ minDelay: 10 });
  await pass(10);
  const position = stream.subscribe("b/c");
  await pass(10);
  assert.equal(await position, "11-0");
  assert.deepEqual(stream.channels, ["a", "b/c"]);
  assert.equal(server.like(added)[0].path, "/clients/c/channels/b%2Fc");
  first.write(live("12-0", "a"));
  await pass(10);
  first.cut();
  await pass(100);
  assert.deepEqual(server.like(events).map(wanted), [["a"], ["a", "b/c"]]);
  assert.equal(server.like(added).length, 1);
});

test("who returns from before that position adds the channel again, from there", async () => {
  const first = new Answer(() => connected("10-0"));
  server.answer(events, first, new Answer(() => connected("10-0", { clientId: "d" })));
  server.answer(added, added_at("11-0"), added_at("13-0"));
  const { stream } = begin({ minDelay: 10 });
  await pass(10);
  stream.subscribe("b");
  await pass(10);
  first.cut();
  await pass(100);
  assert.deepEqual(server.like(events).map(wanted), [["a"], ["a"]]);
  const [, again] = server.like(added);
  assert.equal(again.path, "/clients/d/channels/b");
  assert.equal(again.query.get("since"), "11-0");
});

test("a cut in the midst of what was missed goes on behind the last of it, once each", async () => {
  const first = new Answer(() => connected("10-0"));
  const second = new Answer(() => connected("10-0", { clientId: "d" }));
  server.answer(events, first, second).answer(added, added_at("10-0"), added_at("12-0"));
  const { stream, data } = begin({ minDelay: 10 });
  await pass(10);
  stream.subscribe("b", { since: "1-0" });
  await pass(10);
  first.write(missed("2-0", "b") + missed("3-0", "b"));
  await pass(10);
  first.cut();
  await pass(100);
  assert.deepEqual(server.like(added).map(({ query }) => query.get("since")), ["1-0", "3-0"]);
  second.write(missed("4-0", "b") + live("13-0", "a,b"));
  await pass(10);
  assert.deepEqual(data(), ["2-0", "3-0", "4-0", "13-0"]);
  second.cut();
  await pass(200);
  assert.deepEqual(server.like(events).map(wanted), [["a"], ["a"], ["a", "b"]]);
  assert.equal(server.like(added).length, 2);
});

test("what came through another channel before is not given again", async () => {
  const first = new Answer(() => connected("1-0"));
  server.answer(events, first).answer(added, added_at("9-0"));
  const { stream, data } = begin();
  await pass(10);
  first.write(live("5-0", "a") + live("9-0", "a"));
  stream.subscribe("b", { since: "0-0" });
  await pass(10);
  first.write(missed("1-0", "a,b") + missed("5-0", "a,b") + missed("6-0", "b") + missed("9-0", "a,b"));
  await pass(10);
  assert.deepEqual(data(), ["5-0", "9-0", "1-0", "6-0"]);
});

test("the events of two channels that are missed one after the other are told apart", async () => {
  const first = new Answer(() => connected("10-0"));
  const second = new Answer(() => connected("10-0", { clientId: "d" }));
  server.answer(events, first, second).answer(added, added_at("10-0"));
  const { stream, data } = begin({ minDelay: 10 });
  await pass(10);
  stream.subscribe("b", { since: "1-0" });
  stream.subscribe("c", { since: "0-0" });
  await pass(10);
  first.write(missed("2-0", "b,c") + missed("4-0", "b") + missed("1-0", "b,c"));
  await pass(10);
  first.cut();
  await pass(100);
  const since = server.like(added).map(({ path, query }) => [path.slice(-1), query.get("since")]);
  assert.deepEqual(since.slice(2), [["b", "4-0"], ["c", "1-0"]]);
  second.write(missed("2-0", "b,c") + missed("3-0", "c"));
  await pass(10);
  assert.deepEqual(data(), ["2-0", "4-0", "1-0", "3-0"]);
});

test("an event that was live before the answer came is not given again when that was lost", async () => {
  const first = new Answer(() => connected("10-0"));
  const second = new Answer(() => connected("13-0", { clientId: "d" }));
  server.answer(events, first, second).answer(added, silent, added_at("14-0"));
  const { stream, data } = begin({ minDelay: 10 });
  await pass(10);
  stream.subscribe("b", { since: "1-0" });
  await pass(10);
  first.write(missed("2-0", "b") + live("12-0", "b") + live("13-0", "a"));
  await pass(10);
  first.cut();
  await pass(100);
  assert.equal(server.like(added)[1].query.get("since"), "2-0");
  second.write(missed("12-0", "b") + missed("14-0", "b"));
  await pass(10);
  assert.deepEqual(data(), ["2-0", "12-0", "13-0", "14-0"]);
});

test("subscribe waits for the stream, over losses of it", async () => {
  server.answer(events, unreachable, unreachable, new Answer(() => connected("10-0")));
  server.answer(added, added_at("11-0"));
  const { stream } = begin({ minDelay: 10 });
  const position = stream.subscribe("b");
  await pass(1_000);
  assert.equal(await position, "11-0");
});

for (const status of [400, 403, 409, 429, 503]) {
  test(`a channel that is refused with ${status} rejects with the sentence, and the stream goes on`, async () => {
    server.answer(events, new Answer(() => connected("10-0")));
    server.answer(added, problem(status, "Not that one."));
    const { stream } = begin();
    await pass(10);
    const refused = stream.subscribe("b").catch((error) => error);
    await pass(10);
    assert.deepEqual([(await refused).message, (await refused).status], ["Not that one.", status]);
    assert.deepEqual(stream.channels, ["a"]);
    assert.equal(stream.state.status, "open");
  });
}

test("a stream that its node does not know any more is replaced, and the channel added to the next", async () => {
  const first = new Answer(() => connected("10-0"));
  server.answer(events, first, new Answer(() => connected("10-0", { clientId: "d" })));
  server.answer(added, problem(404, "There is no client c any more."), added_at("11-0"));
  const { stream, of } = begin({ minDelay: 10 });
  await pass(10);
  const position = stream.subscribe("b");
  await pass(200);
  assert.equal(await position, "11-0");
  assert.equal(of("reconnecting").length, 1);
});

test("where no stream is ever known, subscribe rejects and does not loop", async () => {
  server.answer(events, ...Array.from({ length: 9 }, () => new Answer(() => connected("10-0"))));
  server.answer(added, page(404));
  const { stream } = begin({ minDelay: 10 });
  await pass(10);
  const refused = stream.subscribe("b").catch((error) => error.status);
  await pass(1_000);
  assert.equal(await refused, 404);
  assert.equal(server.like(events).length, 2);
});

test("unsubscribing takes the channel out, now and on each return", async () => {
  const first = new Answer(() => connected("10-0"));
  server.answer(events, first, new Answer(() => connected("10-0")));
  server.answer(/^DELETE/, added_at("11-0"));
  const { stream } = begin({ channels: ["a", "b"], minDelay: 10 });
  await pass(10);
  const done = stream.unsubscribe("b");
  await pass(10);
  await done;
  assert.equal(server.like(/^DELETE/)[0].path, "/clients/c/channels/b");
  first.cut();
  await pass(100);
  assert.deepEqual(server.like(events).map(wanted), [["a", "b"], ["a"]]);
});

test("where that cannot be said, the stream is opened anew without the channel", async () => {
  server.answer(events, new Answer(() => connected("10-0")), new Answer(() => connected("10-0")));
  server.answer(/^DELETE/, unreachable);
  const { stream } = begin({ channels: ["a", "b"], minDelay: 10 });
  await pass(10);
  stream.unsubscribe("b");
  await pass(100);
  assert.deepEqual(server.like(events).map(wanted), [["a", "b"], ["a"]]);
});

test("a stream without a channel is not refused when it returns", async () => {
  const first = new Answer(() => connected("10-0"));
  server.answer(events, first, new Answer(() => connected("10-0"))).answer(/^DELETE/, added_at("10-0"));
  const { stream } = begin({ minDelay: 10 });
  await pass(10);
  await stream.unsubscribe("a");
  first.cut();
  await pass(100);
  assert.deepEqual(wanted(server.like(events).at(-1)), ["global"]);
});

test("a stream that is closed by who hears that it is open leaves no timer behind", async () => {
  server.answer(events, new Answer(() => connected("1-0")));
  const token = `x.${btoa(JSON.stringify({ exp: START / 1000 + 3600 }))}.x`;
  const set = mock.method(globalThis, "setTimeout");
  begin({ token: () => token, onOpen: () => followed.stream.close() });
  await pass(10);
  const waits = set.mock.calls.map((call) => call.arguments[1]);
  assert.deepEqual(waits.filter((ms) => ms > 60_000), []);
});

test("subscribing to a stream that is closed meanwhile rejects", async () => {
  server.answer(events, new Answer(() => connected("1-0")));
  const { stream } = begin();
  await pass(10);
  const subscribed = stream.subscribe("b");
  await null; // the module for it is being loaded
  await null;
  stream.close();
  await assert.rejects(subscribed, /closed/);
});

test("closing rejects what still waits", async () => {
  server.answer(events, silent);
  const { stream } = begin();
  const waiting = stream.subscribe("b").catch((error) => error.message);
  await pass(10);
  stream.close();
  assert.equal(await waiting, "The stream is closed.");
});

// -- tokens

const encoded = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const jwt = (seconds, name = "\u00ff?>") =>
  `${encoded({ alg: "HS256" })}.${encoded({ exp: START / 1000 + seconds, name })}.c2ln`;
const bearer = ({ headers }) => headers.get("Authorization");

test("a token is sent with each request; a function is asked once as long as its token lasts", async () => {
  const first = new Answer(() => connected("10-0"));
  server.answer(events, first, new Answer(() => connected("10-0"))).answer(added, added_at("11-0"));
  let asked = 0;
  const { stream } = begin({ minDelay: 10, token: async () => `opaque ${(asked += 1)}` });
  await pass(10);
  stream.subscribe("b");
  await pass(10);
  first.cut();
  await pass(1_000);
  assert.equal(asked, 1);
  assert.deepEqual([...new Set(server.requests.map(bearer))], ["Bearer opaque 1"]);
});

test("an open stream is given the next token before its own expires, without a break", async () => {
  server.answer(events, new Answer(() => connected("10-0"), ": \n"));
  server.answer(/token$/, () => Response.json({}));
  const tokens = [jwt(100), jwt(200), jwt(300)];
  const { of } = begin({ token: () => tokens.shift(), fetch: quiet(server) });
  await pass(69_000, 500);
  assert.equal(server.like(/token$/).length, 0);
  await pass(2_000);
  const [renewed] = server.like(/^PUT .*token$/);
  assert.equal(renewed.path, "/clients/c/token");
  assert.equal(bearer(renewed), `Bearer ${jwt(200)}`);
  await pass(100_000, 500);
  assert.equal(server.like(/token$/).length, 2);
  assert.equal(server.like(events).length, 1);
  assert.deepEqual(of("reconnecting"), []);
});

// A fetch whose streams are never silent.
function quiet(there) {
  return async (url, init) => {
    const response = await there.fetch(url, init);
    if (!response.body || !/event-stream/.test(response.headers.get("Content-Type"))) return response;
    const { readable, writable } = new TransformStream();
    const writer = writable.getWriter();
    const beat = () => {
      writer.write(new TextEncoder().encode(": \n")).then(() => setTimeout(beat, 10_000), () => {});
    };
    response.body.pipeTo(
      new WritableStream({ write: (piece) => writer.write(piece), abort: () => writer.abort() }),
    ).catch(() => {});
    setTimeout(beat, 10_000);
    return new Response(readable, { headers: response.headers });
  };
}

test("a clock that is wrong does not keep a token too long: the gateway tells the time", async () => {
  const ahead = () => {
    const data = { clientId: "c", serverTime: Date.now() + 60_000, channels: ["a"], keepalive: 60_000 };
    return `id: 1-0\nevent: connected\ndata: ${JSON.stringify(data)}\n\n`;
  };
  server.answer(events, new Answer(ahead)).answer(/token$/, () => Response.json({}));
  const tokens = [jwt(100), jwt(300)];
  begin({ token: () => tokens.shift() });
  await pass(19_000);
  assert.equal(server.like(/token$/).length, 0);
  await pass(2_000);
  assert.equal(server.like(/token$/).length, 1); // 20 s: half of the 40 that are left
});

test("after 401 the function is asked again, at once; a second one in a row is the end", async () => {
  const first = new Answer(() => connected("10-0"));
  const unauthorized = problem(401, "Expired.");
  server.answer(events, unauthorized, first, unauthorized, unauthorized);
  let asked = 0;
  const { of, stream } = begin({ minDelay: 10, token: () => `${(asked += 1)}`, attempts: 1 });
  await pass(20);
  assert.equal(stream.state.status, "open");
  assert.deepEqual(server.like(events).map(bearer), ["Bearer 1", "Bearer 2"]);
  await pass(10_000);
  first.cut();
  await pass(1_000);
  assert.deepEqual(server.like(events).slice(2).map(bearer), ["Bearer 2", "Bearer 3"]);
  assert.deepEqual([of("error")[0].message, of("error")[0].status], ["Expired.", 401]);
});

test("a function that fails is asked again, as a lost link is", async () => {
  server.answer(events, new Answer(() => connected("10-0")));
  let asked = 0;
  const token = async () => {
    asked += 1;
    if (asked < 3) throw Object.assign(new Error("no session"), { status: 500 });
    return "t";
  };
  const { stream } = begin({ minDelay: 10, token });
  await pass(1_000);
  assert.equal(asked, 3);
  assert.equal(stream.state.status, "open");
});

test("a function that never answers is asked again once the watchdog has it", async () => {
  server.answer(events, new Answer(() => connected("10-0")));
  let asked = 0;
  const token = () => ((asked += 1) === 1 ? new Promise(() => {}) : "t");
  const { stream } = begin({ minDelay: 10, token });
  await pass(44_000);
  assert.equal(stream.state.status, "connecting");
  await pass(2_000);
  assert.equal(stream.state.status, "open");
});

// -- polls

test("where a proxy holds a stream back, polls bring what is published, and streaming is tried again", async () => {
  const last = new Answer(() => connected("12-0"), live("13-0", "a"));
  const event = (id) => ({ id, event: "tick", data: id, channel: "a" });
  server.answer(events, silent, last);
  server.answer(
    polls,
    polled("10-0"),
    polled("10-0"),
    polled("11-0", event("11-0")),
    polled("12-0", { id: null, event: "dropped", data: '{"count": 2}', channel: null }, event("12-0")),
    silent,
  );
  const { stream, data, of } = begin({ fetch: quiet({ fetch: slowly(server) }) });
  await pass(7_900);
  assert.equal(server.like(polls).length, 0);
  await pass(1_000);
  assert.deepEqual([stream.state.status, stream.state.transport], ["open", "poll"]);
  await pass(60_000, 500);
  assert.deepEqual(data(), ["11-0", "12-0"]);
  assert.deepEqual(of("dropped"), [{ count: 2 }]);
  const asked = server.like(polls).map(({ query }) => [query.get("wait"), query.get("lastEventId")]);
  assert.deepEqual(asked.slice(0, 5), [["0", null], ["0", null], ["25", "10-0"], ["25", "11-0"], ["25", "12-0"]]);
  await pass(400_000, 500);
  assert.equal(stream.state.transport, "stream");
  assert.deepEqual(data(), ["11-0", "12-0", "13-0"]);
  assert.equal(server.like(events)[1].headers.get("Last-Event-ID"), "12-0");
});

// A fetch whose answers to a poll that waits take a while.
function slowly(there) {
  return async (url, init) => {
    const waits = /wait=[^0]/.test(url);
    if (waits) await new Promise((done) => setTimeout(done, 5_000));
    return there.fetch(url, init);
  };
}

for (const status of [403, 405, 406, 501, 200]) {
  test(`a proxy that forbids streams with ${status} is got around at once`, async () => {
    server.answer(events, page(status)).answer(polls, polled("10-0"), polled("10-0"), silent);
    const { stream } = begin();
    await pass(100);
    assert.deepEqual([stream.state.status, stream.state.transport], ["open", "poll"]);
    assert.equal(server.like(events).length, 1);
  });

  test(`where polls are answered no better, ${status} is an error and the end`, async () => {
    server.answer(events, page(status)).answer(polls, page(status));
    const { stream, of } = begin();
    await pass(100);
    assert.equal(stream.state.status, "closed");
    assert.match(of("error")[0].message, new RegExp(status));
    await pass(60_000);
    assert.equal(server.requests.length, 2);
  });
}

test("a gateway's own refusal is no proxy's: nothing is polled", async () => {
  server.answer(events, problem(403, "Not granted."));
  begin();
  await pass(60_000);
  assert.equal(server.like(polls).length, 0);
});

test("a page in the way of a stream that was open is not the end", async () => {
  const first = new Answer(() => connected("10-0"));
  server.answer(events, first, page(200), new Answer(() => connected("10-0"))).answer(polls, page(200));
  const { stream } = begin({ minDelay: 10 });
  await pass(10);
  first.cut();
  await pass(1_000);
  assert.equal(stream.state.status, "open");
});

test("a stream that is only slow is not polled for", async () => {
  const slow = new Answer(": \n");
  server.answer(events, slow).answer(polls, polled("1-0"));
  const { stream } = begin();
  await pass(20_000);
  assert.equal(server.like(polls).length, 0);
  slow.write(connected("10-0"));
  await pass(10);
  assert.equal(stream.state.status, "open");
});

test("polls return as streams do, honour Retry-After, and end where nothing comes any more", async () => {
  server.answer(events, page(405));
  const later = problem(503, "Later.", { "Retry-After": "3" });
  server.answer(polls, polled("1-0"), polled("1-0"), unreachable, later, polled("2-0.closed"));
  const { stream, of } = begin({ minDelay: 10 });
  await pass(2_500);
  assert.equal(stream.state.status, "reconnecting");
  await pass(2_000);
  assert.deepEqual(of("end"), [{ reason: "closed" }]);
  assert.equal(stream.state.status, "closed");
});

test("channels come and go while it polls, with what they missed", async () => {
  server.answer(events, page(405));
  const event = (id, channel) => ({ id, event: "message", data: id, channel });
  server.answer(polls, polled("10-0"), polled("10-0"), silent);
  const { stream, data } = begin();
  await pass(100);
  server.answer(
    polls,
    polled("9-0", event("2-0", "b"), event("3-0", "a"), event("9-0", "b")),
    polled("12-0", event("11-0", "b")),
    polled("12-0", event("11-0", "b"), event("12-0", "a")),
    silent,
  );
  const position = stream.subscribe("b", { since: "1-0" });
  await pass(100);
  assert.equal(await position, "10-0");
  assert.deepEqual(data(), ["2-0", "9-0", "11-0", "12-0"]);
  await stream.unsubscribe("b");
  await pass(100);
  assert.deepEqual(wanted(server.like(polls).at(-1)), ["a"]);
});

test("an answer to a poll that comes after close() opens nothing", async () => {
  server.answer(events, page(405));
  let answer;
  const late = () => ({ ok: true, json: () => new Promise((resolve) => (answer = resolve)) });
  server.answer(polls, polled("1-0"), late);
  const { stream, told } = begin();
  await pass(10);
  stream.close();
  const count = told.length;
  answer({ events: [], lastEventId: "1-0" });
  await pass(60_000);
  assert.equal(stream.state.status, "closed");
  assert.equal(told.length, count);
  assert.equal(server.requests.length, 3);
});

test("a channel that is added before the first poll is answered is live from where that is", async () => {
  server.answer(events, page(405)).answer(polls, polled("1-0"), polled("5-0"), silent);
  const { stream } = begin();
  const position = stream.subscribe("b");
  await pass(10);
  assert.equal(await position, "5-0");
});

for (const [what, answer] of [
  ["is refused", problem(403, "Not b.")],
  ["is refused for now", problem(503, "Later.")],
]) {
  test(`a channel that ${what} while it polls does not end the stream`, async () => {
    server.answer(events, page(405)).answer(polls, polled("10-0"), polled("10-0"), silent);
    const { stream, of } = begin({ minDelay: 10 });
    await pass(100);
    server.answer(polls, answer, polled("12-0"), silent);
    server.answer(events, new Answer(() => connected("10-0"))).answer(added, added_at("10-0"));
    const subscribed = stream.subscribe("b", { since: "1-0" }).then(
      () => "added",
      ({ message }) => message,
    );
    await pass(1_000);
    assert.equal(await subscribed, what === "is refused" ? "Not b." : "added");
    assert.deepEqual(of("error"), []);
    assert.equal(stream.state.status, "open");
  });
}

// -- a request of its own

const started = (location, answer) => (request) => {
  const response = answer.respond(request);
  response.headers.set(...location);
  return response;
};

for (const header of ["Content-Location", "Location"]) {
  test(`a stream that is opened by POST is resumed by GET, at its ${header}`, async () => {
    const first = new Answer(() => connected("10-0"), live("11-0", "a"));
    const location = [header, "/base/events?channel=a&x=1"];
    server.answer(/^POST/, started(location, first)).answer(/^GET/, new Answer(() => connected("11-0")));
    const { stream, data } = begin({
      url: "http://gateway.example/start",
      channels: undefined,
      request: { body: "go", headers: { "Content-Type": "text/plain" } },
      minDelay: 10,
    });
    await pass(10);
    assert.deepEqual(stream.channels, ["a"]);
    first.cut();
    await pass(100);
    const [post, get] = server.requests;
    assert.deepEqual([post.method, post.path, post.body], ["POST", "/start", "go"]);
    assert.equal(post.headers.get("Content-Type"), "text/plain");
    assert.deepEqual([get.path, get.query.get("x"), wanted(get)], ["/base/events", "1", ["a"]]);
    assert.equal(get.headers.get("Last-Event-ID"), "11-0");
    assert.equal(get.headers.get("Content-Type"), null);
    assert.deepEqual(data(), ["11-0"]);
  });
}

for (const [what, answer] of [
  ["fails", unreachable],
  ["is not answered", silent],
  ["is answered with 503", problem(503, "Later.")],
]) {
  test(`a POST that ${what} is an error and the end: it is never sent twice`, async () => {
    server.answer(/./, answer);
    const { stream, of } = begin({ channels: undefined, request: { body: "go" }, minDelay: 10 });
    await pass(120_000, 500);
    assert.equal(server.requests.length, 1);
    assert.equal(of("error").length, 1);
    assert.equal(stream.state.status, "closed");
  });
}

test("a POST whose answer names no address is not resumed", async () => {
  const first = new Answer(() => connected("10-0"), live("11-0", "a"));
  server.answer(/./, first);
  const { of, data } = begin({ channels: undefined, request: { body: "go" }, minDelay: 10 });
  await pass(10);
  first.cut();
  await pass(10_000);
  assert.equal(server.requests.length, 1);
  assert.equal(of("error").length, 1);
  assert.deepEqual(data(), ["11-0"]);
});

test("a stream that was opened by POST is asked for by GET, also after a 401", async () => {
  const [first, second] = [1, 2].map(() => new Answer(() => connected("10-0")));
  const location = ["Location", "/events?channel=a"];
  server.answer(/^POST/, problem(401, "No."), started(location, first));
  server.answer(/^GET/, problem(401, "Expired."), second);
  const { stream } = begin({
    channels: undefined,
    request: { body: "go" },
    token: () => "token",
    minDelay: 10,
  });
  await pass(10);
  first.cut();
  await pass(100);
  const methods = server.requests.map(({ method }) => method);
  assert.deepEqual(methods, ["POST", "POST", "GET", "GET"]);
  assert.equal(stream.state.status, "open");
});

test("a channel that is added while a POST is answered is not forgotten", async () => {
  const first = new Answer(() => connected("10-0"));
  server.answer(/^POST/, started(["Location", "/events?channel=a"], first));
  server.answer(/^GET/, new Answer(() => connected("12-0"))).answer(added, added_at("10-0"));
  const { stream } = begin({ channels: undefined, request: { body: "go" }, minDelay: 10 });
  const position = stream.subscribe("b");
  await pass(10);
  assert.equal(await position, "10-0");
  first.write(live("11-0", "b"));
  await pass(10);
  first.cut();
  await pass(100);
  assert.deepEqual(wanted(server.like(events).at(-1)), ["a", "b"]);
  assert.deepEqual(stream.channels, ["a", "b"]);
});

// -- wrong use

const url = "http://gateway.example/events";
const channels = ["a"];

for (const [options, sentence] of [
  [{ channels }, /needs a url/],
  [{ url: 5, channels }, /no url: 5/],
  [{ url: "", channels }, /needs a url/],
  [{ url: "http://", channels }, TypeError],
  [{ url: "http://", channels, share: true }, TypeError],
  [{ url }, /needs channels, or a user/],
  [{ url, channels: [] }, /needs channels, or a user/],
  [{ url, channels: "a" }, /no channels: "a"/],
  [{ url, channels: ["a", ""] }, /array of names/],
  [{ url, channels: [5] }, /array of names/],
  [{ url, channels: {} }, TypeError],
  [{ url, channels, token: 5 }, /no token: 5/],
  [{ url, channels, chanels: [] }, /no chanels/],
  [{ url, channels, attempts: -1 }, /no attempts: -1/],
  [{ url, channels, minDelay: -0.5 }, /no minDelay/],
  [{ url, channels, maxDelay: "1" }, /no maxDelay: "1"/],
  [{ url, channels, replay: -3 }, /no replay: -3/],
  [{ url, channels, onOpen: "log" }, /no onOpen: "log"/],
  [{ url, channels, on: { message: 5 } }, /listener is a function/],
  [{ url, channels, signal: {} }, TypeError],
  [{ url, share: true, request: { body: "" } }, /share allows no request/],
]) {
  test(`wrong use throws at once: ${JSON.stringify(options)}`, async () => {
    const expected = sentence instanceof RegExp ? { name: "TypeError", message: sentence } : sentence;
    assert.throws(() => connect({ fetch: server.fetch, ...options }), expected);
    await settle();
    assert.equal(server.requests.length, 0);
  });
}

test("wrong use of a stream throws or rejects with a sentence", async () => {
  server.answer(/./, silent);
  const { stream } = begin();
  assert.throws(() => stream.when("opened", () => {}), /opened/);
  assert.throws(() => stream.when("open"), /function/);
  assert.throws(() => stream.on("message", "log"), /function/);
  await assert.rejects(stream.subscribe(""), /name/);
  await assert.rejects(stream.unsubscribe(5), /name/);
});

test("positions are compared as pairs of integers", () => {
  const order = ["", "0-0", "9-0", "9-2", "9-10", "10-0", "1795197409144-0", `${2n ** 64n - 1n}-0`];
  order.push(`${2n ** 64n - 1n}-${2n ** 64n - 1n}`);
  for (const [i, a] of order.entries()) {
    for (const [j, b] of order.entries()) assert.equal(Math.sign(compare(a, b)), Math.sign(i - j));
  }
});
