// Many tabs (gateway/static/shared.js) in one process, with a gateway that is made up.
import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { Stream, compare } from "../../gateway/static/client.js";
import { share } from "../../gateway/static/shared.js";
import { TABS } from "../../gateway/static/shared_leader.js";

let groups = 0;

/** A gateway that keeps all events, and the tabs that have a stream of it together. */
class Gateway {
  number = 0;
  events = [];
  links = [];
  polls = [];
  tabs = [];
  url = `http://gateway.example/${(groups += 1)}/events`;
  refuse = () => undefined; // why it does: a status, for channels or for a poll
  polled = () => undefined; // the answer to a poll, instead of what is right

  get head() {
    return `1000-${this.number}`;
  }

  publish(...channels) {
    this.number += 1;
    const event = { type: "message", data: `${this.number}`, id: this.head, channels };
    this.events.push(event);
    for (const link of this.links) link.deliver(event);
    return event.id;
  }

  fetch = async (url) => {
    const asked = (url.searchParams.get("channels") ?? "").split(",");
    const from = url.searchParams.get("lastEventId");
    this.polls.push({ asked, from });
    const instead = this.polled(asked, from);
    if (instead) return instead;
    const events = this.events
      .filter(({ id }) => compare(id, from) > 0)
      .filter(({ channels }) => channels.some((channel) => asked.includes(channel)))
      .map(({ id, data, channels: all }) => {
        const channels = all.filter((channel) => asked.includes(channel));
        return { id, event: "message", data, channel: channels[0], channels };
      });
    return Response.json({ events, lastEventId: this.head });
  };

  tab(channels, options = {}) {
    const { url, fetch } = this;
    const given = { url, channels, share: true, minDelay: 1, fetch, ...options };
    const stream = new Stream(given);
    stream.heard = [];
    stream.told = [];
    stream.on("*", ({ data }) => stream.heard.push(Number(data)));
    for (const name of ["open", "gap", "dropped", "end"]) {
      stream.when(name, (told) => stream.told.push([name, told]));
    }
    stream.when("error", ({ message }) => stream.told.push(["error", message]));
    const open = (...driven) => new Link(this, ...driven);
    stream._source = Promise.resolve(share(given, open, stream));
    this.tabs.push(stream);
    return stream;
  }

  async opened(...tab) {
    const stream = this.tab(...tab);
    await until(() => stream.state.status === "open");
    return stream;
  }

  leave() {
    for (const tab of this.tabs) tab.close();
  }
}

/** As that of client.js, to the gateway. */
class Link {
  changes = { settle() {} };
  isOpen = false;

  constructor(gateway, stream, options) {
    Object.assign(this, { gateway, stream, options });
    gateway.links.push(this);
    queueMicrotask(() => this.start());
  }

  async start() {
    const { gateway, stream } = this;
    try {
      await this.options.token?.();
    } catch {
      this.start();
      return;
    }
    try {
      refuseOr(gateway.refuse(stream.channels));
    } catch (error) {
      stream._end(error.message, "error", error);
      return;
    }
    const { lastEventId } = stream;
    const isKnown = lastEventId && compare(lastEventId, gateway.head) <= 0;
    const from = isKnown ? lastEventId : gateway.head;
    this.isOpen = true;
    stream.lastEventId = from;
    stream.clientId = `client ${gateway.links.length} ${Math.random()}`;
    stream._set({ status: "open", transport: "stream" });
    stream._tell("open", { clientId: stream.clientId, channels: [...stream.channels, "global"] });
    for (const event of gateway.events) if (compare(event.id, from) > 0) this.deliver(event);
  }

  deliver({ channels: all, ...event }) {
    const channels = all.filter((name) => this.stream.channels.includes(name));
    if (!this.isOpen || !channels.length) return;
    this.stream.lastEventId = event.id;
    this.stream._event({ ...event, channels });
  }

  async subscribe(channel) {
    refuseOr(this.gateway.refuse([channel]));
    this.stream.channels = [...this.stream.channels, channel];
    return this.gateway.head;
  }

  async unsubscribe(channel) {
    this.stream.channels = this.stream.channels.filter((name) => name !== channel);
  }

  close() {
    this.isOpen = false;
    this.gateway.links = this.gateway.links.filter((link) => link !== this);
  }
}

function refuseOr(status) {
  if (status) throw Object.assign(new Error(`refused: ${status}`), { status });
}

async function until(holds) {
  while (!holds()) await new Promise((resolve) => setImmediate(resolve));
}

function shared(sentence, body) {
  test(sentence, { timeout: 20_000 }, async () => {
    const gateway = new Gateway();
    try {
      await body(gateway);
    } finally {
      gateway.leave();
      await until(() => !gateway.links.length);
    }
  });
}

