"""Which rows a commit writes, and which big ones lag behind (docs/ledger.md). Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from actors.rows import LAGGING_BYTES_MAX, Key, Overlay, Row, must_store
from actors.write import Write


def choose_rows(write: Write, overlay: Overlay, lagging: Mapping[Key, Row], head: int) -> None:
    """Fill in `rows`, `unfolded` and `folded` of the write; `head` is the one before it."""
    head = write.entries[-1].seq if write.entries else head
    rows: dict[Key, Row | None] = {}
    settle = overlay.settle or sum([row.size for row in lagging.values()]) > LAGGING_BYTES_MAX
    for key, row in overlay.batch.items():
        # A copy from below the floor has no tail to be brought up to date with.
        if row is None or settle or row.stored < overlay.floor or must_store(row, head):
            rows[key] = row
        else:
            write.unfolded[key] = row.stored
    for key, row in lagging.items():
        if key in overlay.batch or key[0] in overlay.cleared:
            continue
        behind = write.floor is not None and row.stored < write.floor
        if settle or behind or must_store(row, head):
            rows[key] = overlay.batch[key] = msgspec.structs.replace(row)
    if write.floor is not None:
        for key in [key for key, stored in write.unfolded.items() if stored < write.floor]:
            del write.unfolded[key]
            rows[key] = overlay.batch[key]
    write.rows = rows
    write.folded = [key for key in rows if key in lagging] if lagging else []
