/** One socket for all tabs: wsgateway.js in tabs and in a SharedWorker of a fake browser. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { serveTabs } from "../../wsgateway/static/wsgateway/wsgateway.js";
import { FakeBrowser, FakePage, outcome, settle } from "./fakes.mjs";

const browser = () => new FakeBrowser(serveTabs);

/** A tab's client that is connecting, and what its listeners got. */
async function join(all, options = {}) {
  const page = all.tab();
  const client = page.client({ shared: "ann", ...options });
  client.page = page;
  client.got = [];
  client.on("message", (message) => client.got.push(message.data));
  client.connect();
  await all.settle();
  return client;
}

async function opened(count, welcome = {}, options = {}) {
  const all = browser();
  const clients = [await join(all, options)];
  all.socket.welcome({ service: "orders", user: "ann", ...welcome });
  await all.settle();
  while (clients.length < count) clients.push(await join(all, options));
  assert.deepEqual(clients.map(({ state }) => state), clients.map(() => "open"));
  return [all, ...clients];
}

const states = (...clients) => clients.map(({ state }) => state);

async function subscribe(all, client, options = { since: 50 }, name = "room.42") {
  const room = client.topic(name, options);
  room.got = [];
  room.on("message", ({ data }) => room.got.push(data));
  room.answers = [];
  room.on("recovered", ({ offset, recovered, reason }) => room.answers.push([offset, recovered, reason]));
  await all.settle();
  return room;
}

function subscribed(all, fields = {}) {
  const { id, topic } = all.socket.frames("subscribe").at(-1);
  all.socket.say({
    type: "subscribed", id, topic, epoch: "r1", offset: 10, recovered: false, reason: "new", access: "write", ...fields,
  });
}

function say(all, offset, topic = "room.42") {
  all.socket.say({ type: "message", topic, offset, time: `t${offset}`, data: `r${offset}` });
}

// -- the connection ------------------------------------------------------------------------

test("tabs of one user share a connection; each has its own life", async () => {
  const [all, one, two, three] = await opened(3);
  assert.deepEqual([all.workers.size, all.worker.sockets.length], [1, 1]);
  assert.deepEqual(all.tabs.map(({ sockets }) => sockets.length), [0, 0, 0]);
  assert.deepEqual(all.socket.url.pathname, "/ws/orders/ann/");
  all.socket.message(1, "a");
  await all.settle();
  assert.deepEqual([one.got, two.got, three.got], [["a"], ["a"], ["a"]]);
  three.close();
  all.socket.message(2, "b");
  await all.settle();
  assert.deepEqual([one.got, two.got, three.got], [["a", "b"], ["a", "b"], ["a"]]);
  await all.tick(200);
  assert.deepEqual(all.socket.frames("ack").at(-1), { type: "ack", offset: 2, epoch: "e1" });
});

test("users, devices and paths have workers of their own", async () => {
  const all = browser();
  await join(all);
  await join(all);
  await join(all, { shared: "bob" });
  await join(all, { device: "phone" });
  assert.equal(all.workers.size, 3);
  const page = all.tab();
  for (const shared of ["", {}, { key: 7 }, true]) assert.throws(() => page.client({ shared }), TypeError);
});

test("an acknowledgement means that every tab has processed it", async () => {
  const [all, fast, slow] = await opened(2);
  slow.on("message", () => {});
  const hand = await join(all, { autoAck: false });
  const held = [];
  hand.on("message", (message) => held.push(message));
  all.socket.message(1, "a");
  all.socket.message(2, "b");
  await all.settle();
  await all.tick(200);
  assert.deepEqual(all.socket.frames("ack"), []);
  held[0].ack();
  await all.settle();
  await all.tick(200);
  assert.deepEqual(all.socket.frames("ack"), [{ type: "ack", offset: 1, epoch: "e1" }]);
  hand.close();
  await all.settle();
  assert.deepEqual(all.socket.frames("ack").at(-1), { type: "ack", offset: 2, epoch: "e1" });
  assert.equal(fast.position.offset, 2);
});

