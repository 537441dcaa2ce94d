// What of the chat page needs no page: its addresses, and what is said aloud.

import assert from "node:assert/strict";
import { test } from "node:test";

const modules = new URL("../../gateway/static/", import.meta.url);
const { chosen, hashOf, MAX_TURNS, messages, turnsOf } = await import(new URL("chat-address.js", modules));
const { Voice } = await import(new URL("chat-voice.js", modules));

test("a conversation is the same behind its address, with whatever was asked", () => {
  const turns = [
    { question: "a & b = c # d + e % f?\nsecond line ☕", id: "Ab-_9" },
    { question: "not answered yet", id: "" },
  ];
  assert.deepEqual(turnsOf(hashOf(turns)), turns);
  assert.deepEqual(turnsOf(""), []);
  assert.equal(hashOf([]), "");
});

test("an address that somebody has made up is cut down to what a conversation can be", () => {
  const turns = turnsOf(`#stream=first&q=${"x".repeat(3000)}&stream=../stats&other=1&q=b&stream=${"y".repeat(65)}`);
  assert.deepEqual(turns, [{ question: "x".repeat(2000), id: "" }, { question: "b", id: "" }]);
  const many = Array.from({ length: 50 }, (_, at) => ({ question: `${at}`, id: `id${at}` }));
  assert.deepEqual(turnsOf(hashOf(many)), many.slice(-MAX_TURNS));
  assert.equal(turnsOf(many.map(({ question }) => `q=${question}`).join("&")).length, MAX_TURNS);
});

test("the upstream and what its request has beside the messages are in the query", () => {
  assert.deepEqual(chosen(""), { upstream: "demo", request: { model: "demo" } });
  assert.deepEqual(chosen("?upstream=a&max_tokens=x"), { upstream: "a", request: {} });
  const asked = chosen("?upstream=a&model=m&max_tokens=99");
  assert.deepEqual(asked, { upstream: "a", request: { model: "m", max_tokens: 99 } });
});

test("what was said before is sent along as far back as there is room", () => {
  const turn = (question, text) => ({ question, text });
  const said = [turn("old", "x".repeat(15_000)), turn("failed", ""), turn("new", "y".repeat(15_000))];
  assert.deepEqual(messages(said, "now"), [
    { role: "user", content: "new" },
    { role: "assistant", content: "y".repeat(15_000) },
    { role: "user", content: "now" },
  ]);
  assert.equal(messages([turn("a", "x".repeat(20_000))], "now").length, 1);
  assert.equal(messages([turn("a", "x".repeat(19_996))], "now").length, 3);
});

test("what is said aloud are sentences, and not oftener than anybody can listen", (t) => {
  let now = 0;
  t.mock.method(performance, "now", () => now);
  const said = [];
  const voice = new Voice({ set textContent(text) { said.push(text); } });
  voice.begin(0);
  voice.follow("One. ");
  for (now = 5000; now < 5100; now += 10) voice.follow("One. **Two**. Thr");
  voice.follow("One. **Two**. Three. Fo");
  now = 9100;
  voice.follow("One. **Two**. Three. Fo");
  assert.deepEqual(said, ["One. Two.", "Three."]);
  voice.end("One. **Two**. Three. Four", "Stopped.");
  assert.deepEqual(said, ["One. Two.", "Three.", "Four Stopped."]);
});

test("who comes later is not told aloud what was there already", (t) => {
  let now = 0;
  t.mock.method(performance, "now", () => now);
  const said = [];
  const voice = new Voice({ set textContent(text) { said.push(text); } });
  voice.begin(null);
  now = 5000;
  voice.follow("One. ");
  voice.follow("One. Two. ");
  assert.deepEqual(said, ["Two."]);
  voice.begin(null);
  voice.end("All of it.", "");
  assert.deepEqual(said, ["Two.", ""]);
});
