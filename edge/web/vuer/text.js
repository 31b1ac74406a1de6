/**
 * A text that many write: runs of characters in blocks, each character with the identity `author:n`.
 *
 * A character is one Unicode code point and keeps its identity for ever; one that was deleted stays
 * as a place without content, so that what was written beside it keeps its anchor. A Text is never
 * changed: every operation returns another one that shares all blocks but one, or the same where
 * nothing happened.
 *
 * A run is `[author, n, count, content]`: characters n, n+1, … of one author; content is null where
 * they were deleted. Blocks have numbers that they keep; per author an index leads from the start of
 * each run to the number of its block, so any character is found in a few steps. The same
 * structure in Python: actors/dialects/vuer/text.py.
 */

const BLOCK_MAX = 128; // runs

const SURROGATE = /[\ud800-\udfff]/;

/** The code points of a text; most have no surrogates and are their own. */
const points = (text) => (SURROGATE.test(text) ? Array.from(text) : text);

/** Code points in a text. */
export const lengthOf = (text) => points(text).length;

/** `["alice", 42]` of "alice:42", null where that is no identity of a character. */
export function parseTextId(id) {
  if (typeof id !== "string") return null;
  const colon = id.lastIndexOf(":");
  const digits = id.slice(colon + 1);
  if (colon < 1 || !/^(0|[1-9][0-9]{0,15})$/.test(digits)) return null;
  const n = Number(digits);
  return Number.isSafeInteger(n) ? [id.slice(0, colon), n] : null;
}

/** The part `from` to `to` of a run. */
function part([author, n, count, content], from, to) {
  if (content === null) return [author, n + from, to - from, null];
  const list = content.length === count ? content : Array.from(content); // no surrogate pairs
  const cut = list.slice(from, to);
  return [author, n + from, to - from, typeof cut === "string" ? cut : cut.join("")];
}

/** The same runs, neighbours that continue each other joined. */
function compact(runs) {
  const made = [];
  for (const run of runs) {
    const last = made[made.length - 1];
    if (
      last !== undefined &&
      last[0] === run[0] &&
      last[1] + last[2] === run[1] &&
      (last[3] === null) === (run[3] === null)
    ) {
      const content = run[3] === null ? null : last[3] + run[3];
      made[made.length - 1] = [last[0], last[1], last[2] + run[2], content];
    } else made.push(run);
  }
  return made;
}

const shownIn = (runs) => {
  let count = 0;
  for (const run of runs) if (run[3] !== null) count += run[2];
  return count;
};

/** Index of the first of the sorted numbers above `n`. */
function above(numbers, n) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= n) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A sorted map from the starts of one author's runs to block numbers, in chunks; never changed. */
class Starts {
  constructor(firsts, chunks) {
    this.firsts = firsts; // the first start of each chunk
    this.chunks = chunks; // [starts, block of each]
  }

  static of(pairs) {
    pairs.sort((a, b) => a[0] - b[0]);
    const [firsts, chunks] = [[], []];
    for (let at = 0; at < pairs.length; at += BLOCK_MAX / 2) {
      const some = pairs.slice(at, at + BLOCK_MAX / 2);
      firsts.push(some[0][0]);
      chunks.push([some.map(([start]) => start), some.map(([, block]) => block)]);
    }
    return new Starts(firsts, chunks);
  }

  /** `[start, block]` of the last run that starts at or below n. */
  floor(n) {
    const at = above(this.firsts, n) - 1;
    if (at < 0) return null;
    const [starts, blocks] = this.chunks[at];
    const found = above(starts, n) - 1;
    return [starts[found], blocks[found]];
  }

  /** The first start above n, undefined where there is none. */
  next(n) {
    const at = Math.max(0, above(this.firsts, n) - 1);
    for (const [starts] of this.chunks.slice(at, at + 2)) {
      const found = above(starts, n);
      if (found < starts.length) return starts[found];
    }
    return undefined;
  }

