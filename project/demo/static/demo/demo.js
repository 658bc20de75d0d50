// The demo page: an inbox per panel, each with a client of its own.

import { GatewayError, WsGateway } from "../wsgateway/wsgateway.js";

const SHOWN = 300; // messages per panel
const FRAMES = 30; // of the wire
const BURST = 100;
const ATTEMPTS = 6;
const STATES = {
  idle: "Not connected",
  connecting: "Connecting…",
  open: "Connected",
  waiting: "Reconnecting",
  offline: "No network",
  closed: "Closed",
};

const panels = new Map(); // user -> Panel, of this page
const root = document.getElementById("panels");

/** A WebSocket constructor whose network can be cut: sockets end, new ones find nobody. */
function cuttable(onFrame) {
  const open = new Set();
  let isCut = false;
  class CuttableWebSocket extends WebSocket {
    constructor(url, protocols) {
      // Browsers refuse port 9, so this fails as it does without a network.
      super(isCut ? url.replace(/\/\/[^/]+/, "//127.0.0.1:9") : url, protocols);
      open.add(this);
      this.addEventListener("message", ({ data }) => onFrame("in", data));
      this.addEventListener("close", () => open.delete(this));
    }

    send(text) {
      onFrame("out", text);
      super.send(text);
    }
  }
  const set = (value) => {
    isCut = value;
    for (const socket of open) socket.close();
  };
  return { CuttableWebSocket, set };
}

function element(name, text, properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, properties);
}

function unique() {
  return crypto.getRandomValues(new Uint32Array(3)).join("-");
}

