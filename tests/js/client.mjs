/** SyncClient and followScope against a scripted server: no network, no real timers. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { EntityStore, SyncClient, followScope, reconnectDelayMs } from "../../edge/web/holdfast.js";
import { Timers, envelope, fakeWebSocket, settle, subscribed } from "./support.mjs";

const S = "run:r1";

function start(options = {}) {
  const timers = new Timers();
  const { FakeWebSocket, sockets } = fakeWebSocket();
  const reports = [];
  const client = new SyncClient("http://host:8080", {
    WebSocket: FakeWebSocket,
    setTimeout: timers.setTimeout,
    clearTimeout: timers.clearTimeout,
    random: () => 1,
    report: (error) => reports.push(error),
    ...options,
  });
  return { client, timers, sockets, reports };
}

/** A client that reads S from `since`, live at `head`, with the frames so far taken. */
function reading(since = 0, head = since, options = {}) {
  const world = start();
  const got = [];
  const caught = [];
  const unsubscribe = world.client.subscribe(S, {
    since,
    onEnvelope: (one) => void got.push(one.seq),
    onCaughtUp: (scope, seq) => caught.push(seq),
    ...options,
  });
  const [socket] = world.sockets;
  socket.open();
  const frames = socket.take();
  socket.deliver(subscribed(S, since, head));
  for (let seq = since + 1; seq <= head; seq++) {
    socket.deliver({ type: "event", envelope: envelope(S, seq) });
  }
  socket.deliver({ type: "caughtUp", scope: S, seq: head });
  return { ...world, got, caught, unsubscribe, socket, frames };
}

test("the address is found from a root, a base path or a socket", () => {
  for (const [url, expected] of [
    ["http://h:1", "ws://h:1/api/sync/socket"],
    ["https://h/", "wss://h/api/sync/socket"],
    ["https://h/x/sync/", "wss://h/x/sync/socket"],
    ["ws://h/api/sync/socket", "ws://h/api/sync/socket"],
  ]) {
    const { FakeWebSocket, sockets } = fakeWebSocket();
    const client = new SyncClient(url, { WebSocket: FakeWebSocket });
    client.subscribe(S);
    assert.equal(sockets[0].url, expected);
    client.close();
  }
});

test("37: an envelope ahead of the cursor asks for a replay and is not handed on", () => {
  const { socket, got } = reading(5);
  socket.deliver({ type: "event", envelope: envelope(S, 7) });
  assert.deepEqual(got, []);
  assert.deepEqual(socket.take(), [{ type: "replay", scope: S, since: 5 }]);
  socket.deliver({ type: "event", envelope: envelope(S, 8) });
  assert.deepEqual(socket.take(), [], "one replay at a time");
  socket.deliver(
    subscribed(S, 5, 8),
    { type: "events", scope: S, envelopes: [6, 7, 8].map((seq) => envelope(S, seq)) },
    { type: "caughtUp", scope: S, seq: 8 },
  );
  assert.deepEqual(got, [6, 7, 8]);
});

test("a gap that no replay fills ends in a snapshot", () => {
  const asked = [];
  const { socket } = reading(5, 5, {
    onSnapshotRequired: (scope, info) => void asked.push(info.reason),
  });
  for (let i = 0; i < 3; i++) {
    socket.deliver({ type: "event", envelope: envelope(S, 9) });
    assert.equal(socket.take().length, 1);
    socket.deliver(subscribed(S, 5, 9));
  }
  socket.deliver({ type: "event", envelope: envelope(S, 9) });
  assert.deepEqual(socket.take(), []);
  assert.deepEqual(asked, ["gap"]);
});

test("a consumer that answers gap gets everything after its own cursor again", () => {
  let own = 3;
  const seen = [];
  const { socket } = reading(5, 5, {
    cursor: () => own,
    onEnvelope({ seq }) {
      seen.push(seq);
      if (seq > own + 1) return "gap";
      own = seq;
      return "applied";
    },
  });
  socket.deliver({ type: "event", envelope: envelope(S, 6) });
  assert.deepEqual(socket.take(), [{ type: "replay", scope: S, since: 3 }]);
  socket.deliver(subscribed(S, 3, 6));
  for (const seq of [4, 5, 6]) socket.deliver({ type: "event", envelope: envelope(S, seq) });
  assert.deepEqual(seen, [6, 4, 5, 6]);
});

