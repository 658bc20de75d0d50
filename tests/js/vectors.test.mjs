/** The shared scenarios of tests/vectors/client.json; test_client_vectors.py runs them in Python. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { FakePage, settle, withoutPrefix } from "./fakes.mjs";

const PATH = process.env.WSGATEWAY_VECTORS ?? new URL("../vectors/client.json", import.meta.url);
const FILE = JSON.parse(readFileSync(PATH));
const BAD = FILE.not_the_protocol;

const ms = (seconds) => seconds * 1000;
const base64 = (bytes) => Buffer.from(bytes).toString("base64");
const unbase64 = (text) => new Uint8Array(Buffer.from(text, "base64"));
const payload = ({ data }, text = "data", bytes = "bytes") =>
  typeof data === "string" ? { [text]: data } : { [bytes]: base64(data) };
const without = (name, value) => (value === null || value === undefined ? {} : { [name]: value });
const refusal = ({ code, temporary, closeCode }) => // 1000 is the application's own
  ({ error: code, temporary, ...(closeCode > 1000 ? { close_code: closeCode } : {}) });

/** The file's options, as this client calls them. */
function translate({ backoff, tokens, position, ...rest }) {
  return {
    position,
    autoAck: false,
    ackEvery: rest.ack_every,
    ackInterval: ms(rest.ack_interval),
    queueLimit: rest.queue_limit,
    sendWindow: rest.send_window,
    pingTimeout: ms(rest.ping_timeout),
    backoff: { ...backoff, initial: ms(backoff.initial), cap: ms(backoff.cap) },
    connectTimeout: 10_000,
    requestTimeout: null,
    token: tokens && (() => tokens.shift()),
  };
}

/** Drives a client through its public interface; `step` returns what happened. */
class Runner {
  page = new FakePage();
  read = new Map(); // socket -> frames that were reported
  given = new Map(); // payload -> message
  calls = new Map(); // id -> AbortController
  topics = new Map(); // name -> topic
  out = {};

  constructor(options = {}) {
    this.client = this.page.client(translate(structuredClone({ ...FILE.options, ...options })));
    this.told = this.client.position;
    this.client.on("message", (message) => this.deliver(message));
    this.client.on("recovered", ({ recovered, reason }) => this.add("welcomes", { recovered, reason }));
    this.client.on("reply", (message) => this.add("replies", { reply_to: message.replyTo, ...payload(message) }));
    this.client.on("error", ({ id, code, temporary }) => {
      if (code !== "closed") this.add("errors", { id: withoutPrefix(id), code, temporary }); // that is the state
    });
    this.client.on("presence", (presence) => this.add("presences", presence));
    this.client.on("state", (state, { delay }) => {
      this.out.state = state;
      if (state === "waiting") this.out.reconnects_in = delay / 1000;
    });
  }

  deliver(message) {
    const fields = payload(message);
    this.given.set(Object.values(fields)[0], message);
    const about = Object.assign({}, ...["topic", "offset", "from"].map((name) => without(name, message[name])));
    this.add("delivers", { ...about, ...fields });
  }

  add(name, value) {
    (this.out[name] ??= []).push(value);
  }

  async step(event) {
    this.out = {};
    const [[kind, value]] = Object.entries(event);
    await this[kind](value);
    await settle();
    for (const socket of this.page.sockets) {
      if (!this.read.has(socket)) {
        const { offset, ...query } = socket.query;
        this.out.dial = offset === undefined ? query : { ...query, offset: Number(offset) };
        this.read.set(socket, 0);
      }
      for (const frame of socket.frames().slice(this.read.get(socket))) this.add("sends", frame);
      this.read.set(socket, socket.sent.length);
    }
    if (JSON.stringify(this.client.position) !== JSON.stringify(this.told)) {
      this.out.position = this.told = this.client.position;
    }
    for (const [name, topic] of this.topics) {
      const position = topic.position && { ...topic.position };
      if (JSON.stringify(position) === JSON.stringify(topic.told)) continue;
      topic.told = position;
      (this.out.positions ??= {})[name] = position;
    }
    return this.out;
  }

