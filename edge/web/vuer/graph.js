/**
 * The scene graph and what each operation does to it.
 *
 * A Graph is a layer of changed nodes over another Graph, or over nothing. Whoever makes a layer
 * leaves those below alone for as long as it is in use; so a view costs what it changes, however
 * many nodes there are. Nodes are never changed once they are in a layer's map: a change puts
 * another object there.
 *
 * The tree is held apart from the nodes: a child may be attached before it is inserted, and a
 * tombstone keeps its links. Every key has at most one parent.
 */

import { canonical, compareCodePoints, sha256 } from "../holdfast.js";
import { merge, mergeProperty, put, wins, write } from "./objects.js";
import { Text, lengthOf, parseTextId } from "./text.js";
import {
  NOTHING,
  SETTERS,
  TRANSFORMS,
  compareStamps,
  isObject,
  isString,
} from "./transforms.js";

/** Members of a node that are no properties. */
export const RESERVED = new Set(["key", "id", "tag", "name", "children", "parent", "_crdt"]);
const NONE = [];

/** A node as it is held; `props`, `lww` (stamps by name) and `text` are Maps. Not to be changed. */
const freshNode = (key, stamp, timestamp) => ({
  key,
  id: key,
  tag: "",
  name: "",
  props: new Map(),
  lww: new Map(),
  text: new Map(),
  clock: {},
  lamportTime: 0,
  createdAt: timestamp,
  updatedAt: timestamp,
  deletedAt: null,
  ins: stamp,
  del: null,
  par: null,
});

export class Graph {
  #under;
  #nodes = new Map();
  #children = new Map();
  #parents = new Map();
  #rootKey;

  constructor(under = null) {
    this.#under = under;
    this.#rootKey = under === null ? "" : under.rootKey;
  }

  get rootKey() {
    return this.#rootKey;
  }

  /** The node as held, tombstones included; undefined where it was never inserted. */
  node(key) {
    for (let layer = this; layer !== null; layer = layer.#under) {
      const node = layer.#nodes.get(key);
      if (node !== undefined) return node;
    }
    return undefined;
  }

  /** The node, where it is inserted and not removed. */
  live(key) {
    const node = this.node(key);
    return node === undefined || node.del !== null ? undefined : node;
  }

  /** Keys attached to a node, in order; some may not be inserted, or be removed. */
  children(key) {
    for (let layer = this; layer !== null; layer = layer.#under) {
      const children = layer.#children.get(key);
      if (children !== undefined) return children;
    }
    return NONE;
  }

  /** Key of the node that a key is attached to, null where there is none. */
  parent(key) {
    for (let layer = this; layer !== null; layer = layer.#under) {
      const parent = layer.#parents.get(key);
      if (parent !== undefined) return parent;
    }
    return null;
  }

  /** The value of a property, undefined where it is absent; a text as a string. */
  value(key, path) {
    const node = this.live(key);
    if (node === undefined) return undefined;
    if (path === "name" || path === "tag") return node[path];
    return node.text.get(path)?.toString() ?? node.props.get(path);
  }

  /** The Text of a property; a plain string as the text it would become. */
  text(key, path) {
    const node = this.live(key);
    const value = node?.props.get(path);
    return node?.text.get(path) ?? (typeof value === "string" ? Text.of(value) : undefined);
  }

  /** `{key, tag, name, parent, children, …properties}` of a live node, for showing it. */
  show(key) {
    const node = this.live(key);
    if (node === undefined) return undefined;
    const { props, text, tag, name } = node;
    const texts = [...text].map(([path, held]) => [path, held.toString()]);
    const own = { key, tag, name, parent: this.parent(key), children: [...this.children(key)] };
    return Object.fromEntries([...props, ...texts, ...Object.entries(own)]);
  }

  /** Keys of the live nodes that can be reached from the root over live nodes, parents first. */
  visible() {
    const found = [];
    const walk = [this.rootKey];
    for (let key; (key = walk.pop()) !== undefined;) {
      if (this.live(key) === undefined) continue;
      found.push(key);
      const children = this.children(key);
      for (let i = children.length - 1; i >= 0; i--) walk.push(children[i]);
    }
    return found;
  }