test("caughtUp beyond the cursor is a gap as well", () => {
  const { socket, caught } = reading(5);
  assert.deepEqual(caught, [5]);
  socket.deliver({ type: "caughtUp", scope: S, seq: 6 });
  assert.deepEqual(socket.take(), [{ type: "replay", scope: S, since: 5 }]);
});

test("two missed pongs give the socket up, any frame counts as a pong", async () => {
  const { client, socket, sockets, timers } = reading(5);
  await timers.advance(25_000);
  assert.deepEqual(socket.take(true), [{ type: "ping" }]);
  socket.deliver({ type: "event", envelope: envelope(S, 6) });
  await timers.advance(50_000);
  assert.equal(socket.take(true).length, 2);
  assert.equal(client.connected, true);
  await timers.advance(25_000);
  assert.equal(socket.closed, true);
  assert.equal(client.state.name, "waiting");
  assert.equal(client.state.code, "silence");
  socket.deliver({ type: "event", envelope: envelope(S, 7) });
  await timers.advance(500);
  assert.equal(sockets.length, 2);
  sockets[1].open();
  assert.equal(sockets[1].take()[0].since, 6, "what a given-up socket says is not heard");
});

test("after a loss every scope is subscribed again at its cursor and epoch", async () => {
  const { client, socket, sockets, timers, got, frames } = reading(5, 7);
  assert.deepEqual(frames, [{ type: "sub", scope: S, batch: true, since: 5 }]);
  client.subscribe("run:r2", { since: 1, epoch: "Z", onEnvelope() {} });
  socket.take();
  const states = [];
  client.onState(({ name }) => states.push(name));
  socket.drop(1001, "going away");
  assert.deepEqual(timers.pending, [500]);
  await timers.advance(500);
  sockets[1].open();
  assert.deepEqual(states, ["waiting", "connecting", "open"]);
  assert.deepEqual(sockets[1].take(), [
    { type: "sub", scope: S, batch: true, since: 7, epoch: "E1" },
    { type: "sub", scope: "run:r2", batch: true, since: 1, epoch: "Z" },
  ]);
  sockets[1].deliver(subscribed(S, 7, 8), { type: "event", envelope: envelope(S, 8) });
  assert.deepEqual(got, [6, 7, 8]);
});

