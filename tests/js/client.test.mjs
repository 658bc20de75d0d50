/** wsgateway.js against a fake page: every promise of docs/reference/client-javascript.md. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Backoff, GatewayError, WsGateway, shouldReconnect } from "../../wsgateway/static/wsgateway/wsgateway.js";
import { FakePage, outcome, settle } from "./fakes.mjs";

const states = (client) => client.log.map(([state]) => state);

// -- connecting ----------------------------------------------------------------------------

test("connect speaks the subprotocol and turns a path into a websocket URL", async () => {
  const page = new FakePage();
  const client = page.client({ device: "phone 2" }, "/ws/orders/ann/?x=1#top");
  assert.equal(client.state, "idle");
  assert.equal(client.position, null);
  const connected = client.connect();
  await settle();
  assert.deepEqual(page.socket.protocols, ["wsgateway.v1"]);
  assert.equal(page.socket.url.href, "wss://shop.example/ws/orders/ann/?x=1&device=phone+2");
  assert.equal(await outcome(connected), "pending");
  page.socket.open();
  assert.equal(await outcome(connected), "pending");
  page.socket.welcome({ offset: 3 });
  assert.equal(await outcome(connected), undefined);
  assert.deepEqual(states(client), ["connecting", "open"]);
  assert.deepEqual(client.position, { epoch: "e1", offset: 3 });
  assert.equal(client.welcome.user, "u");
});

test("connect twice opens one socket", async () => {
  const page = new FakePage();
  const client = page.client();
  client.connect();
  client.connect();
  await settle();
  page.socket.welcome();
  await client.connect();
  assert.equal(page.sockets.length, 1);
});

test("a server that does not speak the subprotocol is final", async () => {
  const page = new FakePage();
  const client = page.client();
  const connected = client.connect();
  await settle();
  page.socket.open("");
  const error = await outcome(connected);
  assert.ok(error instanceof GatewayError);
  assert.match(error.message, /does not speak wsgateway\.v1/);
  assert.equal(client.state, "closed");
  await page.tick(100_000);
  assert.equal(page.sockets.length, 1);
});

test("an impossible URL closes with its error", async () => {
  const page = new FakePage();
  page.location = undefined;
  const client = page.client();
  assert.ok((await outcome(client.connect())) instanceof TypeError);
  assert.equal(client.state, "closed");
});

test("a welcome that does not come in time is another attempt", async () => {
  const page = new FakePage();
  const client = page.client({ connectTimeout: 3000 });
  client.connect();
  await settle();
  page.socket.open();
  await page.tick(2999);
  assert.equal(page.sockets.length, 1);
  await page.tick(501);
  assert.equal(page.sockets.length, 2);
  assert.equal(page.sockets[0].closed.code, 1000);
});

// -- reconnecting --------------------------------------------------------------------------

test("which close codes come back", () => {
  for (const code of [1000, 1001, 1005, 1006, 1011, 1012, 1013, 1015, 3000, 4000, 4499]) {
    assert.equal(shouldReconnect(code), true, code);
  }
  for (const code of [1002, 1003, 1007, 1008, 1009, 1010, 4500, 4501, 4999]) {
    assert.equal(shouldReconnect(code), false, code);
  }
});

test("a lost connection waits, tells when it tries again, and does", async () => {
  const page = new FakePage();
  const client = await page.opened();
  page.socket.end(4001, "shutting down");
  assert.deepEqual(client.log.at(-1), ["waiting", { code: 4001, reason: "shutting down", delay: 500, attempt: 1 }]);
  await page.tick(499);
  assert.equal(page.sockets.length, 1);
  await page.tick(1);
  assert.equal(page.sockets.length, 2);
  page.socket.welcome();
  assert.equal(client.state, "open");
});

test("a gateway that stops says when to come back, once", async () => {
  const page = new FakePage();
  const client = await page.opened();
  page.socket.say({ type: "closing", reconnect_after: 2.5 });
  page.socket.end(4001, "shutting down");
  assert.equal(client.log.at(-1)[1].delay, 2500);
  await page.tick(2499);
  assert.equal(page.sockets.length, 1);
  await page.tick(1);
  page.socket.end(1006, "");
  assert.ok(client.log.at(-1)[1].delay <= 1000);
});

test("what the gateway asked for before the end does not delay another life", async () => {
  /** The delay of one connection was used again by the first reconnect after close and connect. */
  for (const end of [
    (page) => page.socket.end(4505, "disconnected by an operator"),
    (page, client) => client.close(),
  ]) {
    const page = new FakePage();
    const client = await page.opened();
    page.socket.say({ type: "closing", reconnect_after: 60 });
    end(page, client);
    assert.equal(client.state, "closed");
    client.connect();
    await settle();
    page.socket.end(1006);
    assert.equal(client.log.at(-1)[1].delay, 500);
  }
});

test("an error is enough where no close event follows; where one does, its code counts", async () => {
  const page = new FakePage();
  const client = page.client();
  client.connect();
  await settle();
  page.socket.onerror({});
  await page.tick(0);
  assert.deepEqual([client.log.at(-1)[0], client.log.at(-1)[1].code], ["waiting", 1006]);
  await page.tick(500);
  page.socket.onerror({});
  page.socket.end(4505, "disconnected by an operator");
  await page.tick(0);
  assert.deepEqual([client.log.at(-1)[0], client.log.at(-1)[1].code], ["closed", 4505]);
});

test("delays grow to the cap, and begin again after a connection that lasted", async () => {
  const page = new FakePage();
  const client = await page.opened({ backoff: { cap: 3000 } });
  const delays = [];
  client.on("state", (state, { delay }) => state === "waiting" && delays.push(delay));
  for (let n = 0; n < 5; n += 1) {
    page.socket.end(1006);
    await page.tick(3000);
  }
  assert.deepEqual(delays, [500, 1000, 2000, 3000, 3000]);
  page.socket.welcome();
  await page.tick(1000);
  page.socket.end(1006); // a connection that is refused at once must not be tried for ever at once
  assert.equal(delays.at(-1), 3000);
  await page.tick(3000);
  page.socket.welcome();
  await page.tick(5000);
  page.socket.end(1006);
  assert.equal(delays.at(-1), 500);
});

test("jitter spreads delays over their whole length", () => {
  const low = new Backoff({}, () => 0.999);
  const high = new Backoff({}, () => 0);
  assert.ok(low.next() < 1);
  assert.equal(high.next(), 500);
  assert.equal(new Backoff({ jitter: 0.5 }, () => 1).next(), 250);
  const long = new Backoff({}, () => 0);
  for (let n = 0; n < 5000; n += 1) assert.ok(long.next() <= 30_000);
});

