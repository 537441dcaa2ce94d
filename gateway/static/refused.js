// What it means when the answer to the request for a stream, or to a poll, is none.
import { Failure } from "./client.js";
import { find } from "./poll.js";

const LONGEST = 3_600_000; // ms that a Retry-After is kept to

export async function refused(link, response) {
  const { status, headers } = response;
  const type = headers.get("Content-Type") ?? "";
  const reason = `status ${status}`;
  const isOfOthers = status < 300; // a page of somebody in between
  if (status === 204) {
    link.closed();
    return;
  }
  if (status === 401 && typeof link.options.token === "function" && !link.tokenRefused) {
    link.tokenRefused = true; // until a stream is open
    link.token = undefined;
    if (!link.isLocated) link.posted = undefined; // a POST was refused, and has done nothing
    link.attempt -= 1;
    link.drop(reason, true);
    return;
  }
  const isPassing = passes(status);
  if (!type.includes("problem") && status !== 401 && (!isPassing || link.attempt > 0)) {
    await find(link);
    if (link.poll) return;
  }
  if (isPassing || (isOfOthers && link.began !== undefined)) {
    link.why ??= { reason, least: milliseconds(headers.get("Retry-After")) };
    return;
  }
  throw await refusal(response);
}

function passes(status) {
  return [408, 425, 429].includes(status) || (status >= 500 && status !== 501);
}

// Whether the gateway says that no other try, and no other token, would mend it.
export function isFinal({ status, headers }) {
  const isOfGateway = (headers.get("Content-Type") ?? "").includes("problem");
  return isOfGateway && status !== 401 && !passes(status);
}

export async function refusal(response) {
  const { status, headers } = response;
  const { detail } = await response.json().catch(() => ({}));
  const type = headers.get("Content-Type");
  const sentence = detail ?? `The answer was ${status}, ${type}, and no event stream.`;
  return Object.assign(new Failure(sentence), { status });
}

// Of a Retry-After, which is a number of seconds or a date.
function milliseconds(after) {
  const told = /^\d+$/.test(after) ? after * 1000 : Date.parse(after) - Date.now() || 0;
  return Math.min(LONGEST, Math.max(0, told));
}
