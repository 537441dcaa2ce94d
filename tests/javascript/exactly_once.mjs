// client.js against a gateway that does with channels what the real one does, and a link that is cut
// anywhere, or lets polls through alone: by chance, but the same chance each time. For more of it, set
// SEEDS.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Server, beginTime, endTime, follow, page, pass, settle } from "./harness.mjs";

const NAMES = ["a", "b", "c", "d"];
const place = (n) => `${n}-0`;
const number = (position) => Number.parseInt(position, 10);

function chance(seed) {
  let state = seed;
  const next = () => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) / 2 ** 24;
  };
  return { below: (n) => Math.floor(next() * n), is: (part) => next() < part };
}

class Gateway extends Server {
  events = []; // {at, channels}
  streams = new Map(); // by the client's id: those that are open
  polls = new Set(); // that wait for an event
  isHeldBack = false; // a proxy lets no streams through, but polls

  constructor(by) {
    super();
    this.by = by;
    this.answer(/^GET/, (request) => this.open(request));
    this.answer(/poll$/, (request) => this.poll(request));
    this.answer(/^PUT/, (request) => this.add(request));
    this.answer(/^DELETE/, (request) => this.remove(request));
  }

  get head() {
    return this.events.length + 100;
  }

  publish() {
    const channels = NAMES.filter(() => this.by.is(0.4));
    if (channels.length) this.events.push({ at: this.head + 1, channels });
  }

  /** Have a proxy let streams through no more, but polls, or the other way round. */
  change() {
    this.isHeldBack = !this.isHeldBack;
    for (const id of this.streams.keys()) this.cut(id);
    this.answerPolls();
  }

  async poll(request) {
    await settle();
    const answer = this.polled(request);
    if (answer || Number(request.query.get("wait")) <= 1) return answer ?? this.page(request, []);
    return new Promise((resolve, reject) => {
      const waiting = { request, resolve };
      this.polls.add(waiting);
      request.signal.addEventListener("abort", () => {
        this.polls.delete(waiting);
        reject(request.signal.reason);
      });
    });
  }

  answerPolls(isAtLast = false) {
    for (const waiting of this.polls) {
      const { request } = waiting;
      const answer = this.polled(request) ?? (isAtLast && this.page(request, []));
      if (!answer) continue;
      this.polls.delete(waiting);
      waiting.resolve(answer);
    }
  }

  /** The answer to a poll, if there is one by now. */
  polled(request) {
    if (!this.isHeldBack || this.by.is(0.1)) return page(502)();
    const names = request.query.get("channels").split(",");
    const from = number(request.query.get("lastEventId") ?? place(this.head));
    const isAsked = ({ at, channels }) => at > from && channels.some((name) => names.includes(name));
    const owed = this.events.filter(isAsked);
    return owed.length ? this.page(request, owed, 1 + this.by.below(4)) : undefined;
  }

  page({ query }, owed, most) {
    const names = query.get("channels").split(",");
    const events = owed.slice(0, most).map((event) => {
      const channels = event.channels.filter((name) => names.includes(name));
      return { id: place(event.at), event: "message", data: `${event.at}`, channel: channels[0], channels };
    });
    const lastEventId = owed.length > most ? events.at(-1).id : place(this.head);
    return Response.json({ events, lastEventId });
  }

  open({ query, headers, signal }) {
    if (this.isHeldBack) return page(502)();
    const from = number(headers.get("Last-Event-ID") ?? place(this.head));
    const id = `client${this.requests.length}`;
    const names = (query.get("channels") ?? "").split(",").filter(Boolean);
    const stream = { reached: from, floors: new Map(), jobs: [], unsent: "" };
    for (const name of names) stream.floors.set(name, from);
    const data = { clientId: id, serverTime: Date.now(), channels: names, keepalive: 15_000 };
    stream.unsent = `id: ${place(from)}\nevent: connected\ndata: ${JSON.stringify(data)}\n\n`;
    const body = new ReadableStream({ start: (controller) => (stream.controller = controller) });
    signal.addEventListener("abort", () => this.cut(id));
    this.streams.set(id, stream);
    return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
  }

  stream({ path }) {
    return [this.streams.get(path.split("/")[2]), path.split("/")[4]];
  }

  async add(request) {
    const [stream, name] = this.stream(request);
    if (this.by.is(0.1)) throw new TypeError("the request is lost");
    if (!stream) return Response.json({ detail: "There is no such client." }, { status: 404 });
    const since = request.query.get("since");
    let id = this.head;
    if (!stream.floors.has(name)) {
      const from = since === null ? this.head : number(since);
      if (since === null) {
        this.give(stream); // what is earlier comes without it
        stream.floors.set(name, from);
      } else {
        stream.floors.set(name, Infinity);
        stream.jobs.push({ name, from, at: from });
        id = Math.max(stream.reached, from);
      }
    }
    for (let turns = this.by.below(4); turns; turns -= 1) await settle();
    if (this.by.is(0.1)) throw new TypeError("the answer is lost");
    return Response.json({ id: place(id), channels: [] });
  }

