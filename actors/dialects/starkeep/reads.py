"""What is read from a space's file in one go, as values that can be sent to where the file is. Pure
but for what the reader reads.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from actors.clocks import HLC
from actors.dialects.starkeep.blobs import shown, versions_of
from actors.dialects.starkeep.channels import BLOBS, Channel
from actors.dialects.starkeep.delta import Held, Rows, answer, read_held, read_namespaces
from actors.dialects.starkeep.namespaces import Namespace

MAPPED_PAGE: Final = 10_000

Mapped = tuple[dict[str, tuple[str, ...]], list[str]]


class ExchangeWork(msgspec.Struct, frozen=True, tag="keep.exchange"):
    """What a caller lacks: how far the channel is held, and the body of the answer; no body where
    the space is not of the channel's mode.
    """

    channel: Channel
    watermarks: dict[str, HLC]
    limit: int

    result = tuple[Held, bytes | None]

    def run(self, reader: Rows) -> tuple[Held, bytes | None]:
        held = read_held(reader, self.channel)
        if held.mode is not None and held.mode != self.channel.mode:
            return held, None
        return held, answer(reader, held, self.watermarks, self.limit)


class NamespacesWork(msgspec.Struct, frozen=True, tag="keep.namespaces"):
    """All declared namespaces."""

    result = list[Namespace]

    def run(self, reader: Rows) -> list[Namespace]:
        return read_namespaces(reader)


class UnusedWork(msgspec.Struct, frozen=True, tag="keep.unused"):
    """Keys with bytes that nothing refers to, untouched since `before_ms`."""

    before_ms: int

    result = list[str]

    def run(self, reader: Rows) -> list[str]:
        rows = reader.rows(
            "SELECT id FROM rows WHERE coll=? AND json_extract(body, '$.state')='present'"
            " AND json_extract(body, '$.refs')=0 AND json_extract(body, '$.at')<? ORDER BY id",
            (BLOBS, self.before_ms),
        )
        return [key for (key,) in rows]


class MappedWork(msgspec.Struct, frozen=True, tag="keep.mapped"):
    """The contents of each key, what it shows first; the keys that may forget the others."""

    before_ms: int

    result = Mapped

    def run(self, reader: Rows) -> Mapped:
        found: dict[str, tuple[str, ...]] = {}
        settling: list[str] = []
        after = ""
        while True:  # in pages: a reader gives no more than LIST_ROWS_MAX rows at once
            rows = reader.rows(
                "SELECT id, body FROM rows WHERE coll=? AND id>? ORDER BY id LIMIT ?",
                (BLOBS, after, MAPPED_PAGE),
            )
            for key, body in rows:
                value: dict[str, Any] = msgspec.json.decode(body)
                now = shown(value)
                if now is None:
                    continue
                others = [other.hash for other in versions_of(value) if other != now]
                found[key] = (now.hash, *others)
                if others and value["at"] < self.before_ms:
                    settling.append(key)
            if len(rows) < MAPPED_PAGE:
                return found, settling
            after = rows[-1][0]


WORKS: Final = (ExchangeWork, NamespacesWork, UnusedWork, MappedWork)
