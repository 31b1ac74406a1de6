/** The pure functions of holdfast.js against the vectors that the server is tested with. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import * as holdfast from "../../edge/web/holdfast.js";
import { vectors } from "./support.mjs";

/** Own members only, in any order, with `__proto__` as one of them. */
const plain = (value) => holdfast.canonical(value);

for (const { name, edge, record, patches, expect, error } of vectors("patches")) {
  test(`patches ${edge ?? ""} ${name}`, () => {
    const before = JSON.stringify([record, patches]);
    if (error === undefined) {
      assert.equal(plain(holdfast.applyEntityPatches(record, patches)), plain(expect));
    } else {
      assert.throws(
        () => holdfast.applyEntityPatches(record, patches),
        (thrown) => {
          assert.ok(thrown instanceof holdfast.PatchError, String(thrown.stack));
          assert.deepEqual({ index: thrown.index, reason: thrown.reason }, error);
          assert.equal(thrown.code, "patch_failed");
          return true;
        },
      );
    }
    assert.equal(JSON.stringify([record, patches]), before);
    assert.equal({}.x, undefined, "Object.prototype is as it was");
  });
}

for (const { name, json, canonical } of vectors("canonical")) {
  test(`canonical ${name}`, () => assert.equal(holdfast.canonical(JSON.parse(json)), canonical));
}

for (const { name, json, version, entities, snapshot } of vectors("hashes")) {
  test(`hash ${name}`, () => {
    if (version !== undefined) {
      assert.equal(holdfast.hashRecordVersion(JSON.parse(json)), version);
    } else {
      assert.equal(holdfast.snapshotHash(entities), snapshot);
      assert.equal(holdfast.snapshotHash([...entities].reverse()), snapshot);
    }
  });
}

for (const { type, key, parts, error } of vectors("keys")) {
  test(`${type} key ${JSON.stringify(key).slice(0, 40)}`, () => {
    const parse = type === "scope" ? holdfast.parseScopeKey : holdfast.parseEntityKey;
    if (error === undefined) assert.deepEqual(parse(key), parts);
    else assert.throws(() => parse(key), { code: error });
  });
}

test("keys are joined only where they parse back", () => {
  assert.equal(holdfast.createScopeKey("run", "r:1"), "run:r:1");
  assert.equal(holdfast.createEntityKey("message", "m:1"), "message:m:1");
  for (const [kind, rest] of [
    ["", "x"],
    ["a:b", "c"],
    ["run", "\n"],
  ]) {
    assert.throws(() => holdfast.createScopeKey(kind, rest), { code: "bad_scope" });
    assert.throws(() => holdfast.createEntityKey(kind, rest), { code: "bad_envelope" });
  }
});

test("sha256 agrees with OpenSSL at every block boundary", () => {
  for (let length = 0; length < 200; length++) {
    const text = "é".repeat(length % 5) + "a".repeat(length);
    assert.equal(holdfast.sha256(text), createHash("sha256").update(text).digest("hex"));
  }
});

test("containers off the path are shared, those on it copied once a call", () => {
  const record = { a: { b: [1] }, c: {} };
  const patch = { op: "append", path: "/a/b", values: [2] };
  const result = holdfast.applyEntityPatches(record, [patch, patch]);
  assert.deepEqual(record, { a: { b: [1] }, c: {} });
  assert.deepEqual(result.a.b, [1, 2, 2]);
  assert.equal(result.c, record.c);
});