test("a final close code rejects what waits and tries no more", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const sent = client.send("x");
  page.socket.end(4503, "forbidden");
  const error = await outcome(sent);
  assert.deepEqual([error.code, error.closeCode, error.temporary], ["closed", 4503, true]);
  assert.equal(client.state, "closed");
  assert.match(client.errors[0].message, /4503 forbidden/);
  assert.equal((await outcome(client.send("y"))).code, "closed");
  await page.tick(100_000);
  assert.equal(page.sockets.length, 1);
  assert.equal(page.timers.size, 0);
  assert.equal(page.count + page.document.count, 0);
});

test("connect after closed starts again, even from the listener that is told", async () => {
  const page = new FakePage();
  const client = await page.opened();
  client.on("state", (state) => state === "closed" && client.connect());
  page.socket.end(4505, "disconnected by an operator");
  await settle();
  assert.equal(client.state, "connecting");
  page.socket.welcome();
  assert.equal(client.state, "open");
});

// -- authentication ------------------------------------------------------------------------

test("the token is asked for once, and again after a refusal", async () => {
  const page = new FakePage();
  let calls = 0;
  const client = await page.opened({ token: async () => `t${(calls += 1)}` });
  assert.equal(page.socket.query.token, "t1");
  page.socket.end(1006);
  await page.tick(500);
  assert.equal(page.socket.query.token, "t1");
  page.socket.open();
  page.socket.end(4501, "not authenticated");
  await page.tick(1000);
  assert.equal(page.socket.query.token, "t2");
  page.socket.welcome();
  assert.equal(client.state, "open");
});

test("the token is a subprotocol, or the named parameter", async () => {
  const page = new FakePage();
  await page.opened({ token: "a.b-c_d/ü?>" });
  assert.equal(page.socket.url.search, "");
  assert.deepEqual(page.socket.protocols, ["wsgateway.v1", "wsgateway.token.YS5iLWNfZC_DvD8-"]);
  await page.opened({ token: "t", tokenParameter: "key" });
  assert.deepEqual(page.socket.query, { key: "t" });
});

test("a token that has expired is asked for again", async () => {
  const page = new FakePage();
  let count = 0;
  const client = await page.opened({ token: () => `t${(count += 1)}` });
  page.socket.end(4001, "shutting down");
  await page.tick(500);
  assert.equal(page.socket.query.token, "t1");
  page.socket.welcome();
  page.socket.end(4016, "credentials changed");
  await page.tick(1000);
  assert.equal(page.socket.query.token, "t2");
  page.socket.welcome();
  assert.equal(client.state, "open");
});

test("a second refusal in a row is final", async () => {
  const page = new FakePage();
  const client = page.client({ token: () => "bad" });
  client.connect();
  await settle();
  page.socket.end(4501);
  await page.tick(500);
  page.socket.end(4501);
  assert.equal(client.state, "closed");
  assert.equal(page.sockets.length, 2);
});

test("a refusal without a hook is final", async () => {
  const page = new FakePage();
  const client = page.client({ token: "fixed" });
  client.connect();
  await settle();
  page.socket.end(4501);
  assert.equal(client.state, "closed");
});

test("the refresh hook is awaited before the attempt after a refusal, and only then", async () => {
  const page = new FakePage();
  let calls = 0;
  let done;
  const client = await page.opened({
    refresh: () => {
      calls += 1;
      return new Promise((resolve) => (done = resolve));
    },
  });
  page.socket.end(1006);
  await page.tick(500);
  page.socket.welcome();
  assert.equal(calls, 0);
  page.socket.end(4501);
  await page.tick(5000);
  assert.equal(calls, 1);
  assert.equal(page.sockets.length, 2);
  done();
  await settle();
  assert.equal(page.sockets.length, 3);
  page.socket.welcome();
  assert.equal(client.state, "open");
});

test("a token that cannot be had now is tried again later", async () => {
  const page = new FakePage();
  let fail = true;
  const client = page.client({
    token: async () => {
      if (fail) throw new TypeError("Failed to fetch");
      return "t";
    },
  });
  client.connect();
  await settle();
  assert.equal(client.state, "waiting");
  assert.equal(client.errors.length, 1);
  fail = false;
  await page.tick(500);
  assert.equal(page.socket.query.token, "t");
});

test("a token that comes after close opens nothing", async () => {
  const page = new FakePage();
  let done;
  const client = page.client({ token: () => new Promise((resolve) => (done = resolve)) });
  client.connect();
  await settle();
  client.close();
  done("late");
  await page.tick(10_000);
  assert.equal(page.sockets.length, 0);
});

// -- a token that expires ------------------------------------------------------------------

const refreshes = (page) => page.socket.frames("refresh").map(({ token }) => token);

test("refreshToken replaces the token of an open socket, though the URL's never changes", async () => {
  const page = new FakePage();
  const client = await page.opened({ token: "t0", refreshToken: async () => "t1" }, { expires_in: 20 });
  await page.tick(17_999);
  assert.deepEqual(refreshes(page), []);
  await page.tick(1);
  assert.deepEqual(refreshes(page), ["t1"]);
  page.socket.say({ type: "refreshed", expires_in: 10 });
  await page.tick(9000);
  assert.deepEqual([refreshes(page), client.errors], [["t1", "t1"], []]);
});

test("clients that connected together do not fetch their tokens together", async () => {
  for (const [random, at] of [[0, 18_000], [1, 14_000]]) {
    const page = new FakePage();
    await page.opened({ token: () => "t", random: () => random }, { expires_in: 20 });
    await page.tick(at - 1);
    assert.equal(refreshes(page).length, 0);
    await page.tick(1);
    assert.equal(refreshes(page).length, 1);
  }
});

test("a token that cannot be fetched is fetched again while the old one lasts", async () => {
  const page = new FakePage();
  let answer = () => { throw new TypeError("Failed to fetch"); };
  const client = await page.opened({ token: "t0", refreshToken: () => answer() }, { expires_in: 10 });
  await page.tick(9000);
  assert.deepEqual([client.errors.map(({ message }) => message), client.state], [["Failed to fetch"], "open"]);
  answer = () => "t1";
  await page.tick(500);
  assert.deepEqual(refreshes(page), ["t1"]);
  page.socket.say({ type: "refreshed", expires_in: 10 });
  answer = () => { throw new GatewayError("forbidden", "logged out", false); };
  await page.tick(9000);
  assert.equal(client.errors.at(-1).message, "logged out");
  await page.tick(500);
  assert.equal(refreshes(page).length, 1, "that answer was final");
});

