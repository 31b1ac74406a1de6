/**
 * A room in memory, random work, and a network that loses, repeats and reorders: what the tests of
 * the scene store share.
 */

import { Graph, GraphStore, applyMessages, isMeta, validateMessage } from "../../edge/web/vuer.js";

/** Numbers in [0, 1) of a seed (mulberry32). */
export function randomOf(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export const pick = (random, list) => list[Math.floor(random() * list.length)];

/** What the server does with messages: one number each, duplicates answered, floors moved. */
export class Room {
  epoch = "E1";
  head = 0;
  floor = 0;
  floorAt = 0;
  lamport = 0;
  base = new Graph();
  journal = [];
  seen = new Map();

  /** `{ack}` or `{error}` for the sender, and the sequenced message for the others. */
  take(message) {
    validateMessage(message);
    const known = this.seen.get(message.id);
    if (known !== undefined) {
      return { ack: { msgId: message.id, serverSeq: known, dup: true } };
    }
    if (isMeta(message.ops[0])) {
      const target = this.journal.find(({ id }) => id === message.ops[0].targetMsgId);
      const error = target === undefined ? "undo_expired" : undefined;
      if (error) return { error: { msgId: message.id, error, message: error, retryable: false } };
    }
    const sequenced = { ...message, serverSeq: ++this.head };
    this.lamport = Math.max(this.lamport, message.lamportTime);
    this.journal.push(sequenced);
    this.seen.set(message.id, this.head);
    return { ack: { msgId: message.id, serverSeq: this.head }, broadcast: sequenced };
  }

  /** Keep `keep` messages; what goes is folded with the undos of now. */
  compact(keep) {
    const cut = Math.max(this.journal.length - keep, 0);
    if (cut === 0) return;
    this.base = this.#fold(cut);
    this.journal.splice(0, cut);
    this.floor += cut;
    this.floorAt = this.head;
  }

  #fold(count) {
    const metas = this.journal.filter(({ ops }) => isMeta(ops[0]));
    return applyMessages(this.base, [...this.journal.slice(0, count), ...metas]);
  }

  graph() {
    return this.#fold(this.journal.length);
  }

  state(since = -1, epoch = "") {
    const resume = epoch === this.epoch && this.floor <= since && since <= this.head;
    const { floor, floorAt, head, lamport, base } = this;
    const frame = {
      mtype: "state", epoch: this.epoch, headSeq: head, floorSeq: floor, floorAt, durableSeq: head,
      lamportTime: lamport, resume, more: false, members: [],
    };
    frame.journal = this.journal.filter(({ serverSeq }) => !resume || serverSeq > since);
    if (!resume) {
      const graph = JSON.parse(JSON.stringify(base));
      frame.snapshot = { graph, journalIndex: floor, vectorClock: {}, lamportTime: lamport };
    }
    return JSON.parse(JSON.stringify(frame));
  }
}

const KEYS = ["root", "a", "b", "c"];
const PATHS = ["x", "v", "o", "l", "t", "s", "col", "on"];
const number = (random) => pick(random, [0, 1, -2, 3, 0.5, 7, 0.1]);
const triple = (random) => [number(random), number(random), number(random)];
const small = (random) => {
  const [k, m] = [pick(random, ["k", "m"]), pick(random, ["k", "d"])];
  return pick(random, [{ [k]: number(random) }, { [m]: { [k]: number(random) } }, {}]);
};
const colour = (random) => pick(random, ["#ff0000", "#00ff80", "#123456"]);

const MAKERS = [
  (r) => ({ otype: "number.set", path: "x", value: number(r) }),
  (r) => ({ otype: pick(r, ["number.add", "number.multiply", "number.min", "number.max"]), path: "x", value: number(r) }),
  (r) => ({ otype: pick(r, ["vector3.set", "vector3.add", "vector3.multiply", "euler.add"]), path: "v", value: triple(r) }),
  (r) => ({ otype: "vector3.applyQuaternion", path: "v", value: [0, 0.6, 0, 0.8] }),
  (r) => ({ otype: pick(r, ["object.set", "object.merge"]), path: "o", value: small(r) }),
  (r) => ({ otype: "object.merge", path: ".", value: { ...small(r), name: pick(r, ["N", "M"]) } }),
  (r) => ({ otype: pick(r, ["array.push", "array.remove"]), path: "l", value: number(r) }),
  (r) => ({ otype: pick(r, ["array.union", "array.set"]), path: "l", value: triple(r) }),
  (r) => ({ otype: pick(r, ["string.set", "string.concat"]), path: "s", value: pick(r, ["", "é", "👍b"]), separator: "-" }),
  (r) => ({ otype: pick(r, ["color.set", "color.blend"]), path: "col", value: colour(r) }),
  (r) => ({ otype: pick(r, ["boolean.set", "boolean.or", "boolean.and"]), path: "on", value: r() < 0.5 }),
  (r) => ({ otype: "string.set", path: pick(r, ["name", "tag", "x"]), value: pick(r, ["p", "q"]) }),
  (r, key) => ({ otype: "node.insert", key, path: "-", parent: pick(r, KEYS), value: { key: `u${key}`, tag: "Mesh", x: number(r), t: "ab" } }),
  (r, key) => ({ otype: "node.insert", key: pick(r, KEYS), path: "children", value: { key, name: "n", children: [pick(r, KEYS)] } }),
  (r) => ({ otype: "node.remove", path: "-" }),
  (r, key) => ({ otype: "node.move", value: { nodeKey: key, newParent: pick(r, KEYS) } }),
  (r) => ({ otype: pick(r, ["node.upsert", "node.inset"]), path: "-", value: { x: number(r), o: small(r) } }),
  (r) => ({ otype: pick(r, ["array.push", "array.remove"]), path: "children", value: pick(r, KEYS) }),
  (r) => ({ otype: "array.set", path: "children", value: [pick(r, KEYS), "b"] }),
];

