// What the tabs of a group say to each other, as it is checked on arrival.
//
// To the leader: `join`, `leave`. To all: `call` (who wants what? I lead now), `event`,
// `at` (the stream stands there), `note` (a gap, or dropped), `state`, `error`, `reset` (positions
// begin anew), `end`. To one: `welcome` (what you wanted comes from here on), `refuse`.
export const FORMAT = 1; // of the messages; tabs of another one are another group

export const CHANNELS = 1_000; // in one message; the gateway's own limit is max_channels_per_client

export const POSITION = /^\d{1,20}-\d{1,20}$/;

const text = (value) => typeof value === "string";
const name = (value) => text(value) && value.length > 0 && value.length <= 200;
const number = (value) => typeof value === "number";
const flag = (value) => typeof value === "boolean";
const object = (value) => typeof value === "object" && value !== null;
const position = (value) => text(value) && POSITION.test(value);
const place = (value) => value === "" || position(value);
const list = (of) => (value) => Array.isArray(value) && value.length <= CHANNELS && value.every(of);
const row = (...of) => (value) =>
  Array.isArray(value) && value.length === of.length && of.every((is, index) => is(value[index]));

const SHAPES = {
  join: { seq: number, position: place, channels: list(row(name, flag)) },
  leave: {},
  call: {},
  welcome: {
    to: text,
    seq: number,
    position,
    isLive: flag,
    clientId: text,
    joins: list(row(name, position)),
    refused: list(row(name, text, number)),
    common: list(name),
  },
  refuse: { to: text, sentence: text },
  event: { prev: place, id: position, type: text, data: text, channels: list(name) },
  at: { prev: place, id: position },
  note: { prev: place, id: place, name: (value) => NOTES.includes(value), detail: object },
  state: { state: (value) => object(value) && STATUSES.includes(value.status) },
  reconnecting: { detail: (value) => object(value) && number(value.delay) },
  error: { sentence: text, status: number },
  reset: { position },
  end: { reason: text, detail: object },
};
export const NOTES = ["gap", "dropped"];
const STATUSES = ["connecting", "open", "reconnecting"];

/** Whether `message` is one of FORMAT. */
export function isMessage(message) {
  if (!object(message) || !text(message.from) || !Object.hasOwn(SHAPES, message.kind)) return false;
  return Object.entries(SHAPES[message.kind]).every(([field, is]) => is(message[field]));
}

/** The name of the group: of its lock and of its channel. */
export function groupOf({ url, user = "", share: named }, base) {
  const { origin, pathname } = new URL(url, base);
  return `gateway ${FORMAT} ${JSON.stringify([origin + pathname, user, named])}`;
}

/** The lock that a tab holds for as long as it lives. */
export const tabLock = (group, tab) => `${group} tab ${tab}`;

export const failure = (sentence, status) => Object.assign(new Error(sentence), { status });