const opened = ({ told }) => told.filter(([name]) => name === "open").length;
const errors = (stream) => stream.told.filter(([name]) => name === "error").map(([, told]) => told);

shared("a leader serves as many tabs as are allowed, and one more is told so", async (gateway) => {
  const first = await gateway.opened(["a"]);
  const others = Array.from({ length: TABS - 1 }, () => gateway.tab(["a"]));
  await until(() => others.every(({ state }) => state.status === "open"));
  const one = gateway.tab(["a"]);
  await until(() => one.state.status === "closed");
  assert.deepEqual(errors(one), [`${TABS} tabs share a stream at most.`]);
  others[0].close();
  await gateway.opened(["a"]);
  gateway.publish("a");
  await until(() => others.slice(1).every(({ heard }) => heard.length === 1));
  assert.deepEqual(first.heard, [1]);
  assert.equal(gateway.links.length, 1);
});

for (const status of [403, 404]) shared(`a channel that is refused with ${status} is not the end of the other tabs`, async (gateway) => {
  const leader = await gateway.opened(["a"]);
  const follower = await gateway.opened(["b", "a"]);
  const other = await gateway.opened(["c", "a"]);
  gateway.refuse = (channels) => (channels.includes("c") ? status : 0);
  leader.close();
  await until(() => errors(other).length && opened(follower) === 2);
  assert.deepEqual(errors(other), [`refused: ${status}`]);
  assert.deepEqual(other.channels, ["a", "global"]);
  assert.deepEqual(errors(follower), []);
  gateway.publish("a");
  await until(() => follower.heard.length && other.heard.length);
  assert.equal(gateway.links.length, 1);
});

shared("a leader that is refused says so to all, and another one leads", async (gateway) => {
  const leader = await gateway.opened(["a"]);
  const follower = await gateway.opened(["b"]);
  gateway.refuse = (channels) => (channels.includes("a") ? 401 : 0);
  gateway.links[0].start();
  await until(() => leader.state.status === "closed" && errors(follower).length);
  assert.deepEqual([errors(leader), errors(follower)], [["refused: 401"], ["refused: 401"]]);
  await until(() => follower.state.transport === "stream");
  gateway.publish("b");
  await until(() => follower.heard.length);
});

shared("a leader whose token cannot be had says so to all, and tries again", async (gateway) => {
  let left = 0;
  const token = async () => {
    if (left-- > 0) throw new Error("no session");
  };
  const tabs = [await gateway.opened(["a"], { token }), await gateway.opened(["a"])];
  left = 2;
  gateway.links[0].start();
  await until(() => tabs.every((tab) => opened(tab) === 2));
  for (const tab of tabs) assert.deepEqual(errors(tab), Array(2).fill("No token: no session"));
});

shared("reserved channels are everybody's, also where the leader polls", async (gateway) => {
  const tabs = [await gateway.opened(["a"]), await gateway.opened(["b"])];
  const [link] = gateway.links;
  link.stream.clientId = "";
  link.stream._set({ status: "open", transport: "poll" });
  link.stream._tell("open", { clientId: "", channels: link.stream.channels });
  link.stream.channels.push("global", "user:7");
  gateway.publish("global");
  gateway.publish("user:7");
  await until(() => tabs.every(({ heard }) => heard.length === 2));
  assert.deepEqual([tabs[0].state.transport, tabs[1].state.transport], ["poll", "shared"]);
});

shared("a tab that is seen has a leader that is late come back", async (gateway) => {
  globalThis.document = { visibilityState: "visible", addEventListener() {} };
  try {
    await gateway.opened(["a"]);
    const follower = await gateway.opened(["a"]);
    const [link] = gateway.links;
    const woken = [];
    link.wake = () => woken.push(Date.now());
    const due = Date.now() + 50;
    link.stream._set({ status: "reconnecting" });
    link.stream._tell("reconnecting", { attempt: 1, delay: 50, reason: "network" });
    const asked = follower.subscribe("b");
    await until(() => woken.length);
    assert.ok(woken[0] >= due);
    link.start();
    assert.equal(await asked, "1000-0");
  } finally {
    delete globalThis.document;
  }
});

shared("what the stream tells is told in every tab, of its own channels", async (gateway) => {
  const tabs = [];
  for (const channel of ["a", "b", "c"]) tabs.push(await gateway.opened([channel]));
  const [{ stream }] = gateway.links;
  stream._tell("gap", { channels: ["a", "b"], reason: "trimmed" });
  stream._tell("dropped", { count: 3 });
  await until(() => tabs.every(({ told }) => told.some(([name]) => name === "dropped")));
  const gapsOf = ({ told }) => told.filter(([name]) => name === "gap").map(([, gap]) => gap);
  const gaps = tabs.map(gapsOf);
  assert.deepEqual(gaps, [
    [{ channels: ["a"], reason: "trimmed" }],
    [{ channels: ["b"], reason: "trimmed" }],
    [],
  ]);
  const told = { attempt: 2, delay: 5, reason: "network" };
  stream._set({ status: "reconnecting", ...told });
  await until(() => tabs.every(({ state }) => state.status === "reconnecting"));
  assert.deepEqual(tabs[2].state, { ...told, status: "reconnecting", transport: "shared" });
});