  /** With n leading to the block. */
  put(n, block) {
    if (this.firsts.length === 0) return new Starts([n], [[[n], [block]]]);
    const at = Math.max(0, above(this.firsts, n) - 1);
    let [starts, blocks] = this.chunks[at];
    const end = above(starts, n);
    const held = end > 0 && starts[end - 1] === n ? 1 : 0;
    starts = starts.slice();
    blocks = blocks.slice();
    starts.splice(end - held, held, n);
    blocks.splice(end - held, held, block);
    if (starts.length <= BLOCK_MAX) return this.#with(at, [[starts, blocks]]);
    const half = BLOCK_MAX / 2;
    return this.#with(at, [
      [starts.slice(0, half), blocks.slice(0, half)],
      [starts.slice(half), blocks.slice(half)],
    ]);
  }

  /** Without n, which is there. */
  drop(n) {
    const at = above(this.firsts, n) - 1;
    const [starts, blocks] = this.chunks[at].map((list) => list.slice());
    const found = above(starts, n) - 1;
    starts.splice(found, 1);
    blocks.splice(found, 1);
    return this.#with(at, starts.length === 0 ? [] : [[starts, blocks]]);
  }

  #with(at, parts) {
    const [firsts, chunks] = [this.firsts.slice(), this.chunks.slice()];
    chunks.splice(at, 1, ...parts);
    firsts.splice(at, 1, ...parts.map(([starts]) => starts[0]));
    return new Starts(firsts, chunks);
  }
}

const NO_STARTS = new Starts([], []);

export class Text {
  #blocks;
  #sizes; // visible characters of each block
  #numbers; // of the blocks
  #next; // the number of the next new block
  #index; // Starts by author
  #shown = null;
  #runs = null;

  /** Of runs as they stand on the wire: `[author, n, content]`, of deleted ones `[…, count]`. */
  constructor(runs = [], shared = null) {
    if (shared !== null) {
      ({
        blocks: this.#blocks, sizes: this.#sizes, numbers: this.#numbers, next: this.#next,
        index: this.#index,
      } = shared); // prettier-ignore
      return;
    }
    const every = compact(
      runs.map(([author, n, held]) =>
        typeof held === "number" ? [author, n, held, null] : [author, n, lengthOf(held), held],
      ),
    );
    this.#blocks = [];
    const starts = new Map();
    for (let at = 0; at < every.length; at += BLOCK_MAX / 2) {
      const block = every.slice(at, at + BLOCK_MAX / 2); // room to grow
      for (const [author, n] of block) {
        if (!starts.has(author)) starts.set(author, []);
        starts.get(author).push([n, this.#blocks.length]);
      }
      this.#blocks.push(block);
    }
    this.#sizes = this.#blocks.map(shownIn);
    this.#numbers = [...this.#blocks.keys()];
    this.#next = this.#blocks.length;
    this.#index = new Map([...starts].map(([author, pairs]) => [author, Starts.of(pairs)]));
  }

  /** A text of one author's characters 0, 1, … */
  static of(content, author = "@init") {
    return new Text(content === "" ? [] : [[author, 0, content]]);
  }

  /** The runs as they stand on the wire; not to be changed. */
  get runs() {
    this.#runs ??= compact(this.#blocks.flat()).map(([author, n, count, content]) => [
      author,
      n,
      content ?? count,
    ]);
    return this.#runs;
  }

  toString() {
    this.#shown ??= this.#blocks.map((block) => block.map((run) => run[3] ?? "").join("")).join("");
    return this.#shown;
  }

