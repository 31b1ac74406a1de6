"""One scope at work: a bounded mailbox, one writer, group commit, and the gate everything leaves
through.

Always true: `released` <= `head`; whoever is answered or shown an entry sees state at or below
`released`; batches leave in the order of their seqs, once. A commit waits for nobody's disk; the
barrier says later how far the file is durable, and only then replies and taps hear of it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from actors.dedupe import DedupeWindow, Notes, noted
from actors.dialects import Dialect, Schema, dialect_named
from actors.folding import choose_rows
from actors.ledger import Ledger, StaleOwner, Write
from actors.mailbox import Mailbox, Request
from actors.retention import Trimmer
from actors.rows import Key, Overlay, Row, RowCache
from actors.types import (
    Address,
    Appended,
    Batch,
    Bounds,
    Draft,
    Duplicate,
    Entry,
    EntryPage,
    Outcome,
    Page,
    Refusal,
    Rejected,
    Reply,
    Resync,
    ScopePolicy,
    Tap,
)  # fmt: skip
from infra import limits
from infra.errors import Busy, HoldfastError, StorageError, Unavailable

log = logging.getLogger("holdfast.scope")

# Estimated bytes of WAL between checkpoints. A WAL that is written over again syncs evenly (p90
# 0.24 ms), a growing one does not (0.88 ms), so it is short; a busy scope has a longer one, because
# its writes wait for each checkpoint.
CHECKPOINT_BYTES = 4 << 20
CHECKPOINT_BYTES_MAX = 32 << 20
CHECKPOINT_EVERY_MS = 2000  # more often than this is busy
PAGE_BYTES = 4096
WINDOW_LOAD_MAX = 4096  # entries whose causes are read between two turns
STORAGE_RETRY_MS = 1000
RELEASE_LAG_MAX = limits.UNRELEASED_BATCHES_MAX


class _Waiting(msgspec.Struct):
    """A batch between its commit and its release. `last` is the head everything in it has seen."""

    first: int
    last: int
    position: int
    at: int
    bodies: list[str]
    requests: list[Request]
    entries: list[Entry]  # empty where the dialect's followers do with bodies


class Tally(Protocol):
    """Totals a scope adds to."""

    commits: int
    entries: int
    refused: int
    duplicates: int
    release_wait_s: float


class Shell(Protocol):
    """What a scope needs of its host, so that it runs without a loop in tests."""

    @property
    def counts(self) -> Tally: ...

    def call_soon(self, callback: Callable[[], None]) -> None: ...
    def now_ms(self) -> int: ...
    def mark(self, scope: Scope) -> None: ...
    def lend(self, scope: Scope, work: Callable[[], None]) -> None: ...
    def failed(self, scope: Scope, error: HoldfastError) -> None: ...


class Scope:
    """The actor. Every method is called on the loop thread."""

    def __init__(
        self, address: Address, ledger: Ledger, policy: ScopePolicy, shell: Shell, taps: list[Tap],
        dialect: Dialect | None = None,
    ) -> None:  # fmt: skip
        self.address = address
        self.taps = taps
        self.lent = False
        self.position = 0  # commits so far: what the barrier reports back
        self._passed = 0  # of these, how many it has reported
        self.new = ledger.header.head == 0
        self.wal_path: Path = ledger.wal_path
        self.used_at = shell.now_ms()
        self.released = ledger.header.head
        self._ledger = ledger
        self._dialect = dialect or dialect_named(ledger.header.dialect)
        self._trimmer = Trimmer(ledger.retention(policy.retention))
        self._shell = shell
        self._mailbox = Mailbox()
        self._scheduled = False
        self._waiting: deque[_Waiting] = deque()
        self._window: DedupeWindow | None = None
        self._forget = False
        self._rows = RowCache(ledger.row)
        self._wal_bytes = 0
        self._wal_bytes_max = CHECKPOINT_BYTES
        self._checkpointed_at = 0
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
    def bounds(self) -> Bounds:
        """As far as anybody may see."""
        if self._before is not None:
            return self._before
        known = self._bounds
        h = self._ledger.header
        if known is None or known.head != self.released or known.floor != h.floor:
            known = Bounds(h.epoch, self.released, min(h.floor, self.released), self.released)
            self._bounds = known
        return known

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def busy(self) -> bool:
        """Whether something would be lost or delayed by closing the file now."""
        unsynced = self._passed < self.position and self._error is None
        return bool(self._mailbox or self._waiting or self.lent or self._scheduled or unsynced)

    def append(self, request: Request) -> None:
        """Put the request into the mailbox. Raises Busy or Unavailable, having taken nothing."""
        if self._error is not None:
            raise Unavailable(str(self._error), retry_after_ms=STORAGE_RETRY_MS)
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
        if len(self._waiting) >= RELEASE_LAG_MAX:
            return  # the disk is behind; `release` schedules the next turn
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
        if self._wal_bytes > self._wal_bytes_max:
            self._checkpoint()
        elif self._mailbox or self._trimmer.is_behind(self._ledger.header):
            self._schedule()

    def _checkpoint(self) -> None:
        now = self._shell.now_ms()
        busy = now - self._checkpointed_at < CHECKPOINT_EVERY_MS
        wanted = self._wal_bytes_max * 2 if busy else self._wal_bytes_max // 2
        self._wal_bytes_max = min(CHECKPOINT_BYTES_MAX, max(CHECKPOINT_BYTES, wanted))
        self._checkpointed_at = now
        self._wal_bytes = 0
        self._lend(self._ledger.checkpoint)

    def _commit(self, requests: list[Request]) -> None:
        at = self._last_at = max(self._shell.now_ms(), self._last_at)
        self.used_at = at
        header = self._ledger.header
        overlay = Overlay(self._rows, at=at)
        causes: dict[str, int] = {}
        notes: Notes = {}
        entries: list[Entry] = []
        plan_one = self._plan_one
        for request in requests:
            request.outcomes = [
                plan_one(draft, overlay, entries, causes, notes, at) for draft in request.drafts
            ]
        write = self._write(requests, overlay, entries, notes, at)
        if write is not None:
            changed = dict(overlay.batch)
            self._ledger.commit(write)
            self.position += 1
            self._shell.counts.commits += 1
            self._shell.counts.entries += len(entries)
            self._rows.commit(changed, overlay.cleared)
            if causes and self._window is not None:
                self._forget = self._window.add(causes) or self._forget
            self._wal_bytes += (
                PAGE_BYTES * (3 + 2 * len(write.rows)) + self._ledger.header.bytes - header.bytes
                if write.floor is None
                else PAGE_BYTES * 8 + sum(entry.size for entry in entries)
            )
            self._shell.mark(self)
        bodies = [entry.body for entry in entries]
        self._waiting.append(
            _Waiting(
                header.head + 1, self.head, self.position, at, bodies, requests,
                entries if self._dialect.whole_entries else [],
            )
        )  # fmt: skip
        if write is None and self._passed >= self.position:
            for reply in self.release(self.position):
                reply.flush()

    def _plan_one(
        self, draft: Draft, overlay: Overlay, entries: list[Entry], causes: dict[str, int],
        notes: Notes, at: int,
    ) -> Outcome:  # fmt: skip
        head = entries[-1].seq if entries else self._ledger.header.head
        try:
            if draft.make is not None:
                draft = draft.make(head + 1, at)
            cause = draft.cause
            seq = causes.get(cause)
            if seq is not None:  # earlier in this very batch
                _, _, count, outcome = notes.get(cause, (cause, seq, 1, None))
                body = next(e.body for e in entries if e.seq == seq) if count else None
                return Duplicate(seq, count, outcome, body)
            assert self._window is not None
            seq = self._window.get(cause)
            if seq is not None:
                self._shell.counts.duplicates += 1
                return self._ledger.recall(cause, seq)
            if draft.expect is not None and draft.expect != head:
                return Rejected("conflict", f"expected head {draft.expect}, it is {head}")
            planned = self._dialect.plan(draft, head + 1, at, overlay)
            if self._ledger.header.materialize:
                for entry in planned:
                    self._dialect.apply(overlay, entry)
        except Refusal as refusal:
            overlay.refuse()
            self._shell.counts.refused += 1
            return Rejected(refusal.code, str(refusal), refusal.detail)
        except StorageError:
            raise
        except Exception as error:  # a caller's factory or a peer's bytes must not end the batch
            overlay.refuse()
            if isinstance(error, HoldfastError):
                return Rejected(error.code, str(error), error=error)
            if draft.make is None:  # else it is the caller's, and reaches the caller
                log.exception("draft failed scope=%s", self.address.scope)
            return Rejected("internal", "the draft could not be planned", error=error)
        overlay.accept()
        entries.extend(planned)
        if len(planned) == 1 and draft.outcome is None and cause:
            causes[cause] = head + 1
            return Appended(head + 1, head + 1)
        return noted(draft, head, len(planned), causes, notes)

    def _write(
        self, requests: list[Request], overlay: Overlay, entries: list[Entry], notes: Notes, at: int
    ) -> Write | None:
        write = Write(at, entries, cleared=overlay.cleared, dedupe=list(notes.values()))
        for request in requests:
            if request.alarms or request.alarms_done:
                write.alarms = write.alarms + request.alarms
                write.alarms_done = write.alarms_done + request.alarms_done
        write.floor = self._trimmer.new_floor(self._ledger, len(entries), at)
        choose_rows(write, overlay, self._rows.lagging, self.head)
        kept = write.floor is None and not (write.alarms or write.alarms_done)
        if kept and not (entries or overlay.batch or write.dedupe):
            return None
        if self._forget:
            write.forget, self._forget = True, False
        return write

    # -- release --------------------------------------------------------------------------------

    def release(self, position: int) -> list[Reply]:
        """The commits up to `position` are durable: answer and fan out what they hold.

        Returns who got answers, for one `flush` each.
        """
        self._passed = max(self._passed, position)
        waiting = self._waiting
        done: list[_Waiting] = []
        while waiting and waiting[0].position <= position:
            done.append(waiting.popleft())
        if not done:
            return []
        self.released = max(self.released, done[-1].last)
        if self._before is not None:
            self._show_new_epoch()
        self._shell.counts.release_wait_s += (self._shell.now_ms() - done[0].at) / 1000
        bounds = self.bounds
        touched: dict[Reply, None] = {}
        bodies: list[str] = []
        entries: list[Entry] = []
        for batch in done:
            bodies.extend(batch.bodies)
            entries.extend(batch.entries)
            for request in batch.requests:
                request.reply.settle(request.tag, request.outcomes, bounds)
                touched[request.reply] = None
        if bodies and self.taps:
            released = Batch(done[0].first, done[-1].last, bodies, bounds, entries)
            for tap in tuple(self.taps):
                tap.deliver(released)
        if self._mailbox:
            self._schedule()
        return list(touched)

    def fail(self, error: HoldfastError) -> list[Reply]:
        """The file cannot be trusted any more: whoever waits hears so; nothing of it is shown."""
        self._error = error
        waiting = [request for batch in self._waiting for request in batch.requests]
        requests = [*waiting, *self._mailbox.drain()]
        self._waiting.clear()
        return self._settle_rejected(requests, error)

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
            self._ledger.commit(Write(self._shell.now_ms(), ddl=missing))
            self.position += 1
            self._shell.mark(self)

    def _recover(self) -> None:
        """After a crash: fold the tails of rows that lagged behind, and store them."""
        lagging = self._ledger.unfolded()
        overlay = Overlay(self._rows, at=self._shell.now_ms())
        only = frozenset(lagging)
        for entry in self._ledger.entries(min(lagging.values()), self.head):
            self._apply_newer(overlay, entry, only, lagging)
        rows = {key: row for key, row in overlay.batch.items() if key in lagging}
        self._ledger.commit(Write(overlay.at, rows=rows, folded=list(lagging)))
        self._rows.commit(dict(rows), set())
        self.position += 1
        self._shell.mark(self)

    def _apply_newer(
        self, overlay: Overlay, entry: Entry, only: frozenset[Key], lagging: dict[Key, int]
    ) -> None:
        newer = frozenset(key for key in only if lagging[key] < entry.seq)
        self._dialect.apply(overlay, entry, newer)
        overlay.accept()

    def fold_tails(self) -> None:
        """Store every row that lags behind, so that a closed file needs no recovery."""
        lagging = self._rows.lagging
        if lagging and self._error is None:
            rows: dict[Key, Row | None] = {
                key: msgspec.structs.replace(row) for key, row in lagging.items()
            }
            self._ledger.commit(Write(self._shell.now_ms(), rows=rows, folded=list(rows)))
            self._rows.commit(rows, set())
            self.position += 1

    def begin_epoch(self, epoch: str, jump: int) -> None:
        """Clear the scope: a new history whose numbers lie above every old cursor (I6)."""
        if self._error is not None:  # the file stays as it is for an operator
            raise Unavailable(str(self._error), retry_after_ms=STORAGE_RETRY_MS)
        if self.busy:
            raise Busy("writes are under way", retry_after_ms=50)
        at = self._shell.now_ms()
        self._before = self.bounds  # what is shown until the new history is durable
        self._ledger.begin_epoch(epoch, jump=jump, at=at)
        self.position += 1
        self._rows = RowCache(self._ledger.row)
        self._window = DedupeWindow([])
        self._waiting.append(_Waiting(self.head + 1, self.head, self.position, at, [], [], []))
        self._shell.mark(self)

    def _show_new_epoch(self) -> None:
        self._before = self._bounds = None
        for tap in tuple(self.taps):
            tap.reset(self.bounds)

    def drain(self) -> list[Request]:
        """Take what waits out of the mailbox, for the scope that is opened after this one."""
        return self._mailbox.drain()
