// The demo page: an inbox per panel, each with a client of its own.

import { GatewayError } from "../wsgateway/wsgateway.js";
import { Connection, Log, clock, element, fetchJson, pause, post, unique } from "./common.js";

const BURST = 100;
const ATTEMPTS = 6;

const panels = new Map(); // user -> Panel, of this page
const root = document.getElementById("panels");
const narrow = matchMedia("(max-width: 30rem)"); // as in demo.css

/** Publish until it is stored; the id makes that one message, however often it is tried. */
async function publish(fields) {
  const form = { ...fields, id: unique() };
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await post(root.dataset.publish, form);
    } catch (error) {
      if (error.temporary === false || attempt === ATTEMPTS) throw error;
      await pause(attempt * 500);
    }
  }
}

/** Numbers what goes to one user, so that the reader can count. */
class Series {
  #number = 0;
  #name = "";

  constructor() {
    this.restart();
  }

  /** Give up the count: nobody knows whether the last one was stored. */
  restart() {
    this.#number = 0;
    this.#name = unique();
  }

  next() {
    return { series: this.#name, number: this.#number++ };
  }
}

/** Counts what is missing in a series, or came twice. */
class Tally {
  #next = new Map(); // series -> number expected next
  lost = 0;
  twice = 0;

  take(series, number) {
    const expected = this.#next.get(series) ?? number;
    if (number < expected) {
      this.twice += 1;
      return;
    }
    this.lost += number - expected;
    this.#next.set(series, number + 1);
  }
}

/** The text of a message and, if a page of this kind sent it, its number. */
function open(message) {
  if (typeof message.data !== "string") return { text: `${message.data.length} bytes` };
  try {
    const { from, series, number, text } = JSON.parse(message.data);
    if (typeof text === "string" && Number.isInteger(number)) return { from, series, number, text };
  } catch {
    // any other program's text
  }
  return { text: message.data };
}

class Panel {
  #parts = {};
  #rows = new Map(); // offset -> the row's mark, until it is acknowledged
  #tally = new Tally();
  #sent = 0;
  #received = 0;
  #series = new Map(); // recipient -> Series
  #waiting = new Set(); // offsets stored by this page and not arrived
  #log;

  constructor(section) {
    this.section = section;
    this.user = section.dataset.user;
    for (const part of section.querySelectorAll("[data-part]")) this.#parts[part.dataset.part] = part;
    this.#log = new Log(this.#parts);
    this.client = new Connection(section, this.#parts, (...frame) => this.#onFrame(...frame)).client;
    this.client.on("recovered", (event) => this.#onRecovered(event));
    this.client.once("recovered", ({ offset }) => this.#loadEarlier(offset));
    this.client.on("message", (message) => this.#onMessage(message));
    this.client.on("reply", (message) => this.#onMessage(message, "service"));
    this.client.on("error", (error) => {
      // The state tells the rest: the connection is closed, or a token is asked for again.
      if (error instanceof GatewayError && error.code !== "closed") this.#log.note(error.message);
    });
    this.#parts.write?.addEventListener("submit", (event) => this.#onWrite(event));
    this.#parts.burst?.addEventListener("click", () => this.#onBurst());
    this.#parts.ask.addEventListener("submit", (event) => this.#onAsk(event));
    for (const button of section.querySelectorAll("[data-ask]")) {
      button.addEventListener("click", () => this.#ask(button.dataset.ask));
    }
    this.client.connect();
  }

  #onRecovered({ recovered, reason, offset }) {
    if (!recovered && reason !== "new") this.#log.note(`Not everything since offset ${offset} is kept (${reason}).`);
  }

  #onFrame(direction, text) {
    if (direction === "out" && text.startsWith('{"type":"ack"')) this.#onAcknowledged(JSON.parse(text).offset);
    if (direction === "in" && text.startsWith('{"type":"ack"')) this.#onStored(JSON.parse(text).id);
  }

  // -- messages ----------------------------------------------------------------------------

  /** Show what the inbox keeps from before this page began to read, after *offset*. */
  async #loadEarlier(offset) {
    const query = new URLSearchParams({ user: this.user, before: offset + 1 });
    let messages;
    try {
      ({ messages } = await fetchJson(`${root.dataset.history}?${query}`));
    } catch (error) {
      this.#log.note(`Earlier messages cannot be shown: ${error.message}.`);
      return;
    }
    for (const message of messages) {
      const { from = message.from, text } = open({ data: message.text });
      const time = clock(new Date(message.time));
      const about = [`#${message.offset}`, from, time].filter(Boolean).join(" · ");
      this.#log.addEarlier(message.offset, "in", text, about, message.error ? "refused" : "");
      const author = panels.get(from);
      author?.#log.addEarlier(message.offset, "out", text, `to ${this.user} · ${time}`, `✓✓ #${message.offset} received`);
    }
  }

  #onMessage(message, sender) {
    const opened = open(message);
    const { from = sender, series, number, text } = opened;
    if (number !== undefined) this.#tally.take(series, number);
    const parts = [`#${message.offset}`, from, clock(message.time ?? new Date())];
    const { status } = this.#log.append("in", text, parts.filter(Boolean).join(" · "), "received");
    this.#rows.set(message.offset, status);
    this.#received += 1;
    this.#waiting.delete(message.offset);
    this.#count();
    this.#log.tell(text);
    panels.get(from)?.onDelivered(this.user, message, opened);
  }

  #onAcknowledged(offset) {
    for (const [at, status] of this.#rows) {
      if (at > offset) break;
      status.textContent = "✓ acknowledged";
      this.#rows.delete(at);
    }
  }

  #asked = new Map(); // id -> mark of a question that is not known to be stored

  #onStored(id) {
    const status = this.#asked.get(id);
    if (status) status.textContent = "✓ stored";
    this.#asked.delete(id);
  }