test("a tab that comes later begins where all others are, or at its own position", async () => {
  const [all, one] = await opened(1, { offset: 5, recovered: false, reason: "new" });
  all.socket.message(6, "a");
  await all.settle();
  const early = await join(all);
  assert.deepEqual([early.got, early.recoveries[0].reason], [["a"], "new"], "nobody has acknowledged it");
  await all.tick(200);
  all.socket.message(7, "b");
  await all.settle();
  const own = await join(all, { position: { epoch: "e1", offset: 5 } });
  assert.deepEqual([own.got, own.recoveries[0].recovered, own.position.offset], [["a", "b"], true, 7]);
  await all.tick(200);
  const late = await join(all);
  assert.deepEqual([late.got, late.recoveries[0].recovered, late.position.offset], [[], true, 7]);
  const lost = await join(all, { position: { epoch: "e0", offset: 5 } });
  assert.deepEqual([lost.recoveries[0].recovered, lost.recoveries[0].reason], [false, "epoch"]);
  assert.equal(all.worker.sockets.length, 1);
  assert.equal(one.state, "open");
});

test("a tab whose position is not in the worker opens a socket of its own", async () => {
  const [all] = await opened(1, { offset: 100 });
  const behind = await join(all, { position: { epoch: "e1", offset: 7 } });
  const { socket } = behind.page;
  assert.deepEqual(socket.query, { epoch: "e1", offset: "7" });
  socket.welcome({ offset: 7, recovered: false, reason: "trimmed" });
  assert.equal(behind.state, "open");
  socket.message(8, "own");
  all.socket.message(101, "shared");
  await all.settle();
  assert.deepEqual(behind.got, ["own"]);
});

test("a lost connection is lost for all; they come back over one, each where it was", async () => {
  const [all, one, two] = await opened(2);
  const hand = await join(all, { autoAck: false });
  all.socket.message(1, "a");
  await all.settle();
  all.socket.end(1006);
  await all.settle();
  assert.deepEqual(states(one, two, hand), ["waiting", "waiting", "waiting"]);
  await all.tick(500);
  assert.equal(all.worker.sockets.length, 2);
  assert.deepEqual(all.socket.query, { epoch: "e1", offset: "1" });
  all.socket.welcome({ service: "orders", user: "ann", offset: 1 });
  await all.settle();
  assert.deepEqual(states(one, two, hand), ["open", "open", "open"]);
  all.socket.message(2, "b");
  await all.settle();
  assert.deepEqual([one.got, two.got, hand.got], [["a", "b"], ["a", "b"], ["a", "b"]]);
  assert.deepEqual(hand.recoveries.map(({ recovered }) => recovered), [true, true]);
});

test("the reason of a close reaches every tab", async () => {
  const [all, one, two] = await opened(2);
  all.socket.say({ type: "closing", reconnect_after: 7 });
  all.socket.end(4001, "shutting down");
  await all.settle();
  assert.deepEqual([one, two].map(({ log }) => [log.at(-1)[1].code, log.at(-1)[1].delay]), [[4001, 7000], [4001, 7000]]);
  await all.tick(7000);
  all.socket.end(4503, "forbidden");
  await all.settle();
  assert.deepEqual(states(one, two), ["closed", "closed"]);
  assert.equal(all.worker.timers.size, 0);
});

test("a silent gateway is noticed by the worker, a silent worker by its tabs", async () => {
  const [all, one] = await opened(1);
  await all.tick(25_000);
  await all.tick(5000);
  assert.equal(all.socket.frames("ping").length, 1);
  await all.tick(5000);
  assert.equal(one.log.some(([, { code }]) => code === 4012), true);

  const [other, tab] = await opened(1);
  for (const port of tab.page.ports) port.other = null;
  await tab.page.tick(35_000);
  assert.equal(tab.log.some(([, { code }]) => code === 4012), true);
  assert.equal(other.workers.size, 1);
});

