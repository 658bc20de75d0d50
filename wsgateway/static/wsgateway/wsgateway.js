/**
 * wsgateway.v1: a websocket that resumes where it left off. See docs/reference/client-javascript.md.
 *
 * Works where there is a WHATWG WebSocket: browsers, Deno, Bun, Node 22, and Node 20 with a
 * constructor passed in. One file, because pages include it without a bundler, and Django's
 * ManifestStaticFilesStorage does not rewrite imports between modules. Each section uses only
 * those above it: names; payloads and frames; reader, outbox, topics, watches, backoff (no I/O); one
 * connection; one for all tabs; what the application holds; the client.
 */

// == names ===================================================================================

/** The version of this file: that of the Python package, and of the package on npm. */
export const VERSION = "0.1.0";

export const SUBPROTOCOL = "wsgateway.v1";

const DEFAULTS = {
  device: undefined,
  token: undefined,
  tokenParameter: undefined,
  refresh: undefined,
  refreshToken: undefined,
  position: undefined,
  autoAck: true,
  ackEvery: 16,
  ackInterval: 200,
  queueLimit: 1000,
  sendWindow: 64,
  requestTimeout: 30_000,
  connectTimeout: 10_000,
  pingTimeout: 10_000,
  backoff: {},
  shared: undefined,
  WebSocket: undefined,
  host: globalThis,
  random: Math.random,
};

/** Standard close codes after which the same client would be refused again. */
const FINAL = new Set([1002, 1003, 1007, 1008, 1009, 1010]);
const AFTER_WELCOME = new Set([
  "message", "ack", "error", "subscribed", "unsubscribed", "watching", "presence", "unwatched", "refreshed",
]);
const CREDENTIALS_CHANGED = 4016;
const NOT_AUTHENTICATED = 4501;
const ID = /^[!-~]{1,64}$/;
const TOPIC = /^[^.]+\../s;
const STABLE = 5_000; // ms that a connection must last to reset the backoff
const LONGEST = 2 ** 31 - 1; // ms, of a timer
const SOONEST = 500; // ms between two tokens of one connection

/** Return whether a client should reconnect after this close code. */
export function shouldReconnect(code) {
  return code >= 4000 ? code < 4500 : !FINAL.has(code);
}

// == payloads and frames =====================================================================

function toBase64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) {
    text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  }
  return btoa(text);
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

function utf8Length(text) {
  return new TextEncoder().encode(text).length;
}

/** Return a text that begins the ids of one page load. */
function randomPrefix() {
  return toBase64(crypto.getRandomValues(new Uint8Array(9))).replace(/[+/]/g, "x");
}

/** Return the subprotocol that carries a token: base64url of it. */
function tokenProtocol(token) {
  const text = toBase64(new TextEncoder().encode(token));
  return `wsgateway.token.${text.replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "")}`;
}

const LONE = /\p{Surrogate}/u;
const ESCAPED_SURROGATE = /\\u[dD][89a-fA-F]/;

/** Refuse what JSON.stringify would send as null or as half of a surrogate pair. */
function onlyJson(key, value) {
  const lost = typeof value === "number" ? !Number.isFinite(value) : value === null && this[key] instanceof Date;
  if (lost) throw new TypeError(`${this[key]} cannot be sent as JSON`);
  requireText(key);
  if (typeof value === "string") requireText(value);
  return value;
}

function requireText(text) {
  if (LONE.test(text)) throw new TypeError("text with half a surrogate pair cannot be sent");
}

const isText = (value) => typeof value === "string";
const isNumber = (value, low, high) => typeof value === "number" && value >= low && value <= high;
const isOffset = (value) => Number.isSafeInteger(value) && value >= 0;
const isBase64 = (value) => isText(value) && value.length % 4 === 0 && /^[A-Za-z0-9+/]*={0,2}$/.test(value);

const isPresence = (f) => isText(f.service) && isText(f.user) && (f.online === null || typeof f.online === "boolean");

const isSender = (value) => isText(value?.service) && isText(value.user);
const areUsers = (value) => Array.isArray(value) && value.every(isSender);
const isReaders = (f) =>
  isText(f.topic) && typeof f.complete === "boolean" && (f.users == null ? isOffset(f.sockets) : areUsers(f.users));
const isReadersChange = (f) =>
  isText(f.topic) && typeof f.complete === "boolean" && areUsers(f.joined) && areUsers(f.left);

/** What a frame of each known type must be. */
const VALID = {
  __proto__: null,
  message: (f) =>
    // What an ephemeral topic sends has no offset
    (isOffset(f.offset) || (isText(f.topic) && f.offset === undefined)) &&
    [f.time, f.topic, f.reply_to, f.error].every((value) => isText(value ?? "")) &&
    (f.from == null || isSender(f.from)) &&
    "data" in f !== "bytes" in f && (isText(f.data) || isBase64(f.bytes)),
  ack: (f) => isText(f.id),
  error: (f) => isText(f.id ?? "") && isText(f.code) && isText(f.message),
  welcome: (f) =>
    [f.connection, f.service, f.user, f.device, f.epoch, f.inbox ?? "", f.reason ?? ""].every(isText) &&
    [f.offset, f.window, f.max_message_size].every(isOffset) &&
    typeof f.recovered === "boolean" && isNumber(f.ping, 0, 86400) && f.ping > 0 && f.ping < 86400 &&
    isNumber(f.expires_in ?? 0, 0, Infinity),
  subscribed: (f) =>
    [f.topic, f.access, f.id ?? "", f.reason ?? ""].every(isText) &&
    (f.durable === false || (isText(f.epoch) && isOffset(f.offset) && typeof f.recovered === "boolean")),
  unsubscribed: (f) => isText(f.topic) && [f.id, f.code, f.reason].every((value) => isText(value ?? "")),
  watching: (f) => isText(f.id) && ("topic" in f ? isReaders(f) : isPresence(f)),
  presence: (f) => ("topic" in f ? ("users" in f ? isReaders(f) : isReadersChange(f)) : isPresence(f)),
  unwatched: (f) => [...("topic" in f ? [f.topic] : [f.service, f.user]), f.code, f.reason].every(isText),
  refreshed: (f) => isNumber(f.expires_in ?? 0, 0, Infinity),
  closing: (f) => isNumber(f.reconnect_after, 0, 3600),
};

/** Return what a websocket frame means; throw if the other end does not speak this protocol. */
function parse(text) {
  const frame = JSON.parse(text);
  if (!isText(frame.type) || VALID[frame.type]?.(frame) === false) throw new TypeError("malformed");
  if (frame.type === "message") {
    if ("bytes" in frame) frame.data = fromBase64(frame.bytes);
    else if (ESCAPED_SURROGATE.test(text)) requireText(frame.data);
  }
  return frame;
}

/** Return the fields that carry *data*, and its size in bytes. */
function encode(data) {
  if (data instanceof ArrayBuffer) data = new Uint8Array(data);
  if (ArrayBuffer.isView(data)) {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    return { fields: `"bytes":"${toBase64(bytes)}"`, size: bytes.length };
  }
  // Send an object as the text of JSON.stringify, so that no second parser changes its numbers
  const text = typeof data === "string" ? data : JSON.stringify(data, onlyJson);
  if (text === undefined) throw new TypeError(`${typeof data} cannot be sent`);
  requireText(text);
  return { fields: `"data":${JSON.stringify(text)}`, size: utf8Length(text) };
}

// == reader, outbox, topics, watches and backoff: no I/O =====================================

/** Which messages of an inbox or topic are new, and up to where they were processed. */
class Reader {
  epoch = null;
  processed = 0; // the resume position: everything up to it was handled
  #name = null; // what the gateway calls the user's inbox; one of an earlier version says nothing
  #received = 0; // everything up to this offset has arrived
  #held = new Map(); // offset -> {time, done}, of what arrived after `processed`
  #generation = 0; // changes when offsets change their meaning
  #asked = null; // offset that this connection asked for, until its welcome

  constructor(position) {
    if (position) {
      this.epoch = position.epoch;
      this.#name = position.inbox ?? null;
      this.processed = this.#received = position.offset;
    }
  }

  get position() {
    if (this.epoch === null) return null;
    const position = { epoch: this.epoch, offset: this.processed };
    return this.#name === null ? position : { ...position, inbox: this.#name };
  }

  connecting() {
    this.#asked = this.processed;
  }

  /** Return false if the welcome only reports missing messages; then nothing moves. */
  welcome({ epoch, offset, reason, inbox = null }) {
    const asked = this.#asked;
    this.#asked = null;
    const same = epoch === this.epoch && (inbox ?? this.#name) === (this.#name ?? inbox);
    if (asked === null && same && reason === "trimmed") return false;
    if (!same || offset !== asked) this.#restart(epoch, offset, inbox);
    else this.#name = inbox ?? this.#name;
    return true;
  }

  /**
   * The same for a topic. Its epoch may have another name on each connection, so that what the
   * gateway says about it counts; *answers*: to a question of this connection.
   */
  subscribed(frame, answers) {
    const { epoch, offset, recovered, reason } = frame;
    const stays = answers
      ? recovered && this.epoch !== null && offset === this.#asked
      : epoch === this.epoch && reason !== "epoch" && reason !== "ahead";
    if (!stays) return this.welcome(frame);
    this.#asked = null;
    this.epoch = epoch;
    return answers;
  }

  #restart(epoch, offset, name) {
    this.epoch = epoch;
    this.#name = name;
    this.processed = this.#received = offset;
    this.#held.clear();
    this.#generation += 1;
  }

