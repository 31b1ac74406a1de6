/** The scene store: convergence over a bad network, and its rules one by one. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { GraphStore, applyMessages, stateHash } from "../../edge/web/vuer.js";
import { Peer, Room, deliver, pick, randomOf, randomOp, settleAll } from "./rtc_support.mjs";

const HISTORIES = 250;

function history(seed) {
  const random = randomOf(seed);
  const room = new Room();
  const peers = Array.from({ length: 2 + (seed % 3) }, (_, i) => new Peer(`s${i}`, room, random));
  peers[0].store.editBatch([
    { otype: "node.insert", key: "root", path: "-", value: { key: "r", tag: "Scene" } },
    { otype: "node.insert", key: "a", path: "-", parent: "root", value: { key: "ua", t: "héllo" } },
  ]);
  peers[0].store.commit();
  for (let step = 0; step < 120; step++) {
    const peer = pick(random, peers);
    const dice = random();
    if (dice < 0.35) peer.work();
    else if (dice < 0.6) deliver(room, peer, peers, 2);
    else if (dice < 0.95) peer.hear(true);
    else if (peer.online) peer.leave();
    else peer.join();
    if (random() < 0.02) room.compact(Math.floor(random() * 20));
    const { floor: floorSeq, floorAt } = room;
    if (random() < 0.05) peer.store.settle({ durableSeq: 0, floorSeq, floorAt });
  }
  settleAll(room, peers);
  return { room, peers };
}

test(`${HISTORIES} histories over a network that loses, repeats and reorders end alike`, () => {
  for (let seed = 0; seed < HISTORIES; seed++) {
    const { room, peers } = history(seed);
    const hash = stateHash(room.graph());
    for (const { store } of peers) {
      const where = `seed ${seed}, ${store.sessionId}`;
      assert.equal(store.confirmedSeq, room.head, where);
      assert.deepEqual(store.pending, [], where);
      assert.equal(stateHash(store.confirmed), hash, where);
      assert.equal(stateHash(store.graph), hash, `view, ${where}`);
    }
  }
});

test("what is shown is the confirmed scene, pending and edits, at every step", () => {
  for (let seed = 1000; seed < 1040; seed++) {
    const random = randomOf(seed);
    const room = new Room();
    const peers = [new Peer("a", room, random), new Peer("b", room, random)];
    for (let step = 0; step < 60; step++) {
      const peer = pick(random, peers);
      if (random() < 0.5) peer.work();
      else deliver(room, peer, peers, 1);
      if (random() < 0.4) peer.hear(false);
      const { store } = peer;
      const { floor: floorSeq, floorAt } = room;
      store.settle({ floorSeq, floorAt });
      const lamportTime = store.lamport + 1;
      const edits = { id: "", sessionId: store.sessionId, lamportTime, ops: store.edits };
      const sequenced = room.journal.filter(({ serverSeq }) => serverSeq <= store.confirmedSeq);
      const shown = applyMessages(room.base, [...sequenced, ...store.pending, edits]);
      assert.equal(stateHash(store.graph), stateHash(shown), `seed ${seed}, step ${step}`);
    }
  }
});

test("a buffer that is merged means what was done one by one", () => {
  let merged = 0;
  for (let seed = 0; seed < 1000; seed++) {
    const random = randomOf(seed);
    const store = new GraphStore("s", { newId: () => "m" });
    store.edit({ otype: "node.insert", key: "root", path: "-", value: { key: "r", x: 1, t: "t" } });
    store.edit({ otype: "node.insert", key: "a", path: "-", parent: "root", value: { key: "u" } });
    store.commit();
    for (let i = 0; i < 12; i++) store.edit(randomOp(random, store));
    const { edits, pending } = store;
    merged += 12 - edits.length;
    // The view took them one by one; sums of tenths may differ in the last bit in another order.
    if (JSON.stringify(edits).includes("0.1")) continue;
    const message = { ...pending[0], id: "x", clock: { s: 2 }, lamportTime: 2, ops: edits };
    const expected = stateHash(applyMessages(store.confirmed, [pending[0], message]));
    assert.equal(stateHash(store.graph), expected, `seed ${seed}`);
  }
  assert.ok(merged > 50, `${merged} were merged`);
});

// --- one by one ----------------------------------------------------------------------------------

const set = (value, key = "n") => ({ otype: "number.set", key, path: "x", value });
const add = (value, key = "n") => ({ otype: "number.add", key, path: "x", value });
const message = (serverSeq, ops, sessionId = "bob", lamportTime = serverSeq) => ({
  id: `${sessionId}-${serverSeq}`, sessionId, clock: { [sessionId]: serverSeq }, lamportTime,
  timestamp: 1, ops, serverSeq,
});
const start = message(1, [
  { otype: "node.insert", key: "root", path: "-", value: { key: "r", tag: "Scene" } },
  { otype: "node.insert", key: "n", path: "-", parent: "root", value: { key: "u", x: 0 } },
]);

function ann() {
  const sent = [];
  let made = 0;
  const store = new GraphStore("ann", {
    newId: () => `ann-${++made}`,
    now: () => 5,
    onSend: (each) => sent.push(each),
  });
  store.receive(start);
  return { store, sent, x: () => store.graph.value("n", "x") };
}

test("50: what comes early waits, and is not taken twice", () => {
  const { store, x } = ann();
  assert.equal(store.receive(message(3, [add(4)])), 1);
  assert.equal(store.receive(message(2, [set(1)])), null);
  assert.equal(store.receive(message(3, [add(4)]), message(2, [set(1)])), null);
  assert.equal(x(), 5);
  assert.equal(store.confirmedSeq, 3);
});

test("own work is on top of what is confirmed, whatever comes in between", () => {
  const { store, sent, x } = ann();
  store.edit(add(3));
  store.commit();
  store.receive(message(2, [set(10)]));
  assert.equal(x(), 13);
  assert.equal(store.confirmed.value("n", "x"), 10);
  store.ack(sent[0].id, 3);
  assert.equal(x(), 13);
  assert.deepEqual(store.pending, []);
});

test("49: an answer about what came inside a snapshot clears it from pending", () => {
  const { store, sent, x } = ann();
  store.edit(add(3));
  store.commit();
  const [own] = sent;
  const graph = JSON.parse(JSON.stringify(applyMessages(store.confirmed, [own])));
  store.load({ epoch: "E", resume: false, floorSeq: 2, snapshot: { graph, journalIndex: 2 } });
  assert.equal(x(), 6, "twice until the answer");
  store.ack(own.id, 2);
  assert.equal(x(), 3);
  assert.deepEqual(store.pending, []);
});

test("52: an undo that is refused is taken back", () => {
  const { store, sent, x } = ann();
  store.edit(add(3));
  store.commit();
  store.ack(sent[0].id, 2);
  store.undo();
  assert.equal(x(), 0);
  assert.equal(store.canRedo, true);
  store.reject(sent[1].id);
  assert.equal(x(), 3);
  assert.equal(store.canUndo || store.canRedo, false);
});

test("54: undo of what is pending, then redo", () => {
  const { store, sent, x } = ann();
  store.edit(add(3));
  store.edit(add(4));
  store.undo();
  assert.deepEqual(sent.map(({ ops }) => ops[0].otype), ["number.add", "meta.undo"]);
  assert.equal(sent[1].ops[0].targetMsgId, sent[0].id);
  assert.equal(x(), 0);
  store.redo();
  assert.equal(x(), 7);
  sent.forEach(({ id }, i) => store.ack(id, i + 2));
  assert.equal(store.confirmed.value("n", "x"), 7);
  store.edit(set(1));
  store.commit();
  assert.equal(store.redo(), null, "a commit clears redo");
});

test("63 and 65: pushes are all kept, an empty commit is no message", () => {
  const { store, sent } = ann();
  assert.equal(store.commit(), null);
  for (const value of [1, 2]) store.edit({ otype: "array.push", key: "n", path: "l", value });
  store.commit();
  assert.deepEqual(sent[0].ops.map(({ value }) => value), [1, 2]);
  assert.deepEqual(store.graph.value("n", "l"), [1, 2]);
});

test("64: cancel drops own edits and keeps what came meanwhile", () => {
  const { store, x } = ann();
  store.edit(add(3));
  store.receive(message(2, [set(10)]));
  assert.equal(x(), 13);
  store.cancel();
  assert.equal(x(), 10);
});

test("the base moves only when everything up to floorAt is known", () => {
  const { store } = ann();
  store.receive(message(2, [add(1)]), message(3, [add(2)]));
  assert.equal(store.compact(2, 4), false);
  store.receive(message(4, [{ otype: "meta.undo", key: "_meta", path: "_meta", targetMsgId: "bob-2" }]));
  assert.equal(store.compact(2, 4), true);
  assert.equal(store.confirmed.value("n", "x"), 2);
});

test("after a change of epoch own messages that are not durable are pending again", () => {
  const { store, sent } = ann();
  store.load({ epoch: "E1", resume: true, floorSeq: 0, journal: [] });
  for (const [i, value] of [1, 2, 4].entries()) {
    store.edit(add(value));
    store.commit();
    store.ack(sent[i].id, i + 2);
  }
  store.settle({ durableSeq: 2 });
  const graph = JSON.parse(JSON.stringify(applyMessages(store.confirmed, [])));
  store.load({ epoch: "E2", resume: false, floorSeq: 99, snapshot: { graph, journalIndex: 99 } });
  assert.deepEqual(store.pending.map(({ id }) => id), [sent[1].id, sent[2].id]);
});

test("listeners hear which nodes may look different", () => {
  const { store } = ann();
  const heard = [];
  const end = store.subscribe(({ keys, all }) => heard.push(all ? "all" : [...keys].sort().join()));
  store.edit(set(1));
  store.commit();
  store.receive(message(2, [set(2, "root")]));
  store.undo();
  end();
  store.edit(set(3));
  assert.deepEqual(heard.slice(0, 1), ["n"]);
  assert.ok(heard[2].includes("root") && heard[2].includes("n"), heard[2]);
  assert.equal(heard.at(-1), "all");
});

test("what is not valid changes nothing and says why", () => {
  const { store, x } = ann();
  for (const [op, code] of [
    [{ ...set(1), value: NaN }, "invalid_op"],
    [{ ...set(1), value: 2 ** 60 }, "invalid_op"],
    [{ ...set(1), key: "" }, "invalid_op"],
    [{ ...set(1), path: "a\n" }, "invalid_op"],
    [{ ...set(1), path: "_crdt" }, "invalid_op"],
    [{ otype: "vector3.set", key: "n", path: "v", value: [1, 2] }, "invalid_op"],
    [{ otype: "number.double", key: "n", path: "x" }, "unknown_otype"],
    [{ otype: "meta.undo", key: "_meta", path: "_meta", targetMsgId: "m" }, "invalid_op"],
  ]) {
    assert.throws(() => store.editBatch([set(9), op]), { code });
  }
  assert.equal(x(), 0);
  assert.deepEqual(store.edits, []);
});

test("euler angles go out as a quaternion", () => {
  const { store, sent } = ann();
  store.edit({ otype: "vector3.set", key: "n", path: "v", value: [1, 0, 0] });
  const value = [0, 0, Math.PI / 2];
  store.edit({ otype: "vector3.applyEuler", key: "n", path: "v", value });
  store.commit();
  assert.equal(sent[0].ops[1].otype, "vector3.applyQuaternion");
  const expected = [0, 1, 0];
  store.graph.value("n", "v").forEach((x, i) => assert.ok(Math.abs(x - expected[i]) < 1e-12));
});

test("typing is one insert with identities that count on", () => {
  const { store, sent } = ann();
  for (const [position, value] of ["h", "é", "👍", "!"].entries()) {
    store.edit({ otype: "text.insert", key: "n", path: "t", position, value });
  }
  store.commit();
  assert.deepEqual(sent[0].ops, [
    { otype: "text.insert", key: "n", path: "t", id: "ann:0", value: [null, "hé👍!"] },
  ]);
  store.edit({ otype: "text.replace", key: "n", path: "t", position: 1, length: 2, value: "a" });
  assert.equal(store.graph.value("n", "t"), "ha!");
  store.undo();
  assert.equal(store.graph.value("n", "t"), "hé👍!");
});
