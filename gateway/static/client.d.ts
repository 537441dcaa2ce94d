/** The version of the gateway that this client came with. */
export const VERSION: string;

/** The types of published events, each with what its data parses to. */
export type EventMap = object;

/** Where nothing is known of them. */
export type AnyEvents = Record<string, unknown>;

/** What a call of a tool is, that a model wants. */
export interface ToolUse {
  id: string;
  name: string;
  /** Parsed; text where the model has sent no JSON. */
  input: unknown;
}

/**
 * What viewers of a token stream are told: `connect<TokenStreamEvents>({url:
 * "/events?view=snapshot", channels: ["stream:..."]})`. The stream ends behind `complete` or `error`.
 */
export interface TokenStreamEvents {
  /** All that came before, in the place of that; with the view `snapshot`. */
  snapshot: {
    state: "streaming" | "complete" | "stopped" | "error";
    text: string;
    toolUses: ToolUse[];
    tokens: number;
    /** False where the beginning of the text is gone. */
    whole: boolean;
  };
  start: { id: string; upstream: string | null; model: string | null };
  token: { text: string };
  tool_use: ToolUse;
  complete: {
    /**
     * "end", "length", "tool_use", "stop_sequence", "content_filter", "stopped" (by request),
     * "unwatched", or as the vendor has it.
     */
    reason: string;
    usage: { inputTokens: number | null; outputTokens: number | null } | null;
  };
  error: { code: string; message: string; retryable: boolean; status: number | null };
}

/** A published event. */
export interface StreamEvent<Data = unknown, Type extends string = string> {
  readonly type: Type;
  /** As it came; line ends are LF. */
  readonly data: string;
  /** Its position; "" where the server gives none. */
  readonly id: string;
  /** The first of `channels`; "" where the server does not tell. */
  readonly channel: string;
  /** Through which of the stream's channels it came. */
  readonly channels: readonly string[];
  /** Its data, parsed. Throws a SyntaxError where that is no JSON. */
  json(): Data;
}

export type Status = "connecting" | "open" | "reconnecting" | "closed";
export type Transport = "stream" | "poll" | "shared";

/** What a stream does now. A new frozen object at each change, so that it can be rendered. */
export interface State {
  readonly status: Status;
  readonly transport: Transport;
  /** How many attempts to return there were since a stream lived; 0 while it is open. */
  readonly attempt: number;
  /** Milliseconds until the next attempt, when it was decided on. */
  readonly delay: number;
  /** Why the stream was lost or closed; "" while it is open. */
  readonly reason: string;
}

/** What the client itself tells, by name. */
export interface Told {
  /** The stream stands. What is published from here on comes; what was missed comes too. */
  open: { clientId: string; channels: string[] };
  /** History does not hold all that was missed of these channels. */
  gap: { channels: string[]; reason: string };
  /** The page was too slow: that many events are missing right here. */
  dropped: { count: number };
  reconnecting: { attempt: number; delay: number; reason: string };
  /** The gateway has ended the stream for good. */
  end: { reason: string };
  /** It cannot go on; the stream is closed. */
  error: Error & { status?: number };
  state: State;
}

export type Unsubscribe = () => void;

export interface Options<Events extends EventMap = AnyEvents> {
  /** Of the stream route, as "/events"; channels belong into `channels`. */
  url: string | URL;
  channels?: readonly string[];
  /** Whose stream it is, on a node without keys. */
  user?: string;
  /** A token, or what is asked for one: before each expires, and when one was refused. */
  token?: string | (() => string | Promise<string>);
  /** After which position to begin; "earliest" too. */
  lastEventId?: string;
  /** Begin with the last so many events. */
  replay?: number;
  /** Open the stream by POST; it is resumed by GET, at the address that the answer names. */
  request?: { body: BodyInit; headers?: Record<string, string> };
  headers?: Record<string, string>;
  credentials?: RequestCredentials;
  /** One stream for all tabs of this origin that name the same group (true: one for the url). */
  share?: boolean | string;
  /** How many attempts to return in a row, before it gives up with an error; Infinity. */
  attempts?: number;
  /** Milliseconds, of which a first attempt to return waits any part; 500. */
  minDelay?: number;
  /** The most that doubling comes to; 30,000. What the gateway asks for counts beyond it. */
  maxDelay?: number;
  /** Closes the stream. */
  signal?: AbortSignal;
  /** To be used instead of the global one. */
  fetch?: typeof fetch;
  on?: { [Type in keyof Events & string]?: Listener<Events, Type> };
  onOpen?: (told: Told["open"]) => void;
  onGap?: (told: Told["gap"]) => void;
  onDropped?: (told: Told["dropped"]) => void;
  onReconnecting?: (told: Told["reconnecting"]) => void;
  onEnd?: (told: Told["end"]) => void;
  onError?: (told: Told["error"]) => void;
  onState?: (told: Told["state"]) => void;
}

