"""The Starkeep engine of a node: one round with its peer at a time, safe to repeat at any point.

A round sends what the peer lacks and takes what this node lacks. Outward a blob goes before its
record; inward the record is stored, then its blob fetched, and only then may the watermark pass it.
Whatever fails is left above a watermark and comes again; nothing is applied twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from actors.clocks import HLC, HybridClock
from actors.dialects.starkeep.merge import wins
from actors.dialects.starkeep.watermarks import Watermarks, by_author
from actors.dialects.starkeep.wire import Answer, Exchange, Record
from edge.client.starkeep.files import FileSyncEngine, manifest_of
from edge.client.starkeep.notifier import ChangeNotifier
from edge.client.starkeep.selection import (
    Item,
    asked_watermarks,
    has_fallen,
    landed_watermarks,
    peer_watermarks,
    split,
    stamp_of,
    unseen_items,
)
from edge.client.starkeep.types import (
    PAGE_LIMIT,
    SCAN_PAGE_SIZE,
    AppSyncableSource,
    ChangeEvent,
    Database,
    ExchangeResult,
    FileSyncManifest,
    ObjectStorage,
    Progress,
    SyncStateStore,
    SyncTransport,
)
from infra.errors import HoldfastError

log = logging.getLogger("holdfast.starkeep")

DRIFT_MS = 86_400_000


class _Memory:
    """State for engines without a store: empty at the start of every round."""

    def get_watermarks(self) -> Watermarks:
        return {}

    def set_watermarks(self, watermarks: Watermarks) -> None:
        """Not kept."""

    def get_peer_watermarks(self) -> Watermarks:
        return {}

    def set_peer_watermarks(self, watermarks: Watermarks) -> None:
        """Not kept."""

    def get_hlc_clock_state(self) -> None:
        return None

    def set_hlc_clock_state(self, state: object) -> None:
        """Not kept."""


class SyncEngine:
    """Exchanges with one peer over one channel.

    Without `sync_state` every round starts from nothing. Without `app_syncable_source` rows are
    skipped; with `sync_shared_records` False records are. `page_limit` is how many items go each
    way in one round, `scan_page_size` how many rows of a table are read at a time. The database and
    the state should be one SQLite file, so that they cannot part.
    """

    def __init__(
        self,
        *,
        local_database_adapter: Database,
        local_object_storage: ObjectStorage,
        remote_object_storage: ObjectStorage,
        transport: SyncTransport,
        clock: HybridClock,
        sync_state: SyncStateStore | None = None,
        app_syncable_source: AppSyncableSource | None = None,
        sync_shared_records: bool = True,
        page_limit: int = PAGE_LIMIT,
        scan_page_size: int = SCAN_PAGE_SIZE,
        on_progress: Callable[[Progress], object] | None = None,
        change_notifier: ChangeNotifier | None = None,
        drift_ms: int = DRIFT_MS,
    ) -> None:
        self.change_notifier = change_notifier or ChangeNotifier()
        self.files = FileSyncEngine()
        self._database = local_database_adapter
        self._local = local_object_storage
        self._remote = remote_object_storage
        self._transport = transport
        self._clock = clock
        self._state: SyncStateStore = sync_state or _Memory()
        self._source = app_syncable_source
        self._records = sync_shared_records
        self._page_limit = page_limit
        self._scan_page_size = scan_page_size
        self._on_progress = on_progress
        self._drift_ms = drift_ms
        self._one_at_a_time = asyncio.Lock()

    async def exchange(self) -> ExchangeResult:
        """One round; a second call waits for the first.

        Raises SyncError where the peer refuses, and what the transport raises; then
        nothing was saved of the round.
        """
        async with self._one_at_a_time:
            return await self._round()

    async def drain(self, *, rounds_max: int = 10_000) -> ExchangeResult:
        """Rounds until nothing is left to move, or no round moves anything: the last result.

        Counts are summed up. What fails stays for the next call.
        """
        total = ExchangeResult(
            applied=0, applied_records=0, applied_rows=0, shipped=0, has_more=True
        )
        for _ in range(rounds_max):
            before = self._state.get_watermarks(), self._state.get_peer_watermarks()
            found = await self.exchange()
            total = ExchangeResult(
                applied=total.applied + found.applied,
                applied_records=total.applied_records + found.applied_records,
                applied_rows=total.applied_rows + found.applied_rows,
                shipped=total.shipped + found.shipped,
                has_more=found.has_more,
            )
            after = self._state.get_watermarks(), self._state.get_peer_watermarks()
            if not found.has_more or before == after:
                break
        return total

    async def _round(self) -> ExchangeResult:
        own = self._state.get_watermarks()
        peer = self._state.get_peer_watermarks()
        candidates, left_over = self._candidates(peer)
        shipped = await self._push_blobs(candidates)
        records, rows = split(shipped)
        asked = asked_watermarks(own, peer, self._clock.node_id, shipped)
        answer = await self._transport.exchange(Exchange(asked, records, rows, self._page_limit))
        inbound = self._inbound(answer)
        applied, failed = self._apply(inbound)
        failed += await self._pull_blobs(inbound, failed)
        known = peer_watermarks(peer, answer.responder_watermarks, shipped, inbound)
        with self._database.transaction():
            self._state.set_watermarks(landed_watermarks(asked, inbound, failed))
            self._state.set_peer_watermarks(known)
        synced = [item.id for item in applied if isinstance(item, Record)]
        if synced:
            event = ChangeEvent("local-data-synced", tuple(synced), self._clock.now())
            self.change_notifier.emit(event)
        return ExchangeResult(
            applied=len(applied), applied_records=len(synced),
            applied_rows=len(applied) - len(synced), shipped=len(shipped),
            has_more=answer.has_more or left_over or has_fallen(peer, known),
        )  # fmt: skip

    # -- outward -----------------------------------------------------------------------------------

    def _candidates(self, peer: Watermarks) -> tuple[list[Item], bool]:
        try:
            return unseen_items(
                self._database if self._records else None, self._source, peer,
                limit=self._page_limit, scan_page_size=self._scan_page_size,
            )  # fmt: skip
        except Exception:  # a host's scan: pulling can go on, sending would leave a gap
            log.exception("a scan failed; nothing is sent in this round")
            return [], False

    async def _push_blobs(self, candidates: Sequence[Item]) -> list[Item]:
        """The candidates whose blobs, and whose author's earlier blobs, the peer has."""
        shipped: list[Item] = []
        for _, items in by_author(candidates, stamp_of):
            for item in items:
                manifest = manifest_of(item)
                if manifest is not None and not await self._move(manifest, push=True):
                    break
                shipped.append(item)
        return shipped

    async def _move(self, manifest: FileSyncManifest, *, push: bool) -> bool:
        source, destination = (self._local, self._remote) if push else (self._remote, self._local)
        key, total = manifest.object_storage_key, manifest.size_bytes

        def report(done: int) -> None:
            if self._on_progress is not None:
                self._on_progress(Progress("push" if push else "pull", key, done, total))

        try:
            return await self.files.transfer_file(manifest, source, destination, on_bytes=report)
        except (HoldfastError, OSError) as error:  # it stays above the watermark and comes again
            log.warning("blob not moved push=%s key=%s error=%s", push, key, error)
            return False

    # -- inward ------------------------------------------------------------------------------------

    def _inbound(self, answer: Answer) -> list[Item]:
        """Everything of the answer that this channel takes, per author in ascending stamps."""
        if answer.records and not self._records:
            log.warning("records on a channel without records count=%d", len(answer.records))
        records = answer.records if self._records else []
        items: list[Item] = [*records, *answer.rows]
        return [item for _, group in by_author(items, stamp_of) for item in group]

    def _apply(self, inbound: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """Store what wins; (what changed something, what could not be applied)."""
        applied: list[Item] = []
        failed: list[Item] = []
        broken: set[str] = set()  # authors with a row that could not be applied
        with self._database.transaction():
            for item in inbound:
                node_id = stamp_of(item).node_id
                if isinstance(item, Record):
                    if node_id in broken:
                        failed.append(item)
                    elif wins(item.stamp, self._database.held(item.id)):
                        self._observe(item.stamp)
                        self._database.put(item)
                        applied.append(item)
                elif self._source is None or node_id in broken:
                    failed.append(item)
                else:
                    self._observe(item.timestamp)
                    try:
                        if self._source.applier.apply(item):
                            applied.append(item)
                    except Exception as error:  # a host's applier: the row comes again
                        # Later items of this author wait, or what is held would not be a prefix.
                        log.warning("row not applied table=%s error=%s", item.table, error)
                        broken.add(node_id)
                        failed.append(item)
            self._state.set_hlc_clock_state(self._clock.state)
        return applied, failed

    def _observe(self, stamp: HLC) -> None:
        if stamp.wall_ms <= self._clock.physical_ms() + self._drift_ms:
            self._clock.receive(stamp)

    async def _pull_blobs(self, inbound: Sequence[Item], missed: Sequence[Item]) -> list[Item]:
        """Fetch what is missing, also of items held before; the items that stay without.

        Not of an item that lost against the held one: its bytes would take the place of later ones
        that may be nowhere else.
        """
        without = {id(item) for item in missed}
        failed: list[Item] = []
        for item in inbound:
            manifest = manifest_of(item)
            if manifest is None or id(item) in without or not self._holds(item):
                continue
            if not await self._move(manifest, push=False):
                failed.append(item)
        return failed

    def _holds(self, item: Item) -> bool:
        """Whether the held copy is this very one."""
        if isinstance(item, Record):
            return self._database.held(item.id) == item.stamp
        assert self._source is not None
        held = getattr(self._source.applier, "held", None)  # a host's applier may not tell
        return held is None or held(item) == item.timestamp
