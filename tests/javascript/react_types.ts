// What react.d.ts allows, and what it does not.
import { connect, type StreamEvent } from "../../gateway/static/client.js";
import { history, last, useEventStream, type Selector } from "../../gateway/static/react.js";

interface Events {
  tick: { price: number };
  message: string;
}

const options = { url: "/events", channels: ["a"], key: "user 7" };

const { value, state, stream, error } = useEventStream<
  StreamEvent<{ price: number }, "tick"> | undefined,
  Events
>(options, last<Events, "tick">("tick"));
const price: number | undefined = value?.json().price;
stream?.when("gap", ({ channels }) => [...channels]);
const shown = [price, state.status, error?.status];

const any = useEventStream(options);
const data: string | undefined = any.value?.data;

const log = useEventStream(options, history("*", 10));
const texts: string[] = log.value.map((event) => event.data);

const sum: Selector<number, StreamEvent> = {
  initial: 0,
  reduce: (total, event) => total + Number(event.data),
};
const total: number = useEventStream(options, sum).value;

// @ts-expect-error: key is the hook's alone
connect({ url: "/events", channels: ["a"], key: "a" });
// @ts-expect-error: a limit is a number
history("tick", "10");
// @ts-expect-error: it begins somewhere
const broken: Selector<number, StreamEvent> = { reduce: (count) => count + 1 };

export default [shown, data, texts, total, broken];
