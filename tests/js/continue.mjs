/** Run by a test: node continue.mjs URL RECEIVE SEND. Its gateway is killed half-way. */

import { WsGateway } from "../../wsgateway/static/wsgateway/wsgateway.js";

const [url, receive, send] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const client = new WsGateway(url, { backoff: { initial: 50, cap: 300 } });
const states = [];
client.on("state", (state) => states.push(state));
client.connect();

const first = [];
const rest = [];
for (let n = 0; n < send / 2; n += 1) first.push(client.send(`from node ${n}`));

const got = [];
for await (const { data } of client) {
  got.push(data);
  if (got.length === receive / 2) {
    await Promise.all(first);
    console.log(JSON.stringify("halfway"));
    client.once("state", () => {
      for (let n = send / 2; n < send; n += 1) rest.push(client.send(`from node ${n}`));
    });
  }
  if (got.length === receive) break;
}
await Promise.all(rest);
client.close();
console.log(JSON.stringify({ got, states }));
