"""What is read from a room's file in one go, as values that can be sent to where the file is. Pure
but for what the reader reads (snapshot.py).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from actors.dialects.vuer.rooms import ROOM, TREE
from actors.dialects.vuer.sessions import SESSIONS
from actors.dialects.vuer.snapshot import read_hash, read_refolded_hash, read_room
from actors.scan import Reader
from actors.types import Bounds, Entry


class RoomRead(msgspec.Struct, frozen=True):
    """A room without its text, which is spooled; see snapshot.RoomSnapshot.

    The `durable` of the bounds is their head: a file does not know what the bucket has.
    """

    bounds: Bounds
    journal_index: int
    lamport: int
    entries: list[Entry]


class RoomWork(msgspec.Struct, frozen=True, tag="rtc.room"):
    """The room at its floor with the first messages after it, at least one; or at its head."""

    at_head: bool
    entries_max: int
    bytes_max: int

    result = RoomRead

    def run(self, reader: Reader) -> RoomRead:
        header = reader.header
        found = read_room(reader, at_head=self.at_head, entries_max=self.entries_max)
        reader.write(found.text.encode())
        bounds = Bounds(
            header.epoch, header.head, header.floor, header.head, floor_at=header.floor_at
        )
        entries = _first_of(found.entries, self.bytes_max)
        return RoomRead(bounds, found.journal_index, found.lamport, entries)


class LamportWork(msgspec.Struct, frozen=True, tag="rtc.lamport"):
    """The highest lamport time the room has seen."""

    result = int

    def run(self, reader: Reader) -> int:
        return int(reader.header.clock or 0)


class HashWork(msgspec.Struct, frozen=True, tag="rtc.hash"):
    """The state hash, of the rows and, where asked for, of base and journal folded anew."""

    refold: bool

    result = tuple[str, str | None]

    def run(self, reader: Reader) -> tuple[str, str | None]:
        return read_hash(reader), read_refolded_hash(reader) if self.refold else None


class DocumentRead(msgspec.Struct, frozen=True):
    """A room as a whole; `nodes` counts those ever inserted."""

    bounds: Bounds
    lamport: int
    root_key: str
    nodes: int


class DocumentWork(msgspec.Struct, frozen=True, tag="rtc.document"):
    """The room as a whole."""

    result = DocumentRead

    def run(self, reader: Reader) -> DocumentRead:
        header = reader.header
        rows = reader.rows("SELECT body FROM rows WHERE coll=? AND id=?", (ROOM, TREE))
        tree: dict[str, Any] = {"rootKey": "", "nodes": 0}
        if rows:
            tree = msgspec.json.decode(rows[0][0])
        bounds = Bounds(
            header.epoch, header.head, header.floor, header.head, floor_at=header.floor_at
        )
        return DocumentRead(bounds, int(header.clock or 0), tree["rootKey"], tree["nodes"])


class SessionsWork(msgspec.Struct, frozen=True, tag="rtc.sessions"):
    """Who has written to the room: how far each has counted, and the id of its last message."""

    result = dict[str, tuple[int, str]]

    def run(self, reader: Reader) -> dict[str, tuple[int, str]]:
        rows = reader.rows("SELECT id, body FROM rows WHERE coll=?", (SESSIONS,))
        found = {id: msgspec.json.decode(body) for id, body in rows}
        return {id: (held["clock"], held["last"]) for id, held in found.items()}


def _first_of(entries: list[Entry], bytes_max: int) -> list[Entry]:
    size = 0
    for count, entry in enumerate(entries):
        size += entry.size
        if count and size > bytes_max:
            return entries[:count]
    return entries


WORKS: Final = (RoomWork, LamportWork, HashWork, DocumentWork, SessionsWork)
