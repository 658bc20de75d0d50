// Must type-check against wsgateway.d.ts; each expected error must be one.

import { GatewayError, Message, WsGateway, serveTabs } from "../../wsgateway/static/wsgateway/wsgateway.js";
const c = new WsGateway("/x", { token: async () => "t", requestTimeout: null, refreshToken: () => "t" });
export const off: () => void = c.on("message", (m: Message) => m.json<{ a: number }>().a);
c.on("reply", (m) => m.replyTo?.length);
c.on("state", (s, { delay }) => { if (s === "waiting") delay?.toFixed(); });
export const r: Promise<Message> = c.request({ a: 1 }, { timeout: null });
export const s: Promise<{ id: string }> = c.send("x", { id: "i", traceparent: "00-…" });
c.on("error", (e) => e instanceof GatewayError && e.temporary);
export const w: Promise<boolean | null> = c.watch("bob", { service: "orders" });
c.on("presence", ({ service, user, online }) => { if (online === null) c.unwatch(user, { service }); });
const room = c.topic("room.42", { since: 50, token: async (name) => name });
room.on("message", ({ topic, from }) => (topic ?? "") + (from?.user ?? ""));
room.on("recovered", ({ recovered, reason }) => !recovered && reason === "trimmed");
room.on("state", (state, { access }) => state === "subscribed" && access === "write");
c.topic("room.43", { position: room.position ?? undefined, since: "all" }).ready.then(() => room.close());
export const t: Promise<{ id: string }> = room.send({ text: "hi" });
room.on("readers", ({ users, joined, left, complete }) => complete && users?.length === joined.length - left.length);
export const n: Promise<number | null> = room.watch().then(({ users, sockets }) => users?.length ?? sockets);
if (room.readers === null) room.unwatch();
export async function read() { for await (const m of c.topic("room.42")) m.ack(); }
export async function loop() { for await (const m of c) m.ack(); }
new WsGateway("/x", { shared: "ann" });
new WsGateway("/x", { shared: { key: "ann", worker: (name) => new SharedWorker("w.js", { type: "module", name }) } });
serveTabs();
// @ts-expect-error
new WsGateway("/x", { shared: true });
// @ts-expect-error
c.on("nothing", () => {});
// @ts-expect-error
c.send("x", { timeout: "1" });
// @ts-expect-error
new WsGateway("/x", { wrong: 1 });
// @ts-expect-error
c.topic("room.42", { since: "old" });
// @ts-expect-error
room.on("reply", () => {});
