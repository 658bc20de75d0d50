// The demo page: one raw websocket, which is all that a client needs.

const SHOWN = 200;
const LONGEST_DELAY = 10_000;

const page = document.getElementById("demo");
const status = document.getElementById("status");
const inbox = document.getElementById("inbox");
const empty = document.getElementById("empty");

let socket;
let attempt = 0;

function show(state, text) {
  status.dataset.state = state;
  status.textContent = text;
}

function append(text) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  const now = new Date();
  time.dateTime = now.toISOString();
  time.textContent = now.toLocaleTimeString();
  const body = document.createElement("span");
  body.textContent = text;
  item.append(time, body);
  inbox.append(item);
  while (inbox.children.length > SHOWN) inbox.firstElementChild.remove();
  inbox.scrollTop = inbox.scrollHeight;
  empty.hidden = true;
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  let opened = false;
  socket = new WebSocket(`${scheme}//${location.host}${page.dataset.path}`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    opened = true;
    attempt = 0;
    show("connected", "connected");
  };
  socket.onmessage = ({ data }) => {
    append(typeof data === "string" ? data : `${data.byteLength} bytes`);
  };
  socket.onclose = ({ code, reason }) => {
    if (code === 1008) {
      show("refused", `closed: ${reason}`);
      return;
    }
    const delay = Math.random() * Math.min(LONGEST_DELAY, 500 * 2 ** attempt++);
    show("waiting", opened ? "connection lost, reconnecting" : "no connection, trying again");
    setTimeout(connect, delay);
  };
}

document.getElementById("send").addEventListener("submit", (event) => {
  event.preventDefault();
  const note = document.getElementById("sent");
  const field = event.target.elements.frame;
  if (socket.readyState !== WebSocket.OPEN) {
    note.textContent = "Not sent: there is no connection.";
    return;
  }
  socket.send(field.value);
  note.textContent = `Sent: ${field.value}`;
  field.value = "";
});

document.getElementById("publish")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const note = document.getElementById("published");
  try {
    const response = await fetch(form.action, {
      method: "POST",
      body: new FormData(form),
      headers: { Accept: "application/json" },
    });
    const answer = await response.json();
    note.textContent = response.ok
      ? `Stored for ${answer.user} at offset ${answer.offset}.`
      : `Not published: ${answer.error}.`;
    if (response.ok) form.elements.text.value = "";
  } catch {
    note.textContent = "Not published: the site did not answer.";
  }
});

connect();
