"""The replica of one open scope: its commits as LTX files in the bucket, one batch after another.

A batch is everything committed when it is cut. TXIDs step by one, one request is in flight, and
each file is created with `If-None-Match: *`: whoever creates TXID n+1 owns the history
(docs/durability.md). So a refused creation means either that an earlier reply was lost, or that we
are fenced; the file that stands there tells which.

Always true: a file in the bucket holds only commits that this host's disk has; `shipped` is
reported in order; a batch whose outcome is unknown is sent again with the same bytes and nothing
else. A replica without new commits has no task, no timer and makes no request.

Everything here runs on the loop thread but for the functions given to `Service.run`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from infra.company import Company
from infra.errors import Fenced, HoldfastError, StorageError, TryLater
from infra.layout import LEVEL_CHANGES, LEVEL_SNAPSHOT, file_key
from infra.locate import Local, locate
from infra.ltx.header import HEADER_BYTES
from infra.objects import ObjectExists
from infra.pacing import BATCH_BYTES_MAX, EARLY_BYTES, Pace
from infra.pages import Batch, Image, write_batch, write_image
from infra.replica_files import Files, Mark, after_sweep, sweep
from infra.replicator import Service
from infra.requests import RETRY_FIRST_MS, RETRY_MAX_MS, Requests
from infra.shipped import Point, Source

log = logging.getLogger("holdfast.replica")

HOPELESS_MS = 20_000  # in trouble for so long, a scope may be closed with commits unshipped


class Replica:
    """Fits actors.shell.Shipper. `files` is None until it is known what the bucket holds."""

    def __init__(
        self,
        service: Service,
        prefix: str,
        local: Local,
        files: Files | None,
        *,
        whole: bool,
        claim: Batch | None = None,
        foreign: bool = False,
    ) -> None:
        """`claim`: an empty file that takes the next slot before anything else does. `foreign`: the
        state was restored from a writer who may have gone on since.
        """
        self.files = files
        self.requests = Requests(service, prefix)
        self._service = service
        self._prefix = prefix
        self._local = local
        self._source: Source | None = None
        self._whole = whole  # the next batch must be a full image
        self._next = (local.txid if files is None else files.head) + 1
        # A request of an earlier opening may still land at local.txid. Whether the bucket has our
        # commits is told by what they carry, so until we have shipped they carry more than that.
        self._least = local.txid + 1 if files is None else 0
        self._claim: int | None = None  # the slot an empty file of ours takes
        self._claiming = claim  # while it is on its way
        if claim is not None:
            self._claim, self._next = self._next, self._next + 1
        self._foreign = foreign  # until a file of ours is known to be the last one
        self._opened_head = 0
        self._began = False  # a batch was shipped since the file was opened
        self._looked_again = False
        self._dirty_since: int | None = None
        self._dirty_bytes = 0
        self._pace = Pace()
        self._company = Company()
        self._reading = 0
        self._snapshot_due = False
        self._hurried = False
        self._wake: asyncio.Event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._snapping: asyncio.Task[None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._over = False

    def bind(self, source: Source) -> None:
        """The scope this is the replica of; once, as soon as it is open."""
        self._source = source
        point = source.point()
        self._opened_head = point.head
        if self._claiming is not None:
            self._go()
        elif self._local.txid == 0 and point.head == 0:
            source.shipped(0, 0)  # nothing was ever in it
        elif self.files is not None and self.files.head > 0 and not self._whole:
            source.shipped(0, point.head)
        else:
            self.committed()  # never shipped, or a crash may have left what nobody has shipped

    # -- what the scope asks (actors.shell.Shipper) ------------------------------------------------

    @property
    def next_txid(self) -> int:
        return max(self._next, self._least)

    @property
    def unproven(self) -> bool:
        """Whether the file may hold what the bucket has not, or lack what another has written."""
        return self.files is None or self._whole or self._claiming is not None

    @property
    def claim_txid(self) -> int:
        return self._claim or self._next

    @property
    def pending(self) -> bool:
        if self._over or self.hopeless:
            return False
        return self._dirty_since is not None or self._task is not None or self.reading

    @property
    def clean(self) -> bool:
        """Whether the bucket has everything, as far as is known."""
        return self._dirty_since is None and self._task is None and self.files is not None

    @property
    def hopeless(self) -> bool:
        since = self.requests.trouble_since
        return since is not None and self._service.now_ms() - since > HOPELESS_MS

    @property
    def reading(self) -> bool:
        return self._reading > 0

    def committed(self, size: int = 0) -> None:
        before = self._dirty_bytes
        self._dirty_bytes += size
        self._company.came(self._service.tick_ms())
        if self._dirty_since is None:
            self._dirty_since = self._service.now_ms()
        self._go()
        if before < EARLY_BYTES <= self._dirty_bytes or self._dirty_bytes > BATCH_BYTES_MAX:
            self._wake.set()

    def _go(self) -> None:
        if self._task is None and not self._over:
            self._task = self._service.tasks.spawn(self._run(), name="replica")
        if self._stall_timer is None and not self._over:
            self._arm_stall(self._service.settings.max_stall_ms)

    def urge(self) -> None:
        self._wake.set()

    def synced(self) -> None:
        if self._task is not None:
            self._wake.set()

    def hurry(self) -> None:
        """Ship what there is now, without waiting for company."""
        self._hurried = True
        self._wake.set()

    async def rest(self) -> None:
        """Before sleep: a snapshot, if waking would read many files.

        What the bucket lacks by now, because it is in trouble, stays on this disk: whoever wants to
        read the scope, or end the server, does not wait for it.
        """
        files = self.files
        if files is None or self._over or not self.clean or not self._began:
            return
        if files.wants_snapshot(resting=True):
            self._reading += 1
            point = self._source_().point()
            image = await self._cut_image(point)
            if image is not None:
                await self._snap(image)

    async def drained(self) -> None:
        """Ship what there is, now."""
        self.hurry()
        while self._task is not None or self._snapping is not None:
            await _settled(self._task, self._snapping)

    def stop(self) -> None:
        """No further request; what is in flight may still land."""
        self._over = self.requests.over = True
        for task in (self._task, self._snapping):
            if task is not None:
                task.cancel()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    # -- the loop of batches -----------------------------------------------------------------------

    def _source_(self) -> Source:
        assert self._source is not None
        return self._source

    async def _run(self) -> None:
        source = self._source_()
        try:
            if self._claiming is not None:
                await self._ship_claim(self._claiming)
            while self._dirty_since is not None and not self._over:
                await self._until_due()
                if self.files is None:
                    await self._locate()
                    if not self._whole and source.point().commits == 0:
                        self._nothing_new()
                        continue
                await self._ship_or_look_again()
        except Fenced as error:
            self._over = True
            source.fenced(error)
        except HoldfastError as error:  # damage: whoever waits must not do so for ever
            self._over = True
            source.fenced(error)
        finally:
            self._task = None
            if self._dirty_since is None and self._stall_timer is not None:
                self._stall_timer.cancel()
                self._stall_timer = None

    async def _until_due(self) -> None:
        source, service = self._source_(), self._service
        while True:
            self._wake.clear()
            now = service.now_ms()
            if self._hurried:
                break
            urgent = source.urgent()
            due = self._pace.due_at(
                urgent=urgent,
                dirty_since=self._dirty_since or now,
                dirty_bytes=self._dirty_bytes,
                now=now,
                interval_ms=service.interval_ms(urgent=urgent),
            )
            wait = due - now
            if urgent:
                wait = max(wait, self._company.wait_ms(source.point().head, service.tick_ms()))
            if wait <= 0:
                break
            await self._pause(wait)
        while source.lent() and not self._over:
            await self._pause(RETRY_FIRST_MS)

    async def _pause(self, ms: int) -> None:
        try:
            async with asyncio.timeout(ms / 1000):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _locate(self) -> None:
        """Find out how far the bucket is, and that its history is ours."""
        service, local, prefix = self._service, self._local, self._prefix
        found = await self.requests.persist(lambda: locate(service.store, prefix, local), "list")
        if found.lost:
            log.warning("the bucket has lost a scope's files; it is written anew prefix=%s", prefix)
        self.files = found.files
        self._whole = self._whole or found.whole
        self._next = found.files.head + 1

    async def _ship_or_look_again(self) -> None:
        """A late request of an earlier opening of this file may have taken the first slot."""
        try:
            await self._ship()
        except Fenced:
            if self._began or self._looked_again:
                raise
            self._looked_again = True
            await self._locate()  # raises Fenced where the slot is really another's
            self._whole = True  # what the failed batch cut is not tracked any more

    def _nothing_new(self) -> None:
        """The bucket has had everything before the crash."""
        self._dirty_since, self._dirty_bytes = None, 0
        point = self._source_().point()
        self._source_().shipped(point.position, point.head)

    async def _ship(self) -> None:
        source, files = self._source_(), self.files
        assert files is not None
        txid = self._next = files.head + 1
        if not self._began:
            source.claim(self._claim or txid)
        while source.lent() and not self._over:  # `claim` may have led to a checkpoint
            await self._pause(RETRY_FIRST_MS)
        point = source.point()
        since, self._dirty_since = self._dirty_since, None
        size, self._dirty_bytes = self._dirty_bytes, 0
        self._next = txid + 1
        image: Image | None = None
        try:
            batch = await self._cut(point, txid)
            if batch is None:
                self._dirty_since, self._dirty_bytes = since, size
                self._next = txid
                source.repair()
                await self._pause(RETRY_FIRST_MS)
                return
            image = batch.image
            while source.passed() < point.position and not self._over:
                await self._pause(RETRY_MAX_MS)  # the disk first: woken by `synced`
            began = self._service.tick_ms()
            await self._put(txid, batch)
        except BaseException:
            if self._dirty_since is None:
                self._dirty_since = since
            if image is not None:
                self._reading -= 1
            raise
        self._began, self._least = True, 0
        self._whole = False
        self._hurried = False
        files.shipped(txid, len(batch.body))
        if image is not None and self._snapping is not None:
            self._snapshot_due = True  # the database shrank while a snapshot was on its way
            self._reading -= 1
        elif image is not None:
            self._snapshot_due = False
            self._snapping = self._service.tasks.spawn(self._snap(image), name="snapshot")
        took = self._service.tick_ms() - began
        source.shipped(point.position, point.head)
        now, head = self._service.tick_ms(), source.point().head
        self._company.sent_off(now, shipped=point.head, head=head, put_ms=took)

    async def _cut(self, point: Point, txid: int) -> Batch | None:
        """The batch's bytes; None where the tracker lost its place. An image holds a `reading`:
        its pages are still to be read.
        """
        source, files, service = self._source_(), self.files, self._service
        assert files is not None
        now = service.now_ms()
        whole = self._whole or txid == 1
        snapshot = self._snapping is None and (
            self._snapshot_due or files.wants_snapshot(resting=False)
        )
        nonce = service.nonce

        def work() -> Batch:
            tracker = source.pages(point.commits)
            return write_batch(
                tracker, txid=txid, owner=point.owner, nonce=nonce, now_ms=now, whole=whole,
                snapshot=snapshot,
            )  # fmt: skip

        self._reading += 1
        image: Image | None = None
        try:
            batch: Batch = await self.requests.run(work)
            image = batch.image
        except StorageError as error:  # WalBroken, or a disk that will not be read just now
            log.warning("pages lost track, a whole image follows error=%s", error)
            self._whole = True
            return None
        finally:
            if image is None:
                self._reading -= 1
        return batch

    async def _cut_image(self, point: Point) -> Image | None:
        source, files, service = self._source_(), self.files, self._service
        assert files is not None
        head, now, nonce = files.head, service.now_ms(), service.nonce

        def work() -> Image:
            tracker = source.pages(point.commits)
            return Image(tracker, tracker.cut(whole=True), head, point.owner, nonce, now)

        try:
            image: Image = await self.requests.run(work)
        except StorageError as error:  # a snapshot more or less: the level 0 files are there
            log.warning("no snapshot at rest error=%s", error)
            self._reading -= 1
            return None
        return image

    # -- requests ----------------------------------------------------------------------------------

    async def _put(self, txid: int, batch: Batch) -> None:
        """Create the file. Returns once it stands there with our bytes; raises Fenced."""
        service = self._service
        key = file_key(self._prefix, LEVEL_CHANGES, txid, txid)
        self._pace.sent(service.now_ms(), urgent=self._source_().urgent())

        def work() -> None:
            try:
                service.store.put(key, batch.body, if_absent=True, timestamp_ms=batch.timestamp_ms)
            except ObjectExists:
                # Either an earlier reply of ours was lost, or another writer was first.
                there = service.store.get(key, end=HEADER_BYTES)
                if there != batch.body[:HEADER_BYTES]:
                    raise Fenced(
                        f"{key}: another writer owns this scope now", retry_after_ms=100
                    ) from None

        await self.requests.persist(work, "put")

        if self._foreign:
            await self._check_end(key)
            self._foreign = False

    async def _check_end(self, key: str) -> None:
        """Raise Fenced where anything stands behind our first file.

        Its slot was free; but the writer we restored from may have filled it and gone on, until a
        snapshot had covered that file for long enough to delete it.
        """
        store, level = self._service.store, key[: key.rindex("/") + 1]
        later = await self.requests.persist(lambda: store.list(level, after=key, limit=1), "list")
        if later.objects:
            raise Fenced(f"{key}: another writer has gone on from here", retry_after_ms=100)

    async def _ship_claim(self, batch: Batch) -> None:
        """Take the next slot with an empty file: nobody who slept can write there any more."""
        files, txid = self.files, self._claim
        assert files is not None and txid is not None
        await self._put(txid, batch)
        files.shipped(txid, len(batch.body))
        self._claiming = None
        self._source_().shipped(0, self._opened_head)

    async def landed(self) -> None:
        """Wait for the request that a thread still has; after `stop`, before the file is closed."""
        await self.requests.landed()

    async def _snap(self, image: Image) -> None:
        """Write the state whole, then delete what retention lets go. Holds one `reading`."""
        service, files = self._service, self.files
        assert files is not None
        key = file_key(self._prefix, LEVEL_SNAPSHOT, 1, image.txid)
        try:
            self._pace.out_of_turn(service.now_ms(), service.interval_ms(urgent=True))
            self.requests.counts["put"] += 1
            size = await self.requests.run(
                lambda: write_image(service.store, key, image, service.spool)
            )
            files.snapped(Mark(image.txid, image.timestamp_ms, size))
        except HoldfastError as error:  # the level 0 files hold everything; the next one will do
            log.warning("no snapshot key=%s error=%s", key, error)
            return
        finally:
            self._reading -= 1
            self._snapping = None
        await self._sweep(files)

    async def _sweep(self, files: Files) -> None:
        service, settings = self._service, self._service.settings
        gone = sweep(
            files,
            self._source_().firsts(),
            now=service.now_ms(),
            history_ms=settings.history_ms,
            snapshots_min=settings.snapshots,
        )
        if gone is None:
            return
        keys = [file_key(self._prefix, LEVEL_CHANGES, txid, txid) for txid in gone.changes]
        keys += [file_key(self._prefix, LEVEL_SNAPSHOT, 1, txid) for txid in gone.snapshots]
        try:
            self.requests.counts["delete"] += 1
            await self.requests.run(lambda: service.store.delete(keys))
        except HoldfastError as error:
            log.warning("old files stay for now prefix=%s error=%s", self._prefix, error)
            return
        after_sweep(files, gone)

    # -- stalls ------------------------------------------------------------------------------------

    def _arm_stall(self, ms: int) -> None:
        self._stall_timer = self._service.call_later(ms, self._look_for_stall)

    def _look_for_stall(self) -> None:
        self._stall_timer = None
        limit = self._service.settings.max_stall_ms
        since = self._source_().waiting_since()
        if self._over or (since is None and self._dirty_since is None and self._task is None):
            return
        waited = 0 if since is None else self._service.now_ms() - since
        if waited >= limit:
            trouble = self.requests.trouble
            why = f": {trouble}" if trouble is not None else ""
            self._source_().stall(
                TryLater(f"the bucket has not taken it for {waited} ms{why}", retry_after_ms=1000)
            )
            waited = 0
        self._arm_stall(max(10, limit - waited))


async def _settled(*tasks: asyncio.Task[Any] | None) -> None:
    waiting = [task for task in tasks if task is not None]
    if waiting:
        await asyncio.wait(waiting)