test("a token that comes after the connection is not sent on the next one", async () => {
  const page = new FakePage();
  let give;
  await page.opened({ token: "t0", refreshToken: () => new Promise((resolve) => (give = resolve)) }, { expires_in: 10 });
  await page.tick(9000);
  page.socket.end(1006);
  await page.tick(500);
  page.socket.welcome({ expires_in: 1e9 });
  give("late");
  await settle();
  assert.deepEqual(refreshes(page), []);
  page.socket.end(4505);
  assert.equal(page.timers.size, 0);
});

test("tokens that have always expired are not fetched without a pause", async () => {
  const page = new FakePage();
  await page.opened({ token: () => "t" }, { expires_in: 0 });
  for (let n = 0; n < 4; n += 1) {
    await page.tick(250);
    page.socket.say({ type: "refreshed", expires_in: 0 });
  }
  assert.ok(refreshes(page).length <= 2);
});

// -- messages ------------------------------------------------------------------------------

test("messages arrive decoded", async () => {
  const page = new FakePage();
  const client = page.client();
  const got = [];
  client.on("message", (message) => got.push(message));
  client.connect();
  await settle();
  page.socket.welcome();
  page.socket.say({ type: "message", offset: 1, time: "2026-01-01T00:00:00.123456789Z", data: '{"a":"ü"}' });
  page.socket.say({ type: "message", offset: 5, bytes: "AP8=" });
  page.socket.say({ type: "message", offset: 6, time: null, bytes: btoa('{"b":1}') });
  assert.deepEqual(got[0].json(), { a: "ü" });
  assert.equal(got[0].time.toISOString(), "2026-01-01T00:00:00.123Z");
  assert.deepEqual([...got[1].data], [0, 255]);
  assert.equal(got[1].time, null);
  assert.deepEqual(got[2].json(), { b: 1 });
});

test("each message once, whatever is delivered again", async () => {
  const page = new FakePage();
  const client = await page.opened();
  for (const offset of [2, 5, 5, 2, 9, 9]) page.socket.message(offset);
  page.socket.end(1006);
  await page.tick(500);
  assert.deepEqual(page.socket.query, { epoch: "e1", offset: "9" });
  page.socket.welcome({ offset: 9 });
  for (const offset of [5, 9, 11]) page.socket.message(offset);
  assert.deepEqual(client.got, [2, 5, 9, 11]);
});

test("a given position is where it begins", async () => {
  const page = new FakePage();
  const client = await page.opened({ position: { epoch: "e1", offset: 7 } }, { offset: 7 });
  assert.deepEqual(page.socket.query, { epoch: "e1", offset: "7" });
  page.socket.message(7);
  page.socket.message(8);
  assert.deepEqual(client.got, [8]);
});

test("recovered says what may be missing, and another epoch begins again", async () => {
  const page = new FakePage();
  const client = await page.opened();
  page.socket.message(50);
  page.socket.end(1006);
  await page.tick(500);
  page.socket.welcome({ epoch: "e2", offset: 0, recovered: false, reason: "epoch" });
  page.socket.message(1);
  assert.deepEqual(client.got, [50, 1]);
  assert.deepEqual(client.position, { epoch: "e2", offset: 1 });
  assert.deepEqual(client.recoveries, [
    { recovered: true, reason: null, epoch: "e1", offset: 0 },
    { recovered: false, reason: "epoch", epoch: "e2", offset: 0 },
  ]);
});

test("another user closes the client; connect() goes on as that user", async () => {
  const page = new FakePage();
  const client = page.client();
  client.connect();
  await settle();
  page.socket.welcome();
  page.socket.message(50); // no listener, so it waits in the page
  page.socket.end(1006);
  const sending = client.send("as u");
  await page.tick(500);
  page.socket.welcome({ user: "v", inbox: "v", offset: 3, recovered: false, reason: "epoch" });
  const error = await outcome(sending);
  assert.deepEqual([error.code, error.closeCode], ["closed", 4501]);
  assert.match(error.message, /'v' of 's', but this client belongs to 'u' of 's'/);
  assert.deepEqual([client.state, client.welcome.user, page.socket.frames()], ["closed", "u", []]);
  assert.deepEqual(client.errors.map(({ closeCode }) => closeCode), [4501]);

  const connected = client.connect();
  const answer = client.send("as v");
  await settle();
  page.socket.welcome({ user: "v", inbox: "v", offset: 3, recovered: false, reason: "epoch" });
  assert.equal(await outcome(connected), undefined);
  assert.deepEqual(page.socket.frames("message").map(({ data }) => data), ["as v"]);
  page.socket.message(4);
  const got = [];
  client.on("message", ({ offset }) => got.push(offset));
  await settle();
  assert.deepEqual(got, [4]);
  assert.deepEqual(client.position, { epoch: "e1", offset: 4, inbox: "v" });
  assert.equal(await outcome(answer), "pending");

  page.socket.end(1006);
  await page.tick(500);
  page.socket.welcome();
  assert.equal(client.state, "closed", "it belongs to v now");
});

test("a second welcome on an open socket replaces the position", async () => {
  const page = new FakePage();
  const client = await page.opened();
  page.socket.message(50);
  page.socket.welcome({ offset: 40, recovered: false, reason: "ahead" });
  page.socket.message(41);
  assert.deepEqual(client.got, [50, 41]);
  assert.deepEqual(states(client), ["connecting", "open"]);
});

test("an offset that a broken stream gives out again is a new message", async () => {
  /** Processed up to 5, 6 to 8 held; the broker loses 7 and 8 and stores others there. */
  const page = new FakePage();
  const client = page.client();
  const loop = client[Symbol.asyncIterator]();
  client.connect();
  await settle();
  page.socket.welcome();
  for (const offset of [5, 6, 7, 8]) page.socket.message(offset);
  await loop.next();
  await loop.next(); // 5 is processed, 6 is being processed
  page.socket.end(1006);
  await page.tick(500);
  assert.equal(page.socket.query.offset, "5");
  page.socket.welcome({ offset: 5 });
  page.socket.message(6);
  page.socket.message(7, "other 7", "2026-02-01T00:00:00Z");
  const seen = [];
  for (let n = 0; n < 3; n += 1) seen.push((await loop.next()).value.data);
  assert.deepEqual(seen, ["m7", "m8", "other 7"]);
});