test("the delay doubles up to 30 s, spread by half, and starts anew once connected", async () => {
  const { sockets, timers, client, socket } = reading(0);
  socket.drop();
  const delays = [];
  for (let i = 0; i < 9; i++) {
    delays.push(client.state.delayMs);
    await timers.advance(client.state.delayMs);
    sockets.at(-1).drop();
  }
  assert.deepEqual(delays, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
  assert.equal(reconnectDelayMs(0, 0), 250);
  client.retryNow();
  sockets.at(-1).open();
  sockets.at(-1).deliver(subscribed(S, 0, 0));
  sockets.at(-1).drop();
  assert.equal(client.state.delayMs, 500);
});

test("a socket that does not open in time is given up", async () => {
  const { client, sockets, timers } = start();
  client.subscribe(S, { since: 0 });
  await timers.advance(15_000);
  assert.equal(sockets[0].closed, true);
  assert.equal(client.state.code, "timeout");
});

test("an unanswered publish is sent again after a reconnect, under the same event id", async () => {
  const { client, sockets, timers } = start();
  const answer = client.publish(S, [{ entities: [] }, { eventId: "mine", entities: [] }]);
  sockets[0].open();
  const [first] = sockets[0].take();
  assert.equal(first.type, "publish");
  assert.equal(first.envelopes.length, 2);
  assert.match(first.envelopes[0].eventId, /^[0-9a-f]{32}$/);
  assert.equal(first.envelopes[0].kind, "patch");
  sockets[0].drop();
  await timers.advance(500);
  sockets[1].open();
  const [again] = sockets[1].take();
  assert.deepEqual(again.envelopes, first.envelopes);
  const refusal = {
    code: "patch_failed",
    message: "no",
    entity: "a:1",
    index: 0,
    reason: "bad_field",
  };
  sockets[1].deliver({
    type: "published",
    id: again.id,
    scope: S,
    epoch: "E1",
    results: [{ seq: 4, duplicate: true }, refusal],
  });
  const [{ eventId, ...stored }, refused] = await answer;
  assert.equal(eventId, first.envelopes[0].eventId);
  assert.deepEqual(stored, { seq: 4, duplicate: true, epoch: "E1" });
  assert.deepEqual(refused, { eventId: "mine", ...refusal });
});

test("busy is repeated after the server's hint, and not for ever", async () => {
  const { client, sockets, timers } = start();
  const answer = client.publish(S, { eventId: "a", entities: [] });
  sockets[0].open();
  let frames = sockets[0].take();
  for (let attempt = 1; attempt <= 10; attempt++) {
    assert.equal(frames.length, 1, `attempt ${attempt}`);
    const results = [{ code: "busy", message: "full", retryAfterMs: 700 }];
    sockets[0].deliver({ type: "published", id: frames[0].id, scope: S, epoch: "E1", results });
    await timers.advance(699);
    if (attempt === 1) assert.deepEqual(sockets[0].take(), []);
    await timers.advance(6000);
    frames = sockets[0].take();
  }
  assert.deepEqual(frames, []);
  assert.equal((await answer)[0].code, "busy");
});

test("a publish may ask for the bucket, and asks again while the bucket is in trouble", async () => {
  const { client, sockets, timers } = start();
  const answer = client.publish(S, { eventId: "a" }, { level: "replicated", durable: true });
  sockets[0].open();
  const [first] = sockets[0].take();
  assert.deepEqual([first.level, first.durable], ["replicated", true]);
  const stalled = { code: "try_later", message: "the bucket", retryAfterMs: 1000 };
  sockets[0].deliver({ type: "published", id: first.id, scope: S, results: [stalled] });
  await timers.advance(1000);
  const [again] = sockets[0].take();
  assert.deepEqual({ ...again, id: 0 }, { ...first, id: 0 });
  const results = [{ seq: 1 }];
  const durable = { epoch: "E1", durableSeq: 1 };
  sockets[0].deliver({ type: "published", id: again.id, scope: S, results, ...durable });
  assert.deepEqual(await answer, [{ eventId: "a", seq: 1, ...durable }]);
  client.publish(S, { eventId: "b" });
  const [plain] = sockets[0].take();
  assert.deepEqual([plain.level, plain.durable], [undefined, undefined]);
});

test("many envelopes become frames within the limits; one too large is refused here", async () => {
  const { client, sockets } = start();
  const big = { entities: [{ key: "a:1", value: { t: "é".repeat(60_000) } }] };
  const huge = { eventId: "huge", entities: [{ key: "a:1", value: { t: "é".repeat(131_072) } }] };
  const small = Array.from({ length: 1000 }, () => ({ entities: [] }));
  const answer = client.publish(S, [big, big, big, huge, ...small]);
  sockets[0].open();
  const frames = sockets[0].take();
  assert.deepEqual(
    frames.map((frame) => frame.envelopes.length),
    [2, 512, 489],
  );
  let seq = 0;
  for (const { id, envelopes } of frames) {
    const results = envelopes.map(() => ({ seq: ++seq }));
    sockets[0].deliver({ type: "published", id, scope: S, epoch: "E1", results });
  }
  const results = await answer;
  assert.equal(results.length, 1004);
  assert.equal(results[3].code, "too_large");
  assert.deepEqual([results[0].seq, results[2].seq, results[1003].seq], [1, 3, 1003]);
});

test("an error that names a publish refuses it; any other one starts the connection anew", async () => {
  const { client, socket } = reading(0);
  const answer = client.publish(S, { eventId: "a" });
  const [{ id }] = socket.take();
  socket.deliver({ type: "error", re: "publish", id, code: "bad_frame", message: "why" });
  assert.deepEqual(await answer, [{ eventId: "a", code: "bad_frame", message: "why" }]);
  assert.equal(client.connected, true);
  socket.deliver({ type: "error", re: "replay", code: "not_subscribed", message: "?" });
  assert.equal(client.state.code, "not_subscribed");
});

test("subscriptions are counted: one sub, one unsub; each consumer has its own cursor", () => {
  const { client, socket, unsubscribe, got } = reading(5, 7);
  const late = [];
  const second = client.subscribe(S, { since: 7, onEnvelope: ({ seq }) => void late.push(seq) });
  assert.deepEqual(socket.take(), [], "the connection is there already");
  const early = [];
  const third = client.subscribe(S, { since: 4, onEnvelope: ({ seq }) => void early.push(seq) });
  assert.deepEqual(socket.take(), [{ type: "sub", scope: S, batch: true, since: 4 }]);
  socket.deliver(subscribed(S, 4, 8), {
    type: "events",
    scope: S,
    envelopes: [5, 6, 7, 8].map((seq) => envelope(S, seq)),
  });
  assert.deepEqual([got, late, early], [[6, 7, 8], [8], [5, 6, 7, 8]]);
  unsubscribe();
  unsubscribe();
  second();
  assert.deepEqual(socket.take(), []);
  third();
  assert.deepEqual(socket.take(), [{ type: "unsub", scope: S }]);
  socket.deliver({ type: "event", envelope: envelope(S, 9) });
  assert.deepEqual(early, [5, 6, 7, 8]);
});

test("a consumer that a pending sub brings along sends none of its own", () => {
  const { client, sockets } = start();
  const got = [];
  client.subscribe(S, { since: 4 });
  sockets[0].open();
  client.subscribe(S, { since: 6, onEnvelope: ({ seq }) => void got.push(seq) });
  client.subscribe(S, { onEnvelope: ({ seq }) => void got.push(-seq) });
  assert.equal(sockets[0].take().length, 1);
  client.subscribe(S, { since: 3 });
  assert.deepEqual(
    sockets[0].take().map(({ since }) => since),
    [3],
  );
  sockets[0].deliver(subscribed(S, 3, 7));
  for (const seq of [4, 5, 6, 7, 8])
    sockets[0].deliver({ type: "event", envelope: envelope(S, seq) });
  assert.deepEqual(got, [7, 8, -8]);
});

test("without since a consumer reads from now on", () => {
  const { client, sockets } = start();
  const got = [];
  client.subscribe(S, { onEnvelope: ({ seq }) => void got.push(seq) });
  sockets[0].open();
  assert.deepEqual(sockets[0].take(), [{ type: "sub", scope: S, batch: true }]);
  sockets[0].deliver(subscribed(S, 40, 40), { type: "event", envelope: envelope(S, 41) });
  assert.deepEqual(got, [41]);
});

test("snapshot_required concerns those whose cursor is bad, and the answer leads on", async () => {
  const infos = [];
  const { client, socket } = reading(20, 20, { epoch: "E1" });
  client.subscribe(S, {
    since: 3,
    onSnapshotRequired(scope, info) {
      infos.push([scope, info.reason]);
      return Promise.resolve({ seq: 20, epoch: "E1" });
    },
  });
  socket.take();
  socket.deliver({
    type: "scopeError",
    scope: S,
    code: "snapshot_required",
    reason: "below_floor",
    message: "",
    epoch: "E1",
    head: 20,
    floor: 10,
  });
  const resumed = { type: "sub", scope: S, batch: true, since: 20, epoch: "E1" };
  assert.deepEqual(socket.take(), [resumed], "the others go on at once");
  socket.deliver(subscribed(S, 20, 20, { floor: 10 }), { type: "caughtUp", scope: S, seq: 20 });
  await settle();
  assert.deepEqual(infos, [[S, "below_floor"]]);
  assert.deepEqual(socket.take(), [], "the view was as new as the connection");
});

test("another epoch in `subscribed` requires a snapshot too", async () => {
  const infos = [];
  const { socket, client } = reading(5, 5, {
    onSnapshotRequired: (scope, info) => void infos.push(info.reason),
  });
  assert.equal(client.connected, true);
  socket.deliver(subscribed(S, 5, 9, { epoch: "E2" }));
  await settle();
  assert.deepEqual(infos, ["epoch_changed"]);
});

test("a refusal ends the subscription, a passing one is tried again", async () => {
  const errors = [];
  const { socket, timers, client } = reading(5, 5, { onError: (error) => errors.push(error.code) });
  socket.deliver({ type: "scopeError", scope: S, code: "moved", message: "", retryAfterMs: 2500 });
  await timers.advance(2499);
  assert.deepEqual(socket.take(), []);
  await timers.advance(1);
  assert.deepEqual(socket.take(), [{ type: "sub", scope: S, batch: true, since: 5, epoch: "E1" }]);
  socket.deliver({ type: "scopeError", scope: S, code: "forbidden", message: "no" });
  assert.deepEqual(errors, ["forbidden"]);
  socket.drop();
  assert.equal(client.state.name, "idle", "nothing is left to connect for");
});

test("positions are told: where the server reads, and what is durable", () => {
  const told = [];
  const { socket, frames } = reading(3, 5, {
    durable: true,
    onSubscribed: (scope, position) => told.push(position),
    onDurable: (scope, position) => told.push(position),
  });
  assert.equal(frames[0].durable, true);
  socket.deliver({ type: "caughtUp", scope: S, seq: 5, durableSeq: 4 });
  socket.deliver({ type: "durable", scope: S, epoch: "E1", seq: 5 });
  assert.deepEqual(told, [
    { epoch: "E1", since: 3, head: 5, floor: 0 },
    { epoch: "E1", seq: 4 },
    { epoch: "E1", seq: 5 },
  ]);
});

test("a consumer that throws is reported and the stream goes on", () => {
  const got = [];
  const { socket, reports } = reading(0, 0, {
    onEnvelope({ seq }) {
      got.push(seq);
      throw new Error("mine");
    },
  });
  for (const seq of [1, 2]) socket.deliver({ type: "event", envelope: envelope(S, seq) });
  assert.deepEqual(got, [1, 2]);
  assert.equal(reports.length, 2);
});

test("what is no frame drops the connection", () => {
  const { client, socket } = reading(0);
  socket.onmessage({ data: "{" });
  assert.equal(client.state.code, "bad_frame");
});

test("the token goes as first frame, as query, or from a function at every connection", async () => {
  const framed = start({ token: "t&1" });
  framed.client.subscribe(S, { since: 0 });
  framed.sockets[0].open();
  assert.deepEqual(framed.sockets[0].take()[0], { type: "auth", token: "t&1" });

  const query = start({ token: "t&1", tokenIn: "query" });
  query.client.subscribe(S, { since: 0 });
  assert.equal(query.sockets[0].url, "ws://host:8080/api/sync/socket?token=t%261");
  query.sockets[0].open();
  assert.equal(query.sockets[0].take()[0].type, "sub");

  let count = 0;
  const asked = start({ token: async () => `t${++count}` });
  asked.client.subscribe(S, { since: 0 });
  await settle();
  asked.sockets[0].open();
  assert.equal(asked.sockets[0].take()[0].token, "t1");
  asked.sockets[0].drop(4401);
  await asked.timers.advance(500);
  asked.sockets[1].open();
  assert.equal(asked.sockets[1].take()[0].token, "t2");
});

test("control frames keep below the server's rate", async () => {
  const { client, sockets, timers } = start();
  for (let i = 0; i < 500; i++) client.subscribe(`run:${i}`, { since: 0 });
  sockets[0].open();
  assert.equal(sockets[0].take().length, 300);
  await timers.advance(1000);
  assert.equal(sockets[0].take().length, 150);
  await timers.advance(1000);
  assert.equal(sockets[0].take().length, 50);
});

test("close answers what is open and is final", async () => {
  const { client, socket, timers } = reading(0);
  const answer = client.publish(S, { eventId: "a" });
  client.close();
  client.close();
  assert.deepEqual(await answer, [
    { eventId: "a", code: "closed", message: "the client was closed" },
  ]);
  assert.equal(socket.closed, true);
  assert.deepEqual(timers.pending, []);
  assert.equal((await client.publish(S, { eventId: "b" }))[0].code, "closed");
  assert.throws(() => client.subscribe(S), { code: "closed" });
});

/** A `fetch` that answers from a list of [status, body] and keeps what it was asked. */
function fakeFetch(...answers) {
  const asked = [];
  const fetch = async (url, { headers }) => {
    asked.push({ url, headers });
    const [status, body] = answers.shift();
    return { ok: status < 400, status, json: async () => body };
  };
  return { fetch, asked };
}

const view = (seq, entities, extra = {}) => ({
  scope: S,
  epoch: "E1",
  seq,
  entities,
  next: null,
  ...extra,
});
const entity = (key, text) => ({ key, value: { text }, version: "v" });

test("a view is followed over its pages, and from the start where it expired", async () => {
  const { fetch, asked } = fakeFetch(
    [200, view(4, [entity("a:1", "x")], { next: "n/1" })],
    [410, { code: "view_expired", detail: "too late" }],
    [200, view(5, [entity("a:1", "y")], { next: "n/2" })],
    [200, view(5, [entity("b:1", "z")])],
  );
  const { client } = start({ fetch, token: "tok" });
  const found = await client.fetchScopeView("run:é");
  assert.deepEqual([found.seq, found.entities.map(({ key }) => key)], [5, ["a:1", "b:1"]]);
  const params = Buffer.from('{"scope":"run:é"}').toString("base64url");
  assert.equal(asked[0].url, `http://host:8080/api/sync/views/scope?p=${params}`);
  assert.equal(asked[3].url, `${asked[0].url}&page=n%2F2`);
  assert.equal(asked[0].headers.authorization, "Bearer tok");
});

test("a refused view is an error with the server's code", async () => {
  const { fetch } = fakeFetch([403, { code: "forbidden", detail: "not yours", retryable: false }]);
  const { client } = start({ fetch });
  await assert.rejects(client.fetchScopeView(S), {
    code: "forbidden",
    status: 403,
    retryable: false,
  });
});

test("followScope: view, then the stream from its seq", async () => {
  const { fetch } = fakeFetch([200, view(4, [entity("log:1", "ab")])]);
  const { client, sockets } = start({ fetch });
  const store = new EntityStore();
  const follow = followScope(client, S, store);
  sockets[0].open();
  await settle();
  assert.deepEqual(sockets[0].take(), [
    { type: "sub", scope: S, batch: true, since: 4, epoch: "E1" },
  ]);
  sockets[0].deliver(subscribed(S, 4, 5), { type: "event", envelope: envelope(S, 5, "c") });
  sockets[0].deliver({ type: "caughtUp", scope: S, seq: 5 });
  await follow.ready;
  assert.deepEqual(store.get(S, "log:1"), { text: "abc" });
  follow.stop();
  assert.deepEqual(sockets[0].take(), [{ type: "unsub", scope: S }]);
});

test("followScope: a scope nobody has written to is followed from nothing", async () => {
  const { fetch } = fakeFetch([200, view(0, [], { epoch: "" })]);
  const { client, sockets, timers } = start({ fetch });
  const store = new EntityStore();
  followScope(client, S, store);
  sockets[0].open();
  await settle();
  assert.deepEqual(sockets[0].take(), [{ type: "sub", scope: S, batch: true, since: 0 }]);
  sockets[0].deliver(subscribed(S, 0, 0, { epoch: "" }), {
    type: "event",
    envelope: envelope(S, 1),
  });
  assert.equal(store.cursors.scopeLastSeq(S), 1);
  sockets[0].drop();
  await timers.advance(500);
  sockets[1].open();
  const again = { type: "sub", scope: S, batch: true, since: 1 };
  assert.deepEqual(sockets[1].take(), [again]);
  sockets[1].deliver(subscribed(S, 1, 1, { epoch: "" }), {
    type: "durable",
    scope: S,
    epoch: "E7",
    seq: 1,
  });
  sockets[1].drop();
  await timers.advance(500);
  sockets[2].open();
  assert.deepEqual(sockets[2].take(), [{ ...again, epoch: "E7" }], "once told, it is known");
});

test("followScope: a store with a cursor goes on from it", () => {
  const { client, sockets } = start();
  const store = new EntityStore();
  store.seed(S, [], { seq: 8, epoch: "E1" });
  followScope(client, S, store);
  sockets[0].open();
  assert.deepEqual(sockets[0].take(), [
    { type: "sub", scope: S, batch: true, since: 8, epoch: "E1" },
  ]);
});

test("38: followScope fetches the view again for a broken entity while the stream goes on", async () => {
  const { fetch, asked } = fakeFetch(
    [200, view(4, [{ key: "log:1", value: { text: 5 } }])],
    [200, view(6, [entity("log:1", "good")])],
  );
  const { client, sockets, timers } = start({ fetch });
  const store = new EntityStore();
  followScope(client, S, store);
  sockets[0].open();
  await settle();
  sockets[0].take();
  sockets[0].deliver(subscribed(S, 4, 4), { type: "caughtUp", scope: S, seq: 4 });
  for (const seq of [5, 6, 7]) sockets[0].deliver({ type: "event", envelope: envelope(S, seq) });
  assert.equal(store.cursors.scopeLastSeq(S), 7);
  await timers.advance(500);
  assert.equal(asked.length, 2, "one at a time");
  assert.deepEqual(sockets[0].take(), [
    { type: "sub", scope: S, batch: true, since: 6, epoch: "E1" },
  ]);
  sockets[0].deliver(subscribed(S, 6, 7), { type: "event", envelope: envelope(S, 7, "!") });
  assert.deepEqual(store.get(S, "log:1"), { text: "good!" });
  assert.equal(store.broken(S).size, 0);
});

test("followScope: a view that fails is fetched again ever later, a refused one ends it", async () => {
  const { fetch, asked } = fakeFetch([503, {}], [503, {}], [403, { code: "forbidden" }]);
  const { client, timers, reports } = start({ fetch });
  const follow = followScope(client, S, new EntityStore());
  await settle();
  assert.equal(reports[0].code, "http_503");
  await timers.advance(500);
  assert.equal(asked.length, 2);
  await timers.advance(999);
  assert.equal(asked.length, 2);
  await timers.advance(1);
  assert.equal(asked.length, 3);
  await assert.rejects(follow.ready, { code: "forbidden" });
});
