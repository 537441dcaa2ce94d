import { createApp, h, ref } from "vue";

import { useEventStream } from "./use_event_stream.mjs";

const Shown = {
  setup() {
    const { last, state } = useEventStream({ url: "/events", channels: ["a"] }, "price");
    return () => h("p", { id: "vue" }, `${last.value?.data}|${state.value.status}`);
  },
};
const there = ref(true);
createApp(() => (there.value ? h(Shown) : h("p", { id: "vue" }, "gone"))).mount(document.body);
window.leave = () => (there.value = false);
