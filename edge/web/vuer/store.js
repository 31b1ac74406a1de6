/**
 * What one client holds of a room: the confirmed scene, and its own work on top of it.
 *
 * The state of a room at `serverSeq` n is the fold of its messages 1 to n in that order, without
 * those that are undone at n. The store holds it as `base` (the scene at the server's floor) and
 * `tail` (the messages after it), because an undo needs the fold again. Own work is an overlay:
 *
 *   graph = fold(confirmed, pending, edits)
 *
 * It is never merged into what is confirmed, so all stores with the same `confirmedSeq` hold the
 * same confirmed scene, however messages came to them. Nothing here does I/O or reads a clock but
 * by the functions it is given.
 */

import { newEventId } from "../holdfast.js";
import { mergeEdit } from "./buffer.js";
import { RtcError } from "./errors.js";
import { Graph, applyOps } from "./graph.js";
import { Text, lengthOf } from "./text.js";
import { eulerToQuaternion, isEuler } from "./transforms.js";
import { isMeta, isSession, validateMessage, validateOp } from "./validate.js";

const BUFFERED_MAX = 4096; // messages ahead of a gap; further ones are asked for again
const CLOCK_SESSIONS_MAX = 32; // a room may have seen thousands; a message has 64 KiB
const UNDO_MAX = 1000;

export class GraphStore {
  #sessionId;
  #options;
  #base = new Graph();
  #tail = [];
  #undone = new Set(); // ids that are undone at confirmedSeq
  #confirmed = new Graph(this.#base);
  #view = new Graph(this.#confirmed);
  #ahead = new Map(); // serverSeq to message, after a gap
  #own = []; // acknowledged, but not yet known to be durable
  #undoStack = [];
  #redoStack = [];
  #listeners = new Set();
  #counter = 0;
  #characters = 0; // identities of text given out
  #heard = new Map(); // session to its counter, the newest last

  epoch = "";
  floorSeq = 0;
  confirmedSeq = 0;
  durableSeq = 0;
  lamport = 0;
  /** Own messages that have no `serverSeq` yet, in the order they were made. Not to be changed. */
  pending = [];
  /** Operations that are not committed yet. Not to be changed. */
  edits = [];

  /**
   * Options: `onSend(message)` for every own message; `now()` in milliseconds; `newId()`.
   * A session id is `[A-Za-z0-9._@-]{1,64}` and belongs to one store at a time.
   */
  constructor(sessionId, { onSend = () => {}, now = Date.now, newId = newEventId } = {}) {
    if (!isSession(sessionId)) {
      throw new RtcError("invalid_message", "a session id is 1 to 64 of A-Z a-z 0-9 . _ @ -");
    }
    this.#sessionId = sessionId;
    this.#options = { onSend, now, newId };
  }

  get sessionId() {
    return this.#sessionId;
  }

  /** What to show: the confirmed scene with own work on top. Valid until the next change. */
  get graph() {
    return this.#view;
  }

  /** The scene at `confirmedSeq`; the same in every store that is as far. */
  get confirmed() {
    return this.#confirmed;
  }

  get canUndo() {
    return this.edits.length > 0 || this.#undoStack.some((id) => this.#reachable(id));
  }

  get canRedo() {
    return this.edits.length === 0 && this.#redoStack.some((id) => this.#reachable(id));
  }