test("another user's login closes the tabs of the first; their messages are forgotten", async () => {
  const [all, one, two] = await opened(2);
  all.socket.message(1, "secret");
  await all.settle();
  all.socket.end(4016, "credentials changed");
  await all.tick(500);
  all.socket.welcome({ service: "orders", user: "bob", offset: 1 });
  await all.settle();
  assert.deepEqual(states(one, two), ["closed", "closed"]);
  const next = await join(all);
  all.socket.welcome({ service: "orders", user: "bob", offset: 0 });
  await all.settle();
  assert.deepEqual([next.state, next.got], ["open", []]);
});

// -- tabs that go --------------------------------------------------------------------------

test("the last tab that goes closes the connection", async () => {
  const [all, one, two] = await opened(2);
  one.close();
  await all.settle();
  assert.equal(all.socket.closed, null);
  two.page.fire("pagehide", {});
  await all.settle();
  assert.equal(all.socket.closed.code, 1000);
  assert.equal(all.worker.timers.size, 0);
  assert.equal(two.state, "waiting", "it may come back from the cache");
  two.page.fire("pageshow", { persisted: true });
  await all.settle();
  assert.equal(all.worker.sockets.length, 2);
});

test("a tab that crashes holds nothing up: its lock is free", async () => {
  const [all, one, two] = await opened(2);
  await subscribe(all, two, {}, "room.7");
  subscribed(all);
  await all.settle();
  all.socket.message(1, "a");
  all.crash(two.page);
  await all.settle();
  await all.tick(200);
  assert.deepEqual(all.socket.frames("ack"), [], "the worker waits for both");
  const [lock] = [...all.locks.held].filter(([, waiting]) => waiting.length).map(([name]) => name).slice(-1);
  all.locks.release(lock);
  await all.settle();
  assert.deepEqual(all.socket.frames("ack"), [{ type: "ack", offset: 1, epoch: "e1" }]);
  assert.deepEqual(all.socket.frames("unsubscribe"), [{ type: "unsubscribe", topic: "room.7" }]);
  assert.equal(one.state, "open");
});

test("without locks, a tab that does not answer is gone after two pings", async () => {
  const all = browser();
  all.locks = undefined;
  const one = await join(all);
  all.socket.welcome();
  await all.settle();
  const two = await join(all);
  all.crash(two.page);
  all.socket.message(1, "a");
  await all.settle();
  for (let n = 0; n < 3; n += 1) {
    await all.tick(25_000);
    all.socket.say({ type: "ping" });
    await all.settle();
  }
  assert.deepEqual(all.socket.frames("ack"), [{ type: "ack", offset: 1, epoch: "e1" }]);
  assert.equal(one.state, "open");
});

test("a tab that processes nothing while others wait gets a socket of its own", async () => {
  const [all, fast] = await opened(1, { window: 8 });
  const stuck = await join(all, { autoAck: false });
  const slow = await join(all, { autoAck: false, ackInterval: 100 });
  const held = [];
  slow.on("message", (message) => held.push(message));
  for (let n = 1; n <= 4; n += 1) all.socket.message(n);
  await all.settle();
  await all.tick(1000);
  held[0].ack();
  await all.settle();
  await all.tick(1000);
  assert.deepEqual(states(stuck, slow), ["waiting", "open"], "slow, but it goes on");
  held[3].ack();
  await all.settle();
  await all.tick(200);
  assert.deepEqual(all.socket.frames("ack").at(-1), { type: "ack", offset: 4, epoch: "e1" });
  await stuck.page.tick(500);
  assert.deepEqual(stuck.page.socket.query, { epoch: "e1", offset: "0" });
  assert.equal(fast.state, "open");
});

// -- what tabs send ------------------------------------------------------------------------

