"""How far a reader has come in each scope: a dictionary with three rules, no clock, no I/O.

A cursor is the seq of the last envelope the reader has taken (0: none yet). Always true:
it grows by exactly one, it grows even when taking the envelope failed (the failure is the taker's,
the stream goes on), and only `begin_scope` moves it anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Outcome = Literal["applied", "duplicate", "gap"]

APPLIED: Final[Outcome] = "applied"
DUPLICATE: Final[Outcome] = "duplicate"
GAP: Final[Outcome] = "gap"


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in one unbroken history; `epoch` is None where the server has not named it yet."""

    seq: int
    epoch: str | None = None


class ScopeCursors:
    """The cursors of one reader, by scope."""

    def __init__(self) -> None:
        self._cursors: dict[str, Cursor] = {}

    def begin_scope(self, scope: str, seq: int, epoch: str | None = None) -> None:
        """Put the cursor of `scope` at `seq`, forward or back: the one explicit reset."""
        if seq < 0:
            raise ValueError(f"cursor {seq} of {scope!r} is negative")
        self._cursors[scope] = Cursor(seq, epoch)

    def forget_scope(self, scope: str) -> None:
        """Drop the cursor; the scope counts as never begun."""
        self._cursors.pop(scope, None)

    def cursor(self, scope: str) -> Cursor | None:
        """Where the reader stands, None if the scope was never begun and nothing was taken."""
        return self._cursors.get(scope)

    def scope_last_seq(self, scope: str) -> int:
        """Seq of the last envelope taken, 0 if none."""
        held = self._cursors.get(scope)
        return 0 if held is None else held.seq

    def scope_epoch(self, scope: str) -> str | None:
        """The history the cursor belongs to, None if unknown."""
        held = self._cursors.get(scope)
        return None if held is None else held.epoch

    def ingest_sequenced(
        self, scope: str, seq: int, take: Callable[[], object] | None = None
    ) -> Outcome:
        """Call `take` if `seq` is next, and say what became of it.

        `duplicate` and `gap` leave everything as it was. The cursor moves before `take` runs, so
        an exception out of `take`, which passes through, leaves the cursor at `seq`.
        """
        held = self._cursors.get(scope)
        last = 0 if held is None else held.seq
        if seq <= last:
            return DUPLICATE
        if seq > last + 1:
            return GAP
        self._cursors[scope] = Cursor(seq, None if held is None else held.epoch)
        if take is not None:
            take()
        return APPLIED
