"""One scope at work: a bounded mailbox, one writer, group commit, and the gate everything leaves
through.

Always true: `released` <= `head`; whoever is answered or shown an entry sees state at or below
`released`; batches leave in the order of their seqs, once. A commit waits for nobody's disk; the
barrier says later how far the file is durable, and only then replies and taps hear of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from actors.batch_plan import BatchPlan
from actors.dedupe import DedupeWindow
from actors.dialects import Dialect, KeepsBases, Schema, dialect_named
from actors.gate import LOCAL, REPLICATED, Gate, Opened, Waiting
from actors.ledger import Ledger, StaleOwner
from actors.mailbox import Mailbox, Request
from actors.recovery import fold_behind
from actors.retention import NO_LIMIT, Trimmer
from actors.rows import Key, Row, RowCache
from actors.shell import Shell, Shipper
from actors.types import (
    Address,
    Batch,
    Bounds,
    EntryPage,
    Page,
    Rejected,
    Reply,
    Resync,
    ScopePolicy,
    Tap,
)  # fmt: skip
from actors.wal_size import WalSize
from actors.write import Write
from infra import limits
from infra.errors import Busy, Fenced, HoldfastError, NoBucket, StorageError, Unavailable

log = logging.getLogger("holdfast.scope")

WINDOW_LOAD_MAX = 4096  # entries whose causes are read between two turns
STORAGE_RETRY_MS = 1000
RELEASE_LAG_MAX = limits.UNRELEASED_BATCHES_MAX


class Scope:
    """The actor. Every method is called on the loop thread."""

    def __init__(
        self,
        address: Address,
        ledger: Ledger,
        policy: ScopePolicy,
        shell: Shell,
        taps: list[Tap],
        dialect: Dialect | None = None,
        replica: Shipper | None = None,
    ) -> None:
        self.address = address
        self.taps = taps
        self.lent = False
        self.position = 0  # commits so far: what the barrier reports back
        self.new = ledger.header.head == 0
        self.wal_path: Path = ledger.wal_path
        self.used_at = shell.now_ms()
        # A scope that was `replicated` stays so until the bucket knows that it no longer is.
        level = ledger.header.level if policy.level == LOCAL and replica else policy.level
        self.gate = Gate(ledger.header.head, level, replica=replica is not None)
        self.level = policy.level
        self._replica = replica
        self._stalled: HoldfastError | None = None
        self._noted = False  # this opening has told the file where its owner's batches begin
        self._ledger = ledger
        self._dialect = dialect or dialect_named(ledger.header.dialect)
        keep = ledger.header.retention(policy.retention)
        self._trimmer = Trimmer(NO_LIMIT if isinstance(self._dialect, KeepsBases) else keep)
        self._shell = shell
        self._mailbox = Mailbox()
        self._scheduled = False
        self._window: DedupeWindow | None = None
        self._forget = False
        self._rows = RowCache(ledger.row, ledger.entries, ledger.ids)
        self._wal = WalSize()
        self._last_at = 0
        self._error: HoldfastError | None = None
        self._bounds: Bounds | None = None
        self._before: Bounds | None = None  # while a new epoch is not durable yet
        if self._dialect.schema is not None:
            self._extend_schema(self._dialect.schema)
        if ledger.unfolded():
            self._recover()

    # -- what callers ask --------------------------------------------------------------------

    @property
    def head(self) -> int:
        return self._ledger.header.head

    @property
    def released(self) -> int:
        return self.gate.released

    @property
    def bounds(self) -> Bounds:
        """As far as anybody may see."""
        if self._before is not None:
            return self._before
        known = self._bounds
        h, gate = self._ledger.header, self.gate
        head, durable = gate.released, gate.durable
        if (
            known is None
            or known.head != head
            or known.floor != h.floor
            or known.durable != durable
        ):
            floor = min(h.floor, head)
            known = Bounds(
                h.epoch, head, floor, min(durable, head), floor_at=h.floor_at, jump=h.jump
            )
            self._bounds = known
        return known

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    @property
    def busy(self) -> bool:
        """Whether something would be lost or delayed by closing the file now."""
        if self.unsettled:
            return True
        return self._replica is not None and self._error is None and self._replica.pending

    @property
    def unsettled(self) -> bool:
        """The same but for the replica."""
        unsynced = self.gate.passed < self.position and self._error is None
        return bool(self._mailbox or self.gate or self.lent or self._scheduled or unsynced)

    @property
    def sound(self) -> bool:
        """Whether its file can still be trusted, and is nobody else's."""
        return self._error is None

    @property
    def under_way(self) -> list[str]:
        """What `busy` is about, in words for an operator."""
        found = {
            "commands": bool(self._mailbox or self.gate or self._scheduled),
            "disk": self.gate.passed < self.position and self._error is None,
            "file work": self.lent,
            "upload": self.busy and not self.unsettled,
        }
        return [what for what, there in found.items() if there]

    def append(self, request: Request) -> None:
        """Put the request into the mailbox. Raises Busy or Unavailable, having taken nothing."""
        if isinstance(self._error, Fenced):
            raise Fenced(str(self._error), retry_after_ms=STORAGE_RETRY_MS)
        if self._error is not None:
            raise Unavailable(str(self._error), retry_after_ms=STORAGE_RETRY_MS)
        if request.replicated and self._replica is None:
            raise NoBucket("no bucket is configured, so nothing can be 'replicated'")
        if self._stalled is not None and (request.replicated or self.gate.level == REPLICATED):
            raise self._stalled
        gate = self.gate
        if gate.shipped >= 0 and self.head - gate.durable > limits.UNSHIPPED_ENTRIES_MAX:
            raise Busy("the bucket is too far behind", retry_after_ms=STORAGE_RETRY_MS)
        self._mailbox.put(request)
        self._schedule()

    def read(self, after: int, *, entries_max: int, bytes_max: int, joined: bool) -> Page | Resync:
        """The released entries after a cursor. Not while `lent`."""
        self.used_at = self._shell.now_ms()
        bounds = self.bounds
        if (resync := self._resync(after)) is not None:
            return resync
        if after == bounds.head:
            return Page(after + 1, after, [], "", bounds)
        if joined and self._ledger.header.body_max * entries_max <= bytes_max:
            last, text = self._ledger.joined_page(after, bounds.head, entries_max=entries_max)
            return Page(after + 1, last, [], text, bounds)
        rows = self._ledger.page(after, bounds.head, entries_max=entries_max, bytes_max=bytes_max)
        bodies = [body for _, body in rows]
        if joined:
            return Page(after + 1, rows[-1][0], [], ",".join(bodies), bounds)
        return Page(after + 1, rows[-1][0], bodies, "", bounds)

    def _resync(self, after: int) -> Resync | None:
        bounds = self.bounds
        if self._before is not None:
            return Resync("epoch_changed", bounds)  # the old entries are gone already
        if after < bounds.floor:
            return Resync("below_floor", bounds)
        return Resync("ahead_of_head", bounds) if after > bounds.head else None

    def visible(
        self, after: int, groups: str, *, entries_max: int, bytes_max: int
    ) -> EntryPage | Resync:
        """As `read`, whole entries: those without a group and those of `groups` (a JSON list)."""
        self.used_at = self._shell.now_ms()
        return self._resync(after) or self._ledger.visible(
            after, self.bounds, groups, entries_max=entries_max, bytes_max=bytes_max
        )

    def rows(self, keys: Sequence[Key]) -> list[Row | None]:
        """The rows as last committed, which may be ahead of `released`. Not while `lent`."""
        self.used_at = self._shell.now_ms()
        return [self._rows.get(key) for key in keys]

    # -- the turn: everything that waits becomes one transaction -------------------------------

    def _schedule(self) -> None:
        if not self._scheduled and not self.lent:
            self._scheduled = True
            self._shell.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self.lent or self._error is not None:
            return
        if len(self.gate.waiting) >= RELEASE_LAG_MAX:
            return  # disk or bucket is behind; `_let_out` schedules the next turn
        kept = self.head - self._ledger.header.floor
        if self._window is None and self._mailbox and kept > WINDOW_LOAD_MAX:
            self._lend(self._load_window)  # long: in a thread, the mailbox waits
            return
        requests = self._mailbox.take()
        try:
            if self._window is None and requests:
                self._load_window()
            self._commit(requests)
        except HoldfastError as error:
            self._refuse_all(requests, error)
        except Exception as error:  # nobody may be left waiting; the transaction rolled back
            log.exception("commit failed scope=%s", self.address.scope)
            self._refuse_all(requests, StorageError(f"{type(error).__name__}: {error}"))
        reading = self._replica is not None and self._replica.reading
        if self._wal.too_long and not reading:
            self._checkpoint()
        elif self._mailbox or self._trimmer.is_behind(self._ledger.header):
            self._schedule()

    def _checkpoint(self) -> None:
        self._wal.begin_anew(self._shell.now_ms())
        self._lend(self._ledger.checkpoint)

    def _commit(self, requests: list[Request]) -> None:
        at = self._last_at = max(self._shell.now_ms(), self._last_at)
        self.used_at = at
        ledger = self._ledger
        header = ledger.header
        counts = self._shell.counts
        batch = BatchPlan(ledger, self._dialect, self._rows, self._window, counts, at)
        plan_one = batch.plan_one
        for request in requests:
            request.outcomes = [plan_one(draft) for draft in request.drafts]
        entries = batch.entries
        write = batch.write(requests, self._trimmer.new_floor(ledger, len(entries), at))
        if write is not None:
            write.forget, self._forget = self._forget, False
            changed = dict(batch.overlay.batch)
            self._put(write)
            counts.commits += 1
            counts.entries += len(entries)
            self._rows.commit(changed, batch.overlay.cleared)
            if batch.causes and self._window is not None:
                self._forget = self._window.add(batch.causes) or self._forget
            grown = self._wal.grow(write, ledger.header.bytes - header.bytes)
            if self._replica is not None:
                self._replica.committed(grown)
        bodies = [entry.body for entry in entries]
        whole = entries if self._dialect.whole_entries else []
        self.gate.hold(
            Waiting(header.head + 1, self.head, self.position, at, bodies, requests, whole)
        )
        if self._replica is not None and self.gate.urgent:
            self._replica.urge()
        if write is None and self.gate.passed >= self.position:
            for reply in self.release(self.position):
                reply.flush()

    def _put(self, write: Write) -> None:
        """Commit, and tell disk and bucket that there is something."""
        ledger, replica = self._ledger, self._replica
        if replica is not None:
            ledger.txid = replica.next_txid
            if ledger.level != self.level:
                ledger.level = self.level
                if self.level == LOCAL:
                    self.gate.lower_level_after(self.position + 1)
            if not ledger.claimed:
                write.first_txid = replica.claim_txid
                self._noted = True
        ledger.commit(write)
        self._count_commit()

    def _count_commit(self) -> None:
        self.position += 1
        self._shell.mark(self)
        if self._replica is not None:
            self._replica.committed()

    # -- release --------------------------------------------------------------------------------

    def release(self, position: int) -> list[Reply]:
        """The commits up to `position` are on the disk: answer and fan out what may leave now.

        Returns who got answers, for one `flush` each.
        """
        opened = self.gate.pass_disk(position)
        if self._replica is not None:
            self._replica.synced()
        return self._let_out(opened)

    def shipped(self, position: int, head: int) -> None:
        """The bucket has the commits up to `position`, and all entries up to `head`."""
        before = self.gate.durable
        opened = self.gate.pass_bucket(position, head)
        self._stalled = None
        for reply in self._let_out(opened):
            reply.flush()
        if not opened.batches and self.gate.durable != before and self._before is None:
            for tap in tuple(self.taps):
                tap.durable(self.bounds)
        if self._wal.too_long:
            self._schedule()  # the checkpoint that waited for the pages to be read

    def _let_out(self, opened: Opened) -> list[Reply]:
        done = opened.batches
        if done and self._before is not None:
            self._show_new_epoch()
        bounds = self.bounds
        touched: dict[Reply, None] = {}
        for request in opened.requests:
            request.reply.settle(request.tag, request.outcomes, bounds)
            touched[request.reply] = None
        if not done:
            return list(touched)
        self._shell.counts.release_wait_s += (self._shell.now_ms() - done[0].at) / 1000
        bodies, entries = done[0].bodies, done[0].entries
        for batch in done[1:]:
            bodies.extend(batch.bodies)
            entries.extend(batch.entries)
        if bodies and self.taps:
            released = Batch(done[0].first, done[-1].last, bodies, bounds, entries)
            for tap in tuple(self.taps):
                tap.deliver(released)
        if self._mailbox:
            self._schedule()
        return list(touched)

    def stall(self, error: HoldfastError) -> None:
        """The bucket takes nothing: whoever waits for it hears so and may repeat; readers go on.

        What was committed stays, and leaves when the bucket has it.
        """
        self._stalled = error
        for reply in self._settle_rejected(self.gate.give_up(), error):
            reply.flush()

    def claim(self, txid: int) -> None:
        """The owner's batches begin with `txid`: have the file say so, where it does not yet."""
        ledger = self._ledger
        if self._error is not None:
            return
        if ledger.claimed and (owners := ledger.owners()):
            last = owners[-1]
            stale = last.txid > txid or (self._noted and last.txid != txid)
            if last.owner == ledger.owner and not stale:
                return
        self._put(Write(self._shell.now_ms(), first_txid=txid))
        self._noted = True

    def track_anew(self) -> None:
        """Empty the WAL and follow it from there; the next batch is a whole image."""
        if not self.lent and self._error is None:
            self._lend(self._ledger.track_anew)

    def fail(self, error: HoldfastError) -> list[Reply]:
        """The file cannot be trusted any more: whoever waits hears so; nothing of it is shown."""
        self._error = error
        return self._settle_rejected([*self.gate.drop(), *self._mailbox.drain()], error)

    def _refuse_all(self, requests: list[Request], error: HoldfastError) -> None:
        for reply in self._settle_rejected(requests, error):
            reply.flush()
        if not error.retryable or isinstance(error, StaleOwner):
            self._shell.failed(self, error)

    def _settle_rejected(self, requests: list[Request], error: HoldfastError) -> list[Reply]:
        log.warning("refused scope=%s code=%s error=%s", self.address.scope, error.code, error)
        rejected = Rejected(error.code, str(error), retry_after_ms=STORAGE_RETRY_MS)
        touched: dict[Reply, None] = {}
        for request in requests:
            count = max(1, len(request.drafts))
            request.reply.settle(request.tag, [rejected] * count, self.bounds)
            touched[request.reply] = None
        return list(touched)

    # -- work with the file in a thread ---------------------------------------------------------

    def _lend(self, work: Callable[[], None]) -> None:
        """Give the handle to a thread; until `returned`, turns and reads of this scope wait."""
        self.lent = True
        self._shell.lend(self, work)

    def returned(self) -> None:
        """The thread is done with the handle."""
        self.lent = False
        if self._mailbox:
            self._schedule()

    def _load_window(self) -> None:
        self._window = DedupeWindow(self._ledger.causes())

    def lend_failed(self, error: HoldfastError) -> None:
        """The thread could not do it. Whoever waits for the window hears so; they may repeat."""
        if self._window is None:
            for reply in self._settle_rejected(self.drain(), error):
                reply.flush()

    # -- recovery and end -----------------------------------------------------------------------

    def _extend_schema(self, schema: Schema) -> None:
        """Give the file what the dialect wants besides the tables every file has."""
        missing = schema(self._ledger.schema())
        if missing:
            self._put(Write(self._shell.now_ms(), ddl=missing))

    def _recover(self) -> None:
        """After a crash: fold the tails of rows that lagged behind, and store them."""
        at = self._shell.now_ms()
        rows, behind = fold_behind(self._ledger, self._dialect, self._rows, at)
        self._put(Write(at, rows=rows, folded=behind))
        self._rows.commit(dict(rows), set())

    def fold_tails(self) -> None:
        """Store every row that lags behind, so that a closed file needs no recovery.

        Where the disk does not take it, the tails stay recoverable from the entries.
        """
        lagging = self._rows.lagging
        if not lagging or self._error is not None:
            return
        rows: dict[Key, Row | None] = {
            key: msgspec.structs.replace(row) for key, row in lagging.items()
        }
        try:
            self._put(Write(self._shell.now_ms(), rows=rows, folded=list(rows)))
        except HoldfastError as error:
            log.warning("tails not folded scope=%s error=%s", self.address.scope, error)
            return
        self._rows.commit(rows, set())

    def begin_epoch(self, epoch: str, jump: int) -> None:
        """Clear the scope: a new history whose numbers lie above every old cursor (I6)."""
        if self._error is not None:  # the file stays as it is for an operator
            raise Unavailable(str(self._error), retry_after_ms=STORAGE_RETRY_MS)
        if self.unsettled:
            raise Busy("writes are under way", retry_after_ms=50)
        self._cut(lambda at: self._ledger.begin_epoch(epoch, jump=jump, at=at))
        self._window = DedupeWindow([])

    def _cut(self, work: Callable[[int], None]) -> None:
        at = self._shell.now_ms()
        self._before = self.bounds  # what is shown until the new history may be
        if self._replica is not None:
            if not self._ledger.claimed:
                self._put(Write(at))
            self._ledger.txid = self._replica.next_txid
        work(at)
        self._count_commit()
        self._rows = RowCache(self._ledger.row, self._ledger.entries, self._ledger.ids)
        self.gate.hold(Waiting(self.head + 1, self.head, self.position, at, [], []))

    def _show_new_epoch(self) -> None:
        self._before = self._bounds = None
        for tap in tuple(self.taps):
            tap.reset(self.bounds)

    def announce(self, before: Bounds) -> None:
        """Another writer went on from `before`: have followers read what they missed."""
        bounds = self.bounds
        for tap in tuple(self.taps):
            (tap.reset if bounds.epoch != before.epoch else tap.moved)(bounds)

    def drain(self) -> list[Request]:
        """Take what waits out of the mailbox, for the scope that is opened after this one."""
        return self._mailbox.drain()