test("each tab gets the answers to what it sent; a reply goes to all, as on sockets of their own", async () => {
  const [all, one, two] = await opened(2);
  const replies = [];
  one.on("reply", ({ data }) => replies.push(data));
  const [a, b] = [one.send("1", { id: "a" }), two.request("2", { id: "b" })];
  const c = two.send("3", { id: "c" });
  await all.settle();
  assert.deepEqual(all.socket.frames("message").map(({ id }) => id), ["a", "b", "c"]);
  all.socket.say({ type: "ack", id: "a" });
  all.socket.say({ type: "error", id: "c", code: "queue_full", message: "full", temporary: true });
  all.socket.say({ type: "message", offset: 1, reply_to: "b", data: "yes" });
  await all.settle();
  assert.deepEqual([await outcome(a), (await outcome(b)).data, (await outcome(c)).code], [{ id: "a" }, "yes", "queue_full"]);
  assert.deepEqual([replies, one.errors, two.errors], [["yes"], [], []]);
});

test("two tabs that watch one user are one watch", async () => {
  const [all, one, two] = await opened(2);
  const seen = [];
  for (const client of [one, two]) client.on("presence", ({ online }) => seen.push(online));
  const first = one.watch("bob");
  const second = two.watch("bob", { service: "orders" });
  await all.settle();
  const [{ id }, ...more] = all.socket.frames("watch");
  assert.deepEqual(more, []);
  all.socket.say({ type: "watching", id, service: "orders", user: "bob", online: true });
  await all.settle();
  assert.deepEqual([await outcome(first), await outcome(second), seen], [true, true, [true, true]]);
  all.socket.say({ type: "presence", service: "orders", user: "bob", online: false });
  await all.settle();
  const three = await join(all);
  const third = three.watch("bob");
  await all.settle();
  assert.equal(await outcome(third), false);
  for (const client of [one, three]) client.unwatch("bob");
  await all.settle();
  assert.deepEqual(all.socket.frames("unwatch"), []);
  two.unwatch("bob", { service: "orders" });
  await all.settle();
  assert.deepEqual(all.socket.frames("unwatch"), [{ type: "unwatch", user: "bob" }]);
  const refused = one.watch("eve");
  await all.settle();
  all.socket.say({ type: "error", id: all.socket.frames("watch").at(-1).id, code: "forbidden", message: "", temporary: false });
  await all.settle();
  assert.equal((await outcome(refused)).code, "forbidden");
});

test("one tab's new token is good for all", async () => {
  const [all, one, two] = await opened(2, { expires_in: 100 }, { token: () => "t", random: () => 0 });
  await one.page.tick(90_000);
  await all.settle();
  assert.equal(all.socket.frames("refresh").length, 1);
  all.socket.say({ type: "refreshed", expires_in: 100 });
  await all.settle();
  await two.page.tick(80_000);
  assert.equal(all.socket.frames("refresh").length, 1);
  const late = await join(all);
  assert.ok(late.welcome.expires_in <= 100);
  await one.page.tick(90_000);
  all.socket.say({ type: "error", id: null, code: "unauthorized", message: "no", temporary: false });
  await all.settle();
  assert.deepEqual([one.errors.length, two.errors.length], [1, 0]);
});

// -- topics --------------------------------------------------------------------------------

