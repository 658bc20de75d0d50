/** A page and its WebSockets, without either: time moves when the test says so. */

import { WsGateway } from "../../wsgateway/static/wsgateway/wsgateway.js";

/** Let every promise that can go on do so. */
export async function settle() {
  for (let turn = 0; turn < 20; turn += 1) await null;
}

/** Ids of the questions of clients and workers begin with something random, which tests leave out. */
const QUESTION = /^.{12}-((topic|watch|tab)-\d+)$/;
export const withoutPrefix = (id) => id?.replace(QUESTION, "$1") ?? id;

export class FakeSocket {
  static prefix = ""; // of the page's questions
  readyState = 0;
  protocol = "";
  sent = [];
  closed = null;

  constructor(url, protocols) {
    this.url = new URL(url);
    this.protocols = protocols;
  }

  get query() {
    const token = this.protocols.find((name) => name.startsWith("wsgateway.token."));
    const sent = token && { token: Buffer.from(token.slice(16), "base64url").toString() };
    return { ...sent, ...Object.fromEntries(this.url.searchParams) };
  }

  /** The frames that the client wrote, of one type or of all. */
  frames(type) {
    const frames = this.sent.map((text) => JSON.parse(text, (key, value) => (key === "id" ? withoutPrefix(value) : value)));
    return type ? frames.filter((frame) => frame.type === type) : frames;
  }

  open(protocol = "wsgateway.v1") {
    this.readyState = 1;
    this.protocol = protocol;
    this.onopen({});
  }

  welcome(fields = {}) {
    if (this.readyState === 0) this.open();
    this.say({
      type: "welcome", connection: "c", service: "s", user: "u", device: "d", epoch: "e1",
      offset: 0, recovered: true, ping: 25, window: 256, max_message_size: 1000, ...fields,
    });
  }

