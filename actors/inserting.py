"""Entries into the file: few statements, each for many rows, so that they stay prepared. Pure."""

from __future__ import annotations

from typing import Any

from actors.types import Entry
from infra.sqlite import Handle

_SLIM = "INSERT INTO entries(seq, at, kind, cause, body) VALUES "
_FULL = (
    "INSERT INTO entries(seq, at, kind, cause, body, origin, ref, grp, stamp1, stamp2, flags)"
    " VALUES "
)
_CHUNKS = (128, 64, 32, 16, 8, 4, 2, 1)  # rows of one INSERT; few texts, so each stays prepared
_SLIM_SQL = {n: _SLIM + ",".join(["(?,?,?,?,?)"] * n) for n in _CHUNKS}
_FULL_SQL = {n: _FULL + ",".join(["(?,?,?,?,?,?,?,?,?,?,?)"] * n) for n in _CHUNKS}


def insert_entries(db: Handle, entries: list[Entry]) -> None:
    """Insert all of them, in a transaction of the caller's."""
    slim = not any(
        [
            e.origin is not None or e.ref is not None or e.grp is not None or e.flags
            or e.stamp1 is not None for e in entries
        ]
    )  # fmt: skip
    texts = _SLIM_SQL if slim else _FULL_SQL
    done = 0
    for size in _CHUNKS:
        while len(entries) - done >= size:
            part = entries[done : done + size]
            if slim:
                values = [v for e in part for v in (e.seq, e.at, e.kind, e.cause, e.body)]
            else:
                values = [v for e in part for v in _full_values(e)]
            db.execute(texts[size], values)
            done += size


def _full_values(e: Entry) -> tuple[Any, ...]:
    return (
        e.seq, e.at, e.kind, e.cause, e.body, e.origin, e.ref, e.grp, e.stamp1, e.stamp2, e.flags,
    )  # fmt: skip
