"""Starkeep's apply: an entry sets one row, moves the coverage of its author, and counts who refers
to a blob. Pure.

Kinds: `rec` a record, `row` and `del` a row of an app and its tombstone, `seen` an item that lost,
`ns` a namespace, `park` parked items, `blob` where a key's bytes are, `meta` the space itself.
Every row is stored at once, never behind its entries: exchanges read the file.
"""

from __future__ import annotations

from typing import Any

import msgspec

from actors.dialects.starkeep.channels import BLOBS, COVERAGE, RECORDS, covered, table_of
from actors.dialects.starkeep.merge import RowState, file_of
from actors.dialects.starkeep.wire import Record
from actors.rows import Key, Overlay, Row
from actors.types import Entry

Blob = tuple[str, str]  # (object key, content hash)
_decode = msgspec.json.Decoder().decode


def value_of(row: Row) -> Any:
    """The row's value; rows of this process hold it as the text it came as."""
    return _decode(row.value) if isinstance(row.value, msgspec.Raw) else row.value


def covered_up_to(rows: Overlay, coll: str, node_id: str) -> tuple[int, int]:
    """The position up to which an author is held in a collection; below all for none."""
    row = rows.get(COVERAGE, covered(coll, node_id))
    return (-1, -1) if row is None else (row.stamp1 or 0, row.stamp2 or 0)


def split_ref(ref: str) -> Key:
    """(collection, id) an entry is about."""
    if ref.startswith("app:"):  # app:<app id>:<table>:<id>
        end = ref.index(":", ref.index(":", 4) + 1)
        return ref[:end], ref[end + 1 :]
    coll, _, id = ref.partition(":")
    return coll, id


def fold(overlay: Overlay, entry: Entry, only: frozenset[Key] | None) -> None:
    """Set what the entry says, restricted to the keys of `only`."""
    assert entry.ref is not None
    if entry.kind == "seen":
        _cover(overlay, entry.ref, entry, only)
        return
    key = coll, id = split_ref(entry.ref)
    wanted = only is None or key in only
    if entry.kind in ("rec", "row", "del"):
        deleted, blob = _facts(coll, entry)
        _refer(overlay, key, blob, entry, only)
        if wanted:
            _replace(overlay, key, entry, msgspec.Raw(entry.body.encode()), deleted=deleted)
        _cover(overlay, coll, entry, only)
    elif not wanted:
        return
    elif entry.body == "null":
        overlay.remove(coll, id)
    elif entry.kind == "blob":
        held = overlay.get(coll, id)
        value = {} if held is None else value_of(held)
        kept = {name: value[name] for name in ("refs", "wanted") if name in value}
        _replace(overlay, key, entry, {**_decode(entry.body), "refs": 0, **kept})
    else:
        _replace(overlay, key, entry, msgspec.Raw(entry.body.encode()))


def _replace(
    overlay: Overlay, key: Key, entry: Entry, value: Any, *, deleted: bool = False
) -> None:
    old = overlay.get(*key)
    rev = 1 if old is None else old.rev + 1
    row = Row(
        value, rev, entry.seq, entry.size, 0, 1, entry.origin, entry.stamp1, entry.stamp2, None,
        deleted,
    )  # fmt: skip
    overlay.replace(*key, row)


def _facts(coll: str, entry: Entry) -> tuple[bool, Blob | None]:
    """(whether the item is a tombstone, its blob), from what the plan left where it is still at
    hand.
    """
    data = entry.data
    if isinstance(data, Record):
        return data.deleted, None if data.deleted or not data.key else (data.key, data.hash)
    if entry.kind == "del":
        return True, None
    columns = data.columns if isinstance(data, RowState) else _decode(entry.body)
    return coll == RECORDS and columns.get("deletedAt") is not None, _blob(coll, columns)


def _cover(overlay: Overlay, coll: str, entry: Entry, only: frozenset[Key] | None) -> None:
    """Coverage never falls: a stamp that was overwritten since is held all the same."""
    assert entry.origin is not None and entry.stamp1 is not None and entry.stamp2 is not None
    id = covered(coll, entry.origin)
    if only is not None and (COVERAGE, id) not in only:
        return
    if (entry.stamp1, entry.stamp2) > covered_up_to(overlay, coll, entry.origin):
        row = Row(None, 1, entry.seq, 4, 0, 1, entry.origin, entry.stamp1, entry.stamp2)
        overlay.replace(COVERAGE, id, row)


# -- who refers to a blob --------------------------------------------------------------------------


def _refer(
    overlay: Overlay, key: Key, after: Blob | None, entry: Entry, only: frozenset[Key] | None
) -> None:
    held = overlay.get(*key)
    before = None if held is None or held.deleted else _blob(key[0], value_of(held))
    if before == after:
        return
    if before is not None and after is not None and before[0] == after[0]:
        _count(overlay, after, 0, entry, only)
        return
    for blob, step in ((before, -1), (after, 1)):
        if blob is not None:
            _count(overlay, blob, step, entry, only)


def _blob(coll: str, value: dict[str, Any]) -> Blob | None:
    if coll != RECORDS:
        return file_of(table_of(coll)[1], value)
    name, digest = value.get("objectStorageKey"), value.get("contentHash")
    if value.get("deletedAt") is not None or not isinstance(name, str) or not name:
        return None
    return name, digest if isinstance(digest, str) else ""


def _count(
    overlay: Overlay, blob: Blob, step: int, entry: Entry, only: frozenset[Key] | None
) -> None:
    """A record may come before its blob: the key is staged until the bytes are there."""
    key, digest = blob
    if only is not None and (BLOBS, key) not in only:
        return
    held = overlay.get(BLOBS, key)
    value: dict[str, Any] = {"state": "staged"} if held is None else dict(value_of(held))
    value["refs"] = max(0, value.get("refs", 0) + step)
    if step >= 0:
        value["wanted"] = digest  # which of its contents the key shows (blobs.py)
    if value["refs"] == 0 or held is None:
        value["at"] = entry.at  # unused since then
    if value["refs"] == 0:
        value.pop("wanted", None)
    rev = 1 if held is None else held.rev + 1
    overlay.replace(BLOBS, key, Row(value, rev, entry.seq, 200, 0, 1))