shared("positions that begin anew are followed by every tab", async (gateway) => {
  for (let count = 0; count < 9; count += 1) gateway.publish("a");
  const tabs = [await gateway.opened(["a"]), await gateway.opened(["a", "b"])];
  gateway.number = 3;
  gateway.events = [];
  gateway.links[0].start();
  await until(() => tabs.every((tab) => opened(tab) === 2));
  gateway.publish("a");
  gateway.publish("b");
  await until(() => tabs[0].heard.length === 1 && tabs[1].heard.length === 2);
  assert.deepEqual(tabs[1].heard, [4, 5]);
});

shared("a poll that is refused for now is made again; for good, it is a gap", async (gateway) => {
  const begin = gateway.publish("a");
  gateway.publish("a");
  await gateway.opened(["a"]);
  let left = 2;
  gateway.polled = () => (left-- > 0 ? new Response("", { status: 503 }) : undefined);
  const patient = await gateway.opened(["a"], { lastEventId: begin });
  await until(() => patient.heard.length);
  assert.deepEqual(patient.heard, [2]);
  gateway.polled = () => Response.json({ detail: "No." }, { status: 403 });
  const refused = await gateway.opened(["a"], { lastEventId: begin });
  await until(() => errors(refused).length);
  const gap = ["gap", { channels: ["a"], reason: "unknown" }];
  assert.deepEqual(refused.told.slice(1), [["error", "No."], gap]);
  gateway.publish("a");
  await until(() => refused.heard.length);
  assert.deepEqual(refused.heard, [3]);
});

shared("one tab of a group polls at a time", async (gateway) => {
  const begin = gateway.publish("a");
  gateway.publish("a");
  await gateway.opened(["a"]);
  let [now, most] = [0, 0];
  const fetch = async (url) => {
    most = Math.max(most, (now += 1));
    await new Promise((resolve) => setTimeout(resolve, 5));
    now -= 1;
    return gateway.fetch(url);
  };
  const tabs = Array.from({ length: 5 }, () => gateway.tab(["a"], { fetch, lastEventId: begin }));
  await until(() => tabs.every(({ heard }) => heard.length === 1));
  assert.equal(most, 1);
});

shared("what a tab asks of a group that it leaves is refused", async (gateway) => {
  const tab = gateway.tab(["a"]);
  const [twice, again] = [tab.subscribe("b"), tab.subscribe("b")];
  assert.equal(await twice, await again);
  const asked = tab.subscribe("c");
  await tab.unsubscribe("c");
  await assert.rejects(asked, /c was unsubscribed/);
  const late = tab.subscribe("d");
  await null;
  tab.close();
  await assert.rejects(late, /closed/);
  await assert.rejects(tab.subscribe("e"), /closed/);
});

shared("a tab that returns to its channels gets those of meanwhile by polling", async (gateway) => {
  const leader = await gateway.opened(["a"]);
  const follower = await gateway.opened(["a", "b"]);
  gateway.publish("b");
  await until(() => follower.heard.length === 1);
  leader.close();
  await until(() => follower.state.transport === "stream");
  const joined = await follower.subscribe("c", { since: "1000-0" });
  gateway.publish("c");
  gateway.publish("a");
  await until(() => follower.heard.length === 3);
  assert.deepEqual(follower.heard, [1, 2, 3]);
  assert.equal(joined, "1000-1");
  assert.equal(follower.lastEventId, "1000-3");
});

shared("a channel that is just being taken away does not become everybody's", async (gateway) => {
  const first = await gateway.opened(["a"]);
  const second = await gateway.opened(["b"]);
  const [link] = gateway.links;
  link.unsubscribe = async () => {};
  second.close();
  await until(() => link.stream.channels.includes("b"));
  await first.subscribe("c");
  link.start();
  await until(() => first.told.length === 2);
  gateway.publish("b");
  gateway.publish("a");
  await until(() => first.heard.length);
  assert.deepEqual([first.heard, first.channels], [[2], ["a", "c", "global"]]);
});

shared("channels that do not fit into the address are added", async (gateway) => {
  const leader = await gateway.opened(["a"]);
  const follower = await gateway.opened(["b", "c"]);
  gateway.refuse = (channels) => (channels.length > 1 ? 414 : 0);
  const [link] = gateway.links;
  link.isOpen = false;
  gateway.publish("b");
  gateway.publish("a");
  link.start();
  gateway.publish("c");
  await until(() => follower.heard.length === 2 && leader.heard.length === 1);
  gateway.publish("b");
  await until(() => follower.heard.length === 3);
  assert.deepEqual([leader.heard, follower.heard], [[2], [1, 3, 4]]);
  assert.deepEqual([errors(leader), errors(follower)], [[], []]);
});