test("messages wait for the first listener", async () => {
  const page = new FakePage();
  const client = page.client();
  client.connect();
  await settle();
  page.socket.welcome();
  page.socket.message(1);
  page.socket.message(2);
  await page.tick(1000);
  assert.deepEqual(page.socket.frames("ack"), []);
  const got = [[], []];
  client.on("message", (message) => got[0].push(message.offset));
  client.on("message", (message) => got[1].push(message.offset));
  await settle();
  page.socket.message(3);
  assert.deepEqual(got, [[1, 2, 3], [1, 2, 3]]);
});

test("a listener that fails is reported and stops nobody", async () => {
  const page = new FakePage();
  const client = page.client();
  const got = [];
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  try {
    client.on("message", () => { throw new Error("mine"); });
    client.on("message", (message) => got.push(message.offset));
    client.connect();
    await settle();
    page.socket.welcome();
    page.socket.message(1);
  } finally {
    delete globalThis.reportError;
  }
  assert.deepEqual([got, reported], [[1], ["mine"]]);
});

test("unknown types and fields are ignored; what is not JSON ends the connection", async () => {
  const page = new FakePage();
  const client = await page.opened();
  page.socket.say({ type: "weather" });
  page.socket.say({ type: "message", offset: 1, data: "x", colour: "red" });
  assert.deepEqual(client.got, [1]);
  page.socket.say("{");
  assert.equal(client.state, "closed");
});

// -- acknowledging -------------------------------------------------------------------------

test("acknowledges after ackEvery messages, or after ackInterval", async () => {
  const page = new FakePage();
  await page.opened({ ackEvery: 3, ackInterval: 200 });
  for (const offset of [1, 2, 3, 4]) page.socket.message(offset);
  assert.deepEqual(page.socket.frames("ack"), [{ type: "ack", offset: 3, epoch: "e1" }]);
  await page.tick(199);
  assert.equal(page.socket.frames("ack").length, 1);
  await page.tick(1);
  assert.deepEqual(page.socket.frames("ack")[1], { type: "ack", offset: 4, epoch: "e1" });
  await page.tick(10_000);
  assert.equal(page.socket.frames("ack").length, 2);
});

test("a welcome that only says that messages are missing moves nothing", async () => {
  const page = new FakePage();
  const client = page.client({ autoAck: false });
  const got = [];
  const told = [];
  client.on("message", (message) => got.push(message));
  client.on("recovered", (event) => told.push(event));
  client.connect();
  await settle();
  page.socket.welcome();
  for (const offset of [1, 2, 3]) page.socket.message(offset);
  got[0].ack();
  page.socket.welcome({ offset: 0, recovered: false, reason: "trimmed" });
  assert.deepEqual(told[1], { recovered: false, reason: "trimmed", epoch: "e1", offset: 0 });
  assert.deepEqual(client.position, { epoch: "e1", offset: 1 });
  got[1].ack();
  await page.tick(1000);
  assert.deepEqual(page.socket.frames("ack"), [{ type: "ack", offset: 2, epoch: "e1" }]);
  page.socket.message(60);
  got[3].ack();
  assert.deepEqual(client.position, { epoch: "e1", offset: 60 });
});

test("an acknowledgement names the epoch of the last welcome", async () => {
  const page = new FakePage();
  await page.opened({ ackEvery: 1 });
  page.socket.message(1);
  page.socket.welcome({ epoch: "e2", offset: 0, recovered: false, reason: "epoch" });
  page.socket.message(1, "another", "2026-02-02T00:00:00Z");
  assert.deepEqual(page.socket.frames("ack"), [
    { type: "ack", offset: 1, epoch: "e1" },
    { type: "ack", offset: 1, epoch: "e2" },
  ]);
});

test("a small window is acknowledged by its half", async () => {
  const page = new FakePage();
  await page.opened({}, { window: 4 });
  page.socket.message(1);
  page.socket.message(2);
  assert.deepEqual(page.socket.frames("ack"), [{ type: "ack", offset: 2, epoch: "e1" }]);
});

test("acknowledges before close, pagehide and when the page is hidden", async () => {
  for (const leave of [
    (page, client) => client.close(),
    (page) => page.fire("pagehide"),
    (page) => {
      page.document.visibilityState = "hidden";
      page.document.fire("visibilitychange");
    },
  ]) {
    const page = new FakePage();
    const client = await page.opened();
    page.socket.message(1);
    leave(page, client);
    assert.deepEqual(page.socket.frames("ack"), [{ type: "ack", offset: 1, epoch: "e1" }]);
  }
});

test("autoAck: false leaves it to the application, cumulatively", async () => {
  const page = new FakePage();
  const client = page.client({ autoAck: false });
  const got = [];
  client.on("message", (message) => got.push(message));
  client.connect();
  await settle();
  page.socket.welcome();
  for (const offset of [1, 2, 3]) page.socket.message(offset);
  await page.tick(1000);
  assert.deepEqual(page.socket.frames("ack"), []);
  got[1].ack();
  got[0].ack();
  await page.tick(1000);
  assert.deepEqual(page.socket.frames("ack"), [{ type: "ack", offset: 2, epoch: "e1" }]);
  page.socket.end(1006);
  await page.tick(500);
  assert.equal(page.socket.query.offset, "2"); // so a crash of the page loses nothing
  page.socket.welcome({ offset: 2 });
  page.socket.message(3);
  page.socket.message(4);
  assert.deepEqual(got.map((message) => message.offset), [1, 2, 3, 4]);
});

test("processing while the connection is made does not show messages twice", async () => {
  const page = new FakePage();
  const client = page.client({ autoAck: false });
  const got = [];
  client.on("message", (message) => got.push(message));
  client.connect();
  await settle();
  page.socket.welcome();
  page.socket.message(1);
  page.socket.message(2);
  page.socket.end(1006);
  await page.tick(500);
  got[1].ack();
  page.socket.welcome({ offset: 0 });
  page.socket.message(1);
  page.socket.message(2);
  page.socket.message(3);
  assert.deepEqual(got.map((message) => message.offset), [1, 2, 3]);
});

// -- async iteration -----------------------------------------------------------------------

