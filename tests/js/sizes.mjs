/** Run by a test: node sizes.mjs URL SIZE. Sends the largest messages, and reads them back. */

import { WsGateway } from "../../wsgateway/static/wsgateway/wsgateway.js";

const [url, size] = [process.argv[2], Number(process.argv[3])];
const payloads = [
  new Uint8Array(size).fill(255),
  "\u0001".repeat(size),
  '"'.repeat(size),
  "é".repeat(size / 2),
  "😀".repeat(size / 4),
  { text: "\u0001".repeat(Math.floor((size - 11) / 6)) },
];
const client = new WsGateway(url, { backoff: { initial: 50, cap: 300 } });
const states = [];
client.on("state", (state) => states.push(state));
const early = client.send(new Uint8Array(size + 1)).catch((error) => error.code);
const sent = payloads.map((payload) => client.send(payload));
await client.connect();
const codes = [await early, await client.send('"'.repeat(size + 1)).catch((error) => error.code)];
await Promise.all(sent);
console.log(JSON.stringify({ codes, states }));

const same = [];
for await (const { data } of client) {
  const payload = payloads[same.length];
  const text = payload.text ? JSON.stringify(payload) : payload;
  same.push(typeof data === "string" ? data === text : Buffer.compare(data, payload) === 0);
  if (same.length === payloads.length) break;
}
client.close();
console.log(JSON.stringify({ same, states }));
