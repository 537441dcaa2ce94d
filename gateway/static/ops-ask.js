// Requests to the node, with the token of whoever watches. It is never part of a URL.

const KEPT = "gateway-ops-token";
const PATIENCE_MS = 8000;

let token = kept();

/** Nothing where this tab may keep nothing. */
function kept() {
  try { return sessionStorage.getItem(KEPT) ?? ""; } catch { return ""; }
}

export const currentToken = () => token;

/** Of this page, and of this tab if it is to be kept. */
export function useToken(given, isKept) {
  token = given;
  try {
    if (isKept) sessionStorage.setItem(KEPT, given);
    else sessionStorage.removeItem(KEPT);
  } catch {
    // then it is known for as long as the page is
  }
}

export class Refusal extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

/** What the node answers, as JSON; raises a Refusal, with status 0 where nothing answered. */
export async function ask(method, path, signal) {
  const headers = token ? {Authorization: `Bearer ${token}`} : {};
  const patience = AbortSignal.timeout(PATIENCE_MS);
  let response, text;
  try {
    response = await fetch(path, {
      method, headers, cache: "no-store",
      signal: signal ? AbortSignal.any([signal, patience]) : patience,
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0, "The node does not answer.");
  }
  const told = parse(text);
  if (response.ok) return told;
  throw new Refusal(response.status, told?.detail ?? told?.title ?? `The node answers ${response.status}.`);
}

function parse(json) {
  try { return JSON.parse(json); } catch { return null; }
}

export const clientPath = id => `/clients/${encodeURIComponent(id)}`;
