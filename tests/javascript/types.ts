// What client.d.ts allows, and what it does not.
import {
  compare,
  connect,
  Parser,
  VERSION,
  type State,
  type Stream,
  type StreamEvent,
  type TokenStreamEvents,
} from "../../gateway/static/client.js";

interface Tick {
  price: number;
}
interface Events {
  tick: Tick;
  message: string;
  open: { mine: boolean };
}

const stream: Stream<Events> = connect<Events>({
  url: new URL("http://gateway.example/events"),
  channels: ["a", "b"] as const,
  user: "7",
  token: async () => "a token",
  lastEventId: "earliest",
  replay: 10,
  headers: { "X-Request-Id": "1" },
  credentials: "include",
  share: "a group",
  attempts: 5,
  minDelay: 10,
  maxDelay: 20,
  signal: new AbortController().signal,
  fetch: globalThis.fetch,
  on: { tick: (event) => event.json().price.toFixed(), message: ({ data }) => data.trim() },
  onOpen: ({ clientId, channels }) => [clientId, ...channels],
  onGap: ({ channels, reason }) => [...channels, reason],
  onDropped: ({ count }) => count + 1,
  onReconnecting: ({ attempt, delay, reason }) => [attempt + delay, reason],
  onEnd: ({ reason }) => reason,
  onError: (error) => [error.message, error.status],
  onState: (state) => state.status,
});

const off: () => void = stream.on("tick", (event) => {
  const price: number = event.json().price;
  const type: "tick" = event.type;
  const texts: string[] = [event.data, event.id, event.channel, ...event.channels, type];
  texts.push(String(price));
});
off();
stream.on("*", (event) => {
  if (event.type === "tick") event.json().price.toFixed();
  if (event.type === "open") event.json().mine.valueOf();
});
stream.when("open", ({ clientId }) => clientId.length);
stream.when("error", (error) => error.status?.toFixed());
stream.when("state", (state: State) => state.transport === "poll");
const position: Promise<string> = stream.subscribe("c", { since: stream.lastEventId });
const done: Promise<void> = stream.unsubscribe("c");
stream.close();
void [position, done, VERSION.length, compare("1-0", "2-0").toFixed()];

const untyped = connect({ url: "/events", channels: ["a"] });
untyped.on("anything", (event: StreamEvent<unknown, "anything">) => event.json());
connect({ url: "/events", request: { body: "{}", headers: { "Content-Type": "text/plain" } } });
connect({ url: "/events", channels: ["a"], token: "a token", share: true });
connect<{ tick: Tick }>({ url: "/events", user: "7" }).on("tick", (event) => event.json().price);
new Parser((event) => [event.type, event.at]).push(new Uint8Array());

const answer = connect<TokenStreamEvents>({
  url: "/events?view=snapshot",
  channels: ["stream:abc"],
  on: { token: (event) => event.json().text.trim() },
});
answer.on("snapshot", (event) => {
  const { state, text, toolUses } = event.json();
  if (state === "streaming") text.trim();
  for (const { name, input } of toolUses) void [name.trim(), input];
});
answer.on("complete", (event) => event.json().usage?.outputTokens?.toFixed());
answer.on("error", (event) => {
  const { code, retryable, status } = event.json();
  void [code.trim(), retryable.valueOf(), status?.toFixed()];
});
answer.on("*", (event) => {
  if (event.type === "tool_use") event.json().name.trim();
  if (event.type === "start") event.json().model?.trim();
});

// @ts-expect-error no token stream tells that
answer.on("tokens", () => {});
// @ts-expect-error a state is one of four
answer.on("snapshot", (event) => event.json().state === "done");
// @ts-expect-error the text may be all there is: usage may not be told
answer.on("complete", (event) => event.json().usage.outputTokens);
// @ts-expect-error a url is needed
connect({ channels: ["a"] });
// @ts-expect-error no such option
connect({ url: "/events", chanels: ["a"] });
// @ts-expect-error channels are an array
connect({ url: "/events", channels: "a" });
// @ts-expect-error a token is text
connect({ url: "/events", channels: ["a"], token: 5 });
// @ts-expect-error nor does a function return anything else
connect({ url: "/events", channels: ["a"], token: () => 5 });
// @ts-expect-error a request has a body
connect({ url: "/events", request: {} });
// @ts-expect-error no event is of that type
stream.on("tock", () => {});
// @ts-expect-error a price is a number
stream.on("tick", (event) => event.json().price.trim());
// @ts-expect-error the client tells nothing of that name
stream.when("opened", () => {});
// @ts-expect-error a state is read
stream.state.status = "open";
// @ts-expect-error and so is what it says
stream.state = {};
// @ts-expect-error what was subscribed to is a name
stream.subscribe(5);
// @ts-expect-error since is a position
stream.subscribe("c", { since: 5 });
// @ts-expect-error a listener of no type that there is
connect<{ tick: Tick }>({ url: "/events", channels: ["a"], on: { tock: () => {} } });
