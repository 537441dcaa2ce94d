// The peer: better-sse on Node's own server, one process. Each event is rendered once, in an event buffer that goes to
// all sessions of the channel, as its guide to batching has it: a sixth faster than `channel.broadcast`.
//
// `loadtest/peers` runs it: node better_sse.cjs PORT
const { createServer } = require("node:http");
const { createChannel, createEventBuffer, createSession } = require("better-sse");

const channel = createChannel();
const asItIs = { serializer: String };

function publish(data) {
  const event = createEventBuffer(asItIs).push(data);
  for (const session of channel.activeSessions) session.batch(event);
}

createServer(async (request, response) => {
  if (request.method === "GET") {
    channel.register(await createSession(request, response));
    return;
  }
  let body = "";
  request.setEncoding("utf8");
  request.on("data", (text) => (body += text));
  request.on("end", () => {
    publish(body);
    response.writeHead(202).end();
  });
}).listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 4096 });
