/**
 * The Holdfast client for browsers and Node: one plain ES module, no build, no dependency.
 *
 *   import { EntityStore, SyncClient, followScope } from "/holdfast.js";
 *   const client = new SyncClient("/api/sync");
 *   const store = new EntityStore();
 *   const follow = followScope(client, "run:r1", store);
 *   store.subscribe("run:r1", (update) => console.log(update.seq, update.keys));
 *   await client.publish("run:r1", {
 *     kind: "patch",
 *     entities: [{ key: "note:1", patches: [{ op: "appendText", path: "/text", delta: "h" }] }],
 *   });
 *
 * From the bottom up: errors, keys, canonical JSON and hashes, patches, ScopeCursors, EntityStore,
 * the outbox, SyncClient, followScope. The same test vectors hold this file and the server
 * together.
 *
 * Words: a scope is the unit of order; its ledger numbers envelopes 1, 2, 3 without gaps (`seq`). A
 * cursor is the seq of the last envelope a reader has taken, 0 for none. An epoch names one
 * unbroken history of a scope.
 */

export const VERSION = "0.1.0";

// --- errors --------------------------------------------------------------------------------------

/** Base of every error thrown on purpose; `code` is a stable word. */
export class HoldfastError extends Error {
  constructor(code, message) {
    super(message || code);
    this.name = new.target.name;
    this.code = code;
  }
}

/** Patch number `index` (from 0) cannot be applied; `reason` is a word of the protocol. */
export class PatchError extends HoldfastError {
  constructor(index, reason, message) {
    super("patch_failed", `patch ${index}: ${message}`);
    this.index = index;
    this.reason = reason;
  }
}

/** The server refused a subscription or a view; `retryable` says whether to come again. */
export class SyncError extends HoldfastError {
  constructor(code, message, { retryable = false, retryAfterMs = null, status = null } = {}) {
    super(code, message);
    this.retryable = retryable;
    this.retryAfterMs = retryAfterMs;
    this.status = status;
  }
}

// --- keys ----------------------------------------------------------------------------------------

const SCOPE_BYTES_MAX = 200;
const ENTITY_REST_BYTES_MAX = 900;
const RESERVED_SCOPE_KINDS = new Set(["strata", "keep", "rtc", "para"]);
// With the u flag a surrogate in a class matches only a lone one.
const UNFIT = /[\u0000-\u001f\u007f-\u009f\ud800-\udfff]/u;
const ENTITY_KIND = /^[A-Za-z][A-Za-z0-9_-]{0,31}$/;
const utf8 = new TextEncoder();

const fits = (text, bytes) =>
  text !== "" &&
  !UNFIT.test(text) &&
  (text.length * 3 <= bytes || utf8.encode(text).length <= bytes);

/** Return when `scope` is a scope key that may be written here; throw `bad_scope` otherwise. */
export function checkScope(scope) {
  if (typeof scope !== "string" || !fits(scope, SCOPE_BYTES_MAX)) {
    throw new HoldfastError(
      "bad_scope",
      "a scope key has 1 to 200 bytes and no control characters",
    );
  }
  const colon = scope.indexOf(":");
  if (colon >= 0 && RESERVED_SCOPE_KINDS.has(scope.slice(0, colon))) {
    throw new HoldfastError("bad_scope", "scopes of this kind belong to another dialect");
  }
}

/** `[kind, rest]` of a scope key, split at the first colon; kind is "" where there is none. */
export function parseScopeKey(scope) {
  checkScope(scope);
  const colon = scope.indexOf(":");
  return colon < 0 ? ["", scope] : [scope.slice(0, colon), scope.slice(colon + 1)];
}

/** `kind:rest`; throws `bad_scope` where that would not parse back to the same parts. */
export function createScopeKey(kind, rest) {
  if (kind === "" || kind.includes(":")) {
    throw new HoldfastError("bad_scope", "the kind of a scope key is not empty and has no colon");
  }
  checkScope(`${kind}:${rest}`);
  return `${kind}:${rest}`;
}

/** `[kind, rest]` of an entity key; throws `bad_envelope` outside the grammar. */
export function parseEntityKey(key) {
  const colon = typeof key === "string" ? key.indexOf(":") : -1;
  const kind = colon < 0 ? "" : key.slice(0, colon);
  if (!ENTITY_KIND.test(kind) || !fits(key.slice(colon + 1), ENTITY_REST_BYTES_MAX)) {
    throw new HoldfastError(
      "bad_envelope",
      "an entity key is kind:rest, kind one ASCII letter and up to 31 of A-Z a-z 0-9 _ -, " +
        "rest 1 to 900 bytes without control characters",
    );
  }
  return [kind, key.slice(colon + 1)];
}

/** `kind:rest`; throws `bad_envelope` where that is no entity key. */
export function createEntityKey(kind, rest) {
  const key = `${kind}:${rest}`;
  if (parseEntityKey(key)[0] !== kind) {
    throw new HoldfastError("bad_envelope", "the kind of an entity key has no colon");
  }
  return key;
}

// --- canonical JSON and hashes -------------------------------------------------------------------

const SURROGATE = /[\ud800-\udfff]/;

/** Order of texts by code point, as in Python; JavaScript's own order is by UTF-16 unit. */
export function compareCodePoints(a, b) {
  for (let i = 0; i < a.length && i < b.length;) {
    const left = a.codePointAt(i);
    const right = b.codePointAt(i);
    if (left !== right) return left - right;
    i += left > 0xffff ? 2 : 1;
  }
  return a.length - b.length;
}

/**
 * The one JSON text of a value: members sorted by code point, no spaces, numbers and escapes as
 * JSON.stringify writes them.
 */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const names = Object.keys(value);
  // The two orders differ only where surrogates are.
  if (names.some((name) => SURROGATE.test(name))) names.sort(compareCodePoints);
  else names.sort();
  return `{${names.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join(",")}}`;
}

/** The version of a record: "h1_" and 32 hex digits of SHA-256 over its canonical text. */
export function hashRecordVersion(record) {
  return `h1_${sha256(canonical(record)).slice(0, 32)}`;
}

/** The hash of `[key, version]` pairs, in any order: SHA-256 over sorted `key version LF` lines. */
export function snapshotHash(entities) {
  const lines = [...entities]
    .sort(([a], [b]) => compareCodePoints(a, b))
    .map(([key, version]) => `${key} ${version}\n`);
  return `h1_${sha256(lines.join("")).slice(0, 32)}`;
}

/** The first 32 bits of the fractional parts of `root` of the first `count` primes (FIPS 180-4). */
function primeRoots(count, root) {
  const words = [];
  for (let n = 2; words.length < count; n++) {
    let prime = true;
    for (let d = 2; d * d <= n && prime; d++) prime = n % d !== 0;
    if (prime) words.push(((n ** root % 1) * 2 ** 32) | 0);
  }
  return words;
}

const SHA256_START = primeRoots(8, 1 / 2);
const SHA256_ROUND = Int32Array.from(primeRoots(64, 1 / 3));

/**
 * SHA-256 of a text as UTF-8, in 64 hex digits (FIPS 180-4). WebCrypto would be asynchronous, and
 * is absent on pages that came over plain http.
 */
export function sha256(text) {
  const message = utf8.encode(text);
  const padded = new Uint8Array(((message.length + 72) >> 6) << 6);
  padded.set(message);
  padded[message.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(message.length / 2 ** 29));
  view.setUint32(padded.length - 4, message.length << 3);
  const state = Int32Array.from(SHA256_START);
  const words = new Int32Array(64);
  for (let block = 0; block < padded.length; block += 64) {
    for (let i = 0; i < 16; i++) words[i] = view.getInt32(block + 4 * i);
    sha256Block(state, words);
  }
  return Array.from(state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
}

function sha256Block(state, words) {
  for (let i = 16; i < 64; i++) {
    const x = words[i - 15];
    const y = words[i - 2];
    const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    words[i] = (words[i - 16] + s0 + words[i - 7] + s1) | 0;
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; i++) {
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + SHA256_ROUND[i] + words[i]) | 0;
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + t1) | 0;
    d = c;
    c = b;
    b = a;
    a = (t1 + t2) | 0;
  }
  [a, b, c, d, e, f, g, h].forEach((word, i) => {
    state[i] = (state[i] + word) | 0;
  });
}

