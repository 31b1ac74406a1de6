/**
 * Objects whose members are registers of their own: `object.set` and `object.merge`.
 *
 * The stamps of one property form a tree: `path` has the stamp of the last set, `path NUL name NUL
 * name` that of a leaf. A write at one place wins if its stamp is at least that of the place and of
 * every place above it. A write of a whole value keeps what lies below it with a higher stamp and
 * forgets the lower stamps there, so merges and sets of objects commute.
 *
 * The functions change the Maps `props` and `lww` that they are given: copies of a node's own.
 */

import { compareStamps, isObject } from "./transforms.js";

const LEAF = "\0";
let foreign = false; // an application's own operation may have put another value over an object

/** There are operations of an application's from now on. */
export function expectForeign() {
  foreign = true;
}

/** The places below one that have stamps, where `old` stands there: only members of objects do. */
function stampedBelow(lww, place, old) {
  if (foreign) return [...lww.keys()].filter((name) => name.startsWith(place + LEAF));
  const found = new Set();
  const waiting = [[place, old]];
  while (waiting.length > 0) {
    const [at, value] = waiting.pop();
    if (!isObject(value)) continue;
    for (const [name, member] of Object.entries(value)) {
      const below = at + LEAF + name;
      if (lww.has(below)) found.add(below);
      waiting.push([below, member]);
    }
  }
  return found;
}

/** Whether a write with `stamp` replaces what was written with `held`. */
export const wins = (stamp, held) =>
  held === undefined || held === null || compareStamps(stamp, held) >= 0;

/** Set a property, an object or not; false where it lost. */
export function write({ props, lww }, path, value, stamp) {
  if (!wins(stamp, lww.get(path))) return false;
  props.set(path, written(lww, path, props.get(path), value, stamp));
  return true;
}

/** Set a property to what is no object: no member of it is left to keep. It has won already. */
export function put({ props, lww }, path, value, stamp) {
  for (const name of stampedBelow(lww, path, props.get(path))) lww.delete(name);
  lww.set(path, stamp);
  props.set(path, value);
}

/** Merge an object into a property that is an object or absent. */
export function merge({ props, lww }, path, value, stamp) {
  if (!wins(stamp, lww.get(path))) return;
  const current = props.get(path);
  props.set(path, merged(lww, path, isObject(current) ? current : {}, value, stamp));
}

/** The member `path` of a merge into the node itself. */
export function mergeProperty({ props, lww }, path, value, stamp) {
  if (wins(stamp, lww.get(path))) {
    props.set(path, member(lww, path, props.get(path), value, stamp));
  }
}

function merged(lww, path, current, value, stamp) {
  const made = new Map(Object.entries(current));
  for (const [name, item] of Object.entries(value)) {
    const below = path + LEAF + name;
    if (!wins(stamp, lww.get(below))) continue;
    made.set(name, member(lww, below, made.get(name), item, stamp));
  }
  return Object.fromEntries(made);
}

/** What a member becomes that was `old`; the write has won at the place itself. */
function member(lww, place, old, item, stamp) {
  if (isObject(item)) {
    if (isObject(old)) return merged(lww, place, old, item, stamp);
    // Members win one by one against what is no object.
    if (old === undefined || Object.keys(item).length > 0) {
      return merged(lww, place, {}, item, stamp);
    }
  }
  return written(lww, place, old, item, stamp);
}

/** `value` with what lies below the place with a higher stamp. */
function written(lww, place, old, value, stamp) {
  lww.set(place, stamp);
  const below = place + LEAF;
  const kept = [];
  for (const name of stampedBelow(lww, place, old)) {
    if (compareStamps(lww.get(name), stamp) > 0) kept.push(name.slice(below.length).split(LEAF));
    else lww.delete(name);
  }
  kept.sort((a, b) => a.length - b.length);
  return kept.reduce((made, names) => grafted(made, old, names), value);
}

/** `value` with the member that `names` lead to taken over from `old`. */
function grafted(value, old, [name, ...rest]) {
  if (!isObject(old) || !Object.hasOwn(old, name)) return value;
  const made = isObject(value) ? value : {};
  if (rest.length === 0) return withMember(made, name, old[name]);
  const inner = Object.hasOwn(made, name) ? made[name] : undefined;
  return withMember(made, name, grafted(inner, old[name], rest));
}

/** A copy with one member replaced or added; `__proto__` is a name like others. */
function withMember(object, name, value) {
  const rest = Object.entries(object).filter(([held]) => held !== name);
  return Object.fromEntries([...rest, [name, value]]);
}