  /** Write a frame; an object's id is without what `frames` leaves out, a text's is as it is. */
  say(frame) {
    if (/^(topic|watch|tab)-\d+$/.test(frame.id)) frame = { ...frame, id: this.constructor.prefix + frame.id };
    this.onmessage({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
  }

  message(offset, data = `m${offset}`, time = `2026-01-01T00:00:${String(offset % 60).padStart(2, "0")}Z`) {
    this.say({ type: "message", offset, time, data });
  }

  end(code, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
  }

  send(text) {
    if (this.readyState !== 1) throw new Error("not open");
    this.sent.push(text);
    const { id } = JSON.parse(text);
    if (QUESTION.test(id)) this.constructor.prefix = id.slice(0, 13);
  }

  close(code, reason) {
    this.closed = { code, reason };
    this.readyState = 3;
  }
}

class Target {
  listeners = new Map();

  addEventListener(name, listener) {
    if (!this.listeners.has(name)) this.listeners.set(name, new Set());
    this.listeners.get(name).add(listener);
  }

  removeEventListener(name, listener) {
    this.listeners.get(name)?.delete(listener);
  }

  fire(name, event = {}) {
    for (const listener of [...(this.listeners.get(name) ?? [])]) listener(event);
  }

  get count() {
    return [...this.listeners.values()].reduce((sum, set) => sum + set.size, 0);
  }
}

export class FakePage extends Target {
  time = 0;
  timers = new Map();
  number = 0;
  navigator = { onLine: true };
  location = { href: "https://shop.example/orders/" };
  document = Object.assign(new Target(), { visibilityState: "visible" });
  performance = { now: () => this.time };
  sockets = [];

  constructor() {
    super();
    const page = this;
    this.WebSocket = class extends FakeSocket {
      constructor(url, protocols) {
        super(url, protocols);
        page.sockets.push(this);
      }
    };
  }

  setTimeout(callback, delay) {
    this.number += 1;
    this.timers.set(this.number, { callback, at: this.time + delay });
    return this.number;
  }

  clearTimeout(number) {
    this.timers.delete(number);
  }

  /** Move the clock, calling timers in their order. */
  async tick(ms) {
    const end = this.time + ms;
    for (;;) {
      await settle();
      const due = [...this.timers].filter(([, t]) => t.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      this.timers.delete(due[0]);
      this.time = Math.max(this.time, due[1].at);
      due[1].callback();
    }
    this.time = end;
    await settle();
  }

  /** The machine sleeps: time passes, timers do not run. */
  sleep(ms) {
    this.time += ms;
  }

  get socket() {
    return this.sockets.at(-1);
  }

  client(options = {}, url = "/ws/orders/ann/") {
    const client = new WsGateway(url, { host: this, random: () => 0, ...options });
    client.log = [];
    client.on("state", (state, detail) => client.log.push([state, detail]));
    client.errors = [];
    client.on("error", (error) => client.errors.push(error));
    client.recoveries = [];
    client.on("recovered", (event) => client.recoveries.push(event));
    return client;
  }

  /** A client that is open, and the list of offsets that its listener got. */
  async opened(options = {}, welcome = {}) {
    const client = this.client(options);
    client.got = [];
    client.on("message", (message) => client.got.push(message.offset));
    client.connect();
    await settle();
    this.socket.welcome(welcome);
    await settle();
    return client;
  }
}

/** Return what a promise is by now: "pending", or its value, or its error. */
export async function outcome(promise) {
  await settle();
  const pending = Symbol("pending");
  const value = await Promise.race([promise.catch((error) => error), settle().then(() => pending)]);
  return value === pending ? "pending" : value;
}

/** One end of a message channel. */
class FakePort {
  onmessage = null;
  other = null;

  postMessage(data) {
    const copy = structuredClone(data);
    queueMicrotask(() => this.other?.onmessage?.({ data: copy }));
  }
}

/** Web locks of one origin. */
class FakeLocks {
  held = new Map(); // name -> callbacks that wait for it

  async request(name, callback) {
    await null;
    const waiting = this.held.get(name);
    if (waiting) return waiting.push(callback);
    this.held.set(name, []);
    await callback();
    return this.release(name);
  }

  release(name) {
    const [next, ...rest] = this.held.get(name) ?? [];
    this.held.delete(name);
    if (next) this.request(name, next).then(() => rest.forEach((callback) => this.request(name, callback)));
  }
}

/** A browser with tabs and SharedWorkers; `serve` starts the script of one. */
export class FakeBrowser {
  workers = new Map(); // name -> page that stands for the worker's scope
  locks = new FakeLocks();
  tabs = [];

  constructor(serve) {
    this.serve = serve;
  }

  tab() {
    const browser = this;
    const page = new FakePage();
    page.navigator.locks = this.locks;
    page.ports = [];
    page.SharedWorker = class {
      constructor(url, { name }) {
        if (!browser.workers.has(name)) {
          const scope = new FakePage();
          scope.navigator.locks = browser.locks;
          browser.workers.set(name, scope);
          browser.serve(scope);
        }
        const [mine, its] = [new FakePort(), new FakePort()];
        Object.assign(mine, { other: its });
        Object.assign(its, { other: mine });
        page.ports.push(mine);
        this.port = mine;
        queueMicrotask(() => browser.workers.get(name).onconnect({ ports: [its] }));
      }
    };
    this.tabs.push(page);
    return page;
  }

  /** The scope of the only worker. */
  get worker() {
    return [...this.workers.values()].at(-1);
  }

  get socket() {
    return this.worker.socket;
  }

  async settle() {
    for (let turn = 0; turn < 5; turn += 1) await settle();
  }

  async tick(ms) {
    for (const page of [...this.tabs, ...this.workers.values()]) await page.tick(ms);
    await this.settle();
  }

  /** The tab is gone without a word: its locks are free, its ports dead. */
  crash(page) {
    for (const port of page.ports) port.other.other = null;
    page.ports.forEach((port) => (port.other = null));
    this.tabs.splice(this.tabs.indexOf(page), 1);
  }
}
