"""How much history a scope keeps: by count, age and bytes; whichever keeps fewest wins. Pure.

Entries go in steps, so that a commit removes a bounded number, and never below one entry. Rows
never go: bootstrap is always possible (I5).
"""

from __future__ import annotations

from typing import Protocol

from actors.header import Header
from actors.types import Retention

TRIM_STEP = 256  # entries removed in one transaction, at least
AGE_CHECK_MS = 1000
NO_LIMIT = Retention(0, 0, 0)


class History(Protocol):
    """What is asked of a ledger."""

    header: Header

    def oldest(self, count: int) -> list[tuple[int, int, int]]:
        """(seq, at, bytes) of the oldest entries."""


class Trimmer:
    """The retention of one scope, and when age and size were last looked at."""

    def __init__(self, keep: Retention) -> None:
        self._keep = keep
        self._looked_at = 0

    def is_behind(self, header: Header) -> bool:
        """Whether so much is over that trimming should not wait for the next write."""
        keep = self._keep.entries
        return bool(keep) and header.head - header.floor - keep > max(TRIM_STEP * 2, keep)

    def new_floor(self, ledger: History, added: int, at: int) -> int | None:
        """The floor to move to with a commit of `added` entries; None: it stays."""
        header, keep = ledger.header, self._keep
        head = header.head + added
        floor = header.floor
        if keep.entries:
            excess = head - floor - max(1, keep.entries)
            if excess > min(TRIM_STEP, keep.entries // 16):
                floor += excess
        if (keep.seconds or keep.bytes) and at - self._looked_at >= AGE_CHECK_MS:
            self._looked_at = at
            floor = max(floor, self._by_age_and_size(ledger, at))
        floor = min(floor, header.floor + max(TRIM_STEP, 2 * added), head - 1)
        return floor if floor > header.floor else None

    def _by_age_and_size(self, ledger: History, at: int) -> int:
        keep = self._keep
        floor, size = ledger.header.floor, ledger.header.bytes
        for seq, entry_at, entry_bytes in ledger.oldest(TRIM_STEP):
            old = keep.seconds and entry_at < at - keep.seconds * 1000
            if not old and not (keep.bytes and size > keep.bytes):
                break
            floor, size = seq, size - entry_bytes
        return floor