// --- patches -------------------------------------------------------------------------------------

const NESTING_MAX = 64;
const POINTER_CHARS_MAX = 1024;
const UNCHANGED = Symbol("unchanged"); // a step's answer when there is nothing to write

class Refused extends Error {
  constructor(reason, message) {
    super(message);
    this.reason = reason;
  }
}

function refuse(reason, message) {
  throw new Refused(reason, message);
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isContainer = (value) => value !== null && typeof value === "object";
/** A member of the object itself: what it inherits (`toString`, `__proto__`) is absent. */
const own = (object, name) => (Object.hasOwn(object, name) ? object[name] : undefined);

function put(container, key, value) {
  if (key === "__proto__") {
    // Plain assignment would change the prototype instead of adding a member.
    const property = { value, writable: true, enumerable: true, configurable: true };
    Object.defineProperty(container, key, property);
  } else {
    container[key] = value;
  }
}

/**
 * The record after all `patches` in order; `record` may be null or undefined for an absent entity.
 *
 * Neither the record nor the patches are changed: containers on a patched path are copied, the rest
 * is shared. All or nothing: throws PatchError at the first patch that cannot be applied. Checks
 * come in the server's order: the patch is an object, `op`, `path`, the way to the target, the
 * operation's fields, the target.
 */
export function applyEntityPatches(record, patches) {
  const owned = new Set(); // the nested containers made in this call
  let root = { ...record };
  let index = 0;
  try {
    for (const patch of patches) {
      root = applyPatch(root, patch, owned);
      index++;
    }
  } catch (error) {
    if (error instanceof Refused) throw new PatchError(index, error.reason, error.message);
    throw error;
  }
  return root;
}

function applyPatch(root, patch, owned) {
  if (!isObject(patch)) refuse("bad_field", "a patch is an object");
  const op = own(patch, "op");
  const action = typeof op === "string" ? STEPS.get(op) : undefined;
  if (action === undefined) refuse("unknown_op", `op is one of ${[...STEPS.keys()].join(" ")}`);
  const path = own(patch, "path");
  if (typeof path !== "string") refuse("bad_field", "path is a string");
  const tokens = pointerTokens(path);
  const [step, create] = action;
  if (tokens.length > 0) {
    applyBelow(root, tokens, patch, step, create, owned);
    return root;
  }
  if (step === unset) refuse("root_not_object", "the record itself cannot be unset");
  const made = step(root, patch, owned, NESTING_MAX);
  if (!isObject(made)) refuse("root_not_object", "the record must stay an object");
  return { ...made };
}

function pointerTokens(path) {
  if (path === "") return [];
  if (path[0] !== "/") refuse("bad_pointer", 'path is "" or begins with "/"');
  if (path.length > POINTER_CHARS_MAX && [...path].length > POINTER_CHARS_MAX) {
    refuse("bad_pointer", `path has more than ${POINTER_CHARS_MAX} characters`);
  }
  const tokens = path.slice(1).split("/");
  if (tokens.length > NESTING_MAX) refuse("bad_pointer", `path goes deeper than ${NESTING_MAX}`);
  if (!path.includes("~")) return tokens;
  if (/~(?![01])/.test(path)) refuse("bad_pointer", "~ is followed by 0 or 1");
  return tokens.map((token) => token.replaceAll("~1", "/").replaceAll("~0", "~"));
}

function position(token, length) {
  if (!/^(0|[1-9][0-9]*)$/.test(token)) refuse("bad_index", "an index is digits, no leading zero");
  if (token.length > 16 || Number(token) >= length) {
    refuse("index_out_of_range", `the list has ${length} items`);
  }
  return Number(token);
}

function takeOver(container, owned) {
  if (owned.has(container)) return container;
  const copy = Array.isArray(container) ? container.slice() : { ...container };
  owned.add(copy);
  return copy;
}

/**
 * The container below `token`, ready to be changed; undefined where it is absent and not wanted.
 */
function descend(container, token, owned, create) {
  const key = Array.isArray(container) ? position(token, container.length) : token;
  let child = own(container, key) ?? null;
  if (child === null) {
    if (!create) return undefined;
    child = {};
    owned.add(child);
  } else if (isContainer(child)) {
    child = takeOver(child, owned);
  } else {
    refuse("type_mismatch", "the path leads through a value that is no object and no list");
  }
  put(container, key, child);
  return child;
}

function applyBelow(root, tokens, patch, step, create, owned) {
  const room = NESTING_MAX - tokens.length;
  let container = root;
  for (const token of tokens.slice(0, -1)) {
    container = descend(container, token, owned, create);
    if (container === undefined) {
      step(null, patch, owned, room); // nothing there: the operation says whether that is an error
      return;
    }
  }
  let key = tokens[tokens.length - 1];
  if (step === unset) {
    if (Array.isArray(container)) {
      refuse("type_mismatch", "unset removes object members; removeAt removes list items");
    }
    delete container[key];
    return;
  }
  if (Array.isArray(container)) key = position(key, container.length);
  const made = step(own(container, key) ?? null, patch, owned, room);
  if (made !== UNCHANGED) put(container, key, made);
}

function checkNesting(container, room) {
  if (room < 1) refuse("bad_field", `the record would nest deeper than ${NESTING_MAX}`);
  for (const child of Array.isArray(container) ? container : Object.values(container)) {
    if (isContainer(child)) checkNesting(child, room - 1);
  }
}

function valueField(patch, name, room) {
  const value = own(patch, name);
  if (value === undefined) refuse("bad_field", `${name} is missing`);
  if (isContainer(value)) checkNesting(value, room);
  return value;
}

function textField(patch, name, fallback) {
  const value = own(patch, name) === undefined ? fallback : patch[name];
  if (typeof value !== "string") refuse("bad_field", `${name} is a string`);
  return value;
}

function countField(patch, name, fallback) {
  const value = own(patch, name) === undefined ? fallback : patch[name];
  if (!Number.isInteger(value)) refuse("bad_field", `${name} is an integer`);
  return value;
}

function listField(patch, name, room) {
  const value = own(patch, name);
  if (!Array.isArray(value)) refuse("bad_field", `${name} is a list`);
  checkNesting(value, room);
  return value;
}

function textTarget(target) {
  if (target !== null && typeof target !== "string")
    refuse("type_mismatch", "the target is no text");
  return target ?? "";
}

function listTarget(target, owned) {
  if (target !== null && !Array.isArray(target)) refuse("type_mismatch", "the target is no list");
  return takeOver(target ?? [], owned);
}

const outOfRange = (length, what) => refuse("index_out_of_range", `there are ${length} ${what}`);

// A step: (target or null, patch, owned, containers that may nest here) -> new target or UNCHANGED.

const set = (target, patch, owned, room) => valueField(patch, "value", room);

const unset = () => UNCHANGED;

const merge = (target, patch, owned, room) => merged(target, valueField(patch, "value", room));

/** RFC 7396, section 2; copies what it changes. */
function merged(target, change) {
  if (!isObject(change)) return change;
  const result = isObject(target) ? { ...target } : {};
  for (const [name, value] of Object.entries(change)) {
    if (value === null) delete result[name];
    else put(result, name, merged(own(result, name) ?? null, value));
  }
  return result;
}

function appendText(target, patch) {
  const delta = textField(patch, "delta");
  return textTarget(target) + delta;
}

function spliceText(target, patch) {
  const start = countField(patch, "index");
  const end = start + countField(patch, "deleteCount", 0);
  const insertion = textField(patch, "insert", "");
  const text = textTarget(target);
  // Positions count code points; without surrogates these are the units of a JavaScript string.
  const points = SURROGATE.test(text) ? [...text] : null;
  const length = points === null ? text.length : points.length;
  if (!(0 <= start && start <= end && end <= length)) outOfRange(length, "code points");
  if (points === null) return text.slice(0, start) + insertion + text.slice(end);
  return points.slice(0, start).join("") + insertion + points.slice(end).join("");
}

function increment(target, patch) {
  const by = own(patch, "by") === undefined ? 1 : patch.by;
  if (typeof by !== "number") refuse("bad_field", "by is a number");
  if (target !== null && typeof target !== "number") {
    refuse("type_mismatch", "the target is no number");
  }
  const result = (target ?? 0) + by;
  if (!Number.isFinite(result)) refuse("not_finite", "the sum is no finite number");
  return result;
}

function append(target, patch, owned, room) {
  const values = listField(patch, "values", room);
  const items = listTarget(target, owned);
  for (const value of values) items.push(value); // spreading a long list would exhaust the stack
  return items;
}

function insert(target, patch, owned, room) {
  const index = countField(patch, "index");
  const value = valueField(patch, "value", room - 1);
  if (room < 1) refuse("bad_field", `the record would nest deeper than ${NESTING_MAX}`);
  const items = listTarget(target, owned);
  if (!(0 <= index && index <= items.length)) outOfRange(items.length, "items");
  items.splice(index, 0, value);
  return items;
}

function removeAt(target, patch, owned) {
  const start = countField(patch, "index");
  const end = start + countField(patch, "count", 1);
  if (target === null) refuse("index_out_of_range", "there is no list");
  const items = listTarget(target, owned);
  if (!(0 <= start && start <= end && end <= items.length)) outOfRange(items.length, "items");
  items.splice(start, end - start);
  return items;
}

function removeValue(target, patch, owned) {
  const unwanted = canonical(valueField(patch, "value", NESTING_MAX));
  if (target === null) return UNCHANGED;
  const items = listTarget(target, owned).filter((item) => canonical(item) !== unwanted);
  owned.add(items);
  return items;
}

function addToSet(target, patch, owned, room) {
  const values = listField(patch, "values", room);
  const items = listTarget(target, owned);
  const held = new Set(items.map(canonical)); // equal texts are deep equality, in linear time
  for (const value of values) {
    const text = canonical(value);
    if (held.has(text)) continue;
    held.add(text);
    items.push(value);
  }
  return items;
}

function move(target, patch, owned) {
  const source = countField(patch, "from");
  const goal = countField(patch, "to");
  if (target === null) refuse("index_out_of_range", "there is no list");
  const items = listTarget(target, owned);
  const valid = (index) => 0 <= index && index < items.length;
  if (!valid(source) || !valid(goal)) outOfRange(items.length, "items");
  const [item] = items.splice(source, 1);
  items.splice(goal, 0, item);
  return items;
}

const STEPS = new Map([
  // op: [what it does, whether it creates parents]
  ["set", [set, true]],
  ["unset", [unset, false]],
  ["merge", [merge, true]],
  ["appendText", [appendText, true]],
  ["spliceText", [spliceText, true]],
  ["increment", [increment, true]],
  ["append", [append, true]],
  ["insert", [insert, true]],
  ["removeAt", [removeAt, false]],
  ["removeValue", [removeValue, false]],
  ["addToSet", [addToSet, true]],
  ["move", [move, false]],
]);

// --- cursors -------------------------------------------------------------------------------------

/**
 * How far a reader has come in each scope. A cursor grows by exactly one, even when taking the
 * envelope failed; only `beginScope` moves it anywhere else.
 */
export class ScopeCursors {
  #cursors = new Map();

  /** Put the cursor of `scope` at `seq`, forward or back: the one explicit reset. */
  beginScope(scope, seq, epoch = null) {
    if (!Number.isSafeInteger(seq) || seq < 0) throw new RangeError(`cursor ${seq} of ${scope}`);
    this.#cursors.set(scope, { seq, epoch: epoch || null });
  }

  /** Drop the cursor; the scope counts as never begun. */
  forgetScope(scope) {
    this.#cursors.delete(scope);
  }

  /** `{seq, epoch}`, or null if the scope was never begun and nothing was taken. */
  cursor(scope) {
    const held = this.#cursors.get(scope);
    return held === undefined ? null : { ...held };
  }

  /** Seq of the last envelope taken, 0 if none. */
  scopeLastSeq(scope) {
    return this.#cursors.get(scope)?.seq ?? 0;
  }

  /** The history the cursor belongs to, null if unknown. */
  scopeEpoch(scope) {
    return this.#cursors.get(scope)?.epoch ?? null;
  }

  /**
   * Call `take` if `seq` is next: "applied"; else "duplicate" or "gap", and nothing has changed.
   * The cursor moves first, so what `take` throws passes through and leaves the cursor at `seq`.
   */
  ingestSequenced(scope, seq, take) {
    const last = this.scopeLastSeq(scope);
    if (seq <= last) return "duplicate";
    if (seq > last + 1) return "gap";
    this.#cursors.set(scope, { seq, epoch: this.scopeEpoch(scope) });
    if (take !== undefined) take();
    return "applied";
  }
}

// --- the store -----------------------------------------------------------------------------------

/**
 * Entities of one or more scopes, folded from their envelopes, with listeners.
 *
 * An entry that cannot be applied (this copy and the server's disagree) marks its entity broken and
 * nothing else: the cursor goes on. A broken entity heals with its next `value`, `deleted`,
 * `snapshot` or `seed`. Records are shared, not copied: treat them as read-only.
 *
 * A change is `{scope, seq, key, value}`, value undefined where the entity is gone. An update is
 * `{scope, seq, kind, keys, broken, classes}`; kind is the envelope's, or "seed".
 */
export class EntityStore {
  #scopes = new Map(); // scope: {entities: Map of {value, version}, broken: Map of Error}
  #listeners = new Map(); // topic (its parts joined by NUL, which no key holds): boxes

  /** `cursors` may be shared with other readers. */
  constructor(cursors = new ScopeCursors()) {
    this.cursors = cursors;
  }

  /**
   * Take one envelope if it is the scope's next: "applied", else "duplicate" or "gap". Listeners
   * run after the whole envelope is in; what they throw comes out as one AggregateError at the end.
   */
  ingest(envelope) {
    const { scope, seq } = envelope;
    return this.cursors.ingestSequenced(scope, seq, () => this.#take(scope, seq, envelope));
  }

  /** Replace all of a scope by a view's `{key, value, version?}` items, read at `seq`. */
  seed(scope, entities, { seq, epoch = null }) {
    const before = this.#scope(scope).entities;
    const after = new Map();
    for (const { key, value, version } of entities) after.set(key, { value, version });
    this.#scopes.set(scope, { entities: after, broken: new Map() });
    this.cursors.beginScope(scope, seq, epoch);
    const gone = [...before.keys()].filter((key) => !after.has(key));
    this.#notify({
      scope,
      seq,
      kind: "seed",
      keys: [...after.keys(), ...gone],
      broken: [],
      classes: [],
    });
  }

  /** The record as this store knows it, undefined if absent; `broken` says how good it is. */
  get(scope, key) {
    return this.#scopes.get(scope)?.entities.get(key)?.value;
  }

  /** `[key, record]` pairs of a scope sorted by key, all or those of one kind. */
  items(scope, kind = null) {
    const held = this.#scopes.get(scope);
    if (held === undefined) return [];
    return [...held.entities]
      .filter(([key]) => kind === null || kindOf(key) === kind)
      .sort(([a], [b]) => compareCodePoints(a, b))
      .map(([key, entity]) => [key, entity.value]);
  }

  /** Number of entities present. */
  count(scope) {
    return this.#scopes.get(scope)?.entities.size ?? 0;
  }

  /** Map of entity key to Error, for entities whose record is not to be trusted. */
  broken(scope) {
    return new Map(this.#scopes.get(scope)?.broken);
  }

  /** Equal to the server's at an equal (epoch, seq), or the two have diverged. */
  snapshotHash(scope) {
    const { entities } = this.#scope(scope);
    for (const entity of entities.values()) entity.version ??= hashRecordVersion(entity.value);
    return snapshotHash([...entities].map(([key, entity]) => [key, entity.version]));
  }

  /** Hear of every change of one entity; returns the function that ends it. */
  subscribeEntity(scope, key, listener) {
    return this.#listen(`entity\0${scope}\0${key}`, listener);
  }

  /** Hear of every change of the entities `kind:…`. */
  subscribeKind(scope, kind, listener) {
    return this.#listen(`kind\0${scope}\0${kind}`, listener);
  }

  /** Hear of every envelope taken, and of every seed. */
  subscribe(scope, listener) {
    return this.#listen(`scope\0${scope}`, listener);
  }

  #scope(scope) {
    let held = this.#scopes.get(scope);
    if (held === undefined) {
      held = { entities: new Map(), broken: new Map() };
      this.#scopes.set(scope, held);
    }
    return held;
  }

  #take(scope, seq, envelope) {
    const held = this.#scope(scope);
    const kind = envelope.kind ?? "patch";
    const entries = envelope.entities ?? [];
    const keys = entries.map((entry) => entry.key);
    if (kind === "snapshot") {
      const kept = new Set(keys);
      for (const key of held.entities.keys()) if (!kept.has(key)) keys.push(key);
      held.entities.clear();
      held.broken.clear();
    }
    const broken = entries.filter((entry) => !applyEntry(held, entry)).map((entry) => entry.key);
    this.#notify({ scope, seq, kind, keys, broken, classes: envelope.classes ?? [] });
  }

  #listen(topic, listener) {
    const box = [listener]; // told apart by identity where one function listens twice
    this.#listeners.set(topic, [...(this.#listeners.get(topic) ?? []), box]);
    return () => {
      const left = (this.#listeners.get(topic) ?? []).filter((other) => other !== box);
      if (left.length > 0) this.#listeners.set(topic, left);
      else this.#listeners.delete(topic);
    };
  }

  #notify(update) {
    const errors = [];
    const call = (topic, value) => {
      for (const [listener] of this.#listeners.get(topic) ?? []) {
        try {
          listener(value);
        } catch (error) {
          errors.push(error); // one listener's failure is not the others'
        }
      }
    };
    const { scope, seq } = update;
    if (this.#listeners.size > 0) {
      for (const key of update.keys) {
        const change = { scope, seq, key, value: this.get(scope, key) };
        call(`entity\0${scope}\0${key}`, change);
        call(`kind\0${scope}\0${kindOf(key)}`, change);
      }
      call(`scope\0${scope}`, update);
    }
    if (errors.length > 0) throw new AggregateError(errors, `listeners of ${scope} at ${seq}`);
  }
}

