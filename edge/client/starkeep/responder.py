"""The answering side over a node's own database: for peers in one process and small servers.

It remembers nothing of its callers. Items are taken per author in ascending stamps; one that cannot
be applied halts its author for this request, so coverage never passes something that is missing.
Scopes of a Holdfast server answer by the same rules (actors/dialects/starkeep), and park what is
halted.
"""

from __future__ import annotations

import logging

from actors.clocks import HybridClock
from actors.dialects.starkeep.merge import wins
from actors.dialects.starkeep.watermarks import Watermarks, by_author, merge_watermarks
from actors.dialects.starkeep.wire import Answer, Exchange, Record, check_drift
from edge.client.starkeep.selection import Item, split, stamp_of, unseen_items
from edge.client.starkeep.types import SCAN_PAGE_SIZE, AppSyncableSource, Database

log = logging.getLogger("holdfast.starkeep")

DRIFT_MS = 86_400_000


class Responder:
    """Answers exchanges. Without `source` rows halt their authors; without `sync_shared_records`
    records are dropped and never sent.
    """

    def __init__(
        self,
        database: Database,
        clock: HybridClock,
        *,
        source: AppSyncableSource | None = None,
        sync_shared_records: bool = True,
        drift_ms: int = DRIFT_MS,
    ) -> None:
        self._database = database
        self._clock = clock
        self._source = source
        self._records = sync_shared_records
        self._drift_ms = drift_ms

    def respond(self, request: Exchange) -> Answer:
        """Take what the request brings, in one transaction, and answer what the caller lacks.

        Raises ClockDrift, having applied nothing.
        """
        check_drift(request, self._clock.physical_ms(), self._drift_ms)
        items: list[Item] = [*(request.records if self._records else ()), *request.rows]
        with self._database.transaction():
            for _, group in by_author(items, stamp_of):
                for item in group:
                    if not self._take(item):
                        break
        page, more = unseen_items(
            self._database if self._records else None, self._source, request.watermarks,
            limit=request.limit, scan_page_size=SCAN_PAGE_SIZE,
        )  # fmt: skip
        records, rows = split(page)
        return Answer(records, rows, self._coverage(), more)

    def _take(self, item: Item) -> bool:
        """False where the item cannot be applied, which halts its author."""
        if isinstance(item, Record):
            if wins(item.stamp, self._database.held(item.id)):
                self._clock.receive(item.stamp)
                self._database.put(item)
            return True
        if self._source is None:
            return False
        self._clock.receive(item.timestamp)
        try:
            self._source.applier.apply(item)
        except Exception as error:  # a host's applier
            log.warning("row not applied table=%s error=%s", item.table, error)
            return False
        return True

    def _coverage(self) -> Watermarks:
        """The highest stamp of each author on this channel; a table that fails is left out."""
        covered = self._database.get_node_watermarks() if self._records else {}
        if self._source is None:
            return covered
        for namespace in self._source.namespaces.list():
            for table in namespace.table_names:
                try:
                    more = self._source.applier.get_node_watermarks(namespace.app_id, table)
                except Exception:  # a lower coverage is safe: what is missing in it comes again
                    log.exception("no coverage of table=%s", table)
                    continue
                covered = merge_watermarks(covered, more)
        return covered
