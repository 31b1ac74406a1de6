/**
 * para-sync for browsers and Node: replicas of objects that the server owns. One plain ES module,
 * no build, no dependency.
 *
 *   import { createClientReplica, InProcessTransport, PASSTHROUGH } from "/para.js";
 *   const transport = new InProcessTransport();
 *   const user = createClientReplica({ key: "user:1", schema: PASSTHROUGH, transport, seed });
 *   user.subscribe((value) => render(value));
 *
 * An envelope is `{ value, schema_version: "major.minor", sequence }`: one whole object at one
 * sequence of its key. A replica checks the schema version, then the schema, then the sequence, in
 * this order; what it misses it refetches. The same test vectors hold this file and the Python
 * code (edge/client/para) together.
 */

// --- schemas -------------------------------------------------------------------------------------

export const Ok = (value) => ({ tag: "Ok", value });
export const Err = (error) => ({ tag: "Err", error });

/** Takes everything: for values that are trusted, said aloud. */
export const PASSTHROUGH = Object.freeze({ parse: Ok });

// --- cells ---------------------------------------------------------------------------------------

/**
 * A cell that calls its listeners at once, in the order they came. They are not called for the
 * identical value. All are called even where one throws; the first exception is thrown then. A
 * listener that sets the cell again ends the round it was called in: nobody sees an older value
 * after a newer one.
 */
export class Signal {
  #value;
  #listeners = new Map();
  #round = 0;

  constructor(value = undefined) {
    this.#value = value;
  }

  get() {
    return this.#value;
  }

  peek() {
    return this.#value;
  }

  set(value) {
    const before = this.#value;
    this.#value = value;
    if (Object.is(before, value)) return;
    const round = ++this.#round;
    callAll(
      [...this.#listeners.values()],
      (listener) => listener(value),
      () => this.#round !== round,
    );
  }

  /** Have the listener called with each new value; returns what ends that, once or more. */
  subscribe(listener) {
    const token = Symbol("listener");
    this.#listeners.set(token, listener);
    return () => void this.#listeners.delete(token);
  }
}

/** Call each; then throw what was thrown first. */
function callAll(functions, call, stop = () => false) {
  const failures = [];
  for (const each of functions) {
    try {
      call(each);
    } catch (error) {
      failures.push(error);
    }
    if (stop()) break;
  }
  if (failures.length > 0) throw failures[0];
}

// --- transport -----------------------------------------------------------------------------------

/**
 * Hands envelopes to who listens to their key now, synchronously; retains, checks and repeats
 * nothing. Handlers form an ordered set for each key. A handler that throws starves nobody: all are
 * called, then the first exception is thrown, unless `onError(key, handler, error)` takes each.
 */
export class InProcessTransport {
  #keys = new Map();
  #onError;

  constructor({ onError = null } = {}) {
    this.#onError = onError;
  }