  /** Return the generation, for `markProcessed`; null if the message is not new. */
  accept(offset, time) {
    if (offset <= this.#received) {
      // Redelivered, unless the stream lost its end and reuses offsets
      if (offset <= this.processed || this.#held.get(offset)?.time === time) return null;
      this.#restart(this.epoch, this.processed, this.#name);
    }
    this.#received = offset;
    this.#held.set(offset, { time, done: false });
    return this.#generation;
  }

  /** Record that everything up to *offset* is processed; return how many messages that adds. */
  markProcessed(generation, offset) {
    if (generation !== this.#generation || offset <= this.processed) return 0;
    this.processed = offset;
    return this.#advance();
  }

  /** The same for *offset* alone, but for none that wait before it. */
  markOneProcessed(generation, offset) {
    const held = this.#held.get(offset);
    if (generation !== this.#generation || !held) return 0;
    held.done = true;
    return this.#advance();
  }

  #advance() {
    let count = 0;
    for (const [offset, { done }] of this.#held) {
      if (offset > this.processed && !done) break;
      this.processed = Math.max(this.processed, offset);
      this.#held.delete(offset);
      count += 1;
    }
    return count;
  }
}

/** Messages that are not confirmed, in order. */
class Outbox {
  #entries = new Map(); // id -> entry, oldest first
  #inFlight = 0;
  #window;

  constructor(window) {
    this.#window = window;
  }

  get size() {
    return this.#entries.size;
  }

  has(id) {
    return this.#entries.has(id);
  }

  add(entry) {
    this.#entries.set(entry.id, entry);
  }

  /** Forget a message that is confirmed, refused or given up; return whether it was here. */
  remove(id) {
    if (this.#entries.get(id)?.sent) this.#inFlight -= 1;
    return this.#entries.delete(id);
  }

  clear() {
    this.#entries.clear();
    this.#inFlight = 0;
  }

  /** Return every entry above *size* bytes. */
  largerThan(size) {
    return [...this.#entries.values()].filter((entry) => entry.size > size);
  }

  /** Start a connection: every message must be sent on it. */
  connecting() {
    this.#inFlight = 0;
    for (const entry of this.#entries.values()) entry.sent = false;
  }

  /** Return the ids of what waits to be written to a topic, or was. */
  of(topic) {
    return [...this.#entries.values()].filter((entry) => entry.topic === topic).map(({ id }) => id);
  }

  /** Yield what to write now, oldest first, and count it as sent; *may*: whether a topic takes it now. */
  *due(may) {
    if (this.#inFlight >= this.#window) return;
    for (const entry of this.#entries.values()) {
      if (entry.sent || !(entry.topic === null || may(entry.topic))) continue;
      entry.sent = true;
      this.#inFlight += 1;
      yield entry;
      if (this.#inFlight >= this.#window) return;
    }
  }
}

/** One topic, over all connections: whether the gateway delivers it, and from where. */
class Subscription {
  state = "waiting"; // or "subscribed", or "ended"
  access = null; // "read" or "write", since the last answer
  isDurable = true;
  reader;
  asked = null; // id of the question that waits for an answer on this connection
  since; // of the first question; later ones have a position
  token = null;
  renewable; // whether the application can fetch another token
  stale; // ask the application for a token before the next question
  accepted = false; // an answer came for this token, so that it may have expired when it is refused
  error = null; // why it ended

  constructor(name, { since = "new", position, token }) {
    this.name = name;
    this.since = since;
    this.reader = new Reader(position);
    this.renewable = this.stale = typeof token === "function";
    if (!this.renewable) this.token = token ?? null;
  }

  /** A connection begins, or the subscription is to be asked for again. */
  waits() {
    this.asked = null;
    this.state = "waiting";
  }

  /** Return the frame that asks for it. */
  ask(id) {
    this.asked = id;
    this.reader.connecting();
    const { position } = this.reader;
    const since = position || this.since === "new" ? {} : { since: this.since };
    const token = this.token === null ? {} : { token: this.token };
    return JSON.stringify({ type: "subscribe", id, topic: this.name, ...position, ...since, ...token });
  }

  /** Say whether a frame is about this life of the subscription, not about an earlier one. */
  concerns({ id = null }) {
    return id === this.asked && (id !== null || this.state === "subscribed");
  }

  /** Return whether what was delivered before needs another acknowledgement. */
  begin(frame) {
    const answers = this.asked !== null;
    this.asked = null;
    this.state = "subscribed";
    this.access = frame.access;
    this.isDurable = frame.durable !== false;
    if (answers) this.accepted = true;
    return this.isDurable && this.reader.subscribed(frame, answers);
  }

  /** Return whether a refusal may be the token's fault, so that another one is worth a try. */
  renew(code) {
    if (code !== "forbidden" || !this.renewable || !this.accepted) return false;
    this.accepted = false;
    return (this.stale = true);
  }
}

const nameOf = ({ service, user }) => JSON.stringify([service, user]);

/** Return those of *users* who are not among *others*; null, of either, is as good as nobody. */
function without(users, others) {
  const names = new Set(others?.map(nameOf));
  return users?.filter((user) => !names.has(nameOf(user))) ?? [];
}

/** Return who reads a topic after a frame that says so; *before*: the same, before it. */
function readersAfter(before, { users, sockets, joined, left, complete }) {
  if (users) return { users: users.map(({ service, user }) => ({ service, user })), sockets: null, complete };
  if (users === null || !joined) return { users: null, sockets, complete };
  if (!before.users) return { ...before, complete };
  const stayed = without(before.users, left);
  const came = without(joined, stayed).map(({ service, user }) => ({ service, user }));
  return { users: [...stayed, ...came], sockets: null, complete };
}

/** The watch of one topic's readers, over all connections. */
class ReadersWatch {
  readers = null; // {users, sockets, complete}, as the application was told last
  state = "waiting"; // to be asked for; or "asked", "open", or "renewing" the topic's token
  renewed = false; // on this connection

  constructor(id) {
    this.id = id;
  }

  /** Start a connection: it must be asked for on it. */
  connecting() {
    this.state = "waiting";
    this.renewed = false;
  }

  get isKnownToGateway() {
    return this.state === "asked" || this.state === "open";
  }

  /** Return the frame that asks for it. */
  ask({ name, token }) {
    this.state = "asked";
    return JSON.stringify({ type: "watch", id: this.id, topic: name, token: token ?? undefined });
  }

  /** Record what a frame says; return what is news, null if nothing is. */
  receive(frame) {
    if (frame.id === this.id && this.state === "asked") this.state = "open";
    else if (frame.id !== undefined || this.state !== "open") return null;
    const before = this.readers;
    const now = readersAfter(before, frame);
    const [joined, left] = [without(now.users, before?.users), without(before?.users, now.users)];
    const isSame = before && !joined.length && !left.length && !before.users === !now.users &&
      before.sockets === now.sockets && before.complete === now.complete;
    if (isSame) return null;
    this.readers = now;
    return { ...now, joined, left };
  }

  /** Return what is news once nobody knows any more who reads the topic; null if nobody knew. */
  end() {
    return this.readers && { users: null, sockets: null, joined: [], left: this.readers.users ?? [], complete: false };
  }
}

/** Whose presence is watched, over all connections. */
class Watches {
  #watches = new Map(); // id -> {service, user, online, told, sent}; service null: the client's own
  #count = 0;
  #prefix;

  /** *prefix*: of ids, so that no message of the application has the same. */
  constructor(prefix) {
    this.#prefix = prefix;
  }

  /** Return the id of a watch; undefined if there is none. *own*: the client's service, null before it is known. */
  find(service, user, own) {
    for (const [id, watch] of this.#watches) {
      if (watch.user === user && (watch.service ?? own) === (service ?? own)) return id;
    }
    return undefined;
  }

  add(service, user, own) {
    const known = this.find(service, user, own);
    if (known) return known;
    const id = this.newId();
    this.#watches.set(id, { service, user, online: null, told: false, sent: false });
    return id;
  }

  /** Return an id for the watch of a user or a topic. */
  newId() {
    return `${this.#prefix}-watch-${(this.#count += 1)}`;
  }

  get(id) {
    return this.#watches.get(id);
  }

  remove(id) {
    this.#watches.delete(id);
  }

  clear() {
    this.#watches.clear();
  }

  /** Return the ids of a user's watches: one that names the service, and one that does not. */
  of({ service, user }, own) {
    const ids = [];
    for (const [id, watch] of this.#watches) {
      if (watch.user === user && (watch.service ?? own) === service) ids.push(id);
    }
    return ids;
  }

  /** Record a user's state, for watches that were answered, or are now: *answered* is its id. Return whether it is news. */
  update(frame, own, answered) {
    let isNews = false;
    for (const id of this.of(frame, own)) {
      const watch = this.#watches.get(id);
      if (!watch.told && id !== answered) continue;
      isNews ||= !watch.told || watch.online !== frame.online;
      Object.assign(watch, { told: true, online: frame.online });
    }
    return isNews;
  }

  /** Start a connection: all must be asked for on it. */
  connecting() {
    for (const watch of this.#watches.values()) watch.sent = false;
  }

  /** Yield the frames to write now, and count them as sent. */
  *due() {
    for (const [id, watch] of this.#watches) {
      if (watch.sent) continue;
      watch.sent = true;
      yield JSON.stringify({ type: "watch", id, ...target(watch) });
    }
  }
}

const target = ({ service, user }) => (service === null ? { user } : { service, user });

/** Exponential, with full jitter: when a gateway dies, its clients spread over the whole delay. */
export class Backoff {
  constructor({ initial = 500, factor = 2, cap = 30_000, jitter = 1 } = {}, random = Math.random) {
    Object.assign(this, { initial, factor, cap, jitter, random });
    this.attempt = 0;
  }

  next() {
    const delay = Math.min(this.cap, this.initial * this.factor ** Math.min(this.attempt, 64));
    this.attempt += 1;
    return delay * (1 - this.jitter * this.random());
  }

  reset() {
    this.attempt = 0;
  }
}

function ackOf({ processed, epoch }, topic) {
  return JSON.stringify({ type: "ack", topic, offset: processed, epoch });
}

// == one connection ==========================================================================

function makeClock(host) {
  return {
    now: () => (host.performance ?? Date).now(),
    setTimeout: (callback, delay) => host.setTimeout(callback, delay),
    clearTimeout: (timer) => host.clearTimeout(timer),
  };
}

/** One WebSocket. It calls no handler after `drop` or its end. */
class Transport {
  #socket;
  #handlers;

  constructor(socket, clock, handlers) {
    this.#handlers = handlers;
    this.#socket = socket;
    socket.onopen = () => {
      if (socket.protocol !== SUBPROTOCOL) this.#end(4500, `the server does not speak ${SUBPROTOCOL}`);
    };
    socket.onmessage = (event) => this.#handlers?.text(event.data);
    socket.onclose = (event) => this.#end(event.code, event.reason);
    // A close event follows in the same task and says more, but not in Node 20 (undici 6) if
    // nothing listens on the port (seen 2026-11-23).
    socket.onerror = () => clock.setTimeout(() => this.#end(1006, "no connection"), 0);
  }

  send(text) {
    if (this.#socket.readyState === 1) this.#socket.send(text);
  }

  /** Close without calling `closed`. */
  drop(code, reason) {
    this.#handlers = null;
    this.#socket.close(code, reason);
  }

  #end(code, reason) {
    const handlers = this.#handlers;
    this.#handlers = null;
    if (this.#socket.readyState < 2) this.#socket.close();
    handlers?.closed(code, reason);
  }
}

/**
 * Notices a gateway that does not answer. After the ping interval and half the timeout without a
 * frame it pings; after the other half it gives up. If a timer is late, the page slept and the
 * answer may wait unread, so it pings again first.
 */
class Monitor {
  #clock;
  #ask;
  #dead;
  #timer = null;
  #heard = 0;
  #asked = null; // when the unanswered ping was sent
  #interval = 0;
  #grace = 0;

  constructor(clock, ask, dead) {
    this.#clock = clock;
    this.#ask = ask;
    this.#dead = dead;
  }

  start(interval, timeout) {
    this.#interval = interval + timeout / 2;
    this.#grace = timeout / 2;
    this.heard();
    this.#arm(this.#interval);
  }

  stop() {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = null;
  }

  heard() {
    this.#heard = this.#clock.now();
    this.#asked = null;
  }

  /** Ping now: the page was hidden, or the network changed. */
  probe() {
    if (this.#timer === null) return;
    this.#asked = this.#clock.now();
    this.#ask();
    this.#arm(this.#grace);
  }

  #arm(delay) {
    this.stop();
    this.#timer = this.#clock.setTimeout(() => this.#check(), delay);
  }

  #check() {
    const now = this.#clock.now();
    if (this.#asked === null) {
      const left = this.#heard + this.#interval - now;
      if (left > 0) this.#arm(left);
      else this.probe();
    } else if (now - this.#asked > 2 * this.#grace) {
      this.probe();
    } else {
      this.stop();
      this.#dead();
    }
  }
}

// == one socket for all tabs =================================================================

/** Begins the names of our workers, which tell this file that it runs in one. */
const WORKER = '["wsgateway"';
const ANSWER = 3_000; // ms that a worker has to take a tab, before the tab opens a socket of its own
const SLOW = 2_000; // ms without progress after which a tab that holds up the others must go
// What a worker keeps for tabs that join later: of each log, and of all together
const KEPT = 256; // messages
const KEPT_OF_ALL = 50_000;
const KEPT_SIZE = 8 * 2 ** 20; // characters, of all

/**
 * A WebSocket whose connection is in a SharedWorker, or, where that is not possible, its own.
 *
 * To the worker: `{dial, protocols, lock}`, `{text}`, `{close}`. From it: `{taken}`, `{open}`,
 * `{text}`, `{closed: [code, reason]}`, `{alone}`: open a socket of your own, now or, if the
 * connection was open, next time.
 */
class TabSocket {
  readyState = 0;
  protocol = "";
  #options; // {start, host, clock, WebSocket, alone}
  #dial;
  #port = null;
  #own = null; // a WebSocket, if the tab does not share one
  #timer = null;
  #release = () => {}; // gives up the lock by which the worker knows that the tab lives
  #hide = () => this.#hidden();

  constructor(url, protocols, options) {
    this.#options = options;
    this.#dial = [url, protocols];
    if (options.alone) return this.#openAlone();
    try {
      const worker = options.start();
      worker.onerror = () => this.#openAlone();
      this.#port = worker.port;
    } catch {
      return this.#openAlone(); // there are none, or the file is on another origin
    }
    this.#port.onmessage = ({ data }) => this.#receive(data);
    this.#timer = options.clock.setTimeout(() => this.#openAlone(), ANSWER);
    options.host.addEventListener?.("pagehide", this.#hide);
    this.#hold();
  }

  send(text) {
    if (this.#own) this.#own.send(text);
    else this.#port.postMessage({ text });
  }

  close(code, reason) {
    this.readyState = 3;
    if (this.#own) this.#own.close(code, reason);
    else this.#leave();
  }

  /** Dial as soon as this tab holds a lock, which the browser releases if the tab crashes. */
  #hold() {
    const { locks } = this.#options.host.navigator ?? {};
    const [dial, protocols] = this.#dial;
    if (!locks) return this.#port.postMessage({ dial, protocols });
    const lock = `wsgateway ${crypto.randomUUID()}`;
    const held = new Promise((resolve) => (this.#release = resolve));
    const dialled = () => {
      this.#port?.postMessage({ dial, protocols, lock });
      return held;
    };
    locks.request(lock, dialled).catch(() => this.#port?.postMessage({ dial, protocols }));
  }

  #receive({ taken, open, text, closed, alone }) {
    if (this.readyState === 3 || this.#own) return;
    if (taken) this.#stopTimer();
    if (alone && this.readyState === 0) return this.#openAlone();
    if (alone) this.#options.alone = true;
    if (open) {
      this.protocol = SUBPROTOCOL;
      this.readyState = 1;
      this.onopen({});
    }
    if (text !== undefined) this.onmessage({ data: text });
    if (closed) this.#end(...closed);
  }

  /** The page goes, perhaps into the cache for going back: then it connects again. */
  #hidden() {
    this.#end(1001, "the page is hidden");
  }

  #end(code, reason) {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.#leave();
    this.onclose({ code, reason });
  }

  #leave() {
    this.#stopTimer();
    this.#options.host.removeEventListener?.("pagehide", this.#hide);
    this.#port?.postMessage({ close: true });
    this.#port = null;
    this.#release();
  }

  #stopTimer() {
    this.#options.clock.clearTimeout(this.#timer);
    this.#timer = null;
  }

  #openAlone() {
    if (this.readyState !== 0 || this.#own) return;
    this.#leave();
    this.#options.alone = false; // the next attempt may share again
    const own = (this.#own = new this.#options.WebSocket(...this.#dial));
    own.onopen = (event) => {
      this.readyState = own.readyState;
      this.protocol = own.protocol;
      this.onopen(event);
    };
    own.onmessage = (event) => this.onmessage(event);
    own.onerror = (event) => this.onerror(event);
    own.onclose = (event) => {
      this.readyState = 3;
      this.onclose(event);
    };
  }
}

/**
 * The inbox or a topic as a worker holds it for its tabs: the last messages, and up to where each
 * tab has processed them. The gateway hears what all tabs have, so that its window bounds the rest.
 */
class SharedLog {
  topic;
  members = new Map(); // tab -> what it has processed
  epochs = new Set(); // what the gateway has called the log's epoch
  epoch = null; // the last of them
  depth = 0; // how many of the newest messages it holds, if it has fewer than that
  start = 0; // it holds everything after this offset
  end = 0;
  acked = 0; // what the gateway has heard
  entries = []; // {offset, text}
  size = 0; // characters of all
  // Of a topic
  state = "idle"; // not asked for on this connection; or "asking", or "open"
  access = null;
  isDurable = true;
  asked = null; // {id, tab, frame} of the question that waits for an answer
  queue = []; // {tab, frame} of tabs that wait for the same answer

  constructor(topic = null) {
    this.topic = topic;
  }

  reset({ epoch, offset }, depth = 0) {
    Object.assign(this, { epoch, start: offset, end: offset, acked: offset, entries: [], size: 0, depth });
    this.epochs = new Set([epoch]);
    for (const tab of this.members.keys()) this.members.set(tab, offset);
  }

  /** Go on after an answer to *asked*, a position, if the gateway says that nothing is missing. */
  resume(answer, asked, depth = 0) {
    const { epoch, offset, recovered } = answer;
    const isSame = recovered && asked && this.epochs.has(asked.epoch) && this.holds(offset);
    if (!isSame) return this.reset(answer, depth);
    this.epochs.add(epoch);
    this.epoch = epoch;
    this.acked = offset;
  }

  /** Something is missing between the last message and the next: a tab that lacks it must hear it from the gateway. */
  trim() {
    Object.assign(this, { start: this.end + 1, depth: 0, entries: [], size: 0 });
  }

  /** Say whether everything after *offset* is here. */
  holds(offset) {
    return this.start <= offset && offset <= this.end;
  }

  /** Return what a subscribe is to be told: the offset after which it gets messages; null if that is not here. */
  offsetFor({ epoch, offset, since = "new" }) {
    if (epoch !== undefined) return this.epochs.has(epoch) && this.holds(offset) ? offset : null;
    if (since === "new") return this.end;
    if (this.entries.length > since) return this.entries.at(-since - 1).offset;
    const isWhole = since === "all" ? this.depth === Infinity : since <= Math.max(this.entries.length, this.depth);
    return isWhole ? this.start : null;
  }

  /** Say whether another message has this offset: the stream lost its end, and reuses offsets. */
  contradicts(offset, text) {
    const known = offset > this.start && offset <= this.end && this.entries.find((entry) => entry.offset >= offset);
    return Boolean(known) && (known.offset !== offset || known.text !== text);
  }

  /** Add a message; return false if it was here. */
  add(offset, text) {
    if (offset <= this.end) return false;
    this.entries.push({ offset, text });
    this.size += text.length;
    this.end = offset;
    return true;
  }

  /** Return how many messages *tab* has not processed. */
  lag(tab) {
    const offset = this.members.get(tab) ?? this.end;
    let count = 0;
    while (count < this.entries.length && this.entries.at(-count - 1).offset > offset) count += 1;
    return count;
  }

  /**
   * Return the ack to send if all tabs have processed more than the gateway knows, and forget what
   * is old; *logs*: how many share the memory.
   */
  ack(logs) {
    const least = Math.min(...this.members.values());
    const isNews = this.members.size > 0 && least > this.acked;
    if (isNews) this.acked = least;
    const [most, largest] = [Math.min(KEPT, KEPT_OF_ALL / logs), KEPT_SIZE / logs];
    while (this.entries[0]?.offset <= this.acked && (this.entries.length > most || this.size > largest)) {
      const { offset, text } = this.entries.shift();
      Object.assign(this, { start: offset, size: this.size - text.length, depth: 0 });
    }
    return isNews ? ackOf({ processed: least, epoch: this.epoch }, this.topic ?? undefined) : null;
  }
}

/** A tab, as its worker sees it. */
class Tab {
  heard = true; // since the last ping
  ackedAt = 0;
  isWelcome = false;

  constructor(port, { dial, protocols }) {
    this.port = port;
    this.url = dial;
    this.protocols = protocols;
    const { epoch, offset, inbox } = Object.fromEntries(new URL(dial).searchParams);
    this.position = epoch === undefined ? null : { epoch, offset: Number(offset), inbox };
  }

  say(frame) {
    this.port.postMessage({ text: typeof frame === "string" ? frame : JSON.stringify(frame) });
  }
}

/** The one connection of many tabs, in a SharedWorker. Each tab believes that it is its own. */
class SharedConnection {
  #scope;
  #clock;
  #transport = null;
  #monitor;
  #dialler = null; // the tab whose URL was dialled, until the welcome
  #welcome = null; // of this connection
  #user = null; // whose messages the logs hold
  #expires = null; // when the login ends, on our clock
  #renewing = null; // the tab that sent the last token
  #tabs = new Set();
  #inbox = new SharedLog();
  #topics = new Map(); // name -> SharedLog
  #watches = new Map(); // key -> {id, tabs: tab -> its frame, frame: of them, the one that was asked, answer}
  #senders = new Map(); // id of a message -> tabs that wait for its ack
  #ids = 0;
  #prefix = randomPrefix(); // of the ids of its own questions
  #timers = new Map(); // name -> timer

  constructor(scope) {
    this.#scope = scope;
    this.#clock = makeClock(scope);
    this.#monitor = new Monitor(
      this.#clock,
      () => this.#send({ type: "ping" }),
      () => this.#drop(4012, "no sign of life from the gateway"),
    );
  }

  /** Take a tab's port. */
  accept(port) {
    let tab = null;
    port.onmessage = ({ data }) => {
      if (data.dial) this.#join((tab = new Tab(port, data)), data.lock);
      else if (data.close) this.#leave(tab);
      else if (this.#tabs.has(tab)) this.#fromTab(tab, data.text, JSON.parse(data.text));
    };
  }

  #newId() {
    return `${this.#prefix}-tab-${(this.#ids += 1)}`;
  }

  #send(frame) {
    this.#transport?.send(typeof frame === "string" ? frame : JSON.stringify(frame));
  }

  // -- tabs ------------------------------------------------------------------------------

  #join(tab, lock) {
    this.#tabs.add(tab);
    tab.ackedAt = this.#clock.now();
    tab.port.postMessage({ taken: true });
    // Granted when the tab has gone, whatever the reason
    if (lock) this.#scope.navigator?.locks?.request(lock, () => this.#leave(tab));
    if (this.#welcome) return this.#admit(tab);
    if (this.#transport) return;
    this.#dialler = tab;
    const { WebSocket } = this.#scope;
    this.#transport = new Transport(new WebSocket(tab.url, tab.protocols), this.#clock, {
      text: (text) => this.#fromGateway(text),
      closed: (code, reason) => this.#lost(code, reason),
    });
  }

  #leave(tab) {
    if (!this.#tabs.delete(tab)) return;
    tab.port.postMessage({ closed: [1000, ""] });
    this.#inbox.members.delete(tab);
    this.#acknowledge(this.#inbox);
    for (const log of [...this.#topics.values()]) this.#unsubscribe(tab, log);
    for (const key of [...this.#watches.keys()]) this.#unwatch(tab, key);
    if (!this.#tabs.size) this.#drop(1000, "");
  }

  /** Let a tab have a connection of its own: what it needs is not here. */
  #sendAway(tab, code, reason) {
    tab.port.postMessage(tab.isWelcome ? { alone: true, closed: [code, reason] } : { alone: true });
    this.#leave(tab);
  }

  /** Welcome a tab as the gateway would, and give it what it lacks. */
  #admit(tab) {
    const { epoch, acked, start } = this.#inbox;
    const { position } = tab;
    const { inbox } = this.#welcome;
    let answer = { offset: acked, recovered: true };
    if (position === null) {
      if (acked === this.#welcome.offset) {
        answer = { offset: acked, recovered: this.#welcome.recovered, reason: this.#welcome.reason };
      }
    } else if (!this.#inbox.epochs.has(position.epoch) || (position.inbox ?? inbox) !== inbox) {
      answer = { offset: acked, recovered: false, reason: "epoch" };
    } else {
      answer = { offset: position.offset, recovered: true };
    }
    if (!this.#inbox.holds(answer.offset)) return this.#sendAway(tab);
    this.#greet(tab, { ...this.#welcome, epoch, reason: undefined, ...answer });
  }

  #greet(tab, welcome) {
    const left = this.#expires === null ? undefined : Math.max(0, this.#expires - this.#clock.now()) / 1000;
    tab.isWelcome = true;
    tab.port.postMessage({ open: true });
    tab.say({ ...welcome, expires_in: left });
    this.#deliver(tab, this.#inbox, welcome.offset);
  }

  #deliver(tab, log, offset) {
    log.members.set(tab, offset);
    for (const entry of log.entries) if (entry.offset > offset) tab.say(entry.text);
    this.#acknowledge(log);
  }

  #fromTab(tab, text, frame) {
    tab.heard = true;
    switch (frame.type) {
      case "ack": return this.#onAck(tab, frame);
      case "message": return this.#onMessage(tab, text, frame);
      case "subscribe": return this.#subscribe(tab, frame);
      case "unsubscribe":
        tab.say({ type: "unsubscribed", topic: frame.topic });
        return this.#unsubscribe(tab, this.#topics.get(frame.topic));
      case "watch": return this.#watch(tab, frame);
      case "unwatch": return this.#unwatch(tab, this.#keyOf(frame));
      case "pong": return undefined;
      case "ping":
        this.#monitor.probe();
        return tab.say({ type: "pong" });
      case "refresh": this.#renewing = tab;
      default: return this.#send(text);
    }
  }

  #onMessage(tab, text, { id }) {
    if (!this.#senders.has(id)) this.#senders.set(id, new Set());
    this.#senders.get(id).add(tab);
    this.#send(text);
  }

  #onAck(tab, { topic, offset, epoch }) {
    const log = topic === undefined ? this.#inbox : this.#topics.get(topic);
    if (!log?.members.has(tab) || !log.epochs.has(epoch)) return;
    tab.ackedAt = this.#clock.now();
    log.members.set(tab, Math.max(log.members.get(tab), Math.min(offset, log.end)));
    this.#acknowledge(log);
  }

  #acknowledge(log) {
    const ack = log.ack(this.#topics.size + 1);
    if (ack && this.#welcome) this.#send(ack);
  }

  /** Find tabs that are gone, and one that holds up the others. */
  #check() {
    const half = this.#welcome.window / 2;
    const logs = [this.#inbox, ...this.#topics.values()].filter(({ end, acked }) => end > acked);
    for (const tab of [...this.#tabs]) {
      if (this.#tabs.size < 2 || this.#clock.now() - tab.ackedAt < SLOW) continue;
      const lag = logs.reduce((sum, log) => sum + log.lag(tab), 0);
      if (lag >= half) this.#sendAway(tab, 4008, "too slow for a shared connection");
    }
    this.#later("check", SLOW);
  }

  #beat() {
    for (const tab of [...this.#tabs]) {
      if (!tab.heard) {
        this.#leave(tab);
        continue;
      }
      tab.heard = false;
      tab.say({ type: "ping" });
    }
    if (this.#welcome) this.#later("beat", this.#welcome.ping * 1000);
  }

  #later(what, delay) {
    this.#timers.set(what, this.#clock.setTimeout(() => (what === "beat" ? this.#beat() : this.#check()), delay));
  }

  // -- topics ----------------------------------------------------------------------------

  #subscribe(tab, frame) {
    if (!this.#topics.has(frame.topic)) this.#topics.set(frame.topic, new SharedLog(frame.topic));
    const log = this.#topics.get(frame.topic);
    if (log.state === "open") return this.#admitTo(log, tab, frame);
    log.queue.push({ tab, frame });
    if (log.state === "idle") this.#askFor(log);
  }

  /** Ask the gateway what the first tab in the queue asked. */
  #askFor(log) {
    log.asked = { ...log.queue.shift(), id: this.#newId() };
    log.state = "asking";
    this.#send({ ...log.asked.frame, id: log.asked.id });
  }

  #admitTo(log, tab, { id, epoch, offset, since }) {
    const { topic, access } = log;
    if (!log.isDurable) {
      log.members.set(tab, 0);
      return tab.say({ type: "subscribed", id, topic, durable: false, access });
    }
    const start = log.offsetFor({ epoch, offset, since });
    if (start === null) return this.#sendAway(tab, 4001, `${topic} needs another start than in other tabs`);
    const news = epoch === undefined ? { recovered: false, reason: "new" } : { recovered: true };
    tab.say({ type: "subscribed", id, topic, epoch: log.epoch, offset: start, ...news, access });
    this.#deliver(tab, log, start);
  }

  #onSubscribed(text, frame) {
    const log = this.#topics.get(frame.topic);
    if (!log || (frame.id ?? null) !== (log.asked?.id ?? null)) return;
    Object.assign(log, { access: frame.access, isDurable: frame.durable !== false });
    if (frame.id === undefined) return this.#changed(log, text, frame);
    const { tab, frame: question } = log.asked;
    const { since } = question;
    const depth = since === "all" ? Infinity : typeof since === "number" ? since : 0;
    log.state = "open";
    log.asked = null;
    if (log.isDurable) log.resume(frame, question.epoch === undefined ? null : question, depth);
    if (tab) {
      tab.say({ ...frame, id: question.id });
      this.#deliver(tab, log, frame.offset ?? 0);
    }
    for (const waiting of log.queue.splice(0)) this.#admitTo(log, waiting.tab, waiting.frame);
    if (!log.members.size) this.#end(log);
  }

  /** The stream of a topic, or the right, has changed. */
  #changed(log, text, frame) {
    if (log.state !== "open") return;
    if (log.isDurable && (frame.epoch !== log.epoch || frame.reason === "ahead")) log.reset(frame);
    else if (frame.recovered === false) log.trim();
    for (const tab of log.members.keys()) tab.say(text);
  }

  #onUnsubscribed(text, frame) {
    const log = this.#topics.get(frame.topic);
    if (!log || (frame.id ?? null) !== (log.asked?.id ?? null)) return;
    if (frame.id === undefined) {
      if (log.state !== "open") return;
      this.#topics.delete(log.topic);
      for (const tab of log.members.keys()) tab.say(text);
      return;
    }
    this.#refused(log, frame);
  }

  /** The first question was refused; another tab's token may do better. */
  #refused(log, frame) {
    const { tab, frame: question } = log.asked;
    tab?.say({ ...frame, id: question.id });
    log.asked = null;
    if (log.queue.length) this.#askFor(log);
    else this.#topics.delete(log.topic);
  }

  /** A tab ends its subscription, or is gone. */
  #unsubscribe(tab, log) {
    if (!log) return;
    log.members.delete(tab);
    log.queue = log.queue.filter((waiting) => waiting.tab !== tab);
    if (log.asked?.tab === tab) log.asked.tab = null;
    if (log.state === "open" && !log.members.size) this.#end(log);
    else this.#acknowledge(log);
  }

  #end(log) {
    this.#topics.delete(log.topic);
    this.#send({ type: "unsubscribe", topic: log.topic });
  }

  // -- presence --------------------------------------------------------------------------

  /** Name a user, or a topic. */
  #keyOf({ topic, service = this.#welcome.service, user }) {
    return JSON.stringify(topic === undefined ? [service, user] : [topic]);
  }

  #watch(tab, frame) {
    const key = this.#keyOf(frame);
    const known = this.#watches.get(key);
    const watch = known ?? { tabs: new Map(), answer: null };
    watch.tabs.set(tab, frame);
    if (watch.answer) return tab.say({ ...watch.answer, id: frame.id });
    if (known) return undefined;
    this.#watches.set(key, watch);
    this.#askToWatch(watch, frame);
  }

  #askToWatch(watch, frame) {
    Object.assign(watch, { id: this.#newId(), frame });
    this.#send({ ...frame, id: watch.id });
  }

  #unwatch(tab, key) {
    const watch = this.#watches.get(key);
    if (!watch?.tabs.delete(tab) || watch.tabs.size) return;
    this.#watches.delete(key);
    this.#send({ ...watch.frame, type: "unwatch", id: undefined, token: undefined });
  }

  #onWatching(frame) {
    const watch = this.#watches.get(this.#keyOf(frame));
    if (watch?.id !== frame.id) return;
    watch.answer = frame;
    for (const [tab, { id }] of watch.tabs) tab.say({ ...frame, id });
  }

  #onPresence(text, frame) {
    const watch = this.#watches.get(this.#keyOf(frame));
    if (!watch?.answer) return;
    const { topic, online } = frame;
    Object.assign(watch.answer, topic === undefined ? { online } : readersAfter(watch.answer, frame));
    for (const tab of watch.tabs.keys()) tab.say(text);
  }

  #onUnwatched(text, frame) {
    const key = this.#keyOf(frame);
    const watch = this.#watches.get(key);
    if (!watch?.answer) return;
    this.#watches.delete(key);
    for (const tab of watch.tabs.keys()) tab.say(text);
  }

  /** A watch was refused; another tab's token may do better. */
  #onWatchRefused(key, watch, frame) {
    const { token } = watch.frame;
    for (const [tab, question] of [...watch.tabs]) {
      if (question.token !== token) continue;
      tab.say({ ...frame, id: question.id });
      watch.tabs.delete(tab);
    }
    const [next] = watch.tabs.values();
    if (next) this.#askToWatch(watch, next);
    else this.#watches.delete(key);
  }