test("a topic that two tabs read is one subscription, until the last one leaves", async () => {
  const [all, one, two] = await opened(2);
  const rooms = [await subscribe(all, one), await subscribe(all, two)];
  assert.deepEqual(all.socket.frames("subscribe").map(({ topic, since }) => [topic, since]), [["room.42", 50]]);
  subscribed(all);
  say(all, 11);
  await all.settle();
  assert.deepEqual(rooms.map(({ got }) => got), [["r11"], ["r11"]]);
  assert.deepEqual(rooms.map(({ answers }) => answers), [[[10, false, "new"]], [[10, false, "new"]]]);
  await all.tick(200);
  assert.deepEqual(all.socket.frames("ack").at(-1), { type: "ack", topic: "room.42", offset: 11, epoch: "r1" });
  const late = await subscribe(all, await join(all));
  const fresh = await subscribe(all, await join(all), {});
  assert.deepEqual([late.got, fresh.got, fresh.access], [["r11"], [], "write"]);
  const sent = two.topic("room.42").send("hi", { id: "a" });
  await all.settle();
  assert.deepEqual(all.socket.frames("message"), [{ type: "message", id: "a", topic: "room.42", data: "hi" }]);
  all.socket.say({ type: "ack", id: "a" });
  await all.settle();
  assert.deepEqual(await outcome(sent), { id: "a" });
  for (const room of [...rooms, late]) room.close();
  await all.settle();
  assert.deepEqual(all.socket.frames("unsubscribe"), []);
  fresh.close();
  await all.settle();
  assert.deepEqual(all.socket.frames("unsubscribe"), [{ type: "unsubscribe", topic: "room.42" }]);
  const again = await subscribe(all, one, { since: "all" });
  say(all, 12);
  all.socket.say({ type: "unsubscribed", topic: "room.42" });
  subscribed(all, { offset: 0, epoch: "r1/1" });
  say(all, 11);
  await all.settle();
  assert.deepEqual([again.got, again.state], [["r11"], "subscribed"]);
});

test("a tab that needs more of a topic than the worker has gets a socket of its own", async () => {
  const [all, one, two] = await opened(2);
  await subscribe(all, one, {});
  subscribed(all);
  await all.settle();
  const room = await subscribe(all, two, { since: 50 });
  assert.deepEqual([room.state, two.state], ["waiting", "waiting"]);
  await two.page.tick(500);
  two.page.socket.welcome({ service: "orders", user: "ann" });
  await settle();
  assert.deepEqual(two.page.socket.frames("subscribe").map(({ since }) => since), [50]);
  assert.equal(one.topic("room.42").state, "subscribed");
});

test("after a reconnect all topics of all tabs go on, each asked for once", async () => {
  const [all, one, two] = await opened(2);
  const rooms = [await subscribe(all, one), await subscribe(all, two, { since: 50, autoAck: false })];
  subscribed(all);
  const other = await subscribe(all, two, {}, "room.7");
  subscribed(all);
  say(all, 11);
  say(all, 12);
  await all.settle();
  all.socket.end(1006);
  await all.tick(500);
  all.socket.welcome({ service: "orders", user: "ann" });
  await all.settle();
  const asked = all.socket.frames("subscribe");
  assert.deepEqual(asked.map(({ topic, offset }) => [topic, offset]), [["room.42", 12], ["room.7", 10]]);
  for (const { id, topic, offset } of asked) {
    all.socket.say({ type: "subscribed", id, topic, epoch: "r1/9", offset, recovered: true, access: "write" });
  }
  say(all, 13);
  await all.settle();
  assert.deepEqual(rooms.map(({ got }) => got), [["r11", "r12", "r13"], ["r11", "r12", "r13"]]);
  assert.deepEqual(rooms.map(({ answers }) => answers.at(-1)), [[12, true, null], [10, true, null]]);
  assert.equal(other.state, "subscribed");
  await all.tick(200);
  two.topic("room.42").on("message", (message) => message.ack());
  say(all, 14);
  await all.settle();
  await all.tick(200);
  const acks = all.socket.frames("ack").filter(({ topic }) => topic);
  assert.deepEqual(acks.at(-1), { type: "ack", topic: "room.42", offset: 14, epoch: "r1/9" });
});

const users = (...names) => names.map((user) => ({ service: "orders", user }));
const shown = ({ users: list }) => list?.map(({ user }) => user) ?? null;

function watching(all, list, fields = {}) {
  const { id, topic } = all.socket.frames("watch").at(-1);
  all.socket.say({ type: "watching", id, topic, users: list, complete: true, ...fields });
}

function changed(all, joined, left) {
  all.socket.say({ type: "presence", topic: "room.42", joined, left, complete: true });
}

