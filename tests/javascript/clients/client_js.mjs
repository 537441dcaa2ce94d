// The gateway's own client, as the node serves it.

export async function start(url, tell) {
  const { pathname, searchParams } = new URL(url);
  const { connect } = await import(new URL("/client.js", url));
  const stream = connect({
    url: "/events",
    channels: [pathname.split("/").pop()],
    lastEventId: searchParams.get("lastEventId") ?? "",
    onOpen: (told) => notice("connected", told),
    onGap: (told) => notice("gap", told),
    onReconnecting: ({ reason }) => tell("error", { text: reason }),
    onEnd: () => tell("end"),
    onError: ({ message }) => tell("end", { text: message }),
  });
  stream.on("*", ({ type, id, data }) => tell("event", { type, id, data }));

  function notice(type, told) {
    tell("event", { type, id: stream.lastEventId, data: JSON.stringify(told) });
  }
}