test("a loop acknowledges a message when it asks for the next", async () => {
  const page = new FakePage();
  const client = page.client({ ackInterval: 10 });
  client.connect();
  await settle();
  page.socket.welcome();
  const seen = [];
  let proceed;
  const loop = (async () => {
    for await (const message of client) {
      seen.push(message.offset);
      await new Promise((resolve) => (proceed = resolve));
    }
  })();
  await settle();
  page.socket.message(1);
  page.socket.message(2);
  await page.tick(100);
  assert.deepEqual(seen, [1]);
  assert.deepEqual(page.socket.frames("ack"), []);
  proceed();
  await page.tick(100);
  assert.deepEqual(seen, [1, 2]);
  assert.deepEqual(page.socket.frames("ack"), [{ type: "ack", offset: 1, epoch: "e1" }]);
  assert.throws(() => client[Symbol.asyncIterator](), /another loop/);
  proceed();
  await settle();
  client.close();
  await loop;
});

test("listeners and a loop both get each message", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const loop = client[Symbol.asyncIterator]();
  page.socket.message(1);
  page.socket.message(2);
  await page.tick(1000);
  assert.deepEqual(client.got, [1, 2]);
  assert.deepEqual(page.socket.frames("ack"), []); // the loop decides what is processed
  assert.deepEqual([(await loop.next()).value.offset, (await loop.next()).value.offset], [1, 2]);
  await page.tick(1000);
  assert.deepEqual(page.socket.frames("ack"), [{ type: "ack", offset: 1, epoch: "e1" }]);
});

test("what a loop left behind is for the next one", async () => {
  const page = new FakePage();
  const client = page.client();
  client.connect();
  await settle();
  page.socket.welcome();
  for (const offset of [1, 2, 3]) page.socket.message(offset);
  for await (const message of client) {
    assert.equal(message.offset, 1);
    break;
  }
  const rest = [];
  for await (const message of client) {
    rest.push(message.offset);
    if (message.offset === 3) break;
  }
  assert.deepEqual(rest, [2, 3]);
});

test("calls of next() that wait at the same time each get a message, or the end", async () => {
  /** The second call took the place of the first, which never ended. */
  const page = new FakePage();
  const client = page.client();
  client.connect();
  await settle();
  page.socket.welcome();
  const loop = client[Symbol.asyncIterator]();
  const calls = [loop.next(), loop.next(), loop.next()];
  page.socket.message(1);
  page.socket.message(2);
  client.close();
  const results = await Promise.all(calls);
  assert.deepEqual(results.map(({ done, value }) => [done, value?.offset]), [[false, 1], [false, 2], [true, undefined]]);
});

test("the message that ends a loop counts as processed when the next loop asks for one", async () => {
  /** It was never acknowledged: a page that took one message a loop got one window of them. */
  const page = new FakePage();
  const client = page.client();
  client.connect();
  await settle();
  page.socket.welcome({ window: 2 });
  const acks = () => page.socket.frames("ack").map((frame) => frame.offset);
  for (const offset of [1, 2, 3]) {
    page.socket.message(offset);
    for await (const message of client) {
      assert.equal(message.offset, offset);
      break;
    }
    await page.tick(1000);
    assert.equal(acks().at(-1), offset > 1 ? offset - 1 : undefined); // it may have failed in its loop
  }
});

test("a loop ends at close, and throws at a refusal", async () => {
  for (const [end, expected] of [
    [(page, client) => client.close(), "done"],
    [(page) => page.socket.end(4503), "closed"],
  ]) {
    const page = new FakePage();
    const client = page.client();
    client.connect();
    await settle();
    page.socket.welcome();
    const loop = (async () => {
      for await (const message of client) assert.fail(message);
      return "done";
    })().catch((error) => error.code);
    await settle();
    end(page, client);
    assert.equal(await outcome(loop), expected);
  }
});

test("after a loop that has ended another one may begin, and messages are acknowledged", async () => {
  /** The client kept the loop that had ended: no other could begin, and listeners' messages were never acknowledged. */
  for (const end of [(page, client) => client.close(), (page) => page.socket.end(4503)]) {
    const page = new FakePage();
    const client = page.client();
    client.connect();
    await settle();
    page.socket.welcome();
    const loop = client[Symbol.asyncIterator]();
    const ended = loop.next().catch(() => ({ done: true }));
    end(page, client);
    assert.equal((await ended).done, true);
    client.connect();
    await settle();
    page.socket.welcome();
    page.socket.message(1);
    const again = client[Symbol.asyncIterator]();
    assert.equal((await again.next()).value.offset, 1);
    await again.return();
    client.on("message", () => {});
    page.socket.message(2);
    await page.tick(200);
    assert.deepEqual(page.socket.frames("ack"), [{ type: "ack", offset: 2, epoch: "e1" }]);
  }
});

// -- sending -------------------------------------------------------------------------------

test("send resolves when it is confirmed", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const sent = client.send("hello", { id: "c1" });
  assert.deepEqual(page.socket.frames(), [{ type: "message", id: "c1", data: "hello" }]);
  assert.equal(await outcome(sent), "pending");
  assert.equal(client.pending, 1);
  page.socket.say({ type: "ack", id: "other" });
  page.socket.say({ type: "ack", id: "c1" });
  assert.deepEqual(await outcome(sent), { id: "c1" });
  assert.equal(client.pending, 0);
});

test("what JSON does not have, and half a surrogate pair, is refused alone", async () => {
  // NaN and Infinity arrived as null, and half of an emoji as U+FFFD.
  const page = new FakePage();
  const client = await page.opened();
  const impossible = [
    NaN, { a: [-Infinity] }, [new Date(NaN)], "cut \ud83d", { a: "\ude00" }, { "\ud83d": 1 },
  ];
  for (const data of impossible) {
    const error = await outcome(client.send(data));
    assert.ok(error instanceof TypeError);
    assert.match(error.message, /cannot be sent/);
  }
  assert.equal(client.pending, 0);
  client.send({ n: null, e: "😀", u: undefined, d: new Date(0) }, { id: "fine" });
  const [frame] = page.socket.frames("message");
  assert.equal(frame.data, '{"n":null,"e":"😀","d":"1970-01-01T00:00:00.000Z"}');
});