const kindOf = (key) => key.slice(0, Math.max(0, key.indexOf(":")));

/** Apply one entity entry; false (and the entity broken) where it does not fit this copy. */
function applyEntry(held, entry) {
  const { key, version } = entry;
  if (entry.deleted) {
    held.entities.delete(key);
  } else if (Object.hasOwn(entry, "value")) {
    held.entities.set(key, { value: entry.value, version });
  } else {
    if (held.broken.has(key)) return false; // its base is wrong: only a whole value heals it
    try {
      const value = applyEntityPatches(held.entities.get(key)?.value, entry.patches);
      held.entities.set(key, { value, version });
      return true;
    } catch (error) {
      held.broken.set(key, error);
      return false;
    }
  }
  held.broken.delete(key);
  return true;
}

// --- publishes on their way ----------------------------------------------------------------------

const FRAME_BYTES_MAX = 262_144;
const PUBLISH_ENVELOPES_MAX = 512;
const WINDOW_FRAMES = 64;
const WINDOW_BYTES = 2 << 20;
const ATTEMPTS_MAX = 10;
const RETRYABLE_RESULTS = new Set([
  "busy", "rate_limited", "storage", "closed", "try_later", "fenced",
]);

/** 32 random hex digits; crypto.randomUUID would be absent on pages that came over plain http. */
export function newEventId() {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Publishes split into frames, sent, repeated until answered. Every envelope put in gets exactly
 * one result, in its place. A repeat carries the same event ids, so it cannot store anything twice.
 * At most WINDOW_FRAMES frames and WINDOW_BYTES bytes are unanswered at a time.
 */
class Outbox {
  #lastId = 0;
  #waiting = [];
  #later = new Set(); // refused as busy, each with a timer of its owner
  #sent = new Map();
  #sentBytes = 0;

  get size() {
    return this.#waiting.length + this.#later.size + this.#sent.size;
  }

  /**
   * Queue envelopes that carry an `eventId`; `settle(results)` is called when all are answered.
   * `options` are further members of the frame, as JSON text.
   */
  put(scope, envelopes, options, settle) {
    const ticket = { results: new Array(envelopes.length), missing: envelopes.length, settle };
    const room = FRAME_BYTES_MAX - utf8.encode(JSON.stringify(scope)).length - 120;
    const bodies = envelopes.map((envelope) => JSON.stringify(envelope)); // may throw
    let items = [];
    let bytes = 0;
    bodies.forEach((body, slot) => {
      const item = { slot, body, eventId: envelopes[slot].eventId };
      const need = utf8.encode(body).length + 1;
      if (need > room) {
        const message = `an envelope of ${need} bytes does not fit a frame`;
        this.#settle(ticket, item, { code: "too_large", message });
        return;
      }
      if (items.length === PUBLISH_ENVELOPES_MAX || (items.length > 0 && bytes + need > room)) {
        this.#waiting.push(this.#frame(scope, options, ticket, items, bytes));
        items = [];
        bytes = 0;
      }
      items.push(item);
      bytes += need;
    });
    if (items.length > 0) this.#waiting.push(this.#frame(scope, options, ticket, items, bytes));
    if (envelopes.length === 0) settle([]);
  }

  /** Texts of the frames to send now; they count as sent. */
  takeReady() {
    const texts = [];
    while (this.#waiting.length > 0 && this.#sent.size < WINDOW_FRAMES) {
      const frame = this.#waiting[0];
      if (this.#sent.size > 0 && this.#sentBytes + frame.bytes > WINDOW_BYTES) break;
      this.#waiting.shift();
      this.#sent.set(frame.id, frame);
      this.#sentBytes += frame.bytes;
      const head = `{"type":"publish","id":${frame.id},"scope":${JSON.stringify(frame.scope)}`;
      const bodies = frame.items.map((item) => item.body).join(",");
      texts.push(`${head}${frame.options},"envelopes":[${bodies}]}`);
    }
    return texts;
  }

  /** No answer will come to what was sent: it goes out again, first, in its order. */
  disconnected() {
    this.#waiting.unshift(...[...this.#sent.values()].sort((a, b) => a.id - b.id));
    this.#sent.clear();
    this.#sentBytes = 0;
  }

  /**
   * Take a `published` frame. Returns null, or what is to be put back by `repeat` after `delayMs`.
   */
  answered({ id, results, epoch, durableSeq }) {
    const frame = this.#sent.get(id);
    if (frame === undefined) return null;
    this.#sent.delete(id);
    this.#sentBytes -= frame.bytes;
    const again = [];
    let delayMs = Math.min(5000, 100 * 2 ** frame.attempts);
    frame.items.forEach((item, i) => {
      const result = results?.[i] ?? { code: "internal", message: "no result in the answer" };
      if (RETRYABLE_RESULTS.has(result.code) && frame.attempts + 1 < ATTEMPTS_MAX) {
        again.push(item);
        delayMs = Math.max(delayMs, result.retryAfterMs ?? 0);
      } else {
        const extra = durableSeq === undefined ? { epoch } : { epoch, durableSeq };
        this.#settle(
          frame.ticket,
          item,
          result.code === undefined ? { ...result, ...extra } : result,
        );
      }
    });
    if (again.length === 0) return null;
    const retry = this.#frame(frame.scope, frame.options, frame.ticket, again, frame.bytes);
    retry.attempts = frame.attempts + 1;
    this.#later.add(retry);
    return { frame: retry, delayMs };
  }

  repeat(frame) {
    if (this.#later.delete(frame)) this.#waiting.unshift(frame);
  }

  /** The server refused the frame as a whole. */
  refused(id, code, message) {
    const count = this.#sent.get(id)?.items.length ?? 0;
    return this.answered({ id, results: new Array(count).fill({ code, message }) });
  }

  /** Give up on everything: each missing result becomes this refusal. */
  refuseAll(code, message) {
    const frames = [...this.#sent.values(), ...this.#waiting, ...this.#later];
    this.#sent.clear();
    this.#sentBytes = 0;
    this.#waiting = [];
    this.#later.clear();
    for (const { ticket, items } of frames) {
      for (const item of items) this.#settle(ticket, item, { code, message });
    }
  }

  #frame(scope, options, ticket, items, bytes) {
    return { id: ++this.#lastId, scope, options, ticket, items, bytes, attempts: 0 };
  }

  #settle(ticket, item, result) {
    ticket.results[item.slot] = { eventId: item.eventId, ...result };
    ticket.missing--;
    if (ticket.missing === 0) ticket.settle(ticket.results);
  }
}

// --- the client ----------------------------------------------------------------------------------

const PING_EVERY_MS = 25_000;
const PONGS_MISSED_MAX = 2;
const CONNECT_WITHIN_MS = 15_000;
const DELAY_FIRST_S = 0.5;
const DELAY_MAX_S = 30;
const GAPS_MAX = 3; // replays from one cursor that brought nothing; then a snapshot is needed
const CALM_AFTER_MS = 60_000;
// A margin below the server's 200 control frames a second, burst 400.
const CONTROL_BURST = 300;
const CONTROL_PER_S = 150;
const VIEW_RESTARTS_MAX = 5;
const RETRYABLE_SCOPE_CODES = new Set([
  "moved",
  "internal",
  "busy",
  "rate_limited",
  "storage",
  "closed",
  "unavailable",
]);

/** Milliseconds before attempt `attempt` (from 0); `random` in [0, 1) spreads the crowd. */
export function reconnectDelayMs(attempt, random) {
  return 1000 * Math.min(DELAY_MAX_S, DELAY_FIRST_S * 2 ** attempt) * (0.5 + random / 2);
}

/** Base and socket address from "http://host", "ws://host/api/sync/socket", "/api/sync"… */
function endpoints(url) {
  const { protocol, host, pathname } = new URL(url, globalThis.location?.href);
  const secure = protocol === "https:" || protocol === "wss:";
  const path = pathname.replace(/\/+$/, "").replace(/\/socket$/, "") || "/api/sync";
  return {
    base: `${secure ? "https" : "http"}://${host}${path}`,
    socket: `${secure ? "wss" : "ws"}://${host}${path}/socket`,
  };
}

/**
 * One connection to a server, on which all scopes are read and written.
 *
 * It opens with the first subscription or publish, comes back by itself after a loss (0.5 s
 * doubling to 30 s, spread at random), subscribes again at the cursors and repeats unanswered
 * publishes. A consumer is handed contiguous envelopes only: one that is ahead asks the server for
 * a replay.
 */
export class SyncClient {
  #base;
  #socketUrl;
  #options;
  #socket = null;
  #state = { name: "idle" };
  #stateListeners = new Set();
  #attempt = 0;
  #pongsMissed = 0;
  #timers = new Map(); // name: handle, of the connection: retry, ping, open, control
  #control = [];
  #allowance = CONTROL_BURST;
  #scopes = new Map();
  #outbox = new Outbox();

  /**
   * `url`: the server, its AsterQL base path or its socket, http(s) or ws(s), relative in browsers.
   *
   * Options: `token` (string, or a function that returns one or a promise, asked at every
   * connection), `tokenIn` ("frame", the default, sends it as first frame; "query" as `?token=`,
   * which proxies may log), `report(error)` for what callbacks throw (console.error), and, for
   * tests and for Node before 22, `WebSocket`, `fetch`, `random`, `setTimeout`, `clearTimeout`.
   */
  constructor(url, options = {}) {
    const { base, socket } = endpoints(url);
    this.#base = base;
    this.#socketUrl = socket;
    this.#options = {
      token: null,
      tokenIn: "frame",
      report: (error) => console.error(error),
      WebSocket: globalThis.WebSocket,
      fetch: (...args) => globalThis.fetch(...args),
      random: Math.random,
      setTimeout: (run, ms) => globalThis.setTimeout(run, ms),
      clearTimeout: (handle) => globalThis.clearTimeout(handle),
      ...options,
    };
    if (this.#options.WebSocket === undefined) {
      throw new HoldfastError("no_websocket", "there is no WebSocket here: pass one as an option");
    }
  }

  /**
   * `{name}`: "idle" (nothing to be connected for), "connecting", "open", "waiting" (with
   * `delayMs`, `attempt`, and the `code` and `reason` of the loss) or "closed".
   */
  get state() {
    return this.#state;
  }

  /** True while the socket is open. */
  get connected() {
    return this.#state.name === "open";
  }

  /** Hear of every change of `state`; returns the function that ends it. */
  onState(listener) {
    const box = [listener];
    this.#stateListeners.add(box);
    return () => this.#stateListeners.delete(box);
  }

  /** Do not wait for the next attempt, the network is back. */
  retryNow() {
    if (this.#state.name === "waiting") this.#connect();
  }

  /** End for good: consumers hear nothing more, missing publish results become `closed`. */
  close() {
    if (this.#state.name === "closed") return;
    for (const scope of this.#scopes.values()) {
      for (const consumer of scope.consumers) this.#retire(consumer);
    }
    this.#scopes.clear();
    this.#detach(1000, "closed");
    this.#setState({ name: "closed" });
    this.#outbox.refuseAll("closed", "the client was closed");
  }

  // -- consumers

  /**
   * Read a scope; returns the function that ends it. Any number of consumers may read one scope,
   * each at its own cursor; the connection reads it once.
   *
   * Options, all optional:
   * - `since`: seq of the last envelope the consumer has; without it, it reads from now on. `epoch`
   *   names the history that `since` belongs to.
   * - `snapshotFirst`: begin with `onSnapshotRequired` (reason "initial"), not at `since`.
   * - `onEnvelope(envelope)`: may return "gap" to have everything after its cursor again;
   *   `cursor()` then tells where that is. What it throws is reported, and the stream goes on.
   * - `onSubscribed(scope, {epoch, since, head, floor})`: the server reads for it, from `since` on.
   * - `onCaughtUp(scope, seq)`: what was stored has been delivered, from now on it is live.
   * - `onSnapshotRequired(scope, info)`: the cursor cannot go on, info is `{reason, epoch, head,
   *   floor}`. Returns `{seq, epoch}` to go on from, or a promise of it; where it throws it is
   *   called again later, unless the error says `retryable: false`. Without it such an end is an
   *   error.
   * - `onError(error)`: the subscription was refused for good and is over.
   * - `durable`: also hear, by `onDurable(scope, {epoch, seq})`, up to where entries are as safe as
   *   this server makes them.
   *
   * The returned function has `restart(seq, epoch)`, which moves the cursor, and `refresh()`, which
   * calls `onSnapshotRequired` (reason "refresh") while the stream goes on.
   */
  subscribe(scope, options = {}) {
    const { since = null, epoch = null, snapshotFirst = false } = options;
    if (this.#state.name === "closed") throw new SyncError("closed", "the client was closed");
    if (typeof scope !== "string") throw new HoldfastError("bad_scope", "a scope is a string");
    if (since !== null && !(Number.isSafeInteger(since) && since >= 0)) {
      throw new HoldfastError("bad_since", "since is an integer from 0");
    }
    const consumer = {
      scope, // its name
      on: options,
      cursor: since,
      epoch: epoch || null, // a scope nobody has written to has the epoch ""
      alive: true,
      resting: snapshotFirst, // waits for a new cursor
      recovering: false,
      recoveries: 0,
      timer: null,
      gapAt: -1,
      gaps: 0,
    };
    const held = this.#held(scope);
    held.consumers.add(consumer);
    const unsubscribe = () => this.#leave(consumer);
    unsubscribe.restart = (seq, newEpoch = null) => this.#restart(consumer, seq, newEpoch);
    unsubscribe.refresh = () => this.#recover(consumer, { reason: "refresh" });
    if (snapshotFirst) this.#recover(consumer, { reason: "initial" });
    else this.#join(held, consumer);
    this.#wake();
    return unsubscribe;
  }

  /**
   * Publish one envelope or a list of them; resolves to one result for each, in order: `{eventId,
   * seq, epoch}`, with `duplicate: true` where it was stored before, or `{eventId, code, message}`
   * with `entity`, `index` and `reason` where a patch failed.
   *
   * `eventId` is made where it is missing. What is unanswered when the connection is lost is sent
   * again, which is safe because of `eventId`; so are refusals for want of room, a bounded number
   * of times. `level: "replicated"` asks for an answer only when the bucket has the entries,
   * whatever the scope's own level is; `durable: true` adds `durableSeq` to the results.
   */
  publish(scope, envelopes, { durable = false, level = "local" } = {}) {
    const list = Array.isArray(envelopes) ? envelopes : [envelopes];
    const named = list.map((envelope) => ({
      kind: "patch",
      ...envelope,
      eventId: envelope.eventId ?? newEventId(),
    }));
    return new Promise((resolve) => {
      if (this.#state.name === "closed") {
        const refusal = { code: "closed", message: "the client was closed" };
        resolve(named.map(({ eventId }) => ({ eventId, ...refusal })));
        return;
      }
      const more = level === "local" ? "" : `,"level":${JSON.stringify(level)}`;
      this.#outbox.put(scope, named, (durable ? ',"durable":true' : "") + more, resolve);
      this.#wake();
      this.#flush();
    });
  }

  /**
   * The whole state of a scope at one seq: `{scope, epoch, seq, entities: [{key, value, version}],
   * hash}`, all pages of it. Throws SyncError where the server refuses.
   */
  async fetchScopeView(scope) {
    const { btoa } = globalThis;
    const bytes = utf8.encode(canonical({ scope }));
    const params = btoa(String.fromCharCode(...bytes))
      .replaceAll("+", "-")
      .replaceAll("/", "_");
    const first = `${this.#base}/views/scope?p=${params.replace(/=+$/, "")}`;
    for (let restarts = 0; ; restarts++) {
      try {
        const view = await this.#fetchJson(first);
        let { next } = view;
        while (typeof next === "string") {
          const page = await this.#fetchJson(`${first}&page=${encodeURIComponent(next)}`);
          for (const entity of page.entities) view.entities.push(entity);
          next = page.next;
        }
        return { ...view, next: null };
      } catch (error) {
        // The server holds the pages of a view for a while only.
        if (error.status !== 410 || restarts >= VIEW_RESTARTS_MAX) throw error;
      }
    }
  }

  async #fetchJson(url) {
    const { token } = this.#options;
    const value = typeof token === "function" ? await token() : token;
    const headers = { accept: "application/json" };
    if (value !== null && value !== undefined) headers.authorization = `Bearer ${value}`;
    const response = await this.#options.fetch(url, { headers });
    if (response.ok) return response.json();
    const problem = await response.json().catch(() => ({}));
    throw new SyncError(
      problem.code ?? `http_${response.status}`,
      problem.detail ??
        problem.message ??
        problem.title ??
        `the server answered ${response.status}`,
      {
        retryable: problem.retryable ?? (response.status >= 500 || response.status === 429),
        retryAfterMs: problem.retry_after_ms ?? null,
        status: response.status,
      },
    );
  }

  #held(name) {
    let held = this.#scopes.get(name);
    if (held === undefined) {
      held = {
        name,
        consumers: new Set(),
        unanswered: 0, // `sub` and `replay` frames not yet answered with `subscribed`
        subscribed: false,
        live: false,
        asked: null, // `since` of the last of them, null: from now on
        position: 0, // the last seq this connection was sent
        epoch: null,
        failures: 0,
        retry: null, // timer of the next `sub` after a refusal that passes
      };
      this.#scopes.set(name, held);
    }
    return held;
  }

  #retire(consumer) {
    consumer.alive = false;
    this.#options.clearTimeout(consumer.timer);
  }

  #leave(consumer) {
    if (!consumer.alive) return;
    this.#retire(consumer);
    const scope = this.#scopes.get(consumer.scope);
    scope.consumers.delete(consumer);
    if (scope.consumers.size === 0) {
      this.#options.clearTimeout(scope.retry);
      this.#scopes.delete(scope.name);
      if (this.connected && (scope.subscribed || scope.unanswered > 0)) {
        this.#control.push({ type: "unsub", scope: scope.name });
        this.#flush();
      }
    }
  }

  #restart(consumer, seq, epoch) {
    if (!consumer.alive) return;
    consumer.cursor = seq;
    consumer.epoch = epoch || null;
    consumer.resting = false;
    this.#join(this.#scopes.get(consumer.scope), consumer);
    this.#flush();
  }

  /** Make the connection read from the consumer's cursor, or put it where the scope is. */
  #join(scope, consumer) {
    if (!this.connected || scope.retry !== null) return;
    const settled = scope.subscribed && scope.unanswered === 0;
    if (settled && consumer.cursor === null) {
      consumer.cursor = scope.position;
      consumer.epoch = scope.epoch;
    }
    const sameEpoch = consumer.epoch === null || consumer.epoch === scope.epoch;
    const hearsDurable = !consumer.on.durable || scope.durable;
    if (settled && hearsDurable && consumer.cursor === scope.position && sameEpoch) {
      consumer.epoch = scope.epoch;
      const seq = scope.position;
      // Not from within `subscribe`, whose caller has no way to end it yet.
      const tell = () => consumer.alive && this.#call(consumer, "onCaughtUp", scope.name, seq);
      if (scope.live) queueMicrotask(tell);
      return;
    }
    // An unanswered `sub` or `replay` from before the cursor, or from now on, brings it along.
    const covered =
      consumer.cursor === null || (scope.asked !== null && scope.asked <= consumer.cursor);
    if (scope.unanswered === 0 || !covered || !hearsDurable) this.#subscribeScope(scope);
    this.#flush();
  }

  /** Queue `sub` at the lowest cursor; nothing where no consumer can read. */
  #subscribeScope(scope) {
    const readers = active(scope);
    if (!this.connected || readers.length === 0) return;
    const frame = { type: "sub", scope: scope.name, batch: true };
    const lowest = lowestOf(readers);
    if (lowest !== null) {
      frame.since = lowest.cursor;
      if (lowest.epoch !== null) frame.epoch = lowest.epoch;
    }
    scope.durable = readers.some((consumer) => consumer.on.durable);
    if (scope.durable) frame.durable = true;
    scope.asked = frame.since ?? null;
    scope.unanswered++;
    this.#control.push(frame);
  }

  #gap(scope, consumer) {
    if (scope.unanswered > 0 || !scope.subscribed) return; // a replay is under way already
    if (consumer.gapAt !== consumer.cursor) {
      consumer.gapAt = consumer.cursor;
      consumer.gaps = 0;
    }
    if (++consumer.gaps > GAPS_MAX) {
      this.#rest(consumer, { reason: "gap", epoch: scope.epoch });
      return;
    }
    scope.unanswered++;
    const since = lowestOf(active(scope)).cursor;
    scope.asked = since;
    this.#control.push({ type: "replay", scope: scope.name, since });
  }

  /** The consumer's cursor is of no use: it waits for a new one. */
  #rest(consumer, info) {
    consumer.resting = true;
    consumer.gapAt = -1;
    if (consumer.on.onSnapshotRequired !== undefined) {
      this.#recover(consumer, info);
    } else {
      this.#fail(consumer, new SyncError("snapshot_required", `snapshot required: ${info.reason}`));
    }
  }

  /** Ask `onSnapshotRequired` for a new cursor: at once the first time, ever later after that. */
  #recover(consumer, info) {
    if (!consumer.alive || consumer.recovering) return;
    consumer.recovering = true;
    const { random, setTimeout, clearTimeout } = this.#options;
    clearTimeout(consumer.timer);
    const count = consumer.recoveries++;
    if (count === 0) this.#ask(consumer, info);
    else {
      const delayMs = reconnectDelayMs(count - 1, random());
      consumer.timer = setTimeout(() => this.#ask(consumer, info), delayMs);
    }
  }

  async #ask(consumer, info) {
    const { setTimeout } = this.#options;
    try {
      const cursor = await consumer.on.onSnapshotRequired(consumer.scope, info);
      consumer.recovering = false;
      if (!consumer.alive) return;
      consumer.timer = setTimeout(() => (consumer.recoveries = 0), CALM_AFTER_MS);
      if (cursor) this.#restart(consumer, cursor.seq, cursor.epoch ?? null);
    } catch (error) {
      consumer.recovering = false;
      if (!consumer.alive) return;
      if (error?.retryable === false) this.#fail(consumer, error);
      else {
        this.#options.report(error);
        this.#recover(consumer, info);
      }
    }
  }

  #fail(consumer, error) {
    if (!consumer.alive) return;
    this.#leave(consumer);
    if (consumer.on.onError === undefined) this.#options.report(error);
    else this.#call(consumer, "onError", error);
  }

  #call(consumer, name, ...args) {
    try {
      return consumer.on[name]?.(...args);
    } catch (error) {
      this.#options.report(error);
      return undefined;
    }
  }

  // -- frames of the server

  #dispatch(frame) {
    const scope = typeof frame.scope === "string" ? this.#scopes.get(frame.scope) : undefined;
    switch (frame.type) {
      case "event":
        return this.#events(this.#scopes.get(frame.envelope.scope), [frame.envelope]);
      case "events":
        return this.#events(scope, frame.envelopes);
      case "published":
        this.#attempt = 0;
        return this.#repeatLater(this.#outbox.answered(frame));
      case "subscribed":
        this.#attempt = 0;
        return this.#subscribed(scope, frame);
      case "caughtUp":
        return this.#caughtUp(scope, frame);
      case "durable":
        return this.#durable(scope, frame.epoch, frame.seq);
      case "scopeError":
        return this.#scopeError(scope, frame);
      case "error":
        return this.#error(frame);
      case "pong":
        this.#attempt = 0;
        return undefined;
      default:
        return undefined; // unsubscribed, authenticated, and what later servers may add
    }
  }

  #events(scope, envelopes) {
    if (scope === undefined || envelopes.length === 0) return; // left while these were under way
    scope.position = envelopes[envelopes.length - 1].seq;
    for (const consumer of active(scope)) {
      if (consumer.cursor !== null) this.#offer(scope, consumer, envelopes);
    }
  }

  #offer(scope, consumer, envelopes) {
    for (const envelope of envelopes) {
      if (!consumer.alive || consumer.resting) return;
      if (envelope.seq === consumer.cursor + 1) {
        consumer.cursor = envelope.seq;
        if (this.#call(consumer, "onEnvelope", envelope) !== "gap") continue;
        if (!consumer.alive) return;
        consumer.cursor = this.#call(consumer, "cursor") ?? envelope.seq - 1;
      }
      if (envelope.seq > consumer.cursor) {
        this.#gap(scope, consumer);
        return;
      }
    }
  }

  #subscribed(scope, frame) {
    if (scope === undefined) return;
    scope.unanswered = Math.max(0, scope.unanswered - 1);
    scope.subscribed = true;
    scope.live = false;
    scope.failures = 0;
    const { head, floor } = frame;
    const epoch = frame.epoch || null;
    scope.position = frame.since;
    scope.epoch = epoch;
    for (const consumer of active(scope)) {
      if (consumer.cursor === null) {
        consumer.cursor = head;
        consumer.epoch = epoch;
      }
      if (consumer.epoch !== null && consumer.epoch !== epoch) {
        this.#rest(consumer, { reason: "epoch_changed", epoch, head, floor });
      } else if (consumer.cursor > head) {
        this.#rest(consumer, { reason: "ahead_of_head", epoch, head, floor });
      } else {
        consumer.epoch = epoch;
        this.#call(consumer, "onSubscribed", scope.name, {
          epoch,
          since: frame.since,
          head,
          floor,
        });
      }
    }
  }

  #durable(scope, epoch, seq) {
    if (scope === undefined) return;
    if (scope.epoch === null && epoch) {
      // The scope had not been written to when it was subscribed; its history has a name by now.
      scope.epoch = epoch;
      for (const consumer of active(scope)) consumer.epoch ??= epoch;
    }
    for (const consumer of active(scope)) {
      if (consumer.on.durable) this.#call(consumer, "onDurable", scope.name, { epoch, seq });
    }
  }

  #caughtUp(scope, { seq, durableSeq }) {
    if (scope === undefined || scope.unanswered > 0) return;
    scope.live = true;
    scope.position = Math.max(scope.position, seq);
    for (const consumer of active(scope)) {
      if (consumer.cursor !== null && consumer.cursor < seq) this.#gap(scope, consumer);
      else this.#call(consumer, "onCaughtUp", scope.name, seq);
    }
    if (durableSeq !== undefined) this.#durable(scope, scope.epoch, durableSeq);
  }

  #scopeError(scope, frame) {
    if (scope === undefined) return;
    scope.unanswered = Math.max(0, scope.unanswered - 1);
    scope.subscribed = false;
    scope.live = false;
    const { code, reason, epoch, head, floor, retryAfterMs } = frame;
    if (code === "snapshot_required") {
      for (const consumer of behind(scope, frame)) {
        this.#rest(consumer, { reason: reason ?? "", epoch, head, floor });
      }
      if (scope.unanswered === 0) this.#subscribeScope(scope);
    } else if (retryAfterMs !== undefined || RETRYABLE_SCOPE_CODES.has(code)) {
      const delayMs = Math.max(reconnectDelayMs(scope.failures++, 1), retryAfterMs ?? 0);
      this.#options.clearTimeout(scope.retry);
      scope.retry = this.#options.setTimeout(() => {
        scope.retry = null;
        this.#subscribeScope(scope);
        this.#flush();
      }, delayMs);
    } else {
      for (const consumer of [...scope.consumers]) {
        this.#fail(consumer, new SyncError(code, frame.message));
      }
    }
  }

  /**
   * The server did not take a frame as it was meant. Which one is not said, so a new connection
   * puts both sides on known ground; a publish that is named gets its refusal.
   */
  #error({ re, id, code, message }) {
    if (re === "publish" && id !== undefined) {
      this.#repeatLater(this.#outbox.refused(id, code, message));
    } else if (re !== "ping") {
      this.#lost({ code, reason: message ?? "" });
    }
  }

  #repeatLater(retry) {
    if (retry === null) return;
    this.#options.setTimeout(() => {
      this.#outbox.repeat(retry.frame);
      this.#flush();
    }, retry.delayMs);
  }

  // -- the connection

  #setState(state) {
    this.#state = state;
    for (const [listener] of [...this.#stateListeners]) {
      try {
        listener(state);
      } catch (error) {
        this.#options.report(error);
      }
    }
  }

  #timer(name, run, ms) {
    this.#options.clearTimeout(this.#timers.get(name));
    this.#timers.set(name, this.#options.setTimeout(run, ms));
  }

  #wake() {
    if (this.#state.name === "idle") this.#connect();
  }

  #connect() {
    this.#detach();
    this.#setState({ name: "connecting" });
    const ticket = {}; // stands for the attempt until there is a socket
    this.#socket = ticket;
    const { token } = this.#options;
    const current = () => this.#socket === ticket;
    if (typeof token !== "function") {
      this.#open(token);
      return;
    }
    Promise.resolve()
      .then(token)
      .then(
        (value) => current() && this.#open(value),
        (error) => current() && this.#lost({ code: "token", reason: String(error) }),
      );
  }

  #open(token) {
    const { WebSocket, tokenIn } = this.#options;
    const has = token !== null && token !== undefined && token !== "";
    const query = has && tokenIn === "query" ? `?token=${encodeURIComponent(token)}` : "";
    let socket;
    try {
      socket = new WebSocket(this.#socketUrl + query);
    } catch (error) {
      this.#lost({ code: "address", reason: String(error) });
      return;
    }
    this.#socket = socket;
    const current = () => this.#socket === socket; // a socket given up may still speak
    socket.onopen = () => current() && this.#opened(has && tokenIn === "frame" ? token : null);
    socket.onmessage = (event) => current() && this.#received(event.data);
    socket.onclose = (event) => current() && this.#lost({ code: event.code, reason: event.reason });
    socket.onerror = () => {}; // `close` follows and says more
    const late = () =>
      current() && this.#lost({ code: "timeout", reason: "no connection in time" });
    this.#timer("open", late, CONNECT_WITHIN_MS);
  }

  #opened(token) {
    this.#options.clearTimeout(this.#timers.get("open"));
    this.#pongsMissed = 0;
    this.#allowance = CONTROL_BURST;
    if (token !== null) this.#socket.send(JSON.stringify({ type: "auth", token }));
    this.#setState({ name: "open" });
    for (const scope of this.#scopes.values()) {
      if (scope.unanswered === 0) this.#subscribeScope(scope); // a listener may have come first
    }
    this.#timer("ping", () => this.#ping(), PING_EVERY_MS);
    this.#flush();
  }

  #received(data) {
    this.#pongsMissed = 0; // any frame proves that the server lives
    const socket = this.#socket;
    try {
      this.#dispatch(JSON.parse(data));
    } catch (error) {
      this.#options.report(error);
      if (this.#socket === socket) this.#lost({ code: "bad_frame", reason: String(error) });
    }
    this.#flush();
  }

  #ping() {
    if (this.#pongsMissed >= PONGS_MISSED_MAX) {
      this.#lost({ code: "silence", reason: `${this.#pongsMissed} pongs missed` });
      return;
    }
    this.#pongsMissed++;
    this.#socket.send('{"type":"ping"}');
    this.#timer("ping", () => this.#ping(), PING_EVERY_MS);
  }

  /** Send what may be sent now; the rest of the control frames follow at their pace. */
  #flush() {
    if (!this.connected) return;
    while (this.#control.length > 0 && this.#allowance > 0) {
      this.#allowance--;
      this.#socket.send(JSON.stringify(this.#control.shift()));
    }
    for (const text of this.#outbox.takeReady()) this.#socket.send(text);
    if (this.#allowance < CONTROL_BURST && !this.#timers.has("control")) {
      const refill = () => {
        this.#timers.delete("control");
        this.#allowance = Math.min(CONTROL_BURST, this.#allowance + CONTROL_PER_S);
        this.#flush();
      };
      this.#timer("control", refill, 1000);
    }
  }

  /** Give up the socket, if there is one, and all that belongs to it. */
  #detach(code, reason) {
    const socket = this.#socket;
    this.#socket = null;
    for (const handle of this.#timers.values()) this.#options.clearTimeout(handle);
    this.#timers.clear();
    this.#control = [];
    this.#outbox.disconnected();
    for (const scope of this.#scopes.values()) {
      this.#options.clearTimeout(scope.retry);
      scope.retry = null;
      scope.unanswered = 0;
      scope.subscribed = false;
      scope.live = false;
    }
    // A dead link would keep close() waiting, so nothing waits for its `close` event.
    socket?.close?.(code, reason);
  }

  #lost({ code, reason }) {
    this.#detach();
    if (this.#scopes.size === 0 && this.#outbox.size === 0) {
      this.#setState({ name: "idle", code, reason });
      return;
    }
    const attempt = this.#attempt++;
    const delayMs = reconnectDelayMs(attempt, this.#options.random());
    this.#timer("retry", () => this.#connect(), delayMs);
    this.#setState({ name: "waiting", delayMs, attempt, code, reason });
  }
}

