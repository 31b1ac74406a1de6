"""Last writer wins, for rows: what a held row becomes when an entry meets it. Pure.

The stamp decides, never the order of arrival: a strictly later entry wins, at a tie the held copy
stays, so replay changes nothing. A tombstone keeps the key columns alone and is stored for rows
never held too, or it would be shipped again for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from actors.clocks import HLC, later
from actors.dialects.starkeep.namespaces import TableInfo, key_values
from actors.dialects.starkeep.naming import RESERVED_COLUMNS, SYNC_RECORDS
from actors.dialects.starkeep.wire import RowEntry


class RowState(msgspec.Struct, frozen=True, gc=False):
    """A row as held: its columns without the reserved ones, who wrote it when, and whether it is
    a tombstone.
    """

    columns: dict[str, Any]
    stamp: HLC
    deleted: bool


def wins(incoming: HLC, held: HLC | None) -> bool:
    """Whether the incoming item replaces the held one."""
    return held is None or later(incoming, held)


def key_of(table: TableInfo, entry: RowEntry) -> dict[str, Any] | None:
    """The key values an entry names, from `where` before `row`; None where it names no row."""
    return key_values(table, entry.where, entry.row)


def merge_row(held: RowState | None, entry: RowEntry, key: Mapping[str, Any]) -> RowState | None:
    """The row after the entry, None where it stays as it is.

    An insert is the whole row. An update changes columns of a row that is there; where there is
    none it has no effect. A delete touches exactly the row of `key`.
    """
    if held is not None and not later(entry.timestamp, held.stamp):
        return None
    row = entry.row or {}
    if entry.op == "delete" or (entry.op == "insert" and row.get("deleted_at") is not None):
        return RowState(dict(key), entry.timestamp, True)
    data = {name: value for name, value in row.items() if name not in RESERVED_COLUMNS}
    if entry.op == "update":
        if held is None:
            return None
        return RowState({**held.columns, **data, **key}, entry.timestamp, False)
    return RowState({**data, **key}, entry.timestamp, False)


def file_of(table: str, columns: Mapping[str, Any]) -> tuple[str, str] | None:
    """(object key, content hash) of a live row that has a blob, None for any other."""
    if table.lower() != SYNC_RECORDS:
        return None
    key = columns.get("object_storage_key")
    if not isinstance(key, str) or not key:
        return None
    digest = columns.get("content_hash")
    return key, digest if isinstance(digest, str) else ""
