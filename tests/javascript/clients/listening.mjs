// What clients with the interface of the standard have in common.

const TYPES = [
  "message", "tick", "connected", "gap", "dropped", "reconnect", "keepalive", "closed",
];

export function listen(source, tell) {
  for (const type of TYPES) {
    source.addEventListener(type, (event) => {
      tell("event", { type: event.type, id: event.lastEventId, data: event.data });
    });
  }
  source.onopen = () => tell("open");
  source.onerror = () => tell(source.readyState === source.CLOSED ? "end" : "error");
}