const TEXT_MAKERS = [
  (r, length) => ({ otype: "text.insert", position: Math.floor(r() * (length + 1)), value: pick(r, ["a", "xyz", "👍é"]) }),
  (r, length) => ({ otype: "text.delete", position: Math.floor(r() * (length + 1)), length: 2 }),
  (r, length) => ({ otype: "text.replace", position: Math.floor(r() * (length + 1)), length: 1, value: "R" }),
  () => ({ otype: "text.init", value: "init" }),
];

/** Some operation on whatever there is, as an application would make it. */
export function randomOp(random, store) {
  const key = pick(random, KEYS);
  if (random() < 0.2) {
    const length = store.graph.text(key, "t")?.toString().length ?? 0;
    return { key, path: "t", ...pick(random, TEXT_MAKERS)(random, length) };
  }
  return { key, ...pick(random, MAKERS)(random, key) };
}

/** A client whose frames each may be lost, repeated or late. */
export class Peer {
  outbox = [];
  inbox = [];
  online = true;

  constructor(name, room, random) {
    let made = 0;
    this.room = room;
    this.random = random;
    this.store = new GraphStore(name, {
      now: () => 1000 + made,
      newId: () => `${name}/${++made}`,
      onSend: (message) => this.online && this.outbox.push(message),
    });
    this.join();
  }

  join() {
    const { epoch, confirmedSeq } = this.store;
    this.online = true;
    this.inbox = [];
    this.store.load(this.room.state(confirmedSeq, epoch));
    this.outbox = [...this.store.pending];
  }

  leave() {
    this.online = false;
    this.inbox = [];
    this.outbox = [];
  }

  work() {
    const { random, store } = this;
    const dice = random();
    if (dice < 0.1) store.undo();
    else if (dice < 0.15) store.redo();
    else if (dice < 0.2) store.cancel();
    else {
      for (let i = Math.floor(random() * 3); i >= 0; i--) store.edit(randomOp(random, store));
      if (random() < 0.8) store.commit();
    }
  }

  /** Give one of the waiting frames to the store. */
  hear(faulty) {
    if (this.inbox.length === 0) return;
    const at = faulty ? Math.floor(this.random() * Math.min(this.inbox.length, 3)) : 0;
    const [frame] = this.inbox.splice(at, 1);
    if (faulty && this.random() < 0.1) return; // lost
    if (faulty && this.random() < 0.1) this.inbox.push(frame);
    this.take(frame);
  }

  take({ ack, error, broadcast }) {
    let missing = null;
    if (ack !== undefined) missing = this.store.ack(ack.msgId, ack.serverSeq);
    else if (error !== undefined) this.store.reject(error.msgId);
    else missing = this.store.receive(broadcast);
    if (missing !== null) this.store.load(this.room.state(missing, this.store.epoch));
  }
}

/** Let peers and room go on until everyone has everything. */
export function settleAll(room, peers) {
  for (const peer of peers) peer.store.commit();
  for (let round = 0; round < 5; round++) {
    for (const peer of peers) peer.join();
    for (const peer of peers) deliver(room, peer, peers, Infinity);
  }
  for (const peer of peers) while (peer.inbox.length > 0) peer.hear(false);
  for (const peer of peers) peer.join();
}

/** The room takes up to `count` of a peer's messages. */
export function deliver(room, peer, peers, count) {
  for (; count > 0 && peer.outbox.length > 0; count--) {
    const { broadcast, ...answer } = room.take(peer.outbox.shift());
    peer.inbox.push(answer);
    if (broadcast === undefined) continue;
    for (const other of peers) if (other !== peer && other.online) other.inbox.push({ broadcast });
  }
}
