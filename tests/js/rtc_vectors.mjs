/** The pure functions of the scene store against the vectors that the server is tested with. */

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

import { Graph, applyMessages, mergeEdit, stateHash, validateMessage } from "../../edge/web/vuer.js";
import { canonical } from "../../edge/web/holdfast.js";

const FOLDER = new URL("../vectors/vuer/", import.meta.url);
const lines = (file) =>
  readFileSync(new URL(file, FOLDER), "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line));
const families = readdirSync(FOLDER).filter((name) => name.endsWith(".jsonl"));
const START = [
  {
    id: "start", sessionId: "start", clock: {}, lamportTime: 0, timestamp: 0,
    ops: [
      { otype: "node.insert", key: "root", path: "-", value: { key: "u-root", tag: "Scene", name: "root" } },
      { otype: "node.insert", key: "n", path: "-", parent: "root", value: { key: "u-n", tag: "Mesh", name: "n", x: 0 } },
    ],
  },
];

function check(graph, { nodes = {}, rootKey, visible }) {
  for (const [key, wanted] of Object.entries(nodes)) {
    const node = graph.node(key);
    if (wanted === null) {
      assert.equal(node, undefined, key);
      continue;
    }
    const { removed, absent = [], ...members } = wanted;
    const wire = graph.toJSON().nodes[key];
    if (removed !== undefined) assert.equal(node.del !== null, removed, `${key} removed`);
    for (const name of absent) assert.ok(!Object.hasOwn(wire, name), `${key}.${name} is absent`);
    for (const [name, value] of Object.entries(members)) {
      assert.equal(canonical(wire[name] ?? null), canonical(value), `${key}.${name}`);
    }
  }
  if (rootKey !== undefined) assert.equal(graph.rootKey, rootKey);
  if (visible !== undefined) assert.deepEqual(graph.visible(), visible);
}

const OTHERS = new Set(["messages.jsonl", "edit-buffer.jsonl"]);

for (const family of families.filter((name) => !OTHERS.has(name))) {
  for (const { name, case: number, start, messages, state, hash } of lines(family)) {
    test(`${family} ${number ?? ""} ${name}`, () => {
      const graph = applyMessages(new Graph(), [...(start ?? START), ...messages]);
      check(graph, state);
      assert.equal(stateHash(graph), hash);
      assert.equal(stateHash(Graph.fromJSON(JSON.parse(JSON.stringify(graph)))), hash);
    });
  }
}

for (const { name, edits, merged } of lines("edit-buffer.jsonl")) {
  test(`edit-buffer ${name}`, () => {
    const buffer = edits.reduce(mergeEdit, []);
    assert.equal(canonical(buffer), canonical(merged));
  });
}

for (const { name, message, error } of lines("messages.jsonl")) {
  test(`message ${name}`, () => {
    if (error === null) validateMessage(message);
    else assert.throws(() => validateMessage(message), { code: error });
  });
}