test("what is sent: text as it is, bytes as base64, the rest as JSON", async () => {
  const page = new FakePage();
  const client = await page.opened({}, { max_message_size: 1_000_000 });
  const big = new Uint8Array(100_000).fill(7);
  const view = new Uint16Array(new Uint8Array([9, 9, 1, 2]).buffer, 2, 1);
  for (const data of ['"ü"', { a: [1, null] }, 5, null, new Uint8Array([0, 255]), view, big.buffer]) client.send(data);
  const frames = page.socket.frames("message");
  assert.deepEqual(frames.slice(0, 4).map((frame) => frame.data), ['"ü"', '{"a":[1,null]}', "5", "null"]);
  assert.deepEqual(frames.slice(4, 6).map((frame) => frame.bytes), ["AP8=", "AQI="]);
  assert.equal(Buffer.from(frames[6].bytes, "base64").compare(big), 0);
  assert.ok((await outcome(client.send(undefined))) instanceof TypeError);
  assert.ok((await outcome(client.send(() => 1))) instanceof TypeError);
  const circle = {};
  circle.self = circle;
  assert.ok((await outcome(client.send(circle))) instanceof TypeError);
  assert.equal(client.pending, 7);
});

test("ids are never used twice, not even by two clients", async () => {
  const page = new FakePage();
  const ids = new Set();
  for (let n = 0; n < 20; n += 1) {
    const client = await page.opened();
    for (let m = 0; m < 20; m += 1) client.send("x");
    for (const frame of page.socket.frames("message")) ids.add(frame.id);
  }
  assert.equal(ids.size, 400);
  for (const id of ids) assert.match(id, /^[!-~]{1,64}$/);
});

test("an unusable id is refused here", async () => {
  const page = new FakePage();
  const client = await page.opened();
  for (const id of ["", "a b", "ü", "x".repeat(65), "a\r\nb"]) {
    assert.ok((await outcome(client.send("x", { id }))) instanceof TypeError, id);
  }
  assert.deepEqual(page.socket.frames(), []);
});

test("the same id twice is one message", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const first = client.send("x", { id: "c1" });
  const second = client.send("x", { id: "c1" });
  assert.equal(page.socket.frames("message").length, 1);
  page.socket.say({ type: "ack", id: "c1" });
  assert.deepEqual([await first, await second], [{ id: "c1" }, { id: "c1" }]);
});

test("a refusal rejects with its code", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const sent = client.send("x", { id: "c1" });
  page.socket.say({ type: "error", id: "c1", code: "queue_full", message: "later", temporary: true });
  const error = await outcome(sent);
  assert.ok(error instanceof GatewayError);
  assert.deepEqual([error.code, error.message, error.temporary, error.id], ["queue_full", "later", true, "c1"]);
  page.socket.say({ type: "error", id: null, code: "bad_request", message: "no", temporary: false });
  assert.deepEqual(client.errors.map((e) => e.code), ["bad_request"]);
});

test("what is not confirmed is sent again after a reconnect: same ids, in order", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const sent = ["a", "b", "c"].map((id) => client.send(id, { id }));
  page.socket.say({ type: "ack", id: "b" });
  page.socket.end(1006);
  const offline = client.send("d", { id: "d" });
  await page.tick(500);
  assert.deepEqual(page.socket.frames(), []);
  page.socket.welcome();
  assert.deepEqual(page.socket.frames("message").map((frame) => frame.id), ["a", "c", "d"]);
  for (const id of ["a", "c", "d"]) page.socket.say({ type: "ack", id });
  await Promise.all([...sent, offline]);
});

test("sent before connect is sent at the welcome", async () => {
  const page = new FakePage();
  const client = page.client();
  const sent = client.send("x", { id: "c1" });
  assert.equal(await outcome(sent), "pending");
  client.connect();
  await settle();
  page.socket.open();
  assert.deepEqual(page.socket.frames(), []);
  page.socket.welcome();
  assert.deepEqual(page.socket.frames("message").map((frame) => frame.id), ["c1"]);
});

test("the queue is bounded and says so", async () => {
  const page = new FakePage();
  const client = page.client({ queueLimit: 2 });
  client.send("a", { id: "a" });
  client.send("b");
  const error = await outcome(client.send("c"));
  assert.deepEqual([error.code, error.temporary], ["queue_limit", true]);
  assert.equal(client.pending, 2);
});

test("at most sendWindow messages are on the wire", async () => {
  const page = new FakePage();
  const client = await page.opened({ sendWindow: 2 });
  for (const id of ["a", "b", "c", "d"]) client.send(id, { id });
  const ids = () => page.socket.frames("message").map((frame) => frame.id);
  assert.deepEqual(ids(), ["a", "b"]);
  page.socket.say({ type: "ack", id: "a" });
  assert.deepEqual(ids(), ["a", "b", "c"]);
  page.socket.end(1006);
  await page.tick(500);
  page.socket.welcome();
  assert.deepEqual(ids(), ["b", "c"]);
});

test("a message larger than the gateway accepts is refused here, even if it waited", async () => {
  const page = new FakePage();
  const client = page.client();
  const waiting = client.send("ü".repeat(501), { id: "big" });
  const small = client.send("ok", { id: "small" });
  client.connect();
  await settle();
  page.socket.welcome({ max_message_size: 1000 });
  assert.equal((await outcome(waiting)).code, "too_big");
  assert.deepEqual(page.socket.frames("message").map((frame) => frame.id), ["small"]);
  const error = await outcome(client.send("x".repeat(1001)));
  assert.deepEqual([error.code, error.temporary], ["too_big", false]);
  assert.equal(error.message, "message of 1001 bytes exceeds the gateway's limit of 1000 bytes");
  page.socket.say({ type: "ack", id: "small" });
  assert.deepEqual(await outcome(small), { id: "small" });
});

test("a send may time out or be given up", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const late = client.send("x", { id: "a", timeout: 1000 });
  const controller = new AbortController();
  const aborted = client.send("y", { id: "b", signal: controller.signal });
  await page.tick(999);
  assert.equal(await outcome(late), "pending");
  await page.tick(1);
  assert.equal((await outcome(late)).code, "timeout");
  controller.abort();
  assert.equal((await outcome(aborted)).code, "aborted");
  assert.equal((await outcome(client.send("z", { signal: controller.signal }))).code, "aborted");
  page.socket.say({ type: "ack", id: "a" }); // too late; nothing happens
  page.socket.end(1006);
  await page.tick(500);
  page.socket.welcome();
  assert.deepEqual(page.socket.frames(), []);
  assert.equal(client.pending, 0);
});