  /** Every key that was ever inserted, tombstones included. */
  keys() {
    const keys = new Set();
    for (let layer = this; layer !== null; layer = layer.#under) {
      for (const key of layer.#nodes.keys()) keys.add(key);
    }
    return [...keys];
  }

  /** Keys whose node or links this layer holds another value of than those below. */
  changedKeys() {
    return [...this.#nodes.keys(), ...this.#children.keys(), ...this.#parents.keys()];
  }

  // -- changes, for the functions of this file

  put(node) {
    this.#nodes.set(node.key, node);
  }

  setRoot(key) {
    this.#rootKey = key;
  }

  /** Put `key` at the end of the children of `parent`, away from where it was; not in a cycle. */
  attach(key, parent) {
    if (this.parent(key) === parent) return false;
    for (let at = parent; at !== null; at = this.parent(at)) if (at === key) return false;
    this.detach(key);
    this.#ownChildren(parent).push(key);
    this.#parents.set(key, parent);
    return true;
  }

  /** Take `key` away from its parent, if it has one. */
  detach(key) {
    const parent = this.parent(key);
    if (parent === null) return false;
    const children = this.#ownChildren(parent);
    children.splice(children.indexOf(key), 1);
    this.#parents.set(key, null);
    return true;
  }

  order(parent, children) {
    this.#children.set(parent, [...children]);
  }

  #ownChildren(key) {
    let children = this.#children.get(key);
    if (children === undefined) {
      children = [...this.children(key)];
      this.#children.set(key, children);
    }
    return children;
  }

  // -- the wire

  /** `{nodes, rootKey}` as it stands on the wire, and `tree`: links of keys without a node. */
  toJSON() {
    const nodes = this.keys().map((key) => [key, nodeToWire(this, this.node(key))]);
    const graph = { nodes: Object.fromEntries(nodes), rootKey: this.rootKey };
    const places = this.#places().map((key) => [
      key,
      { key, children: [...this.children(key)], parent: this.parent(key) },
    ]);
    return places.length === 0 ? graph : { ...graph, tree: Object.fromEntries(places) };
  }

  /** Keys that were never inserted, but are attached or have children. */
  #places() {
    const keys = new Set();
    for (let layer = this; layer !== null; layer = layer.#under) {
      for (const key of [...layer.#children.keys(), ...layer.#parents.keys()]) keys.add(key);
    }
    return [...keys].filter(
      (key) =>
        this.node(key) === undefined &&
        (this.parent(key) !== null || this.children(key).length > 0),
    );
  }

  /** A graph of its own, of what `toJSON` gave. */
  static fromJSON({ nodes = {}, rootKey = "", tree = {} } = {}) {
    const graph = new Graph();
    graph.setRoot(rootKey);
    for (const wire of Object.values(nodes)) graph.put(nodeFromWire(wire));
    for (const { key, children, parent } of [...Object.values(nodes), ...Object.values(tree)]) {
      if (children.length > 0) graph.#children.set(key, [...children]);
      if (parent !== null) graph.#parents.set(key, parent);
    }
    return graph;
  }
}

const HASHES = new WeakMap(); // of nodes as held: {children, parent, hash}

/** 64 hex digits: SHA-256 of the node's wire form without its clock and times. */
function nodeHash(graph, node) {
  const [children, parent] = [graph.children(node.key).join("\0"), graph.parent(node.key)];
  const known = HASHES.get(node);
  if (known?.children === children && known.parent === parent) return known.hash;
  const wire = nodeToWire(graph, node);
  const { clock, createdAt, updatedAt, deletedAt, ...rest } = wire._crdt;
  const hash = sha256(canonical({ ...wire, _crdt: rest }));
  HASHES.set(node, { children, parent, hash });
  return hash;
}

/**
 * The hash of a scene: equal where two are, whatever led there. "h1_" and 32 hex digits of SHA-256
 * over the line `rootKey LF` and, sorted by key, `key SPACE node-hash LF`.
 */
export function stateHash(graph) {
  const lines = graph
    .keys()
    .sort(compareCodePoints)
    .map((key) => `${key} ${nodeHash(graph, graph.node(key))}\n`);
  return `h1_${sha256(`${graph.rootKey}\n${lines.join("")}`).slice(0, 32)}`;
}