const active = (scope) => [...scope.consumers].filter((consumer) => !consumer.resting);

/** The consumer with the lowest known cursor, null where none has one. */
function lowestOf(consumers) {
  let lowest = null;
  for (const consumer of consumers) {
    if (consumer.cursor === null) continue;
    if (lowest === null || consumer.cursor < lowest.cursor) lowest = consumer;
  }
  return lowest;
}

/** Whom `snapshot_required` is about: one bad cursor refuses the subscription of all. */
function behind(scope, { epoch, head, floor }) {
  const readers = active(scope).filter((consumer) => consumer.cursor !== null);
  const found = readers.filter(
    (consumer) =>
      (epoch !== undefined && consumer.epoch !== null && consumer.epoch !== epoch) ||
      consumer.cursor < (floor ?? 0) ||
      consumer.cursor > (head ?? Infinity),
  );
  return found.length > 0 ? found : readers;
}

// --- followScope ---------------------------------------------------------------------------------

/**
 * Keep `store` equal to a scope: fetch its view, seed the store, read on from there, and do so
 * again whenever the server says that a snapshot is required or an entity of the store is broken. A
 * store that has a cursor for the scope goes on from it.
 *
 * Returns `{ready, refresh(), stop()}`; `ready` resolves when the store has caught up for the first
 * time and rejects when the subscription is refused. Options: `onEnvelope(envelope)` after the
 * store took it, `onView(view)` after a seed, `onCaughtUp(scope, seq)`, `onError(error)`,
 * `durable`, `onDurable(scope, {epoch, seq})`.
 */