test("calls with one id each have their own timeout and signal", async () => {
  /** The second call had those of the first: without any, it waited for ever. */
  for (const method of ["send", "request"]) {
    const page = new FakePage();
    const client = await page.opened({ requestTimeout: null });
    const patient = client[method]("x", { id: "a" });
    const late = client[method]("x", { id: "a", timeout: 1000 });
    const controller = new AbortController();
    const given = client[method]("x", { id: "a", signal: controller.signal });
    controller.abort();
    await page.tick(1000);
    assert.deepEqual([(await outcome(late)).code, (await outcome(given)).code], ["timeout", "aborted"]);
    assert.equal(await outcome(patient), "pending");
    assert.equal(client.pending, 1);
    page.socket.end(1006);
    await page.tick(500);
    page.socket.welcome();
    assert.deepEqual(page.socket.frames("message").map((frame) => frame.id), ["a"]);
    page.socket.say({ type: "message", offset: 1, reply_to: "a", data: "!" });
    assert.equal((await outcome(patient)).offset ?? "stored", method === "send" ? "stored" : 1);
  }
});

test("a confirmed send leaves no timer behind", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const before = page.timers.size;
  const sent = client.send("x", { id: "a", timeout: 1000 });
  page.socket.say({ type: "ack", id: "a" });
  await sent;
  assert.equal(page.timers.size, before);
});

// -- asking --------------------------------------------------------------------------------

test("request resolves with the reply, which is not a message", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const reply = client.request({ buy: 3 });
  const [frame] = page.socket.frames("message");
  assert.equal(frame.request, true);
  page.socket.say({ type: "ack", id: frame.id });
  assert.equal(await outcome(reply), "pending");
  page.socket.say({ type: "message", offset: 4, time: null, reply_to: frame.id, data: "[1]" });
  const message = await outcome(reply);
  assert.deepEqual([message.offset, message.replyTo, message.json()], [4, frame.id, [1]]);
  assert.deepEqual(client.got, []);
  await page.tick(200);
  assert.deepEqual(page.socket.frames("ack"), [{ type: "ack", offset: 4, epoch: "e1" }]);
  assert.equal(page.timers.size, 1, "only the monitor's");
});

test("a trace context becomes part of the frame", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  client.send("a", { id: "a", traceparent, tracestate: 'b="c"' });
  client.request("b", { id: "b", traceparent });
  client.send("c", { id: "c", traceparent: undefined, tracestate: "" });
  assert.deepEqual(page.socket.frames("message"), [
    { type: "message", id: "a", traceparent, tracestate: 'b="c"', data: "a" },
    { type: "message", id: "b", request: true, traceparent, data: "b" },
    { type: "message", id: "c", data: "c" },
  ]);
});

test("send asks for no reply", async () => {
  const page = new FakePage();
  const client = await page.opened();
  client.send("x");
  assert.equal("request" in page.socket.frames("message")[0], false);
});

test("a request that the service or the gateway refuses rejects with the code", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const first = client.request("a", { id: "a" });
  const second = client.request("b", { id: "b" });
  page.socket.say({ type: "message", offset: 1, reply_to: "a", error: "sold_out", data: "none left" });
  page.socket.say({ type: "error", id: "b", code: "queue_full", message: "full", temporary: true });
  const [one, two] = [await outcome(first), await outcome(second)];
  assert.deepEqual([one.code, one.message, one.temporary, one.id], ["sold_out", "none left", false, "a"]);
  assert.deepEqual([two.code, two.temporary], ["queue_full", true]);
  assert.equal(client.pending, 0, "a reply confirms that the request was stored");
  assert.deepEqual(client.errors, []);
});

test("a reply after a reconnect is a reply; an unconfirmed request is sent again as one", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const stored = client.request("a", { id: "a" });
  const lost = client.request("b", { id: "b" });
  page.socket.say({ type: "ack", id: "a" });
  page.socket.end(1006);
  await page.tick(500);
  page.socket.welcome();
  assert.deepEqual(page.socket.frames("message"), [{ type: "message", id: "b", request: true, data: "b" }]);
  page.socket.say({ type: "message", offset: 1, reply_to: "a", data: "A" });
  page.socket.say({ type: "message", offset: 2, reply_to: "b", data: "B" });
  assert.deepEqual([(await outcome(stored)).data, (await outcome(lost)).data], ["A", "B"]);
});

test("replies that nobody waits for are events, and acknowledged", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const replies = [];
  client.on("reply", (message) => replies.push(message.data));
  page.socket.say({ type: "message", offset: 1, reply_to: "other", data: "hello" });
  page.socket.say({ type: "message", offset: 2, reply_to: "other", error: "gone", data: "" });
  assert.deepEqual(replies, ["hello"]);
  assert.deepEqual(client.errors.map(({ code, id }) => [code, id]), [["gone", "other"]]);
  assert.deepEqual(client.got, []);
  assert.deepEqual(client.position, { epoch: "e1", offset: 2 });
});

test("a reply does not acknowledge the messages that it overtakes", async () => {
  const page = new FakePage();
  const client = await page.opened({ autoAck: false });
  const messages = [];
  client.on("message", (message) => messages.push(message));
  const reply = client.request("q", { id: "q" });
  page.socket.message(1);
  page.socket.message(2);
  page.socket.say({ type: "message", offset: 3, reply_to: "q", data: "" });
  (await reply).ack();
  assert.equal(client.position.offset, 0);
  messages[0].ack();
  assert.equal(client.position.offset, 1);
  messages[1].ack();
  assert.equal(client.position.offset, 3);
});

test("a reply acknowledged late does not acknowledge a message of another epoch", async () => {
  const page = new FakePage();
  const client = await page.opened({ autoAck: false });
  const reply = client.request("q", { id: "q" });
  page.socket.say({ type: "message", offset: 1, reply_to: "q", data: "" });
  page.socket.welcome({ epoch: "e2", recovered: false, reason: "epoch" });
  page.socket.message(1);
  (await reply).ack();
  assert.deepEqual(client.position, { epoch: "e2", offset: 0 });
});

test("a request may time out or be given up; its late reply is an event", async () => {
  const page = new FakePage();
  const client = await page.opened({ requestTimeout: 1000 });
  const replies = [];
  client.on("reply", (message) => replies.push(message.replyTo));
  const patient = client.request("p", { id: "p", timeout: null });
  const late = client.request("l", { id: "l" });
  page.socket.say({ type: "ack", id: "l" });
  const giveUp = new AbortController();
  const aborted = client.request("a", { id: "a", signal: giveUp.signal });
  giveUp.abort();
  await page.tick(1000);
  assert.deepEqual([(await outcome(late)).code, (await outcome(aborted)).code], ["timeout", "aborted"]);
  assert.equal((await outcome(client.request("x", { signal: giveUp.signal }))).code, "aborted");
  assert.equal(await outcome(patient), "pending");
  assert.equal(client.pending, 1, "what was given up is not sent again");
  page.socket.say({ type: "message", offset: 1, reply_to: "l", data: "" });
  assert.deepEqual(replies, ["l"]);
});