shared("a tab that comes while there is no stream is told so", async (gateway) => {
  await gateway.opened(["a"]);
  const [{ stream }] = gateway.links;
  stream._set({ status: "reconnecting", attempt: 3, delay: 7_000, reason: "network" });
  const late = gateway.tab(["a"]);
  await until(() => late.state.status === "reconnecting");
  assert.deepEqual([late.state.attempt, late.state.transport], [3, "shared"]);
});

shared("an event brings its position, and none comes once unsubscribed", async (gateway) => {
  const begin = gateway.publish("a");
  await gateway.opened(["a"]);
  for (let count = 0; count < 3; count += 1) gateway.publish("a");
  const tab = gateway.tab(["a"], { lastEventId: begin });
  const seen = [];
  tab.on("message", ({ id }) => seen.push([id, tab.lastEventId]));
  await until(() => seen.length === 3);
  await tab.unsubscribe("a");
  assert.equal(await tab.subscribe("z"), "1000-4");
  gateway.publish("a");
  gateway.publish("z");
  await until(() => seen.length === 4);
  assert.deepEqual(seen, ["1000-2", "1000-3", "1000-4", "1000-6"].map((id) => [id, id]));
});

shared("a channel that had to be added is whole from where the tab begins", async (gateway) => {
  await gateway.opened(["a"]);
  gateway.publish("b");
  gateway.publish("c");
  const fresh = await gateway.opened(["b", "a"]);
  assert.equal(fresh.lastEventId, "1000-2");
  const returning = await gateway.opened(["c", "a"], { lastEventId: "1000-0" });
  await until(() => returning.heard.length);
  const last = await gateway.opened(["a", "d"], { lastEventId: "1000-0" });
  gateway.publish("a");
  await until(() => [fresh, returning, last].every(({ heard }) => heard.at(-1) === 3));
  assert.deepEqual([fresh, returning, last].map(({ heard }) => heard), [[3], [2, 3], [3]]);
});

shared("a leader that polls opens when it knows its position", async (gateway) => {
  gateway.publish("a");
  const tell = Link.prototype.start;
  Link.prototype.start = async function poll() {
    this.isOpen = true;
    this.stream._set({ status: "open", transport: "poll" });
    this.stream._tell("open", { clientId: "", channels: this.stream.channels });
    await null;
    this.stream.lastEventId = gateway.head;
  };
  try {
    const tabs = [await gateway.opened(["a"]), await gateway.opened(["a"])];
    gateway.publish("a");
    await until(() => tabs.every(({ heard }) => heard.length));
    assert.deepEqual(tabs.map(opened), [1, 1]);
    assert.deepEqual(tabs[1].heard, [2]);
  } finally {
    Link.prototype.start = tell;
  }
});

shared("a token that never comes holds up no other tab", async (gateway) => {
  const begin = gateway.publish("a");
  gateway.publish("a");
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    await gateway.opened(["a"]);
    const token = () => new Promise(() => {});
    const stuck = gateway.tab(["a"], { lastEventId: begin, token });
    await until(() => stuck.state.status === "open");
    const other = gateway.tab(["a"], { lastEventId: begin });
    await until(() => other.state.status === "open");
    await until(() => {
      mock.timers.tick(1_000);
      return other.heard.length;
    });
    assert.deepEqual([stuck.heard, other.heard], [[], [2]]);
  } finally {
    mock.timers.reset();
  }
});

shared("what cannot be asked of the gateway is asked again, and holds up nobody", async (gateway) => {
  const first = await gateway.opened(["a"]);
  const second = await gateway.opened(["b"]);
  const [link] = gateway.links;
  const { subscribe } = link;
  link.unsubscribe = () => Promise.reject(new TypeError("Failed to fetch"));
  link.subscribe = () => Promise.reject(new TypeError("Failed to fetch"));
  second.close();
  const asked = first.subscribe("c");
  const third = await gateway.opened(["a"]);
  link.subscribe = subscribe;
  assert.equal(await asked, "1000-0");
  gateway.publish("c");
  await until(() => first.heard.length);
  assert.deepEqual([errors(first), errors(third)], [[], []]);
});

shared("what came through another channel does not come again with what was missed", async (gateway) => {
  gateway.publish("b", "a");
  const tab = await gateway.opened(["a"]);
  gateway.publish("b", "a");
  gateway.publish("a", "b");
  await until(() => tab.heard.length === 2);
  await tab.subscribe("b", { since: "0-0" });
  gateway.publish("b");
  await until(() => tab.heard.includes(4));
  assert.deepEqual(tab.heard, [2, 3, 1, 4]);
});
