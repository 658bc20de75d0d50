// A room: a topic that several users read, each panel with a client of its own.

import { Connection, Log, clock, fetchJson, pause, post } from "./common.js";

const VOID = 6000; // ms; for 5 s after someone was shown out, new tokens are void too

const panels = new Map(); // user -> Panel, of this page
const root = document.getElementById("panels");
const here = document.getElementById("here");

/** Returns a token once that the page already has, and fetches another one whenever it is asked again. */
function tokens(user, first) {
  let ready = first;
  return async () => {
    const token = ready ?? (await post(root.dataset.token, { user })).token;
    ready = null;
    return token;
  };
}

/** The time of a message, with its date if that is not today's. */
function moment(date) {
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? clock(date) : `${date.toLocaleDateString()} ${clock(date)}`;
}

class Panel {
  #parts = {};
  #log;
  #isVisitor; // the other panel shows somebody else
  #topic = null;
  #token; // function that returns what opens a private room
  #outgoing = []; // {text, status} of what this page has sent, and has not read in the room
  #wasAway = false; // it was subscribed, and is not connected
  #back = null; // {upTo, rows} while what came after a cut is read; upTo: the last message missed
  #before = null; // offset that the next page of earlier messages ends at

  constructor(section) {
    this.user = section.dataset.user;
    for (const part of section.querySelectorAll("[data-part]")) this.#parts[part.dataset.part] = part;
    this.#log = new Log(this.#parts);
    const { opens, token } = section.dataset;
    this.#isVisitor = token === undefined;
    this.#token = opens && tokens(this.user, opens);
    this.client = new Connection(section, this.#parts).client;
    this.client.on("state", (state) => {
      // After a log-out and "Connect again", topics are asked for again.
      if (state === "open" && this.#topic?.state === "ended" && this.#parts.refused.hidden) this.#subscribe();
    });
    this.#parts.write.addEventListener("submit", (event) => this.#onWrite(event));
    this.#parts.older.addEventListener("click", () => this.#loadEarlier());
    this.#parts.invite?.addEventListener("click", () => this.#onInvite());
    this.client.connect().catch(() => {}); // the state says why
    this.#subscribe();
  }

  // -- the topic ---------------------------------------------------------------------------

  #subscribe() {
    const position = this.#topic?.position ?? undefined;
    const topic = this.client.topic(root.dataset.topic, { since: "new", position, token: this.#token });
    this.#topic = topic;
    topic.once("recovered", ({ offset }) => {
      if (this.#before === null) this.#loadEarlier(offset + 1);
    });
    topic.on("recovered", (event) => this.#onRecovered(event));
    topic.on("state", (state, detail) => this.#onState(state, detail));
    topic.on("message", (message) => this.#onMessage(message));
    topic.on("error", (error) => {
      if (topic.state !== "ended") this.#log.note(error.message); // no token for now
    });
    topic.ready.catch(() => {}); // the state says why
    if (this.#isVisitor) this.#watchReaders(topic);
  }

  #watchReaders(topic) {
    for (const event of ["readers", "state"]) topic.on(event, () => showWhoIsHere(topic));
    topic.watch().catch(() => {}); // the state says why
  }

  #onState(state, { code, reason, access }) {
    if (state === "waiting") this.#wasAway = true;
    if (state === "subscribed") this.#refuse("", access === "write");
    // Without a code, it was the site that gave no token.
    if (state === "ended" && (code === "forbidden" || code === undefined)) {
      const again = this.#before === null ? "" : " any longer";
      this.#refuse(`${this.user} may not read this room${again}. It opens only with a token, and this page has none for ${this.user}.`);
    } else if (state === "ended" && code !== "closed") {
      this.#refuse(`${this.user} is not in this room: ${reason}.`);
    }
  }

  /** Say why the room is closed to this user; "" if it is open. */
  #refuse(text, writable = false) {
    this.#parts.refused.hidden = text === "";
    this.#parts.refused.textContent = text;
    this.#parts.write.hidden = !writable;
    this.#parts.empty.textContent = text ? "" : "Nothing has been said here yet.";
  }

  #onRecovered({ recovered, reason }) {
    if (!recovered && reason !== "new") this.#log.note(`Not everything that you missed is kept (${reason}).`);
    if (!this.#wasAway) return;
    this.#wasAway = false;
    this.#markMissed();
  }

  // -- messages ----------------------------------------------------------------------------

  /** Mark what was said before the connection was mended: up to what the room holds now. */
  async #markMissed() {
    const back = { upTo: Infinity, rows: [] };
    this.#back = back;
    try {
      const { messages } = await fetchJson(root.dataset.history);
      back.upTo = messages.at(-1)?.offset ?? 0;
    } catch {
      back.upTo = 0; // what arrives is shown all the same
    }
    for (const [offset, made] of back.rows) this.#mark(offset, made);
  }

  #mark(offset, { row, status }) {
    if (offset > this.#back.upTo) return;
    row.classList.add("missed");
    status.textContent = "sent while you were offline";
  }

  #onMessage({ offset, from, data, time }) {
    const text = typeof data === "string" ? data : `${data.length} bytes`;
    if (from?.user === this.user) {
      this.#onOwn(offset, text, time);
      return;
    }
    const about = [`#${offset}`, from?.user ?? "a program", clock(time ?? new Date())].join(" · ");
    const made = this.#log.append("in", text, about);
    this.#log.tell(`${from?.user ?? "A program"}: ${text}`);
    if (this.#back?.upTo === Infinity) this.#back.rows.push([offset, made]);
    else if (this.#back) this.#mark(offset, made);
  }

  /** A message of this user is in the room: this page has sent it, or another one. */
  #onOwn(offset, text, time) {
    const at = this.#outgoing.findIndex((each) => each.text === text);
    const [known] = at < 0 ? [] : this.#outgoing.splice(at, 1);
    const status = known?.status ?? this.#log.append("out", text, clock(time ?? new Date())).status;
    status.textContent = `✓✓ #${offset} in the room`;
  }

  /** Show the page of messages before an offset: what was said before this page was opened. */
  async #loadEarlier(before = this.#before) {
    this.#before = before;
    const { older } = this.#parts;
    let page;
    try {
      page = await fetchJson(`${root.dataset.history}?${new URLSearchParams({ before })}`);
    } catch (error) {
      this.#log.note(`Earlier messages cannot be shown: ${error.message}.`);
      return;
    }
    for (const { offset, time, from, text } of page.messages) {
      const own = from === this.user;
      const at = moment(new Date(time));
      const about = own ? at : `#${offset} · ${from ?? "a program"} · ${at}`;
      this.#log.addEarlier(offset, own ? "out" : "in", text ?? "binary", about, own ? `✓✓ #${offset} in the room` : "");
    }
    this.#before = page.before ?? before;
    older.hidden = page.before === null;
  }

  // -- writing -----------------------------------------------------------------------------

  async #onWrite(event) {
    event.preventDefault();
    const field = event.target.elements.text;
    const text = field.value;
    field.value = "";
    field.focus();
    const isOpen = this.#topic.state === "subscribed";
    const { status, row } = this.#log.append("out", text, clock(new Date()), isOpen ? "sending" : "queued");
    const sent = { text, status };
    this.#outgoing.push(sent);
    try {
      await this.#topic.send(text);
      if (this.#outgoing.includes(sent)) status.textContent = "✓ stored";
    } catch (error) {
      this.#outgoing = this.#outgoing.filter((each) => each !== sent);
      row.classList.add("failed");
      status.textContent = `not sent: ${error.message}`;
    }
  }

  // -- guests ------------------------------------------------------------------------------

  /** Come in with a token; when it has expired, the client asks for another one. */
  enter() {
    this.#token = tokens(this.user);
    this.#subscribe();
  }

  async #onInvite() {
    const { invite } = this.#parts;
    const { guest } = invite.dataset;
    const isInside = "inside" in invite.dataset;
    invite.disabled = true;
    try {
      await post(isInside ? root.dataset.showOut : root.dataset.letIn, {});
    } catch (error) {
      this.#log.note(`That did not work: ${error.message}.`);
      invite.disabled = false;
      return;
    }
    invite.toggleAttribute("data-inside", !isInside);
    if (isInside) {
      invite.textContent = `${guest} is out`;
      await pause(VOID);
    } else {
      panels.get(guest).enter();
    }
    invite.textContent = isInside ? `Let ${guest} in` : `Show ${guest} out`;
    invite.disabled = false;
  }
}

/** Say who reads a topic, as its watch tells; nothing while that may be out of date. */
function showWhoIsHere({ state, readers }) {
  const names = readers?.users?.map(({ user }) => user).sort().join(", ") ?? `${readers?.sockets} windows`;
  here.hidden = state !== "subscribed" || !readers || names === "";
  if (here.hidden) return;
  const text = `Here now: ${names}${readers.complete ? "" : " and perhaps others"}`;
  if (here.textContent !== text) here.textContent = text; // a screen reader reads changes aloud
}

for (const section of root.querySelectorAll(".panel")) {
  const panel = new Panel(section);
  panels.set(panel.user, panel);
}
