/**
 * What may be said: operations and messages, as the server checks them before it gives a number.
 *
 * The checks look at the message alone, never at the scene, so that the same message is valid for
 * everyone and always. They throw RtcError with the code that the server would answer.
 */

import { RtcError } from "./errors.js";
import { insertOf, isOtype } from "./graph.js";
import { lengthOf, parseTextId } from "./text.js";
import {
  SETTERS,
  isArray,
  isBoolean,
  isColor,
  isEuler,
  isNumber,
  isObject,
  isQuaternion,
  isString,
  isVector3,
} from "./transforms.js";

const KEY_CHARS_MAX = 128;
const PATH_CHARS_MAX = 256;
const ID_CHARS_MAX = 128;
const OPS_MAX = 1000;
const MESSAGE_BYTES_MAX = 65_536;
const NESTING_MAX = 64;
const TEXT_OPS = /^text\./;
const CONTROL = /[\u0000-\u001f\u007f-\u009f\ud800-\udfff]/u;

const named = (value, charsMax) =>
  typeof value === "string" &&
  value !== "" &&
  value.length <= 2 * charsMax &&
  lengthOf(value) <= charsMax &&
  !CONTROL.test(value);

/** Whether a value may be the key of a node. */
export const isKey = (value) => named(value, KEY_CHARS_MAX);
/** Whether a value may be the path of a property. */
export const isPath = (value) => named(value, PATH_CHARS_MAX);

/** Any JSON value of numbers that are exact and texts that are whole, not nested too deep. */
export function isValue(value, depth = 0) {
  if (value === null || typeof value === "boolean") return true;
  if (typeof value === "number") return isNumber(value);
  if (typeof value === "string") return isString(value);
  if (depth >= NESTING_MAX || typeof value !== "object") return false;
  if (Array.isArray(value)) return value.every((item) => isValue(item, depth + 1));
  return Object.entries(value).every(
    ([name, item]) => isString(name) && !name.includes("\0") && isValue(item, depth + 1),
  );
}

const isList = (value) => isArray(value) && isValue(value);
const isMap = (value) => isObject(value) && isValue(value);
const isKeys = (value) => isArray(value) && value.every(isKey);
const isId = (value) => parseTextId(value) !== null;
const isRange = (value) =>
  isArray(value) && value.length === 2 && isId(value[0]) && isCount(value[1]) && value[1] > 0;
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
const optional = (guard) => (value) => value === undefined || guard(value);

const VALUES = new Map([
  ...SETTERS,
  ["array.set", isList],
  ["object.set", isMap],
  ["number.add", isNumber],
  ["number.multiply", isNumber],
  ["number.min", isNumber],
  ["number.max", isNumber],
  ["vector3.add", isVector3],
  ["vector3.multiply", isVector3],
  ["vector3.applyQuaternion", isQuaternion],
  ["euler.add", isEuler],
  ["quaternion.multiply", isQuaternion],
  ["color.blend", isColor],
  ["boolean.or", isBoolean],
  ["boolean.and", isBoolean],
  ["string.concat", isString],
  ["array.push", isValue],
  ["array.remove", isValue],
  ["array.union", isList],
  ["object.merge", isMap],
]);

const MORE = new Map([
  ["color.blend", { alpha: optional((a) => isNumber(a) && a >= 0 && a <= 1) }],
  ["string.concat", { separator: optional(isString) }],
]);

/** Own checks of operations that were registered: otype to `(op) => boolean`. */
const REGISTERED = new Map();

/** See `registerOtype`. */
export function addValidator(otype, isValid) {
  REGISTERED.set(otype, isValid);
}

/** Undo and redo: operations about messages. */
export const isMeta = (op) => op?.otype === "meta.undo" || op?.otype === "meta.redo";

/** Throw `invalid_op` or `unknown_otype` where an operation is not well made. */
export function validateOp(op) {
  if (!isObject(op) || typeof op.otype !== "string") refuse(op, "an operation has an otype");
  const { otype } = op;
  if (!isOtype(otype)) throw new RtcError("unknown_otype", `no operation is called ${otype}`);
  if (REGISTERED.has(otype)) {
    if (!REGISTERED.get(otype)(op)) refuse(op, "not what it takes");
  } else if (isMeta(op)) {
    if (!isMessageId(op.targetMsgId)) refuse(op, "targetMsgId: the id of a message");
  } else if (otype.startsWith("node.")) validateNodeOp(op);
  else {
    if (!isKey(op.key)) refuse(op, "key: 1 to 128 characters, none of them control characters");
    if (!isPath(op.path)) refuse(op, "path: 1 to 256 characters, none of them control characters");
    if (TEXT_OPS.test(otype)) validateTextOp(op);
    else validateValueOp(op);
  }
}

function refuse(op, why) {
  throw new RtcError("invalid_op", `${op?.otype ?? "operation"}: ${why}`);
}

const STRINGS = new Set(["string.set", "string.concat"]);

