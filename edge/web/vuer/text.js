/**
 * A text that many write: a list of runs of characters, each with the identity `author:n`.
 *
 * A character is one Unicode code point and keeps its identity for ever; one that was deleted stays
 * as a place without content, so that what was written beside it keeps its anchor. A Text is never
 * changed: every operation returns another one, or the same where nothing happened.
 *
 * A run is `[author, n, content]` with characters n, n+1, …; of deleted ones it is
 * `[author, n, count]`. Neighbours that continue each other are one run.
 */

const SURROGATE = /[\ud800-\udfff]/;

/** The code points of a text; most have no surrogates and are their own. */
const points = (text) => (SURROGATE.test(text) ? Array.from(text) : text);

/** Code points in a text. */
export const lengthOf = (text) => points(text).length;

/** Code points `from` to `to` of a text. */
function slice(text, from, to) {
  const list = points(text);
  return typeof list === "string" ? list.slice(from, to) : list.slice(from, to).join("");
}

/** `["alice", 42]` of "alice:42", null where that is no identity of a character. */
export function parseTextId(id) {
  if (typeof id !== "string") return null;
  const colon = id.lastIndexOf(":");
  const digits = id.slice(colon + 1);
  if (colon < 1 || !/^(0|[1-9][0-9]{0,15})$/.test(digits)) return null;
  const n = Number(digits);
  return Number.isSafeInteger(n) ? [id.slice(0, colon), n] : null;
}

const countOf = (run) => (typeof run[2] === "number" ? run[2] : lengthOf(run[2]));
const isDead = (run) => typeof run[2] === "number";

/** The part `from` to `to` of a run. */
function part([author, n, held], from, to) {
  return typeof held === "number"
    ? [author, n + from, to - from]
    : [author, n + from, slice(held, from, to)];
}

/** Append a run, joined with the last where it continues it. */
function push(runs, run) {
  const last = runs[runs.length - 1];
  if (
    last !== undefined &&
    last[0] === run[0] &&
    isDead(last) === isDead(run) &&
    last[1] + countOf(last) === run[1]
  ) {
    runs[runs.length - 1] = [last[0], last[1], last[2] + run[2]];
  } else runs.push(run);
}

export class Text {
  #runs;
  #shown = null;
  #at = 0; // where the last search ended: who types goes on there

  constructor(runs = []) {
    this.#runs = runs;
  }

  /** A text of one author's characters 0, 1, … */
  static of(content, author = "@init") {
    return new Text(content === "" ? [] : [[author, 0, content]]);
  }

  /** The runs, as they stand on the wire; not to be changed. */
  get runs() {
    return this.#runs;
  }

  toString() {
    this.#shown ??= this.#runs.map((run) => (isDead(run) ? "" : run[2])).join("");
    return this.#shown;
  }

  /** `[index of the run, offset in it]` of a character, null where it never was. */
  #find(author, n) {
    const runs = this.#runs;
    const held = (run) => run[0] === author && n >= run[1] && n - run[1] < countOf(run);
    if (this.#at < runs.length && held(runs[this.#at])) return [this.#at, n - runs[this.#at][1]];
    for (let index = 0; index < runs.length; index++) {
      const run = runs[index];
      if (n < run[1] || run[0] !== author) continue;
      if (n - run[1] < (run[2].length ?? run[2]) && held(run)) {
        this.#at = index;
        return [index, n - run[1]];
      }
    }
    return null;
  }

