import { WsGateway } from "../wsgateway/wsgateway.js";

const list = document.querySelector("#messages");
const form = document.querySelector("#write");
const error = document.querySelector("#error");
const state = document.querySelector("#state");

const client = new WsGateway("/ws/chat/");
client.on("state", (now) => (state.textContent = now));

const room = client.topic("room.lobby", { since: 50 });
room.on("error", (problem) => (error.textContent = problem.message));
room.on("message", ({ from, data, time }) => {
  const item = document.createElement("li");
  const about = document.createElement("small");
  item.className = from?.user === list.dataset.user ? "mine" : "theirs";
  about.textContent = `${from?.user ?? "Django"}, ${time.toLocaleTimeString()}`;
  item.append(data, about);
  list.append(item);
  item.scrollIntoView({ block: "center" });
});
client.connect();

form.addEventListener("submit", (event) => {
  event.preventDefault();
  error.textContent = "";
  room.send(form.elements.text.value).catch((problem) => {
    error.textContent = problem.message;
  });
  form.elements.text.value = "";
});