/** A node as it stands on the wire: properties flat beside the reserved members. */
export function nodeToWire(graph, node) {
  const texts = [...node.text].map(([path, text]) => [path, { runs: text.runs }]);
  const _crdt = {
    clock: node.clock,
    lamportTime: node.lamportTime,
    createdAt: node.createdAt,
    updatedAt: node.updatedAt,
    deletedAt: node.deletedAt,
    ins: node.ins,
    del: node.del,
    par: node.par,
    lww: Object.fromEntries(node.lww),
    text: Object.fromEntries(texts),
  };
  const shown = [...node.text].map(([path, text]) => [path, text.toString()]);
  return Object.fromEntries([
    ...node.props,
    ...shown,
    ["key", node.key],
    ["id", node.id],
    ["tag", node.tag],
    ["name", node.name],
    ["children", [...graph.children(node.key)]],
    ["parent", graph.parent(node.key)],
    ["_crdt", _crdt],
  ]);
}

function nodeFromWire(wire) {
  const { lww = {}, text = {}, ...crdt } = wire._crdt;
  const texts = Object.entries(text).map(([path, { runs }]) => [path, new Text(runs)]);
  const plain = Object.entries(wire).filter(
    ([name]) => !RESERVED.has(name) && !Object.hasOwn(text, name),
  );
  const { key, id, tag, name } = wire;
  return {
    ...freshNode(key, null, 0),
    ...crdt,
    id,
    tag,
    name,
    props: new Map(plain),
    lww: new Map(Object.entries(lww)),
    text: new Map(texts),
  };
}

// --- applying ------------------------------------------------------------------------------------

const APPLY = new Map(); // otype to (context, op)

/** See `registerOtype`. */
export function addOtype(otype, change) {
  APPLY.set(otype, transformer((current, op) => change(current, op) ?? NOTHING));
}

/** Whether there is such an operation. */
export const isOtype = (otype) => APPLY.has(otype) || META.has(otype);
const META = new Set(["meta.undo", "meta.redo"]);

/**
 * Apply a message to `graph` itself. An `undone` one leaves nothing but places in texts. Keys of
 * nodes that changed are added to `keys`.
 */
export function applyOps(graph, message, { undone = false, keys = undefined } = {}) {
  const context = {
    graph,
    message,
    undone,
    stamp: [message.lamportTime, message.sessionId],
    touch: (key) => keys?.add(key),
  };
  for (const op of message.ops) {
    if (undone && !op.otype.startsWith("text.")) continue;
    APPLY.get(op.otype)?.(context, op);
  }
}

/** The graph after a message, as a new one; the given one must not be changed from then on. */
export function applyMessage(graph, message) {
  return applyMessages(graph, [message]);
}

/** The same for several, in the order given; what is undone at their end is left out. */
export function applyMessages(graph, messages) {
  const undone = new Set();
  for (const { otype, targetMsgId } of messages.flatMap(({ ops }) => ops)) {
    if (otype === "meta.undo") undone.add(targetMsgId);
    else if (otype === "meta.redo") undone.delete(targetMsgId);
  }
  const next = new Graph(graph);
  for (const message of messages) applyOps(next, message, { undone: undone.has(message.id) });
  return next;
}

/** Put a changed copy of a node into the graph. */
function change({ graph, message, touch }, node, changes) {
  const { sessionId, clock, lamportTime, timestamp } = message;
  const own = clock?.[sessionId] ?? 0;
  graph.put({
    ...node,
    clock: { [sessionId]: own },
    lamportTime: Math.max(node.lamportTime, lamportTime),
    updatedAt: timestamp ?? 0,
    ...changes,
  });
  touch(node.key);
}

/** A Map with some members replaced; undefined removes. */
function replaced(map, changes) {
  const copy = new Map(map);
  for (const [name, value] of changes) {
    if (value === undefined) copy.delete(name);
    else copy.set(name, value);
  }
  return copy;
}

function putValue(context, node, path, value) {
  if (path === "name" || path === "tag") change(context, node, { [path]: value });
  else change(context, node, { props: replaced(node.props, [[path, value]]) });
}

const held = (node, path) =>
  path === "name" || path === "tag" ? node[path] : node.props.get(path);

/** Copies of what an operation may change of a node. */
const draft = (node) => ({ props: new Map(node.props), lww: new Map(node.lww) });

