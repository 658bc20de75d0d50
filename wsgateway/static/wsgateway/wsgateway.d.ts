/** Types of wsgateway.js; see docs/reference/client-javascript.md. */

/** The version of this client: that of the Python package, and of the package on npm. */
export declare const VERSION: string;

export declare const SUBPROTOCOL: "wsgateway.v1";

/** Returns whether a client should reconnect after this close code. */
export declare function shouldReconnect(code: number): boolean;

export type State = "idle" | "connecting" | "open" | "waiting" | "offline" | "closed";

export interface Position {
  epoch: string;
  offset: number;
  /** The gateway's name for the user's inbox; missing if the gateway gave none. */
  inbox?: string;
}

/** The part of a SharedWorker that the client uses. */
export interface SharedWorkerLike {
  readonly port: any;
  onerror: ((event: any) => any) | null;
}

/** Makes a SharedWorker hold the connection of all tabs; for scripts of a bundler. */
export declare function serveTabs(scope?: any): void;

/** The part of a WHATWG WebSocket that the client uses. */
export interface WebSocketLike {
  readonly readyState: number;
  readonly protocol: string;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

export interface Options {
  /**
   * Which of the user's devices this is; each has its own position on the server. A device that is
   * new to the server gets the whole inbox, so save the name and keep it. Default: "default".
   */
  device?: string;
  /**
   * A function is called again after an attempt that failed or was refused, and before the token
   * expires.
   */
  token?: string | (() => string | Promise<string>);
  /** Puts the token into the URL, which proxies log, as this parameter; default: a subprotocol. */
  tokenParameter?: string;
  /** Renews a cookie or session; called before the attempt that follows a refusal (4501). */
  refresh?: () => unknown;
  /**
   * Fetches a token for the open socket, before the old one expires; default: `token`, if that is a
   * function.
   */
  refreshToken?: () => string | Promise<string>;
  /** Where to resume, for example from storage; without it the device's cursor decides. */
  position?: Position;
  /** Acknowledge when listeners have returned or the loop asks for the next; default true. */
  autoAck?: boolean;
  /** Acknowledge after this many messages at the latest; default 16. */
  ackEvery?: number;
  /** Acknowledge after this many ms at the latest; default 200. */
  ackInterval?: number;
  /** Messages that may wait for confirmation; more reject with "queue_limit"; default 1000. */
  queueLimit?: number;
  /** Messages on the wire without confirmation; default 64. */
  sendWindow?: number;
  /** ms that `request` waits for a reply; null: no limit; default 30000. */
  requestTimeout?: number | null;
  /** ms until the welcome; default 10000. */
  connectTimeout?: number;
  /** ms of silence after a due ping before the connection counts as dead; default 10000. */
  pingTimeout?: number;
  /** Delays in ms; jitter is the part of a delay that is random. */
  backoff?: { initial?: number; factor?: number; cap?: number; jitter?: number };
  /**
   * One connection for all tabs of the same key, in a SharedWorker. The key must differ between
   * users. A bundler needs `worker`, which makes a worker that calls `serveTabs`.
   */
  shared?: string | { key: string; worker?: (name: string) => SharedWorkerLike };
  /** A constructor, where there is no global one. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocketLike;
  /** Stands for window in tests: timers, events, document, navigator, location. */
  host?: any;
  random?: () => number;
}

export interface Welcome extends Position {
  connection: string;
  service: string;
  user: string;
  device: string;
  recovered: boolean;
  reason?: "new" | "epoch" | "trimmed" | "ahead" | (string & {});
  ping: number;
  window: number;
  max_message_size: number;
  /** Seconds until the login ends; missing if it does not. */
  expires_in?: number;
}

export interface Recovered extends Position {
  /** True if no message since the last position is missing. False can also come while open. */
  recovered: boolean;
  /** "new": the device is new to the server, and the whole inbox follows. */
  reason: string | null;
}

export interface Presence {
  service: string;
  user: string;
  /** null: not known now. */
  online: boolean | null;
}

export interface WatchOptions {
  /** The user's service; default: the client's own. */
  service?: string;
}

export interface StateDetail {
  code?: number;
  reason?: string;
  /** ms until the next attempt. */
  delay?: number;
  attempt?: number;
}

export interface Receipt {
  id: string;
}

export interface SendOptions {
  /** 1 to 64 printable ASCII characters; the same id is stored once. */
  id?: string;
  /** ms until the confirmation; without it there is no limit. */
  timeout?: number;
  signal?: AbortSignal;
  /** W3C Trace Context, for services that trace. */
  traceparent?: string;
  tracestate?: string;
}

export interface RequestOptions {
  /** See SendOptions. */
  id?: string;
  /** ms until the reply; null: no limit; default: the option requestTimeout. */
  timeout?: number | null;
  signal?: AbortSignal;
  /** See SendOptions. */
  traceparent?: string;
  tracestate?: string;
}

export declare class GatewayError extends Error {
  constructor(
    code: string,
    message: string,
    temporary: boolean,
    detail?: { id?: string | null; closeCode?: number | null },
  );
  readonly code: string;
  readonly temporary: boolean;
  readonly id: string | null;
  readonly closeCode: number | null;
}

export interface Sender {
  service: string;
  user: string;
}

export declare class Message {
  /** Rises within an inbox or topic, with gaps; null in an ephemeral topic. */
  readonly offset: number | null;
  readonly time: Date | null;
  readonly data: string | Uint8Array;
  /** The topic; null for a message of the inbox. */
  readonly topic: string | null;
  /** Who wrote it to the topic, if the gateway vouches for it. */
  readonly from: Sender | null;
  /** Id of the message that it replies to; null if it is not a reply. */
  readonly replyTo: string | null;
  json<T = unknown>(): T;
  /** Acknowledge this message and all before it; only needed with `autoAck: false`. */
  ack(): void;
}

export declare class Backoff {
  constructor(options?: Options["backoff"], random?: () => number);
  readonly attempt: number;
  next(): number;
  reset(): void;
}

export interface Events {
  message: (message: Message) => void;
  /** A reply that no call waits for: another tab's, or one that came too late. */
  reply: (message: Message) => void;
  state: (state: State, detail: StateDetail) => void;
  recovered: (recovered: Recovered) => void;
  /** The state of a watched user, the first included. */
  presence: (presence: Presence) => void;
  error: (error: GatewayError | Error) => void;
}

export type Access = "read" | "write";

export type TopicState = "waiting" | "subscribed" | "ended";

export interface TopicPosition {
  epoch: string;
  offset: number;
}

export interface TopicOptions {
  /**
   * Where to begin without a position: with what is new (the default), with all that is kept, or
   * with so many of the newest messages.
   */
  since?: "new" | "all" | number;
  /** Where to resume, for example from storage. */
  position?: TopicPosition;
  /** A signed topic token; a function is called again when the gateway refuses the last one. */
  token?: string | ((name: string) => string | Promise<string>);
  /** Default: the client's. */
  autoAck?: boolean;
}

export interface TopicRecovered {
  /** True if no message since the last position is missing. */
  recovered: boolean;
  /** "new": there was no position. */
  reason: string | null;
  /** Null in an ephemeral topic. */
  epoch: string | null;
  offset: number | null;
}

export interface Reader {
  service: string;
  user: string;
}

export interface Readers {
  /** Null: too many to name, or not known any more. */
  users: Reader[] | null;
  /** How many sockets read the topic, if its users are too many to name; otherwise null. */
  sockets: number | null;
  /** False: a gateway does not answer, so there may be more users, and some of these may have left. */
  complete: boolean;
}

export interface ReadersChange extends Readers {
  /** Who is in the list now, and was not before. */
  joined: Reader[];
  left: Reader[];
}

export interface TopicEvents {
  message: (message: Message) => void;
  state: (state: TopicState, detail: { access?: Access; code?: string; reason?: string }) => void;
  /** At each answer of the gateway, and when the topic's stream changed. */
  recovered: (recovered: TopicRecovered) => void;
  /** Who reads the topic, at each change, the first list included; after `watch`. */
  readers: (readers: ReadersChange) => void;
  /** The subscription or its watch was refused or ended, or a token could not be fetched. */
  error: (error: GatewayError | Error) => void;
}

/** Made by `client.topic(name)`. */
export declare class Topic implements AsyncIterable<Message> {
  private constructor();
  readonly name: string;
  readonly state: TopicState;
  /** Writing includes reading; null before the gateway's answer. */
  readonly access: Access | null;
  readonly position: TopicPosition | null;
  /** As last heard by `watch`; null before, and without it. */
  readonly readers: Readers | null;
  /** Resolves when the gateway has subscribed the client; rejects if it refuses. */
  readonly ready: Promise<void>;
  on<K extends keyof TopicEvents>(name: K, listener: TopicEvents[K]): () => void;
  once<K extends keyof TopicEvents>(name: K, listener: TopicEvents[K]): () => void;
  off<K extends keyof TopicEvents>(name: K, listener: TopicEvents[K]): void;
  /** Write to the topic, once the client is subscribed. */
  send(data: unknown, options?: SendOptions): Promise<Receipt>;
  request(data: unknown, options?: RequestOptions): Promise<Message>;
  /** Watch who reads the topic. */
  watch(): Promise<Readers>;
  unwatch(): void;
  close(): void;
  [Symbol.asyncIterator](): AsyncIterableIterator<Message>;
}

export declare class WsGateway implements AsyncIterable<Message> {
  constructor(url: string | URL, options?: Options);
  readonly state: State;
  readonly pending: number;
  readonly position: Position | null;
  readonly welcome: Welcome | null;
  connect(): Promise<void>;
  close(code?: number, reason?: string): void;
  send(data: unknown, options?: SendOptions): Promise<Receipt>;
  /** Publish, and wait for the service's reply. */
  request(data: unknown, options?: RequestOptions): Promise<Message>;
  /** Subscribe to a topic; without options, the one that is open. */
  topic(name: string, options?: TopicOptions): Topic;
  /** Watch whether a user is online; null: not known now. */
  watch(user: string, options?: WatchOptions): Promise<boolean | null>;
  unwatch(user: string, options?: WatchOptions): void;
  /** Returns a function that removes the listener. */
  on<K extends keyof Events>(name: K, listener: Events[K]): () => void;
  once<K extends keyof Events>(name: K, listener: Events[K]): () => void;
  off<K extends keyof Events>(name: K, listener: Events[K]): void;
  [Symbol.asyncIterator](): AsyncIterableIterator<Message>;
}
