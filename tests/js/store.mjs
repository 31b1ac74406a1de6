/** ScopeCursors and EntityStore. */

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  EntityStore,
  ScopeCursors,
  hashRecordVersion,
  snapshotHash,
} from "../../edge/web/holdfast.js";
import { envelope } from "./support.mjs";

const S = "run:r1";

test("a cursor grows by one, and elsewhere only when told", () => {
  const cursors = new ScopeCursors();
  assert.equal(cursors.cursor(S), null);
  assert.equal(cursors.ingestSequenced(S, 2), "gap");
  assert.equal(cursors.ingestSequenced(S, 1), "applied");
  assert.equal(cursors.ingestSequenced(S, 1), "duplicate");
  cursors.beginScope(S, 40, "E2");
  assert.deepEqual(cursors.cursor(S), { seq: 40, epoch: "E2" });
  assert.equal(cursors.ingestSequenced(S, 41), "applied");
  assert.equal(cursors.scopeEpoch(S), "E2");
  cursors.forgetScope(S);
  assert.equal(cursors.scopeLastSeq(S), 0);
  assert.throws(() => cursors.beginScope(S, -1), RangeError);
});

test("a cursor advances even when taking the envelope fails", () => {
  const cursors = new ScopeCursors();
  const fail = () => {
    throw new Error("no");
  };
  assert.throws(() => cursors.ingestSequenced(S, 1, fail), /no/);
  assert.equal(cursors.scopeLastSeq(S), 1);
});

test("envelopes fold into records; repeats and gaps change nothing", () => {
  const store = new EntityStore();
  assert.equal(store.ingest(envelope(S, 1, "a")), "applied");
  assert.equal(store.ingest(envelope(S, 1, "a")), "duplicate");
  assert.equal(store.ingest(envelope(S, 3, "c")), "gap");
  assert.equal(store.ingest(envelope(S, 2, "b")), "applied");
  assert.deepEqual(store.get(S, "log:1"), { text: "ab" });
  const entities = [
    { key: "log:1", deleted: true },
    { key: "b:1", value: { k: 1 } },
  ];
  store.ingest({ kind: "patch", scope: S, seq: 3, entities });
  assert.deepEqual(store.items(S), [["b:1", { k: 1 }]]);
  assert.deepEqual(store.items(S, "log"), []);
  store.ingest(envelope(S, 4, "new"));
  assert.deepEqual(store.get(S, "log:1"), { text: "new" }, "36: created from {} after a delete");
});

test("35: a snapshot replaces the whole set", () => {
  const store = new EntityStore();
  store.ingest(envelope(S, 1));
  const updates = [];
  store.subscribe(S, (update) => updates.push(update));
  const entities = [{ key: "a:1", value: {} }];
  store.ingest({ kind: "snapshot", scope: S, seq: 2, entities });
  assert.deepEqual(store.items(S), [["a:1", {}]]);
  assert.deepEqual(updates[0].keys, ["a:1", "log:1"]);
});

test("38: what cannot be applied marks the entity broken and the cursor goes on", () => {
  const store = new EntityStore();
  store.ingest({
    kind: "patch",
    scope: S,
    seq: 1,
    entities: [{ key: "log:1", value: { text: 5 } }],
  });
  assert.equal(store.ingest(envelope(S, 2)), "applied");
  assert.equal(store.cursors.scopeLastSeq(S), 2);
  assert.equal(store.broken(S).get("log:1").reason, "type_mismatch");
  store.ingest({ kind: "patch", scope: S, seq: 3, entities: [{ key: "x:1", value: {} }] });
  assert.deepEqual(store.get(S, "x:1"), {});
  assert.equal(store.broken(S).size, 1);
  const fits = { key: "log:1", patches: [{ op: "set", path: "/text", value: "" }] };
  store.ingest({ kind: "patch", scope: S, seq: 4, entities: [fits] });
  assert.equal(store.broken(S).size, 1, "a patch on a wrong base heals nothing");
  assert.deepEqual(store.get(S, "log:1"), { text: 5 });
  store.ingest({
    kind: "patch",
    scope: S,
    seq: 5,
    entities: [{ key: "log:1", value: { text: 6 } }],
  });
  assert.equal(store.broken(S).size, 0);
  store.ingest(envelope(S, 6));
  assert.equal(store.broken(S).size, 1);
  store.ingest({ kind: "snapshot", scope: S, seq: 7, entities: [] });
  assert.equal(store.broken(S).size, 0);
});

test("43: invalidate moves the cursor and no entity", () => {
  const store = new EntityStore();
  store.ingest(envelope(S, 1));
  const before = store.snapshotHash(S);
  const updates = [];
  store.subscribe(S, (update) => updates.push(update));
  store.ingest({ kind: "invalidate", scope: S, seq: 2, classes: ["todos"] });
  assert.equal(store.snapshotHash(S), before);
  assert.deepEqual(updates[0].classes, ["todos"]);
});

test("the hash uses told versions and computes the others", () => {
  const store = new EntityStore();
  const entities = [
    { key: "b:1", value: { n: 1 }, version: "v7" },
    { key: "a:1", value: { n: 2 } },
  ];
  store.seed(S, entities, { seq: 9, epoch: "E" });
  assert.equal(
    store.snapshotHash(S),
    snapshotHash([
      ["a:1", hashRecordVersion({ n: 2 })],
      ["b:1", "v7"],
    ]),
  );
  assert.deepEqual(store.cursors.cursor(S), { seq: 9, epoch: "E" });
  assert.equal(new EntityStore().snapshotHash(S), snapshotHash([]));
});

test("listeners hear of entity, kind and scope, and stop when told", () => {
  const store = new EntityStore();
  const heard = [];
  const ends = [
    store.subscribeEntity(S, "log:1", (change) => heard.push(["entity", change.value?.text])),
    store.subscribeKind(S, "log", (change) => heard.push(["kind", change.key])),
    store.subscribe(S, (update) => heard.push(["scope", update.kind])),
    store.subscribeEntity(S, "log:2", () => heard.push(["other"])),
  ];
  store.ingest(envelope(S, 1));
  assert.deepEqual(heard, [
    ["entity", "x"],
    ["kind", "log:1"],
    ["scope", "patch"],
  ]);
  heard.length = 0;
  store.seed(S, [], { seq: 5 });
  assert.deepEqual(heard, [
    ["entity", undefined],
    ["kind", "log:1"],
    ["scope", "seed"],
  ]);
  for (const end of ends) end();
  heard.length = 0;
  store.ingest(envelope(S, 6));
  assert.deepEqual(heard, []);
});

test("a listener that throws keeps nothing from the others, nor the envelope from the store", () => {
  const store = new EntityStore();
  let heard = 0;
  store.subscribe(S, () => {
    throw new Error("listener");
  });
  store.subscribe(S, () => heard++);
  assert.throws(() => store.ingest(envelope(S, 1)), AggregateError);
  assert.equal(heard, 1);
  assert.equal(store.cursors.scopeLastSeq(S), 1);
});
