"""The registry of dialects: one line each. A dialect's actor side is `plan` and `apply`, both pure.

`plan(draft, seq, at, rows)` turns a draft into the entries it becomes (none, one or several), or
raises Refusal; it may read `rows`, must not change them, and may set `draft.outcome`, the answer
that repeats of the draft get again. `apply(overlay, entry, only)` folds an entry into rows, or
raises Refusal, upon which the whole draft is dropped. `only` restricts the fold to some (coll, id):
for rows that lag behind. `apply` needs nothing but the entry, so a file can be folded by whoever
knows its dialect's name; what an application configures (models, say) is for `plan` and `schema`,
and reaches a scope as a dialect object of its host (`HostSettings.dialects`).

A scope has one dialect for life, by its name (actors/dialects/kinds.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from actors.dialects.asterql.plan import AsterqlDialect
from actors.dialects.para.plan import ParaDialect
from actors.dialects.starkeep.plan import StarkeepDialect
from actors.dialects.stratasync.plan import StrataDialect
from actors.dialects.vuer.plan import VuerDialect
from actors.rows import Key, Overlay
from actors.types import Draft, Entry
from infra.errors import FileRefused

# What a file has (name of a table, index or view to its SQL) -> the statements it lacks. May raise
# FileRefused where what is there cannot be brought to what is needed.
Schema = Callable[[Mapping[str, str]], Sequence[str]]


class Dialect(Protocol):
    """What an actor needs of a dialect.

    `whole_entries`: its followers need refs and groups, so batches carry entries beside bodies.
    `needs_rows`: rows are kept whatever the configuration's `materialize` says. `schema` is asked
    when a scope is opened; what it returns is committed before anything else. None: no tables,
    indexes or views of its own.
    """

    name: str
    whole_entries: bool
    needs_rows: bool

    @property
    def schema(self) -> Schema | None: ...

    def plan(self, draft: Draft, seq: int, at: int, rows: Overlay) -> Sequence[Entry]:
        """The entries from `seq` on that the draft becomes. Raises Refusal."""

    def renumber(self, body: str, seq: int) -> str:
        """The stored body of an entry that gets another seq."""

    def apply(self, overlay: Overlay, entry: Entry, only: frozenset[Key] | None = None) -> None:
        """Fold the entry into the rows. Raises Refusal."""


@runtime_checkable
class NamedBodies(Protocol):
    """What a dialect has besides where the stored bodies repeat the entry's seq and the scope."""

    def named(self, body: str) -> tuple[int, str]:
        """(seq, scope) as a stored body says them. Raises ValueError where it does not."""

    def rename(self, body: str, scope: str) -> str:
        """The stored body of the same entry in a scope of another name."""


@runtime_checkable
class KeepsBases(Protocol):
    """What a dialect has besides that says itself how much history is kept, because entries may
    still change what others mean: its plan sets `rows.trim_to`. Entries up to there go with the
    commit, so their part of the state has to be written down in rows first.
    """

    def rebase(self, overlay: Overlay, floor: int) -> None:
        """Put into rows what later folds need of the entries up to `floor`. Must not raise."""

    def refold(self, overlay: Overlay, head: int, keys: Iterable[Key]) -> None:
        """Put rows whose stored copy lags behind as they are at the head, of base and entries."""


@runtime_checkable
class KeepsContents(Protocol):
    """What a dialect has besides whose rows name bytes that lie outside the ledger, by scope."""

    contents: str  # the collection of those rows


_DIALECTS: dict[str, Dialect] = {
    "asterql": AsterqlDialect(),
    "para-sync": ParaDialect(),
    "starkeep": StarkeepDialect(),
    "stratasync": StrataDialect(),
    "vuer-rtc": VuerDialect(),
}


def dialect_named(name: str) -> Dialect:
    """Raises FileRefused for a ledger whose dialect this Holdfast does not know."""
    try:
        return _DIALECTS[name]
    except KeyError:
        raise FileRefused(
            f"the ledger speaks {name!r}, which this Holdfast does not know"
        ) from None
