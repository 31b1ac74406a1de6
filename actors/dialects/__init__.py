"""The registry of dialects: one line each. A dialect's actor side is `plan` and `apply`, both pure.

`plan(draft, seq, at)` turns a draft into the entries it becomes, or raises Refusal. `apply(overlay,
entry, only)` folds an entry into rows, or raises Refusal, upon which the whole draft is dropped.
`only` restricts the fold to some (coll, id): for rows that lag behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from actors.dialects.asterql.plan import AsterqlDialect
from actors.rows import Key, Overlay
from actors.types import Draft, Entry
from infra.errors import FileRefused


class Dialect(Protocol):
    """What an actor needs of a dialect."""

    name: str

    def plan(self, draft: Draft, seq: int, at: int) -> Sequence[Entry]:
        """The entries from `seq` on that the draft becomes. Raises Refusal."""

    def renumber(self, body: str, seq: int) -> str:
        """The stored body of an entry that gets another seq."""

    def apply(self, overlay: Overlay, entry: Entry, only: frozenset[Key] | None = None) -> None:
        """Fold the entry into the rows. Raises Refusal."""


_DIALECTS: dict[str, Dialect] = {"asterql": AsterqlDialect()}


def dialect_named(name: str) -> Dialect:
    """Raises FileRefused for a ledger whose dialect this Holdfast does not know."""
    try:
        return _DIALECTS[name]
    except KeyError:
        raise FileRefused(
            f"the ledger speaks {name!r}, which this Holdfast does not know"
        ) from None
