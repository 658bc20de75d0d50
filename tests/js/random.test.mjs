/** Whatever the page, its loops and the connection do, it gets each message once, in order. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { FakePage, settle } from "./fakes.mjs";

const TOTAL = 60; // messages
const WINDOW = 4;
const RUNS = 60;
const ACTIONS = [
  "connect", "welcome", "welcome", "welcome", "store", "store", "store", "tick", "tick",
  "next", "next", "next", "break", "listen", "unlisten", "lost", "closeSometimes",
];

/** Numbers from 0 to 1 that a seed repeats. */
function numbers(seed) {
  return () => (seed = (seed * 1664525 + 1013904223) >>> 0) / 2 ** 32;
}

/** An application, its connection and its gateway; each method is one thing that may happen. */
class World {
  page = new FakePage();
  got = [];
  stored = 0;
  loop = null;
  reading = false; // the loop waits for a message
  off = null; // ends the listener
  gateway = null; // {socket, sent, acked} of the last welcome

  constructor(seed) {
    this.random = numbers(seed);
    this.client = this.page.client({ random: this.random });
  }

  below(limit) {
    return Math.floor(this.random() * limit);
  }

  async act(name) {
    await this[name]();
    await settle();
    this.deliver();
    await settle();
  }

  connect() {
    this.client.connect().catch(() => {});
  }

  closeSometimes() {
    if (this.random() < 0.3) this.client.close();
  }

  welcome() {
    const { socket } = this.page;
    if (!socket || socket.closed || socket.readyState !== 0) return;
    const offset = Number(socket.query.offset ?? 0);
    socket.welcome({ offset, window: WINDOW });
    this.gateway = { socket, sent: offset, acked: offset };
  }

  lost() {
    const { socket } = this.page;
    if (socket && !socket.closed && socket.readyState < 2) socket.end(this.random() < 0.1 ? 4505 : 1006);
  }

  store() {
    this.stored = Math.min(TOTAL, this.stored + 1 + this.below(3));
  }

  /** Do as a gateway: send what the window has room for. */
  deliver() {
    const { gateway } = this;
    if (!gateway || gateway.socket.closed || gateway.socket.readyState !== 1) return;
    for (const { offset } of gateway.socket.frames("ack")) gateway.acked = Math.max(gateway.acked, offset);
    while (gateway.sent < this.stored && gateway.sent - gateway.acked < WINDOW) {
      gateway.sent += 1;
      gateway.socket.message(gateway.sent);
    }
  }

  async tick() {
    await this.page.tick(this.below(800));
  }

  next() {
    if (this.off || this.reading) return;
    const loop = (this.loop ??= this.client[Symbol.asyncIterator]());
    const ended = () => { if (this.loop === loop) this.loop = null; };
    this.reading = true;
    loop.next()
      .then(({ done, value }) => (done ? ended() : this.got.push(value.offset)), ended)
      .finally(() => { this.reading = false; });
  }

  async break() {
    if (!this.loop || this.reading) return;
    const { loop } = this;
    this.loop = null;
    await loop.return();
  }

  listen() {
    if (this.off || this.loop) return;
    this.off = this.client.on("message", ({ offset }) => this.got.push(offset));
  }

  unlisten() {
    this.off?.();
    this.off = null;
  }
}

test("each message once, in order, whatever happens", async () => {
  const first = Number(process.env.WSGATEWAY_TEST_SEED ?? Math.floor(Math.random() * 1e6));
  for (let seed = first; seed < first + RUNS; seed += 1) {
    const world = new World(seed);
    await world.act("connect");
    for (let step = 0; step < 150; step += 1) await world.act(ACTIONS[world.below(ACTIONS.length)]);
    world.stored = TOTAL;
    world.unlisten();
    for (let round = 0; round < 600 && world.got.length < TOTAL; round += 1) {
      for (const name of ["connect", "tick", "welcome", "next"]) await world.act(name);
    }
    assert.deepEqual(world.got, Array.from({ length: TOTAL }, (_, index) => index + 1), `WSGATEWAY_TEST_SEED=${seed}`);
  }
});