  connect() {
    this.client.connect().catch(() => {});
  }

  frame(frame) {
    this.text(frame.type === "welcome" ? { ...FILE.welcome, ...frame } : frame);
  }

  text(frame) {
    if (this.page.socket.readyState === 0) this.page.socket.open();
    this.page.socket.say(frame);
  }

  binary(data) {
    if (this.page.socket.readyState === 0) this.page.socket.open();
    this.page.socket.onmessage({ data: new Blob([unbase64(data)]) });
  }

  lost(code) {
    this.page.socket.end(code);
  }

  close() {
    this.client.close();
  }

  topic({ topic: name, tokens, ...rest }) {
    const token = tokens && (() => tokens.shift());
    const topic = this.client.topic(name, { ...rest, token });
    topic.told = topic.position && { ...topic.position };
    this.topics.set(name, topic);
    topic.on("message", (message) => this.deliver(message));
    topic.on("recovered", ({ recovered, reason }) =>
      this.add("subscribed", { topic: name, access: topic.access, recovered, reason }));
    topic.on("readers", (readers) => this.add("readers", { topic: name, ...readers }));
    topic.on("error", ({ code, temporary }) =>
      this.add(topic.state === "ended" ? "ended" : "unwatched", { topic: name, error: code, temporary }));
  }

  leave(name) {
    this.topics.get(name).close();
  }

  send({ id, topic, data, bytes }, method = "send") {
    const call = new AbortController();
    this.calls.set(id, call);
    (topic ? this.topics.get(topic) : this.client)[method](bytes === undefined ? data : unbase64(bytes), { id, signal: call.signal })
      .then((reply) => (method === "send" ? "stored" : payload(reply, "reply", "reply_bytes")))
      .catch((error) => (error instanceof TypeError ? "invalid" : refusal(error)))
      .then((result) => {
        if (result.error !== "aborted") (this.out.results ??= {})[id] = result;
      });
  }

  request(message) {
    this.send(message, "request");
  }

  give_up(id) {
    this.calls.get(id).abort();
  }

  watch({ topic, user, service }) {
    const answer = topic ? this.topics.get(topic).watch() : this.client.watch(user, { service });
    answer.catch(refusal).then((result) => {
      (this.out.results ??= {})[`watch ${topic ?? user}`] = result;
    });
  }

  unwatch({ topic, user, service }) {
    if (topic) this.topics.get(topic).unwatch();
    else this.client.unwatch(user, { service });
  }

  processed(name) {
    this.given.get(name).ack();
  }

  async wait(seconds) {
    await this.page.tick(ms(seconds));
  }

  async sleep(seconds) {
    this.page.sleep(ms(seconds));
    await this.page.tick(0);
  }
}

async function opened({ options, opened: fields }) {
  const runner = new Runner(options);
  if (fields) {
    await runner.step({ connect: true });
    await runner.step({ frame: { type: "welcome", ...fields } });
  }
  return runner;
}

for (const vector of FILE.vectors) {
  test(vector.name, async () => {
    const runner = await opened(vector);
    for (const [number, step] of vector.steps.entries()) {
      const event = JSON.stringify(step.in);
      assert.deepEqual(await runner.step(step.in), step.out, `step ${number + 1}: ${event}`);
    }
  });
}

test("what is not the protocol ends the session", async () => {
  const both = [...BAD.texts.map((text) => ({ text })), ...BAD.binary.map((binary) => ({ binary }))];
  const early = [...both, ...BAD.instead_of_a_welcome.map((text) => ({ text }))];
  for (const [events, after] of [[both, { opened: {} }], [early, {}]]) {
    for (const event of events) {
      const runner = await opened(after);
      if (!after.opened) await runner.step({ connect: true });
      assert.deepEqual(await runner.step(event), { state: "closed" }, JSON.stringify(event));
      assert.deepEqual(await runner.step({ wait: 60 }), {});
    }
  }
});
