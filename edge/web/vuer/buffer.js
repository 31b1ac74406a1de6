/**
 * The edit buffer: operations of one client that are not committed yet.
 *
 * A new operation may be combined with the latest buffered one on the same `(key, path)`, if both
 * are of one kind and nothing between them could have changed the node as a whole. Whatever cannot
 * be combined is appended; nothing is dropped, so the buffer means what was done one by one.
 */

import { NOTHING, SETTERS, TRANSFORMS, multiplyQuaternions } from "./transforms.js";
import { lengthOf, parseTextId } from "./text.js";

const joined = (otype) => (old, op) => {
  const value = TRANSFORMS.get(otype)(old.value, op);
  return value === NOTHING ? null : { ...old, value };
};

const COMBINE = new Map([
  ...[...SETTERS.keys()].map((otype) => [otype, (old, op) => op]),
  ...[
    "number.add", "number.multiply", "number.min", "number.max", "vector3.add",
    "vector3.multiply", "euler.add", "boolean.or", "boolean.and", "array.union",
  ].map((otype) => [otype, joined(otype)]),
  ["quaternion.multiply", combineTurns],
  ["string.concat", combineConcats],
  ["text.insert", combineInserts],
  ["text.delete", (old, op) => ({ ...old, rm: [...old.rm, ...op.rm] })],
]);

/** Buffered operations with one more, as a new list. */
export function mergeEdit(edits, op) {
  const at = latestOnPath(edits, op);
  const merged = at < 0 ? null : (COMBINE.get(op.otype)?.(edits[at], op) ?? null);
  return merged === null ? [...edits, op] : edits.with(at, merged);
}

function latestOnPath(edits, op) {
  // Attaching moves a child away from wherever an operation in between has put it.
  if (op.path === "children") return -1;
  for (let i = edits.length - 1; i >= 0; i--) {
    const held = edits[i];
    if (held.otype.startsWith("node.") || (held.path === "." && held.key === op.key)) return -1;
    if (held.key === op.key && held.path === op.path) return held.otype === op.otype ? i : -1;
  }
  return -1;
}

function combineTurns(old, op) {
  const value = multiplyQuaternions(old.value, op.value);
  return value.every(Number.isFinite) ? { ...old, value } : null;
}

/** An empty text swallows the separator after it, so the sum of the two would differ. */
function combineConcats(old, op) {
  const separator = op.separator ?? "";
  if ((old.separator ?? "") !== separator || old.value === "") return null;
  return { ...old, value: old.value + separator + op.value };
}

/** Typing on: the new characters stand after the last of the old, and are numbered on. */
function combineInserts(old, op) {
  const [author, n] = parseTextId(old.id);
  const count = lengthOf(old.value[1]);
  if (op.id !== `${author}:${n + count}` || op.value[0] !== `${author}:${n + count - 1}`) {
    return null;
  }
  return { ...old, value: [old.value[0], old.value[1] + op.value[1]] };
}
