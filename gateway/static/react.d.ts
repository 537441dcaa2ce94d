import type { AnyEvent, AnyEvents, EventMap, Options, State, Stream, StreamEvent } from "./client.js";

/** What a component makes of the events of its channels: `value`, folded from `initial`. */
export interface Selector<Value, Event> {
  /**
   * Components whose selectors have the same key, and the same channels, share one value, which is
   * there when the second one comes. Without, each component has a value of its own.
   */
  readonly key?: string;
  readonly initial: Value;
  /** A new value, or the same one where nothing is to be rendered. Must be pure. */
  readonly reduce: (value: Value, event: Event) => Value;
}

type EventOf<Events extends EventMap, Type> = Type extends "*"
  ? AnyEvent<Events>
  : Type extends keyof Events & string
    ? StreamEvent<Events[Type], Type>
    : never;

/** The last event of a type, or of any; undefined until there is one. */
export function last<Events extends EventMap = AnyEvents, Type extends string = "*">(
  type?: Type,
): Selector<EventOf<Events, Type> | undefined, AnyEvent<Events>>;

/** The last `limit` (100) events of a type, or of all, the oldest first. */
export function history<Events extends EventMap = AnyEvents, Type extends string = "*">(
  type?: Type,
  limit?: number,
): Selector<readonly EventOf<Events, Type>[], AnyEvent<Events>>;

/** A new frozen object at each change. */
export interface Snapshot<Value, Events extends EventMap = AnyEvents> {
  readonly value: Value;
  readonly state: State;
  /** The stream of all such components; undefined before it is opened. It is not yours to close. */
  readonly stream?: Stream<Events>;
  /** Why the stream cannot go on, or why one of the component's own channels was refused. */
  readonly error?: Error & { status?: number };
}

export interface HookOptions<Events extends EventMap = AnyEvents> extends Options<Events> {
  /** Tells streams apart whose other options are the same, as those of two users' tokens. */
  key?: string;
}

/**
 * Follow channels for as long as the component is there, and render what `selector` makes of them.
 *
 * All components whose options are the same, `channels` and functions aside, share one stream. `on`,
 * `onGap` and the like may be new functions at each render, and so may `token`: where the other
 * options do not tell whose it is, `key` must.
 */
export function useEventStream<Value, Events extends EventMap = AnyEvents>(
  options: HookOptions<Events>,
  selector: Selector<Value, AnyEvent<Events>>,
): Snapshot<Value, Events>;
export function useEventStream<Events extends EventMap = AnyEvents>(
  options: HookOptions<Events>,
): Snapshot<AnyEvent<Events> | undefined, Events>;