  // -- the gateway -----------------------------------------------------------------------

  #fromGateway(text) {
    this.#monitor.heard();
    let frame;
    try {
      frame = parse(text);
    } catch {
      return this.#drop(4500, "the gateway sent a malformed frame");
    }
    switch (frame.type) {
      case "message": return this.#onStored(text, frame);
      case "ack": return this.#answer(frame.id, text);
      case "error": return this.#onError(text, frame);
      case "ping": return this.#send({ type: "pong" });
      case "pong": return undefined;
      case "welcome": return this.#welcome ? this.#onChange(text, frame) : this.#onWelcome(frame);
      case "subscribed": return this.#onSubscribed(text, frame);
      case "unsubscribed": return this.#onUnsubscribed(text, frame);
      case "watching": return this.#onWatching(frame);
      case "presence": return this.#onPresence(text, frame);
      case "unwatched": return this.#onUnwatched(text, frame);
      case "refreshed":
        this.#expiresIn(frame.expires_in);
        return this.#tell(text);
      default: return this.#tell(text);
    }
  }

  #tell(text) {
    for (const tab of this.#tabs) if (tab.isWelcome) tab.say(text);
  }

  #expiresIn(seconds) {
    this.#expires = seconds == null ? null : this.#clock.now() + seconds * 1000;
  }

  #onWelcome(frame) {
    const user = JSON.stringify([frame.service, frame.user]);
    if (user !== this.#user) {
      this.#inbox = new SharedLog();
      this.#topics.clear();
    }
    this.#user = user;
    this.#welcome = frame;
    this.#expiresIn(frame.expires_in);
    this.#inbox.resume(frame, this.#dialler?.position);
    this.#monitor.start(frame.ping * 1000, DEFAULTS.pingTimeout);
    this.#later("beat", frame.ping * 1000);
    this.#later("check", SLOW);
    const dialler = this.#dialler;
    this.#dialler = null;
    if (this.#tabs.has(dialler)) this.#greet(dialler, frame);
    for (const tab of [...this.#tabs]) if (!tab.isWelcome) this.#admit(tab);
  }

  /** The inbox's stream has changed. */
  #onChange(text, frame) {
    const isTrimmed = frame.epoch === this.#inbox.epoch && frame.reason === "trimmed";
    if (isTrimmed) this.#inbox.trim();
    else this.#inbox.reset(frame);
    this.#welcome = frame;
    this.#tell(text);
  }

  #onStored(text, { topic, offset }) {
    const log = topic == null ? this.#inbox : this.#topics.get(topic);
    if (!log || (topic != null && log.state !== "open")) return;
    if (offset !== undefined) {
      if (log.contradicts(offset, text)) {
        log.epochs.clear(); // of what it holds, nothing is certain; the gateway knows what the tabs lack
        return this.#drop(4015, "the stream lost its end");
      }
      if (!log.add(offset, text)) return;
    }
    for (const tab of log.members.keys()) tab.say(text);
  }

  #answer(id, text) {
    for (const tab of this.#senders.get(id) ?? []) tab.say(text);
    this.#senders.delete(id);
  }

  #onError(text, frame) {
    const { id = null } = frame;
    if (id === null && frame.code === "unauthorized") return this.#renewing?.say(text);
    if (this.#senders.has(id)) return this.#answer(id, text);
    for (const log of id === null ? [] : this.#topics.values()) {
      if (log.asked?.id === id) return this.#refused(log, frame);
    }
    for (const [key, watch] of id === null ? [] : this.#watches) {
      if (watch.id === id) return this.#onWatchRefused(key, watch, frame);
    }
    this.#tell(text);
  }

  #drop(code, reason) {
    this.#transport?.drop(1000, "");
    this.#lost(code, reason);
  }

  /** The connection has ended: so have those of the tabs, whose logs wait for the next one. */
  #lost(code, reason) {
    this.#monitor.stop();
    for (const timer of this.#timers.values()) this.#clock.clearTimeout(timer);
    const tabs = [...this.#tabs];
    this.#transport = this.#welcome = this.#dialler = this.#renewing = null;
    for (const state of [this.#tabs, this.#watches, this.#senders, this.#inbox.members]) state.clear();
    for (const [name, log] of this.#topics) {
      if (log.state === "idle") this.#topics.delete(name); // nobody asked for it again
      log.members.clear();
      Object.assign(log, { state: "idle", asked: null, queue: [] });
    }
    for (const tab of tabs) tab.port.postMessage({ closed: [code, reason] });
  }
}

/**
 * Be the worker that holds the connection of all tabs. This file does so by itself where it is the
 * worker's script; a worker of a bundler calls it.
 */
export function serveTabs(scope = globalThis) {
  const connection = new SharedConnection(scope);
  scope.onconnect = ({ ports: [port] }) => connection.accept(port);
}

// == what the application holds ==============================================================

/** What `send` rejects with, and what "error" listeners get. */
export class GatewayError extends Error {
  /**
   * @param {string} code One word, see docs/reference/protocol.md and docs/reference/client-javascript.md.
   * @param {string} message What happened.
   * @param {boolean} temporary Whether it makes sense to send the same message again.
   */
  constructor(code, message, temporary, { id = null, closeCode = null } = {}) {
    super(message);
    this.name = "GatewayError";
    this.code = code;
    this.temporary = temporary;
    this.id = id;
    this.closeCode = closeCode;
  }
}

function tooBig(id, size, limit) {
  const text = `message of ${size} bytes exceeds the gateway's limit of ${limit} bytes`;
  return new GatewayError("too_big", text, false, { id });
}

/** Return the fields of a trace context, as they are part of a frame; empty without one. */
function trace(traceparent, tracestate) {
  const fields = Object.entries({ traceparent, tracestate }).filter(([, value]) => value);
  return fields.map(([name, value]) => `"${name}":${JSON.stringify(String(value))},`).join("");
}

/** What a message to a topic that has ended rejects with. */
function endOf({ code, message, temporary, closeCode }, id) {
  return new GatewayError(code, message, temporary, { id, closeCode });
}

/** A promise, and what settles it; nobody has to handle its rejection. */
function deferred() {
  const result = {};
  result.promise = new Promise((resolve, reject) => Object.assign(result, { resolve, reject }));
  result.promise.catch(() => {}); // there is an "error" event, too
  return result;
}

function aborted(id) {
  return new GatewayError("aborted", "aborted; it may have been stored", true, { id });
}

/** One message of the inbox, or of a topic. */
export class Message {
  #onAck;

  constructor({ offset = null, time = null, data, topic = null, from = null, reply_to = null }, onAck) {
    this.offset = offset; // null in an ephemeral topic
    this.time = time === null ? null : new Date(time);
    this.data = data; // string, or Uint8Array for a binary frame
    this.topic = topic; // null: the inbox
    this.from = from; // {service, user}, if the gateway vouches for who wrote it to the topic
    this.replyTo = reply_to; // id of the request that it answers
    this.#onAck = onAck;
  }

  /** Parse the payload as JSON. */
  json() {
    const text = typeof this.data === "string" ? this.data : new TextDecoder().decode(this.data);
    return JSON.parse(text);
  }

  /** Acknowledge this message and all before it; only needed with `autoAck: false`. */
  ack() {
    this.#onAck();
  }
}

/** Results by the id of a message; several callers may wait for the same one. */
class Calls {
  #clock;
  #what;
  #left;
  #callers = new Map(); // id -> set of {resolve, reject}

  /** *what* names the timeout's error; *left* is called with an id when its last caller gives up. */
  constructor(clock, what, left) {
    this.#clock = clock;
    this.#what = what;
    this.#left = left;
  }

  get size() {
    return this.#callers.size;
  }

  has(id) {
    return this.#callers.has(id);
  }

  /** Return a promise of the result, with a *timeout* and a *signal* of its own. */
  join(id, { timeout, signal }) {
    if (!this.has(id)) this.#callers.set(id, new Set());
    return new Promise((resolve, reject) => {
      let timer = null;
      const ended = (settle) => (value) => {
        this.#clock.clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        settle(value);
      };
      const caller = { resolve: ended(resolve), reject: ended(reject) };
      const abort = () => this.#giveUp(id, caller, aborted(id));
      this.#callers.get(id).add(caller);
      signal?.addEventListener("abort", abort);
      if (timeout == null) return;
      const text = `${this.#what} within ${timeout} ms; it may have been stored`;
      const late = () => this.#giveUp(id, caller, new GatewayError("timeout", text, true, { id }));
      timer = this.#clock.setTimeout(late, timeout);
    });
  }

  resolve(id, value) {
    for (const caller of this.#take(id)) caller.resolve(value);
  }

  reject(id, error) {
    for (const caller of this.#take(id)) caller.reject(error);
  }

  /** Reject every call with what *errorOf* returns for its id. */
  rejectAll(errorOf) {
    for (const id of [...this.#callers.keys()]) this.reject(id, errorOf(id));
  }

  #take(id) {
    const callers = this.#callers.get(id) ?? [];
    this.#callers.delete(id);
    return callers;
  }

  #giveUp(id, caller, error) {
    const callers = this.#callers.get(id);
    callers.delete(caller);
    caller.reject(error);
    if (callers.size) return;
    this.#callers.delete(id);
    this.#left(id);
  }
}

/** `for await (const message of client)`: a message counts as processed when the loop asks for the next. */
class MessageLoop {
  #queue; // messages that the loop has not received
  #last; // {message, autoAck}: what a loop received last, this one or an earlier one
  #left;
  #waiting = []; // resolve functions of calls that found no message
  #ended = false;
  #failure = null; // why it ended; the loop throws it once

  /** *left* is called with the rest of the messages if the loop breaks. */
  constructor(messages, last, left) {
    this.#queue = messages;
    this.#last = last;
    this.#left = left;
  }

  push(message) {
    const resolve = this.#waiting.shift();
    if (resolve) resolve(this.#hand(message));
    else this.#queue.push(message);
  }

  /** End the loop after the messages that it has; *error* is null if the application closed the client. */
  end(error) {
    this.#ended = true;
    this.#failure = error;
    for (const resolve of this.#waiting.splice(0)) resolve(this.#finish());
  }

  async next() {
    this.#last.message?.ack();
    this.#last.message = null;
    if (this.#queue.length) return this.#hand(this.#queue.shift());
    if (this.#ended) return this.#finish();
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  async return() {
    this.end(null);
    this.#left(this.#queue.splice(0));
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  #hand(message) {
    if (this.#last.autoAck) this.#last.message = message;
    return { done: false, value: message };
  }

  async #finish() {
    const failure = this.#failure;
    this.#failure = null;
    if (failure) throw failure;
    return { done: true, value: undefined };
  }
}

class Emitter {
  #listeners = new Map();

  /** Call *listener* at each event; return a function that removes it. */
  on(name, listener) {
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(listener);
    return () => this.off(name, listener);
  }

  off(name, listener) {
    this.#listeners.get(name)?.delete(listener);
  }

  once(name, listener) {
    const off = this.on(name, (...args) => {
      off();
      listener(...args);
    });
    return off;
  }

  listens(name) {
    return (this.#listeners.get(name)?.size ?? 0) > 0;
  }

  emit(name, ...args) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(...args);
      } catch (error) {
        // Like EventTarget: report it, and call the others
        if (globalThis.reportError) globalThis.reportError(error);
        else queueMicrotask(() => { throw error; });
      }
    }
  }
}

/** Hands messages to "message" listeners and to a loop; keeps those that come before either. */
class Handover {
  #events;
  #autoAck;
  #backlog = []; // the window bounds it
  #loop = null;
  #last; // {message, autoAck}: what a loop received last; its next call, or the next loop's, acknowledges it

  constructor(events, autoAck) {
    this.#events = events;
    this.#autoAck = autoAck;
    this.#last = { message: null, autoAck };
  }

  push(message) {
    if (this.#loop || this.#events.listens("message")) this.#deliver(message);
    else this.#backlog.push(message);
  }

  /** Hand what waits to listeners that were added in this turn, all of them. */
  listened() {
    queueMicrotask(() => this.#release());
  }

  /** Forget what waits. */
  clear() {
    this.#backlog = [];
  }

  /** End the loop; *error* is null if the application did. */
  end(error) {
    const loop = this.#loop;
    this.#loop = null;
    loop?.end(error);
  }

  /** Return a loop; one that `ends` at once if the owner is closed. */
  read(ends) {
    if (this.#loop) throw new Error("another loop reads this already");
    const loop = new MessageLoop(this.#backlog.splice(0), this.#last, (messages) => {
      // The rest waits for the next loop, or for listeners
      if (this.#loop === loop) this.#loop = null;
      this.#backlog.unshift(...messages);
      this.#release();
    });
    if (ends) loop.end(null);
    else this.#loop = loop;
    return loop;
  }

  #deliver(message) {
    this.#events.emit("message", message);
    if (this.#loop) this.#loop.push(message);
    else if (this.#autoAck) message.ack();
  }

  #release() {
    while (this.#backlog.length && this.#events.listens("message")) this.#deliver(this.#backlog.shift());
  }
}

/**
 * A subscription to a topic; `client.topic(name)` makes it.
 *
 * States: "waiting" (for the connection, or the gateway's answer), "subscribed", "ended".
 */
export class Topic {
  #entry;
  #calls;

  /** *calls*: what the client does for it. */
  constructor(entry, calls) {
    this.#entry = entry;
    this.#calls = calls;
  }

  get name() {
    return this.#entry.subscription.name;
  }

  get state() {
    return this.#entry.subscription.state;
  }

  /** "read" or "write" (which includes reading); null before the gateway's answer. */
  get access() {
    return this.#entry.subscription.access;
  }

  /** `{epoch, offset}` up to which messages were processed; null if the gateway has not said yet. */
  get position() {
    return this.#entry.subscription.reader.position;
  }

  /** `{users, sockets, complete}`, as last heard by `watch`; null before, and without it. */
  get readers() {
    return this.#entry.watch?.readers ?? null;
  }

  /** Resolves when the gateway has subscribed the client; rejects if it refuses. */
  get ready() {
    return this.#entry.ready.promise;
  }

  on(name, listener) {
    const off = this.#entry.events.on(name, listener);
    if (name === "message") this.#entry.handover.listened();
    return off;
  }

  once(name, listener) {
    const off = this.#entry.events.once(name, listener);
    if (name === "message") this.#entry.handover.listened();
    return off;
  }

  off(name, listener) {
    this.#entry.events.off(name, listener);
  }

  /** Write to the topic; see `WsGateway.send`. Waits for the subscription. */
  send(data, options) {
    return this.#calls.send(data, options);
  }

  /** The same, and wait for the service's reply; see `WsGateway.request`. */
  request(data, options) {
    return this.#calls.request(data, options);
  }

  /**
   * Watch who reads the topic, across reconnects. Resolves with `readers`; each change, the first
   * list included, is a "readers" event. Rejects with a `GatewayError` if that is not allowed.
   */
  watch() {
    return this.#calls.watch();
  }

  /** Do not watch any more who reads the topic. Idempotent. */
  unwatch() {
    this.#calls.unwatch();
  }

  /** End the subscription; what is not confirmed rejects with code "ended". Idempotent. */
  close() {
    this.#calls.close();
  }

  /** `for await (const message of topic)`, one at a time; see `MessageLoop`. */
  [Symbol.asyncIterator]() {
    return this.#entry.handover.read(this.state === "ended");
  }
}

/** Call `hurry`, `hide` or `offline` as the page is shown, hidden or without network; return a function that stops it. */
function watchPage(host, { hurry, hide, offline }) {
  const { document } = host;
  const visible = () => (document.visibilityState === "visible" ? hurry() : hide());
  const hooks = [
    [host, "online", hurry],
    [host, "offline", offline],
    [host, "pageshow", (event) => { if (event.persisted) hurry(); }],
    [host, "pagehide", hide],
  ];
  if (document?.addEventListener) hooks.push([document, "visibilitychange", visible]);
  for (const [target, name, listener] of hooks) target.addEventListener(name, listener);
  return () => {
    for (const [target, name, listener] of hooks) target.removeEventListener(name, listener);
  };
}

// == the client ==============================================================================

/**
 * A durable connection.
 *
 *     const client = new WsGateway("/ws/orders/ann/");
 *     client.on("message", (message) => console.log(message.offset, message.data));
 *     client.connect();
 *     await client.send({ buy: 3 });   // resolves when it is stored
 *
 * States: "idle", "connecting", "open", "waiting" (for the next attempt), "offline" (waiting, and
 * the browser reports no network), "closed".
 */
export class WsGateway {
  #url;
  #options;
  #host;
  #clock;
  #events = new Emitter();
  #reader;
  #handover;
  #outbox;
  #sends; // calls that wait for a confirmation
  #requests; // calls that wait for a reply
  #topics = new Map(); // name -> {subscription, events, handover, topic, …}, see `topic`
  #unasked = new Set(); // those of them that must be asked for on this connection
  #questions = 0;
  // Ids must differ from those of every other page load: known ids are stored only once
  #prefix = randomPrefix();
  #watches = new Watches(this.#prefix);
  #watching; // calls that wait for the answer to a watch, of a user or a topic
  #backoff;
  #reconnectAfter = null; // ms, the delay that `closing` asked for on this connection
  #monitor;
  #sharing; // what a TabSocket needs; null without
  #transport = null;
  #state = "idle";
  #welcome = null;
  #timer = null; // of the next attempt, or the handshake's timeout
  #ackTimer = null;
  #unacked = new Map(); // reader -> messages processed since its last acknowledgement
  #openedAt = 0;
  #attempt = 0; // number of the connection attempt; a token that comes late is dropped
  #token = null;
  #reopened = false; // connect() was called after a close: the client may become another user's
  #stale = true; // ask for the token before the next attempt
  #renewals; // delays until the next token, after one that the gateway did not accept
  #renewalTimer = null;
  #refreshed = false; // asked for another token since the last welcome
  #opening = null; // {promise, resolve, reject} of connect()
  #ids = 0;
  #unhook = null;

  constructor(url, options = {}) {
    this.#options = { ...DEFAULTS, ...options };
    this.#url = url;
    this.#host = this.#options.host;
    this.#clock = makeClock(this.#host);
    this.#sharing = this.#share(this.#options.shared);
    this.#reader = new Reader(this.#options.position);
    this.#handover = new Handover(this.#events, this.#options.autoAck);
    this.#outbox = new Outbox(this.#options.sendWindow);
    this.#sends = new Calls(this.#clock, "not confirmed", (id) => this.#giveUp(id));
    this.#requests = new Calls(this.#clock, "no reply", (id) => this.#giveUp(id));
    this.#watching = new Calls(this.#clock, "no answer", () => {});
    this.#backoff = new Backoff(this.#options.backoff, this.#options.random);
    this.#renewals = new Backoff(this.#options.backoff, this.#options.random);
    this.#monitor = new Monitor(
      this.#clock,
      () => this.#transport?.send('{"type":"ping"}'),
      () => this.#lost(4012, "no sign of life from the gateway"),
    );
  }

  /** One of "idle", "connecting", "open", "waiting", "offline", "closed". */
  get state() {
    return this.#state;
  }

  /** How many messages are queued or sent, and not confirmed. */
  get pending() {
    return this.#outbox.size;
  }

  /** `{epoch, offset, inbox}` up to which messages were processed; null before the first connection. */
  get position() {
    return this.#reader.position;
  }

  /** The gateway's last welcome: connection, service, user, device, …; null before the first. */
  get welcome() {
    return this.#welcome;
  }

  on(name, listener) {
    const off = this.#events.on(name, listener);
    if (name === "message") this.#handover.listened();
    return off;
  }

  once(name, listener) {
    const off = this.#events.once(name, listener);
    if (name === "message") this.#handover.listened();
    return off;
  }

  off(name, listener) {
    this.#events.off(name, listener);
  }

  // -- life cycle ------------------------------------------------------------------------

  /** Connect and stay connected. The promise resolves at the first welcome. Idempotent. */
  connect() {
    if (this.#state === "open") return Promise.resolve();
    if (!this.#opening) {
      this.#opening = deferred();
    }
    const { promise } = this.#opening;
    if (this.#state === "idle" || this.#state === "closed") {
      this.#stale = this.#reopened = true;
      this.#refreshed = false;
      this.#backoff.reset();
      if (this.#host.addEventListener) this.#unhook ??= watchPage(this.#host, this.#page);
      this.#open();
    }
    return promise;
  }

  /** Close until the next `connect`; unconfirmed sends reject with code "closed". */
  close(code = 1000, reason = "") {
    if (this.#state === "closed") return;
    this.#sendAck();
    this.#dropTransport(code, reason);
    this.#stop(new GatewayError("closed", "the client was closed", true), { code, reason }, true);
  }

  async #open() {
    const attempt = (this.#attempt += 1);
    this.#clock.clearTimeout(this.#timer);
    this.#timer = null;
    this.#setState("connecting", { attempt: this.#backoff.attempt });
    try {
      if (this.#stale) await this.#authenticate();
    } catch (error) {
      if (attempt !== this.#attempt) return;
      if (error?.temporary === false) {
        this.#stop(error, { code: NOT_AUTHENTICATED, reason: error.message });
      } else {
        this.#events.emit("error", error);
        this.#lost(1006, "no token");
      }
      return;
    }
    if (attempt === this.#attempt) this.#dial();
  }

  /** Ask for the token; after a refusal, first let the application renew its cookie. */
  async #authenticate() {
    const { token, refresh } = this.#options;
    if (this.#refreshed) await refresh?.();
    this.#token = typeof token === "function" ? await token() : token;
    this.#stale = false;
  }

  /** Replace the token before the login ends in so many *seconds*; null or undefined: it does not. */
  #renewBefore(seconds) {
    this.#renewals.reset();
    this.#clock.clearTimeout(this.#renewalTimer);
    this.#renewalTimer = null;
    if (seconds == null) return;
    // Spread over the clients of one moment, and the tabs of one worker
    const delay = seconds * 1000 * (0.9 - 0.2 * this.#options.random());
    this.#renewIn(Math.min(Math.max(delay, SOONEST), LONGEST));
  }

  #renewIn(delay) {
    const { token, refreshToken = typeof token === "function" ? token : undefined } = this.#options;
    if (!refreshToken) return;
    this.#clock.clearTimeout(this.#renewalTimer);
    this.#renewalTimer = this.#clock.setTimeout(() => this.#renew(refreshToken), delay);
  }

  /** Hand a new token to the gateway; if there is none, the old one lasts a while. */
  async #renew(refreshToken) {
    const transport = this.#transport;
    let token;
    try {
      token = await refreshToken();
    } catch (error) {
      if (transport !== this.#transport) return;
      this.#events.emit("error", error);
      if (error?.temporary !== false) this.#renewIn(this.#renewals.next());
      return;
    }
    if (transport !== this.#transport || transport === null || !token) return;
    if (this.#options.token) this.#token = token;
    transport.send(JSON.stringify({ type: "refresh", token }));
  }

  #dial() {
    this.#reader.connecting();
    this.#outbox.connecting();
    this.#watches.connecting();
    this.#unacked.clear();
    try {
      this.#transport = new Transport(this.#newSocket(), this.#clock, {
        text: (text) => this.#receive(text),
        closed: (code, reason) => this.#lost(code, reason),
      });
    } catch (error) {
      this.#stop(error, { code: 4500, reason: error.message }); // no URL, no WebSocket
      return;
    }
    const late = () => this.#lost(1006, "no welcome in time");
    this.#timer = this.#clock.setTimeout(late, this.#options.connectTimeout);
  }

  /** Return what a `TabSocket` needs; null if this client's tab has a connection of its own. */
  #share(shared) {
    if (shared == null) return null;
    const { key, worker } = typeof shared === "string" ? { key: shared } : shared;
    if (!isText(key) || !key) throw new TypeError("shared must be a text that differs between users, such as their id");
    const start = () => {
      const name = JSON.stringify(["wsgateway", VERSION, key, this.#base().href, this.#options.device ?? ""]);
      return worker ? worker(name) : new this.#host.SharedWorker(import.meta.url, { type: "module", name });
    };
    const WebSocket = this.#options.WebSocket ?? this.#host.WebSocket;
    return { start, WebSocket, host: this.#host, clock: this.#clock, alone: false };
  }

  #newSocket() {
    const [url, protocols] = [this.#address(), [SUBPROTOCOL]];
    // Where access logs do not keep it, and a browser may set it
    if (this.#token && !this.#options.tokenParameter) protocols.push(tokenProtocol(this.#token));
    if (this.#sharing) return new TabSocket(url, protocols, this.#sharing);
    const WebSocket = this.#options.WebSocket ?? this.#host.WebSocket;
    return new WebSocket(url, protocols);
  }

  #base() {
    const url = new URL(this.#url, this.#host.location?.href);
    url.protocol = url.protocol.replace(/^http/, "ws");
    url.hash = "";
    return url;
  }

  /** Return the URL to connect to: with device and position. */
  #address() {
    const { device, tokenParameter } = this.#options;
    const url = this.#base();
    if (this.#token && tokenParameter) url.searchParams.set(tokenParameter, this.#token);
    if (device) url.searchParams.set("device", device);
    for (const [name, value] of Object.entries(this.#reader.position ?? {})) url.searchParams.set(name, value);
    return url.href;
  }

  #setState(state, detail = {}) {
    if (state === this.#state) return;
    this.#state = state;
    this.#events.emit("state", state, detail);
  }

  #dropTransport(code, reason) {
    this.#monitor.stop();
    this.#clock.clearTimeout(this.#timer);
    this.#clock.clearTimeout(this.#ackTimer);
    this.#clock.clearTimeout(this.#renewalTimer);
    this.#timer = this.#ackTimer = this.#renewalTimer = this.#reconnectAfter = null;
    const transport = this.#transport;
    this.#transport = null;
    // Browsers let a page close with 1000 and 3000-4999 only.
    transport?.drop(code === 1000 || code >= 3000 ? code : 1000, reason);
  }

  /** The connection ended, or could not be made. */
  #lost(code, reason) {
    const wasOpen = this.#state === "open";
    const after = this.#reconnectAfter;
    this.#attempt += 1;
    this.#dropTransport(1000, "");
    this.#unasked.clear(); // in the order in which the application asked
    for (const entry of this.#topics.values()) {
      entry.watch?.connecting();
      this.#ask(entry);
    }
    if (wasOpen && this.#clock.now() - this.#openedAt >= STABLE) this.#backoff.reset();
    // A browser does not say why a handshake failed: it may have been the token
    if (!wasOpen || code === CREDENTIALS_CHANGED) this.#stale = true;
    const { token, refresh } = this.#options;
    let again = shouldReconnect(code);
    if (code === NOT_AUTHENTICATED && !this.#refreshed && (refresh || typeof token === "function")) {
      again = this.#refreshed = this.#stale = true;
    }
    if (!again) {
      const text = `the gateway closed the connection: ${code} ${reason}`.trim();
      this.#stop(new GatewayError("closed", text, false, { closeCode: code }), { code, reason });
      return;
    }
    const delay = after ?? this.#backoff.next();
    this.#timer = this.#clock.setTimeout(() => this.#open(), delay);
    const offline = this.#host.navigator?.onLine === false;
    this.#setState(offline ? "offline" : "waiting", { code, reason, delay, attempt: this.#backoff.attempt });
  }

  #stop(error, detail, own = false) {
    this.#attempt += 1;
    this.#dropTransport(1000, "");
    this.#unhook?.();
    this.#unhook = null;
    // Clean up first: a listener may call connect() again
    this.#outbox.clear();
    const closed = (id) => new GatewayError("closed", error.message, true, { id, closeCode: detail.code });
    this.#sends.rejectAll(closed);
    this.#requests.rejectAll(closed);
    this.#watches.clear();
    this.#watching.rejectAll(closed);
    for (const entry of [...this.#topics.values()]) this.#endTopic(entry, error, own);
    const opening = this.#opening;
    this.#opening = null;
    this.#setState("closed", detail);
    opening?.reject(error);
    this.#handover.end(own ? null : error);
    if (!own) this.#events.emit("error", error);
  }

  #page = {
    hurry: () => this.#hurry(),
    hide: () => this.#sendAck(),
    offline: () => {
      if (this.#state === "waiting") this.#setState("offline");
      else this.#monitor.probe();
    },
  };

  /** The page is shown, or the network is back: do not wait for a timer. */
  #hurry() {
    if (this.#state === "open") {
      this.#monitor.probe();
    } else if (this.#state === "waiting" || this.#state === "offline") {
      this.#backoff.reset();
      this.#open();
    }
  }

  // -- from the gateway ------------------------------------------------------------------

  #receive(text) {
    let frame;
    try {
      frame = parse(text);
    } catch {
      return this.#lost(4500, "the gateway sent a malformed frame");
    }
    if (this.#state !== "open" && AFTER_WELCOME.has(frame.type)) {
      return this.#lost(4500, "the gateway did not begin with a welcome");
    }
    this.#monitor.heard();
    switch (frame.type) {
      case "message": return this.#onMessage(frame);
      case "ack": return this.#onAck(frame);
      case "error": return this.#onError(frame);
      case "ping": return this.#transport?.send('{"type":"pong"}');
      case "welcome": return this.#onWelcome(frame);
      case "subscribed": return this.#onSubscribed(frame);
      case "unsubscribed": return this.#onUnsubscribed(frame);
      case "watching": return this.#onPresence(frame);
      case "presence": return this.#onPresence({ ...frame, id: undefined });
      case "unwatched": return this.#onUnwatched(frame);
      case "refreshed": return this.#renewBefore(frame.expires_in);
      case "closing": return this.#onClosing(frame);
      default: // pong, and the types of later versions
    }
  }

  /** The gateway is about to close, and spreads the reconnects of its clients. */
  #onClosing({ reconnect_after: after }) {
    this.#reconnectAfter = after * 1000;
  }

  #onWelcome(frame) {
    const { epoch, offset, recovered, reason = null, max_message_size: limit } = frame;
    const before = this.#welcome ?? frame;
    if (frame.user !== before.user || frame.service !== before.service) {
      if (!this.#reopened) return this.#anotherUser(before, frame);
      this.#handover.clear(); // the other user's
    }
    this.#reopened = false;
    // Queued before the limit was known
    for (const { id, size } of this.#outbox.largerThan(limit)) this.#fail(id, tooBig(id, size, limit));
    if (this.#reader.welcome(frame)) this.#unacked.delete(this.#reader);
    this.#welcome = frame;
    if (this.#state !== "open") {
      this.#clock.clearTimeout(this.#timer);
      this.#timer = null;
      this.#refreshed = false;
      this.#openedAt = this.#clock.now();
      this.#monitor.start(frame.ping * 1000, this.#options.pingTimeout);
      this.#renewBefore(frame.expires_in);
      this.#setState("open", { attempt: this.#backoff.attempt });
      this.#opening?.resolve();
      this.#opening = null;
    }
    this.#events.emit("recovered", { recovered, reason, epoch, offset });
    this.#flush();
  }

  /** What waits here must not be sent as another user. */
  #anotherUser(before, now) {
    const text = `connected as '${now.user}' of '${now.service}', but this client belongs to ` +
      `'${before.user}' of '${before.service}'; make a new client`;
    const error = new GatewayError("closed", text, false, { closeCode: NOT_AUTHENTICATED });
    this.#stop(error, { code: NOT_AUTHENTICATED, reason: text });
  }

  /** A user's state; *id* is that of the watch that it answers. Later versions may send more fields. */
  #onPresence(frame) {
    if (frame.topic !== undefined) return this.#onReaders(frame);
    const { service, user, online, id } = frame;
    const presence = { service, user, online };
    const own = this.#welcome.service;
    if (id !== undefined && !this.#watches.of(presence, own).includes(id)) return;
    const isNews = this.#watches.update(presence, own, id);
    if (id !== undefined) this.#watching.resolve(id, online);
    if (isNews) this.#events.emit("presence", presence);
  }

  #onUnwatched(frame) {
    if (frame.topic !== undefined) return this.#onReadersUnwatched(frame);
    for (const id of this.#watches.of(frame, this.#welcome.service)) {
      this.#endWatch(id, new GatewayError(frame.code, frame.reason, false, { id }));
    }
  }

  /** The gateway has ended or refused a watch. */
  #endWatch(id, error) {
    const { service, user, online, told } = this.#watches.get(id);
    this.#watches.remove(id);
    if (!told) return this.#watching.reject(id, error);
    this.#events.emit("error", error);
    if (online === null) return;
    this.#events.emit("presence", { service: service ?? this.#welcome.service, user, online: null });
  }

  #onMessage(frame) {
    const { offset, topic = null, reply_to = null, error = null } = frame;
    const entry = topic === null ? null : this.#topics.get(topic);
    if (entry === undefined || (entry && entry.subscription.state !== "subscribed")) return; // left
    const handover = entry?.handover ?? this.#handover;
    if (offset === undefined) return handover.push(new Message(frame, () => {}));
    const reader = entry?.subscription.reader ?? this.#reader;
    const generation = reader.accept(offset, frame.time ?? null);
    // A redelivered message fills the window until it is acknowledged again
    if (generation === null) return this.#countProcessed(reader, offset <= reader.processed ? 1 : 0);
    const isReply = topic === null && reply_to !== null;
    // A reply overtakes messages that wait for a loop: do not acknowledge those with it
    const mark = isReply ? "markOneProcessed" : "markProcessed";
    const message = new Message(frame, () => this.#countProcessed(reader, reader[mark](generation, offset)));
    if (isReply) this.#onReply(message, error);
    else handover.push(message);
  }

  /** Resolve the request, if it was made here; otherwise the reply is an event. */
  #onReply(message, code) {
    const id = message.replyTo;
    this.#outbox.remove(id);
    this.#sends.resolve(id, { id }); // a message with a reply is stored
    let error = null;
    if (code !== null) {
      const text = typeof message.data === "string" && message.data ? message.data : "the service refused it";
      error = new GatewayError(code, text, false, { id });
    }
    if (this.#requests.has(id)) {
      if (error) this.#requests.reject(id, error);
      else this.#requests.resolve(id, message);
    } else if (error) {
      this.#events.emit("error", error);
    } else {
      this.#events.emit("reply", message);
    }
    message.ack();
    this.#flush();
  }

  #onAck({ id }) {
    if (!this.#outbox.remove(id)) return;
    this.#sends.resolve(id, { id });
    this.#flush();
  }

  #onError({ id = null, code, message, temporary }) {
    const error = new GatewayError(code, message, temporary === true, { id });
    if (this.#watches.get(id)) return this.#endWatch(id, error);
    for (const entry of id === null ? [] : this.#topics.values()) {
      if (entry.subscription.asked === id) return this.#refused(entry, error);
      if (entry.watch?.id === id) return this.#onReadersRefused(entry, error);
    }
    if (code === "unauthorized") this.#renewIn(this.#renewals.next());
    if (!this.#outbox.has(id)) return this.#events.emit("error", error);
    this.#fail(id, error);
    this.#flush();
  }

  #fail(id, error) {
    this.#outbox.remove(id);
    this.#sends.reject(id, error);
    this.#requests.reject(id, error);
  }

  /** Count what was processed of one reader; acknowledge all of them together. */
  #countProcessed(reader, count) {
    if (count) this.#unacked.set(reader, (this.#unacked.get(reader) ?? 0) + count);
    if (!this.#unacked.size || this.#state !== "open") return;
    const every = Math.min(this.#options.ackEvery, Math.ceil(this.#welcome.window / 2));
    let total = 0;
    for (const unacked of this.#unacked.values()) total += unacked; // few: at most `every` readers
    if (total >= every) this.#sendAck();
    else this.#ackTimer ??= this.#clock.setTimeout(() => this.#sendAck(), this.#options.ackInterval);
  }

  #sendAck() {
    this.#clock.clearTimeout(this.#ackTimer);
    this.#ackTimer = null;
    if (this.#state !== "open") return;
    if (this.#unacked.delete(this.#reader)) this.#transport.send(ackOf(this.#reader));
    for (const { subscription } of this.#unacked.size ? this.#topics.values() : []) {
      const { reader, state, name } = subscription;
      if (state === "subscribed" && this.#unacked.has(reader)) this.#transport.send(ackOf(reader, name));
    }
    this.#unacked.clear();
  }

  // -- to the gateway --------------------------------------------------------------------

  /**
   * Publish. Resolves with `{id}` when the message is stored. After a reconnect it is sent again
   * with the same id, in order. Rejects with a `GatewayError`.
   *
   * @param data Strings and bytes are sent as they are, anything else as JSON.
   * @param {{id?: string, timeout?: number, signal?: AbortSignal, traceparent?: string,
   *   tracestate?: string}} options *id* makes repeated calls idempotent; *timeout* is in ms;
   *   *traceparent* and *tracestate* are a W3C trace context, for services that trace.
   */
  send(data, options) {
    return this.#send(data, options);
  }

  #send(data, { id, timeout, signal, traceparent, tracestate } = {}, subscription = null) {
    id ??= this.#newId();
    const flags = trace(traceparent, tracestate);
    return this.#call(this.#sends, id, { timeout, signal }, () => this.#enqueue(id, data, flags, subscription));
  }

  /**
   * Publish, and wait for the service's reply, even across reconnects. Resolves with the reply, a
   * `Message`. Rejects with a `GatewayError`; if the service refuses, with the service's code.
   *
   * @param data See `send`.
   * @param {{id?: string, timeout?: number | null, signal?: AbortSignal, traceparent?: string,
   *   tracestate?: string}} options *timeout* in ms until the reply; null: no limit.
   */
  request(data, options) {
    return this.#request(data, options);
  }

  #request(data, options = {}, subscription = null) {
    const { timeout = this.#options.requestTimeout, signal, traceparent, tracestate } = options;
    const id = options.id ?? this.#newId();
    return this.#call(this.#requests, id, { timeout, signal }, () => {
      if (this.#requests.has(id)) return;
      if (this.#requests.size >= this.#options.queueLimit) {
        const text = `${this.#requests.size} requests are already waiting for replies (queueLimit)`;
        throw new GatewayError("queue_limit", text, true, { id });
      }
      this.#enqueue(id, data, `"request":true,${trace(traceparent, tracestate)}`, subscription);
    });
  }

  /**
   * Watch whether a user is online, across reconnects. Resolves with true, false, or null (not
   * known now); each state, the first included, is a "presence" event. Rejects with a
   * `GatewayError` if that is not allowed.
   *
   * @param {string} user Whom.
   * @param {{service?: string}} options *service* is the user's; default: this client's own.
   */
  watch(user, { service } = {}) {
    if (this.#state === "closed") {
      return Promise.reject(new GatewayError("closed", "the client is closed", true));
    }
    const id = this.#watches.add(this.#foreign(service), user, this.#own);
    const { told, online } = this.#watches.get(id);
    if (told) return Promise.resolve(online);
    const result = this.#watching.join(id, {});
    this.#flush();
    return result;
  }

  /** Do not watch a user any more. Idempotent. */
  unwatch(user, { service } = {}) {
    const id = this.#watches.find(this.#foreign(service), user, this.#own);
    if (!id) return;
    const watch = this.#watches.get(id);
    this.#watches.remove(id);
    this.#watching.reject(id, new GatewayError("ended", "the watch was ended before it was answered", false));
    if (watch.sent) this.#transport?.send(JSON.stringify({ type: "unwatch", ...target(watch) }));
  }

  /** Return *service*; null if it is the client's own. */
  #foreign(service) {
    return service === undefined || service === this.#own ? null : service;
  }

  get #own() {
    return this.#welcome?.service ?? null;
  }

  #newId() {
    return `${this.#prefix}-${(this.#ids += 1)}`;
  }

  /** Wait among *calls* for the result of what *enqueue* puts into the outbox, unless it throws. */
  #call(calls, id, options, enqueue) {
    if (options.signal?.aborted) return Promise.reject(aborted(id));
    try {
      enqueue();
    } catch (error) {
      return Promise.reject(error);
    }
    const result = calls.join(id, options);
    this.#flush();
    return result;
  }

  /** Put a message into the outbox, unless the same id waits already. */
  #enqueue(id, data, flags, subscription) {
    if (this.#state === "closed") throw new GatewayError("closed", "the client is closed", true, { id });
    if (subscription?.error) throw endOf(subscription.error, id);
    if (this.#outbox.has(id)) return;
    if (!ID.test(id)) throw new TypeError("id must be 1 to 64 printable ASCII characters, no spaces");
    const { fields, size } = encode(data);
    const limit = this.#welcome?.max_message_size ?? Infinity;
    if (size > limit) throw tooBig(id, size, limit);
    if (this.#outbox.size >= this.#options.queueLimit) {
      const text = `${this.#outbox.size} messages are already waiting for confirmation (queueLimit)`;
      throw new GatewayError("queue_limit", text, true, { id });
    }
    const topic = subscription?.name ?? null;
    const to = topic === null ? "" : `"topic":${JSON.stringify(topic)},`;
    const text = `{"type":"message","id":${JSON.stringify(id)},${to}${flags}${fields}}`;
    this.#outbox.add({ id, topic, size, text, sent: false });
  }

  /** Do not send a message again that no call waits for. */
  #giveUp(id) {
    if (this.#sends.has(id) || this.#requests.has(id)) return;
    this.#outbox.remove(id);
    this.#flush();
  }

  #flush() {
    if (this.#state !== "open") return;
    for (const entry of this.#unasked) this.#subscribe(entry);
    for (const text of this.#watches.due()) this.#transport.send(text);
    const may = (topic) => this.#topics.get(topic)?.subscription.state === "subscribed";
    for (const entry of this.#outbox.due(may)) this.#transport.send(entry.text);
  }

  // -- topics ----------------------------------------------------------------------------

  /**
   * Subscribe to a topic, from now on and across reconnects. A second call without options returns
   * the same one; close it before you choose others.
   *
   * @param {string} name `<service>.<name>`, such as "room.42".
   * @param {{since?: "new" | "all" | number, position?: {epoch: string, offset: number},
   *   token?: string | ((name: string) => string | Promise<string>), autoAck?: boolean}} options
   *   *since*: where to begin without a position: with what is new, with all that is kept, or with so
   *   many of the newest messages.
   */
  topic(name, options) {
    const known = this.#topics.get(name);
    if (known && options) throw new Error(`already subscribed to '${name}'; close that topic first`);
    if (known) return known.topic;
    if (!TOPIC.test(name)) throw new TypeError(`topic '${name}' is not <service>.<name>, such as 'room.42'`);
    const subscription = new Subscription(name, options ?? {});
    const events = new Emitter();
    const handover = new Handover(events, options?.autoAck ?? this.#options.autoAck);
    const entry = { subscription, events, handover, fetch: options?.token, timer: null, since: null, watch: null };
    entry.backoff = new Backoff(this.#options.backoff, this.#options.random);
    entry.ready = deferred();
    entry.topic = new Topic(entry, {
      send: (data, how) => this.#send(data, how, subscription),
      request: (data, how) => this.#request(data, how, subscription),
      watch: () => this.#watchReaders(entry),
      unwatch: () => {
        const text = "the watch was ended before it was answered";
        this.#dropReaders(entry, new GatewayError("ended", text, false));
      },
      close: () => this.#leave(entry),
    });
    this.#topics.set(name, entry);
    this.#ask(entry);
    this.#flush();
    return entry.topic;
  }

  /** Ask for a topic as soon as the connection, and its token, allow. */
  #ask(entry) {
    const { subscription, events } = entry;
    const was = subscription.state;
    subscription.waits();
    this.#unasked.add(entry);
    if (was !== subscription.state) events.emit("state", subscription.state, {});
  }

  #subscribe(entry) {
    const { subscription, timer } = entry;
    if (timer !== null) return; // it was refused, or has no token, for now
    this.#unasked.delete(entry);
    if (subscription.stale) this.#authorize(entry);
    else this.#transport.send(subscription.ask(`${this.#prefix}-topic-${(this.#questions += 1)}`));
  }

  /** Fetch a topic's token, then ask for the topic. */
  async #authorize(entry) {
    const { subscription, events, fetch } = entry;
    if (entry.isFetching) return;
    entry.isFetching = true;
    try {
      subscription.token = await fetch(subscription.name);
      subscription.stale = false;
    } catch (error) {
      if (subscription.state === "ended") return;
      if (error?.temporary === false) {
        this.#endTopic(entry, error);
        return this.#flush(); // the window may have room
      }
      events.emit("error", error);
      this.#askLater(entry);
      return;
    } finally {
      entry.isFetching = false;
    }
    if (subscription.state === "ended") return;
    this.#unasked.add(entry);
    this.#flush();
  }

  #askLater(entry) {
    this.#ask(entry);
    this.#clock.clearTimeout(entry.timer);
    entry.timer = this.#clock.setTimeout(() => {
      entry.timer = null;
      this.#flush();
    }, entry.backoff.next());
  }

  #onSubscribed(frame) {
    const entry = this.#topics.get(frame.topic);
    if (!entry?.subscription.concerns(frame)) return;
    const { subscription, events } = entry;
    const isNew = subscription.state !== "subscribed";
    if (subscription.begin(frame)) this.#unacked.delete(subscription.reader);
    if (isNew) {
      entry.since = this.#clock.now();
      entry.ready.resolve();
      events.emit("state", "subscribed", { access: frame.access });
    }
    const { recovered = false, reason = null, epoch = null, offset = null } = frame;
    events.emit("recovered", { recovered, reason, epoch, offset });
    this.#askForReaders(entry);
    this.#flush();
  }

  #onUnsubscribed(frame) {
    const entry = this.#topics.get(frame.topic);
    if (!entry?.subscription.concerns(frame)) return;
    const { code = "ended", reason = "the gateway ended the subscription", temporary = false } = frame;
    this.#refused(entry, new GatewayError(code, reason, temporary === true, { id: frame.id }));
  }

  /** The gateway does not deliver a topic, or no longer: try again if that may help. */
  #refused(entry, error) {
    const { subscription, backoff } = entry;
    const lasted = entry.since !== null && this.#clock.now() - entry.since >= STABLE;
    entry.since = null;
    if (lasted) backoff.reset();
    const renews = subscription.renew(error.code);
    if (!renews && !error.temporary) this.#endTopic(entry, error);
    else if (renews && lasted) this.#ask(entry);
    else this.#askLater(entry);
    this.#flush();
  }

  /** The application is done with a topic. */
  #leave(entry) {
    const { subscription } = entry;
    if (subscription.state === "ended") return;
    const isKnown = this.#state === "open" && (subscription.asked !== null || subscription.state === "subscribed");
    this.#sendAck();
    this.#endTopic(entry, new GatewayError("ended", "the topic was closed; it may have been stored", true), true);
    if (isKnown) this.#transport.send(JSON.stringify({ type: "unsubscribe", topic: subscription.name }));
    this.#flush(); // the window may have room
  }

  /** *own*: the application closed the topic, or the client. */
  #endTopic(entry, error, own = false) {
    const { subscription, events, handover, timer, ready } = entry;
    this.#clock.clearTimeout(timer);
    this.#topics.delete(subscription.name);
    this.#unasked.delete(entry);
    this.#unacked.delete(subscription.reader);
    subscription.waits();
    Object.assign(subscription, { state: "ended", error, access: null });
    for (const id of this.#outbox.of(subscription.name)) this.#fail(id, endOf(error, id));
    const news = this.#dropReaders(entry, error);
    ready.reject(error);
    events.emit("state", "ended", { code: error.code, reason: error.message });
    if (news && !own) events.emit("readers", news);
    handover.end(own ? null : error);
    if (!own) events.emit("error", error);
  }

  // -- who reads a topic -----------------------------------------------------------------

  #watchReaders(entry) {
    const { error } = entry.subscription;
    if (error) return Promise.reject(endOf(error, null));
    const watch = (entry.watch ??= new ReadersWatch(this.#watches.newId()));
    if (watch.readers) return Promise.resolve(watch.readers);
    const result = this.#watching.join(watch.id, {});
    this.#askForReaders(entry);
    return result;
  }

  /** Ask who reads a topic once the client does, and its token was accepted. */
  #askForReaders({ subscription, watch }) {
    if (watch?.state !== "waiting" || subscription.state !== "subscribed") return;
    this.#transport.send(watch.ask(subscription));
  }

  #onReaders(frame) {
    const { watch, events } = this.#topics.get(frame.topic) ?? {};
    const news = watch?.receive(frame);
    if (!news) return;
    this.#watching.resolve(watch.id, watch.readers);
    events.emit("readers", news);
  }

  #onReadersUnwatched({ topic, code, reason }) {
    const entry = this.#topics.get(topic);
    if (entry?.watch?.state === "open") this.#endReaders(entry, new GatewayError(code, reason, false));
  }

  /** The gateway has refused a watch: perhaps because the topic's token has expired. */
  #onReadersRefused(entry, error) {
    const { subscription, watch } = entry;
    if (error.code !== "forbidden" || !subscription.renewable || watch.renewed) return this.#endReaders(entry, error);
    return this.#renewForReaders(entry, watch);
  }

  async #renewForReaders(entry, watch) {
    const { subscription, fetch } = entry;
    Object.assign(watch, { state: "renewing", renewed: true });
    try {
      subscription.token = await fetch(subscription.name);
    } catch (error) {
      if (entry.watch === watch && watch.state === "renewing") this.#endReaders(entry, error);
      return;
    }
    if (entry.watch !== watch || watch.state !== "renewing") return; // ended, or asked on another connection
    watch.state = "waiting";
    this.#askForReaders(entry);
  }

  /** The gateway has ended or refused a watch. */
  #endReaders(entry, error) {
    entry.watch.state = "waiting";
    const news = this.#dropReaders(entry, error);
    if (!news) return; // a call waited, and has the error
    entry.events.emit("error", error);
    entry.events.emit("readers", news);
  }

  /** Forget a watch, of which the gateway may know; return what that is for the application. */
  #dropReaders(entry, error) {
    const { watch, subscription } = entry;
    if (!watch) return null;
    entry.watch = null;
    if (watch.isKnownToGateway) this.#transport?.send(JSON.stringify({ type: "unwatch", topic: subscription.name }));
    this.#watching.reject(watch.id, error);
    return watch.end();
  }

  // -- async iteration -------------------------------------------------------------------

  /** `for await (const message of client)`, one at a time; see `MessageLoop`. */
  [Symbol.asyncIterator]() {
    return this.#handover.read(this.#state === "closed");
  }
}

if (globalThis.SharedWorkerGlobalScope && globalThis.name.startsWith(WORKER)) serveTabs();