  remove(request) {
    const [stream, name] = this.stream(request);
    if (!stream || this.by.is(0.2)) throw new TypeError("lost");
    stream.jobs = stream.jobs.filter((job) => job.name !== name);
    stream.floors.delete(name);
    return Response.json({});
  }

  /** Write some of what a stream is owed: what was missed of added channels first, without ids. */
  give(stream, most = Infinity) {
    const lines = (event) => {
      const named = event.channels.filter((name) => stream.floors.has(name));
      return `channel: ${named.join()}\ndata: ${event.at}\n\n`;
    };
    for (let left = most; left > 0 && stream.jobs.length; left -= 1) {
      const [job] = stream.jobs;
      const until = Math.max(stream.reached, job.from);
      const next = this.events.find(
        ({ at, channels }) => channels.includes(job.name) && at > job.at && at <= until,
      );
      if (next) {
        job.at = next.at;
        const isGiven = ([name, floor]) =>
          name !== job.name && next.channels.includes(name) && floor < next.at;
        if (![...stream.floors].some(isGiven)) stream.unsent += `at: ${place(next.at)}\n${lines(next)}`;
      } else {
        stream.jobs.shift();
        stream.floors.set(job.name, job.from);
      }
    }
    if (stream.jobs.length) return;
    for (const event of this.events.filter(({ at }) => at > stream.reached).slice(0, most)) {
      stream.reached = event.at;
      const isOwed = ([name, floor]) => event.channels.includes(name) && floor < event.at;
      if ([...stream.floors].some(isOwed)) stream.unsent += `id: ${place(event.at)}\n${lines(event)}`;
    }
    if (this.by.is(0.3)) stream.unsent += `id: ${place(stream.reached)}\nevent: keepalive\n\n`;
  }

  /** Send some, or all, of what was written. */
  send(stream, length = this.by.below(stream.unsent.length + 1)) {
    if (length) stream.controller.enqueue(new TextEncoder().encode(stream.unsent.slice(0, length)));
    stream.unsent = stream.unsent.slice(length);
  }

  cut(id) {
    const stream = this.streams.get(id);
    this.streams.delete(id);
    stream?.controller.error(new TypeError("cut"));
  }
}

async function run(seed, polls) {
  const by = chance(seed);
  const gateway = new Gateway(by);
  for (let n = 0; n < 20; n += 1) gateway.publish();
  const options = { channels: ["a"], lastEventId: place(110), minDelay: 1, maxDelay: 5 };
  const { stream, data, of } = follow(gateway, options);
  const owed = new Map([["a", 110]]); // after which position everything of a channel has to come
  const optional = new Map(); // and after which it may
  const failures = [];
  const failed = (error) => failures.push(error.message);
  for (let step = 0; step < 60; step += 1) {
    const what = by.below(11);
    const free = NAMES.find((name) => !owed.has(name) && !optional.has(name));
    if (what < 4) gateway.publish();
    else if (what === 4 && free && by.is(0.7)) {
      const since = by.below(gateway.head - 100) + 100;
      owed.set(free, since);
      stream.subscribe(free, { since: place(since) }).catch(failed);
    } else if (what === 4 && free) {
      optional.set(free, gateway.head);
      stream.subscribe(free).then((position) => owed.set(free, number(position))).catch(failed);
    }
    for (const [id, open] of gateway.streams) {
      if (by.is(0.8)) gateway.give(open, by.below(5));
      gateway.send(open);
      if (what === 5) {
        await settle();
        gateway.cut(id);
      }
    }
    if (polls && what === 10 && by.is(0.5)) gateway.change();
    gateway.answerPolls();
    await pass(by.below(8), 4);
  }
  for (let turn = 0; turn < 30; turn += 1) {
    if (turn < 20) gateway.publish();
    for (const open of gateway.streams.values()) {
      gateway.give(open);
      gateway.send(open, open.unsent.length);
    }
    gateway.answerPolls(true);
    await pass(20);
  }
  stream.close();
  const heard = data().map(Number);
  const isAfter = (places) => (event) =>
    event.channels.some((name) => places.has(name) && event.at > places.get(name));
  const has = new Set(heard);
  const lost = gateway.events.filter(isAfter(owed)).filter(({ at }) => !has.has(at));
  const allowed = new Set(
    gateway.events.filter((e) => isAfter(owed)(e) || isAfter(optional)(e)).map(({ at }) => at),
  );
  assert.deepEqual(lost, [], "lost");
  assert.deepEqual(heard.filter((at, index) => heard.indexOf(at) !== index), [], "given twice");
  assert.deepEqual(heard.filter((at) => !allowed.has(at)), [], "not asked for");
  assert.deepEqual([...of("error"), ...failures], []);
  return of("reconnecting").length;
}

for (const [where, polls] of [
  ["wherever the link is cut", false],
  ["and whenever it turns to polls, and back", true],
]) {
  test(`each event of each channel comes once, ${where}`, async () => {
    let returned = 0;
    for (let seed = 1; seed <= Number(process.env.SEEDS ?? 25); seed += 1) {
      beginTime();
      try {
        returned += await run(seed, polls);
      } catch (error) {
        error.message = `seed ${seed}: ${error.message}`;
        throw error;
      } finally {
        endTime();
      }
    }
    assert.ok(returned > 50, returned);
  });
}
