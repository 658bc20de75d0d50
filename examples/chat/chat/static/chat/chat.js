import { WsGateway } from "../wsgateway/wsgateway.js";

const list = document.querySelector("#messages");
const form = document.querySelector("#write");
const error = document.querySelector("#error");
const state = document.querySelector("#state");
const shown = new Set();

function show({ id, from, to, text, time }) {
  if (shown.has(id)) return;
  shown.add(id);
  const mine = from === list.dataset.user;
  const when = new Date(time).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  const item = document.createElement("li");
  const about = document.createElement("small");
  item.className = mine ? "mine" : "theirs";
  about.textContent = `${mine ? `to ${to}` : from}, ${when}`;
  item.append(text, about);
  list.append(item);
  item.scrollIntoView({ block: "center" });
}

const client = new WsGateway("/ws/chat/");
client.on("message", (message) => show(message.json()));
client.on("error", (problem) => (error.textContent = problem.message));
client.on("state", (now) => (state.textContent = now));
JSON.parse(document.querySelector("#history").textContent).forEach(show);
client.connect();

form.addEventListener("submit", (event) => {
  event.preventDefault();
  error.textContent = "";
  client.send(Object.fromEntries(new FormData(form))).catch((problem) => {
    error.textContent = problem.message;
  });
  form.elements.text.value = "";
});