for (const otype of SETTERS.keys()) {
  APPLY.set(otype, (context, op) => {
    const { graph, stamp } = context;
    const node = graph.live(op.key);
    if (node === undefined || node.text.has(op.path)) return;
    if (op.path === "children") {
      setChildren(context, node, op);
    } else if (op.path === "name" || op.path === "tag") {
      if (!wins(stamp, node.lww.get(op.path))) return;
      const lww = replaced(node.lww, [[op.path, stamp]]);
      change(context, node, { [op.path]: op.value, lww });
    } else if (wins(stamp, node.lww.get(op.path))) {
      const made = draft(node);
      if (otype === "object.set") write(made, op.path, op.value, stamp);
      else put(made, op.path, op.value, stamp);
      change(context, node, made);
    }
  });
}

/** How a transform of values is applied to a property. */
function transformer(transform) {
  return (context, op) => {
    if (op.path === "children") {
      CHILDREN.get(op.otype)?.(context, op);
      return;
    }
    const node = context.graph.live(op.key);
    if (node === undefined || node.text.has(op.path)) return;
    const value = transform(held(node, op.path), op);
    if (value !== NOTHING) putValue(context, node, op.path, value);
  };
}

for (const [otype, transform] of TRANSFORMS) APPLY.set(otype, transformer(transform));

APPLY.set("object.merge", (context, op) => {
  const node = context.graph.live(op.key);
  if (node === undefined) return;
  if (op.path === ".") {
    mergeNode(context, node, op.value);
    return;
  }
  const current = node.props.get(op.path);
  if (node.text.has(op.path) || !(current === undefined || isObject(current))) return;
  const made = draft(node);
  merge(made, op.path, op.value, context.stamp);
  change(context, node, made);
});

/** Path `.`: the members are the node's properties. */
function mergeNode(context, node, value) {
  const { stamp } = context;
  const made = { ...draft(node), name: node.name };
  for (const [path, item] of Object.entries(value)) {
    if (path === "name") {
      if (!isString(item) || !wins(stamp, made.lww.get("name"))) continue;
      made.name = item;
      made.lww.set("name", stamp);
    } else if (!RESERVED.has(path) && !node.text.has(path)) {
      mergeProperty(made, path, item, stamp);
    }
  }
  change(context, node, made);
}

// --- nodes and the tree --------------------------------------------------------------------------

const keyOrNull = (key) => (key === undefined || key === "" || key === "." ? null : key);

/** `{key, parent, id, data}` of either shape of an insert; parent null where none is given. */
export function insertOf(op) {
  const { value } = op;
  if (op.path === "children") {
    return { key: value.key, parent: keyOrNull(op.key), id: value.id ?? value.key, data: value };
  }
  const id = op.key === value.key ? (value.id ?? op.key) : (value.key ?? value.id ?? op.key);
  return { key: op.key, parent: keyOrNull(op.parent), id, data: value };
}

APPLY.set("node.insert", (context, op) => insert(context, insertOf(op)));

for (const [otype, combine] of [
  ["node.upsert", true],
  ["node.inset", false],
]) {
  APPLY.set(otype, (context, op) => {
    const wanted = insertOf(op);
    const node = context.graph.live(wanted.key);
    if (node === undefined) insert(context, wanted);
    else if (combine) mergeNode(context, node, wanted.data);
    else setNode(context, node, wanted.data);
  });
}

function insert(context, { key, parent, id, data }) {
  const { graph, stamp, message, touch } = context;
  const before = graph.node(key);
  if (before !== undefined) {
    if (before.del === null || compareStamps(stamp, before.del) <= 0) return;
    for (const child of [...graph.children(key)]) {
      graph.detach(child);
      touch(child);
    }
  }
  const plain = Object.entries(data).filter(([name]) => !RESERVED.has(name));
  const node = freshNode(key, stamp, message.timestamp ?? 0);
  const { tag = "", name = "" } = data;
  change(context, node, { id, tag, name, props: new Map(plain) });
  if (parent !== null) graph.attach(key, parent);
  else if (graph.rootKey === "") graph.setRoot(key);
  for (const child of data.children ?? []) {
    if (graph.attach(child, key)) touch(child);
  }
  if (parent !== null) touch(parent);
}

function setNode(context, node, data) {
  const made = draft(node);
  for (const [path, item] of Object.entries(data)) {
    if (!RESERVED.has(path) && !node.text.has(path)) write(made, path, item, context.stamp);
  }
  change(context, node, made);
}