test("requests that wait for replies are bounded, known by id, and rejected at the end", async () => {
  const page = new FakePage();
  const client = await page.opened({ queueLimit: 2 });
  const first = client.request("a", { id: "a" });
  const same = client.request("a", { id: "a" });
  const second = client.request("b", { id: "b" });
  page.socket.say({ type: "ack", id: "a" });
  page.socket.say({ type: "ack", id: "b" });
  assert.equal((await outcome(client.request("c"))).code, "queue_limit");
  page.socket.end(4505, "disconnected by an operator");
  for (const promise of [first, same, second]) {
    const { code, closeCode } = await outcome(promise);
    assert.deepEqual([code, closeCode], ["closed", 4505]);
  }
  assert.equal((await outcome(client.request("d"))).code, "closed");
});

// -- life ----------------------------------------------------------------------------------

test("answers pings", async () => {
  const page = new FakePage();
  await page.opened();
  page.socket.say({ type: "ping" });
  assert.deepEqual(page.socket.frames(), [{ type: "pong" }]);
});

test("a silent gateway is asked, and dead after ping interval and time-out", async () => {
  const page = new FakePage();
  const client = await page.opened({ pingTimeout: 10_000 }, { ping: 25 });
  await page.tick(29_999);
  assert.deepEqual(page.socket.frames(), []);
  await page.tick(1);
  assert.deepEqual(page.socket.frames(), [{ type: "ping" }]);
  await page.tick(4999);
  assert.equal(client.state, "open");
  await page.tick(1);
  assert.deepEqual(client.log.at(-1).slice(0, 1), ["waiting"]);
  assert.equal(client.log.at(-1)[1].code, 4012);
  assert.ok(page.socket.closed);
  page.socket.onmessage({ data: '{"type":"message","offset":1,"data":"late"}' });
  assert.deepEqual(client.got, []);
});

test("any frame is a sign of life", async () => {
  const page = new FakePage();
  const client = await page.opened({}, { ping: 25 });
  for (let n = 1; n <= 20; n += 1) {
    await page.tick(20_000);
    page.socket.message(n);
  }
  await page.tick(30_000);
  page.socket.say({ type: "pong" });
  await page.tick(29_000);
  assert.equal(client.state, "open");
  assert.equal(page.socket.frames("ping").length, 1);
});

test("a page that slept asks before it gives a good connection up", async () => {
  const page = new FakePage();
  const client = await page.opened({}, { ping: 25 });
  await page.tick(30_000);
  page.sleep(3_600_000); // in the middle of a question
  await page.tick(0);
  assert.equal(client.state, "open");
  assert.equal(page.socket.frames("ping").length, 2);
  page.socket.say({ type: "pong" });
  await page.tick(5000);
  assert.equal(client.state, "open");
});

test("a page that becomes visible, or online, asks at once", async () => {
  for (const wake of [
    (page) => page.document.fire("visibilitychange"),
    (page) => page.fire("online"),
    (page) => page.fire("pageshow", { persisted: true }),
    (page) => page.fire("offline"),
  ]) {
    const page = new FakePage();
    const client = await page.opened({ pingTimeout: 10_000 });
    wake(page);
    assert.deepEqual(page.socket.frames(), [{ type: "ping" }]);
    await page.tick(5000);
    assert.equal(client.state, "waiting");
  }
});

test("a page that becomes visible, or online, does not wait for its timer", async () => {
  for (const wake of [(page) => page.document.fire("visibilitychange"), (page) => page.fire("online")]) {
    const page = new FakePage();
    await page.opened();
    page.socket.end(1006);
    wake(page);
    await settle();
    assert.equal(page.sockets.length, 2);
    await page.tick(5000);
    assert.equal(page.sockets.length, 2);
  }
});

test("without a network the state says so, and attempts go on in case that is wrong", async () => {
  const page = new FakePage();
  const client = await page.opened();
  page.navigator.onLine = false;
  page.socket.end(1006);
  assert.equal(client.state, "offline");
  await page.tick(500);
  assert.equal(page.sockets.length, 2);
  page.navigator.onLine = true;
  page.socket.end(1006);
  assert.equal(client.state, "waiting");
  page.fire("offline");
  assert.equal(client.state, "offline");
});

test("close says goodbye and forgets everything", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const sent = client.send("x");
  client.close();
  client.close();
  assert.deepEqual(page.socket.closed, { code: 1000, reason: "" });
  assert.equal((await outcome(sent)).code, "closed");
  assert.deepEqual(states(client), ["connecting", "open", "closed"]);
  assert.deepEqual(client.errors, []);
  assert.equal(page.timers.size, 0);
  assert.equal(page.count + page.document.count, 0);
});

test("close while waiting ends the waiting", async () => {
  const page = new FakePage();
  const client = page.client();
  const connected = client.connect();
  await settle();
  page.socket.end(1006);
  client.close();
  assert.equal((await outcome(connected)).code, "closed");
  await page.tick(100_000);
  assert.equal(page.sockets.length, 1);
});

test("two tabs are two clients that know nothing of each other", async () => {
  const page = new FakePage();
  const [one, two] = [await page.opened(), await page.opened()];
  for (const socket of page.sockets) socket.message(1);
  page.sockets[0].end(1006);
  assert.deepEqual([one.state, two.state], ["waiting", "open"]);
  assert.deepEqual([one.got, two.got], [[1], [1]]);
});

test("listeners can be removed", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const got = [];
  const off = client.on("message", (message) => got.push(["on", message.offset]));
  client.once("message", (message) => got.push(["once", message.offset]));
  page.socket.message(1);
  off();
  page.socket.message(2);
  assert.deepEqual(got, [["on", 1], ["once", 1]]);
});

test("nothing but WebSocket is needed", async () => {
  const page = new FakePage();
  const { setTimeout, clearTimeout } = globalThis;
  const client = new WsGateway("ws://127.0.0.1:1/ws/", { host: { setTimeout, clearTimeout }, WebSocket: page.WebSocket });
  client.connect();
  await settle();
  page.socket.welcome();
  assert.equal(client.state, "open");
  client.close();
});
