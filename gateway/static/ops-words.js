// Figures and words as the page for operators writes them. Pure.

const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const tenths = new Intl.NumberFormat("en", {maximumFractionDigits: 1});
const compact = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});
const time = new Intl.DateTimeFormat("en-GB", {hour: "2-digit", minute: "2-digit", second: "2-digit"});
const day = new Intl.DateTimeFormat("en-GB", {day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit"});

export const NOTHING = "–";

export const count = number => (Math.abs(number) < 100_000 ? whole : compact).format(number);

/** Where there is little room. */
export const brief = number => (Math.abs(number) < 1000 ? whole : compact).format(number);

/** Of events: small ones with a decimal, since one in ten seconds is not none. */
export function rate(number) {
  if (number == null) return NOTHING;
  return number > 0 && number < 10 ? tenths.format(number) : count(number);
}

export function bytes(number) {
  if (number < 1024) return `${whole.format(number)} B`;
  const step = Math.min(4, Math.floor(Math.log2(number * 1024 / 1023.5) / 10));  // 1,023.5 KiB are 1 MiB
  const scaled = number / 1024 ** step;
  return `${(scaled < 10 ? tenths : whole).format(scaled)} ${["", "KiB", "MiB", "GiB", "TiB"][step]}`;
}

export function duration(seconds) {
  if (seconds < 0.05) return "0 s";
  if (seconds < 10) return `${tenths.format(seconds)} s`;
  if (seconds < 90) return `${whole.format(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** From publishing to writing. */
export function lag(seconds) {
  if (seconds == null) return NOTHING;
  if (seconds >= 1) return `${tenths.format(seconds)} s`;
  const milliseconds = seconds * 1000;
  return `${(milliseconds < 10 ? tenths : whole).format(milliseconds)} ms`;
}

export const percent = part => `${whole.format(part * 100)} %`;

export const clock = ms => time.format(ms);

export const date = ms => day.format(ms);

export const several = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;

const REASONS = {
  __proto__: null,
  "opened new": "new",
  "opened resumed": "comes back",
  "opened replay": "from history",
  "closed gone": "left",
  "closed draining": "its node drains",
  "closed token-expired": "token expired",
  "closed revoked": "token revoked",
  "closed closed": "ended by request",
  "closed polled": "poll answered",
  "closed replaced": "replaced by another",
  "closed ended": "channels ended",
  "closed slow": "too slow",
  "closed bus": "no link to Redis",
  "closed stalled": "behind for too long",
  "closed memory": "memory used up",
  "closed unexpected-input": "sent what it may not",
  "dropped full": "outbox full",
  "dropped replaced": "replaced by newer",
  "dropped memory": "memory used up",
  "gap trimmed": "history is too short",
  "gap unknown": "position is not known",
  "gap restarted": "the bus was restarted",
};

export const because = (kind, reason) => REASONS[`${kind} ${reason}`] ?? reason;
