"""Items that came before their table was declared: kept in order until it is. Pure.

A client of version 0.1.0 never sends an item twice, so refusing it would lose it. Whatever follows
of the same author waits behind it: applied ahead, it would raise the author's coverage past the
parked item, and other nodes would never be sent that one. A row without key values waits as well,
until its author no longer sends it: nothing can ever take it. Always true: what is parked of an
author is a prefix of what was halted; where the bound was met, `overflow` says from which stamp on.
"""

from __future__ import annotations

import msgspec

from actors.clocks import HLC
from actors.dialects.starkeep.wire import Record, RowEntry, check_row, decode_record, encode

ITEMS_MAX = 2000  # of one author on one channel
BYTES_MAX = 1 << 20
AUTHORS_MAX = 256  # of one space

Item = Record | RowEntry


class _Stored(msgspec.Struct):
    records: list[msgspec.Raw] = []
    rows: list[RowEntry] = []
    overflow: HLC | None = None


class Parked:
    """The parked items of one author, in ascending stamps."""

    def __init__(self, items: list[Item], overflow: HLC | None = None) -> None:
        self.items = items
        self.overflow = overflow
        self._known = {name_of(item) for item in items}
        self._bytes = sum(_size(item) for item in items)

    @classmethod
    def load(cls, value: object) -> Parked:
        """What `dump` gave, as text or decoded."""
        stored = msgspec.json.decode(encode(value), type=_Stored)
        items: list[Item] = [decode_record(bytes(raw)) for raw in stored.records]
        for row in stored.rows:
            check_row(row)
            items.append(row)
        items.sort(key=lambda item: stamp_of(item).position)
        return cls(items, stored.overflow)

    def dump(self) -> bytes:
        """The JSON text that is stored."""
        records = [msgspec.Raw(item.text) for item in self.items if isinstance(item, Record)]
        rows = [item for item in self.items if isinstance(item, RowEntry)]
        return encode(_Stored(records, rows, self.overflow))

    def add(self, item: Item) -> bool:
        """Keep the item, unless it is kept already or would leave a gap; whether that changed
        something.
        """
        stamp = stamp_of(item)
        if name_of(item) in self._known:
            return False
        if self.overflow is not None and stamp.position > self.overflow.position:
            return False
        if len(self.items) >= ITEMS_MAX or self._bytes + _size(item) > BYTES_MAX:
            self.overflow = stamp
            return True
        if self.overflow is not None and stamp.position == self.overflow.position:
            self.overflow = None
        self._known.add(name_of(item))
        self._bytes += _size(item)
        self.items.append(item)
        self.items.sort(key=lambda held: stamp_of(held).position)
        return True


def stamp_of(item: Item) -> HLC:
    """The stamp that orders the item."""
    return item.stamp if isinstance(item, Record) else item.timestamp


def name_of(item: Item) -> tuple[object, ...]:
    """What an item that is sent again is known by."""
    if isinstance(item, Record):
        return item.stamp.position, item.id
    return item.timestamp.position, item.app_id, item.table, encode([item.where, item.row])


def _size(item: Item) -> int:
    return len(item.text) if isinstance(item, Record) else len(encode(item))
