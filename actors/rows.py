"""The materialised rows of one scope while it is open: a bounded cache and the overlay plans work
on.

A batch is planned in memory. `Overlay` reads through to the cache and the file, and keeps what each
draft changes apart until the draft is accepted, so a refused draft costs a dropped dictionary.
Always true: the cache holds the state of the last commit, never of a batch that may still fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import msgspec

from actors.types import Entry

CACHE_BYTES_MAX = 512 << 10  # of JSON text, per open scope
ABSENT_MAX = 256  # keys known to have no row, per open scope
BIG_ROW_BYTES = 16 << 10  # a row above this is not written at each change (docs/ledger.md)
UNFOLDED_CHANGES_MAX = 64
UNFOLDED_ENTRIES_MAX = 1024
LAGGING_BYTES_MAX = 64 << 20  # of all rows that lag, which stay in memory; then they are written

Key = tuple[str, str]  # (coll, id)


@runtime_checkable
class Wire(Protocol):
    """A row's value that a dialect holds in a form of its own."""

    def wire(self) -> Any:
        """The value as JSON."""


def wire_value(value: Any) -> Any:
    """What msgspec asks for a value it does not know."""
    if isinstance(value, Wire):
        return value.wire()
    raise NotImplementedError(f"a row cannot hold a {type(value).__name__}")


def _no_entries(after: int, upto: int) -> list[Entry]:
    raise NotImplementedError("these rows come without their history")


def _no_ids(coll: str) -> list[str]:
    raise NotImplementedError("these rows are not listed")


class Row(msgspec.Struct):
    """One thing's state. Never changed in place: a change is a new Row.

    `size` is the JSON text's length where exactly known, else an upper bound; `stored` is the seq
    the file's copy was written at (0: no copy), `pending` the changes since then.
    """

    value: Any
    rev: int
    seq: int
    size: int
    stored: int = 0
    pending: int = 0
    origin: str | None = None
    stamp1: int | None = None
    stamp2: int | None = None
    grp: str | None = None
    deleted: bool = False


class RowCache:
    """Rows of the last commit, newest use last, and which keys have none.
    Rows with changes the file lacks are never dropped.
    """

    def __init__(
        self,
        load: Callable[[str, str], Row | None],
        entries: Callable[[int, int], list[Entry]] = _no_entries,
        ids: Callable[[str], list[str]] = _no_ids,
    ) -> None:
        self._load = load
        self.entries = entries  # those with after < seq <= upto that are committed
        self.ids = ids  # of a collection's committed rows
        self._rows: dict[Key, Row] = {}
        self._absent: dict[Key, None] = {}
        self._bytes = 0
        self.lagging: dict[Key, Row] = {}  # rows whose file copy is behind

    def get(self, key: Key) -> Row | None:
        row = self._rows.get(key)
        if row is None and key not in self._absent:
            row = self._load(*key)
            if row is None:
                self._note_absent(key)
            else:
                self._rows[key] = row
                self._bytes += row.size
                if self._bytes > CACHE_BYTES_MAX:  # refused drafts read as well
                    self._shrink()
        return row

    def commit(self, changed: dict[Key, Row | None], cleared: set[str]) -> None:
        """Take over what a committed batch changed (None: the row is gone)."""
        for coll in cleared:
            for key in [key for key in self._rows if key[0] == coll]:
                self._bytes -= self._rows.pop(key).size
                self.lagging.pop(key, None)
        rows, lagging = self._rows, self.lagging
        for key, row in changed.items():
            old = rows.pop(key, None)
            if old is not None:
                self._bytes -= old.size
                if old.pending:
                    lagging.pop(key, None)
            if row is not None:
                rows[key] = row
                self._absent.pop(key, None)
                self._bytes += row.size
                if row.pending:
                    lagging[key] = row
        if self._bytes > CACHE_BYTES_MAX:
            self._shrink()

    def _note_absent(self, key: Key) -> None:
        # Some keys are asked for at every write, such as the memberships of a user who has none.
        if len(self._absent) >= ABSENT_MAX:
            self._absent.clear()
        self._absent[key] = None

    def _shrink(self) -> None:
        # Oldest first, to half of the limit: called once in many commits, not at each.
        for key in list(self._rows):
            if self._bytes <= CACHE_BYTES_MAX // 2:
                break
            if not self._rows[key].pending:
                self._bytes -= self._rows.pop(key).size


