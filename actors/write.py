"""One transaction's worth, as plain data: what `Ledger.commit` puts into the file."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from actors.rows import Key, Row
from actors.types import Entry


class Write(msgspec.Struct):
    """One transaction's worth: what `commit` puts into the file."""

    at: int
    entries: list[Entry] = []
    rows: dict[Key, Row | None] = {}  # None: the row is gone
    cleared: set[str] = set()
    unfolded: dict[Key, int] = {}  # rows left behind, with the seq of their stored copy
    folded: list[Key] = []  # rows that were left behind and are now stored
    dedupe: list[tuple[str, int, int, str | None]] = []  # (id, seq, count, outcome)
    alarms: list[tuple[str, int, str | None, int]] = []  # (name, due_at, payload, attempts)
    alarms_done: list[tuple[str, int]] = []  # (name, due_at as it was when it ran)
    forget: bool = False  # drop dedupe rows that are too old or too many
    ddl: Sequence[str] = ()  # tables, indexes and views of the dialect that the file lacks
    flags: dict[int, int] = {}  # entries whose flags change, by seq
    floor: int | None = None
    clock: str | None = None
    first_txid: int | None = None  # the writer's first replica batch, when it is to be noted
