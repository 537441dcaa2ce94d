// A gateway for client.js that says what a test has it say, and time that passes when a test says so.
import { mock } from "node:test";

import { connect } from "../../gateway/static/client.js";
// So that what is loaded on demand takes no time.
import "../../gateway/static/changes.js";
import "../../gateway/static/request.js";

export const START = 1_000_000; // when each test begins, in ms

export function connected(id, { keepalive = 15_000, channels = ["a"], clientId = "c" } = {}) {
  const data = { clientId, serverTime: Date.now(), channels, keepalive };
  return `id: ${id}\nevent: connected\ndata: ${JSON.stringify(data)}\n\n`;
}

export const problem = (status, detail, headers = {}) => () =>
  new Response(JSON.stringify({ detail }), {
    status,
    headers: { "Content-Type": "application/problem+json", ...headers },
  });

export const page = (status, headers = {}) => () =>
  new Response(status === 204 ? null : "<html>", {
    status,
    headers: { "Content-Type": "text/html", ...headers },
  });

export const unreachable = () => {
  throw new TypeError("fetch failed");
};

export const polled = (lastEventId, ...events) => () => Response.json({ events, lastEventId });

/** Never answers, until the request is aborted. */
export const silent = (request) =>
  new Promise((_, reject) => {
    request.signal.addEventListener("abort", () => reject(request.signal.reason));
  });

/** A stream that a test writes to. */
export class Answer {
  constructor(...texts) {
    this.texts = texts;
  }

  respond = (request) => {
    const body = new ReadableStream({ start: (controller) => (this.controller = controller) });
    request.signal.addEventListener("abort", () => this.cut());
    for (const text of this.texts) this.write(typeof text === "function" ? text() : text);
    return new Response(body, { headers: { "Content-Type": "text/event-stream; charset=utf-8" } });
  };

  write(text) {
    this.controller.enqueue(new TextEncoder().encode(text));
  }

  end() {
    this.controller.close();
  }

  cut() {
    try {
      this.controller.error(new TypeError("network error"));
    } catch {
      // it has ended
    }
  }
}

export class Server {
  requests = [];
  routes = []; // [pattern of "METHOD path", answers]

  /** The answers to requests like that, one after the other; the last one stays. */
  answer(pattern, ...answers) {
    this.routes.unshift([pattern, answers]);
    return this;
  }

  fetch = async (url, init) => {
    const { pathname, searchParams } = new URL(url);
    const method = init.method ?? "GET";
    const headers = new Headers(init.headers);
    const request = { method, path: pathname, query: searchParams, headers, signal: init.signal };
    Object.assign(request, { body: init.body, at: Date.now() - START });
    this.requests.push(request);
    init.signal.throwIfAborted();
    const [, answers] = this.routes.find(([pattern]) => pattern.test(`${method} ${pathname}`));
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    return answer instanceof Answer ? answer.respond(request) : answer(request);
  };

  /** When the requests like that were made, in ms. */
  times(pattern = /^GET .*events/) {
    return this.like(pattern).map(({ at }) => at);
  }

  like(pattern) {
    return this.requests.filter(({ method, path }) => pattern.test(`${method} ${path}`));
  }
}

/** Run what is ready. */
export async function settle() {
  for (let turn = 0; turn < 15; turn += 1) await new Promise((done) => setImmediate(done));
}

/** Have time pass, in steps that are small enough for all that happens meanwhile. */
export async function pass(ms, step = Math.max(10, Math.ceil(ms / 200))) {
  await settle();
  for (let left = ms; left > 0; left -= step) {
    mock.timers.tick(Math.min(step, left));
    await settle();
  }
}

export function beginTime(random = 0.5) {
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: START });
  mock.method(Math, "random", () => random);
}

export function endTime() {
  mock.timers.reset();
  mock.restoreAll();
}

/** A stream of that server, and all that it tells. */
export function follow(server, options = {}) {
  const told = [];
  const heard = [];
  const stream = connect({
    url: "http://gateway.example/events",
    channels: ["a"],
    fetch: server.fetch,
    ...options,
  });
  for (const name of ["open", "gap", "dropped", "reconnecting", "end", "error", "state"]) {
    stream.when(name, (detail) => told.push([name, detail]));
  }
  stream.on("*", (event) => heard.push(event));
  const of = (name) => told.filter(([which]) => which === name).map(([, detail]) => detail);
  return { stream, told, heard, of, data: () => heard.map((event) => event.data) };
}
