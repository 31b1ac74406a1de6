/**
 * What each operation makes of a property's value: pure functions and one table.
 *
 * Only the four operations of arithmetic, comparison and Math.floor are used, so that every machine
 * gets the same bits. A transform answers NOTHING where the operation has no effect: on a value of
 * another type, or where the result would not be finite.
 */

import { compareCodePoints } from "../holdfast.js";

export const NOTHING = Symbol("no effect");

// --- type guards ---------------------------------------------------------------------------------

const EXACT_MAX = 2 ** 53;
const PLAIN_MAX = 1e21; // from here on JSON writes an exponent, and an integer cannot be meant
const LONE = /[\ud800-\udfff]/u;

/** A finite number; whole ones are exact, unless they are too big to be written as such. */
export const isNumber = (value) =>
  typeof value === "number" &&
  Number.isFinite(value) &&
  !(Number.isInteger(value) && Math.abs(value) > EXACT_MAX && Math.abs(value) < PLAIN_MAX);
export const isString = (value) => typeof value === "string" && !LONE.test(value);
export const isBoolean = (value) => typeof value === "boolean";
export const isColor = (value) => typeof value === "string" && /^#[0-9a-fA-F]{6}$/.test(value);
export const isArray = (value) => Array.isArray(value);
export const isObject = (value) =>
  value !== null && typeof value === "object" && !Array.isArray(value);

const finite = (value) => typeof value === "number" && Number.isFinite(value);
const tuple = (length, guard) => (value) =>
  Array.isArray(value) && value.length === length && value.every(guard);
export const isVector3 = tuple(3, isNumber);
export const isEuler = tuple(3, isNumber);
export const isQuaternion = tuple(4, isNumber);

// What a state may hold: results of arithmetic may be whole and beyond 2^53.
const holds = {
  vector3: tuple(3, finite),
  quaternion: tuple(4, finite),
};

/** Equality of JSON values: members in any order. */
export function deepEqual(a, b) {
  if (a === b) return true;
  if (Array.isArray(a)) {
    return (
      Array.isArray(b) && a.length === b.length && a.every((item, i) => deepEqual(item, b[i]))
    );
  }
  if (!isObject(a) || !isObject(b)) return false;
  const names = Object.keys(a);
  return (
    names.length === Object.keys(b).length &&
    names.every((name) => Object.hasOwn(b, name) && deepEqual(a[name], b[name]))
  );
}

/** Order of stamps `[lamportTime, sessionId]`: by number, then by the bytes of the session. */
export function compareStamps(a, b) {
  return a[0] - b[0] || compareCodePoints(a[1], b[1]);
}

// --- arithmetic ----------------------------------------------------------------------------------

/** Hamilton product. */
export function multiplyQuaternions([ax, ay, az, aw], [bx, by, bz, bw]) {
  return [
    aw * bx + ax * bw + ay * bz - az * by,
    aw * by - ax * bz + ay * bw + az * bx,
    aw * bz + ax * by - ay * bx + az * bw,
    aw * bw - ax * bx - ay * by - az * bz,
  ];
}

/** `vector` turned by a quaternion. */
export function rotateVector([x, y, z], quaternion) {
  const [qx, qy, qz, qw] = quaternion;
  const turned = multiplyQuaternions(multiplyQuaternions(quaternion, [x, y, z, 0]), [
    -qx,
    -qy,
    -qz,
    qw,
  ]);
  return turned.slice(0, 3);
}

/**
 * The quaternion of three angles in radians, applied in `order`: about the axes that turn along
 * (intrinsic), or about those that stand. Sines differ in the last bit between machines, so what
 * this gives is for a message, never for the fold.
 */
export function eulerToQuaternion(angles, order = "XYZ", intrinsic = true) {
  const turns = [...order].map((axis) => {
    const at = "XYZ".indexOf(axis);
    const turn = [0, 0, 0, Math.cos(angles[at] / 2)];
    turn[at] = Math.sin(angles[at] / 2);
    return turn;
  });
  return (intrinsic ? turns : turns.reverse()).reduce(multiplyQuaternions);
}