  /** Whether any of the characters `n` to `n + count` of an author is here, deleted or not. */
  has(author, n, count) {
    return this.#runs.some(
      (run) => run[0] === author && run[1] < n + count && n < run[1] + countOf(run),
    );
  }

  /** Whether the character that an identity names is here, deleted or not. */
  knows(id) {
    const at = parseTextId(id);
    return at !== null && this.#find(...at) !== null;
  }

  /**
   * Insert `content` as characters `n`, n+1, … of `author` directly after the character `anchor`
   * (an identity; null: at the start; unknown: at the end), invisibly if not `visible`.
   */
  insert(author, n, content, anchor, visible = true) {
    const count = lengthOf(content);
    if (count === 0) return this;
    const fresh = [author, n, visible ? content : count];
    let [index, offset] = [0, 0]; // before this character of this run
    if (anchor !== null) {
      const at = parseTextId(anchor);
      const found = at === null ? null : this.#find(...at);
      [index, offset] = found === null ? [this.#runs.length, 0] : [found[0], found[1] + 1];
    }
    const from = Math.max(index - 1, 0);
    const runs = this.#runs.slice(from, index);
    const run = this.#runs[index];
    const length = run === undefined ? 0 : countOf(run);
    if (offset > 0) push(runs, part(run, 0, offset));
    push(runs, fresh);
    if (offset < length) push(runs, part(run, offset, length));
    const next = this.#runs[index + 1];
    if (next !== undefined) push(runs, next);
    const all = this.#runs.slice();
    all.splice(from, index + 2 - from, ...runs);
    const text = new Text(all);
    text.#at = Math.min(index, all.length - 1);
    return text;
  }

  /** Delete characters, given as `[identity, count]`; what is not here is passed over. */
  delete(ranges) {
    const gone = new Map();
    for (const [id, count] of ranges) {
      const at = parseTextId(id);
      if (at === null) continue;
      const list = gone.get(at[0]) ?? [];
      list.push([at[1], at[1] + count]);
      gone.set(at[0], list);
    }
    let changed = false;
    const runs = [];
    for (const run of this.#runs) {
      const cuts = isDead(run) ? undefined : gone.get(run[0]);
      const count = countOf(run);
      let done = 0;
      for (const [from, to] of cuts === undefined ? [] : within(cuts, run[1], count)) {
        if (from > done) push(runs, part(run, done, from));
        push(runs, [run[0], run[1] + from, to - from]);
        done = to;
        changed = true;
      }
      if (done < count) push(runs, done === 0 ? run : part(run, done, count));
    }
    return changed ? new Text(runs) : this;
  }

  /** Identity of the visible character before `position` (0: null), for an insert there. */
  anchorAt(position) {
    let left = position;
    let anchor = null;
    for (const run of this.#runs) {
      if (left <= 0) break;
      if (isDead(run)) continue;
      const count = Math.min(countOf(run), left);
      anchor = `${run[0]}:${run[1] + count - 1}`;
      left -= count;
    }
    return anchor;
  }

  /** The visible characters `position` to `position + count`, as ranges for `delete`. */
  rangesAt(position, count) {
    const ranges = [];
    let skip = position;
    let left = count;
    for (const run of this.#runs) {
      if (left <= 0) break;
      if (isDead(run)) continue;
      const length = countOf(run);
      if (skip < length) {
        const taken = Math.min(length - skip, left);
        ranges.push([`${run[0]}:${run[1] + skip}`, taken]);
        left -= taken;
        skip = 0;
      } else skip -= length;
    }
    return ranges;
  }

  /** One above the highest character of an author, 0 where there is none. */
  nextOf(author) {
    let next = 0;
    for (const run of this.#runs) {
      if (run[0] === author) next = Math.max(next, run[1] + countOf(run));
    }
    return next;
  }
}

/** Ranges `[from, to]` that fall on `count` characters from `first`: relative, sorted, disjoint. */
function within(ranges, first, count) {
  const cut = ranges
    .map(([from, to]) => [Math.max(from - first, 0), Math.min(to - first, count)])
    .filter(([from, to]) => from < to)
    .sort((a, b) => a[0] - b[0]);
  const merged = [];
  for (const [from, to] of cut) {
    const last = merged[merged.length - 1];
    if (last !== undefined && from <= last[1]) last[1] = Math.max(last[1], to);
    else merged.push([from, to]);
  }
  return merged;
}
