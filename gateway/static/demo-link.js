// The way to the node, made bad on demand: a `fetch` for the client.
//
// 1. The client knows nothing of it: what it does about a bad moment is what it would do anywhere.
// 2. What is made bad is real as far as a page can make it: connections are broken off, bodies are not
//    read. Only where a node has no keys, and so no token to refuse, its part is played here.
// 3. At any time it knows the bodies that are being read, one for each stream of the client.

const FAREWELL = new TextEncoder().encode('retry: 500\nevent: reconnect\ndata: {"reason":"token-expired"}\n\n');
const SERVER_TIME = /"serverTime":(\d+)/;  // in `connected`, with which every stream begins
const LINE_FEED = 10;  // two of them end a block

// One answer that is being read, passed on until something is wrong with it.
class Body {
  constructor(response, link, signal) {
    this.link = link;
    this.reader = response.body.getReader();
    this.whole = true;  // what was passed on are whole blocks
    const stream = new ReadableStream({
      start: controller => { this.controller = controller; },
      pull: () => this.pull(),
      cancel: reason => { this.leave(); return this.reader.cancel(reason); },
    }, {highWaterMark: 0});
    const {status, statusText, headers, url} = response;
    this.response = new Response(stream, {status, statusText, headers});
    Object.defineProperty(this.response, "url", {value: url});
    this.abort = () => this.fail(signal.reason);
    this.signal = signal;
    signal.addEventListener("abort", this.abort);
  }

  async pull() {
    await this.link.reading;
    const {done, value} = await this.reader.read().catch(error => { this.leave(); throw error; });
    if (!this.link.bodies.has(this)) return;
    if (!done) {
      if (!this.begun) this.link.openedAt = Number(SERVER_TIME.exec(new TextDecoder().decode(value))?.[1] ?? 0);
      this.begun = true;
      this.whole = value.at(-1) === LINE_FEED && (value.length > 1 ? value.at(-2) === LINE_FEED : this.whole);
      this.controller.enqueue(value);
    } else {
      this.leave();
      this.controller.close();
    }
  }

  leave() {
    this.link.bodies.delete(this);
    this.signal.removeEventListener("abort", this.abort);
  }

  fail(error) {
    this.leave();
    this.controller.error(error);
    this.reader.cancel().catch(() => {});  // it may have failed by itself
  }

  // As the node ends a stream whose token is over; in the middle of a block only breaking it off is clean.
  expire() {
    if (!this.whole) return this.fail(new TypeError("network error"));
    this.leave();
    this.controller.enqueue(FAREWELL);
    this.controller.close();
    this.reader.cancel().catch(() => {});
  }
}

export class Link {
  bodies = new Set();
  openedAt = 0;  // when the node began the last stream, by its own clock
  onRefused = () => {};  // told, when a token is refused by `expire`, whether the node itself did it
  reading = Promise.resolve();
  #readOn = null;
  #up = new AbortController();
  #downUntil = 0;
  #expired = false;

  fetch = async (input, options = {}) => {
    if (performance.now() < this.#downUntil) throw new TypeError("Failed to fetch");
    const headers = new Headers(options.headers);
    if (this.#expired) {
      this.#expired = false;
      const token = headers.get("Authorization");
      this.onRefused(token !== null);
      if (token === null) return refusal();
      headers.set("Authorization", `${token}-expired`);
    }
    const signal = AbortSignal.any([this.#up.signal, options.signal].filter(Boolean));
    const response = await fetch(input, {...options, headers, signal});
    if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) return response;
    const body = new Body(response, this, signal);
    this.bodies.add(body);
    return body.response;
  };

  // Break off what is open, and let nothing through for so many ms.
  cut(ms) {
    this.#downUntil = performance.now() + ms;
    this.#up.abort(new TypeError("network error"));
    this.#up = new AbortController();
  }

  get stalled() { return this.#readOn !== null; }

  // Read nothing until `readOn`: the browser's buffers fill, then the node's, and then it is told.
  stall() {
    if (!this.stalled) this.reading = new Promise(resolve => { this.#readOn = resolve; });
  }

  readOn() {
    this.#readOn?.();
    this.#readOn = null;
  }

  // Nothing is bad any more.
  mend() {
    this.#downUntil = 0;
    this.#expired = false;
    this.readOn();
  }

  // End what is open as the node does when a token is over, and have the next request refused.
  expire() {
    this.#expired = true;
    for (const body of this.bodies) body.expire();
  }
}

function refusal() {
  const problem = {title: "Unauthorized", status: 401, detail: "The token has expired."};
  return new Response(JSON.stringify(problem), {
    status: 401, headers: {"Content-Type": "application/problem+json", "WWW-Authenticate": "Bearer"},
  });
}
