"""What is read from a namespace's file in one go, as values that can be sent to where the file is.
Pure but for what the reader reads.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import msgspec

from actors.dialects.para.envelope import SyncEnvelope
from actors.dialects.para.plan import OBJECTS
from actors.scan import Reader


class Held(msgspec.Struct, frozen=True, array_like=True):
    """One object as the file has it; `body` is JSON text, whose integers have no limit."""

    key: str
    sequence: int
    version: str
    body: str

    def envelope(self) -> SyncEnvelope:
        """As everybody else has it."""
        return SyncEnvelope(msgspec.json.decode(self.body), self.version, self.sequence)


class ObjectsWork(msgspec.Struct, frozen=True, tag="para.objects"):
    """Objects whose key begins with `prefix`, in order of key, at most `limit`; no tombstones."""

    prefix: str
    limit: int

    result = list[Held]

    def run(self, reader: Reader) -> list[Held]:
        # Half-open, on the primary key: LIKE would read the whole table.
        end = end_of(self.prefix)
        sql = (
            "SELECT id, rev, stamp1, stamp2, body FROM rows WHERE coll=? AND id>=?"
            f"{'' if end is None else ' AND id<?'} AND deleted=0 ORDER BY id LIMIT ?"
        )
        params: list[Any] = [OBJECTS, self.prefix, *([] if end is None else [end]), self.limit]
        jump = reader.header.jump
        return [
            Held(id, rev + jump, f"{major}.{minor}", body)
            for id, rev, major, minor, body in reader.rows(sql, params)
        ]


def end_of(prefix: str) -> str | None:
    """The first text behind all that begin so, in the order of code points; None: there is none."""
    for at in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[at]) + 1
        if code <= sys.maxunicode:
            return prefix[:at] + chr(0xE000 if 0xD800 <= code < 0xE000 else code)
    return None


WORKS: Final = (ObjectsWork,)