export type Listener<Events extends EventMap, Type extends keyof Events & string> = (
  event: StreamEvent<Events[Type], Type>,
) => void;

/** Any event of these, told apart by its type. */
export type AnyEvent<Events extends EventMap> = {
  [Type in keyof Events & string]: StreamEvent<Events[Type], Type>;
}[keyof Events & string];

export interface Stream<Events extends EventMap = AnyEvents> {
  readonly state: State;
  /** Where the stream stands: to be given to another `connect`. */
  readonly lastEventId: string;
  readonly channels: readonly string[];
  /** What the gateway calls the open stream; "" while there is none. */
  readonly clientId: string;
  /** Published events of a type ("message" where none was given), or all of them ("*"). */
  on(type: "*", listener: (event: AnyEvent<Events>) => void): Unsubscribe;
  on<Type extends keyof Events & string>(type: Type, listener: Listener<Events, Type>): Unsubscribe;
  /** What the client itself tells. */
  when<Name extends keyof Told>(name: Name, listener: (told: Told[Name]) => void): Unsubscribe;
  /** Add a channel; the position from which it is live. Waits for the stream, over losses of it. */
  subscribe(channel: string, options?: { since?: string }): Promise<string>;
  unsubscribe(channel: string): Promise<void>;
  /** Let go of everything; nothing is told afterwards. Safe to repeat. */
  close(): void;
}

/** Open a stream. Throws a TypeError that says what is wrong, at once. */
export function connect<Events extends EventMap = AnyEvents>(
  options: Options<Events>,
): Stream<Events>;

/** Two positions: negative, 0 or positive as the first is before, at or after the second. */
export function compare(a: string, b: string): number;

export interface ParsedEvent {
  type: string;
  data: string;
  /** As the standard has it: that of its own block, or the last one before. */
  id: string;
  /** The line `channel:` of a gateway's annotated stream; "" without one. */
  channel: string;
  /** The line `at:`: the position of an event that was missed of a channel that was added. */
  at: string;
}

/** An event stream as it comes, interpreted by the HTML standard's rules, cut anywhere. */
export class Parser {
  constructor(onEvent: (event: ParsedEvent) => void);
  /** Of the last complete block, with data or without. */
  lastEventId: string;
  /** Milliseconds that `retry` has asked for; 2^31 - 1 at most, which is what a timer holds. */
  readonly retry?: number;
  /**
   * Text, or bytes of UTF-8 without its byte order mark. Throws an Error where an event is over
   * 1 MiB (2^20 characters): nothing that comes is kept without a bound.
   */
  push(piece: string | Uint8Array): void;
}

// How the modules fit together; nobody else should rely on it.
//
// client.js: a Stream is what its user holds: listeners, a state, and no connection. Its `_source`
// drives it: a Link, over fetch; or what share() of shared.js returns, over one Link of many tabs.
//   share(options, open, stream) -> source   options are checked already. Throws where the browser
//                                            lacks what it takes; then the stream is the tab's own
//   open(driven, options) -> Link            of anything that has what a Link uses of a Stream:
//     state.status, channels, lastEventId, clientId    which it reads, and but for the first sets
//     _set({status, transport, attempt, delay, reason})  a new state; what is left out of the last
//                                                        three is 0, 0 and ""
//     _tell(name, told)                                to the listeners of when()
//     _event({type, data, id, channels})               to the listeners of on()
//     _end(reason, name, told)                         closed for good; `name` is "end" or "error"
//   source: subscribe(channel, since), unsubscribe(channel), close()
//   link.changes.settle(channel)             once subscribed to: it is resumed as those from the
//                                            beginning are, by whoever knows himself where it began
//
// Loaded when they are first needed, and of no use without a Link:
//   changes.js   channels and the token of an open stream
//   poll.js      where streams do not come through
//   refused.js   answers that are no stream
//   request.js   opening by POST
//
// The numbers of client.js: PATIENCE, 8 s without a byte until it is tried whether polls are
// answered, as a gateway lets an opening wait for 5 s (open_wait); LIVED, 5 s after which the loss
// of a stream counts as the first in a row; KEEPALIVE, 15 s, where `connected` does not tell.