  /** Own messages that may still be lost: not acknowledged, or not yet durable. */
  getUnackedMessages() {
    return [...this.#own.map(({ message }) => message), ...this.pending];
  }

  /** Own counter and those of sessions heard of, for heartbeats. */
  get vectorClock() {
    return { ...Object.fromEntries(this.#heard), [this.#sessionId]: this.#counter };
  }

  /**
   * `listener({keys, all})` after every change: `keys` are the nodes that may look different (links
   * included), `all` says that any may. Returns a function that ends it.
   */
  subscribe(listener) {
    const entry = [listener];
    this.#listeners.add(entry);
    return () => this.#listeners.delete(entry);
  }

  // -- own work

  /** Take an operation into the edit buffer and show it. Throws RtcError where it is not valid. */
  edit(op) {
    this.editBatch([op]);
  }

  /** Several operations, all or none. */
  editBatch(ops) {
    const made = ops.map((op) => this.#complete(op));
    made.forEach((op) => validateOp(op));
    if (made.some(isMeta)) throw new RtcError("invalid_op", "undo and redo are no edits");
    if (made.length === 0) return;
    for (const op of made) this.edits = mergeEdit(this.edits, op);
    const keys = new Set();
    applyOps(this.#view, this.#envelope(made, ""), { keys });
    this.#tell(keys);
  }

  /** Make one message of the edit buffer and send it; null where there is nothing. */
  commit() {
    if (this.edits.length === 0) return null;
    const message = this.#envelope(this.edits);
    validateMessage(message);
    this.edits = [];
    this.#redoStack = [];
    this.#undoStack.push(message.id);
    if (this.#undoStack.length > UNDO_MAX) this.#undoStack.shift();
    this.#send(message);
    return message;
  }

  /** Drop the edit buffer; what others did meanwhile stays. */
  cancel() {
    if (this.edits.length === 0) return;
    this.edits = [];
    this.#rebuild(new Set());
  }

  /** Undo the newest own message that is not undone; an edit buffer is committed first. */
  undo() {
    this.commit();
    const id = this.#newest(this.#undoStack);
    if (id === undefined) return null;
    this.#redoStack.push(id);
    return this.#sendMeta("meta.undo", id);
  }

  /** Take back the last undo. */
  redo() {
    if (this.edits.length > 0) return null;
    const id = this.#newest(this.#redoStack);
    if (id === undefined) return null;
    this.#undoStack.push(id);
    return this.#sendMeta("meta.redo", id);
  }

  // -- what comes from the server

  /**
   * Take sequenced messages, in any order, again or not. Returns the seq to ask from where some are
   * missing, else null.
   */
  receive(...messages) {
    const keys = new Set();
    const before = [this.pending.length, this.confirmedSeq];
    let shown = true; // the view is what it would be, if only own messages came in their order
    let refold = false;
    for (const message of messages) {
      if (message.serverSeq <= this.confirmedSeq) this.#forget(message.id);
      else if (this.#ahead.size < BUFFERED_MAX) this.#ahead.set(message.serverSeq, message);
    }
    for (let next; (next = this.#ahead.get(this.confirmedSeq + 1)) !== undefined;) {
      this.#ahead.delete(next.serverSeq);
      if (next !== this.#expected(next)) shown = false;
      refold = this.#confirm(next, keys, refold) || refold;
    }
    if (refold) this.#refold();
    if (!shown || refold || this.pending.some((message) => isMeta(message.ops[0]))) {
      this.#rebuild(refold ? null : keys);
    } else if (before[0] !== this.pending.length || before[1] !== this.confirmedSeq) {
      this.#overlay(new Set());
      this.#tell(new Set());
    }
    return this.#ahead.size > 0 ? this.confirmedSeq : null;
  }

  /**
   * An own message was sequenced as `serverSeq`, as `message` where the server rewrote it. Returns
   * what `receive` does.
   */
  ack(id, serverSeq, message = undefined) {
    const pending = this.pending.find((each) => each.id === id);
    if (pending !== undefined && serverSeq > this.durableSeq) this.#keep(pending, serverSeq);
    if (serverSeq <= this.confirmedSeq) {
      // It may have come inside a snapshot: without this it would be sent again for ever.
      if (this.#forget(id)) this.#rebuild(new Set());
      return null;
    }
    const content = message ?? pending;
    if (content === undefined) return this.confirmedSeq;
    return this.receive({ ...content, serverSeq });
  }

  /** The server will never take a message: it is taken back from what is shown. */
  reject(id) {
    const message = this.pending.find((each) => each.id === id);
    if (message === undefined) return null;
    this.#forget(id);
    const lost = isMeta(message.ops[0]) ? message.ops[0].targetMsgId : id;
    this.#undoStack = this.#undoStack.filter((each) => each !== lost);
    this.#redoStack = this.#redoStack.filter((each) => each !== lost);
    this.#rebuild(null);
    return message;
  }

  /**
   * Take a `state` frame: go on with `journal` where it resumes, else begin again from `snapshot`.
   * After a change of epoch, own messages that are not known to be durable become pending again.
   * Returns what `receive` does.
   */
  load(frame) {
    const { epoch = "", floorSeq = 0, snapshot, journal = [], lamportTime = 0 } = frame;
    const again = this.epoch !== "" && epoch !== this.epoch;
    this.epoch = epoch;
    this.lamport = Math.max(this.lamport, lamportTime);
    if (!frame.resume) {
      if (again) {
        this.durableSeq = 0;
        const lost = this.#own.map(({ message }) => message);
        const waiting = new Set(this.pending.map(({ id }) => id));
        this.pending = [...lost.filter(({ id }) => !waiting.has(id)), ...this.pending];
        this.#own = [];
      }
      this.#base = Graph.fromJSON(snapshot.graph);
      this.#tail = [];
      this.#ahead.clear();
      this.floorSeq = this.confirmedSeq = snapshot.journalIndex ?? floorSeq;
      this.lamport = Math.max(this.lamport, snapshot.lamportTime ?? 0);
      for (const [session, n] of Object.entries(snapshot.vectorClock ?? {})) this.#hear(session, n);
      this.#refold();
    }
    const missing = this.receive(...journal);
    this.settle(frame);
    this.#rebuild(null);
    return missing;
  }

  /** Drop all that is known of the room, own acknowledged messages included: it was cleared. */
  clear() {
    this.#base = new Graph();
    this.#tail = [];
    this.#ahead.clear();
    this.#own = [];
    this.#undoStack = [];
    this.#redoStack = [];
    this.floorSeq = this.confirmedSeq = this.durableSeq = 0;
    this.#refold();
    this.#rebuild(null);
  }

  /** Take `durableSeq`, `floorSeq` and `floorAt` of any frame that tells them. */
  settle({ durableSeq, floorSeq, floorAt }) {
    if (durableSeq > this.durableSeq) {
      this.durableSeq = durableSeq;
      this.#own = this.#own.filter(({ serverSeq }) => serverSeq > durableSeq);
    }
    if (floorSeq !== undefined) this.compact(floorSeq, floorAt);
  }

  /**
   * Move the base up to `floorSeq`, which never changes the scene. Only once everything up to
   * `floorAt` is known, the head at which the server moved its own floor: an undo that was
   * sequenced before could still be on its way, and would find its target baked in.
   */
  compact(floorSeq, floorAt = floorSeq) {
    if (floorSeq <= this.floorSeq || this.confirmedSeq < Math.max(floorAt, floorSeq)) return false;
    const count = this.#tail.findIndex(({ serverSeq }) => serverSeq > floorSeq);
    const baked = this.#tail.splice(0, count < 0 ? this.#tail.length : count);
    for (const message of baked) {
      applyOps(this.#base, message, { undone: this.#undone.has(message.id) });
    }
    this.floorSeq = floorSeq;
    this.#refold();
    this.#overlay(null);
    return true;
  }

  // -- private

  /**
   * An operation with what a caller need not write: identities of new characters, and anchors in
   * place of positions. Positions count code points of the text as shown. Euler angles become a
   * quaternion here: sines are not the same bits on every machine.
   */
  #complete(op) {
    if (op?.otype === "vector3.applyEuler" && isEuler(op.value)) {
      const { order, intrinsic, ...made } = op;
      const value = eulerToQuaternion(op.value, order, intrinsic);
      return { ...made, otype: "vector3.applyQuaternion", value };
    }
    if (typeof op?.otype !== "string" || !op.otype.startsWith("text.")) return op;
    const { position, length = 0, ...made } = op;
    const text = this.#view.text(op.key, op.path) ?? new Text();
    if (Number.isSafeInteger(position)) {
      const at = Math.max(position, 0);
      const content = Array.isArray(op.value) ? op.value[1] : op.value;
      if (op.otype !== "text.delete") made.value = [text.anchorAt(at), content];
      if (op.otype !== "text.insert") made.rm = text.rangesAt(at, length);
    }
    if (op.otype !== "text.delete" && op.id === undefined) {
      const content = op.otype === "text.init" ? (op.value ?? "") : made.value?.[1];
      if (typeof content === "string") made.id = this.#identities(text, lengthOf(content));
    }
    return made;
  }

  /** The first of `count` identities that no character of this session has had. */
  #identities(text, count) {
    const first = Math.max(this.#characters, text.nextOf(this.#sessionId));
    this.#characters = first + count;
    return `${this.#sessionId}:${first}`;
  }

  #envelope(ops, id = this.#options.newId()) {
    const recent = [...this.#heard].slice(-CLOCK_SESSIONS_MAX);
    return {
      id,
      sessionId: this.#sessionId,
      clock: { ...Object.fromEntries(recent), [this.#sessionId]: this.#counter + 1 },
      lamportTime: this.lamport + 1,
      timestamp: this.#options.now(),
      ops,
    };
  }

  #send(message) {
    this.lamport = message.lamportTime;
    this.#counter = message.clock[this.#sessionId];
    this.pending = [...this.pending, message];
    this.#rebuild(isMeta(message.ops[0]) ? null : new Set());
    this.#options.onSend(message);
  }

  #sendMeta(otype, targetMsgId) {
    const message = this.#envelope([{ otype, key: "_meta", path: "_meta", targetMsgId }]);
    this.#send(message);
    return message;
  }

  /** Take the newest id off a stack that can still be undone. */
  #newest(stack) {
    for (let id; (id = stack.pop()) !== undefined;) if (this.#reachable(id)) return id;
    return undefined;
  }

  /** Whether an undo of this own message can still be sequenced. */
  #reachable(id) {
    const held = (message) => message.id === id;
    return this.pending.some(held) || this.#tail.some(held);
  }

  #forget(id) {
    const left = this.pending.filter((message) => message.id !== id);
    if (left.length === this.pending.length) return false;
    this.pending = left;
    return true;
  }

  #keep(message, serverSeq) {
    if (!this.#own.some((kept) => kept.message.id === message.id)) {
      this.#own.push({ message, serverSeq });
    }
  }

  #hear(session, counter) {
    if (session === this.#sessionId) this.#counter = Math.max(this.#counter, counter);
    else if (!(this.#heard.get(session) >= counter)) {
      this.#heard.delete(session);
      this.#heard.set(session, counter);
    }
  }

  /** The message itself where it is the own one that comes next, as it was sent. */
  #expected(message) {
    const [first] = this.pending;
    if (first === undefined || first.id !== message.id) return null;
    return first.ops === message.ops ? message : null;
  }

  /** Add the next message to the tail and the confirmed scene; whether all is to be folded again. */
  #confirm(message, keys, later) {
    const own = this.pending.find(({ id }) => id === message.id);
    if (own !== undefined) {
      this.#forget(message.id);
      if (message.serverSeq > this.durableSeq) this.#keep(own, message.serverSeq);
    }
    this.confirmedSeq = message.serverSeq;
    this.#tail.push(message);
    this.lamport = Math.max(this.lamport, message.lamportTime);
    this.#hear(message.sessionId, message.clock?.[message.sessionId] ?? 0);
    if (isMeta(message.ops[0])) return this.#mark(message.ops);
    if (!later) applyOps(this.#confirmed, message, { keys });
    return false;
  }

  #mark(ops) {
    const before = this.#undone.size;
    let changed = false;
    for (const { otype, targetMsgId } of ops) {
      if (otype === "meta.undo") this.#undone.add(targetMsgId);
      else changed = this.#undone.delete(targetMsgId) || changed;
    }
    return changed || this.#undone.size !== before;
  }

  #refold() {
    this.#undone = new Set();
    for (const { ops } of this.#tail) if (isMeta(ops[0])) this.#mark(ops);
    this.#confirmed = new Graph(this.#base);
    this.#fold(this.#confirmed, this.#tail, this.#undone);
  }

  #fold(graph, messages, undone, keys = undefined) {
    for (const message of messages) {
      if (!isMeta(message.ops[0])) {
        applyOps(graph, message, { undone: undone.has(message.id), keys });
      }
    }
  }

  /** Make the view anew and tell; `keys` changed below it, null: anything may have. */
  #rebuild(keys) {
    if (keys !== null) for (const key of this.#view.changedKeys()) keys.add(key);
    this.#overlay(keys);
    this.#tell(keys);
  }

  #overlay(keys) {
    const undone = new Set(this.#undone);
    for (const { ops } of this.pending) {
      for (const { otype, targetMsgId } of isMeta(ops[0]) ? ops : []) {
        if (otype === "meta.undo") undone.add(targetMsgId);
        else undone.delete(targetMsgId);
      }
    }
    const other = ({ id }) => undone.has(id) !== this.#undone.has(id);
    if (this.#tail.some(other)) {
      this.#view = new Graph(this.#base);
      this.#fold(this.#view, this.#tail, undone);
    } else this.#view = new Graph(this.#confirmed);
    this.#fold(this.#view, this.pending, undone, keys ?? undefined);
    if (this.edits.length > 0) {
      applyOps(this.#view, this.#envelope(this.edits, ""), { keys: keys ?? undefined });
    }
  }

  #tell(keys) {
    const change = { keys: keys ?? new Set(), all: keys === null };
    for (const [listener] of [...this.#listeners]) listener(change);
  }
}