  /** `[block, run, offset in it]` of a character, null where it never was. */
  #find(author, n) {
    const found = this.#index.get(author)?.floor(n) ?? null;
    if (found === null) return null;
    const [start, number] = found;
    const at = this.#numbers.indexOf(number);
    const block = this.#blocks[at];
    for (let index = 0; index < block.length; index++) {
      const run = block[index];
      if (run[1] === start && run[0] === author) {
        return n - start < run[2] ? [at, index, n - start] : null;
      }
    }
    throw new Error(`the index leads to a block without ${author}:${start}`);
  }

  /** Whether any of the characters `n` to `n + count` of an author is here, deleted or not. */
  has(author, n, count) {
    const found = this.#index.get(author)?.floor(n + count - 1) ?? null;
    if (found === null) return false;
    const [at, index] = this.#find(author, found[0]);
    return found[0] + this.#blocks[at][index][2] > n;
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
    const fresh = [author, n, count, visible ? content : null];
    const blocks = this.#blocks;
    if (blocks.length === 0) return new Text([[author, n, fresh[3] ?? count]]);
    if (anchor === null) return this.#put(0, 0, 0, [fresh]);
    const id = parseTextId(anchor);
    const found = id === null ? null : this.#find(...id);
    if (found === null) {
      return this.#put(blocks.length - 1, blocks[blocks.length - 1].length, 0, [fresh]);
    }
    const [at, index, offset] = found;
    const run = blocks[at][index];
    if (offset + 1 === run[2]) return this.#put(at, index + 1, 0, [fresh]);
    const parts = [part(run, 0, offset + 1), fresh, part(run, offset + 1, run[2])];
    return this.#put(at, index, 1, parts);
  }

  /** Delete characters, given as `[identity, count]`; what is not here is passed over. */
  delete(ranges) {
    let text = this;
    for (const [id, count] of ranges) {
      const from = parseTextId(id);
      if (from !== null) text = text.#without(from[0], from[1], from[1] + count);
    }
    return text;
  }

  #without(author, from, end) {
    let text = this;
    let n = from;
    while (n < end) {
      const found = text.#find(author, n);
      if (found === null) {
        const next = text.#index.get(author)?.next(n);
        if (next === undefined) break;
        n = next;
        continue;
      }
      const [at, index, offset] = found;
      const run = text.#blocks[at][index];
      const upto = Math.min(run[2], offset + end - n);
      n = run[1] + upto;
      if (run[3] === null) continue;
      const gone = [author, run[1] + offset, upto - offset, null];
      const parts = [part(run, 0, offset), gone, part(run, upto, run[2])];
      text = text.#put(at, index, 1, parts.filter((one) => one[2] > 0)); // prettier-ignore
    }
    return text;
  }

  /** Put the parts in place of `gone` runs from `index` on in block `at`. */
  #put(at, index, gone, parts) {
    const block = this.#blocks[at];
    const [low, high] = [Math.max(0, index - 1), Math.min(block.length, index + gone + 1)];
    const before = block.slice(low, high);
    const after = compact([
      ...block.slice(low, index),
      ...parts,
      ...block.slice(index + gone, high),
    ]);
    const runs = block.slice();
    runs.splice(low, high - low, ...after);
    const byAuthor = new Map(this.#index);
    const same = (a) => (b) => a[1] === b[1] && a[0] === b[0];
    for (const run of before) {
      if (!after.some(same(run))) byAuthor.set(run[0], byAuthor.get(run[0]).drop(run[1]));
    }
    const number = this.#numbers[at];
    for (const run of after) {
      if (before.some(same(run))) continue;
      byAuthor.set(run[0], (byAuthor.get(run[0]) ?? NO_STARTS).put(run[1], number));
    }
    const shared = {
      blocks: this.#blocks.slice(), sizes: this.#sizes.slice(), numbers: this.#numbers,
      next: this.#next, index: byAuthor,
    }; // prettier-ignore
    if (runs.length <= BLOCK_MAX) {
      shared.blocks[at] = runs;
      shared.sizes[at] += shownIn(after) - shownIn(before);
      return new Text([], shared);
    }
    const half = runs.length >> 1;
    const halves = [runs.slice(0, half), runs.slice(half)];
    for (const run of halves[1]) byAuthor.set(run[0], byAuthor.get(run[0]).put(run[1], this.#next));
    shared.blocks.splice(at, 1, ...halves);
    shared.sizes.splice(at, 1, ...halves.map(shownIn));
    shared.numbers = this.#numbers.slice();
    shared.numbers.splice(at + 1, 0, this.#next);
    shared.next += 1;
    return new Text([], shared);
  }

  /** Identity of the visible character before `position` (0: null), for an insert there. */
  anchorAt(position) {
    let left = Math.min(position, this.#sizes.reduce((sum, size) => sum + size, 0));
    if (left <= 0) return null;
    let at = 0;
    while (this.#sizes[at] < left) left -= this.#sizes[at++];
    for (const [author, n, count, content] of this.#blocks[at]) {
      if (content === null) continue;
      if (left <= count) return `${author}:${n + left - 1}`;
      left -= count;
    }
    throw new Error("sizes do not add up");
  }

  /** The visible characters `position` to `position + count`, as ranges for `delete`. */
  rangesAt(position, count) {
    const ranges = [];
    let skip = position;
    let left = count;
    for (let at = 0; at < this.#blocks.length && left > 0; at++) {
      if (skip >= this.#sizes[at]) {
        skip -= this.#sizes[at];
        continue;
      }
      for (const run of this.#blocks[at]) {
        if (left <= 0) break;
        if (run[3] === null) continue;
        if (skip < run[2]) {
          const taken = Math.min(run[2] - skip, left);
          ranges.push([`${run[0]}:${run[1] + skip}`, taken]);
          left -= taken;
          skip = 0;
        } else skip -= run[2];
      }
    }
    return ranges;
  }

  /** One above the highest character of an author, 0 where there is none. */
  nextOf(author) {
    const found = this.#index.get(author)?.floor(Number.MAX_SAFE_INTEGER) ?? null;
    if (found === null) return 0;
    const [at, index] = this.#find(author, found[0]);
    return found[0] + this.#blocks[at][index][2];
  }
}
