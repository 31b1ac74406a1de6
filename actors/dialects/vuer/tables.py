"""Persistent containers: a change gives a new one that shares nearly everything with the old. Pure.

`Table` maps text to values in two levels of 64 and a small dict, so a change copies some 150
pointers however many entries there are. `Blocks` is a list in blocks of at most 256 items.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar, cast
from zlib import crc32

V = TypeVar("V")
T = TypeVar("T")

_FAN: Final = 64
BLOCK_MAX: Final = 256

_Leaf = dict[str, V]


class Table(Mapping[str, V], Generic[V]):
    """An immutable mapping from text; `updated` gives a changed one."""

    __slots__ = ("_count", "_root")

    def __init__(self, items: Iterable[tuple[str, V]] = ()) -> None:
        self._root: list[list[_Leaf[V] | None] | None] = [None] * _FAN
        self._count = 0
        for key, value in items:
            at = crc32(key.encode("utf-8", "surrogatepass"))
            middle = self._root[at % _FAN]
            if middle is None:
                middle = self._root[at % _FAN] = [None] * _FAN
            leaf = middle[at // _FAN % _FAN]
            if leaf is None:
                leaf = middle[at // _FAN % _FAN] = {}
            self._count += key not in leaf
            leaf[key] = value

    def updated(self, changes: Mapping[str, V | None]) -> Table[V]:
        """With the changes; a value of None takes the key out."""
        if not changes:
            return self
        new: Table[V] = Table()
        root = new._root = self._root.copy()
        count = self._count
        fresh: set[int] = set()  # what was copied here already; numbers of leaves, and -1-middle
        for key, value in changes.items():
            at = crc32(key.encode("utf-8", "surrogatepass")) % (_FAN * _FAN)
            high, low = at % _FAN, at // _FAN
            middle = root[high]
            if -1 - high not in fresh:
                middle = root[high] = [None] * _FAN if middle is None else middle.copy()
                fresh.add(-1 - high)
            assert middle is not None
            leaf = middle[low]
            if at not in fresh:
                leaf = middle[low] = {} if leaf is None else leaf.copy()
                fresh.add(at)
            assert leaf is not None
            if value is None:
                count -= leaf.pop(key, None) is not None
            else:
                count += key not in leaf
                leaf[key] = value
        new._count = count
        return new

    def get(self, key: str, default: V | None = None) -> V | None:  # type: ignore[override]
        at = crc32(key.encode("utf-8", "surrogatepass"))
        middle = self._root[at % _FAN]
        if middle is None:
            return default
        leaf = middle[at // _FAN % _FAN]
        return default if leaf is None else leaf.get(key, default)

    def __getitem__(self, key: str) -> V:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        for middle in self._root:
            for leaf in middle or ():
                yield from leaf or ()

    def __len__(self) -> int:
        return self._count


class Blocks(Generic[T]):
    """An immutable list; adding at the end copies one block."""

    __slots__ = ("_blocks", "_count")

    def __init__(self, items: Iterable[T] = ()) -> None:
        every = tuple(items)
        self._count = len(every)
        self._blocks = tuple(every[at : at + BLOCK_MAX] for at in range(0, len(every), BLOCK_MAX))

    def added(self, item: T) -> Blocks[T]:
        """With one more at the end."""
        new: Blocks[T] = Blocks()
        new._count = self._count + 1
        if self._blocks and len(self._blocks[-1]) < BLOCK_MAX:
            new._blocks = (*self._blocks[:-1], (*self._blocks[-1], item))
        else:
            new._blocks = (*self._blocks, (item,))
        return new

    def without(self, item: T) -> Blocks[T]:
        """With the first one equal to `item` taken out."""
        for number, block in enumerate(self._blocks):
            if item in block:
                at = block.index(item)
                rest = block[:at] + block[at + 1 :]
                new: Blocks[T] = Blocks()
                new._count = self._count - 1
                new._blocks = self._blocks[:number] + ((rest,) if rest else ())
                new._blocks += self._blocks[number + 1 :]
                return new
        return self

    def __iter__(self) -> Iterator[T]:
        for block in self._blocks:
            yield from block

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Blocks):
            return self._count == other._count and all(
                a == b for a, b in zip(self, other, strict=True)
            )
        return isinstance(other, list | tuple) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Blocks({list(self)!r})"


NO_CHILDREN: Final[Blocks[str]] = cast("Blocks[str]", Blocks())
