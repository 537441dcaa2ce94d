// The vendors' own clients: what each is given, and the very bytes, by case, as one JSON document.
import { createHash } from "node:crypto";
import { text } from "node:stream/consumers";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const given = JSON.parse(await text(process.stdin));
const user = (name) => [
  { role: "user", content: name ? given.scripts[name] : "When does it open?" },
];
const properties = { city: { type: "string" } };
const schema = { type: "object", properties };
const tool = { type: "function", function: { name: "get_weather", parameters: schema } };
const model = "m";

let digest, reading;

// What came is read a second time, beside the client.
async function recording(url, options) {
  const answer = await fetch(url, options);
  if (!answer.body) return answer;
  const [mine, theirs] = answer.body.tee();
  const bytes = createHash("sha256");
  digest = bytes;
  reading = (async () => {
    try {
      for await (const piece of mine) bytes.update(piece);
      bytes.update("the end");
    } catch {
      bytes.update("cut");
    }
  })();
  const { status, statusText, headers } = answer;
  return new Response(theirs, { status, statusText, headers });
}

async function all(stream) {
  const found = [];
  for await (const each of await stream) found.push(each);
  return found;
}

const openai = new OpenAI({
  apiKey: given.key,
  baseURL: given.openai,
  maxRetries: 0,
  fetch: recording,
});
const anthropic = new Anthropic({
  apiKey: given.key,
  baseURL: given.anthropic,
  maxRetries: 0,
  fetch: recording,
});

const chat = (name, more) =>
  openai.chat.completions.create({ model, messages: user(name), ...more });
const message = (name, more) =>
  anthropic.messages.create({ model, max_tokens: 9, messages: user(name), ...more });
const stream = true;
const tools = [tool];
const claudeTools = [{ name: "get_weather", input_schema: schema }];

const cases = {
  "openai chat": () => chat(),
  "openai chat, streamed": () => all(chat("long", { stream })),
  "openai tools": () => chat("tool", { tools }),
  "openai tools, streamed": () => all(chat("tool", { tools, stream })),
  "openai chat, streamed by the helper": () =>
    openai.chat.completions.stream({ model, messages: user("long") }).finalChatCompletion(),
  "openai response": () => openai.responses.create({ model, input: "Hi" }),
  "openai response, streamed": () =>
    all(openai.responses.create({ model, input: given.scripts.long, stream })),
  "openai models": async () => (await openai.models.list()).data,
  "openai headers": async () => {
    const { data, response, request_id } = await chat("named").withResponse();
    return [data, request_id, response.headers.get("content-type")];
  },
  "openai headers of a stream": async () => {
    const { data, request_id } = await chat("named", { stream }).withResponse();
    return [await all(data), request_id];
  },
  "openai error in the middle": () => all(chat("error", { stream })),
  "openai cut": () => all(chat("cut", { stream })),
  "anthropic message": () => message("named"),
  "anthropic message, streamed": () => all(message("long", { stream })),
  "anthropic message, streamed by the helper": async () => {
    const texts = [];
    const made = anthropic.messages
      .stream({ model, max_tokens: 9, messages: user("long") })
      .on("text", (text) => texts.push(text));
    return [await made.finalMessage(), texts];
  },
  "anthropic tool": () => message("tool", { tools: claudeTools }),
  "anthropic tool, streamed": () => all(message("tool", { tools: claudeTools, stream })),
  "anthropic tokens": () => anthropic.messages.countTokens({ model, messages: user("tokens") }),
  "anthropic headers": async () => {
    const { data, response, request_id } = await message("named").withResponse();
    return [data, request_id, response.headers.get("content-type")];
  },
  "anthropic error in the middle": () => all(message("error", { stream })),
  "anthropic cut": () => all(message("cut", { stream })),
};
for (const status of Object.keys(given.scripts).filter((name) => /^\d+$/.test(name))) {
  cases[`openai ${status}`] = () => chat(status);
  cases[`openai ${status}, streamed`] = () => chat(status, { stream });
  cases[`anthropic ${status}`] = () => message(status);
  cases[`anthropic ${status}, streamed`] = () => message(status, { stream });
}

const told = {};
for (const [name, run] of Object.entries(cases)) {
  const outcome = {};
  try {
    outcome.value = await run();
    outcome.request = outcome.value?._request_id;
  } catch (error) {
    outcome.error = {
      type: error.constructor.name,
      message: error.message,
      status: error.status,
      request: error.requestID,
      retry: error.headers?.get("retry-after"),
      body: error.error,
    };
  }
  await reading;
  told[name] = { ...outcome, bytes: digest.digest("hex") };
}
process.stdout.write(JSON.stringify(told));
