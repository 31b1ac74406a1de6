"""A text that many write: characters with identities, in runs, in blocks. Pure.

A character is one Unicode code point with the identity (author, n) and keeps it for ever; a deleted
one stays as a place without content, so that its neighbours' anchors hold. A `Text` is never
changed: an edit gives another one that shares all blocks but one.

A run is (author, n, count, content): characters n, n+1, ... of one author; content is None where
they are not to be seen. Blocks have numbers that they keep; per author an index leads from the
start of each run to the number of its block, so any character is found in a few steps.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, Final

import msgspec

BLOCK_MAX: Final = 128  # runs; measured: 64 to 256 differ little
INIT: Final = "@init"  # author of what was a plain string before
RUN_WEIGHT: Final = 32  # of a run besides author and content: two numbers and signs of JSON
Run = tuple[str, int, int, str | None]
Range = tuple[str, int, int]  # author, n, count


_Chunk = tuple[tuple[int, ...], tuple[int, ...]]  # starts, and the block of each


class _Starts:
    """A sorted map from the starts of one author's runs to block numbers, in chunks; never
    changed, as a Text.
    """

    __slots__ = ("chunks", "firsts")

    def __init__(self, firsts: list[int], chunks: list[_Chunk]) -> None:
        self.firsts = firsts
        self.chunks = chunks

    def floor(self, n: int) -> tuple[int, int] | None:
        """(start, block) of the last run that starts at or below n."""
        at = bisect_right(self.firsts, n) - 1
        if at < 0:
            return None
        starts, blocks = self.chunks[at]
        found = bisect_right(starts, n) - 1
        return starts[found], blocks[found]

    def above(self, n: int) -> int | None:
        """The first start above n."""
        at = max(0, bisect_right(self.firsts, n) - 1)
        for starts, _ in self.chunks[at : at + 2]:
            found = bisect_right(starts, n)
            if found < len(starts):
                return starts[found]
        return None

    def last(self) -> tuple[int, int]:
        starts, blocks = self.chunks[-1]
        return starts[-1], blocks[-1]

    def put(self, n: int, block: int) -> _Starts:
        """With n leading to the block."""
        if not self.firsts:
            return _Starts([n], [((n,), (block,))])
        at = max(0, bisect_right(self.firsts, n) - 1)
        starts, blocks = self.chunks[at]
        found = bisect_left(starts, n)
        rest = found + (found < len(starts) and starts[found] == n)
        starts = (*starts[:found], n, *starts[rest:])
        blocks = (*blocks[:found], block, *blocks[rest:])
        if len(starts) <= BLOCK_MAX:
            return self._with(at, (starts, blocks))
        half = BLOCK_MAX // 2
        return self._with(at, (starts[:half], blocks[:half]), (starts[half:], blocks[half:]))

    def drop(self, n: int) -> _Starts:
        """Without n, which is there."""
        at = bisect_right(self.firsts, n) - 1
        starts, blocks = self.chunks[at]
        found = bisect_left(starts, n)
        starts = starts[:found] + starts[found + 1 :]
        blocks = blocks[:found] + blocks[found + 1 :]
        return self._with(at, (starts, blocks)) if starts else self._with(at)

    def _with(self, at: int, *parts: _Chunk) -> _Starts:
        chunks, firsts = self.chunks.copy(), self.firsts.copy()
        chunks[at : at + 1] = parts
        firsts[at : at + 1] = [starts[0] for starts, _ in parts]
        return _Starts(firsts, chunks)


def _shown(runs: Iterable[Run]) -> int:
    return sum(run[2] for run in runs if run[3] is not None)


def _continues(a: Run, b: Run) -> bool:
    """Whether b, of the same author, goes on where a ends, seen or not like it."""
    return a[1] + a[2] == b[1] and (a[3] is None) is (b[3] is None)


def _joined(a: Run, b: Run) -> Run | None:
    """One run for both, where b of the same author continues a."""
    if not _continues(a, b):
        return None
    content = None if a[3] is None or b[3] is None else a[3] + b[3]
    return a[0], a[1], a[2] + b[2], content


def _part(run: Run, start: int, end: int) -> Run:
    """Characters start..end of the run, counted from its first."""
    author, n, _, content = run
    return author, n + start, end - start, None if content is None else content[start:end]


def _weight(run: Run) -> int:
    """At least the bytes of the run's JSON, and of the content's in the plain string."""
    content = run[3]
    return RUN_WEIGHT + len(run[0]) + (2 * _content_bytes(content) if content else 0)


def _content_bytes(content: str) -> int:
    """Length of its JSON without quotes, so that the parts of a content add up to it."""
    return len(msgspec.json.encode(content)) - 2


def _shared(a: Run, b: Run) -> int:
    """What two neighbours weigh less because they are written as one."""
    return RUN_WEIGHT + len(a[0]) if a[0] == b[0] and _continues(a, b) else 0


def _compact(runs: Iterable[Run]) -> list[Run]:
    """The same runs, neighbours joined."""
    made: list[Run] = []
    for run in runs:
        one = _joined(made[-1], run) if made and made[-1][0] == run[0] else None
        if one is None:
            made.append(run)
        else:
            made[-1] = one
    return made


class Text:
    """See the module. Positions and counts are code points."""

    __slots__ = ("_blocks", "_index", "_next", "_numbers", "_sizes", "_string", "_weight")

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        every = _compact(runs)
        half = BLOCK_MAX // 2  # room to grow
        blocks = [tuple(every[at : at + half]) for at in range(0, len(every), half)]
        self._blocks: list[tuple[Run, ...]] = blocks
        self._numbers = list(range(len(blocks)))
        self._sizes = list(map(_shown, blocks))
        self._next = len(blocks)
        self._string: str | None = None
        self._weight: int | None = None  # not asked for yet
        starts: dict[str, list[tuple[int, int]]] = {}
        for number, block in enumerate(blocks):
            for author, n, _, _ in block:
                starts.setdefault(author, []).append((n, number))
        self._index = {author: _sorted_starts(found) for author, found in starts.items()}

    @classmethod
    def of(cls, content: str, author: str = INIT) -> Text:
        """A text of one author's characters 0, 1, ..."""
        return cls([(author, 0, len(content), content)] if content else [])

    @classmethod
    def from_wire(cls, runs: list[Any]) -> Text:
        """Of runs `[author, n, content]`, or `[author, n, count]` for those not seen."""
        return cls(
            (author, n, len(held), held) if type(held) is str else (author, n, held, None)
            for author, n, held in runs
        )

    def wire(self) -> list[list[Any]]:
        """The runs as `from_wire` takes them, neighbours joined."""
        return [
            [author, n, count if content is None else content]
            for author, n, count, content in _compact(self)
        ]

    def __iter__(self) -> Iterator[Run]:
        for block in self._blocks:
            yield from block

    def __str__(self) -> str:
        if self._string is None:
            self._string = "".join([run[3] for run in self if run[3] is not None])
        return self._string

    def __len__(self) -> int:
        return sum(self._sizes)

    @property
    def empty(self) -> bool:
        """There is no character, seen or not."""
        return not self._blocks

    @property
    def weight(self) -> int:
        """See weight.py. Found out once; edits carry it on."""
        if self._weight is None:
            self._weight = sum([_weight(run) for run in _compact(self)])
        return self._weight

    # -- looking -----------------------------------------------------------------------------------

    def _find(self, author: str, n: int) -> tuple[int, int, int] | None:
        """(block, run, offset) of a character; None where it never was."""
        starts = self._index.get(author)
        found = None if starts is None else starts.floor(n)
        if found is None:
            return None
        start, number = found
        at = self._numbers.index(number)
        for index, run in enumerate(self._blocks[at]):
            if run[1] == start and run[0] == author:
                return (at, index, n - start) if n - start < run[2] else None
        raise AssertionError(f"the index leads to a block without {author}:{start}")

    def knows(self, author: str, n: int) -> bool:
        """Whether the character is here, seen or not."""
        return self._find(author, n) is not None

    def overlaps(self, author: str, n: int, count: int) -> bool:
        """Whether one of the characters n..n+count is here."""
        starts = self._index.get(author)
        found = None if starts is None else starts.floor(n + count - 1)
        if found is None:
            return False
        at, index, _ = self._find(author, found[0]) or (0, 0, 0)
        return found[0] + self._blocks[at][index][2] > n

    def next_of(self, author: str) -> int:
        """One above the author's highest character; 0 where there is none."""
        starts = self._index.get(author)
        if starts is None:
            return 0
        start, _ = starts.last()
        at, index, _ = self._find(author, start) or (0, 0, 0)
        return start + self._blocks[at][index][2]

    def anchor_at(self, position: int) -> tuple[str, int] | None:
        """The visible character before the position, clamped to the text; None at its start."""
        ends = list(accumulate(self._sizes))
        left = min(position, ends[-1] if ends else 0)
        if left <= 0:
            return None
        at = bisect_left(ends, left)
        left -= ends[at] - self._sizes[at]
        for author, n, count, content in self._blocks[at]:
            if content is None:
                continue
            if left <= count:
                return author, n + left - 1
            left -= count
        raise AssertionError("sizes do not add up")

    def ranges_at(self, position: int, count: int) -> list[Range]:
        """The visible characters from the position on, clamped to the text."""
        found: list[Range] = []
        skip = max(0, position)
        for at, size in enumerate(self._sizes):
            if count <= 0:
                break
            if skip >= size:
                skip -= size
                continue
            for author, n, length, content in self._blocks[at]:
                if content is None or count <= 0:
                    continue
                if skip >= length:
                    skip -= length
                    continue
                taken = min(length - skip, count)
                found.append((author, n + skip, taken))
                count -= taken
                skip = 0
        return found

    # -- editing -----------------------------------------------------------------------------------

    def insert(
        self, author: str, n: int, content: str, anchor: tuple[str, int] | None, *,
        visible: bool = True,
    ) -> Text:  # fmt: skip
        """Characters n, n+1, ... directly after `anchor`; None: at the start. They must not
        overlap those here. An unknown anchor stands for the end.
        """
        if not content:
            return self
        fresh: Run = (author, n, len(content), content if visible else None)
        if not self._blocks:
            return Text([fresh])
        if anchor is None:
            return self._put(0, 0, 0, [fresh])
        found = self._find(*anchor)
        if found is None:
            return self._put(len(self._blocks) - 1, len(self._blocks[-1]), 0, [fresh])
        at, index, offset = found
        run = self._blocks[at][index]
        if offset + 1 == run[2]:
            return self._put(at, index + 1, 0, [fresh])
        parts = [_part(run, 0, offset + 1), fresh, _part(run, offset + 1, run[2])]
        return self._put(at, index, 1, parts)

    def delete(self, ranges: Iterable[Range]) -> Text:
        """Without the characters; those not here are passed over."""
        text = self
        for author, n, count in ranges:
            end = n + count
            while n < end:
                found = text._find(author, n)
                if found is None:
                    starts = text._index.get(author)
                    above = None if starts is None else starts.above(n)
                    if above is None:
                        break
                    n = above  # noqa: PLW2901
                    continue
                at, index, offset = found
                run = text._blocks[at][index]
                upto = min(run[2], offset + end - n)
                if run[3] is not None:
                    parts = [
                        _part(run, 0, offset),
                        (author, run[1] + offset, upto - offset, None),
                        _part(run, upto, run[2]),
                    ]
                    text = text._put(at, index, 1, [part for part in parts if part[2]])
                n = run[1] + upto  # noqa: PLW2901
        return text

    def _put(self, at: int, index: int, gone: int, parts: list[Run]) -> Text:
        """Put the parts in place of `gone` runs from `index` on in block `at`."""
        block = self._blocks[at]
        low, high = max(0, index - 1), min(len(block), index + gone + 1)
        before = block[low:high]
        after = _compact([*block[low:index], *parts, *block[index + gone : high]])
        runs = (*block[:low], *after, *block[high:])
        index_by_author = self._index.copy()
        had = {run[:2] for run in before}
        has = {run[:2] for run in after}
        for author, n in had - has:
            index_by_author[author] = index_by_author[author].drop(n)
        for author, n in has - had:
            index_by_author[author] = index_by_author.get(author, _NO_STARTS).put(
                n, self._numbers[at]
            )
        new = Text.__new__(Text)
        new._string = None
        new._weight = None
        if self._weight is not None:
            new._weight = self._weight + sum(map(_weight, after)) - sum(map(_weight, before))
            new._weight += self._shared_around(at, block) - self._shared_around(at, runs)
        new._index = index_by_author
        new._blocks, new._sizes = self._blocks.copy(), self._sizes.copy()
        new._numbers, new._next = self._numbers, self._next  # shared until a block is split
        if len(runs) <= BLOCK_MAX:
            new._blocks[at] = runs
            new._sizes[at] += _shown(after) - _shown(before)
            return new
        half = len(runs) // 2
        blocks = [runs[:half], runs[half:]]
        for author, n, _, _ in blocks[1]:
            index_by_author[author] = index_by_author[author].put(n, self._next)
        new._blocks[at : at + 1] = blocks
        new._sizes[at : at + 1] = map(_shown, blocks)
        new._numbers = self._numbers.copy()
        new._numbers.insert(at + 1, self._next)
        new._next += 1
        return new

    def _shared_around(self, at: int, runs: tuple[Run, ...]) -> int:
        """What the first and last of `runs` share with the blocks around block `at`."""
        found = 0
        if at > 0:
            found += _shared(self._blocks[at - 1][-1], runs[0])
        if at + 1 < len(self._blocks):
            found += _shared(runs[-1], self._blocks[at + 1][0])
        return found


_NO_STARTS: Final = _Starts([], [])


def _sorted_starts(found: list[tuple[int, int]]) -> _Starts:
    found.sort()
    half = BLOCK_MAX // 2
    parts = [found[at : at + half] for at in range(0, len(found), half)]
    return _Starts(
        [part[0][0] for part in parts],
        [(tuple(n for n, _ in part), tuple(block for _, block in part)) for part in parts],
    )
