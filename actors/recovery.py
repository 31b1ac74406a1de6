"""Rows whose copy in the file lags behind their entries, brought up to the head after a crash."""

from __future__ import annotations

from actors.dialects import Dialect, KeepsBases
from actors.ledger import Ledger
from actors.rows import Key, Overlay, Row, RowCache


def fold_behind(
    ledger: Ledger, dialect: Dialect, rows: RowCache, at: int
) -> tuple[dict[Key, Row | None], list[Key]]:
    """(rows to store, keys that lagged): each stored copy with the entries after it folded in."""
    lagging = ledger.unfolded()
    if isinstance(dialect, KeepsBases):
        overlay = Overlay(rows, at=at, floor=ledger.header.floor, jump=ledger.header.jump)
        dialect.refold(overlay, ledger.header.head, lagging)
        overlay.accept()
        return dict(overlay.batch), list(lagging)
    overlay = Overlay(rows, at=at)
    for entry in ledger.entries(min(lagging.values()), ledger.header.head):
        newer = frozenset(key for key, stored in lagging.items() if stored < entry.seq)
        dialect.apply(overlay, entry, newer)
        overlay.accept()
    return {key: row for key, row in overlay.batch.items() if key in lagging}, list(lagging)
