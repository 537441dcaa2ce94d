// What the field for finding clients means. Pure.
//
// `user:7`, `channel:a.b`, `address:10.0.0.1`, `state:behind` and `node:x` ask for just that, several for all of
// them; `*` is anybody. A word without such a name may be a user, a channel, an address or a client id.

const NAMES = ["user", "channel", "address", "state", "node"];
const CHANNEL = /^(?=.{1,200}$)[A-Za-z0-9_:/@~%+-]+(\.[A-Za-z0-9_:/@~%+-]+)*$/;
const ADDRESS = /^[0-9a-f.:]*[.:][0-9a-f.:]*$/i;
const CLIENT_ID = /^[0-9a-f]{8}\../;
export const MOST = 50;

/**
 * `queries` are those for GET /clients, each a URLSearchParams; `id` is that of one client, or ""; `needles` are what
 * the lists of the page are looked through for.
 */
export function parse(text) {
  const words = text.trim();
  const named = Object.fromEntries(words.split(/\s+/).map(split).filter(([name]) => NAMES.includes(name)));
  if (Object.keys(named).length) return {words, queries: [query(named)], id: "", needles: Object.values(named)};
  if (!words) return {words, queries: [], id: "", needles: []};
  if (words === "*") return {words, queries: [query({})], id: "", needles: []};
  const queries = [query({user: words})];
  if (CHANNEL.test(words)) queries.push(query({channel: words}));
  if (ADDRESS.test(words)) queries.push(query({address: words}));
  return {words, queries, id: CLIENT_ID.test(words) ? words : "", needles: [words]};
}

function split(word) {
  const at = word.indexOf(":");
  return [word.slice(0, at), word.slice(at + 1)];
}

function query(named) {
  return new URLSearchParams({...named, limit: MOST});
}

/** Whether the texts have all that is looked for in them. */
export function has({needles}, ...texts) {
  return needles.every(needle => texts.some(text => text != null && text.toLowerCase().includes(needle.toLowerCase())));
}

/** What a list that is looked through says of that. */
export const said = ({needles, words}) => (needles.length ? `with “${words}”` : "");

/** Several answers as one: each client once, the slowest first. */
export function merge(answers) {
  const clients = new Map(answers.flatMap(({clients}) => clients).map(client => [client.id, client]));
  const shown = [...clients.values()].sort((a, b) => b.queuedBytes - a.queuedBytes || (b.behindSeconds ?? 0) - (a.behindSeconds ?? 0));
  const unseen = answers.reduce((all, {matched, clients}) => all + matched - clients.length, 0);
  const missing = Math.max(0, ...answers.map(answer => answer.missing));
  return {clients: shown.slice(0, MOST), more: unseen + Math.max(0, shown.length - MOST), missing};
}
