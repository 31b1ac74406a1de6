"""What a caller lacks, read from a space's file at one seq: the oldest unseen items, and how far
every author is held. A work for actors/scan.py; pure but for what the reader reads.

An author whose coverage is at the caller's watermark is not looked at, so a poll that finds nothing
reads coverage alone, however much the space holds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from actors.clocks import HLC
from actors.dialects.starkeep.channels import (
    CHANNELS,
    COVERAGE,
    META,
    NAMESPACES,
    RECORDS,
    Channel,
    table_of,
)
from actors.dialects.starkeep.namespaces import Namespace
from actors.dialects.starkeep.watermarks import Watermarks
from actors.dialects.starkeep.wire import encode_answer, row_text

PAGE_BYTES_MAX = 8 << 20
STEP_ROWS_MIN = 8  # read of one author and collection at first: of many authors most are not needed
STEP_ROWS = 256  # and at a time in the end
COVERAGE_PAGE = 10_000
TIES_MAX = 5000  # items of one author and stamp that a page may be longer for

_SOURCE = (
    "SELECT stamp1, stamp2, id, body, deleted FROM rows WHERE coll=? AND origin=?"
    " AND stamp1 IS NOT NULL AND (stamp1, stamp2, id) > (?, ?, ?)"
    " ORDER BY stamp1, stamp2, id LIMIT ?"
)
_COVERAGE = "SELECT id, origin, stamp1, stamp2 FROM rows WHERE coll=? AND id>? ORDER BY id LIMIT ?"


class Rows(Protocol):
    """What is read from; actors.scan.Reader fits."""

    def rows(self, sql: str, params: Any = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""


class Held(msgspec.Struct):
    """How far a channel's authors are held, by collection; and of which mode the space is."""

    mode: str | None
    collections: tuple[str, ...]
    coverage: dict[tuple[str, str], HLC]

    def watermarks(self) -> Watermarks:
        """The highest stamp of each author over the channel."""
        found: Watermarks = {}
        for stamp in self.coverage.values():
            found = _raise(found, stamp)
        return found

    def ahead(self, watermarks: Watermarks) -> list[tuple[str, str, tuple[int, int]]]:
        """(collection, author, the caller's position) where there is something unseen."""
        found = []
        for (coll, node_id), stamp in self.coverage.items():
            seen = watermarks.get(node_id)
            low = (-1, -1) if seen is None else seen.position
            if stamp.position > low:
                found.append((coll, node_id, low))
        return found


class Item(msgspec.Struct, gc=False):
    """One unseen item, with its stored text."""

    stamp: HLC
    coll: str
    body: str
    deleted: bool


def read_held(reader: Rows, channel: Channel) -> Held:
    """The channel's coverage."""
    modes = reader.rows("SELECT body FROM rows WHERE coll=? AND id=?", (META, CHANNELS))
    mode = msgspec.json.decode(modes[0][0]) if modes else None
    namespaces = read_namespaces(reader)
    colls = tuple(channel.collections(namespaces))
    known = frozenset(colls)
    coverage = {}
    for id, node_id, wall_ms, counter in _coverage_rows(reader):
        coll = id.partition("\n")[0]
        if coll in known:
            coverage[coll, node_id] = HLC(wall_ms, counter, node_id)
    return Held(mode, colls, coverage)


def _coverage_rows(reader: Rows) -> Iterator[tuple[Any, ...]]:
    after = ""
    while True:  # in pages: a reader gives no more than actors.scan.LIST_ROWS_MAX rows at once
        rows = reader.rows(_COVERAGE, (COVERAGE, after, COVERAGE_PAGE))
        yield from rows
        if len(rows) < COVERAGE_PAGE:
            return
        after = rows[-1][0]


def read_namespaces(reader: Rows) -> list[Namespace]:
    """Those that are declared and not withdrawn."""
    rows = reader.rows("SELECT body FROM rows WHERE coll=? ORDER BY id", (NAMESPACES,))
    found = [msgspec.json.decode(body, type=Namespace) for (body,) in rows]
    return [namespace for namespace in found if not namespace.withdrawn]


def unseen(reader: Rows, held: Held, watermarks: Watermarks, limit: int) -> tuple[list[Item], bool]:
    """The `limit` oldest items above the watermarks, as far as PAGE_BYTES_MAX; whether more follow.

    Items that share author and stamp stay together, beyond the limit if need be.
    """
    sources = [_source(reader, *where) for where in held.ahead(watermarks)]
    page: list[Item] = []
    size = 0
    for item in heapq.merge(*sources, key=lambda item: item.stamp.order):
        full = len(page) >= limit or (page and size > PAGE_BYTES_MAX)
        tied = page and page[-1].stamp == item.stamp and len(page) < limit + TIES_MAX
        if full and not tied:
            return page, True
        page.append(item)
        size += len(item.body)
    return page, False


def _source(reader: Rows, coll: str, node_id: str, low: tuple[int, int]) -> Iterator[Item]:
    after: tuple[Any, ...] = (*low, chr(0x10FFFF))  # above every id of that very stamp
    step = STEP_ROWS_MIN
    while True:
        rows = reader.rows(_SOURCE, (coll, node_id, *after, step))
        for wall_ms, counter, _, body, deleted in rows:
            yield Item(HLC(wall_ms, counter, node_id), coll, body, bool(deleted))
        if len(rows) < step:
            return
        after = rows[-1][:3]
        step = min(STEP_ROWS, step * 4)


def answer(reader: Rows, held: Held, watermarks: Watermarks, limit: int) -> bytes:
    """The body of the response."""
    page, more = unseen(reader, held, watermarks, limit)
    records: list[bytes] = []
    rows: list[bytes] = []
    for item in page:
        if item.coll == RECORDS:
            records.append(item.body.encode())
        else:
            app_id, table = table_of(item.coll)
            body = item.body.encode()
            rows.append(row_text(item.stamp, app_id, table, body, deleted=item.deleted))
    return encode_answer(records, rows, held.watermarks(), has_more=more)


def _raise(watermarks: Watermarks, stamp: HLC) -> Watermarks:
    held = watermarks.get(stamp.node_id)
    if held is None or stamp.position > held.position:
        watermarks[stamp.node_id] = stamp
    return watermarks
