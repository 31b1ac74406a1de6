// A list that several windows share, online and off: the published StrataSync client against Holdfast.
// ?server= names the server (http://127.0.0.1:8420), ?user= who this is; two users are two devices.
import { createSyncClient } from "@stratasync/client";
import { noopReactivityAdapter } from "@stratasync/core";
import { createIndexedDbStorage } from "@stratasync/storage-idb";
import { createGraphQLTransport } from "@stratasync/transport-graphql";

const query = new URLSearchParams(location.search);
const user = query.get("user") ?? "ann";
const server = query.get("server") ?? "http://127.0.0.1:8420";
const syncEndpoint = `${server}/strata/todo/sync`;

const field = {};
const client = createSyncClient({
  dbName: "todo",
  reactivity: noopReactivityAdapter,
  schema: {
    models: {
      Todo: {
        fields: { id: field, text: field, done: field, listId: { indexed: true }, createdAt: field },
        groupKey: "listId",
        loadStrategy: "instant",
      },
    },
  },
  storage: createIndexedDbStorage(),
  transport: createGraphQLTransport({
    auth: { getAccessToken: async () => user },
    endpoint: syncEndpoint,
    syncEndpoint,
    wsEndpoint: `${syncEndpoint.replace("http", "ws")}/ws`,
  }),
  userId: user,
});

const list = document.querySelector("#list");

const line = (todo) => {
  const item = document.createElement("li");
  item.className = todo.done ? "done" : "";
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: todo.done });
  box.ariaLabel = `done: ${todo.text}`;
  box.onchange = () => client.update("Todo", todo.id, { done: box.checked });
  const text = Object.assign(document.createElement("span"), { textContent: todo.text });
  const gone = Object.assign(document.createElement("button"), { textContent: "Remove" });
  gone.onclick = () => client.delete("Todo", todo.id);
  item.append(box, text, gone);
  return item;
};

const show = async () => {
  const todos = await client.getAll("Todo", { orderBy: (a, b) => a.createdAt - b.createdAt });
  list.replaceChildren(...todos.map(line));
  const waiting = await client.getPendingCount();
  const state = waiting ? `${waiting} not yet sent` : "all saved";
  document.querySelector("#state").textContent = `${client.connectionState}, ${state}`;
};

document.querySelector("#add").onsubmit = async (event) => {
  event.preventDefault();
  const input = document.querySelector("#text");
  const text = input.value;
  input.value = "";
  const id = crypto.randomUUID();
  await client.create("Todo", { id, text, done: false, listId: "shopping", createdAt: Date.now() });
};

client.onEvent(() => void show());
await client.start();
await show();
