// A service in another language: npm's NATS client, driven line by line. No code of ours in it.
import { createInterface } from "node:readline";
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const connection = await connect({ servers: process.argv[2] });
const subscriptions = new Map();

const shown = (message) => ({
  subject: message.subject,
  data: Buffer.from(message.data).toString("base64"),
  kind: message.headers?.get("Ws-Frame") ?? null,
});

const commands = {
  async publish({ subject, data }) {
    connection.publish(subject, Buffer.from(data, "base64"));
    await connection.flush();
    return {};
  },
  async subscribe({ subject }) {
    subscriptions.set(subject, connection.subscribe(subject)[Symbol.asyncIterator]());
    await connection.flush();
    return {};
  },
  async next({ subject }) {
    return shown((await subscriptions.get(subject).next()).value);
  },
  async consume({ stream, filter, count }) {
    const manager = await jetstreamManager(connection);
    await manager.consumers.add(stream, {
      durable_name: "other-language", ack_policy: AckPolicy.Explicit, filter_subject: filter,
    });
    const consumer = await jetstream(connection).consumers.get(stream, "other-language");
    const found = [];
    for await (const message of await consumer.consume()) {
      found.push(shown(message));
      await message.ackAck();
      if (found.length === count) break;
    }
    return { found };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { op, ...values } = JSON.parse(line);
  console.log(JSON.stringify(await commands[op](values)));
}
await connection.close();
