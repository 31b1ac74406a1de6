/** para.js against the vectors that the Python replica is tested with, and what only it has. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as para from "../../edge/web/para.js";
import { settle } from "./support.mjs";

const cases = JSON.parse(readFileSync(new URL("../vectors/para/replica.json", import.meta.url), "utf8"));
const KEY = "user:1";

const envelope = (written) =>
  Array.isArray(written)
    ? { value: { n: written[0] }, schema_version: "1.0", sequence: written[1] }
    : written;

const camel = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());

const numbers = {
  parse(value) {
    if (value.n === "raise") throw new Error("a schema with a mistake");
    return typeof value.n === "number" ? para.Ok(value) : para.Err("n is no number");
  },
};

function told({ options, seed }) {
  const { refetch = false, ...rest } = options;
  const asked = [];
  const ask = () => new Promise((resolve, reject) => asked.push({ resolve, reject }));
  const transport = new para.InProcessTransport();
  const replica = para.createClientReplica({
    key: KEY,
    schema: numbers,
    transport,
    seed: seed === undefined ? null : envelope(seed),
    refetch: refetch ? ask : null,
    ...Object.fromEntries(Object.entries(rest).map(([name, value]) => [camel(name), value])),
  });
  const check = (expect) => {
    if (expect === undefined) return;
    const { sequence, status } = replica.peekMeta();
    const stats = Object.entries(replica.stats).filter(([, count]) => count !== 0);
    const wanted = Object.entries(expect.stats).map(([name, count]) => [camel(name), count]);
    assert.deepEqual(
      { value: replica.peek()?.n ?? null, sequence, status, stats: Object.fromEntries(stats) },
      { ...expect, stats: Object.fromEntries(wanted) },
    );
  };
  const tell = async (step) => {
    if ("receive" in step) transport.publish(KEY, envelope(step.receive));
    else if ("answer" in step) asked.shift().resolve(envelope(step.answer));
    else if ("fail" in step) asked.shift().reject(new Error(step.fail));
    else if ("dispose" in step) replica.dispose();
    else replica.catchUp();
    await settle();
  };
  return { replica, transport, asked, check, tell };
}

for (const one of cases) {
  test(`replica ${one.edge} ${one.name}`, async () => {
    const { replica, transport, asked, check, tell } = told(one);
    check(one.start);
    for (const step of one.steps) {
      await tell(step);
      check(step.expect);
    }
    replica.dispose();
    for (const { resolve } of asked) resolve(null);
    assert.equal(transport.keyCount(), 0);
  });
}

const env = (value, sequence) => ({ value, schema_version: "1.0", sequence });

test("17 the same handler is one registration", () => {
  const transport = new para.InProcessTransport();
  const seen = [];
  const take = (given) => seen.push(given.value);
  const first = transport.subscribe("k", take);
  const second = transport.subscribe("k", take);
  transport.publish("k", env(1, 1));
  first();
  transport.publish("k", env(2, 2));
  second();
  assert.deepEqual(seen, [1]);
  assert.equal(transport.keyCount(), 0);
});

test("18 an old unsubscribe ends nothing newer", () => {
  const transport = new para.InProcessTransport();
  const seen = [];
  const take = (given) => seen.push(given.value);
  const old = transport.subscribe("k", take);
  old();
  transport.subscribe("k", take);
  old();
  transport.publish("k", env(1, 1));
  assert.deepEqual(seen, [1]);
});

test("19 a delivery goes to who was there when it began", () => {
  const transport = new para.InProcessTransport();
  const called = [];
  transport.subscribe("k", () => {
    called.push("a");
    offB();
    transport.subscribe("k", c);
  });
  const offB = transport.subscribe("k", () => called.push("b"));
  const c = () => called.push("c");
  transport.publish("k", env(1, 1));
  transport.publish("k", env(2, 2));
  assert.deepEqual(called, ["a", "b", "a", "c"]);
});

test("20 one failing handler starves nobody", () => {
  const fail = () => {
    throw new RangeError("first");
  };
  const seen = [];
  const transport = new para.InProcessTransport();
  transport.subscribe("k", fail);
  transport.subscribe("k", (given) => seen.push(given.value));
  assert.throws(() => transport.publish("k", env(1, 1)), RangeError);
  const taken = [];
  const careful = new para.InProcessTransport({ onError: (...all) => taken.push(all) });
  careful.subscribe("k", fail);
  careful.subscribe("k", (given) => seen.push(given.value));
  careful.publish("k", env(2, 2));
  assert.deepEqual(seen, [1, 2]);
  assert.deepEqual([taken[0][0], taken[0][1], taken[0][2].message], ["k", fail, "first"]);
});

test("21 a publish without subscribers is nothing", () => {
  new para.InProcessTransport().publish("k", env(1, 1));
});

test("29 wide integers survive JSON", () => {
  const value = { wide: [2n ** 63n - 1n, -(2n ** 63n)], safe: 2 ** 53 - 1 };
  const text = para.encodeJson(value);
  assert.match(text, /\{"\$int":"9223372036854775807"\}/);
  assert.deepEqual(para.decodeJson(text), value);
  assert.deepEqual(para.decodeJson('{"$int":"7"}'), 7);
  assert.deepEqual(para.decodeJson('{"$int":"x"}'), { $int: "x" });
});

test("a refetch that never answers gives up", async () => {
  const transport = new para.InProcessTransport();
  const replica = para.createClientReplica({
    key: "k",
    schema: para.PASSTHROUGH,
    transport,
    seed: env("a", 1),
    refetch: () => new Promise(() => {}),
    refetchWaitMs: 1,
  });
  transport.publish("k", env("c", 3));
  await replica.whenIdle();
  assert.equal(replica.meta().status, "stale");
});

test("a listener that publishes sees its own change applied", () => {
  const transport = new para.InProcessTransport();
  const replica = para.createClientReplica({
    key: "k",
    schema: para.PASSTHROUGH,
    transport,
    seed: env(1, 1),
  });
  const seen = [];
  replica.subscribe((value) => value === 2 && transport.publish("k", env(3, 3)));
  replica.subscribe((value) => seen.push(value));
  transport.publish("k", env(2, 2));
  assert.deepEqual([replica.peek(), replica.meta().sequence, seen], [3, 3, [3]]);
});

test("unknown policies are refused", () => {
  for (const option of ["gapPolicy", "refetchPolicy"]) {
    const transport = new para.InProcessTransport();
    const given = { key: "k", schema: para.PASSTHROUGH, transport, [option]: "guess" };
    assert.throws(() => para.createClientReplica(given), TypeError);
    assert.equal(transport.keyCount(), 0);
  }
});