  #count() {
    const { sent, received, waiting, lost, twice } = this.#parts;
    sent.textContent = this.#sent;
    received.textContent = this.#received;
    waiting.textContent = this.#waiting.size;
    lost.textContent = this.#tally.lost;
    twice.textContent = this.#tally.twice;
    waiting.parentElement.classList.toggle("some", this.#waiting.size > 0);
    for (const part of [lost, twice]) part.parentElement.classList.toggle("bad", part.textContent !== "0");
  }

  /** Another panel's message to this user is stored; it may have arrived already. */
  expect(offset) {
    if (!(this.client.position?.offset >= offset)) this.#waiting.add(offset);
    this.#count();
  }

  // -- writing -----------------------------------------------------------------------------

  #outgoing = new Map(); // "series number" -> its mark, until it is delivered

  /** A message of this panel's user has reached another one; perhaps it was sent before a reload. */
  onDelivered(user, { offset, time }, { series, number, text }) {
    const key = `${series} ${number}`;
    const about = `to ${user} · ${clock(time ?? new Date())}`;
    const status = this.#outgoing.get(key) ?? this.#log.append("out", text, about).status;
    status.textContent = `✓✓ #${offset} received`;
    this.#outgoing.delete(key);
  }

  async #publish(user, text) {
    if (!this.#series.has(user)) this.#series.set(user, new Series());
    const series = this.#series.get(user);
    const place = series.next();
    const key = `${place.series} ${place.number}`;
    const { status, row } = this.#log.append("out", text, `to ${user} · ${clock(new Date())}`, "sending");
    this.#outgoing.set(key, status);
    try {
      const { offset } = await publish({ user, text: JSON.stringify({ from: this.user, text, ...place }) });
      this.#sent += 1;
      if (this.#outgoing.has(key)) status.textContent = `✓ #${offset} stored`;
      panels.get(user)?.expect(offset);
    } catch (error) {
      this.#outgoing.delete(key);
      series.restart();
      row.classList.add("failed");
      status.textContent = `not sent: ${error.message}`;
    }
    this.#count();
  }

  #onWrite(event) {
    event.preventDefault();
    const { user, text } = event.target.elements;
    this.#publish(user.value, text.value);
    text.value = "";
    text.focus();
  }

  async #onBurst() {
    const { burst, write } = this.#parts;
    const user = write.elements.user.value;
    burst.disabled = true;
    for (let n = 1; n <= BURST; n += 1) await this.#publish(user, `${n} of ${BURST}`);
    burst.disabled = false;
    burst.focus();
  }

  #onAsk(event) {
    event.preventDefault();
    const field = event.target.elements.text;
    this.#ask(field.value);
    field.value = "";
  }

  async #ask(text) {
    const open = this.client.state === "open";
    const { status, row } = this.#log.append("out", text, `to the service · ${clock(new Date())}`, open ? "sending" : "queued");
    const id = unique();
    this.#asked.set(id, status);
    this.#sent += 1;
    this.#count();
    try {
      const reply = await this.client.request(text, { id });
      status.textContent = "✓✓ answered";
      this.#onMessage(reply, "service");
    } catch (error) {
      const stored = !this.#asked.has(id);
      row.classList.toggle("failed", !stored || error.code !== "timeout");
      const silent = stored ? "✓ stored; no answer yet, is the service running?" : "not confirmed in time";
      status.textContent = error.code === "timeout" ? silent : `refused: ${error.message}`;
      if (error.code === "failed") this.#pointToDeadLetters(status);
    }
    this.#asked.delete(id);
  }

  #pointToDeadLetters(status) {
    const { attempts, deadLetters } = root.dataset;
    status.textContent = `failed ${attempts} times; set aside as a dead letter. `;
    if (deadLetters) status.append(element("a", "See it in the admin", { href: deadLetters }));
  }
}

/** On a phone, what is needed less folds away, so that both inboxes fit. */
function fold() {
  for (const details of document.querySelectorAll("details.ask")) details.open = !narrow.matches;
}

fold();
narrow.addEventListener("change", fold);
for (const section of root.querySelectorAll(".panel")) {
  const panel = new Panel(section);
  panels.set(panel.user, panel);
}
