// The parser of client.js, fed with [stream in hex, events, last id, retry] of its input: whole, byte
// by byte, and cut at every byte.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Parser } from "../../gateway/static/client.js";

const cases = JSON.parse(readFileSync(0, "utf8"));

function* cuts(stream) {
  yield [stream];
  yield [...stream].map((byte) => Uint8Array.of(byte));
  for (let at = 1; at < stream.length; at += 1) {
    yield [stream.subarray(0, at), new Uint8Array(), stream.subarray(at)];
  }
}

function parsed(pieces) {
  const events = [];
  const parser = new Parser(({ type, data, id, channel, at }) => {
    events.push([type, data, id, channel, at]);
    assert.equal(parser.lastEventId, id);
  });
  for (const piece of pieces) parser.push(piece);
  return { events, id: parser.lastEventId, retry: parser.retry ?? null };
}

for (const { name, hex, events, id, retry } of cases) {
  test(name, () => {
    const stream = Uint8Array.from(Buffer.from(hex, "hex"));
    for (const pieces of cuts(stream)) assert.deepEqual(parsed(pieces), { events, id, retry });
  });
}

test("text is taken as bytes are", () => {
  const text = "id: 1\r\nevent: tick\r\ndata: a\r\n\r\n";
  const expected = parsed([new TextEncoder().encode(text)]);
  assert.deepEqual(parsed([text]), expected);
  assert.deepEqual(parsed([...text]), expected);
});

test("an event is given out as soon as its blank line has come", () => {
  const heard = [];
  const parser = new Parser(({ data }) => heard.push(data));
  parser.push("data: a\r\n\r");
  assert.deepEqual(heard, ["a"]);
  parser.push("\ndata: b\n\n");
  assert.deepEqual(heard, ["a", "b"]);
});

test("the last id is committed by the blank line and not before", () => {
  const parser = new Parser(() => {});
  parser.push("id: 1\n\nid: 2\n");
  assert.equal(parser.lastEventId, "1");
  parser.push("\n");
  assert.equal(parser.lastEventId, "2");
});

const MIB = 2 ** 20;

for (const [what, pieces] of [
  ["a line without end", Array.from({ length: 65 }, () => "x".repeat(MIB / 64))],
  ["a line", [`data: ${"x".repeat(MIB)}`]],
  ["lines of data", Array.from({ length: 1_100 }, () => `data: ${"x".repeat(1_000)}\n`)],
]) {
  test(`${what} over 1 MiB is refused with a sentence`, () => {
    const parser = new Parser(() => assert.fail());
    assert.throws(() => pieces.forEach((piece) => parser.push(piece)), /over 1 MiB/);
  });
}

test("an event of nearly 1 MiB is taken, in pieces of any size, in little time", () => {
  const heard = [];
  const parser = new Parser(({ data }) => heard.push(data.length));
  const text = `data: ${"x".repeat(MIB - 10)}\n\n`;
  for (let at = 0; at < text.length; at += 100) parser.push(text.slice(at, at + 100));
  assert.deepEqual(heard, [MIB - 10]);
});

test("a thousand fields that nobody knows are not kept", () => {
  const heard = [];
  const parser = new Parser((event) => heard.push(event));
  for (let n = 0; n < 1_000; n += 1) parser.push(`field${n}: x\n__proto__: x\nconstructor: x\n`);
  parser.push("data: a\n\n");
  assert.deepEqual(heard, [{ type: "message", data: "a", id: "", channel: "", at: "" }]);
});
