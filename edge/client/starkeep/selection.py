"""What an engine sends, and what it makes of what comes: the rules without I/O. Pure.

Invariants: what is sent is of every author a prefix of what the peer lacks; the own watermark moves
only past items that are landed, and never past one of the same author that is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from actors.clocks import HLC, ZERO_HLC, later
from actors.dialects.starkeep.watermarks import Watermarks, by_author, merge_watermarks, oldest
from actors.dialects.starkeep.wire import Record, RowEntry
from edge.client.starkeep.types import (
    AppSyncableSource,
    Database,
    ScanCapableApplier,
    ScanSinceOptions,
)

Item: TypeAlias = Record | RowEntry


def stamp_of(item: Item) -> HLC:
    """The stamp that orders the item."""
    return item.stamp if isinstance(item, Record) else item.timestamp


def unseen_items(
    database: Database | None,
    source: AppSyncableSource | None,
    watermarks: Watermarks,
    *,
    limit: int,
    scan_page_size: int,
) -> tuple[list[Item], bool]:
    """The `limit` oldest items above the watermarks, over records and tables together.

    Also whether there are more. A scan that raises passes: leaving out one table would let items of
    the same author overtake those in it.
    """
    sources: list[Iterable[Item]] = []
    if database is not None:
        sources.append(database.unseen(watermarks, limit + 1))
    if source is not None:
        for namespace in source.namespaces.list():
            for table in namespace.table_names:
                sources.append(
                    _scan(source.applier, namespace.app_id, table, watermarks, scan_page_size)
                )
    return oldest(sources, stamp_of, limit)


def _scan(
    applier: ScanCapableApplier, app_id: str, table: str, watermarks: Watermarks, page_size: int
) -> Iterator[RowEntry]:
    """Rows of one table in ascending stamps; a page is read when it is needed."""
    cursor: HLC | None = None
    while True:
        page = applier.scan_since(app_id, table, ScanSinceOptions(watermarks, page_size, cursor))
        yield from page.rows
        cursor = page.next_cursor
        if not page.has_more or cursor is None:
            return


def split(items: Iterable[Item]) -> tuple[list[Record], list[RowEntry]]:
    """Records and rows, each in the order they came."""
    records: list[Record] = []
    rows: list[RowEntry] = []
    for item in items:
        if isinstance(item, Record):
            records.append(item)
        else:
            rows.append(item)
    return records, rows


def asked_watermarks(
    own: Watermarks, peer: Watermarks, node_id: str, shipped: Sequence[Item]
) -> Watermarks:
    """The watermarks to send: the own ones, past the own writes in this request where that is safe.

    It is where everything the peer has of this node is landed here, so that only what is in this
    request can lie between. Then the peer need not send it back.
    """
    landed, theirs = own.get(node_id), peer.get(node_id)
    if landed is None or theirs is None or later(theirs, landed):
        return own
    mine = [stamp_of(item) for item in shipped if stamp_of(item).node_id == node_id]
    return merge_watermarks(own, {node_id: max(mine, key=lambda s: s.position)}) if mine else own


def landed_watermarks(
    own: Watermarks, inbound: Iterable[Item], failed: Iterable[Item]
) -> Watermarks:
    """The own watermarks after a response: past each author's items before its first failure."""
    missed = {id(item) for item in failed}
    moved: Watermarks = {}
    for node_id, items in by_author(inbound, stamp_of):
        for item in items:
            if id(item) in missed:
                break
            moved[node_id] = stamp_of(item)
        # A failure that shares its stamp with a landed item must stay above the watermark.
        held = moved.get(node_id)
        if held is not None and any(id(i) in missed and stamp_of(i) == held for i in items):
            before = [stamp_of(i) for i in items if later(held, stamp_of(i))]
            if before:
                moved[node_id] = before[-1]
            else:
                del moved[node_id]
    return merge_watermarks(own, moved)


def peer_watermarks(
    peer: Watermarks,
    answered: Watermarks | None,
    shipped: Sequence[Item],
    inbound: Sequence[Item],
) -> Watermarks:
    """What the peer holds after a round: its own word, which may fall, or else a hopeful guess.

    A peer of version 0.1.0 says nothing: then what was sent and what came counts as held.
    """
    if answered is not None:
        return answered
    guess = dict(peer)
    for item in (*shipped, *inbound):
        guess = merge_watermarks(guess, {stamp_of(item).node_id: stamp_of(item)})
    return guess


def has_fallen(before: Watermarks, after: Watermarks) -> bool:
    """Whether the peer lost what it held: then there is something to send again."""
    return any(later(stamp, after.get(node_id, ZERO_HLC)) for node_id, stamp in before.items())
