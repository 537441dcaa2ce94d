// A button for each bad moment, and what the node says of it.

import { $, amount, answered, ask, counted, element, sleep } from "./demo-page.js";

const CUT = 2000;  // ms
const STALL = 45_000;  // ms: less than the default of max_behind_seconds
const ASK = 400;  // ms between two questions to the node
const MIB = 1024 * 1024;

const POLICIES = {
  drop: "what finds no room is left out, and “dropped” says how much is missing, and where",
  latest: "of the channel, or of each key, only the newest event waits; “dropped” counts the others",
  disconnect: "the stream ends; the client comes back and is given what history holds",
  "catch-up": "nothing waits: the client reads history at its own pace, and misses nothing that it holds",
};

export class Moments {
  #stats = null;  // what /stats said last; null: nothing
  #policies = new Map();  // by channel, of those that the stream has
  #stream = null;
  #refused = false;  // and no token has been asked for since

  constructor(link, timeline, policiesKnown) {
    Object.assign(this, {link, timeline, policiesKnown});
    $("cut").addEventListener("click", () => answered($("cut-note"), this.#cut()));
    $("stall").addEventListener("click", () => this.link.stalled ? this.link.readOn() : answered($("stall-note"), this.#stall()));
    $("expire").addEventListener("click", () => answered($("expire-note"), this.#expire()));
    $("drain").addEventListener("click", () => answered($("drain-note"), this.#confirmDrain()));
    $("drain-yes").addEventListener("click", () => { $("drain-dialog").close(); answered($("drain-note"), this.#drain()); });
    $("drain-no").addEventListener("click", () => $("drain-dialog").close());
  }

  set stats(told) {
    this.#stats = told;
    $("drain").disabled = !told;
    this.#askForPolicies();
  }

  // The stream, whose state has changed; null: there is none.
  stream(stream) {
    this.#stream = stream;
    for (const id of ["cut", "stall", "expire"]) $(id).disabled = stream?.state.status !== "open";
    if (!stream) this.link.mend();
    else if ($("stall").disabled) this.link.readOn();
    this.#askForPolicies();
  }

  policy(channel) { return this.#policies.get(channel) ?? ""; }

  // The client asks the page for a token.
  tokenAsked() {
    if (this.#refused) this.timeline.told("told", "token", "The client asked for a token again");
    this.#refused = false;
  }

  // What tells whether the node can keep no more for a reader that is stalled.
  async overflow() {
    const before = await this.#client();
    return async () => {
      if (!this.link.stalled) return true;
      const now = await this.#client();
      return before !== null && (now === null || now.state === "replaying" || now.dropped > before.dropped);
    };
  }

  // /channels is for administrators, as /stats is; what fails is asked again when that is told anew.
  async #askForPolicies() {
    const channels = this.#stream?.channels ?? [];
    for (const name of this.#policies.keys()) if (!channels.includes(name)) this.#policies.delete(name);
    for (const name of this.#stats ? channels : []) {
      if (this.#policies.has(name)) continue;
      const told = await ask(`/channels/${encodeURIComponent(name)}`).catch(() => null);
      if (told && this.#stream?.channels.includes(name)) this.#policies.set(name, JSON.parse(told).policy);
    }
    const known = Object.keys(POLICIES).filter(policy => [...this.#policies.values()].includes(policy));
    $("policies").replaceChildren(...known.map(policy => {
      const names = [...this.#policies.keys()].filter(name => this.#policies.get(name) === policy);
      const line = element("li", "", "");
      line.append(element("strong", "", names.join(", ")), " ", element("code", "", policy), `: ${POLICIES[policy]}`);
      return line;
    }));
    this.policiesKnown();
  }

  // Nothing of what was said before is left.
  #begin() {
    for (const note of document.querySelectorAll(".moments output")) {
      note.textContent = "";
      delete note.dataset.outcome;
    }
    if (this.#stream.state.transport === "shared" && !this.link.bodies.size)
      throw new Error("Another tab holds the stream of this group: it happens there or nowhere.");
  }

  async #cut() {
    this.#begin();
    const end = this.timeline.deed("cut", "The link was cut, for two seconds");
    this.link.cut(CUT);
    $("cut-note").textContent = "Nothing gets through.";
    await sleep(CUT);
    end();
    return "The link is there again.";
  }

  async #stall() {
    this.#begin();
    if (!this.link.bodies.size) throw new Error("The client polls: there is no stream to stop reading.");
    const end = this.timeline.deed("stall", "The reader stopped reading");
    this.link.stall();
    const reading = this.link.reading.then(() => clearTimeout(timer));
    const timer = setTimeout(() => this.link.readOn(), STALL);
    $("stall").textContent = "Read on";
    let said = "";
    while (this.link.stalled) {
      said = await this.#nodeSays() ?? said;
      if (this.link.stalled) $("stall-note").textContent = said;
      await Promise.race([reading, sleep(ASK)]);
    }
    end();
    $("stall").textContent = "Stall the reader";
    return `It reads on. ${said.replace("says", "said")}`;
  }

  // Null where it does not tell.
  async #nodeSays() {
    const client = await this.#client();
    if (!client) return null;
    const {state, queuedFrames, queuedBytes, dropped} = client;
    if (state === "live" && !dropped) return "The node says: live. The buffers between still take everything.";
    const waiting = `${counted(queuedFrames, "event")} waiting, ${(queuedBytes / MIB).toFixed(1)} MiB`;
    return `The node says: ${state}, ${waiting}; ${amount(dropped)} dropped.`;
  }

  // Its own user, or an administrator, is told of a client.
  async #client() {
    if (!this.#stream?.clientId) return null;
    const answer = await ask(`/clients/${encodeURIComponent(this.#stream.clientId)}`).catch(() => null);
    return answer && JSON.parse(answer);
  }

  async #expire() {
    this.#begin();
    this.timeline.deed("expire", "The token was over")();
    $("expire-note").textContent = "The next request is refused.";
    this.link.expire();
    const byNode = await new Promise(resolve => {
      this.link.onRefused = byNode => { this.#refused = true; resolve(byNode); };
    });
    return byNode
      ? "The node refused a spoiled token; the client asks the page for another."
      : "This node has no keys, so the page has played its part. The client asks for another token.";
  }

  // The one that holds the stream, or the only one; and whether it is that.
  async #node() {
    const client = await this.#client();
    const {nodes} = JSON.parse(await ask("/stats"));
    const alone = nodes.length === 1;
    const node = nodes.find(({id}) => alone || id === client?.node);
    if (node) return {...node, alone};
    throw new Error("Connect first: the node that holds this stream is meant.");
  }

  async #confirmDrain() {
    const {id, clients, alone} = await this.#node();
    $("drain-what").textContent = `Node ${id} has ${counted(clients, "client")}, to be sent away. ` + (alone
      ? "There is no other one: nobody is served, this page included, until somebody starts it again, with “bash deploy/start.sh”, or “gateway serve”. Then everybody comes back."
      : "The others go on.");
    $("drain-dialog").showModal();
    return "";
  }

  async #drain() {
    const {id, alone} = await this.#node();
    await ask(`/nodes/${encodeURIComponent(id)}/drain`, {method: "POST"});
    this.timeline.deed("drain", `Node ${id} was asked to leave`)();
    return alone
      ? `Node ${id} is leaving, the only one. Start it again: “bash deploy/start.sh”, or “gateway serve” with its flags.`
      : `Node ${id} is leaving.`;
  }
}