test("tabs that watch one topic are one watch; one that comes later gets the list at once", async () => {
  const [all, one, two] = await opened(2);
  const rooms = [await subscribe(all, one), await subscribe(all, two)];
  subscribed(all);
  await all.settle();
  const bystander = await subscribe(all, await join(all), {});
  const seen = [];
  for (const room of rooms) room.on("readers", (readers) => seen.push(shown(readers)));
  bystander.on("readers", () => assert.fail("it does not watch"));
  const answers = rooms.map((room) => room.watch());
  await all.settle();
  assert.deepEqual(all.socket.frames("watch").map(({ topic }) => topic), ["room.42"]);
  watching(all, users("ann"));
  await all.settle();
  for (const answer of answers) assert.deepEqual(shown(await outcome(answer)), ["ann"]);
  changed(all, users("bob", "carl"), []);
  changed(all, [], users("bob"));
  await all.settle();
  assert.deepEqual(seen, [["ann"], ["ann"], ["ann", "bob", "carl"], ["ann", "bob", "carl"], ["ann", "carl"], ["ann", "carl"]]);
  const late = await subscribe(all, await join(all), {});
  const answer = late.watch();
  await all.settle();
  assert.deepEqual(await outcome(answer), { users: users("ann", "carl"), sockets: null, complete: true });
  rooms[0].unwatch();
  rooms[1].close();
  await all.settle();
  assert.deepEqual([all.socket.frames("unwatch"), rooms[0].readers], [[], null]);
  changed(all, users("dan"), []);
  await all.settle();
  assert.deepEqual([shown(late.readers), rooms[0].readers], [["ann", "carl", "dan"], null]);
  await all.crash(all.tabs.at(-1));
  all.locks.release([...all.locks.held.keys()].at(-1));
  await all.settle();
  assert.deepEqual(all.socket.frames("unwatch"), [{ type: "unwatch", topic: "room.42" }]);
});

test("a topic and a user of the same name are two watches", async () => {
  const [all, one] = await opened(1);
  const room = await subscribe(all, one);
  subscribed(all);
  await all.settle();
  const [user, readers] = [one.watch("room.42"), room.watch()];
  await all.settle();
  watching(all, null, { sockets: 600 });
  await all.settle();
  assert.deepEqual([await outcome(user), await outcome(readers)], ["pending", { users: null, sockets: 600, complete: true }]);
  one.unwatch("room.42");
  await all.settle();
  assert.deepEqual(all.socket.frames("unwatch"), [{ type: "unwatch", user: "room.42" }]);
  assert.equal(room.readers.sockets, 600);
});

test("a watch that one tab's token does not allow is asked for with another's", async () => {
  const [all, one, two, three] = await opened(3);
  const rooms = [];
  for (const [client, token] of [[one, "a"], [two, "b"], [three, "a"]]) rooms.push(await subscribe(all, client, { token }));
  subscribed(all);
  await all.settle();
  const answers = rooms.map((room) => room.watch());
  await all.settle();
  const refuse = () => {
    const { id } = all.socket.frames("watch").at(-1);
    all.socket.say({ type: "error", id, code: "forbidden", message: "no", temporary: false });
  };
  refuse();
  await all.settle();
  assert.deepEqual(all.socket.frames("watch").map(({ token }) => token), ["a", "b"]);
  watching(all, users("ann"));
  await all.settle();
  const [first, second, third] = [await outcome(answers[0]), await outcome(answers[1]), await outcome(answers[2])];
  assert.deepEqual([first.code, shown(second), third.code], ["forbidden", ["ann"], "forbidden"]);
  rooms[1].on("error", ({ code }) => (rooms[1].why = code));
  all.socket.say({ type: "unwatched", topic: "room.42", code: "forbidden", reason: "" });
  await all.settle();
  assert.deepEqual([rooms[1].why, rooms[1].readers], ["forbidden", null]);
  const again = rooms[1].watch();
  await all.settle();
  refuse();
  await all.settle();
  assert.equal((await outcome(again)).code, "forbidden");
  const left = rooms[1].watch();
  rooms[1].unwatch();
  await all.settle();
  assert.equal((await outcome(left)).code, "ended");
  assert.deepEqual(all.socket.frames("unwatch"), [{ type: "unwatch", topic: "room.42" }]);
});