APPLY.set("node.remove", (context, op) => {
  const key = op.path === "children" && op.value !== undefined ? op.value : op.key;
  const node = context.graph.node(key);
  const { stamp, message } = context;
  if (node === undefined || compareStamps(stamp, node.ins) < 0) return;
  const del = node.del === null || compareStamps(stamp, node.del) > 0 ? stamp : node.del;
  change(context, node, { del, deletedAt: message.timestamp ?? 0 });
});

APPLY.set("node.move", (context, op) => {
  const { graph, stamp, touch } = context;
  const key = op.value?.nodeKey ?? op.key;
  const to = op.value?.newParent ?? op.to;
  const node = graph.live(key);
  if (node === undefined || graph.live(to) === undefined || !wins(stamp, node.par)) return;
  const from = graph.parent(key);
  if (from !== to && !graph.attach(key, to)) return;
  change(context, node, { par: stamp });
  if (from !== null) touch(from);
  touch(to);
});

const attachAll = (context, op, list) => {
  const { graph, touch } = context;
  const node = graph.live(op.key);
  if (node === undefined) return;
  for (const child of list) {
    const from = graph.parent(child);
    if (!graph.attach(child, op.key)) continue;
    for (const key of [child, from ?? child]) touch(key);
  }
  change(context, node, {});
};

/** The array operations on `children`. */
const CHILDREN = new Map([
  ["array.push", (context, op) => attachAll(context, op, [op.value])],
  ["array.union", (context, op) => attachAll(context, op, op.value)],
  [
    "array.remove",
    (context, op) => {
      const node = context.graph.live(op.key);
      if (node === undefined || context.graph.parent(op.value) !== op.key) return;
      context.graph.detach(op.value);
      context.touch(op.value);
      change(context, node, {});
    },
  ],
]);

function setChildren(context, node, op) {
  const { graph, stamp, touch } = context;
  if (!wins(stamp, node.lww.get("children"))) return;
  const wanted = new Set(op.value);
  for (const child of [...graph.children(op.key)]) {
    if (!wanted.has(child) && graph.detach(child)) touch(child);
  }
  for (const child of wanted) if (graph.attach(child, op.key)) touch(child);
  const order = new Set(graph.children(op.key));
  graph.order(op.key, [...wanted].filter((child) => order.has(child)));
  change(context, node, { lww: replaced(node.lww, [["children", stamp]]) });
}

// --- text ----------------------------------------------------------------------------------------

/** The text of a property; made where it is absent or a string, undefined where it is no text. */
function textOf(node, path) {
  if (node.text.has(path)) return node.text.get(path);
  const value = node.props.get(path);
  if (value === undefined) return new Text();
  return typeof value === "string" ? Text.of(value) : undefined;
}

function onText(context, op, edit) {
  const node = context.graph.live(op.key);
  const before = node === undefined ? undefined : textOf(node, op.path);
  if (before === undefined) return;
  const after = edit(before, node.text.has(op.path));
  if (after === before && (context.undone || node.text.has(op.path))) return;
  change(context, node, {
    text: replaced(node.text, [[op.path, after]]),
    props: replaced(node.props, [[op.path, undefined]]),
  });
}

function insertText(text, op, visible) {
  const [anchor, content] = op.value;
  if (content === "") return text;
  const [author, n] = parseTextId(op.id);
  if (text.has(author, n, lengthOf(content))) return text;
  return text.insert(author, n, content, anchor, visible);
}

APPLY.set("text.insert", (context, op) => {
  onText(context, op, (text) => insertText(text, op, !context.undone));
});

APPLY.set("text.delete", (context, op) => {
  if (context.undone) return;
  onText(context, op, (text) => text.delete(op.rm));
});

APPLY.set("text.replace", (context, op) => {
  onText(context, op, (text) => {
    const rest = context.undone ? text : text.delete(op.rm);
    return insertText(rest, op, !context.undone);
  });
});

APPLY.set("text.init", (context, op) => {
  onText(context, op, (text, exists) => {
    if (op.id === undefined || !op.value) return text;
    const visible = !context.undone && !exists && text.runs.length === 0;
    const [author, n] = parseTextId(op.id);
    if (text.has(author, n, lengthOf(op.value))) return text;
    return text.insert(author, n, op.value, null, visible);
  });
});
