/** The version of the gateway that this client came with. */
export const VERSION: string;

/** What published events may look like: their types, and what their data parses to. */
export type EventMap = Record<string, unknown>;

/** A published event. */
export interface StreamEvent<Data = unknown, Type extends string = string> {
  readonly type: Type;
  /** As it came; line ends are LF. */
  readonly data: string;
  /** Its position, and "" where it has none. */
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

export interface Options<Events extends EventMap = EventMap> {
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
  /** How many attempts to return, one after the other, before it gives up; Infinity. */
  attempts?: number;
  /** Milliseconds; 500. */
  minDelay?: number;
  /** Milliseconds; 30,000. */
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

export interface Stream<Events extends EventMap = EventMap> {
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
export function connect<Events extends EventMap = EventMap>(
  options: Options<Events>,
): Stream<Events>;

/** Two positions: negative, 0 or positive as the first is before, at or after the second. */
export function compare(a: string, b: string): number;

export interface ParsedEvent {
  type: string;
  data: string;
  /** Of its own block; "" without one. */
  id: string;
  /** As the standard has it: this block's, or the last before. */
  lastEventId: string;
  channel: string;
  at: string;
}

/** An event stream as it comes, interpreted by the HTML standard's rules. */
export class Parser {
  constructor(onEvent: (event: ParsedEvent) => void);
  lastEventId: string;
  /** Milliseconds that `retry` has asked for. */
  readonly retry?: number;
  /** Throws a RangeError where an event is over 1 MiB (of characters). */
  push(piece: string | Uint8Array): void;
}
