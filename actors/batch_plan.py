"""What one turn makes of the drafts that waited: answers, entries, and one transaction.

Everything is planned in memory over the state of the last commit (actors/rows.py): a refused draft
costs a dropped dictionary. Nothing here writes.
"""

from __future__ import annotations

import logging
from typing import Protocol

from actors.dedupe import DedupeWindow, Notes, noted
from actors.dialects import Dialect, KeepsBases
from actors.folding import choose_rows
from actors.ledger import Ledger
from actors.mailbox import Request
from actors.rows import Overlay, RowCache
from actors.types import Appended, Draft, Duplicate, Outcome, Refusal, Rejected
from actors.write import Write
from infra.errors import HoldfastError, StorageError

log = logging.getLogger("holdfast.scope")


class Counts(Protocol):
    """Totals a plan adds to."""

    refused: int
    duplicates: int


class BatchPlan:
    """One turn's plan; `at` is its time, `overlay` the rows as its accepted drafts leave them."""

    def __init__(
        self,
        ledger: Ledger,
        dialect: Dialect,
        rows: RowCache,
        window: DedupeWindow | None,
        counts: Counts,
        at: int,
    ) -> None:
        self.at = at
        header = ledger.header
        self.overlay = Overlay(
            rows, at=at, floor=header.floor, jump=header.jump, bytes_kept=header.bytes,
            clock=header.clock,
        )  # fmt: skip
        self.entries = self.overlay.planned
        self.causes: dict[str, int] = {}
        self.notes: Notes = {}
        self._ledger = ledger
        self._dialect = dialect
        self._plan = dialect.plan
        self._rows = rows
        self._window = window if window is not None else DedupeWindow([])
        self._counts = counts
        self._head = ledger.header.head
        self._materialize = ledger.header.materialize

    def plan_one(self, draft: Draft) -> Outcome:
        """Decide one draft; what it becomes joins the batch."""
        overlay, entries, causes = self.overlay, self.entries, self.causes
        head = entries[-1].seq if entries else self._head
        try:
            if draft.make is not None:
                draft = draft.make(head + 1, self.at)
            cause = draft.cause
            seq = causes.get(cause)
            if seq is not None:  # earlier in this very batch
                _, _, count, outcome = self.notes.get(cause, (cause, seq, 1, None))
                body = next(e.body for e in entries if e.seq == seq) if count else None
                return Duplicate(seq, count, outcome, body)
            seq = self._window.get(cause)
            if seq is not None:
                self._counts.duplicates += 1
                return self._ledger.recall(cause, seq)
            if draft.expect is not None and draft.expect != head:
                return Rejected("conflict", f"expected head {draft.expect}, it is {head}")
            planned = self._plan(draft, head + 1, self.at, overlay)
            if self._materialize:
                for entry in planned:
                    self._dialect.apply(overlay, entry)
        except Refusal as refusal:
            overlay.refuse()
            self._counts.refused += 1
            return Rejected(refusal.code, str(refusal), refusal.detail)
        except StorageError:
            raise
        except Exception as error:  # a caller's factory or a peer's bytes must not end the batch
            overlay.refuse()
            if isinstance(error, HoldfastError):
                return Rejected(error.code, str(error), error=error)
            if draft.make is None:  # else it is the caller's, and reaches the caller
                log.exception("draft failed file=%s", self._ledger.path.name)
            return Rejected("internal", "the draft could not be planned", error=error)
        overlay.accept()
        entries.extend(planned)
        if len(planned) == 1 and draft.outcome is None and cause:
            causes[cause] = seq = head + 1
            return Appended(seq, seq)
        return noted(draft, head, len(planned), causes, self.notes)

    def write(self, requests: list[Request], floor: int | None) -> Write | None:
        """The transaction for all that was accepted; None where there is nothing to write."""
        overlay = self.overlay
        # In this order: asking a protocol costs more than a small plan.
        if overlay.trim_to > overlay.floor and isinstance(self._dialect, KeepsBases):
            floor = overlay.trim_to
            self._dialect.rebase(overlay, floor)
            overlay.accept()
        write = Write(
            self.at, self.entries, cleared=overlay.cleared, floor=floor,
            dedupe=list(self.notes.values()), flags=overlay.flags,
        )  # fmt: skip
        if overlay.clock != self._ledger.header.clock:
            write.clock = overlay.clock
        for request in requests:
            if request.alarms or request.alarms_done:
                write.alarms = write.alarms + request.alarms
                write.alarms_done = write.alarms_done + request.alarms_done
        choose_rows(write, self.overlay, self._rows.lagging, self._head)
        kept = floor is None and not (write.alarms or write.alarms_done)
        if kept and not (self.entries or self.overlay.batch or write.dedupe):
            return None
        return write
