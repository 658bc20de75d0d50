/** Topics of wsgateway.js against a fake page; what both clients do is in tests/vectors/client.json. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { GatewayError } from "../../wsgateway/static/wsgateway/wsgateway.js";
import { FakePage, outcome, settle } from "./fakes.mjs";

function subscribed(page, id, fields = {}) {
  page.socket.say({
    type: "subscribed", id, topic: "room.42", epoch: "r1", offset: 0, recovered: false, reason: "new",
    access: "write", ...fields,
  });
}

function say(page, offset, data = `m${offset}`, topic = "room.42") {
  page.socket.say({ type: "message", topic, offset, time: `t${offset}`, data });
}

async function withRoom(options = { since: 50 }) {
  const page = new FakePage();
  const client = await page.opened();
  const room = client.topic("room.42", options);
  await settle();
  subscribed(page, "topic-1");
  return { page, client, room };
}

test("a topic tells its state, its right and where it is", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const room = client.topic("room.42", { since: 50 });
  const states = [];
  const recovered = [];
  room.on("state", (...event) => states.push(event));
  room.on("recovered", (event) => recovered.push(event));
  assert.deepEqual([room.name, room.state, room.access, room.position], ["room.42", "waiting", null, null]);
  assert.equal(await outcome(room.ready), "pending");
  subscribed(page, "topic-1");
  assert.equal(await outcome(room.ready), undefined);
  assert.deepEqual([room.state, room.access, room.position], ["subscribed", "write", { epoch: "r1", offset: 0 }]);
  page.socket.end(1006);
  assert.equal(room.state, "waiting");
  await page.tick(500);
  page.socket.welcome();
  subscribed(page, "topic-2", { recovered: true, reason: undefined, access: "read" });
  room.close();
  assert.deepEqual(states.map(([state, { access, code }]) => [state, access ?? code]), [
    ["subscribed", "write"], ["waiting", undefined], ["subscribed", "read"], ["ended", "ended"],
  ]);
  assert.deepEqual(recovered, [
    { recovered: false, reason: "new", epoch: "r1", offset: 0 },
    { recovered: true, reason: null, epoch: "r1", offset: 0 },
  ]);
  assert.deepEqual(client.recoveries.length, 2, "the inbox's own");
});

test("messages of a topic go to its listeners, with who wrote them", async () => {
  const { page, client, room } = await withRoom();
  const got = [];
  const once = [];
  room.once("message", ({ data }) => once.push(data));
  const off = room.on("message", (message) => got.push(message));
  page.socket.say({
    type: "message", topic: "room.42", offset: 3, time: "2026-01-01T00:00:00Z", data: "[1]",
    from: { service: "orders", user: "bob" },
  });
  say(page, 4, "x", "room.43");
  off();
  say(page, 5);
  room.on("message", (message) => got.push(message));
  await settle();
  assert.deepEqual(got.map(({ offset }) => offset), [3, 5], "what came without a listener waited");
  const { topic, from, time } = got[0];
  assert.deepEqual([topic, from, time.toISOString(), got[0].json()],
    ["room.42", { service: "orders", user: "bob" }, "2026-01-01T00:00:00.000Z", [1]]);
  assert.deepEqual([once, client.got], [["[1]"], []]);
});

test("a loop over a topic acknowledges what it is done with, and ends with the topic", async () => {
  const { page, room } = await withRoom();
  const got = [];
  const reading = (async () => {
    for await (const { offset } of room) got.push([offset, room.position.offset]);
  })();
  assert.throws(() => room[Symbol.asyncIterator](), /another loop/);
  say(page, 3);
  say(page, 4);
  await settle();
  assert.deepEqual(got, [[3, 0], [4, 3]]);
  room.close();
  assert.equal(await outcome(reading), undefined);
  for await (const message of room) assert.fail(message.data);
});

test("a loop over a topic throws why the gateway ended it", async () => {
  const { page, client, room } = await withRoom();
  const errors = [];
  room.on("error", (error) => errors.push(error));
  const reading = (async () => {
    for await (const message of room) assert.fail(message.data);
  })();
  await settle();
  page.socket.say({ type: "unsubscribed", topic: "room.42", code: "forbidden", reason: "not a member", temporary: false });
  const error = await outcome(reading);
  assert.ok(error instanceof GatewayError);
  assert.deepEqual([error.code, error.message, errors, client.errors], ["forbidden", "not a member", [error], []]);
  assert.deepEqual([room.state, room.access], ["ended", null]);
  const late = await outcome(room.send("x", { id: "late" }));
  assert.deepEqual([late.code, late.message, late.id], ["forbidden", "not a member", "late"]);
  page.socket.say({ type: "ping" });
  assert.deepEqual(page.socket.frames("unsubscribe"), []);
});

test("no id of a message is that of a question", async () => {
  // The refusal of the message ended the subscription or watch, and the send waited for ever
  const page = new FakePage();
  const client = await page.opened();
  const [room, online] = [client.topic("room.42"), client.watch("bob")];
  subscribed(page, "topic-1", { topic: "room.7" }); // not asked for
  const ids = page.socket.sent.map((text) => JSON.parse(text).id);
  assert.equal(new Set([...ids, "topic-1", "watch-1"]).size, 4);
  for (const id of ["topic-1", "watch-1"]) {
    const sent = client.send("x", { id });
    page.socket.say(JSON.stringify({ type: "error", id, code: "bad_request", message: "no", temporary: false }));
    assert.equal((await outcome(sent)).code, "bad_request");
  }
  assert.deepEqual([await outcome(room.ready), await outcome(online)], ["pending", "pending"]);
});

test("a refusal rejects ready; a page that ignores it does not hear of it", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const room = client.topic("room.42");
  page.socket.say({ type: "unsubscribed", id: "topic-1", topic: "room.42", code: "too_many", reason: "no", temporary: false });
  assert.equal((await outcome(room.ready)).code, "too_many");
});

test("there is one topic of a name: without options the open one, with options an error", async () => {
  const { page, client, room } = await withRoom();
  assert.equal(client.topic("room.42"), room);
  assert.throws(() => client.topic("room.42", { since: "all" }), /already subscribed to 'room.42'/);
  room.close();
  room.close();
  const other = client.topic("room.42", { since: "all" });
  assert.notEqual(other, room);
  assert.deepEqual(page.socket.frames().map(({ type, since }) => [type, since]), [
    ["subscribe", 50], ["unsubscribe", undefined], ["subscribe", "all"],
  ]);
  room.close(); // the first one's; the second goes on
  assert.equal(other.state, "waiting");
  for (const name of ["room", ".42", "room.", "", undefined]) assert.throws(() => client.topic(name), TypeError);
});

test("a thousand topics are asked for at once, before anything else is answered", async () => {
  const page = new FakePage();
  const client = await page.opened();
  for (let n = 0; n < 1000; n += 1) client.topic(`room.${n}`);
  page.socket.end(1006);
  await page.tick(500);
  page.socket.welcome();
  assert.equal(new Set(page.socket.frames("subscribe").map(({ topic }) => topic)).size, 1000);
});

test("the token's function gets the name; if it fails, it is called again later", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const asked = [];
  let fail = true;
  const room = client.topic("room.42", {
    token: async (name) => {
      asked.push(name);
      if (fail) throw new TypeError("Failed to fetch");
      return "t";
    },
  });
  const errors = [];
  room.on("error", (error) => errors.push(error.message));
  await settle();
  assert.deepEqual([asked, errors, room.state], [["room.42"], ["Failed to fetch"], "waiting"]);
  fail = false;
  await page.tick(500);
  assert.deepEqual(page.socket.frames("subscribe"), [{ type: "subscribe", id: "topic-1", topic: "room.42", token: "t" }]);
});

test("a function that says no for good ends the topic; one that is late does nothing", async () => {
  const page = new FakePage();
  const client = await page.opened();
  const refused = client.topic("room.42", {
    token: () => { throw new GatewayError("forbidden", "not a member", false); },
  });
  let give;
  const left = client.topic("room.43", { token: () => new Promise((resolve) => (give = resolve)) });
  await settle();
  assert.deepEqual([refused.state, (await outcome(refused.ready)).message], ["ended", "not a member"]);
  left.close();
  give("late");
  await page.tick(5000);
  assert.deepEqual(page.socket.frames("subscribe"), []);
});

test("a token that comes on the next connection is used there, once", async () => {
  const page = new FakePage();
  const client = await page.opened();
  let give;
  let calls = 0;
  client.topic("room.42", { token: () => new Promise((resolve) => ((calls += 1), (give = resolve))) });
  await settle();
  page.socket.end(1006);
  await page.tick(500);
  page.socket.welcome();
  give("t");
  await settle();
  assert.deepEqual([calls, page.socket.frames("subscribe").length], [1, 1]);
});

test("readers is the list that was heard last; a listener may end the watch", async () => {
  const { page, room } = await withRoom();
  assert.equal(room.readers, null);
  const answers = [room.watch(), room.watch()];
  assert.deepEqual([page.socket.frames("watch").length, room.readers], [1, null]);
  const users = [{ service: "orders", user: "ann", later: 1 }];
  room.on("readers", (readers) => {
    room.got = [readers, room.readers];
    room.unwatch();
  });
  page.socket.say({ type: "watching", id: "watch-1", topic: "room.42", users, complete: true });
  const known = { users: [{ service: "orders", user: "ann" }], sockets: null, complete: true };
  assert.deepEqual([await outcome(answers[0]), await outcome(answers[1])], [known, known]);
  assert.deepEqual(room.got, [{ ...known, joined: known.users, left: [] }, known]);
  assert.deepEqual([room.readers, page.socket.frames("unwatch").length], [null, 1]);
});

const refusedWatch = { type: "error", id: "watch-1", code: "forbidden", message: "no", temporary: false };

/** A client whose room was opened with the token "t0", and is watched now; *fetch* gives the next ones. */
async function watchedWithToken(fetch) {
  const page = new FakePage();
  const client = await page.opened();
  const tokens = [() => "t0", ...fetch];
  const room = client.topic("room.42", { token: () => tokens.shift()() });
  room.errors = [];
  room.on("error", (error) => room.errors.push(error));
  await settle();
  subscribed(page, "topic-1");
  const answer = room.watch();
  page.socket.say(refusedWatch);
  await settle();
  return { page, room, answer };
}

