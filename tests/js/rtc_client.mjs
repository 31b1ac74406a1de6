/** The socket of the scene client, against a scripted server and a clock that is told. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { RtcClient, roomUrl, stateHash } from "../../edge/web/vuer.js";
import { Timers, fakeWebSocket, settle } from "./support.mjs";

const INSERT = { otype: "node.insert", key: "n", path: "-", value: { key: "u", x: 0 } };
const SET = { otype: "number.set", key: "n", path: "x", value: 1 };
const EMPTY = { graph: { nodes: {}, rootKey: "" }, journalIndex: 0, vectorClock: {}, lamportTime: 0 };
const state = (more = {}) => ({
  mtype: "state", epoch: "E1", headSeq: 0, floorSeq: 0, floorAt: 0, durableSeq: 0, lamportTime: 0,
  resume: false, snapshot: EMPTY, journal: [], more: false, members: [], ...more,
});
const message = (serverSeq, ops, sessionId = "bob") => ({
  id: `${sessionId}-${serverSeq}`, sessionId, clock: { [sessionId]: serverSeq },
  lamportTime: serverSeq, timestamp: 0, ops, serverSeq,
});

function start(options = {}) {
  const timers = new Timers();
  const { FakeWebSocket, sockets } = fakeWebSocket();
  let made = 0;
  let now = 0;
  const client = new RtcClient("http://h/rtc/r", "ann", {
    WebSocket: FakeWebSocket,
    setTimeout: timers.setTimeout,
    clearTimeout: timers.clearTimeout,
    random: () => 1,
    now: () => now,
    newId: () => `ann-${++made}`,
    ...options,
  });
  const pass = async (ms) => {
    now += ms;
    await timers.advance(ms);
  };
  client.connect();
  return { client, store: client.store, sockets, pass, last: () => sockets.at(-1) };
}

function live(options) {
  const all = start(options);
  all.last().open();
  all.last().deliver(state());
  all.last().take();
  return all;
}

test("it joins with nothing, and later with what it has", async () => {
  const { client, store, sockets, pass, last } = start();
  assert.equal(last().url, "ws://h/rtc/r?sessionId=ann");
  last().open();
  assert.deepEqual(last().take(), [{ mtype: "join", mode: "tail" }]);
  assert.equal(client.state.name, "joining");
  last().deliver(state({ journal: [message(1, [INSERT])], headSeq: 1 }));
  assert.equal(client.state.name, "live");
  assert.equal(store.graph.value("n", "x"), 0);
  last().drop(1006);
  assert.equal(client.state.name, "waiting");
  await pass(500);
  assert.equal(sockets.length, 2);
  last().open();
  assert.deepEqual(last().take(), [{ mtype: "join", mode: "tail", epoch: "E1", since: 1 }]);
});

test("own messages go out in order, again after a lost connection, until they are answered", async () => {
  const { store, pass, last } = live();
  store.edit(INSERT);
  store.commit();
  store.edit(SET);
  store.commit();
  const ids = () => last().take().map(({ mtype, msg }) => mtype === "crdt" && msg.id);
  const [first, second] = store.pending.map(({ id }) => id);
  assert.deepEqual(ids(), [first, second]);
  last().deliver({ mtype: "ack", msgId: first, serverSeq: 1, durableSeq: 0 });
  last().drop();
  store.edit({ ...SET, value: 2 });
  store.commit();
  await pass(500);
  last().open();
  last().take();
  last().deliver(state({ resume: true, snapshot: undefined, headSeq: 1 }));
  assert.deepEqual(ids(), [second, store.pending[1].id]);
  last().deliver({ mtype: "ack", msgId: second, serverSeq: 2, dup: true, durableSeq: 2 });
  assert.equal(store.pending.length, 1);
  assert.equal(store.graph.value("n", "x"), 2);
});

test("a gap is asked for once, and again where no answer comes, until it is filled", async () => {
  const { store, pass, last } = live();
  last().deliver({ mtype: "broadcast", msg: message(2, [SET]) });
  assert.deepEqual(last().take(), [{ mtype: "sync", since: 0 }]);
  last().deliver({ mtype: "broadcast", msg: message(3, [SET]) });
  assert.deepEqual(last().take(), []);
  await pass(1000);
  assert.deepEqual(last().take(), [{ mtype: "sync", since: 0 }]);
  last().deliver({ mtype: "broadcast", msgs: [message(1, [INSERT]), message(2, [SET])] });
  assert.equal(store.confirmedSeq, 3);
  await pass(2000);
  assert.deepEqual(last().take(), []);
});

test("a heartbeat shows what was lost at the end", async () => {
  const { pass, last } = live();
  last().deliver({ mtype: "heartbeat", serverSeq: 4, floorSeq: 0, floorAt: 0, durableSeq: 0 });
  assert.deepEqual(last().take(), []);
  await pass(200);
  assert.deepEqual(last().take(), [{ mtype: "sync", since: 0 }]);
});

test("heartbeats every 15 s; a silent server is given up", async () => {
  const { client, pass, last } = live();
  await pass(15_000);
  assert.deepEqual(last().take(), [
    { mtype: "heartbeat", sessionId: "ann", vectorClock: { ann: 0 }, confirmedSeq: 0 },
  ]);
  await pass(30_000);
  assert.equal(client.state.name, "waiting");
  assert.equal(client.state.code, "silence");
});

test("a refusal takes the message back; one that passes is sent again", async () => {
  const { client, store, pass, last } = live();
  const errors = [];
  client.on("error", (error) => errors.push([error.code, error.messageId]));
  store.edit(INSERT);
  store.commit();
  const [{ msg }] = last().take();
  const refusal = { mtype: "error", msgId: msg.id, error: "rate_limited", message: "", retryable: true };
  last().deliver({ ...refusal, retryAfterMs: 700 });
  await pass(699);
  assert.deepEqual(last().take(), []);
  await pass(1);
  assert.equal(last().take()[0].msg.id, msg.id);
  last().deliver({ ...refusal, error: "forbidden", retryable: false });
  assert.deepEqual(errors, [["forbidden", msg.id]]);
  assert.equal(store.graph.value("n", "x"), undefined);
});

test("sending keeps below the server's rate", async () => {
  const { store, pass, last } = live();
  store.edit(INSERT);
  for (let i = 0; i < 700; i++) {
    store.edit({ ...SET, value: i });
    store.commit();
  }
  assert.equal(last().take().length, 500);
  await pass(1000);
  assert.equal(last().take().length, 100);
});

test("presence: the newest, at most every 33 ms; members come and go", async () => {
  const { client, pass, last } = live();
  for (const at of [1, 2, 3]) client.setPresence({ at });
  assert.deepEqual(last().take(), [{ mtype: "presence", state: { at: 1 } }]);
  await pass(33);
  assert.deepEqual(last().take(), [{ mtype: "presence", state: { at: 3 } }]);
  last().deliver({ mtype: "members", joined: ["bob"], left: [] });
  last().deliver({ mtype: "presence", sessionId: "bob", state: { at: 9 } });
  assert.deepEqual([...client.members], [["bob", { state: { at: 9 } }]]);
  last().deliver({ mtype: "members", joined: [], left: ["bob"] });
  assert.equal(client.members.size, 0);
  const member = (sessionId, connected) => ({ sessionId, connected, vectorClock: {}, lastSeen: 0 });
  last().deliver({ mtype: "members", all: [member("cy", true), member("di", false)] });
  assert.deepEqual([...client.members.keys()], ["cy"]);
});

test("it leaves, works on, and comes back with what was done", async () => {
  const { client, store, last } = live();
  const before = last();
  client.disconnect();
  assert.deepEqual(before.take(), [{ mtype: "leave" }]);
  assert.equal(before.closed, true);
  store.edit(INSERT);
  store.commit();
  client.connect();
  last().open();
  last().take();
  last().deliver(state());
  assert.equal(last().take()[0].msg.ops[0].otype, "node.insert");
});

test("a session that is joined elsewhere stays closed", async () => {
  const { client, sockets, pass, last } = live();
  last().drop(4409, "joined elsewhere");
  assert.equal(client.state.name, "closed");
  assert.equal(client.state.code, 4409);
  await pass(100_000);
  assert.equal(sockets.length, 1);
});

test("the room's hash is compared where both are equally far", async () => {
  const { client, store, last } = live();
  last().deliver({ mtype: "broadcast", msg: message(1, [INSERT]) });
  const asked = client.check();
  const [{ mtype, requestId }] = last().take();
  assert.equal(mtype, "sync-check");
  const hash = stateHash(store.confirmed);
  last().deliver({ mtype: "sync-status", requestId, status: { serverSeq: 1, hash } });
  assert.deepEqual(await asked, { serverSeq: 1, same: true });
});

test("a token is fetched for each connection and sent in the address", async () => {
  const { pass, last, sockets } = start({ token: async () => "t&1" });
  await settle();
  assert.equal(last().url, "ws://h/rtc/r?sessionId=ann&token=t%261");
  last().drop();
  await pass(500);
  await settle();
  assert.equal(sockets.length, 2);
});

test("a frame that is no JSON ends the connection, not the client", async () => {
  const { client, last } = live();
  last().onmessage({ data: "{" });
  assert.equal(client.state.name, "waiting");
  assert.equal(client.state.code, "bad_frame");
});

test("addresses", () => {
  assert.equal(roomUrl("https://h/rtc/a b", { sessionId: "s" }), "wss://h/rtc/a%20b?sessionId=s");
});
