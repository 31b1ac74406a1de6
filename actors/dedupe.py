"""Which causes a scope has seen lately: cause -> seq of its first entry, in memory, bounded.

The entries themselves are the record (`entries.cause`), so an append writes no index. Retention
moves the causes it takes to the `dedupe` table. The window holds at least the newest 100,000 of
both (docs/adr/0004), in two generations: dropping a whole one is free, shrinking a dict is not.
"""

from __future__ import annotations

from actors.types import Appended, Draft

WINDOW_MAX = 100_000
WINDOW_AGE_MS = 30 * 24 * 3600 * 1000
GENERATION = WINDOW_MAX

Notes = dict[str, tuple[str, int, int, str | None]]  # cause -> its row in `dedupe`


class DedupeWindow:
    """`known` is oldest first."""

    def __init__(self, known: list[tuple[str, int]]) -> None:
        self._new = dict(known[-GENERATION:])
        self._old: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def get(self, cause: str) -> int | None:
        """The seq of the first entry this cause made."""
        seq = self._new.get(cause)
        if seq is None and self._old:
            seq = self._old.get(cause)
        return seq

    def add(self, causes: dict[str, int]) -> bool:
        """Causes of a committed batch; True when a generation was dropped."""
        self._new.update(causes)
        if len(self._new) < GENERATION:
            return False
        dropped = bool(self._old)
        self._new, self._old = {}, self._new
        return dropped


def noted(draft: Draft, head: int, count: int, causes: dict[str, int], notes: Notes) -> Appended:
    """The answer to a draft that is not simply one entry, kept in the file for its repeats.

    One that made no entry and has no outcome is not remembered: a repeat is planned anew.
    """
    cause, outcome = draft.cause, draft.outcome
    first = head + 1 if count else head
    if cause and (count or outcome is not None):
        causes[cause] = first
        notes[cause] = (cause, first, count, outcome)
    return Appended(head + 1, head + count, outcome)