const asked = ({ socket }) => socket.frames("watch").map(({ token }) => token);

test("a watch that is refused is asked for once more, with a new token", async () => {
  const { page, room, answer } = await watchedWithToken([() => "t1", () => assert.fail("only once")]);
  assert.deepEqual([asked(page), await outcome(answer)], [["t0", "t1"], "pending"]);
  page.socket.say(refusedWatch);
  assert.equal((await outcome(answer)).code, "forbidden");
  assert.deepEqual([room.state, room.errors], ["subscribed", []]);
});

test("a watch whose new token comes on the next connection, or not at all", async () => {
  let give;
  const { page, room, answer } = await watchedWithToken([() => new Promise((resolve) => (give = resolve))]);
  page.socket.end(1006);
  await page.tick(500);
  page.socket.welcome();
  subscribed(page, "topic-2", { recovered: true, reason: undefined });
  give("t1");
  await settle();
  assert.deepEqual([asked(page), await outcome(answer)], [["t0"], "pending"], "asked once on this connection");
  room.unwatch();
  assert.equal((await outcome(answer)).code, "ended");
  const failing = await watchedWithToken([() => { throw new Error("no network"); }]);
  assert.equal((await outcome(failing.answer)).message, "no network");
  assert.deepEqual([asked(failing.page), failing.room.errors], [["t0"], []]);
});

test("with autoAck off, messages of a topic are acknowledged by hand", async () => {
  const { page, room } = await withRoom({ autoAck: false });
  const messages = [];
  room.on("message", (message) => messages.push(message));
  for (const offset of [1, 2, 3]) say(page, offset);
  assert.equal(room.position.offset, 0);
  messages[1].ack();
  await page.tick(200);
  assert.deepEqual(page.socket.frames("ack"), [{ type: "ack", topic: "room.42", offset: 2, epoch: "r1" }]);
});

test("close of the client acknowledges its topics first, and ends them", async () => {
  const { page, client, room } = await withRoom();
  const errors = [];
  room.on("error", (error) => errors.push(error));
  room.on("message", () => {});
  say(page, 3);
  const socket = page.socket;
  client.close();
  assert.deepEqual(socket.frames("ack"), [{ type: "ack", topic: "room.42", offset: 3, epoch: "r1" }]);
  assert.deepEqual([room.state, errors, page.timers.size], ["ended", [], 0]);
  client.connect();
  await settle();
  page.socket.welcome();
  assert.deepEqual(page.socket.frames("subscribe"), [], "the application subscribes again");
});