const channels = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));

/** Two colours mixed, channel by channel; `alpha` 1 is the second alone. */
export function blendColors(first, second, alpha) {
  const [from, to] = [channels(first), channels(second)];
  const mixed = from.map((c, i) => Math.floor(c * (1 - alpha) + to[i] * alpha + 0.5));
  return `#${mixed.map((c) => c.toString(16).padStart(2, "0")).join("")}`;
}

const sum = (a, b) => a + b;
const product = (a, b) => a * b;
const lower = (a, b) => (b < a ? b : a);
const higher = (a, b) => (b > a ? b : a);
const each = (combine) => (c, v) => c.map((item, i) => combine(item, v[i]));
/** A text that is equal for two JSON values exactly where `deepEqual` is. */
function identity(value) {
  if (typeof value === "number") return String(value); // -0 is 0
  if (Array.isArray(value)) return `[${value.map(identity).join()}]`;
  if (!isObject(value)) return JSON.stringify(value);
  const names = Object.keys(value).sort();
  return `{${names.map((name) => `${JSON.stringify(name)}:${identity(value[name])}`).join()}}`;
}

const appendNew = (list, items) => {
  const all = [...list];
  const known = new Set(all.map(identity));
  for (const item of items) {
    const name = identity(item);
    if (known.has(name)) continue;
    known.add(name);
    all.push(item);
  }
  return all;
};

/** A relative operation: its default, the guard of what it changes, and the change. */
const relative = (start, guard, change) => (current, op) => {
  if (current === undefined && start === undefined) return op.value;
  const from = current === undefined ? start : current;
  if (!guard(from)) return NOTHING;
  const result = change(from, op.value, op);
  const numbers = Array.isArray(result) && guard !== isArray ? result : [result];
  return numbers.some((n) => typeof n === "number" && !Number.isFinite(n)) ? NOTHING : result;
};

/** otype to `(current, op) => value`; `current` is undefined where the property is absent. */
export const TRANSFORMS = new Map([
  ["number.add", relative(0, finite, sum)],
  ["number.multiply", relative(1, finite, product)],
  ["number.min", relative(undefined, finite, lower)],
  ["number.max", relative(undefined, finite, higher)],
  ["vector3.add", relative([0, 0, 0], holds.vector3, each(sum))],
  ["vector3.multiply", relative([1, 1, 1], holds.vector3, each(product))],
  ["vector3.applyQuaternion", relative([0, 0, 0], holds.vector3, rotateVector)],
  ["euler.add", relative([0, 0, 0], holds.vector3, each(sum))],
  ["quaternion.multiply", relative([0, 0, 0, 1], holds.quaternion, multiplyQuaternions)],
  ["color.blend", relative(undefined, isColor, (c, v, op) => blendColors(c, v, op.alpha ?? 0.5))],
  ["boolean.or", relative(false, isBoolean, (c, v) => c || v)],
  ["boolean.and", relative(true, isBoolean, (c, v) => c && v)],
  [
    "string.concat",
    relative("", isString, (c, v, op) => (c === "" ? v : c + (op.separator ?? "") + v)),
  ],
  ["array.push", relative([], isArray, (c, v) => [...c, v])],
  [
    "array.remove",
    (current, { value }) =>
      isArray(current) ? current.filter((item) => !deepEqual(item, value)) : NOTHING,
  ],
  ["array.union", relative([], isArray, appendNew)],
]);

/** The operations that put a value, with the guard of it. */
export const SETTERS = new Map([
  ["number.set", isNumber],
  ["string.set", isString],
  ["boolean.set", isBoolean],
  ["color.set", isColor],
  ["vector3.set", isVector3],
  ["euler.set", isEuler],
  ["quaternion.set", isQuaternion],
  ["array.set", isArray],
  ["object.set", isObject],
]);
