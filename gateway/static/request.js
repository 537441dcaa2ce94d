// Opening a stream by POST: once. It is resumed by GET, at the address that the answer names.
import { Failure } from "./client.js";

export async function post(link, headers) {
  const { stream, options } = link;
  const { body, headers: own } = options.request;
  let response;
  link.posted = true;
  try {
    const init = { method: "POST", body, headers: { ...headers, ...own } };
    response = await link.ask(link.url, init);
  } catch (error) {
    throw new Failure(`The request has failed, and is not sent twice: ${error.message}`);
  }
  if (response.status === 401) return response; // nothing has come of it
  const { headers: told } = response;
  const location = told.get("Content-Location") ?? told.get("Location");
  if (location === null) {
    link.options = { ...options, attempts: 0 }; // there is nowhere to return to
  } else {
    link.isLocated = true;
    const url = new URL(location, response.url || link.url);
    const { searchParams } = url;
    const named = searchParams.getAll("channels").flatMap((names) => names.split(","));
    const added = stream.channels.filter((name) => !options.channels?.includes(name));
    stream.channels = [...searchParams.getAll("channel"), ...named, ...added];
    for (const name of ["channel", "channels"]) searchParams.delete(name);
    link.url = url.href;
  }
  const forget = stream.when("open", ({ channels }) => {
    const own = channels.filter((name) => !/^(global$|user:)/.test(name));
    stream.channels = [...new Set([...own, ...stream.channels])]; // some are still to be added
    forget();
  });
  return response;
}
