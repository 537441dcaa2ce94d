// Components that follow the same stream, in StrictMode; a test mounts and looks at them.
import { createElement, StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";

import { history, last, useEventStream } from "sse-gateway-client/react";

const options = { url: "/events", minDelay: 20, maxDelay: 100 };
const renders = {};
const heard = [];
const gaps = [];

function Shown({ name, channels, selector, ...others }) {
  const { value, state, error } = useEventStream(
    {
      ...options,
      ...others,
      channels,
      on: { price: (event) => heard.push(`${name} ${event.data}`) },
      onGap: (told) => gaps.push([name, told.reason]),
    },
    selector(),
  );
  renders[name] = (renders[name] ?? 0) + 1;
  const shown = Array.isArray(value) ? value.map(({ data }) => data).join() : value?.data ?? value;
  return createElement("p", { id: name }, `${shown}|${state.status}|${error?.message ?? ""}`);
}

const COMPONENTS = {
  price: { channels: ["a"], selector: () => last("price") },
  again: { channels: ["a"], selector: () => last("price") },
  log: { channels: ["a", "b"], selector: () => history("*", 3) },
  other: { channels: ["b"], selector: () => last() },
  // Without a key, and new at each render.
  sum: {
    channels: ["c"],
    selector: () => ({ initial: 0, reduce: (sum, event) => sum + event.json() }),
  },
  refused: { channels: ["a..b"], selector: () => last() },
  wrong: { channels: ["a"], selector: () => last(), attempts: -1 },
};

let show;

function App() {
  const [names, set] = useState([]);
  show = set;
  return names.map((name) => createElement(Shown, { key: name, name, ...COMPONENTS[name] }));
}

createRoot(document.body).render(createElement(StrictMode, null, createElement(App)));
Object.assign(window, { show: (...names) => show(names), renders, heard, gaps });
