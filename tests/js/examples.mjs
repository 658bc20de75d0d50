/** Run by a test: node examples.mjs SNIPPETS URL TOKEN. Runs a page's snippets against a gateway. */

import WebSocket from "ws";

import { WsGateway as Real } from "../../wsgateway/static/wsgateway/wsgateway.js";

const [file, url, token] = process.argv.slice(2);
const { snippets } = await import(file);
const clients = [];
const logged = [];
const saved = [];

/** What a browser or the reader's own code has. */
const world = {
  WsGateway: class extends Real {
    constructor(path, options = {}) {
      super(new URL(path, url), { WebSocket, token, ...options });
      clients.push(this);
    }
  },
  fetch: async () => ({ json: async () => ({ token }) }),
  document: { body: { dataset: { user: "ann" } } },
  localStorage: {},
  location: { reload() {} },
  console: { log: (...values) => logged.push(values) },
  save: async (value) => saved.push(value),
};

// Each snippet has a client and a device of its own, so that all get the inbox
const loops = [];
await Promise.all(snippets.map(async ({ run, endless }, number) => {
  const client = new world.WsGateway("/ws/orders/", { device: `d${number}` });
  const done = client.connect().then(() => run(client, world));
  if (endless) loops.push(done);
  else await done;
}));
const shown = () => logged.some(([offset, data]) => offset === 1 && data) && saved.some(Array.isArray);
for (let turn = 0; turn < 500 && !shown(); turn += 1) {
  await new Promise((resolve) => setTimeout(resolve, 20));
}
for (const client of clients) client.close();
await Promise.all(loops);
process.stdout.write(JSON.stringify({ logged, saved, device: world.localStorage.device }));
process.exit();