export function followScope(client, scope, store, options = {}) {
  const { onView, onEnvelope, onCaughtUp, onError, durable = false, onDurable } = options;
  const held = store.cursors.cursor(scope);
  let stopped = false;
  let settle;
  const ready = new Promise((resolve, reject) => (settle = { resolve, reject }));
  ready.catch(() => {}); // whoever awaits it hears of the failure; nobody has to
  const unsubscribe = client.subscribe(scope, {
    since: held?.seq ?? null,
    epoch: held?.epoch ?? null,
    snapshotFirst: held === null,
    durable,
    onDurable,
    cursor: () => store.cursors.scopeLastSeq(scope),
    onEnvelope(envelope) {
      try {
        return store.ingest(envelope);
      } finally {
        onEnvelope?.(envelope);
        if (store.broken(scope).size > 0) unsubscribe.refresh();
      }
    },
    async onSnapshotRequired() {
      const view = await client.fetchScopeView(scope);
      if (stopped) return null;
      store.seed(scope, view.entities, view);
      onView?.(view);
      return { seq: view.seq, epoch: view.epoch };
    },
    onCaughtUp(name, seq) {
      settle.resolve();
      onCaughtUp?.(name, seq);
    },
    onError(error) {
      settle.reject(error);
      onError?.(error);
    },
  });
  return {
    ready,
    refresh: unsubscribe.refresh,
    stop() {
      stopped = true;
      unsubscribe();
    },
  };
}
