// The real client, driven from a test: one JSON line in is a piece of JavaScript to run, one JSON line
// out is what it returned. Devices live in `devices` by name, each with its own storage, which stays
// when the device is stopped and started again.
import "fake-indexeddb/auto";
import { createInterface } from "node:readline";
import { WebSocket } from "ws";
import { createSyncClient } from "@stratasync/client";
import { noopReactivityAdapter } from "@stratasync/core";
import { createIndexedDbStorage } from "@stratasync/storage-idb";
import { createGraphQLTransport } from "@stratasync/transport-graphql";

const PATIENCE_MS = 20_000;
const field = {};
export const schema = {
  models: {
    Task: {
      fields: {
        id: field, title: field, workspaceId: { indexed: true }, done: field, dueOn: field,
        createdAt: field, archivedAt: field,
      },
      groupKey: "workspaceId", loadStrategy: "instant",
    },
    Comment: {
      fields: { id: field, body: field, taskId: { indexed: true }, workspaceId: { indexed: true }, score: field },
      groupKey: "workspaceId", loadStrategy: "lazy",
    },
    TaskLabel: {
      fields: { id: field, taskId: field, labelId: field, workspaceId: { indexed: true } },
      groupKey: "workspaceId", loadStrategy: "instant",
    },
    Notice: { fields: { id: field, text: field }, loadStrategy: "instant" },
  },
};

globalThis.WebSocket = WebSocket; // the client compares with its constants
globalThis.localStorage ??= new (class {
  #held = new Map();
  getItem(key) { return this.#held.get(key) ?? null; }
  setItem(key, value) { this.#held.set(key, String(value)); }
  removeItem(key) { this.#held.delete(key); }
})();

// What can be cut: sockets and requests of one device, as a network would cut them.
class Network {
  online = true; // requests pass
  deaf = false; // sockets do not
  sockets = new Set();
  cut() {
    this.online = false;
    for (const socket of this.sockets) socket.terminate();
  }
  deafen() {
    this.deaf = true;
    for (const socket of this.sockets) socket.terminate();
  }
  join() { this.online = true; this.deaf = false; }
}

const networks = [];
const realFetch = globalThis.fetch;
globalThis.fetch = (input, init) => {
  const device = init?.headers && new Headers(init.headers).get("X-Device");
  const network = networks.find((one) => one.name === device);
  if (network) {
    const { pathname } = new URL(String(input));
    network.requests.push(`${init?.method ?? "GET"} ${pathname.split("/").at(-1)}`);
    if (!network.online) return Promise.reject(new TypeError("fetch failed"));
    if (network.loseAnswers > 0 && pathname.endsWith("/mutate")) {
      network.loseAnswers -= 1;
      return realFetch(input, init).then(() => { throw new TypeError("fetch failed"); });
    }
  }
  return realFetch(input, init);
};

class Device {
  constructor(name, { url, token, user, groups, refresh }) {
    Object.assign(this, { name, token, refresh, refreshed: 0, conflicts: [] });
    this.network = Object.assign(new Network(), { name, requests: [], loseAnswers: 0 });
    networks.push(this.network);
    const { network } = this;
    class Socket extends WebSocket {
      constructor(address) {
        super(network.online && !network.deaf ? address : "ws://127.0.0.1:1/");
        network.sockets.add(this);
        this.on("error", () => {});
        this.on("close", () => network.sockets.delete(this));
      }
    }
    this.make = () => {
      const transport = createGraphQLTransport({
        auth: {
          getAccessToken: async () => this.token,
          refreshToken: async () => { this.refreshed += 1; this.token = this.refresh ?? this.token; return this.token; },
        },
        endpoint: `${url}/graphql`, headers: { "X-Device": name },
        retry: { baseDelay: 10, jitter: 0, maxDelay: 50, maxRetries: 3 },
        syncEndpoint: url, webSocketFactory: Socket, wsEndpoint: `${url.replace("http", "ws")}/ws`,
      });
      this.client = createSyncClient({
        batchDelay: 1, dbName: name, groups: groups ?? [], reactivity: noopReactivityAdapter, schema,
        storage: createIndexedDbStorage(), transport, userId: user,
      });
      this.client.onEvent((event) => { if (event.type === "rebaseConflict") this.conflicts.push(event); });
      return this.client;
    };
    this.make();
  }
  async start() { await this.client.start(); return this; }
  async restart() { await this.client.stop(); this.make(); await this.client.start(); }
  titles() { return this.all("Task").then((rows) => rows.map((row) => `${row.id}:${row.title}`).sort()); }
  async all(model) { return (await this.client.getAll(model, { includeArchived: true })).map((row) => ({ ...row })); }
  async pending() { return this.client.getPendingCount(); }
}

const devices = {};
const device = async (name, options) => (devices[name] = await new Device(name, options).start());
const until = async (what, probe) => {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await probe();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited too long for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
};
const settled = (one) => until("an empty outbox", async () => (await one.pending()) === 0);

const AsyncFunction = (async () => {}).constructor;
for await (const line of createInterface({ input: process.stdin })) {
  const { code, args } = JSON.parse(line);
  let answer;
  try {
    const run = new AsyncFunction("devices", "device", "until", "settled", "args", code);
    answer = { value: (await run(devices, device, until, settled, args)) ?? null };
  } catch (error) {
    answer = { error: `${error?.stack ?? error}` };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit(0);