class Overlay:
    """What `plan` and `apply` see: the last commit, this batch's accepted drafts, this draft's
    changes.
    """

    def __init__(
        self,
        base: RowCache,
        *,
        at: int,
        floor: int = 0,
        jump: int = 0,
        bytes_kept: int = 0,
        clock: str | None = None,
    ) -> None:
        self.at = at
        self.floor = floor
        self.jump = jump  # seq - jump counts entries through every cut of the history
        self.bytes_kept = bytes_kept  # of the entries above the floor, before this batch
        self.trim_to = floor  # the floor a dialect that keeps bases wants to move to
        self.settle = False  # a dialect asks that no row lags behind after this batch
        self.clock = clock  # the dialect's own text of the scope row; None: none yet
        self.flags: dict[int, int] = {}  # by seq, as they shall be
        self.planned: list[Entry] = []  # what this batch has accepted so far
        self.batch: dict[Key, Row | None] = {}
        self.cleared: set[str] = set()
        self._base = base
        self._draft: dict[Key, Row | None] = {}
        self._draft_cleared: set[str] = set()

    def get(self, coll: str, id: str) -> Row | None:
        """The row as this draft sees it; None where there is none."""
        key = (coll, id)
        if key in self._draft:
            return self._draft[key]
        if coll in self._draft_cleared:
            return None
        if key in self.batch:
            return self.batch[key]
        if coll in self.cleared:
            return None
        return self._base.get(key)

    def history(self, before: int) -> list[Entry]:
        """All entries above the floor with a lower seq than `before`, oldest first."""
        planned = [entry for entry in self.planned if entry.seq < before]
        upto = planned[0].seq if planned else before
        return [*self._base.entries(self.floor, upto - 1), *planned]

    def ids(self, coll: str) -> set[str]:
        """The ids of all rows of the collection, as this draft sees them."""
        every = [*self._base.ids(coll)] + [
            id for changes in (self.batch, self._draft) for c, id in changes if c == coll
        ]
        return {id for id in every if self.get(coll, id) is not None}

    def put(self, coll: str, id: str, value: Any, *, seq: int, grown: int) -> Row:
        """Set the value; `grown` is an upper bound of how much longer its JSON text became."""
        old = self.get(coll, id)
        if old is None:
            row = Row(value, 1, seq, grown, 0, 1)
        else:
            row = Row(value, old.rev + 1, seq, old.size + grown, old.stored, old.pending + 1)
        self._draft[(coll, id)] = row
        return row

    def replace(self, coll: str, id: str, row: Row) -> None:
        """Set a whole row, stamps included."""
        self._draft[(coll, id)] = row

    def remove(self, coll: str, id: str) -> None:
        self._draft[(coll, id)] = None

    def clear(self, coll: str) -> None:
        """Remove every row of the collection."""
        for key in [key for key in self._draft if key[0] == coll]:
            del self._draft[key]
        self._draft_cleared.add(coll)

    def accept(self) -> None:
        """Keep what the draft changed."""
        if self._draft_cleared:
            for key in [key for key in self.batch if key[0] in self._draft_cleared]:
                del self.batch[key]
            self.cleared |= self._draft_cleared
            self._draft_cleared = set()
        if self._draft:
            self.batch.update(self._draft)
            self._draft = {}

    def refuse(self) -> None:
        """Forget what the draft changed."""
        self._draft = {}
        self._draft_cleared = set()


def must_store(row: Row, head: int) -> bool:
    """Whether the file needs this row now.

    A big one may lag behind by a bounded tail of entries.
    """
    return (
        row.size <= BIG_ROW_BYTES
        or row.stored == 0
        or row.pending >= UNFOLDED_CHANGES_MAX
        or head - row.stored >= UNFOLDED_ENTRIES_MAX
    )
