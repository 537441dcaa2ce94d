import { eventStream } from "./event_stream.mjs";

const { last, state } = eventStream({ url: "/events", channels: ["a"] }, "price");
const shown = Object.assign(document.createElement("p"), { id: "svelte" });
document.body.append(shown);
const values = {};
const render = () => (shown.textContent = `${values.last?.data}|${values.state?.status}`);
const leaves = Object.entries({ last, state }).map(([name, store]) =>
  store.subscribe((value) => render((values[name] = value))),
);
window.leave = () => {
  for (const leave of leaves) leave();
  shown.textContent = "gone";
};