function clock(date) {
  return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

async function post(url, fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.set(name, value);
  form.set("csrfmiddlewaretoken", document.querySelector("[name=csrfmiddlewaretoken]").value);
  const response = await fetch(url, { method: "POST", body: form, headers: { Accept: "application/json" } });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw Object.assign(new Error(answer.error ?? `the site answered ${response.status}`), {
    final: response.status < 500,
  });
}

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** Publish until it is stored; the id makes that one message, however often it is tried. */
async function publish(fields) {
  const form = { ...fields, id: unique() };
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await post(root.dataset.publish, form);
    } catch (error) {
      if (error.final || attempt === ATTEMPTS) throw error;
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
  #network;
  #isCut = false;
  #timer = null;
  #retryAt = 0;
  #news = 0;

  constructor(section) {
    this.section = section;
    this.user = section.dataset.user;
    for (const part of section.querySelectorAll("[data-part]")) this.#parts[part.dataset.part] = part;
    this.#network = cuttable((direction, text) => this.#onFrame(direction, text));
    const { path, token } = section.dataset;
    this.client = new WsGateway(path, {
      WebSocket: this.#network.CuttableWebSocket,
      token: token && (async () => (await post(token, {})).token),
      backoff: { cap: 10_000 },
    });
    this.client.on("state", (state, detail) => this.#onState(state, detail));
    this.client.on("recovered", (event) => this.#onRecovered(event));
    this.client.on("message", (message) => this.#onMessage(message));
    this.client.on("reply", (message) => this.#onMessage(message, "service"));
    this.client.on("error", (error) => {
      // Anything else is a token that could not be had; the state says that it is tried again.
      if (error instanceof GatewayError) this.#note(error.message);
    });
    this.#parts.cut.addEventListener("click", () => this.#toggle());
    this.#parts.write?.addEventListener("submit", (event) => this.#onWrite(event));
    this.#parts.burst?.addEventListener("click", () => this.#onBurst());
    this.#parts.ask.addEventListener("submit", (event) => this.#onAsk(event));
    this.client.connect();
  }

  // -- connection --------------------------------------------------------------------------

  #toggle() {
    this.#isCut = !this.#isCut;
    this.#parts.cut.setAttribute("aria-pressed", this.#isCut);
    this.#parts.cut.textContent = this.#isCut ? "Mend the connection" : "Cut the connection";
    this.section.classList.toggle("is-cut", this.#isCut);
    this.#network.set(this.#isCut);
    // What a browser says when its network is back.
    if (!this.#isCut) window.dispatchEvent(new Event("online"));
  }

  #onState(state, { delay, reason }) {
    clearInterval(this.#timer);
    this.#parts.status.dataset.state = state;
    const text = state === "closed" && reason ? `Closed: ${reason}` : STATES[state];
    this.#parts.state.textContent = text;
    if (state === "waiting" && delay !== undefined) {
      this.#retryAt = Date.now() + delay;
      const show = () => {
        const seconds = Math.max(0, Math.ceil((this.#retryAt - Date.now()) / 1000));
        this.#parts.status.dataset.hint = seconds ? ` in ${seconds} s` : "";
      };
      show();
      this.#timer = setInterval(show, 250);
    } else {
      this.#parts.status.dataset.hint = "";
    }
  }

  #onRecovered({ recovered, reason, offset }) {
    if (!recovered && reason !== "new") this.#note(`Not everything since offset ${offset} is kept (${reason}).`);
  }

  #onFrame(direction, text) {
    const frames = this.#parts.wire;
    const row = element("li", text.length > 300 ? `${text.slice(0, 300)}…` : text);
    row.dataset.direction = direction;
    frames.prepend(row);
    if (frames.children.length > FRAMES) frames.lastElementChild.remove();
    if (direction === "out" && text.startsWith('{"type":"ack"')) this.#onAcknowledged(JSON.parse(text).offset);
    if (direction === "in" && text.startsWith('{"type":"ack"')) this.#onStored(JSON.parse(text).id);
  }

  // -- messages ----------------------------------------------------------------------------

  #append(kind, text, meta, mark = "") {
    const { log, scroll, empty } = this.#parts;
    const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
    const row = element("li", "", { className: kind });
    const details = element("p", "", { className: "meta" });
    const status = element("span", mark, { className: "mark-text" });
    details.append(element("span", meta), status);
    row.append(element("p", text, { className: "text" }), details);
    log.append(row);
    if (log.children.length > SHOWN) log.firstElementChild.remove();
    empty.hidden = true;
    if (atEnd) scroll.scrollTop = scroll.scrollHeight;
    return { row, status };
  }

  #note(text) {
    this.#append("note", text, clock(new Date()));
    this.#announce(text);
  }

  #onMessage(message, sender) {
    const { from = sender, series, number, text } = open(message);
    if (number !== undefined) this.#tally.take(series, number);
    const parts = [`#${message.offset}`, from, clock(message.time ?? new Date())];
    const { status } = this.#append("in", text, parts.filter(Boolean).join(" · "), "received");
    this.#rows.set(message.offset, status);
    this.#received += 1;
    this.#waiting.delete(message.offset);
    this.#count();
    this.#news += 1;
    if (this.#news === 1) setTimeout(() => this.#tell(text), 500);
    for (const panel of panels.values()) panel.onDelivered(this.user, message.offset);
  }

  /** One announcement for many messages: nobody wants to hear a hundred. */
  #tell(text) {
    const many = this.#news > 1;
    this.#news = 0;
    this.#announce(many ? `${this.#received} messages received` : text);
  }

  #announce(text) {
    this.#parts.news.textContent = text;
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

  #outgoing = new Map(); // "user offset" -> its mark, until it is delivered

  onDelivered(user, offset) {
    const key = `${user} ${offset}`;
    const status = this.#outgoing.get(key);
    if (!status) return;
    status.textContent = `✓✓ #${offset} received`;
    this.#outgoing.delete(key);
  }

  async #publish(user, text) {
    if (!this.#series.has(user)) this.#series.set(user, new Series());
    const series = this.#series.get(user);
    const body = JSON.stringify({ from: this.user, text, ...series.next() });
    const { status, row } = this.#append("out", text, `to ${user} · ${clock(new Date())}`, "sending");
    try {
      const { offset } = await publish({ user, text: body });
      this.#sent += 1;
      status.textContent = `✓ #${offset} stored`;
      this.#outgoing.set(`${user} ${offset}`, status);
      const reader = panels.get(user);
      if (reader?.client.position?.offset >= offset) this.onDelivered(user, offset);
      reader?.expect(offset);
    } catch (error) {
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

  async #onAsk(event) {
    event.preventDefault();
    const field = event.target.elements.text;
    const text = field.value;
    field.value = "";
    const open = this.client.state === "open";
    const { status, row } = this.#append("out", text, `to the service · ${clock(new Date())}`, open ? "sending" : "queued");
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
    }
    this.#asked.delete(id);
  }
}

for (const section of root.querySelectorAll(".panel")) {
  const panel = new Panel(section);
  panels.set(panel.user, panel);
}