test("tabs that leave before the answer leave nothing behind", async () => {
  const [all, one, two, three] = await opened(3);
  for (const client of [one, two, three]) await subscribe(all, client);
  one.topic("room.42").close();
  two.close();
  await all.settle();
  subscribed(all);
  say(all, 11);
  await all.settle();
  assert.deepEqual(all.socket.frames("unsubscribe"), []);
  assert.equal(three.topic("room.42").state, "subscribed");
  await subscribe(all, one, {}, "room.7");
  one.topic("room.7").close();
  await all.settle();
  subscribed(all);
  await all.settle();
  assert.deepEqual(all.socket.frames("unsubscribe"), [{ type: "unsubscribe", topic: "room.7" }]);
});

test("the worker keeps some messages that all have processed, for tabs that come later", async () => {
  const [all, one] = await opened(1);
  await subscribe(all, one, { since: "all" });
  subscribed(all, { offset: 0 });
  for (let offset = 1; offset <= 300; offset += 1) say(all, offset);
  await all.settle();
  await all.tick(200);
  assert.equal(all.socket.frames("ack").at(-1).offset, 300);
  const some = await subscribe(all, await join(all), { since: 250 });
  assert.deepEqual([some.got.length, some.got[0]], [250, "r51"]);
  const client = await join(all);
  await subscribe(all, client, { since: "all" });
  assert.equal(client.state, "waiting", "it needs a connection of its own");
  const idle = await subscribe(all, one, {}, "room.7");
  subscribed(all);
  await all.settle();
  assert.equal(idle.state, "subscribed");
});

test("what the worker keeps is bounded in size too", async () => {
  const [all, one] = await opened(1);
  await subscribe(all, one, { since: "all" });
  subscribed(all, { offset: 0 });
  for (const offset of [1, 2, 3]) {
    all.socket.say({ type: "message", topic: "room.42", offset, time: null, data: "x".repeat(2 ** 21) });
  }
  await all.settle();
  await all.tick(200);
  const some = await subscribe(all, await join(all), { since: 1 });
  assert.equal(some.got.length, 1);
  const client = await join(all);
  await subscribe(all, client, { since: 3 });
  assert.equal(client.state, "waiting", "two logs share 8 MiB, and three messages have 6");
});

test("tabs of a stream that gives offsets out again reconnect, and the gateway tells them", async () => {
  const [all, one, two] = await opened(2);
  for (const offset of [1, 2, 3]) all.socket.message(offset, `a${offset}`);
  await all.settle();
  all.socket.end(1006);
  await all.settle();
  for (const client of [one, two]) client.close();
  const clients = [];
  for (let n = 0; n < 2; n += 1) clients.push(await join(all, { position: { epoch: "e1", offset: 1 } }));
  all.socket.welcome({ service: "orders", user: "ann", offset: 1 });
  await all.settle();
  all.socket.message(2, "b2", "2026-02-01T00:00:00Z");
  await all.settle();
  assert.deepEqual(states(...clients), ["waiting", "waiting"]);
  await all.tick(500);
  assert.equal(all.socket.query.offset, "3");
  all.socket.welcome({ service: "orders", user: "ann", offset: 2, recovered: false, reason: "ahead" });
  await all.settle();
  all.socket.message(3, "b3", "2026-02-01T00:00:00Z");
  await all.settle();
  assert.equal(clients[0].got.at(-1), "b3");
  assert.deepEqual(clients[1].page.socket.query, { epoch: "e1", offset: "3" }, "it asks the gateway itself");
});

