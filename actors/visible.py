"""Entries as a reader of some groups sees them, page by page."""

from __future__ import annotations

from typing import Any

from actors.types import Bounds, Entry, EntryPage
from infra.sqlite import Handle

VISIBLE_SCAN_MAX = 20_000  # entries looked at for one page of a reader's groups
_VISIBLE = (
    "SELECT seq, at, kind, cause, body, origin, ref, grp, stamp1, stamp2, flags FROM entries"
    " WHERE seq>? AND seq<=? AND (grp IS NULL OR grp IN (SELECT value FROM json_each(?)))"
    " ORDER BY seq LIMIT ?"
)


def visible_page(
    db: Handle, after: int, bounds: Bounds, groups: str, entries_max: int, bytes_max: int
) -> EntryPage:
    """Entries after a cursor of no group or of one in `groups`, a JSON list; at least one if any.

    `EntryPage.next` passes what was looked at and hidden.
    """
    # Few may be visible: one page does not scan for ever.
    upto = min(bounds.head, after + VISIBLE_SCAN_MAX)
    found: list[Entry] = []
    size = 0
    for values in db.execute(_VISIBLE, (after, upto, groups, entries_max)):
        size += len(values[4])
        if found and size > bytes_max:
            return EntryPage(found[-1].seq, found, bounds)
        found.append(entry_of(values))
    return EntryPage(found[-1].seq if len(found) == entries_max else upto, found, bounds)


def entry_of(values: tuple[Any, ...]) -> Entry:
    """The entry of a row in the order of the columns above."""
    seq, at, kind, cause, body, *rest = values
    return Entry(seq, at, kind, cause, body, len(body.encode()), None, *rest)