  publish(key, envelope) {
    const handlers = [...(this.#keys.get(key)?.keys() ?? [])];
    callAll(handlers, (handler) => {
      try {
        handler(envelope);
      } catch (error) {
        if (this.#onError === null) throw error;
        this.#onError(key, handler, error);
      }
    });
  }

  /** The same handler twice is one registration, ended by either result. */
  subscribe(key, handler) {
    if (typeof handler !== "function") throw new TypeError("a handler is a function");
    if (!this.#keys.has(key)) this.#keys.set(key, new Map());
    const handlers = this.#keys.get(key);
    if (!handlers.has(handler)) handlers.set(handler, Symbol("registration"));
    const token = handlers.get(handler);
    return () => {
      const held = this.#keys.get(key);
      if (held?.get(handler) !== token) return;
      held.delete(handler);
      if (held.size === 0) this.#keys.delete(key);
    };
  }

  keyCount() {
    return this.#keys.size;
  }
}

// --- integers ------------------------------------------------------------------------------------

const DIGITS = /^-?[0-9]{1,20}$/;

/**
 * JSON of a value, BigInts as `{"$int": "…"}`; integers of that form become BigInts where a number
 * does not hold them.
 */
export const encodeJson = (value) =>
  JSON.stringify(value, (_, inner) =>
    typeof inner === "bigint" ? { $int: inner.toString() } : inner,
  );

export const decodeJson = (text) =>
  JSON.parse(text, (_, inner) => {
    if (inner === null || typeof inner !== "object") return inner;
    const names = Object.keys(inner);
    if (names.length !== 1 || typeof inner.$int !== "string" || !DIGITS.test(inner.$int)) {
      return inner;
    }
    const wide = BigInt(inner.$int);
    const number = Number(wide);
    return Number.isSafeInteger(number) ? number : wide;
  });

// --- the replica ---------------------------------------------------------------------------------

const MAJOR = /^([0-9]+)\./;
const REFETCH_WAIT_MS = 30_000;

function majorsDiffer(mine, theirs) {
  if (mine === theirs || typeof theirs !== "string") return false;
  const own = MAJOR.exec(mine);
  const other = MAJOR.exec(theirs);
  return own !== null && other !== null && BigInt(own[1]) !== BigInt(other[1]);
}

/**
 * What a replica does with an envelope, without transport or time. `ingest` says whether a refetch
 * is to be started. `sequence` is that of the value in the cell, -1 while nothing was applied.
 */
class Reconciler {
  schemaVersion = null;
  sequence = -1;
  status = "stale";
  initialized = false;
  skewed = false; // what came last could not be read
  lastError = null;
  stats = { applied: 0, ignoredStale: 0, gaps: 0, parseErrors: 0, refetches: 0, schemaSkews: 0 };
  #ahead = -1; // the highest sequence heard of across a gap

  constructor(schema, cell, recovers, { schemaVersion, gapPolicy, refetchPolicy }) {
    this.schema = schema;
    this.cell = cell;
    this.recovers = recovers;
    this.expected = schemaVersion;
    this.commitGaps = gapPolicy === "commit";
    this.monotonic = refetchPolicy === "monotonic";
  }

  get meta() {
    return { schemaVersion: this.schemaVersion, sequence: this.sequence, status: this.status };
  }

  ingest(envelope, source, forSkew = null) {
    let value;
    try {
      if (envelope === null || typeof envelope !== "object" || !("value" in envelope)) {
        throw new TypeError("an envelope is an object with a value");
      }
      if (this.expected !== null && majorsDiffer(this.expected, envelope.schema_version)) {
        this.stats.schemaSkews++;
        this.#skew(`the schema version is ${envelope.schema_version}, not ${this.expected}`);
        return source !== "refetch" && this.recover();
      }
      value = this.#read(envelope);
    } catch (error) {
      this.stats.parseErrors++;
      this.#skew(error);
      return source !== "refetch" && this.recover();
    }
    const { sequence } = envelope;
    if (!Number.isSafeInteger(sequence)) {
      this.stats.parseErrors++;
      this.#skew(new TypeError("an envelope has an integer sequence"));
      return this.recovers && source !== "refetch" && this.recover();
    }
    if (source === "receipt" && this.initialized && sequence !== this.sequence + 1) {
      if (sequence <= this.sequence) {
        this.stats.ignoredStale++;
        return false;
      }
      this.stats.gaps++;
      if (!this.commitGaps) {
        this.#ahead = Math.max(this.#ahead, sequence);
        return this.recover();
      }
    } else if (source === "refetch" && this.#outruns(sequence, forSkew)) {
      return false;
    }
    this.sequence = sequence;
    this.schemaVersion = envelope.schema_version ?? null;
    this.status = "ok";
    this.initialized = true;
    this.skewed = false;
    this.stats.applied++;
    this.cell.set(value);
    return false;
  }

  recover() {
    this.status = this.recovers ? "refetching" : "stale";
    return this.recovers;
  }

  /**
   * How much was applied by now, where it is for something that could not be read: such an answer
   * may be older than the value, but not where receipts came after all.
   */
  refetchBegins() {
    this.status = "refetching";
    this.stats.refetches++;
    return this.skewed ? this.stats.applied : null;
  }

  refetchFailed(error) {
    this.status = "stale";
    this.lastError = error;
  }

  #read(envelope) {
    if (envelope.deleted === true) return null; // no value, so nothing to ask the schema about
    const parsed = this.schema.parse(envelope.value);
    if (parsed.tag !== "Ok") throw parsed.error;
    return parsed.value;
  }

  /** Whether receipts overtook this answer, so that what they brought stays. */
  #outruns(sequence, forSkew) {
    if (!this.monotonic || sequence >= this.sequence || forSkew === this.stats.applied) return false;
    this.stats.ignoredStale++;
    if (this.status === "refetching") {
      this.status = this.sequence >= this.#ahead ? "ok" : "stale";
    }
    return true;
  }

  #skew(error) {
    this.status = "skew";
    this.skewed = true;
    this.lastError = error;
  }
}

/**
 * Subscribe to a key and keep its value; read-only.
 *
 * `refetch()` resolves to the current envelope (null: no such object) and is called where envelopes
 * were missed or cannot be read; without it such a replica is `stale` until the next envelope in
 * order. `schemaVersion` refuses envelopes of another major. `gapPolicy: "commit"` takes an envelope
 * across a gap as it is, for it is complete. `refetchPolicy: "monotonic"` ignores an answer older
 * than what is applied. One refetch runs at a time: whatever calls for one meanwhile leads to one
 * more after it.
 */
export function createClientReplica({
  key,
  schema,
  transport,
  seed = null,
  refetch = null,
  cell = new Signal(),
  schemaVersion = null,
  gapPolicy = "refetch",
  refetchPolicy = "accept",
  refetchWaitMs = REFETCH_WAIT_MS,
}) {
  if (!["refetch", "commit"].includes(gapPolicy)) throw new TypeError(`gapPolicy ${gapPolicy}`);
  if (!["accept", "monotonic"].includes(refetchPolicy)) {
    throw new TypeError(`refetchPolicy ${refetchPolicy}`);
  }
  const options = { schemaVersion, gapPolicy, refetchPolicy };
  const state = new Reconciler(schema, cell, refetch !== null, options);
  let disposed = false;
  let flight = null;
  let again = false;

  /** A listener of the cell that threw; the commit is complete, and nobody waits here. */
  const report = (error) =>
    queueMicrotask(() => {
      throw error;
    });

  async function fly() {
    do {
      again = false;
      const forSkew = state.refetchBegins();
      let answer = null;
      let failure = null;
      try {
        answer = await within(refetchWaitMs, refetch);
        if (answer === null || answer === undefined) failure = new Error("no such object");
      } catch (error) {
        failure = error;
      }
      if (disposed) return;
      if (failure !== null) {
        state.refetchFailed(failure);
        continue;
      }
      try {
        state.ingest(answer, "refetch", forSkew);
      } catch (error) {
        report(error);
      }
    } while (again);
  }

  function recover() {
    if (flight !== null) {
      again = true;
      return;
    }
    flight = fly().finally(() => {
      flight = null;
    });
  }

  function ingest(envelope, source = "receipt") {
    if (!disposed && state.ingest(envelope, source)) recover();
  }

  const off = transport.subscribe(key, (envelope) => ingest(envelope));
  if (seed !== null) ingest(seed, "hydration");
  return {
    key,
    get: () => cell.get(),
    peek: () => cell.peek(),
    meta: () => state.meta,
    peekMeta: () => state.meta,
    stats: state.stats,
    ingest,
    get lastError() {
      return state.lastError;
    },
    subscribe: (listener) => cell.subscribe(listener),
    /** Envelopes may have been missed: refetch, or be `stale` where that is not possible. */
    catchUp() {
      if (!disposed && state.recover()) recover();
    },
    /** Resolves once no refetch is under way. */
    async whenIdle() {
      while (flight !== null && !disposed) await flight;
    },
    dispose() {
      disposed = true;
      off();
    },
  };
}

/** What `ask` resolves to; rejects after `ms`. */
async function within(ms, ask) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([ask(), late]);
  } finally {
    clearTimeout(timer);
  }
}
