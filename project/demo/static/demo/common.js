// What the demo's pages share: a connection that can be cut, rows of messages, requests to the site.

import { WsGateway } from "../wsgateway/wsgateway.js";

const SHOWN = 300; // messages of a log
const FRAMES = 30; // of the wire
const STATES = {
  idle: "Not connected",
  connecting: "Connecting…",
  open: "Connected",
  waiting: "Reconnecting",
  offline: "No network",
  closed: "Closed",
};
const LOGGED_OUT = 4501; // close code: the login has ended

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

export function element(name, text, properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, properties);
}

export function unique() {
  return crypto.getRandomValues(new Uint32Array(3)).join("-");
}

export function clock(date) {
  return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

export async function fetchJson(url, options = {}) {
  const response = await fetch(url, { ...options, headers: { Accept: "application/json" } });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw Object.assign(new Error(answer.error ?? `the site answered ${response.status}`), {
    temporary: response.status >= 500,
  });
}

export async function post(url, fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.set(name, value);
  form.set("csrfmiddlewaretoken", document.querySelector("[name=csrfmiddlewaretoken]").value);
  return fetchJson(url, { method: "POST", body: form });
}

export const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

function makeRow(kind, text, meta, mark) {
  const row = element("li", "", { className: kind });
  const details = element("p", "", { className: "meta" });
  const status = element("span", mark, { className: "mark-text" });
  details.append(element("span", meta), status);
  row.append(element("p", text, { className: "text" }), details);
  return { row, status };
}

/** A panel's list of messages: earlier ones by offset, then those that come. */
export class Log {
  #parts;
  #untold = 0; // messages that nobody has heard of yet

  constructor(parts) {
    this.#parts = parts;
  }

  append(kind, text, meta, mark = "") {
    const { log } = this.#parts;
    const made = makeRow(kind, text, meta, mark);
    this.#keepAtEnd(() => {
      log.append(made.row);
      if (log.children.length > SHOWN) log.firstElementChild.remove();
    });
    return made;
  }

  /** Insert a row where its offset belongs. */
  addEarlier(offset, ...looks) {
    const { earlier } = this.#parts;
    const { row } = makeRow(...looks);
    row.dataset.offset = offset;
    const next = [...earlier.children].find((other) => Number(other.dataset.offset) > offset);
    this.#keepAtEnd(() => {
      earlier.hidden = false;
      earlier.insertBefore(row, next ?? null);
    });
  }

  note(text) {
    this.append("note", text, clock(new Date()));
    this.announce(text);
  }

  /** Say that a message came; once for many, because nobody wants to hear a hundred. */
  tell(text) {
    this.#untold += 1;
    if (this.#untold > 1) return;
    setTimeout(() => {
      this.announce(this.#untold > 1 ? `${this.#untold} messages received` : text);
      this.#untold = 0;
    }, 500);
  }

  announce(text) {
    this.#parts.news.textContent = text;
  }

  /** Change the rows; stay at their end if that is what the reader sees. */
  #keepAtEnd(change) {
    const { scroll, empty } = this.#parts;
    const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
    change();
    empty.hidden = true;
    if (atEnd) scroll.scrollTop = scroll.scrollHeight;
  }
}

/** A panel's connection: its client, the button that cuts it, and what the panel says about both. */
export class Connection {
  #section;
  #parts;
  #network;
  #isCut = false;
  #timer = null;
  #retryAt = 0;

  /** *onFrame* gets the direction, "in" or "out", and the text of each frame. */
  constructor(section, parts, onFrame = () => {}) {
    this.#section = section;
    this.#parts = parts;
    this.#network = cuttable((direction, text) => {
      this.#show(direction, text);
      onFrame(direction, text);
    });
    const { path, token } = section.dataset;
    this.client = new WsGateway(path, {
      WebSocket: this.#network.CuttableWebSocket,
      token: token && (async () => (await post(token, {})).token),
      backoff: { cap: 10_000 },
    });
    this.client.on("state", (state, detail) => this.#onState(state, detail));
    parts.cut.addEventListener("click", () => this.#onCut());
  }

  #onCut() {
    if (this.client.state === "closed") {
      this.client.connect().catch(() => {}); // the state says why
      return;
    }
    this.#isCut = !this.#isCut;
    this.#parts.cut.setAttribute("aria-pressed", this.#isCut);
    this.#nameCut();
    this.#section.classList.toggle("is-cut", this.#isCut);
    this.#network.set(this.#isCut);
    // What a browser says when its network is back.
    if (!this.#isCut) window.dispatchEvent(new Event("online"));
  }

  #nameCut() {
    const closed = this.client.state === "closed" ? "Connect again" : "Cut connection";
    this.#parts.cut.textContent = this.#isCut ? "Mend connection" : closed;
  }

  #onState(state, { code, delay, reason }) {
    clearInterval(this.#timer);
    this.#nameCut();
    if (state === "closed" && code === LOGGED_OUT) document.getElementById("logged-out").hidden = false;
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

  /** List a frame, the newest first. */
  #show(direction, text) {
    const frames = this.#parts.wire;
    const row = element("li", text.length > 300 ? `${text.slice(0, 300)}…` : text);
    row.dataset.direction = direction;
    frames.prepend(row);
    if (frames.children.length > FRAMES) frames.lastElementChild.remove();
  }
}