test("a refusal goes to the tab that asked; the next tab's token gets its own chance", async () => {
  const [all, one, two] = await opened(2);
  const rooms = [await subscribe(all, one, { token: "bad" }), await subscribe(all, two, { token: "good" })];
  const { id } = all.socket.frames("subscribe")[0];
  all.socket.say({ type: "unsubscribed", id, topic: "room.42", code: "forbidden", reason: "no", temporary: false });
  await all.settle();
  assert.deepEqual(all.socket.frames("subscribe").map(({ token }) => token), ["bad", "good"]);
  subscribed(all);
  await all.settle();
  assert.deepEqual(rooms.map(({ state }) => state), ["ended", "subscribed"]);
  all.socket.say({ type: "unsubscribed", topic: "room.42", code: "forbidden", reason: "no", temporary: false });
  await all.settle();
  assert.deepEqual(rooms.map(({ state }) => state), ["ended", "ended"]);
});

test("what happens to a topic's stream happens to every tab", async () => {
  const [all, one, two] = await opened(2);
  const rooms = [await subscribe(all, one), await subscribe(all, two)];
  subscribed(all);
  say(all, 11);
  all.socket.say({ type: "subscribed", topic: "room.42", epoch: "r1", offset: 90, recovered: false, reason: "trimmed", access: "write" });
  say(all, 91);
  await all.settle();
  const late = await join(all);
  await subscribe(all, late, { position: { epoch: "r1", offset: 11 } });
  assert.equal(late.state, "waiting", "what it lacks, the gateway must tell");
  all.socket.say({ type: "subscribed", topic: "room.42", epoch: "r2", offset: 0, recovered: false, reason: "epoch", access: "read" });
  say(all, 1);
  await all.settle();
  assert.deepEqual(rooms.map(({ got, access }) => [got, access]), Array(2).fill([["r11", "r91", "r1"], "read"]));
  await all.tick(200);
  assert.deepEqual(all.socket.frames("ack").at(-1), { type: "ack", topic: "room.42", offset: 1, epoch: "r2" });
});

test("an ephemeral topic is shared too", async () => {
  const [all, one, two] = await opened(2);
  const rooms = [await subscribe(all, one, {}), await subscribe(all, two, {})];
  subscribed(all, { durable: false, epoch: undefined, offset: undefined, recovered: undefined, reason: undefined });
  await all.settle();
  all.socket.say({ type: "message", topic: "room.42", data: "x" });
  await all.settle();
  await all.tick(200);
  assert.deepEqual(rooms.map(({ got }) => got), [["x"], ["x"]]);
  assert.deepEqual(all.socket.frames("ack"), []);
});

// -- where there is no worker --------------------------------------------------------------

test("without SharedWorker, or if it does not start or answer, the tab has a socket of its own", async () => {
  const silent = class {
    port = { postMessage() {} };
  };
  const broken = class extends silent {
    constructor() {
      super();
      queueMicrotask(() => this.onerror({}));
    }
  };
  const foreign = class {
    constructor() {
      throw new Error("SecurityError");
    }
  };
  for (const SharedWorker of [undefined, silent, broken, foreign]) {
    const page = new FakePage();
    page.SharedWorker = SharedWorker;
    const client = page.client({ shared: "ann" });
    client.connect();
    await page.tick(3000);
    page.socket.welcome();
    assert.deepEqual([client.state, page.sockets.length], ["open", 1]);
    const sent = client.send("x", { id: "a" });
    page.socket.say({ type: "ack", id: "a" });
    assert.deepEqual(await outcome(sent), { id: "a" });
    page.socket.end(1006);
    assert.equal(client.state, "waiting");
    client.close();
  }
});

test("a bundler's own worker is made by the application", async () => {
  const all = browser();
  const page = all.tab();
  const names = [];
  const worker = (name) => {
    names.push(name);
    return new page.SharedWorker("worker.js", { type: "module", name });
  };
  const client = page.client({ shared: { key: "ann", worker } });
  client.connect();
  await all.settle();
  all.socket.welcome();
  await all.settle();
  assert.deepEqual([client.state, names.length], ["open", 1]);
  assert.match(names[0], /^\["wsgateway",".*","ann","wss:\/\/shop\.example\/ws\/orders\/ann\/",""\]$/);
});