function validateValueOp(op) {
  const { otype, path, value } = op;
  if (!VALUES.get(otype)(value)) refuse(op, "value: not of the type it takes");
  for (const [name, guard] of Object.entries(MORE.get(otype) ?? {})) {
    if (!guard(op[name])) refuse(op, `${name}: not of the type it takes`);
  }
  if (path === "children") {
    const list = otype === "array.set" || otype === "array.union";
    const one = otype === "array.push" || otype === "array.remove";
    if (!(list && isKeys(value)) && !(one && isKey(value))) {
      refuse(op, "children take the array operations, with keys");
    }
  } else if (path === "name" || path === "tag") {
    if (!STRINGS.has(otype)) refuse(op, `${path} takes string.set`);
  } else if (RESERVED_PATHS.has(path) || (path === "." && otype !== "object.merge")) {
    refuse(op, `path: ${path} is no property`);
  }
}

const RESERVED_PATHS = new Set(["key", "id", "parent", "_crdt"]);

function validateNodeOp(op) {
  const { otype, key, path, value } = op;
  if (otype === "node.remove") {
    const named = path === "children" && value !== undefined ? value : key;
    if (!isKey(named)) refuse(op, "key: of the node to remove");
  } else if (otype === "node.move") {
    if (!isKey(value?.nodeKey ?? key)) refuse(op, "nodeKey: of the node to move");
    if (!isKey(value?.newParent ?? op.to)) refuse(op, "newParent: key of a node");
  } else {
    if (!isMap(value)) refuse(op, "value: the node");
    if (!isKey(path === "children" ? value.key : key)) refuse(op, "key: of the node");
    const parent = path === "children" ? key : op.parent;
    if (!(parent === undefined || parent === null || parent === "" || isKey(parent))) {
      refuse(op, "parent: key of a node");
    }
    if (!isKey(insertOf(op).id)) refuse(op, "id: a text");
    if (!Object.keys(value).every(isPath)) refuse(op, "members are properties");
    if (!optional(isKeys)(value.children)) refuse(op, "children: a list of keys");
    if (!optional(isString)(value.tag) || !optional(isString)(value.name)) {
      refuse(op, "tag and name are texts");
    }
  }
}

function validateTextOp(op) {
  const { otype, id, value, rm, path } = op;
  if (RESERVED_PATHS.has(path) || ["children", "name", "tag", "."].includes(path)) {
    refuse(op, `path: ${path} is no text`);
  }
  const ranges = isArray(rm) && rm.every(isRange);
  if (otype === "text.delete") {
    if (!ranges) refuse(op, "rm: a list of [id, count]");
    return;
  }
  if (otype === "text.init") {
    if (!optional(isString)(value)) refuse(op, "value: a text");
    if (!optional(isId)(id)) refuse(op, "id: session:number");
    return;
  }
  if (otype === "text.replace" && !ranges) refuse(op, "rm: a list of [id, count]");
  if (!(isId(id) || (id === undefined && value?.[1] === ""))) refuse(op, "id: session:number");
  const fits =
    isArray(value) &&
    value.length === 2 &&
    (value[0] === null || isId(value[0])) &&
    isString(value[1]);
  if (!fits) refuse(op, "value: [anchor or null, text]");
}

const isMessageId = (value) => named(value, ID_CHARS_MAX);
const utf8 = new TextEncoder();

const ALIASES = { client: "sessionId", lt: "lamportTime", ts: "timestamp" };

/** A message in its long names; it may come in the short ones of the wire. */
function longNames(message) {
  const named = Object.entries(message).map(([name, value]) => [ALIASES[name] ?? name, value]);
  const long = Object.fromEntries(named);
  if (!isArray(long.ops)) return long;
  const ops = long.ops.map((op) =>
    isObject(op) && Object.hasOwn(op, "ot") ? { otype: op.ot, ...op } : op,
  );
  return { ...long, ops };
}

/** Whether a value may name a session. */
export const isSession = (value) =>
  typeof value === "string" && /^[A-Za-z0-9._@-]{1,64}$/.test(value) && value !== "@init";

/** Throw RtcError where the server would refuse a message whatever the scene is. */
export function validateMessage(message) {
  const { id, sessionId, clock = {}, lamportTime, timestamp = 0, ops } = longNames(message);
  const need = (valid, what) => {
    if (!valid) throw new RtcError("invalid_message", what);
  };
  need(isMessageId(id), `id: 1 to ${ID_CHARS_MAX} characters`);
  need(isSession(sessionId), "sessionId: 1 to 64 of A-Z a-z 0-9 . _ @ -");
  need(isCount(lamportTime), "lamportTime: a whole number from 0");
  need(isNumber(timestamp), "timestamp: milliseconds");
  const counters = isObject(clock) && Object.entries(clock);
  need(
    counters && counters.every(([name, count]) => isSession(name) && isCount(count)),
    "clock: an object of counters by session",
  );
  need(
    isArray(ops) && ops.length > 0 && ops.length <= OPS_MAX,
    `a message has 1 to ${OPS_MAX} operations`,
  );
  for (const op of ops) {
    validateOp(op);
    if (TEXT_OPS.test(op.otype) && op.id !== undefined && parseTextId(op.id)[0] !== sessionId) {
      refuse(op, `id: characters of ${sessionId} alone`);
    }
  }
  const metas = ops.filter(isMeta).length;
  if (metas > 0 && metas < ops.length) {
    throw new RtcError("invalid_op", "undo and other operations do not mix");
  }
  const size = utf8.encode(JSON.stringify(message)).length;
  if (size > MESSAGE_BYTES_MAX) {
    throw new RtcError("too_large", `a message of ${size} bytes; at most ${MESSAGE_BYTES_MAX}`);
  }
}
